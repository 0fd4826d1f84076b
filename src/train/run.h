/*
 * The folder of a training run:
 *
 *     RUN/options.json             what was asked for, so that `--resume RUN` needs nothing else
 *     RUN/log.jsonl                one JSON object a line for each step and evaluation, flushed as it is written
 *     RUN/checkpoints/step-N.safetensors   the whole state after step N; the last few are kept
 *     RUN/curves.png               the log, drawn
 *     RUN/samples/NNNNNN.png       pictures of step N
 *     RUN/model/                   the result in hub format (written by the trainer)
 *
 * Whenever the process dies, the folder holds a whole checkpoint and a log that reaches at least as far; resuming cuts the
 * log back to the checkpoint.
 */
#ifndef AIM_TRAIN_RUN_H
#define AIM_TRAIN_RUN_H

#include <stdio.h>

#include "train/checkpoint.h"
#include "train/curves.h"

struct run {
    aim_context *ctx;
    char *path;     /* owned */
    FILE *log;      /* locked: one process trains in a folder */
    int64_t step;   /* of the checkpoint to go on from; 0 = from the beginning */
    char *restored; /* that checkpoint's path, or NULL; owned */
    int keep;       /* checkpoints */
};

struct run_value {
    const char *name;
    double value; /* NaN and infinity are written as null */
};

/*
 * Makes the folder, or opens it to go on from its newest checkpoint. AIM_ERR_ARGUMENT when a new run would land in the folder
 * of another, when there is nothing to resume, or when another process trains there; AIM_ERR_IO. *run is zeroed on failure.
 */
aim_status run_open(aim_context *ctx, const char *path, bool resume, int keep, struct run *run);

/* Accepts a zeroed struct and leaves one. */
void run_close(struct run *run);

/* "RUN/name" in a block that the caller frees; NULL when out of memory. */
char *run_path(const struct run *run, const char *name);

/* Appends {"step": step, name: value, ...}. AIM_ERR_IO with advice when the disk is full. */
aim_status run_log(struct run *run, int64_t step, const struct run_value *values, size_t count);

/* Writes the checkpoint of `step`, then removes the oldest ones. On failure the old ones are all still there. */
aim_status run_save(struct run *run, struct exec *ex, const struct checkpoint *c, int64_t step);

/* Draws RUN/curves.png from the log, one panel above the other. */
aim_status run_draw(struct run *run, const struct curve_panel *panels, size_t count);

/* Writes RUN/samples/NNNNNN.png: equally large pictures in a grid of `columns`. */
aim_status run_samples(struct run *run, int64_t step, const aim_image *images, int count, int columns);

#endif
