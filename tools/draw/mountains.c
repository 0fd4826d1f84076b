/* Scenes of rock: alp, cactus. */
#include "scenes.h"

#include <math.h>

/* -------------------------------------------------------------------------------------------------- alp */

enum { PEAK_POINTS = 14 };

struct peak {
    double x, top, foot, half; /* summit, height of the foot, half the width there */
    struct rgb rock;
    double snow; /* share of the height that is white */
    double distance;
};

/* The outline of one side, from the summit down. */
static void peak_side(const struct peak *p, uint32_t key, double side, struct point *out)
{
    double height = p->foot - p->top;
    for (int i = 0; i < PEAK_POINTS; i++) {
        double t = (double)i / (PEAK_POINTS - 1), ragged = noise_1d(key, i * 0.9 + 50) * 0.09 * (t < 0.05 ? 0 : 1 - 0.6 * t);
        out[i] =
            (struct point){p->x + side * p->half * (t + ragged * 0.7), p->top + height * (t * t * 0.25 + t * 0.75 + ragged)};
    }
}

/* A jagged line of `teeth` across the peak at height y, closed above it: where the snow ends. */
static void path_snow(struct canvas *c, const struct peak *p, double y, int teeth)
{
    double left = p->x - p->half, width = 2 * p->half, height = p->foot - p->top;
    cairo_move_to(c->cr, left, p->top - 0.02);
    for (int i = 0; i <= teeth; i++) {
        double drop = (i % 2 ? 0.1 : -0.06) * height * between(c, 0.3, 1.4);
        cairo_line_to(c->cr, left + width * i / teeth, y + drop);
    }
    cairo_line_to(c->cr, left + width, p->top - 0.02);
    cairo_close_path(c->cr);
}

/* The face away from the light: from the summit down a wandering edge, and back along the outline. */
static void path_shade(struct canvas *c, const struct peak *p, const struct point *outline)
{
    double height = p->foot - p->top, x = p->x;
    cairo_move_to(c->cr, p->x, p->top);
    for (int i = 1; i <= 9; i++) {
        double y = p->top + height * i / 9;
        x += p->half * (i % 2 ? 0.13 : -0.09) * between(c, 0.4, 1.3) * c->light.side;
        cairo_line_to(c->cr, x, y);
    }
    for (int i = PEAK_POINTS; i-- > 0;) cairo_line_to(c->cr, outline[i].x, outline[i].y);
    cairo_close_path(c->cr);
}

static void spurs(struct canvas *c, const struct peak *p)
{
    double height = p->foot - p->top;
    for (int i = 0; i < 7; i++) {
        double t = between(c, 0.15, 0.7), x = p->x + p->half * t * between(c, -0.8, 0.8), y = p->top + height * t;
        double drop = height * between(c, 0.15, 0.35), lean = p->half * between(c, -0.15, 0.15);
        POLYGON(c, {x, y}, {x + lean + 0.012, y + drop * 0.6}, {x + lean * 0.6 - c->light.side * 0.05, y + drop});
        paint(c, c->light.shadow, 0.2);
    }
}

static void peak(struct canvas *c, const struct peak *p)
{
    struct point left[PEAK_POINTS], right[PEAK_POINTS];
    uint32_t key = fresh_key(c) & 0xffffffu;
    peak_side(p, key, -1, left);
    peak_side(p, key + 1, 1, right);
    struct rgb rock = lit(c, p->rock, p->distance), white = lit(c, hex(0xfdfdff), p->distance * 0.7);
    cairo_move_to(c->cr, left[PEAK_POINTS - 1].x, left[PEAK_POINTS - 1].y);
    for (int i = PEAK_POINTS - 1; i-- > 0;) cairo_line_to(c->cr, left[i].x, left[i].y);
    for (int i = 1; i < PEAK_POINTS; i++) cairo_line_to(c->cr, right[i].x, right[i].y);
    cairo_close_path(c->cr);
    clip(c);
    path_box(c, -1, p->top - 0.1, 3, 2);
    paint_down(c, p->top, brighten(rock, 0.06), p->foot, lit(c, p->rock, clamp01(p->distance + 0.35)));
    path_snow(c, p, p->top + (p->foot - p->top) * p->snow, between_int(c, 11, 17));
    paint_down(c, p->top, brighten(white, 0.3), p->foot, white);
    spurs(c, p);
    path_shade(c, p, c->light.side < 0 ? right : left);
    paint_fade(c, 0, p->top, 0.62 - 0.3 * p->distance, 0, p->foot, 0.3, mix(c->light.shadow, hex(0x4a6696), 0.25));
    unclip(c);
}

/* A lake that takes up the colours of the sky, with a shore. */
static void mountain_lake(struct canvas *c, double y0, double y1, struct rgb shore)
{
    water(c, y0, y1, hex(0x3f86a8));
    glow(c, between(c, 0.3, 0.7), y0, 0.6, (y1 - y0) * 0.8, shaded(c, shore, 0.5), 0.4);
    veil(c, y0, 0.5, y0 + 0.02, 0, c->light.haze);
}

static void chalet(struct canvas *c, double x, double y, double s, double snow)
{
    struct rgb wood = lit(c, CHOOSE(c, 0x8a5a3c, 0x9a6a44, 0x6f4a38), 0.08),
               roof = lit(c, snow > 0 ? hex(0xf8faff) : hex(0x5a4038), 0.05);
    glow(c, x - c->light.side * s * 0.6, y, s * 1.8, s * 0.3, c->light.shadow, 0.6);
    path_box(c, x - s, y - s * 0.9, 2 * s, s * 0.9);
    paint_round(c, x - s, x + s, wood);
    path_box(c, x - s, y - s * 0.3, 2 * s, s * 0.3);
    paint_round(c, x - s, x + s, lit(c, hex(0xe0d6c8), 0.08));
    POLYGON(c, {x - s * 1.35, y - s * 0.72}, {x, y - s * 1.65}, {x + s * 1.35, y - s * 0.72}, {x + s * 1.2, y - s * 0.66},
            {x, y - s * 1.4}, {x - s * 1.2, y - s * 0.66});
    POLYGON(c, {x - s * 1.1, y - s * 0.78}, {x, y - s * 1.5}, {x + s * 1.1, y - s * 0.78});
    paint_between(c, x + c->light.side * s, 0, brighten(roof, 0.15), x - c->light.side * s, 0, shaded(c, roof, 0.5));
    for (int i = -1; i <= 1; i += 2) path_box(c, x + i * s * 0.5 - s * 0.16, y - s * 0.68, s * 0.32, s * 0.28);
    paint(c, c->light.dark ? hex(0xffd27a) : lit(c, hex(0x46566a), 0), 1);
}

/* Two slopes with groves, the nearer one with a chalet, a path down from it. */
static void valley(struct canvas *c, double foot, struct rgb meadow, struct rgb wood, double snow)
{
    for (int i = 0; i < 2; i++) {
        struct ridge slope = ridge_make(c, foot + 0.1 + 0.08 * i, 0.07, between(c, 1, 2.2), 2);
        double distance = 0.22 - 0.1 * i;
        hills(c, &slope, mix(meadow, wood, 0.25 - 0.15 * i), distance);
        int groves = between_int(c, 2, 4);
        for (int g = 0; g < groves; g++) {
            double middle = between(c, 0, 1), h = 0.07 + 0.035 * i;
            for (int k = 0; k < 6; k++) {
                double x = middle + between(c, -0.09, 0.09), tall = h * between(c, 0.7, 1.2);
                pine(c, x, ridge_at(&slope, x) + 0.015 + 0.004 * k, tall, lit(c, vary(c, wood, 0.02), distance), snow * 0.85);
            }
        }
        if (i == 0 || chance(c, 0.4)) continue;
        double x = between(c, 0.2, 0.8), y = ridge_at(&slope, x) + 0.03;
        cairo_move_to(c->cr, x + 0.01, y - 0.01);
        cairo_curve_to(c->cr, x - 0.06, y + 0.06, x + 0.14, y + 0.08, x + 0.02, y + 0.3);
        cairo_line_to(c->cr, x + 0.1, y + 0.3);
        cairo_curve_to(c->cr, x + 0.2, y + 0.08, x - 0.02, y + 0.06, x + 0.025, y - 0.01);
        paint(c, lit(c, mix(meadow, hex(0xe6d0a0), 0.6), 0.08), 0.9);
        chalet(c, x, y, between(c, 0.032, 0.045), snow);
    }
}

void scene_alp(struct canvas *c)
{
    choose_light(c, LIGHT_ANY);
    double season = between(c, 0, 1);
    bool winter = season > 0.7;
    double snow = winter ? 1 : 0;
    struct rgb meadow = season < 0.45  ? CHOOSE(c, 0x7fae5a, 0x93b865, 0x6ca067)
                        : season < 0.7 ? CHOOSE(c, 0xc9a24e, 0xb98d4a)
                                       : hex(0xeef3fa);
    struct rgb wood = season < 0.45  ? CHOOSE(c, 0x2f6147, 0x37694a)
                      : season < 0.7 ? CHOOSE(c, 0x8a6a35, 0x47663f)
                                     : hex(0x48706b);
    struct rgb rock = CHOOSE(c, 0x7d8798, 0x8b8590, 0x6d7f96, 0x94857c);
    double foot = between(c, 0.6, 0.72);
    sky(c, foot);
    struct ridge far = ridge_make(c, foot, 0.16, between(c, 4, 7), 5);
    far.sharp = true;
    hills(c, &far, hex(0x7f93b5), 0.6);
    int peaks = between_int(c, 2, 4);
    double x0 = between(c, -0.05, 0.3), summit = between(c, 0.12, 0.28);
    for (int i = 0; i < peaks; i++) {
        bool main_peak = i == peaks - 1;
        double lower = main_peak ? 0 : between(c, 0.08, 0.2), half = between(c, 0.36, 0.5) - lower * 0.4;
        double x = main_peak ? between(c, 0.3, 0.7) : x0 + 0.5 * i;
        struct peak p = {x, summit + lower, foot + 0.06, half, vary(c, rock, 0.03), 0.3 + 0.35 * snow, main_peak ? 0.05 : 0.3};
        peak(c, &p);
    }
    veil(c, foot - 0.22, 0, foot + 0.06, 0.55, c->light.haze);
    struct ridge mid = ridge_make(c, foot + 0.03, 0.07, between(c, 2, 4), 3);
    hills(c, &mid, mix(meadow, wood, 0.6), 0.3);
    wood_line(c, &mid, 44, 0.055, lit(c, wood, 0.28), snow * 0.7);
    if (chance(c, 0.45))
        mountain_lake(c, foot + 0.07, 1, lit(c, wood, 0.1));
    else
        valley(c, foot, meadow, wood, snow);
    double near_y = between(c, 0.87, 0.93);
    struct ridge near = ridge_make(c, near_y, 0.09, between(c, 1.2, 2.4), 3);
    hills(c, &near, meadow, 0);
    if (!winter) grass(c, near.y - 0.01, 1.02, 90, 0.03, lit(c, meadow, 0));
    if (!winter && chance(c, 0.6)) blossoms(c, near.y, 1, 26, 0.012, lit(c, CHOOSE(c, 0xf7f0ff, 0xf3c4d8, 0xf5d75f), 0));
    double side = chance(c, 0.5) ? 0 : 1;
    int trees = between_int(c, 1, 5);
    for (int i = 0; i < trees; i++) {
        double x = fabs(side - between(c, 0.0, 0.32)), h = between(c, 0.16, 0.34);
        pine(c, x, ridge_at(&near, x) + 0.03, h, lit(c, vary(c, wood, 0.03), 0), snow);
    }
    if (chance(c, 0.4)) birds(c, between(c, 0.2, 0.8), 0.2, 0.018, 4);
    if (winter && chance(c, 0.4)) snowfall(c, 90);
}

/* ----------------------------------------------------------------------------------------------- cactus */

/* arms: where each leaves the trunk and how far it rises, as shares of the height. */
static void path_arms(struct canvas *c, double x, double y, double h, const double *arms, double shift)
{
    double w = h * 0.15;
    for (int i = 0; i < 2; i++) {
        double side = i ? 1 : -1, at = y - h * arms[i], reach = side * w * 1.75, up = h * arms[i + 2];
        if (arms[i + 2] <= 0) continue;
        cairo_move_to(c->cr, x, at);
        cairo_line_to(c->cr, x + reach * 0.6, at);
        cairo_curve_to(c->cr, x + reach + shift, at, x + reach + shift, at, x + reach + shift, at - w * 0.9);
        cairo_line_to(c->cr, x + reach + shift, at - up);
    }
}

static void saguaro(struct canvas *c, double x, double y, double h, struct rgb colour)
{
    double w = h * 0.15, arms[4];
    for (int i = 0; i < 2; i++) {
        arms[i] = between(c, 0.3, 0.55);
        arms[i + 2] = chance(c, 0.85) ? between(c, 0.14, 0.34) : 0;
    }
    glow(c, x - c->light.side * w, y, w * 2.4, w * 0.5, shaded(c, c->light.shadow, 0.3), 0.6);
    cairo_set_line_cap(c->cr, CAIRO_LINE_CAP_ROUND);
    cairo_set_line_join(c->cr, CAIRO_LINE_JOIN_ROUND);
    for (int part = 0; part < 2; part++) {                                                /* arms, then the trunk before them */
        static const double bark[3][3] = {{0, 1, 0.65}, {0.12, 0.7, 0}, {0.24, 0.25, 0}}; /* shift, width, shade */
        for (int i = 0; i < 6; i++) {
            double shift = i < 3 ? c->light.side * w * bark[i][0] : (i - 4) * w * 0.24;
            if (part == 0) {
                path_arms(c, x, y, h, arms, shift);
            } else {
                cairo_move_to(c->cr, x + shift, y);
                cairo_line_to(c->cr, x + shift, y - h);
            }
            if (i < 3)
                stroke(c, w * bark[i][1], i == 2 ? brighten(colour, 0.22) : shaded(c, colour, bark[i][2]), i == 2 ? 0.8 : 1);
            else
                stroke(c, fmax(0.0025, w * 0.05), shaded(c, colour, 0.9), 0.5); /* ribs */
        }
    }
    if (chance(c, 0.5)) { /* in bloom */
        struct rgb bloom = lit(c, CHOOSE(c, 0xf27d9b, 0xfff0c9, 0xf4a13c), 0);
        for (int i = -1; i <= 1; i++) path_ellipse(c, x + i * w * 0.32, y - h - w * 0.5, w * 0.22, w * 0.2);
        paint(c, bloom, 1);
    }
}

static void mesa(struct canvas *c, double x, double y, double w, double h, struct rgb colour)
{
    double lip = w * between(c, 0.55, 0.75);
    POLYGON(c, {x - w, y}, {x - lip * 1.08, y - h * 0.45}, {x - lip, y - h}, {x + lip * 0.95, y - h * 1.02},
            {x + lip * 1.1, y - h * 0.4}, {x + w, y});
    clip(c);
    path_box(c, x - w, y - h * 1.1, 2 * w, h * 1.1);
    paint_down(c, y - h, brighten(colour, 0.12), y, mix(colour, c->light.haze, 0.45));
    for (int i = 0; i < 5; i++) { /* strata */
        double up = between(c, 0.1, 0.95), thick = between(c, 0.03, 0.08);
        path_box(c, x - w, y - h * up, 2 * w, h * thick);
        paint(c, shaded(c, colour, 0.6), 0.22);
    }
    double dark = -c->light.side;
    POLYGON(c, {x + dark * lip * 0.25, y - h * 1.1}, {x + dark * lip * 0.4, y - h * 0.5}, {x + dark * w * 0.5, y},
            {x + dark * w, y}, {x + dark * w, y - h * 1.1});
    paint(c, c->light.shadow, 0.32);
    unclip(c);
}

static void stones(struct canvas *c, double y0, double y1, int count, struct rgb colour)
{
    for (int i = 0; i < count; i++) {
        struct point at = point_in(c, 0, y0, 1, y1);
        double r = between(c, 0.012, 0.04) * (0.3 + (at.y - y0) / (y1 - y0));
        glow(c, at.x - c->light.side * r * 0.5, at.y + r * 0.35, r * 1.8, r * 0.6, c->light.shadow, 0.5);
        path_blob(c, at.x, at.y, r, r * 0.65, 0.15);
        paint_ball(c, at.x, at.y, r, brighten(colour, 0.2), shaded(c, colour, 0.8));
    }
}

void scene_cactus(struct canvas *c)
{
    choose_light(c, LIGHT_BRIGHT | LIGHT_DUSK | LIGHT_NIGHT);
    double horizon = between(c, 0.5, 0.68);
    struct rgb sand = CHOOSE(c, 0xe9bf82, 0xe2a76f, 0xf0d3a0, 0xd99a72),
               rock = CHOOSE(c, 0xc4704f, 0xb5654c, 0xcc8a5e, 0xa3627a);
    sky(c, horizon);
    int mesas = between_int(c, 2, 4);
    for (int i = 0; i < mesas; i++) {
        double x = (i + between(c, 0.1, 0.9)) / mesas, w = between(c, 0.1, 0.22), h = between(c, 0.09, 0.22);
        struct rgb tone = vary(c, rock, 0.03);
        mesa(c, x, horizon + 0.03, w, h, lit(c, tone, between(c, 0.25, 0.5)));
    }
    double y = horizon;
    for (int i = 0; i < 3; i++) {
        struct ridge dune = ridge_make(c, y + 0.02, 0.05 + 0.02 * i, between(c, 1, 2.2), 2);
        hills(c, &dune, vary(c, sand, 0.02), 0.3 - 0.15 * i);
        y += (1 - horizon) * 0.3;
    }
    mottle(c, (struct point){-0.2, horizon}, (struct point){1.4, 1.1 - horizon}, (struct point){3, 14}, 0, 0.7,
           shaded(c, lit(c, sand, 0), 0.5), 0.35);
    struct rgb green = CHOOSE(c, 0x4f8a5b, 0x5d9367, 0x3f7d63, 0x7b9a56);
    int small = between_int(c, 2, 5);
    for (int i = 0; i < small; i++) {
        double x = between(c, 0.03, 0.97), h = between(c, 0.1, 0.2);
        saguaro(c, x, horizon + 0.06 + h * 0.4, h, lit(c, green, 0.22));
    }
    stones(c, horizon + 0.15, 1, between_int(c, 3, 8), lit(c, rock, 0));
    double x = between(c, 0.28, 0.72), foot = between(c, 0.85, 0.95);
    saguaro(c, x, foot, between(c, 0.48, 0.64), lit(c, green, 0));
    grass(c, foot - 0.02, 1, between_int(c, 5, 25), 0.05, lit(c, mix(green, sand, 0.5), 0));
    if (chance(c, 0.3)) birds(c, between(c, 0.2, 0.8), 0.2, 0.018, 3);
}
