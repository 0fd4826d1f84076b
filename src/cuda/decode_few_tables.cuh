/*
 * What the persistent kernel reads in place of the network's own tensors, made anew for every painting: weights in the order in
 * which the tensor cores take them, and what the classes decide of norms and products.
 *
 * A norm's output is x = s r ⊙ f + b, with s = 1 / RMS(r), f = w ⊙ (1 + scale), b = shift. Then W x = s W (r ⊙ f) + W b: the
 * product need not wait for s, and W b is a table. In the same way the gated norm's weight goes into the columns of out_proj.
 */
#ifndef AIM_CUDA_DECODE_FEW_TABLES_CUH
#define AIM_CUDA_DECODE_FEW_TABLES_CUH

#include "cuda/decode_few.cuh"

/* Two values of a row from column k on, times `by` (K; may be NULL); zeros outside of (N,K). */
static __device__ inline unsigned packed_pair(const bf16 *matrix, const float *by, int N, int K, int row, int k)
{
    float2 v = make_float2(0, 0);
    if (row < N && k < K) {
        v = __bfloat1622float2(*(const __nv_bfloat162 *)(matrix + (int64_t)row * K + k));
        if (by) v = make_float2(v.x * by[k], v.y * by[k + 1]);
    }
    return pair_of(v.x, v.y);
}

/* Tiles of a matrix (N,K), of in_proj in the order of in_proj_row: (quads, tiles of a row, 32 lanes, 16 bytes): lane (g, q) as
 * in decode_few_product.cuh. */
static __device__ inline void pack_matrix(const bf16 *matrix, const float *by, int N, int K, const struct cuts &cuts, int kind,
                                          int E, char *packed)
{
    uint4 *to = (uint4 *)packed;
    int row_tiles = quad_bytes(cuts, kind) / TILE_BYTES;
    int64_t count = packed_bytes(cuts, kind) / (int64_t)sizeof *to, hop = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += hop) {
        int lane = (int)(i % 32), g = lane / 4, q = lane % 4, tile = (int)(i / 32 % row_tiles);
        int quad = (int)(i / 32 / row_tiles), row = (kind == IN ? in_proj_row(E, quad) : quad * QUAD) + g % 4;
        int k = tile * TILE + g / 4 * (TILE / 4) + 4 * q;
        to[i] = make_uint4(packed_pair(matrix, by, N, K, row, k), packed_pair(matrix, by, N, K, row, k + TILE / 2),
                           packed_pair(matrix, by, N, K, row, k + 2), packed_pair(matrix, by, N, K, row, k + 2 + TILE / 2));
    }
}

/* blockIdx.y is the product: 2l in_proj, 2l+1 out_proj, 2·layers the head. */
static __global__ void pack_kernel(const __grid_constant__ struct decode_view a, const __grid_constant__ struct few_memory m,
                                   const __grid_constant__ struct cuts cuts)
{
    int l = blockIdx.y / 2;
    char *to = m.weights + l * m.layer_bytes;
    if (l == a.layers)
        pack_matrix((const bf16 *)a.words, NULL, a.V, a.d, cuts, HEAD, a.E, to);
    else if (blockIdx.y % 2 == 0)
        pack_matrix((const bf16 *)a.layer[l].in_proj, NULL, a.W, a.d, cuts, IN, a.E, to);
    else
        pack_matrix((const bf16 *)a.layer[l].out_proj, a.layer[l].mixer_norm, a.d, a.E, cuts, OUT, a.E, to + m.in_bytes);
}

/* The modulation of layer l for stream r, of the head when l = layers: (shift, scale, and gate of a layer). */
static __device__ inline const float *modulation_of(const struct decode_view &a, int l, int r)
{
    int64_t row = a.row[r];
    if (l == a.layers) return a.classes.final_modulation + row * 2 * a.d;
    return a.classes.modulation + (l * a.classes.rows + row) * 3 * a.d;
}

/*
 * Gates and factors; a block for each layer and stream. The head has two norms,
 *
 *     s = RMS(r) ⊙ w_f,  m = RMS(s) ⊙ w ⊙ (1 + scale) + shift,
 *
 * and w_f is part of its factor.
 */
static __global__ void norm_kernel(const __grid_constant__ struct decode_view a, float4 *norms)
{
    int l = blockIdx.x / a.R, r = blockIdx.x % a.R;
    bool head = l == a.layers;
    const float *weight = head ? a.norm_final : a.layer[l].norm, *scale = modulation_of(a, l, r) + a.d;
    const float *gates = l > 0 ? modulation_of(a, l - 1, r) + 2 * a.d : NULL;
    const float4 zero = make_float4(0, 0, 0, 0), one = make_float4(1, 1, 1, 1);
    for (int i = QUAD * threadIdx.x; i < a.d; i += QUAD * blockDim.x) {
        float4 w = load4(weight + i), by = load4(scale + i), first = head ? load4(a.norm_f + i) : one;
        float4 *to = norms + ((int64_t)blockIdx.x * a.d + i) / QUAD * 2;
        to[0] = gates ? load4(gates + i) : zero;
        to[1] = make_float4(first.x * w.x * (1.0f + by.x), first.y * w.y * (1.0f + by.y), first.z * w.z * (1.0f + by.z),
                            first.w * w.w * (1.0f + by.w));
    }
}

/* shifted: a warp for each row of each in_proj and of the head. */
static __global__ void shift_kernel(const __grid_constant__ struct decode_view a, float *shifted)
{
    int64_t at = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / 32;
    int l = (int)min(at / a.W, (int64_t)a.layers), lane = threadIdx.x % 32;
    int row = (int)(at - (int64_t)l * a.W), rows = l < a.layers ? a.W : a.V;
    if (row >= rows) return;
    const bf16 *w = (const bf16 *)(l < a.layers ? a.layer[l].in_proj : a.words) + (int64_t)row * a.d;
    for (int r = 0; r < a.R; r++) {
        const float *shift = modulation_of(a, l, r);
        float sum = 0;
        for (int k = 4 * lane; k < a.d; k += 128) {
            float4 x = load4(w + k), y = load4(shift + k);
            sum += x.x * y.x + x.y * y.y + x.z * y.z + x.w * y.w;
        }
        sum = warp_sum(sum);
        if (lane == 0) shifted[((int64_t)l * a.R * a.W) + (int64_t)r * rows + row] = sum;
    }
}

static aim_status make_tables(struct backend *be, const struct decode_view *a, const struct few_memory *m)
{
    enum { WARPS_OF_BLOCK = 8 };
    const struct cuda *c = cuda_of(be);
    unsigned rows = (unsigned)(((int64_t)a->layers * a->W + a->V + WARPS_OF_BLOCK - 1) / WARPS_OF_BLOCK);
    struct cuts cuts = cuts_of(*a, pairs_of(a->R));
    pack_kernel<<<dim3((unsigned)c->multiprocessors, (unsigned)(2 * a->layers + 1)), THREADS, 0, c->stream>>>(*a, *m, cuts);
    norm_kernel<<<(unsigned)((a->layers + 1) * a->R), THREADS, 0, c->stream>>>(*a, m->norms);
    shift_kernel<<<rows, 32 * WARPS_OF_BLOCK, 0, c->stream>>>(*a, m->shifted);
    return cuda_launched(be, "tables of the decoder");
}

#endif
