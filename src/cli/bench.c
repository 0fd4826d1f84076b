#include <stdio.h>
#include <string.h>

#include "cli/cli.h"
#include "cli/json.h"

enum { MOST_BATCHES = 4, MOST_PRESETS = 4 };

/* What is measured. The largest batches and models would take a CPU very long. */
struct plan {
    int batches[MOST_BATCHES], batch_count;
    int training; /* pictures of a training step */
    char presets[MOST_PRESETS][32];
    int preset_count;
};

static struct plan make_plan(const struct arguments *a)
{
    static const int usual[MOST_BATCHES] = {1, 8, 64, 256};
    const char *const published[MOST_PRESETS] = {"AiM-B", "AiM-L", "AiM-XL", "AiM-1B"};
    bool host = !a->device || strcmp(a->device, "cpu") == 0;
    struct plan p = {
        .batch_count = host ? 2 : MOST_BATCHES, .training = host ? 1 : 64, .preset_count = host ? 1 : MOST_PRESETS};
    memcpy(p.batches, usual, sizeof usual);
    if (a->batch) {
        p.batches[0] = (int)a->batch;
        p.batch_count = 1;
    }
    for (int i = 0; i < MOST_PRESETS; i++) snprintf(p.presets[i], sizeof p.presets[i], "%s", published[i]);
    if (a->preset_name) {
        snprintf(p.presets[0], sizeof p.presets[0], "%s", a->preset_name);
        p.preset_count = 1;
    }
    return p;
}

/* ------------------------------------------------------------------------------------------------------ a table */

static void print_painting(const aim_bench_result *r)
{
    if (r->token_ms == 0) {
        printf("%6d  does not fit in memory\n", r->batch);
        return;
    }
    double step = 1e-3 * r->token_ms;
    printf("%6d %9.3f %12.2f %12.2f %9.0f%% %9.1f%% %9.2f\n", r->batch, r->token_ms, r->codes_per_second,
           r->pictures_per_second, 100 * r->bytes / step / r->bytes_per_second,
           100 * r->operations / step / r->operations_per_second, 1e-9 * (double)r->memory);
}

static void print_training(const aim_bench_result *r)
{
    if (r->token_ms == 0) {
        printf("training, batch %d: does not fit in memory\n", r->batch);
        return;
    }
    double rate = 1e3 / r->token_ms;
    printf("training, batch %d: %.0f tokens/s, %.1f%% of %.3g TFLOP/s by 6 x parameters x tokens, %.2f GB\n", r->batch, rate,
           100 * r->operations * rate / r->operations_per_second, 1e-12 * r->operations_per_second, 1e-9 * (double)r->memory);
}

static void print_table(const char *preset, const aim_bench_result *painting, int count, const aim_bench_result *training)
{
    printf("\n%s: memory copy %.0f GB/s, products %.3g TFLOP/s\n", preset, 1e-9 * painting[0].bytes_per_second,
           1e-12 * painting[0].operations_per_second);
    printf("%6s %9s %12s %12s %10s %10s %9s\n", "batch", "ms/token", "pictures/s", "pictures/s", "memory", "products", "GB");
    printf("%6s %9s %12s %12s %10s %10s %9s\n", "", "", "codes alone", "decoded", "share", "share", "");
    for (int i = 0; i < count; i++) print_painting(&painting[i]);
    print_training(training);
    fflush(stdout);
}

/* --------------------------------------------------------------------------------------------------------- JSON */

static void print_number(const char *name, double value)
{
    printf(", \"%s\": ", name);
    cli_json_number(value);
}

static void print_json(const char *preset, const aim_bench_result *painting, int count, const aim_bench_result *training)
{
    printf("{\"preset\": ");
    cli_json_string(preset);
    print_number("copy_bytes_per_second", painting[0].bytes_per_second);
    print_number("product_operations_per_second", painting[0].operations_per_second);
    printf(", \"batches\": [");
    for (int i = 0; i < count; i++) {
        const aim_bench_result *r = &painting[i];
        printf("%s{\"batch\": %d", i ? ", " : "", r->batch);
        print_number("token_ms", r->token_ms);
        print_number("codes_per_second", r->codes_per_second);
        print_number("pictures_per_second", r->pictures_per_second);
        print_number("token_bytes", r->bytes);
        print_number("token_operations", r->operations);
        print_number("memory", (double)r->memory);
        printf("}");
    }
    printf("], \"training\": {\"batch\": %d", training->batch);
    print_number("tokens_per_second", training->token_ms > 0 ? 1e3 / training->token_ms : 0);
    print_number("token_operations", training->operations);
    print_number("product_operations_per_second", training->operations_per_second);
    print_number("memory", (double)training->memory);
    printf("}}");
}

/* ------------------------------------------------------------------------------------------------------ the run */

/* Before the first result. */
static void print_device(const struct cli *cli)
{
    static const char *const kinds[] = {"bf16", "f32", "bf16", "q8"}; /* in the order of the option's choices */
    const char *kind = kinds[cli->args.weights];
    if (!cli->args.json) {
        printf("guidance on, random weights in %s; %s\n", kind, aim_context_device(cli->ctx));
        return;
    }
    printf("{\"device\": ");
    cli_json_string(aim_context_device(cli->ctx));
    printf(", \"weights\": ");
    cli_json_string(kind);
    printf(", \"presets\": [");
}

static int bench_preset(struct cli *cli, const struct plan *p, int index)
{
    static const aim_weights weights[] = {AIM_WEIGHTS_AUTO, AIM_WEIGHTS_F32, AIM_WEIGHTS_BF16, AIM_WEIGHTS_Q8};
    const char *preset = p->presets[index];
    aim_bench_result painting[MOST_BATCHES], training;
    CLI_TRY(cli_library(cli, aim_bench(cli->ctx, preset, weights[cli->args.weights], p->batches, p->batch_count, painting)));
    CLI_TRY(cli_library(cli, aim_bench_train(cli->ctx, preset, p->training, &training)));
    progress_end(&cli->progress);
    if (index == 0) print_device(cli);
    if (cli->args.json && index) printf(", ");
    (cli->args.json ? print_json : print_table)(preset, painting, p->batch_count, &training);
    return STATUS_OK;
}

int command_bench(struct cli *cli)
{
    struct plan p = make_plan(&cli->args);
    CLI_TRY(cli_open_context(cli));
    for (int i = 0; i < p.preset_count; i++) CLI_TRY(bench_preset(cli, &p, i));
    if (cli->args.json) printf("]}\n");
    return STATUS_OK;
}
