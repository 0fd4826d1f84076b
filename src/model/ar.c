#include "model/ar.h"

#include <math.h>

#include "tensor/tape.h"

/* -------------------------------------------------------------------------------------- the parameter table */

static aim_status describe_layer(const struct ar_config *c, struct params *t, int i)
{
    int64_t d = c->d_model, E = ar_inner(c), C = ar_conv_width(c), H = ar_heads(c), W = ar_in_width(c);
    double root = 1 / sqrt((double)d);
    if (c->adaln_group) TRY(params_add(t, INIT_NORMAL, root, SHAPE(1, 3, d), "backbone.layers.%d.scale_shift_table", i));
    TRY(params_add(t, INIT_ONE, 0, SHAPE(d), "backbone.layers.%d.norm.weight", i));
    TRY(params_add(t, INIT_DT_BIAS, 0, SHAPE(H), "backbone.layers.%d.mixer.dt_bias", i));
    TRY(params_add(t, INIT_A_LOG, 0, SHAPE(H), "backbone.layers.%d.mixer.A_log", i));
    TRY(params_add(t, INIT_ONE, 0, SHAPE(H), "backbone.layers.%d.mixer.D", i));
    TRY(params_add(t, INIT_UNIFORM, root, SHAPE(W, d), "backbone.layers.%d.mixer.in_proj.weight", i));
    TRY(params_add(t, INIT_UNIFORM, 0.5, SHAPE(C, 1, 4), "backbone.layers.%d.mixer.conv1d.weight", i));
    TRY(params_add(t, INIT_UNIFORM, 0.5, SHAPE(C), "backbone.layers.%d.mixer.conv1d.bias", i));
    TRY(params_add(t, INIT_ONE, 0, SHAPE(E), "backbone.layers.%d.mixer.norm.weight", i));
    /* kaiming-uniform over fan_in = E, then divided by the root of the number of residual additions */
    double bound = 1 / sqrt((double)E) / sqrt((double)c->n_layer);
    TRY(params_add(t, INIT_UNIFORM, bound, SHAPE(d, E), "backbone.layers.%d.mixer.out_proj.weight", i));
    if (c->adaln_group) return AIM_OK;
    TRY(params_add(t, INIT_ZERO, 0, SHAPE(3 * d, d), "backbone.layers.%d.adaLN_modulation.1.weight", i));
    return params_add(t, INIT_ZERO, 0, SHAPE(3 * d), "backbone.layers.%d.adaLN_modulation.1.bias", i);
}

aim_status ar_describe(const struct ar_config *c, struct params *t)
{
    int64_t d = c->d_model, G = c->num_groups;
    const double embedding = 0.02;
    TRY(params_add(t, INIT_NORMAL, embedding, SHAPE(c->vocab_size, d), "backbone.embeddings.word_embeddings.weight"));
    enum param_init positions = c->no_positions ? INIT_ZERO : INIT_NORMAL;
    TRY(params_add(t, positions, embedding, SHAPE(c->num_tokens + 1, d), "backbone.embeddings.position_embeddings.weight"));
    TRY(params_add(t, INIT_NORMAL, embedding, SHAPE(c->num_classes + 1, d), "backbone.cls_embed.embedding_table.weight"));
    if (c->adaln_group) {
        TRY(params_add(t, INIT_UNIFORM, 1 / sqrt((double)d), SHAPE(G * 3 * d, d), "backbone.adaln_group.1.weight"));
        TRY(params_add(t, INIT_ZERO, 0, SHAPE(G * 3 * d), "backbone.adaln_group.1.bias"));
    }
    TRY(params_add(t, INIT_ONE, 0, SHAPE(d), "backbone.final_layer.norm_final.weight"));
    TRY(params_add(t, INIT_ZERO, 0, SHAPE(2 * d, d), "backbone.final_layer.adaLN_modulation.1.weight"));
    TRY(params_add(t, INIT_ZERO, 0, SHAPE(2 * d), "backbone.final_layer.adaLN_modulation.1.bias"));
    for (int i = 0; i < c->n_layer; i++) TRY(describe_layer(c, t, i));
    return params_add(t, INIT_ONE, 0, SHAPE(d), "backbone.norm_f.weight");
}

enum tensor_type ar_matrix_type(aim_weights weights)
{
    return weights == AIM_WEIGHTS_BF16 ? T_BF16_PACKED : weights == AIM_WEIGHTS_Q8 ? T_Q8_PACKED : T_F32_PACKED;
}

int64_t ar_weight_bytes(const struct ar_config *c, enum tensor_type matrices, bool copies_plain)
{
    int64_t d = c->d_model;
    size_t in = tensor_bytes(matrices, SHAPE(ar_in_width(c), d)), out = tensor_bytes(matrices, SHAPE(d, ar_inner(c)));
    int64_t packed = c->n_layer * (int64_t)(in + out) + (int64_t)tensor_bytes(matrices, SHAPE(c->vocab_size, d));
    int64_t adaln = (c->adaln_group ? c->num_groups : c->n_layer) * 3 * d * d + 2 * d * d;
    int64_t small = c->n_layer * (8 * ar_conv_width(c) + 8 * d) + (c->num_tokens + c->num_classes + 2) * d;
    return packed + (copies_plain ? (adaln + small) * (int64_t)sizeof(float) : 0);
}

/* ---------------------------------------------------------------------------------------- building, freeing */

/* How the tensors of a network are made from the table's rows. */
struct build {
    const struct params *table;
    aim_weights weights;
    struct tensor **rows; /* trainable: by row of the table; NULL otherwise */
};

static struct tensor *build_trainable(const struct build *b, const struct param *row)
{
    struct tensor *t = params_trainable(b->table, row);
    if (t) b->rows[row - b->table->items] = t;
    return t;
}

static struct tensor *build_plain(const struct build *b, const struct param *row)
{
    return b->rows ? build_trainable(b, row) : params_f32(b->table, row);
}

static struct tensor *build_matrix(const struct build *b, const struct param *row)
{
    if (b->rows) return build_trainable(b, row);
    return params_packed(b->table, row, ar_matrix_type(b->weights), b->weights == AIM_WEIGHTS_AUTO);
}

static aim_status build_layer(struct ar *ar, const struct build *b, int i)
{
    struct ar_layer *l = &ar->layers[i];
    bool group = ar->config.adaln_group;
#define PLAIN(slot, name)  l->slot = build_plain(b, params_find(b->table, "backbone.layers.%d." name, i))
#define MATRIX(slot, name) l->slot = build_matrix(b, params_find(b->table, "backbone.layers.%d." name, i))
    PLAIN(norm, "norm.weight");
    PLAIN(dt_bias, "mixer.dt_bias");
    PLAIN(A_log, "mixer.A_log");
    PLAIN(D, "mixer.D");
    MATRIX(in_proj, "mixer.in_proj.weight");
    PLAIN(conv_w, "mixer.conv1d.weight");
    PLAIN(conv_b, "mixer.conv1d.bias");
    PLAIN(mixer_norm, "mixer.norm.weight");
    MATRIX(out_proj, "mixer.out_proj.weight");
    if (group) {
        PLAIN(table, "scale_shift_table");
    } else {
        PLAIN(adaln_w, "adaLN_modulation.1.weight");
        PLAIN(adaln_b, "adaLN_modulation.1.bias");
    }
#undef PLAIN
#undef MATRIX
    bool adaln = group ? l->table != NULL : l->adaln_w && l->adaln_b;
    bool whole =
        l->norm && l->dt_bias && l->A_log && l->D && l->in_proj && l->conv_w && l->conv_b && l->mixer_norm && l->out_proj;
    return whole && adaln ? AIM_OK : ar->ctx->status;
}

static aim_status build_shared(struct ar *ar, const struct build *b)
{
#define PLAIN(slot, name)  ar->slot = build_plain(b, params_find(b->table, "backbone." name))
#define MATRIX(slot, name) ar->slot = build_matrix(b, params_find(b->table, "backbone." name))
    MATRIX(words, "embeddings.word_embeddings.weight");
    PLAIN(positions, "embeddings.position_embeddings.weight");
    PLAIN(classes, "cls_embed.embedding_table.weight");
    PLAIN(norm_f, "norm_f.weight");
    PLAIN(norm_final, "final_layer.norm_final.weight");
    PLAIN(final_w, "final_layer.adaLN_modulation.1.weight");
    PLAIN(final_b, "final_layer.adaLN_modulation.1.bias");
    if (ar->config.adaln_group) {
        PLAIN(group_w, "adaln_group.1.weight");
        PLAIN(group_b, "adaln_group.1.bias");
        if (!ar->group_w || !ar->group_b) return ar->ctx->status;
    }
#undef PLAIN
#undef MATRIX
    bool whole = ar->words && ar->positions && ar->classes && ar->norm_f && ar->norm_final && ar->final_w && ar->final_b;
    return whole ? AIM_OK : ar->ctx->status;
}

static aim_status build(const struct ar_config *config, struct build *b, bool trainable, int pos_offset, struct ar **out)
{
    aim_context *ctx = b->table->ctx;
    struct ar *ar = *out = mem_zero(ctx, 1, sizeof *ar, MEM_MISC);
    if (!ar) return AIM_ERR_MEMORY;
    ar->ctx = ctx;
    if (trainable) b->rows = ar->rows = mem_zero(ctx, b->table->count, sizeof(struct tensor *), MEM_MISC);
    if (trainable && !ar->rows) return AIM_ERR_MEMORY;
    ar->config = *config;
    ar->pos_offset = pos_offset;
    ar->layers = mem_zero(ctx, (size_t)config->n_layer, sizeof *ar->layers, MEM_MISC);
    if (!ar->layers) return AIM_ERR_MEMORY;
    for (int i = 0; i < config->n_layer; i++) {
        TRY(aim_progress(ctx, "loading layers", i, config->n_layer));
        TRY(build_layer(ar, b, i));
    }
    TRY(aim_progress(ctx, "loading layers", config->n_layer, config->n_layer));
    return build_shared(ar, b);
}

aim_status ar_build(const struct ar_config *config, const struct params *t, aim_weights weights, int pos_offset, struct ar **ar)
{
    return build(config, &(struct build){.table = t, .weights = weights}, false, pos_offset, ar);
}

aim_status ar_build_trainable(const struct ar_config *config, const struct params *t, struct ar **ar)
{
    TRY(build(config, &(struct build){.table = t}, true, 0, ar));
    (*ar)->positions->needs_grad = !config->no_positions;
    return AIM_OK;
}

void ar_free(struct ar *ar)
{
    if (!ar) return;
    for (int i = 0; ar->layers && i < ar->config.n_layer; i++) {
        struct ar_layer *l = &ar->layers[i];
        struct tensor *all[] = {l->norm,   l->table,   l->adaln_w, l->adaln_b, l->in_proj,    l->conv_w,
                                l->conv_b, l->dt_bias, l->A_log,   l->D,       l->mixer_norm, l->out_proj};
        for (size_t k = 0; k < sizeof all / sizeof all[0]; k++) tensor_drop(all[k]);
    }
    struct tensor *all[] = {ar->words,  ar->positions,  ar->classes, ar->group_w, ar->group_b,
                            ar->norm_f, ar->norm_final, ar->final_w, ar->final_b};
    for (size_t k = 0; k < sizeof all / sizeof all[0]; k++) tensor_drop(all[k]);
    mem_free(ar->layers);
    mem_free(ar->rows);
    mem_free(ar);
}

/* ------------------------------------------------------------------------------------ conditioning (spec B6) */

struct tensor *ar_class_embedding(struct exec *ex, const struct ar *ar, const int32_t *labels, int64_t count)
{
    struct tensor *ids = tensor_from_host(ex, T_I32, SHAPE(count), labels);
    struct tensor *e = op_embedding(ex, ar->classes, OP_NONE, ids, OP_NONE);
    tensor_drop(ids);
    return e;
}

struct ar_conditions ar_conditions(struct exec *ex, const struct ar *ar, const struct tensor *e)
{
    struct ar_conditions c = {.silu = op_silu(ex, e)};
    if (ar->group_w) c.groups = op_linear(ex, c.silu, ar->group_w, ar->group_b);
    return c;
}

struct tensor *ar_modulation(struct exec *ex, const struct ar *ar, const struct ar_conditions *c, int layer)
{
    const struct ar_layer *l = &ar->layers[layer];
    if (!ar->group_w) return op_linear(ex, c->silu, l->adaln_w, l->adaln_b);
    int64_t group = layer % ar->config.num_groups; /* round-robin */
    return op_slice_add(ex, c->groups, group * 3 * ar->config.d_model, l->table);
}

struct tensor *ar_final_modulation(struct exec *ex, const struct ar *ar, const struct ar_conditions *c)
{
    return op_linear(ex, c->silu, ar->final_w, ar->final_b);
}

void ar_conditions_drop(struct ar_conditions *c)
{
    tensor_drop(c->silu);
    tensor_drop(c->groups);
}

/* --------------------------------------------------------------------------------- the network (spec B3, C) */

/* The Mamba-2 mixer: m (B,T,d) -> (B,T,d). */
static struct tensor *mixer(struct exec *ex, const struct ar_layer *l, const struct tensor *m)
{
    struct tensor *zxbcdt = op_linear(ex, m, l->in_proj, OP_NONE);
    struct tensor *xbc = op_causal_conv1d_silu(ex, zxbcdt, l->conv_w, l->conv_b);
    struct tensor *y = op_ssd(ex, xbc, zxbcdt, l->A_log, l->dt_bias, l->D);
    tensor_drop(xbc);
    struct tensor *o = op_gated_rms_norm(ex, y, zxbcdt, l->mixer_norm);
    tensor_drop(y);
    tensor_drop(zxbcdt);
    struct tensor *out = op_linear(ex, o, l->out_proj, OP_NONE);
    tensor_drop(o);
    return out;
}

/* Class token, then tokens with their positions: (B,T,d). */
static struct tensor *embed(struct exec *ex, const struct ar *ar, const struct tensor *e, const int32_t *codes, int64_t B)
{
    int64_t T = ar->config.num_tokens, fed = T - 1;
    if (fed == 0) return tensor_reshape(ex, tensor_keep((struct tensor *)(uintptr_t)e), SHAPE(B, 1, ar->config.d_model));
    int32_t *host = mem_array(ex->ctx, (size_t)(2 * B * fed), sizeof *host, MEM_MISC);
    if (!host) return exec_fail(ex, AIM_ERR_MEMORY);
    for (int64_t b = 0; b < B; b++)
        for (int64_t t = 0; t < fed; t++) {
            host[b * fed + t] = codes[b * T + t];
            host[(B + b) * fed + t] = (int32_t)t + ar->pos_offset;
        }
    struct tensor *ids = tensor_from_host(ex, T_I32, SHAPE(B * fed), host);
    struct tensor *pos = tensor_from_host(ex, T_I32, SHAPE(B * fed), host + B * fed);
    mem_free(host);
    struct tensor *rest = op_embedding(ex, ar->words, ar->positions, ids, pos);
    struct tensor *x = op_prepend(ex, e, rest);
    tensor_drop(ids);
    tensor_drop(pos);
    tensor_drop(rest);
    return x;
}

/*
 * A layer. in: the residual stream r, the last layer's output h and modulation, whose gate is still due (NULL both for the
 * first layer), this layer's modulation; out: this layer's output and the residual stream, both new or counted once more.
 */
static void block(struct exec *ex, const void *layer, struct tensor *const *in, struct tensor **out)
{
    const struct ar_layer *l = layer;
    struct tensor *r = tensor_keep(in[0]);
    bool first = !in[1] && !in[2] && ex->status == AIM_OK;
    struct tensor *m = op_residual_rms_norm_modulate(ex, &r, first ? OP_NONE : in[1], first ? OP_NONE : in[2], l->norm, in[3]);
    out[0] = mixer(ex, l, m);
    out[1] = r;
    tensor_drop(m);
}

/* What the head reads: (B,T,d). */
static struct tensor *backbone(struct exec *ex, const struct ar *ar, const int32_t *labels, const int32_t *codes, int64_t B)
{
    struct tensor *e = ar_class_embedding(ex, ar, labels, B);
    struct ar_conditions conditions = ar_conditions(ex, ar, e);
    struct tensor *r = embed(ex, ar, e, codes, B);
    struct tensor *h = NULL, *mod = NULL; /* the previous layer's output and modulation, whose gate is still due */
    for (int i = 0; i < ar->config.n_layer; i++) {
        struct tensor *mod_i = ar_modulation(ex, ar, &conditions, i);
        struct tensor *in[BLOCK_INPUTS] = {r, h, mod, mod_i}, *out[NODE_OUTPUTS];
        if (ar->checkpointing)
            tape_checkpoint(ex, block, &ar->layers[i], in, out);
        else
            block(ex, &ar->layers[i], in, out);
        tensor_drop(r);
        tensor_drop(h);
        tensor_drop(mod);
        h = out[0];
        r = out[1];
        mod = mod_i;
    }
    struct tensor *n = op_residual_rms_norm_modulate(ex, &r, h, mod, ar->norm_f, OP_NONE);
    struct tensor *final = ar_final_modulation(ex, ar, &conditions);
    struct tensor *o = op_residual_rms_norm_modulate(ex, &n, OP_NONE, OP_NONE, ar->norm_final, final);
    tensor_drop(n);
    tensor_drop(final);
    tensor_drop(h);
    tensor_drop(mod);
    tensor_drop(r);
    tensor_drop(e);
    ar_conditions_drop(&conditions);
    return o;
}

struct tensor *ar_forward(struct exec *ex, const struct ar *ar, const int32_t *labels, const int32_t *codes, int64_t B)
{
    struct tensor *o = backbone(ex, ar, labels, codes, B), *logits = op_linear(ex, o, ar->words, OP_NONE);
    tensor_drop(o);
    return logits;
}

struct tensor *ar_loss(struct exec *ex, const struct ar *ar, const int32_t *labels, const int32_t *codes, int64_t B)
{
    struct tensor *o = backbone(ex, ar, labels, codes, B);
    struct tensor *target = o ? tensor_from_host(ex, T_I32, SHAPE(B * ar->config.num_tokens), codes) : NULL;
    struct tensor *loss = op_linear_cross_entropy(ex, o, ar->words, target);
    tensor_drop(target);
    tensor_drop(o);
    return loss;
}

/* -------------------------------------------------------------------------------- position offset (spec I-1) */

/*
 * Rows start at N(0, 0.02²), a norm of 0.02 sqrt(d) with a relative deviation of 1/sqrt(2d); weight decay only shrinks
 * a row that training does not touch. Training with offset 0 uses rows 0 .. T-2, with offset 1 rows 1 .. T-1.
 */
int ar_guess_pos_offset(const float *positions, int64_t num_tokens, int64_t d)
{
    const double sigmas = 5;
    double limit = 0.02 * sqrt((double)d) * (1 + sigmas / sqrt(2 * (double)d));
    int64_t rows[2] = {0, num_tokens - 1};
    bool grown[2];
    for (int i = 0; i < 2; i++) {
        double squares = 0;
        for (int64_t k = 0; k < d; k++) squares += (double)positions[rows[i] * d + k] * (double)positions[rows[i] * d + k];
        grown[i] = sqrt(squares) > limit;
    }
    if (grown[0] == grown[1]) return -1;
    return grown[0] ? 0 : 1;
}
