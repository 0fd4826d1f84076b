/* Any bytes, read as .npy and as .npz: an error or an array whose every byte may be read and converted, and no leaks. */
#include <stdlib.h>

#include "io/npy.h"
#include "io/npz.h"

static volatile unsigned char sink;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void use(aim_context *ctx, aim_status status, aim_array *array)
{
    if (status == AIM_OK) {
        size_t bytes = 0;
        if (!npy_shape_bytes(array->dtype, array->ndim, array->shape, &bytes)) abort();
        for (size_t i = 0; i < bytes; i++) sink = ((const unsigned char *)array->data)[i];
        aim_array_to_int64(ctx, array);
    } else if (array->data || !ctx->error[0]) {
        abort();
    }
    aim_array_free(array);
    if (ctx->memory.total != 0) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    aim_context ctx;
    context_init(&ctx, NULL);
    ctx.memory.limit = (int64_t)256 << 20;
    aim_array array;
    use(&ctx, npy_parse(&ctx, "fuzz", data, size, &array), &array);
    use(&ctx, npz_parse(&ctx, "fuzz", data, size, NULL, &array), &array);
    use(&ctx, npz_parse(&ctx, "fuzz", data, size, "codes", &array), &array);
    return 0;
}
