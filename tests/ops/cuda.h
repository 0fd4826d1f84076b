/*
 * The harness of the CUDA op tests. A tensor is threefold: on the host, for the plain C kernel, and twice on the GPU, so
 * that every op runs there two times. What the GPU wrote is compared with the reference, and the second run with the
 * first one, bit for bit. Outputs start as NaN, gradients from values that the op must add to.
 *
 * The host's tensors are float32 throughout; a bf16 tensor of the GPU starts from the same values, already rounded.
 */
#ifndef AIM_TESTS_CUDA_H
#define AIM_TESTS_CUDA_H

#include "support.h"

#include "base/philox.h"
#include "cpu/cpu.h"
#include "tensor/backend.h"

enum gpu_side { HOST, GPU, AGAIN, SIDES };

/* The three backends' tensors of one value. */
struct threefold {
    struct tensor at[SIDES];
};

enum { MOST_BLOCKS = 256 };

struct gpu {
    aim_context ctx, host_ctx;
    struct backend *device, *host;
    uint64_t draws;
    struct {
        void *data;
        size_t bytes;
    } blocks[MOST_BLOCKS]; /* of device memory, until gpu_reset */
    int block_count;
    void *host_blocks; /* linked through their first word */
};

static inline struct backend *gpu_side(struct gpu *g, int side)
{
    return side == HOST ? g->host : g->device;
}

/* False, with one line said, where there is no GPU: the test then calls skip(). */
static inline bool gpu_open(struct gpu *g)
{
    aim_context_options options = aim_context_defaults();
    *g = (struct gpu){.draws = 0};
    options.device = "cuda";
    assert_ok(&g->ctx, context_init(&g->ctx, &options));
    if (backend_create(&g->ctx, &options, &g->device) != AIM_OK) {
        print_message("skipped: no GPU (%s)\n", aim_last_error(&g->ctx));
        return false;
    }
    const char *name;
    options.device = "cpu";
    options.cpu = "generic";
    assert_ok(&g->host_ctx, context_init(&g->host_ctx, &options));
    assert_ok(&g->host_ctx, backend_create(&g->host_ctx, &options, &g->host));
    assert_ok(&g->host_ctx, cpu_fill(&g->host_ctx, "generic", &g->host->op, &name));
    return true;
}

/* Gives back the memory of all tensors made so far. */
static inline void gpu_reset(struct gpu *g)
{
    for (int i = 0; i < g->block_count; i++) g->device->memory.give(g->device, g->blocks[i].data, g->blocks[i].bytes);
    g->block_count = 0;
    while (g->host_blocks) {
        void *next = *(void **)g->host_blocks;
        free(g->host_blocks);
        g->host_blocks = next;
    }
}

static inline void gpu_close(struct gpu *g)
{
    gpu_reset(g);
    backend_free(g->device);
    backend_free(g->host);
}

/* ---------------------------------------------------------------------------------------------------- memory */

static inline void *gpu_host_block(struct gpu *g, size_t bytes)
{
    enum { LINK = 64 };
    char *block = malloc(LINK + bytes);
    assert_non_null(block);
    *(void **)(void *)block = g->host_blocks;
    g->host_blocks = block;
    return block + LINK;
}

static inline void *gpu_device_block(struct gpu *g, size_t bytes)
{
    assert_true(g->block_count < MOST_BLOCKS);
    void *data = g->device->memory.take(g->device, bytes, MEM_ACTIVATIONS);
    if (!data) fail_msg("%s", aim_last_error(&g->ctx));
    g->blocks[g->block_count].data = data;
    g->blocks[g->block_count++].bytes = bytes;
    return data;
}

/* The host's float32 (or int32) values to one of the GPU's tensors, in its type. */
static inline void gpu_upload(struct gpu *g, const struct tensor *host, struct tensor *device)
{
    int64_t n = tensor_count(host);
    size_t bytes = (size_t)n * tensor_type_size(device->type);
    const void *from = host->data;
    if (device->type == T_BF16) {
        uint16_t *rounded = gpu_host_block(g, bytes);
        for (int64_t i = 0; i < n; i++) rounded[i] = bf16_from_f32(f32(host)[i]);
        from = rounded;
    }
    assert_ok(&g->ctx, g->device->memory.upload(g->device, device->data, from, bytes));
}

/* Raw bytes of a tensor of the GPU; the caller's until gpu_reset. */
static inline void *gpu_download(struct gpu *g, const struct tensor *device)
{
    size_t bytes = (size_t)tensor_count(device) * tensor_type_size(device->type);
    void *data = gpu_host_block(g, bytes);
    assert_ok(&g->ctx, g->device->memory.download(g->device, data, device->data, bytes));
    return data;
}

/* Its values as float32. */
static inline const float *gpu_values(struct gpu *g, const struct tensor *device)
{
    const void *raw = gpu_download(g, device);
    if (device->type == T_F32) return raw;
    int64_t n = tensor_count(device);
    float *values = gpu_host_block(g, (size_t)n * sizeof(float));
    for (int64_t i = 0; i < n; i++) values[i] = bf16_to_f32(((const uint16_t *)raw)[i]);
    return values;
}

/* ---------------------------------------------------------------------------------------------------- tensors */

/* Undefined contents; dimensions from the first 0 on are absent. `type` is the GPU's: the host's is float32 for bf16. */
static inline struct threefold gpu_tensor(struct gpu *g, enum tensor_type type, int64_t n0, int64_t n1, int64_t n2, int64_t n3)
{
    struct threefold t;
    for (int side = 0; side < SIDES; side++) {
        struct tensor *x = &t.at[side];
        *x = tensor_view(side == HOST && type == T_BF16 ? T_F32 : type, NULL, n0, n1, n2, n3);
        size_t bytes = tensor_bytes(x->type, x->ndim, x->shape);
        x->data = side == HOST ? gpu_host_block(g, bytes) : gpu_device_block(g, bytes);
    }
    return t;
}

/* The host's values, rounded to what the GPU's type can hold, to the GPU. */
static inline void gpu_spread(struct gpu *g, struct threefold *t)
{
    struct tensor *host = &t->at[HOST];
    if (t->at[GPU].type == T_BF16)
        for (int64_t i = 0; i < tensor_count(host); i++) f32(host)[i] = bf16_to_f32(bf16_from_f32(f32(host)[i]));
    gpu_upload(g, host, &t->at[GPU]);
    gpu_upload(g, host, &t->at[AGAIN]);
}

/* For outputs: every value is NaN. */
static inline struct threefold gpu_blank(struct gpu *g, enum tensor_type type, int64_t n0, int64_t n1, int64_t n2, int64_t n3)
{
    struct threefold t = gpu_tensor(g, type, n0, n1, n2, n3);
    memset(t.at[HOST].data, 0xff, (size_t)tensor_count(&t.at[HOST]) * tensor_type_size(t.at[HOST].type));
    gpu_spread(g, &t);
    return t;
}

/* Bell-shaped: four uniform numbers make a normal one good enough for inputs. */
static inline float gpu_draw(struct gpu *g, double mean, double deviation)
{
    struct philox4 r = philox(20240816, g->draws++, 0, 1);
    double sum = ((double)r.v[0] + (double)r.v[1] + (double)r.v[2] + (double)r.v[3]) * 0x1p-32 - 2;
    return (float)(mean + deviation * sum * 1.7320508075688772);
}

/* Random values: inputs, and gradients that an op adds to. */
static inline struct threefold gpu_normal(struct gpu *g, enum tensor_type type, double mean, double deviation, int64_t n0,
                                          int64_t n1, int64_t n2, int64_t n3)
{
    struct threefold t = gpu_tensor(g, type, n0, n1, n2, n3);
    for (int64_t i = 0; i < tensor_count(&t.at[HOST]); i++) f32(&t.at[HOST])[i] = gpu_draw(g, mean, deviation);
    gpu_spread(g, &t);
    return t;
}

/* A gradient whose columns first .. end-1 hold nothing yet: zeros for the reference, NaN for the GPU, and marked there. */
static inline struct threefold gpu_fresh(struct gpu *g, enum tensor_type type, int64_t first, int64_t end, int64_t n0,
                                         int64_t n1, int64_t n2)
{
    struct threefold t = gpu_normal(g, type, 0, 1, n0, n1, n2, 0);
    int64_t cols = tensor_cols(&t.at[HOST]), n = tensor_count(&t.at[HOST]);
    for (int pass = 0; pass < 2; pass++) {
        for (int64_t i = 0; i < n; i++)
            if (i % cols >= first && i % cols < end) f32(&t.at[HOST])[i] = pass == 0 ? NAN : 0;
        if (pass == 0) gpu_spread(g, &t);
    }
    t.at[GPU].fresh = t.at[AGAIN].fresh = (struct fresh_columns){first, end};
    return t;
}

/* Integers below n. */
static inline struct threefold gpu_ids(struct gpu *g, int64_t count, int64_t n)
{
    struct threefold t = gpu_tensor(g, T_I32, count, 0, 0, 0);
    for (int64_t i = 0; i < count; i++) {
        struct philox4 r = philox(20240816, g->draws++, 0, 2);
        i32(&t.at[HOST])[i] = (int32_t)(r.v[0] % (uint64_t)n);
    }
    gpu_spread(g, &t);
    return t;
}

/* ------------------------------------------------------------------------------------------ running, comparing */

/* RUN_SIDES(g, add, AT(a), AT(b), AT(y)): the op on all three sides. */
#define AT(threefold) ((threefold).at + side_)
#define RUN_SIDES(g, name, ...)                                                                                                \
    for (int side_ = 0; side_ < SIDES; side_++)                                                                                \
    assert_ok(side_ == HOST ? &(g)->host_ctx : &(g)->ctx, gpu_side(g, side_)->op.name(gpu_side(g, side_), __VA_ARGS__))

/* Both runs gave the same bits, and those are near the reference: largest difference relative to its largest value. */
static inline void expect_sides(struct gpu *g, const char *what, const struct threefold *t, double tolerance)
{
    int64_t n = tensor_count(&t->at[GPU]), at = 0;
    size_t bytes = (size_t)n * tensor_type_size(t->at[GPU].type);
    if (memcmp(gpu_download(g, &t->at[GPU]), gpu_download(g, &t->at[AGAIN]), bytes) != 0)
        fail_msg("%s: the second run gave other bits", what);
    const float *got = gpu_values(g, &t->at[GPU]), *want = f32(&t->at[HOST]);
    double worst = 0, scale = 0;
    for (int64_t i = 0; i < n; i++) {
        double gap = fabs((double)got[i] - (double)want[i]);
        if (!(gap <= worst)) { /* a NaN gets in, and stays */
            worst = gap;
            at = i;
        }
        if (fabs((double)want[i]) > scale) scale = fabs((double)want[i]);
    }
    if (scale == 0) scale = 1;
    if (getenv("AIM_TEST_ERRORS")) print_message("%s: %.2e of %.0e\n", what, worst / scale, tolerance);
    if (!(worst <= tolerance * scale))
        fail_msg("%s: element %lld of %lld is %.9g, not %.9g; error %.2e of the largest, allowed %.0e", what, (long long)at,
                 (long long)n, (double)got[at], (double)want[at], worst / scale, tolerance);
}

/* The same integers on all sides. */
static inline void expect_ids(struct gpu *g, const char *what, const struct threefold *t)
{
    size_t bytes = (size_t)tensor_count(&t->at[HOST]) * sizeof(int32_t);
    for (int side = GPU; side < SIDES; side++)
        if (memcmp(gpu_download(g, &t->at[side]), t->at[HOST].data, bytes) != 0) fail_msg("%s: other integers", what);
}

#endif
