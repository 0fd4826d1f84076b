#include "train/checkpoint.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/safetensors.h"
#include "tensor/backend.h"

void checkpoint_free(struct checkpoint *c)
{
    for (size_t i = 0; i < c->text_count; i++) mem_free(c->texts[i].value);
    mem_free(c->texts);
    mem_free(c->tensors);
    *c = (struct checkpoint){.ctx = c->ctx};
}

/* Room for one more element of `size` bytes. */
static aim_status grow(aim_context *ctx, void **items, size_t count, size_t *capacity, size_t size)
{
    if (count < *capacity) return AIM_OK;
    size_t wanted = *capacity ? 2 * *capacity : 64;
    void *moved = mem_resize(ctx, *items, wanted * size, MEM_MISC);
    if (!moved) return AIM_ERR_MEMORY;
    *items = moved;
    *capacity = wanted;
    return AIM_OK;
}

aim_status checkpoint_add(struct checkpoint *c, const char *prefix, const char *name, const struct tensor *t)
{
    void *items = c->tensors;
    TRY(grow(c->ctx, &items, c->count, &c->capacity, sizeof *c->tensors));
    c->tensors = items;
    struct checkpoint_tensor *row = &c->tensors[c->count++];
    row->tensor = t;
    snprintf(row->name.text, sizeof row->name.text, "%s%s", prefix, name);
    return AIM_OK;
}

aim_status checkpoint_note(struct checkpoint *c, const char *key, const char *value)
{
    void *items = c->texts;
    TRY(grow(c->ctx, &items, c->text_count, &c->text_capacity, sizeof *c->texts));
    c->texts = items;
    struct checkpoint_text *text = &c->texts[c->text_count];
    snprintf(text->key, sizeof text->key, "%s", key);
    text->value = mem_string(c->ctx, value, MEM_MISC);
    if (!text->value) return AIM_ERR_MEMORY;
    c->text_count++;
    return AIM_OK;
}

aim_status checkpoint_note_integer(struct checkpoint *c, const char *key, int64_t value)
{
    char text[32];
    snprintf(text, sizeof text, "%lld", (long long)value);
    return checkpoint_note(c, key, text);
}

/* ------------------------------------------------------------------------------------------------- writing */

/* A device's memory comes over in pieces of this size. */
enum { PIECE = 16 << 20 };

static aim_status write_tensor(struct exec *ex, struct file_writer *w, const struct tensor *t, void *piece)
{
    struct backend *be = ex->backend;
    size_t bytes = tensor_bytes(t->type, t->ndim, t->shape);
    const char *data = t->data;
    if (be->memory.host) return file_writer_write(w, data, bytes);
    for (size_t at = 0; at < bytes; at += PIECE) {
        size_t part = bytes - at < PIECE ? bytes - at : PIECE;
        TRY(be->memory.download(be, piece, data + at, part));
        TRY(file_writer_write(w, piece, part));
    }
    return AIM_OK;
}

static aim_status write_file(struct exec *ex, const struct checkpoint *c, struct file_writer *w,
                             const struct tensor_entry *entries, const struct tensor_metadata *metadata)
{
    size_t room;
    void *piece = ex->backend->memory.host ? NULL : mem_new(c->ctx, PIECE, MEM_FILE);
    if (!piece && !ex->backend->memory.host) return AIM_ERR_MEMORY;
    aim_status status = safetensors_begin(w, entries, c->count, metadata, c->text_count, &room);
    for (size_t i = 0; i < c->count && status == AIM_OK; i++) status = write_tensor(ex, w, c->tensors[i].tensor, piece);
    if (status == AIM_OK) status = safetensors_end(w, entries, c->count, metadata, c->text_count, room);
    mem_free(piece);
    return status;
}

static struct tensor_entry entry_of(const struct checkpoint_tensor *row)
{
    const struct tensor *t = row->tensor;
    struct tensor_entry e = {.name = row->name.text,
                             .dtype = t->type == T_BF16  ? FILE_BF16
                                      : t->type == T_I32 ? FILE_I32
                                                         : FILE_F32,
                             .ndim = t->ndim,
                             .bytes = tensor_bytes(t->type, t->ndim, t->shape)};
    for (int d = 0; d < t->ndim; d++) e.shape[d] = t->shape[d];
    return e;
}

aim_status checkpoint_write(struct exec *ex, const struct checkpoint *c, const char *path)
{
    struct tensor_entry *entries = mem_array(c->ctx, c->count + 1, sizeof *entries, MEM_MISC);
    struct tensor_metadata *metadata = mem_array(c->ctx, c->text_count + 1, sizeof *metadata, MEM_MISC);
    struct file_writer w = {0};
    aim_status status = entries && metadata ? file_writer_open(c->ctx, path, &w) : AIM_ERR_MEMORY;
    if (status == AIM_OK) {
        for (size_t i = 0; i < c->count; i++) entries[i] = entry_of(&c->tensors[i]);
        for (size_t i = 0; i < c->text_count; i++) metadata[i] = (struct tensor_metadata){c->texts[i].key, c->texts[i].value};
        status = write_file(ex, c, &w, entries, metadata);
        aim_status closed = file_writer_close(&w, status == AIM_OK);
        if (status == AIM_OK) status = closed;
    }
    mem_free(entries);
    mem_free(metadata);
    return status;
}

/* ------------------------------------------------------------------------------------------------- reading */

static bool same_shape(const struct tensor_entry *e, const struct tensor *t)
{
    bool same = e->dtype == (t->type == T_I32 ? FILE_I32 : FILE_F32) && t->type != T_BF16 && e->ndim == t->ndim;
    for (int d = 0; same && d < t->ndim; d++) same = e->shape[d] == t->shape[d];
    return same;
}

aim_status checkpoint_read(struct exec *ex, const struct tensor_file *file, const char *path, const char *prefix,
                           const char *name, struct tensor *t)
{
    struct param_name full;
    snprintf(full.text, sizeof full.text, "%s%s", prefix, name);
    const struct tensor_entry *e = tensor_file_find(file, full.text);
    if (!e) return aim_fail(ex->ctx, AIM_ERR_FORMAT, "%s: the tensor %s is missing", path, full.text);
    if (!same_shape(e, t))
        return aim_fail(ex->ctx, AIM_ERR_FORMAT, "%s: %s has another shape than this network needs", path, full.text);
    return tensor_write(ex, t, e->data);
}

aim_status checkpoint_integer(aim_context *ctx, const struct tensor_file *file, const char *path, const char *key,
                              int64_t *value)
{
    const char *text = tensor_file_metadata(file, key);
    char *end = NULL;
    errno = 0;
    *value = text ? strtoll(text, &end, 10) : 0;
    if (!text || end == text || *end || errno)
        return aim_fail(ctx, AIM_ERR_FORMAT, "%s: no checkpoint of a training run: \"%s\" is missing", path, key);
    return AIM_OK;
}
