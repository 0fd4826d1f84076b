/*
 * AdamW over the trainable tensors of a network: which of them decay, moments and averages, the schedule of the learning
 * rate, and what happens to steps that went wrong. A run may hold several (generator and discriminator).
 */
#ifndef AIM_TRAIN_OPTIMIZER_H
#define AIM_TRAIN_OPTIMIZER_H

#include "model/params.h"
#include "tensor/backend.h"
#include "train/checkpoint.h"

/* ---- the learning rate */

struct schedule {
    aim_schedule kind;
    double lr, least; /* cosine ends at `least`, linear at 0 */
    int64_t warmup;   /* steps that climb from lr / warmup to lr */
    int64_t steps;    /* of the whole run */
};

/*
 * The rate of step 0, 1, ... steps-1. Linear is Hugging Face's: after the warm-up, lr (steps - step) / (steps - warmup), so
 * that the first step has lr and the rate would be 0 one step after the last.
 */
double schedule_rate(const struct schedule *s, int64_t step);

/* ---- the optimizer */

struct optimizer_options {
    double beta1, beta2, eps;
    double decay; /* of tensors that decay */
    double clip;  /* largest norm of all gradients together; 0 = no limit */
    double ema;   /* decay of the averaged weights; 0 = none are kept */
};

/* AiM's stage 2 (spec A2). */
static inline struct optimizer_options optimizer_defaults(void)
{
    return (struct optimizer_options){.beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .decay = 0.05, .clip = 1};
}

struct optimizer {
    struct exec *ex;
    const char *name; /* what checkpoints call it: "generator", "discriminator" */
    struct optimizer_options options;
    size_t count, capacity;
    struct adamw_slot *slots;
    struct param_name *names;
    struct tensor **gradients;
    struct tensor *norm; /* (1) */
    int64_t updates;     /* steps that were taken: Adam's own clock */
    int64_t skipped;     /* steps that were not, since the gradient was not finite */
};

/* *o is freed with optimizer_free, also after a failure. `name` must outlive it. */
aim_status optimizer_init(struct exec *ex, const char *name, const struct optimizer_options *options, struct optimizer *o);
void optimizer_free(struct optimizer *o);

/*
 * Trains `w`, which must want gradients and outlive the optimizer: makes its gradient, moments and, if wanted, average,
 * which starts as a copy. `name` (at most 95 bytes) is copied.
 */
aim_status optimizer_add(struct optimizer *o, const char *name, struct tensor *w, bool decays);

/* The rule that the paper intends (spec B13): matrices and larger decay; biases, norms, dt_bias, A_log and D do not. */
static inline bool optimizer_decays(const struct tensor *w)
{
    return w->ndim >= 2;
}

/*
 * One step with the gradients that have arrived, which are zero afterwards. *norm is their norm before clipping; when it is
 * not finite nothing has changed and the step counts as skipped.
 */
aim_status optimizer_step(struct optimizer *o, double lr, double *norm);

/* Forgets the gradients that have arrived instead of taking a step; it counts as skipped. */
aim_status optimizer_skip(struct optimizer *o);

/*
 * The decay of the average after `updates` steps: the wanted one once the run is long enough for it to mean anything,
 * before that (1 + updates) / (10 + updates), so that short runs do not average their random start.
 */
double optimizer_ema_decay(const struct optimizer *o);

/* Bytes of moments and averages. */
int64_t optimizer_bytes(const struct optimizer *o);

/* Exchanges weights and averages, so that the network is the averaged one; the next call undoes it. */
void optimizer_swap(struct optimizer *o);

/* ---- checkpoints: weights under their names, moments and average as m.NAME, v.NAME, ema.NAME, clocks as metadata */

/* Appends everything to `list`. */
aim_status optimizer_save(const struct optimizer *o, struct checkpoint *list);

/* AIM_ERR_FORMAT when the file belongs to another network. */
aim_status optimizer_load(struct optimizer *o, const struct tensor_file *file, const char *path);

/*
 * Points the rows of a parameter table at the weights, averaged ones where they are kept, so that the table can be saved and
 * a network built from it; params_release ends that. weights: in the order of the rows, buffers left out, which get no values.
 */
aim_status optimizer_snapshot(const struct optimizer *o, struct tensor *const *weights, struct params *table);

/* The average of a weight, or the weight itself where none is kept. */
const struct tensor *optimizer_average(const struct optimizer *o, const struct tensor *w);

/* ---- steps that go wrong */

/*
 * A step whose loss is not finite or larger than `most`, or whose gradient is not finite, is bad: it is not taken. A few are
 * bad luck; GUARD_IN_A_ROW of them one after the other, or GUARD_IN_ALL, end the run.
 */
enum { GUARD_IN_A_ROW = 20, GUARD_IN_ALL = 1000 };

struct guard {
    double most; /* a loss beyond it has exploded; 0 = no bound */
    int64_t bad, row;
};

/* Whether a loss is bad. */
bool guard_refuses(const struct guard *g, double loss);

/* Counts a step; AIM_ERR_ARGUMENT, with an explanation, when training makes no sense any more. */
aim_status guard_step(aim_context *ctx, struct guard *g, int64_t step, double loss, double norm);

/* Its counts, in a checkpoint's metadata. */
aim_status guard_save(const struct guard *g, struct checkpoint *list);
aim_status guard_load(aim_context *ctx, struct guard *g, const struct tensor_file *file, const char *path);

#endif
