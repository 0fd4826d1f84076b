/*
 * The persistent kernel's memory (decode_persistent.cu): what the blocks share in device memory, what each has in its shared
 * memory, and who owns what.
 *
 * Every block owns a share of the rows of every matrix. A stream's blocks, its team, share the channels of its mixer in
 * units of 8, and each keeps the history of its own.
 */
#ifndef AIM_CUDA_DECODE_FEW_CUH
#define AIM_CUDA_DECODE_FEW_CUH

#include "cuda/decode.cuh"
#include "cuda/exchange.cuh"

enum {
    WARP_BITS = 4,
    WARPS = 1 << WARP_BITS,
    THREADS = 32 * WARPS,
    MOST_STREAMS = 8,
    UNIT = 8,           /* channels: 8 columns of the tensor cores */
    UNITS = 4,          /* that a warp takes at once */
    ROWS = 16,          /* tokens of the history that a warp takes at once: 16 rows of the tensor cores */
    PART_BYTES = 24576, /* partial sums of the products */
};

/* ------------------------------------------------------------------------------------------------- device memory */

/* Words are of step t·layers + l + 1 of what layer l computes; tokens of step t + 1. */
struct few_memory {
    unsigned *arrived;    /* blocks that are done with a token's logits */
    word *token;          /* (pictures) */
    word *zxbcdt, *v, *h; /* (R,W), (R, E sizeof(X)/4), (R,d) */
    word *squares;        /* (R, blocks of the team, units / UNITS): Σ (y silu(z))² */
    float4 *norms;        /* (layers+1, R, d/2, 2): norm_kernel's table */
    float *ring;          /* (layers,R,RING,C): inputs of the convolution, token t in place t mod RING */
    void *u, *b;          /* (layers,R,E,T), (layers,R,T,S) of X */
    float *decay;         /* (layers,R,E/UNIT,T): a_{s+1} ... a_t, once for each unit */
    int T;                /* of the history: whole ROWS */
    int64_t words, bytes; /* that must start as zeros; altogether */
};

/* Lays it out from `memory` on, for R streams and values of `size` bytes. */
static inline struct few_memory few_memory_of(const struct decode_view *a, int64_t R, int64_t size, char *memory)
{
    enum { ALIGN = 256 };
    struct few_memory m = {};
    m.T = (a->T + ROWS - 1) / ROWS * ROWS;
    int64_t T = m.T, layer_streams = a->layers * R, used = 0;
    auto take = [&](int64_t bytes) {
        int64_t at = used;
        used += (bytes + ALIGN - 1) / ALIGN * ALIGN;
        return memory + at;
    };
    m.arrived = (unsigned *)take(sizeof *m.arrived);
    m.token = (word *)take(R * (int64_t)sizeof(word));
    m.zxbcdt = (word *)take(R * a->W * (int64_t)sizeof(word));
    m.v = (word *)take(R * a->E * size / 4 * (int64_t)sizeof(word));
    m.h = (word *)take(R * a->d * (int64_t)sizeof(word));
    m.squares = (word *)take(R * 2 * (a->E / UNIT) * (int64_t)sizeof(word));
    m.words = used;
    m.norms = (float4 *)take((a->layers + 1) * R * a->d * (int64_t)sizeof(float4));
    m.ring = (float *)take(layer_streams * RING * a->C * (int64_t)sizeof(float));
    m.b = take(layer_streams * T * a->S * size);
    m.u = take(layer_streams * a->E * T * size);
    m.decay = (float *)take(layer_streams * (a->E / UNIT) * T * (int64_t)sizeof(float));
    m.bytes = used;
    return m;
}

/* ------------------------------------------------------------------------------------------------------ who owns what */

/* The blocks first .. first+blocks of a stream that mix: at most `units` units each, in `groups` groups of UNITS. */
struct team {
    int first, blocks, units, groups;
};

static __host__ __device__ inline struct team team_of(int E, int R, int grid, int r)
{
    struct team t;
    t.first = (r * grid + R - 1) / R;
    t.blocks = min(((r + 1) * grid + R - 1) / R - t.first, E / UNIT);
    t.units = (E / UNIT + t.blocks - 1) / t.blocks;
    t.groups = (t.units + UNITS - 1) / UNITS;
    return t;
}

/* The stream whose rows a thread handles where all blocks do the same for all streams: `lanes` threads share a stream, of
 * which it is number `me`. Threads with r >= R have nothing to do. */
struct seat {
    int r, me, lanes;
};

static __device__ inline struct seat seat_of(int R)
{
    int halvings = R == 1 ? 0 : R == 2 ? 1 : R <= 4 ? 2 : 3, lanes = THREADS >> halvings;
    int thread = thread_index();
    struct seat n = {thread / 32 >> (WARP_BITS - halvings), thread & (lanes - 1), lanes};
    return n;
}

enum product_kind { IN, OUT, HEAD, PRODUCT_KINDS };

/* A block's rows n0 .. n0+rows of a matrix, cut into tiles: groups of TILE_ROWS rows, `steps` along the columns. Tile i goes
 * to warp i mod WARPS, whose next one is hop_groups and hop_steps further. */
struct share {
    int n0, rows, groups, steps, hop_groups, hop_steps, row_bytes;
    int slots; /* warps that have a tile of one group */
    int slot;  /* floats of a warp's partial sums */
    int part;  /* floats of a group's */
    int pass;  /* groups whose partial sums fit in PART_BYTES */
};

/* --------------------------------------------------------------------------------------------------- shared memory */

/* What does not change during a kernel, and small things that do. Behind it lie the layers. */
struct few_shared {
    struct share share[PRODUCT_KINDS];
    short2 begin[PRODUCT_KINDS][WARPS]; /* the group and step of a warp's first tile */
    struct team team[MOST_STREAMS];
    int row[MOST_STREAMS], token[MOST_STREAMS];
    float factor[MOST_STREAMS]; /* 1 / rms of the gated rows */
    float2 red[WARPS];          /* a warp's sums of squares */
};

static __device__ inline const struct decode_layer *layers_of(const struct few_shared *s)
{
    return (const struct decode_layer *)(s + 1);
}

/* The mixer's shared memory, in floats, for blocks of up to `units` units: silu(z) and x of each channel, what the warps
 * summed up, and small things. */
struct mixer_layout {
    int z, x, part, pitch, weights, delta, fade, now, query, total;
};

static inline struct mixer_layout mixer_layout_of(int units, int S)
{
    struct mixer_layout m;
    m.pitch = units * UNIT;
    m.z = 0;
    m.x = m.z + m.pitch;
    m.part = m.x + m.pitch;
    m.weights = m.part + WARPS * m.pitch;
    m.delta = m.weights + WARPS * UNITS * ROWS;
    m.fade = m.delta + units;
    m.now = m.fade + units;
    m.query = (m.now + 1 + 3) / 4 * 4;
    m.total = m.query + 2 * S;
    return m;
}

/* Where things lie behind the weights' rings, in bytes. Rows of the products' inputs start 64 bytes apart modulo 128, so
 * that the tensor cores' operands come from different banks. While a token is drawn, nothing from `input` on is in use. */
struct few_layout {
    int fixed, input, residual, part, mixer, sampler, logits, total; /* logits: 0 when there is no room */
    struct mixer_layout mix;
};

static __host__ __device__ inline int input_stride(int K, int size)
{
    return K * size | 64;
}

/* Where word i of a row of the products' input lies: the tensor cores want the middle two of every four bf16 pairs changed
 * (decode_few_product.cuh). */
static __device__ inline int input_word(int i, bf16)
{
    return (i & ~3) | (i & 1) << 1 | (i >> 1 & 1);
}

static __device__ inline int input_word(int i, float)
{
    return i;
}

/* Σ of `count` values `pitch` floats apart in shared memory, loaded 8 at a time. */
static __device__ inline float sum_apart(const float *from, int pitch, int count)
{
    enum { WIDE = 8 };
    float sum = 0;
#pragma unroll 1
    for (; count > 0; count -= WIDE, from += WIDE * pitch) {
        float v[WIDE];
#pragma unroll
        for (int i = 0; i < WIDE; i++) v[i] = i < count ? from[i * pitch] : 0.0f;
        sum += ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
    }
    return sum;
}

/* ------------------------------------------------------------------------------------------------------- the kernel */

struct few_job {
    struct decode_view a;
    struct few_memory m;
    struct few_layout at;
    int from, to;
    unsigned long long *meter; /* (blocks, METER_KINDS) cycles, or NULL */
};

/* What this block mixes: units unit .. unit+units of `stream`, as number `place` of its team. */
struct part_of_mixer {
    int stream, unit, units, place, blocks, groups;
};

static __device__ inline struct part_of_mixer part_of_mixer_of(const struct decode_view &a)
{
    struct part_of_mixer p;
    int all = a.E / UNIT;
    p.stream = (int)blockIdx.x * a.R / (int)gridDim.x;
    struct team team = team_of(a.E, a.R, gridDim.x, p.stream);
    p.place = (int)blockIdx.x - team.first;
    p.blocks = team.blocks;
    p.groups = team.groups;
    p.unit = p.place < team.blocks ? all * p.place / team.blocks : 0;
    p.units = p.place < team.blocks ? all * (p.place + 1) / team.blocks - p.unit : 0;
    return p;
}

#endif
