/* Small ops on values: silu, add, casts, slices and rows put together. */
#include "cuda/values.cuh"

enum { THREADS = 256 };

/* to[g*to_stride + i] = from[g*from_stride + i], or += it, for i < n, g < groups */
template <int V, bool ADD, typename From, typename To>
static __global__ void move(const From *from, int64_t from_stride, int64_t n, int64_t groups, To *to, int64_t to_stride)
{
    int64_t step = (int64_t)gridDim.x * THREADS, per_group = n / V;
    for (int64_t k = (int64_t)blockIdx.x * THREADS + threadIdx.x; k < groups * per_group; k += step) {
        int64_t g = k / per_group, i = (k - g * per_group) * V;
        pack<V> x = load<V>(from + g * from_stride + i);
        if (ADD)
            store_add<V>(to + g * to_stride + i, x);
        else
            store<V>(to + g * to_stride + i, x);
    }
}

/* Values from `from_at` on of tensor `from` to those from `to_at` on of tensor `to`, in groups. */
template <bool ADD>
static void move_groups(struct backend *be, const struct tensor *from, int64_t from_at, int64_t from_stride, int64_t n,
                        int64_t groups, struct tensor *to, int64_t to_at, int64_t to_stride)
{
    if (n == 0 || groups == 0) return;
    bool wide =
        (n | from_at | to_at) % 8 == 0 && (groups == 1 || (from_stride | to_stride) % 8 == 0) && aligned(from) && aligned(to);
    by_type(from, [&](auto from_zero) {
        using From = decltype(from_zero);
        by_type(to, [&](auto to_zero) {
            using To = decltype(to_zero);
            by_width<8>(wide, [&](auto w) {
                constexpr int V = decltype(w)::value;
                move<V, ADD, From, To><<<cuda_blocks(be, n * groups / V, THREADS), THREADS, 0, cuda_of(be)->stream>>>(
                    data_of<From>(from) + from_at, from_stride, n, groups, data_of<To>(to) + to_at, to_stride);
            });
        });
    });
}

aim_status cuda_cast(struct backend *be, const struct tensor *x, struct tensor *y)
{
    move_groups<false>(be, x, 0, 0, tensor_count(x), 1, y, 0, 0);
    return cuda_launched(be, "cast");
}

aim_status cuda_accumulate(struct backend *be, const struct tensor *x, struct tensor *y)
{
    if (take_fresh(be, y))
        move_groups<false>(be, x, 0, 0, tensor_count(x), 1, y, 0, 0);
    else
        move_groups<true>(be, x, 0, 0, tensor_count(x), 1, y, 0, 0);
    return cuda_launched(be, "accumulate");
}

aim_status cuda_prepend(struct backend *be, const struct tensor *first, const struct tensor *rest, struct tensor *y)
{
    int64_t B = first->shape[0], d = tensor_cols(first), n = tensor_count(rest) / B;
    move_groups<false>(be, first, 0, d, d, B, y, 0, n + d);
    move_groups<false>(be, rest, 0, n, n, B, y, d, n + d);
    return cuda_launched(be, "prepend");
}

aim_status cuda_prepend_backward(struct backend *be, const struct tensor *dy, struct tensor *dfirst, struct tensor *drest)
{
    int64_t B = dy->shape[0], d = dy->shape[2], n = (dy->shape[1] - 1) * d;
    if (dfirst) move_groups<true>(be, dy, 0, n + d, d, B, dfirst, 0, d);
    if (drest) move_groups<true>(be, dy, d, n + d, n, B, drest, 0, n);
    return cuda_launched(be, "prepend_backward");
}

/* y (B,n) = x (B,m)[:, from..] + bias */
template <typename X, typename Y>
static __global__ void add_slice(const X *x, int64_t from, int64_t m, const float *bias, int64_t n, int64_t B, Y *y)
{
    int64_t step = (int64_t)gridDim.x * THREADS;
    for (int64_t k = (int64_t)blockIdx.x * THREADS + threadIdx.x; k < B * n; k += step) {
        int64_t b = k / n, i = k - b * n;
        put(y + k, value(x[b * m + from + i]) + bias[i]);
    }
}

aim_status cuda_slice_add(struct backend *be, const struct tensor *x, int64_t from, const struct tensor *bias, struct tensor *y)
{
    int64_t B = y->shape[0], n = tensor_cols(y), m = tensor_cols(x);
    by_type(x, [&](auto x_zero) {
        using X = decltype(x_zero);
        by_type(y, [&](auto y_zero) {
            using Y = decltype(y_zero);
            add_slice<X, Y><<<cuda_blocks(be, B * n, THREADS), THREADS, 0, cuda_of(be)->stream>>>(
                data_of<X>(x), from, m, f32(bias), n, B, data_of<Y>(y));
        });
    });
    return cuda_launched(be, "slice_add");
}

aim_status cuda_slice_add_backward(struct backend *be, int64_t from, const struct tensor *dy, struct tensor *dx,
                                   struct tensor *dbias)
{
    int64_t B = dy->shape[0], n = tensor_cols(dy);
    if (dx) move_groups<true>(be, dy, 0, n, n, B, dx, from, tensor_cols(dx));
    TRY(cuda_launched(be, "slice_add_backward"));
    return dbias ? cuda_sum_matrix_rows(be, dy, f32(dbias)) : AIM_OK;
}

template <int V, typename T> static __global__ void silu_values(const T *x, int64_t n, T *y)
{
    int64_t step = (int64_t)gridDim.x * THREADS;
    for (int64_t k = (int64_t)blockIdx.x * THREADS + threadIdx.x; k < n / V; k += step) {
        pack<V> a = load<V>(x + k * V);
#pragma unroll
        for (int i = 0; i < V; i++) a.v[i] = silu(a.v[i]);
        store<V>(y + k * V, a);
    }
}

aim_status cuda_silu(struct backend *be, const struct tensor *x, struct tensor *y)
{
    int64_t n = tensor_count(x);
    by_type(x, [&](auto zero) {
        using T = decltype(zero);
        by_width<8>(n % 8 == 0 && aligned(x) && aligned(y), [&](auto w) {
            constexpr int V = decltype(w)::value;
            silu_values<V, T>
                <<<cuda_blocks(be, n / V, THREADS), THREADS, 0, cuda_of(be)->stream>>>(data_of<T>(x), n, data_of<T>(y));
        });
    });
    return cuda_launched(be, "silu");
}

/* dx += dy silu'(x) */
template <int V, typename T> static __global__ void silu_gradient(const T *x, const T *dy, int64_t n, T *dx)
{
    int64_t step = (int64_t)gridDim.x * THREADS;
    for (int64_t k = (int64_t)blockIdx.x * THREADS + threadIdx.x; k < n / V; k += step) {
        pack<V> a = load<V>(x + k * V), up = load<V>(dy + k * V);
#pragma unroll
        for (int i = 0; i < V; i++) a.v[i] = up.v[i] * silu_slope(a.v[i]);
        store_add<V>(dx + k * V, a);
    }
}

aim_status cuda_silu_backward(struct backend *be, const struct tensor *x, const struct tensor *dy, struct tensor *dx)
{
    int64_t n = tensor_count(x);
    by_type(x, [&](auto zero) {
        using T = decltype(zero);
        by_width<8>(n % 8 == 0 && aligned(x) && aligned(dy) && aligned(dx), [&](auto w) {
            constexpr int V = decltype(w)::value;
            silu_gradient<V, T><<<cuda_blocks(be, n / V, THREADS), THREADS, 0, cuda_of(be)->stream>>>(
                data_of<T>(x), data_of<T>(dy), n, data_of<T>(dx));
        });
    });
    return cuda_launched(be, "silu_backward");
}

template <int V, typename T> static __global__ void add_values(const T *a, const T *b, int64_t n, T *y)
{
    int64_t step = (int64_t)gridDim.x * THREADS;
    for (int64_t k = (int64_t)blockIdx.x * THREADS + threadIdx.x; k < n / V; k += step) {
        pack<V> sum = load<V>(a + k * V), other = load<V>(b + k * V);
#pragma unroll
        for (int i = 0; i < V; i++) sum.v[i] += other.v[i];
        store<V>(y + k * V, sum);
    }
}

aim_status cuda_add(struct backend *be, const struct tensor *a, const struct tensor *b, struct tensor *y)
{
    int64_t n = tensor_count(a);
    by_type(a, [&](auto zero) {
        using T = decltype(zero);
        by_width<8>(n % 8 == 0 && aligned(a) && aligned(b) && aligned(y), [&](auto w) {
            constexpr int V = decltype(w)::value;
            add_values<V, T><<<cuda_blocks(be, n / V, THREADS), THREADS, 0, cuda_of(be)->stream>>>(data_of<T>(a), data_of<T>(b),
                                                                                                   n, data_of<T>(y));
        });
    });
    return cuda_launched(be, "add");
}
