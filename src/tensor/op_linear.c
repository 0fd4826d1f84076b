#include "tensor/ops.h"

#include "tensor/tape.h"

const struct tensor op_none = {0};

bool op_check(struct exec *ex, bool shapes_fit, const char *op)
{
    if (!shapes_fit) exec_fail(ex, aim_fail(ex->ctx, AIM_ERR_INTERNAL, "%s: the shapes do not fit", op));
    return shapes_fit;
}

struct tensor *op_finish(struct exec *ex, aim_status status, struct tensor *y)
{
    if (status == AIM_OK) return y;
    tensor_drop(y);
    return exec_fail(ex, status);
}

/* dx = dy w; dw = dyᵀ x; dbias = Σ_m dy */
static aim_status linear_backward(struct exec *ex, struct node *n)
{
    struct tensor *x = n->in[0], *w = n->in[1], *bias = n->in[2];
    struct tensor *dx = tape_grad_fresh(ex, x), *dw = tape_grad_fresh(ex, w), *dbias = tape_grad(ex, bias);
    if (ex->status != AIM_OK) return ex->status;
    return ex->backend->op.linear_backward(ex->backend, x, w, n->out[0]->grad, dx, dw, dbias);
}

/* y = x wᵀ + bias */
struct tensor *op_linear(struct exec *ex, const struct tensor *x, const struct tensor *w, const struct tensor *bias)
{
    if (!x || !w || !bias) return NULL;
    int64_t inputs = w->shape[1] * w->shape[2] * w->shape[3]; /* a 1x1 convolution's filters serve as a matrix */
    if (!op_check(ex, tensor_cols(x) == inputs && (bias == OP_NONE || tensor_count(bias) == w->shape[0]), "linear"))
        return NULL;
    int64_t shape[TENSOR_DIMS];
    for (int i = 0; i < TENSOR_DIMS; i++) shape[i] = x->shape[i];
    shape[x->ndim - 1] = w->shape[0];
    struct tensor *y = tensor_new(ex, x->type, x->ndim, shape);
    if (!y) return NULL;
    struct backend *be = ex->backend;
    if (is_packed(w->type)) {
        if (!op_check(ex, bias == OP_NONE, "linear with packed weights")) return op_finish(ex, ex->status, y);
        return op_finish(ex, be->op.linear_packed(be, x, w, y), y);
    }
    if (bias == OP_NONE) bias = NULL;
    y = op_finish(ex, be->op.linear(be, x, w, bias, y), y);
    if (y) tape_record(ex, &(struct node){linear_backward, {y}, {tape_input(x), tape_input(w), tape_input(bias)}, {{0}}});
    return y;
}

/* dx += dy, in dx's type */
static aim_status cast_backward(struct exec *ex, struct node *n)
{
    struct tensor *dx = tape_grad(ex, n->in[0]);
    return dx ? ex->backend->op.accumulate(ex->backend, n->out[0]->grad, dx) : ex->status;
}

struct tensor *op_cast(struct exec *ex, const struct tensor *x, enum tensor_type type)
{
    if (!x) return NULL;
    if (x->type == type) return tensor_keep(tape_input(x));
    struct tensor *y = tensor_new(ex, type, x->ndim, x->shape);
    if (y) y = op_finish(ex, ex->backend->op.cast(ex->backend, x, y), y);
    if (y) tape_record(ex, &(struct node){cast_backward, {y}, {tape_input(x)}, {{0}}});
    return y;
}

/* ------------------------------------------------------------------------------------- the head and its loss */

/* Rows whose logits are there at a time: enough for products to run at full speed. */
static int64_t head_rows(const struct exec *ex, int64_t M)
{
    int64_t rows = ex->backend->memory.host ? 1024 : 8192;
    return M < rows ? M : rows;
}

/* Rows from .. from+n of t (M,cols), which may have no second dimension; t may be NULL, and so is the result's data. */
static struct tensor rows_view(const struct tensor *t, int64_t from, int64_t n)
{
    if (!t) return (struct tensor){0};
    int64_t cols = t->ndim > 1 ? tensor_cols(t) : 1;
    char *data = (char *)t->data + (size_t)(from * cols) * tensor_type_size(t->type);
    return tensor_view(t->type, data, n, t->ndim > 1 ? cols : 0, 0, 0);
}

/* dlogits = (softmax(logits) - onehot(target)) dloss; dx = dlogits w; dw = dlogitsᵀ x */
static aim_status head_block_backward(struct exec *ex, const struct node *node, int64_t from, int64_t n, struct tensor *dx,
                                      struct tensor *dw)
{
    struct backend *be = ex->backend;
    const struct tensor *w = node->in[1];
    struct tensor x = rows_view(node->in[0], from, n), target = rows_view(node->in[2], from, n);
    struct tensor dloss = rows_view(node->out[0]->grad, from, n), dx_rows = rows_view(dx, from, n);
    struct tensor *kept = node->in[3], *logits = kept ? tensor_keep(kept) : tensor_new(ex, x.type, SHAPE(n, w->shape[0]));
    struct tensor *dlogits = tensor_new(ex, x.type, SHAPE(n, w->shape[0]));
    if (dlogits && be->overwrites)
        dlogits->fresh = (struct fresh_columns){0, w->shape[0]};
    else if (dlogits)
        tensor_zero(ex, dlogits);
    aim_status status = ex->status;
    if (status == AIM_OK && !kept) status = be->op.linear(be, &x, w, NULL, logits);
    if (status == AIM_OK) status = be->op.cross_entropy_backward(be, logits, &target, &dloss, dlogits);
    if (status == AIM_OK) status = be->op.linear_backward(be, &x, w, dlogits, dx ? &dx_rows : NULL, dw, NULL);
    tensor_drop(logits);
    tensor_drop(dlogits);
    return status;
}

static aim_status linear_cross_entropy_backward(struct exec *ex, struct node *node)
{
    struct tensor *dx = tape_grad(ex, node->in[0]), *dw = tape_grad_fresh(ex, node->in[1]);
    if (ex->status != AIM_OK) return ex->status;
    int64_t M = tensor_rows(node->in[0]), step = head_rows(ex, M);
    for (int64_t from = 0; from < M; from += step)
        TRY(head_block_backward(ex, node, from, M - from < step ? M - from : step, dx, dw));
    return AIM_OK;
}

struct tensor *op_linear_cross_entropy(struct exec *ex, const struct tensor *x, const struct tensor *w,
                                       const struct tensor *target)
{
    if (!x || !w || !target) return NULL;
    int64_t M = tensor_rows(x), V = w->shape[0], step = head_rows(ex, M);
    if (!op_check(ex, tensor_cols(x) == tensor_cols(w) && tensor_count(target) == M, "linear_cross_entropy")) return NULL;
    struct backend *be = ex->backend;
    struct tensor *loss = tensor_new(ex, T_F32, SHAPE(M)), *logits = tensor_new(ex, x->type, SHAPE(step, V));
    aim_status status = loss && logits ? AIM_OK : ex->status;
    for (int64_t from = 0; from < M && status == AIM_OK; from += step) {
        int64_t n = M - from < step ? M - from : step;
        struct tensor rows = rows_view(x, from, n), part = rows_view(logits, 0, n), losses = rows_view(loss, from, n);
        struct tensor wanted = rows_view(target, from, n);
        status = be->op.linear(be, &rows, w, NULL, &part);
        if (status == AIM_OK) status = be->op.cross_entropy(be, &part, &wanted, &losses);
    }
    loss = op_finish(ex, status, loss);
    struct tensor *kept = step == M ? logits : NULL; /* of one block: they need not be computed again */
    struct node node = {linear_cross_entropy_backward, {loss}, {tape_input(x), tape_input(w), tape_input(target), kept}, {{0}}};
    if (loss) tape_record(ex, &node);
    tensor_drop(logits);
    return loss;
}
