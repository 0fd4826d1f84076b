/*
 * Decoding for a few streams as one kernel that stays on every multiprocessor: each owns a fixed share of the rows of every
 * matrix and a fixed share of the heads, and they meet at barriers in device memory, three a layer:
 *
 *     norm (everybody, redundantly), in_proj | mix | out_proj |
 *
 * A step reads every weight once, so what counts is that memory never idles. Each warp reads its part of the weights
 * through a ring of its own in shared memory (cp.async), in the order in which it will use them, and that order does not stop
 * at a barrier: while a multiprocessor waits, or mixes, the rings fill with the weights of what comes next.
 *
 * A ring's stage is a tile of TILE_ROWS rows by 256 bytes. bf16 tiles go to the tensor cores, with the streams as the 16 rows
 * of m16n8k16 (8 in use) and the tile's rows as its 8 columns; float32 tiles to plain multiply-adds.
 */
#include "cuda/decode.cuh"

enum {
    WARPS = 16,
    THREADS = 32 * WARPS,
    MOST_STREAMS = 8,
    TILE_ROWS = 8,
    TILE_UNITS = 16, /* of 16 bytes, in a row of a tile */
    TILE_BYTES = TILE_ROWS * TILE_UNITS * 16,
    DEEPEST = 5,
    WORK_BYTES = 28672 /* partial sums of the products, or what the mixer or the sampler needs */
};

/* --------------------------------------------------------------------------------------------------- shared memory */

/* Where things lie behind the rings, in bytes. Rows of the products' inputs start 64 bytes apart modulo 128, so that the
 * tensor cores' operands come from different banks. */
struct layout {
    int input, sums, work, red, view, layers, total;
};

static __host__ __device__ inline int up16(int n)
{
    return (n + 15) & ~15;
}

static __host__ __device__ inline int input_stride(int K, int size)
{
    return K * size | 64;
}

static __host__ __device__ inline struct layout layout_of(const struct decode_view &a, int size, int depth)
{
    struct layout s;
    s.input = WARPS * depth * TILE_BYTES;
    s.sums = s.input + a.R * input_stride(a.E, size);
    s.work = s.sums + up16(a.R * a.d * 4);
    s.red = s.work + WORK_BYTES;
    s.view = s.red + (MOST_STREAMS * 32 + MOST_STREAMS) * 4;
    s.layers = s.view + up16((int)sizeof(struct decode_view));
    s.total = s.layers + up16(a.layers * (int)sizeof(struct decode_layer));
    return s;
}

/* ------------------------------------------------------------------------------------------------- the grid's barrier */

/* All blocks have arrived, and see what the others wrote before. `goal` counts the arrivals of all barriers so far. */
static __device__ inline void grid_barrier(unsigned *arrived, unsigned *goal)
{
    __syncthreads();
    *goal += gridDim.x;
    if (threadIdx.x == 0) {
        unsigned seen;
        asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(arrived) : "memory");
        do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(arrived) : "memory");
        while (seen < *goal);
    }
    __syncthreads();
}

/* ---------------------------------------------------------------------------------------------------------- the rings */

/* This block's rows n0 .. n0+rows of a matrix (N, K), cut into tiles: groups of TILE_ROWS rows, steps along K. Tile i of
 * group i / steps goes to warp i mod WARPS. */
struct share {
    const char *base; /* of row n0 */
    int n0, rows, K, steps, tiles;
};

template <typename X> static __device__ inline struct share share_of(const void *matrix, int N, int K)
{
    struct share s;
    s.n0 = (int)((int64_t)N * blockIdx.x / gridDim.x);
    s.rows = (int)((int64_t)N * (blockIdx.x + 1) / gridDim.x) - s.n0;
    s.base = (const char *)matrix + (int64_t)s.n0 * K * (int)sizeof(X);
    s.K = K;
    s.steps = (K * (int)sizeof(X) + TILE_UNITS * 16 - 1) / (TILE_UNITS * 16);
    s.tiles = (s.rows + TILE_ROWS - 1) / TILE_ROWS * s.steps;
    return s;
}

/* The products of a token in their order: 2l is in_proj of layer l, 2l+1 its out_proj, 2·layers the head. */
template <typename X> static __device__ inline struct share share_at(const struct decode_view &a, int product)
{
    if (product == 2 * a.layers) return share_of<X>(a.words, a.V, a.d);
    const struct decode_layer &l = a.layer[product / 2];
    return product % 2 ? share_of<X>(l.out_proj, a.d, a.E) : share_of<X>(l.in_proj, a.W, a.d);
}

/* A warp's ring. What is read next: tile `next` of product `product` of the token that is `tokens` before the last. */
struct ring {
    unsigned stages; /* address in shared memory */
    int slot;        /* the stage that is used next, and filled again right after */
    int tokens, product, next;
    struct share from;
    unsigned long long policy; /* of the second-level cache: weights are used once a token, everything else should stay */
};

/* Starts reading one tile into stage `slot`. A ring always has as many groups of copies on their way as it has stages: past
 * the end they are empty. */
template <typename X> static __device__ inline void ring_read(const struct decode_view &a, struct ring *g, int slot)
{
    while (g->tokens > 0 && g->next >= g->from.tiles) {
        g->next = threadIdx.x / 32;
        if (++g->product > 2 * a.layers) {
            g->product = 0;
            g->tokens--;
        }
        g->from = share_at<X>(a, g->product);
    }
    if (g->tokens > 0) {
        int group = g->next / g->from.steps, step = g->next % g->from.steps, lane = threadIdx.x % 32;
        int unit = lane % TILE_UNITS, row_bytes = g->from.K * (int)sizeof(X), column = (step * TILE_UNITS + unit) * 16;
        unsigned stage = g->stages + slot * TILE_BYTES;
#pragma unroll
        for (int i = 0; i < TILE_ROWS; i += 32 / TILE_UNITS) {
            int row = i + lane / TILE_UNITS, from_row = group * TILE_ROWS + row;
            bool there = from_row < g->from.rows && column < row_bytes;
            /* Odd rows swap the halves of 128 bytes: the tensor cores' operands then come from different banks. */
            unsigned to = stage + (row * TILE_UNITS + (unit ^ (row & 1) << 2)) * 16;
            const char *source = there ? g->from.base + (int64_t)from_row * row_bytes + column : g->from.base;
            asm volatile("cp.async.cg.shared.global.L2::cache_hint.L2::128B [%0], [%1], 16, %2, %3;" ::"r"(to), "l"(source),
                         "r"(there ? 16 : 0), "l"(g->policy)
                         : "memory");
        }
        g->next += WARPS;
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
}

template <typename X, int DEPTH>
static __device__ inline void ring_start(const struct decode_view &a, struct ring *g, char *shared, int tokens)
{
    int warp = threadIdx.x / 32;
    g->stages = (unsigned)__cvta_generic_to_shared(shared + warp * DEPTH * TILE_BYTES);
    g->slot = 0;
    g->tokens = tokens;
    g->product = 0;
    g->next = warp;
    g->from = share_at<X>(a, 0);
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(g->policy));
    for (int i = 0; i < DEPTH; i++) ring_read<X>(a, g, i);
}

static __device__ inline uint4 shared_load(unsigned address)
{
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(address)
                 : "memory");
    return v;
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
 */
template <> struct tile_sums<bf16> {
    float c[4];

    __device__ inline void clear()
    {
        c[0] = c[1] = c[2] = c[3] = 0;
    }

    __device__ inline void multiply(unsigned a0, unsigned a2, unsigned b0, unsigned b1)
    {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                     "{%0, %1, %2, %3};"
                     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                     : "r"(a0), "r"(0), "r"(a2), "r"(0), "r"(b0), "r"(b1));
    }

    __device__ inline void add(unsigned tile, unsigned input, int stride, int R, int k, int K)
    {
        int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
#pragma unroll
        for (int j = 0; j < TILE_UNITS / 4; j++) {
            if (k + 32 * j >= K) break;
            uint4 w = shared_load(tile + (g * TILE_UNITS + ((4 * j + q) ^ (g & 1) << 2)) * 16);
            uint4 x = shared_load(input + min(g, R - 1) * stride + (k + 32 * j + 8 * q) * 2); /* rows past R go nowhere */
            multiply(x.x, x.y, w.x, w.y);
            multiply(x.z, x.w, w.z, w.w);
        }
    }

    __device__ inline void put(float *part, int R)
    {
        int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
        if (g < R) *(float2 *)(part + g * TILE_ROWS + 2 * q) = make_float2(c[0], c[1]);
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
        int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
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
        int lane = threadIdx.x % 32, g = lane / 4, q = lane % 4;
#pragma unroll
        for (int r = 0; r < MOST_STREAMS; r++) {
            if (r >= R) break;
            float sum = c[r] + __shfl_xor_sync(~0u, c[r], 1);
            sum += __shfl_xor_sync(~0u, sum, 2);
            if (q == 0) part[r * TILE_ROWS + g] = sum;
        }
    }
};

/*
 * y (R, N): this block's columns n0 .. n0+rows of input wᵀ, with the tiles as they come out of the rings. part holds
 * (groups, WARPS, R, TILE_ROWS) partial sums of as many groups as fit in WORK_BYTES. Begins and ends with a barrier.
 */
template <typename X, int DEPTH>
static __device__ inline void product(const struct decode_view &a, struct ring *g, int which, unsigned input, int stride,
                                      float *part, float *y, int N)
{
    struct share s = share_at<X>(a, which);
    int warp = threadIdx.x / 32, R = a.R, one = WARPS * R * TILE_ROWS, pass = WORK_BYTES / 4 / one;
    int groups = s.steps ? s.tiles / s.steps : 0, tile = warp;
    for (int first = 0; first < groups; first += pass) {
        int last = min(first + pass, groups), current = -1;
        struct tile_sums<X> sums;
        sums.clear();
        __syncthreads(); /* the input is there, part is free */
        for (; tile < last * s.steps; tile += WARPS) {
            int group = tile / s.steps, step = tile % s.steps;
            if (group != current) {
                if (current >= 0) sums.put(part + (current - first) * one + warp * R * TILE_ROWS, R);
                sums.clear();
                current = group;
            }
            asm volatile("cp.async.wait_group %0;" ::"n"(DEPTH - 1) : "memory");
            __syncwarp(); /* every lane's copies have arrived */
            sums.add(g->stages + g->slot * TILE_BYTES, input, stride, R, step * (TILE_UNITS * 16 / (int)sizeof(X)), s.K);
            __syncwarp(); /* every lane has read the stage */
            ring_read<X>(a, g, g->slot);
            g->slot = g->slot + 1 == DEPTH ? 0 : g->slot + 1;
        }
        if (current >= 0) sums.put(part + (current - first) * one + warp * R * TILE_ROWS, R);
        __syncthreads();
        int rows = min(last * TILE_ROWS, s.rows) - first * TILE_ROWS, sharing = min(s.steps, (int)WARPS);
        for (int i = threadIdx.x; i < rows * R; i += THREADS) {
            int r = i / rows, row = i % rows, group = row / TILE_ROWS;
            const float *from = part + group * one + r * TILE_ROWS + row % TILE_ROWS;
            int w = (group + first) * s.steps % WARPS; /* the first of the warps that had a tile of the group */
            float sum = 0;
            for (int j = 0; j < sharing; j++) {
                sum += from[w * R * TILE_ROWS];
                w = w + 1 == WARPS ? 0 : w + 1;
            }
            y[(int64_t)r * N + s.n0 + first * TILE_ROWS + row] = sum;
        }
    }
    __syncthreads();
}

/* --------------------------------------------------------------------------------------------------------- the kernel */

/* Heads of this block: first .. last of the R·H pairs, stream-major. */
struct heads {
    int first, last;
};

static __device__ inline struct heads heads_of(const struct decode_view &a)
{
    struct heads n = {(int)((int64_t)a.R * a.H * blockIdx.x / gridDim.x),
                      (int)((int64_t)a.R * a.H * (blockIdx.x + 1) / gridDim.x)};
    return n;
}

/* Asks for the histories that `mix` will read, so that they are in the second-level cache by then. */
template <typename X> static __device__ inline void mix_ahead(const struct decode_view &a, int l, int t)
{
    enum { LINE = 128 };
    struct heads n = heads_of(a);
    int stream = -1;
    for (int i = n.first; i < n.last; i++) {
        const char *u = (const char *)((const X *)a.u + ((int64_t)l * a.R * a.H + i) * a.T * HEADDIM);
        for (int at = threadIdx.x * LINE; at < t * HEADDIM * (int)sizeof(X); at += THREADS * LINE)
            asm volatile("prefetch.global.L2 [%0];" ::"l"(u + at));
        if (i / a.H == stream) continue;
        stream = i / a.H;
        const char *b = (const char *)((const X *)a.b + ((int64_t)l * a.R + stream) * a.T * a.S);
        for (int at = threadIdx.x * LINE; at < t * a.S * (int)sizeof(X); at += THREADS * LINE)
            asm volatile("prefetch.global.L2 [%0];" ::"l"(b + at));
    }
}

template <typename X> static __device__ void mix(const struct decode_view &a, int l, int t, float *work)
{
    float *bc = work + HEAD_SHARED, *cb = bc + 2 * a.S, *decays = cb + a.T;
    /* The threads that the convolution of B and C leaves idle, where there are enough, take the head's inputs. */
    int first = 2 * a.S + HEADDIM <= THREADS ? 2 * a.S : 0, stream = -1;
    struct heads n = heads_of(a);
    for (int i = n.first; i < n.last; i++) {
        int r = i / a.H, h = i % a.H;
        head_begin<X>(a, l, r, h, t, first, decays, work);
        if (r != stream)
            history_products<X>(a, l, r, t, h == 0, bc, cb);
        else
            __syncthreads();
        stream = r;
        head_finish<X>(a, l, r, h, t, cb, decays, work);
        __syncthreads();
    }
}

/* v (R,E) of all blocks as the input of out_proj. */
template <typename X> static __device__ void fetch_mixed(const struct decode_view &a, char *input, int stride)
{
    int units = a.E * (int)sizeof(X) / 16;
    for (int i = threadIdx.x; i < a.R * units; i += THREADS) {
        int r = i / units, unit = i % units;
        *(uint4 *)(input + r * stride + unit * 16) = __ldcg((const uint4 *)((const X *)a.v + (int64_t)r * a.E) + unit);
    }
}

/* The input of product `which`, and the product. */
template <typename X, int DEPTH>
static __device__ inline void multiply(const struct decode_view &a, struct ring *g, int which, int t, char *shared,
                                       const struct layout &at)
{
    int l = which / 2;
    bool out = which % 2 != 0, head = l == a.layers;
    int stride = input_stride(out ? a.E : a.d, sizeof(X));
    char *input = shared + at.input;
    if (out) {
        fetch_mixed<X>(a, input, stride);
    } else {
        float *red = (float *)(shared + at.red);
        if (!head) mix_ahead<X>(a, l, t);
        norm_rows<X>(a, l, t, 0, a.R, a.r[(l + 1) % 2], a.r[l % 2], blockIdx.x, gridDim.x, (float *)(shared + at.sums), red,
                     red + MOST_STREAMS * 32, (X *)input, stride / (int)sizeof(X));
    }
    product<X, DEPTH>(a, g, which, (unsigned)__cvta_generic_to_shared(input), stride, (float *)(shared + at.work),
                      out    ? a.h
                      : head ? a.logits
                             : a.zxbcdt,
                      out    ? a.d
                      : head ? a.V
                             : a.W);
}

template <typename X, int DEPTH>
static __global__ void __launch_bounds__(THREADS, 1)
    persistent_kernel(const __grid_constant__ struct decode_view given, int from, int to)
{
    extern __shared__ __align__(128) char shared[];
    struct layout at = layout_of(given, sizeof(X), DEPTH);
    struct decode_view &a = *(struct decode_view *)(shared + at.view);
    struct decode_layer *table = (struct decode_layer *)(shared + at.layers);
    for (int i = threadIdx.x; i < given.layers; i += THREADS) table[i] = given.layer[i];
    if (threadIdx.x == 0) {
        a = given;
        a.layer = table;
    }
    __syncthreads();
    float *work = (float *)(shared + at.work);
    unsigned goal = 0;
    struct ring ring;
    ring_start<X, DEPTH>(a, &ring, shared, to - from);
    for (int t = from; t < to; t++) {
        for (int which = 0; which <= 2 * given.layers; which++) {
            multiply<X, DEPTH>(a, &ring, which, t, shared, at);
            grid_barrier(given.barrier, &goal);
            if (which % 2 != 0 || which == 2 * given.layers) continue;
            mix<X>(a, which / 2, t, work);
            grid_barrier(given.barrier, &goal);
        }
        for (int p = blockIdx.x; p < given.pictures; p += gridDim.x) sample_picture(a, p, t, (struct sample_shared *)work);
        grid_barrier(given.barrier, &goal);
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
}

/* ---------------------------------------------------------------------------------------------------------- the host */

static int depth_that_fits(const struct cuda *c, const struct decode_view *a, bool is_bf16)
{
    const int depths[] = {DEEPEST, 4, 2};
    size_t mixer = (HEAD_SHARED + 2 * (size_t)a->T + 2 * (size_t)a->S) * sizeof(float);
    if (a->R > MOST_STREAMS || mixer > WORK_BYTES || sizeof(struct sample_shared) > WORK_BYTES) return 0;
    for (int depth : depths)
        if ((size_t)layout_of(*a, is_bf16 ? 2 : 4, depth).total <= c->shared_limit) return depth;
    return 0;
}

bool decode_persistent_fits(const struct cuda *c, const struct decode_view *a, bool is_bf16)
{
    return depth_that_fits(c, a, is_bf16) > 0;
}

template <typename X> static const void *kernel_of(int depth)
{
    switch (depth) {
    case DEEPEST: return (const void *)persistent_kernel<X, DEEPEST>;
    case 4: return (const void *)persistent_kernel<X, 4>;
    default: return (const void *)persistent_kernel<X, 2>;
    }
}

aim_status decode_persistent_run(struct backend *be, const struct decode_view *a, bool is_bf16, int from, int to)
{
    struct cuda *c = cuda_of(be);
    int depth = depth_that_fits(c, a, is_bf16);
    int bytes = layout_of(*a, is_bf16 ? 2 : 4, depth).total;
    const void *kernel = is_bf16 ? kernel_of<bf16>(depth) : kernel_of<float>(depth);
    struct decode_view view = *a;
    void *arguments[] = {&view, &from, &to};
    CUDA_TRY(be, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    CUDA_TRY(be, cudaMemsetAsync(a->barrier, 0, sizeof *a->barrier, c->stream));
    CUDA_TRY(be, cudaLaunchCooperativeKernel(kernel, dim3((unsigned)c->multiprocessors), dim3(THREADS), arguments,
                                             (size_t)bytes, c->stream));
    return AIM_OK;
}
