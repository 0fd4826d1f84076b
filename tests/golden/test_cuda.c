/* Models on the GPU: golden logits, the tokens that the CPU paints, golden codes and pictures. */
#include "network.h"

static void check_logits(aim_context *ctx, const char *folder, aim_weights weights, double tolerance)
{
    struct tensor_file file;
    char name[64];
    snprintf(name, sizeof name, "%s/expected_ar.safetensors", folder);
    golden_open(ctx, name, &file);
    aim_model *model = golden_model(ctx, folder, 0, weights);
    size_t count, pictures;
    int64_t *tokens = golden_i64(ctx, &file, "tokens", NULL), *labels = golden_i64(ctx, &file, "labels", &pictures);
    float *want = golden_f32(ctx, &file, "logits_pos0", &count);
    struct golden_logits got = {.values = mem_array(ctx, count, sizeof(float), MEM_MISC), .per_picture = count / pictures};
    double nll;
    assert_ok(ctx, aim_score(model, tokens, labels, (int64_t)pictures, &nll, golden_collect, &got));
    double error = relative_error(got.values, want, count);
    print_message("%s: relative error %.2g\n", folder, error);
    assert_true(error < tolerance);
    void *all[] = {tokens, labels, want, got.values};
    for (size_t i = 0; i < 4; i++) mem_free(all[i]);
    aim_model_free(model);
    tensor_file_close(&file);
}

static void golden_logits(void **state)
{
    (void)state;
    aim_context *ctx = gpu_context();
    if (!ctx) skip();
    static const char *const folders[] = {"tiny-group", "tiny-adaln"};
    for (int f = 0; f < 2; f++) {
        check_logits(ctx, folders[f], AIM_WEIGHTS_F32, GOLDEN_TOLERANCE);
        check_logits(ctx, folders[f], AIM_WEIGHTS_BF16, 2e-2);
        check_logits(ctx, folders[f], AIM_WEIGHTS_Q8, 2e-2);
    }
    aim_context_free(ctx);
}

/* --------------------------------------------------------------------------------------------- what is painted */

/* A network of odd sizes: widths that fill no tile, more tokens than one chunk of the recurrence. */
static const struct ar_config odd = {.d_model = 160,
                                     .n_layer = 3,
                                     .vocab_size = 500,
                                     .num_classes = 3,
                                     .num_tokens = 300,
                                     .adaln_group = true,
                                     .num_groups = 2,
                                     .d_state = 36};
/* One whose rows are as long as published ones. */
static const struct ar_config wide = {.d_model = 1024,
                                      .n_layer = 2,
                                      .vocab_size = 16384,
                                      .num_classes = 3,
                                      .num_tokens = 40,
                                      .adaln_group = false,
                                      .num_groups = 1,
                                      .d_state = 128};

/* Pictures at once: streams that are no multiple of anything, and as many as large batches have. */
enum { MOST = 9, LARGE = 40 };

static aim_status go_on(void *user, int64_t tokens)
{
    int64_t *last = user;
    assert_true(tokens > *last);
    *last = tokens;
    return AIM_OK;
}

static void paint(const struct network *n, int64_t pictures, struct sampling how, bool op_by_op, int32_t *codes)
{
    int32_t labels[LARGE];
    for (int i = 0; i < LARGE; i++) labels[i] = i * i % 7 % 3;
    aim_context *ctx = n->ar->ctx;
    struct engine *engine;
    int64_t told = 0, streams = how.cfg != 1 ? 2 * pictures : pictures;
    assert_ok(ctx, (op_by_op ? engine_create_stepping : engine_create)(n->ar, streams, &engine));
    struct engine_job job = {.pictures = pictures,
                             .labels = labels,
                             .how = how,
                             .seed = 42,
                             .first_index = 5,
                             .codes = codes,
                             .progress = go_on,
                             .user = &told};
    assert_ok(ctx, engine_paint(engine, &job));
    assert_int_equal(told, n->ar->config.num_tokens);
    engine_free(engine);
}

static const struct sampling ways[] = {{.cfg = 2.5, .temperature = 1, .top_p = 1},
                                       {.cfg = 1, .temperature = 0.9, .top_p = 0.9137, .top_k = 50}};
enum { WAYS = sizeof ways / sizeof ways[0] };

/* Float32: the graph, and the ops one by one. What the kernel for few streams paints is checked in test_cuda_paint.c. */
static void check_painting(aim_context *ctx, const struct ar_config *config)
{
    static const int64_t batches[] = {1, 2, 3, 4, MOST};
    aim_context *cpu = golden_context(2);
    struct network here, there;
    network_open(cpu, config, AIM_WEIGHTS_F32, &here);
    network_open(ctx, config, AIM_WEIGHTS_F32, &there);
    size_t count = (size_t)(MOST * config->num_tokens);
    int32_t *want = mem_array(cpu, count, sizeof *want, MEM_MISC), *got = mem_array(cpu, count, sizeof *got, MEM_MISC);
    for (int w = 0; w < WAYS; w++) {
        paint(&here, MOST, ways[w], false, want);
        for (size_t b = 0; b < sizeof batches / sizeof batches[0]; b++)
            for (int op_by_op = 0; op_by_op < 2; op_by_op++) {
                paint(&there, batches[b], ways[w], op_by_op, got);
                for (int64_t i = 0; i < batches[b] * config->num_tokens; i++)
                    if (got[i] != want[i])
                        fail_msg("d %d, %lld pictures, cfg %g%s: picture %lld has another token %lld: %d, not %d",
                                 config->d_model, (long long)batches[b], ways[w].cfg, op_by_op ? ", op by op" : "",
                                 (long long)(i / config->num_tokens), (long long)(i % config->num_tokens), got[i], want[i]);
            }
    }
    mem_free(want);
    mem_free(got);
    network_close(&here);
    network_close(&there);
    aim_context_free(cpu);
}

static void paints_what_the_cpu_paints(void **state)
{
    (void)state;
    aim_context *ctx = gpu_context();
    if (!ctx) skip();
    check_painting(ctx, &odd);
    check_painting(ctx, &wide);
    aim_context_free(ctx);
}

/* The first tokens of most pictures are the CPU's. */
static void check_rounded_painting(aim_context *ctx, aim_weights weights)
{
    aim_context *cpu = golden_context(2);
    struct network here, there;
    network_open(cpu, &wide, weights, &here);
    network_open(ctx, &wide, weights, &there);
    enum { T = 40, START = 4 };
    static const int64_t batches[] = {4, MOST, LARGE};
    int32_t want[LARGE * T], got[LARGE * T];
    paint(&here, LARGE, ways[0], false, want);
    for (size_t b = 0; b < sizeof batches / sizeof batches[0]; b++) {
        int64_t same = 0, batch = batches[b];
        paint(&there, batch, ways[0], false, got);
        for (int64_t i = 0; i < batch; i++)
            for (int t = 0; t < START; t++) same += got[i * T + t] == want[i * T + t];
        print_message("%s, %lld pictures: %lld of the first %lld tokens are the CPU's\n",
                      weights == AIM_WEIGHTS_Q8 ? "q8" : "bf16", (long long)batch, (long long)same, (long long)(batch * START));
        assert_true(2 * same > batch * START);
    }
    network_close(&here);
    network_close(&there);
    aim_context_free(cpu);
}

/*
 * bf16 on the GPU rounds the products' inputs too, and so does q8 where there are many, so that a token now and then differs
 * from the CPU's, and everything after it. What agrees must agree for long.
 */
static void paints_rounded(void **state)
{
    (void)state;
    aim_context *ctx = gpu_context();
    if (!ctx) skip();
    check_rounded_painting(ctx, AIM_WEIGHTS_BF16);
    check_rounded_painting(ctx, AIM_WEIGHTS_Q8);
    aim_context_free(ctx);
}

/* aim_generate as a whole: batches that are not full, other pictures beside. */
static void generates_what_the_cpu_generates(void **state)
{
    (void)state;
    aim_context *ctx[2] = {golden_context(2), gpu_context()};
    if (!ctx[1]) {
        aim_context_free(ctx[0]);
        skip();
    }
    enum { COUNT = 10, T = 16 };
    static const int64_t labels[COUNT] = {3, 1, 3, 9, 0, 2, 7, 7, 10, 5};
    static const int batches[] = {1, 9};
    int64_t codes[2][COUNT * T];
    for (int b = 0; b < 2; b++) {
        for (int side = 0; side < 2; side++) {
            aim_model *model = golden_model(ctx[side], "tiny-group", 1, AIM_WEIGHTS_F32);
            aim_generate_options o = aim_generate_defaults();
            o.batch = batches[b];
            o.seed = 3;
            o.codes_only = 1;
            assert_ok(ctx[side], aim_generate(model, labels, COUNT, &o, codes[side], NULL));
            aim_model_free(model);
        }
        assert_memory_equal(codes[0], codes[1], sizeof codes[0]);
    }
    aim_context_free(ctx[0]);
    aim_context_free(ctx[1]);
}

/* Pictures of one batch beside the tokens of the next: the CPU's, and the same ones again from what is kept. */
static void decodes_beside(void **state)
{
    (void)state;
    aim_context *ctx[2] = {golden_context(2), gpu_context()};
    if (!ctx[1]) {
        aim_context_free(ctx[0]);
        skip();
    }
    enum { COUNT = 20, T = 16, RUNS = 3, VALUES = 3 * 64 * 64 };
    int64_t labels[COUNT], codes[RUNS][COUNT * T];
    aim_image images[RUNS][COUNT] = {{{0}}};
    for (int i = 0; i < COUNT; i++) labels[i] = i % 7;
    aim_model *model[2];
    for (int side = 0; side < 2; side++) model[side] = golden_model(ctx[side], "tiny-group", 1, AIM_WEIGHTS_F32);
    for (int run = 0; run < RUNS; run++) {
        aim_generate_options o = aim_generate_defaults();
        o.batch = 6;
        o.seed = 3;
        assert_ok(ctx[run > 0], aim_generate(model[run > 0], labels, COUNT, &o, codes[run], images[run]));
        assert_memory_equal(codes[run], codes[0], sizeof codes[0]);
    }
    for (int i = 0; i < COUNT; i++) {
        assert_memory_equal(images[1][i].rgb, images[2][i].rgb, VALUES);
        for (int v = 0; v < VALUES; v++) assert_true(abs(images[1][i].rgb[v] - images[0][i].rgb[v]) <= 1);
        for (int run = 0; run < RUNS; run++) aim_image_free(&images[run][i]);
    }
    for (int side = 0; side < 2; side++) {
        aim_model_free(model[side]);
        aim_context_free(ctx[side]);
    }
}

/* ------------------------------------------------------------------------------------------------ the tokenizer */

static double picture_error(aim_context *ctx, aim_weights weights, const int64_t *codes, const float *want, size_t count)
{
    aim_model *model = golden_model(ctx, "tiny-group", 1, weights);
    float *pixels = mem_array(ctx, count, sizeof *pixels, MEM_MISC);
    assert_non_null(pixels);
    assert_ok(ctx, aim_decode(model, codes, 1, 4, 4, pixels));
    assert_false(ctx->backend->bf16);
    double error = relative_error(pixels, want, count);
    mem_free(pixels);
    aim_model_free(model);
    return error;
}

/* Pictures in float32, and in bf16 where the matrices are; codes always in float32. */
static void encodes_and_decodes(void **state)
{
    (void)state;
    aim_context *ctx = gpu_context();
    if (!ctx) skip();
    struct tensor_file file;
    golden_open(ctx, "tiny-group/expected_vq.safetensors", &file);
    size_t count;
    float *image = golden_f32(ctx, &file, "image", NULL), *want = golden_f32(ctx, &file, "reconstruction", &count);
    int64_t *codes = golden_i64(ctx, &file, "codes", NULL), got[16];
    aim_model *model = golden_model(ctx, "tiny-group", 1, AIM_WEIGHTS_BF16);
    assert_ok(ctx, aim_encode(model, image, 1, 64, 64, got));
    assert_memory_equal(got, codes, sizeof got);
    aim_model_free(model);
    double exact = picture_error(ctx, AIM_WEIGHTS_F32, codes, want, count);
    double as_is = picture_error(ctx, AIM_WEIGHTS_AUTO, codes, want, count);
    double rounded = picture_error(ctx, AIM_WEIGHTS_BF16, codes, want, count);
    print_message("reconstruction: relative error %.2g, in bf16 %.2g\n", exact, rounded);
    assert_true(exact < GOLDEN_TOLERANCE && as_is < GOLDEN_TOLERANCE);
    /* some 60 results after one another are rounded to 2^-9 each */
    assert_true(rounded > GOLDEN_TOLERANCE && rounded < 5e-2);
    void *all[] = {image, want, codes};
    for (size_t i = 0; i < 3; i++) mem_free(all[i]);
    tensor_file_close(&file);
    aim_context_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_logits),  cmocka_unit_test(paints_what_the_cpu_paints),
        cmocka_unit_test(paints_rounded), cmocka_unit_test(generates_what_the_cpu_generates),
        cmocka_unit_test(decodes_beside), cmocka_unit_test(encodes_and_decodes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
