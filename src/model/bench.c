/* How fast this machine paints, beside what it could do at most. */
#include <stdlib.h>
#include <time.h>

#include "model/engine.h"
#include "model/model.h"

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, size_t n)
{
    qsort(values, n, sizeof *values, compare);
    return values[n / 2];
}

/* ------------------------------------------------------------------------------------------------------ ceilings */

enum { REPEATS = 5 };

/* Waits for the ops so far: a download does. */
static aim_status wait(struct exec *ex, const struct tensor *t)
{
    float value;
    return ex->backend->memory.download(ex->backend, &value, t->data, sizeof value);
}

/* Bytes read and written per second by copies too large for any cache. */
static aim_status measure_copy(struct exec *ex, double *bytes_per_second)
{
    struct backend *be = ex->backend;
    int64_t n = be->memory.host ? (int64_t)1 << 26 : (int64_t)1 << 28;
    struct tensor *a = tensor_new(ex, T_F32, SHAPE(n)), *b = tensor_new(ex, T_F32, SHAPE(n));
    double times[REPEATS] = {0};
    aim_status status = a && b ? tensor_zero(ex, a) : ex->status;
    if (status == AIM_OK) status = tensor_zero(ex, b);
    for (int i = 0; i < REPEATS && status == AIM_OK; i++) {
        enum { COPIES = 4 };
        status = wait(ex, b);
        double start = seconds();
        for (int k = 0; k < COPIES && status == AIM_OK; k++) status = tensor_copy(ex, b, a);
        if (status == AIM_OK) status = wait(ex, b);
        times[i] = (seconds() - start) / COPIES;
    }
    tensor_drop(a);
    tensor_drop(b);
    *bytes_per_second = 2.0 * (double)n * sizeof(float) / median(times, REPEATS);
    return status;
}

/* Values that no product is quick at: a matrix of zeros lets a GPU's clock run faster. */
static struct tensor *noise(struct exec *ex, int64_t rows, int64_t columns)
{
    float *host = mem_array(ex->ctx, (size_t)(rows * columns), sizeof *host, MEM_MISC);
    if (!host) return exec_fail(ex, AIM_ERR_MEMORY);
    uint32_t x = 1;
    for (int64_t i = 0; i < rows * columns; i++) {
        x = x * 1664525u + 1013904223u;
        host[i] = (float)(x >> 8) * 0x1p-23f - 1;
    }
    struct tensor *t = tensor_from_host(ex, T_F32, SHAPE(rows, columns), host);
    mem_free(host);
    return t;
}

/* Operations per second of a large product of the kind that decoding uses. */
static aim_status measure_product(struct exec *ex, bool bf16, double *operations_per_second)
{
    struct backend *be = ex->backend;
    int64_t n = be->memory.host ? 1024 : 8192;
    struct tensor *x = noise(ex, n, n), *w = noise(ex, n, n), *y = tensor_new(ex, T_F32, SHAPE(n, n));
    if (bf16 && !be->memory.host) { /* activations are bf16 there: nothing must be left to convert */
        struct tensor *rounded = op_cast(ex, x, T_BF16);
        tensor_drop(x);
        x = rounded;
    }
    struct tensor *packed = tensor_new(ex, bf16 ? T_BF16_PACKED : T_F32_PACKED, SHAPE(n, n));
    double times[REPEATS] = {0};
    aim_status status = x && w && y && packed ? be->op.pack(be, w, packed) : ex->status;
    for (int i = -1; i < REPEATS && status == AIM_OK; i++) {
        enum { PRODUCTS = 8 };
        status = wait(ex, packed);
        double start = seconds();
        for (int k = 0; k < PRODUCTS && status == AIM_OK; k++) status = be->op.linear_packed(be, x, packed, y);
        if (status == AIM_OK) status = wait(ex, y);
        if (i >= 0) times[i] = (seconds() - start) / PRODUCTS;
    }
    tensor_drop(x);
    tensor_drop(w);
    tensor_drop(y);
    tensor_drop(packed);
    *operations_per_second = 2.0 * (double)n * (double)n * (double)n / median(times, REPEATS);
    return status;
}

/* ------------------------------------------------------------------------------------------------------ painting */

/* Seconds for a batch, the median of a few runs after one that warms up; of one run where that takes long. */
static aim_status time_batch(aim_model *m, int batch, bool decodes, double *out)
{
    enum { RUNS = 3 };
    const double slow = 10;
    aim_context *ctx = m->ctx;
    int64_t *labels = mem_array(ctx, (size_t)batch, sizeof *labels, MEM_MISC);
    aim_image *images = mem_zero(ctx, (size_t)batch, sizeof *images, MEM_MISC);
    aim_status status = labels && images ? AIM_OK : AIM_ERR_MEMORY;
    aim_generate_options o = aim_generate_defaults();
    o.batch = batch;
    o.codes_only = !decodes;
    double times[RUNS];
    size_t runs = 0;
    for (int i = 0; labels && i < batch; i++) labels[i] = (i * 37) % m->config.ar.num_classes;
    for (int i = -1; i < RUNS && status == AIM_OK; i++) {
        double start = seconds();
        status = aim_generate(m, labels, batch, &o, NULL, decodes ? images : NULL);
        double time = seconds() - start;
        for (int k = 0; k < batch; k++) aim_image_free(&images[k]);
        if (i >= 0 || time > slow) times[runs++] = time;
        if (time > slow) break;
    }
    mem_free(labels);
    mem_free(images);
    if (status == AIM_OK) *out = median(times, runs);
    return status;
}

/* What one token of `streams` streams must read, on average, and compute. */
static void count_work(const struct ar_config *c, bool bf16, int64_t streams, aim_bench_result *r)
{
    double size = bf16 ? 2 : 4, d = c->d_model, layers = c->n_layer, E = (double)ar_inner(c), half = c->num_tokens / 2.0;
    double matrices = layers * d * ((double)ar_in_width(c) + E) + (double)c->vocab_size * d;
    double history = layers * half * (E + (double)c->d_state);
    r->bytes = size * (matrices + (double)streams * history);
    r->operations = 2 * (double)streams * (matrices + history);
}

static aim_status bench_batch(aim_model *m, int batch, aim_bench_result *r)
{
    struct backend *be = m->ctx->backend;
    double codes, pictures;
    r->batch = batch;
    aim_status status = time_batch(m, batch, false, &codes);
    if (status == AIM_OK) status = time_batch(m, batch, true, &pictures);
    if (status == AIM_ERR_MEMORY) return AIM_OK; /* the line stays empty */
    TRY(status);
    r->token_ms = 1e3 * codes / m->config.ar.num_tokens;
    r->codes_per_second = batch / codes;
    r->pictures_per_second = batch / pictures;
    count_work(&m->config.ar, m->weights == AIM_WEIGHTS_BF16, 2 * (int64_t)batch, r);
    r->memory = be->memory.host ? aim_model_memory(m, batch, 1) : be->memory.peak;
    return AIM_OK;
}

static aim_status bench(aim_model *m, const int *batches, int count, aim_bench_result *results)
{
    double copy = 0, product = 0;
    TRY(measure_copy(&m->ex, &copy));
    TRY(measure_product(&m->ex, m->weights == AIM_WEIGHTS_BF16, &product));
    exec_clear(&m->ex); /* what the ceilings took must not count as the model's */
    m->ctx->backend->memory.peak = 0;
    for (int i = 0; i < count; i++) {
        results[i] = (aim_bench_result){.bytes_per_second = copy, .operations_per_second = product};
        TRY(bench_batch(m, batches[i], &results[i]));
    }
    return AIM_OK;
}

aim_status aim_bench(aim_context *ctx, const char *preset, aim_weights weights, const int *batches, int count,
                     aim_bench_result *results)
{
    aim_model *m = NULL;
    TRY(aim_model_init(ctx, preset, 0, &m));
    m->weights = weights == AIM_WEIGHTS_F32 ? AIM_WEIGHTS_F32 : AIM_WEIGHTS_BF16;
    aim_status status = bench(m, batches, count, results);
    aim_model_free(m);
    return status;
}
