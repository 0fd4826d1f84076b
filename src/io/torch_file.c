#include "io/torch_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "io/pickle.h"
#include "io/zip_reader.h"

/* What a persistent id describes. */
struct storage {
    const struct pickle_value *key, *type; /* a string, a global */
    enum file_dtype dtype;                 /* FILE_DTYPES: no counterpart here */
    size_t count;                          /* elements */
    const unsigned char *data;             /* NULL until found */
};

struct loader {
    aim_context *ctx;
    const char *name;
    const unsigned char *data;
    size_t size;
    struct tensor_file *f;
    struct zip_reader zip; /* zeroed for legacy files */
    const char *root;      /* the folder in it that holds everything, with its slash ... */
    int root_length;       /* ... of so many bytes */
    struct pickle pickle;
    struct storage *storages; /* sorted by key */
    size_t storage_count;
};

static const struct {
    const char *type;
    enum file_dtype dtype;
} storage_types[] = {{"FloatStorage", FILE_F32},  {"BFloat16Storage", FILE_BF16}, {"HalfStorage", FILE_F16},
                     {"DoubleStorage", FILE_F64}, {"LongStorage", FILE_I64},      {"IntStorage", FILE_I32},
                     {"ShortStorage", FILE_I16},  {"CharStorage", FILE_I8},       {"ByteStorage", FILE_U8},
                     {"BoolStorage", FILE_BOOL}};

enum { STORAGE_TYPES = sizeof storage_types / sizeof *storage_types };

/* For printf's "%.*s". */
#define TEXT(value) (int)((value)->length < 200 ? (value)->length : 200), (const char *)(value)->bytes

static aim_status damaged(struct loader *l, const char *what)
{
    aim_fail(l->ctx, AIM_ERR_FORMAT, "%s: damaged torch file: %s", l->name, what);
    return AIM_ERR_FORMAT;
}

/* --------------------------------------------------------------------------------------------------- storages */

static int compare_keys(const void *a, const void *b)
{
    const struct pickle_value *x = ((const struct storage *)a)->key, *y = ((const struct storage *)b)->key;
    if (x->length != y->length) return x->length < y->length ? -1 : 1;
    return x->length ? memcmp(x->bytes, y->bytes, x->length) : 0;
}

/* ('storage', class, key, location, element count), in legacy files followed by the view it is, or None. */
static aim_status read_storage(struct loader *l, const struct pickle_value *id, struct storage *out)
{
    if (id->type != PICKLE_TUPLE || id->list->count < 5 || id->list->count > 6 ||
        !pickle_is_string(&id->list->items[0], "storage"))
        return damaged(l, "a persistent id that is no storage");
    const struct pickle_value *items = id->list->items, *class = &items[1], *key = &items[2], *count = &items[4];
    if (class->type != PICKLE_GLOBAL || key->type != PICKLE_STRING || count->type != PICKLE_INT || count->integer < 0)
        return damaged(l, "a storage without type, key or size");
    if (id->list->count == 6 && items[5].type != PICKLE_NONE)
        return aim_fail(l->ctx, AIM_ERR_UNSUPPORTED,
                        "%s: a storage that is a view of another is not supported: save the file again with a newer torch",
                        l->name);
    *out = (struct storage){.key = key, .type = class, .dtype = FILE_DTYPES, .count = (size_t)count->integer};
    for (size_t i = 0; i < STORAGE_TYPES; i++)
        if (pickle_is_global(class, "torch", storage_types[i].type)) out->dtype = storage_types[i].dtype;
    return AIM_OK;
}

static bool same_global(const struct pickle_value *a, const struct pickle_value *b)
{
    const struct pickle_value *x = &a->global->name, *y = &b->global->name;
    return x->length == y->length && memcmp(x->bytes, y->bytes, x->length) == 0;
}

/* All storages that the pickle mentions, each once. */
static aim_status collect_storages(struct loader *l)
{
    const struct pickle_list *ids = &l->pickle.persistent;
    l->storages = mem_array(l->ctx, ids->count, sizeof *l->storages, MEM_FILE);
    if (!l->storages) return AIM_ERR_MEMORY;
    for (size_t i = 0; i < ids->count; i++) TRY(read_storage(l, &ids->items[i], &l->storages[i]));
    qsort(l->storages, ids->count, sizeof *l->storages, compare_keys);
    size_t kept = 0;
    for (size_t i = 0; i < ids->count; i++) {
        const struct storage *next = &l->storages[i], *last = kept ? &l->storages[kept - 1] : NULL;
        if (!last || compare_keys(last, next) != 0)
            l->storages[kept++] = *next;
        else if (last->count != next->count || !same_global(last->type, next->type))
            return damaged(l, "one storage with two types or sizes");
    }
    l->storage_count = kept;
    return AIM_OK;
}

static struct storage *find_storage(struct loader *l, const struct pickle_value *key)
{
    struct storage wanted = {.key = key};
    if (key->type != PICKLE_STRING || l->storage_count == 0) return NULL;
    return bsearch(&wanted, l->storages, l->storage_count, sizeof wanted, compare_keys);
}

static aim_status storage_bytes(struct loader *l, const struct storage *storage, size_t *bytes)
{
    *bytes = 0;
    if (storage->dtype == FILE_DTYPES)
        return aim_fail(l->ctx, AIM_ERR_UNSUPPORTED, "%s: the storage type %.*s is not supported", l->name,
                        TEXT(&storage->type->global->name));
    if (!size_mul(storage->count, file_dtype_size(storage->dtype), bytes)) return damaged(l, "a storage's size overflows");
    return AIM_OK;
}

/*
 * The entry `path` of the archive's folder: in place when it is stored, else decompressed into memory of f. *data is NULL,
 * with AIM_OK, when there is no such entry.
 */
static aim_status read_zip_entry(struct loader *l, const char *path, const unsigned char **data, size_t *size)
{
    *data = NULL;
    *size = 0;
    char whole[1024];
    if (snprintf(whole, sizeof whole, "%.*s%s", l->root_length, l->root, path) >= (int)sizeof whole) return AIM_OK;
    const struct zip_entry *entry = zip_reader_find(&l->zip, whole);
    if (!entry) return AIM_OK;
    const unsigned char *packed;
    TRY(zip_reader_locate(&l->zip, entry, &packed));
    if (!entry->stored) {
        unsigned char *out = tensor_file_alloc(l->ctx, l->f, entry->size);
        if (!out) return AIM_ERR_MEMORY;
        TRY(zip_reader_inflate(&l->zip, entry, packed, out));
        packed = out;
    }
    *data = packed;
    *size = entry->size;
    return AIM_OK;
}

/* Makes storage->data valid. */
static aim_status load_storage(struct loader *l, struct storage *storage)
{
    size_t bytes, found;
    TRY(storage_bytes(l, storage, &bytes));
    if (storage->data) return AIM_OK;
    const struct pickle_value *key = storage->key;
    char path[128];
    if (l->root && key->length < 64 && !memchr(key->bytes, '\0', key->length)) {
        snprintf(path, sizeof path, "data/%.*s", TEXT(key));
        TRY(read_zip_entry(l, path, &storage->data, &found));
        if (storage->data && found != bytes)
            return aim_fail(l->ctx, AIM_ERR_FORMAT, "%s: damaged torch file: storage %.*s has %zu bytes and should have %zu",
                            l->name, TEXT(key), found, bytes);
    }
    if (!storage->data)
        return aim_fail(l->ctx, AIM_ERR_FORMAT, "%s: damaged torch file: storage %.*s is missing", l->name, TEXT(key));
    return AIM_OK;
}

/* ---------------------------------------------------------------------------------------------------- tensors */

enum tensor_kind { NO_TENSOR, PLAIN_TENSOR, STRANGE_TENSOR };

/* A recorded call: what the pickle would have called with what. */
struct call {
    const struct pickle_value *callable;
    const struct pickle_list *args;
};

static bool call_of(const struct pickle_value *value, struct call *call)
{
    if (value->type != PICKLE_OBJECT) return false;
    *call = (struct call){.callable = &value->object->callable, .args = value->object->args.list};
    return true;
}

/* Whether the call hands its first argument, a tensor, through. */
static bool is_wrapper(const struct pickle_value *callable)
{
    return pickle_is_global(callable, "torch._utils", "_rebuild_parameter") ||
           pickle_is_global(callable, "torch._utils", "_rebuild_parameter_with_state") ||
           pickle_is_global(callable, "torch.nn.parameter", "Parameter");
}

static bool is_rebuild(const struct pickle_value *callable)
{
    static const char prefix[] = "_rebuild_";
    if (callable->type != PICKLE_GLOBAL || callable->global->name.length < sizeof prefix - 1) return false;
    const struct pickle_value *module = &callable->global->module;
    return memcmp(callable->global->name.bytes, prefix, sizeof prefix - 1) == 0 &&
           (pickle_is_string(module, "torch._utils") || pickle_is_string(module, "torch._tensor"));
}

/* Looks through wrappers for the call that makes the tensor itself. */
static enum tensor_kind find_tensor(const struct pickle_value *value, struct call *call)
{
    enum { MAX_WRAPPERS = 8 };
    bool wrapped = false;
    if (!call_of(value, call)) return NO_TENSOR;
    for (int i = 0; i < MAX_WRAPPERS; i++) {
        const struct pickle_list *args = call->args;
        if (pickle_is_global(call->callable, "torch._utils", "_rebuild_tensor_v2") ||
            pickle_is_global(call->callable, "torch._utils", "_rebuild_tensor"))
            return PLAIN_TENSOR;
        if (is_wrapper(call->callable)) {
            if (args->count < 1 || !call_of(&args->items[0], call)) return STRANGE_TENSOR;
        } else if (pickle_is_global(call->callable, "torch._tensor", "_rebuild_from_type_v2")) {
            if (args->count < 3 || args->items[2].type != PICKLE_TUPLE) return STRANGE_TENSOR;
            *call = (struct call){.callable = &args->items[0], .args = args->items[2].list};
        } else {
            return wrapped || is_rebuild(call->callable) ? STRANGE_TENSOR : NO_TENSOR;
        }
        wrapped = true;
    }
    return STRANGE_TENSOR;
}

struct view {
    size_t offset;
    size_t stride[TENSOR_MAX_DIMS]; /* offset and strides in elements */
    size_t elements;
};

static bool read_size(const struct pickle_value *value, size_t *out)
{
    if (value->type != PICKLE_INT || value->integer < 0) return false;
    *out = (size_t)value->integer;
    return true;
}

/* Sizes and strides into entry and view; false when they are not what they should be. */
static bool read_geometry(const struct pickle_list *args, struct tensor_entry *entry, struct view *view)
{
    const struct pickle_value *size = &args->items[2], *stride = &args->items[3];
    if (!read_size(&args->items[1], &view->offset) || size->type != PICKLE_TUPLE || stride->type != PICKLE_TUPLE ||
        size->list->count != stride->list->count || size->list->count > TENSOR_MAX_DIMS)
        return false;
    entry->ndim = (int)size->list->count;
    for (int i = 0; i < entry->ndim; i++) {
        size_t n;
        if (!read_size(&size->list->items[i], &n) || !read_size(&stride->list->items[i], &view->stride[i])) return false;
        entry->shape[i] = (int64_t)n;
    }
    return true;
}

/* Whether every element of the view lies inside `count` elements. */
static bool view_fits(const struct tensor_entry *entry, const struct view *view, size_t count)
{
    if (view->elements == 0) return view->offset <= count;
    size_t last = view->offset;
    for (int i = 0; i < entry->ndim; i++) {
        size_t reach;
        if (!size_mul((size_t)entry->shape[i] - 1, view->stride[i], &reach) || !size_add(last, reach, &last)) return false;
    }
    return last < count;
}

/* Row-major without gaps; the stride of a dimension of size 1 says nothing. */
static bool view_is_contiguous(const struct tensor_entry *entry, const struct view *view)
{
    size_t expected = 1;
    for (int i = entry->ndim - 1; i >= 0 && view->elements > 0; i--) {
        if (entry->shape[i] != 1 && view->stride[i] != expected) return false;
        expected *= (size_t)entry->shape[i];
    }
    return true;
}

static void copy_view(const struct tensor_entry *entry, const struct view *view, const unsigned char *from, unsigned char *out)
{
    size_t item = file_dtype_size(entry->dtype), at = view->offset;
    int64_t index[TENSOR_MAX_DIMS] = {0};
    for (size_t i = 0; i < view->elements; i++, out += item) {
        memcpy(out, from + at * item, item);
        for (int d = entry->ndim - 1; d >= 0; d--) {
            at += view->stride[d];
            if (++index[d] < entry->shape[d]) break;
            index[d] = 0;
            at -= view->stride[d] * (size_t)entry->shape[d];
        }
    }
}

/* entry->name is set; fills in the rest from (storage, offset, size, stride, ...). */
static aim_status build_entry(struct loader *l, const struct pickle_list *args, struct tensor_entry *entry)
{
    struct view view = {0};
    if (args->count < 4 || args->items[0].type != PICKLE_PERSISTENT || !read_geometry(args, entry, &view))
        return aim_fail(l->ctx, AIM_ERR_FORMAT, "%s: damaged torch file: the tensor \"%s\" has no storage or shape", l->name,
                        entry->name);
    /* collect_storages has looked at every persistent id */
    struct storage *storage = find_storage(l, &args->items[0].persistent_id->list->items[2]);
    if (!storage) return damaged(l, "a tensor without storage");
    TRY(load_storage(l, storage));
    entry->dtype = storage->dtype;
    bool measured = tensor_entry_measure(entry);
    view.elements = measured ? tensor_entry_elements(entry) : 0;
    if (!measured || !view_fits(entry, &view, storage->count)) {
        return aim_fail(l->ctx, AIM_ERR_FORMAT, "%s: damaged torch file: the tensor \"%s\" reaches beyond its storage", l->name,
                        entry->name);
    }
    if (view_is_contiguous(entry, &view)) {
        entry->data = storage->data + view.offset * file_dtype_size(entry->dtype);
        return AIM_OK;
    }
    if (view.elements > storage->count)
        return aim_fail(l->ctx, AIM_ERR_UNSUPPORTED,
                        "%s: the tensor \"%s\" is an expanded view, %zu elements of a storage of %zu: save it contiguous",
                        l->name, entry->name, view.elements, storage->count);
    unsigned char *copy = tensor_file_alloc(l->ctx, l->f, entry->bytes);
    if (!copy) return AIM_ERR_MEMORY;
    copy_view(entry, &view, storage->data, copy);
    entry->data = copy;
    return AIM_OK;
}

/* ------------------------------------------------------------------------------------------------- state dict */

static bool is_named_tensor(const struct pickle_pair *pair)
{
    struct call call;
    return pair->key.type == PICKLE_STRING && find_tensor(&pair->value, &call) != NO_TENSOR;
}

static size_t count_tensors(const struct pickle_dict *dict)
{
    size_t n = 0;
    for (size_t i = 0; i < dict->count; i++) n += is_named_tensor(&dict->pairs[i]);
    return n;
}

static const struct pickle_dict *choose_dict(const struct pickle_dict *top)
{
    static const char *const keys[] = {"ema", "model", "state_dict"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        const struct pickle_value *value = pickle_dict_get(top, keys[i]);
        if (value && value->type == PICKLE_DICT && count_tensors(value->dict) > 0) return value->dict;
    }
    return top;
}

static aim_status add_tensor(struct loader *l, const struct pickle_pair *pair, char **text)
{
    const struct pickle_value *key = &pair->key;
    if (key->length && memchr(key->bytes, '\0', key->length)) return damaged(l, "a tensor's name holds a NUL");
    struct tensor_entry *entry = &l->f->entries[l->f->count++];
    *entry = (struct tensor_entry){.name = *text};
    memcpy(*text, key->bytes, key->length);
    (*text)[key->length] = '\0';
    *text += (size_t)key->length + 1;
    struct call call;
    if (find_tensor(&pair->value, &call) == PLAIN_TENSOR) return build_entry(l, call.args, entry);
    if (call.callable->type != PICKLE_GLOBAL)
        return aim_fail(l->ctx, AIM_ERR_UNSUPPORTED, "%s: the tensor \"%s\" is of an unknown kind", l->name, entry->name);
    return aim_fail(l->ctx, AIM_ERR_UNSUPPORTED, "%s: the tensor \"%s\" is of a kind that is not supported (%.*s)", l->name,
                    entry->name, TEXT(&call.callable->global->name));
}

/* From the pickle and its storages to the entries of f. */
static aim_status read_tensors(struct loader *l)
{
    if (l->pickle.value.type != PICKLE_DICT)
        return aim_fail(l->ctx, AIM_ERR_FORMAT,
                        "%s holds no dict of tensors; write one with torch.save(model.state_dict(), ...)", l->name);
    const struct pickle_dict *dict = choose_dict(l->pickle.value.dict);
    size_t count = count_tensors(dict), text_bytes = 0;
    if (count == 0)
        return aim_fail(l->ctx, AIM_ERR_FORMAT, "%s holds no tensors: neither at the top nor under ema, model or state_dict",
                        l->name);
    for (size_t i = 0; i < dict->count; i++)
        if (is_named_tensor(&dict->pairs[i])) text_bytes += (size_t)dict->pairs[i].key.length + 1;
    l->f->entries = tensor_file_alloc(l->ctx, l->f, count * sizeof *l->f->entries);
    char *text = tensor_file_alloc(l->ctx, l->f, text_bytes);
    if (!l->f->entries || !text) return AIM_ERR_MEMORY;
    for (size_t i = 0; i < dict->count; i++)
        if (is_named_tensor(&dict->pairs[i])) TRY(add_tensor(l, &dict->pairs[i], &text));
    return tensor_file_index(l->ctx, l->name, l->f);
}

/* ----------------------------------------------------------------------------------------------------- formats */

/* torch names the folder after the file, or "archive". */
static aim_status find_root(struct loader *l)
{
    for (size_t i = 0; i < l->zip.count && !l->root; i++) {
        const char *path = l->zip.entries[i].path, *slash = strchr(path, '/');
        if (!slash || strcmp(slash, "/data.pkl") != 0) continue;
        l->root = path;
        l->root_length = (int)(slash + 1 - path);
    }
    if (l->root) return AIM_OK;
    return aim_fail(l->ctx, AIM_ERR_FORMAT, "%s: a zip archive without data.pkl: it was not written by torch.save", l->name);
}

static aim_status read_zip(struct loader *l)
{
    l->f->format = TENSOR_TORCH_ZIP;
    TRY(zip_reader_open(l->ctx, l->name, l->data, l->size, &l->zip));
    TRY(find_root(l));
    const unsigned char *text;
    size_t bytes;
    TRY(read_zip_entry(l, "byteorder", &text, &bytes));
    if (text && (bytes != strlen("little") || memcmp(text, "little", bytes) != 0))
        return aim_fail(l->ctx, AIM_ERR_UNSUPPORTED, "%s: only files written on little-endian machines can be read", l->name);
    TRY(read_zip_entry(l, "data.pkl", &text, &bytes));
    if (!text) return damaged(l, "the name of its folder is too long");
    TRY(pickle_read(l->ctx, l->name, text, bytes, &l->pickle));
    TRY(collect_storages(l));
    return read_tensors(l);
}

/* Reads the pickle at *at and moves past it. */
static aim_status next_pickle(struct loader *l, size_t *at, struct pickle *p)
{
    TRY(pickle_read(l->ctx, l->name, l->data + *at, l->size - *at, p));
    *at += p->consumed;
    return AIM_OK;
}

/* Magic number, protocol 1001, facts about the machine that wrote it. */
static aim_status read_legacy_start(struct loader *l, size_t *at)
{
    static const unsigned char magic[] = {0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19};
    enum { PROTOCOL = 1001 };
    struct pickle p;
    TRY(next_pickle(l, at, &p));
    bool right =
        p.value.type == PICKLE_LONG && p.value.length == sizeof magic && memcmp(p.value.bytes, magic, sizeof magic) == 0;
    pickle_free(&p);
    if (!right) return aim_fail(l->ctx, AIM_ERR_FORMAT, "%s is a Python pickle, but was not written by torch.save", l->name);

    TRY(next_pickle(l, at, &p));
    right = p.value.type == PICKLE_INT && p.value.integer == PROTOCOL;
    pickle_free(&p);
    if (!right) return aim_fail(l->ctx, AIM_ERR_UNSUPPORTED, "%s: unknown version of the torch file format", l->name);

    TRY(next_pickle(l, at, &p));
    const struct pickle_value *little = p.value.type == PICKLE_DICT ? pickle_dict_get(p.value.dict, "little_endian") : NULL;
    right = little && little->type == PICKLE_BOOL && little->integer;
    pickle_free(&p);
    if (!right)
        return aim_fail(l->ctx, AIM_ERR_UNSUPPORTED, "%s: only files written on little-endian machines can be read", l->name);
    return AIM_OK;
}

/* The storages follow in the order of `keys`, each as its element count (int64) and its elements. */
static aim_status place_storages(struct loader *l, const struct pickle_list *keys, size_t at)
{
    for (size_t i = 0; i < keys->count; i++) {
        struct storage *storage = find_storage(l, &keys->items[i]);
        if (!storage || storage->data) return damaged(l, "its list of storages does not match the storages in use");
        size_t bytes;
        uint64_t count;
        TRY(storage_bytes(l, storage, &bytes));
        if (l->size - at < sizeof count || l->size - at - sizeof count < bytes)
            return damaged(l, "the file is cut short in its storages");
        memcpy(&count, l->data + at, sizeof count);
        if (count != storage->count) return damaged(l, "a storage has another size than its tensors say");
        storage->data = l->data + at + sizeof count;
        at += sizeof count + bytes;
    }
    return AIM_OK;
}

static aim_status read_legacy(struct loader *l)
{
    l->f->format = TENSOR_TORCH_LEGACY;
    size_t at = 0;
    TRY(read_legacy_start(l, &at));
    TRY(next_pickle(l, &at, &l->pickle));
    struct pickle keys;
    TRY(next_pickle(l, &at, &keys));
    aim_status status = collect_storages(l);
    if (status == AIM_OK)
        status = keys.value.type == PICKLE_LIST ? place_storages(l, keys.value.list, at)
                                                : damaged(l, "its list of storages is missing");
    pickle_free(&keys);
    return status == AIM_OK ? read_tensors(l) : status;
}

bool torch_file_detect(const void *data, size_t size)
{
    const unsigned char *bytes = data;
    if (zip_reader_detect(data, size)) return true;
    /* a pickle: PROTO and its number, then the LONG1 of the magic number or at least another opcode */
    return size >= 3 && bytes[0] == 0x80 && bytes[1] >= 2 && bytes[1] <= 5 && bytes[2] != 0;
}

aim_status torch_file_parse(aim_context *ctx, const char *name, const void *data, size_t size, struct tensor_file *f)
{
    *f = (struct tensor_file){0};
    struct loader l = {.ctx = ctx, .name = name, .data = data, .size = size, .f = f};
    aim_status status = zip_reader_detect(data, size) ? read_zip(&l) : read_legacy(&l);
    mem_free(l.storages);
    pickle_free(&l.pickle);
    zip_reader_close(&l.zip);
    if (status != AIM_OK) tensor_file_close(f);
    return status;
}
