/* Sums of the columns of long matrices: gradients of biases of convolutions. */
#include "cuda/columns.cuh"

enum { MOST_PARTS = 1024, LEAST_ROWS = 64 };

/* partial (chunk, C): the sums of `each` rows */
template <int V, typename T>
static __global__ void __launch_bounds__(COLUMN_THREADS)
    sum_chunk(const T *x, int64_t rows, int64_t each, struct columns s, float *partial)
{
    __shared__ alignas(16) float room[COLUMN_THREADS * V];
    struct stand at = stand_of<V>(s, blockIdx.y);
    int64_t from = blockIdx.x * each, end = from + each < rows ? from + each : rows;
    pack<V> sum = zeros<V>();
    if (at.live) {
#pragma unroll 4
        for (int64_t r = from + at.row; r < end; r += s.deep) {
            pack<V> in = load<V>(x + r * s.C + at.channel);
#pragma unroll
            for (int j = 0; j < V; j++) sum.v[j] += in.v[j];
        }
    }
    columns_sum<V>(s, blockIdx.y, sum, room, partial + blockIdx.x * s.C);
}

aim_status cuda_column_sums(struct backend *be, const struct tensor *x, float *out)
{
    int64_t rows = tensor_rows(x), C = tensor_cols(x), each = max64(divide_up(rows, MOST_PARTS), LEAST_ROWS);
    int64_t chunks = divide_up(rows, each);
    float *partial = (float *)cuda_scratch(be, (size_t)(chunks * C) * sizeof(float));
    if (!partial) return AIM_ERR_MEMORY;
    by_type(x, [&](auto zero) {
        using T = decltype(zero);
        by_width<16 / sizeof(T)>(rows_aligned(x->type, C, x->data), [&](auto w) {
            constexpr int V = decltype(w)::value;
            struct columns s = columns_of(C, V);
            dim3 grid((unsigned)chunks, (unsigned)s.parts);
            sum_chunk<V><<<grid, COLUMN_THREADS, 0, cuda_of(be)->stream>>>(data_of<T>(x), rows, each, s, partial);
        });
    });
    TRY(cuda_launched(be, "sums of columns"));
    return cuda_sum_rows(be, partial, 1, chunks, C, C, out, 0);
}
