/* The program `aim`: finds the command, runs it, and makes sure that what it printed has arrived. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"

/*
 * A standard stream that the parent closed would lend its number to the next file opened, and messages would land in
 * it. Read-only, so that a write to a closed stdout is still an error.
 */
static bool occupy_standard_streams(void)
{
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", fd == 2 ? O_WRONLY : O_RDONLY) < 0) return false;
    return true;
}

static int run_command(struct cli *cli, int argc, char **argv)
{
    CLI_TRY(options_parse(cli, argc, argv));
    if (cli->args.help) {
        help_command(cli->command);
        return STATUS_OK;
    }
    cli->progress.quiet = cli->args.quiet;
    cli->progress.bar = !cli->args.quiet && isatty(STDERR_FILENO);
    cli->started = progress_now();
    return cli->command->run(cli);
}

/* The command that argv begins with; its name has one word or two ("train ar"). */
static const struct command *find_command(int argc, char **argv, int *words)
{
    char name[64];
    if (argc > 2 && snprintf(name, sizeof name, "%s %s", argv[1], argv[2]) < (int)sizeof name) {
        const struct command *command = command_find(name);
        *words = 2;
        if (command) return command;
    }
    *words = 1;
    return command_find(argv[1]);
}

static int dispatch(struct cli *cli, int argc, char **argv)
{
    if (argc < 2) return cli_usage(cli, "no command given");
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        help_program();
        return STATUS_OK;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("aim %s\n", aim_version());
        return STATUS_OK;
    }
    if (argv[1][0] == '-') return cli_usage(cli, "a command must come before '%s'", argv[1]);
    int words = 1;
    cli->command = find_command(argc, argv, &words);
    if (cli->command) return run_command(cli, argc - 1 - words, argv + 1 + words);
    if (strcmp(argv[1], "train") == 0) return cli_usage(cli, "train what? 'aim train tokenizer' and 'aim train ar' are there");
    const char *near = command_suggest(argv[1]);
    if (near) return cli_usage(cli, "unknown command '%s'; did you mean '%s'?", argv[1], near);
    return cli_usage(cli, "unknown command '%s'", argv[1]);
}

/* A full disk or a closed pipe shows when the last bytes leave at the latest. */
static int close_stdout(struct cli *cli, int status)
{
    bool failed = ferror(stdout) != 0;
    errno = 0;
    failed |= fclose(stdout) != 0;
    if (!failed || status != STATUS_OK) return status;
    return cli_fail(cli, "cannot write to standard output: %s", errno ? strerror(errno) : "an earlier write failed");
}

int main(int argc, char **argv)
{
    struct cli cli = {0};
    if (!occupy_standard_streams()) return STATUS_FAILED;
    progress_catch_signals();
    int status = dispatch(&cli, argc, argv);
    progress_end(&cli.progress);
    cli_close(&cli);
    return close_stdout(&cli, status);
}
