/*
 * Resampling that equals Pillow's Image.resize byte for byte, and the two evaluation transforms built on it. Models are
 * trained and judged on pictures that Pillow scaled; any other resampler shifts every number that follows. The model is
 * Pillow up to version 12; version 13 runs the vertical pass first for some tall pictures, which moves a few bytes.
 */
#ifndef AIM_IO_RESAMPLE_H
#define AIM_IO_RESAMPLE_H

#include "base/context.h"

/* A rectangle of a picture, in pixels. */
struct image_window {
    int x, y, width, height;
};

/*
 * The part `window` of what Image.resize((width, height), filter) gives; a crop after a resize costs only its own pixels
 * this way. The caller frees *out, which is zeroed on failure. AIM_ERR_ARGUMENT for a size below one or a window that
 * does not lie inside, AIM_ERR_MEMORY.
 */
aim_status image_resample(aim_context *ctx, const aim_image *image, int width, int height, aim_filter filter,
                          const struct image_window *window, aim_image *out);

/* How ADM and LlamaGen bring the short side to a size: BOX halvings, then bicubic to width x height. */
struct image_scaling {
    int halvings, width, height;
};

/*
 * The scaling to a short side of `side`. AIM_ERR_ARGUMENT for a side below one or a result beyond what an int holds.
 * aim_image_center_crop is this, with a window in the middle (offsets rounded down).
 */
aim_status image_scaling_plan(aim_context *ctx, const aim_image *image, int side, struct image_scaling *plan);

/* The part `window` of the scaled picture. The caller frees *out, which is zeroed on failure. Fails as image_resample. */
aim_status image_scale(aim_context *ctx, const aim_image *image, const struct image_scaling *plan,
                       const struct image_window *window, aim_image *out);

/* torchvision's offset of a centred crop: half the difference, rounded half to even. */
int image_crop_offset(int whole, int part);

/*
 * The size torchvision's Resize(side) gives: the short side becomes `side`, the long one is scaled alike and truncated.
 * AIM_ERR_ARGUMENT for a side below one or a result beyond what an int holds.
 */
aim_status image_short_side_size(aim_context *ctx, const aim_image *image, int side, int *width, int *height);

/*
 * The transform of the official AiM evaluation: Resize(resize) with Lanczos, then CenterCrop(size); 1 <= size <= resize.
 * The caller frees *out (size x size), which is zeroed on failure.
 */
aim_status image_aim_eval(aim_context *ctx, const aim_image *image, int resize, int size, aim_image *out);

#endif
