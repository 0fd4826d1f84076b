#include "tensor/ops.h"

#include "tensor/tape.h"

/* dx = Σ over outputs that read it of wᵀ dy; dw = Σ dy patchᵀ; dbias = Σ dy */
static aim_status conv2d_backward(struct exec *ex, struct node *n)
{
    struct tensor *x = n->in[0], *w = n->in[1], *dx = tape_grad_fresh(ex, x), *dw = tape_grad(ex, w),
                  *dbias = tape_grad(ex, n->in[2]);
    if (ex->status != AIM_OK) return ex->status;
    return ex->backend->op.conv2d_backward(ex->backend, x, w, &n->how.conv, n->out[0]->grad, dx, dw, dbias);
}

/* y (N,H',W',O) = w * x + bias; the bias may be OP_NONE */
struct tensor *op_conv2d(struct exec *ex, const struct tensor *x, const struct tensor *w, const struct tensor *bias,
                         struct conv2d how)
{
    if (!x || !w || !bias) return NULL;
    int64_t k = w->shape[2], grow = how.upsample ? 2 : 1, pad = how.pad_before + how.pad_after;
    int64_t H = (x->shape[1] * grow + pad - k) / how.stride + 1, W = (x->shape[2] * grow + pad - k) / how.stride + 1;
    bool fits = x->ndim == 4 && w->ndim == 4 && w->shape[3] == k && w->shape[1] == x->shape[3] &&
                (bias == OP_NONE || tensor_count(bias) == w->shape[0]) && x->shape[1] * grow + pad >= k &&
                x->shape[2] * grow + pad >= k;
    if (!op_check(ex, fits, "conv2d")) return NULL;
    if (bias == OP_NONE) bias = NULL;
    struct tensor *y = tensor_new(ex, x->type, SHAPE(x->shape[0], H, W, w->shape[0]));
    if (y) y = op_finish(ex, ex->backend->op.conv2d(ex->backend, x, w, bias, &how, y), y);
    struct node node = {conv2d_backward, {y}, {tape_input(x), tape_input(w), tape_input(bias)}, {.conv = how}};
    if (y) tape_record(ex, &node);
    return y;
}

/* With x̂ = (x - mean) rstd and g = dy, or dy silu'(x̂ w + b): db = Σ g; dw = Σ g x̂;
 * dx = rstd (g w - mean(g w) - x̂ mean(g w x̂)), the means over a group */
static aim_status group_norm_silu_backward(struct exec *ex, struct node *n)
{
    struct tensor *x = n->in[0], *w = n->in[1], *b = n->in[2];
    struct tensor *dx = tape_grad_fresh(ex, x), *dw = tape_grad(ex, w), *db = tape_grad(ex, b);
    if (ex->status != AIM_OK) return ex->status;
    return ex->backend->op.group_norm_silu_backward(ex->backend, x, w, b, n->how.norm.groups, AIM_GROUP_NORM_EPS,
                                                    n->how.norm.silu, n->in[3], n->out[0]->grad, dx, dw, db);
}

/* y = GroupNorm(x) ⊙ w + b, then silu if asked */
struct tensor *op_group_norm_silu(struct exec *ex, const struct tensor *x, const struct tensor *w, const struct tensor *b,
                                  int groups, bool silu)
{
    if (!x || !w || !b) return NULL;
    int64_t C = tensor_cols(x);
    if (!op_check(ex, x->ndim == 4 && groups > 0 && C % groups == 0 && tensor_count(w) == C && tensor_count(b) == C,
                  "group_norm_silu"))
        return NULL;
    struct tensor *y = tensor_new(ex, x->type, 4, x->shape);
    struct tensor *statistics = ex->tape ? tensor_new(ex, T_F32, SHAPE(x->shape[0], groups, 2)) : NULL;
    if (y && ex->status == AIM_OK) {
        aim_status status =
            ex->backend->op.group_norm_silu(ex->backend, x, w, b, groups, AIM_GROUP_NORM_EPS, silu, statistics, y);
        y = op_finish(ex, status, y);
        struct node node = {
            group_norm_silu_backward, {y}, {tape_input(x), tape_input(w), tape_input(b), statistics}, {.norm = {groups, silu}}};
        if (y) tape_record(ex, &node);
    } else {
        tensor_drop(y);
        y = NULL;
    }
    tensor_drop(statistics);
    return y;
}

/* With P = softmax(q kᵀ / √C): dv = Pᵀ dy; dP = dy vᵀ; dS = P ⊙ (dP - Σ P ⊙ dP) / √C; dq = dS k; dk = dSᵀ q */
static aim_status attention_backward(struct exec *ex, struct node *n)
{
    struct tensor *q = n->in[0], *k = n->in[1], *v = n->in[2];
    struct tensor *dq = tape_grad_fresh(ex, q), *dk = tape_grad_fresh(ex, k), *dv = tape_grad_fresh(ex, v);
    if (ex->status != AIM_OK) return ex->status;
    return ex->backend->op.attention_backward(ex->backend, q, k, v, n->out[0]->grad, dq, dk, dv);
}

/* y = softmax(q kᵀ / √C) v, all (N,L,C) */
struct tensor *op_attention(struct exec *ex, const struct tensor *q, const struct tensor *k, const struct tensor *v)
{
    if (!q || !k || !v) return NULL;
    bool fits = q->ndim == 3 && tensor_count(q) == tensor_count(k) && tensor_count(q) == tensor_count(v);
    if (!op_check(ex, fits, "attention")) return NULL;
    struct tensor *y = tensor_new(ex, q->type, 3, q->shape);
    if (y) y = op_finish(ex, ex->backend->op.attention(ex->backend, q, k, v, y), y);
    if (y) tape_record(ex, &(struct node){attention_backward, {y}, {tape_input(q), tape_input(k), tape_input(v)}, {{0}}});
    return y;
}

/* da = db = dy: neither is added to zeros, or copied, where it is the first to arrive. */
static aim_status add_backward(struct exec *ex, struct node *n)
{
    struct tensor *dy = n->out[0]->grad;
    for (int i = 0; i < 2; i++) {
        struct tensor *a = n->in[i];
        if (!a || !a->needs_grad || tape_pass(a, dy)) continue;
        struct tensor *da = tape_grad_fresh(ex, a);
        if (!da) return ex->status;
        TRY(ex->backend->op.accumulate(ex->backend, dy, da));
    }
    return ex->status;
}

struct tensor *op_add(struct exec *ex, const struct tensor *a, const struct tensor *b)
{
    if (!a || !b) return NULL;
    if (!op_check(ex, tensor_count(a) == tensor_count(b), "add")) return NULL;
    struct tensor *y = tensor_new(ex, a->type, a->ndim, a->shape);
    if (y) y = op_finish(ex, ex->backend->op.add(ex->backend, a, b, y), y);
    if (y) tape_record(ex, &(struct node){add_backward, {y}, {tape_input(a), tape_input(b)}, {{0}}});
    return y;
}

/* dx = (dy - y (y·dy)) / ‖x‖ */
static aim_status normalize_rows_backward(struct exec *ex, struct node *n)
{
    struct tensor *dx = tape_grad_fresh(ex, n->in[0]);
    return dx ? ex->backend->op.normalize_rows_backward(ex->backend, n->in[0], n->out[0]->grad, dx) : ex->status;
}

/* Rows of unit length (spec D5) */
struct tensor *op_normalize_rows(struct exec *ex, const struct tensor *x)
{
    if (!x) return NULL;
    struct tensor *y = tensor_new(ex, x->type, x->ndim, x->shape);
    if (y) y = op_finish(ex, ex->backend->op.normalize_rows(ex->backend, x, y), y);
    if (y) tape_record(ex, &(struct node){normalize_rows_backward, {y}, {tape_input(x)}, {{0}}});
    return y;
}

/* ids (M): the nearest row of e (V,D) for each row of z; has no gradient */
struct tensor *op_nearest_code(struct exec *ex, const struct tensor *z, const struct tensor *e)
{
    if (!z || !e) return NULL;
    if (!op_check(ex, tensor_cols(z) == tensor_cols(e), "nearest_code")) return NULL;
    struct tensor *ids = tensor_new(ex, T_I32, SHAPE(tensor_rows(z)));
    return ids ? op_finish(ex, ex->backend->op.nearest_code(ex->backend, z, e, ids), ids) : NULL;
}

/* y = code; dz = dy: the nearest code is passed on as if it were z itself (spec D5) */
static aim_status straight_through_backward(struct exec *ex, struct node *n)
{
    if (n->in[0]->needs_grad && tape_pass(n->in[0], n->out[0]->grad)) return AIM_OK;
    struct tensor *dz = tape_grad_fresh(ex, n->in[0]);
    return dz ? ex->backend->op.accumulate(ex->backend, n->out[0]->grad, dz) : ex->status;
}

struct tensor *op_straight_through(struct exec *ex, const struct tensor *z, const struct tensor *code)
{
    if (!z || !code) return NULL;
    if (!op_check(ex, tensor_count(z) == tensor_count(code), "straight_through")) return NULL;
    struct tensor *y = tensor_new(ex, z->type, z->ndim, z->shape);
    if (!y) return NULL;
    y = op_finish(ex, tensor_copy(ex, y, code), y);
    if (!y) return NULL;
    tape_record(ex, &(struct node){straight_through_backward, {y}, {tape_input(z)}, {{0}}});
    return y;
}

/* da = 2 weight (a - target) dloss / n */
static aim_status mean_square_backward(struct exec *ex, struct node *n)
{
    struct tensor *da = tape_grad_fresh(ex, n->in[0]);
    if (!da) return ex->status;
    return ex->backend->op.mean_square_backward(ex->backend, n->in[0], n->in[1], n->how.weight, n->out[0]->grad, da, NULL);
}

struct tensor *op_mean_square(struct exec *ex, const struct tensor *a, const struct tensor *target, float weight)
{
    if (!a || !target) return NULL;
    if (!op_check(ex, tensor_count(a) == tensor_count(target), "mean_square")) return NULL;
    struct tensor *loss = tensor_new(ex, T_F32, SHAPE(1));
    if (loss) loss = op_finish(ex, ex->backend->op.mean_square(ex->backend, a, target, weight, loss), loss);
    struct node node = {mean_square_backward, {loss}, {tape_input(a), tape_input(target)}, {.weight = weight}};
    if (loss && a->needs_grad) tape_record(ex, &node); /* a target in need of one asks for nothing here */
    return loss;
}

/* Pictures (N,H,W,3) of the host's memory, which may be read up to 3 bytes beyond their end, as a network sees them: (N,3,H,W)
 */
struct tensor *op_pictures(struct exec *ex, const uint8_t *bytes, int64_t N, int64_t H, int64_t W)
{
    struct tensor *words = tensor_from_host(ex, T_I32, SHAPE((N * H * W * 3 + 3) / 4), bytes);
    struct tensor *y = words ? tensor_new(ex, T_F32, SHAPE(N, 3, H, W)) : NULL;
    if (y) y = op_finish(ex, ex->backend->op.pictures(ex->backend, words, y), y);
    tensor_drop(words);
    return y;
}

/* Changes of layout: dx is dy in the other layout, or has that added. */
static aim_status layout_backward(struct exec *ex, struct node *n,
                                  aim_status (*back)(struct backend *, const struct tensor *, struct tensor *))
{
    struct tensor *x = n->in[0], *dy = n->out[0]->grad;
    if (!x->needs_grad) return AIM_OK;
    struct tensor *turned = tensor_new(ex, x->type, x->ndim, x->shape);
    if (!turned) return ex->status;
    aim_status status = back(ex->backend, dy, turned);
    if (status == AIM_OK && !tape_pass(x, turned)) {
        struct tensor *dx = tape_grad(ex, x);
        status = dx ? ex->backend->op.accumulate(ex->backend, turned, dx) : ex->status;
    }
    tensor_drop(turned);
    return status;
}

static aim_status nchw_to_nhwc_backward(struct exec *ex, struct node *n)
{
    return layout_backward(ex, n, ex->backend->op.nhwc_to_nchw);
}

static aim_status nhwc_to_nchw_backward(struct exec *ex, struct node *n)
{
    return layout_backward(ex, n, ex->backend->op.nchw_to_nhwc);
}

struct tensor *op_nchw_to_nhwc(struct exec *ex, const struct tensor *x)
{
    if (!x) return NULL;
    /* inside a network feature maps are activations, outside pictures are float32 */
    enum tensor_type type = backend_activation(ex->backend);
    struct tensor *y = tensor_new(ex, type, SHAPE(x->shape[0], x->shape[2], x->shape[3], x->shape[1]));
    if (y) y = op_finish(ex, ex->backend->op.nchw_to_nhwc(ex->backend, x, y), y);
    if (y) tape_record(ex, &(struct node){nchw_to_nhwc_backward, {y}, {tape_input(x)}, {{0}}});
    return y;
}

struct tensor *op_nhwc_to_nchw(struct exec *ex, const struct tensor *x)
{
    if (!x) return NULL;
    struct tensor *y = tensor_new(ex, T_F32, SHAPE(x->shape[0], x->shape[3], x->shape[1], x->shape[2]));
    if (y) y = op_finish(ex, ex->backend->op.nhwc_to_nchw(ex->backend, x, y), y);
    if (y) tape_record(ex, &(struct node){nhwc_to_nchw_backward, {y}, {tape_input(x)}, {{0}}});
    return y;
}
