/* Drawing one picture, its grain, and PNG files. */
#include "picture.h"

#include <errno.h>
#include <png.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

#include "scenes.h"

#define SCENE_ROW(name) {#name, scene_##name},
const struct scene scenes_table[] = {SCENES(SCENE_ROW)};
#undef SCENE_ROW
const size_t scenes_count = sizeof scenes_table / sizeof scenes_table[0];

/* FNV-1a: a class keeps its pictures when others come or go. */
static uint32_t name_hash(const char *name)
{
    uint32_t h = 2166136261u;
    for (; *name; name++) h = (h ^ (uint32_t)(unsigned char)*name) * 16777619u;
    return h;
}

static uint8_t byte_of(double v)
{
    return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v + 0.5);
}

/* Paper: a weave of soft noise and a trace of grain, and corners a little darker. */
static void develop(const struct picture_id *id, cairo_surface_t *surface, int size, uint8_t *rgb)
{
    uint32_t key = (uint32_t)id->index * 2654435761u ^ name_hash(id->scene->name) ^ (uint32_t)id->seed;
    const unsigned char *data = cairo_image_surface_get_data(surface);
    int stride = cairo_image_surface_get_stride(surface);
    double weave[2] = {0, 0};
    for (int y = 0; y < size; y++) {
        for (int x = 0; x < size; x++) {
            uint32_t pixel;
            memcpy(&pixel, data + y * stride + 4 * x, 4);
            if (x % 4 == 0) {
                weave[0] = x ? weave[1] : noise_2d(key, 0, y / 3.0);
                weave[1] = noise_2d(key, (x + 4) / 3.0, y / 3.0);
            }
            double u = (x + 0.5) / size - 0.5, v = (y + 0.5) / size - 0.5, r = u * u + v * v;
            double grain = (double)(lattice(key + 1, (uint32_t)x, (uint32_t)y) >> 24) / 255 - 0.5;
            double paper = weave[0] + (weave[1] - weave[0]) * (x % 4) / 4;
            double f = 1 - 0.22 * r * r - 0.1 * r * (r > 0.2 ? r - 0.2 : 0), add = 1.6 * paper + 2.4 * grain;
            *rgb++ = byte_of((double)(pixel >> 16 & 255) * f + add);
            *rgb++ = byte_of((double)(pixel >> 8 & 255) * f + add);
            *rgb++ = byte_of((double)(pixel & 255) * f + add);
        }
    }
}

bool picture_paint(const struct picture_id *id, cairo_surface_t *surface, int size)
{
    struct canvas c = {.cr = cairo_create(surface), .seed = id->seed, .index = id->index, .stream = name_hash(id->scene->name)};
    cairo_scale(c.cr, size, size);
    id->scene->draw(&c);
    bool ok = cairo_status(c.cr) == CAIRO_STATUS_SUCCESS;
    cairo_destroy(c.cr);
    cairo_surface_flush(surface);
    return ok;
}

bool picture_draw(const struct picture_id *id, int size, uint8_t *rgb)
{
    cairo_surface_t *surface = cairo_image_surface_create(CAIRO_FORMAT_RGB24, size, size);
    bool ok = picture_paint(id, surface, size);
    if (ok) develop(id, surface, size, rgb);
    cairo_surface_destroy(surface);
    return ok;
}

/* --------------------------------------------------------------------------------------------------- files */

static bool write_stream(FILE *file, int width, int height, const uint8_t *rgb, bool tight)
{
    png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, NULL, NULL, NULL);
    png_infop info = png ? png_create_info_struct(png) : NULL;
    if (!info || setjmp(png_jmpbuf(png))) {
        png_destroy_write_struct(&png, &info);
        return false;
    }
    png_init_io(png, file);
    png_set_IHDR(png, info, (png_uint_32)width, (png_uint_32)height, 8, PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE,
                 PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
    /* Grain has no strings worth a search: coding differences alone is no larger than zlib's default, and twice as fast. */
    png_set_compression_level(png, tight ? Z_BEST_COMPRESSION : Z_BEST_SPEED);
    if (!tight) png_set_compression_strategy(png, Z_HUFFMAN_ONLY);
    png_set_filter(png, PNG_FILTER_TYPE_BASE, tight ? PNG_ALL_FILTERS : PNG_FILTER_SUB);
    png_write_info(png, info);
    for (int y = 0; y < height; y++) png_write_row(png, rgb + (size_t)y * (size_t)width * 3);
    png_write_end(png, NULL);
    png_destroy_write_struct(&png, &info);
    return true;
}

bool picture_write(const char *path, int width, int height, const uint8_t *rgb, bool tight)
{
    char temporary[4096];
    if (snprintf(temporary, sizeof temporary, "%s.%ld.tmp", path, (long)getpid()) >= (int)sizeof temporary) {
        errno = ENAMETOOLONG;
        return false;
    }
    FILE *file = fopen(temporary, "wb");
    if (!file) return false;
    bool ok = write_stream(file, width, height, rgb, tight);
    ok = fclose(file) == 0 && ok;
    if (ok && rename(temporary, path) == 0) return true;
    int reason = errno;
    unlink(temporary);
    errno = reason;
    return false;
}
