/* Scenes among trees: forest, mushroom, tree. */
#include "scenes.h"

#include <math.h>

/* ----------------------------------------------------------------------------------------------- forest */

enum wood_kind { CONIFERS, BIRCHES, BROADLEAVES };

static void birch_marks(struct canvas *c, double x, double w, struct rgb bark)
{
    for (int i = 0; i < 16; i++) {
        double y = between(c, 0, 0.95), l = w * between(c, 0.3, 0.9), side = chance(c, 0.5) ? -1 : 1;
        path_leaf(c, (struct point){x + side * w * 0.5, y}, (struct point){x + side * (w * 0.5 - l), y + 0.004}, 0.12);
        paint(c, shaded(c, mix(bark, hex(0x3a3436), 0.8), 0.3), 0.85);
    }
}

static void trunk(struct canvas *c, double x, double foot, double w, struct rgb bark, enum wood_kind kind)
{
    double lean = between(c, -0.03, 0.03);
    cairo_move_to(c->cr, x + lean - w * 0.36, -0.02);
    cairo_curve_to(c->cr, x + lean * 0.5 - w * 0.42, foot * 0.5, x - w * 0.5, foot * 0.85, x - w * 0.95, foot + w * 0.1);
    cairo_curve_to(c->cr, x - w * 0.3, foot + w * 0.3, x + w * 0.3, foot + w * 0.3, x + w * 0.95, foot + w * 0.1);
    cairo_curve_to(c->cr, x + w * 0.5, foot * 0.85, x + lean * 0.5 + w * 0.42, foot * 0.5, x + lean + w * 0.36, -0.02);
    paint_round(c, x - w * 0.6, x + w * 0.6, bark);
    if (kind == BIRCHES) {
        birch_marks(c, x + lean * 0.4, w * 0.85, bark);
        return;
    }
    for (int i = 0; i < 5; i++) { /* furrows */
        double u = (i - 2) * 0.17 * w, y0 = between(c, -0.1, 0.4), y1 = y0 + between(c, 0.2, 0.5);
        cairo_move_to(c->cr, x + lean * (1 - y0) + u * 0.9, y0);
        cairo_line_to(c->cr, x + lean * (1 - fmin(y1, foot)) * 0.7 + u, fmin(y1, foot - 0.01));
        stroke(c, w * 0.05, shaded(c, bark, 0.9), 0.45);
    }
}

/* Branches of a spruce hang into the picture from a far trunk. */
static void spruce(struct canvas *c, double x, double foot, double w, struct rgb bark, struct rgb needle)
{
    trunk(c, x, foot, w, bark, CONIFERS);
    int tiers = between_int(c, 4, 7);
    for (int i = 0; i < tiers; i++) {
        double y = foot * (0.5 * i / tiers - 0.04), reach = w * (1.9 + 0.3 * i) * fmin(1, 0.05 / w);
        for (int side = -1; side <= 1; side += 2) {
            double r = reach * between(c, 0.7, 1.15);
            cairo_move_to(c->cr, x, y);
            cairo_curve_to(c->cr, x + side * r * 0.4, y + r * 0.1, x + side * r * 0.8, y + r * 0.35, x + side * r,
                           y + r * 0.62);
            cairo_curve_to(c->cr, x + side * r * 0.7, y + r * 0.5, x + side * r * 0.4, y + r * 0.55, x, y + r * 0.4);
            struct rgb tone = side == (int)c->light.side ? brighten(needle, 0.1) : shaded(c, needle, 0.25);
            paint_down(c, y, shaded(c, tone, 0.35), y + r * 0.6, tone);
        }
    }
}

static void sunbeams(struct canvas *c, double strength)
{
    double x = 0.5 + c->light.side * 0.45;
    for (int i = 0; i < 6; i++) {
        double at = x - c->light.side * (0.1 + 0.22 * i) + between(c, -0.05, 0.05), w = between(c, 0.03, 0.09);
        double slope = -c->light.side * between(c, 0.3, 0.45);
        POLYGON(c, {x - c->light.side * 0.12 * i, -0.02}, {x - c->light.side * 0.12 * i + w * 0.6, -0.02}, {at + slope + w, 1},
                {at + slope - w, 1});
        paint_fade(c, 0, 0, strength, 0, 0.85, 0, c->light.sun);
    }
}

static void forest_path(struct canvas *c, double y, struct rgb soil)
{
    double bend = between(c, -0.3, 0.3), at = between(c, 0.4, 0.6);
    cairo_move_to(c->cr, at - 0.01, y);
    cairo_curve_to(c->cr, at - 0.05 + bend, y + 0.1, at - bend * 0.5 - 0.2, y + 0.18, at - 0.28, 1.02);
    cairo_line_to(c->cr, at + 0.26, 1.02);
    cairo_curve_to(c->cr, at - bend * 0.5 + 0.12, y + 0.18, at + 0.03 + bend, y + 0.1, at + 0.02, y);
    paint_down(c, y, mix(soil, c->light.haze, 0.5), 1, soil);
}

static void canopy(struct canvas *c, struct rgb leaf)
{
    for (int i = 0; i < 9; i++) {
        double x = (i + between(c, 0, 1)) / 9, r = between(c, 0.08, 0.15);
        foliage(c, x, between(c, -0.05, 0.03), r * 1.3, r, i % 2 ? leaf : shaded(c, leaf, 0.3));
    }
}

void scene_forest(struct canvas *c)
{
    choose_light(c, LIGHT_ANY & ~LIGHT_DUSK);
    enum wood_kind kind = (enum wood_kind)between_int(c, 0, 2);
    bool autumn = kind != CONIFERS && chance(c, 0.45);
    struct rgb leaf = autumn ? CHOOSE(c, 0xd98a35, 0xe0a83f, 0xc9663a) : CHOOSE(c, 0x5f9a4f, 0x7aa84f, 0x4f8f62);
    struct rgb bark = kind == BIRCHES ? CHOOSE(c, 0xf2ece2, 0xe6e2de) : CHOOSE(c, 0x6f5240, 0x5c4a44, 0x7d5a42);
    struct rgb needle = CHOOSE(c, 0x2f5f4c, 0x356a4a, 0x2a5a58),
               floor_colour = autumn ? mix(leaf, hex(0x8a6a3f), 0.4) : hex(0x6f9a50);
    struct rgb mist = mix(c->light.haze, mix(leaf, c->light.sky[3], 0.5), c->light.dark ? 0.15 : 0.45);
    c->light.haze = mist;
    path_box(c, 0, 0, 1, 1);
    paint_down(c, 0, mix(mist, lit(c, kind == CONIFERS ? needle : leaf, 0), 0.35), 0.75,
               brighten(mist, c->light.dark ? 0.05 : 0.35));
    glow(c, 0.5 + c->light.side * 0.25, 0.35, 0.6, 0.6, c->light.sun, c->light.dark ? 0.35 : 0.7);
    if (c->light.dark) stars(c, 25, 0.4);
    double ground = between(c, 0.66, 0.74);
    for (int layer = 0; layer < 4; layer++) {
        double far = 0.72 - 0.24 * layer, foot = ground + 0.055 * layer + 0.035 * layer * layer * 0.6;
        int count = 12 - 3 * layer;
        struct ridge land = ridge_make(c, foot, 0.035, between(c, 1.5, 3), 2);
        hills(c, &land, floor_colour, clamp01(far));
        if (layer == 2 && chance(c, 0.6)) forest_path(c, foot - 0.02, lit(c, autumn ? hex(0xb58a55) : hex(0xc9ad80), 0.1));
        for (int i = 0; i < count; i++) {
            double x = (i + between(c, 0.1, 0.9)) / count, w = between(c, 0.018, 0.028) * (1 + 0.75 * layer);
            if (layer == 3 && fabs(x - 0.5) < 0.22) x = x < 0.5 ? x - 0.2 : x + 0.2;
            struct rgb wood = lit(c, vary(c, bark, 0.02), clamp01(far));
            if (kind == CONIFERS)
                spruce(c, x, foot, w, wood, lit(c, needle, clamp01(far)));
            else
                trunk(c, x, foot, w, wood, kind);
            if (kind == CONIFERS || layer == 3) continue;
            struct rgb tone = lit(c, vary(c, leaf, 0.04), clamp01(far));
            foliage(c, x, between(c, 0, 0.12 + 0.06 * layer), 0.1 + 0.02 * layer, 0.09, tone);
        }
        veil(c, foot - 0.3, 0, foot + 0.1, 0.3 - 0.08 * layer, mist);
    }
    if (!c->light.dark && c->light.kind != LIGHT_OVERCAST) sunbeams(c, between(c, 0.15, 0.4));
    if (kind != CONIFERS) canopy(c, lit(c, leaf, 0));
    grass(c, ground + 0.16, 1.02, 130, 0.05, lit(c, floor_colour, 0));
    int ferns = between_int(c, 2, 6);
    for (int i = 0; i < ferns; i++) {
        struct point at = point_in(c, 0, 0.9, 1, 1.02);
        fern(c, at.x, at.y, between(c, 0.07, 0.13), lit(c, autumn ? hex(0xb5863c) : hex(0x4f8a48), 0));
    }
    if (autumn)
        for (int i = 0; i < 40; i++) {
            struct point at = point_in(c, 0, 0.3, 1, 1);
            double dx = between(c, -0.02, 0.02);
            path_leaf(c, at, (struct point){at.x + dx, at.y + 0.012}, 0.4);
            paint(c, brighten(lit(c, leaf, 0), 0.15), 0.85);
        }
}

/* --------------------------------------------------------------------------------------------- mushroom */

struct toadstool {
    double x, y, height, cap; /* foot, to the rim, half width of the cap */
    struct rgb top, stem;
    bool spots;
    double dome; /* height of the cap, in half widths */
};

static void cap_outline(struct canvas *c, const struct toadstool *m, double y)
{
    double w = m->cap, h = m->cap * m->dome;
    cairo_move_to(c->cr, m->x - w, y);
    cairo_curve_to(c->cr, m->x - w * 0.95, y - h * 0.75, m->x - w * 0.5, y - h, m->x, y - h);
    cairo_curve_to(c->cr, m->x + w * 0.5, y - h, m->x + w * 0.95, y - h * 0.75, m->x + w, y);
    cairo_curve_to(c->cr, m->x + w * 0.9, y + w * 0.22, m->x - w * 0.9, y + w * 0.22, m->x - w, y);
    cairo_close_path(c->cr);
}

static void toadstool(struct canvas *c, const struct toadstool *m)
{
    double rim = m->y - m->height, s = m->cap * 0.26, w = m->cap, lean = between(c, -0.15, 0.15) * m->cap;
    glow(c, m->x - c->light.side * w * 0.3, m->y + 0.005, w * 1.1, w * 0.25, c->light.shadow, 0.75);
    cairo_move_to(c->cr, m->x - s * 0.8, rim);
    cairo_curve_to(c->cr, m->x - s * 0.7 + lean, rim + m->height * 0.5, m->x - s * 1.5, m->y - s, m->x - s * 1.35, m->y);
    cairo_curve_to(c->cr, m->x - s, m->y + s * 0.5, m->x + s, m->y + s * 0.5, m->x + s * 1.35, m->y);
    cairo_curve_to(c->cr, m->x + s * 1.5, m->y - s, m->x + s * 0.7 + lean, rim + m->height * 0.5, m->x + s * 0.8, rim);
    paint_round(c, m->x - s * 1.4, m->x + s * 1.4, m->stem);
    path_ellipse(c, m->x, rim + w * 0.12, w * 0.8, w * 0.2); /* shade under the cap */
    paint_fade(c, 0, rim, 0.55, 0, rim + w * 0.35, 0, shaded(c, c->light.shadow, 0.3));
    if (chance(c, 0.6)) { /* the ring */
        SMOOTH(c, true, {m->x - s, rim + w * 0.34}, {m->x, rim + w * 0.4}, {m->x + s, rim + w * 0.34},
               {m->x + s * 1.5, rim + w * 0.52}, {m->x, rim + w * 0.58}, {m->x - s * 1.5, rim + w * 0.52});
        paint_down(c, rim + w * 0.35, brighten(m->stem, 0.25), rim + w * 0.58, shaded(c, m->stem, 0.4));
    }
    path_ellipse(c, m->x, rim + w * 0.02, w * 0.93, w * 0.19); /* gills */
    paint_down(c, rim - w * 0.1, shaded(c, m->stem, 0.75), rim + w * 0.2, shaded(c, m->stem, 0.2));
    for (int i = -7; i <= 7; i++) {
        cairo_move_to(c->cr, m->x + i * w * 0.03, rim);
        cairo_line_to(c->cr, m->x + i * w * 0.12, rim + w * 0.19 * sqrt(1 - i * i / 64.0));
    }
    stroke(c, 0.003, shaded(c, m->stem, 0.9), 0.5);
    cap_outline(c, m, rim);
    paint_ball(c, m->x, rim - w * m->dome * 0.35, w * 1.1, brighten(m->top, 0.22), shaded(c, m->top, 0.75));
}

/* Warts: larger in the middle of the cap, flatter towards its rim. */
static void warts(struct canvas *c, const struct toadstool *m)
{
    double rim = m->y - m->height, h = m->cap * m->dome;
    struct rgb white = lit(c, hex(0xfff8ec), 0);
    cap_outline(c, m, rim);
    clip(c);
    for (int row = 0; row < 4; row++) {
        int count = 2 + row * 2;
        double start = between(c, -0.5, 0.5);
        for (int i = 0; i < count; i++) {
            double u = ((i + 0.5 + start * 0.5) / count * 2 - 1), v = (row + 0.35) / 4,
                   r = m->cap * between(c, 0.06, 0.13) * (1.1 - 0.5 * v);
            double x = m->x + u * m->cap * (0.2 + 0.75 * sqrt(v)), y = rim - h * (1 - v) * (1 - 0.25 * u * u) + h * 0.08;
            path_blob(c, x, y, r * (1 - 0.35 * fabs(u)), r * 0.8, 0.12);
            paint_ball(c, x, y, r, white, shaded(c, white, 0.35));
        }
    }
    unclip(c);
}

static void forest_floor(struct canvas *c, struct rgb moss)
{
    struct ridge back = ridge_make(c, 0.72, 0.06, 2, 3), near = ridge_make(c, 0.84, 0.06, between(c, 1.5, 3), 3);
    hills(c, &back, moss, 0.35);
    for (int i = 0; i < 5; i++) {
        double x = between(c, 0, 1);
        fern(c, x, 0.74, between(c, 0.1, 0.2), lit(c, mix(moss, hex(0x2f5f45), 0.5), 0.35));
    }
    hills(c, &near, moss, 0.02);
    mottle(c, (struct point){-0.1, 0.78}, (struct point){1.2, 0.35}, (struct point){8, 6}, 0, 0.6,
           shaded(c, lit(c, moss, 0), 0.8), 0.5);
}

void scene_mushroom(struct canvas *c)
{
    choose_light(c, LIGHT_ANY & ~LIGHT_OVERCAST);
    struct rgb moss = CHOOSE(c, 0x6f9a4c, 0x86a352, 0x5a8a55, 0x9a8f4a),
               deep = CHOOSE(c, 0x2f5f55, 0x3f6a48, 0x4a5f3c, 0x3a5570);
    struct rgb top = lit(c, deep, 0.1), glowing = mix(lit(c, moss, 0.3), c->light.sun, 0.4);
    path_box(c, 0, 0, 1, 1);
    paint_down(c, 0, shaded(c, top, 0.35), 0.75, glowing);
    glow(c, 0.5 + c->light.side * 0.3, 0.25, 0.6, 0.55, c->light.sun, 0.5);
    for (int i = 0; i < 5; i++) { /* far trunks */
        double x = (i + between(c, 0, 1)) / 5, w = between(c, 0.03, 0.08);
        path_box(c, x - w / 2, 0, w, 0.75);
        paint_fade(c, 0, 0, 0.55, 0, 0.75, 0.25, shaded(c, lit(c, hex(0x5f4a3f), 0.2), 0.5));
    }
    bokeh(c, between_int(c, 10, 22), mix(c->light.sun, hex(0xd8f0a0), 0.3), 0.3);
    forest_floor(c, moss);
    bool spots = chance(c, 0.65);
    struct rgb cap =
        spots ? CHOOSE(c, 0xd8402f, 0xe05a2f, 0xc93548, 0xe0872f) : CHOOSE(c, 0xb5763f, 0x9a5f3a, 0xe0b45f, 0x8f6fa8, 0xd9a07a);
    struct toadstool m = {.top = lit(c, cap, 0), .stem = lit(c, hex(0xfbf1dc), 0), .spots = spots};
    int count = between_int(c, 1, 4);
    double x0 = between(c, 0.42, 0.58), side = chance(c, 0.5) ? -1 : 1;
    for (int i = count; i-- > 0;) {
        double size = i ? between(c, 0.35, 0.6) : 1, step = i ? (i % 2 ? 1 : -1) * side * between(c, 0.22, 0.34) : 0;
        m.x = x0 + step;
        m.y = i ? between(c, 0.84, 0.93) : 0.88;
        m.cap = size * between(c, 0.21, 0.27);
        m.height = size * between(c, 0.32, 0.42);
        m.dome = between(c, 0.72, 1.05);
        toadstool(c, &m);
        if (spots) warts(c, &m);
    }
    grass(c, 0.88, 1.03, 110, 0.075, lit(c, moss, 0));
    int leaves = between_int(c, 0, 9);
    for (int i = 0; i < leaves; i++) {
        struct point at = point_in(c, 0.02, 0.9, 0.95, 0.98);
        double dx = between(c, -0.06, 0.06);
        path_leaf(c, at, (struct point){at.x + dx, at.y + 0.03}, 0.3);
        paint(c, lit(c, CHOOSE(c, 0xd98a3a, 0xc9663a, 0xe0b04a), 0), 0.95);
    }
    if (c->light.dark)
        for (int i = 0; i < 14; i++) { /* fireflies */
            struct point at = point_in(c, 0, 0.2, 1, 0.9);
            glow(c, at.x, at.y, 0.022, 0.022, hex(0xf4ff9a), 1);
        }
}

/* ------------------------------------------------------------------------------------------------- tree */

enum season { SPRING, SUMMER, AUTUMN, WINTER };

static void strew(struct canvas *c, double x, double y, double spread, struct rgb leaf)
{
    for (int i = 0; i < 70; i++) {
        struct point at = point_in(c, x - spread, y - 0.01, x + spread, y + 0.07);
        path_ellipse(c, at.x, at.y, 0.008, 0.004);
        paint(c, chance(c, 0.5) ? leaf : brighten(leaf, 0.3), 0.85);
    }
}

static void swing(struct canvas *c, double x, double y0, double y1)
{
    double w = 0.035;
    cairo_move_to(c->cr, x - w, y0);
    cairo_line_to(c->cr, x - w, y1);
    cairo_move_to(c->cr, x + w, y0);
    cairo_line_to(c->cr, x + w, y1);
    stroke(c, 0.004, lit(c, hex(0x5f4a3a), 0), 1);
    path_round_box(c, x - w * 1.3, y1 - 0.005, w * 2.6, 0.014, 0.004);
    paint(c, lit(c, hex(0xb5763f), 0), 1);
}

void scene_tree(struct canvas *c)
{
    enum { TIPS = 128 };
    choose_light(c, LIGHT_ANY);
    enum season season = (enum season)between_int(c, 0, 3);
    static const unsigned turfs[4] = {0xa3c76a, 0x84b058, 0xc4a852, 0xf1f5fb};
    struct rgb turf = vary(c, hex(turfs[season]), 0.03);
    struct rgb leaf = season == SPRING   ? CHOOSE(c, 0xf6b7c8, 0xfbd0dc, 0xf19ab5)
                      : season == SUMMER ? CHOOSE(c, 0x5f9f4c, 0x4f8f55, 0x7fb04f)
                                         : CHOOSE(c, 0xe08a35, 0xd9603a, 0xe8b03f, 0xc94a3f);
    double horizon = between(c, 0.68, 0.78), x = between(c, 0.38, 0.62), h = between(c, 0.66, 0.78);
    sky(c, horizon);
    for (int i = 0; i < 2; i++) {
        struct ridge far = ridge_make(c, horizon - 0.03 + 0.05 * i, 0.1, between(c, 1.2, 3), 3);
        hills(c, &far, mix(turf, hex(0x6f93a8), 0.5 - 0.25 * i), 0.5 - 0.2 * i);
        if (i && chance(c, 0.6))
            wood_line(c, &far, 16, 0.045, lit(c, mix(turf, hex(0x2f5f4a), 0.6), 0.35), season == WINTER ? 0.6 : 0);
    }
    double foot = horizon + 0.1;
    SMOOTH(c, true, {-0.1, 1.1}, {-0.1, foot + 0.06}, {x - 0.3, foot + 0.02}, {x, foot - 0.015}, {x + 0.3, foot + 0.02},
           {1.1, foot + 0.06}, {1.1, 1.1});
    struct rgb near = lit(c, turf, 0);
    paint_down(c, foot, brighten(near, 0.08), 1, shaded(c, near, 0.45));
    glow(c, x - c->light.side * 0.12, foot + 0.03, 0.36, 0.05, c->light.shadow, 0.75);
    struct point tips[TIPS];
    double tall = season == WINTER ? h : h * 0.92;
    size_t count = branches(c, x, foot + 0.01, tall, lit(c, CHOOSE(c, 0x6a4a3a, 0x5a4540, 0x7a5a48), 0), tips, TIPS);
    if (season == WINTER) {
        for (size_t i = 0; i < count; i += 2) {
            double r = between(c, 0.006, 0.014);
            path_ellipse(c, tips[i].x, tips[i].y, r * 1.5, r);
        }
        paint(c, lit(c, hex(0xffffff), 0), 0.95);
        snowfall(c, between_int(c, 0, 120));
    } else {
        struct rgb crown = lit(c, leaf, 0);
        struct point heart = {x, foot - tall * 0.62}; /* leaves fill the crown from its middle outwards */
        foliage(c, heart.x, heart.y, tall * 0.3, tall * 0.2, shaded(c, crown, 0.5));
        for (size_t i = 0; i < count; i += 4) {
            struct point half = {(heart.x + tips[i].x) / 2, (heart.y + tips[i].y) / 2};
            foliage(c, half.x, half.y, 0.075, 0.065, shaded(c, crown, 0.3));
        }
        for (size_t i = 0; i < count; i += 3)
            foliage(c, tips[i].x, tips[i].y + 0.02, 0.08, 0.07, i % 2 ? crown : shaded(c, crown, 0.15));
        if (season != SUMMER) strew(c, x, foot + 0.01, 0.34, crown);
    }
    if (season != WINTER) grass(c, foot + 0.03, 1.03, 110, 0.045, near);
    if (season == SPRING || season == SUMMER)
        blossoms(c, foot + 0.05, 1, 24, 0.012, lit(c, CHOOSE(c, 0xffffff, 0xf7d95a, 0xe58ab0), 0));
    if (season == SUMMER && chance(c, 0.3)) swing(c, x + between(c, 0.1, 0.16), foot - 0.36, foot - 0.09);
    if (chance(c, 0.5)) birds(c, between(c, 0.1, 0.9), 0.14, 0.02, 3);
}
