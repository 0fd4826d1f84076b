#include <stdio.h>
#include <sys/stat.h>

#include "cli/json.h"
#include "cli/output.h"

/* An untrained model must not take the place of one that somebody trained. */
static int check_folder(struct cli *cli, const char *folder)
{
    const char *const names[] = {"config.json", "model.safetensors"};
    enum output_kind kind;
    struct stat st;
    if (stat(folder, &st) == 0 && !S_ISDIR(st.st_mode)) return cli_fail(cli, "'%s' exists and is not a folder", folder);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[4200];
        int length = snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        if (length > 0 && (size_t)length < sizeof path && stat(path, &st) == 0)
            return cli_fail(cli, "the folder '%s' already holds %s; choose another, or remove it first", folder, names[i]);
    }
    /* A slash at the end makes any name one of a folder. */
    char named[4200];
    snprintf(named, sizeof named, "%s/", folder);
    return output_check(cli, "output", named, OUTPUT_FOLDER, &kind);
}

static void report(const struct cli *cli, const char *preset)
{
    if (!cli->args.json) {
        printf("%s\n", cli->args.output);
        return;
    }
    printf("{\"outputs\": [");
    cli_json_string(cli->args.output);
    printf("], \"preset\": ");
    cli_json_string(preset);
    printf(", \"seed\": %llu, \"seconds\": ", (unsigned long long)cli->args.seed);
    printf("%.3f", cli_elapsed(cli));
    printf("}\n");
}

int command_init(struct cli *cli)
{
    char preset[32];
    options_choice("preset", cli->args.preset, preset, sizeof preset);
    CLI_TRY(check_folder(cli, cli->args.output));
    CLI_TRY(cli_open_context(cli));
    CLI_TRY(cli_library(cli, aim_model_init(cli->ctx, preset, cli->args.seed, &cli->model)));
    CLI_TRY(cli_library(cli, aim_model_save(cli->model, cli->args.output)));
    progress_end(&cli->progress);
    report(cli, preset);
    return STATUS_OK;
}
