/* Where the persistent kernel's cycles go, for benchmarks: a block's first thread counts, or nothing does and costs nothing. */
#ifndef AIM_CUDA_DECODE_METER_CUH
#define AIM_CUDA_DECODE_METER_CUH

extern "C" {
#include "cuda/meter.h"
}

enum { METER_BYTES = 128 }; /* of shared memory, with what alignment adds */

struct no_meter {
    __device__ inline void start()
    {
    }

    __device__ inline void mark(enum meter_kind)
    {
    }

    __device__ inline void finish(unsigned long long *)
    {
    }
};

/* Clocks are of 32 bits: a phase is far shorter than that. Sums lie in shared memory: registers are for the work. */
struct meter {
    unsigned last;

    static __device__ inline unsigned *sums()
    {
        static __shared__ unsigned cycles[METER_KINDS];
        return cycles;
    }

    __device__ inline void start()
    {
        if (threadIdx.x < METER_KINDS) sums()[threadIdx.x] = 0;
        __syncthreads();
        last = (unsigned)clock64();
    }

    /* What has passed since the last mark was of this kind. */
    __device__ inline void mark(enum meter_kind kind)
    {
        if (threadIdx.x) return;
        unsigned now = (unsigned)clock64();
        sums()[kind] += now - last;
        last = now;
    }

    /* Adds to meter (blocks, METER_KINDS). */
    __device__ inline void finish(unsigned long long *meter)
    {
        if (threadIdx.x < METER_KINDS) __syncwarp(__activemask());
        if (threadIdx.x < METER_KINDS) meter[blockIdx.x * METER_KINDS + threadIdx.x] += sums()[threadIdx.x];
    }
};

#endif
