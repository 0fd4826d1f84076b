/*
 * The CUDA kernels of stage-2 training, each alone, at the shapes of a training step: 64 pictures of 256 tokens, bf16.
 *
 *     bench_cuda_ops [rounds [model]]
 *
 * Beside each time its floor: the bytes that the op must move at the speed of a large copy, or its operations at that of a
 * large bf16 product, both measured in the same run; and what a step spends on it. Times are medians of rounds of repeated
 * calls; the last lines of a model add up what one step calls.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "tensor/limits.h"
#include "tensor/backend.h"
#include "tensor/ssd_cache.h"

enum { PICTURES = 64, TOKENS = 256, ROWS = PICTURES * TOKENS, STATE = 128, VOCABULARY = 16384, HEAD_ROWS = 8192 };
enum { MOST_ROUNDS = 99, MOST_TENSORS = 64, CALLS = 10, BLOCK = 1 << 20 };

struct bench {
    aim_context ctx;
    struct backend *be;
    int rounds;
    double copy, product; /* bytes/s, operations/s at most */
    double step;          /* seconds of a training step so far */
    double least;         /* and what they could be */
    double products;      /* of these, in dense products */
    float *random;        /* BLOCK values */
    struct tensor tensors[MOST_TENSORS];
    int count;
};

static void check(struct bench *b, aim_status status)
{
    if (status == AIM_OK) return;
    fprintf(stderr, "%s\n", aim_last_error(&b->ctx));
    exit(1);
}

/* Random values; freed by clear. */
static struct tensor *values(struct bench *b, enum tensor_type type, int64_t n0, int64_t n1, int64_t n2)
{
    struct tensor *t = &b->tensors[b->count++];
    *t = tensor_view(type, NULL, n0, n1, n2, 0);
    size_t size = tensor_type_size(type), bytes = tensor_bytes(type, t->ndim, t->shape);
    t->data = b->be->memory.take(b->be, bytes, MEM_ACTIVATIONS);
    if (!t->data) check(b, AIM_ERR_MEMORY);
    uint16_t *half = malloc(BLOCK * sizeof *half);
    if (!half) exit(1);
    for (int i = 0; i < BLOCK; i++) half[i] = bf16_from_f32(b->random[i]);
    for (size_t at = 0; at < bytes; at += BLOCK * size) {
        size_t part = bytes - at < BLOCK * size ? bytes - at : BLOCK * size;
        const void *from = type == T_BF16 ? (const void *)half : (const void *)b->random;
        check(b, b->be->memory.upload(b->be, (char *)t->data + at, from, part));
    }
    free(half);
    return t;
}

/* Columns first .. end-1 of a gradient as the first op to give one finds them: to be overwritten. */
static struct tensor *fresh_columns(struct tensor *gradient, int64_t first, int64_t end)
{
    gradient->fresh = (struct fresh_columns){first, end};
    return gradient;
}

static struct tensor *fresh(struct tensor *gradient)
{
    return fresh_columns(gradient, 0, tensor_cols(gradient));
}

/* M indices below n. */
static struct tensor *indices(struct bench *b, int64_t M, int64_t n)
{
    struct tensor *t = values(b, T_I32, M, 0, 0);
    int32_t *host = malloc((size_t)M * sizeof *host);
    if (!host) exit(1);
    for (int64_t i = 0; i < M; i++) host[i] = (int32_t)(i * 7919 % n);
    check(b, b->be->memory.upload(b->be, t->data, host, (size_t)M * sizeof *host));
    free(host);
    return t;
}

static void clear(struct bench *b)
{
    for (int i = 0; i < b->count; i++) {
        struct tensor *t = &b->tensors[i];
        if (t->converted) t->converted_free(t->converted);
        b->be->memory.give(b->be, t->data, tensor_bytes(t->type, t->ndim, t->shape));
    }
    b->count = 0;
}

static void wait(struct bench *b)
{
    float unused;
    check(b, b->be->memory.download(b->be, &unused, b->tensors[0].data, sizeof unused));
}

/* The median time of `call`, in seconds, into `seconds`. */
#define TIME(b, seconds, call)                                                                                                 \
    do {                                                                                                                       \
        double times_[MOST_ROUNDS];                                                                                            \
        check(b, call);                                                                                                        \
        for (int round_ = 0; round_ < (b)->rounds; round_++) {                                                                 \
            wait(b);                                                                                                           \
            double start_ = clock_seconds();                                                                                   \
            for (int call_ = 0; call_ < CALLS; call_++) check(b, call);                                                        \
            wait(b);                                                                                                           \
            times_[round_] = (clock_seconds() - start_) / CALLS;                                                               \
        }                                                                                                                      \
        seconds = limits_median(times_, (size_t)(b)->rounds);                                                                  \
    } while (0)

/*
 * Prints a line: the time; the least that the bytes and the operations of the op can take on this GPU, and the ratio; what the
 * step spends on its `times` calls.
 */
static void report(struct bench *b, const char *name, double seconds, double bytes, double operations, double times)
{
    double moving = bytes / b->copy, computing = operations / b->product, least = moving > computing ? moving : computing;
    printf("  %-28s %8.1f us  floor %7.1f us  x %5.2f", name, 1e6 * seconds, 1e6 * least, seconds / least);
    printf("  %2.0f times: %6.2f ms\n", times, 1e3 * seconds * times);
    b->step += seconds * times;
    b->least += least * times;
    if (operations > 0) b->products += seconds * times;
}

#define REPORT(b, name, bytes, operations, times, call)                                                                        \
    do {                                                                                                                       \
        double seconds_;                                                                                                       \
        TIME(b, seconds_, call);                                                                                               \
        report(b, name, seconds_, bytes, operations, times);                                                                   \
    } while (0)

static void ceilings(struct bench *b)
{
    enum { SIDE = 8192 };
    struct backend *be = b->be;
    double seconds;
    struct tensor *x = values(b, T_BF16, SIDE, SIDE, 0), *w = values(b, T_BF16, SIDE, SIDE, 0),
                  *y = values(b, T_BF16, SIDE, SIDE, 0);
    TIME(b, seconds, be->op.linear(be, x, w, NULL, y));
    b->product = 2.0 * SIDE * SIDE * SIDE / seconds;
    struct tensor *from = values(b, T_F32, BLOCK, 256, 0), *to = values(b, T_F32, BLOCK, 256, 0);
    TIME(b, seconds, be->memory.copy(be, to->data, from->data, BLOCK * 256 * sizeof(float)));
    b->copy = 2.0 * BLOCK * 256 * sizeof(float) / seconds;
    printf("%s: copy %.2f TB/s, bf16 product %.0f TFLOP/s\n", b->ctx.device, 1e-12 * b->copy, 1e-12 * b->product);
    clear(b);
}

/* Widths of a model, as in ops.def. */
struct model {
    const char *name;
    int64_t layers, d, H, E, C, W;
};

static void norms(struct bench *b, const struct model *m)
{
    struct backend *be = b->be;
    double M = ROWS, d = (double)m->d, E = (double)m->E, layers = (double)m->layers;
    struct tensor *r = values(b, T_F32, PICTURES, TOKENS, m->d), *sum = values(b, T_F32, PICTURES, TOKENS, m->d);
    struct tensor *h = values(b, T_BF16, PICTURES, TOKENS, m->d), *y = values(b, T_BF16, PICTURES, TOKENS, m->d);
    struct tensor *gates = values(b, T_F32, PICTURES, 3 * m->d, 0), *w = values(b, T_F32, m->d, 0, 0);
    struct tensor *dgates = values(b, T_F32, PICTURES, 3 * m->d, 0), *dw = values(b, T_F32, m->d, 0, 0);
    struct tensor *dr = values(b, T_F32, PICTURES, TOKENS, m->d), *dh = values(b, T_BF16, PICTURES, TOKENS, m->d);
    REPORT(b, "residual norm", M * d * 12, 0, layers,
           be->op.residual_rms_norm_modulate(be, r, h, gates, w, gates, 1e-5f, sum, y));
    REPORT(b, "residual norm, backward", M * d * 18, 0, layers,
           be->op.residual_rms_norm_modulate_backward(be, sum, h, gates, w, gates, 1e-5f, r, y, fresh(dr), fresh(dh), dgates,
                                                      dw, dgates));
    clear(b);
    struct tensor *v = values(b, T_BF16, ROWS, m->E, 0), *z = values(b, T_BF16, ROWS, m->W, 0),
                  *o = values(b, T_BF16, ROWS, m->E, 0);
    struct tensor *weight = values(b, T_F32, m->E, 0, 0), *dweight = values(b, T_F32, m->E, 0, 0);
    struct tensor *dv = values(b, T_BF16, ROWS, m->E, 0), *dz = values(b, T_BF16, ROWS, m->W, 0);
    REPORT(b, "gated norm", M * E * 6, 0, layers, be->op.gated_rms_norm(be, v, z, weight, 1e-5f, o));
    REPORT(b, "gated norm, backward", M * E * 10, 0, layers,
           be->op.gated_rms_norm_backward(be, v, z, weight, 1e-5f, o, fresh(dv), fresh_columns(dz, 0, m->E), dweight));
    clear(b);
}

/* The modulations of layers: thirds of one product's columns. */
static void modulations(struct bench *b, const struct model *m)
{
    struct backend *be = b->be;
    double bytes = PICTURES * 3.0 * (double)m->d * 4, layers = (double)m->layers;
    struct tensor *x = values(b, T_F32, PICTURES, 12 * m->d, 0), *bias = values(b, T_F32, 3 * m->d, 0, 0);
    struct tensor *y = values(b, T_F32, PICTURES, 3 * m->d, 0);
    REPORT(b, "modulation", 2 * bytes, 0, layers, be->op.slice_add(be, x, 3 * m->d, bias, y));
    REPORT(b, "modulation, backward", 3 * bytes, 0, layers, be->op.slice_add_backward(be, 3 * m->d, y, x, bias));
    clear(b);
}

static void mixer(struct bench *b, const struct model *m)
{
    struct backend *be = b->be;
    double M = ROWS, C = (double)m->C, E = (double)m->E, H = (double)m->H, layers = (double)m->layers;
    struct tensor *z = values(b, T_BF16, PICTURES, TOKENS, m->W), *dz = values(b, T_BF16, PICTURES, TOKENS, m->W);
    struct tensor *xbc = values(b, T_BF16, PICTURES, TOKENS, m->C), *dxbc = values(b, T_BF16, PICTURES, TOKENS, m->C);
    struct tensor *y = values(b, T_BF16, PICTURES, TOKENS, m->E), *dy = values(b, T_BF16, PICTURES, TOKENS, m->E);
    struct tensor *w = values(b, T_F32, m->C, 1, CONV_WIDTH), *dw = values(b, T_F32, m->C, 1, CONV_WIDTH);
    struct tensor *bias = values(b, T_F32, m->C, 0, 0), *dbias = values(b, T_F32, m->C, 0, 0);
    struct tensor *A = values(b, T_F32, m->H, 0, 0), *D = values(b, T_F32, m->H, 0, 0), *dA = values(b, T_F32, m->H, 0, 0);
    REPORT(b, "convolution", M * C * 4, 0, layers, be->op.causal_conv1d_silu(be, z, w, bias, xbc));
    REPORT(b, "convolution, backward", M * C * 6, 0, layers,
           be->op.causal_conv1d_silu_backward(be, z, w, bias, dxbc, fresh_columns(dz, m->E, m->E + m->C), dw, dbias));
    REPORT(b, "ssd", M * (2 * C + 2 * E + 2 * H), 0, layers, be->op.ssd(be, xbc, z, A, D, D, y));
    REPORT(b, "ssd, backward", M * (4 * C + 2 * E + 4 * H), 0, layers,
           be->op.ssd_backward(be, xbc, z, A, D, D, dy, fresh(dxbc), fresh_columns(dz, m->W - m->H, m->W), dA, dA, dA));
    clear(b);
}

static void product(struct bench *b, const char *name, int64_t M, int64_t K, int64_t N, double times)
{
    struct backend *be = b->be;
    char backward[64];
    double operations = 2.0 * (double)M * (double)K * (double)N;
    struct tensor *x = values(b, T_BF16, M, K, 0), *w = values(b, T_F32, N, K, 0), *y = values(b, T_BF16, M, N, 0);
    struct tensor *dx = values(b, T_BF16, M, K, 0), *dw = values(b, T_F32, N, K, 0);
    w->needs_grad = true; /* so its bf16 copy is kept */
    snprintf(backward, sizeof backward, "%s, backward", name);
    REPORT(b, name, 0, operations, times, be->op.linear(be, x, w, NULL, y));
    REPORT(b, backward, 0, 2 * operations, times, be->op.linear_backward(be, x, w, y, fresh(dx), dw, NULL));
    clear(b);
}

static void ends(struct bench *b, const struct model *m)
{
    struct backend *be = b->be;
    double M = ROWS, d = (double)m->d, logits = (double)HEAD_ROWS * VOCABULARY, blocks = (double)ROWS / HEAD_ROWS;
    struct tensor *tokens = values(b, T_F32, VOCABULARY, m->d, 0), *positions = values(b, T_F32, TOKENS, m->d, 0);
    struct tensor *ids = indices(b, ROWS, VOCABULARY), *pos = indices(b, ROWS, TOKENS), *x = values(b, T_F32, ROWS, m->d, 0);
    REPORT(b, "embedding", M * d * 8, 0, 1, be->op.embedding(be, tokens, positions, ids, pos, x));
    REPORT(b, "embedding, backward", M * d * 16, 0, 1, be->op.embedding_backward(be, ids, pos, x, tokens, positions));
    struct tensor *first = values(b, T_F32, PICTURES, m->d, 0), *rest = values(b, T_F32, ROWS - PICTURES, m->d, 0);
    struct tensor *whole = values(b, T_F32, PICTURES, TOKENS, m->d);
    REPORT(b, "prepend", M * d * 8, 0, 1, be->op.prepend(be, first, rest, whole));
    REPORT(b, "prepend, backward", M * d * 12, 0, 1, be->op.prepend_backward(be, whole, first, rest));
    clear(b);
    product(b, "head", HEAD_ROWS, m->d, VOCABULARY, 2 * blocks); /* made again in the backward */
    struct tensor *y = values(b, T_BF16, HEAD_ROWS, VOCABULARY, 0), *dy = values(b, T_BF16, HEAD_ROWS, VOCABULARY, 0);
    struct tensor *target = indices(b, HEAD_ROWS, VOCABULARY), *loss = values(b, T_F32, HEAD_ROWS, 0, 0);
    REPORT(b, "cross entropy", 2 * logits, 0, blocks, be->op.cross_entropy(be, y, target, loss));
    REPORT(b, "cross entropy, backward", 4 * logits, 0, blocks, be->op.cross_entropy_backward(be, y, target, loss, fresh(dy)));
    clear(b);
}

static void optimizer(struct bench *b, const struct model *m)
{
    enum { TENSORS = 8 };
    struct backend *be = b->be;
    int64_t layer = m->d * (m->W + m->E), n = layer / TENSORS; /* one layer's matrices */
    struct adamw_slot slots[TENSORS];
    struct tensor *gradients[TENSORS], *norm = values(b, T_F32, 1, 0, 0);
    struct adamw how = {.lr = 1e-4, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .decay = 0.05, .clip = 1, .step = 1};
    for (int i = 0; i < TENSORS; i++) {
        struct tensor *w = values(b, T_F32, n, 0, 0), *dw = values(b, T_F32, n, 0, 0), *a = values(b, T_F32, n, 0, 0);
        slots[i] = (struct adamw_slot){w, dw, a, values(b, T_F32, n, 0, 0), NULL, true};
        gradients[i] = dw;
    }
    double all = (double)(n * TENSORS), layers = (double)m->layers;
    REPORT(b, "norm of a layer's gradients", all * 4, 0, layers, be->op.norm(be, gradients, TENSORS, norm));
    REPORT(b, "AdamW of a layer", all * 32, 0, layers, be->op.adamw(be, slots, TENSORS, &how, norm));
    clear(b);
}

static void model(struct bench *b, const struct model *m)
{
    printf("%s, batch %d x %d tokens\n", m->name, PICTURES, TOKENS);
    b->step = b->least = b->products = 0;
    norms(b, m);
    modulations(b, m);
    mixer(b, m);
    product(b, "input projection", ROWS, m->d, m->W, (double)m->layers);
    product(b, "output projection", ROWS, m->E, m->d, (double)m->layers);
    ends(b, m);
    optimizer(b, m);
    printf("  products %.1f ms, all else %.1f ms\n", 1e3 * b->products, 1e3 * (b->step - b->products));
    printf("  these ops of a step: %.1f ms, %.0f tokens/s; floor %.1f ms\n", 1e3 * b->step, ROWS / b->step, 1e3 * b->least);
}

int main(int argc, char **argv)
{
    static struct bench b;
    static const struct model models[] = {{"AiM-B", 24, 768, 24, 1536, 1536 + 2 * STATE, 2 * 1536 + 2 * STATE + 24},
                                          {"AiM-XL", 48, 1536, 48, 3072, 3072 + 2 * STATE, 2 * 3072 + 2 * STATE + 48}};
    aim_context_options options = aim_context_defaults();
    options.device = "cuda";
    b.rounds = argc > 1 ? atoi(argv[1]) : 7;
    if (b.rounds < 1 || b.rounds > MOST_ROUNDS) b.rounds = 7;
    check(&b, context_init(&b.ctx, &options));
    if (backend_create(&b.ctx, &options, &b.be) != AIM_OK) {
        printf("skipped: no GPU (%s)\n", aim_last_error(&b.ctx));
        return 0;
    }
    b.be->bf16 = true;
    b.random = malloc(BLOCK * sizeof *b.random);
    if (!b.random) return 1;
    uint32_t state = 1;
    for (int i = 0; i < BLOCK; i++) {
        state = state * 1664525u + 1013904223u;
        b.random[i] = (float)(state >> 8) * 0x1p-23f - 1.0f;
    }
    ceilings(&b);
    for (int i = 0; i < 2; i++)
        if (argc < 3 || strcmp(argv[2], models[i].name) == 0) model(&b, &models[i]);
    free(b.random);
    backend_free(b.be);
    return 0;
}
