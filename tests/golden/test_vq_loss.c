/* The tokenizer's and the discriminator's losses on a small tokenizer: the terms, when they count, the adaptive weight. */
#include "golden/golden.h"

#include "tensor/tape.h"
#include "train/vq_step.h"

struct fixture {
    aim_context *ctx;
    struct tensor_file file;
    aim_model *model;
    struct vq *vq;
    struct exec ex;
    struct params table;
    struct discriminator *d;
    struct tensor *x;
};

static void open_fixture(struct fixture *f)
{
    const struct discriminator_config config = {.kind = DISCRIMINATOR_PATCH, .channels = 64};
    f->ctx = golden_context(2);
    golden_open(f->ctx, "tiny-group/expected_vq.safetensors", &f->file);
    f->model = golden_model(f->ctx, "tiny-group", 0, AIM_WEIGHTS_F32);
    assert_ok(f->ctx, vq_build_trainable(&f->model->config.vq, &f->model->vq_table, &f->vq));
    exec_init(&f->ex, f->ctx);
    f->table = (struct params){.ctx = f->ctx, .prefix = ""};
    assert_ok(f->ctx, discriminator_describe(&config, &f->table));
    assert_ok(f->ctx, params_init(&f->table, 1));
    assert_ok(f->ctx, discriminator_build(&config, &f->table, &f->d));
    float *image = golden_f32(f->ctx, &f->file, "image", NULL);
    f->x = tensor_from_host(&f->ex, T_F32, SHAPE(1, 3, 64, 64), image);
    assert_ok(f->ctx, f->ex.status);
    mem_free(image);
}

static void close_fixture(struct fixture *f)
{
    tensor_drop(f->x);
    discriminator_free(f->d);
    params_free(&f->table);
    vq_free(f->vq);
    exec_clear(&f->ex);
    aim_model_free(f->model);
    tensor_file_close(&f->file);
    assert_int_equal(f->ctx->memory.used[MEM_WEIGHTS] + f->ctx->memory.used[MEM_ACTIVATIONS], 0);
    aim_context_free(f->ctx);
}

static double value(struct fixture *f, const struct tensor *t)
{
    float v = 0;
    assert_non_null(t);
    assert_int_equal(tensor_count(t), 1);
    assert_ok(f->ctx, tensor_read(&f->ex, t, &v));
    return (double)v;
}

static double golden_value(struct fixture *f, const char *name)
{
    float *v = golden_f32(f->ctx, &f->file, name, NULL);
    double first = (double)v[0];
    mem_free(v);
    return first;
}

static void near(double got, double want, double tolerance)
{
    if (!(fabs(got - want) <= tolerance * fabs(want))) fail_msg("%.9g, not %.9g", got, want);
}

/* The length of the gradient at the decoder's last filters, which is forgotten, as all others are. */
static double last_length(struct fixture *f)
{
    const struct tensor *w = f->vq->decoder.conv_out.w;
    double squares = 0;
    float *values = mem_array(f->ctx, (size_t)tensor_count(w), sizeof *values, MEM_MISC);
    assert_non_null(w->grad);
    assert_ok(f->ctx, tensor_read(&f->ex, w->grad, values));
    for (int64_t i = 0; i < tensor_count(w); i++) squares += (double)values[i] * (double)values[i];
    for (size_t i = 0; i < f->vq->tensor_count; i++) tensor_clear_grad(f->vq->tensors[i]);
    mem_free(values);
    return sqrt(squares);
}

/* One generator step: the terms; the gradient's length at the last filters when it is wanted. */
static double generate(struct fixture *f, const struct vq_loss *loss, int64_t step, struct vq_loss_parts *parts, double *length)
{
    struct tape tape;
    struct vq_training training;
    tape_start(&tape, &f->ex);
    struct tensor *fake = vq_train_forward(&f->ex, f->vq, f->x, &training);
    struct tensor *all = vq_loss_generator(&f->ex, loss, f->vq, f->x, fake, &training, step, parts);
    assert_ok(f->ctx, f->ex.status);
    double sum = value(f, all);
    assert_ok(f->ctx, tape_backward(&tape, all, 1));
    for (size_t i = 0; i < f->d->trainable_count; i++) assert_null(f->d->trainable[i]->grad);
    tape_stop(&tape);
    vq_training_clear(&training);
    tensor_drop(all);
    tensor_drop(fake);
    double found = last_length(f);
    if (length) *length = found;
    return sum;
}

static void lambda(void **state)
{
    (void)state;
    struct discriminator d = {0};
    struct vq_loss loss = {.options = vq_loss_defaults(), .discriminator = &d};
    assert_true(vq_loss_lambda(&loss, 19999) == 0 && vq_loss_lambda(&loss, 20000) == 0.5f);
    loss.options.warmup = 4;
    assert_true(vq_loss_lambda(&loss, 20000) == 0.125f && vq_loss_lambda(&loss, 20002) == 0.375f);
    assert_true(vq_loss_lambda(&loss, 20003) == 0.5f && vq_loss_lambda(&loss, 90000) == 0.5f);
    loss.discriminator = NULL;
    assert_true(vq_loss_lambda(&loss, 90000) == 0);
}

/* The golden terms, and their sum; the adversarial one from its step on. */
static void terms(void **state)
{
    (void)state;
    struct fixture f;
    struct vq_loss_parts parts;
    open_fixture(&f);
    struct vq_loss loss = {.options = vq_loss_defaults(), .discriminator = f.d};
    double sum = generate(&f, &loss, 1, &parts, NULL);
    near(value(&f, parts.l2), golden_value(&f, "loss_mse"), GOLDEN_TOLERANCE);
    near(value(&f, parts.codebook), golden_value(&f, "loss_vq"), GOLDEN_TOLERANCE);
    near(value(&f, parts.commit), golden_value(&f, "loss_commit"), GOLDEN_TOLERANCE);
    assert_true(!parts.l1 && !parts.perceptual && !parts.adversarial && !parts.entropy);
    near(sum, value(&f, parts.l2) + value(&f, parts.codebook) + value(&f, parts.commit), 1e-6);
    vq_loss_parts_clear(&parts);

    loss.options.l1 = 2;
    loss.options.entropy = 0.1f;
    loss.options.generator = ADVERSARIAL_SOFTPLUS;
    sum = generate(&f, &loss, 20000, &parts, NULL);
    assert_true(value(&f, parts.adversarial) > 0 && value(&f, parts.l1) > 0);
    near(sum,
         value(&f, parts.l2) + value(&f, parts.l1) + value(&f, parts.codebook) + value(&f, parts.commit) +
             value(&f, parts.adversarial) + value(&f, parts.entropy),
         1e-6);
    vq_loss_parts_clear(&parts);
    close_fixture(&f);
}

/* The weight is the quotient of two lengths that whole backward passes, one for each loss alone, give; and with it the
 * gradient is what that weight gives when it is no adaptive one. */
static void adaptive(void **state)
{
    (void)state;
    struct fixture f;
    struct vq_loss_parts parts;
    open_fixture(&f);
    struct vq_loss loss = {.options = vq_loss_defaults(), .discriminator = f.d};
    double of_likeness, of_adversarial, adapted, fixed;
    loss.options.codebook = loss.options.commit = 0; /* these do not reach the decoder */
    generate(&f, &loss, 1, &parts, &of_likeness);
    vq_loss_parts_clear(&parts);
    loss.options.l2 = 0;
    loss.options.adversarial = 1;
    generate(&f, &loss, 20000, &parts, &of_adversarial);
    vq_loss_parts_clear(&parts);
    loss.options = vq_loss_defaults();
    loss.options.adaptive = true;
    double sum = generate(&f, &loss, 20000, &parts, &adapted);
    print_message("adaptive weight %.6g\n", (double)parts.adaptive);
    near((double)parts.adaptive, of_likeness / (of_adversarial + 1e-4), 1e-5);
    loss.options.adaptive = false;
    loss.options.adversarial *= parts.adaptive;
    vq_loss_parts_clear(&parts);
    near(generate(&f, &loss, 20000, &parts, &fixed), sum, 1e-6);
    near(adapted, fixed, 1e-5);
    vq_loss_parts_clear(&parts);
    close_fixture(&f);
}

/* Real and fake alike, each loss is what its logits give; the discriminator alone gets gradients. */
static void discriminator(void **state)
{
    (void)state;
    struct fixture f;
    open_fixture(&f);
    struct vq_loss loss = {.options = vq_loss_defaults(), .discriminator = f.d};
    for (int kind = ADVERSARIAL_HINGE; kind <= ADVERSARIAL_SOFTPLUS; kind++) {
        struct tape tape;
        struct tensor *real, *fake;
        loss.options.discriminator = (enum adversarial)kind;
        f.x->needs_grad = true; /* as a reconstruction's is */
        tape_start(&tape, &f.ex);
        struct tensor *all = vq_loss_discriminator(&f.ex, &loss, f.x, f.x, 20000, &real, &fake);
        assert_ok(f.ctx, f.ex.status);
        assert_ok(f.ctx, tape_backward(&tape, all, 1));
        tape_stop(&tape);
        near(value(&f, real), value(&f, fake), 1e-6);
        if (kind == ADVERSARIAL_HINGE) assert_true(value(&f, all) >= 0.5 - 1e-6); /* λ ½ ((1 - D)₊ + (1 + D)₊) */
        if (kind == ADVERSARIAL_SOFTPLUS) assert_true(value(&f, all) >= 0.5 * log(2) - 1e-6);
        for (size_t i = 0; i < f.d->trainable_count; i++) {
            assert_non_null(f.d->trainable[i]->grad);
            tensor_clear_grad(f.d->trainable[i]);
        }
        tensor_clear_grad(f.x);
        tensor_drop(all);
        tensor_drop(real);
        tensor_drop(fake);
    }
    close_fixture(&f);
}

/* Moves tensors against their gradients, which are forgotten. */
static void descend(struct fixture *f, struct tensor *const *list, size_t count, float rate)
{
    for (size_t i = 0; i < count; i++) {
        struct tensor *t = list[i];
        if (!t->grad) continue;
        size_t n = (size_t)tensor_count(t);
        float *values = mem_array(f->ctx, n, sizeof *values, MEM_MISC), *slope = mem_array(f->ctx, n, sizeof *slope, MEM_MISC);
        assert_ok(f->ctx, tensor_read(&f->ex, t, values));
        assert_ok(f->ctx, tensor_read(&f->ex, t->grad, slope));
        for (size_t k = 0; k < n; k++) values[k] -= rate * slope[k];
        assert_ok(f->ctx, tensor_write(&f->ex, t, values));
        tensor_clear_grad(t);
        mem_free(values);
        mem_free(slope);
    }
}

/* Both halves of a step, again and again: each network gets better at its own while the other stands still; a batch in two
 * parts gives the same gradients. */
static void steps(void **state)
{
    (void)state;
    struct fixture f;
    struct tensor *fake;
    struct vq_step_values first, last = {0};
    int32_t ids[16];
    open_fixture(&f);
    struct vq_loss loss = {.options = vq_loss_defaults(), .discriminator = f.d};
    assert_ok(f.ctx, vq_step_generator(&f.ex, f.vq, &loss, f.x, 20000, 1, &fake, ids, &first));
    near(first.loss, first.l2 + first.adversarial + first.codebook + first.commit, 1e-6);
    for (int i = 0; i < 16; i++) assert_in_range(ids[i], 0, 255);
    double whole = last_length(&f);
    for (int part = 0; part < 2; part++) {
        tensor_drop(fake);
        assert_ok(f.ctx, vq_step_generator(&f.ex, f.vq, &loss, f.x, 20000, 0.5f, &fake, ids, &last));
    }
    near(last_length(&f), whole, 1e-5);
    loss.options.adaptive = true;
    for (int parts = 1; parts <= 2; parts++) {
        for (int part = 0; part < parts; part++) {
            tensor_drop(fake);
            assert_ok(f.ctx, vq_step_generator(&f.ex, f.vq, &loss, f.x, 20000, 1.0f / (float)parts, &fake, ids, &last));
        }
        double length = last_length(&f);
        if (parts == 2) near(length, whole, 1e-5);
        whole = length;
    }
    for (int i = 0; i < 4; i++) {
        assert_ok(f.ctx, vq_step_discriminator(&f.ex, &loss, f.x, fake, 20000, 1, &last));
        if (i == 0) first.discriminator = last.discriminator;
        descend(&f, f.d->trainable, f.d->trainable_count, 0.02f);
    }
    print_message("discriminator's loss %.4f -> %.4f\n", first.discriminator, last.discriminator);
    assert_true(last.discriminator < first.discriminator && last.real > last.fake);
    loss.discriminator = NULL;
    for (int i = 0; i < 4; i++) {
        tensor_drop(fake);
        assert_ok(f.ctx, vq_step_generator(&f.ex, f.vq, &loss, f.x, 1, 1, &fake, ids, &last));
        if (i == 0) first = last;
        descend(&f, f.vq->tensors, f.vq->tensor_count, 0.02f);
    }
    print_message("reconstruction %.4f -> %.4f\n", first.l2, last.l2);
    assert_true(last.l2 < first.l2);
    tensor_drop(fake);
    close_fixture(&f);
}

/* Whichever allocation fails, both halves say so and keep nothing. */
static void out_of_memory(void **state)
{
    (void)state;
    struct fixture f;
    struct tensor *fake;
    struct vq_step_values values;
    int32_t ids[16];
    open_fixture(&f);
    struct vq_loss loss = {.options = vq_loss_defaults(), .discriminator = f.d};
    loss.options.adaptive = true;
    loss.options.entropy = 1;
    aim_status status = AIM_ERR_MEMORY;
    for (int64_t n = 0; status != AIM_OK; n = n * 3 + 1) {
        exec_clear(&f.ex); /* no buffers left over: every tensor asks for memory */
        f.ctx->memory.fail_after = n;
        status = vq_step_generator(&f.ex, f.vq, &loss, f.x, 20000, 1, &fake, ids, &values);
        if (status == AIM_OK) status = vq_step_discriminator(&f.ex, &loss, f.x, fake, 20000, 1, &values);
        if (status != AIM_OK) assert_int_equal(status, AIM_ERR_MEMORY);
        f.ctx->memory.fail_after = -1;
        tensor_drop(fake);
        for (size_t i = 0; i < f.vq->tensor_count; i++) tensor_clear_grad(f.vq->tensors[i]);
        for (size_t i = 0; i < f.d->trainable_count; i++) tensor_clear_grad(f.d->trainable[i]);
    }
    close_fixture(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(lambda),   cmocka_unit_test(terms),
                                       cmocka_unit_test(adaptive), cmocka_unit_test(discriminator),
                                       cmocka_unit_test(steps),    cmocka_unit_test(out_of_memory)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
