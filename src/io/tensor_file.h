/*
 * One view of "a file with named tensors", whatever wrote it: safetensors, torch.save as a zip, torch.save before 1.6.
 * The file stays mapped while the view is open and tensors point into the mapping wherever that is possible, so opening
 * a file of gigabytes costs neither time nor memory.
 */
#ifndef AIM_IO_TENSOR_FILE_H
#define AIM_IO_TENSOR_FILE_H

#include "base/context.h"
#include "base/file.h"

/* In the order of the safetensors library, which its canonical file order is built on. */
enum file_dtype {
    FILE_BOOL,
    FILE_U8,
    FILE_I8,
    FILE_F8_E5M2,
    FILE_F8_E4M3,
    FILE_F8_E8M0,
    FILE_I16,
    FILE_U16,
    FILE_F16,
    FILE_BF16,
    FILE_I32,
    FILE_U32,
    FILE_F32,
    FILE_C64,
    FILE_F64,
    FILE_I64,
    FILE_U64,
    FILE_DTYPES
};

enum { TENSOR_MAX_DIMS = 8 };

/* "F32" and so on, as safetensors writes it. */
const char *file_dtype_name(enum file_dtype dtype);

/* Bytes of one element. */
size_t file_dtype_size(enum file_dtype dtype);

/* FILE_DTYPES when there is no such name. */
enum file_dtype file_dtype_find(const char *name);

/*
 * One tensor: row-major, contiguous, little-endian. `data` may be UNALIGNED for its type (safetensors promises nothing):
 * read elements with memcpy, or use tensor_entry_to_f32. A scalar has ndim 0; a tensor with a zero in its shape has bytes 0
 * and a data pointer that must not be read.
 */
struct tensor_entry {
    const char *name; /* UTF-8 in safetensors; whatever it was in torch files */
    enum file_dtype dtype;
    int ndim;
    int64_t shape[TENSOR_MAX_DIMS];
    const void *data;
    size_t bytes; /* elements * file_dtype_size(dtype) */
};

struct tensor_metadata {
    const char *key, *value; /* UTF-8 */
};

enum tensor_format { TENSOR_SAFETENSORS, TENSOR_TORCH_ZIP, TENSOR_TORCH_LEGACY };

/* Everything in here belongs to the struct and lives until tensor_file_close. */
struct tensor_file {
    enum tensor_format format;
    size_t count;
    struct tensor_entry *entries; /* in file order: by place of the data (safetensors), in the order of the dict (torch) */
    size_t metadata_count;
    struct tensor_metadata *metadata; /* safetensors' __metadata__ */

    /* private */
    const struct tensor_entry **by_name;
    struct tensor_block *blocks;
    struct file_map map;
};

/*
 * Opens a file, told apart by content. Failures: AIM_ERR_IO, AIM_ERR_FORMAT (damaged, or no such file type),
 * AIM_ERR_UNSUPPORTED (valid, but with tensors this reader does not know), AIM_ERR_MEMORY; *f is zeroed then.
 */
aim_status tensor_file_open(aim_context *ctx, const char *path, struct tensor_file *f);

/* The same for a file in memory, which must outlive *f; `name` is what messages call it. */
aim_status tensor_file_parse(aim_context *ctx, const char *name, const void *data, size_t size, struct tensor_file *f);

/* Accepts a zeroed struct and leaves one. */
void tensor_file_close(struct tensor_file *f);

/* NULL when there is no such tensor. */
const struct tensor_entry *tensor_file_find(const struct tensor_file *f, const char *name);

/* The value of a metadata key; NULL when absent. */
const char *tensor_file_metadata(const struct tensor_file *f, const char *key);

size_t tensor_entry_elements(const struct tensor_entry *entry);

/*
 * Converts to float32; `out` holds tensor_entry_elements(entry) values. F32, F16 and BF16 convert exactly (subnormals,
 * infinities and NaNs included); F64 and integers round to nearest even; BOOL gives 0 or 1. AIM_ERR_UNSUPPORTED for
 * 8-bit floats and complex numbers.
 */
aim_status tensor_entry_to_f32(aim_context *ctx, const struct tensor_entry *entry, float *out);

/* ------------------------------------------------------------------------------------------- for the readers */

/* A block of `bytes`, aligned to 64, that tensor_file_close frees; NULL when out of memory, with the message set. */
void *tensor_file_alloc(aim_context *ctx, struct tensor_file *f, size_t bytes);

/* Sets entry->bytes from dtype and shape; false when that overflows. */
bool tensor_entry_measure(struct tensor_entry *entry);

/* Call once all entries stand: makes tensor_file_find work and refuses names that appear twice. */
aim_status tensor_file_index(aim_context *ctx, const char *name, struct tensor_file *f);

#endif
