#include "model/model.h"

#include <ctype.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "base/file.h"
#include "io/safetensors.h"
#include "model/engine.h"
#include "model/picture_queue.h"

aim_model_options aim_model_defaults(const char *path)
{
    return (aim_model_options){.path = path, .pos_offset = -1};
}

/* ----------------------------------------------------------------------------------------------- loading */

/* A directory's weights file; a file is itself. The caller frees *found with mem_free. */
static aim_status find_weights(aim_context *ctx, const char *path, char **found)
{
    static const char *const names[] = {"model.safetensors", "pytorch_model.bin"};
    *found = NULL;
    if (!file_is_directory(path)) {
        *found = mem_string(ctx, path, MEM_MISC);
        return *found ? AIM_OK : AIM_ERR_MEMORY;
    }
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char *candidate = file_join(ctx, path, names[i]);
        if (!candidate) return AIM_ERR_MEMORY;
        if (file_exists(candidate)) {
            *found = candidate;
            return AIM_OK;
        }
        mem_free(candidate);
    }
    return aim_fail(ctx, AIM_ERR_IO, "%s: no model.safetensors in this directory; is it a hub directory?", path);
}

static aim_status open_weights(aim_context *ctx, const char *path, struct tensor_file *file)
{
    char *found;
    TRY(find_weights(ctx, path, &found));
    aim_status status = tensor_file_open(ctx, found, file);
    mem_free(found);
    return status;
}

static aim_status read_config(aim_model *m, const char *path, struct model_config *into)
{
    if (!file_is_directory(path)) return AIM_OK;
    char *config = file_join(m->ctx, path, "config.json");
    if (!config) return AIM_ERR_MEMORY;
    aim_status status = file_exists(config) ? config_read(m->ctx, config, into) : AIM_OK;
    mem_free(config);
    return status;
}

/* An lm_head beside the embeddings must be the same matrix: the network is tied. */
static aim_status check_tied(aim_model *m, const char *path, const struct tensor_file *file)
{
    const struct tensor_entry *head = config_find(file, AR_PREFIX, "lm_head.weight");
    const struct tensor_entry *words = config_find(file, AR_PREFIX, "backbone.embeddings.word_embeddings.weight");
    if (!head || head->data == words->data) return AIM_OK;
    if (head->bytes == words->bytes && memcmp(head->data, words->data, head->bytes) == 0) return AIM_OK;
    return aim_fail(m->ctx, AIM_ERR_UNSUPPORTED,
                    "%s: lm_head.weight differs from the word embeddings; untied heads are not supported", path);
}

/* Where the position offset comes from when nothing tells: said once, when the network is put to use. */
#define POS_OFFSET_UNKNOWN "official decoder"

static aim_status choose_pos_offset(aim_model *m, int wanted)
{
    if (wanted < -1 || wanted > 1) return aim_fail(m->ctx, AIM_ERR_ARGUMENT, "the position offset must be 0, 1 or -1 (decide)");
    int stated = wanted >= 0 ? wanted : m->config.pos_offset;
    if (stated >= 0) {
        m->pos_offset = stated;
        m->pos_offset_from = wanted >= 0 ? "option" : "config";
        return AIM_OK;
    }
    const struct tensor_entry *entry = params_find(&m->ar_table, "backbone.embeddings.position_embeddings.weight")->entry;
    float *positions = mem_array(m->ctx, tensor_entry_elements(entry), sizeof *positions, MEM_MISC);
    if (!positions) return AIM_ERR_MEMORY;
    aim_status status = tensor_entry_to_f32(m->ctx, entry, positions);
    int guess = status == AIM_OK ? ar_guess_pos_offset(positions, m->config.ar.num_tokens, m->config.ar.d_model) : -1;
    mem_free(positions);
    TRY(status);
    m->pos_offset = guess >= 0 ? guess : 1;
    m->pos_offset_from = guess >= 0 ? "weights" : POS_OFFSET_UNKNOWN;
    return AIM_OK;
}

static aim_status load_ar(aim_model *m, const aim_model_options *o)
{
    TRY(config_infer_ar(m->ctx, o->path, &m->files[0], &m->config.ar, &m->config.has_ar));
    TRY(read_config(m, o->path, &m->config));
    if (!m->config.has_ar) return AIM_OK;
    TRY(check_tied(m, o->path, &m->files[0]));
    TRY(ar_describe(&m->config.ar, &m->ar_table));
    TRY(params_load(&m->ar_table, o->path, &m->files[0]));
    return choose_pos_offset(m, o->pos_offset);
}

static aim_status load_vq(aim_model *m, const aim_model_options *o)
{
    const char *path = o->tokenizer ? o->tokenizer : o->path;
    const struct tensor_file *file = &m->files[o->tokenizer != NULL];
    TRY(config_infer_vq(m->ctx, path, file, &m->config.vq, &m->config.has_vq));
    if (!m->config.has_vq && o->tokenizer)
        return aim_fail(m->ctx, AIM_ERR_FORMAT, "%s: there is no VQ tokenizer in this file", path);
    if (!m->config.has_vq) return AIM_OK;
    struct model_config own = {.has_vq = true, .vq = m->config.vq}; /* its file may lie in another folder than stage 2 */
    TRY(read_config(m, path, &own));
    m->config.vq = own.vq;
    TRY(vq_describe(&m->config.vq, &m->vq_table));
    TRY(params_load(&m->vq_table, path, file));
    if (m->config.has_ar && m->config.ar.vocab_size != m->config.vq.codebook_size)
        return aim_fail(m->ctx, AIM_ERR_FORMAT, "%s: the tokenizer has %d codes, but the network has a vocabulary of %d", path,
                        m->config.vq.codebook_size, m->config.ar.vocab_size);
    return AIM_OK;
}

static aim_status load(aim_model *m, const aim_model_options *o)
{
    if (!o->path) return aim_fail(m->ctx, AIM_ERR_ARGUMENT, "no model given");
    if ((int)o->weights < AIM_WEIGHTS_AUTO || o->weights > AIM_WEIGHTS_Q8)
        return aim_fail(m->ctx, AIM_ERR_ARGUMENT, "unknown kind of weights");
    m->weights = o->weights;
    TRY(open_weights(m->ctx, o->path, &m->files[0]));
    if (o->tokenizer) TRY(open_weights(m->ctx, o->tokenizer, &m->files[1]));
    TRY(load_ar(m, o));
    TRY(load_vq(m, o));
    if (!m->config.has_ar && !m->config.has_vq)
        return aim_fail(m->ctx, AIM_ERR_FORMAT, "%s: neither an AiM network nor a VQ tokenizer is in this file", o->path);
    return AIM_OK;
}

aim_status model_new(aim_context *ctx, aim_model **model)
{
    aim_model *m = *model = mem_zero(ctx, 1, sizeof *m, MEM_MISC);
    if (!m) return AIM_ERR_MEMORY;
    m->ctx = ctx;
    m->config.pos_offset = -1;
    m->ar_table = (struct params){.ctx = ctx, .prefix = AR_PREFIX};
    m->vq_table = (struct params){.ctx = ctx, .prefix = VQ_PREFIX};
    exec_init(&m->ex, ctx);
    return AIM_OK;
}

/* Hands the model over, or frees it after a failure. */
static aim_status finish(aim_status status, aim_model *m, aim_model **model)
{
    *model = status == AIM_OK ? m : NULL;
    if (status != AIM_OK) aim_model_free(m);
    return status;
}

aim_status aim_model_load(aim_context *ctx, const aim_model_options *options, aim_model **model)
{
    aim_model *m = NULL;
    aim_status status = model_new(ctx, &m);
    if (status == AIM_OK) status = load(m, options);
    return finish(status, m, model);
}

static aim_status init(aim_model *m, const char *preset, uint64_t seed)
{
    TRY(config_preset(m->ctx, preset, &m->config));
    m->pos_offset = 0;
    m->pos_offset_from = "config";
    TRY(ar_describe(&m->config.ar, &m->ar_table));
    TRY(vq_describe(&m->config.vq, &m->vq_table));
    int64_t bytes = 4 * (params_parameters(&m->ar_table) + params_parameters(&m->vq_table));
    TRY(model_check_memory(m, bytes, "a new model of this size", "choose a smaller preset"));
    TRY(params_init(&m->ar_table, seed));
    return params_init(&m->vq_table, seed);
}

aim_status aim_model_init(aim_context *ctx, const char *preset, uint64_t seed, aim_model **model)
{
    aim_model *m = NULL;
    aim_status status = model_new(ctx, &m);
    if (status == AIM_OK) status = init(m, preset, seed);
    return finish(status, m, model);
}

void aim_model_free(aim_model *m)
{
    if (!m) return;
    model_rest(m);
    ar_free(m->ar);
    vq_free(m->vq);
    picture_queue_free(m->queue); /* last: its twin made what the tokenizer's weights are converted to */
    params_free(&m->ar_table);
    params_free(&m->vq_table);
    tensor_file_close(&m->files[0]);
    tensor_file_close(&m->files[1]);
    config_free(&m->config);
    mem_free(m);
}

/* ------------------------------------------------------------------------------------------------ saving */

static size_t collect(const struct params *table, struct tensor_entry *entries)
{
    size_t n = 0;
    for (size_t i = 0; i < table->count; i++) {
        if (!table->items[i].entry) continue;
        entries[n] = *table->items[i].entry;
        entries[n++].name = table->items[i].name;
    }
    return n;
}

static aim_status write_weights(aim_model *m, const char *path)
{
    struct tensor_entry *entries = mem_array(m->ctx, m->ar_table.count + m->vq_table.count, sizeof *entries, MEM_MISC);
    if (!entries) return AIM_ERR_MEMORY;
    size_t count = collect(&m->ar_table, entries);
    count += collect(&m->vq_table, entries + count);
    /* torch's way of saying that the head shares the embeddings' storage (spec H1) */
    const struct tensor_metadata tied = {AR_PREFIX "lm_head.weight", AR_PREFIX "backbone.embeddings.word_embeddings.weight"};
    aim_status status = safetensors_write(m->ctx, path, entries, count, &tied, m->config.has_ar ? 1 : 0);
    mem_free(entries);
    return status;
}

aim_status aim_model_save(aim_model *m, const char *directory)
{
    bool made = !file_exists(directory);
    TRY(file_make_directory(m->ctx, directory));
    char *weights = file_join(m->ctx, directory, "model.safetensors");
    char *config = file_join(m->ctx, directory, "config.json");
    aim_status status = weights && config ? AIM_OK : AIM_ERR_MEMORY;
    if (status == AIM_OK) status = write_weights(m, weights);
    if (status == AIM_OK) status = config_write(m->ctx, config, &m->config);
    if (status != AIM_OK && made) { /* nothing was there before: leave nothing */
        if (weights) unlink(weights);
        rmdir(directory);
    }
    mem_free(weights);
    mem_free(config);
    return status;
}

/* --------------------------------------------------------------------------------------------- networks */

aim_status model_need_ar(aim_model *m)
{
    if (m->ar) return AIM_OK;
    if (!m->config.has_ar)
        return aim_fail(m->ctx, AIM_ERR_ARGUMENT,
                        "this model is a tokenizer alone: it has no network that could predict codes");
    if (strcmp(m->pos_offset_from, POS_OFFSET_UNKNOWN) == 0)
        aim_log(m->ctx, AIM_LOG_INFO,
                "the weights do not tell which position offset they were trained with; using 1 as the official decoder does "
                "(--pos-offset 0 is the other choice)");
    aim_status status = ar_build(&m->config.ar, &m->ar_table, m->weights, m->pos_offset, &m->ar);
    if (status != AIM_OK) {
        ar_free(m->ar);
        m->ar = NULL;
    }
    return status;
}

aim_status model_need_vq(aim_model *m)
{
    if (m->vq) return AIM_OK;
    if (!m->config.has_vq)
        return aim_fail(m->ctx, AIM_ERR_ARGUMENT, "this model has no VQ tokenizer: name one (--tokenizer vq_ds16_c2i.pt)");
    aim_status status = vq_build(&m->config.vq, &m->vq_table, &m->vq);
    if (status != AIM_OK) {
        vq_free(m->vq);
        m->vq = NULL;
    }
    return status;
}

aim_status model_need_engine(aim_model *m, int64_t streams)
{
    if (m->engine && m->engine->capacity >= streams) return AIM_OK;
    engine_free(m->engine); /* first: both may not fit */
    m->engine = NULL;
    aim_status status = engine_create(m->ar, streams, &m->engine);
    if (status == AIM_OK) return AIM_OK;
    engine_free(m->engine);
    m->engine = NULL;
    return status;
}

aim_status model_need_queue(aim_model *m)
{
    if (m->queue) return AIM_OK;
    aim_status status = picture_queue_create(m, &m->queue);
    if (status == AIM_OK) return AIM_OK;
    picture_queue_free(m->queue);
    m->queue = NULL;
    return status;
}

void model_rest(aim_model *m)
{
    if (m->painting) return;
    engine_free(m->engine);
    m->engine = NULL;
    picture_queue_clear(m->queue);
    exec_clear(&m->ex);
}

static const struct tensor_entry *word_embeddings(const aim_model *m)
{
    return m->config.has_ar ? params_find(&m->ar_table, "backbone.embeddings.word_embeddings.weight")->entry : NULL;
}

/* What the matrices of stage 2 will be, as far as the file's type tells. */
static enum tensor_type matrix_type(const aim_model *m)
{
    const struct tensor_entry *words = word_embeddings(m);
    bool exact = m->weights == AIM_WEIGHTS_AUTO && words && words->dtype == FILE_BF16;
    return exact ? T_BF16_PACKED : ar_matrix_type(m->weights);
}

int64_t model_weight_bytes(const aim_model *m)
{
    const struct tensor_entry *words = word_embeddings(m);
    bool copies = words && (words->dtype != FILE_F32 || !m->ctx->backend->memory.host);
    int64_t bytes = words ? ar_weight_bytes(&m->config.ar, matrix_type(m), copies) : 0;
    /* Convolution weights are kept a second time in the form the kernels like, some of them larger. */
    enum { VQ_FORMS = 2 };
    return bytes + VQ_FORMS * 4 * (m->config.has_vq ? params_parameters(&m->vq_table) : 0);
}

int64_t aim_model_memory(const aim_model *m, int batch, int with_guidance)
{
    int64_t bytes = model_weight_bytes(m);
    int64_t streams = (int64_t)batch * (with_guidance ? 2 : 1);
    if (m->config.has_ar) bytes += engine_bytes(m->ctx->backend, &m->config.ar, matrix_type(m), streams);
    int grid = m->config.has_ar ? ar_grid(&m->config.ar) : 16;
    if (m->config.has_vq) bytes += vq_activation_bytes(&m->config.vq, grid, grid);
    return bytes;
}

int64_t model_kept(const aim_model *m)
{
    int64_t bytes = exec_idle_bytes(&m->ex) + picture_queue_kept(m->queue);
    if (m->engine) bytes += engine_bytes(m->ctx->backend, &m->config.ar, matrix_type(m), m->engine->capacity);
    return bytes;
}

aim_status model_check_memory(aim_model *m, int64_t bytes, const char *what, const char *advice)
{
    struct backend *be = m->ctx->backend;
    int64_t free_bytes = be->memory.available(be);
    if (bytes <= free_bytes) return AIM_OK;
    model_rest(m);
    free_bytes = be->memory.available(be);
    if (bytes <= free_bytes) return AIM_OK;
    return aim_fail(m->ctx, AIM_ERR_MEMORY, "%s needs about %.2f GB, but only %.2f GB are free; %s", what, (double)bytes / 1e9,
                    (double)free_bytes / 1e9, advice);
}

aim_status model_narrow(aim_context *ctx, const int64_t *values, int64_t count, int64_t limit, const char *what, int32_t **out)
{
    int32_t *narrow = *out = mem_array(ctx, (size_t)count, sizeof *narrow, MEM_MISC);
    if (!narrow) return AIM_ERR_MEMORY;
    for (int64_t i = 0; i < count; i++) {
        if (values[i] < 0 || values[i] >= limit) {
            mem_free(narrow);
            *out = NULL;
            return aim_fail(ctx, AIM_ERR_ARGUMENT, "%s %lld is out of range: this model has 0 to %lld", what,
                            (long long)values[i], (long long)limit - 1);
        }
        narrow[i] = (int32_t)values[i];
    }
    return AIM_OK;
}

/* ------------------------------------------------------------------------------------------- description */

static const struct tensor_entry *largest_tensor(const struct params *table)
{
    const struct tensor_entry *best = NULL;
    for (size_t i = 0; i < table->count; i++) {
        const struct tensor_entry *e = table->items[i].entry;
        if (e && !table->items[i].buffer && (!best || tensor_entry_elements(e) > tensor_entry_elements(best))) best = e;
    }
    return best;
}

void aim_model_describe(const aim_model *m, aim_model_info *info)
{
    const struct ar_config *a = &m->config.ar;
    const struct vq_config *v = &m->config.vq;
    *info = (aim_model_info){.has_generator = m->config.has_ar, .has_tokenizer = m->config.has_vq};
    if (m->config.has_ar) {
        info->d_model = a->d_model;
        info->n_layer = a->n_layer;
        info->vocab_size = a->vocab_size;
        info->num_classes = a->num_classes;
        info->num_tokens = a->num_tokens;
        info->adaln_group = a->adaln_group;
        info->num_groups = a->num_groups;
        info->pos_offset = m->pos_offset;
        info->pos_offset_from = m->pos_offset_from;
        info->generator_tensors = params_tensors(&m->ar_table);
        info->generator_parameters = params_parameters(&m->ar_table);
    }
    if (m->config.has_vq) {
        info->codebook_size = v->codebook_size;
        info->codebook_dim = v->codebook_dim;
        info->base_channels = v->base_channels;
        info->z_channels = v->z_channels;
        info->downsample = vq_downsample(v);
        info->tokenizer_tensors = params_tensors(&m->vq_table);
        info->tokenizer_parameters = params_parameters(&m->vq_table);
    }
    if (m->config.has_ar && m->config.has_vq) info->image_size = ar_grid(a) * vq_downsample(v);
    info->bytes_on_disk = (int64_t)(m->files[0].map.size + m->files[1].map.size);
    const struct tensor_entry *largest = largest_tensor(m->config.has_ar ? &m->ar_table : &m->vq_table);
    info->file_dtype = largest ? file_dtype_name(largest->dtype) : "F32";
    enum tensor_type matrices = matrix_type(m);
    info->matrices = matrices == T_Q8_PACKED ? "q8" : matrices == T_BF16_PACKED ? "bf16" : "f32";
}

const char *aim_model_class_name(const aim_model *m, int64_t label)
{
    return label >= 0 && label < m->config.name_count ? m->config.names[label] : NULL;
}

/* Whether `name` is one of the comma-separated synonyms in `label`. */
static bool is_synonym(const char *label, const char *name)
{
    size_t length = strlen(name);
    while (label) {
        while (isspace((unsigned char)*label)) label++;
        const char *comma = strchr(label, ',');
        size_t n = comma ? (size_t)(comma - label) : strlen(label);
        while (n && isspace((unsigned char)label[n - 1])) n--;
        if (n == length && strncasecmp(label, name, n) == 0) return true;
        label = comma ? comma + 1 : NULL;
    }
    return false;
}

int64_t aim_model_find_class(const aim_model *m, const char *name)
{
    for (int i = 0; i < m->config.name_count; i++)
        if (m->config.names[i] && (strcasecmp(m->config.names[i], name) == 0 || is_synonym(m->config.names[i], name))) return i;
    return -1;
}

int aim_model_tensor(const aim_model *m, int64_t index, aim_tensor_info *info)
{
    const struct params *tables[] = {&m->ar_table, &m->vq_table};
    for (int t = 0; t < 2; t++)
        for (size_t i = 0; i < tables[t]->count; i++) {
            const struct param *row = &tables[t]->items[i];
            if (!row->entry || index-- > 0) continue;
            *info = (aim_tensor_info){.name = row->name, .dtype = file_dtype_name(row->entry->dtype), .ndim = row->ndim};
            for (int d = 0; d < row->ndim; d++) info->shape[d] = row->shape[d];
            return 1;
        }
    return 0;
}
