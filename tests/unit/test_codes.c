#include "training_set.h"

#include "io/safetensors.h"
#include "train/codes_writer.h"

enum { PICTURES = 7, VARIANTS = 3, TOKENS = 4 };

static struct dataset set; /* two classes; the pictures are never read */

static int set_up(void **state)
{
    if (set_up_root(state)) return 1;
    char name[32];
    for (int i = 0; i < PICTURES; i++) {
        snprintf(name, sizeof name, "data/%s/%d.png", i < 3 ? "cat \"x\"" : "dög", i);
        make_file(name, "", 0);
    }
    return dataset_open(&ctx, in_root("data"), &set) != AIM_OK;
}

static int tear_down(void **state)
{
    dataset_close(&set);
    return tear_down_root(state);
}

static int32_t code_of(int64_t i, int64_t variant, int64_t token, int64_t vocabulary)
{
    return (int32_t)((i * 1000003 + variant * 1009 + token * 31 + 77) % vocabulary);
}

static struct codes_description description(aim_codes_format format, int64_t vocabulary)
{
    return (struct codes_description){.format = format,
                                      .dataset = &set,
                                      .variants = VARIANTS,
                                      .tokens = TOKENS,
                                      .vocabulary = vocabulary,
                                      .size = 32,
                                      .views = "flip",
                                      .tokenizer = "0123456789abcdef"};
}

/* A cache of `count` pictures, the first of the set. */
static aim_status write_cache(const char *folder, const char *file, aim_codes_format format, int64_t vocabulary, int64_t count,
                              bool complete)
{
    struct codes_writer w;
    struct codes_description d = description(format, vocabulary);
    TRY(codes_writer_open(&ctx, in_root(folder), file, &d, &w));
    aim_status status = AIM_OK;
    for (int64_t i = 0; i < count && status == AIM_OK; i++) {
        int32_t codes[VARIANTS * TOKENS];
        for (int64_t k = 0; k < VARIANTS * TOKENS; k++) codes[k] = code_of(i, k / TOKENS, k % TOKENS, vocabulary);
        status = codes_writer_add(&w, codes, set.pictures[i].label);
    }
    aim_status closed = codes_writer_close(&w, complete && status == AIM_OK);
    return status == AIM_OK ? closed : status;
}

static void assert_cache(const struct codes *c, int64_t count, int64_t vocabulary)
{
    assert_int_equal(c->count, count);
    assert_int_equal(c->variants, VARIANTS);
    assert_int_equal(c->tokens, TOKENS);
    assert_int_equal(c->class_count, 2);
    for (int64_t i = 0; i < count; i++) {
        assert_int_equal(codes_label(c, i), set.pictures[i].label);
        for (int64_t v = 0; v < VARIANTS; v++) {
            int32_t codes[TOKENS];
            assert_ok(&ctx, codes_read(c, i, v, codes));
            for (int64_t t = 0; t < TOKENS; t++) assert_int_equal(codes[t], code_of(i, v, t, vocabulary));
        }
    }
}

static void our_form_comes_back(void **state)
{
    (void)state;
    const int64_t vocabulary[] = {16384, 65536, 65537, 1 << 20}; /* the last two in 32 bits */
    for (int k = 0; k < 4; k++) {
        struct codes c;
        char folder[16];
        snprintf(folder, sizeof folder, "c%d", k);
        int64_t count = k == 1 ? PICTURES - 2 : PICTURES; /* fewer than the set promised */
        assert_ok(&ctx, write_cache(folder, CODES_FILE, AIM_CODES_COMPACT, vocabulary[k], count, true));
        assert_ok(&ctx, codes_open(&ctx, in_root(folder), &c));
        assert_cache(&c, count, vocabulary[k]);
        assert_int_equal(c.values->dtype, k < 2 ? FILE_U16 : FILE_I32);
        assert_int_equal(c.vocabulary, vocabulary[k]);
        assert_string_equal(c.names[0], "cat \"x\"");
        assert_string_equal(c.names[1], "dög");
        assert_string_equal(c.tokenizer, "0123456789abcdef");
        codes_close(&c);
    }
    assert_fails(&ctx, write_cache("c0", CODES_FILE, AIM_CODES_COMPACT, 16384, PICTURES, true), AIM_ERR_ARGUMENT, "exists");
}

static void llamagen_form_comes_back(void **state)
{
    (void)state;
    struct codes c;
    assert_ok(&ctx, write_cache("l", "", AIM_CODES_LLAMAGEN, 16384, PICTURES, true));
    const char *paths[] = {"l", "l/imagenet32_codes", "l/imagenet32_codes/"};
    for (int k = 0; k < 3; k++) {
        assert_ok(&ctx, codes_open(&ctx, in_root(paths[k]), &c));
        assert_cache(&c, PICTURES, 16384);
        assert_int_equal(c.vocabulary, 0);
        assert_null(c.names);
        codes_close(&c);
    }
    aim_array array;
    assert_ok(&ctx, aim_array_read(&ctx, in_root("l/imagenet32_codes/0.npy"), NULL, &array));
    assert_int_equal(array.dtype, AIM_I64);
    assert_true(array.ndim == 3 && array.shape[0] == 1 && array.shape[1] == VARIANTS && array.shape[2] == TOKENS);
    aim_array_free(&array);
    assert_ok(&ctx, aim_array_read(&ctx, in_root("l/imagenet32_labels/6.npy"), NULL, &array));
    assert_true(array.dtype == AIM_I64 && array.ndim == 1 && array.shape[0] == 1);
    aim_array_free(&array);
    assert_fails(&ctx, write_cache("l", "", AIM_CODES_LLAMAGEN, 16384, 1, true), AIM_ERR_ARGUMENT, "exists");

    int32_t codes[TOKENS]; /* the vocabulary that the caller knows is held against the codes */
    assert_ok(&ctx, codes_open(&ctx, in_root("l"), &c));
    c.vocabulary = 10;
    assert_fails(&ctx, codes_read(&c, 0, 0, codes), AIM_ERR_FORMAT, "the vocabulary has 10");
    codes_close(&c);
}

static int entries(const char *folder)
{
    int n = 0;
    char command[600];
    snprintf(command, sizeof command, "ls -A '%s' | wc -l", in_root(folder));
    FILE *p = popen(command, "r");
    assert_int_equal(fscanf(p, "%d", &n), 1);
    pclose(p);
    return n;
}

static void given_up_leaves_nothing(void **state)
{
    (void)state;
    for (int format = AIM_CODES_COMPACT; format <= AIM_CODES_LLAMAGEN; format++) {
        assert_ok(&ctx, write_cache("gone", CODES_FILE, (aim_codes_format)format, 100, 3, false));
        assert_int_equal(entries("gone"), 0);
    }
}

static void batches_are_a_pure_function(void **state)
{
    (void)state;
    enum { BATCH = 5, STEPS = 40 };
    struct codes c;
    assert_ok(&ctx, write_cache("c", CODES_FILE, AIM_CODES_COMPACT, 50000, PICTURES, true));
    assert_ok(&ctx, codes_open(&ctx, in_root("c"), &c));
    int seen[PICTURES][VARIANTS] = {{0}};
    for (int step = 0; step < STEPS; step++) {
        int32_t codes[BATCH * TOKENS], again[BATCH * TOKENS], labels[BATCH];
        assert_ok(&ctx, codes_batch(&c, 3, step, BATCH, codes, labels));
        assert_ok(&ctx, codes_batch(&c, 3, step, BATCH, again, labels));
        assert_memory_equal(codes, again, sizeof codes);
        assert_ok(&ctx, codes_batch(&c, 4, step, BATCH, again, labels));
        assert_memory_not_equal(codes, again, sizeof codes);
        assert_ok(&ctx, codes_batch(&c, 3, step, BATCH, codes, labels));
        for (int b = 0; b < BATCH; b++)
            for (int k = 0; k < PICTURES * VARIANTS; k++)
                if (codes[b * TOKENS] == code_of(k / VARIANTS, k % VARIANTS, 0, 50000)) {
                    seen[k / VARIANTS][k % VARIANTS]++;
                    assert_int_equal(labels[b], set.pictures[k / VARIANTS].label);
                }
    }
    for (int i = 0; i < PICTURES; i++) { /* 200 samples: 28 whole epochs of 7, and 4 more */
        assert_in_range(seen[i][0] + seen[i][1] + seen[i][2], 28, 29);
        for (int v = 0; v < VARIANTS; v++) assert_true(seen[i][v] > 0);
    }
    codes_close(&c);
}

static void codes_are_held_out(void **state)
{
    (void)state;
    struct codes train, held;
    assert_ok(&ctx, write_cache("c", CODES_FILE, AIM_CODES_COMPACT, 500, PICTURES, true));
    assert_ok(&ctx, codes_open_split(&ctx, in_root("c"), 0, &train, &held));
    assert_int_equal(train.count, PICTURES);
    assert_int_equal(held.count, 0);
    codes_close(&train);
    assert_ok(&ctx, codes_open_split(&ctx, in_root("c"), 0.4, &train, &held));
    assert_int_equal(train.count + held.count, PICTURES);
    assert_true(held.count > 0);
    bool seen[PICTURES] = {false};
    for (int64_t i = 0; i < PICTURES; i++) {
        const struct codes *c = i < train.count ? &train : &held;
        int32_t codes[TOKENS];
        assert_ok(&ctx, codes_read(c, i < train.count ? i : i - train.count, 0, codes));
        for (int64_t k = 0; k < PICTURES; k++) seen[k] |= codes[0] == code_of(k, 0, 0, 500);
    }
    for (int64_t k = 0; k < PICTURES; k++) assert_true(seen[k]);
    codes_close(&train);
    codes_close(&held);

    assert_ok(&ctx, write_cache("c", CODES_HELD_OUT_FILE, AIM_CODES_COMPACT, 500, 2, true));
    assert_ok(&ctx, codes_open_split(&ctx, in_root("c"), 0.4, &train, &held));
    assert_int_equal(train.count, PICTURES);
    assert_int_equal(held.count, 2);
    codes_close(&train);
    codes_close(&held);
    unlink(in_root("c/" CODES_HELD_OUT_FILE));
    assert_ok(&ctx, write_cache("c", CODES_HELD_OUT_FILE, AIM_CODES_COMPACT, 501, 2, true));
    assert_fails(&ctx, codes_open_split(&ctx, in_root("c"), 0, &train, &held), AIM_ERR_FORMAT, "do not belong together");
}

/* Replaces the first `from` in a file by `to`, as long. */
static void edit(const char *name, const char *from, const char *to)
{
    struct file_map map;
    assert_ok(&ctx, file_map_open(&ctx, in_root(name), &map));
    size_t n = map.size;
    char *text = malloc(n);
    memcpy(text, map.data, n);
    file_map_close(&map);
    char *at = memmem(text, n, from, strlen(from));
    assert_non_null(at);
    memcpy(at, to, strlen(from));
    make_file(name, text, n);
    free(text);
}

static void damage_is_told(void **state)
{
    (void)state;
    static const struct {
        const char *from, *to, *words;
    } cases[] = {
        {"aim-codes-1", "aim-codes-2", "this version reads"},   {"aim-codes-1", "bim-codes-1", "is no cache of codes"},
        {"\"500\"", "\"5x0\"", "size of the vocabulary"},       {"\"500\"", "\"-50\"", "size of the vocabulary"},
        {"vocabulary", "vocabulery", "size of the vocabulary"}, {"\"classes\"", "\"clasess\"", "does not name the classes"},
        {"[\\\"cat", "{\\\"cat", "no list of names"},           {"\"labels\"", "\"lebals\"", "no tensor \"labels\""},
        {"\"codes\"", "\"cedos\"", "no tensor \"codes\""},      {"[7,3,4]", "[6,3,4]", "data_offsets"},
        {"[7,3,4]", "[4,3,7]", "one for each of 4 pictures"},   {"\"I32\"", "\"U32\"", "no tensor \"labels\""},
    };
    struct codes c;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        unlink(in_root("d/" CODES_FILE));
        assert_ok(&ctx, write_cache("d", CODES_FILE, AIM_CODES_COMPACT, 500, PICTURES, true));
        edit("d/" CODES_FILE, cases[i].from, cases[i].to);
        aim_status status = codes_open(&ctx, in_root("d"), &c);
        if (status != AIM_ERR_FORMAT && status != AIM_ERR_UNSUPPORTED) fail_msg("case %zu opens", i);
        if (i != 9 && !strstr(aim_last_error(&ctx), cases[i].words)) fail_msg("case %zu: %s", i, aim_last_error(&ctx));
        assert_int_equal(c.count, 0);
    }
    make_file("d/" CODES_FILE, "x", 1);
    assert_fails(&ctx, codes_open(&ctx, in_root("d"), &c), AIM_ERR_FORMAT, "neither a safetensors");
    assert_fails(&ctx, codes_open(&ctx, in_root("data"), &c), AIM_ERR_ARGUMENT, "holds no codes");
    assert_fails(&ctx, codes_open(&ctx, in_root("absent"), &c), AIM_ERR_IO, "absent");
}

/* Values: a class or a code out of range. */
static void wrong_values_are_told(void **state)
{
    (void)state;
    struct codes c;
    int32_t codes[TOKENS], one[VARIANTS * TOKENS] = {0};
    struct codes_description d = description(AIM_CODES_COMPACT, 500);
    for (int k = 0; k < 2; k++) {
        struct codes_writer w;
        one[5] = k ? 0 : 500;
        unlink(in_root("v/" CODES_FILE));
        assert_ok(&ctx, codes_writer_open(&ctx, in_root("v"), CODES_FILE, &d, &w));
        assert_ok(&ctx, codes_writer_add(&w, one, k ? 2 : 1));
        assert_ok(&ctx, codes_writer_close(&w, true));
        if (k) {
            assert_fails(&ctx, codes_open(&ctx, in_root("v"), &c), AIM_ERR_FORMAT, "has class 2, but there are 2 classes");
            continue;
        }
        assert_ok(&ctx, codes_open(&ctx, in_root("v"), &c));
        assert_ok(&ctx, codes_read(&c, 0, 0, codes));
        assert_fails(&ctx, codes_read(&c, 0, 1, codes), AIM_ERR_FORMAT, "has the code 500");
        codes_close(&c);
    }
}

static void damaged_npy_folders_are_told(void **state)
{
    (void)state;
    struct codes c;
    int32_t codes[TOKENS];
    assert_ok(&ctx, write_cache("l", "", AIM_CODES_LLAMAGEN, 500, PICTURES, true));
    make_file("l/imagenet32_codes/3.npy", "x", 1);
    assert_ok(&ctx, codes_open(&ctx, in_root("l"), &c));
    assert_ok(&ctx, codes_read(&c, 2, 0, codes));
    assert_fails(&ctx, codes_read(&c, 3, 0, codes), AIM_ERR_FORMAT, "3.npy is not a .npy file");
    codes_close(&c);
    assert_int_equal(rename(in_root("l/imagenet32_labels/1.npy"), in_root("l/imagenet32_codes/4.npy")), 0);
    assert_fails(&ctx, codes_open(&ctx, in_root("l"), &c), AIM_ERR_IO, "1.npy");
    assert_int_equal(rename(in_root("l/imagenet32_codes/4.npy"), in_root("l/imagenet32_codes/0.npy")), 0);
    assert_fails(&ctx, codes_open(&ctx, in_root("l"), &c), AIM_ERR_FORMAT, "does not have the shape");
    unlink(in_root("l/imagenet32_codes/0.npy"));
    assert_fails(&ctx, codes_open(&ctx, in_root("l"), &c), AIM_ERR_FORMAT, "there is no 0.npy");
}

static void memory_can_run_out(void **state)
{
    (void)state;
    int64_t held = ctx.memory.total;
    for (int format = AIM_CODES_COMPACT; format <= AIM_CODES_LLAMAGEN; format++) {
        int64_t n = 0;
        for (aim_status status = AIM_ERR_MEMORY; status != AIM_OK; n++) {
            struct codes c, out;
            ctx.memory.fail_after = n;
            status = write_cache("m", CODES_FILE, (aim_codes_format)format, 500, PICTURES, true);
            if (status == AIM_OK) status = codes_open_split(&ctx, in_root("m"), 0.4, &c, &out);
            ctx.memory.fail_after = -1;
            if (status == AIM_OK) {
                codes_close(&c);
                codes_close(&out);
            } else {
                assert_int_equal(status, AIM_ERR_MEMORY);
            }
            assert_int_equal(ctx.memory.total, held);
            nftw(in_root("m"), remove_entry, 8, FTW_DEPTH | FTW_PHYS);
        }
        assert_true(n > 10);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(our_form_comes_back),         TEST(llamagen_form_comes_back),     TEST(given_up_leaves_nothing),
        TEST(batches_are_a_pure_function), TEST(codes_are_held_out),           TEST(damage_is_told),
        TEST(wrong_values_are_told),       TEST(damaged_npy_folders_are_told), TEST(memory_can_run_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
