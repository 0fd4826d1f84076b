#include "tensor/backend.h"

#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/cpu.h"

aim_status backend_create(aim_context *ctx, const aim_context_options *options, struct backend **out)
{
    *out = NULL;
    if (options->device && strcmp(options->device, "cpu") != 0)
        return aim_fail(ctx, AIM_ERR_UNSUPPORTED, "no device \"%s\" in this build: only \"cpu\"", options->device);
    const char *wanted = options->cpu ? options->cpu : getenv("AIM_CPU"), *tier = NULL;
    struct backend *be = mem_zero(ctx, 1, sizeof *be, MEM_MISC);
    if (!be) return AIM_ERR_MEMORY;
    be->ctx = ctx;
    if (ctx->threads == 0) ctx->threads = omp_get_num_procs(); /* cut by taskset or a container, not by OMP_PROC_BIND */
    be->threads = ctx->threads;
    char dense[64] = "plain C";
    aim_status status = cpu_fill(ctx, wanted && *wanted ? wanted : NULL, &be->op, &tier);
#ifdef AIM_HAVE_ONEDNN
    /* The generic tier is the plain C reference: nothing in it comes from elsewhere. */
    if (status == AIM_OK && strcmp(tier, "generic") != 0) status = onednn_attach(be, dense, sizeof dense);
#endif
    if (status != AIM_OK) {
        backend_free(be);
        return status;
    }
    snprintf(ctx->device, sizeof ctx->device, "cpu %s, %d thread%s, %s", tier, be->threads, be->threads == 1 ? "" : "s", dense);
    *out = be;
    return AIM_OK;
}

void backend_free(struct backend *be)
{
    if (!be) return;
    if (be->dense) be->dense_free(be->dense);
    mem_free(be);
}

aim_status aim_context_create(const aim_context_options *options, aim_context **out)
{
    aim_context_options o = options ? *options : aim_context_defaults();
    aim_context *ctx = *out = calloc(1, sizeof *ctx);
    if (!ctx) return AIM_ERR_MEMORY;
    TRY(context_init(ctx, &o));
    return backend_create(ctx, &o, &ctx->backend);
}

void aim_context_free(aim_context *ctx)
{
    if (!ctx) return;
    backend_free(ctx->backend);
    free(ctx);
}
