/*
 * Values that a thread asks for some steps before it reads them. They arrive in places of shared memory that are the thread's
 * own, so that it waits for its own copies alone (copy_commit, copy_wait), at no barrier, and they take no registers.
 */
#ifndef AIM_CUDA_AHEAD_CUH
#define AIM_CUDA_AHEAD_CUH

#include "cuda/mma.cuh"
#include "cuda/values.cuh"

/* Starts a copy of V values, or zeros. A single bf16 is copied at once: hardware has no copy that short. */
template <int V, typename T> static __device__ inline void ahead_start(memory_pack<T, V> &to, const T *from, bool wanted)
{
    constexpr int BYTES = V * sizeof(T);
    if constexpr (BYTES % 16 == 0) {
#pragma unroll
        for (int i = 0; i < V; i += 16 / sizeof(T)) copy_start(&to.v[i], from + i, wanted);
    } else if constexpr (BYTES == 8 || BYTES == 4) {
        copy_start_short<BYTES>(&to, from, wanted);
    } else {
        to = load_raw<V>(from, wanted);
    }
}

#endif
