/*
 * Kernels that go down the columns (channels) of a matrix of rows (pixels): how a block's threads share the work. A thread
 * stays in one place across the row, V channels wide, so that what belongs to channels sits in its registers, and walks
 * down every `deep`-th row; V is 1 or 16 bytes' worth.
 */
#ifndef AIM_CUDA_COLUMNS_CUH
#define AIM_CUDA_COLUMNS_CUH

#include "cuda/values.cuh"

enum { COLUMN_THREADS = 256 };

static inline int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static inline int64_t max64(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* Pieces of one block of scratch memory: reserve them all, take the block, add their offsets. */
struct pieces {
    size_t total;
};

static inline size_t piece(struct pieces *p, size_t bytes)
{
    size_t at = p->total;
    p->total += (bytes + 255) / 256 * 256;
    return at;
}

/* Whether rows of `cols` elements of the type begin at multiples of 16 bytes in all of these (NULL ones aside). */
static inline bool rows_aligned(enum tensor_type type, int64_t cols, const void *a, const void *b = NULL, const void *c = NULL)
{
    uintptr_t bits = (uintptr_t)a | (uintptr_t)b | (uintptr_t)c;
    return bits % 16 == 0 && cols * (int64_t)tensor_type_size(type) % 16 == 0;
}

/* Two values rounded to bfloat16, the first one in the lower half. */
static __device__ inline unsigned bf16_pair(float low, float high)
{
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<unsigned *>(&pair);
}

/* store, in one access for certain: the compiler may split an assignment where pointers promise not to overlap. */
template <int V> static __device__ inline void store_whole(float *to, const pack<V> &x)
{
    if constexpr (V == 4)
        __stwb(reinterpret_cast<float4 *>(to), make_float4(x.v[0], x.v[1], x.v[2], x.v[3]));
    else
        store<V>(to, x);
}

template <int V> static __device__ inline void store_whole(bf16 *to, const pack<V> &x)
{
    if constexpr (V == 8)
        __stwb(reinterpret_cast<uint4 *>(to), make_uint4(bf16_pair(x.v[0], x.v[1]), bf16_pair(x.v[2], x.v[3]),
                                                         bf16_pair(x.v[4], x.v[5]), bf16_pair(x.v[6], x.v[7])));
    else
        store<V>(to, x);
}

/* The sum of a block of whole warps, in every thread; `room` is free again after it. */
static __device__ inline double block_sum_double(double x, double (&room)[WARP])
{
    int warps = blockDim.x / WARP;
#pragma unroll
    for (int gap = WARP / 2; gap > 0; gap /= 2) x += __shfl_xor_sync(0xffffffffu, x, gap);
    if (threadIdx.x % WARP == 0) room[threadIdx.x / WARP] = x;
    __syncthreads();
    double sum = 0;
    for (int i = 0; i < warps; i++) sum += room[i];
    __syncthreads();
    return sum;
}

struct columns {
    int64_t C;
    int wide, deep; /* places across, rows at a time: wide * deep <= COLUMN_THREADS */
    int parts;      /* blocks across, when a row has more places than a block has threads */
};

static inline struct columns columns_of(int64_t C, int vector)
{
    struct columns s = {};
    int64_t places = C / vector;
    s.C = C;
    s.wide = (int)min64(places, COLUMN_THREADS);
    s.deep = COLUMN_THREADS / s.wide;
    s.parts = (int)divide_up(places, s.wide);
    return s;
}

/* Where a thread stands: its first channel, and its first row of each `deep`. `live` is false for threads left over. */
struct stand {
    int64_t channel;
    int row;
    bool live;
};

template <int V> static __device__ inline struct stand stand_of(const struct columns &s, int part)
{
    struct stand at;
    at.channel = ((int64_t)part * s.wide + threadIdx.x % s.wide) * V;
    at.row = threadIdx.x / s.wide;
    at.live = at.row < s.deep && at.channel < s.C;
    return at;
}

/*
 * Adds up what the threads of a block have for their channels, in a fixed order: room (COLUMN_THREADS * V), out (channels of
 * the whole row). All threads call it; those without work bring zeros. Where whole rows fit a warp, its lanes add up first.
 */
template <int V>
static __device__ inline void columns_sum(const struct columns &s, int part, const pack<V> &mine, float *room, float *out)
{
    const bool by_warps = WARP % s.wide == 0;
    const int rows = by_warps ? COLUMN_THREADS / WARP : s.deep, lane = threadIdx.x % WARP;
    pack<V> sums = mine;
    if (by_warps)
        for (int gap = s.wide; gap < WARP; gap *= 2)
#pragma unroll
            for (int j = 0; j < V; j++) sums.v[j] += __shfl_xor_sync(0xffffffffu, sums.v[j], gap);
    if (!by_warps || lane < s.wide) store<V>(room + (by_warps ? threadIdx.x / WARP * s.wide + lane : threadIdx.x) * V, sums);
    __syncthreads();
    int64_t first = (int64_t)part * s.wide * V;
    for (int c = threadIdx.x; c < s.wide * V && first + c < s.C; c += COLUMN_THREADS) {
        float sum = 0;
        for (int row = 0; row < rows; row++) sum += room[row * s.wide * V + c];
        out[first + c] = sum;
    }
    __syncthreads();
}

/* out (C) += the sums of the columns of x (rows, C), in an order that follows from the shape alone. Uses the scratch memory. */
aim_status cuda_column_sums(struct backend *be, const struct tensor *x, float *out);

#endif
