/*
 * What a tokenizer learns from (spec E2): reconstruction, perceptual and adversarial terms, those of the quantiser; and what
 * the discriminator learns from. The adversarial losses are the correct ones: LlamaGen's "non-saturating" has its arguments
 * swapped, so that its discriminator's fake term has no gradient, and is not reproduced.
 */
#ifndef AIM_TRAIN_VQ_LOSS_H
#define AIM_TRAIN_VQ_LOSS_H

#include "model/vq.h"
#include "train/discriminator.h"
#include "train/lpips.h"

enum adversarial {
    ADVERSARIAL_HINGE,   /* generator: -mean D(x̂); discriminator: ½ (mean relu(1 - D(x)) + mean relu(1 + D(x̂))) */
    ADVERSARIAL_SOFTPLUS /* non-saturating: mean ln(1 + e^-D(x̂)); ½ (mean ln(1 + e^-D(x)) + mean ln(1 + e^D(x̂))) */
};

struct vq_loss_options {
    float l2, l1;           /* weights of mean (x - x̂)² and of mean |x - x̂| */
    float perceptual;       /* of LPIPS */
    float adversarial;      /* λ, once the discriminator has started */
    float codebook, commit; /* of the quantiser's terms; commit multiplies 0.25 */
    float entropy;          /* of the entropy term; 0: not computed */
    float entropy_temperature;
    enum adversarial generator, discriminator;
    int64_t start, warmup; /* the step from which on λ counts (the first step is 1), and over how many steps it grows to that */
    bool adaptive;         /* weigh the adversarial term by the gradients' lengths at the decoder's last convolution */
    bool dropout;          /* in LPIPS, as LlamaGen trains (spec I-14) */
    uint64_t seed;         /* of the dropout */
};

/* LlamaGen's recipe as coded: l2 1, LPIPS 1, hinge 0.5 from step 20,000 on, no adaptive weight, no entropy; without dropout. */
struct vq_loss_options vq_loss_defaults(void);

/* Borrowed by the losses; what is NULL takes no part. */
struct vq_loss {
    struct vq_loss_options options;
    const struct lpips *lpips;
    struct discriminator *discriminator;
};

/* λ at a step: 0 before the start and without a discriminator; then there is nothing to train it with. */
float vq_loss_lambda(const struct vq_loss *loss, int64_t step);

/* The terms as they stand in the sum, one value each, NULL where one is switched off; freed with vq_loss_parts_clear. */
struct vq_loss_parts {
    struct tensor *l2, *l1, *perceptual, *adversarial, *codebook, *commit, *entropy;
    float adaptive; /* the adaptive weight, 1 when off */
};
void vq_loss_parts_clear(struct vq_loss_parts *parts);

/*
 * The generator's loss, one value, recorded when ex has a tape. x and fake = x̂ (N,3,H,W) and `training` come from
 * vq_train_forward of vq. The discriminator's parameters get no gradients until vq_loss_discriminator is called. With the
 * adaptive weight the terms of x̂ are walked back to it at once, and the loss takes gradients of it for granted: it must be
 * walked back with a weight that the host knows (tape_backward's scale). On failure NULL, and parts are cleared.
 */
struct tensor *vq_loss_generator(struct exec *ex, const struct vq_loss *loss, const struct vq *vq, const struct tensor *x,
                                 const struct tensor *fake, const struct vq_training *training, int64_t step,
                                 struct vq_loss_parts *parts);

/*
 * The discriminator's loss λ ½ (real + fake), one value, recorded when ex has a tape; fake is taken as a constant. The mean
 * logits of both are for the log and the caller's. To be called while λ > 0 only. On failure NULL, and NULL logits.
 */
struct tensor *vq_loss_discriminator(struct exec *ex, const struct vq_loss *loss, const struct tensor *x,
                                     const struct tensor *fake, int64_t step, struct tensor **real_logit,
                                     struct tensor **fake_logit);

#endif
