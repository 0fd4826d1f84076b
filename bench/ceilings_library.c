#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "tensor/limits.h"
#include "ceilings.h"

#ifdef AIM_HAVE_ONEDNN

#include <omp.h>

#include "cpu/onednn_compat.h"

enum { PASSES = 3, PRODUCT_SIDE = 2048, PICTURE_SIDE = 128, CHANNELS = 128, MOST_ARGS = 4 };

/* A primitive with the memory it works on. */
struct work {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    dnnl_primitive_desc_t desc;
    dnnl_primitive_t primitive;
    dnnl_exec_arg_t args[MOST_ARGS];
    void *blocks[MOST_ARGS];
    int count;
};

/* Memory for one argument in the order that the primitive wants; zeros would be as fast, but let them be numbers. */
static bool add_memory(struct work *w, int name, dnnl_query_t what, int index)
{
    layout_ref layout = dnnl_primitive_desc_query_md(w->desc, what, index);
    size_t bytes = dnnl_memory_desc_get_size(layout);
    void *block = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!block) return false;
    memset(block, 0x3c, bytes);
    w->blocks[w->count] = block;
    w->args[w->count].arg = name;
    return dnnl_memory_create(&w->args[w->count++].memory, layout, w->engine, block) == dnnl_success;
}

static bool run(struct work *w)
{
    return dnnl_primitive_execute(w->primitive, w->stream, w->count, w->args) == dnnl_success &&
           dnnl_stream_wait(w->stream) == dnnl_success;
}

static void work_free(struct work *w)
{
    for (int i = 0; i < w->count; i++) {
        if (w->args[i].memory) dnnl_memory_destroy(w->args[i].memory);
        free(w->blocks[i]);
    }
    if (w->primitive) dnnl_primitive_destroy(w->primitive);
    if (w->desc) dnnl_primitive_desc_destroy(w->desc);
    if (w->stream) dnnl_stream_destroy(w->stream);
    if (w->engine) dnnl_engine_destroy(w->engine);
}

static bool make_product(struct work *w, bool bf16)
{
    const dnnl_dims_t dims = {PRODUCT_SIDE, PRODUCT_SIDE};
    const dnnl_data_type_t type = bf16 ? dnnl_bf16 : dnnl_f32;
    struct layout a = {0}, b = {0}, c = {0};
    bool made = layout_make_typed(&a, 2, dims, type, dnnl_ab) == dnnl_success &&
                layout_make_typed(&b, 2, dims, type, dnnl_format_tag_any) == dnnl_success &&
                layout_make(&c, 2, dims, dnnl_ab) == dnnl_success &&
                matmul_make(&w->desc, w->engine, &a, &b, &c, NULL) == dnnl_success;
    layout_free(&a);
    layout_free(&b);
    layout_free(&c);
    return made;
}

static bool make_convolution(struct work *w, bool bf16)
{
    const dnnl_dims_t map = {1, CHANNELS, PICTURE_SIDE, PICTURE_SIDE}, filters = {CHANNELS, CHANNELS, 3, 3}, one = {1, 1};
    const dnnl_dims_t biases = {CHANNELS};
    const dnnl_data_type_t type = bf16 ? dnnl_bf16 : dnnl_f32;
    struct layout x = {0}, f = {0}, b = {0}, y = {0};
    bool made = layout_make_typed(&x, 4, map, type, dnnl_format_tag_any) == dnnl_success &&
                layout_make_typed(&f, 4, filters, type, dnnl_format_tag_any) == dnnl_success &&
                layout_make(&b, 1, biases, dnnl_x) == dnnl_success &&
                layout_make(&y, 4, map, dnnl_format_tag_any) == dnnl_success &&
                convolution_make(&w->desc, w->engine, &x, &f, &b, &y, one, one, one, NULL) == dnnl_success;
    layout_free(&x);
    layout_free(&f);
    layout_free(&b);
    layout_free(&y);
    return made;
}

/* The median rate of a few passes over `operations`, 0 when the library cannot. */
static double measure(int threads, bool (*make)(struct work *w, bool bf16), bool bf16, bool biased, double operations)
{
    struct work w = {0};
    double rates[PASSES], rate = 0;
    int before = omp_get_max_threads();
    omp_set_num_threads(threads);
    bool ready = dnnl_engine_create(&w.engine, dnnl_cpu, 0) == dnnl_success &&
                 dnnl_stream_create(&w.stream, w.engine, dnnl_stream_default_flags) == dnnl_success && make(&w, bf16) &&
                 dnnl_primitive_create(&w.primitive, w.desc) == dnnl_success &&
                 add_memory(&w, DNNL_ARG_SRC, dnnl_query_src_md, 0) &&
                 add_memory(&w, DNNL_ARG_WEIGHTS, dnnl_query_weights_md, 0) &&
                 (!biased || add_memory(&w, DNNL_ARG_BIAS, dnnl_query_weights_md, 1)) &&
                 add_memory(&w, DNNL_ARG_DST, dnnl_query_dst_md, 0) && run(&w);
    for (int p = 0; ready && p < PASSES; p++) {
        double start = clock_seconds();
        ready = run(&w);
        rates[p] = 1e-9 * operations / (clock_seconds() - start);
    }
    if (ready) rate = limits_median(rates, PASSES);
    work_free(&w);
    omp_set_num_threads(before);
    return rate;
}

double ceiling_product_gflops(int threads, bool bf16)
{
    return measure(threads, make_product, bf16, false, 2.0 * PRODUCT_SIDE * PRODUCT_SIDE * PRODUCT_SIDE);
}

double ceiling_convolution_gflops(int threads, bool bf16)
{
    return measure(threads, make_convolution, bf16, true, 2.0 * 9 * CHANNELS * CHANNELS * PICTURE_SIDE * PICTURE_SIDE);
}

#else

/* Without the library its ceiling is the processor's, and there is none for bf16. */
double ceiling_product_gflops(int threads, bool bf16)
{
    return bf16 ? 0 : ceiling_fma_gflops(threads);
}

double ceiling_convolution_gflops(int threads, bool bf16)
{
    return bf16 ? 0 : ceiling_fma_gflops(threads);
}

#endif
