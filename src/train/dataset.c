#include "train/dataset.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/file.h"

/* Which pictures of a folder are wanted: those whose hash lies within [from, to) of the whole range, as fractions. */
struct selection {
    double from, to;
};

static const struct selection everything = {0, 1};

/* ------------------------------------------------------------------------------------------- lists that grow */

/* Room for one more of `size` bytes in *list, which holds `count` and has room for *room. */
static aim_status grow(aim_context *ctx, void **list, int64_t count, int64_t *room, size_t size)
{
    enum { FIRST = 64 };
    if (count < *room) return AIM_OK;
    int64_t more = *room ? 2 * *room : FIRST;
    size_t bytes;
    if (!size_mul((size_t)more, size, &bytes)) bytes = SIZE_MAX; /* which mem_resize refuses */
    void *grown = mem_resize(ctx, *list, bytes, MEM_MISC);
    if (!grown) return AIM_ERR_MEMORY;
    *list = grown;
    *room = more;
    return AIM_OK;
}

/* folder may be NULL. */
static aim_status add_class(struct dataset *d, const char *name, const char *folder)
{
    void *list = d->classes;
    TRY(grow(d->ctx, &list, d->class_count, &d->class_room, sizeof *d->classes));
    d->classes = list;
    struct dataset_class *c = &d->classes[d->class_count++];
    *c = (struct dataset_class){.name = mem_string(d->ctx, name, MEM_MISC)};
    if (c->name && folder) c->folder = mem_string(d->ctx, folder, MEM_MISC);
    return c->name && (c->folder || !folder) ? AIM_OK : AIM_ERR_MEMORY;
}

static aim_status add_text(struct dataset *d, const char *name, size_t *at)
{
    size_t bytes = strlen(name) + 1;
    if (d->text_room - d->text_used < bytes) {
        size_t room = 2 * (d->text_room + bytes);
        char *grown = mem_resize(d->ctx, d->text, room, MEM_MISC);
        if (!grown) return AIM_ERR_MEMORY;
        d->text = grown;
        d->text_room = room;
    }
    memcpy(d->text + d->text_used, name, bytes);
    *at = d->text_used;
    d->text_used += bytes;
    return AIM_OK;
}

static aim_status add_picture(struct dataset *d, const char *name, int64_t label)
{
    void *list = d->pictures;
    TRY(grow(d->ctx, &list, d->count, &d->room, sizeof *d->pictures));
    d->pictures = list;
    struct dataset_picture picture = {.label = (int32_t)label};
    TRY(add_text(d, name, &picture.name));
    d->pictures[d->count++] = picture;
    return AIM_OK;
}

/* ------------------------------------------------------------------------------------------- reading folders */

static bool is_picture_name(const char *name)
{
    static const char *const endings[] = {".png", ".jpg", ".jpeg", ".webp"};
    const char *dot = strrchr(name, '.');
    if (!dot || name[0] == '.') return false;
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++)
        if (strcasecmp(dot, endings[i]) == 0) return true;
    return false;
}

/* FNV-1a over "class/file", as a fraction of its range. */
static double hash_fraction(const char *class, const char *file)
{
    uint64_t h = 0xcbf29ce484222325u;
    const char *const parts[] = {class, "/", file};
    for (size_t i = 0; i < 3; i++)
        for (const char *c = parts[i]; *c; c++) h = (h ^ (unsigned char)*c) * 0x100000001b3u;
    h = (h ^ h >> 32) * 0xd6e8feb86659fd93u; /* names often differ in their last digits alone: let those reach the top */
    return (double)((h ^ h >> 32) >> 11) * 0x1p-53;
}

/* Adds the pictures of class `label`, in the order that the system lists them. */
static aim_status read_pictures(struct dataset *d, int64_t label, DIR *stream, const struct selection *wanted)
{
    const struct dataset_class *c = &d->classes[label];
    const struct dirent *entry;
    while ((errno = 0, entry = readdir(stream))) {
        if (!is_picture_name(entry->d_name) || entry->d_type == DT_DIR) continue;
        double hash = hash_fraction(c->name, entry->d_name);
        if (hash >= wanted->from && hash < wanted->to) TRY(add_picture(d, entry->d_name, label));
    }
    return errno ? aim_fail_errno(d->ctx, "cannot read the folder %s", c->folder) : AIM_OK;
}

static int compare_pictures(const void *a, const void *b, void *text)
{
    const struct dataset_picture *x = a, *y = b;
    return strcmp((const char *)text + x->name, (const char *)text + y->name);
}

/* Adds the pictures of class `label`, sorted by name. */
static aim_status add_class_pictures(struct dataset *d, int64_t label, const struct selection *wanted)
{
    int64_t first = d->count;
    DIR *stream = opendir(d->classes[label].folder);
    if (!stream) return aim_fail_errno(d->ctx, "cannot read the folder %s", d->classes[label].folder);
    aim_status status = read_pictures(d, label, stream, wanted);
    closedir(stream);
    if (status == AIM_OK && d->count > first)
        qsort_r(d->pictures + first, (size_t)(d->count - first), sizeof *d->pictures, compare_pictures, d->text);
    return status;
}

static int compare_classes(const void *a, const void *b)
{
    const struct dataset_class *x = a, *y = b;
    return strcmp(x->name, y->name);
}

/* Makes a class of every folder in `folder`, in the order of their names, and tells how many pictures lie beside them. */
static aim_status find_classes(struct dataset *d, const char *folder, int64_t *pictures)
{
    aim_status status = AIM_OK;
    *pictures = 0;
    DIR *stream = opendir(folder);
    if (!stream) return aim_fail_errno(d->ctx, "cannot read the folder %s", folder);
    const struct dirent *entry;
    while (status == AIM_OK && (errno = 0, entry = readdir(stream))) {
        char *path = entry->d_name[0] == '.' ? NULL : file_join(d->ctx, folder, entry->d_name);
        if (entry->d_name[0] != '.' && !path)
            status = AIM_ERR_MEMORY;
        else if (path && file_is_directory(path))
            status = add_class(d, entry->d_name, path);
        else if (path)
            *pictures += is_picture_name(entry->d_name);
        mem_free(path);
    }
    if (status == AIM_OK && errno) status = aim_fail_errno(d->ctx, "cannot read the folder %s", folder);
    closedir(stream);
    if (status == AIM_OK && d->class_count > 1) qsort(d->classes, (size_t)d->class_count, sizeof *d->classes, compare_classes);
    return status;
}

/* A folder of pictures is one class, called what the folder is called. */
static aim_status add_only_class(struct dataset *d, const char *folder)
{
    char *whole = realpath(folder, NULL);
    const char *slash = whole ? strrchr(whole, '/') : NULL;
    aim_status status = add_class(d, slash && slash[1] ? slash + 1 : "pictures", folder);
    free(whole);
    return status;
}

/* --------------------------------------------------------------------------------------------------- opening */

#define ENDINGS "files ending in .png, .jpg, .jpeg or .webp"

/* Classes and pictures of one folder. */
static aim_status scan(struct dataset *d, const char *folder, const struct selection *wanted)
{
    int64_t pictures = 0;
    TRY(find_classes(d, folder, &pictures));
    if (d->class_count == 0 && pictures == 0)
        return aim_fail(d->ctx, AIM_ERR_ARGUMENT, "there are no pictures (" ENDINGS ") in %s, nor folders with pictures",
                        folder);
    if (d->class_count == 0)
        TRY(add_only_class(d, folder));
    else if (pictures > 0)
        aim_log(d->ctx, AIM_LOG_WARNING, "%lld pictures in %s are in no class folder and are left out", (long long)pictures,
                folder);
    if (d->class_count > INT32_MAX) return aim_fail(d->ctx, AIM_ERR_ARGUMENT, "%s has too many classes", folder);
    for (int64_t i = 0; i < d->class_count; i++) {
        int64_t before = d->count;
        TRY(add_class_pictures(d, i, wanted));
        if (d->count == before && wanted->from == 0 && wanted->to == 1)
            return aim_fail(d->ctx, AIM_ERR_ARGUMENT, "the class folder %s holds no pictures (" ENDINGS ")",
                            d->classes[i].folder);
    }
    return AIM_OK;
}

/* "ROOT/part" when that is a folder, else a copy of ROOT; NULL when out of memory. The caller frees. */
static char *part_folder(aim_context *ctx, const char *root, const char *part)
{
    char *folder = file_join(ctx, root, part);
    if (!folder || file_is_directory(folder)) return folder;
    mem_free(folder);
    return mem_string(ctx, root, MEM_MISC);
}

static aim_status open_training(aim_context *ctx, const char *root, const struct selection *wanted, struct dataset *d)
{
    *d = (struct dataset){.ctx = ctx};
    char *folder = part_folder(ctx, root, "train");
    aim_status status = folder ? scan(d, folder, wanted) : AIM_ERR_MEMORY;
    mem_free(folder);
    if (status != AIM_OK) dataset_close(d);
    return status;
}

aim_status dataset_open(aim_context *ctx, const char *root, struct dataset *d)
{
    return open_training(ctx, root, &everything, d);
}

bool dataset_has_held_out(const char *root)
{
    size_t length = strlen(root);
    char path[4096];
    if (length > sizeof path - 8) return false;
    snprintf(path, sizeof path, "%s/train", root);
    if (!file_is_directory(path)) return false;
    snprintf(path, sizeof path, "%s/val", root);
    return file_is_directory(path);
}

/* The class of d with this name; -1 if none. */
static int64_t find_class(const struct dataset *d, const char *name)
{
    struct dataset_class key = {.name = (char *)(uintptr_t)name};
    const struct dataset_class *found = bsearch(&key, d->classes, (size_t)d->class_count, sizeof *d->classes, compare_classes);
    return found ? found - d->classes : -1;
}

/* Gives the classes of `d` their folders in ROOT/val; a class without one has no held-out pictures. */
static aim_status find_val_folders(struct dataset *d, const char *folder, struct dataset *found)
{
    int64_t pictures = 0;
    TRY(find_classes(found, folder, &pictures));
    if (found->class_count == 0 && d->class_count == 1) {
        d->classes[0].folder = mem_string(d->ctx, folder, MEM_MISC);
        return d->classes[0].folder ? AIM_OK : AIM_ERR_MEMORY;
    }
    for (int64_t i = 0; i < found->class_count; i++) {
        int64_t label = find_class(d, found->classes[i].name);
        if (label < 0)
            return aim_fail(d->ctx, AIM_ERR_ARGUMENT, "the class folder %s has no counterpart among the training pictures",
                            found->classes[i].folder);
        d->classes[label].folder = found->classes[i].folder;
        found->classes[i].folder = NULL;
    }
    return AIM_OK;
}

static aim_status scan_val(struct dataset *d, const char *folder, const struct dataset *train)
{
    for (int64_t i = 0; i < train->class_count; i++) TRY(add_class(d, train->classes[i].name, NULL));
    struct dataset found = {.ctx = d->ctx};
    aim_status status = find_val_folders(d, folder, &found);
    dataset_close(&found);
    for (int64_t i = 0; i < d->class_count && status == AIM_OK; i++)
        if (d->classes[i].folder) status = add_class_pictures(d, i, &everything);
    if (status == AIM_OK && d->count == 0)
        status = aim_fail(d->ctx, AIM_ERR_ARGUMENT, "there are no pictures (" ENDINGS ") in the class folders of %s", folder);
    return status;
}

static aim_status open_val(aim_context *ctx, const char *root, const struct dataset *train, struct dataset *d)
{
    *d = (struct dataset){.ctx = ctx};
    char *folder = file_join(ctx, root, "val");
    aim_status status = folder ? scan_val(d, folder, train) : AIM_ERR_MEMORY;
    mem_free(folder);
    if (status != AIM_OK) dataset_close(d);
    return status;
}

aim_status dataset_open_split(aim_context *ctx, const char *root, double fraction, struct dataset *train,
                              struct dataset *held_out)
{
    *train = *held_out = (struct dataset){0};
    if (!(fraction >= 0 && fraction < 1))
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "the held-out fraction must be 0 or more and below 1");
    bool val = dataset_has_held_out(root);
    TRY(open_training(ctx, root, &(struct selection){val ? 0 : fraction, 1}, train));
    aim_status status = AIM_OK;
    if (val)
        status = open_val(ctx, root, train, held_out);
    else if (fraction > 0)
        status = open_training(ctx, root, &(struct selection){0, fraction}, held_out);
    if (status == AIM_OK && train->count == 0)
        status = aim_fail(ctx, AIM_ERR_ARGUMENT, "all pictures in %s are held out; none is left to train on", root);
    if (status != AIM_OK) {
        dataset_close(train);
        dataset_close(held_out);
    }
    return status;
}

void dataset_close(struct dataset *d)
{
    for (int64_t i = 0; i < d->class_count; i++) {
        mem_free(d->classes[i].name);
        mem_free(d->classes[i].folder);
    }
    mem_free(d->classes);
    mem_free(d->pictures);
    mem_free(d->text);
    *d = (struct dataset){0};
}

char *dataset_path(const struct dataset *d, aim_context *ctx, int64_t i)
{
    const struct dataset_picture *picture = &d->pictures[i];
    return file_join(ctx, d->classes[picture->label].folder, d->text + picture->name);
}
