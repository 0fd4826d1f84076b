/*
 * One training step, forward, loss and backward, without the optimiser:
 *
 *   stage 2: width of AiM-B (768), two layers, vocabulary 16384, 4 sequences of 256 tokens, cross entropy; tokens a second
 *   stage 1: the VQ-f16 tokenizer with its reconstruction and codebook losses; pictures a second
 *
 * beside what the dense library reaches in a big product and in a direct convolution, measured between the steps.
 * Operations are counted as the plain formulas have them: 2 M N K for a product, as much again for each of its two
 * gradients, the same for convolutions and for attention's products; of the state-space recurrence its dual form over
 * the pairs s <= l (2 P a pair and head, and 2 S a pair for C·B; backward twice that). Norms, activations, the short
 * convolution and the softmax count nothing. A convolution that needs fewer products than its formula, by Winograd's
 * algorithm, so shows as more than its share.
 *
 * bench_train [stage2|stage1|all] [runs]
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "tensor/limits.h"
#include "ceilings.h"
#include "model/model.h"
#include "tensor/ssd_cache.h"
#include "tensor/tape.h"

enum { LAYERS = 2, SEQUENCES = 4, MOST_RUNS = 99 };

/* Counts the operations of a step by standing in front of the backend's kernels. */
static struct {
    struct ops real;
    double operations;
} counter;

static double product_operations(const struct tensor *x, const struct tensor *y)
{
    return 2.0 * (double)tensor_count(y) * (double)tensor_cols(x);
}

static double conv_operations(const struct tensor *w, const struct tensor *y)
{
    return 2.0 * (double)tensor_count(y) * (double)tensor_count(w) / (double)w->shape[0];
}

static double ssd_operations(const struct tensor *xbc, const struct tensor *y)
{
    double T = (double)y->shape[1], E = (double)tensor_cols(y), S = 0.5 * ((double)tensor_cols(xbc) - E);
    return (double)y->shape[0] * T * (T + 1) / 2 * 2 * (E + S);
}

static aim_status count_linear(struct backend *be, const struct tensor *x, const struct tensor *w, const struct tensor *bias,
                               struct tensor *y)
{
    counter.operations += product_operations(x, y);
    return counter.real.linear(be, x, w, bias, y);
}

static aim_status count_linear_backward(struct backend *be, const struct tensor *x, const struct tensor *w,
                                        const struct tensor *dy, struct tensor *dx, struct tensor *dw, struct tensor *dbias)
{
    counter.operations += ((dx != NULL) + (dw != NULL)) * product_operations(x, dy);
    return counter.real.linear_backward(be, x, w, dy, dx, dw, dbias);
}

static aim_status count_conv2d(struct backend *be, const struct tensor *x, const struct tensor *w, const struct tensor *bias,
                               const struct conv2d *how, struct tensor *y)
{
    counter.operations += conv_operations(w, y);
    return counter.real.conv2d(be, x, w, bias, how, y);
}

static aim_status count_conv2d_backward(struct backend *be, const struct tensor *x, const struct tensor *w,
                                        const struct conv2d *how, const struct tensor *dy, struct tensor *dx, struct tensor *dw,
                                        struct tensor *dbias)
{
    counter.operations += ((dx != NULL) + (dw != NULL)) * conv_operations(w, dy);
    double before = counter.operations;
    aim_status status = counter.real.conv2d_backward(be, x, w, how, dy, dx, dw, dbias);
    counter.operations = before; /* dx may be a convolution by the table's own kernel */
    return status;
}

static aim_status count_attention(struct backend *be, const struct tensor *q, const struct tensor *k, const struct tensor *v,
                                  struct tensor *y)
{
    counter.operations += 4.0 * (double)tensor_count(q) * (double)q->shape[1];
    return counter.real.attention(be, q, k, v, y);
}

static aim_status count_attention_backward(struct backend *be, const struct tensor *q, const struct tensor *k,
                                           const struct tensor *v, const struct tensor *dy, struct tensor *dq,
                                           struct tensor *dk, struct tensor *dv)
{
    counter.operations += 8.0 * (double)tensor_count(q) * (double)q->shape[1];
    return counter.real.attention_backward(be, q, k, v, dy, dq, dk, dv);
}

static aim_status count_ssd(struct backend *be, const struct tensor *xbc, const struct tensor *zxbcdt,
                            const struct tensor *A_log, const struct tensor *dt_bias, const struct tensor *D, struct tensor *y)
{
    counter.operations += ssd_operations(xbc, y);
    return counter.real.ssd(be, xbc, zxbcdt, A_log, dt_bias, D, y);
}

static aim_status count_ssd_backward(struct backend *be, const struct tensor *xbc, const struct tensor *zxbcdt,
                                     const struct tensor *A_log, const struct tensor *dt_bias, const struct tensor *D,
                                     const struct tensor *dy, struct tensor *dxbc, struct tensor *dzxbcdt,
                                     struct tensor *dA_log, struct tensor *ddt_bias, struct tensor *dD)
{
    counter.operations += 2 * ssd_operations(xbc, dy);
    return counter.real.ssd_backward(be, xbc, zxbcdt, A_log, dt_bias, D, dy, dxbc, dzxbcdt, dA_log, ddt_bias, dD);
}

static void counter_start(struct backend *be)
{
    counter.real = be->op;
    counter.operations = 0;
    be->op.linear = count_linear;
    be->op.linear_backward = count_linear_backward;
    be->op.conv2d = count_conv2d;
    be->op.conv2d_backward = count_conv2d_backward;
    be->op.attention = count_attention;
    be->op.attention_backward = count_attention_backward;
    be->op.ssd = count_ssd;
    be->op.ssd_backward = count_ssd_backward;
}

/* -------------------------------------------------------------------------------------------------- stage 2 */

struct stage2 {
    aim_context *ctx;
    struct ar_config config;
    struct params table;
    struct ar *ar;
    struct exec ex;
    int32_t labels[SEQUENCES], *codes;
};

static aim_status stage2_open(aim_context *ctx, struct stage2 *s)
{
    struct model_config config = {0};
    *s = (struct stage2){.ctx = ctx, .table = {.ctx = ctx, .prefix = AR_PREFIX}};
    exec_init(&s->ex, ctx);
    TRY(config_preset(ctx, "AiM-B", &config));
    s->config = config.ar;
    s->config.n_layer = LAYERS;
    TRY(ar_describe(&s->config, &s->table));
    TRY(params_init(&s->table, 0));
    TRY(ar_build_trainable(&s->config, &s->table, &s->ar));
    s->codes = mem_array(ctx, (size_t)(SEQUENCES * s->config.num_tokens), sizeof *s->codes, MEM_MISC);
    if (!s->codes) return AIM_ERR_MEMORY;
    for (int i = 0; i < SEQUENCES; i++) s->labels[i] = i * 211 % s->config.num_classes;
    for (int i = 0; i < SEQUENCES * s->config.num_tokens; i++) s->codes[i] = i * 7919 % s->config.vocab_size;
    return AIM_OK;
}

static void stage2_close(struct stage2 *s)
{
    ar_free(s->ar);
    exec_clear(&s->ex);
    params_free(&s->table);
    mem_free(s->codes);
}

static aim_status stage2_step(void *work)
{
    struct stage2 *s = work;
    struct exec *ex = &s->ex;
    int64_t rows = SEQUENCES * s->config.num_tokens;
    struct tape tape;
    tape_start(&tape, ex);
    struct tensor *loss = ar_loss(ex, s->ar, s->labels, s->codes, SEQUENCES);
    aim_status status = tape_backward(&tape, loss, 1.0f / (float)rows);
    tensor_drop(loss);
    tape_stop(&tape);
    struct tensor *big[] = {s->ar->words, s->ar->layers[0].in_proj, s->ar->layers[1].in_proj};
    for (size_t i = 0; i < sizeof big / sizeof big[0]; i++) tensor_clear_grad(big[i]); /* zeroed again in every step */
    return status;
}

/* -------------------------------------------------------------------------------------------------- stage 1 */

struct stage1 {
    aim_context *ctx;
    struct vq_config config;
    struct params table;
    struct vq *vq;
    struct exec ex;
    int64_t pictures, side;
    float *pixels;
};

static aim_status stage1_open(aim_context *ctx, int64_t pictures, int64_t side, struct stage1 *s)
{
    struct model_config config = {0};
    *s = (struct stage1){.ctx = ctx, .table = {.ctx = ctx, .prefix = VQ_PREFIX}, .pictures = pictures, .side = side};
    exec_init(&s->ex, ctx);
    TRY(config_preset(ctx, "AiM-B", &config));
    s->config = config.vq;
    TRY(vq_describe(&s->config, &s->table));
    TRY(params_init(&s->table, 0));
    TRY(vq_build_trainable(&s->config, &s->table, &s->vq));
    s->pixels = mem_array(ctx, (size_t)(pictures * 3 * side * side), sizeof *s->pixels, MEM_MISC);
    if (!s->pixels) return AIM_ERR_MEMORY;
    for (int64_t i = 0; i < pictures * 3 * side * side; i++) s->pixels[i] = (float)(i * 7919 % 255) / 127.0f - 1.0f;
    return AIM_OK;
}

static void stage1_close(struct stage1 *s)
{
    vq_free(s->vq);
    exec_clear(&s->ex);
    params_free(&s->table);
    mem_free(s->pixels);
}

static aim_status stage1_step(void *work)
{
    struct stage1 *s = work;
    struct exec *ex = &s->ex;
    struct tensor picture = tensor_view(T_F32, s->pixels, s->pictures, 3, s->side, s->side);
    struct tape tape;
    struct vq_training training;
    tape_start(&tape, ex);
    struct tensor *pixels = vq_train_forward(ex, s->vq, &picture, &training);
    struct tensor *mse = op_mean_square(ex, pixels, &picture, 1.0f), *some = op_add(ex, mse, training.vq);
    struct tensor *all = op_add(ex, some, training.commit);
    struct tensor *done[] = {pixels, mse, some, training.ids, training.vq, training.commit};
    for (size_t i = 0; i < sizeof done / sizeof done[0]; i++) tensor_drop(done[i]);
    aim_status status = tape_backward(&tape, all, 1.0f);
    tensor_drop(all);
    tape_stop(&tape);
    for (size_t i = 0; i < s->vq->tensor_count; i++) tensor_clear_grad(s->vq->tensors[i]);
    return status;
}

/* ---------------------------------------------------------------------------------------------------- runs */

/* A step's name and what it makes. */
struct step {
    const char *name, *unit;
    double units;
    aim_status (*run)(void *work);
    void *work;
    double (*ceiling)(int threads, bool bf16);
    bool bf16;
};

static aim_status measure(aim_context *ctx, const struct step *s, int runs)
{
    double times[MOST_RUNS], peaks[MOST_RUNS];
    counter_start(ctx->backend);
    aim_status status = s->run(s->work); /* counts, and warms up */
    ctx->backend->op = counter.real;
    for (int i = 0; i < runs && status == AIM_OK; i++) {
        peaks[i] = s->ceiling(ctx->threads, s->bf16);
        double start = clock_seconds();
        status = s->run(s->work);
        times[i] = clock_seconds() - start;
    }
    if (status != AIM_OK) return status;
    double time = limits_median(times, (size_t)runs), peak = limits_median(peaks, (size_t)runs);
    double rate = 1e-9 * counter.operations / time;
    printf("%-24s %8.1f %9.2f %-10s %8.1f %9.1f %9.1f %6.0f%%\n", s->name, 1e3 * time, s->units / time, s->unit,
           1e-9 * counter.operations, rate, peak, 100 * rate / peak);
    return AIM_OK;
}

/* In f32, then in bf16 where the processor has it. */
static aim_status measure_stage2(aim_context *ctx, int runs)
{
    struct stage2 s;
    aim_status status = stage2_open(ctx, &s);
    double tokens = (double)SEQUENCES * (double)s.config.num_tokens;
    struct step step = {"stage 2, f32", "tokens/s", tokens, stage2_step, &s, ceiling_product_gflops, false};
    if (status == AIM_OK) status = measure(ctx, &step, runs);
    if (status == AIM_OK && backend_check_bf16(ctx->backend) == AIM_OK) {
        ctx->backend->bf16 = true;
        step.name = "stage 2, bf16";
        step.bf16 = true;
        status = measure(ctx, &step, runs);
        ctx->backend->bf16 = false;
    }
    stage2_close(&s);
    return status;
}

static aim_status measure_stage1(aim_context *ctx, int64_t pictures, int64_t side, int runs)
{
    char name[64];
    snprintf(name, sizeof name, "stage 1, f32, %d x %dx%d", (int)pictures, (int)side, (int)side);
    struct stage1 s;
    aim_status status = stage1_open(ctx, pictures, side, &s);
    struct step step = {name, "pictures/s", (double)pictures, stage1_step, &s, ceiling_convolution_gflops, false};
    if (status == AIM_OK) status = measure(ctx, &step, runs);
    stage1_close(&s);
    return status;
}

int main(int argc, char **argv)
{
    aim_context *ctx;
    const char *which = argc > 1 ? argv[1] : "all";
    int runs = argc > 2 ? atoi(argv[2]) : 5;
    runs = runs < 1 ? 1 : runs > MOST_RUNS ? MOST_RUNS : runs;
    bool all = strcmp(which, "all") == 0;
    aim_status status = aim_context_create(NULL, &ctx);
    if (status == AIM_OK) {
        printf("A training step without the optimiser, %s; medians of %d.\n\n", aim_context_device(ctx), runs);
        printf("%-24s %8s %9s %-10s %8s %9s %9s %7s\n", "", "ms", "", "", "GFLOP", "GFLOP/s", "peak", "share");
    }
    if (status == AIM_OK && (all || strcmp(which, "stage2") == 0)) status = measure_stage2(ctx, runs);
    if (status == AIM_OK && (all || strcmp(which, "stage1") == 0)) {
        status = measure_stage1(ctx, 1, 128, runs);
        if (status == AIM_OK) status = measure_stage1(ctx, 4, 128, runs);
        if (status == AIM_OK) status = measure_stage1(ctx, 1, 256, runs);
    }
    if (status != AIM_OK) fprintf(stderr, "bench_train: %s\n", aim_last_error(ctx));
    aim_context_free(ctx);
    return status != AIM_OK;
}
