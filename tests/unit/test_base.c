/* Random numbers, memory, files and errors. */
#include "support.h"

#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/philox.h"

/* The known answers that come with Random123, the authors' own library. */
static void philox_known_answers(void **state)
{
    (void)state;
    static const struct {
        uint64_t seed, index;
        uint32_t position, stream, want[4];
    } cases[] = {
        {0, 0, 0, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {UINT64_MAX, UINT64_MAX, UINT32_MAX, UINT32_MAX, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {0x299f31d0a4093822u, 0x85a308d3243f6a88u, 0x13198a2e, 0x03707344, {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct philox4 r = philox(cases[i].seed, cases[i].index, cases[i].position, cases[i].stream);
        assert_memory_equal(r.v, cases[i].want, sizeof r.v);
    }
    assert_true(philox_double(UINT32_MAX, UINT32_MAX) < 1.0);
    assert_true(philox_double(0, 0) == 0.0);
    assert_true(philox_float(0) > 0.0f && philox_float(UINT32_MAX) < 1.0f);
}

static void memory_is_counted_and_limited(void **state)
{
    (void)state;
    aim_context ctx;
    aim_context_options options = aim_context_defaults();
    options.memory_limit = 1 << 20;
    assert_ok(&ctx, context_init(&ctx, &options));
    char *small = mem_new(&ctx, 1000, MEM_IMAGE);
    assert_non_null(small);
    assert_int_equal((uintptr_t)small % 64, 0);
    assert_true(ctx.memory.used[MEM_IMAGE] >= 1000 && ctx.memory.total == ctx.memory.used[MEM_IMAGE]);
    assert_null(mem_new(&ctx, 1 << 20, MEM_MISC));
    assert_non_null(strstr(aim_last_error(&ctx), "out of memory"));
    assert_int_equal(ctx.status, AIM_ERR_MEMORY);
    assert_null(mem_array(&ctx, SIZE_MAX / 2, 3, MEM_MISC));
    assert_null(mem_new(&ctx, SIZE_MAX, MEM_MISC));
    memset(small, 7, 1000);
    char *grown = mem_resize(&ctx, small, 100000, MEM_IMAGE);
    assert_non_null(grown);
    assert_int_equal(grown[999], 7);
    mem_free(grown);
    assert_int_equal(ctx.memory.total, 0);
    assert_true(ctx.memory.peak >= 100000);
    assert_true(mem_available() > 0);
}

static void messages_are_one_line(void **state)
{
    (void)state;
    aim_context ctx;
    context_init(&ctx, NULL);
    aim_fail(&ctx, AIM_ERR_FORMAT, "%s", "a name\nwith\ta\x1b[31m colour");
    assert_string_equal(aim_last_error(&ctx), "a name?with?a?[31m colour");
    aim_fail(&ctx, AIM_ERR_IO, "again: %s", aim_last_error(&ctx)); /* may quote the message before */
    assert_string_equal(aim_last_error(&ctx), "again: a name?with?a?[31m colour");
    char many[4096];
    memset(many, 'x', sizeof many - 1);
    many[sizeof many - 1] = '\0';
    aim_fail(&ctx, AIM_ERR_IO, "%s", many);
    assert_int_equal(strlen(aim_last_error(&ctx)), sizeof ctx.error - 1);
}

static int count_entries(const char *directory)
{
    int n = 0;
    DIR *d = opendir(directory);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

static void files_appear_whole_or_not_at_all(void **state)
{
    (void)state;
    aim_context ctx;
    context_init(&ctx, NULL);
    char folder[] = "/tmp/aim-test-XXXXXX";
    assert_non_null(mkdtemp(folder));
    char *path = file_join(&ctx, folder, "out.bin"), *deep = file_join(&ctx, folder, "a/b/c");
    struct file_writer w;
    assert_ok(&ctx, file_writer_open(&ctx, path, &w));
    assert_ok(&ctx, file_writer_write(&w, "first", 5));
    assert_false(file_exists(path));
    assert_ok(&ctx, file_writer_close(&w, true));
    assert_true(file_exists(path));

    assert_ok(&ctx, file_writer_open(&ctx, path, &w)); /* given up: the old file stays, nothing else is left */
    assert_ok(&ctx, file_writer_write(&w, "second", 6));
    assert_ok(&ctx, file_writer_close(&w, false));
    assert_int_equal(count_entries(folder), 1);
    struct file_map map;
    assert_ok(&ctx, file_map_open(&ctx, path, &map));
    assert_int_equal(map.size, 5);
    assert_memory_equal(map.data, "first", 5);
    file_map_close(&map);

    assert_fails(&ctx, file_writer_open(&ctx, folder, &w), AIM_ERR_IO, "is a directory");
    assert_fails(&ctx, file_map_open(&ctx, folder, &map), AIM_ERR_IO, "not a regular file");
    assert_fails(&ctx, file_map_open(&ctx, deep, &map), AIM_ERR_IO, "No such file");
    assert_ok(&ctx, file_make_directory(&ctx, deep));
    assert_true(file_is_directory(deep));
    assert_fails(&ctx, file_make_directory(&ctx, path), AIM_ERR_IO, "cannot make the directory");
    unlink(path);
    rmdir(deep);
    for (int i = 0; i < 3; i++) { /* c, b, a, then the folder itself */
        *strrchr(deep, '/') = '\0';
        rmdir(deep);
    }
    assert_false(file_exists(folder));
    mem_free(path);
    mem_free(deep);
    assert_int_equal(ctx.memory.total, 0);
}

static void a_full_disk_is_an_error(void **state)
{
    (void)state;
    aim_context ctx;
    context_init(&ctx, NULL);
    struct file_writer w;
    if (!file_exists("/dev/full")) skip();
    assert_ok(&ctx, file_writer_open(&ctx, "/dev/full", &w));
    assert_ok(&ctx, file_writer_write(&w, "x", 1)); /* still buffered */
    assert_fails(&ctx, file_writer_close(&w, true), AIM_ERR_IO, "No space left");
    assert_int_equal(ctx.memory.total, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(philox_known_answers),    cmocka_unit_test(memory_is_counted_and_limited),
        cmocka_unit_test(messages_are_one_line),   cmocka_unit_test(files_appear_whole_or_not_at_all),
        cmocka_unit_test(a_full_disk_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
