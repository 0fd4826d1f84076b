/* Normalisations: residual_rms_norm_modulate, gated_rms_norm, normalize_rows, group_norm_silu. */
#include "ops.h"

/* Sums of squares in float32 vectors (errors of 1e-7 that partly cancel), a root, and some five roundings after it. */
static const double rms_tolerance = 1e-6;

static double silu(double x)
{
    return x / (1 + exp(-x));
}

/* ------------------------------------------------------------------------- residual, RMS norm and modulation */

struct rms_case {
    int64_t B, T, d, mod_width;
    bool h, gates, mod;
    enum sum_goes { SUM_UNWANTED, SUM_APART, SUM_IN_PLACE } sum;
    double deviation; /* of r: RMS norms see values of any size */
};

static void check_rms(struct place *p, const struct rms_case *c)
{
    int64_t B = c->B, T = c->T, d = c->d, n = B * T * d;
    struct tensor r = blank(p, B, T, d, 0), h = normal(p, B, T, d, 0), gates = normal(p, B, 3 * d, 0, 0);
    struct tensor mod = normal(p, B, c->mod_width, 0, 0), w = blank(p, d, 0, 0, 0), apart = blank(p, B, T, d, 0);
    struct tensor y = blank(p, B, T, d, 0);
    const float eps = 1e-5f;
    fill_normal(p, &r, 0, c->deviation);
    fill_normal(p, &w, 1, 0.2);
    double *sum = doubles_new(p, n), *want = doubles_new(p, n);
    for (int64_t i = 0; i < n; i++) {
        int64_t b = i / (T * d), k = i % d;
        double gate = c->gates ? (double)f32(&gates)[b * 3 * d + 2 * d + k] : 1;
        sum[i] = (double)f32(&r)[i] + (c->h ? gate * (double)f32(&h)[i] : 0);
    }
    for (int64_t row = 0; row < B * T; row++) {
        double squares = 0;
        for (int64_t k = 0; k < d; k++) squares += sum[row * d + k] * sum[row * d + k];
        double rstd = 1 / sqrt(squares / (double)d + (double)eps);
        const float *m = f32(&mod) + row / T * c->mod_width;
        for (int64_t k = 0; k < d; k++) {
            double value = sum[row * d + k] * rstd * (double)f32(&w)[k];
            want[row * d + k] = c->mod ? value * (1 + (double)m[d + k]) + (double)m[k] : value;
        }
    }
    struct tensor *r_out = c->sum == SUM_UNWANTED ? NULL : c->sum == SUM_APART ? &apart : &r;
    struct tensor before = rows_of(p, &r, 0, B);
    RUN(p, residual_rms_norm_modulate, &r, c->h ? &h : NULL, c->gates ? &gates : NULL, &w, c->mod ? &mod : NULL, eps, r_out,
        &y);
    expect_near(p, "rms norm", &y, want, rms_tolerance);
    if (r_out) expect_near(p, "residual sum", r_out, sum, 2e-7); /* one product, one sum */
    if (r_out != &r) expect_same(p, "residual input", r.data, before.data, (size_t)n * sizeof(float));
}

TEST(residual_rms_norm_modulate)
{
    /* the last one large enough to be shared among threads */
    static const int64_t shapes[][3] = {{1, 1, 8}, {1, 1, 64}, {2, 3, 5}, {2, 13, 100}, {3, 1, 131}, {1, 50, 768}};
    for (int s = 0; s < 6; s++)
        for (int variant = 0; variant < 3 * 8; variant++) {
            int64_t d = shapes[s][2];
            struct rms_case c = {
                .B = shapes[s][0], .T = shapes[s][1], .d = d, .mod_width = s % 2 ? 3 * d : 2 * d, .deviation = 1};
            c.h = variant & 1;
            c.gates = variant & 2; /* without h they say nothing, and must not be used */
            c.mod = variant & 4;
            c.sum = (enum sum_goes)(variant / 8);
            check_rms(p, &c);
        }
}

TEST(rms_norm_sizes)
{
    static const double deviations[] = {0, 1e-6, 1e-3, 1e4}; /* eps decides, weighs in, does not matter */
    for (int i = 0; i < 4; i++)
        check_rms(p, &(struct rms_case){.B = 2, .T = 2, .d = 96, .mod_width = 192, .mod = i % 2, .deviation = deviations[i]});
}

/* Decoding promises: a stream's result is the same bits whatever else is in the batch. */
TEST(rms_norm_rows_by_themselves)
{
    enum { B = 20, D = 72 };
    struct tensor r = normal(p, B, 1, D, 0), h = normal(p, B, 1, D, 0), gates = normal(p, B, 3 * D, 0, 0);
    struct tensor mod = normal(p, B, 3 * D, 0, 0), w = normal(p, D, 0, 0, 0), sum = blank(p, B, 1, D, 0),
                  y = blank(p, B, 1, D, 0);
    RUN(p, residual_rms_norm_modulate, &r, &h, &gates, &w, &mod, 1e-5f, &sum, &y);
    for (int64_t b = 0; b < B; b++) {
        struct tensor r1 = rows_of(p, &r, b, 1), h1 = rows_of(p, &h, b, 1), gates1 = rows_of(p, &gates, b, 1);
        struct tensor mod1 = rows_of(p, &mod, b, 1), y1 = blank(p, 1, 1, D, 0);
        RUN(p, residual_rms_norm_modulate, &r1, &h1, &gates1, &w, &mod1, 1e-5f, &r1, &y1);
        expect_same(p, "rms norm of a row by itself", y1.data, f32(&y) + b * D, D * sizeof(float));
        expect_same(p, "residual sum of a row by itself", r1.data, f32(&sum) + b * D, D * sizeof(float));
    }
}

/* -------------------------------------------------------------------------------------------- gated RMS norm */

TEST(gated_rms_norm)
{
    static const int64_t rows[] = {1, 2, 25}, heads[] = {1, 2, 24}, states[] = {16, 128};
    const float eps = 1e-5f;
    for (int i = 0; i < 3 * 3 * 2; i++) {
        int64_t M = rows[i % 3], H = heads[i / 3 % 3], E = H * HEADDIM, W = E + (E + 2 * states[i / 9]) + H;
        struct tensor y = normal(p, M, E, 0, 0), zxbcdt = blank(p, M, W, 0, 0), w = normal(p, E, 0, 0, 0);
        struct tensor o = blank(p, M, E, 0, 0);
        fill_normal(p, &zxbcdt, 0, 4); /* gates from shut to open */
        f32(&zxbcdt)[0] = -200;
        f32(&zxbcdt)[1] = 200;
        double *want = doubles_new(p, M * E);
        for (int64_t m = 0; m < M; m++) {
            double squares = 0, *v = want + m * E;
            for (int64_t k = 0; k < E; k++) {
                v[k] = (double)f32(&y)[m * E + k] * silu((double)f32(&zxbcdt)[m * W + k]);
                squares += v[k] * v[k];
            }
            double rstd = 1 / sqrt(squares / (double)E + (double)eps);
            for (int64_t k = 0; k < E; k++) v[k] *= rstd * (double)f32(&w)[k];
        }
        RUN(p, gated_rms_norm, &y, &zxbcdt, &w, eps, &o);
        expect_near(p, "gated rms norm", &o, want, rms_tolerance);
        for (int64_t m = 0; m < M; m++) {
            struct tensor y1 = rows_of(p, &y, m, 1), z1 = rows_of(p, &zxbcdt, m, 1), o1 = blank(p, 1, E, 0, 0);
            RUN(p, gated_rms_norm, &y1, &z1, &w, eps, &o1);
            expect_same(p, "gated rms norm of a row by itself", o1.data, f32(&o) + m * E, (size_t)E * sizeof(float));
        }
    }
}

/* --------------------------------------------------------------------------------------------------- unit rows */

TEST(normalize_rows)
{
    static const int64_t rows[] = {1, 5, 1500}, widths[] = {1, 3, 8, 50, 256};
    for (int i = 0; i < 3 * 5; i++) {
        int64_t M = rows[i % 3], D = widths[i / 3];
        struct tensor x = normal(p, M, D, 0, 0), y = blank(p, M, D, 0, 0);
        double *want = doubles_new(p, M * D);
        for (int64_t m = 0; m < M; m++) {
            /* rows of zeros stay zeros; below 1e-12 a row is not blown up to unit length */
            static const float sizes[] = {1, 0, 1e-14f, 1e-9f, 1e15f};
            double squares = 0;
            for (int64_t k = 0; k < D; k++) {
                f32(&x)[m * D + k] *= sizes[m % 5];
                squares += (double)f32(&x)[m * D + k] * (double)f32(&x)[m * D + k];
            }
            for (int64_t k = 0; k < D; k++) want[m * D + k] = (double)f32(&x)[m * D + k] / fmax(sqrt(squares), 1e-12);
        }
        RUN(p, normalize_rows, &x, &y);
        expect_near(p, "unit rows", &y, want, rms_tolerance);
    }
}

/* --------------------------------------------------------------------------------------------------- GroupNorm */

static void check_group_norm(struct place *p, const int64_t shape[4], int groups, double mean, double deviation,
                             double tolerance)
{
    int64_t N = shape[0], pixels = shape[1] * shape[2], C = shape[3], n = N * pixels * C, per_group = C / groups;
    const float eps = 1e-6f;
    struct tensor x = blank(p, N, shape[1], shape[2], C), w = normal(p, C, 0, 0, 0), b = normal(p, C, 0, 0, 0);
    fill_normal(p, &x, mean, deviation);
    for (int64_t c = 0; c < C; c++) /* channels of a group differ in level */
        for (int64_t i = c; i < n; i += C) f32(&x)[i] += (float)(0.5 * deviation * (double)(c % 3));
    double *want = doubles_new(p, n), *activated = doubles_new(p, n), *found = doubles_new(p, N * groups * 2);
    struct tensor statistics = blank(p, N, groups, 2, 0);
    for (int64_t g = 0; g < N * groups; g++) {
        double sum = 0, squares = 0, count = (double)(per_group * pixels);
        int64_t first = g / groups * pixels * C + g % groups * per_group;
        for (int64_t i = 0; i < per_group * pixels; i++) sum += (double)f32(&x)[first + i / per_group * C + i % per_group];
        for (int64_t i = 0; i < per_group * pixels; i++) {
            double gap = (double)f32(&x)[first + i / per_group * C + i % per_group] - sum / count;
            squares += gap * gap;
        }
        for (int64_t i = 0; i < per_group * pixels; i++) {
            int64_t at = first + i / per_group * C + i % per_group, c = at % C;
            found[2 * g] = sum / count, found[2 * g + 1] = 1 / sqrt(squares / count + (double)eps);
            want[at] = ((double)f32(&x)[at] - sum / count) / sqrt(squares / count + (double)eps) * (double)f32(&w)[c] +
                       (double)f32(&b)[c];
            activated[at] = silu(want[at]);
        }
    }
    for (int with_silu = 0; with_silu < 2; with_silu++) {
        struct tensor y = blank(p, N, shape[1], shape[2], C);
        RUN(p, group_norm_silu, &x, &w, &b, groups, eps, with_silu, with_silu ? &statistics : NULL, &y);
        expect_near(p, with_silu ? "group norm, silu" : "group norm", &y, with_silu ? activated : want, tolerance);
    }
    expect_near(p, "group norm: statistics", &statistics, found, tolerance);
}

static const int64_t group_norm_shapes[][4] = {{1, 1, 1, 32}, {2, 5, 7, 64}, {1, 40, 30, 96}, {3, 16, 16, 12}, {2, 33, 17, 20}};
static const int group_norm_groups[] = {4, 32, 32, 4, 20};

TEST(group_norm_silu)
{
    for (int s = 0; s < 5; s++) {
        const int64_t *shape = group_norm_shapes[s];
        check_group_norm(p, shape, group_norm_groups[s], 0, 1, 2e-6);
        check_group_norm(p, shape, group_norm_groups[s], -3, 2, 2e-6);
        check_group_norm(p, shape, group_norm_groups[s], 0, 1e-3, 2e-6); /* eps in its place */
        check_group_norm(p, shape, group_norm_groups[s], 0, 1e4, 2e-6);
    }
}

/*
 * A mean of many deviations: x·scale + shift takes the difference of two numbers mean/deviation times as large as the
 * result, each rounded to 6e-8.
 */
TEST(group_norm_of_large_mean)
{
    for (int s = 1; s < 5; s++) {
        const int64_t *shape = group_norm_shapes[s];
        check_group_norm(p, shape, group_norm_groups[s], 10, 1, 3e-6);
        check_group_norm(p, shape, group_norm_groups[s], 100, 1, 2e-5);
        check_group_norm(p, shape, group_norm_groups[s], -1000, 1, 2e-4);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_residual_rms_norm_modulate),
        cmocka_unit_test(test_rms_norm_sizes),
        cmocka_unit_test(test_rms_norm_rows_by_themselves),
        cmocka_unit_test(test_gated_rms_norm),
        cmocka_unit_test(test_normalize_rows),
        cmocka_unit_test(test_group_norm_silu),
        cmocka_unit_test(test_group_norm_of_large_mean),
    };
    return RUN_OPS("norm", tests);
}
