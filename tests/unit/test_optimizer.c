/* The optimizer: schedules, a few steps against double precision, clipping, averages, bad steps, what a checkpoint keeps. */
#include "support.h"

#include <unistd.h>

#include "tensor/tape.h"
#include "train/optimizer.h"

struct bench {
    aim_context *ctx;
    struct exec ex;
};

static void open_bench(struct bench *b)
{
    assert_int_equal(aim_context_create(NULL, &b->ctx), AIM_OK);
    exec_init(&b->ex, b->ctx);
}

static void close_bench(struct bench *b)
{
    exec_clear(&b->ex);
    assert_int_equal(b->ctx->memory.used[MEM_ACTIVATIONS] + b->ctx->memory.used[MEM_WEIGHTS], 0);
    aim_context_free(b->ctx);
}

/* Values that differ from place to place and from `seed` to seed, about -1 to 1. */
static double value(int seed, int i)
{
    return sin(1.7 * seed + 0.37 * i);
}

static struct tensor *parameter(struct bench *b, int ndim, const int64_t *shape, int seed)
{
    struct tensor *w = tensor_new_weight(b->ctx, T_F32, ndim, shape);
    assert_non_null(w);
    w->constant = false;
    w->needs_grad = true;
    for (int i = 0; i < tensor_count(w); i++) f32(w)[i] = (float)value(seed, i);
    return w;
}

/* ------------------------------------------------------------------------------------------------- schedules */

static void rates(void **state)
{
    (void)state;
    struct schedule s = {.kind = AIM_SCHEDULE_LINEAR, .lr = 0.8, .steps = 100};
    assert_true(schedule_rate(&s, 0) == 0.8); /* Hugging Face: the first step has the full rate */
    assert_true(fabs(schedule_rate(&s, 50) - 0.4) < 1e-15);
    assert_true(fabs(schedule_rate(&s, 99) - 0.008) < 1e-15);
    s.warmup = 20;
    assert_true(fabs(schedule_rate(&s, 0) - 0.04) < 1e-15);
    assert_true(schedule_rate(&s, 19) == 0.8 && schedule_rate(&s, 20) == 0.8);
    assert_true(fabs(schedule_rate(&s, 60) - 0.4) < 1e-15);
    s.kind = AIM_SCHEDULE_COSINE;
    s.least = 0.2;
    assert_true(fabs(schedule_rate(&s, 60) - 0.5) < 1e-15);
    assert_true(fabs(schedule_rate(&s, 100) - 0.2) < 1e-15 && fabs(schedule_rate(&s, 1000) - 0.2) < 1e-15);
    s.kind = AIM_SCHEDULE_CONSTANT;
    assert_true(schedule_rate(&s, 99) == 0.8);
}

/* --------------------------------------------------------------------------------------------- against double */

enum { ROWS = 5, COLS = 7, VALUES = ROWS * COLS, STEPS = 6 };

/* AdamW of one tensor in double precision (Loshchilov and Hutter, algorithm 2). */
struct reference {
    double w[VALUES], m[VALUES], v[VALUES], ema[VALUES], decay;
};

static void reference_step(struct reference *r, const double *g, double scale, double lr, int step, double ema)
{
    for (int i = 0; i < VALUES; i++) {
        r->w[i] -= lr * r->decay * r->w[i];
        r->m[i] = 0.9 * r->m[i] + 0.1 * g[i] * scale;
        r->v[i] = 0.95 * r->v[i] + 0.05 * g[i] * scale * g[i] * scale;
        r->w[i] -= lr * (r->m[i] / (1 - pow(0.9, step))) / (sqrt(r->v[i] / (1 - pow(0.95, step))) + 1e-8);
        r->ema[i] = ema * r->ema[i] + (1 - ema) * r->w[i];
    }
}

static void matrices_and_vectors(void **state)
{
    (void)state;
    struct bench b;
    open_bench(&b);
    struct optimizer_options how = optimizer_defaults();
    how.ema = 0.5;
    struct optimizer o;
    assert_ok(b.ctx, optimizer_init(&b.ex, "test", &how, &o));
    struct tensor *w[2] = {parameter(&b, SHAPE(ROWS, COLS), 1), parameter(&b, SHAPE(VALUES), 2)};
    struct reference r[2] = {{.decay = 0.05}, {.decay = 0}};
    for (int k = 0; k < 2; k++) {
        assert_ok(b.ctx, optimizer_add(&o, k ? "vector" : "matrix", w[k], optimizer_decays(w[k])));
        for (int i = 0; i < VALUES; i++) r[k].w[i] = r[k].ema[i] = (double)f32(w[k])[i];
    }
    for (int step = 1; step <= STEPS; step++) {
        double g[2][VALUES], squares = 0, norm, lr = 0.1 / step, size = step % 2 ? 3 : 0.01; /* clipped, and not */
        double ema = (1.0 + step - 1) / (10.0 + step - 1);
        for (int k = 0; k < 2; k++)
            for (int i = 0; i < VALUES; i++) {
                f32(w[k]->grad)[i] = (float)(size * value(10 * step + k, i));
                g[k][i] = (double)f32(w[k]->grad)[i];
                squares += g[k][i] * g[k][i];
            }
        double scale = fmin(1, 1 / (sqrt(squares) + 1e-6));
        assert_true(optimizer_ema_decay(&o) == fmin(ema, 0.5));
        assert_ok(b.ctx, optimizer_step(&o, lr, &norm));
        assert_true(fabs(norm - sqrt(squares)) < 1e-6 * norm);
        for (int k = 0; k < 2; k++) reference_step(&r[k], g[k], scale, lr, step, fmin(ema, 0.5));
    }
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < VALUES; i++) {
            assert_true(fabs((double)f32(w[k])[i] - r[k].w[i]) < 1e-5);
            assert_true(fabs((double)f32(optimizer_average(&o, w[k]))[i] - r[k].ema[i]) < 1e-5);
            assert_true(f32(w[k]->grad)[i] == 0);
        }
    const float *weights = f32(w[0]), *average = f32(optimizer_average(&o, w[0]));
    optimizer_swap(&o);
    assert_ptr_equal(f32(w[0]), average);
    optimizer_swap(&o);
    assert_ptr_equal(f32(w[0]), weights);
    assert_int_equal(o.updates, STEPS);
    assert_int_equal(optimizer_bytes(&o), 3 * 2 * VALUES * 4);
    optimizer_free(&o);
    for (int k = 0; k < 2; k++) tensor_drop(w[k]);
    close_bench(&b);
}

/* ------------------------------------------------------------------------------------------------- bad steps */

static void bad_gradients(void **state)
{
    (void)state;
    struct bench b;
    open_bench(&b);
    struct optimizer_options how = optimizer_defaults();
    struct optimizer o;
    assert_ok(b.ctx, optimizer_init(&b.ex, "test", &how, &o));
    struct tensor *w = parameter(&b, SHAPE(VALUES), 3);
    assert_ok(b.ctx, optimizer_add(&o, "w", w, true));
    const float bad[] = {NAN, INFINITY, -INFINITY};
    double norm;
    for (int k = 0; k < 3; k++) {
        for (int i = 0; i < VALUES; i++) f32(w->grad)[i] = i == 9 ? bad[k] : 1;
        assert_ok(b.ctx, optimizer_step(&o, 0.1, &norm));
        assert_true(!isfinite(norm));
    }
    f32(w->grad)[0] = 1;
    assert_ok(b.ctx, optimizer_skip(&o));
    assert_int_equal(o.skipped, 4);
    assert_int_equal(o.updates, 0);
    for (int i = 0; i < VALUES; i++) {
        assert_true(f32(w)[i] == (float)value(3, i));
        assert_true(f32(w->grad)[i] == 0 && f32(o.slots[0].m)[i] == 0 && f32(o.slots[0].v)[i] == 0);
    }
    optimizer_free(&o);
    tensor_drop(w);
    close_bench(&b);
}

static void guard_counts(void **state)
{
    (void)state;
    struct bench b;
    open_bench(&b);
    struct guard g = {.most = 20};
    assert_true(guard_refuses(&g, 20.1) && guard_refuses(&g, NAN) && !guard_refuses(&g, 19.9));
    for (int i = 0; i < GUARD_IN_A_ROW - 1; i++) assert_ok(b.ctx, guard_step(b.ctx, &g, i, NAN, 1));
    assert_ok(b.ctx, guard_step(b.ctx, &g, 19, 5, 1)); /* a good one starts a new row */
    for (int i = 0; i < GUARD_IN_A_ROW - 1; i++) assert_ok(b.ctx, guard_step(b.ctx, &g, i, 5, INFINITY));
    assert_fails(b.ctx, guard_step(b.ctx, &g, 40, 21, 1), AIM_ERR_ARGUMENT, "step 40 the loss is 21");
    struct guard all = {0};
    for (int i = 1; i < GUARD_IN_ALL; i++) {
        assert_ok(b.ctx, guard_step(b.ctx, &all, i, NAN, 1));
        assert_ok(b.ctx, guard_step(b.ctx, &all, i, 1, 1));
    }
    assert_fails(b.ctx, guard_step(b.ctx, &all, 1, NAN, 1), AIM_ERR_ARGUMENT, "broken down");
    close_bench(&b);
}

/* ------------------------------------------------------------------------------------------------ checkpoints */

static void random_step(struct optimizer *o, int step)
{
    double norm;
    for (size_t k = 0; k < o->count; k++)
        for (int i = 0; i < tensor_count(o->slots[k].w); i++) f32(o->slots[k].dw)[i] = (float)value(step + (int)k, i);
    assert_ok(o->ex->ctx, optimizer_step(o, 0.01, &norm));
}

/* Two optimizers in one file; what is restored goes on with the same bits. */
static void restored(void **state)
{
    (void)state;
    struct bench b;
    open_bench(&b);
    struct optimizer_options how = optimizer_defaults();
    struct optimizer first[2], again[2];
    struct tensor *w[4];
    how.ema = 0.9;
    for (int k = 0; k < 4; k++) {
        struct optimizer *o = k < 2 ? &first[k] : &again[k - 2];
        w[k] = parameter(&b, SHAPE(ROWS, COLS), k);
        assert_ok(b.ctx, optimizer_init(&b.ex, k % 2 ? "discriminator" : "generator", &how, o));
        assert_ok(b.ctx, optimizer_add(o, k % 2 ? "d.w" : "g.w", w[k], true));
    }
    for (int step = 0; step < 3; step++) random_step(&first[0], step);
    random_step(&first[1], 7);
    assert_ok(b.ctx, optimizer_skip(&first[1]));
    char path[] = "/tmp/aim-test-optimizer-XXXXXX";
    close(mkstemp(path));
    struct checkpoint list = {.ctx = b.ctx};
    for (int k = 0; k < 2; k++) assert_ok(b.ctx, optimizer_save(&first[k], &list));
    assert_ok(b.ctx, checkpoint_write(&b.ex, &list, path));
    checkpoint_free(&list);
    struct tensor_file file;
    assert_ok(b.ctx, tensor_file_open(b.ctx, path, &file));
    for (int k = 0; k < 2; k++) {
        assert_ok(b.ctx, optimizer_load(&again[k], &file, path));
        random_step(&first[k], 20);
        random_step(&again[k], 20);
        assert_memory_equal(w[k]->data, w[2 + k]->data, VALUES * sizeof(float));
        assert_memory_equal(optimizer_average(&first[k], w[k])->data, optimizer_average(&again[k], w[2 + k])->data,
                            VALUES * sizeof(float));
    }
    assert_int_equal(again[1].skipped, 1);
    assert_int_equal(again[0].updates, 4);
    struct tensor *other = parameter(&b, SHAPE(COLS, ROWS), 1);
    assert_fails(b.ctx, checkpoint_read(&b.ex, &file, path, "m.", "g.w", other), AIM_ERR_FORMAT, "another shape");
    assert_fails(b.ctx, checkpoint_read(&b.ex, &file, path, "", "nothing", other), AIM_ERR_FORMAT, "missing");
    tensor_drop(other);
    tensor_file_close(&file);
    unlink(path);
    for (int k = 0; k < 2; k++) {
        optimizer_free(&first[k]);
        optimizer_free(&again[k]);
    }
    for (int k = 0; k < 4; k++) tensor_drop(w[k]);
    close_bench(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(rates), cmocka_unit_test(matrices_and_vectors),
                                       cmocka_unit_test(bad_gradients), cmocka_unit_test(guard_counts),
                                       cmocka_unit_test(restored)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
