/*
 * Convolution and its gradients as matrix products whose operands are read where they lie: an operand is a small object that
 * knows the value at a place (row, k). A block computes a tile of TILE x TILE results, a thread 4 x 4 of them.
 */
#include "cuda/convolution.cuh"

enum { TILE = 64, DEPTH = 16, PLAIN_THREADS = 256, SIDE = TILE / 4 };

/* out(m, n, part, Σ_k a(m, k) b(n, k)) for m < M, n < N; blockIdx is (tile of m, tile of n, part of K). */
template <typename A, typename B, typename Out>
static __global__ void __launch_bounds__(PLAIN_THREADS) tiles(A a, B b, Out out, int64_t M, int64_t N, int64_t K, int64_t each)
{
    __shared__ float at[DEPTH][TILE + 1], bt[DEPTH][TILE + 1];
    int64_t m0 = blockIdx.x * (int64_t)TILE, n0 = blockIdx.y * (int64_t)TILE;
    int64_t from = blockIdx.z * each, end = from + each < K ? from + each : K;
    int row = threadIdx.x / SIDE, column = threadIdx.x % SIDE;
    float sums[4][4] = {};
    for (int64_t k0 = from; k0 < end; k0 += DEPTH) {
        for (int i = threadIdx.x; i < TILE * DEPTH; i += PLAIN_THREADS) {
            int line = i / DEPTH, k = i % DEPTH;
            bool inside = k0 + k < end;
            at[k][line] = inside && m0 + line < M ? a(m0 + line, k0 + k) : 0.0f;
            bt[k][line] = inside && n0 + line < N ? b(n0 + line, k0 + k) : 0.0f;
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < DEPTH; k++)
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) sums[i][j] = fmaf(at[k][row + i * SIDE], bt[k][column + j * SIDE], sums[i][j]);
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            int64_t m = m0 + row + i * SIDE, n = n0 + column + j * SIDE;
            if (m < M && n < N) out(m, n, blockIdx.z, sums[i][j]);
        }
}

template <typename A, typename B, typename Out>
static void launch(struct backend *be, A a, B b, Out out, int64_t M, int64_t N, int64_t K, int64_t parts)
{
    dim3 grid((unsigned)divide_up(M, TILE), (unsigned)divide_up(N, TILE), (unsigned)parts);
    tiles<A, B, Out><<<grid, PLAIN_THREADS, 0, cuda_of(be)->stream>>>(a, b, out, M, N, K, divide_up(K, parts));
}

/* The geometry: x (N,H,W,I) and y (N,OH,OW,O); grow is 2 where x is enlarged first. */
struct geometry {
    int H, W, I, OH, OW, O, kernel, stride, pad, grow;
};

static struct geometry geometry_of(const struct tensor *x, const struct tensor *y, int64_t kernel, const struct conv2d *how)
{
    struct geometry g;
    g.H = (int)x->shape[1], g.W = (int)x->shape[2], g.I = (int)x->shape[3];
    g.OH = (int)y->shape[1], g.OW = (int)y->shape[2], g.O = (int)y->shape[3];
    g.kernel = (int)kernel, g.stride = how->stride, g.pad = how->pad_before, g.grow = how->upsample ? 2 : 1;
    return g;
}

/* What output pixel `pixel` meets at `column` of its patch, columns in (ky, kx, channel) order. */
template <typename T>
static __device__ inline float patch_value(const T *x, const struct geometry &g, int64_t pixel, int column)
{
    int tap = column / g.I, channel = column % g.I;
    int ox = (int)(pixel % g.OW), oy = (int)(pixel / g.OW % g.OH);
    int64_t n = pixel / g.OW / g.OH;
    int iy = oy * g.stride + tap / g.kernel - g.pad, ix = ox * g.stride + tap % g.kernel - g.pad;
    if (iy < 0 || ix < 0 || iy >= g.H * g.grow || ix >= g.W * g.grow) return 0;
    return value(x[((n * g.H + iy / g.grow) * g.W + ix / g.grow) * g.I + channel]);
}

/* What is left of x in the type. */
template <typename T> static __device__ inline float rounded(float x)
{
    T held;
    put(&held, x);
    return value(held);
}

template <typename T> struct patches {
    const T *x;
    struct geometry g;
    __device__ float operator()(int64_t pixel, int64_t column) const
    {
        return patch_value(x, g, pixel, (int)column);
    }
};

/* Patches turned: rows are columns of patches. */
template <typename T> struct patch_columns {
    const T *x;
    struct geometry g;
    __device__ float operator()(int64_t column, int64_t pixel) const
    {
        return patch_value(x, g, pixel, (int)column);
    }
};

/* Filters (O,I,k,k) in the order of patches, rounded as the activations are. */
template <typename T> struct filters {
    const float *w;
    struct geometry g;
    __device__ float operator()(int64_t o, int64_t column) const
    {
        int area = g.kernel * g.kernel;
        return rounded<T>(w[(o * g.I + column % g.I) * area + column / g.I]);
    }
};

/* What reaches input pixel `pixel` at `column`: columns are (place in the enlarged pixel, ky, kx, output channel). */
template <typename T> struct reached {
    const T *dy;
    struct geometry g;
    __device__ float operator()(int64_t pixel, int64_t column) const
    {
        int o = (int)(column % g.O), tap = (int)(column / g.O) % (g.kernel * g.kernel);
        int place = (int)(column / g.O) / (g.kernel * g.kernel);
        int ix = (int)(pixel % g.W), iy = (int)(pixel / g.W % g.H);
        int64_t n = pixel / g.W / g.H;
        int y = iy * g.grow + place / g.grow + g.pad - tap / g.kernel,
            x = ix * g.grow + place % g.grow + g.pad - tap % g.kernel;
        if (y < 0 || x < 0 || y % g.stride || x % g.stride || y / g.stride >= g.OH || x / g.stride >= g.OW) return 0;
        return value(dy[((n * g.OH + y / g.stride) * g.OW + x / g.stride) * g.O + o]);
    }
};

/* Filters by input channel, in the order of `reached`. */
template <typename T> struct filters_in {
    const float *w;
    struct geometry g;
    __device__ float operator()(int64_t i, int64_t column) const
    {
        int area = g.kernel * g.kernel, o = (int)(column % g.O), tap = (int)(column / g.O) % area;
        return rounded<T>(w[((int64_t)o * g.I + i) * area + tap]);
    }
};

/* dy turned: rows are output channels. */
template <typename T> struct outputs {
    const T *dy;
    int64_t O;
    __device__ float operator()(int64_t o, int64_t pixel) const
    {
        return value(dy[pixel * O + o]);
    }
};

template <typename T> struct write_biased {
    T *y;
    const float *bias;
    int64_t O;
    __device__ void operator()(int64_t m, int64_t n, int, float sum) const
    {
        put(&y[m * O + n], bias ? sum + bias[n] : sum);
    }
};

template <typename T> struct add_to {
    T *d;
    int64_t cols;
    bool fresh;
    __device__ void operator()(int64_t m, int64_t n, int, float sum) const
    {
        put(&d[m * cols + n], fresh ? sum : value(d[m * cols + n]) + sum);
    }
};

struct write_part {
    float *partial; /* (part, O, columns) */
    int64_t O, columns;
    __device__ void operator()(int64_t o, int64_t column, int part, float sum) const
    {
        partial[(part * O + o) * columns + column] = sum;
    }
};

aim_status plain_conv2d(struct backend *be, const struct tensor *x, const struct tensor *w, const struct tensor *bias,
                        const struct conv2d *how, struct tensor *y)
{
    struct geometry g = geometry_of(x, y, w->shape[2], how);
    by_type(x, [&](auto zero) {
        using T = decltype(zero);
        launch(be, patches<T>{data_of<T>(x), g}, filters<T>{f32(w), g},
               write_biased<T>{data_of<T>(y), bias ? f32(bias) : NULL, g.O}, tensor_rows(y), g.O,
               (int64_t)g.kernel * g.kernel * g.I, 1);
    });
    return cuda_launched(be, "conv2d");
}

aim_status plain_conv2d_inputs(struct backend *be, const struct tensor *w, const struct conv2d *how, const struct tensor *dy,
                               bool fresh, struct tensor *dx)
{
    struct geometry g = geometry_of(dx, dy, w->shape[2], how);
    by_type(dy, [&](auto zero) {
        using T = decltype(zero);
        launch(be, reached<T>{data_of<T>(dy), g}, filters_in<T>{f32(w), g}, add_to<T>{data_of<T>(dx), g.I, fresh},
               tensor_rows(dx), g.I, (int64_t)g.grow * g.grow * g.kernel * g.kernel * g.O, 1);
    });
    return cuda_launched(be, "conv2d_backward");
}

/* dw (O,I,k,k) += the parts' sums, which are in the order of patches */
static __global__ void add_parts(const float *partial, int64_t parts, int64_t O, int64_t I, int64_t area, float *dw)
{
    int64_t at = blockIdx.x * (int64_t)blockDim.x + threadIdx.x, columns = area * I;
    if (at >= O * columns) return;
    int64_t o = at / columns, i = at / area % I, tap = at % area;
    float sum = 0;
    for (int64_t part = 0; part < parts; part++) sum += partial[(part * O + o) * columns + tap * I + i];
    dw[at] += sum;
}

/* The pixels are cut into parts, a number that follows from the shapes alone. */
aim_status plain_conv2d_weights(struct backend *be, const struct tensor *x, const struct conv2d *how, const struct tensor *dy,
                                struct tensor *dw)
{
    enum { PART_PIXELS = 2048, MOST_PARTS = 32 };
    struct geometry g = geometry_of(x, dy, dw->shape[2], how);
    int64_t M = tensor_rows(dy), parts = min64(divide_up(M, PART_PIXELS), MOST_PARTS);
    int64_t columns = (int64_t)g.kernel * g.kernel * g.I;
    float *partial = (float *)(cuda_scratch(be, (size_t)(parts * g.O * columns) * sizeof(float)));
    if (!partial) return AIM_ERR_MEMORY;
    by_type(dy, [&](auto zero) {
        using T = decltype(zero);
        launch(be, outputs<T>{data_of<T>(dy), g.O}, patch_columns<T>{data_of<T>(x), g}, write_part{partial, g.O, columns}, g.O,
               columns, M, parts);
    });
    add_parts<<<(unsigned)divide_up(g.O * columns, 256), 256, 0, cuda_of(be)->stream>>>(partial, parts, g.O, g.I,
                                                                                        (int64_t)g.kernel * g.kernel, f32(dw));
    return cuda_launched(be, "conv2d_backward");
}
