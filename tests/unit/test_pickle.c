/* The pickle reader: io/pickle.h. What torch files make of pickles is in test_torch_file.c. */
#include "support.h"

#include "io/pickle.h"

static int set_up(void **state)
{
    aim_context *ctx = calloc(1, sizeof *ctx);
    *state = ctx;
    return context_init(ctx, NULL) != AIM_OK;
}

static int tear_down(void **state)
{
    aim_context *ctx = *state;
    int64_t left = ctx->memory.total;
    free(ctx);
    return left != 0;
}

#define LITERAL(text)        (text), sizeof(text) - 1
#define GLOBAL(module, name) "c" module "\n" name "\n"

struct bytes {
    unsigned char *data;
    size_t size;
};

static void put(struct bytes *b, const void *data, size_t size)
{
    size_t room = 256;
    while (room < b->size + size) room *= 2;
    b->data = realloc(b->data, room);
    if (size) memcpy(b->data + b->size, data, size);
    b->size += size;
}

static void expect_failure(aim_context *ctx, const char *pickle, size_t size, aim_status status, const char *words)
{
    char *copy = malloc(size ? size : 1); /* of exactly the right size, for the sanitizer */
    memcpy(copy, pickle, size);
    struct pickle p;
    assert_fails(ctx, pickle_read(ctx, "t.pkl", copy, size, &p), status, words);
    assert_non_null(strstr(aim_last_error(ctx), "t.pkl"));
    assert_int_equal(ctx->memory.total, 0);
    free(copy);
}

static void test_damaged_pickles(void **state)
{
    aim_context *ctx = *state;
#define DAMAGED(words, body) expect_failure(ctx, LITERAL("\x80\2" body "."), AIM_ERR_FORMAT, words)
    DAMAGED("stack is empty", "");
    DAMAGED("stack is empty", "0");
    DAMAGED("stack is empty", "(");
    DAMAGED("stack is empty", "N\x86");
    DAMAGED("stack is empty", "(\x85");
    DAMAGED("no mark", "t");
    DAMAGED("no mark", "]e");
    DAMAGED("unknown opcode 0x69", "i");
    DAMAGED("unknown opcode 0xff", "\xff");
    DAMAGED("unknown memo index", "h\0");
    DAMAGED("unknown memo index", "Nq\2h\1");
    DAMAGED("unknown memo index", "j\xff\xff\xff\xff");
    DAMAGED("out of all proportion", "Nr\xff\xff\xff\xff");
    DAMAGED("nothing to remember", "q\0");
    DAMAGED("nothing to remember", "(q\0");
    DAMAGED("nothing to remember", "\x94");
    DAMAGED("no list", "NNa");
    DAMAGED("no list", "(e");
    DAMAGED("no dict", "]NNs");
    DAMAGED("no dict", "](NNu");
    DAMAGED("key without value", "}(Nu");
    DAMAGED("tuple of arguments", "c\n\nNR");
    DAMAGED("tuple of arguments", "c\n\n]\x81");
    DAMAGED("attributes for nothing", "Nb");
    DAMAGED("a global without name", "NN\x93");
    DAMAGED("no list", GLOBAL("collections", "OrderedDict") "N\x85R");
    DAMAGED("no list", GLOBAL("collections", "OrderedDict") "]]\x86R");
    DAMAGED("no pair", GLOBAL("collections", "OrderedDict") "]Na\x85R");
    DAMAGED("no pair", GLOBAL("collections", "OrderedDict") "])a\x85R");
    DAMAGED("more than 4 GB", "\x8d\0\0\0\0\1\0\0\0");
    DAMAGED("(byte 3)", "N\xff");
    static const struct {
        const char *pickle;
        size_t size;
    } cut[] = {{"", 0},
               {LITERAL("\x80")},
               {LITERAL("N")},
               {LITERAL("K")},
               {LITERAL("M\1")},
               {LITERAL("J\1\1\1")},
               {LITERAL("G\0\0\0\0\0\0\0")},
               {LITERAL("U\2a")},
               {LITERAL("X\1\0\0")},
               {LITERAL("X\1\0\0\0")},
               {LITERAL("cos\nsystem")},
               {LITERAL("c")},
               {LITERAL("\x8a\1")},
               {LITERAL("\x95\0")},
               {LITERAL("\x8d\xff\xff\xff\xff\0\0\0\0")},
               {LITERAL("\x8a\xff"
                        "a")},
               {LITERAL("B\xff\xff\xff\xff"
                        "a")}};
    for (size_t i = 0; i < sizeof cut / sizeof *cut; i++)
        expect_failure(ctx, cut[i].pickle, cut[i].size, AIM_ERR_FORMAT, "cut short");
    expect_failure(ctx, LITERAL("\x80\6N."), AIM_ERR_UNSUPPORTED, "protocol 6");
}

static void test_numbers_in_pickles(void **state)
{
    aim_context *ctx = *state;
    static const struct {
        const char *pickle;
        size_t size;
        int64_t value;
    } cases[] = {{LITERAL("K\xff."), 255},
                 {LITERAL("M\xff\xff."), 65535},
                 {LITERAL("J\xfe\xff\xff\xff."), -2},
                 {LITERAL("\x8a\0."), 0},
                 {LITERAL("\x8a\1\x80."), -128},
                 {LITERAL("\x8a\2\x80\0."), 128},
                 {LITERAL("\x8a\x08\0\0\0\0\0\0\0\x80."), INT64_MIN},
                 {LITERAL("\x8b\1\0\0\0\7."), 7}};
    struct pickle p;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_ok(ctx, pickle_read(ctx, "n", cases[i].pickle, cases[i].size, &p));
        assert_int_equal(p.value.type, PICKLE_INT);
        assert_true(p.value.integer == cases[i].value);
        assert_int_equal(p.consumed, cases[i].size);
        pickle_free(&p);
    }
    assert_ok(ctx, pickle_read(ctx, "n", LITERAL("\x8a\x09\0\0\0\0\0\0\0\0\1.trailing"), &p));
    assert_int_equal(p.value.type, PICKLE_LONG);
    assert_int_equal(p.value.length, 9);
    assert_int_equal(p.consumed, 12);
    pickle_free(&p);
    assert_ok(ctx, pickle_read(ctx, "n", LITERAL("G\x3f\xf8\0\0\0\0\0\0."), &p));
    assert_true(p.value.real == 1.5);
    pickle_free(&p);
}

/* Small pickles that ask for much: what they get is bounded by their size. */
static void test_bombs(void **state)
{
    aim_context *ctx = *state;
    enum { N = 20000 };
    struct pickle p;
    struct bytes b = {0};
    /* a list of N pairs that N ordered dicts are made of */
    put(&b, LITERAL("NN\x86q\0]q\1("));
    for (int i = 0; i < N; i++) put(&b, "h\0", 2);
    put(&b, LITERAL("e" GLOBAL("collections", "OrderedDict") "q\2"));
    for (int i = 0; i < N; i++) put(&b, "h\2h\1\x85R0", 7);
    put(&b, ".", 1);
    assert_fails(ctx, pickle_read(ctx, "bomb", b.data, b.size, &p), AIM_ERR_FORMAT, "more OrderedDict items");
    assert_true(ctx->memory.peak < 200 * (int64_t)b.size);

    /* nesting is free */
    b.size = 0;
    for (int i = 0; i < N; i++) put(&b, "(", 1);
    for (int i = 0; i < N; i++) put(&b, "t", 1);
    for (int i = 0; i < N; i++) put(&b, "]a", i ? 1 : 0);
    put(&b, ".", 1);
    assert_ok(ctx, pickle_read(ctx, "deep", b.data, b.size, &p));
    pickle_free(&p);

    /* a list that holds itself; a memo as large as it may be */
    assert_ok(ctx, pickle_read(ctx, "self", LITERAL("]q\0h\0a."), &p));
    assert_ptr_equal(p.value.list->items[0].list, p.value.list);
    pickle_free(&p);
    b.size = 0;
    put(&b, LITERAL("Nr\x20\x4e\0\0"));
    for (int i = 0; i < N; i++) put(&b, "N", 1);
    put(&b, ".", 1);
    assert_ok(ctx, pickle_read(ctx, "memo", b.data, b.size, &p));
    pickle_free(&p);
    assert_true(ctx->memory.peak < 200 * (int64_t)b.size * 10);
    free(b.data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_damaged_pickles, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_numbers_in_pickles, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_bombs, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
