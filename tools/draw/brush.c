/* Paths and ways to fill them. */
#include "draw.h"

#include <math.h>

void place_begin(struct canvas *c, double x, double y, double size, double turns)
{
    cairo_matrix_t m;
    double cosine = size * cowave(turns), sine = size * wave(turns);
    cairo_matrix_init(&m, cosine, sine, -sine, cosine, x, y);
    cairo_save(c->cr);
    cairo_transform(c->cr, &m);
}

void place_end(struct canvas *c)
{
    cairo_restore(c->cr);
}

/* ------------------------------------------------------------------------------------------------ paths */

void path_ellipse(struct canvas *c, double x, double y, double rx, double ry)
{
    const double k = 0.5522847498; /* the Bezier arc that is nearest to a quarter circle */
    cairo_new_sub_path(c->cr);
    cairo_move_to(c->cr, x + rx, y);
    cairo_curve_to(c->cr, x + rx, y + k * ry, x + k * rx, y + ry, x, y + ry);
    cairo_curve_to(c->cr, x - k * rx, y + ry, x - rx, y + k * ry, x - rx, y);
    cairo_curve_to(c->cr, x - rx, y - k * ry, x - k * rx, y - ry, x, y - ry);
    cairo_curve_to(c->cr, x + k * rx, y - ry, x + rx, y - k * ry, x + rx, y);
    cairo_close_path(c->cr);
}

void path_box(struct canvas *c, double x, double y, double width, double height)
{
    cairo_rectangle(c->cr, x, y, width, height);
}

void path_round_box(struct canvas *c, double x, double y, double width, double height, double radius)
{
    double k = radius * 0.45, x1 = x + width, y1 = y + height;
    cairo_move_to(c->cr, x + radius, y);
    cairo_line_to(c->cr, x1 - radius, y);
    cairo_curve_to(c->cr, x1 - k, y, x1, y + k, x1, y + radius);
    cairo_line_to(c->cr, x1, y1 - radius);
    cairo_curve_to(c->cr, x1, y1 - k, x1 - k, y1, x1 - radius, y1);
    cairo_line_to(c->cr, x + radius, y1);
    cairo_curve_to(c->cr, x + k, y1, x, y1 - k, x, y1 - radius);
    cairo_line_to(c->cr, x, y + radius);
    cairo_curve_to(c->cr, x, y + k, x + k, y, x + radius, y);
    cairo_close_path(c->cr);
}

void path_polygon(struct canvas *c, const struct point *points, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (i == 0)
            cairo_move_to(c->cr, points[i].x, points[i].y);
        else
            cairo_line_to(c->cr, points[i].x, points[i].y);
    }
    cairo_close_path(c->cr);
}

/* Catmull-Rom: the tangent at a point is parallel to the line between its neighbours. */
void path_smooth(struct canvas *c, const struct point *p, size_t count, bool closed)
{
    size_t segments = closed ? count : count - 1;
    cairo_move_to(c->cr, p[0].x, p[0].y);
    for (size_t i = 0; i < segments; i++) {
        size_t before = i > 0 ? i - 1 : closed ? count - 1 : 0;
        size_t to = (i + 1) % count;
        size_t after = i + 2 < count || closed ? (i + 2) % count : to;
        cairo_curve_to(c->cr, p[i].x + (p[to].x - p[before].x) / 6, p[i].y + (p[to].y - p[before].y) / 6,
                       p[to].x - (p[after].x - p[i].x) / 6, p[to].y - (p[after].y - p[i].y) / 6, p[to].x, p[to].y);
    }
    if (closed) cairo_close_path(c->cr);
}

void path_blob(struct canvas *c, double x, double y, double rx, double ry, double roughness)
{
    enum { POINTS = 12 };
    struct point p[POINTS];
    double start = between(c, 0, 1);
    for (int i = 0; i < POINTS; i++) {
        double angle = start + (double)i / POINTS, r = 1 + between(c, -roughness, roughness);
        p[i] = (struct point){x + rx * r * cowave(angle), y + ry * r * wave(angle)};
    }
    path_smooth(c, p, POINTS, true);
}

void path_leaf(struct canvas *c, struct point from, struct point to, double width)
{
    double dx = to.x - from.x, dy = to.y - from.y;
    double nx = -dy * width, ny = dx * width;
    cairo_move_to(c->cr, from.x, from.y);
    cairo_curve_to(c->cr, from.x + dx * 0.3 + nx, from.y + dy * 0.3 + ny, from.x + dx * 0.7 + nx, from.y + dy * 0.7 + ny, to.x,
                   to.y);
    cairo_curve_to(c->cr, from.x + dx * 0.7 - nx, from.y + dy * 0.7 - ny, from.x + dx * 0.3 - nx, from.y + dy * 0.3 - ny,
                   from.x, from.y);
    cairo_close_path(c->cr);
}

/* ---------------------------------------------------------------------------------------------- filling */

static void add_stop(cairo_pattern_t *pattern, double at, struct rgb colour, double alpha)
{
    cairo_pattern_add_color_stop_rgba(pattern, at, colour.r, colour.g, colour.b, alpha);
}

static void fill_pattern(struct canvas *c, cairo_pattern_t *pattern)
{
    cairo_set_source(c->cr, pattern);
    cairo_fill(c->cr);
    cairo_pattern_destroy(pattern);
}

void paint(struct canvas *c, struct rgb colour, double alpha)
{
    cairo_set_source_rgba(c->cr, colour.r, colour.g, colour.b, alpha);
    cairo_fill(c->cr);
}

void paint_between(struct canvas *c, double x0, double y0, struct rgb from, double x1, double y1, struct rgb to)
{
    cairo_pattern_t *p = cairo_pattern_create_linear(x0, y0, x1, y1);
    add_stop(p, 0, from, 1);
    add_stop(p, 1, to, 1);
    fill_pattern(c, p);
}

void paint_down(struct canvas *c, double y0, struct rgb top, double y1, struct rgb bottom)
{
    paint_between(c, 0, y0, top, 0, y1, bottom);
}

void paint_ball(struct canvas *c, double x, double y, double radius, struct rgb bright, struct rgb dark)
{
    double hx = x + c->light.side * radius * 0.35, hy = y - radius * 0.4;
    cairo_pattern_t *p = cairo_pattern_create_radial(hx, hy, radius * 0.05, x, y, radius * 1.05);
    add_stop(p, 0, bright, 1);
    add_stop(p, 0.55, mix(bright, dark, 0.42), 1);
    add_stop(p, 1, dark, 1);
    fill_pattern(c, p);
}

void paint_fade(struct canvas *c, double x0, double y0, double alpha0, double x1, double y1, double alpha1, struct rgb colour)
{
    cairo_pattern_t *p = cairo_pattern_create_linear(x0, y0, x1, y1);
    add_stop(p, 0, colour, alpha0);
    add_stop(p, 1, colour, alpha1);
    fill_pattern(c, p);
}

void paint_round(struct canvas *c, double x0, double x1, struct rgb colour)
{
    bool left = c->light.side < 0;
    cairo_pattern_t *p = cairo_pattern_create_linear(left ? x0 : x1, 0, left ? x1 : x0, 0);
    add_stop(p, 0, shaded(c, colour, 0.15), 1);
    add_stop(p, 0.3, brighten(colour, 0.12), 1);
    add_stop(p, 0.65, shaded(c, colour, 0.25), 1);
    add_stop(p, 1, shaded(c, colour, 0.75), 1);
    fill_pattern(c, p);
}

void stroke(struct canvas *c, double width, struct rgb colour, double alpha)
{
    cairo_set_source_rgba(c->cr, colour.r, colour.g, colour.b, alpha);
    cairo_set_line_width(c->cr, width);
    cairo_stroke(c->cr);
}

void clip(struct canvas *c)
{
    cairo_save(c->cr);
    cairo_clip(c->cr);
}

void unclip(struct canvas *c)
{
    cairo_restore(c->cr);
}

void glow(struct canvas *c, double x, double y, double rx, double ry, struct rgb colour, double alpha)
{
    cairo_save(c->cr);
    cairo_translate(c->cr, x, y);
    cairo_scale(c->cr, rx, ry);
    cairo_pattern_t *p = cairo_pattern_create_radial(0, 0, 0, 0, 0, 1);
    for (int i = 0; i <= 4; i++) {
        double left = 1 - (double)i / 4;
        add_stop(p, (double)i / 4, colour, alpha * left * left);
    }
    cairo_rectangle(c->cr, -1, -1, 2, 2);
    fill_pattern(c, p);
    cairo_restore(c->cr);
}

void veil(struct canvas *c, double y0, double a0, double y1, double a1, struct rgb colour)
{
    path_box(c, 0, y0, 1, y1 - y0);
    paint_fade(c, 0, y0, a0, 0, y1, a1, colour);
}

void mottle(struct canvas *c, struct point corner, struct point size, struct point features, double low, double high,
            struct rgb colour, double alpha)
{
    enum { CELLS = 64 };
    uint32_t key = fresh_key(c);
    cairo_surface_t *mask = cairo_image_surface_create(CAIRO_FORMAT_A8, CELLS, CELLS);
    unsigned char *rows = cairo_image_surface_get_data(mask);
    if (!rows) { /* out of memory: the canvas is in an error state too, and its owner looks */
        cairo_surface_destroy(mask);
        return;
    }
    int stride = cairo_image_surface_get_stride(mask);
    for (int j = 0; j < CELLS; j++) {
        double v = (j + 0.5) / CELLS, edge_y = clamp01(8 * v * (1 - v));
        for (int i = 0; i < CELLS; i++) {
            double u = (i + 0.5) / CELLS, edge = edge_y * clamp01(12 * u * (1 - u));
            double density = smooth_step(low, high, fbm_2d(key, u * features.x, v * features.y, 4));
            rows[j * stride + i] = (unsigned char)(255 * density * edge + 0.5);
        }
    }
    cairo_surface_mark_dirty(mask);
    cairo_save(c->cr);
    cairo_translate(c->cr, corner.x, corner.y);
    cairo_scale(c->cr, size.x / CELLS, size.y / CELLS);
    cairo_set_source_rgba(c->cr, colour.r, colour.g, colour.b, alpha);
    cairo_mask_surface(c->cr, mask, 0, 0);
    cairo_restore(c->cr);
    cairo_surface_destroy(mask);
}
