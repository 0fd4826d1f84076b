/* PSNR and SSIM. The expected numbers are those of scikit-image 0.26: peak_signal_noise_ratio(a, b, data_range=255) and
 * structural_similarity(a, b, channel_axis=2, data_range=255 and 510), on pictures read with Pillow. */
#include "support.h"

#include "io/image.h"

static aim_context ctx;

static int set_up(void **state)
{
    (void)state;
    return context_init(&ctx, NULL) != AIM_OK;
}

static int tear_down(void **state)
{
    (void)state;
    return ctx.memory.total != 0;
}

static void check(const aim_image *a, const aim_image *b, double range, double psnr, double ssim)
{
    double got_psnr, got_ssim;
    assert_ok(&ctx, aim_image_compare(&ctx, a, b, range, &got_psnr, &got_ssim));
    if (!(fabs(got_psnr - psnr) < 1e-10) || !(fabs(got_ssim - ssim) < 1e-12))
        fail_msg("got %.15g %.15g instead of %.15g %.15g", got_psnr, got_ssim, psnr, ssim);
}

static void test_golden_pictures(void **state)
{
    (void)state;
    aim_image png, jpeg, palette;
    assert_ok(&ctx, aim_image_read(&ctx, data_path("images/photo.png"), &png));
    assert_ok(&ctx, aim_image_read(&ctx, data_path("images/photo.jpg"), &jpeg));
    assert_ok(&ctx, aim_image_read(&ctx, data_path("images/palette.png"), &palette));
    check(&png, &jpeg, 1.0, 29.616102458165265, 0.8100411773282818);
    check(&png, &jpeg, 2.0, 29.616102458165265, 0.9129142113945505);
    check(&palette, &png, 1.0, 24.017586474854507, 0.5360330939740349);
    check(&palette, &png, 2.0, 24.017586474854507, 0.6792953786864185);
    aim_image_free(&png);
    aim_image_free(&jpeg);
    aim_image_free(&palette);
}

/* (x*across + y*down + 40*channel) mod 256 */
static void make_pattern(int width, int height, int across, int down, aim_image *image)
{
    assert_ok(&ctx, aim_image_create(&ctx, width, height, image));
    for (int y = 0; y < height; y++)
        for (int x = 0; x < width; x++)
            for (int c = 0; c < 3; c++) image->rgb[(y * width + x) * 3 + c] = (uint8_t)(x * across + y * down + 40 * c);
}

static void test_small_patterns(void **state)
{
    (void)state;
    aim_image a, b;
    make_pattern(11, 9, 23, 7, &a);
    make_pattern(11, 9, 21, 9, &b);
    check(&a, &b, 1.0, 15.363633145586661, 0.8709247501572669);
    check(&b, &a, 2.0, 15.363633145586661, 0.8734400463231351);
    aim_image_free(&a);
    aim_image_free(&b);
    make_pattern(7, 7, 23, 7, &a); /* a single window */
    make_pattern(7, 7, 21, 9, &b);
    check(&a, &b, 1.0, 33.07930382548004, 0.9931613527486931);
    aim_image_free(&a);
    aim_image_free(&b);
}

static void test_equal_pictures(void **state)
{
    (void)state;
    aim_image a;
    make_pattern(16, 12, 5, 3, &a);
    double psnr, ssim;
    assert_ok(&ctx, aim_image_compare(&ctx, &a, &a, 1.0, &psnr, &ssim));
    assert_true(isinf(psnr) && psnr > 0);
    assert_true(ssim == 1.0);
    aim_image_free(&a);
}

static void test_refusals(void **state)
{
    (void)state;
    aim_image a, b, small, nothing = {.width = 16, .height = 12};
    double psnr, ssim;
    make_pattern(16, 12, 5, 3, &a);
    make_pattern(12, 16, 5, 3, &b);
    make_pattern(16, 6, 5, 3, &small);
    assert_fails(&ctx, aim_image_compare(&ctx, &a, &b, 1.0, &psnr, &ssim), AIM_ERR_ARGUMENT, "16 x 12 and 12 x 16");
    assert_fails(&ctx, aim_image_compare(&ctx, &small, &small, 1.0, &psnr, &ssim), AIM_ERR_ARGUMENT, "at least 7 x 7");
    assert_fails(&ctx, aim_image_compare(&ctx, &a, &nothing, 1.0, &psnr, &ssim), AIM_ERR_ARGUMENT, "at least 7 x 7");
    assert_fails(&ctx, aim_image_compare(&ctx, &a, &a, 0.0, &psnr, &ssim), AIM_ERR_ARGUMENT, "data range");
    assert_fails(&ctx, aim_image_compare(&ctx, &a, &a, NAN, &psnr, &ssim), AIM_ERR_ARGUMENT, "data range");
    ctx.memory.fail_after = 0;
    assert_fails(&ctx, aim_image_compare(&ctx, &a, &a, 1.0, &psnr, &ssim), AIM_ERR_MEMORY, "out of memory");
    ctx.memory.fail_after = -1;
    aim_image_free(&a);
    aim_image_free(&b);
    aim_image_free(&small);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_golden_pictures, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_small_patterns, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_equal_pictures, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_refusals, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
