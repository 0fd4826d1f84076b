/*
 * The command line as data: one table of options and one of commands drive parsing, validation and the help pages, so
 * that what is documented is what is accepted.
 */
#ifndef AIM_CLI_OPTIONS_H
#define AIM_CLI_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct cli;

/* Every option of every command; each command reads its own. Text points into argv and is NULL when not given. */
struct arguments {
    const char *model, *tokenizer;
    const char *classes, *output, *codes_out;
    const char *codes, *labels, *logits, *data;
    const char *resume, *init, *preset_name, *config, *vgg, *lpips, *multipliers, *codebook;
    const char *device, *cpu;
    int64_t count, batch, top_k, size, threads;
    int64_t steps, accumulate, warmup, eval_every, save_every, sample_every, keep, layers, width, d_state, groups;
    int64_t channels, res_blocks, z_channels, norm_groups, disc_channels, disc_start, disc_warmup, revive;
    double l2, l1, perceptual, entropy, disc_weight;
    double cfg, top_p, temperature, crop_range;
    double epochs, lr, decay, clip, ema, label_drop, val;
    uint64_t seed;
    int weights, pos_offset, preset, format, schedule, order, adaln, disc, adv,
        codebook_start; /* index into the choices of the table */
    bool captions, tensors, ten_crop, quiet, json, help;
    bool dry_run, bf16, checkpointing, official_decay, no_positions, average, adaptive, perceptual_dropout;
    char **inputs; /* what is not an option, in order; points into argv */
    int input_count;
};

enum option_type {
    OPTION_FLAG,
    OPTION_TEXT,
    OPTION_INTEGER, /* int64_t within [min, max] */
    OPTION_SEED,    /* uint64_t */
    OPTION_REAL,    /* double within [min, max] */
    OPTION_CHOICE   /* int: index into `range`, a list separated by '|' */
};

enum option_group { GROUP_COMMAND, GROUP_MODEL, GROUP_GENERAL, GROUP_COUNT };

enum command_bit {
    FOR_GENERATE = 1,
    FOR_ENCODE = 2,
    FOR_DECODE = 4,
    FOR_RECONSTRUCT = 8,
    FOR_SCORE = 16,
    FOR_INIT = 32,
    FOR_INFO = 64,
    FOR_EXTRACT = 128,
    FOR_TRAIN_AR = 256,
    FOR_CONVERT = 512,
    FOR_BENCH = 1024,
    FOR_TRAIN_TOKENIZER = 2048,
    FOR_ALL = 4095,
    FOR_TRAIN = FOR_TRAIN_AR | FOR_TRAIN_TOKENIZER,
    FOR_MODEL = FOR_ALL & ~(FOR_INIT | FOR_TRAIN | FOR_BENCH)
};

struct option {
    const char *name;    /* without the dashes */
    char letter;         /* 0 = no short name */
    const char *metavar; /* NULL for flags */
    enum option_type type;
    size_t offset; /* in struct arguments */
    double min, max;
    const char *range;   /* in words for numbers ("0 or more"), the list for choices, else NULL */
    const char *initial; /* default, as if given; NULL = none */
    int commands;        /* command_bit */
    enum option_group group;
    const char *help;
};

struct command {
    const char *name;
    enum command_bit bit;
    int (*run)(struct cli *cli);
    const char *summary;  /* completes "aim NAME - " */
    const char *usage;    /* after "aim NAME " */
    const char *required; /* names of options that must be given, separated by spaces; NULL = none */
    const char *input;    /* metavar of what is not an option; NULL = nothing else is taken */
    bool many_inputs;
    const char *details, *output, *examples; /* of the help page */
};

/* Both end with an entry whose name is NULL. */
extern const struct option options_table[];
extern const struct command commands_table[];

const struct command *command_find(const char *name);

/* The nearest of the names by edits, or NULL when none is near. */
const char *command_suggest(const char *name);

/* Fills cli->args from argv[0..argc), the words after the command; checks what the table can check. */
int options_parse(struct cli *cli, int argc, char **argv);

/* The name of choice `index` of option `name`, copied into `out`. */
void options_choice(const char *name, int index, char *out, size_t size);

/* Help pages on stdout. */
void help_program(void);
void help_command(const struct command *command);

#endif
