/*
 * The .npz format of NumPy: a zip archive of .npy files named KEY.npy. Archives are read from memory, stored or deflated,
 * ZIP64 included; they are written stored, always with ZIP64 fields (50,000 pictures pass 4 GiB) and with a fixed date, so
 * that equal arrays give equal files.
 */
#ifndef AIM_IO_NPZ_H
#define AIM_IO_NPZ_H

#include "base/file.h"

/*
 * Reads the array `key` (NULL: the first) of an archive in memory; the caller frees *array, which is zeroed on failure.
 * AIM_ERR_ARGUMENT when there is no such array; AIM_ERR_FORMAT when the archive is damaged, or an entry's sizes
 * contradict each other; AIM_ERR_UNSUPPORTED for encryption and unusual compression; and what npy_parse returns.
 */
aim_status npz_parse(aim_context *ctx, const char *name, const void *data, size_t size, const char *key, aim_array *array);

/* An archive being written into a file_writer, which stays the caller's and must outlive it. */
struct npz_writer {
    struct file_writer *out;
    void *zip;         /* minizip's */
    bool open;         /* an entry is */
    aim_status status; /* of the first failure */
};

/* AIM_ERR_ARGUMENT when the file cannot seek (a pipe): an entry's checksum goes in front of it. */
aim_status npz_writer_open(struct file_writer *out, struct npz_writer *w);

/* Starts the entry KEY.npy, ending the one before. AIM_ERR_ARGUMENT for a key that cannot name a file. */
aim_status npz_writer_begin(struct npz_writer *w, const char *key);
aim_status npz_writer_write(struct npz_writer *w, const void *data, size_t bytes);

/* Writes the directory and frees what the writer holds, in every case. A zeroed writer is fine. */
aim_status npz_writer_close(struct npz_writer *w);

#endif
