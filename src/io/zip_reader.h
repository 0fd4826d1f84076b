/*
 * Zip archives in memory: the directory, entries in place, decompression. Written out rather than left to minizip because
 * the minizip of today's distributions misreads ZIP64 directories on 64-bit systems, i.e. every archive beyond 4 GB.
 */
#ifndef AIM_IO_ZIP_READER_H
#define AIM_IO_ZIP_READER_H

#include "base/context.h"

struct zip_entry {
    const char *path;
    size_t compressed, size; /* bytes in the file and decompressed */
    bool stored;             /* not compressed */

    /* private */
    uint64_t offset; /* of the local header */
    uint32_t crc;
    uint16_t flags, method;
};

struct zip_reader {
    size_t count;
    struct zip_entry *entries; /* sorted by path (strcmp) */

    /* private */
    aim_context *ctx;
    const char *name;
    const unsigned char *data;
    size_t size, expanded;
    char *text;
};

/* Whether the bytes start as an archive does. */
bool zip_reader_detect(const void *data, size_t size);

/*
 * Reads the directory. `name` (what messages call the file) and `data` must outlive *z. AIM_ERR_FORMAT when it is
 * damaged or names a path twice; AIM_ERR_MEMORY. *z is zeroed on failure.
 */
aim_status zip_reader_open(aim_context *ctx, const char *name, const void *data, size_t size, struct zip_reader *z);

/* Accepts a zeroed struct and leaves one. */
void zip_reader_close(struct zip_reader *z);

/* NULL when there is no such entry. */
const struct zip_entry *zip_reader_find(const struct zip_reader *z, const char *path);

/*
 * The entry's bytes in the file: entry->compressed of them, which for a stored entry are its contents (their checksum is
 * not looked at). Also checks that entry->size is possible, so that the caller may allocate as much; all entries together
 * may not decompress to more than the file could hold. AIM_ERR_FORMAT; AIM_ERR_UNSUPPORTED for encryption and for
 * methods other than deflate.
 */
aim_status zip_reader_locate(struct zip_reader *z, const struct zip_entry *entry, const unsigned char **data);

/* Decompresses an entry from what zip_reader_locate gave into `out`, entry->size bytes, and compares the checksum. */
aim_status zip_reader_inflate(struct zip_reader *z, const struct zip_entry *entry, const unsigned char *data, void *out);

#endif
