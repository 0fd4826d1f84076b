#include "tensor/ops.h"

#include "tensor/ssd_cache.h"

static const struct tensor *given(const struct tensor *t)
{
    return t == OP_NONE ? NULL : t;
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
    return op_finish(ex, ex->backend->op.embedding(ex->backend, tokens, given(positions), ids, given(pos), y), y);
}

/* y (B,1+T,d) from first (B,d) and rest (B*T,d) */
struct tensor *op_prepend(struct exec *ex, const struct tensor *first, const struct tensor *rest)
{
    if (!first || !rest) return NULL;
    int64_t B = first->shape[0], d = tensor_cols(first);
    if (!op_check(ex, tensor_cols(rest) == d && tensor_rows(rest) % B == 0, "prepend")) return NULL;
    struct tensor *y = tensor_new(ex, T_F32, SHAPE(B, 1 + tensor_rows(rest) / B, d));
    return y ? op_finish(ex, ex->backend->op.prepend(ex->backend, first, rest, y), y) : NULL;
}

/* y (B,n) = x[:, from : from+n] + bias */
struct tensor *op_slice_add(struct exec *ex, const struct tensor *x, int64_t from, const struct tensor *bias)
{
    if (!x || !bias) return NULL;
    int64_t n = tensor_count(bias);
    if (!op_check(ex, from >= 0 && from + n <= tensor_cols(x), "slice_add")) return NULL;
    struct tensor *y = tensor_new(ex, T_F32, SHAPE(x->shape[0], n));
    return y ? op_finish(ex, ex->backend->op.slice_add(ex->backend, x, from, bias, y), y) : NULL;
}

/* y = x σ(x) */
struct tensor *op_silu(struct exec *ex, const struct tensor *x)
{
    if (!x) return NULL;
    struct tensor *y = tensor_new(ex, T_F32, x->ndim, x->shape);
    return y ? op_finish(ex, ex->backend->op.silu(ex->backend, x, y), y) : NULL;
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
    struct tensor *y = tensor_new(ex, T_F32, 3, sum->shape);
    struct tensor *added = h == OP_NONE ? tensor_keep(sum) : tensor_new(ex, T_F32, 3, sum->shape);
    if (!y || !added) {
        tensor_drop(y);
        tensor_drop(added);
        return NULL;
    }
    aim_status status = ex->backend->op.residual_rms_norm_modulate(ex->backend, sum, given(h), given(gates), w, given(mod),
                                                                   AIM_RMS_EPS, added, y);
    tensor_drop(sum);
    *r = added;
    return op_finish(ex, status, y);
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
    struct tensor *y = tensor_new(ex, T_F32, SHAPE(zxbcdt->shape[0], zxbcdt->shape[1], C));
    return y ? op_finish(ex, ex->backend->op.causal_conv1d_silu(ex->backend, zxbcdt, w, bias, y), y) : NULL;
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
    struct tensor *y = tensor_new(ex, T_F32, SHAPE(xbc->shape[0], xbc->shape[1], E));
    return y ? op_finish(ex, ex->backend->op.ssd(ex->backend, xbc, zxbcdt, A_log, dt_bias, D, y), y) : NULL;
}

/* o = rms(y ⊙ silu(z)) ⊙ w */
struct tensor *op_gated_rms_norm(struct exec *ex, const struct tensor *y, const struct tensor *zxbcdt, const struct tensor *w)
{
    if (!y || !zxbcdt || !w) return NULL;
    bool fits =
        tensor_rows(y) == tensor_rows(zxbcdt) && tensor_count(w) == tensor_cols(y) && tensor_cols(zxbcdt) > tensor_cols(y);
    if (!op_check(ex, fits, "gated_rms_norm")) return NULL;
    struct tensor *o = tensor_new(ex, T_F32, y->ndim, y->shape);
    return o ? op_finish(ex, ex->backend->op.gated_rms_norm(ex->backend, y, zxbcdt, w, AIM_RMS_EPS, o), o) : NULL;
}

/* loss (M) = -log softmax(logits)[target] */
struct tensor *op_cross_entropy(struct exec *ex, const struct tensor *logits, const struct tensor *target)
{
    if (!logits || !target) return NULL;
    if (!op_check(ex, tensor_rows(logits) == tensor_count(target), "cross_entropy")) return NULL;
    struct tensor *loss = tensor_new(ex, T_F32, SHAPE(tensor_count(target)));
    return loss ? op_finish(ex, ex->backend->op.cross_entropy(ex->backend, logits, target, loss), loss) : NULL;
}
