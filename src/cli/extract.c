#include <stdio.h>
#include <string.h>

#include "cli/json.h"
#include "cli/output.h"

static int check_arguments(struct cli *cli)
{
    enum output_kind kind;
    char path[4200];
    if (snprintf(path, sizeof path, "%s/", cli->args.output) >= (int)sizeof path) /* a slash makes any name a folder's */
        return cli_fail(cli, "the path given with --output is too long");
    return output_check(cli, "output", path, OUTPUT_FOLDER, &kind);
}

static void report(const struct cli *cli, const aim_extract_report *r)
{
    if (!cli->args.json) {
        printf("%s\n", cli->args.output);
        return;
    }
    printf("{\"outputs\": [");
    cli_json_string(cli->args.output);
    printf("], \"pictures\": %lld, \"held_out\": %lld, \"skipped\": %lld, \"classes\": %lld, ", (long long)r->pictures,
           (long long)r->held_out, (long long)r->skipped, (long long)r->classes);
    printf("\"variants\": %lld, \"tokens\": %lld, \"seconds\": ", (long long)r->variants, (long long)r->tokens);
    printf("%.3f}\n", cli_elapsed(cli));
}

int command_extract_codes(struct cli *cli)
{
    const aim_codes_format formats[] = {AIM_CODES_COMPACT, AIM_CODES_LLAMAGEN}; /* in the table's order */
    aim_extract_options o = aim_extract_defaults();
    aim_extract_report r;
    CLI_TRY(check_arguments(cli));
    CLI_TRY(cli_open_model(cli));
    CLI_TRY(cli_need_tokenizer(cli));
    o.size = (int)cli->args.size;
    o.ten_crop = cli->args.ten_crop;
    o.crop_range = cli->args.crop_range;
    o.format = formats[cli->args.format];
    o.batch = (int)cli->args.batch;
    struct output folder = {.cli = cli, .path = cli->args.output, .kind = OUTPUT_FOLDER};
    CLI_TRY(output_open(&folder)); /* remembers which levels of the path it makes */
    int status = cli_library(cli, aim_extract_codes(cli->model, cli->args.data, cli->args.output, &o, &r));
    progress_end(&cli->progress);
    output_close(&folder, status == STATUS_OK);
    if (status == STATUS_OK) report(cli, &r);
    return status;
}
