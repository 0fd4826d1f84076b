/* One decoding step of the mixer's own parts; the cache is described in tensor/ssd_cache.h. */
#include "cpu/kernels/ssm.h"

/* Work of this many values and less is done by one thread: starting the others takes longer. */
enum { TOKEN_VECS = SSD_BLOCK / VLEN, SMALL_STEP = 2048 };

aim_status KERNEL(causal_conv1d_silu_step)(struct backend *be, const struct tensor *zxbcdt, const struct tensor *w,
                                           const struct tensor *bias, struct tensor *state, struct tensor *y)
{
    int64_t R = y->shape[0], C = tensor_cols(y), W = tensor_cols(zxbcdt), E = inner_width(W, C);
    enum { PAST = CONV_WIDTH - 1 };
#pragma omp parallel for num_threads(be->threads) schedule(static) if (R * C > SMALL_STEP)
    for (int64_t first = 0; first < C; first += CONV_BLOCK) {
        struct conv_taps taps;
        conv_taps_load(&taps, f32(w), f32(bias), first, C);
        size_t bytes = (size_t)taps.count * sizeof(float);
        for (int64_t r = 0; r < R; r++) {
            float *past = f32(state) + r * PAST * C + first;
            const float *x = f32(zxbcdt) + r * W + E + first;
            conv_taps_apply(&taps, (const float *const[]){past, past + C, past + 2 * C, x}, f32(y) + r * C + first);
            memcpy(past, past + C, bytes);
            memcpy(past + C, past + 2 * C, bytes);
            memcpy(past + 2 * C, x, bytes);
        }
    }
    return AIM_OK;
}

/* cb[s] = C·B_s for the tokens 0..i of the chunk (up to a whole block: the rest is masked by zero decay) */
static void history_products(const float *b, const float *c, int64_t S, int64_t i, float *cb)
{
    for (int64_t k = 0; k <= i / SSD_BLOCK; k++) {
        const float *block = b + k * S * SSD_BLOCK;
        vf even[TOKEN_VECS] = {{0}}, odd[TOKEN_VECS] = {{0}};
        for (int64_t n = 0; n + 1 < S; n += 2)
            for (int v = 0; v < TOKEN_VECS; v++) {
                even[v] += c[n] * vload(block + n * SSD_BLOCK + v * VLEN);
                odd[v] += c[n + 1] * vload(block + (n + 1) * SSD_BLOCK + v * VLEN);
            }
        for (int v = 0; v < TOKEN_VECS && S % 2; v++) even[v] += c[S - 1] * vload(block + (S - 1) * SSD_BLOCK + v * VLEN);
        for (int v = 0; v < TOKEN_VECS; v++) vstore(cb + k * SSD_BLOCK + v * VLEN, even[v] + odd[v]);
    }
}

/* decay[s] *= a for the tokens before i, decay[i] = 1; values that would turn denormal become zero */
static void history_decay(float *decay, int64_t i, float a)
{
    const vf smallest = vset(1e-30f);
    for (int64_t s = 0; s < i; s += VLEN) {
        vf g = a * vload(decay + s);
        vstore(decay + s, vselect(g > smallest, g, (vf){0}));
    }
    decay[i] = 1.0f;
}

/* y += Σ_s weight[s] u[s] over one block of one head; weight is zero for tokens yet to come */
static void history_block(const float *u, const float *weight, float *y)
{
    vf sum[HEAD_VECS];
    for (int v = 0; v < HEAD_VECS; v++) sum[v] = vload(y + v * VLEN);
    for (int s = 0; s < SSD_BLOCK; s++)
        for (int v = 0; v < HEAD_VECS; v++) sum[v] += weight[s] * vload(u + s * HEADDIM + v * VLEN);
    for (int v = 0; v < HEAD_VECS; v++) vstore(y + v * VLEN, sum[v]);
}

/* Folds a full chunk of one head into its state: S_in = carry S_in + Σ_s decay_s u_s ⊗ B_s. */
static void history_fold(const struct ssd_cache *c, int64_t stream, int64_t head)
{
    int64_t S = c->state_size;
    float *state = c->state + stream * ssd_cache_state(c) + head * HEADDIM * S;
    const float *decay = c->decay + stream * ssd_cache_decay(c) + head * c->blocks * SSD_BLOCK;
    float carry = c->carry[stream * c->heads + head];
    for (int64_t n = 0; n < HEADDIM * S; n++) state[n] *= carry;
    for (int64_t s = 0; s < SSD_CHUNK; s++) {
        int64_t k = s / SSD_BLOCK, j = s % SSD_BLOCK;
        const float *u = c->u + stream * ssd_cache_u(c) + ((k * c->heads + head) * SSD_BLOCK + j) * HEADDIM;
        const float *b = c->b + stream * ssd_cache_b(c) + k * S * SSD_BLOCK + j;
        for (int64_t p = 0; p < HEADDIM; p++) {
            float scale = decay[s] * u[p];
            for (int64_t n = 0; n < S; n++) state[p * S + n] += scale * b[n * SSD_BLOCK];
        }
    }
}

/* What one thread does for heads from..to of one stream. i: position in the chunk; cb: scratch of the whole history. */
static void step_heads(const struct ssd_cache *c, int64_t stream, int64_t from, int64_t to, int64_t i, bool carries,
                       const float *xbc, const float *dt, const float *A_log, const float *dt_bias, const float *D, float *cb,
                       float *y)
{
    int64_t S = c->state_size, H = c->heads, E = H * HEADDIM, now = i / SSD_BLOCK, slot = i % SSD_BLOCK;
    const float *C_row = xbc + E + S;
    float *u = c->u + stream * ssd_cache_u(c);
    history_products(c->b + stream * ssd_cache_b(c), C_row, S, i, cb);
    for (int64_t h = from; h < to; h++) {
        float delta = softplus(dt[h] + dt_bias[h]), a = expf(-delta * expf(A_log[h]));
        float *decay = c->decay + stream * ssd_cache_decay(c) + h * c->blocks * SSD_BLOCK, *yh = y + h * HEADDIM;
        float *carry = c->carry + stream * H + h;
        if (i == 0) memset(decay, 0, (size_t)(c->blocks * SSD_BLOCK) * sizeof(float));
        history_decay(decay, i, a);
        *carry = i == 0 ? a : *carry * a;
        float *newest = u + ((now * H + h) * SSD_BLOCK + slot) * HEADDIM;
        for (int64_t p = 0; p < HEADDIM; p++) {
            newest[p] = delta * xbc[h * HEADDIM + p];
            yh[p] = D[h] * xbc[h * HEADDIM + p];
        }
        if (slot == 0) /* the rest of a new block is read before it is written */
            memset(newest + HEADDIM, 0, (SSD_BLOCK - 1) * HEADDIM * sizeof(float));
        if (carries) {
            const float *state = c->state + stream * ssd_cache_state(c) + h * HEADDIM * S;
            for (int64_t p = 0; p < HEADDIM; p++) yh[p] += *carry * dot(state + p * S, C_row, S);
        }
    }
    for (int64_t k = 0; k <= now; k++) /* blocks outside, heads inside: u is read as one contiguous stream */
        for (int64_t h = from; h < to; h++) {
            const float *decay = c->decay + stream * ssd_cache_decay(c) + (h * c->blocks + k) * SSD_BLOCK;
            float weight[SSD_BLOCK];
            for (int s = 0; s < SSD_BLOCK; s += VLEN) vstore(weight + s, vload(cb + k * SSD_BLOCK + s) * vload(decay + s));
            history_block(u + (k * H + h) * SSD_BLOCK * HEADDIM, weight, y + h * HEADDIM);
        }
}

/* Appends B of every stream to the history, token-minor inside its block. */
static void history_append(const struct ssd_cache *c, int64_t stream, int64_t i, const float *b)
{
    int64_t S = c->state_size, slot = i % SSD_BLOCK;
    float *block = c->b + stream * ssd_cache_b(c) + i / SSD_BLOCK * S * SSD_BLOCK;
    if (slot == 0) memset(block, 0, (size_t)(S * SSD_BLOCK) * sizeof(float));
    for (int64_t n = 0; n < S; n++) block[n * SSD_BLOCK + slot] = b[n];
}

aim_status KERNEL(ssd_step)(struct backend *be, const struct tensor *xbc, const struct tensor *zxbcdt,
                            const struct tensor *A_log, const struct tensor *dt_bias, const struct tensor *D,
                            struct ssd_cache *cache, int64_t t, struct tensor *y)
{
    int64_t R = y->shape[0], E = tensor_cols(y), C = tensor_cols(xbc), W = tensor_cols(zxbcdt), H = cache->heads;
    int64_t i = t % SSD_CHUNK, items = R * H;
    float *products = mem_array(be->ctx, (size_t)be->threads * SSD_CHUNK, sizeof(float), MEM_ACTIVATIONS);
    if (!products) return AIM_ERR_MEMORY;
    if (i == 0 && t > 0) {
#pragma omp parallel for num_threads(be->threads) schedule(static)
        for (int64_t n = 0; n < items; n++) history_fold(cache, n / H, n % H);
    }
    for (int64_t r = 0; r < R; r++) history_append(cache, r, i, f32(xbc) + r * C + E);
#pragma omp parallel num_threads(be->threads)
    {
        int64_t thread = omp_get_thread_num(), team = omp_get_num_threads();
        int64_t from = items * thread / team, to = items * (thread + 1) / team;
        while (from < to) { /* the part of this thread's share that lies in one stream */
            int64_t r = from / H, end = (r + 1) * H < to ? (r + 1) * H : to;
            step_heads(cache, r, from - r * H, end - r * H, i, t >= SSD_CHUNK, f32(xbc) + r * C, f32(zxbcdt) + r * W + W - H,
                       f32(A_log), f32(dt_bias), f32(D), products + thread * SSD_CHUNK, f32(y) + r * E);
            from = end;
        }
    }
    mem_free(products);
    return AIM_OK;
}
