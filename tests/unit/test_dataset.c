#include "training_set.h"

#include "train/dataset.h"

static void assert_picture(const struct dataset *d, int64_t i, const char *ending, int label)
{
    char *path = dataset_path(d, &ctx, i);
    size_t n = strlen(path), m = strlen(ending);
    assert_true(n > m);
    assert_string_equal(path + n - m, ending);
    assert_int_equal(d->pictures[i].label, label);
    mem_free(path);
}

static void folders_are_classes(void **state)
{
    (void)state;
    struct dataset d;
    const char *names[] = {"train/b/2.png",     "train/b/10.JPG", "train/a/x.webp",     "train/a/.hidden.png",
                           "train/a/notes.txt", "train/C/y.jpeg", "train/.cache/z.png", "train/b/deeper/w.png"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) make_file(names[i], "", 0);
    assert_ok(&ctx, dataset_open(&ctx, root, &d));
    assert_int_equal(d.class_count, 3);
    assert_string_equal(d.classes[0].name, "C"); /* bytes, as Python sorts */
    assert_string_equal(d.classes[1].name, "a");
    assert_string_equal(d.classes[2].name, "b");
    assert_int_equal(d.count, 4);
    assert_picture(&d, 0, "/train/C/y.jpeg", 0);
    assert_picture(&d, 1, "/train/a/x.webp", 1);
    assert_picture(&d, 2, "/train/b/10.JPG", 2);
    assert_picture(&d, 3, "/train/b/2.png", 2);
    dataset_close(&d);
    assert_ok(&ctx, dataset_open(&ctx, in_root("train"), &d)); /* without train/ inside, the folder itself */
    assert_int_equal(d.count, 4);
    dataset_close(&d);
    assert_ok(&ctx, dataset_open(&ctx, in_root("train/b"), &d)); /* whose folder "deeper" is a class then */
    assert_int_equal(d.count, 1);
    assert_int_equal(warnings, 1);
    dataset_close(&d);
}

static void one_folder_is_one_class(void **state)
{
    (void)state;
    struct dataset d;
    make_file("cats/b.png", "", 0);
    make_file("cats/a.png", "", 0);
    assert_ok(&ctx, dataset_open(&ctx, in_root("cats/"), &d));
    assert_int_equal(d.class_count, 1);
    assert_string_equal(d.classes[0].name, "cats");
    assert_int_equal(d.count, 2);
    assert_picture(&d, 0, "cats/a.png", 0);
    dataset_close(&d);
}

static void mistakes_are_told(void **state)
{
    (void)state;
    struct dataset d, held;
    assert_fails(&ctx, dataset_open(&ctx, in_root("absent"), &d), AIM_ERR_IO, "absent: No such file");
    assert_fails(&ctx, dataset_open(&ctx, root, &d), AIM_ERR_ARGUMENT, "there are no pictures");
    make_file("a/x.png", "", 0);
    make_folder("b");
    assert_fails(&ctx, dataset_open(&ctx, root, &d), AIM_ERR_ARGUMENT, "b holds no pictures");
    make_file("b/x.png", "", 0);
    make_file("stray.png", "", 0);
    assert_ok(&ctx, dataset_open(&ctx, root, &d));
    assert_int_equal(warnings, 1);
    assert_non_null(strstr(last_warning, "1 pictures in"));
    dataset_close(&d);
    assert_fails(&ctx, dataset_open_split(&ctx, root, 1, &d, &held), AIM_ERR_ARGUMENT, "fraction");
    assert_fails(&ctx, dataset_open_split(&ctx, root, 0.9999999, &d, &held), AIM_ERR_ARGUMENT, "none is left");
    if (geteuid() == 0) return; /* whom no permission keeps out */
    chmod(in_root("b"), 0);
    assert_fails(&ctx, dataset_open(&ctx, root, &d), AIM_ERR_IO, "Permission denied");
    chmod(in_root("b"), 0777);
}

static void val_is_held_out(void **state)
{
    (void)state;
    struct dataset train, held;
    make_file("train/a/1.png", "", 0);
    make_file("train/b/2.png", "", 0);
    make_file("val/b/3.png", "", 0);
    assert_true(dataset_has_held_out(root));
    assert_ok(&ctx, dataset_open_split(&ctx, root, 0.5, &train, &held));
    assert_int_equal(train.count, 2);
    assert_int_equal(held.count, 1);
    assert_int_equal(held.class_count, 2);
    assert_picture(&held, 0, "val/b/3.png", 1);
    dataset_close(&train);
    dataset_close(&held);
    make_file("val/c/4.png", "", 0);
    assert_fails(&ctx, dataset_open_split(&ctx, root, 0, &train, &held), AIM_ERR_ARGUMENT, "val/c has no counterpart");
}

/* Which of 400 pictures are held out does not depend on the others, and is about the fraction. */
static void a_fraction_is_held_out(void **state)
{
    (void)state;
    struct dataset train, held, more, more_held;
    char name[32];
    for (int i = 0; i < 400; i++) {
        snprintf(name, sizeof name, "%c/%d.png", 'a' + i % 2, i);
        make_file(name, "", 0);
    }
    assert_ok(&ctx, dataset_open_split(&ctx, root, 0.1, &train, &held));
    assert_int_equal(train.count + held.count, 400);
    assert_in_range(held.count, 25, 55);
    assert_int_equal(held.class_count, 2);
    make_file("a/another.png", "", 0);
    assert_ok(&ctx, dataset_open_split(&ctx, root, 0.1, &more, &more_held));
    int64_t found = 0;
    for (int64_t i = 0; i < held.count; i++)
        for (int64_t j = 0; j < more_held.count; j++)
            found += strcmp(held.text + held.pictures[i].name, more_held.text + more_held.pictures[j].name) == 0;
    assert_int_equal(found, held.count);
    struct dataset *all[] = {&train, &held, &more, &more_held};
    for (int i = 0; i < 4; i++) dataset_close(all[i]);
}

static void memory_can_run_out(void **state)
{
    (void)state;
    make_file("train/a/1.png", "", 0);
    make_file("train/b/2.png", "", 0);
    make_file("val/b/3.png", "", 0);
    for (int64_t n = 0;; n++) {
        struct dataset train, held;
        ctx.memory.fail_after = n;
        aim_status status = dataset_open_split(&ctx, root, 0, &train, &held);
        ctx.memory.fail_after = -1;
        if (status == AIM_OK) {
            assert_true(n > 10);
            dataset_close(&train);
            dataset_close(&held);
            return;
        }
        assert_int_equal(status, AIM_ERR_MEMORY);
        assert_int_equal(ctx.memory.total, 0);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up_root, tear_down_root)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(folders_are_classes), TEST(one_folder_is_one_class), TEST(mistakes_are_told),
        TEST(val_is_held_out),     TEST(a_fraction_is_held_out),  TEST(memory_can_run_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
