/*
 * Writes a code cache in either form (train/codes.h), one picture after the other, so that any number of them fits in
 * memory. It appears under its name when it is complete, or not at all.
 */
#ifndef AIM_TRAIN_CODES_WRITER_H
#define AIM_TRAIN_CODES_WRITER_H

#include "base/file.h"
#include "train/codes.h"
#include "train/dataset.h"

struct codes_description {
    aim_codes_format format;
    const struct dataset *dataset; /* its classes are kept, and its pictures are the most that will come */
    int64_t variants, tokens, vocabulary;
    int size;
    const char *views, *crop_range, *tokenizer; /* metadata of our form; crop_range may be NULL */
};

struct codes_writer {
    aim_context *ctx;
    struct codes_description d;
    int64_t count; /* pictures so far */

    /* private: our form */
    struct file_writer out;
    size_t room;
    char *classes; /* JSON; freed with free */
    int32_t *labels;
    uint16_t *narrow; /* one picture */
    /* private: LlamaGen's */
    char *folders[2], *temporary[2]; /* of codes and labels */
    int64_t *wide;
};

/*
 * Starts a cache in the folder `path`, which is made: the file `file_name` (our form), or imagenet{size}_codes and _labels
 * (LlamaGen's). AIM_ERR_ARGUMENT when that exists, AIM_ERR_IO, AIM_ERR_MEMORY; the writer is closed then.
 */
aim_status codes_writer_open(aim_context *ctx, const char *path, const char *file_name, const struct codes_description *d,
                             struct codes_writer *w);

/* Whether a file of our form may be written there: AIM_ERR_ARGUMENT when it exists. */
aim_status codes_writer_check(aim_context *ctx, const char *path, const char *file_name);

/* codes (variants, tokens) of the next picture. */
aim_status codes_writer_add(struct codes_writer *w, const int32_t *codes, int32_t label);

/* keep: puts the cache in place; otherwise leaves nothing. The writer is closed in every case. */
aim_status codes_writer_close(struct codes_writer *w, bool keep);

#endif
