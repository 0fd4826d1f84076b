/* Dense products by panels: linear (packs as it goes) and its backward, pack, linear_packed. */
#include "cpu/kernels/kernels.h"

#include <string.h>

#include "cpu/bf16.h"
#include "cpu/kernels/gemm.h"
#include "cpu/kernels/gemm_general.h"
#include "cpu/kernels/q8.h"

/* y[0..rows)[n0..n0+live) = acc + bias */
static void store_block(gemm_acc acc, int64_t rows, int64_t n0, int64_t live, const float *bias, float *y, int64_t ldy)
{
    for (int64_t r = 0; r < rows; r++) {
        float *out = y + r * ldy + n0;
        for (int64_t j = 0; j < live; j++) out[j] = acc[r][j] + (bias ? bias[n0 + j] : 0.0f);
    }
}

static void panel_product(bool bf16, const struct tensor *x, const void *panel, int64_t n0, int64_t N, const float *bias,
                          struct tensor *y)
{
    int64_t M = tensor_rows(x), K = tensor_cols(x), live = N - n0 < PANEL ? N - n0 : PANEL;
    gemm_acc acc;
    for (int64_t m = 0; m < M; m += GEMM_ROW_BLOCK) {
        int64_t rows = M - m < GEMM_ROW_BLOCK ? M - m : GEMM_ROW_BLOCK;
        memset(acc, 0, (size_t)rows * sizeof acc[0]);
        gemm_panel(bf16, rows, K, f32(x) + m * K, K, panel, acc);
        store_block(acc, rows, n0, live, bias, f32(y) + m * N, N);
    }
}

aim_status KERNEL(linear)(struct backend *be, const struct tensor *x, const struct tensor *w, const struct tensor *bias,
                          struct tensor *y)
{
    int64_t N = w->shape[0], K = tensor_cols(x), panels = (N + PANEL - 1) / PANEL;
    if (be->bf16 && w->type == T_F32)
        return bf16_product(be, tensor_rows(x), N, K, (struct bf16_operand){f32(x), K, 1}, (struct bf16_operand){f32(w), K, 1},
                            bias ? f32(bias) : NULL, false, f32(y));
    size_t panel_floats = (size_t)K * PANEL;
    float *scratch = mem_array(be->ctx, (size_t)be->threads * panel_floats, sizeof(float), MEM_ACTIVATIONS);
    if (!scratch) return AIM_ERR_MEMORY;
#pragma omp parallel num_threads(be->threads)
    {
        float *panel = scratch + (size_t)omp_get_thread_num() * panel_floats;
#pragma omp for schedule(static)
        for (int64_t p = 0; p < panels; p++) {
            gemm_pack_panel(w, N, K, p * PANEL, false, panel);
            panel_product(false, x, panel, p * PANEL, N, bias ? f32(bias) : NULL, y);
        }
    }
    mem_free(scratch);
    return AIM_OK;
}

aim_status KERNEL(pack)(struct backend *be, const struct tensor *w, struct tensor *packed)
{
    int64_t N = w->shape[0], K = w->shape[1], panels = (N + PANEL - 1) / PANEL;
    bool bf16 = packed->type == T_BF16_PACKED;
    bool q8 = packed->type == T_Q8_PACKED;
    size_t panel_bytes = q8 ? q8_panel_bytes(K) : (size_t)K * PANEL * tensor_type_size(packed->type);
#pragma omp parallel for num_threads(be->threads) schedule(static)
    for (int64_t p = 0; p < panels; p++) {
        void *panel = (char *)packed->data + (size_t)p * panel_bytes;
        if (q8)
            KERNEL(q8_pack_panel)(w, p * PANEL, panel);
        else
            gemm_pack_panel(w, N, K, p * PANEL, bf16, panel);
    }
    return AIM_OK;
}

aim_status KERNEL(linear_packed)(struct backend *be, const struct tensor *x, const struct tensor *w, struct tensor *y)
{
    if (w->type == T_Q8_PACKED) return KERNEL(q8_product)(be, x, w, y);
    int64_t N = w->shape[0], K = w->shape[1], panels = (N + PANEL - 1) / PANEL;
    bool bf16 = w->type == T_BF16_PACKED;
    size_t panel_bytes = (size_t)K * PANEL * tensor_type_size(w->type);
    int64_t chunk = panels / (8 * be->threads) + 1; /* cores do not get equal shares of the memory: deal out as they come */
#pragma omp parallel for num_threads(be->threads) schedule(dynamic, chunk)
    for (int64_t p = 0; p < panels; p++)
        panel_product(bf16, x, (const char *)w->data + (size_t)p * panel_bytes, p * PANEL, N, NULL, y);
    return AIM_OK;
}

/* dbias += Σ_m dy: a thread owns columns */
static void bias_backward(const struct backend *be, const struct tensor *dy, float *dbias)
{
    enum { COLUMNS = 64 };
    int64_t M = tensor_rows(dy), N = tensor_cols(dy);
#pragma omp parallel for num_threads(be->threads) schedule(static) if (M * N > 65536)
    for (int64_t first = 0; first < N; first += COLUMNS) {
        int64_t live = N - first < COLUMNS ? N - first : COLUMNS;
        double sums[COLUMNS] = {0};
        for (int64_t m = 0; m < M; m++)
            for (int64_t i = 0; i < live; i++) sums[i] += (double)f32(dy)[m * N + first + i];
        for (int64_t i = 0; i < live; i++) dbias[first + i] += (float)sums[i];
    }
}

/* The same products of bf16: dx beside its place, so that nothing has been added when memory runs out for dw. */
static aim_status bf16_backward(struct backend *be, const struct tensor *x, const struct tensor *w, const struct tensor *dy,
                                struct tensor *dx, struct tensor *dw)
{
    int64_t M = tensor_rows(x), K = tensor_cols(x), N = w->shape[0];
    float *apart = dx && dw ? mem_array(be->ctx, (size_t)(M * K), sizeof(float), MEM_ACTIVATIONS) : NULL;
    if (dx && dw && !apart) return AIM_ERR_MEMORY;
    aim_status status = AIM_OK;
    if (dx)
        status = bf16_product(be, M, K, N, (struct bf16_operand){f32(dy), N, 1}, (struct bf16_operand){f32(w), 1, K}, NULL,
                              !apart, apart ? apart : f32(dx));
    if (status == AIM_OK && dw)
        status = bf16_product(be, N, K, M, (struct bf16_operand){f32(dy), 1, N}, (struct bf16_operand){f32(x), 1, K}, NULL,
                              true, f32(dw));
    if (status == AIM_OK && apart) {
        struct tensor sum = tensor_view(T_F32, apart, M, K, 0, 0);
        status = be->op.accumulate(be, &sum, dx);
    }
    mem_free(apart);
    return status;
}

static aim_status products_backward(struct backend *be, const struct tensor *x, const struct tensor *w, const struct tensor *dy,
                                    struct tensor *dx, struct tensor *dw)
{
    int64_t M = tensor_rows(x), K = tensor_cols(x), N = w->shape[0];
    float *scratch = KERNEL(gemm_scratch)(be, M > N ? M : N); /* before anything is added: a failure must leave no trace */
    if (!scratch) return AIM_ERR_MEMORY;
    if (dx) {
        struct gemm_matrix A = {f32(dy), M, N, N, 1}, B = {f32(w), N, K, K, 1};
        KERNEL(gemm_add_using)(be, scratch, A, B, f32(dx), K);
    }
    if (dw) {
        struct gemm_matrix A = {f32(dy), N, M, 1, N}, B = {f32(x), M, K, K, 1};
        KERNEL(gemm_add_using)(be, scratch, A, B, f32(dw), K);
    }
    mem_free(scratch);
    return AIM_OK;
}

/* dx += dy w; dw += dyᵀ x; dbias += Σ_m dy */
aim_status KERNEL(linear_backward)(struct backend *be, const struct tensor *x, const struct tensor *w, const struct tensor *dy,
                                   struct tensor *dx, struct tensor *dw, struct tensor *dbias)
{
    if (dx || dw) TRY(be->bf16 ? bf16_backward(be, x, w, dy, dx, dw) : products_backward(be, x, w, dy, dx, dw));
    if (dbias) bias_backward(be, dy, f32(dbias));
    return AIM_OK;
}
