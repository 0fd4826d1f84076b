/*
 * Pieces of a step for many streams (decode_graph.cu). A step reads the whole history of every stream, R·H·t·HEADDIM values a
 * layer, and little else: for 128 streams of AiM-B 50 MB a layer on average, against 8 MB of weights. So what counts is that
 * memory is busy all the time, and that nothing else takes long.
 *
 * A head's history is read by one warp or a few, 16 bytes a lane, BATCH tokens at once. Its weights, a decay times C_t·B_s,
 * stay in the lanes' registers: lane i has token i's. What a kernel will read from memory first is asked for while the kernels
 * before it run, whose products leave memory idle.
 */
#ifndef AIM_CUDA_DECODE_MANY_CUH
#define AIM_CUDA_DECODE_MANY_CUH

#include "cuda/decode.cuh"
#include "cuda/early.cuh"

/* ------------------------------------------------------------------------------------------------------------- sums */

/*
 * Sums of N values over lanes that differ in the bits 16, 8, ... of their number, until every lane is left with LEFT of them:
 * those from place lane / (32 LEFT / N) · LEFT on.
 */
template <int LEFT, int BIT = 16, int N> static __device__ inline void share_sums(float (&v)[N])
{
    constexpr int HALF = N * BIT / 32;
    if constexpr (HALF >= LEFT) {
        bool upper = (threadIdx.x & BIT) != 0;
#pragma unroll
        for (int j = 0; j < HALF; j++) {
            float keep = upper ? v[j + HALF] : v[j], give = upper ? v[j] : v[j + HALF];
            v[j] = keep + __shfl_xor_sync(~0u, give, BIT);
        }
        share_sums<LEFT, BIT / 2>(v);
    }
}

/* The sum over the block's threads, the same bits in all. red: a float a warp, of this call alone. */
static __device__ inline float block_total(float v, float *red)
{
    v = warp_sum(v);
    if (threadIdx.x % 32 == 0) red[threadIdx.x / 32] = v;
    __syncthreads();
    float total = 0;
    for (int w = 0; w < (int)blockDim.x / 32; w++) total += red[w];
    return total;
}

/* ------------------------------------------------------------------------------------------------------ convolution */

/* What a channel of the convolution is made of: loaded first, and used when everything else has been asked for, too. */
struct tap {
    float4 weight;
    float bias, past[CONV_WIDTH - 1];
    float2 now; /* as in_proj left it */
};

/* Channel c at position t, but for its newest input. */
static __device__ inline void tap_begin(const struct decode_view &a, const struct decode_layer &layer, int l, int r, int t,
                                        int c, struct tap *p)
{
    const float *ring = a.ring + ((int64_t)l * a.R + r) * RING * a.C + c;
    p->weight = *(const float4 *)(layer.conv_w + (int64_t)c * CONV_WIDTH);
    p->bias = layer.conv_b[c];
#pragma unroll
    for (int k = 0; k < CONV_WIDTH - 1; k++) {
        int past = t - (CONV_WIDTH - 1) + k;
        p->past[k] = past >= 0 ? __ldcg(ring + (int64_t)(past % RING) * a.C) : 0;
    }
}

/* Column c of in_proj's result, in up to two parts: their sum waits until all that is wanted has been asked for. */
static __device__ inline float2 projected(const struct decode_view &a, int r, int c)
{
    const float *from = a.zxbcdt + (int64_t)r * a.W + c;
    return make_float2(__ldcg(from), a.in_parts > 1 ? __ldcg(from + (int64_t)a.R * a.W) : 0);
}

/* The channel's value; `keeps` puts its newest input into the ring. */
static __device__ inline float tap_end(const struct decode_view &a, int l, int r, int t, int c, const struct tap &p, bool keeps)
{
    float now = p.now.x + p.now.y, sum = p.bias + p.weight.x * p.past[0] + p.weight.y * p.past[1] + p.weight.z * p.past[2];
    if (keeps) a.ring[(((int64_t)l * a.R + r) * RING + t % RING) * a.C + c] = now;
    return silu(sum + p.weight.w * now);
}

/* --------------------------------------------------------------------------------------------------------- the mixer */

/* Lanes of a head's history in the weights' type. */
template <typename X> struct history {
    enum {
        WIDE = 16 / sizeof(X),  /* values of a lane */
        SHARE = HEADDIM / WIDE, /* lanes of a token */
        ROWS = 32 / SHARE,      /* tokens of a warp's access */
        LOADS = 8,              /* accesses under way at once */
        BATCH = LOADS * ROWS
    };
    /* The first of the two channels of a head that a lane is left with after share_sums<2>. */
    static __device__ inline int channel()
    {
        int lane = threadIdx.x % 32;
        return lane % SHARE * WIDE + lane / SHARE * 2;
    }
};

/* Four values as they lie in memory, and as floats. */
static __device__ inline float4 load_raw4(const float *p)
{
    return __ldcg((const float4 *)p);
}

static __device__ inline uint2 load_raw4(const bf16 *p)
{
    return __ldcg((const uint2 *)p);
}

static __device__ inline float4 floats4(float4 raw)
{
    return raw;
}

static __device__ inline float4 floats4(uint2 raw)
{
    return make_float4(__uint_as_float(raw.x << 16), __uint_as_float(raw.x & 0xffff0000u), __uint_as_float(raw.y << 16),
                       __uint_as_float(raw.y & 0xffff0000u));
}

/* What is read again only a whole token later is the first to leave the cache. */
static __device__ inline uint4 load_history(const void *from, bool wanted)
{
    return wanted ? __ldcs((const uint4 *)from) : make_uint4(0, 0, 0, 0);
}

/* y += weight u, for the values of 16 bytes */
static __device__ inline void add_values(uint4 u, float weight, float (&y)[4])
{
    const unsigned part[4] = {u.x, u.y, u.z, u.w};
#pragma unroll
    for (int j = 0; j < 4; j++) y[j] += weight * __uint_as_float(part[j]);
}

static __device__ inline void add_values(uint4 u, float weight, float (&y)[8])
{
    const unsigned part[4] = {u.x, u.y, u.z, u.w};
#pragma unroll
    for (int j = 0; j < 4; j++) {
        y[2 * j] += weight * __uint_as_float(part[j] << 16);
        y[2 * j + 1] += weight * __uint_as_float(part[j] & 0xffff0000u);
    }
}

static __device__ inline void store2(float *p, float x, float y)
{
    *(float2 *)p = make_float2(x, y);
}

static __device__ inline void store2(bf16 *p, float x, float y)
{
    *(__nv_bfloat162 *)p = __floats2bfloat162_rn(x, y);
}

/* cb[s] = C_t·B_s for s <= t of a stream, by the whole block. history (T,S); bc (2S): B_t, C_t. Ends without a barrier. */
template <typename X> static __device__ inline void match_history(const X *history_b, int S, int t, const float *bc, float *cb)
{
    enum { MATCHES = 8, LANES = 32 / MATCHES }; /* tokens of a warp at once, lanes that share one's sum at the end */
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int first = warp * MATCHES; first < t; first += (int)blockDim.x / 32 * MATCHES) {
        float sum[MATCHES];
#pragma unroll
        for (int j = 0; j < MATCHES; j++) sum[j] = 0;
#pragma unroll 1
        for (int n = 4 * lane; n < S; n += 128) {
            float4 c = *(const float4 *)(bc + S + n);
            decltype(load_raw4(history_b)) raw[MATCHES];
#pragma unroll
            for (int j = 0; j < MATCHES; j++) raw[j] = load_raw4(history_b + (unsigned)(min(first + j, t - 1) * S + n));
#pragma unroll
            for (int j = 0; j < MATCHES; j++) {
                float4 b = floats4(raw[j]);
                sum[j] += b.x * c.x + b.y * c.y + b.z * c.z + b.w * c.w;
            }
        }
        share_sums<1>(sum);
#pragma unroll
        for (int o = LANES / 2; o; o /= 2) sum[0] += __shfl_xor_sync(~0u, sum[0], o);
        int s = first + lane / LANES;
        if (lane % LANES == 0 && s < t) cb[s] = sum[0];
    }
    if (warp == (int)blockDim.x / 32 - 1) { /* the one that most likely had fewest tokens */
        float sum = 0;
#pragma unroll 1
        for (int n = lane; n < S; n += 32) sum += bc[n] * bc[S + n];
        sum = warp_sum(sum);
        if (lane == 0) cb[t] = sum;
    }
}

/*
 * y += Σ_s decay_s cb_s u_s over part `part` of `parts` of the tokens before t of a head, by one warp: a lane's WIDE values are
 * those of its tokens alone. u (T,HEADDIM); decay (T), which fades.
 */
template <typename X>
static __device__ inline void add_tokens(const X *u, float *decay, const float *cb, int t, float fade, int part, int parts,
                                         float (&y)[history<X>::WIDE])
{
    enum { SHARE = history<X>::SHARE, ROWS = history<X>::ROWS, LOADS = history<X>::LOADS, BATCH = history<X>::BATCH };
    int lane = threadIdx.x % 32;
    u += lane / SHARE * HEADDIM + lane % SHARE * history<X>::WIDE;
    for (int first = part * BATCH; first < t; first += parts * BATCH) {
        uint4 raw[LOADS];
        const X *from = u + (int64_t)first * HEADDIM;
#pragma unroll
        for (int j = 0; j < LOADS; j++) raw[j] = load_history(from + j * ROWS * HEADDIM, first + j * ROWS + lane / SHARE < t);
        float weight = 0;
        int s = first + lane;
        if (lane < BATCH && s < t) {
            float g = fade * __ldcg(decay + s);
            g = g > 1e-30f ? g : 0.0f;
            decay[s] = g;
            weight = g * cb[s];
        }
#pragma unroll
        for (int j = 0; j < LOADS; j++) add_values(raw[j], __shfl_sync(~0u, weight, j * ROWS + lane / SHARE), y);
    }
}

#endif
