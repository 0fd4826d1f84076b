#include <stdio.h>

#include "cli/cli.h"
#include "cli/json.h"

enum { MOST_BATCHES = 4 };

static void print_table(const struct cli *cli, const char *preset, const aim_bench_result *results, int count)
{
    printf("%s, guidance on, random weights; %s\n", preset, aim_context_device(cli->ctx));
    printf("memory copy %.0f GB/s, products %.3g TFLOP/s\n\n", 1e-9 * results[0].bytes_per_second,
           1e-12 * results[0].operations_per_second);
    printf("%6s %9s %12s %12s %10s %10s %9s\n", "batch", "ms/token", "pictures/s", "pictures/s", "memory", "products", "GB");
    printf("%6s %9s %12s %12s %10s %10s %9s\n", "", "", "codes alone", "decoded", "share", "share", "");
    for (int i = 0; i < count; i++) {
        const aim_bench_result *r = &results[i];
        if (r->token_ms == 0) {
            printf("%6d  does not fit in memory\n", r->batch);
            continue;
        }
        double step = 1e-3 * r->token_ms;
        printf("%6d %9.3f %12.2f %12.2f %9.0f%% %9.1f%% %9.2f\n", r->batch, r->token_ms, r->codes_per_second,
               r->pictures_per_second, 100 * r->bytes / step / r->bytes_per_second,
               100 * r->operations / step / r->operations_per_second, 1e-9 * (double)r->memory);
    }
}

static void print_number(const char *name, double value)
{
    printf(", \"%s\": ", name);
    cli_json_number(value);
}

static void print_json(const struct cli *cli, const char *preset, const aim_bench_result *results, int count)
{
    printf("{\"preset\": ");
    cli_json_string(preset);
    printf(", \"device\": ");
    cli_json_string(aim_context_device(cli->ctx));
    print_number("copy_bytes_per_second", results[0].bytes_per_second);
    print_number("product_operations_per_second", results[0].operations_per_second);
    printf(", \"batches\": [");
    for (int i = 0; i < count; i++) {
        const aim_bench_result *r = &results[i];
        printf("%s{\"batch\": %d", i ? ", " : "", r->batch);
        print_number("token_ms", r->token_ms);
        print_number("codes_per_second", r->codes_per_second);
        print_number("pictures_per_second", r->pictures_per_second);
        print_number("token_bytes", r->bytes);
        print_number("token_operations", r->operations);
        print_number("memory", (double)r->memory);
        printf("}");
    }
    printf("]}\n");
}

int command_bench(struct cli *cli)
{
    static const int usual[MOST_BATCHES] = {1, 8, 64, 256};
    static const aim_weights weights[] = {AIM_WEIGHTS_AUTO, AIM_WEIGHTS_F32, AIM_WEIGHTS_BF16};
    int batches[MOST_BATCHES], count = cli->args.batch ? 1 : MOST_BATCHES;
    char preset[32];
    aim_bench_result results[MOST_BATCHES];
    for (int i = 0; i < count; i++) batches[i] = cli->args.batch ? (int)cli->args.batch : usual[i];
    options_choice("preset", cli->args.preset, preset, sizeof preset);
    CLI_TRY(cli_open_context(cli));
    CLI_TRY(cli_library(cli, aim_bench(cli->ctx, preset, weights[cli->args.weights], batches, count, results)));
    progress_end(&cli->progress);
    if (cli->args.json)
        print_json(cli, preset, results, count);
    else
        print_table(cli, preset, results, count);
    return STATUS_OK;
}
