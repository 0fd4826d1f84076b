#include "io/npy.h"

#include <stdio.h>
#include <string.h>

static const char magic[6] = {'\x93', 'N', 'U', 'M', 'P', 'Y'};

/* NumPy's names, without byte order, in the order of aim_dtype. */
static const struct {
    char code[3];
    unsigned char size;
} dtypes[] = {[AIM_U8] = {"u1", 1},  [AIM_I8] = {"i1", 1},  [AIM_I16] = {"i2", 2}, [AIM_U16] = {"u2", 2},
              [AIM_I32] = {"i4", 4}, [AIM_U32] = {"u4", 4}, [AIM_I64] = {"i8", 8}, [AIM_U64] = {"u8", 8},
              [AIM_F16] = {"f2", 2}, [AIM_F32] = {"f4", 4}, [AIM_F64] = {"f8", 8}, [AIM_BOOL] = {"b1", 1}};
enum { DTYPES = sizeof dtypes / sizeof *dtypes };

static const char native_order = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? '<' : '>';

size_t npy_dtype_size(aim_dtype dtype)
{
    return (unsigned)dtype < DTYPES ? dtypes[dtype].size : 0;
}

bool npy_shape_bytes(aim_dtype dtype, int ndim, const int64_t *shape, size_t *bytes)
{
    size_t n = npy_dtype_size(dtype);
    bool empty = false;
    for (int i = 0; i < ndim; i++) {
        if (shape[i] < 0) return false;
        if (shape[i] == 0)
            empty = true; /* keep going: the other sides must make sense nevertheless */
        else if (!size_mul(n, (size_t)shape[i], &n))
            return false;
    }
    *bytes = empty ? 0 : n;
    return n <= PTRDIFF_MAX;
}

/* ------------------------------------------------------------------------------------------------ header */

static aim_status damaged(aim_context *ctx, const char *name, const char *what)
{
    return aim_fail(ctx, AIM_ERR_FORMAT, "%s is a damaged .npy file: %s", name, what);
}

/* Where the text of the header starts and where it ends. */
static aim_status find_text(aim_context *ctx, const char *name, const unsigned char *data, size_t size, size_t *start,
                            size_t *end)
{
    if (size < sizeof magic || memcmp(data, magic, sizeof magic) != 0)
        return aim_fail(ctx, AIM_ERR_FORMAT, "%s is not a .npy file", name);
    enum { LENGTH_AT = 8 };
    if (size < LENGTH_AT + 4) return damaged(ctx, name, "it ends too early");
    unsigned major = data[6];
    if (major < 1 || major > 3)
        return aim_fail(ctx, AIM_ERR_UNSUPPORTED, "%s is a .npy file of version %u; 1 to 3 are supported", name, major);
    size_t n = data[LENGTH_AT] | (size_t)data[LENGTH_AT + 1] << 8;
    if (major > 1) n |= (size_t)data[LENGTH_AT + 2] << 16 | (size_t)data[LENGTH_AT + 3] << 24;
    *start = LENGTH_AT + (major > 1 ? 4 : 2);
    *end = *start + n;
    return *end <= size ? AIM_OK : damaged(ctx, name, "it ends too early");
}

/* Reading position within the text of the header. */
struct cursor {
    const char *at, *end;
};

static void skip_space(struct cursor *c)
{
    while (c->at < c->end && (*c->at == ' ' || *c->at == '\t' || *c->at == '\n' || *c->at == '\r')) c->at++;
}

/* Takes the character, spaces before it ignored, if it comes next. */
static bool take(struct cursor *c, char wanted)
{
    skip_space(c);
    if (c->at == c->end || *c->at != wanted) return false;
    c->at++;
    return true;
}

static bool take_word(struct cursor *c, const char *word)
{
    size_t n = strlen(word);
    skip_space(c);
    if ((size_t)(c->end - c->at) < n || memcmp(c->at, word, n) != 0) return false;
    c->at += n;
    return true;
}

/* A quoted string of fewer than `room` characters, none of which needs escaping. */
static bool take_string(struct cursor *c, char *out, size_t room)
{
    char quote = take(c, '\'') ? '\'' : '"';
    if (quote == '"' && !take(c, '"')) return false;
    size_t n = 0;
    for (; c->at < c->end && *c->at != quote; c->at++) {
        if (n + 1 == room || *c->at == '\\') return false;
        out[n++] = *c->at;
    }
    out[n] = '\0';
    return take(c, quote);
}

static bool take_number(struct cursor *c, int64_t *value)
{
    skip_space(c);
    if (c->at == c->end || *c->at < '0' || *c->at > '9') return false;
    *value = 0;
    for (; c->at < c->end && *c->at >= '0' && *c->at <= '9'; c->at++)
        if (__builtin_mul_overflow(*value, 10, value) || __builtin_add_overflow(*value, *c->at - '0', value)) return false;
    if (c->at < c->end && *c->at == 'L') c->at++; /* Python 2 wrote long integers so */
    return true;
}

/* "(2, 3)", "(2,)" or "()"; ndim keeps counting past NPY_MAX_DIMS, so that the caller can tell. */
static bool take_shape(struct cursor *c, struct npy_header *header)
{
    if (!take(c, '(')) return false;
    header->ndim = 0;
    while (!take(c, ')')) {
        int64_t side;
        if (!take_number(c, &side)) return false;
        if (header->ndim < NPY_MAX_DIMS) header->shape[header->ndim] = side;
        header->ndim++;
        if (!take(c, ',')) return take(c, ')');
    }
    return true;
}

static aim_status set_dtype(aim_context *ctx, const char *name, const char *descr, struct npy_header *header)
{
    char order = descr[0];
    if (order && strchr("<>|=", order))
        for (int i = 0; i < DTYPES; i++)
            if (strcmp(descr + 1, dtypes[i].code) == 0) {
                header->dtype = (aim_dtype)i;
                header->swapped = (order == '<' || order == '>') && order != native_order && dtypes[i].size > 1;
                return AIM_OK;
            }
    return aim_fail(ctx, AIM_ERR_UNSUPPORTED, "%s holds values of type '%s', which is not supported", name, descr);
}

/* Everything the dict may say; the three keys come in any order. */
struct dict {
    char descr[32];
    bool has_descr, has_order, has_shape, fortran, structured;
};

static bool take_item(struct cursor *c, struct dict *dict, struct npy_header *header)
{
    char key[32];
    if (!take_string(c, key, sizeof key) || !take(c, ':')) return false;
    if (strcmp(key, "descr") == 0) {
        skip_space(c);
        dict->structured = c->at < c->end && *c->at == '[';
        return dict->has_descr = take_string(c, dict->descr, sizeof dict->descr);
    }
    if (strcmp(key, "fortran_order") == 0) {
        dict->fortran = take_word(c, "True");
        return dict->has_order = dict->fortran || take_word(c, "False");
    }
    return dict->has_shape = strcmp(key, "shape") == 0 && take_shape(c, header);
}

static bool take_dict(struct cursor *c, struct dict *dict, struct npy_header *header)
{
    if (!take(c, '{')) return false;
    while (!take(c, '}')) {
        if (!take_item(c, dict, header)) return false;
        if (!take(c, ',')) return take(c, '}');
    }
    return true;
}

static aim_status parse_text(aim_context *ctx, const char *name, struct cursor c, struct npy_header *header)
{
    struct dict dict = {0};
    bool whole = take_dict(&c, &dict, header);
    if (dict.structured)
        return aim_fail(ctx, AIM_ERR_UNSUPPORTED, "%s holds records of several values, which are not supported", name);
    if (!whole || !dict.has_descr || !dict.has_order || !dict.has_shape)
        return damaged(ctx, name, "its header cannot be understood");
    if (header->ndim > NPY_MAX_DIMS)
        return aim_fail(ctx, AIM_ERR_UNSUPPORTED, "%s has %d dimensions; at most %d are supported", name, header->ndim,
                        (int)NPY_MAX_DIMS);
    TRY(set_dtype(ctx, name, dict.descr, header));
    if (dict.fortran && header->ndim > 1)
        return aim_fail(ctx, AIM_ERR_UNSUPPORTED, "%s is in Fortran order; save numpy.ascontiguousarray(array) instead", name);
    if (!npy_shape_bytes(header->dtype, header->ndim, header->shape, &header->bytes))
        return damaged(ctx, name, "its shape is impossible");
    return AIM_OK;
}

aim_status npy_file_parse(aim_context *ctx, const char *name, const void *data, size_t size, struct npy_header *header,
                          size_t *length)
{
    *header = (struct npy_header){0};
    *length = 0;
    size_t start = 0, end = 0;
    TRY(find_text(ctx, name, data, size, &start, &end));
    TRY(parse_text(ctx, name, (struct cursor){(const char *)data + start, (const char *)data + end}, header));
    *length = end;
    if (size - end == header->bytes) return AIM_OK;
    return aim_fail(ctx, AIM_ERR_FORMAT, "%s is damaged: its shape needs %zu bytes of values, but it has %zu", name,
                    header->bytes, size - end);
}

size_t npy_header_format(char out[NPY_WRITTEN_HEADER], aim_dtype dtype, int ndim, const int64_t *shape)
{
    char text[NPY_WRITTEN_HEADER];
    int n = snprintf(text, sizeof text, "{'descr': '%c%s', 'fortran_order': False, 'shape': (",
                     dtypes[dtype].size > 1 ? native_order : '|', dtypes[dtype].code);
    for (int i = 0; i < ndim; i++)
        n += snprintf(text + n, sizeof text - (size_t)n, "%s%lld", i ? ", " : "", (long long)shape[i]);
    n += snprintf(text + n, sizeof text - (size_t)n, "%s), }", ndim == 1 ? "," : "");
    size_t used = 10 + (size_t)n + 1, whole = (used + 63) / 64 * 64, header = whole - 10;
    memset(out, ' ', whole);
    memcpy(out, magic, sizeof magic);
    out[6] = 1;
    out[7] = 0;
    out[8] = (char)(header & 0xff);
    out[9] = (char)(header >> 8);
    memcpy(out + 10, text, (size_t)n);
    out[whole - 1] = '\n';
    return whole;
}

/* ------------------------------------------------------------------------------------------------ values */

/* Turns the values around, from the other byte order. */
static void swap_values(unsigned char *data, size_t bytes, size_t size)
{
    for (size_t i = 0; i < bytes; i += size)
        for (size_t j = 0; j < size / 2; j++) {
            unsigned char low = data[i + j];
            data[i + j] = data[i + size - 1 - j];
            data[i + size - 1 - j] = low;
        }
}

void npy_array_set(const struct npy_header *header, void *values, aim_array *array)
{
    *array = (aim_array){.dtype = header->dtype, .ndim = header->ndim, .data = values};
    memcpy(array->shape, header->shape, sizeof array->shape);
    if (header->swapped) swap_values(values, header->bytes, npy_dtype_size(header->dtype));
}

aim_status npy_parse(aim_context *ctx, const char *name, const void *data, size_t size, aim_array *array)
{
    *array = (aim_array){0};
    size_t length = 0;
    struct npy_header header;
    TRY(npy_file_parse(ctx, name, data, size, &header, &length));
    void *values = mem_new(ctx, header.bytes, MEM_FILE);
    if (!values) return aim_fail(ctx, AIM_ERR_MEMORY, "cannot read %s: %s", name, ctx->error);
    memcpy(values, (const char *)data + length, header.bytes);
    npy_array_set(&header, values, array);
    return AIM_OK;
}
