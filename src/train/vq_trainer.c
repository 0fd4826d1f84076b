#include "train/vq_trainer.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "train/loop.h"

/* ------------------------------------------------------------------------------------------------- building */

static aim_status build_optimizer(struct vq_trainer *t, const char *name, double ema, struct optimizer *out)
{
    struct optimizer_options how = optimizer_defaults();
    how.decay = t->o.train.decay;
    how.clip = t->o.train.clip;
    how.ema = ema;
    return optimizer_init(&t->ex, name, &how, out);
}

static aim_status build_generator(struct vq_trainer *t)
{
    const struct params *table = &t->model->vq_table;
    struct tensor *const *w = t->vq->tensors;
    TRY(build_optimizer(t, "generator", t->o.train.ema, &t->generator));
    for (size_t i = 0; i < table->count; i++) {
        if (table->items[i].buffer) continue;
        TRY(optimizer_add(&t->generator, table->items[i].name, *w, optimizer_decays(*w)));
        w++;
    }
    return AIM_OK;
}

/* Whether the run ever comes to the discriminator. */
static bool wants_discriminator(const struct vq_trainer *t)
{
    return t->o.discriminator != 'n' && t->o.adversarial > 0;
}

/* `values` stands for the weights when nobody reads them. */
static aim_status build_discriminator(struct vq_trainer *t, const void *values)
{
    const struct discriminator_config config = {t->o.discriminator == 's' ? DISCRIMINATOR_STYLE : DISCRIMINATOR_PATCH,
                                                t->o.train.size, t->o.disc_channels};
    t->judge_table = (struct params){.ctx = t->ctx, .prefix = ""};
    TRY(discriminator_describe(&config, &t->judge_table));
    TRY(values ? params_point(&t->judge_table, values) : params_init(&t->judge_table, t->o.train.seed));
    TRY(discriminator_build(&config, &t->judge_table, &t->judge));
    params_release(&t->judge_table);
    TRY(build_optimizer(t, "discriminator", 0, &t->discriminator));
    for (size_t i = 0, k = 0; i < t->judge->count; i++) {
        struct param_name name;
        if (k == t->judge->trainable_count || t->judge->tensors[i] != t->judge->trainable[k]) continue;
        snprintf(name.text, sizeof name.text, "discriminator.%.80s", t->judge_table.items[i].name);
        TRY(optimizer_add(&t->discriminator, name.text, t->judge->trainable[k], optimizer_decays(t->judge->trainable[k])));
        k++;
    }
    return AIM_OK;
}

/* Without the weights of VGG training goes on without the loss that needs them; files that were named must be good. */
static aim_status build_perceptual(struct vq_trainer *t)
{
    if (t->o.perceptual == 0) return AIM_OK;
    if (t->o.vgg || t->o.lpips) return lpips_load(t->ctx, t->o.vgg, t->o.lpips, &t->lpips);
    aim_log(t->ctx, AIM_LOG_WARNING,
            "no perceptual loss: it needs the weights of VGG16 (torchvision's vgg16-397923af.pth) and of LPIPS (vgg.pth)");
    return AIM_OK;
}

static struct vq_loss_options loss_options(const aim_train_tokenizer_options *o)
{
    struct vq_loss_options p = vq_loss_defaults();
    p.l2 = (float)o->l2;
    p.l1 = (float)o->l1;
    p.perceptual = (float)o->perceptual;
    p.adversarial = (float)o->adversarial;
    p.commit = (float)o->commit;
    p.entropy = (float)o->entropy;
    p.generator = p.discriminator = o->softplus ? ADVERSARIAL_SOFTPLUS : ADVERSARIAL_HINGE;
    p.start = o->disc_start;
    p.warmup = o->disc_warmup;
    p.adaptive = o->adaptive != 0;
    p.dropout = o->perceptual_dropout != 0;
    p.seed = o->train.seed;
    return p;
}

static aim_status allocate(struct vq_trainer *t)
{
    const aim_train_options *o = &t->o.train;
    int64_t V = t->vq->config.codebook_size;
    size_t batch = (size_t)o->batch, side = (size_t)o->size, parts = (size_t)o->accumulate;
    t->bytes = mem_zero(t->ctx, batch * 3 * side + 1, side, MEM_IMAGE);
    t->labels = mem_array(t->ctx, batch, sizeof *t->labels, MEM_MISC);
    t->ids = mem_array(t->ctx, (size_t)(t->part * t->codes), sizeof *t->ids, MEM_MISC);
    t->x = mem_zero(t->ctx, parts, sizeof(struct tensor *), MEM_MISC);
    t->fake = mem_zero(t->ctx, parts, sizeof(struct tensor *), MEM_MISC);
    t->queue = tensor_new_weight(t->ctx, T_F32, SHAPE(CODEBOOK_QUEUE));
    t->counts = tensor_new_weight(t->ctx, T_I32, SHAPE(V));
    if (!t->bytes || !t->labels || !t->ids || !t->x || !t->fake || !t->queue || !t->counts) return t->ctx->status;
    return codebook_usage_init(t->ctx, V, &t->usage);
}

static aim_status build(struct vq_trainer *t, const void *values)
{
    const aim_train_options *o = &t->o.train;
    enum { EXPLODED = 1000 }; /* pictures are in [-1, 1]: an untrained tokenizer is at about 1 */
    exec_init(&t->ex, t->ctx);
    aim_status status = vq_build_trainable(&t->model->config.vq, &t->model->vq_table, &t->vq);
    params_release(&t->model->vq_table);
    TRY(status);
    TRY(allocate(t));
    TRY(build_perceptual(t));
    TRY(build_generator(t));
    if (wants_discriminator(t)) TRY(build_discriminator(t, values));
    t->loss = (struct vq_loss){loss_options(&t->o), t->lpips, t->judge};
    t->schedule = (struct schedule){.kind = o->schedule, .lr = o->lr, .warmup = o->warmup, .steps = t->steps};
    t->guard.most = EXPLODED;
    return AIM_OK;
}

aim_status vq_trainer_build(struct vq_trainer *t)
{
    return build(t, NULL);
}

/* Ends a step. */
static void drop_batch(struct vq_trainer *t)
{
    for (int p = 0; t->x && t->fake && p < t->o.train.accumulate; p++) {
        tensor_drop(t->x[p]);
        tensor_drop(t->fake[p]);
        t->x[p] = t->fake[p] = NULL;
    }
}

void vq_trainer_clear(struct vq_trainer *t)
{
    drop_batch(t);
    loader_free(t->loader);
    optimizer_free(&t->generator);
    optimizer_free(&t->discriminator);
    discriminator_free(t->judge);
    params_free(&t->judge_table);
    lpips_free(t->lpips);
    vq_free(t->vq);
    codebook_usage_free(&t->usage);
    tensor_drop(t->queue);
    tensor_drop(t->counts);
    mem_free(t->x);
    mem_free(t->fake);
    mem_free(t->bytes);
    mem_free(t->labels);
    mem_free(t->ids);
    t->loader = NULL;
    t->judge = NULL;
    t->lpips = NULL;
    t->vq = NULL;
    t->queue = t->counts = NULL;
    t->x = t->fake = NULL;
    t->bytes = NULL;
    t->labels = t->ids = NULL;
    if (t->ex.ctx) exec_clear(&t->ex);
}

/* ----------------------------------------------------------------------------------------------------- data */

static aim_status open_stream(struct vq_trainer *t, int64_t step, struct loader **loader)
{
    const aim_train_options *o = &t->o.train;
    const struct loader_options how = {.dataset = &t->pictures,
                                       .augment = {.kind = AUGMENT_RANDOM_CROP, .size = o->size, .flip = true},
                                       .batch = o->batch,
                                       .seed = o->seed,
                                       .first_step = step,
                                       .threads = t->ctx->threads};
    return loader_create(t->ctx, &how, loader);
}

aim_status vq_trainer_start_data(struct vq_trainer *t, int64_t step)
{
    return open_stream(t, step, &t->loader);
}

static struct tensor *upload_part(struct vq_trainer *t, int64_t first)
{
    int64_t side = t->o.train.size;
    return op_pictures(&t->ex, t->bytes + first * 3 * side * side, t->part, side, side);
}

/* ------------------------------------------------------------------------------------------------- the codebook */

/* x (n,3,H,W) -> latents (n codes, D) of unit length, in float32 */
static aim_status unit_latents(struct vq_trainer *t, const struct tensor *x, float *out)
{
    struct exec *ex = &t->ex;
    bool bf16 = ex->backend->bf16;
    ex->backend->bf16 = false;
    struct tensor *latent = vq_latent(ex, t->vq, x), *unit = op_normalize_rows(ex, latent);
    aim_status status = unit ? tensor_read(ex, unit, out) : ex->status;
    tensor_drop(latent);
    tensor_drop(unit);
    ex->backend->bf16 = bf16;
    return status;
}

/* Latents of the first `batches` of the run. */
static aim_status gather_latents(struct vq_trainer *t, int64_t batches, float *out)
{
    int64_t D = t->vq->config.codebook_dim, count;
    struct loader *loader;
    TRY(open_stream(t, 0, &loader));
    aim_status status = AIM_OK;
    for (int64_t b = 0; b < batches && status == AIM_OK; b++) {
        status = loader_next_bytes(loader, t->bytes, t->labels, &count);
        for (int64_t first = 0; first < t->o.train.batch && status == AIM_OK; first += t->part) {
            struct tensor *x = upload_part(t, first);
            status = x ? unit_latents(t, x, out + (b * t->o.train.batch + first) * t->codes * D) : t->ex.status;
            tensor_drop(x);
        }
    }
    loader_free(loader);
    return status;
}

aim_status vq_trainer_start_codebook(struct vq_trainer *t)
{
    enum { MOST_BATCHES = 64 };
    const enum codebook_start how = t->o.codebook_start == 's'   ? CODEBOOK_SPREAD
                                    : t->o.codebook_start == 'd' ? CODEBOOK_SAMPLED
                                                                 : CODEBOOK_RANDOM;
    if (how == CODEBOOK_RANDOM) return AIM_OK;
    int64_t V = t->vq->config.codebook_size, D = t->vq->config.codebook_dim, each = t->o.train.batch * t->codes;
    int64_t batches = (V + each - 1) / each;
    if (batches > MOST_BATCHES) batches = MOST_BATCHES;
    float *latents = mem_array(t->ctx, (size_t)(batches * each), (size_t)D * sizeof(float), MEM_MISC);
    float *codes = mem_array(t->ctx, (size_t)V, (size_t)D * sizeof(float), MEM_MISC);
    aim_status status = latents && codes ? gather_latents(t, batches, latents) : AIM_ERR_MEMORY;
    if (status == AIM_OK) status = codebook_start_from(t->ctx, how, latents, batches * each, D, t->o.train.seed, codes, V);
    if (status == AIM_OK) status = tensor_write(&t->ex, t->vq->codebook, codes);
    mem_free(latents);
    mem_free(codes);
    return status;
}

/* Rows of a tensor that are revived become `rows`, or zero where that is NULL; `work` has room for the tensor. */
static aim_status replace_rows(struct exec *ex, struct tensor *w, const bool *revived, const float *rows, float *work)
{
    int64_t V = w->shape[0], D = w->shape[1];
    TRY(tensor_read(ex, w, work));
    for (int64_t j = 0; j < V; j++) {
        if (!revived[j]) continue;
        if (rows)
            memcpy(work + j * D, rows + j * D, (size_t)D * sizeof(float));
        else
            memset(work + j * D, 0, (size_t)D * sizeof(float));
    }
    return tensor_write(ex, w, work);
}

/* The codebook's slot; what belonged to the old codes is forgotten. */
static aim_status write_revived(struct vq_trainer *t, const bool *revived, const float *codes, float *work)
{
    struct adamw_slot *s = t->generator.slots;
    while (s->w != t->vq->codebook) s++;
    TRY(tensor_write(&t->ex, s->w, codes));
    TRY(replace_rows(&t->ex, s->m, revived, NULL, work));
    TRY(replace_rows(&t->ex, s->v, revived, NULL, work));
    return s->ema ? replace_rows(&t->ex, s->ema, revived, codes, work) : AIM_OK;
}

/* Codes that nothing has been nearest to become latents of the first part of the batch that comes now. */
static aim_status revive(struct vq_trainer *t, int64_t step, int64_t *count)
{
    int64_t V = t->usage.V, D = t->vq->config.codebook_dim, M = t->part * t->codes;
    float *latents = mem_array(t->ctx, (size_t)M, (size_t)D * sizeof(float), MEM_MISC);
    float *codes = mem_array(t->ctx, 2 * (size_t)V, (size_t)D * sizeof(float), MEM_MISC);
    bool *revived = mem_array(t->ctx, (size_t)V, sizeof *revived, MEM_MISC);
    aim_status status = latents && codes && revived ? unit_latents(t, t->x[0], latents) : AIM_ERR_MEMORY;
    if (status == AIM_OK) status = tensor_read(&t->ex, t->vq->codebook, codes);
    if (status == AIM_OK) {
        *count = codebook_revive(t->usage.counts, 1, latents, M, D, t->o.train.seed, (uint32_t)step, codes, V, revived);
        if (*count) status = write_revived(t, revived, codes, codes + V * D);
        codebook_usage_reset(&t->usage);
    }
    mem_free(latents);
    mem_free(codes);
    mem_free(revived);
    return status;
}

/* --------------------------------------------------------------------------------------------------- a step */

static void add_values(struct vq_step_values *sum, const struct vq_step_values *v, double share)
{
    double *to = (double *)sum; /* numbers alone */
    const double *from = (const double *)v;
    for (size_t i = 0; i < sizeof *sum / sizeof(double); i++) to[i] += share * from[i];
}

/* The generator's half. */
static aim_status generate(struct vq_trainer *t, int64_t step, struct vq_did *did)
{
    const int parts = t->o.train.accumulate;
    for (int p = 0; p < parts; p++) {
        struct vq_step_values values;
        TRY(vq_step_generator(&t->ex, t->vq, &t->loss, t->x[p], step + 1, 1.0f / (float)parts, &t->fake[p], t->ids, &values));
        add_values(&did->values, &values, 1.0 / parts);
        codebook_usage_add(&t->usage, t->ids, t->part * t->codes);
    }
    /* An adversarial term may be large without harm: its weight is relative. */
    if (guard_refuses(&t->guard, did->values.loss - did->values.adversarial)) return optimizer_skip(&t->generator);
    return optimizer_step(&t->generator, did->lr, &did->norm);
}

/* The discriminator's half, of the same reconstructions. */
static aim_status judge(struct vq_trainer *t, int64_t step, struct vq_did *did)
{
    const int parts = t->o.train.accumulate;
    for (int p = 0; p < parts; p++) {
        struct vq_step_values values = {0};
        TRY(vq_step_discriminator(&t->ex, &t->loss, t->x[p], t->fake[p], step + 1, 1.0f / (float)parts, &values));
        add_values(&did->values, &values, 1.0 / parts);
    }
    return optimizer_step(&t->discriminator, did->lr, &did->judge_norm);
}

static aim_status work_out(struct vq_trainer *t, int64_t step, struct vq_did *did)
{
    for (int p = 0; p < t->o.train.accumulate; p++) {
        t->x[p] = upload_part(t, p * t->part);
        if (!t->x[p]) return t->ex.status;
    }
    if (t->o.revive_every > 0 && step > 0 && step % t->o.revive_every == 0) TRY(revive(t, step, &did->revived));
    TRY(generate(t, step, did));
    if (isfinite(did->norm) && vq_loss_lambda(&t->loss, step + 1) > 0) TRY(judge(t, step, did));
    return AIM_OK;
}

aim_status vq_trainer_update(struct vq_trainer *t, int64_t step, struct vq_did *did)
{
    *did = (struct vq_did){.norm = NAN, .judge_norm = NAN, .lr = schedule_rate(&t->schedule, step)};
    aim_status status = work_out(t, step, did);
    drop_batch(t);
    return status;
}

aim_status vq_trainer_step(struct vq_trainer *t, int64_t step, struct vq_did *did)
{
    int64_t count;
    TRY(loader_next_bytes(t->loader, t->bytes, t->labels, &count));
    return vq_trainer_update(t, step, did);
}

/* ----------------------------------------------------------------------------------- checkpoints and snapshots */

static const char queue_name[] = "quantize.codebook_used", counts_name[] = "usage";

/* The discriminator's running statistics. */
static aim_status each_statistic(struct vq_trainer *t, struct checkpoint *list, const struct tensor_file *file,
                                 const char *path)
{
    for (size_t i = 0; t->judge && i < t->judge->count; i++) {
        const struct param *row = &t->judge_table.items[i];
        if (!row->buffer) continue;
        TRY(list ? checkpoint_add(list, "discriminator.", row->name, t->judge->tensors[i])
                 : checkpoint_read(&t->ex, file, path, "discriminator.", row->name, t->judge->tensors[i]));
    }
    return AIM_OK;
}

aim_status vq_trainer_save(struct vq_trainer *t, struct checkpoint *list)
{
    int64_t V = t->usage.V;
    int32_t *counts = mem_array(t->ctx, (size_t)V, sizeof *counts, MEM_MISC);
    if (!counts) return AIM_ERR_MEMORY;
    for (int64_t j = 0; j < V; j++) counts[j] = t->usage.counts[j] < INT32_MAX ? (int32_t)t->usage.counts[j] : INT32_MAX;
    aim_status status = tensor_write(&t->ex, t->counts, counts);
    mem_free(counts);
    TRY(status);
    TRY(tensor_write(&t->ex, t->queue, t->usage.queue));
    TRY(checkpoint_add(list, "", queue_name, t->queue));
    TRY(checkpoint_add(list, "", counts_name, t->counts));
    TRY(optimizer_save(&t->generator, list));
    if (t->judge) TRY(optimizer_save(&t->discriminator, list));
    TRY(each_statistic(t, list, NULL, NULL));
    return guard_save(&t->guard, list);
}

/* What codebook_usage_add would have counted. */
static aim_status load_usage(struct vq_trainer *t)
{
    int64_t V = t->usage.V;
    int32_t *counts = mem_array(t->ctx, (size_t)V, sizeof *counts, MEM_MISC);
    if (!counts) return AIM_ERR_MEMORY;
    aim_status status = tensor_read(&t->ex, t->counts, counts);
    for (int64_t j = 0; j < V && status == AIM_OK; j++) {
        t->usage.counts[j] = counts[j];
        t->usage.chosen += counts[j];
    }
    mem_free(counts);
    return status == AIM_OK ? tensor_read(&t->ex, t->queue, t->usage.queue) : status;
}

aim_status vq_trainer_load(struct vq_trainer *t, const struct tensor_file *file, const char *path)
{
    TRY(checkpoint_read(&t->ex, file, path, "", queue_name, t->queue));
    TRY(checkpoint_read(&t->ex, file, path, "", counts_name, t->counts));
    TRY(load_usage(t));
    TRY(optimizer_load(&t->generator, file, path));
    if (t->judge) TRY(optimizer_load(&t->discriminator, file, path));
    TRY(each_statistic(t, NULL, file, path));
    return guard_load(t->ctx, &t->guard, file, path);
}

aim_status vq_trainer_snapshot(struct vq_trainer *t)
{
    struct params *table = &t->model->vq_table;
    TRY(optimizer_snapshot(&t->generator, t->vq->tensors, table));
    for (size_t i = 0; i < table->count; i++) {
        if (!table->items[i].buffer) continue;
        float *queue = t->usage.queue;
        if (!table->borrowed) {
            queue = mem_array(t->ctx, CODEBOOK_QUEUE, sizeof *queue, MEM_WEIGHTS);
            if (!queue) return AIM_ERR_MEMORY;
            memcpy(queue, t->usage.queue, CODEBOOK_QUEUE * sizeof *queue);
        }
        table->made[i].data = queue;
    }
    return AIM_OK;
}

void vq_trainer_snapshot_end(struct vq_trainer *t)
{
    vq_free(t->model->vq);
    t->model->vq = NULL;
    params_release(&t->model->vq_table);
}

/* ------------------------------------------------------------------------------------------------- planning */

static int64_t lpips_bytes(const struct lpips *l)
{
    int64_t values = 0;
    for (int i = 0; l && i < LPIPS_CONVS; i++) values += tensor_count(l->w[i]) + tensor_count(l->b[i]);
    for (int i = 0; l && i < LPIPS_TAPS; i++) values += tensor_count(l->lin[i]);
    return values * (int64_t)sizeof(float);
}

static int64_t trained_bytes(const struct optimizer *o)
{
    int64_t values = 0;
    for (size_t i = 0; i < o->count; i++) values += tensor_count(o->slots[i].w);
    return values * (int64_t)sizeof(float);
}

/* A step with the discriminator, if the run comes to one. */
static aim_status plan_step(void *trainer, aim_train_report *r)
{
    struct vq_trainer *t = trainer;
    static const float value; /* stands for all values: nobody reads them */
    struct vq_did did;
    int64_t start = t->o.disc_start > 0 ? t->o.disc_start - 1 : 0;
    TRY(params_point(&t->model->vq_table, &value));
    TRY(build(t, &value));
    TRY(vq_trainer_update(t, start < t->steps || t->o.train.steps == 0 ? start : 0, &did));
    r->gradients = trained_bytes(&t->generator) + trained_bytes(&t->discriminator);
    r->parameters = r->gradients + lpips_bytes(t->lpips);
    r->optimizer = optimizer_bytes(&t->generator) + optimizer_bytes(&t->discriminator);
    return AIM_OK;
}

static void plan_clear(void *trainer)
{
    struct vq_trainer *t = trainer;
    vq_trainer_clear(t);
    params_release(&t->model->vq_table);
}

aim_status vq_trainer_plan(struct vq_trainer *t, aim_train_report *report)
{
    return loop_plan(t->ctx, plan_step, plan_clear, t, report);
}
