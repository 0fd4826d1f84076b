/* Presets, initialisation, saving and loading, class names. */
#include "support.h"

#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "model/model.h"

/* The published counts: the paper's table, and the tensors of the official files (the tied head is not stored). */
static void sizes_of_presets(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int64_t tensors, parameters;
    } presets[] = {
        {"AiM-B", 271, 147622080}, {"AiM-L", 489, 349760000}, {"AiM-XL", 489, 763291392}, {"AiM-1B", 489, 1335944192}};
    aim_context ctx;
    context_init(&ctx, NULL);
    struct model_config config;
    for (size_t i = 0; i < sizeof presets / sizeof presets[0]; i++) {
        assert_ok(&ctx, config_preset(&ctx, presets[i].name, &config));
        struct params ar = {.ctx = &ctx, .prefix = AR_PREFIX}, vq = {.ctx = &ctx, .prefix = VQ_PREFIX};
        assert_ok(&ctx, ar_describe(&config.ar, &ar));
        assert_ok(&ctx, vq_describe(&config.vq, &vq));
        assert_int_equal(ar.count, presets[i].tensors);
        assert_int_equal(params_parameters(&ar), presets[i].parameters);
        assert_int_equal(vq.count, 344);
        assert_int_equal(params_parameters(&vq), 71883403);
        params_free(&ar);
        params_free(&vq);
    }
    assert_fails(&ctx, config_preset(&ctx, "AiM-S", &config), AIM_ERR_ARGUMENT, "AiM-XL");
    assert_int_equal(ctx.memory.total, 0);
}

/* Mean and deviation of a tensor, and its extremes. */
struct spread {
    double mean, deviation, least, most;
};

static struct spread spread_of(const struct params *table, const char *name)
{
    const struct tensor_entry *e = params_find(table, "%s", name)->entry;
    const float *x = e->data;
    size_t n = tensor_entry_elements(e);
    struct spread s = {.least = INFINITY, .most = -INFINITY};
    double squares = 0;
    for (size_t i = 0; i < n; i++) {
        s.mean += (double)x[i] / (double)n;
        squares += (double)x[i] * (double)x[i] / (double)n;
        s.least = fmin(s.least, (double)x[i]);
        s.most = fmax(s.most, (double)x[i]);
    }
    s.deviation = sqrt(squares - s.mean * s.mean);
    return s;
}

/* Spec B12, on the tiny preset: d_model 64, 4 layers. */
static void initialisation(void **state)
{
    (void)state;
    aim_context *ctx;
    aim_model *model;
    assert_ok(ctx, aim_context_create(NULL, &ctx));
    assert_ok(ctx, aim_model_init(ctx, "tiny", 1, &model));
    const struct params *t = &model->ar_table;
    struct spread words = spread_of(t, "backbone.embeddings.word_embeddings.weight");
    assert_true(fabs(words.mean) < 1e-3 && fabs(words.deviation - 0.02) < 5e-4);
    struct spread table = spread_of(t, "backbone.layers.2.scale_shift_table");
    assert_true(fabs(table.deviation - 0.125) < 0.03);
    struct spread in = spread_of(t, "backbone.layers.0.mixer.in_proj.weight");
    assert_true(in.least >= -0.125 && in.most <= 0.125 && fabs(in.deviation - 0.125 / sqrt(3)) < 1e-3);
    struct spread out = spread_of(t, "backbone.layers.0.mixer.out_proj.weight");
    assert_true(fabs(out.most - 1 / sqrt(128) / 2) < 1e-3);
    struct spread A = spread_of(t, "backbone.layers.1.mixer.A_log"), dt = spread_of(t, "backbone.layers.1.mixer.dt_bias");
    assert_true(A.least >= 0 && A.most <= log(16));
    assert_true(log1p(exp(dt.least)) > 0.9e-3 && log1p(exp(dt.most)) < 0.11); /* steps of 0.001 to 0.1 */
    struct spread final = spread_of(t, "backbone.final_layer.adaLN_modulation.1.weight");
    assert_true(final.least == 0 && final.most == 0);
    struct spread norm = spread_of(t, "backbone.norm_f.weight");
    assert_true(norm.least == 1 && norm.most == 1);

    int64_t codes[16], label = 3; /* at the start every code is about as likely: ln V and a small excess */
    for (int i = 0; i < 16; i++) codes[i] = i * 15;
    double nll;
    assert_ok(ctx, aim_score(model, codes, &label, 1, &nll, NULL, NULL));
    assert_true(fabs(nll - log(256)) < 0.1);
    aim_model_free(model);
    assert_int_equal(ctx->memory.used[MEM_WEIGHTS], 0);
    aim_context_free(ctx);
}

static void remove_model(aim_context *ctx, const char *folder)
{
    static const char *const names[] = {"model.safetensors", "config.json"};
    for (int i = 0; i < 2; i++) {
        char *path = file_join(ctx, folder, names[i]);
        unlink(path);
        mem_free(path);
    }
    rmdir(folder);
}

/* What is saved loads as the same tensors; names of classes and the position offset survive. */
static void saving_and_loading(void **state)
{
    (void)state;
    char folder[] = "/tmp/aim-model-XXXXXX";
    assert_non_null(mkdtemp(folder));
    aim_context *ctx;
    aim_model *first, *second;
    assert_ok(ctx, aim_context_create(NULL, &ctx));
    assert_ok(ctx, aim_model_init(ctx, "tiny", 5, &first));
    first->config.name_count = first->config.ar.num_classes;
    first->config.names = mem_zero(ctx, 10, sizeof(char *), MEM_MISC);
    first->config.names[3] = mem_string(ctx, "tabby, tabby cat", MEM_MISC);
    assert_ok(ctx, aim_model_save(first, folder));
    aim_model_options from = aim_model_defaults(folder);
    assert_ok(ctx, aim_model_load(ctx, &from, &second));
    const struct params *a[] = {&first->ar_table, &first->vq_table}, *b[] = {&second->ar_table, &second->vq_table};
    for (int t = 0; t < 2; t++) {
        assert_int_equal(a[t]->count, b[t]->count);
        for (size_t i = 0; i < a[t]->count; i++) {
            assert_string_equal(a[t]->items[i].name, b[t]->items[i].name);
            assert_int_equal(a[t]->items[i].entry->bytes, b[t]->items[i].entry->bytes);
            assert_memory_equal(a[t]->items[i].entry->data, b[t]->items[i].entry->data, b[t]->items[i].entry->bytes);
        }
    }
    aim_model_info info;
    aim_model_describe(second, &info);
    assert_int_equal(info.pos_offset, 0);
    assert_string_equal(info.pos_offset_from, "config");
    assert_int_equal(info.image_size, 64);
    assert_string_equal(aim_model_class_name(second, 3), "tabby, tabby cat");
    assert_null(aim_model_class_name(second, 4));
    assert_null(aim_model_class_name(second, 10));
    assert_int_equal(aim_model_find_class(second, "Tabby Cat"), 3);
    assert_int_equal(aim_model_find_class(second, "tabby"), 3);
    assert_int_equal(aim_model_find_class(second, "tab"), -1);
    assert_fails(ctx, aim_convert(second, 0, 0, AIM_WEIGHTS_Q8, "nowhere"), AIM_ERR_UNSUPPORTED, "8-bit");
    aim_model_free(first);
    aim_model_free(second);
    remove_model(ctx, folder);
    aim_context_free(ctx);
}

/* The official keys are written as the official code writes them, byte for byte. */
static void config_as_the_official_code_writes_it(void **state)
{
    (void)state;
    aim_context ctx;
    context_init(&ctx, NULL);
    char path[] = "/tmp/aim-config-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    struct model_config config;
    assert_ok(&ctx, config_preset(&ctx, "tiny", &config));
    config.pos_offset = -1; /* ours, like the tokenizer's sizes */
    config.has_vq = false;
    assert_ok(&ctx, config_write(&ctx, path, &config));
    struct file_map got, want;
    assert_ok(&ctx, file_map_open(&ctx, path, &got));
    assert_ok(&ctx, file_map_open(&ctx, data_path("tiny-group/config.json"), &want));
    assert_int_equal(got.size, want.size);
    assert_memory_equal(got.data, want.data, got.size);
    file_map_close(&got);
    file_map_close(&want);
    unlink(path);
}

static aim_status parse(aim_context *ctx, const char *text)
{
    struct model_config config;
    config_preset(ctx, "tiny", &config);
    aim_status status = config_parse(ctx, "c.json", text, strlen(text), &config);
    config_free(&config);
    return status;
}

static void configs_that_are_refused(void **state)
{
    (void)state;
    aim_context ctx;
    context_init(&ctx, NULL);
    assert_ok(&ctx, parse(&ctx, "{\"unknown\": [1, {}], \"d_model\": 64}"));
    assert_fails(&ctx, parse(&ctx, ""), AIM_ERR_FORMAT, "empty");
    assert_fails(&ctx, parse(&ctx, "{"), AIM_ERR_FORMAT, "line 1");
    assert_fails(&ctx, parse(&ctx, "[]"), AIM_ERR_FORMAT, "not a JSON object");
    assert_fails(&ctx, parse(&ctx, "{\"d_model\": 64, \"d_model\": 64}"), AIM_ERR_FORMAT, "duplicate");
    assert_fails(&ctx, parse(&ctx, "{\"d_model\": 128}"), AIM_ERR_FORMAT, "the tensors say 64");
    assert_fails(&ctx, parse(&ctx, "{\"d_model\": \"64\"}"), AIM_ERR_FORMAT, "whole number");
    assert_fails(&ctx, parse(&ctx, "{\"pos_offset\": 2}"), AIM_ERR_FORMAT, "0 or 1");
    assert_fails(&ctx, parse(&ctx, "{\"id2label\": {\"10\": \"x\"}}"), AIM_ERR_FORMAT, "no class of 0 to 9");
    assert_fails(&ctx, parse(&ctx, "{\"ssm_cfg\": {\"headdim\": 32}}"), AIM_ERR_UNSUPPORTED, "headdim");
    assert_fails(&ctx, parse(&ctx, "{\"ssm_cfg\": {\"layer\": \"Mamba1\"}}"), AIM_ERR_UNSUPPORTED, "Mamba2");
    assert_fails(&ctx, parse(&ctx, "{\"attn_layer_idx\": [3]}"), AIM_ERR_UNSUPPORTED, "attention");
    assert_fails(&ctx, parse(&ctx, "{\"tie_embeddings\": false}"), AIM_ERR_UNSUPPORTED, "untied");
    assert_int_equal(ctx.memory.total, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_of_presets),         cmocka_unit_test(initialisation),
        cmocka_unit_test(saving_and_loading),       cmocka_unit_test(config_as_the_official_code_writes_it),
        cmocka_unit_test(configs_that_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
