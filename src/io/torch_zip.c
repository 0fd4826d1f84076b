#include "io/torch_zip.h"

#include <stdlib.h>
#include <string.h>

#include <minizip/unzip.h>

enum {
    PATH_BYTES = 64,     /* longer ones are of no interest: storages are numbered */
    DEFLATE_RATIO = 1032 /* no more bytes come out of one that deflate reads */
};

struct torch_zip_entry {
    char path[PATH_BYTES];
    unz64_file_pos place;
    uint64_t compressed, size;
    bool stored;
};

/* ------------------------------------------------------------------- the archive as minizip's "file": a buffer */

static voidpf memory_open(voidpf opaque, const void *filename, int mode)
{
    (void)filename;
    (void)mode;
    return opaque;
}

static uLong memory_read(voidpf opaque, voidpf stream, void *out, uLong bytes)
{
    (void)opaque;
    struct torch_zip *z = stream;
    size_t left = z->size - z->at, n = bytes < left ? bytes : left;
    memcpy(out, z->data + z->at, n);
    z->at += n;
    return n;
}

static uLong memory_write(voidpf opaque, voidpf stream, const void *from, uLong bytes)
{
    (void)opaque;
    (void)stream;
    (void)from;
    (void)bytes;
    return 0;
}

static ZPOS64_T memory_tell(voidpf opaque, voidpf stream)
{
    (void)opaque;
    return ((struct torch_zip *)stream)->at;
}

static long memory_seek(voidpf opaque, voidpf stream, ZPOS64_T offset, int origin)
{
    (void)opaque;
    struct torch_zip *z = stream;
    size_t base = origin == ZLIB_FILEFUNC_SEEK_SET ? 0 : origin == ZLIB_FILEFUNC_SEEK_CUR ? z->at : z->size;
    if (offset > z->size - base) return -1;
    z->at = base + (size_t)offset;
    return 0;
}

static int memory_close(voidpf opaque, voidpf stream)
{
    (void)opaque;
    (void)stream;
    return 0;
}

/* ------------------------------------------------------------------------------------------------- directory */

static aim_status damaged(struct torch_zip *z, const char *what)
{
    aim_fail(z->ctx, AIM_ERR_FORMAT, "%s: damaged zip archive: %s", z->name, what);
    return AIM_ERR_FORMAT;
}

/* Name and description of minizip's current entry; names that do not fit come out as "". */
static aim_status current_entry(struct torch_zip *z, char *path, size_t path_bytes, unz_file_info64 *info)
{
    if (unzGetCurrentFileInfo64(z->unzip, info, path, (uLong)path_bytes, NULL, 0, NULL, 0) != UNZ_OK)
        return damaged(z, "its directory cannot be read");
    if (info->size_filename >= path_bytes) path[0] = '\0';
    path[path_bytes - 1] = '\0';
    return AIM_OK;
}

/* Moves to the next entry; *more is false at the end. */
static aim_status next_entry(struct torch_zip *z, bool *more)
{
    int code = unzGoToNextFile(z->unzip);
    *more = code == UNZ_OK;
    return code == UNZ_OK || code == UNZ_END_OF_LIST_OF_FILE ? AIM_OK : damaged(z, "its directory cannot be read");
}

static aim_status add_entry(struct torch_zip *z, const char *path, const unz_file_info64 *info)
{
    if (strlen(path) >= PATH_BYTES) return AIM_OK;
    if (z->count == z->capacity) {
        size_t capacity = z->capacity ? 2 * z->capacity : 16;
        void *moved = mem_resize(z->ctx, z->entries, capacity * sizeof *z->entries, MEM_FILE);
        if (!moved) return AIM_ERR_MEMORY;
        z->entries = moved;
        z->capacity = capacity;
    }
    if (info->flag & 1) return aim_fail(z->ctx, AIM_ERR_UNSUPPORTED, "%s: the zip archive is encrypted", z->name);
    if (info->compression_method != 0 && info->compression_method != Z_DEFLATED)
        return aim_fail(z->ctx, AIM_ERR_UNSUPPORTED, "%s: %s is compressed in a way that is not supported (method %lu)",
                        z->name, path, info->compression_method);
    struct torch_zip_entry *entry = &z->entries[z->count++];
    *entry = (struct torch_zip_entry){.stored = info->compression_method == 0};
    memcpy(entry->path, path, strlen(path) + 1);
    entry->compressed = info->compressed_size;
    entry->size = info->uncompressed_size;
    if (unzGetFilePos64(z->unzip, &entry->place) != UNZ_OK) return damaged(z, "its directory cannot be read");
    return AIM_OK;
}

static int compare_paths(const void *a, const void *b)
{
    const struct torch_zip_entry *x = a, *y = b;
    return strcmp(x->path, y->path);
}

/* The folder that holds data.pkl, with its slash, into `root`. */
static aim_status find_root(struct torch_zip *z, char *root, size_t root_bytes)
{
    static const char suffix[] = "/data.pkl";
    bool more = unzGoToFirstFile(z->unzip) == UNZ_OK;
    while (more) {
        unz_file_info64 info;
        TRY(current_entry(z, root, root_bytes, &info));
        char *slash = strchr(root, '/');
        if (slash && strcmp(slash, suffix) == 0) {
            slash[1] = '\0';
            return AIM_OK;
        }
        TRY(next_entry(z, &more));
    }
    return aim_fail(z->ctx, AIM_ERR_FORMAT, "%s: a zip archive without data.pkl: it was not written by torch.save", z->name);
}

static aim_status read_directory(struct torch_zip *z)
{
    char root[512], path[sizeof root + PATH_BYTES];
    TRY(find_root(z, root, sizeof root));
    size_t root_length = strlen(root);
    bool more = unzGoToFirstFile(z->unzip) == UNZ_OK;
    while (more) {
        unz_file_info64 info;
        TRY(current_entry(z, path, sizeof path, &info));
        if (strncmp(path, root, root_length) == 0) TRY(add_entry(z, path + root_length, &info));
        TRY(next_entry(z, &more));
    }
    qsort(z->entries, z->count, sizeof *z->entries, compare_paths);
    for (size_t i = 1; i < z->count; i++)
        if (strcmp(z->entries[i - 1].path, z->entries[i].path) == 0) return damaged(z, "an entry appears twice");
    return AIM_OK;
}

aim_status torch_zip_open(aim_context *ctx, const char *name, const void *data, size_t size, struct torch_zip *z)
{
    *z = (struct torch_zip){.ctx = ctx, .name = name, .data = data, .size = size};
    zlib_filefunc64_def functions = {.zopen64_file = memory_open,
                                     .zread_file = memory_read,
                                     .zwrite_file = memory_write,
                                     .ztell64_file = memory_tell,
                                     .zseek64_file = memory_seek,
                                     .zclose_file = memory_close,
                                     .zerror_file = memory_close,
                                     .opaque = z};
    z->unzip = unzOpen2_64(name, &functions);
    aim_status status = z->unzip ? read_directory(z) : damaged(z, "it has no directory; the file is cut short");
    if (status != AIM_OK) torch_zip_close(z);
    return status;
}

void torch_zip_close(struct torch_zip *z)
{
    if (z->unzip) unzClose(z->unzip);
    mem_free(z->entries);
    *z = (struct torch_zip){0};
}

/* ----------------------------------------------------------------------------------------------------- entries */

static aim_status fail_entry(struct torch_zip *z, const struct torch_zip_entry *entry, const char *what)
{
    return aim_fail(z->ctx, AIM_ERR_FORMAT, "%s: damaged zip archive: %s %s", z->name, entry->path, what);
}

/* Where the bytes of minizip's current, opened entry lie. */
static aim_status locate(struct torch_zip *z, const struct torch_zip_entry *entry, const unsigned char **data)
{
    uint64_t start = unzGetCurrentFileZStreamPos64(z->unzip);
    if (entry->size != entry->compressed) return fail_entry(z, entry, "has two sizes");
    if (start > z->size || entry->size > z->size - start) return fail_entry(z, entry, "lies outside the file");
    *data = z->data + start;
    return AIM_OK;
}

static aim_status decompress(struct torch_zip *z, const struct torch_zip_entry *entry, struct tensor_file *f,
                             const unsigned char **data)
{
    enum { CHUNK = 1 << 30 };
    /* The directory may lie about sizes, and entries may share their bytes: believe only what the file could hold. */
    if (entry->compressed > z->size || entry->size / DEFLATE_RATIO > entry->compressed ||
        entry->size / DEFLATE_RATIO + z->expanded / DEFLATE_RATIO > z->size)
        return fail_entry(z, entry, "claims an impossible size");
    size_t size = (size_t)entry->size;
    z->expanded += size;
    unsigned char *out = tensor_file_alloc(z->ctx, f, size);
    if (!out) return AIM_ERR_MEMORY;
    for (size_t done = 0; done < size;) {
        size_t left = size - done;
        int n = unzReadCurrentFile(z->unzip, out + done, left < CHUNK ? (unsigned)left : CHUNK);
        if (n <= 0) return fail_entry(z, entry, "cannot be decompressed");
        done += (size_t)n;
    }
    *data = out;
    return AIM_OK;
}

aim_status torch_zip_read(struct torch_zip *z, const char *path, struct tensor_file *f, const unsigned char **data,
                          size_t *size)
{
    *data = NULL;
    *size = 0;
    struct torch_zip_entry wanted = {0};
    size_t length = strlen(path);
    if (length >= PATH_BYTES) return AIM_OK;
    memcpy(wanted.path, path, length);
    struct torch_zip_entry *entry = bsearch(&wanted, z->entries, z->count, sizeof wanted, compare_paths);
    if (!entry) return AIM_OK;
    /* opened "raw", an entry costs minizip nothing to set up */
    if (unzGoToFilePos64(z->unzip, &entry->place) != UNZ_OK ||
        unzOpenCurrentFile2(z->unzip, NULL, NULL, entry->stored) != UNZ_OK)
        return fail_entry(z, entry, "cannot be opened");
    aim_status status = entry->stored ? locate(z, entry, data) : decompress(z, entry, f, data);
    int closed = unzCloseCurrentFile(z->unzip);
    if (status == AIM_OK && !entry->stored && closed != UNZ_OK) status = fail_entry(z, entry, "has a wrong checksum");
    if (status == AIM_OK) *size = (size_t)entry->size;
    return status;
}
