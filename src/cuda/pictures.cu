/* Layouts of pictures, and the losses that are means over all values. */
#include "cuda/columns.cuh"

enum { THREADS = 256 };

/* ------------------------------------------------------------------------------------------------- layouts
 *
 * The maps whose layout changes are pictures of three channels: a thread for each value, in the order of y, does. */

template <typename X, typename Y> static __global__ void to_nhwc(const X *x, int64_t count, int64_t C, int64_t pixels, Y *y)
{
    for (int64_t i = blockIdx.x * (int64_t)THREADS + threadIdx.x; i < count; i += (int64_t)gridDim.x * THREADS) {
        int64_t c = i % C, p = i / C % pixels, n = i / C / pixels;
        put(&y[i], value(x[(n * C + c) * pixels + p]));
    }
}

template <typename X, typename Y> static __global__ void to_nchw(const X *x, int64_t count, int64_t C, int64_t pixels, Y *y)
{
    for (int64_t i = blockIdx.x * (int64_t)THREADS + threadIdx.x; i < count; i += (int64_t)gridDim.x * THREADS) {
        int64_t p = i % pixels, c = i / pixels % C, n = i / pixels / C;
        put(&y[i], value(x[(n * pixels + p) * C + c]));
    }
}

aim_status cuda_nchw_to_nhwc(struct backend *be, const struct tensor *x, struct tensor *y)
{
    int64_t count = tensor_count(x), C = x->shape[1], pixels = x->shape[2] * x->shape[3];
    unsigned blocks = cuda_blocks(be, count, THREADS);
    by_type(x, [&](auto of_x) {
        by_type(y, [&](auto of_y) {
            using X = decltype(of_x);
            using Y = decltype(of_y);
            to_nhwc<X, Y><<<blocks, THREADS, 0, cuda_of(be)->stream>>>(data_of<X>(x), count, C, pixels, data_of<Y>(y));
        });
    });
    return cuda_launched(be, "nchw_to_nhwc");
}

aim_status cuda_nhwc_to_nchw(struct backend *be, const struct tensor *x, struct tensor *y)
{
    int64_t count = tensor_count(x), C = x->shape[3], pixels = x->shape[1] * x->shape[2];
    unsigned blocks = cuda_blocks(be, count, THREADS);
    by_type(x, [&](auto of_x) {
        by_type(y, [&](auto of_y) {
            using X = decltype(of_x);
            using Y = decltype(of_y);
            to_nchw<X, Y><<<blocks, THREADS, 0, cuda_of(be)->stream>>>(data_of<X>(x), count, C, pixels, data_of<Y>(y));
        });
    });
    return cuda_launched(be, "nhwc_to_nchw");
}

/* ------------------------------------------------------------------------------------ the mean squared difference */

enum { CHUNK = 1 << 14 }; /* values whose terms one block adds up, whatever the device */

/* The terms of means: of a pair of values, the term and its derivative by the first one. */
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
static __global__ void add_slopes(const A *a, const B *b, int64_t n, F f, double factor, const float *dloss, A *da, B *db)
{
    const float scale = (float)(factor * (double)dloss[0]);
    for (int64_t i = blockIdx.x * (int64_t)THREADS + threadIdx.x; i < n; i += (int64_t)gridDim.x * THREADS) {
        float slope = scale * f.slope(value(a[i]), value(b[i]));
        if (da) put(&da[i], value(da[i]) + slope);
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
    by_type(a, [&](auto of_a) {
        by_type(b, [&](auto of_b) {
            using A = decltype(of_a);
            using B = decltype(of_b);
            add_slopes<A, B, F><<<blocks, THREADS, 0, cuda_of(be)->stream>>>(data_of<A>(a), data_of<B>(b), n, f, factor,
                                                                             f32(dloss), data_of<A>(da), data_of<B>(db));
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
