/*
 * The .npy format of NumPy: a magic number and version, a header that is the text of a Python dict, then the raw values.
 * Versions 1.0, 2.0 and 3.0 are read, in either byte order; version 1.0 is written. Headers come from anywhere, so sizes
 * are checked against the bytes at hand before memory is taken.
 */
#ifndef AIM_IO_NPY_H
#define AIM_IO_NPY_H

#include "base/context.h"

enum {
    NPY_MAX_DIMS = 8,
    NPY_PREFIX = 12,          /* bytes that tell how long the header is */
    NPY_MAX_HEADER = 1 << 16, /* ours have 64 to 128 bytes; more than this is a structured type at best */
    NPY_WRITTEN_HEADER = 320  /* room for any header that npy_header_format writes */
};

/* What stands in front of the values. */
struct npy_header {
    aim_dtype dtype;
    bool swapped; /* the values are not in this machine's byte order */
    int ndim;
    int64_t shape[NPY_MAX_DIMS];
    size_t bytes; /* of the values */
};

/* Bytes of one value; 0 for a number that is no aim_dtype. */
size_t npy_dtype_size(aim_dtype dtype);

/* Bytes of all values; false when that overflows or a side is negative. */
bool npy_shape_bytes(aim_dtype dtype, int ndim, const int64_t *shape, size_t *bytes);

/*
 * The length of the header, prefix included, from the first `size` bytes of a file (NPY_PREFIX are enough).
 * AIM_ERR_FORMAT when they do not start a .npy file. `name` is what messages call it, here and below.
 */
aim_status npy_header_length(aim_context *ctx, const char *name, const void *data, size_t size, size_t *length);

/*
 * Reads the header in data[0..length). AIM_ERR_FORMAT when it is damaged; AIM_ERR_UNSUPPORTED for types outside
 * aim_dtype, Fortran order and more than NPY_MAX_DIMS dimensions.
 */
aim_status npy_header_parse(aim_context *ctx, const char *name, const void *data, size_t length, struct npy_header *header);

/* Allocates the array that a header describes, values undefined; the caller frees it. AIM_ERR_MEMORY. */
aim_status npy_array_alloc(aim_context *ctx, const char *name, const struct npy_header *header, aim_array *array);

/* Turns the values of a file in the other byte order around. */
void npy_array_swap(aim_array *array);

/*
 * Reads a whole file in memory; the caller frees *array, which is zeroed on failure. Besides the failures above,
 * AIM_ERR_FORMAT when the file has more or fewer values than its shape says.
 */
aim_status npy_parse(aim_context *ctx, const char *name, const void *data, size_t size, aim_array *array);

/* Writes prefix and header for an array into `out`; returns their length, a multiple of 64. */
size_t npy_header_format(char out[NPY_WRITTEN_HEADER], aim_dtype dtype, int ndim, const int64_t *shape);

#endif
