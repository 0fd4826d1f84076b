/*
 * Tensor cores: products of bf16 fragments held by a warp. Lane = 4 g + q holds of
 *     a (16,16): rows g, g+8, columns 2q, 2q+1 and 8 more;   b (16,8): rows 2q, 2q+1 and 8 more, column g;
 *     c (16,8): rows g, g+8, columns 2q, 2q+1.
 */
#ifndef AIM_CUDA_MMA_CUH
#define AIM_CUDA_MMA_CUH

#include "cuda/copies.cuh"
#include "cuda/device.cuh"

/* c += a b */
static __device__ inline void mma(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Four 8x8 matrices from shared memory; lane i gives the address of row i%8 of matrix i/8. */
static __device__ inline void load_matrices(uint32_t (&to)[4], const bf16 *row)
{
    uint32_t address = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
}

/* The same, each matrix transposed. */
static __device__ inline void load_matrices_transposed(uint32_t (&to)[4], const bf16 *row)
{
    uint32_t address = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(address)
                 : "memory");
}

/* Two values as one register of a fragment: x in the lower half. */
static __device__ inline uint32_t pair_of(float x, float y)
{
    __nv_bfloat162 both = __floats2bfloat162_rn(x, y);
    return *reinterpret_cast<uint32_t *>(&both);
}

static __device__ inline float2 floats_of(uint32_t both)
{
    return make_float2(__uint_as_float(both << 16), __uint_as_float(both & 0xffff0000u));
}

#endif
