#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/json.h"
#include "cli/output.h"

enum { FILE_COUNT = 2, PATH_BYTES = 4200 };
static const char *const file_names[FILE_COUNT] = {"config.json", "model.safetensors"};

/* An untrained model must not take the place of one that somebody trained. */
static int check_folder(struct cli *cli, const char *folder)
{
    enum output_kind kind;
    struct stat st;
    char path[PATH_BYTES];
    if (stat(folder, &st) == 0 && !S_ISDIR(st.st_mode)) return cli_fail(cli, "'%s' exists and is not a folder", folder);
    snprintf(path, sizeof path, "%s/", folder); /* a slash at the end makes any name one of a folder */
    CLI_TRY(output_check(cli, "output", path, OUTPUT_FOLDER, &kind));
    for (int i = 0; i < FILE_COUNT; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, file_names[i]);
        if (stat(path, &st) == 0)
            return cli_fail(cli, "the folder '%s' already holds %s; choose another, or remove it first", folder, file_names[i]);
    }
    return STATUS_OK;
}

/* A model is two files in a folder: all of it is there in the end, or none. */
static int save(struct cli *cli)
{
    struct output folder = {.cli = cli, .path = cli->args.output, .kind = OUTPUT_FOLDER};
    CLI_TRY(output_open(&folder));
    int status = cli_library(cli, aim_model_save(cli->model, folder.path));
    for (int i = 0; i < FILE_COUNT && status != STATUS_OK; i++) {
        char path[PATH_BYTES];
        snprintf(path, sizeof path, "%s/%s", folder.path, file_names[i]);
        unlink(path);
    }
    output_close(&folder, status == STATUS_OK);
    return status;
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
    CLI_TRY(cli_check_cancelled(cli));
    CLI_TRY(save(cli));
    progress_end(&cli->progress);
    report(cli, preset);
    return STATUS_OK;
}
