#include "train/ar_data.h"

#include <stdio.h>
#include <string.h>

#include "train/encode.h"
#include "train/shuffle.h"

/* -------------------------------------------------------------------------------------------------- .npy files */

static bool is_npy(const char *path)
{
    size_t length = path ? strlen(path) : 0;
    return length > 4 && strcmp(path + length - 4, ".npy") == 0;
}

static const int64_t *wide(const aim_array *array)
{
    return array->data;
}

static aim_status open_npy(struct ar_data *d)
{
    const aim_train_ar_options *o = d->options;
    if (!o->labels) return aim_fail(d->ctx, AIM_ERR_ARGUMENT, "the codes in %s need their classes: a .npy of labels", o->codes);
    TRY(aim_array_read(d->ctx, o->codes, NULL, &d->codes));
    TRY(aim_array_to_int64(d->ctx, &d->codes));
    TRY(aim_array_read(d->ctx, o->labels, NULL, &d->labels));
    TRY(aim_array_to_int64(d->ctx, &d->labels));
    if (d->codes.ndim != 2 || d->codes.shape[0] < 1 || d->codes.shape[1] < 1)
        return aim_fail(d->ctx, AIM_ERR_FORMAT, "%s: codes must be an array (pictures, tokens)", o->codes);
    int64_t rows = d->codes.shape[0];
    if (d->labels.ndim != 1 || d->labels.shape[0] != rows)
        return aim_fail(d->ctx, AIM_ERR_FORMAT, "%s: one label for each of the %lld pictures is needed", o->labels,
                        (long long)rows);
    d->tokens = d->codes.shape[1];
    for (int64_t i = 0; i < rows; i++) {
        int64_t label = wide(&d->labels)[i];
        if (label < 0 || label > 1 << 24)
            return aim_fail(d->ctx, AIM_ERR_FORMAT, "%s: label %lld is %lld", o->labels, (long long)i, (long long)label);
        if (label >= d->class_count) d->class_count = label + 1;
    }
    /* Held out are the last rows; a file whose order counts is used whole. */
    d->held_count = o->file_order ? 0 : (int64_t)((double)rows * o->train.held_out);
    d->count = rows - d->held_count;
    return AIM_OK;
}

static void copy_row(const struct ar_data *d, int64_t row, int32_t *codes, int32_t *label)
{
    for (int64_t t = 0; t < d->tokens; t++) codes[t] = (int32_t)wide(&d->codes)[row * d->tokens + t];
    *label = (int32_t)wide(&d->labels)[row];
}

static aim_status check_npy(const struct ar_data *d, int64_t vocabulary)
{
    for (int64_t i = 0; i < d->codes.shape[0] * d->tokens; i++)
        if (wide(&d->codes)[i] < 0 || wide(&d->codes)[i] >= vocabulary)
            return aim_fail(d->ctx, AIM_ERR_FORMAT, "%s: picture %lld has the code %lld, but the vocabulary has %lld",
                            d->options->codes, (long long)(i / d->tokens), (long long)wide(&d->codes)[i],
                            (long long)vocabulary);
    return AIM_OK;
}

static void npy_batch(const struct ar_data *d, int64_t step, int64_t batch, int32_t *codes, int32_t *labels)
{
    uint64_t n = (uint64_t)d->count;
    for (int64_t b = 0; b < batch; b++) {
        uint64_t sample = (uint64_t)step * (uint64_t)batch + (uint64_t)b, place = sample % n;
        if (!d->options->file_order) place = shuffle_at(d->options->train.seed, sample / n, place, n);
        copy_row(d, (int64_t)place, codes + b * d->tokens, &labels[b]);
    }
}

/* ---------------------------------------------------------------------------------------------------- pictures */

static aim_status open_pictures(struct ar_data *d)
{
    const aim_train_options *o = &d->options->train;
    if (!d->tokenizer || !d->tokenizer->config.has_vq)
        return aim_fail(d->ctx, AIM_ERR_ARGUMENT, "training from pictures needs a tokenizer that encodes them");
    TRY(dataset_open_split(d->ctx, o->data, o->held_out, &d->pictures, &d->held_pictures));
    const struct model_config *c = &d->tokenizer->config;
    int f = vq_downsample(&c->vq);
    d->size = o->size ? o->size : c->has_ar ? ar_grid(&c->ar) * f : 256;
    if (d->size < f || d->size % f)
        return aim_fail(d->ctx, AIM_ERR_ARGUMENT, "the size must be a multiple of %d, the pixels per code, not %d", f, d->size);
    d->count = d->pictures.count;
    d->held_count = d->held_pictures.count;
    d->class_count = d->pictures.class_count;
    d->tokens = (int64_t)(d->size / f) * (d->size / f);
    d->vocabulary = c->vq.codebook_size;
    d->picture_names = mem_array(d->ctx, (size_t)d->class_count, sizeof *d->picture_names, MEM_MISC);
    if (!d->picture_names) return AIM_ERR_MEMORY;
    for (int64_t i = 0; i < d->class_count; i++) d->picture_names[i] = d->pictures.classes[i].name;
    d->names = d->picture_names;
    return AIM_OK;
}

static aim_status create_loader(struct ar_data *d, int64_t step)
{
    const aim_train_options *o = &d->options->train;
    struct loader_options how = {.dataset = &d->pictures,
                                 .augment = {.kind = AUGMENT_AIM, .size = d->size, .flip = true},
                                 .batch = o->batch,
                                 .seed = o->seed,
                                 .first_step = step,
                                 .threads = d->ctx->threads};
    d->pixels = mem_array(d->ctx, (size_t)o->batch * 3 * (size_t)d->size, (size_t)d->size * sizeof(float), MEM_IMAGE);
    if (!d->pixels) return AIM_ERR_MEMORY;
    return loader_create(d->ctx, &how, &d->loader);
}

static aim_status picture_batch(struct ar_data *d, int32_t *codes, int32_t *labels)
{
    int64_t batch = d->options->train.batch, count = 0;
    TRY(loader_next(d->loader, d->pixels, labels, &count));
    return encode_pictures(&d->tokenizer->ex, d->tokenizer->vq, d->pixels, batch, d->size, codes);
}

/* Encodes every `stride`-th held-out picture, without chance. */
static aim_status encode_held_out(struct ar_data *d, struct loader *loader, int64_t stride)
{
    int64_t kept = 0, got;
    for (int64_t i = 0;; i++) {
        TRY(aim_progress(d->ctx, "encoding held-out pictures", i, d->held_pictures.count));
        TRY(loader_next(loader, d->pixels, &d->held_labels[kept < d->held_count ? kept : 0], &got));
        if (got == 0 || kept == d->held_count) break;
        if (i % stride) continue;
        TRY(encode_pictures(&d->tokenizer->ex, d->tokenizer->vq, d->pixels, 1, d->size, d->held_codes + kept * d->tokens));
        kept++;
    }
    d->held_count = kept;
    return AIM_OK;
}

static aim_status gather_pictures(struct ar_data *d)
{
    int64_t stride = (d->held_pictures.count + d->held_count - 1) / d->held_count;
    struct loader *loader;
    struct loader_options how = {.dataset = &d->held_pictures,
                                 .augment = {.kind = AUGMENT_AIM_EVAL, .size = d->size},
                                 .batch = 1,
                                 .ordered = true,
                                 .threads = d->ctx->threads};
    TRY(loader_create(d->ctx, &how, &loader));
    aim_status status = encode_held_out(d, loader, stride);
    loader_free(loader);
    return status;
}

/* ------------------------------------------------------------------------------------------------ all of them */

static aim_status open_cache(struct ar_data *d)
{
    TRY(codes_open_split(d->ctx, d->options->codes, d->options->train.held_out, &d->cache, &d->held_cache));
    d->count = d->cache.count;
    d->tokens = d->cache.tokens;
    d->class_count = d->cache.class_count;
    d->vocabulary = d->cache.vocabulary;
    d->names = d->cache.names;
    d->held_count = d->held_cache.count;
    return AIM_OK;
}

aim_status ar_data_open(aim_context *ctx, const aim_train_ar_options *o, aim_model *tokenizer, struct ar_data *d)
{
    *d = (struct ar_data){.ctx = ctx, .options = o, .tokenizer = tokenizer};
    if (!o->codes && !o->train.data)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "there is nothing to train on: give codes or pictures");
    if (o->codes && o->train.data) return aim_fail(ctx, AIM_ERR_ARGUMENT, "codes or pictures to train on, not both");
    if (o->file_order && !is_npy(o->codes))
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "the order of the file is for codes in a .npy alone");
    if (is_npy(o->codes)) return open_npy(d);
    return o->codes ? open_cache(d) : open_pictures(d);
}

void ar_data_close(struct ar_data *d)
{
    loader_free(d->loader);
    codes_close(&d->cache);
    codes_close(&d->held_cache);
    aim_array_free(&d->codes);
    aim_array_free(&d->labels);
    dataset_close(&d->pictures);
    dataset_close(&d->held_pictures);
    mem_free(d->picture_names);
    mem_free(d->held_codes);
    mem_free(d->held_labels);
    mem_free(d->pixels);
    *d = (struct ar_data){0};
}

static aim_status gather_held_out(struct ar_data *d)
{
    int64_t there = d->held_count;
    if (there > AR_HELD_OUT_MOST) d->held_count = AR_HELD_OUT_MOST;
    if (there == 0) return AIM_OK;
    d->held_codes = mem_array(d->ctx, (size_t)(d->held_count * d->tokens), sizeof *d->held_codes, MEM_MISC);
    d->held_labels = mem_array(d->ctx, (size_t)d->held_count, sizeof *d->held_labels, MEM_MISC);
    if (!d->held_codes || !d->held_labels) return AIM_ERR_MEMORY;
    if (d->tokenizer && d->options->train.data) return gather_pictures(d);
    for (int64_t i = 0; i < d->held_count; i++) {
        int64_t from = i * there / d->held_count;
        int32_t *codes = d->held_codes + i * d->tokens;
        if (d->codes.data) {
            copy_row(d, d->count + from, codes, &d->held_labels[i]);
        } else {
            TRY(codes_read(&d->held_cache, from, 0, codes));
            d->held_labels[i] = codes_label(&d->held_cache, from);
        }
    }
    return AIM_OK;
}

aim_status ar_data_start(struct ar_data *d, int64_t step, int64_t vocabulary)
{
    if (d->codes.data) TRY(check_npy(d, vocabulary));
    if (d->cache.vocabulary == 0) d->cache.vocabulary = d->held_cache.vocabulary = vocabulary;
    if (d->options->train.data) {
        TRY(model_need_vq(d->tokenizer));
        TRY(create_loader(d, step));
    }
    return gather_held_out(d);
}

aim_status ar_data_batch(struct ar_data *d, int64_t step, int32_t *codes, int32_t *labels)
{
    const aim_train_options *o = &d->options->train;
    if (d->loader) return picture_batch(d, codes, labels);
    if (!d->codes.data) return codes_batch(&d->cache, o->seed, step, o->batch, codes, labels);
    npy_batch(d, step, o->batch, codes, labels);
    return AIM_OK;
}
