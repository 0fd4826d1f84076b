/* Packing, and products with, matrices of 8-bit numbers. Inputs are not rounded to whole numbers here, as they are on the CPU.
 */
#include "cuda/q8.cuh"

#include "cuda/dense.cuh"
#include "cuda/values.cuh"

enum {
    THREADS = 256,
    WEIGHT_MOST = 127,
    FEW_ROWS = 8, /* of x: fewer than tensor cores would like */
    OUTPUTS = 2,  /* of a warp; divides PANEL, so that the padding rows are there to be read */
};

/* ------------------------------------------------------------------------------------------------------ packing */

/* A block a row. Bits of magnitudes have the order of the magnitudes, infinity and NaN last. */
template <typename From> static __global__ void pack_row(const From *w, int64_t N, int64_t K, struct q8_matrix to)
{
    __shared__ int most_bits;
    int64_t n = blockIdx.x;
    int8_t *numbers = to.numbers + n * to.terms;
    int bits = 0;
    if (threadIdx.x == 0) most_bits = 0;
    __syncthreads();
    for (int64_t k = threadIdx.x; n < N && k < K; k += THREADS) bits = max(bits, __float_as_int(fabsf(value(w[n * K + k]))));
    atomicMax(&most_bits, bits);
    __syncthreads();
    float most = __int_as_float(most_bits), factor = WEIGHT_MOST / most;
    bool whole = isfinite(most) && isfinite(factor); /* not so: zeros, or not finite */
    if (threadIdx.x == 0) to.scales[n] = isfinite(most) ? most / WEIGHT_MOST : __int_as_float(0x7fffffff);
    for (int64_t k = threadIdx.x; k < to.terms; k += THREADS)
        numbers[k] = (int8_t)(whole && k < K ? __float2int_rn(value(w[n * K + k]) * factor) : 0);
}

aim_status cuda_q8_pack(struct backend *be, const struct tensor *w, struct tensor *packed)
{
    struct q8_matrix to = q8_matrix_of(packed);
    int64_t N = w->shape[0], K = w->shape[1];
    by_type(w, [&](auto zero) {
        using From = decltype(zero);
        pack_row<From><<<(unsigned)to.rows, THREADS, 0, cuda_of(be)->stream>>>(data_of<From>(w), N, K, to);
    });
    return cuda_launched(be, "pack");
}

/* -------------------------------------------------------------------------------------------------- few rows of x */

/* y (M,N): a warp makes OUTPUTS columns of it. M rows of x at most; where there are fewer, the last one stands for them. */
template <int M, int V, typename X>
static __global__ void few_rows(const X *x, int64_t rows, int64_t K, struct q8_matrix w, int64_t N, float *y)
{
    int lane = threadIdx.x % WARP;
    int64_t n = ((int64_t)blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP) * OUTPUTS;
    if (n >= N) return;
    float sum[OUTPUTS][M] = {};
    for (int64_t k = (int64_t)lane * V; k < K; k += WARP * V) {
        pack<V> weights[OUTPUTS];
#pragma unroll
        for (int o = 0; o < OUTPUTS; o++) weights[o] = load<V>(w.numbers + (n + o) * w.terms + k);
#pragma unroll
        for (int m = 0; m < M; m++) {
            pack<V> input = load<V>(x + (m < rows ? m : rows - 1) * K + k);
#pragma unroll
            for (int o = 0; o < OUTPUTS; o++)
#pragma unroll
                for (int i = 0; i < V; i++) sum[o][m] += weights[o].v[i] * input.v[i];
        }
    }
#pragma unroll
    for (int o = 0; o < OUTPUTS; o++)
#pragma unroll
        for (int m = 0; m < M; m++) {
            float total = warp_sum(sum[o][m]);
            if (lane == 0 && m < rows && n + o < N) y[m * N + n + o] = total * w.scales[n + o];
        }
}

template <int M> static void few(struct backend *be, const struct tensor *x, const struct tensor *w, struct tensor *y)
{
    int64_t rows = tensor_rows(x), K = tensor_cols(x), N = w->shape[0];
    struct q8_matrix matrix = q8_matrix_of(w);
    unsigned blocks = (unsigned)divide_up(N, THREADS / WARP * OUTPUTS);
    by_type(x, [&](auto zero) {
        using X = decltype(zero);
        by_width<16>(K % 16 == 0 && aligned(x) && aligned(w), [&](auto across) {
            constexpr int V = decltype(across)::value;
            few_rows<M, V, X><<<blocks, THREADS, 0, cuda_of(be)->stream>>>(data_of<X>(x), rows, K, matrix, N, f32(y));
        });
    });
}

/* ------------------------------------------------------------------------------------------------- many rows of x */

/* The whole numbers of N rows as bf16, which holds them exactly, (N,K). */
static __global__ void widen(struct q8_matrix w, int64_t N, int64_t K, bf16 *to)
{
    int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < N * K; i += step)
        to[i] = __float2bfloat16_rn(value(w.numbers[i / K * w.terms + i % K]));
}

/* y (M,N) times a scale for each column */
static __global__ void scale_columns(float *y, const float *scales, int64_t count, int64_t N)
{
    int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) y[i] *= scales[i % N];
}

static aim_status many(struct backend *be, const struct tensor *x, const struct tensor *w, struct tensor *y)
{
    int64_t M = tensor_rows(x), K = tensor_cols(x), N = w->shape[0];
    struct q8_matrix matrix = q8_matrix_of(w);
    const int64_t values = 128; /* whole vectors of them: both parts of the scratch memory are aligned */
    int64_t weights = divide_up(N * K, values) * values;
    cudaStream_t stream = cuda_of(be)->stream;
    bf16 *wide = (bf16 *)cuda_scratch(be, (size_t)(weights + M * K) * sizeof(bf16)), *input = wide + weights;
    if (!wide) return AIM_ERR_MEMORY;
    widen<<<cuda_blocks(be, N * K, THREADS), THREADS, 0, stream>>>(matrix, N, K, wide);
    if (x->type == T_BF16)
        input = (bf16 *)x->data;
    else
        cuda_round(be, f32(x), M * K, input);
    struct cuda_operand a = {input, K, 0, false}, b = {wide, K, 0, true};
    struct cuda_product product = {T_BF16, T_F32, M, N, K, 1, a, b, y->data, N, 0, false};
    TRY(cuda_multiply(be, &product));
    scale_columns<<<cuda_blocks(be, M * N, THREADS), THREADS, 0, stream>>>(f32(y), matrix.scales, M * N, N);
    return AIM_OK;
}

aim_status cuda_q8_product(struct backend *be, const struct tensor *x, const struct tensor *w, struct tensor *y)
{
    int64_t M = tensor_rows(x);
    if (M > FEW_ROWS)
        TRY(many(be, x, w, y));
    else if (M > 4)
        few<8>(be, x, w, y);
    else if (M > 2)
        few<4>(be, x, w, y);
    else if (M == 2)
        few<2>(be, x, w, y);
    else
        few<1>(be, x, w, y);
    return cuda_launched(be, "linear_packed");
}
