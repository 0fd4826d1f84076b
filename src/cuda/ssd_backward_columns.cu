/*
 * Backward of ssd by whole columns of tiles (ssd_backward.cuh), for up to COLUMN_TILES tiles and a GPU with the shared memory
 * for it. A block takes one or two columns of a picture, up to five pairs of tiles (i,j), and goes through the heads: x of
 * tile j and dY of tiles i >= j are read once a head, and serve dCB, ddA and du. With n tiles the columns of 4 and 1 pairs make
 * one kind of block, those of 3 and 2 the other: two pairs on the diagonal, three below it. dCB stays in registers over all
 * heads. Four groups of four warps share the work:
 *
 *   groups 0 and 1 have a pair on the diagonal each, where every pair of positions has a decay of its own, and all of du;
 *   group 2 has two pairs below it, of one column, group 3 one, and it starts the copies for the head to come.
 *
 * Below the diagonal the decay is of rank one: with X = x times Δ and the decay to the end of tile j, Y = dY times the decays
 * from there on, all is products of tiles, without a look at single pairs of positions:
 *
 *   dCB += Y Xᵀ;   Δ du = Δ (decays to the end of j) CBᵀ Y;   Σ_s W_ls = Y_l·(CB X)_l;   Σ_l W_ls = x_s·Δ du_s
 *
 * Everything lies transposed, rows s and columns l: then M, once it is formed, is at once the left factor of du.
 */
#include "cuda/ahead.cuh"
#include "cuda/ssd_backward.cuh"
#include "cuda/tile_product.cuh"

enum { GROUPS = 4, COLUMN_THREADS = GROUPS * TILE_THREADS, DIAGONALS = 2, BELOW = 3, PAIRS = DIAGONALS + BELOW };

/* The columns of a kind of block: numbers and how many pairs each has; first: the first tile of dY. */
struct block_columns {
    int number[2], pairs[2], first;
};

/* The pairs (i,j) .. (i+count-1,j) of a group, j the number of column `column`; at: of its first one among the block's. */
struct group_pairs {
    int column, count, i, j, at;
};

/* What a block reads of a head: dY of tiles first, first+1, ...; x of the columns' tiles; steps. */
struct alignas(1024) column_stage {
    struct square up[COLUMN_TILES], x[DIAGONALS];
    float lead[COLUMN_TILES][TILE], weight[DIAGONALS][TILE], delta[DIAGONALS][TILE], inner[DIAGONALS][TILE];
    float direct; /* D */
};

/* Who does what stands there too: registers are short. */
struct alignas(1024) column_room {
    struct column_stage stages[2];          /* of this head and the next one */
    struct square products[PAIRS];          /* C·B: of the diagonal, then below it */
    struct square ups[BELOW], weighted[2];  /* Y of each pair; X of groups 2 and 3 */
    struct square dx[DIAGONALS];            /* on its way to memory */
    float rows[DIAGONALS][TILE];            /* sums of W over l on the diagonal, */
    float below[DIAGONALS][TILE];           /* and below it */
    float direct[DIAGONALS][TILE];          /* dY·x */
    float crossing[DIAGONALS][STEPS][TILE]; /* what of W on the diagonal crosses each position, a warp's s */
    struct block_columns columns;
    struct group_pairs pairs[GROUPS];
};

/*
 * The block's room. Each head asks for it anew, at a place that the compiler does not know to be the same: it would compute all
 * addresses in there ahead of the loop, and have no registers for them.
 */
static __device__ inline struct column_room &room_of_block()
{
    extern __shared__ __align__(1024) char shared[];
    int from = 0;
    asm volatile("" : "+r"(from));
    return *reinterpret_cast<struct column_room *>(shared + from);
}

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

static __device__ inline struct group_pairs pairs_of_group(const struct block_columns &c, int group)
{
    struct group_pairs p;
    int beside[2] = {c.pairs[0] - 1, c.pairs[1] > 0 ? c.pairs[1] - 1 : 0}; /* below the diagonal: up to 3, and up to 1 */
    p.at = group < 3 ? group : PAIRS - 1;
    if (group < DIAGONALS) {
        p.column = group, p.count = c.pairs[group] > 0 ? 1 : 0;
        p.i = c.number[group];
    } else if (group == 2) {
        p.column = 0, p.count = beside[0] < 2 ? beside[0] : 2;
        p.i = c.number[0] + c.pairs[0] - p.count;
    } else {
        p.column = beside[0] == BELOW ? 0 : 1, p.count = p.column ? beside[1] : 1;
        p.i = c.number[p.column] + 1;
    }
    p.j = c.number[p.column];
    return p;
}

/* A barrier for the threads of a group. */
static __device__ inline void group_sync()
{
    asm volatile("bar.sync %0, %1;" ::"r"(2 + threadIdx.x / TILE_THREADS), "r"((int)TILE_THREADS) : "memory");
}

/* Y of all pairs is there: groups 2 and 3 say so, the others wait for it. */
static __device__ inline void ups_ready()
{
    asm volatile("bar.arrive %0, %1;" ::"r"(1), "r"((int)COLUMN_THREADS) : "memory");
}

static __device__ inline void ups_wait()
{
    asm volatile("bar.sync %0, %1;" ::"r"(1), "r"((int)COLUMN_THREADS) : "memory");
}

/* ----------------------------------------------------------------------------------------------------- loading */

/* Where a thread of group 3 copies from, for a head: dY of the first tile, x of the columns' tiles; D; the head's number. */
struct stage_source {
    const bf16 *up, *x[DIAGONALS];
    const float *direct;
    int64_t number;
};

static __device__ inline struct stage_source source_of(const struct backward &a, const struct block_columns &c, const bf16 *xbc,
                                                       const bf16 *dy, int64_t b, int h)
{
    const struct ssd_shape &n = a.n;
    int thread = threadIdx.x % TILE_THREADS, row = thread / 8, column = thread % 8 * 8;
    const bf16 *x = xbc + (b * n.T + row) * n.C + h * HEADDIM + column;
    return {dy + (b * n.T + c.first * TILE + row) * n.E + h * HEADDIM + column,
            {x + c.number[0] * TILE * n.C, x + c.number[1] * TILE * n.C},
            a.D + h,
            b * n.H + h};
}

/* Starts copying what a block needs of a head, and goes on to the next one; 128 threads. */
static __device__ inline void stage_start(const struct backward &a, const struct block_columns &c, struct stage_source &from,
                                          struct column_stage &stage)
{
    const struct ssd_shape &n = a.n;
    const struct ssd_steps steps = ssd_steps_of(a.steps, from.number++, n.padded);
    int thread = threadIdx.x % TILE_THREADS, tile = thread / 16, piece = thread % 16 * 4, columns = c.pairs[1] ? 2 : 1;
    const bf16 *up = from.up;
    for (int k = 0; k < c.pairs[0]; k++, up += TILE * n.E) square_start(stage.up[k], up, n.E, n.T - (c.first + k) * TILE);
    from.up += HEADDIM;
#pragma unroll
    for (int k = 0; k < DIAGONALS; k++) {
        if (k < columns) square_start(stage.x[k], from.x[k], n.C, n.T - c.number[k] * TILE);
        from.x[k] += HEADDIM;
    }
    if (thread == 0) copy_start_short<sizeof(float)>(&stage.direct, from.direct, true);
    from.direct++;
    if (tile < c.pairs[0]) copy_start(&stage.lead[tile][piece], steps.lead + (c.first + tile) * TILE + piece, true);
    if (tile >= columns) return;
    int64_t at = (tile ? c.number[1] : c.number[0]) * TILE + piece;
    copy_start(&stage.weight[tile][piece], steps.weight + at, true);
    copy_start(&stage.delta[tile][piece], steps.delta + at, true);
    copy_start(&stage.inner[tile][piece], steps.inner + at, true);
}

/* Starts copying C·B of all pairs of a block. */
static __device__ inline void products_start(const struct backward &a, const struct block_columns &c, int64_t b,
                                             struct square (&products)[PAIRS])
{
    const struct ssd_shape &n = a.n;
    int thread = threadIdx.x % TILE_THREADS;
    for (int group = 0; group < GROUPS; group++) {
        const struct group_pairs p = pairs_of_group(c, group);
        for (int k = 0; k < p.count; k++)
            square_start(products[p.at + k],
                         (const bf16 *)a.again + (b * n.padded + p.j * TILE + thread / 8) * n.padded + (p.i + k) * TILE +
                             thread % 8 * 8,
                         n.padded, n.T - p.j * TILE);
    }
}

/* Zeros for C·B of the group's pairs with the last tile: of positions l from `exist` on it is undefined. */
static __device__ inline void clear_products(const struct group_pairs &p, int tiles, int exist,
                                             struct square (&products)[PAIRS])
{
    int thread = threadIdx.x % TILE_THREADS, row = thread / 2;
    if (p.count == 0 || p.i + p.count < tiles) return;
    for (int l = exist + thread % 2; l < TILE; l += 2)
        products[p.at + p.count - 1].v[square_at(row, l / 8) + l % 8] = __float2bfloat16_rn(0.0f);
}

/* Everyone has the head whose copies this thread has started, and is done with the one before. */
static __device__ inline void head_wait(bool started)
{
    if (started) {
        copy_wait<0>();
        tile_publish();
    }
    __syncthreads();
}

/* ------------------------------------------------------------------------------------------------------- products */

static __device__ inline void clear(float (&sums)[FRAGMENTS][4])
{
#pragma unroll
    for (int k = 0; k < FRAGMENTS; k++) sums[k][0] = sums[k][1] = sums[k][2] = sums[k][3] = 0;
}

/* ------------------------------------------------------------------------------------------------- on the diagonal */

/* The dot products of a warp's rows from `row` on with those of a tile; all four lanes of a row have them. */
static __device__ inline void row_dots(const float (&x)[FRAGMENTS][4], const struct square &tile, int row, float (&dots)[2])
{
    int q = threadIdx.x % 4;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float sums[2] = {0, 0};
#pragma unroll
        for (int k = 0; k < FRAGMENTS; k++) {
            float2 y = floats_of(*reinterpret_cast<const uint32_t *>(&tile.v[square_at(row + r * 8, k) + q * 2]));
            sums[0] += x[k][2 * r] * y.x;
            sums[1] += x[k][2 * r + 1] * y.y;
        }
        dots[r] = sums[0] + sums[1];
        dots[r] += __shfl_xor_sync(0xffffffffu, dots[r], 1);
        dots[r] += __shfl_xor_sync(0xffffffffu, dots[r], 2);
    }
}

/* Two neighbours of W as bf16 numbers, and what those round off. */
static __device__ inline void split_w(uint32_t &whole, uint32_t &rest, float x, float y)
{
    whole = pair_of(x, y);
    float2 kept = floats_of(whole);
    rest = pair_of(x - kept.x, y - kept.y);
}

/*
 * A warp's 16 rows s, from 16 block on, of tile j with itself. From w = x dYᵀ: dCB; Δ M + D as left factors of dx, 16 columns
 * a step; dY·x; each row's sum of W; and what crosses t = 0..63, Σ_{l>=t} W_ls of the warp's s < t. Where t is among the warp's
 * own positions, that is W times a triangle of ones, by the tensor cores; where it comes after them, sums of columns. All warps
 * have one code for it: instructions would have to wait for each other's otherwise.
 */
static __device__ inline void diagonal_rows(const struct column_stage &stage, struct column_room &room, int column, int block,
                                            const float (&w)[FRAGMENTS][4], float (&gathered)[FRAGMENTS][4],
                                            uint32_t (&m)[STEPS][4])
{
    const uint32_t ones = 0x3f803f80u;
    int lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4, row = block * 16 + g;
    const float delta[2] = {stage.delta[column][row], stage.delta[column][row + 8]};
    const float from[2] = {stage.inner[column][row], stage.inner[column][row + 8]};
    uint32_t whole[4] = {0, 0, 0, 0}, rest[4] = {0, 0, 0, 0};
    uint32_t corner = (2 * q >= g ? 0x3f80u : 0u) | (2 * q + 1 >= g ? 0x3f800000u : 0u);
    float later[2] = {0, 0}, columns[2 * FRAGMENTS];
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        columns[4 * step] = columns[4 * step + 1] = columns[4 * step + 2] = columns[4 * step + 3] = 0;
        if (step < block) { /* left of the diagonal */
            m[step][0] = m[step][1] = m[step][2] = m[step][3] = 0;
            continue;
        }
        square_fragment(m[step], room.products[column], block * 16, step);
        float decay[2][4]; /* times Δ */
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float2 to = *reinterpret_cast<const float2 *>(&stage.inner[column][step * 16 + half * 8 + q * 2]);
#pragma unroll
            for (int r = 0; r < 2; r++) {
                decay[half][2 * r] = ssd_power(to.x - from[r]) * delta[r];
                decay[half][2 * r + 1] = ssd_power(to.y - from[r]) * delta[r];
            }
        }
        if (step == block) {
#pragma unroll
            for (int at = 0; at < 8; at++) { /* l - s: */
                int beyond = at / 4 * 8 + q * 2 + at % 2 - g - at / 2 % 2 * 8;
                if (beyond < 0) decay[at / 4][at % 4] = 0;
            }
        }
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                int k = step * 2 + half;
                float2 c = floats_of(m[step][half * 2 + r]);
                float w0 = w[k][2 * r] * decay[half][2 * r], w1 = w[k][2 * r + 1] * decay[half][2 * r + 1];
                gathered[k][2 * r] += w0;
                gathered[k][2 * r + 1] += w1;
                w0 *= c.x, w1 *= c.y; /* of W */
                c.x *= decay[half][2 * r], c.y *= decay[half][2 * r + 1];
                if (step == block) {
                    int beyond = half * 8 + q * 2 - g - r * 8;
                    if (beyond == 0) c.x += stage.direct, room.direct[column][row + r * 8] = w[k][2 * r];
                    if (beyond == -1) c.y += stage.direct, room.direct[column][row + r * 8] = w[k][2 * r + 1];
                    split_w(whole[half * 2 + r], rest[half * 2 + r], w0, w1);
                } else {
                    later[r] += w0 + w1;
                    columns[2 * k] += w0;
                    columns[2 * k + 1] += w1;
                }
                m[step][half * 2 + r] = pair_of(c.x, c.y);
            }
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        later[r] += __shfl_xor_sync(0xffffffffu, later[r], 1);
        later[r] += __shfl_xor_sync(0xffffffffu, later[r], 2);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float after[4] = {later[0], later[0], later[1], later[1]};
        uint32_t lower = half ? 0 : corner, upper = half ? corner : ones;
        mma(after, whole, lower, upper);
        mma(after, rest, lower, upper);
        if (half == 0 && q == 0) room.rows[column][row] = after[0], room.rows[column][row + 8] = after[2]; /* all of the row */
#pragma unroll
        for (int e = 0; e < 2; e++) {
            int t = half * 8 + q * 2 + e;
            float sum = (g < t ? after[e] : 0.0f) + (g + 8 < t ? after[2 + e] : 0.0f);
#pragma unroll
            for (int step = 0; step < STEPS; step++)
                if (step == block) columns[4 * step + 2 * half + e] = sum;
        }
    }
    fold_columns<8, 16>(columns, lane);
    fold_columns<4, 8>(columns, lane);
    fold_columns<2, 4>(columns, lane); /* now of columns 2 lane and 2 lane + 1 */
    float first = columns[0], second = columns[1];
    bool right = lane / 8 > block;
    float on = sum_from(right ? first + second : 0.0f), above = __shfl_down_sync(0xffffffffu, on, 1);
    if (right) second += lane < WARP - 1 ? above : 0.0f, first += second;
    *reinterpret_cast<float2 *>(&room.crossing[column][block][2 * lane]) = make_float2(first, second);
}

/*
 * sum = weight_s Σ CBᵀ Y, Δ du from the first COUNT pairs below the diagonal for group 0, for a warp's rows from `row` on; of
 * none, from the last one for group 1, whose warps have other rows than they would from a tile. The rows' dot products with x
 * to `below`.
 */
template <int COUNT>
static __device__ inline void du_below(struct column_room &room, const struct column_stage &stage, int column, int row,
                                       float (&sum)[FRAGMENTS][4])
{
    uint32_t rows[STEPS][4];
    float dots[2];
    if (COUNT == 0)
#pragma unroll
        for (int step = 0; step < STEPS; step++) square_fragment(rows[step], room.products[PAIRS - 1], row & ~15, step);
    tile_begin();
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
        if (COUNT == 0) tile_product<false>(sum, rows[step], room.ups[BELOW - 1], step, step > 0);
#pragma unroll
        for (int k = 0; k < COUNT; k++)
            tile_product<false, false>(sum, room.products[DIAGONALS + k], room.ups[k], step, step + k > 0);
    }
    tile_commit();
    tile_wait<0>();
    tile_changed(sum);
    if (COUNT == 0) tile_used(rows);
#pragma unroll
    for (int r = 0; r < 2; r++) {
        float weight = stage.weight[column][row + r * 8];
#pragma unroll
        for (int k = 0; k < FRAGMENTS; k++) sum[k][2 * r] *= weight, sum[k][2 * r + 1] *= weight;
    }
    row_dots(sum, stage.x[column], row, dots);
    if (threadIdx.x % 4 == 0) room.below[column][row] = dots[0], room.below[column][row + 8] = dots[1];
}

/* The sums of a column and a head for cross_sums. */
static __device__ inline void write_sums(const struct backward &a, const struct column_room &room,
                                         const struct column_stage &stage, const struct group_pairs &p, int pairs,
                                         int64_t number)
{
    const struct ssd_shape &n = a.n;
    int thread = threadIdx.x % TILE_THREADS, t = thread % TILE, s = p.j * TILE + t;
    float *columns = a.columns + (number * n.tiles + p.j) * n.padded + s;
    if (thread >= TILE) {
        const float(*warps)[TILE] = room.crossing[p.column];
        *columns = warps[0][t] + warps[1][t] + warps[2][t] + warps[3][t];
        a.dD[number * n.padded + s] = room.direct[p.column][t];
        return;
    }
    float delta = stage.delta[p.column][t], all = room.rows[p.column][t];
    if (pairs > 0) {
        float below = room.below[p.column][t];
        columns[n.padded] = below;
        all += below;
    }
    a.along[number * n.padded + s] = delta > 0 ? all / delta : 0.0f; /* Σ_l W_ls = Δ du·x; without Δ it counts for nothing */
}

/* dx of a tile of `rows` positions, rows `ld` apart, from shared memory to a thread's place. */
static __device__ inline void write_dx(const struct square &dx, bool fresh, int rows, int64_t ld, bf16 *to)
{
    const bf16 *from = &dx.v[square_own()];
    if (fresh && rows >= TILE) {
#pragma unroll
        for (int k = 0; k < SQUARE_TURNS; k++)
            *reinterpret_cast<uint4 *>(to + k * SQUARE_ROWS * ld) =
                *reinterpret_cast<const uint4 *>(from + k * SQUARE_ROWS * TILE);
        return;
    }
#pragma unroll 1
    for (int row = threadIdx.x % TILE_THREADS / 8; row < rows && row < TILE; row += SQUARE_ROWS) {
        if (fresh)
            store<8>(to, load<8>(from));
        else
            store_add<8>(to, load<8>(from));
        to += SQUARE_ROWS * ld, from += SQUARE_ROWS * TILE;
    }
}

/* A head for groups 0 and 1; block: of the warp's rows; dx: the thread's place in memory. */
static __device__ inline void diagonal_head(const struct backward &a, struct column_room &room,
                                            const struct column_stage &stage, const struct group_pairs &p, int pairs, int slot,
                                            int block, int64_t number, bf16 *dx, float (&gathered)[FRAGMENTS][4])
{
    int lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4, row = block * 16 + g;
    const struct square &up = stage.up[slot];
    float w[FRAGMENTS][4];
    uint32_t m[STEPS][4];
#pragma unroll
    for (int step = 0; step < STEPS; step++) square_fragment(m[step], stage.x[p.column], block * 16, step);
    tile_begin();
#pragma unroll
    for (int step = 0; step < STEPS; step++) tile_product<true>(w, m[step], up, step, step > 0);
    tile_commit();
    tile_wait<0>();
    tile_changed(w);
    tile_used(m);
    diagonal_rows(stage, room, p.column, block, w, gathered, m);
    ups_wait();
    if (pairs == 0)
        clear(w);
    else if (p.column == 1)
        du_below<0>(room, stage, p.column, row, w);
    else if (pairs == 1)
        du_below<1>(room, stage, p.column, row, w);
    else if (pairs == 2)
        du_below<2>(room, stage, p.column, row, w);
    else
        du_below<BELOW>(room, stage, p.column, row, w);
    if (dx) {
        tile_begin();
#pragma unroll
        for (int step = 0; step < STEPS; step++) tile_product<false>(w, m[step], up, step, true);
        tile_commit();
        tile_wait<0>();
        tile_changed(w);
        tile_used(m);
#pragma unroll
        for (int k = 0; k < FRAGMENTS; k++)
#pragma unroll
            for (int r = 0; r < 2; r++)
                *reinterpret_cast<uint32_t *>(&room.dx[p.column].v[square_at(row + r * 8, k) + q * 2]) =
                    pair_of(w[k][2 * r], w[k][2 * r + 1]);
    }
    group_sync();
    write_sums(a, room, stage, p, pairs, number);
    if (dx) write_dx(room.dx[p.column], a.dx_fresh, (int)a.n.T - p.j * TILE, a.n.C, dx);
}

/* -------------------------------------------------------------------------------------------------- below the diagonal */

/*
 * A head for group 2 or 3, with COUNT pairs: X, and Y of each pair. first: the first tile of dY of the block.
 */
template <int COUNT>
static __device__ inline void scale_head(struct column_room &room, const struct column_stage &stage,
                                         const struct group_pairs &p, int first)
{
    float gap = 1;
    for (int i = p.j + 1; i < p.i; i++) gap *= stage.lead[i - first][TILE - 1]; /* from the end of tile j to tile i */
    scale_square(stage.x[p.column], stage.weight[p.column], 1, room.weighted[COUNT == 2 ? 0 : 1]);
#pragma unroll
    for (int k = 0; k < COUNT; k++) {
        int slot = p.i + k - first;
        scale_square(stage.up[slot], stage.lead[slot], gap, room.ups[p.at - DIAGONALS + k]);
        gap *= stage.lead[slot][TILE - 1];
    }
    tile_publish();
    ups_ready();
}

/* And from those: dCB, and the sums of W over rows; rows: a lane's place in a.rows. */
template <int COUNT>
static __device__ inline void below_head(const struct column_room &room, const struct group_pairs &p, float *rows,
                                         float (&gathered)[COUNT][FRAGMENTS][4])
{
    int lane = threadIdx.x % WARP, row = tile_warp() * 16 + lane / 4;
    const struct square *products = &room.products[p.at], *ups = &room.ups[p.at - DIAGONALS];
    const struct square &weighted = room.weighted[COUNT == 2 ? 0 : 1];
    float sum[FRAGMENTS][4], dots[2];
    group_sync();
#pragma unroll
    for (int k = 0; k < COUNT; k++) {
        tile_begin();
#pragma unroll
        for (int step = 0; step < STEPS; step++) tile_product<true, false>(sum, products[k], weighted, step, step > 0);
        tile_commit();
#pragma unroll
        for (int step = 0; step < STEPS; step++) tile_product<false, true>(gathered[k], weighted, ups[k], step, true);
        tile_commit();
        tile_wait<1>();
        tile_changed(sum);
        row_dots(sum, ups[k], row, dots);
        if (lane % 4 == 0) rows[k * TILE] = dots[0], rows[k * TILE + 8] = dots[1];
        tile_wait<0>();
        tile_changed(gathered[k]);
    }
}

/* ----------------------------------------------------------------------------------------------------- a block */

/* dCB of pair (i,j), rows from `row` on, complete or of a group of heads; nothing comes from the other side of the diagonal. */
static __device__ inline void write_gathered(const struct backward &a, int i, int j, int row, int64_t b, int64_t part,
                                             const float (&gathered)[FRAGMENTS][4])
{
    const struct ssd_shape &n = a.n;
    int q = threadIdx.x % 4;
    bf16 *whole = (bf16 *)a.dproducts + b * n.padded * n.padded;
#pragma unroll
    for (int k = 0; k < FRAGMENTS; k++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            int64_t at_s = row + r * 8, at_l = k * 8 + q * 2, at = (j * TILE + at_s) * n.padded + i * TILE + at_l;
            if (a.pairs) {
                float *to = a.pairs + (part * n.B + b) * n.padded * n.padded + at;
                *reinterpret_cast<float2 *>(to) = make_float2(gathered[k][2 * r], gathered[k][2 * r + 1]);
                continue;
            }
            *reinterpret_cast<uint32_t *>(whole + at) = pair_of(gathered[k][2 * r], gathered[k][2 * r + 1]);
            int64_t other = (i * TILE + at_s) * n.padded + j * TILE + at_l;
            if (i != j) *reinterpret_cast<uint32_t *>(whole + other) = 0;
        }
}

/* Heads first .. last-1 of picture b for groups 0 and 1. */
static __device__ inline void diagonal_heads(const struct backward &a, const struct group_pairs &p, int b, int first, int last,
                                             bf16 *dxbc)
{
    const struct ssd_shape &n = a.n;
    int thread = threadIdx.x % TILE_THREADS, warp = tile_warp();
    int block = p.column ? 3 - warp : warp; /* block 0 has most to do, and a scheduler has the warps of either group */
    bf16 *dx = dxbc ? dxbc + (b * n.T + p.j * TILE + thread / 8) * n.C + first * HEADDIM + thread % 8 * 8 : NULL;
    float gathered[FRAGMENTS][4];
    clear(gathered);
    for (int h = first; h < last; h++) {
        struct column_room &room = room_of_block();
        head_wait(false);
        if (p.count > 0)
            diagonal_head(a, room, room.stages[(h - first) & 1], p, room.columns.pairs[p.column] - 1, p.j - room.columns.first,
                          block, b * n.H + h, dx, gathered);
        else
            ups_wait();
        if (dx) dx += HEADDIM;
    }
    if (p.count > 0) write_gathered(a, p.i, p.j, block * 16 + threadIdx.x % WARP / 4, b, blockIdx.y, gathered);
}

/* The same for groups 2 and 3; the last one, which never has two pairs, starts the copies. */
template <int COUNT>
static __device__ inline void below_heads(const struct backward &a, const struct group_pairs &p, int b, int first, int last,
                                          const bf16 *xbc, const bf16 *dy)
{
    const struct ssd_shape &n = a.n;
    const bool loads = COUNT == 1 && threadIdx.x / TILE_THREADS == GROUPS - 1;
    int row = tile_warp() * 16 + threadIdx.x % WARP / 4;
    float *rows = a.rows + ((b * n.H + first) * n.tiles + p.j) * n.padded + p.i * TILE + row;
    struct stage_source from = source_of(a, room_of_block().columns, xbc, dy, b, first + 1);
    float gathered[COUNT][FRAGMENTS][4];
#pragma unroll
    for (int k = 0; k < COUNT; k++) clear(gathered[k]);
    for (int h = first; h < last; h++, rows += n.tiles * n.padded) {
        struct column_room &room = room_of_block();
        int turn = (h - first) & 1;
        head_wait(loads);
        if (p.count > 0)
            scale_head<COUNT>(room, room.stages[turn], p, room.columns.first);
        else
            ups_ready();
        if (loads && h + 1 < last) {
            stage_start(a, room.columns, from, room.stages[turn ^ 1]);
            copy_commit();
        }
        if (p.count > 0) below_head<COUNT>(room, p, rows, gathered);
    }
#pragma unroll
    for (int k = 0; k < COUNT; k++)
        if (k < p.count) write_gathered(a, p.i + k, p.j, row, b, blockIdx.y, gathered[k]);
}

/* Grid: pictures, groups of heads, kinds. */
static __global__ void __launch_bounds__(COLUMN_THREADS, 1)
    column_tiles(struct backward a, const bf16 *xbc, const bf16 *dy, bf16 *dxbc)
{
    struct column_room &room = room_of_block();
    const struct ssd_shape &n = a.n;
    int b = blockIdx.x, first = (int)(blockIdx.y * a.per_group), group = threadIdx.x / TILE_THREADS;
    int last = (int)(first + a.per_group < n.H ? first + a.per_group : n.H);
    const struct group_pairs &p = room.pairs[group];
    if (threadIdx.x < GROUPS) {
        const struct block_columns c = columns_of_kind((int)blockIdx.z, (int)n.tiles);
        room.pairs[threadIdx.x] = pairs_of_group(c, threadIdx.x);
        if (threadIdx.x == 0) room.columns = c;
    }
    __syncthreads();
    if (group == GROUPS - 1) {
        products_start(a, room.columns, b, room.products);
        struct stage_source from = source_of(a, room.columns, xbc, dy, b, first);
        stage_start(a, room.columns, from, room.stages[0]);
        copy_commit();
        copy_wait<0>();
    }
    __syncthreads();
    if (n.T % TILE > 0) clear_products(p, (int)n.tiles, (int)(n.T % TILE), room.products);
    tile_publish();
    if (group < DIAGONALS)
        diagonal_heads(a, p, b, first, last, dxbc);
    else if (p.count == 2)
        below_heads<2>(a, p, b, first, last, xbc, dy);
    else
        below_heads<1>(a, p, b, first, last, xbc, dy);
}

aim_status ssd_columns(struct backend *be, const struct backward *a, const bf16 *xbc, const bf16 *dy, bf16 *dxbc)
{
    const int bytes = (int)sizeof(struct column_room);
    dim3 grid((unsigned)a->n.B, (unsigned)a->groups, (unsigned)kinds_of(a->n.tiles));
    CUDA_TRY(be, cudaFuncSetAttribute(column_tiles, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    column_tiles<<<grid, COLUMN_THREADS, bytes, cuda_of(be)->stream>>>(*a, xbc, dy, dxbc);
    return cuda_launched(be, "ssd_backward: columns");
}
