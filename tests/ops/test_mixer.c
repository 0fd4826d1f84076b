/* The Mamba-2 mixer: causal convolution and state-space recurrence, each over sequences and step by step. */
#include "ops.h"

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

/* Position t of every stream of a (B,T,width) tensor: (B,width). */
static struct tensor column(struct place *p, const struct tensor *x, int64_t t)
{
    int64_t B = x->shape[0], T = x->shape[1], width = x->shape[2];
    struct tensor y = blank(p, B, width, 0, 0);
    for (int64_t b = 0; b < B; b++) memcpy(f32(&y) + b * width, f32(x) + (b * T + t) * width, (size_t)width * sizeof(float));
    return y;
}

static void put_column(struct tensor *x, int64_t t, const struct tensor *y)
{
    int64_t B = x->shape[0], T = x->shape[1], width = x->shape[2];
    for (int64_t b = 0; b < B; b++) memcpy(f32(x) + (b * T + t) * width, f32(y) + b * width, (size_t)width * sizeof(float));
}

/* ------------------------------------------------------------------------------------------------- convolution */

static void check_convolution(struct place *p, int64_t B, int64_t T, struct widths n)
{
    struct tensor zxbcdt = normal(p, B, T, n.W, 0), w = normal(p, n.C, 1, CONV_WIDTH, 0), bias = normal(p, n.C, 0, 0, 0);
    struct tensor y = blank(p, B, T, n.C, 0), stepped = blank(p, B, T, n.C, 0);
    struct tensor state = blank(p, B, CONV_WIDTH - 1, n.C, 0);
    double *want = doubles_new(p, B * T * n.C);
    for (int64_t i = 0; i < B * T * n.C; i++) {
        int64_t c = i % n.C, t = i / n.C % T, b = i / (n.C * T);
        double sum = (double)f32(&bias)[c];
        for (int64_t k = 0; k < CONV_WIDTH; k++)
            if (t + k >= CONV_WIDTH - 1)
                sum += (double)f32(&w)[c * CONV_WIDTH + k] *
                       (double)f32(&zxbcdt)[(b * T + t + k - (CONV_WIDTH - 1)) * n.W + n.E + c];
        want[i] = silu(sum);
    }
    RUN(p, causal_conv1d_silu, &zxbcdt, &w, &bias, &y);
    /* five roundings of a sum, and silu's */
    expect_near(p, "convolution", &y, want, 5e-7);

    memset(state.data, 0, (size_t)tensor_count(&state) * sizeof(float));
    for (int64_t t = 0; t < T; t++) {
        struct tensor x = column(p, &zxbcdt, t), out = blank(p, B, n.C, 0, 0);
        struct tensor x0 = rows_of(p, &x, 0, 1), state0 = rows_of(p, &state, 0, 1), out0 = blank(p, 1, n.C, 0, 0);
        RUN(p, causal_conv1d_silu_step, &x, &w, &bias, &state, &out);
        put_column(&stepped, t, &out);
        RUN(p, causal_conv1d_silu_step, &x0, &w, &bias, &state0, &out0);
        expect_same(p, "convolution step of one stream", out0.data, out.data, (size_t)n.C * sizeof(float));
        expect_same(p, "convolution state of one stream", state0.data, state.data, 3 * (size_t)n.C * sizeof(float));
    }
    expect_near(p, "convolution by steps", &stepped, want, 5e-7);
    for (int64_t i = 0; i < tensor_count(&state); i++) { /* the last three inputs, oldest first */
        int64_t c = i % n.C, t = T - 3 + i / n.C % 3, b = i / (3 * n.C);
        float past = t < 0 ? 0 : f32(&zxbcdt)[(b * T + t) * n.W + n.E + c];
        if (f32(&state)[i] != past) fail_msg("%s: convolution state: element %lld", tier_names[p->tier], (long long)i);
    }
}

TEST(convolution)
{
    static const int64_t lengths[] = {1, 2, 3, 4, 5, 19}, shapes[][2] = {{1, 5}, {1, 32}, {2, 16}, {3, 128}, {20, 64}};
    for (int i = 0; i < 6 * 5; i++)
        check_convolution(p, 1 + i % 3, lengths[i % 6], widths_of(shapes[i / 6][0], shapes[i / 6][1]));
}

/* -------------------------------------------------------------------------------------------------- recurrence */

/* The inputs of ssd over B streams of T positions. */
struct mixer {
    struct widths n;
    int64_t B, T;
    struct tensor xbc, zxbcdt, A_log, dt_bias, D;
};

/* Heads of every kind: forgetting at once, keeping for thousands of positions, steps beyond softplus's threshold of 20 with
 * slow and fast decay (one where e^dt is infinite), the usual. */
static const struct {
    double rate, dt_bias; /* -A, and the step's bias */
} head_kinds[] = {{1, 0}, {16, 2}, {0.01, -4}, {3e-4, 21}, {1, 24}, {4, -2}, {1e-4, 120}};

static struct mixer mixer_of(struct place *p, int64_t B, int64_t T, struct widths n)
{
    struct mixer m = {.n = n, .B = B, .T = T, .xbc = normal(p, B, T, n.C, 0), .zxbcdt = normal(p, B, T, n.W, 0)};
    m.A_log = blank(p, n.H, 0, 0, 0);
    m.dt_bias = blank(p, n.H, 0, 0, 0);
    m.D = normal(p, n.H, 0, 0, 0);
    for (int64_t h = 0; h < n.H; h++) {
        f32(&m.A_log)[h] = (float)log(head_kinds[h % 7].rate);
        f32(&m.dt_bias)[h] = (float)head_kinds[h % 7].dt_bias;
    }
    return m;
}

/*
 * y by the definition: S_t = exp(Δ A) S_{t-1} + Δ x ⊗ B, y = S_t C + D x. Each head is divided by its largest value in
 * `scales` (H), so that a head with long memory does not hide errors of the others.
 */
static double *recurrence(struct place *p, const struct mixer *m, double *scales)
{
    int64_t H = m->n.H, S = m->n.S, E = m->n.E, T = m->T;
    double *y = doubles_new(p, m->B * T * E), *state = doubles_new(p, HEADDIM * S);
    for (int64_t h = 0; h < H; h++) scales[h] = 0;
    for (int64_t b = 0; b < m->B; b++)
        for (int64_t h = 0; h < H; h++) {
            double A = -exp((double)f32(&m->A_log)[h]);
            for (int64_t i = 0; i < HEADDIM * S; i++) state[i] = 0;
            for (int64_t t = 0; t < T; t++) {
                const float *row = f32(&m->xbc) + (b * T + t) * m->n.C, *x = row + h * HEADDIM, *in = row + E, *out = in + S;
                double dt = (double)f32(&m->zxbcdt)[(b * T + t) * m->n.W + m->n.W - H + h] + (double)f32(&m->dt_bias)[h];
                double delta = dt > 20 ? dt : log1p(exp(dt)), decay = exp(delta * A);
                for (int64_t k = 0; k < HEADDIM; k++) {
                    double sum = (double)f32(&m->D)[h] * (double)x[k], u = delta * (double)x[k];
                    for (int64_t s = 0; s < S; s++) {
                        state[k * S + s] = decay * state[k * S + s] + u * (double)in[s];
                        sum += state[k * S + s] * (double)out[s];
                    }
                    y[(b * T + t) * E + h * HEADDIM + k] = sum;
                    if (fabs(sum) > scales[h]) scales[h] = fabs(sum);
                }
            }
        }
    return y;
}

/* Compares (B,T,E) head by head. */
static void expect_heads(struct place *p, const char *what, const struct mixer *m, const struct tensor *y, const double *want,
                         const double *scales, double tolerance)
{
    same_with_any_threads(p, what, y->data, (size_t)tensor_count(y) * sizeof(float));
    if (!want) return;
    struct tensor scaled = rows_of(p, y, 0, y->shape[0]);
    double *scaled_want = doubles_new(p, tensor_count(y));
    for (int64_t i = 0; i < tensor_count(y); i++) {
        double scale = scales[i % m->n.E / HEADDIM];
        scaled_want[i] = want[i] / scale;
        f32(&scaled)[i] = (float)((double)f32(y)[i] / scale);
    }
    compare(p, what, &scaled, scaled_want, tolerance);
}

/* A cache as the engine makes one; what need not be cleared holds NaN. */
static struct ssd_cache cache_of(struct place *p, int64_t streams, int64_t T, struct widths n)
{
    int64_t tokens = T < SSD_CHUNK ? T : SSD_CHUNK;
    struct ssd_cache c = {.streams = streams, .heads = n.H, .state_size = n.S, .blocks = (tokens + SSD_BLOCK - 1) / SSD_BLOCK};
    c.u = block_new(p, (size_t)(streams * ssd_cache_u(&c)) * sizeof(float));
    c.b = block_new(p, (size_t)(streams * ssd_cache_b(&c)) * sizeof(float));
    c.decay = block_new(p, (size_t)(streams * ssd_cache_decay(&c)) * sizeof(float));
    c.carry = block_new(p, (size_t)(streams * n.H) * sizeof(float));
    if (T > SSD_CHUNK) {
        size_t bytes = (size_t)(streams * ssd_cache_state(&c)) * sizeof(float);
        c.state = block_new(p, bytes);
        memset(c.state, 0, bytes);
    }
    return c;
}

/* All positions of all streams, one step at a time, in a fresh or a used cache. */
static struct tensor run_steps(struct place *p, const struct mixer *m, struct ssd_cache *cache)
{
    struct tensor y = blank(p, m->B, m->T, m->n.E, 0);
    for (int64_t t = 0; t < m->T; t++) {
        struct tensor xbc = column(p, &m->xbc, t), zxbcdt = column(p, &m->zxbcdt, t), out = blank(p, m->B, m->n.E, 0, 0);
        RUN(p, ssd_step, &xbc, &zxbcdt, &m->A_log, &m->dt_bias, &m->D, cache, t, &out);
        put_column(&y, t, &out);
    }
    return y;
}

static void check_mixer(struct place *p, int64_t B, int64_t T, struct widths n)
{
    struct mixer m = mixer_of(p, B, T, n);
    struct tensor y = blank(p, B, T, n.E, 0);
    struct ssd_cache cache = cache_of(p, B, T, n);
    double *scales = doubles_new(p, n.H), *want = needs_reference(p) ? recurrence(p, &m, scales) : NULL;
    RUN(p, ssd, &m.xbc, &m.zxbcdt, &m.A_log, &m.dt_bias, &m.D, &y);
    /* C·B over S terms and up to 256 terms of u in float32; exponents of sums kept in double */
    expect_heads(p, "ssd", &m, &y, want, scales, 2e-6);
    struct tensor stepped = run_steps(p, &m, &cache);
    /* the same, with decays that are running products of up to 256 factors, each off by 1e-7 */
    expect_heads(p, "ssd by steps", &m, &stepped, want, scales, 4e-6);

    if (!needs_reference(p)) return;
    struct mixer last = m; /* the last stream by itself, in a cache of its own */
    last.B = 1;
    last.xbc = rows_of(p, &m.xbc, B - 1, 1);
    last.zxbcdt = rows_of(p, &m.zxbcdt, B - 1, 1);
    struct ssd_cache single = cache_of(p, 1, T, n);
    struct tensor alone = run_steps(p, &last, &single), alone_at_once = blank(p, 1, T, n.E, 0);
    size_t bytes = (size_t)(T * n.E) * sizeof(float);
    expect_same(p, "ssd_step of one stream", alone.data, f32(&stepped) + (B - 1) * T * n.E, bytes);
    RUN(p, ssd, &last.xbc, &last.zxbcdt, &m.A_log, &m.dt_bias, &m.D, &alone_at_once);
    expect_same(p, "ssd of one stream", alone_at_once.data, f32(&y) + (B - 1) * T * n.E, bytes);
}

/* Around the blocks of 16 tokens and the chunks of 256, after which states carry and histories fold. */
static const int64_t lengths[] = {1, 5, 16, 17, 255, 256, 257, 600};

TEST(ssd_of_published_state_size)
{
    for (int i = 0; i < 8; i++) check_mixer(p, 2, lengths[i], widths_of(7, 128));
}

TEST(ssd_of_other_state_sizes)
{
    static const int64_t sizes[] = {64, 16, 20, 1, 33};
    for (int i = 0; i < 5; i++) {
        check_mixer(p, 3, 19, widths_of(1 + i, sizes[i]));
        check_mixer(p, 1, i % 2 ? 270 : 530, widths_of(1 + i, sizes[i]));
    }
}

/* A cache serves one picture after another: nothing of the first shows in the second. Only the state must be cleared. */
TEST(ssd_step_in_a_used_cache)
{
    static const int64_t spans[] = {40, 300};
    for (int i = 0; i < 2; i++) {
        struct widths n = widths_of(6, 32);
        struct mixer first = mixer_of(p, 2, spans[i], n), second = mixer_of(p, 2, spans[i], n);
        struct ssd_cache used = cache_of(p, 2, spans[i], n), fresh = cache_of(p, 2, spans[i], n);
        run_steps(p, &first, &used);
        if (used.state) memset(used.state, 0, (size_t)(2 * ssd_cache_state(&used)) * sizeof(float));
        struct tensor y = run_steps(p, &second, &used), z = run_steps(p, &second, &fresh);
        expect_same(p, "ssd_step in a used cache", y.data, z.data, (size_t)tensor_count(&y) * sizeof(float));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_convolution),
        cmocka_unit_test(test_ssd_of_published_state_size),
        cmocka_unit_test(test_ssd_of_other_state_sizes),
        cmocka_unit_test(test_ssd_step_in_a_used_cache),
    };
    return RUN_OPS("mixer", tests);
}
