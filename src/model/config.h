/*
 * What a model is: the sizes of both stages. They are read off the tensors' shapes, which cannot lie; config.json is
 * checked against them and adds what shapes do not tell: the position offset and the names of the classes.
 */
#ifndef AIM_MODEL_CONFIG_H
#define AIM_MODEL_CONFIG_H

#include "base/context.h"

struct tensor_file;

/* Stage 2 (spec B1). */
struct ar_config {
    int d_model, n_layer, vocab_size, num_classes, num_tokens;
    bool adaln_group; /* false: one adaLN Linear per layer */
    int num_groups;   /* 1 when adaln_group is false */
    int d_state;
    bool no_positions; /* the position table is zero and stays so: an ablation of the paper */
};

enum { VQ_MAX_LEVELS = 8, VQ_NORM_GROUPS = 32 };

/* The VQ tokenizer (spec D1). Attention stands at the lowest level and in the middle. */
struct vq_config {
    int base_channels;
    int levels;
    int multiplier[VQ_MAX_LEVELS]; /* channels of encoder level l = base_channels * multiplier[l] */
    int res_blocks;                /* per encoder level; the decoder has one more */
    int z_channels, codebook_size, codebook_dim;
    int norm_groups; /* of every GroupNorm; shapes do not tell: config.json's vq.norm_groups, VQ_NORM_GROUPS without it */
};

struct model_config {
    bool has_ar, has_vq;
    struct ar_config ar;
    struct vq_config vq;
    int pos_offset; /* -1: not stated */
    int name_count; /* of id2label; names may have holes (NULL) */
    char **names;
};

/* Widths of the mixer (spec A1): inner E, heads H, convolution C, input projection W. */
static inline int64_t ar_inner(const struct ar_config *c)
{
    return 2 * (int64_t)c->d_model;
}

static inline int64_t ar_heads(const struct ar_config *c)
{
    return ar_inner(c) / 64;
}

static inline int64_t ar_conv_width(const struct ar_config *c)
{
    return ar_inner(c) + 2 * (int64_t)c->d_state;
}

static inline int64_t ar_in_width(const struct ar_config *c)
{
    return ar_inner(c) + ar_conv_width(c) + ar_heads(c);
}

/* Codes along one side of a picture; 0 when num_tokens is no square. */
int ar_grid(const struct ar_config *c);

/* Pixels per code along one side. */
int vq_downsample(const struct vq_config *c);

/* A preset's sizes; AIM_ERR_ARGUMENT lists the names that exist. */
aim_status config_preset(aim_context *ctx, const char *name, struct model_config *config);

/* A tokenizer's alone: "VQ-f16" (AiM's), "VQ-f8" (LlamaGen's other one), "tiny". */
aim_status config_tokenizer_preset(aim_context *ctx, const char *name, struct vq_config *config);

/*
 * The sizes of the stage that `file` holds, from its shapes. Returns whether the stage is there in *found.
 * AIM_ERR_FORMAT when it is there but makes no sense.
 */
aim_status config_infer_ar(aim_context *ctx, const char *path, const struct tensor_file *file, struct ar_config *c,
                           bool *found);
aim_status config_infer_vq(aim_context *ctx, const char *path, const struct tensor_file *file, struct vq_config *c,
                           bool *found);

/* Reads config.json into *config, for the stages that are there: pos_offset, names, norm_groups. The sizes that it states are
 * checked against those already there. */
aim_status config_read(aim_context *ctx, const char *path, struct model_config *config);

/* The same for text in memory; `path` is what messages call it. */
aim_status config_parse(aim_context *ctx, const char *path, const void *text, size_t size, struct model_config *config);

/* Takes the sizes of stage 2 that a config.json states, for a network that is to be made; others stay as they are. */
aim_status config_read_sizes(aim_context *ctx, const char *path, struct ar_config *c);

/* Writes config.json: the official keys as the official code does, then ours. */
aim_status config_write(aim_context *ctx, const char *path, const struct model_config *config);

void config_free(struct model_config *config);

/* A stage's tensor by its name without prefix, with or without `prefix` in the file; NULL if absent. */
const struct tensor_entry *config_find(const struct tensor_file *file, const char *prefix, const char *name);

#define AR_PREFIX "mamba."
#define VQ_PREFIX "vqvae."

#endif
