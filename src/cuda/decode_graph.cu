/*
 * One token for many streams: a chain of kernels and products, made to be captured in a CUDA graph. Kernels are launched early
 * (early.cuh): they load what they can while the one in front of them ends.
 */
#include "cuda/decode_many.cuh"
#include "cuda/decode_rows.cuh"

/* AHEAD_BYTES: of history that is asked for twice a layer, when the layer before has done with its own and when this one
 * starts. Both and a layer's weights fit the second-level cache. */
enum { MIX_WARPS = 16, SAMPLE_THREADS = 1024, AHEAD_BYTES = 16 << 20 };

/* ------------------------------------------------------------------------------------------------------------- norm */

/* Four values of out_proj's result, whose parts add up in their order. */
static __device__ inline float4 out_projected(const struct decode_view &a, int r, int i)
{
    float4 part[DECODE_OUT_PARTS];
#pragma unroll
    for (int p = 0; p < DECODE_OUT_PARTS; p++)
        part[p] = p < a.out_parts ? load4(a.h + ((int64_t)p * a.R + r) * a.d + i) : make_float4(0, 0, 0, 0);
#pragma unroll
    for (int p = 1; p < DECODE_OUT_PARTS; p++) {
        part[0].x += part[p].x;
        part[0].y += part[p].y;
        part[0].z += part[p].z;
        part[0].w += part[p].w;
    }
    return part[0];
}

/*
 * The input of layer l (of the head when l = layers) of stream blockIdx.x, four values a thread. Nobody but the first one
 * reads t, so that the last one moves it on.
 */
template <typename X, int THREADS>
static __global__ void __launch_bounds__(THREADS, 1)
    norm_kernel(const __grid_constant__ struct decode_view a, int l, const float *norm)
{
    __shared__ float red[2][32];
    int r = blockIdx.x, d = a.d, i = 4 * threadIdx.x, row = a.row[r];
    bool head = l == a.layers, inside = i < d;
    const float *modulation = a.classes.modulation + ((int64_t)l * a.classes.rows + row) * 3 * d;
    const float *gates = modulation - a.classes.rows * 3 * d + 2 * d; /* of the layer before */
    if (head) modulation = a.classes.final_modulation + (int64_t)row * 2 * d;
    float *residual = a.r[0] + (int64_t)r * d + i;
    float4 s = make_float4(0, 0, 0, 0), old = s, gate = s, weight = s, shift = s, gain = s, final_weight = s;
    if (inside) {
        weight = load4(norm + i);
        shift = load4(modulation + i);
        gain = load4(modulation + d + i);
        if (head) final_weight = load4(a.norm_f + i);
        if (l > 0) {
            old = load4(residual);
            gate = load4(gates + i);
        }
    }
    wait_for_the_one_before();
    let_the_next_one_start();
    if (l > 0) {
        const float *of_heads = a.squares + (int64_t)r * a.H;
        int lane = threadIdx.x % 32;
        float squares = lane < a.H ? __ldcg(of_heads + lane) : 0;
        float4 h = inside ? out_projected(a, r, i) : s;
#pragma unroll 1
        for (int j = lane + 32; j < a.H; j += 32) squares += __ldcg(of_heads + j);
        float f = 1.0f / sqrtf(warp_sum(squares) / (float)a.E + 1e-5f);
        s = make_float4(old.x + gate.x * (h.x * f), old.y + gate.y * (h.y * f), old.z + gate.z * (h.z * f),
                        old.w + gate.w * (h.w * f));
    } else if (inside) {
        s = embed4<X>(a, r, *a.t, i);
    }
    if (inside) store4(residual, s);
    float scale = 1.0f / sqrtf(block_total(square4(s), red[0]) / (float)d + 1e-5f);
    if (head) { /* the head has two norms: norm_f, then norm_final with the modulation */
        if (r == 0 && threadIdx.x == 0) *a.t += 1;
        s = make_float4(s.x * scale * final_weight.x, s.y * scale * final_weight.y, s.z * scale * final_weight.z,
                        s.w * scale * final_weight.w);
        scale = 1.0f / sqrtf(block_total(square4(s), red[1]) / (float)d + 1e-5f);
    }
    if (!inside) return;
    s = make_float4(s.x * scale * weight.x * (1.0f + gain.x) + shift.x, s.y * scale * weight.y * (1.0f + gain.y) + shift.y,
                    s.z * scale * weight.z * (1.0f + gain.z) + shift.z, s.w * scale * weight.w * (1.0f + gain.w) + shift.w);
    store4((X *)a.m + (int64_t)r * d + i, s);
}

/* -------------------------------------------------------------------------------------------------------------- mix */

/*
 * How a layer's heads are spread: a block has `heads` heads of one stream, and `parts` warps for each of them. It asks for
 * `ahead` tokens of their history, and for `share` bytes of a matrix, before they are needed.
 */
struct spread {
    int heads, parts, groups, ahead;
    int64_t share;
};

/* Large groups share C·B among many heads; but every multiprocessor should have one, or nearly so. */
static struct spread spread_of(const struct cuda *c, const struct decode_view *a, int64_t size)
{
    struct spread s = {};
    s.groups = (a->H + MIX_WARPS - 1) / MIX_WARPS;
    s.heads = (a->H + s.groups - 1) / s.groups;
    while (s.heads > 1 && 4 * (int64_t)a->R * s.groups < 3 * c->multiprocessors) {
        s.heads = (s.heads + 1) / 2;
        s.groups = (a->H + s.heads - 1) / s.heads;
    }
    s.parts = MIX_WARPS / s.heads;
    s.ahead = (int)(AHEAD_BYTES / ((int64_t)a->R * a->H * HEADDIM * size));
    s.share = ((int64_t)a->W * a->d * size / (s.groups * (int64_t)a->R) / 16 + 1) * 16;
    return s;
}

/* What a thread of a head's first warp keeps for the end: Δx, Dx and silu(z) of its two channels. */
struct kept {
    float2 now, skip, gate;
};

/* In shared memory, in floats: B_t and C_t, what is kept, C·B of all tokens, sums of the warps of a head but the first. */
static __host__ __device__ inline int kept_at(const struct decode_view &a)
{
    return 2 * a.S;
}

static __host__ __device__ inline int matches_at(const struct decode_view &a, struct spread s)
{
    return kept_at(a) + s.heads * 32 * (int)(sizeof(struct kept) / sizeof(float));
}

static __host__ __device__ inline int sums_at(const struct decode_view &a, struct spread s)
{
    return (matches_at(a, s) + a.T + 1) / 2 * 2;
}

static size_t mix_shared(const struct decode_view *a, struct spread s)
{
    return (size_t)(sums_at(*a, s) + (s.parts - 1) * s.heads * HEADDIM) * sizeof(float);
}

/* What a warp works on; a warp without a head helps with what the block shares. */
struct place {
    int r, h, part;
    bool has_head, finishes; /* it is the head's first warp */
    int64_t head;            /* of all layers */
};

static __device__ inline struct place place_of(const struct decode_view &a, int l, struct spread s)
{
    int warp = threadIdx.x / 32;
    struct place p = {(int)blockIdx.y, (int)blockIdx.x * s.heads + warp % s.heads, warp / s.heads};
    p.has_head = p.h < a.H;
    p.finishes = p.has_head && p.part == 0;
    p.head = ((int64_t)l * a.R + p.r) * a.H + p.h;
    return p;
}

/* Asks for `tokens` of a head's history from token `from` on. By a warp. */
template <typename X>
static __device__ inline void ask_for_history(const struct decode_view &a, int64_t head, int from, int tokens)
{
    if (threadIdx.x % 32 == 0)
        ask_for((const X *)a.u + (head * a.T + from) * HEADDIM, (int64_t)tokens * HEADDIM * (int)sizeof(X));
}

/* While this layer's out_proj and the next one's norm run, the next one's matrix and the first tokens of its history come. */
template <typename X>
static __device__ inline void ask_for_next_layer(const struct decode_view &a, const void *in_proj, int t, struct place p,
                                                 struct spread s)
{
    if (!in_proj) return;
    if (p.finishes) ask_for_history<X>(a, p.head + (int64_t)a.R * a.H, 0, min(t, s.ahead));
    if (threadIdx.x == 0)
        ask_for_share((const char *)in_proj, (int64_t)a.W * a.d * (int)sizeof(X), s.share, blockIdx.y * gridDim.x + blockIdx.x);
}

/* The last step of a head: y, two channels a lane from e on, is gated and becomes v and a sum of squares. */
template <typename X>
static __device__ inline void gate_head(const struct decode_view &a, const float *norm, struct place p, int e, float2 y,
                                        float2 gate)
{
    float first = y.x * gate.x, second = y.y * gate.y, squares = warp_sum(first * first + second * second);
    store2((X *)a.v + (int64_t)p.r * a.E + e, first * norm[e], second * norm[e + 1]);
    if (threadIdx.x % 32 == 0) a.squares[(int64_t)p.r * a.H + p.h] = squares;
}

/*
 * What the block's heads read at position t: the history is asked for, what does not depend on in_proj is loaded, and when that
 * has ended the convolution and Δ follow. bc gets B_t and C_t, `kept` what the head's first warp wants at the end; u, B and the
 * convolution's inputs go into their histories, those that a stream's heads share by its first block. Returns the decay of this
 * token. Ends without a barrier.
 */
template <typename X>
static __device__ inline float mix_inputs(const struct decode_view &a, const struct decode_layer &layer, int l, int t,
                                          struct place p, struct spread spread, X *u, X *history_b, float *bc,
                                          struct kept *kept)
{
    enum { SHARED_TAPS = 2 }; /* 2S channels by at least 9 warps, S <= DECODE_STATE */
    const int first = threadIdx.x, step = blockDim.x, ahead = l ? min(t, spread.ahead) : 0, channel = history<X>::channel();
    const int c = p.h * HEADDIM + channel;
    const bool keeps = blockIdx.x == 0;
    struct tap own[2], common[SHARED_TAPS];
    float2 z[2], dt = make_float2(0, 0);
    float skip = 0, bias = 0, rate = 0;
    if (threadIdx.x == 0 && keeps && a.S * sizeof(X) % 16 == 0) ask_for(history_b, (int64_t)t * a.S * sizeof(X));
    if (p.finishes) {
        ask_for_history<X>(a, p.head, ahead, min(t - ahead, spread.ahead));
        skip = layer.D[p.h];
#pragma unroll
        for (int i = 0; i < 2; i++) tap_begin(a, layer, l, p.r, t, c + i, &own[i]);
    }
#pragma unroll
    for (int i = 0; i < SHARED_TAPS; i++)
        if (first + i * step < 2 * a.S) tap_begin(a, layer, l, p.r, t, a.E + first + i * step, &common[i]);
    if (p.has_head) {
        bias = layer.dt_bias[p.h];
        rate = layer.A_log[p.h];
    }
    wait_for_the_one_before();
    let_the_next_one_start();
    if (p.has_head) dt = projected(a, p.r, a.W - a.H + p.h);
    if (p.finishes) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            z[i] = projected(a, p.r, c + i);
            own[i].now = projected(a, p.r, a.E + c + i);
        }
    }
#pragma unroll
    for (int i = 0; i < SHARED_TAPS; i++)
        if (first + i * step < 2 * a.S) common[i].now = projected(a, p.r, 2 * a.E + first + i * step);
    float step_size = dt.x + dt.y + bias, delta = step_size > 20.0f ? step_size : log1pf(expf(step_size));
    if (p.finishes) {
        float2 x = make_float2(tap_end(a, l, p.r, t, c, own[0], true), tap_end(a, l, p.r, t, c + 1, own[1], true));
        kept->now = make_float2(delta * x.x, delta * x.y);
        kept->skip = make_float2(skip * x.x, skip * x.y);
        kept->gate = make_float2(silu(z[0].x + z[0].y), silu(z[1].x + z[1].y));
        store2(u + (int64_t)t * HEADDIM + channel, delta * x.x, delta * x.y);
    }
#pragma unroll
    for (int i = 0; i < SHARED_TAPS; i++) {
        int n = first + i * step;
        if (n >= 2 * a.S) break;
        bc[n] = tap_end(a, l, p.r, t, a.E + n, common[i], keeps);
        if (keeps && n < a.S) from_float(bc[n], history_b + (int64_t)t * a.S + n);
    }
    return expf(-delta * expf(rate));
}

/* Σ over a head's warps of their two channels in y, for its first warp. sums: (parts-1, heads, HEADDIM). By the whole block. */
static __device__ inline float2 sum_of_parts(struct place p, struct spread s, float *sums, int channel, float2 y)
{
    const int next = s.heads * HEADDIM;
    sums += threadIdx.x / 32 % s.heads * HEADDIM + channel;
    if (p.part > 0) *(float2 *)(sums + (p.part - 1) * next) = y;
    if (s.parts > 1) __syncthreads();
    if (p.part > 0) return y;
#pragma unroll 1
    for (int part = 1; part < s.parts; part++, sums += next) {
        y.x += sums[0];
        y.y += sums[1];
    }
    return y;
}

/* A group of heads of a stream, blockIdx = (group, stream): convolution, recurrence, gate. */
template <typename X>
static __global__ void __launch_bounds__(32 * MIX_WARPS, 2)
    mix_kernel(const __grid_constant__ struct decode_view a, const __grid_constant__ struct decode_layer layer, int l,
               const void *next_in_proj, struct spread spread)
{
    extern __shared__ float4 shared[];
    float *bc = (float *)shared, *cb = bc + matches_at(a, spread), y[history<X>::WIDE];
    struct kept *kept = (struct kept *)(bc + kept_at(a)) + threadIdx.x;
    struct place p = place_of(a, l, spread);
    int t = *a.t, channel = history<X>::channel();
    X *u = (X *)a.u + p.head * a.T * HEADDIM, *history_b = (X *)a.b + ((int64_t)l * a.R + p.r) * a.T * a.S;
    float fade = mix_inputs<X>(a, layer, l, t, p, spread, u, history_b, bc, kept);
    __syncthreads();
    match_history(history_b, a.S, t, bc, cb);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < history<X>::WIDE; i++) y[i] = 0;
    if (p.has_head) {
        add_tokens<X>(u, a.decay + p.head * a.T, cb, t, fade, p.part, spread.parts, y);
        share_sums<2>(y);
    }
    ask_for_next_layer<X>(a, next_in_proj, t, p, spread);
    float2 sum = sum_of_parts(p, spread, bc + sums_at(a, spread), channel, make_float2(y[0], y[1]));
    if (!p.finishes) return;
    sum.x += cb[t] * kept->now.x + kept->skip.x;
    sum.y += cb[t] * kept->now.y + kept->skip.y;
    if (threadIdx.x % 32 == 0) a.decay[p.head * a.T + t] = 1;
    gate_head<X>(a, layer.mixer_norm, p, p.h * HEADDIM + channel, sum, kept->gate);
}

/* ----------------------------------------------------------------------------------------------------------- sample */

/* The token of picture blockIdx.x. t has moved on already. Shared: V floats where there is room. */
static __global__ void __launch_bounds__(SAMPLE_THREADS, 1)
    sample_kernel(const __grid_constant__ struct decode_view a, bool has_room)
{
    extern __shared__ float4 shared[];
    __shared__ struct sample_shared work;
    int picture = blockIdx.x;
    const float *logits = a.logits + (int64_t)picture * a.V;
    const float *uncond = a.R == 2 * a.pictures ? logits + (int64_t)a.pictures * a.V : NULL;
    float *x = has_room ? (float *)shared : a.probabilities + (int64_t)picture * a.V;
    wait_for_the_one_before();
    int64_t at = (int64_t)(*a.t - 1) * a.pictures + picture;
    int token = sample_row(&work, logits, uncond, a.V, a.filter, a.uniform[at], x, blockDim.x);
    if (threadIdx.x == 0) a.tokens[at] = token;
}

/* ---------------------------------------------------------------------------------------------------------- the step */

/* Kernels for rows of usual width keep more in registers. */
template <typename X>
static aim_status normalize(struct backend *be, const struct decode_view *a, int l, const float *weight, cudaStream_t stream)
{
    const int usual = 512;
    int threads = (a->d / 4 + 31) / 32 * 32;
    auto kernel = threads <= usual ? norm_kernel<X, usual> : norm_kernel<X, DECODE_WIDTH / 4>;
    return launch_early(be, stream, kernel, dim3((unsigned)a->R), threads, 0, *a, l, weight);
}

static aim_status sample(struct backend *be, const struct decode_view *a, cudaStream_t stream)
{
    size_t room = (size_t)a->V * sizeof(float);
    bool has_room = room + sizeof(struct sample_shared) <= cuda_of(be)->shared_limit;
    if (has_room) CUDA_TRY(be, cudaFuncSetAttribute(sample_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)room));
    return launch_early(be, stream, sample_kernel, dim3((unsigned)a->pictures), SAMPLE_THREADS, has_room ? room : 0, *a,
                        has_room);
}

/* Whether a layer's products are ours (decode_rows.cuh): cuBLASLt's are faster where there is much to multiply. */
template <typename X> static bool multiplies_rows(const struct decode_view *a)
{
    const int widest = 1024;
    return sizeof(X) == sizeof(bf16) && a->R <= ROWS_MOST && a->d <= widest;
}

template <typename X>
static aim_status multiply_in(struct backend *be, const struct decode_view *a, const struct decode_products *p, const void *w,
                              cudaStream_t stream)
{
    struct rows_product rows = {(const bf16 *)a->m, (const bf16 *)w, a->zxbcdt, a->R, a->W, a->d, a->in_parts, true};
    if (multiplies_rows<X>(a)) return rows_multiply(be, &rows, stream);
    return product_run(be, &p->in, a->m, w, a->zxbcdt, p->workspace, stream);
}

template <typename X>
static aim_status multiply_out(struct backend *be, const struct decode_view *a, const struct decode_products *p, const void *w,
                               cudaStream_t stream)
{
    struct rows_product rows = {(const bf16 *)a->v, (const bf16 *)w, a->h, a->R, a->d, a->E, a->out_parts, true};
    if (multiplies_rows<X>(a)) return rows_multiply(be, &rows, stream);
    return product_run(be, &p->out, a->v, w, a->h, p->workspace, stream);
}

template <typename X>
static aim_status step(struct backend *be, const struct decode_view *given, const struct decode_products *p,
                       const struct decode_layer *layers, unsigned kinds, cudaStream_t stream)
{
    struct decode_view view = *given, *a = &view;
    view.in_parts = multiplies_rows<X>(a) ? rows_parts(a->W, a->d, DECODE_IN_PARTS) : 1;
    view.out_parts = multiplies_rows<X>(a) ? rows_parts(a->d, a->E, DECODE_OUT_PARTS) : 1;
    struct spread spread = spread_of(cuda_of(be), a, sizeof(X));
    dim3 groups((unsigned)spread.groups, (unsigned)a->R);
    int mix_threads = 32 * spread.heads * spread.parts;
    for (int l = 0; l < a->layers; l++) {
        const struct decode_layer *layer = &layers[l];
        const void *next = l + 1 < a->layers ? layers[l + 1].in_proj : NULL;
        if (kinds & 1 << STEP_NORM) TRY(normalize<X>(be, a, l, layer->norm, stream));
        if (kinds & 1 << STEP_IN) TRY(multiply_in<X>(be, a, p, layer->in_proj, stream));
        if (kinds & 1 << STEP_MIX)
            TRY(launch_early(be, stream, mix_kernel<X>, groups, mix_threads, mix_shared(a, spread), *a, *layer, l, next,
                             spread));
        if (kinds & 1 << STEP_OUT) TRY(multiply_out<X>(be, a, p, layer->out_proj, stream));
    }
    if (kinds & 1 << STEP_NORM) TRY(normalize<X>(be, a, a->layers, a->norm_final, stream));
    if (kinds & 1 << STEP_LOGITS) TRY(product_run(be, &p->head, a->m, a->words, a->logits, p->workspace, stream));
    return kinds & 1 << STEP_DRAW ? sample(be, a, stream) : AIM_OK;
}

aim_status decode_graph_step(struct backend *be, const struct decode_view *a, bool is_bf16, const struct decode_products *p,
                             const struct decode_layer *layers, unsigned kinds, cudaStream_t stream)
{
    return is_bf16 ? step<bf16>(be, a, p, layers, kinds, stream) : step<float>(be, a, p, layers, kinds, stream);
}
