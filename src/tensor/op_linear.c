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
    struct tensor *dx = tape_grad(ex, x), *dw = tape_grad(ex, w), *dbias = tape_grad(ex, bias);
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
    struct tensor *y = tensor_new(ex, T_F32, x->ndim, shape);
    if (!y) return NULL;
    struct backend *be = ex->backend;
    if (w->type == T_F32_PACKED || w->type == T_BF16_PACKED) {
        if (!op_check(ex, bias == OP_NONE, "linear with packed weights")) return op_finish(ex, ex->status, y);
        return op_finish(ex, be->op.linear_packed(be, x, w, y), y);
    }
    if (bias == OP_NONE) bias = NULL;
    y = op_finish(ex, be->op.linear(be, x, w, bias, y), y);
    if (y) tape_record(ex, &(struct node){linear_backward, {y}, {tape_input(x), tape_input(w), tape_input(bias)}, {{0}}});
    return y;
}
