/* Training stage 1 through the library: memory that is planned, does not grow and may fail, and stops. */
#include "training_set.h"

#include <math.h>

enum { PICTURES = 8, SIDE = 32 };

static aim_context *made;
static int64_t total_at[2]; /* after 10 and 60 steps of training */
static int64_t stop_at;     /* a step that the progress callback stops at; 0: none */

static int on_progress(void *user, const char *what, int64_t done, int64_t total)
{
    (void)user, (void)total;
    if (strncmp(what, "training", 8) != 0) return 0;
    if (done == 10) total_at[0] = made->memory.total;
    if (done == 59) total_at[1] = made->memory.total;
    return stop_at && done == stop_at;
}

static int set_up(void **state)
{
    char name[64];
    if (set_up_root(state)) return 1;
    stop_at = 0;
    for (int i = 0; i < PICTURES; i++) {
        snprintf(name, sizeof name, "data/%c/%d.png", i % 2 ? 'b' : 'a', i);
        make_picture(name, SIDE + i, SIDE, 30 + 25 * i);
    }
    aim_context_options options = aim_context_defaults();
    options.progress = on_progress;
    options.threads = 2;
    return aim_context_create(&options, &made) != AIM_OK;
}

static int tear_down(void **state)
{
    aim_context_free(made);
    return tear_down_root(state);
}

static aim_train_tokenizer_options small(const char *run)
{
    static char data[80], folder[80];
    snprintf(data, sizeof data, "%s/data", root);
    snprintf(folder, sizeof folder, "%s/%s", root, run);
    aim_train_tokenizer_options o = aim_train_tokenizer_defaults();
    o.train.data = data;
    o.train.run = folder;
    o.train.preset = "tiny";
    o.train.size = SIDE;
    o.train.batch = 4;
    o.train.lr = 1e-3;
    o.train.held_out = 0;
    o.train.eval_every = o.train.save_every = o.train.sample_every = 0;
    o.perceptual = 0;
    o.multipliers = "1,1";
    o.codebook_size = 64;
    o.disc_start = 1;
    return o;
}

static void steady(void **state)
{
    (void)state;
    aim_train_report report;
    aim_train_tokenizer_options o = small("run");
    o.train.steps = 60;
    o.train.save_every = o.train.eval_every = 20;
    o.revive_every = 25;
    o.adaptive = 1;
    o.train.accumulate = 2;
    assert_ok(made, aim_train_tokenizer(made, &o, &report));
    assert_true(total_at[0] > 0);
    assert_int_equal(total_at[1], total_at[0]);
    assert_int_equal(report.steps, 60);
    assert_int_equal(report.pictures, PICTURES);
    assert_true(isnan(report.psnr)); /* nothing was held out */
}

/* The peak of a real run lies within 10% of what the dry run says. */
static void check_plan(int discriminator, int accumulate)
{
    aim_train_report plan, report;
    char name[32];
    snprintf(name, sizeof name, "run-%c-%d", discriminator, accumulate);
    aim_train_tokenizer_options o = small(name);
    o.train.size = 2 * SIDE; /* activations count, and not what kernels need besides for a moment */
    o.train.batch = 16;
    o.train.steps = 2;
    o.train.ema = 0.9;
    o.train.accumulate = accumulate;
    o.discriminator = discriminator;
    o.train.dry_run = 1;
    assert_ok(made, aim_train_tokenizer(made, &o, &plan));
    made->memory.peak = made->memory.total;
    int64_t before = made->memory.total;
    o.train.dry_run = 0;
    assert_ok(made, aim_train_tokenizer(made, &o, &report));
    double real = (double)(made->memory.peak - before);
    print_message("discriminator %c, parts %d: planned %.2f MB, taken %.2f MB\n", discriminator, accumulate,
                  (double)plan.total / 1e6, real / 1e6);
    assert_true(fabs(real - (double)plan.total) < 0.1 * (double)plan.total);
}

static void planned(void **state)
{
    (void)state;
    check_plan('n', 1);
    check_plan('p', 1);
    check_plan('p', 2);
}

/* A wish to stop leaves a checkpoint of that step. */
static void stopped(void **state)
{
    (void)state;
    aim_train_report report;
    aim_train_tokenizer_options o = small("run");
    o.train.steps = 6;
    stop_at = 3;
    assert_fails(made, aim_train_tokenizer(made, &o, &report), AIM_ERR_CANCELLED, "cancelled");
    assert_int_equal(report.steps, 3);
    assert_true(file_exists(in_root("run/checkpoints/step-0000003.safetensors")));
    stop_at = 0;
    o.train.resume = 1;
    assert_ok(made, aim_train_tokenizer(made, &o, &report));
    assert_int_equal(report.steps, 6);
}

/* Memory may run out anywhere: a message, and nothing lost. */
static void out_of_memory(void **state)
{
    (void)state;
    int failures = 0;
    for (int64_t after = 0;; after += 2 + after / 4) {
        char name[32];
        aim_train_report report;
        snprintf(name, sizeof name, "run%lld", (long long)after);
        aim_train_tokenizer_options o = small(name);
        o.train.steps = 1;
        o.train.batch = 2;
        o.revive_every = 1;
        o.codebook_start = 's';
        o.train.ema = 0.5;
        int64_t before = made->memory.total;
        made->memory.fail_after = after;
        aim_status status = aim_train_tokenizer(made, &o, &report);
        made->memory.fail_after = -1;
        assert_int_equal(made->memory.total, before);
        if (status == AIM_OK) break;
        assert_int_equal(status, AIM_ERR_MEMORY);
        assert_non_null(strstr(aim_last_error(made), "memory"));
        failures++;
    }
    assert_true(failures > 15);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {TEST(steady), TEST(planned), TEST(stopped), TEST(out_of_memory)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
