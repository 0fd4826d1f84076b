/*
 * What the forward and the backward of ssd share. The GPU takes a whole sequence as one chunk, whatever its length (spec
 * C5 with S_in = 0): with cs_t = Σ_{j<=t} Δ_j A, u_s = Δ_s x_s and M_ls = (C_l·B_s) exp(cs_l - cs_s),
 *     y_l = Σ_{s<=l} M_ls u_s + D x_l.
 * C·B is the same for all heads and comes from a dense product. Sequences are cut into tiles of 64 positions.
 */
#ifndef AIM_CUDA_SSD_CUH
#define AIM_CUDA_SSD_CUH

#include "cuda/mma.cuh"

enum { TILE = 64, TILE_THREADS = 128, TILE_LD = TILE + 8 /* keeps ldmatrix off bank conflicts */ };

/* B pictures, T positions (padded: a whole number of tiles), H heads; widths as in ops.def. */
struct ssd_shape {
    int64_t B, T, H, S, E, C, W, padded, tiles;
};

struct ssd_shape ssd_shape_of(const struct tensor *xbc, const struct tensor *zxbcdt, const struct tensor *y);

/* Of every head and position, (B,H,padded): Δ; cs log₂e as a float and what that rounded off, for exact differences. */
struct ssd_steps {
    float *delta;
    float2 *cs;
};

/* Fills the steps. */
aim_status ssd_prepare(struct backend *be, const struct ssd_shape *n, const struct tensor *zxbcdt, const struct tensor *A_log,
                       const struct tensor *dt_bias, struct ssd_steps steps);

/* products (B,padded,padded)[l][s] = C_l·B_s, or, transposed, [s][l]. */
aim_status ssd_products(struct backend *be, const struct ssd_shape *n, const struct tensor *xbc, bool transposed,
                        float *products);

/* Whether the tensor cores can serve: bf16 rows that 16-byte accesses reach. */
static inline bool ssd_tiled(const struct ssd_shape *n, const struct tensor *xbc, const struct tensor *y)
{
    return xbc->type == T_BF16 && n->C % 8 == 0 && aligned(xbc) && aligned(y);
}

/* Takes `count` values from the block at *at (which may start at NULL, to measure), 256-byte aligned. */
template <typename T> static inline T *ssd_take(char **at, int64_t count)
{
    T *taken = (T *)*at;
    *at += ((size_t)count * sizeof(T) + 255) / 256 * 256;
    return taken;
}

/* exp(cs_l - cs_s) for s <= l */
static __device__ inline float ssd_decay(float2 l, float2 s)
{
    float gap = (l.x - s.x) + (l.y - s.y), decay;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(decay) : "f"(gap));
    return decay;
}

/* Starts copying rows 0..63 of 64 values to shared memory; those from `rows` on become zeros. */
static __device__ inline void ssd_tile_start(bf16 (*shared)[TILE_LD], const bf16 *from, int64_t ld, int64_t rows)
{
#pragma unroll
    for (int k = 0; k < TILE * TILE / 8 / TILE_THREADS; k++) {
        int piece = k * TILE_THREADS + threadIdx.x, row = piece / (TILE / 8), column = piece % (TILE / 8) * 8;
        bool wanted = row < rows;
        copy_start(&shared[row][column], wanted ? from + row * ld + column : from, wanted);
    }
}

/*
 * acc = a tile of rows of weight · values, for one head; 4 warps of 16 rows each.
 * Forward: row l, Σ_{s<=l} products[l][s] exp(cs_l - cs_s) Δ_s values[s]; backward: row s,
 * Σ_{s<=l<T} products[s][l] exp(cs_l - cs_s) values[l], products transposed. Of one picture and head: products, cs, delta,
 * values (rows `ld` apart). Two stages of shared memory take the values in turns; the result is the number of the one used
 * last: after the forward, it holds the values of the tile's own rows.
 */
template <bool BACKWARD>
static __device__ inline int ssd_mix(const float *products, const float2 *cs, const float *delta, const bf16 *values,
                                     int64_t ld, int length, int padded, int tile, bf16 (*stages)[TILE][TILE_LD],
                                     float (&acc)[8][4])
{
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4, stage = 0;
    int row = tile * TILE + warp * 16 + g, from = BACKWARD ? tile : 0, end = BACKWARD ? padded / TILE : tile + 1;
    const float2 own[2] = {cs[row], cs[row + 8]};
#pragma unroll
    for (int n = 0; n < 8; n++) acc[n][0] = acc[n][1] = acc[n][2] = acc[n][3] = 0;
    ssd_tile_start(stages[0], values + (int64_t)from * TILE * ld, ld, length - from * TILE);
    copy_commit();
    for (int other = from; other < end; other++, stage ^= 1) {
        if (other > from) __syncthreads(); /* everyone is done with the tile before */
        if (other + 1 < end) {
            int next = other + 1;
            ssd_tile_start(stages[stage ^ 1], values + (int64_t)next * TILE * ld, ld, length - next * TILE);
            copy_commit();
            copy_wait<1>();
        } else {
            copy_wait<0>();
        }
        __syncthreads();
        const bf16(*shared)[TILE_LD] = stages[stage];
#pragma unroll
        for (int step = 0; step < TILE / 16; step++) {
            if (other == tile && (BACKWARD ? step < warp : step > warp)) continue; /* all of it beyond the diagonal */
            uint32_t a[4];
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int at = other * TILE + step * 16 + half * 8 + q * 2;
                float4 both = *reinterpret_cast<const float4 *>(cs + at);
                float2 first = make_float2(both.x, both.y), second = make_float2(both.z, both.w);
                float2 scale = BACKWARD ? make_float2(1, 1) : *reinterpret_cast<const float2 *>(delta + at);
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    int i = row + r * 8;
                    float2 m = *reinterpret_cast<const float2 *>(products + (int64_t)i * padded + at);
                    if (BACKWARD) {
                        m.x = at >= i && at < length ? m.x * ssd_decay(first, own[r]) : 0.0f;
                        m.y = at + 1 >= i && at + 1 < length ? m.y * ssd_decay(second, own[r]) : 0.0f;
                    } else {
                        m.x = at <= i && i < length ? m.x * ssd_decay(own[r], first) * scale.x : 0.0f;
                        m.y = at + 1 <= i && i < length ? m.y * ssd_decay(own[r], second) * scale.y : 0.0f;
                    }
                    a[half * 2 + r] = pair_of(m.x, m.y);
                }
            }
            int matrix = lane / 8;
            const bf16 *base = &shared[step * 16 + (matrix & 1) * 8 + lane % 8][(matrix >> 1) * 8];
#pragma unroll
            for (int n = 0; n < 8; n += 2) {
                uint32_t b[4];
                load_matrices_transposed(b, base + n * 8);
                mma(acc[n], a, b[0], b[1]);
                mma(acc[n + 1], a, b[2], b[3]);
            }
        }
    }
    return stage ^ 1;
}

/* The same row by row, for any type and alignment: 64 threads, one value each. `shared` has room for SSD_CHUNK weights. */
template <bool BACKWARD, typename T>
static __device__ inline float ssd_mix_row(const float *products, const float2 *cs, const float *delta, const T *values,
                                           int64_t ld, int64_t length, int64_t padded, int64_t row, float *shared)
{
    int64_t from = BACKWARD ? row : 0, end = BACKWARD ? length : row + 1;
    float sum = 0;
    for (int64_t first = from; first < end; first += SSD_CHUNK) {
        int64_t count = end - first < SSD_CHUNK ? end - first : SSD_CHUNK;
        __syncthreads();
        for (int64_t k = threadIdx.x; k < count; k += HEADDIM) {
            int64_t at = first + k;
            float decay = BACKWARD ? ssd_decay(cs[at], cs[row]) : ssd_decay(cs[row], cs[at]) * delta[at];
            shared[k] = products[row * padded + at] * decay;
        }
        __syncthreads();
#pragma unroll 4
        for (int64_t k = 0; k < count; k++) sum += shared[k] * value(values[(first + k) * ld + threadIdx.x]);
    }
    return sum;
}

#endif
