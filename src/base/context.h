/*
 * The context: where an error message, the callbacks and the memory account of one caller live. Everything in the
 * library takes a context first; nothing is global.
 *
 * The error convention: a function that fails calls aim_fail() (or passes on what a callee returned), so that the
 * message is written once, where the most is known.
 */
#ifndef AIM_BASE_CONTEXT_H
#define AIM_BASE_CONTEXT_H

#include <stdarg.h>
#include <stdbool.h>

#include "aim.h"
#include "base/memory.h"

struct backend;

struct aim_context {
    char error[640];
    aim_status status; /* of the last failure */
    char device[128];
    int threads; /* as asked for; the backend replaces 0 by the number of cores */
    aim_log_fn log;
    aim_progress_fn progress;
    void *user;
    struct memory memory;
    struct aim_context *parent; /* of a worker's context: whose memory it counts in; else NULL */
    struct backend *backend;    /* owned; set by aim_context_create */
};

/* A context without a backend, for the modules below the tensor layer and their tests. */
aim_status context_init(aim_context *ctx, const aim_context_options *options);

/*
 * The context of a thread that works for `parent`, which must outlive it: with an error message of its own, silent, and
 * counting its memory in the parent's account, which threads share safely. The thread that owns the parent passes on what
 * went wrong. Nothing to free.
 */
void context_init_worker(aim_context *worker, aim_context *parent);

/* Records the message and returns `status`. The message is one line: control characters in it become '?'. */
aim_status aim_fail(aim_context *ctx, aim_status status, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* The same for failed system calls: appends strerror(errno). */
aim_status aim_fail_errno(aim_context *ctx, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Ends the message of a failure for want of memory with what to do about it, unless it tells (behind a semicolon) already.
 * Returns status. */
aim_status context_advise(aim_context *ctx, aim_status status, const char *advice);

void aim_log(aim_context *ctx, aim_log_level level, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Reports progress; AIM_ERR_CANCELLED (with its message) when the caller asks to stop. */
aim_status aim_progress(aim_context *ctx, const char *what, int64_t done, int64_t total);

/* Evaluates `call` once and returns its status from the enclosing function unless it is AIM_OK. */
#define TRY(call)                                                                                                              \
    do {                                                                                                                       \
        aim_status try_status_ = (call);                                                                                       \
        if (try_status_ != AIM_OK) return try_status_;                                                                         \
    } while (0)

/* a*b and a+b of sizes; false when the result does not fit. */
static inline bool size_mul(size_t a, size_t b, size_t *out)
{
    return !__builtin_mul_overflow(a, b, out);
}

static inline bool size_add(size_t a, size_t b, size_t *out)
{
    return !__builtin_add_overflow(a, b, out);
}

#endif
