/*
 * Stage 2 on a GPU for few streams: milliseconds a token and a picture, bf16, random weights, guidance on; the share of the
 * memory's speed that the weights take; and where the persistent kernel's time goes.
 *
 *     bench_cuda_decode [-b PICTURES] [PRESET...]       default: one picture at a time; AiM-B AiM-L AiM-XL AiM-1B
 *
 * Times of a token are those of a launch around it, by the clock of the host, which hears of a launch when it is done; medians
 * of ROUNDS pictures. The speed is that of a large copy in the same run. The parts come from a painting of its own, whose
 * kernel counts cycles: means over the blocks, and the least and the largest block.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "tensor/limits.h"
#include "cuda/meter.h"
#include "model/engine.h"
#include "model/model.h"
#include "weights.h"

enum { ROUNDS = 9, MOST_MARKS = 64, MOST_PICTURES = 64 };

static const char *const kinds[METER_KINDS] = {"wait for the token", "wait for h", "norm",     "in_proj", "wait for scores",
                                               "convolution, mixer", "wait for v", "out_proj", "head",    "draw"};

static struct {
    aim_context *ctx;
    double copy; /* bytes/s */
} bench;

/* When how many tokens were done. */
struct marks {
    int count;
    int64_t tokens[MOST_MARKS];
    double seconds[MOST_MARKS];
};

static void check(aim_status status)
{
    if (status == AIM_OK) return;
    fprintf(stderr, "bench_cuda_decode: %s\n", aim_last_error(bench.ctx));
    exit(1);
}

static aim_status mark(void *user, int64_t tokens)
{
    struct marks *m = user;
    if (m->count < MOST_MARKS) {
        m->tokens[m->count] = tokens;
        m->seconds[m->count++] = clock_seconds();
    }
    return AIM_OK;
}

static double paint(struct engine *engine, int64_t pictures, int32_t *codes, struct marks *marks)
{
    int32_t labels[MOST_PICTURES];
    for (int i = 0; i < MOST_PICTURES; i++) labels[i] = i * 17 % engine->ar->config.num_classes;
    struct engine_job job = {.pictures = pictures,
                             .labels = labels,
                             .how = {.cfg = 4, .temperature = 1, .top_p = 1},
                             .codes = codes,
                             .progress = mark,
                             .user = marks};
    marks->count = 0;
    double start = clock_seconds();
    check(engine_paint(engine, &job));
    return clock_seconds() - start;
}

/* A painting's parts, from the cycles of every block. */
static void show_parts(double token)
{
    unsigned long long *cycles;
    int blocks;
    check(cuda_meter_stop(bench.ctx->backend, &cycles, &blocks));
    double all = 0;
    for (int i = 0; i < blocks * METER_KINDS; i++) all += (double)cycles[i] / blocks;
    if (all == 0) printf("  (no persistent kernel: too many streams)\n");
    for (int k = 0; k < METER_KINDS && all > 0; k++) {
        double sum = 0, least = HUGE_VAL, most = 0;
        for (int b = 0; b < blocks; b++) {
            double share = (double)cycles[b * METER_KINDS + k] / all;
            sum += share / blocks;
            least = share < least ? share : least;
            most = share > most ? share : most;
        }
        printf("  %-20s %7.1f us a token %5.1f%%   (%.1f to %.1f)   block 0: %.1f\n", kinds[k], 1e6 * token * sum, 100 * sum,
               1e6 * token * least, 1e6 * token * most, 1e6 * token * (double)cycles[k] / all);
    }
    mem_free(cycles);
}

static void bench_preset(const char *preset, int pictures)
{
    aim_model *model;
    struct engine *engine;
    struct marks marks;
    double times[ROUNDS], parts[MOST_MARKS][ROUNDS];
    check(aim_model_init(bench.ctx, preset, 0, &model));
    model->weights = AIM_WEIGHTS_BF16;
    check(model_need_ar(model));
    int64_t T = model->ar->config.num_tokens;
    check(engine_create(model->ar, 2 * pictures, &engine));
    int32_t *codes = mem_array(bench.ctx, (size_t)(pictures * T), sizeof *codes, MEM_MISC);
    if (!codes) check(AIM_ERR_MEMORY);
    paint(engine, pictures, codes, &marks);
    for (int i = 0; i < ROUNDS; i++) {
        times[i] = paint(engine, pictures, codes, &marks);
        for (int j = 1; j < marks.count; j++)
            parts[j][i] = (marks.seconds[j] - marks.seconds[j - 1]) / (double)(marks.tokens[j] - marks.tokens[j - 1]);
    }
    double token = limits_median(times, ROUNDS) / (double)T, bytes = weight_bytes(model->ar);
    printf("%s, %d picture%s: %.1f ms, %.4f ms a token, weights %.0f GB/s, %.0f%% of copy\n", preset, pictures,
           pictures == 1 ? "" : "s", 1e3 * token * (double)T, 1e3 * token, 1e-9 * bytes / token,
           100 * bytes / token / bench.copy);
    printf("  ms a token up to token");
    for (int j = 1; j < marks.count; j += 3)
        printf("  %lld: %.4f", (long long)marks.tokens[j], 1e3 * limits_median(parts[j], ROUNDS));
    printf("\n");
    check(cuda_meter_start(bench.ctx->backend));
    token = paint(engine, pictures, codes, &marks) / (double)T;
    printf("  with counting %.4f ms a token:\n", 1e3 * token);
    show_parts(token);
    fflush(stdout);
    mem_free(codes);
    engine_free(engine);
    aim_model_free(model);
}

int main(int argc, char **argv)
{
    static const char *const usual[] = {"AiM-B", "AiM-L", "AiM-XL", "AiM-1B"};
    aim_context_options options = aim_context_defaults();
    options.device = "cuda";
    int pictures = 1, first = 1;
    if (argc > 2 && !strcmp(argv[1], "-b")) {
        pictures = atoi(argv[2]);
        first = 3;
    }
    if (pictures < 1 || pictures > MOST_PICTURES) return 2;
    check(aim_context_create(&options, &bench.ctx));
    struct exec ex;
    exec_init(&ex, bench.ctx);
    check(limits_copy(&ex, &bench.copy));
    exec_clear(&ex);
    printf("%s: copy %.2f TB/s; bf16, guidance 4\n", aim_context_device(bench.ctx), 1e-12 * bench.copy);
    for (int i = 0; i < (argc > first ? argc - first : 4); i++)
        bench_preset(argc > first ? argv[first + i] : usual[i], pictures);
    aim_context_free(bench.ctx);
    return 0;
}
