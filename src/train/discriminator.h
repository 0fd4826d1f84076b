/*
 * The networks that tell pictures from reconstructions while a tokenizer is trained (spec E3, E4), from LlamaGen: PatchGAN,
 * and the one of StyleGAN. Their tensors come from a parameter table, so that a checkpoint keeps and gives them back by name.
 */
#ifndef AIM_TRAIN_DISCRIMINATOR_H
#define AIM_TRAIN_DISCRIMINATOR_H

#include "model/params.h"
#include "tensor/ops.h"

enum discriminator_kind { DISCRIMINATOR_PATCH, DISCRIMINATOR_STYLE };

struct discriminator_config {
    enum discriminator_kind kind;
    int size;     /* StyleGAN's: of the square pictures, a power of two from 8 to 1024 */
    int channels; /* PatchGAN's: of its first layer; LlamaGen's has 64 */
};

struct discriminator_conv {
    struct tensor *w, *b; /* b is NULL where there is no bias */
};

struct discriminator_norm {
    struct tensor *w, *b, *mean, *variance; /* the last two are the running statistics */
};

/* PatchGAN's layers, from the pictures to the logits. */
struct patch_layers {
    struct discriminator_conv conv[5];
    struct discriminator_norm norm[3]; /* after conv[1..3] */
};

struct style_block {
    struct discriminator_conv res, first, second, down;
};

enum { STYLE_BLOCKS = 8 };

struct style_layers {
    struct discriminator_conv in, final, hidden, out;
    int blocks;
    struct style_block block[STYLE_BLOCKS];
};

struct discriminator {
    struct discriminator_config config;
    struct patch_layers patch;
    struct style_layers style;
    size_t count;            /* tensors, in the order of the table */
    struct tensor **tensors; /* each row's; those of buffers are the running statistics */
    size_t trainable_count;
    struct tensor **trainable; /* borrowed from tensors: what an optimizer changes */
};

/* The table's rows, under LlamaGen's names: 2,765,633 parameters (64 channels), or 36,500,225 for pictures of 256.
 * AIM_ERR_ARGUMENT for a size that the network cannot have. */
aim_status discriminator_describe(const struct discriminator_config *config, struct params *table);

/* From a filled table (params_init, params_load), whose values are copied. *out is for discriminator_free, also after a
 * failure. */
aim_status discriminator_build(const struct discriminator_config *config, const struct params *table,
                               struct discriminator **out);
void discriminator_free(struct discriminator *d);

/* Whether what runs from now on computes the parameters' gradients: not while the generator learns. */
void discriminator_train(struct discriminator *d, bool on);

/* pixels (N,3,H,W) -> logits, PatchGAN's (N,h,w,1) or (N,1,1,1): high for real ones. BatchNorm works in training mode, and
 * its running statistics take a step. */
struct tensor *discriminator_forward(struct exec *ex, const struct discriminator *d, const struct tensor *pixels);

#endif
