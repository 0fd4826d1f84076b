#include "tensor/ops.h"

#include "tensor/tape.h"

/* dx = dy where x > 0, else slope dy */
static aim_status leaky_relu_backward(struct exec *ex, struct node *n)
{
    struct tensor *dx = tape_grad_fresh(ex, n->in[0]);
    if (!dx) return ex->status;
    return ex->backend->op.leaky_relu_backward(ex->backend, n->in[0], n->how.slope, n->out[0]->grad, dx);
}

struct tensor *op_leaky_relu(struct exec *ex, const struct tensor *x, float slope)
{
    if (!x) return NULL;
    struct tensor *y = tensor_new(ex, x->type, x->ndim, x->shape);
    if (y) y = op_finish(ex, ex->backend->op.leaky_relu(ex->backend, x, slope, y), y);
    if (y) tape_record(ex, &(struct node){leaky_relu_backward, {y}, {tape_input(x)}, {.slope = slope}});
    return y;
}

/* dx = factor dy */
static aim_status scale_backward(struct exec *ex, struct node *n)
{
    struct tensor *dx = tape_grad_fresh(ex, n->in[0]);
    return dx ? ex->backend->op.scale_backward(ex->backend, n->how.weight, n->out[0]->grad, dx) : ex->status;
}

struct tensor *op_scale(struct exec *ex, const struct tensor *x, float factor)
{
    if (!x) return NULL;
    struct tensor *y = tensor_new(ex, x->type, x->ndim, x->shape);
    if (y) y = op_finish(ex, ex->backend->op.scale(ex->backend, x, factor, y), y);
    if (y) tape_record(ex, &(struct node){scale_backward, {y}, {tape_input(x)}, {.weight = factor}});
    return y;
}

/* dx = dy at the largest of each four, 0 elsewhere */
static aim_status max_pool_backward(struct exec *ex, struct node *n)
{
    struct tensor *dx = tape_grad(ex, n->in[0]);
    return dx ? ex->backend->op.max_pool_backward(ex->backend, n->in[0], n->out[0]->grad, dx) : ex->status;
}

struct tensor *op_max_pool(struct exec *ex, const struct tensor *x)
{
    if (!x) return NULL;
    if (!op_check(ex, x->ndim == 4 && x->shape[1] >= 2 && x->shape[2] >= 2, "max_pool")) return NULL;
    struct tensor *y = tensor_new(ex, x->type, SHAPE(x->shape[0], x->shape[1] / 2, x->shape[2] / 2, x->shape[3]));
    if (y) y = op_finish(ex, ex->backend->op.max_pool(ex->backend, x, y), y);
    if (y) tape_record(ex, &(struct node){max_pool_backward, {y}, {tape_input(x)}, {{0}}});
    return y;
}

/* With x̂ = (x - mean) rstd and g = dy: db = Σ g; dw = Σ g x̂; dx = w rstd (g - mean(g) - x̂ mean(g x̂)) */
static aim_status batch_norm_backward(struct exec *ex, struct node *n)
{
    struct tensor *x = n->in[0], *w = n->in[1], *statistics = n->in[3];
    struct tensor *dx = tape_grad_fresh(ex, x), *dw = tape_grad(ex, w), *db = tape_grad(ex, n->in[2]);
    if (ex->status != AIM_OK) return ex->status;
    return ex->backend->op.batch_norm_backward(ex->backend, x, w, statistics, n->out[0]->grad, dx, dw, db);
}

/* y = BatchNorm(x) ⊙ w + b, in training mode */
struct tensor *op_batch_norm(struct exec *ex, const struct tensor *x, const struct tensor *w, const struct tensor *b,
                             struct tensor *mean, struct tensor *variance)
{
    if (!x || !w || !b || !mean || !variance) return NULL;
    int64_t C = tensor_cols(x);
    bool fits =
        x->ndim == 4 && tensor_count(w) == C && tensor_count(b) == C && tensor_count(mean) == C && tensor_count(variance) == C;
    if (!op_check(ex, fits, "batch_norm")) return NULL;
    struct tensor *statistics = tensor_new(ex, T_F32, SHAPE(2, C)), *y = tensor_new(ex, x->type, 4, x->shape);
    if (statistics && y) {
        aim_status status = ex->backend->op.batch_norm(ex->backend, x, w, b, AIM_BATCH_NORM_EPS, AIM_BATCH_NORM_MOMENTUM, mean,
                                                       variance, statistics, y);
        y = op_finish(ex, status, y);
    }
    struct node node = {batch_norm_backward, {y}, {tape_input(x), tape_input(w), tape_input(b), statistics}, {{0}}};
    if (statistics && y) tape_record(ex, &node);
    tensor_drop(statistics);
    return y;
}

/* dx = the same filter turned round, with what the mirrored border gives back */
static aim_status blur_backward(struct exec *ex, struct node *n)
{
    struct tensor *dx = tape_grad_fresh(ex, n->in[0]);
    return dx ? ex->backend->op.blur_backward(ex->backend, n->out[0]->grad, dx) : ex->status;
}

struct tensor *op_blur(struct exec *ex, const struct tensor *x)
{
    if (!x) return NULL;
    if (!op_check(ex, x->ndim == 4 && x->shape[1] >= 2 && x->shape[2] >= 2, "blur")) return NULL;
    struct tensor *y = tensor_new(ex, x->type, 4, x->shape);
    if (y) y = op_finish(ex, ex->backend->op.blur(ex->backend, x, y), y);
    if (y) tape_record(ex, &(struct node){blur_backward, {y}, {tape_input(x)}, {{0}}});
    return y;
}

/* With s = ‖a‖ and g = 2 ddistance keep w (â - b̂) / pixels: da = g / (s + eps) - a (g·a) / (s (s + eps)²) */
static aim_status lpips_distance_backward(struct exec *ex, struct node *n)
{
    struct tensor *da = tape_grad_fresh(ex, n->in[0]);
    if (!da) return ex->status;
    return ex->backend->op.lpips_distance_backward(ex->backend, n->in[0], n->in[1], n->in[2],
                                                   n->how.dropout.on ? &n->how.dropout.how : NULL, n->out[0]->grad, da);
}

struct tensor *op_lpips_distance(struct exec *ex, const struct tensor *a, const struct tensor *b, const struct tensor *w,
                                 const struct dropout *dropout)
{
    if (!a || !b || !w) return NULL;
    bool fits = a->ndim == 4 && b->ndim == 4 && tensor_count(w) == a->shape[3];
    for (int i = 0; i < TENSOR_DIMS; i++) fits &= a->shape[i] == b->shape[i];
    if (!op_check(ex, fits, "lpips_distance")) return NULL;
    struct tensor *y = tensor_new(ex, T_F32, SHAPE(a->shape[0]));
    if (y) y = op_finish(ex, ex->backend->op.lpips_distance(ex->backend, a, b, w, dropout, y), y);
    struct node node = {lpips_distance_backward, {y}, {tape_input(a), tape_input(b), tape_input(w)}, {{0}}};
    node.how.dropout.on = dropout != NULL;
    if (dropout) node.how.dropout.how = *dropout;
    if (y && a->needs_grad) tape_record(ex, &node);
    return y;
}

/* da = weight sign(a - target) dloss / n */
static aim_status mean_absolute_backward(struct exec *ex, struct node *n)
{
    struct tensor *da = tape_grad_fresh(ex, n->in[0]);
    if (!da) return ex->status;
    return ex->backend->op.mean_absolute_backward(ex->backend, n->in[0], n->in[1], n->how.weight, n->out[0]->grad, da, NULL);
}

struct tensor *op_mean_absolute(struct exec *ex, const struct tensor *a, const struct tensor *target, float weight)
{
    if (!a || !target) return NULL;
    if (!op_check(ex, tensor_count(a) == tensor_count(target), "mean_absolute")) return NULL;
    struct tensor *loss = tensor_new(ex, T_F32, SHAPE(1));
    if (loss) loss = op_finish(ex, ex->backend->op.mean_absolute(ex->backend, a, target, weight, loss), loss);
    struct node node = {mean_absolute_backward, {loss}, {tape_input(a), tape_input(target)}, {.weight = weight}};
    if (loss && a->needs_grad) tape_record(ex, &node);
    return loss;
}

/* dx = weight f'(x) dloss / n */
static aim_status mean_map_backward(struct exec *ex, struct node *n)
{
    struct tensor *dx = tape_grad_fresh(ex, n->in[0]);
    if (!dx) return ex->status;
    return ex->backend->op.mean_map_backward(ex->backend, n->in[0], n->how.mean.map, n->how.mean.weight, n->out[0]->grad, dx);
}

struct tensor *op_mean_map(struct exec *ex, const struct tensor *x, enum mean_map map, float weight)
{
    if (!x) return NULL;
    struct tensor *loss = tensor_new(ex, T_F32, SHAPE(1));
    if (loss) loss = op_finish(ex, ex->backend->op.mean_map(ex->backend, x, map, weight, loss), loss);
    struct node node = {mean_map_backward, {loss}, {tape_input(x)}, {.mean = {map, weight}}};
    if (loss) tape_record(ex, &node);
    return loss;
}

/* See kernels/code_entropy.c. */
static aim_status code_entropy_backward(struct exec *ex, struct node *n)
{
    struct tensor *z = n->in[0], *e = n->in[1], *dz = tape_grad(ex, z), *de = tape_grad(ex, e);
    if (ex->status != AIM_OK) return ex->status;
    return ex->backend->op.code_entropy_backward(ex->backend, z, e, n->how.entropy.temperature, n->how.entropy.weight, n->in[2],
                                                 n->out[0]->grad, dz, de);
}

struct tensor *op_code_entropy(struct exec *ex, const struct tensor *z, const struct tensor *e, float temperature, float weight)
{
    if (!z || !e) return NULL;
    if (!op_check(ex, e->ndim == 2 && tensor_cols(z) == tensor_cols(e), "code_entropy")) return NULL;
    struct tensor *average = tensor_new(ex, T_F32, SHAPE(e->shape[0])), *loss = tensor_new(ex, T_F32, SHAPE(1));
    if (average && loss)
        loss = op_finish(ex, ex->backend->op.code_entropy(ex->backend, z, e, temperature, weight, average, loss), loss);
    struct node node = {code_entropy_backward, {loss}, {tape_input(z), tape_input(e), average}, {{0}}};
    node.how.entropy.temperature = temperature;
    node.how.entropy.weight = weight;
    if (average && loss) tape_record(ex, &node);
    tensor_drop(average);
    return loss;
}
