/* Rows of tables, and their gradient. */
#include "cuda/q8.cuh"
#include "cuda/values.cuh"

enum { THREADS = 128, SPAN = 1024 /* ids that a block of the sort compares its own with */ };

/* A table whose rows lie `stride` values apart; scales: what each row is multiplied with, or NULL. */
template <typename Token> struct token_table {
    const Token *rows;
    const float *scales;
    int64_t stride;
};

/* y[m] = tokens[ids[m]] + positions[pos[m]]; a block a row */
template <int V, typename Token, typename Y>
static __global__ void gather(struct token_table<Token> tokens, const float *positions, const int32_t *ids, const int32_t *pos,
                              int64_t d, Y *y)
{
    int64_t m = blockIdx.x;
    const Token *token = tokens.rows + ids[m] * tokens.stride;
    const float scale = tokens.scales ? tokens.scales[ids[m]] : 1;
    const float *position = positions && pos[m] >= 0 ? positions + pos[m] * d : NULL;
    for (int64_t i = (int64_t)threadIdx.x * V; i < d; i += THREADS * V) {
        pack<V> sum = load<V>(token + i), offset = position ? load<V>(position + i) : zeros<V>();
#pragma unroll
        for (int k = 0; k < V; k++) sum.v[k] = __fmul_rn(sum.v[k], scale) + offset.v[k]; /* rounded twice, as on the CPU */
        store<V>(y + m * d + i, sum);
    }
}

template <typename Token>
static void gather_rows(struct backend *be, struct token_table<Token> tokens, const struct tensor *positions,
                        const struct tensor *ids, const struct tensor *pos, struct tensor *y)
{
    int64_t M = tensor_count(ids), d = tensor_cols(y);
    bool vectors = d % 8 == 0 && (uintptr_t)tokens.rows % 16 == 0 && aligned(positions) && aligned(y);
    by_type(y, [&](auto y_zero) {
        using Y = decltype(y_zero);
        by_width<8>(vectors, [&](auto w) {
            constexpr int V = decltype(w)::value;
            gather<V, Token, Y><<<(unsigned)M, THREADS, 0, cuda_of(be)->stream>>>(tokens, data_of<float>(positions), i32(ids),
                                                                                  data_of<int32_t>(pos), d, data_of<Y>(y));
        });
    });
}

aim_status cuda_embedding(struct backend *be, const struct tensor *tokens, const struct tensor *positions,
                          const struct tensor *ids, const struct tensor *pos, struct tensor *y)
{
    if (tokens->type == T_Q8_PACKED) {
        struct q8_matrix table = q8_matrix_of(tokens);
        gather_rows(be, token_table<int8_t>{table.numbers, table.scales, table.terms}, positions, ids, pos, y);
    } else {
        by_type(tokens, [&](auto zero) {
            using Token = decltype(zero);
            gather_rows(be, token_table<Token>{data_of<Token>(tokens), NULL, tensor_cols(tokens)}, positions, ids, pos, y);
        });
    }
    return cuda_launched(be, "embedding");
}

/* ----------------------------------------------------------------------------------------------------- backward
 *
 * Rows of dy that meet in one row of the table must add up in a fixed order: the numbers of the rows are sorted by their
 * ids, stably, and the block at the head of a run of equal ids adds up the run. A row's place in the order is the number
 * of those before it, counted by comparing all with all: a few ten thousand short comparisons a row. */

/* places[m] += the rows before m among SPAN of them; whole numbers, so the order of the additions is all one. */
static __global__ void count_before(const int32_t *ids, int64_t M, int32_t *places)
{
    __shared__ int32_t others[SPAN];
    int64_t m = (int64_t)blockIdx.x * THREADS + threadIdx.x, first = (int64_t)blockIdx.y * SPAN;
    int count = (int)(M - first < SPAN ? M - first : SPAN), before = 0;
    for (int k = threadIdx.x; k < count; k += THREADS) others[k] = ids[first + k];
    __syncthreads();
    if (m >= M) return;
    int32_t id = ids[m];
    int earlier = m - first < 0 ? 0 : m - first < count ? (int)(m - first) : count; /* of those, the ones in front of m */
#pragma unroll 8
    for (int k = 0; k < count; k++) before += others[k] < id || (others[k] == id && k < earlier);
    atomicAdd(&places[m], before);
}

static __global__ void put_in_order(const int32_t *ids, const int32_t *places, int64_t M, int32_t *sorted_ids,
                                    int32_t *sorted_rows)
{
    int64_t m = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (m >= M) return;
    sorted_ids[places[m]] = ids[m];
    sorted_rows[places[m]] = (int32_t)m;
}

/* Where the run of equal ids that begins at `first` ends. */
static __device__ inline int64_t run_end(const int32_t *ids, int64_t first, int64_t M)
{
    int64_t low = first + 1, high = M;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (ids[middle] == ids[first])
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* table[ids[k]] += Σ dy[rows[k]] over a run of equal ids; negative ids add nothing. Where rows are short the threads share the
 * run (a code of a tokenizer may have thousands of rows), each taking every so manieth row. */
template <int V, typename Y>
static __global__ void __launch_bounds__(THREADS)
    add_runs(const int32_t *ids, const int32_t *rows, const Y *dy, int64_t M, int64_t d, float *table)
{
    __shared__ alignas(16) float room[THREADS * V];
    const int places = (int)(d / V < THREADS ? d / V : THREADS), lanes = THREADS / places;
    const int place = (int)threadIdx.x % places, lane = (int)threadIdx.x / places;
    const int64_t first = blockIdx.x;
    const int32_t id = ids[first];
    if (id < 0 || (first > 0 && ids[first - 1] == id)) return;
    const int64_t end = run_end(ids, first, M);
    for (int64_t i = (int64_t)place * V; i < d; i += THREADS * V) { /* once, where lanes > 1 */
        pack<V> sum = zeros<V>();
#pragma unroll 4
        for (int64_t k = lane < lanes ? first + lane : end; k < end; k += lanes) {
            pack<V> up = load<V>(dy + rows[k] * d + i);
#pragma unroll
            for (int j = 0; j < V; j++) sum.v[j] += up.v[j];
        }
        if (lanes > 1) {
            store<V>(room + threadIdx.x * V, sum);
            __syncthreads();
        }
        if (lane > 0) continue;
        for (int other = 1; other < lanes; other++)
#pragma unroll
            for (int j = 0; j < V; j++) sum.v[j] += room[(other * places + place) * V + j];
        store_add<V>(table + id * d + i, sum);
    }
}

static aim_status add_by_id(struct backend *be, const struct tensor *ids, const struct tensor *dy, struct tensor *table)
{
    int64_t M = tensor_count(ids), d = tensor_cols(dy);
    unsigned blocks = (unsigned)divide_up(M, THREADS);
    cudaStream_t stream = cuda_of(be)->stream;
    int32_t *places = (int32_t *)cuda_scratch(be, 3 * (size_t)M * sizeof(int32_t));
    if (!places) return AIM_ERR_MEMORY;
    int32_t *sorted_ids = places + M, *sorted_rows = sorted_ids + M;
    CUDA_TRY(be, cudaMemsetAsync(places, 0, (size_t)M * sizeof(int32_t), stream));
    count_before<<<dim3(blocks, (unsigned)divide_up(M, SPAN)), THREADS, 0, stream>>>(i32(ids), M, places);
    put_in_order<<<blocks, THREADS, 0, stream>>>(i32(ids), places, M, sorted_ids, sorted_rows);
    by_type(dy, [&](auto zero) {
        using Y = decltype(zero);
        by_width<4>(d % 4 == 0 && aligned(dy) && aligned(table), [&](auto w) {
            constexpr int V = decltype(w)::value;
            add_runs<V, Y><<<(unsigned)M, THREADS, 0, stream>>>(sorted_ids, sorted_rows, data_of<Y>(dy), M, d, f32(table));
        });
    });
    return cuda_launched(be, "embedding_backward");
}

aim_status cuda_embedding_backward(struct backend *be, const struct tensor *ids, const struct tensor *pos,
                                   const struct tensor *dy, struct tensor *dtokens, struct tensor *dpositions)
{
    if (dtokens) TRY(add_by_id(be, ids, dy, dtokens));
    return dpositions ? add_by_id(be, pos, dy, dpositions) : AIM_OK;
}
