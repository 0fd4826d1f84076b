#include "cli/pictures.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

static bool is_picture_name(const char *name)
{
    const char *const endings[] = {".png", ".jpg", ".jpeg", ".webp"};
    const char *dot = strrchr(name, '.');
    if (!dot || name[0] == '.') return false;
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++)
        if (strcasecmp(dot, endings[i]) == 0) return true;
    return false;
}

/* Takes `path` over, also when it fails. */
static int append(struct cli *cli, struct picture_list *list, char *path)
{
    char **grown = NULL;
    bool full = (list->count & (list->count - 1)) == 0; /* room doubles at every power of two */
    if (path && full) grown = realloc(list->paths, (size_t)(list->count ? 2 * list->count : 1) * sizeof *grown);
    if (!path || (full && !grown)) {
        free(path);
        return cli_fail(cli, "not enough memory for the list of pictures");
    }
    if (full) list->paths = grown;
    list->paths[list->count++] = path;
    return STATUS_OK;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static int append_entries(struct cli *cli, struct picture_list *list, const char *folder, DIR *stream)
{
    bool slash = folder[strlen(folder) - 1] == '/';
    const struct dirent *entry;
    while ((entry = readdir(stream))) {
        struct stat st;
        char *path = NULL;
        if (!is_picture_name(entry->d_name)) continue;
        if (asprintf(&path, "%s%s%s", folder, slash ? "" : "/", entry->d_name) < 0) path = NULL;
        if (path && (stat(path, &st) != 0 || !S_ISREG(st.st_mode))) {
            free(path);
            continue;
        }
        CLI_TRY(append(cli, list, path));
    }
    return STATUS_OK;
}

static int append_folder(struct cli *cli, struct picture_list *list, const char *folder)
{
    int64_t first = list->count;
    DIR *stream = opendir(folder);
    if (!stream) return cli_fail(cli, "cannot read the folder '%s': %s", folder, strerror(errno));
    int status = append_entries(cli, list, folder, stream);
    closedir(stream);
    if (status != STATUS_OK) return status;
    if (list->count == first)
        return cli_fail(cli, "the folder '%s' holds no pictures (files ending in .png, .jpg, .jpeg or .webp)", folder);
    qsort(list->paths + first, (size_t)(list->count - first), sizeof *list->paths, by_name);
    return STATUS_OK;
}

int pictures_collect(struct cli *cli, struct picture_list *list)
{
    for (int i = 0; i < cli->args.input_count; i++) {
        const char *path = cli->args.inputs[i];
        struct stat st;
        if (stat(path, &st) != 0 || access(path, R_OK) != 0)
            return cli_fail(cli, "cannot read '%s': %s", path, strerror(errno));
        CLI_TRY(S_ISDIR(st.st_mode) ? append_folder(cli, list, path) : append(cli, list, strdup(path)));
    }
    return STATUS_OK;
}

void pictures_free(struct picture_list *list)
{
    for (int64_t i = 0; i < list->count; i++) free(list->paths[i]);
    free(list->paths);
    *list = (struct picture_list){0};
}

int pictures_read(struct cli *cli, const char *path, int size, aim_image *image)
{
    aim_image whole = {0};
    CLI_TRY(cli_check_cancelled(cli));
    aim_status status = aim_image_read(cli->ctx, path, &whole);
    if (status == AIM_OK) status = aim_image_center_crop(cli->ctx, &whole, size, image);
    aim_image_free(&whole);
    return cli_library(cli, status);
}

int cli_codes_read(struct cli *cli, const char *path, aim_array *codes, int64_t *count, int64_t *tokens)
{
    CLI_TRY(cli_library(cli, aim_array_read(cli->ctx, path, NULL, codes)));
    if (codes->ndim < 1 || codes->ndim > 2)
        return cli_fail(cli, "%s: codes have the shape (pictures, tokens), but this array has %d dimensions", path,
                        codes->ndim);
    *count = codes->ndim == 2 ? codes->shape[0] : 1;
    *tokens = codes->shape[codes->ndim - 1];
    if (*count < 1 || *tokens < 1) return cli_fail(cli, "%s: the array is empty", path);
    if (aim_array_to_int64(cli->ctx, codes) != AIM_OK) return cli_fail(cli, "%s: %s", path, aim_last_error(cli->ctx));
    return STATUS_OK;
}

int cli_codes_check(struct cli *cli, const char *path, const int64_t *codes, int64_t count, int64_t tokens, int64_t limit)
{
    for (int64_t i = 0; i < count * tokens; i++)
        if (codes[i] < 0 || codes[i] >= limit)
            return cli_fail(cli, "%s: code %lld of picture %lld is %lld, but the model's codes are 0 to %lld", path,
                            (long long)(i % tokens), (long long)(i / tokens), (long long)codes[i], (long long)(limit - 1));
    return STATUS_OK;
}
