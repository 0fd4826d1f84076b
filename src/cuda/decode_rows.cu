/*
 * A block computes some rows of w against all rows of x with mma.sync, both read through a ring of stages of STEP columns. A
 * stage's rows are 128 bytes; their 16-byte units are swapped by the row's number, so that ldmatrix finds eight rows in
 * different banks.
 */
#include "cuda/decode_rows.cuh"

#include "cuda/early.cuh"
#include "cuda/mma.cuh"
#include "cuda/values.cuh"

enum {
    TILE = 64,
    LARGE_TILE = 80, /* for matrices whose blocks of the other would not run all at once */
    STEP = 64,
    UNITS = STEP / 8, /* of 16 bytes, in a stage's row */
    STAGES = 4,
    WARPS = 8,
    THREADS = 32 * WARPS,
    BLOCKS = 132 /* wanted at most: one for each multiprocessor of a large GPU */
};

/* How warps share a block's ROWS rows of x and COLS rows of w: DOWN of them one below the other, the others side by side. */
template <int ROWS, int COLS> struct warp_tile {
    enum {
        DOWN = ROWS >= 64 ? 4 : 2,
        HEIGHT = ROWS / DOWN,
        WIDTH = COLS * DOWN / WARPS,
        M = HEIGHT / 16, /* products of 16 by 8 by 16 */
        N = WIDTH / 8,
        PAIRS = (N + 1) / 2
    };
    static_assert(HEIGHT % 16 == 0 && WIDTH % 8 == 0, "whole products");
    static __device__ inline int row()
    {
        return threadIdx.x / 32 % DOWN * HEIGHT;
    }
    static __device__ inline int column()
    {
        return threadIdx.x / 32 / DOWN * WIDTH;
    }
};

static __device__ inline bf16 *place_in(bf16 *stage, int row, int unit)
{
    return stage + (row * UNITS + (unit ^ row % UNITS)) * 8;
}

/* Starts copying `count` rows of a matrix (rows, K), from row `first` and column k on; zeros beyond its ends. */
template <int COUNT> static __device__ inline void fetch(bf16 *stage, const bf16 *matrix, int first, int rows, int k, int K)
{
    int unit = threadIdx.x % UNITS, column = k + unit * 8;
#pragma unroll
    for (int i = 0; i < COUNT; i += THREADS / UNITS) {
        int row = i + threadIdx.x / UNITS;
        if (COUNT % (THREADS / UNITS) && row >= COUNT) break;
        bool wanted = first + row < rows && column < K;
        copy_start(place_in(stage, row, unit), wanted ? matrix + (int64_t)(first + row) * K + column : matrix, wanted);
    }
}

/* Adds the products of one stage: x (ROWS, STEP), w (COLS, STEP). */
template <typename WARP_TILE, int M, int N>
static __device__ inline void multiply_stage(bf16 *x, bf16 *w, float (&sums)[M][N][4])
{
    enum { PAIRS = WARP_TILE::PAIRS };
    const int lane = threadIdx.x % 32, row = WARP_TILE::row(), col = WARP_TILE::column();
#pragma unroll
    for (int unit = 0; unit < UNITS; unit += 2) {
        uint32_t a[M][4], b[PAIRS][4];
#pragma unroll
        for (int i = 0; i < M; i++) load_matrices(a[i], place_in(x, row + 16 * i + lane % 16, unit + lane / 16));
#pragma unroll
        for (int j = 0; j < PAIRS; j++) {
            int second = 2 * j + 1 < N ? lane / 16 * 8 : 0; /* without a neighbour, the same eight again */
            load_matrices(b[j], place_in(w, col + 16 * j + second + lane % 8, unit + lane / 8 % 2));
        }
#pragma unroll
        for (int i = 0; i < M; i++)
#pragma unroll
            for (int j = 0; j < N; j++) mma(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
    }
}

/* The two neighbours of a row of y. */
static __device__ inline void put_two(float *y, int n, int N, float first, float second)
{
    if (N % 2 == 0) {
        if (n < N) *(float2 *)(y + n) = make_float2(first, second);
    } else {
        if (n < N) y[n] = first;
        if (n + 1 < N) y[n + 1] = second;
    }
}

/* No more registers than leave room on a multiprocessor for two of the mixer's blocks (decode_graph.cu). */
template <int ROWS, int COLS> static __global__ void __launch_bounds__(THREADS + 64, 2) rows_kernel(const struct rows_product p)
{
    extern __shared__ __align__(128) bf16 stages[];
    enum { STAGE = (ROWS + COLS) * STEP };
    int steps = (p.K + STEP - 1) / STEP, from = steps * blockIdx.y / p.parts, count = steps * (blockIdx.y + 1) / p.parts - from;
    int n0 = blockIdx.x * COLS, k0 = from * STEP;
    using tile = warp_tile<ROWS, COLS>;
    float sums[tile::M][tile::N][4] = {};
    for (int i = 0; i < STAGES - 1 && i < count; i++)
        fetch<COLS>(stages + i * STAGE + ROWS * STEP, p.w, n0, p.N, k0 + i * STEP, p.K);
    wait_for_the_one_before();
    let_the_next_one_start();
    for (int i = 0; i < STAGES - 1; i++) {
        if (i < count) fetch<ROWS>(stages + i * STAGE, p.x, 0, p.R, k0 + i * STEP, p.K);
        copy_commit();
    }
    for (int i = 0; i < count; i++) {
        copy_wait<STAGES - 2>();
        __syncthreads(); /* stage i has arrived from all threads, and all have done with the one that is filled next */
        int next = i + STAGES - 1;
        bf16 *filled = stages + next % STAGES * STAGE, *stage = stages + i % STAGES * STAGE;
        if (next < count) {
            fetch<ROWS>(filled, p.x, 0, p.R, k0 + next * STEP, p.K);
            fetch<COLS>(filled + ROWS * STEP, p.w, n0, p.N, k0 + next * STEP, p.K);
        }
        copy_commit();
        multiply_stage<tile>(stage, stage + ROWS * STEP, sums);
    }
    int lane = threadIdx.x % 32, n = n0 + tile::column() + lane % 4 * 2;
    float *y = p.y + (int64_t)blockIdx.y * p.R * p.N;
#pragma unroll
    for (int i = 0; i < tile::M; i++)
#pragma unroll
        for (int j = 0; j < tile::N; j++) {
            int row = tile::row() + 16 * i + lane / 4;
            const float *s = sums[i][j];
            if (row < p.R) put_two(y + (int64_t)row * p.N, n + 8 * j, p.N, s[0], s[1]);
            if (row + 8 < p.R) put_two(y + (int64_t)(row + 8) * p.N, n + 8 * j, p.N, s[2], s[3]);
        }
}

/* ---------------------------------------------------------------------------------------------------------- the host */

static int tiles_of(int N, int tile)
{
    return (N + tile - 1) / tile;
}

static int parts_for(int tile, int N, int K, int most)
{
    const int fewest = 3; /* steps worth a block of its own */
    int parts = BLOCKS / tiles_of(N, tile), steps = (K + STEP - 1) / STEP;
    if (parts > steps / fewest) parts = steps / fewest;
    if (parts > most) parts = most;
    return parts > 1 ? parts : 1;
}

/* What a block multiplies, relatively. */
static int work_of(int tile, int parts, int K)
{
    int steps = (K + STEP - 1) / STEP;
    return (steps + parts - 1) / parts * tile;
}

int rows_parts(int N, int K, int most)
{
    int parts = parts_for(TILE, N, K, most), larger = parts_for(LARGE_TILE, N, K, most);
    return work_of(LARGE_TILE, larger, K) < work_of(TILE, parts, K) ? larger : parts;
}

template <int ROWS, int COLS> static aim_status multiply(struct backend *be, const struct rows_product *p, cudaStream_t stream)
{
    size_t bytes = (size_t)STAGES * (ROWS + COLS) * STEP * sizeof(bf16);
    dim3 grid((unsigned)tiles_of(p->N, COLS), (unsigned)p->parts);
    auto kernel = rows_kernel<ROWS, COLS>;
    CUDA_TRY(be, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes));
    if (p->early) return launch_early(be, stream, kernel, grid, THREADS, bytes, *p);
    kernel<<<grid, THREADS, bytes, stream>>>(*p);
    return cuda_launched(be, "linear_packed");
}

aim_status rows_multiply(struct backend *be, const struct rows_product *p, cudaStream_t stream)
{
    if (p->R <= 32) return multiply<32, TILE>(be, p, stream);
    if (p->R <= 64) return multiply<64, TILE>(be, p, stream);
    bool fits = tiles_of(p->N, TILE) * p->parts <= BLOCKS;
    return fits ? multiply<ROWS_MOST, TILE>(be, p, stream) : multiply<ROWS_MOST, LARGE_TILE>(be, p, stream);
}
