/* Matrices of 8-bit numbers (T_Q8_PACKED) on the GPU. */
#ifndef AIM_CUDA_Q8_CUH
#define AIM_CUDA_Q8_CUH

#include "cuda/device.cuh"

/* Rows of whole numbers, the padding rows included, `terms` bytes apart; then the scale of every row. */
struct q8_matrix {
    int8_t *numbers;
    float *scales;
    int64_t rows, terms;
};

static inline struct q8_matrix q8_matrix_of(const struct tensor *packed)
{
    int64_t rows = (packed->shape[0] + PANEL - 1) / PANEL * PANEL;
    int64_t terms = (packed->shape[1] + Q8_TERMS - 1) / Q8_TERMS * Q8_TERMS;
    int8_t *numbers = (int8_t *)packed->data;
    struct q8_matrix matrix = {numbers, (float *)(numbers + rows * terms), rows, terms};
    return matrix;
}

/* What `pack` and `linear_packed` of ops.def are for such matrices. */
aim_status cuda_q8_pack(struct backend *be, const struct tensor *w, struct tensor *packed);
aim_status cuda_q8_product(struct backend *be, const struct tensor *x, const struct tensor *w, struct tensor *y);

#endif
