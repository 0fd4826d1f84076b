#include "base/context.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

const char *aim_status_name(aim_status status)
{
    switch (status) {
    case AIM_OK: return "ok";
    case AIM_ERR_ARGUMENT: return "argument";
    case AIM_ERR_IO: return "input/output";
    case AIM_ERR_FORMAT: return "format";
    case AIM_ERR_UNSUPPORTED: return "unsupported";
    case AIM_ERR_MEMORY: return "memory";
    case AIM_ERR_CANCELLED: return "cancelled";
    case AIM_ERR_INTERNAL: break;
    }
    return "internal";
}

const char *aim_version(void)
{
    return AIM_VERSION;
}

aim_context_options aim_context_defaults(void)
{
    return (aim_context_options){0};
}

const char *aim_last_error(const aim_context *ctx)
{
    return ctx ? ctx->error : "out of memory";
}

const char *aim_context_device(const aim_context *ctx)
{
    return ctx->device;
}

aim_status context_init(aim_context *ctx, const aim_context_options *options)
{
    aim_context_options o = options ? *options : aim_context_defaults();
    enum { MAX_THREADS = 1024 };
    *ctx = (aim_context){.log = o.log, .progress = o.progress, .user = o.user};
    ctx->memory.fail_after = -1;
    if (o.threads < 0 || o.threads > MAX_THREADS)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "threads must be 0 (all cores) to %d, not %d", MAX_THREADS, o.threads);
    if (o.memory_limit < 0) return aim_fail(ctx, AIM_ERR_ARGUMENT, "the memory limit must not be negative");
    ctx->threads = o.threads;
    ctx->memory.limit = o.memory_limit;
    return AIM_OK;
}

void context_init_worker(aim_context *worker, aim_context *parent)
{
    *worker = (aim_context){.threads = 1, .parent = parent->parent ? parent->parent : parent};
}

static void format_line(char *out, size_t size, const char *format, va_list args)
{
    vsnprintf(out, size, format, args);
    for (char *c = out; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = '?';
}

aim_status aim_fail(aim_context *ctx, aim_status status, const char *format, ...)
{
    char line[sizeof ctx->error]; /* arguments may point into the old message */
    va_list args;
    va_start(args, format);
    format_line(line, sizeof line, format, args);
    va_end(args);
    memcpy(ctx->error, line, sizeof line);
    ctx->status = status;
    return status;
}

aim_status aim_fail_errno(aim_context *ctx, const char *format, ...)
{
    int code = errno;
    char line[512];
    va_list args;
    va_start(args, format);
    format_line(line, sizeof line, format, args);
    va_end(args);
    return aim_fail(ctx, AIM_ERR_IO, "%s: %s", line, strerror(code));
}

aim_status context_advise(aim_context *ctx, aim_status status, const char *advice)
{
    if (status != AIM_ERR_MEMORY || strstr(ctx->error, "; ")) return status;
    return aim_fail(ctx, status, "%s; %s", ctx->error, advice);
}

void aim_log(aim_context *ctx, aim_log_level level, const char *format, ...)
{
    if (!ctx->log) return;
    char line[640];
    va_list args;
    va_start(args, format);
    format_line(line, sizeof line, format, args);
    va_end(args);
    ctx->log(ctx->user, level, line);
}

aim_status aim_progress(aim_context *ctx, const char *what, int64_t done, int64_t total)
{
    if (ctx->progress && ctx->progress(ctx->user, what, done, total)) return aim_fail(ctx, AIM_ERR_CANCELLED, "cancelled");
    return AIM_OK;
}
