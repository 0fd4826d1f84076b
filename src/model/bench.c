/* How fast this machine paints, beside what it could do at most. */
#include "base/clock.h"
#include "model/engine.h"
#include "model/model.h"
#include "tensor/limits.h"

/*
 * What batches are painted with: labels, and places for pictures, (count) each. Where pictures are decoded beside the next
 * batch's tokens, several batches are painted in one go to show it; but a single picture is what somebody waits for.
 */
struct painting {
    aim_model *model;
    int batch, count; /* of pictures: together, and in one go when they are decoded */
    int64_t *labels;
    aim_image *images;
};

static aim_status painting_open(aim_model *m, int batch, struct painting *p)
{
    enum { BATCHES = 4 };
    int count = m->ctx->backend->twin && batch > 1 ? BATCHES * batch : batch;
    *p = (struct painting){.model = m,
                           .batch = batch,
                           .count = count,
                           .labels = mem_array(m->ctx, (size_t)count, sizeof *p->labels, MEM_MISC),
                           .images = mem_zero(m->ctx, (size_t)count, sizeof *p->images, MEM_MISC)};
    if (!p->labels || !p->images) return AIM_ERR_MEMORY;
    for (int i = 0; i < count; i++) p->labels[i] = (i * 37) % m->config.ar.num_classes;
    return AIM_OK;
}

static void painting_close(struct painting *p)
{
    mem_free(p->labels);
    mem_free(p->images);
}

/* Paints a batch of codes, or all pictures; seconds a batch. */
static aim_status paint(const struct painting *p, bool decodes, double *seconds)
{
    aim_generate_options o = aim_generate_defaults();
    o.batch = p->batch;
    o.codes_only = !decodes;
    double start = clock_seconds();
    int count = decodes ? p->count : p->batch;
    aim_status status = aim_generate(p->model, p->labels, count, &o, NULL, decodes ? p->images : NULL);
    *seconds = (clock_seconds() - start) * p->batch / count;
    for (int i = 0; i < p->count; i++) aim_image_free(&p->images[i]);
    return status;
}

/* The median of a few runs, of fewer where they take long. */
static aim_status time_painting(const struct painting *p, bool decodes, double *seconds)
{
    enum { RUNS = 5 };
    const double enough = 2;
    double times[RUNS], sum = 0;
    size_t runs = 0;
    while (runs < RUNS && (runs == 0 || sum < enough)) {
        TRY(paint(p, decodes, &times[runs]));
        sum += times[runs++];
    }
    *seconds = limits_median(times, runs);
    return AIM_OK;
}

/* With one run before that warms everything up, and counts where it takes long. */
static aim_status time_batch(aim_model *m, int batch, double *codes, double *pictures)
{
    const double slow = 10;
    struct painting p;
    aim_status status = painting_open(m, batch, &p);
    if (status == AIM_OK) status = paint(&p, true, pictures);
    if (status == AIM_OK) status = time_painting(&p, false, codes);
    if (status == AIM_OK && *pictures < slow) status = time_painting(&p, true, pictures);
    painting_close(&p);
    return status;
}

/* What one token of `streams` streams must read, on average, and compute. */
static void count_work(const struct ar_config *c, enum tensor_type type, int64_t streams, aim_bench_result *r)
{
    double size = (double)tensor_type_size(type), past = type == T_BF16_PACKED ? 2 : 4;
    double d = c->d_model, layers = c->n_layer, E = (double)ar_inner(c), half = c->num_tokens / 2.0;
    double matrices = layers * d * ((double)ar_in_width(c) + E) + (double)c->vocab_size * d;
    double history = layers * half * (E + (double)c->d_state);
    r->bytes = size * matrices + past * (double)streams * history;
    r->operations = 2 * (double)streams * (matrices + history);
}

static aim_status bench_batch(aim_model *m, int batch, aim_bench_result *r)
{
    struct backend *be = m->ctx->backend;
    double codes, pictures;
    r->batch = batch;
    model_rest(m); /* what another batch left */
    be->memory.peak = be->memory.used;
    aim_status status = time_batch(m, batch, &codes, &pictures);
    if (status == AIM_ERR_MEMORY) return AIM_OK; /* the line stays empty */
    TRY(status);
    r->token_ms = 1e3 * codes / m->config.ar.num_tokens;
    r->codes_per_second = batch / codes;
    r->pictures_per_second = batch / pictures;
    count_work(&m->config.ar, ar_matrix_type(m->weights), 2 * (int64_t)batch, r);
    r->memory = be->memory.host ? aim_model_memory(m, batch, 1) : be->memory.peak;
    return AIM_OK;
}

static aim_status bench(aim_model *m, const int *batches, int count, aim_bench_result *results)
{
    double copy = 0, product = 0;
    TRY(limits_copy(&m->ex, &copy));
    TRY(limits_product(&m->ex, ar_matrix_type(m->weights), &product));
    exec_clear(&m->ex); /* what that took must not count as the model's */
    for (int i = 0; i < count; i++) {
        results[i] = (aim_bench_result){.bytes_per_second = copy, .operations_per_second = product};
        TRY(bench_batch(m, batches[i], &results[i]));
    }
    return AIM_OK;
}

aim_status aim_bench(aim_context *ctx, const char *preset, aim_weights weights, const int *batches, int count,
                     aim_bench_result *results)
{
    aim_model *m = NULL;
    TRY(aim_model_init(ctx, preset, 0, &m));
    m->weights = weights == AIM_WEIGHTS_AUTO ? AIM_WEIGHTS_BF16 : weights;
    aim_status status = bench(m, batches, count, results);
    aim_model_free(m);
    return status;
}
