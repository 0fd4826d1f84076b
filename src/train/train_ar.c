/* aim_train_ar: stage 2 from data to a model folder (the official train_stage2.py; spec A2). */
#include <math.h>
#include <string.h>

#include "base/clock.h"
#include "model/vq.h"
#include "train/ar_trainer.h"
#include "train/loop.h"

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

/* A run and the folder that it lives in. */
struct training {
    struct ar_trainer t;
    struct loop loop;
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
    TRY(loop_check(ctx, &o->train));
    if (!(o->label_drop >= 0 && o->label_drop <= 1)) return aim_fail(ctx, AIM_ERR_ARGUMENT, "the label drop must be 0 to 1");
    return AIM_OK;
}

/* What depends on the data. */
static void complete_options(struct ar_trainer *t)
{
    aim_train_options *o = &t->o.train;
    t->tokens = t->data.tokens;
    t->part = o->batch / o->accumulate;
    t->steps = loop_steps(o, t->data.count);
    if (o->lr == 0) o->lr = 1e-4 * o->batch / 256; /* the paper's rule */
}

/* Options of a run that goes on; with a checkpoint, sizes, classes and tokenizer are those of the model beside it. */
static aim_status recall_options(struct training *x)
{
    aim_train_ar_options *o = &x->t.o, defaults = aim_train_ar_defaults();
    defaults.train.run = o->train.run;
    defaults.train.dry_run = o->train.dry_run;
    *o = defaults;
    TRY(loop_recall(&x->loop, tables));
    if (!x->loop.saved_model) return AIM_OK;
    o->tokenizer = o->config = NULL;
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

/* ------------------------------------------------------------------------------------------- along the way */

static aim_status snapshot(void *trainer, aim_model **model)
{
    struct training *x = trainer;
    *model = x->t.model;
    return ar_trainer_snapshot(&x->t);
}

static void snapshot_end(void *trainer)
{
    struct training *x = trainer;
    ar_trainer_snapshot_end(&x->t);
}

static aim_status state(void *trainer, struct checkpoint *list)
{
    struct training *x = trainer;
    TRY(optimizer_save(&x->t.optimizer, list));
    return guard_save(&x->t.guard, list);
}

static aim_status load(void *trainer, const struct tensor_file *file, const char *path)
{
    struct training *x = trainer;
    TRY(optimizer_load(&x->t.optimizer, file, path));
    return guard_load(x->t.ctx, &x->t.guard, file, path);
}

static aim_status evaluate(void *trainer)
{
    struct training *x = trainer;
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
    return run_log(&x->loop.run, x->loop.step, values, sizeof values / sizeof values[0]);
}

/* A grid of classes spread over all of them, with the same random numbers every time. */
static aim_status paint(void *trainer)
{
    enum { MOST = 16, COLUMNS = 4 };
    struct training *x = trainer;
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
    if (status == AIM_OK) status = run_samples(&x->loop.run, x->loop.step, images, MOST, COLUMNS);
    for (int i = 0; i < MOST; i++) aim_image_free(&images[i]);
    return status;
}

/* -------------------------------------------------------------------------------------------------- the loop */

static aim_status take_step(void *trainer)
{
    struct training *x = trainer;
    struct ar_trainer *t = &x->t;
    double start = clock_seconds();
    int64_t step = x->loop.step + 1;
    TRY(ar_trainer_step(t, step - 1, &x->did));
    x->loop.loss = x->did.loss;
    const struct run_value values[] = {{"loss", x->did.loss},
                                       {"lr", x->did.lr},
                                       {"grad_norm", x->did.norm},
                                       {"seconds", clock_seconds() - start},
                                       {"skipped", (double)t->optimizer.skipped}};
    size_t count = sizeof values / sizeof values[0];
    TRY(run_log(&x->loop.run, step, values, t->optimizer.skipped ? count : count - 1));
    return guard_step(t->ctx, &t->guard, step, x->did.loss, x->did.norm);
}

static const struct curve_panel panels[] = {{{"loss", "nll", "nll_null"}, true}, {{"lr"}, false}, {{"grad_norm"}, true}};
static const struct loop_stage stage = {
    take_step, evaluate, paint, snapshot, snapshot_end, state, load, panels, sizeof panels / sizeof panels[0]};

static aim_status train(struct training *x)
{
    struct ar_trainer *t = &x->t;
    TRY(ar_start_weights(t->model, &t->o, t->source));
    TRY(ar_trainer_build(t));
    TRY(loop_open(&x->loop, tables));
    TRY(loop_restore(&x->loop));
    TRY(ar_data_start(&t->data, x->loop.step, t->model->config.ar.vocab_size));
    x->loop.steps = t->steps;
    return loop_run(&x->loop);
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
    context_advise(t->ctx, status, "use a smaller --batch, a larger --accum, or --checkpointing");
    report->steps = x->loop.step;
    report->skipped = t->optimizer.skipped;
    report->pictures = t->data.count;
    report->loss = x->did.loss;
    report->nll = x->nll;
    report->psnr = report->ssim = report->usage = NAN;
    return status;
}

aim_status aim_train_ar(aim_context *ctx, const aim_train_ar_options *options, aim_train_report *report)
{
    struct training x = {.t = {.ctx = ctx, .o = *options}, .nll = NAN, .did = {.loss = NAN}};
    x.loop = (struct loop){.ctx = ctx, .options = &x.t.o.train, .stage = &stage, .trainer = &x, .ex = &x.t.ex};
    aim_train_report unwanted;
    if (!report) report = &unwanted;
    *report = (aim_train_report){0};
    aim_status status = run(&x, report);
    ar_trainer_clear(&x.t);
    ar_data_close(&x.t.data);
    aim_model_free(x.t.model);
    aim_model_free(x.t.source);
    loop_close(&x.loop);
    return status;
}
