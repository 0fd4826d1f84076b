/*
 * Files of torch.save: the zip format of torch 1.6 and later, and the older sequence of pickles. The pickles are read by
 * an interpreter that knows data and nothing else: no code of a file ever runs, whatever it asks for.
 *
 * From a training checkpoint the tensors of one state dict are taken: the value of the key "ema", else "model", else
 * "state_dict", else the outermost dict itself. Values that are no tensors are skipped.
 */
#ifndef AIM_IO_TORCH_FILE_H
#define AIM_IO_TORCH_FILE_H

#include "io/tensor_file.h"

/*
 * Reads a file in memory. Contiguous tensors point into `data`, which must outlive *f; other views (and the storages of
 * a recompressed zip) are copied into memory of *f. `name` is what messages call the file. AIM_ERR_FORMAT for damage and
 * for files without tensors; AIM_ERR_UNSUPPORTED for storage and tensor types without counterpart in file_dtype.
 * Checksums of uncompressed zip entries are not looked at, as torch itself does (it may leave them out).
 * *f is zeroed on failure. Close with tensor_file_close.
 */
aim_status torch_file_parse(aim_context *ctx, const char *name, const void *data, size_t size, struct tensor_file *f);

/* Whether the bytes look like the start of a zip or of a pickle, damaged or not. */
bool torch_file_detect(const void *data, size_t size);

#endif
