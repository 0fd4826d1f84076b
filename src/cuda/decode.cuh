/*
 * One token of stage 2 on the GPU (spec B3, B7, C7): what both ways of running it share, and the pieces of the graph of
 * kernels for many streams (decode_graph.cu). The persistent kernel for few (decode_persistent.cu) has its own, in
 * decode_few*.cuh.
 *
 * A layer is three pieces with a product between:
 *
 *     norm    r += gate ⊙ h / rms;  m = RMS(r) ⊙ w ⊙ (1 + scale) + shift          zxbcdt = m W_inᵀ
 *     mix     convolution, recurrence, gate; v = y ⊙ silu(z) ⊙ w and Σ (y silu(z))²      h = v W_outᵀ
 *
 * The gated RMS norm scales whole rows, and so does its division by the root mean square: the product is linear, so the
 * factor waits until the next norm, and no kernel stands between the recurrence and the product.
 *
 * The recurrence is in its dual form (tensor/ssd_cache.h) with the history of the whole sequence and no state: u in the
 * weights' type, B in the same, decays in float32. X is float or bf16: the type of weights, products' inputs and u, B.
 */
#ifndef AIM_CUDA_DECODE_CUH
#define AIM_CUDA_DECODE_CUH

#include "cuda/decode_sample.cuh"

extern "C" {
#include "cuda/decode_probe.h"
#include "tensor/decoder.h"
}

/* The most tokens and the widest state that kernels have shared memory for, the widest rows that they have threads for. */
enum { DECODE_TOKENS = 4096, DECODE_STATE = 256, DECODE_WIDTH = 4096, RING = 4 };

/* The most parts that out_proj's result may consist of. */
enum { DECODE_OUT_PARTS = 8 };

struct decode_layer {
    const float *norm, *conv_w, *conv_b, *dt_bias, *A_log, *D, *mixer_norm;
    const void *in_proj, *out_proj; /* (W,d), (d,E) of X */
};

/* Everything a step reads and writes, in device memory; R streams. */
struct decode_view {
    int d, E, S, C, W, H, V, T, layers, R, pictures, pos_offset;
    int out_parts; /* of out_proj's result; whoever reads them adds up */
    const struct decode_layer *layer;
    const void *words; /* (V,d) of X */
    const float *positions, *norm_f, *norm_final;
    struct decoder_classes classes;
    const int32_t *row; /* (R): of the classes' tables */
    struct sample_filter filter;
    const double *uniform; /* (T, pictures) */
    float *r[2];           /* (R,d) residual */
    void *m, *v;           /* (R,d), (R,E) of X: inputs of the products */
    float *zxbcdt, *h;     /* (R,W), (out_parts,R,d): their results */
    float *squares;        /* (R,H): Σ (y silu(z))² of each head */
    float *ring;           /* (layers,R,RING,C): inputs of the convolution, token t in place t mod RING */
    void *u, *b;           /* (layers,R,H,T,HEADDIM), (layers,R,T,S) of X */
    float *decay;          /* (layers,R,H,T): a_{s+1} ... a_t, or a part of it (decode_history.cuh) */
    float *logits;         /* (R,V) */
    float *probabilities;  /* (pictures,V) */
    int32_t *tokens;       /* (T,pictures) */
    int *t;                /* the graph's position in the sequence */
    void *few;             /* the persistent kernel's memory (decode_few.cuh), in the place of the graph's */
};

/* ------------------------------------------------------------------------------------------------ small things */

static __device__ inline float to_float(float x)
{
    return x;
}

static __device__ inline float to_float(bf16 x)
{
    return __bfloat162float(x);
}

static __device__ inline void from_float(float x, float *y)
{
    *y = x;
}

static __device__ inline void from_float(float x, bf16 *y)
{
    *y = __float2bfloat16_rn(x);
}

static __device__ inline float silu(float x)
{
    return x / (1.0f + expf(-x));
}

/* Four values, past the first-level cache: other multiprocessors may have written them in this very kernel. */
static __device__ inline float4 load4(const float *p)
{
    return __ldcg((const float4 *)p);
}

static __device__ inline float4 load4(const bf16 *p)
{
    uint2 u = __ldcg((const uint2 *)p);
    return make_float4(__uint_as_float(u.x << 16), __uint_as_float(u.x & 0xffff0000u), __uint_as_float(u.y << 16),
                       __uint_as_float(u.y & 0xffff0000u));
}

static __device__ inline void store4(float *p, float4 v)
{
    *(float4 *)p = v;
}

static __device__ inline void store4(bf16 *p, float4 v)
{
    __nv_bfloat162 low = __floats2bfloat162_rn(v.x, v.y), high = __floats2bfloat162_rn(v.z, v.w);
    uint2 u;
    u.x = *(const unsigned *)&low;
    u.y = *(const unsigned *)&high;
    *(uint2 *)p = u;
}

static __device__ inline float warp_sum(float v)
{
    for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(~0u, v, o);
    return v;
}

/* --------------------------------------------------------------------------------------------------------- norm */

/* What enters the network at position t: the class's embedding, then the last token with its position. */
template <typename X> static __device__ inline float4 embed4(const struct decode_view &a, int r, int t, int i)
{
    if (t == 0) return load4(a.classes.embedding + (int64_t)a.row[r] * a.d + i);
    int token = max(__ldcg(a.tokens + (int64_t)(t - 1) * a.pictures + r % a.pictures), 0);
    float4 w = load4((const X *)a.words + (int64_t)token * a.d + i);
    float4 p = load4(a.positions + (int64_t)(t - 1 + a.pos_offset) * a.d + i);
    return make_float4(w.x + p.x, w.y + p.y, w.z + p.z, w.w + p.w);
}

static __device__ inline float square4(float4 s)
{
    return s.x * s.x + s.y * s.y + s.z * s.z + s.w * s.w;
}

/* ------------------------------------------------------------------------------------------------- ways to run it */

/* A product y (M,N) = x (M,K) wᵀ of cuBLASLt, x and w of one type, y float32. */
struct decode_product {
    cublasLtMatmulDesc_t how;
    cublasLtMatrixLayout_t w, x, y;
    cublasLtMatmulAlgo_t algorithm;
};

enum { PRODUCT_WORKSPACE = 32 << 20, PRODUCT_ALIGNMENT = 256 };

/* Products of bf16, or of float32 without TF32; all matrices are aligned to `alignment` bytes. Freed with product_free, also
 * after a failure. */
aim_status product_create(struct backend *be, bool is_bf16, int64_t M, int64_t N, int64_t K, uint32_t alignment,
                          struct decode_product *p);
void product_free(struct decode_product *p);
aim_status product_run(struct backend *be, const struct decode_product *p, const void *x, const void *w, float *y,
                       void *workspace, cudaStream_t stream);

/* The three products of a step, and memory for them. */
struct decode_products {
    struct decode_product in, out, head;
    void *workspace; /* PRODUCT_WORKSPACE bytes */
};

/* Puts one step of all streams on the stream: position *a.t, which it moves on by one; of its kernels the `kinds`, bits that
 * decode_probe.h numbers. */
aim_status decode_graph_step(struct backend *be, const struct decode_view *a, bool is_bf16, const struct decode_products *p,
                             const struct decode_layer *layers, unsigned kinds, cudaStream_t stream);

/* Whether the persistent kernel does for the view's streams and sizes on this GPU; then it runs positions from .. to-1. */
bool decode_persistent_fits(const struct cuda *c, const struct decode_view *a, bool is_bf16);
int64_t decode_persistent_bytes(const struct decode_view *a, bool is_bf16, int64_t streams); /* of a->few */
aim_status decode_persistent_run(struct backend *be, const struct decode_view *a, int from, int to);

/* backend->decoder of this device. */
extern const struct decoder_ops cuda_decoder;

#endif
