/*
 * What every command of the program shares: the state of one run, how messages are worded, and the exit status.
 *
 * The program uses the public header alone. Functions here that return int return an exit status: 0 to go on, anything
 * else after the one line that explains it has been printed.
 */
#ifndef AIM_CLI_CLI_H
#define AIM_CLI_CLI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "aim.h"
#include "cli/options.h"
#include "cli/progress.h"

enum { STATUS_OK = 0, STATUS_FAILED = 1, STATUS_USAGE = 2 };

struct cli {
    const struct command *command;
    struct arguments args;
    struct progress progress;
    aim_context *ctx;
    aim_model *model;
    aim_model_info info; /* of the model; zero until it is loaded */
    double started;      /* progress_now() when the work began */
};

/* Returns from the enclosing function when a step has failed. */
#define CLI_TRY(call)                                                                                                          \
    do {                                                                                                                       \
        int cli_try_ = (call);                                                                                                 \
        if (cli_try_ != STATUS_OK) return cli_try_;                                                                            \
    } while (0)

/* "aim COMMAND: message (try 'aim COMMAND --help')" on stderr; returns STATUS_USAGE. */
int cli_usage(struct cli *cli, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* "aim: message" on stderr; returns STATUS_FAILED. */
int cli_fail(struct cli *cli, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* AIM_OK becomes 0; a failure prints the library's message, a cancelled call "cancelled" and returns 128 + the signal. */
int cli_library(struct cli *cli, aim_status status);

/* Nonzero, with its line, once a signal has asked to stop: for loops outside the library. */
int cli_check_cancelled(struct cli *cli);

/* malloc of count*size bytes (at least one), zeroed; NULL after a message. */
void *cli_alloc(struct cli *cli, size_t count, size_t size);

/* Seconds since the work began. */
double cli_elapsed(const struct cli *cli);

/* The context alone; then the context and the model that the options name. Both are released by cli_close. */
int cli_open_context(struct cli *cli);
int cli_open_model(struct cli *cli);
void cli_close(struct cli *cli);

/* Refuses a model that lacks what the command needs. */
int cli_need_generator(struct cli *cli);
int cli_need_tokenizer(struct cli *cli);

/* The last component of the model's path: what goes into files that people share, rather than their folder names. */
void cli_model_name(const struct cli *cli, char *name, size_t size);

/* Pixels along one side of the pictures that encode and reconstruct work on. */
int cli_picture_size(struct cli *cli, int *size);

/* How many pictures of this size go through the tokenizer together: enough to keep it busy, little enough to fit anywhere. */
int64_t cli_picture_chunk(int size, int64_t count);

/* True when both paths name one existing file. */
bool cli_same_file(const char *a, const char *b);

/* Edits between two names (a character more, less, changed, or two swapped), case ignored: for suggestions. */
size_t cli_distance(const char *a, const char *b);

int command_generate(struct cli *cli);
int command_encode(struct cli *cli);
int command_decode(struct cli *cli);
int command_reconstruct(struct cli *cli);
int command_score(struct cli *cli);
int command_extract_codes(struct cli *cli);
int command_train_ar(struct cli *cli);
int command_train_tokenizer(struct cli *cli);
int command_convert(struct cli *cli);
int command_bench(struct cli *cli);
int command_init(struct cli *cli);
int command_info(struct cli *cli);

#endif
