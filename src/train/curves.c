#include "train/curves.h"

#include <float.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Pixels. */
enum { WIDTH = 960, PANEL_HEIGHT = 300, LEFT = 84, RIGHT = 24, TOP = 30, BOTTOM = 36, GLYPH = 2 };

struct color {
    uint8_t r, g, b;
};

static const struct color white = {255, 255, 255}, ink = {40, 40, 40}, grid_line = {228, 228, 228};
static const struct color curve_colors[CURVES_PER_PANEL] = {{31, 90, 180}, {214, 90, 24}, {30, 140, 70}, {140, 60, 160}};

/* ---------------------------------------------------------------------------------------------- drawing */

static void put(aim_image *image, int x, int y, struct color c)
{
    if (x < 0 || y < 0 || x >= image->width || y >= image->height) return;
    uint8_t *p = image->rgb + ((size_t)y * (size_t)image->width + (size_t)x) * 3;
    p[0] = c.r;
    p[1] = c.g;
    p[2] = c.b;
}

static void fill(aim_image *image, int x, int y, int width, int height, struct color c)
{
    for (int j = y; j < y + height; j++)
        for (int i = x; i < x + width; i++) put(image, i, j, c);
}

static int text_width(const char *text)
{
    return 6 * GLYPH * (int)strlen(text);
}

static void write_text(aim_image *image, int x, int y, const char *text, struct color c)
{
    aim_image_draw_text(image, x, y, GLYPH, text, (const uint8_t[3]){c.r, c.g, c.b});
}

/* --------------------------------------------------------------------------------------------------- series */

struct series {
    size_t count, capacity;
    double *x, *y; /* owned */
};

static void series_free(struct series *s)
{
    mem_free(s->x);
    mem_free(s->y);
}

static aim_status series_add(aim_context *ctx, struct series *s, double x, double y)
{
    if (s->count == s->capacity) {
        size_t capacity = s->capacity ? 2 * s->capacity : 1024;
        double *xs = mem_resize(ctx, s->x, capacity * sizeof *xs, MEM_MISC);
        if (xs) s->x = xs;
        double *ys = mem_resize(ctx, s->y, capacity * sizeof *ys, MEM_MISC);
        if (ys) s->y = ys;
        if (!xs || !ys) return AIM_ERR_MEMORY;
        s->capacity = capacity;
    }
    s->x[s->count] = x;
    s->y[s->count++] = y;
    return AIM_OK;
}

/* The values of one line of the log, added to the series of a panel. */
static aim_status read_line(aim_context *ctx, const char *line, size_t length, const struct curve_panel *panel,
                            struct series *series)
{
    json_t *object = json_loadb(line, length, 0, NULL);
    const json_t *step = json_object_get(object, "step");
    aim_status status = AIM_OK;
    for (int i = 0; i < CURVES_PER_PANEL && panel->names[i] && json_is_integer(step) && status == AIM_OK; i++) {
        const json_t *value = json_object_get(object, panel->names[i]);
        if (json_is_number(value))
            status = series_add(ctx, &series[i], (double)json_integer_value(step), json_number_value(value));
    }
    json_decref(object);
    return status;
}

static aim_status read_series(aim_context *ctx, const char *log, size_t size, const struct curve_panel *panel,
                              struct series *series)
{
    for (size_t at = 0; at < size;) {
        const char *newline = memchr(log + at, '\n', size - at);
        size_t length = newline ? (size_t)(newline - log) - at : size - at;
        TRY(read_line(ctx, log + at, length, panel, series));
        at += length + 1;
    }
    return AIM_OK;
}

/* ---------------------------------------------------------------------------------------------------- axes */

/* Where values land on the picture. */
struct axes {
    int x, y, width, height; /* of the panel's inside */
    double left, right, low, high;
};

static double across(const struct axes *a, double x)
{
    return a->x + (x - a->left) / (a->right - a->left) * (a->width - 1);
}

static double down(const struct axes *a, double y)
{
    double at = a->y + (a->high - y) / (a->high - a->low) * (a->height - 1);
    return fmin(fmax(at, a->y), a->y + a->height - 1); /* what lies outside runs along the edge */
}

/* A step of 1, 2 or 5 times a power of ten that cuts `range` into at most `parts`. */
static double round_step(double range, int parts)
{
    double power = pow(10, floor(log10(range / parts)));
    static const double factors[] = {1, 2, 5, 10};
    for (size_t i = 0; i < sizeof factors / sizeof factors[0]; i++)
        if (range / (factors[i] * power) <= parts) return factors[i] * power;
    return 10 * power;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The range of y: all values but the largest percent, which may be a spike that would flatten the rest. */
static aim_status find_range(aim_context *ctx, const struct series *series, struct axes *a)
{
    a->left = 0;
    a->right = 1;
    a->low = DBL_MAX;
    a->high = -DBL_MAX;
    for (int i = 0; i < CURVES_PER_PANEL; i++) {
        const struct series *s = &series[i];
        if (!s->count) continue;
        double *sorted = mem_array(ctx, s->count, sizeof *sorted, MEM_MISC);
        if (!sorted) return AIM_ERR_MEMORY;
        memcpy(sorted, s->y, s->count * sizeof *sorted);
        qsort(sorted, s->count, sizeof *sorted, by_value);
        a->low = fmin(a->low, sorted[0]);
        a->high = fmax(a->high, sorted[s->count - 1 - s->count / 100]);
        a->right = fmax(a->right, s->x[s->count - 1]);
        mem_free(sorted);
    }
    if (a->low > a->high) a->low = a->high = 0;
    const double most = 1e300; /* a difference of two stays finite */
    a->low = fmax(a->low, -most);
    a->high = fmin(a->high, most);
    double margin = (a->high - a->low) * 0.05;
    if (!(margin > 0)) margin = a->high != 0 ? fabs(a->high) * 0.1 : 1;
    a->low -= margin;
    a->high += margin;
    return AIM_OK;
}

static void draw_axes(aim_image *image, const struct axes *a)
{
    char text[32];
    double step = round_step(a->high - a->low, 5), first = ceil(a->low / step);
    for (int i = 0; i <= 5 && (first + i) * step <= a->high; i++) {
        double y = (first + i) * step;
        int at = (int)down(a, y);
        fill(image, a->x, at, a->width, 1, grid_line);
        snprintf(text, sizeof text, "%.4g", fabs(y) < step * 1e-6 ? 0.0 : y);
        write_text(image, a->x - 8 - text_width(text), at - 3 * GLYPH, text, ink);
    }
    step = fmax(round_step(a->right - a->left, 8), 1);
    for (int i = 0; i <= 8 && a->left + i * step <= a->right; i++) {
        double x = a->left + i * step;
        int at = (int)across(a, x);
        fill(image, at, a->y, 1, a->height, grid_line);
        snprintf(text, sizeof text, "%.0f", x);
        write_text(image, at - text_width(text) / 2, a->y + a->height + 6, text, ink);
    }
    fill(image, a->x, a->y + a->height, a->width, 1, ink);
    fill(image, a->x, a->y, 1, a->height, ink);
}

/* --------------------------------------------------------------------------------------------------- curves */

static void draw_segment(aim_image *image, double x0, double y0, double x1, double y1, int thick, struct color c)
{
    int steps = (int)fmax(fabs(x1 - x0), fabs(y1 - y0)) + 1;
    for (int i = 0; i <= steps; i++) {
        double t = (double)i / steps;
        fill(image, (int)(x0 + t * (x1 - x0)), (int)(y0 + t * (y1 - y0)), thick, thick, c);
    }
}

static void draw_curve(aim_image *image, const struct axes *a, const struct series *s, const double *y, int thick,
                       struct color c)
{
    if (s->count == 1) fill(image, (int)across(a, s->x[0]) - 1, (int)down(a, y[0]) - 1, 3, 3, c);
    for (size_t i = 1; i < s->count; i++)
        draw_segment(image, across(a, s->x[i - 1]), down(a, y[i - 1]), across(a, s->x[i]), down(a, y[i]), thick, c);
}

/* Exponential running mean, without a bias towards the start. */
static void smooth(const struct series *s, double *out)
{
    double keep = 1 - 1 / fmax(1, (double)s->count / 50), sum = 0, weight = 0;
    for (size_t i = 0; i < s->count; i++) {
        sum = keep * sum + s->y[i];
        weight = keep * weight + 1;
        out[i] = sum / weight;
    }
}

static struct color pale(struct color c)
{
    return (struct color){(uint8_t)(c.r + (255 - c.r) * 2 / 3), (uint8_t)(c.g + (255 - c.g) * 2 / 3),
                          (uint8_t)(c.b + (255 - c.b) * 2 / 3)};
}

static aim_status draw_series(aim_context *ctx, aim_image *image, const struct axes *a, const struct series *s, bool smoothed,
                              struct color c)
{
    enum { FEW = 100 }; /* nothing to smooth */
    if (!smoothed || s->count < FEW) {
        draw_curve(image, a, s, s->y, 2, c);
        return AIM_OK;
    }
    double *mean = mem_array(ctx, s->count, sizeof *mean, MEM_MISC);
    if (!mean) return AIM_ERR_MEMORY;
    smooth(s, mean);
    draw_curve(image, a, s, s->y, 1, pale(c));
    draw_curve(image, a, s, mean, 2, c);
    mem_free(mean);
    return AIM_OK;
}

static aim_status draw_panel(aim_context *ctx, aim_image *image, int top, const struct curve_panel *panel,
                             const struct series *series)
{
    struct axes a = {.x = LEFT, .y = top + TOP, .width = WIDTH - LEFT - RIGHT, .height = PANEL_HEIGHT - TOP - BOTTOM};
    TRY(find_range(ctx, series, &a));
    draw_axes(image, &a);
    int x = a.x + 8;
    for (int i = 0; i < CURVES_PER_PANEL && panel->names[i]; i++) {
        TRY(draw_series(ctx, image, &a, &series[i], panel->smooth, curve_colors[i]));
        write_text(image, x, top + 8, panel->names[i], curve_colors[i]);
        x += text_width(panel->names[i]) + 24;
    }
    return AIM_OK;
}

aim_status curves_draw(aim_context *ctx, const char *log, size_t size, const struct curve_panel *panels, size_t count,
                       aim_image *out)
{
    TRY(aim_image_create(ctx, WIDTH, PANEL_HEIGHT * (int)count, out));
    fill(out, 0, 0, out->width, out->height, white);
    aim_status status = AIM_OK;
    for (size_t p = 0; p < count && status == AIM_OK; p++) {
        struct series series[CURVES_PER_PANEL] = {{0}};
        status = read_series(ctx, log, size, &panels[p], series);
        if (status == AIM_OK) status = draw_panel(ctx, out, PANEL_HEIGHT * (int)p, &panels[p], series);
        for (int i = 0; i < CURVES_PER_PANEL; i++) series_free(&series[i]);
    }
    if (status != AIM_OK) aim_image_free(out);
    return status;
}
