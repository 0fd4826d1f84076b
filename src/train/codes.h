/*
 * The code cache of stage 2: every picture of a data set as tokens, in some variants (crops, mirror images), so that
 * training reads codes instead of running the tokenizer.
 *
 * Our form is one safetensors file, read through a mapping: `codes` (pictures, variants, tokens), U16, or I32 when the
 * vocabulary is beyond that; `labels` (pictures) I32; and in the file's metadata what they mean (CODES_KEY_*). In a
 * folder it is called codes.safetensors; val.safetensors beside it holds the pictures held out from training.
 *
 * LlamaGen's form (extract_codes_c2i.py) is a folder with NAME_codes/{i}.npy, int64 (1, variants, tokens), and
 * NAME_labels/{i}.npy, int64 (1), i from 0 on. Both forms are told apart by what is there.
 */
#ifndef AIM_TRAIN_CODES_H
#define AIM_TRAIN_CODES_H

#include "io/tensor_file.h"

#define CODES_FILE          "codes.safetensors"
#define CODES_HELD_OUT_FILE "val.safetensors"

/* The metadata of our form; all values are text, as the format has it. */
#define CODES_FORMAT         "aim-codes-1"
#define CODES_KEY_FORMAT     "format"     /* CODES_FORMAT */
#define CODES_KEY_CLASSES    "classes"    /* JSON list of the classes' names, in the order of their numbers */
#define CODES_KEY_VOCABULARY "vocabulary" /* codes are below it */
#define CODES_KEY_SIZE       "size"       /* pixels along a side of the encoded pictures */
#define CODES_KEY_VIEWS      "views"      /* "flip", "ten-crop" or "single": what the variants are */
#define CODES_KEY_CROP_RANGE "crop_range" /* of ten-crop: side of the picture that crops come from / size */
#define CODES_KEY_TOKENIZER  "tokenizer"  /* 16 hexadecimal digits: a hash of the weights that made the codes */

struct codes {
    aim_context *ctx;
    int64_t count, variants, tokens;
    int64_t class_count;
    int64_t vocabulary; /* 0 = the cache does not say (LlamaGen's): set it, so that codes are held against it */
    char **names;       /* class_count of them; NULL when the cache has none. Owned */
    char tokenizer[17]; /* the hash; "" when the cache does not say */

    /* private */
    char *path;
    struct tensor_file file;
    const struct tensor_entry *values; /* NULL: LlamaGen's form, in `path` */
    int32_t *labels;                   /* of all pictures in the cache */
    int64_t *subset;                   /* the pictures in use; NULL = all */
};

/*
 * Opens a cache: a folder of either form, or a file of ours. AIM_ERR_IO, AIM_ERR_ARGUMENT when there is no cache,
 * AIM_ERR_FORMAT when it is damaged or its parts do not fit together, AIM_ERR_MEMORY; *c is zeroed on failure.
 */
aim_status codes_open(aim_context *ctx, const char *path, struct codes *c);

/* A file of our form in memory, which must outlive *c; `name` is what messages call it. */
aim_status codes_parse(aim_context *ctx, const char *name, const void *data, size_t size, struct codes *c);

/*
 * As codes_open, and the codes held out for evaluation: val.safetensors when the folder has it, otherwise about a `fraction` (0
 * to below 1) of the pictures, chosen by a hash of their number, which leaves *train. *held_out has count 0 when there are
 * none. Both are zeroed on failure.
 */
aim_status codes_open_split(aim_context *ctx, const char *path, double fraction, struct codes *train, struct codes *held_out);

/* Accepts a zeroed struct and leaves one. */
void codes_close(struct codes *c);

/* Tokens of one variant (0 .. variants-1) of picture i: out (tokens). AIM_ERR_FORMAT for a code outside the vocabulary. */
aim_status codes_read(const struct codes *c, int64_t i, int64_t variant, int32_t *out);

int32_t codes_label(const struct codes *c, int64_t i);

/*
 * Batch `step` of a training run: codes (batch, tokens), labels (batch), a pure function of (cache, seed, step, batch). The
 * samples are the stream that train/loader.h describes, each in a variant drawn at random.
 */
aim_status codes_batch(const struct codes *c, uint64_t seed, int64_t step, int64_t batch, int32_t *codes, int32_t *labels);

#endif
