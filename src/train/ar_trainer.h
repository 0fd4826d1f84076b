/* One training run of stage 2: its parts, and what a step of it is. train_ar.c runs the loop. */
#ifndef AIM_TRAIN_AR_TRAINER_H
#define AIM_TRAIN_AR_TRAINER_H

#include "tensor/tape.h"
#include "train/ar_start.h"
#include "train/optimizer.h"

struct ar_trainer {
    aim_context *ctx;
    aim_train_ar_options o; /* complete: no 0 that stands for a default */
    int64_t steps, tokens;
    int64_t part;      /* samples that are worked out together: batch / accumulate */
    aim_model *source; /* init, or the tokenizer; NULL with neither */
    aim_model *model;  /* what is trained: configuration, tokenizer; its table has values during a snapshot alone */
    struct ar_data data;
    struct exec ex;
    struct ar *ar;
    struct optimizer optimizer;
    struct schedule schedule;
    struct guard guard;
    int32_t *codes, *labels; /* (batch, T), (batch) */
    float *losses;           /* (part, T) */
};

/* From the table's values: the trainable network and its optimizer; the values are given back. */
aim_status ar_trainer_build(struct ar_trainer *t);

/* Frees what ar_trainer_build made. */
void ar_trainer_clear(struct ar_trainer *t);

/* What a step did. */
struct ar_step {
    double loss, norm, lr; /* nats per token; of the gradient before clipping */
};

/* Step 0, 1, ...: its batch, then ar_trainer_update. */
aim_status ar_trainer_step(struct ar_trainer *t, int64_t step, struct ar_step *did);

/* Forward, backward and AdamW on t->codes and t->labels; a pure function of them, the weights and the step. */
aim_status ar_trainer_update(struct ar_trainer *t, int64_t step, struct ar_step *did);

/* Mean negative log-likelihood of the held-out codes, nats per token, with their classes or with the null class. */
aim_status ar_trainer_evaluate(struct ar_trainer *t, bool null_class, double *nll);

/* Puts the weights, averaged ones when there are, into the model's table, so that t->model can be saved and can paint. */
aim_status ar_trainer_snapshot(struct ar_trainer *t);
void ar_trainer_snapshot_end(struct ar_trainer *t);

/* The bytes of a step, found by taking one on a backend that only counts; the model's table has no values. */
aim_status ar_trainer_plan(struct ar_trainer *t, aim_train_report *report);

#endif
