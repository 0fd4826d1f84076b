#include "io/safetensors.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum {
    LENGTH_BYTES = 8,
    MAX_HEADER = 100000000, /* a rule of the format */
    JSON_COST = 40          /* bytes a parsed JSON document may take per byte of text, e.g. a list of one-digit numbers */
};

static const char metadata_key[] = "__metadata__";

static uint64_t read_length(const unsigned char *data)
{
    uint64_t n;
    memcpy(&n, data, sizeof n);
    return n;
}

bool safetensors_detect(const void *data, size_t size)
{
    return size > LENGTH_BYTES && ((const unsigned char *)data)[LENGTH_BYTES] == '{';
}

/* -------------------------------------------------------------------------------------------------- reading */

struct reader {
    aim_context *ctx;
    const char *name;
    const unsigned char *data; /* of the tensors */
    size_t data_size;
    struct tensor_file *f;
    char *text; /* where the next name or metadata string goes */
};

static char *copy_text(struct reader *r, const char *text)
{
    size_t bytes = strlen(text) + 1;
    char *copy = memcpy(r->text, text, bytes);
    r->text += bytes;
    return copy;
}

/* JSON integers are signed 64-bit in jansson, which refuses larger ones itself. */
static bool read_index(const json_t *value, int64_t *out)
{
    if (!json_is_integer(value)) return false;
    *out = json_integer_value(value);
    return *out >= 0;
}

static aim_status read_shape(struct reader *r, const json_t *info, struct tensor_entry *entry)
{
    const json_t *shape = json_object_get(info, "shape");
    if (!json_is_array(shape))
        return aim_fail(r->ctx, AIM_ERR_FORMAT, "%s: the tensor \"%s\" has no shape", r->name, entry->name);
    size_t ndim = json_array_size(shape);
    if (ndim > TENSOR_MAX_DIMS)
        return aim_fail(r->ctx, AIM_ERR_UNSUPPORTED, "%s: the tensor \"%s\" has %zu dimensions; at most %d are supported",
                        r->name, entry->name, ndim, TENSOR_MAX_DIMS);
    entry->ndim = (int)ndim;
    for (size_t i = 0; i < ndim; i++)
        if (!read_index(json_array_get(shape, i), &entry->shape[i]))
            return aim_fail(r->ctx, AIM_ERR_FORMAT, "%s: the shape of the tensor \"%s\" is not made of sizes", r->name,
                            entry->name);
    if (!tensor_entry_measure(entry))
        return aim_fail(r->ctx, AIM_ERR_FORMAT, "%s: the size of the tensor \"%s\" overflows", r->name, entry->name);
    return AIM_OK;
}

static aim_status read_entry(struct reader *r, const char *key, const json_t *info, struct tensor_entry *entry)
{
    entry->name = copy_text(r, key);
    if (!json_is_object(info))
        return aim_fail(r->ctx, AIM_ERR_FORMAT, "%s: the entry \"%s\" does not describe a tensor", r->name, key);
    const char *dtype = json_string_value(json_object_get(info, "dtype"));
    if (!dtype) return aim_fail(r->ctx, AIM_ERR_FORMAT, "%s: the tensor \"%s\" has no dtype", r->name, key);
    entry->dtype = file_dtype_find(dtype);
    if (entry->dtype == FILE_DTYPES)
        return aim_fail(r->ctx, AIM_ERR_FORMAT, "%s: the tensor \"%s\" has the unknown dtype \"%s\"", r->name, key, dtype);
    TRY(read_shape(r, info, entry));

    const json_t *offsets = json_object_get(info, "data_offsets");
    int64_t begin = 0, end = 0;
    if (json_array_size(offsets) != 2 || !read_index(json_array_get(offsets, 0), &begin) ||
        !read_index(json_array_get(offsets, 1), &end) || end < begin)
        return aim_fail(r->ctx, AIM_ERR_FORMAT, "%s: the tensor \"%s\" has no valid data_offsets", r->name, key);
    if ((uint64_t)end > r->data_size)
        return aim_fail(r->ctx, AIM_ERR_FORMAT,
                        "%s: the tensor \"%s\" ends at byte %lld of the data, which has %zu: the file is cut short", r->name,
                        key, (long long)end, r->data_size);
    if ((uint64_t)(end - begin) != entry->bytes)
        return aim_fail(r->ctx, AIM_ERR_FORMAT, "%s: the tensor \"%s\" should take %zu bytes, its data_offsets say %lld",
                        r->name, key, entry->bytes, (long long)(end - begin));
    entry->data = r->data + begin;
    return AIM_OK;
}

static int compare_places(const void *a, const void *b)
{
    const struct tensor_entry *x = a, *y = b;
    const char *p = x->data, *q = y->data;
    if (p != q) return p < q ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes); /* an empty tensor comes before the one that starts there */
}

/* Sorted, the tensors must tile the data section: no byte unused, none used twice. */
static aim_status check_places(struct reader *r)
{
    struct tensor_file *f = r->f;
    qsort(f->entries, f->count, sizeof *f->entries, compare_places);
    size_t at = 0;
    for (size_t i = 0; i < f->count; i++) {
        const struct tensor_entry *entry = &f->entries[i];
        size_t begin = (size_t)((const unsigned char *)entry->data - r->data);
        if (begin != at)
            return aim_fail(r->ctx, AIM_ERR_FORMAT, "%s: the data of the tensor \"%s\" %s", r->name, entry->name,
                            begin > at ? "leaves a gap before it" : "overlaps that of another");
        at += entry->bytes;
    }
    if (at != r->data_size)
        return aim_fail(r->ctx, AIM_ERR_FORMAT, "%s: %zu bytes after the last tensor belong to nothing", r->name,
                        r->data_size - at);
    return AIM_OK;
}

static aim_status read_metadata(struct reader *r, json_t *metadata)
{
    if (!json_is_object(metadata)) return aim_fail(r->ctx, AIM_ERR_FORMAT, "%s: %s is not an object", r->name, metadata_key);
    const char *key;
    json_t *value;
    json_object_foreach(metadata, key, value)
    {
        if (!json_is_string(value))
            return aim_fail(r->ctx, AIM_ERR_FORMAT, "%s: %s holds something other than strings", r->name, metadata_key);
        r->f->metadata[r->f->metadata_count++] =
            (struct tensor_metadata){.key = copy_text(r, key), .value = copy_text(r, json_string_value(value))};
    }
    return AIM_OK;
}

static aim_status read_header(struct reader *r, json_t *header, size_t header_bytes)
{
    struct tensor_file *f = r->f;
    json_t *metadata = json_object_get(header, metadata_key);
    size_t count = json_object_size(header) - (metadata != NULL), pairs = json_object_size(metadata);
    f->entries = tensor_file_alloc(r->ctx, f, count * sizeof *f->entries);
    f->metadata = tensor_file_alloc(r->ctx, f, pairs * sizeof *f->metadata);
    /* Strings with their quotes are longer in the header than with a terminator here. */
    r->text = tensor_file_alloc(r->ctx, f, header_bytes);
    if (!f->entries || !f->metadata || !r->text) return AIM_ERR_MEMORY;
    if (metadata) TRY(read_metadata(r, metadata));
    const char *key;
    json_t *info;
    json_object_foreach(header, key, info)
    {
        if (info == metadata) continue;
        struct tensor_entry *entry = &f->entries[f->count++];
        *entry = (struct tensor_entry){0};
        TRY(read_entry(r, key, info, entry));
    }
    TRY(check_places(r));
    return tensor_file_index(r->ctx, r->name, f);
}

static aim_status parse_json(struct reader *r, const char *text, size_t bytes, json_t **header)
{
    const struct memory *memory = &r->ctx->memory;
    if (memory->limit > 0 && (int64_t)bytes * JSON_COST > memory->limit - memory->total)
        return aim_fail(r->ctx, AIM_ERR_MEMORY, "%s: out of memory: the header alone has %.1f MB", r->name,
                        (double)bytes / 1e6);
    json_error_t error;
    *header = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error);
    if (*header) return AIM_OK;
    if (json_error_code(&error) == json_error_out_of_memory)
        return aim_fail(r->ctx, AIM_ERR_MEMORY, "%s: out of memory reading the header", r->name);
    return aim_fail(r->ctx, AIM_ERR_FORMAT, "%s: the header is not valid JSON: %s (byte %d)", r->name, error.text,
                    error.position);
}

aim_status safetensors_parse(aim_context *ctx, const char *name, const void *data, size_t size, struct tensor_file *f)
{
    *f = (struct tensor_file){.format = TENSOR_SAFETENSORS};
    const unsigned char *bytes = data;
    if (size < LENGTH_BYTES)
        return aim_fail(ctx, AIM_ERR_FORMAT, "%s: %zu bytes are too few for a safetensors file", name, size);
    uint64_t n = read_length(bytes);
    if (n > MAX_HEADER)
        return aim_fail(ctx, AIM_ERR_FORMAT, "%s: the header claims %llu bytes; at most %d are allowed", name,
                        (unsigned long long)n, MAX_HEADER);
    if (n > size - LENGTH_BYTES)
        return aim_fail(ctx, AIM_ERR_FORMAT, "%s: the header claims %llu bytes, the file has %zu: it is cut short", name,
                        (unsigned long long)n, size);
    if (n == 0 || bytes[LENGTH_BYTES] != '{')
        return aim_fail(ctx, AIM_ERR_FORMAT, "%s: the header does not start with '{'", name);

    size_t header_bytes = (size_t)n;
    struct reader r = {.ctx = ctx, .name = name, .f = f};
    r.data = bytes + LENGTH_BYTES + header_bytes;
    r.data_size = size - LENGTH_BYTES - header_bytes;
    json_t *header;
    TRY(parse_json(&r, (const char *)bytes + LENGTH_BYTES, header_bytes, &header));
    /* NOLINTNEXTLINE(clang-analyzer-core.CallAndMessage): aim_fail never returns AIM_OK */
    aim_status status = read_header(&r, header, header_bytes);
    json_decref(header);
    if (status != AIM_OK) tensor_file_close(f);
    return status;
}

/* -------------------------------------------------------------------------------------------------- writing */

static int compare_canonical(const void *a, const void *b)
{
    const struct tensor_entry *const *x = a, *const *y = b;
    if ((*x)->dtype != (*y)->dtype) return (*x)->dtype > (*y)->dtype ? -1 : 1;
    return strcmp((*x)->name, (*y)->name);
}

static aim_status check_entry(aim_context *ctx, const char *path, const struct tensor_entry *entry)
{
    if (strcmp(entry->name, metadata_key) == 0)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "cannot write %s: no tensor may be called %s", path, metadata_key);
    struct tensor_entry measured = *entry;
    if (entry->ndim < 0 || entry->ndim > TENSOR_MAX_DIMS || (unsigned)entry->dtype >= FILE_DTYPES ||
        !tensor_entry_measure(&measured) || measured.bytes != entry->bytes)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "cannot write %s: type, shape and bytes of the tensor \"%s\" disagree", path,
                        entry->name);
    return AIM_OK;
}

/* The JSON description of one tensor; NULL when jansson runs out of memory. */
static json_t *describe(const struct tensor_entry *entry, uint64_t begin)
{
    json_t *shape = json_array();
    for (int i = 0; i < entry->ndim; i++) {
        if (json_array_append_new(shape, json_integer(entry->shape[i])) != 0) {
            json_decref(shape);
            return NULL;
        }
    }
    /* 'o' takes the array over, and fails the whole on NULL */
    return json_pack("{s:s, s:o, s:[I, I]}", "dtype", file_dtype_name(entry->dtype), "shape", shape, "data_offsets",
                     (json_int_t)begin, (json_int_t)(begin + entry->bytes));
}

/* Adds name: value, taking `value` over. */
static aim_status add(aim_context *ctx, const char *path, json_t *object, const char *name, json_t *value)
{
    if (json_object_get(object, name)) {
        json_decref(value);
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "cannot write %s: the name \"%s\" appears twice", path, name);
    }
    if (json_object_set_new(object, name, value) != 0)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "cannot write %s: \"%s\" or its value is not valid UTF-8", path, name);
    return AIM_OK;
}

static aim_status build_header(aim_context *ctx, const char *path, const struct tensor_entry **sorted, size_t count,
                               const struct tensor_metadata *metadata, size_t metadata_count, json_t *header)
{
    if (metadata_count > 0) {
        json_t *pairs = json_object();
        TRY(add(ctx, path, header, metadata_key, pairs));
        for (size_t i = 0; i < metadata_count; i++) TRY(add(ctx, path, pairs, metadata[i].key, json_string(metadata[i].value)));
    }
    uint64_t begin = 0;
    for (size_t i = 0; i < count; i++) {
        TRY(check_entry(ctx, path, sorted[i]));
        if (sorted[i]->bytes > INT64_MAX - begin)
            return aim_fail(ctx, AIM_ERR_ARGUMENT, "cannot write %s: the tensors are too large", path);
        TRY(add(ctx, path, header, sorted[i]->name, describe(sorted[i], begin)));
        begin += sorted[i]->bytes;
    }
    return AIM_OK;
}

static aim_status write_parts(aim_context *ctx, const char *path, const char *text, const struct tensor_entry **sorted,
                              size_t count)
{
    size_t length = strlen(text), padding = -length % LENGTH_BYTES;
    uint64_t n = length + padding;
    if (n > MAX_HEADER)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "cannot write %s: its header would take more than %d bytes", path, MAX_HEADER);
    struct file_writer w;
    TRY(file_writer_open(ctx, path, &w));
    aim_status status = file_writer_write(&w, &n, sizeof n);
    if (status == AIM_OK) status = file_writer_write(&w, text, length);
    if (status == AIM_OK) status = file_writer_write(&w, "        ", padding);
    for (size_t i = 0; i < count && status == AIM_OK; i++) status = file_writer_write(&w, sorted[i]->data, sorted[i]->bytes);
    aim_status closed = file_writer_close(&w, status == AIM_OK);
    return status != AIM_OK ? status : closed;
}

aim_status safetensors_write(aim_context *ctx, const char *path, const struct tensor_entry *entries, size_t count,
                             const struct tensor_metadata *metadata, size_t metadata_count)
{
    const struct tensor_entry **sorted = mem_array(ctx, count, sizeof *sorted, MEM_FILE);
    if (!sorted) return AIM_ERR_MEMORY;
    for (size_t i = 0; i < count; i++) sorted[i] = &entries[i];
    qsort(sorted, count, sizeof *sorted, compare_canonical);

    json_t *header = json_object();
    aim_status status = build_header(ctx, path, sorted, count, metadata, metadata_count, header);
    if (status == AIM_OK) {
        char *text = json_dumps(header, JSON_COMPACT); /* objects keep the order of insertion */
        status = text ? write_parts(ctx, path, text, sorted, count)
                      : aim_fail(ctx, AIM_ERR_MEMORY, "cannot write %s: out of memory", path);
        free(text);
    }
    json_decref(header);
    mem_free(sorted);
    return status;
}

/* ------------------------------------------------------------------------------------------------- streaming */

/* The header of tensors in the order given; the caller frees *text with free. */
static aim_status format_header(aim_context *ctx, const char *path, const struct tensor_entry *entries, size_t count,
                                const struct tensor_metadata *metadata, size_t metadata_count, char **text)
{
    *text = NULL;
    const struct tensor_entry **order = mem_array(ctx, count, sizeof *order, MEM_FILE);
    if (!order) return AIM_ERR_MEMORY;
    for (size_t i = 0; i < count; i++) order[i] = &entries[i];
    json_t *header = json_object();
    aim_status status = build_header(ctx, path, order, count, metadata, metadata_count, header);
    if (status == AIM_OK && !(*text = json_dumps(header, JSON_COMPACT)))
        status = aim_fail(ctx, AIM_ERR_MEMORY, "cannot write %s: out of memory", path);
    json_decref(header);
    mem_free(order);
    return status;
}

static aim_status write_spaces(struct file_writer *w, size_t n)
{
    static const char spaces[] = "                                                                ";
    for (; n > sizeof spaces - 1; n -= sizeof spaces - 1) TRY(file_writer_write(w, spaces, sizeof spaces - 1));
    return file_writer_write(w, spaces, n);
}

aim_status safetensors_begin(struct file_writer *w, const struct tensor_entry *largest, size_t count,
                             const struct tensor_metadata *metadata, size_t metadata_count, size_t *room)
{
    char *text;
    *room = 0;
    TRY(format_header(w->ctx, w->path, largest, count, metadata, metadata_count, &text));
    size_t length = strlen(text);
    free(text);
    if (length > MAX_HEADER - LENGTH_BYTES)
        return aim_fail(w->ctx, AIM_ERR_ARGUMENT, "cannot write %s: its header would take more than %d bytes", w->path,
                        MAX_HEADER);
    *room = length + -length % LENGTH_BYTES;
    return write_spaces(w, LENGTH_BYTES + *room);
}

aim_status safetensors_end(struct file_writer *w, const struct tensor_entry *entries, size_t count,
                           const struct tensor_metadata *metadata, size_t metadata_count, size_t room)
{
    char *text;
    TRY(format_header(w->ctx, w->path, entries, count, metadata, metadata_count, &text));
    size_t length = strlen(text);
    uint64_t n = room;
    aim_status status = AIM_OK;
    if (length > room)
        status = aim_fail(w->ctx, AIM_ERR_INTERNAL, "cannot write %s: the header has outgrown its room", w->path);
    else if (fseeko(w->stream, 0, SEEK_SET) != 0)
        status = aim_fail_errno(w->ctx, "cannot write %s", w->path);
    if (status == AIM_OK) status = file_writer_write(w, &n, sizeof n);
    if (status == AIM_OK) status = file_writer_write(w, text, length);
    if (status == AIM_OK) status = write_spaces(w, room - length);
    free(text);
    return status;
}
