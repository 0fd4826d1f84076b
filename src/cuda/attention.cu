/*
 * Attention of one head over the positions of a picture: products of all pictures at once, the softmax in between. Scores
 * are float32 in scratch memory; the softmax's result has the activations' type.
 */
#include "cuda/columns.cuh"
#include "cuda/dense.cuh"

enum { SOFTMAX_THREADS = 128 };

/* A matrix (rows, cols) of each picture; `transposed`: its transpose is what is meant. */
static struct cuda_operand matrix(const void *data, int64_t rows, int64_t cols, bool transposed)
{
    struct cuda_operand m = {data, cols, rows * cols, transposed};
    return m;
}

/* c (rows, cols) = a (rows, inner) b (inner, cols) for each picture, or c += a b */
static aim_status multiply(struct backend *be, int64_t pictures, enum tensor_type in, enum tensor_type out, int64_t rows,
                           int64_t cols, int64_t inner, struct cuda_operand a, struct cuda_operand b, void *c, bool add)
{
    struct cuda_product p = {in, out, rows, cols, inner, pictures, a, b, c, cols, rows * cols, add};
    return cuda_multiply(be, &p);
}

/* ------------------------------------------------------------------------------------------------- softmax */

/* The largest value of a warp, in every lane. */
static __device__ inline float warp_max(float x)
{
    for (int step = WARP / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}

/* The largest of a row of L products, and the sum of exp(scale (product - largest)); a warp has a row. */
static __device__ inline void row_statistics(const float *row, int64_t L, float scale, float *top, float *sum)
{
    float most = -INFINITY, total = 0;
    for (int64_t j = threadIdx.x % WARP; j < L; j += WARP) most = fmaxf(most, row[j]);
    most = warp_max(most);
    for (int64_t j = threadIdx.x % WARP; j < L; j += WARP) total += expf(scale * (row[j] - most));
    *top = most;
    *sum = warp_sum(total);
}

/* P = softmax(scale products), row by row */
template <typename T>
static __global__ void __launch_bounds__(SOFTMAX_THREADS)
    softmax(const float *products, int64_t rows, int64_t L, float scale, T *P)
{
    int64_t r = blockIdx.x * (int64_t)(SOFTMAX_THREADS / WARP) + threadIdx.x / WARP;
    if (r >= rows) return;
    const float *row = products + r * L;
    float top, sum;
    row_statistics(row, L, scale, &top, &sum);
    for (int64_t j = threadIdx.x % WARP; j < L; j += WARP) put(&P[r * L + j], expf(scale * (row[j] - top)) / sum);
}

/* P, and dS = scale P ⊙ (dP - Σ P ⊙ dP) */
template <typename T>
static __global__ void __launch_bounds__(SOFTMAX_THREADS)
    softmax_gradient(const float *products, const float *dP, int64_t rows, int64_t L, float scale, T *P, T *dS)
{
    int64_t r = blockIdx.x * (int64_t)(SOFTMAX_THREADS / WARP) + threadIdx.x / WARP;
    if (r >= rows) return;
    const float *row = products + r * L, *dp = dP + r * L;
    float top, sum, mean = 0;
    row_statistics(row, L, scale, &top, &sum);
    for (int64_t j = threadIdx.x % WARP; j < L; j += WARP) mean += expf(scale * (row[j] - top)) / sum * dp[j];
    mean = warp_sum(mean);
    for (int64_t j = threadIdx.x % WARP; j < L; j += WARP) {
        float p = expf(scale * (row[j] - top)) / sum;
        put(&P[r * L + j], p);
        put(&dS[r * L + j], scale * p * (dp[j] - mean));
    }
}

static unsigned softmax_blocks(int64_t rows)
{
    return (unsigned)divide_up(rows, SOFTMAX_THREADS / WARP);
}

/* ----------------------------------------------------------------------------------------------- the ops */

/* Products round their inputs to bfloat16 already where activations are; float32 ones stay as they are. */
aim_status cuda_attention(struct backend *be, const struct tensor *q, const struct tensor *k, const struct tensor *v,
                          struct tensor *y)
{
    int64_t N = q->shape[0], L = q->shape[1], C = q->shape[2];
    enum tensor_type type = q->type;
    struct pieces p = {};
    size_t products = piece(&p, (size_t)(N * L * L) * sizeof(float));
    size_t weights = piece(&p, (size_t)(N * L * L) * tensor_type_size(type));
    char *block = (char *)cuda_scratch(be, p.total);
    if (!block) return AIM_ERR_MEMORY;
    float *S = (float *)(block + products);
    TRY(multiply(be, N, type, T_F32, L, L, C, matrix(q->data, L, C, false), matrix(k->data, L, C, true), S, false));
    by_type(q, [&](auto zero) {
        using T = decltype(zero);
        softmax<<<softmax_blocks(N * L), SOFTMAX_THREADS, 0, cuda_of(be)->stream>>>(S, N * L, L, 1.0f / sqrtf((float)C),
                                                                                    (T *)(block + weights));
    });
    TRY(cuda_launched(be, "attention"));
    return multiply(be, N, type, type, L, C, L, matrix(block + weights, L, L, false), matrix(v->data, L, C, false), y->data,
                    false);
}

/* dv = Pᵀ dy;  dP = dy vᵀ;  dS = P ⊙ (dP - Σ P ⊙ dP) / √C;  dq = dS k;  dk = dSᵀ q.  P is computed again instead of kept. */
aim_status cuda_attention_backward(struct backend *be, const struct tensor *q, const struct tensor *k, const struct tensor *v,
                                   const struct tensor *dy, struct tensor *dq, struct tensor *dk, struct tensor *dv)
{
    int64_t N = q->shape[0], L = q->shape[1], C = q->shape[2];
    enum tensor_type type = q->type;
    struct pieces p = {};
    size_t values = (size_t)(N * L * L), size = tensor_type_size(type);
    size_t products = piece(&p, values * sizeof(float)), d_weights = piece(&p, values * sizeof(float));
    size_t weights = piece(&p, values * size), d_products = piece(&p, values * size);
    char *block = (char *)cuda_scratch(be, p.total);
    if (!block) return AIM_ERR_MEMORY;
    float *S = (float *)(block + products), *dP = (float *)(block + d_weights);
    TRY(multiply(be, N, type, T_F32, L, L, C, matrix(q->data, L, C, false), matrix(k->data, L, C, true), S, false));
    TRY(multiply(be, N, type, T_F32, L, L, C, matrix(dy->data, L, C, false), matrix(v->data, L, C, true), dP, false));
    const void *P = block + weights, *dS = block + d_products;
    by_type(q, [&](auto zero) {
        using T = decltype(zero);
        softmax_gradient<<<softmax_blocks(N * L), SOFTMAX_THREADS, 0, cuda_of(be)->stream>>>(
            S, dP, N * L, L, 1.0f / sqrtf((float)C), (T *)P, (T *)dS);
    });
    TRY(cuda_launched(be, "attention_backward"));
    if (dv)
        TRY(multiply(be, N, type, type, L, C, L, matrix(P, L, L, true), matrix(dy->data, L, C, false), dv->data,
                     !take_fresh(be, dv)));
    if (dq)
        TRY(multiply(be, N, type, type, L, C, L, matrix(dS, L, L, false), matrix(k->data, L, C, false), dq->data,
                     !take_fresh(be, dq)));
    if (dk)
        TRY(multiply(be, N, type, type, L, C, L, matrix(dS, L, L, true), matrix(q->data, L, C, false), dk->data,
                     !take_fresh(be, dk)));
    return AIM_OK;
}
