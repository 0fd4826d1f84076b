/* The library's work: generate. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "model/engine.h"
#include "model/picture_queue.h"

aim_generate_options aim_generate_defaults(void)
{
    return (aim_generate_options){.cfg = 4, .temperature = 1, .top_p = 1};
}

/* Pictures that are painted together. */
struct batch {
    int64_t first, count;
    int64_t given; /* to the caller */
    int32_t *ids;  /* (count, T) */
};

/*
 * One call of aim_generate. A batch is painted, token by token, then on show: its pictures are decoded and handed out. Where
 * decoding works beside, that happens while the next batch is painted.
 */
struct painting {
    aim_model *model;
    const aim_generate_options *options;
    struct sampling sampling;
    struct picture_queue *queue; /* NULL: codes alone */
    int64_t batch, count, tokens;
    int64_t units, done, begun; /* progress: a decoded picture counts as half of its tokens; tokens of the batch under way */
    const int64_t *labels;
    struct batch batches[2], *painted, *shown; /* shown: NULL while there is none */
    int32_t *classes;                          /* (batch) */
    int64_t *wide;                             /* (T) */
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

/* Bytes beyond what the model holds. */
static int64_t memory_of(const struct painting *p, int64_t batch)
{
    const aim_model *m = p->model;
    int64_t built = m->ar ? model_weight_bytes(m) : 0;
    return aim_model_memory(m, (int)batch, p->options->cfg != 1) - built - model_kept(m);
}

/*
 * The batch asked for, or the largest of the usual one, its half, its quarter, ... that fits: a device of its own has many
 * more multiprocessors to keep busy than a CPU has cores, and needs room for the pictures that it decodes beside. All pictures
 * are of one length, so places never fall free one by one: batches as equal as can be leave the fewest empty.
 */
static void choose_batch(struct painting *p, bool paints)
{
    enum { USUAL = 8, USUAL_ON_DEVICE = 256 };
    struct backend *be = p->model->ctx->backend;
    int64_t most = p->options->batch ? p->options->batch : be->memory.host ? USUAL : USUAL_ON_DEVICE;
    int64_t room = be->memory.available(be) / (paints && be->twin ? 2 : 1);
    if (most > p->count) most = p->count;
    while (!p->options->batch && most > 1 && memory_of(p, most) > room) most /= 2;
    int64_t batches = (p->count + most - 1) / most;
    p->batch = (p->count + batches - 1) / batches;
}

static const char *advice(const struct painting *p)
{
    return p->batch > 1 ? "use a smaller --batch, or --weights q8" : "use --weights q8, or a smaller model";
}

static aim_status check_memory(const struct painting *p)
{
    struct backend *be = p->model->ctx->backend;
    char what[64];
    if (p->batch > INT32_MAX / 2) return aim_fail(be->ctx, AIM_ERR_ARGUMENT, "the batch is too large");
    if (memory_of(p, p->batch) > be->memory.available(be)) model_rest(p->model);
    snprintf(what, sizeof what, "painting %lld picture%s at a time", (long long)p->batch, p->batch == 1 ? "" : "s");
    return model_check_memory(p->model, memory_of(p, p->batch), what, advice(p));
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
    choose_batch(p, paints);
    TRY(check_memory(p));
    TRY(model_need_ar(m));
    if (paints) TRY(model_need_vq(m));
    p->tokens = m->config.ar.num_tokens;
    p->units = p->tokens + (paints ? p->tokens / 2 : 0);
    p->sampling = (struct sampling){.cfg = o->cfg, .temperature = o->temperature, .top_p = o->top_p, .top_k = o->top_k};
    size_t batch = (size_t)p->batch;
    p->classes = mem_array(ctx, batch, sizeof *p->classes, MEM_MISC);
    p->wide = mem_array(ctx, (size_t)p->tokens, sizeof *p->wide, MEM_MISC);
    if (!p->classes || !p->wide) return AIM_ERR_MEMORY;
    for (int i = 0; i < 2; i++) {
        p->batches[i].ids = mem_array(ctx, batch * (size_t)p->tokens, sizeof(int32_t), MEM_MISC);
        if (!p->batches[i].ids) return AIM_ERR_MEMORY;
    }
    TRY(model_need_engine(m, p->batch * (o->cfg != 1 ? 2 : 1)));
    if (paints) TRY(model_need_queue(m));
    if (paints) p->queue = m->queue;
    return AIM_OK;
}

static aim_status report(struct painting *p, int64_t units)
{
    p->done += units;
    return aim_progress(p->model->ctx, "painting", p->done + p->begun, p->count * p->units);
}

/* Hands out the next picture of the batch on show. *given is false when it is not decoded yet, which only happens without
 * `wait`. */
static aim_status deliver(struct painting *p, bool wait, bool *given)
{
    const aim_generate_options *o = p->options;
    struct batch *b = p->shown;
    int64_t i = b->first + b->given;
    const int32_t *ids = b->ids + b->given * p->tokens;
    aim_image image = {0};
    if (p->queue) TRY(picture_queue_take(p->queue, wait, &image));
    *given = !p->queue || image.rgb;
    if (!*given) return AIM_OK;
    b->given++;
    for (int64_t t = 0; t < p->tokens; t++) p->wide[t] = ids[t];
    if (p->codes_out) memcpy(p->codes_out + i * p->tokens, p->wide, (size_t)p->tokens * sizeof *p->wide);
    int stop = o->picture ? o->picture(o->user, i, p->labels[i], p->wide, p->queue ? &image : NULL) : 0;
    if (p->images_out)
        p->images_out[i] = image;
    else
        aim_image_free(&image);
    if (stop) return aim_fail(p->model->ctx, AIM_ERR_CANCELLED, "cancelled");
    return report(p, p->units - p->tokens);
}

/* All that is left of the batch on show. */
static aim_status deliver_rest(struct painting *p)
{
    bool given;
    while (p->shown && p->shown->given < p->shown->count) TRY(deliver(p, true, &given));
    return AIM_OK;
}

/* The engine has `tokens` tokens of every picture of its batch, and a device works on while the last one's pictures are handed
 * out: as large a share of them, so that what the caller does with them does not come all at once. */
static aim_status on_tokens(void *user, int64_t tokens)
{
    struct painting *p = user;
    bool given = p->shown != NULL;
    p->begun = p->painted->count * tokens;
    TRY(report(p, 0));
    while (given && p->shown->given < p->shown->count * tokens / p->tokens) TRY(deliver(p, false, &given));
    return AIM_OK;
}

static aim_status paint_tokens(struct painting *p)
{
    const aim_generate_options *o = p->options;
    const struct batch *b = p->painted;
    for (int64_t i = 0; i < b->count; i++) p->classes[i] = (int32_t)p->labels[b->first + i];
    struct engine_job job = {.pictures = b->count,
                             .labels = p->classes,
                             .how = p->sampling,
                             .seed = o->seed,
                             .first_index = (uint64_t)(o->first_index + b->first),
                             .codes = b->ids,
                             .progress = on_tokens,
                             .user = p};
    TRY(engine_paint(p->model->engine, &job));
    p->done += b->count * p->tokens;
    p->begun = 0;
    return AIM_OK;
}

/* Puts the painted batch on show; the one before is over. */
static aim_status show(struct painting *p)
{
    p->shown = p->painted;
    if (p->queue) TRY(picture_queue_begin(p->queue, p->shown->ids, p->shown->count));
    return p->queue && picture_queue_beside(p->queue) ? AIM_OK : deliver_rest(p);
}

static aim_status paint(struct painting *p)
{
    TRY(prepare(p));
    p->model->painting = true;
    TRY(report(p, 0));
    for (int64_t k = 0, first = 0; first < p->count; k++, first += p->batch) {
        p->painted = &p->batches[k % 2];
        p->painted->first = first;
        p->painted->count = p->count - first < p->batch ? p->count - first : p->batch;
        p->painted->given = 0;
        TRY(paint_tokens(p));
        TRY(deliver_rest(p));
        TRY(show(p));
    }
    return deliver_rest(p);
}

/* Whatever the outcome: nothing works on, and after a failure for want of memory nothing is kept. */
static void finish(struct painting *p, aim_status status)
{
    if (p->queue) picture_queue_cancel(p->queue);
    void *all[] = {p->batches[0].ids, p->batches[1].ids, p->classes, p->wide};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) mem_free(all[i]);
    p->model->painting = false;
    if (status == AIM_ERR_MEMORY) model_rest(p->model);
}

aim_status aim_generate(aim_model *m, const int64_t *labels, int64_t count, const aim_generate_options *options, int64_t *codes,
                        aim_image *images)
{
    aim_generate_options o = options ? *options : aim_generate_defaults();
    if (m->painting) return aim_fail(m->ctx, AIM_ERR_ARGUMENT, "the model is painting already: a callback cannot ask for more");
    TRY(check_options(m->ctx, &o, count));
    for (int64_t i = 0; i < count; i++)
        if (m->config.has_ar && (labels[i] < 0 || labels[i] > m->config.ar.num_classes))
            return aim_fail(m->ctx, AIM_ERR_ARGUMENT, "class %lld is out of range: this model has 0 to %d (and %d, no class)",
                            (long long)labels[i], m->config.ar.num_classes - 1, m->config.ar.num_classes);
    if (count == 0) return AIM_OK;
    struct painting p = {.model = m, .options = &o, .count = count, .labels = labels, .codes_out = codes, .images_out = images};
    aim_status status = paint(&p);
    finish(&p, status);
    return context_advise(m->ctx, status, advice(&p));
}
