/* The terms of stage 1's losses, with gradients: LPIPS distance, mean absolute difference, mean_map, entropy of the codes. */
#include "gradients.h"

enum { SAMPLES = 24 };

static const float weight = 0.75f;

/* The op's result, and its gradient at the inputs named. */
static void check_loss(struct gradient *g, const struct tensor *y, double tolerance)
{
    g->dy[0] = normal(g->p, tensor_count(y), 0, 0, 0);
    double *want = needs_reference(g->p) ? doubles_new(g->p, tensor_count(y)) : NULL;
    if (want) g->forward(g, want);
    expect_near(g->p, g->name, y, want, tolerance);
    gradient_run(g);
    for (int i = 0; i < SIDES; i++) gradient_check_all(g, i, SAMPLES, tolerance);
}

/* ---------------------------------------------------------------------------------------------- LPIPS distance */

struct distance {
    struct tensor b, w;
    const struct dropout *dropout;
};

static double keep(const struct dropout *dropout, int64_t i)
{
    if (!dropout) return 1;
    struct philox4 r = philox(dropout->seed, (uint64_t)i / 128, dropout->position, PHILOX_DROPOUT);
    return r.v[i % 128 / 32] >> i % 32 & 1 ? 2 : 0;
}

static double length_of(const double *x, int64_t C)
{
    double squares = 0;
    for (int64_t c = 0; c < C; c++) squares += x[c] * x[c];
    return sqrt(squares) + 1e-10;
}

static void distance_forward(const struct gradient *g, double *y)
{
    const struct distance *how = g->how;
    int64_t C = tensor_cols(&how->b), pixels = how->b.shape[1] * how->b.shape[2];
    double *b = malloc((size_t)C * sizeof *b);
    assert_non_null(b);
    for (int64_t n = 0; n < how->b.shape[0]; n++) y[n] = 0;
    for (int64_t m = 0; m < tensor_rows(&how->b); m++) {
        const double *a = g->in[0].at + m * C;
        for (int64_t c = 0; c < C; c++) b[c] = (double)f32(&how->b)[m * C + c];
        double of_a = length_of(a, C), of_b = length_of(b, C);
        for (int64_t c = 0; c < C; c++) {
            double gap = a[c] / of_a - b[c] / of_b;
            y[m / pixels] += keep(how->dropout, m * C + c) * (double)f32(&how->w)[c] * gap * gap / (double)pixels;
        }
    }
    free(b);
}

static aim_status distance_backward(const struct gradient *g, struct tensor *const d[SIDES])
{
    const struct distance *how = g->how;
    if (!d[0]) return AIM_OK;
    return g->p->be->op.lpips_distance_backward(g->p->be, &g->in[0].value, &how->b, &how->w, how->dropout, &g->dy[0], d[0]);
}

TEST(lpips_distance)
{
    /* the last one of more than one chunk of pixels */
    static const int64_t shapes[][4] = {{1, 1, 1, 2}, {2, 3, 5, 7}, {3, 4, 2, 64}, {2, 13, 17, 33}};
    static const struct dropout dropout = {.seed = 5, .position = 3};
    for (int s = 0; s < 8; s++) {
        const int64_t *n = shapes[s / 2];
        struct tensor a = normal(p, n[0], n[1], n[2], n[3]), y = blank(p, n[0], 0, 0, 0);
        struct distance how = {normal(p, n[0], n[1], n[2], n[3]), normal(p, n[3], 0, 0, 0), s % 2 ? &dropout : NULL};
        struct gradient g = {.p = p, .op = ID_lpips_distance_backward, .name = "lpips_distance", .how = &how};
        for (int64_t c = 0; c < n[3]; c++) f32(&how.w)[c] = fabsf(f32(&how.w)[c]);
        g.forward = distance_forward;
        g.backward = distance_backward;
        gradient_side(&g, 0, "a", &a);
        RUN(p, lpips_distance, &a, &how.b, &how.w, how.dropout, &y);
        check_loss(&g, &y, 3e-6);
    }
}

/* Pixels without features: the distance is that of b alone, and no gradient, least of all an infinite one, comes out. */
TEST(lpips_distance_of_nothing)
{
    enum { C = 5 };
    struct tensor a = blank(p, 1, 1, 2, C), b = normal(p, 1, 1, 2, C), w = blank(p, C, 0, 0, 0), y = blank(p, 1, 0, 0, 0);
    struct tensor up = normal(p, 1, 0, 0, 0), da = blank(p, 1, 1, 2, C);
    memset(a.data, 0, 2 * C * sizeof(float));
    memset(da.data, 0, 2 * C * sizeof(float));
    memset(f32(&b) + C, 0, C * sizeof(float));
    for (int c = 0; c < C; c++) f32(&w)[c] = 1;
    RUN(p, lpips_distance, &a, &b, &w, NULL, &y);
    RUN(p, lpips_distance_backward, &a, &b, &w, NULL, &up, &da);
    expect_near(p, "distance from nothing", &y, (const double[]){0.5}, 1e-6);
    expect_near(p, "gradient at nothing", &da, (const double[2 * C]){0}, 0);
}

/* --------------------------------------------------------------------------------------- mean absolute, mean_map */

static void absolute_forward(const struct gradient *g, double *y)
{
    int64_t n = tensor_count(&g->in[0].value);
    y[0] = 0;
    for (int64_t i = 0; i < n; i++) y[0] += (double)weight * fabs(g->in[0].at[i] - g->in[1].at[i]) / (double)n;
}

static aim_status absolute_backward(const struct gradient *g, struct tensor *const d[SIDES])
{
    return g->p->be->op.mean_absolute_backward(g->p->be, &g->in[0].value, &g->in[1].value, weight, &g->dy[0], d[0], d[1]);
}

TEST(mean_absolute)
{
    static const int64_t counts[] = {1, 53, 70001};
    for (int s = 0; s < 3; s++) {
        struct tensor a = normal(p, counts[s], 0, 0, 0), b = normal(p, counts[s], 0, 0, 0), y = blank(p, 1, 0, 0, 0);
        for (int64_t i = 0; i < counts[s]; i++) /* not at the corner */
            if (fabsf(f32(&a)[i] - f32(&b)[i]) < 1e-3f) f32(&a)[i] = f32(&b)[i] + 1;
        struct gradient g = {.p = p, .op = ID_mean_absolute_backward, .name = "mean_absolute"};
        g.forward = absolute_forward;
        g.backward = absolute_backward;
        gradient_side(&g, 0, "a", &a);
        gradient_side(&g, 1, "b", &b);
        RUN(p, mean_absolute, &a, &b, weight, &y);
        check_loss(&g, &y, 3e-6); /* the reference's own rounding: a difference of sums of 70,000 terms, over 2e-6 */
    }
}

static void map_forward(const struct gradient *g, double *y)
{
    enum mean_map map = *(const enum mean_map *)g->how;
    int64_t n = tensor_count(&g->in[0].value);
    y[0] = 0;
    for (int64_t i = 0; i < n; i++) {
        double x = g->in[0].at[i], value = x;
        if (map == MAP_HINGE_REAL) value = fmax(0, 1 - x);
        if (map == MAP_HINGE_FAKE) value = fmax(0, 1 + x);
        if (map == MAP_SOFTPLUS) value = log(1 + exp(x));
        if (map == MAP_SOFTPLUS_MINUS) value = log(1 + exp(-x));
        y[0] += (double)weight * value / (double)n;
    }
}

static aim_status map_backward(const struct gradient *g, struct tensor *const d[SIDES])
{
    if (!d[0]) return AIM_OK;
    return g->p->be->op.mean_map_backward(g->p->be, &g->in[0].value, *(const enum mean_map *)g->how, weight, &g->dy[0], d[0]);
}

TEST(mean_map)
{
    static const int64_t counts[] = {1, 900};
    for (enum mean_map map = MAP_IDENTITY; map <= MAP_SOFTPLUS_MINUS; map++)
        for (int s = 0; s < 2; s++) {
            struct tensor x = blank(p, counts[s], 0, 0, 0), y = blank(p, 1, 0, 0, 0);
            fill_normal(p, &x, 0, 3);
            for (int64_t i = 0; i < counts[s]; i++) /* not at the corners */
                if (fabsf(fabsf(f32(&x)[i]) - 1) < 1e-3f) f32(&x)[i] = 2;
            struct gradient g = {.p = p, .op = ID_mean_map_backward, .name = "mean_map", .how = &map};
            g.forward = map_forward;
            g.backward = map_backward;
            gradient_side(&g, 0, "x", &x);
            RUN(p, mean_map, &x, map, weight, &y);
            check_loss(&g, &y, 1e-6);
        }
}

/* Far out softplus is its argument, or nothing, and no infinity. */
TEST(mean_map_far_out)
{
    struct tensor x = blank(p, 2, 0, 0, 0), y = blank(p, 1, 0, 0, 0), up = blank(p, 1, 0, 0, 0), dx = blank(p, 2, 0, 0, 0);
    f32(&x)[0] = 2000;
    f32(&x)[1] = -2000;
    f32(&up)[0] = 1;
    memset(dx.data, 0, 2 * sizeof(float));
    RUN(p, mean_map, &x, MAP_SOFTPLUS, 1.0f, &y);
    RUN(p, mean_map_backward, &x, MAP_SOFTPLUS, 1.0f, &up, &dx);
    expect_near(p, "softplus", &y, (const double[]){1000}, 1e-7);
    expect_near(p, "its slope", &dx, (const double[]){0.5, 0}, 1e-7);
}

/* ----------------------------------------------------------------------------------------- entropy of the codes */

struct entropy {
    float temperature;
    struct tensor average;
};

/* From squared distances, as the formula has it. The gradients are compared through unit rows, on which alone the op is
 * defined: in[] are the rows before they are brought to length 1. */
static void entropy_forward(const struct gradient *g, double *y)
{
    const struct entropy *how = g->how;
    int64_t M = g->in[0].value.shape[0], V = g->in[1].value.shape[0], D = g->in[0].value.shape[1];
    double *average = calloc((size_t)V, sizeof *average), *p = malloc((size_t)V * sizeof *p), rows = 0;
    assert_true(average && p);
    for (int64_t m = 0; m < M; m++) {
        const double *z = g->in[0].at + m * D;
        double sum = 0, of_z = length_of(z, D), top = -INFINITY;
        for (int64_t j = 0; j < V; j++) {
            const double *e = g->in[1].at + j * D;
            double of_e = length_of(e, D), distance = 0;
            for (int64_t d = 0; d < D; d++) distance += (z[d] / of_z - e[d] / of_e) * (z[d] / of_z - e[d] / of_e);
            p[j] = -distance / (double)how->temperature;
            top = fmax(top, p[j]);
        }
        for (int64_t j = 0; j < V; j++) sum += exp(p[j] - top);
        for (int64_t j = 0; j < V; j++) {
            double ln = p[j] - top - log(sum);
            average[j] += exp(ln) / (double)M;
            rows -= exp(ln) * ln / (double)M;
        }
    }
    y[0] = rows;
    for (int64_t j = 0; j < V; j++) y[0] += average[j] * log(average[j] + 1e-5);
    y[0] *= (double)weight;
    free(average);
    free(p);
}

/* Takes what points along the unit rows out of a gradient, as the backward of normalize_rows does. */
static void project(const struct tensor *unit, float *gradient)
{
    int64_t D = tensor_cols(unit);
    for (int64_t m = 0; m < tensor_rows(unit); m++) {
        double along = 0;
        for (int64_t d = 0; d < D; d++) along += (double)f32(unit)[m * D + d] * (double)gradient[m * D + d];
        for (int64_t d = 0; d < D; d++) gradient[m * D + d] -= (float)(along * (double)f32(unit)[m * D + d]);
    }
}

static aim_status entropy_backward(const struct gradient *g, struct tensor *const d[SIDES])
{
    const struct entropy *how = g->how;
    return g->p->be->op.code_entropy_backward(g->p->be, &g->in[0].value, &g->in[1].value, how->temperature, weight,
                                              &how->average, &g->dy[0], d[0], d[1]);
}

static struct tensor unit_rows(struct place *p, int64_t M, int64_t D)
{
    struct tensor t = normal(p, M, D, 0, 0);
    for (int64_t m = 0; m < M; m++) {
        double squares = 0;
        for (int64_t k = 0; k < D; k++) squares += (double)f32(&t)[m * D + k] * (double)f32(&t)[m * D + k];
        for (int64_t k = 0; k < D; k++) f32(&t)[m * D + k] = (float)((double)f32(&t)[m * D + k] / sqrt(squares));
    }
    return t;
}

TEST(code_entropy)
{
    static const int64_t sizes[][3] = {{1, 1, 2}, {3, 7, 2}, {9, 40, 8}, {300, 33, 5}};
    static const float temperatures[] = {1, 0.05f};
    for (int s = 0; s < 8; s++) {
        const int64_t *n = sizes[s / 2];
        struct entropy how = {temperatures[s % 2], blank(p, n[1], 0, 0, 0)};
        struct tensor z = unit_rows(p, n[0], n[2]), e = unit_rows(p, n[1], n[2]), y = blank(p, 1, 0, 0, 0);
        struct gradient g = {.p = p, .op = ID_code_entropy_backward, .name = "code_entropy", .how = &how};
        g.forward = entropy_forward;
        g.backward = entropy_backward;
        gradient_side(&g, 0, "z", &z);
        gradient_side(&g, 1, "e", &e);
        RUN(p, code_entropy, &z, &e, how.temperature, weight, &how.average, &y);
        double *want = doubles_new(p, 1);
        entropy_forward(&g, want);
        /* scores of 2 / temperature, rounded to 6e-8 of that, are relative errors of probabilities; entropies up to ln V */
        if (n[1] > 1) expect_near(p, g.name, &y, want, s % 2 ? 2e-5 : 2e-6);
        g.dy[0] = normal(p, 1, 0, 0, 0);
        gradient_run(&g);
        project(&z, g.in[0].got);
        project(&e, g.in[1].got);
        for (int i = 0; i < 2 && n[1] > 1; i++) gradient_check_all(&g, i, SAMPLES, s % 2 ? 5e-5 : 5e-6);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lpips_distance),   cmocka_unit_test(test_lpips_distance_of_nothing),
        cmocka_unit_test(test_mean_absolute),    cmocka_unit_test(test_mean_map),
        cmocka_unit_test(test_mean_map_far_out), cmocka_unit_test(test_code_entropy),
    };
    return RUN_OPS("losses", tests);
}
