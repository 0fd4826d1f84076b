/*
 * From logits to a token by one block of threads, with the rules of the CPU's sampler (spec B9, B10) and without a sort:
 * top-k and top-p need only the value at which a running count or mass crosses a limit, and three passes over the digits
 * of the float's bits find it.
 *
 * Every warp owns one contiguous segment of the vocabulary, so that ranks and running sums go by segments. Masses are
 * summed as integers, 2^-60 each: exact for what matters, and independent of the order of atomics.
 */
#ifndef AIM_CUDA_DECODE_SAMPLE_CUH
#define AIM_CUDA_DECODE_SAMPLE_CUH

#include "cuda/device.cuh"

#include <math_constants.h>

enum { SAMPLE_BINS = 2048, SAMPLE_WARPS = 32, SAMPLE_OWN = 32 };

struct sample_filter {
    float cfg, scale; /* scale = 1 / temperature */
    bool greedy;      /* temperature 0 */
    int top_k;
    double top_p;
};

struct sample_shared {
    unsigned long long mass[SAMPLE_BINS];
    int count[SAMPLE_BINS];
    unsigned long long best[SAMPLE_WARPS];
    double sum[SAMPLE_WARPS];
    int equal[SAMPLE_WARPS];
    int bin, bad, token, drop;
    unsigned long long below;
};

static inline struct sample_filter sample_filter_of(const struct sampling *how)
{
    struct sample_filter f = {(float)how->cfg, how->temperature > 0 ? (float)(1.0 / how->temperature) : 1.0f,
                              how->temperature == 0, how->top_k, how->top_p};
    return f;
}

/* A key that orders as the float does, and back. */
static __device__ inline unsigned sample_key(float x)
{
    unsigned u = __float_as_uint(x);
    return u & 0x80000000u ? ~u : u | 0x80000000u;
}

static __device__ inline float sample_unkey(unsigned k)
{
    return __uint_as_float(k & 0x80000000u ? k & 0x7fffffffu : ~k);
}

/* The CPU's e^x (cpu/kernels/simd.h). */
static __device__ inline float sample_exp(float x)
{
    if (x < -87.3f) return 0;
    if (x > 88.3f) x = 88.3f;
    float n = rintf(x * 1.44269504088896341f);
    float r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * __int_as_float(((int)n + 127) << 23);
}

static __device__ inline double sample_warp_sum(double v)
{
    for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(~0u, v, o);
    return v;
}

/* This thread's part of the vocabulary: begin + lane, + 32, ... below end. */
struct sample_segment {
    int begin, end, lane, warp, warps;
};

/* A barrier of the threads that draw: the block's first ones. */
static __device__ inline void sample_sync(struct sample_segment g)
{
    asm volatile("bar.sync 0, %0;" ::"r"(32 * g.warps) : "memory");
}

static __device__ inline struct sample_segment sample_segment_of(int V, int threads)
{
    int warps = threads / 32, warp = threadIdx.x / 32, width = (V + warps * 32 - 1) / (warps * 32) * 32;
    struct sample_segment g = {min(warp * width, V), min((warp + 1) * width, V), (int)threadIdx.x % 32, warp, warps};
    return g;
}

/* What warp `lane` left, or nothing past the last warp. */
template <typename T> static __device__ inline T sample_of_warp(const T *of, struct sample_segment g)
{
    return g.lane < g.warps ? of[g.lane] : 0;
}

/* The sum of all threads' values, the same bits in every thread; s->sum has those of the warps. Ends with every thread past its
 * read. */
static __device__ inline double sample_block_sum(struct sample_shared *s, struct sample_segment g, double v)
{
    v = sample_warp_sum(v);
    if (g.lane == 0) s->sum[g.warp] = v;
    sample_sync(g);
    double total = sample_warp_sum(sample_of_warp(s->sum, g));
    sample_sync(g);
    return total;
}

static __device__ inline unsigned long long sample_warp_max(unsigned long long v)
{
    for (int o = 16; o; o >>= 1) {
        unsigned long long other = __shfl_xor_sync(~0u, v, o);
        v = other > v ? other : v;
    }
    return v;
}

/* Guided and scaled logits into x. The largest as (key, first index); false if one is not a number. */
static __device__ inline bool sample_guide(struct sample_shared *s, struct sample_segment g, const float *logits,
                                           const float *uncond, const struct sample_filter f, float *x,
                                           unsigned long long *best)
{
    unsigned long long mine = 0;
    bool bad = false;
    if (threadIdx.x == 0) s->bad = 0;
    sample_sync(g);
#pragma unroll 8
    for (int i = g.begin + g.lane; i < g.end; i += 32) {
        float l = __ldcg(logits + i), v = l;
        if (uncond) {
            float u = __ldcg(uncond + i);
            v = u + f.cfg * (l - u);
        }
        v *= f.scale;
        bad |= isnan(v);
        x[i] = v;
        unsigned long long candidate = (unsigned long long)sample_key(v + 0.0f) << 32 | (0xffffffffu - (unsigned)i);
        mine = candidate > mine ? candidate : mine;
    }
    mine = sample_warp_max(mine);
    if (g.lane == 0) s->best[g.warp] = mine;
    if (bad) s->bad = 1;
    sample_sync(g);
    *best = sample_warp_max(sample_of_warp(s->best, g));
    bool fine = !s->bad;
    sample_sync(g);
    return fine;
}

static __device__ inline void sample_scale(struct sample_segment g, float *x, float by)
{
#pragma unroll 8
    for (int i = g.begin + g.lane; i < g.end; i += 32) x[i] *= by;
}

/* Digits of 11, 11 and 10 bits, the highest first. */
static __device__ inline int sample_shift(int pass)
{
    return pass == 0 ? 21 : pass == 1 ? 10 : 0;
}

/* Counts (and sums, where a value is a probability) the digits of the keys that agree with `prefix` so far. */
static __device__ inline void sample_histogram(struct sample_shared *s, struct sample_segment g, const float *x, bool mass,
                                               int pass, unsigned prefix)
{
    int shift = sample_shift(pass);
    unsigned mask = pass == 0 ? 0 : ~0u << sample_shift(pass - 1), digits = pass == 2 ? 1023 : 2047;
    for (int b = threadIdx.x; b < SAMPLE_BINS; b += (32 * g.warps)) {
        s->count[b] = 0;
        s->mass[b] = 0;
    }
    sample_sync(g);
    for (int i = g.begin + g.lane; i < g.end; i += 32) {
        unsigned key = mass ? __float_as_uint(x[i]) : sample_key(x[i]);
        if ((key & mask) != prefix || (mass && key == 0)) continue; /* nothing is crossed by adding 0 */
        unsigned bin = key >> shift & digits;
        atomicAdd(&s->count[bin], 1);
        if (mass) atomicAdd(&s->mass[bin], (unsigned long long)((double)x[i] * 0x1p60));
    }
    sample_sync(g);
}

/* The running sum of a warp's values up to this lane's. */
static __device__ inline unsigned long long sample_sum_upto(unsigned long long v, int lane)
{
    for (int o = 1; o < 32; o <<= 1) {
        unsigned long long other = __shfl_up_sync(~0u, v, o);
        if (lane >= o) v += other;
    }
    return v;
}

/* Place i in the order of the running sum: from the lowest bin up for masses, from the highest down for counts. */
static __device__ inline int sample_bin(bool mass, int i)
{
    return mass ? i : SAMPLE_BINS - 1 - i;
}

static __device__ inline unsigned long long sample_held(const struct sample_shared *s, bool mass, int bin)
{
    return mass ? s->mass[bin] : (unsigned long long)s->count[bin];
}

/*
 * The bin in which the running sum crosses: from the highest bin down the first with below + counts >= limit, or from the
 * lowest up the first with below + masses > limit (else the highest that is not empty). s->bin, and s->below as the sum
 * before it. Each warp adds up a share of the bins; the first one looks for the share, then for the bin.
 */
static __device__ inline void sample_cross(struct sample_shared *s, struct sample_segment g, bool mass,
                                           unsigned long long limit)
{
    int share = (SAMPLE_BINS + 32 * g.warps - 1) / (32 * g.warps) * 32;
    unsigned long long own = 0;
    int highest = -1;
    for (int i = g.warp * share + g.lane; i < min((g.warp + 1) * share, (int)SAMPLE_BINS); i += 32) {
        own += sample_held(s, mass, sample_bin(mass, i));
        if (s->count[sample_bin(mass, i)]) highest = max(highest, sample_bin(mass, i));
    }
    own = __shfl_sync(~0u, sample_sum_upto(own, g.lane), 31);
    for (int o = 16; o; o >>= 1) highest = max(highest, __shfl_xor_sync(~0u, highest, o));
    if (g.lane == 0) {
        s->best[g.warp] = own;
        s->equal[g.warp] = highest;
    }
    sample_sync(g);
    if (g.warp == 0) {
        own = g.lane < g.warps ? s->best[g.lane] : 0;
        highest = g.lane < g.warps ? s->equal[g.lane] : -1;
        for (int o = 16; o; o >>= 1) highest = max(highest, __shfl_xor_sync(~0u, highest, o));
        unsigned long long before = s->below + sample_sum_upto(own, g.lane) - own;
        unsigned crossing = __ballot_sync(~0u, mass ? before + own > limit : before + own >= limit);
        int chosen = crossing ? __ffs(crossing) - 1 : highest / share; /* counts always cross */
        unsigned long long sum = __shfl_sync(~0u, before, chosen);
        __syncwarp();
        for (int first = chosen * share; first < min((chosen + 1) * share, (int)SAMPLE_BINS); first += 32) {
            int bin = sample_bin(mass, first + g.lane);
            unsigned long long held = sample_held(s, mass, bin), upto = sum + sample_sum_upto(held, g.lane);
            bool here = !crossing ? bin == highest : mass ? upto > limit : upto >= limit;
            unsigned found = __ballot_sync(~0u, here);
            if (found) {
                if (g.lane == __ffs(found) - 1) {
                    s->bin = bin;
                    s->below = upto - held;
                }
                break;
            }
            sum = __shfl_sync(~0u, upto, 31);
        }
    }
    sample_sync(g);
}

/* Every logit below the k-th largest becomes -inf; ties with it stay. */
static __device__ inline void sample_top_k(struct sample_shared *s, struct sample_segment g, float *x, int k)
{
    unsigned prefix = 0;
    if (threadIdx.x == 0) s->below = 0;
    for (int pass = 0; pass < 3; pass++) {
        sample_histogram(s, g, x, false, pass, prefix);
        sample_cross(s, g, false, (unsigned long long)k);
        prefix |= (unsigned)s->bin << sample_shift(pass);
        sample_sync(g);
    }
    float limit = sample_unkey(prefix);
    for (int i = g.begin + g.lane; i < g.end; i += 32)
        if (x[i] < limit) x[i] = -CUDART_INF_F;
}

/*
 * In ascending order, among equals the higher index first, every probability whose running sum stays within 1 - p becomes
 * 0; the largest one, `top`, stays. The rest is scaled back to a sum of 1.
 */
static __device__ inline void sample_top_p(struct sample_shared *s, struct sample_segment g, float *x, double p, float top)
{
    double limit = 1.0 - p;
    unsigned prefix = 0;
    if (threadIdx.x == 0) s->below = 0;
    for (int pass = 0; pass < 3; pass++) {
        sample_histogram(s, g, x, true, pass, prefix);
        sample_cross(s, g, true, (unsigned long long)(limit * 0x1p60));
        prefix |= (unsigned)s->bin << sample_shift(pass);
        sample_sync(g);
    }
    float edge = __uint_as_float(prefix);
    int equals = s->count[s->bin];
    if (threadIdx.x == 0) {
        double sum = (double)s->below * 0x1p-60;
        int drop = 0;
        for (; drop < equals && !(edge == top && drop == equals - 1); drop++) {
            sum += (double)edge;
            if (sum > limit) break;
        }
        s->drop = drop;
    }
    int mine = 0;
    for (int i = g.begin; i < g.end; i += 32) {
        int at = i + g.lane;
        mine += __popc(__ballot_sync(~0u, at < g.end && x[at] == edge));
    }
    if (g.lane == 0) s->equal[g.warp] = mine;
    sample_sync(g);
    int rank = 0, stay = equals - s->drop;
    for (int w = 0; w < g.warp; w++) rank += s->equal[w];
    double sum = 0;
    for (int i = g.begin; i < g.end; i += 32) {
        int at = i + g.lane;
        bool inside = at < g.end, equal = inside && x[at] == edge;
        unsigned ballot = __ballot_sync(~0u, equal);
        if (inside && (x[at] < edge || (equal && rank + __popc(ballot & ((1u << g.lane) - 1)) >= stay))) x[at] = 0;
        rank += __popc(ballot);
        if (inside) sum += (double)x[at];
    }
    sample_scale(g, x, (float)(1.0 / sample_block_sum(s, g, sum)));
}

/* Σ of the lanes up to each lane. */
static __device__ inline double sample_running_sum(double v, int lane)
{
    for (int o = 1; o < 32; o <<= 1) {
        double other = __shfl_up_sync(~0u, v, o);
        if (lane >= o) v += other;
    }
    return v;
}

/* Among x[i] .. x[i+31] the first with a running sum, from `before` on, over the limit, else the last that is possible. */
static __device__ inline int sample_search(const float *x, int i, int end, int lane, double before, double limit)
{
    double p = i + lane < end ? (double)x[i + lane] : 0, upto = before + sample_running_sum(p, lane);
    unsigned possible = __ballot_sync(~0u, p > 0), hit = __ballot_sync(~0u, p > 0 && upto > limit);
    return i + (hit ? __ffs(hit) - 1 : 31 - __clz(possible));
}

/* The same among a warp's whole segment: a lane adds up 32 values, and only the 32 where the limit lies are looked through. */
static __device__ inline int sample_search_segment(struct sample_segment g, const float *x, double before, double limit)
{
    int last = -1; /* where the last possible ones are */
    for (int base = g.begin; base < g.end; base += 32 * 32) {
        double own = 0;
#pragma unroll 8
        for (int c = 0; c < 32; c++) { /* each lane begins elsewhere: in shared memory, in another bank */
            int i = base + 32 * g.lane + (c + g.lane) % 32;
            if (i < g.end) own += (double)x[i];
        }
        double upto = sample_running_sum(own, g.lane);
        unsigned possible = __ballot_sync(~0u, own > 0), hit = __ballot_sync(~0u, own > 0 && before + upto > limit);
        if (hit) {
            int row = __ffs(hit) - 1;
            return sample_search(x, base + 32 * row, g.end, g.lane, before + __shfl_sync(~0u, upto - own, row), limit);
        }
        if (possible) last = base + 32 * (31 - __clz(possible));
        before += __shfl_sync(~0u, upto, 31);
    }
    return last < 0 ? 0 : sample_search(x, last, g.end, g.lane, before, CUDART_INF);
}

/* Where a running sum passes a limit: in part `at` of what the lanes hold, with the sum `before` it. */
struct sample_place {
    int at;
    double before, limit;
};

/* The first lane with before + upto > limit, else the last with anything; `own` is what each lane adds, `upto` the sum up to
 * it. */
static __device__ inline struct sample_place sample_place_within(double own, double upto, double before, double limit)
{
    unsigned possible = __ballot_sync(~0u, own > 0), hit = __ballot_sync(~0u, own > 0 && before + upto > limit);
    struct sample_place p = {hit ? __ffs(hit) - 1 : possible ? 31 - __clz(possible) : 0, 0, hit ? limit : CUDART_INF};
    p.before = before + __shfl_sync(~0u, upto - own, p.at);
    return p;
}

/* The warp, by the warps' sums, in whose segment `uniform` of the whole is passed. */
static __device__ inline struct sample_place sample_warp_of(double own, double uniform, int lane)
{
    double upto = sample_running_sum(own, lane);
    return sample_place_within(own, upto, 0, uniform * __shfl_sync(~0u, upto, 31));
}

/* The first token whose cumulative probability exceeds `uniform` of the whole, else the last that is possible; s->sum are the
 * sums of the warps' segments. */
static __device__ inline int sample_draw(struct sample_shared *s, struct sample_segment g, const float *x, double uniform)
{
    struct sample_place p = sample_warp_of(sample_of_warp(s->sum, g), uniform, g.lane);
    if (g.warp == p.at) {
        int token = sample_search_segment(g, x, p.before, p.limit);
        if (g.lane == 0) s->token = token;
    }
    sample_sync(g);
    int token = s->token;
    sample_sync(g);
    return token;
}

/* Whether sample_direct does for `threads` threads. */
static __device__ inline bool sample_is_direct(const struct sample_filter f, int V, int threads)
{
    return !f.greedy && (f.top_k <= 0 || f.top_k >= V) && f.top_p >= 1 && V == SAMPLE_OWN * threads;
}

/*
 * Draws when nothing is left out, by the block's first `threads` threads: logits (threads · SAMPLE_OWN), guided and scaled, of
 * which each thread keeps SAMPLE_OWN in registers. Each gets the token, -1 when the logits are no finite numbers.
 */
static __device__ inline int sample_direct(struct sample_shared *s, const float *logits, double uniform, int threads)
{
    struct sample_segment g = sample_segment_of(SAMPLE_OWN * threads, threads);
    const float *first = logits + SAMPLE_OWN * (32 * g.warp + g.lane);
    float x[SAMPLE_OWN], top = -CUDART_INF_F;
    bool bad = false;
#pragma unroll
    for (int i = 0; i < SAMPLE_OWN; i += 4) {
        float4 v = __ldcg((const float4 *)(first + i));
        x[i] = v.x;
        x[i + 1] = v.y;
        x[i + 2] = v.z;
        x[i + 3] = v.w;
    }
#pragma unroll
    for (int i = 0; i < SAMPLE_OWN; i++) {
        bad |= isnan(x[i]);
        top = fmaxf(top, x[i]);
    }
    unsigned long long mine = sample_warp_max((unsigned long long)bad << 32 | sample_key(top));
    if (g.lane == 0) s->best[g.warp] = mine;
    sample_sync(g);
    mine = sample_warp_max(sample_of_warp(s->best, g));
    top = sample_unkey((unsigned)mine);
    if (mine >> 32 || !(fabsf(top) < CUDART_INF_F)) return -1;
    double sum = 0;
#pragma unroll
    for (int i = 0; i < SAMPLE_OWN; i++) {
        x[i] = sample_exp(x[i] - top);
        sum += (double)x[i];
    }
    double upto = sample_running_sum(sum, g.lane);
    if (g.lane == 31) s->sum[g.warp] = upto;
    sample_sync(g);
    struct sample_place p = sample_warp_of(sample_of_warp(s->sum, g), uniform, g.lane);
    if (g.warp == p.at) {
        struct sample_place of =
            sample_place_within(sum, upto, p.before, p.limit); /* the lane, whose values others look at, too */
        float *own = (float *)s->count;
#pragma unroll
        for (int i = 0; i < SAMPLE_OWN; i++)
            if (g.lane == of.at) own[i] = x[i];
        __syncwarp();
        int token = SAMPLE_OWN * (32 * g.warp + of.at) + sample_search(own, 0, SAMPLE_OWN, g.lane, of.before, of.limit);
        if (g.lane == 0) s->token = token;
    }
    sample_sync(g);
    return s->token;
}

/*
 * logits, uncond (V; uncond may be NULL), read past the first-level cache; x (V) is scratch and ends as the probabilities.
 * The block's first `threads` threads draw, whole warps; each gets the token, -1 when the logits are no finite numbers.
 */
static __device__ inline int sample_row(struct sample_shared *s, const float *logits, const float *uncond, int V,
                                        const struct sample_filter f, double uniform, float *x, int threads)
{
    struct sample_segment g = sample_segment_of(V, threads);
    unsigned long long best;
    if (!sample_guide(s, g, logits, uncond, f, x, &best)) return -1;
    float top = sample_unkey((unsigned)(best >> 32));
    if (!(fabsf(top) < CUDART_INF_F)) return -1;
    if (f.greedy) {
        int token = (int)(0xffffffffu - (unsigned)best);
        for (int i = g.begin + g.lane; i < g.end; i += 32) x[i] = i == token;
        return token;
    }
    if (f.top_k > 0 && f.top_k < V) sample_top_k(s, g, x, f.top_k);
    double sum = 0;
#pragma unroll 8
    for (int i = g.begin + g.lane; i < g.end; i += 32) {
        x[i] = sample_exp(x[i] - top);
        sum += (double)x[i];
    }
    float scale = (float)(1.0 / sample_block_sum(s, g, sum));
    if (f.top_p < 1) {
        sample_scale(g, x, scale);
        sample_top_p(s, g, x, f.top_p, scale);
        sum = 0;
        for (int i = g.begin + g.lane; i < g.end; i += 32) sum += (double)x[i];
        sample_block_sum(s, g, sum);
        scale = 1;
    }
    __syncwarp();
    int token = sample_draw(s, g, x, uniform); /* what is drawn from need not add up to 1 */
    sample_scale(g, x, scale);
    return token;
}

#endif
