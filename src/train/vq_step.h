/*
 * The two halves of a stage-1 step (spec E2), up to the gradients: what is left to the trainer is to clip, to take the
 * optimizers' steps, and to average. In order:
 *
 *     vq_step_generator       gradients of encoder, codebook and decoder
 *     the generator's optimizer step
 *     vq_step_discriminator   of the same reconstruction, while vq_loss_lambda is above 0
 *     the discriminator's optimizer step
 *
 * Gradients are added to those there are: batches in parts pass scale = 1 / parts.
 */
#ifndef AIM_TRAIN_VQ_STEP_H
#define AIM_TRAIN_VQ_STEP_H

#include "train/vq_loss.h"

/* For the log; terms as they stand in the sum, 0 where they are off. */
struct vq_step_values {
    double loss, l2, l1, perceptual, adversarial, codebook, commit, entropy;
    double adaptive;                  /* the adversarial term's adaptive weight */
    double discriminator, real, fake; /* its loss, and its mean logits */
};

/*
 * Forward, loss, backward. x (N,3,H,W); *fake its reconstruction, the caller's, without gradient; ids (N h w) the chosen
 * codes, for codebook_usage_add, in the host's memory. Sets the generator's fields of *values. On failure *fake is NULL.
 */
aim_status vq_step_generator(struct exec *ex, const struct vq *vq, const struct vq_loss *loss, const struct tensor *x,
                             int64_t step, float scale, struct tensor **fake, int32_t *ids, struct vq_step_values *values);

/* The same for the discriminator, to be called while vq_loss_lambda is above 0; sets its fields of *values. */
aim_status vq_step_discriminator(struct exec *ex, const struct vq_loss *loss, const struct tensor *x, const struct tensor *fake,
                                 int64_t step, float scale, struct vq_step_values *values);

#endif
