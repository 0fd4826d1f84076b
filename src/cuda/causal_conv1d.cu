/*
 * Causal depthwise convolution of width 4 with silu over whole sequences, forward and backward (spec C2). A thread walks
 * along the positions of a few channels with the last inputs in registers.
 */
#include "cuda/values.cuh"

enum { THREADS = 64, ROWS = 32 /* positions a thread walks along */ };

/* How many of them are loaded at once; divides ROWS. */
template <typename T> static constexpr int ahead()
{
    return sizeof(T) == 2 ? 4 : 2;
}

/* E from the widths of the input projection, W = E + C + E/HEADDIM, and of the convolution, C. */
static int64_t inner_width(int64_t W, int64_t C)
{
    return (W - C) / (HEADDIM + 1) * HEADDIM;
}

/* The taps of V channels from c on, tap-major. */
template <int V> static __device__ inline void load_taps(const float *w, int64_t c, pack<V> (&tap)[CONV_WIDTH])
{
#pragma unroll
    for (int i = 0; i < V; i++)
#pragma unroll
        for (int k = 0; k < CONV_WIDTH; k++) tap[k].v[i] = w[(c + i) * CONV_WIDTH + k];
}

/* The inputs before position t, oldest first: zeros before the start. */
template <int V, typename T>
static __device__ inline void load_past(const T *x, int64_t W, int64_t t, pack<V> (&past)[CONV_WIDTH])
{
#pragma unroll
    for (int k = 0; k < CONV_WIDTH - 1; k++) {
        int64_t at = t - (CONV_WIDTH - 1) + k;
        past[k] = at >= 0 ? load<V>(x + at * W) : zeros<V>();
    }
}

/* x: position 0 of the picture's first channel */
template <int V, typename T>
static __global__ void convolve(const T *__restrict__ zxbcdt, int64_t length, int64_t E, int64_t W, const float *__restrict__ w,
                                const float *__restrict__ bias, int64_t C, T *__restrict__ y)
{
    int64_t c = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * V, b = blockIdx.z, first = (int64_t)blockIdx.y * ROWS;
    int64_t end = first + ROWS < length ? first + ROWS : length;
    if (c >= C) return;
    const T *x = zxbcdt + b * length * W + E + c;
    T *out = y + b * length * C + c;
    pack<V> tap[CONV_WIDTH], in[CONV_WIDTH], offset = load<V>(bias + c);
    load_taps<V>(w, c, tap);
    load_past<V>(x, W, first, in);
    for (int64_t t = first; t < end; t += ahead<T>()) {
        memory_pack<T, V> next[ahead<T>()];
#pragma unroll
        for (int step = 0; step < ahead<T>(); step++) next[step] = load_raw<V>(x + (t + step) * W, t + step < end);
#pragma unroll
        for (int step = 0; step < ahead<T>(); step++) {
            in[3] = values_of(next[step]);
            pack<V> a = offset;
#pragma unroll
            for (int i = 0; i < V; i++) {
#pragma unroll
                for (int k = 0; k < CONV_WIDTH; k++) a.v[i] += tap[k].v[i] * in[k].v[i];
                a.v[i] = silu(a.v[i]);
            }
            if (t + step < end) store<V>(out + (t + step) * C, a);
            in[0] = in[1], in[1] = in[2], in[2] = in[3];
        }
    }
}

aim_status cuda_causal_conv1d_silu(struct backend *be, const struct tensor *zxbcdt, const struct tensor *w,
                                   const struct tensor *bias, struct tensor *y)
{
    int64_t B = y->shape[0], length = y->shape[1], C = y->shape[2], W = tensor_cols(zxbcdt), E = inner_width(W, C);
    by_type(y, [&](auto zero) {
        using T = decltype(zero);
        by_width<8>(W % 8 == 0 && C % 8 == 0 && aligned(zxbcdt) && aligned(bias) && aligned(y), [&](auto width_of) {
            constexpr int V = decltype(width_of)::value;
            dim3 grid((unsigned)divide_up(C / V, THREADS), (unsigned)divide_up(length, ROWS), (unsigned)B);
            convolve<V, T><<<grid, THREADS, 0, cuda_of(be)->stream>>>(data_of<T>(zxbcdt), length, E, W, f32(w), f32(bias), C,
                                                                      data_of<T>(y));
        });
    });
    return cuda_launched(be, "causal_conv1d_silu");
}

/*
 * With da = dy silu'(a): dx[t-3+k] += w[k] da[t], so walking along t, the gradient at t-3 is complete with da[t]. Past the
 * chunk's own positions the walk goes on for three more, for the gradients only. partial: (chunks of all pictures, 5C):
 * sums for w (C,4), then for bias (C).
 */
template <int V, typename T>
static __global__ void __launch_bounds__(THREADS, 8)
    convolve_backward(const T *__restrict__ zxbcdt, int64_t length, int64_t E, int64_t W, const float *__restrict__ w,
                      const float *__restrict__ bias, int64_t C, const T *__restrict__ dy, T *__restrict__ dzxbcdt, bool fresh,
                      float *__restrict__ partial)
{
    int64_t c = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * V, b = blockIdx.z, first = (int64_t)blockIdx.y * ROWS;
    int64_t end = first + ROWS < length ? first + ROWS : length;
    if (c >= C) return;
    const T *x = zxbcdt + b * length * W + E + c, *up = dy + b * length * C + c;
    T *dx = dzxbcdt ? dzxbcdt + b * length * W + E + c : NULL;
    pack<V> tap[CONV_WIDTH], in[CONV_WIDTH], sums[CONV_WIDTH], pending[CONV_WIDTH - 1];
    pack<V> offset = load<V>(bias + c), total = zeros<V>();
    load_taps<V>(w, c, tap);
    load_past<V>(x, W, first, in);
#pragma unroll
    for (int k = 0; k < CONV_WIDTH; k++) sums[k] = zeros<V>();
#pragma unroll
    for (int k = 0; k < CONV_WIDTH - 1; k++) pending[k] = zeros<V>();
    for (int64_t t = first; t < end + CONV_WIDTH - 1; t += ahead<T>()) {
        memory_pack<T, V> next[ahead<T>()], next_up[ahead<T>()], before[ahead<T>()];
#pragma unroll
        for (int step = 0; step < ahead<T>(); step++) {
            int64_t at = t + step, to = at - (CONV_WIDTH - 1);
            next[step] = load_raw<V>(x + at * W, at < length);
            next_up[step] = load_raw<V>(up + at * C, at < length);
            before[step] = load_raw<V>(dx + to * W, dx && !fresh && to >= first && to < end);
        }
#pragma unroll
        for (int step = 0; step < ahead<T>(); step++) {
            int64_t at = t + step, to = at - (CONV_WIDTH - 1);
            pack<V> da = values_of(next_up[step]), done = values_of(before[step]);
            in[3] = values_of(next[step]);
#pragma unroll
            for (int i = 0; i < V; i++) {
                float a = offset.v[i];
#pragma unroll
                for (int k = 0; k < CONV_WIDTH; k++) a += tap[k].v[i] * in[k].v[i];
                da.v[i] *= silu_slope(a);
                done.v[i] += pending[0].v[i] + tap[0].v[i] * da.v[i];
                pending[0].v[i] = pending[1].v[i] + tap[1].v[i] * da.v[i];
                pending[1].v[i] = pending[2].v[i] + tap[2].v[i] * da.v[i];
                pending[2].v[i] = tap[3].v[i] * da.v[i];
            }
            if (at < end) {
#pragma unroll
                for (int i = 0; i < V; i++) {
                    total.v[i] += da.v[i];
#pragma unroll
                    for (int k = 0; k < CONV_WIDTH; k++) sums[k].v[i] += da.v[i] * in[k].v[i];
                }
            }
            if (dx && to >= first && to < end) store<V>(dx + to * W, done);
            in[0] = in[1], in[1] = in[2], in[2] = in[3];
        }
    }
    float *out = partial + (b * gridDim.y + blockIdx.y) * (CONV_WIDTH + 1) * C;
#pragma unroll
    for (int i = 0; i < V; i++) {
        constexpr int EACH = V == 1 ? 1 : CONV_WIDTH; /* a single channel's sums may lie anywhere */
#pragma unroll
        for (int k = 0; k < CONV_WIDTH; k += EACH) {
            pack<EACH> taps;
#pragma unroll
            for (int j = 0; j < EACH; j++) taps.v[j] = sums[k + j].v[i];
            store<EACH>(out + (c + i) * CONV_WIDTH + k, taps);
        }
    }
    store<V>(out + CONV_WIDTH * C + c, total);
}

aim_status cuda_causal_conv1d_silu_backward(struct backend *be, const struct tensor *zxbcdt, const struct tensor *w,
                                            const struct tensor *bias, const struct tensor *dy, struct tensor *dzxbcdt,
                                            struct tensor *dw, struct tensor *dbias)
{
    int64_t B = dy->shape[0], length = dy->shape[1], C = dy->shape[2], W = tensor_cols(zxbcdt), E = inner_width(W, C);
    int64_t chunks = divide_up(length, ROWS), ld = (CONV_WIDTH + 1) * C;
    float *partial = (float *)cuda_scratch(be, (size_t)(B * chunks * ld) * sizeof(float));
    if (!partial) return AIM_ERR_MEMORY;
    bool fresh = take_fresh(be, dzxbcdt, E, E + C);
    bool wide = W % 4 == 0 && C % 4 == 0 && aligned(zxbcdt) && aligned(bias) && aligned(dy) && aligned(dzxbcdt);
    by_type(dy, [&](auto zero) {
        using T = decltype(zero);
        by_width<4>(wide, [&](auto width_of) {
            constexpr int V = decltype(width_of)::value;
            dim3 grid((unsigned)divide_up(C / V, THREADS), (unsigned)chunks, (unsigned)B);
            convolve_backward<V, T><<<grid, THREADS, 0, cuda_of(be)->stream>>>(
                data_of<T>(zxbcdt), length, E, W, f32(w), f32(bias), C, data_of<T>(dy), data_of<T>(dzxbcdt), fresh, partial);
        });
    });
    TRY(cuda_launched(be, "causal_conv1d_silu_backward"));
    if (dw) TRY(cuda_sum_rows(be, partial, 1, B * chunks, CONV_WIDTH * C, ld, f32(dw), 0));
    return dbias ? cuda_sum_rows(be, partial + CONV_WIDTH * C, 1, B * chunks, C, ld, f32(dbias), 0) : AIM_OK;
}
