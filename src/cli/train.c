#include <stdio.h>
#include <string.h>

#include "cli/json.h"
#include "cli/output.h"

/* What the table cannot check. */
static int check_arguments(struct cli *cli)
{
    const struct arguments *a = &cli->args;
    if (a->resume && a->output) return cli_usage(cli, "--resume names the run; -o is for a new one");
    if (a->resume) return STATUS_OK;
    if (!a->output && !a->dry_run) return cli_usage(cli, "-o RUN is missing");
    if (!a->data && !a->codes) return cli_usage(cli, "--codes or --data is missing");
    if (!a->steps && a->epochs == 0 && !a->dry_run) return cli_usage(cli, "--steps or --epochs is missing");
    return STATUS_OK;
}

static aim_train_options common_options(const struct arguments *a, aim_train_options o)
{
    const aim_schedule schedules[] = {AIM_SCHEDULE_LINEAR, AIM_SCHEDULE_COSINE, AIM_SCHEDULE_CONSTANT}; /* as in the table */
    o.run = a->resume ? a->resume : a->output;
    o.resume = a->resume != NULL;
    o.dry_run = a->dry_run;
    o.data = a->data;
    o.init = a->init;
    o.preset = a->preset_name;
    o.held_out = a->val;
    o.size = (int)a->size;
    o.steps = a->steps;
    o.epochs = a->epochs;
    o.batch = (int)a->batch;
    o.accumulate = (int)a->accumulate;
    o.lr = a->lr;
    o.decay = a->decay;
    o.clip = a->clip;
    o.ema = a->ema;
    o.schedule = schedules[a->schedule];
    o.warmup = a->warmup;
    o.seed = a->seed;
    o.bf16 = a->bf16;
    o.checkpointing = a->checkpointing;
    o.eval_every = a->eval_every;
    o.save_every = a->save_every;
    o.sample_every = a->sample_every;
    o.keep = a->keep;
    return o;
}

static aim_train_ar_options ar_options(const struct arguments *a)
{
    const int forms[] = {0, 'g', 'l', 's'}; /* as in the table */
    aim_train_ar_options o = aim_train_ar_defaults();
    o.train = common_options(a, o.train);
    o.tokenizer = a->tokenizer;
    o.codes = a->codes;
    o.labels = a->labels;
    o.file_order = a->order == 1;
    o.config = a->config;
    o.layers = (int)a->layers;
    o.width = (int)a->width;
    o.d_state = (int)a->d_state;
    o.adaln = forms[a->adaln];
    o.groups = (int)a->groups;
    o.no_positions = a->no_positions;
    o.official_decay = a->official_decay;
    o.label_drop = a->label_drop;
    return o;
}

static void report_plan(const struct cli *cli, const aim_train_report *r)
{
    const struct {
        const char *name;
        int64_t bytes;
    } rows[] = {{"parameters", r->parameters},
                {"gradients", r->gradients},
                {"optimizer", r->optimizer},
                {"activations", r->activations},
                {"total", r->total}};
    size_t count = sizeof rows / sizeof rows[0];
    if (cli->args.json) printf("{");
    for (size_t i = 0; i < count; i++) {
        if (cli->args.json)
            printf("\"%s\": %lld%s", rows[i].name, (long long)rows[i].bytes, i + 1 < count ? ", " : "}\n");
        else
            printf("%-12s %10.1f MB\n", rows[i].name, (double)rows[i].bytes / 1e6);
    }
}

static void report_run(const struct cli *cli, const char *run, const aim_train_report *r)
{
    if (!cli->args.json) {
        printf("%s/model\n", run);
        return;
    }
    printf("{\"outputs\": [");
    cli_json_string(run);
    printf("], \"steps\": %lld, \"skipped\": %lld, \"pictures\": %lld, \"loss\": ", (long long)r->steps, (long long)r->skipped,
           (long long)r->pictures);
    cli_json_number(r->loss);
    printf(", \"nll\": ");
    cli_json_number(r->nll);
    printf(", \"seconds\": %.3f}\n", cli_elapsed(cli));
}

int command_train_ar(struct cli *cli)
{
    aim_train_report report;
    CLI_TRY(check_arguments(cli));
    CLI_TRY(cli_open_context(cli));
    aim_train_ar_options o = ar_options(&cli->args);
    int status = cli_library(cli, aim_train_ar(cli->ctx, &o, &report));
    progress_end(&cli->progress);
    if (status != STATUS_OK) return status;
    if (o.train.dry_run)
        report_plan(cli, &report);
    else
        report_run(cli, o.train.run, &report);
    return STATUS_OK;
}
