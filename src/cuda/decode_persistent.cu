/*
 * Decoding for a few streams as one kernel that stays on every multiprocessor. A layer is three exchanges of words
 * (exchange.cuh) between the blocks:
 *
 *     r += gate ⊙ h, norm (every block, all streams), in_proj → z, x, B, C, dt | mix → v, Σ (y silu z)² | out_proj → h |
 *
 * Such a network is small for a GPU: the weights of AiM-B pass in 50 us a token, and what takes longer is the 72 times that
 * every block waits for all others. So each exchange is one chain: a load that finds its words, as little as possible until
 * the words it makes are stored; whatever does not depend on it is in registers, in shared memory or under way before. The
 * residual never leaves the block.
 */
#include "cuda/decode_few_mix.cuh"
#include "cuda/decode_few_product.cuh"
#include "cuda/decode_meter.cuh"

struct few_job {
    struct decode_view a;
    struct few_memory m;
    struct few_layout at;
    int from, to;
    unsigned long long *meter; /* (blocks, METER_KINDS) cycles, or NULL */
};

/* --------------------------------------------------------------------------------------------------------- norm */

enum { PAIRS = 4, NORM_BATCH = PAIRS * THREADS }; /* pairs of values of the residual that a thread takes at once */

/* Pair i of this thread in the batch from pair `base` on: `column` of stream r. */
struct norm_place {
    int at, r, column;
    bool there;
};

static __device__ inline struct norm_place norm_place_of(const struct decode_view &a, const struct few_shared *s, int base,
                                                         int i)
{
    struct norm_place p;
    p.at = base + i * THREADS + (int)threadIdx.x;
    p.r = s->chunk_stream[p.at / 32];
    p.column = 2 * p.at - p.r * residual_pitch(a.d);
    p.there = p.r < a.R && p.column < a.d;
    return p;
}

static __device__ inline float2 load2(const float *p)
{
    return __ldcg((const float2 *)p);
}

/* What a norm multiplies with and adds; those of the layer before gate its output. */
struct norm_constants {
    float2 gate[PAIRS], weight[PAIRS], shift[PAIRS], gain[PAIRS];

    __device__ inline void load(const struct decode_view &a, const struct few_shared *s, int l, int base)
    {
        const float *of = l == a.layers ? a.norm_final : layers_of(s)[l].norm;
        const float *modulation = a.classes.modulation;
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            struct norm_place p = norm_place_of(a, s, base, i);
            if (!p.there) continue;
            int64_t row = s->row[p.r], layer_row = l * a.classes.rows + row;
            const float *add =
                l == a.layers ? a.classes.final_modulation + row * 2 * a.d : modulation + layer_row * 3 * a.d;
            if (l > 0) gate[i] = load2(modulation + ((layer_row - a.classes.rows) * 3 + 2) * a.d + p.column);
            weight[i] = load2(of + p.column);
            shift[i] = load2(add + p.column);
            gain[i] = load2(add + a.d + p.column);
        }
    }
};

static __device__ inline float2 embedding_pair(const float *p)
{
    return load2(p);
}

static __device__ inline float2 embedding_pair(const bf16 *p)
{
    unsigned both = __ldcg((const unsigned *)p);
    return make_float2(__uint_as_float(both << 16), __uint_as_float(both & 0xffff0000u));
}

/* What enters the network at position t: the class's embedding, then the last token with its position. */
template <typename X>
static __device__ inline float2 embed(const struct decode_view &a, const struct few_shared *s, int t,
                                      const struct norm_place &p)
{
    if (t == 0) return load2(a.classes.embedding + (int64_t)s->row[p.r] * a.d + p.column);
    float2 place = load2(a.positions + (int64_t)(t - 1 + a.pos_offset) * a.d + p.column);
    float2 w = embedding_pair((const X *)a.words + (int64_t)s->token[p.r] * a.d + p.column);
    return make_float2(w.x + place.x, w.y + place.y);
}

/* Waits for this thread's pairs of h. */
static __device__ inline void gather(const struct decode_view &a, const struct few_memory &m, const struct few_shared *s,
                                     int base, unsigned step, float2 (&h)[PAIRS])
{
    bool missing;
    do {
        ulonglong2 w[PAIRS];
        missing = false;
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            struct norm_place p = norm_place_of(a, s, base, i);
            if (p.there) w[i] = words_read(m.h + 2 * p.at);
        }
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            if (!norm_place_of(a, s, base, i).there) continue;
            missing |= !word_is_of(w[i].x, step) || !word_is_of(w[i].y, step);
            h[i] = make_float2(word_float(w[i].x), word_float(w[i].y));
        }
    } while (missing);
}

static __device__ inline int red_pitch(int d)
{
    return (residual_pitch(d) / 64 + 3) / 4 * 4;
}

/* Σ over the warp's lanes, of the chunk that pair p is in. */
static __device__ inline void chunk_sum(const struct decode_view &a, float4 *red, const struct norm_place &p, float squares)
{
    squares = warp_sum(squares);
    if (p.r < a.R && threadIdx.x % 32 == 0)
        ((float *)red)[p.r * red_pitch(a.d) + p.at / 32 - p.r * (residual_pitch(a.d) / 64)] = squares;
}

/* 1 / rms of row r from the sums of its chunks. */
static __device__ inline float row_scale(const struct decode_view &a, const float4 *red, int r)
{
    int pitch = red_pitch(a.d) / 4;
    float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 4
    for (int i = 0; i < pitch; i++) {
        float4 x = red[r * pitch + i];
        sum = make_float4(sum.x + x.x, sum.y + x.y, sum.z + x.z, sum.w + x.w);
    }
    return 1.0f / sqrtf(((sum.x + sum.y) + (sum.z + sum.w)) / (float)a.d + 1e-5f);
}

/* The first of the head's two norms, in place. */
static __device__ inline void first_norm(const struct decode_view &a, struct few_shared *s, int base, float2 *residual)
{
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        struct norm_place p = norm_place_of(a, s, base, i);
        float squares = 0;
        if (p.there) {
            float2 w = load2(a.norm_f + p.column), x = residual[p.at];
            float scale = row_scale(a, s->red[0], p.r);
            x = make_float2(x.x * scale * w.x, x.y * scale * w.y);
            residual[p.at] = x;
            squares = x.x * x.x + x.y * x.y;
        }
        chunk_sum(a, s->red[1], p, squares);
    }
}

static __device__ inline void store2(float *to, float2 v)
{
    *(float2 *)to = v;
}

static __device__ inline void store2(bf16 *to, float2 v)
{
    *(__nv_bfloat162 *)to = __floats2bfloat162_rn(v.x, v.y);
}

/*
 * The input (R, stride bytes) of X of layer l, of the head when l = layers. residual: pairs, of which every thread owns those
 * of its places, from one layer to the next. Ends without a barrier.
 */
template <typename X, typename Waited>
static __device__ inline void norm(const struct decode_view &a, const struct few_memory &m, struct few_shared *s, int l, int t,
                                   unsigned step, float2 *residual, char *input, int stride, Waited waited)
{
    int pairs = a.R * residual_pitch(a.d) / 2;
    struct norm_constants c;
    for (int base = 0; base < pairs; base += NORM_BATCH) {
        float2 h[PAIRS];
        c.load(a, s, l, base);
        if (l > 0) gather(a, m, s, base, step - 1, h);
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            struct norm_place p = norm_place_of(a, s, base, i);
            float squares = 0;
            if (p.there) {
                float2 x;
                if (l == 0) {
                    x = embed<X>(a, s, t, p);
                } else {
                    x = residual[p.at];
                    x = make_float2(x.x + c.gate[i].x * h[i].x, x.y + c.gate[i].y * h[i].y);
                }
                residual[p.at] = x;
                squares = x.x * x.x + x.y * x.y;
            }
            chunk_sum(a, s->red[0], p, squares);
        }
    }
    waited();
    __syncthreads();
    const float4 *red = s->red[0];
    if (l == a.layers) {
        for (int base = 0; base < pairs; base += NORM_BATCH) first_norm(a, s, base, residual);
        red = s->red[1];
        __syncthreads();
    }
    for (int base = 0; base < pairs; base += NORM_BATCH) {
        if (pairs > NORM_BATCH) c.load(a, s, l, base);
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            struct norm_place p = norm_place_of(a, s, base, i);
            if (!p.there) continue;
            float scale = row_scale(a, red, p.r);
            float2 x = residual[p.at], y;
            y.x = x.x * scale * c.weight[i].x * (1.0f + c.gain[i].x) + c.shift[i].x;
            y.y = x.y * scale * c.weight[i].y * (1.0f + c.gain[i].y) + c.shift[i].y;
            store2((X *)(input + p.r * stride) + p.column, y);
        }
    }
}

/* ------------------------------------------------------------------------------------------------ between products */

/* v of all blocks as the input (R, stride bytes) of out_proj: two words, 8 bytes, at a time. */
template <typename X>
static __device__ inline void fetch_mixed(const struct decode_view &a, const struct few_memory &m, unsigned step, char *input,
                                          int stride)
{
    int row = a.E * (int)sizeof(X) / 8, pairs = a.R * row;
    for (int base = threadIdx.x; base < pairs; base += NORM_BATCH) {
        ulonglong2 w[PAIRS];
        char *to[PAIRS];
        bool missing;
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            int at = base + i * THREADS, r = at / row;
            to[i] = input + r * stride + (at - r * row) * 8;
        }
        do {
            missing = false;
#pragma unroll
            for (int i = 0; i < PAIRS; i++)
                if (base + i * THREADS < pairs) w[i] = words_read(m.v + 2 * (base + i * THREADS));
#pragma unroll
            for (int i = 0; i < PAIRS; i++)
                if (base + i * THREADS < pairs) missing |= !word_is_of(w[i].x, step) || !word_is_of(w[i].y, step);
        } while (missing);
#pragma unroll
        for (int i = 0; i < PAIRS; i++)
            if (base + i * THREADS < pairs) *(uint2 *)to[i] = make_uint2((unsigned)w[i].x, (unsigned)w[i].y);
    }
}

/* The gated norm's factor of each stream, which out_proj's results want; the last warps, a stream each. */
static __device__ inline void fetch_factor(const struct decode_view &a, const struct few_memory &m, struct few_shared *s,
                                           unsigned step)
{
    int r = WARPS - 1 - (int)threadIdx.x / 32, lane = threadIdx.x % 32;
    if (r >= a.R) return;
    const word *squares = m.squares + (int64_t)r * 2 * (a.E / UNIT);
    float sum = 0;
    for (int i = lane; i < s->team[r].blocks * s->team[r].groups; i += 32) sum += word_float(word_wait(squares + i, step));
    sum = warp_sum(sum);
    if (lane == 0) s->factor[r] = 1.0f / sqrtf(sum / (float)a.E + 1e-5f);
}

/* Guided logits (pictures, V) of the rows that this block has of all streams. */
static __device__ inline void guide(const struct decode_view &a, int n0, int rows, const struct part_sums &sums)
{
    bool guided = a.R == 2 * a.pictures;
    each_sum(a.pictures, rows, sums, [&](int picture, int row, float logit) {
        float v = logit;
        if (guided) {
            float u = sums.of(a.pictures + picture, row);
            v = u + a.filter.cfg * (logit - u);
        }
        a.logits[(int64_t)picture * a.V + n0 + row] = v * a.filter.scale;
    });
}

/* Draws the tokens of pictures blockIdx, blockIdx + gridDim, ... when all blocks' logits are there, and tells them. */
static __device__ inline void draw(const struct few_job &job, int t, char *shared)
{
    const struct decode_view &a = job.a;
    if ((int)blockIdx.x >= a.pictures) return;
    struct sample_filter filter = a.filter;
    filter.scale = 1; /* the logits are guided and scaled */
    if (threadIdx.x == 0) count_acquire(job.m.arrived, (unsigned)(t - job.from + 1) * gridDim.x);
    __syncthreads();
    for (int p = blockIdx.x; p < a.pictures; p += gridDim.x) {
        int64_t at = (int64_t)t * a.pictures + p;
        float *x = job.at.logits ? (float *)(shared + job.at.logits) : a.probabilities + (int64_t)p * a.V;
        int token = sample_row((struct sample_shared *)(shared + job.at.sampler), a.logits + (int64_t)p * a.V, NULL, a.V,
                               filter, a.uniform[at], x);
        if (threadIdx.x == 0) {
            a.tokens[at] = token;
            word_release(job.m.token + p, (unsigned)token, (unsigned)t + 1);
        }
        __syncthreads();
    }
}

/* The last tokens of all streams. What blocks have kept for each other in the steps before is there, too. */
static __device__ inline void last_tokens(const struct few_job &job, struct few_shared *s, int t)
{
    const struct decode_view &a = job.a;
    if (t > 0 && (int)threadIdx.x < a.R) {
        int p = (int)threadIdx.x % a.pictures;
        int token = t > job.from ? (int)word_acquire(job.m.token + p, (unsigned)t)
                                 : __ldcg(a.tokens + (int64_t)(t - 1) * a.pictures + p);
        s->token[threadIdx.x] = max(token, 0);
    }
    __syncthreads();
}

/* --------------------------------------------------------------------------------------------------------- the kernel */

static __device__ inline void shared_start(const struct few_job &job, int size, struct few_shared *s)
{
    const struct decode_view &a = job.a;
    int thread = threadIdx.x, chunks = residual_pitch(a.d) / 64;
    shares_start(a, size, s);
    for (int i = thread; i < a.layers; i += THREADS) ((struct decode_layer *)(s + 1))[i] = a.layer[i];
    for (int i = thread; i < MOST_CHUNKS; i += THREADS) s->chunk_stream[i] = (unsigned char)min(i / chunks, a.R);
    for (int i = thread; i < 2 * MOST_CHUNKS; i += THREADS) ((float *)s->red)[i] = 0;
    if (thread < a.R) {
        s->team[thread] = team_of(a.E, a.R, gridDim.x, thread);
        s->row[thread] = a.row[thread];
    }
    if (thread == 0) {
        int r = (int)blockIdx.x * a.R / (int)gridDim.x, units = a.E / UNIT;
        struct team team = team_of(a.E, a.R, gridDim.x, r);
        int place = (int)blockIdx.x - team.first;
        s->stream = r;
        s->unit = place < team.blocks ? units * place / team.blocks : 0;
        s->units = place < team.blocks ? units * (place + 1) / team.blocks - s->unit : 0;
    }
    __syncthreads();
}

/* One layer. step: the number of its words. */
template <typename X, int DEPTH, typename Meter>
static __device__ inline void run_layer(const struct few_job &job, struct few_shared *s, struct ring *ring, char *shared,
                                        int l, int t, Meter &meter)
{
    const struct decode_view &a = job.a;
    const struct few_memory &m = job.m;
    unsigned step = (unsigned)(t * a.layers + l + 1);
    char *input = shared + job.at.input;
    float *part = (float *)(shared + job.at.part);
    int in_stride = input_stride(a.d, sizeof(X)), out_stride = input_stride(a.E, sizeof(X));
    mix_ahead<X>(a, m, s, l, t);
    norm<X>(a, m, s, l, t, step, (float2 *)(shared + job.at.residual), input, in_stride, [&] { meter.mark(WAIT_H); });
    __syncthreads();
    meter.mark(NORM);
    product<X, DEPTH>(a, s, ring, IN, shared_address(input), in_stride, part, [&](int first, int rows, struct part_sums sums) {
        word *to = m.zxbcdt + s->share[IN].n0 + first;
        each_sum(a.R, rows, sums, [&](int r, int row, float sum) {
            word_store(to + (int64_t)r * a.W + row, __float_as_uint(sum), step);
        });
    });
    meter.mark(IN_PROJ);
    if (s->units > 0) mix<X>(a, m, s, l, t, step, (float *)(shared + job.at.mixer), [&] { meter.mark(WAIT_ZXBCDT); });
    meter.mark(MIX);
    fetch_mixed<X>(a, m, step, input, out_stride);
    meter.mark(WAIT_V);
    __syncthreads();
    fetch_factor(a, m, s, step);
    product<X, DEPTH>(a, s, ring, OUT, shared_address(input), out_stride, part, [&](int first, int rows, struct part_sums sums) {
        word *to = m.h + s->share[OUT].n0 + first;
        each_sum(a.R, rows, sums, [&](int r, int row, float sum) {
            word_store(to + r * residual_pitch(a.d) + row, __float_as_uint(sum * s->factor[r]), step);
        });
    });
    meter.mark(OUT_PROJ);
}

template <typename X, int DEPTH, typename Meter>
static __global__ void __launch_bounds__(THREADS, 1) persistent_kernel(const __grid_constant__ struct few_job job)
{
    extern __shared__ __align__(128) char shared[];
    const struct decode_view &a = job.a;
    struct few_shared *s = (struct few_shared *)(shared + job.at.fixed);
    char *input = shared + job.at.input;
    int stride = input_stride(a.d, sizeof(X));
    struct ring ring;
    Meter meter;
    shared_start(job, sizeof(X), s);
    ring_start<DEPTH>(a, s, &ring, shared, job.to - job.from);
    meter.start();
    for (int t = job.from; t < job.to; t++) {
        last_tokens(job, s, t);
        meter.mark(WAIT_TOKEN);
        for (int l = 0; l < a.layers; l++) run_layer<X, DEPTH>(job, s, &ring, shared, l, t, meter);
        norm<X>(a, job.m, s, a.layers, t, (unsigned)((t + 1) * a.layers + 1), (float2 *)(shared + job.at.residual), input,
                stride, [&] { meter.mark(WAIT_H); });
        __syncthreads();
        product<X, DEPTH>(a, s, &ring, HEAD, shared_address(input), stride, (float *)(shared + job.at.part),
                          [&](int first, int rows, struct part_sums sums) { guide(a, s->share[HEAD].n0 + first, rows, sums); });
        __syncthreads();
        if (threadIdx.x == 0) count_release(job.m.arrived);
        meter.mark(LOGITS);
        draw(job, t, shared);
        meter.mark(DRAW);
    }
    weights_wait<0>();
    meter.finish(job.meter);
}

/* ---------------------------------------------------------------------------------------------------------- the host */

enum { DEEP = 4, SHALLOW = 2 }; /* stages of a ring */

static struct few_layout layout_of(const struct decode_view *a, int size, int blocks, int depth, bool logits)
{
    struct few_layout at;
    int units = 0;
    for (int r = 0; r < a->R; r++) units = std::max(units, team_of(a->E, a->R, blocks, r).units);
    auto whole = [](int64_t n) { return (int)((n + 15) / 16 * 16); };
    at.fixed = WARPS * depth * TILE_BYTES;
    at.input = at.fixed + whole((int64_t)sizeof(struct few_shared) + a->layers * (int64_t)sizeof(struct decode_layer));
    at.residual = at.input + whole((int64_t)a->R * input_stride(a->E, size));
    at.part = at.residual + a->R * residual_pitch(a->d) * (int)sizeof(float);
    at.mixer = at.part + PART_BYTES;
    at.sampler = at.input;
    at.logits = logits ? at.sampler + whole(sizeof(struct sample_shared)) : 0;
    int sampled = logits ? at.logits + a->V * (int)sizeof(float) : at.sampler + (int)sizeof(struct sample_shared);
    at.total = std::max(at.mixer + mixer_layout_of(units, a->S).total * (int)sizeof(float), sampled);
    return at;
}

/* Stages of the rings, 0 when there is no room; with logits in shared memory where that is possible. */
static int depth_that_fits(const struct cuda *c, const struct decode_view *a, int size, struct few_layout *at)
{
    for (int depth = DEEP; depth >= SHALLOW; depth -= DEEP - SHALLOW)
        for (int logits = 1; logits >= 0; logits--) {
            *at = layout_of(a, size, c->multiprocessors, depth, logits != 0);
            if ((size_t)at->total <= c->shared_limit) return depth;
        }
    return 0;
}

/* Whether every block has rows to read ahead of the others (which is how they know that words may be written anew), and
 * operands fit the tensor cores. */
static bool suits(const struct cuda *c, const struct decode_view *a, int size)
{
    int chunks = a->R * ((residual_pitch(a->d) / 64 + 3) / 4 * 4), widest = size == 2 ? (int)keys<bf16>::WIDEST : (int)keys<float>::WIDEST;
    return a->R <= MOST_STREAMS && a->R <= c->multiprocessors && a->W >= c->multiprocessors && chunks <= MOST_CHUNKS &&
           a->S <= widest && a->S * size % 16 == 0;
}

bool decode_persistent_fits(const struct cuda *c, const struct decode_view *a, bool is_bf16)
{
    int size = is_bf16 ? 2 : 4;
    struct few_layout at;
    return suits(c, a, size) && depth_that_fits(c, a, size, &at) > 0;
}

int64_t decode_persistent_bytes(const struct decode_view *a, bool is_bf16, int64_t streams)
{
    return few_memory_of(a, streams < MOST_STREAMS ? streams : MOST_STREAMS, is_bf16 ? 2 : 4, NULL).bytes;
}

template <typename X> static const void *kernel_of(int depth, bool metered)
{
    if (metered)
        return depth == DEEP ? (const void *)persistent_kernel<X, DEEP, struct meter>
                             : (const void *)persistent_kernel<X, SHALLOW, struct meter>;
    return depth == DEEP ? (const void *)persistent_kernel<X, DEEP, struct no_meter>
                         : (const void *)persistent_kernel<X, SHALLOW, struct no_meter>;
}

aim_status decode_persistent_run(struct backend *be, const struct decode_view *a, bool is_bf16, int from, int to)
{
    struct cuda *c = cuda_of(be);
    int size = is_bf16 ? 2 : 4;
    struct few_job job = {*a, few_memory_of(a, a->R, size, (char *)a->few), {}, from, to, (unsigned long long *)c->meter};
    int depth = depth_that_fits(c, a, size, &job.at);
    const void *kernel = is_bf16 ? kernel_of<bf16>(depth, c->meter != NULL) : kernel_of<float>(depth, c->meter != NULL);
    void *arguments[] = {&job};
    CUDA_TRY(be, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, job.at.total));
    CUDA_TRY(be, cudaMemsetAsync(a->few, 0, (size_t)job.m.words, c->stream));
    CUDA_TRY(be, cudaLaunchCooperativeKernel(kernel, dim3((unsigned)c->multiprocessors), dim3(THREADS), arguments,
                                             (size_t)job.at.total, c->stream));
    return AIM_OK;
}
