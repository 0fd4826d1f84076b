/*
 * Backward of ssd by whole columns of tiles (ssd_backward.cuh), for up to COLUMN_TILES tiles and a GPU with the shared memory
 * for it. A block takes one or two columns of a picture, up to five pairs of tiles (i,j), and goes through the heads: x of
 * tile j and dY of tiles i >= j are read once a head, and serve dCB, ddA and du. Four warps keep to a pair: its part of dCB
 * stays in their registers over all heads, its C·B in shared memory. With n tiles the columns of 4 and 1 pairs make one kind
 * of block, those of 3 and 2 the other.
 *
 * Everything lies transposed, rows s and columns l: then M, once it is formed, is at once the left factor of du.
 */
#include "cuda/ahead.cuh"
#include "cuda/ssd_backward.cuh"

enum { PAIRS = 5, COLUMN_THREADS = PAIRS * TILE_THREADS, FRAGMENTS = 8 /* of 8 columns */, STEPS = TILE / 16 };

/* What a block reads of a head: dY of tiles first, first+1, ...; x of the columns' tiles; steps. */
struct alignas(16) column_stage {
    bf16 up[COLUMN_TILES][TILE][TILE_LD], x[2][TILE][TILE_LD];
    float lead[COLUMN_TILES][TILE], weight[2][TILE], delta[2][TILE];
    float2 cs[2][TILE], before[COLUMN_TILES]; /* cs of the columns' tiles; of the position before each tile of dY */
};

struct alignas(16) column_room {
    struct column_stage stages[2];                   /* of this head and the next one */
    bf16 products[PAIRS][TILE][TILE_LD];             /* C·B of each pair */
    bf16 du[PAIRS][TILE][TILE_LD];                   /* Δ du as far as it comes from each pair */
    float rows[PAIRS][TILE];                         /* sums of W over l */
    float columns[PAIRS][TILE_THREADS / WARP][TILE]; /* and over a warp's s; on the diagonal, crossing sums */
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

/* Starts copying the steps that a block needs of a head; 128 threads. */
static __device__ inline void lines_start(const struct block_columns &c, const struct ssd_steps &steps,
                                          struct column_stage &stage)
{
    int thread = threadIdx.x % TILE_THREADS, columns = c.pairs[1] ? 2 : 1;
    int tile = thread / 16, piece = thread % 16 * 4, column = thread / 32, two = thread % 32 * 2, before = thread - 64;
    if (tile < c.pairs[0]) copy_start(&stage.lead[tile][piece], steps.lead + (c.first + tile) * TILE + piece, true);
    if (column < columns) copy_start(&stage.cs[column][two], steps.cs + c.number[column] * TILE + two, true);
    if (tile < columns) copy_start(&stage.weight[tile][piece], steps.weight + c.number[tile] * TILE + piece, true);
    if (tile < columns) copy_start(&stage.delta[tile][piece], steps.delta + c.number[tile] * TILE + piece, true);
    if (before >= 0 && before < c.pairs[0] && c.first + before > 0)
        copy_start_short<8>(&stage.before[before], steps.cs + (c.first + before) * TILE - 1, true);
}

/* Starts copying tile number `which` of those that a block reads of head h of picture b, if there is one; 128 threads. */
static __device__ inline void block_tile_start(const struct ssd_shape &n, const struct block_columns &c, const bf16 *xbc,
                                               const bf16 *dy, int64_t b, int64_t h, int which, struct column_stage &stage)
{
    int column = which - c.pairs[0];
    if (column >= (c.pairs[1] ? 2 : 1)) return;
    int tile = column < 0 ? c.first + which : c.number[column];
    int64_t row = b * n.T + tile * TILE, ld = column < 0 ? n.E : n.C;
    bf16(*to)[TILE_LD] = column < 0 ? stage.up[which] : stage.x[column];
    ssd_tile_start(to, (column < 0 ? dy : xbc) + row * ld + h * HEADDIM, ld, n.T - tile * TILE);
}

/* ------------------------------------------------------------------------------------------------------- pairs */

/* What a warp has of its pair for a head: M as left factors of du, 16 columns a step. */
struct pair_factors {
    uint32_t m[STEPS][4];
};

/* x dYᵀ of a warp's 16 rows s, and of N fragments of columns l from `from` on: a part of a tile leaves registers to others. */
template <int N>
static __device__ inline void pair_dots_of(const bf16 (*x)[TILE_LD], const bf16 (*up)[TILE_LD], int from, float (&w)[N][4])
{
    int lane = threadIdx.x % WARP, matrix = lane / 8;
#pragma unroll
    for (int k = 0; k < N; k++) w[k][0] = w[k][1] = w[k][2] = w[k][3] = 0;
#pragma unroll
    for (int step = 0; step < HEADDIM / 16; step++) {
        uint32_t s[4], l[4];
        load_matrices(s, &x[tile_warp() * 16 + (matrix & 1) * 8 + lane % 8][step * 16 + (matrix >> 1) * 8]);
#pragma unroll
        for (int k = 0; k < N; k += 2) {
            load_matrices(l, &up[from + k * 8 + (matrix >> 1) * 8 + lane % 8][step * 16 + (matrix & 1) * 8]);
            mma(w[k], s, l[0], l[1]);
            mma(w[k + 1], s, l[2], l[3]);
        }
    }
}

/* C·B of a warp's 16 rows s and the 16 columns l of a step. */
static __device__ inline void load_products(const bf16 (*products)[TILE_LD], int step, uint32_t (&cb)[4])
{
    int lane = threadIdx.x % WARP, matrix = lane / 8;
    load_matrices(cb, &products[tile_warp() * 16 + (matrix & 1) * 8 + lane % 8][step * 16 + (matrix >> 1) * 8]);
}

/* Sums over the four lanes of a row, to out[s] of the tile. */
static __device__ inline void write_rows(float (&sums)[2], float *out)
{
    int lane = threadIdx.x % WARP, row = tile_warp() * 16 + lane / 4;
#pragma unroll
    for (int r = 0; r < 2; r++) {
        sums[r] += __shfl_xor_sync(0xffffffffu, sums[r], 1);
        sums[r] += __shfl_xor_sync(0xffffffffu, sums[r], 2);
        if (lane % 4 == 0) out[row + r * 8] = sums[r];
    }
}

/* Half of the columns, for i > j; weight: Δ and the decays from s to tile i. */
template <int HALF>
static __device__ inline void half_below(const struct column_stage &stage, const struct block_pair &p,
                                         const bf16 (*products)[TILE_LD], const float (&weight)[2],
                                         float (&gathered)[FRAGMENTS][4], struct pair_factors &factors, float (&rows)[2],
                                         float *columns_out)
{
    int lane = threadIdx.x % WARP, q = lane % 4;
    float w[FRAGMENTS / 2][4], columns[FRAGMENTS];
    pair_dots_of<FRAGMENTS / 2>(stage.x[p.column], stage.up[p.slot], HALF * TILE / 2, w);
#pragma unroll
    for (int step = 0; step < STEPS / 2; step++) {
        uint32_t cb[4];
        load_products(products, HALF * STEPS / 2 + step, cb);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int k = step * 2 + half, all = HALF * FRAGMENTS / 2 + k;
            float2 lead = *reinterpret_cast<const float2 *>(&stage.lead[p.slot][all * 8 + q * 2]);
            columns[2 * k] = columns[2 * k + 1] = 0;
#pragma unroll
            for (int r = 0; r < 2; r++) {
                float2 c = floats_of(cb[half * 2 + r]);
                float first = w[k][2 * r] * weight[r], second = w[k][2 * r + 1] * weight[r];
                float m0 = c.x * lead.x, m1 = c.y * lead.y;
                gathered[all][2 * r] += first * lead.x;
                gathered[all][2 * r + 1] += second * lead.y;
                factors.m[all / 2][half * 2 + r] = pair_of(m0, m1);
                first *= m0, second *= m1; /* W */
                rows[r] += first + second;
                columns[2 * k] += first;
                columns[2 * k + 1] += second;
            }
        }
    }
    fold_columns<4, 16>(columns, lane);
    fold_columns<2, 8>(columns, lane);
    fold_columns<1, 4>(columns, lane);
    int at = (lane >> 4 & 1) * 4 + (lane >> 3 & 1) * 2 + (lane >> 2 & 1); /* pairs of columns 2q, 2q+1, fragment by fragment */
    columns_out[HALF * TILE / 2 + at / 2 * 8 + q * 2 + at % 2] = columns[0];
}

/*
 * A step of 16 columns on the diagonal; cs of the lane's rows s. W goes on as pairs of bf16 numbers; dD: of the head's tile.
 */
static __device__ inline void step_diagonal(const struct column_stage &stage, const struct block_pair &p,
                                            const bf16 (*products)[TILE_LD], int step, const float2 (&own)[2],
                                            const float (&delta)[2], float (&gathered)[FRAGMENTS][4],
                                            struct pair_factors &factors, struct split_rows &split, float (&rows)[2], float *dD)
{
    int lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4, row = tile_warp() * 16 + g;
    float w[2][4];
    uint32_t cb[4];
    pair_dots_of<2>(stage.x[p.column], stage.up[p.slot], step * 16, w);
    load_products(products, step, cb);
    if (step == tile_warp() && q == g / 2) { /* this lane has dY·x of its rows' own positions */
        dD[row] = g % 2 ? w[0][1] : w[0][0];
        dD[row + 8] = g % 2 ? w[1][3] : w[1][2];
    }
#pragma unroll
    for (int k = 0; k < 2; k++) {
        int l = step * 16 + k * 8 + q * 2;
        float2 cs[2] = {stage.cs[p.column][l], stage.cs[p.column][l + 1]};
#pragma unroll
        for (int r = 0; r < 2; r++) {
            int s = row + r * 8;
            float2 c = floats_of(cb[k * 2 + r]);
            float decay0 = l >= s ? ssd_decay(cs[0], own[r]) : 0.0f, decay1 = l + 1 >= s ? ssd_decay(cs[1], own[r]) : 0.0f;
            float first = w[k][2 * r] * delta[r], second = w[k][2 * r + 1] * delta[r], m0 = c.x * decay0, m1 = c.y * decay1;
            gathered[step * 2 + k][2 * r] += first * decay0;
            gathered[step * 2 + k][2 * r + 1] += second * decay1;
            factors.m[step][k * 2 + r] = pair_of(m0, m1);
            first *= m0, second *= m1; /* W */
            rows[r] += first + second;
            split_pair(split, step * 2 + k, r, first, second);
        }
    }
}

/*
 * columns = Σ over a lane's two rows s of Σ_{l>=t} W_ls where s < t: W times a triangle of ones, by the tensor cores. `row` is
 * the first of the lane's rows in the tile.
 */
static __device__ inline void crossing_rows(const struct split_rows &w, int row, float (&columns)[2 * FRAGMENTS])
{
    const uint32_t ones = 0x3f803f80u;
    int lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4;
    uint32_t corner = (2 * q >= g ? 0x3f80u : 0u) | (2 * q + 1 >= g ? 0x3f800000u : 0u);
#pragma unroll
    for (int k = 0; k < FRAGMENTS; k++) {
        columns[2 * k] = columns[2 * k + 1] = 0;
        if (k / 2 < tile_warp()) continue; /* left of the diagonal */
        float after[4] = {0, 0, 0, 0};
#pragma unroll
        for (int step = k / 2; step < STEPS; step++) {
            bool own = step == k / 2;
            uint32_t lower = !own ? ones : k % 2 == 0 ? corner : 0, upper = own && k % 2 == 1 ? corner : ones;
            mma(after, w.whole[step], lower, upper);
            mma(after, w.rest[step], lower, upper);
        }
#pragma unroll
        for (int e = 0; e < 2; e++) {
            int t = k * 8 + q * 2 + e;
            columns[2 * k + e] = (row < t ? after[e] : 0.0f) + (row + 8 < t ? after[2 + e] : 0.0f);
        }
    }
}

/* dCB += x dYᵀ ⊙ decays; M; the sums of W over rows and over columns; i > j */
static __device__ inline void pair_below(const struct column_stage &stage, const struct block_pair &p,
                                         const bf16 (*products)[TILE_LD], const float (&weight)[2],
                                         float (&gathered)[FRAGMENTS][4], struct pair_factors &factors, float *rows_out,
                                         float *columns_out)
{
    float rows[2] = {0, 0};
    half_below<0>(stage, p, products, weight, gathered, factors, rows, columns_out + tile_warp() * TILE);
    half_below<1>(stage, p, products, weight, gathered, factors, rows, columns_out + tile_warp() * TILE);
    write_rows(rows, rows_out);
}

/* The same for i = j, with crossing sums in place of those over columns. */
static __device__ inline void pair_diagonal(const struct column_stage &stage, const struct block_pair &p,
                                            const bf16 (*products)[TILE_LD], float (&gathered)[FRAGMENTS][4],
                                            struct pair_factors &factors, float *rows_out, float *columns_out, float *dD)
{
    int row = tile_warp() * 16 + threadIdx.x % WARP / 4;
    struct split_rows split;
    float rows[2] = {0, 0}, columns[2 * FRAGMENTS];
    const float delta[2] = {stage.delta[p.column][row], stage.delta[p.column][row + 8]};
    const float2 own[2] = {stage.cs[p.column][row], stage.cs[p.column][row + 8]};
#pragma unroll
    for (int step = 0; step < STEPS; step++)
        if (step >= tile_warp()) /* else all of it left of the diagonal */
            step_diagonal(stage, p, products, step, own, delta, gathered, factors, split, rows, dD);
    crossing_rows(split, row, columns);
    warp_columns(columns, columns_out + tile_warp() * TILE);
    write_rows(rows, rows_out);
}

/* ---------------------------------------------------------------------------------------------------------- du */

/*
 * Δ du of tile j, as far as it comes from tile i, to out; scale: of a lane's rows, Δ and what M lacks of the decays. Half the
 * columns at a time.
 */
static __device__ inline void du_tile(const bf16 (*up)[TILE_LD], const struct pair_factors &factors, bool diagonal,
                                      const float (&scale)[2], bf16 (*out)[TILE_LD])
{
    int lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4, matrix = lane / 8;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float du[FRAGMENTS / 2][4];
#pragma unroll
        for (int k = 0; k < FRAGMENTS / 2; k++) du[k][0] = du[k][1] = du[k][2] = du[k][3] = 0;
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            if (diagonal && step < tile_warp()) continue;
            const bf16 *base = &up[step * 16 + (matrix & 1) * 8 + lane % 8][half * HEADDIM / 2 + (matrix >> 1) * 8];
#pragma unroll
            for (int k = 0; k < FRAGMENTS / 2; k += 2) {
                uint32_t b[4];
                load_matrices_transposed(b, base + k * 8);
                mma(du[k], factors.m[step], b[0], b[1]);
                mma(du[k + 1], factors.m[step], b[2], b[3]);
            }
        }
#pragma unroll
        for (int k = 0; k < FRAGMENTS / 2; k++)
#pragma unroll
            for (int r = 0; r < 2; r++)
                *reinterpret_cast<uint32_t *>(&out[tile_warp() * 16 + r * 8 + g][half * HEADDIM / 2 + k * 8 + q * 2]) =
                    pair_of(du[k][2 * r] * scale[r], du[k][2 * r + 1] * scale[r]);
    }
}

/* dx += Δ du + D dY for the block's columns, 8 values a thread and turn. */
static __device__ inline void write_dx(const struct backward &a, const struct column_room &room,
                                       const struct column_stage &stage, const struct block_columns &c, int64_t b, int64_t h,
                                       bf16 *dxbc)
{
    enum { EACH = 8, PIECES = TILE * HEADDIM / EACH };
    const struct ssd_shape &n = a.n;
    float D = a.D[h];
    for (int piece = threadIdx.x; piece < (c.pairs[1] ? 2 : 1) * PIECES; piece += COLUMN_THREADS) {
        int of = piece / PIECES, row = piece % PIECES / (HEADDIM / EACH), at = piece % (HEADDIM / EACH) * EACH;
        int from = of ? c.pairs[0] : 0, s = c.number[of] * TILE + row;
        if (s >= n.T) continue;
        bf16 *to = dxbc + (b * n.T + s) * n.C + h * HEADDIM + at;
        pack<EACH> sum = load<EACH>(&stage.up[c.number[of] - c.first][row][at]);
#pragma unroll
        for (int i = 0; i < EACH; i++) sum.v[i] *= D;
        for (int pair = 0; pair < c.pairs[of]; pair++) {
            pack<EACH> part = load<EACH>(&room.du[from + pair][row][at]);
#pragma unroll
            for (int i = 0; i < EACH; i++) sum.v[i] += part.v[i];
        }
        if (a.dx_fresh)
            store<EACH>(to, sum);
        else
            store_add<EACH>(to, sum);
    }
}

/* The sums of a head for cross_sums; half a group's threads. */
static __device__ inline void write_sums(const struct backward &a, const struct column_room &room,
                                         const struct column_stage &stage, const struct block_columns &c,
                                         const struct block_pair &p, int group, int64_t number)
{
    const struct ssd_shape &n = a.n;
    int thread = threadIdx.x % TILE_THREADS;
    const float(*warps)[TILE] = room.columns[group];
    float sum = warps[0][thread] + warps[1][thread] + warps[2][thread] + warps[3][thread];
    (p.which ? a.rows : a.columns)[(number * n.tiles + p.j) * n.padded + p.i * TILE + thread] = sum;
    if (!p.last) return;
    int64_t s = p.j * TILE + thread;
    float below = 0, delta = stage.delta[p.column][thread];
    for (int which = 1; which <= p.which; which++) below += room.rows[group - p.which + which][thread];
    if (p.which > 0) a.columns[(number * n.tiles + p.j + 1) * n.padded + s] = below;
    float all = below + room.rows[group - p.which][thread];
    a.along[number * n.padded + s] = delta > 0 ? all / delta : 0.0f; /* Σ_l W_ls = Δ du·x; without Δ it counts for nothing */
}

/* ----------------------------------------------------------------------------------------------------- a block */

/* The pair's part of dCB, complete or of a group of heads; nothing comes from the other side of the diagonal. */
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
            int64_t at_s = row + r * 8, at_l = k * 8 + q * 2, at = (p.j * TILE + at_s) * n.padded + p.i * TILE + at_l;
            if (a.pairs) {
                float *to = a.pairs + (part * n.B + b) * n.padded * n.padded + at;
                *reinterpret_cast<float2 *>(to) = make_float2(gathered[k][2 * r], gathered[k][2 * r + 1]);
                continue;
            }
            *reinterpret_cast<uint32_t *>(whole + at) = pair_of(gathered[k][2 * r], gathered[k][2 * r + 1]);
            int64_t other = (p.i * TILE + at_s) * n.padded + p.j * TILE + at_l;
            if (p.i != p.j) *reinterpret_cast<uint32_t *>(whole + other) = 0;
        }
}

/* Zeros for C·B of positions l from `exist` on, which is undefined. */
static __device__ inline void clear_products(bf16 (*products)[TILE_LD], int exist)
{
    int thread = threadIdx.x % TILE_THREADS, row = thread / 2;
    for (int l = exist + thread % 2; l < TILE; l += 2) products[row][l] = __float2bfloat16_rn(0.0f);
}

/* Grid: pictures, groups of heads, kinds. */
static __global__ void __launch_bounds__(COLUMN_THREADS, 1)
    column_tiles(struct backward a, const bf16 *xbc, const bf16 *dy, bf16 *dxbc)
{
    extern __shared__ __align__(16) char shared[];
    struct column_room &room = *reinterpret_cast<struct column_room *>(shared);
    const struct ssd_shape &n = a.n;
    const struct block_columns c = columns_of_kind((int)blockIdx.z, (int)n.tiles);
    int group = threadIdx.x / TILE_THREADS;
    const struct block_pair p = pair_of_group(c, group);
    int64_t b = blockIdx.x, first = blockIdx.y * a.per_group;
    int64_t last = first + a.per_group < n.H ? first + a.per_group : n.H;
    float gathered[FRAGMENTS][4];
#pragma unroll
    for (int k = 0; k < FRAGMENTS; k++) gathered[k][0] = gathered[k][1] = gathered[k][2] = gathered[k][3] = 0;
    bf16(*products)[TILE_LD] = room.products[group];
    if (p.works)
        ssd_tile_start(products, (const bf16 *)a.again + (b * n.padded + p.j * TILE) * n.padded + p.i * TILE, n.padded,
                       n.T - p.j * TILE);
    for (int64_t h = first - 1; h < last; h++) { /* the next head's values are asked for, then this one's used */
        int turn = (int)(h - first) & 1;
        if (h >= first) {
            copy_wait<0>();
            __syncthreads(); /* this head is there; everyone is done with the one before */
        }
        if (h == first && n.T % TILE > 0) {
            if (p.works && p.i == n.tiles - 1) clear_products(products, (int)(n.T % TILE));
            __syncthreads();
        }
        if (h + 1 < last) {
            struct column_stage &next = room.stages[turn ^ 1];
            int which = group;
            asm volatile("" : "+r"(which)); /* addresses are computed again for each head: registers are short */
            block_tile_start(n, c, xbc, dy, b, h + 1, which, next);
            block_tile_start(n, c, xbc, dy, b, h + 1, which + PAIRS, next);
            if (group == PAIRS - 1) lines_start(c, ssd_steps_of(a.steps, b * n.H + h + 1, n.padded), next);
            copy_commit();
        }
        if (h < first) continue;
        struct column_stage &stage = room.stages[turn];
        int64_t number = b * n.H + h;
        struct pair_factors factors;
        int row = tile_warp() * 16 + threadIdx.x % WARP / 4;
        float scale[2] = {stage.delta[p.column][row], stage.delta[p.column][row + 8]};
        if (p.works && p.which == 0) {
            pair_diagonal(stage, p, products, gathered, factors, room.rows[group], &room.columns[group][0][0],
                          a.dD + number * n.padded + p.j * TILE);
            du_tile(stage.up[p.slot], factors, true, scale, room.du[group]);
        } else if (p.works) {
            float gap = ssd_decay(stage.before[p.slot], stage.cs[p.column][TILE - 1]);
            scale[0] = stage.weight[p.column][row] * gap, scale[1] = stage.weight[p.column][row + 8] * gap;
            pair_below(stage, p, products, scale, gathered, factors, room.rows[group], &room.columns[group][0][0]);
            du_tile(stage.up[p.slot], factors, false, scale, room.du[group]);
        }
        __syncthreads();
        if (p.works && threadIdx.x % TILE_THREADS < TILE) write_sums(a, room, stage, c, p, group, number);
        if (dxbc) write_dx(a, room, stage, c, b, h, dxbc);
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
