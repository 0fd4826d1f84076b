#include "cli/output.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

static bool ends_with(const char *path, const char *ending)
{
    size_t n = strlen(path), m = strlen(ending);
    return n > m && strcasecmp(path + n - m, ending) == 0;
}

static bool is_folder(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

static enum output_kind kind_of(const char *path)
{
    if (path[strlen(path) - 1] == '/' || is_folder(path)) return OUTPUT_FOLDER;
    if (ends_with(path, ".png")) return OUTPUT_PNG;
    if (ends_with(path, ".npz")) return OUTPUT_NPZ;
    if (ends_with(path, ".npy")) return OUTPUT_NPY;
    return OUTPUT_NONE;
}

static int refuse_kind(struct cli *cli, const char *option, const char *path, int kinds)
{
    if (kinds == OUTPUT_NPY) return cli_usage(cli, "--%s must be a file ending in .npy, not '%s'", option, path);
    return cli_usage(cli, "--%s must end in .png, .npz%s or a slash (a folder), not '%s'", option,
                     kinds & OUTPUT_NPY ? ", .npy" : "", path);
}

/* Removes the last component: "a/b" -> "a", "a" -> ".", "/a" -> "/". */
static void parent_of(char *path)
{
    size_t n = strlen(path);
    while (n > 1 && path[n - 1] == '/') path[--n] = '\0';
    char *slash = strrchr(path, '/');
    if (!slash)
        strcpy(path, path[0] ? "." : ""); /* at least one character was there */
    else if (slash == path)
        path[1] = '\0';
    else
        *slash = '\0';
}

static int check_folder(struct cli *cli, const char *folder)
{
    if (!is_folder(folder)) return cli_fail(cli, "cannot write into '%s': it is not a folder", folder);
    if (access(folder, W_OK | X_OK) != 0)
        return cli_fail(cli, "cannot write into the folder '%s': %s", folder, strerror(errno));
    return STATUS_OK;
}

int output_check(struct cli *cli, const char *option, const char *path, int kinds, enum output_kind *kind)
{
    char folder[PATH_MAX];
    struct stat st;
    *kind = kind_of(path);
    if (!((int)*kind & kinds)) return refuse_kind(cli, option, path, kinds);
    if (strlen(path) >= sizeof folder - 16) return cli_fail(cli, "the path given with --%s is too long", option);
    strcpy(folder, path);
    if (*kind == OUTPUT_FOLDER) { /* what is missing will be made inside the nearest folder that exists */
        while (stat(folder, &st) != 0 && errno == ENOENT && strcmp(folder, ".") != 0) parent_of(folder);
        return check_folder(cli, folder);
    }
    if (stat(path, &st) == 0 && !S_ISREG(st.st_mode)) { /* a device or a pipe is written in place */
        if (access(path, W_OK) != 0) return cli_fail(cli, "cannot write '%s': %s", path, strerror(errno));
        return STATUS_OK;
    }
    parent_of(folder);
    if (stat(folder, &st) != 0) return cli_fail(cli, "cannot write '%s': folder '%s': %s", path, folder, strerror(errno));
    return check_folder(cli, folder);
}

int output_check_input(struct cli *cli, const char *path, const char *input)
{
    if (!cli_same_file(path, input)) return STATUS_OK;
    return cli_usage(cli, "the output '%s' would replace an input; choose another name", path);
}

int output_check_count(struct cli *cli, enum output_kind kind, int64_t count, int each)
{
    if (kind != OUTPUT_PNG || count <= OUTPUT_GRID_LIMIT / each) return STATUS_OK;
    return cli_usage(cli, "%lld pictures are too many for one grid (at most %d): write a folder (-o DIR/) or an .npz file",
                     (long long)count, OUTPUT_GRID_LIMIT / each);
}

/* ------------------------------------------------------------------------------------------------ folders */

static void remove_made_folders(struct output *o)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s", o->path);
    for (; o->folders_made > 0; o->folders_made--) {
        if (rmdir(path) != 0) return; /* something was put in: it stays */
        parent_of(path);
    }
}

/* mkdir -p, counting the levels that were not there. */
static int make_folder(struct output *o)
{
    char path[PATH_MAX];
    size_t length = strlen(o->path);
    for (size_t n = 1; n <= length; n++) {
        if (n < length && o->path[n] != '/') continue;
        snprintf(path, sizeof path, "%.*s", (int)n, o->path);
        if (mkdir(path, 0777) == 0) {
            o->folders_made++;
        } else if (!is_folder(path)) {
            int code = errno;
            remove_made_folders(o);
            return cli_fail(o->cli, "cannot make the folder '%s': %s", path, strerror(code));
        }
        while (n < length && o->path[n + 1] == '/') n++;
    }
    return STATUS_OK;
}

/* --------------------------------------------------------------------------------------------------- PNG */

size_t output_common_text(const struct cli *cli, aim_text *text, char *name, size_t size)
{
    cli_model_name(cli, name, size);
    text[0] = (aim_text){"Software", "aim"};
    text[1] = (aim_text){"aim.version", aim_version()};
    text[2] = (aim_text){"aim.model", name};
    return OUTPUT_TEXTS;
}

enum list { LIST_INDEX, LIST_CLASS, LIST_NAME };

/* "0,1,2", "207,88,88" or "goldfish; tabby" for pictures first..first+n; the caller frees. NULL when out of memory. */
static char *spell_list(const struct output *o, enum list which, int64_t first, int64_t n)
{
    char *text = NULL;
    size_t size = 0;
    FILE *stream = open_memstream(&text, &size);
    if (!stream) return NULL;
    for (int64_t i = first; i < first + n; i++) {
        const char *name = which == LIST_NAME ? aim_model_class_name(o->cli->model, o->labels[i]) : NULL;
        if (i > first) fputs(which == LIST_NAME ? "; " : ",", stream);
        if (which == LIST_NAME)
            fputs(name ? name : "?", stream);
        else
            fprintf(stream, "%lld", (long long)(which == LIST_CLASS ? o->labels[i] : i));
    }
    if (fclose(stream) == 0) return text;
    free(text);
    return NULL;
}

/* `image` shows the pictures first..first+n. */
static int write_png(struct output *o, const char *path, const aim_image *image, int64_t first, int64_t n)
{
    enum { LISTS = 3, MAX_TEXT = 16 };
    const char *const keys[LISTS] = {"aim.index", "aim.class", "aim.class_name"};
    bool named = o->labels && aim_model_class_name(o->cli->model, o->labels[first]);
    int lists = !o->labels ? 1 : named ? 3 : 2, status = STATUS_OK;
    char *values[LISTS] = {NULL};
    aim_text text[MAX_TEXT + LISTS];
    size_t count = 0;
    for (; count < o->text_count && count < MAX_TEXT; count++) text[count] = o->text[count];
    for (int i = 0; i < lists && status == STATUS_OK; i++) {
        values[i] = spell_list(o, (enum list)i, first, n);
        if (!values[i]) status = cli_fail(o->cli, "not enough memory for the text of '%s'", path);
        text[count++] = (aim_text){keys[i], values[i]};
    }
    if (status == STATUS_OK) status = cli_library(o->cli, aim_image_write_png(o->cli->ctx, path, image, text, count));
    for (int i = 0; i < LISTS; i++) free(values[i]);
    return status;
}

/* -------------------------------------------------------------------------------------------------- grid */

static int64_t gap_of(const struct output *o)
{
    return o->size >= 128 ? o->size / 64 : 2;
}

/* Dots of aim_image_draw_text: from one letter to the next, and of a caption with the space around it. */
enum { LETTER_WIDTH = 6, CAPTION_HEIGHT = 10 };

static int caption_scale(const struct output *o)
{
    return o->size >= 128 ? 2 : 1;
}

/* Pixels from one row of the grid to the next. */
static int64_t row_pitch(const struct output *o)
{
    return o->size + gap_of(o) + (o->captions ? (int64_t)CAPTION_HEIGHT * caption_scale(o) : 0);
}

/* The name of picture i's class, or as much of it as fits, in the middle below the picture. */
static void write_caption(struct output *o, int64_t i, int64_t row, int64_t column)
{
    enum { LONGEST = 64 };
    const char *name = aim_model_class_name(o->cli->model, o->labels[i]);
    char text[LONGEST];
    if (name)
        snprintf(text, sizeof text, "%s", name);
    else
        snprintf(text, sizeof text, "%lld", (long long)o->labels[i]);
    text[strcspn(text, ",")] = '\0'; /* the first of several synonyms */
    int scale = caption_scale(o), width = LETTER_WIDTH * scale, fits = o->size / width;
    if (fits < LONGEST) text[fits] = '\0';
    int64_t left = column * (o->size + gap_of(o)) + (o->size - (int)strlen(text) * width) / 2;
    int64_t top = row * row_pitch(o) + o->size + scale;
    aim_image_draw_text(&o->canvas, (int)left, (int)top, scale, text, (const uint8_t[3]){230, 230, 230});
}

static int open_canvas(struct output *o)
{
    int64_t tall = o->paired ? 2 : 1, cells = o->count * tall, columns = 1;
    while (columns * columns < cells) columns++;
    if (columns > o->count) columns = o->count;
    int64_t rows = (o->count + columns - 1) / columns * tall, gap = gap_of(o);
    o->columns = columns;
    return cli_library(o->cli, aim_image_create(o->cli->ctx, (int)(columns * (o->size + gap) - gap),
                                                (int)(rows * row_pitch(o) - gap), &o->canvas));
}

static void place(struct output *o, const aim_image *image, int64_t row, int64_t column)
{
    int64_t pitch = o->size + gap_of(o);
    size_t stride = (size_t)o->canvas.width * 3, line = (size_t)image->width * 3;
    uint8_t *to = o->canvas.rgb + (size_t)(row * row_pitch(o)) * stride + (size_t)(column * pitch) * 3;
    for (int y = 0; y < image->height; y++) memcpy(to + (size_t)y * stride, image->rgb + (size_t)y * line, line);
}

/* ------------------------------------------------------------------------------------------------- output */

int output_open(struct output *o)
{
    const int64_t shape[4] = {o->count, o->size, o->size, 3};
    switch (o->kind) {
    case OUTPUT_PNG: return open_canvas(o);
    case OUTPUT_FOLDER: return make_folder(o);
    case OUTPUT_NPZ:
        CLI_TRY(cli_library(o->cli, aim_array_file_create(o->cli->ctx, o->path, &o->file)));
        return cli_library(o->cli, aim_array_file_begin(o->file, "arr_0", AIM_U8, 4, shape));
    case OUTPUT_NPY:
    case OUTPUT_NONE: break;
    }
    return STATUS_OK;
}

int output_picture(struct output *o, const aim_image *image)
{
    char path[PATH_MAX];
    int64_t i = o->written++;
    size_t bytes = (size_t)image->width * (size_t)image->height * 3;
    switch (o->kind) {
    case OUTPUT_PNG:
        place(o, image, i / o->columns, i % o->columns);
        if (o->captions) write_caption(o, i, i / o->columns, i % o->columns);
        break;
    case OUTPUT_FOLDER:
        snprintf(path, sizeof path, "%s%s%06lld.png", o->path, o->path[strlen(o->path) - 1] == '/' ? "" : "/", (long long)i);
        return write_png(o, path, image, i, 1);
    case OUTPUT_NPZ: return cli_library(o->cli, aim_array_file_write(o->file, image->rgb, bytes));
    case OUTPUT_NPY:
    case OUTPUT_NONE: break;
    }
    return STATUS_OK;
}

int output_pair(struct output *o, const aim_image *original, const aim_image *result)
{
    if (o->kind != OUTPUT_PNG) return output_picture(o, result);
    int64_t i = o->written++, row = i / o->columns * 2, column = i % o->columns;
    place(o, original, row, column);
    place(o, result, row + 1, column);
    return STATUS_OK;
}

static int finish_npz(struct output *o)
{
    if (!o->labels) return STATUS_OK;
    CLI_TRY(cli_library(o->cli, aim_array_file_begin(o->file, "arr_1", AIM_I64, 1, &o->count)));
    return cli_library(o->cli, aim_array_file_write(o->file, o->labels, (size_t)o->count * sizeof *o->labels));
}

int output_close(struct output *o, bool keep)
{
    int status = STATUS_OK;
    if (o->kind == OUTPUT_PNG && keep) status = write_png(o, o->path, &o->canvas, 0, o->count);
    if (o->kind == OUTPUT_FOLDER && !keep) remove_made_folders(o);
    if (o->kind == OUTPUT_NPZ) {
        if (keep) status = finish_npz(o);
        aim_status closed = aim_array_file_close(o->file, keep && status == STATUS_OK);
        if (keep && status == STATUS_OK) status = cli_library(o->cli, closed);
        o->file = NULL;
    }
    aim_image_free(&o->canvas);
    return status;
}
