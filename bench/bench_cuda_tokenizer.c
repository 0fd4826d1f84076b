/*
 * The VQ-f16 tokenizer at 256x256 on a GPU, random weights: milliseconds a picture for decoding and encoding in batches of 1,
 * 8 and 64, in float32 and bf16, and where a decoding's time goes; pictures per second of stage 1's autoencoder, forward and
 * backward with its own losses, and where that time goes: for VQ-f16, and a narrow network of a quarter of its channels.
 *
 *     bench_cuda_tokenizer [rounds]
 *
 * Operations are counted as the plain formulas have them, and shown as a share of what a large bf16 product reaches on the
 * same GPU in the same run. Times are medians of rounds.
 */
#include <stdio.h>
#include <string.h>

#include "bench.h"
#include "model/model.h"
#include "tensor/tape.h"

enum { MOST_ROUNDS = 99, SIDE = 256, GRID = 16, LARGEST = 64, TRAINED = 16, NARROW = 4 };

enum part {
    CONVOLUTION,
    NORM,
    ATTENTION,
    LINEAR,
    ADD,
    CONVOLUTION_DX,
    CONVOLUTION_DW,
    CONVOLUTION_DBIAS,
    NORM_BACK,
    ATTENTION_BACK,
    LINEAR_BACK,
    PARTS
};
static const char *const part_names[PARTS] = {"convolutions", "norms",          "attention",  "linear",
                                              "add",          "their dx",       "dw",         "and dbias",
                                              "norms back",   "attention back", "linear back"};

/* Stands in front of the backend's kernels: counts operations, and times each call when asked to. */
static struct {
    struct ops real;
    double operations, seconds[PARTS];
    bool times;
} watch;

static struct {
    aim_context *ctx;
    aim_model *model;
    struct exec ex;
    int rounds;
    double peak;   /* operations per second of a bf16 product */
    float *pixels; /* (LARGEST, 3, SIDE, SIDE) */
} bench;

static void check(aim_status status)
{
    if (status == AIM_OK) return;
    fprintf(stderr, "bench_cuda_tokenizer: %s\n", aim_last_error(bench.ctx));
    exit(1);
}

/* Waits for what the GPU has to do. */
static void wait(void)
{
    struct backend *be = bench.ctx->backend;
    float value;
    check(be->memory.download(be, &value, bench.model->vq->codebook->data, sizeof value));
}

/* `call`, counted to a part. */
#define WATCH(part, count, call)                                                                                               \
    do {                                                                                                                       \
        watch.operations += count;                                                                                             \
        if (!watch.times) return call;                                                                                         \
        wait();                                                                                                                \
        double start_ = bench_seconds();                                                                                       \
        aim_status status_ = call;                                                                                             \
        wait();                                                                                                                \
        watch.seconds[part] += bench_seconds() - start_;                                                                       \
        return status_;                                                                                                        \
    } while (0)

static aim_status watch_conv2d(struct backend *be, const struct tensor *x, const struct tensor *w, const struct tensor *bias,
                               const struct conv2d *how, struct tensor *y)
{
    WATCH(CONVOLUTION, 2.0 * (double)tensor_count(y) * (double)tensor_count(w) / (double)w->shape[0],
          watch.real.conv2d(be, x, w, bias, how, y));
}

static aim_status watch_norm(struct backend *be, const struct tensor *x, const struct tensor *w, const struct tensor *b,
                             int groups, float eps, bool silu, struct tensor *y)
{
    WATCH(NORM, 0, watch.real.group_norm_silu(be, x, w, b, groups, eps, silu, y));
}

static aim_status watch_attention(struct backend *be, const struct tensor *q, const struct tensor *k, const struct tensor *v,
                                  struct tensor *y)
{
    WATCH(ATTENTION, 4.0 * (double)tensor_count(q) * (double)q->shape[1], watch.real.attention(be, q, k, v, y));
}

static aim_status watch_linear(struct backend *be, const struct tensor *x, const struct tensor *w, const struct tensor *bias,
                               struct tensor *y)
{
    WATCH(LINEAR, 2.0 * (double)tensor_count(y) * (double)tensor_cols(x), watch.real.linear(be, x, w, bias, y));
}

static aim_status watch_add(struct backend *be, const struct tensor *a, const struct tensor *b, struct tensor *y)
{
    WATCH(ADD, 0, watch.real.add(be, a, b, y));
}

/* The three gradients one by one. */
static aim_status watch_conv2d_gradient(struct backend *be, enum part part, const struct tensor *x, const struct tensor *w,
                                        const struct conv2d *how, const struct tensor *dy, struct tensor *d)
{
    WATCH(part, 0,
          watch.real.conv2d_backward(be, x, w, how, dy, part == CONVOLUTION_DX ? d : NULL, part == CONVOLUTION_DW ? d : NULL,
                                     part == CONVOLUTION_DBIAS ? d : NULL));
}

static aim_status watch_conv2d_back(struct backend *be, const struct tensor *x, const struct tensor *w,
                                    const struct conv2d *how, const struct tensor *dy, struct tensor *dx, struct tensor *dw,
                                    struct tensor *dbias)
{
    if (dx) TRY(watch_conv2d_gradient(be, CONVOLUTION_DX, x, w, how, dy, dx));
    if (dw) TRY(watch_conv2d_gradient(be, CONVOLUTION_DW, x, w, how, dy, dw));
    return dbias ? watch_conv2d_gradient(be, CONVOLUTION_DBIAS, x, w, how, dy, dbias) : AIM_OK;
}

static aim_status watch_norm_back(struct backend *be, const struct tensor *x, const struct tensor *w, const struct tensor *b,
                                  int groups, float eps, bool silu, const struct tensor *dy, struct tensor *dx,
                                  struct tensor *dw, struct tensor *db)
{
    WATCH(NORM_BACK, 0, watch.real.group_norm_silu_backward(be, x, w, b, groups, eps, silu, dy, dx, dw, db));
}

static aim_status watch_attention_back(struct backend *be, const struct tensor *q, const struct tensor *k,
                                       const struct tensor *v, const struct tensor *dy, struct tensor *dq, struct tensor *dk,
                                       struct tensor *dv)
{
    WATCH(ATTENTION_BACK, 0, watch.real.attention_backward(be, q, k, v, dy, dq, dk, dv));
}

static aim_status watch_linear_back(struct backend *be, const struct tensor *x, const struct tensor *w, const struct tensor *dy,
                                    struct tensor *dx, struct tensor *dw, struct tensor *dbias)
{
    WATCH(LINEAR_BACK, 0, watch.real.linear_backward(be, x, w, dy, dx, dw, dbias));
}

static void watch_start(bool times)
{
    struct ops *op = &bench.ctx->backend->op;
    watch.real = *op;
    watch.operations = 0;
    watch.times = times;
    memset(watch.seconds, 0, sizeof watch.seconds);
    op->conv2d = watch_conv2d;
    op->group_norm_silu = watch_norm;
    op->attention = watch_attention;
    op->linear = watch_linear;
    op->add = watch_add;
    op->conv2d_backward = watch_conv2d_back;
    op->group_norm_silu_backward = watch_norm_back;
    op->attention_backward = watch_attention_back;
    op->linear_backward = watch_linear_back;
}

static void watch_stop(void)
{
    bench.ctx->backend->op = watch.real;
}

/* ------------------------------------------------------------------------------------------ encoding, decoding */

/* One pass over n pictures whose input is on the GPU already. */
static void pass(bool decodes, const struct tensor *in, int64_t n)
{
    struct exec *ex = &bench.ex;
    struct vq *vq = bench.model->vq;
    struct tensor *latent = decodes ? NULL : vq_latent(ex, vq, in);
    struct tensor *out = decodes ? vq_decode(ex, vq, in, n, GRID, GRID) : vq_quantise(ex, vq, latent);
    tensor_drop(latent);
    tensor_drop(out);
    check(ex->status);
}

static struct tensor *input(bool decodes, int64_t n)
{
    int32_t *ids = mem_array(bench.ctx, (size_t)n * GRID * GRID, sizeof *ids, MEM_MISC);
    if (!ids) check(AIM_ERR_MEMORY);
    for (int64_t i = 0; i < n * GRID * GRID; i++) ids[i] = (int32_t)(i * 61 % 16384);
    struct tensor *t = decodes ? tensor_from_host(&bench.ex, T_I32, SHAPE(n * GRID * GRID), ids)
                               : tensor_from_host(&bench.ex, T_F32, SHAPE(n, 3, SIDE, SIDE), bench.pixels);
    mem_free(ids);
    check(bench.ex.status);
    return t;
}

static void show_parts(double all)
{
    double known = 0;
    printf("        ");
    for (int i = 0; i < PARTS; i++) {
        if (watch.seconds[i] == 0) continue;
        printf(" %s %.0f%%,", part_names[i], 100 * watch.seconds[i] / all);
        known += watch.seconds[i];
    }
    printf(" rest %.0f%% (each call waited for)\n", 100 * (all - known) / all);
}

static void measure(bool decodes, int64_t n)
{
    double times[MOST_ROUNDS];
    struct tensor *in = input(decodes, n);
    watch_start(false);
    pass(decodes, in, n); /* counts, and warms up */
    watch_stop();
    double operations = watch.operations;
    pass(decodes, in, n);
    for (int i = 0; i < bench.rounds; i++) {
        wait();
        double start = bench_seconds();
        pass(decodes, in, n);
        wait();
        times[i] = bench_seconds() - start;
    }
    double time = bench_median(times, (size_t)bench.rounds);
    printf("%-8s %-5s %5lld %10.3f %10.1f %7.0f%%\n", decodes ? "decode" : "encode", bench.ctx->backend->bf16 ? "bf16" : "f32",
           (long long)n, 1e3 * time / (double)n, 1e-12 * operations / time, 100 * operations / time / bench.peak);
    if (decodes) {
        watch_start(true);
        double start = bench_seconds();
        pass(decodes, in, n);
        wait();
        show_parts(bench_seconds() - start);
        watch_stop();
    }
    tensor_drop(in);
    exec_clear(&bench.ex);
}

/* --------------------------------------------------------------------------------------------------- training */

static void step(struct vq *vq, const struct tensor *pixels)
{
    struct exec *ex = &bench.ex;
    struct tape tape;
    struct vq_training training;
    tape_start(&tape, ex);
    struct tensor *image = vq_train_forward(ex, vq, pixels, &training);
    struct tensor *mse = op_mean_square(ex, image, pixels, 1.0f), *some = op_add(ex, mse, training.vq);
    struct tensor *all = op_add(ex, some, training.commit);
    check(ex->status);
    check(tape_backward(&tape, all, 1.0f));
    tape_stop(&tape);
    struct tensor *done[] = {image, mse, some, all};
    for (size_t i = 0; i < sizeof done / sizeof done[0]; i++) tensor_drop(done[i]);
    vq_training_clear(&training);
}

static void measure_steps(const char *name, struct vq *vq)
{
    double times[MOST_ROUNDS];
    struct tensor *pixels = input(false, TRAINED);
    step(vq, pixels);
    step(vq, pixels);
    for (int i = 0; i < bench.rounds; i++) {
        wait();
        double start = bench_seconds();
        step(vq, pixels);
        wait();
        times[i] = bench_seconds() - start;
    }
    double time = bench_median(times, (size_t)bench.rounds);
    printf("training %s, %-4s %5d %10.3f ms a picture, %.1f pictures/s (autoencoder, forward and backward)\n", name,
           bench.ctx->backend->bf16 ? "bf16" : "f32", TRAINED, 1e3 * time / TRAINED, TRAINED / time);
    watch_start(true);
    double start = bench_seconds();
    step(vq, pixels);
    wait();
    show_parts(bench_seconds() - start);
    watch_stop();
    tensor_drop(pixels);
    exec_clear(&bench.ex);
}

static void measure_training(void)
{
    struct vq *vq = NULL;
    check(vq_build_trainable(&bench.model->config.vq, &bench.model->vq_table, &vq));
    measure_steps("VQ-f16", vq);
    vq_free(vq);
    struct vq_config config = bench.model->config.vq;
    struct params table = {.ctx = bench.ctx, .prefix = VQ_PREFIX};
    config.base_channels /= NARROW;
    check(vq_describe(&config, &table));
    check(params_init(&table, 0));
    check(vq_build_trainable(&config, &table, &vq));
    measure_steps("narrow", vq);
    vq_free(vq);
    params_free(&table);
}

/* --------------------------------------------------------------------------------------------------- the run */

/* The rate of a large bf16 product. */
static void measure_peak(void)
{
    enum { ROWS = 8192, CALLS = 10 };
    struct exec *ex = &bench.ex;
    struct backend *be = bench.ctx->backend;
    double times[MOST_ROUNDS];
    struct tensor *f = tensor_new(ex, T_F32, SHAPE(ROWS, ROWS)), *x = tensor_new(ex, T_BF16, SHAPE(ROWS, ROWS));
    struct tensor *w = tensor_new(ex, T_BF16, SHAPE(ROWS, ROWS)), *y = tensor_new(ex, T_BF16, SHAPE(ROWS, ROWS));
    check(ex->status);
    for (int64_t at = 0; at < (int64_t)ROWS * ROWS; at += 3 * SIDE * SIDE) { /* a product of zeros would run too fast */
        int64_t left = (int64_t)ROWS * ROWS - at, part = left < 3 * SIDE * SIDE ? left : 3 * SIDE * SIDE;
        check(be->memory.upload(be, f32(f) + at, bench.pixels, (size_t)part * sizeof(float)));
    }
    check(be->op.cast(be, f, x));
    check(be->op.cast(be, f, w));
    check(be->op.linear(be, x, w, NULL, y));
    for (int i = 0; i < bench.rounds; i++) {
        wait();
        double start = bench_seconds();
        for (int call = 0; call < CALLS; call++) check(be->op.linear(be, x, w, NULL, y));
        wait();
        times[i] = (bench_seconds() - start) / CALLS;
    }
    bench.peak = 2.0 * ROWS * (double)ROWS * ROWS / bench_median(times, (size_t)bench.rounds);
    struct tensor *done[] = {f, x, w, y};
    for (size_t i = 0; i < sizeof done / sizeof done[0]; i++) tensor_drop(done[i]);
    exec_clear(ex);
}

static void fill_pixels(void)
{
    uint32_t state = 12345;
    bench.pixels = mem_array(bench.ctx, (size_t)LARGEST * 3 * SIDE * SIDE, sizeof *bench.pixels, MEM_MISC);
    if (!bench.pixels) check(AIM_ERR_MEMORY);
    for (int64_t i = 0; i < (int64_t)LARGEST * 3 * SIDE * SIDE; i++) {
        state = state * 1664525u + 1013904223u;
        bench.pixels[i] = (float)(state >> 8) * 0x1p-23f - 1;
    }
}

int main(int argc, char **argv)
{
    static const int64_t batches[] = {1, 8, 64};
    int rounds = argc > 1 ? atoi(argv[1]) : 9;
    aim_context_options options = aim_context_defaults();
    options.device = "cuda";
    if (aim_context_create(&options, &bench.ctx) != AIM_OK) {
        printf("bench_cuda_tokenizer: no GPU (%s)\n", aim_last_error(bench.ctx));
        aim_context_free(bench.ctx);
        return 0;
    }
    bench.rounds = rounds < 1 ? 1 : rounds > MOST_ROUNDS ? MOST_ROUNDS : rounds;
    check(aim_model_init(bench.ctx, "AiM-B", 0, &bench.model));
    check(model_need_vq(bench.model));
    exec_init(&bench.ex, bench.ctx);
    fill_pixels();
    measure_peak();
    printf("VQ-f16 at 256x256, %s; random weights; bf16 product %.0f TFLOP/s\n\n", aim_context_device(bench.ctx),
           1e-12 * bench.peak);
    printf("%-8s %-5s %5s %10s %10s %8s\n", "", "type", "batch", "ms/picture", "TFLOP/s", "share");
    for (int bf16 = 0; bf16 < 2; bf16++) {
        bench.ctx->backend->bf16 = bf16;
        for (int decodes = 1; decodes >= 0; decodes--)
            for (size_t i = 0; i < sizeof batches / sizeof batches[0]; i++) measure(decodes, batches[i]);
        measure_training();
    }
    mem_free(bench.pixels);
    aim_model_free(bench.model);
    aim_context_free(bench.ctx);
    return 0;
}
