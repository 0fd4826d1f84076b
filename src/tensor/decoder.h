/*
 * What a backend may offer beside its ops: painting whole sequences with stage 2 in one go, every token drawn and fed back
 * where the weights are, so that nothing waits for the host. Backends without it leave backend->decoder NULL, and
 * model/engine.c runs the ops one by one.
 */
#ifndef AIM_TENSOR_DECODER_H
#define AIM_TENSOR_DECODER_H

#include "tensor/backend.h"

/* One layer of the network (widths d, E, C, W, H of ops.def); the matrices are packed. */
struct decoder_layer {
    const struct tensor *norm, *in_proj, *conv_w, *conv_b, *dt_bias, *A_log, *D, *mixer_norm, *out_proj;
};

struct decoder_sizes {
    int64_t d, state, layers, vocabulary, tokens;
};

/* Borrowed: the tensors must outlive the decoder. */
struct decoder_network {
    struct decoder_sizes size;
    int pos_offset;
    const struct tensor *words, *positions, *norm_f, *norm_final;
    const struct decoder_layer *layers;
};

/* Tables of what the class alone decides, one row a class, in the backend's memory; `rows` is the distance of layers. */
struct decoder_classes {
    int64_t rows;
    const float *embedding;        /* (rows, d): what the sequence starts with */
    const float *modulation;       /* (layers, rows, 3d): shift, scale, gate */
    const float *final_modulation; /* (rows, 2d) */
};

struct decoder_job {
    int64_t pictures, streams; /* streams = 2 pictures with guidance: the second half is the null class's */
    const int32_t *classes;    /* (streams): rows of the tables */
    struct sampling how;
    const double *uniform; /* (tokens, pictures) in [0,1) */
    int32_t *codes;        /* out (tokens, pictures); -1 where the logits were no finite numbers */
    /* Told now and then how many tokens of every picture are done; anything but AIM_OK stops the work. */
    aim_status (*progress)(void *user, int64_t tokens);
    void *user;
};

struct decoder;

struct decoder_ops {
    /* Bytes that `create` takes for this many streams. */
    int64_t (*bytes)(const struct decoder_sizes *size, bool bf16, int64_t streams);
    /* AIM_ERR_UNSUPPORTED when the shapes are none that it can do. Free *out in every case. */
    aim_status (*create)(struct backend *be, const struct decoder_network *network, const struct decoder_classes *classes,
                         int64_t streams, struct decoder **out);
    aim_status (*paint)(struct decoder *decoder, const struct decoder_job *job); /* classes, uniform, codes: the host's */
    void (*free)(struct decoder *decoder);
};

#endif
