/* The tape itself, on ops simple enough to know the gradients: who gets one, sums of several, what is freed when. */
#include "support.h"

#include "tensor/ops.h"
#include "tensor/tape.h"

struct bench {
    aim_context *ctx;
    struct exec ex;
    struct tape tape;
};

static void open_bench(struct bench *b)
{
    assert_int_equal(aim_context_create(NULL, &b->ctx), AIM_OK);
    exec_init(&b->ex, b->ctx);
    tape_start(&b->tape, &b->ex);
}

static void close_bench(struct bench *b)
{
    tape_stop(&b->tape);
    exec_clear(&b->ex);
    assert_int_equal(b->ctx->memory.used[MEM_ACTIVATIONS], 0);
    aim_context_free(b->ctx);
}

/* 0, 1, 2, ... in some shape */
static struct tensor *counted(struct bench *b, int ndim, const int64_t *shape, bool needs_grad)
{
    struct tensor *t = tensor_new(&b->ex, T_F32, ndim, shape);
    assert_non_null(t);
    for (int64_t i = 0; i < tensor_count(t); i++) f32(t)[i] = (float)i;
    t->needs_grad = needs_grad;
    return t;
}

/* A tensor used twice gets both contributions; one that needs none gets none. */
static void sums_of_uses(void **state)
{
    (void)state;
    struct bench b;
    open_bench(&b);
    struct tensor *x = counted(&b, SHAPE(2, 3), true), *c = counted(&b, SHAPE(2, 3), false);
    struct tensor *twice = op_add(&b.ex, x, x), *y = op_add(&b.ex, twice, c);
    tensor_drop(twice);
    assert_ok(b.ctx, tape_backward(&b.tape, y, 0.5f));
    for (int i = 0; i < 6; i++) assert_true(f32(x->grad)[i] == 1.0f);
    assert_null(c->grad);
    assert_null(y->grad); /* used up */
    assert_int_equal(b.tape.count, 0);
    struct tensor *done[] = {x, c, y};
    for (int i = 0; i < 3; i++) tensor_drop(done[i]);
    close_bench(&b);
}

/* A gradient that two inputs are passed is two gradients: what one gets later does not reach the other. */
static void passed_on(void **state)
{
    (void)state;
    struct bench b;
    open_bench(&b);
    struct tensor *x = counted(&b, SHAPE(2, 3), true), *z = counted(&b, SHAPE(2, 3), true);
    for (int round = 1; round <= 2; round++) {
        struct tensor *scaled = op_scale(&b.ex, x, 3), *sum = op_add(&b.ex, x, z), *y = op_add(&b.ex, scaled, sum);
        assert_ok(b.ctx, tape_backward(&b.tape, y, 1.0f));
        for (int i = 0; i < 6; i++) {
            assert_true(f32(x->grad)[i] == 4.0f * (float)round);
            assert_true(f32(z->grad)[i] == 1.0f * (float)round);
        }
        struct tensor *done[] = {scaled, sum, y};
        for (int i = 0; i < 3; i++) tensor_drop(done[i]);
    }
    tensor_drop(x);
    tensor_drop(z);
    close_bench(&b);
}

/* On a backend that overwrites: fresh columns wait for a kernel that knows them; for any other op they become zeros. */
static void fresh_gradients(void **state)
{
    (void)state;
    struct bench b;
    open_bench(&b);
    struct tensor *x = counted(&b, SHAPE(3, 4), true), *grad = tape_grad_fresh(&b.ex, x);
    assert_int_equal(grad->fresh.end, 0); /* this one does not */
    tensor_clear_grad(x);
    b.ex.backend->overwrites = true;
    grad = tape_grad_fresh(&b.ex, x);
    assert_int_equal(grad->fresh.first, 0);
    assert_int_equal(grad->fresh.end, 4);
    for (int i = 0; i < 12; i++) f32(grad)[i] = 7;
    grad->fresh.first = 1; /* a kernel has written the first column */
    assert_ptr_equal(tape_grad_fresh(&b.ex, x), grad);
    assert_ptr_equal(tape_grad(&b.ex, x), grad);
    assert_int_equal(grad->fresh.first, grad->fresh.end);
    for (int i = 0; i < 12; i++) assert_true(f32(grad)[i] == (i % 4 == 0 ? 7.0f : 0.0f));
    b.ex.backend->overwrites = false;
    tensor_clear_grad(x);
    tensor_drop(x);
    close_bench(&b);
}

/* Parameters keep their gradient, and a second backward adds to it; without a tape nothing is recorded. */
static void gradients_stay(void **state)
{
    (void)state;
    struct bench b;
    open_bench(&b);
    struct tensor *x = counted(&b, SHAPE(4), true);
    for (int round = 1; round <= 2; round++) {
        struct tensor *y = op_add(&b.ex, x, x);
        assert_ok(b.ctx, tape_backward(&b.tape, y, 1.0f));
        assert_true(f32(x->grad)[3] == 2.0f * (float)round);
        tensor_drop(y);
    }
    tensor_clear_grad(x);
    assert_null(x->grad);
    tape_stop(&b.tape);
    struct tensor *y = op_add(&b.ex, x, x);
    assert_false(y->needs_grad);
    tensor_drop(y);
    tensor_drop(x);
    tape_start(&b.tape, &b.ex);
    close_bench(&b);
}

/* mean (x - target)² of a change of layout: the gradient is 2 (x - target) / n in the layout of x. */
static void layouts(void **state)
{
    (void)state;
    enum { N = 2, C = 3, H = 4, W = 5, COUNT = N * C * H * W };
    struct bench b;
    open_bench(&b);
    for (int back = 0; back < 2; back++) {
        struct tensor *x = back ? counted(&b, SHAPE(N, H, W, C), true) : counted(&b, SHAPE(N, C, H, W), true);
        struct tensor *y = back ? op_nhwc_to_nchw(&b.ex, x) : op_nchw_to_nhwc(&b.ex, x);
        struct tensor *zeros = tensor_new(&b.ex, T_F32, SHAPE(COUNT));
        memset(zeros->data, 0, COUNT * sizeof(float));
        struct tensor *loss = op_mean_square(&b.ex, y, zeros, 3.0f);
        assert_ok(b.ctx, tape_backward(&b.tape, loss, 1.0f));
        for (int i = 0; i < COUNT; i++) assert_float_equal(f32(x->grad)[i], 6.0f * (float)i / COUNT, 1e-5f);
        struct tensor *done[] = {x, y, zeros, loss};
        for (int i = 0; i < 4; i++) tensor_drop(done[i]);
    }
    close_bench(&b);
}

/* The quantiser's two special ways: a target gets no gradient, and the code's goes to z instead. */
static void stopped_gradients(void **state)
{
    (void)state;
    struct bench b;
    open_bench(&b);
    struct tensor *z = counted(&b, SHAPE(2, 2), true), *code = counted(&b, SHAPE(2, 2), true);
    struct tensor *target = counted(&b, SHAPE(2, 2), true);
    f32(code)[0] = 7;
    struct tensor *y = op_straight_through(&b.ex, z, code), *loss = op_mean_square(&b.ex, y, target, 1.0f);
    assert_true(f32(y)[0] == 7.0f && f32(loss)[0] == 49.0f / 4);
    assert_ok(b.ctx, tape_backward(&b.tape, loss, 1.0f));
    assert_true(f32(z->grad)[0] == 2 * 7.0f / 4 && f32(z->grad)[1] == 0);
    assert_null(code->grad);
    assert_null(target->grad);
    struct tensor *done[] = {z, code, target, y, loss};
    for (int i = 0; i < 5; i++) tensor_drop(done[i]);
    close_bench(&b);
}

/* Nodes that no backward has walked go with the tape. */
static void abandoned(void **state)
{
    (void)state;
    struct bench b;
    open_bench(&b);
    struct tensor *x = counted(&b, SHAPE(3), true), *y = op_add(&b.ex, x, x);
    tensor_drop(op_add(&b.ex, y, x));
    tensor_drop(y);
    tensor_drop(x);
    assert_int_equal(b.tape.count, 2);
    close_bench(&b);
}

/* Small numbers of both signs, without regularity. */
static struct tensor *scattered(struct bench *b, int ndim, const int64_t *shape)
{
    struct tensor *t = counted(b, ndim, shape, true);
    for (int64_t i = 0; i < tensor_count(t); i++) f32(t)[i] = (float)((i * 7919) % 401) / 200.0f - 1;
    return t;
}

/* The fused head gives what its parts give, over several blocks of rows. */
static void head_in_blocks(void **state)
{
    (void)state;
    enum { M = 2500, K = 8, V = 50 };
    struct bench b;
    open_bench(&b);
    struct tensor *x = scattered(&b, SHAPE(M, K)), *w = scattered(&b, SHAPE(V, K)),
                  *target = tensor_new(&b.ex, T_I32, SHAPE(M));
    for (int i = 0; i < M; i++) i32(target)[i] = i * 31 % V;
    struct tensor *logits = op_linear(&b.ex, x, w, OP_NONE), *parts = op_cross_entropy(&b.ex, logits, target);
    assert_ok(b.ctx, tape_backward(&b.tape, parts, 0.25f));
    struct tensor *want_dx = tensor_keep(x->grad), *want_dw = tensor_keep(w->grad);
    tensor_clear_grad(x);
    tensor_clear_grad(w);
    struct tensor *fused = op_linear_cross_entropy(&b.ex, x, w, target);
    assert_ok(b.ctx, tape_backward(&b.tape, fused, 0.25f));
    /* products of other numbers of rows may sum in another order */
    for (int i = 0; i < M; i++) assert_true(fabsf(f32(fused)[i] - f32(parts)[i]) <= 1e-6f * f32(parts)[i]);
    for (int i = 0; i < M * K; i++) assert_true(fabsf(f32(x->grad)[i] - f32(want_dx)[i]) <= 1e-6f);
    for (int i = 0; i < V * K; i++) assert_true(fabsf(f32(w->grad)[i] - f32(want_dw)[i]) <= 1e-5f); /* sums of 2500 */
    struct tensor *done[] = {x, w, target, logits, parts, want_dx, want_dw, fused};
    for (int i = 0; i < 8; i++) tensor_drop(done[i]);
    close_bench(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sums_of_uses),   cmocka_unit_test(passed_on),      cmocka_unit_test(fresh_gradients),
        cmocka_unit_test(gradients_stay), cmocka_unit_test(layouts),        cmocka_unit_test(stopped_gradients),
        cmocka_unit_test(abandoned),      cmocka_unit_test(head_in_blocks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
