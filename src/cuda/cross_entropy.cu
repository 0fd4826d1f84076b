/* The loss of a row of logits: a block a row, in float32 whatever the type of the logits. */
#include "cuda/values.cuh"

enum { THREADS = 256 };

/* A maximum, and the sum of exp(x - maximum) over the values it was taken from. */
struct exponents {
    float top, sum;
};

static __device__ exponents join(exponents a, exponents b)
{
    float top = fmaxf(a.top, b.top);
    if (top == -INFINITY) return {top, 0};
    return {top, a.sum * __expf(a.top - top) + b.sum * __expf(b.top - top)};
}

/* Of a whole row, to every thread. */
template <int V, typename T> static __device__ exponents row_exponents(const T *row, int64_t n)
{
    __shared__ exponents shared[THREADS / WARP];
    exponents mine = {-INFINITY, 0};
    for (int64_t i = (int64_t)threadIdx.x * V; i < n; i += THREADS * V) {
        pack<V> x = load<V>(row + i);
        float top = mine.top, sum = 0;
#pragma unroll
        for (int k = 0; k < V; k++) top = fmaxf(top, x.v[k]);
        if (top == -INFINITY) continue;
#pragma unroll
        for (int k = 0; k < V; k++) sum += __expf(x.v[k] - top);
        mine = {top, mine.sum * __expf(mine.top - top) + sum};
    }
#pragma unroll
    for (int gap = WARP / 2; gap > 0; gap /= 2) {
        exponents other = {__shfl_xor_sync(0xffffffffu, mine.top, gap), __shfl_xor_sync(0xffffffffu, mine.sum, gap)};
        mine = threadIdx.x & gap ? join(other, mine) : join(mine, other); /* one order in both, and so the same bits */
    }
    if (threadIdx.x % WARP == 0) shared[threadIdx.x / WARP] = mine;
    __syncthreads();
    mine = shared[0];
    for (int w = 1; w < THREADS / WARP; w++) mine = join(mine, shared[w]);
    return mine;
}

template <int V, typename T> static __global__ void losses(const T *logits, const int32_t *target, int64_t n, float *loss)
{
    const T *row = logits + (int64_t)blockIdx.x * n;
    exponents e = row_exponents<V>(row, n);
    if (threadIdx.x == 0) loss[blockIdx.x] = e.top - value(row[target[blockIdx.x]]) + logf(e.sum);
}

aim_status cuda_cross_entropy(struct backend *be, const struct tensor *logits, const struct tensor *target, struct tensor *loss)
{
    int64_t M = tensor_rows(logits), n = tensor_cols(logits);
    by_type(logits, [&](auto zero) {
        using T = decltype(zero);
        by_width<8>(n % 8 == 0 && aligned(logits), [&](auto w) {
            constexpr int V = decltype(w)::value;
            losses<V, T><<<(unsigned)M, THREADS, 0, cuda_of(be)->stream>>>(data_of<T>(logits), i32(target), n, f32(loss));
        });
    });
    return cuda_launched(be, "cross_entropy");
}

/* dlogits += (softmax(logits) - onehot(target)) dloss; fresh: = */
template <int V, typename T>
static __global__ void loss_gradients(const T *logits, const int32_t *target, int64_t n, const float *dloss, bool fresh,
                                      T *dlogits)
{
    const T *row = logits + (int64_t)blockIdx.x * n;
    T *out = dlogits + (int64_t)blockIdx.x * n;
    exponents e = row_exponents<V>(row, n);
    float scale = dloss[blockIdx.x], share = scale / e.sum;
    int64_t wanted = target[blockIdx.x];
    for (int64_t i = (int64_t)threadIdx.x * V; i < n; i += THREADS * V) {
        pack<V> x = load<V>(row + i);
#pragma unroll
        for (int k = 0; k < V; k++) x.v[k] = share * __expf(x.v[k] - e.top) - (i + k == wanted ? scale : 0.0f);
        if (fresh)
            store<V>(out + i, x);
        else
            store_add<V>(out + i, x);
    }
}

aim_status cuda_cross_entropy_backward(struct backend *be, const struct tensor *logits, const struct tensor *target,
                                       const struct tensor *dloss, struct tensor *dlogits)
{
    int64_t M = tensor_rows(logits), n = tensor_cols(logits);
    bool fresh = take_fresh(be, dlogits);
    by_type(logits, [&](auto zero) {
        using T = decltype(zero);
        by_width<8>(n % 8 == 0 && aligned(logits) && aligned(dlogits), [&](auto w) {
            constexpr int V = decltype(w)::value;
            loss_gradients<V, T><<<(unsigned)M, THREADS, 0, cuda_of(be)->stream>>>(data_of<T>(logits), i32(target), n,
                                                                                   f32(dloss), fresh, data_of<T>(dlogits));
        });
    });
    return cuda_launched(be, "cross_entropy_backward");
}
