#include "tensor/limits.h"

#include <stdlib.h>

#include "base/clock.h"
#include "tensor/ops.h"

enum { REPEATS = 5 };

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double limits_median(double *values, size_t n)
{
    qsort(values, n, sizeof *values, compare);
    return n % 2 ? values[n / 2] : 0.5 * (values[n / 2 - 1] + values[n / 2]);
}

/* A download waits for all that was asked for before it. */
static aim_status wait_for(struct exec *ex, const struct tensor *t)
{
    float value;
    return ex->backend->memory.download(ex->backend, &value, t->data, sizeof value);
}

aim_status limits_copy(struct exec *ex, double *bytes_per_second)
{
    struct backend *be = ex->backend;
    int64_t n = be->memory.host ? (int64_t)1 << 26 : (int64_t)1 << 28;
    struct tensor *a = tensor_new(ex, T_F32, SHAPE(n)), *b = tensor_new(ex, T_F32, SHAPE(n));
    double times[REPEATS] = {0};
    bool made = a && b;
    aim_status status = made ? tensor_zero(ex, a) : ex->status;
    if (made && status == AIM_OK) status = tensor_zero(ex, b);
    for (int i = 0; i < REPEATS && made && status == AIM_OK; i++) {
        enum { COPIES = 4 };
        status = wait_for(ex, b);
        double start = clock_seconds();
        for (int k = 0; k < COPIES && status == AIM_OK; k++) status = tensor_copy(ex, b, a);
        if (status == AIM_OK) status = wait_for(ex, b);
        times[i] = (clock_seconds() - start) / COPIES;
    }
    tensor_drop(a);
    tensor_drop(b);
    *bytes_per_second = 2.0 * (double)n * sizeof(float) / limits_median(times, REPEATS);
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

/* y = x wᵀ as the backend does it at its best: the CPU with packed matrices, a device with plain ones. */
static aim_status multiply(struct backend *be, const struct tensor *x, const struct tensor *w, struct tensor *y)
{
    return be->memory.host ? be->op.linear_packed(be, x, w, y) : be->op.linear(be, x, w, NULL, y);
}

static aim_status time_product(struct exec *ex, const struct tensor *x, const struct tensor *w, struct tensor *y,
                               double *seconds)
{
    enum { PRODUCTS = 8 };
    double times[REPEATS];
    for (int i = -1; i < REPEATS; i++) {
        TRY(wait_for(ex, w));
        double start = clock_seconds();
        for (int k = 0; k < PRODUCTS; k++) TRY(multiply(ex->backend, x, w, y));
        TRY(wait_for(ex, y));
        if (i >= 0) times[i] = (clock_seconds() - start) / PRODUCTS;
    }
    *seconds = limits_median(times, REPEATS);
    return AIM_OK;
}

aim_status limits_product(struct exec *ex, enum tensor_type matrices, double *operations_per_second)
{
    struct backend *be = ex->backend;
    bool host = be->memory.host;
    int64_t n = host ? 1024 : 8192;
    /* of a device's activations too: nothing is left to convert */
    enum tensor_type type = matrices != T_F32_PACKED && !host ? T_BF16 : T_F32;
    struct tensor *values = noise(ex, n, n), *x = values ? op_cast(ex, values, type) : NULL;
    struct tensor *y = tensor_new(ex, type, SHAPE(n, n)), *w;
    double seconds = 1;
    if (host) {
        w = tensor_new(ex, matrices, SHAPE(n, n));
    } else {
        w = tensor_keep(x);
    }
    bool made = values && x && y && w;
    aim_status status = ex->status;
    if (made && host) status = be->op.pack(be, values, w);
    if (made && status == AIM_OK) status = time_product(ex, x, w, y, &seconds);
    struct tensor *all[] = {values, x, w, y};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) tensor_drop(all[i]);
    *operations_per_second = 2.0 * (double)n * (double)n * (double)n / seconds;
    return status;
}
