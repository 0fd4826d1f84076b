#include "network.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/philox.h"
#include "io/safetensors.h"

static const int64_t channels[JUDGE_LEVELS + 1] = {3, 32, 64, 96, 128};
enum { LAST_SIDE = JUDGE_SIDE >> JUDGE_LEVELS };

/* What tensor i is: its shape, and the spread of its first values (0: zeros; negative: ones). */
struct kind {
    int ndim;
    int64_t shape[TENSOR_DIMS];
    double spread;
};

static struct kind kind_of(int i, int64_t classes)
{
    const int64_t features = channels[JUDGE_LEVELS] * LAST_SIDE * LAST_SIDE;
    if (i == 4 * JUDGE_LEVELS) return (struct kind){2, {classes, features}, 1 / sqrt((double)features)};
    if (i == 4 * JUDGE_LEVELS + 1) return (struct kind){1, {classes}, 0};
    int64_t in = channels[i / 4], out = channels[i / 4 + 1];
    if (i % 4 == 0) return (struct kind){4, {out, in, 3, 3}, sqrt(2.0 / (double)(9 * in))};
    return (struct kind){1, {out}, i % 4 == 2 ? -1 : 0};
}

static void name_of(int i, char *out, size_t size)
{
    static const char *const parts[] = {"conv.weight", "conv.bias", "norm.weight", "norm.bias"};
    if (i < 4 * JUDGE_LEVELS)
        snprintf(out, size, "levels.%d.%s", i / 4, parts[i % 4]);
    else
        snprintf(out, size, "head.%s", i % 2 ? "bias" : "weight");
}

/* Sums of four uniform numbers are bell-shaped enough. */
static void fill(float *values, int64_t count, double spread, uint64_t seed, int i)
{
    for (int64_t k = 0; k < count; k++) {
        struct philox4 r = philox(seed, (uint64_t)k, (uint32_t)i, PHILOX_INIT);
        double sum = -2;
        for (int j = 0; j < 4; j++) sum += (double)philox_float(r.v[j]);
        values[k] = spread < 0 ? 1 : (float)(spread * sum * sqrt(3));
    }
}

static aim_status make(struct network *n, int i)
{
    struct kind kind = kind_of(i, n->classes);
    struct tensor *t = n->tensors[i] = tensor_new_weight(n->ctx, T_F32, kind.ndim, kind.shape);
    if (!t) return n->ctx->status;
    t->constant = false;
    t->needs_grad = true;
    return AIM_OK;
}

aim_status network_init(aim_context *ctx, int64_t classes, uint64_t seed, struct network *n)
{
    *n = (struct network){.ctx = ctx, .classes = classes};
    for (int i = 0; i < JUDGE_TENSORS; i++) {
        TRY(make(n, i));
        fill(f32(n->tensors[i]), tensor_count(n->tensors[i]), kind_of(i, classes).spread, seed, i);
    }
    return AIM_OK;
}

void network_free(struct network *n)
{
    for (int i = 0; i < JUDGE_TENSORS; i++) tensor_drop(n->tensors[i]);
    *n = (struct network){0};
}

struct tensor *network_forward(struct exec *ex, const struct network *n, const struct tensor *pixels)
{
    enum { GROUPS = 32 };
    static const struct conv2d halve = {.stride = 2, .pad_before = 1, .pad_after = 1};
    struct tensor *x = op_nchw_to_nhwc(ex, pixels);
    for (int l = 0; l < JUDGE_LEVELS; l++) {
        struct tensor *const *t = n->tensors + (ptrdiff_t)4 * l;
        struct tensor *c = op_conv2d(ex, x, t[0], t[1], halve), *y = op_group_norm_silu(ex, c, t[2], t[3], GROUPS, true);
        tensor_drop(c);
        tensor_drop(x);
        x = y;
    }
    if (!x) return NULL;
    x = tensor_reshape(ex, x, SHAPE(x->shape[0], tensor_count(x) / x->shape[0]));
    struct tensor *logits = op_linear(ex, x, n->tensors[4 * JUDGE_LEVELS], n->tensors[4 * JUDGE_LEVELS + 1]);
    tensor_drop(x);
    return logits;
}

/* -------------------------------------------------------------------------------------------------- files */

/* The names as the file's metadata has them: one a line. The caller frees the block. */
static char *join(aim_context *ctx, const char *const *names, int64_t count)
{
    size_t bytes = 1;
    for (int64_t i = 0; i < count; i++) bytes += strlen(names[i]) + 1;
    char *text = mem_new(ctx, bytes, MEM_MISC), *at = text;
    for (int64_t i = 0; text && i < count; i++) at += snprintf(at, bytes - (size_t)(at - text), i ? "\n%s" : "%s", names[i]);
    return text;
}

aim_status network_save(const struct network *n, const char *const *names, const char *path)
{
    struct tensor_entry entries[JUDGE_TENSORS] = {0};
    char text[JUDGE_TENSORS][32];
    for (int i = 0; i < JUDGE_TENSORS; i++) {
        const struct tensor *t = n->tensors[i];
        name_of(i, text[i], sizeof text[i]);
        entries[i] = (struct tensor_entry){.name = text[i], .dtype = FILE_F32, .ndim = t->ndim, .data = t->data};
        entries[i].bytes = (size_t)tensor_count(t) * sizeof(float);
        for (int d = 0; d < t->ndim; d++) entries[i].shape[d] = t->shape[d];
    }
    char *classes = join(n->ctx, names, n->classes);
    if (!classes) return AIM_ERR_MEMORY;
    const struct tensor_metadata metadata = {"classes", classes};
    aim_status status = safetensors_write(n->ctx, path, entries, JUDGE_TENSORS, &metadata, 1);
    mem_free(classes);
    return status;
}

static aim_status read_tensor(struct network *n, const struct tensor_file *file, const char *path, int i)
{
    char name[32];
    name_of(i, name, sizeof name);
    TRY(make(n, i));
    struct tensor *t = n->tensors[i];
    const struct tensor_entry *entry = tensor_file_find(file, name);
    if (!entry || tensor_entry_elements(entry) != (size_t)tensor_count(t))
        return aim_fail(n->ctx, AIM_ERR_FORMAT, "%s: %s is missing or of another size; is this a judge?", path, name);
    t->needs_grad = false;
    return tensor_entry_to_f32(n->ctx, entry, t->data);
}

aim_status network_load(aim_context *ctx, const char *path, struct network *n, char **names)
{
    struct tensor_file file;
    *n = (struct network){.ctx = ctx};
    *names = NULL;
    TRY(tensor_file_open(ctx, path, &file));
    const char *text = tensor_file_metadata(&file, "classes");
    *names = text ? mem_string(ctx, text, MEM_MISC) : NULL;
    aim_status status = AIM_OK;
    if (!text) status = aim_fail(ctx, AIM_ERR_FORMAT, "%s: there are no classes in this file; is it a judge?", path);
    if (text && !*names) status = AIM_ERR_MEMORY;
    n->classes = 1;
    for (char *c = *names; c && *c; c++) {
        if (*c != '\n') continue;
        *c = '\0';
        n->classes++;
    }
    for (int i = 0; i < JUDGE_TENSORS && status == AIM_OK; i++) status = read_tensor(n, &file, path, i);
    tensor_file_close(&file);
    return status;
}
