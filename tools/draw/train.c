/* The scene on rails: train. A steam engine pulls carriages to the right; the caller mirrors half of the pictures. */
#include "scenes.h"

#include <math.h>

struct livery {
    struct rgb engine, trim, iron, coach, roof;
};

static void wheel(struct canvas *c, double x, double y, double r, struct rgb rim, struct rgb spoke, double turn)
{
    path_ellipse(c, x, y, r, r);
    paint(c, rim, 1);
    path_ellipse(c, x, y, r * 0.78, r * 0.78);
    paint(c, spoke, 1);
    path_ellipse(c, x, y, r * 0.66, r * 0.66);
    paint(c, darken(rim, 0.1), 1);
    for (int i = 0; i < 6; i++) {
        double a = turn + i / 12.0;
        cairo_move_to(c->cr, x - r * 0.7 * cowave(a), y - r * 0.7 * wave(a));
        cairo_line_to(c->cr, x + r * 0.7 * cowave(a), y + r * 0.7 * wave(a));
    }
    stroke(c, r * 0.13, spoke, 1);
    path_ellipse(c, x, y, r * 0.22, r * 0.22);
    paint(c, brighten(spoke, 0.2), 1);
}

/* Wheels, rods, buffers: the rail is at y = 0, one unit is the height of the chimney's top. */
static void running_gear(struct canvas *c, const struct livery *l, double turn)
{
    static const double drivers[3] = {0.28, 0.64, 1.0};
    path_box(c, 0.02, -0.3, 1.72, 0.09);
    paint(c, l->iron, 1);
    for (int i = 0; i < 2; i++) wheel(c, 1.3 + 0.24 * i, -0.1, 0.1, l->iron, l->trim, turn);
    for (int i = 0; i < 3; i++) wheel(c, drivers[i], -0.17, 0.17, l->iron, l->trim, turn);
    double rx = 0.09 * cowave(turn), ry = 0.09 * wave(turn);
    cairo_set_line_cap(c->cr, CAIRO_LINE_CAP_ROUND);
    cairo_move_to(c->cr, drivers[0] + rx, -0.17 + ry);
    cairo_line_to(c->cr, drivers[2] + rx, -0.17 + ry);
    cairo_move_to(c->cr, drivers[2] + rx, -0.17 + ry);
    cairo_line_to(c->cr, 1.4, -0.2);
    stroke(c, 0.034, lit(c, hex(0xd8dade), 0), 1);
    path_round_box(c, 1.26, -0.3, 0.34, 0.16, 0.05);
    paint_down(c, -0.3, brighten(l->engine, 0.2), -0.14, shaded(c, l->engine, 0.5));
    POLYGON(c, {1.68, -0.28}, {1.78, -0.28}, {1.98, -0.02}, {1.68, -0.02}); /* cowcatcher */
    paint(c, l->trim, 1);
    for (int i = 0; i < 3; i++) {
        cairo_move_to(c->cr, 1.7 + 0.025 * i, -0.26);
        cairo_line_to(c->cr, 1.73 + 0.07 * i, -0.03);
    }
    stroke(c, 0.02, shaded(c, l->trim, 0.9), 0.8);
}

static void boiler(struct canvas *c, const struct livery *l)
{
    double top = -0.74, foot = -0.3;
    path_box(c, 0.5, top, 1.14, foot - top);
    cairo_pattern_t *p = cairo_pattern_create_linear(0, top, 0, foot);
    struct rgb shine = brighten(l->engine, 0.3), dark = shaded(c, l->engine, 0.7);
    cairo_pattern_add_color_stop_rgb(p, 0, l->engine.r, l->engine.g, l->engine.b);
    cairo_pattern_add_color_stop_rgb(p, 0.25, shine.r, shine.g, shine.b);
    cairo_pattern_add_color_stop_rgb(p, 0.5, l->engine.r, l->engine.g, l->engine.b);
    cairo_pattern_add_color_stop_rgb(p, 1, dark.r, dark.g, dark.b);
    cairo_set_source(c->cr, p);
    cairo_fill(c->cr);
    cairo_pattern_destroy(p);
    for (int i = 0; i < 4; i++) path_box(c, 0.66 + 0.25 * i, top - 0.005, 0.03, foot - top + 0.01);
    paint_down(c, top, brighten(l->trim, 0.3), foot, shaded(c, l->trim, 0.5));
    path_round_box(c, 1.6, top - 0.02, 0.12, foot - top + 0.04, 0.05); /* smoke box door */
    paint_down(c, top, brighten(l->iron, 0.2), foot, shaded(c, l->iron, 0.4));
    POLYGON(c, {1.4, top + 0.01}, {1.42, -0.92}, {1.36, -1}, {1.62, -1}, {1.56, -0.92}, {1.58, top + 0.01}); /* chimney */
    paint_round(c, 1.36, 1.62, l->iron);
    path_box(c, 1.35, -1.02, 0.28, 0.04);
    paint(c, l->trim, 1);
    for (int i = 0; i < 2; i++) { /* domes */
        double x = 0.82 + 0.3 * i, r = i ? 0.075 : 0.1;
        path_round_box(c, x - r, top - r * 1.2, 2 * r, r * 1.4, r * 0.9);
        paint_round(c, x - r, x + r, i ? l->trim : l->engine);
    }
    path_round_box(c, 1.7, -0.7, 0.1, 0.12, 0.03); /* lamp */
    paint(c, l->iron, 1);
    path_ellipse(c, 1.8, -0.64, 0.045, 0.055);
    paint(c, hex(0xfff2b0), 1);
    glow(c, 1.82, -0.64, c->light.dark ? 0.6 : 0.15, c->light.dark ? 0.35 : 0.15, hex(0xfff0b0), 0.8);
}

static void cab(struct canvas *c, const struct livery *l)
{
    path_box(c, 0.06, -0.98, 0.48, 0.7);
    paint_round(c, 0.06, 0.54, l->engine);
    path_round_box(c, 0.15, -0.88, 0.28, 0.24, 0.04);
    paint(c, c->light.dark ? hex(0xffcf78) : lit(c, hex(0x46586a), 0), 1);
    path_round_box(c, 0.14, -0.56, 0.32, 0.2, 0.03);
    stroke(c, 0.018, l->trim, 1);
    cairo_move_to(c->cr, -0.02, -0.96);
    cairo_curve_to(c->cr, 0.1, -1.08, 0.5, -1.08, 0.62, -0.96);
    cairo_close_path(c->cr);
    paint(c, l->roof, 1);
}

static void tender(struct canvas *c, const struct livery *l, double turn)
{
    path_box(c, -0.64, -0.62, 0.62, 0.4);
    paint_down(c, -0.62, brighten(l->engine, 0.1), -0.22, shaded(c, l->engine, 0.5));
    path_box(c, -0.6, -0.55, 0.54, 0.02);
    path_box(c, -0.6, -0.3, 0.54, 0.02);
    paint(c, l->trim, 1);
    SMOOTH(c, true, {-0.62, -0.61}, {-0.5, -0.74}, {-0.34, -0.7}, {-0.2, -0.77}, {-0.04, -0.61});
    paint(c, lit(c, hex(0x2a2a30), 0), 1);
    path_box(c, -0.68, -0.26, 0.74, 0.06);
    paint(c, l->iron, 1);
    for (int i = 0; i < 2; i++) wheel(c, -0.5 + 0.34 * i, -0.11, 0.11, l->iron, l->trim, turn);
}

static void carriage(struct canvas *c, const struct livery *l, double x, struct rgb paintwork, double turn)
{
    double w = 1.3;
    path_round_box(c, x, -0.88, w, 0.66, 0.05);
    paint_down(c, -0.88, brighten(paintwork, 0.12), -0.22, shaded(c, paintwork, 0.4));
    path_box(c, x + 0.01, -0.44, w - 0.02, 0.04);
    paint(c, l->trim, 1);
    path_round_box(c, x - 0.03, -0.97, w + 0.06, 0.13, 0.06);
    paint_down(c, -0.97, brighten(l->roof, 0.2), -0.84, shaded(c, l->roof, 0.4));
    for (int i = 0; i < 5; i++) {
        path_round_box(c, x + 0.09 + 0.235 * i, -0.76, 0.17, 0.24, 0.03);
        paint_down(c, -0.76, c->light.dark ? hex(0xffdf9a) : mix(c->light.sky[1], hex(0xffffff), 0.35), -0.5,
                   c->light.dark ? hex(0xffc060) : lit(c, hex(0x5f7f98), 0));
    }
    path_box(c, x - 0.06, -0.25, w + 0.12, 0.06);
    paint(c, l->iron, 1);
    for (int i = 0; i < 4; i++)
        wheel(c, x + 0.16 + (i > 1 ? 0.62 : 0) + 0.2 * (i % 2 ? 1 : 0) + 0.05, -0.1, 0.1, l->iron, l->trim, turn);
}

/* -------------------------------------------------------------------------------------------- the country */

static void track(struct canvas *c, double y, struct rgb gravel)
{
    POLYGON(c, {-0.1, y + 0.004}, {1.1, y + 0.004}, {1.1, y + 0.045}, {-0.1, y + 0.045});
    paint_down(c, y, gravel, y + 0.045, shaded(c, gravel, 0.5));
    for (int i = 0; i < 36; i++) path_box(c, -0.02 + i * 0.0295, y + 0.01, 0.016, 0.014);
    paint(c, lit(c, hex(0x6a4f3f), 0), 1);
    path_box(c, -0.1, y, 1.2, 0.009);
    paint_down(c, y, lit(c, hex(0xd0d4da), 0), y + 0.009, lit(c, hex(0x5a5f6a), 0));
}

/* Stone arches over a valley with a river. */
static void viaduct(struct canvas *c, double y, struct rgb turf)
{
    struct rgb stone = lit(c, CHOOSE(c, 0xb5a596, 0xa8a4a8, 0xc4a888, 0xb08a72), 0);
    struct ridge valley = ridge_make(c, 0.93, 0.05, 2, 2);
    hills(c, &valley, turf, 0.05);
    double w = between(c, 0.2, 0.28), start = between(c, -w, 0);
    path_box(c, -0.1, y + 0.04, 1.2, 1); /* a wall with arches cut out */
    for (int i = 0; i < 8; i++) {
        double x = start + i * w, r = w * 0.38;
        cairo_move_to(c->cr, x - r, 1.05);
        cairo_line_to(c->cr, x - r, y + 0.09 + r);
        cairo_curve_to(c->cr, x - r, y + 0.09 + r * 0.45, x - r * 0.55, y + 0.09, x, y + 0.09);
        cairo_curve_to(c->cr, x + r * 0.55, y + 0.09, x + r, y + 0.09 + r * 0.45, x + r, y + 0.09 + r);
        cairo_line_to(c->cr, x + r, 1.05);
        cairo_close_path(c->cr);
    }
    cairo_set_fill_rule(c->cr, CAIRO_FILL_RULE_EVEN_ODD);
    paint_down(c, y, brighten(stone, 0.1), 1, shaded(c, stone, 0.5));
    cairo_set_fill_rule(c->cr, CAIRO_FILL_RULE_WINDING);
    path_box(c, -0.1, y + 0.035, 1.2, 0.014);
    paint(c, brighten(stone, 0.2), 1);
    path_box(c, -0.1, y + 0.05, 1.2, 0.012);
    paint(c, c->light.shadow, 0.35);
}

static void embankment(struct canvas *c, double y, struct rgb turf)
{
    path_box(c, -0.1, y + 0.03, 1.2, 1);
    struct rgb near = lit(c, turf, 0);
    paint_down(c, y, brighten(near, 0.08), 1, shaded(c, near, 0.5));
    grass(c, y + 0.06, 1.03, 150, 0.05, near);
    if (chance(c, 0.7)) blossoms(c, y + 0.08, 1, 28, 0.014, lit(c, CHOOSE(c, 0xfff6f0, 0xf7d95a, 0xe8707a, 0xa98ae0), 0));
    int bushes = between_int(c, 0, 4);
    for (int i = 0; i < bushes; i++) {
        double x = between(c, 0, 1), r = between(c, 0.03, 0.06);
        foliage(c, x, between(c, 0.93, 1), r * 1.5, r, lit(c, mix(turf, hex(0x2f6a4a), 0.5), 0));
    }
}

void scene_train(struct canvas *c)
{
    choose_light(c, LIGHT_ANY);
    double rail = between(c, 0.72, 0.8), horizon = rail - between(c, 0.08, 0.16);
    bool autumn = chance(c, 0.3);
    struct rgb turf = autumn ? CHOOSE(c, 0xc9a552, 0xb8984f) : CHOOSE(c, 0x8ab55c, 0x9abb66, 0x7aa860);
    struct rgb wood = autumn ? hex(0xb5763a) : hex(0x2f6148);
    sky(c, horizon);
    struct ridge peaks = ridge_make(c, horizon, 0.2, between(c, 2, 5), 5);
    peaks.sharp = chance(c, 0.6);
    hills(c, &peaks, hex(0x7f94b5), 0.55);
    struct ridge land = ridge_make(c, horizon + 0.02, 0.07, between(c, 1.5, 3), 3);
    hills(c, &land, mix(turf, wood, 0.3), 0.32);
    wood_line(c, &land, between_int(c, 10, 30), 0.06, lit(c, mix(turf, wood, 0.75), 0.28), 0);
    struct ridge field = ridge_make(c, rail - 0.02, 0.03, 2, 2);
    hills(c, &field, turf, 0.14);
    if (chance(c, 0.4))
        viaduct(c, rail, turf);
    else
        embankment(c, rail, turf);
    track(c, rail, lit(c, hex(0xa89c92), 0));

    struct livery l = {.iron = lit(c, hex(0x33353f), 0)};
    l.engine = lit(c, CHOOSE(c, 0xb5403a, 0x3a6f9f, 0x3f7d5a, 0x3a3d4a, 0x7a4a8a, 0x2f7f80), 0);
    l.trim = lit(c, CHOOSE(c, 0xe8b84a, 0xd9583f, 0xf2e2c0), 0);
    l.roof = lit(c, CHOOSE(c, 0x4a4a55, 0x6a4a40, 0xe0d6c6), 0);
    l.coach = lit(c, CHOOSE(c, 0xa84a3f, 0x4a7f6a, 0xe0b45a, 0x4a6fa5, 0xe8d8ba, 0x8a5a8a), 0);
    double size = between(c, 0.22, 0.3), nose = between(c, 0.8, 0.97), turn = between(c, 0, 0.25);
    bool mixed = chance(c, 0.35), mirrored = chance(c, 0.5);
    cairo_save(c->cr);
    if (mirrored) {
        cairo_translate(c->cr, 1, 0);
        cairo_scale(c->cr, -1, 1);
        c->light.side *= -1;
    }
    double x = nose - 1.98 * size;
    double drift = -between(c, 0.35, 0.6), rise = -between(c, 0.14, 0.28);
    smoke(c, x + 1.49 * size, rail - 1.1 * size, drift, rise, 0.08,
          c->light.dark ? mix(c->light.sky[3], hex(0xdcdade), 0.5) : mix(c->light.sky[1], hex(0xb9b4be), 0.65));
    place_begin(c, x, rail, size, 0);
    for (int i = 0; i < 4; i++) {
        struct rgb coat = l.coach;
        if (mixed) coat = lit(c, CHOOSE(c, 0xa84a3f, 0x4a7f6a, 0xe0b45a, 0x4a6fa5, 0xe8d8ba), 0);
        if ((-2.12 - 1.42 * i) * size + x > -1.5 * size) carriage(c, &l, -2.12 - 1.42 * i, coat, turn);
    }
    tender(c, &l, turn);
    boiler(c, &l);
    cab(c, &l);
    running_gear(c, &l, turn);
    place_end(c);
    cairo_restore(c->cr);
    if (chance(c, 0.3)) birds(c, between(c, 0.2, 0.8), 0.2, 0.018, 4);
}
