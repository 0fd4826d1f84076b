/* One training run of stage 1: its parts, and what a step of it is. train_vq.c runs the loop. */
#ifndef AIM_TRAIN_VQ_TRAINER_H
#define AIM_TRAIN_VQ_TRAINER_H

#include "train/codebook.h"
#include "train/loader.h"
#include "train/optimizer.h"
#include "train/vq_start.h"
#include "train/vq_step.h"

struct vq_trainer {
    aim_context *ctx;
    aim_train_tokenizer_options o; /* complete: no 0 that stands for a default */
    int64_t steps;
    int64_t part;      /* pictures that are worked out together: batch / accumulate */
    int64_t codes;     /* of a picture */
    aim_model *source; /* init, or NULL */
    aim_model *model;  /* what is trained: configuration; its table has values during a snapshot alone */
    struct dataset pictures, held_out;
    struct loader *loader;
    struct exec ex;
    struct vq *vq;
    struct lpips *lpips;
    struct params judge_table; /* the discriminator's */
    struct discriminator *judge;
    struct vq_loss loss;
    struct optimizer generator, discriminator;
    struct schedule schedule;
    struct guard guard;
    struct codebook_usage usage;   /* since the last revival, or without revival the last evaluation */
    struct tensor *queue, *counts; /* the usage in a checkpoint */
    struct tensor **x, **fake;     /* (accumulate): the parts of a batch and their reconstructions, during a step */
    uint8_t *bytes;                /* (batch, size, size, 3), and what op_pictures may read beyond */
    int32_t *labels, *ids;         /* (batch), (part, codes) */
};

/* From the table's values: the trainable networks, the losses and the optimizers; the values are given back. */
aim_status vq_trainer_build(struct vq_trainer *t);

/* Frees what vq_trainer_build made. */
void vq_trainer_clear(struct vq_trainer *t);

/* Codes from encoded pictures, as the options want them; the first batches of the run. */
aim_status vq_trainer_start_codebook(struct vq_trainer *t);

/* Opens the stream of pictures at step 0, 1, ... */
aim_status vq_trainer_start_data(struct vq_trainer *t, int64_t step);

/* What a step did. */
struct vq_did {
    struct vq_step_values values; /* averages over the parts */
    double norm, judge_norm, lr;  /* of the gradients before clipping; NaN when there was none */
    int64_t revived;
};

/* Step 0, 1, ...: its batch, then vq_trainer_update. */
aim_status vq_trainer_step(struct vq_trainer *t, int64_t step, struct vq_did *did);

/* Both halves of a step on t->bytes; a pure function of them, the state and the step. */
aim_status vq_trainer_update(struct vq_trainer *t, int64_t step, struct vq_did *did);

/* Everything but the step number. */
aim_status vq_trainer_save(struct vq_trainer *t, struct checkpoint *list);
aim_status vq_trainer_load(struct vq_trainer *t, const struct tensor_file *file, const char *path);

/* Puts the weights, averaged ones when there are, into the model's table, so that t->model can be saved and can work. */
aim_status vq_trainer_snapshot(struct vq_trainer *t);
void vq_trainer_snapshot_end(struct vq_trainer *t);

/* The bytes of a step, found by taking one on a backend that only counts; the model's table has no values. */
aim_status vq_trainer_plan(struct vq_trainer *t, aim_train_report *report);

#endif
