/*
 * Products with matrices of 8-bit numbers (T_Q8_PACKED).
 *
 * A panel holds PANEL rows of the matrix: their PANEL scales (float32), then line by line the next Q8_TERMS terms of every
 * row, a byte each, in the order of the rows. All tiers share this layout.
 *
 * Rows of x become whole numbers too, of 16 bits: they cost the result nothing beside what 8 bits of a weight have cost it,
 * and sums of products of whole numbers are exact, so that no order of summation matters.
 */
#ifndef AIM_CPU_Q8_H
#define AIM_CPU_Q8_H

#include "cpu/kernels/kernels.h"

/* Terms of a row with its padding. */
static inline int64_t q8_terms(int64_t K)
{
    return (K + Q8_TERMS - 1) / Q8_TERMS * Q8_TERMS;
}

static inline size_t q8_panel_bytes(int64_t K)
{
    return PANEL * (sizeof(float) + (size_t)q8_terms(K));
}

static inline const int8_t *q8_panel_lines(const void *panel)
{
    return (const int8_t *)panel + PANEL * sizeof(float);
}

/* Element (n, k) of a packed matrix of K columns. */
static inline float q8_packed_at(const void *packed, int64_t K, int64_t n, int64_t k)
{
    const char *panel = (const char *)packed + (size_t)(n / PANEL) * q8_panel_bytes(K);
    int64_t j = n % PANEL, at = (k / Q8_TERMS * PANEL + j) * Q8_TERMS + k % Q8_TERMS;
    return ((const float *)(const void *)panel)[j] * (float)q8_panel_lines(panel)[at];
}

/* Rows n0 .. n0+PANEL of w (N, K), f32 or bf16, as one panel. A row with an infinity or NaN gets the scale NaN. */
void KERNEL(q8_pack_panel)(const struct tensor *w, int64_t n0, void *panel);

/* y (M,N) = x (M,K) wᵀ */
aim_status KERNEL(q8_product)(struct backend *be, const struct tensor *x, const struct tensor *w, struct tensor *y);

#endif
