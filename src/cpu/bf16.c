/*
 * Blocks of both matrices are packed as pairs of terms, the way vdpbf16ps wants them: A in tiles of ROWS rows, B in panels
 * of COLS columns, in each the pairs of one term after the other. ROWS x COLS sums then stay in registers.
 */
#include "cpu/bf16.h"

#include <omp.h>

#ifdef __AVX512BF16__

#include <immintrin.h>

enum {
    LANES = 16,
    ROWS = 12,        /* of a tile: 24 sums, a pair of panel vectors and a broadcast fill the registers */
    COLS = 2 * LANES, /* of a panel */
    TASK_TILES = 8,   /* tiles of A ... */
    TASK_PANELS = 4,  /* ... and panels of B in a thread's task */
    BLOCK_TERMS = 1024,
    BLOCK_OUT = 4096, /* rows of A, and columns of B, that are packed at a time */
};

static int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static __mmask16 lanes(int64_t n)
{
    return (__mmask16)(n >= LANES ? 0xffff : n > 0 ? (1 << n) - 1 : 0);
}

static __m512i half_words(__m512 x)
{
    return _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(x));
}

/* `count` rows (or columns) of m from `first` on in strips of `width`, terms k0 .. k0+terms: strip by strip, pair by pair,
 * `width` pairs. Past the ends there are zeros. Here neighbours in a strip are neighbours in memory. */
static inline __attribute__((always_inline)) void pack_across(const int width, struct bf16_operand m, int64_t first,
                                                              int64_t count, int64_t k0, int64_t terms, uint32_t *out)
{
    int64_t pairs = (terms + 1) / 2;
    for (int64_t p = 0; p < pairs; p++) {
        const float *even = m.data + (k0 + 2 * p) * m.term_step + first;
        bool both = 2 * p + 1 < terms;
        for (int64_t i = 0; i < count; i += width)
            for (int64_t v = 0; v < width; v += LANES) {
                __mmask16 live = lanes(min64(count - i, width) - v), room = lanes(width - v);
                __m512i low = half_words(_mm512_maskz_loadu_ps(live, even + i + v)), high = _mm512_setzero_si512();
                if (both) high = _mm512_slli_epi32(half_words(_mm512_maskz_loadu_ps(live, even + m.term_step + i + v)), 16);
                _mm512_mask_storeu_epi32(out + (i / width * pairs + p) * width + v, room, _mm512_or_si512(low, high));
            }
    }
}

/* The same where the terms are neighbours in memory. */
static inline __attribute__((always_inline)) void pack_along(const int width, struct bf16_operand m, int64_t first,
                                                             int64_t count, int64_t k0, int64_t terms, uint32_t *out)
{
    int64_t pairs = (terms + 1) / 2;
    for (int64_t i = 0; i < count; i += width)
        for (int64_t p = 0; p < pairs; p += LANES) {
            uint32_t rows[COLS][LANES] = {{0}};
            int64_t left = terms - 2 * p, n = min64(pairs - p, LANES);
            for (int64_t j = 0; j < min64(count - i, width); j++) {
                const float *from = m.data + (first + i + j) * m.step + k0 + 2 * p;
                __m512 low = _mm512_maskz_loadu_ps(lanes(left), from);
                __m512 high = _mm512_maskz_loadu_ps(lanes(left - LANES), from + LANES);
                _mm512_storeu_si512(rows[j], (__m512i)_mm512_cvtne2ps_pbh(high, low));
            }
            uint32_t *to = out + (i / width * pairs + p) * width;
            for (int64_t q = 0; q < n; q++)
                for (int j = 0; j < width; j++) to[q * width + j] = rows[j][q];
        }
}

static inline __attribute__((always_inline)) void pack(const int width, struct bf16_operand m, int64_t first, int64_t count,
                                                       int64_t k0, int64_t terms, uint32_t *out)
{
    if (m.term_step == 1)
        pack_along(width, m, first, count, k0, terms, out);
    else
        pack_across(width, m, first, count, k0, terms, out);
}

/* How a tile's sums begin, and where they go. */
struct place {
    float *c;
    int64_t ldc;
    const float *bias; /* of the panel; NULL: zero */
    bool continues;    /* with what is in c */
    __mmask16 live[2]; /* columns of the panel that exist */
};

/* GCC 12 moves the sums about between registers when the instruction is an intrinsic. */
static inline __attribute__((always_inline)) __m512 add_pairs(__m512 sum, __m512i b, __m512i a)
{
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(b), "v"(a));
    return sum;
}

static inline __attribute__((always_inline)) void tile(const int rows, int64_t pairs, const uint32_t *a, const uint32_t *b,
                                                       const struct place *at)
{
    __m512 sum[ROWS][2];
    for (int v = 0; v < 2; v++) {
        __m512 start = at->bias ? _mm512_maskz_loadu_ps(at->live[v], at->bias + v * LANES) : _mm512_setzero_ps();
        for (int r = 0; r < rows; r++)
            sum[r][v] = at->continues ? _mm512_maskz_loadu_ps(at->live[v], at->c + r * at->ldc + v * LANES) : start;
    }
    for (int64_t p = 0; p < pairs; p++, a += ROWS, b += COLS) {
        __m512i b0 = _mm512_loadu_si512(b), b1 = _mm512_loadu_si512(b + LANES);
        for (int r = 0; r < rows; r++) {
            __m512i pair = _mm512_set1_epi32((int)a[r]);
            sum[r][0] = add_pairs(sum[r][0], b0, pair);
            sum[r][1] = add_pairs(sum[r][1], b1, pair);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < 2; v++) _mm512_mask_storeu_ps(at->c + r * at->ldc + v * LANES, at->live[v], sum[r][v]);
}

static void tile_of(int64_t rows, int64_t pairs, const uint32_t *a, const uint32_t *b, const struct place *at)
{
    switch (rows) {
#define CASE(n)                                                                                                                \
    case n: tile(n, pairs, a, b, at); break
        CASE(1);
        CASE(2);
        CASE(3);
        CASE(4);
        CASE(5);
        CASE(6);
        CASE(7);
        CASE(8);
        CASE(9);
        CASE(10);
        CASE(11);
#undef CASE
    default: tile(ROWS, pairs, a, b, at); break;
    }
}

/* A block of the product: rows m0 .. m0+rows, columns n0 .. n0+cols, terms k0 .. k0+terms. */
struct block {
    int64_t m0, n0, k0, rows, cols, terms;
};

struct product {
    struct bf16_operand A, B;
    const float *bias;
    bool adds;
    float *C;
    int64_t N;
    uint32_t *a, *b; /* packed */
};

static void run_task(const struct product *w, const struct block *k, int64_t first_tile, int64_t first_panel)
{
    int64_t pairs = (k->terms + 1) / 2;
    for (int64_t n = first_panel * COLS; n < min64((first_panel + TASK_PANELS) * COLS, k->cols); n += COLS)
        for (int64_t m = first_tile * ROWS; m < min64((first_tile + TASK_TILES) * ROWS, k->rows); m += ROWS) {
            struct place at = {.c = w->C + (k->m0 + m) * w->N + k->n0 + n, .ldc = w->N, .continues = w->adds || k->k0 > 0};
            at.bias = w->bias ? w->bias + k->n0 + n : NULL;
            for (int v = 0; v < 2; v++) at.live[v] = lanes(k->cols - n - v * LANES);
            tile_of(min64(k->rows - m, ROWS), pairs, w->a + m * pairs, w->b + n * pairs, &at);
        }
}

/* By all threads of a region. */
static void run_block(const struct product *w, const struct block *k)
{
    const int64_t task_rows = TASK_TILES * ROWS, task_cols = TASK_PANELS * COLS, pairs = (k->terms + 1) / 2;
    int64_t row_tasks = ceil_div(k->rows, task_rows), col_tasks = ceil_div(k->cols, task_cols);
#pragma omp for schedule(dynamic) nowait
    for (int64_t i = 0; i < row_tasks; i++)
        pack(ROWS, w->A, k->m0 + i * task_rows, min64(k->rows - i * task_rows, task_rows), k->k0, k->terms,
             w->a + i * task_rows * pairs);
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < col_tasks; i++)
        pack(COLS, w->B, k->n0 + i * task_cols, min64(k->cols - i * task_cols, task_cols), k->k0, k->terms,
             w->b + i * task_cols * pairs);
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < row_tasks * col_tasks; i++) run_task(w, k, i % row_tasks * TASK_TILES, i / row_tasks * TASK_PANELS);
}

aim_status bf16_product(struct backend *be, int64_t M, int64_t N, int64_t K, struct bf16_operand A, struct bf16_operand B,
                        const float *bias, bool adds, float *C)
{
    struct product w = {.A = A, .B = B, .bias = bias, .adds = adds, .C = C, .N = N};
    int64_t pairs = (min64(K, BLOCK_TERMS) + 1) / 2;
    int64_t rows = ceil_div(min64(M, BLOCK_OUT), ROWS) * ROWS, cols = ceil_div(min64(N, BLOCK_OUT), COLS) * COLS;
    w.a = mem_array(be->ctx, (size_t)(rows * pairs), sizeof *w.a, MEM_ACTIVATIONS);
    w.b = mem_array(be->ctx, (size_t)(cols * pairs), sizeof *w.b, MEM_ACTIVATIONS);
    aim_status status = w.a && w.b ? AIM_OK : AIM_ERR_MEMORY;
    if (status == AIM_OK) {
#pragma omp parallel num_threads(be->threads)
        for (int64_t n0 = 0; n0 < N; n0 += BLOCK_OUT)
            for (int64_t m0 = 0; m0 < M; m0 += BLOCK_OUT)
                for (int64_t k0 = 0; k0 < K; k0 += BLOCK_TERMS)
                    run_block(&w, &(struct block){m0, n0, k0, min64(M - m0, BLOCK_OUT), min64(N - n0, BLOCK_OUT),
                                                  min64(K - k0, BLOCK_TERMS)});
    }
    mem_free(w.a);
    mem_free(w.b);
    return status;
}

bool bf16_available(void)
{
    return __builtin_cpu_supports("avx512bf16");
}

#else

bool bf16_available(void)
{
    return false;
}

aim_status bf16_product(struct backend *be, int64_t M, int64_t N, int64_t K, struct bf16_operand A, struct bf16_operand B,
                        const float *bias, bool adds, float *C)
{
    (void)M, (void)N, (void)K, (void)A, (void)B, (void)bias, (void)adds, (void)C;
    return aim_fail(be->ctx, AIM_ERR_UNSUPPORTED, "this build has no bf16 instructions");
}

#endif
