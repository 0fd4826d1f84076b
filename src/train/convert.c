/* aim_convert: a model in an equivalent form. */
#include <stdio.h>
#include <string.h>

#include "model/model.h"

/* Values of a row of the table as float32; the caller frees them. NULL on failure. */
static float *values_of(const struct params *table, const struct param *row)
{
    float *values = mem_array(table->ctx, tensor_entry_elements(row->entry), sizeof *values, MEM_WEIGHTS);
    if (!values || tensor_entry_to_f32(table->ctx, row->entry, values) == AIM_OK) return values;
    mem_free(values);
    return NULL;
}

static float *row_values(const struct params *table, const struct param *row)
{
    (void)table;
    return (float *)(uintptr_t)row->entry->data;
}

/* ------------------------------------------------------------------------------------------ adaLN (spec B3, B6) */

/* The shared matrix of adaLN-group: w (G, 3d, d), b (G, 3d); both owned. */
struct shared {
    float *w, *b;
};

static aim_status open_shared(const aim_model *m, struct shared *s)
{
    const struct params *t = &m->ar_table;
    s->w = values_of(t, params_find(t, "backbone.adaln_group.1.weight"));
    s->b = values_of(t, params_find(t, "backbone.adaln_group.1.bias"));
    return s->w && s->b ? AIM_OK : m->ctx->status;
}

/* Layer i's own matrix is its group's; its bias is the group's plus its table. */
static aim_status make_layer(const aim_model *m, const struct shared *s, const struct params *table, int i)
{
    size_t d = (size_t)m->config.ar.d_model, rows = 3 * d, group = (size_t)(i % m->config.ar.num_groups);
    float *w = row_values(table, params_find(table, "backbone.layers.%d.adaLN_modulation.1.weight", i));
    float *b = row_values(table, params_find(table, "backbone.layers.%d.adaLN_modulation.1.bias", i));
    float *own = values_of(&m->ar_table, params_find(&m->ar_table, "backbone.layers.%d.scale_shift_table", i));
    if (!own) return m->ctx->status;
    memcpy(w, s->w + group * rows * d, rows * d * sizeof *w);
    for (size_t k = 0; k < rows; k++) b[k] = s->b[group * rows + k] + own[k];
    mem_free(own);
    return AIM_OK;
}

/* One matrix for all, which takes that every group has the same one; what their biases differ by goes into the tables. */
static aim_status make_single(const aim_model *m, const struct shared *s, const struct params *table)
{
    const struct ar_config *c = &m->config.ar;
    size_t d = (size_t)c->d_model, rows = 3 * d;
    for (size_t g = 1; g < (size_t)c->num_groups; g++)
        if (memcmp(s->w, s->w + g * rows * d, rows * d * sizeof *s->w) != 0)
            return aim_fail(m->ctx, AIM_ERR_UNSUPPORTED,
                            "the groups of adaLN differ: there is no equal network with a single one (one for each layer is)");
    memcpy(row_values(table, params_find(table, "backbone.adaln_group.1.weight")), s->w, rows * d * sizeof *s->w);
    memcpy(row_values(table, params_find(table, "backbone.adaln_group.1.bias")), s->b, rows * sizeof *s->b);
    for (int i = 0; i < c->n_layer; i++) {
        const float *b = s->b + (size_t)(i % c->num_groups) * rows;
        float *own = row_values(table, params_find(table, "backbone.layers.%d.scale_shift_table", i));
        for (size_t k = 0; k < rows; k++) own[k] += b[k] - s->b[k];
    }
    return AIM_OK;
}

static aim_status make_adaln(const aim_model *m, int adaln, const struct params *table)
{
    struct shared s = {0};
    aim_status status = open_shared(m, &s);
    if (adaln == 's' && status == AIM_OK) status = make_single(m, &s, table);
    for (int i = 0; adaln == 'l' && i < m->config.ar.n_layer && status == AIM_OK; i++) status = make_layer(m, &s, table, i);
    mem_free(s.w);
    mem_free(s.b);
    return status;
}

/* The average of a weight beside it in a checkpoint (train/optimizer.h). A position table that is not trained has none. */
static const struct tensor_entry *averaged(const aim_model *m, const struct param *row)
{
    char name[112];
    snprintf(name, sizeof name, "ema.%s", row->name);
    const struct tensor_entry *e = tensor_file_find(&m->files[0], name);
    if (!e) aim_fail(m->ctx, AIM_ERR_ARGUMENT, "there are no averaged weights: %s is not in the file", name);
    return e;
}

/* A table of its own with the values of the model's where both have a tensor of one name and size. */
static aim_status copy_table(const aim_model *m, bool average, struct params *table)
{
    TRY(params_init(table, 0));
    for (size_t i = 0; i < table->count; i++) {
        const struct param *row = &table->items[i], *old = NULL;
        for (size_t k = 0; k < m->ar_table.count && !old; k++)
            if (strcmp(m->ar_table.items[k].name, row->name) == 0) old = &m->ar_table.items[k];
        const struct tensor_entry *e = old && average ? averaged(m, old) : old ? old->entry : NULL;
        if (old && !e) return m->ctx->status;
        if (e && tensor_entry_elements(e) == tensor_entry_elements(row->entry))
            TRY(tensor_entry_to_f32(m->ctx, e, row_values(table, row)));
    }
    return AIM_OK;
}

static aim_status check_form(const aim_model *m, int adaln, int average)
{
    if (average && adaln && m->config.ar.adaln_group)
        return aim_fail(m->ctx, AIM_ERR_ARGUMENT, "take the averaged weights first, then change the form of adaLN");
    if (adaln != 0 && adaln != 'l' && adaln != 's')
        return aim_fail(m->ctx, AIM_ERR_ARGUMENT, "adaLN can become one for each layer ('l') or a single one ('s')");
    if (adaln != 0 && !m->config.has_ar)
        return aim_fail(m->ctx, AIM_ERR_ARGUMENT, "this model is a tokenizer alone: it has no adaLN");
    if (adaln == 's' && !m->config.ar.adaln_group)
        return aim_fail(m->ctx, AIM_ERR_UNSUPPORTED, "a network with adaLN for each layer has no single form in general");
    return AIM_OK;
}

/* ------------------------------------------------------------------------------------------------ the type */

/* A matrix in bf16, or as float32 where the file had something smaller; *made is what must be freed. */
static aim_status retype(aim_context *ctx, const struct param *row, aim_weights weights, struct tensor_entry *entry,
                         void **made)
{
    *made = NULL;
    bool matrix = row->ndim >= 2 && !row->buffer;
    enum file_dtype wanted = weights == AIM_WEIGHTS_BF16 && matrix ? FILE_BF16 : FILE_F32;
    if (weights == AIM_WEIGHTS_AUTO || entry->dtype == wanted) return AIM_OK;
    size_t n = tensor_entry_elements(entry);
    float *values = mem_array(ctx, n, sizeof *values, MEM_WEIGHTS);
    if (!values) return AIM_ERR_MEMORY;
    *made = values;
    TRY(tensor_entry_to_f32(ctx, entry, values));
    if (wanted == FILE_BF16) /* in place, from the front: the results lie before what is still to be read */
        for (size_t i = 0; i < n; i++) {
            uint16_t rounded = bf16_from_f32(values[i]);
            memcpy((char *)values + i * sizeof rounded, &rounded, sizeof rounded);
        }
    entry->dtype = wanted;
    entry->data = values;
    entry->bytes = n * file_dtype_size(wanted);
    return AIM_OK;
}

/* What stands in for a table's rows while they are written: retyped values, and what the rows had before. */
struct stand_in {
    struct tensor_entry entry;
    const struct tensor_entry *was;
    void *made;
};

static aim_status retype_table(struct params *table, aim_weights weights, struct stand_in *list)
{
    for (size_t i = 0; i < table->count; i++) {
        struct param *row = &table->items[i];
        if (!row->entry) continue;
        list[i].was = row->entry;
        list[i].entry = *row->entry;
        row->entry = &list[i].entry;
        TRY(retype(table->ctx, row, weights, &list[i].entry, &list[i].made));
    }
    return AIM_OK;
}

static void restore_table(struct params *table, struct stand_in *list)
{
    for (size_t i = 0; i < table->count; i++) {
        if (list[i].was) table->items[i].entry = list[i].was;
        mem_free(list[i].made);
    }
}

static aim_status save_retyped(aim_model *m, aim_weights weights, const char *directory)
{
    struct stand_in *list = mem_zero(m->ctx, m->ar_table.count + m->vq_table.count, sizeof *list, MEM_MISC);
    if (!list) return AIM_ERR_MEMORY;
    struct stand_in *tokenizer = list + m->ar_table.count;
    aim_status status = retype_table(&m->ar_table, weights, list);
    if (status == AIM_OK) status = retype_table(&m->vq_table, weights, tokenizer);
    if (status == AIM_OK) status = aim_model_save(m, directory);
    restore_table(&m->ar_table, list);
    restore_table(&m->vq_table, tokenizer);
    mem_free(list);
    return status;
}

/* A model like m with another adaLN; names are borrowed. */
static aim_status convert(aim_model *m, int adaln, bool average, aim_weights weights, const char *directory)
{
    aim_model like = {.ctx = m->ctx, .config = m->config, .vq_table = m->vq_table, .pos_offset = m->pos_offset};
    like.ar_table = (struct params){.ctx = m->ctx, .prefix = AR_PREFIX};
    if (m->config.has_ar) {
        if (adaln) like.config.ar.adaln_group = adaln == 's';
        if (adaln) like.config.ar.num_groups = 1;
        TRY(ar_describe(&like.config.ar, &like.ar_table));
    }
    aim_status status = m->config.has_ar ? copy_table(m, average, &like.ar_table) : AIM_OK;
    if (status == AIM_OK && adaln && m->config.ar.adaln_group) status = make_adaln(m, adaln, &like.ar_table);
    if (status == AIM_OK) status = save_retyped(&like, weights, directory);
    params_free(&like.ar_table);
    return status;
}

aim_status aim_convert(aim_model *m, int adaln, int average, aim_weights weights, const char *directory)
{
    if (weights == AIM_WEIGHTS_Q8)
        return aim_fail(m->ctx, AIM_ERR_UNSUPPORTED, "files hold no 8-bit weights: they are made when a model is loaded");
    TRY(check_form(m, adaln, average));
    return convert(m, adaln, average != 0, weights, directory);
}
