/* The quantiser: the nearest code, and the gradient of unit rows. */
#include "cpu/kernels/kernels.h"

#include <math.h>

/*
 * Both sides have unit rows, so the nearest code is the one with the largest product; the first one wins ties, which asks
 * for the same arithmetic for every code. et (D, width) is the codebook transposed, its last vector filled up with NaN,
 * which is never larger than anything; best and at hold one candidate per lane, whose codes rise with time.
 */
static int32_t nearest(const float *z, const float *et, int64_t width, int64_t D)
{
    vf best = vset(-INFINITY);
    vi at = {0}, lane;
    for (int i = 0; i < VLEN; i++) lane[i] = i;
    for (int64_t j = 0; j < width; j += VLEN) {
        vf product = {0};
        for (int64_t k = 0; k < D; k++) product += z[k] * vload(et + k * width + j);
        vi better = product > best;
        best = vselect(better, product, best);
        at = (at & ~better) | ((lane + (int32_t)j) & better);
    }
    float top = -INFINITY;
    int32_t winner = 0;
    for (int i = 0; i < VLEN; i++)
        if (best[i] > top || (best[i] == top && at[i] < winner)) {
            top = best[i];
            winner = at[i];
        }
    return winner;
}

aim_status KERNEL(nearest_code)(struct backend *be, const struct tensor *z, const struct tensor *e, struct tensor *ids)
{
    int64_t M = tensor_rows(z), D = tensor_cols(z), V = e->shape[0], width = (V + VLEN - 1) / VLEN * VLEN;
    float *et = mem_array(be->ctx, (size_t)(width * D), sizeof(float), MEM_ACTIVATIONS);
    if (!et) return AIM_ERR_MEMORY;
#pragma omp parallel num_threads(be->threads)
    {
#pragma omp for schedule(static)
        for (int64_t j = 0; j < width; j++)
            for (int64_t k = 0; k < D; k++) et[k * width + j] = j < V ? f32(e)[j * D + k] : NAN;
#pragma omp for schedule(static)
        for (int64_t m = 0; m < M; m++) i32(ids)[m] = nearest(f32(z) + m * D, et, width, D);
    }
    mem_free(et);
    return AIM_OK;
}

/* y = x/n with n = max(‖x‖, 1e-12); dx = (dy - y (y·dy)) / n, and dy / n where n is that constant */
aim_status KERNEL(normalize_rows_backward)(struct backend *be, const struct tensor *x, const struct tensor *dy,
                                           struct tensor *dx)
{
    int64_t M = tensor_rows(x), D = tensor_cols(x);
    if (!dx) return AIM_OK;
#pragma omp parallel for num_threads(be->threads) schedule(static) if (M > 1024)
    for (int64_t m = 0; m < M; m++) {
        const float *in = f32(x) + m * D, *g = f32(dy) + m * D;
        float *out = f32(dx) + m * D;
        double squares = 0, along = 0;
        for (int64_t i = 0; i < D; i++) {
            squares += (double)in[i] * (double)in[i];
            along += (double)in[i] * (double)g[i];
        }
        double norm = sqrt(squares), scale = 1 / (norm > 1e-12 ? norm : 1e-12);
        double part = norm > 1e-12 ? along / squares : 0;
        for (int64_t i = 0; i < D; i++) out[i] += (float)(scale * ((double)g[i] - part * (double)in[i]));
    }
    return AIM_OK;
}
