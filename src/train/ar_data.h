/*
 * What stage 2 learns from: pictures as codes with their classes, out of a code cache, a pair of .npy files, or pictures that
 * the tokenizer encodes on the way. Batch s of a run is a pure function of (data, options, s).
 */
#ifndef AIM_TRAIN_AR_DATA_H
#define AIM_TRAIN_AR_DATA_H

#include "model/model.h"
#include "train/codes.h"
#include "train/loader.h"

/* Held-out pictures that an evaluation looks at, at most: evenly spread over those that there are. */
enum { AR_HELD_OUT_MOST = 2048 };

struct ar_data {
    aim_context *ctx;
    int64_t count, tokens, class_count;
    int64_t vocabulary; /* 0: the data does not say */
    char *const *names; /* of the classes; NULL when they have none */

    /* Pictures held out from training, ready after ar_data_start: codes (held_count, tokens), labels (held_count). */
    int64_t held_count;
    int32_t *held_codes, *held_labels;

    /* private */
    const aim_train_ar_options *options;
    struct codes cache, held_cache;
    aim_array codes, labels; /* of .npy files, int64 */
    struct dataset pictures, held_pictures;
    char **picture_names; /* of the data set's classes, borrowed one by one */
    struct loader *loader;
    aim_model *tokenizer; /* encodes pictures; borrowed */
    int size;
    float *pixels; /* (batch, 3, size, size) */
};

/*
 * Opens what the options name; reads sizes and classes, no pictures yet. `tokenizer`, needed for pictures alone, may be NULL
 * or hold no tokenizer. *d is freed with ar_data_close, also after a failure.
 */
aim_status ar_data_open(aim_context *ctx, const aim_train_ar_options *options, aim_model *tokenizer, struct ar_data *d);
void ar_data_close(struct ar_data *d);

/* Gathers the held-out pictures and gets ready for the batch of `step`; codes are below `vocabulary`. */
aim_status ar_data_start(struct ar_data *d, int64_t step, int64_t vocabulary);

/* The next batch, which is that of `step`: codes (batch, tokens), labels (batch). */
aim_status ar_data_batch(struct ar_data *d, int64_t step, int32_t *codes, int32_t *labels);

#endif
