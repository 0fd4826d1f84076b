/* Small ops: embedding, slices, silu, add, layout changes, cross entropy. */
#include "cpu/kernels/kernels.h"

#include <math.h>

#include "cpu/kernels/gemm.h"
#include "cpu/kernels/q8.h"
#include "io/image.h"

/* Row `id` of a table (V,d) of any type. */
static void table_row(const struct tensor *table, int64_t id, float *out)
{
    int64_t d = table->shape[1];
    if (table->type == T_F32)
        memcpy(out, f32(table) + id * d, (size_t)d * sizeof(float));
    else if (table->type == T_BF16)
        for (int64_t i = 0; i < d; i++) out[i] = bf16_to_f32(((const uint16_t *)table->data)[id * d + i]);
    else if (table->type == T_Q8_PACKED)
        for (int64_t i = 0; i < d; i++) out[i] = q8_packed_at(table->data, d, id, i);
    else
        for (int64_t i = 0; i < d; i++) out[i] = gemm_packed_at(table, id, i);
}

aim_status KERNEL(embedding)(struct backend *be, const struct tensor *tokens, const struct tensor *positions,
                             const struct tensor *ids, const struct tensor *pos, struct tensor *y)
{
    int64_t M = tensor_count(ids), d = tensor_cols(tokens);
#pragma omp parallel for num_threads(be->threads) schedule(static) if (M > 64)
    for (int64_t m = 0; m < M; m++) {
        float *out = f32(y) + m * d;
        table_row(tokens, i32(ids)[m], out);
        if (!positions || i32(pos)[m] < 0) continue;
        const float *position = f32(positions) + i32(pos)[m] * d;
        for (int64_t i = 0; i < d; i++) out[i] += position[i];
    }
    return AIM_OK;
}

/* dtokens[ids[m]] += dy[m], dpositions[pos[m]] += dy[m]; each thread owns some columns, so that rows which meet add up in
 * the order of m */
aim_status KERNEL(embedding_backward)(struct backend *be, const struct tensor *ids, const struct tensor *pos,
                                      const struct tensor *dy, struct tensor *dtokens, struct tensor *dpositions)
{
    enum { COLUMNS = 64 };
    int64_t M = tensor_count(ids), d = tensor_cols(dy);
#pragma omp parallel for num_threads(be->threads) schedule(static)
    for (int64_t from = 0; from < d; from += COLUMNS) {
        int64_t to = from + COLUMNS < d ? from + COLUMNS : d;
        for (int64_t m = 0; m < M; m++) {
            const float *in = f32(dy) + m * d;
            float *token = dtokens ? f32(dtokens) + i32(ids)[m] * d : NULL;
            float *position = dpositions && i32(pos)[m] >= 0 ? f32(dpositions) + i32(pos)[m] * d : NULL;
            for (int64_t i = from; token && i < to; i++) token[i] += in[i];
            for (int64_t i = from; position && i < to; i++) position[i] += in[i];
        }
    }
    return AIM_OK;
}

aim_status KERNEL(prepend)(struct backend *be, const struct tensor *first, const struct tensor *rest, struct tensor *y)
{
    int64_t B = first->shape[0], d = first->shape[1], T = tensor_count(rest) / (B * d);
    (void)be;
    for (int64_t b = 0; b < B; b++) {
        float *out = f32(y) + b * (T + 1) * d;
        memcpy(out, f32(first) + b * d, (size_t)d * sizeof(float));
        memcpy(out + d, f32(rest) + b * T * d, (size_t)(T * d) * sizeof(float));
    }
    return AIM_OK;
}

aim_status KERNEL(prepend_backward)(struct backend *be, const struct tensor *dy, struct tensor *dfirst, struct tensor *drest)
{
    int64_t B = dy->shape[0], rows = dy->shape[1], d = dy->shape[2];
#pragma omp parallel for num_threads(be->threads) schedule(static) collapse(2)
    for (int64_t b = 0; b < B; b++)
        for (int64_t t = 0; t < rows; t++) {
            const float *in = f32(dy) + (b * rows + t) * d;
            struct tensor *target = t ? drest : dfirst;
            float *out = target ? f32(target) + (t ? b * (rows - 1) + t - 1 : b) * d : NULL;
            for (int64_t i = 0; out && i < d; i++) out[i] += in[i];
        }
    return AIM_OK;
}

aim_status KERNEL(slice_add)(struct backend *be, const struct tensor *x, int64_t from, const struct tensor *bias,
                             struct tensor *y)
{
    int64_t B = y->shape[0], n = tensor_cols(y), m = tensor_cols(x);
    (void)be;
    for (int64_t b = 0; b < B; b++)
        for (int64_t i = 0; i < n; i++) f32(y)[b * n + i] = f32(x)[b * m + from + i] + f32(bias)[i];
    return AIM_OK;
}

aim_status KERNEL(slice_add_backward)(struct backend *be, int64_t from, const struct tensor *dy, struct tensor *dx,
                                      struct tensor *dbias)
{
    int64_t B = dy->shape[0], n = tensor_cols(dy), m = dx ? tensor_cols(dx) : 0;
    (void)be;
    for (int64_t b = 0; b < B; b++)
        for (int64_t i = 0; i < n; i++) {
            if (dx) f32(dx)[b * m + from + i] += f32(dy)[b * n + i];
            if (dbias) f32(dbias)[i] += f32(dy)[b * n + i];
        }
    return AIM_OK;
}

aim_status KERNEL(silu)(struct backend *be, const struct tensor *x, struct tensor *y)
{
    int64_t n = tensor_count(x);
#pragma omp parallel for num_threads(be->threads) schedule(static) if (n > 65536)
    for (int64_t i = 0; i < n; i += VLEN) {
        if (n - i >= VLEN)
            vstore(f32(y) + i, vsilu(vload(f32(x) + i)));
        else
            vstore_part(f32(y) + i, vsilu(vload_part(f32(x) + i, n - i)), n - i);
    }
    return AIM_OK;
}

/* dx += dy σ(x) (1 + x (1 - σ(x))) */
aim_status KERNEL(silu_backward)(struct backend *be, const struct tensor *x, const struct tensor *dy, struct tensor *dx)
{
    int64_t n = tensor_count(x);
#pragma omp parallel for num_threads(be->threads) schedule(static) if (n > 65536)
    for (int64_t i = 0; i < n; i += VLEN) {
        int64_t part = n - i < VLEN ? n - i : VLEN;
        vf g = vload_part(f32(dy) + i, part) * vsilu_slope(vload_part(f32(x) + i, part));
        vstore_part(f32(dx) + i, vload_part(f32(dx) + i, part) + g, part);
    }
    return AIM_OK;
}

aim_status KERNEL(add)(struct backend *be, const struct tensor *a, const struct tensor *b, struct tensor *y)
{
    int64_t n = tensor_count(a);
    const float *pa = f32(a), *pb = f32(b);
    float *py = f32(y);
#pragma omp parallel for num_threads(be->threads) schedule(static) if (n > 65536)
    for (int64_t i = 0; i < n; i++) py[i] = pa[i] + pb[i];
    return AIM_OK;
}

/* (rows, cols) of each of `count` matrices to (cols, rows); the tokenizer's pictures have 3 rows or columns */
static aim_status transpose(struct backend *be, const float *x, int64_t count, int64_t rows, int64_t cols, float *y)
{
#pragma omp parallel for num_threads(be->threads) schedule(static) collapse(2)
    for (int64_t n = 0; n < count; n++)
        for (int64_t c = 0; c < cols; c++)
            for (int64_t r = 0; r < rows; r++) y[(n * cols + c) * rows + r] = x[(n * rows + r) * cols + c];
    return AIM_OK;
}

aim_status KERNEL(nchw_to_nhwc)(struct backend *be, const struct tensor *x, struct tensor *y)
{
    return transpose(be, f32(x), x->shape[0], x->shape[1], x->shape[2] * x->shape[3], f32(y));
}

aim_status KERNEL(nhwc_to_nchw)(struct backend *be, const struct tensor *x, struct tensor *y)
{
    return transpose(be, f32(x), x->shape[0], x->shape[1] * x->shape[2], x->shape[3], f32(y));
}

aim_status KERNEL(pictures)(struct backend *be, const struct tensor *bytes, struct tensor *y)
{
    const uint8_t *in = bytes->data;
    int64_t pixels = y->shape[2] * y->shape[3], lines = y->shape[0] * 3;
    float level[256];
    for (int i = 0; i < 256; i++) level[i] = image_level_to_float((uint8_t)i);
#pragma omp parallel for num_threads(be->threads) schedule(static)
    for (int64_t line = 0; line < lines; line++) { /* a channel of a picture */
        const uint8_t *from = in + line / 3 * 3 * pixels + line % 3;
        for (int64_t p = 0; p < pixels; p++) f32(y)[line * pixels + p] = level[from[3 * p]];
    }
    return AIM_OK;
}

static float largest(const float *x, int64_t n)
{
    vf tops = vset(-INFINITY);
    int64_t i = 0;
    for (; i + VLEN <= n; i += VLEN) {
        vf v = vload(x + i);
        tops = vselect(v > tops, v, tops);
    }
    float top = -INFINITY;
    for (int j = 0; j < VLEN; j++) top = tops[j] > top ? tops[j] : top;
    for (; i < n; i++) top = x[i] > top ? x[i] : top;
    return top;
}

/* Σ exp(x - max) over n values, and the maximum */
static double exp_sum(const float *x, int64_t n, float *max)
{
    float top = largest(x, n);
    *max = top;
    double sum = 0;
    enum { SPAN = 256 }; /* short float sums, added up in double */
    for (int64_t i = 0; i < n; i += SPAN) {
        vf part = {0};
        int64_t end = i + SPAN < n ? i + SPAN : n, j = i;
        for (; j + VLEN <= end; j += VLEN) part += vexp(vload(x + j) - top);
        sum += (double)vsum(part);
        for (; j < end; j++) sum += exp((double)(x[j] - top));
    }
    return sum;
}

aim_status KERNEL(cross_entropy)(struct backend *be, const struct tensor *logits, const struct tensor *target,
                                 struct tensor *loss)
{
    int64_t M = tensor_rows(logits), V = tensor_cols(logits);
#pragma omp parallel for num_threads(be->threads) schedule(static) if (M > 4)
    for (int64_t m = 0; m < M; m++) {
        const float *row = f32(logits) + m * V;
        float top;
        double sum = exp_sum(row, V, &top);
        f32(loss)[m] = (float)((double)top + log(sum) - (double)row[i32(target)[m]]);
    }
    return AIM_OK;
}

/* dlogits += (softmax(logits) - onehot(target)) dloss */
aim_status KERNEL(cross_entropy_backward)(struct backend *be, const struct tensor *logits, const struct tensor *target,
                                          const struct tensor *dloss, struct tensor *dlogits)
{
    int64_t M = tensor_rows(logits), V = tensor_cols(logits);
#pragma omp parallel for num_threads(be->threads) schedule(static) if (M > 4)
    for (int64_t m = 0; m < M; m++) {
        const float *row = f32(logits) + m * V;
        float scale = f32(dloss)[m], *out = f32(dlogits) + m * V, top;
        float share = (float)((double)scale / exp_sum(row, V, &top)); /* log Σ exp in float would not be exact enough */
        for (int64_t v = 0; v < V; v += VLEN) {
            int64_t part = V - v < VLEN ? V - v : VLEN;
            vf p = share * vexp(vload_part(row + v, part) - top);
            vstore_part(out + v, vload_part(out + v, part) + p, part);
        }
        out[i32(target)[m]] -= scale;
    }
    return AIM_OK;
}
