/* The tokenizer's plain kernels: conv2d, attention, nearest_code. (Its norms are in test_norm.c.) */
#include "ops.h"

/* ---------------------------------------------------------------------------------------------------- conv2d */

struct conv_case {
    int64_t N, H, W, I, O, k;
    struct conv2d how;
};

static double *convolve(struct place *p, const struct tensor *x, const struct tensor *w, const struct tensor *bias,
                        const struct conv_case *c, const struct tensor *y)
{
    int64_t OH = y->shape[1], OW = y->shape[2], scale = c->how.upsample ? 2 : 1;
    if (!needs_reference(p)) return NULL;
    double *want = doubles_new(p, tensor_count(y));
    for (int64_t at = 0; at < tensor_count(y); at++) {
        int64_t o = at % c->O, ox = at / c->O % OW, oy = at / (c->O * OW) % OH, n = at / (c->O * OW * OH);
        double sum = (double)f32(bias)[o];
        for (int64_t ky = 0; ky < c->k; ky++)
            for (int64_t kx = 0; kx < c->k; kx++) {
                int64_t iy = oy * c->how.stride + ky - c->how.pad_before, ix = ox * c->how.stride + kx - c->how.pad_before;
                if (iy < 0 || ix < 0 || iy >= c->H * scale || ix >= c->W * scale) continue;
                const float *in = f32(x) + ((n * c->H + iy / scale) * c->W + ix / scale) * c->I;
                for (int64_t i = 0; i < c->I; i++)
                    sum += (double)in[i] * (double)f32(w)[((o * c->I + i) * c->k + ky) * c->k + kx];
            }
        want[at] = sum;
    }
    return want;
}

TEST(conv2d)
{
    static const struct conv_case cases[] = {
        {1, 1, 1, 1, 1, 1, {1, 0, 0, false}},    {2, 5, 7, 8, 33, 1, {1, 0, 0, false}},
        {1, 9, 6, 3, 20, 3, {1, 1, 1, false}},   {2, 8, 8, 17, 40, 3, {1, 1, 1, false}},
        {1, 7, 10, 5, 3, 3, {1, 1, 1, false}},   {2, 8, 6, 6, 31, 3, {2, 0, 1, false}}, /* as the encoder halves */
        {1, 7, 9, 4, 5, 3, {2, 0, 1, false}},    {2, 4, 5, 7, 32, 3, {1, 1, 1, true}},  /* as the decoder doubles */
        {1, 1, 1, 9, 6, 3, {1, 1, 1, true}},     {1, 1, 3, 2, 2, 3, {1, 1, 1, false}},
        {1, 9, 12, 5, 7, 4, {2, 1, 1, false}},   {1, 6, 6, 4, 4, 2, {1, 0, 0, false}},
        {1, 24, 24, 3, 16, 3, {1, 1, 1, false}}, {1, 5, 5, 70, 65, 3, {1, 1, 1, false}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const struct conv_case *c = &cases[i];
        int64_t scale = c->how.upsample ? 2 : 1, border = c->how.pad_before + c->how.pad_after - c->k;
        int64_t OH = (c->H * scale + border) / c->how.stride + 1, OW = (c->W * scale + border) / c->how.stride + 1;
        struct tensor x = normal(p, c->N, c->H, c->W, c->I), w = normal(p, c->O, c->I, c->k, c->k);
        struct tensor bias = normal(p, c->O, 0, 0, 0), y = blank(p, c->N, OH, OW, c->O);
        RUN(p, conv2d, &x, &w, &bias, &c->how, &y);
        /* a chain of k·k·I multiply-adds in float32, at most 630 here: a walk of steps of 6e-8 */
        expect_near(p, "conv2d", &y, convolve(p, &x, &w, &bias, c, &y), 2e-6);
        struct tensor without = blank(p, c->N, OH, OW, c->O);
        memset(bias.data, 0, (size_t)c->O * sizeof(float));
        RUN(p, conv2d, &x, &w, &bias, &c->how, &y);
        RUN(p, conv2d, &x, &w, NULL, &c->how, &without);
        expect_same(p, "conv2d without bias", without.data, y.data, (size_t)tensor_count(&y) * sizeof(float));
    }
}

/* -------------------------------------------------------------------------------------------------- attention */

static void check_attention(struct place *p, int64_t N, int64_t L, int64_t C, double deviation, double tolerance)
{
    struct tensor q = blank(p, N, L, C, 0), k = blank(p, N, L, C, 0), v = normal(p, N, L, C, 0), y = blank(p, N, L, C, 0);
    fill_normal(p, &q, 0, deviation);
    fill_normal(p, &k, 0, deviation);
    double *want = doubles_new(p, N * L * C), *weight = doubles_new(p, L);
    for (int64_t row = 0; row < N * L; row++) {
        double top = -INFINITY, sum = 0;
        for (int64_t j = 0; j < L; j++) {
            double score = 0;
            for (int64_t c = 0; c < C; c++) score += (double)f32(&q)[row * C + c] * (double)f32(&k)[(row / L * L + j) * C + c];
            weight[j] = score / sqrt((double)C);
            top = fmax(top, weight[j]);
        }
        for (int64_t j = 0; j < L; j++) sum += weight[j] = exp(weight[j] - top);
        for (int64_t c = 0; c < C; c++) {
            want[row * C + c] = 0;
            for (int64_t j = 0; j < L; j++) want[row * C + c] += weight[j] / sum * (double)f32(&v)[(row / L * L + j) * C + c];
        }
    }
    RUN(p, attention, &q, &k, &v, &y);
    expect_near(p, "attention", &y, want, tolerance);
}

TEST(attention)
{
    static const int64_t shapes[][3] = {{1, 1, 1}, {1, 1, 64}, {2, 5, 7}, {1, 16, 33}, {3, 33, 64}, {1, 130, 20}};
    for (int s = 0; s < 6; s++) {
        check_attention(p, shapes[s][0], shapes[s][1], shapes[s][2], 1, 2e-6);
        /* scores of hundreds, which overflow unless the largest is taken out first; their roundings, 6e-8 of them, are
         * relative errors of the weights */
        check_attention(p, shapes[s][0], shapes[s][1], shapes[s][2], 12, 1e-4);
    }
}

/* ------------------------------------------------------------------------------------------------ nearest_code */

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

static double squared_distance(const float *a, const float *b, int64_t D)
{
    double sum = 0;
    for (int64_t k = 0; k < D; k++) sum += ((double)a[k] - (double)b[k]) * ((double)a[k] - (double)b[k]);
    return sum;
}

/* `copies`: codes drawn from that many different ones, so that the nearest is there several times; 0 = all differ. */
static void check_nearest(struct place *p, int64_t M, int64_t V, int64_t D, int64_t copies)
{
    struct tensor z = unit_rows(p, M, D), e = unit_rows(p, V, D), ids = tensor_of(p, T_I32, M, 0, 0, 0);
    for (int64_t j = copies; copies && j < V; j++)
        memcpy(f32(&e) + j * D, f32(&e) + draw_int(p, copies) * D, (size_t)D * sizeof(float));
    for (int64_t m = 0; m < M; m += 3) /* some are codes themselves */
        memcpy(f32(&z) + m * D, f32(&e) + draw_int(p, V) * D, (size_t)D * sizeof(float));
    RUN(p, nearest_code, &z, &e, &ids);
    same_with_any_threads(p, "nearest_code", ids.data, (size_t)M * sizeof(int32_t));
    for (int64_t m = 0; m < M && needs_reference(p); m++) {
        const float *row = f32(&z) + m * D;
        int32_t got = i32(&ids)[m];
        assert_in_range(got, 0, V - 1);
        double best = INFINITY;
        for (int64_t j = 0; j < V; j++) best = fmin(best, squared_distance(row, f32(&e) + j * D, D));
        /* |z-e|² = 2 - 2 z·e to the rounding of a product of D terms: nearer ones than this cannot be told apart */
        if (squared_distance(row, f32(&e) + got * D, D) > best + 1e-6)
            fail_msg("%s: row %lld: code %d is not the nearest", tier_names[p->tier], (long long)m, got);
        for (int64_t j = 0; j < got; j++)
            if (memcmp(f32(&e) + j * D, f32(&e) + got * D, (size_t)D * sizeof(float)) == 0)
                fail_msg("%s: row %lld: code %d is the same as %lld, which comes first", tier_names[p->tier], (long long)m, got,
                         (long long)j);
    }
}

TEST(nearest_code)
{
    static const int64_t sizes[] = {1, 2, 3, 15, 16, 17, 100, 1023};
    for (int i = 0; i < 8; i++) {
        check_nearest(p, 1 + 7 * (i % 3), sizes[i], 8, 0);
        check_nearest(p, 40, sizes[i], 8, 1); /* all the same: the first */
        if (sizes[i] > 5) check_nearest(p, 40, sizes[i], 8, 5);
        if (sizes[i] > 2) check_nearest(p, 20, sizes[i], 3, 2);
    }
    check_nearest(p, 64, 16384, 8, 0); /* the published codebook's size */
    check_nearest(p, 30, 77, 1, 0);    /* one dimension: codes are 1 and -1 */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_conv2d),
        cmocka_unit_test(test_attention),
        cmocka_unit_test(test_nearest_code),
    };
    return RUN_OPS("picture", tests);
}
