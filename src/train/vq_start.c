#include "train/vq_start.h"

#include <stdlib.h>

/* "1,1,2,2,4": a level each. */
static aim_status read_multipliers(aim_context *ctx, const char *text, struct vq_config *c)
{
    enum { LARGEST = 64 };
    const char *at = text;
    for (c->levels = 0; c->levels < VQ_MAX_LEVELS;) {
        char *end;
        long value = strtol(at, &end, 10);
        if (end == at || value < 1 || value > LARGEST) break;
        c->multiplier[c->levels++] = (int)value;
        if (*end == '\0') return AIM_OK;
        if (*end != ',') break;
        at = end + 1;
    }
    return aim_fail(ctx, AIM_ERR_ARGUMENT, "the multipliers are up to %d whole numbers from 1 to %d, such as 1,1,2,2,4, not %s",
                    VQ_MAX_LEVELS, LARGEST, text);
}

static aim_status check_sizes(aim_context *ctx, const struct vq_config *c)
{
    enum { WIDEST = 1 << 14, MOST = 1 << 20, DEEPEST = 64 };
    if (c->base_channels < 32 || c->base_channels % 32 || c->base_channels > WIDEST)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "the channels must be a multiple of 32, at most %d, not %d", WIDEST,
                        c->base_channels);
    if (c->norm_groups < 1 || c->base_channels % c->norm_groups)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "the groups of the norms must divide the %d channels, %d do not",
                        c->base_channels, c->norm_groups);
    if (c->res_blocks < 1 || c->res_blocks > DEEPEST || c->z_channels < 1 || c->z_channels > WIDEST)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "blocks must be 1 to %d, latent channels 1 to %d", DEEPEST, WIDEST);
    if (c->codebook_size < 2 || c->codebook_size > MOST || c->codebook_dim < 1 || c->codebook_dim > WIDEST)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "a codebook has 2 to %d codes of 1 to %d values", MOST, WIDEST);
    return AIM_OK;
}

static aim_status fresh_sizes(aim_context *ctx, const aim_train_tokenizer_options *o, struct vq_config *c)
{
    TRY(config_tokenizer_preset(ctx, o->train.preset ? o->train.preset : "VQ-f16", c));
    if (o->channels) c->base_channels = o->channels;
    if (o->multipliers) TRY(read_multipliers(ctx, o->multipliers, c));
    if (o->res_blocks) c->res_blocks = o->res_blocks;
    if (o->z_channels) c->z_channels = o->z_channels;
    if (o->codebook_size) c->codebook_size = o->codebook_size;
    if (o->codebook_dim) c->codebook_dim = o->codebook_dim;
    if (o->norm_groups) c->norm_groups = o->norm_groups;
    return check_sizes(ctx, c);
}

static aim_status kept_sizes(aim_context *ctx, const aim_train_tokenizer_options *o, const aim_model *source,
                             struct vq_config *c)
{
    bool own = o->channels || o->multipliers || o->res_blocks || o->z_channels || o->codebook_size || o->codebook_dim ||
               o->norm_groups;
    if (o->train.preset || own)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "a tokenizer that starts from %s has its sizes from there", o->train.init);
    if (!source->config.has_vq) return aim_fail(ctx, AIM_ERR_ARGUMENT, "%s holds no tokenizer to start from", o->train.init);
    *c = source->config.vq;
    return AIM_OK;
}

static aim_status copy_names(aim_context *ctx, const struct dataset *data, struct model_config *config)
{
    config->names = mem_zero(ctx, (size_t)data->class_count, sizeof *config->names, MEM_MISC);
    if (!config->names) return AIM_ERR_MEMORY;
    config->name_count = (int)data->class_count;
    for (int64_t i = 0; i < data->class_count; i++) {
        config->names[i] = mem_string(ctx, data->classes[i].name, MEM_MISC);
        if (!config->names[i]) return AIM_ERR_MEMORY;
    }
    return AIM_OK;
}

aim_status vq_start_configure(aim_context *ctx, const aim_train_tokenizer_options *o, const struct dataset *data,
                              const aim_model *source, aim_model **model)
{
    TRY(model_new(ctx, model));
    struct model_config *config = &(*model)->config;
    TRY(source ? kept_sizes(ctx, o, source, &config->vq) : fresh_sizes(ctx, o, &config->vq));
    config->has_vq = true;
    TRY(copy_names(ctx, data, config));
    return vq_describe(&config->vq, &(*model)->vq_table);
}

aim_status vq_start_weights(aim_model *m, const aim_train_tokenizer_options *o, const aim_model *source)
{
    struct params *table = &m->vq_table;
    if (!source) return params_init(table, o->train.seed);
    for (size_t i = 0; i < table->count; i++) table->items[i].entry = source->vq_table.items[i].entry;
    return AIM_OK;
}
