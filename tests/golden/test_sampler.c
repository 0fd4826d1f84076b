/* The sampler's probabilities after temperature, top-k and top-p against the golden ones (spec B10). */
#include "golden/golden.h"

enum { SETTINGS = 7, ROWS = 6, V = 256 };

static float smallest_kept(const float *logits, const float *probabilities)
{
    float least = INFINITY;
    for (int v = 0; v < V; v++)
        if (probabilities[v] > 0 && logits[v] < least) least = logits[v];
    return least;
}

/*
 * The same probabilities on the same tokens. At the edge of top-p tokens with equal logits are interchangeable: which of
 * them stays depends on the sorting algorithm (in the golden data, an unstable sort), so there their number counts.
 */
static void check_row(const float *logits, const float *got, const float *want)
{
    float edge = smallest_kept(logits, want);
    int got_edge = 0, want_edge = 0;
    float edge_got = 0, edge_want = 0;
    for (int v = 0; v < V; v++) {
        if (logits[v] == edge) {
            got_edge += got[v] > 0;
            want_edge += want[v] > 0;
            edge_got += got[v];
            edge_want += want[v];
            continue;
        }
        assert_int_equal(got[v] > 0, want[v] > 0);
        assert_true(fabsf(got[v] - want[v]) <= 1e-6f + 1e-5f * want[v]); /* float32 exp and sum */
    }
    assert_int_equal(got_edge, want_edge);
    assert_true(fabsf(edge_got - edge_want) <= 1e-6f + 1e-5f * edge_want);
}

static void filtered_probabilities(void **state)
{
    (void)state;
    aim_context *ctx = golden_context(2);
    struct tensor_file file;
    golden_open(ctx, "sampler/expected.safetensors", &file);
    float *logits = golden_f32(ctx, &file, "logits", NULL), *want = golden_f32(ctx, &file, "probs", NULL);
    float *temperature = golden_f32(ctx, &file, "temperature", NULL), *top_p = golden_f32(ctx, &file, "top_p", NULL);
    int64_t *top_k = golden_i64(ctx, &file, "top_k", NULL);
    float probabilities[ROWS * V];
    int32_t tokens[ROWS];
    double uniform[ROWS] = {0, 0.2, 0.4, 0.6, 0.8, 0.999};
    struct tensor x = tensor_view(T_F32, logits, ROWS, V, 0, 0), p = tensor_view(T_F32, probabilities, ROWS, V, 0, 0);
    struct tensor drawn = tensor_view(T_I32, tokens, ROWS, 0, 0, 0);
    for (int s = 0; s < SETTINGS; s++) {
        struct sampling how = {
            .cfg = 1, .temperature = (double)temperature[s], .top_p = (double)top_p[s], .top_k = (int)top_k[s]};
        assert_ok(ctx, ctx->backend->op.sample(ctx->backend, &x, NULL, &how, uniform, &p, &drawn));
        for (int r = 0; r < ROWS; r++) check_row(logits + r * V, probabilities + r * V, want + (s * ROWS + r) * V);
        for (int r = 0; r < ROWS; r++) assert_true(probabilities[r * V + tokens[r]] > 0);
    }
    void *all[] = {logits, want, temperature, top_p, top_k};
    for (size_t i = 0; i < 5; i++) mem_free(all[i]);
    tensor_file_close(&file);
    aim_context_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(filtered_probabilities)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
