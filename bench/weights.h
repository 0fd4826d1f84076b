/* What the benchmarks of decoding share. */
#ifndef AIM_BENCH_WEIGHTS_H
#define AIM_BENCH_WEIGHTS_H

#include "model/ar.h"

/* Bytes of weights that one token reads. */
static inline double weight_bytes(const struct ar *ar)
{
    double bytes = (double)tensor_bytes(ar->words->type, 2, ar->words->shape);
    for (int i = 0; i < ar->config.n_layer; i++) {
        const struct ar_layer *l = &ar->layers[i];
        bytes += (double)tensor_bytes(l->in_proj->type, 2, l->in_proj->shape);
        bytes += (double)tensor_bytes(l->out_proj->type, 2, l->out_proj->shape);
    }
    return bytes;
}

#endif
