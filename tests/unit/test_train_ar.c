/* Training stage 2 through the library: memory that is planned and does not grow, blocks run again, where a run starts. */
#include "support.h"

#include <unistd.h>

#include "base/file.h"
#include "io/npy.h"
#include "tensor/tape.h"
#include "train/ar_start.h"

enum { PICTURES = 24, VOCABULARY = 64, CLASSES = 3 };

/* A folder with codes.npy and labels.npy, of pictures with this many tokens. */
struct bench {
    char folder[64], codes[96], labels[96], run[96], log[128];
    aim_context *ctx;
};

static void write_npy(aim_context *ctx, const char *path, int ndim, const int64_t *shape, const int64_t *values, size_t count)
{
    aim_array_file *file;
    assert_ok(ctx, aim_array_file_create(ctx, path, &file));
    assert_ok(ctx, aim_array_file_begin(file, NULL, AIM_I64, ndim, shape));
    assert_ok(ctx, aim_array_file_write(file, values, count * sizeof *values));
    assert_ok(ctx, aim_array_file_close(file, 1));
}

static void open_bench(struct bench *b, const aim_context_options *options, int tokens)
{
    static int64_t codes[PICTURES * 256], labels[PICTURES];
    strcpy(b->folder, "/tmp/aim-test-train-XXXXXX");
    assert_non_null(mkdtemp(b->folder));
    snprintf(b->codes, sizeof b->codes, "%s/codes.npy", b->folder);
    snprintf(b->labels, sizeof b->labels, "%s/labels.npy", b->folder);
    snprintf(b->run, sizeof b->run, "%s/run", b->folder);
    assert_int_equal(aim_context_create(options, &b->ctx), AIM_OK);
    for (int i = 0; i < PICTURES; i++) labels[i] = i % CLASSES;
    for (int i = 0; i < PICTURES * tokens; i++) codes[i] = (i * i + 5 * i) % VOCABULARY;
    write_npy(b->ctx, b->codes, 2, (const int64_t[]){PICTURES, tokens}, codes, (size_t)(PICTURES * tokens));
    write_npy(b->ctx, b->labels, 1, (const int64_t[]){PICTURES}, labels, PICTURES);
}

static void remove_folder(const char *path)
{
    char command[128];
    snprintf(command, sizeof command, "rm -r %s", path);
    assert_int_equal(system(command), 0);
}

static void close_bench(struct bench *b)
{
    int64_t left = b->ctx->memory.used[MEM_WEIGHTS] + b->ctx->memory.used[MEM_ACTIVATIONS];
    assert_int_equal(left, 0);
    aim_context_free(b->ctx);
    remove_folder(b->folder);
}

static aim_train_ar_options small(const struct bench *b)
{
    aim_train_ar_options o = aim_train_ar_defaults();
    o.train.run = b->run;
    o.train.preset = "tiny";
    o.train.batch = 2;
    o.train.lr = 1e-3;
    o.train.held_out = 0;
    o.train.eval_every = o.train.save_every = o.train.sample_every = 0;
    o.codes = b->codes;
    o.labels = b->labels;
    o.layers = 1;
    o.width = 32;
    return o;
}

/* --------------------------------------------------------------------------------------------------- memory */

struct watch {
    aim_context *ctx;
    int64_t at_100, at_1000;
};

static int on_progress(void *user, const char *what, int64_t done, int64_t total)
{
    struct watch *w = user;
    (void)total;
    if (strncmp(what, "training", 8) == 0 && w->ctx) {
        if (done == 100) w->at_100 = w->ctx->memory.total;
        if (done == 999) w->at_1000 = w->ctx->memory.total;
    }
    return 0;
}

static void thousand_steps(void **state)
{
    (void)state;
    struct bench b;
    struct watch w = {0};
    aim_context_options options = aim_context_defaults();
    options.progress = on_progress;
    options.user = &w;
    open_bench(&b, &options, 16);
    w.ctx = b.ctx;
    aim_train_ar_options o = small(&b);
    o.train.steps = 1000;
    o.train.save_every = 250;
    aim_train_report report;
    assert_ok(b.ctx, aim_train_ar(b.ctx, &o, &report));
    assert_true(w.at_100 > 0);
    assert_int_equal(w.at_1000, w.at_100);
    assert_true(report.loss < 1.5); /* ln 64 = 4.16: it learns the codes by heart */
    close_bench(&b);
}

/* The peak of a real run lies within 10% of what the dry run says; returns that. */
static int64_t check_plan(int checkpointing, int accumulate)
{
    struct bench b;
    open_bench(&b, NULL, 256);
    aim_train_ar_options o = small(&b);
    o.train.steps = 2;
    o.train.batch = 8;
    o.train.accumulate = accumulate;
    o.train.checkpointing = checkpointing;
    o.layers = 6;
    o.width = 128;
    aim_train_report plan, report;
    o.train.dry_run = 1;
    assert_ok(b.ctx, aim_train_ar(b.ctx, &o, &plan));
    assert_true(plan.total < (int64_t)1 << 30);
    b.ctx->memory.peak = b.ctx->memory.total;
    int64_t before = b.ctx->memory.total;
    o.train.dry_run = 0;
    assert_ok(b.ctx, aim_train_ar(b.ctx, &o, &report));
    double real = (double)(b.ctx->memory.peak - before);
    print_message("checkpointing %d, parts %d: planned %.2f MB, taken %.2f MB\n", checkpointing, accumulate,
                  (double)plan.total / 1e6, real / 1e6);
    assert_true(fabs(real - (double)plan.total) < 0.1 * (double)plan.total);
    close_bench(&b);
    return plan.total;
}

static void planned(void **state)
{
    (void)state;
    int64_t plain = check_plan(0, 1);
    assert_true(check_plan(1, 1) < plain);
    assert_true(check_plan(0, 4) < plain);
}

/* Whichever allocation fails: an error with a message, nothing leaked, and a run that can still go on. */
static void memory_runs_out(void **state)
{
    (void)state;
    struct bench b;
    open_bench(&b, NULL, 16);
    aim_train_ar_options o = small(&b);
    o.train.steps = 2;
    o.train.ema = 0.5;
    o.train.held_out = 0.2;
    o.train.checkpointing = 1;
    o.train.save_every = o.train.eval_every = 1;
    aim_status status = AIM_ERR_MEMORY;
    int64_t before = b.ctx->memory.total, failures = 0, advised = 0;
    for (int64_t n = 0; status != AIM_OK; n += n < 60 ? 1 : 7) {
        b.ctx->memory.fail_after = n;
        status = aim_train_ar(b.ctx, &o, NULL);
        b.ctx->memory.fail_after = -1;
        assert_int_equal(b.ctx->memory.total, before);
        if (status != AIM_OK) assert_fails(b.ctx, status, AIM_ERR_MEMORY, "memory");
        failures += status != AIM_OK;
        advised += status != AIM_OK && strstr(aim_last_error(b.ctx), "smaller --batch, a larger --accum, or --checkpointing");
        o.train.resume = file_exists(b.run) && file_exists(strcat(strcpy(b.log, b.run), "/options.json"));
        if (!o.train.resume && status != AIM_OK && file_exists(b.run)) remove_folder(b.run);
    }
    print_message("%d allocations were refused\n", (int)failures);
    assert_true(failures > 60 && advised > 40); /* the rest before anything is built */
    close_bench(&b);
}

/* --------------------------------------------------------------------------------------------- checkpointing */

/* All gradients of one batch, one after the other; the caller frees them. */
static float *gradients(aim_context *ctx, const aim_model *m, bool checkpointing, size_t *count)
{
    struct exec ex;
    struct tape tape;
    struct ar *ar;
    int64_t T = m->config.ar.num_tokens;
    int32_t codes[4 * 16], labels[4] = {0, 1, 2, 3};
    for (int i = 0; i < 4 * 16; i++) codes[i] = (i * 37) % m->config.ar.vocab_size;
    exec_init(&ex, ctx);
    assert_ok(ctx, ar_build_trainable(&m->config.ar, &m->ar_table, &ar));
    ar->checkpointing = checkpointing;
    tape_start(&tape, &ex);
    struct tensor *loss = ar_loss(&ex, ar, labels, codes, 4);
    assert_ok(ctx, tape_backward(&tape, loss, 1.0f / (float)(4 * T)));
    tape_stop(&tape);
    tensor_drop(loss);
    *count = 0;
    float *all = mem_new(ctx, (size_t)params_parameters(&m->ar_table) * sizeof *all, MEM_MISC);
    for (size_t i = 0; i < m->ar_table.count; i++) {
        size_t n = (size_t)tensor_count(ar->rows[i]);
        memcpy(all + *count, ar->rows[i]->grad->data, n * sizeof *all);
        *count += n;
    }
    ar_free(ar);
    exec_clear(&ex);
    return all;
}

static void blocks_again(void **state)
{
    (void)state;
    static const char *const folders[] = {"tiny-group", "tiny-adaln"};
    for (int f = 0; f < 2; f++) {
        aim_context *ctx;
        aim_model *m;
        assert_int_equal(aim_context_create(NULL, &ctx), AIM_OK);
        aim_model_options from = aim_model_defaults(data_path(folders[f]));
        assert_ok(ctx, aim_model_load(ctx, &from, &m));
        size_t n, again;
        float *plain = gradients(ctx, m, false, &n), *checkpointed = gradients(ctx, m, true, &again);
        assert_int_equal(n, again);
        assert_memory_equal(plain, checkpointed, n * sizeof *plain);
        mem_free(plain);
        mem_free(checkpointed);
        aim_model_free(m);
        aim_context_free(ctx);
    }
}

/* --------------------------------------------------------------------------------------------- where it starts */

/* A polynomial of degree 1 comes out exactly inside the grid; an equal grid is left alone. */
static void positions(void **state)
{
    (void)state;
    enum { FROM = 8, TO = 16 };
    float in[FROM * FROM * 2], out[TO * TO * 2], same[FROM * FROM * 2];
    for (int y = 0; y < FROM; y++)
        for (int x = 0; x < FROM; x++) {
            in[(y * FROM + x) * 2] = (float)(3 * x - 2 * y);
            in[(y * FROM + x) * 2 + 1] = (float)(x * y % 5);
        }
    ar_resize_positions(in, FROM, 2, TO, out);
    for (int y = 4; y < TO - 4; y++)
        for (int x = 4; x < TO - 4; x++) {
            double sx = (x + 0.5) * FROM / TO - 0.5, sy = (y + 0.5) * FROM / TO - 0.5;
            assert_true(fabs((double)out[(y * TO + x) * 2] - (3 * sx - 2 * sy)) < 1e-5);
        }
    ar_resize_positions(in, FROM, 2, FROM, same);
    assert_memory_equal(in, same, sizeof in);
}

static const float *row(const aim_model *m, const char *name, int64_t index)
{
    const struct tensor_entry *e = params_find(&m->ar_table, "%s", name)->entry;
    return (const float *)(const void *)e->data + index * m->config.ar.d_model;
}

/* Two old classes in another order and a new one; a grid twice as wide. */
static void fine_tuning(void **state)
{
    (void)state;
    static const char *const classes = "backbone.cls_embed.embedding_table.weight";
    static const char *const places = "backbone.embeddings.position_embeddings.weight";
    aim_context *ctx;
    aim_model *source, *fresh, *m;
    assert_int_equal(aim_context_create(NULL, &ctx), AIM_OK);
    assert_ok(ctx, aim_model_init(ctx, "tiny", 5, &source));
    assert_ok(ctx, aim_model_init(ctx, "tiny", 6, &fresh)); /* what the seed of the run draws */
    struct model_config *c = &source->config;
    c->names = mem_zero(ctx, 10, sizeof *c->names, MEM_MISC);
    c->name_count = 10;
    c->names[3] = mem_string(ctx, "heron", MEM_MISC);
    c->names[7] = mem_string(ctx, "otter", MEM_MISC);
    char *names[] = {"Otter", "newt", "heron"};
    struct ar_data data = {.ctx = ctx, .count = 1, .tokens = 64, .class_count = 3, .names = names, .vocabulary = 256};
    aim_train_ar_options o = aim_train_ar_defaults();
    o.train.init = "source";
    o.train.seed = 6;
    assert_ok(ctx, ar_start_configure(ctx, &o, &data, source, &m));
    assert_ok(ctx, ar_start_weights(m, &o, source));
    assert_int_equal(m->config.ar.num_classes, 3);
    assert_string_equal(aim_model_class_name(m, 1), "newt");
    size_t bytes = (size_t)m->config.ar.d_model * sizeof(float);
    assert_memory_equal(row(m, classes, 0), row(source, classes, 7), bytes);
    assert_memory_equal(row(m, classes, 2), row(source, classes, 3), bytes);
    assert_memory_equal(row(m, classes, 3), row(source, classes, 10), bytes); /* null */
    assert_memory_equal(row(m, classes, 1), row(fresh, classes, 1), bytes);   /* N(0, 0.02²), drawn anew */
    assert_memory_equal(row(m, "backbone.norm_f.weight", 0), row(source, "backbone.norm_f.weight", 0), bytes);
    float resized[64 * 64];
    ar_resize_positions(row(source, places, 0), 4, 64, 8, resized);
    assert_memory_equal(row(m, places, 0), resized, sizeof resized);
    data.vocabulary = 512;
    aim_model_free(m);
    assert_fails(ctx, ar_start_configure(ctx, &o, &data, source, &m), AIM_ERR_ARGUMENT, "vocabulary");
    aim_model_free(m);
    aim_model_free(source);
    aim_model_free(fresh);
    aim_context_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(thousand_steps),  cmocka_unit_test(planned),
                                       cmocka_unit_test(memory_runs_out), cmocka_unit_test(blocks_again),
                                       cmocka_unit_test(positions),       cmocka_unit_test(fine_tuning)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
