/* aim_train_tokenizer: stage 1 from pictures to a model folder (LlamaGen's vq_train.py; spec E). */
#include <math.h>
#include <string.h>

#include "base/clock.h"
#include "train/loop.h"
#include "train/vq_quality.h"

#define AT(field) offsetof(aim_train_tokenizer_options, field)

static const struct option_field vq_fields[] = {
    {"multipliers", FIELD_TEXT, AT(multipliers)},
    {"channels", FIELD_INT, AT(channels)},
    {"res_blocks", FIELD_INT, AT(res_blocks)},
    {"z_channels", FIELD_INT, AT(z_channels)},
    {"codebook_size", FIELD_INT, AT(codebook_size)},
    {"codebook_dim", FIELD_INT, AT(codebook_dim)},
    {"norm_groups", FIELD_INT, AT(norm_groups)},
    {"vgg", FIELD_PATH, AT(vgg)},
    {"lpips", FIELD_PATH, AT(lpips)},
    {"l2", FIELD_DOUBLE, AT(l2)},
    {"l1", FIELD_DOUBLE, AT(l1)},
    {"perceptual", FIELD_DOUBLE, AT(perceptual)},
    {"commit", FIELD_DOUBLE, AT(commit)},
    {"entropy", FIELD_DOUBLE, AT(entropy)},
    {"adversarial", FIELD_DOUBLE, AT(adversarial)},
    {"discriminator", FIELD_INT, AT(discriminator)},
    {"disc_channels", FIELD_INT, AT(disc_channels)},
    {"disc_start", FIELD_INT64, AT(disc_start)},
    {"disc_warmup", FIELD_INT64, AT(disc_warmup)},
    {"softplus", FIELD_INT, AT(softplus)},
    {"adaptive", FIELD_INT, AT(adaptive)},
    {"perceptual_dropout", FIELD_INT, AT(perceptual_dropout)},
    {"codebook_start", FIELD_INT, AT(codebook_start)},
    {"revive_every", FIELD_INT64, AT(revive_every)},
    {0},
};
_Static_assert(offsetof(aim_train_tokenizer_options, train) == 0, "train_fields count from the beginning");
static const struct option_field *const tables[] = {train_fields, vq_fields, NULL};

/* A run and the folder that it lives in. */
struct training {
    struct vq_trainer t;
    struct loop loop;
    struct vq_did did;
    struct vq_quality quality; /* at the last evaluation */
};

aim_train_tokenizer_options aim_train_tokenizer_defaults(void)
{
    struct vq_loss_options loss = vq_loss_defaults();
    return (aim_train_tokenizer_options){.train = {.held_out = 0.01,
                                                   .batch = 64,
                                                   .accumulate = 1,
                                                   .lr = 1e-4,
                                                   .clip = 1,
                                                   .schedule = AIM_SCHEDULE_CONSTANT,
                                                   .eval_every = 500,
                                                   .save_every = 500,
                                                   .sample_every = 1000,
                                                   .keep = 2},
                                         .l2 = (double)loss.l2,
                                         .perceptual = (double)loss.perceptual,
                                         .commit = (double)loss.commit,
                                         .adversarial = (double)loss.adversarial,
                                         .discriminator = 'p',
                                         .disc_channels = 64,
                                         .disc_start = loss.start,
                                         .codebook_start = 'r'};
}

/* -------------------------------------------------------------------------------------------------- options */

static aim_status check_options(aim_context *ctx, const aim_train_tokenizer_options *o)
{
    TRY(loop_check(ctx, &o->train));
    if (!o->train.data) return aim_fail(ctx, AIM_ERR_ARGUMENT, "there is nothing to train on: give pictures");
    if (o->train.checkpointing)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "checkpointing is for stage 2; parts of a batch (accumulate) save memory here");
    if (!(o->l2 >= 0) || !(o->l1 >= 0) || !(o->perceptual >= 0) || !(o->commit >= 0) || !(o->entropy >= 0) ||
        !(o->adversarial >= 0))
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "the weights of losses must be 0 or more");
    if (o->l2 + o->l1 + o->perceptual <= 0)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "one of the losses l2, l1 and perceptual must have a weight");
    if (o->disc_start < 0 || o->disc_warmup < 0 || o->revive_every < 0)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "numbers of steps must be 0 or more");
    if (!strchr("psn", o->discriminator) || !o->discriminator)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "the discriminator is PatchGAN ('p'), StyleGAN's ('s') or none ('n')");
    if (o->disc_channels < 1 || o->disc_channels > 4096)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "PatchGAN's first layer has 1 to 4096 channels");
    if (!strchr("rds", o->codebook_start) || !o->codebook_start)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "a codebook starts at random ('r'), drawn ('d') or spread ('s')");
    return AIM_OK;
}

/* What depends on data and sizes. */
static aim_status complete_options(struct vq_trainer *t)
{
    aim_train_options *o = &t->o.train;
    int f = vq_downsample(&t->model->config.vq);
    if (o->size == 0) o->size = 256;
    if (o->lr == 0) o->lr = 1e-4;
    if (o->size < f || o->size % f || o->size < 16)
        return aim_fail(t->ctx, AIM_ERR_ARGUMENT, "the size must be a multiple of %d, the pixels per code, from 16 on, not %d",
                        f, o->size);
    t->codes = (int64_t)(o->size / f) * (o->size / f);
    t->part = o->batch / o->accumulate;
    t->steps = loop_steps(o, t->pictures.count);
    return AIM_OK;
}

/* Options of a run that goes on; with a checkpoint, sizes are those of the model beside it. */
static aim_status recall_options(struct training *x)
{
    aim_train_tokenizer_options *o = &x->t.o, defaults = aim_train_tokenizer_defaults();
    defaults.train.run = o->train.run;
    defaults.train.dry_run = o->train.dry_run;
    *o = defaults;
    TRY(loop_recall(&x->loop, tables));
    if (!x->loop.saved_model) return AIM_OK;
    o->multipliers = NULL;
    o->channels = o->res_blocks = o->z_channels = o->codebook_size = o->codebook_dim = o->norm_groups = 0;
    return AIM_OK;
}

/* ------------------------------------------------------------------------------------------------ beginning */

static aim_status configure(struct training *x)
{
    struct vq_trainer *t = &x->t;
    if (t->o.train.resume) TRY(recall_options(x));
    TRY(check_options(t->ctx, &t->o));
    if (t->o.train.init) {
        aim_model_options how = aim_model_defaults(t->o.train.init);
        TRY(aim_model_load(t->ctx, &how, &t->source));
    }
    TRY(dataset_open_split(t->ctx, t->o.train.data, t->o.train.held_out, &t->pictures, &t->held_out));
    TRY(vq_start_configure(t->ctx, &t->o, &t->pictures, t->source, &t->model));
    TRY(complete_options(t));
    x->loop.steps = t->steps;
    return AIM_OK;
}

/* ------------------------------------------------------------------------------------------- along the way */

static aim_status snapshot(void *trainer, aim_model **model)
{
    struct training *x = trainer;
    *model = x->t.model;
    return vq_trainer_snapshot(&x->t);
}

static void snapshot_end(void *trainer)
{
    struct training *x = trainer;
    vq_trainer_snapshot_end(&x->t);
}

static aim_status state(void *trainer, struct checkpoint *list)
{
    struct training *x = trainer;
    return vq_trainer_save(&x->t, list);
}

static aim_status load(void *trainer, const struct tensor_file *file, const char *path)
{
    struct training *x = trainer;
    return vq_trainer_load(&x->t, file, path);
}

/* Of held-out pictures, if there are any, and of the codes chosen in training. */
static aim_status evaluate(void *trainer)
{
    struct training *x = trainer;
    struct vq_trainer *t = &x->t;
    if (t->held_out.count > 0) TRY(vq_quality_measure(t, &t->held_out, &x->quality));
    const struct vq_quality *q = &x->quality;
    const struct run_value values[] = {{"train_usage", codebook_usage_share(&t->usage)},
                                       {"train_perplexity", codebook_usage_perplexity(&t->usage)},
                                       {"psnr", q->psnr},
                                       {"ssim", q->ssim},
                                       {"ssim_llamagen", q->ssim_llamagen},
                                       {"usage", q->usage},
                                       {"perplexity", q->perplexity}};
    TRY(run_log(&x->loop.run, x->loop.step, values, t->held_out.count > 0 ? sizeof values / sizeof values[0] : 2));
    if (t->o.revive_every == 0) codebook_usage_reset(&t->usage);
    return AIM_OK;
}

/* Originals above reconstructions. */
static aim_status paint(void *trainer)
{
    enum { MOST = 8 };
    struct training *x = trainer;
    struct vq_trainer *t = &x->t;
    aim_image images[2 * MOST] = {{0}}, grid[2 * MOST];
    int count;
    aim_status status = vq_quality_samples(t, t->held_out.count > 0 ? &t->held_out : &t->pictures, MOST, images, &count);
    for (int i = 0; i < count; i++) {
        grid[i] = images[2 * i];
        grid[count + i] = images[2 * i + 1];
    }
    if (status == AIM_OK && count > 0) status = run_samples(&x->loop.run, x->loop.step, grid, 2 * count, count);
    for (int i = 0; i < 2 * MOST; i++) aim_image_free(&images[i]);
    return status;
}

/* ---------------------------------------------------------------------------------------------------- a step */

/* What a step has to tell: the terms that are on. */
static aim_status log_step(struct training *x, int64_t step, double seconds)
{
    const struct vq_trainer *t = &x->t;
    const struct vq_did *d = &x->did;
    const struct vq_step_values *v = &d->values;
    const bool judged = vq_loss_lambda(&t->loss, step) > 0;
    const int64_t skipped = t->generator.skipped + t->discriminator.skipped;
    const struct {
        struct run_value value;
        bool on;
    } all[] = {{{"loss", v->loss}, true},
               {{"l2", v->l2}, t->o.l2 > 0},
               {{"l1", v->l1}, t->o.l1 > 0},
               {{"perceptual", v->perceptual}, t->lpips},
               {{"codebook", v->codebook}, true},
               {{"commit", v->commit}, t->o.commit > 0},
               {{"entropy", v->entropy}, t->o.entropy > 0},
               {{"adversarial", v->adversarial}, judged},
               {{"adaptive", v->adaptive}, judged && t->o.adaptive},
               {{"discriminator", v->discriminator}, judged},
               {{"logit_real", v->real}, judged},
               {{"logit_fake", v->fake}, judged},
               {{"train_psnr", 10 * log10(4 * t->o.l2 / v->l2)}, t->o.l2 > 0}, /* values from -1 to 1 */
               {{"lr", d->lr}, true},
               {{"grad_norm", d->norm}, true},
               {{"disc_grad_norm", d->judge_norm}, judged},
               {{"revived", (double)d->revived}, d->revived > 0},
               {{"seconds", seconds}, true},
               {{"skipped", (double)skipped}, skipped > 0}};
    struct run_value values[sizeof all / sizeof all[0]];
    size_t count = 0;
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        if (all[i].on) values[count++] = all[i].value;
    return run_log(&x->loop.run, step, values, count);
}

static aim_status take_step(void *trainer)
{
    struct training *x = trainer;
    struct vq_trainer *t = &x->t;
    double start = clock_seconds();
    int64_t step = x->loop.step + 1;
    TRY(vq_trainer_step(t, step - 1, &x->did));
    x->loop.loss = x->did.values.loss;
    TRY(log_step(x, step, clock_seconds() - start));
    return guard_step(t->ctx, &t->guard, step, x->did.values.loss - x->did.values.adversarial, x->did.norm);
}

static const struct curve_panel panels[] = {{{"loss", "l2", "perceptual", "discriminator"}, true},
                                            {{"psnr", "train_psnr"}, true},
                                            {{"usage", "train_usage"}, false},
                                            {{"lr"}, false},
                                            {{"grad_norm"}, true}};
static const struct loop_stage stage = {
    take_step, evaluate, paint, snapshot, snapshot_end, state, load, panels, sizeof panels / sizeof panels[0]};

/* -------------------------------------------------------------------------------------------------- all of it */

static aim_status train(struct training *x)
{
    struct vq_trainer *t = &x->t;
    TRY(vq_start_weights(t->model, &t->o, t->source));
    TRY(vq_trainer_build(t));
    TRY(loop_open(&x->loop, tables));
    TRY(x->loop.run.restored ? loop_restore(&x->loop) : vq_trainer_start_codebook(&x->t));
    TRY(vq_trainer_start_data(t, x->loop.step));
    return loop_run(&x->loop);
}

static aim_status run(struct training *x, aim_train_report *report)
{
    struct vq_trainer *t = &x->t;
    struct backend *be = t->ctx->backend;
    bool bf16 = be->bf16;
    TRY(configure(x));
    if (t->o.train.bf16) TRY(backend_check_bf16(be));
    be->bf16 = t->o.train.bf16 != 0;
    aim_status status = t->o.train.dry_run ? vq_trainer_plan(t, report) : train(x);
    be->bf16 = bf16;
    context_advise(t->ctx, status, "use a smaller --batch or --size, or a larger --accum");
    report->steps = x->loop.step;
    report->skipped = t->generator.skipped;
    report->pictures = t->pictures.count;
    report->loss = x->did.values.loss;
    report->nll = NAN;
    report->psnr = x->quality.psnr;
    report->ssim = x->quality.ssim;
    report->usage = x->quality.usage;
    return status;
}

aim_status aim_train_tokenizer(aim_context *ctx, const aim_train_tokenizer_options *options, aim_train_report *report)
{
    struct training x = {.t = {.ctx = ctx, .o = *options},
                         .did = {.values = {.loss = NAN}},
                         .quality = {.psnr = NAN, .ssim = NAN, .ssim_llamagen = NAN, .usage = NAN, .perplexity = NAN}};
    x.loop = (struct loop){.ctx = ctx, .options = &x.t.o.train, .stage = &stage, .trainer = &x, .ex = &x.t.ex};
    aim_train_report unwanted;
    if (!report) report = &unwanted;
    *report = (aim_train_report){0};
    aim_status status = run(&x, report);
    vq_trainer_clear(&x.t);
    dataset_close(&x.t.pictures);
    dataset_close(&x.t.held_out);
    aim_model_free(x.t.model);
    aim_model_free(x.t.source);
    loop_close(&x.loop);
    return status;
}
