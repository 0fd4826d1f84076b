/*
 * conv2d, linear and attention of every CPU tier this machine has, with and without the dense library, against sums in
 * double written out here.
 */
#include "support.h"

#include "cpu/cpu.h"

static const char *const tiers[] = {"generic", "avx2", "avx512"};
enum { TIERS = sizeof tiers / sizeof tiers[0] };

/* A backend of a tier; NULL, with a line, if this CPU lacks it. */
static struct backend *open_backend(aim_context *ctx, const char *tier, int threads, bool library)
{
    aim_context_options options = {.cpu = tier, .threads = threads};
    struct backend *be = NULL;
    const char *name;
    assert_ok(ctx, context_init(ctx, &options));
    aim_status status = backend_create(ctx, &options, &be);
    if (status == AIM_ERR_UNSUPPORTED) {
        static bool told;
        if (!told) print_message("%s\n", aim_last_error(ctx));
        told = true;
        return NULL;
    }
    assert_ok(ctx, status);
    if (!library) assert_ok(ctx, cpu_fill(ctx, tier, &be->op, &name));
    return be;
}

static void close_backend(struct backend *be)
{
    aim_context *ctx = be->ctx;
    backend_free(be);
    assert_int_equal(ctx->memory.total, 0);
}

/* Uniform in [-1, 1), the same for the same seed. */
static float *random_block(size_t n, uint32_t seed)
{
    float *block = malloc((n + 1) * sizeof(float));
    assert_non_null(block);
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        block[i] = (float)(seed >> 8) * 0x1p-23f - 1.0f;
    }
    return block;
}

/* ---------------------------------------------------------------------------------------------- conv2d */

struct shape {
    int N, H, W, I, O, k;
    struct conv2d how;
};

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

static const struct shape shapes[] = {
    {1, 1, 1, 3, 8, 3, SAME},        {1, 5, 7, 8, 3, 3, SAME},        {2, 9, 6, 33, 24, 3, SAME},
    {1, 16, 16, 40, 33, 3, SAME},    {1, 33, 35, 33, 24, 3, SAME},    {2, 32, 33, 24, 160, 3, SAME},
    {1, 40, 34, 160, 33, 3, SAME},   {1, 64, 17, 300, 17, 3, SAME},   {1, 1, 1100, 16, 16, 3, SAME},
    {1, 3, 4, 8, 24, 3, SAME_UP},    {2, 17, 19, 33, 24, 3, SAME_UP}, {1, 16, 33, 24, 160, 3, SAME_UP},
    {1, 1, 600, 16, 33, 3, SAME_UP}, {1, 5, 3, 33, 8, 1, POINT},      {2, 20, 18, 24, 33, 1, POINT},
    {2, 16, 16, 8, 160, 1, POINT},   {1, 8, 6, 24, 24, 3, DOWN},      {2, 33, 31, 33, 40, 3, DOWN},
    {1, 64, 64, 16, 16, 3, DOWN},    {1, 40, 40, 3, 32, 3, SAME},     {1, 40, 40, 32, 3, 3, SAME},
    {2, 37, 9, 20, 2, 3, SAME},      {1, 1, 1, 16, 3, 3, SAME},
};
enum { SHAPES = sizeof shapes / sizeof shapes[0] };

static int out_size(int in, const struct shape *s)
{
    in = s->how.upsample ? 2 * in : in;
    return (in + s->how.pad_before + s->how.pad_after - s->k) / s->how.stride + 1;
}

/* One convolution's data, and what it should give. */
struct conv_case {
    const struct shape *s;
    int OH, OW;
    float *x, *w, *bias, *y;
    size_t count;
    double *expected;
};

static double direct(const struct conv_case *c, int n, int oy, int ox, int o)
{
    const struct shape *s = c->s;
    int shift = s->how.upsample;
    double sum = (double)c->bias[o];
    for (int ky = 0; ky < s->k; ky++)
        for (int kx = 0; kx < s->k; kx++) {
            int iy = oy * s->how.stride + ky - s->how.pad_before, ix = ox * s->how.stride + kx - s->how.pad_before;
            if (iy < 0 || ix < 0 || iy >= s->H << shift || ix >= s->W << shift) continue;
            const float *in =
                c->x +
                (((size_t)n * (size_t)s->H + (size_t)(iy >> shift)) * (size_t)s->W + (size_t)(ix >> shift)) * (size_t)s->I;
            const float *w = c->w + (size_t)o * (size_t)(s->I * s->k * s->k) + ky * s->k + kx;
            for (int i = 0; i < s->I; i++) sum += (double)in[i] * (double)w[i * s->k * s->k];
        }
    return sum;
}

static struct conv_case case_make(const struct shape *s)
{
    struct conv_case c = {.s = s, .OH = out_size(s->H, s), .OW = out_size(s->W, s)};
    c.count = (size_t)s->N * (size_t)c.OH * (size_t)c.OW * (size_t)s->O;
    c.x = random_block((size_t)s->N * (size_t)s->H * (size_t)s->W * (size_t)s->I, 1);
    c.w = random_block((size_t)s->O * (size_t)s->I * (size_t)(s->k * s->k), 2);
    c.bias = random_block((size_t)s->O, 3);
    c.y = random_block(c.count, 4);
    c.expected = malloc(c.count * sizeof(double));
    assert_non_null(c.expected);
    double *to = c.expected;
    for (int n = 0; n < s->N; n++)
        for (int y = 0; y < c.OH; y++)
            for (int x = 0; x < c.OW; x++)
                for (int o = 0; o < s->O; o++) *to++ = direct(&c, n, y, x, o);
    return c;
}

static void case_free(struct conv_case *c)
{
    free(c->x);
    free(c->w);
    free(c->bias);
    free(c->y);
    free(c->expected);
}

/* Runs the case for pictures [first, first+count), into their places in c->y. */
static aim_status case_run(struct backend *be, const struct conv_case *c, int first, int count, struct tensor *w)
{
    const struct shape *s = c->s;
    size_t in = (size_t)s->H * (size_t)s->W * (size_t)s->I, out = c->count / (size_t)s->N;
    struct tensor x = tensor_view(T_F32, c->x + (size_t)first * in, count, s->H, s->W, s->I);
    struct tensor bias = tensor_view(T_F32, c->bias, s->O, 0, 0, 0);
    struct tensor y = tensor_view(T_F32, c->y + (size_t)first * out, count, c->OH, c->OW, s->O);
    return be->op.conv2d(be, &x, w, &bias, &s->how, &y);
}

static struct tensor case_weights(const struct conv_case *c, bool constant)
{
    struct tensor w = tensor_view(T_F32, c->w, c->s->O, c->s->I, c->s->k, c->s->k);
    w.constant = constant;
    return w;
}

static void drop_converted(struct tensor *w)
{
    if (w->converted) w->converted_free(w->converted);
    w->converted = NULL;
}

static double case_error(const struct conv_case *c)
{
    double worst = 0, scale = 0;
    for (size_t i = 0; i < c->count; i++) {
        double d = fabs((double)c->y[i] - c->expected[i]);
        if (!(d <= worst)) worst = d;
        if (fabs(c->expected[i]) > scale) scale = fabs(c->expected[i]);
    }
    return worst / scale;
}

/* Right at first and from kept weights; the same to the bit from passing weights and for one picture of two. */
static void check_case(struct backend *be, struct conv_case *c, float *first)
{
    struct tensor w = case_weights(c, true), passing = case_weights(c, false);
    for (int turn = 0; turn < 2; turn++) {
        memset(c->y, 0xff, c->count * sizeof(float));
        assert_ok(be->ctx, case_run(be, c, 0, c->s->N, &w));
        assert_true(case_error(c) < 4e-6);
    }
    memcpy(first, c->y, c->count * sizeof(float));
    memset(c->y, 0xff, c->count * sizeof(float));
    assert_ok(be->ctx, case_run(be, c, 0, c->s->N, &passing));
    assert_null(passing.converted);
    assert_memory_equal(first, c->y, c->count * sizeof(float));
    for (int n = 0; n < c->s->N; n++) assert_ok(be->ctx, case_run(be, c, n, 1, &w));
    assert_memory_equal(first, c->y, c->count * sizeof(float));
    drop_converted(&w);
}

static void test_conv2d(void **state)
{
    (void)state;
    for (int i = 0; i < SHAPES; i++) {
        struct conv_case c = case_make(&shapes[i]);
        float *one_thread = random_block(c.count, 5), *result = random_block(c.count, 6);
        for (int t = 0; t < TIERS; t++)
            for (int library = 0; library < 2; library++)
                for (int threads = 1; threads <= 3; threads++) {
                    aim_context ctx;
                    struct backend *be = open_backend(&ctx, tiers[t], threads, library);
                    if (!be) continue;
                    check_case(be, &c, threads == 1 ? one_thread : result);
                    if (threads > 1) assert_memory_equal(one_thread, result, c.count * sizeof(float));
                    close_backend(be);
                }
        free(one_thread);
        free(result);
        case_free(&c);
    }
}

/* Fails every allocation in turn: an error each time, and nothing left behind. */
static void test_conv2d_memory(void **state)
{
    (void)state;
    static const int chosen[] = {2, 4, 10, 13, 17, 20};
    for (size_t i = 0; i < sizeof chosen / sizeof chosen[0]; i++) {
        struct conv_case c = case_make(&shapes[chosen[i]]);
        for (int t = 0; t < TIERS; t++) {
            aim_context ctx;
            struct backend *be = open_backend(&ctx, tiers[t], 2, true);
            if (!be) continue;
            aim_status status = AIM_ERR_MEMORY;
            for (int after = 0; status != AIM_OK; after++) {
                struct tensor w = case_weights(&c, after % 2);
                int64_t held = ctx.memory.total;
                ctx.memory.fail_after = after / 2;
                status = case_run(be, &c, 0, c.s->N, &w);
                ctx.memory.fail_after = -1;
                assert_true(status == AIM_OK || status == AIM_ERR_MEMORY);
                drop_converted(&w);
                assert_int_equal(ctx.memory.total, held);
                assert_true(after < 40);
            }
            assert_true(case_error(&c) < 4e-6);
            close_backend(be);
        }
        case_free(&c);
    }
}

/* ----------------------------------------------------------------------------------- linear, attention */

struct product {
    int M, N, K;
    bool bf16, bias;
};

static const struct product products[] = {
    {1, 1, 1, false, true},     {2, 130, 24, false, false}, {257, 129, 33, false, true},
    {300, 260, 64, true, true}, {3, 200, 160, true, false}, {17, 16, 300, false, true},
};

static void check_linear(struct backend *be, const struct product *p)
{
    size_t M = (size_t)p->M, N = (size_t)p->N, K = (size_t)p->K;
    float *x = random_block(M * K, 1), *w = random_block(N * K, 2), *b = random_block(N, 3), *y = random_block(M * N, 4);
    uint16_t *halves = malloc(N * K * sizeof(uint16_t));
    assert_non_null(halves);
    for (size_t i = 0; i < N * K; i++) {
        halves[i] = bf16_from_f32(w[i]);
        if (p->bf16) w[i] = bf16_to_f32(halves[i]);
    }
    struct tensor tx = tensor_view(T_F32, x, p->M, p->K, 0, 0), tb = tensor_view(T_F32, b, p->N, 0, 0, 0);
    struct tensor tw = tensor_view(p->bf16 ? T_BF16 : T_F32, p->bf16 ? (void *)halves : (void *)w, p->N, p->K, 0, 0);
    struct tensor ty = tensor_view(T_F32, y, p->M, p->N, 0, 0);
    assert_ok(be->ctx, be->op.linear(be, &tx, &tw, p->bias ? &tb : NULL, &ty));
    double worst = 0, scale = 0;
    for (size_t m = 0; m < M; m++)
        for (size_t n = 0; n < N; n++) {
            double sum = p->bias ? (double)b[n] : 0;
            for (size_t k = 0; k < K; k++) sum += (double)x[m * K + k] * (double)w[n * K + k];
            worst = fmax(worst, fabs((double)y[m * N + n] - sum));
            scale = fmax(scale, fabs(sum));
        }
    assert_true(worst / scale < 2e-6);
    free(x);
    free(w);
    free(b);
    free(y);
    free(halves);
}

static void check_attention(struct backend *be, int N, int L, int C)
{
    size_t count = (size_t)N * (size_t)L * (size_t)C;
    float *q = random_block(count, 1), *k = random_block(count, 2), *v = random_block(count, 3), *y = random_block(count, 4);
    double *weights = malloc((size_t)L * sizeof(double)), worst = 0;
    assert_non_null(weights);
    for (size_t i = 0; i < count; i++) q[i] *= 8; /* so that the softmax is far from flat */
    struct tensor tq = tensor_view(T_F32, q, N, L, C, 0), tk = tensor_view(T_F32, k, N, L, C, 0);
    struct tensor tv = tensor_view(T_F32, v, N, L, C, 0), ty = tensor_view(T_F32, y, N, L, C, 0);
    assert_ok(be->ctx, be->op.attention(be, &tq, &tk, &tv, &ty));
    for (int row = 0; row < N * L; row++) {
        const float *keys = k + (size_t)(row / L * L * C), *values = v + (size_t)(row / L * L * C);
        double sum = 0;
        for (int j = 0; j < L; j++) {
            double score = 0;
            for (int c = 0; c < C; c++) score += (double)q[row * C + c] * (double)keys[j * C + c];
            sum += weights[j] = exp(score / sqrt((double)C));
        }
        for (int c = 0; c < C; c++) {
            double out = 0;
            for (int j = 0; j < L; j++) out += weights[j] / sum * (double)values[j * C + c];
            worst = fmax(worst, fabs((double)y[row * C + c] - out));
        }
    }
    assert_true(worst < 4e-6);
    free(q);
    free(k);
    free(v);
    free(y);
    free(weights);
}

static void test_products(void **state)
{
    (void)state;
    for (int t = 0; t < TIERS; t++)
        for (int threads = 1; threads <= 3; threads++) {
            aim_context ctx;
            struct backend *be = open_backend(&ctx, tiers[t], threads, true);
            if (!be) break;
            for (size_t i = 0; i < sizeof products / sizeof products[0]; i++) check_linear(be, &products[i]);
            check_attention(be, 1, 1, 8);
            check_attention(be, 2, 65, 33);
            check_attention(be, 1, 130, 64);
            close_backend(be);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_conv2d),
        cmocka_unit_test(test_conv2d_memory),
        cmocka_unit_test(test_products),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
