/*
 * Backward of ssd (spec C6), one chunk at a time from the last to the first. With G_ls = dY_l·u_s, L_ls = exp(cs_l - cs_s),
 * M = CB ⊙ L, W = G ⊙ M for s <= l, F_s = exp(cs_n - cs_s), and dS the gradient at S_out:
 *
 *     du_s  = Σ_l M_ls dY_l + F_s dS B_s
 *     dCB   = Σ_heads G ⊙ L;   dC_l = Σ_s dCB_ls B_s + Σ_heads exp(cs_l) S_inᵀ dY_l
 *                              dB_s = Σ_l dCB_ls C_l + Σ_heads F_s dSᵀ u_s
 *     ddA_t = Σ_{l>=t, s<t} W_ls + Σ_{l>=t} exp(cs_l) dY_l·(S_in C_l) + Σ_{s<t} F_s u_s·(dS B_s) + exp(cs_n) ⟨dS, S_in⟩
 *     dS_in = exp(cs_n) dS + Σ_l exp(cs_l) dY_l ⊗ C_l
 *
 * ddA is summed directly over the pairs that a decay separates: no difference of large sums. Large intermediates are
 * recomputed rather than kept by the forward. Heads run in parallel; what is summed over heads is kept per head and added
 * up in head order.
 */
#include "cpu/kernels/ssd.h"

struct backward {
    int64_t T, E, C, W, H, S;
    const float *xbc, *dt, *A_log, *dt_bias, *D, *dy; /* of one picture; dt: first row, column of head 0 */
    float *dxbc, *ddt, *dA_log, *ddt_bias, *dD;
    float *states, *dstate; /* (chunks, H, P, S): S_in of each chunk; (H, P, S): dS. NULL when one chunk is all */
    float *bt, *cb, *dcb;   /* (S, CHUNK); (CHUNK, CHUNK); (CHUNK, CHUNK) */
    float *pairs;           /* (H, CHUNK, CHUNK): G ⊙ L */
    float *db, *dc;         /* (H, CHUNK, S): the states' part of dB and dC. NULL when one chunk is all */
};

struct backward_work {
    struct head_work head;
    float ut[HEADDIM][SSD_CHUNK]; /* u transposed */
    float du[SSD_CHUNK][HEADDIM];
    float product[SSD_ROWS][SSD_CHUNK]; /* rows of W */
    double ddA[SSD_CHUNK];
};

/* Rows l .. l+rows of G ⊙ L into `pairs` and of M and G ⊙ M into the working memory; zero past a row's end. dy rows are E
 * apart, those of cb and pairs SSD_CHUNK. */
static inline __attribute__((always_inline)) void pair_products(const int rows, struct backward_work *k, const float *cb,
                                                                const float *dy, int64_t E, int64_t l, float *pairs)
{
    enum { VECS = 2 };
    for (int64_t s = 0; s < l + rows; s += VECS * VLEN) {
        vf G[SSD_ROWS][VECS] = {{{0}}};
        for (int p = 0; p < HEADDIM; p++)
            for (int r = 0; r < rows; r++) {
                vf up = vset(dy[r * E + p]);
                for (int v = 0; v < VECS; v++) G[r][v] += up * vload(k->ut[p] + s + v * VLEN);
            }
        for (int r = 0; r < rows; r++)
            for (int v = 0; v < VECS; v++) {
                int64_t at = s + v * VLEN;
                vf decay = head_decay(&k->head, l + r, at), m = vload(cb + r * SSD_CHUNK + at) * decay;
                vstore(pairs + r * SSD_CHUNK + at, G[r][v] * decay);
                vstore(k->head.weight[r] + at, m);
                vstore(k->product[r] + at, G[r][v] * m);
            }
    }
}

/* From these to du += M dY, and to ddA, the sums of W that cross each decay. */
static inline __attribute__((always_inline)) void pair_sums(const int rows, struct backward_work *k, const float *dy, int64_t E,
                                                            int64_t l)
{
    double crossing[SSD_ROWS] = {0}; /* Σ_{s<t} W_ls */
    vf up[SSD_ROWS][HEAD_VECS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < HEAD_VECS; v++) up[r][v] = vload(dy + r * E + v * VLEN);
    for (int64_t s = 0; s < l + rows; s++) {
        for (int v = 0; v < HEAD_VECS; v++) {
            vf du = vload(k->du[s] + v * VLEN);
            for (int r = 0; r < rows; r++) du += k->head.weight[r][s] * up[r][v];
            vstore(k->du[s] + v * VLEN, du);
        }
        double sum = 0;
        for (int r = 0; r < rows; r++) {
            if (s <= l + r) sum += crossing[r];
            crossing[r] += (double)k->product[r][s];
        }
        k->ddA[s] += sum;
    }
}

static inline __attribute__((always_inline)) void pair_rows(const int rows, struct backward_work *k, const float *cb,
                                                            const float *dy, int64_t E, int64_t l, float *pairs)
{
    pair_products(rows, k, cb + l * SSD_CHUNK, dy + l * E, E, l, pairs + l * SSD_CHUNK);
    pair_sums(rows, k, dy + l * E, E, l);
}

/* What flows through S_in: dC, dS_in and ddA. `into` is the new dS. */
static void through_input_state(struct backward_work *k, const struct backward *a, const float *state, int64_t n,
                                const float *rows, const float *dy, float *dc, float *into)
{
    int64_t S = a->S;
    double later = 0; /* Σ_{l>=t} exp(cs_l) dY_l·(S_in C_l) */
    for (int64_t l = n - 1; l >= 0; l--) {
        const float *c_row = rows + l * a->C + a->E + S, *up = dy + l * a->E;
        float decay = expf((float)k->head.cs[l]);
        memset(dc + l * S, 0, (size_t)S * sizeof(float));
        for (int64_t p = 0; p < HEADDIM; p++) {
            float scaled = decay * up[p];
            later += (double)(scaled * dot(state + p * S, c_row, S));
            for (int64_t i = 0; i < S; i++) {
                dc[l * S + i] += scaled * state[p * S + i];
                into[p * S + i] += scaled * c_row[i];
            }
        }
        k->ddA[l] += later;
    }
}

/* What flows through S_out: du, dB and ddA; scales dS to its part of dS_in. state may be NULL (first chunk). */
static void through_output_state(struct backward_work *k, const struct backward *a, const float *state, int64_t n,
                                 const float *rows, float *db, float *dstate)
{
    int64_t S = a->S;
    double earlier = 0; /* Σ_{s<t} F_s u_s·(dS B_s) */
    for (int64_t s = 0; s < n; s++) {
        const float *b_row = rows + s * a->C + a->E;
        float factor = expf((float)(k->head.cs[n - 1] - k->head.cs[s]));
        k->ddA[s] += earlier;
        memset(db + s * S, 0, (size_t)S * sizeof(float));
        for (int64_t p = 0; p < HEADDIM; p++) {
            float u = k->head.u[s][p], reached = factor * dot(dstate + p * S, b_row, S);
            k->du[s][p] += reached;
            earlier += (double)(u * reached);
            for (int64_t i = 0; i < S; i++) db[s * S + i] += factor * u * dstate[p * S + i];
        }
    }
    float whole = expf((float)k->head.cs[n - 1]);
    double kept = 0;
    for (int64_t i = 0; state && i < HEADDIM * S; i++) kept += (double)(dstate[i] * state[i]);
    for (int64_t t = 0; t < n; t++) k->ddA[t] += (double)whole * kept;
    for (int64_t i = 0; i < HEADDIM * S; i++) dstate[i] *= whole;
}

/* From du and ddA to the gradients of x, dt and the head's own parameters. */
static void head_inputs(const struct backward_work *k, const struct backward *a, int64_t h, int64_t first, int64_t n, float A)
{
    double dA = 0, dbias = 0, dD = 0;
    for (int64_t t = 0; t < n; t++) {
        const float *x = a->xbc + (first + t) * a->C + h * HEADDIM, *dy = a->dy + (first + t) * a->E + h * HEADDIM;
        float raw = a->dt[(first + t) * a->W + h] + a->dt_bias[h], delta = softplus(raw), along = 0;
        for (int64_t p = 0; p < HEADDIM; p++) {
            along += k->du[t][p] * x[p];
            dD += (double)(dy[p] * x[p]);
            if (a->dxbc) a->dxbc[(first + t) * a->C + h * HEADDIM + p] += delta * k->du[t][p] + a->D[h] * dy[p];
        }
        double ddelta = (double)along + k->ddA[t] * (double)A;
        double slope = raw > 20.0f ? 1.0 : 1.0 / (1.0 + exp(-(double)raw));
        dA += k->ddA[t] * (double)delta;
        dbias += ddelta * slope;
        if (a->ddt) a->ddt[(first + t) * a->W + h] += (float)(ddelta * slope);
    }
    if (a->dA_log) a->dA_log[h] += (float)(dA * (double)A); /* A = -exp(A_log) is its own derivative */
    if (a->ddt_bias) a->ddt_bias[h] += (float)dbias;
    if (a->dD) a->dD[h] += (float)dD;
}

static void backward_head(struct backward_work *k, const struct backward *a, int64_t h, int64_t chunk)
{
    int64_t first = chunk * SSD_CHUNK, n = a->T - first < SSD_CHUNK ? a->T - first : SSD_CHUNK, S = a->S;
    const float *rows = a->xbc + first * a->C, *dy = a->dy + first * a->E + h * HEADDIM;
    float A = -expf(a->A_log[h]), *pairs = a->pairs + h * SSD_CHUNK * SSD_CHUNK;
    head_prepare(&k->head, n, rows + h * HEADDIM, a->C, a->dt + first * a->W + h, a->W, a->dt_bias[h], A);
    memset(k->ut, 0, sizeof k->ut);
    memset(k->du, 0, sizeof k->du);
    memset(k->ddA, 0, sizeof k->ddA);
    for (int64_t s = 0; s < n; s++)
        for (int64_t p = 0; p < HEADDIM; p++) k->ut[p][s] = k->head.u[s][p];
    int64_t l = 0;
    for (; l + SSD_ROWS <= n; l += SSD_ROWS) pair_rows(SSD_ROWS, k, a->cb, dy, a->E, l, pairs);
    for (; l < n; l++) pair_rows(1, k, a->cb, dy, a->E, l, pairs);
    if (a->states) {
        float *dstate = a->dstate + h * HEADDIM * S, *db = a->db + h * SSD_CHUNK * S, *dc = a->dc + h * SSD_CHUNK * S;
        const float *state = chunk ? a->states + (chunk * a->H + h) * HEADDIM * S : NULL;
        through_output_state(k, a, state, n, rows, db, dstate); /* zero dS after the last chunk adds nothing */
        if (state)
            through_input_state(k, a, state, n, rows, dy, dc, dstate);
        else
            memset(dc, 0, (size_t)(SSD_CHUNK * S) * sizeof(float));
    }
    head_inputs(k, a, h, first, n, A);
}

/* dCB over all heads, and from it dC of row l. */
static void sum_row(const struct backward *a, int64_t l, const float *rows, float *dc_row)
{
    float *dcb = a->dcb + l * SSD_CHUNK;
    memset(dcb, 0, SSD_CHUNK * sizeof(float));
    for (int64_t h = 0; h < a->H; h++) {
        const float *pairs = a->pairs + (h * SSD_CHUNK + l) * SSD_CHUNK;
        for (int64_t s = 0; s <= l; s++) dcb[s] += pairs[s];
    }
    for (int64_t s = 0; s <= l; s++)
        for (int64_t i = 0; i < a->S; i++) dc_row[i] += dcb[s] * rows[s * a->C + a->E + i];
    for (int64_t h = 0; a->dc && h < a->H; h++)
        for (int64_t i = 0; i < a->S; i++) dc_row[i] += a->dc[(h * SSD_CHUNK + l) * a->S + i];
}

static void sum_column(const struct backward *a, int64_t s, int64_t n, const float *rows, float *db_row)
{
    for (int64_t l = s; l < n; l++)
        for (int64_t i = 0; i < a->S; i++) db_row[i] += a->dcb[l * SSD_CHUNK + s] * rows[l * a->C + a->E + a->S + i];
    for (int64_t h = 0; a->db && h < a->H; h++)
        for (int64_t i = 0; i < a->S; i++) db_row[i] += a->db[(h * SSD_CHUNK + s) * a->S + i];
}

/* S_in of every chunk of one picture. */
static void forward_states(const struct backward *a, struct backward_work *works, int threads)
{
    int64_t size = HEADDIM * a->S;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int64_t h = 0; h < a->H; h++) {
        struct head_work *work = &works[omp_get_thread_num()].head;
        memset(a->states + h * size, 0, (size_t)size * sizeof(float));
        for (int64_t first = 0, chunk = 1; first + SSD_CHUNK < a->T; first += SSD_CHUNK, chunk++) {
            float *state = a->states + (chunk * a->H + h) * size;
            const float *rows = a->xbc + first * a->C;
            memcpy(state, state - a->H * size, (size_t)size * sizeof(float));
            head_prepare(work, SSD_CHUNK, rows + h * HEADDIM, a->C, a->dt + first * a->W + h, a->W, a->dt_bias[h],
                         -expf(a->A_log[h]));
            head_update_state(work, SSD_CHUNK, rows + a->E, a->C, a->S, state);
        }
    }
}

static void backward_chunk(const struct backward *a, struct backward_work *works, int threads, int64_t chunk)
{
    int64_t first = chunk * SSD_CHUNK, n = a->T - first < SSD_CHUNK ? a->T - first : SSD_CHUNK;
    const float *rows = a->xbc + first * a->C;
#pragma omp parallel num_threads(threads)
    {
        struct backward_work *work = works + omp_get_thread_num();
#pragma omp for schedule(static)
        for (int64_t i = 0; i < a->S; i++)
            for (int64_t s = 0; s < n; s++) a->bt[i * SSD_CHUNK + s] = rows[s * a->C + a->E + i];
#pragma omp for schedule(dynamic, 8)
        for (int64_t l = 0; l < n; l++) chunk_products(rows + l * a->C + a->E + a->S, a->bt, a->S, l, a->cb + l * SSD_CHUNK);
#pragma omp for schedule(dynamic, 1)
        for (int64_t h = 0; h < a->H; h++) backward_head(work, a, h, chunk);
        if (a->dxbc) {
            float *out = a->dxbc + first * a->C + a->E;
#pragma omp for schedule(dynamic, 8)
            for (int64_t l = 0; l < n; l++) sum_row(a, l, rows, out + l * a->C + a->S);
#pragma omp for schedule(dynamic, 8)
            for (int64_t s = 0; s < n; s++) sum_column(a, s, n, rows, out + s * a->C);
        }
    }
}

aim_status KERNEL(ssd_backward)(struct backend *be, const struct tensor *xbc, const struct tensor *zxbcdt,
                                const struct tensor *A_log, const struct tensor *dt_bias, const struct tensor *D,
                                const struct tensor *dy, struct tensor *dxbc, struct tensor *dzxbcdt, struct tensor *dA_log,
                                struct tensor *ddt_bias, struct tensor *dD)
{
    int64_t B = dy->shape[0], T = dy->shape[1], E = dy->shape[2], C = tensor_cols(xbc), W = tensor_cols(zxbcdt);
    int64_t H = E / HEADDIM, S = (C - E) / 2, chunks = (T + SSD_CHUNK - 1) / SSD_CHUNK;
    int64_t state = chunks > 1 ? H * HEADDIM * S : 0, square = SSD_CHUNK * SSD_CHUNK, side = chunks > 1 ? H * SSD_CHUNK * S : 0;
    struct backward a = {.T = T, .E = E, .C = C, .W = W, .H = H, .S = S, .A_log = f32(A_log), .dt_bias = f32(dt_bias)};
    size_t floats = (size_t)(chunks * state + state + S * SSD_CHUNK + 2 * square + H * square + 2 * side);
    float *block = mem_array(be->ctx, floats, sizeof(float), MEM_ACTIVATIONS), *at = block;
    struct backward_work *works = mem_array(be->ctx, (size_t)be->threads, sizeof *works, MEM_ACTIVATIONS);
    if (!block || !works) {
        mem_free(block);
        mem_free(works);
        return AIM_ERR_MEMORY;
    }
#define TAKE(count) (at += (count), at - (count))
    a.bt = TAKE(S * SSD_CHUNK), a.cb = TAKE(square), a.dcb = TAKE(square), a.pairs = TAKE(H * square);
    if (chunks > 1) a.states = TAKE(chunks * state), a.dstate = TAKE(state), a.db = TAKE(side), a.dc = TAKE(side);
#undef TAKE
    memset(block, 0, (size_t)(S * SSD_CHUNK + square) * sizeof(float)); /* bt and cb: whole vectors of them are read */
    a.D = f32(D);
    a.dA_log = dA_log ? f32(dA_log) : NULL, a.ddt_bias = ddt_bias ? f32(ddt_bias) : NULL, a.dD = dD ? f32(dD) : NULL;
    for (int64_t b = 0; b < B; b++) {
        a.xbc = f32(xbc) + b * T * C, a.dt = f32(zxbcdt) + b * T * W + W - H, a.dy = f32(dy) + b * T * E;
        a.dxbc = dxbc ? f32(dxbc) + b * T * C : NULL, a.ddt = dzxbcdt ? f32(dzxbcdt) + b * T * W + W - H : NULL;
        if (a.states) {
            memset(a.dstate, 0, (size_t)state * sizeof(float));
            forward_states(&a, works, be->threads);
        }
        for (int64_t chunk = chunks - 1; chunk >= 0; chunk--) backward_chunk(&a, works, be->threads, chunk);
    }
    mem_free(block);
    mem_free(works);
    return AIM_OK;
}
