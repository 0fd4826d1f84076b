/*
 * What a person sees while the program works: a progress bar on a terminal (nothing elsewhere), messages on stderr that
 * do not collide with it, and the wish to stop (SIGINT, SIGTERM), which the library learns through its progress callback.
 */
#ifndef AIM_CLI_PROGRESS_H
#define AIM_CLI_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

#include "aim.h"

struct progress {
    bool bar;              /* stderr is a terminal and -q was not given */
    bool quiet;            /* informational messages are dropped */
    bool drawn;            /* a bar stands on the terminal's current line */
    bool own;              /* the command counts, not the library: see progress_begin */
    char what[32];         /* the phase on show */
    int64_t done, total;   /* of that phase */
    int64_t first;         /* done when the phase began: the rate counts from there */
    int64_t pictures;      /* what the library's total stands for; 0 = itself. Set by the command */
    double began, redrawn; /* seconds */
};

/* Seconds on a clock that only goes forward. */
double progress_now(void);

/* A second signal ends the process at once, the usual way. Signals that the parent ignores stay ignored. */
void progress_catch_signals(void);

/* The signal that asked to stop, or 0. */
int progress_signal(void);

/* The callbacks of aim_context_options; user is the struct progress. */
int progress_update(void *user, const char *what, int64_t done, int64_t total);
void progress_log(void *user, aim_log_level level, const char *message);

/*
 * From here to progress_end the bar shows `done` of `total` as told by progress_step; what the library reports of its
 * single calls only keeps it alive. For commands that call the library once per batch.
 */
void progress_begin(struct progress *p, const char *what, int64_t total);
void progress_step(struct progress *p, int64_t done);

/* Removes the bar. */
void progress_end(struct progress *p);

/* One line on stderr, above the bar; control characters in the message become '?'. */
void progress_say(struct progress *p, const char *prefix, const char *message, const char *suffix);

#endif
