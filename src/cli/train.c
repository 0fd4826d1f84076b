#include <math.h>
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
    if (!a->data && !a->codes)
        return cli_usage(cli, cli->command->bit == FOR_TRAIN_AR ? "--codes or --data is missing" : "--data is missing");
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

/* "16384x8". */
static int read_codebook(struct cli *cli, aim_train_tokenizer_options *o)
{
    const char *text = cli->args.codebook;
    int end = 0;
    if (!text) return STATUS_OK;
    if (sscanf(text, "%dx%d%n", &o->codebook_size, &o->codebook_dim, &end) == 2 && text[end] == '\0' && o->codebook_size > 0 &&
        o->codebook_dim > 0)
        return STATUS_OK;
    return cli_usage(cli, "--codebook wants two numbers, such as 16384x8");
}

static aim_train_tokenizer_options tokenizer_options(const struct arguments *a)
{
    const int kinds[] = {'p', 's', 'n'}, starts[] = {'r', 'd', 's'}; /* as in the table */
    aim_train_tokenizer_options o = aim_train_tokenizer_defaults();
    o.train = common_options(a, o.train);
    o.multipliers = a->multipliers;
    o.channels = (int)a->channels;
    o.res_blocks = (int)a->res_blocks;
    o.z_channels = (int)a->z_channels;
    o.norm_groups = (int)a->norm_groups;
    o.vgg = a->vgg;
    o.lpips = a->lpips;
    o.l2 = a->l2;
    o.l1 = a->l1;
    o.perceptual = a->perceptual;
    o.entropy = a->entropy;
    o.adversarial = a->disc_weight;
    o.discriminator = kinds[a->disc];
    o.disc_channels = (int)a->disc_channels;
    o.disc_start = a->disc_start;
    o.disc_warmup = a->disc_warmup;
    o.softplus = a->adv == 1;
    o.adaptive = a->adaptive;
    o.perceptual_dropout = a->perceptual_dropout;
    o.codebook_start = starts[a->codebook_start];
    o.revive_every = a->revive;
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
    const struct {
        const char *name;
        double value;
    } held_out[] = {{"nll", r->nll}, {"psnr", r->psnr}, {"ssim", r->ssim}, {"usage", r->usage}};
    for (size_t i = 0; i < sizeof held_out / sizeof held_out[0]; i++) {
        if (isnan(held_out[i].value)) continue;
        printf(", \"%s\": ", held_out[i].name);
        cli_json_number(held_out[i].value);
    }
    printf(", \"seconds\": %.3f}\n", cli_elapsed(cli));
}

static int report(struct cli *cli, int status, const aim_train_options *o, const aim_train_report *r)
{
    progress_end(&cli->progress);
    if (status != STATUS_OK) return status;
    if (o->dry_run)
        report_plan(cli, r);
    else
        report_run(cli, o->run, r);
    return STATUS_OK;
}

int command_train_ar(struct cli *cli)
{
    aim_train_report r;
    CLI_TRY(check_arguments(cli));
    CLI_TRY(cli_open_context(cli));
    aim_train_ar_options o = ar_options(&cli->args);
    return report(cli, cli_library(cli, aim_train_ar(cli->ctx, &o, &r)), &o.train, &r);
}

int command_train_tokenizer(struct cli *cli)
{
    aim_train_report r;
    aim_train_tokenizer_options o = tokenizer_options(&cli->args);
    CLI_TRY(check_arguments(cli));
    CLI_TRY(read_codebook(cli, &o));
    CLI_TRY(cli_open_context(cli));
    return report(cli, cli_library(cli, aim_train_tokenizer(cli->ctx, &o, &r)), &o.train, &r);
}
