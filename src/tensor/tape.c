#include "tensor/tape.h"

void tape_start(struct tape *tape, struct exec *ex)
{
    *tape = (struct tape){.ex = ex};
    ex->tape = tape;
}

static void drop_node(struct node *n)
{
    for (int i = 0; i < NODE_OUTPUTS; i++) tensor_drop(n->out[i]);
    for (int i = 0; i < NODE_INPUTS; i++) tensor_drop(n->in[i]);
    *n = (struct node){0};
}

void tape_stop(struct tape *tape)
{
    for (size_t i = 0; i < tape->count; i++) drop_node(&tape->nodes[i]);
    mem_free(tape->nodes);
    tape->ex->tape = NULL;
    *tape = (struct tape){0};
}

void tape_record(struct exec *ex, const struct node *node)
{
    struct tape *tape = ex->tape;
    bool needed = false;
    for (int i = 0; i < NODE_INPUTS; i++) needed |= node->in[i] && node->in[i]->needs_grad;
    if (!tape || !needed) return;
    if (tape->count == tape->capacity) {
        size_t capacity = tape->capacity ? 2 * tape->capacity : 256;
        struct node *nodes = mem_resize(ex->ctx, tape->nodes, capacity * sizeof *nodes, MEM_MISC);
        if (!nodes) {
            exec_fail(ex, AIM_ERR_MEMORY);
            return;
        }
        tape->nodes = nodes;
        tape->capacity = capacity;
    }
    struct node *n = &tape->nodes[tape->count++];
    *n = *node;
    for (int i = 0; i < NODE_INPUTS; i++) tensor_keep(n->in[i]);
    for (int i = 0; i < NODE_OUTPUTS; i++)
        if (n->out[i]) tensor_keep(n->out[i])->needs_grad = true;
}

/* Zeros in the columns that are still fresh: in one go, or, after an unusual order of ops, row by row. */
static void settle(struct exec *ex, struct tensor *grad)
{
    if (!grad || grad->fresh.first == grad->fresh.end) return;
    struct backend *be = ex->backend;
    int64_t cols = tensor_cols(grad), first = grad->fresh.first, count = grad->fresh.end - first, rows = tensor_rows(grad);
    if (count == cols) count *= rows, rows = 1;
    size_t size = tensor_type_size(grad->type);
    for (int64_t row = 0; row < rows; row++) {
        char *at = (char *)grad->data + (size_t)(row * cols + first) * size;
        aim_status status = be->memory.zero(be, at, (size_t)count * size);
        if (status != AIM_OK) exec_fail(ex, status);
    }
    grad->fresh = (struct fresh_columns){0, 0};
}

/* A gradient that others hold as well becomes the tensor's own before it is added to; it is whole already. */
static void own(struct exec *ex, struct tensor *t)
{
    if (!t->grad || t->grad->refs == 1) return;
    struct tensor *mine = tensor_new(ex, t->grad->type, t->grad->ndim, t->grad->shape);
    if (mine) tensor_copy(ex, mine, t->grad);
    tensor_drop(t->grad);
    t->grad = mine;
}

struct tensor *tape_grad(struct exec *ex, struct tensor *t)
{
    if (!t || !t->needs_grad) return NULL;
    own(ex, t);
    if (!t->grad) {
        struct tensor *grad = tensor_new(ex, t->type, t->ndim, t->shape);
        if (grad && tensor_zero(ex, grad) != AIM_OK) {
            tensor_drop(grad);
            grad = NULL;
        }
        t->grad = grad;
    }
    settle(ex, t->grad);
    return t->grad;
}

struct tensor *tape_grad_fresh(struct exec *ex, struct tensor *t)
{
    if (!t || !t->needs_grad) return NULL;
    if (!ex->backend->overwrites) return tape_grad(ex, t);
    own(ex, t);
    if (t->grad) return t->grad;
    t->grad = tensor_new(ex, t->type, t->ndim, t->shape);
    if (t->grad) t->grad->fresh = (struct fresh_columns){0, tensor_cols(t)};
    return t->grad;
}

bool tape_pass(struct tensor *t, struct tensor *grad)
{
    bool first = t->type == grad->type && t->ndim == grad->ndim && !t->grad;
    for (int i = 0; first && i < t->ndim; i++) first = t->shape[i] == grad->shape[i];
    if (first) t->grad = tensor_keep(grad);
    return first;
}

void tensor_clear_grad(struct tensor *t)
{
    tensor_drop(t->grad);
    t->grad = NULL;
}

/* The gradient of the sum of the losses with respect to each of them: `scale`. */
static void seed(struct exec *ex, struct tensor *loss, float scale)
{
    int64_t n = tensor_count(loss);
    struct tensor *grad = tape_grad(ex, loss);
    float *values = grad ? mem_array(ex->ctx, (size_t)n, sizeof *values, MEM_MISC) : NULL;
    if (grad && !values) exec_fail(ex, AIM_ERR_MEMORY);
    for (int64_t i = 0; values && i < n; i++) values[i] = scale;
    if (values) tensor_write(ex, grad, values);
    mem_free(values);
}

aim_status tape_backward(struct tape *tape, struct tensor *loss, float scale)
{
    struct exec *ex = tape->ex;
    tape->scale = scale;
    if (loss) seed(ex, loss, scale);
    while (tape->count > 0) {
        struct node *n = &tape->nodes[--tape->count];
        bool arrived = tape_arrived(n->out[0]) || tape_arrived(n->out[1]);
        for (int i = 0; i < NODE_OUTPUTS; i++) settle(ex, tape_arrived(n->out[i]));
        if (arrived && ex->status == AIM_OK) {
            aim_status status = n->backward(ex, n);
            if (status != AIM_OK) exec_fail(ex, status);
        }
        for (int i = 0; i < NODE_OUTPUTS; i++)
            if (n->out[i]) tensor_clear_grad(n->out[i]); /* consumed */
        drop_node(n);
    }
    return ex->status;
}

/* ---------------------------------------------------------------------------------------------- checkpointing */

static aim_status checkpoint_backward(struct exec *ex, struct node *n)
{
    struct tape *outer = ex->tape, inner;
    struct tensor *out[NODE_OUTPUTS] = {0};
    tape_start(&inner, ex);
    n->how.block.run(ex, n->how.block.user, n->in, out);
    for (int i = 0; i < NODE_OUTPUTS; i++)
        if (out[i] && n->out[i]) out[i]->grad = tensor_keep(n->out[i]->grad);
    tape_backward(&inner, NULL, 0);
    for (int i = 0; i < NODE_OUTPUTS; i++) tensor_drop(out[i]);
    tape_stop(&inner);
    ex->tape = outer;
    return ex->status;
}

void tape_checkpoint(struct exec *ex, tape_block run, const void *user, struct tensor *const *in, struct tensor **out)
{
    struct tape *tape = ex->tape;
    ex->tape = NULL;
    run(ex, user, in, out);
    ex->tape = tape;
    struct node node = {.backward = checkpoint_backward, .how.block = {run, user}};
    for (int i = 0; i < BLOCK_INPUTS; i++) node.in[i] = in[i];
    for (int o = 0; o < NODE_OUTPUTS; o++) {
        node.out[o] = out[o];
        for (int i = 0; i < BLOCK_INPUTS; i++)
            if (out[o] == in[i]) node.out[o] = NULL; /* an input passed on: its gradient arrives at it anyway */
    }
    if (ex->status == AIM_OK) tape_record(ex, &node);
}
