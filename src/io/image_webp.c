/* WebP through libwebp; the alpha channel is dropped, as Pillow's convert("RGB") does. */
#include <webp/decode.h>

#include "io/image.h"

static aim_status fail_decode(struct image_source *source, VP8StatusCode code)
{
    switch (code) {
    case VP8_STATUS_OUT_OF_MEMORY:
        return aim_fail(source->ctx, AIM_ERR_MEMORY, "cannot read %s: out of memory in the WebP decoder", source->name);
    case VP8_STATUS_NOT_ENOUGH_DATA:
    case VP8_STATUS_SUSPENDED:
        return aim_fail(source->ctx, AIM_ERR_FORMAT, "%s is a damaged WebP file: it ends too early", source->name);
    case VP8_STATUS_UNSUPPORTED_FEATURE:
        return aim_fail(source->ctx, AIM_ERR_UNSUPPORTED, "%s uses a feature of WebP that libwebp does not know", source->name);
    default: break;
    }
    return aim_fail(source->ctx, AIM_ERR_FORMAT, "%s is a damaged WebP file: its data cannot be decoded", source->name);
}

aim_status image_webp_decode(struct image_source *source)
{
    WebPDecoderConfig config;
    if (!WebPInitDecoderConfig(&config))
        return aim_fail(source->ctx, AIM_ERR_INTERNAL, "libwebp is of another version than it was compiled for");
    VP8StatusCode code = WebPGetFeatures(source->data, source->size, &config.input);
    if (code != VP8_STATUS_OK) return fail_decode(source, code);
    if (config.input.has_animation)
        return aim_fail(source->ctx, AIM_ERR_UNSUPPORTED, "%s is a WebP animation; only still pictures are supported",
                        source->name);
    TRY(image_source_alloc(source, (uint64_t)config.input.width, (uint64_t)config.input.height));

    /* A lossless picture is held as 32-bit pixels while it is decoded; so, at one byte per pixel, is an alpha plane. */
    uint64_t pixels = (uint64_t)config.input.width * (uint64_t)config.input.height;
    void *reserved = image_source_reserve(source, config.input.format == 2 ? 4 * pixels : pixels);
    if (!reserved) return image_source_no_memory(source);
    aim_image *image = source->image;
    config.output.colorspace = MODE_RGB;
    config.output.is_external_memory = 1;
    config.output.u.RGBA = (WebPRGBABuffer){
        .rgba = image->rgb, .stride = (int)image_stride(image), .size = image_stride(image) * (size_t)image->height};
    code = WebPDecode(source->data, source->size, &config);
    WebPFreeDecBuffer(&config.output);
    mem_free(reserved);
    return code == VP8_STATUS_OK ? AIM_OK : fail_decode(source, code);
}
