/* The gradients of the tokenizer's losses with respect to every parameter, through the tape, against the golden ones. */
#include "golden/golden.h"

#include "cpu/cpu.h"
#include "tensor/tape.h"

/*
 * Each gradient against the float64 one, relative to its own largest value. Some are zero by mathematics: a bias in front
 * of a GroupNorm of one channel a group, the bias of attention's keys. There the golden value is float64's rounding, and
 * ours float32's: sums over all pixels of terms up to the size of other gradients, which cancel to 1e-7 of these.
 */
static const double vanishing = 1e-9, vanishing_tolerance = 1e-6; /* of the network's largest gradient */

/* Where and how the gradients are computed. */
struct way {
    const char *tier;
    int threads;
    bool library;
};

struct run {
    aim_context *ctx;
    struct tensor_file file;
    aim_model *model;
    struct vq *vq;
    struct exec ex;
};

static void run_open(struct run *r, const struct way *way)
{
    aim_context_options options = aim_context_defaults();
    options.cpu = way->tier;
    options.threads = way->threads;
    assert_ok(r->ctx, aim_context_create(&options, &r->ctx));
    const char *name;
    if (!way->library) assert_ok(r->ctx, cpu_fill(r->ctx, way->tier, &r->ctx->backend->op, &name));
    golden_open(r->ctx, "tiny-group/expected_vq.safetensors", &r->file);
    r->model = golden_model(r->ctx, "tiny-group", 0, AIM_WEIGHTS_F32);
    assert_ok(r->ctx, vq_build_trainable(&r->model->config.vq, &r->model->vq_table, &r->vq));
    exec_init(&r->ex, r->ctx);
}

static void run_close(struct run *r)
{
    vq_free(r->vq);
    exec_clear(&r->ex);
    aim_model_free(r->model);
    tensor_file_close(&r->file);
    assert_int_equal(r->ctx->memory.used[MEM_WEIGHTS] + r->ctx->memory.used[MEM_ACTIVATIONS], 0);
    aim_context_free(r->ctx);
}

static void check_loss(struct run *r, const char *name, const struct tensor *loss)
{
    float *want = golden_f32(r->ctx, &r->file, name, NULL);
    assert_true(fabsf(f32(loss)[0] - want[0]) <= (float)GOLDEN_TOLERANCE * want[0]);
    mem_free(want);
}

/* Forward, the three losses, backward of their sum. */
static void differentiate(struct run *r)
{
    struct exec *ex = &r->ex;
    float *image = golden_f32(r->ctx, &r->file, "image", NULL);
    struct tensor picture = tensor_view(T_F32, image, 1, 3, 64, 64);
    struct tape tape;
    struct vq_training training;
    tape_start(&tape, ex);
    struct tensor *pixels = vq_train_forward(ex, r->vq, &picture, &training);
    struct tensor *mse = op_mean_square(ex, pixels, &picture, 1.0f), *some = op_add(ex, mse, training.vq);
    struct tensor *all = op_add(ex, some, training.commit);
    assert_ok(r->ctx, ex->status);
    check_loss(r, "loss_mse", mse);
    check_loss(r, "loss_vq", training.vq);
    check_loss(r, "loss_commit", training.commit);
    assert_ok(r->ctx, tape_backward(&tape, all, 1.0f));
    struct tensor *done[] = {pixels, mse, some, all};
    for (size_t i = 0; i < sizeof done / sizeof done[0]; i++) tensor_drop(done[i]);
    vq_training_clear(&training);
    tape_stop(&tape);
    mem_free(image);
}

static float *wanted(struct run *r, size_t i, size_t *count)
{
    char name[128];
    snprintf(name, sizeof name, "grad.%s", r->model->vq_table.items[i].name + strlen(VQ_PREFIX));
    return golden_f32(r->ctx, &r->file, name, count);
}

static double largest_of(const float *values, size_t count)
{
    double largest = 0;
    for (size_t i = 0; i < count; i++) largest = fmax(largest, fabs((double)values[i]));
    return largest;
}

static void check_gradients(struct run *r, const char *way)
{
    double largest = 0, worst = 0, residue = 0;
    size_t count;
    for (size_t i = 0; i < r->vq->tensor_count; i++) {
        float *want = wanted(r, i, &count);
        largest = fmax(largest, largest_of(want, count));
        mem_free(want);
    }
    for (size_t i = 0; i < r->vq->tensor_count; i++) {
        const struct tensor *t = r->vq->tensors[i];
        const char *name = r->model->vq_table.items[i].name;
        float *want = wanted(r, i, &count);
        assert_int_equal(count, tensor_count(t));
        if (!t->grad) fail_msg("no gradient has arrived at %s", name);
        double gap = 0, own = largest_of(want, count);
        for (size_t k = 0; k < count; k++) {
            double d = fabs((double)f32(t->grad)[k] - (double)want[k]);
            if (!(d <= gap)) gap = d; /* a NaN sticks */
        }
        if (own > vanishing * largest) {
            if (!(gap <= GOLDEN_TOLERANCE * own)) fail_msg("%s: relative error %.2g", name, gap / own);
            worst = fmax(worst, gap / own);
        } else {
            if (!(gap <= vanishing_tolerance * largest)) fail_msg("%s should vanish, and is %.2g", name, gap);
            residue = fmax(residue, gap / largest);
        }
        mem_free(want);
    }
    print_message("%s: worst relative error of a gradient %.2g; vanishing ones, of the largest: %.2g\n", way, worst, residue);
}

/* Near the golden gradients, and the same bits with one thread and two. */
static void check_tier(const char *tier, bool library)
{
    struct run one, two;
    run_open(&one, &(struct way){tier, 1, library});
    run_open(&two, &(struct way){tier, 2, library});
    differentiate(&one);
    check_gradients(&one, library ? aim_context_device(one.ctx) : tier ? tier : "best tier, plain C");
    differentiate(&two);
    for (size_t i = 0; i < one.vq->tensor_count; i++) {
        const struct tensor *a = one.vq->tensors[i]->grad, *b = two.vq->tensors[i]->grad;
        if (memcmp(a->data, b->data, (size_t)tensor_count(a) * sizeof(float)) != 0)
            fail_msg("%s: other bits with two threads", one.model->vq_table.items[i].name);
    }
    run_close(&one);
    run_close(&two);
}

static void best_tier(void **state)
{
    (void)state;
    check_tier(NULL, true);
    check_tier(NULL, false);
}

static void generic_tier(void **state)
{
    (void)state;
    check_tier("generic", false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(best_tier), cmocka_unit_test(generic_tier)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
