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

/* Value n of B and C, which lie one after the other, into the queries (3,S): C, what is left of C, B. */
static __device__ inline void put_query(void *to, int S, int n, float value)
{
    bf16 *rows = (bf16 *)to;
    if (n < S)
        rows[2 * S + n] = __float2bfloat16_rn(value);
    else
        split(value, rows + n - S, rows + n);
}

/* 16 rows of B, of which lane (g, q) has parts of rows g and g+8. */
struct keys {
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
    __device__ inline void dot(const void *query, int S, int now, float (&cb)[2])
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

/* ----------------------------------------------------------------------------------------------------------- Σ w u */

/* 16 tokens of u for UNITS units, of which lane (g, q) has tokens 4q .. 4q+3 of channel g of each. */
struct values {
    uint2 u[UNITS];

    /* From the first unit's first channel and the first of the tokens, in device memory. */
    __device__ inline void load(const bf16 *from, int units, int T)
    {
        int lane = thread_index() % 32, g = lane / 4, q = lane % 4;
#pragma unroll
        for (int j = 0; j < UNITS; j++)
            u[j] = j < units ? __ldcg((const uint2 *)(from + (j * UNIT + g) * T + 4 * q)) : make_uint2(0, 0);
    }

    /* part (UNITS·UNIT) = Σ weights (UNITS, ROWS) u, or more by that. The operand's rows g and g+8 are units g/2 and 4 + g/2. */
    __device__ inline void sum(const float *weights, int units, bool more, float *part)
    {
        int lane = thread_index() % 32, g = lane / 4, q = lane % 4;
        unsigned a[UNITS / 4][2];
#pragma unroll
        for (int half = 0; half < UNITS / 4; half++) {
            float4 w = *(const float4 *)(weights + (4 * half + g / 2) * ROWS + 4 * q);
            bf16 high[4], low[4];
            split(w.x, high, low);
            split(w.y, high + 1, low + 1);
            split(w.z, high + 2, low + 2);
            split(w.w, high + 3, low + 3);
            a[half][0] = g % 2 ? pack(low[0], low[1]) : pack(high[0], high[1]);
            a[half][1] = g % 2 ? pack(low[2], low[3]) : pack(high[2], high[3]);
        }
#pragma unroll
        for (int j = 0; j < UNITS; j++) {
            if (j >= units) break;
            float c[4] = {0, 0, 0, 0};
            multiply_full(c, a[0][0], a[1][0], a[0][1], a[1][1], u[j].x, u[j].y);
            float x = c[j / 4 * 2], y = c[j / 4 * 2 + 1];
            x += __shfl_xor_sync(~0u, x, 4);
            y += __shfl_xor_sync(~0u, y, 4);
            float2 *to = (float2 *)(part + j * UNIT + 2 * q);
            if (g == j % 4 * 2) *to = more ? make_float2(to->x + x, to->y + y) : make_float2(x, y);
        }
    }
};

/* ------------------------------------------------------------------------------------------------------- the history */

/* A layer's part of an array of `size` elements a layer. */
template <typename T> static __device__ inline T *layer_of(T *of, int l, int size)
{
    return of + (int64_t)l * size;
}

static __device__ inline bf16 *values_of(const struct few_job &job, int l, int stream, int channel)
{
    return layer_of(job.m.u, l, job.a.R * job.a.E * job.m.T) + (stream * job.a.E + channel) * job.m.T;
}

static __device__ inline bf16 *keys_of(const struct few_job &job, int l, int stream)
{
    return layer_of(job.m.b, l, job.a.R * job.m.T * job.a.S) + stream * job.m.T * job.a.S;
}

static __device__ inline float *decays_of(const struct few_job &job, int l, int stream, int unit)
{
    int units = job.a.E / UNIT;
    return layer_of(job.m.decay, l, job.a.R * units * job.m.T) + (stream * units + unit) * job.m.T;
}

/* u and decays of 16 tokens and up to UNITS units, those of a lane as in `values` and `weigh`. */
struct past {
    struct values u;
    float *decay_at;                      /* of token first + g and of unit q */
    float decay[UNITS / 4][ROWS / 8];     /* of units q and 4 + q, of tokens first + g and 8 further */

    __device__ inline void load(const struct few_job &job, int l, int stream, int unit, int units, int first, int t)
    {
        int lane = thread_index() % 32, g = lane / 4, q = lane % 4;
        decay_at = decays_of(job, l, stream, unit) + q * job.m.T + first + g;
#pragma unroll
        for (int j = 0; j < UNITS / 4; j++)
#pragma unroll
            for (int i = 0; i < ROWS / 8; i++)
                decay[j][i] = 4 * j + q < units && first + g + 8 * i < t ? __ldcg(decay_at + 4 * j * job.m.T + 8 * i) : 0.0f;
        u.load(values_of(job, l, stream, unit * UNIT) + first, units, job.m.T);
    }

    /* Weights (UNITS, ROWS) of the tokens in shared memory, from cb as keys::dot gives it, and decays for the next token. */
    __device__ inline void weigh(int T, int units, int now, const float *fade, const float (&cb)[ROWS / 8], float *weights)
    {
        int lane = thread_index() % 32, g = lane / 4, q = lane % 4;
#pragma unroll
        for (int j = 0; j < UNITS / 4; j++) {
            int unit = 4 * j + q;
            float by = unit < units ? fade[unit] : 0.0f;
#pragma unroll
            for (int i = 0; i < ROWS / 8; i++) {
                int row = g + 8 * i;
                float faded = decay[j][i] * by, next = faded > 1e-30f ? faded : 0.0f;
                weights[unit * ROWS + row] = row < now ? next * cb[i] : 0.0f;
                if (unit < units && row <= now) decay_at[4 * j * T + 8 * i] = row < now ? next : 1.0f;
            }
        }
    }
};

/* Asks for what `mix` will read, so that it is in the second-level cache by then: 4 lines of a row for a thread each. */
static __device__ inline void mix_ahead(const struct few_job &job, const struct part_of_mixer &own, int l, int t)
{
    enum { LINE = 128, ACROSS = 4 };
    int thread = thread_index(), row = thread / ACROSS, column = thread % ACROSS * LINE, T = job.m.T;
    const char *u = (const char *)values_of(job, l, own.stream, own.unit * UNIT);
    for (int i = row; i < own.units * UNIT; i += THREADS / ACROSS)
        for (int at = column; at < t * (int)sizeof(bf16); at += ACROSS * LINE) prefetch(u + i * T * (int)sizeof(bf16) + at);
    const char *decay = (const char *)decays_of(job, l, own.stream, own.unit);
    for (int i = THREADS / ACROSS - 1 - row; i < own.units; i += THREADS / ACROSS)
        for (int at = column; at < t * (int)sizeof(float); at += ACROSS * LINE)
            prefetch(decay + i * T * (int)sizeof(float) + at);
    /* The team's blocks share the lines of B, which each of them will read. */
    const char *b = (const char *)keys_of(job, l, own.stream);
    int bytes = own.units ? t * job.a.S * (int)sizeof(bf16) : 0;
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
                put_query(work + at.query, a.S, i, x);
            if (keeps && i < a.S) from_float(x, keys_of(job, l, own.stream) + t * a.S + i);
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

/* Keeps u of token t. Every 16th time the tokens after it become zero: their weights are, and u may be anything. */
static __device__ inline void keep_value(float value, bf16 *history, int t)
{
    enum { WIDE = 16 / sizeof(bf16) };
    bf16 *u = history + t;
    if (t % ROWS == 0)
        for (int i = 0; i < ROWS; i += WIDE) *(uint4 *)(u + i) = make_uint4(0, 0, 0, 0);
    from_float(value, u);
}

/* A packet of v of every PACKED lanes, one channel each, sent by the first of them. */
static __device__ inline void send_mixed(float v, bool there, uint4 *to, unsigned step)
{
    unsigned pair = pack(__float2bfloat16_rn(v), __float2bfloat16_rn(__shfl_down_sync(~0u, v, 1)));
    unsigned second = __shfl_down_sync(~0u, pair, 2), third = __shfl_down_sync(~0u, pair, 4);
    int lane = thread_index() % 32;
    if (there && lane % PACKED == 0) packet_store(to + lane / PACKED, make_uint4(pair, second, third, step));
}

/* D of this thread's channel of group `group`. */
static __device__ inline float direct_weight(const struct part_of_mixer &own, const struct decode_layer &layer, int group)
{
    int lane = thread_index() % 32, c = group * GROUP + lane;
    return lane < GROUP && c < own.units * UNIT ? layer.D[(own.unit * UNIT + c) / HEADDIM] : 0;
}

/* Group `group` of GROUP channels, by one warp: gate, and on the way to out_proj. */
static __device__ inline void mix_finish(const struct few_job &job, const struct part_of_mixer &own, int l, int t,
                                         unsigned step, int group, float D, const float *work)
{
    const struct mixer_layout &at = job.at.mix;
    int lane = thread_index() % 32, c = group * GROUP + lane, warps = min((int)WARPS, t / ROWS + 1);
    bool there = lane < GROUP && c < own.units * UNIT;
    float gated = 0, u = 0;
    if (there) {
        float x = work[at.x + c];
        u = work[at.delta + c / UNIT] * x;
        float sum = work[at.now] * u + D * x + sum_apart(work + at.part + c, at.pitch, warps);
        gated = sum * work[at.z + c];
    }
    uint4 *v = job.m.v + own.stream * job.m.v_pitch + own.place * own.packets;
    send_mixed(gated, there, v + group * (GROUP / PACKED), step);
    if (there) keep_value(u, values_of(job, l, own.stream, own.unit * UNIT + c), t);
}

/*
 * Position t of layer l for the block's units; `waited` is called when the inputs have come. Shared: work
 * (mixer_layout.total), 16-byte aligned. Begins and ends without a barrier, with two between.
 */
template <typename Waited>
static __device__ inline void mix(const struct few_job &job, const struct part_of_mixer &own, const struct decode_layer &layer,
                                  int l, int t, unsigned step, float *work, Waited waited)
{
    const struct mixer_layout &at = job.at.mix;
    int thread = thread_index(), warp = thread / 32, lane = thread % 32, first = warp * ROWS, S = job.a.S;
    const bf16 *b = keys_of(job, l, own.stream);
    float *weights = work + at.weights + warp * UNITS * ROWS;
    struct keys keys = {};
    struct past past = {};
    if (first <= t) {
        keys.load(b + first * S, S);
        past.load(job, l, own.stream, own.unit, min(own.units, (int)UNITS), first, t);
    }
    float D = direct_weight(own, layer, warp);
    mix_inputs(job, own, layer, l, t, step, work);
    waited();
    __syncthreads();
    for (; first <= t; first += WARPS * ROWS) {
        float cb[ROWS / 8];
        bool more = first >= WARPS * ROWS;
        if (more) keys.load(b + first * S, S);
        keys.dot(work + at.query, S, t - first, cb);
        if (t - first < ROWS && lane == (t - first) % 8 * 4) work[at.now] = t - first < 8 ? cb[0] : cb[1];
        for (int unit = 0; unit < own.units; unit += UNITS) {
            int units = min(own.units - unit, (int)UNITS);
            if (more || unit > 0) past.load(job, l, own.stream, own.unit + unit, units, first, t);
            past.weigh(job.m.T, units, t - first, work + at.fade + unit, cb, weights);
            __syncwarp();
            float *part = work + at.part + warp * at.pitch + unit * UNIT;
            if (first < t) {
                past.u.sum(weights, units, more, part);
            } else if (!more) {
                for (int i = lane; i < units * UNIT; i += 32) part[i] = 0;
            }
            __syncwarp(); /* the weights are read */
        }
    }
    __syncthreads();
    for (int group = warp; group * GROUP < own.units * UNIT; group += WARPS) {
        if (group != warp) D = direct_weight(own, layer, group);
        mix_finish(job, own, l, t, step, group, D, work);
    }
}

#endif
