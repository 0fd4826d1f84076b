/*
 * The entropy term of the quantiser; the formulas are in cpu/kernels/code_entropy.c. With 16,384 codes the scores of a batch
 * are more than memory should hold: they are computed in blocks of rows, whose size follows from the number of codes.
 */
#include "cuda/columns.cuh"
#include "cuda/dense.cuh"

enum { THREADS = 256, BLOCK_VALUES = 1 << 24 };

#define AVERAGE_EPS 1e-5f /* spec D5 */

/* The work of a call. */
struct entropy {
    int64_t M, V, D, most; /* most: rows of a block */
    float scale;           /* 2 / temperature */
    float *scores;         /* (most, V) */
    float *q;              /* (V): the backward's */
    double *h;             /* (M) entropies of the rows: the forward's */
};

static aim_status start(struct backend *be, const struct tensor *z, const struct tensor *e, float temperature,
                        struct entropy *k)
{
    *k = entropy();
    if (z->type != T_F32 || e->type != T_F32)
        return aim_fail(be->ctx, AIM_ERR_INTERNAL, "code_entropy wants its latents and codes in float32");
    k->M = tensor_rows(z);
    k->V = e->shape[0];
    k->D = tensor_cols(z);
    k->most = min64(k->M, max64(1, BLOCK_VALUES / k->V));
    k->scale = 2 / temperature;
    struct pieces p = {};
    size_t scores = piece(&p, (size_t)(k->most * k->V) * sizeof(float)), q = piece(&p, (size_t)k->V * sizeof(float));
    size_t h = piece(&p, (size_t)k->M * sizeof(double));
    char *block = (char *)cuda_scratch(be, p.total);
    if (!block) return AIM_ERR_MEMORY;
    k->scores = (float *)(block + scores);
    k->q = (float *)(block + q);
    k->h = (double *)(block + h);
    return AIM_OK;
}

/* scores (rows, V) of the rows of z from `from` on, without the scale */
static aim_status score(struct backend *be, const struct entropy *k, const struct tensor *z, const struct tensor *e,
                        int64_t from, int64_t rows)
{
    struct cuda_operand a = {f32(z) + from * k->D, k->D, 0, false}, b = {f32(e), k->D, 0, true};
    struct cuda_product p = {T_F32, T_F32, rows, k->V, k->D, 1, a, b, k->scores, k->V, 0, false};
    return cuda_multiply(be, &p);
}

/* The largest value of a block's x, in every thread; `room` is free again after it. */
static __device__ inline float block_max(float x, float (&room)[WARP])
{
#pragma unroll
    for (int gap = WARP / 2; gap > 0; gap /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, gap));
    if (threadIdx.x % WARP == 0) room[threadIdx.x / WARP] = x;
    __syncthreads();
    for (int i = 0; i < THREADS / WARP; i++) x = fmaxf(x, room[i]);
    __syncthreads();
    return x;
}

/* What makes scores logarithms of probabilities. Scores differ from the largest one exactly where it matters; the sum of the
 * two parts would be rounded to 1e-5 when the scale is 200. */
struct level {
    float scale, top, log_sum;
    __device__ float ln(float score) const
    {
        return scale * (score - top) - log_sum;
    }
};

/* Of a block's row. */
static __device__ inline struct level row_level(const float *row, int64_t V, float scale, float (&top_room)[WARP],
                                                double (&room)[WARP])
{
    struct level l = {scale, -INFINITY, 0};
    float sum = 0;
    for (int64_t j = threadIdx.x; j < V; j += THREADS) l.top = fmaxf(l.top, row[j]);
    l.top = block_max(l.top, top_room);
    for (int64_t j = threadIdx.x; j < V; j += THREADS) sum += expf(scale * (row[j] - l.top));
    l.log_sum = (float)log(block_sum_double((double)sum, room));
    return l;
}

/* Scores to probabilities, and the rows' entropies. */
static __global__ void __launch_bounds__(THREADS) probabilities(struct entropy k, int64_t from)
{
    __shared__ float top_room[WARP];
    __shared__ double room[WARP];
    float *row = k.scores + blockIdx.x * k.V, h = 0;
    const struct level level = row_level(row, k.V, k.scale, top_room, room);
    for (int64_t j = threadIdx.x; j < k.V; j += THREADS) {
        float ln = level.ln(row[j]), p = expf(ln);
        h -= p * ln;
        row[j] = p;
    }
    double sum = block_sum_double((double)h, room);
    if (threadIdx.x == 0) k.h[from + blockIdx.x] = sum;
}

/* Sums of probabilities to their average, and the loss; one block. */
static __global__ void __launch_bounds__(THREADS) finish(struct entropy k, float weight, float *average, float *loss)
{
    __shared__ double room[WARP];
    double rows = 0, all = 0;
    for (int64_t m = threadIdx.x; m < k.M; m += THREADS) rows += k.h[m];
    for (int64_t j = threadIdx.x; j < k.V; j += THREADS) {
        double mean = (double)average[j] / (double)k.M;
        average[j] = (float)mean;
        all -= mean * log(mean + (double)AVERAGE_EPS);
    }
    rows = block_sum_double(rows, room);
    all = block_sum_double(all, room);
    if (threadIdx.x == 0) loss[0] = (float)((double)weight * (rows / (double)k.M - all));
}

aim_status cuda_code_entropy(struct backend *be, const struct tensor *z, const struct tensor *e, float temperature,
                             float weight, struct tensor *average, struct tensor *loss)
{
    struct entropy k;
    TRY(start(be, z, e, temperature, &k));
    cudaStream_t stream = cuda_of(be)->stream;
    CUDA_TRY(be, cudaMemsetAsync(average->data, 0, (size_t)k.V * sizeof(float), stream));
    for (int64_t from = 0; from < k.M; from += k.most) {
        int64_t rows = min64(k.most, k.M - from);
        TRY(score(be, &k, z, e, from, rows));
        probabilities<<<(unsigned)rows, THREADS, 0, stream>>>(k, from);
        TRY(cuda_sum_rows(be, k.scores, 1, rows, k.V, k.V, f32(average), 0));
    }
    finish<<<1, THREADS, 0, stream>>>(k, weight, f32(average), f32(loss));
    return cuda_launched(be, "code_entropy");
}

static __global__ void find_q(struct entropy k, const float *average)
{
    int64_t j = blockIdx.x * (int64_t)THREADS + threadIdx.x;
    if (j < k.V) k.q[j] = logf(average[j] + AVERAGE_EPS) + average[j] / (average[j] + AVERAGE_EPS);
}

/* Scores to their gradients times the scale; a block has a row. */
static __global__ void __launch_bounds__(THREADS) score_gradients(struct entropy k, float weight, const float *dloss)
{
    __shared__ float top_room[WARP];
    __shared__ double room[WARP];
    float *row = k.scores + blockIdx.x * k.V, sum = 0, q_top = -INFINITY;
    const struct level level = row_level(row, k.V, k.scale, top_room, room);
    for (int64_t j = threadIdx.x; j < k.V; j += THREADS)
        if (row[j] == level.top) q_top = fmaxf(q_top, k.q[j]);
    q_top = block_max(q_top, top_room);
    const float up = weight * dloss[0] * k.scale / (float)k.M;
    auto bracket = [&](int64_t j) { return (k.q[j] - q_top) - k.scale * (row[j] - level.top); };
    for (int64_t j = threadIdx.x; j < k.V; j += THREADS) sum += expf(level.ln(row[j])) * bracket(j);
    const float mean = (float)block_sum_double((double)sum, room);
    for (int64_t j = threadIdx.x; j < k.V; j += THREADS) row[j] = up * expf(level.ln(row[j])) * (bracket(j) - mean);
}

aim_status cuda_code_entropy_backward(struct backend *be, const struct tensor *z, const struct tensor *e, float temperature,
                                      float weight, const struct tensor *average, const struct tensor *dloss, struct tensor *dz,
                                      struct tensor *de)
{
    struct entropy k;
    TRY(start(be, z, e, temperature, &k));
    cudaStream_t stream = cuda_of(be)->stream;
    find_q<<<(unsigned)divide_up(k.V, THREADS), THREADS, 0, stream>>>(k, f32(average));
    for (int64_t from = 0; from < k.M; from += k.most) {
        int64_t rows = min64(k.most, k.M - from), at = from * k.D;
        TRY(score(be, &k, z, e, from, rows));
        score_gradients<<<(unsigned)rows, THREADS, 0, stream>>>(k, weight, f32(dloss));
        struct cuda_operand ds = {k.scores, k.V, 0, false}, turned = {k.scores, k.V, 0, true};
        struct cuda_operand codes = {f32(e), k.D, 0, false}, latents = {f32(z) + at, k.D, 0, false};
        struct cuda_product to_z = {T_F32, T_F32, rows, k.D, k.V, 1, ds, codes, dz ? f32(dz) + at : NULL, k.D, 0, true};
        struct cuda_product to_e = {T_F32, T_F32, k.V, k.D, rows, 1, turned, latents, de ? f32(de) : NULL, k.D, 0, true};
        if (dz) TRY(cuda_multiply(be, &to_z));
        if (de) TRY(cuda_multiply(be, &to_e));
    }
    return cuda_launched(be, "code_entropy_backward");
}
