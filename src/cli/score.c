#include <stdio.h>
#include <stdlib.h>

#include "cli/json.h"
#include "cli/output.h"
#include "cli/pictures.h"

struct scoring {
    aim_array codes, labels;
    int64_t count, tokens;
    aim_array_file *logits;
    double nll;
    int status; /* of the logits callback */
    struct cli *cli;
};

static int check_arguments(struct cli *cli)
{
    const struct arguments *a = &cli->args;
    enum output_kind kind;
    if (!a->logits) return STATUS_OK;
    CLI_TRY(output_check(cli, "logits", a->logits, OUTPUT_NPY, &kind));
    CLI_TRY(output_check_input(cli, a->logits, a->codes));
    return output_check_input(cli, a->logits, a->labels);
}

static int read_labels(struct cli *cli, struct scoring *s)
{
    const char *path = cli->args.labels;
    int64_t limit = cli->info.num_classes;
    CLI_TRY(cli_library(cli, aim_array_read(cli->ctx, path, NULL, &s->labels)));
    if (s->labels.ndim != 1 || s->labels.shape[0] != s->count)
        return cli_fail(cli, "%s: one label for each of the %lld pictures is needed, in an array of one dimension", path,
                        (long long)s->count);
    if (aim_array_to_int64(cli->ctx, &s->labels) != AIM_OK) return cli_fail(cli, "%s: %s", path, aim_last_error(cli->ctx));
    const int64_t *labels = s->labels.data;
    for (int64_t i = 0; i < s->count; i++)
        if (labels[i] < 0 || labels[i] > limit)
            return cli_fail(cli, "%s: label %lld is %lld, but the model's classes are 0 to %lld, and %lld for no class", path,
                            (long long)i, (long long)labels[i], (long long)(limit - 1), (long long)limit);
    return STATUS_OK;
}

static int read_inputs(struct cli *cli, struct scoring *s)
{
    const char *path = cli->args.codes;
    CLI_TRY(cli_codes_read(cli, path, &s->codes, &s->count, &s->tokens));
    if (s->tokens != cli->info.num_tokens)
        return cli_fail(cli, "%s: %lld codes per picture, but the model's pictures have %d", path, (long long)s->tokens,
                        cli->info.num_tokens);
    CLI_TRY(cli_codes_check(cli, path, s->codes.data, s->count, s->tokens, cli->info.vocab_size));
    return read_labels(cli, s);
}

static int on_logits(void *user, int64_t index, const float *logits)
{
    struct scoring *s = user;
    size_t values = (size_t)s->tokens * (size_t)s->cli->info.vocab_size;
    (void)index;
    s->status = cli_library(s->cli, aim_array_file_write(s->logits, logits, values * sizeof *logits));
    return s->status != STATUS_OK;
}

static int open_logits(struct cli *cli, struct scoring *s)
{
    const int64_t shape[3] = {s->count, s->tokens, cli->info.vocab_size};
    if (!cli->args.logits) return STATUS_OK;
    CLI_TRY(cli_library(cli, aim_array_file_create(cli->ctx, cli->args.logits, &s->logits)));
    return cli_library(cli, aim_array_file_begin(s->logits, NULL, AIM_F32, 3, shape));
}

static int run(struct cli *cli, struct scoring *s)
{
    CLI_TRY(open_logits(cli, s));
    aim_status status =
        aim_score(cli->model, s->codes.data, s->labels.data, s->count, &s->nll, s->logits ? on_logits : NULL, s);
    progress_end(&cli->progress);
    if (s->status != STATUS_OK) return s->status; /* its line has been printed */
    return cli_library(cli, status);
}

static void report(const struct cli *cli, const struct scoring *s)
{
    if (!cli->args.json) {
        printf("nll %.6f\n", s->nll);
        return;
    }
    printf("{\"nll\": ");
    cli_json_number(s->nll);
    printf(", \"pictures\": %lld, \"tokens\": %lld, \"pos_offset\": %d, \"outputs\": [", (long long)s->count,
           (long long)s->tokens, cli->info.pos_offset);
    if (cli->args.logits) cli_json_string(cli->args.logits);
    printf("], \"seconds\": ");
    printf("%.3f", cli_elapsed(cli));
    printf("}\n");
}

static int score(struct cli *cli, struct scoring *s)
{
    CLI_TRY(check_arguments(cli));
    CLI_TRY(cli_open_model(cli));
    CLI_TRY(cli_need_generator(cli));
    CLI_TRY(read_inputs(cli, s));
    int status = run(cli, s);
    aim_status closed = aim_array_file_close(s->logits, status == STATUS_OK);
    if (status == STATUS_OK) status = cli_library(cli, closed);
    if (status == STATUS_OK) report(cli, s);
    return status;
}

int command_score(struct cli *cli)
{
    struct scoring s = {.cli = cli};
    int status = score(cli, &s);
    aim_array_free(&s.codes);
    aim_array_free(&s.labels);
    return status;
}
