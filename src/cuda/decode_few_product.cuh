/*
 * The persistent kernel's products of few rows with the weights, which are read once a token: what counts is that memory
 * never idles. Each warp reads its part of the weights through a ring of its own in shared memory, in the order in which it
 * will use them, and that order does not stop where blocks wait for each other: the rings fill with the weights of what comes
 * next.
 *
 * A ring's stage is a tile of TILE_ROWS rows by 256 bytes. bf16 tiles go to the tensor cores, with the streams as the 16 rows
 * of m16n8k16 (8 in use) and the tile's rows as its 8 columns; float32 tiles to plain multiply-adds.
 */
#ifndef AIM_CUDA_DECODE_FEW_PRODUCT_CUH
#define AIM_CUDA_DECODE_FEW_PRODUCT_CUH

#include "cuda/decode_few.cuh"

enum {
    TILE_ROWS = 8,
    TILE_UNITS = 16, /* of 16 bytes, in a row of a tile */
    TILE_BYTES = TILE_ROWS * TILE_UNITS * 16
};

/* -------------------------------------------------------------------------------------------------------- shares */

static __device__ inline struct share share_of(int N, int row_bytes, int R)
{
    struct share s;
    s.n0 = (int)((int64_t)N * blockIdx.x / gridDim.x);
    s.rows = (int)((int64_t)N * (blockIdx.x + 1) / gridDim.x) - s.n0;
    s.groups = (s.rows + TILE_ROWS - 1) / TILE_ROWS;
    s.steps = (row_bytes + TILE_UNITS * 16 - 1) / (TILE_UNITS * 16);
    s.hop_groups = WARPS / s.steps;
    s.hop_steps = WARPS % s.steps;
    s.row_bytes = row_bytes;
    s.slots = min(s.steps, (int)WARPS);
    s.slot = R * TILE_ROWS;
    s.part = (s.slots * R | 1) * TILE_ROWS; /* odd: groups lie in different banks */
    s.pass = PART_BYTES / 4 / s.part;
    return s;
}

static __device__ inline void shares_start(const struct decode_view &a, int size, struct few_shared *s)
{
    const int N[PRODUCT_KINDS] = {a.W, a.d, a.V}, K[PRODUCT_KINDS] = {a.d, a.E, a.d};
    if (threadIdx.x < WARPS)
#pragma unroll
        for (int kind = 0; kind < PRODUCT_KINDS; kind++) {
            struct share p = share_of(N[kind], K[kind] * size, a.R);
            s->begin[kind][threadIdx.x] = make_short2((short)((int)threadIdx.x / p.steps), (short)((int)threadIdx.x % p.steps));
            if (threadIdx.x == 0) s->share[kind] = p;
        }
}

/* The products of a token in their order: 2l is in_proj of layer l, 2l+1 its out_proj, 2·layers the head. */
static __device__ inline enum product_kind kind_of(int product, int layers)
{
    return product == 2 * layers ? HEAD : product % 2 ? OUT : IN;
}

/* A warp's tile of a product. */
struct walk {
    int group, step;
};

static __device__ inline void walk_on(struct walk *w, const struct share &p)
{
    w->group += p.hop_groups;
    w->step += p.hop_steps;
    if (w->step < p.steps) return;
    w->step -= p.steps;
    w->group++;
}

/* --------------------------------------------------------------------------------------------------------- the rings */

/* A warp's ring. The next tile to read is `at` of product `product` of the token that is `tokens` before the last. */
struct ring {
    unsigned stages;  /* address in shared memory */
    int used, filled; /* the stages that are used next, and filled next */
    int tokens, product;
    struct walk at;
    enum product_kind kind;
    const char *base; /* of the share's first row */
    unsigned long long policy;
};

static __device__ inline void ring_enter(const struct decode_view &a, const struct few_shared *s, struct ring *g)
{
    const struct decode_layer *layer = layers_of(s) + g->product / 2;
    g->kind = kind_of(g->product, a.layers);
    const void *matrix = g->kind == HEAD ? a.words : g->kind == OUT ? layer->out_proj : layer->in_proj;
    const struct share &p = s->share[g->kind];
    short2 begin = s->begin[g->kind][thread_index() / 32];
    g->base = (const char *)matrix + (int64_t)p.n0 * p.row_bytes;
    g->at.group = begin.x;
    g->at.step = begin.y;
}

/* Starts reading one tile. A ring always has as many groups of copies on their way as it has stages that are not free: past
 * the end they are empty. */
template <int DEPTH>
static __device__ inline void ring_read(const struct decode_view &a, const struct few_shared *s, struct ring *g)
{
    while (g->tokens > 0 && g->at.group >= s->share[g->kind].groups) {
        if (++g->product > 2 * a.layers) {
            g->product = 0;
            g->tokens--;
        }
        ring_enter(a, s, g);
    }
    if (g->tokens > 0) {
        const struct share p = s->share[g->kind];
        int lane = thread_index() % 32, unit = lane % TILE_UNITS, column = (g->at.step * TILE_UNITS + unit) * 16;
        int row = lane / TILE_UNITS, from_row = g->at.group * TILE_ROWS + row;
        /* Odd rows swap the halves of 128 bytes: the tensor cores' operands then come from different banks. Rows are taken
         * two at a time, so that a lane's are all odd or all even. */
        unsigned to = g->stages + g->filled * TILE_BYTES + (row * TILE_UNITS + (unit ^ (row & 1) << 2)) * 16;
        const char *from = g->base + (int64_t)from_row * p.row_bytes + column;
        enum { AT_ONCE = 32 / TILE_UNITS };
#pragma unroll
        for (int i = 0; i < TILE_ROWS; i += AT_ONCE) {
            bool there = from_row + i < p.rows && column < p.row_bytes;
            weights_copy(to + i * TILE_UNITS * 16, there ? from : g->base, there, g->policy);
            from += AT_ONCE * p.row_bytes;
        }
        walk_on(&g->at, p);
    }
    weights_commit();
    g->filled = g->filled + 1 == DEPTH ? 0 : g->filled + 1;
}

template <int DEPTH>
static __device__ inline void ring_start(const struct decode_view &a, const struct few_shared *s, struct ring *g,
                                         const char *shared, int tokens)
{
    g->stages = shared_address(shared + threadIdx.x / 32 * DEPTH * TILE_BYTES);
    g->used = g->filled = 0;
    g->tokens = tokens;
    g->product = 0;
    g->policy = policy_of_weights();
    ring_enter(a, s, g);
    for (int i = 0; i < DEPTH; i++) ring_read<DEPTH>(a, s, g);
}

/* ------------------------------------------------------------------------------------------------------------ tiles */

/*
 * Sums of a warp over the tiles of one group: one value for each pair of a stream and a row of the tile.
 * `add` takes the tile at shared address `tile` that starts at column `k`; input (R, stride bytes) of X. `put` writes the
 * sums as (R, TILE_ROWS).
 */
template <typename X> struct tile_sums;

/*
 * Lane (g, q) = (lane / 4, lane mod 4) holds 8 consecutive columns of row g of the tile, and of stream g: the tensor cores'
 * inner index is a permutation of the columns, the same one for both operands, so that operands are read 16 bytes at a time.
 * The input lies so (input_word) that its 16 bytes are an operand as they come: rows 0 to 7 are the streams with the first and
 * third of every four pairs of columns, rows 8 to 15 with the others. Of a product with the weights of one kind of columns,
 * half the rows count.
 */
template <> struct tile_sums<bf16> {
    float c[4][4]; /* chains, because a product waits for the one before: even ones for the rows 0 to 7 */

    __device__ inline void clear()
    {
#pragma unroll
        for (int i = 0; i < 16; i++) c[i / 4][i % 4] = 0;
    }

    __device__ inline void add(unsigned tile, unsigned input, int stride, int R, int k, int K)
    {
        enum { STEPS = TILE_UNITS / 4 };
        int lane = thread_index() % 32, g = lane / 4, q = lane % 4;
        unsigned w_at = tile + g * TILE_UNITS * 16, x_at = input + min(g, R - 1) * stride + (k + 8 * q) * 2;
        uint4 w[STEPS], x[STEPS];
#pragma unroll
        for (int j = 0; j < STEPS; j++) {
            w[j] = shared_load(w_at + (((4 * j + q) ^ (g & 1) << 2)) * 16);
            x[j] = shared_load(x_at + (k + 32 * j < K ? 64 * j : 0)); /* past the end any will do: the weights are zero */
        }
#pragma unroll
        for (int j = 0; j < STEPS; j++) {
            multiply_full(c[j % 2 * 2], x[j].x, x[j].y, x[j].z, x[j].w, w[j].x, w[j].y);
            multiply_full(c[j % 2 * 2 + 1], x[j].x, x[j].y, x[j].z, x[j].w, w[j].z, w[j].w);
        }
    }

    __device__ inline void put(float *part, int R)
    {
        int lane = thread_index() % 32, g = lane / 4, q = lane % 4;
        float2 sum = make_float2(c[0][0] + c[2][0] + (c[1][2] + c[3][2]), c[0][1] + c[2][1] + (c[1][3] + c[3][3]));
        if (g < R) *(float2 *)(part + g * TILE_ROWS + 2 * q) = sum;
    }
};

/* Lane (g, q) holds 4 columns of row g at a time. */
template <> struct tile_sums<float> {
    float c[MOST_STREAMS];

    __device__ inline void clear()
    {
#pragma unroll
        for (int r = 0; r < MOST_STREAMS; r++) c[r] = 0;
    }

    __device__ inline void add(unsigned tile, unsigned input, int stride, int R, int k, int K)
    {
        int lane = thread_index() % 32, g = lane / 4, q = lane % 4;
#pragma unroll
        for (int j = 0; j < TILE_UNITS / 4; j++) {
            if (k + 16 * j >= K) break;
            uint4 w = shared_load(tile + (g * TILE_UNITS + ((4 * j + q) ^ (g & 1) << 2)) * 16);
#pragma unroll
            for (int r = 0; r < MOST_STREAMS; r++) {
                if (r >= R) break;
                uint4 x = shared_load(input + r * stride + (k + 16 * j + 4 * q) * 4);
                c[r] += __uint_as_float(w.x) * __uint_as_float(x.x) + __uint_as_float(w.y) * __uint_as_float(x.y) +
                        __uint_as_float(w.z) * __uint_as_float(x.z) + __uint_as_float(w.w) * __uint_as_float(x.w);
            }
        }
    }

    __device__ inline void put(float *part, int R)
    {
        int lane = thread_index() % 32, g = lane / 4, q = lane % 4;
#pragma unroll
        for (int r = 0; r < MOST_STREAMS; r++) {
            if (r >= R) break;
            float sum = c[r] + __shfl_xor_sync(~0u, c[r], 1);
            sum += __shfl_xor_sync(~0u, sum, 2);
            if (q == 0) part[r * TILE_ROWS + g] = sum;
        }
    }
};

/* ---------------------------------------------------------------------------------------------------------- products */

/* Partial sums of a pass: (groups, slots, R, TILE_ROWS), with a gap behind each group. */
struct part_sums {
    const float *part;
    int slots, slot, group; /* how many slots; floats of a slot, of a group */

    /* Σ for stream r and row `row` of the pass. */
    __device__ inline float of(int r, int row) const
    {
        const float *from = part + row / TILE_ROWS * group + r * TILE_ROWS + row % TILE_ROWS;
        return sum_apart(from, slot, slots);
    }
};

/*
 * This block's rows of a product, with the tiles as they come out of the rings, in passes of as many groups as fit in `part`:
 * finish(first, rows, sums) does what there is to do with the sums of rows first .. first+rows of the share. The input must
 * be there, for all threads. Stages are filled again only after `finish`, off the way of what others wait for, unless too many
 * would be free. Ends without a barrier: `part` and the input are free after the next one.
 */
template <typename X, int DEPTH, typename Finish>
static __device__ inline void product(const struct decode_view &a, const struct few_shared *s, struct ring *g,
                                      enum product_kind kind, unsigned input, int stride, float *part, Finish finish)
{
    enum { HELD = DEPTH > 2 ? 2 : 1 }; /* stages that may stay free for a while */
    const struct share p = s->share[kind];
    int warp = thread_index() / 32, R = a.R, free = 0, K = p.row_bytes / (int)sizeof(X);
    short2 begin = s->begin[kind][warp];
    struct walk at = {begin.x, begin.y};
    struct part_sums from = {part, p.slots, p.slot, p.part};
    for (int first = 0; first < p.groups; first += p.pass) {
        int last = min(first + p.pass, p.groups);
        if (first > 0) __syncthreads(); /* part is free */
        while (at.group < last) {
            float *to = part + (at.group - first) * p.part + (at.step & (WARPS - 1)) * p.slot;
            int group = at.group;
            struct tile_sums<X> sums;
            sums.clear();
            do {
                if (free == HELD) {
                    ring_read<DEPTH>(a, s, g);
                    free--;
                }
                if (free == 0)
                    weights_wait<DEPTH - 1>();
                else
                    weights_wait<DEPTH - 2>(); /* HELD <= 2, so one is free */
                __syncwarp();                  /* every lane's copies have arrived */
                sums.add(g->stages + g->used * TILE_BYTES, input, stride, R, at.step * (TILE_UNITS * 16 / (int)sizeof(X)), K);
                __syncwarp(); /* every lane has read the stage */
                g->used = g->used + 1 == DEPTH ? 0 : g->used + 1;
                free++;
                walk_on(&at, p);
            } while (at.group == group);
            sums.put(to, R);
        }
        __syncthreads();
        finish(first * TILE_ROWS, min(last * TILE_ROWS, p.rows) - first * TILE_ROWS, from);
    }
    for (; free > 0; free--) ring_read<DEPTH>(a, s, g);
}

/* Calls put(r, row, sum) for every stream and row of a pass, a thread each: warp r and warp MOST_STREAMS + r take stream r. */
template <typename Put> static __device__ inline void each_sum(int R, int rows, const struct part_sums &sums, Put put)
{
    int thread = thread_index(), warp = thread / 32, lane = thread % 32, r = warp % MOST_STREAMS;
    if (r < R)
        for (int row = lane + warp / MOST_STREAMS * 32; row < rows; row += WARPS / MOST_STREAMS * 32)
            put(r, row, sums.of(r, row));
}

#endif
