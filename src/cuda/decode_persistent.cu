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

/* --------------------------------------------------------------------------------------------------------- norm */

/*
 * Pairs of values, or of words, that a thread takes at once. Here and in the mixer, what only some threads load starts as
 * zeros: registers that are written under a condition would else be taken through all of the loop over the layers.
 */
enum { PAIRS = 4 };

static __device__ inline float2 load2(const float *p)
{
    return __ldcg((const float2 *)p);
}

static __device__ inline float2 load2(const bf16 *p)
{
    unsigned both = __ldcg((const unsigned *)p);
    return make_float2(__uint_as_float(both << 16), __uint_as_float(both & 0xffff0000u));
}

/* Values 2i and 2i + 1 of a row of in_proj's input. */
static __device__ inline void put_pair(float *row, int i, float2 v)
{
    *(float2 *)(row + 2 * i) = v;
}

static __device__ inline void put_pair(bf16 *row, int i, float2 v)
{
    *((__nv_bfloat162 *)row + input_word(i, bf16())) = __floats2bfloat162_rn(v.x, v.y);
}

/*
 * What each pair of values of each stream's norms needs, 32 bytes together: the gate of the layer before, the factor and the
 * summand of this one, the weight of norm_f. The head has two norms,
 *
 *     s = RMS(r) ⊙ w_f,  m = RMS(s) ⊙ w ⊙ (1 + scale) + shift,
 *
 * and w_f is part of its factor. A block for each layer and stream.
 */
static __global__ void norm_kernel(const __grid_constant__ struct decode_view a, float4 *norms)
{
    int l = blockIdx.x / a.R, r = blockIdx.x % a.R;
    int64_t row = a.row[r], layer_row = l * a.classes.rows + row;
    bool head = l == a.layers;
    const float *modulation = a.classes.modulation, *weight = head ? a.norm_final : a.layer[l].norm;
    const float *shift = head ? a.classes.final_modulation + row * 2 * a.d : modulation + layer_row * 3 * a.d;
    const float *gates = modulation + ((layer_row - a.classes.rows) * 3 + 2) * a.d;
    for (int i = 2 * threadIdx.x; i < a.d; i += 2 * blockDim.x) {
        float2 gate = l > 0 ? load2(gates + i) : make_float2(0, 0), w = load2(weight + i), add = load2(shift + i);
        float2 gain = load2(shift + a.d + i), first = head ? load2(a.norm_f + i) : make_float2(1, 1);
        float4 *to = norms + (int64_t)blockIdx.x * a.d + i;
        to[0] = make_float4(gate.x, gate.y, first.x * w.x * (1.0f + gain.x), first.y * w.y * (1.0f + gain.y));
        to[1] = make_float4(add.x, add.y, first.x, first.y);
    }
}

/* What enters the network at position t: the class's embedding, then the last token with its position. */
template <typename X>
static __device__ inline float2 embed(const struct decode_view &a, const struct few_shared *s, int t, int r, int i)
{
    if (t == 0) return load2(a.classes.embedding + (int64_t)s->row[r] * a.d + i);
    float2 place = load2(a.positions + (int64_t)(t - 1 + a.pos_offset) * a.d + i);
    float2 w = load2((const X *)a.words + (int64_t)s->token[r] * a.d + i);
    return make_float2(w.x + place.x, w.y + place.y);
}

/* Waits for words from + 2i, from + 2i + 1 for i = first, first + hop, ... below count, at most PAIRS of them. */
static __device__ inline void gather(const word *from, int first, int hop, int count, unsigned step, ulonglong2 (&w)[PAIRS])
{
    bool missing;
    do {
        missing = false;
#pragma unroll
        for (int i = 0; i < PAIRS; i++)
            if (first + i * hop < count) w[i] = words_read(from + 2 * (first + i * hop));
#pragma unroll
        for (int i = 0; i < PAIRS; i++)
            if (first + i * hop < count) missing |= !word_is_of(w[i].x, step) || !word_is_of(w[i].y, step);
    } while (missing);
}

/* The gates and factors, and the summands, of pairs first, first + hop, ... below count. */
static __device__ inline void load_norms(const float4 *norms, int first, int hop, int count, float4 (&factor)[PAIRS],
                                         float2 (&shift)[PAIRS])
{
#pragma unroll
    for (int i = 0; i < PAIRS; i++) {
        int at = first + i * hop;
        if (at >= count) break;
        factor[i] = __ldcg(norms + 2 * at);
        shift[i] = load2((const float *)(norms + 2 * at + 1));
    }
}

/*
 * The input (R, stride bytes) of X of layer l, of the head when l = layers; h is of step `step`. residual (R, d/2): a thread
 * owns those of its seat from one layer to the next. Has a barrier, ends without one.
 */
template <typename X, typename Waited>
static __device__ inline void norm(const struct decode_view &a, const struct few_memory &m, struct few_shared *s, int l, int t,
                                   unsigned step, float2 *residual, char *input, int stride, Waited waited)
{
    const struct seat n = seat_of(a.R);
    int half = n.r < a.R ? a.d / 2 : 0; /* pairs of this thread's stream */
    const float4 *norms = m.norms + ((int64_t)l * a.R + n.r) * a.d;
    const word *h = m.h + n.r * a.d;
    float4 factor[PAIRS] = {}; /* and gate */
    float2 shift[PAIRS] = {}, squares = make_float2(0, 0);
    residual += n.r * half;
    if (l == 0)
        for (int at = n.me; at < half; at += n.lanes) residual[at] = embed<X>(a, s, t, n.r, 2 * at);
    for (int first = n.me; first < half; first += PAIRS * n.lanes) {
        ulonglong2 w[PAIRS] = {};
        load_norms(norms, first, n.lanes, half, factor, shift);
        if (l > 0) gather(h, first, n.lanes, half, step, w);
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            int at = first + i * n.lanes;
            if (at >= half) break;
            float2 x = residual[at];
            if (l > 0)
                residual[at] = x = make_float2(x.x + factor[i].x * word_float(w[i].x), x.y + factor[i].y * word_float(w[i].y));
            squares.x += x.x * x.x + x.y * x.y;
            if (l < a.layers) continue;
            float2 f = load2((const float *)(norms + 2 * at + 1) + 2);
            squares.y += x.x * x.x * (f.x * f.x) + x.y * x.y * (f.y * f.y);
        }
    }
    waited();
    squares = make_float2(warp_sum(squares.x), l == a.layers ? warp_sum(squares.y) : 0);
    if (n.me % 32 == 0) s->red[(n.r * n.lanes + n.me) / 32] = squares;
    __syncthreads();
    if (half == 0) return;
    float2 total = make_float2(0, 0);
    int warps = n.lanes / 32;
#pragma unroll 4
    for (int w = 0; w < warps; w++) {
        float2 sum = s->red[n.r * warps + w];
        total = make_float2(total.x + sum.x, total.y + sum.y);
    }
    float by = 1.0f / (float)a.d, scale = rsqrtf(total.x * by + 1e-5f);
    if (l == a.layers) scale *= rsqrtf(total.y * by * scale * scale + 1e-5f);
    X *to = (X *)(input + n.r * stride);
    for (int first = n.me; first < half; first += PAIRS * n.lanes) {
        if (half > PAIRS * n.lanes) load_norms(norms, first, n.lanes, half, factor, shift); /* they are others' by now */
#pragma unroll
        for (int i = 0; i < PAIRS; i++) {
            int at = first + i * n.lanes;
            if (at >= half) break;
            float2 x = residual[at];
            put_pair(to, at, make_float2(x.x * scale * factor[i].z + shift[i].x, x.y * scale * factor[i].w + shift[i].y));
        }
    }
}

/* ------------------------------------------------------------------------------------------------ between products */

/* v of all blocks as the input (R, stride bytes) of out_proj: two words, 8 bytes, at a time. */
template <typename X>
static __device__ inline void fetch_mixed(const struct decode_view &a, const struct few_memory &m, unsigned step, char *input,
                                          int stride)
{
    const struct seat n = seat_of(a.R);
    int row = a.E * (int)sizeof(X) / 8;
    if (n.r >= a.R) return;
    const word *v = m.v + n.r * 2 * row;
    for (int first = n.me; first < row; first += PAIRS * n.lanes) {
        ulonglong2 w[PAIRS] = {};
        gather(v, first, n.lanes, row, step, w);
#pragma unroll
        for (int i = 0; i < PAIRS; i++)
            if (first + i * n.lanes < row) {
                unsigned *to = (unsigned *)(input + n.r * stride), at = 2 * (first + i * n.lanes);
                to[input_word(at, X())] = (unsigned)w[i].x;
                to[input_word(at + 1, X())] = (unsigned)w[i].y;
            }
    }
}

/* The gated norm's factor of each stream, which out_proj's results want; the last warps, a stream each. */
static __device__ inline void fetch_factor(const struct decode_view &a, const struct few_memory &m, struct few_shared *s,
                                           unsigned step)
{
    int thread = thread_index(), r = WARPS - 1 - thread / 32, lane = thread % 32;
    if (r >= a.R) return;
    const word *squares = m.squares + (int64_t)r * 2 * (a.E / UNIT);
    float sum = 0;
    for (int i = lane; i < s->team[r].blocks * s->team[r].groups; i += 32) sum += word_float(word_wait(squares + i, step));
    sum = warp_sum(sum);
    if (lane == 0) s->factor[r] = rsqrtf(sum / (float)a.E + 1e-5f);
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
static __device__ __noinline__ void draw(const struct few_job &job, int t, char *shared)
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
    int thread = threadIdx.x;
    shares_start(a, size, s);
    for (int i = thread; i < a.layers; i += THREADS) ((struct decode_layer *)(s + 1))[i] = a.layer[i];
    if (thread < a.R) {
        s->team[thread] = team_of(a.E, a.R, gridDim.x, thread);
        s->row[thread] = a.row[thread];
    }
    __syncthreads();
}

/* One layer. step: the number of its words. */
template <typename X, int DEPTH, typename Meter>
static __device__ inline void run_layer(const struct few_job &job, const struct part_of_mixer &own, struct few_shared *s,
                                        struct ring *ring, char *shared, int l, int t, Meter &meter)
{
    const struct decode_view &a = job.a;
    const struct few_memory &m = job.m;
    unsigned step = (unsigned)(t * a.layers + l + 1);
    char *input = shared + job.at.input;
    float *part = (float *)(shared + job.at.part);
    int in_stride = input_stride(a.d, sizeof(X)), out_stride = input_stride(a.E, sizeof(X));
    mix_ahead<X>(job, own, l, t);
    norm<X>(a, m, s, l, t, step - 1, (float2 *)(shared + job.at.residual), input, in_stride, [&] { meter.mark(WAIT_H); });
    __syncthreads();
    meter.mark(NORM);
    product<X, DEPTH>(a, s, ring, IN, shared_address(input), in_stride, part, [&](int first, int rows, struct part_sums sums) {
        word *to = m.zxbcdt + s->share[IN].n0 + first;
        each_sum(a.R, rows, sums,
                 [&](int r, int row, float sum) { word_store(to + (int64_t)r * a.W + row, __float_as_uint(sum), step); });
    });
    meter.mark(IN_PROJ);
    if (own.units > 0)
        mix<X>(job, own, layers_of(s)[l], l, t, step, (float *)(shared + job.at.mixer), [&] { meter.mark(WAIT_ZXBCDT); });
    meter.mark(MIX);
    if (s->share[OUT].rows > 0) { /* who sends no h would not hold back those who write v anew */
        fetch_mixed<X>(a, m, step, input, out_stride);
        meter.mark(WAIT_V);
        __syncthreads();
        fetch_factor(a, m, s, step);
    }
    product<X, DEPTH>(a, s, ring, OUT, shared_address(input), out_stride, part,
                      [&](int first, int rows, struct part_sums sums) {
                          word *to = m.h + s->share[OUT].n0 + first;
                          each_sum(a.R, rows, sums, [&](int r, int row, float sum) {
                              word_store(to + r * a.d + row, __float_as_uint(sum * s->factor[r]), step);
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
    const struct part_of_mixer own = part_of_mixer_of(a);
    struct ring ring;
    Meter meter;
    shared_start(job, sizeof(X), s);
    ring_start<DEPTH>(a, s, &ring, shared, job.to - job.from);
    meter.start();
    for (int t = job.from; t < job.to; t++) {
        last_tokens(job, s, t);
        meter.mark(WAIT_TOKEN);
        for (int l = 0; l < a.layers; l++) run_layer<X, DEPTH>(job, own, s, &ring, shared, l, t, meter);
        norm<X>(a, job.m, s, a.layers, t, (unsigned)((t + 1) * a.layers), (float2 *)(shared + job.at.residual), input, stride,
                [&] { meter.mark(WAIT_H); });
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
    at.part = at.residual + a->R * a->d * (int)sizeof(float);
    at.mixer = at.part + PART_BYTES;
    at.sampler = at.input;
    at.logits = logits ? at.sampler + whole(sizeof(struct sample_shared)) : 0;
    int sampled = logits ? at.logits + a->V * (int)sizeof(float) : at.sampler + (int)sizeof(struct sample_shared);
    at.mix = mixer_layout_of(units, a->S);
    at.total = std::max(at.mixer + at.mix.total * (int)sizeof(float), sampled);
    return at;
}

/* Stages of the rings, 0 when there is no room; with logits in shared memory where that is possible. */
static int depth_that_fits(const struct cuda *c, const struct decode_view *a, int size, struct few_layout *at)
{
    for (int depth = DEEP; depth >= SHALLOW; depth -= DEEP - SHALLOW)
        for (int logits = 1; logits >= 0; logits--) {
            *at = layout_of(a, size, c->multiprocessors, depth, logits != 0);
            if ((size_t)at->total + METER_BYTES <= c->shared_limit) return depth;
        }
    return 0;
}

/* Whether every block has rows to read ahead of the others (which is how they know that words may be written anew), and
 * operands fit the tensor cores. */
static bool suits(const struct cuda *c, const struct decode_view *a, int size)
{
    int widest = size == 2 ? (int)keys<bf16>::WIDEST : (int)keys<float>::WIDEST;
    return a->R <= MOST_STREAMS && a->R <= c->multiprocessors && a->W >= c->multiprocessors && a->S <= widest &&
           a->S * size % 16 == 0;
}

bool decode_persistent_fits(const struct cuda *c, const struct decode_view *a, bool is_bf16)
{
    int size = is_bf16 ? 2 : 4;
    struct few_layout at;
    return suits(c, a, size) && depth_that_fits(c, a, size, &at) > 0;
}

int64_t decode_persistent_bytes(const struct decode_view *a, bool is_bf16, int64_t streams)
{
    int64_t most = MOST_STREAMS;
    return few_memory_of(a, std::min(streams, most), is_bf16 ? 2 : 4, NULL).bytes;
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
    if (from == 0) norm_kernel<<<(unsigned)((a->layers + 1) * a->R), THREADS, 0, c->stream>>>(*a, job.m.norms);
    CUDA_TRY(be, cudaMemsetAsync(a->few, 0, (size_t)job.m.words, c->stream));
    CUDA_TRY(be, cudaLaunchCooperativeKernel(kernel, dim3((unsigned)c->multiprocessors), dim3(THREADS), arguments,
                                             (size_t)job.at.total, c->stream));
    return AIM_OK;
}
