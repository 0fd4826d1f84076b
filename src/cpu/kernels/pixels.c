/* What stands between the convolutions of VGG and the discriminators: leaky relu, factors, max-pooling, blur. */
#include "cpu/kernels/kernels.h"

enum { SMALL = 1 << 16 }; /* values from which on threads help */

/* ------------------------------------------------------------------------------------------------- leaky relu */

aim_status KERNEL(leaky_relu)(struct backend *be, const struct tensor *x, float slope, struct tensor *y)
{
    int64_t n = tensor_count(x);
    const float *in = f32(x);
    float *out = f32(y);
#pragma omp parallel for simd num_threads(be->threads) schedule(static) if (n > SMALL)
    for (int64_t i = 0; i < n; i++) out[i] = in[i] > 0 ? in[i] : slope * in[i];
    return AIM_OK;
}

aim_status KERNEL(leaky_relu_backward)(struct backend *be, const struct tensor *x, float slope, const struct tensor *dy,
                                       struct tensor *dx)
{
    int64_t n = tensor_count(x);
    const float *in = f32(x), *up = f32(dy);
    float *to = f32(dx);
#pragma omp parallel for simd num_threads(be->threads) schedule(static) if (n > SMALL)
    for (int64_t i = 0; i < n; i++) to[i] += in[i] > 0 ? up[i] : slope * up[i];
    return AIM_OK;
}

aim_status KERNEL(scale)(struct backend *be, const struct tensor *x, float factor, struct tensor *y)
{
    int64_t n = tensor_count(x);
    const float *in = f32(x);
    float *out = f32(y);
#pragma omp parallel for simd num_threads(be->threads) schedule(static) if (n > SMALL)
    for (int64_t i = 0; i < n; i++) out[i] = factor * in[i];
    return AIM_OK;
}

aim_status KERNEL(scale_backward)(struct backend *be, float factor, const struct tensor *dy, struct tensor *dx)
{
    int64_t n = tensor_count(dy);
    const float *up = f32(dy);
    float *to = f32(dx);
#pragma omp parallel for simd num_threads(be->threads) schedule(static) if (n > SMALL)
    for (int64_t i = 0; i < n; i++) to[i] += factor * up[i];
    return AIM_OK;
}

/* ------------------------------------------------------------------------------------------------ max-pooling */

aim_status KERNEL(max_pool)(struct backend *be, const struct tensor *x, struct tensor *y)
{
    int64_t W = x->shape[2], C = x->shape[3], OH = y->shape[1], OW = y->shape[2], rows = y->shape[0] * OH;
#pragma omp parallel for num_threads(be->threads) schedule(static) if (tensor_count(x) > SMALL)
    for (int64_t row = 0; row < rows; row++) {
        const float *in = f32(x) + (row / OH * x->shape[1] + row % OH * 2) * W * C;
        float *out = f32(y) + row * OW * C;
        for (int64_t ox = 0; ox < OW; ox++, in += 2 * C, out += C)
            for (int64_t c = 0; c < C; c++) {
                float above = in[c] >= in[C + c] ? in[c] : in[C + c];
                float below = in[W * C + c] >= in[W * C + C + c] ? in[W * C + c] : in[W * C + C + c];
                out[c] = above >= below ? above : below;
            }
    }
    return AIM_OK;
}

aim_status KERNEL(max_pool_backward)(struct backend *be, const struct tensor *x, const struct tensor *dy, struct tensor *dx)
{
    int64_t W = x->shape[2], C = x->shape[3], OH = dy->shape[1], OW = dy->shape[2], rows = dy->shape[0] * OH;
#pragma omp parallel for num_threads(be->threads) schedule(static) if (tensor_count(x) > SMALL)
    for (int64_t row = 0; row < rows; row++) {
        int64_t at = (row / OH * x->shape[1] + row % OH * 2) * W * C;
        const float *in = f32(x) + at, *up = f32(dy) + row * OW * C;
        float *to = f32(dx) + at;
        for (int64_t ox = 0; ox < OW; ox++, in += 2 * C, to += 2 * C, up += C)
            for (int64_t c = 0; c < C; c++) {
                const int64_t corners[4] = {c, C + c, W * C + c, W * C + C + c};
                int64_t best = corners[0];
                for (int k = 1; k < 4; k++) best = in[corners[k]] > in[best] ? corners[k] : best;
                to[best] += up[c];
            }
    }
    return AIM_OK;
}

/* ------------------------------------------------------------------------------------------------------- blur */

/* Which pixel stands beyond the border: the mirror image. */
static int64_t mirror(int64_t i, int64_t n)
{
    return i < 0 ? -i : i >= n ? 2 * (n - 1) - i : i;
}

static const float blur_taps[3] = {0.25f, 0.5f, 0.25f};

aim_status KERNEL(blur)(struct backend *be, const struct tensor *x, struct tensor *y)
{
    int64_t H = x->shape[1], W = x->shape[2], C = x->shape[3], rows = x->shape[0] * H;
#pragma omp parallel for num_threads(be->threads) schedule(static) if (tensor_count(x) > SMALL)
    for (int64_t row = 0; row < rows; row++) {
        const float *picture = f32(x) + row / H * H * W * C;
        float *out = f32(y) + row * W * C;
        memset(out, 0, (size_t)(W * C) * sizeof(float));
        for (int64_t px = 0; px < W; px++, out += C)
            for (int tap = 0; tap < 9; tap++) {
                int64_t iy = mirror(row % H + tap / 3 - 1, H), ix = mirror(px + tap % 3 - 1, W);
                const float *in = picture + (iy * W + ix) * C, weight = blur_taps[tap / 3] * blur_taps[tap % 3];
                for (int64_t c = 0; c < C; c++) out[c] += weight * in[c];
            }
    }
    return AIM_OK;
}

/* How much the output at `from` takes of the input at `to` along an axis of n. */
static float blur_share(int64_t from, int64_t to, int64_t n)
{
    float sum = 0;
    for (int tap = 0; tap < 3; tap++) sum += mirror(from + tap - 1, n) == to ? blur_taps[tap] : 0;
    return sum;
}

aim_status KERNEL(blur_backward)(struct backend *be, const struct tensor *dy, struct tensor *dx)
{
    int64_t H = dy->shape[1], W = dy->shape[2], C = dy->shape[3], rows = dy->shape[0] * H;
#pragma omp parallel for num_threads(be->threads) schedule(static) if (tensor_count(dy) > SMALL)
    for (int64_t row = 0; row < rows; row++) {
        const float *picture = f32(dy) + row / H * H * W * C;
        float *to = f32(dx) + row * W * C;
        for (int64_t px = 0; px < W; px++, to += C)
            for (int tap = 0; tap < 9; tap++) {
                int64_t oy = row % H + tap / 3 - 1, ox = px + tap % 3 - 1;
                if (oy < 0 || ox < 0 || oy >= H || ox >= W) continue;
                const float *up = picture + (oy * W + ox) * C;
                float weight = blur_share(oy, row % H, H) * blur_share(ox, px, W);
                for (int64_t c = 0; c < C; c++) to[c] += weight * up[c];
            }
    }
    return AIM_OK;
}
