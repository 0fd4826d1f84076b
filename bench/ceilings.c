#include "ceilings.h"

#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "tensor/limits.h"

enum { PASSES = 5, FMA_ROUNDS = 4000000 };

/*
 * One function per width: CHAINS independent chains of x = x*a + b, all in registers. A multiply-add takes 4 cycles and
 * two start in each, so 8 chains would do on paper. Returns a value that depends on all of them.
 */
enum { CHAINS = 12 };

#define DEFINE_FMA(name, target, lanes)                                                                                        \
    target static double name(int64_t rounds)                                                                                  \
    {                                                                                                                          \
        typedef float vector __attribute__((vector_size(4 * (lanes))));                                                        \
        vector x[CHAINS], a = (vector){0} + 0.999f, b = (vector){0} + 0.001f;                                                  \
        for (int i = 0; i < CHAINS; i++) x[i] = (vector){0} + (float)i;                                                        \
        for (int64_t r = 0; r < rounds; r++)                                                                                   \
            for (int i = 0; i < CHAINS; i++) x[i] = x[i] * a + b;                                                              \
        double sum = 0;                                                                                                        \
        for (int i = 0; i < CHAINS; i++)                                                                                       \
            for (int j = 0; j < (lanes); j++) sum += (double)x[i][j];                                                          \
        return sum;                                                                                                            \
    }

/* Sum of n floats as 8 chains of vectors: the loads are what takes time. */
#define DEFINE_READ(name, target, lanes)                                                                                       \
    target static double name(const float *from, int64_t n)                                                                    \
    {                                                                                                                          \
        typedef float vector __attribute__((vector_size(4 * (lanes))));                                                        \
        vector x[8] = {{0}}, y;                                                                                                \
        for (int64_t at = 0; at < n; at += 8 * (lanes))                                                                        \
            for (int i = 0; i < 8; i++) {                                                                                      \
                memcpy(&y, from + at + i * (lanes), sizeof y);                                                                 \
                x[i] += y;                                                                                                     \
            }                                                                                                                  \
        double sum = 0;                                                                                                        \
        for (int i = 0; i < 8; i++)                                                                                            \
            for (int j = 0; j < (lanes); j++) sum += (double)x[i][j];                                                          \
        return sum;                                                                                                            \
    }

#define ANY_TARGET
DEFINE_FMA(fma_any, ANY_TARGET, 4)
DEFINE_READ(read_any, ANY_TARGET, 4)
#if defined(__x86_64__)
DEFINE_FMA(fma_avx2, __attribute__((target("avx2,fma"))), 8)
DEFINE_FMA(fma_avx512, __attribute__((target("avx512f"))), 16)
DEFINE_READ(read_avx2, __attribute__((target("avx2"))), 8)
#endif

static volatile double sink; /* results go here, so that the work is not optimised away */

double ceiling_fma_gflops(int threads)
{
    double (*run)(int64_t) = fma_any;
    int lanes = 4;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f")) {
        run = fma_avx512;
        lanes = 16;
    } else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        run = fma_avx2;
        lanes = 8;
    }
#endif
    double rates[PASSES], total = 0;
    for (int p = 0; p < PASSES; p++) {
        double start = clock_seconds();
#pragma omp parallel num_threads(threads) reduction(+ : total)
        total += run(FMA_ROUNDS / PASSES);
        rates[p] = 2e-9 * FMA_ROUNDS / PASSES * CHAINS * lanes * threads / (clock_seconds() - start);
    }
    sink = total;
    return limits_median(rates, PASSES);
}

double ceiling_read_gbs(int threads)
{
    const int64_t floats = (int64_t)1 << 28;
    double (*run)(const float *, int64_t) = read_any;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) run = read_avx2;
#endif
    float *block = aligned_alloc(64, (size_t)floats * sizeof(float));
    if (!block) return 0;
    const int64_t share = floats / threads / 64 * 64;
    double rates[PASSES], total = 0;
#pragma omp parallel num_threads(threads)
    memset(block + omp_get_thread_num() * share, 0, (size_t)share * sizeof(float));
    for (int p = 0; p < PASSES; p++) {
        double start = clock_seconds();
#pragma omp parallel num_threads(threads) reduction(+ : total)
        total += run(block + omp_get_thread_num() * share, share);
        rates[p] = 1e-9 * (double)(share * threads) * sizeof(float) / (clock_seconds() - start);
    }
    sink = total;
    free(block);
    return limits_median(rates, PASSES);
}
