/*
 * The ways to a convolution, conv2d being the choice between them: patches, which does every kind, and Winograd's
 * minimal filtering for 3x3 convolutions of stride 1 and padding 1, with or without the twofold enlargement in front.
 * The generic tier, being the reference, has patches only.
 */
#ifndef AIM_CPU_CONV_H
#define AIM_CPU_CONV_H

#include "cpu/kernels/simd.h"
#include "tensor/backend.h"

enum {
    WINOGRAD_MIN_PIXELS = 32 * 32, /* of the output: below, the transformed weights cost more memory than they are worth */
    WINOGRAD_MIN_CHANNELS = 16,    /* in and out: below, transforms outweigh products */
};

/* Whether the convolution with w to y is one for winograd_conv2d, and faster that way. */
static inline bool winograd_pays(const struct tensor *w, const struct conv2d *how, const struct tensor *y)
{
    return w->shape[2] == 3 && how->stride == 1 && how->pad_before == 1 && how->pad_after == 1 &&
           y->shape[1] * y->shape[2] >= WINOGRAD_MIN_PIXELS && w->shape[0] >= WINOGRAD_MIN_CHANNELS &&
           w->shape[1] >= WINOGRAD_MIN_CHANNELS;
}

#define CONV2D_PARAMETERS                                                                                                      \
    (struct backend * be, const struct tensor *x, const struct tensor *w, const struct tensor *bias, const struct conv2d *how, \
     struct tensor *y)
#ifdef AIM_TIER
aim_status KERNEL(patches_conv2d) CONV2D_PARAMETERS;
aim_status KERNEL(winograd_conv2d) CONV2D_PARAMETERS;
#endif

#endif
