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
#include "cuda/decode_times.h"
#include "tensor/decoder.h"
}

/* The most tokens and the widest state that kernels have shared memory for, the widest rows that they have threads for. */
enum { DECODE_TOKENS = 4096, DECODE_STATE = 256, DECODE_WIDTH = 4096, RING = 4 };

/* The most parts that the products' results may consist of. */
enum { DECODE_IN_PARTS = 2, DECODE_OUT_PARTS = 8 };

struct decode_layer {
    const float *norm, *conv_w, *conv_b, *dt_bias, *A_log, *D, *mixer_norm;
    const void *in_proj, *out_proj; /* (W,d), (d,E) of X */
};

/* Everything a step reads and writes, in device memory; R streams. */
struct decode_view {
    int d, E, S, C, W, H, V, T, layers, R, pictures, pos_offset;
    int in_parts, out_parts; /* of the products' results; whoever reads them adds up */
    const struct decode_layer *layer;
    const void *words; /* (V,d) of X */
    const float *positions, *norm_f, *norm_final;
    struct decoder_classes classes;
    const int32_t *row; /* (R): of the classes' tables */
    struct sample_filter filter;
    const double *uniform; /* (T, pictures) */
    float *r[2];           /* (R,d) residual */
    void *m, *v;           /* (R,d), (R,E) of X: inputs of the products */
    float *zxbcdt, *h;     /* (in_parts,R,W), (out_parts,R,d): their results */
    float *squares;        /* (R,H): Σ (y silu(z))² of each head */
    float *ring;           /* (layers,R,RING,C): inputs of the convolution, token t in place t mod RING */
    void *u, *b;           /* (layers,R,H,T,HEADDIM), (layers,R,T,S) of X */
    float *decay;          /* (layers,R,H,T): a_{s+1} ... a_t */
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

/* Σ over the block's warps of red (rows, 32) for row q. */
static __device__ inline float row_total(const float *red, int q)
{
    float total = 0;
    for (int w = 0; w < (int)blockDim.x / 32; w++) total += red[q * 32 + w];
    return total;
}

/*
 * Rows first .. first+rows of the input of layer l (of the head when l = layers), by one block: out (rows, stride) of X.
 * The new residual goes to r_out, of which this block writes the groups of 4 that leave remainder `writer` by `writers`.
 * Shared: sums (rows, d), red (rows, 32), factor (rows). Every thread of the block calls; ends without a barrier.
 */
template <typename X>
static __device__ void norm_rows(const struct decode_view &a, int l, int t, int first, int rows, const float *r_in,
                                 float *r_out, int writer, int writers, float *sums, float *red, float *factor, X *out,
                                 int stride)
{
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, d = a.d;
    const float *modulation = a.classes.modulation, *gates = modulation + (int64_t)(l - 1) * a.classes.rows * 3 * d + 2 * d;
    if (l > 0) {
        for (int q = warp; q < rows; q += blockDim.x / 32) {
            float sum = 0;
            for (int h = lane; h < a.H; h += 32) sum += __ldcg(a.squares + (int64_t)(first + q) * a.H + h);
            sum = warp_sum(sum);
            if (lane == 0) factor[q] = 1.0f / sqrtf(sum / (float)a.E + 1e-5f);
        }
        __syncthreads();
    }
    for (int q = 0; q < rows; q++) {
        int64_t row = first + q;
        float squares = 0;
        for (int i = 4 * threadIdx.x; i < d; i += 4 * blockDim.x) {
            float4 s;
            if (l == 0) {
                s = embed4<X>(a, (int)row, t, i);
            } else {
                float4 old = load4(r_in + row * d + i), h = load4(a.h + row * d + i);
                float4 gate = load4(gates + (int64_t)a.row[row] * 3 * d + i);
                float f = factor[q];
                s = make_float4(old.x + gate.x * (h.x * f), old.y + gate.y * (h.y * f), old.z + gate.z * (h.z * f),
                                old.w + gate.w * (h.w * f));
            }
            store4(sums + q * d + i, s);
            if ((i >> 2) % writers == writer) store4(r_out + row * d + i, s);
            squares += square4(s);
        }
        squares = warp_sum(squares);
        if (lane == 0) red[q * 32 + warp] = squares;
    }
    __syncthreads();
    if (l == a.layers) { /* the head has two norms: norm_f, then norm_final with the modulation */
        for (int q = 0; q < rows; q++) {
            float scale = 1.0f / sqrtf(row_total(red, q) / (float)d + 1e-5f), squares = 0;
            for (int i = 4 * threadIdx.x; i < d; i += 4 * blockDim.x) {
                float4 s = *(const float4 *)(sums + q * d + i), w = load4(a.norm_f + i);
                s = make_float4(s.x * scale * w.x, s.y * scale * w.y, s.z * scale * w.z, s.w * scale * w.w);
                store4(sums + q * d + i, s);
                squares += square4(s);
            }
            squares = warp_sum(squares);
            __syncthreads(); /* every thread has read red's row q */
            if (lane == 0) red[q * 32 + warp] = squares;
        }
        __syncthreads();
    }
    const float *weight = l == a.layers ? a.norm_final : a.layer[l].norm;
    for (int q = 0; q < rows; q++) {
        int64_t row = a.row[first + q];
        const float *shift =
            l == a.layers ? a.classes.final_modulation + row * 2 * d : modulation + ((int64_t)l * a.classes.rows + row) * 3 * d;
        float scale = 1.0f / sqrtf(row_total(red, q) / (float)d + 1e-5f);
        for (int i = 4 * threadIdx.x; i < d; i += 4 * blockDim.x) {
            float4 s = *(const float4 *)(sums + q * d + i), w = load4(weight + i), add = load4(shift + i);
            float4 gain = load4(shift + d + i);
            s = make_float4(s.x * scale * w.x * (1.0f + gain.x) + add.x, s.y * scale * w.y * (1.0f + gain.y) + add.y,
                            s.z * scale * w.z * (1.0f + gain.z) + add.z, s.w * scale * w.w * (1.0f + gain.w) + add.w);
            store4(out + (int64_t)q * stride + i, s);
        }
    }
}

/* ---------------------------------------------------------------------------------------------------------- mix */

/* Channel c of the convolution at position t; `keeps` puts its input into the ring. */
static __device__ inline float convolve(const struct decode_view &a, int l, int r, int t, int c, bool keeps)
{
    float *ring = a.ring + ((int64_t)l * a.R + r) * RING * a.C + c;
    float x = __ldcg(a.zxbcdt + (int64_t)r * a.W + a.E + c), sum = a.layer[l].conv_b[c];
    const float *w = a.layer[l].conv_w + (int64_t)c * CONV_WIDTH;
    for (int k = 0; k < CONV_WIDTH - 1; k++) {
        int past = t - (CONV_WIDTH - 1) + k;
        if (past >= 0) sum += w[k] * __ldcg(ring + (int64_t)(past % RING) * a.C);
    }
    sum += w[CONV_WIDTH - 1] * x;
    if (keeps) ring[(int64_t)(t % RING) * a.C] = x;
    return silu(sum);
}

/*
 * cb[s] = C_t·B_s for s <= t of stream r, by one block. Shared: bc (2S), which gets B_t and C_t. With `keeps`, B_t goes into
 * the history and the inputs into the ring. cb may be shared or global memory. Ends with a barrier.
 */
template <typename X>
static __device__ void history_products(const struct decode_view &a, int l, int r, int t, bool keeps, float *bc, float *cb)
{
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, S = a.S;
    X *history = (X *)a.b + ((int64_t)l * a.R + r) * a.T * S;
    for (int n = threadIdx.x; n < 2 * S; n += blockDim.x) {
        float x = convolve(a, l, r, t, a.E + n, keeps);
        bc[n] = x;
        if (keeps && n < S) from_float(x, history + (int64_t)t * S + n);
    }
    __syncthreads();
#pragma unroll 4
    for (int s = warp; s <= t; s += blockDim.x / 32) {
        float sum = 0;
        for (int n = 4 * lane; n < S; n += 128) {
            float4 c = *(const float4 *)(bc + S + n);
            float4 b = s == t ? *(const float4 *)(bc + n) : load4(history + (int64_t)s * S + n);
            sum += b.x * c.x + b.y * c.y + b.z * c.z + b.w * c.w;
        }
        sum = warp_sum(sum);
        if (lane == 0) cb[s] = sum;
    }
    __syncthreads();
}

/* Values of u that a thread takes at once, 16 bytes: y += weight u */
static __device__ inline void add_history(const float *u, float weight, float *y)
{
    float4 v = __ldcg((const float4 *)u);
    y[0] += weight * v.x;
    y[1] += weight * v.y;
    y[2] += weight * v.z;
    y[3] += weight * v.w;
}

static __device__ inline void add_history(const bf16 *u, float weight, float *y)
{
    uint4 v = __ldcg((const uint4 *)u);
    const unsigned part[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int j = 0; j < 4; j++) {
        y[2 * j] += weight * __uint_as_float(part[j] << 16);
        y[2 * j + 1] += weight * __uint_as_float(part[j] & 0xffff0000u);
    }
}

/* Floats of shared memory that a head wants besides the weights of the T tokens. */
enum { HEAD_SHARED = (2 + SAMPLE_WARPS) * HEADDIM + 8 };

/*
 * Head h of stream r at position t of layer l, by one block, in two parts. The first one does not need cb: the head's inputs
 * through the convolution, by the HEADDIM threads from `first` on, and the decays. Shared: decays (T), work (HEAD_SHARED),
 * 16-byte aligned. A barrier must stand between the two.
 */
template <typename X>
static __device__ inline void head_begin(const struct decode_view &a, int l, int r, int h, int t, int first, float *decays,
                                         float *work)
{
    const struct decode_layer &layer = a.layer[l];
    int64_t head = ((int64_t)l * a.R + r) * a.H + h;
    float *past = a.decay + head * a.T, *x = work, *now = work + HEADDIM;
    float dt = __ldcg(a.zxbcdt + (int64_t)(r + 1) * a.W - a.H + h) + layer.dt_bias[h];
    float delta = dt > 20.0f ? dt : log1pf(expf(dt)), fade = expf(-delta * expf(layer.A_log[h]));
    int p = (int)threadIdx.x - first;
    if (p >= 0 && p < HEADDIM) {
        float value = convolve(a, l, r, t, h * HEADDIM + p, true);
        x[p] = value;
        now[p] = delta * value;
        from_float(delta * value, (X *)a.u + (head * a.T + t) * HEADDIM + p);
    }
    for (int s = threadIdx.x; s <= t; s += blockDim.x) {
        float g = s < t ? fade * __ldcg(past + s) : 1.0f;
        g = g > 1e-30f ? g : 0.0f;
        past[s] = g;
        decays[s] = g;
    }
}

/* The second part: its v and its sum of squares. cb as history_products left it. Ends without a barrier. */
template <typename X>
static __device__ inline void head_finish(const struct decode_view &a, int l, int r, int h, int t, const float *cb,
                                          const float *decays, float *work)
{
    enum { WIDE = 16 / sizeof(X), SHARE = HEADDIM / WIDE }; /* values of a thread, threads of a token */
    const struct decode_layer &layer = a.layer[l];
    int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, at = thread % SHARE * WIDE;
    const X *u = (const X *)a.u + (((int64_t)l * a.R + r) * a.H + h) * a.T * HEADDIM;
    const float *x = work, *now = work + HEADDIM;
    float *part = work + 2 * HEADDIM, *red = part + SAMPLE_WARPS * HEADDIM, y[WIDE], z = 0;
    int64_t e = (int64_t)h * HEADDIM + thread;
    if (thread < HEADDIM) z = __ldcg(a.zxbcdt + (int64_t)r * a.W + e);
#pragma unroll
    for (int j = 0; j < WIDE; j++) y[j] = 0;
#pragma unroll 4
    for (int s = thread / SHARE; s < t; s += blockDim.x / SHARE)
        add_history(u + (int64_t)s * HEADDIM + at, decays[s] * cb[s], y);
#pragma unroll
    for (int j = 0; j < WIDE; j++) {
        for (int o = SHARE; o < 32; o <<= 1) y[j] += __shfl_xor_sync(~0u, y[j], o);
        if (lane < SHARE) part[warp * HEADDIM + at + j] = y[j];
    }
    __syncthreads();
    if (thread < HEADDIM) {
        float sum = cb[t] * now[thread] + layer.D[h] * x[thread];
        for (int w = 0; w < (int)blockDim.x / 32; w++) sum += part[w * HEADDIM + thread];
        float gated = sum * silu(z), squares = warp_sum(gated * gated);
        from_float(gated * layer.mixer_norm[e], (X *)a.v + (int64_t)r * a.E + e);
        if (lane == 0) red[warp] = squares;
    }
    __syncthreads();
    if (thread == 0) a.squares[(int64_t)r * a.H + h] = red[0] + red[1];
}

/* --------------------------------------------------------------------------------------------------------- sample */

/* The token of one picture at position t, by one block. */
static __device__ inline void sample_picture(const struct decode_view &a, int picture, int t, struct sample_shared *s)
{
    const float *logits = a.logits + (int64_t)picture * a.V;
    const float *uncond = a.R == 2 * a.pictures ? logits + (int64_t)a.pictures * a.V : NULL;
    int64_t at = (int64_t)t * a.pictures + picture;
    int token = sample_row(s, logits, uncond, a.V, a.filter, a.uniform[at], a.probabilities + (int64_t)picture * a.V);
    if (threadIdx.x == 0) a.tokens[at] = token;
    __syncthreads();
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
 * decode_times.h numbers. */
aim_status decode_graph_step(struct backend *be, const struct decode_view *a, bool is_bf16, const struct decode_products *p,
                             const struct decode_layer *layers, unsigned kinds, cudaStream_t stream);

/* Whether the persistent kernel has room for this many streams; then it runs positions from .. to-1. */
bool decode_persistent_fits(const struct cuda *c, const struct decode_view *a, bool is_bf16);
int64_t decode_persistent_bytes(const struct decode_view *a, bool is_bf16, int64_t streams); /* of a->few */
aim_status decode_persistent_run(struct backend *be, const struct decode_view *a, bool is_bf16, int from, int to);

/* backend->decoder of this device. */
extern const struct decoder_ops cuda_decoder;

#endif
