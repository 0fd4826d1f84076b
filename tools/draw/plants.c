/* Trees, bushes, grass, ferns. Each stands with its foot at (x, y); colours come already lit. */
#include "draw.h"

#include <math.h>

/* Tiers of drooping boughs; the side away from the light is darker; `snow` whitens the tips. */
void pine(struct canvas *c, double x, double y, double height, struct rgb colour, double snow)
{
    enum { MAX_TIERS = 6 };
    int tiers = height > 0.12 ? between_int(c, 5, MAX_TIERS) : 4;
    double half = height * between(c, 0.2, 0.27), lean = height * between(c, -0.02, 0.02);
    path_box(c, x - height * 0.025, y - height * 0.14, height * 0.05, height * 0.14);
    paint(c, shaded(c, mix(colour, hex(0x5b4334), 0.6), 0.4), 1);
    for (int i = tiers; i-- > 0;) {
        double t0 = (double)i / tiers, t1 = (i + 1.35) / tiers;
        double top = y - height * (1 - 0.86 * t0 * t0 * 0.4 - 0.86 * t0 * 0.6),
               foot = y - height * (1 - 0.86 * fmin(1, t1 * 0.93));
        double w = half * (0.25 + 0.75 * (i + 1.0) / tiers), sag = height * 0.022, tx = x + lean * (1 - t0);
        for (int side = -1; side <= 1; side += 2) {
            cairo_move_to(c->cr, tx, top);
            cairo_curve_to(c->cr, tx + side * w * 0.25, top + (foot - top) * 0.5, tx + side * w * 0.6, foot - sag * 2,
                           tx + side * w, foot);
            cairo_curve_to(c->cr, tx + side * w * 0.6, foot + sag, tx + side * w * 0.3, foot + sag, tx, foot + sag * 1.6);
            cairo_close_path(c->cr);
            struct rgb tone = side == (int)c->light.side ? brighten(colour, 0.08 + 0.05 * (1 - t0)) : shaded(c, colour, 0.5);
            paint_down(c, top, shaded(c, tone, 0.3), foot, mix(tone, hex(0xffffff), snow * 0.75));
        }
    }
}

/* A crown: dark lumps below, light ones towards the light, then single leaves. */
void foliage(struct canvas *c, double x, double y, double rx, double ry, struct rgb colour)
{
    static const double share[3] = {1, 0.78, 0.5};
    int lumps = rx > 0.06 ? 16 : 8;
    for (int layer = 0; layer < 3; layer++) {
        double lift = layer * 0.13;
        for (int i = 0; i < lumps; i++) {
            double angle = between(c, 0, 1), d = sqrt(between(c, 0, 1)) * share[layer];
            double r = fmin(rx, ry) * between(c, 0.26, 0.42) * (1 - 0.2 * layer);
            path_ellipse(c, x + rx * 0.72 * d * cowave(angle) + c->light.side * rx * lift,
                         y + ry * 0.72 * d * wave(angle) - ry * lift * 1.3, r, r * 0.92);
        }
        struct rgb tone = layer == 0 ? shaded(c, colour, 0.6) : layer == 1 ? colour : brighten(colour, 0.16);
        paint(c, tone, layer == 2 ? 0.75 : 1);
    }
    if (rx < 0.05) return;
    for (int i = 0; i < 46; i++) {
        double angle = between(c, 0, 1), d = sqrt(between(c, 0, 1)), s = rx * between(c, 0.02, 0.045);
        path_ellipse(c, x + rx * 0.95 * d * cowave(angle), y + ry * 0.95 * d * wave(angle), s, s * 0.7);
        paint(c, chance(c, 0.5) ? brighten(colour, 0.3) : shaded(c, colour, 0.75), 0.5);
    }
}

void round_tree(struct canvas *c, double x, double y, double height, struct rgb colour)
{
    double w = height * 0.06;
    POLYGON(c, {x - w, y}, {x - w * 0.5, y - height * 0.5}, {x + w * 0.5, y - height * 0.5}, {x + w, y});
    paint_round(c, x - w, x + w, lit(c, hex(0x6d4c3a), 0));
    double rx = height * between(c, 0.3, 0.38), ry = height * between(c, 0.32, 0.38);
    foliage(c, x, y - height * 0.64, rx, ry, colour);
}

void cypress(struct canvas *c, double x, double y, double height, struct rgb colour)
{
    double w = height * between(c, 0.1, 0.15);
    SMOOTH(c, true, {x, y - height}, {x + w * 0.6, y - height * 0.6}, {x + w, y - height * 0.2}, {x + w * 0.4, y},
           {x - w * 0.4, y}, {x - w, y - height * 0.2}, {x - w * 0.6, y - height * 0.6});
    paint_round(c, x - w, x + w, colour);
}

void grass(struct canvas *c, double y0, double y1, int count, double height, struct rgb colour)
{
    for (int i = 0; i < count; i++) { /* from the back, so that near blades stand in front */
        double t = (i + between(c, 0, 1)) / count, y = y0 + (y1 - y0) * t, h = height * (0.45 + 0.8 * t) * between(c, 0.6, 1.2);
        double x = between(c, -0.02, 1.02), bend = h * between(c, -0.5, 0.5), w = h * 0.07;
        cairo_move_to(c->cr, x - w, y);
        cairo_curve_to(c->cr, x - w, y - h * 0.5, x + bend * 0.4, y - h * 0.8, x + bend, y - h);
        cairo_curve_to(c->cr, x + bend * 0.4 + w, y - h * 0.7, x + w, y - h * 0.4, x + w, y);
        cairo_close_path(c->cr);
        double tone = between(c, -1, 1);
        paint(c, tone > 0 ? brighten(colour, 0.22 * tone) : shaded(c, colour, -0.6 * tone), 0.9);
    }
}

void blossoms(struct canvas *c, double y0, double y1, int count, double size, struct rgb colour)
{
    for (int i = 0; i < count; i++) {
        double t = (i + between(c, 0, 1)) / count, y = y0 + (y1 - y0) * t, r = size * (0.35 + 0.75 * t) * between(c, 0.7, 1.2);
        double x = between(c, 0, 1);
        struct rgb tone = vary(c, colour, 0.06);
        for (int petal = 0; petal < 5; petal++)
            path_ellipse(c, x + r * 0.6 * cowave(petal / 5.0), y + r * 0.5 * wave(petal / 5.0), r * 0.5, r * 0.42);
        paint(c, tone, 0.95);
        path_ellipse(c, x, y, r * 0.32, r * 0.28);
        paint(c, mix(tone, lit(c, hex(0xffd95a), 0), 0.8), 1);
    }
}

void wood_line(struct canvas *c, const struct ridge *r, int count, double height, struct rgb colour, double snow)
{
    for (int i = 0; i < count; i++) {
        double x = (i + between(c, -0.4, 1.4)) / count;
        double h = height * between(c, 0.65, 1.25);
        pine(c, x, ridge_at(r, x) + height * 0.12, h, vary(c, colour, 0.03), snow);
    }
}

/* --------------------------------------------------------------------------------------------- branches */

struct branching {
    struct rgb colour;
    struct point *tips;
    size_t count, room;
};

static void grow(struct canvas *c, struct branching *b, struct point from, double turns, double length, double width, int depth)
{
    double bend = between(c, -0.04, 0.04);
    struct point mid = {from.x + length * 0.5 * cowave(turns + bend), from.y + length * 0.5 * wave(turns + bend)};
    struct point to = {from.x + length * cowave(turns), from.y + length * wave(turns)};
    cairo_move_to(c->cr, from.x, from.y);
    cairo_curve_to(c->cr, mid.x, mid.y, mid.x, mid.y, to.x, to.y);
    stroke(c, width, b->colour, 1);
    cairo_move_to(c->cr, from.x + c->light.side * width * 0.22, from.y);
    cairo_curve_to(c->cr, mid.x + c->light.side * width * 0.22, mid.y, mid.x, mid.y, to.x, to.y);
    stroke(c, width * 0.3, brighten(b->colour, 0.18), 0.7);
    if (depth <= 1 && b->count < b->room) b->tips[b->count++] = to;
    if (depth == 0) return;
    int twigs = depth > 2 ? between_int(c, 2, 3) : 2;
    for (int i = 0; i < twigs; i++) {
        double fan = (i - (twigs - 1) / 2.0) * between(c, 0.09, 0.14), stray = between(c, -0.02, 0.02);
        grow(c, b, to, turns + fan + stray, length * between(c, 0.66, 0.8), width * 0.64, depth - 1);
    }
}

size_t branches(struct canvas *c, double x, double y, double height, struct rgb colour, struct point *tips, size_t room)
{
    struct branching b = {colour, tips, 0, room};
    double w = height * 0.055;
    POLYGON(c, {x - w * 1.5, y}, {x - w * 0.62, y - height * 0.09}, {x + w * 0.62, y - height * 0.09}, {x + w * 1.5, y});
    paint(c, colour, 1);
    cairo_set_line_cap(c->cr, CAIRO_LINE_CAP_ROUND);
    grow(c, &b, (struct point){x, y - height * 0.04}, 0.75 + between(c, -0.015, 0.015), height * 0.3, w * 1.15, 4);
    return b.count;
}

void fern(struct canvas *c, double x, double y, double size, struct rgb colour)
{
    int fronds = between_int(c, 5, 7);
    for (int f = 0; f < fronds; f++) {
        double lean = (f - (fronds - 1) / 2.0) / fronds * 2.2;
        struct rgb tone = f % 2 ? colour : shaded(c, colour, 0.35);
        for (int i = 0; i < 9; i++) {
            double t = i / 9.0, px = x + size * lean * t * (0.5 + 0.5 * t),
                   py = y - size * (1.15 * t - 0.6 * t * t * fabs(lean));
            double l = size * 0.3 * (1 - 0.8 * t);
            path_leaf(c, (struct point){px, py}, (struct point){px - l, py - l * 0.25}, 0.24);
            path_leaf(c, (struct point){px, py}, (struct point){px + l, py - l * 0.25}, 0.24);
        }
        paint(c, tone, 1);
    }
}
