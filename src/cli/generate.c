#include <stdio.h>
#include <stdlib.h>

#include "cli/classes.h"
#include "cli/json.h"
#include "cli/output.h"

/* One run: what is painted, and where it goes. */
struct generation {
    struct cli *cli;
    int64_t *labels, count;
    const char *path; /* of the pictures; NULL = codes alone */
    struct output output;
    aim_array_file *codes;
    int status; /* of the picture callback */
};

static int check_arguments(struct cli *cli, struct generation *g)
{
    const struct arguments *a = &cli->args;
    enum output_kind codes_kind;
    g->path = a->output ? a->output : a->codes_out ? NULL : "aim.png";
    if (g->path) CLI_TRY(output_check(cli, "output", g->path, OUTPUT_PNG | OUTPUT_FOLDER | OUTPUT_NPZ, &g->output.kind));
    CLI_TRY(output_check_count(cli, g->output.kind, a->count, 1));
    if (a->codes_out) CLI_TRY(output_check(cli, "codes-out", a->codes_out, OUTPUT_NPY, &codes_kind));
    return STATUS_OK;
}

/* One label per picture: the classes given, or all of them, taken in turn. */
static int choose_labels(struct cli *cli, struct generation *g)
{
    enum { DEFAULT_COUNT = 16 };
    int64_t *classes = NULL, given = cli->info.num_classes;
    if (cli->args.classes) CLI_TRY(classes_parse(cli, cli->args.classes, &classes, &given));
    g->count = cli->args.count ? cli->args.count : given;
    if (!cli->args.count && !classes && g->count > DEFAULT_COUNT) g->count = DEFAULT_COUNT;
    g->labels = cli_alloc(cli, (size_t)g->count, sizeof *g->labels);
    for (int64_t i = 0; g->labels && i < g->count; i++) g->labels[i] = classes ? classes[i % given] : i % given;
    free(classes);
    if (!g->labels) return STATUS_FAILED;
    return output_check_count(cli, g->output.kind, g->count, 1);
}

static int on_picture(void *user, int64_t index, int64_t label, const int64_t *codes, const aim_image *image)
{
    struct generation *g = user;
    size_t bytes = (size_t)g->cli->info.num_tokens * sizeof *codes;
    (void)index;
    (void)label;
    if (g->codes) g->status = cli_library(g->cli, aim_array_file_write(g->codes, codes, bytes));
    if (g->path && g->status == STATUS_OK) g->status = output_picture(&g->output, image);
    return g->status != STATUS_OK;
}

/* The settings as text for PNG files. */
struct settings {
    aim_text text[OUTPUT_TEXTS + 5];
    char model[256], seed[32], cfg[32], top_k[32], top_p[32], temperature[32];
};

static void spell_settings(const struct cli *cli, struct settings *s)
{
    const struct arguments *a = &cli->args;
    size_t n = output_common_text(cli, s->text, s->model, sizeof s->model);
    snprintf(s->seed, sizeof s->seed, "%llu", (unsigned long long)a->seed);
    snprintf(s->top_k, sizeof s->top_k, "%lld", (long long)a->top_k);
    cli_json_format_number(a->cfg, s->cfg);
    cli_json_format_number(a->top_p, s->top_p);
    cli_json_format_number(a->temperature, s->temperature);
    s->text[n++] = (aim_text){"aim.seed", s->seed};
    s->text[n++] = (aim_text){"aim.cfg", s->cfg};
    s->text[n++] = (aim_text){"aim.top_k", s->top_k};
    s->text[n++] = (aim_text){"aim.top_p", s->top_p};
    s->text[n++] = (aim_text){"aim.temperature", s->temperature};
}

static int open_outputs(struct cli *cli, struct generation *g, const struct settings *s)
{
    const int64_t shape[2] = {g->count, cli->info.num_tokens};
    g->output.cli = cli;
    g->output.path = g->path;
    g->output.count = g->count;
    g->output.size = cli->info.image_size;
    g->output.labels = g->labels;
    g->output.captions = cli->args.captions;
    g->output.text = s->text;
    g->output.text_count = sizeof s->text / sizeof *s->text;
    if (g->path) CLI_TRY(output_open(&g->output));
    if (!cli->args.codes_out) return STATUS_OK;
    CLI_TRY(cli_library(cli, aim_array_file_create(cli->ctx, cli->args.codes_out, &g->codes)));
    return cli_library(cli, aim_array_file_begin(g->codes, NULL, AIM_I64, 2, shape));
}

static int paint(struct cli *cli, struct generation *g)
{
    const struct arguments *a = &cli->args;
    aim_generate_options how = aim_generate_defaults();
    how.cfg = a->cfg;
    how.temperature = a->temperature;
    how.top_p = a->top_p;
    how.top_k = (int)a->top_k;
    how.seed = a->seed;
    how.batch = (int)(a->batch < g->count ? a->batch : g->count);
    how.picture = on_picture;
    how.user = g;
    how.codes_only = !g->path;
    cli->progress.pictures = g->count;
    aim_status status = aim_generate(cli->model, g->labels, g->count, &how, NULL, NULL);
    progress_end(&cli->progress);
    if (g->status != STATUS_OK) return g->status; /* its line has been printed */
    return cli_library(cli, status);
}

/* Closes both outputs; the codes are kept only when the pictures could be. */
static int close_outputs(struct cli *cli, struct generation *g, int status)
{
    int closed = g->path ? output_close(&g->output, status == STATUS_OK) : STATUS_OK;
    if (status == STATUS_OK) status = closed;
    aim_status codes_closed = aim_array_file_close(g->codes, status == STATUS_OK);
    if (status == STATUS_OK) status = cli_library(cli, codes_closed);
    return status;
}

static void report(const struct cli *cli, const struct generation *g)
{
    const char *const outputs[] = {g->path, cli->args.codes_out};
    bool first = true;
    if (cli->args.json) printf("{\"outputs\": [");
    for (size_t i = 0; i < sizeof outputs / sizeof *outputs; i++) {
        if (!outputs[i]) continue;
        if (cli->args.json) {
            if (!first) printf(", ");
            cli_json_string(outputs[i]);
        } else {
            printf("%s\n", outputs[i]);
        }
        first = false;
    }
    if (!cli->args.json) return;
    printf("], \"pictures\": %lld, \"seed\": %llu, \"seconds\": ", (long long)g->count, (unsigned long long)cli->args.seed);
    printf("%.3f", cli_elapsed(cli));
    printf(", \"labels\": ");
    cli_json_integers(g->labels, g->count);
    printf("}\n");
}

int command_generate(struct cli *cli)
{
    struct generation g = {.cli = cli};
    struct settings settings;
    CLI_TRY(check_arguments(cli, &g));
    CLI_TRY(cli_open_model(cli));
    CLI_TRY(cli_need_generator(cli));
    if (g.path) CLI_TRY(cli_need_tokenizer(cli));
    spell_settings(cli, &settings);
    int status = choose_labels(cli, &g);
    if (status == STATUS_OK) {
        status = open_outputs(cli, &g, &settings);
        if (status == STATUS_OK) status = paint(cli, &g);
        status = close_outputs(cli, &g, status);
    }
    if (status == STATUS_OK) report(cli, &g);
    free(g.labels);
    return status;
}
