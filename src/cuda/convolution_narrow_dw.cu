/*
 * The gradient by the filters of narrow 3x3 convolutions (convolution_narrow.cu): dw[o][tap][i] = Σ over pixels of dy[pixel][o]
 * x[pixel + tap][i]. A warp has 32 channels of y, 32 of x and a column of taps, whose sums stay in its registers while it goes
 * down strips of 16 pixels: a row of x meets the three rows of dy around it. A picture's few channels are filled up to 16.
 * Blocks keep sums of their own, which are added up in their order; how many there are follows from the shape alone.
 */
#include "cuda/convolution_narrow.cuh"

enum { DW_THREADS = 384, SIDE = 32, PARTS = 132, SUM_COLUMNS = 32, SUM_LANES = 8 };

struct narrow_dw {
    const bf16 *x, *dy;
    int I, O;       /* channels in memory */
    float *partial; /* (block, strip; tap, O, I) */
    float *bias;    /* (block, strip; O); NULL: not wanted */
    struct tiling t;
};

/* Two ones in bfloat16. */
static constexpr uint32_t ones = 0x3f803f80u;

template <int I, int O> struct dw_shape {
    static constexpr int SIDE_I = I < SIDE ? I : SIDE, SIDE_O = O < SIDE ? O : SIDE; /* a warp's channels */
    static constexpr int STRIPS = 4 / (I / SIDE_I) / (O / SIDE_O), WIDTH = STRIPS * STRIP, PIXELS = WIDTH + 2;
    static constexpr int ROW_X = PIXELS * I, ROW_Y = WIDTH * O, IN_STEP = STEP * (ROW_X + ROW_Y);
    static constexpr size_t shared = RING * IN_STEP * sizeof(bf16);
};

/* A row of x meets every BY-th row of taps from FIRST on; j: its number beyond a multiple of STEP. */
template <int FIRST, int BY, int M, int T>
static __device__ inline void meet(const uint32_t (&a)[STEP][M][4], const uint32_t (&b)[T / 2][4], int j,
                                   float (&sums)[STEP][M][T][4])
{
#pragma unroll
    for (int ty = FIRST; ty < STEP; ty += BY)
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int t = 0; t < T; t++)
                mma(sums[ty][m][t], a[(j - ty + STEP) % STEP][m], b[t / 2][t % 2 * 2], b[t / 2][t % 2 * 2 + 1]);
}

/* How x and dy are read. */
template <int I, int O, int READ_X, int READ_Y>
static __global__ void __launch_bounds__(DW_THREADS) narrow_weights(struct narrow_dw n)
{
    using S = dw_shape<I, O>;
    constexpr int M = S::SIDE_O / 16, T = S::SIDE_I / 8; /* tiles of a warp */
    extern __shared__ __align__(128) bf16 ring[];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, tx = warp % STEP, strip = warp / STEP % S::STRIPS;
    const int block = warp / STEP / S::STRIPS, i0 = block % (I / S::SIDE_I) * SIDE, o0 = block / (I / S::SIDE_I) * SIDE;
    const bool biased = n.bias && tx == 0 && i0 == 0;
    const int64_t x_size = pixels_of<READ_X>(n.t) * n.I, y_size = pixels_of<READ_Y>(n.t) * n.O;
    struct walk now = {blockIdx.x, 0, 0}, ahead = now;
    auto start = [&]() {
        if (ahead.number < n.t.count) {
            struct tile p = tile_of(n.t, ahead.number);
            bf16 *to = ring + ahead.place * S::IN_STEP;
            int y = p.y + (int)ahead.step * STEP, end = p.y + n.t.rows < n.t.H ? p.y + n.t.rows : n.t.H; /* of the tile's dy */
            const bf16 *x = n.x + p.picture * x_size, *dy = n.dy + p.picture * y_size;
            if constexpr (READ_X == THIN)
                start_thin<S::PIXELS, DW_THREADS>(x, n.I, n.t.H, n.t.W, y - 1, p.x * S::WIDTH - 1, to);
            else
                start_rows<I, S::PIXELS, READ_X, DW_THREADS>(x, n.t.H, n.t.W, y - 1, p.x * S::WIDTH - 1, to);
            if constexpr (READ_Y == THIN)
                start_thin<S::WIDTH, DW_THREADS>(dy, n.O, end, n.t.W, y, p.x * S::WIDTH, to + STEP * S::ROW_X);
            else
                start_rows<O, S::WIDTH, READ_Y, DW_THREADS>(dy, end, n.t.W, y, p.x * S::WIDTH, to + STEP * S::ROW_X);
        }
        copy_commit();
        walk_on(n.t, &ahead);
    };
    for (int step = 0; step < RING; step++) {
        if constexpr (READ_X == THIN) clear_thin<S::PIXELS, DW_THREADS>(ring + step * S::IN_STEP, STEP);
        if constexpr (READ_Y == THIN) clear_thin<S::WIDTH, DW_THREADS>(ring + step * S::IN_STEP + STEP * S::ROW_X, STEP);
    }
    start();
    start();

    float sums[STEP][M][T][4] = {}, bias[M][4] = {}; /* sums: by the tap's row, 16 channels of y, 8 of x */
    uint32_t a[STEP][M][4] = {};                     /* of the last rows of dy, by their number % 3 */
    /* a lane's rows of load_matrices_transposed */
    const int x_pixel = strip * STRIP + tx + lane % 16, x_part = i0 / 8 + lane / 16;
    const int y_pixel = strip * STRIP + lane / 16 * 8 + lane % 8, y_part = o0 / 8 + lane / 8 % 2;
    const int from_x = place_in_row<I>(x_pixel, x_part), from_y = place_in_row<O>(y_pixel, y_part);

    for (; now.number < n.t.count; walk_on(n.t, &now)) {
        copy_wait<1>();
        __syncthreads();
        start();
        if (now.step == 0) { /* a new tile: no rows above it */
#pragma unroll
            for (int i = 0; i < 2 * M * 4; i++) a[1 + i / M / 4][i / 4 % M][i % 4] = 0;
        }
        const bf16 *step_x = ring + now.place * S::IN_STEP, *step_y = step_x + STEP * S::ROW_X;
#pragma unroll
        for (int j = 0; j < STEP; j++) {
            uint32_t b[T / 2][4];
#pragma unroll
            for (int m = 0; m < M; m++) load_matrices_transposed(a[j][m], step_y + j * S::ROW_Y + (from_y ^ m * 16));
#pragma unroll
            for (int t = 0; t < T / 2; t++) load_matrices_transposed(b[t], step_x + j * S::ROW_X + (from_x ^ t * 16));
            if (READ_Y != APART)
                meet<0, 1, M, T>(a, b, j, sums);
            else if ((now.step + j) % 2 == 0) /* rows of dy with even numbers are zero */
                meet<1, 2, M, T>(a, b, j, sums);
            else
                meet<0, 2, M, T>(a, b, j, sums);
            if (biased)
#pragma unroll
                for (int m = 0; m < M; m++) mma(bias[m], a[j][m], ones, ones);
        }
    }
    copy_wait<0>();

    const int64_t part = blockIdx.x * (int64_t)S::STRIPS + strip;
    const int row = o0 + lane / 4, column = i0 + lane % 4 * 2;
#pragma unroll
    for (int ty = 0; ty < STEP; ty++)
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int e = 0; e < 2 * T; e++) { /* tile of 8 channels of x, upper or lower half of the channels of y */
                int t = e / 2, half = e % 2, o = row + m * 16 + half * 8;
                float *to = n.partial + ((part * TAPS + ty * STEP + tx) * O + o) * I + column + t * 8;
                *reinterpret_cast<float2 *>(to) = make_float2(sums[ty][m][t][half * 2], sums[ty][m][t][half * 2 + 1]);
            }
    if (biased && lane % 4 == 0)
#pragma unroll
        for (int e = 0; e < 2 * M; e++) n.bias[part * O + row + e * 8] = bias[e / 2][e % 2 * 2];
}

/* dw (real_O, real_I, 3, 3) += Σ partial (part; tap, O, I) */
static __global__ void __launch_bounds__(SUM_COLUMNS *SUM_LANES)
    add_narrow_parts(const float *partial, int parts, int O, int I, int real_O, int real_I, float *dw)
{
    __shared__ float lanes[SUM_LANES][SUM_COLUMNS];
    int at = (int)blockIdx.x * SUM_COLUMNS + (int)threadIdx.x, count = TAPS * O * I; /* whole blocks */
    float sum = 0;
#pragma unroll 8
    for (int p = threadIdx.y; p < parts; p += SUM_LANES) sum += partial[(int64_t)p * count + at];
    lanes[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y > 0) return;
    for (int lane = 1; lane < SUM_LANES; lane++) sum += lanes[lane][threadIdx.x];
    int i = at % I, o = at / I % O, tap = at / I / O;
    if (o < real_O && i < real_I) dw[(o * real_I + i) * TAPS + tap] += sum;
}

/* H x W: of the larger side */
template <int I, int O, int READ_X, int READ_Y>
static aim_status launch(struct backend *be, int64_t H, int64_t W, const struct tensor *x, const struct tensor *dy,
                         struct tensor *dw, struct tensor *dbias)
{
    using S = dw_shape<I, O>;
    auto kernel = narrow_weights<I, O, READ_X, READ_Y>;
    struct narrow_dw n = {};
    n.x = data_of<bf16>(x), n.dy = data_of<bf16>(dy), n.I = (int)tensor_cols(x), n.O = (int)tensor_cols(dy);
    n.t = tiling_of(dy->shape[0], H, W, S::WIDTH);
    int64_t blocks = min64((int64_t)n.t.count, PARTS), parts = blocks * S::STRIPS;
    struct pieces room = {};
    size_t sums = piece(&room, (size_t)(parts * TAPS * O * I) * sizeof(float));
    size_t of_bias = piece(&room, (size_t)(parts * O) * sizeof(float));
    char *scratch = (char *)cuda_scratch(be, room.total);
    if (!scratch) return AIM_ERR_MEMORY;
    n.partial = (float *)(scratch + sums), n.bias = dbias ? (float *)(scratch + of_bias) : NULL;
    TRY(allow_shared(be, kernel, S::shared));
    cudaStream_t stream = cuda_of(be)->stream;
    kernel<<<(unsigned)blocks, DW_THREADS, S::shared, stream>>>(n);
    add_narrow_parts<<<TAPS * O * I / SUM_COLUMNS, dim3(SUM_COLUMNS, SUM_LANES), 0, stream>>>(n.partial, (int)parts, O, I, n.O,
                                                                                              n.I, f32(dw));
    TRY(cuda_launched(be, "conv2d_backward"));
    return dbias ? cuda_sum_rows(be, n.bias, 1, parts, n.O, O, f32(dbias), 0) : AIM_OK;
}

template <int I, int O>
static aim_status launch_how(struct backend *be, const struct tensor *x, const struct conv2d *how, const struct tensor *dy,
                             struct tensor *dw, struct tensor *dbias)
{
    if (how->stride == 2) return launch<I, O, PLAIN, APART>(be, x->shape[1], x->shape[2], x, dy, dw, dbias);
    if (how->upsample) return launch<I, O, ENLARGED, PLAIN>(be, dy->shape[1], dy->shape[2], x, dy, dw, dbias);
    return launch<I, O, PLAIN, PLAIN>(be, dy->shape[1], dy->shape[2], x, dy, dw, dbias);
}

bool conv_narrow_serves_weights(const struct tensor *x, const struct tensor *dy, int64_t kernel, const struct conv2d *how)
{
    bool thin = x->shape[3] == SIDE && dy->shape[3] <= THIN_CHANNELS && how->stride == 1 && !how->upsample;
    return conv_narrow_serves(x, dy, kernel, how) && (dy->shape[3] >= SIDE || thin);
}

aim_status conv_narrow_weights(struct backend *be, const struct tensor *x, const struct conv2d *how, const struct tensor *dy,
                               struct tensor *dw, struct tensor *dbias)
{
    const int64_t H = dy->shape[1], W = dy->shape[2];
    if (dy->shape[3] <= THIN_CHANNELS) return launch<SIDE, THIN_FILLED, PLAIN, THIN>(be, H, W, x, dy, dw, dbias);
    if (x->shape[3] <= THIN_CHANNELS && dy->shape[3] == SIDE)
        return launch<THIN_FILLED, SIDE, THIN, PLAIN>(be, H, W, x, dy, dw, dbias);
    if (x->shape[3] <= THIN_CHANNELS) return launch<THIN_FILLED, 2 * SIDE, THIN, PLAIN>(be, H, W, x, dy, dw, dbias);
    bool wide_x = x->shape[3] == 2 * SIDE, wide_y = dy->shape[3] == 2 * SIDE;
    if (wide_x && wide_y) return launch_how<2 * SIDE, 2 * SIDE>(be, x, how, dy, dw, dbias);
    if (wide_x) return launch_how<2 * SIDE, SIDE>(be, x, how, dy, dw, dbias);
    if (wide_y) return launch_how<SIDE, 2 * SIDE>(be, x, how, dy, dw, dbias);
    return launch_how<SIDE, SIDE>(be, x, how, dy, dw, dbias);
}
