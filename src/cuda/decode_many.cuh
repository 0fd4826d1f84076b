/*
 * Pieces of a step for many streams (decode_graph.cu). A step reads the whole history of every stream, R·H·t·HEADDIM values a
 * layer, and little else: for 128 streams of AiM-B 50 MB a layer on average, against 8 MB of weights. So what counts is that
 * memory is busy all the time, and that nothing else takes long.
 *
 * Here are the pieces of its kernels that read no history; decode_history.cuh has the others. What a kernel will read from
 * memory first is asked for while the kernels before it run, whose products leave memory idle.
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
    float now; /* as in_proj left it */
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

/* Column c of in_proj's result. */
static __device__ inline float projected(const struct decode_view &a, int r, int c)
{
    return __ldcg(a.zxbcdt + (int64_t)r * a.W + c);
}

/* The channel's value; `keeps` puts its newest input into the ring. */
static __device__ inline float tap_end(const struct decode_view &a, int l, int r, int t, int c, const struct tap &p, bool keeps)
{
    float sum = p.bias + p.weight.x * p.past[0] + p.weight.y * p.past[1] + p.weight.z * p.past[2];
    if (keeps) a.ring[(((int64_t)l * a.R + r) * RING + t % RING) * a.C + c] = p.now;
    return silu(sum + p.weight.w * p.now);
}

static __device__ inline void store2(float *p, float x, float y)
{
    *(float2 *)p = make_float2(x, y);
}

static __device__ inline void store2(bf16 *p, float x, float y)
{
    *(__nv_bfloat162 *)p = __floats2bfloat162_rn(x, y);
}

#endif
