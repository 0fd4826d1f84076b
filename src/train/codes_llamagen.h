/* LlamaGen's form of the code cache: one .npy file a picture for its codes, one for its label (train/codes.h). */
#ifndef AIM_TRAIN_CODES_LLAMAGEN_H
#define AIM_TRAIN_CODES_LLAMAGEN_H

#include "train/codes.h"

#define LLAMAGEN_CODES  "_codes"
#define LLAMAGEN_LABELS "_labels"

/*
 * The folder NAME_codes in `folder`, or `folder` itself when that is its name; the first by name when there are several.
 * *found is NULL when there is none; the caller frees it.
 */
aim_status llamagen_find(aim_context *ctx, const char *folder, char **found);

/* The folder NAME_labels that belongs to NAME_codes; the caller frees it; NULL when out of memory. */
char *llamagen_labels_folder(aim_context *ctx, const char *codes_folder);

/* "folder/i.npy" in a block that the caller frees; NULL when out of memory. */
char *llamagen_file(aim_context *ctx, const char *folder, int64_t i);

/* Opens the cache whose codes are in the folder c->path: counts the files and reads all labels. */
aim_status llamagen_open(struct codes *c);

/* One variant of picture i, values within int32 alone being sure. */
aim_status llamagen_read(const struct codes *c, int64_t i, int64_t variant, int32_t *out);

#endif
