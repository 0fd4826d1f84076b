/*
 * RMS normalisations of rows, with residual and modulation, or gated; forward and backward. A row's values stay in a
 * block's registers. Formulas: cpu/kernels/norm.c, rms_backward.c.
 */
#include "cuda/values.cuh"

enum { MOST_THREADS = 512 };

/* Vectors of a row that one thread holds. */
template <int V> static constexpr int held()
{
    return V == 1 ? 8 : V == 4 ? 2 : 1;
}

/* Threads for rows of n values; 0 when the rows are too long. */
template <int V> static int threads_for(int64_t n)
{
    int64_t threads = divide_up(divide_up(n / V, held<V>()), WARP) * WARP;
    return threads <= MOST_THREADS ? (int)threads : 0;
}

static aim_status too_long(struct backend *be, int64_t n)
{
    return aim_fail(be->ctx, AIM_ERR_UNSUPPORTED, "rows of %lld values are too long for the GPU's norms", (long long)n);
}

/* for each vector of the row that this thread holds: number k, values i .. i+V */
#define FOR_HELD(V, n)                                                                                                         \
    _Pragma("unroll") for (int k = 0; k < held<V>(); k++) if (int64_t i = ((int64_t)k * blockDim.x + threadIdx.x) * V; i < (n))

/* ------------------------------------------------------------------------------------------- residual, forward */

struct residual {
    int64_t T, d, mod_width;
    const float *r, *gates, *w, *mod;
    float *r_out;
    float eps;
};

template <int V, typename H, typename Y>
static __global__ void __launch_bounds__(MOST_THREADS) residual_forward(struct residual a, const H *h, Y *y)
{
    __shared__ float shared[1][WARP];
    int64_t row = blockIdx.x, b = row / a.T, d = a.d;
    pack<V> x[held<V>()];
    float squares[1] = {0};
    FOR_HELD(V, d)
    {
        x[k] = load<V>(a.r + row * d + i);
        if (h) {
            pack<V> added = load<V>(h + row * d + i);
            if (a.gates) {
                pack<V> gate = load<V>(a.gates + b * 3 * d + 2 * d + i);
#pragma unroll
                for (int j = 0; j < V; j++) added.v[j] *= gate.v[j];
            }
#pragma unroll
            for (int j = 0; j < V; j++) x[k].v[j] += added.v[j];
        }
#pragma unroll
        for (int j = 0; j < V; j++) squares[0] += x[k].v[j] * x[k].v[j];
    }
    block_sum(squares, shared);
    float rstd = 1.0f / sqrtf(squares[0] / (float)d + a.eps);
    FOR_HELD(V, d)
    {
        if (a.r_out) store<V>(a.r_out + row * d + i, x[k]);
        pack<V> w = load<V>(a.w + i);
#pragma unroll
        for (int j = 0; j < V; j++) x[k].v[j] *= rstd * w.v[j];
        if (a.mod) {
            pack<V> shift = load<V>(a.mod + b * a.mod_width + i), gain = load<V>(a.mod + b * a.mod_width + d + i);
#pragma unroll
            for (int j = 0; j < V; j++) x[k].v[j] = x[k].v[j] * (1.0f + gain.v[j]) + shift.v[j];
        }
        store<V>(y + row * d + i, x[k]);
    }
}

aim_status cuda_residual_rms_norm_modulate(struct backend *be, const struct tensor *r, const struct tensor *h,
                                           const struct tensor *gates, const struct tensor *w, const struct tensor *mod,
                                           float eps, struct tensor *r_out, struct tensor *y)
{
    int64_t B = r->shape[0], T = r->shape[1], d = r->shape[2], mod_width = mod ? tensor_cols(mod) : 0;
    struct residual a = {T,  d, mod_width, f32(r), data_of<float>(gates), f32(w), data_of<float>(mod), data_of<float>(r_out),
                         eps};
    if (a.r_out == a.r && !h) a.r_out = NULL; /* it is there already */
    bool wide = d % 4 == 0 && mod_width % 4 == 0 && aligned(r) && aligned(h) && aligned(gates) && aligned(w) && aligned(mod) &&
                aligned(r_out) && aligned(y),
         fits = true;
    by_type(h ? h : r, [&](auto h_zero) {
        using H = decltype(h_zero);
        by_type(y, [&](auto y_zero) {
            using Y = decltype(y_zero);
            by_width<4>(wide, [&](auto width_of) {
                constexpr int V = decltype(width_of)::value;
                int threads = threads_for<V>(d);
                fits = threads > 0;
                if (fits)
                    residual_forward<V, H, Y>
                        <<<(unsigned)(B * T), threads, 0, cuda_of(be)->stream>>>(a, data_of<H>(h), data_of<Y>(y));
            });
        });
    });
    return fits ? cuda_launched(be, "residual_rms_norm_modulate") : too_long(be, d);
}

/* ------------------------------------------------------------------------------------------ residual, backward */

struct residual_gradient {
    int64_t T, d, mod_width;
    const float *x, *gates, *w, *mod, *dsum;
    float *dr, *partial; /* (B, chunks, 4, d): sums for shift, scale, gate and w */
    float eps;
    bool dr_fresh, dh_fresh;
    int64_t rows; /* that a block sums up */
};

/* What a thread has of a row; absent parts are zeros. */
template <int V, typename H, typename Y> struct residual_row {
    memory_pack<float, V> x[held<V>()], dsum[held<V>()];
    memory_pack<H, V> h[held<V>()];
    memory_pack<Y, V> dy[held<V>()];
};

template <int V, typename H, typename Y>
static __device__ inline void load_row(const struct residual_gradient &a, const H *h, const Y *dy, int64_t row, bool wanted,
                                       struct residual_row<V, H, Y> &to)
{
    FOR_HELD(V, a.d)
    {
        int64_t at = row * a.d + i;
        to.x[k] = load_raw<V>(a.x + at, wanted);
        to.dsum[k] = load_raw<V>(a.dsum + at, wanted && a.dsum);
        to.h[k] = load_raw<V>(h + at, wanted && h);
        to.dy[k] = load_raw<V>(dy + at, wanted && dy);
    }
}

/* to += x, or, fresh, to = x */
template <int V, typename T> static __device__ inline void store_gradient(T *to, const pack<V> &x, bool fresh)
{
    if (fresh)
        store<V>(to, x);
    else
        store_add<V>(to, x);
}

/* A block takes a.rows rows of a picture; with q = dy ⊙ (1 + scale) ⊙ w: dr' = rstd (q - x̂ mean(x̂ ⊙ q)) + dsum */
template <int V, typename H, typename Y>
static __global__ void __launch_bounds__(MOST_THREADS)
    residual_backward(struct residual_gradient a, const H *h, const Y *dy, H *dh)
{
    __shared__ float shared[2][WARP];
    int64_t b = blockIdx.y, d = a.d, first = (int64_t)blockIdx.x * a.rows;
    int64_t end = first + a.rows < a.T ? first + a.rows : a.T;
    pack<V> along[held<V>()], gates[held<V>()], shift[held<V>()], units[held<V>()], gated[held<V>()];
#pragma unroll
    for (int k = 0; k < held<V>(); k++) along[k] = gates[k] = shift[k] = units[k] = gated[k] = zeros<V>();
    FOR_HELD(V, d) /* (1 + scale) ⊙ w */
    {
        along[k] = load<V>(a.w + i);
        if (a.gates) gates[k] = load<V>(a.gates + b * 3 * d + 2 * d + i);
        if (a.mod) {
            pack<V> gain = load<V>(a.mod + b * a.mod_width + d + i);
#pragma unroll
            for (int j = 0; j < V; j++) along[k].v[j] *= 1.0f + gain.v[j];
        }
    }
    struct residual_row<V, H, Y> own, next;
    load_row<V>(a, h, dy, b * a.T + first, true, next);
    for (int64_t t = first; t < end; t++) {
        int64_t row = b * a.T + t;
        float sums[2] = {0, 0}; /* Σ x², Σ x q */
        own = next;
        load_row<V>(a, h, dy, row + 1, t + 1 < end, next);
        FOR_HELD(V, d)
        {
            pack<V> x = values_of(own.x[k]), up = values_of(own.dy[k]);
#pragma unroll
            for (int j = 0; j < V; j++) {
                sums[0] += x.v[j] * x.v[j];
                sums[1] += x.v[j] * up.v[j] * along[k].v[j];
            }
        }
        block_sum(sums, shared);
        float rstd = 1.0f / sqrtf(sums[0] / (float)d + a.eps), mean = sums[1] / (float)d * rstd;
        FOR_HELD(V, d)
        {
            pack<V> x = values_of(own.x[k]), up = values_of(own.dy[k]), sum = values_of(own.dsum[k]);
            pack<V> added = values_of(own.h[k]);
#pragma unroll
            for (int j = 0; j < V; j++) {
                float unit = x.v[j] * rstd;
                sum.v[j] += rstd * (up.v[j] * along[k].v[j] - unit * mean);
                shift[k].v[j] += up.v[j];
                units[k].v[j] += up.v[j] * unit;
                gated[k].v[j] += sum.v[j] * added.v[j];
            }
            if (a.dr) store_gradient<V>(a.dr + row * d + i, sum, a.dr_fresh);
            if (!dh) continue;
            if (a.gates) {
#pragma unroll
                for (int j = 0; j < V; j++) sum.v[j] *= gates[k].v[j];
            }
            store_gradient<V>(dh + row * d + i, sum, a.dh_fresh);
        }
    }
    float *partial = a.partial + (b * gridDim.x + blockIdx.x) * 4 * d;
    FOR_HELD(V, d)
    {
        pack<V> w = load<V>(a.w + i), scale, weight;
#pragma unroll
        for (int j = 0; j < V; j++) {
            scale.v[j] = units[k].v[j] * w.v[j];
            weight.v[j] = units[k].v[j];
        }
        if (a.mod) {
            pack<V> gain = load<V>(a.mod + b * a.mod_width + d + i);
#pragma unroll
            for (int j = 0; j < V; j++) weight.v[j] *= 1.0f + gain.v[j];
        }
        store<V>(partial + i, shift[k]);
        store<V>(partial + d + i, scale);
        store<V>(partial + 2 * d + i, gated[k]);
        store<V>(partial + 3 * d + i, weight);
    }
}

aim_status cuda_residual_rms_norm_modulate_backward(struct backend *be, const struct tensor *r_out, const struct tensor *h,
                                                    const struct tensor *gates, const struct tensor *w,
                                                    const struct tensor *mod, float eps, const struct tensor *dr_out,
                                                    const struct tensor *dy, struct tensor *dr, struct tensor *dh,
                                                    struct tensor *dgates, struct tensor *dw, struct tensor *dmod)
{
    int64_t B = r_out->shape[0], T = r_out->shape[1], d = r_out->shape[2], mod_width = mod ? tensor_cols(mod) : 0;
    int64_t chunks = 0;
    struct residual_gradient a = {T,
                                  d,
                                  mod_width,
                                  f32(r_out),
                                  data_of<float>(gates),
                                  f32(w),
                                  data_of<float>(mod),
                                  data_of<float>(dr_out),
                                  data_of<float>(dr),
                                  NULL,
                                  eps,
                                  take_fresh(be, dr),
                                  take_fresh(be, dh),
                                  0};
    bool wide = d % 4 == 0 && mod_width % 4 == 0 && aligned(r_out) && aligned(h) && aligned(gates) && aligned(w) &&
                aligned(mod) && aligned(dr_out) && aligned(dy) && aligned(dr) && aligned(dh),
         fits = true;
    by_type(h ? h : r_out, [&](auto h_zero) {
        using H = decltype(h_zero);
        by_type(dy ? dy : r_out, [&](auto y_zero) {
            using Y = decltype(y_zero);
            by_width<4>(wide, [&](auto width_of) {
                constexpr int V = decltype(width_of)::value;
                int threads = threads_for<V>(d);
                fits = threads > 0;
                if (!fits) return;
                a.rows = rows_at_once(be, residual_backward<V, H, Y>, threads, B, T);
                chunks = divide_up(T, a.rows);
                a.partial = (float *)cuda_scratch(be, (size_t)(B * chunks * 4 * d) * sizeof(float));
                if (!a.partial) return;
                residual_backward<V, H, Y><<<dim3((unsigned)chunks, (unsigned)B), threads, 0, cuda_of(be)->stream>>>(
                    a, data_of<H>(h), data_of<Y>(dy), data_of<H>(dh));
            });
        });
    });
    if (!fits) return too_long(be, d);
    float *partial = a.partial;
    if (!partial) return AIM_ERR_MEMORY;
    TRY(cuda_launched(be, "residual_rms_norm_modulate_backward"));
    if (dmod) TRY(cuda_sum_rows(be, partial, B, chunks, 2 * d, 4 * d, f32(dmod), tensor_cols(dmod)));
    if (dgates) TRY(cuda_sum_rows(be, partial + 2 * d, B, chunks, d, 4 * d, f32(dgates) + 2 * d, 3 * d));
    return dw ? cuda_sum_rows(be, partial + 3 * d, 1, B * chunks, d, 4 * d, f32(dw), 0) : AIM_OK;
}

/* ------------------------------------------------------------------------------------------------------- gated */

template <int V, typename T>
static __global__ void __launch_bounds__(MOST_THREADS)
    gated_forward(const T *y, const T *zxbcdt, int64_t W, const float *w, int64_t E, float eps, T *o)
{
    __shared__ float shared[1][WARP];
    int64_t row = blockIdx.x;
    pack<V> v[held<V>()];
    float squares[1] = {0};
    FOR_HELD(V, E)
    {
        v[k] = load<V>(y + row * E + i);
        pack<V> z = load<V>(zxbcdt + row * W + i);
#pragma unroll
        for (int j = 0; j < V; j++) {
            v[k].v[j] *= silu(z.v[j]);
            squares[0] += v[k].v[j] * v[k].v[j];
        }
    }
    block_sum(squares, shared);
    float rstd = 1.0f / sqrtf(squares[0] / (float)E + eps);
    FOR_HELD(V, E)
    {
        pack<V> weight = load<V>(w + i);
#pragma unroll
        for (int j = 0; j < V; j++) v[k].v[j] *= rstd * weight.v[j];
        store<V>(o + row * E + i, v[k]);
    }
}

aim_status cuda_gated_rms_norm(struct backend *be, const struct tensor *y, const struct tensor *zxbcdt, const struct tensor *w,
                               float eps, struct tensor *o)
{
    int64_t M = tensor_rows(y), E = tensor_cols(y), W = tensor_cols(zxbcdt);
    bool wide = E % 8 == 0 && W % 8 == 0 && aligned(y) && aligned(zxbcdt) && aligned(w) && aligned(o), fits = true;
    by_type(y, [&](auto zero) {
        using T = decltype(zero);
        by_width<8>(wide, [&](auto width_of) {
            constexpr int V = decltype(width_of)::value;
            int threads = threads_for<V>(E);
            fits = threads > 0;
            if (fits)
                gated_forward<V, T><<<(unsigned)M, threads, 0, cuda_of(be)->stream>>>(data_of<T>(y), data_of<T>(zxbcdt), W,
                                                                                      f32(w), E, eps, data_of<T>(o));
        });
    });
    return fits ? cuda_launched(be, "gated_rms_norm") : too_long(be, E);
}

struct gated_gradient {
    int64_t M, E, W;
    const float *w;
    float *partial; /* (chunks, E): sums for w */
    float eps;
    bool dy_fresh, dz_fresh;
    int64_t rows; /* that a block sums up */
};

template <int V, typename T> struct gated_row {
    memory_pack<T, V> y[held<V>()], z[held<V>()], up[held<V>()];
};

template <int V, typename T>
static __device__ inline void load_row(const struct gated_gradient &a, const T *y, const T *zxbcdt, const T *dout, int64_t row,
                                       bool wanted, struct gated_row<V, T> &to)
{
    FOR_HELD(V, a.E)
    {
        to.y[k] = load_raw<V>(y + row * a.E + i, wanted);
        to.z[k] = load_raw<V>(zxbcdt + row * a.W + i, wanted);
        to.up[k] = load_raw<V>(dout + row * a.E + i, wanted);
    }
}

/* With v = y silu(z): dv = rstd (w do - v̂ mean(v̂ w do)); dy += dv silu(z); dz += dv y silu'(z); dw += Σ do v̂ */
template <int V, typename T>
static __global__ void __launch_bounds__(MOST_THREADS)
    gated_backward(struct gated_gradient a, const T *y, const T *zxbcdt, const T *dout, T *dy, T *dzxbcdt)
{
    __shared__ float shared[2][WARP];
    int64_t first = (int64_t)blockIdx.x * a.rows, end = first + a.rows < a.M ? first + a.rows : a.M;
    pack<V> w[held<V>()], weights[held<V>()];
#pragma unroll
    for (int k = 0; k < held<V>(); k++) w[k] = weights[k] = zeros<V>();
    FOR_HELD(V, a.E) w[k] = load<V>(a.w + i);
    struct gated_row<V, T> own, next;
    load_row<V>(a, y, zxbcdt, dout, first, true, next);
    for (int64_t row = first; row < end; row++) {
        float sums[2] = {0, 0}; /* Σ v², Σ v w do */
        own = next;
        load_row<V>(a, y, zxbcdt, dout, row + 1, row + 1 < end, next);
        FOR_HELD(V, a.E)
        {
            pack<V> value_y = values_of(own.y[k]), z = values_of(own.z[k]), up = values_of(own.up[k]);
#pragma unroll
            for (int j = 0; j < V; j++) {
                float v = value_y.v[j] * silu(z.v[j]);
                sums[0] += v * v;
                sums[1] += v * w[k].v[j] * up.v[j];
            }
        }
        block_sum(sums, shared);
        float rstd = 1.0f / sqrtf(sums[0] / (float)a.E + a.eps), mean = sums[1] / (float)a.E * rstd;
        FOR_HELD(V, a.E)
        {
            pack<V> value_y = values_of(own.y[k]), z = values_of(own.z[k]), up = values_of(own.up[k]), to_y, to_z;
#pragma unroll
            for (int j = 0; j < V; j++) {
                float s = sigmoid(z.v[j]), gate = z.v[j] * s, unit = value_y.v[j] * gate * rstd;
                float dv = rstd * (w[k].v[j] * up.v[j] - unit * mean);
                weights[k].v[j] += up.v[j] * unit;
                to_y.v[j] = dv * gate;
                to_z.v[j] = dv * value_y.v[j] * s * (1.0f + z.v[j] * (1.0f - s));
            }
            if (dy) store_gradient<V>(dy + row * a.E + i, to_y, a.dy_fresh);
            if (dzxbcdt) store_gradient<V>(dzxbcdt + row * a.W + i, to_z, a.dz_fresh);
        }
    }
    FOR_HELD(V, a.E) store<V>(a.partial + (int64_t)blockIdx.x * a.E + i, weights[k]);
}

aim_status cuda_gated_rms_norm_backward(struct backend *be, const struct tensor *y, const struct tensor *zxbcdt,
                                        const struct tensor *w, float eps, const struct tensor *do_, struct tensor *dy,
                                        struct tensor *dzxbcdt, struct tensor *dw)
{
    int64_t M = tensor_rows(y), E = tensor_cols(y), W = tensor_cols(zxbcdt), chunks = 0;
    struct gated_gradient a = {M, E, W, f32(w), NULL, eps, take_fresh(be, dy), take_fresh(be, dzxbcdt, 0, E), 0};
    bool wide = E % 8 == 0 && W % 8 == 0 && aligned(y) && aligned(zxbcdt) && aligned(w) && aligned(do_) && aligned(dy) &&
                aligned(dzxbcdt),
         fits = true;
    by_type(y, [&](auto zero) {
        using T = decltype(zero);
        by_width<8>(wide, [&](auto width_of) {
            constexpr int V = decltype(width_of)::value;
            int threads = threads_for<V>(E);
            fits = threads > 0;
            if (!fits) return;
            a.rows = rows_at_once(be, gated_backward<V, T>, threads, 1, M);
            chunks = divide_up(M, a.rows);
            a.partial = (float *)cuda_scratch(be, (size_t)(chunks * E) * sizeof(float));
            if (!a.partial) return;
            gated_backward<V, T><<<(unsigned)chunks, threads, 0, cuda_of(be)->stream>>>(
                a, data_of<T>(y), data_of<T>(zxbcdt), data_of<T>(do_), data_of<T>(dy), data_of<T>(dzxbcdt));
        });
    });
    if (!fits) return too_long(be, E);
    if (!a.partial) return AIM_ERR_MEMORY;
    TRY(cuda_launched(be, "gated_rms_norm_backward"));
    return dw ? cuda_sum_rows(be, a.partial, 1, chunks, E, E, f32(dw), 0) : AIM_OK;
}
