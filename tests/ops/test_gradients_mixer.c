/* Backward of the mixer and of the norms around it: causal convolution, state-space recurrence, RMS norms. */
#include "gradients.h"

enum { SAMPLES = 16 };

static double silu(double x)
{
    return x / (1 + exp(-x));
}

/* The widths of a mixer with H heads and states of S values. */
struct widths {
    int64_t H, S, E, C, W;
};

static struct widths widths_of(int64_t H, int64_t S)
{
    int64_t E = H * HEADDIM, C = E + 2 * S;
    return (struct widths){.H = H, .S = S, .E = E, .C = C, .W = E + C + H};
}

/* An op must leave the columns of zxbcdt alone that it does not read. */
static void expect_untouched(struct gradient *g, int i, int64_t from, int64_t to)
{
    int64_t cols = tensor_cols(&g->in[i].d);
    for (int64_t row = 0; row < tensor_rows(&g->in[i].d); row++)
        for (int64_t k = from; k < to; k++)
            if (g->in[i].got[row * cols + k] != 0)
                fail_msg("%s: %s: d(%s) has something in column %lld", tier_names[g->p->tier], g->name, g->in[i].name,
                         (long long)k);
}

/* ------------------------------------------------------------------------- residual, RMS norm and modulation */

enum { R, H, GATES, WEIGHT, MOD }; /* sides */

struct rms_case {
    struct tensor sum; /* r', which the forward kept */
    bool sum_counts, y_counts;
};

static const double eps = (double)1e-5f;

static void rms_forward(const struct gradient *g, double *y)
{
    int64_t T = g->in[R].value.shape[1], d = g->in[R].value.shape[2], n = tensor_count(&g->in[R].value);
    int64_t width = g->in[MOD].name ? tensor_cols(&g->in[MOD].value) : 0;
    double *sum = y + n; /* the second output */
    for (int64_t i = 0; i < n; i++) {
        double gate = g->in[GATES].name ? g->in[GATES].at[i / (T * d) * 3 * d + 2 * d + i % d] : 1;
        sum[i] = g->in[R].at[i] + (g->in[H].name ? gate * g->in[H].at[i] : 0);
    }
    for (int64_t row = 0; row < n / d; row++) {
        double squares = 0;
        for (int64_t k = 0; k < d; k++) squares += sum[row * d + k] * sum[row * d + k];
        const double *mod = width ? g->in[MOD].at + row / T * width : NULL;
        for (int64_t k = 0; k < d; k++) {
            double value = sum[row * d + k] / sqrt(squares / (double)d + eps) * g->in[WEIGHT].at[k];
            y[row * d + k] = mod ? value * (1 + mod[d + k]) + mod[k] : value;
        }
    }
}

static const struct tensor *given(const struct side *s)
{
    return s->name ? &s->value : NULL;
}

static aim_status rms_backward(const struct gradient *g, struct tensor *const d[SIDES])
{
    const struct rms_case *c = g->how;
    return g->p->be->op.residual_rms_norm_modulate_backward(
        g->p->be, &c->sum, given(&g->in[H]), given(&g->in[GATES]), &g->in[WEIGHT].value, given(&g->in[MOD]), (float)eps,
        c->sum_counts ? &g->dy[1] : NULL, c->y_counts ? &g->dy[0] : NULL, d[R], d[H], d[GATES], d[WEIGHT], d[MOD]);
}

/* The bits of `what`: which of h, gates, mod, the gradient at r' and the gradient at y there are. */
static void check_rms(struct place *p, int64_t B, int64_t T, int64_t d, int64_t mod_width, int what)
{
    struct tensor r = normal(p, B, T, d, 0), h = normal(p, B, T, d, 0), gates = normal(p, B, 3 * d, 0, 0);
    struct tensor mod = normal(p, B, mod_width, 0, 0), w = blank(p, d, 0, 0, 0);
    struct rms_case c = {.sum = blank(p, B, T, d, 0), .sum_counts = what & 8, .y_counts = what & 16};
    struct gradient g = {.p = p, .op = ID_residual_rms_norm_modulate_backward, .name = "residual_rms_norm_modulate"};
    g.forward = rms_forward;
    g.backward = rms_backward;
    g.how = &c;
    for (int i = 0; i < 2; i++) { /* what has not arrived counts as zero */
        g.dy[i] = normal(p, B, T, d, 0);
        if (!(i ? c.sum_counts : c.y_counts)) memset(g.dy[i].data, 0, (size_t)(B * T * d) * sizeof(float));
    }
    fill_normal(p, &w, 1, 0.2);
    gradient_side(&g, R, "r", &r);
    if (what & 1) gradient_side(&g, H, "h", &h);
    if (what & 2) gradient_side(&g, GATES, "gates", &gates); /* without h they get nothing */
    gradient_side(&g, WEIGHT, "w", &w);
    if (what & 4) gradient_side(&g, MOD, "mod", &mod);
    for (int64_t i = 0; i < B * T * d; i++) {
        double gate = what & 2 ? (double)f32(&gates)[i / (T * d) * 3 * d + 2 * d + i % d] : 1;
        f32(&c.sum)[i] = (float)((double)f32(&r)[i] + (what & 1 ? gate * (double)f32(&h)[i] : 0));
    }
    gradient_run(&g);
    if (what & 2) expect_untouched(&g, GATES, 0, 2 * d);
    if (what & 4) expect_untouched(&g, MOD, 2 * d, mod_width);
    /* r' in float32, a mean of products, their difference, and sums over up to 50 rows: some ten roundings of 6e-8 */
    for (int i = 0; i < SIDES; i++) gradient_check_all(&g, i, SAMPLES, 2e-6);
}

TEST(residual_rms_norm_modulate)
{
    static const int64_t shapes[][3] = {{1, 1, 8}, {2, 3, 5}, {2, 13, 100}, {3, 1, 131}, {1, 50, 192}};
    for (int s = 0; s < 5; s++)
        for (int what = 0; what < 32; what++)
            check_rms(p, shapes[s][0], shapes[s][1], shapes[s][2], (s % 2 ? 3 : 2) * shapes[s][2], what);
}

/* --------------------------------------------------------------------------------------------- gated RMS norm */

static void gated_forward(const struct gradient *g, double *o)
{
    int64_t M = g->in[0].value.shape[0], E = g->in[0].value.shape[1], W = tensor_cols(&g->in[1].value);
    for (int64_t m = 0; m < M; m++) {
        const double *y = g->in[0].at + m * E, *z = g->in[1].at + m * W;
        double squares = 0;
        for (int64_t i = 0; i < E; i++) squares += y[i] * silu(z[i]) * y[i] * silu(z[i]);
        for (int64_t i = 0; i < E; i++) o[m * E + i] = y[i] * silu(z[i]) / sqrt(squares / (double)E + eps) * g->in[2].at[i];
    }
}

static aim_status gated_backward(const struct gradient *g, struct tensor *const d[SIDES])
{
    return g->p->be->op.gated_rms_norm_backward(g->p->be, &g->in[0].value, &g->in[1].value, &g->in[2].value, (float)eps,
                                                &g->dy[0], d[0], d[1], d[2]);
}

TEST(gated_rms_norm)
{
    static const int64_t shapes[][3] = {{1, 5, 5}, {3, 64, 193}, {7, 131, 140}, {50, 192, 643}, {2, 3, 4}};
    for (int s = 0; s < 5; s++) {
        int64_t M = shapes[s][0], E = shapes[s][1], W = shapes[s][2];
        struct tensor y = normal(p, M, E, 0, 0), zxbcdt = normal(p, M, W, 0, 0), w = blank(p, E, 0, 0, 0);
        struct gradient g = {.p = p, .op = ID_gated_rms_norm_backward, .name = "gated_rms_norm", .forward = gated_forward};
        g.backward = gated_backward;
        g.dy[0] = normal(p, M, E, 0, 0);
        fill_normal(p, &w, 1, 0.2);
        gradient_side(&g, 0, "y", &y);
        gradient_side(&g, 1, "zxbcdt", &zxbcdt);
        gradient_side(&g, 2, "w", &w);
        gradient_run(&g);
        expect_untouched(&g, 1, E, W);
        /* as above, with two sigmoids good to 4e-7 */
        for (int i = 0; i < 3; i++) gradient_check(&g, i, 0, E, 2 * SAMPLES, 3e-6);
    }
}

/* ------------------------------------------------------------------------------------------------- convolution */

static void conv_forward(const struct gradient *g, double *y)
{
    const struct widths *n = g->how;
    int64_t T = g->dy[0].shape[1];
    for (int64_t i = 0; i < tensor_count(&g->dy[0]); i++) {
        int64_t c = i % n->C, t = i / n->C % T, b = i / (n->C * T);
        double sum = g->in[2].at[c];
        for (int64_t k = 0; k < CONV_WIDTH; k++)
            if (t + k >= CONV_WIDTH - 1)
                sum += g->in[1].at[c * CONV_WIDTH + k] * g->in[0].at[(b * T + t + k - (CONV_WIDTH - 1)) * n->W + n->E + c];
        y[i] = silu(sum);
    }
}

static aim_status conv_backward(const struct gradient *g, struct tensor *const d[SIDES])
{
    return g->p->be->op.causal_conv1d_silu_backward(g->p->be, &g->in[0].value, &g->in[1].value, &g->in[2].value, &g->dy[0],
                                                    d[0], d[1], d[2]);
}

TEST(convolution)
{
    static const int64_t lengths[] = {1, 2, 3, 4, 5, 19}, shapes[][2] = {{1, 5}, {1, 32}, {2, 16}, {3, 128}, {5, 33}};
    for (int s = 0; s < 6 * 5; s++) {
        int64_t B = 1 + s % 3, T = lengths[s % 6];
        struct widths n = widths_of(shapes[s / 6][0], shapes[s / 6][1]);
        struct gradient g = {.p = p, .op = ID_causal_conv1d_silu_backward, .name = "convolution", .how = &n};
        struct tensor zxbcdt = normal(p, B, T, n.W, 0), w = normal(p, n.C, 1, CONV_WIDTH, 0), bias = normal(p, n.C, 0, 0, 0);
        g.forward = conv_forward;
        g.backward = conv_backward;
        g.dy[0] = normal(p, B, T, n.C, 0);
        gradient_side(&g, 0, "zxbcdt", &zxbcdt);
        gradient_side(&g, 1, "w", &w);
        gradient_side(&g, 2, "bias", &bias);
        gradient_run(&g);
        expect_untouched(&g, 0, 0, n.E);
        expect_untouched(&g, 0, n.E + n.C, n.W);
        /* five roundings of a sum, a sigmoid good to 4e-7, and sums over 57 rows */
        gradient_check(&g, 0, n.E, n.E + n.C, SAMPLES, 2e-6);
        for (int i = 1; i < 3; i++) gradient_check_all(&g, i, SAMPLES, 2e-6);
    }
}

/* -------------------------------------------------------------------------------------------------- recurrence */

enum { XBC, ZXBCDT, A_LOG, DT_BIAS, D }; /* sides */

/* Heads of every kind: the usual; forgetting at once; keeping for thousands of positions; steps beyond softplus's threshold
 * of 20 with slow and fast decay (one where e^dt is infinite). */
static const struct {
    double rate, dt_bias; /* -A, and the step's bias */
} head_kinds[] = {{1, 0}, {16, 2}, {0.01, -4}, {3e-4, 21}, {1, 24}, {4, -2}, {1e-4, 120}};

struct recurrence {
    struct widths n;
    int64_t head; /* the only one whose output a change reaches; -1: all */
};

/* y by the definition: S_t = exp(Δ A) S_{t-1} + Δ x ⊗ B, y = S_t C + D x. Zero for heads that are left out. */
static void ssd_forward(const struct gradient *g, double *y)
{
    const struct recurrence *c = g->how;
    int64_t B = g->dy[0].shape[0], T = g->dy[0].shape[1], E = c->n.E, S = c->n.S, W = c->n.W;
    double *state = malloc((size_t)(S * HEADDIM) * sizeof(double)); /* (S, P) */
    assert_non_null(state);
    for (int64_t i = 0; i < B * T * E; i++) y[i] = 0;
    for (int64_t i = 0; i < B * c->n.H; i++) {
        int64_t b = i / c->n.H, h = i % c->n.H;
        if (c->head >= 0 && c->head != h) continue;
        for (int64_t k = 0; k < S * HEADDIM; k++) state[k] = 0;
        for (int64_t row = b * T; row < (b + 1) * T; row++) {
            const double *x = g->in[XBC].at + row * c->n.C + h * HEADDIM, *in = g->in[XBC].at + row * c->n.C + E, *out = in + S;
            double dt = g->in[ZXBCDT].at[row * W + W - c->n.H + h] + g->in[DT_BIAS].at[h], *sum = y + row * E + h * HEADDIM;
            double delta = dt > 20 ? dt : log1p(exp(dt)), decay = exp(-delta * exp(g->in[A_LOG].at[h]));
            for (int64_t k = 0; k < HEADDIM; k++) sum[k] = g->in[D].at[h] * x[k];
            for (int64_t s = 0; s < S; s++)
                for (int64_t k = 0; k < HEADDIM; k++) {
                    state[s * HEADDIM + k] = decay * state[s * HEADDIM + k] + delta * x[k] * in[s];
                    sum[k] += state[s * HEADDIM + k] * out[s];
                }
        }
    }
    free(state);
}

static aim_status ssd_backward(const struct gradient *g, struct tensor *const d[SIDES])
{
    return g->p->be->op.ssd_backward(g->p->be, &g->in[XBC].value, &g->in[ZXBCDT].value, &g->in[A_LOG].value,
                                     &g->in[DT_BIAS].value, &g->in[D].value, &g->dy[0], d[XBC], d[ZXBCDT], d[A_LOG], d[DT_BIAS],
                                     d[D]);
}

/* Heads `kind`, kind + 1, ... */
static void check_ssd(struct place *p, int64_t B, int64_t T, struct widths n, int64_t kind)
{
    struct recurrence c = {.n = n, .head = -1};
    struct tensor xbc = normal(p, B, T, n.C, 0), zxbcdt = normal(p, B, T, n.W, 0), skip = normal(p, n.H, 0, 0, 0);
    struct tensor A_log = blank(p, n.H, 0, 0, 0), dt_bias = blank(p, n.H, 0, 0, 0);
    struct gradient g = {.p = p, .op = ID_ssd_backward, .name = "ssd", .forward = ssd_forward, .backward = ssd_backward};
    g.how = &c;
    g.dy[0] = normal(p, B, T, n.E, 0);
    for (int64_t h = 0; h < n.H; h++) {
        f32(&A_log)[h] = (float)log(head_kinds[(kind + h) % 7].rate);
        f32(&dt_bias)[h] = (float)head_kinds[(kind + h) % 7].dt_bias;
    }
    gradient_side(&g, XBC, "xbc", &xbc);
    gradient_side(&g, ZXBCDT, "zxbcdt", &zxbcdt);
    gradient_side(&g, A_LOG, "A_log", &A_log);
    gradient_side(&g, DT_BIAS, "dt_bias", &dt_bias);
    gradient_side(&g, D, "D", &skip);
    gradient_run(&g);
    expect_untouched(&g, ZXBCDT, 0, n.W - n.H);
    /* Products over S and P values and sums over up to 530 positions in float32. B and C, which the heads share: */
    gradient_check(&g, XBC, n.E, n.C, SAMPLES / 2, 5e-6);
    for (c.head = 0; c.head < n.H; c.head++) { /* head by head, so that one with large values does not hide errors of others */
        int64_t h = c.head, dt = n.W - n.H + h;
        gradient_check(&g, XBC, h * HEADDIM, (h + 1) * HEADDIM, SAMPLES / 4, 5e-6);
        gradient_check(&g, ZXBCDT, dt, dt + 1, SAMPLES, 5e-6);
        gradient_check(&g, D, h, h + 1, 1, 5e-6);
        /* sums over all positions whose terms, of either sign, now and then cancel to a hundredth */
        gradient_check(&g, A_LOG, h, h + 1, 1, 2e-4);
        gradient_check(&g, DT_BIAS, h, h + 1, 1, 2e-4);
    }
}

/* Around the blocks of 16 tokens and the chunks of 256, between which gradients of the state carry. */
TEST(ssd_of_all_heads)
{
    static const int64_t lengths[] = {1, 5, 16, 17, 255, 256, 257, 530};
    for (int i = 0; i < 8; i++) check_ssd(p, 2, lengths[i], widths_of(7, 16), 0);
}

TEST(ssd_of_published_state_size)
{
    static const int64_t lengths[] = {1, 17, 256, 257, 530};
    for (int i = 0; i < 5; i++) check_ssd(p, 2, lengths[i], widths_of(2, 128), i);
}

TEST(ssd_of_other_state_sizes)
{
    static const int64_t sizes[] = {33, 1, 20}, lengths[] = {5, 255, 300};
    for (int i = 0; i < 3 * 3; i++) check_ssd(p, 1 + i % 2, lengths[i % 3], widths_of(3, sizes[i / 3]), i);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_residual_rms_norm_modulate),
        cmocka_unit_test(test_gated_rms_norm),
        cmocka_unit_test(test_convolution),
        cmocka_unit_test(test_ssd_of_all_heads),
        cmocka_unit_test(test_ssd_of_published_state_size),
        cmocka_unit_test(test_ssd_of_other_state_sizes),
    };
    return RUN_OPS("gradients_mixer", tests);
}
