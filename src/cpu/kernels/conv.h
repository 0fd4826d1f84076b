/*
 * The ways to a convolution, conv2d being the choice between them: patches, which does every kind; and for 3x3
 * convolutions of stride 1 and padding 1 Winograd's minimal filtering, with or without the twofold enlargement in front,
 * and the narrow way to a few channels. The generic tier, being the reference, has patches only.
 */
#ifndef AIM_CPU_CONV_H
#define AIM_CPU_CONV_H

#include "cpu/kernels/simd.h"
#include "tensor/backend.h"

enum {
    WINOGRAD_MIN_PIXELS = 32 * 32, /* of the output: below, the transformed weights cost more memory than they are worth */
    WINOGRAD_MIN_CHANNELS = 16,    /* in and out: below, transforms outweigh products */
    NARROW_MIN_INPUTS = 16,
};

static inline bool conv_is_same3x3(const struct tensor *w, const struct conv2d *how)
{
    return w->shape[2] == 3 && how->stride == 1 && how->pad_before == 1 && how->pad_after == 1;
}

/* Whether the convolution with w to y is one for winograd_conv2d, and faster that way. */
static inline bool winograd_pays(const struct tensor *w, const struct conv2d *how, const struct tensor *y)
{
    return conv_is_same3x3(w, how) && y->shape[1] * y->shape[2] >= WINOGRAD_MIN_PIXELS &&
           w->shape[0] >= WINOGRAD_MIN_CHANNELS && w->shape[1] >= WINOGRAD_MIN_CHANNELS;
}

/* Whether dw under dy is one for winograd_weights: there the pictures of a batch count together. */
static inline bool winograd_weights_pays(const struct tensor *w, const struct conv2d *how, const struct tensor *dy)
{
    return conv_is_same3x3(w, how) && tensor_rows(dy) >= WINOGRAD_MIN_PIXELS && w->shape[0] >= WINOGRAD_MIN_CHANNELS &&
           w->shape[1] >= WINOGRAD_MIN_CHANNELS;
}

/* The same as winograd_pays for narrow_conv2d. */
static inline bool narrow_pays(const struct tensor *w, const struct conv2d *how)
{
    return conv_is_same3x3(w, how) && !how->upsample && 9 * w->shape[0] <= PANEL && w->shape[1] >= NARROW_MIN_INPUTS;
}

#define CONV2D_PARAMETERS                                                                                                      \
    (struct backend * be, const struct tensor *x, const struct tensor *w, const struct tensor *bias, const struct conv2d *how, \
     struct tensor *y)
#ifdef AIM_TIER
aim_status KERNEL(patches_conv2d) CONV2D_PARAMETERS;
aim_status KERNEL(winograd_conv2d) CONV2D_PARAMETERS;
aim_status KERNEL(narrow_conv2d) CONV2D_PARAMETERS;
/* Writes the gradient of w of a 3x3 convolution of stride and padding 1. */
aim_status KERNEL(winograd_weights)(struct backend *be, const struct tensor *x, const struct conv2d *how,
                                    const struct tensor *dy, struct tensor *dw);
#endif

#endif
