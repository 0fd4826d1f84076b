/*
 * The GPU's ops of the tokenizer, forward and backward, against the plain C kernels (see cuda.h). Where the GPU's type is
 * bfloat16, inputs and filters hold values that it can represent, so that what is left are its roundings: one of each
 * result, to 2^-9 of it, and of what lies between (a sum before it is added to, softmax's weights) another of that size.
 */
#include "cuda.h"

#include "tensor/ops.h"

static struct gpu gpu;
static bool have_gpu;

static const enum tensor_type types[] = {T_F32, T_BF16};
#define FOR_TYPES for (const enum tensor_type *type = types; type < types + 2; type++)

/* What a sum of f32 products, or one rounding more or less to bfloat16, may differ by. */
static double near(enum tensor_type type, double exact)
{
    return type == T_BF16 ? 8e-3 : exact;
}

static struct gpu *begin(void)
{
    if (!have_gpu) skip();
    gpu_reset(&gpu);
    return &gpu;
}

/* Parameters: float32 everywhere, with values that `type` can hold. */
static struct threefold parameters(struct gpu *g, enum tensor_type type, double mean, double deviation, int64_t n0, int64_t n1,
                                   int64_t n2, int64_t n3)
{
    struct threefold t = gpu_tensor(g, T_F32, n0, n1, n2, n3);
    float *values = f32(&t.at[HOST]);
    for (int64_t i = 0; i < tensor_count(&t.at[HOST]); i++) {
        values[i] = gpu_draw(g, mean, deviation);
        if (type == T_BF16) values[i] = bf16_to_f32(bf16_from_f32(values[i]));
    }
    gpu_spread(g, &t);
    return t;
}

/* ------------------------------------------------------------------------------------------------- convolution */

static const struct conv_case {
    int64_t N, H, W, I, O, k;
    struct conv2d how;
} conv_cases[] = {
    {2, 8, 8, 16, 24, 3, {1, 1, 1, false}},     {1, 5, 7, 3, 5, 3, {1, 1, 1, false}},
    {2, 9, 6, 12, 20, 3, {1, 1, 1, false}},     {1, 16, 16, 128, 64, 3, {1, 1, 1, false}},
    {3, 16, 16, 3, 128, 3, {1, 1, 1, false}},   {1, 16, 16, 128, 3, 3, {1, 1, 1, false}},
    {2, 4, 4, 16, 8, 3, {1, 1, 1, true}},       {1, 3, 5, 5, 7, 3, {1, 1, 1, true}},
    {2, 8, 8, 16, 8, 3, {2, 0, 1, false}},      {1, 7, 9, 3, 4, 3, {2, 0, 1, false}},
    {1, 32, 32, 128, 128, 3, {2, 0, 1, false}}, {2, 8, 8, 3, 16, 4, {2, 1, 1, false}},
    {1, 9, 9, 16, 1, 4, {1, 1, 1, false}},      {1, 8, 8, 6, 10, 1, {2, 0, 0, false}},
    {2, 9, 9, 16, 16, 3, {2, 1, 1, false}},     {1, 16, 16, 256, 256, 3, {1, 1, 1, false}},
    {1, 16, 16, 256, 128, 3, {1, 1, 1, false}}, {2, 8, 8, 16, 36, 3, {1, 1, 1, false}},
    {3, 9, 7, 24, 132, 3, {1, 1, 1, true}},     {3, 9, 7, 24, 68, 3, {1, 1, 1, true}},
    {1, 32, 32, 64, 128, 3, {2, 0, 1, false}},  {2, 12, 12, 32, 64, 4, {2, 1, 1, false}},
    {2, 5, 5, 40, 48, 1, {1, 0, 0, false}},     {1, 4, 4, 256, 128, 3, {1, 1, 1, true}},
    {2, 1, 3, 128, 40, 3, {1, 1, 1, true}},     {2, 20, 70, 32, 32, 3, {1, 1, 1, false}},
    {1, 65, 33, 32, 64, 3, {1, 1, 1, false}},   {3, 17, 16, 64, 64, 3, {1, 1, 1, false}},
    {1, 5, 40, 64, 32, 3, {1, 1, 1, false}},    {2, 9, 35, 32, 3, 3, {1, 1, 1, false}},
    {1, 12, 20, 32, 32, 3, {1, 1, 1, true}},    {1, 9, 11, 64, 64, 3, {1, 1, 1, true}},
    {1, 3, 2, 32, 64, 3, {1, 1, 1, true}},      {1, 34, 10, 64, 32, 3, {1, 1, 1, true}},
    {2, 20, 70, 32, 32, 3, {2, 0, 1, false}},   {1, 17, 34, 64, 64, 3, {2, 0, 1, false}},
    {1, 9, 7, 32, 64, 3, {2, 0, 1, false}},     {2, 20, 70, 3, 32, 3, {1, 1, 1, false}},
    {1, 9, 50, 3, 64, 3, {1, 1, 1, false}},     {1, 17, 5, 8, 32, 3, {1, 1, 1, false}},
    {2, 33, 40, 32, 3, 3, {1, 1, 1, false}},    {1, 5, 18, 32, 7, 3, {1, 1, 1, false}},
    {1, 36, 18, 64, 32, 3, {2, 0, 1, false}},
};

static int64_t conv_side(int64_t side, const struct conv_case *c)
{
    return (side * (c->how.upsample ? 2 : 1) + c->how.pad_before + c->how.pad_after - c->k) / c->how.stride + 1;
}

static void forget_copies(struct threefold *w)
{
    for (int side = GPU; side < SIDES; side++) {
        if (w->at[side].converted) w->at[side].converted_free(w->at[side].converted);
        w->at[side].converted = NULL;
    }
}

static void check_conv(const struct conv_case *c, enum tensor_type type, bool constant, bool biased)
{
    struct gpu *g = begin();
    int64_t OH = conv_side(c->H, c), OW = conv_side(c->W, c);
    const struct conv2d *how = &c->how;
    struct threefold x = gpu_normal(g, type, 0, 1, c->N, c->H, c->W, c->I);
    struct threefold w = parameters(g, type, 0, 1 / sqrt((double)(c->k * c->k * c->I)), c->O, c->I, c->k, c->k);
    struct threefold bias = parameters(g, type, 0, 1, c->O, 0, 0, 0), y = gpu_blank(g, type, c->N, OH, OW, c->O);
    struct threefold dy = gpu_normal(g, type, 0, 1, c->N, OH, OW, c->O), dx = gpu_normal(g, type, 0, 1, c->N, c->H, c->W, c->I);
    struct threefold dw = gpu_normal(g, T_F32, 0, 1, c->O, c->I, c->k, c->k), dbias = gpu_normal(g, T_F32, 0, 1, c->O, 0, 0, 0);
    for (int side = GPU; side < SIDES; side++) w.at[side].constant = bias.at[side].constant = constant;
    RUN_SIDES(g, conv2d, AT(x), AT(w), biased ? AT(bias) : NULL, how, AT(y));
    RUN_SIDES(g, conv2d_backward, AT(x), AT(w), how, AT(dy), AT(dx), AT(dw), biased ? AT(dbias) : NULL);
    expect_sides(g, "conv2d", &y, near(type, 1e-5));
    expect_sides(g, "conv2d: dx", &dx, near(type, 1e-5));
    expect_sides(g, "conv2d: dw", &dw, near(type, 1e-5));
    if (biased) expect_sides(g, "conv2d: dbias", &dbias, 1e-5);
    forget_copies(&w);
    forget_copies(&bias);
}

static void conv2d_all(void **state)
{
    (void)state;
    FOR_TYPES
    for (size_t i = 0; i < sizeof conv_cases / sizeof conv_cases[0]; i++) check_conv(&conv_cases[i], *type, i % 2, i % 3 < 2);
}

/* What is kept of constant filters and biases follows the type of the map. */
static void conv2d_types(void **state)
{
    (void)state;
    static const enum tensor_type order[] = {T_F32, T_BF16, T_BF16, T_F32};
    static const int64_t inputs[] = {16, 12};
    const struct conv2d how = {1, 1, 1, false};
    for (int i = 0; i < 2; i++) {
        struct gpu *g = begin();
        struct threefold w = parameters(g, T_BF16, 0, 0.1, 24, inputs[i], 3, 3),
                         bias = parameters(g, T_BF16, 0, 1, 24, 0, 0, 0);
        for (int side = GPU; side < SIDES; side++) w.at[side].constant = bias.at[side].constant = true;
        for (size_t turn = 0; turn < sizeof order / sizeof order[0]; turn++) {
            enum tensor_type type = order[turn];
            struct threefold x = gpu_normal(g, type, 0, 1, 2, 6, 6, inputs[i]), y = gpu_blank(g, type, 2, 6, 6, 24);
            RUN_SIDES(g, conv2d, AT(x), AT(w), AT(bias), &how, AT(y));
            expect_sides(g, "conv2d, one type after another", &y, near(type, 1e-5));
        }
        forget_copies(&w);
        forget_copies(&bias);
    }
}

/* Each gradient by itself, where the others are not wanted. */
static void conv2d_parts(void **state)
{
    (void)state;
    const struct conv2d how = {1, 1, 1, false};
    FOR_TYPES
    {
        struct gpu *g = begin();
        struct threefold x = gpu_normal(g, *type, 0, 1, 2, 6, 6, 8), w = parameters(g, *type, 0, 0.1, 16, 8, 3, 3);
        struct threefold dy = gpu_normal(g, *type, 0, 1, 2, 6, 6, 16), dx = gpu_normal(g, *type, 0, 1, 2, 6, 6, 8);
        struct threefold dw = gpu_normal(g, T_F32, 0, 1, 16, 8, 3, 3), dbias = gpu_normal(g, T_F32, 0, 1, 16, 0, 0, 0);
        RUN_SIDES(g, conv2d_backward, AT(x), AT(w), &how, AT(dy), AT(dx), NULL, NULL);
        RUN_SIDES(g, conv2d_backward, AT(x), AT(w), &how, AT(dy), NULL, AT(dw), NULL);
        RUN_SIDES(g, conv2d_backward, AT(x), AT(w), &how, AT(dy), NULL, NULL, AT(dbias));
        expect_sides(g, "dx alone", &dx, near(*type, 1e-5));
        expect_sides(g, "dw alone", &dw, near(*type, 1e-5));
        expect_sides(g, "dbias alone", &dbias, 1e-5);
    }
}

/* ------------------------------------------------------------------------------------------- norms, attention */

static void group_norm(void **state)
{
    (void)state;
    static const struct {
        int64_t N, H, W, C;
        int groups;
        double mean;
    } cases[] = {{2, 4, 4, 32, 32, 0},    {1, 5, 7, 64, 32, 3},     {2, 16, 16, 128, 32, 0.5},
                 {1, 33, 17, 96, 32, -2}, {2, 3, 5, 12, 4, 1},      {1, 1, 2, 64, 32, 0},
                 {3, 16, 16, 512, 32, 0}, {1, 64, 65, 256, 32, 20}, {1, 2, 3, 2080, 32, 0}};
    FOR_TYPES
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        for (int silu = 0; silu < 2; silu++) {
            struct gpu *g = begin();
            int64_t N = cases[i].N, H = cases[i].H, W = cases[i].W, C = cases[i].C;
            struct threefold x = gpu_normal(g, *type, cases[i].mean, 1, N, H, W, C), y = gpu_blank(g, *type, N, H, W, C);
            struct threefold w = gpu_normal(g, T_F32, 1, 0.3, C, 0, 0, 0), b = gpu_normal(g, T_F32, 0, 0.3, C, 0, 0, 0);
            struct threefold dy = gpu_normal(g, *type, 0, 1, N, H, W, C), dx = gpu_normal(g, *type, 0, 1, N, H, W, C);
            struct threefold dw = gpu_normal(g, T_F32, 0, 1, C, 0, 0, 0), db = gpu_normal(g, T_F32, 0, 1, C, 0, 0, 0);
            int groups = cases[i].groups;
            struct threefold statistics = gpu_blank(g, T_F32, N, groups, 2, 0), again = gpu_normal(g, *type, 0, 1, N, H, W, C);
            RUN_SIDES(g, group_norm_silu, AT(x), AT(w), AT(b), groups, 1e-6f, silu, AT(statistics), AT(y));
            RUN_SIDES(g, group_norm_silu_backward, AT(x), AT(w), AT(b), groups, 1e-6f, silu, AT(statistics), AT(dy), AT(dx),
                      AT(dw), AT(db));
            RUN_SIDES(g, group_norm_silu_backward, AT(x), AT(w), AT(b), groups, 1e-6f, silu, NULL, AT(dy), AT(again), NULL,
                      NULL);
            expect_sides(g, "group_norm_silu: statistics", &statistics, 1e-5);
            expect_sides(g, "group_norm_silu: dx without statistics", &again, near(*type, 2e-5));
            expect_sides(g, "group_norm_silu", &y, near(*type, 1e-5));
            expect_sides(g, "group_norm_silu: dx", &dx, near(*type, 2e-5));
            expect_sides(g, "group_norm_silu: dw", &dw, 2e-5);
            expect_sides(g, "group_norm_silu: db", &db, 2e-5);
        }
}

static void batch_norm(void **state)
{
    (void)state;
    static const int64_t cases[][4] = {{2, 4, 4, 32}, {1, 5, 7, 3}, {2, 31, 31, 512}, {3, 64, 64, 128}, {1, 1, 2, 7}};
    FOR_TYPES
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct gpu *g = begin();
        int64_t N = cases[i][0], H = cases[i][1], W = cases[i][2], C = cases[i][3];
        struct threefold x = gpu_normal(g, *type, 0.7, 1, N, H, W, C), y = gpu_blank(g, *type, N, H, W, C);
        struct threefold w = gpu_normal(g, T_F32, 1, 0.3, C, 0, 0, 0), b = gpu_normal(g, T_F32, 0, 0.3, C, 0, 0, 0);
        struct threefold mean = gpu_normal(g, T_F32, 0, 1, C, 0, 0, 0), variance = gpu_normal(g, T_F32, 2, 0.1, C, 0, 0, 0);
        struct threefold statistics = gpu_blank(g, T_F32, 2, C, 0, 0), dy = gpu_normal(g, *type, 0, 1, N, H, W, C);
        struct threefold dx = gpu_normal(g, *type, 0, 1, N, H, W, C), dw = gpu_normal(g, T_F32, 0, 1, C, 0, 0, 0);
        struct threefold db = gpu_normal(g, T_F32, 0, 1, C, 0, 0, 0);
        RUN_SIDES(g, batch_norm, AT(x), AT(w), AT(b), 1e-5f, 0.1f, AT(mean), AT(variance), AT(statistics), AT(y));
        RUN_SIDES(g, batch_norm_backward, AT(x), AT(w), AT(statistics), AT(dy), AT(dx), AT(dw), AT(db));
        expect_sides(g, "batch_norm", &y, near(*type, 1e-5));
        expect_sides(g, "batch_norm: mean", &mean, 1e-6);
        expect_sides(g, "batch_norm: variance", &variance, 1e-5);
        expect_sides(g, "batch_norm: statistics", &statistics, 1e-5);
        expect_sides(g, "batch_norm: dx", &dx, near(*type, 2e-5));
        expect_sides(g, "batch_norm: dw", &dw, 2e-5);
        expect_sides(g, "batch_norm: db", &db, 2e-5);
    }
}

static void attention(void **state)
{
    (void)state;
    static const int64_t cases[][3] = {{2, 16, 32}, {1, 64, 24}, {2, 256, 512}, {1, 1, 8}, {3, 15, 40}};
    FOR_TYPES
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct gpu *g = begin();
        int64_t N = cases[i][0], L = cases[i][1], C = cases[i][2];
        struct threefold q = gpu_normal(g, *type, 0, 1, N, L, C, 0), k = gpu_normal(g, *type, 0, 1, N, L, C, 0);
        struct threefold v = gpu_normal(g, *type, 0, 1, N, L, C, 0), y = gpu_blank(g, *type, N, L, C, 0);
        struct threefold dy = gpu_normal(g, *type, 0, 1, N, L, C, 0), dq = gpu_normal(g, *type, 0, 1, N, L, C, 0);
        struct threefold dk = gpu_normal(g, *type, 0, 1, N, L, C, 0), dv = gpu_normal(g, *type, 0, 1, N, L, C, 0);
        RUN_SIDES(g, attention, AT(q), AT(k), AT(v), AT(y));
        RUN_SIDES(g, attention_backward, AT(q), AT(k), AT(v), AT(dy), AT(dq), AT(dk), AT(dv));
        expect_sides(g, "attention", &y, near(*type, 1e-5));
        expect_sides(g, "attention: dq", &dq, near(*type, 1e-5));
        expect_sides(g, "attention: dk", &dk, near(*type, 1e-5));
        expect_sides(g, "attention: dv", &dv, near(*type, 1e-5));
    }
}

/* --------------------------------------------------------------------------------------------- the quantiser */

static void normalize_rows(void **state)
{
    (void)state;
    static const int64_t cases[][2] = {{1, 8}, {300, 8}, {7, 5}, {33, 64}};
    FOR_TYPES
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct gpu *g = begin();
        int64_t M = cases[i][0], D = cases[i][1];
        struct threefold x = gpu_normal(g, *type, 0, 1, M, D, 0, 0), y = gpu_blank(g, *type, M, D, 0, 0);
        struct threefold dy = gpu_normal(g, *type, 0, 1, M, D, 0, 0), dx = gpu_normal(g, *type, 0, 1, M, D, 0, 0);
        if (M > 4) { /* a row without a length */
            memset(f32(&x.at[HOST]) + 3 * D, 0, (size_t)D * sizeof(float));
            memset(f32(&dy.at[HOST]) + 3 * D, 0, (size_t)D * sizeof(float));
            gpu_spread(g, &x);
            gpu_spread(g, &dy);
        }
        RUN_SIDES(g, normalize_rows, AT(x), AT(y));
        RUN_SIDES(g, normalize_rows_backward, AT(x), AT(dy), AT(dx));
        expect_sides(g, "normalize_rows", &y, near(*type, 1e-6));
        expect_sides(g, "normalize_rows: dx", &dx, near(*type, 1e-6));
    }
}

/* Rows of unit length. */
static struct threefold unit_rows(struct gpu *g, int64_t M, int64_t D)
{
    struct threefold x = gpu_normal(g, T_F32, 0, 1, M, D, 0, 0), y = gpu_blank(g, T_F32, M, D, 0, 0);
    assert_ok(&g->host_ctx, g->host->op.normalize_rows(g->host, &x.at[HOST], &y.at[HOST]));
    gpu_spread(g, &y);
    return y;
}

static double row_product(const struct threefold *z, int64_t m, const struct threefold *e, int64_t j)
{
    double sum = 0;
    int64_t D = tensor_cols(&z->at[HOST]);
    for (int64_t i = 0; i < D; i++) sum += (double)f32(&z->at[HOST])[m * D + i] * (double)f32(&e->at[HOST])[j * D + i];
    return sum;
}

/* Every code is there twice: the first must win, and be as near as the reference's to float32's rounding. */
static void nearest_code(void **state)
{
    (void)state;
    static const int64_t cases[][3] = {{256, 16384, 8}, {1, 2, 8}, {130, 2050, 8}, {3, 100, 8}, {65, 1200, 5}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct gpu *g = begin();
        int64_t M = cases[i][0], V = cases[i][1], D = cases[i][2];
        struct threefold z = unit_rows(g, M, D), e = unit_rows(g, V, D), ids = gpu_ids(g, M, V);
        memcpy(f32(&e.at[HOST]) + V / 2 * D, e.at[HOST].data, (size_t)(V / 2 * D) * sizeof(float));
        gpu_spread(g, &e);
        RUN_SIDES(g, nearest_code, AT(z), AT(e), AT(ids));
        const int32_t *found = gpu_download(g, &ids.at[GPU]), *again = gpu_download(g, &ids.at[AGAIN]);
        for (int64_t m = 0; m < M; m++) {
            assert_int_equal(found[m], again[m]);
            assert_in_range(found[m], 0, V / 2 - 1);
            double best = row_product(&z, m, &e, i32(&ids.at[HOST])[m]);
            assert_true(row_product(&z, m, &e, found[m]) >= best - 1e-6);
        }
    }
}

static void code_entropy(void **state)
{
    (void)state;
    static const int64_t cases[][3] = {{40, 600, 8}, {5, 3, 8}, {1100, 16384, 8}, {17, 31, 5}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct gpu *g = begin();
        int64_t M = cases[i][0], V = cases[i][1], D = cases[i][2];
        struct threefold z = unit_rows(g, M, D), e = unit_rows(g, V, D), average = gpu_blank(g, T_F32, V, 0, 0, 0);
        struct threefold loss = gpu_blank(g, T_F32, 1, 0, 0, 0), dloss = gpu_normal(g, T_F32, 1, 0.1, 1, 0, 0, 0);
        /* gradients are added to zeros: they are small beside 1 */
        struct threefold dz = gpu_normal(g, T_F32, 0, 0, M, D, 0, 0), de = gpu_normal(g, T_F32, 0, 1e-4, V, D, 0, 0);
        RUN_SIDES(g, code_entropy, AT(z), AT(e), 0.01f, 0.5f, AT(average), AT(loss));
        RUN_SIDES(g, code_entropy_backward, AT(z), AT(e), 0.01f, 0.5f, AT(average), AT(dloss), AT(dz), AT(de));
        /* differences of scores are 200 times those of products, whose rounding is 1e-7 */
        expect_sides(g, "code_entropy: average", &average, 5e-5);
        expect_sides(g, "code_entropy", &loss, 5e-5);
        expect_sides(g, "code_entropy: dz", &dz, 5e-5);
        expect_sides(g, "code_entropy: de", &de, 5e-5);
    }
}

/* ------------------------------------------------------------------------------------------- layouts and pixels */

static void layouts(void **state)
{
    (void)state;
    static const int64_t cases[][4] = {{1, 3, 4, 4}, {2, 3, 31, 17}, {1, 40, 9, 5}};
    FOR_TYPES
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct gpu *g = begin();
        const int64_t *n = cases[i];
        struct threefold x = gpu_normal(g, T_F32, 0, 1, n[0], n[1], n[2], n[3]);
        struct threefold y = gpu_blank(g, *type, n[0], n[2], n[3], n[1]), back = gpu_blank(g, T_F32, n[0], n[1], n[2], n[3]);
        RUN_SIDES(g, nchw_to_nhwc, AT(x), AT(y));
        RUN_SIDES(g, nhwc_to_nchw, AT(y), AT(back));
        expect_sides(g, "nchw_to_nhwc", &y, *type == T_BF16 ? 4e-3 : 0);
        expect_sides(g, "nhwc_to_nchw", &back, *type == T_BF16 ? 4e-3 : 0);
        struct threefold bytes = gpu_ids(g, (n[0] * n[2] * n[3] * 3 + 3) / 4, INT32_MAX);
        struct threefold pixels = gpu_blank(g, T_F32, n[0], 3, n[2], n[3]);
        RUN_SIDES(g, pictures, AT(bytes), AT(pixels));
        expect_sides(g, "pictures", &pixels, 0);
    }
}

static void value_by_value(void **state)
{
    (void)state;
    static const int64_t counts[] = {1, 37, 4096, 100003};
    FOR_TYPES
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        struct gpu *g = begin();
        int64_t n = counts[i];
        struct threefold x = gpu_normal(g, *type, 0, 1, n, 0, 0, 0), y = gpu_blank(g, *type, n, 0, 0, 0);
        struct threefold dy = gpu_normal(g, *type, 0, 1, n, 0, 0, 0), dx = gpu_normal(g, *type, 0, 1, n, 0, 0, 0);
        struct threefold scaled = gpu_blank(g, *type, n, 0, 0, 0);
        RUN_SIDES(g, leaky_relu, AT(x), 0.2f, AT(y));
        RUN_SIDES(g, leaky_relu_backward, AT(x), 0.2f, AT(dy), AT(dx));
        RUN_SIDES(g, scale, AT(x), -0.7f, AT(scaled));
        expect_sides(g, "leaky_relu", &y, near(*type, 1e-7));
        expect_sides(g, "leaky_relu: dx", &dx, near(*type, 1e-7));
        expect_sides(g, "scale", &scaled, near(*type, 1e-7));
        RUN_SIDES(g, scale_backward, -0.7f, AT(dy), AT(dx));
        expect_sides(g, "scale: dx", &dx, near(*type, 1e-6));
    }
}

static void pool_and_blur(void **state)
{
    (void)state;
    static const int64_t cases[][4] = {{1, 2, 2, 1}, {2, 4, 6, 64}, {1, 5, 7, 17}, {2, 33, 32, 40}};
    FOR_TYPES
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct gpu *g = begin();
        int64_t N = cases[i][0], H = cases[i][1], W = cases[i][2], C = cases[i][3];
        struct threefold x = gpu_normal(g, *type, 0, 1, N, H, W, C), y = gpu_blank(g, *type, N, H / 2, W / 2, C);
        float *values = f32(&x.at[HOST]);
        for (int64_t k = 0; k < tensor_count(&x.at[HOST]); k++) values[k] = fmaxf(values[k], 0); /* many equals */
        gpu_spread(g, &x);
        struct threefold dy = gpu_normal(g, *type, 0, 1, N, H / 2, W / 2, C), dx = gpu_normal(g, *type, 0, 1, N, H, W, C);
        struct threefold soft = gpu_blank(g, *type, N, H, W, C), dsoft = gpu_normal(g, *type, 0, 1, N, H, W, C);
        RUN_SIDES(g, max_pool, AT(x), AT(y));
        RUN_SIDES(g, max_pool_backward, AT(x), AT(dy), AT(dx));
        expect_sides(g, "max_pool", &y, 0);
        expect_sides(g, "max_pool: dx", &dx, near(*type, 1e-7));
        RUN_SIDES(g, blur, AT(x), AT(soft));
        RUN_SIDES(g, blur_backward, AT(dsoft), AT(dx));
        expect_sides(g, "blur", &soft, near(*type, 1e-6));
        expect_sides(g, "blur: dx", &dx, near(*type, 1e-6));
    }
}

/* ------------------------------------------------------------------------------------------------------ losses */

static void means(void **state)
{
    (void)state;
    static const int64_t counts[] = {1, 1000, 16384, 50021};
    FOR_TYPES
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        struct gpu *g = begin();
        int64_t n = counts[i];
        struct threefold a = gpu_normal(g, *type, 0, 1, n, 0, 0, 0), b = gpu_normal(g, T_F32, 0, 1, n, 0, 0, 0);
        struct threefold loss = gpu_blank(g, T_F32, 1, 0, 0, 0), dloss = gpu_normal(g, T_F32, (double)n, 1, 1, 0, 0, 0);
        struct threefold da = gpu_normal(g, *type, 0, 1, n, 0, 0, 0), db = gpu_normal(g, T_F32, 0, 1, n, 0, 0, 0);
        RUN_SIDES(g, mean_square, AT(a), AT(b), 0.25f, AT(loss));
        RUN_SIDES(g, mean_square_backward, AT(a), AT(b), 0.25f, AT(dloss), AT(da), AT(db));
        expect_sides(g, "mean_square", &loss, 1e-6);
        expect_sides(g, "mean_square: da", &da, near(*type, 1e-6));
        expect_sides(g, "mean_square: db", &db, 1e-6);
        RUN_SIDES(g, mean_absolute, AT(a), AT(b), 0.25f, AT(loss));
        RUN_SIDES(g, mean_absolute_backward, AT(a), AT(b), 0.25f, AT(dloss), AT(da), AT(db));
        expect_sides(g, "mean_absolute", &loss, 1e-6);
        expect_sides(g, "mean_absolute: da", &da, near(*type, 1e-6));
        expect_sides(g, "mean_absolute: db", &db, 1e-6);
        for (enum mean_map map = MAP_IDENTITY; map <= MAP_SOFTPLUS_MINUS; map++) {
            struct threefold x = gpu_normal(g, *type, 0.5, 2, n, 0, 0, 0), dx = gpu_normal(g, *type, 0, 1, n, 0, 0, 0);
            RUN_SIDES(g, mean_map, AT(x), map, 0.5f, AT(loss));
            RUN_SIDES(g, mean_map_backward, AT(x), map, 0.5f, AT(dloss), AT(dx));
            expect_sides(g, "mean_map", &loss, 1e-5);
            expect_sides(g, "mean_map: dx", &dx, near(*type, 1e-6));
        }
    }
}

static void lpips(void **state)
{
    (void)state;
    static const int64_t cases[][4] = {{2, 4, 4, 64}, {1, 13, 11, 17}, {3, 16, 16, 512}, {1, 1, 1, 3}};
    const struct dropout dropout = {77, 5};
    FOR_TYPES
    for (size_t i = 0; i < 2 * (sizeof cases / sizeof cases[0]); i++) {
        struct gpu *g = begin();
        int64_t N = cases[i / 2][0], H = cases[i / 2][1], W = cases[i / 2][2], C = cases[i / 2][3];
        const struct dropout *drop = i % 2 ? &dropout : NULL;
        struct threefold a = gpu_normal(g, *type, 0, 1, N, H, W, C), b = gpu_normal(g, *type, 0, 1, N, H, W, C);
        struct threefold w = gpu_normal(g, T_F32, 1, 0.2, C, 0, 0, 0), distance = gpu_blank(g, T_F32, N, 0, 0, 0);
        struct threefold up = gpu_normal(g, T_F32, (double)(H * W), 1, N, 0, 0, 0), da = gpu_normal(g, *type, 0, 1, N, H, W, C);
        if (H * W > 4) memset(f32(&a.at[HOST]) + 3 * C, 0, (size_t)C * sizeof(float)); /* a pixel without features */
        gpu_spread(g, &a);
        RUN_SIDES(g, lpips_distance, AT(a), AT(b), AT(w), drop, AT(distance));
        RUN_SIDES(g, lpips_distance_backward, AT(a), AT(b), AT(w), drop, AT(up), AT(da));
        expect_sides(g, "lpips_distance", &distance, 1e-5);
        expect_sides(g, "lpips_distance: da", &da, near(*type, 1e-5));
    }
}

/* --------------------------------------------------------------------------------------------- fresh gradients */

/* A gradient of (N,H,W,C) that holds nothing yet. */
static struct threefold fresh_map(struct gpu *g, enum tensor_type type, int64_t N, int64_t H, int64_t W, int64_t C)
{
    struct threefold t = gpu_fresh(g, type, 0, C, N, H * W, C);
    for (int side = 0; side < SIDES; side++)
        t.at[side] = tensor_view(t.at[side].type, t.at[side].data, N, H, W, C), t.at[side].fresh = (struct fresh_columns){0, 0};
    t.at[GPU].fresh = t.at[AGAIN].fresh = (struct fresh_columns){0, C};
    return t;
}

static void expect_written(struct gpu *g, const char *what, const struct threefold *t, double tolerance)
{
    for (int side = GPU; side < SIDES; side++) assert_int_equal(t->at[side].fresh.first, t->at[side].fresh.end);
    expect_sides(g, what, t, tolerance);
}

static void fresh_convolutions(void **state)
{
    (void)state;
    static const struct conv_case cases[] = {{2, 8, 8, 16, 24, 3, {1, 1, 1, false}},  {1, 5, 7, 3, 5, 3, {1, 1, 1, false}},
                                             {2, 8, 8, 16, 8, 3, {2, 0, 1, false}},   {2, 4, 4, 16, 8, 3, {1, 1, 1, true}},
                                             {2, 9, 20, 32, 32, 3, {1, 1, 1, false}}, {1, 6, 9, 64, 32, 3, {1, 1, 1, true}},
                                             {1, 10, 18, 64, 64, 3, {1, 1, 1, false}}};
    FOR_TYPES
    for (const struct conv_case *c = cases; c < cases + sizeof cases / sizeof cases[0]; c++) {
        struct gpu *g = begin();
        int64_t OH = conv_side(c->H, c), OW = conv_side(c->W, c);
        struct threefold x = gpu_normal(g, *type, 0, 1, c->N, c->H, c->W, c->I),
                         w = parameters(g, *type, 0, 0.1, c->O, c->I, 3, 3);
        struct threefold dy = gpu_normal(g, *type, 0, 1, c->N, OH, OW, c->O), dx = fresh_map(g, *type, c->N, c->H, c->W, c->I);
        RUN_SIDES(g, conv2d_backward, AT(x), AT(w), &c->how, AT(dy), AT(dx), NULL, NULL);
        expect_written(g, "conv2d: fresh dx", &dx, near(*type, 1e-5));
    }
}

static void fresh_maps(void **state)
{
    (void)state;
    enum { N = 2, H = 5, W = 6, C = 64 };
    FOR_TYPES
    {
        struct gpu *g = begin();
        struct threefold x = gpu_normal(g, *type, 0.5, 1, N, H, W, C), other = gpu_normal(g, *type, 0, 1, N, H, W, C);
        struct threefold dy = gpu_normal(g, *type, 0, 1, N, H, W, C), w = gpu_normal(g, T_F32, 1, 0.3, C, 0, 0, 0);
        struct threefold b = gpu_normal(g, T_F32, 0, 0.3, C, 0, 0, 0), statistics = gpu_normal(g, T_F32, 1, 0.1, 2, C, 0, 0);
        struct threefold up = gpu_normal(g, T_F32, 1000, 1, N, 0, 0, 0), dx[10];
        memset(f32(&x.at[HOST]) + 3 * C, 0, C * sizeof(float)); /* a pixel without features */
        gpu_spread(g, &x);
        for (int i = 0; i < 10; i++) dx[i] = fresh_map(g, *type, N, H, W, C);
        RUN_SIDES(g, group_norm_silu_backward, AT(x), AT(w), AT(b), 32, 1e-6f, true, NULL, AT(dy), AT(dx[0]), NULL, NULL);
        RUN_SIDES(g, group_norm_silu_backward, AT(x), AT(w), AT(b), 2, 1e-6f, false, NULL, AT(dy), AT(dx[1]), NULL, NULL);
        RUN_SIDES(g, batch_norm_backward, AT(x), AT(w), AT(statistics), AT(dy), AT(dx[2]), NULL, NULL);
        RUN_SIDES(g, leaky_relu_backward, AT(x), 0.2f, AT(dy), AT(dx[3]));
        RUN_SIDES(g, scale_backward, 0.3f, AT(dy), AT(dx[4]));
        RUN_SIDES(g, blur_backward, AT(dy), AT(dx[5]));
        RUN_SIDES(g, mean_square_backward, AT(x), AT(other), 100.0f, AT(up), AT(dx[6]), NULL);
        RUN_SIDES(g, lpips_distance_backward, AT(x), AT(other), AT(w), NULL, AT(up), AT(dx[7]));
        RUN_SIDES(g, accumulate, AT(dy), AT(dx[8]));
        RUN_SIDES(g, normalize_rows_backward, AT(other), AT(dy), AT(dx[9]));
        for (int i = 0; i < 10; i++) expect_written(g, "a fresh gradient", &dx[i], near(*type, 2e-5));
    }
}

int main(void)
{
    have_gpu = gpu_open(&gpu);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(conv2d_all),     cmocka_unit_test(conv2d_types),   cmocka_unit_test(conv2d_parts),
        cmocka_unit_test(group_norm),     cmocka_unit_test(batch_norm),     cmocka_unit_test(attention),
        cmocka_unit_test(normalize_rows), cmocka_unit_test(nearest_code),   cmocka_unit_test(code_entropy),
        cmocka_unit_test(layouts),        cmocka_unit_test(value_by_value), cmocka_unit_test(pool_and_blur),
        cmocka_unit_test(means),          cmocka_unit_test(lpips),          cmocka_unit_test(fresh_convolutions),
        cmocka_unit_test(fresh_maps),
    };
    cmocka_set_test_filter(getenv("AIM_TEST_FILTER")); /* for slow checkers */
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    gpu_close(&gpu);
    return failed;
}
