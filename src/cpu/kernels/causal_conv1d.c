/* The mixer's causal depthwise convolution with SiLU over whole sequences, forward and backward. */
#include "cpu/kernels/kernels.h"

#include <math.h>

#include "cpu/kernels/ssm.h"

/* The rows that reach position t: t-3 .. t of x (rows W apart), NULL before the start. */
static void conv_inputs(const float *x, int64_t W, int64_t t, const float *in[CONV_WIDTH])
{
    for (int i = 0; i < CONV_WIDTH; i++) in[i] = t + i >= CONV_WIDTH - 1 ? x + (t + i - CONV_WIDTH + 1) * W : NULL;
}

aim_status KERNEL(causal_conv1d_silu)(struct backend *be, const struct tensor *zxbcdt, const struct tensor *w,
                                      const struct tensor *bias, struct tensor *y)
{
    int64_t B = y->shape[0], T = y->shape[1], C = y->shape[2], W = tensor_cols(zxbcdt), E = inner_width(W, C);
    int64_t blocks = (C + CONV_BLOCK - 1) / CONV_BLOCK;
#pragma omp parallel for num_threads(be->threads) schedule(static) collapse(2)
    for (int64_t b = 0; b < B; b++)
        for (int64_t k = 0; k < blocks; k++) {
            struct conv_taps taps;
            conv_taps_load(&taps, f32(w), f32(bias), k * CONV_BLOCK, C);
            const float *x = f32(zxbcdt) + b * T * W + E + k * CONV_BLOCK;
            for (int64_t t = 0; t < T; t++) {
                const float *in[CONV_WIDTH];
                conv_inputs(x, W, t, in);
                conv_taps_apply(&taps, in, f32(y) + (b * T + t) * C + k * CONV_BLOCK);
            }
        }
    return AIM_OK;
}

/*
 * With the pre-activation a[t] = bias + Σ_k w[k] x[t-3+k] and da = dy silu'(a) (spec C2):
 * dx[t-3+k] += w[k] da[t]; dw[k] += Σ da[t] x[t-3+k]; dbias += Σ da. A thread owns channels, over all pictures.
 */
aim_status KERNEL(causal_conv1d_silu_backward)(struct backend *be, const struct tensor *zxbcdt, const struct tensor *w,
                                               const struct tensor *bias, const struct tensor *dy, struct tensor *dzxbcdt,
                                               struct tensor *dw, struct tensor *dbias)
{
    int64_t B = dy->shape[0], T = dy->shape[1], C = dy->shape[2], W = tensor_cols(zxbcdt), E = inner_width(W, C);
#pragma omp parallel for num_threads(be->threads) schedule(static)
    for (int64_t first = 0; first < C; first += CONV_BLOCK) {
        struct conv_taps taps, sums = {0};
        conv_taps_load(&taps, f32(w), f32(bias), first, C);
        for (int64_t row = 0; row < B * T; row++) {
            int64_t b = row / T, t = row % T;
            const float *x = f32(zxbcdt) + b * T * W + E + first, *in[CONV_WIDTH], *up = f32(dy) + row * C + first;
            conv_inputs(x, W, t, in);
            for (int64_t i = 0; i < taps.count; i += VLEN) {
                int64_t n = taps.count - i < VLEN ? taps.count - i : VLEN;
                vf sum = vload(taps.bias + i), value[CONV_WIDTH];
                for (int k = 0; k < CONV_WIDTH; k++) {
                    value[k] = in[k] ? vload_part(in[k] + i, n) : (vf){0};
                    sum += vload(taps.tap[k] + i) * value[k];
                }
                vf da = vload_part(up + i, n) * vsilu_slope(sum);
                vstore(sums.bias + i, vload(sums.bias + i) + da);
                for (int k = 0; k < CONV_WIDTH; k++) {
                    vstore(sums.tap[k] + i, vload(sums.tap[k] + i) + da * value[k]);
                    if (!in[k] || !dzxbcdt) continue;
                    float *dx = f32(dzxbcdt) + (in[k] - f32(zxbcdt)) + i;
                    vstore_part(dx, vload_part(dx, n) + da * vload(taps.tap[k] + i), n);
                }
            }
        }
        for (int64_t i = 0; i < taps.count; i++) {
            for (int k = 0; dw && k < CONV_WIDTH; k++) f32(dw)[(first + i) * CONV_WIDTH + k] += sums.tap[k][i];
            if (dbias) f32(dbias)[first + i] += sums.bias[i];
        }
    }
    return AIM_OK;
}
