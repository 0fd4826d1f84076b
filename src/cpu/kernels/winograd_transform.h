/*
 * The transforms of Winograd's convolution. One dimension at a time: y = Aᵀ [(G g) ⊙ (Bᵀ d)], d a few neighbouring
 * inputs, g the three taps, y four neighbouring outputs; in two dimensions every matrix acts on columns, then on rows
 * (Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, arXiv 1509.09308).
 *
 * Plain convolution, F(4,3): Toom-Cook at the points 0, ±a, ±b, ∞. Lavin & Gray take a = 1, b = 2; here a = √½, b = √2,
 * which keeps the factors closer together and makes the error in float five times smaller (at most 1.9e-6 of the
 * largest output with 512 channels, where a plain sum has 0.4e-6):
 *
 *        | 1   0  -5/2  0   1  0 |        |   1      0    0  |
 *        | 0  -2a  -2   a   1  0 |        | -2/3  -2a/3 -1/3 |         | 1   1    1    1    1   0 |
 *   Bᵀ = | 0   2a  -2  -a   1  0 |    G = | -2/3   2a/3 -1/3 |    Aᵀ = | 0   a   -a    b   -b   0 |
 *        | 0  -a  -1/2  b   1  0 |        |  1/6    b/6  1/3 |         | 0  1/2  1/2   2    2   0 |
 *        | 0   a  -1/2 -b   1  0 |        |  1/6   -b/6  1/3 |         | 0  a/2 -a/2  2b  -2b   1 |
 *        | 0   1    0 -5/2  0  1 |        |   0      0    1  |
 *
 * After enlargement the six inputs are p q q r r s, four numbers, and five products are enough:
 *
 *   out0 = u - m + v0     u  = (g0+g1+g2)/2 (q+r)     v0 = g0 (p-r)
 *   out1 = u + n          m  = (g0-g1-g2)/2 (q-r)     v1 = g2 (s-q)
 *   out2 = u + m          n  = (g0+g1-g2)/2 (q-r)
 *   out3 = u - n + v1
 *
 * so a tile of 4x4 outputs takes 25 products of 16 transformed inputs; all factors are 1 or 1/2, and the error is that
 * of a plain sum.
 */
#ifndef AIM_CPU_WINOGRAD_TRANSFORM_H
#define AIM_CPU_WINOGRAD_TRANSFORM_H

#include "cpu/kernels/simd.h"

enum {
    TILE = 4, /* outputs in each direction */
    PLAIN_INPUTS = 6,
    PLAIN_PRODUCTS = 6,
    UP_INPUTS = 4,
    UP_PRODUCTS = 5,
    MAX_INPUTS = PLAIN_INPUTS,
    MAX_PRODUCTS = PLAIN_PRODUCTS,
};

#define SQRT2 1.41421356237309504880f

static const int up_input_of_product[UP_PRODUCTS] = {0, 1, 2, 2, 3};

/* Bᵀ d, the results at a distance of `step` vectors from one to the next. */
static inline __attribute__((always_inline)) void transform_input(const bool up, const vf *d, vf *out, const int step)
{
    if (up) {
        out[0] = d[0] - d[2];
        out[step] = d[1] + d[2];
        out[2 * step] = d[1] - d[2];
        out[3 * step] = d[3] - d[1];
        return;
    }
    vf even_a = d[4] - 2.0f * d[2], odd_a = (0.5f * SQRT2) * (d[3] - 2.0f * d[1]);
    vf even_b = d[4] - 0.5f * d[2], odd_b = SQRT2 * (d[3] - 0.5f * d[1]);
    out[0] = d[0] - 2.5f * d[2] + d[4];
    out[step] = even_a + odd_a;
    out[2 * step] = even_a - odd_a;
    out[3 * step] = even_b + odd_b;
    out[4 * step] = even_b - odd_b;
    out[5 * step] = d[1] - 2.5f * d[3] + d[5];
}

/* Aᵀ m, likewise. */
static inline __attribute__((always_inline)) void transform_output(const bool up, const vf *m, vf *out, const int step)
{
    if (up) {
        out[0] = m[1] - m[2] + m[0];
        out[step] = m[1] + m[3];
        out[2 * step] = m[1] + m[2];
        out[3 * step] = m[1] - m[3] + m[4];
        return;
    }
    vf even_a = m[1] + m[2], odd_a = m[1] - m[2];
    vf even_b = m[3] + m[4], odd_b = m[3] - m[4];
    out[0] = m[0] + even_a + even_b;
    out[step] = (0.5f * SQRT2) * odd_a + SQRT2 * odd_b;
    out[2 * step] = 0.5f * even_a + 2.0f * even_b;
    out[3 * step] = (0.25f * SQRT2) * odd_a + (2.0f * SQRT2) * odd_b + m[5];
}

/* G g, in double: done once for weights that stay, and rounded once. */
static inline void transform_filter(bool up, double g0, double g1, double g2, double out[MAX_PRODUCTS])
{
    if (up) {
        out[0] = g0;
        out[1] = 0.5 * (g0 + g1 + g2);
        out[2] = 0.5 * (g0 - g1 - g2);
        out[3] = 0.5 * (g0 + g1 - g2);
        out[4] = g2;
        return;
    }
    const double a = 0.70710678118654752440, b = 1.41421356237309504880;
    double even_a = (2 * g0 + g2) / -3, odd_a = 2 * a * g1 / -3;
    double even_b = (g0 + 2 * g2) / 6, odd_b = b * g1 / 6;
    out[0] = g0;
    out[1] = even_a + odd_a;
    out[2] = even_a - odd_a;
    out[3] = even_b + odd_b;
    out[4] = even_b - odd_b;
    out[5] = g2;
}

#endif
