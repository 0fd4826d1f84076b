/*
 * A backend: a table with one kernel for every op of ops.def, and what those kernels share.
 */
#ifndef AIM_TENSOR_BACKEND_H
#define AIM_TENSOR_BACKEND_H

#include "tensor/tensor.h"

struct ssd_cache;

/* Stage-2 sampling, spec B10 (temperature is honoured; 0 = the first maximum). */
struct sampling {
    double cfg; /* logits = uncond + cfg (logits - uncond) */
    double temperature;
    double top_p;
    int top_k;
};

/* A two-dimensional convolution. Zero padding; the output size follows from the input's. */
struct conv2d {
    int stride;
    int pad_before, pad_after; /* rows above and below, columns left and right */
    bool upsample;             /* x is enlarged twofold (nearest) before the convolution */
};

struct backend;

#define OP(name, parameters) aim_status(*name) parameters;
struct ops {
#include "tensor/ops.def"
};
#undef OP

struct backend {
    aim_context *ctx;
    int threads;
    struct ops op;
    void *dense; /* state of the dense library, freed by dense_free */
    void (*dense_free)(void *dense);
};

/* The backend that the options ask for: device, CPU tier. Describes itself in ctx->device. */
aim_status backend_create(aim_context *ctx, const aim_context_options *options, struct backend **out);
void backend_free(struct backend *be);

#endif
