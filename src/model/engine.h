/*
 * The decode engine: the stage-2 network one token at a time, for several independent streams that share every weight
 * read. With guidance a picture is two streams: the first half of the streams carries the classes, the second half the
 * null class, fed the same tokens.
 *
 * Everything that depends on the class alone is computed once per class: its modulations, which stay for later sequences
 * (model/class_table.h), and its whole first step, whose result is then copied to every stream of that class.
 *
 * All of it lies in the backend's memory. Tokens go from the sampler to the next step there, and random numbers are
 * uploaded for the whole sequence, so that no token waits for the host. Where the backend has a decoder of its own
 * (tensor/decoder.h), engine_paint hands the sequence to it instead of running ops.
 */
#ifndef AIM_MODEL_ENGINE_H
#define AIM_MODEL_ENGINE_H

#include "model/class_table.h"
#include "tensor/decoder.h"
#include "tensor/ssd_cache.h"

struct engine {
    struct exec ex;
    const struct ar *ar;
    int64_t capacity, streams;
    struct class_table classes;
    struct decoder *decoder; /* the backend's own; NULL: steps are run op by op */
    void *block;             /* what all pointers below point into: the backend's memory */
    size_t bytes;
    struct ssd_cache *caches; /* one per layer */
    float *u, *b, *decay, *carry, *state, *conv;
    float *modulation;       /* (layers, capacity, 3d) */
    float *final_modulation; /* (capacity, 2d) */
    float *work;             /* activations of a step */
    float *logits;           /* (capacity, V) */
    float *probabilities;    /* (capacity, V) */
    double *uniform;         /* (T, capacity) */
    int32_t *tokens;         /* (T, capacity): what was drawn */
    int32_t *ids;            /* (capacity): what is fed */
    int32_t *positions;      /* (T, capacity): where */
};

/* Bytes engine_create takes for this many streams with matrices of a packed type. */
int64_t engine_bytes(const struct backend *be, const struct ar_config *config, enum tensor_type matrices, int64_t streams);

/* An engine for at most `capacity` streams, for any number of calls of engine_paint. *engine is freed with engine_free, also
 * after a failure, before the network. */
aim_status engine_create(const struct ar *ar, int64_t capacity, struct engine **engine);
/* One that runs the ops in any case: for the step functions below. */
aim_status engine_create_stepping(const struct ar *ar, int64_t capacity, struct engine **engine);
void engine_free(struct engine *engine);

struct engine_job {
    int64_t pictures;
    const int32_t *labels; /* (pictures) */
    struct sampling how;   /* cfg = 1: no guidance, one stream a picture */
    uint64_t seed, first_index;
    int32_t *codes; /* out (pictures, T) */
    /* Told now and then how many tokens of every picture are done; anything but AIM_OK stops the work. */
    aim_status (*progress)(void *user, int64_t tokens);
    void *user;
};

/* Whole pictures: every token drawn and fed. The streams (2 a picture with guidance) must fit the capacity. */
aim_status engine_paint(struct engine *engine, const struct engine_job *job);

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
