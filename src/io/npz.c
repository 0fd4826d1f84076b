#include "io/npz.h"

#include <stdio.h>
#include <string.h>

#include <minizip/zip.h>
#include <zlib.h>

#include "io/npy.h"
#include "io/zip_reader.h"

enum {
    KEY_BYTES = 240, /* of a key, with its end */
    CHUNK = 1 << 30  /* minizip counts in 32 bits */
};

/* ----------------------------------------------------------------------------------------------- reading */

/* The entry KEY.npy, or the array that comes first in the file. */
static aim_status find_entry(aim_context *ctx, const char *name, const struct zip_reader *zip, const char *key,
                             const struct zip_entry **entry)
{
    *entry = NULL;
    size_t wanted = key ? strlen(key) : 0;
    for (size_t i = 0; i < zip->count; i++) {
        const struct zip_entry *e = &zip->entries[i];
        size_t n = strlen(e->path);
        if (n < 5 || strcmp(e->path + n - 4, ".npy") != 0) continue;
        if (key ? n == wanted + 4 && memcmp(e->path, key, wanted) == 0 : !*entry || e->offset < (*entry)->offset) *entry = e;
    }
    if (*entry) return AIM_OK;
    if (key) return aim_fail(ctx, AIM_ERR_ARGUMENT, "%s has no array \"%s\"", name, key);
    return aim_fail(ctx, AIM_ERR_ARGUMENT, "%s has no arrays", name);
}

static aim_status read_stored(aim_context *ctx, const char *label, const struct zip_entry *entry, const unsigned char *data,
                              aim_array *array)
{
    TRY(npy_parse(ctx, label, data, entry->size, array));
    if (crc32_z(0, data, entry->size) == entry->crc) return AIM_OK;
    return aim_fail(ctx, AIM_ERR_FORMAT, "%s is damaged: its checksum is wrong", label);
}

/* Unpacks the whole entry into the array's own block and then moves the values over the header: no second copy. */
static aim_status read_deflated(struct zip_reader *zip, const char *label, const struct zip_entry *entry,
                                const unsigned char *data, aim_array *array)
{
    aim_context *ctx = zip->ctx;
    struct npy_header header;
    size_t length = 0;
    char *block = mem_new(ctx, entry->size, MEM_FILE);
    if (!block) return aim_fail(ctx, AIM_ERR_MEMORY, "cannot read %s: %s", label, ctx->error);
    aim_status status = zip_reader_inflate(zip, entry, data, block);
    if (status == AIM_OK) status = npy_file_parse(ctx, label, block, entry->size, &header, &length);
    if (status != AIM_OK) {
        mem_free(block);
        return status;
    }
    memmove(block, block + length, header.bytes);
    npy_array_set(&header, block, array);
    return AIM_OK;
}

static aim_status read_entry(struct zip_reader *zip, const struct zip_entry *entry, aim_array *array)
{
    char label[512];
    const unsigned char *data;
    /* NOLINTNEXTLINE(clang-analyzer-core.NullDereference): find_entry without an entry never returns AIM_OK */
    snprintf(label, sizeof label, "%.80s in %s", entry->path, zip->name);
    TRY(zip_reader_locate(zip, entry, &data));
    return entry->stored ? read_stored(zip->ctx, label, entry, data, array) : read_deflated(zip, label, entry, data, array);
}

aim_status npz_parse(aim_context *ctx, const char *name, const void *data, size_t size, const char *key, aim_array *array)
{
    *array = (aim_array){0};
    struct zip_reader zip;
    const struct zip_entry *entry;
    TRY(zip_reader_open(ctx, name, data, size, &zip));
    aim_status status = find_entry(ctx, name, &zip, key, &entry);
    if (status == AIM_OK) status = read_entry(&zip, entry, array);
    zip_reader_close(&zip);
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
