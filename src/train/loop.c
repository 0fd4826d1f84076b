#include "train/loop.h"

#include <math.h>
#include <stdio.h>

#include "tensor/plan.h"

#define OPTIONS_NAME "options.json"

/* A stop may come while the work after a step is under way; a checkpoint tells how far that was. */
enum phase { PHASE_EVALUATE, PHASE_PAINT, PHASE_DONE };

/* -------------------------------------------------------------------------------------------------- options */

aim_status loop_check(aim_context *ctx, const aim_train_options *p)
{
    if (!p->run && !p->dry_run) return aim_fail(ctx, AIM_ERR_ARGUMENT, "a folder for the run is needed");
    if (p->steps < 0 || !(p->epochs >= 0) || (p->steps == 0 && p->epochs <= 0 && !p->dry_run))
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "how long to train is missing: steps or epochs");
    if (p->batch < 1 || p->accumulate < 1 || p->batch % p->accumulate)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "the batch (%d) must divide evenly into its parts (%d)", p->batch,
                        p->accumulate);
    if (!(p->lr >= 0) || !(p->decay >= 0) || !(p->clip >= 0) || !(p->ema >= 0 && p->ema < 1) || p->warmup < 0)
        return aim_fail(ctx, AIM_ERR_ARGUMENT,
                        "rate, decay, clipping and warm-up must be 0 or more, the average's decay below 1");
    if (p->eval_every < 0 || p->save_every < 0 || p->sample_every < 0)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "intervals must be 0 (at the end alone) or more");
    return AIM_OK;
}

int64_t loop_steps(const aim_train_options *o, int64_t pictures)
{
    int64_t steps = o->steps > 0 ? o->steps : (int64_t)ceil(o->epochs * (double)pictures / o->batch);
    return steps < 1 ? 1 : steps;
}

aim_status loop_recall(struct loop *l, const struct option_field *const *tables)
{
    aim_train_options *o = l->options;
    const char *folder = o->run;
    TRY(run_open(l->ctx, folder, true, 1, &l->run));
    char *path = run_path(&l->run, OPTIONS_NAME);
    aim_status status = path ? options_read(l->ctx, path, tables, o, &l->memory) : AIM_ERR_MEMORY;
    mem_free(path);
    TRY(status);
    o->run = folder;
    o->resume = 1;
    l->run.keep = (int)o->keep;
    if (!l->run.restored) return AIM_OK;
    l->saved_model = run_path(&l->run, LOOP_MODEL);
    if (!l->saved_model) return AIM_ERR_MEMORY;
    o->init = l->saved_model;
    o->preset = NULL;
    return AIM_OK;
}

aim_status loop_open(struct loop *l, const struct option_field *const *tables)
{
    const aim_train_options *o = l->options;
    if (o->resume) return AIM_OK;
    TRY(run_open(l->ctx, o->run, false, (int)o->keep, &l->run));
    char *path = run_path(&l->run, OPTIONS_NAME);
    aim_status status = path ? options_write(l->ctx, path, tables, o) : AIM_ERR_MEMORY;
    mem_free(path);
    return status;
}

aim_status loop_restore(struct loop *l)
{
    const char *path = l->run.restored;
    struct tensor_file file;
    if (!path) return AIM_OK;
    TRY(tensor_file_open(l->ctx, path, &file));
    aim_status status = l->stage->load(l->trainer, &file, path);
    if (status == AIM_OK) status = checkpoint_integer(l->ctx, &file, path, "step", &l->step);
    if (status == AIM_OK) status = checkpoint_integer(l->ctx, &file, path, "stage", &l->phase);
    tensor_file_close(&file);
    return status;
}

void loop_close(struct loop *l)
{
    run_close(&l->run);
    options_free(&l->memory);
    mem_free(l->saved_model);
    l->saved_model = NULL;
}

/* ------------------------------------------------------------------------------------------- along the way */

static aim_status write_checkpoint(struct loop *l)
{
    struct checkpoint list = {.ctx = l->ctx};
    aim_status status = l->stage->state(l->trainer, &list);
    if (status == AIM_OK) status = checkpoint_note_integer(&list, "step", l->step);
    if (status == AIM_OK) status = checkpoint_note_integer(&list, "stage", l->phase);
    if (status == AIM_OK) status = run_save(&l->run, l->ex, &list, l->step);
    checkpoint_free(&list);
    return status;
}

static aim_status save_model(struct loop *l)
{
    aim_model *model = NULL;
    char *folder = run_path(&l->run, LOOP_MODEL);
    aim_status status = folder ? l->stage->snapshot(l->trainer, &model) : AIM_ERR_MEMORY;
    if (status == AIM_OK) status = aim_model_save(model, folder);
    l->stage->snapshot_end(l->trainer);
    mem_free(folder);
    return status;
}

/* The model first: a checkpoint takes its sizes and classes from the model beside it. */
static aim_status save(struct loop *l)
{
    TRY(save_model(l));
    TRY(write_checkpoint(l));
    return run_draw(&l->run, l->stage->panels, l->stage->panel_count);
}

/* On the way a failure to save costs no more than the checkpoint: training goes on. */
static aim_status save_on_the_way(struct loop *l)
{
    aim_status status = save(l);
    if (status != AIM_ERR_IO) return status;
    aim_log(l->ctx, AIM_LOG_WARNING, "no checkpoint at step %lld: %s; the last one is still there", (long long)l->step,
            aim_last_error(l->ctx));
    return AIM_OK;
}

static bool is_due(const struct loop *l, int64_t every)
{
    return l->step == l->steps || (every > 0 && l->step % every == 0);
}

/* Evaluation, samples, checkpoint, as far as they are due and have not been done. */
static aim_status after_step(struct loop *l)
{
    const aim_train_options *o = l->options;
    if (l->phase == PHASE_EVALUATE && is_due(l, o->eval_every)) TRY(l->stage->evaluate(l->trainer));
    if (l->phase == PHASE_EVALUATE) l->phase = PHASE_PAINT;
    if (l->phase == PHASE_PAINT && is_due(l, o->sample_every)) TRY(l->stage->paint(l->trainer));
    l->phase = PHASE_DONE;
    if (l->step == l->steps) return save(l);
    return is_due(l, o->save_every) ? save_on_the_way(l) : AIM_OK;
}

/* -------------------------------------------------------------------------------------------------- the loop */

static aim_status tell_progress(const struct loop *l)
{
    char what[32];
    snprintf(what, sizeof what, "training, loss %.4f", l->loss);
    return aim_progress(l->ctx, isfinite(l->loss) ? what : "training", l->step, l->steps);
}

static aim_status go_on(struct loop *l)
{
    if (l->step > 0 && l->phase != PHASE_DONE) TRY(after_step(l)); /* stopped in the middle of it */
    TRY(tell_progress(l));
    while (l->step < l->steps) {
        TRY(l->stage->step(l->trainer));
        l->step++;
        l->phase = PHASE_EVALUATE;
        TRY(after_step(l));
        TRY(tell_progress(l));
    }
    return AIM_OK;
}

aim_status loop_run(struct loop *l)
{
    l->loss = NAN;
    aim_status status = go_on(l);
    if (status != AIM_ERR_CANCELLED || l->step == 0) return status;
    TRY(save(l));
    return aim_fail(l->ctx, AIM_ERR_CANCELLED, "cancelled");
}

/* ------------------------------------------------------------------------------------------------- planning */

aim_status loop_plan(aim_context *ctx, aim_status (*step)(void *trainer, aim_train_report *report),
                     void (*clear)(void *trainer), void *trainer, aim_train_report *r)
{
    struct backend *real = ctx->backend, *plan;
    TRY(plan_create(ctx, real, &plan));
    ctx->backend = plan;
    aim_status status = step(trainer, r);
    r->total += plan->memory.peak;
    r->activations = r->total - r->parameters - r->gradients - r->optimizer;
    clear(trainer);
    ctx->backend = real;
    backend_free(plan);
    return status;
}
