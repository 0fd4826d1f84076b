#include "support.h"

#include "io/image.h"
#include "io/resample.h"
#include "io/tensor_file.h"
#include "train/augment.h"

static aim_context ctx;
static aim_image photo; /* 211 x 150 */
static struct tensor_file expected;

static int set_up(void **state)
{
    (void)state;
    return context_init(&ctx, NULL) != AIM_OK || aim_image_read(&ctx, data_path("images/photo.png"), &photo) != AIM_OK ||
           tensor_file_open(&ctx, data_path("images/expected.safetensors"), &expected) != AIM_OK;
}

static int tear_down(void **state)
{
    (void)state;
    aim_image_free(&photo);
    tensor_file_close(&expected);
    return ctx.memory.total != 0;
}

/* A copy that a transform may change. */
static aim_image copy_photo(void)
{
    aim_image copy;
    assert_ok(&ctx, image_alloc(&ctx, photo.width, photo.height, &copy));
    memcpy(copy.rgb, photo.rgb, image_stride(&photo) * (size_t)photo.height);
    return copy;
}

static aim_image transform(enum augment_kind kind, int size, bool flip, uint64_t seed, uint64_t sample)
{
    aim_image from = copy_photo(), out;
    struct augment how = {kind, size, flip};
    assert_ok(&ctx, augment_picture(&ctx, &from, &how, seed, sample, &out));
    assert_int_equal(out.width, size);
    assert_int_equal(out.height, size);
    aim_image_free(&from);
    return out;
}

static bool same(const aim_image *a, const aim_image *b)
{
    return a->width == b->width && a->height == b->height && memcmp(a->rgb, b->rgb, image_stride(a) * (size_t)a->height) == 0;
}

static void the_middle_equals_pillow(void **state)
{
    (void)state;
    aim_image eval = transform(AUGMENT_AIM_EVAL, 64, false, 0, 0), crop = transform(AUGMENT_CENTER_CROP, 64, false, 0, 0);
    const struct tensor_entry *want_eval = tensor_file_find(&expected, "aim_eval_64");
    const struct tensor_entry *want_crop = tensor_file_find(&expected, "center_crop_64");
    assert_memory_equal(eval.rgb, want_eval->data, want_eval->bytes);
    assert_memory_equal(crop.rgb, want_crop->data, want_crop->bytes);
    aim_image_free(&eval);
    aim_image_free(&crop);
    assert_int_equal(augment_aim_side(256), 288);
    assert_int_equal(augment_aim_side(64), 72);
}

/* Whether `small` is a window of `large`; the place of the first one found. */
static bool find_window(const aim_image *large, const aim_image *small, int *x, int *y)
{
    for (*y = 0; *y <= large->height - small->height; ++*y)
        for (*x = 0; *x <= large->width - small->width; ++*x) {
            int row = 0;
            while (row < small->height && memcmp(large->rgb + (size_t)(*y + row) * image_stride(large) + (size_t)*x * 3,
                                                 small->rgb + (size_t)row * image_stride(small), image_stride(small)) == 0)
                row++;
            if (row == small->height) return true;
        }
    return false;
}

/* A random crop is a window of the picture, or of the mirrored one, scaled by Pillow; all places and both ways occur. */
static void aim_crops_are_windows(void **state)
{
    (void)state;
    enum { SIZE = 64, DRAWS = 300 };
    aim_image scaled[2], mirrored = copy_photo();
    augment_mirror(&mirrored);
    int width, height, flips = 0, least_x = 1000, most_x = 0, most_y = 0;
    assert_ok(&ctx, image_short_side_size(&ctx, &photo, 72, &width, &height));
    assert_ok(&ctx, aim_image_resize(&ctx, &photo, width, height, AIM_FILTER_LANCZOS, &scaled[0]));
    assert_ok(&ctx, aim_image_resize(&ctx, &mirrored, width, height, AIM_FILTER_LANCZOS, &scaled[1]));
    for (int i = 0; i < DRAWS; i++) {
        int x, y;
        aim_image crop = transform(AUGMENT_AIM, SIZE, true, 5, (uint64_t)i);
        bool plain = find_window(&scaled[0], &crop, &x, &y);
        if (!plain) assert_true(find_window(&scaled[1], &crop, &x, &y));
        flips += !plain;
        least_x = x < least_x ? x : least_x;
        most_x = x > most_x ? x : most_x;
        most_y = y > most_y ? y : most_y;
        aim_image_free(&crop);
    }
    assert_int_equal(least_x, 0);
    assert_int_equal(most_x, width - SIZE);
    assert_int_equal(most_y, height - SIZE);
    assert_in_range(flips, 100, 200);
    aim_image_free(&scaled[0]);
    aim_image_free(&scaled[1]);
    aim_image_free(&mirrored);
}

/* random_crop_arr: the short side is any of size .. ceil(size/0.8); each crop is a window of one of those pictures. */
static void random_crops_are_windows(void **state)
{
    (void)state;
    enum { SIZE = 16, MOST = 20, DRAWS = 200 };
    aim_image scaled[MOST - SIZE + 1];
    int seen[MOST - SIZE + 1] = {0};
    for (int side = SIZE; side <= MOST; side++) {
        struct image_scaling plan;
        assert_ok(&ctx, image_scaling_plan(&ctx, &photo, side, &plan));
        assert_int_equal(plan.halvings, side <= 18 ? 3 : 2); /* 150 -> 75 -> 37 -> 18 */
        struct image_window all = {0, 0, plan.width, plan.height};
        assert_ok(&ctx, image_scale(&ctx, &photo, &plan, &all, &scaled[side - SIZE]));
    }
    for (int i = 0; i < DRAWS; i++) {
        aim_image crop = transform(AUGMENT_RANDOM_CROP, SIZE, false, 9, (uint64_t)i);
        int x, y, k = 0;
        while (k <= MOST - SIZE && !find_window(&scaled[k], &crop, &x, &y)) k++;
        assert_true(k <= MOST - SIZE);
        seen[k]++;
        aim_image_free(&crop);
    }
    for (int k = 0; k <= MOST - SIZE; k++) {
        assert_in_range(seen[k], 20, 60);
        aim_image_free(&scaled[k]);
    }
}

static void draws_depend_on_seed_and_sample(void **state)
{
    (void)state;
    aim_image a = transform(AUGMENT_AIM, 32, true, 1, 2), b = transform(AUGMENT_AIM, 32, true, 1, 2);
    aim_image c = transform(AUGMENT_AIM, 32, true, 1, 3), d = transform(AUGMENT_AIM, 32, true, 2, 2);
    assert_true(same(&a, &b));
    assert_false(same(&a, &c));
    assert_false(same(&a, &d));
    aim_image *all[] = {&a, &b, &c, &d};
    for (int i = 0; i < 4; i++) aim_image_free(all[i]);
}

/* The order of torchvision's TenCrop, on a picture whose red tells the column and whose green the row. */
static void views_stand_in_order(void **state)
{
    (void)state;
    enum { WHOLE = 9, SIZE = 4, AREA = SIZE * SIZE };
    static const int corner[5][2] = {{0, 0}, {5, 0}, {0, 5}, {5, 5}, {2, 2}}; /* 2: round(2.5), half to even */
    aim_image image;
    float out[3 * AREA];
    assert_ok(&ctx, aim_image_create(&ctx, WHOLE, WHOLE, &image));
    for (int i = 0; i < WHOLE * WHOLE; i++) {
        image.rgb[3 * i] = (uint8_t)(i % WHOLE);
        image.rgb[3 * i + 1] = (uint8_t)(i / WHOLE);
    }
    for (int v = 0; v < 10; v++) {
        augment_view(&image, 10, v, SIZE, out);
        for (int i = 0; i < AREA; i++) {
            int x = corner[v % 5][0] + i % SIZE, y = corner[v % 5][1] + i / SIZE;
            if (v >= 5) x = WHOLE - 1 - x;
            assert_true(out[i] == image_level_to_float((uint8_t)x) && out[AREA + i] == image_level_to_float((uint8_t)y));
            assert_true(out[2 * AREA + i] == -1.0f);
        }
    }
    aim_image_free(&image);
    float plain[3 * 64 * 64], view[3 * 64 * 64];
    image = transform(AUGMENT_CENTER_CROP, 64, false, 0, 0);
    for (int v = 0; v < 2; v++) {
        aim_image_to_float(&image, plain);
        augment_view(&image, 2, 0, 64, view);
        assert_memory_equal(view, plain, sizeof plain);
        augment_mirror(&image);
        aim_image_to_float(&image, plain);
        augment_mirror(&image);
        augment_view(&image, 2, 1, 64, view);
        assert_memory_equal(view, plain, sizeof plain);
    }
    aim_image_free(&image);
}

static void failures_leave_nothing(void **state)
{
    (void)state;
    aim_image line, out;
    int64_t held = ctx.memory.total;
    assert_ok(&ctx, aim_image_create(&ctx, 60000, 1, &line));
    const enum augment_kind kinds[] = {AUGMENT_AIM, AUGMENT_AIM_EVAL, AUGMENT_RANDOM_CROP, AUGMENT_CENTER_CROP};
    for (int k = 0; k < 4; k++) {
        struct augment how = {kinds[k], 65536, false};
        assert_fails(&ctx, augment_picture(&ctx, &line, &how, 0, 0, &out), AIM_ERR_ARGUMENT, "too narrow");
        how.size = 0;
        assert_fails(&ctx, augment_picture(&ctx, &line, &how, 0, 0, &out), AIM_ERR_ARGUMENT, "cannot be made");
    }
    aim_image_free(&line);
    assert_int_equal(ctx.memory.total, held);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_middle_equals_pillow), cmocka_unit_test(aim_crops_are_windows),
        cmocka_unit_test(random_crops_are_windows), cmocka_unit_test(draws_depend_on_seed_and_sample),
        cmocka_unit_test(views_stand_in_order),     cmocka_unit_test(failures_leave_nothing),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
