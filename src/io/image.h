/*
 * Pictures in files and in memory: PNG, JPEG and WebP are decoded to 8-bit RGB with the values that Pillow's
 * Image.open(path).convert("RGB") gives, since every published number of this field went through Pillow. The decoders
 * face files from anywhere: sizes are bounded before memory is taken, and damage is an error, never half a picture.
 */
#ifndef AIM_IO_IMAGE_H
#define AIM_IO_IMAGE_H

#include "base/context.h"

/* The largest picture that is read or made, in pixels. */
enum { IMAGE_MAX_PIXELS = 1 << 28 };

/*
 * Decodes a file in memory; `name` is what messages call it. The caller frees *image, which is zeroed on failure.
 * AIM_ERR_FORMAT: damaged, or none of the three formats; AIM_ERR_UNSUPPORTED: too large, or an unusual kind;
 * AIM_ERR_MEMORY.
 */
aim_status image_parse(aim_context *ctx, const char *name, const void *data, size_t size, aim_image *image);

/*
 * Pixels with undefined contents, for callers that fill all of them; the caller frees. AIM_ERR_ARGUMENT for a side below
 * one or more than IMAGE_MAX_PIXELS, AIM_ERR_MEMORY; *image is zeroed on failure.
 */
aim_status image_alloc(aim_context *ctx, int width, int height, aim_image *image);

/* A byte as a network sees it: torchvision's ToTensor and Normalize(0.5, 0.5), each step rounded to float32 as there. */
static inline float image_level_to_float(uint8_t level)
{
    return ((float)level / 255.0f - 0.5f) / 0.5f;
}

/* Bytes of one row. */
static inline size_t image_stride(const aim_image *image)
{
    return (size_t)image->width * 3;
}

/* ---------------------------------------------------------------------------------------- for the decoders */

/*
 * One file being decoded. A decoder fills `image` (allocated with image_source_alloc) and returns; image_parse frees the
 * picture when it fails.
 */
struct image_source {
    aim_context *ctx;
    const char *name;
    const unsigned char *data;
    size_t size;
    aim_image *image;
};

/* Allocates source->image for the size that the file declares; the message of a refusal names the file. */
aim_status image_source_alloc(struct image_source *source, uint64_t width, uint64_t height);

/*
 * Accounts for memory that a decoder library takes by itself, so that the context's limit holds for it too; NULL when
 * there is not as much. Give back with mem_free once the library is done.
 */
void *image_source_reserve(struct image_source *source, uint64_t bytes);

/* Puts the file's name in front of the message that mem_* left. */
aim_status image_source_no_memory(struct image_source *source);

aim_status image_png_decode(struct image_source *source);
aim_status image_jpeg_decode(struct image_source *source);
aim_status image_webp_decode(struct image_source *source);

#endif
