/* LPIPS and the discriminators with hashed weights, values and gradients, against float64 results. */
#include "golden/golden.h"

#include <unistd.h>

#include "io/safetensors.h"
#include "tensor/tape.h"
#include "train/discriminator.h"
#include "train/lpips.h"

enum { PICTURE = 3 * 64 * 64 };

struct fixture {
    aim_context *ctx;
    struct tensor_file file;
    struct exec ex;
    struct params table;
    struct tensor *a, *b; /* the two pictures; b's gradient is wanted */
};

static struct tensor *picture(struct fixture *f, const char *name)
{
    float *values = golden_f32(f->ctx, &f->file, name, NULL);
    struct tensor *t = tensor_from_host(&f->ex, T_F32, SHAPE(1, 3, 64, 64), values);
    assert_ok(f->ctx, f->ex.status);
    mem_free(values);
    return t;
}

static void open_fixture(struct fixture *f, const char *tier)
{
    aim_context_options options = aim_context_defaults();
    options.threads = 2;
    options.cpu = tier;
    assert_ok(f->ctx, aim_context_create(&options, &f->ctx));
    golden_open(f->ctx, "losses/expected.safetensors", &f->file);
    exec_init(&f->ex, f->ctx);
    f->table = (struct params){.ctx = f->ctx, .prefix = ""};
    f->a = picture(f, "a");
    f->b = picture(f, "b");
    f->b->needs_grad = true;
}

static void close_fixture(struct fixture *f)
{
    tensor_drop(f->a);
    tensor_drop(f->b);
    exec_clear(&f->ex);
    params_free(&f->table);
    tensor_file_close(&f->file);
    assert_int_equal(f->ctx->memory.used[MEM_WEIGHTS] + f->ctx->memory.used[MEM_ACTIVATIONS], 0);
    aim_context_free(f->ctx);
}

/* Fills the described table with hashed values. */
static void hash_table(struct fixture *f)
{
    assert_ok(f->ctx, params_init(&f->table, 0));
    for (size_t i = 0; i < f->table.count; i++) {
        const struct param *row = &f->table.items[i];
        float *values = (float *)(uintptr_t)row->entry->data, most = 0;
        int64_t count = 1;
        for (int d = 0; d < row->ndim; d++) count *= row->shape[d];
        if (row->buffer) continue;
        hashed_fill(row->name, row->ndim, row->shape, values);
        for (int64_t k = 0; k < count; k++) most = fmaxf(most, fabsf(values[k]));
        for (int64_t k = 0; k < count; k++) {
            if (strncmp(row->name, "lin", 3) == 0) values[k] = fabsf(values[k]);
            if (row->ndim == 1 && ends(row->name, ".weight")) values[k] = 1 + 0.1f * values[k] / most;
        }
    }
}

/* The first values of t as expected. */
static void expect(struct fixture *f, const char *name, const struct tensor *t)
{
    size_t count;
    if (!t) fail_msg("%s: nothing to compare", name);
    float *want = golden_f32(f->ctx, &f->file, name, &count);
    float *got = mem_array(f->ctx, (size_t)tensor_count(t), sizeof *got, MEM_MISC);
    assert_ok(f->ctx, tensor_read(&f->ex, t, got));
    double error = relative_error(got, want, count);
    print_message("%s: relative error %.2g\n", name, error);
    if (!(error < GOLDEN_TOLERANCE)) fail_msg("%s: relative error %.2g", name, error);
    mem_free(got);
    mem_free(want);
}

/* ------------------------------------------------------------------------------------------------------ LPIPS */

/* Which share of the values is further than GOLDEN_TOLERANCE of the largest from what is expected; *worst as relative_error. */
static double share_off(struct fixture *f, const char *name, const struct tensor *t, double *worst)
{
    size_t count, off = 0;
    float *want = golden_f32(f->ctx, &f->file, name, &count), most = 0;
    float *got = mem_array(f->ctx, count, sizeof *got, MEM_MISC);
    assert_ok(f->ctx, tensor_read(&f->ex, t, got));
    for (size_t i = 0; i < count; i++) most = fmaxf(most, fabsf(want[i]));
    for (size_t i = 0; i < count; i++) off += fabsf(got[i] - want[i]) <= (float)GOLDEN_TOLERANCE * most ? 0 : 1;
    *worst = relative_error(got, want, count);
    mem_free(got);
    mem_free(want);
    return (double)off / (double)count;
}

/* LPIPS with hashed weights, in f->table's words. */
static struct lpips *hashed_lpips(struct fixture *f)
{
    struct lpips *l;
    assert_ok(f->ctx, lpips_describe(&f->table));
    hash_table(f);
    assert_ok(f->ctx, lpips_build(&f->table, &l));
    return l;
}

/*
 * The gradient has jumps where a relu's input passes zero or two pixels to be pooled are equal. Where roundings are near
 * float32's own, as in the plain kernels, none of the 600,000 features falls on the other side; Winograd's, ten times larger,
 * push one across, and the 14x16 pixels under it differ by up to 5e-3 of the largest value. The rest does not.
 */
static void check_lpips(const char *tier, bool exact)
{
    struct fixture f;
    struct tape tape;
    open_fixture(&f, tier);
    struct lpips *l = hashed_lpips(&f);
    tape_start(&tape, &f.ex);
    struct tensor *distance = lpips_forward(&f.ex, l, f.b, f.a, NULL);
    assert_ok(f.ctx, f.ex.status);
    expect(&f, "lpips", distance);
    assert_ok(f.ctx, tape_backward(&tape, distance, 1));
    tape_stop(&tape);
    double worst, share = share_off(&f, "lpips_grad_b", f.b->grad, &worst);
    print_message("lpips_grad_b: relative error %.2g, %.2g %% of the values beyond the tolerance\n", worst, 100 * share);
    assert_true(worst < (exact ? GOLDEN_TOLERANCE : 1e-2) && share < (exact ? 1e-9 : 0.1));
    tensor_drop(distance);
    lpips_free(l);
    close_fixture(&f);
}

static void lpips(void **state)
{
    (void)state;
    check_lpips("generic", true);
    check_lpips(NULL, false);
}

static float value_of(struct fixture *f, const struct lpips *l, const struct tensor *a, const struct tensor *b,
                      const struct dropout *dropout)
{
    float value;
    struct tensor *distance = lpips_forward(&f->ex, l, a, b, dropout);
    assert_ok(f->ctx, f->ex.status);
    assert_ok(f->ctx, tensor_read(&f->ex, distance, &value));
    tensor_drop(distance);
    return value;
}

/* Equal pictures are at no distance; dropout leaves the value what it is on average, and draws anew each time. */
static void lpips_dropout(void **state)
{
    (void)state;
    struct fixture f;
    open_fixture(&f, NULL);
    struct lpips *l = hashed_lpips(&f);
    float all = value_of(&f, l, f.b, f.a, NULL);
    float one = value_of(&f, l, f.b, f.a, &(struct dropout){1, 0}), two = value_of(&f, l, f.b, f.a, &(struct dropout){1, 1});
    assert_true(value_of(&f, l, f.a, f.a, NULL) < 1e-12f * all);
    assert_true(one != two && fabsf(one - all) < 0.05f * all && fabsf(two - all) < 0.05f * all);
    lpips_free(l);
    close_fixture(&f);
}

/* A file of the table's rows that start with `start`; VGG's under the names of a merged file if asked for. */
static void write_rows(struct fixture *f, const char *path, const char *start, bool merged)
{
    struct tensor_entry entries[64];
    char names[64][96];
    size_t count = 0;
    for (size_t i = 0; i < f->table.count; i++) {
        const struct param *row = &f->table.items[i];
        int index, slice = 1;
        char rest[16];
        if (strncmp(row->name, start, strlen(start)) != 0) continue;
        entries[count] = *row->entry;
        snprintf(names[count], sizeof names[count], "%s", row->name);
        if (merged && sscanf(row->name, "features.%d.%15s", &index, rest) == 2) {
            static const int last[4] = {3, 8, 15, 22}; /* of each slice but the fifth */
            while (slice < 5 && index > last[slice - 1]) slice++;
            snprintf(names[count], sizeof names[count], "net.slice%d.%d.%s", slice, index, rest);
        }
        entries[count].name = names[count];
        count++;
    }
    assert_ok(f->ctx, safetensors_write(f->ctx, path, entries, count, NULL, 0));
}

/* From two files, and from one. */
static void lpips_files(void **state)
{
    (void)state;
    struct fixture f;
    char folder[] = "/tmp/aim-lpips-XXXXXX", vgg[64], lin[64], both[64];
    open_fixture(&f, NULL);
    assert_non_null(mkdtemp(folder));
    snprintf(vgg, sizeof vgg, "%s/vgg16", folder);
    snprintf(lin, sizeof lin, "%s/lin", folder);
    snprintf(both, sizeof both, "%s/both", folder);
    struct lpips *made = hashed_lpips(&f), *two, *one, *none;
    write_rows(&f, vgg, "features", false);
    write_rows(&f, lin, "lin", false);
    write_rows(&f, both, "", true);
    assert_ok(f.ctx, lpips_load(f.ctx, vgg, lin, &two));
    assert_ok(f.ctx, lpips_load(f.ctx, both, NULL, &one));
    assert_int_equal(lpips_load(f.ctx, vgg, NULL, &none), AIM_ERR_FORMAT);
    assert_non_null(strstr(aim_last_error(f.ctx), "lin0.model.1.weight"));
    float want = value_of(&f, made, f.b, f.a, NULL);
    assert_true(value_of(&f, two, f.b, f.a, NULL) == want && value_of(&f, one, f.b, f.a, NULL) == want);
    unlink(vgg);
    unlink(lin);
    unlink(both);
    rmdir(folder);
    lpips_free(made);
    lpips_free(two);
    lpips_free(one);
    close_fixture(&f);
}

/* Without weights the reason is said. */
static void lpips_missing(void **state)
{
    (void)state;
    aim_context *ctx = golden_context(1);
    struct lpips *l;
    assert_int_equal(lpips_load(ctx, NULL, NULL, &l), AIM_ERR_ARGUMENT);
    assert_null(l);
    assert_non_null(strstr(aim_last_error(ctx), "vgg16-397923af.pth"));
    assert_int_equal(lpips_load(ctx, "/nowhere/vgg16.pth", NULL, &l), AIM_ERR_IO);
    assert_non_null(strstr(aim_last_error(ctx), "/nowhere/vgg16.pth"));
    assert_int_equal(lpips_load(ctx, data_path("torch-files/legacy.pth"), NULL, &l), AIM_ERR_FORMAT);
    assert_non_null(strstr(aim_last_error(ctx), "features.0.weight"));
    assert_null(l);
    assert_int_equal(ctx->memory.used[MEM_WEIGHTS], 0);
    aim_context_free(ctx);
}

/* ----------------------------------------------------------------------------------------------- discriminators */

static const struct tensor *named(const struct fixture *f, const struct discriminator *d, const char *name)
{
    for (size_t i = 0; i < f->table.count; i++)
        if (strcmp(f->table.items[i].name, name) == 0) return d->tensors[i];
    fail_msg("no tensor %s", name);
    return NULL;
}

/* Outputs are stored (1,1,6,6), and ours (1,6,6,1): the same order. */
static void patch(void **state)
{
    struct fixture f;
    struct discriminator *d;
    struct tape tape;
    (void)state;
    const struct discriminator_config config = {.kind = DISCRIMINATOR_PATCH, .channels = 64};
    open_fixture(&f, NULL);
    assert_ok(f.ctx, discriminator_describe(&config, &f.table));
    assert_int_equal(params_parameters(&f.table), 2765633);
    hash_table(&f);
    assert_ok(f.ctx, discriminator_build(&config, &f.table, &d));
    tape_start(&tape, &f.ex);
    struct tensor *real = discriminator_forward(&f.ex, d, f.a), *fake = discriminator_forward(&f.ex, d, f.b);
    struct tensor *of_real = op_mean_map(&f.ex, real, MAP_HINGE_REAL, 0.5f);
    struct tensor *of_fake = op_mean_map(&f.ex, fake, MAP_HINGE_FAKE, 0.5f), *loss = op_add(&f.ex, of_real, of_fake);
    assert_ok(f.ctx, f.ex.status);
    expect(&f, "disc_real", real);
    expect(&f, "disc_fake", fake);
    expect(&f, "disc_hinge_loss", loss);
    assert_ok(f.ctx, tape_backward(&tape, loss, 1));
    tape_stop(&tape);
    expect(&f, "disc_hinge_grad_b", f.b->grad);
    for (size_t i = 0; i < f.file.count; i++) {
        const char *name = f.file.entries[i].name;
        if (strncmp(name, "disc_weight.", 12) == 0) expect(&f, name, named(&f, d, name + 12));
        if (strncmp(name, "disc_grad.", 10) == 0) expect(&f, name, named(&f, d, name + 10)->grad);
    }
    struct tensor *done[] = {real, fake, of_real, of_fake, loss};
    for (size_t i = 0; i < sizeof done / sizeof done[0]; i++) tensor_drop(done[i]);
    discriminator_free(d);
    close_fixture(&f);
}

/* No golden values: its size is LlamaGen's, its logit follows the input, gradients arrive everywhere and point uphill. */
static void style(void **state)
{
    struct fixture f;
    struct discriminator *d;
    struct tape tape;
    (void)state;
    struct discriminator_config config = {.kind = DISCRIMINATOR_STYLE, .size = 256};
    open_fixture(&f, NULL);
    assert_ok(f.ctx, discriminator_describe(&config, &f.table));
    assert_int_equal(params_parameters(&f.table), 36500225);
    params_free(&f.table);
    config.size = 48;
    assert_int_equal(discriminator_describe(&config, &f.table), AIM_ERR_ARGUMENT);
    config.size = 64;
    assert_ok(f.ctx, discriminator_describe(&config, &f.table));
    assert_ok(f.ctx, params_init(&f.table, 7));
    assert_ok(f.ctx, discriminator_build(&config, &f.table, &d));
    tape_start(&tape, &f.ex);
    struct tensor *logit = discriminator_forward(&f.ex, d, f.b);
    assert_ok(f.ctx, f.ex.status);
    assert_int_equal(tensor_count(logit), 1);
    assert_ok(f.ctx, tape_backward(&tape, logit, 1));
    tape_stop(&tape);
    float pixels[PICTURE], slope[PICTURE], before, after, squares = 0;
    assert_ok(f.ctx, tensor_read(&f.ex, f.b->grad, slope));
    assert_ok(f.ctx, tensor_read(&f.ex, f.b, pixels));
    assert_ok(f.ctx, tensor_read(&f.ex, logit, &before));
    for (size_t i = 0; i < d->trainable_count; i++) assert_non_null(d->trainable[i]->grad);
    for (int i = 0; i < PICTURE; i++) squares += slope[i] * slope[i];
    const float step = 1e-3f / sqrtf(squares); /* the logit is to rise by 1e-3 √squares */
    for (int i = 0; i < PICTURE; i++) pixels[i] += step * slope[i];
    assert_ok(f.ctx, tensor_write(&f.ex, f.b, pixels));
    discriminator_train(d, false);
    struct tensor *higher = discriminator_forward(&f.ex, d, f.b);
    assert_ok(f.ctx, tensor_read(&f.ex, higher, &after));
    print_message("StyleGAN discriminator: rise %.4g, by the gradient %.4g\n", (double)(after - before),
                  (double)(step * squares));
    assert_true(fabsf(after - before - step * squares) < 0.02f * step * squares);
    tensor_drop(logit);
    tensor_drop(higher);
    discriminator_free(d);
    close_fixture(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(lpips),       cmocka_unit_test(lpips_dropout),
                                       cmocka_unit_test(lpips_files), cmocka_unit_test(lpips_missing),
                                       cmocka_unit_test(patch),       cmocka_unit_test(style)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
