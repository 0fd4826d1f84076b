/* The optimizer: the norm of all gradients, AdamW, changes of type. */
#include "cpu/kernels/kernels.h"

#include <math.h>

enum {
    CHUNK = 1 << 14, /* values that one thread takes at a time, and whose squares are added up together */
    SPAN = 256,      /* short float sums, added up in double */
};

static int64_t chunks_of(const struct tensor *t)
{
    return (tensor_count(t) + CHUNK - 1) / CHUNK;
}

static double sum_squares(const float *x, int64_t n)
{
    double sum = 0;
    for (int64_t i = 0; i < n; i += SPAN) {
        vf part = {0};
        int64_t end = i + SPAN < n ? i + SPAN : n, j = i;
        for (; j + VLEN <= end; j += VLEN) part += vload(x + j) * vload(x + j);
        vf rest = vload_part(x + j, end - j);
        sum += (double)vsum(part + rest * rest);
    }
    return sum;
}

aim_status KERNEL(norm)(struct backend *be, struct tensor *const *list, int64_t count, struct tensor *norm)
{
    int64_t most = 0;
    for (int64_t i = 0; i < count; i++) most = chunks_of(list[i]) > most ? chunks_of(list[i]) : most;
    double *sums = mem_array(be->ctx, (size_t)most, sizeof(double), MEM_ACTIVATIONS), sum = 0;
    if (!sums) return AIM_ERR_MEMORY;
    for (int64_t i = 0; i < count; i++) {
        int64_t n = tensor_count(list[i]), chunks = chunks_of(list[i]);
        const float *x = f32(list[i]);
#pragma omp parallel for num_threads(be->threads) schedule(static) if (chunks > 1)
        for (int64_t c = 0; c < chunks; c++)
            sums[c] = sum_squares(x + c * CHUNK, n - c * CHUNK < CHUNK ? n - c * CHUNK : CHUNK);
        for (int64_t c = 0; c < chunks; c++) sum += sums[c];
    }
    f32(norm)[0] = (float)sqrt(sum);
    mem_free(sums);
    return AIM_OK;
}

/* What is the same for all values of a slot. */
struct coefficients {
    float scale, keep, beta1, beta2, rate, root, eps, ema;
};

static struct coefficients coefficients(const struct adamw *how, float norm, bool decays)
{
    double step = (double)how->step, first = 1 - pow(how->beta1, step), second = 1 - pow(how->beta2, step);
    double scale = how->clip > 0 ? how->clip / ((double)norm + 1e-6) : 1;
    return (struct coefficients){
        .scale = (float)(scale < 1 ? scale : 1),
        .keep = (float)(decays ? 1 - how->lr * how->decay : 1),
        .beta1 = (float)(1 - how->beta1),
        .beta2 = (float)(1 - how->beta2),
        .rate = (float)(how->lr / first),
        .root = (float)(1 / sqrt(second)),
        .eps = (float)how->eps,
        .ema = (float)(1 - how->ema_decay),
    };
}

static void step_values(const struct adamw_slot *s, const struct coefficients *k, int64_t from, int64_t n)
{
    float *w = f32(s->w) + from, *dw = f32(s->dw) + from, *m = f32(s->m) + from, *v = f32(s->v) + from;
    for (int64_t i = 0; i < n; i++) {
        float g = dw[i] * k->scale;
        m[i] += k->beta1 * (g - m[i]);
        v[i] += k->beta2 * (g * g - v[i]);
        w[i] = k->keep * w[i] - k->rate * m[i] / (sqrtf(v[i]) * k->root + k->eps);
        dw[i] = 0;
    }
    float *ema = s->ema ? f32(s->ema) + from : NULL;
    for (int64_t i = 0; ema && i < n; i++) ema[i] += k->ema * (w[i] - ema[i]);
}

aim_status KERNEL(adamw)(struct backend *be, const struct adamw_slot *slots, int64_t count, const struct adamw *how,
                         const struct tensor *norm)
{
    bool usable = isfinite(f32(norm)[0]);
    for (int64_t i = 0; i < count; i++) {
        const struct adamw_slot *s = &slots[i];
        struct coefficients k = coefficients(how, f32(norm)[0], s->decays);
        int64_t n = tensor_count(s->w), chunks = chunks_of(s->w);
#pragma omp parallel for num_threads(be->threads) schedule(static) if (chunks > 1)
        for (int64_t c = 0; c < chunks; c++) {
            int64_t from = c * CHUNK, part = n - from < CHUNK ? n - from : CHUNK;
            if (usable)
                step_values(s, &k, from, part);
            else
                memset(f32(s->dw) + from, 0, (size_t)part * sizeof(float));
        }
    }
    return AIM_OK;
}

aim_status KERNEL(cast)(struct backend *be, const struct tensor *x, struct tensor *y)
{
    int64_t n = tensor_count(x);
    (void)be;
    if (x->type == y->type)
        memcpy(y->data, x->data, (size_t)n * tensor_type_size(x->type));
    else if (x->type == T_F32)
        for (int64_t i = 0; i < n; i++) ((uint16_t *)y->data)[i] = bf16_from_f32(f32(x)[i]);
    else
        for (int64_t i = 0; i < n; i++) f32(y)[i] = bf16_to_f32(((const uint16_t *)x->data)[i]);
    return AIM_OK;
}
