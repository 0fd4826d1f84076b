/* Scenes of flowers: sunflower, tulip. */
#include "scenes.h"

#include <math.h>

/* A stem that leans, from the foot to the flower, with leaves on the way. */
static void stem(struct canvas *c, struct point foot, struct point head, double w, struct rgb green)
{
    cairo_set_line_cap(c->cr, CAIRO_LINE_CAP_ROUND);
    for (int i = 0; i < 2; i++) {
        double shift = i ? c->light.side * w * 0.2 : 0;
        cairo_move_to(c->cr, foot.x + shift, foot.y);
        cairo_curve_to(c->cr, foot.x + shift, foot.y * 0.6 + head.y * 0.4, head.x + shift, foot.y * 0.4 + head.y * 0.6,
                       head.x + shift, head.y);
        stroke(c, i ? w * 0.4 : w, i ? brighten(green, 0.15) : shaded(c, green, 0.35), 1);
    }
}

/* -------------------------------------------------------------------------------------------- sunflower */

static void petal_ring(struct canvas *c, int count, double reach, double width, struct rgb base, struct rgb tip)
{
    double start = between(c, 0, 1);
    for (int i = 0; i < count; i++) {
        double angle = start + (i + between(c, -0.22, 0.22)) / count, r = reach * between(c, 0.88, 1.08);
        double cx = cowave(angle), cy = wave(angle), toward = cx * c->light.side - cy;
        path_leaf(c, (struct point){cx * 0.3, cy * 0.3}, (struct point){cx * r, cy * r}, width);
        struct rgb end = toward > 0 ? brighten(tip, 0.12 * toward) : shaded(c, tip, -0.22 * toward);
        paint_between(c, cx * 0.35, cy * 0.35, base, cx * r, cy * r, end);
        cairo_move_to(c->cr, cx * 0.4, cy * 0.4);
        cairo_line_to(c->cr, cx * r * 0.85, cy * r * 0.85);
        stroke(c, 0.018, base, 0.45);
    }
}

/* Seeds stand on the golden spiral. */
static void seed_disc(struct canvas *c, double radius, struct rgb seed)
{
    path_ellipse(c, 0, 0, radius, radius);
    paint_ball(c, 0, 0, radius, brighten(seed, 0.12), shaded(c, seed, 0.7));
    for (int i = 0; i < 150; i++) {
        double t = sqrt((i + 0.5) / 150), angle = i * 0.6180339887, r = radius * (0.028 + 0.03 * t);
        path_ellipse(c, radius * 0.96 * t * cowave(angle), radius * 0.96 * t * wave(angle), r, r);
        if (i % 30 != 29) continue;
        paint(c, t < 0.5 ? mix(seed, hex(0x9fae4a), 0.55) : mix(seed, hex(0xe0a040), 0.55 * t), 0.9);
    }
    path_ellipse(c, 0, 0, radius * 0.42, radius * 0.42);
    paint(c, shaded(c, seed, 0.6), 0.25);
}

/* The head is one unit in radius. */
static void sunflower_head(struct canvas *c, struct point at, double size, struct rgb petal, struct rgb seed, int detail)
{
    double squash = between(c, 0.85, 1), turn = between(c, -0.06, 0.06);
    place_begin(c, at.x, at.y, size, turn);
    cairo_scale(c->cr, 1, squash);
    struct rgb deep = mix(petal, hex(0xd0661f), 0.5);
    petal_ring(c, detail ? 22 : 13, 1.05, 0.2, shaded(c, deep, 0.3), shaded(c, petal, 0.3));
    petal_ring(c, detail ? 19 : 11, 0.95, 0.22, deep, petal);
    if (detail) {
        seed_disc(c, 0.47, seed);
    } else {
        path_ellipse(c, 0, 0, 0.45, 0.45);
        paint_ball(c, 0, 0, 0.45, brighten(seed, 0.15), shaded(c, seed, 0.5));
    }
    place_end(c);
}

static void heart_leaf(struct canvas *c, struct point at, double size, double turns, struct rgb green)
{
    place_begin(c, at.x, at.y, size, turns);
    SMOOTH(c, true, {0, 0}, {0.25, -0.34}, {0.62, -0.28}, {1.1, 0.05}, {0.6, 0.26}, {0.22, 0.28});
    paint_between(c, 0, -0.3, brighten(green, 0.12), 0.3, 0.3, shaded(c, green, 0.45));
    cairo_move_to(c->cr, 0, 0);
    cairo_line_to(c->cr, 1, 0.04);
    stroke(c, 0.03, brighten(green, 0.3), 0.7);
    place_end(c);
}

/* Rows of small heads towards the horizon. */
static void sunflower_field(struct canvas *c, double horizon, struct rgb petal, struct rgb green)
{
    for (int row = 0; row < 7; row++) {
        double t = row / 6.0, y = horizon + 0.02 + 0.36 * t * t + 0.1 * t, size = 0.008 + 0.05 * t * t;
        int count = (int)(1.1 / (size * 2.4 + 0.012));
        path_box(c, 0, y, 1, 1);
        paint_down(c, y, lit(c, green, 0.4 * (1 - t)), y + 0.15, shaded(c, lit(c, green, 0.3 * (1 - t)), 0.4));
        for (int i = 0; i < count; i++) {
            struct point at = point_in(c, i, y - size * 0.6, i + 1, y + size * 0.6);
            at.x /= count;
            struct rgb p = lit(c, petal, 0.35 * (1 - t));
            if (size > 0.02) {
                sunflower_head(c, at, size, p, lit(c, hex(0x5a3a26), 0.3 * (1 - t)), 0);
                continue;
            }
            path_ellipse(c, at.x, at.y, size, size * 0.85);
            paint(c, p, 1);
            path_ellipse(c, at.x, at.y, size * 0.4, size * 0.35);
            paint(c, lit(c, hex(0x5a3a26), 0.35), 1);
        }
    }
}

void scene_sunflower(struct canvas *c)
{
    choose_light(c, LIGHT_BRIGHT | LIGHT_DUSK | LIGHT_OVERCAST);
    double horizon = between(c, 0.5, 0.66);
    struct rgb petal = CHOOSE(c, 0xf8c22e, 0xfbd04a, 0xf3a72b, 0xf6b83a), green = CHOOSE(c, 0x5f9444, 0x6f9f4a, 0x4a8450);
    struct rgb seed = lit(c, CHOOSE(c, 0x5a3a26, 0x4a2f2a, 0x6a4426), 0);
    sky(c, horizon);
    struct ridge far = ridge_make(c, horizon, 0.08, between(c, 1.5, 3), 3);
    hills(c, &far, mix(green, hex(0x5f8aa0), 0.5), 0.45);
    if (chance(c, 0.7)) {
        sunflower_field(c, horizon, petal, green);
    } else {
        struct ridge meadow = ridge_make(c, horizon + 0.06, 0.04, 2, 2);
        hills(c, &meadow, green, 0.12);
        grass(c, horizon + 0.08, 1.02, 150, 0.08, lit(c, green, 0.05));
    }
    int count = between_int(c, 1, 3);
    struct rgb leaf = lit(c, green, 0);
    double side = chance(c, 0.5) ? -1 : 1;
    for (int i = count; i-- > 0;) {
        double size = i ? between(c, 0.13, 0.17) : count == 1 ? between(c, 0.27, 0.34) : between(c, 0.21, 0.26);
        struct point head = point_in(c, 0.42, 0.32, 0.58, 0.44);
        if (count > 1) head.x = 0.5 + side * (i == 0 ? -0.13 : i == 1 ? 0.25 : 0.05) + between(c, -0.03, 0.03);
        if (i) head.y += i == 1 ? 0.12 : 0.26;
        struct point foot = {head.x + between(c, -0.08, 0.08), 1.05};
        stem(c, foot, head, size * 0.16, leaf);
        double low = head.y + size * 1.1;
        for (int k = 0; k < 3; k++) {
            double y = low + (1 - low) * (0.25 + 0.28 * k), tilt = between(c, -0.09, 0.02);
            heart_leaf(c, (struct point){head.x * 0.6 + foot.x * 0.4, y}, size * 0.85, k % 2 ? tilt : 0.5 - tilt,
                       k % 2 ? leaf : shaded(c, leaf, 0.2));
        }
        glow(c, head.x, head.y + size * 0.2, size * 1.25, size * 1.25, c->light.shadow, 0.3);
        sunflower_head(c, head, size, lit(c, vary(c, petal, 0.02), 0), seed, 1);
    }
}

/* ------------------------------------------------------------------------------------------------ tulip */

/* A cup of five petals around the origin, one unit high; `open` spreads its tips. */
static void tulip_cup(struct canvas *c, struct rgb colour, struct rgb edge, double open)
{
    struct rgb back = shaded(c, colour, 0.5), dark = shaded(c, colour, 0.35), bright = brighten(colour, 0.14);
    double tip = 0.24 + open;
    for (int side = -1; side <= 1; side += 2) { /* behind */
        cairo_move_to(c->cr, 0, 0);
        cairo_curve_to(c->cr, side * 0.45, -0.3, side * 0.35, -0.7, side * 0.17, -0.98);
        cairo_curve_to(c->cr, side * 0.02, -0.8, 0, -0.6, 0, 0);
        paint_down(c, -1, mix(back, edge, 0.4), 0, back);
    }
    for (int side = -1; side <= 1; side += 2) { /* the sides */
        cairo_move_to(c->cr, 0, 0);
        cairo_curve_to(c->cr, side * 0.52, 0.02, side * 0.5, -0.55, side * tip, -0.95);
        cairo_curve_to(c->cr, side * 0.12, -0.75, side * 0.02, -0.45, 0, 0);
        struct rgb tone = side == (int)c->light.side ? bright : dark;
        paint_down(c, -0.95, mix(tone, edge, 0.55), -0.1, tone);
    }
    cairo_move_to(c->cr, 0, 0.02); /* in front */
    cairo_curve_to(c->cr, -0.38, 0, -0.34, -0.55, 0, -0.88);
    cairo_curve_to(c->cr, 0.34, -0.55, 0.38, 0, 0, 0.02);
    paint_between(c, c->light.side * 0.25, -0.7, mix(bright, edge, 0.35), -c->light.side * 0.25, 0, dark);
    cairo_move_to(c->cr, 0, -0.05);
    cairo_line_to(c->cr, 0, -0.7);
    stroke(c, 0.02, dark, 0.45);
}

static void tulip_leaf(struct canvas *c, struct point foot, double h, double side, struct rgb green)
{
    double x = foot.x, y = foot.y, bend = side * h * between(c, 0.2, 0.5), w = h * 0.13;
    cairo_move_to(c->cr, x - w * 0.4, y);
    cairo_curve_to(c->cr, x - w + side * w, y - h * 0.4, x + bend * 0.2 - w, y - h * 0.7, x + bend, y - h);
    cairo_curve_to(c->cr, x + bend * 0.5 + w, y - h * 0.6, x + w * 1.3, y - h * 0.3, x + w * 0.4, y);
    paint_between(c, x, y - h, brighten(green, 0.14), x, y, shaded(c, green, 0.5));
}

static void tulip(struct canvas *c, struct point foot, struct point head, double size, struct rgb colour, struct rgb green)
{
    struct rgb edge = brighten(mix(colour, hex(0xffe08a), 0.35), 0.3);
    double open = between(c, -0.04, 0.12), lean = (head.x - foot.x) * 0.3;
    tulip_leaf(c, foot, size * between(c, 1.2, 2), -1, shaded(c, green, 0.15));
    stem(c, foot, head, size * 0.085, green);
    tulip_leaf(c, foot, size * between(c, 1.1, 1.8), 1, green);
    place_begin(c, head.x, head.y, size, lean);
    tulip_cup(c, colour, edge, open);
    place_end(c);
}

/* Stripes of colour that run to the horizon. */
static void tulip_field(struct canvas *c, double horizon, struct rgb green)
{
    double vanish = between(c, 0.2, 0.8), width = between(c, 0.1, 0.22);
    path_box(c, 0, horizon, 1, 1 - horizon);
    paint_down(c, horizon, lit(c, green, 0.35), 1, shaded(c, lit(c, green, 0), 0.3));
    for (int i = -9; i <= 9; i++) {
        struct rgb row = lit(c, CHOOSE(c, 0xe4566a, 0xf3b23f, 0xe88ab2, 0xf6efe2, 0xb06ac0, 0xf0763f), 0.15);
        double x0 = vanish + i * 0.03 * width / 0.15, x1 = vanish + i * width * 2.2;
        POLYGON(c, {x0 - 0.012, horizon + 0.004}, {x0 + 0.008, horizon + 0.004}, {x1 + width * 0.75, 1.02},
                {x1 - width * 0.75, 1.02});
        paint_down(c, horizon, mix(row, c->light.haze, 0.4), 1, row);
        for (int k = 0; k < 16; k++) {
            double t = between(c, 0.15, 1), s = 0.004 + 0.016 * t * t,
                   x = x0 + (x1 - x0) * t + width * between(c, -0.7, 0.7) * t;
            path_ellipse(c, x, horizon + (1 - horizon) * t, s * 0.8, s);
        }
        paint(c, brighten(row, 0.18), 0.8);
    }
}

static void windmill(struct canvas *c, double x, double y, double h)
{
    struct rgb brick = lit(c, CHOOSE(c, 0xa5654a, 0x8f7a6a, 0xd8cfc2), 0.2), wood = lit(c, hex(0x5a463c), 0.2);
    POLYGON(c, {x - h * 0.2, y}, {x - h * 0.11, y - h * 0.7}, {x + h * 0.11, y - h * 0.7}, {x + h * 0.2, y});
    paint_round(c, x - h * 0.2, x + h * 0.2, brick);
    SMOOTH(c, true, {x - h * 0.14, y - h * 0.68}, {x - h * 0.08, y - h * 0.83}, {x + h * 0.08, y - h * 0.83},
           {x + h * 0.14, y - h * 0.68});
    paint(c, wood, 1);
    double turn = between(c, 0, 0.25);
    for (int i = 0; i < 4; i++) {
        place_begin(c, x, y - h * 0.74, h, turn + i / 4.0);
        path_box(c, 0, -0.008, 0.5, 0.016);
        paint(c, wood, 1);
        path_box(c, 0.12, 0.012, 0.38, 0.08);
        paint(c, lit(c, hex(0xfaf2e2), 0.15), 0.92);
        place_end(c);
    }
}

void scene_tulip(struct canvas *c)
{
    choose_light(c, LIGHT_BRIGHT | LIGHT_DUSK | LIGHT_OVERCAST);
    double horizon = between(c, 0.42, 0.56);
    struct rgb green = CHOOSE(c, 0x6a9f55, 0x5a9460, 0x7fa850);
    sky(c, horizon);
    struct ridge far = ridge_make(c, horizon + 0.01, 0.04, between(c, 2, 4), 3);
    hills(c, &far, mix(green, hex(0x5f8aa0), 0.5), 0.5);
    tulip_field(c, horizon, green);
    if (chance(c, 0.45)) {
        double h = between(c, 0.2, 0.3), x = chance(c, 0.5) ? 0.16 : 0.84;
        windmill(c, x, horizon + 0.015, h);
    }
    veil(c, 0.8, 0, 1, 0.35, shaded(c, lit(c, green, 0), 0.8));
    int count = between_int(c, 1, 6);
    bool mixed = chance(c, 0.5);
    struct rgb first = CHOOSE(c, 0xe0465a, 0xf2a53a, 0xe87fae, 0xf7efe6, 0x9a5ab5, 0xee6a3f, 0xf5d04f);
    double size = count == 1 ? 0.3 : count == 2 ? 0.25 : 0.2;
    for (int i = 0; i < count; i++) {
        double x = (i + 0.5) / count * 0.9 + 0.05 + between(c, -0.05, 0.05), s = size * between(c, 0.85, 1.15);
        struct rgb colour = first;
        if (mixed) colour = CHOOSE(c, 0xe0465a, 0xf2a53a, 0xe87fae, 0xf7efe6, 0x9a5ab5, 0xee6a3f, 0xf5d04f);
        struct point head = {x, between(c, 0.45, 0.68)}, foot = {x + between(c, -0.06, 0.06), 1.06};
        tulip(c, foot, head, s, lit(c, vary(c, colour, 0.03), 0), lit(c, green, 0));
    }
    grass(c, 0.97, 1.04, 40, 0.06, lit(c, green, 0));
}
