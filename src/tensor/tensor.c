#include "tensor/tensor.h"

#include "tensor/backend.h"

/* A buffer of the pool: in a tensor's use, or idle and linked here. */
struct pool_block {
    struct pool_block *next;
    size_t bytes;
    void *data;
};

void exec_init(struct exec *ex, aim_context *ctx)
{
    *ex = (struct exec){.ctx = ctx, .backend = ctx->backend};
}

void exec_clear(struct exec *ex)
{
    while (ex->idle) {
        struct pool_block *b = ex->idle;
        ex->idle = b->next;
        ex->backend->memory.give(ex->backend, b->data, b->bytes);
        mem_free(b);
    }
    ex->status = AIM_OK;
}

int64_t exec_idle_bytes(const struct exec *ex)
{
    int64_t bytes = 0;
    for (const struct pool_block *b = ex->idle; b; b = b->next) bytes += (int64_t)b->bytes;
    return bytes;
}

struct tensor *exec_fail(struct exec *ex, aim_status status)
{
    if (ex->status == AIM_OK) ex->status = status;
    return NULL;
}

/* The smallest idle buffer that holds `bytes` without wasting more than half of it; else a new one. */
static struct pool_block *pool_take(struct exec *ex, size_t bytes)
{
    struct pool_block **best = NULL;
    for (struct pool_block **p = &ex->idle; *p; p = &(*p)->next)
        if ((*p)->bytes >= bytes && (*p)->bytes / 2 <= bytes && (!best || (*p)->bytes < (*best)->bytes)) best = p;
    if (best) {
        struct pool_block *b = *best;
        *best = b->next;
        return b;
    }
    struct pool_block *b = mem_zero(ex->ctx, 1, sizeof *b, MEM_MISC);
    if (!b) return NULL;
    b->bytes = bytes;
    b->data = ex->backend->memory.take(ex->backend, bytes, MEM_ACTIVATIONS);
    if (b->data) return b;
    mem_free(b);
    return NULL;
}

static void pool_give(struct exec *ex, struct pool_block *b)
{
    b->next = ex->idle;
    ex->idle = b;
}

size_t tensor_type_size(enum tensor_type type)
{
    if (type == T_Q8_PACKED) return 1;
    return type == T_BF16 || type == T_BF16_PACKED ? 2 : 4;
}

size_t tensor_bytes(enum tensor_type type, int ndim, const int64_t *shape)
{
    size_t bytes = tensor_type_size(type);
    for (int i = 0; i < ndim; i++) {
        size_t n = (size_t)shape[i];
        if (shape[i] < 0) return 0;
        if (i == 0 && is_packed(type)) n = (n + PANEL - 1) / PANEL * PANEL;
        if (i == 1 && type == T_Q8_PACKED) n = (n + Q8_TERMS - 1) / Q8_TERMS * Q8_TERMS + sizeof(float);
        if (!size_mul(bytes, n, &bytes)) return 0;
    }
    return bytes <= PTRDIFF_MAX / 2 ? bytes : 0;
}

/* Copies of a weight in another form do not know of its new values. */
static void forget_converted(struct tensor *t)
{
    if (t->converted) t->converted_free(t->converted);
    t->converted = NULL;
}

static size_t bytes_of(const struct tensor *t)
{
    return tensor_bytes(t->type, t->ndim, t->shape);
}

static struct tensor *tensor_header(aim_context *ctx, enum tensor_type type, int ndim, const int64_t *shape)
{
    struct tensor *t = mem_zero(ctx, 1, sizeof *t, MEM_MISC);
    if (!t) return NULL;
    t->type = type;
    t->ndim = ndim;
    t->refs = 1;
    for (int i = 0; i < TENSOR_DIMS; i++) t->shape[i] = i < ndim ? shape[i] : 1;
    return t;
}

struct tensor *tensor_new(struct exec *ex, enum tensor_type type, int ndim, const int64_t *shape)
{
    if (ex->status != AIM_OK) return NULL;
    size_t bytes = tensor_bytes(type, ndim, shape);
    if (!bytes) return exec_fail(ex, aim_fail(ex->ctx, AIM_ERR_ARGUMENT, "a tensor's size is out of range"));
    struct tensor *t = tensor_header(ex->ctx, type, ndim, shape);
    if (!t) return exec_fail(ex, AIM_ERR_MEMORY);
    t->block = pool_take(ex, bytes);
    if (!t->block) {
        mem_free(t);
        return exec_fail(ex, AIM_ERR_MEMORY);
    }
    t->pool = ex;
    t->data = t->block->data;
    return t;
}

struct tensor *tensor_new_weight(aim_context *ctx, enum tensor_type type, int ndim, const int64_t *shape)
{
    size_t bytes = tensor_bytes(type, ndim, shape);
    if (!bytes) {
        aim_fail(ctx, AIM_ERR_ARGUMENT, "a weight's size is out of range");
        return NULL;
    }
    struct tensor *t = tensor_header(ctx, type, ndim, shape);
    if (!t) return NULL;
    t->owner = ctx->backend;
    t->constant = true;
    t->data = t->owner->memory.take(t->owner, bytes, MEM_WEIGHTS);
    if (!t->data) {
        mem_free(t);
        return NULL;
    }
    return t;
}

struct tensor *tensor_borrow(aim_context *ctx, enum tensor_type type, int ndim, const int64_t *shape, const void *data)
{
    struct tensor *t = tensor_header(ctx, type, ndim, shape);
    if (!t) return NULL;
    t->data = (void *)(uintptr_t)data;
    t->constant = true;
    return t;
}

/* Failures of transfers stick to the exec like those of ops. */
static aim_status transferred(struct exec *ex, aim_status status)
{
    if (status != AIM_OK) exec_fail(ex, status);
    return ex->status;
}

struct tensor *tensor_from_host(struct exec *ex, enum tensor_type type, int ndim, const int64_t *shape, const void *host)
{
    struct tensor *t = tensor_new(ex, type, ndim, shape);
    if (!t || tensor_write(ex, t, host) == AIM_OK) return t;
    tensor_drop(t);
    return NULL;
}

aim_status tensor_write(struct exec *ex, struct tensor *t, const void *host)
{
    forget_converted(t);
    return transferred(ex, ex->backend->memory.upload(ex->backend, t->data, host, bytes_of(t)));
}

aim_status tensor_read(struct exec *ex, const struct tensor *t, void *host)
{
    if (!t) return ex->status;
    return transferred(ex, ex->backend->memory.download(ex->backend, host, t->data, bytes_of(t)));
}

aim_status tensor_copy(struct exec *ex, struct tensor *to, const struct tensor *from)
{
    forget_converted(to);
    return transferred(ex, ex->backend->memory.copy(ex->backend, to->data, from->data, bytes_of(from)));
}

aim_status tensor_zero(struct exec *ex, struct tensor *t)
{
    forget_converted(t);
    t->fresh = (struct fresh_columns){0, 0};
    return transferred(ex, ex->backend->memory.zero(ex->backend, t->data, bytes_of(t)));
}

struct tensor tensor_view(enum tensor_type type, void *data, int64_t n0, int64_t n1, int64_t n2, int64_t n3)
{
    int ndim = n3 > 0 ? 4 : n2 > 0 ? 3 : n1 > 0 ? 2 : 1;
    return (struct tensor){.type = type,
                           .ndim = ndim,
                           .shape = {n0, ndim > 1 ? n1 : 1, ndim > 2 ? n2 : 1, ndim > 3 ? n3 : 1},
                           .data = data,
                           .refs = 1};
}

struct tensor *tensor_keep(struct tensor *t)
{
    if (t) t->refs++;
    return t;
}

void tensor_drop(struct tensor *t)
{
    if (!t || --t->refs > 0) return;
    tensor_drop(t->grad);
    forget_converted(t);
    if (t->pool)
        pool_give(t->pool, t->block);
    else if (t->owner)
        t->owner->memory.give(t->owner, t->data, bytes_of(t));
    mem_free(t);
}

struct tensor *tensor_reshape(struct exec *ex, struct tensor *t, int ndim, const int64_t *shape)
{
    if (!t) return NULL;
    int64_t count = 1;
    for (int i = 0; i < ndim; i++) count *= shape[i];
    if (count != tensor_count(t)) {
        tensor_drop(t);
        return exec_fail(ex, aim_fail(ex->ctx, AIM_ERR_INTERNAL, "a tensor cannot take a shape of another size"));
    }
    t->ndim = ndim;
    for (int i = 0; i < TENSOR_DIMS; i++) t->shape[i] = i < ndim ? shape[i] : 1;
    return t;
}

int64_t tensor_count(const struct tensor *t)
{
    return t->shape[0] * t->shape[1] * t->shape[2] * t->shape[3];
}

int64_t tensor_cols(const struct tensor *t)
{
    return t->shape[t->ndim - 1];
}

int64_t tensor_rows(const struct tensor *t)
{
    int64_t cols = tensor_cols(t);
    return cols ? tensor_count(t) / cols : 0;
}
