/* The tokenizer against the golden data. */
#include "golden/golden.h"

/* NHWC (H,W,C) to CHW */
static void to_chw(const float *x, int64_t pixels, int64_t channels, float *y)
{
    for (int64_t p = 0; p < pixels; p++)
        for (int64_t c = 0; c < channels; c++) y[c * pixels + p] = x[p * channels + c];
}

static void encode_and_decode(void **state)
{
    (void)state;
    aim_context *ctx = golden_context(2);
    struct tensor_file file;
    golden_open(ctx, "tiny-group/expected_vq.safetensors", &file);
    aim_model *model = golden_model(ctx, "tiny-group", 1, AIM_WEIGHTS_AUTO);
    size_t latent_count, pixel_count, code_count;
    float *image = golden_f32(ctx, &file, "image", NULL), *latent = golden_f32(ctx, &file, "latent", &latent_count);
    float *reconstruction = golden_f32(ctx, &file, "reconstruction", &pixel_count);
    int64_t *want = golden_i64(ctx, &file, "codes", &code_count);

    assert_ok(ctx, model_need_vq(model));
    struct tensor picture = tensor_view(T_F32, image, 1, 3, 64, 64);
    struct tensor *z = vq_latent(&model->ex, model->vq, &picture);
    assert_ok(ctx, model->ex.status);
    assert_int_equal(tensor_count(z), latent_count);
    float *chw = mem_array(ctx, latent_count, sizeof(float), MEM_MISC);
    to_chw(f32(z), 16, 8, chw);
    double latent_error = relative_error(chw, latent, latent_count);

    int64_t codes[16];
    assert_int_equal(code_count, 16);
    assert_ok(ctx, aim_encode(model, image, 1, 64, 64, codes));
    assert_memory_equal(codes, want, sizeof codes);

    float *pixels = mem_array(ctx, pixel_count, sizeof(float), MEM_MISC);
    assert_ok(ctx, aim_decode(model, codes, 1, 4, 4, pixels));
    double picture_error = relative_error(pixels, reconstruction, pixel_count);
    print_message("latent: relative error %.2g; reconstruction: %.2g\n", latent_error, picture_error);
    assert_true(latent_error < GOLDEN_TOLERANCE && picture_error < GOLDEN_TOLERANCE);

    tensor_drop(z);
    void *all[] = {image, latent, reconstruction, want, chw, pixels};
    for (size_t i = 0; i < 6; i++) mem_free(all[i]);
    aim_model_free(model);
    tensor_file_close(&file);
    aim_context_free(ctx);
}

/* Any grid: a picture that is no square, and a batch, decode as their parts do. */
static void other_shapes(void **state)
{
    (void)state;
    aim_context *ctx = golden_context(2);
    aim_model *model = golden_model(ctx, "tiny-group", 1, AIM_WEIGHTS_AUTO);
    enum { ROWS = 2, COLUMNS = 5, F = 16, VALUES = 3 * ROWS * COLUMNS * F * F };
    int64_t codes[2 * ROWS * COLUMNS], again[2 * ROWS * COLUMNS];
    for (int i = 0; i < 2 * ROWS * COLUMNS; i++) codes[i] = (i * 91 + 7) % 256;
    float *both = mem_array(ctx, 2 * VALUES, sizeof(float), MEM_MISC), *one = mem_array(ctx, VALUES, sizeof(float), MEM_MISC);
    assert_ok(ctx, aim_decode(model, codes, 2, ROWS, COLUMNS, both));
    assert_ok(ctx, aim_decode(model, codes + ROWS * COLUMNS, 1, ROWS, COLUMNS, one));
    assert_memory_equal(both + VALUES, one, VALUES * sizeof(float));
    assert_ok(ctx, aim_encode(model, both, 2, ROWS * F, COLUMNS * F, again));
    assert_fails(ctx, aim_encode(model, both, 1, ROWS * F, 17, again), AIM_ERR_ARGUMENT, "multiples of 16");
    codes[3] = 256;
    assert_fails(ctx, aim_decode(model, codes, 1, ROWS, COLUMNS, one), AIM_ERR_ARGUMENT, "code 256 is out of range");
    mem_free(both);
    mem_free(one);
    aim_model_free(model);
    aim_context_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(encode_and_decode), cmocka_unit_test(other_shapes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
