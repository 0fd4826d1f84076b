/*
 * The state-space recurrence of Mamba-2 over whole sequences in its dual form, chunk by chunk (spec C5, C6). Within a chunk,
 * with dA_t = Δ_t A, cs_t = Σ_{j<=t} dA_j, u_s = Δ_s x_s:
 *     y_l = Σ_{s<=l} (C_l·B_s) exp(cs_l - cs_s) u_s + exp(cs_l) S_in C_l + D x_l
 *     S_out = exp(cs_n) S_in + Σ_s exp(cs_n - cs_s) u_s ⊗ B_s
 * C·B is shared by all heads.
 */
#include "cpu/kernels/ssd.h"

/* Rows l .. l+rows of y, E apart: Σ_{s<=l} cb[s] exp(cs_l - cs_s) u[s] + D x; cb rows are SSD_CHUNK, x rows C apart. Past
 * its own end a row adds zeros. */
static inline __attribute__((always_inline)) void head_rows(const int rows, struct head_work *work, const float *cb, int64_t l,
                                                            const float *x, int64_t C, float D, float *y, int64_t E)
{
    vf sum[SSD_ROWS][HEAD_VECS];
    for (int r = 0; r < rows; r++) {
        for (int64_t s = 0; s < l + rows; s += VLEN)
            vstore(work->weight[r] + s, vload(cb + r * SSD_CHUNK + s) * head_decay(work, l + r, s));
        for (int v = 0; v < HEAD_VECS; v++) sum[r][v] = D * vload(x + r * C + v * VLEN);
    }
    for (int64_t s = 0; s < l + rows; s++)
        for (int r = 0; r < rows; r++) {
            vf weight = vset(work->weight[r][s]);
            for (int v = 0; v < HEAD_VECS; v++) sum[r][v] += weight * vload(work->u[s] + v * VLEN);
        }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < HEAD_VECS; v++) vstore(y + r * E + v * VLEN, sum[r][v]);
}

/* y += exp(cs) S_in C, for a chunk that is not the first; state (P, S) */
static void head_add_state(const float *state, const float *c_row, int64_t S, float decay, float *y)
{
    for (int64_t p = 0; p < HEADDIM; p++) y[p] += decay * dot(state + p * S, c_row, S);
}

aim_status KERNEL(ssd)(struct backend *be, const struct tensor *xbc, const struct tensor *zxbcdt, const struct tensor *A_log,
                       const struct tensor *dt_bias, const struct tensor *D, struct tensor *y)
{
    int64_t B = y->shape[0], T = y->shape[1], E = y->shape[2], C = tensor_cols(xbc), W = tensor_cols(zxbcdt);
    int64_t H = E / HEADDIM, S = (C - E) / 2;
    bool carries = T > SSD_CHUNK;
    size_t state_floats = carries ? (size_t)(H * HEADDIM * S) : 0;
    struct head_work *works = mem_array(be->ctx, (size_t)be->threads, sizeof *works, MEM_ACTIVATIONS);
    float *bt = mem_zero(be->ctx, (size_t)(S * SSD_CHUNK), sizeof(float), MEM_ACTIVATIONS);
    float *cb = mem_array(be->ctx, SSD_CHUNK * SSD_CHUNK, sizeof(float), MEM_ACTIVATIONS);
    float *state = mem_array(be->ctx, state_floats, sizeof(float), MEM_ACTIVATIONS);
    aim_status status = works && bt && cb && state ? AIM_OK : AIM_ERR_MEMORY;
    for (int64_t b = 0; b < B && status == AIM_OK; b++) {
        if (carries) memset(state, 0, state_floats * sizeof(float));
        for (int64_t first = 0; first < T; first += SSD_CHUNK) {
            int64_t n = T - first < SSD_CHUNK ? T - first : SSD_CHUNK;
            const float *rows = f32(xbc) + (b * T + first) * C, *dt = f32(zxbcdt) + (b * T + first) * W + W - H;
            float *out = f32(y) + (b * T + first) * E;
#pragma omp parallel num_threads(be->threads)
            {
                struct head_work *work = works + omp_get_thread_num();
#pragma omp for schedule(static)
                for (int64_t i = 0; i < S; i++)
                    for (int64_t s = 0; s < n; s++) bt[i * SSD_CHUNK + s] = rows[s * C + E + i];
#pragma omp for schedule(dynamic, 8)
                for (int64_t l = 0; l < n; l++) chunk_products(rows + l * C + E + S, bt, S, l, cb + l * SSD_CHUNK);
#pragma omp for schedule(dynamic, 1)
                for (int64_t h = 0; h < H; h++) {
                    const float *x = rows + h * HEADDIM;
                    head_prepare(work, n, x, C, dt + h, W, f32(dt_bias)[h], -expf(f32(A_log)[h]));
                    float *yh = out + h * HEADDIM, Dh = f32(D)[h];
                    int64_t l = 0;
                    for (; l + SSD_ROWS <= n; l += SSD_ROWS)
                        head_rows(SSD_ROWS, work, cb + l * SSD_CHUNK, l, x + l * C, C, Dh, yh + l * E, E);
                    for (; l < n; l++) head_rows(1, work, cb + l * SSD_CHUNK, l, x + l * C, C, Dh, yh + l * E, E);
                    for (l = 0; first > 0 && l < n; l++)
                        head_add_state(state + h * HEADDIM * S, rows + l * C + E + S, S, expf((float)work->cs[l]), yh + l * E);
                    if (first + n < T) head_update_state(work, n, rows + E, C, S, state + h * HEADDIM * S);
                }
            }
        }
    }
    mem_free(works);
    mem_free(bt);
    mem_free(cb);
    mem_free(state);
    return status;
}
