/*
 * The optimizer: the norm of all gradients and AdamW, many tensors in one launch. The tensors' addresses travel with the
 * launch in a table; a block takes a chunk of one of them.
 */
#include "cuda/dense.cuh"
#include "cuda/values.cuh"

#include <math.h>

enum {
    MATRIX = 1 << 20 /* values of a matrix whose gradient is not cleared but fresh */,
    THREADS = 256,
    CHUNK = 1 << 13,
    TABLE = 40 /* tensors a launch: kernel parameters must stay below 4 KB */
};

/* Which tensor a block works on, and which values of it. */
struct place {
    int tensor;
    int64_t from, end;
};

/* Tensors of n[0], n[1], ... values; tensor i's first chunk is number first[i]. */
struct chunk_table {
    int count;
    int64_t n[TABLE];
    unsigned first[TABLE + 1];
};

static __device__ struct place place_of(const struct chunk_table &t, unsigned chunk)
{
    struct place p = {0, 0, 0};
    while (t.first[p.tensor + 1] <= chunk) p.tensor++;
    p.from = (int64_t)(chunk - t.first[p.tensor]) * CHUNK;
    p.end = p.from + CHUNK < t.n[p.tensor] ? p.from + CHUNK : t.n[p.tensor];
    return p;
}

/* Appends a tensor of n values. */
static void chunk_table_add(struct chunk_table *t, int64_t n)
{
    t->n[t->count] = n;
    t->first[t->count + 1] = t->first[t->count] + (unsigned)divide_up(n, CHUNK);
    t->count++;
}

/* -------------------------------------------------------------------------------------------------------- norm */

struct norm_table {
    struct chunk_table chunks;
    const float *x[TABLE];
};

static __device__ double block_sum_double(double x)
{
    __shared__ double shared[THREADS / WARP];
#pragma unroll
    for (int gap = WARP / 2; gap > 0; gap /= 2) x += __shfl_xor_sync(0xffffffffu, x, gap);
    if (threadIdx.x % WARP == 0) shared[threadIdx.x / WARP] = x;
    __syncthreads();
    x = 0;
    for (int w = 0; w < THREADS / WARP; w++) x += shared[w];
    return x;
}

/* sums[chunk] = Σ x²: short float sums, added up in double */
static __global__ void sum_squares(const __grid_constant__ struct norm_table table, double *sums)
{
    struct place p = place_of(table.chunks, blockIdx.x);
    const float *x = table.x[p.tensor];
    bool wide = (uintptr_t)x % 16 == 0;
    float sum = 0;
    int64_t whole = wide ? p.from + (p.end - p.from) / 4 * 4 : p.from;
#pragma unroll 4
    for (int64_t i = p.from + threadIdx.x * 4; i < whole; i += THREADS * 4) {
        pack<4> a = load<4>(x + i);
        sum += a.v[0] * a.v[0] + a.v[1] * a.v[1] + a.v[2] * a.v[2] + a.v[3] * a.v[3];
    }
    for (int64_t i = whole + threadIdx.x; i < p.end; i += THREADS) sum += x[i] * x[i];
    double all = block_sum_double((double)sum);
    if (threadIdx.x == 0) sums[blockIdx.x] = all;
}

static __global__ void root_of_sums(const double *sums, int64_t n, float *norm)
{
    double sum = 0;
    for (int64_t i = threadIdx.x; i < n; i += THREADS) sum += sums[i];
    sum = block_sum_double(sum);
    if (threadIdx.x == 0) *norm = (float)sqrt(sum);
}

aim_status cuda_norm(struct backend *be, struct tensor *const *list, int64_t count, struct tensor *norm)
{
    int64_t chunks = 0, done = 0;
    for (int64_t i = 0; i < count; i++) chunks += divide_up(tensor_count(list[i]), CHUNK);
    double *sums = (double *)cuda_scratch(be, (size_t)chunks * sizeof(double));
    if (!sums) return AIM_ERR_MEMORY;
    for (int64_t i = 0; i < count;) {
        struct norm_table table = {};
        for (; i < count && table.chunks.count < TABLE; i++) {
            table.x[table.chunks.count] = f32(list[i]);
            chunk_table_add(&table.chunks, tensor_count(list[i]));
        }
        unsigned blocks = table.chunks.first[table.chunks.count];
        if (blocks > 0) sum_squares<<<blocks, THREADS, 0, cuda_of(be)->stream>>>(table, sums + done);
        done += blocks;
    }
    root_of_sums<<<1, THREADS, 0, cuda_of(be)->stream>>>(sums, chunks, f32(norm));
    return cuda_launched(be, "norm");
}

/* ------------------------------------------------------------------------------------------------------- AdamW */

struct slot {
    float *w, *dw, *m, *v, *ema;
    bf16 *copy; /* of w; NULL where there is none */
    bool clears, decays;
};

/* What is the same for all values; keep: [1] for slots that decay. */
struct coefficients {
    double clip;
    float keep[2], beta1, beta2, rate, root, eps, ema;
};

struct adamw_table {
    struct chunk_table chunks;
    struct slot slots[TABLE];
    struct coefficients k;
};

static __device__ float largest(double clip, float norm)
{
    double scale = clip > 0 ? clip / ((double)norm + 1e-6) : 1;
    return (float)(scale < 1 ? scale : 1);
}

template <int V>
static __device__ void step_values(const struct slot &s, const struct coefficients &k, float keep, float scale, int64_t i)
{
    pack<V> w = load<V>(s.w + i), g = load<V>(s.dw + i), m = load<V>(s.m + i), v = load<V>(s.v + i);
#pragma unroll
    for (int j = 0; j < V; j++) {
        float gradient = g.v[j] * scale;
        m.v[j] += k.beta1 * (gradient - m.v[j]);
        v.v[j] += k.beta2 * (gradient * gradient - v.v[j]);
        w.v[j] = keep * w.v[j] - k.rate * m.v[j] / (sqrtf(v.v[j]) * k.root + k.eps);
    }
    store<V>(s.w + i, w);
    store<V>(s.m + i, m);
    store<V>(s.v + i, v);
    if (s.clears) store<V>(s.dw + i, zeros<V>());
    if (s.copy) store<V>(s.copy + i, w);
    if (!s.ema) return;
    pack<V> ema = load<V>(s.ema + i);
#pragma unroll
    for (int j = 0; j < V; j++) ema.v[j] += k.ema * (w.v[j] - ema.v[j]);
    store<V>(s.ema + i, ema);
}

static __global__ void step_chunks(const __grid_constant__ struct adamw_table table, const float *norm)
{
    struct place p = place_of(table.chunks, blockIdx.x);
    const struct slot s = table.slots[p.tensor];
    if (!isfinite(*norm)) {
        for (int64_t i = p.from + threadIdx.x; s.clears && i < p.end; i += THREADS) s.dw[i] = 0;
        return;
    }
    float keep = table.k.keep[s.decays], scale = largest(table.k.clip, *norm);
    bool wide =
        ((uintptr_t)s.w | (uintptr_t)s.dw | (uintptr_t)s.m | (uintptr_t)s.v | (uintptr_t)s.ema | (uintptr_t)s.copy) % 16 == 0;
    int64_t whole = wide ? p.from + (p.end - p.from) / 4 * 4 : p.from;
    for (int64_t i = p.from + threadIdx.x * 4; i < whole; i += THREADS * 4) step_values<4>(s, table.k, keep, scale, i);
    for (int64_t i = whole + threadIdx.x; i < p.end; i += THREADS) step_values<1>(s, table.k, keep, scale, i);
}

static struct coefficients coefficients_of(const struct adamw *how)
{
    double step = (double)how->step, first = 1 - pow(how->beta1, step), second = 1 - pow(how->beta2, step);
    struct coefficients k = {};
    k.clip = how->clip;
    k.keep[0] = 1, k.keep[1] = (float)(1 - how->lr * how->decay);
    k.beta1 = (float)(1 - how->beta1), k.beta2 = (float)(1 - how->beta2);
    k.rate = (float)(how->lr / first), k.root = (float)(1 / sqrt(second));
    k.eps = (float)how->eps, k.ema = (float)(1 - how->ema_decay);
    return k;
}

aim_status cuda_adamw(struct backend *be, const struct adamw_slot *slots, int64_t count, const struct adamw *how,
                      const struct tensor *norm)
{
    for (int64_t i = 0; i < count;) {
        struct adamw_table table = {};
        table.k = coefficients_of(how);
        for (; i < count && table.chunks.count < TABLE; i++) {
            const struct adamw_slot *s = &slots[i];
            int at = table.chunks.count;
            bool clears = s->w->ndim != 2 || tensor_count(s->w) < MATRIX;
            table.slots[at] = {f32(s->w), f32(s->dw), f32(s->m), f32(s->v), data_of<float>(s->ema), cuda_kept_bf16(s->w),
                               clears,    s->decays};
            if (!clears) s->dw->fresh = {0, tensor_cols(s->dw)};
            chunk_table_add(&table.chunks, tensor_count(s->w));
        }
        unsigned blocks = table.chunks.first[table.chunks.count];
        if (blocks > 0) step_chunks<<<blocks, THREADS, 0, cuda_of(be)->stream>>>(table, f32(norm));
    }
    return cuda_launched(be, "adamw");
}
