/* What the kernels are written with: values in either type, vectors of them, sums over warps and blocks. */
#ifndef AIM_CUDA_VALUES_CUH
#define AIM_CUDA_VALUES_CUH

#include <type_traits>

#include "cuda/device.cuh"

enum { WARP = 32 };

/* ----------------------------------------------------------------------------------------------- on the device */

static __device__ inline float value(float x)
{
    return x;
}

static __device__ inline float value(bf16 x)
{
    return __bfloat162float(x);
}

static __device__ inline float value(int8_t x)
{
    return (float)x;
}

static __device__ inline void put(float *to, float x)
{
    *to = x;
}

static __device__ inline void put(bf16 *to, float x)
{
    *to = __float2bfloat16_rn(x);
}

/* V values in registers, as float whatever their type in memory. */
template <int V> struct pack {
    float v[V];
};

/* The same in memory: accesses of up to 16 bytes. */
template <typename T, int V> struct alignas(V * sizeof(T) < 16 ? V * sizeof(T) : 16) memory_pack {
    T v[V];
};

template <typename T, int V> static __device__ inline pack<V> values_of(const memory_pack<T, V> &raw)
{
    pack<V> x;
#pragma unroll
    for (int i = 0; i < V; i++) x.v[i] = value(raw.v[i]);
    return x;
}

/* V values of type T in words that become floats by one instruction each: bfloat16 in pairs. */
template <typename T, int V>
using word_of = typename std::conditional<std::is_same<T, bf16>::value && V % 2 == 0, uint32_t, T>::type;
template <typename T, int V> using words = memory_pack<word_of<T, V>, (int)(V * sizeof(T) / sizeof(word_of<T, V>))>;

template <typename T, int V> static __device__ inline pack<V> values_of_words(const words<T, V> &raw)
{
    pack<V> x;
    if constexpr (std::is_same<T, word_of<T, V>>::value) {
        x = values_of(raw);
    } else {
#pragma unroll
        for (int i = 0; i < V; i += 2) {
            x.v[i] = __uint_as_float(raw.v[i / 2] << 16);
            x.v[i + 1] = __uint_as_float(raw.v[i / 2] & 0xffff0000u);
        }
    }
    return x;
}

/* The words at `from`, for later; zeros where they are not wanted. */
template <int V, typename T> static __device__ inline words<T, V> load_words(const T *from, bool wanted)
{
    words<T, V> raw = {};
    if (wanted) raw = *reinterpret_cast<const words<T, V> *>(from);
    return raw;
}

/* The copy makes it whole accesses: where values are read from memory one by one, the compiler leaves it at that. */
template <int V, typename T> static __device__ inline pack<V> load(const T *from)
{
    words<T, V> raw = *reinterpret_cast<const words<T, V> *>(from);
    return values_of_words<T, V>(raw);
}

/* The values as they lie in memory, for later; zeros where they are not wanted. */
template <int V, typename T> static __device__ inline memory_pack<T, V> load_raw(const T *from, bool wanted)
{
    memory_pack<T, V> raw = {};
    if (wanted) raw = *reinterpret_cast<const memory_pack<T, V> *>(from);
    return raw;
}

template <int V, typename T> static __device__ inline void store(T *to, const pack<V> &x)
{
    memory_pack<T, V> raw;
    if constexpr (std::is_same<T, bf16>::value && V % 2 == 0) { /* two are rounded by one instruction */
#pragma unroll
        for (int i = 0; i < V; i += 2) {
            __nv_bfloat162 both = __floats2bfloat162_rn(x.v[i], x.v[i + 1]);
            raw.v[i] = both.x, raw.v[i + 1] = both.y;
        }
    } else {
#pragma unroll
        for (int i = 0; i < V; i++) put(&raw.v[i], x.v[i]);
    }
    *reinterpret_cast<memory_pack<T, V> *>(to) = raw;
}

template <int V> static __device__ inline pack<V> zeros()
{
    pack<V> x;
#pragma unroll
    for (int i = 0; i < V; i++) x.v[i] = 0;
    return x;
}

/* to += x */
template <int V, typename T> static __device__ inline void store_add(T *to, const pack<V> &x)
{
    pack<V> sum = load<V>(to);
#pragma unroll
    for (int i = 0; i < V; i++) sum.v[i] += x.v[i];
    store<V>(to, sum);
}

static __device__ inline float sigmoid(float x)
{
    float power, share;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x * -1.4426950408889634f));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(share) : "f"(1.0f + power)); /* 0 from infinity */
    return share;
}

static __device__ inline float silu(float x)
{
    return x * sigmoid(x);
}

/* The derivative of x σ(x) */
static __device__ inline float silu_slope(float x)
{
    float s = sigmoid(x);
    return s * (1.0f + x * (1.0f - s));
}

static __device__ inline float warp_sum(float x)
{
#pragma unroll
    for (int gap = WARP / 2; gap > 0; gap /= 2) x += __shfl_xor_sync(0xffffffffu, x, gap);
    return x;
}

/* Every thread gets the block's sums of x[0], x[1], ...; whole warps; `shared` may be reused by the next call. */
template <int N> static __device__ inline void block_sum(float (&x)[N], float (&shared)[N][WARP])
{
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
#pragma unroll
    for (int n = 0; n < N; n++) x[n] = warp_sum(x[n]);
    __syncthreads();
#pragma unroll
    for (int n = 0; n < N; n++)
        if (lane == 0) shared[n][warp] = x[n];
    __syncthreads();
#pragma unroll
    for (int n = 0; n < N; n++) x[n] = warp_sum(lane < warps ? shared[n][lane] : 0.0f);
}

/* -------------------------------------------------------------------------------------------------- on the host */

/* f(T()) with the tensor's type, float or bf16; packed matrices are plain row-major ones here */
template <typename F> static inline void by_type(const struct tensor *t, F f)
{
    if (t->type == T_BF16 || t->type == T_BF16_PACKED)
        f(bf16());
    else
        f(float());
}

template <int V> using width = std::integral_constant<int, V>;

/* f(width<V>()) where rows are read in vectors, f(width<1>()) where they cannot be */
template <int V, typename F> static inline void by_width(bool vectors, F f)
{
    if (vectors)
        f(width<V>());
    else
        f(width<1>());
}

/* Whether a tensor (NULL: it is absent) starts where 16-byte accesses may. */
static inline bool aligned(const struct tensor *t)
{
    return !t || (uintptr_t)t->data % 16 == 0;
}

template <typename T> static inline T *data_of(const struct tensor *t)
{
    return t ? (T *)t->data : NULL;
}

static inline int64_t divide_up(int64_t n, int64_t by)
{
    return (n + by - 1) / by;
}

/*
 * Whether columns first .. end-1 of a gradient (NULL: it is absent) are fresh, to be overwritten instead of added to: they are
 * not any more. Where only a part is, or one in the middle of others, all that is fresh becomes zeros.
 */
static inline bool take_fresh(struct backend *be, struct tensor *gradient, int64_t first, int64_t end)
{
    struct fresh_columns fresh = gradient ? gradient->fresh : fresh_columns{0, 0};
    if (fresh.first == fresh.end || fresh.end <= first || end <= fresh.first) return false;
    bool inside = fresh.first <= first && end <= fresh.end, at_start = fresh.first == first, at_end = fresh.end == end;
    if (inside && at_start) {
        gradient->fresh.first = end;
        return true;
    }
    if (inside && at_end) {
        gradient->fresh.end = first;
        return true;
    }
    size_t size = tensor_type_size(gradient->type), row = (size_t)tensor_cols(gradient) * size;
    cudaMemset2DAsync((char *)gradient->data + (size_t)fresh.first * size, row, 0, (size_t)(fresh.end - fresh.first) * size,
                      (size_t)tensor_rows(gradient), cuda_of(be)->stream);
    gradient->fresh = {0, 0};
    return false;
}

static inline bool take_fresh(struct backend *be, struct tensor *gradient)
{
    return gradient && take_fresh(be, gradient, 0, tensor_cols(gradient));
}

/*
 * How many of `rows` rows a block of the kernel takes so that the blocks of all `groups` of rows run at once, each going down
 * its rows; a few at least. shared: the block's dynamic shared memory.
 */
template <typename Kernel>
static inline int64_t rows_at_once(const struct backend *be, Kernel kernel, int threads, size_t shared, int64_t groups,
                                   int64_t rows)
{
    const int64_t fewest = 4;
    int blocks = 0;
    if (cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared) != cudaSuccess || blocks < 1)
        blocks = 1;
    int64_t each = blocks * (int64_t)((const struct cuda *)be->state)->multiprocessors / groups; /* blocks for a group */
    int64_t wanted = divide_up(rows, each > 0 ? each : 1);
    return wanted > fewest ? wanted : fewest;
}

/* ---------------------------------------------------------------------------------------- sums over rows (sums.cu) */

/*
 * out[g*out_stride + c] += Σ_r partial[(g*rows + r)*ld + c] for c < cols, g < groups, in an order that depends on the shape
 * alone.
 */
aim_status cuda_sum_rows(struct backend *be, const float *partial, int64_t groups, int64_t rows, int64_t cols, int64_t ld,
                         float *out, int64_t out_stride);

/* Where sums of the next `cols` columns go: group g's to out + g*stride. NULL: nowhere. */
struct sum_target {
    float *out;
    int64_t stride, cols;
};

/* The same for up to SUM_TARGETS parts of the columns, one beside the other. */
enum { SUM_TARGETS = 3 };
aim_status cuda_sum_rows_to(struct backend *be, const float *partial, int64_t groups, int64_t rows, int64_t ld,
                            const struct sum_target *targets, int count);

/* out (N) += Σ_m x (M,N), x of either type. Uses the scratch memory. */
aim_status cuda_sum_matrix_rows(struct backend *be, const struct tensor *x, float *out);

#endif
