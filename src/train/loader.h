/*
 * Pictures for training: threads decode and augment ahead of the network, into a queue of bounded length. What comes out is
 * a pure function of (data set, options, number of the sample), whatever the number of threads, so a run that resumes only
 * needs its step number.
 *
 * The samples of a run are one endless stream: sample g is place g mod n of epoch g / n, n pictures each in a new random
 * order (train/shuffle.h). A batch may therefore hold the end of one epoch and the start of the next; nothing is dropped,
 * and every picture is seen once an epoch. A picture that cannot be read gives its place to the next one in the epoch's
 * order that can. With `ordered` the stream is one pass through the set as it stands, and unreadable pictures are left out.
 *
 * Each unreadable picture is reported once, as a warning of the context, when the stream first comes to it.
 */
#ifndef AIM_TRAIN_LOADER_H
#define AIM_TRAIN_LOADER_H

#include "train/augment.h"
#include "train/dataset.h"

struct loader_options {
    const struct dataset *dataset; /* must outlive the loader */
    struct augment augment;
    int64_t batch; /* samples that loader_next gives */
    uint64_t seed;
    int64_t first_step; /* number of the first batch; must be 0 with `ordered` */
    bool ordered;
    int threads; /* 0: the calling thread does the work itself */
};

struct loader;

/*
 * *loader is NULL on failure: AIM_ERR_ARGUMENT for an empty set or impossible options, AIM_ERR_MEMORY, AIM_ERR_IO when the
 * system refuses threads. The loader belongs to the thread of its context.
 */
aim_status loader_create(aim_context *ctx, const struct loader_options *options, struct loader **loader);

/* Stops the threads at once, whatever they were at. NULL is allowed. */
void loader_free(struct loader *loader);

/*
 * The next batch: pixels (batch, 3, size, size) in [-1, 1], labels (batch). *count is the batch, but less at the end of an
 * ordered pass, and 0 after it. AIM_ERR_FORMAT when no picture of the set, or of 1000 in a
 * row, can be read; AIM_ERR_MEMORY. A failure stays.
 */
aim_status loader_next(struct loader *loader, float *pixels, int32_t *labels, int64_t *count);

/* The same as bytes: pictures (batch, size, size, 3). */
aim_status loader_next_bytes(struct loader *loader, uint8_t *pictures, int32_t *labels, int64_t *count);

/* One sample as bytes, for callers that make views of it; the caller frees *image, which is zeroed at the end of a pass. */
aim_status loader_picture(struct loader *loader, aim_image *image, int32_t *label);

/* Unreadable pictures so far. */
int64_t loader_skipped(const struct loader *loader);

#endif
