/*
 * RMS normalisations of rows, with residual and modulation, or gated; forward and backward. A row's values stay in a
 * block's registers. Formulas: cpu/kernels/norm.c, rms_backward.c.
 */
#include "cuda/ahead.cuh"

enum { MOST_THREADS = 512, MOST_AHEAD = 4, LEAST_AHEAD = 2 /* rows in a queue */ };

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

/*
 * A block's next rows of one matrix, in shared memory: (rows, vectors held, threads). Every thread copies and reads vectors of
 * its own.
 */
template <int V, typename T> struct queue {
    memory_pack<T, V> *places;
};

/* Takes the memory of a queue from *room. */
template <int V, typename T> static __device__ inline queue<V, T> queue_take(char **room, int rows)
{
    queue<V, T> q = {reinterpret_cast<memory_pack<T, V> *>(*room)};
    *room += (size_t)rows * held<V>() * blockDim.x * sizeof(memory_pack<T, V>);
    return q;
}

/* Bytes of a queue for one row and thread. */
template <int V, typename T> static constexpr size_t queue_bytes()
{
    return held<V>() * sizeof(memory_pack<T, V>);
}

template <int V, typename T> static __device__ inline memory_pack<T, V> &queue_at(const queue<V, T> &q, int slot, int k)
{
    return q.places[(slot * held<V>() + k) * (int)blockDim.x + (int)threadIdx.x];
}

/* Until the oldest of `rows` rows is there. */
static __device__ inline void queue_wait(int rows)
{
    if (rows == MOST_AHEAD)
        copy_wait<MOST_AHEAD - 1>();
    else
        copy_wait<LEAST_AHEAD - 1>();
}

/*
 * Lets a kernel have queues of `bytes` a row and thread: as many rows as there is memory for, into *rows; the result is the
 * dynamic shared memory, 0 where it does not suffice.
 */
template <typename Kernel>
static size_t queue_memory(const struct backend *be, Kernel kernel, int threads, size_t bytes, int *rows)
{
    size_t limit = ((const struct cuda *)be->state)->shared_limit, row = bytes * (size_t)threads;
    size_t reserve = 1 << 10; /* for the kernel's own and the driver's */
    *rows = MOST_AHEAD * row + reserve <= limit ? MOST_AHEAD : LEAST_AHEAD;
    size_t shared = (size_t)*rows * row;
    if (shared + reserve > limit) return 0;
    if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared) != cudaSuccess) return 0;
    return shared;
}

/* block_sum at one barrier: `turn` alternates between the two halves of `shared`. */
template <int N> static __device__ inline void block_sum_turn(float (&x)[N], float (&shared)[2][N][WARP], int turn)
{
    int lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
#pragma unroll
    for (int n = 0; n < N; n++) x[n] = warp_sum(x[n]);
#pragma unroll
    for (int n = 0; n < N; n++)
        if (lane == 0) shared[turn][n][threadIdx.x / WARP] = x[n];
    __syncthreads();
#pragma unroll
    for (int n = 0; n < N; n++) x[n] = warp_sum(lane < warps ? shared[turn][n][lane] : 0.0f);
}

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
    int ahead;    /* rows in the queues */
};

/* What waits of the next rows; absent parts are zeros. */
template <int V, typename H, typename Y> struct residual_queues {
    queue<V, float> x, dsum;
    queue<V, H> h;
    queue<V, Y> dy;
};

template <int V, typename H, typename Y>
static __device__ inline void start_row(const struct residual_gradient &a, const H *h, const Y *dy, int64_t row, bool wanted,
                                        const struct residual_queues<V, H, Y> &to, int slot)
{
    FOR_HELD(V, a.d)
    {
        int64_t at = row * a.d + i;
        ahead_start<V>(queue_at(to.x, slot, k), a.x + at, wanted);
        ahead_start<V>(queue_at(to.dsum, slot, k), a.dsum ? a.dsum + at : a.x, wanted && a.dsum);
        ahead_start<V>(queue_at(to.h, slot, k), h ? h + at : (const H *)a.x, wanted && h);
        ahead_start<V>(queue_at(to.dy, slot, k), dy ? dy + at : (const Y *)a.x, wanted && dy);
    }
    copy_commit();
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
    extern __shared__ __align__(16) char room[];
    __shared__ float shared[2][2][WARP];
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
    char *at = room;
    struct residual_queues<V, H, Y> queues = {
        queue_take<V, float>(&at, a.ahead), queue_take<V, float>(&at, a.ahead), queue_take<V, H>(&at, a.ahead),
            queue_take<V, Y>(&at, a.ahead)
    };
    for (int k = 0; k + 1 < a.ahead; k++) start_row<V>(a, h, dy, b * a.T + first + k, first + k < end, queues, k);
    for (int64_t t = first; t < end; t++) {
        int64_t row = b * a.T + t;
        int own = (int)(t - first) & (a.ahead - 1), last = own == 0 ? a.ahead - 1 : own - 1;
        float sums[2] = {0, 0}; /* Σ x², Σ x q */
        memory_pack<float, V> x_raw[held<V>()], dsum_raw[held<V>()];
        memory_pack<H, V> h_raw[held<V>()];
        memory_pack<Y, V> dy_raw[held<V>()];
        start_row<V>(a, h, dy, row + a.ahead - 1, t + a.ahead - 1 < end, queues, last);
        queue_wait(a.ahead);
        FOR_HELD(V, d)
        {
            x_raw[k] = queue_at(queues.x, own, k), dsum_raw[k] = queue_at(queues.dsum, own, k);
            h_raw[k] = queue_at(queues.h, own, k), dy_raw[k] = queue_at(queues.dy, own, k);
            pack<V> x = values_of(x_raw[k]), up = values_of(dy_raw[k]);
#pragma unroll
            for (int j = 0; j < V; j++) {
                sums[0] += x.v[j] * x.v[j];
                sums[1] += x.v[j] * up.v[j] * along[k].v[j];
            }
        }
        block_sum_turn(sums, shared, (int)(t - first) & 1);
        float rstd = 1.0f / sqrtf(sums[0] / (float)d + a.eps), mean = sums[1] / (float)d * rstd;
        FOR_HELD(V, d)
        {
            pack<V> x = values_of(x_raw[k]), up = values_of(dy_raw[k]), sum = values_of(dsum_raw[k]);
            pack<V> added = values_of(h_raw[k]);
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
                                  0,
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
                size_t each = 2 * queue_bytes<V, float>() + queue_bytes<V, H>() + queue_bytes<V, Y>();
                size_t room = threads ? queue_memory(be, residual_backward<V, H, Y>, threads, each, &a.ahead) : 0;
                fits = room > 0;
                if (!fits) return;
                a.rows = rows_at_once(be, residual_backward<V, H, Y>, threads, room, B, T);
                chunks = divide_up(T, a.rows);
                a.partial = (float *)cuda_scratch(be, (size_t)(B * chunks * 4 * d) * sizeof(float));
                if (!a.partial) return;
                residual_backward<V, H, Y><<<dim3((unsigned)chunks, (unsigned)B), threads, room, cuda_of(be)->stream>>>(
                    a, data_of<H>(h), data_of<Y>(dy), data_of<H>(dh));
            });
        });
    });
    if (!fits) return too_long(be, d);
    float *partial = a.partial;
    if (!partial) return AIM_ERR_MEMORY;
    TRY(cuda_launched(be, "residual_rms_norm_modulate_backward"));
    struct sum_target sums[] = {{data_of<float>(dmod), dmod ? tensor_cols(dmod) : 0, 2 * d},
                                {dgates ? f32(dgates) + 2 * d : NULL, 3 * d, d}};
    if (dmod || dgates) TRY(cuda_sum_rows_to(be, partial, B, chunks, 4 * d, sums, 2));
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
    int ahead;    /* rows in the queues */
};

template <int V, typename T> struct gated_queues {
    queue<V, T> y, z, up;
};

template <int V, typename T>
static __device__ inline void start_row(const struct gated_gradient &a, const T *y, const T *zxbcdt, const T *dout, int64_t row,
                                        bool wanted, const struct gated_queues<V, T> &to, int slot)
{
    FOR_HELD(V, a.E)
    {
        ahead_start<V>(queue_at(to.y, slot, k), y + row * a.E + i, wanted);
        ahead_start<V>(queue_at(to.z, slot, k), zxbcdt + row * a.W + i, wanted);
        ahead_start<V>(queue_at(to.up, slot, k), dout + row * a.E + i, wanted);
    }
    copy_commit();
}

/* With v = y silu(z): dv = rstd (w do - v̂ mean(v̂ w do)); dy += dv silu(z); dz += dv y silu'(z); dw += Σ do v̂ */
template <int V, typename T>
static __global__ void __maxnreg__(80) /* two blocks of 384 threads fit a multiprocessor */
    gated_backward(struct gated_gradient a, const T *y, const T *zxbcdt, const T *dout, T *dy, T *dzxbcdt)
{
    extern __shared__ __align__(16) char room[];
    __shared__ float shared[2][2][WARP];
    int64_t first = (int64_t)blockIdx.x * a.rows, end = first + a.rows < a.M ? first + a.rows : a.M;
    char *at = room;
    struct gated_queues<V, T> queues = {
        queue_take<V, T>(&at, a.ahead), queue_take<V, T>(&at, a.ahead), queue_take<V, T>(&at, a.ahead)
    };
    pack<V> w[held<V>()], weights[held<V>()];
#pragma unroll
    for (int k = 0; k < held<V>(); k++) w[k] = weights[k] = zeros<V>();
    for (int k = 0; k + 1 < a.ahead; k++) start_row<V>(a, y, zxbcdt, dout, first + k, first + k < end, queues, k);
    FOR_HELD(V, a.E) w[k] = load<V>(a.w + i);
    for (int64_t row = first; row < end; row++) {
        int own = (int)(row - first) & (a.ahead - 1), last = own == 0 ? a.ahead - 1 : own - 1;
        float sums[2] = {0, 0}; /* Σ v², Σ v w do */
        memory_pack<T, V> y_raw[held<V>()], z_raw[held<V>()], up_raw[held<V>()];
        pack<V> share[held<V>()]; /* σ(z) */
        start_row<V>(a, y, zxbcdt, dout, row + a.ahead - 1, row + a.ahead - 1 < end, queues, last);
        queue_wait(a.ahead);
        FOR_HELD(V, a.E)
        {
            y_raw[k] = queue_at(queues.y, own, k), z_raw[k] = queue_at(queues.z, own, k);
            up_raw[k] = queue_at(queues.up, own, k);
            pack<V> value_y = values_of(y_raw[k]), z = values_of(z_raw[k]), up = values_of(up_raw[k]);
#pragma unroll
            for (int j = 0; j < V; j++) {
                share[k].v[j] = sigmoid(z.v[j]);
                float v = value_y.v[j] * (z.v[j] * share[k].v[j]);
                sums[0] += v * v;
                sums[1] += v * w[k].v[j] * up.v[j];
            }
        }
        block_sum_turn(sums, shared, (int)(row - first) & 1);
        float rstd = 1.0f / sqrtf(sums[0] / (float)a.E + a.eps), mean = sums[1] / (float)a.E * rstd;
        FOR_HELD(V, a.E)
        {
            pack<V> value_y = values_of(y_raw[k]), z = values_of(z_raw[k]), up = values_of(up_raw[k]), to_y, to_z;
#pragma unroll
            for (int j = 0; j < V; j++) {
                float s = share[k].v[j], gate = z.v[j] * s, unit = value_y.v[j] * gate * rstd;
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
    struct gated_gradient a = {M, E, W, f32(w), NULL, eps, take_fresh(be, dy), take_fresh(be, dzxbcdt, 0, E), 0, 0};
    bool wide = E % 8 == 0 && W % 8 == 0 && aligned(y) && aligned(zxbcdt) && aligned(w) && aligned(do_) && aligned(dy) &&
                aligned(dzxbcdt),
         fits = true;
    by_type(y, [&](auto zero) {
        using T = decltype(zero);
        by_width<8>(wide, [&](auto width_of) {
            constexpr int V = decltype(width_of)::value;
            int threads = threads_for<V>(E);
            size_t each = 3 * queue_bytes<V, T>();
            size_t room = threads ? queue_memory(be, gated_backward<V, T>, threads, each, &a.ahead) : 0;
            fits = room > 0;
            if (!fits) return;
            a.rows = rows_at_once(be, gated_backward<V, T>, threads, room, 1, M);
            chunks = divide_up(M, a.rows);
            a.partial = (float *)cuda_scratch(be, (size_t)(chunks * E) * sizeof(float));
            if (!a.partial) return;
            gated_backward<V, T><<<(unsigned)chunks, threads, room, cuda_of(be)->stream>>>(
                a, data_of<T>(y), data_of<T>(zxbcdt), data_of<T>(do_), data_of<T>(dy), data_of<T>(dzxbcdt));
        });
    });
    if (!fits) return too_long(be, E);
    if (!a.partial) return AIM_ERR_MEMORY;
    TRY(cuda_launched(be, "gated_rms_norm_backward"));
    return dw ? cuda_sum_rows(be, a.partial, 1, chunks, E, E, f32(dw), 0) : AIM_OK;
}
