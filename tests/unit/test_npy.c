/* .npy and .npz files, which NumPy 1.26 and 2 read and write alike: io/npy.h, io/npz.h and the arrays of aim.h. */
#include "support.h"

#include <dirent.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/philox.h"
#include "io/npy.h"
#include "io/npz.h"

static aim_context ctx;
static char folder[64];

static int set_up(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/aim-test-npy-XXXXXX");
    return context_init(&ctx, NULL) != AIM_OK || !mkdtemp(folder);
}

static const char *in_folder(const char *name)
{
    static char paths[4][128];
    static unsigned next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

/* Every test leaves the account empty, and no files but these. */
static int tear_down(void **state)
{
    (void)state;
    unlink(in_folder("x.npy"));
    unlink(in_folder("x.npz"));
    return rmdir(folder) != 0 || ctx.memory.total != 0;
}

static int count_files(void)
{
    DIR *directory = opendir(folder);
    assert_non_null(directory);
    int n = 0;
    for (struct dirent *entry; (entry = readdir(directory));) n += entry->d_name[0] != '.';
    closedir(directory);
    return n;
}

static const char *seed_path(const char *name)
{
    char path[128];
    snprintf(path, sizeof path, "../fuzz/corpus/npy/%s", name);
    return data_path(path);
}

/* The numbers 0, 1, 2, ... whatever their type: what most of the seed files hold, divided by eight in f32.npy. */
static void check_counting(const char *name, const char *key, aim_dtype dtype, int ndim, const int64_t *shape)
{
    aim_array array;
    assert_ok(&ctx, aim_array_read(&ctx, seed_path(name), key, &array));
    assert_int_equal(array.dtype, dtype);
    assert_int_equal(array.ndim, ndim);
    int64_t n = 1;
    for (int i = 0; i < ndim; i++) {
        assert_int_equal(array.shape[i], shape[i]);
        n *= shape[i];
    }
    assert_ok(&ctx, aim_array_to_int64(&ctx, &array));
    assert_int_equal(array.dtype, AIM_I64);
    for (int64_t i = 0; i < n; i++) assert_int_equal(((int64_t *)array.data)[i], i);
    aim_array_free(&array);
}

static void test_read(void **state)
{
    (void)state;
    check_counting("i64.npy", NULL, AIM_I64, 2, (int64_t[]){3, 4});
    check_counting("u8.npy", "ignored", AIM_U8, 4, (int64_t[]){1, 2, 2, 3});
    check_counting("f16.npy", NULL, AIM_F16, 1, (int64_t[]){12});
    check_counting("big-endian.npy", NULL, AIM_I32, 2, (int64_t[]){2, 6});
    check_counting("version2.npy", NULL, AIM_I64, 1, (int64_t[]){12});
    check_counting("version3.npy", NULL, AIM_I64, 1, (int64_t[]){12});
    check_counting("empty.npy", NULL, AIM_F64, 2, (int64_t[]){3, 0});
    check_counting("stored.npz", NULL, AIM_I64, 1, (int64_t[]){2}); /* numpy.savez puts named arrays first */
    check_counting("stored.npz", "arr_0", AIM_U8, 4, (int64_t[]){1, 2, 2, 3});
    check_counting("stored.npz", "labels", AIM_I64, 1, (int64_t[]){2});
    check_counting("deflated.npz", "codes", AIM_I64, 2, (int64_t[]){3, 100});
    check_counting("other.npz", NULL, AIM_I64, 1, (int64_t[]){12}); /* behind an entry that is no array */
    aim_array array;
    assert_ok(&ctx, aim_array_read(&ctx, seed_path("scalar.npy"), NULL, &array));
    assert_int_equal(array.ndim, 0);
    assert_int_equal(*(uint16_t *)array.data, 7);
    aim_array_free(&array);
    assert_ok(&ctx, aim_array_read(&ctx, seed_path("f32.npy"), NULL, &array));
    assert_true(((float *)array.data)[3] == 0.375f);
    assert_fails(&ctx, aim_array_to_int64(&ctx, &array), AIM_ERR_ARGUMENT, "value 1 of the array");
    aim_array_free(&array);
    assert_ok(&ctx, aim_array_read(&ctx, seed_path("bool.npy"), NULL, &array));
    assert_int_equal(array.dtype, AIM_BOOL);
    assert_fails(&ctx, aim_array_to_int64(&ctx, &array), AIM_ERR_ARGUMENT, "truth values");
    aim_array_free(&array);
    aim_array_free(NULL);
}

static void test_read_refusals(void **state)
{
    (void)state;
    aim_array a;
    assert_fails(&ctx, aim_array_read(&ctx, "/nonexistent.npy", NULL, &a), AIM_ERR_IO, "/nonexistent.npy");
    assert_fails(&ctx, aim_array_read(&ctx, "/dev/null", NULL, &a), AIM_ERR_IO, "not a regular file");
    assert_fails(&ctx, aim_array_read(&ctx, data_path("images/photo.png"), NULL, &a), AIM_ERR_FORMAT, "is not a .npy file");
    assert_fails(&ctx, aim_array_read(&ctx, seed_path("fortran.npy"), NULL, &a), AIM_ERR_UNSUPPORTED, "Fortran order");
    assert_fails(&ctx, aim_array_read(&ctx, seed_path("record.npy"), NULL, &a), AIM_ERR_UNSUPPORTED, "records");
    assert_fails(&ctx, aim_array_read(&ctx, seed_path("stored.npz"), "x", &a), AIM_ERR_ARGUMENT, "has no array \"x\"");
    assert_fails(&ctx, aim_array_read(&ctx, seed_path("empty.npz"), NULL, &a), AIM_ERR_ARGUMENT, "has no arrays");
    assert_fails(&ctx, aim_array_read(&ctx, seed_path("empty.npz"), "x", &a), AIM_ERR_ARGUMENT, "has no array \"x\"");
}

/* ------------------------------------------------------------------------------------------------ headers */

/* A version 1.0 file with this header text and `bytes` bytes of values. */
static aim_status parse_text(const char *text, size_t bytes, aim_array *array)
{
    size_t n = strlen(text), size = 10 + n + bytes;
    unsigned char *file = calloc(1, size);
    assert_non_null(file);
    memcpy(file, "\x93NUMPY\1\0", 8);
    file[8] = (unsigned char)(n & 255);
    file[9] = (unsigned char)(n >> 8);
    memcpy(file + 10, text, n);
    aim_status status = npy_parse(&ctx, "t.npy", file, size, array);
    free(file);
    return status;
}

static void expect_header(const char *text, size_t bytes, aim_status status, const char *words)
{
    aim_array array;
    assert_fails(&ctx, parse_text(text, bytes, &array), status, words);
    assert_non_null(strstr(aim_last_error(&ctx), "t.npy"));
    assert_null(array.data);
}

static void test_headers(void **state)
{
    (void)state;
    static const char *const good[] = {
        "{'descr': '<i2', 'fortran_order': False, 'shape': (3,), }          \n",
        "{\"shape\":(3,),\"descr\":\"<i2\",\"fortran_order\":False}",
        "{'descr': '=i2', 'fortran_order': False, 'shape': (3L, 1), }",
        "{'descr': '<u2', 'fortran_order': True, 'shape': (3,), }", /* one dimension has no order */
        "{'descr': '|i1', 'fortran_order': False, 'shape': (1, 1, 1, 1, 1, 1, 1, 6)}",
        "{'descr': '>u1', 'fortran_order': False, 'shape': (6,)}",
    };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        aim_array array;
        assert_ok(&ctx, parse_text(good[i], 6, &array));
        aim_array_free(&array);
    }
    static const char *const bad[] = {
        "",
        "{",
        "{}",
        "{'descr': '<i2', 'fortran_order': False}",
        "{'descr': '<i2', 'fortran_order': Maybe, 'shape': (3,), }",
        "{'descr': '<i2', 'fortran_order': False, 'shape': 3, }",
        "{'descr': '<i2', 'fortran_order': False, 'shape': (3, , }",
        "{'descr': '<i2', 'fortran_order': False, 'shape': (-3,), }",
        "{'descr': '<i2', 'fortran_order': False, 'shape': (99999999999999999999,), }",
        "{'descr': '<i2', 'fortran_order': False, 'shape': (3,), 'x': 1}",
        "{'descr': '<i2\\', 'fortran_order': False, 'shape': (3,)}",
        "{'descr': 'this type has a name that is far too long', 'fortran_order': False, 'shape': (3,)}",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) expect_header(bad[i], 6, AIM_ERR_FORMAT, "cannot be understood");
    expect_header("{'descr': '<c8', 'fortran_order': False, 'shape': (3,)}", 24, AIM_ERR_UNSUPPORTED, "type '<c8'");
    expect_header("{'descr': '', 'fortran_order': False, 'shape': (3,)}", 24, AIM_ERR_UNSUPPORTED, "type ''");
    expect_header("{'descr': '|O', 'fortran_order': False, 'shape': (3,)}", 24, AIM_ERR_UNSUPPORTED, "type '|O'");
    expect_header("{'descr': '|i1', 'fortran_order': False, 'shape': (1,1,1,1,1,1,1,1,1)}", 1, AIM_ERR_UNSUPPORTED, "9 dimen");
    expect_header("{'descr': '<i8', 'fortran_order': False, 'shape': (4294967296, 4294967296)}", 8, AIM_ERR_FORMAT,
                  "shape is impossible");
    expect_header("{'descr': '<i8', 'fortran_order': False, 'shape': (0, 4294967296, 4294967296)}", 0, AIM_ERR_FORMAT,
                  "shape is impossible");
    expect_header("{'descr': '<i2', 'fortran_order': False, 'shape': (3,), }", 5, AIM_ERR_FORMAT, "needs 6 bytes of values");
    expect_header("{'descr': '<i2', 'fortran_order': False, 'shape': (3,), }", 7, AIM_ERR_FORMAT, "but it has 7");
    /* a claim of 2^62 bytes is refused before memory is asked for */
    expect_header("{'descr': '|u1', 'fortran_order': False, 'shape': (4611686018427387904,), }", 7, AIM_ERR_FORMAT, "has 7");
}

/* ----------------------------------------------------------------------------------------------- integers */

static aim_status convert(aim_dtype dtype, const void *value, int64_t *out)
{
    aim_array array = {.dtype = dtype, .ndim = 1, .shape = {1}, .data = mem_zero(&ctx, 1, 8, MEM_FILE)};
    assert_non_null(array.data);
    memcpy(array.data, value, npy_dtype_size(dtype));
    aim_status status = aim_array_to_int64(&ctx, &array);
    *out = status == AIM_OK ? *(int64_t *)array.data : 0;
    aim_array_free(&array);
    return status;
}

static void test_to_int64(void **state)
{
    (void)state;
    int64_t v;
    assert_ok(&ctx, convert(AIM_I8, &(int8_t){-7}, &v));
    assert_int_equal(v, -7);
    assert_ok(&ctx, convert(AIM_I16, &(int16_t){-300}, &v));
    assert_int_equal(v, -300);
    assert_ok(&ctx, convert(AIM_U32, &(uint32_t){4000000000u}, &v));
    assert_int_equal(v, 4000000000);
    assert_ok(&ctx, convert(AIM_U64, &(uint64_t){INT64_MAX}, &v));
    assert_int_equal(v, INT64_MAX);
    assert_ok(&ctx, convert(AIM_F64, &(double){-0x1p63}, &v));
    assert_int_equal(v, INT64_MIN);
    assert_ok(&ctx, convert(AIM_F32, &(float){16777216}, &v));
    assert_int_equal(v, 16777216);
    static const struct {
        uint16_t bits;
        int64_t value;
    } halves[] = {{0x0000, 0}, {0x8000, 0}, {0x3c00, 1}, {0xc000, -2}, {0x7bff, 65504}, {0x5640, 100}};
    for (size_t i = 0; i < sizeof halves / sizeof *halves; i++) {
        assert_ok(&ctx, convert(AIM_F16, &halves[i].bits, &v));
        assert_int_equal(v, halves[i].value);
    }
    assert_fails(&ctx, convert(AIM_U64, &(uint64_t){1ull << 63}, &v), AIM_ERR_ARGUMENT, "value 0");
    assert_fails(&ctx, convert(AIM_F64, &(double){0x1p63}, &v), AIM_ERR_ARGUMENT, "value 0");
    assert_fails(&ctx, convert(AIM_F64, &(double){NAN}, &v), AIM_ERR_ARGUMENT, "value 0");
    assert_fails(&ctx, convert(AIM_F32, &(float){0.5f}, &v), AIM_ERR_ARGUMENT, "value 0");
    assert_fails(&ctx, convert(AIM_F16, &(uint16_t){0x7c00}, &v), AIM_ERR_ARGUMENT, "value 0"); /* infinity */
    assert_fails(&ctx, convert(AIM_F16, &(uint16_t){0x0001}, &v), AIM_ERR_ARGUMENT, "value 0"); /* 2^-24 */
}

/* ------------------------------------------------------------------------------------------------ damage */

/* Any outcome but a crash; a failure is one line that names the file, and leaves nothing. */
static void parse_damaged(const void *data, size_t size)
{
    static const char *const keys[] = {NULL, "codes"};
    for (int i = 0; i < 3; i++) {
        aim_array array;
        aim_status status =
            i < 2 ? npz_parse(&ctx, "damaged", data, size, keys[i], &array) : npy_parse(&ctx, "damaged", data, size, &array);
        if (status != AIM_OK) {
            assert_non_null(strstr(aim_last_error(&ctx), "damaged"));
            assert_null(array.data);
        }
        aim_array_free(&array);
        assert_int_equal(ctx.memory.total, 0);
    }
}

static void test_damaged(void **state)
{
    (void)state;
    static const char *const names[] = {"i64.npy",      "big-endian.npy", "version2.npy", "record.npy",
                                        "deflated.npz", "stored.npz",     "other.npz",    "empty.npz"};
    ctx.memory.limit = 64 << 20;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct file_map map;
        assert_ok(&ctx, file_map_open(&ctx, seed_path(names[i]), &map));
        for (size_t n = 0; n <= map.size; n++) { /* in a block of exactly its size, so that a sanitizer sees the end */
            unsigned char *part = malloc(n ? n : 1);
            assert_non_null(part);
            memcpy(part, map.data, n);
            parse_damaged(part, n);
            free(part);
        }
        unsigned char *copy = malloc(map.size);
        assert_non_null(copy);
        for (unsigned n = 0; n < 4000; n++) {
            memcpy(copy, map.data, map.size);
            struct philox4 r = philox(i, n, 0, 0);
            copy[r.v[0] % map.size] ^= (unsigned char)(1 + r.v[1] % 255);
            if (n % 2) copy[r.v[2] % map.size] = (unsigned char)r.v[3];
            parse_damaged(copy, map.size);
        }
        free(copy);
        file_map_close(&map);
    }
}

/* ------------------------------------------------------------------------------------------------ writing */

static void write_counting(aim_array_file *file, const char *key, int64_t rows, int64_t columns)
{
    assert_ok(&ctx, aim_array_file_begin(file, key, AIM_I64, 2, (int64_t[]){rows, columns}));
    for (int64_t i = 0; i < rows * columns; i++) assert_ok(&ctx, aim_array_file_write(file, &i, sizeof i));
}

static void check_written(const char *name, const char *key, int64_t rows, int64_t columns)
{
    aim_array array;
    assert_ok(&ctx, aim_array_read(&ctx, in_folder(name), key, &array));
    assert_int_equal(array.dtype, AIM_I64);
    assert_int_equal(array.ndim, 2);
    assert_int_equal(array.shape[0], rows);
    assert_int_equal(array.shape[1], columns);
    for (int64_t i = 0; i < rows * columns; i++) assert_int_equal(((int64_t *)array.data)[i], i);
    aim_array_free(&array);
}

static void test_write_npy(void **state)
{
    (void)state;
    aim_array_file *file;
    assert_ok(&ctx, aim_array_file_create(&ctx, in_folder("x.npy"), &file));
    write_counting(file, NULL, 5, 7);
    assert_false(file_exists(in_folder("x.npy"))); /* until it is whole */
    assert_ok(&ctx, aim_array_file_close(file, 1));
    assert_int_equal(count_files(), 1);
    check_written("x.npy", NULL, 5, 7);
    struct file_map map;
    assert_ok(&ctx, file_map_open(&ctx, in_folder("x.npy"), &map));
    assert_int_equal(map.size, 128 + 5 * 7 * 8);
    static const char header[] = "\x93NUMPY\1\0v\0{'descr': '<i8', 'fortran_order': False, 'shape': (5, 7), }";
    assert_memory_equal(map.data, header, sizeof header - 1);
    assert_int_equal(map.data[127], '\n');
    file_map_close(&map);
}

static void test_header_lengths(void **state)
{
    (void)state;
    const int64_t shape[8] = {INT64_MAX, INT64_MAX, INT64_MAX, INT64_MAX, INT64_MAX, INT64_MAX, INT64_MAX, INT64_MAX};
    char header[NPY_WRITTEN_HEADER];
    for (int ndim = 0; ndim <= 8; ndim++) {
        size_t n = npy_header_format(header, AIM_U8, ndim, shape);
        assert_true(n % 64 == 0 && n <= sizeof header);
        assert_int_equal(header[n - 1], '\n');
        assert_int_equal((unsigned char)header[8] + 256 * (unsigned char)header[9] + 10, n);
    }
    struct npy_header parsed;
    size_t length, n = npy_header_format(header, AIM_F32, 2, (int64_t[]){3, 0});
    assert_ok(&ctx, npy_file_parse(&ctx, "t", header, n, &parsed, &length));
    assert_int_equal(length, n);
    assert_true(parsed.dtype == AIM_F32 && parsed.ndim == 2 && parsed.shape[0] == 3 && parsed.shape[1] == 0);
    assert_true(parsed.bytes == 0 && !parsed.swapped);
}

static void write_archive(void)
{
    aim_array_file *file;
    assert_ok(&ctx, aim_array_file_create(&ctx, in_folder("x.npz"), &file));
    write_counting(file, "arr_0", 200, 100);
    write_counting(file, "gr\xc3\xbcn", 0, 4);
    write_counting(file, "labels", 1, 3);
    assert_ok(&ctx, aim_array_file_close(file, 1));
    assert_int_equal(count_files(), 1);
}

static void test_write_npz(void **state)
{
    (void)state;
    struct file_map first, second;
    write_archive();
    check_written("x.npz", NULL, 200, 100);
    check_written("x.npz", "arr_0", 200, 100);
    check_written("x.npz", "gr\xc3\xbcn", 0, 4);
    check_written("x.npz", "labels", 1, 3);
    assert_ok(&ctx, file_map_open(&ctx, in_folder("x.npz"), &first));
    write_archive();
    assert_ok(&ctx, file_map_open(&ctx, in_folder("x.npz"), &second));
    assert_int_equal(first.size, second.size);
    assert_memory_equal(first.data, second.data, first.size);
    file_map_close(&first);
    file_map_close(&second);
}

/* Wrong uses: each is refused, spoils the file, and leaves nothing behind. */
static void test_wrong_amounts(void **state)
{
    (void)state;
    static const char *const names[] = {"x.npy", "x.npz"};
    const int64_t three = 3;
    const char bytes[4] = {0};
    for (int i = 0; i < 2; i++)
        for (int wrong = 0; wrong < 7; wrong++) {
            aim_array_file *file;
            aim_status status = AIM_OK;
            assert_ok(&ctx, aim_array_file_create(&ctx, in_folder(names[i]), &file));
            if (wrong != 0) assert_ok(&ctx, aim_array_file_begin(file, "a", AIM_U8, 1, &three));
            if (wrong == 1) assert_ok(&ctx, aim_array_file_write(file, bytes, 2)); /* too few at the end */
            if (wrong == 2) status = aim_array_file_write(file, bytes, 4);
            if (wrong == 3) status = aim_array_file_begin(file, "b", AIM_U8, 1, &three); /* too few before the next */
            if (wrong >= 4) assert_ok(&ctx, aim_array_file_write(file, bytes, 3));
            if (wrong == 4) status = aim_array_file_begin(file, i ? "" : "b", AIM_U8, 1, &three);
            if (wrong == 5) status = aim_array_file_begin(file, "b", AIM_U8, 1, (int64_t[]){-1});
            if (wrong == 6) status = aim_array_file_begin(file, "b", (aim_dtype)99, 1, &three);
            if (wrong > 1) assert_int_equal(status, AIM_ERR_ARGUMENT);
            assert_int_equal(aim_array_file_close(file, 1), AIM_ERR_ARGUMENT);
            assert_non_null(strstr(aim_last_error(&ctx), names[i]));
            assert_int_equal(count_files(), 0);
            assert_int_equal(ctx.memory.total, 0);
        }
}

static void test_abandoned(void **state)
{
    (void)state;
    static const char *const names[] = {"x.npy", "x.npz"};
    for (int i = 0; i < 2; i++) {
        aim_array_file *file;
        assert_ok(&ctx, aim_array_file_create(&ctx, in_folder(names[i]), &file));
        assert_ok(&ctx, aim_array_file_begin(file, "a", AIM_U8, 1, (int64_t[]){100}));
        assert_ok(&ctx, aim_array_file_close(file, 0));
        assert_int_equal(count_files(), 0);
    }
    assert_ok(&ctx, aim_array_file_close(NULL, 1));
}

/* Names that lead to a device that is always full, and to a pipe. */
static void test_special_files(void **state)
{
    (void)state;
    static const char *const names[] = {"x.npy", "x.npz"};
    static const char zeros[1 << 16];
    for (int i = 0; i < 2; i++)
        for (int large = 0; large < 2; large++) { /* a small file fails at its end alone */
            assert_int_equal(symlink("/dev/full", in_folder(names[i])), 0);
            aim_array_file *file;
            assert_ok(&ctx, aim_array_file_create(&ctx, in_folder(names[i]), &file));
            aim_status status = aim_array_file_begin(file, "a", AIM_U8, 1, &(int64_t){large ? 1 << 20 : 1});
            for (int n = 0; n < (large ? 16 : 1) && status == AIM_OK; n++)
                status = aim_array_file_write(file, zeros, large ? sizeof zeros : 1);
            assert_true(status == AIM_OK || status == AIM_ERR_IO);
            if (large) assert_int_equal(status, AIM_ERR_IO);
            assert_fails(&ctx, aim_array_file_close(file, 1), AIM_ERR_IO, names[i]);
            assert_int_equal(unlink(in_folder(names[i])), 0);
            assert_int_equal(count_files(), 0);
        }
    int ends[2];
    char path[64];
    aim_array_file *file;
    assert_int_equal(pipe(ends), 0);
    snprintf(path, sizeof path, "/dev/fd/%d", ends[1]);
    assert_int_equal(symlink(path, in_folder("x.npz")), 0);
    assert_fails(&ctx, aim_array_file_create(&ctx, in_folder("x.npz"), &file), AIM_ERR_ARGUMENT, "not a pipe");
    assert_null(file);
    close(ends[0]);
    close(ends[1]);
    assert_fails(&ctx, aim_array_file_create(&ctx, in_folder("x.txt"), &file), AIM_ERR_ARGUMENT, "ends in .npy or .npz");
    assert_fails(&ctx, aim_array_file_create(&ctx, "/nonexistent/x.npy", &file), AIM_ERR_IO, "/nonexistent/x.npy");
}

/* Writes and reads an archive; the first failure is returned. */
static aim_status round_trip(const char *name)
{
    aim_array_file *file;
    aim_array array = {0};
    TRY(aim_array_file_create(&ctx, in_folder(name), &file));
    aim_status status = aim_array_file_begin(file, "a", AIM_U8, 1, &(int64_t){3});
    if (status == AIM_OK) status = aim_array_file_write(file, "abc", 3);
    aim_status closed = aim_array_file_close(file, status == AIM_OK);
    if (status == AIM_OK) status = closed;
    if (status == AIM_OK) status = aim_array_read(&ctx, in_folder(name), NULL, &array);
    if (status == AIM_OK) status = aim_array_to_int64(&ctx, &array);
    aim_array_free(&array);
    return status;
}

static void test_allocation_failures(void **state)
{
    (void)state;
    static const char *const names[] = {"x.npy", "x.npz"};
    for (int i = 0; i < 2; i++)
        for (int64_t n = 0;; n++) {
            assert_true(n < 100);
            ctx.memory.fail_after = n;
            aim_status status = round_trip(names[i]);
            ctx.memory.fail_after = -1;
            assert_int_equal(ctx.memory.total, 0);
            if (status == AIM_OK) break;
            assert_int_equal(status, AIM_ERR_MEMORY);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_read, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_read_refusals, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_headers, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_to_int64, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_damaged, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_write_npy, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_header_lengths, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_write_npz, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_wrong_amounts, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_abandoned, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_special_files, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_allocation_failures, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
