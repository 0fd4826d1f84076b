/* The CUDA backend as src/tensor/backend.c sees it. */
#ifndef AIM_CUDA_CUDA_H
#define AIM_CUDA_CUDA_H

#include "tensor/backend.h"

/*
 * Makes `be` the backend of GPU number `ordinal`: its memory, its op table, its state. Describes the GPU in ctx->device.
 * AIM_ERR_UNSUPPORTED when there is no such GPU, or no driver, with the reason.
 */
aim_status cuda_attach(struct backend *be, int ordinal);

#endif
