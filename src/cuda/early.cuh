/*
 * Kernels that follow each other on a stream and start early: while the one in front ends, the next one's blocks take the
 * multiprocessors that become free and load what does not depend on it. The rules:
 *
 *     before wait_for_the_one_before    nothing is written, and nothing is read that the kernel in front writes;
 *     let_the_next_one_start            comes after it, so that what is older than the kernel in front is there.
 *
 * GPUs before Hopper run such kernels one after the other.
 */
#ifndef AIM_CUDA_EARLY_CUH
#define AIM_CUDA_EARLY_CUH

#include "cuda/device.cuh"

static __device__ inline void wait_for_the_one_before()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* It does when all blocks have said so. */
static __device__ inline void let_the_next_one_start()
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/* One thread asks for `bytes` to be in the second-level cache soon; address and size are multiples of 16. */
static __device__ inline void ask_for(const void *from, int64_t bytes)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (bytes > 0)
        asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(__cvta_generic_to_global(from)), "r"((unsigned)bytes)
                     : "memory");
#else
    (void)from;
    (void)bytes;
#endif
}

/* Block `block`'s share of what all blocks of the grid ask for together, `share` bytes of it each. By one thread. */
static __device__ inline void ask_for_share(const void *from, int64_t bytes, int64_t share, int64_t block)
{
    int64_t first = block * share;
    if (first < bytes) ask_for((const char *)from + first, share < bytes - first ? share : bytes - first);
}

/* All these kernels want as much of a multiprocessor's memory as can be shared: blocks of two kernels run beside each other
 * only where both divide it alike. */
template <typename... Parameters, typename... Arguments>
static aim_status launch_early(struct backend *be, cudaStream_t stream, void (*kernel)(Parameters...), dim3 grid, int threads,
                               size_t shared, Arguments... arguments)
{
    int major = 0;
    CUDA_TRY(be, cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, cuda_of(be)->ordinal));
    CUDA_TRY(be, cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared));
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3((unsigned)threads);
    config.dynamicSmemBytes = shared;
    config.stream = stream;
    config.attrs = &early;
    config.numAttrs = major >= 9 ? 1 : 0;
    return cuda_check(be->ctx, cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...), "launching a kernel");
}

#endif
