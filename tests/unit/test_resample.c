#include "support.h"

#include "io/image.h"
#include "io/resample.h"
#include "io/tensor_file.h"

static aim_context ctx;
static aim_image photo;

static int set_up(void **state)
{
    (void)state;
    return context_init(&ctx, NULL) != AIM_OK || aim_image_read(&ctx, data_path("images/photo.png"), &photo) != AIM_OK;
}

static int tear_down(void **state)
{
    (void)state;
    aim_image_free(&photo);
    return ctx.memory.total != 0;
}

/* FNV-1a, 64 bit, of the pixels */
static uint64_t hash_image(const aim_image *image)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < image_stride(image) * (size_t)image->height; i++) h = (h ^ image->rgb[i]) * 0x100000001b3u;
    return h;
}

/* The left upper corner of the photo. */
static void crop_photo(int width, int height, aim_image *out)
{
    struct image_window window = {0, 0, width, height};
    assert_ok(&ctx, image_resample(&ctx, &photo, photo.width, photo.height, AIM_FILTER_BOX, &window, out));
}

static void test_golden(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int width, height;
        aim_filter filter;
    } cases[] = {
        {"box_60x40", 60, 40, AIM_FILTER_BOX},           {"box_300x260", 300, 260, AIM_FILTER_BOX},
        {"bilinear_60x40", 60, 40, AIM_FILTER_BILINEAR}, {"bilinear_300x260", 300, 260, AIM_FILTER_BILINEAR},
        {"bicubic_60x40", 60, 40, AIM_FILTER_BICUBIC},   {"bicubic_300x260", 300, 260, AIM_FILTER_BICUBIC},
        {"lanczos_60x40", 60, 40, AIM_FILTER_LANCZOS},   {"lanczos_300x260", 300, 260, AIM_FILTER_LANCZOS},
        {"center_crop_64", 0, 0, AIM_FILTER_BICUBIC},    {"aim_eval_64", 0, 0, AIM_FILTER_LANCZOS},
    };
    struct tensor_file file;
    assert_ok(&ctx, tensor_file_open(&ctx, data_path("images/expected.safetensors"), &file));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct tensor_entry *expected = tensor_file_find(&file, cases[i].name);
        assert_non_null(expected);
        aim_image out;
        if (cases[i].width)
            assert_ok(&ctx, aim_image_resize(&ctx, &photo, cases[i].width, cases[i].height, cases[i].filter, &out));
        else if (cases[i].filter == AIM_FILTER_BICUBIC)
            assert_ok(&ctx, aim_image_center_crop(&ctx, &photo, 64, &out));
        else
            assert_ok(&ctx, image_aim_eval(&ctx, &photo, 72, 64, &out));
        assert_int_equal(out.height, expected->shape[0]);
        assert_int_equal(out.width, expected->shape[1]);
        assert_memory_equal(out.rgb, expected->data, expected->bytes);
        aim_image_free(&out);
    }
    tensor_file_close(&file);
}

/* Sizes that are awkward for a vectorised kernel; hashes of Image.resize(...).tobytes() from Pillow 11.3. */
static void test_awkward_sizes(void **state)
{
    (void)state;
    static const struct {
        int width, height;
        aim_filter filter;
        uint64_t hash;
    } cases[] = {
        {1, 1, AIM_FILTER_BOX, 0xa32456196f07ee83},          {1, 1, AIM_FILTER_LANCZOS, 0xa32445196f07d1a0},
        {211, 1, AIM_FILTER_BICUBIC, 0x95c3f0db71b6c22e},    {1, 150, AIM_FILTER_BILINEAR, 0xb93b13aaaaf8037c},
        {7, 5, AIM_FILTER_LANCZOS, 0xfce1e58a6e74dc9f},      {8, 8, AIM_FILTER_BICUBIC, 0x56210fdfb7ab5b2c},
        {9, 150, AIM_FILTER_LANCZOS, 0xbe35344ecc34f45d},    {211, 149, AIM_FILTER_BOX, 0x5b36fceea3b0c0de},
        {210, 150, AIM_FILTER_BILINEAR, 0x15ef58419bfedee1}, {500, 3, AIM_FILTER_LANCZOS, 0x7643e6d02896fbed},
        {3, 500, AIM_FILTER_BICUBIC, 0xe8fd0e0530a650c1},    {211, 150, AIM_FILTER_LANCZOS, 0xb46c202f6032ed80},
        {105, 75, AIM_FILTER_BOX, 0x3e313d914e1effcf},       {633, 450, AIM_FILTER_BICUBIC, 0xaef1fd0735d62dca},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        aim_image out;
        assert_ok(&ctx, aim_image_resize(&ctx, &photo, cases[i].width, cases[i].height, cases[i].filter, &out));
        if (hash_image(&out) != cases[i].hash)
            fail_msg("%d x %d, filter %d, differs from Pillow", cases[i].width, cases[i].height, cases[i].filter);
        aim_image_free(&out);
    }
}

/*
 * Corners of the photo through center_crop_arr(size) and through Resize(size + 3), CenterCrop(size), with Pillow 11.3;
 * the sizes make Python's rounding half to even matter.
 */
static void test_transforms(void **state)
{
    (void)state;
    static const struct {
        int width, height, size;
        uint64_t center_crop, aim_eval;
    } cases[] = {
        {211, 150, 75, 0x439cd01359f79c15, 0x9cd789d39b258564}, {211, 150, 150, 0x6bbfe56de759b765, 0x2eb3a14626fb8781},
        {33, 10, 5, 0x4ea1d4e78638b05e, 0x1f78628fd1d117fc},    {33, 10, 15, 0x1b27d95dbe899612, 0x6191673cc5ec320b},
        {35, 10, 25, 0xf7dbcf9071c2b428, 0xbd28ee0574051938},   {10, 33, 15, 0x5bb1aeb8d5341c64, 0x8eb052d2310154a4},
        {60, 120, 25, 0x919fddc79820df45, 0xacdf21806a0149a1},  {150, 150, 150, 0x0d9a4ffe5cad0073, 0x3fc295f8d29e74bd},
        {35, 10, 15, 0x1804fdcb1dafba0b, 0x2b56423d72915b73},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        aim_image corner, out;
        crop_photo(cases[i].width, cases[i].height, &corner);
        assert_ok(&ctx, aim_image_center_crop(&ctx, &corner, cases[i].size, &out));
        if (hash_image(&out) != cases[i].center_crop) fail_msg("center_crop, case %zu, differs", i);
        aim_image_free(&out);
        assert_ok(&ctx, image_aim_eval(&ctx, &corner, cases[i].size + 3, cases[i].size, &out));
        if (hash_image(&out) != cases[i].aim_eval) fail_msg("aim_eval, case %zu, differs", i);
        aim_image_free(&out);
        aim_image_free(&corner);
    }
}

/* A window of a resize is the crop of the whole, whichever passes run. */
static void test_windows(void **state)
{
    (void)state;
    static const int sizes[][2] = {{100, 80}, {211, 80}, {100, 150}, {211, 150}, {400, 300}};
    static const struct image_window windows[] = {{0, 0, 100, 80}, {3, 5, 1, 1}, {50, 17, 33, 41}, {99, 79, 1, 1}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        aim_image whole;
        assert_ok(&ctx, aim_image_resize(&ctx, &photo, sizes[i][0], sizes[i][1], AIM_FILTER_LANCZOS, &whole));
        for (size_t j = 0; j < sizeof windows / sizeof *windows; j++) {
            const struct image_window *w = &windows[j];
            aim_image part;
            assert_ok(&ctx, image_resample(&ctx, &photo, sizes[i][0], sizes[i][1], AIM_FILTER_LANCZOS, w, &part));
            for (int y = 0; y < w->height; y++)
                assert_memory_equal(part.rgb + (size_t)y * image_stride(&part),
                                    whole.rgb + (size_t)(w->y + y) * image_stride(&whole) + w->x * 3, image_stride(&part));
            aim_image_free(&part);
        }
        aim_image_free(&whole);
    }
}

static void test_short_side(void **state)
{
    (void)state;
    int width, height;
    assert_ok(&ctx, image_short_side_size(&ctx, &photo, 288, &width, &height));
    assert_int_equal(width, 405); /* 288 * 211 / 150 = 405.12 */
    assert_int_equal(height, 288);
    aim_image upright;
    crop_photo(100, 150, &upright);
    assert_ok(&ctx, image_short_side_size(&ctx, &upright, 99, &width, &height));
    assert_int_equal(width, 99);
    assert_int_equal(height, 148); /* 148.5 */
    aim_image_free(&upright);
}

static void test_refusals(void **state)
{
    (void)state;
    aim_image out, nothing = {0};
    int side;
    assert_fails(&ctx, aim_image_resize(&ctx, &photo, 0, 5, AIM_FILTER_BOX, &out), AIM_ERR_ARGUMENT, "0 x 5");
    assert_fails(&ctx, aim_image_resize(&ctx, &photo, 5, 5, (aim_filter)9, &out), AIM_ERR_ARGUMENT, "filter 9");
    assert_fails(&ctx, aim_image_resize(&ctx, &nothing, 5, 5, AIM_FILTER_BOX, &out), AIM_ERR_ARGUMENT, "without pixels");
    assert_fails(&ctx, aim_image_resize(&ctx, &photo, 1 << 20, 1 << 20, AIM_FILTER_BOX, &out), AIM_ERR_ARGUMENT, "too large");
    assert_fails(&ctx, aim_image_center_crop(&ctx, &photo, 0, &out), AIM_ERR_ARGUMENT, "0 pixels");
    assert_fails(&ctx, aim_image_center_crop(&ctx, &nothing, 4, &out), AIM_ERR_ARGUMENT, "without pixels");
    assert_fails(&ctx, image_aim_eval(&ctx, &photo, 64, 65, &out), AIM_ERR_ARGUMENT, "does not fit");
    static const struct image_window outside[] = {{-1, 0, 2, 2}, {0, 0, 11, 2}, {9, 0, 2, 2}, {0, 0, 0, 2}, {0, 10, 1, 1}};
    for (size_t i = 0; i < sizeof outside / sizeof *outside; i++)
        assert_fails(&ctx, image_resample(&ctx, &photo, 10, 10, AIM_FILTER_BOX, &outside[i], &out), AIM_ERR_ARGUMENT,
                     "does not lie within");
    aim_image line; /* so narrow that the scaled size does not fit an int */
    assert_ok(&ctx, aim_image_create(&ctx, 1, 1 << 20, &line));
    assert_fails(&ctx, aim_image_center_crop(&ctx, &line, 4096, &out), AIM_ERR_ARGUMENT, "too narrow");
    assert_fails(&ctx, image_short_side_size(&ctx, &line, 4096, &side, &side), AIM_ERR_ARGUMENT, "too narrow");
    assert_ok(&ctx, aim_image_center_crop(&ctx, &line, 256, &out)); /* costs only what is cropped */
    aim_image_free(&out);
    aim_image_free(&line);
}

static void test_allocation_failures(void **state)
{
    (void)state;
    int64_t before = ctx.memory.total;
    for (int64_t n = 0;; n++) {
        assert_true(n < 100);
        aim_image out;
        ctx.memory.fail_after = n;
        aim_status status = aim_image_center_crop(&ctx, &photo, 20, &out);
        ctx.memory.fail_after = -1;
        if (status != AIM_OK) assert_null(out.rgb);
        aim_image_free(&out);
        assert_int_equal(ctx.memory.total, before);
        if (status == AIM_OK) break;
        assert_int_equal(status, AIM_ERR_MEMORY);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_golden, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_awkward_sizes, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_transforms, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_windows, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_short_side, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_refusals, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_allocation_failures, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
