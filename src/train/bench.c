/* How fast this machine trains stage 2, beside what its products could do at most. */
#include "base/clock.h"
#include "tensor/limits.h"
#include "train/ar_trainer.h"

/* A trainer of a new network of this preset, without data. */
static aim_status open_trainer(aim_context *ctx, const char *preset, int batch, struct ar_trainer *t)
{
    *t = (struct ar_trainer){.ctx = ctx, .o = aim_train_ar_defaults(), .steps = 1000, .part = batch};
    t->o.train.batch = batch;
    t->o.train.lr = 1e-4;
    TRY(model_new(ctx, &t->model));
    TRY(config_preset(ctx, preset, &t->model->config));
    t->tokens = t->model->config.ar.num_tokens;
    TRY(ar_describe(&t->model->config.ar, &t->model->ar_table));
    TRY(params_init(&t->model->ar_table, 0));
    TRY(ar_trainer_build(t));
    for (int64_t i = 0; i < batch * t->tokens; i++) t->codes[i] = (int32_t)(i * 7919 % t->model->config.ar.vocab_size);
    for (int i = 0; i < batch; i++) t->labels[i] = i * 37 % t->model->config.ar.num_classes;
    return AIM_OK;
}

/* A step's seconds: the median of a few after those that warm up, of fewer where they take long. */
static aim_status time_steps(struct ar_trainer *t, double *seconds)
{
    enum { WARM = 2, RUNS = 9 };
    const double slow = 2, enough = 5;
    double times[RUNS], sum = 0;
    struct ar_step did;
    size_t runs = 0;
    for (int64_t step = 0; runs < RUNS && (runs == 0 || sum < enough); step++) {
        double start = clock_seconds();
        TRY(ar_trainer_update(t, step, &did)); /* reads the loss, and so waits */
        double time = clock_seconds() - start;
        if (step < WARM && time < slow) continue;
        times[runs++] = time;
        sum += time;
    }
    *seconds = limits_median(times, runs);
    return AIM_OK;
}

static aim_status bench(struct ar_trainer *t, const char *preset, int batch, aim_bench_result *r)
{
    aim_context *ctx = t->ctx;
    struct device_memory *memory = &ctx->backend->memory;
    double seconds;
    memory->peak = memory->used;
    TRY(open_trainer(ctx, preset, batch, t));
    TRY(time_steps(t, &seconds));
    r->token_ms = 1e3 * seconds / (double)(batch * t->tokens);
    r->codes_per_second = batch / seconds;
    r->operations = 6.0 * (double)params_parameters(&t->model->ar_table);
    r->memory = memory->host ? ctx->memory.total : memory->peak;
    return AIM_OK;
}

static aim_status measure_limits(aim_context *ctx, bool bf16, aim_bench_result *r)
{
    struct exec ex;
    exec_init(&ex, ctx);
    aim_status status = limits_copy(&ex, &r->bytes_per_second);
    if (status == AIM_OK) status = limits_product(&ex, bf16 ? T_BF16_PACKED : T_F32_PACKED, &r->operations_per_second);
    exec_clear(&ex);
    return status;
}

aim_status aim_bench_train(aim_context *ctx, const char *preset, int batch, aim_bench_result *result)
{
    struct backend *be = ctx->backend;
    struct ar_trainer t = {.ctx = ctx};
    bool before = be->bf16, bf16 = backend_check_bf16(be) == AIM_OK;
    *result = (aim_bench_result){.batch = batch};
    if (batch < 1) return aim_fail(ctx, AIM_ERR_ARGUMENT, "a batch of %d cannot be trained on", batch);
    TRY(measure_limits(ctx, bf16, result));
    be->bf16 = bf16;
    aim_status status = bench(&t, preset, batch, result);
    be->bf16 = before;
    ar_trainer_clear(&t);
    aim_model_free(t.model);
    return status == AIM_ERR_MEMORY ? AIM_OK : status; /* the result stays empty */
}
