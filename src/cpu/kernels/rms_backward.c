/*
 * Backward of the RMS normalisations (forward in norm.c). With x̂ = x·rstd and q = the gradient at x̂,
 *     dx = rstd (q - x̂ mean(x̂ ⊙ q)).
 * Two passes: over rows for rstd and the mean, then over columns for everything, so that sums over rows need no threads'
 * partial sums and always run in the same order.
 */
#include "cpu/kernels/kernels.h"

#include <math.h>

enum { COLUMNS = 64 };

struct row_stats {
    float rstd, mean; /* mean(x̂ ⊙ q) */
};

/* ------------------------------------------------------------------------- residual_rms_norm_modulate */

struct residual {
    int64_t T, d, mod_width;
    const float *x, *h, *gates, *w, *mod, *dsum, *dy;
    float *dr, *dh, *dgates, *dw, *dmod;
    float eps;
    struct row_stats *stats;
};

/* rstd, and the mean with the gradient at x̂, which is dy ⊙ (1 + scale) ⊙ w. */
static struct row_stats residual_stats(const struct residual *a, int64_t row)
{
    enum { SPAN = 8 * VLEN }; /* short float sums, added up in double */
    const float *x = a->x + row * a->d, *dy = a->dy + row * a->d;
    const float *scale = a->mod ? a->mod + row / a->T * a->mod_width + a->d : NULL;
    double squares = 0, product = 0;
    for (int64_t from = 0; from < a->d; from += SPAN) {
        vf square = {0}, along = {0};
        for (int64_t i = from; i < a->d && i < from + SPAN; i += VLEN) {
            int64_t n = a->d - i < VLEN ? a->d - i : VLEN;
            vf v = vload_part(x + i, n), up = vload_part(dy + i, n) * vload_part(a->w + i, n);
            if (scale) up *= 1.0f + vload_part(scale + i, n);
            square += v * v;
            along += v * up;
        }
        squares += (double)vsum(square);
        product += (double)vsum(along);
    }
    float rstd = 1.0f / sqrtf((float)(squares / (double)a->d) + a->eps);
    return (struct row_stats){rstd, (float)(product / (double)a->d) * rstd};
}

/* Columns from..to of all rows of one picture. */
static void residual_columns(const struct residual *a, int64_t b, int64_t from, int64_t to, float *dw)
{
    float shift[COLUMNS] = {0}, gain[COLUMNS] = {0}, gate[COLUMNS] = {0};
    for (int64_t row = b * a->T; row < (b + 1) * a->T; row++) {
        struct row_stats s = a->dy ? a->stats[row] : (struct row_stats){0};
        for (int64_t i = from; i < to; i++) {
            int64_t at = row * a->d + i;
            float sum = a->dsum ? a->dsum[at] : 0.0f;
            if (a->dy) {
                float unit = a->x[at] * s.rstd, dy = a->dy[at];
                float up = a->mod ? dy * (1.0f + a->mod[b * a->mod_width + a->d + i]) : dy;
                sum += s.rstd * (up * a->w[i] - unit * s.mean);
                dw[i - from] += up * unit;
                shift[i - from] += dy;
                gain[i - from] += dy * unit * a->w[i];
            }
            float g = a->gates ? a->gates[b * 3 * a->d + 2 * a->d + i] : 1.0f;
            if (a->h) gate[i - from] += sum * a->h[at];
            if (a->dh) a->dh[at] += g * sum;
            if (a->dr) a->dr[at] += sum;
        }
    }
    for (int64_t i = from; i < to; i++) {
        if (a->dmod) {
            a->dmod[b * a->mod_width + i] += shift[i - from];
            a->dmod[b * a->mod_width + a->d + i] += gain[i - from];
        }
        if (a->dgates) a->dgates[b * 3 * a->d + 2 * a->d + i] += gate[i - from];
    }
}

static const float *values(const struct tensor *t)
{
    return t ? f32(t) : NULL;
}

static float *slots(struct tensor *t)
{
    return t ? f32(t) : NULL;
}

aim_status KERNEL(residual_rms_norm_modulate_backward)(struct backend *be, const struct tensor *r_out, const struct tensor *h,
                                                       const struct tensor *gates, const struct tensor *w,
                                                       const struct tensor *mod, float eps, const struct tensor *dr_out,
                                                       const struct tensor *dy, struct tensor *dr, struct tensor *dh,
                                                       struct tensor *dgates, struct tensor *dw, struct tensor *dmod)
{
    int64_t B = r_out->shape[0], T = r_out->shape[1], d = r_out->shape[2];
    struct residual a = {.T = T, .d = d, .mod_width = mod ? tensor_cols(mod) : 0, .x = f32(r_out), .eps = eps};
    a.h = values(h), a.gates = values(gates), a.w = f32(w), a.mod = values(mod), a.dsum = values(dr_out), a.dy = values(dy);
    a.dr = slots(dr), a.dh = slots(dh), a.dgates = slots(dgates), a.dw = slots(dw), a.dmod = slots(dmod);
    a.stats = mem_array(be->ctx, (size_t)(B * T), sizeof *a.stats, MEM_ACTIVATIONS);
    if (!a.stats) return AIM_ERR_MEMORY;
#pragma omp parallel num_threads(be->threads)
    {
#pragma omp for schedule(static)
        for (int64_t row = 0; row < B * T; row++)
            if (a.dy) a.stats[row] = residual_stats(&a, row);
#pragma omp for schedule(static)
        for (int64_t from = 0; from < d; from += COLUMNS) {
            int64_t to = from + COLUMNS < d ? from + COLUMNS : d;
            float sums[COLUMNS] = {0};
            for (int64_t b = 0; b < B; b++) residual_columns(&a, b, from, to, sums);
            for (int64_t i = from; a.dw && i < to; i++) a.dw[i] += sums[i - from];
        }
    }
    mem_free(a.stats);
    return AIM_OK;
}

/* ------------------------------------------------------------------------------------- gated_rms_norm */

/* v = y ⊙ silu(z) of one row, its rstd, and mean(v̂ ⊙ w ⊙ do) */
static struct row_stats gated_stats(const float *y, const float *z, const float *w, const float *dout, int64_t E, float eps)
{
    double squares = 0, product = 0;
    for (int64_t i = 0; i < E; i += VLEN) {
        int64_t n = E - i < VLEN ? E - i : VLEN;
        vf v = vload_part(y + i, n) * vsilu(vload_part(z + i, n));
        squares += (double)vsum(v * v);
        product += (double)vsum(v * vload_part(w + i, n) * vload_part(dout + i, n));
    }
    float rstd = 1.0f / sqrtf((float)(squares / (double)E) + eps);
    return (struct row_stats){rstd, (float)(product / (double)E) * rstd};
}

/* The operands of gated_rms_norm_backward; dy, dz and dw may be NULL. */
struct gated {
    int64_t M, E, W;
    const float *y, *z, *w, *dout;
    float *dy, *dz, *dw;
    const struct row_stats *stats;
};

/* Columns i .. i+n of all rows, n <= VLEN. */
static inline __attribute__((always_inline)) void gated_columns(const struct gated *a, int64_t i, int64_t n)
{
    vf weight = vload_part(a->w + i, n), sum = {0};
    for (int64_t m = 0; m < a->M; m++) {
        int64_t at = m * a->E + i, at_z = m * a->W + i;
        vf y = vload_part(a->y + at, n), z = vload_part(a->z + at_z, n), dout = vload_part(a->dout + at, n);
        vf sigma = 1.0f / (1.0f + vexp(-z)), silu = z * sigma, unit = y * silu * a->stats[m].rstd;
        vf dv = a->stats[m].rstd * (weight * dout - unit * a->stats[m].mean);
        sum += dout * unit;
        if (a->dy) vstore_part(a->dy + at, vload_part(a->dy + at, n) + dv * silu, n);
        if (a->dz) vstore_part(a->dz + at_z, vload_part(a->dz + at_z, n) + dv * y * sigma * (1.0f + z * (1.0f - sigma)), n);
    }
    if (a->dw) vstore_part(a->dw + i, vload_part(a->dw + i, n) + sum, n);
}

/* With v = y silu(z), v̂ = v rstd: dv = rstd (w do - v̂ mean); dy += dv silu(z); dz += dv y silu'(z); dw += Σ do v̂ */
aim_status KERNEL(gated_rms_norm_backward)(struct backend *be, const struct tensor *y, const struct tensor *zxbcdt,
                                           const struct tensor *w, float eps, const struct tensor *do_, struct tensor *dy,
                                           struct tensor *dzxbcdt, struct tensor *dw)
{
    int64_t M = tensor_rows(y), E = tensor_cols(y), W = tensor_cols(zxbcdt);
    struct row_stats *stats = mem_array(be->ctx, (size_t)M, sizeof *stats, MEM_ACTIVATIONS);
    if (!stats) return AIM_ERR_MEMORY;
    struct gated a = {M, E, W, f32(y), f32(zxbcdt), f32(w), f32(do_), slots(dy), slots(dzxbcdt), slots(dw), stats};
#pragma omp parallel num_threads(be->threads)
    {
#pragma omp for schedule(static)
        for (int64_t m = 0; m < M; m++) stats[m] = gated_stats(a.y + m * E, a.z + m * W, a.w, a.dout + m * E, E, eps);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < E; i += VLEN) {
            if (E - i >= VLEN)
                gated_columns(&a, i, VLEN);
            else
                gated_columns(&a, i, E - i);
        }
    }
    mem_free(stats);
    return AIM_OK;
}
