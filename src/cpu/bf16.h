/*
 * Products with inputs rounded to bf16 and sums in float32, by the processor's own instruction for it (AVX512_BF16).
 * Nothing is emulated: processors without it refuse (cpu_check_bf16).
 */
#ifndef AIM_CPU_BF16_H
#define AIM_CPU_BF16_H

#include "tensor/backend.h"

/* Whether this build and this processor have the instruction. */
bool bf16_available(void);

/* A matrix (rows or columns, terms): element (i, k) is data[i * step + k * term_step], and one of the steps is 1. */
struct bf16_operand {
    const float *data;
    int64_t step, term_step;
};

/* C (M,N) = A B + bias, or C += A B if `adds`, over K terms; bias (N) or NULL. Every value of C is one chain over the
 * terms, two at a time as the instruction takes them, however many threads there are. On failure C is as it was. */
aim_status bf16_product(struct backend *be, int64_t M, int64_t N, int64_t K, struct bf16_operand A, struct bf16_operand B,
                        const float *bias, bool adds, float *C);

#endif
