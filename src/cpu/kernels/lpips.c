/* The distance of two feature maps that LPIPS takes at each of its taps, and its gradient. */
#include "cpu/kernels/kernels.h"

#include <math.h>

#include "base/philox.h"

enum { CHUNK = 128 }; /* pixels whose distances are added up together, whatever the number of threads */

static const float lpips_eps = 1e-10f; /* added to the length of a pixel's features */

/* The work of a call: pictures cut into chunks of pixels. */
struct lpips {
    const float *a, *b, *w;
    const struct dropout *dropout;
    int64_t pixels, C, chunks; /* of one picture */
    float *kept;               /* (thread, C) weights after dropout */
};

static aim_status lpips_start(struct backend *be, const struct tensor *a, const struct tensor *b, const struct tensor *w,
                              const struct dropout *dropout, struct lpips *k)
{
    *k = (struct lpips){.a = f32(a), .b = f32(b), .w = f32(w), .dropout = dropout, .C = a->shape[3]};
    k->pixels = a->shape[1] * a->shape[2];
    k->chunks = (k->pixels + CHUNK - 1) / CHUNK;
    k->kept = mem_array(be->ctx, (size_t)(be->threads * k->C), sizeof(float), MEM_ACTIVATIONS);
    return k->kept ? AIM_OK : AIM_ERR_MEMORY;
}

static float row_length(const float *x, int64_t n)
{
    vf sum = {0};
    int64_t i = 0;
    for (; i + VLEN <= n; i += VLEN) sum += vload(x + i) * vload(x + i);
    if (i < n) sum += vload_part(x + i, n - i) * vload_part(x + i, n - i);
    return sqrtf(vsum(sum));
}

/* The weights of one pixel's channels: w, or what dropout makes of it, at `kept`. */
static const float *pixel_weights(const struct lpips *k, int64_t pixel, float *kept)
{
    if (!k->dropout) return k->w;
    struct philox4 bits = {{0}};
    for (int64_t c = 0; c < k->C; c++) {
        int64_t i = pixel * k->C + c;
        if (c == 0 || i % 128 == 0) bits = philox(k->dropout->seed, (uint64_t)i / 128, k->dropout->position, PHILOX_DROPOUT);
        kept[c] = bits.v[i / 32 % 4] >> (i % 32) & 1 ? 2 * k->w[c] : 0;
    }
    return kept;
}

/* What a pixel's distance and gradient are made of. */
struct pixel {
    const float *a, *b, *w;
    float length, scale_a, scale_b; /* ‖a‖, 1 / (‖a‖ + eps), 1 / (‖b‖ + eps) */
};

static struct pixel pixel_at(const struct lpips *k, int64_t i)
{
    struct pixel p = {.a = k->a + i * k->C, .b = k->b + i * k->C};
    p.w = pixel_weights(k, i, k->kept + omp_get_thread_num() * k->C);
    p.length = row_length(p.a, k->C);
    p.scale_a = 1 / (p.length + lpips_eps);
    p.scale_b = 1 / (row_length(p.b, k->C) + lpips_eps);
    return p;
}

static float pixel_distance(const struct pixel *p, int64_t C)
{
    vf sum = {0};
    for (int64_t c = 0; c < C; c += VLEN) {
        int64_t live = C - c < VLEN ? C - c : VLEN;
        vf a = live == VLEN ? vload(p->a + c) : vload_part(p->a + c, live);
        vf b = live == VLEN ? vload(p->b + c) : vload_part(p->b + c, live);
        vf w = live == VLEN ? vload(p->w + c) : vload_part(p->w + c, live);
        vf gap = a * p->scale_a - b * p->scale_b;
        sum += w * gap * gap;
    }
    return vsum(sum);
}

aim_status KERNEL(lpips_distance)(struct backend *be, const struct tensor *a, const struct tensor *b, const struct tensor *w,
                                  const struct dropout *dropout, struct tensor *distance)
{
    struct lpips k;
    TRY(lpips_start(be, a, b, w, dropout, &k));
    int64_t N = a->shape[0];
    double *sums = mem_array(be->ctx, (size_t)(N * k.chunks), sizeof(double), MEM_ACTIVATIONS);
    if (!sums) {
        mem_free(k.kept);
        return AIM_ERR_MEMORY;
    }
#pragma omp parallel for num_threads(be->threads) schedule(static)
    for (int64_t chunk = 0; chunk < N * k.chunks; chunk++) {
        int64_t first = chunk % k.chunks * CHUNK, end = first + CHUNK < k.pixels ? first + CHUNK : k.pixels;
        sums[chunk] = 0;
        for (int64_t i = first; i < end; i++) {
            struct pixel p = pixel_at(&k, chunk / k.chunks * k.pixels + i);
            sums[chunk] += (double)pixel_distance(&p, k.C);
        }
    }
    for (int64_t n = 0; n < N; n++) {
        double sum = 0;
        for (int64_t chunk = 0; chunk < k.chunks; chunk++) sum += sums[n * k.chunks + chunk];
        f32(distance)[n] = (float)(sum / (double)k.pixels);
    }
    mem_free(sums);
    mem_free(k.kept);
    return AIM_OK;
}

/* With s = ‖a‖ and g = 2 up w (â - b̂): da = g / (s + eps) - a (g·a) / (s (s + eps)²) */
static void pixel_backward(const struct pixel *p, float up, int64_t C, float *da)
{
    if (p->length == 0) return;
    float along = 0;
    for (int64_t c = 0; c < C; c++) along += p->w[c] * (p->a[c] * p->scale_a - p->b[c] * p->scale_b) * p->a[c];
    const float scale = 2 * up * p->scale_a, back = along * p->scale_a / p->length;
    for (int64_t c = 0; c < C; c++) da[c] += scale * (p->w[c] * (p->a[c] * p->scale_a - p->b[c] * p->scale_b) - p->a[c] * back);
}

aim_status KERNEL(lpips_distance_backward)(struct backend *be, const struct tensor *a, const struct tensor *b,
                                           const struct tensor *w, const struct dropout *dropout,
                                           const struct tensor *ddistance, struct tensor *da)
{
    struct lpips k;
    TRY(lpips_start(be, a, b, w, dropout, &k));
    const int64_t N = a->shape[0];
#pragma omp parallel for num_threads(be->threads) schedule(static)
    for (int64_t i = 0; i < N * k.pixels; i++) {
        struct pixel p = pixel_at(&k, i);
        pixel_backward(&p, f32(ddistance)[i / k.pixels] / (float)k.pixels, k.C, f32(da) + i * k.C);
    }
    mem_free(k.kept);
    return AIM_OK;
}
