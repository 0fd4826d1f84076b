/* Convolution as a matrix product over gathered patches. */
#include "cpu/kernels/kernels.h"

#include "cpu/kernels/conv.h"
#include "cpu/kernels/gemm.h"

enum { CONV_ROWS = 48 }; /* output pixels gathered at a time */
_Static_assert((int)CONV_ROWS <= (int)GEMM_ROW_BLOCK, "a patch block must fit the accumulators");

/* The patch of output pixel (oy, ox): k*k*I values in (ky, kx, channel) order. */
static void gather_patch(const struct tensor *x, int64_t n, int64_t oy, int64_t ox, int64_t k, const struct conv2d *how,
                         float *patch)
{
    int64_t H = x->shape[1], W = x->shape[2], C = x->shape[3], shift = how->upsample;
    for (int64_t ky = 0; ky < k; ky++)
        for (int64_t kx = 0; kx < k; kx++, patch += C) {
            int64_t iy = oy * how->stride + ky - how->pad_before, ix = ox * how->stride + kx - how->pad_before;
            if (iy < 0 || ix < 0 || iy >= H << shift || ix >= W << shift)
                memset(patch, 0, (size_t)C * sizeof(float));
            else
                memcpy(patch, f32(x) + ((n * H + (iy >> shift)) * W + (ix >> shift)) * C, (size_t)C * sizeof(float));
        }
}

/* w (O,I,k,k) to panels whose lines are in patch order. */
static void pack_filters(const struct tensor *w, int64_t n0, float *panel)
{
    int64_t O = w->shape[0], I = w->shape[1], area = w->shape[2] * w->shape[3];
    for (int64_t a = 0; a < area; a++)
        for (int64_t i = 0; i < I; i++, panel += PANEL)
            for (int64_t j = 0; j < PANEL; j++) panel[j] = n0 + j < O ? f32(w)[((n0 + j) * I + i) * area + a] : 0.0f;
}

aim_status KERNEL(patches_conv2d)(struct backend *be, const struct tensor *x, const struct tensor *w, const struct tensor *bias,
                                  const struct conv2d *how, struct tensor *y)
{
    int64_t I = x->shape[3], k = w->shape[2], O = y->shape[3], K = k * k * I, OH = y->shape[1], OW = y->shape[2];
    int64_t M = y->shape[0] * OH * OW, panels = (O + PANEL - 1) / PANEL;
    float *packed = mem_array(be->ctx, (size_t)(panels * PANEL * K), sizeof(float), MEM_ACTIVATIONS);
    float *patches = mem_array(be->ctx, (size_t)(be->threads * CONV_ROWS * K), sizeof(float), MEM_ACTIVATIONS);
    if (!packed || !patches) {
        mem_free(packed);
        mem_free(patches);
        return AIM_ERR_MEMORY;
    }
#pragma omp parallel num_threads(be->threads)
    {
        float *patch = patches + (int64_t)omp_get_thread_num() * CONV_ROWS * K;
        gemm_acc acc;
#pragma omp for schedule(static)
        for (int64_t p = 0; p < panels; p++) pack_filters(w, p * PANEL, packed + p * PANEL * K);
#pragma omp for schedule(static)
        for (int64_t m = 0; m < M; m += CONV_ROWS) {
            int64_t rows = M - m < CONV_ROWS ? M - m : CONV_ROWS;
            for (int64_t r = 0; r < rows; r++)
                gather_patch(x, (m + r) / (OH * OW), (m + r) / OW % OH, (m + r) % OW, k, how, patch + r * K);
            for (int64_t p = 0; p < panels; p++) {
                int64_t live = O - p * PANEL < PANEL ? O - p * PANEL : PANEL;
                memset(acc, 0, (size_t)rows * sizeof acc[0]);
                gemm_panel(false, rows, K, patch, K, packed + p * PANEL * K, acc);
                for (int64_t r = 0; r < rows; r++)
                    for (int64_t j = 0; j < live; j++)
                        f32(y)[(m + r) * O + p * PANEL + j] = acc[r][j] + (bias ? f32(bias)[p * PANEL + j] : 0.0f);
            }
        }
    }
    mem_free(packed);
    mem_free(patches);
    return AIM_OK;
}

aim_status KERNEL(conv2d)(struct backend *be, const struct tensor *x, const struct tensor *w, const struct tensor *bias,
                          const struct conv2d *how, struct tensor *y)
{
#if VLEN >= 8
    if (winograd_pays(w, how, y)) return KERNEL(winograd_conv2d)(be, x, w, bias, how, y);
    if (narrow_pays(w, how)) return KERNEL(narrow_conv2d)(be, x, w, bias, how, y);
#endif
    return KERNEL(patches_conv2d)(be, x, w, bias, how, y);
}
