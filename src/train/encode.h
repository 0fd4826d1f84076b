/* Pictures to codes in batches, by the tokenizer as it stands: for code caches, and for stage 2 straight from pictures. */
#ifndef AIM_TRAIN_ENCODE_H
#define AIM_TRAIN_ENCODE_H

#include "model/vq.h"
#include "tensor/tensor.h"

/*
 * pixels (n, 3, size, size) in [-1, 1] -> codes (n, (size/f)²), f = vq_downsample, which must divide size. The codes of a
 * picture do not depend on what else is in the batch. Runs without a tape.
 */
aim_status encode_pictures(struct exec *ex, const struct vq *vq, const float *pixels, int64_t n, int size, int32_t *codes);

#endif
