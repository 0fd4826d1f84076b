/*
 * Decoding for a few streams as one kernel that stays on every multiprocessor, in bf16. A layer is four exchanges
 * (exchange.cuh) between the blocks:
 *
 *     r += gate ⊙ h (every block, all streams), in_proj → z, x, B, C, dt | C·B → scores | mix → v = y silu z | out_proj → h |
 *
 * Such a network is small for a GPU: the weights of AiM-B pass in 70 us a token, and what takes longer is the 96 times that
 * blocks wait for others. So each exchange is one chain: a load that finds its words, as few instructions as possible until
 * the words it makes are stored; whatever does not depend on it is in registers, in shared memory or under way before. Neither
 * norm stands in the chain: products are linear, and the factor 1 / rms, summed up meanwhile, is applied to their results.
 * The residual never leaves the block.
 */
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#pragma nv_diag_suppress 177 /* the kernel is empty there, and nothing calls what it is made of */
#endif

#include "cuda/decode_few_mix.cuh"
#include "cuda/decode_few_product.cuh"
#include "cuda/decode_few_tables.cuh"
#include "cuda/decode_meter.cuh"

/* ------------------------------------------------------------------------------------------------------------ inputs */

/*
 * The stream whose rows a thread handles where all blocks do the same for all streams: LANES threads share a stream, of which
 * it is number `me`.
 */
template <int PAIRS> struct seat {
    enum { LANES = THREADS / (2 * PAIRS), STREAM_WARPS = LANES / 32 };
    int r, me;

    __device__ inline seat(int thread) : r(thread / LANES), me(thread % LANES)
    {
    }
};

/* Waits for packets from[0], from[hop], ..., of which those with `wanted` are there to come. */
template <int N>
static __device__ inline void gather(const uint4 *from, int hop, const bool (&wanted)[N], unsigned step, uint4 (&packet)[N])
{
    bool missing;
    do {
        missing = false;
#pragma unroll
        for (int i = 0; i < N; i++)
            if (wanted[i]) packet[i] = packet_read(from + i * hop);
#pragma unroll
        for (int i = 0; i < N; i++) missing |= wanted[i] && packet[i].w != step;
    } while (missing);
}

/* 1 / rms of `1/by` values of stream r: of the head, with that of its second norm. */
template <int PAIRS> static __device__ inline float scale_of(const struct few_shared *s, int r, float by, bool head)
{
    enum { OF_STREAM = seat<PAIRS>::STREAM_WARPS };
    float total[2] = {0, 0};
    r = min(r, 2 * PAIRS - 1);
#pragma unroll
    for (int i = 0; i < 2; i++)
        if (i == 0 || head)
#pragma unroll
            for (int w = 0; w < OF_STREAM; w++) total[i] += s->red[i][r * OF_STREAM + w];
    float scale = rsqrtf(total[0] * by + 1e-5f);
    return head ? scale * rsqrtf(total[1] * by * scale * scale + 1e-5f) : scale;
}

/* What enters the network at position t: the class's embedding, then the last token with its position. */
static __device__ inline float4 embed(const struct decode_view &a, const struct few_shared *s, int t, int r, int i)
{
    if (t == 0) return load4(a.classes.embedding + (int64_t)s->row[r] * a.d + i);
    float4 place = load4(a.positions + (int64_t)(t - 1 + a.pos_offset) * a.d + i);
    float4 w = load4((const bf16 *)a.words + (int64_t)s->token[r] * a.d + i);
    return make_float4(w.x + place.x, w.y + place.y, w.z + place.z, w.w + place.w);
}

static __device__ inline float4 multiply_add(float4 a, float4 b, float4 c)
{
    return make_float4(a.x * b.x + c.x, a.y * b.y + c.y, a.z * b.z + c.z, a.w * b.w + c.w);
}

static __device__ inline float4 multiply4(float4 a, float4 b)
{
    return make_float4(a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w);
}

static __device__ inline float squares4(float4 a)
{
    return a.x * a.x + a.y * a.y + a.z * a.z + a.w * a.w;
}

/* Where a product finds its input. */
struct input_place {
    char *rows; /* (2 PAIRS, stride bytes) of bf16 */
    int stride;
};

/*
 * The input of layer l, of the head when l = layers: r ⊙ factors, by packets first, first + LANES, ..., N of them at once; h is
 * of step `step`. residual (R, d/4): a thread owns those of its seat from one layer to the next.
 */
template <int PAIRS, int N, typename Waited>
static __device__ inline void take_residual(const struct few_job &job, const struct few_shared *s, int l, int t, unsigned step,
                                            float4 *residual, struct input_place input, int thread, struct squares *squares,
                                            Waited waited)
{
    const struct decode_view &a = job.a;
    const seat<PAIRS> n(thread);
    enum { LANES = seat<PAIRS>::LANES };
    int packets = a.d / QUAD;
    if (n.r >= a.R) return;
#pragma unroll 1
    for (int first = n.me; first < packets; first += N * LANES) {
        const float4 *norms = job.m.norms + ((int64_t)(l * a.R + n.r) * packets + first) * 2;
        float4 gate[N], factor[N], x[N];
        uint4 h[N];
        bool wanted[N];
#pragma unroll
        for (int i = 0; i < N; i++) {
            wanted[i] = N == 1 || first + i * LANES < packets;
            if (!wanted[i]) continue;
            gate[i] = __ldcg(norms + 2 * i * LANES);
            factor[i] = __ldcg(norms + 2 * i * LANES + 1);
            x[i] = l > 0 ? residual[n.r * packets + first + i * LANES] : embed(a, s, t, n.r, QUAD * (first + i * LANES));
        }
        if (l > 0) gather<N>(job.m.h + n.r * packets + first, LANES, wanted, step, h);
        waited();
#pragma unroll
        for (int i = 0; i < N; i++) {
            int at = first + i * LANES;
            if (!wanted[i]) continue;
            if (l > 0) x[i] = multiply_add(gate[i], unpack4(h[i]), x[i]);
            residual[n.r * packets + at] = x[i];
            store4((bf16 *)(input.rows + n.r * input.stride) + QUAD * at, multiply4(x[i], factor[i]));
            squares->row += squares4(x[i]);
            if (squares->both) squares->second += squares4(multiply4(x[i], load4(a.norm_f + QUAD * at)));
        }
    }
}

/* v of all blocks as the input of out_proj, in the same way. */
template <int PAIRS, int N, typename Waited>
static __device__ inline void take_mixed(const struct few_job &job, const struct few_shared *s, unsigned step,
                                         struct input_place input, int thread, struct squares *squares, Waited waited)
{
    const seat<PAIRS> n(thread);
    enum { LANES = seat<PAIRS>::LANES };
    if (n.r >= job.a.R) return;
    struct team team = s->team[n.r];
    int packets = team.blocks * team.packets;
#pragma unroll 1
    for (int first = n.me; first < packets; first += N * LANES) {
        uint4 v[N];
        bool wanted[N];
        int channel[N], count[N]; /* the packet's first, and how many until the end of its block's */
#pragma unroll
        for (int i = 0; i < N; i++) {
            int at = first + i * LANES, block = at * team.inverse >> 16, start = block * team.units * UNIT;
            channel[i] = start + (at - block * team.packets) * PACKED;
            count[i] = min(start + team.units * UNIT, job.a.E) - channel[i];
            wanted[i] = at < packets && count[i] > 0;
        }
        gather<N>(job.m.v + n.r * job.m.v_pitch + first, LANES, wanted, step, v);
        waited();
#pragma unroll
        for (int i = 0; i < N; i++) {
            if (!wanted[i]) continue;
            unsigned *to = (unsigned *)(input.rows + n.r * input.stride + channel[i] * (int)sizeof(bf16));
            const unsigned pair[PACKED / 2] = {v[i].x, v[i].y, v[i].z};
#pragma unroll
            for (int j = 0; j < PACKED / 2; j++) {
                float2 x = floats_of(pair[j]);
                if (2 * j < count[i]) to[j] = pair[j];
                squares->row += x.x * x.x + x.y * x.y; /* past the end they are zeros */
            }
        }
    }
}

/* ----------------------------------------------------------------------------------------------------------- results */

/* What the lanes of a warp that finishes a quad have: row lane mod 4 of it, stream lane / 4. */
struct result {
    int row, r;

    __device__ inline result(const struct few_job &job, enum product_kind kind, int quad, int lane)
        : row((kind == IN ? in_proj_row(job.a.E, quad) : quad * QUAD) + lane % QUAD), r(lane / QUAD)
    {
    }
};

/* The table's summand of a result of layer l, of the head when l = layers. */
static __device__ inline float shift_of(const struct few_job &job, const struct result &n, int l)
{
    const struct decode_view &a = job.a;
    int rows = l < a.layers ? a.W : a.V;
    const float *from = job.m.shifted + (int64_t)l * a.R * a.W + n.r * rows + n.row;
    return n.r < a.R && n.row < rows ? __ldcg(from) : 0.0f;
}

/* h, a packet for the rows of a quad. */
static __device__ inline void send_residual(const struct few_job &job, const struct result &n, float value, unsigned step)
{
    float4 h;
    h.x = value;
    h.y = __shfl_down_sync(~0u, value, 1);
    h.z = __shfl_down_sync(~0u, value, 2);
    h.w = __shfl_down_sync(~0u, value, 3);
    if (n.r < job.a.R && n.row % QUAD == 0) packet_store(job.m.h + (n.r * job.a.d + n.row) / QUAD, pack4(h, step));
}

/* Guided logits (pictures, V). */
static __device__ inline void put_logit(const struct few_job &job, const struct result &n, float logit)
{
    const struct decode_view &a = job.a;
    float u = __shfl_down_sync(~0u, logit, a.pictures * QUAD % 32);
    if (a.R == 2 * a.pictures) logit = u + a.filter.cfg * (logit - u);
    if (n.r < a.pictures && n.row < a.V) a.logits[(int64_t)n.r * a.V + n.row] = logit * a.filter.scale;
}

/* ------------------------------------------------------------------------------------------------------------ tokens */

/* Draws the tokens of pictures blockIdx, blockIdx + gridDim, ... when all blocks' logits are there, and tells them. */
static __device__ __noinline__ void draw(const struct few_job &job, int t, char *shared)
{
    const struct decode_view &a = job.a;
    if ((int)blockIdx.x >= a.pictures) return;
    struct sample_filter filter = a.filter;
    filter.scale = 1; /* the logits are guided and scaled */
    if (threadIdx.x == 0) count_acquire(job.m.arrived, (unsigned)(t - job.from + 1) * gridDim.x);
    block_sync();
    for (int p = blockIdx.x; p < a.pictures; p += gridDim.x) {
        int64_t at = (int64_t)t * a.pictures + p;
        const float *logits = a.logits + (int64_t)p * a.V;
        struct sample_shared *sampler = (struct sample_shared *)(shared + job.at.sampler);
        float *x = job.at.logits ? (float *)(shared + job.at.logits) : a.probabilities + (int64_t)p * a.V;
        int token = sample_is_direct(filter, a.V, THREADS)
                        ? sample_direct(sampler, logits, a.uniform[at], THREADS)
                        : sample_row(sampler, logits, NULL, a.V, filter, a.uniform[at], x, THREADS);
        if (threadIdx.x == 0) {
            a.tokens[at] = token;
            word_release(job.m.token + p, (unsigned)token, (unsigned)t + 1);
        }
        block_sync();
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
    block_sync();
}

/* --------------------------------------------------------------------------------------------------------- the kernel */

static __device__ inline void shared_start(const struct few_job &job, const struct part_of_mixer &own, int pairs, char *shared,
                                           struct few_shared *s)
{
    const struct decode_view &a = job.a;
    int thread = threadIdx.x;
    shares_start(job, own, pairs, s);
    for (int i = thread; i < a.layers; i += ALL_THREADS) ((struct decode_layer *)(s + 1))[i] = a.layer[i];
    for (int i = job.at.input / 4 + thread; i < job.at.residual / 4; i += ALL_THREADS) ((unsigned *)shared)[i] = 0;
    if (thread < a.R) {
        s->team[thread] = team_of(a.E, a.R, gridDim.x, thread);
        s->row[thread] = a.row[thread];
    }
    __syncthreads();
}

/* One product with what comes before it: 2l is in_proj of layer l, 2l+1 its out_proj, 2·layers the head. One piece of code for
 * all of them, since a layer's instructions pass through small caches. */
template <int PAIRS, int TILES, typename Meter>
static __device__ inline void run_product(const struct few_job &job, const struct part_of_mixer &own, struct few_shared *s,
                                          struct ring *ring, struct history *history, char *shared, int index, int t,
                                          int thread, Meter &meter)
{
    const struct decode_view &a = job.a;
    int l = index / 2, lane = anew(thread) % 32;
    unsigned step = (unsigned)(t * a.layers + l + 1); /* of this layer's words */
    enum product_kind kind = l == a.layers ? HEAD : index % 2 ? OUT : IN;
    enum { LANES = seat<PAIRS>::LANES };
    const struct share share = s->share[kind];
    struct input_place input = {shared + job.at.input, input_stride(share.k_bits, TILES)};
    struct squares squares = {0, 0, kind == HEAD};
    float4 *residual = (float4 *)(shared + job.at.residual);
    if (kind == OUT) {
        if (own.units > 0)
            mix(job, own, layers_of(s)[l], l, t, step, shared, history, anew(thread), [&] { meter.mark(WAIT_SCORES); });
        meter.mark(MIX);
        if (share.quads == 0) return; /* who sends no h would not hold back those who write v anew */
        take_mixed<PAIRS, 2>(job, s, step, input, anew(thread), &squares, [&] { meter.mark(WAIT_V); });
    } else {
        if (a.d / QUAD <= LANES)
            take_residual<PAIRS, 1>(job, s, l, t, step - 1, residual, input, anew(thread), &squares,
                                    [&] { meter.mark(WAIT_H); });
        else
            take_residual<PAIRS, 2>(job, s, l, t, step - 1, residual, input, anew(thread), &squares,
                                    [&] { meter.mark(WAIT_H); });
    }
    block_sync();
    if (kind != OUT) meter.mark(NORM);
    float shift = 0, by = 1.0f / (float)(kind == OUT ? a.E : a.d);
    product<PAIRS, TILES>(
        job, s, ring, share, squares, shared_address(input.rows), (float2 *)(shared + job.at.part), thread,
        [&](int quad) {
            if (kind != OUT) shift = shift_of(job, result(job, kind, share.first + quad, lane), l);
        },
        [&](int quad, float sum) {
            const struct result n(job, kind, share.first + quad, lane);
            float value = sum * scale_of<PAIRS>(s, n.r, by, kind == HEAD) + shift;
            if (kind == OUT)
                send_residual(job, n, value, step);
            else if (kind == HEAD)
                put_logit(job, n, value);
            else if (n.r < a.R && n.row < a.W)
                word_store(job.m.zxbcdt + n.r * a.W + n.row, __float_as_uint(value), step);
        });
    meter.mark(kind == IN ? IN_PROJ : kind == OUT ? OUT_PROJ : LOGITS);
}

template <int PAIRS, int TILES, typename Meter>
static __global__ void __launch_bounds__(ALL_THREADS, 1) persistent_kernel(const __grid_constant__ struct few_job job)
{
#if __CUDA_ARCH__ >= 900 /* bulk copies */
    extern __shared__ __align__(128) char shared[];
    struct few_shared *s = (struct few_shared *)(shared + job.at.fixed);
    const struct part_of_mixer own = part_of_mixer_of(job.a);
    struct ring ring = ring_of(job, shared);
    struct history history = history_of(job, shared);
    Meter meter;
    int thread = threadIdx.x;
    if (thread == 0) {
        ring_start(job, ring);
        history_start(history);
        phases_started();
    }
    shared_start(job, own, PAIRS, shared, s);
    meter.start();
    if (thread >= THREADS) { /* two threads load; of two warps, which wait by themselves */
        registers_give<LOADERS_REGISTERS>();
        if (thread == THREADS) load_weights<TILES>(job, s, ring);
        if (thread == THREADS + 32 && own.units > 0) load_history(job, own, history, shared);
        return;
    }
    registers_take<REGISTERS>();
#pragma unroll 1
    for (int t = job.from; t < job.to; t++) {
        last_tokens(job, s, t);
        meter.mark(WAIT_TOKEN);
#pragma unroll 1
        for (int index = 0; index <= 2 * job.a.layers; index++)
            run_product<PAIRS, TILES>(job, own, s, &ring, &history, shared, index, t, thread, meter);
        block_sync();
        if (thread == 0) count_release(job.m.arrived);
        draw(job, t, shared);
        if (own.units > 0) history_free(history, thread % 32);
        meter.mark(DRAW);
    }
    meter.finish(job.meter);
#endif
}

/* ---------------------------------------------------------------------------------------------------------- the host */

static struct few_layout layout_of(const struct decode_view *a, int blocks, int depth, bool logits)
{
    struct few_layout at;
    int pairs = pairs_of(a->R), units = 0, stride = 0, T = (a->T + ROWS - 1) / ROWS * ROWS;
    const struct cuts cuts = cuts_of(*a, pairs);
    for (int r = 0; r < a->R; r++) units = std::max(units, team_of(a->E, a->R, blocks, r).units);
    for (const struct cut &cut : cuts.of) stride = std::max(stride, input_stride(cut.k_bits, cuts.tiles));
    auto whole = [](int64_t n) { return (int)((n + 15) / 16 * 16); };
    at.depth = depth;
    at.barriers = depth * WARPS * cuts.tiles * TILE_BYTES;
    at.fixed = at.barriers + (depth + 1) * 2 * 8;
    at.input = at.fixed + whole((int64_t)sizeof(struct few_shared) + a->layers * (int64_t)sizeof(struct decode_layer));
    at.residual = at.input + 2 * pairs * stride;
    at.part = at.residual + a->R * a->d * (int)sizeof(float);
    at.mixer = at.part + PART_BYTES * cuts.tiles;
    at.mix = mixer_layout_of(units);
    at.u = at.mixer + whole(at.mix.total * (int64_t)sizeof(float));
    at.decay = at.u + units * UNIT * T * (int)sizeof(bf16);
    at.sampler = at.input;
    at.logits = logits ? at.sampler + whole(sizeof(struct sample_shared)) : 0;
    int sampled = logits ? at.logits + a->V * (int)sizeof(float) : at.sampler + (int)sizeof(struct sample_shared);
    at.total = std::max(at.decay + units * T * (int)sizeof(float), sampled);
    return at;
}

/* Whether there is room; for as many stages as there is, with logits in shared memory where that is possible. */
static bool layout_fits(const struct cuda *c, const struct decode_view *a, struct few_layout *at)
{
    enum { DEEPEST = 8, LEAST = 2 };
    for (int depth = DEEPEST; depth >= LEAST; depth--)
        for (int logits = 1; logits >= 0; logits--) {
            *at = layout_of(a, c->multiprocessors, depth, logits != 0);
            if ((size_t)at->total + METER_BYTES <= c->shared_limit) return true;
        }
    return false;
}

/* Whether every block has rows of in_proj (which is how blocks know that words may be written anew), and operands fit the
 * tensor cores. */
static bool suits(const struct cuda *c, const struct decode_view *a)
{
    if (a->R > MOST_STREAMS || a->R > c->multiprocessors || a->S != STATE) return false;
    return a->E / QUAD >= c->multiprocessors && cuts_of(*a, pairs_of(a->R)).tiles > 0;
}

int64_t decode_persistent_bytes(const struct decode_view *a, bool is_bf16, int64_t streams)
{
    int64_t most = MOST_STREAMS;
    return is_bf16 ? few_memory_of(a, std::min(streams, most), NULL).bytes : 0;
}

template <int PAIRS, int TILES> static const void *kernel_of(bool metered)
{
    return metered ? (const void *)persistent_kernel<PAIRS, TILES, struct meter>
                   : (const void *)persistent_kernel<PAIRS, TILES, struct no_meter>;
}

template <int PAIRS> static const void *kernel_of(int tiles, bool metered)
{
    return tiles == MOST_TILES ? kernel_of<PAIRS, MOST_TILES>(metered) : kernel_of<PAIRS, MOST_TILES - 1>(metered);
}

/* Whether the kernels were compiled for a GPU with bulk copies: Hopper and later. */
static bool has_bulk_copies(void)
{
    struct cudaFuncAttributes of = {};
    return cudaFuncGetAttributes(&of, kernel_of<1, MOST_TILES>(false)) == cudaSuccess && of.ptxVersion >= 90;
}

bool decode_persistent_fits(const struct cuda *c, const struct decode_view *a, bool is_bf16)
{
    struct few_layout at;
    return is_bf16 && suits(c, a) && layout_fits(c, a, &at) && has_bulk_copies();
}

aim_status decode_persistent_run(struct backend *be, const struct decode_view *a, int from, int to)
{
    struct cuda *c = cuda_of(be);
    struct few_job job = {*a, few_memory_of(a, a->R, (char *)a->few), {}, from, to, (unsigned long long *)c->meter};
    int pairs = pairs_of(a->R), tiles = cuts_of(*a, pairs).tiles;
    bool metered = c->meter != NULL, fits = layout_fits(c, a, &job.at);
    const void *kernel = pairs == 1   ? kernel_of<1>(tiles, metered)
                         : pairs == 2 ? kernel_of<2>(tiles, metered)
                                      : kernel_of<4>(tiles, metered);
    void *arguments[] = {&job};
    if (!fits) return aim_fail(be->ctx, AIM_ERR_UNSUPPORTED, "few streams of this shape");
    CUDA_TRY(be, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, job.at.total));
    if (from == 0) TRY(make_tables(be, a, &job.m));
    CUDA_TRY(be, cudaMemsetAsync(a->few, 0, (size_t)job.m.words, c->stream));
    CUDA_TRY(be, cudaLaunchCooperativeKernel(kernel, dim3((unsigned)c->multiprocessors), dim3(ALL_THREADS), arguments,
                                             (size_t)job.at.total, c->stream));
    return AIM_OK;
}
