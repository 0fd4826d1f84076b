/*
 * What keeps a codebook alive: a start from encoded pictures, revival of codes that nothing is nearest to, and counts of
 * which are used. LlamaGen does neither of the first two, so they are options. Everything here works in the host's memory on
 * rows of unit length (spec D5); the trainer reads and writes the tensors.
 */
#ifndef AIM_TRAIN_CODEBOOK_H
#define AIM_TRAIN_CODEBOOK_H

#include "base/context.h"

enum codebook_start {
    CODEBOOK_RANDOM,  /* as initialised: LlamaGen's */
    CODEBOOK_SAMPLED, /* latents drawn at random */
    CODEBOOK_SPREAD   /* k-means++: each next code a latent, drawn by its squared distance from the codes so far */
};

/* Overwrites codes (V,D) with some of the latents (M,D), M >= 1, both of unit length. With fewer latents than codes, the
 * further codes are latents with a little noise. The same seed gives the same codes. Errors: AIM_ERR_MEMORY. */
aim_status codebook_start_from(aim_context *ctx, enum codebook_start how, const float *latents, int64_t M, int64_t D,
                               uint64_t seed, float *codes, int64_t V);

/* Replaces each code of codes (V,D) whose count is below `least` by a latent drawn at random from (M,D); `step` and seed
 * decide which. Returns how many; revived[j], where not NULL, says which, since the optimizer's moments of these rows belong
 * to other codes. */
int64_t codebook_revive(const int64_t *counts, int64_t least, const float *latents, int64_t M, int64_t D, uint64_t seed,
                        uint32_t step, float *codes, int64_t V, bool *revived);

enum { CODEBOOK_QUEUE = 65536 };

/* Which codes were chosen: counts since the last reset (the window), and LlamaGen's queue of the most recent ones. */
struct codebook_usage {
    int64_t V, chosen; /* codes there are, and choices counted */
    int64_t *counts;   /* (V) */
    float *queue;      /* (CODEBOOK_QUEUE) the buffer quantize.codebook_used: newest last, zeros before the first choices */
};

aim_status codebook_usage_init(aim_context *ctx, int64_t V, struct codebook_usage *u);
void codebook_usage_free(struct codebook_usage *u);
void codebook_usage_add(struct codebook_usage *u, const int32_t *ids, int64_t count);
void codebook_usage_reset(struct codebook_usage *u); /* the window, not the queue */

/* Of the window: the share of codes chosen at all, and e^entropy of the choices, which is V when all are equally frequent.
 * Both 0 before any choice. The queue's zeros count for nothing here (spec I-24). */
double codebook_usage_share(const struct codebook_usage *u);
double codebook_usage_perplexity(const struct codebook_usage *u);

#endif
