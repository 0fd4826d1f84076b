/* What stands between convolutions: layouts of pictures, leaky relu, factors, pooling, blur. */
#include "cuda/columns.cuh"

enum { THREADS = 256 };

/* ------------------------------------------------------------------------------------------------- layouts
 *
 * The maps whose layout changes are pictures of three channels: a thread has a pixel, so that neighbours touch neighbouring
 * memory in either layout; blockIdx.y is the picture. */

template <typename X, typename Y> static __global__ void to_nhwc(const X *x, int C, int pixels, Y *y)
{
    int p = (int)blockIdx.x * THREADS + (int)threadIdx.x;
    if (p >= pixels) return;
    const X *from = x + (int64_t)blockIdx.y * C * pixels + p;
    Y *to = y + ((int64_t)blockIdx.y * pixels + p) * C;
    for (int c = 0; c < C; c++) put(&to[c], value(from[(int64_t)c * pixels]));
}

template <typename X, typename Y> static __global__ void to_nchw(const X *x, int C, int pixels, Y *y)
{
    int p = (int)blockIdx.x * THREADS + (int)threadIdx.x;
    if (p >= pixels) return;
    const X *from = x + ((int64_t)blockIdx.y * pixels + p) * C;
    Y *to = y + (int64_t)blockIdx.y * C * pixels + p;
    for (int c = 0; c < C; c++) put(&to[(int64_t)c * pixels], value(from[c]));
}

static __global__ void from_bytes(const uint8_t *bytes, int pixels, float *y)
{
    int p = (int)blockIdx.x * THREADS + (int)threadIdx.x;
    if (p >= pixels) return;
    const uint8_t *from = bytes + ((int64_t)blockIdx.y * pixels + p) * 3;
    float *to = y + (int64_t)blockIdx.y * 3 * pixels + p;
    for (int c = 0; c < 3; c++) to[(int64_t)c * pixels] = ((float)from[c] / 255.0f - 0.5f) / 0.5f; /* image_level_to_float */
}

aim_status cuda_pictures(struct backend *be, const struct tensor *bytes, struct tensor *y)
{
    int pixels = (int)(y->shape[2] * y->shape[3]);
    dim3 grid((unsigned)divide_up(pixels, THREADS), (unsigned)y->shape[0]);
    from_bytes<<<grid, THREADS, 0, cuda_of(be)->stream>>>(data_of<uint8_t>(bytes), pixels, f32(y));
    return cuda_launched(be, "pictures");
}

aim_status cuda_nchw_to_nhwc(struct backend *be, const struct tensor *x, struct tensor *y)
{
    int C = (int)x->shape[1], pixels = (int)(x->shape[2] * x->shape[3]);
    dim3 grid((unsigned)divide_up(pixels, THREADS), (unsigned)x->shape[0]);
    by_type(x, [&](auto of_x) {
        by_type(y, [&](auto of_y) {
            using X = decltype(of_x);
            using Y = decltype(of_y);
            to_nhwc<X, Y><<<grid, THREADS, 0, cuda_of(be)->stream>>>(data_of<X>(x), C, pixels, data_of<Y>(y));
        });
    });
    return cuda_launched(be, "nchw_to_nhwc");
}

aim_status cuda_nhwc_to_nchw(struct backend *be, const struct tensor *x, struct tensor *y)
{
    int C = (int)x->shape[3], pixels = (int)(x->shape[1] * x->shape[2]);
    dim3 grid((unsigned)divide_up(pixels, THREADS), (unsigned)x->shape[0]);
    by_type(x, [&](auto of_x) {
        by_type(y, [&](auto of_y) {
            using X = decltype(of_x);
            using Y = decltype(of_y);
            to_nchw<X, Y><<<grid, THREADS, 0, cuda_of(be)->stream>>>(data_of<X>(x), C, pixels, data_of<Y>(y));
        });
    });
    return cuda_launched(be, "nhwc_to_nchw");
}

/* -------------------------------------------------------------------------------------------- value by value */

struct leaky {
    float slope;
    __device__ float operator()(float x) const
    {
        return x > 0 ? x : slope * x;
    }
    __device__ float back(float x, float dy) const
    {
        return x > 0 ? dy : slope * dy;
    }
};

struct factor_of {
    float factor;
    __device__ float operator()(float x) const
    {
        return factor * x;
    }
    __device__ float back(float, float dy) const
    {
        return factor * dy;
    }
};

template <int V, typename T, typename F> static __global__ void map_values(const T *x, int64_t n, F f, T *y)
{
    for (int64_t i = blockIdx.x * (int64_t)THREADS + threadIdx.x; i < n / V; i += (int64_t)gridDim.x * THREADS) {
        pack<V> v = load<V>(x + i * V);
#pragma unroll
        for (int j = 0; j < V; j++) v.v[j] = f(v.v[j]);
        store<V>(y + i * V, v);
    }
}

/* dx += (fresh: =) */
template <int V, typename T, typename F>
static __global__ void map_back(const T *x, const T *dy, int64_t n, F f, bool fresh, T *dx)
{
    for (int64_t i = blockIdx.x * (int64_t)THREADS + threadIdx.x; i < n / V; i += (int64_t)gridDim.x * THREADS) {
        pack<V> v = load<V>(x + i * V), up = load<V>(dy + i * V);
#pragma unroll
        for (int j = 0; j < V; j++) v.v[j] = f.back(v.v[j], up.v[j]);
        if (fresh)
            store<V>(dx + i * V, v);
        else
            store_add<V>(dx + i * V, v);
    }
}

template <typename F>
static aim_status map_all(struct backend *be, const struct tensor *x, F f, struct tensor *y, const char *op)
{
    int64_t n = tensor_count(x);
    by_type(x, [&](auto zero) {
        using T = decltype(zero);
        by_width<16 / sizeof(T)>(rows_aligned(x->type, n, x->data, y->data), [&](auto w) {
            constexpr int V = decltype(w)::value;
            map_values<V>
                <<<cuda_blocks(be, n / V, THREADS), THREADS, 0, cuda_of(be)->stream>>>(data_of<T>(x), n, f, data_of<T>(y));
        });
    });
    return cuda_launched(be, op);
}

template <typename F>
static aim_status map_all_back(struct backend *be, const struct tensor *x, F f, const struct tensor *dy, struct tensor *dx,
                               const char *op)
{
    int64_t n = tensor_count(x);
    bool fresh = take_fresh(be, dx);
    by_type(x, [&](auto zero) {
        using T = decltype(zero);
        by_width<16 / sizeof(T)>(rows_aligned(x->type, n, x->data, dy->data, dx->data), [&](auto w) {
            constexpr int V = decltype(w)::value;
            map_back<V><<<cuda_blocks(be, n / V, THREADS), THREADS, 0, cuda_of(be)->stream>>>(data_of<T>(x), data_of<T>(dy), n,
                                                                                              f, fresh, data_of<T>(dx));
        });
    });
    return cuda_launched(be, op);
}

aim_status cuda_leaky_relu(struct backend *be, const struct tensor *x, float slope, struct tensor *y)
{
    return map_all(be, x, leaky{slope}, y, "leaky_relu");
}

aim_status cuda_leaky_relu_backward(struct backend *be, const struct tensor *x, float slope, const struct tensor *dy,
                                    struct tensor *dx)
{
    return map_all_back(be, x, leaky{slope}, dy, dx, "leaky_relu_backward");
}

aim_status cuda_scale(struct backend *be, const struct tensor *x, float factor, struct tensor *y)
{
    return map_all(be, x, factor_of{factor}, y, "scale");
}

aim_status cuda_scale_backward(struct backend *be, float factor, const struct tensor *dy, struct tensor *dx)
{
    return map_all_back(be, dy, factor_of{factor}, dy, dx, "scale_backward");
}

/* ----------------------------------------------------------------------------------------- pooling and blur
 *
 * A thread has V channels of a pixel of the smaller map (pooling) or of the map (blur). */

struct map_shape {
    int64_t N, H, W, C;
};

static struct map_shape shape_of(const struct tensor *t)
{
    struct map_shape s = {t->shape[0], t->shape[1], t->shape[2], t->shape[3]};
    return s;
}

/* A thread's place among N*H*W pixels of C / V places. */
struct place {
    int64_t n, y, x, channel;
    bool live;
};

template <int V> static __device__ inline struct place place_of(const struct map_shape &s)
{
    int64_t i = blockIdx.x * (int64_t)THREADS + threadIdx.x, places = s.C / V;
    struct place p;
    p.channel = i % places * V;
    p.x = i / places % s.W;
    p.y = i / places / s.W % s.H;
    p.n = i / places / s.W / s.H;
    p.live = p.n < s.N;
    return p;
}

template <int V> static unsigned place_blocks(const struct map_shape &s)
{
    return (unsigned)divide_up(s.N * s.H * s.W * (s.C / V), THREADS);
}

template <int V, typename T> static __global__ void pool(const T *x, int64_t H, int64_t W, struct map_shape s, T *y)
{
    struct place p = place_of<V>(s);
    if (!p.live) return;
    const T *in = x + ((p.n * H + 2 * p.y) * W + 2 * p.x) * s.C + p.channel;
    pack<V> best = load<V>(in);
#pragma unroll
    for (int k = 1; k < 4; k++) {
        pack<V> other = load<V>(in + (k / 2 * W + k % 2) * s.C);
#pragma unroll
        for (int j = 0; j < V; j++) best.v[j] = other.v[j] > best.v[j] ? other.v[j] : best.v[j];
    }
    store<V>(y + ((p.n * s.H + p.y) * s.W + p.x) * s.C + p.channel, best);
}

template <int V, typename T>
static __global__ void pool_back(const T *x, int64_t H, int64_t W, struct map_shape s, const T *dy, T *dx)
{
    struct place p = place_of<V>(s);
    if (!p.live) return;
    int64_t at = ((p.n * H + 2 * p.y) * W + 2 * p.x) * s.C + p.channel;
    pack<V> best = load<V>(x + at), up = load<V>(dy + ((p.n * s.H + p.y) * s.W + p.x) * s.C + p.channel);
    int corner[V] = {};
#pragma unroll
    for (int k = 1; k < 4; k++) {
        pack<V> other = load<V>(x + at + (k / 2 * W + k % 2) * s.C);
#pragma unroll
        for (int j = 0; j < V; j++)
            if (other.v[j] > best.v[j]) {
                best.v[j] = other.v[j];
                corner[j] = k;
            }
    }
#pragma unroll
    for (int k = 0; k < 4; k++) {
        pack<V> part;
#pragma unroll
        for (int j = 0; j < V; j++) part.v[j] = corner[j] == k ? up.v[j] : 0.0f;
        store_add<V>(dx + at + (k / 2 * W + k % 2) * s.C, part);
    }
}

aim_status cuda_max_pool(struct backend *be, const struct tensor *x, struct tensor *y)
{
    struct map_shape s = shape_of(y);
    by_type(x, [&](auto zero) {
        using T = decltype(zero);
        by_width<16 / sizeof(T)>(rows_aligned(x->type, s.C, x->data, y->data), [&](auto w) {
            constexpr int V = decltype(w)::value;
            pool<V><<<place_blocks<V>(s), THREADS, 0, cuda_of(be)->stream>>>(data_of<T>(x), x->shape[1], x->shape[2], s,
                                                                             data_of<T>(y));
        });
    });
    return cuda_launched(be, "max_pool");
}

aim_status cuda_max_pool_backward(struct backend *be, const struct tensor *x, const struct tensor *dy, struct tensor *dx)
{
    struct map_shape s = shape_of(dy);
    by_type(x, [&](auto zero) {
        using T = decltype(zero);
        by_width<16 / sizeof(T)>(rows_aligned(x->type, s.C, x->data, dy->data, dx->data), [&](auto w) {
            constexpr int V = decltype(w)::value;
            pool_back<V><<<place_blocks<V>(s), THREADS, 0, cuda_of(be)->stream>>>(data_of<T>(x), x->shape[1], x->shape[2], s,
                                                                                  data_of<T>(dy), data_of<T>(dx));
        });
    });
    return cuda_launched(be, "max_pool_backward");
}

/* Which pixel stands beyond the border: the mirror image. */
static __device__ inline int64_t mirror(int64_t i, int64_t n)
{
    return i < 0 ? -i : i >= n ? 2 * (n - 1) - i : i;
}

/* [1,2,1] / 4 */
static __device__ inline float blur_tap(int tap)
{
    return tap == 1 ? 0.5f : 0.25f;
}

template <int V, typename T> static __global__ void blur(const T *x, struct map_shape s, T *y)
{
    struct place p = place_of<V>(s);
    if (!p.live) return;
    pack<V> sum = zeros<V>();
#pragma unroll
    for (int tap = 0; tap < 9; tap++) {
        int64_t iy = mirror(p.y + tap / 3 - 1, s.H), ix = mirror(p.x + tap % 3 - 1, s.W);
        pack<V> in = load<V>(x + ((p.n * s.H + iy) * s.W + ix) * s.C + p.channel);
#pragma unroll
        for (int j = 0; j < V; j++) sum.v[j] += blur_tap(tap / 3) * blur_tap(tap % 3) * in.v[j];
    }
    store<V>(y + ((p.n * s.H + p.y) * s.W + p.x) * s.C + p.channel, sum);
}

/* How much the output at `from` takes of the input at `to` along an axis of n. */
static __device__ inline float blur_share(int64_t from, int64_t to, int64_t n)
{
    float sum = 0;
#pragma unroll
    for (int tap = 0; tap < 3; tap++) sum += mirror(from + tap - 1, n) == to ? blur_tap(tap) : 0.0f;
    return sum;
}

template <int V, typename T> static __global__ void blur_back(const T *dy, struct map_shape s, bool fresh, T *dx)
{
    struct place p = place_of<V>(s);
    if (!p.live) return;
    pack<V> sum = zeros<V>();
    for (int tap = 0; tap < 9; tap++) {
        int64_t oy = p.y + tap / 3 - 1, ox = p.x + tap % 3 - 1;
        if (oy < 0 || ox < 0 || oy >= s.H || ox >= s.W) continue;
        float weight = blur_share(oy, p.y, s.H) * blur_share(ox, p.x, s.W);
        pack<V> up = load<V>(dy + ((p.n * s.H + oy) * s.W + ox) * s.C + p.channel);
#pragma unroll
        for (int j = 0; j < V; j++) sum.v[j] += weight * up.v[j];
    }
    T *to = dx + ((p.n * s.H + p.y) * s.W + p.x) * s.C + p.channel;
    if (fresh)
        store<V>(to, sum);
    else
        store_add<V>(to, sum);
}

aim_status cuda_blur(struct backend *be, const struct tensor *x, struct tensor *y)
{
    struct map_shape s = shape_of(x);
    by_type(x, [&](auto zero) {
        using T = decltype(zero);
        by_width<16 / sizeof(T)>(rows_aligned(x->type, s.C, x->data, y->data), [&](auto w) {
            constexpr int V = decltype(w)::value;
            blur<V><<<place_blocks<V>(s), THREADS, 0, cuda_of(be)->stream>>>(data_of<T>(x), s, data_of<T>(y));
        });
    });
    return cuda_launched(be, "blur");
}

aim_status cuda_blur_backward(struct backend *be, const struct tensor *dy, struct tensor *dx)
{
    struct map_shape s = shape_of(dy);
    bool fresh = take_fresh(be, dx);
    by_type(dy, [&](auto zero) {
        using T = decltype(zero);
        by_width<16 / sizeof(T)>(rows_aligned(dy->type, s.C, dy->data, dx->data), [&](auto w) {
            constexpr int V = decltype(w)::value;
            blur_back<V><<<place_blocks<V>(s), THREADS, 0, cuda_of(be)->stream>>>(data_of<T>(dy), s, fresh, data_of<T>(dx));
        });
    });
    return cuda_launched(be, "blur_backward");
}
