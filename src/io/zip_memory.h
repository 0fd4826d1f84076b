/*
 * A zip archive in memory as minizip's "file", so that archives are read from a mapped file or a test's buffer.
 */
#ifndef AIM_IO_ZIP_MEMORY_H
#define AIM_IO_ZIP_MEMORY_H

#include <minizip/unzip.h>
#include <stddef.h>

struct zip_memory {
    const unsigned char *data;
    size_t size, at; /* at: where minizip reads */
};

/* Opens the archive in *memory, which must outlive the handle; NULL when it has no readable directory. */
unzFile zip_memory_open(struct zip_memory *memory);

#endif
