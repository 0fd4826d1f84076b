/* C += A B for matrices of any strides. */
#ifndef AIM_CPU_GEMM_GENERAL_H
#define AIM_CPU_GEMM_GENERAL_H

#include "cpu/kernels/gemm.h"
#include "cpu/kernels/kernels.h"

/* Element (i, j) at data[i*row_stride + j*col_stride]. */
struct gemm_matrix {
    const float *data;
    int64_t rows, cols, row_stride, col_stride;
};

/* C (A.rows, B.cols; leading dimension ldc) += A B; A.cols = B.rows. The order of sums does not depend on threads. */
aim_status KERNEL(gemm_add)(struct backend *be, struct gemm_matrix A, struct gemm_matrix B, float *C, int64_t ldc);

/* The same in two steps, for who adds several products and must not fail between them: scratch for products of up to K
 * terms (NULL: memory is out; mem_free it), and the product. */
float *KERNEL(gemm_scratch)(struct backend *be, int64_t K);
void KERNEL(gemm_add_using)(struct backend *be, float *scratch, struct gemm_matrix A, struct gemm_matrix B, float *C,
                            int64_t ldc);

#endif
