#include "train/vq_step.h"

#include "tensor/tape.h"

/* The one value of t, 0 for a term that is off. */
static double value_of(struct exec *ex, const struct tensor *t)
{
    float value = 0;
    if (!t || ex->status != AIM_OK) return 0;
    aim_status status = tensor_read(ex, t, &value);
    if (status != AIM_OK) exec_fail(ex, status);
    return (double)value;
}

static void read_parts(struct exec *ex, const struct vq_loss_parts *parts, struct vq_step_values *values)
{
    values->l2 = value_of(ex, parts->l2);
    values->l1 = value_of(ex, parts->l1);
    values->perceptual = value_of(ex, parts->perceptual);
    values->adversarial = value_of(ex, parts->adversarial);
    values->codebook = value_of(ex, parts->codebook);
    values->commit = value_of(ex, parts->commit);
    values->entropy = value_of(ex, parts->entropy);
    values->adaptive = (double)parts->adaptive;
}

aim_status vq_step_generator(struct exec *ex, const struct vq *vq, const struct vq_loss *loss, const struct tensor *x,
                             int64_t step, float scale, struct tensor **fake, int32_t *ids, struct vq_step_values *values)
{
    struct tape tape;
    struct vq_training training;
    struct vq_loss_parts parts = {0};
    struct tensor *sum = NULL;
    *values = (struct vq_step_values){0};
    tape_start(&tape, ex);
    *fake = vq_train_forward(ex, vq, x, &training);
    if (*fake) sum = vq_loss_generator(ex, loss, vq, x, *fake, &training, step, &parts);
    values->loss = value_of(ex, sum);
    read_parts(ex, &parts, values);
    if (sum && ex->status == AIM_OK) {
        aim_status status = tensor_read(ex, training.ids, ids);
        if (status != AIM_OK) exec_fail(ex, status);
    }
    vq_loss_parts_clear(&parts);
    vq_training_clear(&training); /* before the walk back, which frees what it has passed */
    if (sum && ex->status == AIM_OK) tape_backward(&tape, sum, scale);
    tape_stop(&tape);
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
    tape_start(&tape, ex);
    struct tensor *sum = vq_loss_discriminator(ex, loss, x, fake, step, &real_logit, &fake_logit);
    values->discriminator = value_of(ex, sum);
    values->real = value_of(ex, real_logit);
    values->fake = value_of(ex, fake_logit);
    if (sum && ex->status == AIM_OK) tape_backward(&tape, sum, scale);
    tape_stop(&tape);
    tensor_drop(sum);
    tensor_drop(real_logit);
    tensor_drop(fake_logit);
    return ex->status;
}
