/*
 * Stage 1: the VQ tokenizer (spec D): pictures to codes and back. Feature maps are NHWC inside.
 */
#ifndef AIM_MODEL_VQ_H
#define AIM_MODEL_VQ_H

#include "model/config.h"
#include "model/params.h"
#include "tensor/ops.h"

struct vq_conv {
    struct tensor *w, *b; /* (O,I,k,k), (O) */
};

struct vq_norm {
    struct tensor *w, *b; /* (C) */
};

struct vq_res {
    struct vq_norm norm1, norm2;
    struct vq_conv conv1, conv2;
    struct vq_conv shortcut; /* 1x1; NULL tensors when the channels stay the same */
};

struct vq_attn {
    struct vq_norm norm;
    struct vq_conv q, k, v, out; /* 1x1 */
};

/* One resolution: res blocks, each followed by attention at the lowest one, then a change of size. */
struct vq_level {
    int blocks;
    struct vq_res *res;
    struct vq_attn *attn;  /* NULL except at the lowest resolution */
    struct vq_conv resize; /* down- or upsampling convolution; NULL tensors after the last level */
};

struct vq_stack {
    struct vq_conv conv_in, conv_out;
    struct vq_level *levels; /* in the order data passes them */
    struct vq_res mid_in, mid_out;
    struct vq_attn mid_attn;
    struct vq_norm norm_out;
};

struct vq {
    aim_context *ctx;
    struct vq_config config;
    struct vq_stack encoder, decoder;
    struct vq_conv quant, post_quant; /* 1x1 */
    struct tensor *codebook;          /* (V,D), rows of unit length unless trainable */
    bool trainable;
    size_t tensor_count;
    struct tensor **tensors; /* all of them, in the order of the parameter table (its buffer left out) */
};

/* The rows of the parameter table (344 for VQ-f16), in the official order. */
aim_status vq_describe(const struct vq_config *config, struct params *table);

/* From a filled table to a network ready to run. *vq is freed with vq_free, also after a failure. */
aim_status vq_build(const struct vq_config *config, const struct params *table, struct vq **vq);
/* The same with tensors of its own whose gradients the tape computes. The codebook is kept as it is in the file, and its
 * rows are brought to unit length wherever they are used. */
aim_status vq_build_trainable(const struct vq_config *config, const struct params *table, struct vq **vq);
void vq_free(struct vq *vq);

/* pixels (N,3,H,W) -> latent before quantisation (N, H/f, W/f, D). H and W must be multiples of f = vq_downsample. */
struct tensor *vq_latent(struct exec *ex, const struct vq *vq, const struct tensor *pixels);

/* latent -> ids (N*h*w) of the nearest codes */
struct tensor *vq_quantise(struct exec *ex, const struct vq *vq, const struct tensor *latent);

/* ids (N*rows*columns) -> pixels (N, 3, rows*f, columns*f) */
struct tensor *vq_decode(struct exec *ex, const struct vq *vq, const struct tensor *ids, int64_t N, int64_t rows,
                         int64_t columns);

/* What training wants of a batch, freed with vq_training_clear: the codes that were chosen; the losses (one value each)
 * vq = mean (ê - sg ẑ)² and commit = 0.25 mean (ẑ - sg ê)²; ẑ (N,h,w,D) and ê (V,D), of unit length, for the entropy term;
 * and what the decoder's last convolution was given (N,H,W,C), for the adaptive weight. */
struct vq_training {
    struct tensor *ids, *vq, *commit, *unit, *codes, *last;
};
void vq_training_clear(struct vq_training *training);

/* pixels (N,3,H,W) -> their reconstruction (N,3,H,W), through the nearest codes, past which the gradient goes straight.
 * Recorded when ex has a tape. On failure NULL, and NULL tensors in *training. */
struct tensor *vq_train_forward(struct exec *ex, const struct vq *vq, const struct tensor *pixels,
                                struct vq_training *training);

/* dw += the gradient by the decoder's last filters, from that by its pixels (N,3,H,W); `last` as in struct vq_training. */
void vq_last_gradient(struct exec *ex, const struct vq *vq, const struct tensor *last, const struct tensor *dpixels,
                      struct tensor *dw);

/* Bytes of activations at the peak of encoding or decoding one picture of rows x columns codes. */
int64_t vq_activation_bytes(const struct vq_config *config, int64_t rows, int64_t columns);

#endif
