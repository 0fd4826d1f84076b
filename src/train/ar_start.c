#include "train/ar_start.h"

#include <math.h>
#include <string.h>
#include <strings.h>

/* --------------------------------------------------------------------------------------------------- sizes */

static aim_status check_sizes(aim_context *ctx, const struct ar_config *c)
{
    enum { LARGEST = 1 << 16 };
    if (c->d_model < 32 || c->d_model % 32 || c->d_model > LARGEST)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "the width must be a multiple of 32, at most %d, not %d", LARGEST, c->d_model);
    if (c->n_layer < 1 || c->d_state < 1 || c->num_groups < 1)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "layers, state size and groups must be 1 or more");
    return AIM_OK;
}

static aim_status adaln_form(aim_context *ctx, const aim_train_ar_options *o, struct ar_config *c)
{
    switch (o->adaln) {
    case 0: break;
    case 'g': c->adaln_group = true; break;
    case 'l': c->adaln_group = false; break;
    case 's': c->adaln_group = true; break;
    default: return aim_fail(ctx, AIM_ERR_ARGUMENT, "adaLN comes in groups ('g'), for each layer ('l') or once ('s')");
    }
    if (o->groups) {
        if (o->adaln == 'l' || o->adaln == 's')
            return aim_fail(ctx, AIM_ERR_ARGUMENT, "a number of groups goes with adaLN in groups alone");
        c->adaln_group = true;
        c->num_groups = o->groups;
    }
    if (!c->adaln_group || o->adaln == 's') c->num_groups = 1;
    return AIM_OK;
}

/* A new network: a preset, then a config file, then the single options. */
static aim_status fresh_sizes(aim_context *ctx, const aim_train_ar_options *o, struct ar_config *c)
{
    struct model_config preset;
    TRY(config_preset(ctx, o->train.preset ? o->train.preset : "AiM-B", &preset));
    *c = preset.ar;
    if (o->config) TRY(config_read_sizes(ctx, o->config, c));
    if (o->layers) c->n_layer = o->layers;
    if (o->width) c->d_model = o->width;
    if (o->d_state) c->d_state = o->d_state;
    c->no_positions = o->no_positions != 0;
    TRY(adaln_form(ctx, o, c));
    return check_sizes(ctx, c);
}

static aim_status kept_sizes(aim_context *ctx, const aim_train_ar_options *o, const aim_model *source, struct ar_config *c)
{
    if (o->train.preset || o->config || o->layers || o->width || o->d_state || o->adaln || o->groups)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "a network that starts from %s has its sizes from there", o->train.init);
    if (!source || !source->config.has_ar)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "%s holds no network of stage 2 to start from", o->train.init);
    *c = source->config.ar;
    c->no_positions |= o->no_positions != 0;
    return AIM_OK;
}

/* What the data decides. */
static aim_status fit_data(aim_context *ctx, const aim_train_ar_options *o, const struct ar_data *data, const aim_model *source,
                           struct ar_config *c)
{
    int64_t codes = source && source->config.has_vq ? source->config.vq.codebook_size : 0;
    if (!codes) codes = data->vocabulary;
    if (!codes) codes = c->vocab_size;
    if (data->vocabulary && data->vocabulary != codes)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "the training codes have a vocabulary of %lld, the tokenizer one of %lld",
                        (long long)data->vocabulary, (long long)codes);
    if (o->train.init && codes != c->vocab_size)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "%s has a vocabulary of %d, the codes one of %lld: another tokenizer made them",
                        o->train.init, c->vocab_size, (long long)codes);
    if (data->tokens > 1 << 24 || data->class_count > 1 << 24)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "too many tokens or classes");
    c->vocab_size = (int)codes;
    c->num_tokens = (int)data->tokens;
    /* Data without names that knows no more classes than the network does keeps the network's. */
    bool fewer = o->train.init && !data->names && data->class_count <= c->num_classes;
    if (!fewer) c->num_classes = (int)data->class_count;
    return AIM_OK;
}

static aim_status copy_names(aim_context *ctx, char *const *names, int count, struct model_config *config)
{
    config->names = mem_zero(ctx, (size_t)count, sizeof *config->names, MEM_MISC);
    if (!config->names) return AIM_ERR_MEMORY;
    config->name_count = count;
    for (int i = 0; i < count; i++) {
        if (!names[i]) continue;
        config->names[i] = mem_string(ctx, names[i], MEM_MISC);
        if (!config->names[i]) return AIM_ERR_MEMORY;
    }
    return AIM_OK;
}

aim_status ar_start_configure(aim_context *ctx, const aim_train_ar_options *o, const struct ar_data *data,
                              const aim_model *source, aim_model **model)
{
    TRY(model_new(ctx, model));
    aim_model *m = *model;
    struct ar_config *c = &m->config.ar;
    TRY(o->train.init ? kept_sizes(ctx, o, source, c) : fresh_sizes(ctx, o, c));
    TRY(fit_data(ctx, o, data, source, c));
    m->config.has_ar = true;
    m->config.pos_offset = m->pos_offset = 0;
    m->pos_offset_from = "config";
    m->weights = AIM_WEIGHTS_F32;
    if (data->names)
        TRY(copy_names(ctx, data->names, c->num_classes, &m->config));
    else if (o->train.init && source->config.name_count == c->num_classes)
        TRY(copy_names(ctx, source->config.names, c->num_classes, &m->config));
    return ar_describe(c, &m->ar_table);
}

/* ------------------------------------------------------------------------------------------- first weights */

static float *values_of(const struct params *table, const char *name)
{
    return (float *)(uintptr_t)params_find(table, "%s", name)->entry->data;
}

/* A tensor of the source as float32; the caller frees it. NULL on failure. */
static float *source_values(const aim_model *source, const char *name)
{
    const struct tensor_entry *e = params_find(&source->ar_table, "%s", name)->entry;
    float *values = mem_array(source->ctx, tensor_entry_elements(e), sizeof *values, MEM_WEIGHTS);
    if (!values || tensor_entry_to_f32(source->ctx, e, values) == AIM_OK) return values;
    mem_free(values);
    return NULL;
}

/* The class of the source that has this name; -1 for a new one. */
static int old_class(const struct model_config *now, const struct model_config *before, int label)
{
    if (!now->name_count || !before->name_count) return label < before->ar.num_classes ? label : -1;
    const char *name = label < now->name_count ? now->names[label] : NULL;
    for (int i = 0; name && i < before->name_count; i++)
        if (before->names[i] && strcasecmp(name, before->names[i]) == 0) return i;
    return -1;
}

static aim_status keep_classes(aim_model *m, const aim_model *source)
{
    static const char *const name = "backbone.cls_embed.embedding_table.weight";
    size_t d = (size_t)m->config.ar.d_model;
    float *now = values_of(&m->ar_table, name), *before = source_values(source, name);
    if (!before) return m->ctx->status;
    int classes = m->config.ar.num_classes, kept = 0;
    for (int i = 0; i < classes; i++) {
        int old = old_class(&m->config, &source->config, i);
        if (old >= 0) memcpy(now + (size_t)i * d, before + (size_t)old * d, d * sizeof *now);
        kept += old >= 0;
    }
    /* the null class */
    memcpy(now + (size_t)classes * d, before + (size_t)source->config.ar.num_classes * d, d * sizeof *now);
    mem_free(before);
    if (kept < classes) aim_log(m->ctx, AIM_LOG_INFO, "%d of %d classes are new", classes - kept, classes);
    return AIM_OK;
}

/* Weights of the cubic through four points at distance t behind the second (Keys 1981, a = -1/2). */
static void cubic(double t, double w[4])
{
    w[0] = ((-0.5 * t + 1) * t - 0.5) * t;
    w[1] = (1.5 * t - 2.5) * t * t + 1;
    w[2] = ((-1.5 * t + 2) * t + 0.5) * t;
    w[3] = (0.5 * t - 0.5) * t * t;
}

static int clamp(int i, int size)
{
    return i < 0 ? 0 : i >= size ? size - 1 : i;
}

void ar_resize_positions(const float *positions, int from, int64_t d, int to, float *out)
{
    for (int y = 0; y < to; y++)
        for (int x = 0; x < to; x++) {
            double sy = (y + 0.5) * from / to - 0.5, sx = (x + 0.5) * from / to - 0.5, wy[4], wx[4];
            int fy = (int)floor(sy), fx = (int)floor(sx);
            cubic(sy - fy, wy);
            cubic(sx - fx, wx);
            for (int64_t k = 0; k < d; k++) {
                double sum = 0;
                for (int j = 0; j < 4; j++)
                    for (int i = 0; i < 4; i++) {
                        int64_t row = (int64_t)clamp(fy - 1 + j, from) * from + clamp(fx - 1 + i, from);
                        sum += wy[j] * wx[i] * (double)positions[row * d + k];
                    }
                out[((int64_t)y * to + x) * d + k] = (float)sum;
            }
        }
}

/*
 * The row of a position that is never used (the grid's last one, with offset 0) keeps what it was drawn with, and so do
 * rows beyond the grid. A source that decodes with offset 1 was trained with 0 all the same (spec B5), unless its weights
 * show otherwise: its rows are moved then.
 */
static aim_status keep_positions(aim_model *m, const aim_model *source)
{
    static const char *const name = "backbone.embeddings.position_embeddings.weight";
    int64_t d = m->config.ar.d_model;
    int from = ar_grid(&source->config.ar), to = ar_grid(&m->config.ar);
    if (m->config.ar.no_positions) return AIM_OK;
    if (from == 0 || to == 0)
        return aim_fail(m->ctx, AIM_ERR_UNSUPPORTED, "positions can be carried over between square grids alone");
    float *now = values_of(&m->ar_table, name), *before = source_values(source, name);
    if (!before) return m->ctx->status;
    int first = source->pos_offset == 1 && strcmp(source->pos_offset_from, "weights") == 0 ? 1 : 0;
    ar_resize_positions(before + first * d, from, d, to, now);
    mem_free(before);
    return AIM_OK;
}

static bool same_size(const struct param *a, const struct param *b)
{
    bool same = a->ndim == b->ndim;
    for (int i = 0; same && i < a->ndim; i++) same = a->shape[i] == b->shape[i];
    return same;
}

static bool same_classes(const struct model_config *a, const struct model_config *b)
{
    bool same = a->ar.num_classes == b->ar.num_classes;
    for (int i = 0; same && i < a->ar.num_classes; i++) same = old_class(a, b, i) == i;
    return same;
}

aim_status ar_start_weights(aim_model *m, const aim_train_ar_options *o, const aim_model *source)
{
    TRY(params_init(&m->ar_table, o->train.seed));
    if (!o->train.init) return AIM_OK;
    bool classes = same_classes(&m->config, &source->config);
    for (size_t i = 0; i < m->ar_table.count; i++) {
        const struct param *row = &m->ar_table.items[i], *old = &source->ar_table.items[i];
        if (!same_size(row, old) || (!classes && strstr(row->name, "cls_embed"))) continue;
        if (row->init == INIT_ZERO && m->config.ar.no_positions && strstr(row->name, "position_embeddings")) continue;
        TRY(tensor_entry_to_f32(m->ctx, old->entry, (float *)(uintptr_t)row->entry->data));
    }
    if (!classes) TRY(keep_classes(m, source));
    bool moved = source->pos_offset == 1 && strcmp(source->pos_offset_from, "weights") == 0;
    return m->config.ar.num_tokens != source->config.ar.num_tokens || moved ? keep_positions(m, source) : AIM_OK;
}
