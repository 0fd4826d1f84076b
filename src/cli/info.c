#include <stdio.h>

#include "cli/cli.h"
#include "cli/json.h"

enum { SMALL_BATCH = 1, LARGE_BATCH = 8 };

static int64_t memory(const struct cli *cli, int batch)
{
    return cli->info.has_generator ? aim_model_memory(cli->model, batch, 1) : 0;
}

static int64_t count_names(const struct cli *cli)
{
    int64_t names = 0;
    for (int64_t i = 0; i < cli->info.num_classes; i++) names += aim_model_class_name(cli->model, i) != NULL;
    return names;
}

/* "4.8 MiB" */
static const char *spell_bytes(int64_t bytes, char *out, size_t size)
{
    const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
    double value = (double)bytes;
    int unit = 0;
    for (; value >= 1024 && unit < 4; unit++) value /= 1024;
    snprintf(out, size, "%.*f %s", unit ? 1 : 0, value, units[unit]);
    return out;
}

/* "147.62 million" from a thousand values on; below that the number alone is clear. */
static const char *spell_count(int64_t count, char *out, size_t size)
{
    if (count >= 1000000)
        snprintf(out, size, "%lld (%.2f million)", (long long)count, 1e-6 * (double)count);
    else
        snprintf(out, size, "%lld", (long long)count);
    return out;
}

static void print_generator(const struct cli *cli)
{
    const aim_model_info *m = &cli->info;
    char text[64];
    printf("generator (stage 2)\n"
           "  layers              %d, d_model %d\n"
           "  vocabulary          %d codes\n"
           "  picture             %d codes\n"
           "  classes             %d, %lld of them named\n",
           m->n_layer, m->d_model, m->vocab_size, m->num_tokens, m->num_classes, (long long)count_names(cli));
    if (m->adaln_group)
        printf("  adaLN               %d groups\n", m->num_groups);
    else
        printf("  adaLN               per layer\n");
    printf("  position offset     %d (from: %s)\n", m->pos_offset, m->pos_offset_from ? m->pos_offset_from : "unknown");
    printf("  tensors             %lld\n", (long long)m->generator_tensors);
    printf("  parameters          %s\n", spell_count(m->generator_parameters, text, sizeof text));
}

static void print_tokenizer(const struct cli *cli)
{
    const aim_model_info *m = &cli->info;
    char text[64];
    printf("tokenizer\n"
           "  codebook            %d codes of %d values\n"
           "  channels            %d base, %d latent\n"
           "  downsampling        %d pixels per code along a side\n"
           "  tensors             %lld\n",
           m->codebook_size, m->codebook_dim, m->base_channels, m->z_channels, m->downsample, (long long)m->tokenizer_tensors);
    printf("  parameters          %s\n", spell_count(m->tokenizer_parameters, text, sizeof text));
}

static void print_names(const struct cli *cli)
{
    if (count_names(cli) == 0) return;
    printf("classes\n");
    for (int64_t i = 0; i < cli->info.num_classes; i++) {
        const char *name = aim_model_class_name(cli->model, i);
        if (name) printf("  %-6lld %s\n", (long long)i, name);
    }
}

static void print_tensors(const struct cli *cli)
{
    aim_tensor_info t;
    printf("tensors\n");
    for (int64_t i = 0; aim_model_tensor(cli->model, i, &t); i++) {
        printf("  %-5s %s (", t.dtype, t.name);
        for (int d = 0; d < t.ndim; d++) printf("%s%lld", d ? ", " : "", (long long)t.shape[d]);
        printf(")\n");
    }
}

static void print_table(const struct cli *cli)
{
    const aim_model_info *m = &cli->info;
    char name[256], text[64];
    cli_model_name(cli, name, sizeof name);
    printf("model                 %s\n", name);
    printf("  weights on disk     %s, %s\n", spell_bytes(m->bytes_on_disk, text, sizeof text),
           m->file_dtype ? m->file_dtype : "unknown type");
    if (m->image_size) printf("  pictures            %d x %d pixels\n", m->image_size, m->image_size);
    printf("  runs on             %s\n", aim_context_device(cli->ctx));
    if (m->has_generator) print_generator(cli);
    if (m->has_tokenizer) print_tokenizer(cli);
    if (m->has_generator) {
        printf("memory to generate, with guidance, matrices in %s\n", m->matrices);
        printf("  batch %d             %s\n", SMALL_BATCH, spell_bytes(memory(cli, SMALL_BATCH), text, sizeof text));
        printf("  batch %d             %s\n", LARGE_BATCH, spell_bytes(memory(cli, LARGE_BATCH), text, sizeof text));
        print_names(cli);
    }
    if (cli->args.tensors) print_tensors(cli);
}

static void print_generator_json(const struct cli *cli)
{
    const aim_model_info *m = &cli->info;
    printf("{\"d_model\": %d, \"n_layer\": %d, \"vocab_size\": %d, \"num_classes\": %d, \"num_tokens\": %d, ", m->d_model,
           m->n_layer, m->vocab_size, m->num_classes, m->num_tokens);
    printf("\"adaln_group\": %s, \"num_groups\": %d, \"pos_offset\": %d, \"pos_offset_from\": ",
           m->adaln_group ? "true" : "false", m->num_groups, m->pos_offset);
    cli_json_string(m->pos_offset_from);
    printf(", \"tensors\": %lld, \"parameters\": %lld}", (long long)m->generator_tensors, (long long)m->generator_parameters);
}

static void print_tokenizer_json(const struct cli *cli)
{
    const aim_model_info *m = &cli->info;
    printf("{\"codebook_size\": %d, \"codebook_dim\": %d, \"base_channels\": %d, \"z_channels\": %d, \"downsample\": %d, "
           "\"tensors\": %lld, \"parameters\": %lld}",
           m->codebook_size, m->codebook_dim, m->base_channels, m->z_channels, m->downsample, (long long)m->tokenizer_tensors,
           (long long)m->tokenizer_parameters);
}

static void print_names_json(const struct cli *cli)
{
    printf("[");
    for (int64_t i = 0; i < cli->info.num_classes; i++) {
        if (i) printf(", ");
        cli_json_string(aim_model_class_name(cli->model, i));
    }
    printf("]");
}

static void print_tensors_json(const struct cli *cli)
{
    aim_tensor_info t;
    printf(", \"tensors\": [");
    for (int64_t i = 0; aim_model_tensor(cli->model, i, &t); i++) {
        printf("%s{\"name\": ", i ? ", " : "");
        cli_json_string(t.name);
        printf(", \"dtype\": ");
        cli_json_string(t.dtype);
        printf(", \"shape\": ");
        cli_json_integers(t.shape, t.ndim);
        printf("}");
    }
    printf("]");
}

static void print_json(const struct cli *cli)
{
    const aim_model_info *m = &cli->info;
    char name[256];
    cli_model_name(cli, name, sizeof name);
    printf("{\"model\": ");
    cli_json_string(name);
    printf(", \"version\": ");
    cli_json_string(aim_version());
    printf(", \"device\": ");
    cli_json_string(aim_context_device(cli->ctx));
    printf(", \"bytes_on_disk\": %lld, \"file_dtype\": ", (long long)m->bytes_on_disk);
    cli_json_string(m->file_dtype);
    printf(", \"image_size\": %d, \"generator\": ", m->image_size);
    if (m->has_generator)
        print_generator_json(cli);
    else
        printf("null");
    printf(", \"tokenizer\": ");
    if (m->has_tokenizer)
        print_tokenizer_json(cli);
    else
        printf("null");
    printf(", \"matrices\": ");
    cli_json_string(m->matrices);
    printf(", \"memory\": {\"batch_%d\": %lld, \"batch_%d\": %lld}, \"named_classes\": %lld, \"class_names\": ", SMALL_BATCH,
           (long long)memory(cli, SMALL_BATCH), LARGE_BATCH, (long long)memory(cli, LARGE_BATCH), (long long)count_names(cli));
    print_names_json(cli);
    if (cli->args.tensors) print_tensors_json(cli);
    printf("}\n");
}

int command_info(struct cli *cli)
{
    CLI_TRY(cli_open_model(cli));
    if (cli->args.json)
        print_json(cli);
    else
        print_table(cli);
    return STATUS_OK;
}
