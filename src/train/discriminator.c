#include "train/discriminator.h"

#include <math.h>
#include <stdio.h>

static const float leak = 0.2f; /* the slope of every leaky relu */

/* ------------------------------------------------------------------------------------------- the tensors' walk */

/* One walk serves the table and the building: `visit` is called for each tensor, in order, with the slot that it fills. */
struct walk {
    aim_status (*visit)(struct walk *w, struct tensor **slot, const struct param *row);
    struct params *table;        /* describing */
    const struct params *values; /* building */
    struct discriminator *d;
};

static aim_status visit(struct walk *w, struct tensor **slot, enum param_init init, double scale, int ndim,
                        const int64_t *shape, const char *module, const char *what)
{
    struct param row = {.ndim = ndim, .init = init, .scale = scale, .buffer = what[0] == 'r'};
    snprintf(row.name, sizeof row.name, "%s.%s", module, what);
    for (int i = 0; i < ndim; i++) row.shape[i] = shape[i];
    return w->visit(w, slot, &row);
}

/* PyTorch's default, or N(0, 0.02²) weights */
static aim_status walk_conv(struct walk *w, struct discriminator_conv *c, bool normal, bool bias, int64_t out, int64_t in,
                            int64_t k, const char *module)
{
    double bound = 1 / sqrt((double)(in * k * k));
    TRY(visit(w, &c->w, normal ? INIT_NORMAL : INIT_UNIFORM, normal ? 0.02 : bound, SHAPE(out, in, k, k), module, "weight"));
    return bias ? visit(w, &c->b, INIT_UNIFORM, bound, SHAPE(out), module, "bias") : AIM_OK;
}

static aim_status walk_norm(struct walk *w, struct discriminator_norm *n, int64_t channels, const char *module)
{
    TRY(visit(w, &n->w, INIT_AROUND_1, 0.02, SHAPE(channels), module, "weight"));
    TRY(visit(w, &n->b, INIT_ZERO, 0, SHAPE(channels), module, "bias"));
    TRY(visit(w, &n->mean, INIT_ZERO, 0, SHAPE(channels), module, "running_mean"));
    return visit(w, &n->variance, INIT_ONE, 0, SHAPE(channels), module, "running_var");
}

static aim_status walk_patch(struct walk *w, struct patch_layers *p, int64_t channels)
{
    TRY(walk_conv(w, &p->conv[0], true, true, channels, 3, 4, "main.0"));
    for (int i = 1; i < 4; i++) {
        char name[16];
        snprintf(name, sizeof name, "main.%d", 3 * i - 1);
        TRY(walk_conv(w, &p->conv[i], true, false, channels << i, channels << (i - 1), 4, name));
        snprintf(name, sizeof name, "main.%d", 3 * i);
        TRY(walk_norm(w, &p->norm[i - 1], channels << i, name));
    }
    return walk_conv(w, &p->conv[4], true, true, 1, channels << 3, 4, "main.11");
}

/* Channels of the maps of this size (spec E4). */
static int64_t style_channels(int size)
{
    return size <= 32 ? 512 : 512 * 32 / size;
}

/* A fully connected layer over a whole map of 4x4, or over a pixel: its matrix (out, in k k) is a filter as it lies, since
 * PyTorch flattens channels, rows, columns. */
static aim_status walk_linear(struct walk *w, struct discriminator_conv *c, int64_t out, int64_t in, const char *module)
{
    double bound = 1 / sqrt((double)in);
    TRY(visit(w, &c->w, INIT_UNIFORM, bound, SHAPE(out, in), module, "weight"));
    return visit(w, &c->b, INIT_UNIFORM, bound, SHAPE(out), module, "bias");
}

static aim_status walk_style(struct walk *w, struct style_layers *s, int size)
{
    TRY(walk_conv(w, &s->in, false, true, style_channels(size), 3, 3, "blocks.0"));
    for (s->blocks = 0; size > 4; size /= 2, s->blocks++) {
        struct style_block *b = &s->block[s->blocks];
        int64_t in = style_channels(size), out = style_channels(size / 2);
        char name[32];
        snprintf(name, sizeof name, "blocks.%d.conv_res", s->blocks + 2);
        TRY(walk_conv(w, &b->res, false, true, out, in, 1, name));
        snprintf(name, sizeof name, "blocks.%d.net.0", s->blocks + 2);
        TRY(walk_conv(w, &b->first, false, true, out, in, 3, name));
        snprintf(name, sizeof name, "blocks.%d.net.2", s->blocks + 2);
        TRY(walk_conv(w, &b->second, false, true, out, out, 3, name));
        snprintf(name, sizeof name, "blocks.%d.downsample.1", s->blocks + 2);
        TRY(walk_conv(w, &b->down, false, true, out, out, 3, name));
    }
    int64_t last = style_channels(4);
    TRY(walk_conv(w, &s->final, false, true, last, last, 3, "final_conv.0"));
    TRY(walk_linear(w, &s->hidden, last, last * 16, "final_linear.0"));
    return walk_linear(w, &s->out, 1, last, "final_linear.2");
}

static aim_status walk_all(struct walk *w, const struct discriminator_config *config)
{
    if (config->kind == DISCRIMINATOR_PATCH) return walk_patch(w, &w->d->patch, config->channels);
    int size = config->size;
    if (size < 8 || size > 1024 || (size & (size - 1)) != 0)
        return aim_fail(w->values ? w->values->ctx : w->table->ctx, AIM_ERR_ARGUMENT,
                        "the StyleGAN discriminator takes pictures of 8, 16, ... 1024 pixels, not %d", size);
    return walk_style(w, &w->d->style, size);
}

static aim_status visit_describe(struct walk *w, struct tensor **slot, const struct param *row)
{
    (void)slot;
    TRY(params_add(w->table, row->init, row->scale, row->ndim, row->shape, "%s", row->name));
    w->table->items[w->table->count - 1].buffer = row->buffer;
    return AIM_OK;
}

aim_status discriminator_describe(const struct discriminator_config *config, struct params *table)
{
    struct discriminator skeleton = {0};
    struct walk w = {.visit = visit_describe, .table = table, .d = &skeleton};
    return walk_all(&w, config);
}

static aim_status visit_build(struct walk *w, struct tensor **slot, const struct param *named)
{
    struct discriminator *d = w->d;
    const struct param *row = params_find(w->values, "%s", named->name);
    if (!row) return AIM_ERR_INTERNAL;
    if (!row->entry) return aim_fail(w->values->ctx, AIM_ERR_FORMAT, "the discriminator's tensor %s is missing", named->name);
    struct tensor *t = params_trainable(w->values, row);
    if (!t) return w->values->ctx->status;
    if (row->buffer)
        t->needs_grad = false;
    else
        d->trainable[d->trainable_count++] = t;
    *slot = d->tensors[d->count++] = t;
    return AIM_OK;
}

/* The matrix of a fully connected layer as the filter that it is used as. */
static void as_filter(struct tensor *w, int64_t k)
{
    w->ndim = 4;
    w->shape[1] /= k * k;
    w->shape[2] = w->shape[3] = k;
}

aim_status discriminator_build(const struct discriminator_config *config, const struct params *table,
                               struct discriminator **out)
{
    struct discriminator *d = *out = mem_zero(table->ctx, 1, sizeof *d, MEM_MISC);
    if (!d) return AIM_ERR_MEMORY;
    d->config = *config;
    d->tensors = mem_zero(table->ctx, table->count, sizeof(struct tensor *), MEM_MISC);
    d->trainable = mem_zero(table->ctx, table->count, sizeof(struct tensor *), MEM_MISC);
    if (!d->tensors || !d->trainable) return AIM_ERR_MEMORY;
    struct walk w = {.visit = visit_build, .values = table, .d = d};
    TRY(walk_all(&w, config));
    if (config->kind == DISCRIMINATOR_STYLE) as_filter(d->style.hidden.w, 4);
    return AIM_OK;
}

void discriminator_free(struct discriminator *d)
{
    if (!d) return;
    for (size_t i = 0; i < d->count; i++) tensor_drop(d->tensors[i]);
    mem_free(d->tensors);
    mem_free(d->trainable);
    mem_free(d);
}

void discriminator_train(struct discriminator *d, bool on)
{
    for (size_t i = 0; i < d->trainable_count; i++) d->trainable[i]->needs_grad = on;
}

/* ----------------------------------------------------------------------------------------------- the networks */

/* A convolution, then leaky relu if asked; takes x */
static struct tensor *conv(struct exec *ex, const struct discriminator_conv *c, struct conv2d how, bool relu, struct tensor *x)
{
    struct tensor *y = op_conv2d(ex, x, c->w, c->b ? c->b : OP_NONE, how);
    tensor_drop(x);
    if (!relu) return y;
    struct tensor *z = op_leaky_relu(ex, y, leak);
    tensor_drop(y);
    return z;
}

static struct tensor *patch_forward(struct exec *ex, const struct patch_layers *p, struct tensor *x)
{
    static const struct conv2d halve = {.stride = 2, .pad_before = 1, .pad_after = 1};
    static const struct conv2d keep = {.stride = 1, .pad_before = 1, .pad_after = 1};
    x = conv(ex, &p->conv[0], halve, true, x);
    for (int i = 1; i < 4; i++) {
        const struct discriminator_norm *n = &p->norm[i - 1];
        x = conv(ex, &p->conv[i], i < 3 ? halve : keep, false, x);
        struct tensor *y = op_batch_norm(ex, x, n->w, n->b, n->mean, n->variance);
        tensor_drop(x);
        x = op_leaky_relu(ex, y, leak);
        tensor_drop(y);
    }
    return conv(ex, &p->conv[4], keep, false, x);
}

static const struct conv2d style_same = {.stride = 1, .pad_before = 1, .pad_after = 1};

/* (down(blur(relu(second(relu(first(x)))))) + res(x)) / √2; takes x */
static struct tensor *style_block(struct exec *ex, const struct style_block *b, struct tensor *x)
{
    static const struct conv2d halve = {.stride = 2, .pad_before = 1, .pad_after = 1}, pick = {.stride = 2};
    struct tensor *res = conv(ex, &b->res, pick, false, tensor_keep(x));
    x = conv(ex, &b->first, style_same, true, x);
    x = conv(ex, &b->second, style_same, true, x);
    struct tensor *soft = op_blur(ex, x);
    tensor_drop(x);
    struct tensor *down = conv(ex, &b->down, halve, false, soft), *sum = op_add(ex, down, res);
    struct tensor *y = op_scale(ex, sum, 0.70710678f);
    struct tensor *done[] = {res, down, sum};
    for (size_t i = 0; i < sizeof done / sizeof done[0]; i++) tensor_drop(done[i]);
    return y;
}

static struct tensor *style_forward(struct exec *ex, const struct style_layers *s, struct tensor *x)
{
    static const struct conv2d whole = {.stride = 1};
    x = conv(ex, &s->in, style_same, true, x);
    for (int i = 0; i < s->blocks; i++) x = style_block(ex, &s->block[i], x);
    x = conv(ex, &s->final, style_same, true, x);
    x = conv(ex, &s->hidden, whole, true, x);
    struct tensor *logits = op_linear(ex, x, s->out.w, s->out.b);
    tensor_drop(x);
    return logits;
}

struct tensor *discriminator_forward(struct exec *ex, const struct discriminator *d, const struct tensor *pixels)
{
    struct tensor *x = op_nchw_to_nhwc(ex, pixels);
    return d->config.kind == DISCRIMINATOR_PATCH ? patch_forward(ex, &d->patch, x) : style_forward(ex, &d->style, x);
}
