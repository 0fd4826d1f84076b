/* Normalisations: RMS with residual and modulation, gated RMS, GroupNorm with SiLU, unit rows. */
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

/* ------------------------------------------------------------------------------------------- GroupNorm */

/* Pixels whose sums are taken together: fixed, so that the result does not depend on the number of threads. */
enum { GN_CHUNK = 512, GN_SPAN = 32 };

/* Per channel Σ(x-p) and Σ(x-p)² over `pixels` rows of C values, p being the picture's first pixel: squares of deviations
 * stay exact when the mean is many of them. Short float sums, added up in double. */
static void channel_sums(const float *x, const float *first_pixel, int64_t pixels, int64_t C, float *partial, double *sums)
{
    for (int64_t c = 0; c < 2 * C; c++) sums[c] = 0;
    for (int64_t p = 0; p < pixels; p += GN_SPAN) {
        int64_t span = pixels - p < GN_SPAN ? pixels - p : GN_SPAN;
        memset(partial, 0, (size_t)(2 * C) * sizeof(float));
        for (int64_t q = 0; q < span; q++) {
            const float *row = x + (p + q) * C;
            for (int64_t c = 0; c < C; c++) {
                float deviation = row[c] - first_pixel[c];
                partial[c] += deviation;
                partial[C + c] += deviation * deviation;
            }
        }
        for (int64_t c = 0; c < 2 * C; c++) sums[c] += (double)partial[c];
    }
}

/* From the chunks' sums of one picture to y = x*scale[c] + shift[c]. */
static void channel_affine(const double *sums, const float *first_pixel, int64_t chunks, int64_t pixels, int64_t C, int groups,
                           float eps, const float *w, const float *b, float *scale, float *shift)
{
    int64_t per_group = C / groups;
    for (int64_t g = 0; g < groups; g++) {
        double sum = 0, squares = 0, n = (double)(per_group * pixels);
        for (int64_t c = g * per_group; c < (g + 1) * per_group; c++) {
            sum += (double)pixels * (double)first_pixel[c];
            for (int64_t k = 0; k < chunks; k++) sum += sums[k * 2 * C + c];
        }
        double mean = sum / n;
        for (int64_t c = g * per_group; c < (g + 1) * per_group; c++) {
            double offset = (double)first_pixel[c] - mean; /* (x-mean)² = (x-p)² + 2 (x-p) (p-mean) + (p-mean)² */
            squares += (double)pixels * offset * offset;
            for (int64_t k = 0; k < chunks; k++) squares += sums[k * 2 * C + C + c] + 2 * offset * sums[k * 2 * C + c];
        }
        double variance = squares / n, rstd = 1.0 / sqrt((variance > 0 ? variance : 0) + (double)eps);
        for (int64_t c = g * per_group; c < (g + 1) * per_group; c++) {
            scale[c] = (float)(rstd * (double)w[c]);
            shift[c] = (float)((double)b[c] - mean * rstd * (double)w[c]);
        }
    }
}

static void affine_silu(const float *x, int64_t pixels, int64_t C, const float *scale, const float *shift, bool silu, float *y)
{
    for (int64_t p = 0; p < pixels; p++) {
        const float *in = x + p * C;
        float *out = y + p * C;
        int64_t c = 0;
        for (; c + VLEN <= C; c += VLEN) {
            vf v = vload(in + c) * vload(scale + c) + vload(shift + c);
            vstore(out + c, silu ? vsilu(v) : v);
        }
        if (c < C) {
            vf v = vload_part(in + c, C - c) * vload_part(scale + c, C - c) + vload_part(shift + c, C - c);
            vstore_part(out + c, silu ? vsilu(v) : v, C - c);
        }
    }
}

aim_status KERNEL(group_norm_silu)(struct backend *be, const struct tensor *x, const struct tensor *w, const struct tensor *b,
                                   int groups, float eps, bool silu, struct tensor *y)
{
    int64_t N = x->shape[0], pixels = x->shape[1] * x->shape[2], C = x->shape[3];
    int64_t chunks = (pixels + GN_CHUNK - 1) / GN_CHUNK;
    double *sums = mem_array(be->ctx, (size_t)(N * chunks * 2 * C), sizeof(double), MEM_ACTIVATIONS);
    float *work = mem_array(be->ctx, (size_t)((be->threads + N) * 2 * C), sizeof(float), MEM_ACTIVATIONS);
    if (!sums || !work) {
        mem_free(sums);
        mem_free(work);
        return AIM_ERR_MEMORY;
    }
    float *affine = work + (int64_t)be->threads * 2 * C; /* (N, 2, C): scale, shift */
#pragma omp parallel num_threads(be->threads)
    {
        float *partial = work + (int64_t)omp_get_thread_num() * 2 * C;
#pragma omp for schedule(static)
        for (int64_t k = 0; k < N * chunks; k++) {
            int64_t first = k % chunks * GN_CHUNK, count = pixels - first < GN_CHUNK ? pixels - first : GN_CHUNK;
            const float *picture = f32(x) + k / chunks * pixels * C;
            channel_sums(picture + first * C, picture, count, C, partial, sums + k * 2 * C);
        }
#pragma omp for schedule(static)
        for (int64_t n = 0; n < N; n++)
            channel_affine(sums + n * chunks * 2 * C, f32(x) + n * pixels * C, chunks, pixels, C, groups, eps, f32(w), f32(b),
                           affine + n * 2 * C, affine + n * 2 * C + C);
#pragma omp for schedule(static)
        for (int64_t k = 0; k < N * chunks; k++) {
            int64_t n = k / chunks, first = k % chunks * GN_CHUNK;
            int64_t count = pixels - first < GN_CHUNK ? pixels - first : GN_CHUNK, at = (n * pixels + first) * C;
            affine_silu(f32(x) + at, count, C, affine + n * 2 * C, affine + n * 2 * C + C, silu, f32(y) + at);
        }
    }
    mem_free(sums);
    mem_free(work);
    return AIM_OK;
}
