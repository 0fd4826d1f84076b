/* What stands between the convolutions of VGG and the discriminators, with gradients: leaky relu, factors, pooling, BatchNorm,
 * blur. */
#include "gradients.h"

enum { SAMPLES = 24 };

/* The op's result, and its gradient at every input. */
static void check_gradients(struct gradient *g, const struct tensor *y, const char *const names[], struct tensor *const sides[],
                            double tolerance)
{
    g->dy[0] = blank(g->p, y->shape[0], y->shape[1], y->shape[2], y->shape[3]);
    fill_normal(g->p, &g->dy[0], 0, 1);
    for (int i = 0; names[i]; i++) gradient_side(g, i, names[i], sides[i]);
    double *want = needs_reference(g->p) ? doubles_new(g->p, tensor_count(y)) : NULL;
    if (want) g->forward(g, want);
    expect_near(g->p, g->name, y, want, 1e-6);
    gradient_run(g);
    for (int i = 0; names[i]; i++) gradient_check_all(g, i, SAMPLES, tolerance);
}

/* ------------------------------------------------------------------------------------------------- leaky relu */

static void leaky_forward(const struct gradient *g, double *y)
{
    double slope = (double)*(const float *)g->how;
    for (int64_t i = 0; i < tensor_count(&g->in[0].value); i++) y[i] = g->in[0].at[i] * (g->in[0].at[i] > 0 ? 1 : slope);
}

static aim_status leaky_backward(const struct gradient *g, struct tensor *const d[SIDES])
{
    if (!d[0]) return AIM_OK;
    return g->p->be->op.leaky_relu_backward(g->p->be, &g->in[0].value, *(const float *)g->how, &g->dy[0], d[0]);
}

TEST(leaky_relu)
{
    static const float slopes[] = {0, 0.2f};
    static const int64_t counts[] = {1, 37, 66001};
    for (int s = 0; s < 6; s++) {
        struct tensor x = normal(p, counts[s / 2], 0, 0, 0), y = blank(p, counts[s / 2], 0, 0, 0);
        for (int64_t i = 0; i < counts[s / 2]; i++) /* not at the corner */
            if (fabsf(f32(&x)[i]) < 1e-3f) f32(&x)[i] = 0.5f;
        struct gradient g = {.p = p, .op = ID_leaky_relu_backward, .name = "leaky_relu", .how = &slopes[s % 2]};
        g.forward = leaky_forward;
        g.backward = leaky_backward;
        RUN(p, leaky_relu, &x, slopes[s % 2], &y);
        check_gradients(&g, &y, (const char *const[]){"x", NULL}, (struct tensor *[]){&x}, 1e-6);
    }
}

TEST(scale)
{
    static const int64_t counts[] = {1, 37, 66001};
    for (int s = 0; s < 3; s++) {
        struct tensor x = normal(p, counts[s], 0, 0, 0), y = blank(p, counts[s], 0, 0, 0), dx = blank(p, counts[s], 0, 0, 0);
        fill_normal(p, &dx, 9, 0.1); /* no sum near zero */
        double *want = doubles_new(p, counts[s]), *want_dx = doubles_new(p, counts[s]);
        for (int64_t i = 0; i < counts[s]; i++) {
            want[i] = 0.75 * (double)f32(&x)[i];
            want_dx[i] = (double)f32(&dx)[i] - want[i];
        }
        RUN(p, scale, &x, 0.75f, &y);
        RUN(p, scale_backward, -0.75f, &x, &dx);
        expect_near(p, "scale", &y, want, 1e-7);
        expect_near(p, "its gradient", &dx, want_dx, 2e-7);
    }
}

/* ------------------------------------------------------------------------------------------------ max-pooling */

static void pool_forward(const struct gradient *g, double *y)
{
    const struct tensor *x = &g->in[0].value;
    int64_t W = x->shape[2], C = x->shape[3], OH = x->shape[1] / 2, OW = W / 2;
    for (int64_t i = 0; i < x->shape[0] * OH * OW * C; i++) {
        int64_t c = i % C, ox = i / C % OW, oy = i / (C * OW) % OH, n = i / (C * OW * OH);
        y[i] = -INFINITY;
        for (int k = 0; k < 4; k++)
            y[i] = fmax(y[i], g->in[0].at[((n * x->shape[1] + 2 * oy + k / 2) * W + 2 * ox + k % 2) * C + c]);
    }
}

static aim_status pool_backward(const struct gradient *g, struct tensor *const d[SIDES])
{
    if (!d[0]) return AIM_OK;
    return g->p->be->op.max_pool_backward(g->p->be, &g->in[0].value, &g->dy[0], d[0]);
}

TEST(max_pool)
{
    static const int64_t shapes[][4] = {{1, 2, 2, 1}, {2, 4, 6, 3}, {1, 5, 7, 17}, {2, 34, 32, 33}};
    for (int s = 0; s < 4; s++) {
        const int64_t *n = shapes[s];
        struct tensor x = normal(p, n[0], n[1], n[2], n[3]), y = blank(p, n[0], n[1] / 2, n[2] / 2, n[3]);
        struct gradient g = {.p = p, .op = ID_max_pool_backward, .name = "max_pool"};
        g.forward = pool_forward;
        g.backward = pool_backward;
        RUN(p, max_pool, &x, &y);
        check_gradients(&g, &y, (const char *const[]){"x", NULL}, (struct tensor *[]){&x}, 1e-6);
    }
}

/* After a relu many are equal: the gradient goes to the first. */
TEST(max_pool_ties)
{
    struct tensor x = blank(p, 1, 2, 4, 1), dy = blank(p, 1, 1, 2, 1), dx = blank(p, 1, 2, 4, 1);
    static const float values[8] = {0, 0, 1, 3, 0, 0, 3, 3};
    static const double want[8] = {5, 0, 0, 7, 0, 0, 0, 0};
    memcpy(x.data, values, sizeof values);
    memset(dx.data, 0, sizeof values);
    f32(&dy)[0] = 5;
    f32(&dy)[1] = 7;
    RUN(p, max_pool_backward, &x, &dy, &dx);
    expect_near(p, "gradient of equals", &dx, want, 0);
}

/* -------------------------------------------------------------------------------------------------- BatchNorm */

static const float norm_eps = 1e-5f, norm_momentum = 0.1f;

static void channel_moments(const double *x, int64_t rows, int64_t C, int64_t c, double *mean, double *variance)
{
    *mean = *variance = 0;
    for (int64_t r = 0; r < rows; r++) *mean += x[r * C + c] / (double)rows;
    for (int64_t r = 0; r < rows; r++) *variance += (x[r * C + c] - *mean) * (x[r * C + c] - *mean) / (double)rows;
}

static void batch_norm_forward(const struct gradient *g, double *y)
{
    int64_t rows = tensor_rows(&g->in[0].value), C = tensor_cols(&g->in[0].value);
    for (int64_t c = 0; c < C; c++) {
        double mean, variance;
        channel_moments(g->in[0].at, rows, C, c, &mean, &variance);
        for (int64_t r = 0; r < rows; r++)
            y[r * C + c] =
                (g->in[0].at[r * C + c] - mean) / sqrt(variance + (double)norm_eps) * g->in[1].at[c] + g->in[2].at[c];
    }
}

static aim_status batch_norm_backward(const struct gradient *g, struct tensor *const d[SIDES])
{
    return g->p->be->op.batch_norm_backward(g->p->be, &g->in[0].value, &g->in[1].value, g->how, &g->dy[0], d[0], d[1], d[2]);
}

/* The running statistics move from where they were towards the batch's, the variance unbiased. */
static void check_running(struct place *p, const struct gradient *g, const struct tensor *mean, const struct tensor *variance)
{
    int64_t rows = tensor_rows(&g->in[0].value), C = tensor_cols(&g->in[0].value);
    double *want_mean = doubles_new(p, C), *want_variance = doubles_new(p, C), m = (double)norm_momentum;
    for (int64_t c = 0; c < C; c++) {
        double batch_mean, batch_variance;
        channel_moments(g->in[0].at, rows, C, c, &batch_mean, &batch_variance);
        want_mean[c] = 0.5 * (1 - m) + m * batch_mean;
        want_variance[c] = 2 * (1 - m) + m * batch_variance * (double)rows / (double)(rows - 1);
    }
    expect_near(p, "running mean", mean, want_mean, 1e-6);
    expect_near(p, "running variance", variance, want_variance, 1e-6);
}

static void check_batch_norm(struct place *p, const int64_t n[4], double center, double tolerance)
{
    int64_t C = n[3];
    struct tensor x = blank(p, n[0], n[1], n[2], C), w = normal(p, C, 0, 0, 0), b = normal(p, C, 0, 0, 0);
    struct tensor y = blank(p, n[0], n[1], n[2], C), mean = blank(p, C, 0, 0, 0), variance = blank(p, C, 0, 0, 0);
    struct tensor statistics = blank(p, 2, C, 0, 0), again = blank(p, n[0], n[1], n[2], C);
    fill_normal(p, &x, center, 1.5);
    for (int64_t c = 0; c < C; c++) f32(&mean)[c] = 0.5f, f32(&variance)[c] = 2;
    struct gradient g = {.p = p, .op = ID_batch_norm_backward, .name = "batch_norm", .how = &statistics};
    g.forward = batch_norm_forward;
    g.backward = batch_norm_backward;
    RUN(p, batch_norm, &x, &w, &b, norm_eps, norm_momentum, &mean, &variance, &statistics, &y);
    RUN(p, batch_norm, &x, &w, &b, norm_eps, norm_momentum, NULL, NULL, &statistics, &again);
    expect_same(p, "without running statistics", again.data, y.data, (size_t)tensor_count(&y) * sizeof(float));
    check_gradients(&g, &y, (const char *const[]){"x", "w", "b", NULL}, (struct tensor *[]){&x, &w, &b}, tolerance);
    check_running(p, &g, &mean, &variance);
}

TEST(batch_norm)
{
    /* the last ones of more than one chunk of rows, and enough for threads */
    static const int64_t shapes[][4] = {{1, 2, 2, 3}, {3, 5, 7, 16}, {2, 30, 18, 33}, {2, 46, 43, 20}};
    for (int s = 0; s < 4; s++) {
        check_batch_norm(p, shapes[s], 0, 3e-6);
        check_batch_norm(p, shapes[s], -4, 3e-6);
    }
}

/* ------------------------------------------------------------------------------------------------------- blur */

static int64_t reflect(int64_t i, int64_t n)
{
    return i < 0 ? -i : i >= n ? 2 * n - 2 - i : i;
}

static void blur_forward(const struct gradient *g, double *y)
{
    const struct tensor *x = &g->in[0].value;
    int64_t H = x->shape[1], W = x->shape[2], C = x->shape[3];
    static const double taps[9] = {1, 2, 1, 2, 4, 2, 1, 2, 1};
    for (int64_t i = 0; i < tensor_count(x); i++) {
        int64_t c = i % C, px = i / C % W, py = i / (C * W) % H, n = i / (C * W * H);
        y[i] = 0;
        for (int t = 0; t < 9; t++)
            y[i] += taps[t] / 16 * g->in[0].at[((n * H + reflect(py + t / 3 - 1, H)) * W + reflect(px + t % 3 - 1, W)) * C + c];
    }
}

static aim_status blur_backward(const struct gradient *g, struct tensor *const d[SIDES])
{
    if (!d[0]) return AIM_OK;
    return g->p->be->op.blur_backward(g->p->be, &g->dy[0], d[0]);
}

TEST(blur)
{
    static const int64_t shapes[][4] = {{1, 2, 2, 1}, {2, 3, 2, 5}, {1, 9, 6, 17}, {2, 40, 33, 32}};
    for (int s = 0; s < 4; s++) {
        const int64_t *n = shapes[s];
        struct tensor x = normal(p, n[0], n[1], n[2], n[3]), y = blank(p, n[0], n[1], n[2], n[3]);
        struct gradient g = {.p = p, .op = ID_blur_backward, .name = "blur"};
        g.forward = blur_forward;
        g.backward = blur_backward;
        RUN(p, blur, &x, &y);
        check_gradients(&g, &y, (const char *const[]){"x", NULL}, (struct tensor *[]){&x}, 1e-6);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_leaky_relu),    cmocka_unit_test(test_scale),      cmocka_unit_test(test_max_pool),
        cmocka_unit_test(test_max_pool_ties), cmocka_unit_test(test_batch_norm), cmocka_unit_test(test_blur),
    };
    return RUN_OPS("discriminator_ops", tests);
}
