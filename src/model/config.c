#include "model/config.h"

#include <stdio.h>
#include <string.h>

#include "io/tensor_file.h"

int ar_grid(const struct ar_config *c)
{
    int side = 1;
    while (side * side < c->num_tokens && side < 4096) side++;
    return side * side == c->num_tokens ? side : 0;
}

int vq_downsample(const struct vq_config *c)
{
    return 1 << (c->levels - 1);
}

/* --------------------------------------------------------------------------------------------- presets */

static const struct {
    const char *name;
    struct vq_config config;
} tokenizers[] = {
    {"VQ-f16", {128, 5, {1, 1, 2, 2, 4}, 2, 256, 16384, 8, VQ_NORM_GROUPS}},
    {"VQ-f8", {128, 4, {1, 2, 2, 4}, 2, 256, 16384, 8, VQ_NORM_GROUPS}},
    {"tiny", {32, 5, {1, 1, 1, 1, 2}, 1, 32, 256, 8, VQ_NORM_GROUPS}},
};

aim_status config_tokenizer_preset(aim_context *ctx, const char *name, struct vq_config *config)
{
    for (size_t i = 0; i < sizeof tokenizers / sizeof tokenizers[0]; i++) {
        if (strcmp(name, tokenizers[i].name) != 0) continue;
        *config = tokenizers[i].config;
        return AIM_OK;
    }
    return aim_fail(ctx, AIM_ERR_ARGUMENT, "unknown tokenizer \"%s\": VQ-f16, VQ-f8 and tiny exist", name);
}

aim_status config_preset(aim_context *ctx, const char *name, struct model_config *config)
{
    static const struct {
        const char *name;
        struct ar_config ar;
    } presets[] = {
        {"AiM-B", {768, 24, 16384, 1000, 256, false, 1, 128, false}},
        {"AiM-L", {1024, 48, 16384, 1000, 256, true, 4, 128, false}},
        {"AiM-XL", {1536, 48, 16384, 1000, 256, true, 4, 128, false}},
        {"AiM-1B", {2048, 48, 16384, 1000, 256, true, 4, 128, false}},
        {"tiny", {64, 4, 256, 10, 16, true, 2, 128, false}},
    };
    for (size_t i = 0; i < sizeof presets / sizeof presets[0]; i++) {
        if (strcmp(name, presets[i].name) != 0) continue;
        *config = (struct model_config){.has_ar = true, .has_vq = true, .ar = presets[i].ar, .pos_offset = 0};
        return config_tokenizer_preset(ctx, presets[i].ar.vocab_size == 256 ? "tiny" : "VQ-f16", &config->vq);
    }
    return aim_fail(ctx, AIM_ERR_ARGUMENT, "unknown preset \"%s\": AiM-B, AiM-L, AiM-XL, AiM-1B and tiny exist", name);
}

/* -------------------------------------------------------------------------------------- sizes from shapes */

const struct tensor_entry *config_find(const struct tensor_file *file, const char *prefix, const char *name)
{
    char full[192];
    snprintf(full, sizeof full, "%s%s", prefix, name);
    const struct tensor_entry *entry = tensor_file_find(file, full);
    return entry ? entry : tensor_file_find(file, name);
}

/* Dimension `axis` of a tensor, 0 if the tensor is absent, has another rank, or a size that is out of range. */
static int dimension(const struct tensor_file *file, const char *prefix, const char *name, int ndim, int axis)
{
    const struct tensor_entry *e = config_find(file, prefix, name);
    enum { LARGEST = 1 << 26 };
    if (!e || e->ndim != ndim || e->shape[axis] < 1 || e->shape[axis] > LARGEST) return 0;
    return (int)e->shape[axis];
}

/* The number of consecutive tensors called by `format` with 0, 1, ... */
static int count_layers(const struct tensor_file *file, const char *prefix, const char *format)
{
    char name[128];
    for (int i = 0;; i++) {
        snprintf(name, sizeof name, format, i); /* NOLINT: the formats are ours */
        if (!config_find(file, prefix, name)) return i;
    }
}

aim_status config_infer_ar(aim_context *ctx, const char *path, const struct tensor_file *file, struct ar_config *c, bool *found)
{
    static const char *const words = "backbone.embeddings.word_embeddings.weight";
    *found = config_find(file, AR_PREFIX, words) != NULL;
    if (!*found) return AIM_OK;
    *c = (struct ar_config){
        .d_model = dimension(file, AR_PREFIX, words, 2, 1),
        .n_layer = count_layers(file, AR_PREFIX, "backbone.layers.%d.norm.weight"),
        .vocab_size = dimension(file, AR_PREFIX, words, 2, 0),
        .num_classes = dimension(file, AR_PREFIX, "backbone.cls_embed.embedding_table.weight", 2, 0) - 1,
        .num_tokens = dimension(file, AR_PREFIX, "backbone.embeddings.position_embeddings.weight", 2, 0) - 1,
        .adaln_group = config_find(file, AR_PREFIX, "backbone.adaln_group.1.weight") != NULL,
        .num_groups = 1,
    };
    int conv = dimension(file, AR_PREFIX, "backbone.layers.0.mixer.conv1d.weight", 3, 0);
    c->d_state = (conv - 2 * c->d_model) / 2;
    if (c->adaln_group && c->d_model > 0)
        c->num_groups = dimension(file, AR_PREFIX, "backbone.adaln_group.1.weight", 2, 0) / (3 * c->d_model);
    bool sane = c->d_model >= 32 && c->d_model % 32 == 0 && c->d_model <= 1 << 16 && c->n_layer >= 1 && c->vocab_size >= 2 &&
                c->num_classes >= 1 && c->num_tokens >= 1 && c->num_groups >= 1 && c->d_state >= 1;
    if (!sane)
        return aim_fail(
            ctx, AIM_ERR_FORMAT,
            "%s: the shapes of the stage-2 tensors do not make an AiM network (d_model %d, %d layers, vocabulary %d, "
            "%d classes, %d tokens)",
            path, c->d_model, c->n_layer, c->vocab_size, c->num_classes, c->num_tokens);
    return AIM_OK;
}

aim_status config_infer_vq(aim_context *ctx, const char *path, const struct tensor_file *file, struct vq_config *c, bool *found)
{
    *found = config_find(file, VQ_PREFIX, "quantize.embedding.weight") != NULL;
    if (!*found) return AIM_OK;
    *c = (struct vq_config){
        .base_channels = dimension(file, VQ_PREFIX, "encoder.conv_in.weight", 4, 0),
        .levels = count_layers(file, VQ_PREFIX, "encoder.conv_blocks.%d.res.0.conv1.weight"),
        .res_blocks = count_layers(file, VQ_PREFIX, "encoder.conv_blocks.0.res.%d.conv1.weight"),
        .z_channels = dimension(file, VQ_PREFIX, "quant_conv.weight", 4, 1),
        .codebook_size = dimension(file, VQ_PREFIX, "quantize.embedding.weight", 2, 0),
        .codebook_dim = dimension(file, VQ_PREFIX, "quantize.embedding.weight", 2, 1),
        .norm_groups = VQ_NORM_GROUPS,
    };
    bool sane = c->base_channels >= 32 && c->base_channels % 32 == 0 && c->base_channels <= 1 << 14 && c->levels >= 1 &&
                c->levels <= VQ_MAX_LEVELS && c->res_blocks >= 1 && c->z_channels >= 1 && c->codebook_size >= 2 &&
                c->codebook_dim >= 1;
    for (int l = 0; sane && l < c->levels; l++) {
        char name[64];
        snprintf(name, sizeof name, "encoder.conv_blocks.%d.res.0.conv1.weight", l);
        int channels = dimension(file, VQ_PREFIX, name, 4, 0);
        c->multiplier[l] = channels / c->base_channels;
        sane = c->multiplier[l] >= 1 && c->multiplier[l] <= 64 && channels % c->base_channels == 0;
    }
    if (!sane)
        return aim_fail(ctx, AIM_ERR_FORMAT,
                        "%s: the shapes of the tokenizer's tensors do not make a VQ tokenizer (%d base channels, %d levels, "
                        "codebook %dx%d)",
                        path, c->base_channels, c->levels, c->codebook_size, c->codebook_dim);
    return AIM_OK;
}

void config_free(struct model_config *config)
{
    for (int i = 0; i < config->name_count; i++) mem_free(config->names[i]);
    mem_free(config->names);
    *config = (struct model_config){0};
}
