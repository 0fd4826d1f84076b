/*
 * Convolution through cuDNN: NHWC maps, filters (O,k,k,I), algorithms whose sums have a fixed order, chosen once a shape.
 *
 * What cuDNN cannot express is done to x beforehand, in one copying kernel: the twofold enlargement, borders of different
 * width, and in bfloat16 channels filled up to a multiple of 8 for the tensor cores. Gradients go the same way back.
 *
 * True float32 goes past it (convolution_f32.cu) where the channels fill a block: cuDNN's choice turns maps around, and leaves
 * most of a GPU idle on small ones. So do narrow maps in bfloat16 (convolution_narrow.cu); bench_cuda_tokenizer compares.
 */
#include "cuda/convolution.cuh"

#include <stdlib.h>
#include <string.h>

#ifdef AIM_CUDNN
#include <cudnn.h>
#endif

#ifndef AIM_CUDNN

aim_status cuda_images_create(struct cuda *c)
{
    (void)c;
    return AIM_OK;
}

void cuda_images_free(struct cuda *c)
{
    (void)c;
}

aim_status cuda_conv2d(struct backend *be, const struct tensor *x, const struct tensor *w, const struct tensor *bias,
                       const struct conv2d *how, struct tensor *y)
{
    if (conv_narrow_serves(x, y, w->shape[2], how)) return conv_narrow(be, x, w, bias, how, y);
    return conv_f32_serves(x, w, bias, how, y) ? conv_f32(be, x, w, bias, how, y) : plain_conv2d(be, x, w, bias, how, y);
}

aim_status cuda_conv2d_backward(struct backend *be, const struct tensor *x, const struct tensor *w, const struct conv2d *how,
                                const struct tensor *dy, struct tensor *dx, struct tensor *dw, struct tensor *dbias)
{
    bool fresh = take_fresh(be, dx);
    if (dx && conv_narrow_serves_inputs(dx, dy, w->shape[2], how))
        TRY(conv_narrow_inputs(be, w, how, dy, fresh, dx));
    else if (dx)
        TRY(plain_conv2d_inputs(be, w, how, dy, fresh, dx));
    if (dw && conv_narrow_serves_weights(x, dy, w->shape[2], how)) return conv_narrow_weights(be, x, how, dy, dw, dbias);
    if (dw) TRY(plain_conv2d_weights(be, x, how, dy, dw));
    return dbias ? cuda_column_sums(be, dy, f32(dbias)) : AIM_OK;
}

#else

/* --------------------------------------------------------------------------------------------------- plans */

enum direction { FORWARD, INPUTS, WEIGHTS };

/* Everything that a plan depends on: the shapes as cuDNN sees them. Compared as bytes. */
struct conv_key {
    int32_t direction, type, exact; /* exact: float32 products, no shorter ones */
    int32_t N, H, W, I, OH, OW, O, kernel, stride, pad;
};

struct conv_plan {
    struct conv_plan *next;
    struct conv_key key;
    cudnnTensorDescriptor_t x, y, bias;
    cudnnFilterDescriptor_t w;
    cudnnConvolutionDescriptor_t conv;
    cudnnActivationDescriptor_t identity;
    int algorithm;
    bool usable; /* cuDNN has an algorithm */
    bool fused;  /* forward: cuDNN adds the bias as well */
    size_t workspace;
};

enum { MOST_WORKSPACE = 1 << 30, CANDIDATES = 10 };

static cudnnHandle_t dnn_of(struct backend *be)
{
    return (cudnnHandle_t)(cuda_of(be)->dnn);
}

aim_status cuda_images_create(struct cuda *c)
{
    const char *way = getenv("AIM_CUDA_CONV");
    c->dnn_alone = way && strcmp(way, "cudnn") == 0;
    return AIM_OK; /* cuDNN takes its time to start: it does when a convolution first needs it */
}

static aim_status start_dnn(struct backend *be)
{
    struct cuda *c = cuda_of(be);
    if (c->dnn) return AIM_OK;
    cudnnHandle_t dnn = NULL;
    cudnnStatus_t status = cudnnCreate(&dnn);
    if (status == CUDNN_STATUS_SUCCESS) status = cudnnSetStream(dnn, c->stream);
    if (status != CUDNN_STATUS_SUCCESS) {
        if (dnn) cudnnDestroy(dnn);
        return aim_fail(be->ctx, AIM_ERR_UNSUPPORTED, "cuDNN cannot be started on this GPU: %s", cudnnGetErrorString(status));
    }
    c->dnn = dnn;
    return AIM_OK;
}

static void plan_free(struct conv_plan *p)
{
    if (p->x) cudnnDestroyTensorDescriptor(p->x);
    if (p->y) cudnnDestroyTensorDescriptor(p->y);
    if (p->bias) cudnnDestroyTensorDescriptor(p->bias);
    if (p->w) cudnnDestroyFilterDescriptor(p->w);
    if (p->conv) cudnnDestroyConvolutionDescriptor(p->conv);
    if (p->identity) cudnnDestroyActivationDescriptor(p->identity);
    free(p);
}

void cuda_images_free(struct cuda *c)
{
    for (struct conv_plan *p = (struct conv_plan *)c->images, *next; p; p = next) {
        next = p->next;
        plan_free(p);
    }
    if (c->dnn) cudnnDestroy((cudnnHandle_t)c->dnn);
}

#define DNN(call) ((call) == CUDNN_STATUS_SUCCESS)

static bool describe(struct conv_plan *p)
{
    const struct conv_key *k = &p->key;
    cudnnDataType_t type = k->type == T_BF16 ? CUDNN_DATA_BFLOAT16 : CUDNN_DATA_FLOAT;
    return DNN(cudnnCreateTensorDescriptor(&p->x)) && DNN(cudnnCreateTensorDescriptor(&p->y)) &&
           DNN(cudnnCreateTensorDescriptor(&p->bias)) && DNN(cudnnCreateFilterDescriptor(&p->w)) &&
           DNN(cudnnCreateConvolutionDescriptor(&p->conv)) && DNN(cudnnCreateActivationDescriptor(&p->identity)) &&
           DNN(cudnnSetTensor4dDescriptor(p->x, CUDNN_TENSOR_NHWC, type, k->N, k->I, k->H, k->W)) &&
           DNN(cudnnSetTensor4dDescriptor(p->y, CUDNN_TENSOR_NHWC, type, k->N, k->O, k->OH, k->OW)) &&
           DNN(cudnnSetTensor4dDescriptor(p->bias, CUDNN_TENSOR_NHWC, type, 1, k->O, 1, 1)) &&
           DNN(cudnnSetFilter4dDescriptor(p->w, type, CUDNN_TENSOR_NHWC, k->O, k->I, k->kernel, k->kernel)) &&
           DNN(cudnnSetConvolution2dDescriptor(p->conv, k->pad, k->pad, k->stride, k->stride, 1, 1, CUDNN_CROSS_CORRELATION,
                                               CUDNN_DATA_FLOAT)) &&
           DNN(cudnnSetConvolutionMathType(p->conv, k->exact ? CUDNN_FMA_MATH : CUDNN_TENSOR_OP_MATH)) &&
           DNN(cudnnSetActivationDescriptor(p->identity, CUDNN_ACTIVATION_IDENTITY, CUDNN_PROPAGATE_NAN, 0));
}

/* The first of the library's suggestions, fastest first, that has a fixed order of sums and the right kind of products. */
template <typename Found> static bool take_first(struct conv_plan *p, const Found *found, int count)
{
    for (int i = 0; i < count; i++) {
        const Found *f = &found[i];
        bool exact = f->mathType == CUDNN_FMA_MATH || f->mathType == CUDNN_DEFAULT_MATH;
        if (f->status != CUDNN_STATUS_SUCCESS || f->determinism != CUDNN_DETERMINISTIC || f->memory > MOST_WORKSPACE) continue;
        if (p->key.exact && !exact) continue;
        /* Float32 keeps the multiply-adds asked for: the default would allow shorter products. */
        if (!p->key.exact && !DNN(cudnnSetConvolutionMathType(p->conv, f->mathType))) continue;
        p->algorithm = f->algo;
        return true;
    }
    return false;
}

static bool choose_forward(cudnnHandle_t dnn, struct conv_plan *p)
{
    cudnnConvolutionFwdAlgoPerf_t found[CANDIDATES];
    int count = 0;
    return DNN(cudnnGetConvolutionForwardAlgorithm_v7(dnn, p->x, p->w, p->conv, p->y, CANDIDATES, &count, found)) &&
           take_first(p, found, count) &&
           DNN(cudnnGetConvolutionForwardWorkspaceSize(dnn, p->x, p->w, p->conv, p->y, (cudnnConvolutionFwdAlgo_t)p->algorithm,
                                                       &p->workspace));
}

/* With the bias in the same pass: the library has that for one algorithm when no activation follows. */
static bool choose_fused(cudnnHandle_t dnn, struct conv_plan *p)
{
    size_t workspace = 0;
    if (p->algorithm != CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM &&
        (!DNN(cudnnGetConvolutionForwardWorkspaceSize(dnn, p->x, p->w, p->conv, p->y,
                                                      CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM, &workspace)) ||
         workspace > MOST_WORKSPACE))
        return false;
    if (workspace > p->workspace) p->workspace = workspace;
    return true;
}

static bool choose_inputs(cudnnHandle_t dnn, struct conv_plan *p)
{
    cudnnConvolutionBwdDataAlgoPerf_t found[CANDIDATES];
    int count = 0;
    return DNN(cudnnGetConvolutionBackwardDataAlgorithm_v7(dnn, p->w, p->y, p->conv, p->x, CANDIDATES, &count, found)) &&
           take_first(p, found, count) &&
           DNN(cudnnGetConvolutionBackwardDataWorkspaceSize(dnn, p->w, p->y, p->conv, p->x,
                                                            (cudnnConvolutionBwdDataAlgo_t)p->algorithm, &p->workspace));
}

static bool choose_weights(cudnnHandle_t dnn, struct conv_plan *p)
{
    cudnnConvolutionBwdFilterAlgoPerf_t found[CANDIDATES];
    int count = 0;
    return DNN(cudnnGetConvolutionBackwardFilterAlgorithm_v7(dnn, p->x, p->y, p->conv, p->w, CANDIDATES, &count, found)) &&
           take_first(p, found, count) &&
           DNN(cudnnGetConvolutionBackwardFilterWorkspaceSize(dnn, p->x, p->y, p->conv, p->w,
                                                              (cudnnConvolutionBwdFilterAlgo_t)p->algorithm, &p->workspace));
}

static void make_plan(cudnnHandle_t dnn, struct conv_plan *p)
{
    if (!describe(p)) return;
    switch (p->key.direction) {
    case FORWARD: p->usable = choose_forward(dnn, p); break;
    case INPUTS: p->usable = choose_inputs(dnn, p); break;
    default: p->usable = choose_weights(dnn, p); break;
    }
    if (p->workspace > MOST_WORKSPACE) p->usable = false;
    p->fused = p->usable && p->key.direction == FORWARD && choose_fused(dnn, p);
}

/* A plan that is not usable stays in the list and is not tried again. */
static aim_status plan_for(struct backend *be, const struct conv_key *key, struct conv_plan **out)
{
    struct cuda *c = cuda_of(be);
    for (struct conv_plan *p = (struct conv_plan *)c->images; p; p = p->next)
        if (memcmp(&p->key, key, sizeof *key) == 0) {
            *out = p;
            return AIM_OK;
        }
    TRY(start_dnn(be));
    struct conv_plan *p = *out = (struct conv_plan *)calloc(1, sizeof *p);
    if (!p) return aim_fail(be->ctx, AIM_ERR_MEMORY, "out of memory");
    p->key = *key;
    make_plan(dnn_of(be), p);
    p->next = (struct conv_plan *)c->images;
    c->images = p;
    return AIM_OK;
}

/* What cuDNN says where it has nothing for a shape: then, and only then, the plain way serves. */
static bool not_supported(cudnnStatus_t status)
{
    return CUDNN_STATUS_CATEGORY(status) == CUDNN_STATUS_NOT_SUPPORTED ||
           CUDNN_STATUS_CATEGORY(status) == CUDNN_STATUS_BAD_PARAM;
}

static aim_status dnn_failed(struct backend *be, cudnnStatus_t status, const char *op)
{
    return aim_fail(be->ctx, AIM_ERR_INTERNAL, "cuDNN: %s (%s)", cudnnGetErrorString(status), op);
}

/* ------------------------------------------------------------------------------------------------- geometry */

static struct conv conv_of(const struct tensor *x, const struct tensor *y, int64_t kernel, const struct conv2d *how)
{
    struct conv c = {};
    bool even = how->pad_before == how->pad_after;
    c.N = x->shape[0], c.H = x->shape[1], c.W = x->shape[2], c.I = x->shape[3];
    c.OH = y->shape[1], c.OW = y->shape[2], c.O = y->shape[3];
    c.kernel = kernel;
    c.type = x->type;
    c.grow = how->upsample ? 2 : 1;
    c.border = even ? 0 : how->pad_before;
    c.pad = even ? how->pad_before : 0;
    c.stride = how->stride;
    c.seen_H = c.H * c.grow + (even ? 0 : how->pad_before + how->pad_after);
    c.seen_W = c.W * c.grow + (even ? 0 : how->pad_before + how->pad_after);
    c.seen_I = c.type == T_BF16 ? divide_up(c.I, 8) * 8 : c.I;
    c.seen_O = c.type == T_BF16 ? divide_up(c.O, 8) * 8 : c.O;
    c.x_as_is = even && !how->upsample && c.seen_I == c.I;
    c.y_as_is = c.seen_O == c.O;
    return c;
}

static struct conv_key key_of(struct backend *be, const struct conv *c, enum direction direction)
{
    struct conv_key k;
    memset(&k, 0, sizeof k);
    k.direction = direction, k.type = c->type, k.exact = c->type == T_F32 && !be->bf16;
    k.N = (int32_t)c->N, k.H = (int32_t)c->seen_H, k.W = (int32_t)c->seen_W, k.I = (int32_t)c->seen_I;
    k.OH = (int32_t)c->OH, k.OW = (int32_t)c->OW, k.O = (int32_t)c->seen_O;
    k.kernel = (int32_t)c->kernel, k.stride = c->stride, k.pad = c->pad;
    return k;
}

static size_t seen_x_bytes(const struct conv *c)
{
    return (size_t)(c->N * c->seen_H * c->seen_W * c->seen_I) * tensor_type_size(c->type);
}

static size_t seen_y_bytes(const struct conv *c)
{
    return (size_t)(c->N * c->OH * c->OW * c->seen_O) * tensor_type_size(c->type);
}

/* ------------------------------------------------------------------------------------------------- forward */

static const void *filters_kept(struct backend *be, const struct conv *c, const struct tensor *w)
{
    return conv_kept(be, c, w, (int64_t)conv_filter_count(c), conv_order_filters);
}

/* Where a call's pieces are. */
struct forward {
    struct conv_plan *plan;
    const void *x, *filters, *bias;
    void *y, *workspace;
};

static cudnnStatus_t run_forward(struct backend *be, const struct forward *f, bool fused)
{
    const struct conv_plan *p = f->plan;
    const float one = 1, zero = 0;
    if (fused)
        return cudnnConvolutionBiasActivationForward(
            dnn_of(be), &one, p->x, f->x, p->w, f->filters, p->conv, CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM,
            f->workspace, p->workspace, &zero, p->y, f->y, p->bias, f->bias, p->identity, p->y, f->y);
    return cudnnConvolutionForward(dnn_of(be), &one, p->x, f->x, p->w, f->filters, p->conv,
                                   (cudnnConvolutionFwdAlgo_t)p->algorithm, f->workspace, p->workspace, &zero, p->y, f->y);
}

/* Fills in the pieces that are not the tensors themselves. */
static aim_status prepare_forward(struct backend *be, const struct conv *c, const struct tensor *x, const struct tensor *w,
                                  const struct tensor *bias, struct tensor *y, struct forward *f)
{
    struct pieces room = {};
    bool fused = bias && f->plan->fused && c->y_as_is;
    f->filters = filters_kept(be, c, w);
    if (fused) f->bias = c->type == T_F32 ? bias->data : conv_kept(be, c, bias, c->seen_O, conv_see_bias);
    size_t size = tensor_type_size(c->type);
    size_t filters = piece(&room, f->filters ? 0 : conv_filter_count(c) * size);
    size_t seen_bias = piece(&room, fused && !f->bias ? (size_t)c->seen_O * size : 0);
    size_t seen_x = piece(&room, c->x_as_is ? 0 : seen_x_bytes(c)), seen_y = piece(&room, c->y_as_is ? 0 : seen_y_bytes(c));
    size_t workspace = piece(&room, f->plan->workspace);
    char *block = (char *)(cuda_scratch(be, room.total));
    if (!block) return AIM_ERR_MEMORY;
    if (!f->filters) {
        conv_order_filters(be, c, f32(w), block + filters);
        f->filters = block + filters;
    }
    if (!c->x_as_is) conv_see_x(be, c, x->data, block + seen_x);
    f->x = c->x_as_is ? x->data : block + seen_x;
    f->y = c->y_as_is ? y->data : block + seen_y;
    f->workspace = block + workspace;
    if (fused && !f->bias) {
        conv_see_bias(be, c, f32(bias), block + seen_bias);
        f->bias = block + seen_bias;
    }
    return cuda_launched(be, "conv2d");
}

static aim_status dnn_forward(struct backend *be, const struct tensor *x, const struct tensor *w, const struct tensor *bias,
                              const struct conv2d *how, struct tensor *y)
{
    struct conv c = conv_of(x, y, w->shape[2], how);
    struct conv_key key = key_of(be, &c, FORWARD);
    struct forward f = {};
    TRY(plan_for(be, &key, &f.plan));
    if (!f.plan->usable) return plain_conv2d(be, x, w, bias, how, y);
    TRY(prepare_forward(be, &c, x, w, bias, y, &f));
    bool fused = bias && f.plan->fused && c.y_as_is;
    cudnnStatus_t status = run_forward(be, &f, fused);
    if (fused && not_supported(status)) {
        f.plan->fused = fused = false;
        status = run_forward(be, &f, false);
    }
    if (not_supported(status)) {
        f.plan->usable = false;
        return plain_conv2d(be, x, w, bias, how, y);
    }
    if (status != CUDNN_STATUS_SUCCESS) return dnn_failed(be, status, "conv2d");
    if (!c.y_as_is || (bias && !fused)) conv_finish_y(be, &c, f.y, data_of<float>(bias), y->data);
    return cuda_launched(be, "conv2d");
}

/* ------------------------------------------------------------------------------------------------ backward */

/* dy as cuDNN sees it: itself, or a copy with channels filled up */
static const void *see_dy(struct backend *be, const struct conv *c, const struct tensor *dy, void *room)
{
    if (c->y_as_is) return dy->data;
    conv_see_dy(be, c, dy->data, room);
    return room;
}

static aim_status dnn_inputs(struct backend *be, const struct tensor *w, const struct conv2d *how, const struct tensor *dy,
                             bool fresh, struct tensor *dx)
{
    struct conv c = conv_of(dx, dy, w->shape[2], how);
    struct conv_key key = key_of(be, &c, INPUTS);
    struct conv_plan *p = NULL;
    TRY(plan_for(be, &key, &p));
    if (!p->usable) return plain_conv2d_inputs(be, w, how, dy, fresh, dx);
    const void *kept = filters_kept(be, &c, w);
    struct pieces room = {};
    size_t filters = piece(&room, kept ? 0 : conv_filter_count(&c) * tensor_type_size(c.type));
    size_t seen_y = piece(&room, c.y_as_is ? 0 : seen_y_bytes(&c)), seen_x = piece(&room, c.x_as_is ? 0 : seen_x_bytes(&c));
    size_t workspace = piece(&room, p->workspace);
    char *block = (char *)(cuda_scratch(be, room.total));
    if (!block) return AIM_ERR_MEMORY;
    if (!kept) conv_order_filters(be, &c, f32(w), block + filters);
    const void *up = see_dy(be, &c, dy, block + seen_y);
    const float one = 1, add = c.x_as_is && !fresh ? 1.0f : 0.0f;
    cudnnStatus_t status = cudnnConvolutionBackwardData(dnn_of(be), &one, p->w, kept ? kept : block + filters, p->y, up,
                                                        p->conv, (cudnnConvolutionBwdDataAlgo_t)p->algorithm, block + workspace,
                                                        p->workspace, &add, p->x, c.x_as_is ? dx->data : block + seen_x);
    if (not_supported(status)) {
        p->usable = false;
        return plain_conv2d_inputs(be, w, how, dy, fresh, dx);
    }
    if (status != CUDNN_STATUS_SUCCESS) return dnn_failed(be, status, "conv2d_backward");
    if (!c.x_as_is) conv_add_seen(be, &c, block + seen_x, fresh, dx->data);
    return cuda_launched(be, "conv2d_backward");
}

static aim_status dnn_weights(struct backend *be, const struct tensor *x, const struct conv2d *how, const struct tensor *dy,
                              struct tensor *dw)
{
    struct conv c = conv_of(x, dy, dw->shape[2], how);
    struct conv_key key = key_of(be, &c, WEIGHTS);
    struct conv_plan *p = NULL;
    TRY(plan_for(be, &key, &p));
    if (!p->usable) return plain_conv2d_weights(be, x, how, dy, dw);
    struct pieces room = {};
    size_t seen_y = piece(&room, c.y_as_is ? 0 : seen_y_bytes(&c)), seen_x = piece(&room, c.x_as_is ? 0 : seen_x_bytes(&c));
    size_t filters = piece(&room, conv_filter_count(&c) * tensor_type_size(c.type)), workspace = piece(&room, p->workspace);
    char *block = (char *)(cuda_scratch(be, room.total));
    if (!block) return AIM_ERR_MEMORY;
    const void *up = see_dy(be, &c, dy, block + seen_y);
    if (!c.x_as_is) conv_see_x(be, &c, x->data, block + seen_x);
    const float one = 1, zero = 0;
    cudnnStatus_t status = cudnnConvolutionBackwardFilter(dnn_of(be), &one, p->x, c.x_as_is ? x->data : block + seen_x, p->y,
                                                          up, p->conv, (cudnnConvolutionBwdFilterAlgo_t)p->algorithm,
                                                          block + workspace, p->workspace, &zero, p->w, block + filters);
    if (not_supported(status)) {
        p->usable = false;
        return plain_conv2d_weights(be, x, how, dy, dw);
    }
    if (status != CUDNN_STATUS_SUCCESS) return dnn_failed(be, status, "conv2d_backward");
    conv_add_filters(be, &c, block + filters, f32(dw));
    return cuda_launched(be, "conv2d_backward");
}

/* ------------------------------------------------------------------------------------------------- the ops */

/* Pictures that cuDNN takes at a time: it counts values in 32 bits, and for float32 turns maps around in its workspace, which
 * must hold two of them. Batches are halved until they fit: few different ones arise. */
static int64_t pictures_at_once(const struct tensor *x, const struct tensor *y, const struct conv2d *how)
{
    const int64_t most = x->type == T_F32 ? (int64_t)MOST_WORKSPACE / 10 : (int64_t)1 << 30;
    int64_t border = how->pad_before + how->pad_after, grow = how->upsample ? 2 : 1;
    int64_t seen = (x->shape[1] * grow + border) * (x->shape[2] * grow + border) * (x->shape[3] + 7);
    int64_t made = y->shape[1] * y->shape[2] * (y->shape[3] + 7);
    int64_t lines = 65535 / (x->shape[1] * grow + border); /* blocks of a grid */
    int64_t fit = min64(lines, most / max64(seen, made)), n = x->shape[0];
    while (n > 1 && n > fit) n = divide_up(n, 2);
    return max64(n, 1);
}

/* Pictures from .. from+n of a map; NULL stays NULL. */
static struct tensor *slice(const struct tensor *t, int64_t from, int64_t n, struct tensor *view)
{
    if (!t) return NULL;
    size_t each = (size_t)(t->shape[1] * t->shape[2] * t->shape[3]) * tensor_type_size(t->type);
    *view = *t;
    view->shape[0] = n;
    view->data = (char *)(t->data) + (size_t)from * each;
    return view;
}

aim_status cuda_conv2d(struct backend *be, const struct tensor *x, const struct tensor *w, const struct tensor *bias,
                       const struct conv2d *how, struct tensor *y)
{
    if (!cuda_of(be)->dnn_alone && conv_narrow_serves(x, y, w->shape[2], how)) return conv_narrow(be, x, w, bias, how, y);
    if (!be->bf16 && conv_f32_serves(x, w, bias, how, y)) return conv_f32(be, x, w, bias, how, y);
    int64_t N = x->shape[0], most = pictures_at_once(x, y, how);
    for (int64_t at = 0; at < N; at += most) {
        struct tensor some_x, some_y;
        int64_t n = N - at < most ? N - at : most;
        TRY(dnn_forward(be, slice(x, at, n, &some_x), w, bias, how, slice(y, at, n, &some_y)));
    }
    return AIM_OK;
}

static aim_status dnn_backward(struct backend *be, const struct tensor *x, const struct tensor *w, const struct conv2d *how,
                               const struct tensor *dy, bool fresh, struct tensor *dx, struct tensor *dw)
{
    int64_t N = x->shape[0], most = pictures_at_once(x, dy, how);
    for (int64_t at = 0; at < N; at += most) {
        struct tensor some_x, some_dy, some_dx;
        int64_t n = N - at < most ? N - at : most;
        slice(x, at, n, &some_x);
        slice(dy, at, n, &some_dy);
        if (dx) TRY(dnn_inputs(be, w, how, &some_dy, fresh, slice(dx, at, n, &some_dx)));
        if (dw) TRY(dnn_weights(be, &some_x, how, &some_dy, dw));
    }
    return AIM_OK;
}

aim_status cuda_conv2d_backward(struct backend *be, const struct tensor *x, const struct tensor *w, const struct conv2d *how,
                                const struct tensor *dy, struct tensor *dx, struct tensor *dw, struct tensor *dbias)
{
    bool fresh = take_fresh(be, dx), ours = !cuda_of(be)->dnn_alone;
    bool narrow = ours && dx && conv_narrow_serves_inputs(dx, dy, w->shape[2], how);
    bool narrow_dw = ours && dw && conv_narrow_serves_weights(x, dy, w->shape[2], how);
    if (narrow) TRY(conv_narrow_inputs(be, w, how, dy, fresh, dx));
    if (narrow_dw) TRY(conv_narrow_weights(be, x, how, dy, dw, dbias));
    TRY(dnn_backward(be, x, w, how, dy, fresh, narrow ? NULL : dx, narrow_dw ? NULL : dw));
    return dbias && !narrow_dw ? cuda_column_sums(be, dy, f32(dbias)) : AIM_OK;
}

#endif
