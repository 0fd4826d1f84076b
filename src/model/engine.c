#include "model/engine.h"

#include "base/philox.h"

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

/* Floats of a row of a step's activations, up to whole 256 bytes: kernels and libraries like their tensors aligned. */
static int64_t padded(int64_t width)
{
    enum { FLOATS = 64 };
    return (width + FLOATS - 1) / FLOATS * FLOATS;
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
        .work = 3 * padded(d) + padded(ar_in_width(c)) + padded(ar_conv_width(c)) + 2 * padded(E),
        .vocabulary = c->vocab_size,
    };
}

/* The next `count` values of the block, or nothing but their size while there is no block. */
static void *take(struct engine *e, int64_t count, size_t size)
{
    enum { ALIGNMENT = 256 };
    void *data = e->block ? (char *)e->block + e->bytes : NULL;
    e->bytes += ((size_t)count * size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    return data;
}

/* `count` values of every stream. */
static void *part(struct engine *e, int64_t count, size_t size)
{
    return take(e, count * e->capacity, size);
}

static void lay_out_classes(struct engine *e, const struct ar_config *c)
{
    struct class_table *t = &e->classes;
    int64_t d = c->d_model;
    t->rows = class_table_rows(c, e->capacity);
    t->embedding = take(e, t->rows * d, sizeof(float));
    t->modulation = take(e, t->rows * c->n_layer * 3 * d, sizeof(float));
    t->final_modulation = take(e, t->rows * 2 * d, sizeof(float));
}

/* Sets the pointers into e->block, and e->bytes to the size of it all. `stepping`: with what the ops need. */
static void lay_out(struct engine *e, const struct ar_config *c, bool stepping)
{
    struct sizes s = sizes_of(c);
    int64_t layers = c->n_layer, T = c->num_tokens;
    e->bytes = 0;
    lay_out_classes(e, c);
    if (!stepping) return;
    e->modulation = part(e, layers * s.modulation, sizeof(float));
    e->final_modulation = part(e, s.final_modulation, sizeof(float));
    e->work = part(e, s.work, sizeof(float));
    e->u = part(e, layers * s.u, sizeof(float));
    e->b = part(e, layers * s.b, sizeof(float));
    e->decay = part(e, layers * s.decay, sizeof(float));
    e->carry = part(e, layers * s.carry, sizeof(float));
    e->state = part(e, layers * s.state, sizeof(float));
    e->conv = part(e, layers * s.conv, sizeof(float));
    e->logits = part(e, s.vocabulary, sizeof(float));
    e->probabilities = part(e, s.vocabulary, sizeof(float));
    e->uniform = part(e, T, sizeof(double));
    e->tokens = part(e, T, sizeof(int32_t));
    e->positions = part(e, T, sizeof(int32_t));
    e->ids = part(e, 1, sizeof(int32_t));
}

static struct decoder_sizes decoder_sizes_of(const struct ar_config *c)
{
    return (struct decoder_sizes){
        .d = c->d_model, .state = c->d_state, .layers = c->n_layer, .vocabulary = c->vocab_size, .tokens = c->num_tokens};
}

/* Decoders multiply by numbers of 16 or 32 bits; with others the ops run one by one. */
static bool has_decoder(const struct backend *be, enum tensor_type matrices)
{
    return be->decoder && matrices != T_Q8_PACKED;
}

int64_t engine_bytes(const struct backend *be, const struct ar_config *c, enum tensor_type matrices, int64_t streams)
{
    struct engine e = {.capacity = streams};
    struct decoder_sizes size = decoder_sizes_of(c);
    bool decodes = has_decoder(be, matrices);
    lay_out(&e, c, !decodes);
    return (int64_t)e.bytes + (decodes ? be->decoder->bytes(&size, matrices == T_BF16_PACKED, streams) : 0);
}

static void set_caches(struct engine *e, const struct ar_config *c)
{
    struct sizes s = sizes_of(c);
    for (int64_t l = 0; l < c->n_layer; l++) {
        struct ssd_cache *cache = &e->caches[l];
        *cache = cache_shape(c);
        cache->streams = e->capacity;
        cache->u = e->u + l * e->capacity * s.u;
        cache->b = e->b + l * e->capacity * s.b;
        cache->decay = e->decay + l * e->capacity * s.decay;
        cache->carry = e->carry + l * e->capacity * s.carry;
        cache->state = s.state ? e->state + l * e->capacity * s.state : NULL;
    }
}

/* Where each token is fed: token t-1 enters step t. */
static aim_status set_positions(struct engine *e)
{
    struct backend *be = e->ar->ctx->backend;
    int64_t T = e->ar->config.num_tokens, n = e->capacity;
    int32_t *host = mem_array(e->ar->ctx, (size_t)(T * n), sizeof *host, MEM_MISC);
    if (!host) return AIM_ERR_MEMORY;
    for (int64_t i = 0; i < T * n; i++) host[i] = (int32_t)(i / n - 1 + e->ar->pos_offset);
    aim_status status = be->memory.upload(be, e->positions, host, (size_t)(T * n) * sizeof *host);
    mem_free(host);
    return status;
}

static aim_status engine_new(const struct ar *ar, int64_t capacity, bool stepping, struct engine **out)
{
    aim_context *ctx = ar->ctx;
    struct backend *be = ctx->backend;
    struct engine *e = *out = mem_zero(ctx, 1, sizeof *e, MEM_CACHE);
    if (!e) return AIM_ERR_MEMORY;
    exec_init(&e->ex, ctx);
    e->ar = ar;
    e->capacity = capacity;
    lay_out(e, &ar->config, stepping);
    e->block = be->memory.take(be, e->bytes, MEM_CACHE);
    if (!e->block) return AIM_ERR_MEMORY;
    lay_out(e, &ar->config, stepping);
    TRY(class_table_open(&e->classes, ar, &e->ex));
    if (!stepping) return AIM_OK;
    e->caches = mem_zero(ctx, (size_t)ar->config.n_layer, sizeof *e->caches, MEM_CACHE);
    if (!e->caches) return AIM_ERR_MEMORY;
    set_caches(e, &ar->config);
    return set_positions(e);
}

aim_status engine_create_stepping(const struct ar *ar, int64_t capacity, struct engine **out)
{
    return engine_new(ar, capacity, true, out);
}

/* The backend's decoder over this network; AIM_ERR_UNSUPPORTED when it cannot do it. */
static aim_status create_decoder(struct engine *e)
{
    const struct ar *ar = e->ar;
    const struct ar_config *c = &ar->config;
    struct backend *be = ar->ctx->backend;
    struct decoder_layer *layers = mem_array(ar->ctx, (size_t)c->n_layer, sizeof *layers, MEM_MISC);
    if (!layers) return AIM_ERR_MEMORY;
    for (int i = 0; i < c->n_layer; i++) {
        const struct ar_layer *l = &ar->layers[i];
        layers[i] = (struct decoder_layer){.norm = l->norm,
                                           .in_proj = l->in_proj,
                                           .conv_w = l->conv_w,
                                           .conv_b = l->conv_b,
                                           .dt_bias = l->dt_bias,
                                           .A_log = l->A_log,
                                           .D = l->D,
                                           .mixer_norm = l->mixer_norm,
                                           .out_proj = l->out_proj};
    }
    struct decoder_network network = {.size = decoder_sizes_of(c),
                                      .pos_offset = ar->pos_offset,
                                      .words = ar->words,
                                      .positions = ar->positions,
                                      .norm_f = ar->norm_f,
                                      .norm_final = ar->norm_final,
                                      .layers = layers};
    const struct class_table *t = &e->classes;
    struct decoder_classes classes = {
        .rows = t->rows, .embedding = t->embedding, .modulation = t->modulation, .final_modulation = t->final_modulation};
    aim_status status = be->decoder->create(be, &network, &classes, e->capacity, &e->decoder);
    mem_free(layers);
    return status;
}

aim_status engine_create(const struct ar *ar, int64_t capacity, struct engine **out)
{
    if (!has_decoder(ar->ctx->backend, ar->words->type)) return engine_create_stepping(ar, capacity, out);
    TRY(engine_new(ar, capacity, false, out));
    aim_status status = create_decoder(*out);
    if (status != AIM_ERR_UNSUPPORTED) return status;
    engine_free(*out);
    return engine_create_stepping(ar, capacity, out);
}

void engine_free(struct engine *e)
{
    if (!e) return;
    struct backend *be = e->ar->ctx->backend;
    if (e->decoder) be->decoder->free(e->decoder);
    class_table_free(&e->classes);
    if (e->block) be->memory.give(be, e->block, e->bytes);
    mem_free(e->caches);
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
#define TAKE(width) (at += R * padded(width), at - R * padded(width))
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

/* Feeds e->ids at position t. */
static aim_status step(struct engine *e, int64_t t)
{
    const struct ar *ar = e->ar;
    struct backend *be = ar->ctx->backend;
    int64_t R = e->streams;
    struct tensor ids = tensor_view(T_I32, e->ids, R, 0, 0, 0);
    struct tensor positions = tensor_view(T_I32, e->positions + t * e->capacity, R, 0, 0, 0);
    struct tensor x = tensor_view(T_F32, e->work, R, ar->config.d_model, 0, 0);
    TRY(be->op.embedding(be, ar->words, ar->positions, &ids, &positions, &x));
    return run(e, R, t);
}

aim_status engine_step(struct engine *e, const int32_t *tokens, int64_t t)
{
    struct backend *be = e->ar->ctx->backend;
    TRY(be->memory.upload(be, e->ids, tokens, (size_t)e->streams * sizeof *tokens));
    return step(e, t);
}

/* -------------------------------------------------------------------------------------------- the first step */

static aim_status copy_row(struct engine *e, float *table, int64_t width, int64_t to, int64_t from, int64_t used)
{
    struct backend *be = e->ar->ctx->backend;
    return be->memory.copy(be, table + to * width, table + from * width, (size_t)used * sizeof(float));
}

/* Makes stream `to` a copy of stream `from` after the first step. */
static aim_status copy_stream(struct engine *e, int64_t to, int64_t from)
{
    const struct ar_config *c = &e->ar->config;
    struct sizes s = sizes_of(c);
    if (to == from) return AIM_OK;
    for (int l = 0; l < c->n_layer; l++) {
        struct ssd_cache *cache = &e->caches[l];
        /* one token: the first block alone */
        TRY(copy_row(e, cache->u, s.u, to, from, cache->heads * SSD_BLOCK * HEADDIM));
        TRY(copy_row(e, cache->b, s.b, to, from, c->d_state * SSD_BLOCK));
        TRY(copy_row(e, cache->decay, s.decay, to, from, s.decay));
        TRY(copy_row(e, cache->carry, s.carry, to, from, s.carry));
        TRY(copy_row(e, e->conv + l * e->capacity * s.conv, s.conv, to, from, s.conv));
        TRY(copy_row(e, e->modulation + l * e->capacity * s.modulation, s.modulation, to, from, s.modulation));
    }
    TRY(copy_row(e, e->final_modulation, s.final_modulation, to, from, s.final_modulation));
    return copy_row(e, e->logits, s.vocabulary, to, from, s.vocabulary);
}

/* The different ones of `count` labels in the order of their appearance, and where each label is among them; returns how
 * many there are. row[i] <= i. */
static int64_t distinct(const int32_t *labels, int64_t count, int32_t *classes, int32_t *row)
{
    int64_t found = 0;
    for (int64_t i = 0; i < count; i++) {
        int64_t k = 0;
        while (k < found && classes[k] != labels[i]) k++;
        if (k == found) classes[found++] = labels[i];
        row[i] = (int32_t)k;
    }
    return found;
}

/* Makes the class in row `row` of the table what stream `to` starts with. */
static aim_status start_stream(struct engine *e, int64_t to, int64_t row)
{
    const struct class_table *t = &e->classes;
    struct backend *be = e->ar->ctx->backend;
    int64_t d = e->ar->config.d_model, layers = e->ar->config.n_layer;
    size_t bytes = (size_t)d * sizeof(float);
    for (int64_t l = 0; l < layers; l++)
        TRY(be->memory.copy(be, e->modulation + (l * e->capacity + to) * 3 * d, t->modulation + (l * t->rows + row) * 3 * d,
                            3 * bytes));
    TRY(be->memory.copy(be, e->final_modulation + to * 2 * d, t->final_modulation + row * 2 * d, 2 * bytes));
    return be->memory.copy(be, e->work + to * d, t->embedding + row * d, bytes);
}

/* The first step of the classes, found in rows `at` (count) of their table, then of every stream; row (streams) as distinct()
 * gave it. */
static aim_status begin(struct engine *e, const int32_t *at, int64_t count, const int32_t *row)
{
    const struct ar_config *c = &e->ar->config;
    struct backend *be = e->ar->ctx->backend;
    size_t layers = (size_t)(c->n_layer * e->capacity) * sizeof(float);
    struct sizes s = sizes_of(c);
    TRY(be->memory.zero(be, e->conv, layers * (size_t)s.conv));
    if (s.state) TRY(be->memory.zero(be, e->state, layers * (size_t)s.state));
    for (int64_t k = 0; k < count; k++) TRY(start_stream(e, k, at[k]));
    TRY(run(e, count, 0));
    for (int64_t i = e->streams - 1; i >= 0; i--) TRY(copy_stream(e, i, row[i])); /* from the end: sources are still intact */
    return AIM_OK;
}

aim_status engine_begin(struct engine *e, const int32_t *labels, int64_t streams)
{
    int32_t *classes = mem_array(e->ar->ctx, (size_t)(3 * streams), sizeof *classes, MEM_MISC);
    if (!classes) return AIM_ERR_MEMORY;
    int32_t *row = classes + streams, *at = row + streams;
    int64_t count = distinct(labels, streams, classes, row);
    e->streams = streams;
    aim_status status = class_table_find(&e->classes, classes, count, at);
    if (status == AIM_OK) status = begin(e, at, count, row);
    mem_free(classes);
    return status;
}

/* ---------------------------------------------------------------------------------------------------- sampling */

/* From the logits with `uniform` (pictures) to `tokens` (pictures), both in the backend's memory. */
static aim_status sample(struct engine *e, const struct sampling *how, int64_t pictures, const double *uniform, int32_t *tokens)
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

aim_status engine_sample(struct engine *e, const struct sampling *how, int64_t pictures, const double *uniform, int32_t *tokens)
{
    struct backend *be = e->ar->ctx->backend;
    TRY(be->memory.upload(be, e->uniform, uniform, (size_t)pictures * sizeof *uniform));
    TRY(sample(e, how, pictures, e->uniform, e->tokens));
    return be->memory.download(be, tokens, e->tokens, (size_t)pictures * sizeof *tokens);
}

/* ------------------------------------------------------------------------------------------------ whole pictures */

/* What engine_paint works with, in the host's memory. */
struct painting {
    int32_t *labels, *classes, *row; /* (streams): as distinct() has them */
    int32_t *at;                     /* (streams): where the classes are in their table */
    int32_t *codes;                  /* (T, pictures) */
    double *uniform;                 /* (T, pictures) */
    int64_t count;                   /* of different classes */
};

static aim_status paint_op_by_op(struct engine *e, const struct engine_job *job, const struct painting *p)
{
    struct backend *be = e->ar->ctx->backend;
    int64_t T = e->ar->config.num_tokens, n = job->pictures;
    size_t row = (size_t)n * sizeof(int32_t);
    TRY(be->memory.upload(be, e->uniform, p->uniform, (size_t)(T * n) * sizeof *p->uniform));
    for (int64_t t = 0; t < T; t++) {
        int32_t *drawn = e->tokens + t * n;
        TRY(t ? step(e, t) : begin(e, p->at, p->count, p->row));
        TRY(sample(e, &job->how, n, e->uniform + t * n, drawn));
        TRY(be->memory.copy(be, e->ids, drawn, row));
        if (e->streams > n) TRY(be->memory.copy(be, e->ids + n, drawn, row)); /* both guidance streams get the same token */
        TRY(job->progress(job->user, t + 1));
    }
    return be->memory.download(be, p->codes, e->tokens, (size_t)T * row);
}

static aim_status paint_by_decoder(struct engine *e, const struct engine_job *job, const struct painting *p)
{
    for (int64_t i = 0; i < e->streams; i++) p->row[i] = p->at[p->row[i]];
    struct decoder_job work = {.pictures = job->pictures,
                               .streams = e->streams,
                               .classes = p->row,
                               .how = job->how,
                               .uniform = p->uniform,
                               .codes = p->codes,
                               .progress = job->progress,
                               .user = job->user};
    return e->ar->ctx->backend->decoder->paint(e->decoder, &work);
}

static aim_status paint(struct engine *e, const struct engine_job *job, struct painting *p)
{
    int64_t T = e->ar->config.num_tokens, n = job->pictures;
    for (int64_t i = 0; i < e->streams; i++) p->labels[i] = i < n ? job->labels[i] : e->ar->config.num_classes;
    p->count = distinct(p->labels, e->streams, p->classes, p->row);
    TRY(class_table_find(&e->classes, p->classes, p->count, p->at));
    for (int64_t i = 0; i < T * n; i++) {
        struct philox4 r = philox(job->seed, job->first_index + (uint64_t)(i % n), (uint32_t)(i / n), PHILOX_SAMPLE);
        p->uniform[i] = philox_double(r.v[0], r.v[1]);
    }
    TRY(e->decoder ? paint_by_decoder(e, job, p) : paint_op_by_op(e, job, p));
    for (int64_t i = 0; i < T * n; i++) {
        if (p->codes[i] < 0)
            return aim_fail(e->ar->ctx, AIM_ERR_FORMAT,
                            "the network's outputs are not finite numbers; are the weights damaged?");
        job->codes[i % n * T + i / n] = p->codes[i];
    }
    return AIM_OK;
}

aim_status engine_paint(struct engine *e, const struct engine_job *job)
{
    aim_context *ctx = e->ar->ctx;
    size_t tokens = (size_t)(e->ar->config.num_tokens * job->pictures);
    e->streams = job->how.cfg != 1 ? 2 * job->pictures : job->pictures;
    struct painting p = {.labels = mem_array(ctx, 4 * (size_t)e->streams, sizeof *p.labels, MEM_MISC),
                         .codes = mem_array(ctx, tokens, sizeof *p.codes, MEM_MISC),
                         .uniform = mem_array(ctx, tokens, sizeof *p.uniform, MEM_MISC)};
    aim_status status = AIM_ERR_MEMORY;
    if (p.labels && p.codes && p.uniform) {
        p.classes = p.labels + e->streams;
        p.row = p.classes + e->streams;
        p.at = p.row + e->streams;
        status = paint(e, job, &p);
    }
    mem_free(p.labels);
    mem_free(p.codes);
    mem_free(p.uniform);
    return status;
}
