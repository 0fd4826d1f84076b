/* AiM-B and VQ-f16 at their real sizes, with hashed weights, against float64 results. */
#include "golden/golden.h"

#include "model/engine.h"

struct fixture {
    aim_context *ctx;
    aim_model *model;
    struct tensor_file file;
    int64_t *tokens;
};

static int set_up(void **state)
{
    static struct fixture f;
    f.ctx = golden_context(0);
    f.model = hashed_model(f.ctx, "AiM-B");
    golden_open(f.ctx, "full-size/expected.safetensors", &f.file);
    f.tokens = golden_i64(f.ctx, &f.file, "tokens", NULL);
    *state = &f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    mem_free(f->tokens);
    tensor_file_close(&f->file);
    aim_model_free(f->model);
    aim_context_free(f->ctx);
    return 0;
}

/* `others` of the 256 most likely codes may differ. */
static void check_network(struct fixture *f, aim_weights weights, double tolerance, int others, int pos_offset,
                          const char *logits_name, const char *argmax_name, const char *nll_name)
{
    aim_context *ctx = f->ctx;
    enum { T = 256, V = 16384 };
    f->model->pos_offset = pos_offset;
    f->model->weights = weights;
    ar_free(f->model->ar);
    f->model->ar = NULL;
    size_t row_count, column_count;
    int64_t *rows = golden_i64(ctx, &f->file, "rows", &row_count), *columns = golden_i64(ctx, &f->file, "cols", &column_count);
    int64_t *argmax = golden_i64(ctx, &f->file, argmax_name, NULL), label = 207;
    float *want = golden_f32(ctx, &f->file, logits_name, NULL), *nll_want = golden_f32(ctx, &f->file, nll_name, NULL);
    struct golden_logits got = {.values = mem_array(ctx, (size_t)T * V, sizeof(float), MEM_MISC), .per_picture = (size_t)T * V};
    double nll;
    assert_ok(ctx, aim_score(f->model, f->tokens, &label, 1, &nll, golden_collect, &got));
    float *picked = mem_array(ctx, row_count * column_count, sizeof(float), MEM_MISC);
    for (size_t r = 0; r < row_count; r++)
        for (size_t c = 0; c < column_count; c++) picked[r * column_count + c] = got.values[rows[r] * V + columns[c]];
    double error = relative_error(picked, want, row_count * column_count);
    int different = 0;
    for (int64_t t = 0; t < T; t++) {
        int64_t best = 0;
        for (int64_t v = 1; v < V; v++)
            if (got.values[t * V + v] > got.values[t * V + best]) best = v;
        different += best != argmax[t];
    }
    print_message("AiM-B, position offset %d: relative error %.2g, nll %.6f against %.6f, %d other most likely codes\n",
                  pos_offset, error, nll, (double)nll_want[0], different);
    assert_true(error < tolerance);
    assert_true(fabs(nll - (double)nll_want[0]) < tolerance * (double)nll_want[0]);
    assert_true(different <= others);
    void *all[] = {rows, columns, argmax, want, nll_want, got.values, picked};
    for (size_t i = 0; i < 7; i++) mem_free(all[i]);
}

static void network(void **state)
{
    check_network(*state, AIM_WEIGHTS_F32, GOLDEN_TOLERANCE, 0, 0, "logits_pos0", "argmax_pos0", "nll_pos0");
    check_network(*state, AIM_WEIGHTS_F32, GOLDEN_TOLERANCE, 0, 1, "logits_pos1", "argmax_pos1", "nll_pos1");
}

/* What rounding costs. */
static void rounded_network(void **state)
{
    check_network(*state, AIM_WEIGHTS_BF16, 1e-2, 1, 0, "logits_pos0", "argmax_pos0", "nll_pos0");
    check_network(*state, AIM_WEIGHTS_Q8, 2e-2, 2, 0, "logits_pos0", "argmax_pos0", "nll_pos0");
}

/* The decode engine over the whole sequence, fed the golden tokens. */
static void decode_engine(void **state)
{
    struct fixture *f = *state;
    aim_context *ctx = f->ctx;
    enum { T = 256, V = 16384 };
    f->model->pos_offset = 0;
    f->model->weights = AIM_WEIGHTS_F32;
    ar_free(f->model->ar);
    f->model->ar = NULL;
    assert_ok(ctx, model_need_ar(f->model));
    size_t row_count, column_count;
    int64_t *rows = golden_i64(ctx, &f->file, "rows", &row_count), *columns = golden_i64(ctx, &f->file, "cols", &column_count);
    float *want = golden_f32(ctx, &f->file, "logits_pos0", NULL);
    float *picked = mem_array(ctx, column_count, sizeof(float), MEM_MISC);
    struct engine *engine;
    assert_ok(ctx, engine_create_stepping(f->model->ar, 1, &engine));
    int32_t label = 207;
    double worst = 0;
    for (int64_t t = 0, r = 0; t < T; t++) {
        int32_t token = t ? (int32_t)f->tokens[t - 1] : 0;
        if (t == 0)
            assert_ok(ctx, engine_begin(engine, &label, 1));
        else
            assert_ok(ctx, engine_step(engine, &token, t));
        if (rows[r] != t) continue;
        for (size_t c = 0; c < column_count; c++) picked[c] = engine->logits[columns[c]];
        worst = fmax(worst, relative_error(picked, want + (size_t)r * column_count, column_count));
        r++;
    }
    print_message("AiM-B, step form: relative error %.2g\n", worst);
    assert_true(worst < GOLDEN_TOLERANCE);
    engine_free(engine);
    void *all[] = {rows, columns, want, picked};
    for (size_t i = 0; i < 4; i++) mem_free(all[i]);
}

static void decoder(void **state)
{
    struct fixture *f = *state;
    aim_context *ctx = f->ctx;
    enum { SIDE = 256, STEP = 5, KEPT = 52 };
    float *want = golden_f32(ctx, &f->file, "picture_every_5th", NULL),
          *moments = golden_f32(ctx, &f->file, "picture_mean_std", NULL);
    float *pixels = mem_array(ctx, 3 * SIDE * SIDE, sizeof(float), MEM_MISC);
    float *picked = mem_array(ctx, 3 * KEPT * KEPT, sizeof(float), MEM_MISC);
    assert_ok(ctx, aim_decode(f->model, f->tokens, 1, 16, 16, pixels));
    double sum = 0, squares = 0, n = 3.0 * SIDE * SIDE;
    for (int i = 0; i < 3 * SIDE * SIDE; i++) {
        sum += (double)pixels[i];
        squares += (double)pixels[i] * (double)pixels[i];
    }
    for (int c = 0; c < 3; c++)
        for (int y = 0; y < KEPT; y++)
            for (int x = 0; x < KEPT; x++) picked[(c * KEPT + y) * KEPT + x] = pixels[(c * SIDE + STEP * y) * SIDE + STEP * x];
    double error = relative_error(picked, want, 3 * KEPT * KEPT), mean = sum / n, deviation = sqrt(squares / n - mean * mean);
    print_message("VQ-f16 decoder: relative error %.2g, mean %.6f, deviation %.6f\n", error, mean, deviation);
    assert_true(error < GOLDEN_TOLERANCE);
    assert_true(fabs(mean - (double)moments[0]) < 1e-5 && fabs(deviation - (double)moments[1]) < 1e-5);
    void *all[] = {want, moments, pixels, picked};
    for (size_t i = 0; i < 4; i++) mem_free(all[i]);
}

static void encoder(void **state)
{
    struct fixture *f = *state;
    aim_context *ctx = f->ctx;
    enum { SIDE = 256, CODES = 256 };
    aim_image image = {0};
    assert_ok(ctx, aim_image_read(ctx, data_path("full-size/picture.png"), &image));
    assert_int_equal(image.width, SIDE);
    assert_int_equal(image.height, SIDE);
    float *pixels = mem_array(ctx, 3 * SIDE * SIDE, sizeof(float), MEM_MISC);
    int64_t *want = golden_i64(ctx, &f->file, "codes", NULL), codes[CODES];
    aim_image_to_float(&image, pixels);
    assert_ok(ctx, aim_encode(f->model, pixels, 1, SIDE, SIDE, codes));
    int different = 0;
    for (int i = 0; i < CODES; i++) different += codes[i] != want[i];
    print_message("VQ-f16 encoder: %d of %d codes differ\n", different, CODES);
    assert_true(different <= CODES / 100); /* nearly tied codes may fall either way in float32 */
    mem_free(pixels);
    mem_free(want);
    aim_image_free(&image);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(network), cmocka_unit_test(rounded_network), cmocka_unit_test(decode_engine),
        cmocka_unit_test(decoder), cmocka_unit_test(encoder),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
