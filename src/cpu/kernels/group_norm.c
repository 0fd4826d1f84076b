/* GroupNorm with SiLU, and its gradient. */
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

/* What a picture's channels need, rows of C values: the result before silu is x scale + shift; the others are of the
 * channel's group. */
enum { GN_SCALE, GN_SHIFT, GN_MEAN, GN_RSTD, GN_ROWS };

/* From the chunks' sums of one picture to those rows. */
static void channel_affine(const double *sums, const float *first_pixel, int64_t chunks, int64_t pixels, int64_t C, int groups,
                           float eps, const float *w, const float *b, float *rows)
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
            rows[GN_SCALE * C + c] = (float)(rstd * (double)w[c]);
            rows[GN_SHIFT * C + c] = (float)((double)b[c] - mean * rstd * (double)w[c]);
            rows[GN_MEAN * C + c] = (float)mean;
            rows[GN_RSTD * C + c] = (float)rstd;
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

/* The work of a call: pictures cut into chunks of pixels, sums of each, rows of each picture. */
struct group_norm {
    const struct tensor *x, *w, *b;
    int groups;
    float eps;
    int64_t pictures, pixels, C, chunks;
    double *sums;   /* (picture, chunk, 2, C) */
    float *partial; /* (thread, 2, C) */
    float *rows;    /* (picture, GN_ROWS, C) */
};

/* Which pixels chunk k is. */
struct chunk {
    int64_t picture, at, count; /* at: of its first value */
};

static struct chunk chunk_of(const struct group_norm *g, int64_t k)
{
    int64_t n = k / g->chunks, first = k % g->chunks * GN_CHUNK, left = g->pixels - first;
    return (struct chunk){n, (n * g->pixels + first) * g->C, left < GN_CHUNK ? left : GN_CHUNK};
}

static aim_status group_norm_start(struct backend *be, const struct tensor *x, const struct tensor *w, const struct tensor *b,
                                   int groups, float eps, struct group_norm *g)
{
    *g = (struct group_norm){.x = x, .w = w, .b = b, .groups = groups, .eps = eps, .pictures = x->shape[0]};
    g->C = x->shape[3];
    g->pixels = x->shape[1] * x->shape[2];
    g->chunks = (g->pixels + GN_CHUNK - 1) / GN_CHUNK;
    g->sums = mem_array(be->ctx, (size_t)(g->pictures * g->chunks * 2 * g->C), sizeof(double), MEM_ACTIVATIONS);
    g->partial = mem_array(be->ctx, (size_t)(be->threads * 2 * g->C), sizeof(float), MEM_ACTIVATIONS);
    g->rows = mem_array(be->ctx, (size_t)(g->pictures * GN_ROWS * g->C), sizeof(float), MEM_ACTIVATIONS);
    return g->sums && g->partial && g->rows ? AIM_OK : AIM_ERR_MEMORY;
}

static void group_norm_end(struct group_norm *g)
{
    mem_free(g->sums);
    mem_free(g->partial);
    mem_free(g->rows);
}

/* Fills the rows; called by all threads of a region. */
static void group_norm_statistics(const struct group_norm *g)
{
    int64_t C = g->C;
    float *partial = g->partial + (int64_t)omp_get_thread_num() * 2 * C;
#pragma omp for schedule(static)
    for (int64_t k = 0; k < g->pictures * g->chunks; k++) {
        struct chunk at = chunk_of(g, k);
        const float *picture = f32(g->x) + at.picture * g->pixels * C;
        channel_sums(f32(g->x) + at.at, picture, at.count, C, partial, g->sums + k * 2 * C);
    }
#pragma omp for schedule(static)
    for (int64_t n = 0; n < g->pictures; n++)
        channel_affine(g->sums + n * g->chunks * 2 * C, f32(g->x) + n * g->pixels * C, g->chunks, g->pixels, C, g->groups,
                       g->eps, f32(g->w), f32(g->b), g->rows + n * GN_ROWS * C);
}

aim_status KERNEL(group_norm_silu)(struct backend *be, const struct tensor *x, const struct tensor *w, const struct tensor *b,
                                   int groups, float eps, bool silu, struct tensor *statistics, struct tensor *y)
{
    struct group_norm g;
    aim_status status = group_norm_start(be, x, w, b, groups, eps, &g);
    if (status == AIM_OK) {
#pragma omp parallel num_threads(be->threads)
        {
            group_norm_statistics(&g);
#pragma omp for schedule(static)
            for (int64_t k = 0; k < g.pictures * g.chunks; k++) {
                struct chunk at = chunk_of(&g, k);
                const float *rows = g.rows + at.picture * GN_ROWS * g.C;
                affine_silu(f32(x) + at.at, at.count, g.C, rows + GN_SCALE * g.C, rows + GN_SHIFT * g.C, silu, f32(y) + at.at);
            }
        }
    }
    for (int64_t i = 0; status == AIM_OK && statistics && i < g.pictures * groups; i++) {
        const float *rows = g.rows + i / groups * GN_ROWS * g.C + i % groups * (g.C / groups);
        f32(statistics)[2 * i] = rows[GN_MEAN * g.C];
        f32(statistics)[2 * i + 1] = rows[GN_RSTD * g.C];
    }
    group_norm_end(&g);
    return status;
}

/* ------------------------------------------------------------------------------------------- the gradient */

/*
 * With x̂ = (x - mean) rstd over a group of a picture, u = x̂ w + b, y = silu(u) or u, and g = dy silu'(u) or dy:
 *
 *     db = Σ g,   dw = Σ g x̂,   dx = rstd (g w - m₁ - x̂ m₂),   m₁ and m₂ the group's means of g w and g w x̂
 *
 * The statistics are computed again instead of kept.
 */

/* `live` is VLEN, a constant, or for a row's end less. */
static inline __attribute__((always_inline)) vf vget(const float *p, int64_t live)
{
    return live == VLEN ? vload(p) : vload_part(p, live);
}

/* g and x̂ of up to VLEN channels of a pixel; `rows` begin at the first of them. */
static inline __attribute__((always_inline)) void gradient_in(const float *rows, int64_t C, const float *x, const float *dy,
                                                              int64_t live, bool silu, vf *g, vf *unit)
{
    vf in = vget(x, live);
    *g = vget(dy, live);
    *unit = (in - vget(rows + GN_MEAN * C, live)) * vget(rows + GN_RSTD * C, live);
    if (silu) *g *= vsilu_slope(in * vget(rows + GN_SCALE * C, live) + vget(rows + GN_SHIFT * C, live));
}

/* Adds Σ g and Σ g x̂ of up to VLEN channels over `pixels` of them. */
static inline __attribute__((always_inline)) void sum_channels(const float *rows, const float *x, const float *dy,
                                                               int64_t pixels, int64_t C, int64_t live, bool silu, double *sums)
{
    vf sum = {0}, product = {0}, g, unit;
    for (int64_t p = 0; p < pixels; p++) {
        gradient_in(rows, C, x + p * C, dy + p * C, live, silu, &g, &unit);
        sum += g;
        product += g * unit;
    }
    for (int64_t i = 0; i < live; i++) {
        sums[i] += (double)sum[i];
        sums[C + i] += (double)product[i];
    }
}

/* Per channel Σ g and Σ g x̂ over `pixels` rows: short float sums, added up in double. */
static void gradient_sums(const float *rows, const float *x, const float *dy, int64_t pixels, int64_t C, bool silu,
                          double *sums)
{
    memset(sums, 0, (size_t)(2 * C) * sizeof(double));
    for (int64_t p = 0; p < pixels; p += GN_SPAN, x += GN_SPAN * C, dy += GN_SPAN * C) {
        int64_t span = pixels - p < GN_SPAN ? pixels - p : GN_SPAN, c = 0;
        for (; c + VLEN <= C; c += VLEN) sum_channels(rows + c, x + c, dy + c, span, C, VLEN, silu, sums + c);
        if (c < C) sum_channels(rows + c, x + c, dy + c, span, C, C - c, silu, sums + c);
    }
}

/* The chunks' sums of a picture added up in the first chunk's place, and m₁, m₂ (C values each) from them. */
static void group_means(double *sums, int64_t chunks, int64_t pixels, int64_t C, int groups, const float *w, float *means)
{
    int64_t per_group = C / groups;
    for (int64_t k = 1; k < chunks; k++)
        for (int64_t c = 0; c < 2 * C; c++) sums[c] += sums[k * 2 * C + c];
    for (int64_t first = 0; first < C; first += per_group) {
        double m1 = 0, m2 = 0, n = (double)(per_group * pixels);
        for (int64_t c = first; c < first + per_group; c++) {
            m1 += (double)w[c] * sums[c];
            m2 += (double)w[c] * sums[C + c];
        }
        for (int64_t c = first; c < first + per_group; c++) {
            means[c] = (float)(m1 / n);
            means[C + c] = (float)(m2 / n);
        }
    }
}

static inline __attribute__((always_inline)) void channels_out(const float *rows, const float *means, const float *w,
                                                               const float *x, const float *dy, int64_t C, int64_t live,
                                                               bool silu, float *dx)
{
    vf g, unit;
    gradient_in(rows, C, x, dy, live, silu, &g, &unit);
    vf in = g * vget(w, live) - vget(means, live) - unit * vget(means + C, live);
    vf out = vget(dx, live) + in * vget(rows + GN_RSTD * C, live);
    if (live == VLEN)
        vstore(dx, out);
    else
        vstore_part(dx, out, live);
}

static void gradient_out(const float *rows, const float *means, const float *w, const float *x, const float *dy, int64_t pixels,
                         int64_t C, bool silu, float *dx)
{
    for (int64_t p = 0; p < pixels; p++, x += C, dy += C, dx += C) {
        int64_t c = 0;
        for (; c + VLEN <= C; c += VLEN) channels_out(rows + c, means + c, w + c, x + c, dy + c, C, VLEN, silu, dx + c);
        if (c < C) channels_out(rows + c, means + c, w + c, x + c, dy + c, C, C - c, silu, dx + c);
    }
}

aim_status KERNEL(group_norm_silu_backward)(struct backend *be, const struct tensor *x, const struct tensor *w,
                                            const struct tensor *b, int groups, float eps, bool silu,
                                            const struct tensor *statistics, const struct tensor *dy, struct tensor *dx,
                                            struct tensor *dw, struct tensor *db)
{
    (void)statistics;
    struct group_norm g;
    int64_t C = x->shape[3];
    float *means = mem_array(be->ctx, (size_t)(x->shape[0] * 2 * C), sizeof(float), MEM_ACTIVATIONS);
    aim_status status = group_norm_start(be, x, w, b, groups, eps, &g);
    if (!means) status = AIM_ERR_MEMORY;
    if (status == AIM_OK) {
#pragma omp parallel num_threads(be->threads)
        {
            group_norm_statistics(&g);
#pragma omp for schedule(static)
            for (int64_t k = 0; k < g.pictures * g.chunks; k++) {
                struct chunk at = chunk_of(&g, k);
                gradient_sums(g.rows + at.picture * GN_ROWS * C, f32(x) + at.at, f32(dy) + at.at, at.count, C, silu,
                              g.sums + k * 2 * C);
            }
#pragma omp for schedule(static)
            for (int64_t n = 0; n < g.pictures; n++)
                group_means(g.sums + n * g.chunks * 2 * C, g.chunks, g.pixels, C, groups, f32(w), means + n * 2 * C);
#pragma omp for schedule(static)
            for (int64_t k = 0; k < g.pictures * g.chunks; k++) {
                struct chunk at = chunk_of(&g, k);
                if (dx)
                    gradient_out(g.rows + at.picture * GN_ROWS * C, means + at.picture * 2 * C, f32(w), f32(x) + at.at,
                                 f32(dy) + at.at, at.count, C, silu, f32(dx) + at.at);
            }
        }
        for (int64_t c = 0; c < C; c++) {
            double sum = 0, product = 0;
            for (int64_t n = 0; n < g.pictures; n++) {
                sum += g.sums[n * g.chunks * 2 * C + c];
                product += g.sums[n * g.chunks * 2 * C + C + c];
            }
            if (db) f32(db)[c] += (float)sum;
            if (dw) f32(dw)[c] += (float)product;
        }
    }
    mem_free(means);
    group_norm_end(&g);
    return status;
}
