/* The state-space recurrence over whole sequences: steps and decays, C·B, and the forward. */
#include "cuda/ssd.cuh"

#include "cuda/dense.cuh"
#include "cuda/tile_product.cuh"

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
 * take a head at a time, tile by tile. Before the own tile the decay is of rank one, and all is products of tiles: with X = x
 * times Δ and the decay to the end of its tile, which takes the place of x once a tile is done,
 *
 *     y_i = (decays since the end of tile i-1) Σ_{j<i} (decay from the end of tile j to there) CB_ij X_j + M_ii x_i + D x_i.
 */

enum { HEAD_TILES = 4, HEAD_PAIRS = HEAD_TILES * (HEAD_TILES + 1) / 2, MOST_TEAMS = 3 };

struct head_steps {
    float lead[HEAD_TILES][TILE], weight[HEAD_TILES][TILE], delta[HEAD_TILES][TILE], inner[HEAD_TILES][TILE];
};

/* Of a team. */
struct alignas(1024) head_room {
    struct square x[HEAD_TILES];
    struct square y;            /* of a tile, on its way to memory */
    struct head_steps steps[2]; /* of this head and the next one */
};

/* What a block has: C·B of tiles (i,j), number i (i + 1) / 2 + j; then rooms of the teams. */
struct alignas(1024) heads_room {
    struct square products[HEAD_PAIRS];
    struct head_room teams[MOST_TEAMS];
};

static __device__ inline void team_sync()
{
    asm volatile("bar.sync %0, %1;" ::"r"(1 + threadIdx.x / TILE_THREADS), "r"((int)TILE_THREADS) : "memory");
}

/* Starts copying the steps of a head. */
static __device__ inline void steps_start(const struct ssd_shape &n, const struct ssd_steps &steps, struct head_steps &to)
{
    int four = threadIdx.x % TILE_THREADS * 4;
    if (four >= n.padded) return;
    copy_start(&to.lead[0][0] + four, steps.lead + four, true);
    copy_start(&to.weight[0][0] + four, steps.weight + four, true);
    copy_start(&to.delta[0][0] + four, steps.delta + four, true);
    copy_start(&to.inner[0][0] + four, steps.inner + four, true);
}

/* Starts copying tile i of x, a group of its own; x: the thread's place in tile 0 of the head. */
static __device__ inline void x_start(const struct ssd_shape &n, const bf16 *x, int i, struct head_room &room)
{
    square_start(room.x[i], x + i * TILE * n.C, n.C, n.T - i * TILE);
    copy_commit();
}

/* Until at most `later` tiles of x are under way; then X of the tile before is there as well. */
static __device__ inline void x_wait(int later)
{
    if (later == 0)
        copy_wait<0>();
    else if (later == 1)
        copy_wait<1>();
    else if (later == 2)
        copy_wait<2>();
    else
        copy_wait<HEAD_TILES - 1>();
    tile_publish();
    team_sync();
}

/* m = M of a tile with itself: a warp's rows l, 16 columns s a step. */
static __device__ inline void diagonal_weights(const struct square &products, const float *delta, const float *inner,
                                               uint32_t (&m)[STEPS][4])
{
    int warp = tile_warp(), lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4;
    const float to[2] = {inner[warp * 16 + g], inner[warp * 16 + g + 8]};
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        if (step > warp) { /* all of it beyond the diagonal */
            m[step][0] = m[step][1] = m[step][2] = m[step][3] = 0;
            continue;
        }
        square_fragment(m[step], products, warp * 16, step);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int s = step * 16 + half * 8 + q * 2;
            float2 factor = *reinterpret_cast<const float2 *>(delta + s), from = *reinterpret_cast<const float2 *>(inner + s);
#pragma unroll
            for (int r = 0; r < 2; r++) {
                int beyond = s - (warp * 16 + r * 8 + g);
                float2 weight = floats_of(m[step][half * 2 + r]);
                weight.x *= factor.x * ssd_power(to[r] - from.x), weight.y *= factor.y * ssd_power(to[r] - from.y);
                m[step][half * 2 + r] = pair_of(beyond <= 0 ? weight.x : 0.0f, beyond + 1 <= 0 ? weight.y : 0.0f);
            }
        }
    }
}

/* A warp's rows times scale[0] and scale[1]. */
static __device__ inline void scale_rows(float (&acc)[FRAGMENTS][4], float even, float odd)
{
#pragma unroll
    for (int k = 0; k < FRAGMENTS; k++) acc[k][0] *= even, acc[k][1] *= even, acc[k][2] *= odd, acc[k][3] *= odd;
}

/*
 * acc = tile i of y, without D x; FIRST: i = 0. products: C·B of tiles (i,0) .. (i,i). `done` follows the tiles before i, once
 * the whole team is done with them.
 */
template <bool FIRST, typename F>
static __device__ inline void mix_tile(const struct head_room &room, const struct head_steps &steps,
                                       const struct square *products, int i, float (&acc)[FRAGMENTS][4], F done)
{
    int row = tile_warp() * 16 + threadIdx.x % WARP / 4;
    uint32_t m[STEPS][4];
    if (!FIRST) {
        tile_begin();
#pragma unroll
        for (int step = 0; step < STEPS; step++) tile_product<false, false>(acc, products[0], room.x[0], step, step > 0);
        tile_commit();
    }
    diagonal_weights(products[i], steps.delta[i], steps.inner[i], m);
    if (!FIRST) {
        tile_wait<0>();
        tile_changed(acc);
#pragma unroll 1
        for (int j = 1; j < i; j++) {
            float gap = steps.lead[j][TILE - 1];
            scale_rows(acc, gap, gap);
            tile_begin();
#pragma unroll
            for (int step = 0; step < STEPS; step++) tile_product<false, false>(acc, products[j], room.x[j], step, true);
            tile_commit();
            tile_wait<0>();
            tile_changed(acc);
        }
        scale_rows(acc, steps.lead[i][row], steps.lead[i][row + 8]);
        done();
    }
    tile_begin();
#pragma unroll
    for (int step = 0; step < STEPS; step++) tile_product<false>(acc, m[step], room.x[i], step, !FIRST || step > 0);
    tile_commit();
    tile_wait<0>();
    tile_changed(acc);
    tile_used(m);
}

/* y = acc + D x, a warp's own rows, to shared memory. */
static __device__ inline void add_direct(const struct square &x, float D, const float (&acc)[FRAGMENTS][4], struct square &y)
{
    int lane = threadIdx.x % WARP, row = tile_warp() * 16 + lane / 4, q = lane % 4;
#pragma unroll
    for (int k = 0; k < FRAGMENTS; k++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            int at = square_at(row + r * 8, k) + q * 2;
            float2 own = floats_of(*reinterpret_cast<const uint32_t *>(&x.v[at]));
            *reinterpret_cast<uint32_t *>(&y.v[at]) = pair_of(acc[k][2 * r] + D * own.x, acc[k][2 * r + 1] + D * own.y);
        }
}

/* A warp's own rows of a tile of `rows` positions from there to memory; to: the tile's first value. */
static __device__ inline void write_square(const struct square &y, int64_t rows, int64_t ld, bf16 *to)
{
    int lane = threadIdx.x % WARP, first = tile_warp() * 16 + lane / 8, piece = lane % 8;
    __syncwarp();
#pragma unroll
    for (int k = 0; k < 4; k++) {
        int row = first + k * 4;
        if (row < rows)
            *reinterpret_cast<uint4 *>(to + row * ld + piece * 8) =
                *reinterpret_cast<const uint4 *>(&y.v[square_at(row, piece)]);
    }
}

/* Grid: pictures, groups of heads. */
static __global__ void __launch_bounds__(MOST_TEAMS *TILE_THREADS, 1)
    forward_heads(struct ssd_shape n, struct ssd_steps steps, const bf16 *products, const bf16 *xbc, const float *D, bf16 *y,
                  int64_t per_group)
{
    extern __shared__ __align__(1024) char shared[];
    struct heads_room &block = *reinterpret_cast<struct heads_room *>(shared);
    int thread = threadIdx.x % TILE_THREADS, team = threadIdx.x / TILE_THREADS, teams = blockDim.x / TILE_THREADS;
    struct head_room &room = block.teams[team];
    int64_t b = blockIdx.x, first = blockIdx.y * per_group, last = first + per_group < n.H ? first + per_group : n.H;
    int64_t h = first + team;
    const bf16 *of_picture = products + b * n.padded * n.padded + thread / 8 * n.padded + thread % 8 * 8;
    const bf16 *x = xbc + (b * n.T + thread / 8) * n.C + h * HEADDIM + thread % 8 * 8;
    int tiles = (int)n.tiles, turn = 0;
    for (int i = 0, number = 0; i < tiles; i++)
        for (int j = 0; j <= i; j++, number++)
            if (number % teams == team)
                square_start(block.products[number], of_picture + i * TILE * n.padded + j * TILE, n.padded, TILE);
    if (h < last) {
        steps_start(n, ssd_steps_of(steps, b * n.H + h, n.padded), room.steps[0]);
        for (int i = 0; i < tiles; i++) x_start(n, x, i, room);
    }
    copy_commit();
    copy_wait<0>();
    tile_publish();
    __syncthreads();
    for (; h < last; h += teams, turn ^= 1) {
        const struct head_steps &own = room.steps[turn];
        bool more = h + teams < last;
        float acc[FRAGMENTS][4], direct = D[h];
        bf16 *to = y + b * n.T * n.E + h * HEADDIM;
        x += teams * HEADDIM;
        for (int i = 0; i < tiles; i++, to += TILE * n.E) {
            bool ends = i + 1 == tiles;
            const struct square *of_tile = &block.products[i * (i + 1) / 2];
            x_wait(tiles - 1 - i);
            if (ends && more) steps_start(n, ssd_steps_of(steps, b * n.H + h + teams, n.padded), room.steps[turn ^ 1]);
            if (i == 0)
                mix_tile<true>(room, own, of_tile, i, acc, [] {});
            else
                mix_tile<false>(room, own, of_tile, i, acc, [&] {
                    if (!ends || !more) return;
                    team_sync();
                    for (int k = 0; k < i; k++) x_start(n, x, k, room);
                });
            add_direct(room.x[i], direct, acc, room.y);
            team_sync();
            if (!ends)
                scale_square(room.x[i], own.weight[i], 1, room.x[i]);
            else if (more)
                x_start(n, x, i, room);
            write_square(room.y, n.T - i * TILE, n.E, to);
        }
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
