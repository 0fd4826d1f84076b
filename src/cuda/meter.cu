/* The host's part of counting the persistent decoder's cycles. */
#include "cuda/device.cuh"

extern "C" {
#include "cuda/meter.h"
}

static size_t meter_bytes(const struct cuda *c)
{
    return (size_t)c->multiprocessors * METER_KINDS * sizeof(unsigned long long);
}

aim_status cuda_meter_start(struct backend *be)
{
    struct cuda *c = cuda_of(be);
    c->meter = be->memory.take(be, meter_bytes(c), MEM_MISC);
    return c->meter ? be->memory.zero(be, c->meter, meter_bytes(c)) : AIM_ERR_MEMORY;
}

aim_status cuda_meter_stop(struct backend *be, unsigned long long **cycles, int *blocks)
{
    struct cuda *c = cuda_of(be);
    *blocks = c->multiprocessors;
    *cycles = (unsigned long long *)mem_zero(be->ctx, 1, meter_bytes(c), MEM_MISC);
    aim_status status = *cycles ? be->memory.download(be, *cycles, c->meter, meter_bytes(c)) : AIM_ERR_MEMORY;
    be->memory.give(be, c->meter, meter_bytes(c));
    c->meter = NULL;
    if (status == AIM_OK) return AIM_OK;
    mem_free(*cycles);
    *cycles = NULL;
    return status;
}
