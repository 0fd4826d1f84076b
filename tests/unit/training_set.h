/* Data sets for tests: folders in /tmp with small pictures whose colour tells which one they are. */
#ifndef AIM_TESTS_TRAINING_SET_H
#define AIM_TESTS_TRAINING_SET_H

#include "support.h"

#include <ftw.h>
#include <unistd.h>

#include "base/file.h"

static aim_context ctx;
static char root[64];

/* Warnings that the context got. */
static int warnings;
static char last_warning[700];

static inline void keep_warning(void *user, aim_log_level level, const char *message)
{
    (void)user;
    if (level == AIM_LOG_WARNING) warnings++;
    snprintf(last_warning, sizeof last_warning, "%s", message);
}

static inline int set_up_root(void **state)
{
    (void)state;
    aim_context_options options = aim_context_defaults();
    options.log = keep_warning;
    strcpy(root, "/tmp/aim-test-XXXXXX");
    warnings = 0;
    return context_init(&ctx, &options) != AIM_OK || !mkdtemp(root);
}

static inline int remove_entry(const char *path, const struct stat *st, int kind, struct FTW *place)
{
    (void)st, (void)kind, (void)place;
    return remove(path);
}

static inline int tear_down_root(void **state)
{
    (void)state;
    nftw(root, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
    return ctx.memory.total != 0;
}

/* root/name, valid until the fourth call after this one. */
static inline const char *in_root(const char *name)
{
    static char paths[4][1024];
    static unsigned next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", root, name);
    return path;
}

static inline void make_folder(const char *name)
{
    assert_ok(&ctx, file_make_directory(&ctx, in_root(name)));
}

/* A file with these bytes, its folders made. */
static inline void make_file(const char *name, const void *data, size_t bytes)
{
    struct file_writer w;
    char folder[512];
    snprintf(folder, sizeof folder, "%s", name);
    char *slash = strrchr(folder, '/');
    if (slash) *slash = '\0';
    if (slash) make_folder(folder);
    assert_ok(&ctx, file_writer_open(&ctx, in_root(name), &w));
    assert_ok(&ctx, file_writer_write(&w, data, bytes));
    assert_ok(&ctx, file_writer_close(&w, true));
}

/* A PNG of width x height, all of one grey except that its left half is darker by 8. */
static inline void make_picture(const char *name, int width, int height, int grey)
{
    aim_image image;
    make_file(name, "", 0);
    assert_ok(&ctx, aim_image_create(&ctx, width, height, &image));
    for (int i = 0; i < width * height; i++) memset(image.rgb + 3 * i, i % width < width / 2 ? grey - 8 : grey, 3);
    assert_ok(&ctx, aim_image_write_png(&ctx, in_root(name), &image, NULL, 0));
    aim_image_free(&image);
}

#endif
