/* Starting, reviving and counting the codes of a codebook. */
#include "support.h"

#include "train/codebook.h"

enum { M = 40, D = 3 };

static void unit_latents(float *latents, int64_t count)
{
    for (int64_t m = 0; m < count; m++) {
        float a = (float)m * 0.7f, b = (float)m * 1.3f;
        latents[m * D] = cosf(a) * sinf(b);
        latents[m * D + 1] = sinf(a) * sinf(b);
        latents[m * D + 2] = cosf(b);
    }
}

static int64_t find_row(const float *latents, int64_t count, const float *row)
{
    for (int64_t m = 0; m < count; m++)
        if (memcmp(latents + m * D, row, D * sizeof(float)) == 0) return m;
    return -1;
}

static void check_start(enum codebook_start how)
{
    aim_context ctx;
    float latents[M * D], codes[2 * M * D], again[2 * M * D];
    bool taken[M] = {false};
    assert_ok(&ctx, context_init(&ctx, NULL));
    unit_latents(latents, M);
    assert_ok(&ctx, codebook_start_from(&ctx, how, latents, M, D, 3, codes, 2 * M));
    assert_ok(&ctx, codebook_start_from(&ctx, how, latents, M, D, 3, again, 2 * M));
    assert_memory_equal(codes, again, sizeof codes);
    for (int j = 0; j < M; j++) { /* every latent once, then near ones */
        int64_t at = find_row(latents, M, codes + j * D);
        assert_true(at >= 0 && !taken[at]);
        taken[at] = true;
    }
    for (int j = M; j < 2 * M; j++) {
        const float *c = codes + j * D;
        assert_true(find_row(latents, M, c) < 0);
        assert_true(fabsf(c[0] * c[0] + c[1] * c[1] + c[2] * c[2] - 1) < 1e-5f);
    }
    assert_ok(&ctx, codebook_start_from(&ctx, how, latents, M, D, 4, again, 2 * M));
    assert_true(memcmp(codes, again, sizeof codes) != 0);
    assert_int_equal(ctx.memory.total, 0);
}

static void start(void **state)
{
    (void)state;
    check_start(CODEBOOK_SAMPLED);
    check_start(CODEBOOK_SPREAD);
}

/* Two far groups of latents, one large: two spread codes fall into both. */
static void spread(void **state)
{
    (void)state;
    aim_context ctx;
    float latents[M * D] = {0}, codes[2 * D];
    assert_ok(&ctx, context_init(&ctx, NULL));
    for (int m = 0; m < M; m++) latents[m * D + (m == 7)] = 1;
    for (uint64_t seed = 0; seed < 20; seed++) {
        assert_ok(&ctx, codebook_start_from(&ctx, CODEBOOK_SPREAD, latents, M, D, seed, codes, 2));
        assert_true(codes[0] != codes[D]);
    }
}

static void revive(void **state)
{
    (void)state;
    float latents[M * D], codes[5 * D] = {0}, before[5 * D] = {0};
    static const int64_t counts[5] = {0, 9, 2, 3, 0};
    bool revived[5];
    unit_latents(latents, M);
    assert_int_equal(codebook_revive(counts, 3, latents, M, D, 1, 10, codes, 5, revived), 3);
    for (int j = 0; j < 5; j++) {
        assert_int_equal(revived[j], counts[j] < 3);
        if (revived[j])
            assert_true(find_row(latents, M, codes + j * D) >= 0);
        else
            assert_memory_equal(codes + j * D, before + j * D, D * sizeof(float));
    }
}

static void usage(void **state)
{
    (void)state;
    aim_context ctx;
    struct codebook_usage u;
    static const int32_t ids[6] = {3, 1, 1, 3, 7, 1};
    assert_ok(&ctx, context_init(&ctx, NULL));
    assert_ok(&ctx, codebook_usage_init(&ctx, 8, &u));
    assert_true(codebook_usage_share(&u) == 0 && codebook_usage_perplexity(&u) == 0);
    codebook_usage_add(&u, ids, 4);
    codebook_usage_add(&u, ids + 4, 2);
    assert_true(codebook_usage_share(&u) == 3.0 / 8);
    double entropy = -(0.5 * log(0.5) + 1.0 / 3 * log(1.0 / 3) + 1.0 / 6 * log(1.0 / 6));
    assert_true(fabs(codebook_usage_perplexity(&u) - exp(entropy)) < 1e-12);
    for (int i = 0; i < 6; i++) assert_true(u.queue[CODEBOOK_QUEUE - 6 + i] == (float)ids[i]);
    assert_true(u.queue[CODEBOOK_QUEUE - 7] == 0);
    codebook_usage_reset(&u);
    assert_true(u.chosen == 0 && codebook_usage_share(&u) == 0 && u.queue[CODEBOOK_QUEUE - 1] == 1);
    int32_t *many = calloc(CODEBOOK_QUEUE + 2, sizeof *many);
    assert_non_null(many);
    many[2] = 5;
    codebook_usage_add(&u, many, CODEBOOK_QUEUE + 2);
    assert_true(u.queue[0] == 5 && u.queue[1] == 0 && u.chosen == CODEBOOK_QUEUE + 2);
    free(many);
    codebook_usage_free(&u);
    assert_int_equal(ctx.memory.total, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(start), cmocka_unit_test(spread), cmocka_unit_test(revive),
                                       cmocka_unit_test(usage)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
