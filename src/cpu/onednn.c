/*
 * Dense products through oneDNN, for its C API of versions 2 and 3.
 *
 * linear and attention cut their work into blocks whose sizes do not depend on the number of threads and give each to
 * one single-threaded product: the threads are ours, and the results the same however many there are.
 *
 * conv2d takes the convolutions that Winograd's algorithm (kernels/winograd.c) does not: of one pixel (a product), with
 * a stride, with few channels, of small maps. The library's primitives for them are kept by shape, and the weights in
 * the library's order with the weights' tensor.
 */
#include "cpu/cpu.h"

#include <math.h>
#include <omp.h>
#include <stdio.h>

#include "cpu/converted.h"
#include "cpu/kernels/conv.h"
#include "cpu/onednn_compat.h"

enum {
    LINEAR_LEAST = 128, /* rows and columns of the result in one product: the more, the less each value is packed again, */
    LINEAR_MOST = 512,  /* but not so many that ... */
    LINEAR_TASKS = 48,  /* fewer products than these are left to share out */
    ATTENTION_ROWS = 64,
    CONVOLUTIONS = 64, /* shapes whose primitives are kept */
};

/* What a convolution is known by. */
struct shape {
    int64_t N, H, W, I, O, k, OH, OW, stride, pad_before, pad_after;
};

struct convolution {
    struct shape shape;
    dnnl_primitive_desc_t desc;
    dnnl_primitive_t primitive;
};

struct dense {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    dnnl_primitive_attr_t attr;                  /* our scratchpads, not the library's */
    aim_status(*plain_conv2d) CONV2D_PARAMETERS; /* the tier's own */
    aim_status (*plain_linear)(struct backend *be, const struct tensor *x, const struct tensor *w, const struct tensor *bias,
                               struct tensor *y);
    aim_status (*plain_linear_backward)(struct backend *be, const struct tensor *x, const struct tensor *w,
                                        const struct tensor *dy, struct tensor *dx, struct tensor *dw, struct tensor *dbias);
    struct convolution kept[CONVOLUTIONS];
    int next; /* the one to go when all are taken */
};

static int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static aim_status check(aim_context *ctx, dnnl_status_t status, const char *what)
{
    if (status == dnnl_success) return AIM_OK;
    if (status == dnnl_out_of_memory) return aim_fail(ctx, AIM_ERR_MEMORY, "out of memory in oneDNN (%s)", what);
    return aim_fail(ctx, AIM_ERR_INTERNAL, "oneDNN failed with status %d (%s)", (int)status, what);
}

/* Keeps the first failure of several threads. */
static void note(dnnl_status_t status, int *worst)
{
    if (status != dnnl_success) __atomic_store_n(worst, (int)status, __ATOMIC_RELAXED);
}

/* ---------------------------------------------------------------------------------------------- linear */

/* Rows and columns of a block of an (M,N) result; its shape alone decides. */
static int64_t block_side(int64_t M, int64_t N)
{
    int64_t side = LINEAR_MOST;
    while (side > LINEAR_LEAST && ((M + side - 1) / side) * ((N + side - 1) / side) < LINEAR_TASKS) side /= 2;
    return side;
}

static void expand_bf16(const uint16_t *from, int64_t n, float *to)
{
    for (int64_t i = 0; i < n; i++) to[i] = bf16_to_f32(from[i]);
}

static aim_status onednn_linear(struct backend *be, const struct tensor *x, const struct tensor *w, const struct tensor *bias,
                                struct tensor *y)
{
    const struct dense *d = be->state;
    if (be->bf16 && w->type == T_F32) return d->plain_linear(be, x, w, bias, y);
    int64_t N = w->shape[0], K = tensor_cols(x), M = tensor_rows(x);
    int64_t side = block_side(M, N), row_blocks = (M + side - 1) / side, col_blocks = (N + side - 1) / side;
    bool bf16 = w->type == T_BF16;
    float *scratch = NULL; /* a block of w for each thread */
    if (bf16) {
        scratch = mem_array(be->ctx, (size_t)(be->threads * side * K), sizeof(float), MEM_ACTIVATIONS);
        if (!scratch) return AIM_ERR_MEMORY;
    }
    int failed = dnnl_success;
#pragma omp parallel num_threads(be->threads)
    {
        omp_set_num_threads(1); /* for this region: the library must not start a team of its own */
#pragma omp for schedule(dynamic)
        for (int64_t block = 0; block < row_blocks * col_blocks; block++) {
            int64_t n0 = block / row_blocks * side, m0 = block % row_blocks * side;
            int64_t n = min64(N - n0, side), m = min64(M - m0, side);
            float *out = f32(y) + m0 * N + n0;
            const float *filters = f32(w) + n0 * K;
            if (bf16) {
                float *expanded = scratch + omp_get_thread_num() * side * K;
                expand_bf16((const uint16_t *)w->data + n0 * K, n * K, expanded);
                filters = expanded;
            }
            for (int64_t i = 0; bias && i < m; i++) memcpy(out + i * N, f32(bias) + n0, (size_t)n * sizeof(float));
            note(dnnl_sgemm('N', 'T', m, n, K, 1.0f, f32(x) + m0 * K, K, filters, K, bias ? 1.0f : 0.0f, out, N), &failed);
        }
    }
    mem_free(scratch);
    return check(be->ctx, (dnnl_status_t)failed, "product");
}

/* C (M,N) += A B in blocks, one thread each; A is taken transposed, stored (K,M), if `turned`, else (M,K); B is (K,N). */
static aim_status product_add(struct backend *be, bool turned, int64_t M, int64_t N, int64_t K, const float *A, const float *B,
                              float *C)
{
    int64_t side = block_side(M, N), row_blocks = (M + side - 1) / side, col_blocks = (N + side - 1) / side;
    int failed = dnnl_success;
#pragma omp parallel num_threads(be->threads)
    {
        omp_set_num_threads(1);
#pragma omp for schedule(dynamic)
        for (int64_t block = 0; block < row_blocks * col_blocks; block++) {
            int64_t n0 = block / row_blocks * side, m0 = block % row_blocks * side;
            int64_t n = min64(N - n0, side), m = min64(M - m0, side);
            const float *a = turned ? A + m0 : A + m0 * K;
            note(dnnl_sgemm(turned ? 'T' : 'N', 'N', m, n, K, 1.0f, a, turned ? M : K, B + n0, N, 1.0f, C + m0 * N + n0, N),
                 &failed);
        }
    }
    return check(be->ctx, (dnnl_status_t)failed, "product");
}

/* dx += dy w; dw += dyᵀ x; dbias as the tier does it */
static aim_status onednn_linear_backward(struct backend *be, const struct tensor *x, const struct tensor *w,
                                         const struct tensor *dy, struct tensor *dx, struct tensor *dw, struct tensor *dbias)
{
    const struct dense *d = be->state;
    if (be->bf16) return d->plain_linear_backward(be, x, w, dy, dx, dw, dbias);
    int64_t M = tensor_rows(x), K = tensor_cols(x), N = w->shape[0];
    if (dx) TRY(product_add(be, false, M, K, N, f32(dy), f32(w), f32(dx)));
    if (dw) TRY(product_add(be, true, N, K, M, f32(dy), f32(x), f32(dw)));
    return dbias ? d->plain_linear_backward(be, x, w, dy, NULL, NULL, dbias) : AIM_OK;
}

/* ------------------------------------------------------------------------------------------- attention */

/* One row of n scores to its softmax. */
static void softmax(float *row, int64_t n)
{
    float top = -INFINITY, sum = 0;
    for (int64_t i = 0; i < n; i++) top = row[i] > top ? row[i] : top;
    for (int64_t i = 0; i < n; i += VLEN) {
        int64_t count = min64(n - i, VLEN);
        vf e = vexp(vload_part(row + i, count) - top);
        for (int64_t j = 0; j < count; j++) sum += e[j];
        vstore_part(row + i, e, count);
    }
    for (int64_t i = 0; i < n; i++) row[i] /= sum;
}

static aim_status onednn_attention(struct backend *be, const struct tensor *q, const struct tensor *k, const struct tensor *v,
                                   struct tensor *y)
{
    int64_t N = q->shape[0], L = q->shape[1], C = q->shape[2], blocks = (L + ATTENTION_ROWS - 1) / ATTENTION_ROWS;
    float scale = 1.0f / sqrtf((float)C);
    float *scores = mem_array(be->ctx, (size_t)(be->threads * ATTENTION_ROWS * L), sizeof(float), MEM_ACTIVATIONS);
    if (!scores) return AIM_ERR_MEMORY;
    int failed = dnnl_success;
#pragma omp parallel num_threads(be->threads)
    {
        omp_set_num_threads(1);
        float *s = scores + omp_get_thread_num() * ATTENTION_ROWS * L;
#pragma omp for schedule(static)
        for (int64_t block = 0; block < N * blocks; block++) {
            int64_t n = block / blocks, first = block % blocks * ATTENTION_ROWS, rows = min64(L - first, ATTENTION_ROWS);
            int64_t at = (n * L + first) * C;
            note(dnnl_sgemm('N', 'T', rows, L, C, scale, f32(q) + at, C, f32(k) + n * L * C, C, 0.0f, s, L), &failed);
            for (int64_t i = 0; i < rows; i++) softmax(s + i * L, L);
            note(dnnl_sgemm('N', 'N', rows, C, L, 1.0f, s, L, f32(v) + n * L * C, C, 0.0f, f32(y) + at, C), &failed);
        }
    }
    mem_free(scores);
    return check(be->ctx, (dnnl_status_t)failed, "attention");
}

/* ---------------------------------------------------------------------------------------------- conv2d */

/* Runs a primitive whose scratchpad we provide; args has room for one more. */
static aim_status execute(struct backend *be, const_dnnl_primitive_desc_t desc, dnnl_primitive_t primitive,
                          dnnl_exec_arg_t *args, int count)
{
    const struct dense *d = be->state;
    layout_ref scratch_layout = dnnl_primitive_desc_query_md(desc, dnnl_query_scratchpad_md, 0);
    void *scratch = NULL;
    dnnl_memory_t memory = NULL;
    aim_status status = AIM_OK;
    if (dnnl_memory_desc_get_size(scratch_layout) > 0) {
        scratch = mem_new(be->ctx, dnnl_memory_desc_get_size(scratch_layout), MEM_ACTIVATIONS);
        if (!scratch) return AIM_ERR_MEMORY;
        status = check(be->ctx, dnnl_memory_create(&memory, scratch_layout, d->engine, scratch), "scratchpad");
        args[count++] = (dnnl_exec_arg_t){DNNL_ARG_SCRATCHPAD, memory};
    }
    if (status == AIM_OK) status = check(be->ctx, dnnl_primitive_execute(primitive, d->stream, count, args), "execution");
    if (status == AIM_OK) status = check(be->ctx, dnnl_stream_wait(d->stream), "execution");
    if (memory) dnnl_memory_destroy(memory);
    mem_free(scratch);
    return status;
}

/* A copy of weights in an order of the library's. */
struct reordered {
    struct converted head;
    struct layout layout;
    float data[] __attribute__((aligned(64)));
};

static void clear_reordered(struct converted *self)
{
    layout_free(&((struct reordered *)self)->layout);
}

static void free_reordered(struct reordered *r)
{
    if (r) layout_free(&r->layout);
    mem_free(r);
}

static aim_status run_reorder(struct backend *be, const struct layout *from, void *data, layout_ref to, void *result)
{
    const struct dense *d = be->state;
    dnnl_primitive_desc_t desc = NULL;
    dnnl_primitive_t primitive = NULL;
    dnnl_memory_t in = NULL, out = NULL;
    aim_status status = check(
        be->ctx, dnnl_reorder_primitive_desc_create(&desc, layout_of(from), d->engine, to, d->engine, d->attr), "reorder");
    if (status == AIM_OK) status = check(be->ctx, dnnl_primitive_create(&primitive, desc), "reorder");
    if (status == AIM_OK) status = check(be->ctx, dnnl_memory_create(&in, layout_of(from), d->engine, data), "reorder");
    if (status == AIM_OK) status = check(be->ctx, dnnl_memory_create(&out, to, d->engine, result), "reorder");
    if (status == AIM_OK) {
        dnnl_exec_arg_t args[3] = {{DNNL_ARG_FROM, in}, {DNNL_ARG_TO, out}};
        status = execute(be, desc, primitive, args, 2);
    }
    if (in) dnnl_memory_destroy(in);
    if (out) dnnl_memory_destroy(out);
    if (primitive) dnnl_primitive_destroy(primitive);
    if (desc) dnnl_primitive_desc_destroy(desc);
    return status;
}

/* w in the order `wanted`, kept with constant weights; *own is what the caller frees, or NULL. */
static aim_status get_weights(struct backend *be, const struct tensor *w, layout_ref wanted, float **data,
                              struct reordered **own)
{
    *own = NULL;
    for (struct converted *c = NULL; (c = converted_find(w, CONVERTED_ONEDNN, c));) {
        struct reordered *kept = (struct reordered *)c;
        if (dnnl_memory_desc_equal(layout_of(&kept->layout), wanted)) {
            *data = kept->data;
            return AIM_OK;
        }
    }
    size_t bytes = sizeof(struct reordered) + dnnl_memory_desc_get_size(wanted);
    struct reordered *made = mem_new(be->ctx, bytes, w->constant ? MEM_WEIGHTS : MEM_ACTIVATIONS);
    if (!made) return AIM_ERR_MEMORY;
    made->head = (struct converted){.kind = CONVERTED_ONEDNN, .clear = clear_reordered};
    made->layout = (struct layout){0};
    struct layout official = {0};
    const dnnl_dims_t dims = {w->shape[0], w->shape[1], w->shape[2], w->shape[3]};
    aim_status status = check(be->ctx, layout_copy(&made->layout, wanted), "weights");
    if (status == AIM_OK) status = check(be->ctx, layout_make(&official, 4, dims, dnnl_oihw), "weights");
    if (status == AIM_OK) status = run_reorder(be, &official, w->data, wanted, made->data);
    layout_free(&official);
    if (status != AIM_OK) {
        free_reordered(made);
        return status;
    }
    *data = made->data;
    if (w->constant)
        converted_add(w, &made->head);
    else
        *own = made;
    return AIM_OK;
}

static void free_convolution(struct convolution *c)
{
    if (c->primitive) dnnl_primitive_destroy(c->primitive);
    if (c->desc) dnnl_primitive_desc_destroy(c->desc);
    *c = (struct convolution){0};
}

static aim_status make_convolution(struct backend *be, const struct shape *s, struct convolution *c)
{
    const struct dense *d = be->state;
    struct layout src = {0}, weights = {0}, bias = {0}, dst = {0};
    const dnnl_dims_t src_dims = {s->N, s->I, s->H, s->W}, dst_dims = {s->N, s->O, s->OH, s->OW};
    const dnnl_dims_t weights_dims = {s->O, s->I, s->k, s->k}, bias_dims = {s->O}, strides = {s->stride, s->stride};
    const dnnl_dims_t pad_l = {s->pad_before, s->pad_before}, pad_r = {s->pad_after, s->pad_after};
    aim_status status = check(be->ctx, layout_make(&src, 4, src_dims, dnnl_nhwc), "convolution");
    if (status == AIM_OK) status = check(be->ctx, layout_make(&weights, 4, weights_dims, dnnl_format_tag_any), "convolution");
    if (status == AIM_OK) status = check(be->ctx, layout_make(&bias, 1, bias_dims, dnnl_x), "convolution");
    if (status == AIM_OK) status = check(be->ctx, layout_make(&dst, 4, dst_dims, dnnl_nhwc), "convolution");
    if (status == AIM_OK)
        status =
            check(be->ctx, convolution_make(&c->desc, d->engine, &src, &weights, &bias, &dst, strides, pad_l, pad_r, d->attr),
                  "convolution");
    if (status == AIM_OK) status = check(be->ctx, dnnl_primitive_create(&c->primitive, c->desc), "convolution");
    layout_free(&src);
    layout_free(&weights);
    layout_free(&bias);
    layout_free(&dst);
    if (status != AIM_OK) free_convolution(c);
    c->shape = *s;
    return status;
}

/* The primitive for a shape, made at first use. */
static aim_status get_convolution(struct backend *be, const struct shape *s, const struct convolution **out)
{
    struct dense *d = be->state;
    for (int i = 0; i < CONVOLUTIONS; i++)
        if (d->kept[i].primitive && memcmp(&d->kept[i].shape, s, sizeof *s) == 0) {
            *out = &d->kept[i];
            return AIM_OK;
        }
    struct convolution *c = &d->kept[d->next];
    free_convolution(c);
    TRY(make_convolution(be, s, c));
    d->next = (d->next + 1) % CONVOLUTIONS;
    *out = c;
    return AIM_OK;
}

static aim_status run_convolution(struct backend *be, const struct convolution *c, const struct tensor *x,
                                  const struct tensor *w, const struct tensor *bias, struct tensor *y)
{
    enum { ARGS = 4 };
    const struct dense *d = be->state;
    layout_ref weights = dnnl_primitive_desc_query_md(c->desc, dnnl_query_weights_md, 0);
    float *data;
    struct reordered *own;
    float *zeros = NULL; /* in place of a bias: the primitives are made with one */
    if (!bias) zeros = mem_zero(be->ctx, (size_t)w->shape[0], sizeof(float), MEM_ACTIVATIONS);
    if (!bias && !zeros) return AIM_ERR_MEMORY;
    aim_status status = get_weights(be, w, weights, &data, &own);
    if (status != AIM_OK) {
        mem_free(zeros);
        return status;
    }
    layout_ref layouts[ARGS] = {dnnl_primitive_desc_query_md(c->desc, dnnl_query_src_md, 0), weights,
                                dnnl_primitive_desc_query_md(c->desc, dnnl_query_weights_md, 1),
                                dnnl_primitive_desc_query_md(c->desc, dnnl_query_dst_md, 0)};
    void *blocks[ARGS] = {x->data, data, bias ? bias->data : zeros, y->data};
    const int names[ARGS] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_BIAS, DNNL_ARG_DST};
    dnnl_exec_arg_t args[ARGS + 1] = {{0}};
    for (int i = 0; i < ARGS && status == AIM_OK; i++) {
        args[i].arg = names[i];
        status = check(be->ctx, dnnl_memory_create(&args[i].memory, layouts[i], d->engine, blocks[i]), "convolution");
    }
    if (status == AIM_OK) status = execute(be, c->desc, c->primitive, args, ARGS);
    for (int i = 0; i < ARGS; i++)
        if (args[i].memory) dnnl_memory_destroy(args[i].memory);
    free_reordered(own);
    mem_free(zeros);
    return status;
}

static aim_status library_conv2d CONV2D_PARAMETERS
{
    const struct shape s = {x->shape[0], x->shape[1], x->shape[2], x->shape[3],     y->shape[3],   w->shape[2],
                            y->shape[1], y->shape[2], how->stride, how->pad_before, how->pad_after};
    const struct convolution *c;
    int before = omp_get_max_threads();
    omp_set_num_threads(be->threads);
    aim_status status = get_convolution(be, &s, &c);
    if (status == AIM_OK) status = run_convolution(be, c, x, w, bias, y);
    omp_set_num_threads(before);
    return status;
}

/* Of one pixel: a product for each picture, so that a picture's result does not depend on the batch. */
static aim_status point_conv2d CONV2D_PARAMETERS
{
    (void)how;
    int64_t pixels = y->shape[1] * y->shape[2], I = w->shape[1], O = w->shape[0];
    struct tensor matrix = tensor_view(T_F32, w->data, O, I, 0, 0);
    for (int64_t n = 0; n < x->shape[0]; n++) {
        struct tensor in = tensor_view(T_F32, f32(x) + n * pixels * I, pixels, I, 0, 0);
        struct tensor out = tensor_view(T_F32, f32(y) + n * pixels * O, pixels, O, 0, 0);
        TRY(onednn_linear(be, &in, &matrix, bias, &out));
    }
    return AIM_OK;
}

static aim_status onednn_conv2d CONV2D_PARAMETERS
{
    const struct dense *d = be->state;
    if (how->upsample || winograd_pays(w, how, y) || narrow_pays(w, how)) return d->plain_conv2d(be, x, w, bias, how, y);
    if (w->shape[2] == 1 && how->stride == 1 && how->pad_before == 0 && how->pad_after == 0)
        return point_conv2d(be, x, w, bias, how, y);
    return library_conv2d(be, x, w, bias, how, y);
}

/* ------------------------------------------------------------------------------------------------------ */

static void dense_free(void *dense)
{
    struct dense *d = dense;
    for (int i = 0; i < CONVOLUTIONS; i++) free_convolution(&d->kept[i]);
    if (d->attr) dnnl_primitive_attr_destroy(d->attr);
    if (d->stream) dnnl_stream_destroy(d->stream);
    if (d->engine) dnnl_engine_destroy(d->engine);
    mem_free(d);
}

aim_status onednn_attach(struct backend *be, char *name, size_t size)
{
    struct dense *d = mem_zero(be->ctx, 1, sizeof *d, MEM_MISC);
    if (!d) return AIM_ERR_MEMORY;
    be->state = d;
    be->state_free = dense_free;
    TRY(check(be->ctx, dnnl_engine_create(&d->engine, dnnl_cpu, 0), "engine"));
    TRY(check(be->ctx, dnnl_stream_create(&d->stream, d->engine, dnnl_stream_default_flags), "stream"));
    TRY(check(be->ctx, dnnl_primitive_attr_create(&d->attr), "attributes"));
    TRY(check(be->ctx, dnnl_primitive_attr_set_scratchpad_mode(d->attr, dnnl_scratchpad_mode_user), "attributes"));
    d->plain_conv2d = be->op.conv2d;
    d->plain_linear = be->op.linear;
    d->plain_linear_backward = be->op.linear_backward;
    be->op.linear = onednn_linear;
    be->op.linear_backward = onednn_linear_backward;
    be->op.attention = onednn_attention;
    be->op.conv2d = onednn_conv2d;
    const dnnl_version_t *version = dnnl_version();
    snprintf(name, size, "oneDNN %d.%d.%d", version->major, version->minor, version->patch);
    return AIM_OK;
}
