/* What the forward and the backward of ssd share: one head of one chunk. */
#ifndef AIM_CPU_SSD_H
#define AIM_CPU_SSD_H

#include <math.h>

#include "cpu/kernels/ssm.h"

enum { SSD_ROWS = VLEN == 16 ? 4 : 1 }; /* rows of a head taken together: their sums fill the registers */

/* One head's working memory. */
struct head_work {
    double cs[SSD_CHUNK];              /* cumulative Δ A: differences of large sums, hence double */
    float u[SSD_CHUNK][HEADDIM];       /* Δ x */
    float weight[SSD_ROWS][SSD_CHUNK]; /* rows of M */
};

/* exp(cs_l - cs_s) for s .. s+VLEN, 0 past l. */
static inline vf head_decay(const struct head_work *work, int64_t l, int64_t s)
{
    typedef double vd __attribute__((vector_size(8 * VLEN)));
    vd cs;
    vi past;
    memcpy(&cs, work->cs + s, sizeof cs);
    for (int i = 0; i < VLEN; i++) past[i] = i;
    past = past > (int32_t)(l - s);
    return vexp(vselect(past, vset(-1e30f), __builtin_convertvector(work->cs[l] - cs, vf)));
}

/* cb[l][s] = C_l · B_s for s <= l < n; bt is B transposed, (S, SSD_CHUNK). */
static inline void chunk_products(const float *c_row, const float *bt, int64_t S, int64_t l, float *cb)
{
    for (int64_t s = 0; s <= l; s += VLEN) {
        vf even = {0}, odd = {0};
        for (int64_t i = 0; i + 1 < S; i += 2) {
            even += c_row[i] * vload(bt + i * SSD_CHUNK + s);
            odd += c_row[i + 1] * vload(bt + (i + 1) * SSD_CHUNK + s);
        }
        if (S % 2) even += c_row[S - 1] * vload(bt + (S - 1) * SSD_CHUNK + s);
        vstore(cb + s, even + odd);
    }
}

/* Δ and its cumulative product with A, and u = Δ x, for the n tokens of a chunk; x rows are C apart, dt rows W. */
static inline void head_prepare(struct head_work *work, int64_t n, const float *x, int64_t C, const float *dt, int64_t W,
                                float bias, float A)
{
    double sum = 0;
    for (int64_t t = 0; t < n; t++) {
        float delta = softplus(dt[t * W] + bias);
        sum += (double)(delta * A);
        work->cs[t] = sum;
        for (int64_t p = 0; p < HEADDIM; p += VLEN) vstore(work->u[t] + p, delta * vload(x + t * C + p));
    }
}

/* S_out = exp(cs_n) S_in + Σ_s exp(cs_n - cs_s) u_s ⊗ B_s; b rows are C apart */
static inline void head_update_state(const struct head_work *work, int64_t n, const float *b, int64_t C, int64_t S,
                                     float *state)
{
    float decay = expf((float)work->cs[n - 1]);
    for (int64_t i = 0; i < HEADDIM * S; i++) state[i] *= decay;
    for (int64_t s = 0; s < n; s++) {
        float factor = expf((float)(work->cs[n - 1] - work->cs[s]));
        for (int64_t p = 0; p < HEADDIM; p++) {
            float scale = factor * work->u[s][p];
            for (int64_t i = 0; i < S; i++) state[p * S + i] += scale * b[s * C + i];
        }
    }
}

#endif
