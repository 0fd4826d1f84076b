/*
 * The judge's network: four 3x3 convolutions of stride 2, each with GroupNorm and silu, and a product, on pictures scaled to
 * 64x64. Small enough to learn twenty classes of drawings on a CPU in a few minutes.
 */
#ifndef AIM_JUDGE_NETWORK_H
#define AIM_JUDGE_NETWORK_H

#include "tensor/ops.h"

enum { JUDGE_SIDE = 64, JUDGE_LEVELS = 4, JUDGE_TENSORS = 4 * JUDGE_LEVELS + 2 };

struct network {
    aim_context *ctx;
    int64_t classes;
    struct tensor *tensors[JUDGE_TENSORS]; /* per level: filters, bias, norm's weight and bias; then the product's */
};

/* Fresh weights that want gradients, a function of the seed. *n is for network_free, also after a failure. */
aim_status network_init(aim_context *ctx, int64_t classes, uint64_t seed, struct network *n);
void network_free(struct network *n);

/* pixels (N,3,64,64) in [-1,1] -> logits (N,classes), recorded when ex has a tape. */
struct tensor *network_forward(struct exec *ex, const struct network *n, const struct tensor *pixels);

/* The weights and the names of the classes as a safetensors file, and back. */
aim_status network_save(const struct network *n, const char *const *names, const char *path);
/* names, one block of NUL-terminated strings, is the caller's to free with mem_free. */
aim_status network_load(aim_context *ctx, const char *path, struct network *n, char **names);

#endif
