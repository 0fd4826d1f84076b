/* Any bytes, read as config.json of a model with ten classes: an error with a message, or names and groups that may be used. */
#include <stdlib.h>
#include <string.h>

#include "model/config.h"

static volatile size_t sink;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    aim_context ctx;
    context_init(&ctx, NULL);
    ctx.memory.limit = (int64_t)16 << 20;
    struct model_config config = {.has_ar = true,
                                  .has_vq = true,
                                  .pos_offset = -1,
                                  .ar = {64, 4, 256, 10, 16, true, 2, 128},
                                  .vq = {32, 2, {1, 2}, 1, 32, 256, 8, VQ_NORM_GROUPS}};
    aim_status status = config_parse(&ctx, "fuzz", data, size, &config);
    if (status != AIM_OK && !ctx.error[0]) abort();
    if (config.pos_offset < -1 || config.pos_offset > 1) abort();
    if (config.vq.norm_groups < 1 || config.vq.base_channels % config.vq.norm_groups) abort();
    for (int i = 0; i < config.name_count; i++)
        if (config.names[i]) sink = strlen(config.names[i]);
    config_free(&config);
    if (ctx.memory.total != 0) abort();
    return 0;
}
