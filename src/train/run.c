#include "train/run.h"

#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#define LOG_NAME        "log.jsonl"
#define CHECKPOINTS     "checkpoints"
#define CHECKPOINT_NAME "step-%07lld.safetensors"

char *run_path(const struct run *run, const char *name)
{
    return file_join(run->ctx, run->path, name);
}

/* -------------------------------------------------------------------------------------------- checkpoint files */

/* The step in a checkpoint's name; -1 for any other name. */
static int64_t step_of(const char *name)
{
    long long step = -1;
    char again[64];
    if (sscanf(name, "step-%lld", &step) != 1 || step < 0) return -1;
    snprintf(again, sizeof again, CHECKPOINT_NAME, step);
    return strcmp(name, again) == 0 ? (int64_t)step : -1;
}

/* Calls `each` with every name in the folder of checkpoints. */
static aim_status walk(const struct run *run, void (*each)(const struct run *run, const char *name, void *user), void *user)
{
    char *folder = run_path(run, CHECKPOINTS);
    if (!folder) return AIM_ERR_MEMORY;
    DIR *dir = opendir(folder);
    aim_status status = dir ? AIM_OK : aim_fail_errno(run->ctx, "cannot read the folder %s", folder);
    for (struct dirent *e; dir && (e = readdir(dir));) each(run, e->d_name, user);
    if (dir) closedir(dir);
    mem_free(folder);
    return status;
}

static char *checkpoint_path(const struct run *run, const char *name)
{
    char relative[300];
    snprintf(relative, sizeof relative, CHECKPOINTS "/%s", name);
    return run_path(run, relative);
}

static void remove_checkpoint(const struct run *run, const char *name)
{
    char *path = checkpoint_path(run, name);
    if (path) unlink(path);
    mem_free(path);
}

static void find_newest(const struct run *run, const char *name, void *user)
{
    int64_t *newest = user, step = step_of(name);
    (void)run;
    if (step > *newest) *newest = step;
}

/* Removes the half-written files (base/file.c) that a process left in a folder of the run when it was killed. */
static aim_status remove_temporary(const struct run *run, const char *folder)
{
    char *path = run_path(run, folder);
    DIR *dir = path ? opendir(path) : NULL; /* a folder that is not there has none */
    aim_status status = path ? AIM_OK : AIM_ERR_MEMORY;
    for (struct dirent *e; dir && status == AIM_OK && (e = readdir(dir));) {
        if (!strstr(e->d_name, ".tmp-")) continue;
        char *file = file_join(run->ctx, path, e->d_name);
        if (file) unlink(file);
        status = file ? AIM_OK : AIM_ERR_MEMORY;
        mem_free(file);
    }
    if (dir) closedir(dir);
    mem_free(path);
    return status;
}

struct oldest {
    int64_t step, count;
    char name[64];
};

static void find_oldest(const struct run *run, const char *name, void *user)
{
    struct oldest *o = user;
    int64_t step = step_of(name);
    (void)run;
    if (step < 0) return;
    if (o->count++ == 0 || step < o->step) {
        o->step = step;
        snprintf(o->name, sizeof o->name, "%.63s", name);
    }
}

/* Removes old checkpoints until `keep` are left. */
static aim_status prune(const struct run *run)
{
    for (;;) {
        struct oldest o = {0};
        TRY(walk(run, find_oldest, &o));
        if (o.count <= run->keep) return AIM_OK;
        remove_checkpoint(run, o.name);
    }
}

aim_status run_save(struct run *run, struct exec *ex, const struct checkpoint *c, int64_t step)
{
    char name[64];
    snprintf(name, sizeof name, CHECKPOINT_NAME, (long long)step);
    char *path = checkpoint_path(run, name);
    if (!path) return AIM_ERR_MEMORY;
    aim_status status = checkpoint_write(ex, c, path);
    mem_free(path);
    return status == AIM_OK ? prune(run) : status;
}

/* ----------------------------------------------------------------------------------------------- the log */

static aim_status log_failed(const struct run *run)
{
    int number = errno;
    return aim_fail(run->ctx, AIM_ERR_IO,
                    "cannot write %s/" LOG_NAME ": %s; the last checkpoint is safe: go on with --resume %s", run->path,
                    number ? strerror(number) : "the write failed", run->path);
}

aim_status run_log(struct run *run, int64_t step, const struct run_value *values, size_t count)
{
    errno = 0;
    fprintf(run->log, "{\"step\": %lld", (long long)step);
    for (size_t i = 0; i < count; i++) {
        if (isfinite(values[i].value))
            fprintf(run->log, ", \"%s\": %.9g", values[i].name, values[i].value);
        else
            fprintf(run->log, ", \"%s\": null", values[i].name);
    }
    fprintf(run->log, "}\n");
    return fflush(run->log) == 0 && !ferror(run->log) ? AIM_OK : log_failed(run);
}

/* The step of a line of the log, which ends before `end`; -1 for one that is not whole. */
static int64_t line_step(const char *line, size_t length)
{
    json_t *object = json_loadb(line, length, 0, NULL);
    const json_t *step = json_object_get(object, "step");
    int64_t value = json_is_integer(step) ? (int64_t)json_integer_value(step) : -1;
    json_decref(object);
    return value;
}

/* Cuts the log after the last line that belongs to steps up to run->step. */
static aim_status cut_log(struct run *run, const char *path)
{
    struct file_map map;
    TRY(file_map_open(run->ctx, path, &map));
    size_t end = 0;
    while (end < map.size) {
        const char *line = (const char *)map.data + end;
        const char *newline = memchr(line, '\n', map.size - end);
        if (!newline) break;
        int64_t step = line_step(line, (size_t)(newline - line));
        if (step < 0 || step > run->step) break;
        end += (size_t)(newline - line) + 1;
    }
    file_map_close(&map);
    if (ftruncate(fileno(run->log), (off_t)end) != 0) return aim_fail_errno(run->ctx, "cannot cut %s", path);
    return AIM_OK;
}

static aim_status open_log(struct run *run, const char *path)
{
    run->log = fopen(path, "ae");
    if (!run->log) return aim_fail_errno(run->ctx, "cannot write %s", path);
    if (flock(fileno(run->log), LOCK_EX | LOCK_NB) == 0) return AIM_OK;
    return aim_fail(run->ctx, AIM_ERR_ARGUMENT, "another process is training in %s", run->path);
}

/* -------------------------------------------------------------------------------------------- opening, closing */

static bool has_log(const struct run *run)
{
    char *path = run_path(run, LOG_NAME);
    bool exists = path && file_exists(path);
    mem_free(path);
    return exists;
}

static aim_status make_folder(const struct run *run, const char *name)
{
    char *path = run_path(run, name);
    aim_status status = path ? file_make_directory(run->ctx, path) : AIM_ERR_MEMORY;
    mem_free(path);
    return status;
}

static aim_status find_checkpoint(struct run *run)
{
    char name[64];
    int64_t newest = -1;
    static const char *const folders[] = {".", CHECKPOINTS, "model", "samples"};
    for (size_t i = 0; i < sizeof folders / sizeof folders[0]; i++) TRY(remove_temporary(run, folders[i]));
    TRY(walk(run, find_newest, &newest));
    if (newest < 0) return AIM_OK;
    snprintf(name, sizeof name, CHECKPOINT_NAME, (long long)newest);
    run->step = newest;
    run->restored = checkpoint_path(run, name);
    return run->restored ? AIM_OK : AIM_ERR_MEMORY;
}

static aim_status open_run(struct run *run, bool resume)
{
    aim_context *ctx = run->ctx;
    if (resume && !has_log(run)) return aim_fail(ctx, AIM_ERR_ARGUMENT, "there is no training run to resume in %s", run->path);
    if (!resume && has_log(run))
        return aim_fail(ctx, AIM_ERR_ARGUMENT,
                        "%s holds a training run already: go on with --resume %s, or choose another folder", run->path,
                        run->path);
    TRY(make_folder(run, CHECKPOINTS));
    TRY(make_folder(run, "samples"));
    char *log = run_path(run, LOG_NAME);
    aim_status status = log ? open_log(run, log) : AIM_ERR_MEMORY;
    /* From here on the folder is ours. */
    if (status == AIM_OK && resume) status = find_checkpoint(run);
    if (status == AIM_OK && resume) status = cut_log(run, log);
    mem_free(log);
    return status;
}

aim_status run_open(aim_context *ctx, const char *path, bool resume, int keep, struct run *run)
{
    *run = (struct run){.ctx = ctx, .path = mem_string(ctx, path, MEM_MISC), .keep = keep > 0 ? keep : 1};
    aim_status status = run->path ? open_run(run, resume) : AIM_ERR_MEMORY;
    if (status != AIM_OK) run_close(run);
    return status;
}

void run_close(struct run *run)
{
    if (run->log) fclose(run->log);
    mem_free(run->path);
    mem_free(run->restored);
    *run = (struct run){0};
}

/* ------------------------------------------------------------------------------------------------- pictures */

aim_status run_draw(struct run *run, const struct curve_panel *panels, size_t count)
{
    struct file_map map = {0};
    aim_image image = {0};
    char *log = run_path(run, LOG_NAME), *out = run_path(run, "curves.png");
    aim_status status = log && out ? file_map_open(run->ctx, log, &map) : AIM_ERR_MEMORY;
    if (status == AIM_OK) status = curves_draw(run->ctx, (const char *)map.data, map.size, panels, count, &image);
    if (status == AIM_OK) status = aim_image_write_png(run->ctx, out, &image, NULL, 0);
    file_map_close(&map);
    aim_image_free(&image);
    mem_free(log);
    mem_free(out);
    return status;
}

aim_status run_samples(struct run *run, int64_t step, const aim_image *images, int count, int columns)
{
    int width = images[0].width, height = images[0].height, rows = (count + columns - 1) / columns;
    char name[64];
    aim_image grid = {0};
    TRY(aim_image_create(run->ctx, columns * width, rows * height, &grid));
    for (int i = 0; i < count; i++)
        for (int y = 0; y < height; y++) {
            size_t at = ((size_t)(i / columns * height + y) * (size_t)grid.width + (size_t)(i % columns * width)) * 3;
            memcpy(grid.rgb + at, images[i].rgb + (size_t)y * (size_t)width * 3, (size_t)width * 3);
        }
    snprintf(name, sizeof name, "samples/%06lld.png", (long long)step);
    char *path = run_path(run, name);
    aim_status status = path ? aim_image_write_png(run->ctx, path, &grid, NULL, 0) : AIM_ERR_MEMORY;
    mem_free(path);
    aim_image_free(&grid);
    return status;
}
