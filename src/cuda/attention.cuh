/* Where the plans of attention's products are kept. */
#ifndef AIM_CUDA_ATTENTION_CUH
#define AIM_CUDA_ATTENTION_CUH

#include <stdlib.h>
#include <string.h>

#include "cuda/values.cuh"

struct batched_plan;

/* The head of the device's list of plans (convolution.cu keeps it), and the end of such a list. */
struct batched_plan **cuda_batched_plans(struct cuda *c);
void batched_free(struct batched_plan *first);

#endif
