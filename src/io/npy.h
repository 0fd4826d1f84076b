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
    NPY_WRITTEN_HEADER = 320 /* room for any header that npy_header_format writes */
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
 * Reads the header of a whole file in memory, whose values start after *length bytes. AIM_ERR_FORMAT when it is damaged
 * or has more or fewer values than its shape says; AIM_ERR_UNSUPPORTED for types outside aim_dtype, Fortran order and
 * more than NPY_MAX_DIMS dimensions. `name` is what messages call the file.
 */
aim_status npy_file_parse(aim_context *ctx, const char *name, const void *data, size_t size, struct npy_header *header,
                          size_t *length);

/* Makes the array of a header and its values, a block from mem_* that it owns from now on. */
void npy_array_set(const struct npy_header *header, void *values, aim_array *array);

/* Reads a whole file in memory; the caller frees *array, which is zeroed on failure. Fails as npy_file_parse does. */
aim_status npy_parse(aim_context *ctx, const char *name, const void *data, size_t size, aim_array *array);

/* Writes prefix and header for an array into `out`; returns their length, a multiple of 64. */
size_t npy_header_format(char out[NPY_WRITTEN_HEADER], aim_dtype dtype, int ndim, const int64_t *shape);

#endif
