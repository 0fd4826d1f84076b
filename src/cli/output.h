/*
 * Where pictures go: one PNG (a grid when there are several), a folder of PNGs, or an .npz, fed one picture at a time so
 * that any number of them fits in memory. Files appear complete or not at all; in a folder, every picture does.
 */
#ifndef AIM_CLI_OUTPUT_H
#define AIM_CLI_OUTPUT_H

#include "cli/cli.h"

enum output_kind { OUTPUT_NONE = 0, OUTPUT_PNG = 1, OUTPUT_FOLDER = 2, OUTPUT_NPZ = 4, OUTPUT_NPY = 8 };

/* More pictures than anyone looks at in one grid; the library would have to hold all of them. */
enum { OUTPUT_GRID_LIMIT = 1024 };

/*
 * Tells the kind from the path given with --`option`, one of `kinds`, and checks that it can be written. Nothing is
 * created yet.
 */
int output_check(struct cli *cli, const char *option, const char *path, int kinds, enum output_kind *kind);

/* Refuses an output that is one of the inputs: it would replace what it was made from. */
int output_check_input(struct cli *cli, const char *path, const char *input);

/* Refuses a grid of more pictures than that; `each` is the cells one picture takes. */
int output_check_count(struct cli *cli, enum output_kind kind, int64_t count, int each);

/* Fields up to the blank line are set by the command; the rest starts as zero and belongs to the functions below. */
struct output {
    struct cli *cli;
    const char *path;
    enum output_kind kind; /* PNG, FOLDER or NPZ */
    int64_t count;         /* pictures to come */
    int size;              /* pixels along their sides */
    bool paired;           /* PNG: output_pair is called, and pairs stand one above the other */
    bool captions;         /* PNG: the class's name stands below each picture of a grid */
    const int64_t *labels; /* of the pictures, or NULL */
    const aim_text *text;  /* for PNG files: what is the same for all pictures */
    size_t text_count;

    int64_t written;
    aim_image canvas;
    int64_t columns;
    aim_array_file *file;
    int folders_made; /* levels of the folder that did not exist before */
};

int output_open(struct output *o);

/* The next picture. */
int output_picture(struct output *o, const aim_image *image);

/* The next original and what became of it. Kinds other than PNG keep the second alone. */
int output_pair(struct output *o, const aim_image *original, const aim_image *result);

/* keep: puts the output in place; otherwise leaves nothing of it but finished pictures in a folder. */
int output_close(struct output *o, bool keep);

/* The text entries that every PNG gets; `name` holds the model's name. Returns their number (OUTPUT_TEXTS). */
enum { OUTPUT_TEXTS = 3 };
size_t output_common_text(const struct cli *cli, aim_text *text, char *name, size_t size);

#endif
