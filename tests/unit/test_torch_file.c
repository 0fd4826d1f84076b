/* torch.save files, zip and legacy: io/torch_file.h, io/zip_reader.h. */
#include "support.h"

#include <zlib.h>

#include "io/torch_file.h"

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

/* ------------------------------------------------------------------------------------ files built in memory */

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

static void put_number(struct bytes *b, uint64_t value, size_t size)
{
    put(b, &value, size);
}

/* A zip archive as torch writes it: flags 8, no sizes in local headers. large: in the ZIP64 form for more than 4 GB. */
struct zip {
    struct bytes file, directory;
    unsigned count;
    bool large;
};

enum { STORED = 0, DEFLATED = 8 };

static void zip_add(struct zip *z, const char *path, const void *data, size_t size, unsigned method)
{
    struct bytes packed = {0};
    put(&packed, data, size);
    if (method == DEFLATED) {
        z_stream stream = {.next_in = packed.data, .avail_in = (uInt)size};
        packed.size = size + 100;
        unsigned char *out = malloc(packed.size);
        deflateInit2(&stream, 9, Z_DEFLATED, -15, 9, Z_DEFAULT_STRATEGY);
        stream.next_out = out;
        stream.avail_out = (uInt)packed.size;
        deflate(&stream, Z_FINISH);
        packed.size = stream.total_out;
        deflateEnd(&stream);
        free(packed.data);
        packed.data = out;
    }
    size_t length = strlen(path), start = z->file.size;
    put(&z->file, "PK\3\4\0\0\x08\x08", 8);
    put_number(&z->file, method, 2);
    put_number(&z->file, 0, 8);
    put_number(&z->file, 0, 8);
    put_number(&z->file, length, 2);
    put_number(&z->file, 0, 2);
    put(&z->file, path, length);
    put(&z->file, packed.data, packed.size);
    put(&z->directory, "PK\1\2\0\0\0\0\x08\x08", 10);
    put_number(&z->directory, method, 2);
    put_number(&z->directory, 0, 4);
    put_number(&z->directory, crc32(0, data, (uInt)size), 4);
    put_number(&z->directory, z->large ? UINT32_MAX : packed.size, 4);
    put_number(&z->directory, z->large ? UINT32_MAX : size, 4);
    put_number(&z->directory, length, 2);
    put_number(&z->directory, z->large ? 28 : 0, 2);
    put_number(&z->directory, 0, 6);
    put_number(&z->directory, 0, 4);
    put_number(&z->directory, z->large ? UINT32_MAX : start, 4);
    put(&z->directory, path, length);
    if (z->large) {
        put(&z->directory, "\1\0\x18\0", 4);
        put_number(&z->directory, size, 8);
        put_number(&z->directory, packed.size, 8);
        put_number(&z->directory, start, 8);
    }
    z->count++;
    free(packed.data);
}

static struct bytes zip_finish(struct zip *z)
{
    size_t start = z->file.size;
    put(&z->file, z->directory.data, z->directory.size);
    if (z->large) {
        size_t end = z->file.size;
        put(&z->file, "PK\6\6\x2c\0\0\0\0\0\0\0\x2d\0\x2d\0\0\0\0\0\0\0\0\0", 24);
        put_number(&z->file, z->count, 8);
        put_number(&z->file, z->count, 8);
        put_number(&z->file, z->directory.size, 8);
        put_number(&z->file, start, 8);
        put(&z->file, "PK\6\7\0\0\0\0", 8);
        put_number(&z->file, end, 8);
        put_number(&z->file, 1, 4);
    }
    put(&z->file, "PK\5\6\0\0\0\0", 8);
    put_number(&z->file, z->large ? UINT16_MAX : z->count, 2);
    put_number(&z->file, z->large ? UINT16_MAX : z->count, 2);
    put_number(&z->file, z->large ? UINT32_MAX : z->directory.size, 4);
    put_number(&z->file, z->large ? UINT32_MAX : start, 4);
    put_number(&z->file, 0, 2);
    free(z->directory.data);
    return z->file;
}

/* Pieces of pickles. S: a string with its length before it. */
#define S(length, text)      "\x8c" length text
#define MODEL                S("\x05", "model")
#define EMA                  S("\x03", "ema")
#define STATE_DICT           S("\x0a", "state_dict")
#define GLOBAL(module, name) "c" module "\n" name "\n"
#define ORDERED_DICT         GLOBAL("collections", "OrderedDict") ")R"
/* count: an opcode with its number, e.g. K6 */
#define STORAGE(type, key, count) "(" S("\x07", "storage") GLOBAL("torch", type) S("\x01", key) S("\x03", "cpu") count "tQ"
#define REBUILD(storage, offset, size, stride)                                                                                 \
    GLOBAL("torch._utils", "_rebuild_tensor_v2") "(" storage offset size stride "\x89" ORDERED_DICT "tR"
#define K(byte) "K" byte
#define FLOATS  STORAGE("FloatStorage", "0", K("\x06"))
/* six floats 0..5 as (2, 3), and transposed */
#define MATRIX        REBUILD(FLOATS, K("\0"), K("\2") K("\3") "\x86", K("\3") K("\1") "\x86")
#define TRANSPOSED    REBUILD(FLOATS, K("\0"), K("\3") K("\2") "\x86", K("\1") K("\3") "\x86")
#define PICKLE(body)  "\x80\2" body "."
#define LITERAL(text) (text), sizeof(text) - 1

static const float floats[6] = {0, 1, 2, 3, 4, 5};

static struct bytes zip_around(const char *pickle, size_t size, unsigned method)
{
    struct zip z = {0};
    zip_add(&z, "archive/data.pkl", pickle, size, method);
    zip_add(&z, "archive/byteorder", "little", 6, method);
    zip_add(&z, "archive/data/0", floats, sizeof floats, method);
    zip_add(&z, "archive/version", "3\n", 2, method);
    return zip_finish(&z);
}

#define MAGIC          "\x80\2\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
#define SYSTEM(little) "\x80\2}(" S("\x0d", "little_endian") little "u."
#define KEYS           "\x80\2](" S("\x01", "0") "e."

static struct bytes legacy_around(const char *pickle, size_t size)
{
    struct bytes b = {0};
    put(&b, LITERAL(MAGIC "\x80\2M\xe9\3." SYSTEM("\x88")));
    put(&b, pickle, size);
    put(&b, LITERAL(KEYS));
    put_number(&b, 6, 8);
    put(&b, floats, sizeof floats);
    return b;
}

static volatile unsigned char sink;

/* Parses a copy of exactly the right size, reads all the values, returns the status. */
static aim_status parse(aim_context *ctx, const void *data, size_t size)
{
    unsigned char *copy = malloc(size ? size : 1);
    memcpy(copy, data, size);
    struct tensor_file f;
    aim_status status = tensor_file_parse(ctx, "t.pt", copy, size, &f);
    for (size_t i = 0; i < f.count; i++) {
        const unsigned char *values = f.entries[i].data;
        for (size_t k = 0; k < f.entries[i].bytes; k++) sink = values[k];
        assert_ptr_equal(tensor_file_find(&f, f.entries[i].name), &f.entries[i]);
    }
    tensor_file_close(&f);
    assert_int_equal(ctx->memory.total, 0);
    free(copy);
    return status;
}

static void expect_failure(aim_context *ctx, const char *pickle, size_t size, aim_status status, const char *words)
{
    struct bytes b = zip_around(pickle, size, STORED);
    assert_fails(ctx, parse(ctx, b.data, b.size), status, words);
    assert_non_null(strstr(aim_last_error(ctx), "t.pt"));
    free(b.data);
}

#define FAILS(status, words, body) expect_failure(ctx, LITERAL(PICKLE(body)), status, words)

/* Opens a zip around the pickle and compares one tensor's floats. */
static void expect_floats(aim_context *ctx, const char *pickle, size_t size, const char *name, const float *values, size_t n)
{
    struct bytes b = zip_around(pickle, size, STORED);
    struct tensor_file f;
    assert_ok(ctx, tensor_file_parse(ctx, "t.pt", b.data, b.size, &f));
    const struct tensor_entry *t = tensor_file_find(&f, name);
    assert_non_null(t);
    assert_int_equal(t->bytes, n * sizeof *values);
    if (n) assert_memory_equal(t->data, values, n * sizeof *values);
    tensor_file_close(&f);
    free(b.data);
}

/* ------------------------------------------------------------------------------------------------ golden files */

static void assert_same_tensor(const struct tensor_entry *got, const struct tensor_entry *expected)
{
    assert_non_null(got);
    assert_non_null(expected);
    assert_int_equal(got->dtype, expected->dtype);
    assert_int_equal(got->ndim, expected->ndim);
    assert_memory_equal(got->shape, expected->shape, sizeof got->shape);
    assert_int_equal(got->bytes, expected->bytes);
    assert_memory_equal(got->data, expected->data, got->bytes);
}

static void test_golden_files(void **state)
{
    aim_context *ctx = *state;
    struct tensor_file expected, f;
    assert_ok(ctx, tensor_file_open(ctx, data_path("torch-files/expected.safetensors"), &expected));

    assert_ok(ctx, tensor_file_open(ctx, data_path("torch-files/zip_model_nested.pt"), &f));
    assert_int_equal(f.format, TENSOR_TORCH_ZIP);
    assert_int_equal(f.count, 4);
    const struct tensor_entry *a = tensor_file_find(&f, "a.tied"), *b = tensor_file_find(&f, "b.tied");
    assert_same_tensor(a, tensor_file_find(&expected, "tied"));
    assert_ptr_equal(a->data, b->data); /* one storage, in place */
    assert_in_range((uintptr_t)a->data, (uintptr_t)f.map.data, (uintptr_t)f.map.data + f.map.size);
    assert_same_tensor(tensor_file_find(&f, "c.view"), tensor_file_find(&expected, "view"));
    const struct tensor_entry *n = tensor_file_find(&f, "n");
    assert_int_equal(n->dtype, FILE_I64);
    assert_int_equal(n->ndim, 0);
    tensor_file_close(&f);

    assert_ok(ctx, tensor_file_open(ctx, data_path("torch-files/zip_bf16_bare.bin"), &f));
    assert_int_equal(f.count, 19);
    const struct tensor_entry *want = tensor_file_find(&expected, "in_proj0_bf16");
    const struct tensor_entry *found = NULL;
    for (size_t i = 0; i < f.count && !found; i++)
        if (strstr(f.entries[i].name, "layers.0.mixer.in_proj.weight")) found = &f.entries[i];
    assert_same_tensor(found, want);
    tensor_file_close(&f);

    assert_ok(ctx, tensor_file_open(ctx, data_path("torch-files/legacy.pth"), &f));
    assert_int_equal(f.format, TENSOR_TORCH_LEGACY);
    assert_int_equal(f.count, 2);
    /* the tensor is one row of a storage that holds "tied" */
    const struct tensor_entry *lin = tensor_file_find(&f, "lin0.model.1.weight");
    assert_int_equal(lin->ndim, 4);
    assert_int_equal(lin->shape[1], 64);
    assert_memory_equal(lin->data, tensor_file_find(&expected, "tied")->data, lin->bytes);
    int64_t whole[6];
    const struct tensor_entry *x = tensor_file_find(&f, "x");
    assert_int_equal(x->bytes, sizeof whole);
    memcpy(whole, x->data, sizeof whole);
    for (int i = 0; i < 6; i++) assert_int_equal(whole[i], i);
    tensor_file_close(&f);
    tensor_file_close(&expected);
}

/* -------------------------------------------------------------------------------------- what pickles may hold */

static void test_which_dict_is_taken(void **state)
{
    aim_context *ctx = *state;
#define ONE(name)         "}" S("\x01", name) MATRIX "s" /* {name: matrix} */
#define TAKES(name, body) expect_floats(ctx, LITERAL(PICKLE(body)), name, floats, 6)
    TAKES("a", ONE("a"));
    TAKES("a", "}(" MODEL ONE("a") EMA ONE("b") STATE_DICT ONE("c") "u" MODEL ONE("d") "s" EMA ONE("a") "s");
    TAKES("a", "}(" MODEL ONE("a") STATE_DICT ONE("b") S("\x01", "c") MATRIX "u");
    TAKES("a", "}(" STATE_DICT ONE("a") S("\x01", "c") MATRIX "u");
    TAKES("a", "}(" EMA "N" MODEL ONE("a") "u");
    TAKES("model", "}(" EMA "}" MODEL MATRIX "u");
    /* nested one level, not two */
    FAILS(AIM_ERR_FORMAT, "holds no tensors", "}" MODEL "}" MODEL ONE("a") "ss");
    FAILS(AIM_ERR_FORMAT, "holds no tensors", "}");
    FAILS(AIM_ERR_FORMAT, "no dict of tensors", "N");
    FAILS(AIM_ERR_FORMAT, "state_dict()", GLOBAL("my", "Network") ")R}b");
    FAILS(AIM_ERR_FORMAT, "no dict of tensors", MATRIX);
}

/* clang-format off */
#define SKIPPED \
    S("\x01", "1") "N" \
    S("\x01", "2") "\x88" \
    S("\x01", "3") "J\xff\xff\xff\xff" \
    S("\x01", "4") "M\1\2" \
    S("\x01", "5") "G\0\0\0\0\0\0\0\0" \
    S("\x01", "6") "\x8a\x09\1\2\3\4\5\6\7\x08\x09" \
    S("\x01", "7") "\x8b\2\0\0\0\1\2" \
    S("\x01", "8") "](NK\1eK\2a"                             /* [None, 1, 2] */ \
    S("\x01", "9") "C\2ab" \
    "K\1K\2"                                                 /* 1: 2 */ \
    "B\1\0\0\0aN"                                            /* b"a": None */ \
    S("\x01", "n") GLOBAL("argparse", "Namespace") ")\x81}" S("\x01", "x") "K\1sb" \
    S("\x01", "o") GLOBAL("os", "system") S("\x04", "echo") "\x85R" \
    S("\x01", "s") "\x8f(K\1K\2\x90"                         /* {1, 2} */ \
    S("\x01", "f") "(K\1\x91"                                /* frozenset({1}) */ \
    S("\x01", "k") GLOBAL("a", "b") ")}\x92" \
    S("\x01", "l") GLOBAL("a", "b") ")R(K\1e"                /* an object given items, and given pairs */ \
    S("\x01", "d") GLOBAL("a", "b") ")R(K\1K\2u" \
    S("\x01", "p") "N0N(NN1"                                 /* what is pushed and popped again */
/* clang-format on */

static void test_everything_else_is_skipped(void **state)
{
    aim_context *ctx = *state;
    TAKES("a", "}(" SKIPPED S("\x01", "a") MATRIX "u");
    /* protocol 4 spelling, with a frame */
    static const char four[] = "\x80\4\x95\1\0\0\0\0\0\0\0}\x94\x8d\1\0\0\0\0\0\0\0a\x94"
                               "\x8c\x0ctorch._utils\x94\x8c\x12_rebuild_tensor_v2\x94\x93\x94(" FLOATS K("\0")
                                   K("\6") "\x85" K("\1") "\x85\x89" ORDERED_DICT "tR\x94s.";
    expect_floats(ctx, LITERAL(four), "a", floats, 6);
    /* Python 2: strings of bytes, an OrderedDict from a list of lists */
    TAKES("a", GLOBAL("collections", "OrderedDict") "](](U\1a" MATRIX "e](T\1\0\0\0bNee\x85R}"
                                                    "U\x09"
                                                    "_metadata"
                                                    "}sb");
}

static void test_ways_to_wrap_a_tensor(void **state)
{
    aim_context *ctx = *state;
    TAKES("a", "}" S("\x01", "a") GLOBAL("torch._utils", "_rebuild_parameter") MATRIX "\x88" ORDERED_DICT "\x87Rs");
    TAKES("a", "}" S("\x01", "a") GLOBAL("torch.nn.parameter", "Parameter") MATRIX "\x85RNbs");
    TAKES("a",
          "}" S("\x01", "a") GLOBAL("torch._tensor", "_rebuild_from_type_v2") "(" GLOBAL("torch._utils", "_rebuild_tensor_v2")
              GLOBAL("torch.nn.parameter", "Parameter") "(" FLOATS K("\0") K("\6") "\x85" K("\1") "\x85\x89" ORDERED_DICT "t"
                                                                                                  "}tRs");
    FAILS(AIM_ERR_UNSUPPORTED, "_rebuild_qtensor", "}" S("\x01", "a") GLOBAL("torch._utils", "_rebuild_qtensor") ")Rs");
    FAILS(AIM_ERR_UNSUPPORTED, "_rebuild_parameter", "}" S("\x01", "a") GLOBAL("torch._utils", "_rebuild_parameter") ")Rs");
    FAILS(AIM_ERR_UNSUPPORTED, "unknown kind", "}" S("\x01", "a") GLOBAL("torch._tensor", "_rebuild_from_type_v2") "NN)\x87Rs");
}

#define VIEW(offset, size, stride) "}" S("\x01", "a") REBUILD(FLOATS, offset, size, stride) "s"

static void test_views(void **state)
{
    aim_context *ctx = *state;
    static const float transposed[] = {0, 3, 1, 4, 2, 5}, column[] = {1, 4};
#define SHOWS(values, n, offset, size, stride) expect_floats(ctx, LITERAL(PICKLE(VIEW(offset, size, stride))), "a", values, n)
    SHOWS(transposed, 6, K("\0"), K("\3") K("\2") "\x86", K("\1") K("\3") "\x86");
    SHOWS(column, 2, K("\1"), K("\2") K("\1") "\x86", K("\3") K("\1") "\x86");
    SHOWS(floats + 2, 4, K("\2"), K("\1") K("\4") "\x86", K("\x63") K("\1") "\x86"); /* stride of a size 1: anything */
    SHOWS(floats + 5, 1, K("\5"), ")", ")");
    SHOWS(floats, 0, K("\6"), K("\0") K("\7") "\x86", K("\7") K("\1") "\x86");
    static const float twice[] = {3, 3};
    SHOWS(twice, 2, K("\3"), K("\2") "\x85", K("\0") "\x85"); /* expanded, but smaller than its storage */
    FAILS(AIM_ERR_FORMAT, "reaches beyond", VIEW(K("\1"), K("\6") "\x85", K("\1") "\x85"));
    FAILS(AIM_ERR_FORMAT, "reaches beyond", VIEW(K("\0"), K("\2") "\x85", K("\6") "\x85"));
    FAILS(AIM_ERR_FORMAT, "reaches beyond", VIEW(K("\6"), ")", ")"));
    FAILS(AIM_ERR_FORMAT, "reaches beyond", VIEW(K("\7"), K("\0") "\x85", K("\1") "\x85"));
#define HUGE "\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f"
    FAILS(AIM_ERR_FORMAT, "reaches beyond", VIEW(HUGE, K("\1") "\x85", K("\1") "\x85"));
    FAILS(AIM_ERR_FORMAT, "reaches beyond", VIEW(K("\0"), K("\3") "\x85", HUGE "\x85"));
    FAILS(AIM_ERR_FORMAT, "reaches beyond", VIEW(K("\0"), HUGE "\x85", K("\0") "\x85"));
    FAILS(AIM_ERR_UNSUPPORTED, "expanded view", VIEW(K("\0"), "J\0\0\0\x7f\x85", K("\0") "\x85"));
    FAILS(AIM_ERR_FORMAT, "no storage or shape", VIEW("J\xff\xff\xff\xff", K("\1") "\x85", K("\1") "\x85"));
    FAILS(AIM_ERR_FORMAT, "no storage or shape", VIEW(K("\0"), "J\xff\xff\xff\xff\x85", K("\1") "\x85"));
    FAILS(AIM_ERR_FORMAT, "no storage or shape", VIEW(K("\0"), K("\1") "\x85", "J\xff\xff\xff\xff\x85"));
    FAILS(AIM_ERR_FORMAT, "no storage or shape", VIEW(K("\0"), K("\1") "\x85", ")"));
    FAILS(AIM_ERR_FORMAT, "no storage or shape", VIEW(K("\0"), "N", ")"));
    FAILS(AIM_ERR_FORMAT, "no storage or shape",
          VIEW(K("\0"), "(K\1K\1K\1K\1K\1K\1K\1K\1K\1t", "(K\1K\1K\1K\1K\1K\1K\1K\1K\1t"));
    FAILS(AIM_ERR_FORMAT, "no storage or shape", "}" S("\x01", "a") REBUILD("N", K("\0"), ")", ")") "s");
    FAILS(AIM_ERR_FORMAT, "no storage or shape", "}" S("\x01", "a") GLOBAL("torch._utils", "_rebuild_tensor_v2") ")Rs");
}

static void test_storages(void **state)
{
    aim_context *ctx = *state;
#define HOLDS(storage) "}" S("\x01", "a") REBUILD(storage, K("\0"), ")", ")") "s"
    FAILS(AIM_ERR_FORMAT, "storage 9 is missing", HOLDS(STORAGE("FloatStorage", "9", K("\x06"))));
    FAILS(AIM_ERR_FORMAT, "has 24 bytes and should have 20", HOLDS(STORAGE("FloatStorage", "0", K("\x05"))));
    FAILS(AIM_ERR_FORMAT, "overflows", HOLDS(STORAGE("FloatStorage", "0", HUGE)));
    FAILS(AIM_ERR_UNSUPPORTED, "QInt8Storage", HOLDS(STORAGE("QInt8Storage", "0", K("\x18"))));
    FAILS(AIM_ERR_FORMAT, "without type, key or size", HOLDS(STORAGE("FloatStorage", "0", "J\xff\xff\xff\xff")));
    FAILS(AIM_ERR_FORMAT, "without type, key or size", HOLDS("(" S("\x07", "storage") "NNNNtQ"));
    FAILS(AIM_ERR_FORMAT, "no storage", HOLDS("(" S("\x07", "module!") "NNNNtQ"));
    FAILS(AIM_ERR_FORMAT, "no storage", HOLDS("NQ"));
    FAILS(AIM_ERR_FORMAT, "two types or sizes",
          "}" S("\x01", "x") STORAGE("IntStorage", "0", K("\6")) "s" S("\x01", "a") MATRIX "s");
    FAILS(AIM_ERR_FORMAT, "two types or sizes",
          "}" S("\x01", "x") STORAGE("FloatStorage", "0", K("\5")) "s" S("\x01", "a") MATRIX "s");
    FAILS(AIM_ERR_FORMAT, "\"a\" appears twice", "}" S("\x01", "a") MATRIX "s" S("\x01", "a") MATRIX "s");
    FAILS(AIM_ERR_FORMAT, "NUL", "}" S("\x01", "\0") MATRIX "s");
    /* a type that is not known does not matter where it is not used */
    TAKES("a", "}(" S("\x01", "x") STORAGE("QInt8Storage", "9", K("\1")) S("\x01", "a") MATRIX "u");
    static const struct {
        const char *type;
        enum file_dtype dtype;
        unsigned char count;
    } types[] = {{"FloatStorage", FILE_F32, 6},  {"BFloat16Storage", FILE_BF16, 12}, {"HalfStorage", FILE_F16, 12},
                 {"DoubleStorage", FILE_F64, 3}, {"LongStorage", FILE_I64, 3},       {"IntStorage", FILE_I32, 6},
                 {"ShortStorage", FILE_I16, 12}, {"CharStorage", FILE_I8, 24},       {"ByteStorage", FILE_U8, 24},
                 {"BoolStorage", FILE_BOOL, 24}};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        struct bytes pickle = {0};
        put(&pickle, LITERAL("\x80\2}" S("\x01", "a")
                                 GLOBAL("torch._utils", "_rebuild_tensor_v2") "((" S("\x07", "storage") "ctorch\n"));
        put(&pickle, types[i].type, strlen(types[i].type));
        put(&pickle, LITERAL("\n" S("\x01", "0") S("\x03", "cpu") "K"));
        put(&pickle, &types[i].count, 1);
        put(&pickle, LITERAL("tQK\0))\x89NtRs."));
        struct bytes b = zip_around((const char *)pickle.data, pickle.size, STORED);
        struct tensor_file f;
        assert_ok(ctx, tensor_file_parse(ctx, "t.pt", b.data, b.size, &f));
        assert_int_equal(f.entries[0].dtype, types[i].dtype);
        tensor_file_close(&f);
        free(b.data);
        free(pickle.data);
    }
}

/* ------------------------------------------------------------------------------------------------- containers */

static const char good[] = PICKLE("}(" MODEL "}(" S("\x01", "a") MATRIX S("\x01", "t") TRANSPOSED "u" S("\x01", "n") "K\1u");

static void check_good(aim_context *ctx, struct bytes b, enum tensor_format format)
{
    static const float transposed[] = {0, 3, 1, 4, 2, 5};
    struct tensor_file f;
    assert_ok(ctx, tensor_file_parse(ctx, "t.pt", b.data, b.size, &f));
    assert_int_equal(f.format, format);
    assert_int_equal(f.count, 2);
    assert_memory_equal(tensor_file_find(&f, "a")->data, floats, sizeof floats);
    assert_memory_equal(tensor_file_find(&f, "t")->data, transposed, sizeof transposed);
    tensor_file_close(&f);
}

static void test_zip_archives(void **state)
{
    aim_context *ctx = *state;
    struct bytes b = zip_around(LITERAL(good), STORED);
    check_good(ctx, b, TENSOR_TORCH_ZIP);
    /* no directory, no end */
    assert_fails(ctx, parse(ctx, b.data, b.size - 1), AIM_ERR_FORMAT, "t.pt: damaged zip archive");
    assert_fails(ctx, parse(ctx, b.data, 40), AIM_ERR_FORMAT, "cut short");
    free(b.data);
    b = zip_around(LITERAL(good), DEFLATED);
    check_good(ctx, b, TENSOR_TORCH_ZIP);
    b.data[60] ^= 0x55; /* inside the compressed pickle */
    assert_fails(ctx, parse(ctx, b.data, b.size), AIM_ERR_FORMAT, "data.pkl");
    free(b.data);

    struct zip z = {.large = true};
    zip_add(&z, "m/data.pkl", good, sizeof good - 1, STORED);
    zip_add(&z, "m/data/0", floats, 24, STORED);
    b = zip_finish(&z);
    check_good(ctx, b, TENSOR_TORCH_ZIP);
    free(b.data);

    z = (struct zip){0};
    zip_add(&z, "a/code/data.pkl", good, sizeof good - 1, STORED);
    zip_add(&z, "a.txt", "", 0, STORED);
    b = zip_finish(&z);
    assert_fails(ctx, parse(ctx, b.data, b.size), AIM_ERR_FORMAT, "not written by torch.save");
    free(b.data);

    z = (struct zip){0};
    zip_add(&z, "m/data.pkl", good, sizeof good - 1, STORED);
    zip_add(&z, "m/byteorder", "big", 3, STORED);
    b = zip_finish(&z);
    assert_fails(ctx, parse(ctx, b.data, b.size), AIM_ERR_UNSUPPORTED, "little-endian");
    free(b.data);

    z = (struct zip){0};
    zip_add(&z, "m/data.pkl", good, sizeof good - 1, STORED);
    zip_add(&z, "m/data/0", floats, 24, STORED);
    zip_add(&z, "m/data/0", floats, 24, STORED);
    b = zip_finish(&z);
    assert_fails(ctx, parse(ctx, b.data, b.size), AIM_ERR_FORMAT, "m/data/0 appears twice");
    free(b.data);

    z = (struct zip){0};
    zip_add(&z, "m/data.pkl", good, sizeof good - 1, 12);
    b = zip_finish(&z);
    assert_fails(ctx, parse(ctx, b.data, b.size), AIM_ERR_UNSUPPORTED, "method 12");
    free(b.data);

    /* sizes in the directory that cannot be: the last entry's fields are 46 + name before the end record */
    static const struct {
        unsigned method;
        size_t field;
        const char *words;
    } lies[] = {{STORED, 24, "has two sizes"},
                {DEFLATED, 24, "impossible size"},
                {DEFLATED, 16, "wrong checksum"},
                {STORED, 42, "not where the directory says"},
                {STORED, 8, "encrypted"}};
    for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
        z = (struct zip){0};
        zip_add(&z, "m/data.pkl", good, sizeof good - 1, STORED);
        zip_add(&z, "m/data/0", floats, 24, lies[i].method);
        b = zip_finish(&z);
        unsigned char *entry = b.data + b.size - 22 - 46 - strlen("m/data/0");
        assert_memory_equal(entry, "PK\1\2", 4);
        memcpy(entry + lies[i].field, "\xf1\xff\xff\x7f", lies[i].field == 8 ? 1 : 4);
        assert_int_not_equal(parse(ctx, b.data, b.size), AIM_OK);
        if (!strstr(aim_last_error(ctx), lies[i].words)) fail_msg("%s: %s", lies[i].words, aim_last_error(ctx));
        free(b.data);
    }
}

static void expect_legacy_failure(aim_context *ctx, const char *file, size_t size, aim_status status, const char *words)
{
    assert_fails(ctx, parse(ctx, file, size), status, words);
}

static void test_legacy_files(void **state)
{
    aim_context *ctx = *state;
    struct bytes b = legacy_around(LITERAL(good));
    check_good(ctx, b, TENSOR_TORCH_LEGACY);
    assert_fails(ctx, parse(ctx, b.data, b.size - 1), AIM_ERR_FORMAT, "cut short in its storages");
    free(b.data);
#define LEGACY(status, words, file) expect_legacy_failure(ctx, LITERAL(file), status, words)
    LEGACY(AIM_ERR_FORMAT, "not written by torch.save", "\x80\2N.");
    LEGACY(AIM_ERR_UNSUPPORTED, "unknown version", MAGIC "\x80\2M\xea\3.");
    LEGACY(AIM_ERR_UNSUPPORTED, "little-endian", MAGIC "\x80\2M\xe9\3." SYSTEM("\x89"));
    LEGACY(AIM_ERR_UNSUPPORTED, "little-endian", MAGIC "\x80\2M\xe9\3." PICKLE("N"));
#define START MAGIC "\x80\2M\xe9\3." SYSTEM("\x88")
    LEGACY(AIM_ERR_FORMAT, "list of storages is missing", START PICKLE(ONE("a")) PICKLE("N"));
    LEGACY(AIM_ERR_FORMAT, "does not match", START PICKLE(ONE("a")) PICKLE("]" S("\x01", "7") "a"));
    LEGACY(AIM_ERR_FORMAT, "does not match", START PICKLE(ONE("a")) PICKLE("]Na"));
    LEGACY(AIM_ERR_FORMAT, "storage 0 is missing", START PICKLE(ONE("a")) PICKLE("]"));
    LEGACY(AIM_ERR_FORMAT, "cut short in its storages", START PICKLE(ONE("a")) KEYS "\6\0\0\0");
    LEGACY(AIM_ERR_FORMAT, "another size",
           START PICKLE(ONE("a")) KEYS "\7\0\0\0\0\0\0\0"
                                       "012345678901234567890123");
    LEGACY(AIM_ERR_FORMAT, "no dict of tensors", START PICKLE("N") PICKLE("]"));
    LEGACY(AIM_ERR_UNSUPPORTED, "view of another",
           START PICKLE("(" S("\x07", "storage") GLOBAL("torch", "FloatStorage") S("\x01", "0") S("\x03", "cpu") "K\6K\1tQ")
               KEYS);
}

/* ---------------------------------------------------------------------------------------------------- torture */

static void test_damage_never_crashes(void **state)
{
    aim_context *ctx = *state;
    ctx->memory.limit = (int64_t)256 << 20;
    struct bytes files[] = {zip_around(LITERAL(good), STORED), zip_around(LITERAL(good), DEFLATED),
                            legacy_around(LITERAL(good))};
    uint32_t random = 1;
    for (size_t k = 0; k < sizeof files / sizeof *files; k++) {
        struct bytes b = files[k];
        assert_ok(ctx, parse(ctx, b.data, b.size));
        for (size_t size = 0; size < b.size; size++) assert_int_not_equal(parse(ctx, b.data, size), AIM_OK);
        for (int i = 0; i < 5000; i++) {
            random = random * 1664525u + 1013904223u;
            unsigned char *at = &b.data[(random >> 8) % b.size], was = *at;
            *at = (unsigned char)(random >> 3);
            aim_status status = parse(ctx, b.data, b.size);
            assert_true(status == AIM_OK || aim_last_error(ctx)[0] != '\0');
            *at = was;
        }
        free(b.data);
    }
}

static void test_failed_allocations_leak_nothing(void **state)
{
    aim_context *ctx = *state;
    struct bytes files[] = {zip_around(LITERAL(good), STORED), zip_around(LITERAL(good), DEFLATED),
                            legacy_around(LITERAL(good))};
    for (size_t k = 0; k < sizeof files / sizeof *files; k++) {
        int64_t n = 0;
        aim_status status = AIM_ERR_MEMORY;
        for (; status != AIM_OK; n++) {
            ctx->memory.fail_after = n;
            status = parse(ctx, files[k].data, files[k].size); /* which checks that nothing is left */
            assert_true(status == AIM_OK || status == AIM_ERR_MEMORY);
        }
        assert_true(n > 5);
        ctx->memory.fail_after = -1;
        free(files[k].data);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_golden_files, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_which_dict_is_taken, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_everything_else_is_skipped, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_ways_to_wrap_a_tensor, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_views, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_storages, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_zip_archives, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_legacy_files, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_damage_never_crashes, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_failed_allocations_leak_nothing, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
