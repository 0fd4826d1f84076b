/*
 * The persistent kernel's mixer: convolution, recurrence in its dual form, gate, for the units that a block owns.
 *
 *     v = (a_t Σ_{s<t} decay_s u_s (C_t·B_s) + u_t (C_t·B_t) + D x) silu(z),   decay_s = a_{s+1} ... a_{t-1}
 *
 * The history is cut into tiles of 16 tokens. The scores C·B of tile i are the same for all units of a stream: block i of the
 * team works them out and tells the others. Warp i takes tile i, and every 16th after it: it multiplies scores and decays by
 * its columns of u, in bf16 on the tensor cores; what came from float32 goes in as two bf16 numbers, the value and what
 * rounding left of it, in two columns (rows) that would stay empty.
 */
#ifndef AIM_CUDA_DECODE_FEW_MIX_CUH
#define AIM_CUDA_DECODE_FEW_MIX_CUH

#include "cuda/decode_few.cuh"

/* Who waits for which words of this token: the first warps for B and C, the last two for them, the others for z, x and dt. */
enum { SCORE_WARPS = 2 * STATE / 32, SCORER = WARPS - 2, SCORE_BARRIER = 1, SCORE_THREADS = 32 * (SCORE_WARPS + 2) };

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

/* ------------------------------------------------------------------------------------------------------- the history */

/* A layer's part of an array of `size` elements a layer. */
template <typename T> static __device__ inline T *layer_of(T *of, int l, int size)
{
    return of + (int64_t)l * size;
}

/* A block's u: (tiles, channels, ROWS). */
static __device__ inline bf16 *values_of(const struct few_job &job, const struct part_of_mixer &own, int l)
{
    return layer_of(job.m.u, l, job.a.R * job.a.E * job.m.T) + (own.stream * job.a.E + own.unit * UNIT) * job.m.T;
}

/* A block's decays: (tiles, units, ROWS). */
static __device__ inline float *decays_of(const struct few_job &job, const struct part_of_mixer &own, int l)
{
    int units = job.a.E / UNIT;
    return layer_of(job.m.decay, l, job.a.R * units * job.m.T) + (own.stream * units + own.unit) * job.m.T;
}

/* B of a stream: (T,S); rows of a tile are one block's. */
static __device__ inline bf16 *keys_of(const struct few_job &job, int l, int stream)
{
    return layer_of(job.m.b, l, job.a.R * job.m.T * STATE) + stream * job.m.T * STATE;
}

/* The history's barriers, for one layer after the other: there, and free again. */
struct history {
    unsigned barriers; /* shared address */
    unsigned parity;   /* of the phase of this layer */
};

static __device__ inline struct history history_of(const struct few_job &job, const char *shared)
{
    return {shared_address(shared + job.at.barriers) + 16 * job.at.depth, 0};
}

/* By one thread of the block, before all others go on. */
static __device__ inline void history_start(const struct history &h)
{
    phase_start(h.barriers, 1);
    phase_start(h.barriers + 8, WARPS);
}

/* By all warps: the history in shared memory is needed no more, nor what lies there while a token is drawn. */
static __device__ inline void history_free(const struct history &h, int lane)
{
    __syncwarp();
    if (lane == 0) phase_arrive(h.barriers + 8);
}

/* By one thread: u and decays of the block, layer after layer of every token, to shared memory as soon as there is room. */
static __device__ inline void load_history(const struct few_job &job, const struct part_of_mixer &own, struct history h,
                                           const char *shared)
{
    uint64_t policy = policy_once();
    unsigned u = shared_address(shared + job.at.u), decay = shared_address(shared + job.at.decay);
    for (int t = job.from; t < job.to; t++) {
        int tiles = (t + ROWS - 1) / ROWS, of_decay = tiles * own.units * ROWS * (int)sizeof(float);
        int of_u = tiles * own.units * UNIT * ROWS * (int)sizeof(bf16);
        for (int l = 0; l < job.a.layers; l++, h.parity ^= 1) {
            phase_wait(h.barriers + 8, h.parity ^ 1);
            phase_expect(h.barriers, of_u + of_decay);
            if (tiles == 0) continue;
            bulk_copy(u, values_of(job, own, l), of_u, h.barriers, policy);
            bulk_copy(decay, decays_of(job, own, l), of_decay, h.barriers, policy);
        }
    }
}

/* ------------------------------------------------------------------------------------------------------------ scores */

/* Value n of B and C, which lie one after the other, into the queries (3,STATE): C, what is left of C, B. */
static __device__ inline void put_query(bf16 *rows, int n, float value)
{
    if (n < STATE)
        rows[2 * STATE + n] = __float2bfloat16_rn(value);
    else
        split(value, rows + n - STATE, rows + n);
}

/* 8 rows of B, of which lane (g, q) has parts of row g; rows 8 to 15 of the tensor cores' operand are zero. */
struct keys {
    enum { STEPS = STATE / 32, COUNT = 8 };
    uint4 row[STEPS];

    /* From the first of the rows, in device memory. */
    __device__ inline void load(const bf16 *b, int lane)
    {
        b += lane / 4 * STATE + 8 * (lane % 4);
#pragma unroll
        for (int i = 0; i < STEPS; i++) row[i] = __ldcg((const uint4 *)(b + 32 * i));
    }

    /* C·B of row g, in the quad's every lane. Row `now` is that of this token; rows after it count for nothing. */
    __device__ inline float dot(const bf16 *query, int now, int lane)
    {
        int g = lane / 4, q = lane % 4;
        const uint4 *c = (const uint4 *)(query + g * STATE), *b = (const uint4 *)(query + 2 * STATE);
        float both = 0, sum[STEPS][4];
        if (now == g) {
#pragma unroll
            for (int i = 0; i < STEPS; i++) row[i] = b[4 * i + q];
        }
#pragma unroll
        for (int i = 0; i < STEPS; i++) {
            uint4 own = make_uint4(0, 0, 0, 0);
            if (g < 2) own = c[4 * i + q];
            sum[i][0] = sum[i][1] = sum[i][2] = sum[i][3] = 0;
            mma(sum[i], {row[i].x, 0, row[i].y, 0}, own.x, own.y);
            mma(sum[i], {row[i].z, 0, row[i].w, 0}, own.z, own.w);
        }
#pragma unroll
        for (int i = 0; i < STEPS; i++) both += sum[i][0] + sum[i][1];
        return __shfl_sync(~0u, both, lane & ~3);
    }
};

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

/* Words of in_proj's results and the convolution's past inputs of a stream. */
struct mixer_inputs {
    const word *zxbcdt;
    float *ring; /* (RING,C) */
};

static __device__ inline struct mixer_inputs inputs_of(const struct few_job &job, const struct part_of_mixer &own, int l)
{
    const struct decode_view &a = job.a;
    return {job.m.zxbcdt + own.stream * a.W, layer_of(job.m.ring, l, a.R * RING * a.C) + own.stream * RING * a.C};
}

/* The scores of the tiles that this block tells its team; one block of it keeps the convolution's inputs. */
static __device__ inline void tell_scores(const struct few_job &job, const struct part_of_mixer &own,
                                          const struct decode_layer &layer, int l, int t, unsigned step, bf16 *query,
                                          int thread)
{
    const struct decode_view &a = job.a;
    int lane = thread % 32;
    bf16 *b = keys_of(job, l, own.stream);
    if (own.place * ROWS > t) return;
    if (thread < 32 * SCORE_WARPS) {
        struct mixer_inputs in = inputs_of(job, own, l);
        put_query(query, thread, convolve(layer, in.ring, a.C, t, a.E + thread, own.place == 0, in.zxbcdt + a.E, step));
        barrier_arrive<SCORE_BARRIER, SCORE_THREADS>();
    } else if (thread / 32 >= SCORER) {
        int half = (thread / 32 - SCORER) * keys::COUNT, first = own.place * ROWS + half; /* a warp for each half of a tile */
        struct keys keys;
        keys.load(b + first * STATE, lane);
        barrier_wait<SCORE_BARRIER, SCORE_THREADS>();
#pragma unroll 1
        for (; first <= t; first += own.blocks * ROWS) {
            if (first >= own.blocks * ROWS) keys.load(b + first * STATE, lane);
            float score = keys.dot(query, t - first, lane);
            if (lane % 4 == 0) word_store(job.m.scores + own.stream * job.m.T + first + lane / 4, __float_as_uint(score), step);
            if (t - first < keys::COUNT) *(uint2 *)(b + t * STATE + 4 * lane) = *(const uint2 *)(query + 2 * STATE + 4 * lane);
        }
    }
}

/* ----------------------------------------------------------------------------------------------------------- Σ w u */

/* Scores of tokens 4q .. 4q+3 of a tile, of which those up to `now` are there to come; past `now` they are anything. */
static __device__ inline void wait_scores(const word *from, int now, int q, unsigned step, float (&score)[4])
{
    ulonglong2 w[2];
    bool missing;
    do {
        missing = false;
#pragma unroll
        for (int i = 0; i < 2; i++) {
            int token = 4 * q + 2 * i;
            w[i] = words_read(from + token);
            missing |= (token <= now && !word_is_of(w[i].x, step)) || (token < now && !word_is_of(w[i].y, step));
        }
    } while (missing);
#pragma unroll
    for (int i = 0; i < 2; i++) {
        score[2 * i] = word_float(w[i].x);
        score[2 * i + 1] = word_float(w[i].y);
    }
}

/* decay ⊙ score of tokens 4q .. 4q+3 before `now`, as a tensor cores' operand: the value or what is left of it. */
static __device__ inline uint2 weights_of(float4 decay, const float (&score)[4], int now, int q, bool rest)
{
    const float of[4] = {decay.x, decay.y, decay.z, decay.w};
    bf16 a[4], high, low;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        split(4 * q + i < now ? of[i] * score[i] : 0.0f, &high, &low);
        a[i] = rest ? low : high;
    }
    return make_uint2(pack(a[0], a[1]), pack(a[2], a[3]));
}

/*
 * This warp's tiles: part (channels) = Σ decay score u; work[now] = C_t·B_t. u and decays are in shared memory. A lane (g, q)
 * has tokens 4q .. 4q+3 of the decays of units g/2 and 4 + g/2, rows g and g+8 of the tensor cores' operand: even ones the
 * value, odd ones what is left of it; and of channel g of each unit's u.
 */
static __device__ inline void sum_history(const struct few_job &job, const struct part_of_mixer &own, int t, unsigned step,
                                          const bf16 *u, const float *decay, float *work, int thread)
{
    const struct mixer_layout &at = job.at.mix;
    int warp = thread / 32, lane = thread % 32, g = lane / 4, q = lane % 4;
    float *part = work + at.part + warp * at.pitch;
    const word *scores = job.m.scores + own.stream * job.m.T;
#pragma unroll 1
    for (int tile = warp; tile * ROWS <= t; tile += WARPS) {
        int now = t - tile * ROWS;
        float score[4];
        wait_scores(scores + tile * ROWS, now, q, step, score);
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (4 * q + i == now && g == 0) work[at.now] = score[i];
#pragma unroll 1
        for (int unit = 0; unit < own.units; unit += UNITS) {
            int units = now > 0 ? min(own.units - unit, (int)UNITS) : 0;
            const float *of_decay = decay + (tile * own.units + unit) * ROWS + 4 * q;
            const bf16 *of_u = u + ((tile * own.units + unit) * UNIT + g) * ROWS + 4 * q;
            uint2 a[2] = {};
#pragma unroll
            for (int i = 0; i < 2; i++)
                if (4 * i + g / 2 < units)
                    a[i] = weights_of(*(const float4 *)(of_decay + (4 * i + g / 2) * ROWS), score, now, q, g % 2);
#pragma unroll
            for (int j = 0; j < UNITS; j++) {
                if (j >= units) break;
                float c[4] = {0, 0, 0, 0};
                uint2 of = *(const uint2 *)(of_u + j * UNIT * ROWS);
                mma(c, {a[0].x, a[1].x, a[0].y, a[1].y}, of.x, of.y);
                float x = c[j / 4 * 2], y = c[j / 4 * 2 + 1];
                x += __shfl_xor_sync(~0u, x, 4);
                y += __shfl_xor_sync(~0u, y, 4);
                float2 *to = (float2 *)(part + (unit + j) * UNIT + 2 * q);
                if (g == j % 4 * 2) *to = tile != warp ? make_float2(to->x + x, to->y + y) : make_float2(x, y);
            }
        }
        if (now == 0 && tile == warp)
#pragma unroll 1
            for (int i = lane; i < own.units * UNIT; i += 32) part[i] = 0;
    }
}

/* This warp's decays for the next token, in device memory. */
static __device__ inline void fade_history(const struct few_job &job, const struct part_of_mixer &own, int l, int t,
                                           const float *decay, const float *fade, int thread)
{
    float *to = decays_of(job, own, l);
    int lane = thread % 32;
#pragma unroll 1
    for (int tile = thread / 32; tile * ROWS <= t; tile += WARPS)
#pragma unroll 1
        for (int i = lane; i < own.units * ROWS; i += 32) {
            int now = t - tile * ROWS - i % ROWS, at = tile * own.units * ROWS + i;
            float faded = now > 0 ? decay[at] * fade[i / ROWS] : 1.0f;
            if (now >= 0) to[at] = faded > 1e-30f ? faded : 0.0f;
        }
}

/* ------------------------------------------------------------------------------------------------ this token's inputs */

/* Waits for what in_proj made of this token for the block's channels, and leaves in shared memory what follows from it. */
static __device__ inline void mix_inputs(const struct few_job &job, const struct part_of_mixer &own,
                                         const struct decode_layer &layer, int l, int t, unsigned step, float *work, int thread)
{
    enum { FIRST = 32 * SCORE_WARPS, COUNT = 32 * (SCORER - SCORE_WARPS) };
    const struct decode_view &a = job.a;
    const struct mixer_layout &at = job.at.mix;
    int channels = own.units * UNIT, e0 = own.unit * UNIT, first = thread - FIRST;
    struct mixer_inputs in = inputs_of(job, own, l);
    if (first < 0 || first >= COUNT) return;
#pragma unroll 1
    for (int c = first; c < 2 * channels + own.units; c += COUNT) {
        if (c < channels) {
            work[at.x + c] = convolve(layer, in.ring, a.C, t, e0 + c, true, in.zxbcdt + a.E, step);
        } else if (c < 2 * channels) {
            work[at.z + c - channels] = silu(word_float(word_wait(in.zxbcdt + e0 + c - channels, step)));
        } else {
            int unit = c - 2 * channels, h = (own.unit + unit) / (HEADDIM / UNIT);
            float bias = layer.dt_bias[h], rate = expf(layer.A_log[h]);
            float dt = word_float(word_wait(in.zxbcdt + a.W - a.H + h, step)) + bias;
            float delta = dt > 20.0f ? dt : log1pf(expf(dt));
            work[at.delta + unit] = delta;
            work[at.fade + unit] = expf(-delta * rate);
        }
    }
}

/* ------------------------------------------------------------------------------------------------------------- v */

/* Keeps u of token t of a channel whose tile starts at `row`. The first one makes the tokens after it zero: their weights are,
 * and u may be anything. */
static __device__ inline void keep_value(float value, bf16 *row, int t)
{
    enum { WIDE = 16 / sizeof(bf16) };
    if (t % ROWS == 0)
        for (int i = 0; i < ROWS; i += WIDE) *(uint4 *)(row + i) = make_uint4(0, 0, 0, 0);
    from_float(value, row + t % ROWS);
}

/* A packet of v of every PACKED lanes, one channel each, sent by the first of them. */
static __device__ inline void send_mixed(float v, bool there, uint4 *to, unsigned step, int lane)
{
    unsigned pair = pack(__float2bfloat16_rn(v), __float2bfloat16_rn(__shfl_down_sync(~0u, v, 1)));
    unsigned second = __shfl_down_sync(~0u, pair, 2), third = __shfl_down_sync(~0u, pair, 4);
    if (there && lane % PACKED == 0) packet_store(to + lane / PACKED, make_uint4(pair, second, third, step));
}

/* D of this thread's channel of group `group`. */
static __device__ inline float direct_weight(const struct part_of_mixer &own, const struct decode_layer &layer, int group,
                                             int lane)
{
    int c = group * GROUP + lane;
    return lane < GROUP && c < own.units * UNIT ? layer.D[(own.unit * UNIT + c) / HEADDIM] : 0;
}

/* Group `group` of GROUP channels, by one warp: gate, and on the way to out_proj. */
static __device__ inline void mix_finish(const struct few_job &job, const struct part_of_mixer &own, int l, int t,
                                         unsigned step, int group, float D, const float *work, int lane)
{
    const struct mixer_layout &at = job.at.mix;
    int c = group * GROUP + lane, channels = own.units * UNIT;
    int warps = min((int)WARPS, t / ROWS + 1);
    bool there = lane < GROUP && c < channels;
    float gated = 0, u = 0;
    if (there) {
        float x = work[at.x + c], past = work[at.fade + c / UNIT] * sum_apart(work + at.part + c, at.pitch, warps);
        u = work[at.delta + c / UNIT] * x;
        gated = (past + work[at.now] * u + D * x) * work[at.z + c];
    }
    uint4 *v = job.m.v + own.stream * job.m.v_pitch + own.place * own.packets;
    send_mixed(gated, there, v + group * (GROUP / PACKED), step, lane);
    if (there) keep_value(u, values_of(job, own, l) + (t / ROWS * channels + c) * ROWS, t);
}

/*
 * Position t of layer l for the block's units; `waited` is called when the scores have come. Shared: work
 * (mixer_layout.total), 16-byte aligned. Begins and ends without a barrier, with one between.
 */
template <typename Waited>
static __device__ inline void mix(const struct few_job &job, const struct part_of_mixer &own, const struct decode_layer &layer,
                                  int l, int t, unsigned step, char *shared, struct history *history, int thread, Waited waited)
{
    const struct mixer_layout &at = job.at.mix;
    float *work = (float *)(shared + job.at.mixer);
    const float *decay = (const float *)(shared + job.at.decay);
    int warp = thread / 32, lane = thread % 32;
    float D = direct_weight(own, layer, warp, lane);
    tell_scores(job, own, layer, l, t, step, (bf16 *)(work + at.query), thread);
    mix_inputs(job, own, layer, l, t, step, work, thread);
    phase_wait(history->barriers, history->parity);
    history->parity ^= 1;
    sum_history(job, own, t, step, (const bf16 *)(shared + job.at.u), decay, work, thread);
    waited();
    block_sync();
#pragma unroll 1
    for (int group = warp; group * GROUP < own.units * UNIT; group += WARPS) {
        if (group != warp) D = direct_weight(own, layer, group, lane);
        mix_finish(job, own, l, t, step, group, D, work, lane);
    }
    fade_history(job, own, l, t, decay, work + at.fade, thread);
    bulk_fence(); /* the next token's copies are to find what was written */
    if (l + 1 < job.a.layers) history_free(*history, lane);
}

#endif
