/*
 * One token step of the decode engine: time, tokens per second, and the share of the memory read bandwidth, measured in
 * between, that the weights take, and that weights and history take together.
 *
 *     bench_decode [PRESET...]       default: AiM-B AiM-XL
 */
#include <stdio.h>
#include <string.h>

#include "bench.h"
#include "ceilings.h"
#include "model/engine.h"
#include "model/model.h"

/*
 * Steps are timed at every STRIDE-th position, from the first to the last, since the history a step reads grows on the
 * way. The memory's speed moves by itself on shared machines, so it is measured before and after every GROUP steps and
 * each step's share is taken of its own neighbours.
 */
enum { STRIDE = 8, GROUP = 4, MAX_STEPS = 256 };

/* Bytes of weights that one step streams. */
static double weight_bytes(const struct ar *ar)
{
    double bytes = (double)tensor_bytes(ar->words->type, 2, ar->words->shape);
    for (int i = 0; i < ar->config.n_layer; i++) {
        const struct ar_layer *l = &ar->layers[i];
        bytes += (double)tensor_bytes(l->in_proj->type, 2, l->in_proj->shape);
        bytes += (double)tensor_bytes(l->out_proj->type, 2, l->out_proj->shape);
    }
    return bytes;
}

/* Bytes of past tokens (u and B of every layer and stream) that the step at position t reads. */
static double history_bytes(const struct ar_config *c, int64_t streams, int64_t t)
{
    return (double)(c->n_layer * streams * t * (ar_inner(c) + c->d_state)) * sizeof(float);
}

static aim_status run(aim_model *model, const char *preset, const char *weights, int pictures)
{
    aim_context *ctx = model->ctx;
    const struct ar_config *c = &model->config.ar;
    int64_t streams = 2 * (int64_t)pictures;
    struct engine *engine = NULL;
    int32_t *tokens = mem_zero(ctx, (size_t)streams, sizeof *tokens, MEM_MISC);
    double times[MAX_STEPS], reads[MAX_STEPS], shares[MAX_STEPS], all[MAX_STEPS], uniform[64] = {0};
    struct sampling how = {.cfg = 4, .temperature = 1, .top_p = 1};
    int n = 0;
    if (!tokens) return AIM_ERR_MEMORY;
    aim_status status = engine_create_stepping(model->ar, streams, &engine);
    if (status == AIM_OK) status = engine_begin(engine, tokens, streams);
    double bytes = weight_bytes(model->ar), before = ceiling_read_gbs(ctx->threads);
    for (int64_t t = 1; t < c->num_tokens && n < MAX_STEPS && status == AIM_OK; t += STRIDE) {
        for (int64_t r = 0; r < streams; r++) tokens[r] = (int32_t)((t * 7919 + r) % c->vocab_size);
        double start = bench_seconds();
        status = engine_step(engine, tokens, t);
        if (status == AIM_OK) status = engine_sample(engine, &how, pictures, uniform, tokens);
        times[n] = bench_seconds() - start;
        all[n++] = bytes + history_bytes(c, streams, t);
        if (n % GROUP) continue;
        double after = ceiling_read_gbs(ctx->threads);
        for (int i = n - GROUP; i < n; i++) {
            reads[i] = 0.5 * (before + after);
            shares[i] = 100 * bytes / times[i] * 1e-9 / reads[i];
            all[i] = 100 * all[i] / times[i] * 1e-9 / reads[i];
        }
        before = after;
    }
    n -= n % GROUP;
    if (status == AIM_OK) {
        double share = bench_median(shares, (size_t)n), read = bench_median(reads, (size_t)n);
        double whole = bench_median(all, (size_t)n);
        double step = bench_median(times, (size_t)n);
        printf("%-7s %-5s %6d %10.2f %11.1f %10.1f %9.1f %8.0f%% %8.0f%%\n", preset, weights, pictures, 1e3 * step,
               pictures / step, bytes / step * 1e-9, read, share, whole);
        fflush(stdout);
    }
    engine_free(engine);
    mem_free(tokens);
    return status;
}

static aim_status bench_preset(aim_context *ctx, const char *preset)
{
    static const struct {
        const char *name;
        aim_weights kind;
    } weights[] = {{"f32", AIM_WEIGHTS_F32}, {"bf16", AIM_WEIGHTS_BF16}};
    static const int batches[] = {1, 2, 8};
    aim_model *model;
    TRY(aim_model_init(ctx, preset, 0, &model));
    aim_status status = AIM_OK;
    for (size_t w = 0; w < 2 && status == AIM_OK; w++) {
        ar_free(model->ar);
        model->ar = NULL;
        model->weights = weights[w].kind;
        status = model_need_ar(model);
        for (size_t b = 0; b < sizeof batches / sizeof batches[0] && status == AIM_OK; b++)
            status = run(model, preset, weights[w].name, batches[b]);
    }
    aim_model_free(model);
    return status;
}

int main(int argc, char **argv)
{
    static const char *const usual[] = {"AiM-B", "AiM-XL"};
    aim_context *ctx;
    aim_status status = aim_context_create(NULL, &ctx);
    if (status == AIM_OK) {
        printf("One token with guidance (two streams a picture), %s; random weights.\n", aim_context_device(ctx));
        printf("weights: bytes of weights over the step's time; shares: of the measured read bandwidth\n\n");
        printf("%-7s %-5s %6s %10s %11s %10s %9s %9s %9s\n", "model", "type", "batch", "ms/step", "tokens/s", "weights", "read",
               "share", "+history");
        printf("%-7s %-5s %6s %10s %11s %10s %9s %9s %9s\n", "", "", "", "", "", "GB/s", "GB/s", "", "");
    }
    for (int i = 0; i < (argc > 1 ? argc - 1 : 2) && status == AIM_OK; i++)
        status = bench_preset(ctx, argc > 1 ? argv[i + 1] : usual[i]);
    if (status != AIM_OK) fprintf(stderr, "bench_decode: %s\n", aim_last_error(ctx));
    aim_context_free(ctx);
    return status != AIM_OK;
}
