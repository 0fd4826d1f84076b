/* The state-space recurrence over whole sequences: steps and decays, C·B, and the forward. */
#include "cuda/ssd.cuh"

#include "cuda/dense.cuh"

struct ssd_shape ssd_shape_of(const struct tensor *xbc, const struct tensor *zxbcdt, const struct tensor *y)
{
    struct ssd_shape n = {};
    n.B = y->shape[0], n.T = y->shape[1], n.E = y->shape[2], n.C = tensor_cols(xbc), n.W = tensor_cols(zxbcdt);
    n.H = n.E / HEADDIM, n.S = (n.C - n.E) / 2;
    n.tiles = divide_up(n.T, TILE), n.padded = n.tiles * TILE;
    return n;
}

/* ------------------------------------------------------------------------------------------------------- steps */

/* ln(1 + e^x); the identity above 20, where the difference is below float precision (spec C3) */
static __device__ float softplus(float x)
{
    return x > 20.0f ? x : log1pf(expf(x));
}

/* A warp takes a head of a picture: Δ, and the running sum of Δ A in double. */
template <typename T>
static __global__ void fill_steps(struct ssd_shape n, const T *zxbcdt, const float *A_log, const float *dt_bias,
                                  struct ssd_steps steps)
{
    const double log2e = 1.4426950408889634;
    int64_t pair = (int64_t)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (pair >= n.B * n.H) return;
    int64_t b = pair / n.H, h = pair % n.H;
    const T *dt = zxbcdt + b * n.T * n.W + n.W - n.H + h;
    float A = -expf(A_log[h]), bias = dt_bias[h];
    double before = 0; /* up to the tile */
    float next[2];     /* dt of the tile to come */
#pragma unroll
    for (int half = 0; half < 2; half++) next[half] = half * WARP + lane < n.T ? value(dt[(half * WARP + lane) * n.W]) : 0.0f;
    for (int64_t first = 0; first < n.padded; first += TILE) {
        float delta[2];
        double sum[2], end = before;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int64_t t = first + half * WARP + lane, later = t + TILE;
            delta[half] = t < n.T ? softplus(next[half] + bias) : 0.0f;
            next[half] = later < n.T ? value(dt[later * n.W]) : 0.0f;
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            sum[half] = (double)(delta[half] * A);
#pragma unroll
            for (int gap = 1; gap < WARP; gap *= 2) {
                double lower = __shfl_up_sync(0xffffffffu, sum[half], gap);
                if (lane >= gap) sum[half] += lower;
            }
            sum[half] += end;
            end = __shfl_sync(0xffffffffu, sum[half], WARP - 1);
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int64_t at = pair * n.padded + first + half * WARP + lane;
            float high = (float)(sum[half] * log2e);
            steps.delta[at] = delta[half];
            steps.cs[at] = make_float2(high, (float)(sum[half] * log2e - (double)high));
            float inner = (float)((sum[half] - before) * log2e);
            steps.lead[at] = ssd_power(inner);
            steps.inner[at] = inner;
            steps.weight[at] = delta[half] * ssd_power((float)((end - sum[half]) * log2e));
        }
        before = end;
    }
}

aim_status ssd_prepare(struct backend *be, const struct ssd_shape *n, const struct tensor *zxbcdt, const struct tensor *A_log,
                       const struct tensor *dt_bias, struct ssd_steps steps)
{
    enum { THREADS = 64 };
    by_type(zxbcdt, [&](auto zero) {
        using T = decltype(zero);
        fill_steps<T><<<(unsigned)divide_up(n->B * n->H, THREADS / WARP), THREADS, 0, cuda_of(be)->stream>>>(
            *n, data_of<T>(zxbcdt), f32(A_log), f32(dt_bias), steps);
    });
    return cuda_launched(be, "ssd: steps");
}

aim_status ssd_products(struct backend *be, const struct ssd_shape *n, const struct tensor *xbc, bool transposed,
                        enum tensor_type type, void *products)
{
    size_t size = tensor_type_size(xbc->type);
    const char *b = (const char *)xbc->data + (size_t)n->E * size, *c = b + (size_t)n->S * size;
    struct cuda_operand rows = {transposed ? b : c, n->C, n->T * n->C, false},
                        columns = {transposed ? c : b, n->C, n->T * n->C, true};
    struct cuda_product p = {xbc->type, type, n->T, n->T, n->S, n->B, rows, columns, products, n->padded, n->padded * n->padded,
                             false};
    return cuda_multiply(be, &p);
}

/* ----------------------------------------------------------------------------------------------------- forward */

/* Tile i of y = acc + D x, over x in shared memory and from there to memory; a warp's own rows. y: position 0 of the head. */
static __device__ inline void write_tile(const struct ssd_shape &n, bf16 (*x)[TILE_LD], int i, float direct,
                                         const float (&acc)[8][4], bf16 *y)
{
    int warp = tile_warp(), lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4;
#pragma unroll
    for (int k = 0; k < 8; k++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            uint32_t *at = reinterpret_cast<uint32_t *>(&x[warp * 16 + r * 8 + g][k * 8 + q * 2]);
            float2 own = floats_of(*at);
            *at = pair_of(acc[k][2 * r] + direct * own.x, acc[k][2 * r + 1] + direct * own.y);
        }
    __syncwarp();
#pragma unroll
    for (int k = 0; k < 4; k++) {
        int row = warp * 16 + k * 4 + lane / 8, column = lane % 8 * 8;
        int64_t t = i * TILE + row;
        if (t < n.T) *reinterpret_cast<uint4 *>(y + t * n.E + column) = *reinterpret_cast<const uint4 *>(&x[row][column]);
    }
}

/* A block takes a tile of positions of a head of a picture. */
static __global__ void __launch_bounds__(TILE_THREADS)
    forward_tiles(struct ssd_shape n, struct ssd_steps steps, const bf16 *products, const bf16 *xbc, const float *D, bf16 *y)
{
    __shared__ struct ssd_mixing mixing;
    int64_t tile = blockIdx.x, h = blockIdx.y, b = blockIdx.z;
    float acc[8][4];
    struct ssd_head head = {ssd_steps_of(steps, b * n.H + h, n.padded),
                            products + b * n.padded * n.padded,
                            xbc + b * n.T * n.C + h * HEADDIM,
                            n.C,
                            (int)n.T,
                            (int)n.padded};
    int last = ssd_mix<false>(head, (int)tile, mixing, acc);
    bf16(*shared)[TILE_LD] = mixing.stages[last].values;
    __syncthreads(); /* the tile's own x is still there, and each warp now puts its own rows of y in its place */
    write_tile(n, shared, (int)tile, D[h], acc, y + b * n.T * n.E + h * HEADDIM);
}

/* A block takes a position of a head of a picture. */
template <typename T>
static __global__ void forward_rows(struct ssd_shape n, struct ssd_steps steps, const float *products, const T *xbc,
                                    const float *D, T *y)
{
    __shared__ float shared[SSD_CHUNK];
    int64_t t = blockIdx.x, h = blockIdx.y, b = blockIdx.z, head = (b * n.H + h) * n.padded;
    const T *x = xbc + b * n.T * n.C + h * HEADDIM;
    float sum = ssd_mix_row<false>(products + b * n.padded * n.padded, steps.cs + head, steps.delta + head, x, n.C, n.T,
                                   n.padded, t, shared);
    put(y + (b * n.T + t) * n.E + h * HEADDIM + threadIdx.x, sum + D[h] * value(x[t * n.C + threadIdx.x]));
}

/* ------------------------------------------------------------------------------------- forward, by whole heads
 *
 * Where a sequence has few tiles, a block keeps C·B of its picture in shared memory for all its heads. Four warps, a team,
 * take a head at a time: x is read once, and y takes its place there, the last tile first.
 */

enum { HEAD_TILES = 4, HEAD_PAIRS = HEAD_TILES * (HEAD_TILES + 1) / 2, MOST_TEAMS = 3 };

/* Of a team's head. */
struct alignas(16) head_room {
    bf16 x[HEAD_TILES][TILE][TILE_LD];
    float2 cs[HEAD_TILES][TILE];
    float lead[HEAD_TILES][TILE], weight[HEAD_TILES][TILE], delta[HEAD_TILES][TILE];
};

/* What a block has: C·B of tiles (i,j), number i (i + 1) / 2 + j; then rooms of the teams. */
struct alignas(16) heads_room {
    bf16 products[HEAD_PAIRS][TILE][TILE_LD];
    struct head_room teams[MOST_TEAMS];
};

static __device__ inline void team_sync()
{
    asm volatile("bar.sync %0, %1;" ::"r"(1 + threadIdx.x / TILE_THREADS), "r"((int)TILE_THREADS) : "memory");
}

/* Starts copying the steps of a head. */
static __device__ inline void steps_start(const struct ssd_shape &n, const struct ssd_steps &steps, struct head_room &room)
{
    int thread = threadIdx.x % TILE_THREADS, four = thread * 4, two = thread * 2;
    if (two < n.padded) copy_start(&room.cs[0][0] + two, steps.cs + two, true);
    if (four >= n.padded) return;
    copy_start(&room.lead[0][0] + four, steps.lead + four, true);
    copy_start(&room.weight[0][0] + four, steps.weight + four, true);
    copy_start(&room.delta[0][0] + four, steps.delta + four, true);
}

/* y += the part of tile i that comes from tile j; j < i: without the rows' part of the decay. */
template <bool DIAGONAL>
static __device__ inline void mix_tile(const struct head_room &room, const bf16 (*products)[TILE_LD], int i, int j,
                                       float (&acc)[8][4])
{
    int warp = tile_warp(), lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4, matrix = lane / 8;
    float gap = DIAGONAL ? 1.0f : ssd_decay(room.cs[i - 1][TILE - 1], room.cs[j][TILE - 1]);
    const float *factors = DIAGONAL ? room.delta[j] : room.weight[j];
#pragma unroll
    for (int step = 0; step < TILE / 16; step++) {
        if (DIAGONAL && step > warp) continue; /* all of it beyond the diagonal */
        uint32_t m[4];
        load_matrices(m, &products[warp * 16 + (matrix & 1) * 8 + lane % 8][step * 16 + (matrix >> 1) * 8]);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int s = step * 16 + half * 8 + q * 2;
            float2 factor = *reinterpret_cast<const float2 *>(factors + s);
#pragma unroll
            for (int r = 0; r < 2; r++) {
                int l = warp * 16 + r * 8 + g;
                float2 weight = floats_of(m[half * 2 + r]);
                if (DIAGONAL) {
                    float2 own = room.cs[i][l];
                    weight.x = s <= l ? weight.x * (factor.x * ssd_decay(own, room.cs[i][s])) : 0.0f;
                    weight.y = s + 1 <= l ? weight.y * (factor.y * ssd_decay(own, room.cs[i][s + 1])) : 0.0f;
                } else {
                    weight.x *= factor.x * gap;
                    weight.y *= factor.y * gap;
                }
                m[half * 2 + r] = pair_of(weight.x, weight.y);
            }
        }
        const bf16 *base = &room.x[j][step * 16 + (matrix & 1) * 8 + lane % 8][(matrix >> 1) * 8];
#pragma unroll
        for (int k = 0; k < 8; k += 2) {
            uint32_t x[4];
            load_matrices_transposed(x, base + k * 8);
            mma(acc[k], m, x[0], x[1]);
            mma(acc[k + 1], m, x[2], x[3]);
        }
    }
}

/* Grid: pictures, groups of heads. */
static __global__ void __launch_bounds__(MOST_TEAMS *TILE_THREADS, 1)
    forward_heads(struct ssd_shape n, struct ssd_steps steps, const bf16 *products, const bf16 *xbc, const float *D, bf16 *y,
                  int64_t per_group)
{
    extern __shared__ __align__(16) char shared[];
    struct heads_room &block = *reinterpret_cast<struct heads_room *>(shared);
    int team = threadIdx.x / TILE_THREADS, teams = blockDim.x / TILE_THREADS, tiles = (int)n.tiles;
    int lane = threadIdx.x % WARP, g = lane / 4;
    struct head_room &room = block.teams[team];
    int64_t b = blockIdx.x, first = blockIdx.y * per_group, last = first + per_group < n.H ? first + per_group : n.H;
    const bf16 *of_picture = products + b * n.padded * n.padded, *x = xbc + b * n.T * n.C;
    for (int i = 0, number = 0; i < tiles; i++)
        for (int j = 0; j <= i; j++, number++)
            if (number % teams == team)
                ssd_tile_start(block.products[number], of_picture + i * TILE * n.padded + j * TILE, n.padded, n.T - i * TILE);
    int64_t h = first + team;
    if (h < last) {
        for (int i = 0; i < tiles; i++) ssd_tile_start(room.x[i], x + i * TILE * n.C + h * HEADDIM, n.C, n.T - i * TILE);
        steps_start(n, ssd_steps_of(steps, b * n.H + h, n.padded), room);
    }
    copy_commit();
    copy_wait<0>();
    __syncthreads();
    for (; h < last; h += teams) {
        int64_t next = h + teams;
        const bf16 *next_x = x + next * HEADDIM;
        for (int i = tiles - 1; i >= 0; i--) {
            float acc[8][4];
#pragma unroll
            for (int k = 0; k < 8; k++) acc[k][0] = acc[k][1] = acc[k][2] = acc[k][3] = 0;
            for (int j = 0; j < i; j++) mix_tile<false>(room, block.products[i * (i + 1) / 2 + j], i, j, acc);
#pragma unroll
            for (int r = 0; r < 2; r++) {
                float part = room.lead[i][tile_warp() * 16 + r * 8 + g];
#pragma unroll
                for (int k = 0; k < 8; k++) acc[k][2 * r] *= part, acc[k][2 * r + 1] *= part;
            }
            mix_tile<true>(room, block.products[i * (i + 1) / 2 + i], i, i, acc);
            team_sync(); /* everyone is done with x of this tile, and with y of the one after it */
            if (next < last && i + 1 < tiles)
                ssd_tile_start(room.x[i + 1], next_x + (i + 1) * TILE * n.C, n.C, n.T - (i + 1) * TILE);
            write_tile(n, room.x[i], i, D[h], acc, y + b * n.T * n.E + h * HEADDIM);
        }
        if (next >= last) break;
        team_sync();
        ssd_tile_start(room.x[0], next_x, n.C, n.T);
        steps_start(n, ssd_steps_of(steps, b * n.H + next, n.padded), room);
        copy_commit();
        copy_wait<0>();
        team_sync();
    }
}

/* Teams that a block has memory for; 0 where it cannot serve. */
static int heads_teams(const struct backend *be, const struct ssd_shape *n)
{
    const size_t reserve = 1 << 10, room = ((const struct cuda *)be->state)->shared_limit;
    int teams = n->tiles <= HEAD_TILES ? MOST_TEAMS : 0;
    while (teams > 0 && offsetof(struct heads_room, teams) + (size_t)teams * sizeof(struct head_room) + reserve > room) teams--;
    return teams;
}

static aim_status forward_by_heads(struct backend *be, const struct ssd_shape *n, struct ssd_steps steps, const bf16 *products,
                                   const struct tensor *xbc, const struct tensor *D, struct tensor *y, int teams)
{
    const int64_t most = 16, slots = ((const struct cuda *)be->state)->multiprocessors; /* a block to each */
    int bytes = (int)(offsetof(struct heads_room, teams) + (size_t)teams * sizeof(struct head_room));
    int64_t best = INT64_MAX, per_group = n->H;
    for (int64_t groups = 1; groups <= n->H && groups <= most; groups++) {
        int64_t each = divide_up(n->H, groups), time = divide_up(n->B * groups, slots) * divide_up(each, teams);
        if (time >= best) continue;
        best = time;
        per_group = each;
    }
    dim3 grid((unsigned)n->B, (unsigned)divide_up(n->H, per_group));
    CUDA_TRY(be, cudaFuncSetAttribute(forward_heads, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    forward_heads<<<grid, teams * TILE_THREADS, bytes, cuda_of(be)->stream>>>(*n, steps, products, data_of<bf16>(xbc), f32(D),
                                                                              data_of<bf16>(y), per_group);
    return cuda_launched(be, "ssd");
}

/* Cuts the scratch memory at `at`; the result is its end. C·B are of type `type`. */
static char *lay_out(char *at, const struct ssd_shape *n, enum tensor_type type, struct ssd_steps *steps, void **products)
{
    at = ssd_take_steps(at, n, steps);
    *products = ssd_take<char>(&at, n->B * n->padded * n->padded * (int64_t)tensor_type_size(type));
    return at;
}

aim_status cuda_ssd(struct backend *be, const struct tensor *xbc, const struct tensor *zxbcdt, const struct tensor *A_log,
                    const struct tensor *dt_bias, const struct tensor *D, struct tensor *y)
{
    struct ssd_shape n = ssd_shape_of(xbc, zxbcdt, y);
    struct ssd_steps steps;
    void *products;
    bool tiled = ssd_tiled(&n, xbc, y);
    enum tensor_type type = tiled ? T_BF16 : T_F32;
    char *scratch = (char *)cuda_scratch(be, (size_t)(lay_out(NULL, &n, type, &steps, &products) - (char *)NULL));
    if (!scratch) return AIM_ERR_MEMORY;
    lay_out(scratch, &n, type, &steps, &products);
    TRY(ssd_prepare(be, &n, zxbcdt, A_log, dt_bias, steps));
    TRY(ssd_products(be, &n, xbc, false, type, products));
    int teams = tiled ? heads_teams(be, &n) : 0;
    if (teams > 0) return forward_by_heads(be, &n, steps, (const bf16 *)products, xbc, D, y, teams);
    dim3 grid((unsigned)(tiled ? n.tiles : n.T), (unsigned)n.H, (unsigned)n.B);
    cudaStream_t stream = cuda_of(be)->stream;
    if (tiled)
        forward_tiles<<<grid, TILE_THREADS, 0, stream>>>(n, steps, (const bf16 *)products, data_of<bf16>(xbc), f32(D),
                                                         data_of<bf16>(y));
    else
        by_type(xbc, [&](auto zero) {
            using T = decltype(zero);
            forward_rows<T>
                <<<grid, HEADDIM, 0, stream>>>(n, steps, (const float *)products, data_of<T>(xbc), f32(D), data_of<T>(y));
        });
    return cuda_launched(be, "ssd");
}
