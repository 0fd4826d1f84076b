/*
 * struct aim_model: the files, the parameter tables of both stages, and the networks built from them on first use.
 */
#ifndef AIM_MODEL_MODEL_H
#define AIM_MODEL_MODEL_H

#include "model/ar.h"
#include "model/config.h"
#include "model/vq.h"

struct engine;
struct picture_queue;

struct aim_model {
    aim_context *ctx;
    struct model_config config;
    struct tensor_file files[2]; /* stage 2 (or everything), and the tokenizer when it comes from elsewhere */
    struct params ar_table, vq_table;
    aim_weights weights;
    int pos_offset;
    const char *pos_offset_from;
    struct ar *ar; /* NULL until model_need_ar */
    struct vq *vq; /* NULL until model_need_vq */
    struct exec ex;
    struct engine *engine; /* these two stay from one aim_generate to the next; NULL until then */
    struct picture_queue *queue;
    bool painting; /* aim_generate works with them */
};

/* A model without anything in it, for callers that put one together; freed with aim_model_free, also after a failure. */
aim_status model_new(aim_context *ctx, aim_model **model);

/* Build the network of a stage if it is not there yet; AIM_ERR_ARGUMENT when the model does not hold that stage. */
aim_status model_need_ar(aim_model *model);
aim_status model_need_vq(aim_model *model);

/* The same for what aim_generate works with and leaves for its next call: an engine for this many streams or more, and the
 * queue that decodes pictures. The networks are there. */
aim_status model_need_engine(aim_model *model, int64_t streams);
aim_status model_need_queue(aim_model *model);

/* The memory of these and of idle buffers, and giving it back, unless aim_generate is under way: where memory is short, and
 * before model->ar is freed. */
int64_t model_kept(const aim_model *model);
void model_rest(aim_model *model);

/* Compares an estimate with what the context's limit or the system leaves, once nothing is kept if need be; `advice` ends the
 * message. */
aim_status model_check_memory(aim_model *model, int64_t bytes, const char *what, const char *advice);

/* Weights in memory once both stages (as far as present) are built. */
int64_t model_weight_bytes(const aim_model *model);

/* int64 to int32 with 0 <= value < limit; the caller frees *out with mem_free. */
aim_status model_narrow(aim_context *ctx, const int64_t *values, int64_t count, int64_t limit, const char *what, int32_t **out);

#endif
