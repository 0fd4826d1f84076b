/* The distance of two feature maps that LPIPS takes at each of its taps, and its gradient. A warp has a pixel at a time. */
#include "cuda/columns.cuh"

extern "C" {
#include "base/philox.h"
}

enum {
    THREADS = 256,
    CHUNK = 128 /* pixels that a block has, and whose distances it adds up */
};

#define LPIPS_EPS 1e-10f /* added to the length of a pixel's features */

/* The work of a call. */
struct lpips {
    int64_t pixels, C, chunks; /* of one picture */
    const float *w;
    bool drops;
    struct dropout dropout;
};

static struct lpips lpips_of(const struct tensor *a, const struct tensor *w, const struct dropout *dropout)
{
    struct lpips k = {};
    k.pixels = a->shape[1] * a->shape[2];
    k.C = a->shape[3];
    k.chunks = divide_up(k.pixels, CHUNK);
    k.w = f32(w);
    k.drops = dropout != NULL;
    if (dropout) k.dropout = *dropout;
    return k;
}

/* The weight of a channel of a pixel (counted over all pictures), after dropout. */
static __device__ inline float weight_of(const struct lpips &k, int64_t pixel, int64_t c)
{
    if (!k.drops) return k.w[c];
    uint64_t i = (uint64_t)(pixel * k.C + c);
    struct philox4 bits = philox(k.dropout.seed, i / 128, k.dropout.position, PHILOX_DROPOUT);
    int word = (int)(i / 32 % 4);
    uint32_t drawn = word == 0 ? bits.v[0] : word == 1 ? bits.v[1] : word == 2 ? bits.v[2] : bits.v[3];
    return drawn >> (i % 32) & 1 ? 2.0f * k.w[c] : 0.0f;
}

/* ‖a‖, 1 / (‖a‖ + eps), 1 / (‖b‖ + eps), in every lane */
struct lengths {
    float length, scale_a, scale_b;
};

template <typename T> static __device__ inline struct lengths lengths_of(const T *a, const T *b, int64_t C)
{
    float squares_a = 0, squares_b = 0;
    for (int64_t c = threadIdx.x % WARP; c < C; c += WARP) {
        squares_a += value(a[c]) * value(a[c]);
        squares_b += value(b[c]) * value(b[c]);
    }
    struct lengths l;
    l.length = sqrtf(warp_sum(squares_a));
    l.scale_a = 1.0f / (l.length + LPIPS_EPS);
    l.scale_b = 1.0f / (sqrtf(warp_sum(squares_b)) + LPIPS_EPS);
    return l;
}

/* sums (picture, chunk); blockIdx is (chunk, picture) */
template <typename T>
static __global__ void __launch_bounds__(THREADS) distances(const T *a, const T *b, struct lpips k, double *sums)
{
    __shared__ double room[WARP];
    int64_t first = blockIdx.x * (int64_t)CHUNK, end = first + CHUNK < k.pixels ? first + CHUNK : k.pixels;
    float sum = 0;
    for (int64_t p = first + threadIdx.x / WARP; p < end; p += THREADS / WARP) {
        int64_t pixel = blockIdx.y * k.pixels + p;
        const T *of_a = a + pixel * k.C, *of_b = b + pixel * k.C;
        struct lengths l = lengths_of(of_a, of_b, k.C);
        for (int64_t c = threadIdx.x % WARP; c < k.C; c += WARP) {
            float gap = value(of_a[c]) * l.scale_a - value(of_b[c]) * l.scale_b;
            sum += weight_of(k, pixel, c) * gap * gap;
        }
    }
    double total = block_sum_double((double)sum, room);
    if (threadIdx.x == 0) sums[blockIdx.y * k.chunks + blockIdx.x] = total;
}

/* A block has a picture. */
static __global__ void __launch_bounds__(THREADS) finish_distances(const double *sums, struct lpips k, float *distance)
{
    __shared__ double room[WARP];
    double sum = 0;
    for (int64_t i = threadIdx.x; i < k.chunks; i += THREADS) sum += sums[blockIdx.x * k.chunks + i];
    sum = block_sum_double(sum, room);
    if (threadIdx.x == 0) distance[blockIdx.x] = (float)(sum / (double)k.pixels);
}

aim_status cuda_lpips_distance(struct backend *be, const struct tensor *a, const struct tensor *b, const struct tensor *w,
                               const struct dropout *dropout, struct tensor *distance)
{
    struct lpips k = lpips_of(a, w, dropout);
    int64_t N = a->shape[0];
    double *sums = (double *)cuda_scratch(be, (size_t)(N * k.chunks) * sizeof(double));
    if (!sums) return AIM_ERR_MEMORY;
    cudaStream_t stream = cuda_of(be)->stream;
    by_type(a, [&](auto zero) {
        using T = decltype(zero);
        distances<<<dim3((unsigned)k.chunks, (unsigned)N), THREADS, 0, stream>>>(data_of<T>(a), data_of<T>(b), k, sums);
    });
    finish_distances<<<(unsigned)N, THREADS, 0, stream>>>(sums, k, f32(distance));
    return cuda_launched(be, "lpips_distance");
}

/* With s = ‖a‖ and g = 2 up w (â - b̂): da = g / (s + eps) - a (g·a) / (s (s + eps)²); blockIdx is (chunk, picture) */
template <typename T>
static __global__ void __launch_bounds__(THREADS)
    add_gradient(const T *a, const T *b, struct lpips k, const float *ddistance, bool fresh, T *da)
{
    int64_t first = blockIdx.x * (int64_t)CHUNK, end = first + CHUNK < k.pixels ? first + CHUNK : k.pixels;
    float up = ddistance[blockIdx.y] / (float)k.pixels;
    for (int64_t p = first + threadIdx.x / WARP; p < end; p += THREADS / WARP) {
        int64_t pixel = blockIdx.y * k.pixels + p;
        const T *of_a = a + pixel * k.C, *of_b = b + pixel * k.C;
        struct lengths l = lengths_of(of_a, of_b, k.C);
        if (l.length == 0 && !fresh) continue;
        float along = 0;
        for (int64_t c = threadIdx.x % WARP; c < k.C; c += WARP) {
            float x = value(of_a[c]);
            along += weight_of(k, pixel, c) * (x * l.scale_a - value(of_b[c]) * l.scale_b) * x;
        }
        float scale = 2.0f * up * l.scale_a, back = l.length > 0 ? warp_sum(along) * l.scale_a / l.length : 0.0f;
        for (int64_t c = threadIdx.x % WARP; c < k.C; c += WARP) {
            float x = value(of_a[c]);
            float slope =
                l.length == 0 ? 0.0f : weight_of(k, pixel, c) * (x * l.scale_a - value(of_b[c]) * l.scale_b) - x * back;
            T *to = da + pixel * k.C + c;
            put(to, fresh ? scale * slope : value(*to) + scale * slope);
        }
    }
}

aim_status cuda_lpips_distance_backward(struct backend *be, const struct tensor *a, const struct tensor *b,
                                        const struct tensor *w, const struct dropout *dropout, const struct tensor *ddistance,
                                        struct tensor *da)
{
    struct lpips k = lpips_of(a, w, dropout);
    bool fresh = take_fresh(be, da);
    by_type(a, [&](auto zero) {
        using T = decltype(zero);
        dim3 grid((unsigned)k.chunks, (unsigned)a->shape[0]);
        add_gradient<<<grid, THREADS, 0, cuda_of(be)->stream>>>(data_of<T>(a), data_of<T>(b), k, f32(ddistance), fresh,
                                                                data_of<T>(da));
    });
    return cuda_launched(be, "lpips_distance_backward");
}
