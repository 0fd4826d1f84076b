/* The tokenizer's tensors: their names and shapes, and the way from a filled table to struct vq. */
#include <math.h>
#include <stdio.h>

#include "model/vq.h"

/* ---------------------------------------------------------------------------------------- describing names */

/*
 * One walk over the network serves the table and the building: `visit` is called once per tensor, in the official
 * order, with its name, shape, initialisation and the slot that it fills.
 */
struct walk {
    const struct vq_config *config;
    aim_status (*visit)(struct walk *w, struct tensor **slot, enum param_init init, double scale, int ndim,
                        const int64_t *shape, const char *name);
    struct params *table;        /* describing */
    const struct params *values; /* building */
    struct vq *vq;               /* building: collects tensors */
};

static aim_status walk_norm(struct walk *w, struct vq_norm *n, int64_t channels, const char *name)
{
    char full[96];
    snprintf(full, sizeof full, "%s.weight", name);
    TRY(w->visit(w, &n->w, INIT_ONE, 0, SHAPE(channels), full));
    snprintf(full, sizeof full, "%s.bias", name);
    return w->visit(w, &n->b, INIT_ZERO, 0, SHAPE(channels), full);
}

static aim_status walk_conv(struct walk *w, struct vq_conv *c, int64_t out, int64_t in, int64_t k, const char *name)
{
    char full[96];
    double bound = 1 / sqrt((double)(in * k * k));
    snprintf(full, sizeof full, "%s.weight", name);
    TRY(w->visit(w, &c->w, INIT_UNIFORM, bound, SHAPE(out, in, k, k), full));
    snprintf(full, sizeof full, "%s.bias", name);
    return w->visit(w, &c->b, INIT_UNIFORM, bound, SHAPE(out), full);
}

static aim_status walk_res(struct walk *w, struct vq_res *r, int64_t in, int64_t out, const char *name)
{
    char part[80];
    snprintf(part, sizeof part, "%s.norm1", name);
    TRY(walk_norm(w, &r->norm1, in, part));
    snprintf(part, sizeof part, "%s.conv1", name);
    TRY(walk_conv(w, &r->conv1, out, in, 3, part));
    snprintf(part, sizeof part, "%s.norm2", name);
    TRY(walk_norm(w, &r->norm2, out, part));
    snprintf(part, sizeof part, "%s.conv2", name);
    TRY(walk_conv(w, &r->conv2, out, out, 3, part));
    if (in == out) return AIM_OK;
    snprintf(part, sizeof part, "%s.nin_shortcut", name);
    return walk_conv(w, &r->shortcut, out, in, 1, part);
}

static aim_status walk_attn(struct walk *w, struct vq_attn *a, int64_t channels, const char *name)
{
    char part[80];
    snprintf(part, sizeof part, "%s.norm", name);
    TRY(walk_norm(w, &a->norm, channels, part));
    struct {
        const char *name;
        struct vq_conv *conv;
    } projections[] = {{"q", &a->q}, {"k", &a->k}, {"v", &a->v}, {"proj_out", &a->out}};
    for (size_t i = 0; i < sizeof projections / sizeof projections[0]; i++) {
        snprintf(part, sizeof part, "%s.%s", name, projections[i].name);
        TRY(walk_conv(w, projections[i].conv, channels, channels, 1, part));
    }
    return AIM_OK;
}

static aim_status walk_middle(struct walk *w, struct vq_stack *s, int64_t channels, const char *side)
{
    char name[64];
    snprintf(name, sizeof name, "%s.mid.0", side);
    TRY(walk_res(w, &s->mid_in, channels, channels, name));
    snprintf(name, sizeof name, "%s.mid.1", side);
    TRY(walk_attn(w, &s->mid_attn, channels, name));
    snprintf(name, sizeof name, "%s.mid.2", side);
    return walk_res(w, &s->mid_out, channels, channels, name);
}

/* Level `index` in data order: `blocks` residual blocks from `in` to `out` channels. */
static aim_status walk_level(struct walk *w, struct vq_level *level, const char *side, int index, int64_t in, int64_t out,
                             bool lowest, bool last)
{
    char name[64];
    for (int r = 0; r < level->blocks; r++) {
        snprintf(name, sizeof name, "%s.conv_blocks.%d.res.%d", side, index, r);
        TRY(walk_res(w, &level->res[r], r ? out : in, out, name));
    }
    for (int r = 0; lowest && r < level->blocks; r++) {
        snprintf(name, sizeof name, "%s.conv_blocks.%d.attn.%d", side, index, r);
        TRY(walk_attn(w, &level->attn[r], out, name));
    }
    if (last) return AIM_OK;
    snprintf(name, sizeof name, "%s.conv_blocks.%d.%s.conv", side, index, side[0] == 'e' ? "downsample" : "upsample");
    return walk_conv(w, &level->resize, out, out, 3, name);
}

static aim_status walk_encoder(struct walk *w, struct vq_stack *s)
{
    const struct vq_config *c = w->config;
    int64_t channels = c->base_channels;
    TRY(walk_conv(w, &s->conv_in, channels, 3, 3, "encoder.conv_in"));
    for (int l = 0; l < c->levels; l++) {
        int64_t out = c->base_channels * (int64_t)c->multiplier[l];
        bool lowest = l == c->levels - 1;
        TRY(walk_level(w, &s->levels[l], "encoder", l, channels, out, lowest, lowest));
        channels = out;
    }
    TRY(walk_middle(w, s, channels, "encoder"));
    TRY(walk_norm(w, &s->norm_out, channels, "encoder.norm_out"));
    return walk_conv(w, &s->conv_out, c->z_channels, channels, 3, "encoder.conv_out");
}

static aim_status walk_decoder(struct walk *w, struct vq_stack *s)
{
    const struct vq_config *c = w->config;
    int64_t channels = c->base_channels * (int64_t)c->multiplier[c->levels - 1];
    TRY(walk_conv(w, &s->conv_in, channels, c->z_channels, 3, "decoder.conv_in"));
    TRY(walk_middle(w, s, channels, "decoder"));
    for (int l = 0; l < c->levels; l++) {
        int64_t out = c->base_channels * (int64_t)c->multiplier[c->levels - 1 - l];
        TRY(walk_level(w, &s->levels[l], "decoder", l, channels, out, l == 0, l == c->levels - 1));
        channels = out;
    }
    TRY(walk_norm(w, &s->norm_out, channels, "decoder.norm_out"));
    return walk_conv(w, &s->conv_out, 3, channels, 3, "decoder.conv_out");
}

static aim_status walk_all(struct walk *w, struct vq *vq)
{
    const struct vq_config *c = w->config;
    double codebook = 1 / (double)c->codebook_size;
    TRY(walk_encoder(w, &vq->encoder));
    TRY(walk_decoder(w, &vq->decoder));
    TRY(w->visit(w, &vq->codebook, INIT_CODEBOOK, codebook, SHAPE(c->codebook_size, c->codebook_dim),
                 "quantize.embedding.weight"));
    TRY(walk_conv(w, &vq->quant, c->codebook_dim, c->z_channels, 1, "quant_conv"));
    return walk_conv(w, &vq->post_quant, c->z_channels, c->codebook_dim, 1, "post_quant_conv");
}

/* The empty structure that a walk fills: levels with their blocks. */
static aim_status allocate_stack(aim_context *ctx, const struct vq_config *c, struct vq_stack *s, bool encoder)
{
    s->levels = mem_zero(ctx, (size_t)c->levels, sizeof *s->levels, MEM_MISC);
    if (!s->levels) return AIM_ERR_MEMORY;
    for (int l = 0; l < c->levels; l++) {
        struct vq_level *level = &s->levels[l];
        level->blocks = c->res_blocks + !encoder;
        level->res = mem_zero(ctx, (size_t)level->blocks, sizeof *level->res, MEM_MISC);
        if (!level->res) return AIM_ERR_MEMORY;
        if (l != (encoder ? c->levels - 1 : 0)) continue;
        level->attn = mem_zero(ctx, (size_t)level->blocks, sizeof *level->attn, MEM_MISC);
        if (!level->attn) return AIM_ERR_MEMORY;
    }
    return AIM_OK;
}

static void free_stack(struct vq_stack *s, int levels)
{
    for (int l = 0; s->levels && l < levels; l++) {
        mem_free(s->levels[l].res);
        mem_free(s->levels[l].attn);
    }
    mem_free(s->levels);
}

static aim_status allocate(aim_context *ctx, const struct vq_config *c, struct vq **vq)
{
    *vq = mem_zero(ctx, 1, sizeof **vq, MEM_MISC);
    if (!*vq) return AIM_ERR_MEMORY;
    (*vq)->ctx = ctx;
    (*vq)->config = *c;
    TRY(allocate_stack(ctx, c, &(*vq)->encoder, true));
    return allocate_stack(ctx, c, &(*vq)->decoder, false);
}

/* -------------------------------------------------------------------------------------------- the two walks */

static aim_status visit_describe(struct walk *w, struct tensor **slot, enum param_init init, double scale, int ndim,
                                 const int64_t *shape, const char *name)
{
    (void)slot;
    return params_add(w->table, init, scale, ndim, shape, "%s", name);
}

aim_status vq_describe(const struct vq_config *config, struct params *table)
{
    struct vq *skeleton = NULL;
    struct walk w = {.config = config, .visit = visit_describe, .table = table};
    aim_status status = allocate(table->ctx, config, &skeleton);
    if (status == AIM_OK) status = walk_all(&w, skeleton);
    vq_free(skeleton);
    if (status != AIM_OK) return status;
    /* LlamaGen's queue of recently used codes: kept in files, of no use to us. */
    enum { USAGE_QUEUE = 65536 };
    TRY(params_add(table, INIT_ZERO, 0, SHAPE(USAGE_QUEUE), "quantize.codebook_used"));
    table->items[table->count - 1].buffer = true;
    return AIM_OK;
}

static aim_status visit_build(struct walk *w, struct tensor **slot, enum param_init init, double scale, int ndim,
                              const int64_t *shape, const char *name)
{
    (void)scale;
    (void)ndim;
    (void)shape;
    aim_context *ctx = w->vq->ctx;
    const struct param *row = params_find(w->values, "%s", name);
    bool trainable = w->vq->trainable;
    struct tensor *t = trainable ? params_trainable(w->values, row) : params_f32(w->values, row);
    aim_status status = t ? AIM_OK : ctx->status;
    if (t && init == INIT_CODEBOOK && !trainable) { /* the codebook is used with rows of unit length only */
        struct tensor *raw = t;
        t = tensor_new_weight(ctx, T_F32, 2, raw->shape);
        status = t ? ctx->backend->op.normalize_rows(ctx->backend, raw, t) : ctx->status;
        tensor_drop(raw);
    }
    if (t) w->vq->tensors[w->vq->tensor_count++] = t;
    *slot = t;
    return status;
}

static aim_status build(const struct vq_config *config, const struct params *table, bool trainable, struct vq **out)
{
    TRY(allocate(table->ctx, config, out));
    struct vq *vq = *out;
    vq->trainable = trainable;
    vq->tensors = mem_zero(table->ctx, table->count, sizeof(struct tensor *), MEM_MISC);
    if (!vq->tensors) return AIM_ERR_MEMORY;
    struct walk w = {.config = config, .visit = visit_build, .values = table, .vq = vq};
    return walk_all(&w, vq);
}

aim_status vq_build(const struct vq_config *config, const struct params *table, struct vq **vq)
{
    return build(config, table, false, vq);
}

aim_status vq_build_trainable(const struct vq_config *config, const struct params *table, struct vq **vq)
{
    return build(config, table, true, vq);
}

void vq_free(struct vq *vq)
{
    if (!vq) return;
    for (size_t i = 0; i < vq->tensor_count; i++) tensor_drop(vq->tensors[i]);
    mem_free(vq->tensors);
    free_stack(&vq->encoder, vq->config.levels);
    free_stack(&vq->decoder, vq->config.levels);
    mem_free(vq);
}
