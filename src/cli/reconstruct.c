#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/json.h"
#include "cli/output.h"
#include "cli/pictures.h"

struct measure {
    double psnr, ssim, ssim_llamagen;
};

struct reconstruction {
    struct picture_list pictures;
    struct measure *measures; /* one per picture */
    int size;
    int64_t tokens, chunk;
    float *pixels;
    int64_t *codes;
    aim_image *originals, result; /* a chunk of originals */
    struct output output;
};

/* In a folder the results are called 000000.png and so on, as the originals may be. */
static int check_folder(struct cli *cli, const char *picture)
{
    const char *slash = strrchr(picture, '/');
    char *folder = slash ? strndup(picture, (size_t)(slash - picture) + 1) : strdup(".");
    if (!folder) return cli_fail(cli, "not enough memory for a path");
    bool same = cli_same_file(folder, cli->args.output);
    free(folder);
    if (same) return cli_usage(cli, "the folder '%s' holds the originals; choose another for the results", cli->args.output);
    return STATUS_OK;
}

static int check_arguments(struct cli *cli, struct reconstruction *r)
{
    const char *path = cli->args.output;
    CLI_TRY(output_check(cli, "output", path, OUTPUT_PNG | OUTPUT_FOLDER | OUTPUT_NPZ, &r->output.kind));
    CLI_TRY(pictures_collect(cli, &r->pictures));
    for (int64_t i = 0; i < r->pictures.count; i++) {
        CLI_TRY(output_check_input(cli, path, r->pictures.paths[i]));
        if (r->output.kind == OUTPUT_FOLDER) CLI_TRY(check_folder(cli, r->pictures.paths[i]));
    }
    return output_check_count(cli, r->output.kind, r->pictures.count, 2);
}

static int prepare(struct cli *cli, struct reconstruction *r)
{
    CLI_TRY(cli_picture_size(cli, &r->size));
    int64_t side = r->size / cli->info.downsample;
    size_t values = (size_t)r->size * (size_t)r->size * 3;
    r->tokens = side * side;
    r->chunk = cli_picture_chunk(r->size, r->pictures.count);
    r->measures = cli_alloc(cli, (size_t)r->pictures.count, sizeof *r->measures);
    if (r->measures) r->originals = cli_alloc(cli, (size_t)r->chunk, sizeof *r->originals);
    if (r->originals) r->pixels = cli_alloc(cli, (size_t)r->chunk * values, sizeof *r->pixels);
    if (r->pixels) r->codes = cli_alloc(cli, (size_t)(r->chunk * r->tokens), sizeof *r->codes);
    if (!r->codes) return STATUS_FAILED;
    return cli_library(cli, aim_image_create(cli->ctx, r->size, r->size, &r->result));
}

static int compare(struct cli *cli, struct reconstruction *r, const aim_image *original, struct measure *m)
{
    double psnr;
    CLI_TRY(cli_library(cli, aim_image_compare(cli->ctx, original, &r->result, 1, &m->psnr, &m->ssim)));
    return cli_library(cli, aim_image_compare(cli->ctx, original, &r->result, 2, &psnr, &m->ssim_llamagen));
}

static int run_chunk(struct cli *cli, struct reconstruction *r, int64_t first, int64_t n)
{
    int side = r->size / cli->info.downsample;
    size_t values = (size_t)r->size * (size_t)r->size * 3;
    for (int64_t i = 0; i < n; i++) {
        aim_image_free(&r->originals[i]);
        CLI_TRY(pictures_read(cli, r->pictures.paths[first + i], r->size, &r->originals[i]));
        aim_image_to_float(&r->originals[i], r->pixels + (size_t)i * values);
    }
    CLI_TRY(cli_library(cli, aim_encode(cli->model, r->pixels, n, r->size, r->size, r->codes)));
    CLI_TRY(cli_library(cli, aim_decode(cli->model, r->codes, n, side, side, r->pixels)));
    for (int64_t i = 0; i < n; i++) {
        aim_image_from_float(r->pixels + (size_t)i * values, &r->result);
        CLI_TRY(compare(cli, r, &r->originals[i], &r->measures[first + i]));
        CLI_TRY(output_pair(&r->output, &r->originals[i], &r->result));
    }
    return STATUS_OK;
}

static int run_all(struct cli *cli, struct reconstruction *r, const aim_text *text)
{
    int64_t total = r->pictures.count;
    r->output.cli = cli;
    r->output.path = cli->args.output;
    r->output.count = total;
    r->output.size = r->size;
    r->output.paired = true;
    r->output.text = text;
    r->output.text_count = OUTPUT_TEXTS;
    CLI_TRY(output_open(&r->output));
    progress_begin(&cli->progress, "pictures", total);
    for (int64_t first = 0; first < total; first += r->chunk) {
        int64_t n = total - first < r->chunk ? total - first : r->chunk;
        CLI_TRY(run_chunk(cli, r, first, n));
        progress_step(&cli->progress, first + n);
    }
    progress_end(&cli->progress);
    return STATUS_OK;
}

static struct measure mean_of(const struct reconstruction *r)
{
    struct measure mean = {0, 0, 0};
    double n = (double)r->pictures.count;
    for (int64_t i = 0; i < r->pictures.count; i++) {
        mean.psnr += r->measures[i].psnr / n;
        mean.ssim += r->measures[i].ssim / n;
        mean.ssim_llamagen += r->measures[i].ssim_llamagen / n;
    }
    return mean;
}

static void print_measure_json(const struct measure *m)
{
    printf("\"psnr\": ");
    cli_json_number(m->psnr);
    printf(", \"ssim\": ");
    cli_json_number(m->ssim);
    printf(", \"ssim_llamagen\": ");
    cli_json_number(m->ssim_llamagen);
}

static void report_json(const struct cli *cli, const struct reconstruction *r, const struct measure *mean)
{
    printf("{\"outputs\": [");
    cli_json_string(cli->args.output);
    printf("], \"pictures\": [");
    for (int64_t i = 0; i < r->pictures.count; i++) {
        printf("%s{\"picture\": ", i ? ", " : "");
        cli_json_string(r->pictures.paths[i]);
        printf(", ");
        print_measure_json(&r->measures[i]);
        printf("}");
    }
    printf("], ");
    print_measure_json(mean);
    printf(", \"seconds\": ");
    printf("%.3f", cli_elapsed(cli));
    printf("}\n");
}

static void report(const struct cli *cli, const struct reconstruction *r)
{
    struct measure mean = mean_of(r);
    if (cli->args.json) {
        report_json(cli, r, &mean);
        return;
    }
    for (int64_t i = 0; i < r->pictures.count; i++)
        printf("PSNR %7.4f  SSIM %.6f  %s\n", r->measures[i].psnr, r->measures[i].ssim, r->pictures.paths[i]);
    printf("PSNR %7.4f  SSIM %.6f  mean of %lld\n%s\n", mean.psnr, mean.ssim, (long long)r->pictures.count, cli->args.output);
}

static int reconstruct(struct cli *cli, struct reconstruction *r)
{
    aim_text text[OUTPUT_TEXTS];
    char name[256];
    CLI_TRY(check_arguments(cli, r));
    CLI_TRY(cli_open_model(cli));
    CLI_TRY(cli_need_tokenizer(cli));
    CLI_TRY(prepare(cli, r));
    output_common_text(cli, text, name, sizeof name);
    int status = run_all(cli, r, text);
    int closed = output_close(&r->output, status == STATUS_OK);
    if (status == STATUS_OK) status = closed;
    if (status == STATUS_OK) report(cli, r);
    return status;
}

int command_reconstruct(struct cli *cli)
{
    struct reconstruction r = {0};
    int status = reconstruct(cli, &r);
    for (int64_t i = 0; r.originals && i < r.chunk; i++) aim_image_free(&r.originals[i]);
    aim_image_free(&r.result);
    pictures_free(&r.pictures);
    free(r.originals);
    free(r.measures);
    free(r.pixels);
    free(r.codes);
    return status;
}
