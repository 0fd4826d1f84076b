/*
 * The safetensors format: 8 bytes of header length (little-endian), a JSON header that names every tensor with its type,
 * shape and place, then the raw data. The reader takes nothing on trust; the writer's files equal those of the
 * safetensors library byte for byte.
 */
#ifndef AIM_IO_SAFETENSORS_H
#define AIM_IO_SAFETENSORS_H

#include "io/tensor_file.h"

/*
 * Reads a file in memory; tensors point into `data`, which must outlive *f. `name` is what messages call the file.
 * AIM_ERR_FORMAT when a rule of the format is broken; AIM_ERR_UNSUPPORTED for more than TENSOR_MAX_DIMS dimensions;
 * *f is zeroed on failure. Close with tensor_file_close.
 */
aim_status safetensors_parse(aim_context *ctx, const char *name, const void *data, size_t size, struct tensor_file *f);

/* Whether the bytes look like the start of a safetensors file, damaged or not. */
bool safetensors_detect(const void *data, size_t size);

/*
 * Writes a file, atomically, in canonical order: by type from U64 down to BOOL, then by name; metadata first, in the order
 * given, header padded so that data starts at a multiple of 8. entries may come in any order; entry->bytes must match
 * type and shape. AIM_ERR_ARGUMENT for a name that appears twice, is reserved ("__metadata__") or is no UTF-8.
 */
aim_status safetensors_write(aim_context *ctx, const char *path, const struct tensor_entry *entries, size_t count,
                             const struct tensor_metadata *metadata, size_t metadata_count);

/*
 * For files whose sizes show only while they are written: safetensors_begin leaves room for the header, which `largest`
 * (the same tensors at their largest possible sizes) measures; then the caller writes the data, tensor after tensor; then
 * safetensors_end, given the true sizes in the order of the data, writes the header into the room. The file must seek.
 * entry->data is not used. Failures as for safetensors_write; the caller closes the writer.
 */
aim_status safetensors_begin(struct file_writer *w, const struct tensor_entry *largest, size_t count,
                             const struct tensor_metadata *metadata, size_t metadata_count, size_t *room);
aim_status safetensors_end(struct file_writer *w, const struct tensor_entry *entries, size_t count,
                           const struct tensor_metadata *metadata, size_t metadata_count, size_t room);

#endif
