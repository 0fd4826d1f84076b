/* Sums over rows in two stages, in a fixed order: the same bits every time. */
#include "cuda/values.cuh"

enum { COLUMNS = 32, LANES = 32, CHUNK_ROWS = 64 };

/* A block sums 32 columns; each of its 32 lanes every 32nd row. */
static __global__ void sum_rows(const float *partial, int64_t rows, int64_t cols, int64_t ld, float *out, int64_t out_stride)
{
    __shared__ float sums[LANES][COLUMNS];
    int64_t column = (int64_t)blockIdx.x * COLUMNS + threadIdx.x;
    const float *from = partial + (int64_t)blockIdx.y * rows * ld + column;
    float sum = 0;
    if (column < cols) {
#pragma unroll 8
        for (int64_t r = threadIdx.y; r < rows; r += LANES) sum += from[r * ld];
    }
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0 || column >= cols) return;
    for (int lane = 1; lane < LANES; lane++) sum += sums[lane][threadIdx.x];
    out[(int64_t)blockIdx.y * out_stride + column] += sum;
}

aim_status cuda_sum_rows(struct backend *be, const float *partial, int64_t groups, int64_t rows, int64_t cols, int64_t ld,
                         float *out, int64_t out_stride)
{
    dim3 grid((unsigned)divide_up(cols, COLUMNS), (unsigned)groups);
    sum_rows<<<grid, dim3(COLUMNS, LANES), 0, cuda_of(be)->stream>>>(partial, rows, cols, ld, out, out_stride);
    return cuda_launched(be, "sums over rows");
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
