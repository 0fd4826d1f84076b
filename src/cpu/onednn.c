/*
 * Dense products through oneDNN, for its C API of versions 2 and 3.
 *
 * linear and attention cut their work into blocks whose sizes do not depend on the number of threads and give each to
 * one single-threaded product: the threads are ours, and the results the same however many there are.
 */
#include "cpu/cpu.h"

#include <math.h>
#include <omp.h>
#include <oneapi/dnnl/dnnl.h>
#include <stdio.h>

#include "cpu/kernels/simd.h"

enum {
    LINEAR_ROWS = 256, /* of x and y in one product */
    LINEAR_COLS = 128, /* of y: rows of w */
    ATTENTION_ROWS = 64,
};

static int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static aim_status check(aim_context *ctx, dnnl_status_t status, const char *what)
{
    if (status == dnnl_success) return AIM_OK;
    if (status == dnnl_out_of_memory) return aim_fail(ctx, AIM_ERR_MEMORY, "out of memory in oneDNN (%s)", what);
    return aim_fail(ctx, AIM_ERR_INTERNAL, "oneDNN failed with status %d (%s)", (int)status, what);
}

/* Keeps the first failure of several threads. */
static void note(dnnl_status_t status, int *worst)
{
    if (status != dnnl_success) __atomic_store_n(worst, (int)status, __ATOMIC_RELAXED);
}

/* ---------------------------------------------------------------------------------------------- linear */

static void expand_bf16(const uint16_t *from, int64_t n, float *to)
{
    for (int64_t i = 0; i < n; i++) to[i] = bf16_to_f32(from[i]);
}

static aim_status onednn_linear(struct backend *be, const struct tensor *x, const struct tensor *w, const struct tensor *bias,
                                struct tensor *y)
{
    int64_t N = w->shape[0], K = tensor_cols(x), M = tensor_rows(x);
    int64_t row_blocks = (M + LINEAR_ROWS - 1) / LINEAR_ROWS, col_blocks = (N + LINEAR_COLS - 1) / LINEAR_COLS;
    bool bf16 = w->type == T_BF16;
    float *scratch = NULL; /* a block of w for each thread */
    if (bf16) {
        scratch = mem_array(be->ctx, (size_t)(be->threads * LINEAR_COLS * K), sizeof(float), MEM_ACTIVATIONS);
        if (!scratch) return AIM_ERR_MEMORY;
    }
    int failed = dnnl_success;
#pragma omp parallel num_threads(be->threads)
    {
        omp_set_num_threads(1); /* for this region: the library must not start a team of its own */
#pragma omp for schedule(static)
        for (int64_t block = 0; block < row_blocks * col_blocks; block++) {
            int64_t n0 = block / row_blocks * LINEAR_COLS, m0 = block % row_blocks * LINEAR_ROWS;
            int64_t n = min64(N - n0, LINEAR_COLS), m = min64(M - m0, LINEAR_ROWS);
            float *out = f32(y) + m0 * N + n0;
            const float *filters = f32(w) + n0 * K;
            if (bf16) {
                float *expanded = scratch + omp_get_thread_num() * LINEAR_COLS * K;
                expand_bf16((const uint16_t *)w->data + n0 * K, n * K, expanded);
                filters = expanded;
            }
            for (int64_t i = 0; bias && i < m; i++) memcpy(out + i * N, f32(bias) + n0, (size_t)n * sizeof(float));
            note(dnnl_sgemm('N', 'T', m, n, K, 1.0f, f32(x) + m0 * K, K, filters, K, bias ? 1.0f : 0.0f, out, N), &failed);
        }
    }
    mem_free(scratch);
    return check(be->ctx, (dnnl_status_t)failed, "product");
}

/* ------------------------------------------------------------------------------------------- attention */

/* One row of n scores to its softmax. */
static void softmax(float *row, int64_t n)
{
    float top = -INFINITY, sum = 0;
    for (int64_t i = 0; i < n; i++) top = row[i] > top ? row[i] : top;
    for (int64_t i = 0; i < n; i += VLEN) {
        int64_t count = min64(n - i, VLEN);
        vf e = vexp(vload_part(row + i, count) - top);
        for (int64_t j = 0; j < count; j++) sum += e[j];
        vstore_part(row + i, e, count);
    }
    for (int64_t i = 0; i < n; i++) row[i] /= sum;
}

static aim_status onednn_attention(struct backend *be, const struct tensor *q, const struct tensor *k, const struct tensor *v,
                                   struct tensor *y)
{
    int64_t N = q->shape[0], L = q->shape[1], C = q->shape[2], blocks = (L + ATTENTION_ROWS - 1) / ATTENTION_ROWS;
    float scale = 1.0f / sqrtf((float)C);
    float *scores = mem_array(be->ctx, (size_t)(be->threads * ATTENTION_ROWS * L), sizeof(float), MEM_ACTIVATIONS);
    if (!scores) return AIM_ERR_MEMORY;
    int failed = dnnl_success;
#pragma omp parallel num_threads(be->threads)
    {
        omp_set_num_threads(1);
        float *s = scores + omp_get_thread_num() * ATTENTION_ROWS * L;
#pragma omp for schedule(static)
        for (int64_t block = 0; block < N * blocks; block++) {
            int64_t n = block / blocks, first = block % blocks * ATTENTION_ROWS, rows = min64(L - first, ATTENTION_ROWS);
            int64_t at = (n * L + first) * C;
            note(dnnl_sgemm('N', 'T', rows, L, C, scale, f32(q) + at, C, f32(k) + n * L * C, C, 0.0f, s, L), &failed);
            for (int64_t i = 0; i < rows; i++) softmax(s + i * L, L);
            note(dnnl_sgemm('N', 'N', rows, C, L, 1.0f, s, L, f32(v) + n * L * C, C, 0.0f, f32(y) + at, C), &failed);
        }
    }
    mem_free(scores);
    return check(be->ctx, (dnnl_status_t)failed, "attention");
}

/* ------------------------------------------------------------------------------------------------------ */

aim_status onednn_attach(struct backend *be, char *name, size_t size)
{
    const dnnl_version_t *version = dnnl_version();
    snprintf(name, size, "oneDNN %d.%d.%d", version->major, version->minor, version->patch);
    be->op.linear = onednn_linear;
    be->op.attention = onednn_attention;
    return AIM_OK;
}
