/* The CUDA kernels of the sequence ops, forward and backward, against the plain C kernels on the same inputs. */
#include "cuda.h"

#include "tensor/ssd_cache.h"

/*
 * Tolerances, relative to the largest value. Float32 sums of up to some thousand terms, in another order than the
 * reference's: EXACT. A result stored as bf16 is off by half a unit in its eighth bit, up to 4e-3: ROUNDED; by two of them
 * where it is rounded, added to and rounded again: TWICE. Where bf16 factors are formed on the way, their errors add up: LOOSE.
 */
static const double EXACT = 2e-5, ROUNDED = 5e-3, TWICE = 9e-3, LOOSE = 1.5e-2;

static struct gpu gpu;
static bool present;

static double tolerance_of(enum tensor_type type)
{
    return type == T_BF16 ? ROUNDED : EXACT;
}

/* Float32 tensors whose values bf16 can hold, as weights of exact references must be. */
static struct threefold weights(struct gpu *g, double mean, double deviation, int64_t n0, int64_t n1, int64_t n2)
{
    struct threefold t = gpu_normal(g, T_F32, mean, deviation, n0, n1, n2, 0);
    float *x = f32(&t.at[HOST]);
    for (int64_t i = 0; i < tensor_count(&t.at[HOST]); i++) x[i] = bf16_to_f32(bf16_from_f32(x[i]));
    gpu_spread(g, &t);
    return t;
}

static struct threefold normal(struct gpu *g, enum tensor_type type, int64_t n0, int64_t n1, int64_t n2)
{
    return gpu_normal(g, type, 0, 1, n0, n1, n2, 0);
}

/* What a backward adds to, or overwrites. */
static struct threefold gradient(struct gpu *g, enum tensor_type type, bool fresh, int64_t n0, int64_t n1, int64_t n2)
{
    return fresh ? gpu_fresh(g, type, 0, n2 ? n2 : n1, n0, n1, n2) : normal(g, type, n0, n1, n2);
}

/* A test's body runs for tensors of either type. */
#define TEST(name)                                                                                                             \
    static void body_##name(struct gpu *g, enum tensor_type type);                                                             \
    static void test_##name(void **state)                                                                                      \
    {                                                                                                                          \
        (void)state;                                                                                                           \
        if (!present) skip();                                                                                                  \
        body_##name(&gpu, T_F32);                                                                                              \
        body_##name(&gpu, T_BF16);                                                                                             \
        gpu_reset(&gpu);                                                                                                       \
    }                                                                                                                          \
    static void body_##name(struct gpu *g, enum tensor_type type)

/* ------------------------------------------------------------------------------------------------------- dense */

static void check_linear(struct gpu *g, enum tensor_type type, int64_t M, int64_t K, int64_t N, bool fresh)
{
    struct threefold x = normal(g, type, M, K, 0), w = weights(g, 0, 1, N, K, 0), bias = normal(g, T_F32, N, 0, 0);
    struct threefold y = gpu_blank(g, type, M, N, 0, 0), plain = gpu_blank(g, type, M, N, 0, 0), dy = normal(g, type, M, N, 0);
    struct threefold dx = gradient(g, type, fresh, M, K, 0), dw = gradient(g, T_F32, fresh, N, K, 0),
                     dbias = normal(g, T_F32, N, 0, 0);
    RUN_SIDES(g, linear, AT(x), AT(w), AT(bias), AT(y));
    expect_sides(g, "linear with bias", &y, type == T_BF16 ? TWICE : EXACT);
    RUN_SIDES(g, linear, AT(x), AT(w), NULL, AT(plain));
    expect_sides(g, "linear", &plain, tolerance_of(type));
    RUN_SIDES(g, linear_backward, AT(x), AT(w), AT(dy), AT(dx), AT(dw), AT(dbias));
    expect_sides(g, "linear: dx", &dx, tolerance_of(type));
    expect_sides(g, "linear: dw", &dw, type == T_BF16 ? 1e-4 : EXACT); /* tensor cores cut their sums instead of rounding */
    expect_sides(g, "linear: dbias", &dbias, EXACT);
    gpu_reset(g);
}

TEST(linear)
{
    static const int64_t shapes[][3] = {{1, 64, 48}, {3, 63, 65}, {40, 768, 129}, {256, 768, 200}, {300, 100, 64}};
    for (int i = 0; i < 5; i++) check_linear(g, type, shapes[i][0], shapes[i][1], shapes[i][2], i % 2 == 1);
}

/* Float32 activations while products are bf16, and a weight whose bf16 copy must follow the optimizer. */
static void test_linear_learns(void **state)
{
    (void)state;
    if (!present) skip();
    struct gpu *g = &gpu;
    enum { M = 24, K = 64, N = 40 };
    struct threefold x = weights(g, 0, 1, M, K, 0), w = weights(g, 0, 1, N, K, 0), dw = normal(g, T_F32, N, K, 0);
    struct threefold m = gpu_normal(g, T_F32, 0, 0, N, K, 0, 0), v = gpu_normal(g, T_F32, 0, 0, N, K, 0, 0);
    struct threefold norm = gpu_normal(g, T_F32, 7, 0, 1, 0, 0, 0), y = gpu_blank(g, T_F32, M, N, 0, 0);
    const struct adamw how = {.lr = 0.5, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .decay = 0.1, .clip = 1, .step = 1};
    for (int side = 0; side < SIDES; side++) w.at[side].needs_grad = true;
    g->device->bf16 = true;
    RUN_SIDES(g, linear, AT(x), AT(w), NULL, AT(y));
    expect_sides(g, "linear in bf16", &y, EXACT);
    RUN_SIDES(g, adamw, (&(struct adamw_slot){AT(w), AT(dw), AT(m), AT(v), NULL, true}), 1, &how, AT(norm));
    RUN_SIDES(g, linear, AT(x), AT(w), NULL, AT(y));
    expect_sides(g, "linear after a step", &y, ROUNDED);
    g->device->bf16 = false;
    for (int side = GPU; side < SIDES; side++) w.at[side].converted_free(w.at[side].converted);
    gpu_reset(g);
}

/* -------------------------------------------------------------------------------------------------- small ops */

static void check_embedding(struct gpu *g, enum tensor_type type, int64_t M, int64_t d)
{
    enum { V = 19, POSITIONS = 7 };
    struct threefold tokens = normal(g, type, V, d, 0), positions = normal(g, T_F32, POSITIONS, d, 0), ids = gpu_ids(g, M, V);
    struct threefold pos = gpu_ids(g, M, POSITIONS), y = gpu_blank(g, T_F32, M, d, 0, 0), dy = normal(g, type, M, d, 0);
    struct threefold dtokens = normal(g, T_F32, V, d, 0), dpositions = normal(g, T_F32, POSITIONS, d, 0);
    for (int64_t i = 0; i < M; i += 3) i32(&pos.at[HOST])[i] = -1;
    gpu_spread(g, &pos);
    RUN_SIDES(g, embedding, AT(tokens), AT(positions), AT(ids), AT(pos), AT(y));
    expect_sides(g, "embedding", &y, EXACT);
    RUN_SIDES(g, embedding_backward, AT(ids), AT(pos), AT(dy), AT(dtokens), AT(dpositions));
    expect_sides(g, "embedding: dtokens", &dtokens, EXACT);
    expect_sides(g, "embedding: dpositions", &dpositions, EXACT);
    RUN_SIDES(g, embedding, AT(tokens), NULL, AT(ids), NULL, AT(y));
    expect_sides(g, "embedding without positions", &y, EXACT);
    gpu_reset(g);
}

TEST(embedding)
{
    check_embedding(g, type, 1, 64);
    check_embedding(g, type, 40, 5);
    check_embedding(g, type, 700, 8);    /* threads share the rows of an id */
    check_embedding(g, type, 2500, 768); /* more rows than the sort compares at once */
}

static void check_rows(struct gpu *g, enum tensor_type type, int64_t B, int64_t T, int64_t d)
{
    struct threefold first = normal(g, type, B, d, 0), rest = normal(g, type, B, T, d), y = gpu_blank(g, type, B, T + 1, d, 0);
    struct threefold dy = normal(g, type, B, T + 1, d), dfirst = normal(g, type, B, d, 0), drest = normal(g, type, B, T, d);
    RUN_SIDES(g, prepend, AT(first), AT(rest), AT(y));
    expect_sides(g, "prepend", &y, 0);
    RUN_SIDES(g, prepend_backward, AT(dy), AT(dfirst), AT(drest));
    expect_sides(g, "prepend: dfirst", &dfirst, tolerance_of(type));
    expect_sides(g, "prepend: drest", &drest, tolerance_of(type));

    struct threefold wide = normal(g, type, B, 3 * d + 1, 0), bias = normal(g, T_F32, 2 * d, 0, 0);
    struct threefold part = gpu_blank(g, type, B, 2 * d, 0, 0), dpart = normal(g, type, B, 2 * d, 0);
    struct threefold dwide = normal(g, type, B, 3 * d + 1, 0), dbias = normal(g, T_F32, 2 * d, 0, 0);
    RUN_SIDES(g, slice_add, AT(wide), d, AT(bias), AT(part));
    expect_sides(g, "slice_add", &part, tolerance_of(type));
    RUN_SIDES(g, slice_add_backward, d, AT(dpart), AT(dwide), AT(dbias));
    expect_sides(g, "slice_add: dx", &dwide, tolerance_of(type));
    expect_sides(g, "slice_add: dbias", &dbias, EXACT);
    gpu_reset(g);
}

TEST(rows)
{
    check_rows(g, type, 1, 1, 64);
    check_rows(g, type, 3, 16, 5);
    check_rows(g, type, 70, 40, 768);
}

static void check_values(struct gpu *g, enum tensor_type type, int64_t n)
{
    enum tensor_type other = type == T_F32 ? T_BF16 : T_F32;
    struct threefold x = gpu_normal(g, type, 0, 3, n, 0, 0, 0), y = gpu_blank(g, type, n, 0, 0, 0),
                     dy = normal(g, type, n, 0, 0);
    struct threefold dx = normal(g, type, n, 0, 0), sum = gpu_blank(g, type, n, 0, 0, 0), total = normal(g, other, n, 0, 0);
    struct threefold same = normal(g, type, n, 0, 0), changed = gpu_blank(g, other, n, 0, 0, 0);
    RUN_SIDES(g, silu, AT(x), AT(y));
    expect_sides(g, "silu", &y, tolerance_of(type));
    RUN_SIDES(g, silu_backward, AT(x), AT(dy), AT(dx));
    expect_sides(g, "silu: dx", &dx, tolerance_of(type));
    RUN_SIDES(g, add, AT(x), AT(dy), AT(sum));
    expect_sides(g, "add", &sum, tolerance_of(type));
    RUN_SIDES(g, accumulate, AT(x), AT(total));
    expect_sides(g, "accumulate into the other type", &total, tolerance_of(other));
    RUN_SIDES(g, accumulate, AT(x), AT(same));
    expect_sides(g, "accumulate", &same, tolerance_of(type));
    RUN_SIDES(g, cast, AT(x), AT(changed));
    expect_sides(g, "cast", &changed, tolerance_of(other));
    gpu_reset(g);
}

TEST(values)
{
    check_values(g, type, 1);
    check_values(g, type, 1001);
    check_values(g, type, 200000);
}

/* ------------------------------------------------------------------------------------------------------- norms */

/* Which optional inputs there are; whether gradients are overwritten. */
struct options {
    bool h, gates, mod, fresh;
};

static void check_residual(struct gpu *g, enum tensor_type type, int64_t B, int64_t T, int64_t d, struct options o)
{
    struct threefold r = normal(g, T_F32, B, T, d), h = normal(g, type, B, T, d), gates = normal(g, T_F32, B, 3 * d, 0);
    struct threefold w = normal(g, T_F32, d, 0, 0), mod = normal(g, T_F32, B, 3 * d, 0), y = gpu_blank(g, type, B, T, d, 0);
    struct threefold sum = gpu_blank(g, T_F32, B, T, d, 0);
#define GIVEN(flag, t) ((flag) ? AT(t) : NULL)
    RUN_SIDES(g, residual_rms_norm_modulate, AT(r), GIVEN(o.h, h), GIVEN(o.gates, gates), AT(w), GIVEN(o.mod, mod), 1e-5f,
              AT(sum), AT(y));
    expect_sides(g, "residual norm: y", &y, tolerance_of(type));
    expect_sides(g, "residual norm: sum", &sum, EXACT);

    struct threefold dsum = normal(g, T_F32, B, T, d), dy = normal(g, type, B, T, d);
    struct threefold dr = gradient(g, T_F32, o.fresh, B, T, d), dh = gradient(g, type, o.fresh, B, T, d);
    struct threefold dgates = normal(g, T_F32, B, 3 * d, 0), dw = normal(g, T_F32, d, 0, 0);
    struct threefold dmod = normal(g, T_F32, B, 3 * d, 0);
    gpu_spread(g, &sum); /* the reference's, so that differences are this op's own */
    RUN_SIDES(g, residual_rms_norm_modulate_backward, AT(sum), GIVEN(o.h, h), GIVEN(o.gates, gates), AT(w), GIVEN(o.mod, mod),
              1e-5f, GIVEN(o.h, dsum), AT(dy), AT(dr), GIVEN(o.h, dh), GIVEN(o.gates, dgates), AT(dw), GIVEN(o.mod, dmod));
    expect_sides(g, "residual norm: dr", &dr, EXACT);
    expect_sides(g, "residual norm: dw", &dw, EXACT);
    if (o.h) expect_sides(g, "residual norm: dh", &dh, tolerance_of(type));
    if (o.gates) expect_sides(g, "residual norm: dgates", &dgates, EXACT);
    if (o.mod) expect_sides(g, "residual norm: dmod", &dmod, EXACT);

    RUN_SIDES(g, residual_rms_norm_modulate_backward, AT(sum), GIVEN(o.h, h), GIVEN(o.gates, gates), AT(w), GIVEN(o.mod, mod),
              1e-5f, AT(dsum), NULL, AT(dr), GIVEN(o.h, dh), NULL, NULL, NULL);
    expect_sides(g, "residual norm without dy: dr", &dr, EXACT);

    RUN_SIDES(g, residual_rms_norm_modulate, AT(r), GIVEN(o.h, h), GIVEN(o.gates, gates), AT(w), GIVEN(o.mod, mod), 1e-5f,
              AT(r), AT(y));
    expect_sides(g, "residual norm in place: y", &y, tolerance_of(type));
    expect_sides(g, "residual norm in place: r", &r, EXACT);
#undef GIVEN
    gpu_reset(g);
}

TEST(residual_norm)
{
    check_residual(g, type, 2, 16, 64, (struct options){true, true, true, false});
    check_residual(g, type, 1, 40, 768, (struct options){true, false, true, false});
    check_residual(g, type, 3, 300, 65, (struct options){true, true, true, false});
    check_residual(g, type, 2, 33, 768, (struct options){true, true, true, true});
    check_residual(g, type, 2, 17, 65, (struct options){true, false, true, true});
    check_residual(g, type, 2, 256, 1536, (struct options){true, true, false, false});
    check_residual(g, type, 1, 1, 768, (struct options){false, false, true, false});
    check_residual(g, type, 5, 16, 100, (struct options){false, false, false, false});
}

static void check_gated(struct gpu *g, enum tensor_type type, int64_t M, int64_t E, int64_t W, bool fresh)
{
    struct threefold y = normal(g, type, M, E, 0), z = normal(g, type, M, W, 0), w = normal(g, T_F32, E, 0, 0);
    struct threefold o = gpu_blank(g, type, M, E, 0, 0), up = normal(g, type, M, E, 0);
    struct threefold dy = gradient(g, type, fresh, M, E, 0),
                     dz = fresh ? gpu_fresh(g, type, 0, E, M, W, 0) : normal(g, type, M, W, 0), dw = normal(g, T_F32, E, 0, 0);
    RUN_SIDES(g, gated_rms_norm, AT(y), AT(z), AT(w), 1e-5f, AT(o));
    expect_sides(g, "gated norm", &o, tolerance_of(type));
    RUN_SIDES(g, gated_rms_norm_backward, AT(y), AT(z), AT(w), 1e-5f, AT(up), AT(dy), AT(dz), AT(dw));
    expect_sides(g, "gated norm: dy", &dy, tolerance_of(type));
    expect_sides(g, "gated norm: dz", &dz, tolerance_of(type));
    expect_sides(g, "gated norm: dw", &dw, EXACT);
    gpu_reset(g);
}

TEST(gated_norm)
{
    for (int fresh = 0; fresh < 2; fresh++) {
        check_gated(g, type, 1, 64, 64 + 96 + 1, fresh);
        check_gated(g, type, 40, 1536, 3352, fresh);
        check_gated(g, type, 300, 192, 3 * 129 + 10, fresh);
    }
}

/* ------------------------------------------------------------------------------------------------------- mixer */

/* B pictures of T positions, H heads, states of S values. */
struct mixer {
    int64_t B, T, H, S;
};

static const struct mixer mixers[] = {
    {1, 1, 1, 16},    {2, 16, 2, 5},   {2, 40, 1, 128},   {3, 64, 2, 16},
    {2, 256, 8, 128}, {1, 300, 2, 32}, {1, 256, 24, 128}, {2, 300, 1, 5},
};

/* `fresh`: 0, no columns of dx; 1, its own; 2, all, in the middle of which it stands */
static void check_convolution(struct gpu *g, enum tensor_type type, struct mixer n, int fresh)
{
    int64_t E = n.H * HEADDIM, C = E + 2 * n.S, W = E + C + n.H;
    struct threefold x = normal(g, type, n.B, n.T, W), w = normal(g, T_F32, C, 1, CONV_WIDTH), bias = normal(g, T_F32, C, 0, 0);
    struct threefold y = gpu_blank(g, type, n.B, n.T, C, 0), dy = normal(g, type, n.B, n.T, C),
                     dx = fresh == 0   ? normal(g, type, n.B, n.T, W)
                          : fresh == 1 ? gpu_fresh(g, type, E, E + C, n.B, n.T, W)
                                       : gpu_fresh(g, type, 0, W, n.B, n.T, W);
    struct threefold dw = normal(g, T_F32, C, 1, CONV_WIDTH), dbias = normal(g, T_F32, C, 0, 0);
    RUN_SIDES(g, causal_conv1d_silu, AT(x), AT(w), AT(bias), AT(y));
    expect_sides(g, "convolution", &y, tolerance_of(type));
    RUN_SIDES(g, causal_conv1d_silu_backward, AT(x), AT(w), AT(bias), AT(dy), AT(dx), AT(dw), AT(dbias));
    expect_sides(g, "convolution: dx", &dx, tolerance_of(type));
    expect_sides(g, "convolution: dw", &dw, EXACT);
    expect_sides(g, "convolution: dbias", &dbias, EXACT);
    gpu_reset(g);
}

TEST(convolution)
{
    for (size_t i = 0; i < sizeof mixers / sizeof mixers[0]; i++) check_convolution(g, type, mixers[i], (int)i % 3);
}

static void check_ssd(struct gpu *g, enum tensor_type type, struct mixer n, double decay, bool fresh)
{
    int64_t E = n.H * HEADDIM, C = E + 2 * n.S, W = E + C + n.H;
    double loose = type == T_BF16 ? LOOSE : EXACT, sums = type == T_BF16 ? 1e-3 : 1e-4;
    struct threefold xbc = normal(g, type, n.B, n.T, C), z = gpu_normal(g, type, -1, 1, n.B, n.T, W, 0);
    struct threefold A_log = gpu_normal(g, T_F32, decay, 0.5, n.H, 0, 0, 0), dt_bias = normal(g, T_F32, n.H, 0, 0);
    struct threefold D = normal(g, T_F32, n.H, 0, 0), y = gpu_blank(g, type, n.B, n.T, E, 0), dy = normal(g, type, n.B, n.T, E);
    struct threefold dxbc = gradient(g, type, fresh, n.B, n.T, C),
                     dz = fresh ? gpu_fresh(g, type, W - n.H, W, n.B, n.T, W) : normal(g, type, n.B, n.T, W),
                     dA_log = normal(g, T_F32, n.H, 0, 0);
    struct threefold ddt_bias = normal(g, T_F32, n.H, 0, 0), dD = normal(g, T_F32, n.H, 0, 0);
    RUN_SIDES(g, ssd, AT(xbc), AT(z), AT(A_log), AT(dt_bias), AT(D), AT(y));
    expect_sides(g, "ssd", &y, loose);
    RUN_SIDES(g, ssd_backward, AT(xbc), AT(z), AT(A_log), AT(dt_bias), AT(D), AT(dy), AT(dxbc), AT(dz), AT(dA_log),
              AT(ddt_bias), AT(dD));
    expect_sides(g, "ssd: dxbc", &dxbc, loose);
    expect_sides(g, "ssd: ddt", &dz, type == T_BF16 ? LOOSE : 1e-4);
    expect_sides(g, "ssd: dA_log", &dA_log, type == T_BF16 ? LOOSE : sums); /* C·B, too, is rounded */
    expect_sides(g, "ssd: ddt_bias", &ddt_bias, type == T_BF16 ? LOOSE : 1e-4);
    expect_sides(g, "ssd: dD", &dD, sums);
    gpu_reset(g);
}

TEST(ssd)
{
    for (size_t i = 0; i < sizeof mixers / sizeof mixers[0]; i++) {
        check_ssd(g, type, mixers[i], -3, false); /* what was long ago still counts */
        check_ssd(g, type, mixers[i], 1, true);   /* it is soon forgotten */
    }
}

/* Two and three tiles of 64 positions; more heads than a block takes at a time. */
TEST(ssd_tiles)
{
    check_ssd(g, type, (struct mixer){1, 100, 5, 16}, -3, false);
    check_ssd(g, type, (struct mixer){2, 190, 3, 16}, 1, true);
    check_ssd(g, type, (struct mixer){1, 192, 7, 64}, -3, true);
    check_ssd(g, type, (struct mixer){64, 200, 9, 16}, -3, true); /* a block has several heads */
}

/* --------------------------------------------------------------------------------------------- loss, optimizer */

static void check_cross_entropy(struct gpu *g, enum tensor_type type, int64_t M, int64_t V, bool fresh)
{
    struct threefold logits = gpu_normal(g, type, 0, 3, M, V, 0, 0), target = gpu_ids(g, M, V),
                     loss = gpu_blank(g, T_F32, M, 0, 0, 0);
    struct threefold dloss = normal(g, T_F32, M, 0, 0);
    struct threefold dlogits = fresh ? gradient(g, type, true, M, V, 0) : gpu_normal(g, type, 0, 0.1, M, V, 0, 0);
    RUN_SIDES(g, cross_entropy, AT(logits), AT(target), AT(loss));
    expect_sides(g, "cross entropy", &loss, EXACT);
    RUN_SIDES(g, cross_entropy_backward, AT(logits), AT(target), AT(dloss), AT(dlogits));
    expect_sides(g, "cross entropy: dlogits", &dlogits, tolerance_of(type));
    gpu_reset(g);
}

TEST(cross_entropy)
{
    check_cross_entropy(g, type, 1, 7, false);
    check_cross_entropy(g, type, 40, 1000, false);
    check_cross_entropy(g, type, 40, 1000, true);
    check_cross_entropy(g, type, 16, 16384, true);
}

enum { TENSORS = 50 }; /* more than fit one launch */

static void test_optimizer(void **state)
{
    (void)state;
    if (!present) skip();
    struct gpu *g = &gpu;
    struct threefold w[TENSORS], dw = normal(g, T_F32, 300, 200, 0), m = gpu_normal(g, T_F32, 0, 0.1, 300, 200, 0, 0);
    struct threefold v = gpu_normal(g, T_F32, 1, 0.1, 300, 200, 0, 0), ema = normal(g, T_F32, 300, 200, 0);
    struct threefold norm = gpu_blank(g, T_F32, 1, 0, 0, 0);
    struct tensor *list[SIDES][TENSORS];
    for (int i = 0; i < TENSORS; i++) {
        w[i] = i == 3 ? normal(g, T_F32, 300, 200, 0) : normal(g, T_F32, 1 + 13 * i, 0, 0);
        for (int side = 0; side < SIDES; side++) list[side][i] = &w[i].at[side];
    }
    RUN_SIDES(g, norm, list[side_], TENSORS, AT(norm));
    expect_sides(g, "norm", &norm, 1e-6);
    struct adamw how = {
        .lr = 1e-2, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .decay = 0.05, .clip = 1, .ema_decay = 0.99, .step = 3};
    RUN_SIDES(g, adamw, (&(struct adamw_slot){AT(w[3]), AT(dw), AT(m), AT(v), AT(ema), true}), 1, &how, AT(norm));
    expect_sides(g, "adamw: w", &w[3], 1e-6);
    expect_sides(g, "adamw: m", &m, 1e-6);
    expect_sides(g, "adamw: v", &v, 1e-6);
    expect_sides(g, "adamw: ema", &ema, 1e-6);
    expect_sides(g, "adamw: the gradient is zero", &dw, 0);

    struct threefold big = normal(g, T_F32, 1024, 1024, 0), up = normal(g, T_F32, 1024, 1024, 0);
    struct threefold first = gpu_normal(g, T_F32, 0, 0.1, 1024, 1024, 0, 0),
                     second = gpu_normal(g, T_F32, 1, 0.1, 1024, 1024, 0, 0);
    RUN_SIDES(g, adamw, (&(struct adamw_slot){AT(big), AT(up), AT(first), AT(second), NULL, true}), 1, &how, AT(norm));
    expect_sides(g, "adamw: a large matrix", &big, 1e-6);
    assert_int_equal(up.at[GPU].fresh.end - up.at[GPU].fresh.first, 1024); /* to be overwritten */
    gpu_reset(g);
}

static int set_up(void **state)
{
    (void)state;
    present = gpu_open(&gpu);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    if (present) gpu_close(&gpu);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_linear),        cmocka_unit_test(test_linear_learns), cmocka_unit_test(test_embedding),
        cmocka_unit_test(test_rows),          cmocka_unit_test(test_values),        cmocka_unit_test(test_residual_norm),
        cmocka_unit_test(test_gated_norm),    cmocka_unit_test(test_convolution),   cmocka_unit_test(test_ssd),
        cmocka_unit_test(test_cross_entropy), cmocka_unit_test(test_optimizer),     cmocka_unit_test(test_ssd_tiles),
    };
    cmocka_set_test_filter(getenv("AIM_TEST_FILTER")); /* for slow checkers */
    return cmocka_run_group_tests_name("cuda_sequence", tests, set_up, tear_down);
}
