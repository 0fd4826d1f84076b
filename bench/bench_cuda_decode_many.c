/*
 * Painting codes in batches of 8, 64 and 256 pictures with guidance on a GPU, bf16, random weights: pictures per second,
 * milliseconds of a token early and late in the sequence, and where a token in its middle spends its time: all kernels of one
 * kind in a row, and the share of the memory's copying speed, measured in the same run, that the bytes they must move take.
 *
 *     bench_cuda_decode_many [PRESET...]        default: all
 */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "tensor/limits.h"
#include "cuda/decode_probe.h"
#include "model/engine.h"
#include "model/model.h"

enum { LARGEST = 256 };

static const char *const kind_names[STEP_KINDS] = {"norms", "in_proj", "mixer", "out_proj", "logits", "draw"};

/* What a step at position t must read and write by kind: weights, history and the sampler's logits; what passes between
 * kernels stays in the cache. */
static void bytes_of(const struct ar_config *c, double R, double t, double bytes[STEP_KINDS])
{
    double d = c->d_model, E = (double)ar_inner(c), S = c->d_state, H = E / HEADDIM, layers = c->n_layer, V = c->vocab_size;
    double half = sizeof(uint16_t), whole = sizeof(float), W = 2 * E + 2 * S + H;
    bytes[STEP_NORM] = layers * R * d * 2 * whole;
    bytes[STEP_IN] = layers * W * d * half;
    double decays = t + t / 16 + 8; /* read, and written: older ones every 16 tokens, newer ones each time */
    bytes[STEP_MIX] = layers * R * (t * (E + S) * half + decays * H * whole + 4 * (E + 2 * S) * whole);
    bytes[STEP_OUT] = layers * E * d * half;
    bytes[STEP_LOGITS] = V * d * half + R * V * whole;
    bytes[STEP_DRAW] = R * V * whole;
}

static aim_status go_on(void *user, int64_t tokens)
{
    (void)user;
    (void)tokens;
    return AIM_OK;
}

static aim_status report(const struct engine *e, int64_t pictures, double seconds, double speed)
{
    const struct ar_config *c = &e->ar->config;
    const int half = c->num_tokens / 2, at[] = {1, half / 2, half, c->num_tokens - 1};
    double kinds[STEP_KINDS], middle[STEP_KINDS] = {0}, bytes[STEP_KINDS], whole, step = 0;
    printf("  %3lld pictures: %7.1f pictures/s, %6.3f ms a token;", (long long)pictures, (double)pictures / seconds,
           1e3 * seconds / (double)c->num_tokens);
    for (size_t i = 0; i < sizeof at / sizeof at[0]; i++) {
        TRY(cuda_decode_times(e->decoder, at[i], &whole, kinds));
        printf(" %.3f at %d", 1e3 * whole, at[i]);
        if (at[i] != half) continue;
        memcpy(middle, kinds, sizeof middle);
        step = whole;
    }
    printf("\n    at %d, us and share of copying:", half);
    bytes_of(c, (double)e->streams, half, bytes);
    double sum = 0, all = 0;
    for (int k = 0; k < STEP_KINDS; k++) {
        printf(" %s %.0f (%.0f%%)", kind_names[k], 1e6 * middle[k], 100 * bytes[k] / middle[k] / speed);
        sum += middle[k];
        all += bytes[k];
    }
    printf(" sum %.0f, step %.0f (%.0f%%)\n", 1e6 * sum, 1e6 * step, 100 * all / step / speed);
    fflush(stdout);
    return AIM_OK;
}

/* Paints until the graph is there and one time was taken. */
static aim_status batch(const struct ar *ar, int64_t pictures, double speed)
{
    aim_context *ctx = ar->ctx;
    struct engine *engine = NULL;
    int32_t labels[LARGEST];
    int32_t *codes = mem_array(ctx, (size_t)(pictures * ar->config.num_tokens), sizeof *codes, MEM_MISC);
    struct engine_job job = {.pictures = pictures,
                             .labels = labels,
                             .how = {.cfg = 4, .temperature = 1, .top_p = 1},
                             .codes = codes,
                             .progress = go_on};
    const double long_enough = 1; /* the first time's preparations do not count then */
    double seconds = 0;
    for (int i = 0; i < LARGEST; i++) labels[i] = i * 37 % ar->config.num_classes;
    aim_status status = codes ? engine_create(ar, 2 * pictures, &engine) : AIM_ERR_MEMORY;
    for (int i = 0; i < 2 && seconds < long_enough && status == AIM_OK; i++) {
        double start = clock_seconds();
        status = engine_paint(engine, &job);
        seconds = clock_seconds() - start;
    }
    if (status == AIM_OK) status = report(engine, pictures, seconds, speed);
    engine_free(engine);
    mem_free(codes);
    return status;
}

/* One block of random numbers serves as every tensor. */
static aim_status random_network(aim_context *ctx, const struct ar_config *config, struct params *table, float **values,
                                 struct ar **ar)
{
    size_t most = 0;
    TRY(ar_describe(config, table));
    TRY(params_point(table, NULL));
    for (size_t i = 0; i < table->count; i++)
        if (table->made[i].bytes > most) most = table->made[i].bytes;
    *values = mem_new(ctx, most, MEM_WEIGHTS);
    if (!*values) return AIM_ERR_MEMORY;
    uint32_t state = 1;
    for (size_t i = 0; i < most / sizeof(float); i++) {
        state = state * 1664525u + 1013904223u;
        (*values)[i] = ((float)(state >> 8) * 0x1p-23f - 1.0f) * 0.05f;
    }
    for (size_t i = 0; i < table->count; i++) table->made[i].data = *values;
    return ar_build(config, table, AIM_WEIGHTS_BF16, 1, ar);
}

static aim_status preset(aim_context *ctx, const char *name, double speed)
{
    static const int64_t batches[] = {8, 64, LARGEST};
    struct model_config config = {0};
    struct params table = {.ctx = ctx, .prefix = AR_PREFIX};
    struct ar *ar = NULL;
    float *values = NULL;
    aim_status status = config_preset(ctx, name, &config);
    if (status == AIM_OK) status = random_network(ctx, &config.ar, &table, &values, &ar);
    if (status == AIM_OK) printf("%s\n", name);
    for (size_t b = 0; b < sizeof batches / sizeof batches[0] && status == AIM_OK; b++) status = batch(ar, batches[b], speed);
    ar_free(ar);
    params_free(&table);
    mem_free(values);
    config_free(&config);
    return status;
}

int main(int argc, char **argv)
{
    static const char *const usual[] = {"AiM-B", "AiM-L", "AiM-XL", "AiM-1B"};
    aim_context *ctx = NULL;
    aim_context_options options = aim_context_defaults();
    options.device = "cuda";
    if (aim_context_create(&options, &ctx) != AIM_OK) {
        printf("bench_cuda_decode_many: no GPU (%s)\n", aim_last_error(ctx));
        aim_context_free(ctx);
        return 0;
    }
    double speed = 0;
    struct exec ex;
    exec_init(&ex, ctx);
    aim_status status = limits_copy(&ex, &speed);
    exec_clear(&ex);
    if (status == AIM_OK) printf("%s, copying %.2f TB/s\n", aim_context_device(ctx), 1e-12 * speed);
    for (int i = 0; i < (argc > 1 ? argc - 1 : 4) && status == AIM_OK; i++)
        status = preset(ctx, argc > 1 ? argv[i + 1] : usual[i], speed);
    if (status != AIM_OK) fprintf(stderr, "bench_cuda_decode_many: %s\n", aim_last_error(ctx));
    aim_context_free(ctx);
    return status != AIM_OK;
}
