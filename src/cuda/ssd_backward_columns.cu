/*
 * Backward of ssd by whole columns of tiles (ssd_backward.cuh), for up to COLUMN_TILES tiles and a GPU with the shared memory
 * for it. A block takes one or two columns of a picture, up to five pairs of tiles (i,j), and goes through the heads: x of
 * tile j and dY of tiles i >= j are read once a head, and serve dCB, ddA and du. Four warps keep to a pair: its part of dCB
 * stays in their registers over all heads, its C·B in shared memory. With n tiles the columns of 4 and 1 pairs make one kind
 * of block, those of 3 and 2 the other.
 */
#include "cuda/ahead.cuh"
#include "cuda/ssd_backward.cuh"

enum { PAIRS = 5, COLUMN_THREADS = PAIRS * TILE_THREADS, FRAGMENTS = 8 /* of 8 columns */ };

/* What a block reads of a head: dY of tiles first, first+1, ...; x of the columns' tiles; steps. */
struct alignas(16) column_stage {
    bf16 up[COLUMN_TILES][TILE][TILE_LD], x[2][TILE][TILE_LD];
    float lead[COLUMN_TILES][TILE], weight[2][TILE], delta[2][TILE];
    float2 cs[2][TILE], before[COLUMN_TILES]; /* cs of the columns' tiles; of the position before each tile of dY */
};

struct alignas(16) column_room {
    struct column_stage stages[2];                            /* of this head and the next one */
    bf16 products[PAIRS][TILE][TILE_LD];                      /* C·B of each pair */
    float4 handed[COLUMN_TILES - 1][FRAGMENTS][TILE_THREADS]; /* parts of du, for the last pair of a column */
    float crossing[2][TILE_THREADS / WARP][TILE];             /* of the pairs on the diagonal, by warps */
};

bool ssd_columns_fit(const struct backend *be, const struct ssd_shape *n)
{
    const size_t reserve = 1 << 10;
    return n->tiles <= COLUMN_TILES && sizeof(struct column_room) + reserve <= ((const struct cuda *)be->state)->shared_limit;
}

/* Kinds of blocks: columns of 4 and 1 pairs; of 3 and 2. */
static int64_t kinds_of(int64_t tiles)
{
    return tiles == 1 ? 1 : 2;
}

void ssd_columns_deal(const struct backend *be, struct backward *a)
{
    const int64_t most = 16, slots = ((const struct cuda *)be->state)->multiprocessors; /* a block to each */
    int64_t blocks = kinds_of(a->n.tiles) * a->n.B, best = INT64_MAX;
    for (int64_t groups = 1; groups <= a->n.H && groups <= most; groups++) {
        int64_t each = divide_up(a->n.H, groups), time = divide_up(blocks * groups, slots) * each;
        if (time >= best) continue;
        best = time;
        a->per_group = each;
    }
    a->groups = divide_up(a->n.H, a->per_group);
}

/* ----------------------------------------------------------------------------------------------- who does what */

/* The columns of a kind of block: numbers and how many pairs each has; first: the first tile of dY. */
struct block_columns {
    int number[2], pairs[2], first;
};

static __device__ inline struct block_columns columns_of_kind(int kind, int tiles)
{
    struct block_columns c;
    int longer = kind == 0 ? 4 : 3, shorter = kind == 0 ? 1 : 2;
    if (longer > tiles) longer = shorter, shorter = 0;
    c.pairs[0] = longer, c.pairs[1] = shorter;
    c.number[0] = tiles - longer, c.number[1] = tiles - shorter;
    c.first = tiles - longer;
    return c;
}

/* A warp's pair: tiles i and j = the number of column `column`; the which-th of this column, 0 on the diagonal. */
struct block_pair {
    int column, which, i, j, slot; /* slot: of tile i in the stage */
    bool works, last;              /* of its column */
};

static __device__ inline struct block_pair pair_of_group(const struct block_columns &c, int group)
{
    struct block_pair p;
    p.column = group < c.pairs[0] ? 0 : 1;
    p.which = p.column ? group - c.pairs[0] : group;
    p.works = p.which < c.pairs[p.column];
    p.last = p.which == c.pairs[p.column] - 1;
    p.j = c.number[p.column];
    p.i = p.j + p.which;
    p.slot = p.i - c.first;
    return p;
}

/* ----------------------------------------------------------------------------------------------------- loading */

/* Starts copying what the block needs of head h of picture b. */
static __device__ inline void stage_start(const struct backward &a, const struct block_columns &c, const bf16 *xbc,
                                          const bf16 *dy, int64_t b, int64_t h, struct column_stage &stage)
{
    const struct ssd_shape &n = a.n;
    int group = threadIdx.x / TILE_THREADS, thread = threadIdx.x % TILE_THREADS;
    int columns = c.pairs[1] ? 2 : 1;
    const bf16 *x = xbc + b * n.T * n.C + h * HEADDIM, *up = dy + b * n.T * n.E + h * HEADDIM;
    for (int k = group; k < c.pairs[0] + columns; k += PAIRS) {
        if (k < c.pairs[0]) {
            int64_t from = (int64_t)(c.first + k) * TILE;
            ssd_tile_start(stage.up[k], up + from * n.E, n.E, n.T - from);
        } else {
            int64_t from = (int64_t)c.number[k - c.pairs[0]] * TILE;
            ssd_tile_start(stage.x[k - c.pairs[0]], x + from * n.C, n.C, n.T - from);
        }
    }
    if (group == PAIRS - 1) {
        struct ssd_steps steps = ssd_steps_of(a.steps, b * n.H + h, n.padded);
        int tile = thread / 16, piece = thread % 16 * 4;
        if (tile < c.pairs[0])
            copy_start(&stage.lead[tile][piece], steps.lead + (c.first + tile) * TILE + piece, true);
        else if (tile >= COLUMN_TILES && tile - COLUMN_TILES < 2 * columns) {
            int column = (tile - COLUMN_TILES) / 2, at = c.number[column] * TILE + piece;
            if (tile % 2)
                copy_start(&stage.weight[column][piece], steps.weight + at, true);
            else
                copy_start(&stage.delta[column][piece], steps.delta + at, true);
        }
        int column = thread / 32, two = thread % 32 * 2;
        if (column < columns) copy_start(&stage.cs[column][two], steps.cs + c.number[column] * TILE + two, true);
        int before = thread - 2 * 32;
        if (before >= 0 && before < c.pairs[0] && c.first + before > 0)
            copy_start_short<8>(&stage.before[before], steps.cs + (c.first + before) * TILE - 1, true);
    }
    copy_commit();
}

/* ------------------------------------------------------------------------------------------------------- pairs */

/* dY xᵀ of a warp's 16 rows l, and of 32 columns s from FROM on: half a tile at a time leaves registers to what is kept. */
template <int FROM>
static __device__ inline void half_dots(const bf16 (*up)[TILE_LD], const bf16 (*x)[TILE_LD], float (&w)[FRAGMENTS / 2][4])
{
    int lane = threadIdx.x % WARP, matrix = lane / 8;
#pragma unroll
    for (int k = 0; k < FRAGMENTS / 2; k++) w[k][0] = w[k][1] = w[k][2] = w[k][3] = 0;
#pragma unroll
    for (int step = 0; step < HEADDIM / 16; step++) {
        uint32_t l[4], s[4];
        load_matrices(l, &up[tile_warp() * 16 + (matrix & 1) * 8 + lane % 8][step * 16 + (matrix >> 1) * 8]);
#pragma unroll
        for (int k = 0; k < FRAGMENTS / 2; k += 2) {
            load_matrices(s, &x[FROM + k * 8 + (matrix >> 1) * 8 + lane % 8][step * 16 + (matrix & 1) * 8]);
            mma(w[k], l, s[0], s[1]);
            mma(w[k + 1], l, s[2], s[3]);
        }
    }
}

/* dCB += dY xᵀ ⊙ decays, and the sums over rows l of W, without the rows' part of the decay; i > j */
template <int FROM>
static __device__ inline void half_below(const struct column_stage &stage, const struct block_pair &p,
                                         const bf16 (*products)[TILE_LD], const float (&lead)[2],
                                         float (&gathered)[FRAGMENTS][4], float (&sums)[2])
{
    int lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4, row = tile_warp() * 16 + g;
    float w[FRAGMENTS / 2][4];
    half_dots<FROM>(stage.up[p.slot], stage.x[p.column], w);
#pragma unroll
    for (int k = 0; k < FRAGMENTS / 2; k++) {
        int s = FROM + k * 8 + q * 2;
        float2 weight = *reinterpret_cast<const float2 *>(&stage.weight[p.column][s]);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float2 cb = floats_of(*reinterpret_cast<const uint32_t *>(&products[row + r * 8][s]));
            float first = w[k][2 * r] * weight.x, second = w[k][2 * r + 1] * weight.y;
            gathered[FROM / 8 + k][2 * r] += first * lead[r];
            gathered[FROM / 8 + k][2 * r + 1] += second * lead[r];
            sums[r] += first * cb.x;
            sums[r] += second * cb.y;
        }
    }
}

static __device__ inline void pair_below(const struct column_stage &stage, const struct block_pair &p,
                                         const bf16 (*products)[TILE_LD], float gap, float (&gathered)[FRAGMENTS][4],
                                         float *rows)
{
    int lane = threadIdx.x % WARP, row = tile_warp() * 16 + lane / 4;
    float sums[2] = {0, 0};
    const float lead[2] = {stage.lead[p.slot][row] * gap, stage.lead[p.slot][row + 8] * gap};
    half_below<0>(stage, p, products, lead, gathered, sums);
    half_below<TILE / 2>(stage, p, products, lead, gathered, sums);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        sums[r] += __shfl_xor_sync(0xffffffffu, sums[r], 1);
        sums[r] += __shfl_xor_sync(0xffffffffu, sums[r], 2);
        if (lane % 4 == 0) rows[row + r * 8] = sums[r] * lead[r];
    }
}

/* The same for i = j; W goes on as pairs of bf16 numbers (crossing_columns). */
template <int FROM>
static __device__ inline void half_diagonal(const struct column_stage &stage, const struct block_pair &p,
                                            const bf16 (*products)[TILE_LD], float (&gathered)[FRAGMENTS][4],
                                            struct split_rows &split)
{
    int lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4, row = tile_warp() * 16 + g;
    const float2 *cs = stage.cs[p.column];
    float w[FRAGMENTS / 2][4];
    half_dots<FROM>(stage.up[p.slot], stage.x[p.column], w);
#pragma unroll
    for (int k = 0; k < FRAGMENTS / 2; k++) {
        int s = FROM + k * 8 + q * 2;
        float2 delta = *reinterpret_cast<const float2 *>(&stage.delta[p.column][s]);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            int l = row + r * 8;
            float2 cb = floats_of(*reinterpret_cast<const uint32_t *>(&products[l][s]));
            float first = s <= l ? w[k][2 * r] * delta.x * ssd_decay(cs[l], cs[s]) : 0.0f;
            float second = s + 1 <= l ? w[k][2 * r + 1] * delta.y * ssd_decay(cs[l], cs[s + 1]) : 0.0f;
            gathered[FROM / 8 + k][2 * r] += first;
            gathered[FROM / 8 + k][2 * r + 1] += second;
            first = s <= l ? first * cb.x : 0.0f; /* C·B may be anything beyond the picture's end */
            second = s + 1 <= l ? second * cb.y : 0.0f;
            split_pair(split, FROM / 8 + k, r, first, second);
        }
    }
}

/* The same for i = j, with the sums of W over pairs that cross a position. */
static __device__ inline void pair_diagonal(const struct column_stage &stage, const struct block_pair &p,
                                            const bf16 (*products)[TILE_LD], float (&gathered)[FRAGMENTS][4], float *crossing)
{
    struct split_rows split;
    float columns[2 * FRAGMENTS];
    half_diagonal<0>(stage, p, products, gathered, split);
    half_diagonal<TILE / 2>(stage, p, products, gathered, split);
    crossing_columns(split, tile_warp() * 16 + threadIdx.x % WARP / 4, columns);
    warp_columns(columns, crossing + tile_warp() * TILE);
}

/* ---------------------------------------------------------------------------------------------------------- du */

/* A fragment of M's transpose: 16 rows s, 16 columns l of a step; i > j: without the rows' part of the decay. */
template <bool DIAGONAL>
static __device__ inline void du_weights(const struct column_stage &stage, const struct block_pair &p,
                                         const bf16 (*products)[TILE_LD], float gap, int step, uint32_t (&m)[4])
{
    int lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4, matrix = lane / 8;
    int inner = step * 16 + (matrix >> 1) * 8, outer = tile_warp() * 16 + (matrix & 1) * 8;
    const float2 *cs = stage.cs[p.column];
    load_matrices_transposed(m, &products[inner + lane % 8][outer]);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int l = step * 16 + half * 8 + q * 2;
        float2 lead = *reinterpret_cast<const float2 *>(&stage.lead[p.slot][l]);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            int s = tile_warp() * 16 + r * 8 + g;
            float2 weight = floats_of(m[half * 2 + r]);
            if (DIAGONAL) {
                weight.x = l >= s ? weight.x * ssd_decay(cs[l], cs[s]) : 0.0f;
                weight.y = l + 1 >= s ? weight.y * ssd_decay(cs[l + 1], cs[s]) : 0.0f;
            } else {
                weight.x *= lead.x * gap;
                weight.y *= lead.y * gap;
            }
            m[half * 2 + r] = pair_of(weight.x, weight.y);
        }
    }
}

/* du of tile j, as far as it comes from tile i */
template <bool DIAGONAL>
static __device__ inline void du_tile(const struct column_stage &stage, const struct block_pair &p,
                                      const bf16 (*products)[TILE_LD], float gap, float (&du)[FRAGMENTS][4])
{
    int lane = threadIdx.x % WARP, g = lane / 4, matrix = lane / 8;
#pragma unroll
    for (int k = 0; k < FRAGMENTS; k++) du[k][0] = du[k][1] = du[k][2] = du[k][3] = 0;
#pragma unroll
    for (int step = 0; step < TILE / 16; step++) {
        if (DIAGONAL && step < tile_warp()) continue; /* all of it beyond the diagonal */
        uint32_t m[4];
        du_weights<DIAGONAL>(stage, p, products, gap, step, m);
        const bf16 *base = &stage.up[p.slot][step * 16 + (matrix & 1) * 8 + lane % 8][(matrix >> 1) * 8];
#pragma unroll
        for (int k = 0; k < FRAGMENTS; k += 2) {
            uint32_t up[4];
            load_matrices_transposed(up, base + k * 8);
            mma(du[k], m, up[0], up[1]);
            mma(du[k + 1], m, up[2], up[3]);
        }
    }
    if (DIAGONAL) return;
    const float2 *cs = stage.cs[p.column];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float part = ssd_decay(cs[TILE - 1], cs[tile_warp() * 16 + r * 8 + g]);
#pragma unroll
        for (int k = 0; k < FRAGMENTS; k++) du[k][2 * r] *= part, du[k][2 * r + 1] *= part;
    }
}

static __device__ inline void add_part(float (&sum)[4], float4 part)
{
    sum[0] += part.x, sum[1] += part.y, sum[2] += part.z, sum[3] += part.w;
}

/*
 * The last pair of a column adds up du of all its pairs: dx += Δ du + D dY, which takes the place of x in the stage and
 * goes from there to memory; and each position's sums.
 */
static __device__ inline void column_end(const struct backward &a, struct column_room &room, struct column_stage &stage,
                                         const struct block_columns &c, const struct block_pair &p, int64_t b, int64_t h,
                                         const float (&du)[FRAGMENTS][4], bf16 *dxbc)
{
    const struct ssd_shape &n = a.n;
    int thread = threadIdx.x % TILE_THREADS, lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4;
    int row = tile_warp() * 16 + g, others = c.pairs[p.column] - 1, from = p.column ? c.pairs[0] - 1 : 0;
    const bf16(*up)[TILE_LD] = stage.up[p.j - c.first];
    bf16(*x)[TILE_LD] = stage.x[p.column];
    float D = a.D[h], delta[2] = {stage.delta[p.column][row], stage.delta[p.column][row + 8]};
    float below[2] = {0, 0}, along[2] = {0, 0}, dD[2] = {0, 0}; /* du·x of i > j; of all; dY·x */
#pragma unroll
    for (int k = 0; k < FRAGMENTS; k++) {
        float sum[4] = {du[k][0], du[k][1], du[k][2], du[k][3]};
        float4 diagonal = make_float4(0, 0, 0, 0);
        if (others > 0) diagonal = room.handed[from][k][thread];
        if (others > 1) add_part(sum, room.handed[from + 1][k][thread]);
        if (others > 2) add_part(sum, room.handed[from + 2][k][thread]);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            uint32_t *at = reinterpret_cast<uint32_t *>(&x[row + r * 8][k * 8 + q * 2]);
            float2 value_x = floats_of(*at);
            float2 dY = floats_of(*reinterpret_cast<const uint32_t *>(&up[row + r * 8][k * 8 + q * 2]));
            below[r] += sum[2 * r] * value_x.x + sum[2 * r + 1] * value_x.y;
            float first = sum[2 * r] + (r ? diagonal.z : diagonal.x), second = sum[2 * r + 1] + (r ? diagonal.w : diagonal.y);
            along[r] += first * value_x.x + second * value_x.y;
            dD[r] += dY.x * value_x.x + dY.y * value_x.y;
            *at = pair_of(delta[r] * first + D * dY.x, delta[r] * second + D * dY.y);
        }
    }
    int64_t number = b * n.H + h, head = number * n.padded;
#pragma unroll
    for (int r = 0; r < 2; r++) {
#pragma unroll
        for (int gap = 1; gap < 4; gap *= 2) {
            below[r] += __shfl_xor_sync(0xffffffffu, below[r], gap);
            along[r] += __shfl_xor_sync(0xffffffffu, along[r], gap);
            dD[r] += __shfl_xor_sync(0xffffffffu, dD[r], gap);
        }
        int64_t s = (int64_t)p.j * TILE + row + r * 8;
        if (q > 0) continue;
        a.along[head + s] = s < n.T ? along[r] : 0.0f;
        a.dD[head + s] = dD[r];
        if (others > 0) a.columns[(number * n.tiles + p.j + 1) * n.padded + s] = below[r] * delta[r];
    }
    if (thread < TILE) {
        const float(*sums)[TILE] = room.crossing[p.column];
        a.columns[(number * n.tiles + p.j) * n.padded + p.j * TILE + thread] =
            sums[0][thread] + sums[1][thread] + sums[2][thread] + sums[3][thread];
    }
    if (!dxbc) return;
    __syncwarp(); /* each warp copies its own rows */
#pragma unroll
    for (int k = 0; k < 4; k++) {
        int at = tile_warp() * 16 + k * 4 + lane / 8, column = lane % 8 * 8;
        int64_t s = (int64_t)p.j * TILE + at;
        if (s >= n.T) continue;
        bf16 *to = dxbc + (b * n.T + s) * n.C + h * HEADDIM + column;
        if (a.dx_fresh)
            *reinterpret_cast<uint4 *>(to) = *reinterpret_cast<const uint4 *>(&x[at][column]);
        else
            store_add<8>(to, load<8>(&x[at][column]));
    }
}

/* ----------------------------------------------------------------------------------------------------- a block */

/* The pair's part of dCB, complete or of a group of heads; nothing comes from above the diagonal. */
static __device__ inline void write_gathered(const struct backward &a, const struct block_pair &p, int64_t b, int64_t part,
                                             const float (&gathered)[FRAGMENTS][4])
{
    const struct ssd_shape &n = a.n;
    int lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4, row = tile_warp() * 16 + g;
    bf16 *whole = (bf16 *)a.dproducts + b * n.padded * n.padded;
#pragma unroll
    for (int k = 0; k < FRAGMENTS; k++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            int64_t l = p.i * TILE + row + r * 8, s = p.j * TILE + k * 8 + q * 2;
            if (a.pairs) {
                float *to = a.pairs + (part * n.B + b) * n.padded * n.padded + l * n.padded + s;
                *reinterpret_cast<float2 *>(to) = make_float2(gathered[k][2 * r], gathered[k][2 * r + 1]);
                continue;
            }
            uint32_t both = pair_of(gathered[k][2 * r], gathered[k][2 * r + 1]);
            *reinterpret_cast<uint32_t *>(whole + l * n.padded + s) = both;
            if (p.i != p.j) /* the tile on the other side */
                *reinterpret_cast<uint32_t *>(whole + (l + (p.j - p.i) * TILE) * n.padded + s + (p.i - p.j) * TILE) = 0;
        }
}

/* Grid: pictures, groups of heads, kinds. */
static __global__ void __launch_bounds__(COLUMN_THREADS, 1)
    column_tiles(struct backward a, const bf16 *xbc, const bf16 *dy, bf16 *dxbc)
{
    extern __shared__ __align__(16) char shared[];
    struct column_room &room = *reinterpret_cast<struct column_room *>(shared);
    const struct ssd_shape &n = a.n;
    const struct block_columns c = columns_of_kind((int)blockIdx.z, (int)n.tiles);
    int group = threadIdx.x / TILE_THREADS, thread = threadIdx.x % TILE_THREADS;
    const struct block_pair p = pair_of_group(c, group);
    int64_t b = blockIdx.x, first = blockIdx.y * a.per_group;
    int64_t last = first + a.per_group < n.H ? first + a.per_group : n.H;
    float gathered[FRAGMENTS][4];
#pragma unroll
    for (int k = 0; k < FRAGMENTS; k++) gathered[k][0] = gathered[k][1] = gathered[k][2] = gathered[k][3] = 0;
    bf16(*products)[TILE_LD] = room.products[group];
    if (p.works)
        ssd_tile_start(products, (const bf16 *)a.again + (b * n.padded + p.i * TILE) * n.padded + p.j * TILE, n.padded,
                       n.T - p.i * TILE);
    stage_start(a, c, xbc, dy, b, first, room.stages[0]);
    int turn = 0;
    for (int64_t h = first; h < last; h++, turn ^= 1) {
        struct column_stage &stage = room.stages[turn];
        copy_wait<0>();
        __syncthreads(); /* this head is there; everyone is done with the one before */
        if (h + 1 < last) stage_start(a, c, xbc, dy, b, h + 1, room.stages[turn ^ 1]);
        float du[FRAGMENTS][4];
        if (p.works && p.which == 0) {
            pair_diagonal(stage, p, products, gathered, &room.crossing[p.column][0][0]);
            du_tile<true>(stage, p, products, 1.0f, du);
        } else if (p.works) {
            float gap = ssd_decay(stage.before[p.slot], stage.cs[p.column][TILE - 1]);
            float *rows = a.rows + ((b * n.H + h) * n.tiles + p.j) * n.padded + p.i * TILE;
            pair_below(stage, p, products, gap, gathered, rows);
            du_tile<false>(stage, p, products, gap, du);
        }
        if (p.works && !p.last) {
            int to = p.which + (p.column ? c.pairs[0] - 1 : 0);
#pragma unroll
            for (int k = 0; k < FRAGMENTS; k++)
                room.handed[to][k][thread] = make_float4(du[k][0], du[k][1], du[k][2], du[k][3]);
        }
        __syncthreads();
        if (p.works && p.last) column_end(a, room, stage, c, p, b, h, du, dxbc);
    }
    if (p.works) write_gathered(a, p, b, blockIdx.y, gathered);
}

aim_status ssd_columns(struct backend *be, const struct backward *a, const bf16 *xbc, const bf16 *dy, bf16 *dxbc)
{
    const int bytes = (int)sizeof(struct column_room);
    dim3 grid((unsigned)a->n.B, (unsigned)a->groups, (unsigned)kinds_of(a->n.tiles));
    CUDA_TRY(be, cudaFuncSetAttribute(column_tiles, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    column_tiles<<<grid, COLUMN_THREADS, bytes, cuda_of(be)->stream>>>(*a, xbc, dy, dxbc);
    return cuda_launched(be, "ssd_backward: columns");
}
