#include "support.h"

#include <dirent.h>
#include <unistd.h>

#include "base/file.h"
#include "base/philox.h"
#include "io/image.h"
#include "io/tensor_file.h"

/*
 * Every kind of picture, with the hash (FNV-1a, 64 bit) of the bytes that Pillow 11.3 gives:
 * Image.open(path).convert("RGB").tobytes(). Interlaced files hold the pixels of their plain twins.
 */
static const struct {
    const char *path;
    int width, height;
    uint64_t hash;
} known[] = {
    {"images/photo.png", 211, 150, 0xb46c202f6032ed80},
    {"images/palette.png", 211, 150, 0x28b3f57ca13d8f8d},
    {"images/rgba.png", 211, 150, 0xb46c202f6032ed80},
    {"images/photo.jpg", 211, 150, 0x66a8297bb58781dc},
    {"images/grey.jpg", 211, 150, 0x23e59d6194edaa8a},
    {"images/cmyk.jpg", 211, 150, 0xf5d041e40c1c607a},
    {"images/photo.webp", 211, 150, 0xb46c202f6032ed80},
    {"../fuzz/corpus/image/grey1.png", 13, 9, 0xe40e5adb76a66166},
    {"../fuzz/corpus/image/grey1-interlaced.png", 13, 9, 0xe40e5adb76a66166},
    {"../fuzz/corpus/image/grey2.png", 13, 9, 0x678f52c5b291243b},
    {"../fuzz/corpus/image/grey2-interlaced.png", 13, 9, 0x678f52c5b291243b},
    {"../fuzz/corpus/image/grey4.png", 13, 9, 0x8dda1aa393284e45},
    {"../fuzz/corpus/image/grey4-interlaced.png", 13, 9, 0x8dda1aa393284e45},
    {"../fuzz/corpus/image/grey8.png", 13, 9, 0xb8d213b838804496},
    {"../fuzz/corpus/image/grey8-interlaced.png", 13, 9, 0xb8d213b838804496},
    {"../fuzz/corpus/image/grey16.png", 13, 9, 0x5e40e638250b6919},
    {"../fuzz/corpus/image/grey16-interlaced.png", 13, 9, 0x5e40e638250b6919},
    {"../fuzz/corpus/image/grey-alpha8.png", 13, 9, 0xb37f5b7b30ab5c8d},
    {"../fuzz/corpus/image/grey-alpha8-interlaced.png", 13, 9, 0xb37f5b7b30ab5c8d},
    {"../fuzz/corpus/image/grey-alpha16.png", 13, 9, 0x703a599e8f023d87},
    {"../fuzz/corpus/image/grey-alpha16-interlaced.png", 13, 9, 0x703a599e8f023d87},
    {"../fuzz/corpus/image/palette1.png", 13, 9, 0x6338b89c0de797b7},
    {"../fuzz/corpus/image/palette1-interlaced.png", 13, 9, 0x6338b89c0de797b7},
    {"../fuzz/corpus/image/palette2.png", 13, 9, 0x441187aea99f33cf},
    {"../fuzz/corpus/image/palette2-interlaced.png", 13, 9, 0x441187aea99f33cf},
    {"../fuzz/corpus/image/palette4.png", 13, 9, 0x78026ff3830c5467},
    {"../fuzz/corpus/image/palette4-interlaced.png", 13, 9, 0x78026ff3830c5467},
    {"../fuzz/corpus/image/palette8.png", 13, 9, 0x6ad3f7997de507e2},
    {"../fuzz/corpus/image/palette8-interlaced.png", 13, 9, 0x6ad3f7997de507e2},
    {"../fuzz/corpus/image/rgb8.png", 13, 9, 0xeab67411d1136d49},
    {"../fuzz/corpus/image/rgb8-interlaced.png", 13, 9, 0xeab67411d1136d49},
    {"../fuzz/corpus/image/rgb16.png", 13, 9, 0xdcbdb48d0c389978},
    {"../fuzz/corpus/image/rgb16-interlaced.png", 13, 9, 0xdcbdb48d0c389978},
    {"../fuzz/corpus/image/rgba8.png", 13, 9, 0x441e0425131fcb4a},
    {"../fuzz/corpus/image/rgba8-interlaced.png", 13, 9, 0x441e0425131fcb4a},
    {"../fuzz/corpus/image/rgba16.png", 13, 9, 0xe442ae428253d9ef},
    {"../fuzz/corpus/image/rgba16-interlaced.png", 13, 9, 0xe442ae428253d9ef},
    {"../fuzz/corpus/image/420.jpg", 19, 13, 0x6e8f2ff4838ed55e},
    {"../fuzz/corpus/image/422.jpg", 19, 13, 0x9ba048d959960ae1},
    {"../fuzz/corpus/image/444.jpg", 19, 13, 0x20619f409efeaf07},
    {"../fuzz/corpus/image/progressive.jpg", 19, 13, 0x6e8f2ff4838ed55e},
    {"../fuzz/corpus/image/restart.jpg", 19, 13, 0x6e8f2ff4838ed55e},
    {"../fuzz/corpus/image/rgb.jpg", 19, 13, 0xdf5e50f989d3717a},
    {"../fuzz/corpus/image/grey.jpg", 19, 13, 0x37bcb7a4f60dcade},
    {"../fuzz/corpus/image/grey-progressive.jpg", 19, 13, 0x37bcb7a4f60dcade},
    {"../fuzz/corpus/image/cmyk.jpg", 19, 13, 0xb66c82926c2ff80e},
    {"../fuzz/corpus/image/ycck.jpg", 19, 13, 0x4d4f70769b820353},
    {"../fuzz/corpus/image/lossless.webp", 19, 13, 0xfceb1b185b5742ab},
    {"../fuzz/corpus/image/lossless-alpha.webp", 19, 13, 0xfceb1b185b5742ab},
    {"../fuzz/corpus/image/lossy.webp", 19, 13, 0xc0e1aeaa2e2c8cfd},
    {"../fuzz/corpus/image/lossy-alpha.webp", 19, 13, 0x6d5b141548c00cc6},
};
enum { KNOWN = sizeof known / sizeof *known };

static aim_context ctx;

static int set_up(void **state)
{
    (void)state;
    return context_init(&ctx, NULL) != AIM_OK;
}

/* Every test leaves the account empty. */
static int tear_down(void **state)
{
    (void)state;
    return ctx.memory.total != 0;
}

static uint64_t hash_bytes(const uint8_t *bytes, size_t n)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i++) h = (h ^ bytes[i]) * 0x100000001b3u;
    return h;
}

static void test_every_kind(void **state)
{
    (void)state;
    for (size_t i = 0; i < KNOWN; i++) {
        aim_image image;
        assert_ok(&ctx, aim_image_read(&ctx, data_path(known[i].path), &image));
        assert_int_equal(image.width, known[i].width);
        assert_int_equal(image.height, known[i].height);
        if (hash_bytes(image.rgb, image_stride(&image) * (size_t)image.height) != known[i].hash)
            fail_msg("%s differs from what Pillow reads", known[i].path);
        aim_image_free(&image);
    }
}

static void test_golden(void **state)
{
    (void)state;
    static const char *const pairs[][2] = {
        {"images/photo.png", "png"}, {"images/rgba.png", "png"}, {"images/photo.webp", "png"}, {"images/photo.jpg", "jpg"}};
    struct tensor_file file;
    assert_ok(&ctx, tensor_file_open(&ctx, data_path("images/expected.safetensors"), &file));
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        const struct tensor_entry *expected = tensor_file_find(&file, pairs[i][1]);
        assert_non_null(expected);
        aim_image image;
        assert_ok(&ctx, aim_image_read(&ctx, data_path(pairs[i][0]), &image));
        assert_int_equal(image.height, expected->shape[0]);
        assert_int_equal(image.width, expected->shape[1]);
        assert_memory_equal(image.rgb, expected->data, expected->bytes);
        aim_image_free(&image);
    }
    tensor_file_close(&file);
}

/* ------------------------------------------------------------------------------------------------ damage */

/* A file copied into memory of exactly its size, so that a sanitizer sees reads past the end. */
static unsigned char *load(const char *path, size_t *size)
{
    struct file_map map;
    assert_ok(&ctx, file_map_open(&ctx, data_path(path), &map));
    unsigned char *copy = malloc(map.size);
    assert_non_null(copy);
    memcpy(copy, map.data, map.size);
    *size = map.size;
    file_map_close(&map);
    return copy;
}

/* Decodes a damaged file: any status but an internal error will do, and one line that names the file. */
static aim_status parse_damaged(const void *data, size_t size)
{
    aim_image image;
    aim_status status = image_parse(&ctx, "damaged", data, size, &image);
    if (status != AIM_OK) {
        assert_true(status == AIM_ERR_FORMAT || status == AIM_ERR_UNSUPPORTED || status == AIM_ERR_MEMORY);
        assert_non_null(strstr(aim_last_error(&ctx), "damaged"));
        assert_null(image.rgb);
    }
    aim_image_free(&image);
    assert_int_equal(ctx.memory.total, 0);
    return status;
}

static void test_truncated(void **state)
{
    (void)state;
    for (size_t i = 0; i < KNOWN; i++) {
        size_t size;
        unsigned char *data = load(known[i].path, &size);
        size_t stride = size < 2000 ? 1 : size / 200;
        /* one byte short is the end marker of a JPEG file or padding of a WebP one, which nothing depends on */
        for (size_t n = 0; n + 2 < size; n += stride) {
            unsigned char *part = malloc(n + 1); /* ends where the file does, except for the byte that malloc(0) lacks */
            assert_non_null(part);
            memcpy(part, data, n);
            if (parse_damaged(part, n) == AIM_OK) fail_msg("%s cut to %zu bytes was accepted", known[i].path, n);
            free(part);
        }
        free(data);
    }
}

static void test_mutated(void **state)
{
    (void)state;
    ctx.memory.limit = 16 << 20;
    for (size_t i = 0; i < KNOWN; i++) {
        size_t size;
        unsigned char *data = load(known[i].path, &size);
        unsigned rounds = size < 4000 ? 2000 : 1000;
        for (unsigned n = 0; n < rounds; n++) {
            struct philox4 r = philox(i, n, 0, 0);
            size_t places[2] = {r.v[0] % size, r.v[1] % (size < 600 ? size : 600)}; /* anywhere, and in the headers */
            unsigned char old[2] = {data[places[0]], data[places[1]]};
            data[places[0]] ^= (unsigned char)(1 + r.v[2] % 255);
            if (n % 2) data[places[1]] = (unsigned char)r.v[3];
            parse_damaged(data, size);
            data[places[1]] = old[1];
            data[places[0]] = old[0];
        }
        free(data);
    }
    ctx.memory.limit = 0;
}

static void put_u32(unsigned char *at, uint32_t v)
{
    for (int i = 0; i < 4; i++) at[i] = (unsigned char)(v >> (24 - 8 * i));
}

/* Only as much of a PNG as its header; the checksum is that of a 0x0 one unless recomputed. */
static size_t png_header(unsigned char out[33], uint32_t width, uint32_t height)
{
    static const unsigned char start[16] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n', 0, 0, 0, 13, 'I', 'H', 'D', 'R'};
    memcpy(out, start, sizeof start);
    put_u32(out + 16, width);
    put_u32(out + 20, height);
    memcpy(out + 24, "\x08\x02\0\0\0", 5);
    uint32_t crc = ~0u;
    for (size_t i = 12; i < 29; i++) {
        crc ^= out[i];
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
    }
    put_u32(out + 29, ~crc);
    return 33;
}

static void test_hostile_sizes(void **state)
{
    (void)state;
    unsigned char png[33 + 12] = {0};
    memcpy(png + 37, "IDAT", 4);
    aim_image image;
    png_header(png, 0x7fffffff, 0x7fffffff);
    assert_fails(&ctx, image_parse(&ctx, "big.png", png, sizeof png, &image), AIM_ERR_UNSUPPORTED, "big.png is too large");
    png_header(png, 1u << 20, 1u << 20);
    assert_fails(&ctx, image_parse(&ctx, "big.png", png, sizeof png, &image), AIM_ERR_UNSUPPORTED, "1048576 x 1048576");
    ctx.memory.limit = 64 << 20;
    png_header(png, 1u << 14, 1u << 14);
    assert_fails(&ctx, image_parse(&ctx, "big.png", png, sizeof png, &image), AIM_ERR_MEMORY, "cannot read big.png: out of");
    ctx.memory.limit = 0;
    png_header(png, 4, 4);
    assert_fails(&ctx, image_parse(&ctx, "a.png", png, sizeof png, &image), AIM_ERR_FORMAT, "a.png is a damaged PNG file");
    png_header(png, 0, 4);
    assert_fails(&ctx, image_parse(&ctx, "a.png", png, sizeof png, &image), AIM_ERR_FORMAT, "a.png is a damaged PNG file");
}

static void test_checksum(void **state)
{
    (void)state;
    size_t size;
    unsigned char *data = load("../fuzz/corpus/image/rgb8.png", &size);
    aim_image image;
    data[size - 1] ^= 1; /* of the end chunk */
    assert_fails(&ctx, image_parse(&ctx, "x.png", data, size, &image), AIM_ERR_FORMAT, "CRC");
    data[size - 1] ^= 1;
    for (size_t i = 0; i + 5 < size; i++)
        if (memcmp(data + i, "hello", 5) == 0) data[i] = 'H'; /* in a text chunk */
    assert_fails(&ctx, image_parse(&ctx, "x.png", data, size, &image), AIM_ERR_FORMAT, "CRC");
    free(data);
}

/* A progressive JPEG whose first scan comes back 200 times. */
static void test_scan_bomb(void **state)
{
    (void)state;
    enum { COPIES = 200 };
    size_t size;
    unsigned char *data = load("../fuzz/corpus/image/grey-progressive.jpg", &size);
    size_t start = 0, end;
    while (data[start] != 0xff || data[start + 1] != 0xda) start++;
    for (end = start + 2; data[end] != 0xff || data[end + 1] == 0; end++) {
    }
    size_t scan = end - start;
    unsigned char *bomb = malloc(size + COPIES * scan);
    assert_non_null(bomb);
    memcpy(bomb, data, end);
    for (size_t i = 0; i < COPIES; i++) memcpy(bomb + end + i * scan, data + start, scan);
    memcpy(bomb + end + COPIES * scan, data + end, size - end);
    aim_image image;
    assert_fails(&ctx, image_parse(&ctx, "bomb.jpg", bomb, size + COPIES * scan, &image), AIM_ERR_UNSUPPORTED, "100 scans");
    free(bomb);
    free(data);
}

static void test_not_a_picture(void **state)
{
    (void)state;
    aim_image image;
    assert_fails(&ctx, image_parse(&ctx, "a.gif", "GIF89a......", 12, &image), AIM_ERR_FORMAT, "a.gif is not a PNG, JPEG or");
    assert_fails(&ctx, image_parse(&ctx, "none", NULL, 0, &image), AIM_ERR_FORMAT, "none is empty");
    assert_fails(&ctx, aim_image_read(&ctx, "/nonexistent.png", &image), AIM_ERR_IO, "/nonexistent.png");
    assert_fails(&ctx, aim_image_read(&ctx, data_path("../fuzz/corpus/image/animation.webp"), &image), AIM_ERR_UNSUPPORTED,
                 "animation");
}

/* ------------------------------------------------------------------------------------------------ memory */

static void test_allocation_failures(void **state)
{
    (void)state;
    static const char *const paths[] = {"../fuzz/corpus/image/rgb8-interlaced.png", "../fuzz/corpus/image/palette4.png",
                                        "../fuzz/corpus/image/progressive.jpg",     "../fuzz/corpus/image/cmyk.jpg",
                                        "../fuzz/corpus/image/lossy.webp",          "../fuzz/corpus/image/lossless.webp"};
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++)
        for (int64_t n = 0;; n++) {
            assert_true(n < 1000);
            aim_image image;
            ctx.memory.fail_after = n;
            aim_status status = aim_image_read(&ctx, data_path(paths[i]), &image);
            ctx.memory.fail_after = -1;
            aim_image_free(&image);
            assert_int_equal(ctx.memory.total, 0);
            if (status == AIM_OK) {
                assert_true(n > 0);
                break;
            }
            assert_int_equal(status, AIM_ERR_MEMORY);
            assert_non_null(strstr(aim_last_error(&ctx), strrchr(paths[i], '/')));
        }
}

static void test_create(void **state)
{
    (void)state;
    aim_image image;
    assert_ok(&ctx, aim_image_create(&ctx, 5, 3, &image));
    for (int i = 0; i < 5 * 3 * 3; i++) assert_int_equal(image.rgb[i], 0);
    aim_image_free(&image);
    assert_null(image.rgb);
    aim_image_free(&image);
    aim_image_free(NULL);
    assert_fails(&ctx, aim_image_create(&ctx, 0, 3, &image), AIM_ERR_ARGUMENT, "at least one pixel");
    assert_fails(&ctx, aim_image_create(&ctx, INT32_MAX, INT32_MAX, &image), AIM_ERR_ARGUMENT, "too large");
}

/* ----------------------------------------------------------------------------------------------- writing */

static char folder[64];

static const char *in_folder(const char *name)
{
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

/* Files in the folder; a failed write must leave none. */
static int count_files(void)
{
    DIR *directory = opendir(folder);
    assert_non_null(directory);
    int n = 0;
    for (struct dirent *entry; (entry = readdir(directory));) n += entry->d_name[0] != '.';
    closedir(directory);
    return n;
}

static int make_folder(void **state)
{
    strcpy(folder, "/tmp/aim-test-image-XXXXXX");
    return mkdtemp(folder) ? set_up(state) : 1;
}

static int remove_folder(void **state)
{
    unlink(in_folder("x.png"));
    return rmdir(folder) != 0 || tear_down(state);
}

/* Whether the file holds a chunk of this type whose data starts with `text`, zeros included. */
static bool has_chunk(const char *type, const void *text, size_t n)
{
    struct file_map map;
    assert_ok(&ctx, file_map_open(&ctx, in_folder("x.png"), &map));
    bool found = false;
    for (size_t i = 8; i + 8 + n <= map.size && !found; i++)
        found = memcmp(map.data + i, type, 4) == 0 && memcmp(map.data + i + 4, text, n) == 0;
    file_map_close(&map);
    return found;
}

static void test_write(void **state)
{
    (void)state;
    aim_image image, again;
    assert_ok(&ctx, aim_image_read(&ctx, data_path("images/photo.png"), &image));
    static const aim_text text[] = {{"Software", "aim"}, {"Title", "gr\xc3\xbcn \xe2\x82\xac"}, {"Comment", "two\nlines"}};
    assert_ok(&ctx, aim_image_write_png(&ctx, in_folder("x.png"), &image, text, 3));
    assert_int_equal(count_files(), 1);
    assert_true(has_chunk("tEXt", "Software\0aim", 12));
    assert_true(has_chunk("tEXt", "Comment\0two\nlines", 17));
    assert_true(has_chunk("iTXt", "Title\0\0\0\0\0gr\xc3\xbcn \xe2\x82\xac", 19));
    assert_ok(&ctx, aim_image_read(&ctx, in_folder("x.png"), &again));
    assert_int_equal(again.width, image.width);
    assert_memory_equal(again.rgb, image.rgb, image_stride(&image) * (size_t)image.height);
    aim_image_free(&again);
    assert_ok(&ctx, aim_image_write_png(&ctx, in_folder("x.png"), &image, NULL, 0));
    assert_false(has_chunk("tEXt", "", 0));
    aim_image_free(&image);
}

static void test_write_failures(void **state)
{
    (void)state;
    aim_image image, nothing = {0};
    assert_ok(&ctx, aim_image_create(&ctx, 300, 300, &image));
    const char *path = in_folder("x.png");
    for (int i = 0; i < 300 * 300 * 3; i++) image.rgb[i] = (uint8_t)philox(1, (uint64_t)i, 0, 0).v[0]; /* too much to buffer */
    assert_fails(&ctx, aim_image_write_png(&ctx, "/dev/full", &image, NULL, 0), AIM_ERR_IO, "/dev/full");
    assert_fails(&ctx, aim_image_write_png(&ctx, "/nonexistent/x.png", &image, NULL, 0), AIM_ERR_IO, "/nonexistent/x.png");
    assert_fails(&ctx, aim_image_write_png(&ctx, path, &nothing, NULL, 0), AIM_ERR_ARGUMENT, "no pixels");
    static const aim_text bad[] = {{"", "x"}, {" x", "x"}, {"a  b", "x"}, {"\xc3\xbc", "x"}, {NULL, "x"}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_fails(&ctx, aim_image_write_png(&ctx, path, &image, &bad[i], 1), AIM_ERR_ARGUMENT, "cannot name a PNG text");
    static const char *const no_utf8[] = {"\xff", "\xc0\x80", "\xed\xa0\x80", "\xe2\x82", "\xf5\x80\x80\x80", "\x80", NULL};
    for (size_t i = 0; i < sizeof no_utf8 / sizeof *no_utf8; i++)
        assert_fails(&ctx, aim_image_write_png(&ctx, path, &image, &(aim_text){"x", no_utf8[i]}, 1), AIM_ERR_ARGUMENT, "UTF-8");
    assert_int_equal(count_files(), 0);
    aim_text text = {"Comment", "\xc3\xbc"};
    int64_t before = ctx.memory.total;
    for (int64_t n = 0;; n++) {
        assert_true(n < 1000);
        ctx.memory.fail_after = n;
        aim_status status = aim_image_write_png(&ctx, path, &image, &text, 1);
        ctx.memory.fail_after = -1;
        assert_int_equal(ctx.memory.total, before);
        if (status == AIM_OK) break;
        assert_int_equal(status, AIM_ERR_MEMORY);
        assert_int_equal(count_files(), 0);
    }
    aim_image_free(&image);
}

/* ------------------------------------------------------------------------------------------------ floats */

static void test_floats(void **state)
{
    (void)state;
    aim_image image;
    assert_ok(&ctx, aim_image_create(&ctx, 2, 1, &image));
    static const uint8_t bytes[6] = {0, 128, 255, 1, 2, 3};
    memcpy(image.rgb, bytes, sizeof bytes);
    float planes[6];
    aim_image_to_float(&image, planes);
    assert_true(planes[0] == -1.0f && planes[4] == 1.0f);      /* red of the first, blue of the first */
    assert_true(planes[2] == (128.0f / 255.0f - 0.5f) / 0.5f); /* green of the first */
    assert_true(planes[1] == (1.0f / 255.0f - 0.5f) / 0.5f && planes[5] < planes[2]);
    static const float values[6] = {-2.0f, 2.0f, NAN, 0.0f, 0.99609375f, 0.9960f}; /* planes of two pixels */
    aim_image_from_float(values, &image);
    static const uint8_t expected[6] = {0, 0, 255, 255, 128, 254}; /* 127.5*0.99609375+128 = 255.0; 0.996: 254.99 */
    assert_memory_equal(image.rgb, expected, sizeof expected);
    aim_image_free(&image);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_every_kind, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_golden, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_truncated, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_mutated, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_hostile_sizes, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_checksum, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_scan_bomb, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_not_a_picture, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_allocation_failures, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_create, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_write, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_write_failures, make_folder, remove_folder),
        cmocka_unit_test_setup_teardown(test_floats, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
