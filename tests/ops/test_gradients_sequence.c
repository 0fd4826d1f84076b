/* Backward of the products and of the small ops of stage 2: linear, embedding, prepend, slice_add, silu, cross_entropy. */
#include "gradients.h"

enum { SAMPLES = 24 };

/* Central differences are good to 1e-9 here; a float32 result that is copied or summed from few terms, to some 1e-7. */
static const double few_roundings = 5e-7;

/* ------------------------------------------------------------------------------------------------------ linear */

static void linear_forward(const struct gradient *g, double *y)
{
    int64_t M = tensor_rows(&g->in[0].value), K = tensor_cols(&g->in[0].value), N = g->in[1].value.shape[0];
    for (int64_t i = 0; i < M * N; i++) {
        y[i] = g->in[2].at[i % N];
        for (int64_t k = 0; k < K; k++) y[i] += g->in[0].at[i / N * K + k] * g->in[1].at[i % N * K + k];
    }
}

static aim_status linear_backward(const struct gradient *g, struct tensor *const d[SIDES])
{
    return g->p->be->op.linear_backward(g->p->be, &g->in[0].value, &g->in[1].value, &g->dy[0], d[0], d[1], d[2]);
}

TEST(linear)
{
    /* around vectors, panels of 32 columns and blocks of rows */
    static const int64_t shapes[][3] = {{1, 1, 1},   {1, 7, 5},    {3, 5, 7},    {2, 33, 64},
                                        {17, 31, 9}, {13, 65, 33}, {65, 1, 129}, {40, 100, 131}};
    for (int s = 0; s < 8; s++) {
        int64_t M = shapes[s][0], N = shapes[s][1], K = shapes[s][2];
        struct gradient g = {
            .p = p, .op = ID_linear_backward, .name = "linear", .forward = linear_forward, .backward = linear_backward};
        struct tensor x = normal(p, M, K, 0, 0), w = normal(p, N, K, 0, 0), bias = normal(p, N, 0, 0, 0);
        g.dy[0] = normal(p, M, N, 0, 0);
        gradient_side(&g, 0, "x", &x);
        gradient_side(&g, 1, "w", &w);
        gradient_side(&g, 2, "bias", &bias);
        gradient_run(&g);
        /* sums of up to 100 products in float32, one after the other */
        for (int i = 0; i < 3; i++) gradient_check_all(&g, i, SAMPLES, 1e-6);
    }
}

/* --------------------------------------------------------------------------------------------------- embedding */

struct places {
    struct tensor ids, pos; /* pos without data: no positions */
};

static void embedding_forward(const struct gradient *g, double *y)
{
    const struct places *at = g->how;
    int64_t d = tensor_cols(&g->dy[0]);
    for (int64_t i = 0; i < tensor_count(&g->dy[0]); i++) {
        y[i] = g->in[0].at[i32(&at->ids)[i / d] * d + i % d];
        if (at->pos.data && i32(&at->pos)[i / d] >= 0) y[i] += g->in[1].at[i32(&at->pos)[i / d] * d + i % d];
    }
}

static aim_status embedding_backward(const struct gradient *g, struct tensor *const d[SIDES])
{
    const struct places *at = g->how;
    return g->p->be->op.embedding_backward(g->p->be, &at->ids, at->pos.data ? &at->pos : NULL, &g->dy[0], d[0], d[1]);
}

/* More rows than tokens, so that ids meet; the first rows are all the same one; position -1 here and there. */
static void check_embedding(struct place *p, int64_t M, int64_t d, bool positions)
{
    enum { VOCABULARY = 11, PLACES = 7 };
    struct places at = {.ids = tensor_of(p, T_I32, M, 0, 0, 0)};
    struct tensor tokens = normal(p, VOCABULARY, d, 0, 0), table = normal(p, PLACES, d, 0, 0);
    struct gradient g = {.p = p, .op = ID_embedding_backward, .name = "embedding", .how = &at};
    g.forward = embedding_forward;
    g.backward = embedding_backward;
    g.dy[0] = normal(p, M, d, 0, 0);
    gradient_side(&g, 0, "tokens", &tokens);
    if (positions) {
        at.pos = tensor_of(p, T_I32, M, 0, 0, 0);
        gradient_side(&g, 1, "positions", &table);
    }
    for (int64_t m = 0; m < M; m++) {
        i32(&at.ids)[m] = m < 3 ? VOCABULARY - 1 : draw_int(p, VOCABULARY);
        if (positions) i32(&at.pos)[m] = m == 0 ? PLACES - 1 : draw_int(p, PLACES + 2) - 2;
    }
    gradient_run(&g);
    for (int i = 0; i < 2; i++) gradient_check_all(&g, i, SAMPLES, few_roundings);
}

TEST(embedding)
{
    static const int64_t counts[] = {1, 7, 130}, widths[] = {1, 5, 64, 131};
    for (int i = 0; i < 2 * 3 * 4; i++) check_embedding(p, counts[i / 2 % 3], widths[i / 6], i % 2);
}

/* ----------------------------------------------------------------------------------------------- prepend, slice_add */

static void prepend_forward(const struct gradient *g, double *y)
{
    int64_t rows = g->dy[0].shape[1], d = g->dy[0].shape[2];
    for (int64_t i = 0; i < tensor_count(&g->dy[0]); i++) {
        int64_t b = i / (rows * d), t = i / d % rows;
        y[i] = t ? g->in[1].at[(b * (rows - 1) + t - 1) * d + i % d] : g->in[0].at[b * d + i % d];
    }
}

static aim_status prepend_backward(const struct gradient *g, struct tensor *const d[SIDES])
{
    return g->p->be->op.prepend_backward(g->p->be, &g->dy[0], d[0], d[1]);
}

TEST(prepend)
{
    static const int64_t shapes[][3] = {{1, 0, 5}, {1, 1, 1}, {2, 1, 7}, {3, 4, 64}, {2, 255, 9}};
    for (int s = 0; s < 5; s++) {
        int64_t B = shapes[s][0], T = shapes[s][1], d = shapes[s][2];
        struct gradient g = {
            .p = p, .op = ID_prepend_backward, .name = "prepend", .forward = prepend_forward, .backward = prepend_backward};
        struct tensor first = normal(p, B, d, 0, 0);
        g.dy[0] = normal(p, B, 1 + T, d, 0);
        gradient_side(&g, 0, "first", &first);
        if (T > 0) {
            struct tensor rest = normal(p, B * T, d, 0, 0);
            gradient_side(&g, 1, "rest", &rest);
        }
        gradient_run(&g);
        for (int i = 0; i < 2; i++) gradient_check_all(&g, i, SAMPLES, few_roundings);
    }
}

static void slice_add_forward(const struct gradient *g, double *y)
{
    const int64_t *from = g->how;
    int64_t n = tensor_cols(&g->dy[0]), m = tensor_cols(&g->in[0].value);
    for (int64_t i = 0; i < tensor_count(&g->dy[0]); i++) y[i] = g->in[0].at[i / n * m + *from + i % n] + g->in[1].at[i % n];
}

static aim_status slice_add_backward(const struct gradient *g, struct tensor *const d[SIDES])
{
    return g->p->be->op.slice_add_backward(g->p->be, *(const int64_t *)g->how, &g->dy[0], d[0], d[1]);
}

TEST(slice_add)
{
    static const int64_t shapes[][4] = {{1, 1, 0, 1}, {2, 9, 3, 4}, {3, 128, 64, 64}, {5, 77, 76, 1}, {2, 12, 0, 12}};
    for (int s = 0; s < 5; s++) {
        int64_t B = shapes[s][0], m = shapes[s][1], from = shapes[s][2], n = shapes[s][3];
        struct gradient g = {.p = p, .op = ID_slice_add_backward, .name = "slice_add", .how = &from};
        struct tensor x = normal(p, B, m, 0, 0), bias = normal(p, n, 0, 0, 0);
        g.forward = slice_add_forward;
        g.backward = slice_add_backward;
        g.dy[0] = normal(p, B, n, 0, 0);
        gradient_side(&g, 0, "x", &x);
        gradient_side(&g, 1, "bias", &bias);
        gradient_run(&g);
        for (int i = 0; i < 2; i++) gradient_check_all(&g, i, SAMPLES, few_roundings);
    }
}

/* -------------------------------------------------------------------------------------------------------- silu */

static void silu_forward(const struct gradient *g, double *y)
{
    for (int64_t i = 0; i < tensor_count(&g->dy[0]); i++) y[i] = g->in[0].at[i] / (1 + exp(-g->in[0].at[i]));
}

static aim_status silu_backward(const struct gradient *g, struct tensor *const d[SIDES])
{
    return d[0] ? g->p->be->op.silu_backward(g->p->be, &g->in[0].value, &g->dy[0], d[0]) : AIM_OK;
}

static void check_silu(struct place *p, const struct tensor *x)
{
    struct gradient g = {.p = p, .op = ID_silu_backward, .name = "silu", .forward = silu_forward, .backward = silu_backward};
    g.dy[0] = normal(p, tensor_count(x), 0, 0, 0);
    gradient_side(&g, 0, "x", x);
    gradient_run(&g);
    /* an exponential within 2 ulp, and five operations */
    gradient_check_all(&g, 0, SAMPLES, 1e-6);
}

TEST(silu)
{
    static const int64_t lengths[] = {1, 3, 16, 31, 70001}; /* around vectors, and shared by threads */
    static const float values[] = {0, -1e-20f, 1e-6f, -5, 20, -20, 80, -80, -87, 89, -90, 1000, -1000};
    for (int s = 0; s < 5; s++) {
        struct tensor x = blank(p, lengths[s], 0, 0, 0);
        fill_normal(p, &x, 0, 3);
        check_silu(p, &x);
    }
    struct tensor x = blank(p, sizeof values / sizeof values[0], 0, 0, 0);
    memcpy(x.data, values, sizeof values);
    check_silu(p, &x);
}

/* ----------------------------------------------------------------------------------------------- cross entropy */

static void cross_entropy_forward(const struct gradient *g, double *y)
{
    const struct tensor *target = g->how;
    int64_t M = tensor_rows(&g->in[0].value), V = tensor_cols(&g->in[0].value);
    for (int64_t m = 0; m < M; m++) {
        const double *row = g->in[0].at + m * V;
        double top = row[0], sum = 0;
        for (int64_t v = 0; v < V; v++) top = fmax(top, row[v]);
        for (int64_t v = 0; v < V; v++) sum += exp(row[v] - top);
        y[m] = log(sum) + (top - row[i32(target)[m]]);
    }
}

static aim_status cross_entropy_backward(const struct gradient *g, struct tensor *const d[SIDES])
{
    struct backend *be = g->p->be;
    return d[0] ? be->op.cross_entropy_backward(be, &g->in[0].value, g->how, &g->dy[0], d[0]) : AIM_OK;
}

static void check_cross_entropy(struct place *p, int64_t M, int64_t V, double mean, double deviation)
{
    struct tensor logits = blank(p, M, V, 0, 0), target = tensor_of(p, T_I32, M, 0, 0, 0);
    struct gradient g = {.p = p, .op = ID_cross_entropy_backward, .name = "cross_entropy", .how = &target};
    g.forward = cross_entropy_forward;
    g.backward = cross_entropy_backward;
    g.dy[0] = normal(p, M, 0, 0, 0);
    fill_normal(p, &logits, mean, deviation);
    for (int64_t m = 0; m < M; m++) i32(&target)[m] = m == 0 ? (int32_t)V - 1 : draw_int(p, V);
    gradient_side(&g, 0, "logits", &logits);
    gradient_run(&g);
    /* Against differences only where none of the probabilities is as good as 0 or 1, or nothing but rounding is left. An
     * exponential within 2 ulp, over a sum good to 1e-6. */
    if (V > 1 && deviation <= 1) gradient_check_all(&g, 0, SAMPLES, 2e-6);
    for (int64_t i = 0; i < M * V && needs_reference(p); i++) { /* and every probability relative to itself */
        const float *row = f32(&logits) + i / V * V;
        double up = (double)f32(&g.dy[0])[i / V], sum = 0;
        bool hit = i % V == i32(&target)[i / V];
        if (V > 1000 && i % 97 && !hit) continue;
        for (int64_t v = 0; v < V; v++) sum += exp((double)row[v] - (double)row[i % V]);
        double gap = fabs((double)g.in[0].got[i] - up * (1 / sum - hit));
        if (!(gap <= fabs(up) * (2e-6 / sum + (hit ? 1e-7 : 1e-37))))
            fail_msg("%s: d(logits): element %lld of rows of %lld, logits about %g: %.9g, not %.9g", tier_names[p->tier],
                     (long long)i, (long long)V, mean, (double)g.in[0].got[i], up * (1 / sum - hit));
    }
}

TEST(cross_entropy)
{
    static const int64_t vocabularies[] = {1, 2, 17, 255, 1000, 16384}, rows[] = {1, 6};
    for (int i = 0; i < 6 * 2; i++) {
        check_cross_entropy(p, rows[i % 2], vocabularies[i / 2], 0, 1);
        check_cross_entropy(p, rows[i % 2], vocabularies[i / 2], 1e4, 30);  /* needs its maximum taken out */
        check_cross_entropy(p, rows[i % 2], vocabularies[i / 2], -50, 200); /* most terms vanish */
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_linear),    cmocka_unit_test(test_embedding), cmocka_unit_test(test_prepend),
        cmocka_unit_test(test_slice_add), cmocka_unit_test(test_silu),      cmocka_unit_test(test_cross_entropy),
    };
    return RUN_OPS("gradients_sequence", tests);
}
