/*
 * A block computes TILE rows of w against all rows of x with mma.sync, both read through a ring of stages of STEP columns. A
 * stage's rows are 128 bytes; their 16-byte units are swapped by the row's number, so that ldmatrix finds eight rows in
 * different banks.
 */
#include "cuda/decode_rows.cuh"

#include "cuda/early.cuh"
#include "cuda/mma.cuh"

enum {
    TILE = 64,
    STEP = 64,
    UNITS = STEP / 8, /* of 16 bytes, in a stage's row */
    STAGES = 4,
    WARPS = 4,
    THREADS = 32 * WARPS,
    WARP_COLS = 32, /* rows of w of a warp: two warps side by side, two one below the other */
    BLOCKS = 140    /* wanted: one for each multiprocessor of a large GPU */
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
        bool wanted = first + row < rows && column < K;
        copy_start(place_in(stage, row, unit), wanted ? matrix + (int64_t)(first + row) * K + column : matrix, wanted);
    }
}

/* Adds the products of one stage: x (ROWS, STEP), w (TILE, STEP). */
template <int ROWS> static __device__ inline void multiply_stage(bf16 *x, bf16 *w, float (&sums)[ROWS / 32][WARP_COLS / 8][4])
{
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = warp / 2 * (ROWS / 2), col = warp % 2 * WARP_COLS;
#pragma unroll
    for (int unit = 0; unit < UNITS; unit += 2) {
        uint32_t a[ROWS / 32][4], b[WARP_COLS / 16][4];
#pragma unroll
        for (int i = 0; i < ROWS / 32; i++) load_matrices(a[i], place_in(x, row + 16 * i + lane % 16, unit + lane / 16));
#pragma unroll
        for (int j = 0; j < WARP_COLS / 16; j++)
            load_matrices(b[j], place_in(w, col + 16 * j + lane / 16 * 8 + lane % 8, unit + lane / 8 % 2));
#pragma unroll
        for (int i = 0; i < ROWS / 32; i++)
#pragma unroll
            for (int j = 0; j < WARP_COLS / 8; j++) mma(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
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

template <int ROWS> static __global__ void __launch_bounds__(THREADS) rows_kernel(const struct rows_product p)
{
    extern __shared__ __align__(128) bf16 stages[];
    enum { STAGE = (ROWS + TILE) * STEP };
    int steps = (p.K + STEP - 1) / STEP, from = steps * blockIdx.y / p.parts, count = steps * (blockIdx.y + 1) / p.parts - from;
    int n0 = blockIdx.x * TILE, k0 = from * STEP;
    float sums[ROWS / 32][WARP_COLS / 8][4] = {};
    for (int i = 0; i < STAGES - 1 && i < count; i++)
        fetch<TILE>(stages + i * STAGE + ROWS * STEP, p.w, n0, p.N, k0 + i * STEP, p.K);
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
            fetch<TILE>(filled + ROWS * STEP, p.w, n0, p.N, k0 + next * STEP, p.K);
        }
        copy_commit();
        multiply_stage<ROWS>(stage, stage + ROWS * STEP, sums);
    }
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, n = n0 + warp % 2 * WARP_COLS + lane % 4 * 2;
    float *y = p.y + (int64_t)blockIdx.y * p.R * p.N;
#pragma unroll
    for (int i = 0; i < ROWS / 32; i++)
#pragma unroll
        for (int j = 0; j < WARP_COLS / 8; j++) {
            int row = warp / 2 * (ROWS / 2) + 16 * i + lane / 4;
            const float *s = sums[i][j];
            if (row < p.R) put_two(y + (int64_t)row * p.N, n + 8 * j, p.N, s[0], s[1]);
            if (row + 8 < p.R) put_two(y + (int64_t)(row + 8) * p.N, n + 8 * j, p.N, s[2], s[3]);
        }
}

/* ---------------------------------------------------------------------------------------------------------- the host */

int rows_parts(int N, int K, int most)
{
    const int fewest = 3; /* steps worth a block of its own */
    int parts = BLOCKS / ((N + TILE - 1) / TILE), steps = (K + STEP - 1) / STEP;
    if (parts > steps / fewest) parts = steps / fewest;
    if (parts > most) parts = most;
    return parts > 1 ? parts : 1;
}

template <int ROWS> static aim_status multiply(struct backend *be, const struct rows_product *p, cudaStream_t stream)
{
    size_t bytes = (size_t)STAGES * (ROWS + TILE) * STEP * sizeof(bf16);
    dim3 grid((unsigned)((p->N + TILE - 1) / TILE), (unsigned)p->parts);
    CUDA_TRY(be, cudaFuncSetAttribute(rows_kernel<ROWS>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes));
    if (p->early) return launch_early(be, stream, rows_kernel<ROWS>, grid, THREADS, bytes, *p);
    rows_kernel<ROWS><<<grid, THREADS, bytes, stream>>>(*p);
    return cuda_launched(be, "linear_packed");
}

aim_status rows_multiply(struct backend *be, const struct rows_product *p, cudaStream_t stream)
{
    if (p->R <= 32) return multiply<32>(be, p, stream);
    return p->R <= 64 ? multiply<64>(be, p, stream) : multiply<ROWS_MOST>(be, p, stream);
}
