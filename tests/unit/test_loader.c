#include "training_set.h"

#include "io/image.h"
#include "train/loader.h"
#include "train/shuffle.h"

enum { PICTURES = 11, SIZE = 8, VALUES = 3 * SIZE * SIZE, BATCH = 4 };

static struct dataset set;

/* PICTURES pictures in two classes, of which some hold no picture. */
static void make_set(const char *broken)
{
    char name[32];
    for (int i = 0; i < PICTURES; i++) {
        snprintf(name, sizeof name, "%c/%02d.png", i < 6 ? 'a' : 'b', i);
        if (broken && broken[i] == 'x')
            make_file(name, "no picture", 10);
        else
            make_picture(name, 14 + i, 12, 20 * i + 20);
    }
    assert_ok(&ctx, dataset_open(&ctx, root, &set));
}

static struct loader_options usual(int threads)
{
    return (struct loader_options){.dataset = &set,
                                   .augment = {.kind = AUGMENT_RANDOM_CROP, .size = SIZE, .flip = true},
                                   .batch = BATCH,
                                   .seed = 7,
                                   .threads = threads};
}

/* Batches first .. first+count-1 in one block; the labels go behind each batch's pixels as floats. */
enum { ROW = BATCH * (VALUES + 1) };
static float *load(struct loader_options o, int64_t first, int64_t count, int64_t *skipped)
{
    struct loader *loader;
    float *all = calloc((size_t)(count * ROW), sizeof *all);
    o.first_step = first;
    assert_ok(&ctx, loader_create(&ctx, &o, &loader));
    for (int64_t s = 0; s < count; s++) {
        int32_t labels[BATCH];
        int64_t n;
        assert_ok(&ctx, loader_next(loader, all + s * ROW, labels, &n));
        assert_int_equal(n, BATCH);
        for (int i = 0; i < BATCH; i++) all[s * ROW + BATCH * VALUES + i] = (float)labels[i];
    }
    if (skipped) *skipped = loader_skipped(loader);
    loader_free(loader);
    return all;
}

/* The bytes of a batch are those that its pixels come from. */
static void bytes(void **state)
{
    (void)state;
    enum { PIXELS = SIZE * SIZE };
    struct loader *loader;
    struct loader_options o = usual(2);
    uint8_t pictures[BATCH * VALUES];
    int32_t labels[BATCH];
    int64_t n;
    make_set("  xx     x ");
    float *reference = load(o, 0, 1, NULL);
    assert_ok(&ctx, loader_create(&ctx, &o, &loader));
    assert_ok(&ctx, loader_next_bytes(loader, pictures, labels, &n));
    assert_int_equal(n, BATCH);
    for (int i = 0; i < BATCH * VALUES; i++) {
        int c = i % 3, pixel = i / 3 % PIXELS, picture = i / VALUES;
        assert_true(image_level_to_float(pictures[i]) == reference[picture * VALUES + c * PIXELS + pixel]);
    }
    for (int i = 0; i < BATCH; i++) assert_true((float)labels[i] == reference[BATCH * VALUES + i]);
    loader_free(loader);
    free(reference);
    dataset_close(&set);
}

static void threads_do_not_matter(void **state)
{
    (void)state;
    enum { STEPS = 9 };
    make_set("  xx     x ");
    int64_t skipped;
    float *reference = load(usual(0), 0, STEPS, &skipped);
    assert_int_equal(skipped, 3);
    assert_int_equal(warnings, 3); /* one each */
    assert_non_null(strstr(last_warning, "is not a PNG, JPEG or WebP picture"));
    const int threads[] = {1, 4, 16};
    for (size_t i = 0; i < sizeof threads / sizeof *threads; i++) {
        warnings = 0;
        float *more = load(usual(threads[i]), 0, STEPS, &skipped);
        assert_memory_equal(more, reference, STEPS * ROW * sizeof *more);
        assert_int_equal(skipped, 3);
        assert_int_equal(warnings, 3);
        free(more);
    }
    float *resumed = load(usual(4), 5, STEPS - 5, NULL); /* a batch depends on its number alone */
    assert_memory_equal(resumed, reference + 5 * ROW, (STEPS - 5) * ROW * sizeof *resumed);
    struct loader_options other = usual(2);
    other.seed = 8;
    float *different = load(other, 0, STEPS, NULL);
    assert_true(memcmp(different, reference, STEPS * ROW * sizeof *different) != 0);
    free(different);
    free(resumed);
    free(reference);
    dataset_close(&set);
}

/* Every picture is seen once an epoch: its grey, or that of its darker half, tells which it is. */
static void epochs_are_whole(void **state)
{
    (void)state;
    enum { EPOCHS = 4 };
    make_set(NULL);
    float *all = load(usual(2), 0, PICTURES * EPOCHS / BATCH, NULL);
    int order[EPOCHS][PICTURES];
    for (int g = 0; g < PICTURES * EPOCHS; g++) {
        const float *pixels = all + g / BATCH * ROW + g % BATCH * VALUES;
        float most = -1;
        for (int i = 0; i < VALUES; i++) most = pixels[i] > most ? pixels[i] : most;
        order[g / PICTURES][g % PICTURES] = (int)((most * 127.5f + 127.5f) / 20.0f + 0.5f) - 1;
        assert_int_equal((int)all[g / BATCH * ROW + BATCH * VALUES + g % BATCH], order[g / PICTURES][g % PICTURES] < 6 ? 0 : 1);
    }
    for (int e = 0; e < EPOCHS; e++) {
        unsigned seen = 0;
        for (int i = 0; i < PICTURES; i++) seen |= 1u << order[e][i];
        assert_int_equal(seen, (1u << PICTURES) - 1);
        if (e) assert_true(memcmp(order[e], order[e - 1], sizeof order[e]) != 0);
    }
    free(all);
    dataset_close(&set);
}

static void shuffle_is_a_permutation(void **state)
{
    (void)state;
    enum { MOST = 300 };
    for (uint64_t n = 1; n <= MOST; n++) {
        bool seen[MOST] = {false};
        for (uint64_t i = 0; i < n; i++) {
            uint64_t at = shuffle_at(3, n, i, n);
            assert_true(at < n && !seen[at]);
            seen[at] = true;
        }
    }
    /* where each of 5 things ends up is uniform: 4000 epochs, 800 expected, 5 deviations of 25 */
    int count[5][5] = {{0}};
    for (uint64_t epoch = 0; epoch < 4000; epoch++)
        for (uint64_t i = 0; i < 5; i++) count[i][shuffle_at(1, epoch, i, 5)]++;
    for (int i = 0; i < 25; i++) assert_in_range(count[i / 5][i % 5], 670, 930);
    assert_true(shuffle_at(1, 0, 5, UINT64_C(1) << 40) < UINT64_C(1) << 40);
}

static void an_ordered_pass_leaves_out(void **state)
{
    (void)state;
    make_set("x          ");
    for (int threads = 0; threads <= 3; threads += 3) {
        struct loader_options o = usual(threads);
        o.augment = (struct augment){.kind = AUGMENT_AIM_EVAL, .size = SIZE};
        o.ordered = true;
        struct loader *loader;
        float pixels[BATCH * VALUES];
        int32_t labels[BATCH];
        const int expected[] = {4, 4, 2, 0, 0};
        assert_ok(&ctx, loader_create(&ctx, &o, &loader));
        for (int s = 0; s < 5; s++) {
            int64_t n;
            assert_ok(&ctx, loader_next(loader, pixels, labels, &n));
            assert_int_equal(n, expected[s]);
            if (n == 4) assert_int_equal(labels[3], s); /* picture 4, then picture 8 */
        }
        assert_int_equal(loader_skipped(loader), 1);
        loader_free(loader);
    }
    dataset_close(&set);
}

static void nothing_readable_is_an_error(void **state)
{
    (void)state;
    make_set("xxxxxxxxxxx");
    for (int threads = 0; threads <= 4; threads += 2) {
        struct loader_options o = usual(threads);
        struct loader *loader;
        float pixels[BATCH * VALUES];
        int32_t labels[BATCH];
        int64_t n;
        warnings = 0;
        assert_ok(&ctx, loader_create(&ctx, &o, &loader));
        assert_fails(&ctx, loader_next(loader, pixels, labels, &n), AIM_ERR_FORMAT, "none of the 11 pictures can be read");
        assert_int_equal(warnings, PICTURES);
        assert_fails(&ctx, loader_next(loader, pixels, labels, &n), AIM_ERR_FORMAT, "none of the 11"); /* it stays so */
        loader_free(loader);
    }
    dataset_close(&set);
}

static void it_stops_at_any_time(void **state)
{
    (void)state;
    make_set("   x       ");
    for (int i = 0; i < 60; i++) {
        struct loader_options o = usual(1 + i % 5);
        struct loader *loader;
        float pixels[BATCH * VALUES];
        int32_t labels[BATCH];
        int64_t n;
        assert_ok(&ctx, loader_create(&ctx, &o, &loader));
        for (int s = 0; s < i % 3; s++) assert_ok(&ctx, loader_next(loader, pixels, labels, &n));
        if (i % 4 == 0) usleep((useconds_t)(i * 37));
        loader_free(loader);
    }
    dataset_close(&set);
}

/* With threads the n-th allocation is anyone's; whatever fails, the loader says so and ends. */
static void memory_can_run_out(void **state)
{
    (void)state;
    make_set("     x     ");
    int64_t held = ctx.memory.total;
    for (int threads = 0; threads <= 3; threads += 3)
        for (int64_t n = 0, failures = 1; failures > 0; n += 1 + threads) {
            struct loader_options o = usual(threads);
            struct loader *loader;
            float pixels[BATCH * VALUES];
            int32_t labels[BATCH];
            int64_t count;
            ctx.memory.fail_after = n;
            aim_status status = loader_create(&ctx, &o, &loader);
            for (int s = 0; s < 2 && status == AIM_OK; s++) status = loader_next(loader, pixels, labels, &count);
            loader_free(loader);
            failures = __atomic_exchange_n(&ctx.memory.fail_after, -1, __ATOMIC_RELAXED) < 0;
            if (status != AIM_OK) {
                assert_int_equal(status, AIM_ERR_MEMORY);
                assert_non_null(strstr(aim_last_error(&ctx), "out of memory"));
            }
            assert_int_equal(ctx.memory.total, held);
        }
    dataset_close(&set);
}

static void impossible_options_are_refused(void **state)
{
    (void)state;
    struct loader *loader;
    struct dataset empty = {.ctx = &ctx};
    make_set(NULL);
    struct loader_options o = usual(0);
    o.dataset = &empty;
    assert_fails(&ctx, loader_create(&ctx, &o, &loader), AIM_ERR_ARGUMENT, "no pictures");
    o = usual(-1);
    assert_fails(&ctx, loader_create(&ctx, &o, &loader), AIM_ERR_ARGUMENT, "threads");
    o = usual(0);
    o.batch = 0;
    assert_fails(&ctx, loader_create(&ctx, &o, &loader), AIM_ERR_ARGUMENT, "batch");
    o = usual(0);
    o.first_step = INT64_MAX;
    assert_fails(&ctx, loader_create(&ctx, &o, &loader), AIM_ERR_ARGUMENT, "from step");
    assert_null(loader);
    dataset_close(&set);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up_root, tear_down_root)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(bytes),
        TEST(threads_do_not_matter),
        TEST(epochs_are_whole),
        TEST(an_ordered_pass_leaves_out),
        TEST(nothing_readable_is_an_error),
        TEST(it_stops_at_any_time),
        TEST(memory_can_run_out),
        TEST(shuffle_is_a_permutation),
        TEST(impossible_options_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
