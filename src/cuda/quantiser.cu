/* The quantiser: rows of unit length, their gradient, and the nearest code. */
#include "cuda/columns.cuh"

enum { ROW_THREADS = 128 };

/* ------------------------------------------------------------------------------------------ unit rows
 *
 * Rows are short (8 values): a thread has one. */

template <typename T> static __global__ void normalize(const T *x, int64_t M, int64_t D, T *y)
{
    int64_t m = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;
    if (m >= M) return;
    float squares = 0;
    for (int64_t i = 0; i < D; i++) squares += value(x[m * D + i]) * value(x[m * D + i]);
    float scale = 1.0f / fmaxf(sqrtf(squares), 1e-12f);
    for (int64_t i = 0; i < D; i++) put(&y[m * D + i], value(x[m * D + i]) * scale);
}

aim_status cuda_normalize_rows(struct backend *be, const struct tensor *x, struct tensor *y)
{
    int64_t M = tensor_rows(x), D = tensor_cols(x);
    by_type(x, [&](auto zero) {
        using T = decltype(zero);
        normalize<T>
            <<<(unsigned)divide_up(M, ROW_THREADS), ROW_THREADS, 0, cuda_of(be)->stream>>>(data_of<T>(x), M, D, data_of<T>(y));
    });
    return cuda_launched(be, "normalize_rows");
}

/* y = x/n with n = max(‖x‖, 1e-12); dx = (dy - y (y·dy)) / n, and dy / n where n is that constant */
template <typename T>
static __global__ void normalize_gradient(const T *x, const T *dy, int64_t M, int64_t D, bool fresh, T *dx)
{
    int64_t m = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;
    if (m >= M) return;
    const T *in = x + m * D, *g = dy + m * D;
    double squares = 0, along = 0;
    for (int64_t i = 0; i < D; i++) {
        squares += (double)value(in[i]) * (double)value(in[i]);
        along += (double)value(in[i]) * (double)value(g[i]);
    }
    double norm = sqrt(squares), scale = 1 / (norm > 1e-12 ? norm : 1e-12), part = norm > 1e-12 ? along / squares : 0;
    for (int64_t i = 0; i < D; i++) {
        float add = (float)(scale * ((double)value(g[i]) - part * (double)value(in[i])));
        put(&dx[m * D + i], fresh ? add : value(dx[m * D + i]) + add);
    }
}

aim_status cuda_normalize_rows_backward(struct backend *be, const struct tensor *x, const struct tensor *dy, struct tensor *dx)
{
    int64_t M = tensor_rows(x), D = tensor_cols(x);
    if (!dx) return AIM_OK;
    bool fresh = take_fresh(be, dx);
    by_type(x, [&](auto zero) {
        using T = decltype(zero);
        normalize_gradient<T><<<(unsigned)divide_up(M, ROW_THREADS), ROW_THREADS, 0, cuda_of(be)->stream>>>(
            data_of<T>(x), data_of<T>(dy), M, D, fresh, data_of<T>(dx));
    });
    return cuda_launched(be, "normalize_rows_backward");
}

/* ----------------------------------------------------------------------------------------- the nearest code
 *
 * Both sides have unit rows, so the nearest code is the one with the largest product; the first one wins ties, which asks
 * for the same arithmetic for every code: one chain of float32 multiply-adds. The codebook is cut into slices of SLICE
 * codes; a block compares its rows of z with one slice, which lies in shared memory, where all threads read the same code
 * at a time. The slices' winners are then compared in their order.
 */
enum { SLICE = 1024, CODE_THREADS = 64, CODE_ROWS = 2 };

struct candidate {
    float product;
    int32_t id;
};

/* D is the rows' length; blockIdx is (rows of z, slice); best (slice, M). */
template <typename Z, typename E, int D>
static __global__ void __launch_bounds__(CODE_THREADS)
    compare_slice(const Z *z, const E *e, int64_t M, int64_t V, struct candidate *best)
{
    __shared__ alignas(16) float codes[SLICE * D];
    int64_t first = blockIdx.y * (int64_t)SLICE;
    int count = (int)(V - first < SLICE ? V - first : SLICE);
    for (int i = threadIdx.x; i < count * D; i += CODE_THREADS) codes[i] = value(e[first * D + i]);
    int64_t m0 = (blockIdx.x * (int64_t)CODE_THREADS + threadIdx.x) * CODE_ROWS;
    float row[CODE_ROWS][D], top[CODE_ROWS];
    int at[CODE_ROWS];
#pragma unroll
    for (int r = 0; r < CODE_ROWS; r++) {
        top[r] = -INFINITY;
        at[r] = 0;
#pragma unroll
        for (int i = 0; i < D; i++) row[r][i] = m0 + r < M ? value(z[(m0 + r) * D + i]) : 0.0f;
    }
    __syncthreads();
#pragma unroll 4
    for (int j = 0; j < count; j++) {
        float product[CODE_ROWS] = {};
#pragma unroll
        for (int i = 0; i < D; i++)
#pragma unroll
            for (int r = 0; r < CODE_ROWS; r++) product[r] = fmaf(row[r][i], codes[j * D + i], product[r]);
#pragma unroll
        for (int r = 0; r < CODE_ROWS; r++)
            if (product[r] > top[r]) {
                top[r] = product[r];
                at[r] = j;
            }
    }
#pragma unroll
    for (int r = 0; r < CODE_ROWS; r++)
        if (m0 + r < M) best[blockIdx.y * M + m0 + r] = candidate{top[r], (int32_t)(first + at[r])};
}

/* The same for rows of any length: a thread for each row, codes from device memory. */
template <typename Z, typename E>
static __global__ void compare_any(const Z *z, const E *e, int64_t M, int64_t V, int64_t D, struct candidate *best)
{
    int64_t m = blockIdx.x * (int64_t)blockDim.x + threadIdx.x, first = blockIdx.y * (int64_t)SLICE;
    if (m >= M) return;
    struct candidate top = {-INFINITY, (int32_t)first};
    for (int64_t j = first; j < V && j < first + SLICE; j++) {
        float product = 0;
        for (int64_t i = 0; i < D; i++) product = fmaf(value(z[m * D + i]), value(e[j * D + i]), product);
        if (product > top.product) top = candidate{product, (int32_t)j};
    }
    best[blockIdx.y * M + m] = top;
}

static __global__ void choose(const struct candidate *best, int64_t M, int64_t slices, int32_t *ids)
{
    int64_t m = blockIdx.x * (int64_t)blockDim.x + threadIdx.x;
    if (m >= M) return;
    struct candidate top = best[m];
    for (int64_t s = 1; s < slices; s++)
        if (best[s * M + m].product > top.product) top = best[s * M + m];
    ids[m] = top.id;
}

template <typename Z, typename E>
static void compare(cudaStream_t stream, const struct tensor *z, const struct tensor *e, int64_t slices, struct candidate *best)
{
    int64_t M = tensor_rows(z), D = tensor_cols(z), V = e->shape[0];
    if (D == 8) {
        dim3 grid((unsigned)divide_up(M, CODE_THREADS * CODE_ROWS), (unsigned)slices);
        compare_slice<Z, E, 8><<<grid, CODE_THREADS, 0, stream>>>(data_of<Z>(z), data_of<E>(e), M, V, best);
    } else {
        dim3 grid((unsigned)divide_up(M, CODE_THREADS), (unsigned)slices);
        compare_any<Z, E><<<grid, CODE_THREADS, 0, stream>>>(data_of<Z>(z), data_of<E>(e), M, V, D, best);
    }
}

aim_status cuda_nearest_code(struct backend *be, const struct tensor *z, const struct tensor *e, struct tensor *ids)
{
    int64_t M = tensor_rows(z), slices = divide_up(e->shape[0], SLICE);
    struct candidate *best = (struct candidate *)(cuda_scratch(be, (size_t)(M * slices) * sizeof(struct candidate)));
    if (!best) return AIM_ERR_MEMORY;
    cudaStream_t stream = cuda_of(be)->stream;
    by_type(z, [&](auto of_z) {
        by_type(e, [&](auto of_e) { compare<decltype(of_z), decltype(of_e)>(stream, z, e, slices, best); });
    });
    choose<<<(unsigned)divide_up(M, ROW_THREADS), ROW_THREADS, 0, stream>>>(best, M, slices, i32(ids));
    return cuda_launched(be, "nearest_code");
}
