/* The folder of a run: what its log and its checkpoints look like after a stop, and curves of logs in any state. */
#include "support.h"

#include <unistd.h>

#include "base/file.h"
#include "tensor/backend.h"
#include "train/run.h"

struct bench {
    char folder[64];
    aim_context *ctx;
    struct exec ex;
};

static void open_bench(struct bench *b)
{
    strcpy(b->folder, "/tmp/aim-test-run-XXXXXX");
    assert_non_null(mkdtemp(b->folder));
    assert_int_equal(aim_context_create(NULL, &b->ctx), AIM_OK);
    exec_init(&b->ex, b->ctx);
}

static void close_bench(struct bench *b)
{
    char command[128];
    exec_clear(&b->ex);
    aim_context_free(b->ctx);
    snprintf(command, sizeof command, "rm -r %s", b->folder);
    assert_int_equal(system(command), 0);
}

static void log_steps(struct run *run, int64_t from, int64_t to)
{
    for (int64_t step = from; step <= to; step++) {
        const struct run_value values[] = {{"loss", 1.0 / (double)step}, {"grad_norm", NAN}};
        assert_ok(run->ctx, run_log(run, step, values, 2));
    }
}

static void save(struct bench *b, struct run *run, int64_t step)
{
    struct checkpoint list = {.ctx = b->ctx};
    float value = (float)step;
    struct tensor t = tensor_view(T_F32, &value, 1, 0, 0, 0);
    assert_ok(b->ctx, checkpoint_add(&list, "", "w", &t));
    assert_ok(b->ctx, checkpoint_note_integer(&list, "step", step));
    assert_ok(b->ctx, run_save(run, &b->ex, &list, step));
    checkpoint_free(&list);
}

static void expect_log(const struct bench *b, const char *want)
{
    char path[96];
    struct file_map map;
    snprintf(path, sizeof path, "%s/log.jsonl", b->folder);
    assert_ok(b->ctx, file_map_open(b->ctx, path, &map));
    assert_int_equal(map.size, strlen(want));
    if (map.size) assert_memory_equal(map.data, want, map.size);
    file_map_close(&map);
}

static void append(const struct bench *b, const char *text)
{
    char path[96];
    snprintf(path, sizeof path, "%s/log.jsonl", b->folder);
    FILE *f = fopen(path, "a");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static bool there(const struct bench *b, const char *name)
{
    char path[160];
    snprintf(path, sizeof path, "%s/%s", b->folder, name);
    return file_exists(path);
}

/* A run with checkpoints at 2 and 4 that died while it wrote about step 6. */
static void resumed(void **state)
{
    (void)state;
    struct bench b;
    struct run run;
    open_bench(&b);
    assert_fails(b.ctx, run_open(b.ctx, b.folder, true, 2, &run), AIM_ERR_ARGUMENT, "no training run");
    assert_ok(b.ctx, run_open(b.ctx, b.folder, false, 2, &run));
    assert_null(run.restored);
    log_steps(&run, 1, 2);
    save(&b, &run, 2);
    log_steps(&run, 3, 4);
    const struct run_value nll = {"nll", 3.25};
    assert_ok(b.ctx, run_log(&run, 4, &nll, 1));
    save(&b, &run, 4);
    log_steps(&run, 5, 5);
    run_close(&run);
    append(&b, "{\"step\": 6, \"lo");
    assert_fails(b.ctx, run_open(b.ctx, b.folder, false, 2, &run), AIM_ERR_ARGUMENT, "--resume");
    assert_ok(b.ctx, run_open(b.ctx, b.folder, true, 2, &run));
    assert_int_equal(run.step, 4);
    expect_log(&b,
               "{\"step\": 1, \"loss\": 1, \"grad_norm\": null}\n{\"step\": 2, \"loss\": 0.5, \"grad_norm\": null}\n"
               "{\"step\": 3, \"loss\": 0.333333333, \"grad_norm\": null}\n{\"step\": 4, \"loss\": 0.25, \"grad_norm\": null}\n"
               "{\"step\": 4, \"nll\": 3.25}\n");
    struct tensor_file file;
    int64_t step;
    assert_ok(b.ctx, tensor_file_open(b.ctx, run.restored, &file));
    assert_ok(b.ctx, checkpoint_integer(b.ctx, &file, run.restored, "step", &step));
    assert_int_equal(step, 4);
    assert_fails(b.ctx, checkpoint_integer(b.ctx, &file, run.restored, "nothing", &step), AIM_ERR_FORMAT, "nothing");
    tensor_file_close(&file);
    struct run other;
    assert_fails(b.ctx, run_open(b.ctx, b.folder, true, 2, &other), AIM_ERR_ARGUMENT, "another process");
    run_close(&run);
    close_bench(&b);
}

/* The last two stay; files of other names are nobody's business. */
static void pruned(void **state)
{
    (void)state;
    struct bench b;
    struct run run;
    open_bench(&b);
    assert_ok(b.ctx, run_open(b.ctx, b.folder, false, 2, &run));
    char path[160];
    snprintf(path, sizeof path, "%s/checkpoints/step-12.safetensors", b.folder);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fclose(f);
    for (int64_t step = 5; step <= 20; step += 5) save(&b, &run, step);
    assert_false(there(&b, "checkpoints/step-0000005.safetensors") || there(&b, "checkpoints/step-0000010.safetensors"));
    assert_true(there(&b, "checkpoints/step-0000015.safetensors") && there(&b, "checkpoints/step-0000020.safetensors"));
    assert_true(there(&b, "checkpoints/step-12.safetensors"));
    run_close(&run);
    close_bench(&b);
}

/* Any text is drawn: nothing, one value, infinite ranges, lines that are no JSON. */
static void curves(void **state)
{
    (void)state;
    static const char *const logs[] = {
        "",
        "{\"step\": 1, \"loss\": 2}\n",
        "{\"step\": 1, \"loss\": 2}\n{\"step\": 2, \"loss\": 2}\n",
        "{\"step\": 1, \"loss\": 1e308}\n{\"step\": 2, \"loss\": -1e308}\n",
        "{\"step\": 1, \"loss\": null}\n[]\n\n{\"step\": \"x\"}\n{\"step\": 9223372036854775807, \"loss\": 1}\n{\"st",
    };
    const struct curve_panel panels[] = {{{"loss", "nll"}, true}, {{"lr"}, false}};
    struct bench b;
    open_bench(&b);
    for (size_t i = 0; i < sizeof logs / sizeof logs[0]; i++) {
        aim_image image;
        assert_ok(b.ctx, curves_draw(b.ctx, logs[i], strlen(logs[i]), panels, 2, &image));
        assert_true(image.width > 0 && image.height == 600);
        aim_image_free(&image);
    }
    close_bench(&b);
}

/* A falling line is drawn from the upper left to the lower right. */
static void curve_falls(void **state)
{
    (void)state;
    const char *log = "{\"step\": 0, \"loss\": 10}\n{\"step\": 100, \"loss\": 0}\n";
    const struct curve_panel panel = {{"loss"}, false};
    struct bench b;
    aim_image image;
    open_bench(&b);
    assert_ok(b.ctx, curves_draw(b.ctx, log, strlen(log), &panel, 1, &image));
    int sum[2] = {0}, count[2] = {0};
    for (int y = 60; y < image.height; y++)
        for (int x = 100; x < image.width - 30; x++) {
            const uint8_t *p = image.rgb + ((size_t)y * (size_t)image.width + (size_t)x) * 3;
            bool curve = p[2] > 150 && p[0]<60, right = x> image.width / 2;
            sum[right] += curve ? y : 0;
            count[right] += curve;
        }
    assert_true(count[0] > 200 && count[1] > 200);
    assert_true(sum[0] / count[0] + 60 < sum[1] / count[1]);
    aim_image_free(&image);
    close_bench(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(resumed), cmocka_unit_test(pruned), cmocka_unit_test(curves),
                                       cmocka_unit_test(curve_falls)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
