#include "cli/options.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "cli/cli.h"

const struct command *command_find(const char *name)
{
    for (const struct command *c = commands_table; c->name; c++)
        if (strcmp(c->name, name) == 0) return c;
    return NULL;
}

/* A name counts as near when a third of it or less has to change, and at least one edit is forgiven. */
static bool is_near(const char *name, size_t distance)
{
    size_t allowed = strlen(name) / 3;
    return distance <= (allowed > 1 ? allowed : 1);
}

const char *command_suggest(const char *name)
{
    const char *best = NULL;
    size_t least = SIZE_MAX;
    for (const struct command *c = commands_table; c->name; c++) {
        size_t distance = cli_distance(name, c->name);
        if (distance < least && is_near(c->name, distance)) {
            least = distance;
            best = c->name;
        }
    }
    return best;
}

static const char *option_suggest(const struct command *command, const char *name)
{
    const char *best = NULL;
    size_t least = SIZE_MAX;
    for (const struct option *o = options_table; o->name; o++) {
        size_t distance = cli_distance(name, o->name);
        if ((o->commands & (int)command->bit) && distance < least && is_near(o->name, distance)) {
            least = distance;
            best = o->name;
        }
    }
    return best;
}

/* By the name of `length` characters, or by letter when name is NULL. */
static const struct option *option_find(const struct command *command, const char *name, size_t length, char letter)
{
    for (const struct option *o = options_table; o->name; o++) {
        if (!(o->commands & (int)command->bit)) continue;
        if (name ? strlen(o->name) == length && memcmp(o->name, name, length) == 0 : o->letter && o->letter == letter) return o;
    }
    return NULL;
}

/* The characters that numbers are made of: keeps strtod from taking spaces, hexadecimal, nan and inf. */
static bool is_plain_number(const char *text, const char *extra)
{
    bool digit = false;
    for (const char *c = text; *c; c++) {
        if (isdigit((unsigned char)*c))
            digit = true;
        else if (!strchr(extra, *c))
            return false;
    }
    return digit;
}

static bool parse_integer(const struct option *o, const char *text, int64_t *out)
{
    char *end = NULL;
    if (!is_plain_number(text, "-")) return false;
    errno = 0;
    long long value = strtoll(text, &end, 10);
    if (errno || *end || (double)value < o->min || (double)value > o->max) return false;
    *out = value;
    return true;
}

static bool parse_seed(const char *text, uint64_t *out)
{
    char *end = NULL;
    if (!is_plain_number(text, "")) return false;
    errno = 0;
    *out = strtoull(text, &end, 10);
    return !errno && !*end;
}

static bool parse_real(const struct option *o, const char *text, double *out)
{
    char *end = NULL;
    if (!is_plain_number(text, "+-.eE")) return false;
    double value = strtod(text, &end);
    if (*end || !isfinite(value) || value < o->min || value > o->max) return false;
    *out = value;
    return true;
}

static bool parse_choice(const struct option *o, const char *text, int *out)
{
    int index = 0;
    size_t length = strlen(text);
    for (const char *c = o->range; *c; index++) {
        size_t n = strcspn(c, "|");
        if (n == length && strncasecmp(c, text, n) == 0) {
            *out = index;
            return true;
        }
        c += n + (c[n] == '|');
    }
    return false;
}

static bool store(struct arguments *args, const struct option *o, const char *text)
{
    void *field = (char *)args + o->offset;
    switch (o->type) {
    case OPTION_FLAG: *(bool *)field = true; return true;
    case OPTION_TEXT: *(const char **)field = text; return *text != '\0';
    case OPTION_INTEGER: return parse_integer(o, text, field);
    case OPTION_SEED: return parse_seed(text, field);
    case OPTION_REAL: return parse_real(o, text, field);
    case OPTION_CHOICE: return parse_choice(o, text, field);
    }
    return false;
}

/* "a, b or c" from "a|b|c". */
static void spell_choices(const char *range, char *out, size_t size)
{
    size_t used = 0;
    for (const char *c = range; *c && used < size;) {
        size_t n = strcspn(c, "|");
        const char *after = c[n] ? c + n + 1 : c + n;
        const char *join = c == range ? "" : *after ? ", " : " or ";
        int wrote = snprintf(out + used, size - used, "%s%.*s", join, (int)n, c);
        used += wrote > 0 ? (size_t)wrote : 0;
        c = after;
    }
}

static int refuse_value(struct cli *cli, const struct option *o, const char *text)
{
    char choices[160] = "";
    switch (o->type) {
    case OPTION_FLAG: return cli_usage(cli, "--%s takes no value", o->name);
    case OPTION_TEXT: return cli_usage(cli, "--%s needs a value that is not empty", o->name);
    case OPTION_CHOICE:
        spell_choices(o->range, choices, sizeof choices);
        return cli_usage(cli, "--%s must be %s, not '%s'", o->name, choices, text);
    case OPTION_REAL: return cli_usage(cli, "--%s must be a number, %s, not '%s'", o->name, o->range, text);
    case OPTION_INTEGER: return cli_usage(cli, "--%s must be a whole number, %s, not '%s'", o->name, o->range, text);
    case OPTION_SEED: break;
    }
    return cli_usage(cli, "--%s must be %s, not '%s'", o->name, o->range, text);
}

/* argv[*at] is "--name", "--name=value", "-x" or "-xvalue"; moves *at past what it used. */
static int parse_option(struct cli *cli, int argc, char **argv, int *at, bool *given)
{
    const char *word = argv[(*at)++], *value = NULL, *suggestion = NULL;
    bool full = word[1] == '-';
    size_t length = full ? strcspn(word + 2, "=") : 1;
    const struct option *o = option_find(cli->command, full ? word + 2 : NULL, length, word[1]);
    if (!o) {
        char name[64];
        snprintf(name, sizeof name, "%.*s", (int)(length < 63 ? length : 63), full ? word + 2 : "");
        if (full) suggestion = option_suggest(cli->command, name);
        if (suggestion) return cli_usage(cli, "unknown option '%s'; did you mean --%s?", word, suggestion);
        return cli_usage(cli, "unknown option '%s'", word);
    }
    if (full && word[2 + length] == '=')
        value = word + 2 + length + 1;
    else if (!full && word[2])
        value = word + 2;
    if (o->type == OPTION_FLAG && value) return refuse_value(cli, o, value);
    if (o->type != OPTION_FLAG && !value) {
        if (*at >= argc) return cli_usage(cli, "%s needs a value, %s", word, o->metavar);
        value = argv[(*at)++];
    }
    if (!store(&cli->args, o, value)) return refuse_value(cli, o, value);
    given[o - options_table] = true;
    return STATUS_OK;
}

static void store_defaults(struct arguments *args, const struct command *command)
{
    for (const struct option *o = options_table; o->name; o++)
        if (o->initial && (o->commands & (int)command->bit)) store(args, o, o->initial);
}

/* What the command cannot do without. */
static int check_required(struct cli *cli, const bool *given)
{
    const struct command *command = cli->command;
    for (const char *name = command->required ? command->required : ""; *name;) {
        size_t length = strcspn(name, " ");
        const struct option *o = option_find(command, name, length, 0);
        if (o && !given[o - options_table]) {
            if (o->letter) return cli_usage(cli, "-%c %s is missing", o->letter, o->metavar);
            return cli_usage(cli, "--%s %s is missing", o->name, o->metavar);
        }
        name += length + (name[length] == ' ');
    }
    if (command->input && cli->args.input_count == 0) return cli_usage(cli, "%s is missing", command->input);
    return STATUS_OK;
}

int options_parse(struct cli *cli, int argc, char **argv)
{
    struct arguments *args = &cli->args;
    enum { MOST_OPTIONS = 256 };
    bool given[MOST_OPTIONS] = {false}; /* by place in the table */
    bool only_inputs = false;
    store_defaults(args, cli->command);
    args->inputs = argv; /* inputs are gathered at the front, over words that have been read already */
    for (int at = 0; at < argc && !args->help;) {
        char *word = argv[at];
        if (!only_inputs && strcmp(word, "--") == 0) {
            only_inputs = true;
            at++;
        } else if (!only_inputs && word[0] == '-' && word[1]) {
            CLI_TRY(parse_option(cli, argc, argv, &at, given));
        } else {
            if (!cli->command->input) return cli_usage(cli, "unexpected argument '%s'", word);
            if (!cli->command->many_inputs && args->input_count == 1)
                return cli_usage(cli, "takes one %s, but '%s' follows", cli->command->input, word);
            if (!*word) return cli_usage(cli, "%s must not be empty", cli->command->input);
            args->inputs[args->input_count++] = word;
            at++;
        }
    }
    return args->help ? STATUS_OK : check_required(cli, given);
}

void options_choice(const char *name, int index, char *out, size_t size)
{
    *out = '\0';
    for (const struct option *o = options_table; o->name; o++) {
        if (strcmp(o->name, name) != 0) continue;
        const char *c = o->range;
        for (; index > 0 && *c; index--) c += strcspn(c, "|") + 1;
        snprintf(out, size, "%.*s", (int)strcspn(c, "|"), c);
        return;
    }
}
