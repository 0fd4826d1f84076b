/*
 * The tokenizer's way back, from codes to pictures: in one call, or as a queue of batches. On a backend with a twin the queue
 * works on a thread of its own, beside whatever the caller does; elsewhere it works when a picture is asked for.
 */
#ifndef AIM_MODEL_PICTURE_QUEUE_H
#define AIM_MODEL_PICTURE_QUEUE_H

#include "model/model.h"

/*
 * Pictures that go through the tokenizer together: one on the CPU, whose cores a picture keeps busy and whose results must not
 * depend on it; on a device as many as it takes to fill it, if they fit in one of `shares` parts of what is free.
 */
int64_t model_together(const aim_model *model, int64_t rows, int64_t columns, int shares);

/* ids (n, rows*columns) to pixels (n, 3, rows*f, columns*f), f = vq_downsample; the model's tokenizer is there. */
aim_status model_decode(const aim_model *model, struct exec *ex, const int32_t *ids, int64_t n, int64_t rows, int64_t columns,
                        float *pixels);

/* -------------------------------------------------------------------------------------------------- the queue */

/* Turns one batch after the other into pictures; while it is at work, nobody else may use the tokenizer. */
struct picture_queue;

/* For a model whose tokenizer is there. *queue is freed with picture_queue_free, also after a failure; after the tokenizer,
 * whose tensors hold memory of the twin. */
aim_status picture_queue_create(aim_model *model, struct picture_queue **queue);
void picture_queue_free(struct picture_queue *queue);

/* Whether it works by itself. */
bool picture_queue_beside(const struct picture_queue *queue);

/* Starts a batch: ids (n, tokens), which must stay as they are until the last picture was taken. The one before is over. */
aim_status picture_queue_begin(struct picture_queue *queue, const int32_t *ids, int64_t n);

/* The next picture of the batch, the caller's; without `wait`, image->rgb is NULL when it is not there yet. What went wrong on
 * the thread comes out here, with its message in the model's context. */
aim_status picture_queue_take(struct picture_queue *queue, bool wait, aim_image *image);

/* Forgets what is left of the batch, once the thread has put down what it is at. */
void picture_queue_cancel(struct picture_queue *queue);

/* Between batches: bytes that the queue keeps for the next one, and giving them back. NULL is allowed. */
int64_t picture_queue_kept(const struct picture_queue *queue);
void picture_queue_clear(struct picture_queue *queue);

#endif
