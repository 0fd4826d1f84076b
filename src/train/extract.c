/* aim_extract_codes: a data set through the tokenizer, into a code cache (LlamaGen's extract_codes_c2i.py). */
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "model/model.h"
#include "train/codes_writer.h"
#include "train/encode.h"
#include "train/loader.h"

aim_extract_options aim_extract_defaults(void)
{
    return (aim_extract_options){.crop_range = 1.1};
}

/* One call: the views of some pictures go through the tokenizer together. */
struct extraction {
    aim_model *model;
    aim_extract_options o;
    int size, whole; /* sides of a view, and of the picture that views are taken from */
    int64_t views, tokens, batch;
    int64_t group; /* pictures whose views are in memory at a time */
    int64_t done, total, skipped;
    char tokenizer[17], crop_range[32];
    float *pixels;   /* (group*views, 3, size, size) */
    int32_t *codes;  /* (group*views, tokens) */
    int32_t *labels; /* (group) */
};

/* A hash of the tokenizer's weights as the file has them, so that codes are not mixed with another one's. */
static void hash_tokenizer(const struct params *table, char out[17])
{
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < table->count; i++) {
        const struct tensor_entry *e = table->items[i].entry;
        const unsigned char *data = e ? e->data : NULL;
        for (size_t at = 0, n = 0; e && !table->items[i].buffer && at < e->bytes; at += n) {
            uint64_t word = 0;
            n = e->bytes - at < sizeof word ? e->bytes - at : sizeof word;
            memcpy(&word, data + at, n);
            h = (h ^ word) * 0x100000001b3u; /* FNV-1a, eight bytes at a time */
            h ^= h >> 32;
        }
    }
    snprintf(out, 17, "%016llx", (unsigned long long)h);
}

static aim_status check_options(struct extraction *x)
{
    enum { LARGEST = 1 << 14 };
    aim_context *ctx = x->model->ctx;
    const struct model_config *config = &x->model->config;
    int f = vq_downsample(&config->vq), usual = config->has_ar ? ar_grid(&config->ar) * f : 256;
    x->size = x->o.size ? x->o.size : usual;
    if (x->size < f || x->size > LARGEST || x->size % f)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "the size must be a multiple of %d, at most %d, not %d", f, LARGEST, x->size);
    if (!(x->o.crop_range >= 1 && x->o.crop_range <= 4))
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "the crop range must be 1 to 4, not %g", x->o.crop_range);
    if (x->o.batch < 0) return aim_fail(ctx, AIM_ERR_ARGUMENT, "the batch must be 0 (chosen to fit) or more");
    if (x->o.format != AIM_CODES_COMPACT && x->o.format != AIM_CODES_LLAMAGEN)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "unknown format of codes");
    x->whole = x->o.ten_crop ? (int)(x->size * x->o.crop_range) : x->size; /* truncated, as there */
    x->tokens = (int64_t)(x->size / f) * (x->size / f);
    return AIM_OK;
}

#define ADVICE "use a smaller --batch or --size"

/* The batch asked for, or the largest of 4, 2, 1 that fits. */
static aim_status choose_batch(struct extraction *x)
{
    enum { USUAL = 4 };
    aim_model *m = x->model;
    int64_t side = x->size / vq_downsample(&m->config.vq), each = vq_activation_bytes(&m->config.vq, side, side);
    int64_t room = m->ctx->backend->memory.available(m->ctx->backend);
    x->batch = x->o.batch ? x->o.batch : USUAL;
    while (!x->o.batch && x->batch > 1 && x->batch * each > room) x->batch /= 2;
    return model_check_memory(m, x->batch * each, "encoding pictures of this size", ADVICE);
}

static aim_status prepare(struct extraction *x, int64_t views)
{
    aim_context *ctx = x->model->ctx;
    x->views = views;
    x->group = x->batch > views ? x->batch / views : 1;
    size_t crops = (size_t)(x->group * views), values = 3 * (size_t)x->size * (size_t)x->size, bytes;
    if (!size_mul(crops, values * sizeof *x->pixels, &bytes)) bytes = SIZE_MAX; /* which mem_new refuses */
    x->pixels = mem_new(ctx, bytes, MEM_IMAGE);
    x->codes = mem_array(ctx, crops * (size_t)x->tokens, sizeof *x->codes, MEM_MISC);
    x->labels = mem_array(ctx, (size_t)x->group, sizeof *x->labels, MEM_MISC);
    return x->pixels && x->codes && x->labels ? AIM_OK : AIM_ERR_MEMORY;
}

static void release(struct extraction *x)
{
    mem_free(x->pixels);
    mem_free(x->codes);
    mem_free(x->labels);
    x->pixels = NULL;
    x->codes = x->labels = NULL;
}

/* ------------------------------------------------------------------------------------------------ the work */

/* Reads the next pictures and cuts their views; *n is how many there were. */
static aim_status read_group(struct extraction *x, struct loader *loader, int64_t *n)
{
    size_t values = 3 * (size_t)x->size * (size_t)x->size;
    for (*n = 0; *n < x->group; ++*n) {
        aim_image image;
        TRY(loader_picture(loader, &image, &x->labels[*n]));
        if (!image.rgb) break;
        float *to = x->pixels + (size_t)(*n * x->views) * values;
        int kinds = x->views == 1 ? 2 : (int)x->views; /* a single view is the first of a picture and its mirror image */
        for (int v = 0; v < (int)x->views; v++) augment_view(&image, kinds, v, x->size, to + (size_t)v * values);
        aim_image_free(&image);
    }
    return AIM_OK;
}

static aim_status encode_group(struct extraction *x, int64_t crops)
{
    size_t values = 3 * (size_t)x->size * (size_t)x->size;
    for (int64_t i = 0; i < crops; i += x->batch) {
        int64_t n = crops - i < x->batch ? crops - i : x->batch;
        TRY(aim_progress(x->model->ctx, "pictures", x->done + i / x->views, x->total));
        TRY(encode_pictures(&x->model->ex, x->model->vq, x->pixels + (size_t)i * values, n, x->size, x->codes + i * x->tokens));
    }
    return AIM_OK;
}

static aim_status extract_all(struct extraction *x, struct loader *loader, struct codes_writer *w)
{
    for (int64_t n = 1; n > 0;) {
        TRY(read_group(x, loader, &n));
        TRY(encode_group(x, n * x->views));
        for (int64_t i = 0; i < n; i++) TRY(codes_writer_add(w, x->codes + i * x->views * x->tokens, x->labels[i]));
        x->done += n;
    }
    if (w->count == 0) return aim_fail(x->model->ctx, AIM_ERR_FORMAT, "none of the pictures can be read");
    return aim_progress(x->model->ctx, "pictures", x->done, x->total); /* the last chance to stop */
}

/* One data set into one cache. */
static aim_status extract_set(struct extraction *x, const struct dataset *d, const char *views, const char *output,
                              const char *file_name, int64_t *pictures)
{
    enum { MAX_THREADS = 8 };
    aim_context *ctx = x->model->ctx;
    struct loader_options lo = {.dataset = d, .batch = x->group, .ordered = true};
    lo.augment = (struct augment){.kind = AUGMENT_CENTER_CROP, .size = x->views == 1 ? x->size : x->whole};
    lo.threads = ctx->threads < MAX_THREADS ? ctx->threads : MAX_THREADS;
    struct codes_description cd = {.format = x->o.format, .dataset = d, .variants = x->views, .tokens = x->tokens};
    cd.vocabulary = x->model->config.vq.codebook_size;
    cd.size = x->size;
    cd.views = views;
    cd.tokenizer = x->tokenizer;
    cd.crop_range = x->views > 2 ? x->crop_range : NULL;
    struct codes_writer w;
    struct loader *loader;
    TRY(codes_writer_open(ctx, output, file_name, &cd, &w));
    aim_status status = loader_create(ctx, &lo, &loader);
    if (status == AIM_OK) status = extract_all(x, loader, &w);
    if (loader) x->skipped += loader_skipped(loader);
    loader_free(loader);
    *pictures = w.count;
    aim_status closed = codes_writer_close(&w, status == AIM_OK);
    return status == AIM_OK ? closed : status;
}

static aim_status extract_views(struct extraction *x, const struct dataset *d, int64_t count, const char *views,
                                const char *output, const char *file_name, int64_t *pictures)
{
    aim_status status = prepare(x, count);
    if (status == AIM_OK) status = extract_set(x, d, views, output, file_name, pictures);
    release(x);
    return status;
}

static void remove_held_out(aim_context *ctx, const char *output)
{
    char *path = file_join(ctx, output, CODES_HELD_OUT_FILE);
    if (path) unlink(path);
    mem_free(path);
}

/* Held-out pictures as they are, then those to train on in all their views: the main file tells that all is there. */
static aim_status extract_both(struct extraction *x, const struct dataset *train, const struct dataset *held_out,
                               const char *output, aim_extract_report *report)
{
    aim_context *ctx = x->model->ctx;
    bool both = held_out->count > 0 && x->o.format == AIM_CODES_COMPACT;
    x->total = train->count + (both ? held_out->count : 0);
    report->variants = x->o.ten_crop ? 10 : 2;
    if (both) TRY(codes_writer_check(ctx, output, CODES_FILE)); /* rather now than after the first file */
    if (both) TRY(extract_views(x, held_out, 1, "single", output, CODES_HELD_OUT_FILE, &report->held_out));
    aim_status status =
        extract_views(x, train, report->variants, x->o.ten_crop ? "ten-crop" : "flip", output, CODES_FILE, &report->pictures);
    if (status != AIM_OK && both) remove_held_out(ctx, output);
    return status;
}

aim_status aim_extract_codes(aim_model *m, const char *data, const char *output, const aim_extract_options *options,
                             aim_extract_report *report)
{
    aim_extract_report unused;
    struct extraction x = {.model = m, .o = options ? *options : aim_extract_defaults()};
    if (!report) report = &unused;
    *report = (aim_extract_report){0};
    if (!m->config.has_vq) return model_need_vq(m); /* says what is missing */
    TRY(check_options(&x));
    struct dataset train, held_out;
    TRY(dataset_open_split(m->ctx, data, 0, &train, &held_out));
    aim_status status = choose_batch(&x);
    if (status == AIM_OK) status = model_need_vq(m);
    hash_tokenizer(&m->vq_table, x.tokenizer);
    snprintf(x.crop_range, sizeof x.crop_range, "%g", x.o.crop_range);
    if (status == AIM_OK) status = extract_both(&x, &train, &held_out, output, report);
    report->classes = train.class_count;
    report->tokens = x.tokens;
    report->skipped = x.skipped;
    dataset_close(&train);
    dataset_close(&held_out);
    return context_advise(m->ctx, status, ADVICE);
}
