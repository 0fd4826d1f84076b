#include "tensor/profile.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "tensor/ssd_cache.h"

/* What calls are counted to: every op, and the transfers. */
enum entry {
#define OP(name, parameters) ENTRY_##name,
#include "tensor/ops.def"
#undef OP
    ENTRY_UPLOAD,
    ENTRY_DOWNLOAD,
    ENTRY_COPY,
    ENTRY_ZERO,
};
static const char *const entry_names[] = {
#define OP(name, parameters) #name,
#include "tensor/ops.def"
#undef OP
    "upload", "download", "copy", "zero"};

/* A call: its row, and its time where the host's clock takes it; else marks 2 i and 2 i + 1 of the device are its ends. */
struct call {
    size_t row;
    double seconds;
};

struct recorder {
    struct profile profile; /* first: what the caller knows */
    struct backend *be;     /* NULL once it has stopped */
    struct ops ops;         /* the backend's own */
    struct device_memory memory;
    size_t row_capacity;
    struct call *calls;
    int64_t count, capacity;
    int depth; /* of calls within calls */
    double start;
    aim_status status; /* of the recorder itself */
};

static bool same_shape(const struct tensor *a, const struct tensor *b)
{
    return a->ndim == b->ndim && a->type == b->type && memcmp(a->shape, b->shape, sizeof a->shape) == 0;
}

/* A tensor's type and shape alone; of OP_NONE, as of NULL, nothing. */
static struct tensor outline(const struct tensor *t)
{
    struct tensor out = {.ndim = 0};
    if (!t || t->ndim == 0) return out;
    out.type = t->type;
    out.ndim = t->ndim;
    memcpy(out.shape, t->shape, sizeof out.shape);
    return out;
}

/* The row of such a call, a new one if need be; false without memory. */
static bool find_row(struct recorder *r, enum entry entry, const struct tensor *first, const struct tensor *second, size_t *at)
{
    struct profile *p = &r->profile;
    struct profile_row row = {.op = entry_names[entry], .tensors = {outline(first), outline(second)}};
    for (*at = 0; *at < p->count; ++*at) {
        const struct profile_row *old = &p->rows[*at];
        if (old->op == row.op && same_shape(&old->tensors[0], &row.tensors[0]) && same_shape(&old->tensors[1], &row.tensors[1]))
            return true;
    }
    if (p->count == r->row_capacity) {
        size_t capacity = r->row_capacity ? 2 * r->row_capacity : 64;
        struct profile_row *rows = mem_resize(r->be->ctx, p->rows, capacity * sizeof *rows, MEM_MISC);
        if (!rows) return false;
        p->rows = rows;
        r->row_capacity = capacity;
    }
    p->rows[p->count++] = row;
    return true;
}

static struct call *new_call(struct recorder *r)
{
    if (r->count == r->capacity) {
        int64_t capacity = r->capacity ? 2 * r->capacity : 1024;
        struct call *calls = mem_resize(r->be->ctx, r->calls, (size_t)capacity * sizeof *calls, MEM_MISC);
        if (!calls) return NULL;
        r->calls = calls;
        r->capacity = capacity;
    }
    return &r->calls[r->count++];
}

/* ------------------------------------------------------------------------------------ in front of every kernel */

/* The call's number, for `after`; -1 when it is not recorded. */
static int64_t before(struct backend *be, enum entry entry, const struct tensor *first, const struct tensor *second)
{
    struct recorder *r = (struct recorder *)be->profile;
    size_t row;
    if (r->depth++ > 0 || r->status != AIM_OK) return -1;
    struct call *call = find_row(r, entry, first, second, &row) ? new_call(r) : NULL;
    if (!call) {
        r->status = AIM_ERR_MEMORY;
        return -1;
    }
    *call = (struct call){.row = row};
    if (be->clock.mark)
        r->status = be->clock.mark(be, 2 * (r->count - 1));
    else
        call->seconds = -clock_seconds();
    return r->count - 1;
}

static aim_status after(struct backend *be, int64_t call, aim_status status)
{
    struct recorder *r = (struct recorder *)be->profile;
    r->depth--;
    if (call < 0 || r->status != AIM_OK) return status;
    if (be->clock.mark)
        r->status = be->clock.mark(be, 2 * call + 1);
    else
        r->calls[call].seconds += clock_seconds();
    return status;
}

/* The backend's own kernels and transfers. */
static const struct recorder *own(const struct backend *be)
{
    return (const struct recorder *)be->profile;
}

#define OP(name, parameters, arguments, first, second)                                                                         \
    static aim_status profile_##name parameters                                                                                \
    {                                                                                                                          \
        int64_t call = before(be, ENTRY_##name, first, second);                                                                \
        return after(be, call, own(be)->ops.name arguments);                                                                   \
    }
#include "tensor/ops_called.h" /* made by cmake/ops_called.cmake */
#undef OP

static aim_status profile_upload(struct backend *be, void *to, const void *host, size_t bytes)
{
    int64_t call = before(be, ENTRY_UPLOAD, NULL, NULL);
    return after(be, call, own(be)->memory.upload(be, to, host, bytes));
}

static aim_status profile_download(struct backend *be, void *host, const void *from, size_t bytes)
{
    int64_t call = before(be, ENTRY_DOWNLOAD, NULL, NULL);
    return after(be, call, own(be)->memory.download(be, host, from, bytes));
}

static aim_status profile_copy(struct backend *be, void *to, const void *from, size_t bytes)
{
    int64_t call = before(be, ENTRY_COPY, NULL, NULL);
    return after(be, call, own(be)->memory.copy(be, to, from, bytes));
}

static aim_status profile_zero(struct backend *be, void *data, size_t bytes)
{
    int64_t call = before(be, ENTRY_ZERO, NULL, NULL);
    return after(be, call, own(be)->memory.zero(be, data, bytes));
}

/* ----------------------------------------------------------------------------------------------- start and stop */

aim_status profile_start(struct backend *be, struct profile **out)
{
    *out = NULL;
    if (be->profile) return aim_fail(be->ctx, AIM_ERR_ARGUMENT, "a profile is being taken already");
    struct recorder *r = mem_zero(be->ctx, 1, sizeof *r, MEM_MISC);
    if (!r) return AIM_ERR_MEMORY;
    r->be = be;
    r->ops = be->op;
    r->memory = be->memory;
    *out = be->profile = &r->profile;
#define OP(name, parameters) be->op.name = profile_##name;
#include "tensor/ops.def"
#undef OP
    be->memory.upload = profile_upload;
    be->memory.download = profile_download;
    be->memory.copy = profile_copy;
    be->memory.zero = profile_zero;
    r->start = clock_seconds();
    return AIM_OK;
}

static int longer_first(const void *a, const void *b)
{
    double x = ((const struct profile_row *)a)->seconds, y = ((const struct profile_row *)b)->seconds;
    return (x < y) - (x > y);
}

/* The times of all calls. The last one is waited for first, so that the whole is not longer for the counting. */
static aim_status add_up(struct recorder *r)
{
    struct backend *be = r->be;
    struct profile *p = &r->profile;
    bool marked = be->clock.mark != NULL;
    double last;
    if (marked && r->count > 0) TRY(be->clock.between(be, 2 * r->count - 2, 2 * r->count - 1, &last));
    p->seconds = clock_seconds() - r->start;
    for (int64_t i = 0; i < r->count; i++) {
        struct call *call = &r->calls[i];
        if (marked) TRY(be->clock.between(be, 2 * i, 2 * i + 1, &call->seconds));
        p->rows[call->row].calls++;
        p->rows[call->row].seconds += call->seconds;
    }
    return AIM_OK;
}

aim_status profile_stop(struct profile *profile)
{
    struct recorder *r = (struct recorder *)profile;
    struct backend *be = r->be;
    if (!be) return AIM_OK;
    be->op = r->ops;
    be->memory.upload = r->memory.upload;
    be->memory.download = r->memory.download;
    be->memory.copy = r->memory.copy;
    be->memory.zero = r->memory.zero;
    be->profile = NULL;
    aim_status status = r->status == AIM_OK ? add_up(r) : r->status;
    r->be = NULL;
    if (r->profile.count) qsort(r->profile.rows, r->profile.count, sizeof *r->profile.rows, longer_first);
    return status;
}

void profile_free(struct profile *profile)
{
    struct recorder *r = (struct recorder *)profile;
    if (!r) return;
    profile_stop(profile);
    mem_free(r->calls);
    mem_free(r->profile.rows);
    mem_free(r);
}
