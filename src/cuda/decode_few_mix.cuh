/*
 * The persistent kernel's mixer: convolution, recurrence in its dual form, gate, for the units that a block owns.
 *
 *     v = (Σ_{s<t} decay_s u_s (C_t·B_s) + u_t (C_t·B_t) + D x) silu(z) w
 *
 * Warp i takes tokens 16 i .. 16 i + 15 of the history, and of every 256 after those. It multiplies their rows of B by C
 * and the results' weights by their columns of u, in bf16 on the tensor cores; what came from float32 goes in as two bf16
 * numbers, the value and what rounding left of it, in two columns (rows) that would stay empty. What does not depend on this
 * token is under way to the registers while the block waits for the values that do.
 */
#ifndef AIM_CUDA_DECODE_FEW_MIX_CUH
#define AIM_CUDA_DECODE_FEW_MIX_CUH

#include "cuda/decode_few.cuh"

/* ------------------------------------------------------------------------------------------------------------ C·B */

/* What queries hold for the mixer in shared memory: C and B of this token. */
template <typename X> struct queries;

/* Two bf16 numbers whose sum is nearly x. */
static __device__ inline void split(float x, bf16 *high, bf16 *low)
{
    *high = __float2bfloat16_rn(x);
    *low = __float2bfloat16_rn(x - __bfloat162float(*high));
}

static __device__ inline unsigned pack(bf16 low, bf16 high)
{
    return (unsigned)__bfloat16_as_ushort(low) | (unsigned)__bfloat16_as_ushort(high) << 16;
}

/* (3,S): C, what is left of C, B. */
template <> struct queries<bf16> {
    static __device__ inline void put(void *to, int S, int n, float value)
    {
        bf16 *rows = (bf16 *)to;
        if (n < S)
            rows[2 * S + n] = __float2bfloat16_rn(value);
        else
            split(value, rows + n - S, rows + n);
    }
};

/* (2,S): C, B. */
template <> struct queries<float> {
    static __device__ inline void put(void *to, int S, int n, float value)
    {
        ((float *)to)[n < S ? S + n : n - S] = value;
    }
};

/* 16 rows of B, of which lane (g, q) has parts of rows g and g+8. */
template <typename X> struct keys;

template <> struct keys<bf16> {
    enum { STEPS = 4, WIDEST = 32 * STEPS }; /* columns */
    uint4 row[2][STEPS];

    /* From the first of the rows, in device memory. */
    __device__ inline void load(const bf16 *b, int S)
    {
        int lane = thread_index() % 32, g = lane / 4, q = lane % 4;
#pragma unroll
        for (int i = 0; i < 2 * STEPS; i++) {
            int n = i / 2 * 32 + 8 * q;
            row[i % 2][i / 2] = n < S ? __ldcg((const uint4 *)(b + (g + i % 2 * 8) * S + n)) : make_uint4(0, 0, 0, 0);
        }
    }

    /* C·B of rows g and g+8, in the quad's every lane. Row `now` is that of this token; rows after it count for nothing. */
    __device__ inline void dot(const void *query, const bf16 *, int S, int now, float (&cb)[2])
    {
        int lane = thread_index() % 32, g = lane / 4, q = lane % 4;
        const uint4 *c = (const uint4 *)((const bf16 *)query + g * S), *b = (const uint4 *)((const bf16 *)query + 2 * S);
        float sum[STEPS][4];
        if (now < ROWS) {
#pragma unroll
            for (int i = 0; i < 2 * STEPS; i++)
                if (now == g + i % 2 * 8 && i / 2 * 32 + 8 * q < S) row[i % 2][i / 2] = b[i / 2 * 4 + q];
        }
#pragma unroll
        for (int i = 0; i < STEPS; i++) {
            uint4 own = make_uint4(0, 0, 0, 0);
            if (g < 2 && 32 * i + 8 * q < S) own = c[4 * i + q];
            sum[i][0] = sum[i][1] = sum[i][2] = sum[i][3] = 0;
            multiply_full(sum[i], row[0][i].x, row[1][i].x, row[0][i].y, row[1][i].y, own.x, own.y);
            multiply_full(sum[i], row[0][i].z, row[1][i].z, row[0][i].w, row[1][i].w, own.z, own.w);
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            float both = 0;
#pragma unroll
            for (int j = 0; j < STEPS; j++) both += sum[j][2 * i] + sum[j][2 * i + 1];
            cb[i] = __shfl_sync(~0u, both, lane & ~3);
        }
    }
};

template <> struct keys<float> {
    enum { WIDEST = DECODE_STATE };

    __device__ inline void load(const float *, int)
    {
    }

    __device__ inline void dot(const void *query, const float *b, int S, int now, float (&cb)[2])
    {
        int lane = thread_index() % 32, g = lane / 4, q = lane % 4;
        const float *c = (const float *)query;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int row = g + 8 * i;
            float sum = 0;
            for (int n = 4 * q; n < S && row <= now; n += 16) {
                float4 x = *(const float4 *)(c + n);
                float4 y = row == now ? *(const float4 *)(c + S + n) : load4(b + row * S + n);
                sum += x.x * y.x + x.y * y.y + x.z * y.z + x.w * y.w;
            }
            sum += __shfl_xor_sync(~0u, sum, 1);
            cb[i] = sum + __shfl_xor_sync(~0u, sum, 2);
        }
    }
};

/* ----------------------------------------------------------------------------------------------------------- Σ w u */

/* 16 tokens of u for UNITS units, of which lane (g, q) has tokens 4q .. 4q+3 of channel g of each. */
template <typename X> struct values;

template <> struct values<bf16> {
    uint2 u[UNITS];

    /* From the first unit's first channel and the first of the tokens, in device memory. */
    __device__ inline void load(const bf16 *from, int units, int T)
    {
        int lane = thread_index() % 32, g = lane / 4, q = lane % 4;
#pragma unroll
        for (int j = 0; j < UNITS; j++)
            u[j] = j < units ? __ldcg((const uint2 *)(from + (int64_t)(j * UNIT + g) * T + 4 * q)) : make_uint2(0, 0);
    }

    /* part (UNITS·UNIT) = Σ weights (UNITS, ROWS) u, or more by that. */
    __device__ inline void sum(const float *weights, int units, bool more, float *part)
    {
        int lane = thread_index() % 32, g = lane / 4, q = lane % 4;
        float4 w = *(const float4 *)(weights + g / 2 * ROWS + 4 * q);
        const float of[4] = {w.x, w.y, w.z, w.w};
        bf16 a[4], high, low;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            split(of[i], &high, &low);
            a[i] = g % 2 ? low : high;
        }
        unsigned a0 = pack(a[0], a[1]), a2 = pack(a[2], a[3]);
#pragma unroll
        for (int j = 0; j < UNITS; j++) {
            float c[4] = {0, 0, 0, 0};
            multiply_rows(c, a0, a2, u[j].x, u[j].y);
            float x = c[0] + __shfl_xor_sync(~0u, c[0], 4), y = c[1] + __shfl_xor_sync(~0u, c[1], 4);
            float2 *to = (float2 *)(part + j * UNIT + 2 * q);
            if (g == 2 * j && j < units) *to = more ? make_float2(to->x + x, to->y + y) : make_float2(x, y);
        }
    }
};

template <> struct values<float> {
    float4 u[UNITS];

    __device__ inline void load(const float *from, int units, int T)
    {
        int lane = thread_index() % 32, g = lane / 4, q = lane % 4;
#pragma unroll
        for (int j = 0; j < UNITS; j++)
            u[j] = j < units ? load4(from + (int64_t)(j * UNIT + g) * T + 4 * q) : make_float4(0, 0, 0, 0);
    }

    __device__ inline void sum(const float *weights, int units, bool more, float *part)
    {
        int lane = thread_index() % 32, g = lane / 4, q = lane % 4;
#pragma unroll
        for (int j = 0; j < UNITS; j++) {
            if (j >= units) break;
            float4 w = *(const float4 *)(weights + j * ROWS + 4 * q);
            float sum = w.x * u[j].x + w.y * u[j].y + w.z * u[j].z + w.w * u[j].w;
            sum += __shfl_xor_sync(~0u, sum, 1);
            sum += __shfl_xor_sync(~0u, sum, 2);
            if (q == 0) part[j * UNIT + g] = more ? part[j * UNIT + g] + sum : sum;
        }
    }
};

/* ------------------------------------------------------------------------------------------------------- the history */

/* A layer's part of an array of `size` elements a layer. */
template <typename T> static __device__ inline T *layer_of(T *of, int l, int size)
{
    return of + (int64_t)l * size;
}

template <typename X> static __device__ inline X *values_of(const struct few_job &job, int l, int stream, int channel)
{
    return layer_of((X *)job.m.u, l, job.a.R * job.a.E * job.m.T) + (stream * job.a.E + channel) * job.m.T;
}

template <typename X> static __device__ inline X *keys_of(const struct few_job &job, int l, int stream)
{
    return layer_of((X *)job.m.b, l, job.a.R * job.m.T * job.a.S) + stream * job.m.T * job.a.S;
}

static __device__ inline float *decays_of(const struct few_job &job, int l, int stream, int unit)
{
    int units = job.a.E / UNIT;
    return layer_of(job.m.decay, l, job.a.R * units * job.m.T) + (stream * units + unit) * job.m.T;
}

/* u and decays of 16 tokens and up to UNITS units, those of a lane as in `values` and `weigh`. */
template <typename X> struct past {
    struct values<X> u;
    float *decay_at; /* of token first + g and of unit q; those of the other row are 8 further */
    float decay[2];

    __device__ inline void load(const struct few_job &job, int l, int stream, int unit, int units, int first, int t)
    {
        int lane = thread_index() % 32, g = lane / 4, q = lane % 4;
        decay_at = decays_of(job, l, stream, unit) + q * job.m.T + first + g;
#pragma unroll
        for (int i = 0; i < 2; i++) decay[i] = q < units && first + g + 8 * i < t ? __ldcg(decay_at + 8 * i) : 0.0f;
        u.load(values_of<X>(job, l, stream, unit * UNIT) + first, units, job.m.T);
    }

    /* Weights (UNITS, ROWS) of the tokens in shared memory, from cb as keys::dot gives it, and decays for the next token. */
    __device__ inline void weigh(int units, int now, const float *fade, const float (&cb)[2], float *weights)
    {
        int lane = thread_index() % 32, g = lane / 4, q = lane % 4;
        float by = q < units ? fade[q] : 0.0f;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int row = g + 8 * i;
            float faded = decay[i] * by, next = faded > 1e-30f ? faded : 0.0f;
            weights[q * ROWS + row] = row < now ? next * cb[i] : 0.0f;
            if (q < units && row <= now) decay_at[8 * i] = row < now ? next : 1.0f;
        }
    }
};

/* Asks for what `mix` will read, so that it is in the second-level cache by then: 4 lines of a row for a thread each. */
template <typename X>
static __device__ inline void mix_ahead(const struct few_job &job, const struct part_of_mixer &own, int l, int t)
{
    enum { LINE = 128, ACROSS = 4 };
    int thread = thread_index(), row = thread / ACROSS, column = thread % ACROSS * LINE, T = job.m.T;
    const char *u = (const char *)values_of<X>(job, l, own.stream, own.unit * UNIT);
    for (int i = row; i < own.units * UNIT; i += THREADS / ACROSS)
        for (int at = column; at < t * (int)sizeof(X); at += ACROSS * LINE) prefetch(u + i * T * (int)sizeof(X) + at);
    const char *decay = (const char *)decays_of(job, l, own.stream, own.unit);
    for (int i = THREADS / ACROSS - 1 - row; i < own.units; i += THREADS / ACROSS)
        for (int at = column; at < t * (int)sizeof(float); at += ACROSS * LINE)
            prefetch(decay + i * T * (int)sizeof(float) + at);
    /* The team's blocks share the lines of B, which each of them will read. */
    const char *b = (const char *)keys_of<X>(job, l, own.stream);
    int bytes = own.units ? t * job.a.S * (int)sizeof(X) : 0;
    for (int at = (thread * own.blocks + own.place) * LINE; at < bytes; at += THREADS * own.blocks * LINE) prefetch(b + at);
}

/* ------------------------------------------------------------------------------------------------ this token's inputs */

/* Channel c of the convolution of words x at position t: waits for it. `keeps` puts it into the ring (RING,C). */
static __device__ inline float convolve(const struct decode_layer &layer, float *ring, int C, int t, int c, bool keeps,
                                        const word *x, unsigned step)
{
    float past[CONV_WIDTH - 1], sum = layer.conv_b[c];
    float4 w = load4(layer.conv_w + c * CONV_WIDTH);
    const float tap[CONV_WIDTH] = {w.x, w.y, w.z, w.w};
    ring += c;
#pragma unroll
    for (int k = 0; k < CONV_WIDTH - 1; k++) {
        int before = t - (CONV_WIDTH - 1) + k;
        past[k] = before >= 0 ? __ldcg(ring + before % RING * C) : 0.0f;
    }
    float now = word_float(word_wait(x + c, step));
#pragma unroll
    for (int k = 0; k < CONV_WIDTH - 1; k++) sum += tap[k] * past[k];
    sum += tap[CONV_WIDTH - 1] * now;
    if (keeps) ring[t % RING * C] = now;
    return silu(sum);
}

/* Waits for what in_proj made of this token for the block's channels, and leaves in shared memory what follows from it. */
template <typename X>
static __device__ inline void mix_inputs(const struct few_job &job, const struct part_of_mixer &own,
                                         const struct decode_layer &layer, int l, int t, unsigned step, float *work)
{
    const struct decode_view &a = job.a;
    const struct mixer_layout &at = job.at.mix;
    int channels = own.units * UNIT, e0 = own.unit * UNIT;
    float *ring = layer_of(job.m.ring, l, a.R * RING * a.C) + own.stream * RING * a.C;
    const word *zxbcdt = job.m.zxbcdt + own.stream * a.W;
    for (int i = thread_index(); i < 2 * a.S + 2 * channels + own.units; i += THREADS) {
        int c = i - 2 * a.S; /* of B and C when negative; all blocks of the team compute those, and one keeps them */
        if (c < channels) {
            bool keeps = c >= 0 || own.place == 0;
            float x = convolve(layer, ring, a.C, t, c < 0 ? a.E + i : e0 + c, keeps, zxbcdt + a.E, step);
            if (c >= 0)
                work[at.x + c] = x;
            else
                queries<X>::put(work + at.query, a.S, i, x);
            if (keeps && i < a.S) from_float(x, keys_of<X>(job, l, own.stream) + t * a.S + i);
        } else if (c < 2 * channels) {
            work[at.z + c - channels] = silu(word_float(word_wait(zxbcdt + e0 + c - channels, step)));
        } else {
            int unit = c - 2 * channels, h = (own.unit + unit) / (HEADDIM / UNIT);
            float bias = layer.dt_bias[h], rate = expf(layer.A_log[h]);
            float dt = word_float(word_wait(zxbcdt + a.W - a.H + h, step)) + bias;
            float delta = dt > 20.0f ? dt : log1pf(expf(dt));
            work[at.delta + unit] = delta;
            work[at.fade + unit] = expf(-delta * rate);
        }
    }
}

/* ------------------------------------------------------------------------------------------------------------- v */

/* Sends v of channel e, which the lanes of a warp hold in their order; the lanes with `there` come first. */
static __device__ inline void send_mixed(float v, bool there, word *to, int e, unsigned step, bf16)
{
    float next = __shfl_down_sync(~0u, v, 1);
    if (there && e % 2 == 0) word_store(to + e / 2, pack(__float2bfloat16_rn(v), __float2bfloat16_rn(next)), step);
}

static __device__ inline void send_mixed(float v, bool there, word *to, int e, unsigned step, float)
{
    if (there) word_store(to + e, __float_as_uint(v), step);
}

/* Keeps u of token t. Every 16th time the tokens after it become zero: their weights are, and u may be anything. */
template <typename X> static __device__ inline void keep_value(float value, X *history, int t)
{
    enum { WIDE = 16 / sizeof(X) };
    X *u = history + t;
    if (t % ROWS == 0)
        for (int i = 0; i < ROWS; i += WIDE) *(uint4 *)(u + i) = make_uint4(0, 0, 0, 0);
    from_float(value, u);
}

/* D and the norm's weight of this thread's channel of group `group`. */
static __device__ inline float2 gate_constants(const struct part_of_mixer &own, const struct decode_layer &layer, int group)
{
    int c = group * UNITS * UNIT + thread_index() % 32, e = own.unit * UNIT + c;
    return c < own.units * UNIT ? make_float2(layer.D[e / HEADDIM], layer.mixer_norm[e]) : make_float2(0, 0);
}

/* Group `group` of UNITS units, by one warp: gate, and on the way to out_proj. */
template <typename X>
static __device__ inline void mix_finish(const struct few_job &job, const struct part_of_mixer &own, int l, int t,
                                         unsigned step, int group, float2 constants, const float *work)
{
    const struct decode_view &a = job.a;
    const struct mixer_layout &at = job.at.mix;
    int lane = thread_index() % 32, c = group * UNITS * UNIT + lane, e = own.unit * UNIT + c;
    int warps = min((int)WARPS, t / ROWS + 1);
    bool there = c < own.units * UNIT;
    float gated = 0, u = 0;
    if (there) {
        float x = work[at.x + c];
        u = work[at.delta + c / UNIT] * x;
        float sum = work[at.now] * u + constants.x * x + sum_apart(work + at.part + c, at.pitch, warps);
        gated = sum * work[at.z + c];
    }
    send_mixed(gated * constants.y, there, job.m.v + own.stream * (a.E * (int)sizeof(X) / 4), e, step, X());
    float squares = warp_sum(gated * gated);
    if (lane == 0)
        word_store(job.m.squares + own.stream * 2 * (a.E / UNIT) + own.place * own.groups + group, __float_as_uint(squares),
                   step);
    if (there) keep_value(u, values_of<X>(job, l, own.stream, e), t);
}

/*
 * Position t of layer l for the block's units; `waited` is called when the inputs have come. Shared: work
 * (mixer_layout.total), 16-byte aligned. Begins and ends without a barrier, with two between.
 */
template <typename X, typename Waited>
static __device__ inline void mix(const struct few_job &job, const struct part_of_mixer &own, const struct decode_layer &layer,
                                  int l, int t, unsigned step, float *work, Waited waited)
{
    const struct mixer_layout &at = job.at.mix;
    int thread = thread_index(), warp = thread / 32, lane = thread % 32, first = warp * ROWS, S = job.a.S;
    const X *b = keys_of<X>(job, l, own.stream);
    float *weights = work + at.weights + warp * UNITS * ROWS;
    struct keys<X> keys = {
    };
    struct past<X> past = {
    };
    if (first <= t) {
        keys.load(b + first * S, S);
        past.load(job, l, own.stream, own.unit, min(own.units, (int)UNITS), first, t);
    }
    float2 constants = gate_constants(own, layer, warp);
    mix_inputs<X>(job, own, layer, l, t, step, work);
    waited();
    __syncthreads();
    for (; first <= t; first += WARPS * ROWS) {
        float cb[2];
        bool more = first >= WARPS * ROWS;
        if (more) keys.load(b + first * S, S);
        keys.dot(work + at.query, b + first * S, S, t - first, cb);
        if (t - first < ROWS && lane == (t - first) % 8 * 4) work[at.now] = t - first < 8 ? cb[0] : cb[1];
        for (int unit = 0; unit < own.units; unit += UNITS) {
            int units = min(own.units - unit, (int)UNITS);
            if (more || unit > 0) past.load(job, l, own.stream, own.unit + unit, units, first, t);
            past.weigh(units, t - first, work + at.fade + unit, cb, weights);
            __syncwarp();
            float *part = work + at.part + warp * at.pitch + unit * UNIT;
            if (first < t) {
                past.u.sum(weights, units, more, part);
            } else if (!more) {
                if (lane < units * UNIT) part[lane] = 0;
            }
            __syncwarp(); /* the weights are read */
        }
    }
    __syncthreads();
    for (int group = warp; group < own.groups; group += WARPS) {
        if (group != warp) constants = gate_constants(own, layer, group);
        mix_finish<X>(job, own, l, t, step, group, constants, work);
    }
}

#endif
