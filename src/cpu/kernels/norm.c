/* Normalisations of rows: RMS with residual and modulation, gated RMS, unit length. */
#include "cpu/kernels/kernels.h"

#include <math.h>

/* Up to this many values one thread does the work: starting the others takes longer. */
enum { SMALL_NORM = 32768 };

/* Σ x² of n values */
static float sum_squares(const float *x, int64_t n)
{
    vf even = {0}, odd = {0};
    int64_t i = 0;
    for (; i + 2 * VLEN <= n; i += 2 * VLEN) {
        vf a = vload(x + i), b = vload(x + i + VLEN);
        even += a * a;
        odd += b * b;
    }
    for (; i + VLEN <= n; i += VLEN) {
        vf a = vload(x + i);
        even += a * a;
    }
    if (i < n) {
        vf a = vload_part(x + i, n - i);
        odd += a * a;
    }
    return vsum(even + odd);
}

aim_status KERNEL(residual_rms_norm_modulate)(struct backend *be, const struct tensor *r, const struct tensor *h,
                                              const struct tensor *gates, const struct tensor *w, const struct tensor *mod,
                                              float eps, struct tensor *r_out, struct tensor *y)
{
    int64_t B = r->shape[0], T = r->shape[1], d = r->shape[2], mod_width = mod ? tensor_cols(mod) : 0;
#pragma omp parallel for num_threads(be->threads) schedule(static) if (B * T * d > SMALL_NORM)
    for (int64_t row = 0; row < B * T; row++) {
        const float *rr = f32(r) + row * d;
        float *sum = f32(r_out ? r_out : y) + row * d; /* y serves as scratch when the sum is not wanted */
        if (h) {
            const float *hr = f32(h) + row * d, *gate = gates ? f32(gates) + row / T * 3 * d + 2 * d : NULL;
            for (int64_t i = 0; i < d; i++) sum[i] = rr[i] + (gate ? gate[i] * hr[i] : hr[i]);
        } else if (sum != rr) {
            memcpy(sum, rr, (size_t)d * sizeof(float));
        }
        float scale = 1.0f / sqrtf(sum_squares(sum, d) / (float)d + eps);
        const float *weight = f32(w);
        float *out = f32(y) + row * d;
        if (mod) {
            const float *shift = f32(mod) + row / T * mod_width, *gain = shift + d;
            for (int64_t i = 0; i < d; i++) out[i] = sum[i] * scale * weight[i] * (1.0f + gain[i]) + shift[i];
        } else {
            for (int64_t i = 0; i < d; i++) out[i] = sum[i] * scale * weight[i];
        }
    }
    return AIM_OK;
}

aim_status KERNEL(gated_rms_norm)(struct backend *be, const struct tensor *y, const struct tensor *zxbcdt,
                                  const struct tensor *w, float eps, struct tensor *o)
{
    int64_t M = tensor_rows(y), E = tensor_cols(y), W = tensor_cols(zxbcdt);
#pragma omp parallel for num_threads(be->threads) schedule(static) if (M * E > SMALL_NORM)
    for (int64_t row = 0; row < M; row++) {
        const float *yr = f32(y) + row * E, *z = f32(zxbcdt) + row * W, *weight = f32(w);
        float *out = f32(o) + row * E;
        int64_t i = 0;
        for (; i + VLEN <= E; i += VLEN) vstore(out + i, vload(yr + i) * vsilu(vload(z + i)));
        if (i < E) vstore_part(out + i, vload_part(yr + i, E - i) * vsilu(vload_part(z + i, E - i)), E - i);
        float scale = 1.0f / sqrtf(sum_squares(out, E) / (float)E + eps);
        for (i = 0; i < E; i++) out[i] *= scale * weight[i];
    }
    return AIM_OK;
}

aim_status KERNEL(normalize_rows)(struct backend *be, const struct tensor *x, struct tensor *y)
{
    int64_t M = tensor_rows(x), D = tensor_cols(x);
#pragma omp parallel for num_threads(be->threads) schedule(static) if (M > 1024)
    for (int64_t row = 0; row < M; row++) {
        const float *in = f32(x) + row * D;
        float *out = f32(y) + row * D, norm = sqrtf(sum_squares(in, D));
        float scale = 1.0f / (norm > 1e-12f ? norm : 1e-12f);
        for (int64_t i = 0; i < D; i++) out[i] = in[i] * scale;
    }
    return AIM_OK;
}
