/*
 * Tensor cores: products of whole tiles of 64 by 64 bf16 numbers, by four warps together; each has 16 rows of the result, in
 * fragments of 8 columns as mma.cuh has them. Hopper's wgmma reads tiles from shared memory and goes on by itself until
 * tile_wait; elsewhere the same is done by mma.
 */
#ifndef AIM_CUDA_TILE_PRODUCT_CUH
#define AIM_CUDA_TILE_PRODUCT_CUH

#include "cuda/ssd.cuh"

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define AIM_WGMMA 1
#else
#define AIM_WGMMA 0
#endif

enum { FRAGMENTS = TILE / 8, STEPS = TILE / 16 }; /* of a row of a tile: 8 columns; of a product's sums: 16 at a time */

/* A tile in shared memory: 16 bytes number p of row r lie in place p ^ r % 8, which is wgmma's "128-byte swizzle". */
struct alignas(1024) square {
    bf16 v[TILE * TILE];
};

/* Where 8 values of a row start. */
static __device__ inline int square_at(int row, int piece)
{
    return row * TILE + ((piece ^ (row & 7)) << 3);
}

/* Fragment (16,16) of rows from `row` on, columns from step * 16 on. */
static __device__ inline void square_fragment(uint32_t (&to)[4], const struct square &from, int row, int step)
{
    int lane = threadIdx.x % WARP, matrix = lane / 8;
    load_matrices(to, &from.v[square_at(row + (matrix & 1) * 8 + lane % 8, step * 2 + (matrix >> 1))]);
}

/* The place of a thread's part of a tile, of four warps: row thread / 8, 16 bytes number thread % 8; and so every 16 rows. */
enum { SQUARE_ROWS = TILE_THREADS * 8 / TILE, SQUARE_TURNS = TILE / SQUARE_ROWS };

static __device__ inline int square_own()
{
    int thread = threadIdx.x % TILE_THREADS;
    return square_at(thread / 8, thread % 8);
}

/*
 * Starts copying rows 0..63, `ld` apart, to shared memory, by four warps of the block; from: the thread's place. Rows from
 * `rows` on become zeros.
 */
static __device__ inline void square_start(struct square &to, const bf16 *from, int64_t ld, int64_t rows)
{
    bf16 *place = &to.v[square_own()];
    if (rows >= TILE) {
#pragma unroll
        for (int k = 0; k < SQUARE_TURNS; k++) copy_start(place + k * SQUARE_ROWS * TILE, from + k * SQUARE_ROWS * ld, true);
        return;
    }
    int row = threadIdx.x % TILE_THREADS / 8;
    const bf16 *start = from - row * ld;
#pragma unroll 1
    for (int k = 0; k < SQUARE_TURNS; k++, from += SQUARE_ROWS * ld) {
        bool wanted = row + k * SQUARE_ROWS < rows;
        copy_start(place + k * SQUARE_ROWS * TILE, wanted ? from : start, wanted);
    }
}

/* to = from, row s times scale[s] times `all`, by four warps of the block; they may be the same. */
static __device__ inline void scale_square(const struct square &from, const float *scale, float all, struct square &to)
{
    int first = threadIdx.x % TILE_THREADS / 8;
#pragma unroll
    for (int k = 0; k < SQUARE_TURNS; k++) {
        int at = square_own() + k * SQUARE_ROWS * TILE;
        float factor = scale[first + k * SQUARE_ROWS] * all;
        __nv_bfloat162 both = __floats2bfloat162_rn(factor, factor);
        memory_pack<__nv_bfloat162, 4> values = *reinterpret_cast<const memory_pack<__nv_bfloat162, 4> *>(&from.v[at]);
#pragma unroll
        for (int i = 0; i < 4; i++) values.v[i] = __hmul2(values.v[i], both);
        *reinterpret_cast<memory_pack<__nv_bfloat162, 4> *>(&to.v[at]) = values;
    }
}

/* Makes what this thread has written to shared memory, or copied there and waited for, known to products after a barrier. */
static __device__ inline void tile_publish()
{
#if AIM_WGMMA
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

/* In front of products whose registers have been touched. */
static __device__ inline void tile_begin()
{
#if AIM_WGMMA
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

/* Ends a group of products. */
static __device__ inline void tile_commit()
{
#if AIM_WGMMA
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

/* Tells the compiler that a finished group has changed its sums. */
static __device__ inline void tile_changed(float (&c)[FRAGMENTS][4])
{
#if AIM_WGMMA
#pragma unroll
    for (int k = 0; k < FRAGMENTS; k++) asm volatile("" : "+f"(c[k][0]), "+f"(c[k][1]), "+f"(c[k][2]), "+f"(c[k][3])::"memory");
#endif
}

/* And that its factors were in use until now. */
static __device__ inline void tile_used(const uint32_t (&a)[STEPS][4])
{
#if AIM_WGMMA
#pragma unroll
    for (int k = 0; k < STEPS; k++) asm volatile("" ::"r"(a[k][0]), "r"(a[k][1]), "r"(a[k][2]), "r"(a[k][3]) : "memory");
#endif
}

/* Until at most N of the groups committed last are under way; then tile_changed, tile_used. */
template <int N> static __device__ inline void tile_wait()
{
#if AIM_WGMMA
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
#endif
}

#if AIM_WGMMA

/* A tile as wgmma wants it: address, 1024 bytes from 8 rows to the next 8, swizzle of 128 bytes. ALONG: sums go along rows. */
template <bool ALONG> static __device__ inline uint64_t square_operand(const struct square &from, int step)
{
    uint32_t address = (uint32_t)__cvta_generic_to_shared(from.v) + (ALONG ? step * 32 : step * 2048);
    const uint64_t eight = 8 * TILE * sizeof(bf16) >> 4, swizzle = 1;
    return (uint64_t)((address & 0x3ffff) >> 4) | eight << 16 | eight << 32 | swizzle << 62;
}

#define TILE_SUMS(c)                                                                                                           \
    "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3]), "+f"(c[1][0]), "+f"(c[1][1]), "+f"(c[1][2]), "+f"(c[1][3]),    \
        "+f"(c[2][0]), "+f"(c[2][1]), "+f"(c[2][2]), "+f"(c[2][3]), "+f"(c[3][0]), "+f"(c[3][1]), "+f"(c[3][2]),               \
        "+f"(c[3][3]), "+f"(c[4][0]), "+f"(c[4][1]), "+f"(c[4][2]), "+f"(c[4][3]), "+f"(c[5][0]), "+f"(c[5][1]),               \
        "+f"(c[5][2]), "+f"(c[5][3]), "+f"(c[6][0]), "+f"(c[6][1]), "+f"(c[6][2]), "+f"(c[6][3]), "+f"(c[7][0]),               \
        "+f"(c[7][1]), "+f"(c[7][2]), "+f"(c[7][3])
#define TILE_PRODUCT                                                                                                           \
    "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,"     \
    "%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}, "

#endif

/*
 * c = a b, or c += a b, of 16 of the sum's terms, number `step`; `a` as a fragment. COLUMNS: rows of b's tile are columns of
 * the factor.
 */
template <bool COLUMNS>
static __device__ inline void tile_product(float (&c)[FRAGMENTS][4], const uint32_t (&a)[4], const struct square &b, int step,
                                           bool add)
{
#if AIM_WGMMA
    asm volatile("{.reg .pred p; setp.ne.b32 p, %37, 0;\n" TILE_PRODUCT "{%32,%33,%34,%35}, %36, p, 1, 1, %38;}"
                 : TILE_SUMS(c)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(square_operand<COLUMNS>(b, step)), "r"((int)add),
                   "n"(COLUMNS ? 0 : 1));
#else
    int lane = threadIdx.x % WARP, matrix = lane / 8;
#pragma unroll
    for (int k = 0; k < FRAGMENTS; k += 2) {
        uint32_t two[4];
        if (!add) c[k][0] = c[k][1] = c[k][2] = c[k][3] = c[k + 1][0] = c[k + 1][1] = c[k + 1][2] = c[k + 1][3] = 0;
        if (COLUMNS)
            load_matrices(two, &b.v[square_at(k * 8 + (matrix >> 1) * 8 + lane % 8, step * 2 + (matrix & 1))]);
        else
            load_matrices_transposed(two, &b.v[square_at(step * 16 + (matrix & 1) * 8 + lane % 8, k + (matrix >> 1))]);
        mma(c[k], a, two[0], two[1]);
        mma(c[k + 1], a, two[2], two[3]);
    }
#endif
}

/* The same with `a` from a tile too; TURNED: its rows are columns of the factor. */
template <bool TURNED, bool COLUMNS>
static __device__ inline void tile_product(float (&c)[FRAGMENTS][4], const struct square &a, const struct square &b, int step,
                                           bool add)
{
#if AIM_WGMMA
    asm volatile("{.reg .pred p; setp.ne.b32 p, %34, 0;\n" TILE_PRODUCT "%32, %33, p, 1, 1, %35, %36;}"
                 : TILE_SUMS(c)
                 : "l"(square_operand<!TURNED>(a, step)), "l"(square_operand<COLUMNS>(b, step)), "r"((int)add),
                   "n"(TURNED ? 1 : 0), "n"(COLUMNS ? 0 : 1));
#else
    int lane = threadIdx.x % WARP, matrix = lane / 8;
    uint32_t rows[4];
    if (TURNED)
        load_matrices_transposed(rows,
                                 &a.v[square_at(step * 16 + (matrix >> 1) * 8 + lane % 8, tile_warp() * 2 + (matrix & 1))]);
    else
        square_fragment(rows, a, tile_warp() * 16, step);
    tile_product<COLUMNS>(c, rows, b, step, add);
#endif
}

#endif
