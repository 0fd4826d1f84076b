/* The marks that a profile puts between ops (tensor/profile.h): events of the stream, made once and used again. */
#include "cuda/device.cuh"

#include <stdlib.h>

struct marks {
    cudaEvent_t *events;
    int64_t count, capacity;
};

static aim_status grow(struct backend *be, struct marks *m, int64_t count)
{
    if (count > m->capacity) {
        int64_t capacity = 2 * count < 4096 ? 4096 : 2 * count;
        cudaEvent_t *events = (cudaEvent_t *)realloc(m->events, (size_t)capacity * sizeof *events);
        if (!events) return aim_fail(be->ctx, AIM_ERR_MEMORY, "out of memory");
        m->events = events;
        m->capacity = capacity;
    }
    for (; m->count < count; m->count++) CUDA_TRY(be, cudaEventCreate(&m->events[m->count]));
    return AIM_OK;
}

static aim_status mark(struct backend *be, int64_t i)
{
    struct cuda *c = cuda_of(be);
    if (!c->marks) c->marks = calloc(1, sizeof(struct marks));
    struct marks *m = (struct marks *)c->marks;
    if (!m) return aim_fail(be->ctx, AIM_ERR_MEMORY, "out of memory");
    TRY(grow(be, m, i + 1));
    CUDA_TRY(be, cudaEventRecord(m->events[i], c->stream));
    return AIM_OK;
}

static aim_status between(struct backend *be, int64_t from, int64_t to, double *seconds)
{
    const struct marks *m = (const struct marks *)cuda_of(be)->marks;
    float ms = 0;
    CUDA_TRY(be, cudaEventSynchronize(m->events[from]));
    CUDA_TRY(be, cudaEventSynchronize(m->events[to]));
    CUDA_TRY(be, cudaEventElapsedTime(&ms, m->events[from], m->events[to]));
    *seconds = 1e-3 * (double)ms;
    return AIM_OK;
}

void cuda_clock_free(struct cuda *c)
{
    struct marks *m = (struct marks *)c->marks;
    if (!m) return;
    for (int64_t i = 0; i < m->count; i++) cudaEventDestroy(m->events[i]);
    free(m->events);
    free(m);
}

const struct device_clock cuda_clock = {mark, between};
