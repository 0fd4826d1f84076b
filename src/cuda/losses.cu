/* Means over all values: of squared and absolute differences, of the terms of adversarial losses. */
#include "cuda/columns.cuh"

enum { THREADS = 256 };

enum { CHUNK = 1 << 14 }; /* values whose terms one block adds up, whatever the device */

/* The terms: of a pair of values, the term and its derivative by the first one. */
struct square_term {
    __device__ float term(float a, float b) const
    {
        return (a - b) * (a - b);
    }
    __device__ float slope(float a, float b) const
    {
        return 2.0f * (a - b);
    }
};

struct absolute_term {
    __device__ float term(float a, float b) const
    {
        return fabsf(a - b);
    }
    __device__ float slope(float a, float b) const
    {
        return a > b ? 1.0f : a < b ? -1.0f : 0.0f;
    }
};

/* A function of the first value alone. */
struct map_term {
    enum mean_map map;
    __device__ float term(float x, float) const
    {
        switch (map) {
        case MAP_HINGE_REAL: return fmaxf(1.0f - x, 0.0f);
        case MAP_HINGE_FAKE: return fmaxf(1.0f + x, 0.0f);
        case MAP_SOFTPLUS: return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x)));
        case MAP_SOFTPLUS_MINUS: return fmaxf(-x, 0.0f) + log1pf(expf(-fabsf(x)));
        default: return x;
        }
    }
    __device__ float slope(float x, float) const
    {
        switch (map) {
        case MAP_HINGE_REAL: return x < 1.0f ? -1.0f : 0.0f;
        case MAP_HINGE_FAKE: return x > -1.0f ? 1.0f : 0.0f;
        case MAP_SOFTPLUS: return 1.0f / (1.0f + expf(-x));
        case MAP_SOFTPLUS_MINUS: return -1.0f / (1.0f + expf(x));
        default: return 1.0f;
        }
    }
};

template <typename A, typename B, typename F>
static __global__ void __launch_bounds__(THREADS) sum_terms(const A *a, const B *b, int64_t n, F f, double *sums)
{
    __shared__ double room[WARP];
    int64_t from = blockIdx.x * (int64_t)CHUNK, end = from + CHUNK < n ? from + CHUNK : n;
    float part = 0; /* of at most CHUNK / THREADS terms */
    for (int64_t i = from + threadIdx.x; i < end; i += THREADS) part += f.term(value(a[i]), value(b[i]));
    double sum = block_sum_double((double)part, room);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

/* loss = factor Σ sums; one block */
static __global__ void __launch_bounds__(THREADS) finish_mean(const double *sums, int64_t count, double factor, float *loss)
{
    __shared__ double room[WARP];
    double sum = 0;
    for (int64_t i = threadIdx.x; i < count; i += THREADS) sum += sums[i];
    sum = block_sum_double(sum, room);
    if (threadIdx.x == 0) loss[0] = (float)(factor * sum);
}

template <typename A, typename B, typename F>
static __global__ void add_slopes(const A *a, const B *b, int64_t n, F f, double factor, const float *dloss, bool fresh, A *da,
                                  B *db)
{
    const float scale = (float)(factor * (double)dloss[0]);
    for (int64_t i = blockIdx.x * (int64_t)THREADS + threadIdx.x; i < n; i += (int64_t)gridDim.x * THREADS) {
        float slope = scale * f.slope(value(a[i]), value(b[i]));
        if (da) put(&da[i], fresh ? slope : value(da[i]) + slope);
        if (db) put(&db[i], value(db[i]) - slope);
    }
}

/* loss (1) = weight mean f(a, b) */
template <typename F>
static aim_status mean_of(struct backend *be, const struct tensor *a, const struct tensor *b, F f, float weight,
                          struct tensor *loss, const char *op)
{
    int64_t n = tensor_count(a), chunks = divide_up(n, CHUNK);
    double *sums = (double *)(cuda_scratch(be, (size_t)chunks * sizeof(double)));
    if (!sums) return AIM_ERR_MEMORY;
    cudaStream_t stream = cuda_of(be)->stream;
    by_type(a, [&](auto of_a) {
        by_type(b, [&](auto of_b) {
            using A = decltype(of_a);
            using B = decltype(of_b);
            sum_terms<A, B, F><<<(unsigned)chunks, THREADS, 0, stream>>>(data_of<A>(a), data_of<B>(b), n, f, sums);
        });
    });
    finish_mean<<<1, THREADS, 0, stream>>>(sums, chunks, (double)weight / (double)n, f32(loss));
    return cuda_launched(be, op);
}

template <typename F>
static aim_status mean_of_backward(struct backend *be, const struct tensor *a, const struct tensor *b, F f, float weight,
                                   const struct tensor *dloss, struct tensor *da, struct tensor *db, const char *op)
{
    int64_t n = tensor_count(a);
    double factor = (double)weight / (double)n;
    unsigned blocks = cuda_blocks(be, n, THREADS);
    bool fresh = take_fresh(be, da); /* db, a target's, never is */
    by_type(a, [&](auto of_a) {
        by_type(b, [&](auto of_b) {
            using A = decltype(of_a);
            using B = decltype(of_b);
            add_slopes<A, B, F><<<blocks, THREADS, 0, cuda_of(be)->stream>>>(data_of<A>(a), data_of<B>(b), n, f, factor,
                                                                             f32(dloss), fresh, data_of<A>(da), data_of<B>(db));
        });
    });
    return cuda_launched(be, op);
}

aim_status cuda_mean_square(struct backend *be, const struct tensor *a, const struct tensor *b, float weight,
                            struct tensor *loss)
{
    return mean_of(be, a, b, square_term(), weight, loss, "mean_square");
}

aim_status cuda_mean_square_backward(struct backend *be, const struct tensor *a, const struct tensor *b, float weight,
                                     const struct tensor *dloss, struct tensor *da, struct tensor *db)
{
    return mean_of_backward(be, a, b, square_term(), weight, dloss, da, db, "mean_square_backward");
}

aim_status cuda_mean_absolute(struct backend *be, const struct tensor *a, const struct tensor *b, float weight,
                              struct tensor *loss)
{
    return mean_of(be, a, b, absolute_term(), weight, loss, "mean_absolute");
}

aim_status cuda_mean_absolute_backward(struct backend *be, const struct tensor *a, const struct tensor *b, float weight,
                                       const struct tensor *dloss, struct tensor *da, struct tensor *db)
{
    return mean_of_backward(be, a, b, absolute_term(), weight, dloss, da, db, "mean_absolute_backward");
}

aim_status cuda_mean_map(struct backend *be, const struct tensor *x, enum mean_map map, float weight, struct tensor *loss)
{
    return mean_of(be, x, x, map_term{map}, weight, loss, "mean_map");
}

aim_status cuda_mean_map_backward(struct backend *be, const struct tensor *x, enum mean_map map, float weight,
                                  const struct tensor *dloss, struct tensor *dx)
{
    return mean_of_backward(be, x, x, map_term{map}, weight, dloss, dx, NULL, "mean_map_backward");
}
