/*
 * Vectors of the tier's own width, as GCC/Clang vector types: the same source is SSE2 or NEON (generic), AVX2+FMA or
 * AVX-512, by the flags its file is compiled with.
 */
#ifndef AIM_CPU_SIMD_H
#define AIM_CPU_SIMD_H

#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define VLEN 16
#elif defined(__AVX2__)
#define VLEN 8
#else
#define VLEN 4
#endif

/* Kernels are named by tier: KERNEL(add) is cpu_avx2_add in the AVX2 objects. */
#define KERNEL_PASTE(tier, name)  cpu_##tier##_##name
#define KERNEL_EXPAND(tier, name) KERNEL_PASTE(tier, name)
#define KERNEL(name)              KERNEL_EXPAND(AIM_TIER, name)

typedef float vf __attribute__((vector_size(4 * VLEN)));
typedef int32_t vi __attribute__((vector_size(4 * VLEN)));
typedef uint32_t vu __attribute__((vector_size(4 * VLEN)));
typedef float vf_mem __attribute__((vector_size(4 * VLEN), aligned(4), may_alias));
typedef uint32_t vu_mem __attribute__((vector_size(4 * VLEN), aligned(2), may_alias));

static inline vf vload(const float *p)
{
    return *(const vf_mem *)p;
}

static inline void vstore(float *p, vf v)
{
    *(vf_mem *)p = v;
}

static inline vf vset(float x)
{
    return x - (vf){0};
}

static inline float vsum(vf v)
{
    float s = 0;
    for (int i = 0; i < VLEN; i++) s += v[i];
    return s;
}

static inline vf vselect(vi mask, vf a, vf b)
{
    return (vf)(((vi)a & mask) | ((vi)b & ~mask));
}

/*
 * e^x within 2 ulp; 0 below -87.3 (the result would be denormal), 2.4e38 and no more above 88.3.
 * x = n ln 2 + r, |r| <= ln(2)/2; e^r by the minimax polynomial of Cephes' expf.
 */
static inline vf vexp(vf x)
{
    const vf low = vset(-87.3f), high = vset(88.3f);
    vi tiny = x < low;
    x = vselect(x > high, high, x);
    x = vselect(tiny, low, x);
    const float round = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    vf n = (x * 1.44269504088896341f + round) - round;
    vf r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    vf p = vset(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    vi scale = (__builtin_convertvector(n, vi) + 127) << 23;
    return vselect(tiny, (vf){0}, p * (vf)scale);
}

static inline vf vsilu(vf x)
{
    return x / (1.0f + vexp(-x));
}

/* Its derivative: σ(x) (1 + x (1 - σ(x))) */
static inline vf vsilu_slope(vf x)
{
    vf sigma = 1.0f / (1.0f + vexp(-x));
    return sigma * (1.0f + x * (1.0f - sigma));
}

/* Loads n <= VLEN values and fills up with zeros; stores n values. */
static inline vf vload_part(const float *p, int64_t n)
{
    if (n == VLEN) return vload(p);
    float buffer[VLEN] = {0};
    memcpy(buffer, p, (size_t)n * sizeof(float));
    return vload(buffer);
}

static inline void vstore_part(float *p, vf v, int64_t n)
{
    if (n == VLEN) {
        vstore(p, v);
        return;
    }
    float buffer[VLEN];
    vstore(buffer, v);
    memcpy(p, buffer, (size_t)n * sizeof(float));
}

#endif
