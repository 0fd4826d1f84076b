/* Packing, and products with, matrices of 8-bit numbers; the layout stands in q8.h. */
#include "cpu/kernels/q8.h"

#include <math.h>

#if VLEN > 4
#include <immintrin.h>
#endif

enum {
    WEIGHT_MOST = 127,
    X_MOST = 127 * 256, /* of a row of x: both its bytes then fit in 8 bits with a sign */
    LINE = PANEL * Q8_TERMS,
    AHEAD = 4096, /* bytes prefetched ahead of a panel, which is read once */
    CACHE_LINE = 64,
    FEW_ROWS = 8, /* of x: not worth waking threads to convert them */
};

/* ------------------------------------------------------------------------------------------------ whole numbers */

/* Values at .. at+n of an f32 or bf16 tensor, filled up with zeros. */
static inline vf values(const struct tensor *t, int64_t at, int64_t n)
{
    if (t->type == T_F32) return vload_part(f32(t) + at, n);
    float wide[VLEN] = {0};
    for (int64_t i = 0; i < n; i++) wide[i] = bf16_to_f32(((const uint16_t *)t->data)[at + i]);
    return vload(wide);
}

/* The largest magnitude of row m of t; infinite or NaN if one of them is: as whole numbers the bits of magnitudes have the
 * same order, and those come last. */
static float largest(const struct tensor *t, int64_t m)
{
    int64_t K = tensor_cols(t);
    vi most = {0};
    for (int64_t k = 0; k < K; k += VLEN) {
        vi bits = (vi)values(t, m * K + k, K - k < VLEN ? K - k : VLEN) & 0x7fffffff, larger = bits > most;
        most = (bits & larger) | (most & ~larger);
    }
    int32_t top = 0;
    for (int i = 0; i < VLEN; i++) top = most[i] > top ? most[i] : top;
    float value;
    memcpy(&value, &top, sizeof value);
    return value;
}

/* What makes a row of whole numbers up to `top` of one with values up to `most`; 0 where the row is zeros, next to nothing or
 * not finite. */
static float factor_of(float most, float top)
{
    float factor = top / most;
    return isfinite(most) && isfinite(factor) ? factor : 0.0f;
}

/* The value of 1 in such a row. */
static float scale_of(float most, float top)
{
    return isfinite(most) ? most / top : NAN;
}

/* The nearest whole numbers, ties to even; |x * factor| < 2^22. */
static inline vi nearest(vf x, float factor)
{
    const float round = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    return __builtin_convertvector((x * factor + round) - round, vi);
}

/* ------------------------------------------------------------------------------------------------------ packing */

void KERNEL(q8_pack_panel)(const struct tensor *w, int64_t n0, void *panel)
{
    int64_t K = w->shape[1], live = w->shape[0] - n0 < PANEL ? w->shape[0] - n0 : PANEL;
    float *scales = panel;
    int8_t *lines = (int8_t *)panel + PANEL * sizeof(float);
    memset(panel, 0, q8_panel_bytes(K));
    for (int64_t j = 0; j < live; j++) {
        float most = largest(w, n0 + j), factor = factor_of(most, WEIGHT_MOST);
        scales[j] = scale_of(most, WEIGHT_MOST);
        for (int64_t k = 0; k < K && factor != 0; k += VLEN) {
            int64_t n = K - k < VLEN ? K - k : VLEN;
            vi q = nearest(values(w, (n0 + j) * K + k, n), factor);
            for (int64_t i = 0; i < n; i++) lines[(k + i) / Q8_TERMS * LINE + j * Q8_TERMS + (k + i) % Q8_TERMS] = (int8_t)q[i];
        }
    }
}

/* ----------------------------------------------------------------------------------------------------- rows of x */

/*
 * Rows of x as 16-bit whole numbers, q8_terms(K) of them a row. Where bytes are multiplied, each number is 256 high + low
 * with two bytes of either sign, and the Q8_TERMS high bytes of a line stand before its low ones.
 */
struct rows {
    int16_t *numbers;
    float *scales;
    int32_t (*sums)[2]; /* of high and of low bytes */
    int64_t terms;
};

/* n <= VLEN numbers of a row, n a multiple of Q8_TERMS. */
static inline void store_words(int16_t *to, vi q, int64_t n)
{
    typedef int16_t half_vector __attribute__((vector_size(2 * VLEN)));
    half_vector words = __builtin_convertvector(q, half_vector);
    memcpy(to, &words, (size_t)n * sizeof *to);
}

static inline void store_bytes(int16_t *to, vi high, vi low, int64_t n)
{
    typedef int8_t quarter_vector __attribute__((vector_size(VLEN)));
    quarter_vector bytes[2] = {__builtin_convertvector(high, quarter_vector), __builtin_convertvector(low, quarter_vector)};
    for (int64_t i = 0; i < n; i += Q8_TERMS)
        for (int half = 0; half < 2; half++)
            memcpy((int8_t *)(to + i) + half * Q8_TERMS, (const int8_t *)&bytes[half] + i, Q8_TERMS);
}

static void convert_row(const struct tensor *x, int64_t m, bool bytes, const struct rows *rows)
{
    int64_t K = tensor_cols(x);
    int16_t *out = rows->numbers + m * rows->terms;
    float most = largest(x, m), factor = factor_of(most, X_MOST);
    vi sums[2] = {{0}, {0}};
    rows->scales[m] = scale_of(most, X_MOST);
    if (factor == 0) memset(out, 0, (size_t)rows->terms * sizeof *out);
    for (int64_t k = 0; k < rows->terms && factor != 0; k += VLEN) {
        int64_t there = K - k < VLEN ? K - k : VLEN, n = rows->terms - k < VLEN ? rows->terms - k : VLEN;
        vi q = nearest(values(x, m * K + k, there), factor), high = (q + 128) >> 8, low = q - (high << 8);
        sums[0] += high;
        sums[1] += low;
        if (bytes)
            store_bytes(out + k, high, low, n);
        else
            store_words(out + k, q, n);
    }
    for (int half = 0; half < 2; half++) {
        rows->sums[m][half] = 0;
        for (int i = 0; i < VLEN; i++) rows->sums[m][half] += sums[half][i];
    }
}

/* *block holds them all, to be freed. */
static aim_status convert_rows(struct backend *be, const struct tensor *x, bool bytes, struct rows *rows, void **block)
{
    int64_t M = tensor_rows(x);
    rows->terms = q8_terms(tensor_cols(x));
    size_t numbers = (size_t)rows->terms * sizeof *rows->numbers, each = numbers + sizeof *rows->scales + sizeof *rows->sums;
    char *data = *block = mem_array(be->ctx, (size_t)M, each, MEM_ACTIVATIONS);
    if (!data) return AIM_ERR_MEMORY;
    rows->numbers = (int16_t *)(void *)data;
    rows->sums = (int32_t(*)[2])(void *)(data + (size_t)M * numbers);
    rows->scales = (float *)(void *)(rows->sums + M);
#pragma omp parallel for num_threads(be->threads) schedule(static) if (M > FEW_ROWS)
    for (int64_t m = 0; m < M; m++) convert_row(x, m, bytes, rows);
    return AIM_OK;
}

/* --------------------------------------------------------------------------------- a panel, by products of words */

/* out[j] += a row of x times row j of the panel, over `lines` lines: no more than BLOCK_TERMS terms, so that sums fit. */
enum { BLOCK_TERMS = 512, BLOCK_MOST = BLOCK_TERMS * WEIGHT_MOST * X_MOST }; /* under 2^31 */

#if VLEN > 4

static inline void add_block(const int8_t *line, int64_t lines, const int16_t *x, float *out)
{
    enum { AT_ONCE = 16, PARTS = LINE / AT_ONCE };
    __m256i parts[PARTS];
    for (int v = 0; v < PARTS; v++) parts[v] = _mm256_setzero_si256();
    for (int64_t k = 0; k < lines; k++, line += LINE, x += Q8_TERMS) {
        int64_t four;
        memcpy(&four, x, sizeof four);
        __m256i xs = _mm256_set1_epi64x(four);
        for (int at = 0; at < LINE; at += CACHE_LINE) __builtin_prefetch(line + AHEAD + at);
        for (int v = 0; v < PARTS; v++) {
            __m256i w = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)(line + v * AT_ONCE)));
            parts[v] = _mm256_add_epi32(parts[v], _mm256_madd_epi16(w, xs));
        }
    }
    int32_t pairs[2 * PANEL]; /* two neighbours make a sum */
    memcpy(pairs, parts, sizeof pairs);
    for (int j = 0; j < PANEL; j++) out[j] += (float)(pairs[2 * j] + pairs[2 * j + 1]);
}

#else

static inline void add_block(const int8_t *line, int64_t lines, const int16_t *x, float *out)
{
    int32_t sums[PANEL] = {0};
    for (int64_t k = 0; k < lines; k++, line += LINE, x += Q8_TERMS)
        for (int j = 0; j < PANEL; j++)
            for (int i = 0; i < Q8_TERMS; i++) sums[j] += (int32_t)line[j * Q8_TERMS + i] * x[i];
    for (int j = 0; j < PANEL; j++) out[j] += (float)sums[j];
}

#endif

/* Row m of x times the panel's whole numbers, to out (PANEL). */
static void words_row(const struct rows *rows, int64_t m, const int8_t *lines, float *out)
{
    memset(out, 0, PANEL * sizeof *out);
    for (int64_t k = 0; k < rows->terms; k += BLOCK_TERMS) {
        int64_t n = rows->terms - k < BLOCK_TERMS ? rows->terms - k : BLOCK_TERMS;
        add_block(lines + k * PANEL, n / Q8_TERMS, rows->numbers + m * rows->terms + k, out);
    }
}

/* --------------------------------------------------------------------------------- a panel, by products of bytes (VNNI) */

#if VLEN == 16

enum { TILE_ROWS = 6 }; /* of x: 24 sums and two vectors of weights are in registers */

/* Each 32-bit lane of sum += Σ over four bytes of w (0 .. 255) times those of x (-128 .. 127). In assembly, because gcc 12
 * surrounds the intrinsic with moves; without a memory operand, because sums would then not stay in registers. */
static inline __m512i add_products(__m512i sum, __m512i w, __m512i x)
{
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
    return sum;
}

/* The same four bytes in every lane. */
static inline __m512i spread(const int8_t *x)
{
    int32_t four;
    memcpy(&four, x, sizeof four);
    return _mm512_set1_epi32(four);
}

/*
 * out (count, PANEL) = rows m .. m+count of x times the panel's whole numbers. Weights enter as w + 128, and sums start with
 * -128 Σx. They are whole when they end, up to 2^17 terms, however they wrap around on the way.
 */
static inline __attribute__((always_inline)) void bytes_tile(const int count, const struct rows *rows, int64_t m,
                                                             const int8_t *lines, float (*out)[PANEL])
{
    __m512i high[TILE_ROWS][2], low[TILE_ROWS][2]; /* for both halves of the panel's rows */
    const int64_t row_bytes = rows->terms * 2;
    const int8_t *x = (const int8_t *)(rows->numbers + m * rows->terms);
    const __m512i sign = _mm512_set1_epi8((char)0x80);
    for (int r = 0; r < count; r++) {
        high[r][0] = high[r][1] = _mm512_slli_epi32(_mm512_set1_epi32(-rows->sums[m + r][0]), 7);
        low[r][0] = low[r][1] = _mm512_slli_epi32(_mm512_set1_epi32(-rows->sums[m + r][1]), 7);
    }
    for (int64_t k = 0; k < rows->terms; k += Q8_TERMS, lines += LINE, x += 2 * Q8_TERMS) {
        __builtin_prefetch(lines + AHEAD);
        __builtin_prefetch(lines + AHEAD + LINE / 2);
        __m512i first = _mm512_xor_si512(_mm512_loadu_si512(lines), sign);
        __m512i second = _mm512_xor_si512(_mm512_loadu_si512(lines + LINE / 2), sign);
#pragma GCC unroll 6
        for (int r = 0; r < count; r++) {
            __m512i x_high = spread(x + r * row_bytes), x_low = spread(x + r * row_bytes + Q8_TERMS);
            high[r][0] = add_products(high[r][0], first, x_high);
            high[r][1] = add_products(high[r][1], second, x_high);
            low[r][0] = add_products(low[r][0], first, x_low);
            low[r][1] = add_products(low[r][1], second, x_low);
        }
    }
    for (int r = 0; r < count; r++)
        for (int half = 0; half < 2; half++) {
            __m512 above = _mm512_cvtepi32_ps(high[r][half]), below = _mm512_cvtepi32_ps(low[r][half]);
            _mm512_storeu_ps(out[r] + half * VLEN, _mm512_fmadd_ps(above, _mm512_set1_ps(256), below));
        }
}

static void bytes_rows(int64_t count, const struct rows *rows, int64_t m, const int8_t *lines, float (*out)[PANEL])
{
    switch (count) {
#define TILE(n)                                                                                                                \
    case n: bytes_tile(n, rows, m, lines, out); break;
        TILE(1)
        TILE(2)
        TILE(3)
        TILE(4)
        TILE(5)
        TILE(6)
#undef TILE
    default: break;
    }
}

static bool multiplies_bytes(void)
{
    return __builtin_cpu_supports("avx512vnni");
}

#else

enum { TILE_ROWS = 1 };

static bool multiplies_bytes(void)
{
    return false;
}

static void bytes_rows(int64_t count, const struct rows *rows, int64_t m, const int8_t *lines, float (*out)[PANEL])
{
    (void)count;
    words_row(rows, m, lines, out[0]);
}

#endif

/* ------------------------------------------------------------------------------------------------------- the product */

static void panel_product(bool bytes, const struct rows *rows, const void *panel, int64_t n0, struct tensor *y)
{
    int64_t M = tensor_rows(y), N = tensor_cols(y), live = N - n0 < PANEL ? N - n0 : PANEL;
    const float *scales = panel;
    float out[TILE_ROWS][PANEL];
    for (int64_t m = 0, count; m < M; m += count) {
        count = bytes ? (M - m < TILE_ROWS ? M - m : TILE_ROWS) : 1;
        if (bytes)
            bytes_rows(count, rows, m, q8_panel_lines(panel), out);
        else
            words_row(rows, m, q8_panel_lines(panel), out[0]);
        for (int64_t r = 0; r < count; r++)
            for (int64_t j = 0; j < live; j++) f32(y)[(m + r) * N + n0 + j] = out[r][j] * (scales[j] * rows->scales[m + r]);
    }
}

aim_status KERNEL(q8_product)(struct backend *be, const struct tensor *x, const struct tensor *w, struct tensor *y)
{
    int64_t panels = (w->shape[0] + PANEL - 1) / PANEL, chunk = panels / (8 * be->threads) + 1; /* as for other types */
    size_t panel_bytes = q8_panel_bytes(w->shape[1]);
    bool bytes = multiplies_bytes();
    struct rows rows;
    void *block;
    TRY(convert_rows(be, x, bytes, &rows, &block));
#pragma omp parallel for num_threads(be->threads) schedule(dynamic, chunk)
    for (int64_t p = 0; p < panels; p++)
        panel_product(bytes, &rows, (const char *)w->data + (size_t)p * panel_bytes, p * PANEL, y);
    mem_free(block);
    return AIM_OK;
}
