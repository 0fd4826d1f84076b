/*
 * The entropy term of the quantiser: every latent should be sure of its code, and all codes together be used alike.
 *
 * With s_mj = 2 z_m·e_j / temperature, which differs from -‖z_m - e_j‖² / temperature by a constant of unit rows only, and
 * p_m = softmax(s_m), h_m = -Σ_j p_mj ln p_mj, q_j = ln(p̄_j + ε) + p̄_j / (p̄_j + ε):
 *
 *     ds_mj = (weight dloss / M) p_mj (q_j - Σ_k p_mk q_k - ln p_mj - h_m);  dz = 2 ds e / temperature;  de = 2 dsᵀ z /
 * temperature
 *
 * The bracket is worked out as b_mj - Σ_k p_mk b_mk with b_mj = (q_j - q_t) - (s_mj - s_mt), t the row's most probable code:
 * where a row is sure, both of its terms are small, and nothing is lost in their difference.
 *
 * Rows are cut into a number of parts that follows from their count alone, and the parts' sums added up in order, so that
 * threads change nothing.
 */
#include "cpu/kernels/kernels.h"

#include <math.h>

enum {
    PART = 64,      /* rows that make it worth while to cut them into one part more */
    MOST_PARTS = 16 /* each needs memory for a codebook */
};

static const float average_eps = 1e-5f; /* spec D5 */

/* The work of a call. */
struct entropy {
    const float *z, *e;
    int64_t M, V, D, parts;
    float scale;   /* 2 / temperature */
    float *turned; /* (D,V): the codes by coordinate */
    float *rows;   /* (thread, V) scores, then probabilities */
    float *sums;   /* (part, width) */
    double *h;     /* (part) sums of the rows' entropies */
};

static void entropy_end(struct entropy *k)
{
    mem_free(k->turned);
    mem_free(k->rows);
    mem_free(k->sums);
    mem_free(k->h);
}

static aim_status entropy_start(struct backend *be, const struct tensor *z, const struct tensor *e, float temperature,
                                int64_t width, struct entropy *k)
{
    *k = (struct entropy){.z = f32(z), .e = f32(e), .M = tensor_rows(z), .V = e->shape[0], .D = tensor_cols(z)};
    k->scale = 2 / temperature;
    k->parts = (k->M + PART - 1) / PART < MOST_PARTS ? (k->M + PART - 1) / PART : MOST_PARTS;
    k->turned = mem_array(be->ctx, (size_t)(k->V * k->D), sizeof(float), MEM_ACTIVATIONS);
    k->rows = mem_array(be->ctx, (size_t)(be->threads * k->V), sizeof(float), MEM_ACTIVATIONS);
    k->sums = mem_zero(be->ctx, (size_t)(k->parts * width), sizeof(float), MEM_ACTIVATIONS);
    k->h = mem_zero(be->ctx, (size_t)k->parts, sizeof(double), MEM_ACTIVATIONS);
    if (!k->turned || !k->rows || !k->sums || !k->h) return AIM_ERR_MEMORY;
    for (int64_t j = 0; j < k->V; j++)
        for (int64_t d = 0; d < k->D; d++) k->turned[d * k->V + j] = k->e[j * k->D + d];
    return AIM_OK;
}

/* What the rows' softmax needs besides the scores: ln p = scale (s - top) - log_sum. Scores differ from the largest one exactly
 * where it matters; scaled ones, and top and log_sum together, would be rounded to 1e-5 when the scale is 200. */
struct row {
    float *s;     /* scores without the scale, (V) */
    int64_t best; /* the first code of the largest score */
    float scale, top, log_sum;
};

static struct row scores(const struct entropy *k, int64_t m)
{
    struct row r = {.s = k->rows + omp_get_thread_num() * k->V, .scale = k->scale, .top = -INFINITY};
    double sum = 0;
    for (int64_t d = 0; d < k->D; d++) {
        const float x = k->z[m * k->D + d], *codes = k->turned + d * k->V;
        for (int64_t j = 0; j < k->V; j++) r.s[j] = d ? r.s[j] + x * codes[j] : x * codes[j];
    }
    for (int64_t j = 0; j < k->V; j++) r.top = r.s[j] > r.top ? r.s[j] : r.top;
    while (r.best < k->V - 1 && r.s[r.best] < r.top) r.best++;
    for (int64_t j = 0; j < k->V; j += VLEN) {
        int64_t live = k->V - j < VLEN ? k->V - j : VLEN;
        vf p = vexp(r.scale * (vload_part(r.s + j, live) - r.top));
        for (int64_t i = 0; i < live; i++) sum += (double)p[i];
    }
    r.log_sum = (float)log(fmax(sum, 1)); /* the largest score alone gives 1 */
    return r;
}

/* One vector of ln p, at most `live` of it. */
static vf log_p(const struct row *r, int64_t j, int64_t live)
{
    return r->scale * (vload_part(r->s + j, live) - r->top) - r->log_sum;
}

/* The first `live` values, and zeros. */
static vf first_of(vf v, int64_t live)
{
    for (int64_t i = live; i < VLEN; i++) v[i] = 0;
    return v;
}

/* Adds a row's probabilities to `sums` (V); returns its entropy. */
static double add_row(const struct entropy *k, int64_t m, float *sums)
{
    struct row r = scores(k, m);
    double h = 0;
    for (int64_t j = 0; j < k->V; j += VLEN) {
        int64_t live = k->V - j < VLEN ? k->V - j : VLEN;
        vf ln = log_p(&r, j, live), p = first_of(vexp(ln), live);
        vstore_part(sums + j, vload_part(sums + j, live) + p, live);
        h -= (double)vsum(p * ln);
    }
    return h;
}

aim_status KERNEL(code_entropy)(struct backend *be, const struct tensor *z, const struct tensor *e, float temperature,
                                float weight, struct tensor *average, struct tensor *loss)
{
    struct entropy k;
    aim_status status = entropy_start(be, z, e, temperature, e->shape[0], &k);
    if (status == AIM_OK) {
#pragma omp parallel for num_threads(be->threads) schedule(dynamic)
        for (int64_t part = 0; part < k.parts; part++)
            for (int64_t m = part * k.M / k.parts; m < (part + 1) * k.M / k.parts; m++)
                k.h[part] += add_row(&k, m, k.sums + part * k.V);
        double rows = 0, all = 0;
        for (int64_t part = 0; part < k.parts; part++) rows += k.h[part];
        for (int64_t j = 0; j < k.V; j++) {
            double sum = 0;
            for (int64_t part = 0; part < k.parts; part++) sum += (double)k.sums[part * k.V + j];
            f32(average)[j] = (float)(sum / (double)k.M);
            all -= sum / (double)k.M * log(sum / (double)k.M + (double)average_eps);
        }
        f32(loss)[0] = (float)((double)weight * (rows / (double)k.M - all));
    }
    entropy_end(&k);
    return status;
}

/* One vector of b, see above. */
static vf bracket(const struct row *r, const float *q, int64_t j, int64_t live)
{
    return (vload_part(q + j, live) - q[r->best]) - r->scale * (vload_part(r->s + j, live) - r->top);
}

/* What one row adds: to dz (D), and to `sums` (V,D), either may be NULL; q (V) as above. */
static void row_backward(const struct entropy *k, int64_t m, const float *q, float up, float *dz, float *sums)
{
    struct row r = scores(k, m);
    double expected = 0;
    for (int64_t j = 0; j < k->V; j += VLEN) {
        int64_t live = k->V - j < VLEN ? k->V - j : VLEN;
        expected += (double)vsum(first_of(vexp(log_p(&r, j, live)), live) * bracket(&r, q, j, live));
    }
    for (int64_t j = 0; j < k->V; j += VLEN) {
        int64_t live = k->V - j < VLEN ? k->V - j : VLEN;
        vstore_part(r.s + j, up * vexp(log_p(&r, j, live)) * (bracket(&r, q, j, live) - (float)expected), live);
    }
    for (int64_t d = 0; dz && d < k->D; d++) {
        const float *codes = k->turned + d * k->V;
        vf sum = {0};
        for (int64_t j = 0; j < k->V; j += VLEN) {
            int64_t live = k->V - j < VLEN ? k->V - j : VLEN;
            sum += vload_part(r.s + j, live) * vload_part(codes + j, live);
        }
        dz[d] += vsum(sum);
    }
    const float *z = k->z + m * k->D;
    for (int64_t j = 0; sums && j < k->V; j++)
        for (int64_t d = 0; d < k->D; d++) sums[j * k->D + d] += r.s[j] * z[d];
}

aim_status KERNEL(code_entropy_backward)(struct backend *be, const struct tensor *z, const struct tensor *e, float temperature,
                                         float weight, const struct tensor *average, const struct tensor *dloss,
                                         struct tensor *dz, struct tensor *de)
{
    struct entropy k;
    float *q = mem_array(be->ctx, (size_t)e->shape[0], sizeof(float), MEM_ACTIVATIONS);
    aim_status status = entropy_start(be, z, e, temperature, de ? tensor_count(e) : 1, &k);
    if (!q) status = AIM_ERR_MEMORY;
    if (status == AIM_OK) {
        const float up = weight * f32(dloss)[0] * k.scale / (float)k.M;
        const float *mean = f32(average);
        for (int64_t j = 0; j < k.V; j++) q[j] = logf(mean[j] + average_eps) + mean[j] / (mean[j] + average_eps);
#pragma omp parallel for num_threads(be->threads) schedule(dynamic)
        for (int64_t part = 0; part < k.parts; part++)
            for (int64_t m = part * k.M / k.parts; m < (part + 1) * k.M / k.parts; m++)
                row_backward(&k, m, q, up, dz ? f32(dz) + m * k.D : NULL, de ? k.sums + part * k.V * k.D : NULL);
        for (int64_t i = 0; i < (de ? k.V * k.D : 0); i++) {
            float sum = 0;
            for (int64_t part = 0; part < k.parts; part++) sum += k.sums[part * k.V * k.D + i];
            f32(de)[i] += sum;
        }
    }
    entropy_end(&k);
    mem_free(q);
    return status;
}
