/*
 * The brush box of the drawn data set: everything a scene is made with. A scene is a function that paints one picture of
 * its class on the unit square (x to the right, y down); what it paints is decided by numbers drawn from the canvas, which
 * are a pure function of (seed, class, index).
 *
 * A picture is the same on every machine. Nothing here calls libm beyond floor, fabs, fmin, fmax and sqrt, which are exact;
 * and since C leaves the order of operands and arguments open, no expression draws more than one random number
 * (check_sequence.py looks).
 *
 *   random.c   random numbers and noise            scenery.c  sky, clouds, hills, water
 *   colour.c   colours and the light of a scene    plants.c   trees, grass, foliage
 *   brush.c    paths and ways to fill them         scenes.h   the list of classes
 */
#ifndef DRAW_H
#define DRAW_H

#include <cairo.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct rgb {
    double r, g, b;
};

struct point {
    double x, y;
};

/* Times of day and weathers, as bits: a scene names those that suit it. */
enum light_kind {
    LIGHT_DAY = 1,
    LIGHT_DAWN = 2,
    LIGHT_GOLDEN = 4,
    LIGHT_DUSK = 8,
    LIGHT_NIGHT = 16,
    LIGHT_OVERCAST = 32,
    LIGHT_PASTEL = 64,
    LIGHT_BRIGHT = LIGHT_DAY | LIGHT_DAWN | LIGHT_GOLDEN | LIGHT_PASTEL,
    LIGHT_ANY = 127
};

/* What a time of day does to colours. */
struct light {
    enum light_kind kind;
    struct rgb sky[4]; /* zenith to horizon */
    struct rgb sun;    /* of the disc and its glow */
    struct rgb tint;   /* multiplies every colour in this light */
    struct rgb haze;   /* what distance fades to */
    struct rgb shadow; /* what shade darkens to */
    double x, y;       /* where the sun or moon stands */
    double side;       /* where light comes from: -1 left, 1 right */
    bool dark;         /* lamps are on */
};

struct canvas {
    cairo_t *cr; /* scaled to the unit square */
    uint64_t seed, index;
    uint32_t stream;   /* the class */
    uint32_t position; /* how many numbers were drawn */
    struct light light;
};

/* ------------------------------------------------------------------------------------------------ random.c */

double between(struct canvas *c, double low, double high);
int between_int(struct canvas *c, int low, int high); /* both included */
bool chance(struct canvas *c, double probability);
uint32_t fresh_key(struct canvas *c); /* a key for noise */
struct point point_in(struct canvas *c, double x0, double y0, double x1, double y1);

/* Smooth noise in [-1, 1] with one feature per unit; fbm adds octaves of half the size and height. */
double noise_1d(uint32_t key, double x);
double noise_2d(uint32_t key, double x, double y);
double fbm_1d(uint32_t key, double x, int octaves);
double fbm_2d(uint32_t key, double x, double y, int octaves);
uint32_t lattice(uint32_t key, uint32_t x, uint32_t y); /* 32 random bits of a grid point */

/* Sine and cosine of an angle in turns. */
double wave(double turns);
double cowave(double turns);

double clamp01(double x);
double smooth_step(double low, double high, double x);

/* ------------------------------------------------------------------------------------------------ colour.c */

struct rgb hex(unsigned rrggbb);
struct rgb mix(struct rgb a, struct rgb b, double t);
struct rgb brighten(struct rgb a, double t); /* towards white */
struct rgb darken(struct rgb a, double t);   /* towards black, keeping hue */
/* Lightness 0..1, chroma 0..0.25, hue in turns (0.08 red, 0.16 orange, 0.29 yellow, 0.39 green, 0.54 teal, 0.72 blue). */
struct rgb lch(double lightness, double chroma, double hue);
struct rgb vary(struct canvas *c, struct rgb a, double amount);
struct rgb choose(struct canvas *c, const unsigned *palette, size_t count); /* one of them, varied a little */
#define CHOOSE(c, ...) choose((c), (const unsigned[]){__VA_ARGS__}, sizeof((const unsigned[]){__VA_ARGS__}) / sizeof(unsigned))

/* Chooses one of the allowed lights (bits of light_kind), varies it a little and places its sun. */
void choose_light(struct canvas *c, unsigned allowed);
/* A colour as the scene's light shows it at distance 0 (here) to 1 (lost in haze). */
struct rgb lit(const struct canvas *c, struct rgb a, double distance);
/* The same colour in the shade, by 0..1. */
struct rgb shaded(const struct canvas *c, struct rgb a, double depth);

/* ------------------------------------------------------------------------------------------------- brush.c */

/* Own coordinates until place_end: origin (x, y), unit `size`, turned clockwise. */
void place_begin(struct canvas *c, double x, double y, double size, double turns);
void place_end(struct canvas *c);

/* Paths; they add to the current one. */
void path_ellipse(struct canvas *c, double x, double y, double rx, double ry);
void path_box(struct canvas *c, double x, double y, double width, double height);
void path_round_box(struct canvas *c, double x, double y, double width, double height, double radius);
void path_polygon(struct canvas *c, const struct point *points, size_t count);
void path_smooth(struct canvas *c, const struct point *points, size_t count, bool closed); /* through all points */
void path_blob(struct canvas *c, double x, double y, double rx, double ry, double roughness);
void path_leaf(struct canvas *c, struct point from, struct point to, double width);
#define POLYGON(c, ...)                                                                                                        \
    path_polygon((c), (const struct point[]){__VA_ARGS__}, sizeof((const struct point[]){__VA_ARGS__}) / sizeof(struct point))
#define SMOOTH(c, closed, ...)                                                                                                 \
    path_smooth((c), (const struct point[]){__VA_ARGS__}, sizeof((const struct point[]){__VA_ARGS__}) / sizeof(struct point),  \
                (closed))

/* Filling the current path, which is used up. */
void paint(struct canvas *c, struct rgb colour, double alpha);
void paint_between(struct canvas *c, double x0, double y0, struct rgb from, double x1, double y1, struct rgb to);
void paint_down(struct canvas *c, double y0, struct rgb top, double y1, struct rgb bottom);
void paint_ball(struct canvas *c, double x, double y, double radius, struct rgb bright, struct rgb dark);
void paint_fade(struct canvas *c, double x0, double y0, double alpha0, double x1, double y1, double alpha1, struct rgb colour);
/* A cylinder's shading from x0 to x1: bright on the light's side, dark on the other. */
void paint_round(struct canvas *c, double x0, double x1, struct rgb colour);
void stroke(struct canvas *c, double width, struct rgb colour, double alpha);

/* Clips to the current path until unclip. */
void clip(struct canvas *c);
void unclip(struct canvas *c);

/* Soft light, or with a dark colour soft shadow, that fades to nothing at the radius. */
void glow(struct canvas *c, double x, double y, double rx, double ry, struct rgb colour, double alpha);
/* A band across the picture whose alpha goes from a0 at y0 to a1 at y1. */
void veil(struct canvas *c, double y0, double a0, double y1, double a1, struct rgb colour);
/* Cloudy noise of `fx` by `fy` features over a box, nothing below `low`, full above `high`; fades at the box's edges. */
void mottle(struct canvas *c, struct point corner, struct point size, struct point features, double low, double high,
            struct rgb colour, double alpha);

/* ----------------------------------------------------------------------------------------------- scenery.c */

/* The line of a range of hills: y of its foot, height above it, features across the picture. */
struct ridge {
    uint32_t key;
    double y, height, features;
    int octaves;
    bool sharp; /* rocks, not hills */
};
struct ridge ridge_make(struct canvas *c, double y, double height, double features, int octaves);
double ridge_at(const struct ridge *r, double x);
void path_ridge(struct canvas *c, const struct ridge *r);
/* A ridge filled from `colour` to its hazy or lit foot. */
void hills(struct canvas *c, const struct ridge *r, struct rgb colour, double distance);

/* Gradient, sun or moon, stars and one of several weathers, from the top to the horizon. */
void sky(struct canvas *c, double horizon);
void sun(struct canvas *c, double radius);
void stars(struct canvas *c, int count, double y1);
void cloud(struct canvas *c, double x, double y, double width, struct rgb top, struct rgb bottom);
void clouds(struct canvas *c, int count, double y0, double y1, double size);
void birds(struct canvas *c, double x, double y, double size, int count);
/* Water from y0 down to y1 with ripples and the sun's path. */
void water(struct canvas *c, double y0, double y1, struct rgb colour);
void ripples(struct canvas *c, double y0, double y1, int count, struct rgb colour, double alpha);
void smoke(struct canvas *c, double x, double y, double dx, double dy, double size, struct rgb colour);
void snowfall(struct canvas *c, int count);
/* Soft discs of light out of focus. */
void bokeh(struct canvas *c, int count, struct rgb colour, double alpha);

/* ------------------------------------------------------------------------------------------------ plants.c */

void pine(struct canvas *c, double x, double y, double height, struct rgb colour, double snow);
void foliage(struct canvas *c, double x, double y, double rx, double ry, struct rgb colour);
void round_tree(struct canvas *c, double x, double y, double height, struct rgb colour);
void cypress(struct canvas *c, double x, double y, double height, struct rgb colour);
void grass(struct canvas *c, double y0, double y1, int count, double height, struct rgb colour);
/* Small blossoms strewn over a meadow, smaller towards y0. */
void blossoms(struct canvas *c, double y0, double y1, int count, double size, struct rgb colour);
void wood_line(struct canvas *c, const struct ridge *r, int count, double height, struct rgb colour, double snow);
/* A bare tree from its foot; up to `room` ends of its branches go to `tips`, whose number is returned. */
size_t branches(struct canvas *c, double x, double y, double height, struct rgb colour, struct point *tips, size_t room);
void fern(struct canvas *c, double x, double y, double size, struct rgb colour);

#endif
