/* Dense products: linear, pack, linear_packed, and packed tables read back. */
#include "ops.h"

/* x wᵀ + bias in double; w already in float. */
static double *product(struct place *p, const struct tensor *x, const float *w, int64_t N, const struct tensor *bias)
{
    int64_t M = tensor_rows(x), K = tensor_cols(x);
    if (!needs_reference(p)) return NULL;
    double *y = doubles_new(p, M * N);
    for (int64_t m = 0; m < M; m++)
        for (int64_t n = 0; n < N; n++) {
            double sum = bias ? (double)f32(bias)[n] : 0;
            for (int64_t k = 0; k < K; k++) sum += (double)f32(x)[m * K + k] * (double)w[n * K + k];
            y[m * N + n] = sum;
        }
    return y;
}

/* The nearest number of 8 significant bits, ties to even: bf16 for the values of these tests, none of them denormal. */
static float round_to_bf16(float x)
{
    int exponent;
    double mantissa = frexp((double)x, &exponent);
    return (float)ldexp(nearbyint(ldexp(mantissa, 8)), exponent - 8);
}

/* A matrix as bf16, and the values it holds. */
static struct tensor as_bf16(struct place *p, const struct tensor *w, float *values)
{
    struct tensor half = tensor_of(p, T_BF16, w->shape[0], w->shape[1], 0, 0);
    for (int64_t i = 0; i < tensor_count(w); i++) {
        values[i] = round_to_bf16(f32(w)[i]);
        uint32_t bits;
        memcpy(&bits, &values[i], sizeof bits);
        ((uint16_t *)half.data)[i] = (uint16_t)(bits >> 16);
    }
    return half;
}

/*
 * A chain of K multiply-adds in float32 of terms of either sign: each of the K roundings is at most 2^-24 of a partial
 * sum, and they add up like a walk. Three deviations.
 */
static double chain_tolerance(int64_t K)
{
    return 3 * sqrt((double)K) * 0x1p-24;
}

/* Around every block size of the kernels: registers (1, 3, 12), rows (96), panels (32), lines in the cache (256). */
static const int64_t all_rows[] = {1, 2, 3, 5, 13, 16, 33, 96, 97, 200};
static const struct {
    int64_t N, K;
} matrices[] = {{1, 1}, {31, 7}, {33, 129}, {45, 256}, {70, 517}, {64, 64}};

#define COUNT(array) ((int64_t)(sizeof(array) / sizeof((array)[0])))

TEST(linear)
{
    static const int64_t rows[] = {1, 5, 97};
    for (int64_t i = 0; i < COUNT(matrices) * COUNT(rows); i++) {
        int64_t N = matrices[i / COUNT(rows)].N, K = matrices[i / COUNT(rows)].K, M = rows[i % COUNT(rows)];
        struct tensor x = normal(p, M, K, 0, 0), w = normal(p, N, K, 0, 0), bias = normal(p, N, 0, 0, 0);
        struct tensor y = blank(p, M, N, 0, 0), plain = blank(p, M, N, 0, 0), from_half = blank(p, M, N, 0, 0);
        RUN(p, linear, &x, &w, &bias, &y);
        expect_near(p, "linear", &y, product(p, &x, f32(&w), N, &bias), chain_tolerance(K));
        RUN(p, linear, &x, &w, NULL, &plain);
        expect_near(p, "linear without bias", &plain, product(p, &x, f32(&w), N, NULL), chain_tolerance(K));
        float *values = block_new(p, (size_t)(N * K) * sizeof(float));
        struct tensor half = as_bf16(p, &w, values);
        RUN(p, linear, &x, &half, &bias, &from_half);
        expect_near(p, "linear with bf16 weights", &from_half, product(p, &x, values, N, &bias), chain_tolerance(K));
    }
}

/* More than two dimensions of x and y are rows. */
TEST(linear_shapes)
{
    struct tensor x = normal(p, 2, 3, 17, 0), w = normal(p, 9, 17, 0, 0), y = blank(p, 2, 3, 9, 0), z = blank(p, 2, 3, 9, 0);
    struct tensor packed = tensor_of(p, T_F32_PACKED, 9, 17, 0, 0);
    const double *want = product(p, &x, f32(&w), 9, NULL);
    RUN(p, linear, &x, &w, NULL, &y);
    RUN(p, pack, &w, &packed);
    RUN(p, linear_packed, &x, &packed, &z);
    expect_near(p, "linear of three dimensions", &y, want, chain_tolerance(17));
    expect_near(p, "linear_packed of three dimensions", &z, want, chain_tolerance(17));
}

/* The right product, and for every row the same bits however many other rows there are. */
static void check_packed(struct place *p, const struct tensor *packed, const float *values, double tolerance)
{
    int64_t N = packed->shape[0], K = packed->shape[1], most = all_rows[COUNT(all_rows) - 1];
    size_t row_bytes = (size_t)N * sizeof(float);
    struct tensor all = normal(p, most, K, 0, 0), want = blank(p, most, N, 0, 0);
    RUN(p, linear_packed, &all, packed, &want);
    expect_near(p, "linear_packed", &want, product(p, &all, values, N, NULL), tolerance);
    for (int64_t i = 0; i < COUNT(all_rows); i++) {
        int64_t M = all_rows[i], from = most - M;
        struct tensor x = rows_of(p, &all, from, M), y = blank(p, M, N, 0, 0);
        RUN(p, linear_packed, &x, packed, &y);
        expect_same(p, "linear_packed of fewer rows", y.data, f32(&want) + from * N, (size_t)M * row_bytes);
    }
    for (int64_t m = 0; m < most; m += needs_reference(p) ? 1 : 19) {
        struct tensor x = rows_of(p, &all, m, 1), y = blank(p, 1, N, 0, 0);
        RUN(p, linear_packed, &x, packed, &y);
        expect_same(p, "linear_packed of one row", y.data, f32(&want) + m * N, row_bytes);
    }
}

TEST(linear_packed)
{
    for (int64_t i = 0; i < COUNT(matrices); i++) {
        int64_t N = matrices[i].N, K = matrices[i].K;
        struct tensor w = normal(p, N, K, 0, 0), packed = tensor_of(p, T_F32_PACKED, N, K, 0, 0);
        struct tensor packed_half = tensor_of(p, T_BF16_PACKED, N, K, 0, 0);
        RUN(p, pack, &w, &packed);
        check_packed(p, &packed, f32(&w), chain_tolerance(K));
        RUN(p, pack, &w, &packed_half);
        float *values = block_new(p, (size_t)(N * K) * sizeof(float));
        as_bf16(p, &w, values);
        check_packed(p, &packed_half, values, chain_tolerance(K));
    }
}

/* The table of a packed matrix, read through the embedding, is the matrix, exactly; padding is zero. */
static void check_pack(struct place *p, const struct tensor *w, enum tensor_type to, const float *values)
{
    int64_t N = w->shape[0], K = w->shape[1], zeros = 0, bytes = (int64_t)tensor_type_size(to);
    struct tensor packed = tensor_of(p, to, N, K, 0, 0), ids = tensor_of(p, T_I32, N, 0, 0, 0), y = blank(p, N, K, 0, 0);
    RUN(p, pack, w, &packed);
    same_with_any_threads(p, "pack", packed.data, tensor_bytes(to, 2, packed.shape));
    for (int64_t n = 0; n < N; n++) i32(&ids)[n] = (int32_t)(N - 1 - n);
    RUN(p, embedding, &packed, NULL, &ids, NULL, &y);
    for (int64_t n = 0; n < N; n++)
        expect_same(p, "pack", f32(&y) + n * K, values + (N - 1 - n) * K, (size_t)K * sizeof(float));
    int64_t padded = (int64_t)tensor_bytes(to, 2, packed.shape) / bytes;
    for (int64_t i = 0; i < padded; i++) {
        uint32_t value = 0;
        memcpy(&value, (const char *)packed.data + i * bytes, (size_t)bytes);
        zeros += value == 0;
    }
    assert_int_equal(zeros, padded - N * K); /* no weight of the tests is zero */
}

TEST(pack)
{
    for (int64_t i = 0; i < COUNT(matrices); i++) {
        int64_t N = matrices[i].N, K = matrices[i].K;
        struct tensor w = normal(p, N, K, 0, 0);
        f32(&w)[0] = 1.00390625f;          /* halfway between two bf16 values: down to the even one */
        f32(&w)[N * K - 1] = -1.01171875f; /* and up to it */
        float *values = block_new(p, (size_t)(N * K) * sizeof(float));
        struct tensor half = as_bf16(p, &w, values);
        check_pack(p, &w, T_F32_PACKED, f32(&w));
        check_pack(p, &w, T_BF16_PACKED, values);
        check_pack(p, &half, T_BF16_PACKED, values);
        check_pack(p, &half, T_F32_PACKED, values);
    }
}

/* ------------------------------------------------------------------------------------------------------ 8 bits */

/* The whole matrix as the embedding reads it, (N, K). */
static struct tensor read_back(struct place *p, const struct tensor *packed)
{
    int64_t N = packed->shape[0];
    struct tensor ids = tensor_of(p, T_I32, N, 0, 0, 0), y = blank(p, N, packed->shape[1], 0, 0);
    for (int64_t n = 0; n < N; n++) i32(&ids)[n] = (int32_t)n;
    RUN(p, embedding, packed, NULL, &ids, NULL, &y);
    return y;
}

/* Every value is a whole multiple, up to 127, of the largest magnitude of its row over 127, and the nearest one. */
static void check_q8_values(const struct tensor *w, const float *values, const float *got)
{
    int64_t N = w->shape[0], K = w->shape[1];
    for (int64_t n = 0; n < N; n++) {
        double most = 0;
        for (int64_t k = 0; k < K; k++) most = fmax(most, fabs((double)values[n * K + k]));
        for (int64_t k = 0; k < K; k++) {
            double steps = (double)got[n * K + k] * 127 / most, wanted = (double)values[n * K + k] * 127 / most;
            assert_true(fabs(steps - nearbyint(steps)) < 1e-4 && fabs(steps) < 127.0001);
            assert_true(fabs(steps - wanted) < 0.5001);
        }
    }
}

/* Rows of x are rounded to 16 bits: half a step of their largest value, which is under 4 deviations here, in every term. */
static double q8_tolerance(int64_t K)
{
    return chain_tolerance(K) + 4.0 / 32512;
}

TEST(linear_packed_q8)
{
    for (int64_t i = 0; i < COUNT(matrices); i++) {
        int64_t N = matrices[i].N, K = matrices[i].K;
        struct tensor w = normal(p, N, K, 0, 0), packed = tensor_of(p, T_Q8_PACKED, N, K, 0, 0);
        float *values = block_new(p, (size_t)(N * K) * sizeof(float));
        struct tensor half = as_bf16(p, &w, values);
        for (int from_half = 0; from_half < 2; from_half++) {
            RUN(p, pack, from_half ? &half : &w, &packed);
            same_with_any_threads(p, "pack", packed.data, tensor_bytes(T_Q8_PACKED, 2, packed.shape));
            struct tensor back = read_back(p, &packed);
            check_q8_values(&w, from_half ? values : f32(&w), f32(&back));
            check_packed(p, &packed, f32(&back), q8_tolerance(K));
        }
    }
}

/* The largest sums of whole numbers there are, of either sign and of both bytes of x, over more terms than a network has. */
TEST(linear_packed_q8_extremes)
{
    enum { N = 3, K = 1 << 17, M = 4 };
    struct tensor w = blank(p, N, K, 0, 0), x = blank(p, M, K, 0, 0), y = blank(p, M, N, 0, 0);
    struct tensor packed = tensor_of(p, T_Q8_PACKED, N, K, 0, 0);
    const float low = -128.0f / 32512; /* 256 * 0 - 128 */
    for (int64_t i = 0; i < N * K; i++) f32(&w)[i] = i / K == 0 ? 3.0f : i / K == 1 ? -0.5f : 0.0f;
    for (int64_t k = 0; k < K; k++) {
        f32(&x)[k] = 7;
        f32(&x)[K + k] = -7;
        f32(&x)[2 * K + k] = k ? low : 1;
        f32(&x)[3 * K + k] = 0;
    }
    RUN(p, pack, &w, &packed);
    RUN(p, linear_packed, &x, &packed, &y);
    expect_near(p, "largest sums", &y, product(p, &x, f32(&w), N, NULL), 1e-6);
}

/* What is no number stays none, in its own row alone, of the weights and of x; values next to zero are zero. */
TEST(linear_packed_q8_not_finite)
{
    enum { N = 3, K = 37, M = 4 };
    const float odd[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++) {
        struct tensor w = normal(p, N, K, 0, 0), x = normal(p, M, K, 0, 0), y = blank(p, M, N, 0, 0);
        struct tensor packed = tensor_of(p, T_Q8_PACKED, N, K, 0, 0);
        f32(&w)[K + 5] = odd[i];
        f32(&x)[2 * K + K - 1] = odd[i];
        for (int k = 0; k < K; k++) f32(&x)[3 * K + k] = 1e-42f;
        RUN(p, pack, &w, &packed);
        RUN(p, linear_packed, &x, &packed, &y);
        for (int m = 0; m < M; m++)
            for (int n = 0; n < N; n++) assert_int_equal(isfinite(f32(&y)[m * N + n]) != 0, m != 2 && n != 1);
        assert_true(fabsf(f32(&y)[3 * N]) < 1e-40f);
    }
}

/* ----------------------------------------------------------------------------- inputs rounded to bf16 (training) */

/* What a product of bf16 sees of a matrix. */
static struct tensor rounded(struct place *p, const struct tensor *t)
{
    struct tensor r = blank(p, t->shape[0], t->shape[1], 0, 0);
    for (int64_t i = 0; i < tensor_count(t); i++) f32(&r)[i] = round_to_bf16(f32(t)[i]);
    return r;
}

static struct tensor turned(struct place *p, const struct tensor *t)
{
    int64_t rows = t->shape[0], cols = t->shape[1];
    struct tensor r = blank(p, cols, rows, 0, 0);
    for (int64_t i = 0; i < rows * cols; i++) f32(&r)[i % cols * rows + i / cols] = f32(t)[i];
    return r;
}

/* a bᵀ of the rounded matrices, on top of what `start` holds. */
static double *rounded_product(struct place *p, struct tensor a, struct tensor b, const struct tensor *start)
{
    if (!needs_reference(p)) return NULL;
    a = rounded(p, &a);
    b = rounded(p, &b);
    double *y = product(p, &a, f32(&b), b.shape[0], NULL);
    for (int64_t i = 0; i < tensor_count(start); i++) y[i] += (double)f32(start)[i];
    return y;
}

/* Around the blocks: tiles of 12 and 96 rows, panels of 32 and 128 columns, pairs and blocks of 1024 terms, blocks of 4096
 * rows or columns. */
static const struct {
    int64_t M, N, K;
} bf16_products[] = {{1, 1, 1}, {13, 33, 7}, {97, 129, 34}, {5, 70, 1031}, {2, 4099, 3}, {1027, 14, 12}, {3, 5, 4097}};

TEST(linear_bf16)
{
    bool there = cpu_check_bf16(p->be) == AIM_OK;
    p->be->bf16 = there;
    for (int64_t i = 0; there && i < COUNT(bf16_products); i++) {
        int64_t M = bf16_products[i].M, N = bf16_products[i].N, K = bf16_products[i].K;
        struct tensor x = normal(p, M, K, 0, 0), w = normal(p, N, K, 0, 0), bias = normal(p, N, 0, 0, 0),
                      y = blank(p, M, N, 0, 0);
        struct tensor starts = blank(p, M, N, 0, 0);
        for (int64_t k = 0; k < M * N; k++) f32(&starts)[k] = f32(&bias)[k % N];
        RUN(p, linear, &x, &w, &bias, &y);
        expect_near(p, "linear of bf16", &y, rounded_product(p, x, w, &starts), chain_tolerance(K));
    }
    p->be->bf16 = false;
}

/* A failed run must have added nothing: the gradients start with values, and arrive at one sum. */
TEST(linear_backward_bf16)
{
    bool there = cpu_check_bf16(p->be) == AIM_OK;
    p->be->bf16 = there;
    for (int64_t i = 0; there && i < COUNT(bf16_products); i++) {
        int64_t M = bf16_products[i].M, N = bf16_products[i].N, K = bf16_products[i].K;
        struct tensor x = normal(p, M, K, 0, 0), w = normal(p, N, K, 0, 0), dy = normal(p, M, N, 0, 0);
        struct tensor dx = normal(p, M, K, 0, 0), dw = normal(p, N, K, 0, 0), lone = normal(p, M, K, 0, 0);
        const double *dx_want = rounded_product(p, dy, turned(p, &w), &dx),
                     *lone_want = rounded_product(p, dy, turned(p, &w), &lone);
        const double *dw_want = rounded_product(p, turned(p, &dy), turned(p, &x), &dw);
        RUN(p, linear_backward, &x, &w, &dy, &dx, &dw, NULL);
        expect_near(p, "dx of bf16", &dx, dx_want, chain_tolerance(N));
        expect_near(p, "dw of bf16", &dw, dw_want, chain_tolerance(M));
        RUN(p, linear_backward, &x, &w, &dy, &lone, NULL, NULL);
        expect_near(p, "dx of bf16, alone", &lone, lone_want, chain_tolerance(N));
    }
    p->be->bf16 = false;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_linear),
        cmocka_unit_test(test_linear_shapes),
        cmocka_unit_test(test_linear_packed),
        cmocka_unit_test(test_pack),
        cmocka_unit_test(test_linear_packed_q8),
        cmocka_unit_test(test_linear_packed_q8_extremes),
        cmocka_unit_test(test_linear_packed_q8_not_finite),
        cmocka_unit_test(test_linear_bf16),
        cmocka_unit_test(test_linear_backward_bf16),
    };
    return RUN_OPS("linear", tests);
}
