/* Any bytes: the safetensors reader must give an error or a file whose every byte may be read, and leak nothing. */
#include <stdlib.h>

#include "io/safetensors.h"

static volatile unsigned char sink;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    aim_context ctx;
    context_init(&ctx, NULL);
    ctx.memory.limit = (int64_t)256 << 20;
    struct tensor_file f;
    if (safetensors_parse(&ctx, "fuzz", data, size, &f) == AIM_OK) {
        for (size_t i = 0; i < f.count; i++) {
            const struct tensor_entry *t = &f.entries[i];
            for (size_t k = 0; k < t->bytes; k++) sink = ((const unsigned char *)t->data)[k];
            if (tensor_file_find(&f, t->name) != t) abort();
        }
        for (size_t i = 0; i < f.metadata_count; i++)
            if (!tensor_file_metadata(&f, f.metadata[i].key)) abort();
    }
    tensor_file_close(&f);
    if (ctx.memory.total != 0) abort();
    return 0;
}
