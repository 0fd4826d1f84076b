#include "train/vq_quality.h"

#include <string.h>

/* What a pass over pictures needs. */
struct pass {
    struct vq_trainer *t;
    struct dataset some; /* borrows from the set but for its list of pictures */
    struct loader *loader;
    float *pixels, *made; /* (part, 3, size, size) */
    int32_t *labels, *ids;
};

static aim_status pass_open(struct vq_trainer *t, const struct dataset *all, int64_t most, struct pass *p)
{
    const int size = t->o.train.size;
    size_t values = (size_t)t->part * 3 * (size_t)size * (size_t)size;
    *p = (struct pass){.t = t, .some = *all};
    if (most > all->count) most = all->count;
    p->some.count = most;
    p->some.pictures = mem_array(t->ctx, (size_t)most, sizeof *all->pictures, MEM_MISC);
    p->pixels = mem_array(t->ctx, values, sizeof *p->pixels, MEM_IMAGE);
    p->made = mem_array(t->ctx, values, sizeof *p->made, MEM_IMAGE);
    p->labels = mem_array(t->ctx, (size_t)t->part, sizeof *p->labels, MEM_MISC);
    p->ids = mem_array(t->ctx, (size_t)(t->part * t->codes), sizeof *p->ids, MEM_MISC);
    if (!p->some.pictures || !p->pixels || !p->made || !p->labels || !p->ids) return AIM_ERR_MEMORY;
    for (int64_t i = 0; i < most; i++) p->some.pictures[i] = all->pictures[i * all->count / most];
    const struct loader_options how = {.dataset = &p->some,
                                       .augment = {.kind = AUGMENT_CENTER_CROP, .size = size},
                                       .batch = t->part,
                                       .ordered = true,
                                       .threads = t->ctx->threads};
    return loader_create(t->ctx, &how, &p->loader);
}

static void pass_close(struct pass *p)
{
    loader_free(p->loader);
    mem_free(p->some.pictures);
    mem_free(p->pixels);
    mem_free(p->made);
    mem_free(p->labels);
    mem_free(p->ids);
}

/* The next pictures, their codes and reconstructions; *n is 0 at the end. */
static aim_status pass_next(struct pass *p, int64_t *n)
{
    struct vq_trainer *t = p->t;
    struct exec *ex = &t->ex;
    const struct vq *vq = t->model->vq;
    int64_t size = t->o.train.size, side = size / vq_downsample(&vq->config);
    TRY(loader_next(p->loader, p->pixels, p->labels, n));
    if (*n == 0) return AIM_OK;
    struct tensor *x = tensor_from_host(ex, T_F32, SHAPE(*n, 3, size, size), p->pixels);
    struct tensor *latent = vq_latent(ex, vq, x), *ids = vq_quantise(ex, vq, latent);
    struct tensor *made = vq_decode(ex, vq, ids, *n, side, side);
    aim_status status = made ? tensor_read(ex, ids, p->ids) : ex->status;
    if (status == AIM_OK) status = tensor_read(ex, made, p->made);
    struct tensor *done[] = {x, latent, ids, made};
    for (size_t i = 0; i < sizeof done / sizeof done[0]; i++) tensor_drop(done[i]);
    return status;
}

/* Picture i of a batch as bytes. */
static void to_bytes(const struct pass *p, const float *pixels, int64_t i, aim_image *image)
{
    int64_t size = p->t->o.train.size;
    aim_image_from_float(pixels + i * 3 * size * size, image);
}

static aim_status create_pair(struct vq_trainer *t, aim_image *a, aim_image *b)
{
    TRY(aim_image_create(t->ctx, t->o.train.size, t->o.train.size, a));
    return aim_image_create(t->ctx, t->o.train.size, t->o.train.size, b);
}

/* Adds the likeness of a batch to *q. */
static aim_status compare(const struct pass *p, int64_t n, aim_image *original, aim_image *made, struct vq_quality *q)
{
    for (int64_t i = 0; i < n; i++) {
        double psnr, correct, llamagen;
        to_bytes(p, p->pixels, i, original);
        to_bytes(p, p->made, i, made);
        TRY(aim_image_compare(p->t->ctx, original, made, 1, &psnr, &correct));
        TRY(aim_image_compare(p->t->ctx, original, made, 2, &psnr, &llamagen));
        q->psnr += psnr;
        q->ssim += correct;
        q->ssim_llamagen += llamagen;
    }
    return AIM_OK;
}

static aim_status measure(struct pass *p, struct codebook_usage *usage, struct vq_quality *q)
{
    struct vq_trainer *t = p->t;
    aim_image original = {0}, made = {0};
    aim_status status = create_pair(t, &original, &made);
    int64_t n = 1, done = 0;
    while (status == AIM_OK) {
        status = aim_progress(t->ctx, "evaluating", done, p->some.count);
        if (status == AIM_OK) status = pass_next(p, &n);
        if (status != AIM_OK || n == 0) break;
        codebook_usage_add(usage, p->ids, n * t->codes);
        status = compare(p, n, &original, &made, q);
        done += n;
    }
    aim_image_free(&original);
    aim_image_free(&made);
    q->psnr /= (double)done;
    q->ssim /= (double)done;
    q->ssim_llamagen /= (double)done;
    q->usage = codebook_usage_share(usage);
    q->perplexity = codebook_usage_perplexity(usage);
    return status;
}

static aim_status show(struct pass *p, int count, aim_image *images, int *found)
{
    struct vq_trainer *t = p->t;
    int64_t n;
    for (*found = 0; *found < count;) {
        TRY(pass_next(p, &n));
        if (n == 0) return AIM_OK;
        for (int64_t i = 0; i < n && *found < count; i++, ++*found) {
            aim_image *original = &images[2 * *found], *made = original + 1;
            TRY(create_pair(t, original, made));
            to_bytes(p, p->pixels, i, original);
            to_bytes(p, p->made, i, made);
        }
    }
    return AIM_OK;
}

/* The trained weights as a network that only runs: in float32, without a tape. */
static aim_status begin(struct vq_trainer *t, bool *bf16)
{
    *bf16 = t->ctx->backend->bf16;
    t->ctx->backend->bf16 = false;
    TRY(vq_trainer_snapshot(t));
    return model_need_vq(t->model);
}

static void end(struct vq_trainer *t, bool bf16)
{
    vq_trainer_snapshot_end(t);
    t->ctx->backend->bf16 = bf16;
}

aim_status vq_quality_measure(struct vq_trainer *t, const struct dataset *pictures, struct vq_quality *q)
{
    struct pass p = {0};
    struct codebook_usage usage;
    bool bf16;
    *q = (struct vq_quality){0};
    TRY(codebook_usage_init(t->ctx, t->usage.V, &usage));
    aim_status status = begin(t, &bf16);
    if (status == AIM_OK) status = pass_open(t, pictures, QUALITY_MOST, &p);
    if (status == AIM_OK) status = measure(&p, &usage, q);
    pass_close(&p);
    end(t, bf16);
    codebook_usage_free(&usage);
    return status;
}

aim_status vq_quality_samples(struct vq_trainer *t, const struct dataset *pictures, int count, aim_image *images, int *found)
{
    struct pass p = {0};
    bool bf16;
    *found = 0;
    aim_status status = begin(t, &bf16);
    if (status == AIM_OK) status = pass_open(t, pictures, count, &p);
    if (status == AIM_OK) status = show(&p, count, images, found);
    pass_close(&p);
    end(t, bf16);
    return status;
}
