#include "model/params.h"

#include <math.h>
#include <omp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/philox.h"
#include "model/config.h"
#include "tensor/backend.h"

void params_release(struct params *p)
{
    for (size_t i = 0; p->made && i < p->count; i++) {
        if (!p->borrowed) mem_free((void *)(uintptr_t)p->made[i].data);
        p->items[i].entry = NULL;
    }
    mem_free(p->made);
    p->made = NULL;
    p->borrowed = false;
}

void params_free(struct params *p)
{
    params_release(p);
    mem_free(p->items);
    p->items = NULL;
    p->count = p->capacity = 0;
}

aim_status params_add(struct params *p, enum param_init init, double scale, int ndim, const int64_t *shape, const char *format,
                      ...)
{
    if (p->count == p->capacity) {
        size_t capacity = p->capacity ? 2 * p->capacity : 512;
        struct param *items = mem_resize(p->ctx, p->items, capacity * sizeof *items, MEM_MISC);
        if (!items) return AIM_ERR_MEMORY;
        p->items = items;
        p->capacity = capacity;
    }
    struct param *row = &p->items[p->count++];
    *row = (struct param){.ndim = ndim, .init = init, .scale = scale};
    for (int i = 0; i < ndim; i++) row->shape[i] = shape[i];
    int prefix = snprintf(row->name, sizeof row->name, "%s", p->prefix);
    va_list args;
    va_start(args, format);
    vsnprintf(row->name + prefix, sizeof row->name - (size_t)prefix, format, args);
    va_end(args);
    return AIM_OK;
}

static int64_t param_count(const struct param *row)
{
    int64_t n = 1;
    for (int i = 0; i < row->ndim; i++) n *= row->shape[i];
    return n;
}

static void shape_text(int ndim, const int64_t *shape, char *out, size_t size)
{
    size_t used = (size_t)snprintf(out, size, "(");
    for (int i = 0; i < ndim && used < size; i++)
        used += (size_t)snprintf(out + used, size - used, "%s%lld", i ? ", " : "", (long long)shape[i]);
    if (used < size) snprintf(out + used, size - used, ")");
}

static aim_status check_shape(aim_context *ctx, const char *path, const struct param *row, const struct tensor_entry *entry)
{
    bool same = entry->ndim == row->ndim;
    for (int i = 0; same && i < row->ndim; i++) same = entry->shape[i] == row->shape[i];
    if (same) return AIM_OK;
    char is[160], should[96];
    shape_text(entry->ndim, entry->shape, is, sizeof is);
    shape_text(row->ndim, row->shape, should, sizeof should);
    return aim_fail(ctx, AIM_ERR_FORMAT, "%s: %s has shape %s, but this network needs %s", path, row->name, is, should);
}

aim_status params_load(struct params *p, const char *path, const struct tensor_file *file)
{
    for (size_t i = 0; i < p->count; i++) {
        struct param *row = &p->items[i];
        row->entry = config_find(file, p->prefix, row->name + strlen(p->prefix));
        if (!row->entry) {
            if (row->buffer) continue;
            return aim_fail(p->ctx, AIM_ERR_FORMAT, "%s: the tensor %s is missing", path, row->name);
        }
        TRY(check_shape(p->ctx, path, row, row->entry));
    }
    return AIM_OK;
}

/* ------------------------------------------------------------------------------------- initialisation */

static uint32_t name_hash(const char *name)
{
    uint32_t h = 2166136261u; /* FNV-1a */
    for (; *name; name++) h = (h ^ (unsigned char)*name) * 16777619u;
    return h;
}

/* Four values at a time from one Philox block: (seed; block index, hash of the name). */
static void fill_block(const struct param *row, struct philox4 r, float out[4])
{
    for (int i = 0; i < 4; i++) {
        float u = philox_float(r.v[i]);
        switch (row->init) {
        case INIT_ZERO: out[i] = 0; break;
        case INIT_ONE: out[i] = 1; break;
        case INIT_UNIFORM:
        case INIT_CODEBOOK: out[i] = (float)row->scale * (2 * u - 1); break;
        case INIT_A_LOG: out[i] = logf(1 + 15 * u); break;
        case INIT_DT_BIAS: {
            float dt = expf(u * (logf(0.1f) - logf(0.001f)) + logf(0.001f));
            dt = dt > 1e-4f ? dt : 1e-4f;
            out[i] = dt + logf(-expm1f(-dt));
            break;
        }
        case INIT_AROUND_1:
        case INIT_NORMAL: { /* Box-Muller; a pair gives two values */
            float v = philox_float(r.v[i ^ 1]), radius = sqrtf(-2 * logf(i & 1 ? v : u));
            float angle = 6.28318530718f * (i & 1 ? u : v);
            out[i] = (float)row->scale * radius * (i & 1 ? sinf(angle) : cosf(angle));
            if (row->init == INIT_AROUND_1) out[i] += 1;
            break;
        }
        }
    }
}

static void fill(const struct param *row, uint64_t seed, int threads, float *data, int64_t count)
{
    enum { ALONE = 1 << 16 }; /* values that are not worth more threads */
    uint32_t name = name_hash(row->name);
#pragma omp parallel for num_threads(threads) if (count > ALONE)
    for (int64_t i = 0; i < count; i += 4) {
        float block[4];
        fill_block(row, philox(seed, (uint64_t)i / 4, name, PHILOX_INIT), block);
        memcpy(data + i, block, (size_t)(count - i < 4 ? count - i : 4) * sizeof(float));
    }
    if (row->init != INIT_CODEBOOK) return;
    int64_t width = row->shape[1];
    for (int64_t r = 0; r < row->shape[0]; r++) {
        double squares = 0;
        for (int64_t j = 0; j < width; j++) squares += (double)data[r * width + j] * (double)data[r * width + j];
        float scale = (float)(1 / sqrt(squares > 1e-24 ? squares : 1e-24));
        for (int64_t j = 0; j < width; j++) data[r * width + j] *= scale;
    }
}

aim_status params_point(struct params *p, const void *data)
{
    p->made = mem_zero(p->ctx, p->count, sizeof *p->made, MEM_MISC);
    if (!p->made) return AIM_ERR_MEMORY;
    p->borrowed = true;
    for (size_t i = 0; i < p->count; i++) {
        struct param *row = &p->items[i];
        struct tensor_entry *entry = &p->made[i];
        *entry = (struct tensor_entry){.name = row->name,
                                       .dtype = FILE_F32,
                                       .ndim = row->ndim,
                                       .data = data,
                                       .bytes = (size_t)param_count(row) * sizeof(float)};
        for (int d = 0; d < row->ndim; d++) entry->shape[d] = row->shape[d];
        row->entry = entry;
    }
    return AIM_OK;
}

aim_status params_init(struct params *p, uint64_t seed)
{
    const struct backend *be = p->ctx->backend;
    int threads = be && be->memory.host ? be->threads : omp_get_num_procs(); /* a GPU's host has nothing else to do */
    TRY(params_point(p, NULL));
    p->borrowed = false;
    for (size_t i = 0; i < p->count; i++) {
        int64_t count = param_count(&p->items[i]);
        float *data = mem_array(p->ctx, (size_t)count, sizeof(float), MEM_WEIGHTS);
        if (!data) return AIM_ERR_MEMORY;
        fill(&p->items[i], seed, threads, data, count);
        p->made[i].data = data;
    }
    return AIM_OK;
}

/* ----------------------------------------------------------------------------------------------- look-up */

const struct param *params_find(const struct params *p, const char *format, ...)
{
    char name[96];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    size_t prefix = strlen(p->prefix);
    for (size_t i = 0; i < p->count; i++)
        if (strcmp(p->items[i].name + prefix, name) == 0) return &p->items[i];
    aim_fail(p->ctx, AIM_ERR_INTERNAL, "the parameter table has no %s", name);
    return NULL;
}

int64_t params_tensors(const struct params *p)
{
    int64_t n = 0;
    for (size_t i = 0; i < p->count; i++) n += p->items[i].entry != NULL;
    return n;
}

int64_t params_parameters(const struct params *p)
{
    int64_t n = 0;
    for (size_t i = 0; i < p->count; i++)
        if (!p->items[i].buffer) n += param_count(&p->items[i]);
    return n;
}

/* --------------------------------------------------------------------------------------- rows to tensors */

static bool aligned(const void *data, size_t size)
{
    return (uintptr_t)data % size == 0;
}

/* A row's values in the host's memory: where they lie when they are float32 already, else converted into *made, which the
 * caller frees. NULL on failure. */
static const float *host_f32(const struct params *p, const struct param *row, float **made)
{
    const struct tensor_entry *e = row->entry;
    *made = NULL;
    if (e->dtype == FILE_F32 && aligned(e->data, sizeof(float))) return (const float *)(const void *)e->data;
    *made = mem_array(p->ctx, tensor_entry_elements(e), sizeof(float), MEM_WEIGHTS);
    if (!*made) return NULL;
    if (tensor_entry_to_f32(p->ctx, e, *made) == AIM_OK) return *made;
    mem_free(*made);
    *made = NULL;
    return NULL;
}

/* A tensor of the backend's own memory with these values; `values` may be NULL after a failure. */
static struct tensor *own_f32(const struct params *p, const struct param *row, const float *values)
{
    struct tensor *t = values ? tensor_new_weight(p->ctx, T_F32, row->ndim, row->shape) : NULL;
    struct backend *be = p->ctx->backend;
    if (!t || be->memory.upload(be, t->data, values, tensor_bytes(T_F32, row->ndim, row->shape)) == AIM_OK) return t;
    tensor_drop(t);
    return NULL;
}

/* The same; borrowed where the values lie in the file and the backend can read them there. */
static struct tensor *plain_f32(const struct params *p, const struct param *row, const float *values, const float *made)
{
    bool lies_there = values && !made && p->ctx->backend->memory.host;
    return lies_there ? tensor_borrow(p->ctx, T_F32, row->ndim, row->shape, values) : own_f32(p, row, values);
}

struct tensor *params_f32(const struct params *p, const struct param *row)
{
    if (!row) return NULL;
    float *made;
    const float *values = host_f32(p, row, &made);
    struct tensor *t = plain_f32(p, row, values, made);
    mem_free(made);
    return t;
}

struct tensor *params_trainable(const struct params *p, const struct param *row)
{
    if (!row) return NULL;
    float *made;
    struct tensor *t = own_f32(p, row, host_f32(p, row, &made));
    mem_free(made);
    if (!t) return NULL;
    t->constant = false;
    t->needs_grad = true;
    return t;
}

/* Whether every value survives rounding to bf16. */
static bool is_bf16_exact(const float *x, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        uint32_t u;
        memcpy(&u, x + i, sizeof u);
        if (u & 0xffffu) return false;
    }
    return true;
}

struct tensor *params_packed(const struct params *p, const struct param *row, enum tensor_type type, bool if_exact)
{
    if (!row) return NULL;
    const struct tensor_entry *e = row->entry;
    struct backend *be = p->ctx->backend;
    bool bf16 = be->memory.host && e->dtype == FILE_BF16 && aligned(e->data, sizeof(uint16_t)), exact = bf16 && if_exact;
    struct tensor *plain = NULL;
    if (bf16) {
        plain = tensor_borrow(p->ctx, T_BF16, row->ndim, row->shape, e->data);
    } else {
        float *made;
        const float *values = host_f32(p, row, &made);
        exact = if_exact && values && is_bf16_exact(values, (int64_t)tensor_entry_elements(e));
        plain = plain_f32(p, row, values, made);
        mem_free(made);
    }
    if (!plain) return NULL;
    struct tensor *packed = tensor_new_weight(p->ctx, exact ? T_BF16_PACKED : type, row->ndim, row->shape);
    if (packed && be->op.pack(be, plain, packed) != AIM_OK) {
        tensor_drop(packed);
        packed = NULL;
    }
    tensor_drop(plain);
    return packed;
}
