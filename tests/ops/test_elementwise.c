/* The small ops of stage 2 and of the tokenizer: embedding, prepend, slice_add, silu, add, layouts, pictures, cross_entropy. */
#include "ops.h"

#include "io/image.h"

/* One float32 operation, rounded once. */
static const double one_rounding = 1e-7;

static double sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

/* Ids anywhere in the table, and positions with some -1 among them. */
static void check_embedding(struct place *p, int64_t M, int64_t d, enum tensor_type type)
{
    enum { VOCABULARY = 37, PLACES = 19 };
    struct tensor table = normal(p, VOCABULARY, d, 0, 0), positions = normal(p, PLACES, d, 0, 0), tokens = table;
    if (type != T_F32) {
        for (int64_t i = 0; i < tensor_count(&table); i++) f32(&table)[i] = bf16_to_f32(bf16_from_f32(f32(&table)[i]));
        tokens = tensor_of(p, type, VOCABULARY, d, 0, 0);
        if (type == T_BF16)
            for (int64_t i = 0; i < tensor_count(&table); i++) ((uint16_t *)tokens.data)[i] = bf16_from_f32(f32(&table)[i]);
        else
            RUN(p, pack, &table, &tokens);
    }
    struct tensor ids = tensor_of(p, T_I32, M, 0, 0, 0), pos = tensor_of(p, T_I32, M, 0, 0, 0), y = blank(p, M, d, 0, 0);
    struct tensor plain = blank(p, M, d, 0, 0);
    double *want = doubles_new(p, M * d), *want_plain = doubles_new(p, M * d);
    for (int64_t m = 0; m < M; m++) {
        i32(&ids)[m] = m == 0 ? VOCABULARY - 1 : draw_int(p, VOCABULARY);
        i32(&pos)[m] = m == 0 ? PLACES - 1 : draw_int(p, PLACES + 5) - 5;
        for (int64_t i = 0; i < d; i++) {
            want_plain[m * d + i] = (double)f32(&table)[i32(&ids)[m] * d + i];
            want[m * d + i] = want_plain[m * d + i];
            if (i32(&pos)[m] >= 0) want[m * d + i] += (double)f32(&positions)[i32(&pos)[m] * d + i];
        }
    }
    RUN(p, embedding, &tokens, &positions, &ids, &pos, &y);
    expect_near(p, "embedding", &y, want, one_rounding);
    RUN(p, embedding, &tokens, NULL, &ids, NULL, &plain);
    expect_near(p, "embedding without positions", &plain, want_plain, 0);
}

TEST(embedding)
{
    static const enum tensor_type types[] = {T_F32, T_BF16, T_F32_PACKED, T_BF16_PACKED};
    static const int64_t counts[] = {1, 7, 130}, widths[] = {1, 5, 64, 131};
    for (int i = 0; i < 4 * 3 * 4; i++) check_embedding(p, counts[i / 4 % 3], widths[i / 12], types[i % 4]);
}

TEST(prepend)
{
    static const int64_t shapes[][3] = {{1, 0, 5}, {1, 1, 1}, {2, 1, 7}, {3, 4, 64}, {2, 255, 9}};
    for (int s = 0; s < 5; s++) {
        int64_t B = shapes[s][0], T = shapes[s][1], d = shapes[s][2];
        struct tensor first = normal(p, B, d, 0, 0), rest = normal(p, B * T + (T == 0), d, 0, 0), y = blank(p, B, 1 + T, d, 0);
        if (T == 0) rest.shape[0] = 0;
        RUN(p, prepend, &first, &rest, &y);
        for (int64_t b = 0; b < B; b++)
            for (int64_t t = 0; t <= T; t++)
                expect_same(p, "prepend", f32(&y) + (b * (T + 1) + t) * d,
                            t ? f32(&rest) + (b * T + t - 1) * d : f32(&first) + b * d, (size_t)d * sizeof(float));
    }
}

TEST(slice_add)
{
    static const int64_t shapes[][4] = {{1, 1, 0, 1}, {2, 9, 3, 4}, {3, 128, 64, 64}, {5, 77, 76, 1}, {2, 12, 0, 12}};
    for (int s = 0; s < 5; s++) {
        int64_t B = shapes[s][0], m = shapes[s][1], from = shapes[s][2], n = shapes[s][3];
        struct tensor x = normal(p, B, m, 0, 0), bias = normal(p, n, 0, 0, 0), y = blank(p, B, n, 0, 0);
        double *want = doubles_new(p, B * n);
        for (int64_t i = 0; i < B * n; i++) want[i] = (double)f32(&x)[i / n * m + from + i % n] + (double)f32(&bias)[i % n];
        RUN(p, slice_add, &x, from, &bias, &y);
        expect_near(p, "slice_add", &y, want, one_rounding);
    }
}

/* Sizes around vectors, and beyond where threads share the work. */
static const int64_t lengths[] = {1, 3, 16, 31, 70001};

TEST(silu)
{
    for (int s = 0; s < 5; s++) {
        int64_t n = lengths[s];
        struct tensor x = blank(p, n, 0, 0, 0), y = blank(p, n, 0, 0, 0);
        fill_normal(p, &x, 0, 3);
        double *want = doubles_new(p, n);
        for (int64_t i = 0; i < n; i++) want[i] = (double)f32(&x)[i] * sigmoid((double)f32(&x)[i]);
        RUN(p, silu, &x, &y);
        /* an exponential within 2 ulp, an addition, a division */
        expect_near(p, "silu", &y, want, 4e-7);
    }
}

/* Each value by itself: relative to its own size, and without overflow on either side. */
TEST(silu_values)
{
    static const float values[] = {0,   -0.0f, 1e-20f, -1e-6f, 0.5f, -0.5f, -5,    -20,   -80,
                                   -87, -90,   -1000,  20,     90,   1e6f,  3e38f, -3e38f};
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        struct tensor x = blank(p, 1, 0, 0, 0), y = blank(p, 1, 0, 0, 0);
        f32(&x)[0] = values[i];
        RUN(p, silu, &x, &y);
        double want = (double)values[i] * sigmoid((double)values[i]);
        /* 1e-6 of the value; below -87 the exponential is cut off, where the result is next to nothing (1e-36) unless the
         * input is huge itself */
        double allowed = 1e-6 * fabs(want) + 1e-36 * fmax(1, fabs((double)values[i]));
        double gap = fabs((double)f32(&y)[0] - want);
        if (!(gap <= allowed)) fail_msg("silu(%g) is %g, not %g", (double)values[i], (double)f32(&y)[0], want);
    }
}

TEST(add)
{
    for (int s = 0; s < 5; s++) {
        int64_t n = lengths[s];
        struct tensor a = normal(p, n, 0, 0, 0), b = normal(p, n, 0, 0, 0), y = blank(p, n, 0, 0, 0);
        double *want = doubles_new(p, n);
        for (int64_t i = 0; i < n; i++) want[i] = (double)f32(&a)[i] + (double)f32(&b)[i];
        RUN(p, add, &a, &b, &y);
        expect_near(p, "add", &y, want, one_rounding);
    }
}

TEST(layouts)
{
    static const int64_t shapes[][4] = {{1, 1, 1, 1}, {2, 3, 5, 7}, {1, 3, 64, 64}, {3, 17, 4, 1}, {1, 256, 16, 16}};
    for (int s = 0; s < 5; s++) {
        int64_t N = shapes[s][0], C = shapes[s][1], H = shapes[s][2], W = shapes[s][3];
        struct tensor x = normal(p, N, C, H, W), y = blank(p, N, H, W, C), back = blank(p, N, C, H, W);
        RUN(p, nchw_to_nhwc, &x, &y);
        RUN(p, nhwc_to_nchw, &y, &back);
        for (int64_t i = 0; i < tensor_count(&x); i++) {
            int64_t w = i % W, h = i / W % H, c = i / (W * H) % C, n = i / (W * H * C);
            if (f32(&y)[((n * H + h) * W + w) * C + c] != f32(&x)[i]) fail_msg("nchw_to_nhwc: element %lld", (long long)i);
        }
        expect_same(p, "nhwc_to_nchw", back.data, x.data, (size_t)tensor_count(&x) * sizeof(float));
    }
}

TEST(pictures)
{
    enum { N = 2, H = 3, W = 5, BYTES = N * H * W * 3 };
    struct tensor bytes = tensor_of(p, T_I32, (BYTES + 3) / 4, 0, 0, 0), y = blank(p, N, 3, H, W);
    uint8_t *levels = bytes.data;
    for (int i = 0; i < BYTES; i++) levels[i] = (uint8_t)(i * 37 + 11);
    levels[0] = 0, levels[1] = 255, levels[2] = 128;
    RUN(p, pictures, &bytes, &y);
    for (int i = 0; i < BYTES; i++) {
        int c = i % 3, pixel = i / 3 % (H * W), n = i / 3 / (H * W);
        float got = f32(&y)[(n * 3 + c) * H * W + pixel];
        if (got != image_level_to_float(levels[i])) fail_msg("pictures: byte %d gave %g", i, (double)got);
    }
}

static void check_cross_entropy(struct place *p, int64_t M, int64_t V, double mean, double deviation)
{
    struct tensor logits = blank(p, M, V, 0, 0), target = tensor_of(p, T_I32, M, 0, 0, 0), loss = blank(p, M, 0, 0, 0);
    fill_normal(p, &logits, mean, deviation);
    double *want = doubles_new(p, M), largest = 0;
    for (int64_t m = 0; m < M; m++) {
        const float *row = f32(&logits) + m * V;
        double top = (double)row[0], sum = 0;
        i32(&target)[m] = m == 0 ? (int32_t)V - 1 : draw_int(p, V);
        for (int64_t i = 0; i < V; i++) top = fmax(top, (double)row[i]);
        for (int64_t i = 0; i < V; i++) sum += exp((double)row[i] - top);
        want[m] = top + log(sum) - (double)row[i32(&target)[m]];
        largest = fmax(largest, fabs(want[m]));
    }
    RUN(p, cross_entropy, &logits, &target, &loss);
    /* The sum of exponentials is good to 1e-6 and log(1 + 1e-6) is 1e-6, whatever the size of the loss. */
    expect_near(p, "cross_entropy", &loss, want, largest > 0 ? 2e-7 + 1e-6 / largest : 1e-6);
}

TEST(cross_entropy)
{
    static const int64_t vocabularies[] = {1, 2, 17, 255, 1000, 16384}, rows[] = {1, 6};
    for (int i = 0; i < 6 * 2; i++) {
        check_cross_entropy(p, rows[i % 2], vocabularies[i / 2], 0, 1);
        check_cross_entropy(p, rows[i % 2], vocabularies[i / 2], 1e4, 30);  /* needs its maximum taken out */
        check_cross_entropy(p, rows[i % 2], vocabularies[i / 2], -50, 200); /* most terms vanish */
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_embedding), cmocka_unit_test(test_prepend),     cmocka_unit_test(test_slice_add),
        cmocka_unit_test(test_silu),      cmocka_unit_test(test_silu_values), cmocka_unit_test(test_add),
        cmocka_unit_test(test_layouts),   cmocka_unit_test(test_pictures),    cmocka_unit_test(test_cross_entropy),
    };
    return RUN_OPS("elementwise", tests);
}
