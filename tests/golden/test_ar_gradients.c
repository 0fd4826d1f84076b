/* The gradient of the golden loss with respect to every parameter of stage 2, through the tape. */
#include "golden/golden.h"

#include "tensor/tape.h"

/*
 * Each gradient against the float64 one, relative to its largest value. Sums over all positions of values that cancel
 * (biases, norms) keep float32's error relative to their terms, not to the sum: hence a floor of 1e-3 of the network's
 * largest gradient under which a tensor's own scale does not count.
 */
static double check(aim_context *ctx, const struct tensor_file *file, const char *name, const struct tensor *t, double floor)
{
    char key[128];
    snprintf(key, sizeof key, "grad." AR_PREFIX "%s", name);
    if (!tensor_file_find(file, key)) snprintf(key, sizeof key, "grad.%s", name);
    size_t count;
    float *want = golden_f32(ctx, file, key, &count);
    assert_int_equal(count, tensor_count(t));
    if (!t->grad) fail_msg("no gradient has arrived at %s", name);
    double worst = 0, scale = floor;
    for (size_t i = 0; i < count; i++) {
        worst = fmax(worst, fabs((double)f32(t->grad)[i] - (double)want[i]));
        scale = fmax(scale, fabs((double)want[i]));
    }
    mem_free(want);
    if (worst / scale > GOLDEN_TOLERANCE) print_message("%s: relative error %.2g\n", name, worst / scale);
    return worst / scale;
}

static double largest_gradient(aim_context *ctx, const struct tensor_file *file)
{
    double largest = 0;
    for (size_t e = 0; e < file->count; e++) {
        if (strncmp(file->entries[e].name, "grad.", 5) != 0) continue;
        size_t count;
        float *want = golden_f32(ctx, file, file->entries[e].name, &count);
        for (size_t i = 0; i < count; i++) largest = fmax(largest, fabs((double)want[i]));
        mem_free(want);
    }
    return largest;
}

static double check_layer(aim_context *ctx, const struct tensor_file *file, const struct ar_layer *l, int i, double floor)
{
    const struct {
        const char *name;
        const struct tensor *tensor;
    } rows[] = {
        {"norm.weight", l->norm},
        {"mixer.dt_bias", l->dt_bias},
        {"mixer.A_log", l->A_log},
        {"mixer.D", l->D},
        {"mixer.in_proj.weight", l->in_proj},
        {"mixer.conv1d.weight", l->conv_w},
        {"mixer.conv1d.bias", l->conv_b},
        {"mixer.norm.weight", l->mixer_norm},
        {"mixer.out_proj.weight", l->out_proj},
        {"scale_shift_table", l->table},
        {"adaLN_modulation.1.weight", l->adaln_w},
        {"adaLN_modulation.1.bias", l->adaln_b},
    };
    double worst = 0;
    for (size_t r = 0; r < sizeof rows / sizeof rows[0]; r++) {
        char name[96];
        snprintf(name, sizeof name, "backbone.layers.%d.%s", i, rows[r].name);
        if (rows[r].tensor) worst = fmax(worst, check(ctx, file, name, rows[r].tensor, floor));
    }
    return worst;
}

/* Forward, loss, backward; returns the loss. */
static float differentiate(aim_context *ctx, struct exec *ex, const struct ar *ar, const int32_t *labels, const int32_t *codes,
                           int64_t B)
{
    int64_t T = ar->config.num_tokens;
    struct tape tape;
    tape_start(&tape, ex);
    struct tensor *loss = ar_loss(ex, ar, labels, codes, B);
    assert_ok(ctx, ex->status);
    double sum = 0;
    for (int64_t i = 0; i < B * T; i++) sum += (double)f32(loss)[i];
    assert_ok(ctx, tape_backward(&tape, loss, 1.0f / (float)(B * T)));
    tensor_drop(loss);
    tape_stop(&tape);
    return (float)(sum / (double)(B * T));
}

static void gradients(const char *folder, const char *tier)
{
    aim_context *ctx;
    aim_context_options options = aim_context_defaults();
    options.threads = 2;
    options.cpu = tier;
    assert_ok(ctx, aim_context_create(&options, &ctx));
    char name[64];
    snprintf(name, sizeof name, "%s/expected_ar.safetensors", folder);
    struct tensor_file file;
    golden_open(ctx, name, &file);
    aim_model *model = golden_model(ctx, folder, 0, AIM_WEIGHTS_F32);
    struct ar *ar;
    assert_ok(ctx, ar_build_trainable(&model->config.ar, &model->ar_table, &ar));
    size_t B;
    int64_t T = ar->config.num_tokens, *tokens = golden_i64(ctx, &file, "tokens", NULL);
    int64_t *classes = golden_i64(ctx, &file, "labels", &B);
    int32_t *codes, *labels;
    assert_ok(ctx, model_narrow(ctx, tokens, (int64_t)B * T, ar->config.vocab_size, "code", &codes));
    assert_ok(ctx, model_narrow(ctx, classes, (int64_t)B, ar->config.num_classes, "class", &labels));
    struct exec ex;
    exec_init(&ex, ctx);
    float *want = golden_f32(ctx, &file, "loss_pos0", NULL), loss = differentiate(ctx, &ex, ar, labels, codes, (int64_t)B);
    assert_true(fabsf(loss - want[0]) < (float)GOLDEN_TOLERANCE * want[0]);

    double floor = 1e-3 * largest_gradient(ctx, &file), worst = 0;
    const struct {
        const char *name;
        const struct tensor *tensor;
    } shared[] = {
        {"backbone.embeddings.word_embeddings.weight", ar->words},
        {"backbone.embeddings.position_embeddings.weight", ar->positions},
        {"backbone.cls_embed.embedding_table.weight", ar->classes},
        {"backbone.adaln_group.1.weight", ar->group_w},
        {"backbone.adaln_group.1.bias", ar->group_b},
        {"backbone.final_layer.norm_final.weight", ar->norm_final},
        {"backbone.final_layer.adaLN_modulation.1.weight", ar->final_w},
        {"backbone.final_layer.adaLN_modulation.1.bias", ar->final_b},
        {"backbone.norm_f.weight", ar->norm_f},
    };
    for (size_t i = 0; i < sizeof shared / sizeof shared[0]; i++)
        if (shared[i].tensor) worst = fmax(worst, check(ctx, &file, shared[i].name, shared[i].tensor, floor));
    for (int i = 0; i < ar->config.n_layer; i++) worst = fmax(worst, check_layer(ctx, &file, &ar->layers[i], i, floor));
    print_message("%s, %s: worst relative error of a gradient %.2g\n", folder, aim_context_device(ctx), worst);
    assert_true(worst < GOLDEN_TOLERANCE);

    void *all[] = {tokens, classes, codes, labels, want};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) mem_free(all[i]);
    ar_free(ar);
    exec_clear(&ex);
    aim_model_free(model);
    tensor_file_close(&file);
    assert_int_equal(ctx->memory.used[MEM_WEIGHTS] + ctx->memory.used[MEM_ACTIVATIONS], 0);
    aim_context_free(ctx);
}

static void adaln_group(void **state)
{
    (void)state;
    gradients("tiny-group", NULL);
    gradients("tiny-group", "generic");
}

static void adaln_per_layer(void **state)
{
    (void)state;
    gradients("tiny-adaln", NULL);
    gradients("tiny-adaln", "generic");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(adaln_group), cmocka_unit_test(adaln_per_layer)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
