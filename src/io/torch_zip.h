/*
 * The container of torch.save since 1.6: a zip archive with one folder that holds data.pkl, byteorder and the storages
 * data/0, data/1, ... Entries are found through the central directory (local headers carry no sizes) and, being stored
 * uncompressed, used where they lie.
 */
#ifndef AIM_IO_TORCH_ZIP_H
#define AIM_IO_TORCH_ZIP_H

#include "io/tensor_file.h"

struct torch_zip_entry;

struct torch_zip {
    aim_context *ctx;
    const char *name; /* of the file, for messages */

    /* private */
    const unsigned char *data;
    size_t size, at; /* at: where minizip reads */
    void *unzip;
    struct torch_zip_entry *entries;
    size_t count, capacity;
    size_t expanded; /* bytes decompressed so far */
};

/*
 * Opens an archive in memory; `name` and `data` must outlive *z, `data` also what torch_zip_read returns.
 * AIM_ERR_FORMAT when it is damaged or not torch's. *z is zeroed on failure.
 */
aim_status torch_zip_open(aim_context *ctx, const char *name, const void *data, size_t size, struct torch_zip *z);

/* Accepts a zeroed struct and leaves one. */
void torch_zip_close(struct torch_zip *z);

/*
 * The entry `path`, relative to the folder: in place when it is stored, else decompressed into memory of *f.
 * *data is NULL, with AIM_OK, when there is no such entry.
 */
aim_status torch_zip_read(struct torch_zip *z, const char *path, struct tensor_file *f, const unsigned char **data,
                          size_t *size);

#endif
