/* Stage 2 against the golden logits, and its forms against each other: parallel, stepwise, batched, threaded. */
#include "golden/golden.h"

#include <pthread.h>

#include "model/engine.h"

static const char *const folders[] = {"tiny-group", "tiny-adaln"};

static const char *expected_name(const char *folder)
{
    static char name[64];
    snprintf(name, sizeof name, "%s/expected_ar.safetensors", folder);
    return name;
}

/* Logits of all pictures by aim_score; labels may be replaced by the null class. */
static void check_logits(const char *folder, int pos_offset, bool null_class, const char *expected)
{
    aim_context *ctx = golden_context(2);
    struct tensor_file file;
    golden_open(ctx, expected_name(folder), &file);
    aim_model *model = golden_model(ctx, folder, pos_offset, AIM_WEIGHTS_F32);
    size_t pictures, count;
    int64_t *tokens = golden_i64(ctx, &file, "tokens", NULL), *labels = golden_i64(ctx, &file, "labels", &pictures);
    float *want = golden_f32(ctx, &file, expected, &count);
    for (size_t i = 0; null_class && i < pictures; i++) labels[i] = model->config.ar.num_classes;
    struct golden_logits got = {.values = mem_array(ctx, count, sizeof(float), MEM_MISC), .per_picture = count / pictures};
    double nll;
    assert_ok(ctx, aim_score(model, tokens, labels, (int64_t)pictures, &nll, golden_collect, &got));
    double error = relative_error(got.values, want, count);
    print_message("%s %s: relative error %.2g\n", folder, expected, error);
    assert_true(error < GOLDEN_TOLERANCE);
    if (pos_offset == 0 && !null_class) {
        float *loss = golden_f32(ctx, &file, "loss_pos0", NULL);
        assert_true(fabs(nll - (double)loss[0]) < GOLDEN_TOLERANCE * (double)loss[0]);
        mem_free(loss);
    }
    mem_free(got.values);
    mem_free(want);
    mem_free(tokens);
    mem_free(labels);
    aim_model_free(model);
    tensor_file_close(&file);
    aim_context_free(ctx);
}

static void parallel_form(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        check_logits(folders[i], 0, false, "logits_pos0");
        check_logits(folders[i], 1, false, "logits_pos1");
        check_logits(folders[i], 1, true, "logits_uncond_pos1");
    }
}

/* The engine, fed the golden tokens, gives the golden logits of both guidance streams and of their mix. */
static void step_form_with_guidance(void **state)
{
    (void)state;
    for (int f = 0; f < 2; f++) {
        aim_context *ctx = golden_context(2);
        struct tensor_file file;
        golden_open(ctx, expected_name(folders[f]), &file);
        aim_model *model = golden_model(ctx, folders[f], 1, AIM_WEIGHTS_F32);
        assert_ok(ctx, model_need_ar(model));
        int64_t T = model->config.ar.num_tokens, V = model->config.ar.vocab_size;
        size_t B;
        int64_t *tokens = golden_i64(ctx, &file, "tokens", NULL), *labels = golden_i64(ctx, &file, "labels", &B);
        float *cond = golden_f32(ctx, &file, "logits_pos1", NULL), *uncond = golden_f32(ctx, &file, "logits_uncond_pos1", NULL);
        float *mixed = golden_f32(ctx, &file, "logits_cfg4_pos1", NULL);
        float *mix = mem_array(ctx, (size_t)V, sizeof(float), MEM_MISC);
        int32_t classes[4], fed[4];
        assert_int_equal(B, 2);
        for (size_t b = 0; b < B; b++) {
            classes[b] = (int32_t)labels[b];
            classes[B + b] = model->config.ar.num_classes;
        }
        struct engine *engine;
        assert_ok(ctx, engine_create_stepping(model->ar, 4, &engine));
        double worst = 0;
        for (int64_t t = 0; t < T; t++) {
            if (t == 0)
                assert_ok(ctx, engine_begin(engine, classes, 4));
            else
                assert_ok(ctx, engine_step(engine, fed, t));
            for (int64_t b = 0; b < 2; b++) {
                const float *c = engine->logits + b * V, *u = engine->logits + (2 + b) * V;
                for (int64_t v = 0; v < V; v++) mix[v] = u[v] + 4 * (c[v] - u[v]);
                int64_t at = (b * T + t) * V;
                worst = fmax(worst, relative_error(c, cond + at, (size_t)V));
                worst = fmax(worst, relative_error(u, uncond + at, (size_t)V));
                worst = fmax(worst, relative_error(mix, mixed + at, (size_t)V));
                fed[b] = fed[2 + b] = (int32_t)tokens[b * T + t];
            }
        }
        print_message("%s: step form, relative error %.2g\n", folders[f], worst);
        assert_true(worst < GOLDEN_TOLERANCE);
        engine_free(engine);
        void *all[] = {tokens, labels, cond, uncond, mixed, mix};
        for (size_t i = 0; i < 6; i++) mem_free(all[i]);
        aim_model_free(model);
        tensor_file_close(&file);
        aim_context_free(ctx);
    }
}

/* A longer sequence than one chunk: the step form folds its history, the parallel form carries a state. */
static void long_sequence(void **state)
{
    (void)state;
    aim_context *ctx = golden_context(2);
    struct ar_config config = {.d_model = 64,
                               .n_layer = 2,
                               .vocab_size = 64,
                               .num_classes = 3,
                               .num_tokens = 24 * 24,
                               .adaln_group = true,
                               .num_groups = 2,
                               .d_state = 32};
    struct params table = {.ctx = ctx, .prefix = AR_PREFIX};
    assert_ok(ctx, ar_describe(&config, &table));
    assert_ok(ctx, params_init(&table, 7));
    for (size_t i = 0; i < table.count; i++)
        hashed_fill(table.items[i].name, table.items[i].ndim, table.items[i].shape, (float *)(uintptr_t)table.made[i].data);
    struct ar *ar;
    assert_ok(ctx, ar_build(&config, &table, AIM_WEIGHTS_F32, 0, &ar));
    int32_t codes[24 * 24], label = 1;
    for (int t = 0; t < config.num_tokens; t++) codes[t] = (t * 37 + t * t) % config.vocab_size;
    struct exec ex;
    exec_init(&ex, ctx);
    struct tensor *logits = ar_forward(&ex, ar, &label, codes, 1);
    assert_ok(ctx, ex.status);
    struct engine *engine;
    assert_ok(ctx, engine_create_stepping(ar, 1, &engine));
    double worst = 0;
    for (int t = 0; t < config.num_tokens; t++) {
        if (t == 0)
            assert_ok(ctx, engine_begin(engine, &label, 1));
        else
            assert_ok(ctx, engine_step(engine, &codes[t - 1], t));
        worst = fmax(worst, relative_error(engine->logits, f32(logits) + t * config.vocab_size, (size_t)config.vocab_size));
    }
    print_message("576 tokens: step against parallel form, relative error %.2g\n", worst);
    assert_true(worst < GOLDEN_TOLERANCE);
    engine_free(engine);
    tensor_drop(logits);
    exec_clear(&ex);
    ar_free(ar);
    params_free(&table);
    assert_int_equal(ctx->memory.used[MEM_WEIGHTS] + ctx->memory.used[MEM_CACHE] + ctx->memory.used[MEM_ACTIVATIONS], 0);
    aim_context_free(ctx);
}

enum { PICTURES = 5, TOKENS = 16 };

static void generate(int threads, int batch, double cfg, aim_weights weights, int64_t first, int64_t count, int64_t *codes)
{
    static const int64_t labels[PICTURES] = {3, 1, 3, 9, 0};
    aim_context *ctx = golden_context(threads);
    aim_model *model = golden_model(ctx, "tiny-group", 1, weights);
    aim_generate_options o = aim_generate_defaults();
    o.batch = batch;
    o.cfg = cfg;
    o.seed = 42;
    o.first_index = first;
    o.codes_only = 1;
    assert_ok(ctx, aim_generate(model, labels + first, count, &o, codes + first * TOKENS, NULL));
    aim_model_free(model);
    aim_context_free(ctx);
}

/* The promise: a picture's tokens depend on neither batch, threads, nor what is painted beside it. */
static void same_tokens_for_any_batch_and_threads(void **state)
{
    (void)state;
    for (int guided = 0; guided < 2; guided++)
        for (aim_weights weights = AIM_WEIGHTS_F32; weights <= AIM_WEIGHTS_Q8; weights++) {
            double cfg = guided ? 2.5 : 1;
            int64_t reference[PICTURES * TOKENS], other[PICTURES * TOKENS];
            generate(1, 1, cfg, weights, 0, PICTURES, reference);
            for (int threads = 1; threads <= 3; threads++)
                for (int batch = 1; batch <= PICTURES; batch++) {
                    generate(threads, batch, cfg, weights, 0, PICTURES, other);
                    assert_memory_equal(reference, other, sizeof reference);
                }
            for (int i = 0; i < PICTURES; i++) generate(2, 1, cfg, weights, i, 1, other);
            assert_memory_equal(reference, other, sizeof reference);
            assert_memory_not_equal(reference, reference + 2 * TOKENS,
                                    TOKENS * sizeof reference[0]); /* same class, other index */
        }
}

static void *paint(void *codes)
{
    generate(2, 2, 2.5, AIM_WEIGHTS_F32, 0, PICTURES, codes);
    return NULL;
}

/* Contexts share nothing: two threads at work in two contexts give what one gives. */
static void contexts_in_threads(void **state)
{
    (void)state;
    int64_t reference[PICTURES * TOKENS], codes[2][PICTURES * TOKENS];
    paint(reference);
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) assert_int_equal(pthread_create(&threads[i], NULL, paint, codes[i]), 0);
    for (int i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
        assert_memory_equal(reference, codes[i], sizeof reference);
    }
}

/* The error against float32 that the documentation states; `least`: it is no float32 after all. */
static void check_rounded_weights(const char *folder, aim_weights weights, double least, double most)
{
    aim_context *ctx = golden_context(2);
    struct tensor_file file;
    golden_open(ctx, expected_name(folder), &file);
    aim_model *model = golden_model(ctx, folder, 0, weights);
    size_t count, pictures;
    int64_t *tokens = golden_i64(ctx, &file, "tokens", NULL), *labels = golden_i64(ctx, &file, "labels", &pictures);
    float *want = golden_f32(ctx, &file, "logits_pos0", &count);
    struct golden_logits got = {.values = mem_array(ctx, count, sizeof(float), MEM_MISC), .per_picture = count / pictures};
    double nll;
    assert_ok(ctx, aim_score(model, tokens, labels, (int64_t)pictures, &nll, golden_collect, &got));
    double error = relative_error(got.values, want, count);
    float *loss = golden_f32(ctx, &file, "loss_pos0", NULL);
    print_message("%s, %s weights: relative error %.2g, nll %.6f against %.6f\n", folder,
                  weights == AIM_WEIGHTS_Q8 ? "q8" : "bf16", error, nll, (double)loss[0]);
    assert_true(error > least && error < most);
    assert_true(fabs(nll - (double)loss[0]) < most);
    mem_free(loss);
    void *all[] = {tokens, labels, want, got.values};
    for (size_t i = 0; i < 4; i++) mem_free(all[i]);
    aim_model_free(model);
    tensor_file_close(&file);
    aim_context_free(ctx);
}

/* 8 bits of mantissa; 8 bits of the largest value of each output's weights. */
static void rounded_weights(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++) {
        check_rounded_weights(folders[i], AIM_WEIGHTS_BF16, 1e-5, 2e-2);
        check_rounded_weights(folders[i], AIM_WEIGHTS_Q8, 1e-4, 2e-2);
    }
}

/* Whatever allocation fails while a model is loaded and used, the call says so and nothing is lost. */
static void check_failing_allocations(aim_weights weights)
{
    aim_context *ctx = golden_context(1);
    int64_t before = ctx->memory.total, label = 2, codes[TOKENS];
    for (int64_t n = 0;; n++) {
        aim_model *model = NULL;
        aim_image image = {0};
        aim_model_options from = aim_model_defaults(data_path("tiny-group"));
        aim_generate_options o = aim_generate_defaults();
        from.weights = weights;
        ctx->memory.fail_after = n;
        aim_status status = aim_model_load(ctx, &from, &model);
        if (status == AIM_OK) status = aim_generate(model, &label, 1, &o, codes, &image);
        bool injected = ctx->memory.fail_after < 0;
        ctx->memory.fail_after = -1;
        aim_image_free(&image);
        aim_model_free(model);
        assert_int_equal(ctx->memory.total, before);
        if (status == AIM_OK) {
            print_message("%lld allocations, each of which may fail\n", (long long)n);
            assert_true(n > 100 && !injected);
            break;
        }
        assert_int_equal(status, AIM_ERR_MEMORY);
        n += n / 50; /* the later ones are alike: take a sample */
    }
    aim_context_free(ctx);
}

static void survives_failing_allocations(void **state)
{
    (void)state;
    check_failing_allocations(AIM_WEIGHTS_AUTO);
    check_failing_allocations(AIM_WEIGHTS_Q8);
}

/* Norms decide the position offset where they are clear (spec I-1). */
static void position_offset_from_weights(void **state)
{
    (void)state;
    enum { T = 16, D = 64 };
    static float rows[(T + 1) * D];
    const float initial = 0.02f, grown = 0.2f, decayed = 0.001f;
    for (int i = 0; i < (T + 1) * D; i++) rows[i] = i / D < T - 1 ? grown : initial;
    assert_int_equal(ar_guess_pos_offset(rows, T, D), 0);
    for (int i = 0; i < (T + 1) * D; i++) rows[i] = i / D < T - 1 ? grown : decayed;
    assert_int_equal(ar_guess_pos_offset(rows, T, D), 0);
    for (int i = 0; i < (T + 1) * D; i++) rows[i] = i / D > 0 && i / D < T ? grown : initial;
    assert_int_equal(ar_guess_pos_offset(rows, T, D), 1);
    for (int i = 0; i < (T + 1) * D; i++) rows[i] = initial;
    assert_int_equal(ar_guess_pos_offset(rows, T, D), -1);
    for (int i = 0; i < (T + 1) * D; i++) rows[i] = grown;
    assert_int_equal(ar_guess_pos_offset(rows, T, D), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(parallel_form),
        cmocka_unit_test(step_form_with_guidance),
        cmocka_unit_test(long_sequence),
        cmocka_unit_test(same_tokens_for_any_batch_and_threads),
        cmocka_unit_test(contexts_in_threads),
        cmocka_unit_test(rounded_weights),
        cmocka_unit_test(survives_failing_allocations),
        cmocka_unit_test(position_offset_from_weights),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
