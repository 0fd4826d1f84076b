/*
 * The tokenizer at 256x256 on a GPU, random weights.
 *
 *     bench_cuda_tokenizer [rounds]
 *
 * VQ-f16: milliseconds a picture for decoding and encoding, in float32 and bf16, and where a decoding's time goes. Training in
 * bf16, of VQ-f16 and of a narrow network, the one of models/demo: forward; forward and backward, and where that time goes; a
 * step of both halves with PatchGAN, up to the optimizers. Then the largest ops of the narrow network, each beside its floor,
 * the larger one of its operations at the rate of a large product and its bytes at the rate of a copy, and convolutions beside
 * cuDNN's (a second context, with AIM_CUDA_CONV=cudnn).
 *
 * Operations are counted as the plain formulas have them, and shown as a share of what a large bf16 product reaches on the
 * same GPU in the same run. Times are medians of rounds.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "tensor/limits.h"
#include "model/model.h"
#include "tensor/tape.h"
#include "train/vq_step.h"

enum { MOST_ROUNDS = 99, SIDE = 256, GRID = 16, LARGEST = 64, TRAINED = 16 };

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
    double copy;   /* bytes per second that a copy reads and writes */
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
    struct tensor *t = tensor_new(&bench.ex, T_F32, SHAPE(1));
    float value;
    check(bench.ex.status);
    check(be->memory.download(be, &value, t->data, sizeof value));
    tensor_drop(t);
}

/* `call`, counted to a part. */
#define WATCH(part, count, call)                                                                                               \
    do {                                                                                                                       \
        watch.operations += count;                                                                                             \
        if (!watch.times) return call;                                                                                         \
        wait();                                                                                                                \
        double start_ = clock_seconds();                                                                                       \
        aim_status status_ = call;                                                                                             \
        wait();                                                                                                                \
        watch.seconds[part] += clock_seconds() - start_;                                                                       \
        return status_;                                                                                                        \
    } while (0)

static aim_status watch_conv2d(struct backend *be, const struct tensor *x, const struct tensor *w, const struct tensor *bias,
                               const struct conv2d *how, struct tensor *y)
{
    WATCH(CONVOLUTION, 2.0 * (double)tensor_count(y) * (double)tensor_count(w) / (double)w->shape[0],
          watch.real.conv2d(be, x, w, bias, how, y));
}

static aim_status watch_norm(struct backend *be, const struct tensor *x, const struct tensor *w, const struct tensor *b,
                             int groups, float eps, bool silu, struct tensor *statistics, struct tensor *y)
{
    WATCH(NORM, 0, watch.real.group_norm_silu(be, x, w, b, groups, eps, silu, statistics, y));
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
                                  int groups, float eps, bool silu, const struct tensor *statistics, const struct tensor *dy,
                                  struct tensor *dx, struct tensor *dw, struct tensor *db)
{
    WATCH(NORM_BACK, 0, watch.real.group_norm_silu_backward(be, x, w, b, groups, eps, silu, statistics, dy, dx, dw, db));
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
        double start = clock_seconds();
        pass(decodes, in, n);
        wait();
        times[i] = clock_seconds() - start;
    }
    double time = limits_median(times, (size_t)bench.rounds);
    printf("%-8s %-5s %5lld %10.3f %10.1f %7.0f%%\n", decodes ? "decode" : "encode", bench.ctx->backend->bf16 ? "bf16" : "f32",
           (long long)n, 1e3 * time / (double)n, 1e-12 * operations / time, 100 * operations / time / bench.peak);
    if (decodes) {
        watch_start(true);
        double start = clock_seconds();
        pass(decodes, in, n);
        wait();
        show_parts(clock_seconds() - start);
        watch_stop();
    }
    tensor_drop(in);
    exec_clear(&bench.ex);
}

/* --------------------------------------------------------------------------------------------------- training */

/* What is trained, on the same pictures every time. */
struct training {
    const char *name;
    struct vq *vq;
    struct vq_loss loss;
    struct tensor *pixels;
    int32_t *ids;
};

static void forward(const struct training *t)
{
    struct vq_training training;
    struct tensor *image = vq_train_forward(&bench.ex, t->vq, t->pixels, &training);
    check(bench.ex.status);
    tensor_drop(image);
    vq_training_clear(&training);
}

static void autoencoder(const struct training *t)
{
    struct exec *ex = &bench.ex;
    struct tape tape;
    struct vq_training training;
    tape_start(&tape, ex);
    struct tensor *image = vq_train_forward(ex, t->vq, t->pixels, &training);
    struct tensor *mse = op_mean_square(ex, image, t->pixels, 1.0f), *some = op_add(ex, mse, training.vq);
    struct tensor *all = op_add(ex, some, training.commit);
    check(ex->status);
    vq_training_clear(&training);
    check(tape_backward(&tape, all, 1.0f));
    tape_stop(&tape);
    struct tensor *done[] = {image, mse, some, all};
    for (size_t i = 0; i < sizeof done / sizeof done[0]; i++) tensor_drop(done[i]);
}

static void both_halves(const struct training *t)
{
    struct vq_step_values values;
    struct tensor *fake;
    check(vq_step_generator(&bench.ex, t->vq, &t->loss, t->pixels, 1, 1, &fake, t->ids, &values));
    check(vq_step_discriminator(&bench.ex, &t->loss, t->pixels, fake, 1, 1, &values));
    tensor_drop(fake);
}

static void measure_work(const struct training *t, const char *what, void (*work)(const struct training *t))
{
    double times[MOST_ROUNDS], n = (double)t->pixels->shape[0];
    work(t);
    work(t);
    for (int i = 0; i < bench.rounds; i++) {
        wait();
        double start = clock_seconds();
        work(t);
        wait();
        times[i] = clock_seconds() - start;
    }
    double time = limits_median(times, (size_t)bench.rounds);
    printf("training %-7s %3.0f %-40s %9.2f ms %9.1f pictures/s\n", t->name, n, what, 1e3 * time, n / time);
    fflush(stdout);
}

static void measure_network(const char *name, const struct vq_config *config, const struct params *table, int64_t batch,
                            int channels)
{
    const struct discriminator_config judge = {DISCRIMINATOR_PATCH, SIDE, channels};
    struct params judges = {.ctx = bench.ctx, .prefix = ""};
    struct training t = {.name = name, .loss = {.options = vq_loss_defaults()}};
    check(vq_build_trainable(config, table, &t.vq));
    check(discriminator_describe(&judge, &judges));
    check(params_init(&judges, 0));
    check(discriminator_build(&judge, &judges, &t.loss.discriminator));
    t.loss.options.start = 0;
    t.pixels = input(false, batch);
    t.ids = mem_array(bench.ctx, (size_t)batch * GRID * GRID, sizeof *t.ids, MEM_MISC);
    if (!t.ids) check(AIM_ERR_MEMORY);
    measure_work(&t, "forward", forward);
    measure_work(&t, "forward and backward", autoencoder);
    watch_start(true);
    double start = clock_seconds();
    autoencoder(&t);
    wait();
    show_parts(clock_seconds() - start);
    watch_stop();
    measure_work(&t, "both halves with PatchGAN", both_halves);
    t.loss.options.adaptive = true;
    measure_work(&t, "the same, adaptive weight", both_halves);
    mem_free(t.ids);
    tensor_drop(t.pixels);
    discriminator_free(t.loss.discriminator);
    params_free(&judges);
    vq_free(t.vq);
    exec_clear(&bench.ex);
}

static void measure_training(void)
{
    const struct vq_config narrow = {.base_channels = 32,
                                     .levels = 5,
                                     .multiplier = {1, 1, 2, 2, 4},
                                     .res_blocks = 1,
                                     .z_channels = 64,
                                     .codebook_size = 1024,
                                     .codebook_dim = 8,
                                     .norm_groups = VQ_NORM_GROUPS};
    struct params table = {.ctx = bench.ctx, .prefix = VQ_PREFIX};
    check(vq_describe(&narrow, &table));
    check(params_init(&table, 0));
    measure_network("narrow", &narrow, &table, LARGEST, 64);
    measure_network("VQ-f16", &bench.model->config.vq, &bench.model->vq_table, TRAINED, 64);
    params_free(&table);
}

/* ------------------------------------------------------------------------------------------------- single ops */

/* Kinds of work on a map, and the maps: `side` is x's, or a norm's. */
enum kind { OUTPUT, INPUTS, WEIGHTS, NORM_FORWARD, NORM_BACKWARD, SUM, KINDS };
static const char *const kind_names[KINDS] = {"conv2d", "conv2d dx", "conv2d dw, dbias", "norm, silu", "its gradient", "add"};

static const struct map_case {
    int64_t side, I, O;
    struct conv2d how;
} map_cases[] = {{256, 32, 32, {1, 1, 1, false}}, {128, 32, 32, {1, 1, 1, true}},  {256, 32, 32, {2, 0, 1, false}},
                 {64, 64, 64, {1, 1, 1, true}},   {128, 64, 32, {1, 1, 1, false}}, {64, 64, 64, {1, 1, 1, false}},
                 {256, 3, 32, {1, 1, 1, false}},  {256, 32, 3, {1, 1, 1, false}}};
enum { MAPS = sizeof map_cases / sizeof map_cases[0] };

/* Numbers that are not zeros, in bf16 or float32, in memory of the GPU. */
static struct tensor *numbers(enum tensor_type type, int ndim, const int64_t *shape)
{
    struct exec *ex = &bench.ex;
    struct backend *be = bench.ctx->backend;
    struct tensor *t = tensor_new(ex, type, ndim, shape);
    check(ex->status);
    int64_t n = tensor_count(t), some = n < 3 * SIDE * SIDE ? n : 3 * SIDE * SIDE;
    struct tensor *few = tensor_from_host(ex, T_F32, SHAPE(some), bench.pixels),
                  part = tensor_view(type, t->data, some, 0, 0, 0);
    check(ex->status);
    check(be->op.cast(be, few, &part));
    tensor_drop(few);
    size_t size = tensor_type_size(type);
    for (int64_t at = some; at < n; at += some)
        check(
            be->memory.copy(be, (char *)t->data + (size_t)at * size, t->data, (size_t)(n - at < some ? n - at : some) * size));
    return t;
}

struct work {
    struct tensor *x, *w, *b, *y, *dx, *dw, *db, *statistics;
    const struct map_case *map;
};

static aim_status run_kind(const struct work *k, enum kind kind)
{
    struct backend *be = bench.ctx->backend;
    const struct conv2d *how = &k->map->how;
    k->dx->fresh = (struct fresh_columns){0, tensor_cols(k->dx)};
    switch (kind) {
    case OUTPUT: return be->op.conv2d(be, k->x, k->w, k->b, how, k->y);
    case INPUTS: return be->op.conv2d_backward(be, k->x, k->w, how, k->y, k->dx, NULL, NULL);
    case WEIGHTS: return be->op.conv2d_backward(be, k->x, k->w, how, k->y, NULL, k->dw, k->db);
    case NORM_FORWARD: return be->op.group_norm_silu(be, k->x, k->b, k->db, VQ_NORM_GROUPS, 1e-6f, true, k->statistics, k->y);
    case NORM_BACKWARD:
        return be->op.group_norm_silu_backward(be, k->x, k->b, k->db, VQ_NORM_GROUPS, 1e-6f, true, k->statistics, k->y, k->dx,
                                               k->db, k->b);
    default: return be->op.add(be, k->x, k->y, k->dx);
    }
}

static double time_kind(const struct work *k, enum kind kind)
{
    enum { CALLS = 4 };
    double times[MOST_ROUNDS];
    check(run_kind(k, kind));
    for (int i = 0; i < bench.rounds; i++) {
        wait();
        double start = clock_seconds();
        for (int call = 0; call < CALLS; call++) check(run_kind(k, kind));
        wait();
        times[i] = (clock_seconds() - start) / CALLS;
    }
    return limits_median(times, (size_t)bench.rounds);
}

/* What a call must read and write, in maps of x and of y. */
static double floor_of(const struct work *k, enum kind kind)
{
    static const double of_x[KINDS] = {1, 1, 1, 3, 5, 2}, of_y[KINDS] = {1, 1, 1, 0, 0, 1};
    double bytes = 2 * (of_x[kind] * (double)tensor_count(k->x) + of_y[kind] * (double)tensor_count(k->y)) / bench.copy;
    double operations = kind > WEIGHTS ? 0 : 2.0 * (double)tensor_count(k->y) * (double)(k->map->I * 9) / bench.peak;
    return bytes > operations ? bytes : operations;
}

/* seconds[kind]; 0 where it is not measured */
static void time_map(const struct map_case *map, double seconds[KINDS], double floors[KINDS])
{
    struct exec *ex = &bench.ex;
    int64_t N = LARGEST, H = map->how.upsample ? 2 * map->side : map->side / map->how.stride;
    struct work k = {.map = map};
    bool norm = map == &map_cases[0];
    k.x = numbers(T_BF16, SHAPE(N, map->side, map->side, map->I));
    k.y = numbers(T_BF16, SHAPE(N, H, H, map->O));
    k.dx = tensor_new(ex, T_BF16, 4, k.x->shape);
    k.w = numbers(T_F32, SHAPE(map->O, map->I, 3, 3));
    k.dw = numbers(T_F32, SHAPE(map->O, map->I, 3, 3));
    k.b = numbers(T_F32, SHAPE(map->O));
    k.db = numbers(T_F32, SHAPE(map->O));
    k.statistics = tensor_new(ex, T_F32, SHAPE(N, VQ_NORM_GROUPS, 2));
    check(ex->status);
    for (enum kind kind = 0; kind < KINDS; kind++) {
        seconds[kind] = kind <= WEIGHTS || norm ? time_kind(&k, kind) : 0;
        floors[kind] = floor_of(&k, kind);
    }
    struct tensor *done[] = {k.x, k.w, k.b, k.y, k.dx, k.dw, k.db, k.statistics};
    for (size_t i = 0; i < sizeof done / sizeof done[0]; i++) tensor_drop(done[i]);
    exec_clear(ex);
}

/* The same calls in a context whose convolutions are all cuDNN's. */
static void time_library(double seconds[MAPS][KINDS])
{
    aim_context *ctx = bench.ctx;
    aim_context_options options = aim_context_defaults();
    double floors[KINDS];
    options.device = "cuda";
    setenv("AIM_CUDA_CONV", "cudnn", 1);
    check(aim_context_create(&options, &bench.ctx));
    unsetenv("AIM_CUDA_CONV");
    exec_init(&bench.ex, bench.ctx);
    bench.ctx->backend->bf16 = true;
    for (int i = 0; i < MAPS; i++) time_map(&map_cases[i], seconds[i], floors);
    aim_context_free(bench.ctx);
    bench.ctx = ctx;
    exec_init(&bench.ex, bench.ctx);
}

static void measure_ops(void)
{
    static double library[MAPS][KINDS];
    double seconds[KINDS], floors[KINDS];
    time_library(library);
    printf("\n%-18s %-28s %9s %9s %7s %9s\n", "64 pictures, bf16", "", "ms", "floor ms", "share", "cuDNN ms");
    for (int i = 0; i < MAPS; i++) {
        const struct map_case *m = &map_cases[i];
        time_map(m, seconds, floors);
        for (enum kind kind = 0; kind < KINDS; kind++) {
            char shape[64];
            if (seconds[kind] == 0) continue;
            snprintf(shape, sizeof shape, "%lldx%lld%s, %lld -> %lld", (long long)m->side, (long long)m->side,
                     m->how.upsample      ? " up"
                     : m->how.stride == 2 ? " down"
                                          : "",
                     (long long)m->I, (long long)m->O);
            printf("%-18s %-28s %9.3f %9.3f %6.0f%%", kind_names[kind], shape, 1e3 * seconds[kind], 1e3 * floors[kind],
                   100 * floors[kind] / seconds[kind]);
            if (kind <= WEIGHTS) printf(" %9.3f", 1e3 * library[i][kind]);
            printf("\n");
        }
    }
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
        double start = clock_seconds();
        for (int call = 0; call < CALLS; call++) check(be->op.linear(be, x, w, NULL, y));
        wait();
        times[i] = (clock_seconds() - start) / CALLS;
    }
    bench.peak = 2.0 * ROWS * (double)ROWS * ROWS / limits_median(times, (size_t)bench.rounds);
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
    int rounds = argc > 1 ? atoi(argv[1]) : 5;
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
    check(limits_copy(&bench.ex, &bench.copy));
    exec_clear(&bench.ex);
    printf("256x256, %s; random weights; bf16 product %.0f TFLOP/s, copy %.2f TB/s\n\n", aim_context_device(bench.ctx),
           1e-12 * bench.peak, 1e-12 * bench.copy);
    bench.ctx->backend->bf16 = true;
    measure_training();
    measure_ops();
    printf("\n");
    printf("%-8s %-5s %5s %10s %10s %8s\n", "", "type", "batch", "ms/picture", "TFLOP/s", "share");
    for (int bf16 = 1; bf16 >= 0; bf16--) {
        bench.ctx->backend->bf16 = bf16;
        for (int decodes = 1; decodes >= 0; decodes--)
            for (size_t i = 0; i < sizeof batches / sizeof batches[0]; i++)
                if (bf16 || batches[i] < LARGEST) measure(decodes, batches[i]);
    }
    mem_free(bench.pixels);
    aim_model_free(bench.model);
    aim_context_free(bench.ctx);
    return 0;
}
