#include "io/image.h"

#include <string.h>

#include "base/file.h"

aim_status image_alloc(aim_context *ctx, int width, int height, aim_image *image)
{
    *image = (aim_image){0};
    if (width < 1 || height < 1)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "a picture needs at least one pixel, not %d x %d", width, height);
    if ((int64_t)width * height > IMAGE_MAX_PIXELS)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "a picture of %d x %d pixels is too large; at most %d pixels are supported",
                        width, height, IMAGE_MAX_PIXELS);
    uint8_t *rgb = mem_array(ctx, (size_t)width * (size_t)height, 3, MEM_IMAGE);
    if (!rgb) return AIM_ERR_MEMORY;
    *image = (aim_image){.width = width, .height = height, .rgb = rgb};
    return AIM_OK;
}

aim_status aim_image_create(aim_context *ctx, int width, int height, aim_image *image)
{
    TRY(image_alloc(ctx, width, height, image));
    memset(image->rgb, 0, image_stride(image) * (size_t)height);
    return AIM_OK;
}

void aim_image_free(aim_image *image)
{
    if (!image) return;
    mem_free(image->rgb);
    *image = (aim_image){0};
}

/* ----------------------------------------------------------------------------------------------- reading */

aim_status image_source_no_memory(struct image_source *source)
{
    return aim_fail(source->ctx, AIM_ERR_MEMORY, "cannot read %s: %s", source->name, source->ctx->error);
}

aim_status image_source_alloc(struct image_source *source, uint64_t width, uint64_t height)
{
    if (width < 1 || height < 1)
        return aim_fail(source->ctx, AIM_ERR_FORMAT, "%s is damaged: it declares a picture without pixels", source->name);
    if (width > IMAGE_MAX_PIXELS || height > IMAGE_MAX_PIXELS || width * height > IMAGE_MAX_PIXELS)
        return aim_fail(source->ctx, AIM_ERR_UNSUPPORTED, "%s is too large: %llu x %llu pixels, at most %d are supported",
                        source->name, (unsigned long long)width, (unsigned long long)height, IMAGE_MAX_PIXELS);
    if (image_alloc(source->ctx, (int)width, (int)height, source->image) != AIM_OK) return image_source_no_memory(source);
    return AIM_OK;
}

void *image_source_reserve(struct image_source *source, uint64_t bytes)
{
    /* Untouched pages cost nothing, so the block is a plain allocation. */
    return mem_array(source->ctx, bytes, 1, MEM_IMAGE);
}

/* Whether data starts with the n bytes of magic. */
static bool starts_with(const unsigned char *data, size_t size, const char *magic, size_t n)
{
    return size >= n && memcmp(data, magic, n) == 0;
}

aim_status image_parse(aim_context *ctx, const char *name, const void *data, size_t size, aim_image *image)
{
    *image = (aim_image){0};
    struct image_source source = {.ctx = ctx, .name = name, .data = data, .size = size, .image = image};
    aim_status status;
    if (size == 0)
        status = aim_fail(ctx, AIM_ERR_FORMAT, "%s is empty", name);
    else if (starts_with(data, size, "\x89PNG\r\n\x1a\n", 8))
        status = image_png_decode(&source);
    else if (starts_with(data, size, "\xff\xd8\xff", 3))
        status = image_jpeg_decode(&source);
    else if (starts_with(data, size, "RIFF", 4) && size >= 12 && memcmp(source.data + 8, "WEBP", 4) == 0)
        status = image_webp_decode(&source);
    else
        status = aim_fail(ctx, AIM_ERR_FORMAT, "%s is not a PNG, JPEG or WebP picture", name);
    if (status != AIM_OK) aim_image_free(image);
    return status;
}

aim_status aim_image_read(aim_context *ctx, const char *path, aim_image *image)
{
    *image = (aim_image){0};
    struct file_map map;
    TRY(file_map_open(ctx, path, &map));
    aim_status status = image_parse(ctx, path, map.data, map.size, image);
    file_map_close(&map);
    return status;
}

/* ------------------------------------------------------------------------------------------------ floats */

void aim_image_to_float(const aim_image *image, float *out)
{
    float value[256];
    for (int i = 0; i < 256; i++) value[i] = image_level_to_float((uint8_t)i);
    size_t pixels = (size_t)image->width * (size_t)image->height;
    float *red = out, *green = out + pixels, *blue = out + 2 * pixels;
    for (size_t i = 0; i < pixels; i++) {
        red[i] = value[image->rgb[3 * i]];
        green[i] = value[image->rgb[3 * i + 1]];
        blue[i] = value[image->rgb[3 * i + 2]];
    }
}

static inline uint8_t byte_from_float(float x)
{
    float v = 127.5f * x + 128.0f;
    v = v > 0.0f ? v : 0.0f; /* NaN becomes 0 */
    v = v < 255.0f ? v : 255.0f;
    return (uint8_t)v;
}

void aim_image_from_float(const float *pixels, aim_image *image)
{
    size_t n = (size_t)image->width * (size_t)image->height;
    for (size_t i = 0; i < n; i++)
        for (size_t c = 0; c < 3; c++) image->rgb[3 * i + c] = byte_from_float(pixels[c * n + i]);
}
