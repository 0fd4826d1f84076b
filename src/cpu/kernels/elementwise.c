/* Small ops: embedding, silu, add, layout changes, cross entropy. */
#include "cpu/kernels/kernels.h"

#include <math.h>

aim_status KERNEL(embedding)(struct backend *be, const struct tensor *tokens, const struct tensor *positions,
                             const struct tensor *ids, const struct tensor *pos, struct tensor *y)
{
    int64_t M = tensor_count(ids), d = tensor_cols(tokens);
#pragma omp parallel for num_threads(be->threads) schedule(static) if (M > 64)
    for (int64_t m = 0; m < M; m++) {
        const float *token = f32(tokens) + i32(ids)[m] * d;
        const float *position = positions && i32(pos)[m] >= 0 ? f32(positions) + i32(pos)[m] * d : NULL;
        float *out = f32(y) + m * d;
        for (int64_t i = 0; i < d; i++) out[i] = position ? token[i] + position[i] : token[i];
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

/* max of n values, and Σ exp(x - max) */
static double log_sum_exp(const float *x, int64_t n)
{
    float top = -INFINITY;
    for (int64_t i = 0; i < n; i++) top = x[i] > top ? x[i] : top;
    double sum = 0;
    enum { SPAN = 256 }; /* short float sums, added up in double */
    for (int64_t i = 0; i < n; i += SPAN) {
        vf part = {0};
        int64_t end = i + SPAN < n ? i + SPAN : n, j = i;
        for (; j + VLEN <= end; j += VLEN) part += vexp(vload(x + j) - top);
        sum += (double)vsum(part);
        for (; j < end; j++) sum += exp((double)(x[j] - top));
    }
    return (double)top + log(sum);
}

aim_status KERNEL(cross_entropy)(struct backend *be, const struct tensor *logits, const struct tensor *target,
                                 struct tensor *loss)
{
    int64_t M = tensor_rows(logits), V = tensor_cols(logits);
#pragma omp parallel for num_threads(be->threads) schedule(static) if (M > 4)
    for (int64_t m = 0; m < M; m++) {
        const float *row = f32(logits) + m * V;
        f32(loss)[m] = (float)(log_sum_exp(row, V) - (double)row[i32(target)[m]]);
    }
    return AIM_OK;
}
