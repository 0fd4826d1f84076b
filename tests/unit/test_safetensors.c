/* The safetensors reader and writer, and conversion of stored values: io/safetensors.h, io/tensor_file.h. */
#include "support.h"

#include <unistd.h>

#include "base/file.h"
#include "io/safetensors.h"

struct fixture {
    aim_context ctx;
    char folder[64], path[128];
};

static int set_up(void **state)
{
    struct fixture *x = calloc(1, sizeof *x);
    context_init(&x->ctx, NULL);
    snprintf(x->folder, sizeof x->folder, "/tmp/aim-test-XXXXXX");
    if (!mkdtemp(x->folder)) return -1;
    snprintf(x->path, sizeof x->path, "%s/t.safetensors", x->folder);
    *state = x;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *x = *state;
    int64_t left = x->ctx.memory.total;
    unlink(x->path);
    int removed = rmdir(x->folder); /* fails when a temporary file was left behind */
    free(x);
    return left != 0 || removed != 0;
}

/* A file of its own exact size, so that the sanitizer sees a byte read too far. */
struct bytes {
    unsigned char *data;
    size_t size;
};

static struct bytes make_file(const char *header, size_t data_bytes)
{
    uint64_t n = strlen(header);
    struct bytes b = {.size = 8 + n + data_bytes};
    b.data = malloc(b.size);
    memcpy(b.data, &n, 8);
    memcpy(b.data + 8, header, n);
    for (size_t i = 0; i < data_bytes; i++) b.data[8 + n + i] = (unsigned char)i;
    return b;
}

static void expect_failure(aim_context *ctx, const char *header, size_t data_bytes, aim_status status, const char *words)
{
    struct bytes b = make_file(header, data_bytes);
    struct tensor_file f;
    assert_fails(ctx, safetensors_parse(ctx, "bad.st", b.data, b.size, &f), status, words);
    assert_non_null(strstr(aim_last_error(ctx), "bad.st"));
    assert_null(f.entries);
    assert_int_equal(ctx->memory.total, 0);
    free(b.data);
}

/* Reads all there is to read, for the sanitizer. */
static unsigned touch(const struct tensor_file *f)
{
    unsigned sum = 0;
    for (size_t i = 0; i < f->count; i++) {
        const unsigned char *data = f->entries[i].data;
        sum += (unsigned)strlen(f->entries[i].name);
        for (size_t k = 0; k < f->entries[i].bytes; k++) sum += data[k];
        assert_ptr_equal(tensor_file_find(f, f->entries[i].name), &f->entries[i]);
    }
    return sum;
}

static const char good[] = "{\"__metadata__\":{\"k\":\"v\",\"\\u00fc\":\"\"},"
                           "\"b\":{\"dtype\":\"F32\",\"shape\":[2,1],\"data_offsets\":[3,11]},"
                           "\"a\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[0,3]},"
                           "\"scalar\":{\"dtype\":\"I16\",\"shape\":[],\"data_offsets\":[11,13]},"
                           "\"empty\":{\"dtype\":\"F64\",\"shape\":[4,0],\"data_offsets\":[11,11]}}   ";

static void test_reads_a_good_file(void **state)
{
    struct fixture *x = *state;
    struct bytes b = make_file(good, 13);
    struct tensor_file f;
    assert_ok(&x->ctx, tensor_file_parse(&x->ctx, "good", b.data, b.size, &f));
    assert_int_equal(f.format, TENSOR_SAFETENSORS);
    assert_int_equal(f.count, 4);
    static const char *const order[] = {"a", "b", "empty", "scalar"};
    for (int i = 0; i < 4; i++) assert_string_equal(f.entries[i].name, order[i]);
    const struct tensor_entry *t = tensor_file_find(&f, "b");
    assert_int_equal(t->dtype, FILE_F32);
    assert_int_equal(t->ndim, 2);
    assert_int_equal(t->shape[0], 2);
    assert_int_equal(t->bytes, 8);
    assert_int_equal(*(const unsigned char *)t->data, 3);
    assert_int_equal(tensor_entry_elements(t), 2);
    t = tensor_file_find(&f, "scalar");
    assert_int_equal(t->ndim, 0);
    assert_int_equal(tensor_entry_elements(t), 1);
    assert_int_equal(tensor_entry_elements(tensor_file_find(&f, "empty")), 0);
    assert_null(tensor_file_find(&f, "__metadata__"));
    assert_null(tensor_file_find(&f, "c"));
    assert_int_equal(f.metadata_count, 2);
    assert_string_equal(tensor_file_metadata(&f, "k"), "v");
    assert_string_equal(tensor_file_metadata(&f, "\xc3\xbc"), "");
    assert_null(tensor_file_metadata(&f, "a"));
    tensor_file_close(&f);
    tensor_file_close(&f);
    free(b.data);

    b = make_file("{}", 0);
    assert_ok(&x->ctx, safetensors_parse(&x->ctx, "none", b.data, b.size, &f));
    assert_int_equal(f.count, 0);
    assert_null(tensor_file_find(&f, "a"));
    tensor_file_close(&f);
    free(b.data);
}

#define ONE(dtype, shape, offsets) "{\"t\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}}"
#define TWO(shape, first, second)                                                                                              \
    "{\"t\":{\"dtype\":\"U8\",\"shape\":" shape ",\"data_offsets\":" first "},"                                                \
    "\"u\":{\"dtype\":\"U8\",\"shape\":" shape ",\"data_offsets\":" second "}}"

static void test_every_rule_is_enforced(void **state)
{
    struct fixture *x = *state;
    static const struct {
        const char *header;
        size_t data_bytes;
        const char *words;
    } cases[] = {
        {"", 0, "does not start with '{'"},
        {" {}", 0, "does not start with '{'"},
        {"[]", 0, "does not start with '{'"},
        {"{", 0, "not valid JSON"},
        {"{} x", 0, "not valid JSON"},
        {"{\"\xff\":{}}", 0, "not valid JSON"},
        {"{\"a\\u0000b\":{}}", 0, "not valid JSON"},
        {"{\"t\":1,\"t\":1}", 0, "duplicate"},
        {"{\"t\":{\"dtype\":\"U8\",\"dtype\":\"U8\"}}", 0, "duplicate"},
        {"{\"t\":[]}", 0, "does not describe a tensor"},
        {"{\"__metadata__\":[]}", 0, "not an object"},
        {"{\"__metadata__\":{\"a\":1}}", 0, "other than strings"},
        {"{\"t\":{\"shape\":[],\"data_offsets\":[0,1]}}", 1, "has no dtype"},
        {"{\"t\":{\"dtype\":7,\"shape\":[],\"data_offsets\":[0,1]}}", 1, "has no dtype"},
        {"{\"t\":{\"dtype\":\"U8\",\"data_offsets\":[0,1]}}", 1, "has no shape"},
        {"{\"t\":{\"dtype\":\"U8\",\"shape\":[]}}", 1, "no valid data_offsets"},
        {ONE("f32", "[1]", "[0,4]"), 4, "unknown dtype \"f32\""},
        {ONE("F4", "[2]", "[0,1]"), 1, "unknown dtype"},
        {ONE("U8", "[-1]", "[0,1]"), 1, "not made of sizes"},
        {ONE("U8", "[1.0]", "[0,1]"), 1, "not made of sizes"},
        {ONE("U8", "[\"1\"]", "[0,1]"), 1, "not made of sizes"},
        {ONE("U8", "3", "[0,3]"), 3, "has no shape"},
        {ONE("F32", "[4611686018427387904,4]", "[0,1]"), 1, "overflows"},
        {ONE("F32", "[4611686018427387904,4,0]", "[0,0]"), 0, "overflows"},
        {ONE("F32", "[4611686018427387904]", "[0,1]"), 1, "overflows"},
        {ONE("U8", "[18446744073709551616]", "[0,1]"), 1, "not valid JSON"},
        {ONE("U8", "[1]", "[0]"), 1, "no valid data_offsets"},
        {ONE("U8", "[1]", "[0,1,1]"), 1, "no valid data_offsets"},
        {ONE("U8", "[1]", "[1,0]"), 1, "no valid data_offsets"},
        {ONE("U8", "[1]", "[-1,0]"), 1, "no valid data_offsets"},
        {ONE("U8", "[1]", "[0,1.5]"), 1, "no valid data_offsets"},
        {ONE("U8", "[2]", "[0,1]"), 1, "should take 2 bytes"},
        {ONE("F32", "[1]", "[0,5]"), 5, "should take 4 bytes"},
        {ONE("U8", "[2]", "[0,2]"), 1, "cut short"},
        {ONE("U8", "[1]", "[0,1]"), 2, "1 bytes after the last tensor"},
        {ONE("U8", "[1]", "[1,2]"), 2, "gap"},
        {"{}", 1, "1 bytes after the last tensor"},
        {TWO("[2]", "[0,2]", "[3,5]"), 5, "gap"},
        {TWO("[2]", "[0,2]", "[1,3]"), 3, "overlaps"},
        {TWO("[2]", "[0,2]", "[0,2]"), 2, "overlaps"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        expect_failure(&x->ctx, cases[i].header, cases[i].data_bytes, AIM_ERR_FORMAT, cases[i].words);
    expect_failure(&x->ctx, ONE("U8", "[1,1,1,1,1,1,1,1,1]", "[0,1]"), 1, AIM_ERR_UNSUPPORTED, "9 dimensions");
}

static void test_header_length(void **state)
{
    struct fixture *x = *state;
    static const struct {
        uint64_t n;
        size_t size;
        const char *words;
    } cases[] = {{0, 7, "7 bytes are too few"},           {0, 8, "does not start"},     {2, 9, "cut short"},
                 {100000001, 64, "at most 100000000"},    {100000000, 64, "cut short"}, {UINT64_MAX, 64, "at most"},
                 {(uint64_t)INT64_MAX - 4, 64, "at most"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        unsigned char data[64] = {0};
        memcpy(data, &cases[i].n, 8);
        data[8] = '{';
        struct tensor_file f;
        assert_fails(&x->ctx, safetensors_parse(&x->ctx, "bad", data, cases[i].size, &f), AIM_ERR_FORMAT, cases[i].words);
    }
    struct tensor_file f;
    struct bytes b = make_file(good, 13);
    x->ctx.memory.limit = 2000; /* what jansson takes for the header counts too */
    assert_fails(&x->ctx, safetensors_parse(&x->ctx, "big", b.data, b.size, &f), AIM_ERR_MEMORY, "header");
    x->ctx.memory.limit = 0;
    free(b.data);
}

static void test_content_decides(void **state)
{
    struct fixture *x = *state;
    struct tensor_file f;
    aim_context *ctx = &x->ctx;
    assert_fails(ctx, tensor_file_parse(ctx, "f", "", 0, &f), AIM_ERR_FORMAT, "f is empty");
    assert_fails(ctx, tensor_file_parse(ctx, "f", "hello, world", 12, &f), AIM_ERR_FORMAT, "neither");
    static const char lfs[] = "version https://git-lfs.github.com/spec/v1\n";
    assert_fails(ctx, tensor_file_parse(ctx, "f", lfs, sizeof lfs - 1, &f), AIM_ERR_FORMAT, "git lfs pull");
    assert_fails(ctx, tensor_file_open(ctx, data_path("no-such-file"), &f), AIM_ERR_IO, "no-such-file");
    assert_fails(ctx, tensor_file_open(ctx, TEST_DATA, &f), AIM_ERR_IO, "not a regular file");
    assert_fails(ctx, tensor_file_open(ctx, data_path("images/photo.png"), &f), AIM_ERR_FORMAT, "neither");
}

static void test_damage_never_crashes(void **state)
{
    struct fixture *x = *state;
    struct bytes b = make_file(good, 13);
    struct tensor_file f;
    for (size_t size = 0; size < b.size; size++) {
        unsigned char *cut = malloc(size ? size : 1);
        memcpy(cut, b.data, size);
        assert_int_not_equal(tensor_file_parse(&x->ctx, "cut", cut, size, &f), AIM_OK);
        assert_int_not_equal(safetensors_parse(&x->ctx, "cut", cut, size, &f), AIM_OK);
        free(cut);
    }
    uint32_t random = 1;
    unsigned sum = 0;
    for (int i = 0; i < 6000; i++) {
        random = random * 1664525u + 1013904223u;
        unsigned char *at = &b.data[(random >> 8) % b.size], was = *at;
        *at = (unsigned char)(random >> 3);
        if (safetensors_parse(&x->ctx, "mutant", b.data, b.size, &f) == AIM_OK) sum += touch(&f);
        tensor_file_close(&f);
        *at = was;
    }
    assert_int_not_equal(sum, 0);
    free(b.data);
}

static void test_failed_allocations_leak_nothing(void **state)
{
    struct fixture *x = *state;
    aim_context *ctx = &x->ctx;
    struct tensor_file f;
    aim_status status = AIM_ERR_MEMORY;
    int64_t n = 0;
    for (; status != AIM_OK; n++) {
        ctx->memory.fail_after = n;
        status = tensor_file_open(ctx, data_path("tiny-adaln/model.safetensors"), &f);
        if (status == AIM_OK) break;
        assert_int_equal(status, AIM_ERR_MEMORY);
        assert_int_equal(ctx->memory.total, 0);
    }
    assert_true(n >= 3);
    int64_t held = ctx->memory.total;
    status = AIM_ERR_MEMORY;
    for (n = 0; status != AIM_OK; n++) {
        ctx->memory.fail_after = n;
        status = safetensors_write(ctx, x->path, f.entries, f.count, f.metadata, f.metadata_count);
        assert_int_equal(ctx->memory.total, held);
        assert_true(status == AIM_OK || (status == AIM_ERR_MEMORY && !file_exists(x->path)));
    }
    assert_true(n >= 3);
    ctx->memory.fail_after = -1;
    tensor_file_close(&f);
}

static void assert_same_file(aim_context *ctx, const char *a, const char *b)
{
    struct file_map x, y;
    assert_ok(ctx, file_map_open(ctx, a, &x));
    assert_ok(ctx, file_map_open(ctx, b, &y));
    assert_int_equal(x.size, y.size);
    assert_memory_equal(x.data, y.data, x.size);
    file_map_close(&x);
    file_map_close(&y);
}

/* Files of the safetensors library come back byte for byte, whatever order the entries are given in. */
static void test_writes_what_the_library_writes(void **state)
{
    struct fixture *x = *state;
    aim_context *ctx = &x->ctx;
    static const char *const files[] = {"tiny-group/model.safetensors", "tiny-adaln/model.safetensors",
                                        "images/expected.safetensors"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        struct tensor_file f;
        assert_ok(ctx, tensor_file_open(ctx, data_path(files[i]), &f));
        for (size_t k = 0; k < f.count / 2; k++) {
            struct tensor_entry t = f.entries[k];
            f.entries[k] = f.entries[f.count - 1 - k];
            f.entries[f.count - 1 - k] = t;
        }
        assert_ok(ctx, safetensors_write(ctx, x->path, f.entries, f.count, f.metadata, f.metadata_count));
        tensor_file_close(&f);
        assert_same_file(ctx, x->path, data_path(files[i]));
    }
}

static void test_round_trip(void **state)
{
    struct fixture *x = *state;
    aim_context *ctx = &x->ctx;
    static const unsigned char data[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
    struct tensor_entry entries[FILE_DTYPES + 2];
    char names[FILE_DTYPES][16];
    for (int i = 0; i < FILE_DTYPES; i++) {
        enum file_dtype dtype = (enum file_dtype)i;
        snprintf(names[i], sizeof names[i], "t%d", i);
        entries[i] = (struct tensor_entry){.name = names[i], .dtype = dtype, .ndim = 2, .shape = {2, 1}, .data = data};
        assert_true(tensor_entry_measure(&entries[i]));
        assert_int_equal(entries[i].bytes, 2 * file_dtype_size(dtype));
        assert_int_equal(file_dtype_find(file_dtype_name(dtype)), dtype);
    }
    entries[FILE_DTYPES] = (struct tensor_entry){.name = "\xc3\xa9\"\\\n/", .dtype = FILE_U8, .data = data, .bytes = 1};
    entries[FILE_DTYPES + 1] = (struct tensor_entry){.name = "", .dtype = FILE_F32, .ndim = 1, .shape = {0}};
    struct tensor_metadata metadata[] = {{"z", "1"}, {"a", "\xe2\x82\xac"}};
    size_t count = sizeof entries / sizeof *entries;
    assert_ok(ctx, safetensors_write(ctx, x->path, entries, count, metadata, 2));

    struct tensor_file f;
    assert_ok(ctx, tensor_file_open(ctx, x->path, &f));
    assert_int_equal(f.count, count);
    assert_string_equal(f.metadata[0].key, "z");
    assert_string_equal(f.metadata[1].value, "\xe2\x82\xac");
    for (size_t i = 0; i < count; i++) {
        const struct tensor_entry *t = tensor_file_find(&f, entries[i].name);
        assert_non_null(t);
        assert_int_equal(t->dtype, entries[i].dtype);
        assert_int_equal(t->ndim, entries[i].ndim);
        assert_int_equal(t->bytes, entries[i].bytes);
        assert_memory_equal(t->shape, entries[i].shape, sizeof t->shape);
        if (t->bytes) assert_memory_equal(t->data, data, t->bytes);
    }
    assert_int_equal(f.entries[0].dtype, FILE_U64);
    uint64_t n;
    memcpy(&n, f.map.data, 8);
    assert_int_equal((8 + n) % 8, 0);
    tensor_file_close(&f);

    assert_ok(ctx, safetensors_write(ctx, x->path, NULL, 0, NULL, 0));
    assert_ok(ctx, tensor_file_open(ctx, x->path, &f));
    assert_int_equal(f.count, 0);
    tensor_file_close(&f);
}

static void test_writer_refuses(void **state)
{
    struct fixture *x = *state;
    aim_context *ctx = &x->ctx;
    static const float one = 1;
    struct tensor_entry t[2] = {{.name = "a", .dtype = FILE_F32, .data = &one, .bytes = 4},
                                {.name = "a", .dtype = FILE_I32, .data = &one, .bytes = 4}};
#define REFUSED(words, count, metadata, pairs)                                                                                 \
    assert_fails(ctx, safetensors_write(ctx, x->path, t, count, metadata, pairs), AIM_ERR_ARGUMENT, words)
    REFUSED("\"a\" appears twice", 2, NULL, 0);
    t[0].name = "__metadata__";
    REFUSED("__metadata__", 1, NULL, 0);
    t[0].name = "\xff";
    REFUSED("UTF-8", 1, NULL, 0);
    t[0].name = "a";
    t[0].bytes = 5;
    REFUSED("disagree", 1, NULL, 0);
    t[0].bytes = 4;
    t[0].ndim = 9;
    REFUSED("disagree", 1, NULL, 0);
    t[0].ndim = 0;
    struct tensor_metadata twice[] = {{"k", "1"}, {"k", "2"}}, wrong[] = {{"k", "\xc3"}};
    REFUSED("\"k\" appears twice", 1, twice, 2);
    REFUSED("UTF-8", 1, wrong, 1);
    assert_false(file_exists(x->path));
    assert_fails(ctx, safetensors_write(ctx, "/no/such/folder/f", t, 1, NULL, 0), AIM_ERR_IO, "/no/such/folder/f");
}

/* --------------------------------------------------------------------------------------------------- values */

static void convert(aim_context *ctx, enum file_dtype dtype, const void *values, size_t n, float *out)
{
    /* at an odd address, as in files */
    unsigned char *block = malloc(n * file_dtype_size(dtype) + 1);
    struct tensor_entry t = {.name = "t", .dtype = dtype, .ndim = 1, .shape = {(int64_t)n}, .data = block + 1};
    assert_true(tensor_entry_measure(&t));
    memcpy(block + 1, values, t.bytes);
    assert_ok(ctx, tensor_entry_to_f32(ctx, &t, out));
    free(block);
}

static void test_half_floats_convert_exactly(void **state)
{
    struct fixture *x = *state;
    enum { N = 65536 };
    uint16_t *bits = malloc(N * sizeof *bits);
    float *out = malloc(N * sizeof *out);
    for (int i = 0; i < N; i++) bits[i] = (uint16_t)i;
    convert(&x->ctx, FILE_F16, bits, N, out);
    for (int i = 0; i < N; i++) {
        int exponent = i >> 10 & 31, mantissa = i & 1023;
        double expected = exponent == 0 ? ldexp(mantissa, -24) : ldexp(1024 + mantissa, exponent - 25);
        if (exponent == 31) expected = mantissa ? (double)NAN : (double)INFINITY;
        if (isnan(expected))
            assert_true(isnan(out[i]));
        else
            assert_true((double)out[i] == (i & 0x8000 ? -expected : expected));
        assert_int_equal(!!signbit(out[i]), i >> 15);
    }
    convert(&x->ctx, FILE_BF16, bits, N, out);
    for (int i = 0; i < N; i++) {
        uint32_t got;
        memcpy(&got, &out[i], 4);
        assert_int_equal(got, (uint32_t)i << 16);
    }
    free(bits);
    free(out);
}

static void test_other_types_convert(void **state)
{
    struct fixture *x = *state;
    aim_context *ctx = &x->ctx;
    float out[4];
#define CHECK(dtype, type, a, b, c)                                                                                            \
    do {                                                                                                                       \
        type values_[] = {a, b, c};                                                                                            \
        convert(ctx, dtype, values_, 3, out);                                                                                  \
        assert_true(out[0] == (float)(a));                                                                                     \
        assert_true(out[1] == (float)(b));                                                                                     \
        assert_true(out[2] == (float)(c));                                                                                     \
    } while (0)
    CHECK(FILE_F32, float, 1.5f, -0x1p-149f, INFINITY);
    CHECK(FILE_F64, double, 0.1, -1e300, 16777217.0);
    CHECK(FILE_U8, uint8_t, 0, 7, 255);
    CHECK(FILE_I8, int8_t, -128, 0, 127);
    CHECK(FILE_U16, uint16_t, 0, 1, 65535);
    CHECK(FILE_I16, int16_t, -32768, 5, 32767);
    CHECK(FILE_U32, uint32_t, 0, 16777217u, UINT32_MAX);
    CHECK(FILE_I32, int32_t, INT32_MIN, -3, INT32_MAX);
    CHECK(FILE_U64, uint64_t, 0, 1, UINT64_MAX);
    CHECK(FILE_I64, int64_t, INT64_MIN, -1, INT64_MAX);
    uint8_t truth[] = {0, 1, 2};
    convert(ctx, FILE_BOOL, truth, 3, out);
    assert_true(out[0] == 0 && out[1] == 1 && out[2] == 1);
    struct tensor_entry t = {.name = "odd", .dtype = FILE_C64, .data = out, .bytes = 8};
    assert_fails(ctx, tensor_entry_to_f32(ctx, &t, out), AIM_ERR_UNSUPPORTED, "\"odd\" has the type C64");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_reads_a_good_file, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_every_rule_is_enforced, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_header_length, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_content_decides, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_damage_never_crashes, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_failed_allocations_leak_nothing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_writes_what_the_library_writes, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_round_trip, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_writer_refuses, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_half_floats_convert_exactly, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_other_types_convert, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
