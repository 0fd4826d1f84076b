/* The cartoon portrait: face. Coordinates are of the head, one unit from its middle to its chin. */
#include "scenes.h"

#include <math.h>

enum hair_style { HAIR_SHORT, HAIR_LONG, HAIR_CURLY, HAIR_BUN, HAIR_BOB, HAIR_SPIKY, HAIR_NONE, HAIR_STYLES };
enum mouth_kind { MOUTH_ARC, MOUTH_OPEN, MOUTH_TEETH, MOUTHS };

struct person {
    struct rgb skin, hair, iris, shirt, stripe, lips;
    enum hair_style style;
    enum mouth_kind mouth;
    double width, jaw, eyes, lid, brow, smile, nose;
    bool glasses, beard, freckles, earrings, hat, stripes, fringe, wink;
};

static void shoulders(struct canvas *c, const struct person *p)
{
    SMOOTH(c, true, {-0.3, 1.05}, {0.3, 1.05}, {0.85, 1.3}, {1.3, 1.7}, {1.45, 2.8}, {-1.45, 2.8}, {-1.3, 1.7}, {-0.85, 1.3});
    clip(c);
    path_box(c, -2, 0.9, 4, 2.2);
    paint_round(c, -1.4, 1.4, p->shirt);
    if (p->stripes) {
        for (int i = 0; i < 6; i++) path_box(c, -2, 1.32 + 0.24 * i, 4, 0.11);
        paint(c, p->stripe, 0.85);
    }
    unclip(c);
    SMOOTH(c, true, {-0.28, 0.6}, {0.28, 0.6}, {0.3, 1.08}, {0, 1.3}, {-0.3, 1.08}); /* neck */
    paint_down(c, 0.75, shaded(c, p->skin, 0.65), 1.25, shaded(c, p->skin, 0.15));
    cairo_move_to(c->cr, -0.36, 1.07);
    cairo_curve_to(c->cr, -0.26, 1.35, 0.26, 1.35, 0.36, 1.07);
    stroke(c, 0.085, mix(p->shirt, p->stripe, 0.6), 1);
}

static void head_outline(struct canvas *c, const struct person *p)
{
    double w = p->width, j = p->jaw;
    SMOOTH(c, true, {0, -0.98}, {w * 0.62, -0.82}, {w * 0.95, -0.3}, {w * 0.93, 0.2}, {w * j, 0.68}, {0.24, 0.97},
           {-0.24, 0.97}, {-w * j, 0.68}, {-w * 0.93, 0.2}, {-w * 0.95, -0.3}, {-w * 0.62, -0.82});
}

static void ears(struct canvas *c, const struct person *p)
{
    for (int side = -1; side <= 1; side += 2) {
        double x = side * p->width * 0.95;
        path_ellipse(c, x, 0.06, 0.13, 0.21);
        paint_ball(c, x, 0.06, 0.2, p->skin, shaded(c, p->skin, 0.5));
        path_ellipse(c, x + side * 0.015, 0.07, 0.06, 0.12);
        paint(c, shaded(c, mix(p->skin, p->lips, 0.3), 0.5), 0.6);
        if (!p->earrings) continue;
        path_ellipse(c, x + side * 0.02, 0.33, 0.055, 0.055);
        paint_ball(c, x + side * 0.02, 0.33, 0.055, hex(0xfff2b8), hex(0xd09a30));
    }
}

/* What falls behind the head. */
static void hair_behind(struct canvas *c, const struct person *p)
{
    double w = p->width * 1.22;
    if (p->style == HAIR_LONG) {
        SMOOTH(c, true, {0, -1.18}, {w * 0.8, -0.8}, {w * 1.05, 0}, {w * 1.15, 0.9}, {w * 0.95, 1.5}, {0, 1.3},
               {-w * 0.95, 1.5}, {-w * 1.15, 0.9}, {-w * 1.05, 0}, {-w * 0.8, -0.8});
        paint_round(c, -w, w, shaded(c, p->hair, 0.3));
    } else if (p->style == HAIR_BOB) {
        SMOOTH(c, true, {0, -1.18}, {w * 0.8, -0.85}, {w * 1.05, -0.1}, {w * 1.02, 0.7}, {w * 0.5, 0.78}, {-w * 0.5, 0.78},
               {-w * 1.02, 0.7}, {-w * 1.05, -0.1}, {-w * 0.8, -0.85});
        paint_round(c, -w, w, shaded(c, p->hair, 0.3));
    } else if (p->style == HAIR_BUN) {
        path_blob(c, 0, -1.3, 0.38, 0.34, 0.05);
        paint_ball(c, 0, -1.3, 0.38, brighten(p->hair, 0.15), shaded(c, p->hair, 0.5));
    } else if (p->style == HAIR_CURLY) {
        for (int i = 0; i < 22; i++) {
            double a = 0.44 + 0.62 * i / 21, r = between(c, 0.24, 0.34);
            path_ellipse(c, w * 0.92 * cowave(a), -0.16 + 1.02 * wave(a), r, r);
        }
        paint(c, shaded(c, p->hair, 0.35), 1);
    }
}

/* What frames the forehead: a cap of hair with the style's own edge. */
static void hair_front(struct canvas *c, const struct person *p)
{
    double w = p->width;
    if (p->style == HAIR_NONE) {
        glow(c, c->light.side * 0.3, -0.72, 0.3, 0.16, hex(0xffffff), 0.55);
        return;
    }
    if (p->style == HAIR_CURLY) {
        for (int i = 0; i < 14; i++) {
            double a = 0.52 + 0.46 * i / 13, r = between(c, 0.17, 0.24);
            double x = w * 0.82 * cowave(a), y = -0.26 + 0.72 * wave(a);
            path_ellipse(c, x, y, r, r);
            paint_ball(c, x, y, r, brighten(p->hair, 0.16), shaded(c, p->hair, 0.35));
        }
        return;
    }
    if (p->style == HAIR_SPIKY) {
        cairo_move_to(c->cr, -w * 0.98, -0.1);
        for (int i = 0; i <= 8; i++) {
            double a = 0.52 + 0.46 * i / 8, reach = i % 2 ? 1.32 : 1.06;
            cairo_line_to(c->cr, w * 1.02 * reach * cowave(a), -0.18 + 0.92 * reach * wave(a));
        }
        cairo_line_to(c->cr, w * 0.98, -0.1);
        cairo_curve_to(c->cr, w * 0.8, -0.5, w * 0.4, -0.6, 0, -0.58);
        cairo_curve_to(c->cr, -w * 0.4, -0.6, -w * 0.8, -0.5, -w * 0.98, -0.1);
    } else if (p->fringe) {
        SMOOTH(c, true, {0, -1.16}, {w * 0.72, -0.98}, {w * 1.06, -0.45}, {w * 1.02, 0.08}, {w * 0.86, -0.28},
               {w * 0.45, -0.36}, {0, -0.34}, {-w * 0.45, -0.36}, {-w * 0.86, -0.28}, {-w * 1.02, 0.08}, {-w * 1.06, -0.45},
               {-w * 0.72, -0.98});
    } else { /* parted at one side */
        double s = c->light.side;
        SMOOTH(c, true, {0, -1.16}, {s * w * 0.72, -0.98}, {s * w * 1.06, -0.42}, {s * w * 1.02, 0.06}, {s * w * 0.86, -0.32},
               {s * w * 0.3, -0.72}, {-s * w * 0.2, -0.52}, {-s * w * 0.84, -0.36}, {-s * w * 1.02, 0.06},
               {-s * w * 1.06, -0.42}, {-s * w * 0.72, -0.98});
    }
    paint_between(c, c->light.side * w, -1, brighten(p->hair, 0.18), -c->light.side * w, 0, shaded(c, p->hair, 0.4));
    for (int i = -2; i <= 2; i++) {
        cairo_move_to(c->cr, i * 0.14, -1.08 + 0.02 * i * i);
        cairo_curve_to(c->cr, i * 0.26, -0.95, i * 0.32, -0.8, i * 0.34, -0.62);
    }
    stroke(c, 0.018, brighten(p->hair, 0.35), 0.35);
}

static void eye(struct canvas *c, const struct person *p, double side)
{
    double x = side * 0.38 * p->width, y = -0.04, r = 0.135 * p->eyes;
    struct rgb ink = mix(darken(p->hair, 0.5), hex(0x2a1f24), 0.6);
    cairo_set_line_cap(c->cr, CAIRO_LINE_CAP_ROUND);
    if (p->wink && side > 0) {
        cairo_move_to(c->cr, x - r, y);
        cairo_curve_to(c->cr, x - r * 0.5, y - r * 0.8, x + r * 0.5, y - r * 0.8, x + r, y);
        stroke(c, 0.05, ink, 1);
    } else {
        path_ellipse(c, x, y, r * 1.04, r * 1.05);
        clip(c);
        path_box(c, x - r * 1.1, y - r * 1.1, r * 2.2, r * 2.2);
        paint_down(c, y - r, hex(0xd9d4dc), y, hex(0xffffff));
        path_ellipse(c, x, y + r * 0.05, r * 0.76, r * 0.82);
        paint_down(c, y - r * 0.6, shaded(c, p->iris, 0.7), y + r * 0.7, brighten(p->iris, 0.25));
        path_ellipse(c, x, y + r * 0.06, r * 0.44, r * 0.48);
        paint(c, hex(0x18141c), 1);
        path_ellipse(c, x + r * 0.28, y - r * 0.22, r * 0.2, r * 0.2);
        path_ellipse(c, x - r * 0.25, y + r * 0.38, r * 0.1, r * 0.1);
        paint(c, hex(0xffffff), 0.95);
        path_box(c, x - r * 1.1, y - r * 1.2, r * 2.2, r * p->lid); /* the lid */
        paint(c, shaded(c, p->skin, 0.35), 1);
        unclip(c);
        double lash = y - r * (1.2 - p->lid);
        cairo_move_to(c->cr, x - r * 1.08, lash + r * 0.35);
        cairo_curve_to(c->cr, x - r * 0.6, lash - r * 0.2, x + r * 0.6, lash - r * 0.2, x + r * 1.08, lash + r * 0.35);
        stroke(c, 0.04, ink, 0.95);
    }
    cairo_move_to(c->cr, x - side * r * 1.0, y - 0.27 - p->brow * 0.02);
    cairo_curve_to(c->cr, x - side * r * 0.3, y - 0.34 - p->brow * 0.05, x + side * r * 0.6, y - 0.34 - p->brow * 0.03,
                   x + side * r * 1.2, y - 0.24);
    stroke(c, 0.05, p->style == HAIR_NONE ? darken(p->skin, 0.5) : darken(p->hair, 0.3), 0.9);
}

static void nose(struct canvas *c, const struct person *p)
{
    double n = p->nose;
    path_ellipse(c, 0, 0.24, 0.1 * n, 0.085 * n);
    paint_ball(c, 0, 0.24, 0.1 * n, brighten(p->skin, 0.16), shaded(c, mix(p->skin, p->lips, 0.25), 0.4));
    cairo_move_to(c->cr, -0.09 * n, 0.29);
    cairo_curve_to(c->cr, -0.04, 0.34, 0.04, 0.34, 0.09 * n, 0.29);
    stroke(c, 0.022, shaded(c, p->skin, 0.85), 0.7);
}

static void mouth(struct canvas *c, const struct person *p)
{
    double w = 0.3 * p->smile, y = 0.5, deep = 0.2 * p->smile;
    cairo_set_line_cap(c->cr, CAIRO_LINE_CAP_ROUND);
    if (p->mouth == MOUTH_ARC) {
        cairo_move_to(c->cr, -w, y);
        cairo_curve_to(c->cr, -w * 0.5, y + deep, w * 0.5, y + deep, w, y);
        stroke(c, 0.048, darken(p->lips, 0.25), 1);
    } else {
        cairo_move_to(c->cr, -w, y - 0.04);
        cairo_curve_to(c->cr, -w * 0.5, y + 0.05, w * 0.5, y + 0.05, w, y - 0.04);
        cairo_curve_to(c->cr, w * 0.8, y + deep * 1.75, -w * 0.8, y + deep * 1.75, -w, y - 0.04);
        clip(c);
        path_box(c, -1, y - 0.2, 2, 1);
        paint(c, hex(0x7a2436), 1);
        if (p->mouth == MOUTH_OPEN) {
            path_ellipse(c, 0, y + deep * 1.25, w * 0.55, deep * 0.5);
            paint(c, hex(0xea7f86), 1);
        }
        path_box(c, -1, y - 0.2, 2, p->mouth == MOUTH_TEETH ? 0.2 + deep * 0.7 : 0.2 + deep * 0.38);
        paint(c, hex(0xfffdf8), 1);
        unclip(c);
    }
    for (int side = -1; side <= 1; side += 2) { /* dimples */
        cairo_move_to(c->cr, side * (w + 0.03), y - 0.05);
        cairo_curve_to(c->cr, side * (w + 0.06), y - 0.02, side * (w + 0.06), y + 0.02, side * (w + 0.02), y + 0.04);
        stroke(c, 0.024, shaded(c, p->skin, 0.9), 0.6);
    }
}

static void cheeks(struct canvas *c, const struct person *p)
{
    for (int side = -1; side <= 1; side += 2) {
        glow(c, side * 0.5 * p->width, 0.33, 0.27, 0.2, mix(p->lips, hex(0xff6f6f), 0.4), 0.65);
        if (!p->freckles) continue;
        for (int i = 0; i < 6; i++) {
            struct point at = point_in(c, 0.28, 0.2, 0.66, 0.36);
            path_ellipse(c, side * at.x * p->width, at.y, 0.018, 0.018);
        }
        paint(c, shaded(c, mix(p->skin, hex(0xb0683a), 0.6), 0.2), 0.75);
    }
}

static void beard(struct canvas *c, const struct person *p)
{
    double w = p->width;
    SMOOTH(c, true, {-w * 0.98, 0.1}, {-w * 0.8, 0.42}, {-0.42, 0.42}, {0, 0.36}, {0.42, 0.42}, {w * 0.8, 0.42},
           {w * 0.98, 0.1}, {w * (p->jaw + 0.1), 0.78}, {0.3, 1.12}, {-0.3, 1.12}, {-w * (p->jaw + 0.1), 0.78});
    paint_between(c, c->light.side * w, 0.2, brighten(p->hair, 0.1), -c->light.side * w, 1, shaded(c, p->hair, 0.4));
}

static void spectacles(struct canvas *c, const struct person *p, struct rgb frame)
{
    for (int side = -1; side <= 1; side += 2) {
        double x = side * 0.37 * p->width;
        path_round_box(c, x - 0.27, -0.27, 0.54, 0.46, 0.2);
        paint(c, hex(0xeaf6ff), 0.22);
        path_round_box(c, x - 0.27, -0.27, 0.54, 0.46, 0.2);
        stroke(c, 0.05, frame, 1);
        cairo_move_to(c->cr, x + side * 0.27, -0.08);
        cairo_line_to(c->cr, side * p->width * 0.97, -0.04);
        stroke(c, 0.05, frame, 1);
    }
    cairo_move_to(c->cr, -0.37 * p->width + 0.27, -0.06);
    cairo_curve_to(c->cr, -0.03, -0.12, 0.03, -0.12, 0.37 * p->width - 0.27, -0.06);
    stroke(c, 0.05, frame, 1);
}

static void woolly_hat(struct canvas *c, const struct person *p, struct rgb wool)
{
    double w = p->width * 1.1;
    path_ellipse(c, 0, -1.42, 0.2, 0.2);
    paint_ball(c, 0, -1.42, 0.2, brighten(p->stripe, 0.2), shaded(c, p->stripe, 0.4));
    cairo_move_to(c->cr, -w, -0.42);
    cairo_curve_to(c->cr, -w, -1.1, -w * 0.5, -1.36, 0, -1.36);
    cairo_curve_to(c->cr, w * 0.5, -1.36, w, -1.1, w, -0.42);
    cairo_close_path(c->cr);
    paint_round(c, -w, w, wool);
    path_round_box(c, -w * 1.04, -0.62, w * 2.08, 0.28, 0.1);
    paint_round(c, -w, w, mix(wool, p->stripe, 0.7));
    for (int i = -6; i <= 6; i++) {
        cairo_move_to(c->cr, i * w * 0.15, -0.6);
        cairo_line_to(c->cr, i * w * 0.15, -0.37);
    }
    stroke(c, 0.025, shaded(c, wool, 0.9), 0.4);
}

static void backdrop(struct canvas *c, struct rgb colour)
{
    path_box(c, 0, 0, 1, 1);
    paint_between(c, 0, 0, brighten(colour, 0.25), 0.2, 1, shaded(c, colour, 0.25));
    int kind = between_int(c, 0, 3);
    if (kind == 0) {
        bokeh(c, 12, brighten(colour, 0.5), 0.45);
    } else if (kind == 1) { /* rays */
        for (int i = 0; i < 12; i++) {
            double a = i / 12.0;
            POLYGON(c, {0.5, 0.5}, {0.5 + cowave(a), 0.5 + wave(a)}, {0.5 + cowave(a + 1 / 24.0), 0.5 + wave(a + 1 / 24.0)});
        }
        paint(c, brighten(colour, 0.45), 0.35);
    } else if (kind == 2) { /* a disc behind the head */
        path_ellipse(c, 0.5, 0.5, 0.4, 0.4);
        paint_down(c, 0.1, brighten(colour, 0.5), 0.9, brighten(colour, 0.15));
    } else {
        mottle(c, (struct point){-0.2, -0.2}, (struct point){1.4, 1.4}, (struct point){3, 3}, -0.1, 0.7, brighten(colour, 0.5),
               0.6);
    }
}

static struct person invent(struct canvas *c)
{
    struct person p = {.style = (enum hair_style)between_int(c, 0, HAIR_STYLES - 1)};
    p.mouth = (enum mouth_kind)between_int(c, 0, MOUTHS - 1);
    p.skin = lit(c, CHOOSE(c, 0xfbdcc4, 0xf3c6a0, 0xe5aa7c, 0xc98a5c, 0xa5693f, 0x7d4c30, 0xf7d0b4), 0);
    p.hair = lit(c, CHOOSE(c, 0x2b2226, 0x4a3226, 0x7a4a2a, 0xb5763a, 0xe3b45c, 0xc9572f, 0xb9b4b6, 0x3a2a3f), 0);
    p.iris = CHOOSE(c, 0x5a3a24, 0x4a86b5, 0x5f9a5a, 0x7a6a4a, 0x4a3428);
    p.shirt = lit(c, CHOOSE(c, 0xd9534a, 0x4a8fb5, 0x5aa07a, 0xe8a83f, 0x8a6ab0, 0xf2ede4, 0x3f4f6f, 0xe58aa5), 0);
    p.stripe = lit(c, CHOOSE(c, 0xfff5e6, 0xf6d37a, 0x2f4a6a, 0xf0f0f0), 0);
    p.lips = mix(p.skin, hex(0xc23a4a), 0.55);
    p.width = between(c, 0.76, 0.9);
    p.jaw = between(c, 0.6, 0.76);
    p.eyes = between(c, 0.95, 1.2);
    p.brow = between(c, -1, 2);
    p.lid = between(c, 0.28, 0.66);
    p.smile = between(c, 0.95, 1.3);
    p.nose = between(c, 0.8, 1.25);
    p.glasses = chance(c, 0.28);
    bool may_beard = p.style == HAIR_SHORT || p.style == HAIR_NONE || p.style == HAIR_SPIKY || p.style == HAIR_CURLY;
    p.beard = may_beard && chance(c, 0.3);
    p.freckles = chance(c, 0.25);
    p.earrings = !may_beard && chance(c, 0.5);
    p.hat = p.style != HAIR_BUN && p.style != HAIR_CURLY && chance(c, 0.16);
    p.stripes = chance(c, 0.4);
    p.fringe = chance(c, 0.5);
    p.wink = chance(c, 0.12);
    return p;
}

void scene_face(struct canvas *c)
{
    choose_light(c, LIGHT_BRIGHT);
    struct rgb ground = CHOOSE(c, 0x8fc9c4, 0xf4c07a, 0xf2a5a0, 0xa9b8e6, 0xb9d48a, 0xd6aede, 0x86bde0, 0xf3d98a);
    backdrop(c, ground);
    struct person p = invent(c);
    struct rgb frame = lit(c, CHOOSE(c, 0x2f2a30, 0x7a4a2f, 0xb5433f, 0x3f5f8f), 0),
               wool = lit(c, CHOOSE(c, 0xd9534a, 0x3f7fa5, 0x4f9a6f, 0xe0a040), 0);
    double x = between(c, 0.46, 0.54), y = between(c, 0.46, 0.52), size = between(c, 0.26, 0.31),
           tilt = between(c, -0.02, 0.02);
    place_begin(c, x, y, size, 0);
    if (p.style != HAIR_BUN || !p.hat) hair_behind(c, &p);
    shoulders(c, &p);
    place_begin(c, 0, 0, 1, tilt);
    ears(c, &p);
    head_outline(c, &p);
    paint_ball(c, 0, 0, 1.1, brighten(p.skin, 0.1), shaded(c, p.skin, 0.45));
    cheeks(c, &p);
    if (p.beard) beard(c, &p);
    for (int side = -1; side <= 1; side += 2) eye(c, &p, side);
    nose(c, &p);
    mouth(c, &p);
    if (p.hat)
        woolly_hat(c, &p, wool);
    else
        hair_front(c, &p);
    if (p.glasses) spectacles(c, &p, frame);
    place_end(c);
    place_end(c);
}
