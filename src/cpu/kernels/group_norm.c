/* GroupNorm with SiLU. */
#include "cpu/kernels/kernels.h"

#include <math.h>

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
