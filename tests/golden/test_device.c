/*
 * Another device against the CPU: the gradient of every parameter of both stages and of the discriminator, and likelihoods.
 * The device is the one that AIM_TEST_DEVICE names, else "cuda"; the tests skip where it is not there.
 */
#include "golden.h"

#include "tensor/tape.h"
#include "train/vq_step.h"

/*
 * A gradient's error is that of the vector: ‖got - want‖ relative to ‖want‖, beyond a residue, a fraction of the longest
 * gradient of the network. In float32 other orders of sums leave 1e-5 after some sixty ops; bf16 rounds every result to
 * 2^-9, forward and backward. The residue is for gradients that are zero by mathematics (a bias in front of a GroupNorm of
 * one channel a group, the bias of attention's keys) or nearly so: what is left of terms that cancel is their rounding.
 */
struct tolerance {
    bool bf16;
    double relative, residue;
};
static const struct tolerance tolerances[] = {{false, GOLDEN_TOLERANCE, 1e-6}, {true, 5e-2, 2e-3}};

struct side {
    aim_context *ctx;
    aim_model *model;
    struct exec ex;
};

/* False, with one line said, where there is no such device: the test then calls skip(). */
static bool open_context(const char *device, aim_context **ctx)
{
    aim_context_options o = aim_context_defaults();
    o.device = device;
    o.threads = 2;
    if (aim_context_create(&o, ctx) == AIM_OK) return true;
    print_message("skipped: no device (%s)\n", aim_last_error(*ctx));
    aim_context_free(*ctx);
    return false;
}

/* The CPU's side and the device's. */
static bool open_sides(const char *folder, struct side sides[2])
{
    const char *wanted = getenv("AIM_TEST_DEVICE");
    if (!open_context(wanted ? wanted : "cuda", &sides[1].ctx)) return false;
    assert_true(open_context("cpu", &sides[0].ctx));
    for (int i = 0; i < 2; i++) {
        sides[i].model = golden_model(sides[i].ctx, folder, 0, AIM_WEIGHTS_F32);
        exec_init(&sides[i].ex, sides[i].ctx);
    }
    return true;
}

static void close_sides(struct side sides[2])
{
    for (int i = 0; i < 2; i++) {
        exec_clear(&sides[i].ex);
        aim_model_free(sides[i].model);
        aim_context_free(sides[i].ctx);
    }
}

/* The CPU's arithmetic stays float32: it is what is compared with. */
static void set_bf16(struct side sides[2], bool bf16)
{
    if (bf16) assert_ok(sides[1].ctx, backend_check_bf16(sides[1].ctx->backend));
    sides[1].ctx->backend->bf16 = bf16;
}

static bool can_bf16(const struct side sides[2])
{
    return backend_check_bf16(sides[1].ctx->backend) == AIM_OK;
}

/* ---------------------------------------------------------------------------------------------- the comparison */

static float *read_gradient(struct side *s, const char *name, const struct tensor *t)
{
    float *values = mem_array(s->ctx, (size_t)tensor_count(t), sizeof *values, MEM_MISC);
    assert_non_null(values);
    if (!t->grad) fail_msg("%s: no gradient has arrived at %s", aim_context_device(s->ctx), name);
    assert_ok(s->ctx, tensor_read(&s->ex, t->grad, values));
    return values;
}

static double length(const float *a, const float *b, int64_t n)
{
    double squares = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = (double)a[i] - (b ? (double)b[i] : 0);
        squares += d * d;
    }
    return sqrt(squares);
}

/* The gradients of tensors[0][i] on the CPU and tensors[1][i] on the device; names are those of the table's rows that are
 * no buffers, in order. All that are wrong are told before the test fails. */
static void compare(struct side sides[2], const char *what, const struct tolerance *how, const struct params *table,
                    struct tensor *const *tensors[2], size_t count)
{
    double longest = 0, worst = 0;
    const char *worst_name = "";
    size_t wrong = 0;
    for (int pass = 0; pass < 2; pass++) /* first the longest one */
        for (size_t i = 0, row = 0; i < count; i++, row++) {
            while (table->items[row].buffer) row++;
            const char *name = table->items[row].name;
            int64_t n = tensor_count(tensors[0][i]);
            float *want = read_gradient(&sides[0], name, tensors[0][i]), *got = read_gradient(&sides[1], name, tensors[1][i]);
            double own = length(want, NULL, n), gap = length(got, want, n);
            mem_free(want);
            mem_free(got);
            if (pass == 0) {
                longest = fmax(longest, own);
                continue;
            }
            double excess = (gap - how->residue * longest) / own;
            if (excess > worst) {
                worst = excess;
                worst_name = name;
            }
            if (gap <= how->relative * own + how->residue * longest) continue;
            print_message("%s, %s: %s is off by %.2g of its length, which is %.2g of the longest\n", what,
                          how->bf16 ? "bf16" : "f32", name, gap / own, own / longest);
            wrong++;
        }
    print_message("%s, %s: beyond the residue the worst gradient is off by %.2g of its length %s\n", what,
                  how->bf16 ? "bf16" : "f32", worst, worst_name);
    assert_int_equal(wrong, 0);
}

static void compare_loss(double got, double want, const struct tolerance *how)
{
    print_message("loss %.6f, the CPU's %.6f\n", got, want);
    assert_true(fabs(got - want) <= (how->bf16 ? 1e-2 : 1e-5) * fabs(want));
}

/* ------------------------------------------------------------------------------------------------------ stage 2 */

static double differentiate_ar(struct side *s, const struct ar *ar, const int32_t *labels, const int32_t *codes, int64_t B)
{
    int64_t T = ar->config.num_tokens;
    float *losses = mem_array(s->ctx, (size_t)(B * T), sizeof *losses, MEM_MISC);
    struct tape tape;
    double sum = 0;
    tape_start(&tape, &s->ex);
    struct tensor *loss = ar_loss(&s->ex, ar, labels, codes, B);
    assert_ok(s->ctx, s->ex.status);
    assert_ok(s->ctx, tape_backward(&tape, loss, 1.0f / (float)(B * T)));
    tape_stop(&tape);
    assert_ok(s->ctx, tensor_read(&s->ex, loss, losses));
    for (int64_t i = 0; i < B * T; i++) sum += (double)losses[i];
    tensor_drop(loss);
    mem_free(losses);
    return sum / (double)(B * T);
}

/* Compares, and forgets the gradients. */
static void check_ar(struct side sides[2], struct ar *ar[2], const char *folder, const struct tolerance *how)
{
    enum { B = 6 };
    const struct ar_config *c = &ar[0]->config;
    int32_t labels[B], *codes = mem_array(sides[0].ctx, (size_t)(B * c->num_tokens), sizeof *codes, MEM_MISC);
    double loss[2];
    for (int i = 0; i < B; i++) labels[i] = i * 7 % (c->num_classes + 1);
    for (int i = 0; i < B * c->num_tokens; i++) codes[i] = (i * 7919 + i * i % 11) % c->vocab_size;
    set_bf16(sides, how->bf16);
    for (int i = 0; i < 2; i++) loss[i] = differentiate_ar(&sides[i], ar[i], labels, codes, B);
    compare_loss(loss[1], loss[0], how);
    struct tensor *const *rows[] = {ar[0]->rows, ar[1]->rows};
    size_t count = sides[0].model->ar_table.count;
    compare(sides, folder, how, &sides[0].model->ar_table, rows, count);
    for (int i = 0; i < 2; i++)
        for (size_t r = 0; r < count; r++) tensor_clear_grad(ar[i]->rows[r]);
    set_bf16(sides, false);
    mem_free(codes);
}

static void gradients_of_stage_2(void **state)
{
    (void)state;
    static const char *const folders[] = {"tiny-group", "tiny-adaln"};
    for (int f = 0; f < 2; f++) {
        struct side sides[2];
        struct ar *ar[2];
        if (!open_sides(folders[f], sides)) skip();
        for (int i = 0; i < 2; i++)
            assert_ok(sides[i].ctx, ar_build_trainable(&sides[i].model->config.ar, &sides[i].model->ar_table, &ar[i]));
        check_ar(sides, ar, folders[f], &tolerances[0]);
        if (can_bf16(sides)) check_ar(sides, ar, folders[f], &tolerances[1]);
        for (int i = 0; i < 2; i++) ar_free(ar[i]);
        close_sides(sides);
    }
}

/* ------------------------------------------------------------------------------------------------------ stage 1 */

enum { SIDE = 64, GRID = 4 };

static struct tensor *golden_picture(struct side *s)
{
    struct tensor_file file;
    golden_open(s->ctx, "tiny-group/expected_vq.safetensors", &file);
    float *image = golden_f32(s->ctx, &file, "image", NULL);
    struct tensor *x = tensor_from_host(&s->ex, T_F32, SHAPE(1, 3, SIDE, SIDE), image);
    assert_ok(s->ctx, s->ex.status);
    mem_free(image);
    tensor_file_close(&file);
    return x;
}

/*
 * Encoder and decoder each for itself, the encoder towards made-up latents and the decoder from made-up codes: with bf16 the
 * choice of a code may fall otherwise, and all that follows with it.
 */
static double differentiate_halves(struct side *s, const struct vq *vq)
{
    struct exec *ex = &s->ex;
    float wanted[GRID * GRID * 64], value[2];
    int32_t codes[GRID * GRID];
    int64_t D = vq->config.codebook_dim;
    assert_true(D <= 64);
    for (int64_t i = 0; i < GRID * GRID * D; i++) wanted[i] = (float)(i * 37 % 101) / 50.0f - 1;
    for (int i = 0; i < GRID * GRID; i++) codes[i] = i * 61 % vq->config.codebook_size;
    struct tensor *x = golden_picture(s), *target = tensor_from_host(ex, T_F32, SHAPE(1, GRID, GRID, D), wanted);
    struct tensor *ids = tensor_from_host(ex, T_I32, SHAPE(GRID * GRID), codes);
    struct tape tape;
    tape_start(&tape, ex);
    struct tensor *latent = vq_latent(ex, vq, x), *pixels = vq_decode(ex, vq, ids, 1, GRID, GRID);
    struct tensor *losses[] = {op_mean_square(ex, latent, target, 1), op_mean_square(ex, pixels, x, 1)};
    struct tensor *sum = op_add(ex, losses[0], losses[1]);
    assert_ok(s->ctx, ex->status);
    assert_ok(s->ctx, tape_backward(&tape, sum, 1));
    tape_stop(&tape);
    for (int i = 0; i < 2; i++) assert_ok(s->ctx, tensor_read(ex, losses[i], &value[i]));
    struct tensor *all[] = {x, target, ids, latent, pixels, losses[0], losses[1], sum};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) tensor_drop(all[i]);
    return (double)value[0] + (double)value[1];
}

static void check_halves(struct side sides[2], struct vq *vq[2], const struct tolerance *how)
{
    double loss[2];
    set_bf16(sides, how->bf16);
    for (int i = 0; i < 2; i++) loss[i] = differentiate_halves(&sides[i], vq[i]);
    compare_loss(loss[1], loss[0], how);
    struct tensor *const *tensors[] = {vq[0]->tensors, vq[1]->tensors};
    compare(sides, "tokenizer", how, &sides[0].model->vq_table, tensors, vq[0]->tensor_count);
    for (int i = 0; i < 2; i++)
        for (size_t t = 0; t < vq[i]->tensor_count; t++) tensor_clear_grad(vq[i]->tensors[t]);
    set_bf16(sides, false);
}

/* A whole step with the discriminator, in float32: the codes that are chosen, the terms, the gradients of both networks. */
static void check_step(struct side sides[2], struct vq *vq[2])
{
    const struct discriminator_config config = {.kind = DISCRIMINATOR_PATCH, .channels = 16};
    const struct tolerance *how = &tolerances[0];
    struct params table[2];
    struct discriminator *d[2];
    struct vq_step_values values[2];
    int32_t ids[2][GRID * GRID];
    for (int i = 0; i < 2; i++) {
        struct side *s = &sides[i];
        struct vq_loss loss = {.options = vq_loss_defaults()};
        loss.options.start = 0;
        table[i] = (struct params){.ctx = s->ctx, .prefix = ""};
        assert_ok(s->ctx, discriminator_describe(&config, &table[i]));
        assert_ok(s->ctx, params_init(&table[i], 1));
        assert_ok(s->ctx, discriminator_build(&config, &table[i], &d[i]));
        loss.discriminator = d[i];
        struct tensor *x = golden_picture(s), *fake;
        assert_ok(s->ctx, vq_step_generator(&s->ex, vq[i], &loss, x, 1, 1, &fake, ids[i], &values[i]));
        assert_ok(s->ctx, vq_step_discriminator(&s->ex, &loss, x, fake, 1, 1, &values[i]));
        tensor_drop(x);
        tensor_drop(fake);
    }
    assert_memory_equal(ids[0], ids[1], sizeof ids[0]);
    compare_loss(values[1].loss, values[0].loss, how);
    compare_loss(values[1].discriminator, values[0].discriminator, how);
    struct tensor *const *tensors[] = {vq[0]->tensors, vq[1]->tensors};
    compare(sides, "step", how, &sides[0].model->vq_table, tensors, vq[0]->tensor_count);
    struct tensor *const *judges[] = {d[0]->trainable, d[1]->trainable};
    compare(sides, "discriminator", how, &table[0], judges, d[0]->trainable_count);
    for (int i = 0; i < 2; i++) {
        for (size_t t = 0; t < vq[i]->tensor_count; t++) tensor_clear_grad(vq[i]->tensors[t]);
        discriminator_free(d[i]);
        params_free(&table[i]);
    }
}

static void gradients_of_stage_1(void **state)
{
    (void)state;
    struct side sides[2];
    struct vq *vq[2];
    if (!open_sides("tiny-group", sides)) skip();
    for (int i = 0; i < 2; i++)
        assert_ok(sides[i].ctx, vq_build_trainable(&sides[i].model->config.vq, &sides[i].model->vq_table, &vq[i]));
    check_halves(sides, vq, &tolerances[0]);
    check_step(sides, vq);
    if (can_bf16(sides)) check_halves(sides, vq, &tolerances[1]);
    for (int i = 0; i < 2; i++) vq_free(vq[i]);
    close_sides(sides);
}

/* -------------------------------------------------------------------------------------------------- likelihoods */

#define DEMO TEST_DATA "/../../models/demo"

static aim_model *demo_model(aim_context *ctx, aim_weights weights)
{
    aim_model *model;
    aim_model_options o = aim_model_defaults(DEMO);
    o.weights = weights;
    assert_ok(ctx, aim_model_load(ctx, &o, &model));
    return model;
}

/* The demo model's likelihood of pictures that it painted: the same to four digits; with results rounded to bf16, an error of
 * some 0.05 in each logit, to three. */
static void likelihoods(void **state)
{
    (void)state;
    enum { PICTURES = 4, TOKENS = 256 };
    static const int64_t labels[PICTURES] = {0, 5, 11, 18};
    static int64_t codes[PICTURES * TOKENS];
    const aim_weights weights[] = {AIM_WEIGHTS_F32, AIM_WEIGHTS_F32, AIM_WEIGHTS_BF16};
    double nll[3];
    struct side sides[2];
    if (!open_sides("tiny-group", sides)) skip();
    aim_generate_options how = aim_generate_defaults();
    how.cfg = 1;
    how.codes_only = 1;
    for (int i = 0; i < 3; i++) {
        aim_context *ctx = sides[i > 0].ctx;
        aim_model *model = demo_model(ctx, weights[i]);
        if (i == 0) assert_ok(ctx, aim_generate(model, labels, PICTURES, &how, codes, NULL));
        assert_ok(ctx, aim_score(model, codes, labels, PICTURES, &nll[i], NULL, NULL));
        aim_model_free(model);
    }
    print_message("nll of the CPU %.6f, of the device %.6f, with bf16 %.6f\n", nll[0], nll[1], nll[2]);
    assert_true(fabs(nll[1] - nll[0]) < 5e-5 * nll[0]);
    assert_true(fabs(nll[2] - nll[0]) < 2e-3 * nll[0]);
    close_sides(sides);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(gradients_of_stage_2), cmocka_unit_test(gradients_of_stage_1),
                                       cmocka_unit_test(likelihoods)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
