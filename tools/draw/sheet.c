/* The contact sheet: a row per class, its name in front, drawn with letters made of strokes so that no font is needed. */
#include "picture.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/*
 * a to z: strokes apart by spaces, each a row of points as two digits: x (0..4) and y (0 the top of a 'b', 2 of an 'a',
 * 6 the line that letters stand on, 8 the foot of a 'p').
 */
#define ROUND "321203051636454332"
static const char *const letters[26] = {
    ROUND " 4246",
    ROUND " 0006",
    "4332120305163645",
    ROUND " 4046",
    "04444332120305163645",
    "4130201116 0232",
    ROUND " 4247381807",
    "0006 0312324346",
    "2226 2020",
    "22271808 2020",
    "0006 4204 1436",
    "2026",
    "0206 03122326 23324346",
    "0206 0312324346",
    ROUND,
    ROUND " 0208",
    ROUND " 4248",
    "0206 03123243",
    "43321203143445361605",
    "10152636 0232",
    "0205163645 4246",
    "022642",
    "0216233642",
    "0246 4206",
    "0226 4218",
    "02420646",
};
#undef ROUND

static void letter_path(cairo_t *cr, char letter, double x, double y, double unit)
{
    bool start = true;
    for (const char *s = letters[letter - 'a']; *s; s++) {
        if (*s == ' ') {
            start = true;
            continue;
        }
        double px = x + (s[0] - '0') * unit, py = y + (s[1] - '0') * unit;
        if (start)
            cairo_move_to(cr, px, py);
        else
            cairo_line_to(cr, px, py);
        start = false;
        s++;
    }
}

static void name_draw(cairo_t *cr, const char *name, double x, double y, double unit)
{
    cairo_set_source_rgb(cr, 0.2, 0.22, 0.28);
    cairo_set_line_width(cr, unit * 1.1);
    cairo_set_line_cap(cr, CAIRO_LINE_CAP_ROUND);
    cairo_set_line_join(cr, CAIRO_LINE_JOIN_ROUND);
    for (; *name; name++, x += 6.4 * unit)
        if (*name >= 'a' && *name <= 'z') letter_path(cr, *name, x, y, unit);
    cairo_stroke(cr);
}

struct layout {
    int thumb, gap, label, columns;
};

/* Draws a picture at its own size and sets it, scaled, into the sheet. */
static bool sample_draw(cairo_t *sheet, const struct picture_id *id, int size, double x, double y, int thumb)
{
    cairo_surface_t *surface = cairo_image_surface_create(CAIRO_FORMAT_RGB24, size, size);
    bool ok = picture_paint(id, surface, size);
    if (ok) {
        cairo_save(sheet);
        cairo_translate(sheet, x, y);
        cairo_scale(sheet, (double)thumb / size, (double)thumb / size);
        cairo_set_source_surface(sheet, surface, 0, 0);
        cairo_pattern_set_filter(cairo_get_source(sheet), CAIRO_FILTER_BEST);
        cairo_rectangle(sheet, 0, 0, size, size);
        cairo_fill(sheet);
        cairo_restore(sheet);
    }
    cairo_surface_destroy(surface);
    return ok;
}

static bool sheet_draw(cairo_t *cr, const struct sheet *s, const struct layout *l)
{
    double unit = l->thumb * 0.02;
    for (size_t row = 0; row < s->count; row++) {
        double y = l->gap + (double)row * (l->thumb + l->gap);
        name_draw(cr, s->scenes[row]->name, l->gap * 2, y + l->thumb * 0.5 - 4 * unit, unit);
        for (int i = 0; i < s->columns; i++) {
            struct picture_id id = {s->seed, s->scenes[row], s->first + (uint64_t)i};
            if (!sample_draw(cr, &id, s->size, l->label + i * (l->thumb + l->gap), y, l->thumb)) return false;
        }
    }
    return cairo_status(cr) == CAIRO_STATUS_SUCCESS;
}

static void sheet_pixels(cairo_surface_t *surface, int width, int height, uint8_t *rgb)
{
    cairo_surface_flush(surface);
    const unsigned char *data = cairo_image_surface_get_data(surface);
    int stride = cairo_image_surface_get_stride(surface);
    for (int y = 0; y < height; y++) {
        for (int x = 0; x < width; x++) {
            uint32_t pixel;
            memcpy(&pixel, data + y * stride + 4 * x, 4);
            *rgb++ = (uint8_t)(pixel >> 16);
            *rgb++ = (uint8_t)(pixel >> 8);
            *rgb++ = (uint8_t)pixel;
        }
    }
}

bool sheet_write(const char *path, const struct sheet *s)
{
    struct layout l = {s->thumb, s->thumb / 24 + 1, s->thumb * 3 / 2, s->columns};
    int width = l.label + s->columns * (l.thumb + l.gap), height = l.gap + (int)s->count * (l.thumb + l.gap);
    cairo_surface_t *surface = cairo_image_surface_create(CAIRO_FORMAT_RGB24, width, height);
    cairo_t *cr = cairo_create(surface);
    cairo_set_source_rgb(cr, 0.985, 0.98, 0.965);
    cairo_paint(cr);
    uint8_t *rgb = malloc((size_t)width * (size_t)height * 3);
    bool ok = rgb && sheet_draw(cr, s, &l);
    if (ok) {
        sheet_pixels(surface, width, height, rgb);
        ok = picture_write(path, width, height, rgb, true);
    } else {
        errno = ENOMEM;
    }
    int reason = errno;
    free(rgb);
    cairo_destroy(cr);
    cairo_surface_destroy(surface);
    errno = reason;
    return ok;
}
