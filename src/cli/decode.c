#include <stdio.h>
#include <stdlib.h>

#include "cli/json.h"
#include "cli/output.h"
#include "cli/pictures.h"

struct decoding {
    aim_array codes;
    int64_t count, tokens, chunk;
    int side, size; /* codes and pixels along one side */
    float *pixels;
    aim_image image;
    enum output_kind kind;
    struct output output; /* pictures */
    aim_array_file *raw;  /* or numbers */
};

static int read_codes(struct cli *cli, struct decoding *d)
{
    enum { LARGEST_SIDE = 4096 };
    const char *path = cli->args.inputs[0];
    CLI_TRY(cli_codes_read(cli, path, &d->codes, &d->count, &d->tokens));
    while (d->side < LARGEST_SIDE && (int64_t)d->side * d->side < d->tokens) d->side++;
    if ((int64_t)d->side * d->side != d->tokens)
        return cli_fail(cli, "%s: %lld codes per picture make no square", path, (long long)d->tokens);
    CLI_TRY(cli_codes_check(cli, path, d->codes.data, d->count, d->tokens, cli->info.codebook_size));
    return output_check_count(cli, d->kind, d->count, 1);
}

static int prepare(struct cli *cli, struct decoding *d)
{
    d->size = d->side * cli->info.downsample;
    d->chunk = cli_picture_chunk(d->size, d->count);
    d->pixels = cli_alloc(cli, (size_t)d->chunk * (size_t)d->size * (size_t)d->size * 3, sizeof *d->pixels);
    if (!d->pixels) return STATUS_FAILED;
    return cli_library(cli, aim_image_create(cli->ctx, d->size, d->size, &d->image));
}

static int open_output(struct cli *cli, struct decoding *d, const aim_text *text)
{
    const int64_t shape[4] = {d->count, 3, d->size, d->size};
    if (d->kind == OUTPUT_NPY) {
        CLI_TRY(cli_library(cli, aim_array_file_create(cli->ctx, cli->args.output, &d->raw)));
        return cli_library(cli, aim_array_file_begin(d->raw, NULL, AIM_F32, 4, shape));
    }
    d->output = (struct output){.cli = cli,
                                .path = cli->args.output,
                                .kind = d->kind,
                                .count = d->count,
                                .size = d->size,
                                .text = text,
                                .text_count = OUTPUT_TEXTS};
    return output_open(&d->output);
}

static int decode_chunk(struct cli *cli, struct decoding *d, int64_t first, int64_t n)
{
    size_t values = (size_t)d->size * (size_t)d->size * 3;
    const int64_t *codes = (const int64_t *)d->codes.data + first * d->tokens;
    CLI_TRY(cli_library(cli, aim_decode(cli->model, codes, n, d->side, d->side, d->pixels)));
    if (d->raw) return cli_library(cli, aim_array_file_write(d->raw, d->pixels, (size_t)n * values * sizeof *d->pixels));
    for (int64_t i = 0; i < n; i++) {
        aim_image_from_float(d->pixels + (size_t)i * values, &d->image);
        CLI_TRY(cli_check_cancelled(cli));
        CLI_TRY(output_picture(&d->output, &d->image));
    }
    return STATUS_OK;
}

static int decode_all(struct cli *cli, struct decoding *d)
{
    progress_begin(&cli->progress, "pictures", d->count);
    for (int64_t first = 0; first < d->count; first += d->chunk) {
        int64_t n = d->count - first < d->chunk ? d->count - first : d->chunk;
        CLI_TRY(decode_chunk(cli, d, first, n));
        progress_step(&cli->progress, first + n);
    }
    progress_end(&cli->progress);
    return STATUS_OK;
}

static int close_output(struct cli *cli, struct decoding *d, int status)
{
    if (d->kind == OUTPUT_NPY) {
        aim_status closed = aim_array_file_close(d->raw, status == STATUS_OK);
        return status == STATUS_OK ? cli_library(cli, closed) : status;
    }
    int closed = output_close(&d->output, status == STATUS_OK);
    return status == STATUS_OK ? closed : status;
}

static void report(const struct cli *cli, const struct decoding *d)
{
    if (!cli->args.json) {
        printf("%s\n", cli->args.output);
        return;
    }
    printf("{\"outputs\": [");
    cli_json_string(cli->args.output);
    printf("], \"pictures\": %lld, \"size\": %d, \"seconds\": ", (long long)d->count, d->size);
    printf("%.3f", cli_elapsed(cli));
    printf("}\n");
}

static int decode(struct cli *cli, struct decoding *d)
{
    const int kinds = OUTPUT_PNG | OUTPUT_FOLDER | OUTPUT_NPZ | OUTPUT_NPY;
    aim_text text[OUTPUT_TEXTS];
    char name[256];
    CLI_TRY(output_check(cli, "output", cli->args.output, kinds, &d->kind));
    CLI_TRY(output_check_input(cli, cli->args.output, cli->args.inputs[0]));
    CLI_TRY(cli_open_model(cli));
    CLI_TRY(cli_need_tokenizer(cli));
    CLI_TRY(read_codes(cli, d));
    CLI_TRY(prepare(cli, d));
    output_common_text(cli, text, name, sizeof name);
    int status = open_output(cli, d, text);
    if (status == STATUS_OK) status = decode_all(cli, d);
    status = close_output(cli, d, status);
    if (status == STATUS_OK) report(cli, d);
    return status;
}

int command_decode(struct cli *cli)
{
    struct decoding d = {0};
    int status = decode(cli, &d);
    aim_array_free(&d.codes);
    aim_image_free(&d.image);
    free(d.pixels);
    return status;
}
