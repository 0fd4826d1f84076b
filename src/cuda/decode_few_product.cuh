/*
 * The persistent kernel's products of few rows with the weights, which are read once a token: what counts is that memory
 * never idles, and that few instructions lie between the input and the sums. Each warp reads its part of the weights through a
 * ring of its own in shared memory, in the order in which it will use them, and that order does not stop where blocks wait
 * for each other: the rings fill with the weights of what comes next.
 *
 * The weights lie in memory as the tensor cores' operands (decode_few_tables.cuh): 16 bytes a lane are a tile of 4 rows by 64
 * columns. The 16 rows of m16n8k16 are those 4 with each quarter of the columns, its 8 columns the quarters of two streams, so
 * that of the 16 x 8 results those count where both are of one quarter.
 */
#ifndef AIM_CUDA_DECODE_FEW_PRODUCT_CUH
#define AIM_CUDA_DECODE_FEW_PRODUCT_CUH

#include "cuda/decode_few.cuh"

static __device__ inline void shares_start(const struct few_job &job, int pairs, struct few_shared *s)
{
    struct cuts cuts = cuts_of(job.a, pairs);
    int warp = threadIdx.x;
    if (warp >= WARPS) return;
#pragma unroll
    for (int kind = 0; kind < PRODUCT_KINDS; kind++) {
        struct share p = {cuts.of[kind], 0, 0};
        p.first = (int)((int64_t)p.cut.quads * blockIdx.x / gridDim.x);
        p.quads = (int)((int64_t)p.cut.quads * (blockIdx.x + 1) / gridDim.x) - p.first;
        int k_group = warp & (p.cut.k_groups - 1), q_group = warp / p.cut.k_groups, row = p.cut.k_groups * p.cut.tiles;
        struct reading r = {(p.quads - q_group + p.cut.q_groups - 1) / p.cut.q_groups, p.cut.q_groups * row * TILE_BYTES, 0};
        r.from = ((int64_t)(p.first + q_group) * row + k_group * p.cut.tiles) * TILE_BYTES + (kind == OUT ? job.m.in_bytes : 0);
        s->reading[kind][warp] = r;
        if (warp == 0) s->share[kind] = p;
    }
}

/* --------------------------------------------------------------------------------------------------------- the rings */

/* A warp's ring. A stage holds its tiles of a quad; the quads to read next are `left` ones of product `product` of the token
 * that is `tokens` before the last. */
struct ring {
    unsigned begin, barriers; /* shared addresses: of the first stage, and of its barrier */
    int stage, depth;         /* bytes of a stage, how many */
    int used, filled;         /* stages that are used next, and filled next */
    unsigned parity;          /* of the phase that fills the stages from `used` on */
    int tokens, product, left, bytes;
    const char *from;
    int hop; /* bytes from a quad to the warp's next one */
    unsigned long long policy;
};

#if __CUDA_ARCH__ >= 900

static __device__ inline void stage_start(const struct ring *g)
{
    for (int i = 0; i < g->depth && thread_index() % 32 == 0; i++) bulk_barrier_start(g->barriers + 8 * i);
    __syncwarp();
}

static __device__ inline void stage_read(const struct ring *g)
{
    __syncwarp(); /* every lane has read what was there */
    if (thread_index() % 32 == 0)
        bulk_copy(g->begin + g->filled * g->stage, g->from, g->bytes, g->barriers + 8 * g->filled, g->policy);
}

static __device__ inline void stage_skip(void)
{
}

static __device__ inline void stage_wait(const struct ring *g)
{
    bulk_wait(g->barriers + 8 * g->used, g->parity);
}

#else /* a lane copies what it will read itself; every stage is a group of copies, also past the end */

static __device__ inline void stage_start(const struct ring *)
{
}

static __device__ inline void stage_skip(void)
{
    copies_commit();
}

static __device__ inline void stage_read(const struct ring *g)
{
    for (int i = thread_index() % 32 * 16; i < g->bytes; i += TILE_BYTES)
        copy_weights(g->begin + g->filled * g->stage + i, g->from + i, g->policy);
    copies_commit();
}

/* Groups of copies end in their order; those of other things only make the wait longer. */
static __device__ inline void stage_wait(const struct ring *g)
{
    if (g->depth > 4)
        copies_wait<4>();
    else if (g->depth > 2)
        copies_wait<2>();
    else
        copies_wait<0>();
}

#endif

/* The products of a token in their order: 2l is in_proj of layer l, 2l+1 its out_proj, 2·layers the head. */
static __device__ inline void ring_enter(const struct few_job &job, const struct few_shared *s, struct ring *g)
{
    int l = g->product / 2;
    enum product_kind kind = l == job.a.layers ? HEAD : g->product % 2 ? OUT : IN;
    const struct reading r = s->reading[kind][thread_index() / 32];
    g->left = r.quads;
    g->hop = r.hop;
    g->bytes = s->share[kind].cut.tiles * TILE_BYTES;
    g->from = job.m.weights + l * job.m.layer_bytes + r.from;
}

/* Starts reading a quad into a free stage, if there is one left. */
static __device__ inline void ring_read(const struct few_job &job, const struct few_shared *s, struct ring *g)
{
    while (g->tokens > 0 && g->left <= 0) {
        if (++g->product > 2 * job.a.layers) {
            g->product = 0;
            g->tokens--;
        }
        ring_enter(job, s, g);
    }
    if (g->tokens == 0) {
        stage_skip();
        return;
    }
    stage_read(g);
    g->from += g->hop;
    g->left--;
    g->filled = g->filled + 1 == g->depth ? 0 : g->filled + 1;
}

/* The next stage is the one to use. */
static __device__ inline void ring_use(struct ring *g)
{
    if (++g->used < g->depth) return;
    g->used = 0;
    g->parity ^= 1;
}

static __device__ inline void ring_start(const struct few_job &job, const struct few_shared *s, struct ring *g,
                                         const char *shared)
{
    int warp = thread_index() / 32;
    g->stage = job.at.stage;
    g->depth = job.at.depth;
    g->begin = shared_address(shared) + warp * g->depth * g->stage;
    g->barriers = shared_address(shared + job.at.barriers) + warp * g->depth * 8;
    g->used = g->filled = 0;
    g->parity = 0;
    g->tokens = job.to - job.from;
    g->product = 0;
    g->policy = policy_of_weights();
    stage_start(g);
    ring_enter(job, s, g);
#pragma unroll 1
    for (int i = 0; i < g->depth; i++) ring_read(job, s, g);
}

/* ---------------------------------------------------------------------------------------------------------- products */

/*
 * Lane (g, q) = (lane / 4, lane mod 4) holds of a tile rows g and g+8 of the tensor cores' operand: row g mod 4 with quarters
 * g/4 and 2 + g/4 of the columns, and of the inputs quarter g/2 of stream g mod 2; of a quarter's columns 4q .. 4q+3.
 */
template <int PAIRS> struct inputs {
    uint2 x[PAIRS][MOST_TILES];

    /* From column `column` on; input (2 PAIRS, stride bytes) of bf16. */
    __device__ inline void load(unsigned input, int stride, int column, int tiles)
    {
        int lane = thread_index() % 32, g = lane / 4, q = lane % 4;
        input += g % 2 * stride + (column + g / 2 * (TILE / 4) + 4 * q) * 2;
#pragma unroll
        for (int p = 0; p < PAIRS; p++)
#pragma unroll
            for (int i = 0; i < MOST_TILES; i++)
                x[p][i] = i < tiles ? shared_load2(input + 2 * p * stride + i * TILE * 2) : make_uint2(0, 0);
    }
};

/* Partial sums of a pass: (quads, PAIRS, slots, QUAD) pairs of streams; a slot is a warp's part of the columns, and a quarter. */
template <int PAIRS>
static __device__ inline void put_sums(const float (&c)[PAIRS][4], float2 *part, int slots, int k_group)
{
    int lane = thread_index() % 32, g = lane / 4, q = lane % 4;
    if (g / 4 != q % 2) return;
#pragma unroll
    for (int p = 0; p < PAIRS; p++)
        part[(p * slots + 4 * k_group + q) * QUAD + g % 4] =
            q < 2 ? make_float2(c[p][0], c[p][1]) : make_float2(c[p][2], c[p][3]);
}

/* The sum for row lane mod 4 of a quad and stream lane / 4. */
template <int PAIRS> static __device__ inline float sum_of(const float2 *part, int slots)
{
    int lane = thread_index() % 32, row = lane % QUAD, first = lane / QUAD;
    enum { AT_ONCE = 32 / QUAD, MOST = 4 * WARPS / AT_ONCE };
    float sum = 0;
#pragma unroll
    for (int p = 0; p < PAIRS; p++) {
        float2 v[MOST], all = make_float2(0, 0);
#pragma unroll
        for (int i = 0; i < MOST; i++) {
            int slot = first + i * AT_ONCE;
            v[i] = slot < slots ? part[(p * slots + slot) * QUAD + row] : make_float2(0, 0);
        }
#pragma unroll
        for (int i = 0; i < MOST; i++) all = make_float2(all.x + v[i].x, all.y + v[i].y);
#pragma unroll
        for (int o = QUAD; o < 32; o *= 2)
            all = make_float2(all.x + __shfl_xor_sync(~0u, all.x, o), all.y + __shfl_xor_sync(~0u, all.y, o));
        if (first / 2 == p) sum = first % 2 ? all.y : all.x;
    }
    return sum;
}

/*
 * This block's rows of a product, in passes of as many quads as fit in `part`. A warp does what there is to do with the sums
 * of a quad:
 *
 *     prepare(quad)        before the product, for what finish wants from device memory
 *     finish(quad, sum)    for row lane mod 4 of the quad and stream lane / 4; quads count from the block's first
 *
 * The input must be there, for all threads. Ends without a barrier: `part` and the input are free after the next one.
 */
template <int PAIRS, typename Prepare, typename Finish>
static __device__ inline void product(const struct few_job &job, const struct few_shared *s, struct ring *g,
                                      const struct share &share, unsigned input, float2 *part, Prepare prepare, Finish finish)
{
    const struct share p = share;
    int warp = thread_index() / 32, k_group = warp & (p.cut.k_groups - 1), slots = 4 * p.cut.k_groups;
    int quad = warp / p.cut.k_groups;
    struct inputs<PAIRS> in;
    if (warp < p.quads) prepare(warp);
    in.load(input, input_stride(p.cut), k_group * p.cut.tiles * TILE, p.cut.tiles);
#pragma unroll 1
    for (int first = 0; first < p.quads; first += p.cut.pass) {
        int last = min(first + p.cut.pass, p.quads);
        if (first > 0) __syncthreads(); /* part is free */
#pragma unroll 1
        for (; quad < last; quad += p.cut.q_groups) {
            float c[PAIRS][4] = {};
            uint4 w[MOST_TILES];
            unsigned from = g->begin + g->used * g->stage + thread_index() % 32 * 16;
            stage_wait(g);
#pragma unroll
            for (int i = 0; i < MOST_TILES; i++)
                if (i < p.cut.tiles) w[i] = shared_load(from + i * TILE_BYTES);
#pragma unroll
            for (int i = 0; i < MOST_TILES; i++)
                if (i < p.cut.tiles)
#pragma unroll
                    for (int j = 0; j < PAIRS; j++)
                        multiply_full(c[j], w[i].x, w[i].y, w[i].z, w[i].w, in.x[j][i].x, in.x[j][i].y);
            ring_use(g);
            ring_read(job, s, g);
            put_sums<PAIRS>(c, part + (quad - first) * PAIRS * slots * QUAD, slots, k_group);
        }
        __syncthreads();
#pragma unroll 1
        for (int at = first + warp; at < last; at += WARPS) {
            if (at != warp) prepare(at);
            finish(at, sum_of<PAIRS>(part + (at - first) * PAIRS * slots * QUAD, slots));
        }
    }
}

#endif
