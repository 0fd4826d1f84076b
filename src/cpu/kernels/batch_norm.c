/* BatchNorm in training mode, and its gradient. */
#include "cpu/kernels/kernels.h"

#include <math.h>

enum {
    CHUNK = 512,    /* rows whose sums are taken together: fixed, so that threads change nothing */
    SPAN = 32,      /* rows of short float sums, added up in double */
    SMALL = 1 << 16 /* values from which on threads help */
};

/* The work of a call: rows of C values cut into chunks, two sums of each channel in each chunk. */
struct batch {
    int64_t rows, C, chunks;
    double *sums;   /* (chunk, 2, C) */
    float *partial; /* (thread, 2, C) */
};

static aim_status batch_start(struct backend *be, const struct tensor *x, struct batch *k)
{
    *k = (struct batch){.rows = tensor_rows(x), .C = tensor_cols(x)};
    k->chunks = (k->rows + CHUNK - 1) / CHUNK;
    k->sums = mem_zero(be->ctx, (size_t)(k->chunks * 2 * k->C), sizeof(double), MEM_ACTIVATIONS);
    k->partial = mem_array(be->ctx, (size_t)(be->threads * 2 * k->C), sizeof(float), MEM_ACTIVATIONS);
    return k->sums && k->partial ? AIM_OK : AIM_ERR_MEMORY;
}

static void batch_end(struct batch *k)
{
    mem_free(k->sums);
    mem_free(k->partial);
}

/*
 * The sums of one chunk. Forward (dy NULL): Σ(x-p) and Σ(x-p)², p being the first row, so that squares of deviations stay
 * exact when the mean is many of them. Backward: Σ dy and Σ dy (x - mean).
 */
static void chunk_sums(const struct batch *k, const float *x, const float *origin, const float *dy, int64_t chunk)
{
    int64_t C = k->C, first = chunk * CHUNK, end = first + CHUNK < k->rows ? first + CHUNK : k->rows;
    float *a = k->partial + omp_get_thread_num() * 2 * C, *b = a + C;
    double *sums = k->sums + chunk * 2 * C;
    for (int64_t r = first; r < end; r += SPAN) {
        memset(a, 0, (size_t)(2 * C) * sizeof(float));
        for (int64_t q = r; q < end && q < r + SPAN; q++)
            for (int64_t c = 0; c < C; c++) {
                float deviation = x[q * C + c] - origin[c], other = dy ? dy[q * C + c] : deviation;
                a[c] += other;
                b[c] += other * deviation;
            }
        for (int64_t c = 0; c < 2 * C; c++) sums[c] += (double)a[c];
    }
}

/* Adds the chunks' sums up, in order, into the first chunk's. */
static void add_chunks(const struct batch *k)
{
    for (int64_t chunk = 1; chunk < k->chunks; chunk++)
        for (int64_t c = 0; c < 2 * k->C; c++) k->sums[c] += k->sums[chunk * 2 * k->C + c];
}

aim_status KERNEL(batch_norm)(struct backend *be, const struct tensor *x, const struct tensor *w, const struct tensor *b,
                              float eps, float momentum, struct tensor *mean, struct tensor *variance,
                              struct tensor *statistics, struct tensor *y)
{
    struct batch k;
    aim_status status = batch_start(be, x, &k);
    if (status != AIM_OK) {
        batch_end(&k);
        return status;
    }
    const int64_t C = k.C;
    const double n = (double)k.rows;
    const bool large = tensor_count(x) > SMALL;
    const float *in = f32(x), *weight = f32(w), *bias = f32(b);
    float *out = f32(y), *center = f32(statistics), *rstd = center + C;
#pragma omp parallel for num_threads(be->threads) schedule(static) if (large)
    for (int64_t chunk = 0; chunk < k.chunks; chunk++) chunk_sums(&k, in, in, NULL, chunk);
    add_chunks(&k);
    for (int64_t c = 0; c < C; c++) {
        double offset = k.sums[c] / n, biased = k.sums[C + c] / n - offset * offset;
        biased = biased > 0 ? biased : 0;
        center[c] = (float)((double)in[c] + offset);
        rstd[c] = (float)(1 / sqrt(biased + (double)eps));
        if (!mean) continue;
        double unbiased = k.rows > 1 ? biased * n / (n - 1) : biased;
        f32(mean)[c] += momentum * (center[c] - f32(mean)[c]);
        f32(variance)[c] += momentum * ((float)unbiased - f32(variance)[c]);
    }
#pragma omp parallel for num_threads(be->threads) schedule(static) if (large)
    for (int64_t r = 0; r < k.rows; r++)
        for (int64_t c = 0; c < C; c++) out[r * C + c] = (in[r * C + c] - center[c]) * (rstd[c] * weight[c]) + bias[c];
    batch_end(&k);
    return AIM_OK;
}

/* With g = dy: db = Σ g; dw = Σ g x̂; dx = w rstd (g - mean(g) - x̂ mean(g x̂)) */
aim_status KERNEL(batch_norm_backward)(struct backend *be, const struct tensor *x, const struct tensor *w,
                                       const struct tensor *statistics, const struct tensor *dy, struct tensor *dx,
                                       struct tensor *dw, struct tensor *db)
{
    struct batch k;
    aim_status status = batch_start(be, x, &k);
    if (status != AIM_OK) {
        batch_end(&k);
        return status;
    }
    const int64_t C = k.C;
    const bool large = tensor_count(x) > SMALL;
    const float *in = f32(x), *up = f32(dy), *weight = f32(w), *mean = f32(statistics), *rstd = mean + C;
#pragma omp parallel for num_threads(be->threads) schedule(static) if (large)
    for (int64_t chunk = 0; chunk < k.chunks; chunk++) chunk_sums(&k, in, mean, up, chunk);
    add_chunks(&k);
    float *share = k.partial, *slope = k.partial + C; /* dx = w rstd (dy - share - (x - mean) slope) */
    for (int64_t c = 0; c < C; c++) {
        double scale = (double)rstd[c], toward = k.sums[C + c] * scale; /* Σ dy x̂ */
        if (dw) f32(dw)[c] += (float)toward;
        if (db) f32(db)[c] += (float)k.sums[c];
        share[c] = (float)(k.sums[c] / (double)k.rows);
        slope[c] = (float)(toward * scale / (double)k.rows);
    }
    float *to = dx ? f32(dx) : NULL;
#pragma omp parallel for num_threads(be->threads) schedule(static) if (large)
    for (int64_t r = 0; r < (to ? k.rows : 0); r++)
        for (int64_t c = 0; c < C; c++) {
            int64_t i = r * C + c;
            to[i] += weight[c] * rstd[c] * (up[i] - share[c] - (in[i] - mean[c]) * slope[c]);
        }
    batch_end(&k);
    return AIM_OK;
}
