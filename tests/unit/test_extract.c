/* aim_extract_codes from within: memory that runs out anywhere on its way, and a caller that stops it. */
#include "training_set.h"

#include "train/codes.h"

static aim_context *made;
static aim_model *model;
static int64_t steps; /* progress reports left before the callback stops the work; negative: never */

static int report(void *user, const char *what, int64_t done, int64_t total)
{
    (void)user, (void)what, (void)done, (void)total;
    return steps >= 0 && steps-- == 0;
}

static int set_up(void **state)
{
    if (set_up_root(state)) return 1;
    steps = -1;
    make_picture("data/train/a/1.png", 20, 16, 50);
    make_picture("data/train/b/2.png", 16, 20, 150);
    make_file("data/train/b/3.png", "damaged", 7);
    make_picture("data/val/b/4.png", 16, 16, 250);
    aim_context_options options = aim_context_defaults();
    options.progress = report;
    options.threads = 2;
    aim_model_options from = aim_model_defaults(data_path("tiny-group"));
    return aim_context_create(&options, &made) != AIM_OK || aim_model_load(made, &from, &model) != AIM_OK;
}

static int tear_down(void **state)
{
    aim_model_free(model);
    aim_context_free(made);
    return tear_down_root(state);
}

static aim_status extract(aim_codes_format format, aim_extract_report *r)
{
    aim_extract_options o = aim_extract_defaults();
    o.size = 16;
    o.format = format;
    return aim_extract_codes(model, in_root("data"), in_root("out"), &o, r);
}

/* Removes the output; it must be empty after a failure. */
static void clear_output(bool empty)
{
    if (file_exists(in_root("out")) && empty) assert_int_equal(rmdir(in_root("out")), 0);
    nftw(in_root("out"), remove_entry, 8, FTW_DEPTH | FTW_PHYS);
}

static void all_is_reported(void **state)
{
    (void)state;
    aim_extract_report r;
    assert_ok(made, extract(AIM_CODES_COMPACT, &r));
    assert_true(r.pictures == 2 && r.skipped == 1 && r.classes == 2 && r.held_out == 1 && r.variants == 2 && r.tokens == 1);
    struct codes train, held_out;
    assert_ok(&ctx, codes_open_split(&ctx, in_root("out"), 0, &train, &held_out));
    assert_true(train.count == 2 && held_out.count == 1 && held_out.variants == 1 && codes_label(&held_out, 0) == 1);
    codes_close(&train);
    codes_close(&held_out);
    assert_fails(made, extract(AIM_CODES_COMPACT, &r), AIM_ERR_ARGUMENT, "codes.safetensors exists");
}

static void memory_can_run_out(void **state)
{
    (void)state;
    for (int format = AIM_CODES_COMPACT; format <= AIM_CODES_LLAMAGEN; format++) {
        aim_extract_report r;
        assert_ok(made, extract((aim_codes_format)format, &r)); /* builds the network and fills its pool of buffers */
        clear_output(false);
        int64_t held = made->memory.total, failures = 0;
        for (int64_t n = 0;; n++) {
            made->memory.fail_after = n;
            aim_status status = extract((aim_codes_format)format, &r);
            made->memory.fail_after = -1;
            clear_output(status != AIM_OK);
            assert_int_equal(made->memory.total, held);
            if (status == AIM_OK) break;
            assert_int_equal(status, AIM_ERR_MEMORY);
            failures++;
            n += n / 8; /* the later ones are alike: take a sample */
        }
        assert_true(failures > 20);
    }
}

static void it_can_be_stopped(void **state)
{
    (void)state;
    for (int format = AIM_CODES_COMPACT; format <= AIM_CODES_LLAMAGEN; format++) {
        aim_status status = AIM_ERR_CANCELLED;
        int64_t n = 0;
        for (; status != AIM_OK; n++) {
            aim_extract_report r;
            steps = n;
            status = extract((aim_codes_format)format, &r);
            steps = -1;
            clear_output(status != AIM_OK);
            if (status != AIM_OK) assert_int_equal(status, AIM_ERR_CANCELLED);
        }
        assert_true(n > 1);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {TEST(all_is_reported), TEST(memory_can_run_out), TEST(it_can_be_stopped)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
