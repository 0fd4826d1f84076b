/*
 * What the backward of ssd consists of. With G_ls = dY_l·u_s, L_ls = exp(cs_l - cs_s), M = CB ⊙ L, W = G ⊙ M (spec C6 with one
 * chunk; the formulas also stand in cpu/kernels/ssd_backward.c):
 *
 *     du_s  = Σ_l M_ls dY_l;   dCB = Σ_heads G ⊙ L;   dC_l = Σ_s dCB_ls B_s;   dB_s = Σ_l dCB_ls C_l
 *     ddA_t = Σ_{l>=t, s<t} W_ls, summed directly: no difference of large sums
 *
 * A pair of tiles (tile i of l, tile j of s) leaves, per head, what ddA needs: for i > j the sums of W over each row and over
 * each column; for i = j, the sums over pairs that cross t. cross_sums, or column_sums, adds them up. Everything is added up in
 * a fixed order.
 */
#ifndef AIM_CUDA_SSD_BACKWARD_CUH
#define AIM_CUDA_SSD_BACKWARD_CUH

#include "cuda/ssd.cuh"

struct backward {
    struct ssd_shape n;
    struct ssd_steps steps;
    const float *A_log, *dt_bias, *D;
    int64_t groups, per_group; /* of heads */
    float *products;           /* C·B (B,padded,padded), in float32 */
    void *again;               /* the same for du: bf16 where tiles are gone through; transposed unless one by one */
    float *pairs;              /* (groups,B,padded,padded): Σ_heads G ⊙ L; lower tiles only */
    void *dproducts;           /* (B,padded,padded), in the type of the activations: dCB, zeros for s > l */
    float *rows, *columns;     /* (B,H,tiles,padded): [j][l] and [i][s]; on the diagonal, columns holds the crossing sums */
    bool summed;               /* by columns: columns[j+1][s] has the sums of all i > j; pairs, dproducts are transposed */
    float *ddA, *along, *dD;   /* (B,H,padded): ddA; du·x; dY·x */
    bool dx_fresh, dt_fresh;
    float *parameters; /* (B,3,H): sums over positions for A_log, dt_bias, D */
};

/* Where one block goes through whole columns of tiles (ssd_backward_columns.cu): their number, and the memory it takes. */
enum { COLUMN_TILES = 4 };
bool ssd_columns_fit(const struct backend *be, const struct ssd_shape *n);
/* Deals out the heads of pictures to blocks. */
void ssd_columns_deal(const struct backend *be, struct backward *a);
/* du: dx and its sums; rows and columns; dproducts, or, of more than one group, pairs. */
aim_status ssd_columns(struct backend *be, const struct backward *a, const bf16 *xbc, const bf16 *dy, bf16 *dxbc);

/* The sum of x over the lanes from this one on. */
static __device__ inline float sum_from(float x)
{
    int lane = threadIdx.x % WARP;
#pragma unroll
    for (int gap = 1; gap < WARP; gap *= 2) {
        float higher = __shfl_down_sync(0xffffffffu, x, gap);
        if (lane + gap < WARP) x += higher;
    }
    return x;
}

/* acc = dY xᵀ: a warp's 16 rows l, all 64 columns s */
static __device__ inline void pair_dots(const bf16 (*up)[TILE_LD], const bf16 (*x)[TILE_LD], float (&acc)[8][4])
{
    int warp = tile_warp(), lane = threadIdx.x % WARP, matrix = lane / 8;
#pragma unroll
    for (int k = 0; k < 8; k++) acc[k][0] = acc[k][1] = acc[k][2] = acc[k][3] = 0;
#pragma unroll
    for (int step = 0; step < HEADDIM / 16; step++) {
        uint32_t l[4], s[4];
        load_matrices(l, &up[warp * 16 + (matrix & 1) * 8 + lane % 8][step * 16 + (matrix >> 1) * 8]);
#pragma unroll
        for (int k = 0; k < 8; k += 2) {
            load_matrices(s, &x[k * 8 + (matrix >> 1) * 8 + lane % 8][step * 16 + (matrix & 1) * 8]);
            mma(acc[k], l, s[0], s[1]);
            mma(acc[k + 1], l, s[2], s[3]);
        }
    }
}

/* Of two lanes, GAP apart, one goes on with the sums of either half of the columns, HALF each. */
template <int HALF, int GAP, int N> static __device__ inline void fold_columns(float (&columns)[N], int lane)
{
    bool upper = lane & GAP;
#pragma unroll
    for (int k = 0; k < HALF; k++) {
        float other = __shfl_xor_sync(0xffffffffu, upper ? columns[k] : columns[k + HALF], GAP);
        columns[k] = (upper ? columns[k + HALF] : columns[k]) + other;
    }
}

/* A warp's sums of its rows' columns, to out: columns[2k + e] has the two rows of each lane for column 8k + 2q + e. */
static __device__ inline void warp_columns(float (&columns)[16], float *out)
{
    int lane = threadIdx.x % WARP;
    fold_columns<8, 16>(columns, lane);
    fold_columns<4, 8>(columns, lane);
    fold_columns<2, 4>(columns, lane);
    int at = (lane >> 4 & 1) * 4 + (lane >> 3 & 1) * 2 + (lane >> 2 & 1);
    *reinterpret_cast<float2 *>(&out[at * 8 + lane % 4 * 2]) = make_float2(columns[0], columns[1]);
}

/* W of a warp's 16 rows as fragments of two bf16 numbers, the second one what the first one rounds off. */
struct split_rows {
    uint32_t whole[TILE / 16][4], rest[TILE / 16][4];
};

/* Two neighbours in fragment k of 8 columns, rows g + 8r. */
static __device__ inline void split_pair(struct split_rows &to, int k, int r, float x, float y)
{
    uint32_t whole = pair_of(x, y);
    float2 kept = floats_of(whole);
    to.whole[k / 2][k % 2 * 2 + r] = whole;
    to.rest[k / 2][k % 2 * 2 + r] = pair_of(x - kept.x, y - kept.y);
}

/*
 * columns = Σ over a lane's two rows l of Σ_{s<t} W_ls where t <= l: W times a triangle of ones, by the tensor cores. `row` is
 * the first of the lane's rows in the tile.
 */
static __device__ inline void crossing_columns(const struct split_rows &w, int row, float (&columns)[16])
{
    const uint32_t ones = 0x3f803f80u;
    int warp = tile_warp(), lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4;
    uint32_t corner = (2 * q < g ? 0x3f80u : 0u) | (2 * q + 1 < g ? 0x3f800000u : 0u);
#pragma unroll
    for (int k = 0; k < 8; k++) {
        columns[2 * k] = columns[2 * k + 1] = 0;
        if (k / 2 > warp) continue; /* right of the diagonal */
        float before[4] = {0, 0, 0, 0};
#pragma unroll
        for (int step = 0; step <= k / 2; step++) {
            bool own = step == k / 2;
            uint32_t lower = own && k % 2 == 0 ? corner : ones, upper = !own ? ones : k % 2 == 0 ? 0 : corner;
            mma(before, w.whole[step], lower, upper);
            mma(before, w.rest[step], lower, upper);
        }
#pragma unroll
        for (int e = 0; e < 2; e++) {
            int t = k * 8 + q * 2 + e;
            columns[2 * k + e] = (t <= row ? before[e] : 0.0f) + (t <= row + 8 ? before[2 + e] : 0.0f);
        }
    }
}

/* The same from W itself. */
static __device__ inline void crossing_sums(const float (&w)[8][4], int row, float (&columns)[16])
{
    struct split_rows split;
#pragma unroll
    for (int k = 0; k < 8; k++)
#pragma unroll
        for (int r = 0; r < 2; r++) split_pair(split, k, r, w[k][2 * r], w[k][2 * r + 1]);
    crossing_columns(split, row, columns);
}

#endif
