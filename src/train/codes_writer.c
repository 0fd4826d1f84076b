#include "train/codes_writer.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "io/npy.h"
#include "io/safetensors.h"
#include "train/codes_llamagen.h"

enum { CODES, LABELS, PARTS };

/* --------------------------------------------------------------------------------------------- our own form */

/* Values that 16 bits hold are kept in them. */
static bool is_narrow(const struct codes_writer *w)
{
    return w->d.vocabulary <= UINT16_MAX + 1;
}

/* The file's tensors, in the order of their data, for that many pictures. */
static void describe_tensors(const struct codes_writer *w, int64_t count, struct tensor_entry entries[PARTS])
{
    entries[CODES] = (struct tensor_entry){
        .name = "codes", .dtype = is_narrow(w) ? FILE_U16 : FILE_I32, .ndim = 3, .shape = {count, w->d.variants, w->d.tokens}};
    entries[LABELS] = (struct tensor_entry){.name = "labels", .dtype = FILE_I32, .ndim = 1, .shape = {count}};
    for (int i = 0; i < PARTS; i++) tensor_entry_measure(&entries[i]); /* what overflows is refused by the writer */
}

/* Room for the header, or the header itself once all data is written. */
static aim_status write_header(struct codes_writer *w, int64_t count, bool finish)
{
    char size[16], vocabulary[24];
    snprintf(size, sizeof size, "%d", w->d.size);
    snprintf(vocabulary, sizeof vocabulary, "%lld", (long long)w->d.vocabulary);
    struct tensor_metadata metadata[] = {{CODES_KEY_FORMAT, CODES_FORMAT},       {CODES_KEY_CLASSES, w->classes},
                                         {CODES_KEY_VOCABULARY, vocabulary},     {CODES_KEY_SIZE, size},
                                         {CODES_KEY_VIEWS, w->d.views},          {CODES_KEY_TOKENIZER, w->d.tokenizer},
                                         {CODES_KEY_CROP_RANGE, w->d.crop_range}};
    size_t n = sizeof metadata / sizeof *metadata - (w->d.crop_range ? 0 : 1);
    struct tensor_entry entries[PARTS];
    describe_tensors(w, count, entries);
    if (finish) return safetensors_end(&w->out, entries, PARTS, metadata, n, w->room);
    return safetensors_begin(&w->out, entries, PARTS, metadata, n, &w->room);
}

/* The names of the classes as a JSON list; bytes that are no UTF-8 are refused. */
static aim_status format_classes(struct codes_writer *w)
{
    json_t *list = json_array();
    aim_status status = AIM_OK;
    for (int64_t i = 0; i < w->d.dataset->class_count && status == AIM_OK; i++)
        if (json_array_append_new(list, json_string(w->d.dataset->classes[i].name)) != 0)
            status = aim_fail(w->ctx, AIM_ERR_ARGUMENT, "the name of the class folder \"%s\" is not valid UTF-8",
                              w->d.dataset->classes[i].name);
    if (status == AIM_OK && !(w->classes = json_dumps(list, JSON_COMPACT)))
        status = aim_fail(w->ctx, AIM_ERR_MEMORY, "out of memory");
    json_decref(list);
    return status;
}

aim_status codes_writer_check(aim_context *ctx, const char *path, const char *file_name)
{
    char *whole = file_join(ctx, path, file_name);
    if (!whole) return AIM_ERR_MEMORY;
    aim_status status = AIM_OK;
    if (file_exists(whole))
        status = aim_fail(ctx, AIM_ERR_ARGUMENT, "%s exists; choose another folder, or remove it first", whole);
    mem_free(whole);
    return status;
}

static aim_status open_file(struct codes_writer *w, const char *path, const char *file_name)
{
    TRY(codes_writer_check(w->ctx, path, file_name));
    w->labels = mem_array(w->ctx, (size_t)w->d.dataset->count, sizeof *w->labels, MEM_FILE);
    w->narrow = mem_array(w->ctx, (size_t)(w->d.variants * w->d.tokens), sizeof *w->narrow, MEM_FILE);
    char *whole = w->labels && w->narrow ? file_join(w->ctx, path, file_name) : NULL;
    if (!whole) return AIM_ERR_MEMORY;
    aim_status status = file_writer_open(w->ctx, whole, &w->out);
    mem_free(whole);
    TRY(status);
    TRY(format_classes(w));
    return write_header(w, w->d.dataset->count, false);
}

static aim_status add_to_file(struct codes_writer *w, const int32_t *codes, int32_t label)
{
    size_t n = (size_t)(w->d.variants * w->d.tokens);
    w->labels[w->count] = label;
    if (!is_narrow(w)) return file_writer_write(&w->out, codes, n * sizeof *codes);
    for (size_t i = 0; i < n; i++) w->narrow[i] = (uint16_t)codes[i];
    return file_writer_write(&w->out, w->narrow, n * sizeof *w->narrow);
}

static aim_status finish_file(struct codes_writer *w)
{
    TRY(file_writer_write(&w->out, w->labels, (size_t)w->count * sizeof *w->labels));
    return write_header(w, w->count, true);
}

/* ---------------------------------------------------------------------------------------- LlamaGen's form */

/*
 * Millions of small files: they are written plainly into folders with temporary names, which are synced as a whole and
 * renamed in the end.
 */
static aim_status open_folders(struct codes_writer *w, const char *path)
{
    char name[64];
    snprintf(name, sizeof name, "imagenet%d" LLAMAGEN_CODES, w->d.size);
    w->wide = mem_array(w->ctx, (size_t)(w->d.variants * w->d.tokens), sizeof *w->wide, MEM_FILE);
    w->folders[CODES] = w->wide ? file_join(w->ctx, path, name) : NULL;
    w->folders[LABELS] = w->folders[CODES] ? llamagen_labels_folder(w->ctx, w->folders[CODES]) : NULL;
    if (!w->folders[LABELS]) return AIM_ERR_MEMORY;
    for (int i = 0; i < PARTS; i++) {
        if (file_exists(w->folders[i]))
            return aim_fail(w->ctx, AIM_ERR_ARGUMENT, "%s exists; choose another folder, or remove it first", w->folders[i]);
        size_t bytes = strlen(w->folders[i]) + 32;
        w->temporary[i] = mem_new(w->ctx, bytes, MEM_MISC);
        if (!w->temporary[i]) return AIM_ERR_MEMORY;
        snprintf(w->temporary[i], bytes, "%s.tmp-%ld", w->folders[i], (long)getpid());
        TRY(file_make_directory(w->ctx, w->temporary[i]));
    }
    return AIM_OK;
}

/* One int64 array as "folder/i.npy". */
static aim_status write_array(struct codes_writer *w, const char *folder, int ndim, const int64_t *shape, const int64_t *values,
                              size_t n)
{
    char header[NPY_WRITTEN_HEADER];
    size_t length = npy_header_format(header, AIM_I64, ndim, shape);
    char *path = llamagen_file(w->ctx, folder, w->count);
    if (!path) return AIM_ERR_MEMORY;
    FILE *f = fopen(path, "wbx");
    bool written = f && fwrite(header, 1, length, f) == length && fwrite(values, sizeof *values, n, f) == n;
    if (f && fclose(f) != 0) written = false;
    aim_status status = written ? AIM_OK : aim_fail_errno(w->ctx, "cannot write %s", path);
    mem_free(path);
    return status;
}

static aim_status add_files(struct codes_writer *w, const int32_t *codes, int32_t label)
{
    size_t n = (size_t)(w->d.variants * w->d.tokens);
    for (size_t i = 0; i < n; i++) w->wide[i] = codes[i];
    const int64_t shape[] = {1, w->d.variants, w->d.tokens}, one = 1, wide_label = label;
    TRY(write_array(w, w->temporary[CODES], 3, shape, w->wide, n));
    return write_array(w, w->temporary[LABELS], 1, &one, &wide_label, 1);
}

/* Labels first: a cache is found by its folder of codes. */
static aim_status finish_folders(struct codes_writer *w)
{
    int fd = open(w->temporary[CODES], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    bool synced = fd >= 0 && syncfs(fd) == 0;
    aim_status status = synced ? AIM_OK : aim_fail_errno(w->ctx, "cannot write %s", w->folders[CODES]);
    if (fd >= 0) close(fd);
    for (int i = PARTS - 1; i >= 0 && status == AIM_OK; i--) {
        if (rename(w->temporary[i], w->folders[i]) != 0) {
            status = aim_fail_errno(w->ctx, "cannot write %s", w->folders[i]);
            break;
        }
        mem_free(w->temporary[i]);
        w->temporary[i] = NULL;
    }
    return status;
}

/* Removes what was written; a file of the picture that failed may be there as well. */
static void remove_folder(struct codes_writer *w, const char *folder)
{
    for (int64_t i = 0; i <= w->count; i++) {
        char *path = llamagen_file(w->ctx, folder, i);
        if (path) unlink(path);
        mem_free(path);
    }
    rmdir(folder);
}

static void close_folders(struct codes_writer *w)
{
    for (int i = 0; i < PARTS; i++) {
        if (w->temporary[i]) remove_folder(w, w->temporary[i]);
        mem_free(w->temporary[i]);
        mem_free(w->folders[i]);
    }
    mem_free(w->wide);
}

/* ---------------------------------------------------------------------------------------------------- both */

aim_status codes_writer_open(aim_context *ctx, const char *path, const char *file_name, const struct codes_description *d,
                             struct codes_writer *w)
{
    *w = (struct codes_writer){.ctx = ctx, .d = *d};
    aim_status status = file_make_directory(ctx, path);
    if (status == AIM_OK) status = d->format == AIM_CODES_LLAMAGEN ? open_folders(w, path) : open_file(w, path, file_name);
    if (status != AIM_OK) codes_writer_close(w, false);
    return status;
}

aim_status codes_writer_add(struct codes_writer *w, const int32_t *codes, int32_t label)
{
    TRY(w->d.format == AIM_CODES_LLAMAGEN ? add_files(w, codes, label) : add_to_file(w, codes, label));
    w->count++;
    return AIM_OK;
}

aim_status codes_writer_close(struct codes_writer *w, bool keep)
{
    aim_status status = AIM_OK;
    if (keep) status = w->d.format == AIM_CODES_LLAMAGEN ? finish_folders(w) : finish_file(w);
    aim_status closed = file_writer_close(&w->out, keep && status == AIM_OK);
    if (status == AIM_OK) status = closed;
    close_folders(w);
    free(w->classes);
    mem_free(w->labels);
    mem_free(w->narrow);
    *w = (struct codes_writer){0};
    return status;
}
