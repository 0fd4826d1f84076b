#include "tensor/backend.h"

#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/cpu.h"
#ifdef AIM_HAVE_CUDA
#include "cuda/cuda.h"
#endif

/* ------------------------------------------------------------------------------------------ the CPU's memory */

static void *host_take(struct backend *be, size_t bytes, enum memory_tag tag)
{
    return mem_new(be->ctx, bytes, tag);
}

static void host_give(struct backend *be, void *data, size_t bytes)
{
    (void)be;
    (void)bytes;
    mem_free(data);
}

static aim_status host_copy(struct backend *be, void *to, const void *from, size_t bytes)
{
    (void)be;
    memcpy(to, from, bytes);
    return AIM_OK;
}

static aim_status host_zero(struct backend *be, void *data, size_t bytes)
{
    (void)be;
    memset(data, 0, bytes);
    return AIM_OK;
}

static int64_t host_available(struct backend *be)
{
    const struct memory *m = &be->ctx->memory;
    return m->limit > 0 ? m->limit - m->total : mem_available();
}

void backend_use_host_memory(struct backend *be)
{
    be->memory = (struct device_memory){.host = true,
                                        .take = host_take,
                                        .give = host_give,
                                        .upload = host_copy,
                                        .download = host_copy,
                                        .copy = host_copy,
                                        .zero = host_zero,
                                        .available = host_available};
}

/* --------------------------------------------------------------------------------------------------- choice */

static aim_status create_cpu(struct backend *be, const char *wanted)
{
    aim_context *ctx = be->ctx;
    const char *tier = NULL;
    if (!wanted) wanted = getenv("AIM_CPU");
    if (ctx->threads == 0) ctx->threads = omp_get_num_procs(); /* cut by taskset or a container, not by OMP_PROC_BIND */
    be->threads = ctx->threads;
    backend_use_host_memory(be);
    char dense[64] = "plain C";
    TRY(cpu_fill(ctx, wanted && *wanted ? wanted : NULL, &be->op, &tier));
#ifdef AIM_HAVE_ONEDNN
    /* The generic tier is the plain C reference: nothing in it comes from elsewhere. */
    if (strcmp(tier, "generic") != 0) TRY(onednn_attach(be, dense, sizeof dense));
#endif
    snprintf(ctx->device, sizeof ctx->device, "cpu %s, %d thread%s, %s", tier, be->threads, be->threads == 1 ? "" : "s", dense);
    return AIM_OK;
}

/* The N of "cuda:N", 0 for "cuda"; -1 for anything else. */
static int cuda_ordinal(const char *device)
{
    if (strncmp(device, "cuda", 4) != 0) return -1;
    if (device[4] == '\0') return 0;
    char *end;
    long n = strtol(device + 5, &end, 10);
    bool number = device[4] == ':' && device[5] >= '0' && device[5] <= '9' && *end == '\0' && n < 1024;
    return number ? (int)n : -1;
}

static aim_status create(struct backend *be, const aim_context_options *options)
{
    const char *device = options->device ? options->device : "cpu";
    if (strcmp(device, "cpu") == 0) return create_cpu(be, options->cpu);
    int ordinal = cuda_ordinal(device);
    if (ordinal < 0) return aim_fail(be->ctx, AIM_ERR_ARGUMENT, "unknown device \"%s\": cpu, cuda and cuda:N exist", device);
#ifdef AIM_HAVE_CUDA
    return cuda_attach(be, ordinal);
#else
    return aim_fail(be->ctx, AIM_ERR_UNSUPPORTED, "this build has no CUDA: configure it with -DAIM_CUDA=ON");
#endif
}

aim_status backend_create(aim_context *ctx, const aim_context_options *options, struct backend **out)
{
    *out = NULL;
    struct backend *be = mem_zero(ctx, 1, sizeof *be, MEM_MISC);
    if (!be) return AIM_ERR_MEMORY;
    be->ctx = ctx;
    aim_status status = create(be, options);
    if (status == AIM_OK)
        *out = be;
    else
        backend_free(be);
    return status;
}

aim_status backend_check_bf16(const struct backend *be)
{
    return be->memory.host ? cpu_check_bf16(be) : AIM_OK;
}

void backend_free(struct backend *be)
{
    if (!be) return;
    if (be->state) be->state_free(be->state);
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
