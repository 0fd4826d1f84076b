/*
 * The convolutions of the VQ-f16 decoder at 256x256, one picture: our conv2d beside the multiply-add peak, oneDNN's own
 * convolution (in the orders it likes best, reorders left out) and the patches kernel, all measured in turns.
 *
 *     bench_conv [threads [rounds]]
 *
 * GFLOP/s are nominal: 2 k k I O operations for every output pixel, whatever the algorithm does. Above 100% of the peak
 * means fewer operations than that.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "tensor/limits.h"
#include "ceilings.h"
#include "cpu/cpu.h"
#ifdef AIM_HAVE_ONEDNN
#include <omp.h>

#include "cpu/onednn_compat.h"
#endif

enum { MAX_ROUNDS = 99 };

struct shape {
    int64_t I, O, size, k; /* size: height and width of the output */
    bool upsample;
    int count; /* in the decoder */
};

static const struct shape shapes[] = {
    {8, 256, 16, 1, false, 1},    {256, 512, 16, 3, false, 1},  {512, 512, 16, 3, false, 10}, {512, 512, 16, 1, false, 16},
    {512, 512, 32, 3, true, 1},   {512, 256, 32, 3, false, 1},  {256, 256, 32, 3, false, 5},  {512, 256, 32, 1, false, 1},
    {256, 256, 64, 3, true, 1},   {256, 256, 64, 3, false, 6},  {256, 256, 128, 3, true, 1},  {256, 128, 128, 3, false, 1},
    {128, 128, 128, 3, false, 5}, {256, 128, 128, 1, false, 1}, {128, 128, 256, 3, true, 1},  {128, 128, 256, 3, false, 6},
    {128, 3, 256, 3, false, 1},
};
enum { SHAPES = sizeof shapes / sizeof shapes[0] };

/* One shape with its data. */
struct job {
    struct tensor x, w, bias, y;
    struct conv2d how;
};

/* Contenders: a name and a function that does the convolution once; false when it cannot. */
struct contender {
    const char *name;
    bool (*run)(void *self, struct job *job);
    void *self;
};

static float *random_block(int64_t n)
{
    float *block = aligned_alloc(64, ((size_t)n * sizeof(float) + 63) / 64 * 64);
    if (!block) exit(1);
    uint32_t state = 1;
    for (int64_t i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        block[i] = (float)(state >> 8) * 0x1p-23f - 1.0f;
    }
    return block;
}

static struct job job_make(const struct shape *s)
{
    int64_t in = s->upsample ? s->size / 2 : s->size;
    struct job j = {.how = {.stride = 1, .pad_before = s->k == 3, .pad_after = s->k == 3, .upsample = s->upsample}};
    j.x = tensor_view(T_F32, random_block(in * in * s->I), 1, in, in, s->I);
    j.w = tensor_view(T_F32, random_block(s->O * s->I * s->k * s->k), s->O, s->I, s->k, s->k);
    j.bias = tensor_view(T_F32, random_block(s->O), s->O, 0, 0, 0);
    j.y = tensor_view(T_F32, random_block(s->size * s->size * s->O), 1, s->size, s->size, s->O);
    j.w.constant = true;
    return j;
}

static void job_free(struct job *j)
{
    if (j->w.converted) j->w.converted_free(j->w.converted);
    free(j->x.data);
    free(j->w.data);
    free(j->bias.data);
    free(j->y.data);
}

static bool run_ours(void *self, struct job *j)
{
    struct backend *be = self;
    return be->op.conv2d(be, &j->x, &j->w, &j->bias, &j->how, &j->y) == AIM_OK;
}

/* ------------------------------------------------------------------------------------- the patches kernel */

typedef aim_status (*conv2d_fn)(struct backend *, const struct tensor *, const struct tensor *, const struct tensor *,
                                const struct conv2d *, struct tensor *);

aim_status cpu_generic_patches_conv2d(struct backend *be, const struct tensor *x, const struct tensor *w,
                                      const struct tensor *bias, const struct conv2d *how, struct tensor *y);
#if defined(__x86_64__)
aim_status cpu_avx2_patches_conv2d(struct backend *be, const struct tensor *x, const struct tensor *w,
                                   const struct tensor *bias, const struct conv2d *how, struct tensor *y);
aim_status cpu_avx512_patches_conv2d(struct backend *be, const struct tensor *x, const struct tensor *w,
                                     const struct tensor *bias, const struct conv2d *how, struct tensor *y);
#endif

static conv2d_fn patches_of_device(const char *device)
{
#if defined(__x86_64__)
    if (strstr(device, "avx512")) return cpu_avx512_patches_conv2d;
    if (strstr(device, "avx2")) return cpu_avx2_patches_conv2d;
#endif
    (void)device;
    return cpu_generic_patches_conv2d;
}

static bool run_patches(void *self, struct job *j)
{
    struct backend *be = self;
    return patches_of_device(be->ctx->device)(be, &j->x, &j->w, &j->bias, &j->how, &j->y) == AIM_OK;
}

/* ------------------------------------------------------------------------------------ oneDNN's convolution */

#ifdef AIM_HAVE_ONEDNN
enum { LIBRARY_ARGS = 4 };

/* The library's primitive for one shape, on data of its own (zeros) in its own orders. */
struct library {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    dnnl_primitive_t primitive;
    dnnl_exec_arg_t args[LIBRARY_ARGS];
};

static void must(dnnl_status_t status)
{
    if (status == dnnl_success) return;
    fprintf(stderr, "oneDNN failed with status %d\n", (int)status);
    exit(1);
}

static void library_open(struct library *l, const struct shape *s)
{
    static const int names[LIBRARY_ARGS] = {DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_BIAS, DNNL_ARG_DST};
    struct layout layouts[LIBRARY_ARGS];
    const dnnl_dims_t src = {1, s->I, s->size, s->size}, dst = {1, s->O, s->size, s->size};
    const dnnl_dims_t weights = {s->O, s->I, s->k, s->k}, bias = {s->O}, strides = {1, 1}, pad = {s->k / 2, s->k / 2};
    must(layout_make(&layouts[0], 4, src, dnnl_format_tag_any));
    must(layout_make(&layouts[1], 4, weights, dnnl_format_tag_any));
    must(layout_make(&layouts[2], 1, bias, dnnl_x));
    must(layout_make(&layouts[3], 4, dst, dnnl_format_tag_any));
    dnnl_primitive_desc_t desc;
    must(convolution_make(&desc, l->engine, &layouts[0], &layouts[1], &layouts[2], &layouts[3], strides, pad, pad, NULL));
    must(dnnl_primitive_create(&l->primitive, desc));
    const dnnl_query_t queries[LIBRARY_ARGS] = {dnnl_query_src_md, dnnl_query_weights_md, dnnl_query_weights_md,
                                                dnnl_query_dst_md};
    for (int i = 0; i < LIBRARY_ARGS; i++) {
        layout_ref order = dnnl_primitive_desc_query_md(desc, queries[i], names[i] == DNNL_ARG_BIAS);
        void *data;
        l->args[i].arg = names[i];
        must(dnnl_memory_create(&l->args[i].memory, order, l->engine, DNNL_MEMORY_ALLOCATE));
        must(dnnl_memory_get_data_handle(l->args[i].memory, &data));
        memset(data, 0, dnnl_memory_desc_get_size(order));
        layout_free(&layouts[i]);
    }
    must(dnnl_primitive_desc_destroy(desc));
}

static void library_close(struct library *l)
{
    for (int i = 0; i < LIBRARY_ARGS; i++) dnnl_memory_destroy(l->args[i].memory);
    dnnl_primitive_destroy(l->primitive);
}

static bool run_library(void *self, struct job *j)
{
    struct library *l = self;
    (void)j;
    return dnnl_primitive_execute(l->primitive, l->stream, LIBRARY_ARGS, l->args) == dnnl_success &&
           dnnl_stream_wait(l->stream) == dnnl_success;
}
#endif

/* ------------------------------------------------------------------------------------------------------ */

enum { OURS, LIBRARY, PATCHES, CONTENDERS };

/* Seconds of every contender for one shape: medians of `rounds` turns after one to warm up; 0 = does not run here.
 * Returns the multiply-add peak of the same minutes, measured in every turn. */
static double measure(const struct contender *contenders, struct job *job, int threads, int rounds, double *seconds)
{
    double times[CONTENDERS][MAX_ROUNDS], peaks[MAX_ROUNDS];
    for (int r = -1; r < rounds; r++) {
        if (r >= 0) peaks[r] = ceiling_fma_gflops(threads);
        for (int c = 0; c < CONTENDERS; c++) {
            double start = clock_seconds();
            if (contenders[c].run && !contenders[c].run(contenders[c].self, job)) exit(1);
            if (r >= 0) times[c][r] = clock_seconds() - start;
        }
    }
    for (int c = 0; c < CONTENDERS; c++) seconds[c] = contenders[c].run ? limits_median(times[c], (size_t)rounds) : 0;
    return limits_median(peaks, (size_t)rounds);
}

static void print_line(const char *name, double gflop, double peak, const double *seconds)
{
    double rate = gflop / seconds[OURS];
    printf("%-30s %9.3f %9.1f %7.0f%%", name, 1e3 * seconds[OURS], rate, 100 * rate / peak);
    for (int c = LIBRARY; c < CONTENDERS; c++)
        if (seconds[c] > 0)
            printf(" %9.3f %7.2fx", 1e3 * seconds[c], seconds[c] / seconds[OURS]);
        else
            printf(" %9s %8s", "-", "-");
    printf("\n");
}

static void bench_decoder(struct backend *be, int rounds)
{
    double peaks[SHAPES], sum[CONTENDERS] = {0}, flops = 0;
    struct contender contenders[CONTENDERS] = {[OURS] = {"ours", run_ours, be}, [PATCHES] = {"patches", run_patches, be}};
#ifdef AIM_HAVE_ONEDNN
    struct library library = {0};
    must(dnnl_engine_create(&library.engine, dnnl_cpu, 0));
    must(dnnl_stream_create(&library.stream, library.engine, dnnl_stream_default_flags));
    omp_set_num_threads(be->threads);
    contenders[LIBRARY] = (struct contender){"oneDNN", run_library, &library};
#endif
    printf("%-30s %9s %9s %8s %9s %8s %9s %8s\n", "output, channels, kernel (times)", "ms", "GFLOP/s", "of peak", "oneDNN ms",
           "", "patches", "");
    for (int i = 0; i < SHAPES; i++) {
        const struct shape *s = &shapes[i];
        struct job job = job_make(s);
        double seconds[CONTENDERS], gflop = 2e-9 * (double)(s->size * s->size * s->k * s->k * s->I * s->O);
        char name[64];
#ifdef AIM_HAVE_ONEDNN
        library_open(&library, s);
#endif
        peaks[i] = measure(contenders, &job, be->threads, rounds, seconds);
#ifdef AIM_HAVE_ONEDNN
        library_close(&library);
#endif
        snprintf(name, sizeof name, "%3d %3d->%-3d %dx%d%s (%d)", (int)s->size, (int)s->I, (int)s->O, (int)s->k, (int)s->k,
                 s->upsample ? " up" : "", s->count);
        print_line(name, gflop, peaks[i], seconds);
        for (int c = 0; c < CONTENDERS; c++) sum[c] += s->count * seconds[c];
        flops += s->count * gflop;
        job_free(&job);
    }
    double peak = limits_median(peaks, SHAPES);
    print_line("decoder", flops, peak, sum);
    printf("multiply-add peak %.0f GFLOP/s (median over the run); %.1f GFLOP nominal\n", peak, flops);
#ifdef AIM_HAVE_ONEDNN
    dnnl_stream_destroy(library.stream);
    dnnl_engine_destroy(library.engine);
#endif
}

int main(int argc, char **argv)
{
    aim_context ctx;
    aim_context_options options = {.threads = argc > 1 ? atoi(argv[1]) : 0};
    int rounds = argc > 2 ? atoi(argv[2]) : 5;
    struct backend *be = NULL;
    if (rounds < 1 || rounds > MAX_ROUNDS) rounds = 5;
    if (context_init(&ctx, &options) != AIM_OK || backend_create(&ctx, &options, &be) != AIM_OK) {
        fprintf(stderr, "%s\n", aim_last_error(&ctx));
        return 1;
    }
    printf("%s\n", ctx.device);
    bench_decoder(be, rounds);
    backend_free(be);
    return 0;
}
