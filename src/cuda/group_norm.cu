/*
 * GroupNorm with SiLU, and its gradient: bound by memory, so x is read twice and y written once, 16 bytes a thread.
 *
 * A picture's pixels are cut into chunks, a number that follows from the picture's size alone. First every chunk's sums of
 * each channel, then (a small kernel) statistics of each group from them, in double, then the map itself.
 */
#include "cuda/columns.cuh"

enum {
    MOST_CHUNKS = 256, /* of a picture */
    FEW_CHUNKS = 64,   /* the same: no fewer, if that makes chunks shorter than CHUNK_VALUES */
    CHUNK_VALUES = 1 << 15,
    LEAST_PIXELS = 16, /* of a chunk */
    GROUP_THREADS = 128,
    AHEAD = 4 /* rows that a thread loads before it works on them */
};

/* What a picture's channels need, rows of C values: the result before silu is x scale + shift; the others are of the
 * channel's group. */
enum { GN_SCALE, GN_SHIFT, GN_MEAN, GN_RSTD, GN_ROWS };

struct group_norm {
    int64_t pictures, pixels, C, each, chunks; /* each: pixels of a chunk */
    int groups;
    float eps;
    float *partial; /* (picture, chunk, 2, C) */
    float *rows;    /* (picture, GN_ROWS, C) */
    double *sums;   /* (picture, 2, C); the backward's */
    float *means;   /* (picture, 2, C); the backward's */
};

/* The rows from statistics (picture, group, 2) that are known; blockIdx.y is the picture. */
static __global__ void known_rows(const float *statistics, const float *w, const float *b, struct group_norm g)
{
    int64_t c = blockIdx.x * (int64_t)GROUP_THREADS + threadIdx.x;
    if (c >= g.C) return;
    const float *known = statistics + (blockIdx.y * g.groups + c / (g.C / g.groups)) * 2;
    float *rows = g.rows + blockIdx.y * GN_ROWS * g.C;
    double mean = (double)known[0], scale = (double)known[1] * (double)w[c];
    rows[GN_SCALE * g.C + c] = (float)scale;
    rows[GN_SHIFT * g.C + c] = (float)((double)b[c] - mean * scale);
    rows[GN_MEAN * g.C + c] = known[0];
    rows[GN_RSTD * g.C + c] = known[1];
}

static aim_status start(struct backend *be, const struct tensor *x, int groups, float eps, bool backward, struct group_norm *g)
{
    *g = group_norm();
    g->pictures = x->shape[0];
    g->pixels = x->shape[1] * x->shape[2];
    g->C = x->shape[3];
    g->groups = groups;
    g->eps = eps;
    int64_t wanted = min64(divide_up(CHUNK_VALUES, g->C), divide_up(g->pixels, FEW_CHUNKS));
    g->each = max64(max64(divide_up(g->pixels, MOST_CHUNKS), wanted), LEAST_PIXELS);
    g->chunks = divide_up(g->pixels, g->each);
    size_t values = (size_t)(g->pictures * g->C);
    struct pieces p = {};
    size_t partial = piece(&p, values * (size_t)g->chunks * 2 * sizeof(float));
    size_t rows = piece(&p, values * GN_ROWS * sizeof(float));
    size_t sums = backward ? piece(&p, values * 2 * sizeof(double)) : 0;
    size_t means = backward ? piece(&p, values * 2 * sizeof(float)) : 0;
    char *block = (char *)(cuda_scratch(be, p.total));
    if (!block) return AIM_ERR_MEMORY;
    g->partial = (float *)(block + partial);
    g->rows = (float *)(block + rows);
    g->sums = (double *)(block + sums);
    g->means = (float *)(block + means);
    return AIM_OK;
}

/* ------------------------------------------------------------------------------------------------ forward */

/* Which pixels a block has: blockIdx is (chunk, picture, part of the channels). */
struct span {
    int64_t from, end, picture; /* pixels of the picture; its first value */
    float *partial;
};

__device__ static inline struct span span_of(const struct group_norm &g)
{
    struct span s;
    s.from = blockIdx.x * g.each;
    s.end = s.from + g.each < g.pixels ? s.from + g.each : g.pixels;
    s.picture = blockIdx.y * g.pixels * g.C;
    s.partial = g.partial + (blockIdx.y * g.chunks + blockIdx.x) * 2 * g.C;
    return s;
}

/* Per channel Σ(x-p) and Σ(x-p)², p being the picture's first pixel: squares of deviations stay exact when the mean is many
 * of them. */
template <int V, typename T>
static __global__ void __launch_bounds__(COLUMN_THREADS, 4) deviations(const T *x, struct group_norm g, struct columns s)
{
    __shared__ alignas(16) float room[COLUMN_THREADS * V];
    struct stand at = stand_of<V>(s, blockIdx.z);
    struct span in = span_of(g);
    pack<V> sum = zeros<V>(), squares = zeros<V>();
    if (at.live) {
        const T *picture = x + in.picture + at.channel;
        pack<V> first = load<V>(picture);
#pragma unroll 4
        for (int64_t p = in.from + at.row; p < in.end; p += s.deep) {
            pack<V> values = load<V>(picture + p * g.C);
#pragma unroll
            for (int j = 0; j < V; j++) {
                float deviation = values.v[j] - first.v[j];
                sum.v[j] += deviation;
                squares.v[j] += deviation * deviation;
            }
        }
    }
    columns_sum<V>(s, blockIdx.z, sum, room, in.partial);
    columns_sum<V>(s, blockIdx.z, squares, room, in.partial + g.C);
}

/* From the chunks' sums to the rows; blockIdx is (group, picture). */
template <typename T>
static __global__ void __launch_bounds__(GROUP_THREADS)
    find_rows(const T *x, const float *w, const float *b, struct group_norm g, float *statistics)
{
    __shared__ double room[WARP];
    int64_t per_group = g.C / g.groups, c0 = blockIdx.x * per_group, n = g.chunks * per_group;
    const T *first = x + blockIdx.y * g.pixels * g.C;
    const float *partial = g.partial + blockIdx.y * g.chunks * 2 * g.C;
    double count = (double)(per_group * g.pixels), pixels = (double)g.pixels, sum = 0, squares = 0;
    for (int64_t i = threadIdx.x; i < n; i += GROUP_THREADS)
        sum += (double)partial[i / per_group * 2 * g.C + c0 + i % per_group];
    for (int64_t c = c0 + threadIdx.x; c < c0 + per_group; c += GROUP_THREADS) sum += pixels * (double)value(first[c]);
    double mean = block_sum_double(sum, room) / count;
    for (int64_t i = threadIdx.x; i < n; i += GROUP_THREADS) { /* (x-mean)² = (x-p)² + 2 (x-p) (p-mean) + (p-mean)² */
        int64_t at = i / per_group * 2 * g.C + c0 + i % per_group;
        double offset = (double)value(first[c0 + i % per_group]) - mean;
        squares += (double)partial[at + g.C] + 2 * offset * (double)partial[at];
    }
    for (int64_t c = c0 + threadIdx.x; c < c0 + per_group; c += GROUP_THREADS) {
        double offset = (double)value(first[c]) - mean;
        squares += pixels * offset * offset;
    }
    double variance = block_sum_double(squares, room) / count, rstd = 1.0 / sqrt((variance > 0 ? variance : 0) + (double)g.eps);
    float *rows = g.rows + blockIdx.y * GN_ROWS * g.C;
    if (statistics && threadIdx.x == 0) {
        float *found = statistics + (blockIdx.y * g.groups + blockIdx.x) * 2;
        found[0] = (float)mean;
        found[1] = (float)rstd;
    }
    for (int64_t c = c0 + threadIdx.x; c < c0 + per_group; c += GROUP_THREADS) {
        rows[GN_SCALE * g.C + c] = (float)(rstd * (double)w[c]);
        rows[GN_SHIFT * g.C + c] = (float)((double)b[c] - mean * rstd * (double)w[c]);
        rows[GN_MEAN * g.C + c] = (float)mean;
        rows[GN_RSTD * g.C + c] = (float)rstd;
    }
}

/* σ(x) = 1 / (1 + 2^(-x log2 e)) by two quick instructions, to 1e-6 */
static __device__ inline float quick_gate(float x)
{
    float power = -1.4426950f * x, inverse;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(power));
    power += 1.0f;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(power)); /* 0 for infinity */
    return inverse;
}

/* σ(x): for bfloat16 the quick one, whose error the rounding hides. */
template <typename T> static __device__ inline float gate(float x)
{
    return sizeof(T) == sizeof(bf16) ? quick_gate(x) : 1.0f / (1.0f + expf(-x));
}

template <int V, bool SILU, typename T>
static __global__ void __launch_bounds__(COLUMN_THREADS)
    apply(const T *__restrict__ x, struct group_norm g, struct columns s, T *__restrict__ y)
{
    struct stand at = stand_of<V>(s, blockIdx.z);
    struct span in = span_of(g);
    if (!at.live) return;
    const float *rows = g.rows + blockIdx.y * GN_ROWS * g.C + at.channel;
    pack<V> scale = load<V>(rows + GN_SCALE * g.C), shift = load<V>(rows + GN_SHIFT * g.C);
    const T *from = x + in.picture + at.channel;
    T *to = y + in.picture + at.channel;
    for (int64_t p0 = in.from + at.row; p0 < in.end; p0 += AHEAD * s.deep) {
        words<T, V> raw[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; i++) raw[i] = load_words<V>(from + (p0 + i * s.deep) * g.C, p0 + i * s.deep < in.end);
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            if (p0 + i * s.deep >= in.end) continue;
            pack<V> v = values_of_words<T, V>(raw[i]);
#pragma unroll
            for (int j = 0; j < V; j++) {
                float u = v.v[j] * scale.v[j] + shift.v[j];
                v.v[j] = SILU ? u * gate<T>(u) : u;
            }
            store_whole<V>(to + (p0 + i * s.deep) * g.C, v);
        }
    }
}

/* Calls f(zero of the type, width, grid, columns) for x's type and alignment. */
template <typename F> static void by_columns(const struct group_norm *g, const struct tensor *x, bool vectors, F f)
{
    by_type(x, [&](auto zero) {
        by_width<16 / sizeof(zero)>(vectors, [&](auto w) {
            struct columns s = columns_of(g->C, decltype(w)::value);
            f(zero, w, dim3((unsigned)g->chunks, (unsigned)g->pictures, (unsigned)s.parts), s);
        });
    });
}

/* Fills the rows, and statistics unless that is NULL. */
static void find_statistics(struct backend *be, const struct group_norm *g, const struct tensor *x, const struct tensor *w,
                            const struct tensor *b, bool vectors, struct tensor *statistics)
{
    cudaStream_t stream = cuda_of(be)->stream;
    dim3 groups((unsigned)g->groups, (unsigned)g->pictures);
    by_columns(g, x, vectors, [&](auto zero, auto across, dim3 grid, struct columns s) {
        using T = decltype(zero);
        constexpr int V = decltype(across)::value;
        deviations<V><<<grid, COLUMN_THREADS, 0, stream>>>(data_of<T>(x), *g, s);
        find_rows<<<groups, GROUP_THREADS, 0, stream>>>(data_of<T>(x), f32(w), f32(b), *g, data_of<float>(statistics));
    });
}

aim_status cuda_group_norm_silu(struct backend *be, const struct tensor *x, const struct tensor *w, const struct tensor *b,
                                int groups, float eps, bool silu, struct tensor *statistics, struct tensor *y)
{
    struct group_norm g;
    TRY(start(be, x, groups, eps, false, &g));
    bool vectors = rows_aligned(x->type, g.C, x->data, y->data);
    cudaStream_t stream = cuda_of(be)->stream;
    find_statistics(be, &g, x, w, b, vectors, statistics);
    by_columns(&g, x, vectors, [&](auto zero, auto across, dim3 grid, struct columns s) {
        using T = decltype(zero);
        constexpr int V = decltype(across)::value;
        if (silu)
            apply<V, true><<<grid, COLUMN_THREADS, 0, stream>>>(data_of<T>(x), g, s, data_of<T>(y));
        else
            apply<V, false><<<grid, COLUMN_THREADS, 0, stream>>>(data_of<T>(x), g, s, data_of<T>(y));
    });
    return cuda_launched(be, "group_norm_silu");
}

/* ------------------------------------------------------------------------------------------------ backward
 *
 * With x̂ = (x - mean) rstd over a group of a picture, u = x̂ w + b, y = silu(u) or u, and g = dy silu'(u) or dy:
 *
 *     db = Σ g,   dw = Σ g x̂,   dx = rstd (g w - m₁ - x̂ m₂),   m₁ and m₂ the group's means of g w and g w x̂
 */

/* g of one value */
template <typename T, bool SILU> static __device__ inline float gradient_in(float x, float dy, float scale, float shift)
{
    if (!SILU) return dy;
    float u = x * scale + shift, s = gate<T>(u);
    return dy * (s + u * s * (1.0f - s));
}

/* Per channel Σ g and Σ g (x - mean) of a chunk. */
template <int V, bool SILU, typename T>
static __global__ void __launch_bounds__(COLUMN_THREADS, 2)
    gradient_sums(const T *__restrict__ x, const T *__restrict__ dy, struct group_norm g, struct columns s)
{
    __shared__ alignas(16) float room[COLUMN_THREADS * V];
    struct stand at = stand_of<V>(s, blockIdx.z);
    struct span in = span_of(g);
    pack<V> sum = zeros<V>(), product = zeros<V>();
    if (at.live) {
        const float *rows = g.rows + blockIdx.y * GN_ROWS * g.C + at.channel;
        pack<V> scale = load<V>(rows + GN_SCALE * g.C), shift = load<V>(rows + GN_SHIFT * g.C);
        pack<V> mean = load<V>(rows + GN_MEAN * g.C);
        const T *from = x + in.picture + at.channel, *up = dy + in.picture + at.channel;
        for (int64_t p0 = in.from + at.row; p0 < in.end; p0 += AHEAD * s.deep) {
            words<T, V> v[AHEAD], d[AHEAD];
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                bool inside = p0 + i * s.deep < in.end;
                v[i] = load_words<V>(from + (p0 + i * s.deep) * g.C, inside);
                d[i] = load_words<V>(up + (p0 + i * s.deep) * g.C, inside); /* zeros add nothing */
            }
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                pack<V> in = values_of_words<T, V>(v[i]), out = values_of_words<T, V>(d[i]);
#pragma unroll
                for (int j = 0; j < V; j++) {
                    float slope = gradient_in<T, SILU>(in.v[j], out.v[j], scale.v[j], shift.v[j]);
                    sum.v[j] += slope;
                    product.v[j] += slope * (in.v[j] - mean.v[j]);
                }
            }
        }
    }
    columns_sum<V>(s, blockIdx.z, sum, room, in.partial);
    columns_sum<V>(s, blockIdx.z, product, room, in.partial + g.C);
}

/* A picture's sums over its chunks, and m₁, m₂ from them; blockIdx is (group, picture). */
static __global__ void __launch_bounds__(GROUP_THREADS) group_means(const float *w, struct group_norm g)
{
    __shared__ double room[WARP];
    int64_t per_group = g.C / g.groups, c0 = blockIdx.x * per_group;
    const float *partial = g.partial + blockIdx.y * g.chunks * 2 * g.C;
    double *sums = g.sums + blockIdx.y * 2 * g.C, m[2] = {0, 0};
    int lane = threadIdx.x % WARP;
    for (int64_t i = threadIdx.x / WARP; i < 2 * per_group; i += GROUP_THREADS / WARP) { /* a warp for each sum */
        int64_t which = i / per_group, c = c0 + i % per_group;
        double sum = 0;
        for (int64_t k = lane; k < g.chunks; k += WARP) sum += (double)partial[(k * 2 + which) * g.C + c];
#pragma unroll
        for (int gap = WARP / 2; gap > 0; gap /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, gap);
        if (which) sum *= (double)g.rows[(blockIdx.y * GN_ROWS + GN_RSTD) * g.C + c];
        if (lane == 0) {
            sums[which * g.C + c] = sum;
            m[which] += (double)w[c] * sum;
        }
        __syncwarp();
    }
    double n = (double)(per_group * g.pixels), m1 = block_sum_double(m[0], room) / n, m2 = block_sum_double(m[1], room) / n;
    float *means = g.means + blockIdx.y * 2 * g.C;
    for (int64_t c = c0 + threadIdx.x; c < c0 + per_group; c += GROUP_THREADS) {
        means[c] = (float)m1;
        means[g.C + c] = (float)m2;
    }
}

static __global__ void add_parameters(struct group_norm g, float *dw, float *db)
{
    int64_t c = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;
    if (c >= g.C) return;
    double sum = 0, product = 0;
#pragma unroll 4
    for (int64_t n = 0; n < g.pictures; n++) {
        sum += g.sums[n * 2 * g.C + c];
        product += g.sums[n * 2 * g.C + g.C + c];
    }
    if (db) db[c] += (float)sum;
    if (dw) dw[c] += (float)product;
}

/* dx += (FRESH: =) g scale - m₁ rstd - (x - mean) m₂ rstd², scale being rstd w */
template <int V, bool SILU, bool FRESH, typename T>
static __global__ void __launch_bounds__(COLUMN_THREADS, 2)
    add_gradient(const T *__restrict__ x, const T *__restrict__ dy, struct group_norm g, struct columns s, T *__restrict__ dx)
{
    constexpr int ROWS = FRESH ? AHEAD : AHEAD / 2;
    struct stand at = stand_of<V>(s, blockIdx.z);
    struct span in = span_of(g);
    if (!at.live) return;
    const float *rows = g.rows + blockIdx.y * GN_ROWS * g.C + at.channel, *means = g.means + blockIdx.y * 2 * g.C + at.channel;
    pack<V> scale = load<V>(rows + GN_SCALE * g.C), shift = load<V>(rows + GN_SHIFT * g.C),
            mean = load<V>(rows + GN_MEAN * g.C);
    pack<V> rstd = load<V>(rows + GN_RSTD * g.C), even = load<V>(means), slope = load<V>(means + g.C);
#pragma unroll
    for (int j = 0; j < V; j++) {
        slope.v[j] *= rstd.v[j] * rstd.v[j];
        even.v[j] = even.v[j] * rstd.v[j] - mean.v[j] * slope.v[j];
    }
    const T *from = x + in.picture + at.channel, *up = dy + in.picture + at.channel;
    T *to = dx + in.picture + at.channel;
    for (int64_t p0 = in.from + at.row; p0 < in.end; p0 += ROWS * s.deep) {
        words<T, V> v[ROWS], d[ROWS], old[ROWS];
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            int64_t place = (p0 + i * s.deep) * g.C;
            bool inside = p0 + i * s.deep < in.end;
            v[i] = load_words<V>(from + place, inside);
            d[i] = load_words<V>(up + place, inside);
            if (!FRESH) old[i] = load_words<V>(to + place, inside);
        }
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            if (p0 + i * s.deep >= in.end) continue;
            pack<V> in = values_of_words<T, V>(v[i]), out = values_of_words<T, V>(d[i]), before = zeros<V>();
            if (!FRESH) before = values_of_words<T, V>(old[i]);
#pragma unroll
            for (int j = 0; j < V; j++) {
                float of_norm = gradient_in<T, SILU>(in.v[j], out.v[j], scale.v[j], shift.v[j]) * scale.v[j];
                out.v[j] = before.v[j] + (of_norm - even.v[j] - in.v[j] * slope.v[j]);
            }
            store_whole<V>(to + (p0 + i * s.deep) * g.C, out);
        }
    }
}

template <int V, bool SILU, typename T>
static void launch_backward(struct backend *be, const T *x, const float *w, const struct group_norm *g, dim3 grid,
                            struct columns s, const T *dy, bool fresh, T *dx)
{
    cudaStream_t stream = cuda_of(be)->stream;
    gradient_sums<V, SILU><<<grid, COLUMN_THREADS, 0, stream>>>(x, dy, *g, s);
    group_means<<<dim3((unsigned)g->groups, (unsigned)g->pictures), GROUP_THREADS, 0, stream>>>(w, *g);
    if (dx && fresh)
        add_gradient<V, SILU, true><<<grid, COLUMN_THREADS, 0, stream>>>(x, dy, *g, s, dx);
    else if (dx)
        add_gradient<V, SILU, false><<<grid, COLUMN_THREADS, 0, stream>>>(x, dy, *g, s, dx);
}

aim_status cuda_group_norm_silu_backward(struct backend *be, const struct tensor *x, const struct tensor *w,
                                         const struct tensor *b, int groups, float eps, bool silu,
                                         const struct tensor *statistics, const struct tensor *dy, struct tensor *dx,
                                         struct tensor *dw, struct tensor *db)
{
    struct group_norm g;
    TRY(start(be, x, groups, eps, true, &g));
    bool vectors = rows_aligned(x->type, g.C, x->data, dy->data, dx ? dx->data : NULL);
    bool fresh = take_fresh(be, dx);
    if (statistics)
        known_rows<<<dim3((unsigned)divide_up(g.C, GROUP_THREADS), (unsigned)g.pictures), GROUP_THREADS, 0,
                     cuda_of(be)->stream>>>(f32(statistics), f32(w), f32(b), g);
    else
        find_statistics(be, &g, x, w, b, vectors, NULL);
    by_columns(&g, x, vectors, [&](auto zero, auto across, dim3 grid, struct columns s) {
        using T = decltype(zero);
        constexpr int V = decltype(across)::value;
        if (silu)
            launch_backward<V, true>(be, data_of<T>(x), f32(w), &g, grid, s, data_of<T>(dy), fresh, data_of<T>(dx));
        else
            launch_backward<V, false>(be, data_of<T>(x), f32(w), &g, grid, s, data_of<T>(dy), fresh, data_of<T>(dx));
    });
    if (dw || db)
        add_parameters<<<(unsigned)divide_up(g.C, 64), 64, 0, cuda_of(be)->stream>>>(g, data_of<float>(dw), data_of<float>(db));
    return cuda_launched(be, "group_norm_silu_backward");
}
