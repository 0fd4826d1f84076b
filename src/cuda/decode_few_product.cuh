/*
 * The persistent kernel's products of few rows with the weights, which are read once a token: what counts is that memory
 * never idles, and that few instructions lie between the input and the sums. The loader reads a block's weights ahead through a
 * ring in shared memory, in the order in which they will be used, and that order does not stop where blocks wait for each
 * other: the ring fills with the weights of what comes next.
 *
 * The weights lie in memory as the tensor cores' operands (decode_few_tables.cuh): 16 bytes a lane are a tile of 4 rows by 64
 * columns. The 16 rows of m16n8k16 are those 4 with each quarter of the columns, its 8 columns the quarters of two streams, so
 * that of the 16 x 8 results those count where both are of one quarter.
 */
#ifndef AIM_CUDA_DECODE_FEW_PRODUCT_CUH
#define AIM_CUDA_DECODE_FEW_PRODUCT_CUH

#include "cuda/decode_few.cuh"

/* What block `rank` of `of` gets of quads `from` .. `to`. */
static __device__ inline struct share share_of(const struct cut &cut, int from, int to, int rank, int of)
{
    int first = from + (int)((int64_t)(to - from) * rank / of), end = from + (int)((int64_t)(to - from) * (rank + 1) / of);
    return {first, end - first, cut.k_bits, cut.pass};
}

static __device__ inline void shares_start(const struct few_job &job, const struct part_of_mixer &own, int pairs,
                                           struct few_shared *s)
{
    struct cuts cuts = cuts_of(job.a, pairs);
    int block = blockIdx.x, grid = gridDim.x, scoring = scoring_blocks(job.a.R, grid);
    if (threadIdx.x > 0) return;
#pragma unroll
    for (int kind = 0; kind < PRODUCT_KINDS; kind++)
        s->share[kind] = share_of(cuts.of[kind], 0, cuts.of[kind].quads, block, grid);
    const struct cut &in = cuts.of[IN];
    if (scoring == 0) return;
    if (own.place < SCORING)
        s->share[IN] = share_of(in, 0, SCORED_QUADS, own.stream * SCORING + own.place, scoring);
    else
        s->share[IN] = share_of(in, SCORED_QUADS, in.quads, block - (own.stream + 1) * SCORING, grid - scoring);
}

/* ---------------------------------------------------------------------------------------------------------- the ring */

/* A block's ring. A stage holds a turn: of each warp, its tiles of a quad. The stages' barriers are pairs: full, and free
 * again. */
struct ring {
    unsigned stages, barriers; /* shared addresses */
    int at;                    /* the stage that is used, or filled, next */
    unsigned parity;           /* of the phase in which that happens */
};

static __device__ inline struct ring ring_of(const struct few_job &job, const char *shared)
{
    return {shared_address(shared), shared_address(shared + job.at.barriers), 0, 0};
}

static __device__ inline void ring_next(const struct few_job &job, struct ring *g)
{
    if (++g->at < job.at.depth) return;
    g->at = 0;
    g->parity ^= 1;
}

/* By one thread of the block, before all others go on. */
static __device__ inline void ring_start(const struct few_job &job, const struct ring &g)
{
    for (int i = 0; i < job.at.depth; i++) {
        phase_start(g.barriers + 16 * i, 1);
        phase_start(g.barriers + 16 * i + 8, WARPS);
    }
}

/* The block's share of one product, from `from` on: turn after turn, as stages come free. */
template <int TILES>
static __device__ inline void load_share(const struct few_job &job, const struct share p, const char *from, struct ring *g,
                                         uint64_t policy)
{
    int quad = TILES * TILE_BYTES << p.k_bits;
    from += (int64_t)p.first * quad;
    for (int left = p.quads; left > 0; left -= WARPS >> p.k_bits, ring_next(job, g)) {
        int bytes = min(left, WARPS >> p.k_bits) * quad;
        unsigned barriers = g->barriers + 16 * g->at;
        phase_wait(barriers + 8, g->parity ^ 1);
        phase_expect(barriers, bytes);
        bulk_copy(g->stages + g->at * WARPS * TILES * TILE_BYTES, from, bytes, barriers, policy);
        from += bytes;
    }
}

/* By one thread: all weights of all tokens. */
template <int TILES>
static __device__ inline void load_weights(const struct few_job &job, const struct few_shared *s, struct ring g)
{
    uint64_t policy = policy_once();
    for (int t = job.from; t < job.to; t++) {
        const char *from = job.m.weights;
        for (int l = 0; l < job.a.layers; l++, from += job.m.layer_bytes) {
            load_share<TILES>(job, s->share[IN], from, &g, policy);
            load_share<TILES>(job, s->share[OUT], from + job.m.in_bytes, &g, policy);
        }
        load_share<TILES>(job, s->share[HEAD], from, &g, policy);
    }
}

/* ---------------------------------------------------------------------------------------------------------- products */

/* A lane's sums of squares, which the products' scales come from (decode_persistent.cu): of the row, and of what the second
 * norm of the head takes. */
struct squares {
    float row, second;
    bool both;
};

static __device__ inline void put_squares(struct few_shared *s, struct squares squares, int warp, int lane)
{
    float row = warp_sum(squares.row), second = squares.both ? warp_sum(squares.second) : 0;
    if (lane > 0) return;
    s->red[0][warp] = row;
    s->red[1][warp] = second;
}

/*
 * Partial sums of a pass: (quads, PAIRS, slots, QUAD) pairs of streams; a slot is a warp's part of the columns, and a quarter.
 * Of the results, lane (g, q) has rows g and g+8 and columns 2q, 2q+1: what counts are the two streams of quarter q where the
 * row is of that quarter, too.
 */
template <int PAIRS> static __device__ inline void put_sums(const float (&c)[PAIRS][4], float2 *part, int slots, int lane)
{
    int g = lane / 4, q = lane % 4;
    if (g / 4 != q % 2) return;
#pragma unroll
    for (int p = 0; p < PAIRS; p++)
        part[p * slots * QUAD] = q < 2 ? make_float2(c[p][0], c[p][1]) : make_float2(c[p][2], c[p][3]);
}

static __device__ inline float2 add2(float2 a, float2 b)
{
    return make_float2(a.x + b.x, a.y + b.y);
}

/* The sum for row lane mod 4 of a quad and stream lane / 4; slots is 4 to 64. */
template <int PAIRS> static __device__ inline float sum_of(const float2 *part, int slots, int lane)
{
    int first = lane / QUAD;
    enum { AT_ONCE = 32 };
    float sum = 0;
    part += lane;
#pragma unroll
    for (int p = 0; p < PAIRS; p++, part += slots * QUAD) {
        float2 all = first < slots ? part[0] : make_float2(0, 0);
        if (slots > 8) all = add2(all, part[AT_ONCE]);
        if (slots > 16) all = add2(all, add2(part[2 * AT_ONCE], part[3 * AT_ONCE]));
        if (slots > 32)
            all = add2(all, add2(add2(part[4 * AT_ONCE], part[5 * AT_ONCE]), add2(part[6 * AT_ONCE], part[7 * AT_ONCE])));
#pragma unroll
        for (int o = QUAD; o < 32; o *= 2)
            all = add2(all, make_float2(__shfl_xor_sync(~0u, all.x, o), __shfl_xor_sync(~0u, all.y, o)));
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
 * The input must be there, for all threads; the lanes' squares are summed up meanwhile, into s->red. A lane (g, q) holds of a
 * tile's inputs quarter g/2 of stream g mod 2, of its columns 4q .. 4q+3. Ends without a barrier: `part` and the input are free
 * after the next one.
 */
template <int PAIRS, int TILES, typename Prepare, typename Finish>
static __device__ inline void product(const struct few_job &job, struct few_shared *s, struct ring *g, const struct share p,
                                      struct squares squares, unsigned input, float2 *part, int number, Prepare prepare,
                                      Finish finish)
{
    enum { STAGE = WARPS * TILES * TILE_BYTES };
    int thread = anew(number), warp = thread / 32, lane = thread % 32, slots = 4 << p.k_bits;
    int k_group = warp & ((1 << p.k_bits) - 1), quad = warp >> p.k_bits, turn = WARPS >> p.k_bits;
    int stride = input_stride(p.k_bits, TILES);
    uint2 x[PAIRS][TILES];
    if (warp < p.quads) prepare(warp);
    input += (lane / 4 % 2) * stride + (k_group * TILES * TILE + lane / 8 * (TILE / 4) + lane % 4 * 4) * 2;
#pragma unroll
    for (int i = 0; i < PAIRS; i++)
#pragma unroll
        for (int j = 0; j < TILES; j++) x[i][j] = shared_load2(input + 2 * i * stride + j * TILE * 2);
    float2 *to = part + quad * PAIRS * slots * QUAD + (4 * k_group + lane % 4) * QUAD + lane / 4 % 4;
#pragma unroll 1
    for (int first = 0; first < p.quads; first += p.pass, to -= p.pass * PAIRS * slots * QUAD) {
        int last = min(first + p.pass, p.quads);
        if (first > 0) block_sync(); /* part is free */
#pragma unroll 1
        for (int of_turn = first; of_turn < last; of_turn += turn) {
            unsigned barriers = g->barriers + 16 * g->at;
            float c[PAIRS][4] = {};
            uint32_t w[TILES][4];
            phase_wait(barriers, g->parity);
#pragma unroll
            for (int i = 0; i < TILES; i++)
                shared_load(w[i], g->stages + g->at * STAGE + (warp * TILES + i) * TILE_BYTES + lane * 16);
            if (of_turn == 0) put_squares(s, squares, warp, lane);
#pragma unroll
            for (int i = 0; i < TILES; i++)
#pragma unroll
                for (int j = 0; j < PAIRS; j++) mma(c[j], w[i], x[j][i].x, x[j][i].y);
            if (lane == 0) phase_arrive(barriers + 8);
            ring_next(job, g);
            if (quad < last) put_sums<PAIRS>(c, to, slots, lane);
            quad += turn;
            to += turn * PAIRS * slots * QUAD;
        }
        block_sync();
#pragma unroll 1
        for (int at = first + warp; at < last; at += WARPS) {
            if (at != warp) prepare(at);
            finish(at, sum_of<PAIRS>(part + (at - first) * PAIRS * slots * QUAD, slots, lane));
        }
    }
}

#endif
