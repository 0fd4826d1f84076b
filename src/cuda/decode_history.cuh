/*
 * How the mixer for many streams (decode_graph.cu) reads the past. A warp's share of it, rows of B and then the tokens of one
 * head after the other, passes through SLOTS places of shared memory that are the warp's own, a batch in each: all of them are
 * on their way while the first one is waited for, and a place is asked for anew as soon as it has been read. A lane reads what
 * it asked for itself, so that it waits for its own copies alone.
 *
 * Decays are products of many tokens' factors. To read them without writing all of them back, those of tokens before the last
 * multiple of FOLD stand still, while their head's `carry` takes the factors; every FOLD tokens it is multiplied into them.
 */
#ifndef AIM_CUDA_DECODE_HISTORY_CUH
#define AIM_CUDA_DECODE_HISTORY_CUH

#include "cuda/copies.cuh"
#include "cuda/decode_many.cuh"

enum { MIX_WARPS = 8, MIX_SLOTS = 3, FOLD = 16 };

/* Lanes of a head's history in the weights' type. */
template <typename X> struct history {
    enum {
        WIDE = 16 / sizeof(X),              /* values of a lane */
        SHARE = HEADDIM / WIDE,             /* lanes of a token */
        ROWS = 32 / SHARE,                  /* tokens of a warp's access */
        LOADS = 4,                          /* accesses of a batch */
        BATCH = LOADS * ROWS,               /* its tokens */
        DECAYS = LOADS * 32 * 16,           /* where their decays stand in a slot, in bytes */
        SLOT = DECAYS + BATCH * 4,          /* bytes */
        LINE = 32 * 4 * sizeof(X),          /* of B, bytes of a warp's access: four values a lane */
        LINES = DECAYS / LINE,              /* accesses of a batch of B */
        RING = MIX_WARPS * MIX_SLOTS * SLOT /* bytes of a block */
    };
    /* The first of the two channels of a head that a lane is left with after share_sums<2>. */
    static __device__ inline int channel()
    {
        int lane = threadIdx.x % 32;
        return lane % SHARE * WIDE + lane / SHARE * 2;
    }
};

/* A stream's rows of B in a batch: half as many where a lane has more than four values of each. */
template <typename X> static __device__ inline int rows_of_batch(int S)
{
    return S > 128 ? history<X>::LINES / 2 : history<X>::LINES;
}

/* What a warp still has to ask for. */
template <typename X> struct reader {
    char *slots;        /* the warp's */
    const X *b, *u;     /* (T,S) of the stream; (T,HEADDIM) of the next head, from the lane's values on */
    const float *decay; /* (T) of that head */
    int64_t next_head;  /* heads between two of the warp's, times T */
    int t, S, slot;
    int row;          /* of B, the next one; t and more: no more */
    int heads, token; /* left; the next token of the head */
    int first, step;  /* of a head's tokens the warp's first one; from batch to batch */
};

static __device__ inline void copy_four(float *to, const float *from, bool wanted)
{
    copy_start(to, from, wanted);
}

static __device__ inline void copy_four(bf16 *to, const bf16 *from, bool wanted)
{
    copy_start_short<8>(to, from, wanted);
}

template <typename X> static __device__ inline void ask_for_rows(struct reader<X> *q, char *slot)
{
    const int wide = q->S > 128, lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < history<X>::LINES; j++) {
        int s = q->row + (j >> wide), n = 4 * lane + (wide ? j % 2 * 128 : 0);
        copy_four((X *)(slot + j * history<X>::LINE) + 4 * lane, q->b + (unsigned)(s * q->S + n), s < q->t && n < q->S);
    }
    q->row += MIX_WARPS * rows_of_batch<X>(q->S);
}

template <typename X> static __device__ inline void ask_for_tokens(struct reader<X> *q, char *slot)
{
    enum { SHARE = history<X>::SHARE, ROWS = history<X>::ROWS };
    const int lane = threadIdx.x % 32, left = q->t - q->token;
    const uint64_t once = policy_once();
    const X *from = q->u + (unsigned)(q->token * HEADDIM);
#pragma unroll
    for (int j = 0; j < history<X>::LOADS; j++)
        copy_start_once(slot + j * 512 + lane * 16, from + j * ROWS * HEADDIM, j * ROWS + lane / SHARE < left, once);
    if (lane < history<X>::BATCH)
        copy_start_short<4>(slot + history<X>::DECAYS + lane * 4, q->decay + q->token + lane, lane < left);
    q->token += q->step;
    if (q->token < q->t) return;
    q->token = q->first;
    q->heads--;
    q->u += q->next_head * HEADDIM;
    q->decay += q->next_head;
}

/* Asks for the next batch, if there is one, in the place of the one read last. Rows of B: whether some may be left. */
template <bool ROWS, typename X> static __device__ inline void ask_for_batch(struct reader<X> *q)
{
    char *slot = q->slots + q->slot * history<X>::SLOT;
    if (ROWS && q->row < q->t)
        ask_for_rows(q, slot);
    else if (q->heads > 0)
        ask_for_tokens(q, slot);
    copy_commit();
    q->slot = q->slot + 1 < MIX_SLOTS ? q->slot + 1 : 0;
}

/* The batch that was asked for first, when it is there. */
template <typename X> static __device__ inline const char *oldest_batch(const struct reader<X> *q)
{
    copy_wait<MIX_SLOTS - 1>();
    return q->slots + q->slot * history<X>::SLOT;
}

/* ------------------------------------------------------------------------------------------------------------ rows */

/* Four values as they lie in memory, and as floats. */
static __device__ inline float4 four_floats(const float *p)
{
    return *(const float4 *)p;
}

static __device__ inline float4 four_floats(const bf16 *p)
{
    uint2 raw = *(const uint2 *)p;
    return make_float4(__uint_as_float(raw.x << 16), __uint_as_float(raw.x & 0xffff0000u), __uint_as_float(raw.y << 16),
                       __uint_as_float(raw.y & 0xffff0000u));
}

/* cb[s] = C_t·B_s for s <= t of a stream, by the whole block. bc (2S): B_t, C_t. Ends without a barrier. */
template <typename X> static __device__ inline void match_history(struct reader<X> *q, const float *bc, float *cb)
{
    enum { LINES = history<X>::LINES, LANES = 32 / LINES }; /* lanes that share a line's sum at the end */
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, wide = q->S > 128, rows = rows_of_batch<X>(q->S), n = 4 * lane;
    float4 c[2];
    c[0] = n < q->S ? *(const float4 *)(bc + q->S + n) : make_float4(0, 0, 0, 0);
    c[1] = !wide ? c[0] : n + 128 < q->S ? *(const float4 *)(bc + q->S + n + 128) : make_float4(0, 0, 0, 0);
    for (int first = warp * rows; first < q->t; first += MIX_WARPS * rows) {
        const char *slot = oldest_batch(q);
        float sum[LINES];
#pragma unroll
        for (int j = 0; j < LINES; j++) {
            float4 b = four_floats((const X *)(slot + j * history<X>::LINE) + n), by = c[j % 2];
            sum[j] = b.x * by.x + b.y * by.y + b.z * by.z + b.w * by.w;
        }
        ask_for_batch<true>(q);
        share_sums<1>(sum);
#pragma unroll
        for (int o = LANES / 2; o; o /= 2) sum[0] += __shfl_xor_sync(~0u, sum[0], o);
        if (wide) sum[0] += __shfl_xor_sync(~0u, sum[0], LANES);
        int s = first + (lane / LANES >> wide);
        if (lane % LANES == 0 && s < q->t) cb[s] = sum[0];
    }
    if (warp == MIX_WARPS - 1) { /* the one that most likely had fewest */
        float sum = 0;
#pragma unroll 1
        for (int i = lane; i < q->S; i += 32) sum += bc[i] * bc[q->S + i];
        sum = warp_sum(sum);
        if (lane == 0) cb[q->t] = sum;
    }
}

/* ---------------------------------------------------------------------------------------------------------- tokens */

/* y += weight u, for the values of 16 bytes */
static __device__ inline void add_values(uint4 u, float weight, float (&y)[4])
{
    const unsigned part[4] = {u.x, u.y, u.z, u.w};
#pragma unroll
    for (int j = 0; j < 4; j++) y[j] += weight * __uint_as_float(part[j]);
}

static __device__ inline void add_values(uint4 u, float weight, float (&y)[8])
{
    const unsigned part[4] = {u.x, u.y, u.z, u.w};
#pragma unroll
    for (int j = 0; j < 4; j++) {
        y[2 * j] += weight * __uint_as_float(part[j] << 16);
        y[2 * j + 1] += weight * __uint_as_float(part[j] & 0xffff0000u);
    }
}

/* How a head's decays go on: a token's factor, and what tokens before the last multiple of FOLD have had of them so far. */
struct fading {
    float now, carry;
};

/*
 * y += Σ_s decay_s cb_s u_s over the warp's tokens of its next head: a lane's WIDE values are those of its tokens alone.
 * decay (T) of the head, which fades.
 */
template <typename X>
static __device__ inline void add_tokens(struct reader<X> *q, const float *cb, struct fading fading, float *decay,
                                         float (&y)[history<X>::WIDE])
{
    enum { SHARE = history<X>::SHARE, ROWS = history<X>::ROWS, LOADS = history<X>::LOADS, BATCH = history<X>::BATCH };
    const int lane = threadIdx.x % 32, recent = (q->t - 1) / FOLD * FOLD;
    const bool folds = q->t % FOLD == 0;
    for (int first = q->first; first < q->t; first += q->step) {
        const char *slot = oldest_batch(q);
        float weight = 0;
        int s = first + lane;
        if (lane < BATCH && s < q->t) {
            float g = *(const float *)(slot + history<X>::DECAYS + lane * 4) * (s < recent ? fading.carry : fading.now);
            g = g > 1e-30f ? g : 0.0f;
            if (folds || s >= recent) decay[s] = g;
            weight = g * cb[s];
        }
#pragma unroll
        for (int j = 0; j < LOADS; j++)
            add_values(*(const uint4 *)(slot + j * 512 + lane * 16), __shfl_sync(~0u, weight, j * ROWS + lane / SHARE), y);
        ask_for_batch<false>(q);
    }
}

#endif
