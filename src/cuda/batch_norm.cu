/*
 * BatchNorm in training mode, and its gradient. Rows are cut into chunks, a number that follows from the shape alone; first
 * every chunk's two sums of each channel, then each channel's from them, in double, then the map itself.
 */
#include "cuda/columns.cuh"

enum { MOST_CHUNKS = 512, LEAST_ROWS = 32, CHANNEL_THREADS = 128 };

struct batch {
    int64_t rows, C, each, chunks; /* each: rows of a chunk */
    float *partial;                /* (chunk, 2, C) */
    float *means;                  /* (2, C): the backward's */
};

static aim_status start(struct backend *be, const struct tensor *x, struct batch *k)
{
    *k = batch();
    k->rows = tensor_rows(x);
    k->C = tensor_cols(x);
    k->each = max64(divide_up(k->rows, MOST_CHUNKS), LEAST_ROWS);
    k->chunks = divide_up(k->rows, k->each);
    k->partial = (float *)cuda_scratch(be, (size_t)((k->chunks + 1) * 2 * k->C) * sizeof(float));
    k->means = k->partial + k->chunks * 2 * k->C;
    return k->partial ? AIM_OK : AIM_ERR_MEMORY;
}

/*
 * The sums of one chunk; blockIdx is (chunk, part of the channels). Forward (dy NULL): Σ(x-p) and Σ(x-p)², p being the first
 * row, so that squares of deviations stay exact when the mean is many of them. Backward: Σ dy and Σ dy (x - mean).
 */
template <int V, typename T>
static __global__ void __launch_bounds__(COLUMN_THREADS)
    chunk_sums(const T *x, const float *mean, const T *dy, struct batch k, struct columns s)
{
    __shared__ alignas(16) float room[COLUMN_THREADS * V];
    struct stand at = stand_of<V>(s, blockIdx.y);
    int64_t from = blockIdx.x * k.each, end = from + k.each < k.rows ? from + k.each : k.rows;
    pack<V> sum = zeros<V>(), product = zeros<V>();
    if (at.live) {
        pack<V> origin = dy ? load<V>(mean + at.channel) : load<V>(x + at.channel);
#pragma unroll 2
        for (int64_t r = from + at.row; r < end; r += s.deep) {
            pack<V> v = load<V>(x + r * k.C + at.channel), up = zeros<V>();
            if (dy) up = load<V>(dy + r * k.C + at.channel);
#pragma unroll
            for (int j = 0; j < V; j++) {
                float deviation = v.v[j] - origin.v[j], other = dy ? up.v[j] : deviation;
                sum.v[j] += other;
                product.v[j] += other * deviation;
            }
        }
    }
    float *partial = k.partial + blockIdx.x * 2 * k.C;
    columns_sum<V>(s, blockIdx.y, sum, room, partial);
    columns_sum<V>(s, blockIdx.y, product, room, partial + k.C);
}

/* A warp adds up its channel's two sums over the chunks; every lane has them. */
static __device__ inline void channel_sums(const struct batch &k, int64_t c, double (&sums)[2])
{
    int lane = threadIdx.x % WARP;
    for (int which = 0; which < 2; which++) {
        double sum = 0;
        for (int64_t chunk = lane; chunk < k.chunks; chunk += WARP) sum += (double)k.partial[(chunk * 2 + which) * k.C + c];
#pragma unroll
        for (int gap = WARP / 2; gap > 0; gap /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, gap);
        sums[which] = sum;
    }
}

static __device__ inline int64_t channel_of_warp()
{
    return blockIdx.x * (int64_t)(CHANNEL_THREADS / WARP) + threadIdx.x / WARP;
}

/* mean and variance, which move towards the batch's, may be NULL */
template <typename T>
static __global__ void __launch_bounds__(CHANNEL_THREADS)
    find_statistics(const T *x, struct batch k, float eps, float momentum, float *mean, float *variance, float *statistics)
{
    int64_t c = channel_of_warp();
    if (c >= k.C) return;
    double sums[2], n = (double)k.rows;
    channel_sums(k, c, sums);
    if (threadIdx.x % WARP > 0) return;
    double offset = sums[0] / n, biased = sums[1] / n - offset * offset;
    biased = biased > 0 ? biased : 0;
    float center = (float)((double)value(x[c]) + offset);
    statistics[c] = center;
    statistics[k.C + c] = (float)(1 / sqrt(biased + (double)eps));
    if (!mean) return;
    float unbiased = (float)(k.rows > 1 ? biased * n / (n - 1) : biased);
    mean[c] += momentum * (center - mean[c]);
    variance[c] += momentum * (unbiased - variance[c]);
}

template <int V, typename T>
static __global__ void __launch_bounds__(COLUMN_THREADS)
    apply(const T *__restrict__ x, const float *w, const float *b, const float *statistics, struct batch k, struct columns s,
          T *__restrict__ y)
{
    struct stand at = stand_of<V>(s, blockIdx.y);
    int64_t from = blockIdx.x * k.each, end = from + k.each < k.rows ? from + k.each : k.rows;
    if (!at.live) return;
    pack<V> mean = load<V>(statistics + at.channel), scale, shift;
#pragma unroll
    for (int j = 0; j < V; j++) {
        scale.v[j] = statistics[k.C + at.channel + j] * w[at.channel + j];
        shift.v[j] = b[at.channel + j];
    }
#pragma unroll 4
    for (int64_t r = from + at.row; r < end; r += s.deep) {
        pack<V> v = load<V>(x + r * k.C + at.channel);
#pragma unroll
        for (int j = 0; j < V; j++) v.v[j] = (v.v[j] - mean.v[j]) * scale.v[j] + shift.v[j];
        store_whole<V>(y + r * k.C + at.channel, v);
    }
}

static unsigned channel_blocks(const struct batch &k)
{
    return (unsigned)divide_up(k.C, CHANNEL_THREADS / WARP);
}

aim_status cuda_batch_norm(struct backend *be, const struct tensor *x, const struct tensor *w, const struct tensor *b,
                           float eps, float momentum, struct tensor *mean, struct tensor *variance, struct tensor *statistics,
                           struct tensor *y)
{
    struct batch k;
    TRY(start(be, x, &k));
    cudaStream_t stream = cuda_of(be)->stream;
    by_type(x, [&](auto zero) {
        using T = decltype(zero);
        by_width<16 / sizeof(T)>(rows_aligned(x->type, k.C, x->data, y->data, statistics->data), [&](auto across) {
            constexpr int V = decltype(across)::value;
            struct columns s = columns_of(k.C, V);
            dim3 grid((unsigned)k.chunks, (unsigned)s.parts);
            chunk_sums<V, T><<<grid, COLUMN_THREADS, 0, stream>>>(data_of<T>(x), NULL, NULL, k, s);
            find_statistics<<<channel_blocks(k), CHANNEL_THREADS, 0, stream>>>(
                data_of<T>(x), k, eps, momentum, data_of<float>(mean), data_of<float>(variance), f32(statistics));
            apply<V><<<grid, COLUMN_THREADS, 0, stream>>>(data_of<T>(x), f32(w), f32(b), f32(statistics), k, s, data_of<T>(y));
        });
    });
    return cuda_launched(be, "batch_norm");
}

/* With g = dy: db = Σ g; dw = Σ g x̂; means (2, C) = mean(g), rstd mean(g x̂) */
static __global__ void __launch_bounds__(CHANNEL_THREADS)
    add_parameters(const float *statistics, struct batch k, float *dw, float *db)
{
    int64_t c = channel_of_warp();
    if (c >= k.C) return;
    double sums[2];
    channel_sums(k, c, sums);
    if (threadIdx.x % WARP > 0) return;
    double rstd = (double)statistics[k.C + c], toward = sums[1] * rstd; /* Σ g x̂ */
    if (dw) dw[c] += (float)toward;
    if (db) db[c] += (float)sums[0];
    k.means[c] = (float)(sums[0] / (double)k.rows);
    k.means[k.C + c] = (float)(toward * rstd / (double)k.rows);
}

/* dx += (fresh: =) w rstd (g - mean(g) - x̂ mean(g x̂)) */
template <int V, typename T>
static __global__ void __launch_bounds__(COLUMN_THREADS)
    add_gradient(const T *__restrict__ x, const float *w, const float *statistics, const T *__restrict__ dy, struct batch k,
                 struct columns s, bool fresh, T *__restrict__ dx)
{
    struct stand at = stand_of<V>(s, blockIdx.y);
    int64_t from = blockIdx.x * k.each, end = from + k.each < k.rows ? from + k.each : k.rows;
    if (!at.live) return;
    pack<V> mean = load<V>(statistics + at.channel), scale, share, slope;
#pragma unroll
    for (int j = 0; j < V; j++) {
        scale.v[j] = statistics[k.C + at.channel + j] * w[at.channel + j];
        share.v[j] = k.means[at.channel + j];
        slope.v[j] = k.means[k.C + at.channel + j];
    }
#pragma unroll 2
    for (int64_t r = from + at.row; r < end; r += s.deep) {
        int64_t place = r * k.C + at.channel;
        pack<V> v = load<V>(x + place), up = load<V>(dy + place), out = zeros<V>();
        if (!fresh) out = load<V>(dx + place);
#pragma unroll
        for (int j = 0; j < V; j++) out.v[j] += scale.v[j] * (up.v[j] - share.v[j] - (v.v[j] - mean.v[j]) * slope.v[j]);
        store_whole<V>(dx + place, out);
    }
}

aim_status cuda_batch_norm_backward(struct backend *be, const struct tensor *x, const struct tensor *w,
                                    const struct tensor *statistics, const struct tensor *dy, struct tensor *dx,
                                    struct tensor *dw, struct tensor *db)
{
    struct batch k;
    TRY(start(be, x, &k));
    cudaStream_t stream = cuda_of(be)->stream;
    bool vectors = rows_aligned(x->type, k.C, x->data, dy->data, dx ? dx->data : NULL) && aligned(statistics);
    bool fresh = take_fresh(be, dx);
    by_type(x, [&](auto zero) {
        using T = decltype(zero);
        by_width<16 / sizeof(T)>(vectors, [&](auto across) {
            constexpr int V = decltype(across)::value;
            struct columns s = columns_of(k.C, V);
            dim3 grid((unsigned)k.chunks, (unsigned)s.parts);
            chunk_sums<V, T><<<grid, COLUMN_THREADS, 0, stream>>>(data_of<T>(x), f32(statistics), data_of<T>(dy), k, s);
            add_parameters<<<channel_blocks(k), CHANNEL_THREADS, 0, stream>>>(f32(statistics), k, data_of<float>(dw),
                                                                              data_of<float>(db));
            if (dx)
                add_gradient<V><<<grid, COLUMN_THREADS, 0, stream>>>(data_of<T>(x), f32(w), f32(statistics), data_of<T>(dy), k,
                                                                     s, fresh, data_of<T>(dx));
        });
    });
    return cuda_launched(be, "batch_norm_backward");
}
