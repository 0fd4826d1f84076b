/*
 * From a picture of any size to the square that a network sees: the transforms of AiM's script (util/data.py) and of
 * LlamaGen (dataset/augmentation.py, from ADM), pixel for pixel as Pillow makes them. Random choices are a pure function of
 * (seed, number of the sample).
 */
#ifndef AIM_TRAIN_AUGMENT_H
#define AIM_TRAIN_AUGMENT_H

#include "base/context.h"

enum augment_kind {
    /* AiM: mirrored (when asked for), short side to 9/8 size (288 for 256) with Lanczos, then a random crop ... */
    AUGMENT_AIM,
    /* ... or the middle, never mirrored. */
    AUGMENT_AIM_EVAL,
    /* LlamaGen's random_crop_arr(size, 0.8, 1): short side to between size and 1.25 size, BOX halvings and bicubic, a random
     * crop; then mirrored, when asked for. */
    AUGMENT_RANDOM_CROP,
    /* center_crop_arr(size): the same with the short side equal to size, the middle; mirrored when asked for. */
    AUGMENT_CENTER_CROP,
};

struct augment {
    enum augment_kind kind;
    int size;
    bool flip; /* mirror every second picture, by chance */
};

/* The short side before AiM's crop. */
static inline int augment_aim_side(int size)
{
    return (int)((int64_t)size * 9 / 8);
}

/*
 * One picture; `sample` numbers the draws of a run, so that a picture differs from epoch to epoch. May mirror `image` in
 * place. The caller frees *out (size x size), which is zeroed on failure. AIM_ERR_ARGUMENT for a size below one and for
 * pictures too narrow to be scaled, AIM_ERR_MEMORY.
 */
aim_status augment_picture(aim_context *ctx, aim_image *image, const struct augment *how, uint64_t seed, uint64_t sample,
                           aim_image *out);

/* Mirrors a picture in place, left to right. */
void augment_mirror(aim_image *image);

/*
 * View `view` of LlamaGen's cached crops as floats in [-1, 1], out (3, size, size). With `views` = 2: the picture (which
 * is size x size) and its mirror image. With 10, torchvision's TenCrop: top left, top right, bottom left, bottom right,
 * middle, then the same five of the mirrored picture.
 */
void augment_view(const aim_image *image, int views, int view, int size, float *out);

#endif
