/* Scenes in the air and above it: balloon, planet. */
#include "scenes.h"

#include <math.h>

/* ---------------------------------------------------------------------------------------------- balloon */

enum envelope { GORES, RAINBOW, BAND, ZIGZAG, CHECKS, ENVELOPES };

struct balloon {
    struct rgb colours[3];
    enum envelope pattern;
    int gores;
};

/* Half the width of the envelope at height t, 0 its crown, 1 its mouth. */
static double girth(double t)
{
    double round = sqrt(fmax(0, 1 - (t / 0.45 - 1) * (t / 0.45 - 1)));
    return t < 0.45 ? round : 1 - 0.86 * smooth_step(0.3, 1.12, t) * (t - 0.45) / 0.55 * 1.08;
}

/* A patch between two meridians (-1..1) and two heights. */
static void path_patch(struct canvas *c, double u0, double u1, double t0, double t1)
{
    enum { STEPS = 12 };
    cairo_new_sub_path(c->cr);
    for (int i = 0; i <= STEPS; i++) {
        double t = t0 + (t1 - t0) * i / STEPS;
        cairo_line_to(c->cr, u0 * girth(t), -1.15 + 2.3 * t);
    }
    for (int i = STEPS; i >= 0; i--) {
        double t = t0 + (t1 - t0) * i / STEPS;
        cairo_line_to(c->cr, u1 * girth(t), -1.15 + 2.3 * t);
    }
    cairo_close_path(c->cr);
}

static struct rgb gore_colour(const struct balloon *b, int gore)
{
    if (b->pattern == RAINBOW) {
        static const unsigned bow[7] = {0xe5554f, 0xf08a43, 0xf5c94e, 0x76b65f, 0x4aa6c4, 0x5a74c4, 0x9a66b8};
        return hex(bow[gore % 7]);
    }
    return b->pattern == GORES ? b->colours[gore % 3 == 2 && b->gores % 3 == 0 ? 2 : gore % 2] : b->colours[0];
}

static void envelope_pattern(struct canvas *c, const struct balloon *b, double u0, double u1, int gore)
{
    if (b->pattern == BAND) {
        path_patch(c, u0, u1, 0.36, 0.56);
        paint(c, b->colours[1], 1);
        path_patch(c, u0, u1, 0.4, 0.52);
        paint(c, gore % 2 ? b->colours[2] : b->colours[1], 1);
    } else if (b->pattern == ZIGZAG) {
        for (int row = 0; row < 3; row++) {
            double t = 0.22 + 0.2 * row, up = gore % 2 ? 0.07 : 0, down = gore % 2 ? 0 : 0.07;
            POLYGON(c, {u0 * girth(t + up), -1.15 + 2.3 * (t + up)}, {u1 * girth(t + down), -1.15 + 2.3 * (t + down)},
                    {u1 * girth(t + down + 0.09), -1.15 + 2.3 * (t + down + 0.09)},
                    {u0 * girth(t + up + 0.09), -1.15 + 2.3 * (t + up + 0.09)});
            paint(c, b->colours[1 + row % 2], 1);
        }
    } else if (b->pattern == CHECKS) {
        for (int row = 0; row < 7; row++) {
            if ((row + gore) % 2) continue;
            path_patch(c, u0, u1, row / 7.0 * 0.92, (row + 1) / 7.0 * 0.92);
        }
        paint(c, b->colours[1], 1);
    }
}

static void basket(struct canvas *c, struct rgb wicker)
{
    for (int i = -1; i <= 1; i += 2) {
        cairo_move_to(c->cr, i * 0.14, 1.12);
        cairo_line_to(c->cr, i * 0.13, 1.55);
        cairo_move_to(c->cr, i * 0.04, 1.14);
        cairo_line_to(c->cr, i * 0.05, 1.55);
    }
    stroke(c, 0.014, lit(c, hex(0x5a4636), 0), 0.9);
    glow(c, 0, 1.24, 0.1, 0.16, hex(0xffb84a), c->light.dark ? 1 : 0.7);
    path_round_box(c, -0.17, 1.52, 0.34, 0.27, 0.05);
    paint_round(c, -0.17, 0.17, wicker);
    for (int i = 1; i < 4; i++) path_box(c, -0.165, 1.54 + 0.06 * i, 0.33, 0.012);
    paint(c, shaded(c, wicker, 0.9), 0.6);
    path_round_box(c, -0.19, 1.5, 0.38, 0.06, 0.025);
    paint(c, shaded(c, wicker, 0.4), 1);
}

/* The envelope is one unit in half width. */
static void balloon(struct canvas *c, const struct balloon *b, double distance)
{
    basket(c, lit(c, hex(0xb5824f), distance));
    for (int i = 0; i < b->gores; i++) {
        double u0 = -cowave(0.5 * i / b->gores), u1 = -cowave(0.5 * (i + 1) / b->gores);
        path_patch(c, u0, u1, 0, 1);
        paint(c, gore_colour(b, i), 1);
        envelope_pattern(c, b, u0, u1, i);
    }
    for (int i = 1; i < b->gores; i++) { /* seams */
        double u = -cowave(0.5 * i / b->gores);
        for (int k = 0; k <= 12; k++) cairo_line_to(c->cr, u * girth(k / 12.0), -1.15 + 2.3 * k / 12.0);
        cairo_new_sub_path(c->cr);
    }
    stroke(c, 0.012, c->light.shadow, 0.3);
    path_patch(c, -1, 1, 0, 1);
    clip(c);
    double s = c->light.side;
    path_box(c, -1.1, -1.2, 2.2, 2.5);
    paint_fade(c, s * 0.1, 0, 0, -s * 1.05, 0.3, 0.62, c->light.shadow);
    path_box(c, -1.1, 0, 2.2, 1.3);
    paint_fade(c, 0, 0.2, 0, 0, 1.2, 0.4, c->light.shadow);
    glow(c, s * 0.42, -0.55, 0.5, 0.6, hex(0xffffff), 0.5);
    if (c->light.dark) glow(c, 0, 0.9, 0.9, 1.2, hex(0xffb05a), 0.6);
    unclip(c);
}

static struct balloon balloon_make(struct canvas *c, double distance)
{
    struct balloon b = {.pattern = (enum envelope)between_int(c, 0, ENVELOPES - 1)};
    b.gores = between_int(c, 3, 5) * 2 + 1;
    b.colours[0] = CHOOSE(c, 0xe05a4f, 0x3f8fbf, 0xf2b33d, 0x5aa57a, 0x9a66b5, 0xf28a4a, 0xe87f9a);
    b.colours[1] = CHOOSE(c, 0xfff4e0, 0xfbe3a8, 0xfff4e0, 0xf6f0f5);
    b.colours[2] = CHOOSE(c, 0xf6c04a, 0x35607f, 0xd9483f, 0x3f8f86);
    for (int i = 0; i < 3; i++) b.colours[i] = lit(c, b.colours[i], distance);
    return b;
}

void scene_balloon(struct canvas *c)
{
    choose_light(c, LIGHT_ANY & ~LIGHT_NIGHT);
    double horizon = between(c, 0.72, 0.86);
    sky(c, horizon);
    clouds(c, between_int(c, 1, 4), 0.1, horizon * 0.9, 0.24);
    struct rgb turf = CHOOSE(c, 0x8ab55c, 0xa5b862, 0x74a36a, 0xcfae5a, 0xd9a878);
    struct ridge peaks = ridge_make(c, horizon, 0.14, between(c, 2, 5), 4);
    peaks.sharp = chance(c, 0.4);
    hills(c, &peaks, hex(0x7f96b8), 0.6);
    for (int i = 0; i < 3; i++) {
        struct ridge land = ridge_make(c, horizon + 0.02 + 0.06 * i, 0.05, between(c, 1.5, 3), 2);
        hills(c, &land, mix(vary(c, turf, 0.03), hex(0x3f7a5a), 0.12 * i), 0.4 - 0.16 * i);
        if (chance(c, 0.7)) wood_line(c, &land, 16, 0.03 + 0.012 * i, lit(c, mix(turf, hex(0x2a5a45), 0.6), 0.3 - 0.1 * i), 0);
    }
    int others = between_int(c, 0, 4);
    for (int i = 0; i < others; i++) {
        double distance = between(c, 0.2, 0.5), size = 0.1 - 0.14 * distance;
        struct point at = point_in(c, 0.06, 0.12, 0.94, horizon - 0.2);
        struct balloon far = balloon_make(c, distance);
        place_begin(c, at.x, at.y, size, 0);
        balloon(c, &far, distance);
        place_end(c);
    }
    struct balloon b = balloon_make(c, 0);
    double x = between(c, 0.34, 0.66), size = between(c, 0.2, 0.27), y = between(c, 0.34, 0.4);
    place_begin(c, x, y, size, between(c, -0.012, 0.012));
    balloon(c, &b, 0);
    place_end(c);
    if (chance(c, 0.4)) birds(c, x < 0.5 ? x + 0.38 : x - 0.38, 0.55, 0.02, 4);
}

/* ----------------------------------------------------------------------------------------------- planet */

enum planet_kind { GAS, ROCK, OCEAN, ICE, LAVA, PLANETS };

struct planet {
    enum planet_kind kind;
    struct rgb a, b, air;
    double x, y, r, tilt;
};

static void deep_space(struct canvas *c)
{
    struct rgb space = CHOOSE(c, 0x0b1030, 0x140f33, 0x0a1a2f, 0x1c1030, 0x0d1424),
               veil_colour = lch(0.6, 0.14, between(c, 0, 1));
    path_box(c, 0, 0, 1, 1);
    paint_between(c, 0, 0, brighten(space, 0.06), 1, 1, darken(space, 0.35));
    for (int i = 0; i < 3; i++) {
        struct rgb gas = mix(veil_colour, lch(0.6, 0.14, between(c, 0, 1)), 0.5);
        struct point corner = point_in(c, -0.5, -0.5, 0.1, 0.1);
        mottle(c, corner, (struct point){1.5, 1.3}, (struct point){3, 3}, -0.15, 0.65, brighten(gas, 0.1), 0.62);
    }
    stars(c, between_int(c, 90, 180), 3);
    int bright = between_int(c, 2, 6);
    for (int i = 0; i < bright; i++) { /* with four rays */
        struct point at = point_in(c, 0.03, 0.03, 0.97, 0.97);
        double s = between(c, 0.012, 0.03);
        glow(c, at.x, at.y, s, s, hex(0xcfe0ff), 0.8);
        path_leaf(c, (struct point){at.x - s, at.y}, (struct point){at.x + s, at.y}, 0.05);
        path_leaf(c, (struct point){at.x, at.y - s}, (struct point){at.x, at.y + s}, 0.05);
        paint(c, hex(0xffffff), 0.9);
    }
}

static void gas_bands(struct canvas *c, const struct planet *p)
{
    int bands = between_int(c, 7, 12);
    for (int i = 0; i < bands; i++) {
        double y = -1 + 2.0 * i / bands, h = 2.2 / bands, sway = between(c, 0.02, 0.08), share = between(c, 0, 1);
        struct ridge edge = ridge_make(c, y, sway, between(c, 1, 3), 3);
        cairo_move_to(c->cr, -1.1, y + h + 0.1);
        for (int k = 0; k <= 24; k++) {
            double x = -1.1 + 2.2 * k / 24;
            cairo_line_to(c->cr, x, ridge_at(&edge, x));
        }
        cairo_line_to(c->cr, 1.1, y + h + 0.1);
        paint(c, mix(p->a, p->b, share), 0.95);
    }
    if (chance(c, 0.6)) {
        double x = between(c, -0.4, 0.4), y = between(c, 0.1, 0.4);
        path_ellipse(c, x, y, 0.24, 0.13);
        paint(c, mix(p->b, hex(0xd9653f), 0.6), 0.9);
        path_ellipse(c, x, y, 0.15, 0.075);
        paint(c, mix(p->a, hex(0xf09a6a), 0.6), 0.9);
    }
}

static void craters(struct canvas *c, const struct planet *p)
{
    for (int i = 0; i < 18; i++) {
        double a = between(c, 0, 1), d = sqrt(between(c, 0, 0.9)), r = between(c, 0.04, 0.16);
        double x = d * cowave(a), y = d * wave(a), s = c->light.side;
        path_ellipse(c, x, y, r, r * 0.9);
        paint(c, brighten(p->a, 0.18), 0.8);
        path_ellipse(c, x + s * r * 0.12, y - r * 0.1, r * 0.85, r * 0.76);
        paint(c, darken(mix(p->a, p->b, 0.6), 0.2), 0.85);
    }
}

static void continents(struct canvas *c, const struct planet *p)
{
    struct point corner = {-1.3, -1.3}, size = {2.6, 2.6};
    mottle(c, corner, size, (struct point){4, 4}, 0.03, 0.1, p->b, 1);
    mottle(c, corner, size, (struct point){6, 7}, 0.2, 0.4, mix(p->b, hex(0xe6d49a), 0.7), 0.5);
    path_ellipse(c, 0, -1.02, 0.6, 0.24);
    path_ellipse(c, 0, 1.02, 0.5, 0.2);
    paint(c, hex(0xffffff), 0.85);
    mottle(c, corner, size, (struct point){4, 9}, 0.1, 0.5, hex(0xffffff), 0.85);
}

static void cracks(struct canvas *c, const struct planet *p)
{
    mottle(c, (struct point){-1.3, -1.3}, (struct point){2.6, 2.6}, (struct point){5, 5}, -0.2, 0.5, p->b, 0.8);
    struct rgb vein = p->kind == LAVA ? hex(0xffb03f) : hex(0xf4feff);
    for (int i = 0; i < 9; i++) {
        struct point at = point_in(c, -0.9, -0.9, 0.9, 0.9);
        cairo_move_to(c->cr, at.x, at.y);
        for (int k = 0; k < 5; k++) {
            struct point step = point_in(c, -0.28, -0.2, 0.28, 0.26);
            cairo_rel_line_to(c->cr, step.x, step.y);
        }
        stroke(c, 0.028, vein, 0.8);
    }
}

/* The surface, then day and night, then a rim of air. */
static void globe(struct canvas *c, const struct planet *p)
{
    double s = c->light.side;
    glow(c, p->x, p->y, p->r * 1.5, p->r * 1.5, p->air, 0.55);
    place_begin(c, p->x, p->y, p->r, p->tilt);
    path_ellipse(c, 0, 0, 1, 1);
    clip(c);
    path_box(c, -1.1, -1.1, 2.2, 2.2);
    paint_down(c, -1, p->a, 1, mix(p->a, p->b, 0.35));
    if (p->kind == GAS) gas_bands(c, p);
    if (p->kind == ROCK) craters(c, p);
    if (p->kind == OCEAN) continents(c, p);
    if (p->kind == ICE || p->kind == LAVA) cracks(c, p);
    unclip(c);
    place_end(c);
    cairo_pattern_t *night = cairo_pattern_create_radial(p->x + s * p->r * 0.45, p->y - p->r * 0.35, p->r * 0.35,
                                                         p->x + s * p->r * 0.25, p->y - p->r * 0.2, p->r * 1.42);
    cairo_pattern_add_color_stop_rgba(night, 0, 1, 1, 1, 0.2);
    cairo_pattern_add_color_stop_rgba(night, 0.3, 0.1, 0.08, 0.2, 0.05);
    cairo_pattern_add_color_stop_rgba(night, 0.75, 0.03, 0.03, 0.1, 0.7);
    cairo_pattern_add_color_stop_rgba(night, 1, 0.02, 0.02, 0.07, 0.93);
    path_ellipse(c, p->x, p->y, p->r, p->r);
    cairo_set_source(c->cr, night);
    cairo_fill(c->cr);
    cairo_pattern_destroy(night);
    path_ellipse(c, p->x, p->y, p->r, p->r);
    clip(c);
    path_ellipse(c, p->x - s * p->r * 0.06, p->y + p->r * 0.05, p->r * 1.04, p->r * 1.04);
    path_ellipse(c, p->x, p->y, p->r * 1.2, p->r * 1.2);
    cairo_set_fill_rule(c->cr, CAIRO_FILL_RULE_EVEN_ODD);
    paint(c, brighten(p->air, 0.4), 0.55);
    unclip(c);
}

/* Half of the rings: front or back of the globe. */
static void ring_half(struct canvas *c, const struct planet *p, double open, uint32_t key, bool front)
{
    place_begin(c, p->x, p->y, p->r, p->tilt);
    path_box(c, -3, front ? 0 : -3, 6, 3);
    clip(c);
    for (int i = 0; i < 12; i++) {
        double r = 1.32 + 0.075 * i, tone = noise_1d(key, i * 1.3) * 0.5 + 0.5;
        if (i == 7) continue; /* the gap */
        path_ellipse(c, 0, 0, r, r * open);
        stroke(c, 0.078, mix(p->air, mix(p->a, hex(0xf6e6c8), 0.6), tone), 0.45 + 0.5 * tone);
    }
    unclip(c);
    place_end(c);
}

static void comet(struct canvas *c)
{
    struct point at = point_in(c, 0.1, 0.08, 0.9, 0.3);
    double dx = c->light.side * between(c, 0.15, 0.3), dy = -between(c, 0.05, 0.15);
    POLYGON(c, {at.x - 0.004, at.y + 0.006}, {at.x + 0.004, at.y - 0.006}, {at.x + dx, at.y + dy});
    paint_fade(c, at.x, at.y, 0.8, at.x + dx, at.y + dy, 0, hex(0xcfe8ff));
    glow(c, at.x, at.y, 0.02, 0.02, hex(0xffffff), 1);
}

void scene_planet(struct canvas *c)
{
    choose_light(c, LIGHT_DAY);
    deep_space(c);
    if (chance(c, 0.35)) comet(c);
    static const struct {
        unsigned a[3], b[3], air;
    } worlds[PLANETS] = {{{0xe6c08f, 0xd9a5a0, 0x9fc0d8}, {0xa8623f, 0x8a5a8a, 0x4f7ab0}, 0xf0d0a0},
                         {{0xb0a59c, 0xc98a6a, 0x9aa0b0}, {0x7a6c66, 0x9a4f3a, 0x6a7080}, 0xd0c8c0},
                         {{0x3a7fc4, 0x2f92b0, 0x4a6fc9}, {0x5fa25a, 0x8fae5f, 0x4f9a7a}, 0x9fd4ff},
                         {{0xb9e2ee, 0xcfd8f4, 0xa9d4e0}, {0x7fb0d8, 0x9aa2dc, 0x6fa8b8}, 0xd8f4ff},
                         {{0x6a3a34, 0x5a3440, 0x7a4434}, {0xd9542f, 0xc03a3a, 0xe0752f}, 0xff9a5a}};
    struct planet p = {.kind = (enum planet_kind)between_int(c, 0, PLANETS - 1)};
    int tone = between_int(c, 0, 2);
    p.a = vary(c, hex(worlds[p.kind].a[tone]), 0.04);
    p.b = vary(c, hex(worlds[p.kind].b[tone]), 0.04);
    p.air = vary(c, hex(worlds[p.kind].air), 0.04);
    p.x = between(c, 0.4, 0.6);
    p.y = between(c, 0.42, 0.58);
    p.tilt = between(c, -0.09, 0.09);
    bool rings = chance(c, p.kind == GAS ? 0.85 : 0.4);
    p.r = rings ? between(c, 0.18, 0.22) : between(c, 0.24, 0.33);
    double open = between(c, 0.16, 0.36);
    uint32_t key = fresh_key(c) & 0xffffu;
    if (rings) ring_half(c, &p, open, key, false);
    globe(c, &p);
    if (rings) ring_half(c, &p, open, key, true);
    int moons = between_int(c, 0, 3);
    for (int i = 0; i < moons; i++) {
        double a = between(c, 0, 1), d = between(c, 0.36, 0.44);
        struct planet m = {ROCK, p.a, p.b, p.air, 0.5 + d * cowave(a), 0.5 + d * wave(a), between(c, 0.02, 0.055), 0};
        m.a = CHOOSE(c, 0xc9c4bc, 0xb8a08a, 0xa8b4c8, 0xd8c09a);
        m.b = darken(m.a, 0.3);
        globe(c, &m);
    }
}
