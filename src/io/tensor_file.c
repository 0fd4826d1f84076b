#include "io/tensor_file.h"

#include <stdlib.h>
#include <string.h>

#include "io/safetensors.h"
#include "io/torch_file.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "tensor files are little-endian and are used in place"
#endif

static const struct {
    const char *name;
    size_t size;
} dtypes[FILE_DTYPES] = {
    [FILE_BOOL] = {"BOOL", 1},       [FILE_U8] = {"U8", 1},           [FILE_I8] = {"I8", 1},   [FILE_F8_E5M2] = {"F8_E5M2", 1},
    [FILE_F8_E4M3] = {"F8_E4M3", 1}, [FILE_F8_E8M0] = {"F8_E8M0", 1}, [FILE_I16] = {"I16", 2}, [FILE_U16] = {"U16", 2},
    [FILE_F16] = {"F16", 2},         [FILE_BF16] = {"BF16", 2},       [FILE_I32] = {"I32", 4}, [FILE_U32] = {"U32", 4},
    [FILE_F32] = {"F32", 4},         [FILE_C64] = {"C64", 8},         [FILE_F64] = {"F64", 8}, [FILE_I64] = {"I64", 8},
    [FILE_U64] = {"U64", 8},
};

const char *file_dtype_name(enum file_dtype dtype)
{
    return dtypes[dtype].name;
}

size_t file_dtype_size(enum file_dtype dtype)
{
    return dtypes[dtype].size;
}

enum file_dtype file_dtype_find(const char *name)
{
    unsigned i = 0;
    while (i < FILE_DTYPES && strcmp(dtypes[i].name, name) != 0) i++;
    return (enum file_dtype)i;
}

/* ------------------------------------------------------------------------------------------------ ownership */

/* Stands before every block of tensor_file_alloc. */
struct tensor_block {
    struct tensor_block *next;
};

enum { BLOCK_HEADER = 64 };

void *tensor_file_alloc(aim_context *ctx, struct tensor_file *f, size_t bytes)
{
    size_t whole = 0;
    if (!size_add(bytes, BLOCK_HEADER, &whole)) whole = SIZE_MAX; /* which mem_new refuses */
    struct tensor_block *block = mem_new(ctx, whole, MEM_FILE);
    if (!block) return NULL;
    block->next = f->blocks;
    f->blocks = block;
    return (char *)block + BLOCK_HEADER;
}

void tensor_file_close(struct tensor_file *f)
{
    while (f->blocks) {
        struct tensor_block *next = f->blocks->next;
        mem_free(f->blocks);
        f->blocks = next;
    }
    file_map_close(&f->map);
    *f = (struct tensor_file){0};
}

/* -------------------------------------------------------------------------------------------------- opening */

static aim_status fail_unknown(aim_context *ctx, const char *name, const unsigned char *data, size_t size)
{
    static const char lfs[] = "version https://git-lfs";
    if (size == 0) return aim_fail(ctx, AIM_ERR_FORMAT, "%s is empty", name);
    if (size >= sizeof lfs - 1 && memcmp(data, lfs, sizeof lfs - 1) == 0)
        return aim_fail(ctx, AIM_ERR_FORMAT, "%s is a Git LFS pointer, not the file itself: run `git lfs pull`", name);
    return aim_fail(ctx, AIM_ERR_FORMAT, "%s is neither a safetensors nor a torch file", name);
}

aim_status tensor_file_parse(aim_context *ctx, const char *name, const void *data, size_t size, struct tensor_file *f)
{
    *f = (struct tensor_file){0};
    if (torch_file_detect(data, size)) return torch_file_parse(ctx, name, data, size, f);
    if (safetensors_detect(data, size)) return safetensors_parse(ctx, name, data, size, f);
    return fail_unknown(ctx, name, data, size);
}

aim_status tensor_file_open(aim_context *ctx, const char *path, struct tensor_file *f)
{
    *f = (struct tensor_file){0};
    struct file_map map;
    TRY(file_map_open(ctx, path, &map));
    aim_status status = tensor_file_parse(ctx, path, map.data, map.size, f);
    if (status == AIM_OK)
        f->map = map;
    else
        file_map_close(&map);
    return status;
}

/* --------------------------------------------------------------------------------------------------- lookup */

static int compare_names(const void *a, const void *b)
{
    const struct tensor_entry *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

aim_status tensor_file_index(aim_context *ctx, const char *name, struct tensor_file *f)
{
    size_t bytes;
    if (!size_mul(f->count, sizeof *f->by_name, &bytes)) bytes = SIZE_MAX;
    f->by_name = tensor_file_alloc(ctx, f, bytes);
    if (!f->by_name) return AIM_ERR_MEMORY;
    for (size_t i = 0; i < f->count; i++) f->by_name[i] = &f->entries[i];
    qsort(f->by_name, f->count, sizeof *f->by_name, compare_names);
    for (size_t i = 1; i < f->count; i++)
        if (strcmp(f->by_name[i - 1]->name, f->by_name[i]->name) == 0)
            return aim_fail(ctx, AIM_ERR_FORMAT, "%s: the tensor \"%s\" appears twice", name, f->by_name[i]->name);
    return AIM_OK;
}

const struct tensor_entry *tensor_file_find(const struct tensor_file *f, const char *name)
{
    size_t low = 0, high = f->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(name, f->by_name[middle]->name);
        if (order == 0) return f->by_name[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

const char *tensor_file_metadata(const struct tensor_file *f, const char *key)
{
    for (size_t i = 0; i < f->metadata_count; i++)
        if (strcmp(f->metadata[i].key, key) == 0) return f->metadata[i].value;
    return NULL;
}

/* ---------------------------------------------------------------------------------------------------- values */

size_t tensor_entry_elements(const struct tensor_entry *entry)
{
    return entry->bytes / file_dtype_size(entry->dtype);
}

bool tensor_entry_measure(struct tensor_entry *entry)
{
    size_t bytes = file_dtype_size(entry->dtype);
    for (int i = 0; i < entry->ndim; i++)
        if (entry->shape[i] < 0 || !size_mul(bytes, (size_t)entry->shape[i], &bytes)) return false;
    entry->bytes = bytes;
    return bytes <= PTRDIFF_MAX;
}

static float float_of_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* IEEE binary16. Every value of it is a float32, subnormals included: those are mantissa * 2^-24. */
static float float_of_half(uint16_t half)
{
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16, exponent = (half >> 10) & 31u, mantissa = half & 0x3ffu;
    if (exponent == 31) return float_of_bits(sign | 0x7f800000u | mantissa << 13);
    if (exponent != 0) return float_of_bits(sign | (exponent + 112) << 23 | mantissa << 13);
    float magnitude = (float)mantissa * 0x1p-24f;
    return sign ? -magnitude : magnitude;
}

/* Reads elements of `type` named x, possibly unaligned, and stores `value` for each. */
#define CONVERT(type, value)                                                                                                   \
    do {                                                                                                                       \
        for (size_t i = 0; i < n; i++) {                                                                                       \
            type x;                                                                                                            \
            memcpy(&x, from + i * sizeof x, sizeof x);                                                                         \
            out[i] = (value);                                                                                                  \
        }                                                                                                                      \
    } while (0)

aim_status tensor_entry_to_f32(aim_context *ctx, const struct tensor_entry *entry, float *out)
{
    size_t n = tensor_entry_elements(entry);
    const unsigned char *from = entry->data;
    switch (entry->dtype) {
    case FILE_F32:
        if (n) memcpy(out, from, n * sizeof *out);
        return AIM_OK;
    case FILE_F16: CONVERT(uint16_t, float_of_half(x)); return AIM_OK;
    case FILE_BF16: CONVERT(uint16_t, float_of_bits((uint32_t)x << 16)); return AIM_OK;
    case FILE_F64: CONVERT(double, (float)x); return AIM_OK;
    case FILE_BOOL: CONVERT(uint8_t, x ? 1.0f : 0.0f); return AIM_OK;
    case FILE_U8: CONVERT(uint8_t, (float)x); return AIM_OK;
    case FILE_I8: CONVERT(int8_t, (float)x); return AIM_OK;
    case FILE_U16: CONVERT(uint16_t, (float)x); return AIM_OK;
    case FILE_I16: CONVERT(int16_t, (float)x); return AIM_OK;
    case FILE_U32: CONVERT(uint32_t, (float)x); return AIM_OK;
    case FILE_I32: CONVERT(int32_t, (float)x); return AIM_OK;
    case FILE_U64: CONVERT(uint64_t, (float)x); return AIM_OK;
    case FILE_I64: CONVERT(int64_t, (float)x); return AIM_OK;
    case FILE_F8_E5M2:
    case FILE_F8_E4M3:
    case FILE_F8_E8M0:
    case FILE_C64:
    case FILE_DTYPES: break;
    }
    return aim_fail(ctx, AIM_ERR_UNSUPPORTED, "the tensor \"%s\" has the type %s, which cannot be used as float32", entry->name,
                    file_dtype_name(entry->dtype));
}
