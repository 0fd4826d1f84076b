#include "train/codes.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "train/codes_llamagen.h"
#include "train/shuffle.h"

/* ------------------------------------------------------------------------------------------------ metadata */

/* Class names from a JSON list. */
static aim_status read_names(struct codes *c, const char *text)
{
    json_error_t error;
    json_t *list = json_loads(text, 0, &error);
    aim_status status = AIM_OK;
    if (!json_is_array(list) || json_array_size(list) == 0 || json_array_size(list) > INT32_MAX)
        status = aim_fail(c->ctx, AIM_ERR_FORMAT, "%s: the metadata \"" CODES_KEY_CLASSES "\" is no list of names", c->path);
    size_t n = json_array_size(list);
    if (status == AIM_OK && !(c->names = mem_zero(c->ctx, n, sizeof *c->names, MEM_MISC))) status = AIM_ERR_MEMORY;
    if (status == AIM_OK) c->class_count = (int64_t)n;
    for (size_t i = 0; i < n && status == AIM_OK; i++) {
        const char *name = json_string_value(json_array_get(list, i));
        if (!name)
            status = aim_fail(c->ctx, AIM_ERR_FORMAT, "%s: class %zu has no name", c->path, i);
        else if (!(c->names[i] = mem_string(c->ctx, name, MEM_MISC)))
            status = AIM_ERR_MEMORY;
    }
    json_decref(list);
    return status;
}

static aim_status read_metadata(struct codes *c)
{
    const char *format = tensor_file_metadata(&c->file, CODES_KEY_FORMAT);
    if (!format || strncmp(format, "aim-codes-", 10) != 0)
        return aim_fail(c->ctx, AIM_ERR_FORMAT, "%s is no cache of codes; `aim extract-codes` makes one", c->path);
    if (strcmp(format, CODES_FORMAT) != 0)
        return aim_fail(c->ctx, AIM_ERR_UNSUPPORTED, "%s has the form \"%.40s\"; this version reads \"" CODES_FORMAT "\"",
                        c->path, format);
    const char *vocabulary = tensor_file_metadata(&c->file, CODES_KEY_VOCABULARY);
    char *end = NULL;
    long long value = vocabulary ? strtoll(vocabulary, &end, 10) : 0;
    if (!end || *end || value < 1 || value > INT32_MAX)
        return aim_fail(c->ctx, AIM_ERR_FORMAT, "%s: the metadata does not tell the size of the vocabulary", c->path);
    c->vocabulary = value;
    const char *tokenizer = tensor_file_metadata(&c->file, CODES_KEY_TOKENIZER);
    if (tokenizer) snprintf(c->tokenizer, sizeof c->tokenizer, "%s", tokenizer);
    const char *classes = tensor_file_metadata(&c->file, CODES_KEY_CLASSES);
    if (!classes) return aim_fail(c->ctx, AIM_ERR_FORMAT, "%s: the metadata does not name the classes", c->path);
    return read_names(c, classes);
}

/* --------------------------------------------------------------------------------------------- our own form */

static aim_status read_labels(struct codes *c, const struct tensor_entry *labels)
{
    c->labels = mem_array(c->ctx, (size_t)c->count, sizeof *c->labels, MEM_FILE);
    if (!c->labels) return AIM_ERR_MEMORY;
    memcpy(c->labels, labels->data, labels->bytes);
    for (int64_t i = 0; i < c->count; i++)
        if (c->labels[i] < 0 || c->labels[i] >= c->class_count)
            return aim_fail(c->ctx, AIM_ERR_FORMAT, "%s: picture %lld has class %d, but there are %lld classes", c->path,
                            (long long)i, c->labels[i], (long long)c->class_count);
    return AIM_OK;
}

/* Once c->file is open. */
static aim_status read_file(struct codes *c)
{
    TRY(read_metadata(c));
    const struct tensor_entry *values = tensor_file_find(&c->file, "codes"), *labels = tensor_file_find(&c->file, "labels");
    if (!values || (values->dtype != FILE_U16 && values->dtype != FILE_I32) || values->ndim != 3 || values->bytes == 0)
        return aim_fail(c->ctx, AIM_ERR_FORMAT, "%s: there is no tensor \"codes\" (pictures, variants, tokens) of U16 or I32",
                        c->path);
    if (!labels || labels->dtype != FILE_I32 || labels->ndim != 1 || labels->shape[0] != values->shape[0])
        return aim_fail(c->ctx, AIM_ERR_FORMAT, "%s: there is no tensor \"labels\" of I32, one for each of %lld pictures",
                        c->path, (long long)values->shape[0]);
    c->count = values->shape[0];
    c->variants = values->shape[1];
    c->tokens = values->shape[2];
    c->values = values;
    return read_labels(c, labels);
}

/* ------------------------------------------------------------------------------------------------- opening */

static aim_status open_file(struct codes *c)
{
    TRY(tensor_file_open(c->ctx, c->path, &c->file));
    return read_file(c);
}

aim_status codes_parse(aim_context *ctx, const char *name, const void *data, size_t size, struct codes *c)
{
    *c = (struct codes){.ctx = ctx, .path = mem_string(ctx, name, MEM_MISC)};
    aim_status status = c->path ? tensor_file_parse(ctx, name, data, size, &c->file) : AIM_ERR_MEMORY;
    if (status == AIM_OK) status = read_file(c);
    if (status != AIM_OK) codes_close(c);
    return status;
}

/* Finds out which form `path` has, and opens it. */
static aim_status open_any(struct codes *c, const char *path, const char *file_name)
{
    if (!file_is_directory(path)) {
        c->path = mem_string(c->ctx, path, MEM_MISC);
        return c->path ? open_file(c) : AIM_ERR_MEMORY;
    }
    c->path = file_join(c->ctx, path, file_name);
    if (!c->path) return AIM_ERR_MEMORY;
    if (file_exists(c->path)) return open_file(c);
    mem_free(c->path);
    c->path = NULL;
    TRY(llamagen_find(c->ctx, path, &c->path));
    if (!c->path)
        return aim_fail(c->ctx, AIM_ERR_ARGUMENT, "%s holds no codes: neither " CODES_FILE " nor a folder NAME_codes", path);
    return llamagen_open(c);
}

static aim_status open_named(aim_context *ctx, const char *path, const char *file_name, struct codes *c)
{
    *c = (struct codes){.ctx = ctx};
    aim_status status = open_any(c, path, file_name);
    if (status != AIM_OK) codes_close(c);
    return status;
}

aim_status codes_open(aim_context *ctx, const char *path, struct codes *c)
{
    return open_named(ctx, path, CODES_FILE, c);
}

void codes_close(struct codes *c)
{
    for (int64_t i = 0; c->names && i < c->class_count; i++) mem_free(c->names[i]);
    mem_free(c->names);
    mem_free(c->path);
    mem_free(c->labels);
    mem_free(c->subset);
    tensor_file_close(&c->file);
    *c = (struct codes){0};
}

/* --------------------------------------------------------------------------------------------------- split */

/* A number in [0, 1) for each picture, the same whatever the cache. */
static double picture_fraction(int64_t i)
{
    const uint64_t key = 0x68656c64206f7574u;
    struct philox4 r = philox(key, (uint64_t)i, 0, PHILOX_SHUFFLE);
    return philox_double(r.v[0], r.v[1]);
}

/* Keeps the pictures whose fraction lies within [from, to). */
static aim_status keep(struct codes *c, double from, double to)
{
    c->subset = mem_array(c->ctx, (size_t)c->count, sizeof *c->subset, MEM_MISC);
    if (!c->subset) return AIM_ERR_MEMORY;
    int64_t kept = 0;
    for (int64_t i = 0; i < c->count; i++) {
        double at = picture_fraction(i);
        if (at >= from && at < to) c->subset[kept++] = i;
    }
    c->count = kept;
    return AIM_OK;
}

static bool same_classes(const struct codes *a, const struct codes *b)
{
    if (a->class_count != b->class_count || !a->names || !b->names) return false;
    for (int64_t i = 0; i < a->class_count; i++)
        if (strcmp(a->names[i], b->names[i]) != 0) return false;
    return true;
}

static aim_status check_fit(const struct codes *train, const struct codes *held_out)
{
    if (train->tokens == held_out->tokens && train->vocabulary == held_out->vocabulary && same_classes(train, held_out) &&
        strcmp(train->tokenizer, held_out->tokenizer) == 0)
        return AIM_OK;
    return aim_fail(train->ctx, AIM_ERR_FORMAT, "%s and %s do not belong together: size, classes or tokenizer differ",
                    train->path, held_out->path);
}

static aim_status split(aim_context *ctx, const char *path, double fraction, struct codes *train, struct codes *held_out)
{
    TRY(open_named(ctx, path, CODES_FILE, train));
    char *val = file_join(ctx, path, CODES_HELD_OUT_FILE);
    if (!val) return AIM_ERR_MEMORY;
    bool exists = train->values && file_exists(val);
    aim_status status = exists ? open_named(ctx, val, "", held_out) : AIM_OK;
    mem_free(val);
    TRY(status);
    if (exists) return check_fit(train, held_out);
    if (fraction <= 0) return AIM_OK;
    TRY(open_named(ctx, path, CODES_FILE, held_out));
    TRY(keep(held_out, 0, fraction));
    TRY(keep(train, fraction, 1));
    return train->count ? AIM_OK
                        : aim_fail(ctx, AIM_ERR_ARGUMENT, "all codes in %s are held out; none is left to train on", path);
}

aim_status codes_open_split(aim_context *ctx, const char *path, double fraction, struct codes *train, struct codes *held_out)
{
    *train = *held_out = (struct codes){0};
    if (!(fraction >= 0 && fraction < 1))
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "the held-out fraction must be 0 or more and below 1");
    aim_status status = split(ctx, path, fraction, train, held_out);
    if (status != AIM_OK) {
        codes_close(train);
        codes_close(held_out);
    }
    return status;
}

/* ------------------------------------------------------------------------------------------------- reading */

static int64_t cache_index(const struct codes *c, int64_t i)
{
    return c->subset ? c->subset[i] : i;
}

int32_t codes_label(const struct codes *c, int64_t i)
{
    return c->labels[cache_index(c, i)];
}

/* From the mapping, where values may lie unaligned. */
static void copy_codes(const struct codes *c, int64_t index, int64_t variant, int32_t *out)
{
    size_t size = file_dtype_size(c->values->dtype), tokens = (size_t)c->tokens;
    const unsigned char *from = c->values->data;
    from += ((size_t)index * (size_t)c->variants + (size_t)variant) * tokens * size;
    if (c->values->dtype == FILE_I32) {
        memcpy(out, from, tokens * size);
        return;
    }
    for (size_t t = 0; t < tokens; t++, from += size) {
        uint16_t code;
        memcpy(&code, from, sizeof code);
        out[t] = code;
    }
}

aim_status codes_read(const struct codes *c, int64_t i, int64_t variant, int32_t *out)
{
    int64_t index = cache_index(c, i);
    if (c->values)
        copy_codes(c, index, variant, out);
    else
        TRY(llamagen_read(c, index, variant, out));
    for (int64_t t = 0; t < c->tokens; t++)
        if (out[t] < 0 || (c->vocabulary > 0 && out[t] >= c->vocabulary))
            return aim_fail(c->ctx, AIM_ERR_FORMAT, "%s: picture %lld has the code %d, but the vocabulary has %lld", c->path,
                            (long long)index, out[t], (long long)c->vocabulary);
    return AIM_OK;
}

aim_status codes_batch(const struct codes *c, uint64_t seed, int64_t step, int64_t batch, int32_t *codes, int32_t *labels)
{
    if (c->count < 1) return aim_fail(c->ctx, AIM_ERR_ARGUMENT, "there are no codes to train on");
    uint64_t n = (uint64_t)c->count;
    for (int64_t b = 0; b < batch; b++) {
        uint64_t sample = (uint64_t)step * (uint64_t)batch + (uint64_t)b;
        int64_t i = (int64_t)shuffle_at(seed, sample / n, sample % n, n);
        struct philox4 r = philox(seed, sample, 0, PHILOX_VARIANT);
        TRY(codes_read(c, i, philox_below(r.v[0], (uint32_t)c->variants), codes + b * c->tokens));
        labels[b] = codes_label(c, i);
    }
    return AIM_OK;
}
