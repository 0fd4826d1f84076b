/* Is the generator copying? Samples beside the training pictures that are most like them. */
#ifndef AIM_JUDGE_NEAREST_H
#define AIM_JUDGE_NEAREST_H

#include "base/context.h"

/* A PNG with a row for each of the first samples of an .npz: the sample, then the pictures of DATA nearest to it by squared
 * difference of 32x32 versions. Prints the mean distance to the nearest one, per value in [-1, 1]. */
aim_status nearest(aim_context *ctx, const char *samples, const char *data, const char *output);

#endif
