#include "train/codes_llamagen.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>

/* Length of NAME in "NAME_codes" or "NAME_codes/"; 0 when the path does not end like that. */
static size_t stem_length(const char *path)
{
    size_t n = strlen(path), ending = strlen(LLAMAGEN_CODES);
    while (n > 1 && path[n - 1] == '/') n--;
    return n > ending && memcmp(path + n - ending, LLAMAGEN_CODES, ending) == 0 ? n - ending : 0;
}

aim_status llamagen_find(aim_context *ctx, const char *folder, char **found)
{
    *found = NULL;
    if (stem_length(folder)) {
        *found = mem_string(ctx, folder, MEM_MISC);
        return *found ? AIM_OK : AIM_ERR_MEMORY;
    }
    DIR *stream = opendir(folder);
    if (!stream) return aim_fail_errno(ctx, "cannot read the folder %s", folder);
    aim_status status = AIM_OK;
    for (const struct dirent *entry; status == AIM_OK && (entry = readdir(stream));) {
        if (!stem_length(entry->d_name)) continue;
        char *path = file_join(ctx, folder, entry->d_name);
        if (!path) status = AIM_ERR_MEMORY;
        if (path && file_is_directory(path) && (!*found || strcmp(path, *found) < 0)) {
            char *better = path;
            path = *found;
            *found = better;
        }
        mem_free(path);
    }
    closedir(stream);
    if (status == AIM_OK) return AIM_OK;
    mem_free(*found);
    *found = NULL;
    return status;
}

char *llamagen_labels_folder(aim_context *ctx, const char *codes_folder)
{
    size_t n = stem_length(codes_folder), bytes = n + sizeof LLAMAGEN_LABELS;
    char *path = mem_new(ctx, bytes, MEM_MISC);
    if (path) snprintf(path, bytes, "%.*s" LLAMAGEN_LABELS, (int)n, codes_folder);
    return path;
}

char *llamagen_file(aim_context *ctx, const char *folder, int64_t i)
{
    char name[32];
    snprintf(name, sizeof name, "%lld.npy", (long long)i);
    return file_join(ctx, folder, name);
}

/* File i of a folder as int64 values. */
static aim_status read_file(aim_context *ctx, const char *folder, int64_t i, aim_array *array)
{
    char *path = llamagen_file(ctx, folder, i);
    if (!path) return AIM_ERR_MEMORY;
    aim_status status = aim_array_read(ctx, path, NULL, array);
    if (status == AIM_OK && array->dtype != AIM_I64 && aim_array_to_int64(ctx, array) != AIM_OK)
        status = aim_fail(ctx, ctx->status == AIM_ERR_MEMORY ? AIM_ERR_MEMORY : AIM_ERR_FORMAT, "%s: %s", path, ctx->error);
    if (status != AIM_OK) aim_array_free(array);
    mem_free(path);
    return status;
}

/* Files 0.npy, 1.npy ... without a gap. */
static aim_status count_files(struct codes *c)
{
    for (bool exists = true; exists; c->count += exists) {
        char *path = llamagen_file(c->ctx, c->path, c->count);
        if (!path) return AIM_ERR_MEMORY;
        exists = file_exists(path);
        mem_free(path);
    }
    return c->count ? AIM_OK : aim_fail(c->ctx, AIM_ERR_FORMAT, "%s: there is no 0.npy in this folder of codes", c->path);
}

static aim_status read_label(struct codes *c, const char *folder, int64_t i)
{
    aim_array array = {0};
    TRY(read_file(c->ctx, folder, i, &array));
    int64_t values = 1;
    for (int d = 0; d < array.ndim; d++) values *= array.shape[d] == 1 ? 1 : 0;
    int64_t label = values == 1 ? *(const int64_t *)array.data : -1;
    aim_array_free(&array);
    if (label < 0 || label >= INT32_MAX)
        return aim_fail(c->ctx, AIM_ERR_FORMAT, "%s: %lld.npy does not hold one class", folder, (long long)i);
    c->labels[i] = (int32_t)label;
    if (label >= c->class_count) c->class_count = label + 1;
    return AIM_OK;
}

static aim_status read_labels(struct codes *c)
{
    c->labels = mem_array(c->ctx, (size_t)c->count, sizeof *c->labels, MEM_FILE);
    char *folder = c->labels ? llamagen_labels_folder(c->ctx, c->path) : NULL;
    if (!folder) return AIM_ERR_MEMORY;
    aim_status status = AIM_OK;
    for (int64_t i = 0; i < c->count && status == AIM_OK; i++) {
        enum { STRIDE = 1024 };
        if (i % STRIDE == 0) status = aim_progress(c->ctx, "reading labels", i, c->count);
        if (status == AIM_OK) status = read_label(c, folder, i);
    }
    mem_free(folder);
    return status;
}

aim_status llamagen_open(struct codes *c)
{
    TRY(count_files(c));
    aim_array first = {0};
    TRY(read_file(c->ctx, c->path, 0, &first));
    bool fits =
        first.ndim == 3 && first.shape[0] == 1 && first.shape[1] > 0 && first.shape[2] > 0 && first.shape[1] <= INT32_MAX;
    if (fits) {
        c->variants = first.shape[1];
        c->tokens = first.shape[2];
    }
    aim_array_free(&first);
    if (!fits) return aim_fail(c->ctx, AIM_ERR_FORMAT, "%s: 0.npy does not have the shape (1, variants, tokens)", c->path);
    return read_labels(c);
}

aim_status llamagen_read(const struct codes *c, int64_t i, int64_t variant, int32_t *out)
{
    aim_array array = {0};
    TRY(read_file(c->ctx, c->path, i, &array));
    aim_status status = AIM_OK;
    if (array.ndim != 3 || array.shape[0] != 1 || array.shape[1] != c->variants || array.shape[2] != c->tokens)
        status = aim_fail(c->ctx, AIM_ERR_FORMAT, "%s: %lld.npy does not have the shape (1, %lld, %lld) of the others", c->path,
                          (long long)i, (long long)c->variants, (long long)c->tokens);
    for (int64_t t = 0; t < c->tokens && status == AIM_OK; t++) {
        int64_t code = ((const int64_t *)array.data)[variant * c->tokens + t];
        if (code < 0 || code > INT32_MAX)
            status = aim_fail(c->ctx, AIM_ERR_FORMAT, "%s: %lld.npy holds %lld, which is no code", c->path, (long long)i,
                              (long long)code);
        out[t] = (int32_t)code;
    }
    aim_array_free(&array);
    return status;
}
