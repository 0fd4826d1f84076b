/* Profiles: every call of an op is counted once, by shapes, and the backend is as it was afterwards. */
#include "support.h"

#include "tensor/ops.h"
#include "tensor/profile.h"

struct bench {
    aim_context *ctx;
    struct exec ex;
    struct ops ops;
    struct device_memory memory;
};

static void open_bench(struct bench *b)
{
    assert_int_equal(aim_context_create(NULL, &b->ctx), AIM_OK);
    exec_init(&b->ex, b->ctx);
    b->ops = b->ctx->backend->op;
    b->memory = b->ctx->backend->memory;
}

static void close_bench(struct bench *b)
{
    exec_clear(&b->ex);
    assert_memory_equal(&b->ctx->backend->op, &b->ops, sizeof b->ops);
    assert_true(b->ctx->backend->memory.upload == b->memory.upload && b->ctx->backend->memory.zero == b->memory.zero);
    assert_null(b->ctx->backend->profile);
    aim_context_free(b->ctx);
}

/* Runs two shapes of add and one linear. */
static void work(struct bench *b)
{
    struct exec *ex = &b->ex;
    struct tensor *small = tensor_new(ex, T_F32, SHAPE(2, 3)), *large = tensor_new(ex, T_F32, SHAPE(4, 3));
    struct tensor *w = tensor_new(ex, T_F32, SHAPE(5, 3));
    struct tensor *all[] = {small, large, w, NULL, NULL, NULL, NULL};
    for (int i = 0; i < 3; i++) assert_ok(b->ctx, tensor_zero(ex, all[i]));
    all[3] = op_add(ex, small, small);
    all[4] = op_add(ex, large, large);
    all[5] = op_add(ex, all[4], large);
    all[6] = op_linear(ex, large, w, OP_NONE);
    assert_ok(b->ctx, ex->status);
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) tensor_drop(all[i]);
}

static const struct profile_row *find(const struct profile *p, const char *op, int64_t rows)
{
    for (size_t i = 0; i < p->count; i++)
        if (strcmp(p->rows[i].op, op) == 0 && (rows == 0 || p->rows[i].tensors[0].shape[0] == rows)) return &p->rows[i];
    fail_msg("no row for %s of %lld", op, (long long)rows);
    return NULL;
}

static void counts(void **state)
{
    (void)state;
    struct bench b;
    struct profile *p;
    open_bench(&b);
    work(&b);
    assert_ok(b.ctx, profile_start(b.ctx->backend, &p));
    work(&b);
    work(&b);
    assert_ok(b.ctx, profile_stop(p));
    assert_int_equal(p->count, 4);
    assert_int_equal(find(p, "add", 2)->calls, 2);
    assert_int_equal(find(p, "add", 4)->calls, 4);
    assert_int_equal(find(p, "linear", 4)->calls, 2);
    assert_int_equal(find(p, "linear", 4)->tensors[1].shape[0], 5);
    assert_int_equal(find(p, "zero", 0)->calls, 6);
    double sum = 0;
    for (size_t i = 0; i < p->count; i++) {
        assert_true(p->rows[i].seconds > 0 && (i == 0 || p->rows[i].seconds <= p->rows[i - 1].seconds));
        sum += p->rows[i].seconds;
    }
    assert_true(sum <= p->seconds);
    profile_free(p);
    close_bench(&b);
}

/* ---------------------------------------------------------------------------------- a device with its own clock */

static int64_t marks;

/* Mark i stands at i² seconds: call i takes 4 i + 1. */
static aim_status mark(struct backend *be, int64_t i)
{
    (void)be;
    assert_int_equal(i, marks++);
    return AIM_OK;
}

static aim_status between(struct backend *be, int64_t from, int64_t to, double *seconds)
{
    (void)be;
    assert_true(to < marks);
    *seconds = (double)(to * to - from * from);
    return AIM_OK;
}

static void marks_of_a_device(void **state)
{
    (void)state;
    struct bench b;
    struct profile *p;
    open_bench(&b);
    marks = 0;
    b.ctx->backend->clock = (struct device_clock){mark, between};
    assert_ok(b.ctx, profile_start(b.ctx->backend, &p));
    assert_int_equal(profile_start(b.ctx->backend, &(struct profile *){NULL}), AIM_ERR_ARGUMENT);
    work(&b); /* zero 0 1 2, add 3 and 4 5, linear 6 */
    assert_ok(b.ctx, profile_stop(p));
    assert_int_equal(marks, 14);
    assert_true(find(p, "zero", 0)->seconds == 1 + 5 + 9);
    assert_true(find(p, "add", 2)->seconds == 13);
    assert_true(find(p, "add", 4)->seconds == 17 + 21);
    assert_true(find(p, "linear", 4)->seconds == 25);
    assert_true(p->rows == find(p, "add", 4));
    profile_free(p);
    close_bench(&b);
}

/* A kernel that calls another one of the table. */
static aim_status nested_add(struct backend *be, const struct tensor *a, const struct tensor *b, struct tensor *y)
{
    TRY(be->op.scale(be, a, 1, y));
    return be->op.scale(be, b, 1, y);
}

static void calls_within_calls(void **state)
{
    (void)state;
    struct bench b;
    struct profile *p;
    open_bench(&b);
    b.ctx->backend->op.add = b.ops.add = nested_add;
    assert_ok(b.ctx, profile_start(b.ctx->backend, &p));
    work(&b);
    assert_ok(b.ctx, profile_stop(p));
    assert_int_equal(p->count, 4);
    assert_int_equal(find(p, "add", 4)->calls, 2);
    profile_free(p);
    close_bench(&b);
}

/* Out of memory on the way: the work goes on, and the profile says so at its end. */
static void without_memory(void **state)
{
    (void)state;
    struct bench b;
    struct profile *p;
    open_bench(&b);
    work(&b); /* fills the pool */
    assert_ok(b.ctx, profile_start(b.ctx->backend, &p));
    b.ctx->memory.fail_after = 0;
    assert_int_equal(b.ctx->backend->op.scale(b.ctx->backend, &(struct tensor){.ndim = 1}, 1, &(struct tensor){.ndim = 1}),
                     AIM_OK);
    b.ctx->memory.fail_after = -1;
    assert_int_equal(profile_stop(p), AIM_ERR_MEMORY);
    profile_free(p);
    close_bench(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(counts), cmocka_unit_test(marks_of_a_device),
                                       cmocka_unit_test(calls_within_calls), cmocka_unit_test(without_memory)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
