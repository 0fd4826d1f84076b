/*
 * One token step of the decode engine: time, tokens per second, and the share of the memory read bandwidth, measured in
 * between, that the weights take, and that weights and history take together.
 *
 *     bench_decode [PRESET...]       default: AiM-B AiM-XL; the latter takes 9 GB
 */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "tensor/limits.h"
#include "ceilings.h"
#include "model/engine.h"
#include "model/model.h"
#include "weights.h"

/*
 * Steps are timed at every STRIDE-th position, from the first to the last, since the history a step reads grows on the
 * way. The memory's speed moves by itself on shared machines, so it is measured before and after every GROUP steps and
 * each step's share is taken of its own neighbours; the types of weights take turns, so that their ratios hold.
 */
enum { STRIDE = 8, GROUP = 4, MAX_STEPS = 256 };

static const struct {
    const char *name;
    aim_weights kind;
} types[] = {{"f32", AIM_WEIGHTS_F32}, {"bf16", AIM_WEIGHTS_BF16}, {"q8", AIM_WEIGHTS_Q8}};
enum { TYPES = sizeof types / sizeof types[0], REFERENCE = 1 /* what ratios are taken to */ };

/* Of one type: its network, its engine for the batch, and what was measured at each timed position. */
struct candidate {
    struct ar *ar;
    struct engine *engine;
    int32_t *tokens; /* (streams) */
    double times[MAX_STEPS], reads[MAX_STEPS], shares[MAX_STEPS], all[MAX_STEPS], ratios[MAX_STEPS];
};

/* Bytes of past tokens (u and B of every layer and stream) that the step at position t reads. */
static double history_bytes(const struct ar_config *c, int64_t streams, int64_t t)
{
    return (double)(c->n_layer * streams * t * (ar_inner(c) + c->d_state)) * sizeof(float);
}

static aim_status start(struct candidate *c, int64_t streams)
{
    c->tokens = mem_zero(c->ar->ctx, (size_t)streams, sizeof *c->tokens, MEM_MISC);
    if (!c->tokens) return AIM_ERR_MEMORY;
    TRY(engine_create_stepping(c->ar, streams, &c->engine));
    return engine_begin(c->engine, c->tokens, streams);
}

static void stop(struct candidate *c)
{
    engine_free(c->engine);
    mem_free(c->tokens);
    c->engine = NULL;
    c->tokens = NULL;
}

/* Steps n .. n+GROUP of one candidate, with the memory's speed around them. */
static aim_status time_group(struct candidate *c, int pictures, int n)
{
    const struct ar_config *config = &c->ar->config;
    int64_t streams = 2 * (int64_t)pictures;
    double uniform[64] = {0}, bytes = weight_bytes(c->ar), before = ceiling_read_gbs(c->ar->ctx->threads);
    struct sampling how = {.cfg = 4, .temperature = 1, .top_p = 1};
    for (int i = n; i < n + GROUP; i++) {
        int64_t t = 1 + (int64_t)i * STRIDE;
        for (int64_t r = 0; r < streams; r++) c->tokens[r] = (int32_t)((t * 7919 + r) % config->vocab_size);
        double from = clock_seconds();
        TRY(engine_step(c->engine, c->tokens, t));
        TRY(engine_sample(c->engine, &how, pictures, uniform, c->tokens));
        c->times[i] = clock_seconds() - from;
    }
    double read = 0.5 * (before + ceiling_read_gbs(c->ar->ctx->threads));
    for (int i = n; i < n + GROUP; i++) {
        c->reads[i] = read;
        c->shares[i] = 100 * bytes / c->times[i] * 1e-9 / read;
        c->all[i] = 100 * (bytes + history_bytes(config, streams, 1 + (int64_t)i * STRIDE)) / c->times[i] * 1e-9 / read;
    }
    return AIM_OK;
}

static aim_status time_all(struct candidate *all, int pictures, int *count)
{
    for (int k = 0; k < TYPES; k++) TRY(start(&all[k], 2 * (int64_t)pictures));
    int n = 0, most = (all[0].ar->config.num_tokens - 2) / STRIDE + 1;
    for (; n + GROUP <= most && n + GROUP <= MAX_STEPS; n += GROUP) {
        for (int k = 0; k < TYPES; k++) TRY(time_group(&all[k], pictures, n));
        for (int k = 0; k < TYPES; k++)
            for (int i = n; i < n + GROUP; i++) all[k].ratios[i] = all[REFERENCE].times[i] / all[k].times[i];
    }
    *count = n;
    return AIM_OK;
}

static aim_status run(struct candidate *all, const char *preset, int pictures)
{
    int n = 0;
    aim_status status = time_all(all, pictures, &n);
    for (int k = 0; k < TYPES && status == AIM_OK; k++) {
        struct candidate *c = &all[k];
        double bytes = weight_bytes(c->ar), step = limits_median(c->times, (size_t)n),
               read = limits_median(c->reads, (size_t)n);
        printf("%-7s %-5s %6d %10.2f %11.1f %8.2f %10.1f %9.1f %8.0f%% %8.0f%%\n", preset, types[k].name, pictures, 1e3 * step,
               pictures / step, limits_median(c->ratios, (size_t)n), bytes / step * 1e-9, read,
               limits_median(c->shares, (size_t)n), limits_median(c->all, (size_t)n));
        fflush(stdout);
    }
    for (int k = 0; k < TYPES; k++) stop(&all[k]);
    return status;
}

static aim_status bench_preset(aim_context *ctx, const char *preset)
{
    static const int batches[] = {1, 2, 8};
    static struct candidate all[TYPES];
    aim_model *model;
    TRY(aim_model_init(ctx, preset, 0, &model));
    aim_status status = AIM_OK;
    for (int k = 0; k < TYPES && status == AIM_OK; k++)
        status = ar_build(&model->config.ar, &model->ar_table, types[k].kind, 0, &all[k].ar);
    for (size_t b = 0; b < sizeof batches / sizeof batches[0] && status == AIM_OK; b++) status = run(all, preset, batches[b]);
    for (int k = 0; k < TYPES; k++) {
        ar_free(all[k].ar);
        all[k].ar = NULL;
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
        printf("%-7s %-5s %6s %10s %11s %8s %10s %9s %9s %9s\n", "model", "type", "batch", "ms/step", "tokens/s", "to bf16",
               "weights", "read", "share", "+history");
        printf("%-7s %-5s %6s %10s %11s %8s %10s %9s %9s %9s\n", "", "", "", "", "", "", "GB/s", "GB/s", "", "");
    }
    for (int i = 0; i < (argc > 1 ? argc - 1 : 2) && status == AIM_OK; i++)
        status = bench_preset(ctx, argc > 1 ? argv[i + 1] : usual[i]);
    if (status != AIM_OK) fprintf(stderr, "bench_decode: %s\n", aim_last_error(ctx));
    aim_context_free(ctx);
    return status != AIM_OK;
}
