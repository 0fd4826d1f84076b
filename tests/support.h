/* What every test includes: cmocka, a context that prints its error when a call fails unexpectedly, and test data. */
#ifndef AIM_TESTS_SUPPORT_H
#define AIM_TESTS_SUPPORT_H

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/context.h"

/* Path of a file under tests/data, valid until the fourth call after this one. */
static inline const char *data_path(const char *name)
{
    static char paths[4][512];
    static unsigned next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", TEST_DATA, name);
    return path;
}

/* Asserts AIM_OK, showing the context's message otherwise. */
#define assert_ok(ctx, call)                                                                                                   \
    do {                                                                                                                       \
        aim_status assert_ok_ = (call);                                                                                        \
        if (assert_ok_ != AIM_OK) fail_msg("%s: %s", aim_status_name(assert_ok_), aim_last_error(ctx));                        \
    } while (0)

/* Asserts that `call` fails with `status` and leaves a message of one line that contains `words`. */
#define assert_fails(ctx, call, status, words)                                                                                 \
    do {                                                                                                                       \
        aim_status assert_fails_ = (call);                                                                                     \
        if (assert_fails_ != (status))                                                                                         \
            fail_msg("expected %s, got %s (%s)", aim_status_name(status), aim_status_name(assert_fails_),                      \
                     aim_last_error(ctx));                                                                                     \
        if (!strstr(aim_last_error(ctx), words))                                                                               \
            fail_msg("the message should contain \"%s\": %s", words, aim_last_error(ctx));                                     \
    } while (0)

/* Largest |a-b| relative to the largest |b|: the project's measure of "within 1e-4 relative". */
static inline double relative_error(const float *a, const float *b, size_t n)
{
    double worst = 0, scale = 0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - (double)b[i]);
        if (!(d <= worst)) worst = d; /* a NaN sticks */
        if (fabs((double)b[i]) > scale) scale = fabs((double)b[i]);
    }
    return worst / (scale > 0 ? scale : 1);
}

#endif
