/*
 * Dense products through cuBLASLt: linear and its backward, and products of batches for other ops. An algorithm is chosen
 * once for a shape and kept. Products of float32 tensors are true float32 unless the backend is in its bf16 mode.
 */
#include "cuda/dense.cuh"

#include <stdlib.h>
#include <string.h>

#include "cuda/values.cuh"

enum : size_t { WORKSPACE = (size_t)32 << 20 };

/* What a choice of algorithm depends on; compared as bytes. */
struct plan_key {
    int64_t rows, cols, inner, batch, lda, stride_a, ldb, stride_b, ldc, stride_c;
    int64_t in, out, a_transposed, b_transposed, alignment;
};

struct plan {
    struct plan *next;
    struct plan_key key;
    cublasLtMatmulDesc_t how;
    cublasLtMatrixLayout_t a, b, c;
    cublasLtMatmulAlgo_t algorithm;
};

struct products {
    struct plan *plans;
    void *workspace;
};

/* ------------------------------------------------------------------------------------------------------- plans */

static aim_status blas_check(struct backend *be, cublasStatus_t status, const struct plan_key *k)
{
    if (status == CUBLAS_STATUS_SUCCESS) return AIM_OK;
    return aim_fail(be->ctx, AIM_ERR_INTERNAL, "cuBLASLt: %s (a product of %lld x %lld by %lld x %lld)",
                    cublasLtGetStatusString(status), (long long)k->rows, (long long)k->inner, (long long)k->inner,
                    (long long)k->cols);
}

#define BLAS_TRY(call) TRY(blas_check(be, (call), &plan->key))

static void plan_free(struct plan *plan)
{
    if (plan->how) cublasLtMatmulDescDestroy(plan->how);
    if (plan->a) cublasLtMatrixLayoutDestroy(plan->a);
    if (plan->b) cublasLtMatrixLayoutDestroy(plan->b);
    if (plan->c) cublasLtMatrixLayoutDestroy(plan->c);
    free(plan);
}

/* A column-major matrix of `rows` rows for the library. */
static cublasStatus_t layout(cublasLtMatrixLayout_t *made, int64_t type, int64_t rows, int64_t cols, int64_t ld, int64_t batch,
                             int64_t stride)
{
    int32_t count = (int32_t)batch;
    cublasStatus_t status =
        cublasLtMatrixLayoutCreate(made, type == T_BF16 ? CUDA_R_16BF : CUDA_R_32F, (uint64_t)rows, (uint64_t)cols, ld);
    if (status != CUBLAS_STATUS_SUCCESS || batch == 1) return status;
    status = cublasLtMatrixLayoutSetAttribute(*made, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count);
    if (status != CUBLAS_STATUS_SUCCESS) return status;
    return cublasLtMatrixLayoutSetAttribute(*made, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride, sizeof stride);
}

static aim_status choose(struct backend *be, struct plan *plan)
{
    const struct plan_key *k = &plan->key;
    size_t workspace = WORKSPACE;
    uint32_t alignment = (uint32_t)k->alignment;
    cublasLtMatmulHeuristicResult_t found;
    int count = 0;
    cublasLtMatmulPreference_t wish;
    BLAS_TRY(cublasLtMatmulPreferenceCreate(&wish));
    cublasStatus_t status =
        cublasLtMatmulPreferenceSetAttribute(wish, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace);
    uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE; /* parts of a sum are never rounded to the output's type */
    if (status == CUBLAS_STATUS_SUCCESS)
        status = cublasLtMatmulPreferenceSetAttribute(wish, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions,
                                                      sizeof reductions);
    static const cublasLtMatmulPreferenceAttributes_t alignments[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    for (int i = 0; i < 4 && status == CUBLAS_STATUS_SUCCESS; i++)
        status = cublasLtMatmulPreferenceSetAttribute(wish, alignments[i], &alignment, sizeof alignment);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = cublasLtMatmulAlgoGetHeuristic(cuda_of(be)->blas, plan->how, plan->a, plan->b, plan->c, plan->c, wish, 1,
                                                &found, &count);
    cublasLtMatmulPreferenceDestroy(wish);
    BLAS_TRY(status);
    BLAS_TRY(count == 1 ? found.state : CUBLAS_STATUS_NOT_SUPPORTED);
    plan->algorithm = found.algo;
    return AIM_OK;
}

/* A row-major matrix is the library's column-major transpose: it is asked for cᵀ = bᵀ aᵀ. */
static aim_status plan_make(struct backend *be, struct plan *plan)
{
    const struct plan_key *k = &plan->key;
    cublasOperation_t first = k->b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N, second = k->a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N;
    BLAS_TRY(cublasLtMatmulDescCreate(&plan->how, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    BLAS_TRY(cublasLtMatmulDescSetAttribute(plan->how, CUBLASLT_MATMUL_DESC_TRANSA, &first, sizeof first));
    BLAS_TRY(cublasLtMatmulDescSetAttribute(plan->how, CUBLASLT_MATMUL_DESC_TRANSB, &second, sizeof second));
    BLAS_TRY(layout(&plan->a, k->in, k->b_transposed ? k->inner : k->cols, k->b_transposed ? k->cols : k->inner, k->ldb,
                    k->batch, k->stride_b));
    BLAS_TRY(layout(&plan->b, k->in, k->a_transposed ? k->rows : k->inner, k->a_transposed ? k->inner : k->rows, k->lda,
                    k->batch, k->stride_a));
    BLAS_TRY(layout(&plan->c, k->out, k->cols, k->rows, k->ldc, k->batch, k->stride_c));
    return choose(be, plan);
}

static aim_status plan_find(struct backend *be, struct products *all, const struct plan_key *key, struct plan **out)
{
    for (struct plan *plan = all->plans; plan; plan = plan->next)
        if (memcmp(&plan->key, key, sizeof *key) == 0) {
            *out = plan;
            return AIM_OK;
        }
    struct plan *plan = (struct plan *)calloc(1, sizeof *plan);
    if (!plan) return aim_fail(be->ctx, AIM_ERR_MEMORY, "out of memory");
    plan->key = *key;
    aim_status status = plan_make(be, plan);
    if (status != AIM_OK) {
        plan_free(plan);
        return status;
    }
    plan->next = all->plans;
    *out = all->plans = plan;
    return AIM_OK;
}

static aim_status products_of(struct backend *be, struct products **out)
{
    struct cuda *c = cuda_of(be);
    struct products *all = (struct products *)c->products;
    if (!all) {
        all = (struct products *)calloc(1, sizeof *all);
        if (!all) return aim_fail(be->ctx, AIM_ERR_MEMORY, "out of memory");
        c->products = all;
    }
    if (!all->workspace) all->workspace = be->memory.take(be, WORKSPACE, MEM_ACTIVATIONS);
    *out = all;
    return all->workspace ? AIM_OK : AIM_ERR_MEMORY;
}

void cuda_dense_free(struct cuda *c)
{
    struct products *all = (struct products *)c->products;
    if (!all) return;
    for (struct plan *plan = all->plans, *next; plan; plan = next) {
        next = plan->next;
        plan_free(plan);
    }
    cuda_give(c, all->workspace, all->workspace ? (size_t)WORKSPACE : 0);
    free(all);
    c->products = NULL;
}

/* The largest power of two, at most 16, that divides all addresses and distances in bytes. */
static int64_t alignment_of(const struct cuda_product *p)
{
    uintptr_t in = tensor_type_size(p->in), out = tensor_type_size(p->out), all = 16;
    all |= (uintptr_t)p->a.data | (uintptr_t)p->b.data | (uintptr_t)p->c;
    all |= in * (uintptr_t)(p->a.ld | p->b.ld | p->a.stride | p->b.stride) | out * (uintptr_t)(p->ldc | p->stride_c);
    return (int64_t)(all & (~all + 1));
}

aim_status cuda_multiply(struct backend *be, const struct cuda_product *p)
{
    struct products *all = NULL;
    struct plan *plan = NULL;
    if (p->rows == 0 || p->cols == 0) return AIM_OK;
    TRY(products_of(be, &all));
    struct plan_key key = {p->rows,         p->cols,
                           p->inner,        p->batch,
                           p->a.ld,         p->batch > 1 ? p->a.stride : 0,
                           p->b.ld,         p->batch > 1 ? p->b.stride : 0,
                           p->ldc,          p->batch > 1 ? p->stride_c : 0,
                           p->in,           p->out,
                           p->a.transposed, p->b.transposed,
                           alignment_of(p)};
    TRY(plan_find(be, all, &key, &plan));
    float one = 1, kept = p->add ? 1.0f : 0.0f;
    return blas_check(be,
                      cublasLtMatmul(cuda_of(be)->blas, plan->how, &one, p->b.data, plan->a, p->a.data, plan->b, &kept, p->c,
                                     plan->c, p->c, plan->c, &plan->algorithm, all->workspace, WORKSPACE, cuda_of(be)->stream),
                      &key);
}

/* ---------------------------------------------------------------------------------------- conversions of operands */

struct kept_copy {
    struct backend *be;
    bf16 *data;
    size_t bytes;
};

static void kept_free(void *converted)
{
    struct kept_copy *copy = (struct kept_copy *)converted;
    copy->be->memory.give(copy->be, copy->data, copy->bytes);
    free(copy);
}

template <int V, typename From, typename To> static __global__ void convert(const From *from, int64_t n, To *to)
{
    int64_t step = (int64_t)gridDim.x * blockDim.x;
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n / V; i += step)
        store<V>(to + i * V, load<V>(from + i * V));
}

template <typename From, typename To> static void convert_all(struct backend *be, const From *from, int64_t n, To *to)
{
    by_width<8>(n % 8 == 0 && ((uintptr_t)from | (uintptr_t)to) % 16 == 0, [&](auto w) {
        constexpr int V = decltype(w)::value;
        convert<V><<<cuda_blocks(be, n / V, 256), 256, 0, cuda_of(be)->stream>>>(from, n, to);
    });
}

void cuda_round(struct backend *be, const float *from, int64_t n, bf16 *to)
{
    convert_all(be, from, n, to);
}

static bool lasts(const struct tensor *w)
{
    return !w->pool && (w->constant || w->needs_grad);
}

const bf16 *cuda_weights_bf16(struct backend *be, const struct tensor *w, bf16 *room)
{
    int64_t n = tensor_count(w);
    if (w->type == T_BF16) return (const bf16 *)w->data;
    if (!lasts(w)) {
        if (room) cuda_round(be, f32(w), n, room);
        return room;
    }
    struct tensor *owner = (struct tensor *)(uintptr_t)w; /* a cache: the tensor's value does not change */
    if (w->converted && w->converted_free == kept_free) return ((struct kept_copy *)w->converted)->data;
    cuda_kept_bf16(owner);
    struct kept_copy *copy = (struct kept_copy *)malloc(sizeof *copy);
    if (!copy) return NULL;
    *copy = {be, NULL, (size_t)n * sizeof(bf16)};
    copy->data = (bf16 *)be->memory.take(be, copy->bytes, MEM_WEIGHTS);
    if (!copy->data) {
        free(copy);
        return NULL;
    }
    cuda_round(be, f32(w), n, copy->data);
    owner->converted = copy;
    owner->converted_free = kept_free;
    return copy->data;
}

bf16 *cuda_kept_bf16(struct tensor *w)
{
    if (w->converted && w->converted_free == kept_free) return ((struct kept_copy *)w->converted)->data;
    if (w->converted) w->converted_free(w->converted);
    w->converted = NULL;
    return NULL;
}

/* ---------------------------------------------------------------------------------------------------- the ops */

/* Bytes that an operand's conversion takes in the scratch memory. */
static size_t room_for(const struct tensor *t, enum tensor_type type)
{
    return t && t->type != type ? ((size_t)tensor_count(t) * tensor_type_size(type) + 255) / 256 * 256 : 0;
}

/* The tensor's values in `type`; *room moves past what was used of it. */
static const void *operand(struct backend *be, const struct tensor *t, enum tensor_type type, char **room)
{
    char *to = *room;
    if (t->type == type) return t->data;
    *room += room_for(t, type);
    if (type == T_BF16)
        cuda_round(be, f32(t), tensor_count(t), (bf16 *)to);
    else
        convert_all(be, (const bf16 *)t->data, tensor_count(t), (float *)to);
    return to;
}

static enum tensor_type product_type(const struct backend *be, const struct tensor *x)
{
    return be->bf16 || x->type == T_BF16 ? T_BF16 : T_F32;
}

/* Scratch for converting x, w and dy (which may be NULL), and w itself in the type of products. */
static aim_status prepare(struct backend *be, const struct tensor *x, const struct tensor *w, const struct tensor *dy,
                          char **room, const void **weights)
{
    enum tensor_type type = product_type(be, x);
    bool kept = type == T_BF16 && lasts(w);
    size_t bytes = room_for(x, type) + (kept ? 0 : room_for(w, type)) + room_for(dy, type);
    *room = bytes ? (char *)cuda_scratch(be, bytes) : NULL;
    if (bytes && !*room) return AIM_ERR_MEMORY;
    *weights = kept ? cuda_weights_bf16(be, w, NULL) : operand(be, w, type, room);
    return *weights ? cuda_launched(be, "linear") : aim_fail(be->ctx, AIM_ERR_MEMORY, "the GPU has no room for bf16 weights");
}

template <int V, typename T> static __global__ void add_bias(T *y, const float *bias, int64_t n, int64_t cols)
{
    int64_t step = (int64_t)gridDim.x * blockDim.x * V;
    for (int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * V; i < n; i += step)
        store_add<V>(y + i, load<V>(bias + i % cols));
}

aim_status cuda_linear(struct backend *be, const struct tensor *x, const struct tensor *w, const struct tensor *bias,
                       struct tensor *y)
{
    int64_t M = tensor_rows(x), K = tensor_cols(x), N = w->shape[0], n = M * N;
    enum tensor_type type = product_type(be, x);
    char *room;
    const void *weights;
    TRY(prepare(be, x, w, NULL, &room, &weights));
    struct cuda_operand a = {operand(be, x, type, &room), K, 0, false}, b = {weights, K, 0, true};
    struct cuda_product product = {type, y->type, M, N, K, 1, a, b, y->data, N, 0, false};
    TRY(cuda_multiply(be, &product));
    if (!bias || n == 0) return cuda_launched(be, "linear");
    by_type(y, [&](auto zero) {
        using T = decltype(zero);
        by_width<8>(N % 8 == 0 && aligned(y) && aligned(bias), [&](auto across) {
            constexpr int V = decltype(across)::value;
            add_bias<V><<<cuda_blocks(be, n / V, 256), 256, 0, cuda_of(be)->stream>>>(data_of<T>(y), f32(bias), n, N);
        });
    });
    return cuda_launched(be, "linear");
}

/* dx += dy w; dw += dyᵀ x; dbias += Σ_m dy */
aim_status cuda_linear_backward(struct backend *be, const struct tensor *x, const struct tensor *w, const struct tensor *dy,
                                struct tensor *dx, struct tensor *dw, struct tensor *dbias)
{
    int64_t M = tensor_rows(x), K = tensor_cols(x), N = w->shape[0];
    enum tensor_type type = product_type(be, x);
    char *room;
    const void *weights;
    TRY(prepare(be, x, w, dy, &room, &weights));
    const void *up = operand(be, dy, type, &room);
    if (dx) {
        struct cuda_operand a = {up, N, 0, false}, b = {weights, K, 0, false};
        struct cuda_product product = {type, dx->type, M, K, N, 1, a, b, dx->data, K, 0, !take_fresh(be, dx)};
        TRY(cuda_multiply(be, &product));
    }
    if (dw) {
        struct cuda_operand a = {up, N, 0, true}, b = {operand(be, x, type, &room), K, 0, false};
        struct cuda_product product = {type, T_F32, N, K, M, 1, a, b, dw->data, K, 0, !take_fresh(be, dw)};
        TRY(cuda_multiply(be, &product));
    }
    TRY(cuda_launched(be, "linear_backward"));
    return dbias ? cuda_sum_matrix_rows(be, dy, f32(dbias)) : AIM_OK;
}
