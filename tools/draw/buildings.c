/* Scenes of buildings: castle, city, house. */
#include "scenes.h"

#include <math.h>

static struct rgb window_colour(struct canvas *c, double share)
{
    if (c->light.dark && chance(c, share)) return vary(c, hex(0xffd479), 0.05);
    return lit(c, hex(0x4c5a70), 0);
}

/* ----------------------------------------------------------------------------------------------- castle */

static void battlements(struct canvas *c, double x0, double x1, double y, double tooth, struct rgb colour)
{
    int teeth = (int)((x1 - x0) / (tooth * 2)) + 1;
    double step = (x1 - x0 - tooth) / fmax(1, teeth - 1);
    for (int i = 0; i < teeth; i++) path_box(c, x0 + i * step, y - tooth, tooth, tooth * 1.1);
    paint_round(c, x0, x1, colour);
}

/* Rows of stones, some a little lighter or darker than the wall. */
static void stones(struct canvas *c, double x0, double y0, double x1, double y1, struct rgb wall)
{
    int count = (int)((x1 - x0) * (y1 - y0) * 420) + 3;
    for (int i = 0; i < count; i++) {
        struct point at = point_in(c, x0, y0, x1 - 0.02, y1 - 0.01);
        path_round_box(c, at.x, at.y, 0.016, 0.008, 0.002);
        paint(c, chance(c, 0.5) ? brighten(wall, 0.3) : shaded(c, wall, 0.9), 0.35);
    }
}

static void arrow_slit(struct canvas *c, double x, double y, double h)
{
    path_round_box(c, x - h * 0.22, y, h * 0.44, h, h * 0.2);
    paint(c, window_colour(c, 0.8), 1);
}

static void pennant(struct canvas *c, double x, double y, double h, struct rgb colour)
{
    double side = c->light.side;
    cairo_move_to(c->cr, x, y);
    cairo_line_to(c->cr, x, y - h);
    stroke(c, 0.004, lit(c, hex(0x4b4552), 0), 1);
    SMOOTH(c, true, {x, y - h}, {x + side * h * 0.45, y - h * 0.93}, {x + side * h * 0.95, y - h * 0.8},
           {x + side * h * 0.4, y - h * 0.68}, {x, y - h * 0.6});
    paint(c, colour, 1);
}

/* A round tower: wall, an overhanging ring with teeth or a pointed roof, slits. */
static void round_tower(struct canvas *c, double x, double y, double w, double h, struct rgb wall, struct rgb roof)
{
    bool pointed = chance(c, 0.75);
    path_box(c, x - w, y - h, 2 * w, h);
    paint_round(c, x - w, x + w, wall);
    stones(c, x - w, y - h, x + w, y, wall);
    path_box(c, x - w * 1.18, y - h - w * 0.1, 2.36 * w, w * 0.55);
    paint_round(c, x - w * 1.2, x + w * 1.2, brighten(wall, 0.06));
    battlements(c, x - w * 1.18, x + w * 1.18, y - h - w * 0.1, w * 0.34, brighten(wall, 0.06));
    arrow_slit(c, x, y - h * between(c, 0.72, 0.82), w * 0.75);
    if (h > 0.22) arrow_slit(c, x, y - h * between(c, 0.38, 0.5), w * 0.65);
    double top = y - h;
    if (pointed) {
        double tall = w * between(c, 2.3, 3.2);
        cairo_move_to(c->cr, x - w * 1.1, y - h - w * 0.3);
        cairo_curve_to(c->cr, x - w * 0.5, y - h - tall * 0.4, x - w * 0.2, y - h - tall * 0.7, x, y - h - tall);
        cairo_curve_to(c->cr, x + w * 0.2, y - h - tall * 0.7, x + w * 0.5, y - h - tall * 0.4, x + w * 1.1, y - h - w * 0.3);
        cairo_curve_to(c->cr, x + w * 0.4, y - h - w * 0.1, x - w * 0.4, y - h - w * 0.1, x - w * 1.1, y - h - w * 0.3);
        paint_round(c, x - w * 1.1, x + w * 1.1, roof);
        top = y - h - tall;
    } else {
        top -= w * 0.2;
    }
    if (chance(c, 0.6)) pennant(c, x, top + 0.006, w * 1.3, vary(c, roof, 0.08));
}

static void gate(struct canvas *c, double x, double y, double w, double h, struct rgb wall)
{
    path_box(c, x - w, y - h, 2 * w, h);
    paint_round(c, x - w, x + w, brighten(wall, 0.05));
    battlements(c, x - w, x + w, y - h, w * 0.3, brighten(wall, 0.05));
    double r = w * 0.58;
    path_box(c, x - r, y - h * 0.4, 2 * r, h * 0.4);
    path_ellipse(c, x, y - h * 0.4, r, r);
    paint_down(c, y - h * 0.6, lit(c, hex(0x3a2a2a), 0), y, c->light.dark ? hex(0xd8934a) : lit(c, hex(0x5d4334), 0));
    for (int i = -2; i <= 2; i++) { /* portcullis */
        cairo_move_to(c->cr, x + i * r * 0.4, y - h * 0.4 - r * (1 - fabs(i * 0.3)));
        cairo_line_to(c->cr, x + i * r * 0.4, y - h * 0.28);
    }
    stroke(c, 0.004, lit(c, hex(0x2a242c), 0), 0.8);
}

static void castle_hill(struct canvas *c, double y, struct rgb turf, struct rgb wood)
{
    SMOOTH(c, true, {-0.1, 1.1}, {-0.1, y + 0.2}, {0.12, y + 0.13}, {0.28, y + 0.02}, {0.5, y - 0.01}, {0.72, y + 0.02},
           {0.9, y + 0.14}, {1.1, y + 0.2}, {1.1, 1.1});
    paint_down(c, y, brighten(turf, 0.1), 1, shaded(c, turf, 0.6));
    for (int i = 0; i < 26; i++) { /* bushes around the foot of the walls */
        double x = between(c, 0.02, 0.98), d = fabs(x - 0.5), r = between(c, 0.015, 0.035);
        if (d < 0.07) continue;
        foliage(c, x, y + 0.03 + d * d * 0.7 + between(c, 0, 0.05), r * 1.4, r, wood);
    }
}

static void castle_path(struct canvas *c, double y, struct rgb turf)
{
    double bend = between(c, -0.25, 0.25);
    cairo_move_to(c->cr, 0.475, y);
    cairo_curve_to(c->cr, 0.45 + bend, y + 0.1, 0.5 - bend, y + 0.2, 0.38 + bend * 0.5, 1.05);
    cairo_line_to(c->cr, 0.62 + bend * 0.5, 1.05);
    cairo_curve_to(c->cr, 0.6 - bend, y + 0.2, 0.52 + bend, y + 0.1, 0.525, y);
    paint_down(c, y, mix(lit(c, hex(0xe6d2a6), 0), turf, 0.3), 1, lit(c, hex(0xdcc291), 0));
}

void scene_castle(struct canvas *c)
{
    choose_light(c, LIGHT_ANY);
    sky(c, 0.72);
    struct rgb wall = lit(c, CHOOSE(c, 0xd9cfc0, 0xbfb6b4, 0xcbbba2, 0xe6dcd2, 0xa9adba), 0);
    struct rgb roof = lit(c, CHOOSE(c, 0xb5503f, 0x46618f, 0x6a4a7c, 0x3f7a76, 0xc06b4a), 0);
    struct rgb turf = CHOOSE(c, 0x86b05a, 0x9ab562, 0x74a267, 0xb9a657);
    struct rgb wood = lit(c, mix(turf, hex(0x23523c), 0.65), 0.05);
    for (int i = 0; i < 2; i++) {
        struct ridge far = ridge_make(c, 0.68 + 0.06 * i, 0.2 - 0.06 * i, between(c, 2.5, 4.5), 4);
        far.sharp = i == 0 && c->light.side > 0;
        hills(c, &far, i ? mix(turf, hex(0x3f6f6a), 0.5) : hex(0x7f93b5), 0.6 - 0.25 * i);
    }
    double y = between(c, 0.68, 0.76), s = between(c, 0.85, 1.1);
    castle_hill(c, y, lit(c, turf, 0), wood);
    double keep = between(c, 0.3, 0.4) * s, lean = between(c, -0.05, 0.05);
    struct rgb back = mix(wall, c->light.haze, 0.18);
    round_tower(c, 0.5 + lean - 0.1 * s, y, 0.04 * s, keep * 0.9, back, mix(roof, c->light.haze, 0.15));
    round_tower(c, 0.5 + lean + 0.11 * s, y, 0.036 * s, keep * 0.78, back, mix(roof, c->light.haze, 0.15));
    round_tower(c, 0.5 + lean, y, 0.062 * s, keep, wall, roof);
    double half = between(c, 0.22, 0.3) * s, low = between(c, 0.12, 0.16) * s, tall = between(c, 0.19, 0.27) * s;
    path_box(c, 0.5 - half, y - low, 2 * half, low + 0.02);
    paint_down(c, y - low, wall, y, shaded(c, wall, 0.35));
    stones(c, 0.5 - half, y - low, 0.5 + half, y, wall);
    battlements(c, 0.5 - half, 0.5 + half, y - low, 0.018 * s, wall);
    for (int i = -1; i <= 1; i += 2) {
        double grow = between(c, 0.9, 1.15);
        round_tower(c, 0.5 + i * half, y + 0.02, 0.05 * s, tall * grow, wall, roof);
    }
    gate(c, 0.5, y + 0.02, 0.07 * s, low * 1.25, wall);
    castle_path(c, y + 0.02, lit(c, turf, 0));
    struct ridge near = ridge_make(c, 0.96, 0.05, 2, 2);
    hills(c, &near, mix(turf, hex(0x2f5f46), 0.35), 0);
    int trees = between_int(c, 1, 4);
    for (int i = 0; i < trees; i++) {
        double x = between(c, 0, 0.24), h = between(c, 0.14, 0.26);
        double at = i % 2 ? x : 1 - x;
        if (chance(c, 0.5))
            pine(c, at, 0.97, h, wood, 0);
        else
            round_tree(c, at, 0.97, h, vary(c, wood, 0.03));
    }
    if (chance(c, 0.5)) birds(c, between(c, 0.15, 0.85), 0.2, 0.02, 4);
}

/* ------------------------------------------------------------------------------------------------- city */

static void windows(struct canvas *c, double x, double y, double w, double h, double share, double alpha)
{
    double step_x = 0.017, step_y = 0.024;
    int columns = (int)((w - 0.008) / step_x), rows = (int)((h - 0.01) / step_y);
    double margin = (w - columns * step_x + 0.008) / 2;
    struct rgb warm = vary(c, hex(0xffd37a), 0.04), cold = hex(0xbfe4ff);
    for (int pass = 0; pass < 2; pass++) {
        uint32_t key = fresh_key(c);
        for (int j = 0; j < rows; j++)
            for (int i = 0; i < columns; i++) {
                double lamp = (double)lattice(key, (uint32_t)i, (uint32_t)j) * 0x1p-32;
                if (lamp < (pass ? share * 0.2 : share))
                    path_box(c, x + margin + i * step_x, y + 0.014 + j * step_y, 0.009, 0.013);
            }
        paint(c, pass ? cold : warm, alpha);
    }
}

/* A tower block with one of several tops. */
static void skyscraper(struct canvas *c, double x, double base, double w, double h, struct rgb colour, double share)
{
    double y = base - h;
    int top = between_int(c, 0, 5);
    struct rgb bright = brighten(colour, 0.12), dark = darken(colour, 0.3);
    if (top == 1) { /* steps */
        path_box(c, x + w * 0.2, y - 0.025, w * 0.6, 0.03);
        path_box(c, x + w * 0.36, y - 0.05, w * 0.28, 0.03);
    } else if (top == 2) { /* spire */
        POLYGON(c, {x + w * 0.3, y}, {x + w * 0.47, y - 0.05}, {x + w * 0.5, y - 0.13}, {x + w * 0.53, y - 0.05},
                {x + w * 0.7, y});
    } else if (top == 3) { /* slanted */
        POLYGON(c, {x, y + 0.001}, {x + w, y - w * 0.55}, {x + w, y + 0.001});
    } else if (top == 4) { /* dome */
        path_ellipse(c, x + w * 0.5, y, w * 0.4, w * 0.35);
    } else if (top == 5) { /* mast */
        path_box(c, x + w * 0.48, y - 0.07, 0.005, 0.07);
    }
    paint(c, colour, 1);
    path_box(c, x, y, w, base - y);
    paint_between(c, x, 0, c->light.side < 0 ? bright : dark, x + w, 0, c->light.side < 0 ? dark : bright);
    windows(c, x, y, w, h, share, 0.95);
    if (top == 5 || top == 2) {
        glow(c, x + w * 0.5, y - (top == 2 ? 0.13 : 0.07), 0.018, 0.018, hex(0xff5a50), 1);
    }
}

static void block(struct canvas *c, double base, double low, double high, struct rgb colour, double share)
{
    for (double x = -0.04; x < 1.02;) {
        double w = between(c, 0.07, 0.15), middle = 1 - fabs(x + w / 2 - 0.5),
               h = between(c, low, high) * (0.55 + 0.5 * middle);
        skyscraper(c, x, base, w, h, vary(c, colour, 0.025), share);
        x += w + between(c, -0.015, 0.025);
    }
}

/* The river doubles the lights as trembling streaks. */
static void river(struct canvas *c, double y, struct rgb colour)
{
    path_box(c, 0, y, 1, 1 - y);
    paint_down(c, y, mix(colour, c->light.sky[3], 0.35), 1, darken(c->light.sky[0], 0.2));
    for (int i = 0; i < 34; i++) {
        double x = between(c, 0, 1), length = between(c, 0.4, 0.95) * (1 - y), w = between(c, 0.003, 0.008);
        struct rgb lamp = CHOOSE(c, 0xffd37a, 0xffb15a, 0xbfe4ff, 0xff7a6a, 0xffe7b0);
        path_box(c, x, y, w, length);
        paint_fade(c, 0, y, 0.6, 0, y + length, 0, lamp);
    }
    ripples(c, y, 1, 60, darken(c->light.sky[0], 0.1), 0.6);
    ripples(c, y, 1, 25, c->light.sky[3], 0.35);
    path_box(c, 0, y - 0.008, 1, 0.012);
    paint(c, darken(colour, 0.55), 1);
    for (int i = 0; i < 14; i++) glow(c, (i + 0.5) / 14, y - 0.016, 0.022, 0.022, hex(0xffd690), 0.9);
}

/* A suspension bridge across the river, lamps along its cables. */
static void bridge(struct canvas *c, double y, struct rgb colour)
{
    double deck = y + between(c, 0.02, 0.07), left = between(c, 0.12, 0.3), right = left + between(c, 0.45, 0.6),
           top = deck - between(c, 0.22, 0.32);
    double span = right - left;
    veil(c, top - 0.06, 0, deck, 0.5, darken(colour, 0.5)); /* the city behind steps back */
    for (int part = -1; part <= 1; part++) {                /* cables: a parabola in the middle, halves of it outside */
        double x0 = left + part * span, sag = deck - 0.015 - top;
        for (int i = 0; i <= 16; i++) {
            double u = i / 8.0 - 1, x = x0 + span * i / 16;
            path_box(c, x - 0.001, top + sag * (1 - u * u), 0.002, sag * u * u + 0.015);
        }
        paint(c, brighten(colour, 0.3), 0.7);
        for (int i = 0; i <= 16; i++) {
            double u = i / 8.0 - 1;
            cairo_line_to(c->cr, x0 + span * i / 16, top + sag * (1 - u * u));
        }
        stroke(c, 0.006, brighten(colour, 0.45), 1);
        for (int i = 0; i <= 16; i += 2) {
            double u = i / 8.0 - 1;
            glow(c, x0 + span * i / 16, top + sag * (1 - u * u), 0.02, 0.02, hex(0xfff0c0), 1);
        }
    }
    for (int i = 0; i < 2; i++) {
        double x = i ? right : left;
        POLYGON(c, {x - 0.02, 1}, {x - 0.012, top - 0.02}, {x + 0.012, top - 0.02}, {x + 0.02, 1});
        paint_round(c, x - 0.02, x + 0.02, brighten(colour, 0.15));
        glow(c, x, top - 0.025, 0.025, 0.025, hex(0xff6a5a), 1);
    }
    path_box(c, 0, deck, 1, 0.018);
    paint_down(c, deck, brighten(colour, 0.25), deck + 0.018, colour);
    for (int i = 0; i < 12; i++) {
        double x = between(c, 0, 1);
        glow(c, x, deck - 0.004, 0.02, 0.012, i % 2 ? hex(0xfff0c0) : hex(0xff6a50), 0.9);
    }
}

/* Cars leave strings of light on the avenue. */
static void avenue(struct canvas *c, double y, struct rgb colour)
{
    path_box(c, 0, y, 1, 1 - y);
    paint_down(c, y, darken(colour, 0.4), 1, darken(colour, 0.65));
    double vanish = between(c, 0.35, 0.65);
    POLYGON(c, {vanish - 0.012, y}, {vanish + 0.012, y}, {vanish + 0.55, 1}, {vanish - 0.55, 1});
    paint_down(c, y, mix(colour, hex(0xffc98a), 0.3), 1, darken(mix(colour, hex(0x55506a), 0.5), 0.25));
    for (int i = 0; i < 16; i++) {
        double lane = between(c, -0.45, 0.45), t = between(c, 0.25, 1);
        struct rgb lamp = lane < 0 ? hex(0xfff1c4) : hex(0xff5d4d);
        double x = vanish + lane * t, yy = y + (1 - y) * t;
        path_leaf(c, (struct point){vanish + lane * t * 0.6, y + (1 - y) * t * 0.6}, (struct point){x, yy}, 0.05);
        paint(c, lamp, 0.8);
        glow(c, x, yy, 0.03 * t, 0.03 * t, lamp, 0.9);
    }
    for (int i = 0; i < 10; i++) { /* trees along the kerb */
        double t = 0.15 + i * 0.09, h = 0.09 * t + 0.02;
        for (int side = -1; side <= 1; side += 2)
            foliage(c, vanish + side * (0.05 + 0.62 * t), y + (1 - y) * t - h * 0.5, h * 0.5, h * 0.5,
                    darken(hex(0x3f6f5c), 0.4));
    }
}

void scene_city(struct canvas *c)
{
    choose_light(c, LIGHT_NIGHT | LIGHT_DUSK);
    if (chance(c, 0.3)) { /* a violet night */
        c->light.sky[2] = mix(c->light.sky[2], hex(0x7a4a9a), 0.6);
        c->light.sky[3] = mix(c->light.sky[3], hex(0xd86fa0), 0.6);
    }
    double base = between(c, 0.7, 0.82);
    sky(c, base);
    glow(c, 0.5, base, 0.8, 0.35, hex(0xffb980), 0.35);
    struct rgb far = mix(c->light.sky[1], c->light.sky[2], 0.55), near = darken(mix(c->light.sky[0], hex(0x1f2a4a), 0.4), 0.15);
    double low = between(c, 0.2, 0.3);
    block(c, base, low + 0.12, low + 0.36, mix(far, c->light.sky[3], 0.15), 0.12);
    block(c, base, low + 0.02, low + 0.26, mix(far, near, 0.45), 0.3);
    block(c, base, low - 0.1, low + 0.1, near, between(c, 0.35, 0.6));
    if (chance(c, 0.35)) {
        avenue(c, base, near);
        return;
    }
    river(c, base, near);
    if (chance(c, 0.5)) bridge(c, base, mix(near, CHOOSE(c, 0xa8503f, 0x5a6a8a, 0x8a6a9a), 0.5));
}

/* ------------------------------------------------------------------------------------------------ house */

static void window(struct canvas *c, double x, double y, double w, double h, struct rgb frame)
{
    bool lamp = c->light.dark;
    struct rgb glass = lamp ? hex(0xffd98c) : mix(lit(c, hex(0x9cc3d8), 0), c->light.sky[1], 0.4);
    if (lamp) glow(c, x, y, w * 1.6, h * 1.6, hex(0xffcf80), 0.5);
    path_round_box(c, x - w * 0.6, y - h * 0.58, w * 1.2, h * 1.16, w * 0.08);
    paint(c, frame, 1);
    path_box(c, x - w / 2, y - h / 2, w, h);
    paint_between(c, x - w / 2, y - h / 2, brighten(glass, 0.35), x + w / 2, y + h / 2, shaded(c, glass, lamp ? 0 : 0.3));
    path_box(c, x - w * 0.04, y - h / 2, w * 0.08, h);
    path_box(c, x - w / 2, y - h * 0.04, w, h * 0.08);
    path_box(c, x - w * 0.68, y + h * 0.56, w * 1.36, h * 0.12);
    paint(c, frame, 1);
}

static void flower_box(struct canvas *c, double x, double y, double w, struct rgb bloom)
{
    path_round_box(c, x - w / 2, y, w, w * 0.2, w * 0.04);
    paint(c, lit(c, hex(0x8a5a3c), 0), 1);
    for (int i = 0; i < 7; i++) path_ellipse(c, x - w * 0.42 + w * 0.14 * i, y - w * 0.03 * (i % 2), w * 0.1, w * 0.1);
    paint(c, lit(c, hex(0x5f9450), 0), 1);
    for (int i = 0; i < 6; i++) path_ellipse(c, x - w * 0.36 + w * 0.14 * i, y - w * 0.06 * (1 + i % 2), w * 0.065, w * 0.065);
    paint(c, bloom, 1);
}

struct cottage {
    double x, y, w, h, roof; /* middle of the foot, half width, wall height, roof height */
    struct rgb wall, tiles, trim, door;
    double snow;
};

static void cottage_roof(struct canvas *c, const struct cottage *k)
{
    double eave = k->y - k->h, over = k->w * 1.16, in = k->w * 0.62;
    POLYGON(c, {k->x - over, eave + 0.012}, {k->x - in, eave - k->roof}, {k->x + in, eave - k->roof},
            {k->x + over, eave + 0.012});
    clip(c);
    path_box(c, 0, eave - k->roof, 1, k->roof + 0.02);
    paint_down(c, eave - k->roof, brighten(k->tiles, 0.12), eave, shaded(c, k->tiles, 0.3));
    for (int row = 0; row < 7; row++) {
        double y = eave - k->roof + k->roof * row / 6.5;
        for (int i = 0; i < 26; i++) {
            double x = k->x - over + 2 * over * (i + row % 2 * 0.5) / 25;
            path_ellipse(c, x, y, over / 26, k->roof / 10);
        }
        paint_fade(c, 0, y, 0, 0, y + k->roof / 9, 0.35, shaded(c, k->tiles, 0.9));
    }
    if (k->snow > 0) {
        path_box(c, 0, eave - k->roof, 1, k->roof * 1.05);
        paint_fade(c, 0, eave - k->roof, 0.98, 0, eave, 0.75, lit(c, hex(0xffffff), 0));
    }
    unclip(c);
    path_box(c, k->x - over, eave + 0.01, 2 * over, 0.014);
    paint(c, k->trim, 1);
    path_box(c, k->x - k->w, eave + 0.024, 2 * k->w, 0.03);
    paint_fade(c, 0, eave + 0.024, 0.45, 0, eave + 0.054, 0, c->light.shadow);
}

static void dormer(struct canvas *c, const struct cottage *k)
{
    double x = k->x, y = k->y - k->h - k->roof * 0.12, s = k->roof * 0.34;
    path_box(c, x - s, y - s * 1.1, 2 * s, s * 1.1);
    paint(c, k->wall, 1);
    POLYGON(c, {x - s * 1.4, y - s}, {x, y - s * 2.1}, {x + s * 1.4, y - s});
    paint_between(c, x - s, 0, c->light.side < 0 ? brighten(k->tiles, 0.1) : shaded(c, k->tiles, 0.4), x + s, 0,
                  c->light.side < 0 ? shaded(c, k->tiles, 0.4) : brighten(k->tiles, 0.1));
    window(c, x, y - s * 0.48, s * 0.85, s * 0.7, k->trim);
}

static void cottage_door(struct canvas *c, const struct cottage *k, double x)
{
    double w = k->w * 0.3, h = k->h * 0.68;
    path_round_box(c, x - w * 0.62, k->y - h * 1.06, w * 1.24, h * 1.07, w * 0.15);
    paint(c, k->trim, 1);
    path_round_box(c, x - w / 2, k->y - h, w, h, w * 0.12);
    paint_down(c, k->y - h, brighten(k->door, 0.12), k->y, shaded(c, k->door, 0.3));
    path_round_box(c, x - w * 0.3, k->y - h * 0.86, w * 0.6, h * 0.3, w * 0.1);
    paint(c, c->light.dark ? hex(0xffd98c) : lit(c, hex(0xbcdbe8), 0), 1);
    path_ellipse(c, x + w * 0.33, k->y - h * 0.45, w * 0.07, w * 0.07);
    paint(c, hex(0xf0c860), 1);
    path_box(c, x - w * 0.8, k->y - 0.012, w * 1.6, 0.018);
    paint(c, lit(c, hex(0xb9b0a8), 0), 1);
}

static void cottage(struct canvas *c, const struct cottage *k)
{
    double chimney = k->x + k->w * 0.42, top = k->y - k->h - k->roof;
    glow(c, k->x - c->light.side * k->w * 0.5, k->y + 0.01, k->w * 1.6, 0.05, c->light.shadow, 0.6);
    if (chance(c, 0.7))
        smoke(c, chimney, top - 0.06, between(c, 0.05, 0.16), -0.2, 0.045, mix(c->light.sky[3], hex(0xe8e4e6), 0.5));
    path_box(c, chimney - 0.025, top - 0.05, 0.05, k->roof * 0.7);
    paint_round(c, chimney - 0.025, chimney + 0.025, lit(c, hex(0xa8604a), 0));
    path_box(c, chimney - 0.031, top - 0.062, 0.062, 0.016);
    paint(c, lit(c, k->snow > 0 ? hex(0xffffff) : hex(0x7d4a3c), 0), 1);
    path_box(c, k->x - k->w, k->y - k->h, 2 * k->w, k->h);
    paint_round(c, k->x - k->w, k->x + k->w, k->wall);
    if (chance(c, 0.4)) { /* boards */
        for (int i = 1; i < 9; i++) path_box(c, k->x - k->w, k->y - k->h * i / 9, 2 * k->w, 0.003);
        paint(c, shaded(c, k->wall, 0.8), 0.5);
    }
    cottage_roof(c, k);
    bool aside = chance(c, 0.5);
    double door = aside ? k->x - k->w * 0.55 : k->x;
    struct rgb bloom = lit(c, CHOOSE(c, 0xe8596a, 0xf2b134, 0xd987c4, 0xf4f0ea), 0);
    for (int i = 0; i < 2; i++) {
        double x = aside ? k->x + k->w * (0.02 + 0.56 * i) : k->x + k->w * (i ? 0.6 : -0.6);
        window(c, x, k->y - k->h * 0.5, k->w * 0.28, k->h * 0.36, k->trim);
        if (k->snow <= 0) flower_box(c, x, k->y - k->h * 0.25, k->w * 0.42, bloom);
    }
    cottage_door(c, k, door);
    if (k->roof > 0.15 && chance(c, 0.6)) dormer(c, k);
}

static void fence(struct canvas *c, double y, double gap, struct rgb colour)
{
    for (int i = 0; i < 26; i++) {
        double x = i / 25.0, w = 0.016, h = 0.075;
        if (fabs(x - gap) < 0.09) continue;
        POLYGON(c, {x - w / 2, y}, {x - w / 2, y - h}, {x, y - h - 0.012}, {x + w / 2, y - h}, {x + w / 2, y});
    }
    path_box(c, 0, y - 0.058, gap - 0.08, 0.01);
    path_box(c, gap + 0.08, y - 0.058, 1 - gap - 0.08, 0.01);
    path_box(c, 0, y - 0.026, gap - 0.08, 0.01);
    path_box(c, gap + 0.08, y - 0.026, 1 - gap - 0.08, 0.01);
    paint_down(c, y - 0.09, colour, y, shaded(c, colour, 0.35));
}

void scene_house(struct canvas *c)
{
    choose_light(c, LIGHT_ANY);
    int season = between_int(c, 0, 3);
    static const unsigned turfs[4] = {0x8fbb5c, 0x7fae58, 0xb5a250, 0xf0f4fa},
                          crowns[4] = {0xf2b6c6, 0x5f9a52, 0xd9893a, 0xc9d4de};
    struct rgb turf = vary(c, hex(turfs[season]), 0.03), crown = lit(c, hex(crowns[season]), 0);
    double ground = between(c, 0.66, 0.74);
    sky(c, ground);
    struct ridge far = ridge_make(c, ground - 0.02, 0.12, between(c, 1.5, 3), 3);
    hills(c, &far, mix(turf, hex(0x5f8fa0), 0.4), 0.45);
    wood_line(c, &far, 18, 0.05, lit(c, mix(turf, hex(0x2f5f5a), 0.6), 0.4), season == 3 ? 0.6 : 0);
    struct ridge lawn = ridge_make(c, ground, 0.03, 1.5, 2);
    hills(c, &lawn, turf, 0.05);
    double x = between(c, 0.42, 0.58), side = x < 0.5 ? 1 : -1, w = between(c, 0.2, 0.27);
    double big = between(c, 0.34, 0.5);
    foliage(c, x - side * between(c, 0.28, 0.4), ground - 0.08, 0.14, 0.13, shaded(c, crown, 0.35));
    round_tree(c, x + side * between(c, 0.32, 0.4), ground + 0.03, big, crown);
    double h = between(c, 0.2, 0.26), roof = between(c, 0.13, 0.22);
    struct cottage k = {x, ground + 0.07, w, h, roof, .snow = season == 3 ? 1 : 0};
    k.wall = lit(c, CHOOSE(c, 0xfbf1dc, 0xf3d9b4, 0xcfe0e0, 0xf2c4b4, 0xe8e6f0, 0xd9b48a, 0xf6e08f), 0);
    k.tiles = lit(c, CHOOSE(c, 0xb8503e, 0x8a4a44, 0x5b6b8c, 0x4f7a72, 0xc9703f, 0x6a5148), 0);
    k.trim = lit(c, hex(0xfffaf2), 0);
    k.door = lit(c, CHOOSE(c, 0x3f7f8c, 0xb5433f, 0x4a6f4a, 0x7a4f38, 0xd9963a), 0);
    cottage(c, &k);
    POLYGON(c, {x - 0.035, k.y}, {x + 0.035, k.y}, {x + 0.16, 1.01}, {x - 0.1, 1.01});
    paint_down(c, k.y, lit(c, hex(0xdcc9a8), 0.05), 1, lit(c, season == 3 ? hex(0xdfe4ee) : hex(0xe6d3ae), 0));
    for (int i = 0; i < 5; i++) {
        double at = x + (i - 2) * w * 0.52, r = between(c, 0.025, 0.045);
        if (i != 2)
            foliage(c, at, k.y - r * 0.3, r * 1.3, r, lit(c, season == 3 ? hex(0xdbe6ee) : mix(turf, hex(0x2f6a3f), 0.5), 0));
    }
    if (season != 3) grass(c, k.y + 0.03, 1.02, 120, 0.04, lit(c, turf, 0));
    if (season < 2) blossoms(c, k.y + 0.06, 1, 30, 0.014, lit(c, CHOOSE(c, 0xf6f0ff, 0xf28aa0, 0xf6cf52, 0xb58ae0), 0));
    if (chance(c, 0.5)) fence(c, 0.985, x + 0.03, lit(c, hex(0xfffaf0), 0));
    if (season == 3) snowfall(c, between_int(c, 0, 110));
}
