/* Copies from global to shared memory that a thread starts and waits for later. */
#ifndef AIM_CUDA_COPIES_CUH
#define AIM_CUDA_COPIES_CUH

#include <stdint.h>

/* Starts a copy of 16 bytes to shared memory, or zeros there; copies are waited for in groups. */
static __device__ inline void copy_start(void *shared, const void *from, bool wanted)
{
    uint32_t address = (uint32_t)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(wanted ? 16 : 0) : "memory");
}

/* A policy of the second-level cache: what is read under it is the first to leave. */
static __device__ inline uint64_t policy_once()
{
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

/* copy_start under a policy. */
static __device__ inline void copy_start_once(void *shared, const void *from, bool wanted, uint64_t policy)
{
    uint32_t address = (uint32_t)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2, %3;" ::"r"(address), "l"(from),
                 "r"(wanted ? 16 : 0), "l"(policy)
                 : "memory");
}

/* Starts a copy of 4 or 8 bytes to shared memory, or zeros there. */
template <int BYTES> static __device__ inline void copy_start_short(void *shared, const void *from, bool wanted)
{
    uint32_t address = (uint32_t)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(from), "n"(BYTES), "r"(wanted ? BYTES : 0)
                 : "memory");
}

static __device__ inline void copy_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Until at most N of the groups committed last are under way. */
template <int N> static __device__ inline void copy_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

#endif
