/*
 * The persistent kernel's memory (decode_persistent.cu): what the blocks share in device memory, what each has in its shared
 * memory, and who owns what.
 *
 * Every block owns a share of the rows of every matrix, in quads of 4 rows. A stream's blocks, its team, share the channels of
 * its mixer in units of 8, and each keeps the history of its own.
 */
#ifndef AIM_CUDA_DECODE_FEW_CUH
#define AIM_CUDA_DECODE_FEW_CUH

#include "cuda/decode.cuh"
#include "cuda/exchange.cuh"
#include "cuda/mma.cuh"

enum {
    WARPS = 16, /* that compute; of four more, two load */
    THREADS = 32 * WARPS,
    ALL_THREADS = THREADS + 128,
    REGISTERS = 112, /* of a thread that computes; loaders give theirs away */
    LOADERS_REGISTERS = 24,
    MOST_STREAMS = 8,
    QUAD = 4,  /* rows of a matrix */
    TILE = 64, /* columns of a matrix */
    TILE_BYTES = QUAD * TILE * 2,
    MOST_TILES = 4,    /* of a quad, that one warp takes; the least is one fewer */
    PART_BYTES = 6144, /* partial sums of the products, times the tiles of a quad that a warp takes */
    STATE = 128,       /* S, as in all published models */
    UNIT = 8,          /* channels: 8 columns of the tensor cores */
    UNITS = 8,         /* that a warp takes at once */
    ROWS = 16,         /* tokens of the history that a warp takes at once: 16 rows of the tensor cores */
    PACKED = 6,        /* values of v in a packet */
    GROUP = 24,        /* channels whose v one warp sends: whole packets */
};

/* ------------------------------------------------------------------------------------------------------ who owns what */

/* The blocks first .. first+blocks of a stream that mix `units` units each, the last one maybe fewer, and send them in
 * `packets` packets: packet i is of block i · inverse / 2^16. */
struct team {
    int first, blocks, units, packets, inverse;
};

static __host__ __device__ inline struct team team_of(int E, int R, int grid, int r)
{
    struct team t;
    int all = E / UNIT;
    t.first = (r * grid + R - 1) / R;
    int most = ((r + 1) * grid + R - 1) / R - t.first;
    t.units = (all + most - 1) / most;
    t.blocks = (all + t.units - 1) / t.units;
    t.packets = (t.units * UNIT + PACKED - 1) / PACKED;
    t.inverse = 65536 / t.packets + 1; /* exact while packets of a stream times those of a block are fewer than 2^16 */
    return t;
}

/* What this block mixes: units unit .. unit+units of `stream`, as number `place` of its team. */
struct part_of_mixer {
    int stream, unit, units, place, blocks, packets;
};

static __device__ inline struct part_of_mixer part_of_mixer_of(const struct decode_view &a)
{
    struct part_of_mixer p;
    p.stream = (int)blockIdx.x * a.R / (int)gridDim.x;
    struct team team = team_of(a.E, a.R, gridDim.x, p.stream);
    p.place = (int)blockIdx.x - team.first;
    p.blocks = team.blocks;
    p.packets = team.packets;
    p.unit = p.place * team.units;
    p.units = max(0, min(team.units, a.E / UNIT - p.unit));
    return p;
}

/*
 * The scores C·B of a token stand in the way of everybody. Of up to two streams, the first blocks of each team, which work them
 * out (decode_few_mix.cuh), therefore have no other rows of in_proj than those of B and C: scores are there before the other
 * blocks are done with theirs.
 */
enum { SCORING = 16, SCORED_QUADS = 2 * STATE / QUAD, SCORED_STREAMS = 2 };

static __host__ __device__ inline int scoring_blocks(int R, int grid)
{
    return R <= SCORED_STREAMS && grid >= 4 * SCORING * R ? SCORING * R : 0;
}

/* The rows of in_proj in the order in which blocks share them: those of B and C first. Quad i starts at this row. */
static __host__ __device__ inline int in_proj_row(int E, int i)
{
    return i < SCORED_QUADS ? 2 * E + i * QUAD : i < SCORED_QUADS + 2 * E / QUAD ? (i - SCORED_QUADS) * QUAD : i * QUAD;
}

enum product_kind { IN, OUT, HEAD, PRODUCT_KINDS };

/*
 * How blocks and warps share a matrix (N,K). A block has about as many quads as any other; 2^k_bits warps share the columns of
 * one, `tiles` tiles for each, so that all warps together take a turn of WARPS / 2^k_bits quads.
 */
struct cut {
    int quads; /* of the matrix */
    int k_bits;
    int pass; /* quads of a block whose partial sums fit in the space for them: whole turns */
};

struct cuts {
    int tiles; /* 0: rows are too long */
    struct cut of[PRODUCT_KINDS];
};

/* log₂ of the warps that share a row, the fewest. */
static __host__ __device__ inline int k_bits_of(int K, int tiles)
{
    int bits = 0;
    while ((tiles * TILE << bits) < K) bits++;
    return bits;
}

static __host__ __device__ inline struct cut cut_of(int N, int K, int tiles, int pairs)
{
    struct cut c = {(N + QUAD - 1) / QUAD, k_bits_of(K, tiles), 0};
    int turn = WARPS >> c.k_bits, most = PART_BYTES * tiles / ((pairs * QUAD * QUAD * (int)sizeof(float2)) << c.k_bits);
    c.pass = turn > 0 ? most / turn * turn : 0;
    return c;
}

/* With as little added to the rows as possible; `pairs` of streams. */
static __host__ __device__ inline struct cuts cuts_of(const struct decode_view &a, int pairs)
{
    struct cuts c = {MOST_TILES, {}};
    int least = MOST_TILES - 1, fewer = (least << k_bits_of(a.d, least)) + (least << k_bits_of(a.E, least));
    if (fewer < (MOST_TILES << k_bits_of(a.d, MOST_TILES)) + (MOST_TILES << k_bits_of(a.E, MOST_TILES))) c.tiles = least;
    const int N[PRODUCT_KINDS] = {a.W, a.d, a.V}, K[PRODUCT_KINDS] = {a.d, a.E, a.d};
    for (int kind = 0; kind < PRODUCT_KINDS; kind++) c.of[kind] = cut_of(N[kind], K[kind], c.tiles, pairs);
    for (int kind = 0; kind < PRODUCT_KINDS; kind++)
        if (c.of[kind].pass == 0) c.tiles = 0;
    return c;
}

/* Bytes of a quad. */
static __host__ __device__ inline int quad_bytes(const struct cuts &c, int kind)
{
    return c.tiles * TILE_BYTES << c.of[kind].k_bits;
}

static __host__ __device__ inline int64_t packed_bytes(const struct cuts &c, int kind)
{
    return (int64_t)c.of[kind].quads * quad_bytes(c, kind);
}

/* Pairs of streams that the kernels are made for: 1, 2 or 4. */
static __host__ __device__ inline int pairs_of(int R)
{
    return R <= 2 ? 1 : R <= 4 ? 2 : 4;
}

/* ------------------------------------------------------------------------------------------------- device memory */

/* Words and packets are of step t·layers + l + 1 of what layer l computes; tokens of step t + 1. */
struct few_memory {
    unsigned *arrived; /* blocks that are done with a token's logits */
    word *token;       /* (pictures) */
    word *zxbcdt;      /* (R,W) */
    uint4 *v, *h;      /* packets: (R, v_pitch) of 6 bf16, those of a team's blocks in turn; (R, d/4) of 4 numbers of 24 bits */
    int v_pitch;
    char *weights;                 /* (layers, in_proj and out_proj), words: tiles (decode_few_tables.cuh) */
    float4 *norms;                 /* (layers+1, R, d/4, 2): gates of the layer before, factors of this one */
    float *shifted;                /* (layers,R,W), (R,V): the matrix times the norm's shift */
    word *scores;                  /* (R,T): C·B of the tokens so far */
    float *ring;                   /* (layers,R,RING,C): inputs of the convolution, token t in place t mod RING */
    bf16 *u, *b;                   /* (layers,R,E,T) in tiles (decode_few_mix.cuh), (layers,R,T,S) */
    float *decay;                  /* (layers,R,E/UNIT,T) in tiles: a_{s+1} ... a_t, once for each unit */
    int T;                         /* of the history: whole ROWS */
    int64_t in_bytes, layer_bytes; /* of packed weights */
    int64_t words, bytes;          /* that must start as zeros; altogether */
};

/* Lays it out from `memory` on, for R streams. */
static inline struct few_memory few_memory_of(const struct decode_view *a, int64_t R, char *memory)
{
    enum { ALIGN = 256 };
    struct few_memory m = {};
    struct cuts cuts = cuts_of(*a, pairs_of((int)R));
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
    m.v_pitch = a->E / PACKED + a->E / UNIT; /* each block rounds up */
    m.v = (uint4 *)take(R * m.v_pitch * (int64_t)sizeof(uint4));
    m.h = (uint4 *)take(R * a->d / QUAD * (int64_t)sizeof(uint4));
    m.scores = (word *)take(R * T * (int64_t)sizeof(word));
    m.words = used;
    m.in_bytes = packed_bytes(cuts, IN);
    m.layer_bytes = m.in_bytes + packed_bytes(cuts, OUT);
    m.weights = take(a->layers * m.layer_bytes + packed_bytes(cuts, HEAD));
    m.norms = (float4 *)take((a->layers + 1) * R * a->d / QUAD * 2 * (int64_t)sizeof(float4));
    m.shifted = (float *)take((layer_streams * a->W + R * a->V) * (int64_t)sizeof(float));
    m.ring = (float *)take(layer_streams * RING * a->C * (int64_t)sizeof(float));
    m.b = (bf16 *)take(layer_streams * T * a->S * (int64_t)sizeof(bf16));
    m.u = (bf16 *)take(layer_streams * a->E * T * (int64_t)sizeof(bf16));
    m.decay = (float *)take(layer_streams * (a->E / UNIT) * T * (int64_t)sizeof(float));
    m.bytes = used;
    return m;
}

/* --------------------------------------------------------------------------------------------------- shared memory */

/* A block's part of a matrix. */
struct share {
    int first, quads; /* its first quad, and how many */
    int k_bits, pass; /* of the cut */
};

/* What does not change during a kernel, and small things that do. Behind it lie the layers. */
struct few_shared {
    struct share share[PRODUCT_KINDS];
    float red[2][WARPS]; /* a warp's sums of squares: of the row, and of what the second norm of the head takes */
    struct team team[MOST_STREAMS];
    int row[MOST_STREAMS], token[MOST_STREAMS];
};

static __device__ inline const struct decode_layer *layers_of(const struct few_shared *s)
{
    return (const struct decode_layer *)(s + 1);
}

/* The mixer's shared memory, in floats, for blocks of up to `units` units: silu(z) and x of each channel, what the warps
 * summed up, and small things. */
struct mixer_layout {
    int z, x, part, pitch, delta, fade, now, query, total;
};

static inline struct mixer_layout mixer_layout_of(int units)
{
    struct mixer_layout m;
    m.pitch = units * UNIT;
    m.z = 0;
    m.x = m.z + m.pitch;
    m.part = m.x + m.pitch;
    m.delta = m.part + WARPS * m.pitch;
    m.fade = m.delta + units;
    m.now = m.fade + units;
    m.query = (m.now + 1 + 3) / 4 * 4;
    m.total = m.query + 3 * STATE / 2;
    return m;
}

/* A barrier of the threads that compute. */
static __device__ inline void block_sync(void)
{
    asm volatile("bar.sync 0, %0;" ::"n"((int)THREADS) : "memory");
}

/* Where things lie behind the weights' ring, in bytes. While a token is drawn, nothing from `input` on is in use. */
struct few_layout {
    int depth;                                                                           /* stages of the ring */
    int barriers, fixed, input, residual, part, mixer, u, decay, sampler, logits, total; /* logits: 0 when there is no room */
    struct mixer_layout mix;
};

/* Bytes from one row of a product's input to the next: 64 apart modulo 128, so that the tensor cores' operands come from
 * different banks. */
static __host__ __device__ inline int input_stride(int k_bits, int tiles)
{
    return tiles * TILE * 2 << k_bits | 64;
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

#endif
