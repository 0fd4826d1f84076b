/*
 * One token for many streams: a chain of kernels and products, made to be captured in a CUDA graph. Kernels are launched early
 * (early.cuh): they load what they can while the one in front of them ends.
 */
#include "cuda/decode_history.cuh"
#include "cuda/decode_rows.cuh"

enum { SAMPLE_THREADS = 1024 };

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
 * MIX_BLOCKS: of the mixer on a multiprocessor, where there are so few that all run at once; a product's block has room beside
 * them and brings its weights meanwhile, and a block may have MIX_MOST heads. Where there are more, MIX_FIT run at once, and
 * blocks of MIX_HEADS at most are faster.
 */
enum { MIX_BLOCKS = 2, MIX_MOST = 24, MIX_FIT = 3, MIX_HEADS = 16 };

/*
 * How a layer's heads are spread: a block has `heads` heads of one stream, `side` of them at a time with `parts` warps for
 * each, in `rounds`. It asks for `share` bytes of a matrix before they are needed.
 */
struct spread {
    int groups, heads, side, parts, rounds;
    int64_t share;
};

/* As few warps a head as keep all of a block's warps at work. */
static void spread_warps(struct spread *s)
{
    s->parts = 1;
    for (int parts = 1, best = 0; parts <= MIX_WARPS; parts *= 2) {
        int side = MIX_WARPS / parts, rounds = (s->heads + side - 1) / side;
        if (best && rounds * side >= best) continue;
        best = rounds * side;
        s->parts = parts;
    }
    s->side = MIX_WARPS / s->parts;
    s->rounds = (s->heads + s->side - 1) / s->side;
}

/* Large groups share C·B among many heads; but there should be MIX_BLOCKS a multiprocessor, or nearly so. */
static struct spread spread_of(const struct cuda *c, const struct decode_view *a, int64_t size)
{
    struct spread s = {};
    int groups = MIX_BLOCKS * c->multiprocessors / a->R, most = groups > 0 ? MIX_MOST : MIX_HEADS;
    int fewest = (a->H + most - 1) / most;
    if (groups < fewest) groups = fewest;
    s.heads = (a->H + groups - 1) / groups;
    s.groups = (a->H + s.heads - 1) / s.heads;
    spread_warps(&s);
    s.share = ((int64_t)a->W * a->d * size / (s.groups * (int64_t)a->R) / 16 + 1) * 16;
    return s;
}

/* Of this token and a head: Δ, D, and how decays go on. */
struct token_step {
    float delta, skip;
    struct fading fading;
};

/* A block's shared memory, in its order. */
struct mix_memory {
    char *ring;               /* of the readers */
    float2 *x;                /* (heads, HEADDIM): the convolution's channels, silu(z) of the same */
    float *bc, *cb, *sums;    /* B_t and C_t; C·B of all tokens; (2, parts-1, side, HEADDIM): sums of heads' other warps */
    struct token_step *steps; /* (heads) */
};

template <typename X>
static __host__ __device__ inline size_t mix_memory_of(const struct decode_view &a, const struct spread &s, void *shared,
                                                       struct mix_memory *m)
{
    m->ring = (char *)shared;
    m->x = (float2 *)(m->ring + history<X>::RING);
    m->bc = (float *)(m->x + s.heads * HEADDIM);
    m->sums = m->bc + 2 * a.S;
    m->cb = m->sums + 2 * (s.parts - 1) * s.side * HEADDIM;
    m->steps = (struct token_step *)(m->cb + a.T);
    return (size_t)((char *)(m->steps + s.heads) - m->ring);
}

/* What a warp works on; without a head, it helps with what the block shares. */
struct place {
    int r, h, end, part; /* the stream, its next head, the block's last one + 1, which of a head's warps it is */
    int64_t head;        /* its number among those of all layers */
};

/* A head's number among those of all layers. */
static __device__ inline int64_t head_of(const struct decode_view &a, int l, int r, int h)
{
    return ((int64_t)l * a.R + r) * a.H + h;
}

static __device__ inline struct place place_of(const struct decode_view &a, int l, const struct spread &s)
{
    int warp = threadIdx.x / 32, first = blockIdx.x * s.heads;
    struct place p = {(int)blockIdx.y, first + warp % s.side, min(a.H, first + s.heads), warp / s.side, 0};
    p.head = head_of(a, l, p.r, p.h);
    return p;
}

/* Begins to read the past. */
template <typename X>
static __device__ inline reader<X> reader_of(const struct decode_view &a, int l, int t, const struct place &p,
                                             const struct spread &s, char *ring)
{
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    struct reader<X> q;
    q.slots = ring + warp * MIX_SLOTS * history<X>::SLOT;
    q.b = (const X *)a.b + ((int64_t)l * a.R + p.r) * a.T * a.S;
    q.u = (const X *)a.u + (p.head * a.T + lane / history<X>::SHARE) * HEADDIM + lane % history<X>::SHARE * history<X>::WIDE;
    q.decay = a.decay + p.head * a.T;
    q.next_head = (int64_t)s.side * a.T;
    q.t = t;
    q.S = a.S;
    q.slot = 0;
    q.row = warp * rows_of_batch<X>(a.S);
    q.token = q.first = p.part * history<X>::BATCH;
    q.step = s.parts * history<X>::BATCH;
    q.heads = p.h < p.end && q.first < t ? (p.end - p.h + s.side - 1) / s.side : 0;
    for (int i = 0; i < MIX_SLOTS; i++) ask_for_batch<true>(&q);
    return q;
}

/* The n-th channel of the convolution that a block works on: B and C, then its heads' x. */
static __device__ inline int channel_of(const struct decode_view &a, const struct spread &s, int n)
{
    return n < 2 * a.S ? a.E + n : (int)blockIdx.x * s.heads * HEADDIM + n - 2 * a.S;
}

/* Δ, D and decays of a head, from what was loaded of them. */
struct head_inputs {
    float dt, bias, rate, skip, carry;
};

static __device__ inline void head_begin(const struct decode_view &a, const struct decode_layer &layer, int l, int t, int r,
                                         int h, struct head_inputs *p)
{
    p->bias = layer.dt_bias[h];
    p->rate = layer.A_log[h];
    p->skip = layer.D[h];
    p->carry = t > 0 ? __ldcg(a.decay + head_of(a, l, r, h) * a.T + t) : 1;
}

static __device__ inline struct token_step head_end(const struct head_inputs &p)
{
    float size = p.dt + p.bias, delta = size > 20.0f ? size : log1pf(expf(size)), fade = expf(-delta * expf(p.rate));
    return {delta, p.skip, {fade, fade * p.carry}};
}

/* Channel n of a block, at the end: bc or x gets it; the stream's first block keeps B_t. */
template <typename X>
static __device__ inline void channel_end(const struct decode_view &a, int l, int t, int r, const struct spread &s, int n,
                                          const struct tap &tap, float z, const struct mix_memory &m)
{
    bool keeps = n >= 2 * a.S || blockIdx.x == 0;
    float value = tap_end(a, l, r, t, channel_of(a, s, n), tap, keeps);
    if (n >= 2 * a.S) {
        m.x[n - 2 * a.S] = make_float2(value, silu(z));
        return;
    }
    m.bc[n] = value;
    if (keeps && n < a.S) from_float(value, (X *)a.b + (((int64_t)l * a.R + r) * a.T + t) * a.S + n);
}

/*
 * All that the block's heads need of position t but for the past, at once, so that latencies pass but once: what does not
 * depend on in_proj is loaded, and when that has ended bc, x and `steps` are filled. Ends without a barrier.
 */
template <typename X>
static __device__ inline void mix_inputs(const struct decode_view &a, const struct decode_layer &layer, int l, int t, int r,
                                         const struct spread &s, const struct mix_memory &m)
{
    enum { TAPS = 4, STEP = 32 * MIX_WARPS };
    const int me = threadIdx.x, h0 = blockIdx.x * s.heads, heads = min(a.H - h0, s.heads), count = 2 * a.S + heads * HEADDIM;
    struct tap tap[TAPS];
    struct head_inputs head = {};
#pragma unroll
    for (int i = 0; i < TAPS; i++)
        if (me + i * STEP < count) tap_begin(a, layer, l, r, t, channel_of(a, s, me + i * STEP), &tap[i]);
    if (me < heads) head_begin(a, layer, l, t, r, h0 + me, &head);
    wait_for_the_one_before();
    let_the_next_one_start();
    if (me < heads) head.dt = projected(a, r, a.W - a.H + h0 + me);
#pragma unroll 1
    for (int first = me; first < count; first += TAPS * STEP) {
        float z[TAPS];
#pragma unroll
        for (int i = 0; i < TAPS; i++) {
            int n = first + i * STEP;
            if (n >= count) break;
            int c = channel_of(a, s, n);
            if (first != me) tap_begin(a, layer, l, r, t, c, &tap[i]);
            tap[i].now = projected(a, r, a.E + c);
            z[i] = n < 2 * a.S ? 0 : projected(a, r, c);
        }
#pragma unroll
        for (int i = 0; i < TAPS; i++)
            if (first + i * STEP < count) channel_end<X>(a, l, t, r, s, first + i * STEP, tap[i], z[i], m);
    }
    if (me < heads) m.steps[me] = head_end(head);
}

/* Σ over a head's warps of their two channels in y, for its first warp. sums: (parts-1, side, HEADDIM), used by the round
 * before the last at the latest. By the whole block. */
static __device__ inline float2 sum_of_parts(int part, const struct spread &s, float *sums, int channel, float2 y)
{
    const int next = s.side * HEADDIM;
    if (s.parts == 1) return y;
    sums += threadIdx.x / 32 % s.side * HEADDIM + channel;
    if (part > 0) *(float2 *)(sums + (part - 1) * next) = y;
    __syncthreads();
    if (part > 0) return y;
#pragma unroll 1
    for (int i = 1; i < s.parts; i++, sums += next) {
        y.x += sums[0];
        y.y += sums[1];
    }
    return y;
}

/*
 * The last step of a head, by a warp; two channels a lane, whose sum over the past is y: this token, the gate. x: the channels'
 * own, silu(z) of both. v gets the result times `norm` and `squares` its sum of squares; u_t goes into the history, and what
 * decays wait for.
 */
template <typename X>
static __device__ inline void finish_head(const struct decode_view &a, int t, const struct place &p,
                                          const struct token_step &step, float match, float4 x, float2 norm, float2 y)
{
    const int channel = history<X>::channel();
    const float own = match * step.delta + step.skip;
    store2((X *)a.u + (p.head * a.T + t) * HEADDIM + channel, step.delta * x.x, step.delta * x.z);
    y = make_float2((y.x + own * x.x) * x.y, (y.y + own * x.z) * x.w);
    store2((X *)a.v + (int64_t)p.r * a.E + p.h * HEADDIM + channel, y.x * norm.x, y.y * norm.y);
    float squares = warp_sum(y.x * y.x + y.y * y.y);
    if (threadIdx.x % 32 != 0) return;
    float *decay = a.decay + p.head * a.T + t;
    a.squares[(int64_t)p.r * a.H + p.h] = squares;
    decay[0] = 1;
    if (t + 1 < a.T) decay[1] = t % FOLD ? step.fading.carry : 1; /* the carry's place until that token comes */
}

/* A warp's part of the heads of its rounds. */
template <typename X>
static __device__ inline void mix_heads(const struct decode_view &a, const struct decode_layer &layer, int t, struct place p,
                                        const struct spread &s, const struct mix_memory &m, struct reader<X> *reader)
{
    const int h0 = blockIdx.x * s.heads, parted = (s.parts - 1) * s.side * HEADDIM, channel = history<X>::channel();
    for (int i = 0; i < s.rounds; i++, p.h += s.side, p.head += s.side) {
        const bool has_head = p.h < p.end, finishes = has_head && p.part == 0;
        const int h = has_head ? p.h : h0; /* of those without: any */
        const struct token_step &step = m.steps[h - h0];
        float2 norm = make_float2(0, 0);
        float y[history<X>::WIDE] = {};
        if (finishes) norm = *(const float2 *)(layer.mixer_norm + h * HEADDIM + channel);
        if (has_head) add_tokens(reader, m.cb, step.fading, a.decay + p.head * a.T, y);
        share_sums<2>(y);
        float2 sum = sum_of_parts(p.part, s, m.sums + i % 2 * parted, channel, make_float2(y[0], y[1]));
        float4 x = *(const float4 *)(m.x + (h - h0) * HEADDIM + channel);
        if (finishes) finish_head<X>(a, t, p, step, m.cb[t], x, norm, sum);
    }
}

/*
 * A group of heads of a stream, blockIdx = (group, stream): convolution, recurrence, gate. While out_proj and the next layer's
 * norm run, the next layer's matrix comes.
 */
template <typename X>
static __global__ void __launch_bounds__(32 * MIX_WARPS, MIX_FIT)
    mix_kernel(const __grid_constant__ struct decode_view a, const __grid_constant__ struct decode_layer layer, int l,
               const void *next_in_proj, const __grid_constant__ struct spread spread)
{
    extern __shared__ float4 shared[];
    struct mix_memory m;
    mix_memory_of<X>(a, spread, shared, &m);
    const struct place p = place_of(a, l, spread);
    const int t = *a.t;
    struct reader<X> reader = reader_of<X>(a, l, t, p, spread, m.ring);
    mix_inputs<X>(a, layer, l, t, p.r, spread, m);
    __syncthreads();
    match_history(&reader, m.bc, m.cb);
    __syncthreads();
    mix_heads(a, layer, t, p, spread, m, &reader);
    if (next_in_proj && threadIdx.x == 0)
        ask_for_share((const char *)next_in_proj, (int64_t)a.W * a.d * (int)sizeof(X), spread.share,
                      blockIdx.y * gridDim.x + blockIdx.x);
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

/* The mixer of layer l; `next` is the matrix that the next layer starts with. */
template <typename X>
static aim_status mix(struct backend *be, const struct decode_view *a, const struct decode_layer *layer, int l,
                      const void *next, const struct spread *spread, cudaStream_t stream)
{
    struct mix_memory m;
    size_t bytes = mix_memory_of<X>(*a, *spread, NULL, &m);
    CUDA_TRY(be, cudaFuncSetAttribute(mix_kernel<X>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes));
    return launch_early(be, stream, mix_kernel<X>, dim3((unsigned)spread->groups, (unsigned)a->R), 32 * MIX_WARPS, bytes, *a,
                        *layer, l, next, *spread);
}

static aim_status sample(struct backend *be, const struct decode_view *a, cudaStream_t stream)
{
    size_t room = (size_t)a->V * sizeof(float);
    bool has_room = room + sizeof(struct sample_shared) <= cuda_of(be)->shared_limit;
    if (has_room) CUDA_TRY(be, cudaFuncSetAttribute(sample_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)room));
    return launch_early(be, stream, sample_kernel, dim3((unsigned)a->pictures), SAMPLE_THREADS, has_room ? room : 0, *a,
                        has_room);
}

/* Whether out_proj is ours (decode_rows.cuh): cuBLASLt is faster where there is much to multiply, as for in_proj. */
template <typename X> static bool multiplies_rows(const struct decode_view *a)
{
    const int64_t largest = 5000000;
    return sizeof(X) == sizeof(bf16) && a->R <= ROWS_MOST && (int64_t)a->d * a->E <= largest;
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
    view.out_parts = multiplies_rows<X>(a) ? rows_parts(a->d, a->E, DECODE_OUT_PARTS) : 1;
    struct spread spread = spread_of(cuda_of(be), a, sizeof(X));
    for (int l = 0; l < a->layers; l++) {
        const struct decode_layer *layer = &layers[l];
        const void *next = l + 1 < a->layers ? layers[l + 1].in_proj : NULL;
        if (kinds & 1 << STEP_NORM) TRY(normalize<X>(be, a, l, layer->norm, stream));
        if (kinds & 1 << STEP_IN) TRY(product_run(be, &p->in, a->m, layer->in_proj, a->zxbcdt, p->workspace, stream));
        if (kinds & 1 << STEP_MIX) TRY(mix<X>(be, a, layer, l, next, &spread, stream));
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
