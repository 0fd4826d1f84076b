#include "tensor/ops.h"

/* y (N,H',W',O) = w * x + bias */
struct tensor *op_conv2d(struct exec *ex, const struct tensor *x, const struct tensor *w, const struct tensor *bias,
                         struct conv2d how)
{
    if (!x || !w || !bias) return NULL;
    int64_t k = w->shape[2], grow = how.upsample ? 2 : 1, pad = how.pad_before + how.pad_after;
    int64_t H = (x->shape[1] * grow + pad - k) / how.stride + 1, W = (x->shape[2] * grow + pad - k) / how.stride + 1;
    bool fits = x->ndim == 4 && w->ndim == 4 && w->shape[3] == k && w->shape[1] == x->shape[3] &&
                tensor_count(bias) == w->shape[0] && x->shape[1] * grow + pad >= k && x->shape[2] * grow + pad >= k;
    if (!op_check(ex, fits, "conv2d")) return NULL;
    struct tensor *y = tensor_new(ex, T_F32, SHAPE(x->shape[0], H, W, w->shape[0]));
    return y ? op_finish(ex, ex->backend->op.conv2d(ex->backend, x, w, bias, &how, y), y) : NULL;
}

/* y = GroupNorm(x) ⊙ w + b, then silu if asked */
struct tensor *op_group_norm_silu(struct exec *ex, const struct tensor *x, const struct tensor *w, const struct tensor *b,
                                  bool silu)
{
    if (!x || !w || !b) return NULL;
    int64_t C = tensor_cols(x);
    if (!op_check(ex, x->ndim == 4 && C % AIM_NORM_GROUPS == 0 && tensor_count(w) == C && tensor_count(b) == C,
                  "group_norm_silu"))
        return NULL;
    struct tensor *y = tensor_new(ex, T_F32, 4, x->shape);
    if (!y) return NULL;
    aim_status status = ex->backend->op.group_norm_silu(ex->backend, x, w, b, AIM_NORM_GROUPS, AIM_GROUP_NORM_EPS, silu, y);
    return op_finish(ex, status, y);
}

/* y = softmax(q kᵀ / √C) v, all (N,L,C) */
struct tensor *op_attention(struct exec *ex, const struct tensor *q, const struct tensor *k, const struct tensor *v)
{
    if (!q || !k || !v) return NULL;
    bool fits = q->ndim == 3 && tensor_count(q) == tensor_count(k) && tensor_count(q) == tensor_count(v);
    if (!op_check(ex, fits, "attention")) return NULL;
    struct tensor *y = tensor_new(ex, T_F32, 3, q->shape);
    return y ? op_finish(ex, ex->backend->op.attention(ex->backend, q, k, v, y), y) : NULL;
}

struct tensor *op_add(struct exec *ex, const struct tensor *a, const struct tensor *b)
{
    if (!a || !b) return NULL;
    if (!op_check(ex, tensor_count(a) == tensor_count(b), "add")) return NULL;
    struct tensor *y = tensor_new(ex, T_F32, a->ndim, a->shape);
    return y ? op_finish(ex, ex->backend->op.add(ex->backend, a, b, y), y) : NULL;
}

/* Rows of unit length (spec D5) */
struct tensor *op_normalize_rows(struct exec *ex, const struct tensor *x)
{
    if (!x) return NULL;
    struct tensor *y = tensor_new(ex, T_F32, x->ndim, x->shape);
    return y ? op_finish(ex, ex->backend->op.normalize_rows(ex->backend, x, y), y) : NULL;
}

/* ids (M): the nearest row of e (V,D) for each row of z */
struct tensor *op_nearest_code(struct exec *ex, const struct tensor *z, const struct tensor *e)
{
    if (!z || !e) return NULL;
    if (!op_check(ex, tensor_cols(z) == tensor_cols(e), "nearest_code")) return NULL;
    struct tensor *ids = tensor_new(ex, T_I32, SHAPE(tensor_rows(z)));
    return ids ? op_finish(ex, ex->backend->op.nearest_code(ex->backend, z, e, ids), ids) : NULL;
}

struct tensor *op_nchw_to_nhwc(struct exec *ex, const struct tensor *x)
{
    if (!x) return NULL;
    struct tensor *y = tensor_new(ex, T_F32, SHAPE(x->shape[0], x->shape[2], x->shape[3], x->shape[1]));
    return y ? op_finish(ex, ex->backend->op.nchw_to_nhwc(ex->backend, x, y), y) : NULL;
}

struct tensor *op_nhwc_to_nchw(struct exec *ex, const struct tensor *x)
{
    if (!x) return NULL;
    struct tensor *y = tensor_new(ex, T_F32, SHAPE(x->shape[0], x->shape[3], x->shape[1], x->shape[2]));
    return y ? op_finish(ex, ex->backend->op.nhwc_to_nchw(ex->backend, x, y), y) : NULL;
}
