#include "cuda/decode.cuh"

#include <stdio.h>
#include <stdlib.h>

extern "C" {
#include "cuda/cuda.h"
}

aim_status cuda_check(aim_context *ctx, cudaError_t error, const char *what)
{
    if (error == cudaSuccess) return AIM_OK;
    if (error == cudaErrorMemoryAllocation) return aim_fail(ctx, AIM_ERR_MEMORY, "the GPU is out of memory (%s)", what);
    return aim_fail(ctx, AIM_ERR_INTERNAL, "CUDA: %s (%s)", cudaGetErrorString(error), what);
}

/* ------------------------------------------------------------------------------------------------- memory */

/* Twins, which work on threads of their own, share the account. */
static void account(struct cuda *c, int64_t bytes)
{
    struct device_memory *m = c->account;
    int64_t used = __atomic_add_fetch(&m->used, bytes, __ATOMIC_RELAXED), peak = __atomic_load_n(&m->peak, __ATOMIC_RELAXED);
    while (used > peak && !__atomic_compare_exchange_n(&m->peak, &peak, used, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        continue;
}

static void *take(struct backend *be, size_t bytes, enum memory_tag tag)
{
    void *data = NULL;
    (void)tag;
    cudaError_t error = cudaMalloc(&data, bytes ? bytes : 1);
    if (error == cudaErrorMemoryAllocation)
        aim_fail(be->ctx, AIM_ERR_MEMORY, "the GPU is out of memory: %.1f MB more were needed", (double)bytes / 1e6);
    else
        cuda_check(be->ctx, error, "cudaMalloc");
    if (error != cudaSuccess) {
        cudaGetLastError(); /* it has been told: the next launch must not find it */
        return NULL;
    }
    account(cuda_of(be), (int64_t)bytes);
    return data;
}

void cuda_give(struct cuda *c, void *data, size_t bytes)
{
    account(c, -(int64_t)bytes);
    if (data) cudaFree(data);
}

static void give(struct backend *be, void *data, size_t bytes)
{
    cuda_give(cuda_of(be), data, bytes);
}

static aim_status upload(struct backend *be, void *to, const void *host, size_t bytes)
{
    /* From pageable memory the call returns once the source has been read. */
    CUDA_TRY(be, cudaMemcpyAsync(to, host, bytes, cudaMemcpyHostToDevice, cuda_of(be)->stream));
    return AIM_OK;
}

static aim_status download(struct backend *be, void *host, const void *from, size_t bytes)
{
    CUDA_TRY(be, cudaMemcpyAsync(host, from, bytes, cudaMemcpyDeviceToHost, cuda_of(be)->stream));
    CUDA_TRY(be, cudaStreamSynchronize(cuda_of(be)->stream));
    return AIM_OK;
}

static aim_status copy(struct backend *be, void *to, const void *from, size_t bytes)
{
    CUDA_TRY(be, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, cuda_of(be)->stream));
    return AIM_OK;
}

static aim_status zero(struct backend *be, void *data, size_t bytes)
{
    CUDA_TRY(be, cudaMemsetAsync(data, 0, bytes, cuda_of(be)->stream));
    return AIM_OK;
}

static int64_t available(struct backend *be)
{
    size_t free_bytes = 0, total = 0;
    (void)be;
    return cudaMemGetInfo(&free_bytes, &total) == cudaSuccess ? (int64_t)free_bytes : 0;
}

void *cuda_scratch(struct backend *be, size_t bytes)
{
    struct cuda *c = cuda_of(be);
    if (bytes == 0) bytes = 1; /* NULL is for failures */
    if (bytes <= c->scratch_bytes) return c->scratch;
    if (c->scratch) { /* ops that use the old block may still run */
        if (cuda_check(be->ctx, cudaStreamSynchronize(c->stream), "scratch memory") != AIM_OK) return NULL;
        give(be, c->scratch, c->scratch_bytes);
    }
    c->scratch = take(be, bytes, MEM_ACTIVATIONS);
    c->scratch_bytes = c->scratch ? bytes : 0;
    return c->scratch;
}

/* ------------------------------------------------------------------------------------------------- set-up */

static void state_free(void *state)
{
    struct cuda *c = (struct cuda *)state;
    if (c->stream) cudaStreamSynchronize(c->stream);
    cuda_clock_free(c);
    cuda_images_free(c);
    cuda_dense_free(c);
    cuda_give(c, c->scratch, c->scratch_bytes);
    if (c->blas) cublasLtDestroy(c->blas);
    if (c->stream) cudaStreamDestroy(c->stream);
    free(c);
}

static aim_status find_device(struct backend *be, struct cuda *c)
{
    int count = 0;
    cudaError_t error = cudaGetDeviceCount(&count);
    if (error != cudaSuccess || count == 0)
        return aim_fail(be->ctx, AIM_ERR_UNSUPPORTED, "no NVIDIA GPU can be used here (%s)",
                        error != cudaSuccess ? cudaGetErrorString(error) : "none was found");
    if (c->ordinal >= count)
        return aim_fail(be->ctx, AIM_ERR_ARGUMENT, "there is no GPU %d: this machine has %d, numbered from 0", c->ordinal,
                        count);
    CUDA_TRY(be, cudaSetDevice(c->ordinal));
    struct cudaDeviceProp properties;
    CUDA_TRY(be, cudaGetDeviceProperties(&properties, c->ordinal));
    c->multiprocessors = properties.multiProcessorCount;
    c->shared_limit = properties.sharedMemPerBlockOptin;
    if (properties.major < 8)
        return aim_fail(be->ctx, AIM_ERR_UNSUPPORTED, "%s is too old: compute capability 8.0 is needed, it has %d.%d",
                        properties.name, properties.major, properties.minor);
    snprintf(be->ctx->device, sizeof be->ctx->device, "cuda:%d %.90s, %.0f GB", c->ordinal, properties.name,
             (double)properties.totalGlobalMem / 1e9);
    return AIM_OK;
}

/* A thread has a current device, which is the first GPU until it says otherwise. */
static aim_status enter(struct backend *be)
{
    CUDA_TRY(be, cudaSetDevice(cuda_of(be)->ordinal));
    return AIM_OK;
}

static aim_status twin(struct backend *be, aim_context *worker, struct backend **out);

/* Tokens wait for each other, pictures do not: the first backend's kernels go before those of its twin. */
static aim_status create_stream(struct backend *be, struct cuda *c)
{
    int least = 0, greatest = 0;
    bool first = c->account == &be->memory;
    CUDA_TRY(be, cudaDeviceGetStreamPriorityRange(&least, &greatest));
    CUDA_TRY(be, cudaStreamCreateWithPriority(&c->stream, cudaStreamNonBlocking, first ? greatest : least));
    return AIM_OK;
}

/* `elder`: whose twin this will be, or NULL. */
static aim_status attach(struct backend *be, int ordinal, struct backend *elder)
{
    struct cuda *c = (struct cuda *)calloc(1, sizeof *c);
    if (!c) return aim_fail(be->ctx, AIM_ERR_MEMORY, "out of memory");
    c->ctx = be->ctx;
    c->ordinal = ordinal;
    c->account = elder ? cuda_of(elder)->account : &be->memory;
    be->state = c;
    be->state_free = state_free;
    if (be->ctx->threads == 0) be->ctx->threads = 1;
    be->threads = be->ctx->threads;
    be->activation = T_BF16;
    be->overwrites = true;
    be->clock = cuda_clock;
    be->memory.take = take;
    be->memory.give = give;
    be->memory.upload = upload;
    be->memory.download = download;
    be->memory.copy = copy;
    be->memory.zero = zero;
    be->memory.available = available;
    be->twin = twin;
    be->enter = enter;
    be->decoder = &cuda_decoder;
#define OP(name, parameters) be->op.name = cuda_##name;
#include "tensor/ops.def"
#undef OP
    TRY(find_device(be, c));
    TRY(create_stream(be, c));
    if (cublasLtCreate(&c->blas) != CUBLAS_STATUS_SUCCESS)
        return aim_fail(be->ctx, AIM_ERR_UNSUPPORTED, "cuBLASLt cannot be started on this GPU");
    return cuda_images_create(c);
}

aim_status cuda_attach(struct backend *be, int ordinal)
{
    return attach(be, ordinal, NULL);
}

static aim_status twin(struct backend *be, aim_context *worker, struct backend **out)
{
    struct backend *made = *out = (struct backend *)mem_zero(worker, 1, sizeof *made, MEM_MISC);
    if (!made) return AIM_ERR_MEMORY;
    made->ctx = worker;
    return attach(made, cuda_of(be)->ordinal, be);
}
