/* How good a tokenizer is: its reconstructions of held-out pictures, measured and shown. */
#ifndef AIM_TRAIN_VQ_QUALITY_H
#define AIM_TRAIN_VQ_QUALITY_H

#include "train/vq_trainer.h"

/* Pictures that a measurement looks at, at most: evenly spread over those that there are. */
enum { QUALITY_MOST = 2048 };

/* Averages over pictures, compared as bytes after LlamaGen's rule. */
struct vq_quality {
    double psnr;
    double ssim, ssim_llamagen; /* data range 1, which is correct, and LlamaGen's 2 */
    double usage, perplexity;   /* of the codes that the pictures took */
};

/* Of the weights as RUN/model would have them, averaged ones when there are. */
aim_status vq_quality_measure(struct vq_trainer *t, const struct dataset *pictures, struct vq_quality *q);

/* Fills images (2 count), which the caller frees: pictures spread over the set, then their reconstructions. *found may be
 * less than count. */
aim_status vq_quality_samples(struct vq_trainer *t, const struct dataset *pictures, int count, aim_image *images, int *found);

#endif
