/* Scenes of animals: butterfly, cat, fish. */
#include "scenes.h"

#include <math.h>

/* A plain backdrop: a gradient with soft lights, as a lens shows what is out of focus. */
static void soft_backdrop(struct canvas *c, struct rgb colour)
{
    struct rgb low = mix(colour, lch(0.7, 0.1, between(c, 0, 1)), 0.35);
    path_box(c, 0, 0, 1, 1);
    paint_between(c, 0, 0, brighten(lit(c, colour, 0), 0.2), 0.3, 1, shaded(c, lit(c, low, 0), 0.25));
    glow(c, 0.5 + c->light.side * 0.4, 0.1, 0.8, 0.7, c->light.sun, 0.4);
    bokeh(c, between_int(c, 6, 18), brighten(lit(c, low, 0), 0.35), 0.4);
}

/* -------------------------------------------------------------------------------------------- butterfly */

struct wings {
    struct rgb base, tip, edge, spot;
    double sweep, tail;
    int spots;
    bool veins;
};

static void upper_wing(struct canvas *c, const struct wings *w, double grow)
{
    SMOOTH(c, true, {0.02, -0.05}, {0.3 * grow, -0.42 * grow}, {0.72 * grow, (-0.62 - w->sweep) * grow},
           {0.9 * grow, -0.5 * grow}, {0.84 * grow, -0.2 * grow}, {0.55 * grow, 0.05 * grow}, {0.2, 0.08});
}

static void lower_wing(struct canvas *c, const struct wings *w, double grow)
{
    SMOOTH(c, true, {0.02, 0.02}, {0.4 * grow, 0.02}, {0.68 * grow, 0.16 * grow}, {0.66 * grow, 0.42 * grow},
           {(0.42 + w->tail * 0.3) * grow, (0.56 + w->tail) * grow}, {0.3 * grow, 0.5 * grow}, {0.1, 0.26 * grow});
}

/* One side; the caller mirrors it. All numbers were drawn before, so that both sides are alike. */
static void half_butterfly(struct canvas *c, const struct wings *w)
{
    lower_wing(c, w, 1);
    paint(c, w->edge, 1);
    lower_wing(c, w, 0.86);
    paint_between(c, 0.05, 0.05, w->base, 0.6, 0.45, mix(w->base, w->tip, 0.8));
    upper_wing(c, w, 1);
    paint(c, w->edge, 1);
    upper_wing(c, w, 0.88);
    paint_between(c, 0.05, 0, w->base, 0.8, -0.5, w->tip);
    if (w->veins) {
        for (int i = 0; i < 5; i++) {
            double angle = 0.9 + 0.026 * i;
            cairo_move_to(c->cr, 0.06, -0.02);
            cairo_curve_to(c->cr, 0.3, -0.16 + 0.05 * i, 0.5 * cowave(angle), 0.5 * wave(angle), 0.78 * cowave(angle),
                           0.78 * wave(angle));
        }
        for (int i = 0; i < 3; i++) {
            cairo_move_to(c->cr, 0.06, 0.05);
            cairo_line_to(c->cr, 0.54 - 0.13 * i, 0.2 + 0.1 * i);
        }
        stroke(c, 0.014, w->edge, 0.75);
    }
    for (int i = 0; i < 6; i++) path_ellipse(c, 0.885 - 0.012 * i * i * 0.6, -0.5 + 0.085 * i, 0.021, 0.021);
    for (int i = 0; i < 4; i++) path_ellipse(c, 0.66 - 0.03 * i * i, 0.24 + 0.1 * i, 0.018, 0.018);
    paint(c, brighten(w->spot, 0.3), 0.9);
    for (int i = 0; i < w->spots; i++) {
        double x = 0.6 - 0.17 * i, y = i == 0 ? -0.36 : i == 1 ? 0.22 : -0.17, r = 0.085 - 0.012 * i;
        path_ellipse(c, x, y, r, r);
        paint(c, w->edge, 0.9);
        path_ellipse(c, x, y, r * 0.68, r * 0.68);
        paint(c, w->spot, 1);
        path_ellipse(c, x + r * 0.15, y - r * 0.2, r * 0.25, r * 0.25);
        paint(c, hex(0xffffff), 0.9);
    }
}

static void butterfly_body(struct canvas *c, struct rgb ink)
{
    cairo_set_line_cap(c->cr, CAIRO_LINE_CAP_ROUND);
    for (int side = -1; side <= 1; side += 2) {
        cairo_move_to(c->cr, side * 0.02, -0.22);
        cairo_curve_to(c->cr, side * 0.05, -0.4, side * 0.12, -0.5, side * 0.2, -0.56);
        stroke(c, 0.016, ink, 1);
        path_ellipse(c, side * 0.2, -0.56, 0.022, 0.022);
        paint(c, ink, 1);
    }
    path_ellipse(c, 0, 0.2, 0.042, 0.26);
    paint_round(c, -0.045, 0.045, brighten(ink, 0.15));
    path_ellipse(c, 0, -0.06, 0.055, 0.12);
    paint_round(c, -0.06, 0.06, brighten(ink, 0.22));
    path_ellipse(c, 0, -0.2, 0.045, 0.045);
    paint(c, ink, 1);
}

/* A daisy-like flower head. */
static void daisy(struct canvas *c, double x, double y, double r, struct rgb petal, double squash)
{
    for (int ring = 0; ring < 2; ring++)
        for (int i = 0; i < 12; i++) {
            double angle = (i + 0.5 * ring) / 12.0, reach = r * (1 - 0.14 * ring);
            path_leaf(c, (struct point){x, y}, (struct point){x + reach * cowave(angle), y + reach * squash * wave(angle)},
                      0.24);
            paint(c, ring ? petal : shaded(c, petal, 0.3), 1);
        }
    path_ellipse(c, x, y, r * 0.32, r * 0.3 * squash);
    paint_ball(c, x, y, r * 0.32, hex(0xffdf7a), shaded(c, hex(0xe0962f), 0.2));
}

void scene_butterfly(struct canvas *c)
{
    choose_light(c, LIGHT_BRIGHT | LIGHT_OVERCAST);
    soft_backdrop(c, CHOOSE(c, 0xa8cf9a, 0x9fcfd8, 0xf0d2a8, 0xd9c3e8, 0xb7d78a, 0xf2c3c0, 0x8fb8d8));
    struct rgb green = lit(c, CHOOSE(c, 0x6a9f55, 0x5a9468, 0x86ab58), 0);
    grass(c, 1, 1.1, 26, 0.4, mix(green, c->light.haze, 0.35));
    struct rgb bloom = lit(c, CHOOSE(c, 0xf6f0ff, 0xf4a6bd, 0xc99ae0, 0xfdd36a, 0xf08a6a), 0);
    int flowers = between_int(c, 1, 4);
    for (int i = 0; i < flowers; i++) {
        struct point at = point_in(c, i + 0.2, 0.74, i + 0.8, 0.9);
        at.x /= flowers;
        double r = between(c, 0.08, 0.14);
        cairo_move_to(c->cr, at.x, at.y);
        cairo_curve_to(c->cr, at.x, 0.9, at.x + 0.03, 0.95, at.x + 0.02, 1.05);
        stroke(c, 0.012, green, 1);
        daisy(c, at.x, at.y, r, vary(c, bloom, 0.03), 0.8);
    }
    static const double hues[] = {0.02, 0.07, 0.13, 0.17, 0.24, 0.45, 0.55, 0.68, 0.74, 0.82, 0.92};
    struct wings w = {.sweep = between(c, -0.08, 0.1)};
    w.tail = chance(c, 0.4) ? between(c, 0.1, 0.25) : 0;
    double hue = hues[between_int(c, 0, 10)], light = hue > 0.12 && hue < 0.3 ? 0.74 : 0.6;
    double turn = between(c, -0.1, 0.1), gain = between(c, 0.06, 0.16);
    w.base = lit(c, lch(light, 0.16, hue), 0);
    w.tip = lit(c, lch(light + gain, 0.14, hue + turn), 0);
    w.edge = lit(c, chance(c, 0.75) ? hex(0x2c2633) : lch(0.35, 0.1, hue), 0);
    w.spot = lit(c, CHOOSE(c, 0xfdf3d8, 0xf9d36a, 0x8fd0f0, 0xf28a6a), 0);
    w.spots = between_int(c, 0, 3);
    w.veins = chance(c, 0.65);
    double size = between(c, 0.38, 0.47), fold = between(c, 0.72, 1), x = between(c, 0.44, 0.56), y = between(c, 0.4, 0.5);
    glow(c, x - c->light.side * 0.04, y + 0.07, size * 0.95, size * 0.75, c->light.shadow, 0.3);
    place_begin(c, x, y, size, between(c, -0.09, 0.09));
    for (int side = -1; side <= 1; side += 2) {
        cairo_save(c->cr);
        cairo_scale(c->cr, side * fold, 1);
        half_butterfly(c, &w);
        cairo_restore(c->cr);
    }
    butterfly_body(c, lit(c, hex(0x2f2a30), 0));
    place_end(c);
}

/* -------------------------------------------------------------------------------------------------- cat */

struct cat {
    struct rgb fur, pale, dark, eye, inner;
    bool tabby, mask, patch;
    double wide, ear, gaze, lids;
};

static void cat_ear(struct canvas *c, const struct cat *k, double side)
{
    double tip = k->ear;
    SMOOTH(c, true, {side * 0.12, -0.48}, {side * 0.32, -0.78}, {side * (0.56 + tip * 0.2), -1.0 - tip * 0.2},
           {side * 0.72, -0.62}, {side * 0.74, -0.2}, {side * 0.4, -0.3});
    paint_between(c, side * 0.3, -1, brighten(k->fur, 0.05), side * 0.6, -0.3, shaded(c, k->fur, 0.35));
    SMOOTH(c, true, {side * 0.3, -0.5}, {side * 0.53, -0.88 - tip * 0.18}, {side * 0.64, -0.45}, {side * 0.48, -0.38});
    paint_down(c, -0.9, shaded(c, k->inner, 0.25), -0.35, brighten(k->inner, 0.15));
}

static void cat_eye(struct canvas *c, const struct cat *k, double side)
{
    double x = side * 0.35, y = -0.06, h = 0.19 * k->lids;
    SMOOTH(c, true, {x - 0.21, y + side * 0.02}, {x - 0.12, y - h * 0.85}, {x + 0.03 * side, y - h * 1.08},
           {x + 0.13, y - h * 0.85}, {x + 0.21, y - side * 0.02}, {x + 0.1, y + h * 0.85}, {x - 0.1, y + h * 0.85});
    cairo_path_t *shape = cairo_copy_path(c->cr);
    clip(c);
    path_box(c, x - 0.3, y - 0.3, 0.6, 0.6);
    paint_down(c, y - h, shaded(c, k->eye, 0.5), y + h, brighten(k->eye, 0.3));
    path_ellipse(c, x + k->gaze, y, 0.06 + 0.03 * k->lids, h * 0.86);
    paint(c, hex(0x14131c), 1);
    path_ellipse(c, x + k->gaze + 0.055, y - h * 0.4, 0.04, 0.04);
    path_ellipse(c, x + k->gaze - 0.06, y + h * 0.4, 0.02, 0.02);
    paint(c, hex(0xffffff), 0.95);
    unclip(c);
    cairo_append_path(c->cr, shape);
    cairo_path_destroy(shape);
    stroke(c, 0.028, darken(k->dark, 0.55), 0.9);
}

static void cat_markings(struct canvas *c, const struct cat *k)
{
    if (k->patch) {
        path_blob(c, 0.42, -0.3, 0.45, 0.5, 0.12);
        paint(c, k->dark, 0.95);
    }
    if (k->mask) { /* dark points around the face of a Siamese */
        glow(c, 0, 0.15, 0.62, 0.7, k->dark, 1);
    }
    if (k->tabby) {
        for (int i = -1; i <= 1; i++) path_leaf(c, (struct point){i * 0.13, -0.66}, (struct point){i * 0.1, -0.32}, 0.13);
        for (int side = -1; side <= 1; side += 2)
            for (int i = 0; i < 3; i++)
                path_leaf(c, (struct point){side * 0.88, -0.02 + 0.17 * i},
                          (struct point){side * (0.56 - 0.03 * i), 0.06 + 0.11 * i}, 0.12);
        paint(c, k->dark, 0.85);
    }
}

static void cat_muzzle(struct canvas *c, const struct cat *k)
{
    for (int side = -1; side <= 1; side += 2) path_ellipse(c, side * 0.15, 0.31, 0.21, 0.17);
    path_ellipse(c, 0, 0.43, 0.16, 0.12);
    paint_down(c, 0.15, k->pale, 0.55, shaded(c, k->pale, 0.3));
    cairo_set_line_cap(c->cr, CAIRO_LINE_CAP_ROUND);
    cairo_move_to(c->cr, 0, 0.22);
    cairo_line_to(c->cr, 0, 0.3);
    for (int side = -1; side <= 1; side += 2) {
        cairo_move_to(c->cr, 0, 0.3);
        cairo_curve_to(c->cr, side * 0.03, 0.4, side * 0.15, 0.41, side * 0.2, 0.34);
    }
    stroke(c, 0.026, darken(k->dark, 0.5), 0.9);
    SMOOTH(c, true, {-0.1, 0.13}, {0, 0.115}, {0.1, 0.13}, {0, 0.235});
    paint_down(c, 0.12, brighten(k->inner, 0.1), 0.24, shaded(c, k->inner, 0.5));
    for (int side = -1; side <= 1; side += 2)
        for (int i = 0; i < 3; i++) {
            cairo_move_to(c->cr, side * 0.26, 0.27 + 0.05 * i);
            cairo_curve_to(c->cr, side * 0.55, 0.18 + 0.09 * i, side * 0.8, 0.14 + 0.13 * i, side * 1.08, 0.16 + 0.17 * i);
            stroke(c, 0.014, hex(0xffffff), 0.85);
        }
}

/* Head and shoulders, the head one unit in half width. */
static void cat_portrait(struct canvas *c, const struct cat *k, struct rgb collar, double tilt)
{
    SMOOTH(c, true, {-0.62, 0.5}, {0.62, 0.5}, {0.95, 1.2}, {1.1, 2.2}, {-1.1, 2.2}, {-0.95, 1.2});
    paint_round(c, -1, 1, shaded(c, k->fur, 0.2));
    path_blob(c, 0, 1.15, 0.36, 0.5, 0.06);
    paint(c, k->pale, 0.8);
    place_begin(c, 0, 0.1, 1, tilt);
    for (int side = -1; side <= 1; side += 2) cat_ear(c, k, side);
    double w = k->wide;
    SMOOTH(c, true, {0, -0.64}, {0.45 * w, -0.55}, {0.8 * w, -0.15}, {0.92 * w, 0.22}, {0.66 * w, 0.52}, {0.3, 0.67}, {0, 0.7},
           {-0.3, 0.67}, {-0.66 * w, 0.52}, {-0.92 * w, 0.22}, {-0.8 * w, -0.15}, {-0.45 * w, -0.55});
    clip(c);
    path_box(c, -1.2, -1, 2.4, 2);
    paint_ball(c, 0, 0, 1, brighten(k->fur, 0.14), shaded(c, k->fur, 0.5));
    cat_markings(c, k);
    unclip(c);
    for (int side = -1; side <= 1; side += 2) cat_eye(c, k, side);
    cat_muzzle(c, k);
    place_end(c);
    SMOOTH(c, true, {-0.56, 0.72}, {0, 0.9}, {0.56, 0.72}, {0.6, 0.84}, {0, 1.03}, {-0.6, 0.84});
    paint_round(c, -0.6, 0.6, collar);
    path_ellipse(c, 0, 1.06, 0.1, 0.1);
    paint_ball(c, 0, 1.06, 0.1, hex(0xfff0a8), hex(0xc98a2a));
}

void scene_cat(struct canvas *c)
{
    choose_light(c, LIGHT_BRIGHT | LIGHT_OVERCAST);
    soft_backdrop(c, CHOOSE(c, 0x8fc3c0, 0xe8b8a0, 0xa9b6dd, 0xf0cf8f, 0xc3a9cf, 0x9cc494, 0xe6a9b4, 0x7d9fb8));
    static const struct {
        unsigned fur, pale, dark;
    } coats[] = {{0xe39a4c, 0xfdf0dd, 0xb8662a}, {0x9a9ca6, 0xf0f0f2, 0x5f626e}, {0x3b3a44, 0x6a6974, 0x24232c},
                 {0xf6f0e8, 0xffffff, 0xb98a5f}, {0xead7bd, 0xf9efe2, 0x6a4a3f}, {0x8a6748, 0xf0dcc0, 0x4f3828},
                 {0x7c8a9c, 0xb6c0cc, 0x4f5a6c}};
    int coat = between_int(c, 0, 6);
    struct cat k = {.wide = between(c, 0.95, 1.12)};
    k.ear = between(c, -0.3, 0.4);
    k.gaze = between(c, -0.03, 0.03);
    k.lids = between(c, 0.85, 1.15);
    k.fur = lit(c, vary(c, hex(coats[coat].fur), 0.03), 0);
    k.pale = lit(c, hex(coats[coat].pale), 0);
    k.dark = lit(c, hex(coats[coat].dark), 0);
    k.eye = CHOOSE(c, 0x9ac24a, 0xe0b03a, 0x5aa9d8, 0x6fbf8a, 0xd98a35);
    k.inner = lit(c, hex(0xe89a98), 0);
    k.mask = coat == 4;
    k.tabby = !k.mask && coat != 2 && chance(c, 0.65);
    k.patch = coat == 3 && chance(c, 0.6);
    double size = between(c, 0.29, 0.36), x = between(c, 0.42, 0.58), tilt = between(c, -0.035, 0.035);
    struct rgb collar = lit(c, CHOOSE(c, 0xd9483f, 0x3f7fb5, 0x4a9a6a, 0xe0a03a, 0x8f5ab5), 0);
    place_begin(c, x, between(c, 0.48, 0.56), size, 0);
    cat_portrait(c, &k, collar, tilt);
    place_end(c);
}
