/*
 * The inner product of everything dense that is ours: rows of x times one packed panel of PANEL outputs.
 *
 * A panel holds PANEL rows of a weight matrix (N, K) turned K-major: K lines of PANEL values, one contiguous stream.
 * Each output is one chain of multiply-adds over k = 0 .. K-1, whatever the number of rows or threads: that is what
 * makes decoded tokens independent of the batch. PANEL/VLEN accumulators times ROWS rows fill the register file.
 *
 * bf16 panels interleave two vectors of outputs in each 32-bit lane (low half: the first), so that a shift and a mask
 * widen them.
 */
#ifndef AIM_CPU_GEMM_H
#define AIM_CPU_GEMM_H

#include <stdbool.h>

#include "cpu/kernels/simd.h"
#include "tensor/tensor.h"

enum {
    GEMM_VECS = PANEL / VLEN,
    GEMM_ROWS = VLEN == 16  ? 12
                : VLEN == 8 ? 3
                            : 1, /* rows at a time: accumulators = GEMM_ROWS * GEMM_VECS */
    GEMM_ROW_BLOCK = 96,         /* rows that share one pass over a panel */
    GEMM_K_BLOCK = 128,          /* lines of a panel kept in L1 while rows pass by */
    GEMM_AHEAD = 4096,           /* bytes prefetched ahead of a stream that is read once */
    CACHE_LINE = 64,
};

typedef float gemm_acc[GEMM_ROW_BLOCK][PANEL];

/* What a tile prefetches on its way: from `at` on, `lines` cache lines every `step` bytes, one step a k. */
struct gemm_ahead {
    const char *at;
    int64_t step;
    int lines;
};

/* acc[r][*] += Σ_k x[r][k] panel[k][*] for `rows` rows; inlined with constant rows and type. */
static inline __attribute__((always_inline)) void gemm_tile(const int rows, const bool bf16, int64_t k_count, const float *x,
                                                            int64_t ldx, const void *panel, struct gemm_ahead ahead,
                                                            float (*acc)[PANEL])
{
    vf sum[GEMM_ROWS][GEMM_VECS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < GEMM_VECS; v++) sum[r][v] = vload(acc[r] + v * VLEN);
    for (int64_t k = 0; k < k_count; k++) {
        vf w[GEMM_VECS];
        for (int i = 0; i < ahead.lines; i++) __builtin_prefetch(ahead.at + k * ahead.step + i * CACHE_LINE);
        if (bf16) {
            const uint16_t *line = (const uint16_t *)panel + k * PANEL;
            for (int v = 0; v < GEMM_VECS; v += 2) {
                vu pair = *(const vu_mem *)(const void *)(line + v * VLEN);
                w[v] = (vf)(pair << 16);
                w[v + 1] = (vf)(pair & 0xffff0000u);
            }
        } else {
            const float *line = (const float *)panel + k * PANEL;
            for (int v = 0; v < GEMM_VECS; v++) w[v] = vload(line + v * VLEN);
        }
        for (int r = 0; r < rows; r++) {
            vf xk = vset(x[r * ldx + k]);
            for (int v = 0; v < GEMM_VECS; v++) sum[r][v] += w[v] * xk;
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < GEMM_VECS; v++) vstore(acc[r] + v * VLEN, sum[r][v]);
}

/* A tile of 1 .. GEMM_ROWS rows. */
static inline __attribute__((always_inline)) void gemm_rows(int64_t rows, const bool bf16, int64_t k_count, const float *x,
                                                            int64_t ldx, const void *panel, struct gemm_ahead ahead,
                                                            float (*acc)[PANEL])
{
    switch (rows) {
#define GEMM_CASE(n)                                                                                                           \
    case n:                                                                                                                    \
        gemm_tile(n, bf16, k_count, x, ldx, panel, ahead, acc);                                                                \
        break;
#if VLEN == 16
        GEMM_CASE(12)
        GEMM_CASE(11)
        GEMM_CASE(10)
        GEMM_CASE(9)
        GEMM_CASE(8)
        GEMM_CASE(7)
        GEMM_CASE(6)
        GEMM_CASE(5)
        GEMM_CASE(4)
#endif
#if VLEN >= 8
        GEMM_CASE(3)
        GEMM_CASE(2)
#endif
        GEMM_CASE(1)
#undef GEMM_CASE
    default: break;
    }
}

/* n lines of a bf16 panel as float32. */
static inline void gemm_widen(const uint16_t *panel, int64_t n, float *wide)
{
    for (int64_t i = 0; i < n * PANEL; i += 2 * VLEN) {
        vu pair = *(const vu_mem *)(const void *)(panel + i);
        vstore(wide + i, (vf)(pair << 16));
        vstore(wide + i + VLEN, (vf)(pair & 0xffff0000u));
    }
}

/*
 * acc[0..rows) += x (rows,K; leading dimension ldx) times the panel. rows <= GEMM_ROW_BLOCK.
 * Few rows read the panel once, as fast as memory gives it. More rows take it block by block: each block is widened
 * (bf16) and reused from L1 by tile after tile, while the tiles fetch the next block
 * between them.
 */
static inline void gemm_panel(bool bf16, int64_t rows, int64_t K, const float *x, int64_t ldx, const void *panel, gemm_acc acc)
{
    const int64_t line = PANEL * (bf16 ? (int64_t)sizeof(uint16_t) : (int64_t)sizeof(float));
    const char *lines = panel;
    if (rows <= GEMM_ROWS) {
        if (bf16)
            gemm_rows(rows, true, K, x, ldx, lines, (struct gemm_ahead){lines + GEMM_AHEAD, line, 1}, acc);
        else
            gemm_rows(rows, false, K, x, ldx, lines, (struct gemm_ahead){lines + GEMM_AHEAD, line, 2}, acc);
        return;
    }
    _Alignas(CACHE_LINE) float wide[GEMM_K_BLOCK * PANEL];
    const int64_t tiles = (rows + GEMM_ROWS - 1) / GEMM_ROWS;
    for (int64_t k = 0; k < K; k += GEMM_K_BLOCK) {
        int64_t n = K - k < GEMM_K_BLOCK ? K - k : GEMM_K_BLOCK;
        const void *block = lines;
        if (bf16) {
            gemm_widen((const uint16_t *)block, n, wide);
            block = wide;
        }
        lines += n * line;
        for (int64_t i = 0; i < tiles; i++) {
            int64_t from = rows * i / tiles, to = rows * (i + 1) / tiles; /* tiles of nearly equal size */
            struct gemm_ahead ahead = {lines + n * line * i / tiles, line / tiles, 1};
            gemm_rows(to - from, false, n, x + from * ldx + k, ldx, block, ahead, acc + from);
        }
    }
}

/* Where output j of line k stands in a bf16 panel: pairs of vectors share their 32-bit lanes. */
static inline int64_t gemm_bf16_at(int64_t k, int64_t j)
{
    int64_t pair = j / (2 * VLEN), half = j / VLEN % 2, lane = j % VLEN;
    return k * PANEL + (pair * VLEN + lane) * 2 + half;
}

/* Element (n, k) of a packed matrix. */
static inline float gemm_packed_at(const struct tensor *w, int64_t n, int64_t k)
{
    int64_t panel = n / PANEL * PANEL * w->shape[1], j = n % PANEL;
    if (w->type == T_BF16_PACKED) return bf16_to_f32(((const uint16_t *)w->data)[panel + gemm_bf16_at(k, j)]);
    return ((const float *)w->data)[panel + k * PANEL + j];
}

/* Packs rows n0 .. n0+PANEL of w (N, K) into one panel; rows past N are zero. A short run of each row at a time, so that
 * reads are contiguous and writes stay in L1. */
static inline void gemm_pack_panel(const struct tensor *w, int64_t N, int64_t K, int64_t n0, bool to_bf16, void *panel)
{
    enum { RUN = 16 };
    int64_t live = N - n0 < PANEL ? N - n0 : PANEL;
    for (int64_t k = 0; k < K; k += RUN) {
        int64_t n = K - k < RUN ? K - k : RUN;
        for (int64_t j = 0; j < PANEL; j++) {
            float run[RUN] = {0};
            int64_t at = (n0 + j) * K + k;
            if (j < live && w->type == T_BF16)
                for (int64_t i = 0; i < n; i++) run[i] = bf16_to_f32(((const uint16_t *)w->data)[at + i]);
            else if (j < live)
                memcpy(run, (const float *)w->data + at, (size_t)n * sizeof(float));
            if (to_bf16)
                for (int64_t i = 0; i < n; i++) ((uint16_t *)panel)[gemm_bf16_at(k + i, j)] = bf16_from_f32(run[i]);
            else
                for (int64_t i = 0; i < n; i++) ((float *)panel)[(k + i) * PANEL + j] = run[i];
        }
    }
}

#endif
