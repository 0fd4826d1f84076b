/* aim_generate on a device: pictures decoded beside, what is kept between calls, stops, failures on either side. */
#include "support.h"

#include <pthread.h>

#include "model/engine.h"
#include "model/model.h"

/* ---------------------------------------------------------------------------------- a device of the CPU's kernels */

/* What happens to a fake device and its twin. Threads share it: atomic where both write. */
static struct {
    pthread_t caller;
    int64_t takes, elsewhere; /* allocations; downloads by another thread than the caller's */
    int64_t fail_after;       /* allocations left before one fails; negative: never */
    int64_t silus;            /* calls of an op that nothing but new classes needs */
    int64_t convolutions;     /* calls left before one fails; negative: never */
    int64_t available;
    aim_status (*silu)(struct backend *be, const struct tensor *x, struct tensor *y);
    aim_status (*conv2d)(struct backend *be, const struct tensor *x, const struct tensor *w, const struct tensor *bias,
                         const struct conv2d *how, struct tensor *y);
} device;

static struct device_memory *account; /* the first backend's */

static void *device_take(struct backend *be, size_t bytes, enum memory_tag tag)
{
    (void)tag;
    __atomic_add_fetch(&device.takes, 1, __ATOMIC_RELAXED);
    if (__atomic_load_n(&device.fail_after, __ATOMIC_RELAXED) >= 0 &&
        __atomic_fetch_sub(&device.fail_after, 1, __ATOMIC_RELAXED) == 0) {
        aim_fail(be->ctx, AIM_ERR_MEMORY, "the device is out of memory: %.1f MB more were needed", (double)bytes / 1e6);
        return NULL;
    }
    __atomic_add_fetch(&account->used, (int64_t)bytes, __ATOMIC_RELAXED);
    return aligned_alloc(64, (bytes + 64) / 64 * 64);
}

static void device_give(struct backend *be, void *data, size_t bytes)
{
    (void)be;
    __atomic_add_fetch(&account->used, -(int64_t)bytes, __ATOMIC_RELAXED);
    free(data);
}

static aim_status device_download(struct backend *be, void *host, const void *from, size_t bytes)
{
    (void)be;
    if (!pthread_equal(pthread_self(), device.caller)) __atomic_add_fetch(&device.elsewhere, 1, __ATOMIC_RELAXED);
    memcpy(host, from, bytes);
    return AIM_OK;
}

static int64_t device_available(struct backend *be)
{
    (void)be;
    return device.available - __atomic_load_n(&account->used, __ATOMIC_RELAXED);
}

static aim_status device_silu(struct backend *be, const struct tensor *x, struct tensor *y)
{
    device.silus++;
    return device.silu(be, x, y);
}

static aim_status device_conv2d(struct backend *be, const struct tensor *x, const struct tensor *w, const struct tensor *bias,
                                const struct conv2d *how, struct tensor *y)
{
    if (device.convolutions >= 0 && device.convolutions-- == 0)
        return aim_fail(be->ctx, AIM_ERR_INTERNAL, "the device stumbled");
    return device.conv2d(be, x, w, bias, how, y);
}

static void make_device(struct backend *be)
{
    struct device_memory *m = &be->memory;
    m->host = false;
    m->take = device_take;
    m->give = device_give;
    m->download = device_download;
    m->available = device_available;
    device.conv2d = be->op.conv2d;
    be->op.conv2d = device_conv2d;
}

static aim_status device_twin(struct backend *be, aim_context *worker, struct backend **out)
{
    aim_context_options o = aim_context_defaults();
    (void)be;
    TRY(backend_create(worker, &o, out));
    make_device(*out);
    return AIM_OK;
}

enum kind { HOST, DEVICE, DEVICE_WITH_TWIN };

/* ------------------------------------------------------------------------------------------------------ the bench */

enum { COUNT = 11, TOKENS = 16, SIDE = 64 };
static const int64_t labels[COUNT] = {3, 1, 3, 9, 0, 2, 7, 7, 10, 5, 1};

/* A model, and what a call handed out. */
struct bench {
    aim_context *ctx;
    aim_model *model;
    int64_t codes[COUNT * TOKENS];
    uint8_t pictures[COUNT][3 * SIDE * SIDE];
    int64_t given, told;           /* pictures; calls of the progress callback */
    int64_t done, done_at[COUNT];  /* of the progress: now, and when each picture came */
    int64_t stop_told, stop_given; /* where a callback asks to stop; negative: nowhere */
};

static int on_progress(void *user, const char *what, int64_t done, int64_t total)
{
    struct bench *b = user;
    if (strcmp(what, "painting") != 0) return 0;
    assert_true(pthread_equal(pthread_self(), device.caller) && done >= b->done && done <= total);
    b->done = done;
    return b->told++ == b->stop_told;
}

static int on_picture(void *user, int64_t index, int64_t label, const int64_t *codes, const aim_image *image)
{
    struct bench *b = user;
    assert_true(pthread_equal(pthread_self(), device.caller));
    assert_int_equal(index, b->given);
    assert_int_equal(label, labels[index]);
    assert_true(image->width == SIDE && image->height == SIDE);
    memcpy(b->codes + index * TOKENS, codes, TOKENS * sizeof *codes);
    memcpy(b->pictures[index], image->rgb, sizeof b->pictures[index]);
    b->done_at[index] = b->done;
    return b->given++ == b->stop_given;
}

static void open_bench(struct bench *b, enum kind kind)
{
    aim_context_options o = aim_context_defaults();
    *b = (struct bench){.stop_told = -1, .stop_given = -1};
    o.threads = 1;
    o.progress = on_progress;
    o.user = b;
    assert_ok(b->ctx, aim_context_create(&o, &b->ctx));
    struct backend *be = b->ctx->backend;
    memset(&device, 0, sizeof device);
    device.caller = pthread_self();
    device.fail_after = device.convolutions = -1;
    device.available = (int64_t)1 << 40;
    account = &be->memory;
    device.silu = be->op.silu;
    be->op.silu = device_silu;
    if (kind != HOST) make_device(be);
    if (kind == DEVICE_WITH_TWIN) be->twin = device_twin;
    assert_ok(b->ctx, aim_model_init(b->ctx, "tiny", 3, &b->model));
}

static void close_bench(struct bench *b)
{
    aim_model_free(b->model);
    assert_int_equal(b->ctx->backend->memory.used, 0);
    aim_context_free(b->ctx);
}

static aim_status generate(struct bench *b, int64_t count, int batch)
{
    aim_generate_options o = aim_generate_defaults();
    o.seed = 42;
    o.batch = batch;
    o.cfg = 2.5;
    o.picture = on_picture;
    o.user = b;
    b->given = b->told = b->done = 0;
    memset(b->pictures, 0, sizeof b->pictures);
    return aim_generate(b->model, labels, count, &o, NULL, NULL);
}

/* The first `count` pictures of a are those of b. */
static void expect_same(const struct bench *a, const struct bench *b, int64_t count)
{
    assert_memory_equal(a->codes, b->codes, (size_t)(count * TOKENS) * sizeof *a->codes);
    assert_memory_equal(a->pictures, b->pictures, (size_t)count * sizeof a->pictures[0]);
}

static struct bench reference; /* what the CPU paints, one picture at a time */

static int paint_reference(void **state)
{
    (void)state;
    open_bench(&reference, HOST);
    assert_ok(reference.ctx, generate(&reference, COUNT, 1));
    close_bench(&reference);
    return 0;
}

/* ------------------------------------------------------------------------------------------------------ the tests */

static void same_pictures_beside(void **state)
{
    (void)state;
    for (enum kind kind = HOST; kind <= DEVICE_WITH_TWIN; kind++)
        for (int batch = 1; batch <= COUNT; batch += batch < 5 ? 1 : 3) {
            struct bench b;
            open_bench(&b, kind);
            assert_ok(b.ctx, generate(&b, COUNT, batch));
            assert_int_equal(b.given, COUNT);
            assert_int_equal(b.done, COUNT * (TOKENS + TOKENS / 2));
            expect_same(&b, &reference, COUNT);
            assert_true((device.elsewhere > 0) == (kind == DEVICE_WITH_TWIN));
            close_bench(&b);
        }
}

/* Every batch is handed out before the next one but one is painted; without a twin before the next one is. */
static void handed_out_on_the_way(void **state)
{
    (void)state;
    enum { BATCH = 2, UNITS = TOKENS + TOKENS / 2 };
    for (enum kind kind = HOST; kind <= DEVICE_WITH_TWIN; kind++) {
        struct bench b;
        open_bench(&b, kind);
        assert_ok(b.ctx, generate(&b, COUNT, BATCH));
        for (int64_t i = 0; i < COUNT; i++) {
            int64_t painted = i / BATCH * BATCH + (kind == DEVICE_WITH_TWIN ? 2 * BATCH : BATCH);
            assert_true(b.done_at[i] <= painted * TOKENS + i * (UNITS - TOKENS));
        }
        close_bench(&b);
    }
}

/* A second call finds engine, classes and buffers; the engine grows, and does not shrink. */
static void kept_between_calls(void **state)
{
    (void)state;
    for (enum kind kind = DEVICE; kind <= DEVICE_WITH_TWIN; kind++) {
        struct bench b;
        open_bench(&b, kind);
        assert_ok(b.ctx, generate(&b, 4, 4));
        const struct engine *first = b.model->engine;
        int64_t takes = device.takes, silus = device.silus;
        assert_int_equal(first->capacity, 8);
        assert_int_equal(silus, 1);
        assert_ok(b.ctx, generate(&b, 4, 4));
        expect_same(&b, &reference, 4);
        assert_true(device.takes == takes && device.silus == silus);
        assert_ok(b.ctx, generate(&b, 4, 1));
        expect_same(&b, &reference, 4);
        assert_true(b.model->engine == first && device.silus == silus);
        assert_ok(b.ctx, generate(&b, COUNT, COUNT));
        expect_same(&b, &reference, COUNT);
        assert_int_equal(b.model->engine->capacity, 2 * COUNT);
        assert_true(model_kept(b.model) > 0);
        model_rest(b.model);
        assert_int_equal(model_kept(b.model), 0);
        assert_ok(b.ctx, generate(&b, COUNT, 3));
        expect_same(&b, &reference, COUNT);
        close_bench(&b);
    }
}

/* Classes that give way to others come back with the same bits, whatever was asked for together. */
static void classes_give_way(void **state)
{
    (void)state;
    enum { ROWS = 3, CALLS = 6 };
    static const struct {
        int64_t count;
        int32_t classes[ROWS];
    } calls[CALLS] = {{3, {0, 1, 2}}, {2, {5, 1}}, {1, {0}}, {3, {2, 5, 7}}, {3, {5, 0, 2}}, {1, {2}}};
    struct bench b;
    open_bench(&b, HOST);
    assert_ok(b.ctx, model_need_ar(b.model));
    const struct ar *ar = b.model->ar;
    int64_t d = ar->config.d_model, layers = ar->config.n_layer, classes = ar->config.num_classes + 1;
    struct class_table all = {.rows = classes}, few = {.rows = ROWS}, *tables[] = {&all, &few};
    for (int i = 0; i < 2; i++) {
        struct class_table *t = tables[i];
        t->embedding = mem_array(b.ctx, (size_t)(t->rows * d), sizeof(float), MEM_CACHE);
        t->modulation = mem_array(b.ctx, (size_t)(layers * t->rows * 3 * d), sizeof(float), MEM_CACHE);
        t->final_modulation = mem_array(b.ctx, (size_t)(t->rows * 2 * d), sizeof(float), MEM_CACHE);
        assert_ok(b.ctx, class_table_open(t, ar, &b.model->ex));
    }
    int32_t every[32], at[32], row[ROWS];
    for (int32_t c = 0; c < classes; c++) every[c] = c;
    assert_ok(b.ctx, class_table_find(&all, every, classes, at));
    for (int k = 0; k < CALLS; k++) {
        assert_ok(b.ctx, class_table_find(&few, calls[k].classes, calls[k].count, row));
        for (int64_t i = 0; i < calls[k].count; i++) {
            int64_t from = at[calls[k].classes[i]], to = row[i];
            size_t bytes = (size_t)d * sizeof(float);
            assert_memory_equal(all.embedding + from * d, few.embedding + to * d, bytes);
            assert_memory_equal(all.final_modulation + from * 2 * d, few.final_modulation + to * 2 * d, 2 * bytes);
            for (int64_t l = 0; l < layers; l++)
                assert_memory_equal(all.modulation + (l * classes + from) * 3 * d, few.modulation + (l * ROWS + to) * 3 * d,
                                    3 * bytes);
        }
    }
    for (int i = 0; i < 2; i++) {
        mem_free(tables[i]->embedding);
        mem_free(tables[i]->modulation);
        mem_free(tables[i]->final_modulation);
        class_table_free(tables[i]);
    }
    close_bench(&b);
}

static void batches_are_equal(void **state)
{
    (void)state;
    static const struct {
        int64_t count;
        int batch;
        int64_t capacity;
    } cases[] = {{10, 8, 10}, {11, 4, 8}, {9, 0, 10}, {8, 0, 16}, {11, 5, 8}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct bench b;
        open_bench(&b, HOST);
        assert_ok(b.ctx, generate(&b, cases[i].count, cases[i].batch));
        assert_int_equal(b.model->engine->capacity, cases[i].capacity);
        close_bench(&b);
    }
    struct bench b; /* a device takes more, as long as they leave room for decoding */
    open_bench(&b, DEVICE_WITH_TWIN);
    assert_ok(b.ctx, generate(&b, COUNT, 0));
    assert_int_equal(b.model->engine->capacity, 2 * COUNT);
    model_rest(b.model);
    device.available = b.ctx->backend->memory.used + 2 * (aim_model_memory(b.model, 6, 1) - model_weight_bytes(b.model));
    assert_ok(b.ctx, generate(&b, COUNT, 0));
    assert_true(b.model->engine->capacity <= 12);
    expect_same(&b, &reference, COUNT);
    close_bench(&b);
}

/* Stops after the progress has been told some times, and after some pictures; what was handed out is whole, and the next
 * call paints everything. */
static void stopped(void **state)
{
    (void)state;
    for (enum kind kind = DEVICE; kind <= DEVICE_WITH_TWIN; kind++) {
        struct bench b;
        open_bench(&b, kind);
        for (int64_t stop = 0; stop < 100; stop += 7) {
            b.stop_told = stop;
            assert_fails(b.ctx, generate(&b, COUNT, 2), AIM_ERR_CANCELLED, "cancelled");
            assert_true(b.given < COUNT);
            expect_same(&b, &reference, b.given);
        }
        b.stop_told = -1;
        for (b.stop_given = 0; b.stop_given < COUNT; b.stop_given += 4) {
            assert_fails(b.ctx, generate(&b, COUNT, 3), AIM_ERR_CANCELLED, "cancelled");
            assert_int_equal(b.given, b.stop_given + 1);
            expect_same(&b, &reference, b.given);
        }
        b.stop_given = -1;
        assert_ok(b.ctx, generate(&b, COUNT, 3));
        expect_same(&b, &reference, COUNT);
        close_bench(&b);
    }
}

/* What goes wrong while pictures are decoded reaches the caller with its message, after the pictures before it. */
static void decoding_fails(void **state)
{
    (void)state;
    for (enum kind kind = DEVICE; kind <= DEVICE_WITH_TWIN; kind++) {
        struct bench b;
        open_bench(&b, kind);
        assert_ok(b.ctx, generate(&b, COUNT, 2));
        for (int64_t fail = 0; fail < 60; fail += 13) {
            device.convolutions = fail;
            assert_fails(b.ctx, generate(&b, COUNT, 2), AIM_ERR_INTERNAL, "the device stumbled");
            expect_same(&b, &reference, b.given);
        }
        device.convolutions = -1;
        assert_ok(b.ctx, generate(&b, COUNT, 2));
        expect_same(&b, &reference, COUNT);
        close_bench(&b);
    }
}

/* Whatever allocation the device refuses: the message names the knob, nothing is kept, and a second try works. */
static void device_is_full(void **state)
{
    (void)state;
    enum { SOME = 5 };
    for (enum kind kind = DEVICE; kind <= DEVICE_WITH_TWIN; kind++) {
        int64_t refused = 0;
        for (int64_t n = 0;; n += 1 + n / 6) {
            struct bench b;
            open_bench(&b, kind);
            device.fail_after = n;
            aim_status status = generate(&b, SOME, 2);
            bool injected = device.fail_after < 0;
            device.fail_after = -1;
            if (injected) {
                assert_int_equal(status, AIM_ERR_MEMORY);
                assert_non_null(strstr(aim_last_error(b.ctx), "out of memory"));
                assert_non_null(strstr(aim_last_error(b.ctx), "use a smaller --batch"));
                assert_int_equal(model_kept(b.model), 0);
                expect_same(&b, &reference, b.given);
                assert_ok(b.ctx, generate(&b, SOME, 2));
                refused++;
            }
            expect_same(&b, &reference, SOME);
            close_bench(&b);
            if (!injected) break;
        }
        assert_true(refused > 15);
    }
    struct bench b; /* known beforehand */
    open_bench(&b, DEVICE_WITH_TWIN);
    device.available = 1000;
    assert_fails(b.ctx, generate(&b, SOME, 2), AIM_ERR_MEMORY, "use a smaller --batch");
    close_bench(&b);
}

static int ask_for_more(void *user, int64_t index, int64_t label, const int64_t *codes, const aim_image *image)
{
    struct bench *b = user;
    (void)index, (void)codes, (void)image;
    assert_fails(b->ctx, aim_generate(b->model, &label, 1, NULL, NULL, NULL), AIM_ERR_ARGUMENT, "painting already");
    return 0;
}

static void callbacks_do_not_paint(void **state)
{
    (void)state;
    struct bench b;
    open_bench(&b, DEVICE_WITH_TWIN);
    aim_generate_options o = aim_generate_defaults();
    o.picture = ask_for_more;
    o.user = &b;
    assert_ok(b.ctx, aim_generate(b.model, labels, 2, &o, NULL, NULL));
    close_bench(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_pictures_beside),   cmocka_unit_test(handed_out_on_the_way),
        cmocka_unit_test(kept_between_calls),     cmocka_unit_test(classes_give_way),
        cmocka_unit_test(batches_are_equal),      cmocka_unit_test(stopped),
        cmocka_unit_test(decoding_fails),         cmocka_unit_test(device_is_full),
        cmocka_unit_test(callbacks_do_not_paint),
    };
    return cmocka_run_group_tests(tests, paint_reference, NULL);
}
