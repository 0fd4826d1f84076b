#include "io/zip_reader.h"

#include <stdlib.h>
#include <string.h>

#include <zlib.h>

enum {
    LOCAL_BYTES = 30,
    CENTRAL_BYTES = 46,
    END_BYTES = 22,
    LOCATOR_BYTES = 20,
    END64_BYTES = 56,
    MAX_COMMENT = 65535,
    FLAG_ENCRYPTED = 1,
    DEFLATED = 8,
    ZIP64_EXTRA = 1,
    DEFLATE_RATIO = 1032 /* no more bytes come out for one that goes in */
};

/* "PK" and two digits */
static const unsigned char local_mark[] = {'P', 'K', 3, 4}, central_mark[] = {'P', 'K', 1, 2}, end_mark[] = {'P', 'K', 5, 6},
                           end64_mark[] = {'P', 'K', 6, 6}, locator_mark[] = {'P', 'K', 6, 7};

enum { MARK_BYTES = 4 };

static uint16_t read16(const unsigned char *at)
{
    uint16_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static uint32_t read32(const unsigned char *at)
{
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static uint64_t read64(const unsigned char *at)
{
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static aim_status damaged(struct zip_reader *z, const char *what)
{
    aim_fail(z->ctx, AIM_ERR_FORMAT, "%s: damaged zip archive: %s", z->name, what);
    return AIM_ERR_FORMAT;
}

static aim_status fail_entry(struct zip_reader *z, const struct zip_entry *entry, const char *what)
{
    return aim_fail(z->ctx, AIM_ERR_FORMAT, "%s: damaged zip archive: %s %s", z->name, entry->path, what);
}

/* `bytes` at `offset` of the file if they start with `mark`; NULL otherwise. */
static const unsigned char *find_record(const struct zip_reader *z, uint64_t offset, size_t bytes, const unsigned char *mark)
{
    if (offset > z->size || bytes > z->size - offset || memcmp(z->data + offset, mark, MARK_BYTES) != 0) return NULL;
    return z->data + offset;
}

/* ------------------------------------------------------------------------------------------------- directory */

struct directory {
    uint64_t count, bytes, offset;
};

/* The end record stands last, before a comment of known length. Its ZIP64 form, if there is one, counts. */
static aim_status find_directory(struct zip_reader *z, struct directory *d)
{
    const unsigned char *end = NULL;
    size_t comment = 0;
    for (; !end && comment <= MAX_COMMENT && comment + END_BYTES <= z->size; comment++) {
        end = find_record(z, z->size - END_BYTES - comment, END_BYTES, end_mark);
        if (end && read16(end + 20) != comment) end = NULL;
    }
    if (!end) return damaged(z, "it has no directory: the file is cut short");
    *d = (struct directory){.count = read16(end + 10), .bytes = read32(end + 12), .offset = read32(end + 16)};

    size_t at = (size_t)(end - z->data);
    const unsigned char *locator = at < LOCATOR_BYTES ? NULL : find_record(z, at - LOCATOR_BYTES, LOCATOR_BYTES, locator_mark);
    if (locator) {
        const unsigned char *end64 = find_record(z, read64(locator + 8), END64_BYTES, end64_mark);
        if (!end64) return damaged(z, "its ZIP64 directory is missing");
        *d = (struct directory){.count = read64(end64 + 32), .bytes = read64(end64 + 40), .offset = read64(end64 + 48)};
    }
    if (d->offset > z->size || d->bytes > z->size - d->offset || d->count > d->bytes / CENTRAL_BYTES)
        return damaged(z, "its directory lies outside the file");
    return AIM_OK;
}

/* A field that is too large for 32 bits stands in the extra record instead; those come one after the other there. */
static bool widen(uint32_t field, const unsigned char **extra, size_t *left, uint64_t *out)
{
    *out = field;
    if (field != UINT32_MAX) return true;
    if (*left < sizeof *out) return false;
    *out = read64(*extra);
    *extra += sizeof *out;
    *left -= sizeof *out;
    return true;
}

/* Sizes and offset of a central header whose extra field is `extra`. */
static bool read_sizes(const unsigned char *header, const unsigned char *extra, size_t left, struct zip_entry *entry)
{
    enum { EXTRA_HEADER = 4 };
    const unsigned char *wide = NULL;
    size_t wide_bytes = 0;
    while (left >= EXTRA_HEADER && !wide) {
        size_t bytes = read16(extra + 2);
        if (bytes > left - EXTRA_HEADER) break;
        if (read16(extra) == ZIP64_EXTRA) {
            wide = extra + EXTRA_HEADER;
            wide_bytes = bytes;
        }
        extra += EXTRA_HEADER + bytes;
        left -= EXTRA_HEADER + bytes;
    }
    uint64_t size, compressed;
    if (!widen(read32(header + 24), &wide, &wide_bytes, &size) ||
        !widen(read32(header + 20), &wide, &wide_bytes, &compressed) ||
        !widen(read32(header + 42), &wide, &wide_bytes, &entry->offset))
        return false;
    entry->size = size;
    entry->compressed = compressed;
    return true;
}

static int compare_paths(const void *a, const void *b)
{
    const struct zip_entry *x = a, *y = b;
    return strcmp(x->path, y->path);
}

static aim_status read_directory(struct zip_reader *z, const struct directory *d)
{
    const unsigned char *at = z->data + d->offset;
    size_t left = (size_t)d->bytes;
    z->entries = mem_array(z->ctx, (size_t)d->count, sizeof *z->entries, MEM_FILE);
    z->text = mem_new(z->ctx, left, MEM_FILE); /* a name and its terminator are shorter than the header */
    if (!z->entries || !z->text) return AIM_ERR_MEMORY;
    char *text = z->text;
    for (size_t i = 0; i < d->count; i++) {
        if (left < CENTRAL_BYTES || memcmp(at, central_mark, MARK_BYTES) != 0) return damaged(z, "its directory is broken");
        size_t path = read16(at + 28), extra = read16(at + 30), whole = CENTRAL_BYTES + path + extra + read16(at + 32);
        struct zip_entry *entry = &z->entries[z->count++];
        *entry = (struct zip_entry){.path = text, .flags = read16(at + 8), .method = read16(at + 10), .crc = read32(at + 16)};
        entry->stored = entry->method == 0;
        if (whole > left || memchr(at + CENTRAL_BYTES, '\0', path)) return damaged(z, "its directory is broken");
        if (!read_sizes(at, at + CENTRAL_BYTES + path, extra, entry)) return damaged(z, "its directory lacks sizes");
        memcpy(text, at + CENTRAL_BYTES, path);
        text[path] = '\0';
        text += path + 1;
        at += whole;
        left -= whole;
    }
    qsort(z->entries, z->count, sizeof *z->entries, compare_paths);
    for (size_t i = 1; i < z->count; i++)
        if (strcmp(z->entries[i - 1].path, z->entries[i].path) == 0) return fail_entry(z, &z->entries[i], "appears twice");
    return AIM_OK;
}

bool zip_reader_detect(const void *data, size_t size)
{
    return size >= MARK_BYTES && memcmp(data, local_mark, MARK_BYTES) == 0;
}

aim_status zip_reader_open(aim_context *ctx, const char *name, const void *data, size_t size, struct zip_reader *z)
{
    *z = (struct zip_reader){.ctx = ctx, .name = name, .data = data, .size = size};
    struct directory d;
    aim_status status = find_directory(z, &d);
    if (status == AIM_OK) status = read_directory(z, &d);
    if (status != AIM_OK) zip_reader_close(z);
    return status;
}

void zip_reader_close(struct zip_reader *z)
{
    mem_free(z->entries);
    mem_free(z->text);
    *z = (struct zip_reader){0};
}

/* --------------------------------------------------------------------------------------------------- entries */

const struct zip_entry *zip_reader_find(const struct zip_reader *z, const char *path)
{
    struct zip_entry wanted = {.path = path};
    return z->count ? bsearch(&wanted, z->entries, z->count, sizeof wanted, compare_paths) : NULL;
}

aim_status zip_reader_locate(struct zip_reader *z, const struct zip_entry *entry, const unsigned char **data)
{
    if (entry->flags & FLAG_ENCRYPTED)
        return aim_fail(z->ctx, AIM_ERR_UNSUPPORTED, "%s: %s is encrypted", z->name, entry->path);
    if (!entry->stored && entry->method != DEFLATED)
        return aim_fail(z->ctx, AIM_ERR_UNSUPPORTED, "%s: %s is compressed in a way that is not supported (method %u)", z->name,
                        entry->path, entry->method);
    /* Of the local header only its length counts: a writer that streams does not know the sizes yet. */
    const unsigned char *local = find_record(z, entry->offset, LOCAL_BYTES, local_mark);
    if (!local) return fail_entry(z, entry, "is not where the directory says");
    size_t start = (size_t)(local - z->data) + LOCAL_BYTES + read16(local + 26) + read16(local + 28);
    if (start > z->size || entry->compressed > z->size - start) return fail_entry(z, entry, "lies outside the file");
    *data = z->data + start;
    if (entry->stored) return entry->size == entry->compressed ? AIM_OK : fail_entry(z, entry, "has two sizes");
    /* The directory may lie about sizes, and entries may share their bytes. */
    if (entry->size / DEFLATE_RATIO > entry->compressed || entry->size / DEFLATE_RATIO + z->expanded / DEFLATE_RATIO > z->size)
        return fail_entry(z, entry, "claims an impossible size");
    z->expanded += entry->size;
    return AIM_OK;
}

/* zlib counts in 32 bits: takes the next piece of what is `left`. */
static uInt next_piece(size_t *left)
{
    enum { PIECE = 1 << 30 };
    uInt piece = *left < PIECE ? (uInt)*left : PIECE;
    *left -= piece;
    return piece;
}

aim_status zip_reader_inflate(struct zip_reader *z, const struct zip_entry *entry, const unsigned char *data, void *out)
{
    z_stream stream = {.next_in = (z_const Bytef *)data, .next_out = out};
    if (inflateInit2(&stream, -MAX_WBITS) != Z_OK) return aim_fail(z->ctx, AIM_ERR_MEMORY, "%s: out of memory", z->name);
    size_t in = entry->compressed, room = entry->size;
    uLong crc = crc32(0, NULL, 0);
    int code = Z_OK;
    while (code == Z_OK) {
        if (stream.avail_in == 0) stream.avail_in = next_piece(&in);
        if (stream.avail_out == 0) stream.avail_out = next_piece(&room);
        const Bytef *from = stream.next_out;
        code = inflate(&stream, Z_NO_FLUSH); /* Z_BUF_ERROR once there is nothing left to read or write */
        crc = crc32_z(crc, from, (size_t)(stream.next_out - from));
    }
    bool whole = code == Z_STREAM_END && room == 0 && stream.avail_out == 0;
    inflateEnd(&stream);
    if (!whole) return fail_entry(z, entry, "cannot be decompressed");
    return crc == entry->crc ? AIM_OK : fail_entry(z, entry, "has a wrong checksum");
}
