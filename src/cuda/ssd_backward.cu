/*
 * Backward of ssd (ssd_backward.cuh): steps and decays again, pairs, ddA, then the products that give dB and dC. Here are the
 * kernels that go through pairs of tiles one by one, du first, and those for any type and alignment; heads are dealt out in
 * groups.
 */
#include "cuda/ssd_backward.cuh"

#include "cuda/dense.cuh"

/* ------------------------------------------------------------------------------------------- du: x, and its sums */

/* du by tiles; then dx += Δ du + D dY, and each position's du·x and dY·x. */
static __global__ void __launch_bounds__(TILE_THREADS, 4)
    du_tiles(struct backward a, const bf16 *xbc, const bf16 *dy, bf16 *dxbc)
{
    __shared__ struct ssd_mixing mixing;
    __shared__ alignas(16) bf16 x_tile[TILE][TILE_LD];
    const struct ssd_shape &n = a.n;
    int64_t tile = blockIdx.x, h = blockIdx.y, b = blockIdx.z, number = b * n.H + h, head = number * n.padded;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4;
    float acc[8][4], D = a.D[h];
    struct ssd_head of = {ssd_steps_of(a.steps, number, n.padded),
                          (const bf16 *)a.again + b * n.padded * n.padded,
                          dy + b * n.T * n.E + h * HEADDIM,
                          n.E,
                          (int)n.T,
                          (int)n.padded};
    ssd_tile_start(x_tile, xbc + (b * n.T + tile * TILE) * n.C + h * HEADDIM, n.C, n.T - tile * TILE);
    int last = ssd_mix<true>(of, (int)tile, mixing, acc);
    const bf16(*up)[TILE_LD] = mixing.stages[last].values;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        int row = warp * 16 + r * 8 + g;
        int64_t s = tile * TILE + row;
        bool wanted = dxbc && s < n.T;
        uint32_t *to = reinterpret_cast<uint32_t *>(dxbc + (b * n.T + s) * n.C + h * HEADDIM + q * 2), dx[8];
        float delta = mixing.delta[row], along = 0, dD = 0;
#pragma unroll
        for (int k = 0; k < 8; k++) dx[k] = wanted && !a.dx_fresh ? to[k * 4] : 0;
#pragma unroll
        for (int k = 0; k < 8; k++) {
            float2 x = floats_of(*reinterpret_cast<const uint32_t *>(&x_tile[row][k * 8 + q * 2]));
            float2 dY = floats_of(*reinterpret_cast<const uint32_t *>(&up[row][k * 8 + q * 2]));
            float2 before = floats_of(dx[k]);
            float du0 = acc[k][2 * r], du1 = acc[k][2 * r + 1];
            along += du0 * x.x + du1 * x.y;
            dD += dY.x * x.x + dY.y * x.y;
            dx[k] = pair_of(before.x + delta * du0 + D * dY.x, before.y + delta * du1 + D * dY.y);
        }
#pragma unroll
        for (int k = 0; k < 8; k++)
            if (wanted) to[k * 4] = dx[k];
#pragma unroll
        for (int gap = 1; gap < 4; gap *= 2) {
            along += __shfl_xor_sync(0xffffffffu, along, gap);
            dD += __shfl_xor_sync(0xffffffffu, dD, gap);
        }
        if (q == 0) {
            a.along[head + s] = s < n.T ? along : 0.0f;
            a.dD[head + s] = dD;
        }
    }
}

template <typename T> static __global__ void du_rows(struct backward a, const T *xbc, const T *dy, T *dxbc)
{
    __shared__ float shared[SSD_CHUNK], sums_shared[2][WARP];
    const struct ssd_shape &n = a.n;
    int64_t s = blockIdx.x, h = blockIdx.y, b = blockIdx.z, head = (b * n.H + h) * n.padded, p = threadIdx.x;
    const T *up = dy + b * n.T * n.E + h * HEADDIM;
    float du = ssd_mix_row<true>((const float *)a.again + b * n.padded * n.padded, a.steps.cs + head, a.steps.delta + head, up,
                                 n.E, n.T, n.padded, s, shared);
    int64_t at = (b * n.T + s) * n.C + h * HEADDIM + p;
    float x = value(xbc[at]), dY = value(up[s * n.E + p]), sums[2] = {du * x, dY * x};
    if (dxbc) put(dxbc + at, (a.dx_fresh ? 0.0f : value(dxbc[at])) + a.steps.delta[head + s] * du + a.D[h] * dY);
    block_sum(sums, sums_shared);
    if (p == 0) {
        a.along[head + s] = sums[0];
        a.dD[head + s] = sums[1];
    }
}

/* ------------------------------------------------------------------------------------------------ pairs by tiles */

/* dY of tile i and x of tile j of a head, with the decays of their rows; or, of the diagonal, Δ and cs. */
struct alignas(16) pair_stage {
    bf16 up[TILE][TILE_LD], x[TILE][TILE_LD];
    float lead[TILE], weight[TILE]; /* of tile i; of tile j, or Δ */
    float2 cs[TILE];
};

template <bool DIAGONAL>
static __device__ inline void pair_start(const struct backward &a, const bf16 *xbc, const bf16 *dy, int64_t b, int64_t h,
                                         int64_t i, int64_t j, struct pair_stage &stage)
{
    const struct ssd_shape &n = a.n;
    int64_t l = (b * n.H + h) * n.padded + i * TILE, s = (b * n.H + h) * n.padded + j * TILE;
    ssd_tile_start(stage.up, dy + (b * n.T + i * TILE) * n.E + h * HEADDIM, n.E, n.T - i * TILE);
    ssd_tile_start(stage.x, xbc + (b * n.T + j * TILE) * n.C + h * HEADDIM, n.C, n.T - j * TILE);
    ssd_line_start(stage.weight, (DIAGONAL ? a.steps.delta : a.steps.weight) + s, 0);
    if (DIAGONAL)
        ssd_line_start(stage.cs, a.steps.cs + l, 32);
    else
        ssd_line_start(stage.lead, a.steps.lead + l, 32);
    copy_commit();
}

/* Sums of the warps' columns. */
static __device__ inline void column_sums(float (&columns)[16], float (*shared)[TILE], float *out)
{
    warp_columns(columns, shared[threadIdx.x / WARP]);
    __syncthreads();
    if (threadIdx.x < TILE)
        out[threadIdx.x] = shared[0][threadIdx.x] + shared[1][threadIdx.x] + shared[2][threadIdx.x] + shared[3][threadIdx.x];
}

/* A tile of pairs of a picture, for heads h .. last-1; out: its place in dCB's sums. */
template <bool DIAGONAL>
static __device__ inline void pair_tile(const struct backward &a, const bf16 *xbc, const bf16 *dy, int64_t b, int64_t h,
                                        int64_t last, int64_t i, int64_t j, struct pair_stage *stages, float (*sums)[TILE],
                                        float *out)
{
    const struct ssd_shape &n = a.n;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4, row = warp * 16 + g;
    int64_t l = i * TILE + row, s = j * TILE + q * 2;
    float cb[8][4], gathered[8][4];
#pragma unroll
    for (int k = 0; k < 8; k++)
#pragma unroll
        for (int c = 0; c < 4; c++) {
            int64_t at_l = l + c / 2 * 8, at_s = s + k * 8 + c % 2;
            bool exists = at_s <= at_l && at_l < n.T;
            cb[k][c] = exists ? a.products[(b * n.padded + at_l) * n.padded + at_s] : 0.0f;
            gathered[k][c] = 0;
        }
    if (h < last) pair_start<DIAGONAL>(a, xbc, dy, b, h, i, j, stages[0]);
    for (int turn = 0; h < last; h++, turn ^= 1) {
        const struct pair_stage &stage = stages[turn];
        int64_t head = b * n.H + h, at = head * n.tiles;
        float gap = DIAGONAL ? 1.0f : ssd_decay_between(a.steps.cs + head * n.padded, i, j);
        __syncthreads(); /* the other stage, and the sums, have been read */
        if (h + 1 < last) {
            pair_start<DIAGONAL>(a, xbc, dy, b, h + 1, i, j, stages[turn ^ 1]);
            copy_wait<1>();
        } else {
            copy_wait<0>();
        }
        __syncthreads();
        float w[8][4], columns[16], row_sums[2] = {0, 0};
        pair_dots(stage.up, stage.x, w);
        const float lead[2] = {DIAGONAL ? 1.0f : stage.lead[row] * gap, DIAGONAL ? 1.0f : stage.lead[row + 8] * gap};
#pragma unroll
        for (int k = 0; k < 8; k++) {
            float2 weight = *reinterpret_cast<const float2 *>(&stage.weight[k * 8 + q * 2]);
#pragma unroll
            for (int c = 0; c < 4; c++) {
                float along = w[k][c] * (c % 2 ? weight.y : weight.x);
                if (DIAGONAL) {
                    int at_l = row + c / 2 * 8, at_s = k * 8 + q * 2 + c % 2;
                    along = at_s <= at_l ? along * ssd_decay(stage.cs[at_l], stage.cs[at_s]) : 0.0f;
                    gathered[k][c] += along;
                } else {
                    gathered[k][c] += along * lead[c / 2];
                }
                w[k][c] = along * cb[k][c]; /* W, but for the rows' part of the decay */
                row_sums[c / 2] += w[k][c];
            }
            columns[2 * k] = w[k][0] * lead[0] + w[k][2] * lead[1];
            columns[2 * k + 1] = w[k][1] * lead[0] + w[k][3] * lead[1];
        }
        if (DIAGONAL) {
            crossing_sums(w, row, columns);
        } else {
#pragma unroll
            for (int r = 0; r < 2; r++) {
                row_sums[r] += __shfl_xor_sync(0xffffffffu, row_sums[r], 1);
                row_sums[r] += __shfl_xor_sync(0xffffffffu, row_sums[r], 2);
                if (q == 0) a.rows[(at + j) * n.padded + l + r * 8] = row_sums[r] * lead[r];
            }
        }
        column_sums(columns, sums, a.columns + (at + i) * n.padded + j * TILE);
    }
#pragma unroll
    for (int k = 0; k < 8; k++)
#pragma unroll
        for (int r = 0; r < 2; r++)
            *reinterpret_cast<float2 *>(out + (l + r * 8) * n.padded + s + k * 8) =
                make_float2(gathered[k][2 * r], gathered[k][2 * r + 1]);
}

/* A block takes a tile of pairs of a picture, for a group of heads. */
static __global__ void __launch_bounds__(TILE_THREADS, 3) pair_tiles(struct backward a, const bf16 *xbc, const bf16 *dy)
{
    __shared__ struct pair_stage stages[2];
    __shared__ float sums[TILE_THREADS / WARP][TILE];
    const struct ssd_shape &n = a.n;
    int64_t i = 0, j = blockIdx.x, b = blockIdx.z, first = blockIdx.y * a.per_group;
    int64_t last = first + a.per_group < n.H ? first + a.per_group : n.H;
    for (; j > i; i++) j -= i + 1; /* row i of the triangle has i + 1 tiles */
    float *out = a.pairs + (blockIdx.y * n.B + b) * n.padded * n.padded;
    if (i == j)
        pair_tile<true>(a, xbc, dy, b, first, last, i, j, stages, sums, out);
    else
        pair_tile<false>(a, xbc, dy, b, first, last, i, j, stages, sums, out);
}

/* dCB from the groups' sums, zeros for s > l; a block takes a row. */
static __global__ void gather_pairs(struct backward a, bf16 *dproducts)
{
    const struct ssd_shape &n = a.n;
    int64_t row = blockIdx.x, b = blockIdx.y;
    for (int64_t column = (int64_t)threadIdx.x * 2; column < n.padded; column += blockDim.x * 2) {
        bool first = a.summed ? column >= row : column <= row, second = a.summed ? column + 1 >= row : column + 1 <= row;
        float2 sum = make_float2(0, 0);
        for (int64_t group = 0; group < a.groups && (first || second); group++) {
            const float *from = a.pairs + ((group * n.B + b) * n.padded + row) * n.padded + column;
            sum.x += from[0], sum.y += from[1];
        }
        *reinterpret_cast<uint32_t *>(dproducts + (b * n.padded + row) * n.padded + column) =
            pair_of(first ? sum.x : 0.0f, second ? sum.y : 0.0f);
    }
}

/* -------------------------------------------------------------------------------------- pairs of any type, row by row */

template <typename T> static __device__ inline float dot_head(const float *up, const T *x)
{
    float sum = 0;
#pragma unroll 8
    for (int p = 0; p < HEADDIM; p++) sum += up[p] * value(x[p]);
    return sum;
}

/* dCB of row l: a thread takes every 128th s. */
template <typename T> static __global__ void pair_rows(struct backward a, const T *xbc, const T *dy, T *dproducts)
{
    __shared__ float up[HEADDIM];
    const struct ssd_shape &n = a.n;
    int64_t l = blockIdx.x, b = blockIdx.y;
    for (int64_t first = 0; first < n.padded; first += blockDim.x) {
        int64_t s = first + threadIdx.x;
        float sum = 0;
        for (int64_t h = 0; h < n.H && first <= l; h++) {
            int64_t head = (b * n.H + h) * n.padded;
            __syncthreads();
            if (threadIdx.x < HEADDIM) up[threadIdx.x] = value(dy[(b * n.T + l) * n.E + h * HEADDIM + threadIdx.x]);
            __syncthreads();
            if (s > l) continue;
            float along = dot_head(up, xbc + (b * n.T + s) * n.C + h * HEADDIM) * a.steps.delta[head + s];
            sum += along * ssd_decay(a.steps.cs[head + l], a.steps.cs[head + s]);
        }
        if (s < n.padded) put(dproducts + (b * n.padded + l) * n.padded + s, sum);
    }
}

/* ddA of a head of a picture: for each l in turn, Σ_{s<t} W_ls is added to ddA_t for t <= l. 128 threads. */
template <typename T> static __global__ void cross_rows(struct backward a, const T *xbc, const T *dy)
{
    __shared__ float up[HEADDIM], warps[TILE_THREADS / WARP];
    const struct ssd_shape &n = a.n;
    int64_t h = blockIdx.x, b = blockIdx.y, head = (b * n.H + h) * n.padded;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    for (int64_t t = threadIdx.x; t < n.padded; t += TILE_THREADS) a.ddA[head + t] = 0;
    for (int64_t l = 0; l < n.T; l++) {
        float before = 0; /* of this row, left of `first` */
        __syncthreads();
        if (threadIdx.x < HEADDIM) up[threadIdx.x] = value(dy[(b * n.T + l) * n.E + h * HEADDIM + threadIdx.x]);
        __syncthreads();
        for (int64_t first = 0; first <= l; first += TILE_THREADS) {
            int64_t s = first + threadIdx.x;
            float w = 0;
            if (s <= l)
                w = dot_head(up, xbc + (b * n.T + s) * n.C + h * HEADDIM) * a.steps.delta[head + s] *
                    ssd_decay(a.steps.cs[head + l], a.steps.cs[head + s]) * a.products[(b * n.padded + l) * n.padded + s];
            float sum = w;
#pragma unroll
            for (int gap = 1; gap < WARP; gap *= 2) {
                float lower = __shfl_up_sync(0xffffffffu, sum, gap);
                if (lane >= gap) sum += lower;
            }
            __syncthreads();
            if (lane == WARP - 1) warps[warp] = sum;
            float left = __shfl_up_sync(0xffffffffu, sum, 1);
            __syncthreads();
            float base = before;
            for (int k = 0; k < TILE_THREADS / WARP; k++) {
                if (k < warp) base += warps[k];
                before += warps[k];
            }
            if (s <= l) a.ddA[head + s] += base + (lane > 0 ? left : 0.0f);
        }
    }
}

/* ----------------------------------------------------------------------------------------- dt and the parameters */

/* dΔ = du·x + ddA A; returns ddt = dΔ σ(dt + bias), A < 0; adds to the head's sums. */
static __device__ inline float step_gradient(float dt, float bias, float minus_A, float delta, float along, float dD, float ddA,
                                             float (&sums)[3])
{
    float raw = dt + bias, slope = raw > 20.0f ? 1.0f : 1.0f / (1.0f + expf(-raw)), ddt = (along - ddA * minus_A) * slope;
    sums[0] += ddA * delta;
    sums[1] += ddt;
    sums[2] += dD;
    return ddt;
}

template <typename T>
static __device__ inline void finish_step(const struct backward &a, const T *zxbcdt, T *dzxbcdt, int64_t t, float ddA,
                                          float (&sums)[3])
{
    const struct ssd_shape &n = a.n;
    int64_t h = blockIdx.x, b = blockIdx.y, head = (b * n.H + h) * n.padded, at = (b * n.T + t) * n.W + n.W - n.H + h;
    float ddt = step_gradient(value(zxbcdt[at]), a.dt_bias[h], expf(a.A_log[h]), a.steps.delta[head + t], a.along[head + t],
                              a.dD[head + t], ddA, sums);
    if (dzxbcdt) put(dzxbcdt + at, (a.dt_fresh ? 0.0f : value(dzxbcdt[at])) + ddt);
}

/* A head's sums to where those over pictures are made. */
static __device__ inline void write_head(const struct backward &a, int64_t b, int64_t h, const float (&sums)[3])
{
    float *to = a.parameters + b * 3 * a.n.H + h;
    to[0] = -expf(a.A_log[h]) * sums[0];
    to[a.n.H] = sums[1];
    to[2 * a.n.H] = sums[2];
}

static __device__ inline void finish_head(const struct backward &a, float (&sums)[3], float (&shared)[3][WARP])
{
    block_sum(sums, shared);
    if (threadIdx.x == 0) write_head(a, blockIdx.y, blockIdx.x, sums);
}

/* A block takes a head of a picture. */
template <typename T> static __global__ void finish_steps(struct backward a, const T *zxbcdt, T *dzxbcdt)
{
    __shared__ float shared[3][WARP];
    int64_t head = (blockIdx.y * a.n.H + blockIdx.x) * a.n.padded;
    float sums[3] = {0, 0, 0};
    for (int64_t t = threadIdx.x; t < a.n.T; t += blockDim.x) finish_step<T>(a, zxbcdt, dzxbcdt, t, a.ddA[head + t], sums);
    finish_head(a, sums, shared);
}

/* The sum of x over the lanes up to this one; see sum_from. */
static __device__ inline float sum_to(float x)
{
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int gap = 1; gap < WARP; gap *= 2) {
        float lower = __shfl_up_sync(0xffffffffu, x, gap);
        if (lane >= gap) x += lower;
    }
    return x;
}

/* The same with ddA from the sums of tiles: a warp takes a tile of positions, a lane two neighbours. */
template <typename T>
static __global__ void __launch_bounds__(TILE_THREADS) cross_sums(struct backward a, const T *zxbcdt, T *dzxbcdt)
{
    __shared__ float shared[3][WARP];
    const struct ssd_shape &n = a.n;
    int64_t head = (int64_t)blockIdx.y * n.H + blockIdx.x, lane = threadIdx.x % WARP;
    const float *rows = a.rows + head * n.tiles * n.padded, *columns = a.columns + head * n.tiles * n.padded;
    float sums[3] = {0, 0, 0};
    for (int64_t tile = threadIdx.x / WARP; tile < n.tiles; tile += TILE_THREADS / WARP) {
        int64_t t = tile * TILE + lane * 2;
        float2 inner = *reinterpret_cast<const float2 *>(columns + tile * n.padded + t); /* pairs inside the tile */
        float2 later = make_float2(0, 0), earlier = make_float2(0, 0); /* row l = t before the tile; column s = t after it */
        float across = 0;                                              /* from before to after */
        for (int64_t j = 0; j < tile; j++) {
            float2 row = *reinterpret_cast<const float2 *>(rows + j * n.padded + t);
            later.x += row.x, later.y += row.y;
        }
        for (int64_t i = tile + 1; i < n.tiles; i++) {
            float2 column = *reinterpret_cast<const float2 *>(columns + i * n.padded + t);
            earlier.x += column.x, earlier.y += column.y;
        }
        for (int64_t i = tile + 1; i < n.tiles; i++)
            for (int64_t j = 0; j < tile; j++) {
                float2 both = *reinterpret_cast<const float2 *>(rows + j * n.padded + i * TILE + lane * 2);
                across += both.x + both.y;
            }
        across = warp_sum(across);
        float from = sum_from(later.x + later.y), to = sum_to(earlier.x + earlier.y);
        float above = __shfl_down_sync(0xffffffffu, from, 1), below = __shfl_up_sync(0xffffffffu, to, 1);
        if (lane == WARP - 1) above = 0;
        if (lane == 0) below = 0;
        float first = inner.x + across + from + below, second = inner.y + across + (later.y + above) + (below + earlier.x);
        if (t < n.T) finish_step<T>(a, zxbcdt, dzxbcdt, t, first, sums);
        if (t + 1 < n.T) finish_step<T>(a, zxbcdt, dzxbcdt, t + 1, second, sums);
    }
    finish_head(a, sums, shared);
}

enum { SUMS_HEADS = 8, SUMS_LD = SUMS_HEADS + 1, SUMS_THREADS = SUMS_HEADS * WARP };

/*
 * The same after ssd_columns: a warp takes a head, a lane two neighbours of each tile. Heads that stand side by side in memory
 * share a block: dt and ddt pass through shared memory, so that both are read and written in whole rows of them.
 */
template <typename T>
static __global__ void __launch_bounds__(SUMS_THREADS) column_sums(struct backward a, const T *zxbcdt, T *dzxbcdt)
{
    __shared__ float dt[COLUMN_TILES * TILE][SUMS_LD];
    const struct ssd_shape &n = a.n;
    int first = blockIdx.x * SUMS_HEADS, b = blockIdx.y, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, h = first + warp;
    int column = threadIdx.x % SUMS_HEADS, row = threadIdx.x / SUMS_HEADS, tiles = (int)n.tiles;
    int64_t place = (b * n.T + row) * n.W + n.W - n.H + first + column, step = SUMS_THREADS / SUMS_HEADS;
#pragma unroll
    for (int k = 0; k < COLUMN_TILES * TILE / (SUMS_THREADS / SUMS_HEADS); k++) {
        bool exists = row + k * step < n.T && first + column < n.H;
        dt[row + k * step][column] = exists ? value(zxbcdt[place + k * step * n.W]) : 0.0f;
    }
    __syncthreads();
    if (h < n.H) {
        int64_t head = (b * n.H + h) * n.padded, at = head * n.tiles;
        const float2 none = make_float2(0, 0);
        float2 rows[COLUMN_TILES][COLUMN_TILES];
        float sums[3] = {0, 0, 0}, minus_A = expf(a.A_log[h]), bias = a.dt_bias[h];
#pragma unroll
        for (int i = 1; i < COLUMN_TILES; i++)
#pragma unroll
            for (int j = 0; j < i; j++)
                rows[i][j] =
                    i < tiles ? *reinterpret_cast<const float2 *>(a.rows + at + j * n.padded + i * TILE + lane * 2) : none;
#pragma unroll
        for (int tile = 0; tile < COLUMN_TILES; tile++) {
            if (tile >= tiles) break;
            int t = tile * TILE + lane * 2;
            const float *columns = a.columns + at + tile * n.padded + t;
            float2 inner = *reinterpret_cast<const float2 *>(columns),
                   later = none; /* pairs inside the tile; row l = t before it */
            float2 earlier = tile + 1 < tiles ? *reinterpret_cast<const float2 *>(columns + n.padded) : none; /* column s = t */
            float2 delta = *reinterpret_cast<const float2 *>(a.steps.delta + head + t);
            float2 along = *reinterpret_cast<const float2 *>(a.along + head + t);
            float2 dD = *reinterpret_cast<const float2 *>(a.dD + head + t);
            float across = 0; /* from before to after */
#pragma unroll
            for (int j = 0; j < tile; j++) {
                later.x += rows[tile][j].x, later.y += rows[tile][j].y;
#pragma unroll
                for (int i = tile + 1; i < COLUMN_TILES; i++) across += rows[i][j].x + rows[i][j].y;
            }
            if (tile > 0 && tile + 1 < COLUMN_TILES) across = warp_sum(across);
            float from = sum_from(later.x + later.y), to = sum_to(earlier.x + earlier.y);
            float above = __shfl_down_sync(0xffffffffu, from, 1), below = __shfl_up_sync(0xffffffffu, to, 1);
            if (lane == WARP - 1) above = 0;
            if (lane == 0) below = 0;
            float ddA[2] = {inner.x + across + from + below, inner.y + across + (later.y + above) + (below + earlier.x)};
            if (t < n.T) dt[t][warp] = step_gradient(dt[t][warp], bias, minus_A, delta.x, along.x, dD.x, ddA[0], sums);
            if (t + 1 < n.T)
                dt[t + 1][warp] = step_gradient(dt[t + 1][warp], bias, minus_A, delta.y, along.y, dD.y, ddA[1], sums);
        }
#pragma unroll
        for (int k = 0; k < 3; k++) sums[k] = warp_sum(sums[k]);
        if (lane == 0) write_head(a, b, h, sums);
    }
    if (!dzxbcdt) return;
    __syncthreads();
#pragma unroll
    for (int k = 0; k < COLUMN_TILES * TILE / (SUMS_THREADS / SUMS_HEADS); k++) {
        if (row + k * step >= n.T || first + column >= n.H) continue;
        T *to = dzxbcdt + place + k * step * n.W;
        put(to, (a.dt_fresh ? 0.0f : value(*to)) + dt[row + k * step][column]);
    }
}

/* -------------------------------------------------------------------------------------------------------- the op */

/* Cuts the scratch memory at `at`; the result is its end. */
static char *lay_out(char *at, struct backward *a, enum tensor_type type)
{
    const struct ssd_shape *n = &a->n;
    int64_t steps = n->B * n->H * n->padded, square = n->B * n->padded * n->padded;
    at = ssd_take_steps(at, n, &a->steps);
    if (!a->summed) a->products = ssd_take<float>(&at, square);
    a->again = ssd_take<float>(&at, square);
    if (!a->summed || a->groups > 1) a->pairs = ssd_take<float>(&at, a->groups * square);
    a->dproducts = ssd_take<char>(&at, square * (int64_t)tensor_type_size(type));
    a->rows = ssd_take<float>(&at, steps * n->tiles);
    a->columns = ssd_take<float>(&at, steps * n->tiles);
    a->ddA = ssd_take<float>(&at, steps);
    a->along = ssd_take<float>(&at, steps);
    a->dD = ssd_take<float>(&at, steps);
    a->parameters = ssd_take<float>(&at, 3 * n->B * n->H);
    return at;
}

/* As many groups of heads as fill the GPU a few times over. */
static void deal_heads(const struct backend *be, struct backward *a)
{
    const struct ssd_shape *n = &a->n;
    int64_t blocks = n->tiles * (n->tiles + 1) / 2 * n->B,
            wanted = 16 * (int64_t)((const struct cuda *)be->state)->multiprocessors;
    int64_t groups = divide_up(wanted, blocks);
    if (groups > n->H) groups = n->H;
    a->per_group = divide_up(n->H, groups);
    a->groups = divide_up(n->H, a->per_group);
}

static aim_status backward_tiles(struct backend *be, const struct backward *a, const struct tensor *xbc,
                                 const struct tensor *zxbcdt, const struct tensor *dy, struct tensor *dxbc,
                                 struct tensor *dzxbcdt)
{
    const struct ssd_shape *n = &a->n;
    cudaStream_t stream = cuda_of(be)->stream;
    dim3 heads((unsigned)n->tiles, (unsigned)n->H, (unsigned)n->B);
    dim3 pairs((unsigned)(n->tiles * (n->tiles + 1) / 2), (unsigned)a->groups, (unsigned)n->B);
    if (a->summed) {
        TRY(ssd_columns(be, a, data_of<bf16>(xbc), data_of<bf16>(dy), data_of<bf16>(dxbc)));
    } else {
        du_tiles<<<heads, TILE_THREADS, 0, stream>>>(*a, data_of<bf16>(xbc), data_of<bf16>(dy), data_of<bf16>(dxbc));
        pair_tiles<<<pairs, TILE_THREADS, 0, stream>>>(*a, data_of<bf16>(xbc), data_of<bf16>(dy));
    }
    if (a->pairs) gather_pairs<<<dim3((unsigned)n->T, (unsigned)n->B), TILE_THREADS, 0, stream>>>(*a, (bf16 *)a->dproducts);
    by_type(zxbcdt, [&](auto zero) {
        using T = decltype(zero);
        const T *in = data_of<T>(zxbcdt);
        T *out = data_of<T>(dzxbcdt);
        if (a->summed)
            column_sums<T>
                <<<dim3((unsigned)divide_up(n->H, SUMS_HEADS), (unsigned)n->B), SUMS_THREADS, 0, stream>>>(*a, in, out);
        else
            cross_sums<T><<<dim3((unsigned)n->H, (unsigned)n->B), TILE_THREADS, 0, stream>>>(*a, in, out);
    });
    return cuda_launched(be, "ssd_backward");
}

static aim_status backward_rows(struct backend *be, const struct backward *a, const struct tensor *xbc,
                                const struct tensor *zxbcdt, const struct tensor *dy, struct tensor *dxbc,
                                struct tensor *dzxbcdt)
{
    const struct ssd_shape *n = &a->n;
    cudaStream_t stream = cuda_of(be)->stream;
    dim3 heads((unsigned)n->H, (unsigned)n->B), rows((unsigned)n->T, (unsigned)n->B);
    by_type(xbc, [&](auto zero) {
        using T = decltype(zero);
        const T *x = data_of<T>(xbc), *up = data_of<T>(dy);
        du_rows<T><<<dim3((unsigned)n->T, (unsigned)n->H, (unsigned)n->B), HEADDIM, 0, stream>>>(*a, x, up, data_of<T>(dxbc));
        pair_rows<T><<<rows, TILE_THREADS, 0, stream>>>(*a, x, up, (T *)a->dproducts);
        cross_rows<T><<<heads, TILE_THREADS, 0, stream>>>(*a, x, up);
    });
    by_type(zxbcdt, [&](auto zero) {
        using T = decltype(zero);
        finish_steps<T><<<heads, TILE_THREADS, 0, stream>>>(*a, data_of<T>(zxbcdt), data_of<T>(dzxbcdt));
    });
    return cuda_launched(be, "ssd_backward");
}

/* dC += dCB B; dB += dCBᵀ C */
static aim_status backward_products(struct backend *be, const struct backward *a, const struct tensor *xbc, struct tensor *dxbc)
{
    const struct ssd_shape *n = &a->n;
    size_t size = tensor_type_size(xbc->type);
    int64_t square = n->padded * n->padded, picture = n->T * n->C;
    const char *b = (const char *)xbc->data + (size_t)n->E * size, *c = b + (size_t)n->S * size;
    char *db = (char *)dxbc->data + (size_t)n->E * size, *dc = db + (size_t)n->S * size;
    struct cuda_operand straight = {a->dproducts, n->padded, square, a->summed},
                        turned = {a->dproducts, n->padded, square, !a->summed};
    struct cuda_product to_c = {xbc->type, dxbc->type, n->T,    n->S,        n->T, n->B, straight, {b, n->C, picture, false},
                                dc,        n->C,       picture, !a->dx_fresh};
    struct cuda_product to_b = {xbc->type, dxbc->type, n->T,    n->S,        n->T, n->B, turned, {c, n->C, picture, false},
                                db,        n->C,       picture, !a->dx_fresh};
    TRY(cuda_multiply(be, &to_c));
    return cuda_multiply(be, &to_b);
}

aim_status cuda_ssd_backward(struct backend *be, const struct tensor *xbc, const struct tensor *zxbcdt,
                             const struct tensor *A_log, const struct tensor *dt_bias, const struct tensor *D,
                             const struct tensor *dy, struct tensor *dxbc, struct tensor *dzxbcdt, struct tensor *dA_log,
                             struct tensor *ddt_bias, struct tensor *dD)
{
    struct backward a = {};
    a.n = ssd_shape_of(xbc, zxbcdt, dy);
    a.A_log = f32(A_log), a.dt_bias = f32(dt_bias), a.D = f32(D);
    a.dx_fresh = take_fresh(be, dxbc);
    a.dt_fresh = take_fresh(be, dzxbcdt, a.n.W - a.n.H, a.n.W);
    bool tiled = ssd_tiled(&a.n, xbc, dy) && aligned(dxbc);
    a.summed = tiled && ssd_columns_fit(be, &a.n);
    if (a.summed)
        ssd_columns_deal(be, &a);
    else
        deal_heads(be, &a);
    char *scratch = (char *)cuda_scratch(be, (size_t)(lay_out(NULL, &a, xbc->type) - (char *)NULL));
    if (!scratch) return AIM_ERR_MEMORY;
    lay_out(scratch, &a, xbc->type);
    TRY(ssd_prepare(be, &a.n, zxbcdt, A_log, dt_bias, a.steps));
    if (!a.summed) TRY(ssd_products(be, &a.n, xbc, false, T_F32, a.products));
    TRY(ssd_products(be, &a.n, xbc, !tiled || a.summed, tiled ? T_BF16 : T_F32, a.again));
    TRY(tiled ? backward_tiles(be, &a, xbc, zxbcdt, dy, dxbc, dzxbcdt) : backward_rows(be, &a, xbc, zxbcdt, dy, dxbc, dzxbcdt));
    struct sum_target sums[] = {
        {data_of<float>(dA_log), 0, a.n.H}, {data_of<float>(ddt_bias), 0, a.n.H}, {data_of<float>(dD), 0, a.n.H}};
    TRY(cuda_sum_rows_to(be, a.parameters, 1, a.n.B, 3 * a.n.H, sums, 3));
    return dxbc ? backward_products(be, &a, xbc, dxbc) : AIM_OK;
}
