#include "samples.h"

#include <string.h>

static aim_status open_npz(const char *path, struct samples *s)
{
    TRY(aim_array_read(s->ctx, path, "arr_0", &s->pictures));
    TRY(aim_array_read(s->ctx, path, "arr_1", &s->labels));
    TRY(aim_array_to_int64(s->ctx, &s->labels));
    const aim_array *p = &s->pictures;
    if (p->dtype != AIM_U8 || p->ndim != 4 || p->shape[3] != 3 || s->labels.ndim != 1 || s->labels.shape[0] != p->shape[0])
        return aim_fail(s->ctx, AIM_ERR_FORMAT, "%s: arr_0 must be uint8 (pictures, height, width, 3), arr_1 their classes",
                        path);
    return AIM_OK;
}

aim_status samples_from(aim_context *ctx, const struct dataset *d, int size, struct samples *s)
{
    s->ctx = ctx;
    s->size = size;
    struct loader_options options = {.dataset = d, .batch = 64, .ordered = true, .threads = 2};
    options.augment = (struct augment){.kind = AUGMENT_CENTER_CROP, .size = size};
    return loader_create(ctx, &options, &s->loader);
}

aim_status samples_open(aim_context *ctx, const char *path, int size, struct samples *s)
{
    size_t length = strlen(path);
    *s = (struct samples){.ctx = ctx, .size = size};
    if (length > 4 && strcmp(path + length - 4, ".npz") == 0) return open_npz(path, s);
    TRY(dataset_open(ctx, path, &s->own));
    return samples_from(ctx, &s->own, size, s);
}

void samples_close(struct samples *s)
{
    aim_array_free(&s->pictures);
    aim_array_free(&s->labels);
    loader_free(s->loader);
    dataset_close(&s->own);
    *s = (struct samples){0};
}

aim_status samples_picture(const struct samples *s, int64_t i, aim_image *image)
{
    int64_t height = s->pictures.shape[1], width = s->pictures.shape[2];
    TRY(aim_image_create(s->ctx, (int)width, (int)height, image));
    size_t bytes = (size_t)(3 * height * width);
    memcpy(image->rgb, (const uint8_t *)s->pictures.data + (size_t)i * bytes, bytes);
    return AIM_OK;
}

aim_status samples_next(struct samples *s, int64_t batch, float *pixels, int32_t *labels, int64_t *count)
{
    if (s->loader) return loader_next(s->loader, pixels, labels, count);
    *count = 0;
    for (; *count < batch && s->next < s->pictures.shape[0]; s->next++) {
        aim_image image, small;
        TRY(samples_picture(s, s->next, &image));
        aim_status status = aim_image_center_crop(s->ctx, &image, s->size, &small);
        aim_image_free(&image);
        TRY(status);
        aim_image_to_float(&small, pixels + *count * 3 * s->size * s->size);
        aim_image_free(&small);
        labels[(*count)++] = (int32_t)((const int64_t *)s->labels.data)[s->next];
    }
    return AIM_OK;
}
