/* Any bytes, read as a code cache: an error with a message, or pictures whose codes and labels may all be read. */
#include <stdlib.h>
#include <string.h>

#include "train/codes.h"

static volatile size_t sink;

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void read_all(const struct codes *c)
{
    int32_t *tokens = malloc((size_t)c->tokens * sizeof *tokens);
    if (!tokens) abort();
    for (int64_t i = 0; i < c->count; i++) {
        if (codes_label(c, i) < 0 || codes_label(c, i) >= c->class_count) abort();
        for (int64_t v = 0; v < c->variants; v++)
            if (codes_read(c, i, v, tokens) == AIM_OK)
                for (int64_t t = 0; t < c->tokens; t++)
                    if (tokens[t] < 0 || tokens[t] >= c->vocabulary) abort();
    }
    free(tokens);
    for (int64_t i = 0; i < c->class_count; i++) sink = strlen(c->names[i]);
    sink = strlen(c->tokenizer);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    aim_context ctx;
    context_init(&ctx, NULL);
    ctx.memory.limit = (int64_t)256 << 20;
    struct codes c;
    aim_status status = codes_parse(&ctx, "fuzz", data, size, &c);
    if (status != AIM_OK && !ctx.error[0]) abort();
    if (status == AIM_OK) read_all(&c);
    codes_close(&c);
    if (ctx.memory.total != 0) abort();
    return 0;
}
