/* Attention of one head over the positions of a picture, and its gradient. */
#include <math.h>

#include "cpu/kernels/gemm_general.h"
#include "cpu/kernels/kernels.h"

aim_status KERNEL(attention)(struct backend *be, const struct tensor *q, const struct tensor *k, const struct tensor *v,
                             struct tensor *y)
{
    int64_t N = q->shape[0], L = q->shape[1], C = q->shape[2];
    float scale = 1.0f / sqrtf((float)C);
    float *weights = mem_array(be->ctx, (size_t)be->threads * (size_t)L, sizeof(float), MEM_ACTIVATIONS);
    if (!weights) return AIM_ERR_MEMORY;
#pragma omp parallel for num_threads(be->threads) schedule(static) collapse(2)
    for (int64_t n = 0; n < N; n++)
        for (int64_t i = 0; i < L; i++) {
            float *w = weights + (int64_t)omp_get_thread_num() * L, top = -INFINITY, sum = 0;
            const float *qi = f32(q) + (n * L + i) * C;
            for (int64_t j = 0; j < L; j++) {
                const float *kj = f32(k) + (n * L + j) * C;
                vf product = {0};
                float rest = 0;
                int64_t c = 0;
                for (; c + VLEN <= C; c += VLEN) product += vload(qi + c) * vload(kj + c);
                for (; c < C; c++) rest += qi[c] * kj[c];
                w[j] = scale * (vsum(product) + rest);
                top = w[j] > top ? w[j] : top;
            }
            for (int64_t j = 0; j < L; j++) {
                w[j] = expf(w[j] - top);
                sum += w[j];
            }
            float *out = f32(y) + (n * L + i) * C;
            memset(out, 0, (size_t)C * sizeof(float));
            for (int64_t j = 0; j < L; j++) {
                float share = w[j] / sum;
                const float *vj = f32(v) + (n * L + j) * C;
                for (int64_t c = 0; c < C; c++) out[c] += share * vj[c];
            }
        }
    mem_free(weights);
    return AIM_OK;
}

/* One row of n products to its softmax, the products scaled first. */
static void softmax(float *row, int64_t n, float scale)
{
    float top = -INFINITY, sum = 0;
    for (int64_t i = 0; i < n; i++) top = row[i] > top ? row[i] : top;
    for (int64_t i = 0; i < n; i += VLEN) {
        int64_t count = n - i < VLEN ? n - i : VLEN;
        vf e = vexp((vload_part(row + i, count) - top) * scale);
        for (int64_t j = 0; j < count; j++) sum += e[j];
        vstore_part(row + i, e, count);
    }
    for (int64_t i = 0; i < n; i++) row[i] /= sum;
}

/* A (rows, cols) matrix, and the same memory read as (cols, rows). */
static struct gemm_matrix as_is(const float *data, int64_t rows, int64_t cols)
{
    return (struct gemm_matrix){.data = data, .rows = rows, .cols = cols, .row_stride = cols, .col_stride = 1};
}

static struct gemm_matrix turned(const float *data, int64_t rows, int64_t cols)
{
    return (struct gemm_matrix){.data = data, .rows = cols, .cols = rows, .row_stride = 1, .col_stride = cols};
}

/*
 * With P = softmax(s q kᵀ), s = 1/√C, and y = P v:
 *
 *     dv = Pᵀ dy,   dP = dy vᵀ,   dS = s P ⊙ (dP - Σ_j P ⊙ dP),   dq = dS k,   dk = dSᵀ q
 *
 * P (L,L) is computed again instead of kept.
 */
struct picture {
    int64_t L, C;
    const float *q, *k, *v, *dy;
    float *dq, *dk, *dv;
};

static void picture_backward(struct backend *be, const struct picture *a, float *P, float *dP, float *scratch)
{
    int64_t L = a->L, C = a->C;
    const float scale = 1.0f / sqrtf((float)C);
    memset(P, 0, (size_t)(L * L) * sizeof(float));
    memset(dP, 0, (size_t)(L * L) * sizeof(float));
    KERNEL(gemm_add_using)(be, scratch, as_is(a->q, L, C), turned(a->k, L, C), P, L);
    KERNEL(gemm_add_using)(be, scratch, as_is(a->dy, L, C), turned(a->v, L, C), dP, L);
#pragma omp parallel for num_threads(be->threads) schedule(static)
    for (int64_t i = 0; i < L; i++) {
        float *p = P + i * L, *dp = dP + i * L;
        double mean = 0;
        softmax(p, L, scale);
        for (int64_t j = 0; j < L; j++) mean += (double)(p[j] * dp[j]);
        for (int64_t j = 0; j < L; j++) dp[j] = scale * p[j] * (dp[j] - (float)mean);
    }
    if (a->dv) KERNEL(gemm_add_using)(be, scratch, turned(P, L, L), as_is(a->dy, L, C), a->dv, C);
    if (a->dq) KERNEL(gemm_add_using)(be, scratch, as_is(dP, L, L), as_is(a->k, L, C), a->dq, C);
    if (a->dk) KERNEL(gemm_add_using)(be, scratch, turned(dP, L, L), as_is(a->q, L, C), a->dk, C);
}

aim_status KERNEL(attention_backward)(struct backend *be, const struct tensor *q, const struct tensor *k,
                                      const struct tensor *v, const struct tensor *dy, struct tensor *dq, struct tensor *dk,
                                      struct tensor *dv)
{
    int64_t L = q->shape[1], C = q->shape[2];
    float *P = mem_array(be->ctx, (size_t)(2 * L * L), sizeof(float), MEM_ACTIVATIONS);
    float *scratch = KERNEL(gemm_scratch)(be, L > C ? L : C);
    aim_status status = P && scratch ? AIM_OK : AIM_ERR_MEMORY;
    for (int64_t at = 0; at < tensor_count(q) && status == AIM_OK; at += L * C) {
        struct picture a = {L, C, f32(q) + at, f32(k) + at, f32(v) + at, f32(dy) + at, NULL, NULL, NULL};
        if (dq) a.dq = f32(dq) + at;
        if (dk) a.dk = f32(dk) + at;
        if (dv) a.dv = f32(dv) + at;
        picture_backward(be, &a, P, P + L * L, scratch);
    }
    mem_free(P);
    mem_free(scratch);
    return status;
}
