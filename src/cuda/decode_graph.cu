/* One token for many streams: a chain of kernels and cuBLASLt products, made to be captured in a CUDA graph. */
#include "cuda/decode.cuh"

enum { NORM_THREADS = 256, CB_THREADS = 256, HEAD_THREADS = 128, SAMPLE_THREADS = 1024 };

template <typename X> static __global__ void norm_kernel(const __grid_constant__ struct decode_view a, int l)
{
    extern __shared__ float4 shared[];
    __shared__ float red[32], factor[1];
    int r = blockIdx.x;
    norm_rows<X>(a, l, *a.t, r, 1, a.r[0], a.r[0], 0, 1, (float *)shared, red, factor, (X *)a.m + (int64_t)r * a.d, a.d);
}

template <typename X> static __global__ void products_kernel(const __grid_constant__ struct decode_view a, int l)
{
    __shared__ __align__(16) float bc[2 * DECODE_STATE];
    history_products<X>(a, l, blockIdx.x, *a.t, true, bc, a.cb + (int64_t)blockIdx.x * a.T);
}

template <typename X> static __global__ void head_kernel(const __grid_constant__ struct decode_view a, int l)
{
    extern __shared__ float4 shared[];
    float *work = (float *)shared, *decays = work + HEAD_SHARED;
    int r = blockIdx.y, h = blockIdx.x, t = *a.t;
    head_begin<X>(a, l, r, h, t, 0, decays, work);
    __syncthreads();
    head_finish<X>(a, l, r, h, t, a.cb + (int64_t)r * a.T, decays, work);
}

static __global__ void sample_kernel(const __grid_constant__ struct decode_view a)
{
    __shared__ struct sample_shared shared;
    sample_picture(a, blockIdx.x, *a.t, &shared);
}

static __global__ void advance_kernel(int *t)
{
    *t += 1;
}

template <typename X>
static aim_status step(struct backend *be, const struct decode_view *a, const struct decode_products *p,
                       const struct decode_layer *layers, cudaStream_t stream)
{
    unsigned R = (unsigned)a->R;
    size_t norm_shared = (size_t)a->d * sizeof(float), head_shared = (HEAD_SHARED + (size_t)a->T) * sizeof(float);
    for (int l = 0; l < a->layers; l++) {
        norm_kernel<X><<<R, NORM_THREADS, norm_shared, stream>>>(*a, l);
        TRY(product_run(be, &p->in, a->m, layers[l].in_proj, a->zxbcdt, p->workspace, stream));
        products_kernel<X><<<R, CB_THREADS, 0, stream>>>(*a, l);
        head_kernel<X><<<dim3((unsigned)a->H, R), HEAD_THREADS, head_shared, stream>>>(*a, l);
        TRY(product_run(be, &p->out, a->v, layers[l].out_proj, a->h, p->workspace, stream));
    }
    norm_kernel<X><<<R, NORM_THREADS, norm_shared, stream>>>(*a, a->layers);
    TRY(product_run(be, &p->head, a->m, a->words, a->logits, p->workspace, stream));
    sample_kernel<<<(unsigned)a->pictures, SAMPLE_THREADS, 0, stream>>>(*a);
    advance_kernel<<<1, 1, 0, stream>>>(a->t);
    return cuda_launched(be, "a decoding step");
}

aim_status decode_graph_step(struct backend *be, const struct decode_view *a, bool is_bf16, const struct decode_products *p,
                             const struct decode_layer *layers, cudaStream_t stream)
{
    return is_bf16 ? step<bf16>(be, a, p, layers, stream) : step<float>(be, a, p, layers, stream);
}
