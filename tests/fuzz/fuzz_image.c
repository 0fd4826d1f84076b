/* Any bytes: the picture readers must give an error or a picture whose every byte is set, and leak nothing. */
#include <stdlib.h>

#include "io/image.h"

static volatile unsigned char sink;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    aim_context ctx;
    context_init(&ctx, NULL);
    ctx.memory.limit = (int64_t)256 << 20;
    aim_image image;
    if (image_parse(&ctx, "fuzz", data, size, &image) == AIM_OK) {
        size_t bytes = image_stride(&image) * (size_t)image.height;
        for (size_t i = 0; i < bytes; i++) sink = image.rgb[i];
    } else if (image.rgb || !ctx.error[0]) {
        abort();
    }
    aim_image_free(&image);
    if (ctx.memory.total != 0) abort();
    return 0;
}
