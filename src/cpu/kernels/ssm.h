/* What the sequence and step forms of the mixer share. */
#ifndef AIM_CPU_SSM_H
#define AIM_CPU_SSM_H

#include <math.h>

#include "cpu/kernels/kernels.h"

enum { HEAD_VECS = HEADDIM / VLEN, CONV_BLOCK = 64 };

/* E from the widths of the input projection, W = E + C + E/HEADDIM, and of the convolution, C. */
static inline int64_t inner_width(int64_t W, int64_t C)
{
    return (W - C) / (HEADDIM + 1) * HEADDIM;
}

/* ln(1 + e^x); the identity above 20, where the difference is below float precision (spec C3, I-26) */
static inline float softplus(float x)
{
    return x > 20.0f ? x : log1pf(expf(x));
}

static inline float dot(const float *a, const float *b, int64_t n)
{
    vf sum = {0};
    int64_t i = 0;
    for (; i + VLEN <= n; i += VLEN) sum += vload(a + i) * vload(b + i);
    if (i < n) sum += vload_part(a + i, n - i) * vload_part(b + i, n - i);
    return vsum(sum);
}

/* Weights of up to CONV_BLOCK channels, tap-major, zero past `count`. */
struct conv_taps {
    float tap[CONV_WIDTH][CONV_BLOCK], bias[CONV_BLOCK];
    int64_t count;
};

static inline void conv_taps_load(struct conv_taps *taps, const float *w, const float *bias, int64_t first, int64_t C)
{
    float tail[CONV_BLOCK * CONV_WIDTH] = {0};
    const float *from = w + first * CONV_WIDTH;
    taps->count = C - first < CONV_BLOCK ? C - first : CONV_BLOCK;
    if (taps->count < CONV_BLOCK) from = memcpy(tail, from, (size_t)taps->count * CONV_WIDTH * sizeof(float));
    for (int64_t i = 0; i < CONV_BLOCK; i++)
        for (int k = 0; k < CONV_WIDTH; k++) taps->tap[k][i] = from[i * CONV_WIDTH + k];
    memset(taps->bias, 0, sizeof taps->bias);
    memcpy(taps->bias, bias + first, (size_t)taps->count * sizeof(float));
}

/* out = silu(bias + Σ_k tap_k in_k), in[CONV_WIDTH-1] the current position; NULL = before the start, zeros */
static inline void conv_taps_apply(const struct conv_taps *taps, const float *const in[CONV_WIDTH], float *out)
{
    for (int64_t i = 0; i < taps->count; i += VLEN) {
        int64_t n = taps->count - i;
        bool whole = n >= VLEN;
        vf sum = vload(taps->bias + i);
        for (int k = 0; k < CONV_WIDTH; k++)
            if (in[k]) sum += vload(taps->tap[k] + i) * (whole ? vload(in[k] + i) : vload_part(in[k] + i, n));
        if (whole)
            vstore(out + i, vsilu(sum));
        else
            vstore_part(out + i, vsilu(sum), n);
    }
}

#endif
