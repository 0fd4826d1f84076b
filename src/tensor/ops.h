/*
 * The ops as models call them: check shapes, make the result, run the backend's kernel. The formulas and layouts are in
 * ops.def. Each returns a new tensor that the caller owns, or NULL once anything has failed (see tensor.h); inputs are
 * borrowed.
 */
#ifndef AIM_TENSOR_OPS_H
#define AIM_TENSOR_OPS_H

#include "tensor/backend.h"

/* op_linear.c */
struct tensor *op_linear(struct exec *ex, const struct tensor *x, const struct tensor *w, const struct tensor *bias);

/* x in another type, or x itself, counted once more, when it has that type. */
struct tensor *op_cast(struct exec *ex, const struct tensor *x, enum tensor_type type);
/* loss (M) = -log softmax(x wᵀ)[target]: the head and its loss, a block of rows at a time, so that the logits (M,V) of a large
 * vocabulary are never there as a whole; the backward makes them again. */
struct tensor *op_linear_cross_entropy(struct exec *ex, const struct tensor *x, const struct tensor *w,
                                       const struct tensor *target);

/* op_sequence.c: stage 2 */
struct tensor *op_embedding(struct exec *ex, const struct tensor *tokens, const struct tensor *positions,
                            const struct tensor *ids, const struct tensor *pos);
struct tensor *op_prepend(struct exec *ex, const struct tensor *first, const struct tensor *rest);
struct tensor *op_slice_add(struct exec *ex, const struct tensor *x, int64_t from, const struct tensor *bias);
struct tensor *op_silu(struct exec *ex, const struct tensor *x);
/* *r becomes r + gate ⊙ h (the old tensor is dropped) when h is given; h, gates and mod may be NULL tensors of that kind
 * only through OP_NONE, since a NULL input means that an earlier op failed. */
#define OP_NONE (&op_none)
extern const struct tensor op_none;
struct tensor *op_residual_rms_norm_modulate(struct exec *ex, struct tensor **r, const struct tensor *h,
                                             const struct tensor *gates, const struct tensor *w, const struct tensor *mod);
struct tensor *op_causal_conv1d_silu(struct exec *ex, const struct tensor *zxbcdt, const struct tensor *w,
                                     const struct tensor *bias);
struct tensor *op_ssd(struct exec *ex, const struct tensor *xbc, const struct tensor *zxbcdt, const struct tensor *A_log,
                      const struct tensor *dt_bias, const struct tensor *D);
struct tensor *op_gated_rms_norm(struct exec *ex, const struct tensor *y, const struct tensor *zxbcdt, const struct tensor *w);
struct tensor *op_cross_entropy(struct exec *ex, const struct tensor *logits, const struct tensor *target);

/* op_image.c: the tokenizer */
struct tensor *op_conv2d(struct exec *ex, const struct tensor *x, const struct tensor *w, const struct tensor *bias,
                         struct conv2d how);
struct tensor *op_group_norm_silu(struct exec *ex, const struct tensor *x, const struct tensor *w, const struct tensor *b,
                                  int groups, bool silu);
struct tensor *op_attention(struct exec *ex, const struct tensor *q, const struct tensor *k, const struct tensor *v);
struct tensor *op_add(struct exec *ex, const struct tensor *a, const struct tensor *b);
struct tensor *op_normalize_rows(struct exec *ex, const struct tensor *x);
struct tensor *op_nearest_code(struct exec *ex, const struct tensor *z, const struct tensor *e);
struct tensor *op_pictures(struct exec *ex, const uint8_t *bytes, int64_t N, int64_t H, int64_t W);
struct tensor *op_nchw_to_nhwc(struct exec *ex, const struct tensor *x);
struct tensor *op_nhwc_to_nchw(struct exec *ex, const struct tensor *x);
/* The value of code; the gradient goes to z, of the same size, unchanged. */
struct tensor *op_straight_through(struct exec *ex, const struct tensor *z, const struct tensor *code);
/* One value, weight · mean (a - target)²; the target gets no gradient. */
struct tensor *op_mean_square(struct exec *ex, const struct tensor *a, const struct tensor *target, float weight);

/* op_loss.c: what the losses of stage 1 are made of */
struct tensor *op_leaky_relu(struct exec *ex, const struct tensor *x, float slope);
struct tensor *op_scale(struct exec *ex, const struct tensor *x, float factor);
struct tensor *op_max_pool(struct exec *ex, const struct tensor *x);
/* Normalises with the batch's own statistics; mean and variance (C), the running ones, take a step towards these. */
struct tensor *op_batch_norm(struct exec *ex, const struct tensor *x, const struct tensor *w, const struct tensor *b,
                             struct tensor *mean, struct tensor *variance);
struct tensor *op_blur(struct exec *ex, const struct tensor *x);
/* (N) distances of feature maps; dropout may be NULL; b gets no gradient. */
struct tensor *op_lpips_distance(struct exec *ex, const struct tensor *a, const struct tensor *b, const struct tensor *w,
                                 const struct dropout *dropout);
/* One value, weight · mean |a - target|; the target gets no gradient. */
struct tensor *op_mean_absolute(struct exec *ex, const struct tensor *a, const struct tensor *target, float weight);
/* One value, weight · mean f(x). */
struct tensor *op_mean_map(struct exec *ex, const struct tensor *x, enum mean_map map, float weight);
/* One value; z (M,D) and e (V,D) with rows of unit length. */
struct tensor *op_code_entropy(struct exec *ex, const struct tensor *z, const struct tensor *e, float temperature,
                               float weight);

/* The published models' constants (spec B3, C8, D1). */
#define AIM_RMS_EPS             1e-5f
#define AIM_GROUP_NORM_EPS      1e-6f
#define AIM_BATCH_NORM_EPS      1e-5f
#define AIM_BATCH_NORM_MOMENTUM 0.1f

/* Shared by the op files: false, with the message set, unless the condition on shapes holds. */
bool op_check(struct exec *ex, bool shapes_fit, const char *op);
/* Drops `y` and returns NULL if the kernel failed. */
struct tensor *op_finish(struct exec *ex, aim_status status, struct tensor *y);

#endif
