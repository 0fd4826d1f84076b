/*
 * Where the time of a piece of work goes: a profile stands in front of a backend's kernels, all of ops.def, and in front of
 * its transfers, and takes the time of each call. On a device that works behind the host, marks in its stream tell when it
 * came to a call and when it was done with it (struct device_clock); nothing is waited for before profile_stop. A kernel that
 * calls others of the table counts as one call.
 */
#ifndef AIM_TENSOR_PROFILE_H
#define AIM_TENSOR_PROFILE_H

#include "tensor/backend.h"

enum { PROFILE_TENSORS = 2 };

/* The calls of one op with tensors of the same shapes. */
struct profile_row {
    const char *op;                         /* its name in ops.def; or "upload", "download", "copy", "zero" */
    struct tensor tensors[PROFILE_TENSORS]; /* types and shapes of the first ones that it reads, ndim 0: none */
    int64_t calls;
    double seconds;
};

struct profile {
    size_t count; /* once it has stopped: rows, the longest time first */
    struct profile_row *rows;
    double seconds; /* from start to stop */
};

/* From now on; *out is freed with profile_free, also after a failure. One profile a backend at a time. */
aim_status profile_start(struct backend *be, struct profile **out);

/* Waits for the device, takes the profile away from the backend and adds up. Fails if the profile itself did on its way. */
aim_status profile_stop(struct profile *profile);

/* Stops it first where that has not been done. NULL is allowed. */
void profile_free(struct profile *profile);

#endif
