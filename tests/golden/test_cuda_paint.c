/*
 * Painting in bf16 on a GPU: the logits of the last token against those of the CPU, which is fed the same tokens one by one.
 * Whatever goes wrong at any position is in them.
 */
#include "network.h"

#include "cuda/decode_probe.h"

/* Rounding of every product's inputs to bf16, which the CPU does not do, through all layers (design: 2e-2). */
#define ROUNDED 2e-2

enum { MOST = 66, TOKENS = 300 };

static const struct ar_config layer = {.n_layer = 2, .num_classes = 3, .adaln_group = true, .num_groups = 2, .d_state = 128};

static aim_status go_on(void *user, int64_t tokens)
{
    (void)user;
    (void)tokens;
    return AIM_OK;
}

/* The CPU's logits of the last token of picture p: guided, over the temperature. */
static void cpu_logits(struct engine *engine, const struct sampling *how, int32_t label, const int32_t *codes, float *logits)
{
    const struct ar_config *config = &engine->ar->config;
    aim_context *ctx = engine->ar->ctx;
    int64_t T = config->num_tokens, V = config->vocab_size, streams = how->cfg != 1 ? 2 : 1;
    const int32_t labels[2] = {label, config->num_classes};
    assert_ok(ctx, engine_begin(engine, labels, streams));
    for (int64_t t = 1; t < T; t++) {
        const int32_t fed[2] = {codes[t - 1], codes[t - 1]};
        assert_ok(ctx, engine_step(engine, fed, t));
    }
    const float *c = engine->logits, *u = c + (streams - 1) * V;
    for (int64_t v = 0; v < V; v++) logits[v] = (u[v] + (float)how->cfg * (c[v] - u[v])) / (float)how->temperature;
}

static void check(aim_context *ctx, aim_context *cpu, const struct ar_config *config, const struct sampling *how,
                  int64_t pictures)
{
    struct network here, there;
    struct engine *painting, *stepping;
    network_open(cpu, config, AIM_WEIGHTS_BF16, &here);
    network_open(ctx, config, AIM_WEIGHTS_BF16, &there);
    int64_t streams = how->cfg != 1 ? 2 * pictures : pictures, T = config->num_tokens, V = config->vocab_size;
    int32_t labels[MOST], codes[MOST * TOKENS];
    float *got = mem_array(ctx, (size_t)(pictures * V), sizeof *got, MEM_MISC);
    float *want = mem_array(ctx, (size_t)V, sizeof *want, MEM_MISC);
    for (int i = 0; i < MOST; i++) labels[i] = i % 3;
    assert_ok(ctx, engine_create(there.ar, streams, &painting));
    assert_ok(cpu, engine_create_stepping(here.ar, 2, &stepping));
    struct engine_job job = {
        .pictures = pictures, .labels = labels, .how = *how, .seed = 42, .codes = codes, .progress = go_on};
    assert_ok(ctx, engine_paint(painting, &job));
    assert_non_null(painting->decoder);
    assert_ok(ctx, cuda_decode_logits(painting->decoder, got));
    double worst = 0;
    for (int64_t p = 0; p < pictures; p++) {
        cpu_logits(stepping, how, labels[p], codes + p * T, want);
        double error = relative_error(got + p * V, want, (size_t)V);
        worst = error > worst || error != error ? error : worst;
    }
    print_message("d %d, %lld tokens, %lld pictures, cfg %g: relative error %.2g\n", config->d_model, (long long)T,
                  (long long)pictures, how->cfg, worst);
    assert_true(worst < ROUNDED);
    engine_free(painting);
    engine_free(stepping);
    mem_free(got);
    mem_free(want);
    network_close(&here);
    network_close(&there);
}

/* Lengths around the 16 tokens that a warp takes and the 256 that a block does; 1 to 132 streams; layers as in published
 * models. */
static void last_logits(void **state)
{
    (void)state;
    aim_context *ctx = gpu_context();
    if (!ctx) skip();
    static const struct {
        int width, tokens, vocabulary, pictures;
        double cfg;
    } cases[] = {
        {768, 1, 1000, 1, 2.5},   {768, 2, 1000, 1, 2.5},  {768, 17, 16384, 1, 2.5}, {768, 33, 501, 2, 2.5},
        {768, 300, 1000, 1, 2.5}, {1024, 40, 16384, 1, 4}, {1024, 20, 1000, 3, 2.5}, {1536, 40, 1000, 1, 2.5},
        {2048, 40, 1000, 1, 2.5}, {1536, 24, 16384, 4, 2}, {768, 40, 1000, 1, 1},    {1024, 24, 1000, 5, 1},
        {480, 40, 500, 8, 1},     {768, 40, 1000, 9, 2},   {768, 20, 1000, 64, 2},   {1024, 18, 500, MOST, 2},
        {1536, 18, 500, 64, 2},
    };
    aim_context *cpu = golden_context(2);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct ar_config config = layer;
        config.d_model = cases[i].width;
        config.num_tokens = cases[i].tokens;
        config.vocab_size = cases[i].vocabulary;
        const struct sampling how = {.cfg = cases[i].cfg, .temperature = 0.9, .top_p = 1};
        check(ctx, cpu, &config, &how, cases[i].pictures);
    }
    aim_context_free(cpu);
    aim_context_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(last_logits)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
