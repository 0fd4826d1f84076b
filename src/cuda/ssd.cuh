/*
 * What the forward and the backward of ssd share. The GPU takes a whole sequence as one chunk, whatever its length (spec
 * C5 with S_in = 0): with cs_t = Σ_{j<=t} Δ_j A, u_s = Δ_s x_s and M_ls = (C_l·B_s) exp(cs_l - cs_s),
 *     y_l = Σ_{s<=l} M_ls u_s + D x_l.
 * C·B is the same for all heads and comes from a dense product. Sequences are cut into tiles of 64 positions. Between
 * two tiles the decay is of rank one: with e the end of the earlier tile j and f the position before the later tile i,
 *     exp(cs_l - cs_s) = exp(cs_l - cs_f) exp(cs_f - cs_e) exp(cs_e - cs_s), all arguments <= 0.
 */
#ifndef AIM_CUDA_SSD_CUH
#define AIM_CUDA_SSD_CUH

#include "cuda/mma.cuh"
#include "cuda/values.cuh"

enum { TILE = 64, TILE_THREADS = 128, TILE_LD = TILE + 8 /* keeps ldmatrix off bank conflicts */ };

/* B pictures, T positions (padded: a whole number of tiles), H heads; widths as in ops.def. */
struct ssd_shape {
    int64_t B, T, H, S, E, C, W, padded, tiles;
};

struct ssd_shape ssd_shape_of(const struct tensor *xbc, const struct tensor *zxbcdt, const struct tensor *y);

/*
 * Of every head and position, (B,H,padded): Δ; cs log₂e as a float and what that rounded off, for exact differences; the
 * decay since the end of the tile before, and its log₂; Δ times the decay to the end of the own tile.
 */
struct ssd_steps {
    float *delta;
    float2 *cs;
    float *lead, *inner, *weight;
};

/* The steps of head number `head` of all pictures' heads. */
static __device__ inline struct ssd_steps ssd_steps_of(const struct ssd_steps &all, int64_t head, int64_t padded)
{
    int64_t at = head * padded;
    return {all.delta + at, all.cs + at, all.lead + at, all.inner + at, all.weight + at};
}

/* Fills the steps. */
aim_status ssd_prepare(struct backend *be, const struct ssd_shape *n, const struct tensor *zxbcdt, const struct tensor *A_log,
                       const struct tensor *dt_bias, struct ssd_steps steps);

/* products (B,padded,padded)[l][s] = C_l·B_s, or, transposed, [s][l]; of type `type`, undefined from row or column T on. */
aim_status ssd_products(struct backend *be, const struct ssd_shape *n, const struct tensor *xbc, bool transposed,
                        enum tensor_type type, void *products);

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

/* Takes the steps; the result is the new start of the block. */
static inline char *ssd_take_steps(char *at, const struct ssd_shape *n, struct ssd_steps *steps)
{
    int64_t count = n->B * n->H * n->padded;
    steps->delta = ssd_take<float>(&at, count);
    steps->cs = ssd_take<float2>(&at, count);
    steps->lead = ssd_take<float>(&at, count);
    steps->inner = ssd_take<float>(&at, count);
    steps->weight = ssd_take<float>(&at, count);
    return at;
}

/* 2 to the power of x <= 0 */
static __device__ inline float ssd_power(float x)
{
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
}

/* exp(cs_l - cs_s) for s <= l */
static __device__ inline float ssd_decay(float2 l, float2 s)
{
    return ssd_power((l.x - s.x) + (l.y - s.y));
}

/* What decays from the end of tile j to the position before tile i > j; cs of the head. */
static __device__ inline float ssd_decay_between(const float2 *cs, int64_t i, int64_t j)
{
    return ssd_decay(cs[i * TILE - 1], cs[j * TILE + TILE - 1]);
}

/* A warp's number among the four of a tile. */
static __device__ inline int tile_warp()
{
    return threadIdx.x / WARP % (TILE_THREADS / WARP);
}

/*
 * Starts copying rows 0..63 of 64 values to shared memory, by four warps of the block; those from `rows` on become zeros.
 */
static __device__ inline void ssd_tile_start(bf16 (*shared)[TILE_LD], const bf16 *from, int64_t ld, int64_t rows)
{
    constexpr int PIECES = TILE / 8, ROWS = TILE_THREADS / PIECES; /* of a row; at a time */
    int thread = threadIdx.x % TILE_THREADS, row = thread / PIECES, column = thread % PIECES * 8;
    bf16 *to = &shared[row][column];
    if (rows >= TILE) {
        const bf16 *at = from + row * ld + column;
#pragma unroll
        for (int k = 0; k < TILE / ROWS; k++, at += ROWS * ld) copy_start(to + k * ROWS * TILE_LD, at, true);
    } else {
#pragma unroll
        for (int k = 0; k < TILE / ROWS; k++) {
            bool wanted = row + k * ROWS < rows;
            copy_start(to + k * ROWS * TILE_LD, wanted ? from + (row + k * ROWS) * ld + column : from, wanted);
        }
    }
}

/* Starts copying the values of a tile's 64 positions, by the threads from `first` on. */
template <typename T> static __device__ inline void ssd_line_start(T (&shared)[TILE], const T *from, int first)
{
    constexpr int EACH = 16 / sizeof(T);
    int piece = (int)threadIdx.x - first;
    if (piece >= 0 && piece < TILE / EACH) copy_start(&shared[piece * EACH], from + piece * EACH, true);
}

/* What a block has in shared memory while it goes through the tiles of one head: of each tile, in turns; of its own one. */
struct alignas(16) ssd_stage {
    bf16 values[TILE][TILE_LD], products[TILE][TILE_LD];
    float factor[TILE];
};

struct alignas(16) ssd_mixing {
    struct ssd_stage stages[2];
    float2 cs[TILE];
    float delta[TILE];
};

/* One head of a picture; values lie in rows `ld` apart. */
struct ssd_head {
    struct ssd_steps steps;
    const bf16 *products, *values; /* products (padded,padded)[l][s] */
    int64_t ld;
    int length, padded;
};

template <bool BACKWARD>
static __device__ inline void ssd_stage_start(const struct ssd_head &a, int tile, int other, struct ssd_stage &stage)
{
    int l = BACKWARD ? other : tile, s = BACKWARD ? tile : other, from = other * TILE;
    ssd_tile_start(stage.values, a.values + from * a.ld, a.ld, a.length - from);
    ssd_tile_start(stage.products, a.products + (int64_t)l * TILE * a.padded + s * TILE, a.padded, a.length - l * TILE);
    ssd_line_start(stage.factor, (BACKWARD ? a.steps.lead : a.steps.weight) + from, 0);
    copy_commit();
}

/*
 * A fragment (16,16) of the weights, times the decays: rows of the own tile, columns of the other one. `gap`: what decays
 * between the two tiles; the rows' own part is left for later, except on the diagonal.
 */
template <bool BACKWARD>
static __device__ inline void ssd_weights(const struct ssd_mixing &m, const struct ssd_stage &stage, int step, bool diagonal,
                                          float gap, uint32_t (&a)[4])
{
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4, matrix = lane / 8;
    int inner = step * 16 + (matrix >> 1) * 8, outer = warp * 16 + (matrix & 1) * 8;
    if (BACKWARD)
        load_matrices_transposed(a, &stage.products[inner + lane % 8][outer]);
    else
        load_matrices(a, &stage.products[outer + lane % 8][inner]);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int at = step * 16 + half * 8 + q * 2;
        float2 factor = *reinterpret_cast<const float2 *>((diagonal ? m.delta : stage.factor) + at);
        if (diagonal && BACKWARD) factor = make_float2(1, 1);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            int i = warp * 16 + r * 8 + g;
            float2 weight = floats_of(a[half * 2 + r]), decay = make_float2(gap, gap);
            if (diagonal) {
                decay.x = BACKWARD ? ssd_decay(m.cs[at], m.cs[i]) : ssd_decay(m.cs[i], m.cs[at]);
                decay.y = BACKWARD ? ssd_decay(m.cs[at + 1], m.cs[i]) : ssd_decay(m.cs[i], m.cs[at + 1]);
                if (BACKWARD ? at < i : at > i) weight.x = 0, decay.x = 0;
                if (BACKWARD ? at + 1 < i : at + 1 > i) weight.y = 0, decay.y = 0;
            }
            a[half * 2 + r] = pair_of(weight.x * (factor.x * decay.x), weight.y * (factor.y * decay.y));
        }
    }
}

/*
 * acc = a tile of rows of weight · values, for one head; 4 warps of 16 rows each.
 * Forward: row l, Σ_{s<=l} products[l][s] exp(cs_l - cs_s) Δ_s values[s]; backward: row s,
 * Σ_{s<=l<T} products[l][s] exp(cs_l - cs_s) values[l]. Waits also for copies that the caller has started. The other tiles
 * come first, the own one last; the result is the stage that then holds the values of the tile's own rows.
 */
template <bool BACKWARD>
static __device__ inline int ssd_mix(const struct ssd_head &a, int tile, struct ssd_mixing &m, float (&acc)[8][4])
{
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, matrix = lane / 8;
    int count = BACKWARD ? a.padded / TILE - tile : tile + 1, stage = 0;
#pragma unroll
    for (int n = 0; n < 8; n++) acc[n][0] = acc[n][1] = acc[n][2] = acc[n][3] = 0;
    ssd_line_start(m.cs, a.steps.cs + tile * TILE, 32);
    ssd_line_start(m.delta, a.steps.delta + tile * TILE, 64);
    ssd_stage_start<BACKWARD>(a, tile, BACKWARD ? tile + count - 1 : 0, m.stages[0]);
    for (int k = 0; k < count; k++, stage ^= 1) {
        bool diagonal = k == count - 1;
        int other = BACKWARD ? tile + count - 1 - k : k;
        float gap = diagonal ? 1.0f : ssd_decay_between(a.steps.cs, BACKWARD ? other : tile, BACKWARD ? tile : other);
        if (k > 0) __syncthreads(); /* everyone is done with the tile before */
        if (!diagonal) {
            ssd_stage_start<BACKWARD>(a, tile, BACKWARD ? other - 1 : other + 1, m.stages[stage ^ 1]);
            copy_wait<1>();
        } else {
            copy_wait<0>();
        }
        __syncthreads();
        if (diagonal && k > 0) {
#pragma unroll
            for (int r = 0; r < 2; r++) { /* the rows' part of the decays so far */
                float2 own = m.cs[warp * 16 + r * 8 + lane / 4];
                float part = BACKWARD ? ssd_decay(m.cs[TILE - 1], own) : ssd_decay(own, a.steps.cs[tile * TILE - 1]);
#pragma unroll
                for (int n = 0; n < 8; n++) acc[n][2 * r] *= part, acc[n][2 * r + 1] *= part;
            }
        }
#pragma unroll
        for (int step = 0; step < TILE / 16; step++) {
            if (diagonal && (BACKWARD ? step < warp : step > warp)) continue; /* all of it beyond the diagonal */
            uint32_t weights[4];
            if (diagonal)
                ssd_weights<BACKWARD>(m, m.stages[stage], step, true, gap, weights);
            else
                ssd_weights<BACKWARD>(m, m.stages[stage], step, false, gap, weights);
            const bf16 *base = &m.stages[stage].values[step * 16 + (matrix & 1) * 8 + lane % 8][(matrix >> 1) * 8];
#pragma unroll
            for (int n = 0; n < 8; n += 2) {
                uint32_t b[4];
                load_matrices_transposed(b, base + n * 8);
                mma(acc[n], weights, b[0], b[1]);
                mma(acc[n + 1], weights, b[2], b[3]);
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
