/* What scenes share: skies and their weathers, hills, water, smoke, snow. */
#include "draw.h"

#include <math.h>

/* ------------------------------------------------------------------------------------------------- sky */

static void sky_gradient(struct canvas *c, double horizon)
{
    const struct light *l = &c->light;
    cairo_pattern_t *p = cairo_pattern_create_linear(0, 0, 0, horizon);
    for (int i = 0; i < 4; i++) cairo_pattern_add_color_stop_rgb(p, i / 3.0, l->sky[i].r, l->sky[i].g, l->sky[i].b);
    cairo_set_source(c->cr, p);
    cairo_paint(c->cr);
    cairo_pattern_destroy(p);
}

void stars(struct canvas *c, int count, double y1)
{
    for (int i = 0; i < count; i++) {
        double x = between(c, 0, 1), y = between(c, 0, y1), size = between(c, 0, 1);
        double r = 0.0014 + 0.0028 * size * size * size;
        if (size > 0.9) glow(c, x, y, r * 5, r * 5, hex(0xcfe0ff), 0.5);
        path_ellipse(c, x, y, r, r);
        double warmth = between(c, 0, 0.6), alpha = between(c, 0.45, 1) * (1 - 0.6 * y / y1);
        paint(c, mix(hex(0xffffff), hex(0xffe2b0), warmth), alpha);
    }
}

static void moon(struct canvas *c, double x, double y, double r)
{
    struct rgb face = c->light.sun;
    glow(c, x, y, r * 5, r * 5, face, 0.35);
    path_ellipse(c, x, y, r, r);
    paint_ball(c, x, y, r, brighten(face, 0.3), mix(face, hex(0xb9b5b0), 0.5));
    if (chance(c, 0.45)) { /* a crescent: the sky's colour over one side */
        path_ellipse(c, x, y, r * 1.02, r * 1.02);
        clip(c);
        path_ellipse(c, x + c->light.side * r * 0.5, y - r * 0.25, r * 0.95, r * 0.95);
        paint(c, mix(c->light.sky[0], c->light.sky[1], 0.6), 0.93);
        unclip(c);
        return;
    }
    for (int i = 0; i < 4; i++) {
        double s = r * between(c, 0.1, 0.24);
        struct point at = point_in(c, -0.55, -0.55, 0.55, 0.55);
        path_ellipse(c, x + r * at.x, y + r * at.y, s, s * 0.9);
        paint(c, hex(0x9c978f), 0.25);
    }
}

void sun(struct canvas *c, double r)
{
    const struct light *l = &c->light;
    glow(c, l->x, l->y, 0.75, 0.6, l->sun, 0.5);
    glow(c, l->x, l->y, r * 3.2, r * 3.2, l->sun, 0.65);
    path_ellipse(c, l->x, l->y, r, r);
    paint_down(c, l->y - r, brighten(l->sun, 0.5), l->y + r, l->kind == LIGHT_DUSK ? hex(0xff9d5c) : l->sun);
}

void cloud(struct canvas *c, double x, double y, double width, struct rgb top, struct rgb bottom)
{
    int lumps = between_int(c, 5, 8);
    double tall = width * between(c, 0.2, 0.34);
    cairo_save(c->cr);
    path_box(c, -1, -1, 3, 1 + y);
    cairo_clip(c->cr); /* the flat foot */
    for (int layer = 0; layer < 2; layer++) {
        for (int i = 0; i < lumps; i++) {
            double u = (i + 0.5) / lumps * 2 - 1, r = tall * (1 - 0.75 * u * u) * between(c, 0.55, 0.85);
            double shift = layer ? c->light.side * 0.012 * width / 0.2 : 0;
            path_ellipse(c, x + u * width * 0.5 + shift, y - r * 0.45 - (layer ? tall * 0.18 : 0), r * (layer ? 0.85 : 1),
                         r * (layer ? 0.8 : 1));
        }
        if (!layer) {
            path_round_box(c, x - width * 0.58, y - tall * 0.3, width * 1.16, tall * 0.6, tall * 0.29);
            paint_down(c, y - tall, mix(top, bottom, 0.35), y, bottom);
        } else {
            paint_fade(c, 0, y - tall, 1, 0, y - tall * 0.15, 0, top);
        }
    }
    cairo_restore(c->cr);
}

void clouds(struct canvas *c, int count, double y0, double y1, double size)
{
    const struct light *l = &c->light;
    struct rgb top = l->dark ? mix(l->sky[2], l->sun, 0.25) : brighten(mix(l->sun, l->sky[3], 0.3), 0.55);
    struct rgb bottom = l->dark ? mix(l->sky[1], l->sky[2], 0.5) : mix(l->sky[2], l->haze, 0.5);
    for (int i = 0; i < count; i++) {
        double y = y0 + (y1 - y0) * ((double)i + between(c, 0.2, 0.8)) / count;
        double x = between(c, -0.05, 1.05), width = size * between(c, 0.6, 1.3) * (1.25 - 0.6 * y);
        cloud(c, x, y, width, top, bottom);
    }
}

void sky(struct canvas *c, double horizon)
{
    const struct light *l = &c->light;
    c->light.y *= horizon;
    sky_gradient(c, horizon);
    struct rgb pale = l->dark ? mix(l->sky[2], l->sky[3], 0.6) : brighten(l->sky[3], 0.5);
    if (l->kind == LIGHT_OVERCAST) {
        mottle(c, (struct point){-0.2, -0.1}, (struct point){1.4, horizon + 0.1}, (struct point){3, 4}, -0.3, 0.6,
               mix(l->sky[0], l->shadow, 0.25), 0.55);
        mottle(c, (struct point){-0.2, -0.1}, (struct point){1.4, horizon + 0.1}, (struct point){3, 5}, -0.1, 0.7, pale, 0.7);
        return;
    }
    if (l->kind == LIGHT_NIGHT) {
        stars(c, between_int(c, 40, 110), horizon);
        moon(c, l->x, l->y, between(c, 0.035, 0.07));
    } else {
        if (l->kind == LIGHT_DUSK) stars(c, between_int(c, 0, 35), horizon * 0.5);
        sun(c, between(c, 0.03, 0.065));
    }
    double weather = between(c, 0, 1);
    if (weather < 0.35) { /* high thin cloud */
        struct point features = point_in(c, 2, 6, 4, 11);
        mottle(c, (struct point){-0.3, 0}, (struct point){1.6, horizon * 0.8}, features, between(c, -0.05, 0.15), 0.7,
               l->dark ? mix(pale, l->sun, 0.3) : brighten(l->sun, 0.5), 0.7);
    } else if (weather < 0.6) { /* drifting banks */
        mottle(c, (struct point){-0.2, 0}, (struct point){1.4, horizon * 0.95}, (struct point){3.5, 4}, 0, 0.55, pale, 0.8);
    } else if (weather < 0.9) {
        int count = between_int(c, 2, 5);
        clouds(c, count, horizon * 0.15, horizon * 0.9, between(c, 0.16, 0.3));
    }
}

void birds(struct canvas *c, double x, double y, double size, int count)
{
    struct rgb ink = c->light.dark ? shaded(c, c->light.sky[1], 0.6) : shaded(c, hex(0x4a5468), 0.3);
    cairo_set_line_cap(c->cr, CAIRO_LINE_CAP_ROUND);
    for (int i = 0; i < count; i++) {
        double bx = x + between(c, -4, 4) * size, by = y + between(c, -2, 2) * size, s = size * between(c, 0.6, 1.1);
        double lift = s * between(c, 0.25, 0.6), tilt = s * between(c, -0.15, 0.15);
        cairo_move_to(c->cr, bx - s, by - tilt);
        cairo_curve_to(c->cr, bx - s * 0.6, by - lift - tilt, bx - s * 0.2, by - lift, bx, by);
        cairo_curve_to(c->cr, bx + s * 0.2, by - lift, bx + s * 0.6, by - lift + tilt, bx + s, by + tilt);
        stroke(c, 0.004 + s * 0.06, ink, 0.85);
    }
}

/* ----------------------------------------------------------------------------------------------- ground */

struct ridge ridge_make(struct canvas *c, double y, double height, double features, int octaves)
{
    return (struct ridge){fresh_key(c) & 0xffffffu, y, height, features, octaves, false};
}

double ridge_at(const struct ridge *r, double x)
{
    double n = fbm_1d(r->key, x * r->features + 100, r->octaves);
    double up = r->sharp ? 1 - 2.2 * fabs(n) : 0.5 + 0.9 * n;
    return r->y - r->height * up;
}

void path_ridge(struct canvas *c, const struct ridge *r)
{
    int steps = r->sharp ? 128 : 64;
    cairo_move_to(c->cr, -0.01, 1.01);
    for (int i = 0; i <= steps; i++) {
        double x = -0.01 + 1.02 * i / steps;
        cairo_line_to(c->cr, x, ridge_at(r, x));
    }
    cairo_line_to(c->cr, 1.01, 1.01);
    cairo_close_path(c->cr);
}

void hills(struct canvas *c, const struct ridge *r, struct rgb colour, double distance)
{
    struct rgb top = lit(c, colour, distance), foot = lit(c, colour, clamp01(distance + 0.3));
    if (distance < 0.15) foot = shaded(c, top, 0.45);
    path_ridge(c, r);
    paint_down(c, r->y - r->height, top, r->y + fmax(0.12, r->height), foot);
}

/* ------------------------------------------------------------------------------------------------ water */

void ripples(struct canvas *c, double y0, double y1, int count, struct rgb colour, double alpha)
{
    for (int i = 0; i < count; i++) {
        double t = between(c, 0, 1), y = y0 + (y1 - y0) * t * t, near = 0.25 + t;
        double x = between(c, 0, 1), w = between(c, 0.02, 0.09) * near, h = 0.0022 + 0.004 * near * t;
        path_leaf(c, (struct point){x - w, y}, (struct point){x + w, y + between(c, -0.3, 0.3) * h}, h / w);
        paint(c, colour, alpha * between(c, 0.4, 1));
    }
}

void water(struct canvas *c, double y0, double y1, struct rgb colour)
{
    const struct light *l = &c->light;
    struct rgb near = lit(c, colour, 0), far = mix(mix(near, l->sky[3], 0.45), l->sky[2], 0.2);
    path_box(c, -0.01, y0, 1.02, y1 - y0 + 0.01);
    paint_down(c, y0, far, y1, shaded(c, near, 0.25));
    mottle(c, (struct point){-0.2, y0 - 0.01}, (struct point){1.4, (y1 - y0) * 1.3}, (struct point){3, 12}, 0, 0.7,
           shaded(c, near, 0.6), 0.45);
    ripples(c, y0 + 0.005, y1, 45, brighten(mix(near, l->sky[3], 0.5), 0.2), 0.4);
    ripples(c, y0 + 0.005, y1, 30, shaded(c, near, 0.6), 0.3);
    if (l->kind == LIGHT_OVERCAST) return;
    glow(c, l->x, y0, 0.16, (y1 - y0) * 0.9, l->sun, 0.3);
    for (int i = 0; i < 42; i++) { /* the sun's path */
        double t = between(c, 0, 1), y = y0 + (y1 - y0) * t, w = between(c, 0.006, 0.03) * (0.6 + 1.6 * t);
        double x = l->x + between(c, -1, 1) * (0.02 + 0.06 * t);
        if (y < y0 + 0.004) continue;
        path_leaf(c, (struct point){x - w, y}, (struct point){x + w, y}, (0.002 + 0.004 * t) / w);
        paint(c, l->sun, between(c, 0.25, 0.75));
    }
}

/* -------------------------------------------------------------------------------------------------- air */

void smoke(struct canvas *c, double x, double y, double dx, double dy, double size, struct rgb colour)
{
    int puffs = between_int(c, 7, 11);
    for (int i = puffs; i-- > 0;) {
        double t = (double)i / puffs, r = size * (0.3 + 1.0 * t) * between(c, 0.8, 1.2);
        double px = x + dx * t + size * between(c, -0.25, 0.25) * t, py = y + dy * t * (1.2 - 0.3 * t);
        struct rgb bright = brighten(colour, 0.35);
        path_blob(c, px, py, r, r * 0.85, 0.1);
        paint(c, mix(colour, bright, 0.3), 0.75 * (1 - 0.75 * t));
        path_blob(c, px + c->light.side * r * 0.2, py - r * 0.25, r * 0.65, r * 0.5, 0.1);
        paint(c, bright, 0.6 * (1 - 0.75 * t));
    }
}

void snowfall(struct canvas *c, int count)
{
    for (int i = 0; i < count; i++) {
        double size = between(c, 0, 1), r = 0.0022 + 0.006 * size * size * size;
        struct point at = point_in(c, 0, 0, 1, 1);
        path_ellipse(c, at.x, at.y, r, r);
        paint(c, hex(0xffffff), between(c, 0.5, 0.95));
    }
}

void bokeh(struct canvas *c, int count, struct rgb colour, double alpha)
{
    for (int i = 0; i < count; i++) {
        double x = between(c, 0, 1), y = between(c, 0, 1), r = between(c, 0.02, 0.09);
        struct rgb tone = vary(c, colour, 0.08);
        path_ellipse(c, x, y, r, r);
        paint(c, tone, alpha * between(c, 0.2, 0.6));
        glow(c, x, y, r * 1.6, r * 1.6, tone, alpha * 0.4);
    }
}
