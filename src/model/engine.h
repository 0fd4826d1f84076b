/*
 * The decode engine: the stage-2 network one token at a time, for several independent streams that share every weight
 * read. With guidance a picture is two streams: the first half of the streams carries the classes, the second half the
 * null class, fed the same tokens.
 *
 * Everything that depends on the class alone is computed once per class: its modulations, and its whole first step,
 * whose result is then copied to every stream of that class.
 */
#ifndef AIM_MODEL_ENGINE_H
#define AIM_MODEL_ENGINE_H

#include "model/ar.h"
#include "tensor/ssd_cache.h"

struct engine {
    struct exec ex;
    const struct ar *ar;
    int64_t capacity, streams;
    struct ssd_cache *caches; /* one per layer; memory in one block each, below */
    float *u, *b, *decay, *carry, *state, *conv;
    float *modulation;        /* (layers, capacity, 3d) */
    float *final_modulation;  /* (capacity, 2d) */
    float *work;              /* activations of a step */
    float *logits;            /* (capacity, V) */
    float *probabilities;     /* (capacity, V) */
    int32_t *ids, *positions; /* (capacity) */
};

/* Bytes engine_create takes for this many streams. */
int64_t engine_bytes(const struct ar_config *config, int64_t streams);

/* An engine for at most `capacity` streams. *engine is freed with engine_free, also after a failure. */
aim_status engine_create(const struct ar *ar, int64_t capacity, struct engine **engine);
void engine_free(struct engine *engine);

/* Starts `streams` sequences with the class token; labels (streams). Logits of token 0 stand ready afterwards. */
aim_status engine_begin(struct engine *engine, const int32_t *labels, int64_t streams);

/* Feeds token t-1 of every stream (tokens (streams)) at sequence position t >= 1; logits of token t stand ready. */
aim_status engine_step(struct engine *engine, const int32_t *tokens, int64_t t);

/*
 * Draws the next token of `pictures` pictures from the logits. With guidance, streams = 2 * pictures. uniform (pictures)
 * in [0,1); tokens (pictures).
 */
aim_status engine_sample(struct engine *engine, const struct sampling *how, int64_t pictures, const double *uniform,
                         int32_t *tokens);

#endif
