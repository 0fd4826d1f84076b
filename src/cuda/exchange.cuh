/*
 * How the blocks of one kernel speak to each other through device memory, and how they read weights ahead.
 *
 * A word is 32 bits of value beside the number of the step that wrote it, stored and loaded as one. Whoever needs a value
 * reads its word until the number is the expected one: value and news arrive in the same load, and nobody needs a fence or
 * a barrier. (NCCL's "LL" protocol.) A packet is the same with 12 bytes of value. Either may be written anew once its writer
 * knows that all have read it.
 */
#ifndef AIM_CUDA_EXCHANGE_CUH
#define AIM_CUDA_EXCHANGE_CUH

#include "cuda/device.cuh"

typedef unsigned long long word;

static __device__ inline void word_store(word *to, unsigned value, unsigned step)
{
    word w = (word)step << 32 | value;
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(w) : "memory");
}

static __device__ inline word word_read(const word *from)
{
    word w;
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(w) : "l"(from) : "memory");
    return w;
}

/* Two words, each whole by itself; 16-byte aligned. */
static __device__ inline ulonglong2 words_read(const word *from)
{
    ulonglong2 w;
    asm volatile("ld.relaxed.gpu.global.v2.u64 {%0, %1}, [%2];" : "=l"(w.x), "=l"(w.y) : "l"(from) : "memory");
    return w;
}

/* A packet, whole: values in x, y, z, the step in w; 16-byte aligned. */
static __device__ inline uint4 packet_read(const uint4 *from)
{
    uint4 p;
    asm volatile("{\n\t"
                 ".reg .b128 t;\n\t"
                 ".reg .b64 low, high;\n\t"
                 "ld.relaxed.gpu.global.b128 t, [%4];\n\t"
                 "mov.b128 {low, high}, t;\n\t"
                 "mov.b64 {%0, %1}, low;\n\t"
                 "mov.b64 {%2, %3}, high;\n\t"
                 "}"
                 : "=r"(p.x), "=r"(p.y), "=r"(p.z), "=r"(p.w)
                 : "l"(from)
                 : "memory");
    return p;
}

static __device__ inline void packet_store(uint4 *to, uint4 p)
{
    asm volatile("{\n\t"
                 ".reg .b128 t;\n\t"
                 ".reg .b64 low, high;\n\t"
                 "mov.b64 low, {%1, %2};\n\t"
                 "mov.b64 high, {%3, %4};\n\t"
                 "mov.b128 t, {low, high};\n\t"
                 "st.relaxed.gpu.global.b128 [%0], t;\n\t"
                 "}" ::"l"(to),
                 "r"(p.x), "r"(p.y), "r"(p.z), "r"(p.w)
                 : "memory");
}

/* Four floats, cut to 24 bits, as the values of a packet, and back. */
static __device__ inline uint4 pack4(float4 v, unsigned step)
{
    unsigned a = __float_as_uint(v.x), b = __float_as_uint(v.y), c = __float_as_uint(v.z), d = __float_as_uint(v.w);
    return make_uint4(__byte_perm(a, b, 0x5321), __byte_perm(b, c, 0x6532), __byte_perm(c, d, 0x7653), step);
}

static __device__ inline float4 unpack4(uint4 p)
{
    return make_float4(__uint_as_float(p.x << 8), __uint_as_float(__byte_perm(p.x, p.y, 0x5430) & ~0xffu),
                       __uint_as_float(__byte_perm(p.y, p.z, 0x4320) & ~0xffu), __uint_as_float(p.z & ~0xffu));
}

static __device__ inline bool word_is_of(word w, unsigned step)
{
    return (unsigned)(w >> 32) == step;
}

static __device__ inline float word_float(word w)
{
    return __uint_as_float((unsigned)w);
}

static __device__ inline word word_wait(const word *from, unsigned step)
{
    word w;
    do w = word_read(from);
    while (!word_is_of(w, step));
    return w;
}

/* A word that also hands over everything its writer's block did before, and a count that does the same. */
static __device__ inline void word_release(word *to, unsigned value, unsigned step)
{
    word w = (word)step << 32 | value;
    asm volatile("st.release.gpu.global.u64 [%0], %1;" ::"l"(to), "l"(w) : "memory");
}

static __device__ inline unsigned word_acquire(const word *from, unsigned step)
{
    word w;
    do asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(w) : "l"(from) : "memory");
    while (!word_is_of(w, step));
    return (unsigned)w;
}

static __device__ inline void count_release(unsigned *count)
{
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(count) : "memory");
}

static __device__ inline void count_acquire(const unsigned *count, unsigned goal)
{
    unsigned seen;
    do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(count) : "memory");
    while (seen < goal);
}

/*
 * The number of a thread, or what else stays the same, without the compiler knowing it: in a long kernel it would else keep all
 * that follows from it in registers, and put away what they are needed for.
 */
static __device__ inline int anew(int x)
{
    int y;
    asm volatile("mov.b32 %0, %1;" : "=r"(y) : "r"(x));
    __builtin_assume(y >= 0);
    return y;
}

/* --------------------------------------------------------------------------------------------- reading ahead */

/*
 * A barrier in shared memory, 8 bytes: a phase ends when `count` threads have arrived and announced copies are there. Phases
 * are even and odd in turn.
 */
static __device__ inline void phase_start(unsigned barrier, int count)
{
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

/* By whoever has called phase_start, before a barrier of the block. */
static __device__ inline void phases_started(void)
{
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

static __device__ inline void phase_arrive(unsigned barrier)
{
    asm volatile("{\n\t"
                 ".reg .b64 state;\n\t"
                 "mbarrier.arrive.shared.b64 state, [%0];\n\t"
                 "}" ::"r"(barrier)
                 : "memory");
}

/* Until the phase of this parity is over. */
static __device__ inline void phase_wait(unsigned barrier, unsigned parity)
{
    unsigned done;
    do
        asm volatile("{\n\t"
                     ".reg .pred over;\n\t"
                     "mbarrier.try_wait.parity.shared.b64 over, [%1], %2;\n\t"
                     "selp.u32 %0, 1, 0, over;\n\t"
                     "}"
                     : "=r"(done)
                     : "r"(barrier), "r"(parity)
                     : "memory");
    while (!done);
}

/* Arrives, and the phase now also waits for so many bytes. */
static __device__ inline void phase_expect(unsigned barrier, int bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

/* Copies to shared memory, by an engine of its own: no other access to memory waits behind it. In multiples of 16 bytes. */
static __device__ inline void bulk_copy(unsigned to, const void *from, int bytes, unsigned barrier, uint64_t policy)
{
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(to),
        "l"(from), "r"(bytes), "r"(barrier), "l"(policy)
        : "memory");
}

/* What this thread has written comes before the copies that are started once others know of it. */
static __device__ inline void bulk_fence(void)
{
    asm volatile("fence.proxy.async;" ::: "memory");
}

/* From here on this warp, and those of its four that start at a multiple of four, have COUNT registers a thread: those who give
 * some back, and those who take more. */
template <int COUNT> static __device__ inline void registers_give(void)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
#endif
}

template <int COUNT> static __device__ inline void registers_take(void)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
#endif
}

/* Barrier ID of some of the block's warps, THREADS threads in all: for those who go on, and for those who wait. */
template <int ID, int THREADS> static __device__ inline void barrier_arrive(void)
{
    asm volatile("bar.arrive %0, %1;" ::"n"(ID), "n"(THREADS) : "memory");
}

template <int ID, int THREADS> static __device__ inline void barrier_wait(void)
{
    asm volatile("bar.sync %0, %1;" ::"n"(ID), "n"(THREADS) : "memory");
}

static __device__ inline unsigned shared_address(const void *p)
{
    return (unsigned)__cvta_generic_to_shared(p);
}

static __device__ inline void shared_load(uint32_t (&v)[4], unsigned address)
{
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                 : "r"(address)
                 : "memory");
}

static __device__ inline uint2 shared_load2(unsigned address)
{
    uint2 v;
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(address) : "memory");
    return v;
}

#endif
