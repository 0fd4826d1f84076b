/*
 * The VQ-f16 tokenizer at 256x256, one picture: time and multiply-adds per second of decoding and encoding, beside the
 * multiply-add peak measured in between. Operations are counted as the plain formulas have them ("nominal"), so that a
 * convolution that needs fewer products than its formula shows as more than its share of the peak.
 */
#include <stdio.h>

#include "base/clock.h"
#include "tensor/limits.h"
#include "ceilings.h"
#include "model/model.h"

enum { RUNS = 9, SIDE = 256, GRID = 16 };

/* Counts the operations of a pass by standing in front of the backend's kernels. */
static struct {
    struct ops real;
    double operations;
} counter;

static aim_status count_conv2d(struct backend *be, const struct tensor *x, const struct tensor *w, const struct tensor *bias,
                               const struct conv2d *how, struct tensor *y)
{
    counter.operations += 2.0 * (double)tensor_count(y) * (double)tensor_count(w) / (double)w->shape[0];
    return counter.real.conv2d(be, x, w, bias, how, y);
}

static aim_status count_linear(struct backend *be, const struct tensor *x, const struct tensor *w, const struct tensor *bias,
                               struct tensor *y)
{
    counter.operations += 2.0 * (double)tensor_count(y) * (double)tensor_cols(x);
    return counter.real.linear(be, x, w, bias, y);
}

static aim_status count_attention(struct backend *be, const struct tensor *q, const struct tensor *k, const struct tensor *v,
                                  struct tensor *y)
{
    counter.operations += 4.0 * (double)tensor_count(q) * (double)q->shape[1];
    return counter.real.attention(be, q, k, v, y);
}

static aim_status pass(aim_model *model, bool decodes, float *pixels, int64_t *codes)
{
    return decodes ? aim_decode(model, codes, 1, GRID, GRID, pixels) : aim_encode(model, pixels, 1, SIDE, SIDE, codes);
}

static aim_status measure(aim_model *model, bool decodes, float *pixels, int64_t *codes)
{
    struct backend *be = model->ctx->backend;
    double times[RUNS], peaks[RUNS];
    counter.real = be->op;
    counter.operations = 0;
    be->op.conv2d = count_conv2d;
    be->op.linear = count_linear;
    be->op.attention = count_attention;
    aim_status status = pass(model, decodes, pixels, codes); /* counts, and warms up */
    be->op = counter.real;
    for (int i = 0; i < RUNS && status == AIM_OK; i++) {
        peaks[i] = ceiling_fma_gflops(model->ctx->threads);
        double start = clock_seconds();
        status = pass(model, decodes, pixels, codes);
        times[i] = clock_seconds() - start;
    }
    if (status != AIM_OK) return status;
    double time = limits_median(times, RUNS), peak = limits_median(peaks, RUNS), rate = counter.operations / time * 1e-9;
    printf("%-7s %9.1f %11.1f %11.1f %11.1f %7.0f%%\n", decodes ? "decode" : "encode", 1e3 * time, counter.operations * 1e-9,
           rate, peak, 100 * rate / peak);
    return AIM_OK;
}

int main(void)
{
    aim_context *ctx;
    aim_model *model = NULL;
    aim_status status = aim_context_create(NULL, &ctx);
    if (status == AIM_OK) status = aim_model_init(ctx, "AiM-B", 0, &model);
    float *pixels = status == AIM_OK ? mem_zero(ctx, 3 * SIDE * SIDE, sizeof *pixels, MEM_MISC) : NULL;
    int64_t codes[GRID * GRID];
    for (int i = 0; i < GRID * GRID; i++) codes[i] = i * 61 % 16384;
    if (pixels) {
        printf("VQ-f16 at 256x256, one picture, f32, %s; random weights.\n\n", aim_context_device(ctx));
        printf("%-7s %9s %11s %11s %11s %8s\n", "", "ms", "GFLOP", "GFLOP/s", "peak", "share");
        status = measure(model, true, pixels, codes);
        if (status == AIM_OK) status = measure(model, false, pixels, codes);
    }
    if (status != AIM_OK) fprintf(stderr, "bench_tokenizer: %s\n", aim_last_error(ctx));
    mem_free(pixels);
    aim_model_free(model);
    aim_context_free(ctx);
    return status != AIM_OK;
}
