#include <stdio.h>
#include <stdlib.h>

#include "cli/json.h"
#include "cli/output.h"
#include "cli/pictures.h"

struct encoding {
    struct picture_list pictures;
    int size;
    int64_t tokens, chunk;
    float *pixels;
    int64_t *codes;
    aim_array_file *file;
};

static int check_arguments(struct cli *cli, struct encoding *e)
{
    enum output_kind kind;
    CLI_TRY(output_check(cli, "output", cli->args.output, OUTPUT_NPY, &kind));
    CLI_TRY(pictures_collect(cli, &e->pictures));
    for (int64_t i = 0; i < e->pictures.count; i++) CLI_TRY(output_check_input(cli, cli->args.output, e->pictures.paths[i]));
    return STATUS_OK;
}

static int prepare(struct cli *cli, struct encoding *e)
{
    CLI_TRY(cli_picture_size(cli, &e->size));
    int64_t side = e->size / cli->info.downsample;
    size_t values = (size_t)e->size * (size_t)e->size * 3;
    e->tokens = side * side;
    e->chunk = cli_picture_chunk(e->size, e->pictures.count);
    e->pixels = cli_alloc(cli, (size_t)e->chunk * values, sizeof *e->pixels);
    e->codes = e->pixels ? cli_alloc(cli, (size_t)(e->chunk * e->tokens), sizeof *e->codes) : NULL;
    return e->codes ? STATUS_OK : STATUS_FAILED;
}

static int encode_chunk(struct cli *cli, struct encoding *e, int64_t first, int64_t n)
{
    size_t values = (size_t)e->size * (size_t)e->size * 3;
    for (int64_t i = 0; i < n; i++) {
        aim_image image = {0};
        CLI_TRY(pictures_read(cli, e->pictures.paths[first + i], e->size, &image));
        aim_image_to_float(&image, e->pixels + (size_t)i * values);
        aim_image_free(&image);
    }
    CLI_TRY(cli_library(cli, aim_encode(cli->model, e->pixels, n, e->size, e->size, e->codes)));
    return cli_library(cli, aim_array_file_write(e->file, e->codes, (size_t)(n * e->tokens) * sizeof *e->codes));
}

static int encode_all(struct cli *cli, struct encoding *e)
{
    const int64_t total = e->pictures.count, shape[2] = {total, e->tokens};
    CLI_TRY(cli_library(cli, aim_array_file_create(cli->ctx, cli->args.output, &e->file)));
    CLI_TRY(cli_library(cli, aim_array_file_begin(e->file, NULL, AIM_I64, 2, shape)));
    progress_begin(&cli->progress, "pictures", total);
    for (int64_t first = 0; first < total; first += e->chunk) {
        int64_t n = total - first < e->chunk ? total - first : e->chunk;
        CLI_TRY(encode_chunk(cli, e, first, n));
        progress_step(&cli->progress, first + n);
    }
    progress_end(&cli->progress);
    return STATUS_OK;
}

static void report(const struct cli *cli, const struct encoding *e)
{
    if (!cli->args.json) {
        printf("%s\n", cli->args.output);
        return;
    }
    printf("{\"outputs\": [");
    cli_json_string(cli->args.output);
    printf("], \"pictures\": %lld, \"tokens\": %lld, \"size\": %d, \"seconds\": ", (long long)e->pictures.count,
           (long long)e->tokens, e->size);
    printf("%.3f", cli_elapsed(cli));
    printf("}\n");
}

static int encode(struct cli *cli, struct encoding *e)
{
    CLI_TRY(check_arguments(cli, e));
    CLI_TRY(cli_open_model(cli));
    CLI_TRY(cli_need_tokenizer(cli));
    CLI_TRY(prepare(cli, e));
    int status = encode_all(cli, e);
    aim_status closed = aim_array_file_close(e->file, status == STATUS_OK);
    if (status == STATUS_OK) status = cli_library(cli, closed);
    if (status == STATUS_OK) report(cli, e);
    return status;
}

int command_encode(struct cli *cli)
{
    struct encoding e = {0};
    int status = encode(cli, &e);
    pictures_free(&e.pictures);
    free(e.pixels);
    free(e.codes);
    return status;
}
