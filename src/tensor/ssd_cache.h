/*
 * What a Mamba-2 layer remembers between decoding steps, for R independent streams.
 *
 * The recurrence S_t = a_t S_{t-1} + u_t ⊗ B_t, y_t = S_t C_t (spec C4) unrolled over the tokens of the current chunk is
 *
 *     y_t = Σ_{s<=t} (C_t·B_s) (a_{s+1} … a_t) u_s  +  (a_1 … a_t) S_in C_t        u_s = Δ_s x_s
 *
 * so instead of a 64x128 state per head, read and written every step, the cache keeps u, B and the running decay of
 * each token: for the 256 tokens of a picture a fraction of the bytes, and C·B is shared by all heads. After SSD_CHUNK
 * tokens the history folds into the state S_in and starts anew, so longer sequences work too.
 */
#ifndef AIM_TENSOR_SSD_CACHE_H
#define AIM_TENSOR_SSD_CACHE_H

#include <stdint.h>

enum { SSD_CHUNK = 256, SSD_BLOCK = 16, HEADDIM = 64, CONV_WIDTH = 4 };

struct ssd_cache {
    int64_t streams, heads;
    int64_t state_size; /* S: 128 in every published model */
    int64_t blocks;     /* of SSD_BLOCK tokens: the history's capacity, at most SSD_CHUNK tokens */
    float *u;           /* (R, blocks, H, SSD_BLOCK, P) */
    float *b;           /* (R, blocks, S, SSD_BLOCK) */
    float *decay;       /* (R, H, blocks*SSD_BLOCK): product of a after token s, up to now */
    float *carry;       /* (R, H): product of a since the chunk began */
    float *state;       /* (R, H, P, S): S_in; NULL when no sequence outgrows one chunk */
};

/* Floats of one stream in u, b, decay and state (carry has `heads`). */
static inline int64_t ssd_cache_u(const struct ssd_cache *c)
{
    return c->blocks * c->heads * SSD_BLOCK * HEADDIM;
}

static inline int64_t ssd_cache_b(const struct ssd_cache *c)
{
    return c->blocks * c->state_size * SSD_BLOCK;
}

static inline int64_t ssd_cache_decay(const struct ssd_cache *c)
{
    return c->heads * c->blocks * SSD_BLOCK;
}

static inline int64_t ssd_cache_state(const struct ssd_cache *c)
{
    return c->heads * HEADDIM * c->state_size;
}

#endif
