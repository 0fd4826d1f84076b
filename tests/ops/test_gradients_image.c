/* Backward of the tokenizer's ops: conv2d, group_norm_silu, attention, normalize_rows, mean_square, and accumulate. */
#include "gradients.h"

enum { SAMPLES = 24 };

static double silu(double x)
{
    return x / (1 + exp(-x));
}

/* ------------------------------------------------------------------------------------------------------ conv2d */

struct convolution {
    int64_t N, H, W, I, O, k;
    struct conv2d how;
};

static int64_t conv_out(const struct convolution *c, int64_t in)
{
    return (in * (c->how.upsample ? 2 : 1) + c->how.pad_before + c->how.pad_after - c->k) / c->how.stride + 1;
}

/* One output: the sum over its patch. */
static double conv_value(const struct gradient *g, const struct convolution *c, int64_t n, int64_t oy, int64_t ox, int64_t o)
{
    int shift = c->how.upsample;
    double sum = g->in[2].at[o];
    for (int64_t tap = 0; tap < c->k * c->k; tap++) {
        int64_t iy = oy * c->how.stride + tap / c->k - c->how.pad_before,
                ix = ox * c->how.stride + tap % c->k - c->how.pad_before;
        if (iy < 0 || ix < 0 || iy >= c->H << shift || ix >= c->W << shift) continue;
        const double *x = g->in[0].at + ((n * c->H + (iy >> shift)) * c->W + (ix >> shift)) * c->I;
        const double *w = g->in[1].at + o * c->I * c->k * c->k + tap;
        for (int64_t i = 0; i < c->I; i++) sum += x[i] * w[i * c->k * c->k];
    }
    return sum;
}

static void conv_forward(const struct gradient *g, double *y)
{
    const struct convolution *c = g->how;
    int64_t OH = conv_out(c, c->H), OW = conv_out(c, c->W);
    for (int64_t i = 0; i < c->N * OH * OW * c->O; i++) {
        int64_t pixel = i / c->O;
        y[i] = conv_value(g, c, pixel / (OH * OW), pixel / OW % OH, pixel % OW, i % c->O);
    }
}

static aim_status conv_backward(const struct gradient *g, struct tensor *const d[SIDES])
{
    const struct convolution *c = g->how;
    return g->p->be->op.conv2d_backward(g->p->be, &g->in[0].value, &g->in[1].value, &c->how, &g->dy[0], d[0], d[1], d[2]);
}

static void check_conv(struct place *p, const struct convolution *c, int64_t samples, double tolerance)
{
    struct gradient g = {.p = p, .op = ID_conv2d_backward, .name = "conv2d", .how = c};
    struct tensor x = normal(p, c->N, c->H, c->W, c->I), w = normal(p, c->O, c->I, c->k, c->k), bias = normal(p, c->O, 0, 0, 0);
    g.forward = conv_forward;
    g.backward = conv_backward;
    g.dy[0] = normal(p, c->N, conv_out(c, c->H), conv_out(c, c->W), c->O);
    gradient_side(&g, 0, "x", &x);
    gradient_side(&g, 1, "w", &w);
    gradient_side(&g, 2, "bias", &bias);
    gradient_run(&g);
    for (int i = 0; i < 3; i++) gradient_check_all(&g, i, samples, tolerance);
}

#define SAME                                                                                                                   \
    {                                                                                                                          \
        .stride = 1, .pad_before = 1, .pad_after = 1                                                                           \
    }
#define SAME_UP                                                                                                                \
    {                                                                                                                          \
        .stride = 1, .pad_before = 1, .pad_after = 1, .upsample = true                                                         \
    }
#define POINT                                                                                                                  \
    {                                                                                                                          \
        .stride = 1                                                                                                            \
    }
#define DOWN                                                                                                                   \
    {                                                                                                                          \
        .stride = 2, .pad_after = 1                                                                                            \
    }

TEST(conv2d)
{
    /* the tokenizer's kinds at odd sizes: channels around vectors and panels, the pictures' 3 among them */
    static const struct convolution kinds[] = {
        {1, 1, 1, 1, 1, 3, SAME},    {2, 5, 7, 3, 33, 3, SAME},    {1, 6, 9, 40, 3, 3, SAME},    {2, 9, 4, 13, 7, 3, SAME},
        {1, 1, 1, 5, 3, 3, SAME_UP}, {2, 3, 5, 9, 34, 3, SAME_UP}, {1, 7, 2, 33, 5, 3, SAME_UP}, {1, 1, 1, 7, 9, 1, POINT},
        {2, 5, 3, 33, 8, 1, POINT},  {1, 2, 2, 3, 5, 3, DOWN},     {2, 7, 10, 12, 33, 3, DOWN},  {1, 8, 6, 35, 4, 3, DOWN},
    };
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) check_conv(p, &kinds[i], SAMPLES, 1e-6);
}

TEST(conv2d_other_kinds)
{
    /* any filter, stride and padding: discriminators' 4x4, padding beyond the filter, filters smaller than the stride */
    static const struct convolution kinds[] = {
        {1, 9, 8, 5, 6, 4, {.stride = 2, .pad_before = 1, .pad_after = 1}},
        {2, 7, 6, 3, 5, 4, {.stride = 1, .pad_before = 1, .pad_after = 1}},
        {1, 3, 4, 5, 3, 2, {.stride = 1, .pad_before = 2, .pad_after = 3}},
        {1, 10, 11, 4, 3, 2, {.stride = 3}},
        {1, 7, 8, 4, 5, 1, {.stride = 2}},
        {1, 11, 9, 2, 3, 5, {.stride = 3, .pad_before = 2, .pad_after = 1}},
        {1, 5, 6, 4, 3, 3, {.stride = 2, .pad_before = 1, .pad_after = 0, .upsample = true}},
    };
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) check_conv(p, &kinds[i], SAMPLES, 1e-6);
}

TEST(conv2d_large)
{
    /* enough pixels for several parts of the reduction, and for Winograd with its larger roundings */
    static const struct convolution kinds[] = {{1, 33, 34, 16, 24, 3, SAME},
                                               {2, 48, 49, 17, 16, 3, SAME},
                                               {1, 20, 33, 16, 17, 3, SAME_UP},
                                               {1, 97, 101, 3, 4, 3, DOWN}};
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) check_conv(p, &kinds[i], 3, 2e-6);
}

/* --------------------------------------------------------------------------------------------------- GroupNorm */

struct group_norm {
    int groups;
    float eps;
    bool silu;
};

static void group_norm_forward(const struct gradient *g, double *y)
{
    const struct group_norm *how = g->how;
    const struct tensor *x = &g->in[0].value;
    int64_t C = tensor_cols(x), pixels = x->shape[1] * x->shape[2], per_group = C / how->groups, count = per_group * pixels;
    for (int64_t k = 0; k < x->shape[0] * how->groups; k++) {
        int64_t first = k / how->groups * pixels * C + k % how->groups * per_group;
        double mean = 0, variance = 0;
        for (int64_t i = 0; i < count; i++) mean += g->in[0].at[first + i / per_group * C + i % per_group] / (double)count;
        for (int64_t i = 0; i < count; i++) {
            double gap = g->in[0].at[first + i / per_group * C + i % per_group] - mean;
            variance += gap * gap / (double)count;
        }
        for (int64_t i = 0; i < count; i++) {
            int64_t at = first + i / per_group * C + i % per_group;
            double u = (g->in[0].at[at] - mean) / sqrt(variance + (double)how->eps) * g->in[1].at[at % C] + g->in[2].at[at % C];
            y[at] = how->silu ? silu(u) : u;
        }
    }
}

static aim_status group_norm_backward(const struct gradient *g, struct tensor *const d[SIDES])
{
    const struct group_norm *how = g->how;
    return g->p->be->op.group_norm_silu_backward(g->p->be, &g->in[0].value, &g->in[1].value, &g->in[2].value, how->groups,
                                                 how->eps, how->silu, NULL, &g->dy[0], d[0], d[1], d[2]);
}

static void check_group_norm(struct place *p, const int64_t s[4], const struct group_norm *how, double mean, double deviation,
                             double tolerance)
{
    struct gradient g = {.p = p, .op = ID_group_norm_silu_backward, .name = "group_norm_silu", .how = how};
    struct tensor x = blank(p, s[0], s[1], s[2], s[3]), w = normal(p, s[3], 0, 0, 0), b = normal(p, s[3], 0, 0, 0);
    fill_normal(p, &x, mean, deviation);
    g.forward = group_norm_forward;
    g.backward = group_norm_backward;
    g.dy[0] = normal(p, s[0], s[1], s[2], s[3]);
    gradient_side(&g, 0, "x", &x);
    gradient_side(&g, 1, "w", &w);
    gradient_side(&g, 2, "b", &b);
    gradient_run(&g);
    for (int i = 0; i < 3; i++) gradient_check_all(&g, i, SAMPLES, tolerance);
}

TEST(group_norm_silu)
{
    /* the last one of more than one chunk of pixels */
    static const int64_t shapes[][4] = {{1, 1, 2, 8}, {2, 5, 7, 64}, {3, 4, 3, 12}, {2, 6, 5, 20}, {2, 23, 29, 6}};
    static const int groups[] = {4, 32, 4, 20, 3};
    for (int s = 0; s < 5; s++)
        for (int with_silu = 0; with_silu < 2; with_silu++) {
            struct group_norm how = {groups[s], 1e-6f, with_silu};
            check_group_norm(p, shapes[s], &how, 0, 1, 3e-6);
            check_group_norm(p, shapes[s], &how, -3, 2, 3e-6);
            how.eps = 0.5f; /* in its place */
            check_group_norm(p, shapes[s], &how, 0, 0.5, 3e-6);
            how.eps = 1e-6f; /* x - mean is rounded to 6e-8 of the mean, 30 deviations */
            if (s) check_group_norm(p, shapes[s], &how, 30, 1, 3e-5);
        }
}

/* --------------------------------------------------------------------------------------------------- attention */

static void attention_forward(const struct gradient *g, double *y)
{
    int64_t N = g->dy[0].shape[0], L = g->dy[0].shape[1], C = g->dy[0].shape[2];
    double *weights = malloc((size_t)L * sizeof *weights);
    assert_non_null(weights);
    for (int64_t row = 0; row < N * L; row++) {
        double sum = 0, top = -INFINITY;
        const double *q = g->in[0].at + row * C, *k = g->in[1].at + row / L * L * C, *v = g->in[2].at + row / L * L * C;
        for (int64_t j = 0; j < L; j++) {
            weights[j] = 0;
            for (int64_t c = 0; c < C; c++) weights[j] += q[c] * k[j * C + c] / sqrt((double)C);
            top = fmax(top, weights[j]);
        }
        for (int64_t j = 0; j < L; j++) {
            weights[j] = exp(weights[j] - top);
            sum += weights[j];
        }
        for (int64_t c = 0; c < C; c++) {
            y[row * C + c] = 0;
            for (int64_t j = 0; j < L; j++) y[row * C + c] += weights[j] / sum * v[j * C + c];
        }
    }
    free(weights);
}

static aim_status attention_backward(const struct gradient *g, struct tensor *const d[SIDES])
{
    return g->p->be->op.attention_backward(g->p->be, &g->in[0].value, &g->in[1].value, &g->in[2].value, &g->dy[0], d[0], d[1],
                                           d[2]);
}

TEST(attention)
{
    static const int64_t shapes[][3] = {{1, 1, 1}, {1, 2, 5}, {2, 9, 33}, {1, 40, 17}, {3, 35, 8}, {1, 101, 40}};
    for (int s = 0; s < 6; s++) {
        int64_t N = shapes[s][0], L = shapes[s][1], C = shapes[s][2];
        struct gradient g = {.p = p, .op = ID_attention_backward, .name = "attention"};
        struct tensor q = normal(p, N, L, C, 0), k = normal(p, N, L, C, 0), v = normal(p, N, L, C, 0);
        g.forward = attention_forward;
        g.backward = attention_backward;
        g.dy[0] = normal(p, N, L, C, 0);
        gradient_side(&g, 0, "q", &q);
        gradient_side(&g, 1, "k", &k);
        gradient_side(&g, 2, "v", &v);
        gradient_run(&g);
        for (int i = 0; i < 3; i++) gradient_check_all(&g, i, SAMPLES, 3e-6);
    }
}

/* --------------------------------------------------------------------------------------------------- unit rows */

static void unit_forward(const struct gradient *g, double *y)
{
    int64_t D = tensor_cols(&g->dy[0]);
    for (int64_t m = 0; m < tensor_rows(&g->dy[0]); m++) {
        const double *x = g->in[0].at + m * D;
        double squares = 0;
        for (int64_t i = 0; i < D; i++) squares += x[i] * x[i];
        for (int64_t i = 0; i < D; i++) y[m * D + i] = x[i] / fmax(sqrt(squares), 1e-12);
    }
}

static aim_status unit_backward(const struct gradient *g, struct tensor *const d[SIDES])
{
    return g->p->be->op.normalize_rows_backward(g->p->be, &g->in[0].value, &g->dy[0], d[0]);
}

TEST(normalize_rows)
{
    static const int64_t shapes[][2] = {{1, 2}, {5, 3}, {7, 8}, {3, 50}, {1500, 8}};
    for (int s = 0; s < 5; s++) {
        struct gradient g = {.p = p, .op = ID_normalize_rows_backward, .name = "normalize_rows"};
        struct tensor x = normal(p, shapes[s][0], shapes[s][1], 0, 0);
        g.forward = unit_forward;
        g.backward = unit_backward;
        g.dy[0] = normal(p, shapes[s][0], shapes[s][1], 0, 0);
        gradient_side(&g, 0, "x", &x);
        gradient_run(&g);
        gradient_check_all(&g, 0, SAMPLES, 1e-6);
    }
}

/* Rows below 1e-12, of zeros too, are divided by that constant. */
TEST(normalize_tiny_rows)
{
    enum { M = 3, D = 5 };
    struct tensor x = normal(p, M, D, 0, 0), dy = normal(p, M, D, 0, 0), dx = blank(p, M, D, 0, 0);
    double *want = doubles_new(p, M * D);
    for (int i = 0; i < M * D; i++) {
        f32(&x)[i] *= i < D ? 0 : 1e-14f;
        f32(&dx)[i] = 0;
        want[i] = (double)f32(&dy)[i] * 1e12;
    }
    RUN(p, normalize_rows_backward, &x, &dy, &dx);
    expect_near(p, "gradient of tiny rows", &dx, want, 1e-7);
}

/* ------------------------------------------------------------------------------- mean square, sums of gradients */

static const float mean_square_weight = 0.25f;

static void mean_square_forward(const struct gradient *g, double *y)
{
    int64_t n = tensor_count(&g->in[0].value);
    y[0] = 0;
    for (int64_t i = 0; i < n; i++) {
        double gap = g->in[0].at[i] - g->in[1].at[i];
        y[0] += (double)mean_square_weight * gap * gap / (double)n;
    }
}

static aim_status mean_square_backward(const struct gradient *g, struct tensor *const d[SIDES])
{
    return g->p->be->op.mean_square_backward(g->p->be, &g->in[0].value, &g->in[1].value, mean_square_weight, &g->dy[0], d[0],
                                             d[1]);
}

TEST(mean_square)
{
    /* the last one of several chunks, large enough to be shared among threads */
    static const int64_t shapes[][2] = {{1, 1}, {3, 7}, {33, 8}, {257, 301}};
    for (int s = 0; s < 4; s++) {
        struct gradient g = {.p = p, .op = ID_mean_square_backward, .name = "mean_square"};
        struct tensor a = normal(p, shapes[s][0], shapes[s][1], 0, 0), b = normal(p, shapes[s][0], shapes[s][1], 0, 0);
        struct tensor loss = blank(p, 1, 0, 0, 0);
        g.forward = mean_square_forward;
        g.backward = mean_square_backward;
        g.dy[0] = normal(p, 1, 0, 0, 0);
        gradient_side(&g, 0, "a", &a);
        gradient_side(&g, 1, "b", &b);
        double want;
        mean_square_forward(&g, &want);
        RUN(p, mean_square, &a, &b, mean_square_weight, &loss);
        expect_near(p, "mean square", &loss, &want, 5e-7);
        gradient_run(&g);
        for (int i = 0; i < 2; i++) gradient_check_all(&g, i, SAMPLES, 1e-6);
    }
}

TEST(accumulate)
{
    static const int64_t counts[] = {1, 31, 70001};
    for (int s = 0; s < 3; s++) {
        struct tensor x = normal(p, counts[s], 0, 0, 0), y = normal(p, counts[s], 0, 0, 0);
        double *want = doubles_new(p, counts[s]);
        for (int64_t i = 0; i < counts[s]; i++) want[i] = (double)f32(&x)[i] + (double)f32(&y)[i];
        RUN(p, accumulate, &x, &y);
        expect_near(p, "sum", &y, want, 1e-7);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_conv2d),
        cmocka_unit_test(test_conv2d_other_kinds),
        cmocka_unit_test(test_conv2d_large),
        cmocka_unit_test(test_group_norm_silu),
        cmocka_unit_test(test_attention),
        cmocka_unit_test(test_normalize_rows),
        cmocka_unit_test(test_normalize_tiny_rows),
        cmocka_unit_test(test_mean_square),
        cmocka_unit_test(test_accumulate),
    };
    return RUN_OPS("gradients_image", tests);
}
