/*
 * Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011): random numbers that are a pure
 * function of (key, counter), so that batch size, threads and devices never change which number a place sees.
 */
#ifndef AIM_BASE_PHILOX_H
#define AIM_BASE_PHILOX_H

#include <stdint.h>

/* What a number is for; different streams never share a counter. */
enum philox_stream {
    PHILOX_SAMPLE = 0,
    PHILOX_INIT = 1,
    PHILOX_SHUFFLE = 2,    /* order of an epoch */
    PHILOX_AUGMENT = 3,    /* crops, mirror images */
    PHILOX_VARIANT = 4,    /* which variant of a cached picture */
    PHILOX_LABEL_DROP = 5, /* which classes become the null class */
    PHILOX_DROPOUT = 8,
    PHILOX_CODEBOOK = 9,
};

struct philox4 {
    uint32_t v[4];
};

/* Kernels of the GPU draw the same numbers. */
#ifdef __CUDACC__
#define PHILOX_FUNCTION static __host__ __device__ inline
#else
#define PHILOX_FUNCTION static inline
#endif

/* counter = (index low, index high, position, stream), key = seed. */
PHILOX_FUNCTION struct philox4 philox(uint64_t seed, uint64_t index, uint32_t position, uint32_t stream)
{
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    uint32_t c0 = (uint32_t)index, c1 = (uint32_t)(index >> 32), c2 = position, c3 = stream;
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0, p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    struct philox4 drawn = {{c0, c1, c2, c3}};
    return drawn;
}

/* Uniform in [0, 1) with 53 bits. */
PHILOX_FUNCTION double philox_double(uint32_t high, uint32_t low)
{
    return (double)((((uint64_t)high << 32) | low) >> 11) * 0x1p-53;
}

/* Uniform in (0, 1), 23 bits and a half step, which float32 still tells from 1: safe under a logarithm. */
PHILOX_FUNCTION float philox_float(uint32_t bits)
{
    return ((float)(bits >> 9) + 0.5f) * 0x1p-23f;
}

/* Uniform among 0 .. n-1; the bias is below n / 2^32. */
static inline uint32_t philox_below(uint32_t bits, uint32_t n)
{
    return (uint32_t)((uint64_t)bits * n >> 32);
}

#endif
