/* Sums over rows in two stages, in a fixed order: the same bits every time. */
#include "cuda/values.cuh"

enum { COLUMNS = 32, MOST_LANES = 32, LEAST_THREADS = 128, CHUNK_ROWS = 64 };

struct targets {
    struct sum_target part[SUM_TARGETS];
};

/* A thread sums every lanes-th row of a column; then the first lane adds up the lanes. (columns, lanes) threads. */
static __global__ void sum_rows(const float *partial, int64_t rows, int64_t ld, struct targets to, int64_t cols)
{
    __shared__ float sums[COLUMNS * MOST_LANES];
    int64_t column = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, group = blockIdx.y;
    const float *from = partial + group * rows * ld + column;
    float sum = 0;
    if (column < cols) {
#pragma unroll 8
        for (int64_t r = threadIdx.y; r < rows; r += blockDim.y) sum += from[r * ld];
    }
    sums[threadIdx.y * blockDim.x + threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0 || column >= cols) return;
    for (unsigned lane = 1; lane < blockDim.y; lane++) sum += sums[lane * blockDim.x + threadIdx.x];
#pragma unroll
    for (int i = 0; i < SUM_TARGETS; i++) {
        const struct sum_target &t = to.part[i];
        if (column >= 0 && column < t.cols && t.out) t.out[group * t.stride + column] += sum;
        column -= t.cols;
    }
}

aim_status cuda_sum_rows_to(struct backend *be, const float *partial, int64_t groups, int64_t rows, int64_t ld,
                            const struct sum_target *targets, int count)
{
    struct targets to = {};
    int64_t cols = 0;
    for (int i = 0; i < count; i++) {
        to.part[i] = targets[i];
        cols += targets[i].cols;
    }
    unsigned lanes = 1; /* each has a few rows, so that short sums need few threads */
    while (lanes < MOST_LANES && lanes * 8 < rows) lanes *= 2;
    unsigned across = lanes * COLUMNS < LEAST_THREADS ? LEAST_THREADS / lanes : (unsigned)COLUMNS;
    dim3 grid((unsigned)divide_up(cols, across), (unsigned)groups);
    sum_rows<<<grid, dim3(across, lanes), 0, cuda_of(be)->stream>>>(partial, rows, ld, to, cols);
    return cuda_launched(be, "sums over rows");
}

aim_status cuda_sum_rows(struct backend *be, const float *partial, int64_t groups, int64_t rows, int64_t cols, int64_t ld,
                         float *out, int64_t out_stride)
{
    struct sum_target target = {out, out_stride, cols};
    return cuda_sum_rows_to(be, partial, groups, rows, ld, &target, 1);
}

/* partial (chunks, cols): a thread sums one column of a chunk of rows. */
template <typename T> static __global__ void sum_chunk(const T *x, int64_t rows, int64_t cols, float *partial)
{
    int64_t column = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, first = (int64_t)blockIdx.y * CHUNK_ROWS;
    int64_t end = first + CHUNK_ROWS < rows ? first + CHUNK_ROWS : rows;
    if (column >= cols) return;
    float sum = 0;
#pragma unroll 4
    for (int64_t r = first; r < end; r++) sum += value(x[r * cols + column]);
    partial[(int64_t)blockIdx.y * cols + column] = sum;
}

aim_status cuda_sum_matrix_rows(struct backend *be, const struct tensor *x, float *out)
{
    enum { THREADS = 128 };
    int64_t M = tensor_rows(x), N = tensor_cols(x), chunks = divide_up(M, CHUNK_ROWS);
    float *partial = (float *)cuda_scratch(be, (size_t)(chunks * N) * sizeof(float));
    if (!partial) return AIM_ERR_MEMORY;
    dim3 grid((unsigned)divide_up(N, THREADS), (unsigned)chunks);
    by_type(x, [&](auto zero) {
        using T = decltype(zero);
        sum_chunk<T><<<grid, THREADS, 0, cuda_of(be)->stream>>>(data_of<T>(x), M, N, partial);
    });
    TRY(cuda_launched(be, "sums over rows"));
    return cuda_sum_rows(be, partial, 1, chunks, N, N, out, 0);
}
