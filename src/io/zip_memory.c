#include "io/zip_memory.h"

#include <string.h>

static voidpf memory_open(voidpf opaque, const void *path, int mode)
{
    (void)path;
    (void)mode;
    return opaque;
}

static uLong memory_read(voidpf opaque, voidpf stream, void *out, uLong bytes)
{
    (void)opaque;
    struct zip_memory *m = stream;
    size_t left = m->size - m->at, n = bytes < left ? bytes : left;
    if (n) memcpy(out, m->data + m->at, n);
    m->at += n;
    return n;
}

static ZPOS64_T memory_tell(voidpf opaque, voidpf stream)
{
    (void)opaque;
    return ((struct zip_memory *)stream)->at;
}

static long memory_seek(voidpf opaque, voidpf stream, ZPOS64_T offset, int origin)
{
    (void)opaque;
    struct zip_memory *m = stream;
    size_t base = origin == ZLIB_FILEFUNC_SEEK_SET ? 0 : origin == ZLIB_FILEFUNC_SEEK_CUR ? m->at : m->size;
    if (offset > m->size - base) return -1;
    m->at = base + (size_t)offset;
    return 0;
}

static int memory_nothing(voidpf opaque, voidpf stream)
{
    (void)opaque;
    (void)stream;
    return 0;
}

unzFile zip_memory_open(struct zip_memory *memory)
{
    zlib_filefunc64_def functions = {.zopen64_file = memory_open,
                                     .zread_file = memory_read,
                                     .ztell64_file = memory_tell,
                                     .zseek64_file = memory_seek,
                                     .zclose_file = memory_nothing,
                                     .zerror_file = memory_nothing,
                                     .opaque = memory};
    return unzOpen2_64("", &functions);
}
