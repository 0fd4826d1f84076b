/* The library's work: generate, encode, decode, score. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "model/engine.h"
#include "model/model.h"

/* ---------------------------------------------------------------------------------- encode, decode, score */

/*
 * Pictures that go through the tokenizer together: one on the CPU, whose cores a picture keeps busy and whose results must not
 * depend on it; on a device as many as it takes to fill it, if memory allows.
 */
static int64_t pictures_together(aim_model *m, int64_t rows, int64_t columns)
{
    enum { FULL = 32 };
    struct backend *be = m->ctx->backend;
    int64_t n = be->memory.host ? 1 : FULL, each = vq_activation_bytes(&m->config.vq, rows, columns);
    int64_t room = n > 1 ? be->memory.available(be) : 0;
    while (n > 1 && n * each > room) n /= 2;
    return n;
}

/* pixels (n, 3, height, width) to ids (n, tokens) */
static aim_status encode_some(aim_model *m, const float *pixels, int64_t n, int height, int width, int32_t *ids)
{
    struct exec *ex = &m->ex;
    ex->status = AIM_OK;
    struct tensor *pictures = tensor_from_host(ex, T_F32, SHAPE(n, 3, height, width), pixels);
    struct tensor *z = vq_latent(ex, m->vq, pictures), *found = vq_quantise(ex, m->vq, z);
    tensor_read(ex, found, ids);
    tensor_drop(pictures);
    tensor_drop(z);
    tensor_drop(found);
    return ex->status;
}

/* ids has room for `together` pictures. */
static aim_status encode(aim_model *m, const float *pixels, int64_t count, int height, int width, int64_t together,
                         int32_t *ids, int64_t *codes)
{
    int f = vq_downsample(&m->config.vq);
    int64_t tokens = (int64_t)(height / f) * (width / f), values = 3 * (int64_t)height * width;
    for (int64_t i = 0; i < count; i += together) {
        int64_t n = count - i < together ? count - i : together;
        TRY(aim_progress(m->ctx, "encoding", i, count));
        TRY(encode_some(m, pixels + i * values, n, height, width, ids));
        for (int64_t t = 0; t < n * tokens; t++) codes[i * tokens + t] = ids[t];
    }
    return aim_progress(m->ctx, "encoding", count, count);
}

aim_status aim_encode(aim_model *m, const float *pixels, int64_t count, int height, int width, int64_t *codes)
{
    aim_context *ctx = m->ctx;
    TRY(model_need_vq(m));
    int f = vq_downsample(&m->config.vq);
    if (height < f || width < f || height % f || width % f)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "pictures must be multiples of %d pixels high and wide, not %dx%d", f, width,
                        height);
    TRY(model_check_memory(m, vq_activation_bytes(&m->config.vq, height / f, width / f), "encoding a picture of this size",
                           "use a smaller picture"));
    int64_t together = pictures_together(m, height / f, width / f);
    int32_t *ids = mem_array(ctx, (size_t)together * (size_t)(height / f) * (size_t)(width / f), sizeof *ids, MEM_MISC);
    if (!ids) return AIM_ERR_MEMORY;
    aim_status status = encode(m, pixels, count, height, width, together, ids, codes);
    mem_free(ids);
    return status;
}

/* Whether pictures are decoded in bf16: where matrices are, on a device whose activations may be; a step of 255 from float32 on
 * average. Codes are never chosen so. */
static bool decodes_in_bf16(const aim_model *m)
{
    const struct backend *be = m->ctx->backend;
    return m->weights == AIM_WEIGHTS_BF16 && !be->memory.host && be->activation == T_BF16;
}

/* ids (n, rows*columns) to pixels (n, 3, rows*f, columns*f) */
static aim_status decode_some(aim_model *m, const int32_t *ids, int64_t n, int rows, int columns, float *pixels)
{
    struct exec *ex = &m->ex;
    bool bf16 = ex->backend->bf16;
    ex->status = AIM_OK;
    struct tensor *codes = tensor_from_host(ex, T_I32, SHAPE(n * rows * columns), ids);
    ex->backend->bf16 = decodes_in_bf16(m);
    struct tensor *pictures = vq_decode(ex, m->vq, codes, n, rows, columns);
    ex->backend->bf16 = bf16;
    tensor_read(ex, pictures, pixels);
    tensor_drop(codes);
    tensor_drop(pictures);
    return ex->status;
}

aim_status aim_decode(aim_model *m, const int64_t *codes, int64_t count, int rows, int columns, float *pixels)
{
    aim_context *ctx = m->ctx;
    TRY(model_need_vq(m));
    enum { LONGEST = 4096 };
    if (rows < 1 || columns < 1 || rows > LONGEST || columns > LONGEST)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "a grid of %dx%d codes cannot be decoded", rows, columns);
    int64_t tokens = (int64_t)rows * columns, f = vq_downsample(&m->config.vq), values = 3 * tokens * f * f;
    TRY(model_check_memory(m, vq_activation_bytes(&m->config.vq, rows, columns), "decoding a picture of this size",
                           "decode a smaller grid"));
    int32_t *ids;
    TRY(model_narrow(ctx, codes, count * tokens, m->config.vq.codebook_size, "code", &ids));
    int64_t together = pictures_together(m, rows, columns);
    aim_status status = AIM_OK;
    for (int64_t i = 0; i < count && status == AIM_OK; i += together) {
        int64_t n = count - i < together ? count - i : together;
        status = aim_progress(ctx, "decoding", i, count);
        if (status == AIM_OK) status = decode_some(m, ids + i * tokens, n, rows, columns, pixels + i * values);
    }
    mem_free(ids);
    return status == AIM_OK ? aim_progress(ctx, "decoding", count, count) : status;
}

/* Who is told the logits of a picture, and room for them and the losses in the host's memory. */
struct scoring {
    aim_logits_fn logits; /* NULL: nobody */
    void *user;
    float *losses, *values; /* (T); (T,V), NULL when nobody is told */
};

/* Summed loss of one picture, added to *sum. */
static aim_status score_one(aim_model *m, const int32_t *codes, int32_t label, int64_t index, const struct scoring *how,
                            double *sum)
{
    struct exec *ex = &m->ex;
    ex->status = AIM_OK;
    int64_t T = m->config.ar.num_tokens;
    struct tensor *target = tensor_from_host(ex, T_I32, SHAPE(T), codes);
    struct tensor *logits = ar_forward(ex, m->ar, &label, codes, 1), *loss = op_cross_entropy(ex, logits, target);
    tensor_read(ex, loss, how->losses);
    if (how->logits) tensor_read(ex, logits, how->values);
    tensor_drop(target);
    tensor_drop(logits);
    tensor_drop(loss);
    TRY(ex->status);
    for (int64_t t = 0; t < T; t++) *sum += (double)how->losses[t];
    if (how->logits && how->logits(how->user, index, how->values)) return aim_fail(m->ctx, AIM_ERR_CANCELLED, "cancelled");
    return AIM_OK;
}

static aim_status score(aim_model *m, const int32_t *codes, const int32_t *labels, int64_t count, struct scoring *how,
                        double *sum)
{
    int64_t T = m->config.ar.num_tokens, V = m->config.ar.vocab_size;
    how->losses = mem_array(m->ctx, (size_t)T, sizeof(float), MEM_MISC);
    if (how->logits) how->values = mem_array(m->ctx, (size_t)(T * V), sizeof(float), MEM_MISC);
    if (!how->losses || (how->logits && !how->values)) return AIM_ERR_MEMORY;
    for (int64_t i = 0; i < count; i++) {
        TRY(aim_progress(m->ctx, "scoring", i, count));
        TRY(score_one(m, codes + i * T, labels[i], i, how, sum));
    }
    return AIM_OK;
}

aim_status aim_score(aim_model *m, const int64_t *codes, const int64_t *labels, int64_t count, double *nll,
                     aim_logits_fn logits, void *user)
{
    aim_context *ctx = m->ctx;
    int64_t T = m->config.ar.num_tokens;
    if (count < 1) return aim_fail(ctx, AIM_ERR_ARGUMENT, "there are no pictures to score");
    TRY(model_need_ar(m));
    int32_t *ids = NULL, *classes = NULL;
    aim_status status = model_narrow(ctx, codes, count * T, m->config.ar.vocab_size, "code", &ids);
    if (status == AIM_OK) status = model_narrow(ctx, labels, count, m->config.ar.num_classes + 1, "class", &classes);
    double sum = 0;
    struct scoring how = {.logits = logits, .user = user};
    if (status == AIM_OK) status = score(m, ids, classes, count, &how, &sum);
    mem_free(how.losses);
    mem_free(how.values);
    mem_free(ids);
    mem_free(classes);
    if (status != AIM_OK) return status;
    *nll = sum / (double)(count * T);
    return aim_progress(ctx, "scoring", count, count);
}

/* ---------------------------------------------------------------------------------------------- generate */

aim_generate_options aim_generate_defaults(void)
{
    return (aim_generate_options){.cfg = 4, .temperature = 1, .top_p = 1};
}

/* One call of aim_generate. */
struct painting {
    aim_model *model;
    const aim_generate_options *options;
    struct sampling sampling;
    struct engine *engine;
    int64_t batch, count, tokens, side; /* side: pixels; 0 when pictures are not decoded */
    int64_t units, done;                /* progress: a decoded picture counts as half of its tokens */
    int64_t beside;                     /* pictures of the batch that is being painted */
    int64_t together;                   /* pictures that are decoded in one go */
    const int64_t *labels;
    int32_t *ids, *classes; /* (batch, T); (batch) */
    int64_t *wide;          /* (T) */
    float *pixels;          /* (together, 3, side, side) */
    int64_t *codes_out;
    aim_image *images_out;
};

static aim_status check_options(aim_context *ctx, const aim_generate_options *o, int64_t count)
{
    if (!isfinite(o->cfg)) return aim_fail(ctx, AIM_ERR_ARGUMENT, "the guidance factor must be a number");
    if (!(o->temperature >= 0) || !isfinite(o->temperature))
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "the temperature must be 0 or more");
    if (!(o->top_p > 0 && o->top_p <= 1)) return aim_fail(ctx, AIM_ERR_ARGUMENT, "top-p must be over 0 and at most 1");
    if (o->top_k < 0) return aim_fail(ctx, AIM_ERR_ARGUMENT, "top-k must be 0 (all) or more");
    if (o->batch < 0) return aim_fail(ctx, AIM_ERR_ARGUMENT, "the batch must be 0 (chosen to fit) or more");
    if (count < 0) return aim_fail(ctx, AIM_ERR_ARGUMENT, "the number of pictures must not be negative");
    return AIM_OK;
}

/* The batch asked for, or the largest of the usual one, its half, its quarter, ... that fits: a device of its own has many
 * more multiprocessors to keep busy than a CPU has cores. */
static aim_status choose_batch(struct painting *p)
{
    aim_model *m = p->model;
    bool guided = p->options->cfg != 1;
    struct backend *be = m->ctx->backend;
    int64_t room = be->memory.available(be);
    int64_t built = m->ar ? model_weight_bytes(m) : 0; /* already inside `total` */
    enum { USUAL = 8, USUAL_ON_DEVICE = 64 };
    p->batch = p->options->batch ? p->options->batch : be->memory.host ? USUAL : USUAL_ON_DEVICE;
    if (p->batch > p->count) p->batch = p->count;
    while (!p->options->batch && p->batch > 1 && aim_model_memory(m, (int)p->batch, guided) - built > room) p->batch /= 2;
    if (p->batch > INT32_MAX / 2) return aim_fail(m->ctx, AIM_ERR_ARGUMENT, "the batch is too large");
    char what[64];
    snprintf(what, sizeof what, "painting %lld picture%s at a time", (long long)p->batch, p->batch == 1 ? "" : "s");
    return model_check_memory(m, aim_model_memory(m, (int)p->batch, guided) - built, what,
                              p->batch > 1 ? "use a smaller --batch, or --weights bf16"
                                           : "use --weights bf16, or a smaller model");
}

static aim_status prepare(struct painting *p)
{
    aim_model *m = p->model;
    aim_context *ctx = m->ctx;
    const aim_generate_options *o = p->options;
    int grid = ar_grid(&m->config.ar);
    bool paints = p->images_out || (o->picture && !o->codes_only);
    if (!m->config.has_ar) return model_need_ar(m); /* says what is missing */
    if (paints && grid == 0)
        return aim_fail(ctx, AIM_ERR_UNSUPPORTED, "%d tokens make no square picture", m->config.ar.num_tokens);
    if (paints && !m->config.has_vq) return model_need_vq(m);
    TRY(choose_batch(p));
    TRY(model_need_ar(m));
    if (paints) TRY(model_need_vq(m));
    p->tokens = m->config.ar.num_tokens;
    p->side = paints ? (int64_t)grid * vq_downsample(&m->config.vq) : 0;
    p->units = p->tokens + (paints ? p->tokens / 2 : 0);
    p->sampling = (struct sampling){.cfg = o->cfg, .temperature = o->temperature, .top_p = o->top_p, .top_k = o->top_k};
    size_t batch = (size_t)p->batch;
    p->ids = mem_array(ctx, batch * (size_t)p->tokens, sizeof *p->ids, MEM_MISC);
    p->classes = mem_array(ctx, batch, sizeof *p->classes, MEM_MISC);
    p->wide = mem_array(ctx, (size_t)p->tokens, sizeof *p->wide, MEM_MISC);
    if (!p->ids || !p->classes || !p->wide) return AIM_ERR_MEMORY;
    TRY(engine_create(m->ar, p->batch * (o->cfg != 1 ? 2 : 1), &p->engine));
    p->together = paints ? pictures_together(m, grid, grid) : 1; /* of what the engine has left */
    if (p->together > p->batch) p->together = p->batch;
    p->pixels = mem_array(ctx, (size_t)(p->together * 3 * p->side * p->side), sizeof *p->pixels, MEM_IMAGE);
    return p->pixels ? AIM_OK : AIM_ERR_MEMORY;
}

static aim_status report(struct painting *p, int64_t units)
{
    p->done += units;
    return aim_progress(p->model->ctx, "painting", p->done, p->count * p->units);
}

/* The engine has `tokens` tokens of every picture of the batch, which starts at p->done. */
static aim_status on_tokens(void *user, int64_t tokens)
{
    struct painting *p = user;
    return aim_progress(p->model->ctx, "painting", p->done + p->beside * tokens, p->count * p->units);
}

/* Tokens of pictures first .. first+n. */
static aim_status paint_tokens(struct painting *p, int64_t first, int64_t n)
{
    const aim_generate_options *o = p->options;
    for (int64_t i = 0; i < n; i++) p->classes[i] = (int32_t)p->labels[first + i];
    p->beside = n;
    struct engine_job job = {.pictures = n,
                             .labels = p->classes,
                             .how = p->sampling,
                             .seed = o->seed,
                             .first_index = (uint64_t)(o->first_index + first),
                             .codes = p->ids,
                             .progress = on_tokens,
                             .user = p};
    TRY(engine_paint(p->engine, &job));
    p->done += n * p->tokens;
    return AIM_OK;
}

/* Hands out picture i of a batch of n, decoding it and those beside it first where their turn has come. */
static aim_status deliver(struct painting *p, int64_t first, int64_t i, int64_t n)
{
    aim_context *ctx = p->model->ctx;
    const aim_generate_options *o = p->options;
    const int32_t *ids = p->ids + i * p->tokens;
    aim_image image = {0};
    int grid = ar_grid(&p->model->config.ar);
    for (int64_t t = 0; t < p->tokens; t++) p->wide[t] = ids[t];
    if (p->codes_out) memcpy(p->codes_out + (first + i) * p->tokens, p->wide, (size_t)p->tokens * sizeof *p->wide);
    if (p->side) {
        int64_t place = i % p->together, some = n - i < p->together ? n - i : p->together;
        if (place == 0) TRY(decode_some(p->model, ids, some, grid, grid, p->pixels));
        TRY(aim_image_create(ctx, (int)p->side, (int)p->side, &image));
        aim_image_from_float(p->pixels + place * 3 * p->side * p->side, &image);
    }
    int stop = o->picture ? o->picture(o->user, first + i, p->labels[first + i], p->wide, p->side ? &image : NULL) : 0;
    if (p->images_out)
        p->images_out[first + i] = image;
    else
        aim_image_free(&image);
    if (stop) return aim_fail(ctx, AIM_ERR_CANCELLED, "cancelled");
    return report(p, p->units - p->tokens);
}

static aim_status paint(struct painting *p)
{
    TRY(prepare(p));
    TRY(report(p, 0));
    for (int64_t first = 0; first < p->count; first += p->batch) {
        int64_t n = p->count - first < p->batch ? p->count - first : p->batch;
        TRY(paint_tokens(p, first, n));
        for (int64_t i = 0; i < n; i++) TRY(deliver(p, first, i, n));
    }
    return AIM_OK;
}

aim_status aim_generate(aim_model *m, const int64_t *labels, int64_t count, const aim_generate_options *options, int64_t *codes,
                        aim_image *images)
{
    aim_generate_options o = options ? *options : aim_generate_defaults();
    TRY(check_options(m->ctx, &o, count));
    for (int64_t i = 0; i < count; i++)
        if (m->config.has_ar && (labels[i] < 0 || labels[i] > m->config.ar.num_classes))
            return aim_fail(m->ctx, AIM_ERR_ARGUMENT, "class %lld is out of range: this model has 0 to %d (and %d, no class)",
                            (long long)labels[i], m->config.ar.num_classes - 1, m->config.ar.num_classes);
    if (count == 0) return AIM_OK;
    struct painting p = {.model = m, .options = &o, .count = count, .labels = labels, .codes_out = codes, .images_out = images};
    aim_status status = paint(&p);
    engine_free(p.engine);
    void *all[] = {p.ids, p.classes, p.wide, p.pixels};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) mem_free(all[i]);
    return status;
}
