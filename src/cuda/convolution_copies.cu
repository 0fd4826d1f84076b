/* Copies around cuDNN's convolutions: borders, enlargement, channels filled up, the order of filters. */
#include "cuda/convolution.cuh"

enum { COPY_THREADS = 256 };

static unsigned copy_blocks(int64_t n)
{
    return (unsigned)divide_up(n, COPY_THREADS);
}

template <typename F> static void by_conv_type(const struct conv *c, F f)
{
    if (c->type == T_BF16)
        f(bf16());
    else
        f(float());
}

/* ----------------------------------------------------------------------------------------------------- maps */

/* V channels a thread; blockIdx.y is a row of `seen` */
template <int V, typename T> static __global__ void see_x(const T *__restrict__ x, struct conv c, T *__restrict__ seen)
{
    /* 32 bits: 64-bit divisions would take longer than the memory */
    int places = (int)c.seen_I / V, at = (int)blockIdx.x * COPY_THREADS + (int)threadIdx.x, line = (int)blockIdx.y;
    int H = (int)c.seen_H, width = (int)c.seen_W;
    if (at >= width * places) return;
    int iy = line % H - c.border, ix = at / places - c.border, channel = at % places * V, shift = c.grow - 1;
    bool inside = iy >= 0 && ix >= 0 && iy >> shift < (int)c.H && ix >> shift < (int)c.W && channel < (int)c.I;
    pack<V> out = zeros<V>();
    if (inside) out = load<V>(x + ((line / H * c.H + (iy >> shift)) * c.W + (ix >> shift)) * c.I + channel);
    store_whole<V>(seen + line * c.seen_W * c.seen_I + (int64_t)at * V, out);
}

void conv_see_x(struct backend *be, const struct conv *c, const void *x, void *seen)
{
    by_conv_type(c, [&](auto zero) {
        using T = decltype(zero);
        by_width<16 / sizeof(T)>(rows_aligned(c->type, c->I, x, seen), [&](auto w) {
            constexpr int V = decltype(w)::value;
            dim3 grid(copy_blocks(c->seen_W * c->seen_I / V), (unsigned)(c->N * c->seen_H));
            see_x<V><<<grid, COPY_THREADS, 0, cuda_of(be)->stream>>>((const T *)x, *c, (T *)seen);
        });
    });
}

/* blockIdx.y is a row of x */
template <int V, typename T>
static __global__ void add_seen(const T *__restrict__ seen, struct conv c, bool fresh, T *__restrict__ dx)
{
    int places = (int)c.I / V, at = (int)blockIdx.x * COPY_THREADS + (int)threadIdx.x, line = (int)blockIdx.y, H = (int)c.H;
    if (at >= (int)c.W * places) return;
    int64_t n = line / H;
    int y = line % H * c.grow + c.border, x = at / places * c.grow + c.border, channel = at % places * V;
    pack<V> sum = zeros<V>();
    for (int e = 0; e < c.grow * c.grow; e++) {
        int64_t pixel = (n * c.seen_H + y + e / c.grow) * c.seen_W + x + e % c.grow;
        pack<V> in = load<V>(seen + pixel * c.seen_I + channel);
#pragma unroll
        for (int j = 0; j < V; j++) sum.v[j] += in.v[j];
    }
    T *to = dx + line * c.W * c.I + (int64_t)at * V;
    if (fresh)
        store_whole<V>(to, sum);
    else
        store_add<V>(to, sum);
}

void conv_add_seen(struct backend *be, const struct conv *c, const void *seen, bool fresh, void *dx)
{
    by_conv_type(c, [&](auto zero) {
        using T = decltype(zero);
        by_width<16 / sizeof(T)>(rows_aligned(c->type, c->I, dx, seen), [&](auto w) {
            constexpr int V = decltype(w)::value;
            dim3 grid(copy_blocks(c->W * c->I / V), (unsigned)(c->N * c->H));
            add_seen<V><<<grid, COPY_THREADS, 0, cuda_of(be)->stream>>>((const T *)seen, *c, fresh, (T *)dx);
        });
    });
}

/* A batch has fewer than 2^31 values: 32 bits, as above. */
template <typename T> static __global__ void see_rows(const T *in, unsigned count, unsigned cols, unsigned seen_cols, T *seen)
{
    for (unsigned i = blockIdx.x * COPY_THREADS + threadIdx.x; i < count; i += gridDim.x * COPY_THREADS) {
        unsigned row = i / seen_cols, c = i - row * seen_cols;
        put(seen + i, c < cols ? value(in[row * cols + c]) : 0.0f);
    }
}

void conv_see_dy(struct backend *be, const struct conv *c, const void *dy, void *seen)
{
    int64_t count = c->N * c->OH * c->OW * c->seen_O;
    by_conv_type(c, [&](auto zero) {
        using T = decltype(zero);
        see_rows<<<cuda_blocks(be, count, COPY_THREADS), COPY_THREADS, 0, cuda_of(be)->stream>>>(
            (const T *)dy, (unsigned)count, (unsigned)c->O, (unsigned)c->seen_O, (T *)seen);
    });
}

template <typename T>
static __global__ void finish_y(const T *seen, const float *bias, unsigned count, unsigned O, unsigned seen_O, T *y)
{
    for (unsigned i = blockIdx.x * COPY_THREADS + threadIdx.x; i < count; i += gridDim.x * COPY_THREADS) {
        unsigned row = i / O, c = i - row * O;
        put(y + i, value(seen[row * seen_O + c]) + (bias ? bias[c] : 0.0f));
    }
}

void conv_finish_y(struct backend *be, const struct conv *c, const void *seen, const float *bias, void *y)
{
    int64_t count = c->N * c->OH * c->OW * c->O;
    by_conv_type(c, [&](auto zero) {
        using T = decltype(zero);
        finish_y<<<cuda_blocks(be, count, COPY_THREADS), COPY_THREADS, 0, cuda_of(be)->stream>>>(
            (const T *)seen, bias, (unsigned)count, (unsigned)c->O, (unsigned)c->seen_O, (T *)y);
    });
}

/* -------------------------------------------------------------------------------------------------- parameters */

template <typename T> static __global__ void see_bias(const float *bias, int64_t O, int64_t count, T *seen)
{
    int64_t at = blockIdx.x * (int64_t)COPY_THREADS + threadIdx.x;
    if (at < count) put(seen + at, at < O ? bias[at] : 0.0f);
}

void conv_see_bias(struct backend *be, const struct conv *c, const float *bias, void *seen)
{
    by_conv_type(c, [&](auto zero) {
        using T = decltype(zero);
        see_bias<<<copy_blocks(c->seen_O), COPY_THREADS, 0, cuda_of(be)->stream>>>(bias, c->O, c->seen_O, (T *)seen);
    });
}

template <typename T> static __global__ void order_filters(const float *w, struct conv c, int count, T *seen)
{
    int at = (int)blockIdx.x * COPY_THREADS + (int)threadIdx.x, area = (int)(c.kernel * c.kernel); /* 32 bits, as above */
    int I = (int)c.I, seen_I = (int)c.seen_I;
    if (at >= count) return;
    int i = at % seen_I, line = at / seen_I, tap = line % area, o = line / area;
    put(seen + at, o < (int)c.O && i < I ? w[(o * I + i) * area + tap] : 0.0f);
}

void conv_order_filters(struct backend *be, const struct conv *c, const float *w, void *seen)
{
    int count = (int)conv_filter_count(c);
    by_conv_type(c, [&](auto zero) {
        using T = decltype(zero);
        order_filters<<<copy_blocks(count), COPY_THREADS, 0, cuda_of(be)->stream>>>(w, *c, count, (T *)seen);
    });
}

template <typename T> static __global__ void add_filters(const T *seen, struct conv c, float *dw)
{
    int at = (int)blockIdx.x * COPY_THREADS + (int)threadIdx.x, area = (int)(c.kernel * c.kernel), I = (int)c.I;
    if (at >= (int)c.O * I * area) return;
    int tap = at % area, line = at / area, i = line % I, o = line / I;
    dw[at] += value(seen[(o * area + tap) * (int)c.seen_I + i]);
}

void conv_add_filters(struct backend *be, const struct conv *c, const void *seen, float *dw)
{
    by_conv_type(c, [&](auto zero) {
        using T = decltype(zero);
        unsigned blocks = copy_blocks(c->O * c->I * c->kernel * c->kernel);
        add_filters<<<blocks, COPY_THREADS, 0, cuda_of(be)->stream>>>((const T *)seen, *c, dw);
    });
}
