/* aim_train_ar: stage 2 from data to a model folder (the official train_stage2.py; spec A2). */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "model/vq.h"
#include "train/ar_trainer.h"
#include "train/options_json.h"
#include "train/run.h"

#define OPTIONS_NAME "options.json"
#define MODEL_NAME   "model"

#define AT(field) offsetof(aim_train_ar_options, field)

static const struct option_field ar_fields[] = {
    {"tokenizer", FIELD_PATH, AT(tokenizer)},
    {"codes", FIELD_PATH, AT(codes)},
    {"labels", FIELD_PATH, AT(labels)},
    {"file_order", FIELD_INT, AT(file_order)},
    {"config", FIELD_PATH, AT(config)},
    {"layers", FIELD_INT, AT(layers)},
    {"width", FIELD_INT, AT(width)},
    {"d_state", FIELD_INT, AT(d_state)},
    {"adaln", FIELD_INT, AT(adaln)},
    {"groups", FIELD_INT, AT(groups)},
    {"no_positions", FIELD_INT, AT(no_positions)},
    {"official_decay", FIELD_INT, AT(official_decay)},
    {"label_drop", FIELD_DOUBLE, AT(label_drop)},
    {0},
};
_Static_assert(offsetof(aim_train_ar_options, train) == 0, "train_fields count from the beginning");
static const struct option_field *const tables[] = {train_fields, ar_fields, NULL};

/* A stop may come while the work after a step is under way; a checkpoint tells how far that was. */
enum stage { STAGE_EVALUATE, STAGE_PAINT, STAGE_DONE };

/* A run and the folder that it lives in. */
struct training {
    struct ar_trainer t;
    struct run run;
    struct options_memory memory; /* of options read back */
    char *saved_model;            /* RUN/model, when training goes on from a checkpoint */
    int64_t step;                 /* steps done */
    int64_t stage;                /* what is still due after the last one: enum stage */
    struct ar_step did;
    double nll;
};

aim_train_ar_options aim_train_ar_defaults(void)
{
    return (aim_train_ar_options){.train = {.held_out = 0.01,
                                            .batch = 64,
                                            .accumulate = 1,
                                            .decay = 0.05,
                                            .clip = 1,
                                            .schedule = AIM_SCHEDULE_LINEAR,
                                            .eval_every = 500,
                                            .save_every = 500,
                                            .sample_every = 1000,
                                            .keep = 2},
                                  .label_drop = 0.1};
}

/* -------------------------------------------------------------------------------------------------- options */

static aim_status check_options(aim_context *ctx, const aim_train_ar_options *o)
{
    const aim_train_options *p = &o->train;
    if (!p->run && !p->dry_run) return aim_fail(ctx, AIM_ERR_ARGUMENT, "a folder for the run is needed");
    if (p->steps < 0 || !(p->epochs >= 0) || (p->steps == 0 && p->epochs <= 0 && !p->dry_run))
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "how long to train is missing: steps or epochs");
    if (p->batch < 1 || p->accumulate < 1 || p->batch % p->accumulate)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "the batch (%d) must divide evenly into its parts (%d)", p->batch,
                        p->accumulate);
    if (!(p->lr >= 0) || !(p->decay >= 0) || !(p->clip >= 0) || !(p->ema >= 0 && p->ema < 1) || p->warmup < 0)
        return aim_fail(ctx, AIM_ERR_ARGUMENT,
                        "rate, decay, clipping and warm-up must be 0 or more, the average's decay below 1");
    if (!(o->label_drop >= 0 && o->label_drop <= 1)) return aim_fail(ctx, AIM_ERR_ARGUMENT, "the label drop must be 0 to 1");
    if (p->eval_every < 0 || p->save_every < 0 || p->sample_every < 0)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "intervals must be 0 (at the end alone) or more");
    return AIM_OK;
}

/* What depends on the data. */
static void complete_options(struct ar_trainer *t)
{
    aim_train_options *o = &t->o.train;
    t->tokens = t->data.tokens;
    t->part = o->batch / o->accumulate;
    t->steps = o->steps > 0 ? o->steps : (int64_t)ceil(o->epochs * (double)t->data.count / o->batch);
    if (t->steps < 1) t->steps = 1;
    if (o->lr == 0) o->lr = 1e-4 * o->batch / 256; /* the paper's rule */
}

/* Options of a run that goes on; with a checkpoint, sizes, classes and tokenizer are those of the model beside it. */
static aim_status recall_options(struct training *x)
{
    aim_train_ar_options *o = &x->t.o;
    const char *folder = o->train.run;
    int dry_run = o->train.dry_run;
    TRY(run_open(x->t.ctx, folder, true, (int)o->train.keep, &x->run));
    char *path = run_path(&x->run, OPTIONS_NAME);
    *o = aim_train_ar_defaults();
    aim_status status = path ? options_read(x->t.ctx, path, tables, o, &x->memory) : AIM_ERR_MEMORY;
    mem_free(path);
    TRY(status);
    o->train.run = folder;
    o->train.dry_run = dry_run;
    o->train.resume = 1;
    x->run.keep = (int)o->train.keep;
    if (!x->run.restored) return AIM_OK;
    x->saved_model = run_path(&x->run, MODEL_NAME);
    if (!x->saved_model) return AIM_ERR_MEMORY;
    o->train.init = x->saved_model;
    o->tokenizer = o->config = o->train.preset = NULL;
    o->layers = o->width = o->d_state = o->adaln = o->groups = 0;
    return AIM_OK;
}

/* ------------------------------------------------------------------------------------------------ beginning */

static aim_status load_source(struct ar_trainer *t)
{
    const char *path = t->o.train.init ? t->o.train.init : t->o.tokenizer;
    if (!path) return AIM_OK;
    aim_model_options how = aim_model_defaults(path);
    if (t->o.train.init) how.tokenizer = t->o.tokenizer;
    TRY(aim_model_load(t->ctx, &how, &t->source));
    if (!t->o.train.init && !t->source->config.has_vq) return aim_fail(t->ctx, AIM_ERR_ARGUMENT, "%s holds no tokenizer", path);
    return AIM_OK;
}

/* The trained model goes with the tokenizer that made its codes, whose tensors stay where `source` has them. */
static aim_status adopt_tokenizer(struct ar_trainer *t)
{
    aim_model *m = t->model;
    if (!t->source || !t->source->config.has_vq) return AIM_OK;
    m->config.has_vq = true;
    m->config.vq = t->source->config.vq;
    TRY(vq_describe(&m->config.vq, &m->vq_table));
    for (size_t i = 0; i < m->vq_table.count; i++) m->vq_table.items[i].entry = t->source->vq_table.items[i].entry;
    t->data.tokenizer = m;
    return AIM_OK;
}

static aim_status configure(struct training *x)
{
    struct ar_trainer *t = &x->t;
    if (t->o.train.resume) TRY(recall_options(x));
    TRY(check_options(t->ctx, &t->o));
    TRY(load_source(t));
    TRY(ar_data_open(t->ctx, &t->o, t->source, &t->data));
    complete_options(t);
    TRY(ar_start_configure(t->ctx, &t->o, &t->data, t->source, &t->model));
    return adopt_tokenizer(t);
}

static aim_status open_folder(struct training *x)
{
    struct ar_trainer *t = &x->t;
    if (t->o.train.resume) return AIM_OK;
    TRY(run_open(t->ctx, t->o.train.run, false, (int)t->o.train.keep, &x->run));
    char *path = run_path(&x->run, OPTIONS_NAME);
    aim_status status = path ? options_write(t->ctx, path, tables, &t->o) : AIM_ERR_MEMORY;
    mem_free(path);
    return status;
}

static aim_status restore(struct training *x)
{
    struct ar_trainer *t = &x->t;
    struct tensor_file file;
    if (!x->run.restored) return AIM_OK;
    TRY(tensor_file_open(t->ctx, x->run.restored, &file));
    aim_status status = optimizer_load(&t->optimizer, &file, x->run.restored);
    if (status == AIM_OK) status = checkpoint_integer(t->ctx, &file, x->run.restored, "bad", &t->guard.bad);
    if (status == AIM_OK) status = checkpoint_integer(t->ctx, &file, x->run.restored, "row", &t->guard.row);
    if (status == AIM_OK) status = checkpoint_integer(t->ctx, &file, x->run.restored, "step", &x->step);
    if (status == AIM_OK) status = checkpoint_integer(t->ctx, &file, x->run.restored, "stage", &x->stage);
    tensor_file_close(&file);
    return status;
}

/* ------------------------------------------------------------------------------------------- along the way */

static aim_status save_model(struct training *x)
{
    char *folder = run_path(&x->run, MODEL_NAME);
    aim_status status = folder ? ar_trainer_snapshot(&x->t) : AIM_ERR_MEMORY;
    if (status == AIM_OK) status = aim_model_save(x->t.model, folder);
    ar_trainer_snapshot_end(&x->t);
    mem_free(folder);
    return status;
}

static aim_status write_checkpoint(struct training *x)
{
    struct ar_trainer *t = &x->t;
    struct checkpoint list = {.ctx = t->ctx};
    aim_status status = optimizer_save(&t->optimizer, &list);
    if (status == AIM_OK) status = checkpoint_note_integer(&list, "bad", t->guard.bad);
    if (status == AIM_OK) status = checkpoint_note_integer(&list, "row", t->guard.row);
    if (status == AIM_OK) status = checkpoint_note_integer(&list, "step", x->step);
    if (status == AIM_OK) status = checkpoint_note_integer(&list, "stage", x->stage);
    if (status == AIM_OK) status = run_save(&x->run, &t->ex, &list, x->step);
    checkpoint_free(&list);
    return status;
}

static aim_status draw_curves(struct training *x)
{
    static const struct curve_panel panels[] = {{{"loss", "nll", "nll_null"}, true}, {{"lr"}, false}, {{"grad_norm"}, true}};
    return run_draw(&x->run, panels, sizeof panels / sizeof panels[0]);
}

/* The model first: a checkpoint takes its sizes and classes from the model beside it. */
static aim_status save(struct training *x)
{
    TRY(save_model(x));
    TRY(write_checkpoint(x));
    return draw_curves(x);
}

/* On the way a failure to save costs no more than the checkpoint: training goes on. */
static aim_status save_on_the_way(struct training *x)
{
    aim_status status = save(x);
    if (status != AIM_ERR_IO) return status;
    aim_log(x->t.ctx, AIM_LOG_WARNING, "no checkpoint at step %lld: %s; the last one is still there", (long long)x->step,
            aim_last_error(x->t.ctx));
    return AIM_OK;
}

/* Of the network that is given out: the averaged one, if there is one. */
static aim_status evaluate(struct training *x)
{
    struct ar_trainer *t = &x->t;
    double with = NAN, without = NAN;
    if (t->data.held_count == 0) return AIM_OK;
    optimizer_swap(&t->optimizer);
    aim_status status = ar_trainer_evaluate(t, false, &with);
    if (status == AIM_OK) status = ar_trainer_evaluate(t, true, &without);
    optimizer_swap(&t->optimizer);
    TRY(status);
    x->nll = with;
    /* Dropping labels at random is linear in the labels: the expected value needs no draws (spec I-8). */
    double dropped = (1 - t->o.label_drop) * with + t->o.label_drop * without;
    const struct run_value values[] = {{"nll", with}, {"nll_null", without}, {"nll_dropped", dropped}};
    return run_log(&x->run, x->step, values, sizeof values / sizeof values[0]);
}

/* A grid of classes spread over all of them, with the same random numbers every time. */
static aim_status paint(struct training *x)
{
    enum { MOST = 16, COLUMNS = 4 };
    struct ar_trainer *t = &x->t;
    aim_model *m = t->model;
    aim_image images[MOST] = {{0}};
    int64_t labels[MOST];
    int classes = m->config.ar.num_classes;
    aim_generate_options how = aim_generate_defaults();
    how.seed = t->o.train.seed;
    if (!m->config.has_vq || ar_grid(&m->config.ar) == 0) return AIM_OK;
    for (int i = 0; i < MOST; i++) labels[i] = classes >= MOST ? (int64_t)i * classes / MOST : i % classes;
    struct backend *be = t->ctx->backend;
    bool bf16 = be->bf16;
    be->bf16 = false; /* decoding has types of its own */
    aim_status status = ar_trainer_snapshot(t);
    if (status == AIM_OK) status = aim_generate(m, labels, MOST, &how, NULL, images);
    ar_trainer_snapshot_end(t);
    be->bf16 = bf16;
    if (status == AIM_OK) status = run_samples(&x->run, x->step, images, MOST, COLUMNS);
    for (int i = 0; i < MOST; i++) aim_image_free(&images[i]);
    return status;
}

static bool is_due(const struct training *x, int64_t every)
{
    return x->step == x->t.steps || (every > 0 && x->step % every == 0);
}

/* Evaluation, samples, checkpoint, as far as they are due and have not been done. */
static aim_status after_step(struct training *x)
{
    const aim_train_options *o = &x->t.o.train;
    if (x->stage == STAGE_EVALUATE && is_due(x, o->eval_every)) TRY(evaluate(x));
    if (x->stage == STAGE_EVALUATE) x->stage = STAGE_PAINT;
    if (x->stage == STAGE_PAINT && is_due(x, o->sample_every)) TRY(paint(x));
    x->stage = STAGE_DONE;
    if (x->step == x->t.steps) return save(x);
    return is_due(x, o->save_every) ? save_on_the_way(x) : AIM_OK;
}

/* -------------------------------------------------------------------------------------------------- the loop */

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static aim_status tell_progress(const struct training *x)
{
    char what[32];
    snprintf(what, sizeof what, "training, loss %.4f", x->did.loss);
    return aim_progress(x->t.ctx, isfinite(x->did.loss) ? what : "training", x->step, x->t.steps);
}

static aim_status take_step(struct training *x)
{
    struct ar_trainer *t = &x->t;
    double start = seconds();
    TRY(ar_trainer_step(t, x->step, &x->did));
    x->step++;
    x->stage = STAGE_EVALUATE;
    const struct run_value values[] = {{"loss", x->did.loss},
                                       {"lr", x->did.lr},
                                       {"grad_norm", x->did.norm},
                                       {"seconds", seconds() - start},
                                       {"skipped", (double)t->optimizer.skipped}};
    size_t count = sizeof values / sizeof values[0];
    TRY(run_log(&x->run, x->step, values, t->optimizer.skipped ? count : count - 1));
    return guard_step(t->ctx, &t->guard, x->step, x->did.loss, x->did.norm);
}

static aim_status loop(struct training *x)
{
    if (x->step > 0 && x->stage != STAGE_DONE) TRY(after_step(x)); /* stopped in the middle of it */
    TRY(tell_progress(x));
    while (x->step < x->t.steps) {
        TRY(take_step(x));
        TRY(after_step(x));
        TRY(tell_progress(x));
    }
    return AIM_OK;
}

static aim_status train(struct training *x)
{
    struct ar_trainer *t = &x->t;
    TRY(ar_start_weights(t->model, &t->o, t->source));
    TRY(ar_trainer_build(t));
    TRY(open_folder(x));
    TRY(restore(x));
    TRY(ar_data_start(&t->data, x->step, t->model->config.ar.vocab_size));
    aim_status status = loop(x);
    if (status != AIM_ERR_CANCELLED || x->step == 0) return status;
    TRY(save(x)); /* a wish to stop costs no step */
    return aim_fail(t->ctx, AIM_ERR_CANCELLED, "cancelled");
}

static aim_status run(struct training *x, aim_train_report *report)
{
    struct ar_trainer *t = &x->t;
    struct backend *be = t->ctx->backend;
    bool bf16 = be->bf16;
    TRY(configure(x));
    if (t->o.train.bf16) TRY(backend_check_bf16(be));
    be->bf16 = t->o.train.bf16 != 0;
    aim_status status = t->o.train.dry_run ? ar_trainer_plan(t, report) : train(x);
    be->bf16 = bf16;
    report->steps = x->step;
    report->skipped = t->optimizer.skipped;
    report->pictures = t->data.count;
    report->loss = x->did.loss;
    report->nll = x->nll;
    return status;
}

aim_status aim_train_ar(aim_context *ctx, const aim_train_ar_options *options, aim_train_report *report)
{
    struct training x = {.t = {.ctx = ctx, .o = *options}, .nll = NAN, .did = {.loss = NAN}};
    aim_train_report unwanted;
    if (!report) report = &unwanted;
    *report = (aim_train_report){0};
    aim_status status = run(&x, report);
    ar_trainer_clear(&x.t);
    ar_data_close(&x.t.data);
    aim_model_free(x.t.model);
    aim_model_free(x.t.source);
    run_close(&x.run);
    options_free(&x.memory);
    mem_free(x.saved_model);
    return status;
}
