/*
 * Data sets as people keep them: a folder for each class, with its pictures (.png, .jpg, .jpeg, .webp, any case) inside.
 *
 *     ROOT/train/<class>/...   or, when there is no folder ROOT/train,   ROOT/<class>/...
 *     ROOT/val/<class>/...     pictures held out from training, looked for beside ROOT/train alone
 *
 * Classes get their numbers in the order of their folders' names, byte by byte, as torchvision's ImageFolder does; pictures
 * stand in the order of class and file name. A folder with pictures and no folders is one class, named after itself. Names
 * that start with a dot are ignored, and so are folders inside a class.
 */
#ifndef AIM_TRAIN_DATASET_H
#define AIM_TRAIN_DATASET_H

#include "base/context.h"

struct dataset_class {
    char *name, *folder; /* owned; no folder: no pictures */
};

struct dataset_picture {
    size_t name; /* of the file, in dataset.text */
    int32_t label;
};

/* Everything in here belongs to the struct and does not change once it is open: threads may share it. */
struct dataset {
    aim_context *ctx;
    int64_t class_count, count;
    struct dataset_class *classes;
    struct dataset_picture *pictures;
    char *text; /* file names, one after the other, each with its NUL: a million of them are no million blocks */

    /* private */
    size_t text_used, text_room;
    int64_t class_room, room;
};

/*
 * The pictures of ROOT to train on. AIM_ERR_IO for folders that cannot be read, AIM_ERR_ARGUMENT when there are no
 * pictures or a class has none. *d is zeroed on failure.
 */
aim_status dataset_open(aim_context *ctx, const char *root, struct dataset *d);

/*
 * The same, and pictures held out for evaluation: those of ROOT/val when that exists (`fraction` is not used then; its
 * classes are the ones of ROOT/train, and one that is not among them is AIM_ERR_ARGUMENT), otherwise about a `fraction`
 * (0 to below 1) of the training pictures, chosen by a hash of class and file name so that more pictures do not move
 * others across. Both have the same classes; held_out may come out empty. Both are zeroed on failure.
 */
aim_status dataset_open_split(aim_context *ctx, const char *root, double fraction, struct dataset *train,
                              struct dataset *held_out);

/* Accepts a zeroed struct and leaves one. */
void dataset_close(struct dataset *d);

/* Whether ROOT has pictures of its own that are held out: a folder `val` beside `train`. */
bool dataset_has_held_out(const char *root);

/* The path of picture i, in a block of ctx (which may be a worker's) that the caller frees; NULL when out of memory. */
char *dataset_path(const struct dataset *d, aim_context *ctx, int64_t i);

#endif
