#include "tensor/plan.h"

#include <string.h>

/* Where everything lies that is not there: no address that the system gives out. */
static char *const nowhere = (char *)(uintptr_t)4096;

static void *plan_take(struct backend *be, size_t bytes, enum memory_tag tag)
{
    struct device_memory *m = &be->memory;
    (void)tag;
    m->used += (int64_t)bytes;
    if (m->used > m->peak) m->peak = m->used;
    return nowhere;
}

static void plan_give(struct backend *be, void *data, size_t bytes)
{
    (void)data;
    be->memory.used -= (int64_t)bytes;
}

static aim_status plan_upload(struct backend *be, void *to, const void *host, size_t bytes)
{
    (void)be;
    (void)to;
    (void)host;
    (void)bytes;
    return AIM_OK;
}

static aim_status plan_download(struct backend *be, void *host, const void *from, size_t bytes)
{
    (void)be;
    (void)from;
    memset(host, 0, bytes);
    return AIM_OK;
}

static aim_status plan_zero(struct backend *be, void *data, size_t bytes)
{
    (void)be;
    (void)data;
    (void)bytes;
    return AIM_OK;
}

static int64_t plan_available(struct backend *be)
{
    (void)be;
    return INT64_MAX;
}

/* Every op of the list, doing nothing with any of its parameters. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#define OP(name, parameters)                                                                                                   \
    static aim_status plan_##name parameters                                                                                   \
    {                                                                                                                          \
        return AIM_OK;                                                                                                         \
    }
#include "tensor/ops.def"
#undef OP
#pragma GCC diagnostic pop

aim_status plan_create(aim_context *ctx, const struct backend *like, struct backend **out)
{
    struct backend *be = *out = mem_zero(ctx, 1, sizeof *be, MEM_MISC);
    if (!be) return AIM_ERR_MEMORY;
    be->ctx = ctx;
    be->threads = like->threads;
    be->bf16 = like->bf16;
    be->activation = like->activation;
#define OP(name, parameters) be->op.name = plan_##name;
#include "tensor/ops.def"
#undef OP
    be->memory = (struct device_memory){.host = like->memory.host, /* ops cut their work accordingly */
                                        .take = plan_take,
                                        .give = plan_give,
                                        .upload = plan_upload,
                                        .download = plan_download,
                                        .copy = plan_upload,
                                        .zero = plan_zero,
                                        .available = plan_available};
    return AIM_OK;
}
