/* The ops of the table that only decoding uses, each by itself; decoder.cu runs whole steps in fewer kernels. */
#include "cuda/decode.cuh"
#include "cuda/decode_rows.cuh"
#include "cuda/q8.cuh"

enum { THREADS = 256, STEP_THREADS = 128, DRAW_THREADS = 1024 };

/* -------------------------------------------------------------------------------------------------- packed products */

/* Packed matrices are plain row-major ones here; the padding rows are zero. */
template <typename From, typename To>
static __global__ void pack_kernel(const From *w, To *packed, int64_t count, int64_t padded)
{
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < padded; i += (int64_t)gridDim.x * blockDim.x)
        from_float(i < count ? to_float(w[i]) : 0.0f, packed + i);
}

template <typename From> static void pack(struct backend *be, const struct tensor *w, struct tensor *packed)
{
    int64_t padded = (int64_t)(tensor_bytes(packed->type, packed->ndim, packed->shape) / tensor_type_size(packed->type));
    unsigned blocks = cuda_blocks(be, padded, THREADS);
    cudaStream_t stream = cuda_of(be)->stream;
    const From *from = (const From *)w->data;
    if (packed->type == T_BF16_PACKED)
        pack_kernel<<<blocks, THREADS, 0, stream>>>(from, (bf16 *)packed->data, tensor_count(w), padded);
    else
        pack_kernel<<<blocks, THREADS, 0, stream>>>(from, (float *)packed->data, tensor_count(w), padded);
}

aim_status cuda_pack(struct backend *be, const struct tensor *w, struct tensor *packed)
{
    if (packed->type == T_Q8_PACKED) return cuda_q8_pack(be, w, packed);
    if (w->type == T_BF16)
        pack<bf16>(be, w, packed);
    else
        pack<float>(be, w, packed);
    return cuda_launched(be, "pack");
}

template <typename From, typename To> static __global__ void convert_kernel(const From *x, To *y, int64_t count)
{
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < count; i += (int64_t)gridDim.x * blockDim.x)
        from_float(to_float(x[i]), y + i);
}

/* x in the type of the weights: as it is, or converted into `room`. */
static const void *matching(struct backend *be, const struct tensor *x, bool is_bf16, void *room)
{
    int64_t count = tensor_count(x);
    unsigned blocks = cuda_blocks(be, count, THREADS);
    cudaStream_t stream = cuda_of(be)->stream;
    if ((x->type == T_BF16) == is_bf16) return x->data;
    if (is_bf16)
        convert_kernel<<<blocks, THREADS, 0, stream>>>((const float *)x->data, (bf16 *)room, count);
    else
        convert_kernel<<<blocks, THREADS, 0, stream>>>((const bf16 *)x->data, (float *)room, count);
    return room;
}

/* The largest power of two, up to PRODUCT_ALIGNMENT, that divides all three addresses. */
static uint32_t common_alignment(const void *a, const void *b, const void *c)
{
    uintptr_t bits = (uintptr_t)a | (uintptr_t)b | (uintptr_t)c | PRODUCT_ALIGNMENT;
    return (uint32_t)(bits & (~bits + 1));
}

/* Whether the kernel for a hundred rows serves: it reads 16 bytes at a time. */
static bool suits_rows(const void *x, const void *w, const void *y, int64_t M, int64_t K)
{
    return M <= ROWS_MOST && K % 8 == 0 && common_alignment(x, w, y) >= 16;
}

aim_status cuda_linear_packed(struct backend *be, const struct tensor *x, const struct tensor *w, struct tensor *y)
{
    if (w->type == T_Q8_PACKED) return cuda_q8_product(be, x, w, y);
    bool is_bf16 = w->type == T_BF16_PACKED;
    int64_t M = tensor_rows(x), K = tensor_cols(x), N = w->shape[0];
    char *scratch = (char *)cuda_scratch(be, PRODUCT_WORKSPACE + (size_t)(M * K) * sizeof(float));
    if (!scratch) return AIM_ERR_MEMORY;
    const void *input = matching(be, x, is_bf16, scratch + PRODUCT_WORKSPACE);
    TRY(cuda_launched(be, "linear_packed"));
    if (is_bf16 && suits_rows(input, w->data, y->data, M, K)) {
        struct rows_product rows = {(const bf16 *)input, (const bf16 *)w->data, f32(y), (int)M, (int)N, (int)K, 1, false};
        return rows_multiply(be, &rows, cuda_of(be)->stream);
    }
    struct decode_product product;
    aim_status status = product_create(be, is_bf16, M, N, K, common_alignment(input, w->data, y->data), &product);
    if (status == AIM_OK) status = product_run(be, &product, input, w->data, f32(y), scratch, cuda_of(be)->stream);
    product_free(&product);
    return status;
}

/* ------------------------------------------------------------------------------------------------- the mixer's steps */

static __global__ void conv_step_kernel(const float *zxbcdt, const float *w, const float *bias, float *state, float *y,
                                        int64_t R, int64_t C, int64_t W, int64_t E)
{
    int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x, r = i / C, c = i % C;
    if (i >= R * C) return;
    enum { PAST = CONV_WIDTH - 1 };
    float *past = state + r * PAST * C + c, x = zxbcdt[r * W + E + c], sum = bias[c];
    const float *tap = w + c * CONV_WIDTH;
    for (int k = 0; k < PAST; k++) {
        sum += tap[k] * past[k * C];
        if (k > 0) past[(k - 1) * C] = past[k * C];
    }
    sum += tap[PAST] * x;
    past[(PAST - 1) * C] = x;
    y[i] = silu(sum);
}

aim_status cuda_causal_conv1d_silu_step(struct backend *be, const struct tensor *zxbcdt, const struct tensor *w,
                                        const struct tensor *bias, struct tensor *state, struct tensor *y)
{
    int64_t R = y->shape[0], C = tensor_cols(y), W = tensor_cols(zxbcdt), E = (W - C) / (HEADDIM + 1) * HEADDIM;
    conv_step_kernel<<<(unsigned)((R * C + THREADS - 1) / THREADS), THREADS, 0, cuda_of(be)->stream>>>(
        f32(zxbcdt), f32(w), f32(bias), f32(state), f32(y), R, C, W, E);
    return cuda_launched(be, "causal_conv1d_silu_step");
}

/* The cache, and the floats of one stream in each of its parts. */
struct cache_view {
    struct ssd_cache c;
    int64_t u, b, decay, state;
};

static struct cache_view view_of(const struct ssd_cache *c)
{
    struct cache_view view = {*c, ssd_cache_u(c), ssd_cache_b(c), ssd_cache_decay(c), ssd_cache_state(c)};
    return view;
}

/* Folds a full chunk of one head into its state: S_in = carry S_in + Σ_s decay_s u_s ⊗ B_s. A thread per value. */
static __global__ void fold_kernel(const struct cache_view v)
{
    const struct ssd_cache &c = v.c;
    int64_t head = blockIdx.x, stream = blockIdx.y, S = c.state_size;
    float *state = c.state + stream * v.state + head * HEADDIM * S, carry = c.carry[stream * c.heads + head];
    const float *decay = c.decay + stream * v.decay + head * c.blocks * SSD_BLOCK;
    for (int64_t i = threadIdx.x; i < HEADDIM * S; i += blockDim.x) {
        int64_t p = i / S, n = i % S;
        float sum = carry * state[i];
        for (int64_t s = 0; s < SSD_CHUNK; s++) {
            int64_t k = s / SSD_BLOCK, j = s % SSD_BLOCK;
            float u = c.u[stream * v.u + ((k * c.heads + head) * SSD_BLOCK + j) * HEADDIM + p];
            sum += decay[s] * u * c.b[stream * v.b + (k * S + n) * SSD_BLOCK + j];
        }
        state[i] = sum;
    }
}

/* A block for a head of a stream; i: position in the chunk. */
static __global__ void ssd_step_kernel(const struct cache_view v, const float *xbc, const float *zxbcdt, const float *A_log,
                                       const float *dt_bias, const float *D, int64_t i, bool carries, int64_t W, float *y)
{
    const struct ssd_cache &c = v.c;
    __shared__ float weight[SSD_CHUNK], part[2][HEADDIM], inputs[HEADDIM];
    int64_t h = blockIdx.x, r = blockIdx.y, H = c.heads, S = c.state_size, E = H * HEADDIM, C = E + 2 * S;
    const float *x = xbc + r * C, *B_now = x + E, *C_now = B_now + S;
    float *u = c.u + r * v.u, *b = c.b + r * v.b;
    float *decay = c.decay + r * v.decay + h * c.blocks * SSD_BLOCK, *carry = c.carry + r * H + h;
    float dt = zxbcdt[r * W + W - H + h] + dt_bias[h], delta = dt > 20.0f ? dt : log1pf(expf(dt));
    float a = expf(-delta * expf(A_log[h])), carried = i == 0 ? a : *carry * a;
    int64_t now = i / SSD_BLOCK, slot = i % SSD_BLOCK;
    for (int64_t n = threadIdx.x; h == 0 && n < S; n += blockDim.x) b[(now * S + n) * SSD_BLOCK + slot] = B_now[n];
    for (int64_t s = threadIdx.x; s <= i; s += blockDim.x) {
        const float *past = b + s / SSD_BLOCK * S * SSD_BLOCK + s % SSD_BLOCK;
        float sum = 0, g = s < i ? a * decay[s] : 1.0f;
        for (int64_t n = 0; n < S; n++) sum += C_now[n] * (s < i ? past[n * SSD_BLOCK] : B_now[n]);
        g = g > 1e-30f ? g : 0.0f;
        decay[s] = g;
        weight[s] = g * sum;
    }
    int p = threadIdx.x % HEADDIM, half = threadIdx.x / HEADDIM;
    if (half == 0) {
        inputs[p] = delta * x[h * HEADDIM + p];
        u[((now * H + h) * SSD_BLOCK + slot) * HEADDIM + p] = inputs[p];
    }
    __syncthreads(); /* also: every thread has read *carry */
    if (threadIdx.x == 0) *carry = carried;
    float sum = 0;
    for (int64_t s = half; s < i; s += 2)
        sum += weight[s] * u[((s / SSD_BLOCK * H + h) * SSD_BLOCK + s % SSD_BLOCK) * HEADDIM + p];
    if (half == 0) {
        sum += weight[i] * inputs[p] + D[h] * x[h * HEADDIM + p];
    } else if (carries) {
        const float *state = c.state + r * v.state + (h * HEADDIM + p) * S;
        float dot = 0;
        for (int64_t n = 0; n < S; n++) dot += state[n] * C_now[n];
        sum += carried * dot;
    }
    part[half][p] = sum;
    __syncthreads();
    if (half == 0) y[r * E + h * HEADDIM + p] = part[0][p] + part[1][p];
}

aim_status cuda_ssd_step(struct backend *be, const struct tensor *xbc, const struct tensor *zxbcdt, const struct tensor *A_log,
                         const struct tensor *dt_bias, const struct tensor *D, struct ssd_cache *cache, int64_t t,
                         struct tensor *y)
{
    int64_t i = t % SSD_CHUNK;
    dim3 grid((unsigned)cache->heads, (unsigned)y->shape[0]);
    cudaStream_t stream = cuda_of(be)->stream;
    if (i == 0 && t > 0) fold_kernel<<<grid, THREADS, 0, stream>>>(view_of(cache));
    ssd_step_kernel<<<grid, STEP_THREADS, 0, stream>>>(view_of(cache), f32(xbc), f32(zxbcdt), f32(A_log), f32(dt_bias), f32(D),
                                                       i, t >= SSD_CHUNK, tensor_cols(zxbcdt), f32(y));
    return cuda_launched(be, "ssd_step");
}

/* ------------------------------------------------------------------------------------------------------ the sampler */

static __global__ void sample_kernel(const float *logits, const float *uncond, int V, struct sample_filter filter,
                                     const double *uniform, float *probabilities, int32_t *tokens)
{
    __shared__ struct sample_shared shared;
    int64_t r = blockIdx.x;
    int token =
        sample_row(&shared, logits + r * V, uncond ? uncond + r * V : NULL, V, filter, uniform[r], probabilities + r * V, blockDim.x);
    if (threadIdx.x == 0) tokens[r] = token;
}

aim_status cuda_sample(struct backend *be, const struct tensor *logits, const struct tensor *uncond, const struct sampling *how,
                       const double *uniform, struct tensor *probabilities, struct tensor *tokens)
{
    int64_t R = logits->shape[0], V = logits->shape[1];
    sample_kernel<<<(unsigned)R, DRAW_THREADS, 0, cuda_of(be)->stream>>>(
        f32(logits), uncond ? f32(uncond) : NULL, (int)V, sample_filter_of(how), uniform, f32(probabilities), i32(tokens));
    TRY(cuda_launched(be, "sample"));
    int32_t *host = (int32_t *)mem_array(be->ctx, (size_t)R, sizeof *host, MEM_MISC);
    if (!host) return AIM_ERR_MEMORY;
    aim_status status = be->memory.download(be, host, tokens->data, (size_t)R * sizeof *host);
    for (int64_t r = 0; status == AIM_OK && r < R; r++)
        if (host[r] < 0)
            status =
                aim_fail(be->ctx, AIM_ERR_FORMAT, "the network's outputs are not finite numbers; are the weights damaged?");
    mem_free(host);
    return status;
}
