#include <stdio.h>

#include "cli/json.h"
#include "cli/output.h"

static int save(struct cli *cli)
{
    const int forms[] = {0, 'l', 's'}; /* as in the table */
    const aim_weights weights[] = {AIM_WEIGHTS_AUTO, AIM_WEIGHTS_F32, AIM_WEIGHTS_BF16};
    return cli_library(
        cli, aim_convert(cli->model, forms[cli->args.adaln], cli->args.average, weights[cli->args.weights], cli->args.output));
}

int command_convert(struct cli *cli)
{
    enum output_kind kind;
    char path[4200];
    snprintf(path, sizeof path, "%s/", cli->args.output); /* a slash at the end makes any name one of a folder */
    CLI_TRY(output_check(cli, "output", path, OUTPUT_FOLDER, &kind));
    CLI_TRY(cli_open_model(cli));
    struct output folder = {.cli = cli, .path = cli->args.output, .kind = OUTPUT_FOLDER};
    CLI_TRY(output_open(&folder));
    int status = save(cli);
    output_close(&folder, status == STATUS_OK);
    progress_end(&cli->progress);
    if (status != STATUS_OK) return status;
    if (cli->args.json) {
        printf("{\"outputs\": [");
        cli_json_string(cli->args.output);
        printf("], \"seconds\": %.3f}\n", cli_elapsed(cli));
    } else {
        printf("%s\n", cli->args.output);
    }
    return STATUS_OK;
}
