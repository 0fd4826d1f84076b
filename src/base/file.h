/*
 * Files: read by mapping, written under a temporary name that becomes the real one after fsync, so that a reader never
 * sees half a file and a failed write leaves nothing behind.
 */
#ifndef AIM_BASE_FILE_H
#define AIM_BASE_FILE_H

#include <stdio.h>

#include "base/context.h"

/* A whole file mapped read-only; data is NULL for an empty file. */
struct file_map {
    const unsigned char *data;
    size_t size;
};

aim_status file_map_open(aim_context *ctx, const char *path, struct file_map *map);
void file_map_close(struct file_map *map);

bool file_is_directory(const char *path);
bool file_exists(const char *path);

/* "directory/name" in a block the caller frees with mem_free; NULL when out of memory. */
char *file_join(aim_context *ctx, const char *directory, const char *name);

/* Makes the directory and its missing parents; an existing directory is fine. */
aim_status file_make_directory(aim_context *ctx, const char *path);

/* A file being written. A path that is no regular file (a pipe, /dev/stdout) is written directly. */
struct file_writer {
    aim_context *ctx;
    FILE *stream;
    char *path, *temporary; /* temporary is NULL when written directly */
};

aim_status file_writer_open(aim_context *ctx, const char *path, struct file_writer *w);
aim_status file_writer_write(struct file_writer *w, const void *data, size_t bytes);

/* keep: flush, fsync, rename; otherwise remove. The writer is closed in every case; closing a zeroed one does nothing. */
aim_status file_writer_close(struct file_writer *w, bool keep);

#endif
