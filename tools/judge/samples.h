/* Pictures with their classes, scaled to a square: from an .npz as 'aim generate' writes it, or from class folders. */
#ifndef AIM_JUDGE_SAMPLES_H
#define AIM_JUDGE_SAMPLES_H

#include "train/loader.h"

struct samples {
    aim_context *ctx;
    int size;
    aim_array pictures, labels; /* of an .npz: uint8 (n,H,W,3), int64 (n) */
    int64_t next;
    struct dataset own; /* opened here */
    struct loader *loader;
};

/* SAMPLES.npz, or a folder. Close it in every case. */
aim_status samples_open(aim_context *ctx, const char *path, int size, struct samples *s);
/* A data set that is open already and outlives *s. */
aim_status samples_from(aim_context *ctx, const struct dataset *d, int size, struct samples *s);
void samples_close(struct samples *s);

/* The next *count <= batch: pixels (count,3,size,size) in [-1,1], labels (count); *count is 0 at the end. */
aim_status samples_next(struct samples *s, int64_t batch, float *pixels, int32_t *labels, int64_t *count);

/* Picture i of an .npz in its own size; the caller frees it. */
aim_status samples_picture(const struct samples *s, int64_t i, aim_image *image);

#endif
