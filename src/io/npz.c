#include "io/npz.h"

#include <stdio.h>
#include <string.h>

#include <minizip/zip.h>

#include "io/npy.h"
#include "io/zip_memory.h"

enum {
    KEY_BYTES = 240,      /* of a key, with its end; minizip finds no longer names */
    DEFLATE_RATIO = 1032, /* no more bytes come out of one that deflate reads */
    CHUNK = 1 << 30       /* minizip counts in 32 bits */
};

/* ----------------------------------------------------------------------------------------------- reading */

static aim_status damaged(aim_context *ctx, const char *name, const char *what)
{
    return aim_fail(ctx, AIM_ERR_FORMAT, "%s is a damaged .npz file: %s", name, what);
}

/* Makes the entry of `key`, or the first that is an array, the current one; `entry` gets its name. */
static aim_status find_entry(aim_context *ctx, const char *name, unzFile zip, const char *key, char entry[KEY_BYTES + 8])
{
    bool found = false;
    int code = UNZ_OK;
    if (key) {
        int n = snprintf(entry, KEY_BYTES + 8, "%s.npy", key);
        found = n < KEY_BYTES && unzLocateFile(zip, entry, 1) == UNZ_OK;
    } else {
        for (code = unzGoToFirstFile(zip); code == UNZ_OK && !found; code = found ? UNZ_OK : unzGoToNextFile(zip)) {
            unz_file_info64 info;
            if (unzGetCurrentFileInfo64(zip, &info, entry, KEY_BYTES, NULL, 0, NULL, 0) != UNZ_OK)
                return damaged(ctx, name, "its directory cannot be read");
            entry[KEY_BYTES - 1] = '\0';
            size_t n = strlen(entry);
            found = n == info.size_filename && n > 4 && strcmp(entry + n - 4, ".npy") == 0;
        }
    }
    if (found) return AIM_OK;
    if (key) return aim_fail(ctx, AIM_ERR_ARGUMENT, "%s has no array \"%s\"", name, key);
    if (code != UNZ_END_OF_LIST_OF_FILE) return damaged(ctx, name, "its directory cannot be read");
    return aim_fail(ctx, AIM_ERR_ARGUMENT, "%s has no arrays", name);
}

/* What the directory says about the current entry, as far as it can be true. */
static aim_status check_entry(aim_context *ctx, const char *name, unzFile zip, size_t file_size, unz_file_info64 *info)
{
    if (unzGetCurrentFileInfo64(zip, info, NULL, 0, NULL, 0, NULL, 0) != UNZ_OK)
        return damaged(ctx, name, "its directory cannot be read");
    if (info->flag & 1) return aim_fail(ctx, AIM_ERR_UNSUPPORTED, "%s is encrypted, which is not supported", name);
    if (info->compression_method != 0 && info->compression_method != Z_DEFLATED)
        return aim_fail(ctx, AIM_ERR_UNSUPPORTED, "%s is compressed by method %lu, which is not supported", name,
                        info->compression_method);
    bool stored = info->compression_method == 0;
    if (info->compressed_size > file_size || (stored && info->compressed_size != info->uncompressed_size) ||
        info->uncompressed_size / DEFLATE_RATIO > info->compressed_size)
        return damaged(ctx, name, "an entry claims an impossible size");
    return AIM_OK;
}

static aim_status read_bytes(aim_context *ctx, const char *label, unzFile zip, void *out, size_t bytes)
{
    for (size_t done = 0; done < bytes;) {
        size_t left = bytes - done;
        int n = unzReadCurrentFile(zip, (char *)out + done, left < CHUNK ? (unsigned)left : CHUNK);
        if (n < 0) return aim_fail(ctx, AIM_ERR_FORMAT, "%s is damaged: it cannot be decompressed", label);
        if (n == 0) return aim_fail(ctx, AIM_ERR_FORMAT, "%s is damaged: it ends too early", label);
        done += (size_t)n;
    }
    return AIM_OK;
}

/* Reads the opened entry, which has `size` bytes when unpacked. */
static aim_status read_array(aim_context *ctx, const char *label, unzFile zip, uint64_t size, aim_array *array)
{
    char prefix[NPY_PREFIX];
    size_t length;
    if (size < NPY_PREFIX) return aim_fail(ctx, AIM_ERR_FORMAT, "%s is not a .npy file", label);
    TRY(read_bytes(ctx, label, zip, prefix, sizeof prefix));
    TRY(npy_header_length(ctx, label, prefix, sizeof prefix, &length));
    if (length < NPY_PREFIX || length > size) return aim_fail(ctx, AIM_ERR_FORMAT, "%s is damaged: its header", label);
    char *text = mem_new(ctx, length, MEM_FILE);
    if (!text) return aim_fail(ctx, AIM_ERR_MEMORY, "cannot read %s: %s", label, ctx->error);
    memcpy(text, prefix, sizeof prefix);
    struct npy_header header;
    aim_status status = read_bytes(ctx, label, zip, text + sizeof prefix, length - sizeof prefix);
    if (status == AIM_OK) status = npy_header_parse(ctx, label, text, length, &header);
    mem_free(text);
    TRY(status);
    if (header.bytes != size - length)
        return aim_fail(ctx, AIM_ERR_FORMAT, "%s is damaged: its shape needs %zu bytes of values, but it has %llu", label,
                        header.bytes, (unsigned long long)(size - length));
    TRY(npy_array_alloc(ctx, label, &header, array));
    TRY(read_bytes(ctx, label, zip, array->data, header.bytes));
    if (header.swapped) npy_array_swap(array);
    return AIM_OK;
}

static aim_status read_entry(aim_context *ctx, const char *name, unzFile zip, size_t file_size, const char *key,
                             aim_array *array)
{
    char entry[KEY_BYTES + 8], label[512];
    unz_file_info64 info;
    TRY(find_entry(ctx, name, zip, key, entry));
    TRY(check_entry(ctx, name, zip, file_size, &info));
    if (unzOpenCurrentFile(zip) != UNZ_OK) return damaged(ctx, name, "an entry cannot be opened");
    snprintf(label, sizeof label, "%s in %s", entry, name);
    aim_status status = read_array(ctx, label, zip, info.uncompressed_size, array);
    /* minizip compares the checksum here, provided that all was read */
    int closed = unzCloseCurrentFile(zip);
    if (status == AIM_OK && closed != UNZ_OK)
        status = aim_fail(ctx, AIM_ERR_FORMAT, "%s is damaged: its checksum is wrong", label);
    return status;
}

aim_status npz_parse(aim_context *ctx, const char *name, const void *data, size_t size, const char *key, aim_array *array)
{
    *array = (aim_array){0};
    struct zip_memory memory = {.data = data, .size = size};
    unzFile zip = zip_memory_open(&memory);
    if (!zip) return damaged(ctx, name, "its directory is missing or cannot be read");
    aim_status status = read_entry(ctx, name, zip, size, key, array);
    unzClose(zip);
    if (status != AIM_OK) aim_array_free(array);
    return status;
}

/* ----------------------------------------------------------------------------------------------- writing */

static voidpf stream_open(voidpf opaque, const void *path, int mode)
{
    (void)path;
    (void)mode;
    return opaque;
}

static uLong stream_read(voidpf opaque, voidpf stream, void *out, uLong bytes)
{
    (void)opaque;
    (void)stream;
    (void)out;
    (void)bytes;
    return 0;
}

/* The first failure stays, with its message. */
static void note(struct npz_writer *w, aim_status status)
{
    if (w->status == AIM_OK) w->status = status;
}

static uLong stream_write(voidpf opaque, voidpf stream, const void *data, uLong bytes)
{
    (void)opaque;
    struct npz_writer *w = stream;
    if (w->status == AIM_OK) note(w, file_writer_write(w->out, data, bytes));
    return w->status == AIM_OK ? bytes : 0;
}

static ZPOS64_T stream_tell(voidpf opaque, voidpf stream)
{
    (void)opaque;
    struct npz_writer *w = stream;
    off_t at = ftello(w->out->stream);
    if (at >= 0) return (ZPOS64_T)at;
    note(w, aim_fail_errno(w->out->ctx, "cannot write %s", w->out->path));
    return 0;
}

static long stream_seek(voidpf opaque, voidpf stream, ZPOS64_T offset, int origin)
{
    (void)opaque;
    struct npz_writer *w = stream;
    int whence = origin == ZLIB_FILEFUNC_SEEK_SET ? SEEK_SET : origin == ZLIB_FILEFUNC_SEEK_CUR ? SEEK_CUR : SEEK_END;
    if (w->status == AIM_OK && fseeko(w->out->stream, (off_t)offset, whence) != 0)
        note(w, aim_fail_errno(w->out->ctx, "cannot write %s", w->out->path));
    return w->status == AIM_OK ? 0 : -1;
}

static int stream_close(voidpf opaque, voidpf stream)
{
    (void)opaque;
    (void)stream;
    return 0;
}

static int stream_error(voidpf opaque, voidpf stream)
{
    (void)opaque;
    return ((struct npz_writer *)stream)->status != AIM_OK;
}

/* minizip's verdict; its memory runs out or a callback of ours has failed, and nothing else. */
static aim_status check(struct npz_writer *w, int code)
{
    if (code != ZIP_OK && w->status == AIM_OK)
        note(w, aim_fail(w->out->ctx, AIM_ERR_MEMORY, "cannot write %s: out of memory in the zip writer", w->out->path));
    return w->status;
}

aim_status npz_writer_open(struct file_writer *out, struct npz_writer *w)
{
    *w = (struct npz_writer){.out = out};
    if (fseeko(out->stream, 0, SEEK_CUR) != 0)
        return aim_fail(out->ctx, AIM_ERR_ARGUMENT, "cannot write %s: an .npz archive needs a file, not a pipe", out->path);
    zlib_filefunc64_def functions = {.zopen64_file = stream_open,
                                     .zread_file = stream_read,
                                     .zwrite_file = stream_write,
                                     .ztell64_file = stream_tell,
                                     .zseek64_file = stream_seek,
                                     .zclose_file = stream_close,
                                     .zerror_file = stream_error,
                                     .opaque = w};
    w->zip = zipOpen2_64("", APPEND_STATUS_CREATE, NULL, &functions);
    return check(w, w->zip ? ZIP_OK : ZIP_INTERNALERROR);
}

static aim_status end_entry(struct npz_writer *w)
{
    if (!w->open) return w->status;
    w->open = false;
    return check(w, zipCloseFileInZip(w->zip));
}

aim_status npz_writer_begin(struct npz_writer *w, const char *key)
{
    enum { DATE_1980 = 1 << 21 | 1 << 16, MADE_BY_UNIX = 3 << 8, UTF8_NAME = 1 << 11 };
    char entry[KEY_BYTES + 8];
    TRY(end_entry(w));
    if (!key || !*key || strlen(key) >= KEY_BYTES - 4 || key[0] == '/')
        return aim_fail(w->out->ctx, AIM_ERR_ARGUMENT, "cannot write %s: an array needs a name of 1 to %d bytes", w->out->path,
                        KEY_BYTES - 5);
    snprintf(entry, sizeof entry, "%s.npy", key);
    zip_fileinfo info = {.dosDate = DATE_1980, .external_fa = 0644ul << 16};
    int code = zipOpenNewFileInZip4_64(w->zip, entry, &info, NULL, 0, NULL, 0, NULL, 0, 0, 0, -MAX_WBITS, DEF_MEM_LEVEL,
                                       Z_DEFAULT_STRATEGY, NULL, 0, MADE_BY_UNIX | 45, UTF8_NAME, 1);
    TRY(check(w, code));
    w->open = true;
    return AIM_OK;
}

aim_status npz_writer_write(struct npz_writer *w, const void *data, size_t bytes)
{
    for (size_t done = 0; done < bytes;) {
        unsigned n = bytes - done < CHUNK ? (unsigned)(bytes - done) : CHUNK;
        TRY(check(w, zipWriteInFileInZip(w->zip, (const char *)data + done, n)));
        done += n;
    }
    return w->status;
}

aim_status npz_writer_close(struct npz_writer *w)
{
    if (!w->zip) return w->status;
    end_entry(w);
    check(w, zipClose(w->zip, NULL));
    aim_status status = w->status;
    *w = (struct npz_writer){0};
    return status;
}
