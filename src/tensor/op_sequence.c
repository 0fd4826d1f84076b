#include "tensor/ops.h"

#include "tensor/ssd_cache.h"
#include "tensor/tape.h"

static const struct tensor *given(const struct tensor *t)
{
    return t == OP_NONE ? NULL : t;
}

/* dtokens[ids] += dy; dpositions[pos] += dy */
static aim_status embedding_backward(struct exec *ex, struct node *n)
{
    struct tensor *dtokens = tape_grad(ex, n->in[0]), *dpositions = tape_grad(ex, n->in[1]);
    if (ex->status != AIM_OK) return ex->status;
    return ex->backend->op.embedding_backward(ex->backend, n->in[2], n->in[3], n->out[0]->grad, dtokens, dpositions);
}

/* y (M,d) = tokens[ids] + positions[pos] */
struct tensor *op_embedding(struct exec *ex, const struct tensor *tokens, const struct tensor *positions,
                            const struct tensor *ids, const struct tensor *pos)
{
    if (!tokens || !positions || !ids || !pos) return NULL;
    int64_t M = tensor_count(ids);
    bool plain = positions == OP_NONE;
    if (!op_check(ex, plain || (tensor_cols(positions) == tensor_cols(tokens) && tensor_count(pos) == M), "embedding"))
        return NULL;
    struct tensor *y = tensor_new(ex, T_F32, SHAPE(M, tensor_cols(tokens)));
    if (!y) return NULL;
    positions = given(positions);
    pos = given(pos);
    y = op_finish(ex, ex->backend->op.embedding(ex->backend, tokens, positions, ids, pos, y), y);
    struct node node = {
        embedding_backward, {y}, {tape_input(tokens), tape_input(positions), tape_input(ids), tape_input(pos)}, {{0}}};
    if (y) tape_record(ex, &node);
    return y;
}

static aim_status prepend_backward(struct exec *ex, struct node *n)
{
    struct tensor *dfirst = tape_grad(ex, n->in[0]), *drest = tape_grad(ex, n->in[1]);
    if (ex->status != AIM_OK) return ex->status;
    return ex->backend->op.prepend_backward(ex->backend, n->out[0]->grad, dfirst, drest);
}

/* y (B,1+T,d) from first (B,d) and rest (B*T,d) */
struct tensor *op_prepend(struct exec *ex, const struct tensor *first, const struct tensor *rest)
{
    if (!first || !rest) return NULL;
    int64_t B = first->shape[0], d = tensor_cols(first);
    if (!op_check(ex, tensor_cols(rest) == d && tensor_rows(rest) % B == 0, "prepend")) return NULL;
    struct tensor *y = tensor_new(ex, T_F32, SHAPE(B, 1 + tensor_rows(rest) / B, d));
    if (y) y = op_finish(ex, ex->backend->op.prepend(ex->backend, first, rest, y), y);
    if (y) tape_record(ex, &(struct node){prepend_backward, {y}, {tape_input(first), tape_input(rest)}, {{0}}});
    return y;
}

static aim_status slice_add_backward(struct exec *ex, struct node *n)
{
    struct tensor *dx = tape_grad(ex, n->in[0]), *dbias = tape_grad(ex, n->in[1]);
    if (ex->status != AIM_OK) return ex->status;
    return ex->backend->op.slice_add_backward(ex->backend, n->how.from, n->out[0]->grad, dx, dbias);
}

/* y (B,n) = x[:, from : from+n] + bias */
struct tensor *op_slice_add(struct exec *ex, const struct tensor *x, int64_t from, const struct tensor *bias)
{
    if (!x || !bias) return NULL;
    int64_t n = tensor_count(bias);
    if (!op_check(ex, from >= 0 && from + n <= tensor_cols(x), "slice_add")) return NULL;
    struct tensor *y = tensor_new(ex, T_F32, SHAPE(x->shape[0], n));
    if (y) y = op_finish(ex, ex->backend->op.slice_add(ex->backend, x, from, bias, y), y);
    if (y) tape_record(ex, &(struct node){slice_add_backward, {y}, {tape_input(x), tape_input(bias)}, {.from = from}});
    return y;
}

/* dx = dy σ(x) (1 + x (1 - σ(x))) */
static aim_status silu_backward(struct exec *ex, struct node *n)
{
    struct tensor *dx = tape_grad(ex, n->in[0]);
    return dx ? ex->backend->op.silu_backward(ex->backend, n->in[0], n->out[0]->grad, dx) : ex->status;
}

/* y = x σ(x) */
struct tensor *op_silu(struct exec *ex, const struct tensor *x)
{
    if (!x) return NULL;
    struct tensor *y = tensor_new(ex, x->type, x->ndim, x->shape);
    if (y) y = op_finish(ex, ex->backend->op.silu(ex->backend, x, y), y);
    if (y) tape_record(ex, &(struct node){silu_backward, {y}, {tape_input(x)}, {{0}}});
    return y;
}

/*
 * With x̂ = r' rstd and q = dy ⊙ (1 + scale) ⊙ w: dr' = rstd (q - x̂ mean(x̂ ⊙ q)) + what arrives at r' itself;
 * dr = dr'; dh = gate ⊙ dr'; dgate = Σ_t dr' ⊙ h; dw = Σ dy ⊙ (1 + scale) ⊙ x̂; dscale = Σ_t dy ⊙ x̂ ⊙ w; dshift = Σ_t dy.
 */
static aim_status residual_rms_norm_modulate_backward(struct exec *ex, struct node *n)
{
    struct tensor *r = n->in[0], *h = n->in[1], *gates = n->in[2], *w = n->in[3], *mod = n->in[4];
    struct tensor *sum = h ? n->out[1] : r; /* without h the residual passes through untouched */
    struct tensor *dr = tape_grad_fresh(ex, r), *dh = tape_grad_fresh(ex, h), *dgates = tape_grad(ex, gates);
    struct tensor *dw = tape_grad(ex, w), *dmod = tape_grad(ex, mod), *dsum = h ? tape_arrived(sum) : NULL;
    if (ex->status != AIM_OK) return ex->status;
    return ex->backend->op.residual_rms_norm_modulate_backward(ex->backend, sum, h, gates, w, mod, AIM_RMS_EPS, dsum,
                                                               tape_arrived(n->out[0]), dr, dh, dgates, dw, dmod);
}

/* r' = r + gate ⊙ h; y = rms(r') ⊙ w ⊙ (1 + scale) + shift */
struct tensor *op_residual_rms_norm_modulate(struct exec *ex, struct tensor **r, const struct tensor *h,
                                             const struct tensor *gates, const struct tensor *w, const struct tensor *mod)
{
    if (!*r || !h || !gates || !w || !mod) return NULL;
    struct tensor *sum = *r;
    int64_t B = sum->shape[0], d = tensor_cols(sum);
    bool fits = sum->ndim == 3 && tensor_count(w) == d && (h == OP_NONE || tensor_count(h) == tensor_count(sum)) &&
                (gates == OP_NONE || (gates->shape[0] == B && tensor_cols(gates) == 3 * d)) &&
                (mod == OP_NONE || (mod->shape[0] == B && tensor_cols(mod) >= 2 * d));
    if (!op_check(ex, fits, "residual_rms_norm_modulate")) return NULL;
    /* what a modulation follows is an activation; plain norms stay float32, like the residual stream */
    struct tensor *y = tensor_new(ex, mod == OP_NONE ? T_F32 : backend_activation(ex->backend), 3, sum->shape);
    struct tensor *added = h == OP_NONE ? tensor_keep(sum) : tensor_new(ex, T_F32, 3, sum->shape);
    if (!y || !added) {
        tensor_drop(y);
        tensor_drop(added);
        return NULL;
    }
    aim_status status = ex->backend->op.residual_rms_norm_modulate(ex->backend, sum, given(h), given(gates), w, given(mod),
                                                                   AIM_RMS_EPS, added, y);
    *r = added;
    y = op_finish(ex, status, y);
    struct node node = {residual_rms_norm_modulate_backward,
                        {y, given(h) ? added : NULL},
                        {sum, tape_input(given(h)), tape_input(given(gates)), tape_input(w), tape_input(given(mod))},
                        {{0}}};
    if (y) tape_record(ex, &node);
    tensor_drop(sum);
    return y;
}

/* With da = dy silu'(a): dx[t-3+k] += w[k] da[t]; dw[k] = Σ da[t] x[t-3+k]; dbias = Σ da */
static aim_status causal_conv1d_silu_backward(struct exec *ex, struct node *n)
{
    struct tensor *dx = tape_grad_fresh(ex, n->in[0]), *dw = tape_grad(ex, n->in[1]), *dbias = tape_grad(ex, n->in[2]);
    if (ex->status != AIM_OK) return ex->status;
    return ex->backend->op.causal_conv1d_silu_backward(ex->backend, n->in[0], n->in[1], n->in[2], n->out[0]->grad, dx, dw,
                                                       dbias);
}

/* y (B,T,C) from columns E..E+C of zxbcdt (B,T,W) */
struct tensor *op_causal_conv1d_silu(struct exec *ex, const struct tensor *zxbcdt, const struct tensor *w,
                                     const struct tensor *bias)
{
    if (!zxbcdt || !w || !bias) return NULL;
    int64_t C = w->shape[0];
    bool fits = zxbcdt->ndim == 3 && tensor_count(w) == C * CONV_WIDTH && tensor_count(bias) == C && tensor_cols(zxbcdt) > C &&
                (tensor_cols(zxbcdt) - C) % (HEADDIM + 1) == 0;
    if (!op_check(ex, fits, "causal_conv1d_silu")) return NULL;
    struct tensor *y = tensor_new(ex, zxbcdt->type, SHAPE(zxbcdt->shape[0], zxbcdt->shape[1], C));
    if (y) y = op_finish(ex, ex->backend->op.causal_conv1d_silu(ex->backend, zxbcdt, w, bias, y), y);
    struct node node = {causal_conv1d_silu_backward, {y}, {tape_input(zxbcdt), tape_input(w), tape_input(bias)}, {{0}}};
    if (y) tape_record(ex, &node);
    return y;
}

/* The formulas stand in cpu/kernels/ssd_backward.c. */
static aim_status ssd_backward(struct exec *ex, struct node *n)
{
    struct tensor *dxbc = tape_grad_fresh(ex, n->in[0]), *dzxbcdt = tape_grad_fresh(ex, n->in[1]);
    struct tensor *dA_log = tape_grad(ex, n->in[2]), *ddt_bias = tape_grad(ex, n->in[3]), *dD = tape_grad(ex, n->in[4]);
    if (ex->status != AIM_OK) return ex->status;
    return ex->backend->op.ssd_backward(ex->backend, n->in[0], n->in[1], n->in[2], n->in[3], n->in[4], n->out[0]->grad, dxbc,
                                        dzxbcdt, dA_log, ddt_bias, dD);
}

/* y (B,T,E): the recurrence of spec C4 in its chunked form, C5 */
struct tensor *op_ssd(struct exec *ex, const struct tensor *xbc, const struct tensor *zxbcdt, const struct tensor *A_log,
                      const struct tensor *dt_bias, const struct tensor *D)
{
    if (!xbc || !zxbcdt || !A_log || !dt_bias || !D) return NULL;
    int64_t H = tensor_count(A_log), E = H * HEADDIM;
    bool fits = xbc->ndim == 3 && tensor_rows(xbc) == tensor_rows(zxbcdt) && tensor_cols(xbc) > E &&
                tensor_cols(zxbcdt) == E + tensor_cols(xbc) + H && tensor_count(dt_bias) == H && tensor_count(D) == H;
    if (!op_check(ex, fits, "ssd")) return NULL;
    struct tensor *y = tensor_new(ex, xbc->type, SHAPE(xbc->shape[0], xbc->shape[1], E));
    if (y) y = op_finish(ex, ex->backend->op.ssd(ex->backend, xbc, zxbcdt, A_log, dt_bias, D, y), y);
    struct node node = {
        ssd_backward, {y}, {tape_input(xbc), tape_input(zxbcdt), tape_input(A_log), tape_input(dt_bias), tape_input(D)}, {{0}}};
    if (y) tape_record(ex, &node);
    return y;
}

/* With v = y ⊙ silu(z), v̂ = v rstd: dv = rstd (w ⊙ do - v̂ mean(v̂ ⊙ w ⊙ do)); dy = dv ⊙ silu(z); dz = dv ⊙ y ⊙ silu'(z) */
static aim_status gated_rms_norm_backward(struct exec *ex, struct node *n)
{
    struct tensor *dy = tape_grad_fresh(ex, n->in[0]), *dzxbcdt = tape_grad_fresh(ex, n->in[1]), *dw = tape_grad(ex, n->in[2]);
    if (ex->status != AIM_OK) return ex->status;
    return ex->backend->op.gated_rms_norm_backward(ex->backend, n->in[0], n->in[1], n->in[2], AIM_RMS_EPS, n->out[0]->grad, dy,
                                                   dzxbcdt, dw);
}

/* o = rms(y ⊙ silu(z)) ⊙ w */
struct tensor *op_gated_rms_norm(struct exec *ex, const struct tensor *y, const struct tensor *zxbcdt, const struct tensor *w)
{
    if (!y || !zxbcdt || !w) return NULL;
    bool fits =
        tensor_rows(y) == tensor_rows(zxbcdt) && tensor_count(w) == tensor_cols(y) && tensor_cols(zxbcdt) > tensor_cols(y);
    if (!op_check(ex, fits, "gated_rms_norm")) return NULL;
    struct tensor *o = tensor_new(ex, y->type, y->ndim, y->shape);
    if (o) o = op_finish(ex, ex->backend->op.gated_rms_norm(ex->backend, y, zxbcdt, w, AIM_RMS_EPS, o), o);
    struct node node = {gated_rms_norm_backward, {o}, {tape_input(y), tape_input(zxbcdt), tape_input(w)}, {{0}}};
    if (o) tape_record(ex, &node);
    return o;
}

/* dlogits = (softmax(logits) - onehot(target)) dloss */
static aim_status cross_entropy_backward(struct exec *ex, struct node *n)
{
    struct tensor *dlogits = tape_grad_fresh(ex, n->in[0]);
    if (!dlogits) return ex->status;
    return ex->backend->op.cross_entropy_backward(ex->backend, n->in[0], n->in[1], n->out[0]->grad, dlogits);
}

/* loss (M) = -log softmax(logits)[target] */
struct tensor *op_cross_entropy(struct exec *ex, const struct tensor *logits, const struct tensor *target)
{
    if (!logits || !target) return NULL;
    if (!op_check(ex, tensor_rows(logits) == tensor_count(target), "cross_entropy")) return NULL;
    struct tensor *loss = tensor_new(ex, T_F32, SHAPE(tensor_count(target)));
    if (loss) loss = op_finish(ex, ex->backend->op.cross_entropy(ex->backend, logits, target, loss), loss);
    if (loss) tape_record(ex, &(struct node){cross_entropy_backward, {loss}, {tape_input(logits), tape_input(target)}, {{0}}});
    return loss;
}
