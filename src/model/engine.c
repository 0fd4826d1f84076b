#include "model/engine.h"

#include <string.h>

/* ------------------------------------------------------------------------------------------------ memory */

/* Floats per layer and stream of each cache, and per stream of the rest. */
struct sizes {
    int64_t u, b, decay, carry, state, conv;
    int64_t modulation, final_modulation, work, vocabulary;
};

static struct ssd_cache cache_shape(const struct ar_config *c)
{
    int64_t tokens = c->num_tokens < SSD_CHUNK ? c->num_tokens : SSD_CHUNK;
    return (struct ssd_cache){.heads = ar_heads(c), .state_size = c->d_state, .blocks = (tokens + SSD_BLOCK - 1) / SSD_BLOCK};
}

static struct sizes sizes_of(const struct ar_config *c)
{
    struct ssd_cache cache = cache_shape(c);
    int64_t d = c->d_model, E = ar_inner(c);
    return (struct sizes){
        .u = ssd_cache_u(&cache),
        .b = ssd_cache_b(&cache),
        .decay = ssd_cache_decay(&cache),
        .carry = cache.heads,
        .state = c->num_tokens > SSD_CHUNK ? ssd_cache_state(&cache) : 0,
        .conv = (CONV_WIDTH - 1) * ar_conv_width(c),
        .modulation = 3 * d,
        .final_modulation = 2 * d,
        .work = 3 * d + ar_in_width(c) + ar_conv_width(c) + 2 * E,
        .vocabulary = c->vocab_size,
    };
}

int64_t engine_bytes(const struct ar_config *c, int64_t streams)
{
    struct sizes s = sizes_of(c);
    int64_t layer = s.u + s.b + s.decay + s.carry + s.state + s.conv + s.modulation;
    int64_t stream = c->n_layer * layer + s.final_modulation + s.work + 2 * s.vocabulary;
    return streams * stream * (int64_t)sizeof(float);
}

static float *allocate(struct engine *e, int64_t count)
{
    return mem_zero(e->ar->ctx, (size_t)(count * e->capacity), sizeof(float), MEM_CACHE);
}

aim_status engine_create(const struct ar *ar, int64_t capacity, struct engine **out)
{
    aim_context *ctx = ar->ctx;
    const struct ar_config *c = &ar->config;
    struct sizes s = sizes_of(c);
    struct engine *e = *out = mem_zero(ctx, 1, sizeof *e, MEM_CACHE);
    if (!e) return AIM_ERR_MEMORY;
    exec_init(&e->ex, ctx);
    e->ar = ar;
    e->capacity = capacity;
    int64_t layers = c->n_layer;
    e->caches = mem_zero(ctx, (size_t)layers, sizeof *e->caches, MEM_CACHE);
    e->u = allocate(e, layers * s.u);
    e->b = allocate(e, layers * s.b);
    e->decay = allocate(e, layers * s.decay);
    e->carry = allocate(e, layers * s.carry);
    e->state = allocate(e, layers * s.state);
    e->conv = allocate(e, layers * s.conv);
    e->modulation = allocate(e, layers * s.modulation);
    e->final_modulation = allocate(e, s.final_modulation);
    e->work = allocate(e, s.work);
    e->logits = allocate(e, s.vocabulary);
    e->probabilities = allocate(e, s.vocabulary);
    e->ids = mem_zero(ctx, (size_t)capacity, sizeof(int32_t), MEM_CACHE);
    e->positions = mem_zero(ctx, (size_t)capacity, sizeof(int32_t), MEM_CACHE);
    if (!e->caches || !e->u || !e->b || !e->decay || !e->carry || !e->state || !e->conv || !e->modulation ||
        !e->final_modulation || !e->work || !e->logits || !e->probabilities || !e->ids || !e->positions)
        return AIM_ERR_MEMORY;
    for (int64_t l = 0; l < layers; l++) {
        struct ssd_cache *cache = &e->caches[l];
        *cache = cache_shape(c);
        cache->streams = capacity;
        cache->u = e->u + l * capacity * s.u;
        cache->b = e->b + l * capacity * s.b;
        cache->decay = e->decay + l * capacity * s.decay;
        cache->carry = e->carry + l * capacity * s.carry;
        cache->state = s.state ? e->state + l * capacity * s.state : NULL;
    }
    return AIM_OK;
}

void engine_free(struct engine *e)
{
    if (!e) return;
    void *all[] = {e->caches,           e->u,    e->b,      e->decay,         e->carry, e->state,    e->conv, e->modulation,
                   e->final_modulation, e->work, e->logits, e->probabilities, e->ids,   e->positions};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) mem_free(all[i]);
    exec_clear(&e->ex);
    mem_free(e);
}

/* -------------------------------------------------------------------------------------------------- a step */

/* The network for R streams at sequence position t, from x (R,d) in e->work to e->logits. */
static aim_status run(struct engine *e, int64_t R, int64_t t)
{
    const struct ar *ar = e->ar;
    const struct ar_config *c = &ar->config;
    struct backend *be = ar->ctx->backend;
    int64_t d = c->d_model, E = ar_inner(c), C = ar_conv_width(c), W = ar_in_width(c), V = c->vocab_size;
    float *at = e->work;
#define TAKE(width) (at += R * (width), at - R * (width))
    struct tensor r = tensor_view(T_F32, TAKE(d), R, 1, d, 0), h = tensor_view(T_F32, TAKE(d), R, 1, d, 0);
    struct tensor m = tensor_view(T_F32, TAKE(d), R, 1, d, 0), zxbcdt = tensor_view(T_F32, TAKE(W), R, W, 0, 0);
    struct tensor xbc = tensor_view(T_F32, TAKE(C), R, C, 0, 0), y = tensor_view(T_F32, TAKE(E), R, E, 0, 0);
    struct tensor o = tensor_view(T_F32, TAKE(E), R, E, 0, 0);
#undef TAKE
    struct tensor mod = {0}, logits = tensor_view(T_F32, e->logits, R, V, 0, 0);
    for (int l = 0; l < c->n_layer; l++) {
        const struct ar_layer *layer = &ar->layers[l];
        struct tensor gates = mod;
        mod = tensor_view(T_F32, e->modulation + l * e->capacity * 3 * d, R, 3 * d, 0, 0);
        struct tensor conv = tensor_view(T_F32, e->conv + l * e->capacity * 3 * C, R, 3, C, 0);
        TRY(be->op.residual_rms_norm_modulate(be, &r, l ? &h : NULL, l ? &gates : NULL, layer->norm, &mod, AIM_RMS_EPS, &r,
                                              &m));
        TRY(be->op.linear_packed(be, &m, layer->in_proj, &zxbcdt));
        TRY(be->op.causal_conv1d_silu_step(be, &zxbcdt, layer->conv_w, layer->conv_b, &conv, &xbc));
        TRY(be->op.ssd_step(be, &xbc, &zxbcdt, layer->A_log, layer->dt_bias, layer->D, &e->caches[l], t, &y));
        TRY(be->op.gated_rms_norm(be, &y, &zxbcdt, layer->mixer_norm, AIM_RMS_EPS, &o));
        TRY(be->op.linear_packed(be, &o, layer->out_proj, &h));
    }
    struct tensor final = tensor_view(T_F32, e->final_modulation, R, 2 * d, 0, 0);
    TRY(be->op.residual_rms_norm_modulate(be, &r, &h, &mod, ar->norm_f, NULL, AIM_RMS_EPS, NULL, &m));
    TRY(be->op.residual_rms_norm_modulate(be, &m, NULL, NULL, ar->norm_final, &final, AIM_RMS_EPS, NULL, &h));
    return be->op.linear_packed(be, &h, ar->words, &logits);
}

aim_status engine_step(struct engine *e, const int32_t *tokens, int64_t t)
{
    const struct ar *ar = e->ar;
    struct backend *be = ar->ctx->backend;
    int64_t R = e->streams;
    for (int64_t r = 0; r < R; r++) {
        e->ids[r] = tokens[r];
        e->positions[r] = (int32_t)(t - 1 + ar->pos_offset);
    }
    struct tensor ids = tensor_view(T_I32, e->ids, R, 0, 0, 0), positions = tensor_view(T_I32, e->positions, R, 0, 0, 0);
    struct tensor x = tensor_view(T_F32, e->work, R, ar->config.d_model, 0, 0);
    TRY(be->op.embedding(be, ar->words, ar->positions, &ids, &positions, &x));
    return run(e, R, t);
}

/* -------------------------------------------------------------------------------------------- the first step */

/* Modulations of `count` classes into the first rows of the tables, and their embeddings into e->work. */
static aim_status condition(struct engine *e, const int32_t *labels, int64_t count)
{
    const struct ar *ar = e->ar;
    struct exec *ex = &e->ex;
    int64_t d = ar->config.d_model;
    struct tensor *embedding = ar_class_embedding(ex, ar, labels, count);
    struct ar_conditions conditions = ar_conditions(ex, ar, embedding);
    if (embedding) memcpy(e->work, embedding->data, (size_t)(count * d) * sizeof(float));
    for (int l = 0; l < ar->config.n_layer; l++) {
        struct tensor *mod = ar_modulation(ex, ar, &conditions, l);
        if (mod) memcpy(e->modulation + l * e->capacity * 3 * d, mod->data, (size_t)(count * 3 * d) * sizeof(float));
        tensor_drop(mod);
    }
    struct tensor *final = ar_final_modulation(ex, ar, &conditions);
    if (final) memcpy(e->final_modulation, final->data, (size_t)(count * 2 * d) * sizeof(float));
    tensor_drop(final);
    tensor_drop(embedding);
    ar_conditions_drop(&conditions);
    return ex->status;
}

static void copy_row(float *table, int64_t width, int64_t to, int64_t from, int64_t used)
{
    memcpy(table + to * width, table + from * width, (size_t)used * sizeof(float));
}

/* Makes stream `to` a copy of stream `from` after the first step. */
static void copy_stream(struct engine *e, int64_t to, int64_t from)
{
    const struct ar_config *c = &e->ar->config;
    struct sizes s = sizes_of(c);
    if (to == from) return;
    for (int l = 0; l < c->n_layer; l++) {
        struct ssd_cache *cache = &e->caches[l];
        copy_row(cache->u, s.u, to, from, cache->heads * SSD_BLOCK * HEADDIM); /* one token: the first block alone */
        copy_row(cache->b, s.b, to, from, c->d_state * SSD_BLOCK);
        copy_row(cache->decay, s.decay, to, from, s.decay);
        copy_row(cache->carry, s.carry, to, from, s.carry);
        copy_row(e->conv + l * e->capacity * s.conv, s.conv, to, from, s.conv);
        copy_row(e->modulation + l * e->capacity * s.modulation, s.modulation, to, from, s.modulation);
    }
    copy_row(e->final_modulation, s.final_modulation, to, from, s.final_modulation);
    copy_row(e->logits, s.vocabulary, to, from, s.vocabulary);
}

aim_status engine_begin(struct engine *e, const int32_t *labels, int64_t streams)
{
    const struct ar_config *c = &e->ar->config;
    int32_t *distinct = e->ids, *source = e->positions; /* free until the first engine_step */
    int64_t count = 0;
    for (int64_t s = 0; s < streams; s++) {
        int64_t k = 0;
        while (k < count && distinct[k] != labels[s]) k++;
        if (k == count) distinct[count++] = labels[s];
        source[s] = (int32_t)k; /* k <= s, since classes are listed as they appear */
    }
    e->streams = streams;
    memset(e->conv, 0, (size_t)(c->n_layer * e->capacity * sizes_of(c).conv) * sizeof(float));
    if (e->state) memset(e->state, 0, (size_t)(c->n_layer * e->capacity * sizes_of(c).state) * sizeof(float));
    TRY(condition(e, distinct, count));
    TRY(run(e, count, 0));
    for (int64_t s = streams - 1; s >= 0; s--) copy_stream(e, s, source[s]); /* from the end: sources are still intact */
    return AIM_OK;
}

aim_status engine_sample(struct engine *e, const struct sampling *how, int64_t pictures, const double *uniform, int32_t *tokens)
{
    int64_t V = e->ar->config.vocab_size;
    struct backend *be = e->ar->ctx->backend;
    struct tensor cond = tensor_view(T_F32, e->logits, pictures, V, 0, 0);
    struct tensor uncond = tensor_view(T_F32, e->logits + pictures * V, pictures, V, 0, 0);
    struct tensor probabilities = tensor_view(T_F32, e->probabilities, pictures, V, 0, 0);
    struct tensor out = tensor_view(T_I32, tokens, pictures, 0, 0, 0);
    bool guided = e->streams == 2 * pictures;
    return be->op.sample(be, &cond, guided ? &uncond : NULL, how, uniform, &probabilities, &out);
}
