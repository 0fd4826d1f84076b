/* From logits to a token: guidance, temperature, top-k, top-p, the draw. */
#include "ops.h"

/* One call of the op: inputs, and what it wrote. */
struct trial {
    int64_t R, V;
    struct sampling how;
    bool guided;
    struct tensor logits, uncond, probabilities, tokens;
    double *uniform;
};

static struct trial trial_of(struct place *p, int64_t R, int64_t V, struct sampling how)
{
    struct trial t = {.R = R, .V = V, .how = how, .logits = blank(p, R, V, 0, 0), .uncond = blank(p, R, V, 0, 0)};
    t.probabilities = blank(p, R, V, 0, 0);
    t.tokens = tensor_of(p, T_I32, R, 0, 0, 0);
    t.uniform = doubles_new(p, R);
    for (int64_t r = 0; r < R; r++) t.uniform[r] = draw_uniform(p);
    return t;
}

static void run_trial(struct place *p, struct trial *t, aim_status expected)
{
    RUN_EXPECTING(expected, p, sample, &t->logits, t->guided ? &t->uncond : NULL, &t->how, t->uniform, &t->probabilities,
                  &t->tokens);
    if (expected != AIM_OK) return;
    same_with_any_threads(p, "probabilities", t->probabilities.data, (size_t)(t->R * t->V) * sizeof(float));
    same_with_any_threads(p, "tokens", t->tokens.data, (size_t)t->R * sizeof(int32_t));
}

/* ---------------------------------------------------------------------------- the reference: a sort, in double */

struct ranked {
    double value, probability;
    int64_t id;
    bool may_go, may_stay; /* both where rounding decides */
};

/* Ascending; among equals the first token counts as the largest. */
static int rank_compare(const void *left, const void *right)
{
    const struct ranked *a = left, *b = right;
    if (a->value != b->value) return a->value < b->value ? -1 : 1;
    return a->id < b->id ? 1 : -1;
}

/* Row r in ascending order, with softmax over what top-k leaves, and what top-p leaves of it. */
static struct ranked *rank_row(struct place *p, const struct trial *t, int64_t r)
{
    struct ranked *e = block_new(p, (size_t)t->V * sizeof *e);
    double sum = 0, running = 0;
    for (int64_t i = 0; i < t->V; i++) {
        double c = (double)f32(&t->logits)[r * t->V + i], u = (double)f32(&t->uncond)[r * t->V + i];
        e[i] = (struct ranked){.value = (t->guided ? u + t->how.cfg * (c - u) : c) / t->how.temperature, .id = i};
    }
    qsort(e, (size_t)t->V, sizeof *e, rank_compare);
    double limit = t->how.top_k > 0 && t->how.top_k < t->V ? e[t->V - t->how.top_k].value : -INFINITY;
    for (int64_t i = 0; i < t->V; i++) {
        e[i].probability = e[i].value < limit ? 0 : exp(e[i].value - e[t->V - 1].value);
        sum += e[i].probability;
    }
    for (int64_t i = 0; i < t->V; i++) {
        running += e[i].probability /= sum;
        /* running sums of float32 probabilities: each is off by 1e-7 of itself, so that the sum is off by less than 1e-6 */
        bool last = i == t->V - 1, filters = t->how.top_p < 1;
        e[i].may_go = e[i].value < limit || (filters && !last && running <= 1 - t->how.top_p + 1e-6);
        e[i].may_stay = e[i].value >= limit && (!filters || last || running > 1 - t->how.top_p - 1e-6);
    }
    return e;
}

/* The probabilities of row r against the reference: what stayed, and how large. */
static void check_row(struct place *p, const struct trial *t, int64_t r, double tolerance)
{
    const float *got = f32(&t->probabilities) + r * t->V;
    const struct ranked *e = rank_row(p, t, r);
    double left = 0, total = 0;
    bool staying = false;
    for (int64_t i = 0; i < t->V; i++) {
        bool stays = got[e[i].id] > 0;
        if (e[i].probability < 1e-30) continue; /* may have become 0 by itself */
        if (stays && !e[i].may_stay) fail_msg("token %lld should be gone", (long long)e[i].id);
        if (!stays && !e[i].may_go) fail_msg("token %lld should have stayed", (long long)e[i].id);
        if (staying && !stays) fail_msg("token %lld is gone, a less likely one stayed", (long long)e[i].id);
        staying = stays;
        left += stays ? e[i].probability : 0;
    }
    for (int64_t i = 0; i < t->V; i++) {
        double want = got[e[i].id] > 0 ? e[i].probability / left : 0, gap = fabs((double)got[e[i].id] - want);
        if (!(gap <= tolerance * want + 1e-37))
            fail_msg("token %lld: probability %.9g, not %.9g", (long long)e[i].id, (double)got[e[i].id], want);
        total += (double)got[e[i].id];
    }
    assert_true(fabs(total - 1) <= tolerance);
}

/* The inverse of the cumulative distribution in order of ids. */
static void check_draw(const struct trial *t, int64_t r)
{
    const float *got = f32(&t->probabilities) + r * t->V;
    double before = 0, total = 0;
    int32_t token = i32(&t->tokens)[r];
    assert_in_range(token, 0, t->V - 1);
    assert_true(got[token] > 0);
    for (int64_t i = 0; i < t->V; i++) {
        before += i < token ? (double)got[i] : 0;
        total += (double)got[i];
    }
    double at = t->uniform[r] * total; /* sums of doubles in two orders */
    if (at < before - 1e-12 || at > before + (double)got[token] + 1e-12)
        fail_msg("the draw %.17g gave token %d, which covers %.17g to %.17g", at, token, before, before + (double)got[token]);
}

/*
 * Logits on a grid, so that guidance and temperature are exact in float32 (and equal logits frequent): the reference then
 * ranks as the op does. `fine` steps to a unit.
 */
static void fill_grid(struct place *p, struct tensor *x, double deviation, double fine)
{
    for (int64_t i = 0; i < tensor_count(x); i++)
        f32(x)[i] = (float)(nearbyint((double)draw_normal(p, 0, deviation) * fine) / fine);
}

static void check_filters(struct place *p, int64_t V, int trials)
{
    static const double ps[] = {1, 0.999, 0.9, 0.5, 0.01, 1e-9}, temperatures[] = {1, 0.5, 2, 4}, fines[] = {2, 64, 1024};
    const int ks[] = {0, 1, 5, 50, (int)V, (int)V + 100, (int)(V / 2)};
    for (int n = 0; n < trials; n++) {
        struct sampling how = {.cfg = 0.5 * draw_int(p, 10), .temperature = temperatures[draw_int(p, 4)]};
        how.top_k = n % 3 == 0 ? 0 : ks[draw_int(p, 7)];
        how.top_p = n % 4 == 1 ? 1 : ps[draw_int(p, 6)];
        struct trial t = trial_of(p, 1 + n % 3, V, how);
        double fine = fines[draw_int(p, 3)], deviation = 0.5 + 3 * draw_uniform(p);
        t.guided = n % 2;
        fill_grid(p, &t.logits, deviation, fine);
        fill_grid(p, &t.uncond, deviation, fine);
        run_trial(p, &t, AIM_OK);
        for (int64_t r = 0; r < t.R && needs_reference(p); r++) {
            check_row(p, &t, r, 2e-6);
            check_draw(&t, r);
        }
    }
}

TEST(filters)
{
    static const int64_t sizes[] = {1, 2, 7, 16, 33, 1000};
    for (int s = 0; s < 6; s++) check_filters(p, sizes[s], 150);
    check_filters(p, 16384, 24);
}

/* Values off the grid: guidance multiplies their roundings (6e-8 of up to 30) and the exponential passes them on. */
TEST(guidance_and_temperature)
{
    for (int n = 0; n < 40; n++) {
        struct trial t = trial_of(p, 2, 257, (struct sampling){.cfg = 4 * draw_uniform(p), .top_p = 1});
        t.how.temperature = 0.3 + 2 * draw_uniform(p);
        t.guided = n % 4;
        fill_normal(p, &t.logits, 0, 2);
        fill_normal(p, &t.uncond, 0, 2);
        run_trial(p, &t, AIM_OK);
        check_row(p, &t, 0, 4e-5);
        check_row(p, &t, 1, 4e-5);
    }
}

/* ------------------------------------------------------------------------------------------------ rules by hand */

/* Runs one row and asks for these probabilities. */
static void expect_row(struct place *p, const float *logits, int64_t V, struct sampling how, const double *want)
{
    struct trial t = trial_of(p, 1, V, how);
    memcpy(t.logits.data, logits, (size_t)V * sizeof(float));
    run_trial(p, &t, AIM_OK);
    compare(p, "probabilities", &t.probabilities, want, 1e-6);
    for (int64_t i = 0; i < V; i++) assert_true((want[i] > 0) == (f32(&t.probabilities)[i] > 0));
    check_draw(&t, 0);
}

TEST(rules)
{
    const struct sampling plain = {.cfg = 1, .temperature = 1, .top_p = 1};
    struct sampling how = plain;
    /* top-k keeps all that tie with the k-th; k = 1 draws among the maxima */
    const float ties[] = {3, 1, 3, 2, 2, 2, 0};
    const double e1 = exp(-1), sum = 2 + 3 * e1;
    how.top_k = 3;
    expect_row(p, ties, 7, how, (const double[]){1 / sum, 0, 1 / sum, e1 / sum, e1 / sum, e1 / sum, 0});
    how.top_k = 1;
    expect_row(p, ties, 7, how, (const double[]){0.5, 0, 0.5, 0, 0, 0, 0});
    /* top-p keeps the token with which the mass reaches p */
    const float halves[] = {logf(0.125f), logf(0.5f), logf(0.25f), logf(0.125f)};
    how = plain;
    how.top_p = 0.49;
    expect_row(p, halves, 4, how, (const double[]){0, 1, 0, 0});
    how.top_p = 0.51;
    expect_row(p, halves, 4, how, (const double[]){0, 2.0 / 3, 1.0 / 3, 0});
    how.top_p = 0.8; /* of two equals the first stays */
    expect_row(p, halves, 4, how, (const double[]){1.0 / 7, 4.0 / 7, 2.0 / 7, 0});
    how.top_p = 0.9;
    expect_row(p, halves, 4, how, (const double[]){0.125, 0.5, 0.25, 0.125});
    const float equals[] = {5, 5, 5, 5};
    how.top_p = 1e-9; /* the largest one stays, whatever p */
    expect_row(p, equals, 4, how, (const double[]){1, 0, 0, 0});
    how.top_p = 0.6;
    expect_row(p, equals, 4, how, (const double[]){1.0 / 3, 1.0 / 3, 1.0 / 3, 0});
    /* top-p looks at what top-k left */
    how.top_k = 2;
    how.top_p = 0.66;
    expect_row(p, halves, 4, how, (const double[]){0, 1, 0, 0});
    /* impossible tokens stay impossible, even when k asks for more than the others */
    const float impossible[] = {-INFINITY, 1, -INFINITY, 1, -INFINITY};
    how = plain;
    how.top_k = 4;
    expect_row(p, impossible, 5, how, (const double[]){0, 0.5, 0, 0.5, 0});
    how.top_p = 0.9;
    expect_row(p, impossible, 5, how, (const double[]){0, 0.5, 0, 0.5, 0});
}

TEST(temperature_zero)
{
    static const int64_t sizes[] = {1, 2, 9, 500};
    for (int n = 0; n < 60; n++) {
        struct trial t = trial_of(p, 2, sizes[n % 4], (struct sampling){.cfg = 3, .top_p = 0.9, .top_k = 7});
        t.guided = n % 3 == 0;
        fill_grid(p, &t.logits, 1, 2);
        fill_grid(p, &t.uncond, 1, 2);
        t.uniform[0] = 0.999; /* says nothing here */
        run_trial(p, &t, AIM_OK);
        for (int64_t r = 0; r < t.R; r++) {
            const float *c = f32(&t.logits) + r * t.V, *u = f32(&t.uncond) + r * t.V;
            int64_t first = 0;
            for (int64_t i = 1; i < t.V; i++)
                if (t.guided ? u[i] + 3 * (c[i] - u[i]) > u[first] + 3 * (c[first] - u[first]) : c[i] > c[first]) first = i;
            assert_int_equal(i32(&t.tokens)[r], first);
            for (int64_t i = 0; i < t.V; i++) assert_true(f32(&t.probabilities)[r * t.V + i] == (i == first ? 1.0f : 0.0f));
        }
    }
}

/* Evenly spread uniform numbers give every token its share, to one draw. */
TEST(frequencies)
{
    enum { R = 3000, V = 11 };
    struct trial t = trial_of(p, R, V, (struct sampling){.cfg = 1, .temperature = 1, .top_p = 0.95, .top_k = 9});
    struct tensor row = normal(p, 1, V, 0, 0);
    int counts[V] = {0};
    for (int64_t r = 0; r < R; r++) {
        memcpy(f32(&t.logits) + r * V, row.data, V * sizeof(float));
        t.uniform[r] = ((double)((r * 7) % R) + 0.5) / R; /* 7 and 3000 have no common factor: every one of them, mixed */
    }
    run_trial(p, &t, AIM_OK);
    for (int64_t r = 0; r < R; r++) counts[i32(&t.tokens)[r]]++;
    for (int i = 0; i < V; i++) {
        assert_true(fabs(counts[i] - R * (double)f32(&t.probabilities)[i]) <= 1.001);
        assert_true((counts[i] > 0) == (f32(&t.probabilities)[i] > 0));
    }
}

/* The ends of [0, 1) give the first and the last token that is possible. */
TEST(ends_of_the_draw)
{
    struct trial t = trial_of(p, 2, 6, (struct sampling){.cfg = 1, .temperature = 1, .top_p = 1});
    const float logits[] = {-INFINITY, 0.3f, 1, -2, 0, -INFINITY};
    for (int64_t r = 0; r < 2; r++) memcpy(f32(&t.logits) + r * 6, logits, sizeof logits);
    t.uniform[0] = 0;
    t.uniform[1] = 1 - 0x1p-53;
    run_trial(p, &t, AIM_OK);
    assert_int_equal(i32(&t.tokens)[0], 1);
    assert_int_equal(i32(&t.tokens)[1], 4);
}

TEST(rows_by_themselves)
{
    enum { R = 7, V = 300 };
    struct trial t = trial_of(p, R, V, (struct sampling){.cfg = 2.5, .temperature = 0.9, .top_p = 0.8, .top_k = 100});
    t.guided = true;
    fill_normal(p, &t.logits, 0, 2);
    fill_normal(p, &t.uncond, 0, 2);
    run_trial(p, &t, AIM_OK);
    for (int64_t r = 0; r < R; r++) {
        struct trial one = trial_of(p, 1, V, t.how);
        one.guided = true;
        one.logits = rows_of(p, &t.logits, r, 1);
        one.uncond = rows_of(p, &t.uncond, r, 1);
        one.uniform[0] = t.uniform[r];
        run_trial(p, &one, AIM_OK);
        expect_same(p, "probabilities of a row by itself", one.probabilities.data, f32(&t.probabilities) + r * V,
                    V * sizeof(float));
        assert_int_equal(i32(&one.tokens)[0], i32(&t.tokens)[r]);
    }
}

/* What a damaged network says is an error, wherever it stands and whatever the filters. */
TEST(numbers_that_are_none)
{
    enum { V = 37 };
    static const struct sampling hows[] = {
        {.cfg = 1, .temperature = 1, .top_p = 1},
        {.cfg = 2, .temperature = 1, .top_p = 0.5, .top_k = 3},
        {.cfg = 1, .temperature = 0, .top_p = 1},
        {.cfg = 1, .temperature = 0.5, .top_p = 0.9, .top_k = 100},
    };
    static const float bad[] = {NAN, -NAN, INFINITY};
    static const int64_t places[] = {0, 5, V - 2, V - 1};
    for (int n = 0; n < 4 * 3 * 4 * 3; n++) {
        struct trial t = trial_of(p, 3, V, hows[n % 4]);
        int64_t at = V * (n / 48) + places[n / 12 % 4]; /* row by row */
        fill_normal(p, &t.logits, 0, 1);
        fill_normal(p, &t.uncond, 0, 1);
        t.guided = n % 2;
        f32(n % 6 == 3 ? &t.uncond : &t.logits)[at] = bad[n / 4 % 3];
        run_trial(p, &t, AIM_ERR_FORMAT);
        assert_non_null(strstr(aim_last_error(&p->ctx), "finite"));
    }
    for (int n = 0; n < 4; n++) { /* nothing is possible; guidance overflows */
        struct trial nothing = trial_of(p, 1, V, hows[n]), overflow = trial_of(p, 1, V, hows[1]);
        for (int64_t i = 0; i < V; i++) f32(&nothing.logits)[i] = -INFINITY;
        run_trial(p, &nothing, AIM_ERR_FORMAT);
        fill_normal(p, &overflow.logits, 0, 1);
        fill_normal(p, &overflow.uncond, 0, 1);
        overflow.guided = true;
        f32(&overflow.logits)[n] = 3e38f;
        f32(&overflow.uncond)[n] = -1e38f;
        run_trial(p, &overflow, AIM_ERR_FORMAT);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_filters),
        cmocka_unit_test(test_guidance_and_temperature),
        cmocka_unit_test(test_rules),
        cmocka_unit_test(test_temperature_zero),
        cmocka_unit_test(test_frequencies),
        cmocka_unit_test(test_ends_of_the_draw),
        cmocka_unit_test(test_rows_by_themselves),
        cmocka_unit_test(test_numbers_that_are_none),
    };
    return RUN_OPS("sample", tests);
}
