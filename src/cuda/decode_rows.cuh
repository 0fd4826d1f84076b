/*
 * Products of a hundred rows with a matrix of bf16, for decoding: they end early in a chain of small kernels, so that what
 * counts is the time to the first and after the last byte. Blocks start before their input is there (early.cuh) and load
 * weights meanwhile; matrices with few rows are cut along K too, whose sums the next kernel adds in their order.
 */
#ifndef AIM_CUDA_DECODE_ROWS_CUH
#define AIM_CUDA_DECODE_ROWS_CUH

#include "cuda/device.cuh"

enum { ROWS_MOST = 128 };

/* y (parts,R,N) float32: sums over parts of K of x (R,K) wᵀ, w (N,K), R <= ROWS_MOST; K is a multiple of 8. The bits of a row
 * do not depend on R. */
struct rows_product {
    const bf16 *x, *w;
    float *y;
    int R, N, K, parts;
    bool early; /* the kernel in front does not write w: this one may start early */
};

/* How many parts suit a matrix, at most `most`. */
int rows_parts(int N, int K, int most);

aim_status rows_multiply(struct backend *be, const struct rows_product *p, cudaStream_t stream);

#endif
