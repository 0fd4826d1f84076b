/* The ops that decoding alone uses, on the GPU: against the plain C kernels. */
#include "cuda.h"

#include "tensor/ssd_cache.h"

/* ------------------------------------------------------------------------------------------------ packed products */

static const enum tensor_type packed_types[] = {T_F32_PACKED, T_BF16_PACKED, T_Q8_PACKED};
enum { PACKED_TYPES = sizeof packed_types / sizeof packed_types[0] };

static void check_packed(struct gpu *g, int64_t M, int64_t N, int64_t K, enum tensor_type type, enum tensor_type x_type)
{
    static const char *const names[] = {
        [T_F32_PACKED] = "linear_packed", [T_BF16_PACKED] = "linear_packed, bf16", [T_Q8_PACKED] = "linear_packed, q8"};
    struct threefold x = gpu_normal(g, x_type, 0, 1, M, K, 0, 0), w = gpu_normal(g, T_F32, 0, 1, N, K, 0, 0);
    struct threefold packed = gpu_tensor(g, type, N, K, 0, 0), y = gpu_blank(g, T_F32, M, N, 0, 0);
    RUN_SIDES(g, pack, AT(w), AT(packed));
    RUN_SIDES(g, linear_packed, AT(x), AT(packed), AT(y));
    /* The GPU rounds x to 8 bits of mantissa for bf16 and, of more than a few rows, for q8; else the host to 16 bits for q8. */
    expect_sides(g, names[type], &y, type == T_F32_PACKED ? 1e-5 : type == T_BF16_PACKED || M > 8 ? 1e-2 : 1e-4);
    gpu_reset(g);
}

/* Packed word embeddings are looked up, too. */
static void packed_embedding(void **state)
{
    (void)state;
    struct gpu g;
    if (!gpu_open(&g)) skip();
    enum { V = 70, T = 9, M = 13 };
    static const int64_t widths[] = {96, 37};
    for (int i = 0; i < 2 * PACKED_TYPES; i++) {
        int64_t D = widths[i % 2];
        struct threefold w = gpu_normal(&g, T_F32, 0, 1, V, D, 0, 0), positions = gpu_normal(&g, T_F32, 0, 1, T, D, 0, 0);
        struct threefold packed = gpu_tensor(&g, packed_types[i / 2], V, D, 0, 0);
        struct threefold ids = gpu_ids(&g, M, V), pos = gpu_ids(&g, M, T), y = gpu_blank(&g, T_F32, M, D, 0, 0);
        for (int64_t k = 0; k < D; k++) f32(&w.at[HOST])[k] = 0; /* a row of zeros has a scale, too */
        gpu_spread(&g, &w);
        i32(&ids.at[HOST])[0] = 0;
        gpu_spread(&g, &ids);
        RUN_SIDES(&g, pack, AT(w), AT(packed));
        RUN_SIDES(&g, embedding, AT(packed), AT(positions), AT(ids), AT(pos), AT(y));
        expect_sides(&g, "embedding of packed words", &y, 0);
        gpu_reset(&g);
    }
    gpu_close(&g);
}

static void packed_products(void **state)
{
    (void)state;
    struct gpu g;
    if (!gpu_open(&g)) skip();
    for (int i = 0; i < PACKED_TYPES; i++) {
        check_packed(&g, 1, 64, 64, packed_types[i], T_F32);
        check_packed(&g, 3, 257, 96, packed_types[i], T_F32);
        check_packed(&g, 40, 130, 64, packed_types[i], T_F32);
        check_packed(&g, 130, 416, 192, packed_types[i], T_F32);
        check_packed(&g, 60, 64, 640, packed_types[i], T_F32);
        check_packed(&g, 128, 66, 1008, packed_types[i], T_F32);
    }
    /* every number of rows that has a kernel, rows in vectors and not, x of either type */
    for (int64_t M = 1; M <= 9; M++) {
        check_packed(&g, M, 33, 1040, T_Q8_PACKED, M % 2 ? T_F32 : T_BF16);
        if (M <= 8) check_packed(&g, M, 40, 37, T_Q8_PACKED, M % 2 ? T_BF16 : T_F32);
    }
    gpu_close(&g);
}

/* --------------------------------------------------------------------------------------------------------- the mixer */

static void convolution_step(void **state)
{
    (void)state;
    struct gpu g;
    if (!gpu_open(&g)) skip();
    enum { R = 3, H = 2, S = 24, E = H * HEADDIM, C = E + 2 * S, W = E + C + H, STEPS = 6 };
    struct threefold w = gpu_normal(&g, T_F32, 0, 1, C, 1, CONV_WIDTH, 0), bias = gpu_normal(&g, T_F32, 0, 1, C, 0, 0, 0);
    struct threefold past = gpu_normal(&g, T_F32, 0, 0, R, CONV_WIDTH - 1, C, 0);
    for (int t = 0; t < STEPS; t++) {
        struct threefold zxbcdt = gpu_normal(&g, T_F32, 0, 1, R, W, 0, 0), y = gpu_blank(&g, T_F32, R, C, 0, 0);
        RUN_SIDES(&g, causal_conv1d_silu_step, AT(zxbcdt), AT(w), AT(bias), AT(past), AT(y));
        expect_sides(&g, "causal_conv1d_silu_step", &y, 1e-5);
        expect_sides(&g, "its state", &past, 0);
    }
    gpu_close(&g);
}

static float *room(struct gpu *g, int side, int64_t floats)
{
    size_t bytes = (size_t)floats * sizeof(float);
    float *data = side == HOST ? gpu_host_block(g, bytes) : gpu_device_block(g, bytes);
    assert_ok(&g->ctx, gpu_side(g, side)->memory.zero(gpu_side(g, side), data, bytes));
    return data;
}

/* Longer than one chunk: the history folds into the state once. */
static void recurrence_step(void **state)
{
    (void)state;
    struct gpu g;
    if (!gpu_open(&g)) skip();
    enum { R = 2, H = 3, S = 24, E = H * HEADDIM, C = E + 2 * S, W = E + C + H, STEPS = SSD_CHUNK + 20 };
    struct ssd_cache cache[SIDES];
    for (int side = 0; side < SIDES; side++) {
        struct ssd_cache *c = &cache[side];
        *c = (struct ssd_cache){.streams = R, .heads = H, .state_size = S, .blocks = SSD_CHUNK / SSD_BLOCK};
        c->u = room(&g, side, R * ssd_cache_u(c));
        c->b = room(&g, side, R * ssd_cache_b(c));
        c->decay = room(&g, side, R * ssd_cache_decay(c));
        c->carry = room(&g, side, R * H);
        c->state = room(&g, side, R * ssd_cache_state(c));
    }
    struct threefold A_log = gpu_normal(&g, T_F32, 0, 0.5, H, 0, 0, 0), dt_bias = gpu_normal(&g, T_F32, -3, 1, H, 0, 0, 0);
    struct threefold D = gpu_normal(&g, T_F32, 1, 0.2, H, 0, 0, 0), xbc = gpu_normal(&g, T_F32, 0, 1, R, C, 0, 0);
    struct threefold zxbcdt = gpu_normal(&g, T_F32, 0, 1, R, W, 0, 0), y = gpu_blank(&g, T_F32, R, E, 0, 0);
    for (int64_t t = 0; t < STEPS; t++) {
        for (int64_t i = 0; i < R * C; i++) f32(&xbc.at[HOST])[i] = gpu_draw(&g, 0, 1);
        for (int64_t i = 0; i < R * W; i++) f32(&zxbcdt.at[HOST])[i] = gpu_draw(&g, 0, 1);
        gpu_spread(&g, &xbc);
        gpu_spread(&g, &zxbcdt);
        RUN_SIDES(&g, ssd_step, AT(xbc), AT(zxbcdt), AT(A_log), AT(dt_bias), AT(D), &cache[side_], t, AT(y));
        expect_sides(&g, "ssd_step", &y, 1e-5);
    }
    gpu_close(&g);
}

/* ------------------------------------------------------------------------------------------------------- the sampler */

/* `levels` > 0: that many different logits, so that many are equal. */
static void check_sampler(struct gpu *g, int64_t R, int64_t V, bool guided, int levels, struct sampling how)
{
    struct threefold logits = gpu_normal(g, T_F32, 0, 3, R, V, 0, 0), uncond = gpu_normal(g, T_F32, 0, 1, R, V, 0, 0);
    for (int64_t i = 0; levels && i < R * V; i++) {
        float *x = f32(&logits.at[HOST]) + i, *u = f32(&uncond.at[HOST]) + i;
        *x = roundf(*x * (float)levels / 12);
        *u = roundf(*u);
    }
    gpu_spread(g, &logits);
    gpu_spread(g, &uncond);
    struct threefold probabilities = gpu_blank(g, T_F32, R, V, 0, 0), tokens = gpu_blank(g, T_I32, R, 0, 0, 0);
    double *uniform[SIDES];
    uniform[HOST] = gpu_host_block(g, (size_t)R * sizeof(double));
    for (int64_t r = 0; r < R; r++) uniform[HOST][r] = r == 0 ? 0 : r == 1 ? 1 - 0x1p-40 : gpu_draw(g, 0.5, 0.14);
    for (int side = GPU; side < SIDES; side++) {
        uniform[side] = gpu_device_block(g, (size_t)R * sizeof(double));
        assert_ok(&g->ctx, g->device->memory.upload(g->device, uniform[side], uniform[HOST], (size_t)R * sizeof(double)));
    }
    RUN_SIDES(g, sample, AT(logits), guided ? AT(uncond) : NULL, &how, uniform[side_], AT(probabilities), AT(tokens));
    expect_sides(g, "probabilities", &probabilities, 1e-5);
    expect_ids(g, "tokens", &tokens);
    gpu_reset(g);
}

static void sampler(void **state)
{
    (void)state;
    struct gpu g;
    if (!gpu_open(&g)) skip();
    static const struct sampling ways[] = {
        {.cfg = 1, .temperature = 1, .top_p = 1},
        {.cfg = 4, .temperature = 1, .top_p = 1},
        {.cfg = 1, .temperature = 0, .top_p = 1},
        {.cfg = 1, .temperature = 0.7, .top_p = 1, .top_k = 1},
        {.cfg = 1, .temperature = 1, .top_p = 1, .top_k = 37},
        {.cfg = 1, .temperature = 1.3, .top_p = 0.9137},
        {.cfg = 1, .temperature = 1, .top_p = 0.3137},
        {.cfg = 2, .temperature = 1, .top_p = 1e-9},
        {.cfg = 2, .temperature = 0.9, .top_p = 0.8137, .top_k = 100},
        {.cfg = 1, .temperature = 1, .top_p = 0.9999, .top_k = 100000},
    };
    static const int64_t vocabularies[] = {2, 33, 1000, 16384};
    for (size_t w = 0; w < sizeof ways / sizeof ways[0]; w++)
        for (size_t v = 0; v < sizeof vocabularies / sizeof vocabularies[0]; v++)
            for (int levels = 0; levels <= 12; levels += 6)
                check_sampler(&g, 5, vocabularies[v], ways[w].cfg != 1, levels, ways[w]);
    gpu_close(&g);
}

/* Infinities of both signs and NaN are told, by the same message as on the CPU. */
static void damaged_logits(void **state)
{
    (void)state;
    struct gpu g;
    if (!gpu_open(&g)) skip();
    const struct sampling how = {.cfg = 1, .temperature = 1, .top_p = 1};
    const float bad[] = {NAN, INFINITY};
    for (int i = 0; i < 2; i++) {
        struct threefold logits = gpu_normal(&g, T_F32, 0, 1, 2, 64, 0, 0), probabilities = gpu_blank(&g, T_F32, 2, 64, 0, 0);
        struct threefold tokens = gpu_blank(&g, T_I32, 2, 0, 0, 0);
        f32(&logits.at[HOST])[64 + 17] = bad[i];
        gpu_spread(&g, &logits);
        double *uniform = gpu_device_block(&g, 2 * sizeof(double));
        assert_ok(&g.ctx, g.device->memory.zero(g.device, uniform, 2 * sizeof(double)));
        aim_status status =
            g.device->op.sample(g.device, &logits.at[GPU], NULL, &how, uniform, &probabilities.at[GPU], &tokens.at[GPU]);
        assert_int_equal(status, AIM_ERR_FORMAT);
        assert_non_null(strstr(aim_last_error(&g.ctx), "not finite"));
        gpu_reset(&g);
    }
    gpu_close(&g);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(packed_products), cmocka_unit_test(packed_embedding), cmocka_unit_test(convolution_step),
        cmocka_unit_test(recurrence_step), cmocka_unit_test(sampler),          cmocka_unit_test(damaged_logits),
    };
    cmocka_set_test_filter(getenv("AIM_TEST_FILTER")); /* for slow checkers */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
