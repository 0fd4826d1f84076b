/*
 * What training runs of both stages have in common: options, the folder, going on after a stop, and the loop itself. A
 * stage says what its step, evaluation, sample pictures and state are.
 */
#ifndef AIM_TRAIN_LOOP_H
#define AIM_TRAIN_LOOP_H

#include "tensor/backend.h"
#include "train/optimizer.h"
#include "train/options_json.h"
#include "train/run.h"

#define LOOP_MODEL "model" /* RUN/model */

/* A stage's part; `trainer` is struct loop's. */
struct loop_stage {
    aim_status (*step)(void *trainer);     /* takes step loop->step, logs it as loop->step + 1, sets loop->loss */
    aim_status (*evaluate)(void *trainer); /* on held-out data */
    aim_status (*paint)(void *trainer);    /* samples */
    aim_status (*snapshot)(void *trainer, aim_model **model); /* the model as it is given out; ended in every case */
    void (*snapshot_end)(void *trainer);
    aim_status (*state)(void *trainer, struct checkpoint *list); /* appends what a checkpoint needs beside the step */
    aim_status (*load)(void *trainer, const struct tensor_file *file, const char *path); /* and takes it back */
    const struct curve_panel *panels;
    size_t panel_count;
};

struct loop {
    aim_context *ctx;
    aim_train_options *options; /* of the whole run, which must outlive the loop */
    const struct loop_stage *stage;
    void *trainer;
    struct exec *ex;
    struct run run;
    struct options_memory memory; /* of options read back */
    char *saved_model;            /* RUN/model, when training goes on from a checkpoint */
    int64_t step, steps;          /* done; in all */
    int64_t phase;                /* what is still due after the last one */
    double loss;                  /* of the last step */
};

/* What both stages want of their options. */
aim_status loop_check(aim_context *ctx, const aim_train_options *o);

/* Steps of a run through `pictures` pictures. */
int64_t loop_steps(const aim_train_options *o, int64_t pictures);

/*
 * Opens a run to go on with, and reads its options back: loop->options is the beginning of a struct that holds the
 * defaults but for `run` and `dry_run`, which stay; tables as in options_read. With a checkpoint, `init` becomes the model
 * beside it, which has the run's sizes, and loop->saved_model is set.
 */
aim_status loop_recall(struct loop *l, const struct option_field *const *tables);

/* Makes the folder of a new run, and notes its options there; nothing for a run that goes on. */
aim_status loop_open(struct loop *l, const struct option_field *const *tables);

/* Takes state and step from the checkpoint that a run goes on from; nothing when there is none. */
aim_status loop_restore(struct loop *l);

/* The steps that are left, with evaluations, samples and checkpoints as the options want them. A wish of the progress
 * callback to stop leaves a checkpoint. */
aim_status loop_run(struct loop *l);

void loop_close(struct loop *l);

/*
 * Has `step` take one step on a backend that only counts, in place of the context's, and tells the bytes that took, added to
 * report->total (zero, or what the plan does not see), and activations: what parameters, gradients and optimizer, which
 * `step` sets, leave of it. `clear` frees
 * what step made.
 */
aim_status loop_plan(aim_context *ctx, aim_status (*step)(void *trainer, aim_train_report *report),
                     void (*clear)(void *trainer), void *trainer, aim_train_report *report);

#endif
