#include "train/vq_step.h"

#include "tensor/backend.h"
#include "tensor/tape.h"

/*
 * A step's numbers come to the host in one go, after the walk back has been put under way: on a device every look at a
 * single one would wait for all work before it. Here they gather; a term that is off is 0.
 */
enum { MOST_VALUES = 8 };

static struct tensor *gather(struct exec *ex, struct tensor *const *terms, int count)
{
    struct backend *be = ex->backend;
    struct tensor *values = tensor_new(ex, T_F32, SHAPE(MOST_VALUES));
    if (!values) return NULL;
    aim_status status = tensor_zero(ex, values);
    for (int i = 0; i < count && status == AIM_OK; i++)
        if (terms[i]) status = be->memory.copy(be, (float *)values->data + i, terms[i]->data, sizeof(float));
    if (status != AIM_OK) exec_fail(ex, status);
    return values;
}

/* Takes what was gathered. */
static void read_values(struct exec *ex, struct tensor *gathered, float values[MOST_VALUES])
{
    aim_status status = gathered && ex->status == AIM_OK ? tensor_read(ex, gathered, values) : AIM_OK;
    if (status != AIM_OK) exec_fail(ex, status);
    tensor_drop(gathered);
}

aim_status vq_step_generator(struct exec *ex, const struct vq *vq, const struct vq_loss *loss, const struct tensor *x,
                             int64_t step, float scale, struct tensor **fake, int32_t *ids, struct vq_step_values *values)
{
    struct tape tape;
    struct vq_training training;
    struct vq_loss_parts p = {0};
    struct tensor *sum = NULL;
    float v[MOST_VALUES] = {0};
    tape_start(&tape, ex);
    *fake = vq_train_forward(ex, vq, x, &training);
    if (*fake) sum = vq_loss_generator(ex, loss, vq, x, *fake, &training, step, &p);
    struct tensor *const terms[] = {sum, p.l2, p.l1, p.perceptual, p.adversarial, p.codebook, p.commit, p.entropy};
    struct tensor *gathered = sum ? gather(ex, terms, MOST_VALUES) : NULL, *chosen = tensor_keep(training.ids);
    double adaptive = (double)p.adaptive;
    vq_loss_parts_clear(&p);
    vq_training_clear(&training); /* before the walk back, which frees what it has passed */
    if (sum && ex->status == AIM_OK) tape_backward(&tape, sum, scale);
    tape_stop(&tape);
    read_values(ex, gathered, v);
    if (sum && ex->status == AIM_OK) {
        aim_status status = tensor_read(ex, chosen, ids);
        if (status != AIM_OK) exec_fail(ex, status);
    }
    *values = (struct vq_step_values){.loss = (double)v[0],
                                      .l2 = (double)v[1],
                                      .l1 = (double)v[2],
                                      .perceptual = (double)v[3],
                                      .adversarial = (double)v[4],
                                      .codebook = (double)v[5],
                                      .commit = (double)v[6],
                                      .entropy = (double)v[7],
                                      .adaptive = adaptive};
    tensor_drop(chosen);
    tensor_drop(sum);
    if (*fake) {
        tensor_clear_grad(*fake);
        (*fake)->needs_grad = false;
    }
    if (ex->status == AIM_OK) return AIM_OK;
    tensor_drop(*fake);
    *fake = NULL;
    return ex->status;
}

aim_status vq_step_discriminator(struct exec *ex, const struct vq_loss *loss, const struct tensor *x, const struct tensor *fake,
                                 int64_t step, float scale, struct vq_step_values *values)
{
    struct tape tape;
    struct tensor *real_logit, *fake_logit;
    float v[MOST_VALUES] = {0};
    tape_start(&tape, ex);
    struct tensor *sum = vq_loss_discriminator(ex, loss, x, fake, step, &real_logit, &fake_logit);
    struct tensor *const terms[] = {sum, real_logit, fake_logit};
    struct tensor *gathered = sum ? gather(ex, terms, 3) : NULL;
    tensor_drop(real_logit);
    tensor_drop(fake_logit);
    if (sum && ex->status == AIM_OK) tape_backward(&tape, sum, scale);
    tape_stop(&tape);
    read_values(ex, gathered, v);
    values->discriminator = (double)v[0];
    values->real = (double)v[1];
    values->fake = (double)v[2];
    tensor_drop(sum);
    return ex->status;
}
