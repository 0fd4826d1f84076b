/* Shared by the golden tests: expected tensors, models with hashed weights, contexts. */
#ifndef AIM_TESTS_GOLDEN_H
#define AIM_TESTS_GOLDEN_H

#include "support.h"

#include "io/tensor_file.h"
#include "model/model.h"

/* The project's promise for float32 (design: "within 1e-4 relative on every golden case"). */
#define GOLDEN_TOLERANCE 1e-4

static inline aim_context *golden_context(int threads)
{
    aim_context *ctx;
    aim_context_options o = aim_context_defaults();
    o.threads = threads;
    assert_ok(ctx, aim_context_create(&o, &ctx));
    return ctx;
}

static inline void golden_open(aim_context *ctx, const char *name, struct tensor_file *file)
{
    assert_ok(ctx, tensor_file_open(ctx, data_path(name), file));
}

/* The values of an expected tensor; the caller frees them with mem_free. */
static inline float *golden_f32(aim_context *ctx, const struct tensor_file *file, const char *name, size_t *count)
{
    const struct tensor_entry *e = tensor_file_find(file, name);
    if (!e) fail_msg("no expected tensor %s", name);
    float *values = mem_array(ctx, tensor_entry_elements(e), sizeof *values, MEM_MISC);
    assert_non_null(values);
    assert_ok(ctx, tensor_entry_to_f32(ctx, e, values));
    if (count) *count = tensor_entry_elements(e);
    return values;
}

static inline int64_t *golden_i64(aim_context *ctx, const struct tensor_file *file, const char *name, size_t *count)
{
    const struct tensor_entry *e = tensor_file_find(file, name);
    if (!e || e->dtype != FILE_I64) fail_msg("no expected integers %s", name);
    int64_t *values = mem_new(ctx, e->bytes, MEM_MISC);
    assert_non_null(values);
    memcpy(values, e->data, e->bytes);
    if (count) *count = tensor_entry_elements(e);
    return values;
}

static inline aim_model *golden_model(aim_context *ctx, const char *name, int pos_offset, aim_weights weights)
{
    aim_model *model;
    aim_model_options o = aim_model_defaults(data_path(name));
    o.pos_offset = pos_offset;
    o.weights = weights;
    assert_ok(ctx, aim_model_load(ctx, &o, &model));
    return model;
}

/* Collects what aim_score hands out. */
struct golden_logits {
    float *values; /* (pictures, per_picture) */
    size_t per_picture;
};

static inline int golden_collect(void *user, int64_t index, const float *logits)
{
    struct golden_logits *g = user;
    memcpy(g->values + (size_t)index * g->per_picture, logits, g->per_picture * sizeof(float));
    return 0;
}

/* ------------------------------------------------------------------------------------------ hashed weights */

/*
 * Large networks need no files: a tensor's values follow from its name (64-bit FNV-1a of the name, splitmix64 of the
 * element's number), shaped by what the name says it is.
 */
static inline bool has(const char *name, const char *part)
{
    return strstr(name, part) != NULL;
}

static inline bool ends(const char *name, const char *end)
{
    size_t n = strlen(name), m = strlen(end);
    return n >= m && strcmp(name + n - m, end) == 0;
}

static inline void hashed_fill(const char *name, int ndim, const int64_t *shape, float *out)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (const char *c = name; *c; c++) h = (h ^ (unsigned char)*c) * 0x100000001b3u;
    int64_t count = 1, fan_in = 1;
    for (int i = 0; i < ndim; i++) count *= shape[i];
    for (int i = 1; i < ndim; i++) fan_in *= shape[i];
    double spread = sqrt(3.0 / (double)fan_in);
    bool norm = ndim == 1 && has(name, "norm");
    for (int64_t i = 0; i < count; i++) {
        uint64_t x = h + (uint64_t)(i + 1) * 0x9E3779B97F4A7C15u;
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
        x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
        x ^= x >> 31;
        double u = (double)(x >> 40) * 0x1p-24, s = 2 * u - 1, v;
        if (ends(name, "A_log"))
            v = log(1 + 15 * u);
        else if (ends(name, "dt_bias"))
            v = -6 + 5 * u;
        else if (ends(name, ".D"))
            v = 1 + 0.25 * s;
        else if (ends(name, "scale_shift_table"))
            v = 0.25 * s;
        else if (ends(name, "bias"))
            v = 0.1 * s;
        else if (norm)
            v = 1 + 0.1 * s;
        else if (has(name, "embed"))
            v = 0.5 * s;
        else
            v = s * spread;
        out[i] = (float)v;
    }
}

/* A preset's network with hashed weights in place of its initialisation. */
static inline aim_model *hashed_model(aim_context *ctx, const char *preset)
{
    aim_model *model;
    assert_ok(ctx, aim_model_init(ctx, preset, 0, &model));
    const struct params *tables[] = {&model->ar_table, &model->vq_table};
    for (int t = 0; t < 2; t++)
        for (size_t i = 0; i < tables[t]->count; i++) {
            const struct param *row = &tables[t]->items[i];
            if (!row->buffer) hashed_fill(row->name, row->ndim, row->shape, (float *)(uintptr_t)row->entry->data);
        }
    return model;
}

#endif
