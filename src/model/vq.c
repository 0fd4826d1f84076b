#include "model/vq.h"

/* ------------------------------------------------------------------------------------------------- blocks */

static const struct conv2d same3x3 = {.stride = 1, .pad_before = 1, .pad_after = 1};
static const struct conv2d enlarge = {.stride = 1, .pad_before = 1, .pad_after = 1, .upsample = true};
static const struct conv2d halve = {.stride = 2, .pad_before = 0, .pad_after = 1};

/* GroupNorm, swish, 3x3 convolution */
static struct tensor *norm_conv(struct exec *ex, const struct vq_norm *norm, const struct vq_conv *conv, int groups,
                                const struct tensor *x)
{
    struct tensor *n = op_group_norm_silu(ex, x, norm->w, norm->b, groups, true);
    struct tensor *y = op_conv2d(ex, n, conv->w, conv->b, same3x3);
    tensor_drop(n);
    return y;
}

/* x + conv2(swish(norm2(conv1(swish(norm1(x)))))); takes x */
static struct tensor *res_block(struct exec *ex, const struct vq_res *b, int groups, struct tensor *x)
{
    struct tensor *h = norm_conv(ex, &b->norm1, &b->conv1, groups, x);
    struct tensor *g = norm_conv(ex, &b->norm2, &b->conv2, groups, h);
    tensor_drop(h);
    struct tensor *skip = b->shortcut.w ? op_linear(ex, x, b->shortcut.w, b->shortcut.b) : tensor_keep(x);
    struct tensor *y = op_add(ex, skip, g);
    tensor_drop(g);
    tensor_drop(skip);
    tensor_drop(x);
    return y;
}

/* x + proj(attention(q, k, v of norm(x))), one head over all positions; takes x */
static struct tensor *attn_block(struct exec *ex, const struct vq_attn *b, int groups, struct tensor *x)
{
    if (!x) return NULL;
    int64_t N = x->shape[0], L = x->shape[1] * x->shape[2], C = x->shape[3];
    struct tensor *n = op_group_norm_silu(ex, x, b->norm.w, b->norm.b, groups, false);
    n = tensor_reshape(ex, n, SHAPE(N, L, C));
    struct tensor *q = op_linear(ex, n, b->q.w, b->q.b), *k = op_linear(ex, n, b->k.w, b->k.b);
    struct tensor *v = op_linear(ex, n, b->v.w, b->v.b), *a = op_attention(ex, q, k, v);
    struct tensor *out = op_linear(ex, a, b->out.w, b->out.b), *y = op_add(ex, x, out);
    struct tensor *done[] = {x, n, q, k, v, a, out};
    for (size_t i = 0; i < sizeof done / sizeof done[0]; i++) tensor_drop(done[i]);
    return y;
}

static struct tensor *middle(struct exec *ex, const struct vq_stack *s, int groups, struct tensor *x)
{
    x = res_block(ex, &s->mid_in, groups, x);
    x = attn_block(ex, &s->mid_attn, groups, x);
    return res_block(ex, &s->mid_out, groups, x);
}

/* The levels one after another, each followed by its resize; takes x */
static struct tensor *levels(struct exec *ex, const struct vq_stack *s, const struct vq_config *c, struct conv2d resize,
                             struct tensor *x)
{
    for (int l = 0; l < c->levels; l++) {
        const struct vq_level *level = &s->levels[l];
        for (int r = 0; r < level->blocks; r++) {
            x = res_block(ex, &level->res[r], c->norm_groups, x);
            if (level->attn) x = attn_block(ex, &level->attn[r], c->norm_groups, x);
        }
        if (!level->resize.w) continue;
        struct tensor *y = op_conv2d(ex, x, level->resize.w, level->resize.b, resize);
        tensor_drop(x);
        x = y;
    }
    return x;
}

/* --------------------------------------------------------------------------------------------- the network */

struct tensor *vq_latent(struct exec *ex, const struct vq *vq, const struct tensor *pixels)
{
    const struct vq_stack *s = &vq->encoder;
    struct tensor *image = op_nchw_to_nhwc(ex, pixels);
    struct tensor *x = op_conv2d(ex, image, s->conv_in.w, s->conv_in.b, same3x3);
    tensor_drop(image);
    x = levels(ex, s, &vq->config, halve, x);
    x = middle(ex, s, vq->config.norm_groups, x);
    struct tensor *h = norm_conv(ex, &s->norm_out, &s->conv_out, vq->config.norm_groups, x);
    tensor_drop(x);
    struct tensor *z = op_linear(ex, h, vq->quant.w, vq->quant.b),
                  *exact = op_cast(ex, z, T_F32); /* codes are chosen in float32 */
    tensor_drop(h);
    tensor_drop(z);
    return exact;
}

/* The codebook with rows of unit length; the caller's. */
static struct tensor *unit_codebook(struct exec *ex, const struct vq *vq)
{
    return vq->trainable ? op_normalize_rows(ex, vq->codebook) : tensor_keep(vq->codebook);
}

struct tensor *vq_quantise(struct exec *ex, const struct vq *vq, const struct tensor *latent)
{
    struct tensor *unit = op_normalize_rows(ex, latent), *codes = unit_codebook(ex, vq);
    struct tensor *ids = op_nearest_code(ex, unit, codes);
    tensor_drop(unit);
    tensor_drop(codes);
    return ids;
}

void vq_last_gradient(struct exec *ex, const struct vq *vq, const struct tensor *last, const struct tensor *dpixels,
                      struct tensor *dw)
{
    if (!last || !dpixels || !dw) return;
    const struct ops *op = &ex->backend->op;
    struct tensor *dy = tensor_new(ex, last->type, SHAPE(last->shape[0], last->shape[1], last->shape[2], dpixels->shape[1]));
    if (!dy) return;
    aim_status status = op->nchw_to_nhwc(ex->backend, dpixels, dy);
    if (status == AIM_OK) status = op->conv2d_backward(ex->backend, last, vq->decoder.conv_out.w, &same3x3, dy, NULL, dw, NULL);
    if (status != AIM_OK) exec_fail(ex, status);
    tensor_drop(dy);
}

/* codes (N,rows,columns,D) -> pixels; takes codes. What the last convolution is given is the caller's at *last, unless that
 * is NULL. */
static struct tensor *decode_codes(struct exec *ex, const struct vq *vq, struct tensor *z, struct tensor **last)
{
    const struct vq_stack *s = &vq->decoder;
    struct tensor *a = op_cast(ex, z, backend_activation(ex->backend));
    struct tensor *h = op_linear(ex, a, vq->post_quant.w, vq->post_quant.b);
    tensor_drop(z);
    tensor_drop(a);
    struct tensor *x = op_conv2d(ex, h, s->conv_in.w, s->conv_in.b, same3x3);
    tensor_drop(h);
    x = middle(ex, s, vq->config.norm_groups, x);
    x = levels(ex, s, &vq->config, enlarge, x);
    struct tensor *n = op_group_norm_silu(ex, x, s->norm_out.w, s->norm_out.b, vq->config.norm_groups, true);
    tensor_drop(x);
    struct tensor *image = op_conv2d(ex, n, s->conv_out.w, s->conv_out.b, same3x3), *pixels = op_nhwc_to_nchw(ex, image);
    tensor_drop(image);
    if (last)
        *last = n;
    else
        tensor_drop(n);
    return pixels;
}

struct tensor *vq_decode(struct exec *ex, const struct vq *vq, const struct tensor *ids, int64_t N, int64_t rows,
                         int64_t columns)
{
    struct tensor *codes = unit_codebook(ex, vq), *z = op_embedding(ex, codes, OP_NONE, ids, OP_NONE);
    tensor_drop(codes);
    return decode_codes(ex, vq, tensor_reshape(ex, z, SHAPE(N, rows, columns, vq->config.codebook_dim)), NULL);
}

struct tensor *vq_train_forward(struct exec *ex, const struct vq *vq, const struct tensor *pixels, struct vq_training *training)
{
    struct tensor *latent = vq_latent(ex, vq, pixels), *unit = op_normalize_rows(ex, latent);
    struct tensor *codes = unit_codebook(ex, vq), *ids = op_nearest_code(ex, unit, codes);
    struct tensor *chosen = op_embedding(ex, codes, OP_NONE, ids, OP_NONE);
    *training = (struct vq_training){.ids = ids, .unit = unit, .codes = codes};
    training->vq = op_mean_square(ex, chosen, unit, 1.0f);
    training->commit = op_mean_square(ex, unit, chosen, 0.25f);
    struct tensor *image = decode_codes(ex, vq, op_straight_through(ex, unit, chosen), &training->last);
    tensor_drop(latent);
    tensor_drop(chosen);
    if (!image) vq_training_clear(training);
    return image;
}

void vq_training_clear(struct vq_training *training)
{
    struct tensor *all[] = {training->ids, training->vq, training->commit, training->unit, training->codes, training->last};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) tensor_drop(all[i]);
    *training = (struct vq_training){0};
}

int64_t vq_activation_bytes(const struct vq_config *c, int64_t rows, int64_t columns)
{
    /* At the full resolution up to four maps live at once: x, its norm, the outputs of two convolutions. What smaller maps
     * leave in the pool is as much again. */
    enum { MAPS = 8 };
    int64_t channels = c->base_channels * (int64_t)c->multiplier[0], scale = vq_downsample(c);
    return MAPS * rows * scale * columns * scale * channels * (int64_t)sizeof(float);
}
