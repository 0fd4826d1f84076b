/* aim-draw: the command line. */
#include <errno.h>
#include <getopt.h>
#include <omp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "picture.h"

enum { MAX_CLASSES = 64, MAX_SIZE = 4096, MAX_COUNT = 1000000, PATH_ROOM = 4096 };

static const char usage[] =
    "usage: aim-draw --out DIR [--count N] [--size N] [--seed N] [--classes A,B,...] [--split train|val] [--threads N]\n"
    "       aim-draw --sheet FILE.png [--columns N] [--thumb N] [--size N] [--seed N] [--classes A,B,...] [--split ...]\n"
    "\n"
    "Draws a data set of pictures, the same from the same seed on every machine, into DIR/CLASS/000000.png and so on.\n"
    "\n"
    "  --out DIR        where the folders of the classes go; made when missing\n"
    "  --count N        pictures per class (100)\n"
    "  --size N         pixels along a side (256)\n"
    "  --seed N         another seed, other pictures (0)\n"
    "  --classes A,B    only these; --list names them all\n"
    "  --split NAME     train (default) or val, which shares no picture with train\n"
    "  --threads N      pictures drawn at a time; by default one per core\n"
    "  --sheet FILE     write a contact sheet: a row of pictures per class\n"
    "  --columns N      pictures in a row of the sheet (6)\n"
    "  --thumb N        pixels along a side of a picture in the sheet (128)\n"
    "  --list           print the classes, in the order of their labels\n"
    "  --help           print this\n";

struct options {
    const char *out, *sheet;
    const struct scene *scenes[MAX_CLASSES];
    size_t classes;
    uint64_t seed, first;
    int count, size, threads, columns, thumb;
};

enum { EXIT_USAGE = 2 };

/* One line, as every message of this program. */
__attribute__((format(printf, 1, 2), noreturn)) static void usage_error(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fputs("aim-draw: ", stderr);
    vfprintf(stderr, format, args);
    fputs("; see aim-draw --help\n", stderr);
    va_end(args);
    exit(EXIT_USAGE);
}

static uint64_t number(const char *option, const char *text, uint64_t low, uint64_t high)
{
    char *end = NULL;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (text[0] < '0' || text[0] > '9' || *end || errno || value < low || value > high)
        usage_error("%s takes a whole number from %llu to %llu, not '%s'", option, (unsigned long long)low,
                    (unsigned long long)high, text);
    return value;
}

static const struct scene *scene_find(const char *name, size_t length)
{
    for (size_t i = 0; i < scenes_count; i++)
        if (strlen(scenes_table[i].name) == length && memcmp(scenes_table[i].name, name, length) == 0) return &scenes_table[i];
    usage_error("there is no class '%.*s' (aim-draw --list)", (int)length, name);
}

static void choose_classes(struct options *o, const char *list)
{
    o->classes = 0;
    for (const char *name = list;; name++) {
        size_t length = strcspn(name, ",");
        const struct scene *scene = scene_find(name, length);
        for (size_t i = 0; i < o->classes; i++)
            if (o->scenes[i] == scene) usage_error("--classes names '%s' twice", scene->name);
        o->scenes[o->classes++] = scene;
        name += length;
        if (!*name) return;
    }
}

static void take_option(struct options *o, const char *name, const char *value)
{
    if (strcmp(name, "out") == 0) {
        o->out = value;
    } else if (strcmp(name, "sheet") == 0) {
        o->sheet = value;
    } else if (strcmp(name, "count") == 0) {
        o->count = (int)number("--count", value, 1, MAX_COUNT);
    } else if (strcmp(name, "size") == 0) {
        o->size = (int)number("--size", value, 16, MAX_SIZE);
    } else if (strcmp(name, "seed") == 0) {
        o->seed = number("--seed", value, 0, UINT64_MAX);
    } else if (strcmp(name, "classes") == 0) {
        choose_classes(o, value);
    } else if (strcmp(name, "split") == 0) {
        if (strcmp(value, "train") != 0 && strcmp(value, "val") != 0) usage_error("--split is train or val, not '%s'", value);
        o->first = strcmp(value, "val") == 0 ? VALIDATION : 0;
    } else if (strcmp(name, "threads") == 0) {
        o->threads = (int)number("--threads", value, 1, 1024);
    } else if (strcmp(name, "columns") == 0) {
        o->columns = (int)number("--columns", value, 1, 64);
    } else if (strcmp(name, "thumb") == 0) {
        o->thumb = (int)number("--thumb", value, 16, 512);
    } else if (strcmp(name, "list") == 0) {
        for (size_t i = 0; i < scenes_count; i++) puts(scenes_table[i].name);
        exit(EXIT_SUCCESS);
    } else { /* help */
        fputs(usage, stdout);
        exit(EXIT_SUCCESS);
    }
}

static void parse(int argc, char **argv, struct options *o)
{
    static const struct option known[] = {
        {"out", required_argument, NULL, 0},
        {"sheet", required_argument, NULL, 0},
        {"count", required_argument, NULL, 0},
        {"size", required_argument, NULL, 0},
        {"seed", required_argument, NULL, 0},
        {"classes", required_argument, NULL, 0},
        {"split", required_argument, NULL, 0},
        {"threads", required_argument, NULL, 0},
        {"columns", required_argument, NULL, 0},
        {"thumb", required_argument, NULL, 0},
        {"list", no_argument, NULL, 0},
        {"help", no_argument, NULL, 0},
        {NULL, 0, NULL, 0},
    };
    opterr = 0;
    int which = 0;
    for (int found; (found = getopt_long(argc, argv, ":", known, &which)) != -1;) {
        const char *word = argv[optind - 1];
        if (found == ':') usage_error("%s needs a value", word);
        if (found == '?') usage_error("bad option '%s'", word);
        take_option(o, known[which].name, optarg);
    }
    if (optind < argc) usage_error("unexpected argument '%s'", argv[optind]);
    if (!o->out && !o->sheet) usage_error("give --out DIR or --sheet FILE");
}

/* Makes a folder and those above it. */
static bool make_folder(const char *path)
{
    char part[PATH_ROOM];
    size_t length = strlen(path);
    if (length >= sizeof part) {
        errno = ENAMETOOLONG;
        return false;
    }
    for (size_t i = 1; i <= length; i++) {
        if (path[i] != '/' && path[i] != '\0') continue;
        memcpy(part, path, i);
        part[i] = '\0';
        if (mkdir(part, 0777) != 0 && errno != EEXIST) return false;
    }
    struct stat found;
    if (stat(path, &found) != 0) return false;
    errno = ENOTDIR;
    return S_ISDIR(found.st_mode);
}

static bool failed_at(const char *path)
{
    fprintf(stderr, "aim-draw: cannot write %s: %s\n", path, strerror(errno));
    return false;
}

static bool make_folders(const struct options *o)
{
    char path[PATH_ROOM];
    for (size_t i = 0; i < o->classes; i++) {
        if (snprintf(path, sizeof path, "%s/%s", o->out, o->scenes[i]->name) >= (int)sizeof path) {
            errno = ENAMETOOLONG;
            return failed_at(o->out);
        }
        if (!make_folder(path)) return failed_at(path);
    }
    return true;
}

/* Draws and writes the picture of this number; the first failure of all threads speaks. */
static bool draw_one(const struct options *o, int64_t job, uint8_t *rgb, int *quiet)
{
    char path[PATH_ROOM];
    struct picture_id id = {o->seed, o->scenes[job / o->count], o->first + (uint64_t)(job % o->count)};
    int length = snprintf(path, sizeof path, "%s/%s/%06d.png", o->out, id.scene->name, (int)(job % o->count));
    errno = length < (int)sizeof path ? ENOMEM : ENAMETOOLONG;
    if (length < (int)sizeof path && rgb && picture_draw(&id, o->size, rgb) &&
        picture_write(path, o->size, o->size, rgb, false))
        return true;
    int reason = errno;
#pragma omp critical
    if (!*quiet) {
        errno = reason;
        failed_at(path);
        *quiet = 1;
    }
    return false;
}

static bool draw_all(const struct options *o)
{
    if (!make_folders(o)) return false;
    int64_t jobs = (int64_t)o->classes * o->count;
    int stop = 0, quiet = 0;
#pragma omp parallel num_threads(o->threads)
    {
        uint8_t *rgb = malloc((size_t)o->size * (size_t)o->size * 3);
#pragma omp for schedule(dynamic)
        for (int64_t job = 0; job < jobs; job++) {
            int done;
#pragma omp atomic read
            done = stop;
            if (!done && !draw_one(o, job, rgb, &quiet)) {
#pragma omp atomic write
                stop = 1;
            }
        }
        free(rgb);
    }
    return !stop;
}

int main(int argc, char **argv)
{
    struct options o = {.count = 100, .size = 256, .columns = 6, .thumb = 128, .threads = omp_get_max_threads()};
    for (size_t i = 0; i < scenes_count; i++) o.scenes[o.classes++] = &scenes_table[i];
    parse(argc, argv, &o);
    if (o.sheet) {
        struct sheet sheet = {o.scenes, o.classes, o.seed, o.first, o.size, o.thumb, o.columns};
        if (!sheet_write(o.sheet, &sheet)) return failed_at(o.sheet), EXIT_FAILURE;
    }
    return !o.out || draw_all(&o) ? EXIT_SUCCESS : EXIT_FAILURE;
}
