#include "train/lpips.h"

#include <stdio.h>
#include <string.h>

#include "tensor/backend.h"
#include "tensor/tape.h"

/* VGG16's convolutions: torchvision's index, channels out, whether a tap follows, and pooling before. */
static const struct {
    int index, out;
    bool tap, pool;
} layers[LPIPS_CONVS] = {
    {0, 64, false, false},   {2, 64, true, false},    {5, 128, false, true},  {7, 128, true, false},   {10, 256, false, true},
    {12, 256, false, false}, {14, 256, true, false},  {17, 512, false, true}, {19, 512, false, false}, {21, 512, true, false},
    {24, 512, false, true},  {26, 512, false, false}, {28, 512, true, false},
};

/* -------------------------------------------------------------------------------------------------- weights */

aim_status lpips_describe(struct params *table)
{
    int64_t in = 3, tap = 0;
    for (int i = 0; i < LPIPS_CONVS; i++) {
        int64_t out = layers[i].out;
        TRY(params_add(table, INIT_ZERO, 0, SHAPE(out, in, 3, 3), "features.%d.weight", layers[i].index));
        TRY(params_add(table, INIT_ZERO, 0, SHAPE(out), "features.%d.bias", layers[i].index));
        in = out;
    }
    for (int i = 0; i < LPIPS_CONVS; i++)
        if (layers[i].tap)
            TRY(params_add(table, INIT_ZERO, 0, SHAPE(1, layers[i].out, 1, 1), "lin%d.model.1.weight", (int)tap++));
    return AIM_OK;
}

/* A row's values in memory of the tensor's own, never to be trained. */
static struct tensor *fixed(const struct params *table, const struct param *row)
{
    struct tensor *t = row ? params_trainable(table, row) : NULL;
    if (!t) return NULL;
    t->needs_grad = false;
    t->constant = true;
    return t;
}

/* y_c = (x_c - shift_c) / scale_c as a product with a diagonal matrix */
static aim_status build_input(aim_context *ctx, struct lpips *l)
{
    static const float shift[3] = {-0.030f, -0.088f, -0.188f}, scale[3] = {0.458f, 0.448f, 0.450f};
    float w[9] = {0}, b[3];
    for (int c = 0; c < 3; c++) {
        w[4 * c] = 1 / scale[c];
        b[c] = -shift[c] / scale[c];
    }
    l->input_w = tensor_new_weight(ctx, T_F32, SHAPE(3, 3));
    l->input_b = tensor_new_weight(ctx, T_F32, SHAPE(3));
    if (!l->input_w || !l->input_b) return ctx->status;
    struct backend *be = ctx->backend;
    TRY(be->memory.upload(be, l->input_w->data, w, sizeof w));
    return be->memory.upload(be, l->input_b->data, b, sizeof b);
}

aim_status lpips_build(const struct params *table, struct lpips **out)
{
    struct lpips *l = *out = mem_zero(table->ctx, 1, sizeof *l, MEM_MISC);
    if (!l) return AIM_ERR_MEMORY;
    TRY(build_input(table->ctx, l));
    for (int i = 0; i < LPIPS_CONVS; i++) {
        l->w[i] = fixed(table, params_find(table, "features.%d.weight", layers[i].index));
        l->b[i] = fixed(table, params_find(table, "features.%d.bias", layers[i].index));
        if (!l->w[i] || !l->b[i]) return table->ctx->status;
    }
    for (int i = 0; i < LPIPS_TAPS; i++) {
        l->lin[i] = fixed(table, params_find(table, "lin%d.model.1.weight", i));
        if (!l->lin[i]) return table->ctx->status;
    }
    return AIM_OK;
}

void lpips_free(struct lpips *l)
{
    if (!l) return;
    tensor_drop(l->input_w);
    tensor_drop(l->input_b);
    for (int i = 0; i < LPIPS_CONVS; i++) {
        tensor_drop(l->w[i]);
        tensor_drop(l->b[i]);
    }
    for (int i = 0; i < LPIPS_TAPS; i++) tensor_drop(l->lin[i]);
    mem_free(l);
}

/* --------------------------------------------------------------------------------------------------- files */

/* The tensor of a row, under torchvision's name or as net.sliceS.N.weight, S from 1 to 5 being the part that N is in. */
static const struct tensor_entry *find_entry(const struct tensor_file *file, const char *name)
{
    const struct tensor_entry *e = tensor_file_find(file, name);
    const char *rest = strncmp(name, "features", 8) == 0 ? name + 8 : NULL;
    for (int slice = 1; !e && rest && slice <= LPIPS_TAPS; slice++) {
        char merged[64];
        snprintf(merged, sizeof merged, "net.slice%d%s", slice, rest);
        e = tensor_file_find(file, merged);
    }
    return e;
}

/* lin0 of (1,64,1,1) is 64 values whatever shape they lie in; filters are given as PyTorch has them. */
static aim_status find_rows(struct params *table, const char *vgg, const struct tensor_file *vgg_file, const char *lin,
                            const struct tensor_file *lin_file)
{
    for (size_t i = 0; i < table->count; i++) {
        struct param *row = &table->items[i];
        bool of_lin = row->name[0] == 'l';
        const char *path = of_lin ? lin : vgg;
        int64_t count = 1, wanted = 1;
        row->entry = find_entry(of_lin ? lin_file : vgg_file, row->name);
        if (!row->entry) return aim_fail(table->ctx, AIM_ERR_FORMAT, "%s: the tensor %s of LPIPS is missing", path, row->name);
        for (int k = 0; k < row->entry->ndim; k++) count *= row->entry->shape[k];
        for (int k = 0; k < row->ndim; k++) wanted *= row->shape[k];
        if (count != wanted)
            return aim_fail(table->ctx, AIM_ERR_FORMAT, "%s: %s has %lld values, but LPIPS needs %lld", path, row->name,
                            (long long)count, (long long)wanted);
    }
    return AIM_OK;
}

aim_status lpips_load(aim_context *ctx, const char *vgg, const char *lin, struct lpips **out)
{
    *out = NULL;
    if (!vgg)
        return aim_fail(ctx, AIM_ERR_ARGUMENT,
                        "the perceptual loss needs VGG16 (torchvision's vgg16-397923af.pth) and LPIPS's vgg.pth");
    struct tensor_file vgg_file = {0}, lin_file = {0};
    struct params table = {.ctx = ctx, .prefix = ""};
    aim_status status = tensor_file_open(ctx, vgg, &vgg_file);
    if (status == AIM_OK && lin) status = tensor_file_open(ctx, lin, &lin_file);
    if (status == AIM_OK) status = lpips_describe(&table);
    if (status == AIM_OK) status = find_rows(&table, vgg, &vgg_file, lin ? lin : vgg, lin ? &lin_file : &vgg_file);
    if (status == AIM_OK) status = lpips_build(&table, out);
    if (status != AIM_OK) {
        lpips_free(*out);
        *out = NULL;
    }
    params_free(&table);
    tensor_file_close(&vgg_file);
    tensor_file_close(&lin_file);
    return status;
}

/* ------------------------------------------------------------------------------------------------- distance */

/* The features at the taps, the caller's. */
static void features(struct exec *ex, const struct lpips *l, const struct tensor *pixels, struct tensor *taps[LPIPS_TAPS])
{
    static const struct conv2d same = {.stride = 1, .pad_before = 1, .pad_after = 1};
    struct tensor *image = op_nchw_to_nhwc(ex, pixels), *x = op_linear(ex, image, l->input_w, l->input_b);
    tensor_drop(image);
    for (int i = 0, tap = 0; i < LPIPS_CONVS; i++) {
        if (layers[i].pool) {
            struct tensor *pooled = op_max_pool(ex, x);
            tensor_drop(x);
            x = pooled;
        }
        struct tensor *y = op_conv2d(ex, x, l->w[i], l->b[i], same);
        tensor_drop(x);
        x = op_leaky_relu(ex, y, 0);
        tensor_drop(y);
        if (layers[i].tap) taps[tap++] = tensor_keep(x);
    }
    tensor_drop(x);
}

struct tensor *lpips_forward(struct exec *ex, const struct lpips *l, const struct tensor *a, const struct tensor *b,
                             const struct dropout *dropout)
{
    struct tensor *of_a[LPIPS_TAPS] = {0}, *of_b[LPIPS_TAPS] = {0}, *sum = NULL;
    features(ex, l, b, of_b);
    features(ex, l, a, of_a);
    for (int i = 0; i < LPIPS_TAPS; i++) {
        struct dropout here = {0};
        if (dropout) here = (struct dropout){dropout->seed, dropout->position * LPIPS_TAPS + (uint32_t)i};
        struct tensor *d = op_lpips_distance(ex, of_a[i], of_b[i], l->lin[i], dropout ? &here : NULL);
        struct tensor *more = i ? op_add(ex, sum, d) : tensor_keep(d);
        tensor_drop(sum);
        tensor_drop(d);
        tensor_drop(of_a[i]);
        tensor_drop(of_b[i]);
        sum = more;
    }
    return sum;
}
