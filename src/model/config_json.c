/* config.json, the official hub format (spec H4) with our additions. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "model/config.h"

/* A stated integer must equal what the tensors say; an absent one is fine. */
static aim_status check_size(aim_context *ctx, const char *path, const json_t *root, const char *key, int actual)
{
    const json_t *value = json_object_get(root, key);
    if (!value) return AIM_OK;
    if (!json_is_integer(value)) return aim_fail(ctx, AIM_ERR_FORMAT, "%s: \"%s\" must be a whole number", path, key);
    if (json_integer_value(value) != actual)
        return aim_fail(ctx, AIM_ERR_FORMAT, "%s says %s = %lld, but the tensors say %d: the file belongs to another model",
                        path, key, (long long)json_integer_value(value), actual);
    return AIM_OK;
}

/* What the official code can be told to be, but no published model is. */
static aim_status check_variant(aim_context *ctx, const char *path, const json_t *root)
{
    const json_t *ssm = json_object_get(root, "ssm_cfg");
    static const struct {
        const char *key;
        long long value;
    } fixed[] = {{"headdim", 64}, {"expand", 2}, {"d_conv", 4}, {"ngroups", 1}};
    for (size_t i = 0; i < sizeof fixed / sizeof fixed[0]; i++) {
        const json_t *value = json_object_get(ssm, fixed[i].key);
        if (value && json_integer_value(value) != fixed[i].value)
            return aim_fail(ctx, AIM_ERR_UNSUPPORTED, "%s: ssm_cfg.%s other than %lld is not supported", path, fixed[i].key,
                            fixed[i].value);
    }
    const json_t *layer = json_object_get(ssm, "layer");
    if (layer && (!json_is_string(layer) || strcmp(json_string_value(layer), "Mamba2") != 0))
        return aim_fail(ctx, AIM_ERR_UNSUPPORTED, "%s: ssm_cfg.layer other than \"Mamba2\" is not supported", path);
    const json_t *mlp = json_object_get(root, "d_intermediate"), *attention = json_object_get(root, "attn_layer_idx");
    if (json_integer_value(mlp) != 0 || json_array_size(attention) != 0)
        return aim_fail(ctx, AIM_ERR_UNSUPPORTED, "%s: models with MLP or attention layers are not supported", path);
    if (json_is_false(json_object_get(root, "tie_embeddings")))
        return aim_fail(ctx, AIM_ERR_UNSUPPORTED, "%s: models with an untied head are not supported", path);
    return AIM_OK;
}

static aim_status read_names(aim_context *ctx, const char *path, const json_t *root, struct model_config *config)
{
    json_t *table = json_object_get(root, "id2label");
    if (!table) return AIM_OK;
    if (!json_is_object(table)) return aim_fail(ctx, AIM_ERR_FORMAT, "%s: \"id2label\" must be an object", path);
    int classes = config->ar.num_classes;
    config->names = mem_zero(ctx, (size_t)classes, sizeof *config->names, MEM_MISC);
    if (!config->names) return AIM_ERR_MEMORY;
    config->name_count = classes;
    const char *key;
    json_t *value;
    json_object_foreach(table, key, value)
    {
        char *end;
        long id = strtol(key, &end, 10);
        if (*key == '\0' || *end != '\0' || id < 0 || id >= classes || !json_is_string(value))
            return aim_fail(ctx, AIM_ERR_FORMAT, "%s: id2label has \"%.40s\", which is no class of 0 to %d with a name", path,
                            key, classes - 1);
        mem_free(config->names[id]);
        config->names[id] = mem_string(ctx, json_string_value(value), MEM_MISC);
        if (!config->names[id]) return AIM_ERR_MEMORY;
    }
    return AIM_OK;
}

static aim_status read_vq(aim_context *ctx, const char *path, const json_t *root, struct vq_config *c)
{
    const json_t *stated = json_object_get(root, "norm_groups");
    if (!stated) return AIM_OK;
    long long groups = json_is_integer(stated) ? json_integer_value(stated) : 0;
    if (groups < 1 || groups > c->base_channels || c->base_channels % groups)
        return aim_fail(ctx, AIM_ERR_FORMAT,
                        "%s: \"norm_groups\" must be a whole number that divides the tokenizer's %d channels", path,
                        c->base_channels);
    c->norm_groups = (int)groups;
    return AIM_OK;
}

static aim_status read_root(aim_context *ctx, const char *path, const json_t *root, struct model_config *config)
{
    if (!json_is_object(root)) return aim_fail(ctx, AIM_ERR_FORMAT, "%s: not a JSON object", path);
    if (config->has_vq) TRY(read_vq(ctx, path, json_object_get(root, "vq"), &config->vq));
    if (!config->has_ar) return AIM_OK;
    const struct ar_config *c = &config->ar;
    TRY(check_variant(ctx, path, root));
    TRY(check_size(ctx, path, root, "d_model", c->d_model));
    TRY(check_size(ctx, path, root, "n_layer", c->n_layer));
    TRY(check_size(ctx, path, root, "vocab_size", c->vocab_size));
    TRY(check_size(ctx, path, root, "num_classes", c->num_classes));
    TRY(check_size(ctx, path, root, "num_tokens", c->num_tokens));
    if (c->adaln_group) TRY(check_size(ctx, path, root, "num_groups", c->num_groups));
    config->ar.no_positions = json_is_false(json_object_get(root, "position_embedding"));
    const json_t *offset = json_object_get(root, "pos_offset");
    if (offset) {
        if (!json_is_integer(offset) || json_integer_value(offset) < 0 || json_integer_value(offset) > 1)
            return aim_fail(ctx, AIM_ERR_FORMAT, "%s: \"pos_offset\" must be 0 or 1", path);
        config->pos_offset = (int)json_integer_value(offset);
    }
    return read_names(ctx, path, root, config);
}

aim_status config_parse(aim_context *ctx, const char *path, const void *text, size_t size, struct model_config *config)
{
    enum { LARGEST = 16 << 20 };
    if (size > LARGEST) return aim_fail(ctx, AIM_ERR_FORMAT, "%s: %zu bytes are too many for a configuration", path, size);
    if (size == 0) return aim_fail(ctx, AIM_ERR_FORMAT, "%s is empty", path);
    json_error_t error;
    json_t *root = json_loadb(text, size, JSON_REJECT_DUPLICATES, &error);
    if (!root) return aim_fail(ctx, AIM_ERR_FORMAT, "%s: line %d: %s", path, error.line, error.text);
    aim_status status = read_root(ctx, path, root, config);
    json_decref(root);
    return status;
}

/* A size that is stated within [1, most] takes the place of *value. */
static aim_status take_size(aim_context *ctx, const char *path, const json_t *root, const char *key, int most, int *value)
{
    const json_t *stated = json_object_get(root, key);
    if (!stated) return AIM_OK;
    if (!json_is_integer(stated) || json_integer_value(stated) < 1 || json_integer_value(stated) > most)
        return aim_fail(ctx, AIM_ERR_FORMAT, "%s: \"%s\" must be a whole number from 1 to %d", path, key, most);
    *value = (int)json_integer_value(stated);
    return AIM_OK;
}

static aim_status take_sizes(aim_context *ctx, const char *path, const json_t *root, struct ar_config *c)
{
    enum { WIDEST = 1 << 16, DEEPEST = 1 << 12 };
    if (!json_is_object(root)) return aim_fail(ctx, AIM_ERR_FORMAT, "%s: not a JSON object", path);
    TRY(check_variant(ctx, path, root));
    TRY(take_size(ctx, path, root, "d_model", WIDEST, &c->d_model));
    TRY(take_size(ctx, path, root, "n_layer", DEEPEST, &c->n_layer));
    TRY(take_size(ctx, path, json_object_get(root, "ssm_cfg"), "d_state", WIDEST, &c->d_state));
    const json_t *group = json_object_get(root, "adaln_group");
    if (group) c->adaln_group = json_is_true(group);
    if (c->adaln_group) return take_size(ctx, path, root, "num_groups", DEEPEST, &c->num_groups);
    c->num_groups = 1;
    return AIM_OK;
}

aim_status config_read_sizes(aim_context *ctx, const char *path, struct ar_config *c)
{
    json_error_t error;
    if (!file_exists(path)) return aim_fail(ctx, AIM_ERR_IO, "cannot read %s: there is no such file", path);
    json_t *root = json_load_file(path, JSON_REJECT_DUPLICATES, &error);
    if (!root) return aim_fail(ctx, AIM_ERR_FORMAT, "%s: line %d: %s", path, error.line, error.text);
    aim_status status = take_sizes(ctx, path, root, c);
    json_decref(root);
    return status;
}

aim_status config_read(aim_context *ctx, const char *path, struct model_config *config)
{
    struct file_map map;
    TRY(file_map_open(ctx, path, &map));
    aim_status status = config_parse(ctx, path, map.data, map.size, config);
    file_map_close(&map);
    return status;
}

static json_t *official_keys(const struct model_config *config)
{
    const struct ar_config *c = &config->ar;
    json_t *ssm = json_pack("{s:s}", "layer", "Mamba2");
    if (ssm && c->d_state != 128) json_object_set_new(ssm, "d_state", json_integer(c->d_state));
    return json_pack("{s:b, s:{}, s:[], s:i, s:i, s:b, s:f, s:f, s:i, s:i, s:i, s:i, s:i, s:b, s:b, s:o, s:b, s:f, s:i}",
                     "adaln_group", c->adaln_group, "attn_cfg", "attn_layer_idx", "d_intermediate", 0, "d_model", c->d_model,
                     "fused_add_norm", 1, "mixer_drop", 0.0, "mlp_drop", 0.0, "n_layer", c->n_layer, "num_classes",
                     c->num_classes, "num_groups", c->num_groups, "num_tokens", c->num_tokens, "pad_vocab_size_multiple", 8,
                     "residual_in_fp32", 1, "rms_norm", 1, "ssm_cfg", ssm, "tie_embeddings", 1, "token_drop", 0.0, "vocab_size",
                     c->vocab_size);
}

static json_t *vq_keys(const struct vq_config *c)
{
    json_t *multipliers = json_array();
    for (int l = 0; l < c->levels; l++) json_array_append_new(multipliers, json_integer(c->multiplier[l]));
    json_t *keys = json_pack("{s:i, s:o, s:i, s:i, s:i, s:i}", "ch", c->base_channels, "ch_mult", multipliers, "codebook_size",
                             c->codebook_size, "codebook_dim", c->codebook_dim, "num_res_blocks", c->res_blocks, "z_channels",
                             c->z_channels);
    if (c->norm_groups != VQ_NORM_GROUPS) json_object_set_new(keys, "norm_groups", json_integer(c->norm_groups));
    return keys;
}

static json_t *name_keys(const struct model_config *config)
{
    json_t *table = json_object();
    for (int i = 0; i < config->name_count; i++) {
        char id[16];
        snprintf(id, sizeof id, "%d", i);
        if (config->names[i]) json_object_set_new(table, id, json_string(config->names[i]));
    }
    return table;
}

aim_status config_write(aim_context *ctx, const char *path, const struct model_config *config)
{
    json_t *root = config->has_ar ? official_keys(config) : json_object();
    if (config->has_ar && config->pos_offset >= 0) json_object_set_new(root, "pos_offset", json_integer(config->pos_offset));
    if (config->has_ar && config->ar.no_positions) json_object_set_new(root, "position_embedding", json_false());
    if (config->name_count) json_object_set_new(root, "id2label", name_keys(config));
    if (config->has_vq) json_object_set_new(root, "vq", vq_keys(&config->vq));
    char *text = root ? json_dumps(root, JSON_SORT_KEYS | JSON_INDENT(2)) : NULL;
    json_decref(root);
    if (!text) return aim_fail(ctx, AIM_ERR_MEMORY, "out of memory while writing %s", path);
    struct file_writer w;
    aim_status status = file_writer_open(ctx, path, &w);
    if (status == AIM_OK) {
        status = file_writer_write(&w, text, strlen(text));
        aim_status closed = file_writer_close(&w, status == AIM_OK);
        if (status == AIM_OK) status = closed;
    }
    free(text);
    return status;
}
