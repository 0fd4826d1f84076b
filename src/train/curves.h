/* Curves of a training run as a picture: a small plotter for the numbers of log.jsonl. */
#ifndef AIM_TRAIN_CURVES_H
#define AIM_TRAIN_CURVES_H

#include "base/context.h"

enum { CURVES_PER_PANEL = 4 };

/* What one panel shows: values of the log by their names, drawn over the step. */
struct curve_panel {
    const char *names[CURVES_PER_PANEL]; /* the rest NULL */
    bool smooth; /* the curve is a running mean over about a fiftieth of the run, with the values behind it in a paler tone */
};

/*
 * Draws the panels, one above the other, of a log: JSON objects, one a line, those with a "step". Lines that are no such
 * object are passed over. The caller frees *out, which is zeroed on failure.
 */
aim_status curves_draw(aim_context *ctx, const char *log, size_t size, const struct curve_panel *panels, size_t count,
                       aim_image *out);

#endif
