/* Dense products through cuBLASLt. */
#ifndef AIM_CUDA_DENSE_CUH
#define AIM_CUDA_DENSE_CUH

#include "cuda/device.cuh"

/* A row-major matrix, or a batch of them, `stride` values apart; rows lie `ld` values apart. `transposed`: its transpose is
 * what lies there. */
struct cuda_operand {
    const void *data;
    int64_t ld, stride;
    bool transposed;
};

/* c (rows, cols) = a (rows, inner) b (inner, cols), or c += a b; float32 accumulation. a and b are of type `in`, c of `out`. */
struct cuda_product {
    enum tensor_type in, out;
    int64_t rows, cols, inner, batch;
    struct cuda_operand a, b;
    void *c;
    int64_t ldc, stride_c;
    bool add;
};

aim_status cuda_multiply(struct backend *be, const struct cuda_product *p);

/*
 * The bf16 values of a matrix of parameters, T_F32 or T_BF16. The copy of one that lasts (a constant, a parameter that
 * learns) is made once and kept in w->converted, where adamw refreshes it; any other's is made in `room`, which has
 * space for it, or, when room is NULL, is refused with NULL.
 */
const bf16 *cuda_weights_bf16(struct backend *be, const struct tensor *w, bf16 *room);

/* The kept copy, or NULL; any other conversion of w is dropped, because w is about to change. */
bf16 *cuda_kept_bf16(struct tensor *w);

/* to = from, n values, rounded to nearest even */
void cuda_round(struct backend *be, const float *from, int64_t n, bf16 *to);

#endif
