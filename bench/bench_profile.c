/*
 * Where the time of a whole training step goes, op by op (tensor/profile.h): forward, losses, backward and optimizer, as the
 * trainers of src/train take it, on data made up here.
 *
 *     bench_profile [--device cpu|cuda] [--f32] [--steps N] [--batch N] [WHAT ...]
 *
 * WHAT is AiM-B, AiM-L, AiM-XL, AiM-1B (stage 2), VQ-f16, or demo (stage 1 with PatchGAN: the tokenizer of full size, and that
 * of tools/train_demo.sh). Without it all but AiM-1B, on the CPU AiM-B with few layers, VQ-f16 on small pictures, and demo.
 * Prints the time of a step (median of N steps that nothing watches), then a table of the step's ops, longest first, below an
 * op its shapes where there are several. Times come from events in the GPU's stream around each call, or the clock. "between"
 * is what the watched step took beyond its ops: what the host was late with, and the events themselves.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "tensor/limits.h"
#include "tensor/profile.h"
#include "train/ar_trainer.h"
#include "train/vq_trainer.h"

enum { MOST_STEPS = 99, MOST_OPS = 128 };

static struct {
    aim_context *ctx;
    bool host;
    int steps, batch; /* timed; pictures of a step, 0 = the usual ones */
    double product;   /* operations per second of a large one */
} bench;

/* A step of either stage, and what it works on. */
struct work {
    const char *unit;
    double units, operations; /* of a step; operations 0: not counted */
    int64_t step;
    aim_status (*take)(struct work *w);
    struct ar_trainer *ar;
    struct vq_trainer *vq;
};

/* ---------------------------------------------------------------------------------------------------- the table */

static double percent(double part, double whole)
{
    return whole > 0 ? 100 * part / whole : 0;
}

static void shape_text(const struct tensor *t, char *out, size_t size)
{
    size_t used = 0;
    *out = '\0';
    for (int i = 0; i < t->ndim && used < size; i++) {
        const char *before = i ? "x" : t->type == T_BF16 ? "bf16 " : "";
        used += (size_t)snprintf(out + used, size - used, "%s%lld", before, (long long)t->shape[i]);
    }
}

static void print_shapes(const struct profile *p, const char *op, double steps)
{
    const double least = 0.005; /* of the step: what is shorter is not worth a line */
    for (size_t i = 0; i < p->count; i++) {
        const struct profile_row *r = &p->rows[i];
        char text[160], second[64];
        if (r->op != op || r->seconds < least * p->seconds) continue;
        shape_text(&r->tensors[0], text, sizeof text - sizeof second - 2);
        shape_text(&r->tensors[1], second, sizeof second);
        printf("    %-44s %9.3f %7.0f  %5.1f%%\n", second[0] ? strcat(strcat(text, ", "), second) : text,
               1e3 * r->seconds / steps, (double)r->calls / steps, percent(r->seconds, p->seconds));
    }
}

/* All shapes of an op together. */
struct total {
    const char *op;
    double seconds, calls;
    int shapes;
};

static int longer_first(const void *a, const void *b)
{
    double x = ((const struct total *)a)->seconds, y = ((const struct total *)b)->seconds;
    return (x < y) - (x > y);
}

static void print_profile(const struct profile *p, double steps)
{
    struct total totals[MOST_OPS];
    double sum = 0;
    size_t count = 0;
    for (size_t i = 0; i < p->count; i++) {
        const struct profile_row *r = &p->rows[i];
        size_t at = 0;
        while (at < count && totals[at].op != r->op) at++;
        if (at == MOST_OPS) continue;
        if (at == count) totals[count++] = (struct total){.op = r->op};
        totals[at].seconds += r->seconds;
        totals[at].calls += (double)r->calls;
        totals[at].shapes++;
        sum += r->seconds;
    }
    qsort(totals, count, sizeof totals[0], longer_first);
    printf("  %-46s %9s %7s  %6s\n", "op", "ms", "calls", "share");
    for (size_t i = 0; i < count; i++) {
        const struct total *t = &totals[i];
        printf("  %-46s %9.3f %7.0f  %5.1f%%\n", t->op, 1e3 * t->seconds / steps, t->calls / steps,
               percent(t->seconds, p->seconds));
        if (t->shapes > 1) print_shapes(p, t->op, steps);
    }
    printf("  %-46s %9.3f %7s  %5.1f%%\n\n", "between", 1e3 * (p->seconds - sum) / steps, "",
           percent(p->seconds - sum, p->seconds));
}

/* ------------------------------------------------------------------------------------------------ a step, measured */

static aim_status watch(struct work *w)
{
    enum { WATCHED = 2 };
    int steps = bench.host ? 1 : WATCHED;
    struct profile *p;
    aim_status status = profile_start(bench.ctx->backend, &p);
    for (int i = 0; i < steps && status == AIM_OK; i++) status = w->take(w);
    if (status == AIM_OK) status = profile_stop(p);
    if (status == AIM_OK) print_profile(p, steps);
    profile_free(p);
    return status;
}

static aim_status measure(struct work *w, const char *name)
{
    enum { WARM = 3 };
    const struct device_memory *memory = &bench.ctx->backend->memory;
    double times[MOST_STEPS];
    for (int i = bench.host ? -1 : -WARM; i < bench.steps; i++) {
        double start = clock_seconds();
        TRY(w->take(w)); /* ends with the host's look at the losses */
        if (i >= 0) times[i] = clock_seconds() - start;
    }
    double seconds = limits_median(times, (size_t)bench.steps);
    printf("%s, %s: %.2f ms a step, %.1f %s/s", name, bench.ctx->backend->bf16 ? "bf16" : "f32", 1e3 * seconds,
           w->units / seconds, w->unit);
    if (w->operations > 0)
        printf(", %.0f%% of %.3g TFLOP/s by 6 x parameters x tokens", percent(w->operations / seconds, bench.product),
               1e-12 * bench.product);
    if (!memory->host) printf(", %.2f GB", 1e-9 * (double)memory->peak);
    printf("\n");
    return watch(w);
}

/* ------------------------------------------------------------------------------------------------------ stage 2 */

static aim_status take_ar(struct work *w)
{
    struct ar_step did;
    return ar_trainer_update(w->ar, w->step++, &did);
}

static aim_status open_ar(struct ar_trainer *t, const char *preset)
{
    enum { CPU_LAYERS = 2, CPU_BATCH = 2, BATCH = 64 };
    int batch = bench.batch ? bench.batch : bench.host ? CPU_BATCH : BATCH;
    *t = (struct ar_trainer){.ctx = bench.ctx, .o = aim_train_ar_defaults(), .steps = 1000, .part = batch};
    t->o.train.batch = batch;
    t->o.train.lr = 1e-4;
    TRY(model_new(bench.ctx, &t->model));
    struct ar_config *config = &t->model->config.ar;
    TRY(config_preset(bench.ctx, preset, &t->model->config));
    if (bench.host) config->n_layer = CPU_LAYERS;
    t->tokens = config->num_tokens;
    TRY(ar_describe(config, &t->model->ar_table));
    TRY(params_init(&t->model->ar_table, 0));
    TRY(ar_trainer_build(t));
    for (int64_t i = 0; i < batch * t->tokens; i++) t->codes[i] = (int32_t)(i * 7919 % config->vocab_size);
    for (int i = 0; i < batch; i++) t->labels[i] = i * 37 % config->num_classes;
    return AIM_OK;
}

static aim_status run_ar(const char *preset)
{
    struct ar_trainer t;
    char name[96];
    aim_status status = open_ar(&t, preset);
    if (status == AIM_OK) {
        double tokens = (double)(t.part * t.tokens);
        struct work w = {.unit = "tokens",
                         .units = tokens,
                         .operations = 6 * tokens * (double)params_parameters(&t.model->ar_table),
                         .take = take_ar,
                         .ar = &t};
        snprintf(name, sizeof name, "%s, %d layers, %lld x %lld tokens", preset, t.model->config.ar.n_layer, (long long)t.part,
                 (long long)t.tokens);
        status = measure(&w, name);
    }
    ar_trainer_clear(&t);
    aim_model_free(t.model);
    return status;
}

/* ------------------------------------------------------------------------------------------------------ stage 1 */

static aim_status take_vq(struct work *w)
{
    struct vq_did did;
    return vq_trainer_update(w->vq, w->step++, &did);
}

static aim_status open_vq(struct vq_trainer *t, const struct vq_config *config, int batch, int size)
{
    *t = (struct vq_trainer){.ctx = bench.ctx, .o = aim_train_tokenizer_defaults(), .steps = 1000, .part = batch};
    t->o.train.batch = batch;
    t->o.train.size = size;
    t->o.train.lr = 1e-4;
    t->o.perceptual = 0; /* its weights are the user's */
    t->o.disc_start = 0;
    t->codes = (int64_t)(size / vq_downsample(config)) * (size / vq_downsample(config));
    TRY(model_new(bench.ctx, &t->model));
    t->model->config.has_vq = true;
    t->model->config.vq = *config;
    TRY(vq_describe(config, &t->model->vq_table));
    TRY(params_init(&t->model->vq_table, 0));
    TRY(vq_trainer_build(t));
    uint32_t state = 1;
    for (int64_t i = 0; i < (int64_t)batch * 3 * size * size; i++) {
        state = state * 1664525u + 1013904223u;
        t->bytes[i] = (uint8_t)(state >> 24);
    }
    return AIM_OK;
}

static aim_status run_vq_batch(const char *what, const struct vq_config *config, int batch, int size)
{
    struct vq_trainer t;
    char name[96];
    struct work w = {.unit = "pictures", .units = batch, .take = take_vq, .vq = &t};
    snprintf(name, sizeof name, "%s with PatchGAN, %d x %dx%d", what, batch, size, size);
    aim_status status = open_vq(&t, config, batch, size);
    if (status == AIM_OK) status = measure(&w, name);
    vq_trainer_clear(&t);
    aim_model_free(t.model);
    return status;
}

static aim_status run_vq(const char *what)
{
    enum { SIDE = 256, CPU_SIDE = 64 };
    static const struct vq_config demo = {32, 5, {1, 1, 2, 2, 4}, 1, 64, 1024, 8, VQ_NORM_GROUPS};
    bool narrow = strcmp(what, "demo") == 0;
    struct vq_config config = demo;
    if (!narrow) TRY(config_tokenizer_preset(bench.ctx, what, &config));
    if (bench.host) return run_vq_batch(what, &config, bench.batch ? bench.batch : 1, CPU_SIDE);
    if (bench.batch || narrow) return run_vq_batch(what, &config, bench.batch ? bench.batch : 64, SIDE);
    static const int batches[] = {16, 32, 64};
    for (size_t i = 0; i < sizeof batches / sizeof batches[0]; i++) TRY(run_vq_batch(what, &config, batches[i], SIDE));
    return AIM_OK;
}

/* ---------------------------------------------------------------------------------------------------------- all */

/* A network that does not fit is passed over. */
static aim_status run(const char *what)
{
    struct device_memory *memory = &bench.ctx->backend->memory;
    bool stage1 = strncmp(what, "AiM", 3) != 0;
    memory->peak = memory->used;
    aim_status status = stage1 ? run_vq(what) : run_ar(what);
    if (status != AIM_ERR_MEMORY) return status;
    printf("%s: %s\n\n", what, aim_last_error(bench.ctx));
    return AIM_OK;
}

static aim_status run_all(char **what, int count, bool f32)
{
    static char *usual[] = {"AiM-B", "AiM-L", "AiM-XL", "demo", "VQ-f16"}, *here[] = {"AiM-B", "demo", "VQ-f16"};
    struct backend *be = bench.ctx->backend;
    bool bf16 = !f32 && backend_check_bf16(be) == AIM_OK;
    struct exec ex;
    exec_init(&ex, bench.ctx);
    TRY(limits_product(&ex, bf16, &bench.product));
    exec_clear(&ex);
    be->bf16 = bf16;
    if (count == 0) {
        what = bench.host ? here : usual;
        count = bench.host ? (int)(sizeof here / sizeof here[0]) : (int)(sizeof usual / sizeof usual[0]);
    }
    for (int i = 0; i < count; i++) TRY(run(what[i]));
    return AIM_OK;
}

int main(int argc, char **argv)
{
    aim_context_options options = aim_context_defaults();
    bool f32 = false;
    int at = 1;
    bench.steps = 5;
    for (; at < argc && argv[at][0] == '-'; at++) {
        const char *name = argv[at], *value = at + 1 < argc ? argv[at + 1] : NULL;
        if (strcmp(name, "--f32") == 0) {
            f32 = true;
            continue;
        }
        if (value && strcmp(name, "--device") == 0)
            options.device = value;
        else if (value && strcmp(name, "--steps") == 0)
            bench.steps = atoi(value);
        else if (value && strcmp(name, "--batch") == 0)
            bench.batch = atoi(value);
        else {
            fprintf(stderr, "bench_profile: %s is not known, or wants a value\n", name);
            return 2;
        }
        at++;
    }
    if (bench.steps < 1 || bench.steps > MOST_STEPS) bench.steps = 5;
    if (aim_context_create(&options, &bench.ctx) != AIM_OK) {
        printf("skipped: %s\n", aim_last_error(bench.ctx));
        aim_context_free(bench.ctx);
        return 0;
    }
    bench.host = bench.ctx->backend->memory.host;
    printf("A training step, %s\n\n", aim_context_device(bench.ctx));
    aim_status status = run_all(argv + at, argc - at, f32);
    if (status != AIM_OK) fprintf(stderr, "bench_profile: %s\n", aim_last_error(bench.ctx));
    aim_context_free(bench.ctx);
    return status != AIM_OK;
}
