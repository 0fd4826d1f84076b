#include "model/picture_queue.h"

#include "base/thread.h"

int64_t model_together(const aim_model *m, int64_t rows, int64_t columns, int shares)
{
    enum { FULL = 32 };
    struct backend *be = m->ctx->backend;
    if (be->memory.host) return 1;
    int64_t n = FULL, each = vq_activation_bytes(&m->config.vq, rows, columns), room = be->memory.available(be) / shares;
    while (n > 1 && n * each > room) n /= 2;
    return n;
}

/* Whether pictures are decoded in bf16: where matrices are that or less, on a device whose activations may be; a step of 255
 * from float32 on average. Codes are never chosen so. */
static bool decodes_in_bf16(const aim_model *m)
{
    const struct backend *be = m->ctx->backend;
    return (m->weights == AIM_WEIGHTS_BF16 || m->weights == AIM_WEIGHTS_Q8) && !be->memory.host && be->activation == T_BF16;
}

aim_status model_decode(const aim_model *m, struct exec *ex, const int32_t *ids, int64_t n, int64_t rows, int64_t columns,
                        float *pixels)
{
    bool bf16 = ex->backend->bf16;
    ex->status = AIM_OK;
    struct tensor *codes = tensor_from_host(ex, T_I32, SHAPE(n * rows * columns), ids);
    ex->backend->bf16 = decodes_in_bf16(m);
    struct tensor *pictures = vq_decode(ex, m->vq, codes, n, rows, columns);
    ex->backend->bf16 = bf16;
    tensor_read(ex, pictures, pixels);
    tensor_drop(codes);
    tensor_drop(pictures);
    return ex->status;
}

/* -------------------------------------------------------------------------------------------------- the queue */

struct picture_queue {
    aim_model *model;
    struct exec *ex;        /* where the tokenizer runs: the model's, or the twin's */
    int64_t together, side; /* pictures decoded in one go, 0 while undecided; pixels */
    float *pixels;          /* (together, or room when that is less; 3, side, side) */
    aim_image *images;      /* (room): made and not taken yet */
    int64_t room;           /* of the largest batch so far */
    int64_t taken;

    /* What the thread and the caller share, behind the lock; the caller alone uses it where there is no thread. */
    const int32_t *ids;
    int64_t count, made;
    aim_status status; /* of the thread; its message is the worker's */
    bool working, stop;

    bool beside; /* there is a thread */
    aim_context worker;
    struct backend *twin;
    struct exec own;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t changed;
};

/* The next pictures of the batch, from `first` on; returns how many these are. */
static int64_t next_group(const struct picture_queue *q, int64_t first)
{
    return q->count - first < q->together ? q->count - first : q->together;
}

static aim_status make(struct picture_queue *q, int64_t first, int64_t n)
{
    const struct ar_config *c = &q->model->config.ar;
    int grid = ar_grid(c), side = (int)q->side;
    TRY(model_decode(q->model, q->ex, q->ids + first * c->num_tokens, n, grid, grid, q->pixels));
    for (int64_t i = 0; i < n; i++) {
        TRY(aim_image_create(q->ex->ctx, side, side, &q->images[first + i]));
        aim_image_from_float(q->pixels + i * 3 * q->side * q->side, &q->images[first + i]);
    }
    return AIM_OK;
}

static void *work(void *queue)
{
    struct picture_queue *q = queue;
    aim_status entered = q->twin->enter ? q->twin->enter(q->twin) : AIM_OK;
    pthread_mutex_lock(&q->lock);
    while (!q->stop) {
        if (q->made == q->count || q->status != AIM_OK) {
            pthread_cond_wait(&q->changed, &q->lock);
            continue;
        }
        int64_t first = q->made, n = next_group(q, first);
        q->working = true;
        pthread_mutex_unlock(&q->lock);
        aim_status status = entered == AIM_OK ? make(q, first, n) : entered;
        pthread_mutex_lock(&q->lock);
        q->working = false;
        q->status = status;
        if (status == AIM_OK && q->count > 0) q->made += n; /* 0: cancelled */
        pthread_cond_broadcast(&q->changed);
    }
    pthread_mutex_unlock(&q->lock);
    return NULL;
}

/* The twin and its thread. */
static aim_status go_beside(struct picture_queue *q)
{
    aim_context *ctx = q->model->ctx;
    context_init_worker(&q->worker, ctx);
    aim_status status = ctx->backend->twin(ctx->backend, &q->worker, &q->twin);
    if (status != AIM_OK) return aim_fail(ctx, status, "%s", q->worker.error);
    q->worker.backend = q->twin;
    exec_init(&q->own, &q->worker);
    q->ex = &q->own;
    q->beside = thread_start(&q->thread, work, q) == 0;
    return q->beside ? AIM_OK : aim_fail(ctx, AIM_ERR_UNSUPPORTED, "the system gives no thread to decode pictures with");
}

aim_status picture_queue_create(aim_model *m, struct picture_queue **out)
{
    struct picture_queue *q = *out = mem_zero(m->ctx, 1, sizeof *q, MEM_MISC);
    if (!q) return AIM_ERR_MEMORY;
    q->model = m;
    q->ex = &m->ex;
    q->side = (int64_t)ar_grid(&m->config.ar) * vq_downsample(&m->config.vq);
    pthread_mutex_init(&q->lock, NULL);
    pthread_cond_init(&q->changed, NULL);
    return m->ctx->backend->twin ? go_beside(q) : AIM_OK;
}

static void drop_room(struct picture_queue *q)
{
    mem_free(q->images);
    mem_free(q->pixels);
    q->images = NULL;
    q->pixels = NULL;
    q->room = 0;
}

void picture_queue_free(struct picture_queue *q)
{
    if (!q) return;
    if (q->beside) {
        picture_queue_cancel(q);
        pthread_mutex_lock(&q->lock);
        q->stop = true;
        pthread_cond_broadcast(&q->changed);
        pthread_mutex_unlock(&q->lock);
        pthread_join(q->thread, NULL);
    }
    picture_queue_clear(q);
    backend_free(q->twin);
    pthread_cond_destroy(&q->changed);
    pthread_mutex_destroy(&q->lock);
    mem_free(q);
}

bool picture_queue_beside(const struct picture_queue *q)
{
    return q->beside;
}

/* Room for a batch of n; that of the last one is of no use where it is smaller. */
static aim_status reserve(struct picture_queue *q, int64_t n)
{
    aim_context *ctx = q->model->ctx;
    int grid = ar_grid(&q->model->config.ar);
    if (q->together == 0) q->together = model_together(q->model, grid, grid, q->beside ? 2 : 1); /* tokens want theirs */
    if (n <= q->room) return AIM_OK;
    drop_room(q);
    int64_t some = n < q->together ? n : q->together;
    q->images = mem_zero(ctx, (size_t)n, sizeof *q->images, MEM_IMAGE);
    q->pixels = mem_array(ctx, (size_t)(some * 3 * q->side * q->side), sizeof *q->pixels, MEM_IMAGE);
    if (!q->images || !q->pixels) return AIM_ERR_MEMORY;
    q->room = n;
    return AIM_OK;
}

aim_status picture_queue_begin(struct picture_queue *q, const int32_t *ids, int64_t n)
{
    TRY(reserve(q, n));
    pthread_mutex_lock(&q->lock);
    q->ids = ids;
    q->count = n;
    q->made = q->taken = 0;
    q->status = AIM_OK;
    pthread_cond_broadcast(&q->changed);
    pthread_mutex_unlock(&q->lock);
    return AIM_OK;
}

/* Whether a picture is ready for the caller, which may wait for it; *status is the thread's when there is none. */
static bool look(struct picture_queue *q, bool wait, aim_status *status)
{
    pthread_mutex_lock(&q->lock);
    while (wait && q->made == q->taken && q->status == AIM_OK) pthread_cond_wait(&q->changed, &q->lock);
    bool ready = q->made > q->taken;
    *status = ready ? AIM_OK : q->status;
    pthread_mutex_unlock(&q->lock);
    return ready;
}

/* The same without a thread. */
static bool look_alone(struct picture_queue *q, bool wait, aim_status *status)
{
    *status = AIM_OK;
    if (wait && q->made == q->taken) {
        int64_t n = next_group(q, q->made);
        *status = make(q, q->made, n);
        if (*status == AIM_OK) q->made += n;
    }
    return q->made > q->taken;
}

aim_status picture_queue_take(struct picture_queue *q, bool wait, aim_image *image)
{
    aim_status status;
    *image = (aim_image){0};
    if ((q->beside ? look : look_alone)(q, wait, &status)) {
        *image = q->images[q->taken];
        q->images[q->taken++] = (aim_image){0};
    }
    if (status == AIM_OK || !q->beside) return status;
    return aim_fail(q->model->ctx, status, "%s", q->worker.error);
}

void picture_queue_cancel(struct picture_queue *q)
{
    pthread_mutex_lock(&q->lock);
    q->count = q->made = q->taken = 0;
    while (q->working) pthread_cond_wait(&q->changed, &q->lock);
    pthread_mutex_unlock(&q->lock);
    for (int64_t i = 0; i < q->room; i++) aim_image_free(&q->images[i]);
}

int64_t picture_queue_kept(const struct picture_queue *q)
{
    return q && q->beside ? exec_idle_bytes(q->ex) : 0; /* the model's own exec is no part of the queue */
}

void picture_queue_clear(struct picture_queue *q)
{
    if (!q) return;
    drop_room(q);
    if (q->beside) exec_clear(q->ex);
    q->together = 0;
}
