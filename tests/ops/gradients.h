/*
 * The harness of the gradient tests, on top of ops.h. A test states an op twice: `forward` in double precision, a plain
 * transcription of the formula, and `backward`, the call of the kernel under test. gradient_run() calls the kernel
 *
 *   - with all outputs at zero, which gives the gradients to be compared;
 *   - with outputs that hold something, which it must add to;
 *   - with each output alone missing and each alone wanted: the same bits (one thread shows that);
 *
 * the first two with failing allocations before, after which the outputs must be as they were, or whoever repeats the call
 * adds twice. gradient_check() then compares columns of a gradient with central differences of Σ output ⊙ dy: some elements one
 * at a time, and all elements at once along a random direction.
 */
#ifndef AIM_TESTS_GRADIENTS_H
#define AIM_TESTS_GRADIENTS_H

#include "ops.h"

enum { SIDES = 5 };

struct gradient {
    struct place *p;
    enum op_id op;
    const char *name;
    void (*forward)(const struct gradient *g, double *y); /* from in[].at; all outputs, one behind the other */
    aim_status (*backward)(const struct gradient *g, struct tensor *const d[SIDES]);
    const void *how;     /* the test's own */
    struct tensor dy[2]; /* of each output; the second has no data where the op has but one */
    struct side {
        const char *name;    /* NULL: absent, and its gradient never asked for */
        struct tensor value; /* what the kernel gets */
        double *at;          /* the same for forward */
        struct tensor d;     /* what the kernel adds to, */
        float *start, *got;  /* what was there before, what it gave from zero */
    } in[SIDES];
};

static inline void gradient_side(struct gradient *g, int i, const char *name, const struct tensor *value)
{
    struct side *s = &g->in[i];
    int64_t n = tensor_count(value);
    *s = (struct side){.name = name, .value = *value, .at = doubles_new(g->p, n), .d = *value};
    for (int64_t k = 0; k < n; k++) s->at[k] = (double)f32(value)[k];
    size_t bytes = (size_t)n * sizeof(float);
    s->d.data = block_new(g->p, bytes);
    s->start = block_new(g->p, bytes);
    s->got = block_new(g->p, bytes);
}

/* Calls the kernel for the outputs whose bit is set, from in[].start; with failing allocations if it is to fail first. */
static inline void gradient_call(struct gradient *g, unsigned wanted, bool failing)
{
    struct tensor *d[SIDES] = {0};
    for (int i = 0; i < SIDES; i++) {
        struct side *s = &g->in[i];
        if (!s->name) continue;
        memcpy(s->d.data, s->start, (size_t)tensor_count(&s->d) * sizeof(float));
        if (wanted >> i & 1) d[i] = &s->d;
    }
    run_begin(g->p, g->op, AIM_OK);
    if (!failing) g->p->ctx.memory.fail_after = INT64_MAX;
    while (run_again(g->p, g->backward(g, d), g->name))
        for (int i = 0; i < SIDES; i++)
            if (d[i] && memcmp(d[i]->data, g->in[i].start, (size_t)tensor_count(d[i]) * sizeof(float)) != 0)
                fail_msg("%s: %s has added to d(%s) before it ran out of memory", tier_names[g->p->tier], g->name,
                         g->in[i].name);
}

/* The second call's start is as large as what is added, and 1 where nothing is. */
static inline void gradient_check_sum(struct gradient *g, const struct side *s)
{
    double scale = 0;
    for (int64_t k = 0; k < tensor_count(&s->d); k++) scale = fmax(scale, fabs((double)s->got[k]));
    for (int64_t k = 0; k < tensor_count(&s->d); k++) {
        double gap = fabs((double)f32(&s->d)[k] - (double)s->start[k] - (double)s->got[k]);
        /* up to 256 terms may join the sum one by one, each rounded to 6e-8 */
        if (!(gap <= 3e-6 * fmax(scale, fabs((double)s->start[k]))))
            fail_msg("%s: %s does not add to d(%s): element %lld was %g, wants %g, became %g", tier_names[g->p->tier], g->name,
                     s->name, (long long)k, (double)s->start[k], (double)s->got[k], (double)f32(&s->d)[k]);
    }
}

static inline void gradient_run(struct gradient *g)
{
    float *sums[SIDES];
    for (int i = 0; i < SIDES; i++)
        if (g->in[i].name) memset(g->in[i].start, 0, (size_t)tensor_count(&g->in[i].d) * sizeof(float));
    gradient_call(g, ~0u, true);
    for (int i = 0; i < SIDES; i++) {
        struct side *s = &g->in[i];
        if (!s->name) continue;
        int64_t n = tensor_count(&s->d);
        same_with_any_threads(g->p, s->name, s->d.data, (size_t)n * sizeof(float));
        memcpy(s->got, s->d.data, (size_t)n * sizeof(float));
        for (int64_t k = 0; k < n; k++) s->start[k] = s->got[k] == 0 ? 1 : k % 2 ? s->got[k] : -0.5f * s->got[k];
    }
    gradient_call(g, ~0u, true);
    for (int i = 0; i < SIDES; i++) {
        struct side *s = &g->in[i];
        if (!s->name) continue;
        gradient_check_sum(g, s);
        same_with_any_threads(g->p, s->name, s->d.data, (size_t)tensor_count(&s->d) * sizeof(float));
        sums[i] = block_new(g->p, (size_t)tensor_count(&s->d) * sizeof(float));
        memcpy(sums[i], s->d.data, (size_t)tensor_count(&s->d) * sizeof(float));
    }
    for (int round = 0; needs_reference(g->p) && round < 2 * SIDES; round++) {
        unsigned one = 1u << round / 2, wanted = round % 2 ? one : ~one;
        if (!g->in[round / 2].name) continue;
        gradient_call(g, wanted, false);
        for (int i = 0; i < SIDES; i++)
            if (g->in[i].name && wanted >> i & 1)
                expect_same(g->p, g->in[i].name, g->in[i].d.data, sums[i], (size_t)tensor_count(&g->in[i].d) * sizeof(float));
    }
}

/*
 * Σ dy ⊙ (plus - minus), output by output, so that what a change does not reach adds no rounding. `noise` is what the
 * differences' own rounding leaves: outputs are sums of many terms, good to some 1e-15 of themselves.
 */
static inline double gradient_change(const struct gradient *g, const double *plus, const double *minus, double *noise)
{
    double sum = 0, squares = 0;
    for (int k = 0; k < 2; k++)
        for (int64_t i = 0; g->dy[k].data && i < tensor_count(&g->dy[k]); i++, plus++, minus++) {
            double up = (double)f32(&g->dy[k])[i];
            sum += up * (*plus - *minus);
            if (*plus != *minus) squares += up * *plus * up * *plus;
        }
    *noise = 1e-15 * sqrt(squares);
    return sum;
}

/* A sign for each element; any fixed pattern without regularity does. */
static inline double gradient_sign(int64_t i)
{
    return philox(20240817, (uint64_t)i, 0, 0).v[0] & 1 ? 1 : -1;
}

/* Where one thread ran: columns from .. to of d(in[i]), relative to the largest of the elements looked at. */
static inline void gradient_check(struct gradient *g, int i, int64_t from, int64_t to, int64_t samples, double tolerance)
{
    struct side *s = &g->in[i];
    if (!needs_reference(g->p) || !s->name) return;
    int64_t width = to - from, cols = tensor_cols(&s->d), n = tensor_rows(&s->d) * width, outputs = tensor_count(&g->dy[0]);
    if (g->dy[1].data) outputs += tensor_count(&g->dy[1]);
    double *plus = doubles_new(g->p, outputs), *minus = doubles_new(g->p, outputs);
    double scale = 0, worst = 0, worst_got = 0, worst_want = 0;
    uint64_t draws = g->p->draws; /* other numbers of threads do not draw */
    if (samples > n) samples = n;
    for (int64_t k = 0; k < samples; k++) { /* the first, the last, and any between; all when they are few */
        int64_t at = samples == n || k == 0 ? k : k == 1 ? n - 1 : draw_int(g->p, n);
        at = at / width * cols + from + at % width;
        const double step = 1e-5, value = s->at[at];
        s->at[at] = value + step;
        g->forward(g, plus);
        s->at[at] = value - step;
        g->forward(g, minus);
        s->at[at] = value;
        double noise, change = gradient_change(g, plus, minus, &noise), want = change / ((value + step) - (value - step));
        double gap = fmax(0, fabs((double)s->got[at] - want) - noise / (2 * step));
        scale = fmax(scale, fabs(want));
        if (!(gap <= worst)) worst = gap, worst_got = (double)s->got[at], worst_want = want;
    }
    g->p->draws = draws;
    if (scale == 0) scale = 1;
    double along = 0;
    for (int sign = -1; sign <= 1; sign += 2) {
        for (int64_t k = 0; k < n; k++) {
            int64_t at = k / width * cols + from + k % width;
            s->at[at] = (double)f32(&s->value)[at] + 1e-6 * sign * gradient_sign(k);
            if (sign > 0) along += gradient_sign(k) * (double)s->got[at];
        }
        g->forward(g, sign > 0 ? plus : minus);
    }
    for (int64_t k = 0; k < tensor_count(&s->value); k++) s->at[k] = (double)f32(&s->value)[k];
    double noise, along_want = gradient_change(g, plus, minus, &noise) / 2e-6;
    /* as large as an element's, when errors are random */
    double along_gap = fmax(0, fabs(along - along_want) - noise / 2e-6) / sqrt((double)n);
    if (getenv("AIM_TEST_ERRORS"))
        print_message("%s: %s: d(%s): %.2e, along a direction %.2e, of %.0e\n", tier_names[g->p->tier], g->name, s->name,
                      worst / scale, along_gap / scale, tolerance);
    if (!(worst <= tolerance * scale))
        fail_msg("%s: %s: d(%s) is %.9g, not %.9g; error %.2e of the largest, allowed %.0e", tier_names[g->p->tier], g->name,
                 s->name, worst_got, worst_want, worst / scale, tolerance);
    if (!(along_gap <= tolerance * scale))
        fail_msg("%s: %s: d(%s) along a direction is %.9g, not %.9g; error %.2e an element, allowed %.0e",
                 tier_names[g->p->tier], g->name, s->name, along, along_want, along_gap / scale, tolerance);
}

/* A whole gradient. */
static inline void gradient_check_all(struct gradient *g, int i, int64_t samples, double tolerance)
{
    if (g->in[i].name) gradient_check(g, i, 0, tensor_cols(&g->in[i].d), samples, tolerance);
}

#endif
