#include "train/ar_trainer.h"

#include <math.h>
#include <string.h>

#include "base/philox.h"
#include "train/loop.h"

/* ------------------------------------------------------------------------------------------------- building */

static aim_status build_optimizer(struct ar_trainer *t)
{
    const aim_train_options *o = &t->o.train;
    struct optimizer_options how = optimizer_defaults();
    how.decay = o->decay;
    how.clip = o->clip;
    how.ema = o->ema;
    TRY(optimizer_init(&t->ex, "generator", &how, &t->optimizer));
    const struct params *table = &t->model->ar_table;
    for (size_t i = 0; i < table->count; i++) {
        struct tensor *w = t->ar->rows[i];
        if (w->needs_grad)
            TRY(optimizer_add(&t->optimizer, table->items[i].name, w, optimizer_decays(w) && !t->o.official_decay));
    }
    return AIM_OK;
}

aim_status ar_trainer_build(struct ar_trainer *t)
{
    const aim_train_options *o = &t->o.train;
    exec_init(&t->ex, t->ctx);
    aim_status status = ar_build_trainable(&t->model->config.ar, &t->model->ar_table, &t->ar);
    params_release(&t->model->ar_table);
    TRY(status);
    t->ar->checkpointing = o->checkpointing != 0;
    t->schedule = (struct schedule){.kind = o->schedule, .lr = o->lr, .warmup = o->warmup, .steps = t->steps};
    /* No guess is worse than this by so much: ln V is what knowing nothing costs. */
    t->guard.most = 3 * log(t->model->config.ar.vocab_size);
    t->codes = mem_zero(t->ctx, (size_t)(o->batch * t->tokens), sizeof *t->codes, MEM_MISC);
    t->labels = mem_zero(t->ctx, (size_t)o->batch, sizeof *t->labels, MEM_MISC);
    t->losses = mem_zero(t->ctx, (size_t)(t->part * t->tokens), sizeof *t->losses, MEM_MISC);
    if (!t->codes || !t->labels || !t->losses) return AIM_ERR_MEMORY;
    return build_optimizer(t);
}

void ar_trainer_clear(struct ar_trainer *t)
{
    optimizer_free(&t->optimizer);
    ar_free(t->ar);
    mem_free(t->codes);
    mem_free(t->labels);
    mem_free(t->losses);
    t->ar = NULL;
    t->codes = t->labels = NULL;
    t->losses = NULL;
    if (t->ex.ctx) exec_clear(&t->ex);
}

/* --------------------------------------------------------------------------------------------------- a step */

/* Classes that become the null class: a draw for each sample of the run (spec B3). */
static void drop_labels(struct ar_trainer *t, int64_t step)
{
    int64_t batch = t->o.train.batch;
    for (int64_t b = 0; b < batch; b++) {
        struct philox4 r = philox(t->o.train.seed, (uint64_t)(step * batch + b), 0, PHILOX_LABEL_DROP);
        if (philox_double(r.v[0], r.v[1]) < t->o.label_drop) t->labels[b] = t->model->config.ar.num_classes;
    }
}

/* Adds the losses of samples first .. first+n to *sum. */
static aim_status add_losses(struct ar_trainer *t, const struct tensor *loss, int64_t n, double *sum)
{
    TRY(tensor_read(&t->ex, loss, t->losses));
    for (int64_t i = 0; i < n * t->tokens; i++) *sum += (double)t->losses[i];
    return AIM_OK;
}

/* One part of the batch: forward, backward. */
static aim_status differentiate(struct ar_trainer *t, int64_t first, double *sum)
{
    struct exec *ex = &t->ex;
    struct tape tape;
    float scale = 1.0f / (float)(t->o.train.batch * t->tokens);
    tape_start(&tape, ex);
    struct tensor *loss = ar_loss(ex, t->ar, t->labels + first, t->codes + first * t->tokens, t->part);
    aim_status status = ex->status;
    if (status == AIM_OK) status = tape_backward(&tape, loss, scale);
    tape_stop(&tape);
    if (status == AIM_OK) status = add_losses(t, loss, t->part, sum);
    tensor_drop(loss);
    return status;
}

aim_status ar_trainer_update(struct ar_trainer *t, int64_t step, struct ar_step *did)
{
    int64_t batch = t->o.train.batch;
    double sum = 0;
    for (int64_t first = 0; first < batch; first += t->part) TRY(differentiate(t, first, &sum));
    *did = (struct ar_step){.loss = sum / (double)(batch * t->tokens), .norm = NAN, .lr = schedule_rate(&t->schedule, step)};
    if (guard_refuses(&t->guard, did->loss)) return optimizer_skip(&t->optimizer);
    return optimizer_step(&t->optimizer, did->lr, &did->norm);
}

aim_status ar_trainer_step(struct ar_trainer *t, int64_t step, struct ar_step *did)
{
    TRY(ar_data_batch(&t->data, step, t->codes, t->labels));
    drop_labels(t, step);
    return ar_trainer_update(t, step, did);
}

aim_status ar_trainer_evaluate(struct ar_trainer *t, bool null_class, double *nll)
{
    struct exec *ex = &t->ex;
    const struct ar_data *d = &t->data;
    double sum = 0;
    for (int64_t first = 0; first < d->held_count; first += t->part) {
        int64_t n = d->held_count - first < t->part ? d->held_count - first : t->part;
        TRY(aim_progress(t->ctx, "evaluating", first, d->held_count));
        for (int64_t i = 0; i < n; i++) t->labels[i] = null_class ? t->model->config.ar.num_classes : d->held_labels[first + i];
        struct tensor *loss = ar_loss(ex, t->ar, t->labels, d->held_codes + first * t->tokens, n);
        aim_status status = add_losses(t, loss, n, &sum);
        tensor_drop(loss);
        TRY(status);
    }
    *nll = d->held_count ? sum / (double)(d->held_count * t->tokens) : NAN;
    return AIM_OK;
}

/* ------------------------------------------------------------------------------------------------ snapshots */

aim_status ar_trainer_snapshot(struct ar_trainer *t)
{
    return optimizer_snapshot(&t->optimizer, t->ar->rows, &t->model->ar_table);
}

void ar_trainer_snapshot_end(struct ar_trainer *t)
{
    model_rest(t->model);
    ar_free(t->model->ar);
    t->model->ar = NULL;
    params_release(&t->model->ar_table);
}

/* ------------------------------------------------------------------------------------------------- planning */

/* Bytes of the copies in bf16 that a device keeps of matrices (cuda/dense.cuh), which ops make and a plan does not see. */
static int64_t kept_copies(const struct ar_trainer *t, const struct backend *plan)
{
    int64_t values = 0;
    for (size_t i = 0; i < t->model->ar_table.count; i++)
        if (t->ar->rows[i]->ndim == 2) values += tensor_count(t->ar->rows[i]);
    return plan->bf16 && !plan->memory.host ? 2 * values : 0;
}

static aim_status plan_step(void *trainer, aim_train_report *r)
{
    struct ar_trainer *t = trainer;
    struct ar_step did;
    static const float value; /* stands for all values: nobody reads them */
    TRY(params_point(&t->model->ar_table, &value));
    TRY(ar_trainer_build(t));
    TRY(ar_trainer_update(t, 0, &did));
    int64_t copies = kept_copies(t, t->ctx->backend);
    r->parameters = 4 * params_parameters(&t->model->ar_table) + copies;
    r->gradients = 0;
    for (size_t i = 0; i < t->optimizer.count; i++) r->gradients += 4 * tensor_count(t->optimizer.slots[i].w);
    r->optimizer = optimizer_bytes(&t->optimizer);
    r->total = copies; /* beside what the plan counts */
    return AIM_OK;
}

static void plan_clear(void *trainer)
{
    struct ar_trainer *t = trainer;
    ar_trainer_clear(t);
    params_release(&t->model->ar_table);
}

aim_status ar_trainer_plan(struct ar_trainer *t, aim_train_report *report)
{
    return loop_plan(t->ctx, plan_step, plan_clear, t, report);
}
