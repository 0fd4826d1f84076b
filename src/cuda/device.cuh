/*
 * What the CUDA kernels share: the device's state, scratch memory, error checks. Every op runs in order on one stream and
 * returns without waiting for it; only a download waits.
 */
#ifndef AIM_CUDA_DEVICE_CUH
#define AIM_CUDA_DEVICE_CUH

#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

extern "C" {
#include "tensor/backend.h"
#include "tensor/ssd_cache.h"
}

typedef __nv_bfloat16 bf16;

struct cuda {
    aim_context *ctx;
    int ordinal, multiprocessors;
    size_t shared_limit;           /* bytes of shared memory a block may ask for */
    struct device_memory *account; /* where `used` and `peak` stand: a twin's are its elder's */
    cudaStream_t stream;
    cublasLtHandle_t blas;
    void *dnn;      /* cudnnHandle_t; NULL in a build without cuDNN */
    bool dnn_alone; /* AIM_CUDA_CONV=cudnn: it has all convolutions in bfloat16, for comparison */
    void *products; /* what dense.cu keeps: plans by shape */
    void *images;   /* what the convolutions keep: plans by shape */
    void *marks;    /* what clock.cu keeps */
    void *scratch;
    size_t scratch_bytes;
    void *meter; /* counts of meter.h; NULL: nobody asks for them */
};

static inline struct cuda *cuda_of(struct backend *be)
{
    return (struct cuda *)be->state;
}

/* AIM_OK, or the message with CUDA's own words; `what` names the op. */
aim_status cuda_check(aim_context *ctx, cudaError_t error, const char *what);

/* The same for the launches of an op. */
static inline aim_status cuda_launched(struct backend *be, const char *op)
{
    return cuda_check(be->ctx, cudaGetLastError(), op);
}

#define CUDA_TRY(be, call) TRY(cuda_check((be)->ctx, (call), #call))

/* be->memory.give for what is freed with the state; NULL (of 0 bytes) is allowed. */
void cuda_give(struct cuda *c, void *data, size_t bytes);

/*
 * Memory for the time of one op, 256-byte aligned: the ops of a stream follow each other, so one block serves all. NULL with
 * the message set when the device is full. A second call invalidates what the first one gave.
 */
void *cuda_scratch(struct backend *be, size_t bytes);

/* Blocks of `threads` for n elements, at most a few waves of them: kernels stride over the rest. */
static inline unsigned cuda_blocks(const struct backend *be, int64_t n, int threads)
{
    int64_t blocks = (n + threads - 1) / threads, most = 16 * (int64_t)((const struct cuda *)be->state)->multiprocessors;
    return (unsigned)(blocks < 1 ? 1 : blocks < most ? blocks : most);
}

/* Set up and torn down by cuda_attach; in dense.cu, convolution.cu, clock.cu. */
void cuda_dense_free(struct cuda *c);
aim_status cuda_images_create(struct cuda *c);
void cuda_images_free(struct cuda *c);
extern const struct device_clock cuda_clock;
void cuda_clock_free(struct cuda *c);

extern "C" {
#define OP(name, parameters) aim_status cuda_##name parameters;
#include "tensor/ops.def"
#undef OP
}

#endif
