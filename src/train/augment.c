#include "train/augment.h"

#include <math.h>
#include <string.h>

#include "base/philox.h"
#include "io/image.h"
#include "io/resample.h"

/* The random choices of one sample. */
struct draw {
    uint32_t side, x, y;
    bool flip;
};

static struct draw draw_of(const struct augment *how, uint64_t seed, uint64_t sample)
{
    struct philox4 r = philox(seed, sample, 0, PHILOX_AUGMENT);
    return (struct draw){.side = r.v[0], .x = r.v[1], .y = r.v[2], .flip = how->flip && r.v[3] >> 31};
}

void augment_mirror(aim_image *image)
{
    size_t width = (size_t)image->width, stride = image_stride(image);
    for (size_t y = 0; y < (size_t)image->height; y++) {
        uint8_t *left = image->rgb + y * stride, *right = left + stride - 3;
        for (size_t i = 0; i < width / 2; i++, left += 3, right -= 3) {
            uint8_t pixel[3];
            memcpy(pixel, left, 3);
            memcpy(left, right, 3);
            memcpy(right, pixel, 3);
        }
    }
}

/* A window of size x size somewhere inside width x height. */
static struct image_window random_window(int width, int height, int size, const struct draw *d)
{
    int x = (int)philox_below(d->x, (uint32_t)(width - size) + 1), y = (int)philox_below(d->y, (uint32_t)(height - size) + 1);
    return (struct image_window){x, y, size, size};
}

static aim_status aim_crop(aim_context *ctx, aim_image *image, const struct augment *how, const struct draw *d, aim_image *out)
{
    int width = 0, height = 0;
    if (d->flip) augment_mirror(image); /* first, as there: resampling is not exactly symmetric */
    TRY(image_short_side_size(ctx, image, augment_aim_side(how->size), &width, &height));
    struct image_window window = random_window(width, height, how->size, d);
    return image_resample(ctx, image, width, height, AIM_FILTER_LANCZOS, &window, out);
}

static aim_status random_crop(aim_context *ctx, const aim_image *image, const struct augment *how, const struct draw *d,
                              aim_image *out)
{
    const double least = 0.8; /* of the short side is seen */
    int most = (int)ceil(how->size / least);
    int side = how->size + (int)philox_below(d->side, (uint32_t)(most - how->size) + 1);
    struct image_scaling plan;
    TRY(image_scaling_plan(ctx, image, side, &plan));
    struct image_window window = random_window(plan.width, plan.height, how->size, d);
    TRY(image_scale(ctx, image, &plan, &window, out));
    if (d->flip) augment_mirror(out);
    return AIM_OK;
}

static aim_status center_crop(aim_context *ctx, const aim_image *image, const struct augment *how, const struct draw *d,
                              aim_image *out)
{
    TRY(aim_image_center_crop(ctx, image, how->size, out));
    if (d->flip) augment_mirror(out);
    return AIM_OK;
}

aim_status augment_picture(aim_context *ctx, aim_image *image, const struct augment *how, uint64_t seed, uint64_t sample,
                           aim_image *out)
{
    *out = (aim_image){0};
    enum { LARGEST = 1 << 16 };
    if (how->size < 1 || how->size > LARGEST)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "pictures of %d pixels a side cannot be made", how->size);
    struct draw d = draw_of(how, seed, sample);
    switch (how->kind) {
    case AUGMENT_AIM: return aim_crop(ctx, image, how, &d, out);
    case AUGMENT_AIM_EVAL: return image_aim_eval(ctx, image, augment_aim_side(how->size), how->size, out);
    case AUGMENT_RANDOM_CROP: return random_crop(ctx, image, how, &d, out);
    case AUGMENT_CENTER_CROP: return center_crop(ctx, image, how, &d, out);
    }
    return aim_fail(ctx, AIM_ERR_ARGUMENT, "there is no augmentation %d", (int)how->kind);
}

/* ------------------------------------------------------------------------------------------------- views */

void augment_view(const aim_image *image, int views, int view, int size, float *out)
{
    enum { CROPS = 5, MIDDLE = 4 };
    int crops = views / 2, crop = crops == CROPS ? view % CROPS : MIDDLE;
    bool mirrored = view >= crops;
    int x = crop & 1 ? image->width - size : 0, y = crop & 2 ? image->height - size : 0;
    if (crop == MIDDLE) {
        x = image_crop_offset(image->width, size);
        y = image_crop_offset(image->height, size);
    }
    if (mirrored) x = image->width - size - x; /* where the mirrored picture's window lies in this one */
    for (int row = 0; row < size; row++) {
        const uint8_t *from = image->rgb + (size_t)(y + row) * image_stride(image) + (size_t)x * 3;
        float *to = out + (size_t)row * (size_t)size;
        for (int i = 0; i < size; i++) {
            const uint8_t *pixel = from + 3 * (size_t)(mirrored ? size - 1 - i : i);
            for (size_t c = 0; c < 3; c++) to[c * (size_t)size * (size_t)size + (size_t)i] = image_level_to_float(pixel[c]);
        }
    }
}
