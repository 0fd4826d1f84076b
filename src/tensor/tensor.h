/*
 * Tensors and the place where ops run.
 *
 * A tensor is a row-major block with a type and up to four dimensions. Ops (tensor/ops.h) take tensors and return new
 * ones; they run at once. Errors stick to the exec: an op given NULL, or one that fails, returns NULL, so that a model
 * reads as a list of formulas and checks exec->status once, at its end.
 *
 * Ownership: every tensor is counted. An op's result belongs to the caller, who drops it when done; a dropped tensor's
 * memory goes back to the exec's pool, so that a long network runs in a few buffers.
 */
#ifndef AIM_TENSOR_TENSOR_H
#define AIM_TENSOR_TENSOR_H

#include "base/context.h"

enum tensor_type {
    T_F32,
    T_BF16,
    T_I32,
    /* Matrices (N, K) laid out for linear_packed: panels of PANEL rows of the matrix, K-major inside a panel, zero rows
     * up to a whole panel. The order inside a panel row is the CPU tier's own. */
    T_F32_PACKED,
    T_BF16_PACKED,
    /* The same of whole numbers from -127 to 127, one byte each, and for every row the float32 that they are multiples of:
     * its largest magnitude over 127. Terms are filled up with zeros to a multiple of Q8_TERMS. */
    T_Q8_PACKED,
};

enum { TENSOR_DIMS = 4, PANEL = 32, Q8_TERMS = 4 };

struct exec;
struct backend;
struct pool_block;

/* Columns first .. end-1 of a gradient that hold nothing yet: kernels overwrite them (tape_grad_fresh). */
struct fresh_columns {
    int64_t first, end;
};

struct tensor {
    enum tensor_type type;
    int ndim;
    int64_t shape[TENSOR_DIMS]; /* dimensions past ndim are 1 */
    void *data; /* in the backend's memory: only where that is the host's may anything but a kernel look at it */
    int refs;
    struct exec *pool; /* takes `block`, which holds the data, back; NULL: owned or borrowed */
    struct pool_block *block;
    struct backend *owner; /* the data is this backend's memory, given back with the tensor (weights); else NULL */
    /* A weight that never changes: backends keep a converted copy of it here (blocked, transformed). */
    bool constant;
    void *converted;
    void (*converted_free)(void *converted);
    /* Training (tensor/tape.h): whether a gradient is wanted, and the gradient once one has arrived (owned). */
    bool needs_grad;
    struct tensor *grad;
    struct fresh_columns fresh; /* of a gradient */
};

/* Where ops run: the backend, the pool of buffers, the first error, and the tape while one records. */
struct exec {
    aim_context *ctx;
    struct backend *backend;
    aim_status status;
    struct pool_block *idle; /* freed buffers, most recent first */
    struct tape *tape;       /* NULL: inference */
};

void exec_init(struct exec *ex, aim_context *ctx);

/* Gives the pooled memory back to the system. Tensors from it must be gone. */
void exec_clear(struct exec *ex);

/* Bytes that exec_clear would give back. */
int64_t exec_idle_bytes(const struct exec *ex);

/* Records a failure (the first one counts) and returns NULL. */
struct tensor *exec_fail(struct exec *ex, aim_status status);

/* A tensor from the exec's pool, contents undefined; NULL (and a sticky error) when memory is out. */
struct tensor *tensor_new(struct exec *ex, enum tensor_type type, int ndim, const int64_t *shape);

/* For weights: memory owned by the tensor itself, tagged MEM_WEIGHTS; freed on the last drop. */
struct tensor *tensor_new_weight(aim_context *ctx, enum tensor_type type, int ndim, const int64_t *shape);

/* Borrows `data`, which must outlive the tensor and lie in the backend's memory. */
struct tensor *tensor_borrow(aim_context *ctx, enum tensor_type type, int ndim, const int64_t *shape, const void *data);

/* ---- between the host's memory and a tensor's; the first is a new tensor, NULL on failure as with ops */
struct tensor *tensor_from_host(struct exec *ex, enum tensor_type type, int ndim, const int64_t *shape, const void *host);
aim_status tensor_write(struct exec *ex, struct tensor *t, const void *host);
aim_status tensor_read(struct exec *ex, const struct tensor *t, void *host);
aim_status tensor_copy(struct exec *ex, struct tensor *to, const struct tensor *from); /* of one size */
aim_status tensor_zero(struct exec *ex, struct tensor *t);

/* A tensor on the stack over memory of the caller's: never counted or freed. */
struct tensor tensor_view(enum tensor_type type, void *data, int64_t n0, int64_t n1, int64_t n2, int64_t n3);

struct tensor *tensor_keep(struct tensor *t); /* counts one more owner; NULL stays NULL */
void tensor_drop(struct tensor *t);           /* NULL is allowed */

/* The same data under another shape of as many elements, in place; NULL stays NULL. */
struct tensor *tensor_reshape(struct exec *ex, struct tensor *t, int ndim, const int64_t *shape);

int64_t tensor_count(const struct tensor *t);
int64_t tensor_rows(const struct tensor *t); /* product of all dimensions but the last */
int64_t tensor_cols(const struct tensor *t); /* the last dimension */

static inline bool is_packed(enum tensor_type type)
{
    return type == T_F32_PACKED || type == T_BF16_PACKED || type == T_Q8_PACKED;
}

/* Bytes of a type's element, and of a whole tensor (packed padding included); 0 when the size overflows. */
size_t tensor_type_size(enum tensor_type type);
size_t tensor_bytes(enum tensor_type type, int ndim, const int64_t *shape);

static inline float *f32(const struct tensor *t)
{
    return (float *)t->data;
}

static inline int32_t *i32(const struct tensor *t)
{
    return (int32_t *)t->data;
}

static inline float bf16_to_f32(uint16_t h)
{
    union {
        uint32_t u;
        float f;
    } v;
    v.u = (uint32_t)h << 16;
    return v.f;
}

/* Round to nearest even; NaN stays NaN. */
static inline uint16_t bf16_from_f32(float x)
{
    union {
        float f;
        uint32_t u;
    } v;
    v.f = x;
    if ((v.u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((v.u >> 16) | 0x40u);
    return (uint16_t)((v.u + 0x7fffu + ((v.u >> 16) & 1u)) >> 16);
}

#define SHAPE(...) ((sizeof((const int64_t[]){__VA_ARGS__}) / sizeof(int64_t))), ((const int64_t[]){__VA_ARGS__})

#endif
