/* Means over all values: of squared and absolute differences, of the terms of adversarial losses; sums of gradients. */
#include "cpu/kernels/kernels.h"

#include <math.h>

enum {
    CHUNK = 1 << 14, /* values whose squares are added up together, whatever the number of threads */
    SPAN = 256,      /* short float sums, added up in double */
    SMALL = 1 << 16, /* values from which on threads help */
};

static double sum_squared_gaps(const float *a, const float *b, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i += SPAN) {
        vf part = {0};
        int64_t end = i + SPAN < n ? i + SPAN : n;
        for (int64_t j = i; j < end; j += VLEN) {
            int64_t live = end - j < VLEN ? end - j : VLEN;
            vf gap = live == VLEN ? vload(a + j) - vload(b + j) : vload_part(a + j, live) - vload_part(b + j, live);
            part += gap * gap;
        }
        sum += (double)vsum(part);
    }
    return sum;
}

/* loss = weight / n times what sum_of gives, chunk by chunk. */
static aim_status mean_gap(struct backend *be, const struct tensor *a, const struct tensor *b, float weight,
                           double (*sum_of)(const float *a, const float *b, int64_t n), struct tensor *loss)
{
    int64_t n = tensor_count(a), chunks = (n + CHUNK - 1) / CHUNK;
    double *sums = mem_array(be->ctx, (size_t)chunks, sizeof(double), MEM_ACTIVATIONS), sum = 0;
    if (!sums) return AIM_ERR_MEMORY;
#pragma omp parallel for num_threads(be->threads) schedule(static) if (n > SMALL)
    for (int64_t c = 0; c < chunks; c++) {
        int64_t from = c * CHUNK, count = n - from < CHUNK ? n - from : CHUNK;
        sums[c] = sum_of(f32(a) + from, f32(b) + from, count);
    }
    for (int64_t c = 0; c < chunks; c++) sum += sums[c];
    f32(loss)[0] = (float)((double)weight * sum / (double)n);
    mem_free(sums);
    return AIM_OK;
}

aim_status KERNEL(mean_square)(struct backend *be, const struct tensor *a, const struct tensor *b, float weight,
                               struct tensor *loss)
{
    return mean_gap(be, a, b, weight, sum_squared_gaps, loss);
}

aim_status KERNEL(mean_square_backward)(struct backend *be, const struct tensor *a, const struct tensor *b, float weight,
                                        const struct tensor *dloss, struct tensor *da, struct tensor *db)
{
    int64_t n = tensor_count(a);
    const float scale = (float)(2.0 * (double)weight * (double)f32(dloss)[0] / (double)n);
    const float *pa = f32(a), *pb = f32(b);
    float *to_a = da ? f32(da) : NULL, *to_b = db ? f32(db) : NULL;
#pragma omp parallel for num_threads(be->threads) schedule(static) if (n > SMALL)
    for (int64_t c = 0; c < n; c += CHUNK) {
        int64_t end = n - c < CHUNK ? n : c + CHUNK;
        for (int64_t i = c; to_a && i < end; i++) to_a[i] += scale * (pa[i] - pb[i]);
        for (int64_t i = c; to_b && i < end; i++) to_b[i] -= scale * (pa[i] - pb[i]);
    }
    return AIM_OK;
}

static double sum_gaps(const float *a, const float *b, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)fabsf(a[i] - b[i]);
    return sum;
}

aim_status KERNEL(mean_absolute)(struct backend *be, const struct tensor *a, const struct tensor *b, float weight,
                                 struct tensor *loss)
{
    return mean_gap(be, a, b, weight, sum_gaps, loss);
}

aim_status KERNEL(mean_absolute_backward)(struct backend *be, const struct tensor *a, const struct tensor *b, float weight,
                                          const struct tensor *dloss, struct tensor *da, struct tensor *db)
{
    int64_t n = tensor_count(a);
    const float step = (float)((double)weight * (double)f32(dloss)[0] / (double)n);
    const float *pa = f32(a), *pb = f32(b);
    float *to_a = da ? f32(da) : NULL, *to_b = db ? f32(db) : NULL;
#pragma omp parallel for num_threads(be->threads) schedule(static) if (n > SMALL)
    for (int64_t i = 0; i < n; i++) {
        float up = pa[i] > pb[i] ? step : pa[i] < pb[i] ? -step : 0;
        if (to_a) to_a[i] += up;
        if (to_b) to_b[i] -= up;
    }
    return AIM_OK;
}

/* The function of a mean_map, and its slope. A discriminator gives a few thousand values at most: one thread does. */
static double map_value(enum mean_map map, double x)
{
    switch (map) {
    case MAP_IDENTITY: return x;
    case MAP_HINGE_REAL: return fmax(1 - x, 0);
    case MAP_HINGE_FAKE: return fmax(1 + x, 0);
    case MAP_SOFTPLUS: return fmax(x, 0) + log1p(exp(-fabs(x)));
    case MAP_SOFTPLUS_MINUS: return fmax(-x, 0) + log1p(exp(-fabs(x)));
    }
    return 0;
}

static double map_slope(enum mean_map map, double x)
{
    switch (map) {
    case MAP_IDENTITY: return 1;
    case MAP_HINGE_REAL: return x < 1 ? -1 : 0;
    case MAP_HINGE_FAKE: return x > -1 ? 1 : 0;
    case MAP_SOFTPLUS: return 1 / (1 + exp(-x));
    case MAP_SOFTPLUS_MINUS: return -1 / (1 + exp(x));
    }
    return 0;
}

aim_status KERNEL(mean_map)(struct backend *be, const struct tensor *x, enum mean_map map, float weight, struct tensor *loss)
{
    (void)be;
    int64_t n = tensor_count(x);
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += map_value(map, (double)f32(x)[i]);
    f32(loss)[0] = (float)((double)weight * sum / (double)n);
    return AIM_OK;
}

aim_status KERNEL(mean_map_backward)(struct backend *be, const struct tensor *x, enum mean_map map, float weight,
                                     const struct tensor *dloss, struct tensor *dx)
{
    (void)be;
    int64_t n = tensor_count(x);
    const double scale = (double)weight * (double)f32(dloss)[0] / (double)n;
    for (int64_t i = 0; i < n; i++) f32(dx)[i] += (float)(scale * map_slope(map, (double)f32(x)[i]));
    return AIM_OK;
}

aim_status KERNEL(accumulate)(struct backend *be, const struct tensor *x, struct tensor *y)
{
    int64_t n = tensor_count(x);
    const float *from = f32(x);
    float *to = f32(y);
#pragma omp parallel for num_threads(be->threads) schedule(static) if (n > SMALL)
    for (int64_t i = 0; i < n; i++) to[i] += from[i];
    return AIM_OK;
}
