/* Scenes of the sea: beach, lighthouse, sailboat. */
#include "scenes.h"

#include <math.h>

static void island(struct canvas *c, double x, double y, double w, double h)
{
    SMOOTH(c, true, {x - w, y}, {x - w * 0.5, y - h * 0.55}, {x - w * 0.1, y - h}, {x + w * 0.35, y - h * 0.6}, {x + w, y},
           {x, y + 0.003});
    struct rgb colour = lit(c, CHOOSE(c, 0x5f8f7f, 0x7c8aa5, 0x6f9a6a), 0.5);
    paint_down(c, y - h, colour, y, mix(colour, c->light.haze, 0.4));
}

/* A white sail far off. */
static void far_sail(struct canvas *c, double x, double y, double h)
{
    POLYGON(c, {x, y - h}, {x + h * 0.5, y - h * 0.1}, {x, y - h * 0.1});
    POLYGON(c, {x - h * 0.05, y - h * 0.85}, {x - h * 0.4, y - h * 0.1}, {x - h * 0.05, y - h * 0.1});
    paint(c, lit(c, hex(0xfffdf5), 0.1), 0.95);
    POLYGON(c, {x - h * 0.45, y - h * 0.08}, {x + h * 0.5, y - h * 0.08}, {x + h * 0.35, y}, {x - h * 0.35, y});
    paint(c, lit(c, hex(0x8a4b3d), 0.15), 1);
}

/* ------------------------------------------------------------------------------------------------ beach */

/* Fronds hang from the crown of a curved trunk. */
static void palm(struct canvas *c, double x, double y, double height, double lean, struct rgb green)
{
    struct rgb bark = lit(c, hex(0x9a7150), 0);
    struct point top = {x + lean, y - height};
    double w = height * 0.035;
    cairo_set_line_cap(c->cr, CAIRO_LINE_CAP_ROUND);
    for (int i = 0; i < 2; i++) {
        double shift = i ? c->light.side * w * 0.3 : 0;
        cairo_move_to(c->cr, x + shift, y);
        cairo_curve_to(c->cr, x + shift, y - height * 0.4, x + lean * 0.4 + shift, y - height * 0.8, top.x, top.y);
        stroke(c, i ? w * 0.7 : w * 1.5, i ? bark : shaded(c, bark, 0.7), 1);
    }
    int fronds = between_int(c, 8, 11);
    for (int i = 0; i < fronds; i++) {
        double turn = 0.5 + (i + between(c, -0.25, 0.25)) / (fronds - 1) * 0.5, reach = height * between(c, 0.36, 0.5);
        double dx = reach * cowave(turn), dy = reach * wave(turn), droop = reach * (0.3 + 0.45 * fabs(cowave(turn)));
        struct rgb tone = i % 2 ? green : shaded(c, green, 0.45);
        cairo_move_to(c->cr, top.x, top.y);
        cairo_curve_to(c->cr, top.x + dx * 0.4, top.y + dy * 0.7 - reach * 0.16, top.x + dx * 0.8, top.y + dy * 0.6, top.x + dx,
                       top.y + dy * 0.5 + droop);
        cairo_curve_to(c->cr, top.x + dx * 0.75, top.y + dy * 0.6 + reach * 0.13, top.x + dx * 0.4,
                       top.y + dy * 0.5 + reach * 0.1, top.x, top.y);
        paint(c, brighten(tone, between(c, 0, 0.14)), 1);
    }
    for (int i = -1; i <= 1; i++) path_ellipse(c, top.x + i * w * 0.9, top.y + w * 0.8, w * 0.65, w * 0.65);
    paint(c, lit(c, hex(0x6d4630), 0), 1);
}

static void umbrella(struct canvas *c, double x, double y, double size, struct rgb a, struct rgb b)
{
    glow(c, x + 0.3 * size, y, size * 1.3, size * 0.2, c->light.shadow, 0.45);
    place_begin(c, x, y, size, between(c, -0.06, 0.06));
    cairo_move_to(c->cr, 0, 0);
    cairo_line_to(c->cr, 0, -1.7);
    stroke(c, 0.06, lit(c, hex(0xf2e6d0), 0), 1);
    enum { GORES = 6 };
    for (int i = 0; i < GORES; i++) {
        double x0 = -1 + 2.0 * i / GORES, x1 = -1 + 2.0 * (i + 1) / GORES;
        cairo_move_to(c->cr, 0, -1.75);
        cairo_curve_to(c->cr, x0 * 0.75, -1.72, x0, -1.2, x0, -0.9);
        cairo_curve_to(c->cr, x0 + 0.1, -1.0, x1 - 0.1, -1.0, x1, -0.9);
        cairo_curve_to(c->cr, x1, -1.2, x1 * 0.75, -1.72, 0, -1.75);
        struct rgb tone = i % 2 ? a : b;
        paint(c, shaded(c, tone, (x0 + x1) * c->light.side > 0 ? 0.05 : 0.4), 1);
    }
    place_end(c);
}

static void starfish(struct canvas *c, double x, double y, double size, struct rgb colour)
{
    place_begin(c, x, y, size, between(c, 0, 1));
    struct point p[10];
    for (int i = 0; i < 10; i++) {
        double r = i % 2 ? 0.45 : 1;
        p[i] = (struct point){r * cowave(i / 10.0), r * wave(i / 10.0)};
    }
    path_smooth(c, p, 10, true);
    paint_ball(c, 0, 0, 1, brighten(colour, 0.2), shaded(c, colour, 0.4));
    place_end(c);
}

static void beach_ball(struct canvas *c, double x, double y, double r)
{
    static const unsigned gores[] = {0xf4f1ea, 0xe9695c, 0xf4f1ea, 0xf3c04c, 0xf4f1ea, 0x4aa3c9};
    glow(c, x - c->light.side * r * 0.6, y + r * 0.85, r * 1.7, r * 0.5, c->light.shadow, 0.6);
    place_begin(c, x, y, r, between(c, 0, 1));
    for (int i = 0; i < 6; i++) {
        cairo_move_to(c->cr, 0.15, -0.1);
        for (int k = 0; k <= 4; k++) {
            double angle = (i + k / 4.0) / 6;
            cairo_line_to(c->cr, cowave(angle), wave(angle));
        }
        paint(c, lit(c, hex(gores[i]), 0), 1);
    }
    place_end(c);
    path_ellipse(c, x, y, r, r);
    paint_fade(c, x + c->light.side * r, y - r, 0, x - c->light.side * r, y + r, 0.55, c->light.shadow);
}

/* The shore runs down the picture in a curve; foam and wet sand follow it. */
static void shore(struct canvas *c, double horizon, struct rgb sand, double side)
{
    uint32_t key = fresh_key(c) & 0xffffffu;
    double reach = between(c, 0.45, 0.8), bend = between(c, 0.3, 0.55);
    for (int band = 0; band < 4; band++) {
        static const double offset[4] = {-0.06, -0.035, -0.02, 0.025};
        cairo_move_to(c->cr, side < 0 ? -0.1 : 1.1, 1.1);
        for (int i = 0; i <= 24; i++) {
            double t = i / 24.0, y = horizon + bend * 0.25 + (1.12 - horizon - bend * 0.25) * t;
            double x = -0.1 + (reach + 0.35) * smooth_step(-0.1, 1, t) + 0.05 * noise_1d(key, t * 5 + 9) + 0.12 * t;
            x -= offset[band] * (0.5 + 1.4 * t);
            cairo_line_to(c->cr, side < 0 ? x : 1 - x, y + offset[band] * 1.2);
        }
        cairo_close_path(c->cr);
        if (band == 0) paint(c, lit(c, hex(0x8fd6d2), 0), 0.55);
        if (band == 1) paint(c, brighten(lit(c, hex(0xffffff), 0), 0.1), 0.9);
        if (band == 2) paint(c, shaded(c, sand, 0.28), 1);
        if (band == 3) paint_down(c, horizon, brighten(sand, 0.12), 1, shaded(c, sand, 0.12));
    }
}

void scene_beach(struct canvas *c)
{
    choose_light(c, LIGHT_ANY & ~LIGHT_NIGHT);
    double horizon = between(c, 0.36, 0.5), side = chance(c, 0.5) ? -1 : 1;
    struct rgb sand = lit(c, CHOOSE(c, 0xf3dcae, 0xeecf9a, 0xf6e6c6, 0xe8c79e), 0);
    sky(c, horizon);
    if (chance(c, 0.6)) {
        struct point at = point_in(c, 0.2, 0, 0.9, 0);
        island(c, at.x, horizon + 0.002, between(c, 0.1, 0.28), 0.07);
    }
    water(c, horizon, 1, CHOOSE(c, 0x2f9fb5, 0x2b8fc0, 0x3fb0b0, 0x3a82b8));
    if (chance(c, 0.5)) far_sail(c, 0.5 - side * between(c, 0, 0.4), horizon + 0.03, 0.07);
    shore(c, horizon, sand, side);
    mottle(c, (struct point){side < 0 ? -0.1 : 0.4, 0.75}, (struct point){0.7, 0.4}, (struct point){5, 9}, 0, 0.8,
           shaded(c, sand, 0.5), 0.3);
    struct rgb a = lit(c, CHOOSE(c, 0xe8685c, 0x3f9ec4, 0xf0b13f, 0xd9679a, 0x46a58b), 0), b = lit(c, hex(0xfdf6ea), 0);
    double thing = between(c, 0, 1);
    double x = fabs((side < 0 ? 0 : 1) - between(c, 0.14, 0.34)), y = between(c, 0.78, 0.88);
    if (thing < 0.7) {
        umbrella(c, x, y, between(c, 0.12, 0.17), a, b);
        POLYGON(c, {x - 0.03, y + 0.03}, {x + 0.13, y + 0.01}, {x + 0.18, y + 0.06}, {x + 0.01, y + 0.085});
        paint_between(c, x, y, mix(a, b, 0.25), x + 0.18, y + 0.08, mix(a, b, 0.6));
    }
    struct point ball = point_in(c, 0.36, 0.88, 0.55, 0.94);
    if (thing > 0.45) beach_ball(c, side < 0 ? ball.x : 1 - ball.x, ball.y, 0.045);
    int stars_count = between_int(c, 0, 3);
    for (int i = 0; i < stars_count; i++) {
        struct point at = point_in(c, 0.05, 0.88, 0.4, 0.97);
        starfish(c, side < 0 ? at.x : 1 - at.x, at.y, 0.025, lit(c, hex(0xf08a5d), 0));
    }
    int palms = chance(c, 0.75) ? between_int(c, 1, 2) : 0;
    struct rgb green = lit(c, CHOOSE(c, 0x3f9160, 0x4b9a4f, 0x2f8068), 0);
    for (int i = 0; i < palms; i++) {
        double inland = between(c, 0.01, 0.1), h = between(c, 0.5, 0.68);
        palm(c, side < 0 ? inland : 1 - inland, 0.86 + 0.08 * i, h, -side * between(c, 0.1, 0.26), green);
    }
    if (chance(c, 0.4)) birds(c, between(c, 0.2, 0.8), horizon * 0.5, 0.02, 4);
}

/* ------------------------------------------------------------------------------------------- lighthouse */

static void beams(struct canvas *c, double x, double y)
{
    for (int side = -1; side <= 1; side += 2) {
        double tilt = between(c, -0.12, 0.06), spread = between(c, 0.08, 0.13);
        POLYGON(c, {x, y}, {x + side * 1.1, y + tilt - spread}, {x + side * 1.1, y + tilt + spread});
        paint_fade(c, x, y, 0.75, x + side * 0.7, y, 0, hex(0xfff2b8));
    }
    glow(c, x, y, 0.16, 0.16, hex(0xfff0b0), 0.9);
}

static void tower(struct canvas *c, double x, double y, double h, struct rgb stripe)
{
    double w0 = h * 0.15, w1 = h * 0.095, lamp = y - h * 1.1;
    struct rgb white = lit(c, hex(0xfbf7ee), 0), iron = lit(c, hex(0x3c4452), 0);
    int bands = between_int(c, 2, 4) * 2 + 1;
    bool spiral = chance(c, 0.3);
    POLYGON(c, {x - w0, y + 0.02}, {x - w1, y - h}, {x + w1, y - h}, {x + w0, y + 0.02});
    clip(c);
    path_box(c, x - w0, y - h, 2 * w0, h + 0.03);
    paint_round(c, x - w0, x + w0, white);
    for (int i = 0; i < bands; i += 2) {
        double y0 = y - h * (i + 1) / bands, y1 = y - h * i / bands, slant = spiral ? h * 0.1 : 0;
        POLYGON(c, {x - w0, y0}, {x + w0, y0 - slant}, {x + w0, y1 - slant}, {x - w0, y1 + 0.02});
        paint_round(c, x - w0, x + w0, stripe);
    }
    unclip(c);
    for (int i = 0; i < 3; i++) {
        path_round_box(c, x - h * 0.018, y - h * (0.25 + 0.25 * i), h * 0.036, h * 0.065, h * 0.015);
        paint(c, c->light.dark ? hex(0xffd98a) : lit(c, hex(0x47566b), 0), 1);
    }
    path_box(c, x - w1 * 1.35, y - h * 1.02, w1 * 2.7, h * 0.035);
    paint_round(c, x - w1 * 1.35, x + w1 * 1.35, iron);
    path_box(c, x - w1 * 0.75, y - h * 1.15, w1 * 1.5, h * 0.13);
    paint_round(c, x - w1, x + w1, c->light.dark ? hex(0xfff1b5) : lit(c, hex(0xcfe6ee), 0));
    for (int i = -1; i <= 1; i++) path_box(c, x + i * w1 * 0.68 - 0.002, y - h * 1.15, 0.004, h * 0.13);
    paint(c, iron, 1);
    cairo_move_to(c->cr, x - w1 * 0.95, y - h * 1.145);
    cairo_curve_to(c->cr, x - w1 * 0.8, y - h * 1.22, x - w1 * 0.3, y - h * 1.24, x, y - h * 1.27);
    cairo_curve_to(c->cr, x + w1 * 0.3, y - h * 1.24, x + w1 * 0.8, y - h * 1.22, x + w1 * 0.95, y - h * 1.145);
    paint_round(c, x - w1, x + w1, stripe);
    if (c->light.dark) beams(c, x, lamp);
}

/* A headland of rock with a green top and facets away from the light. */
static void headland(struct canvas *c, double x, double top, double side)
{
    struct rgb rock = lit(c, CHOOSE(c, 0x7d6f68, 0x6f7480, 0x8a7560), 0), turf = lit(c, CHOOSE(c, 0x7aa457, 0x93a95a), 0);
    double out = x - side * 0.3, in = x + side * 1.2, y = top;
    SMOOTH(c, true, {out - side * 0.08, 1.05}, {out, y + 0.22}, {out + side * 0.06, y + 0.1}, {x - side * 0.14, y + 0.02},
           {x, y}, {x + side * 0.25, y + 0.02}, {in, y - 0.03}, {in, 1.1});
    clip(c);
    path_box(c, 0, y - 0.1, 1, 1.2 - y);
    paint_down(c, y, brighten(rock, 0.12), 1, shaded(c, rock, 0.7));
    for (int i = 0; i < 16; i++) {
        struct point p = point_in(c, 0, y + 0.06, 1, 1);
        double w = between(c, 0.03, 0.08), h = between(c, 0.05, 0.14);
        POLYGON(c, {p.x, p.y}, {p.x + w, p.y + h * 0.3}, {p.x + w * 0.5, p.y + h}, {p.x - w * 0.6, p.y + h * 0.7});
        paint(c, chance(c, 0.5) ? brighten(rock, 0.25) : c->light.shadow, 0.3);
    }
    SMOOTH(c, true, {out - side * 0.1, y - 0.05}, {out, y + 0.13}, {x - side * 0.1, y + 0.075}, {x + side * 0.1, y + 0.08},
           {x + side * 0.4, y + 0.09}, {in, y + 0.04}, {in, y - 0.2});
    paint_down(c, y, brighten(turf, 0.1), y + 0.13, shaded(c, turf, 0.4));
    unclip(c);
}

static void keepers_house(struct canvas *c, double x, double y, double s, struct rgb roof)
{
    path_box(c, x - s, y - s * 0.8, 2 * s, s);
    paint_round(c, x - s, x + s, lit(c, hex(0xf6efe2), 0));
    POLYGON(c, {x - s * 1.15, y - s * 0.78}, {x - s * 0.75, y - s * 1.45}, {x + s * 0.75, y - s * 1.45},
            {x + s * 1.15, y - s * 0.78});
    paint_down(c, y - s * 1.45, brighten(roof, 0.1), y - s * 0.7, shaded(c, roof, 0.4));
    for (int i = -1; i <= 1; i += 2) path_box(c, x + i * s * 0.5 - s * 0.15, y - s * 0.5, s * 0.3, s * 0.34);
    paint(c, c->light.dark ? hex(0xffd27a) : lit(c, hex(0x55697f), 0), 1);
}

void scene_lighthouse(struct canvas *c)
{
    choose_light(c, LIGHT_ANY);
    double horizon = between(c, 0.58, 0.72), side = chance(c, 0.5) ? -1 : 1, x = 0.5 + side * between(c, 0.05, 0.22);
    sky(c, horizon);
    if (chance(c, 0.5)) {
        double far = 0.5 - side * between(c, 0.2, 0.45);
        island(c, far, horizon + 0.002, between(c, 0.1, 0.2), 0.05);
    }
    water(c, horizon, 1, CHOOSE(c, 0x2f7fa5, 0x33708f, 0x2a6aa0, 0x3f8f9f));
    double top = between(c, 0.66, 0.76), h = between(c, 0.4, 0.5);
    struct rgb stripe = lit(c, CHOOSE(c, 0xd64a45, 0xc93f4a, 0x3a6ea8, 0x35404f, 0xdc7a3c), 0);
    headland(c, x, top, side);
    if (chance(c, 0.6)) keepers_house(c, x + side * between(c, 0.13, 0.18), top + 0.035, 0.05, stripe);
    tower(c, x, top + 0.03, h, stripe);
    double foam = x - side * 0.34;
    for (int i = 0; i < 12; i++) {
        double r = between(c, 0.01, 0.035);
        struct point at = point_in(c, -0.12, 0.93, 0.06, 1.01);
        path_ellipse(c, foam + side * at.x, at.y, r * 1.8, r * 0.7);
        paint(c, lit(c, hex(0xffffff), 0.05), 0.6);
    }
    if (chance(c, 0.6)) birds(c, 0.5 - side * 0.2, 0.3, 0.024, between_int(c, 2, 5));
}

/* --------------------------------------------------------------------------------------------- sailboat */

/* The hull sits at the origin, one unit long; the mast is 1.25 high. */
static void boat(struct canvas *c, struct rgb hull, struct rgb sail, struct rgb trim)
{
    double fullness = between(c, 0.12, 0.24);
    cairo_move_to(c->cr, 0, -0.12);
    cairo_line_to(c->cr, 0, -1.28);
    stroke(c, 0.022, lit(c, hex(0x7a5638), 0), 1);
    cairo_move_to(c->cr, 0.025, -1.24);
    cairo_curve_to(c->cr, 0.1 + fullness, -0.95, 0.38 + fullness, -0.5, 0.5, -0.2);
    cairo_curve_to(c->cr, 0.35, -0.17, 0.15, -0.17, 0.025, -0.2);
    cairo_close_path(c->cr);
    paint_between(c, 0, -0.9, c->light.side > 0 ? shaded(c, sail, 0.35) : sail, 0.5, -0.3,
                  c->light.side > 0 ? sail : shaded(c, sail, 0.45));
    for (int i = 1; i < 4; i++) { /* battens */
        cairo_move_to(c->cr, 0.03, -1.24 + 0.26 * i);
        cairo_line_to(c->cr, 0.05 + 0.15 * i, -1.2 + 0.25 * i);
        stroke(c, 0.008, shaded(c, sail, 0.8), 0.5);
    }
    cairo_move_to(c->cr, -0.03, -1.15);
    cairo_curve_to(c->cr, -0.12, -0.8, -0.3, -0.4, -0.52, -0.16);
    cairo_curve_to(c->cr, -0.3, -0.2, -0.15, -0.2, -0.03, -0.24);
    cairo_close_path(c->cr);
    paint_between(c, -0.5, 0, mix(sail, trim, 0.75), 0, 0, shaded(c, mix(sail, trim, 0.75), 0.35));
    POLYGON(c, {0, -1.28}, {0.16, -1.25}, {0, -1.2});
    paint(c, trim, 1);
    cairo_move_to(c->cr, -0.56, -0.14);
    cairo_curve_to(c->cr, -0.3, -0.09, 0.3, -0.09, 0.52, -0.13);
    cairo_curve_to(c->cr, 0.48, 0, 0.42, 0.05, 0.34, 0.08);
    cairo_line_to(c->cr, -0.34, 0.08);
    cairo_curve_to(c->cr, -0.45, 0.03, -0.52, -0.06, -0.56, -0.14);
    paint_down(c, -0.13, brighten(hull, 0.15), 0.08, shaded(c, hull, 0.55));
    cairo_move_to(c->cr, -0.545, -0.11);
    cairo_curve_to(c->cr, -0.3, -0.06, 0.3, -0.06, 0.51, -0.1);
    stroke(c, 0.022, lit(c, hex(0xfff6e0), 0), 0.95);
}

/* The boat upside down, faint and broken by the water. */
static void reflection(struct canvas *c, double x, double y, double size, struct rgb sail, struct rgb hull)
{
    for (int i = 0; i < 26; i++) {
        double t = i / 26.0, w = size * (t < 0.12 ? 0.4 : 0.36 * (1 - t)) * between(c, 0.5, 1.1), dy = size * t * 0.75;
        double shift = size * between(c, -0.06, 0.06) * (0.4 + t);
        path_leaf(c, (struct point){x + shift - w, y + dy}, (struct point){x + shift + w, y + dy}, 0.012 / (w + 0.02));
        paint(c, t < 0.12 ? hull : sail, 0.42 * (1 - 0.7 * t));
    }
}

static void wave_rows(struct canvas *c, double y0, struct rgb colour)
{
    for (int row = 0; row < 3; row++) {
        struct ridge swell = ridge_make(c, y0 + (1 - y0) * row / 2.6, 0.035 + 0.012 * row, between(c, 5, 9), 2);
        path_ridge(c, &swell);
        paint_fade(c, 0, swell.y - 0.03, 0.75, 0, swell.y + 0.13, 0, shaded(c, colour, 0.2 + 0.25 * row));
        for (int i = 0; i <= 80; i++) {
            double x = i / 80.0, y = ridge_at(&swell, x);
            cairo_line_to(c->cr, x, y + 0.002);
        }
        stroke(c, 0.005, brighten(colour, 0.55), 0.6);
    }
}

void scene_sailboat(struct canvas *c)
{
    choose_light(c, LIGHT_ANY);
    double horizon = between(c, 0.52, 0.66), size = between(c, 0.36, 0.48);
    struct rgb sea = CHOOSE(c, 0x2f86b8, 0x2a6f9f, 0x3a9aa8, 0x3b6fa6, 0x2f8f95);
    sky(c, horizon);
    if (chance(c, 0.6)) {
        double far = between(c, 0, 1);
        island(c, far, horizon + 0.002, between(c, 0.15, 0.4), 0.06);
    }
    water(c, horizon, 1, sea);
    if (chance(c, 0.5)) far_sail(c, between(c, 0.05, 0.95), horizon + 0.025, 0.06);
    double x = between(c, 0.36, 0.64), y = horizon + between(c, 0.1, 0.18);
    struct rgb hull = lit(c, CHOOSE(c, 0xa8483c, 0x2f4f7a, 0x7a4a34, 0xf0e6d6, 0x2f6f6a), 0);
    struct rgb sail = lit(c, CHOOSE(c, 0xfffaf0, 0xfff3dd, 0xf9efe8, 0xfae0c0), 0);
    struct rgb trim = lit(c, CHOOSE(c, 0xe0584a, 0xf0a73f, 0x3f8fc0, 0x58a389, 0xfff5e6), 0);
    glow(c, x, y + 0.03, size * 0.7, size * 0.12, shaded(c, c->light.shadow, 0.2), 0.5);
    reflection(c, x, y + 0.02, size, sail, hull);
    cairo_save(c->cr);
    place_begin(c, x, y, size, between(c, -0.025, 0.025));
    if (chance(c, 0.5)) cairo_scale(c->cr, -1, 1);
    boat(c, hull, sail, trim);
    place_end(c);
    cairo_restore(c->cr);
    path_leaf(c, (struct point){x - size * 0.62, y + 0.03}, (struct point){x + size * 0.6, y + 0.03}, 0.03);
    paint(c, lit(c, hex(0xffffff), 0.05), 0.65);
    if (chance(c, 0.55)) wave_rows(c, y + 0.1, lit(c, sea, 0));
    if (chance(c, 0.6)) birds(c, between(c, 0.2, 0.8), horizon * 0.4, 0.022, 3);
}
