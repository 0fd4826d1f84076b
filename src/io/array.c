/* The arrays of the public interface: reading either format, conversion to integers, and streaming writers. */
#include <math.h>
#include <string.h>

#include "base/file.h"
#include "io/npy.h"
#include "io/npz.h"

void aim_array_free(aim_array *array)
{
    if (!array) return;
    mem_free(array->data);
    *array = (aim_array){0};
}

aim_status aim_array_read(aim_context *ctx, const char *path, const char *key, aim_array *array)
{
    *array = (aim_array){0};
    struct file_map map;
    TRY(file_map_open(ctx, path, &map));
    aim_status status;
    /* an archive without entries starts with its directory */
    bool zip = map.size >= 4 && (memcmp(map.data, "PK\3\4", 4) == 0 || memcmp(map.data, "PK\5\6", 4) == 0);
    if (map.size == 0)
        status = aim_fail(ctx, AIM_ERR_FORMAT, "%s is empty", path);
    else if (zip)
        status = npz_parse(ctx, path, map.data, map.size, key, array);
    else
        status = npy_parse(ctx, path, map.data, map.size, array);
    file_map_close(&map);
    return status;
}

/* ------------------------------------------------------------------------------------------- conversion */

static double double_from_half(uint16_t h)
{
    int exponent = h >> 10 & 31;
    double fraction = h & 1023;
    double v = exponent == 31  ? (fraction != 0.0 ? NAN : INFINITY)
               : exponent == 0 ? ldexp(fraction, -24)
                               : ldexp(fraction + 1024.0, exponent - 25);
    return h & 0x8000 ? -v : v;
}

/* Whole numbers that fit; NaN does not. */
static bool int_from_double(double v, int64_t *out)
{
    if (!(v >= -0x1p63 && v < 0x1p63) || v != trunc(v)) return false;
    *out = (int64_t)v;
    return true;
}

/* Value i of an integer or float array; false when it is no int64. */
static bool int_at(const aim_array *array, size_t i, int64_t *out)
{
    switch (array->dtype) {
    case AIM_U8: *out = ((const uint8_t *)array->data)[i]; return true;
    case AIM_I8: *out = ((const int8_t *)array->data)[i]; return true;
    case AIM_I16: *out = ((const int16_t *)array->data)[i]; return true;
    case AIM_U16: *out = ((const uint16_t *)array->data)[i]; return true;
    case AIM_I32: *out = ((const int32_t *)array->data)[i]; return true;
    case AIM_U32: *out = ((const uint32_t *)array->data)[i]; return true;
    case AIM_I64: *out = ((const int64_t *)array->data)[i]; return true;
    case AIM_U64: {
        uint64_t v = ((const uint64_t *)array->data)[i];
        *out = v <= INT64_MAX ? (int64_t)v : 0;
        return v <= INT64_MAX;
    }
    case AIM_F16: return int_from_double(double_from_half(((const uint16_t *)array->data)[i]), out);
    case AIM_F32: return int_from_double(((const float *)array->data)[i], out);
    case AIM_F64: return int_from_double(((const double *)array->data)[i], out);
    case AIM_BOOL: break;
    }
    return false;
}

aim_status aim_array_to_int64(aim_context *ctx, aim_array *array)
{
    size_t bytes;
    if (array->dtype == AIM_I64) return AIM_OK;
    if (array->dtype == AIM_BOOL) return aim_fail(ctx, AIM_ERR_ARGUMENT, "an array of truth values holds no integers");
    if (!npy_shape_bytes(AIM_I64, array->ndim, array->shape, &bytes))
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "an array of this shape is too large for 64-bit integers");
    int64_t *values = mem_new(ctx, bytes, MEM_FILE);
    if (!values) return AIM_ERR_MEMORY;
    for (size_t i = 0; i < bytes / sizeof *values; i++)
        if (!int_at(array, i, &values[i])) {
            mem_free(values);
            return aim_fail(ctx, AIM_ERR_ARGUMENT, "value %zu of the array is not a 64-bit integer", i);
        }
    mem_free(array->data);
    array->data = values;
    array->dtype = AIM_I64;
    return AIM_OK;
}

/* ----------------------------------------------------------------------------------------------- writing */

struct aim_array_file {
    aim_context *ctx;
    struct file_writer out;
    struct npz_writer npz;
    bool is_npz;
    int arrays;        /* begun */
    size_t left;       /* bytes that the current array still lacks */
    aim_status status; /* of the first failure; nothing is written after one */
};

static bool ends_with(const char *text, const char *ending)
{
    size_t n = strlen(text), m = strlen(ending);
    return n >= m && strcmp(text + n - m, ending) == 0;
}

aim_status aim_array_file_create(aim_context *ctx, const char *path, aim_array_file **file)
{
    *file = NULL;
    bool is_npz = ends_with(path, ".npz");
    if (!is_npz && !ends_with(path, ".npy"))
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "cannot write %s: the name of an array file ends in .npy or .npz", path);
    aim_array_file *f = mem_zero(ctx, 1, sizeof *f, MEM_FILE);
    if (!f) return AIM_ERR_MEMORY;
    f->ctx = ctx;
    f->is_npz = is_npz;
    aim_status status = file_writer_open(ctx, path, &f->out);
    if (status == AIM_OK && is_npz) status = npz_writer_open(&f->out, &f->npz);
    if (status == AIM_OK)
        *file = f;
    else
        aim_array_file_close(f, 0);
    return status;
}

/* Remembers a failure, since the file cannot be completed after it. */
static aim_status keep_failure(aim_array_file *f, aim_status status)
{
    if (f->status == AIM_OK) f->status = status;
    return status;
}

static aim_status check_usable(aim_array_file *f)
{
    if (f->status == AIM_OK) return AIM_OK;
    return aim_fail(f->ctx, f->status, "cannot write %s: writing it has failed before", f->out.path);
}

static aim_status check_complete(aim_array_file *f)
{
    if (f->left == 0) return AIM_OK;
    return keep_failure(f,
                        aim_fail(f->ctx, AIM_ERR_ARGUMENT, "cannot write %s: its array lacks %zu bytes", f->out.path, f->left));
}

static aim_status put(aim_array_file *f, const void *data, size_t bytes)
{
    return keep_failure(f, f->is_npz ? npz_writer_write(&f->npz, data, bytes) : file_writer_write(&f->out, data, bytes));
}

aim_status aim_array_file_begin(aim_array_file *f, const char *key, aim_dtype dtype, int ndim, const int64_t *shape)
{
    TRY(check_usable(f));
    TRY(check_complete(f));
    size_t bytes;
    if (!f->is_npz && f->arrays > 0)
        return keep_failure(f, aim_fail(f->ctx, AIM_ERR_ARGUMENT, "cannot write %s: a .npy file holds one array", f->out.path));
    if (npy_dtype_size(dtype) == 0 || ndim < 0 || ndim > NPY_MAX_DIMS || !npy_shape_bytes(dtype, ndim, shape, &bytes))
        return keep_failure(f, aim_fail(f->ctx, AIM_ERR_ARGUMENT, "cannot write %s: impossible type or shape", f->out.path));
    if (f->is_npz) TRY(keep_failure(f, npz_writer_begin(&f->npz, key)));
    char header[NPY_WRITTEN_HEADER];
    TRY(put(f, header, npy_header_format(header, dtype, ndim, shape)));
    f->arrays++;
    f->left = bytes;
    return AIM_OK;
}

aim_status aim_array_file_write(aim_array_file *f, const void *data, size_t bytes)
{
    TRY(check_usable(f));
    if (bytes > f->left)
        return keep_failure(f, aim_fail(f->ctx, AIM_ERR_ARGUMENT, "cannot write %s: %zu bytes are more than its array has left",
                                        f->out.path, bytes));
    TRY(put(f, data, bytes));
    f->left -= bytes;
    return AIM_OK;
}

aim_status aim_array_file_close(aim_array_file *f, int keep)
{
    if (!f) return AIM_OK;
    aim_status status = AIM_OK;
    if (keep) status = check_usable(f);
    if (keep && status == AIM_OK) status = check_complete(f);
    if (keep && status == AIM_OK && f->arrays == 0)
        status = aim_fail(f->ctx, AIM_ERR_ARGUMENT, "cannot write %s: no array was begun", f->out.path);
    aim_status closed = npz_writer_close(&f->npz); /* frees minizip's memory even when the file goes */
    if (keep && status == AIM_OK) status = closed;
    closed = file_writer_close(&f->out, keep && status == AIM_OK);
    if (keep && status == AIM_OK) status = closed;
    mem_free(f);
    return status;
}
