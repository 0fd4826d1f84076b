/* The optimizer's ops against double precision: norm, AdamW over several steps, changes of type. */
#include "ops.h"

enum { TENSORS = 3, STEPS = 3 };
static const int64_t sizes[TENSORS] = {1, 1000, 40000}; /* the last one is more than one chunk */

TEST(norm)
{
    struct tensor list[TENSORS], got = blank(p, 1, 0, 0, 0), *pointers[TENSORS];
    double sum = 0;
    for (int i = 0; i < TENSORS; i++) {
        list[i] = normal(p, sizes[i], 0, 0, 0);
        pointers[i] = &list[i];
        for (int64_t k = 0; k < sizes[i]; k++) sum += (double)f32(&list[i])[k] * (double)f32(&list[i])[k];
    }
    RUN(p, norm, pointers, TENSORS, &got);
    double want = sqrt(sum);
    expect_near(p, "norm", &got, &want, 1e-6);
    f32(&list[1])[77] = NAN;
    RUN(p, norm, pointers, TENSORS, &got);
    assert_true(isnan(f32(&got)[0]));
}

/* One tensor's optimizer state twice: what the op changes, and double precision. */
struct twin {
    struct tensor w, dw, m, v, ema;
    double *want_w, *want_m, *want_v, *want_ema;
};

static struct twin twin_new(struct place *p, int64_t n, bool with_ema)
{
    struct twin t = {
        .w = normal(p, n, 0, 0, 0), .dw = blank(p, n, 0, 0, 0), .m = blank(p, n, 0, 0, 0), .v = blank(p, n, 0, 0, 0)};
    t.want_w = doubles_new(p, n);
    t.want_m = doubles_new(p, n);
    t.want_v = doubles_new(p, n);
    t.want_ema = doubles_new(p, n);
    if (with_ema) t.ema = blank(p, n, 0, 0, 0);
    for (int64_t i = 0; i < n; i++) {
        t.want_w[i] = t.want_ema[i] = (double)f32(&t.w)[i];
        if (with_ema) f32(&t.ema)[i] = f32(&t.w)[i];
        f32(&t.m)[i] = f32(&t.v)[i] = 0;
        t.want_m[i] = t.want_v[i] = 0;
    }
    return t;
}

static void twin_step(struct twin *t, const struct adamw *how, double norm, bool decays)
{
    double scale = how->clip > 0 ? fmin(1, how->clip / (norm + 1e-6)) : 1, step = (double)how->step;
    for (int64_t i = 0; i < tensor_count(&t->w); i++) {
        double g = (double)f32(&t->dw)[i] * scale, *w = &t->want_w[i], *m = &t->want_m[i], *v = &t->want_v[i];
        if (decays) *w -= how->lr * how->decay * *w;
        *m = how->beta1 * *m + (1 - how->beta1) * g;
        *v = how->beta2 * *v + (1 - how->beta2) * g * g;
        *w -= how->lr * (*m / (1 - pow(how->beta1, step))) / (sqrt(*v / (1 - pow(how->beta2, step))) + how->eps);
        t->want_ema[i] = how->ema_decay * t->want_ema[i] + (1 - how->ema_decay) * *w;
    }
}

static void check_adamw(struct place *p, double clip)
{
    struct twin twins[TENSORS];
    struct adamw_slot slots[TENSORS];
    struct tensor norm = blank(p, 1, 0, 0, 0);
    for (int i = 0; i < TENSORS; i++) {
        twins[i] = twin_new(p, sizes[i], i != 1);
        slots[i] =
            (struct adamw_slot){&twins[i].w, &twins[i].dw, &twins[i].m, &twins[i].v, i != 1 ? &twins[i].ema : NULL, i == 2};
    }
    for (int step = 1; step <= STEPS; step++) {
        struct adamw how = {
            .lr = 1e-2, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .decay = 0.05, .clip = clip, .ema_decay = 0.99, .step = step};
        f32(&norm)[0] = 7;
        for (int i = 0; i < TENSORS; i++) {
            fill_normal(p, &twins[i].dw, 0, 1);
            twin_step(&twins[i], &how, 7, slots[i].decays);
        }
        RUN(p, adamw, slots, TENSORS, &how, &norm);
    }
    for (int i = 0; i < TENSORS; i++) {
        expect_near(p, "w", &twins[i].w, twins[i].want_w, 1e-6);
        expect_near(p, "m", &twins[i].m, twins[i].want_m, 1e-6);
        expect_near(p, "v", &twins[i].v, twins[i].want_v, 1e-6);
        if (slots[i].ema) expect_near(p, "ema", &twins[i].ema, twins[i].want_ema, 1e-6);
        for (int64_t k = 0; k < sizes[i]; k++) assert_true(f32(&twins[i].dw)[k] == 0);
    }
}

TEST(adamw)
{
    check_adamw(p, 0);
    check_adamw(p, 1);   /* cuts */
    check_adamw(p, 100); /* leaves the gradient alone */
}

TEST(adamw_skips_what_is_not_finite)
{
    struct twin t = twin_new(p, 100, true);
    struct tensor norm = blank(p, 1, 0, 0, 0);
    struct adamw_slot slot = {&t.w, &t.dw, &t.m, &t.v, &t.ema, true};
    struct adamw how = {.lr = 1e-2, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .decay = 0.05, .step = 1};
    fill_normal(p, &t.dw, 0, 1);
    f32(&norm)[0] = INFINITY;
    RUN(p, adamw, &slot, 1, &how, &norm);
    for (int64_t i = 0; i < 100; i++) {
        assert_true((double)f32(&t.w)[i] == t.want_w[i] && f32(&t.m)[i] == 0 && f32(&t.v)[i] == 0);
        assert_true(f32(&t.dw)[i] == 0 && (double)f32(&t.ema)[i] == t.want_ema[i]);
    }
}

TEST(cast)
{
    enum { N = 1001 };
    struct tensor x = normal(p, N, 0, 0, 0), half = tensor_of(p, T_BF16, N, 0, 0, 0), back = blank(p, N, 0, 0, 0);
    RUN(p, cast, &x, &half);
    RUN(p, cast, &half, &back);
    for (int64_t i = 0; i < N; i++) {
        uint16_t want = bf16_from_f32(f32(&x)[i]);
        assert_int_equal(((uint16_t *)half.data)[i], want);
        assert_true(f32(&back)[i] == bf16_to_f32(want));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_norm),
        cmocka_unit_test(test_adamw),
        cmocka_unit_test(test_adamw_skips_what_is_not_finite),
        cmocka_unit_test(test_cast),
    };
    return RUN_OPS("optimizer", tests);
}
