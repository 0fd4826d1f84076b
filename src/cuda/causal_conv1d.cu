/*
 * Causal depthwise convolution of width 4 with silu over whole sequences, forward and backward (spec C2). A thread walks
 * along the positions of a few channels with the last inputs in registers.
 */
#include "cuda/ahead.cuh"

enum {
    THREADS = 64,
    FORWARD_ROWS = 32,
    BACKWARD_ROWS = 64, /* positions a thread walks along */
    STEP = 4,           /* positions at a time; divides both */
    QUEUE = 3           /* steps under way */
};

/* E from the widths of the input projection, W = E + C + E/HEADDIM, and of the convolution, C. */
static int64_t inner_width(int64_t W, int64_t C)
{
    return (W - C) / (HEADDIM + 1) * HEADDIM;
}

/* The taps of V channels from c on, tap-major. */
template <int V> static __device__ inline void load_taps(const float *w, int64_t c, pack<V> (&tap)[CONV_WIDTH])
{
    constexpr int EACH = V == 1 ? 1 : CONV_WIDTH; /* a single channel's taps may lie anywhere */
#pragma unroll
    for (int i = 0; i < V; i++)
#pragma unroll
        for (int k = 0; k < CONV_WIDTH; k += EACH) {
            pack<EACH> taps = load<EACH>(w + (c + i) * CONV_WIDTH + k);
#pragma unroll
            for (int j = 0; j < EACH; j++) tap[k + j].v[i] = taps.v[j];
        }
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

/* Starts copying the V channels at x of the next STEP positions, of which `left` exist: the rest become zeros. */
template <int V, typename T>
static __device__ inline void step_start(memory_pack<T, V> (*to)[THREADS], const T *x, int64_t ld, int left)
{
    if (left >= STEP) {
#pragma unroll
        for (int i = 0; i < STEP; i++) ahead_start<V>(to[i][threadIdx.x], x + i * ld, true);
    } else {
#pragma unroll
        for (int i = 0; i < STEP; i++) to[i][threadIdx.x] = load_raw<V>(x + i * ld, i < left);
    }
}

/* x: position 0 of the picture's first channel */
template <int V, typename T>
static __global__ void convolve(const T *__restrict__ zxbcdt, int64_t length, int64_t E, int64_t W, const float *__restrict__ w,
                                const float *__restrict__ bias, int64_t C, T *__restrict__ y)
{
    __shared__ memory_pack<T, V> queue[QUEUE][STEP][THREADS];
    int64_t c = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * V, b = blockIdx.z, first = (int64_t)blockIdx.y * FORWARD_ROWS;
    int64_t end = first + FORWARD_ROWS < length ? first + FORWARD_ROWS : length;
    if (c >= C) return;
    const T *x = zxbcdt + b * length * W + E + c;
    const T *next = x + first * W; /* to be asked for */
    T *out = y + (b * length + first) * C + c;
    pack<V> tap[CONV_WIDTH], in[CONV_WIDTH], offset;
#pragma unroll
    for (int k = 0; k < QUEUE - 1; k++) {
        step_start<V>(queue[k], next, W, (int)(end - first) - k * STEP);
        next += STEP * W;
        copy_commit();
    }
    offset = load<V>(bias + c);
    load_taps<V>(w, c, tap);
    load_past<V>(x, W, first, in);
    int slot = 0;
    for (int left = (int)(end - first); left > 0; left -= STEP) {
        step_start<V>(queue[slot == 0 ? QUEUE - 1 : slot - 1], next, W, left - (QUEUE - 1) * STEP);
        next += STEP * W;
        copy_commit();
        copy_wait<QUEUE - 1>();
#pragma unroll
        for (int step = 0; step < STEP; step++) {
            in[3] = load<V>(queue[slot][step][threadIdx.x].v);
            pack<V> a = offset;
#pragma unroll
            for (int i = 0; i < V; i++) {
#pragma unroll
                for (int k = 0; k < CONV_WIDTH; k++) a.v[i] += tap[k].v[i] * in[k].v[i];
                a.v[i] = silu(a.v[i]);
            }
            if (step < left) store<V>(out, a);
            out += C;
            in[0] = in[1], in[1] = in[2], in[2] = in[3];
        }
        slot = slot + 1 < QUEUE ? slot + 1 : 0;
    }
}

aim_status cuda_causal_conv1d_silu(struct backend *be, const struct tensor *zxbcdt, const struct tensor *w,
                                   const struct tensor *bias, struct tensor *y)
{
    int64_t B = y->shape[0], length = y->shape[1], C = y->shape[2], W = tensor_cols(zxbcdt), E = inner_width(W, C);
    by_type(y, [&](auto zero) {
        using T = decltype(zero);
        by_width<8>(W % 8 == 0 && C % 8 == 0 && aligned(zxbcdt) && aligned(w) && aligned(bias) && aligned(y),
                    [&](auto width_of) {
                        constexpr int V = decltype(width_of)::value;
                        dim3 grid((unsigned)divide_up(C / V, THREADS), (unsigned)divide_up(length, FORWARD_ROWS), (unsigned)B);
                        convolve<V, T><<<grid, THREADS, 0, cuda_of(be)->stream>>>(data_of<T>(zxbcdt), length, E, W, f32(w),
                                                                                  f32(bias), C, data_of<T>(y));
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
static __global__ void __launch_bounds__(THREADS, 9)
    convolve_backward(const T *__restrict__ zxbcdt, int64_t length, int64_t E, int64_t W, const float *__restrict__ w,
                      const float *__restrict__ bias, int64_t C, const T *__restrict__ dy, T *__restrict__ dzxbcdt, bool fresh,
                      float *__restrict__ partial)
{
    __shared__ memory_pack<T, V> queue[QUEUE][2][STEP][THREADS]; /* of x, of dy */
    int64_t c = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * V, b = blockIdx.z, first = (int64_t)blockIdx.y * BACKWARD_ROWS;
    int64_t end = first + BACKWARD_ROWS < length ? first + BACKWARD_ROWS : length;
    if (c >= C) return;
    const int beyond = CONV_WIDTH - 1, own = (int)(end - first),
              existing = (int)((end + beyond < length ? end + beyond : length) - first);
    const T *x = zxbcdt + b * length * W + E + c, *next = x + first * W, *up = dy + (b * length + first) * C + c;
    T *dx = dzxbcdt ? dzxbcdt + (b * length + first - beyond) * W + E + c : NULL; /* of the position that is complete next */
    pack<V> tap[CONV_WIDTH], in[CONV_WIDTH], sums[CONV_WIDTH], pending[CONV_WIDTH - 1];
    pack<V> offset, total = zeros<V>();
#pragma unroll
    for (int k = 0; k < QUEUE - 1; k++) {
        step_start<V>(queue[k][0], next, W, existing - k * STEP);
        step_start<V>(queue[k][1], up, C, existing - k * STEP);
        next += STEP * W, up += STEP * C;
        copy_commit();
    }
    offset = load<V>(bias + c);
    load_taps<V>(w, c, tap);
    load_past<V>(x, W, first, in);
#pragma unroll
    for (int k = 0; k < CONV_WIDTH; k++) sums[k] = zeros<V>();
#pragma unroll
    for (int k = 0; k < CONV_WIDTH - 1; k++) pending[k] = zeros<V>();
    int slot = 0;
    for (int t = 0; t < own + beyond; t += STEP) {
        int free = slot == 0 ? QUEUE - 1 : slot - 1, left = existing - t - (QUEUE - 1) * STEP;
        step_start<V>(queue[free][0], next, W, left);
        step_start<V>(queue[free][1], up, C, left);
        next += STEP * W, up += STEP * C;
        copy_commit();
        copy_wait<QUEUE - 1>();
#pragma unroll
        for (int step = 0; step < STEP; step++, dx += W) {
            bool stores = dzxbcdt && t + step >= beyond && t + step < own + beyond;
            pack<V> da = load<V>(queue[slot][1][step][threadIdx.x].v);
            pack<V> done;
            in[3] = load<V>(queue[slot][0][step][threadIdx.x].v);
#pragma unroll
            for (int i = 0; i < V; i++) {
                float a = offset.v[i];
#pragma unroll
                for (int k = 0; k < CONV_WIDTH; k++) a += tap[k].v[i] * in[k].v[i];
                da.v[i] *= silu_slope(a);
                done.v[i] = pending[0].v[i] + tap[0].v[i] * da.v[i];
                pending[0].v[i] = pending[1].v[i] + tap[1].v[i] * da.v[i];
                pending[1].v[i] = pending[2].v[i] + tap[2].v[i] * da.v[i];
                pending[2].v[i] = tap[3].v[i] * da.v[i];
            }
            if (t + step < own) {
#pragma unroll
                for (int i = 0; i < V; i++) {
                    total.v[i] += da.v[i];
#pragma unroll
                    for (int k = 0; k < CONV_WIDTH; k++) sums[k].v[i] += da.v[i] * in[k].v[i];
                }
            }
            if (stores && fresh)
                store<V>(dx, done);
            else if (stores)
                store_add<V>(dx, done);
            in[0] = in[1], in[1] = in[2], in[2] = in[3];
        }
        slot = slot + 1 < QUEUE ? slot + 1 : 0;
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
    int64_t chunks = divide_up(length, BACKWARD_ROWS), ld = (CONV_WIDTH + 1) * C;
    float *partial = (float *)cuda_scratch(be, (size_t)(B * chunks * ld) * sizeof(float));
    if (!partial) return AIM_ERR_MEMORY;
    bool fresh = take_fresh(be, dzxbcdt, E, E + C);
    bool wide = W % 4 == 0 && C % 4 == 0 && aligned(zxbcdt) && aligned(w) && aligned(bias) && aligned(dy) && aligned(dzxbcdt);
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
    struct sum_target sums[] = {{data_of<float>(dw), 0, CONV_WIDTH * C}, {data_of<float>(dbias), 0, C}};
    return dw || dbias ? cuda_sum_rows_to(be, partial, 1, B * chunks, ld, sums, 2) : AIM_OK;
}
