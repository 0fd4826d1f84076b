#include "cli/cli.h"

#include <ctype.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int cli_usage(struct cli *cli, const char *format, ...)
{
    const char *name = cli->command ? cli->command->name : NULL;
    char message[1024], prefix[64], advice[64];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    snprintf(prefix, sizeof prefix, "aim%s%s: ", name ? " " : "", name ? name : "");
    snprintf(advice, sizeof advice, " (try 'aim%s%s --help')", name ? " " : "", name ? name : "");
    progress_say(&cli->progress, prefix, message, advice);
    return STATUS_USAGE;
}

int cli_fail(struct cli *cli, const char *format, ...)
{
    char message[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);
    progress_say(&cli->progress, "aim: ", message, "");
    return STATUS_FAILED;
}

int cli_check_cancelled(struct cli *cli)
{
    int number = progress_signal();
    if (!number) return STATUS_OK;
    progress_say(&cli->progress, "aim: ", "cancelled", "");
    return 128 + number;
}

int cli_library(struct cli *cli, aim_status status)
{
    if (status == AIM_OK) return STATUS_OK;
    if (status == AIM_ERR_CANCELLED) CLI_TRY(cli_check_cancelled(cli));
    return cli_fail(cli, "%s", aim_last_error(cli->ctx));
}

void *cli_alloc(struct cli *cli, size_t count, size_t size)
{
    void *block = calloc(count ? count : 1, size);
    if (!block) cli_fail(cli, "not enough memory for %zu x %zu bytes", count, size);
    return block;
}

double cli_elapsed(const struct cli *cli)
{
    return progress_now() - cli->started;
}

/* "<folder of the program>/<relative>" when that is a folder. */
static bool beside_program(const char *relative, char *out, size_t size)
{
    char self[PATH_MAX];
    struct stat st;
    ssize_t length = readlink("/proc/self/exe", self, sizeof self - 1);
    if (length <= 0) return false;
    self[length] = '\0';
    char *slash = strrchr(self, '/');
    if (slash) *slash = '\0';
    int wrote = snprintf(out, size, "%s/%s", self, relative);
    return wrote > 0 && (size_t)wrote < size && stat(out, &st) == 0 && S_ISDIR(st.st_mode);
}

static const char *default_model(char *buffer, size_t size)
{
    const char *from_environment = getenv("AIM_MODEL");
    if (from_environment && *from_environment) return from_environment;
    static const char *const places[] = {
        "../models/demo", "../../models/demo", /* a checkout's build/ and build/NAME/ */
        "../share/aim/models/demo",            /* installed */
    };
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++)
        if (beside_program(places[i], buffer, size)) return buffer;
    return NULL;
}

/*
 * A model named explicitly has to be there before anything starts. A tokenizer on its own is a whole model for the
 * commands that need nothing else.
 */
static int model_paths(struct cli *cli, const char **model, const char **tokenizer, char *buffer, size_t size)
{
    const int tokenizer_commands = FOR_ENCODE | FOR_DECODE | FOR_RECONSTRUCT | FOR_INFO | FOR_EXTRACT;
    *model = cli->args.model;
    *tokenizer = cli->args.tokenizer;
    if (!*model && *tokenizer && ((int)cli->command->bit & tokenizer_commands)) {
        *model = *tokenizer;
        *tokenizer = NULL;
    }
    if (!*model) *model = default_model(buffer, size);
    if (!*model)
        return cli_usage(cli, "no model: pass -m PATH (a folder with config.json and model.safetensors, a .safetensors "
                              "file or a torch file), or set AIM_MODEL");
    return STATUS_OK;
}

int cli_open_context(struct cli *cli)
{
    aim_context_options options = aim_context_defaults();
    options.device = cli->args.device;
    options.cpu = cli->args.cpu;
    options.threads = (int)cli->args.threads;
    options.log = progress_log;
    options.progress = progress_update;
    options.user = &cli->progress;
    aim_status status = aim_context_create(&options, &cli->ctx);
    if (status == AIM_ERR_ARGUMENT) return cli_usage(cli, "%s", aim_last_error(cli->ctx));
    return cli_library(cli, status);
}

int cli_open_model(struct cli *cli)
{
    const aim_weights weights[] = {AIM_WEIGHTS_AUTO, AIM_WEIGHTS_F32, AIM_WEIGHTS_BF16, AIM_WEIGHTS_Q8}; /* as in the table */
    char buffer[PATH_MAX + 64];
    const char *path, *tokenizer;
    CLI_TRY(model_paths(cli, &path, &tokenizer, buffer, sizeof buffer));
    CLI_TRY(cli_open_context(cli));
    aim_model_options options = aim_model_defaults(path);
    options.tokenizer = tokenizer;
    options.weights = weights[cli->args.weights];
    options.pos_offset = cli->args.pos_offset - 1; /* auto, 0, 1 -> -1, 0, 1 */
    CLI_TRY(cli_library(cli, aim_model_load(cli->ctx, &options, &cli->model)));
    progress_end(&cli->progress);
    aim_model_describe(cli->model, &cli->info);
    return cli_check_cancelled(cli);
}

void cli_close(struct cli *cli)
{
    aim_model_free(cli->model);
    aim_context_free(cli->ctx);
    cli->model = NULL;
    cli->ctx = NULL;
}

int cli_need_generator(struct cli *cli)
{
    if (cli->info.has_generator) return STATUS_OK;
    return cli_fail(cli,
                    "the model holds a tokenizer alone, but '%s' needs the generator (stage 2): pass its folder or file "
                    "with -m",
                    cli->command->name);
}

int cli_need_tokenizer(struct cli *cli)
{
    if (cli->info.has_tokenizer) return STATUS_OK;
    return cli_fail(cli, "the model holds no tokenizer, but '%s' needs one: pass its file with --tokenizer",
                    cli->command->name);
}

void cli_model_name(const struct cli *cli, char *name, size_t size)
{
    char buffer[PATH_MAX + 64], full[PATH_MAX];
    const char *path = cli->args.model ? cli->args.model : cli->args.tokenizer;
    if (!path) path = default_model(buffer, sizeof buffer);
    if (path && realpath(path, full)) path = strrchr(full, '/') + 1;
    snprintf(name, size, "%s", path ? path : "");
}

int cli_picture_size(struct cli *cli, int *size)
{
    int step = cli->info.downsample;
    *size = cli->args.size ? (int)cli->args.size : cli->info.image_size ? cli->info.image_size : 256;
    if (step > 0 && *size % step != 0)
        return cli_usage(cli, "--size must be a multiple of %d, the pixels per code of this tokenizer, not %d", step, *size);
    return STATUS_OK;
}

int64_t cli_picture_chunk(int size, int64_t count)
{
    const int64_t pixels = 4 * 256 * 256;
    int64_t chunk = pixels / ((int64_t)size * size);
    if (chunk > 64) chunk = 64;
    if (chunk > count) chunk = count;
    return chunk > 1 ? chunk : 1;
}

bool cli_same_file(const char *a, const char *b)
{
    struct stat sa, sb;
    return stat(a, &sa) == 0 && stat(b, &sb) == 0 && sa.st_dev == sb.st_dev && sa.st_ino == sb.st_ino;
}

size_t cli_distance(const char *a, const char *b)
{
    enum { LONGEST = 64 };
    size_t m = strlen(a), n = strlen(b), d[LONGEST + 1][LONGEST + 1];
    if (m > LONGEST || n > LONGEST) return SIZE_MAX;
    for (size_t i = 0; i <= m; i++) {
        for (size_t j = 0; j <= n; j++) {
            if (i == 0 || j == 0) {
                d[i][j] = i + j;
                continue;
            }
            int x = tolower((unsigned char)a[i - 1]), y = tolower((unsigned char)b[j - 1]);
            size_t best = d[i - 1][j - 1] + (x != y);
            if (d[i - 1][j] + 1 < best) best = d[i - 1][j] + 1;
            if (d[i][j - 1] + 1 < best) best = d[i][j - 1] + 1;
            bool swapped = i > 1 && j > 1 && x == tolower((unsigned char)b[j - 2]) && y == tolower((unsigned char)a[i - 2]);
            if (swapped && d[i - 2][j - 2] + 1 < best) best = d[i - 2][j - 2] + 1;
            d[i][j] = best;
        }
    }
    return d[m][n];
}
