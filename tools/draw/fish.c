/* The scene under water: fish. */
#include "scenes.h"

#include <math.h>

static void depths(struct canvas *c, struct rgb water, struct rgb deep)
{
    path_box(c, 0, 0, 1, 1);
    paint_down(c, 0, brighten(water, 0.35), 0.8, deep);
    double source = between(c, 0.2, 0.8);
    glow(c, source, -0.05, 0.8, 0.6, hex(0xf4fff2), 0.6);
    for (int i = 0; i < 7; i++) { /* shafts of light */
        double x = between(c, -0.1, 1.1), w = between(c, 0.02, 0.07), slope = (x - source) * 0.7;
        POLYGON(c, {x, -0.02}, {x + w, -0.02}, {x + w * 2 + slope, 0.9}, {x - w + slope, 0.9});
        paint_fade(c, 0, 0, 0.22, 0, 0.85, 0, hex(0xf4fff2));
    }
    mottle(c, (struct point){-0.2, -0.05}, (struct point){1.4, 0.35}, (struct point){6, 5}, 0.05, 0.6, hex(0xffffff), 0.25);
}

static void sea_floor(struct canvas *c, struct rgb deep, struct rgb sand)
{
    struct ridge reef = ridge_make(c, 0.84, 0.24, between(c, 2, 4), 4), back = ridge_make(c, 0.9, 0.14, between(c, 2, 5), 3);
    path_ridge(c, &reef);
    paint_down(c, 0.6, mix(deep, hex(0x2f4f7a), 0.35), 0.95, mix(deep, sand, 0.2));
    path_ridge(c, &back);
    paint_down(c, 0.75, mix(deep, hex(0x24385f), 0.55), 1, mix(deep, sand, 0.3));
    struct ridge ground = ridge_make(c, 0.92, 0.05, between(c, 1.5, 3), 2);
    path_ridge(c, &ground);
    paint_down(c, 0.88, brighten(sand, 0.1), 1, mix(sand, deep, 0.4));
    mottle(c, (struct point){-0.1, 0.88}, (struct point){1.2, 0.2}, (struct point){6, 8}, 0, 0.7, mix(sand, deep, 0.6), 0.5);
}

static void seaweed(struct canvas *c, double x, double y, double h, struct rgb green)
{
    int blades = between_int(c, 3, 5);
    for (int i = 0; i < blades; i++) {
        double tall = h * between(c, 0.6, 1), sway = h * between(c, -0.16, 0.16), foot = x + (i - blades / 2.0) * h * 0.09,
               w = h * 0.045;
        cairo_move_to(c->cr, foot - w, y);
        cairo_curve_to(c->cr, foot - w + sway, y - tall * 0.35, foot - w - sway, y - tall * 0.65, foot + sway, y - tall);
        cairo_curve_to(c->cr, foot + w - sway * 0.6, y - tall * 0.65, foot + w + sway * 1.2, y - tall * 0.35, foot + w, y);
        paint_down(c, y - tall, brighten(green, 0.2), y, shaded(c, green, 0.6));
    }
}

/* Either a fan of round-ended branches or a mound of knobs. */
static void coral(struct canvas *c, double x, double y, double h, struct rgb colour)
{
    cairo_set_line_cap(c->cr, CAIRO_LINE_CAP_ROUND);
    if (chance(c, 0.55)) {
        for (int i = -2; i <= 2; i++) {
            double top = h * between(c, 0.7, 1), lean = i * h * 0.24;
            cairo_move_to(c->cr, x + i * h * 0.05, y);
            cairo_curve_to(c->cr, x + lean * 0.3, y - top * 0.4, x + lean, y - top * 0.5, x + lean, y - top);
            stroke(c, h * 0.12, i % 2 ? colour : shaded(c, colour, 0.3), 1);
            cairo_move_to(c->cr, x + lean * 0.75, y - top * 0.5);
            cairo_line_to(c->cr, x + lean * 0.75 + h * 0.14, y - top * 0.72);
            stroke(c, h * 0.08, i % 2 ? brighten(colour, 0.15) : colour, 1);
        }
        return;
    }
    for (int i = 0; i < 12; i++) {
        double a = between(c, 0.5, 1), d = h * 0.5 * sqrt(i / 12.0), r = h * between(c, 0.15, 0.25);
        path_ellipse(c, x + d * 1.3 * cowave(a), y + d * wave(a), r, r * 0.9);
        paint_ball(c, x + d * 1.3 * cowave(a), y + d * wave(a), r, brighten(colour, 0.25), shaded(c, colour, 0.45));
    }
}

static void bubble(struct canvas *c, double x, double y, double r)
{
    path_ellipse(c, x, y, r, r);
    paint(c, hex(0xffffff), 0.16);
    path_ellipse(c, x, y, r, r);
    stroke(c, fmax(0.0025, r * 0.12), hex(0xffffff), 0.6);
    path_ellipse(c, x - r * 0.35, y - r * 0.35, r * 0.22, r * 0.22);
    paint(c, hex(0xffffff), 0.9);
}

/* ---------------------------------------------------------------------------------------------- the fish */

enum pattern { PLAIN, BANDS, LINES, SPOTS, TWO_TONE };

struct fish {
    struct rgb body, belly, fin, mark;
    double tall, fork; /* half height of the body, depth of the tail's fork */
    enum pattern pattern;
    int marks;
    double dorsal;
};

static void fish_outline(struct canvas *c, double h)
{
    SMOOTH(c, true, {0.5, 0.02}, {0.44, -h * 0.42}, {0.26, -h * 0.86}, {0.02, -h}, {-0.28, -h * 0.6}, {-0.5, -0.07},
           {-0.5, 0.07}, {-0.28, h * 0.58}, {0.02, h * 0.96}, {0.26, h * 0.82}, {0.44, h * 0.42});
}

static void fin_rays(struct canvas *c, struct point root, struct point a, struct point b, struct rgb colour)
{
    for (int i = 0; i <= 6; i++) {
        double t = i / 6.0;
        cairo_move_to(c->cr, root.x, root.y);
        cairo_line_to(c->cr, a.x + (b.x - a.x) * t, a.y + (b.y - a.y) * t);
    }
    stroke(c, 0.008, colour, 0.4);
}

static void fish_fins(struct canvas *c, const struct fish *f)
{
    struct rgb deep = shaded(c, f->fin, 0.45), bright = brighten(f->fin, 0.12);
    double h = f->tall, fan = 0.2 + h * 0.45;
    SMOOTH(c, true, {-0.44, 0}, {-0.6, -fan * 0.6}, {-0.84, -fan}, {-0.8 + f->fork, 0}, {-0.84, fan}, {-0.6, fan * 0.6});
    paint_between(c, -0.45, 0, deep, -0.85, 0, bright);
    fin_rays(c, (struct point){-0.47, 0}, (struct point){-0.78, -fan * 0.8}, (struct point){-0.78, fan * 0.8}, deep);
    SMOOTH(c, true, {0.2, -h * 0.8}, {0.08, -h - f->dorsal}, {-0.2, -h * 0.9 - f->dorsal * 0.9},
           {-0.38, -h * 0.4 - f->dorsal * 0.5}, {-0.3, -h * 0.4}, {0, -h * 0.8});
    paint_down(c, -h - f->dorsal, bright, -h * 0.6, deep);
    SMOOTH(c, true, {0.05, h * 0.85}, {-0.06, h + f->dorsal * 0.8}, {-0.24, h * 0.85 + f->dorsal * 0.7}, {-0.3, h * 0.4},
           {-0.05, h * 0.7});
    paint_down(c, h * 0.6, deep, h + f->dorsal, bright);
}

static void fish_pattern(struct canvas *c, const struct fish *f)
{
    double h = f->tall;
    if (f->pattern == BANDS) {
        for (int i = 0; i < f->marks; i++) {
            double x = 0.2 - 0.56 * i / f->marks, w = 0.11 - 0.012 * f->marks;
            for (int pass = 0; pass < 2; pass++) {
                double half = pass ? w * 0.7 : w;
                SMOOTH(c, true, {x - half, -h * 1.1}, {x + half, -h * 1.1}, {x + half + 0.05, 0}, {x + half, h * 1.1},
                       {x - half, h * 1.1}, {x - half + 0.05, 0});
                paint(c, pass ? f->mark : darken(f->body, 0.65), 1);
            }
        }
    } else if (f->pattern == LINES) {
        for (int i = 0; i < f->marks + 1; i++) {
            double y = h * (-0.62 + 1.25 * i / (f->marks + 1));
            path_leaf(c, (struct point){0.42, y * 0.7}, (struct point){-0.46, y * 0.4}, 0.045);
        }
        paint(c, f->mark, 0.9);
    } else if (f->pattern == SPOTS) {
        for (int i = 0; i < 9 + f->marks * 3; i++) {
            double x = between(c, -0.42, 0.22), y = h * between(c, -0.8, 0.5), r = between(c, 0.018, 0.042);
            path_ellipse(c, x, y, r, r);
        }
        paint(c, f->mark, 0.9);
    } else if (f->pattern == TWO_TONE) {
        SMOOTH(c, true, {-0.02, -1}, {0.06, 0}, {-0.02, 1}, {-1, 1}, {-1, -1});
        paint(c, f->mark, 0.95);
    }
}

static void scales(struct canvas *c, const struct fish *f)
{
    for (int row = -4; row <= 4; row++)
        for (int i = 0; i < 8; i++) {
            double x = 0.18 - 0.075 * i - (row % 2 ? 0.037 : 0), y = row * f->tall * 0.2;
            cairo_move_to(c->cr, x, y - f->tall * 0.1);
            cairo_curve_to(c->cr, x - 0.05, y - f->tall * 0.06, x - 0.05, y + f->tall * 0.06, x, y + f->tall * 0.1);
        }
    stroke(c, 0.007, shaded(c, f->body, 0.9), 0.3);
}

/* Swims to the right, one unit from mouth to the root of its tail. */
static void fish_body(struct canvas *c, const struct fish *f)
{
    double h = f->tall;
    fish_fins(c, f);
    fish_outline(c, h);
    clip(c);
    path_box(c, -1, -1, 2, 2);
    paint_down(c, -h, shaded(c, f->body, 0.3), h, f->belly);
    path_box(c, -1, -h, 2, h * 1.25);
    paint_fade(c, 0, -h * 0.7, 0.9, 0, h * 0.25, 0, f->body);
    fish_pattern(c, f);
    scales(c, f);
    path_ellipse(c, 0.52, 0.02, 0.26, h * 1.1); /* the head stands out */
    paint(c, f->body, 0.3);
    glow(c, 0.12, -h * 0.55, 0.4, h * 0.35, hex(0xffffff), 0.45);
    path_box(c, -1, h * 0.3, 2, h);
    paint_fade(c, 0, h * 0.3, 0, 0, h, 0.4, c->light.shadow);
    unclip(c);
    SMOOTH(c, true, {0.12, h * 0.15}, {-0.06, h * 0.1}, {-0.16, h * 0.42}, {-0.02, h * 0.5});
    paint_between(c, 0.12, 0, shaded(c, f->fin, 0.35), -0.16, 0, brighten(f->fin, 0.2));
    double r = 0.062 + h * 0.06, ex = 0.31, ey = -h * 0.22;
    path_ellipse(c, ex, ey, r, r);
    paint(c, hex(0xfffdf6), 1);
    path_ellipse(c, ex + r * 0.15, ey, r * 0.62, r * 0.62);
    paint(c, hex(0x1a2030), 1);
    path_ellipse(c, ex + r * 0.35, ey - r * 0.3, r * 0.24, r * 0.24);
    paint(c, hex(0xffffff), 1);
    cairo_set_line_cap(c->cr, CAIRO_LINE_CAP_ROUND);
    cairo_move_to(c->cr, 0.5, 0.035);
    cairo_curve_to(c->cr, 0.46, 0.09, 0.42, 0.095, 0.395, 0.075);
    stroke(c, 0.02, shaded(c, f->body, 1), 0.9);
    cairo_move_to(c->cr, 0.17, -h * 0.45);
    cairo_curve_to(c->cr, 0.11, -h * 0.1, 0.11, h * 0.2, 0.18, h * 0.5);
    stroke(c, 0.013, shaded(c, f->body, 0.9), 0.5);
}

static void shoal(struct canvas *c, struct rgb colour, double direction)
{
    struct point centre = point_in(c, 0.15, 0.12, 0.85, 0.5);
    int count = between_int(c, 4, 10);
    for (int i = 0; i < count; i++) {
        struct point at = point_in(c, -0.2, -0.11, 0.2, 0.11);
        double s = direction * between(c, 0.024, 0.036), x = centre.x + at.x, y = centre.y + at.y;
        path_leaf(c, (struct point){x - s, y}, (struct point){x + s, y}, 0.4);
        POLYGON(c, {x - s * 0.8, y}, {x - s * 1.5, y - 0.014}, {x - s * 1.3, y}, {x - s * 1.5, y + 0.014});
        paint(c, colour, 0.6);
    }
}

void scene_fish(struct canvas *c)
{
    choose_light(c, LIGHT_BRIGHT);
    c->light.tint = (struct rgb){0.97, 1, 1};
    c->light.shadow = hex(0x16405f);
    struct rgb water = CHOOSE(c, 0x4fb8cf, 0x58c4b8, 0x4f9fd8, 0x5f8fd0, 0x6fc9c4),
               deep = CHOOSE(c, 0x1f5f8f, 0x1f6f80, 0x274a86, 0x2a3f78);
    struct rgb sand = mix(CHOOSE(c, 0xe8d6a4, 0xd8c8a8, 0xf0dcc0), water, 0.3);
    double direction = chance(c, 0.5) ? -1 : 1;
    depths(c, water, deep);
    if (chance(c, 0.7)) shoal(c, mix(deep, water, 0.35), direction);
    sea_floor(c, deep, sand);
    struct rgb weed = mix(CHOOSE(c, 0x4f9f5a, 0x3f8f70, 0x8aa84a, 0xa0607a), deep, 0.15);
    int plants = between_int(c, 4, 8);
    for (int i = 0; i < plants; i++) {
        double x = between(c, 0, 1), h = between(c, 0.12, 0.34);
        if (chance(c, 0.55))
            seaweed(c, x, 0.97, h, weed);
        else
            coral(c, x, 0.96, h * 0.6, mix(CHOOSE(c, 0xf0786a, 0xf2a65a, 0xd870a8, 0xb07ad8, 0xf4d06a), deep, 0.1));
    }
    struct fish f = {.tall = between(c, 0.22, 0.42)};
    f.body = CHOOSE(c, 0xf28a3a, 0xf5c242, 0xe8607a, 0x4f8fe0, 0x8a6fd8, 0xf0704f, 0x4fc0a0);
    f.mark = CHOOSE(c, 0xfff8ee, 0xfde9b0, 0x2f4f9a, 0xfff8ee, 0xf7d25a);
    f.fin = chance(c, 0.5) ? vary(c, f.body, 0.1) : CHOOSE(c, 0xf7c04a, 0xf28a5a, 0x6f8fe8, 0xe87aa8);
    f.belly = brighten(f.body, 0.5);
    f.fork = between(c, -0.06, 0.16);
    f.pattern = (enum pattern)between_int(c, 0, 4);
    f.marks = between_int(c, 2, 4);
    f.dorsal = between(c, 0.06, 0.2);
    double size = between(c, 0.46, 0.58), x = 0.5 + direction * 0.06 + between(c, -0.05, 0.05), y = between(c, 0.4, 0.56);
    place_begin(c, x, y, size, between(c, -0.03, 0.03));
    cairo_scale(c->cr, direction, 1);
    c->light.side *= direction;
    fish_body(c, &f);
    place_end(c);
    int bubbles = between_int(c, 4, 12);
    double bx = x + direction * size * 0.58;
    for (int i = 0; i < bubbles; i++) {
        struct point at = point_in(c, -0.06, 0, 0.06, 1);
        bubble(c, bx + at.x, y - 0.02 - at.y * (y - 0.05), between(c, 0.006, 0.022));
    }
    double near_x = between(c, 0.02, 0.98), near_h = between(c, 0.2, 0.4);
    if (chance(c, 0.5)) seaweed(c, near_x, 1.02, near_h, shaded(c, weed, 0.4));
}
