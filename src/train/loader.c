/*
 * One ring of samples serves all: sample g lives in slot g mod length. Workers take the next number while its slot is free,
 * make the sample without holding the lock, and mark the slot ready; the consumer takes slots in order. What a worker finds
 * wrong travels in the slot, so that the consumer reports it at the same place of the stream every time.
 */
#include "train/loader.h"

#include <stdio.h>
#include <string.h>

#include "base/thread.h"
#include "io/image.h"
#include "train/shuffle.h"

/* A picture that could not be read, and why. */
struct unreadable {
    struct unreadable *next;
    int64_t picture;
    char why[sizeof((aim_context *)0)->error];
};

struct slot {
    bool ready;
    aim_image image; /* without pixels: left out, or failed */
    int32_t label;
    struct unreadable *unreadable; /* met on the way to this sample, in order */
    aim_status status;             /* failure of the whole loader */
    char error[sizeof((aim_context *)0)->error];
};

struct loader {
    aim_context *ctx;
    struct loader_options o;
    int64_t end; /* of the stream; INT64_MAX when it is endless */
    int64_t skipped;
    uint8_t *bad; /* per picture: known to be unreadable. Written by the consumer alone, read by all */

    pthread_mutex_t lock;
    pthread_cond_t filled, emptied; /* a slot became ready; a slot became free, or stop */
    int64_t taken, consumed;        /* samples that were begun; that were handed out */
    bool stop;
    int64_t length; /* of the ring */
    struct slot *ring;
    int started; /* threads */
    pthread_t *threads;
};

/* ------------------------------------------------------------------------------------- making one sample */

static bool is_bad(const struct loader *l, int64_t picture)
{
    return __atomic_load_n(&l->bad[picture], __ATOMIC_RELAXED);
}

/* Notes that a picture cannot be read: the message stands in `ctx`. */
static aim_status note_unreadable(aim_context *ctx, struct slot *slot, int64_t picture)
{
    struct unreadable *u = mem_new(ctx, sizeof *u, MEM_MISC), **last = &slot->unreadable;
    if (!u) return AIM_ERR_MEMORY;
    *u = (struct unreadable){.picture = picture};
    memcpy(u->why, ctx->error, sizeof u->why);
    while (*last) last = &(*last)->next;
    *last = u;
    return AIM_OK;
}

/* Reads one picture and augments it for sample g. */
static aim_status read_picture(const struct loader *l, aim_context *ctx, int64_t picture, int64_t g, aim_image *out)
{
    *out = (aim_image){0};
    char *path = dataset_path(l->o.dataset, ctx, picture);
    if (!path) return AIM_ERR_MEMORY;
    aim_image whole;
    aim_status status = aim_image_read(ctx, path, &whole);
    if (status == AIM_OK) status = augment_picture(ctx, &whole, &l->o.augment, l->o.seed, (uint64_t)g, out);
    if (status == AIM_ERR_ARGUMENT) status = aim_fail(ctx, status, "%s: %s", path, ctx->error); /* which names no file */
    aim_image_free(&whole);
    mem_free(path);
    return status;
}

/* The picture at `place` of the epoch that sample g belongs to. */
static int64_t picture_at(const struct loader *l, int64_t g, int64_t place)
{
    int64_t n = l->o.dataset->count;
    if (l->o.ordered) return place;
    return (int64_t)shuffle_at(l->o.seed, (uint64_t)(g / n), (uint64_t)place, (uint64_t)n);
}

/* Sample g, or the ones after it in its epoch when it cannot be read. */
static aim_status find_sample(const struct loader *l, aim_context *ctx, int64_t g, struct slot *slot)
{
    enum { MAX_TRIES = 1000 };
    int64_t n = l->o.dataset->count, tries = l->o.ordered ? 1 : n < MAX_TRIES ? n : MAX_TRIES;
    for (int64_t i = 0; i < tries; i++) {
        int64_t picture = picture_at(l, g, (g + i) % n);
        if (is_bad(l, picture)) continue;
        aim_status status = read_picture(l, ctx, picture, g, &slot->image);
        slot->label = l->o.dataset->pictures[picture].label;
        if (status == AIM_OK || status == AIM_ERR_MEMORY) return status;
        TRY(note_unreadable(ctx, slot, picture));
        if (__atomic_load_n(&l->stop, __ATOMIC_RELAXED)) return AIM_OK;
    }
    if (l->o.ordered) return AIM_OK;
    return aim_fail(ctx, AIM_ERR_FORMAT, "%s%lld pictures%s can be read", tries == n ? "none of the " : "not one of ",
                    (long long)tries, tries == n ? "" : " in a row");
}

static void make_sample(const struct loader *l, aim_context *ctx, int64_t g, struct slot *slot)
{
    slot->status = find_sample(l, ctx, g, slot);
    if (slot->status != AIM_OK) memcpy(slot->error, ctx->error, sizeof slot->error);
}

/* --------------------------------------------------------------------------------------------- threads */

static void *work(void *argument)
{
    struct loader *l = argument;
    aim_context ctx;
    context_init_worker(&ctx, l->ctx);
    pthread_mutex_lock(&l->lock);
    while (!l->stop) {
        if (l->taken == l->end || l->taken - l->consumed == l->length) {
            pthread_cond_wait(&l->emptied, &l->lock);
            continue;
        }
        int64_t g = l->taken++;
        struct slot *slot = &l->ring[g % l->length];
        pthread_mutex_unlock(&l->lock);
        make_sample(l, &ctx, g, slot);
        pthread_mutex_lock(&l->lock);
        slot->ready = true;
        pthread_cond_signal(&l->filled);
    }
    pthread_mutex_unlock(&l->lock);
    return NULL;
}

static aim_status start_threads(struct loader *l)
{
    int failed = 0;
    for (; l->started < l->o.threads && !failed; l->started += !failed) failed = thread_start(&l->threads[l->started], work, l);
    if (failed) return aim_fail(l->ctx, AIM_ERR_IO, "cannot start a thread that reads pictures: %s", strerror(failed));
    return AIM_OK;
}

static void stop_threads(struct loader *l)
{
    pthread_mutex_lock(&l->lock);
    __atomic_store_n(&l->stop, true, __ATOMIC_RELAXED);
    pthread_cond_broadcast(&l->emptied);
    pthread_mutex_unlock(&l->lock);
    for (int i = 0; i < l->started; i++) pthread_join(l->threads[i], NULL);
}

/* ------------------------------------------------------------------------------------------- life and death */

static aim_status check_options(aim_context *ctx, const struct loader_options *o)
{
    enum { MAX_THREADS = 1024, MAX_BATCH = 1 << 24 };
    if (!o->dataset || o->dataset->count < 1) return aim_fail(ctx, AIM_ERR_ARGUMENT, "there are no pictures to load");
    if (o->batch < 1 || o->batch > MAX_BATCH)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "the batch must be 1 to %d, not %lld", MAX_BATCH, (long long)o->batch);
    if (o->threads < 0 || o->threads > MAX_THREADS)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "threads must be 0 to %d, not %d", MAX_THREADS, o->threads);
    if (o->first_step < 0 || o->first_step > INT64_MAX / 2 / o->batch || (o->ordered && o->first_step))
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "pictures cannot be loaded from step %lld on", (long long)o->first_step);
    return AIM_OK;
}

static aim_status create(struct loader *l)
{
    l->taken = l->consumed = l->o.first_step * l->o.batch;
    l->end = l->o.ordered ? l->o.dataset->count : INT64_MAX;
    l->length = 2 * l->o.batch + l->o.threads; /* a batch ready, and the next one on its way */
    l->ring = mem_zero(l->ctx, (size_t)l->length, sizeof *l->ring, MEM_MISC);
    l->bad = mem_zero(l->ctx, (size_t)l->o.dataset->count, 1, MEM_MISC);
    l->threads = mem_array(l->ctx, (size_t)l->o.threads, sizeof *l->threads, MEM_MISC);
    if (!l->ring || !l->bad || !l->threads) return AIM_ERR_MEMORY;
    return start_threads(l);
}

aim_status loader_create(aim_context *ctx, const struct loader_options *options, struct loader **loader)
{
    *loader = NULL;
    TRY(check_options(ctx, options));
    struct loader *l = mem_zero(ctx, 1, sizeof *l, MEM_MISC);
    if (!l) return AIM_ERR_MEMORY;
    l->ctx = ctx;
    l->o = *options;
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->filled, NULL);
    pthread_cond_init(&l->emptied, NULL);
    aim_status status = create(l);
    if (status == AIM_OK)
        *loader = l;
    else
        loader_free(l);
    return status;
}

static void empty_slot(struct slot *slot)
{
    aim_image_free(&slot->image);
    while (slot->unreadable) {
        struct unreadable *next = slot->unreadable->next;
        mem_free(slot->unreadable);
        slot->unreadable = next;
    }
    *slot = (struct slot){0};
}

void loader_free(struct loader *l)
{
    if (!l) return;
    stop_threads(l);
    for (int64_t i = 0; l->ring && i < l->length; i++) empty_slot(&l->ring[i]);
    pthread_cond_destroy(&l->filled);
    pthread_cond_destroy(&l->emptied);
    pthread_mutex_destroy(&l->lock);
    mem_free(l->threads);
    mem_free(l->bad);
    mem_free(l->ring);
    mem_free(l);
}

/* ------------------------------------------------------------------------------------------------ consumer */

/* Waits for sample l->consumed, or makes it when there are no threads. */
static struct slot *wait_for_slot(struct loader *l)
{
    struct slot *slot = &l->ring[l->consumed % l->length];
    if (l->o.threads == 0) {
        aim_context ctx; /* the loader's own keeps its message while unreadable pictures come by */
        context_init_worker(&ctx, l->ctx);
        if (!slot->ready) make_sample(l, &ctx, l->consumed, slot);
        slot->ready = true;
        return slot;
    }
    pthread_mutex_lock(&l->lock);
    while (!slot->ready) pthread_cond_wait(&l->filled, &l->lock);
    pthread_mutex_unlock(&l->lock);
    return slot;
}

static void report_unreadable(struct loader *l, const struct slot *slot)
{
    for (const struct unreadable *u = slot->unreadable; u; u = u->next) {
        if (is_bad(l, u->picture)) continue; /* two samples came to it */
        __atomic_store_n(&l->bad[u->picture], 1, __ATOMIC_RELAXED);
        l->skipped++;
        aim_log(l->ctx, AIM_LOG_WARNING, "skipped: %s", u->why);
    }
}

static void release_slot(struct loader *l, struct slot *slot)
{
    empty_slot(slot);
    pthread_mutex_lock(&l->lock);
    l->consumed++;
    pthread_cond_signal(&l->emptied);
    pthread_mutex_unlock(&l->lock);
}

aim_status loader_picture(struct loader *l, aim_image *image, int32_t *label)
{
    *image = (aim_image){0};
    while (l->consumed < l->end && !image->rgb) {
        struct slot *slot = wait_for_slot(l);
        report_unreadable(l, slot);
        if (slot->status != AIM_OK) return aim_fail(l->ctx, slot->status, "%s", slot->error);
        *image = slot->image;
        *label = slot->label;
        slot->image = (aim_image){0};
        release_slot(l, slot);
    }
    return AIM_OK;
}

/* A batch as pixels or as bytes, whichever there is room for. */
static aim_status next_batch(struct loader *l, float *pixels, uint8_t *pictures, int32_t *labels, int64_t *count)
{
    size_t values = 3 * (size_t)l->o.augment.size * (size_t)l->o.augment.size;
    for (*count = 0; *count < l->o.batch; ++*count) {
        aim_image image;
        TRY(loader_picture(l, &image, &labels[*count]));
        if (!image.rgb) break;
        if (pixels)
            aim_image_to_float(&image, pixels + (size_t)*count * values);
        else
            memcpy(pictures + (size_t)*count * values, image.rgb, values);
        aim_image_free(&image);
    }
    return AIM_OK;
}

aim_status loader_next(struct loader *l, float *pixels, int32_t *labels, int64_t *count)
{
    return next_batch(l, pixels, NULL, labels, count);
}

aim_status loader_next_bytes(struct loader *l, uint8_t *pictures, int32_t *labels, int64_t *count)
{
    return next_batch(l, NULL, pictures, labels, count);
}

int64_t loader_skipped(const struct loader *l)
{
    return l->skipped;
}
