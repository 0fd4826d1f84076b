/* C += A B for any strides, by panels: what the plain backward products use. */
#include "cpu/kernels/gemm_general.h"

/* Line k of a panel of B: columns n0 .. n0+live. */
static void pack_lines(const struct gemm_matrix *B, int64_t n0, int64_t live, float *panel)
{
    for (int64_t k = 0; k < B->rows; k++)
        for (int64_t j = 0; j < PANEL; j++)
            panel[k * PANEL + j] = j < live ? B->data[k * B->row_stride + (n0 + j) * B->col_stride] : 0.0f;
}

/* One panel of B and one block of rows of A. */
static size_t floats_per_thread(int64_t K)
{
    return (size_t)(K * PANEL + GEMM_ROW_BLOCK * K);
}

float *KERNEL(gemm_scratch)(struct backend *be, int64_t K)
{
    return mem_array(be->ctx, (size_t)be->threads * floats_per_thread(K), sizeof(float), MEM_ACTIVATIONS);
}

void KERNEL(gemm_add_using)(struct backend *be, float *scratch, struct gemm_matrix A, struct gemm_matrix B, float *C,
                            int64_t ldc)
{
    int64_t M = A.rows, K = A.cols, N = B.cols, panels = (N + PANEL - 1) / PANEL;
    size_t per_thread = floats_per_thread(K);
#pragma omp parallel num_threads(be->threads)
    {
        float *panel = scratch + (size_t)omp_get_thread_num() * per_thread, *rows = panel + K * PANEL;
        gemm_acc acc;
#pragma omp for schedule(static)
        for (int64_t p = 0; p < panels; p++) {
            int64_t n0 = p * PANEL, live = N - n0 < PANEL ? N - n0 : PANEL;
            pack_lines(&B, n0, live, panel);
            for (int64_t m = 0; m < M; m += GEMM_ROW_BLOCK) {
                int64_t count = M - m < GEMM_ROW_BLOCK ? M - m : GEMM_ROW_BLOCK, lda = A.row_stride;
                const float *a = A.data + m * A.row_stride;
                if (A.col_stride != 1) { /* the panel product wants rows in one piece */
                    for (int64_t r = 0; r < count; r++)
                        for (int64_t k = 0; k < K; k++) rows[r * K + k] = a[r * A.row_stride + k * A.col_stride];
                    a = rows;
                    lda = K;
                }
                memset(acc, 0, (size_t)count * sizeof acc[0]);
                gemm_panel(false, count, K, a, lda, panel, acc);
                for (int64_t r = 0; r < count; r++)
                    for (int64_t j = 0; j < live; j++) C[(m + r) * ldc + n0 + j] += acc[r][j];
            }
        }
    }
}

aim_status KERNEL(gemm_add)(struct backend *be, struct gemm_matrix A, struct gemm_matrix B, float *C, int64_t ldc)
{
    float *scratch = KERNEL(gemm_scratch)(be, A.cols);
    if (!scratch) return AIM_ERR_MEMORY;
    KERNEL(gemm_add_using)(be, scratch, A, B, C, ldc);
    mem_free(scratch);
    return AIM_OK;
}
