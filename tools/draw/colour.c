/* Colours, and the light in which a scene stands: six times of day and weathers, each a sky, a tint, a haze, a shade. */
#include "draw.h"

#include <math.h>

struct rgb hex(unsigned rrggbb)
{
    return (struct rgb){(double)(rrggbb >> 16 & 255) / 255, (double)(rrggbb >> 8 & 255) / 255, (double)(rrggbb & 255) / 255};
}

struct rgb mix(struct rgb a, struct rgb b, double t)
{
    return (struct rgb){a.r + (b.r - a.r) * t, a.g + (b.g - a.g) * t, a.b + (b.b - a.b) * t};
}

struct rgb brighten(struct rgb a, double t)
{
    return mix(a, (struct rgb){1, 1, 1}, t);
}

struct rgb darken(struct rgb a, double t)
{
    return (struct rgb){a.r * (1 - t), a.g * (1 - t), a.b * (1 - 0.9 * t)};
}

/* Oklab (Ottosson, 2020) with the transfer curve taken as a square, which needs no power function. */
struct rgb lch(double lightness, double chroma, double hue)
{
    double a = chroma * cowave(hue), b = chroma * wave(hue);
    double l = lightness + 0.3963377774 * a + 0.2158037573 * b;
    double m = lightness - 0.1055613458 * a - 0.0638541728 * b;
    double s = lightness - 0.0894841775 * a - 1.2914855480 * b;
    l = l * l * l, m = m * m * m, s = s * s * s;
    return (struct rgb){sqrt(clamp01(4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s)),
                        sqrt(clamp01(-1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s)),
                        sqrt(clamp01(-0.0041960863 * l - 0.7034186147 * m + 1.7076147010 * s))};
}

struct rgb vary(struct canvas *c, struct rgb a, double amount)
{
    double all = between(c, -amount, amount), warm = between(c, -amount, amount) / 2, green = between(c, -amount, amount) / 3;
    return (struct rgb){clamp01(a.r + all + warm), clamp01(a.g + all + green), clamp01(a.b + all - warm)};
}

struct rgb choose(struct canvas *c, const unsigned *palette, size_t count)
{
    struct rgb chosen = hex(palette[between_int(c, 0, (int)count - 1)]);
    return vary(c, chosen, 0.03);
}

/* The sky from zenith to horizon, the sun, the tint of things, haze, shadow; then where the sun may stand. */
static const struct {
    enum light_kind kind;
    unsigned sky[4], sun, tint, haze, shadow;
    double low, high; /* y of the sun: least and greatest height, as a share of the sky */
    double weight;
} lights[] = {
    {LIGHT_DAY, {0x3f8ed4, 0x6db4e8, 0xa5d5f3, 0xe0f2fa}, 0xfff7dc, 0xffffff, 0xcbe4f3, 0x35507c, 0.12, 0.4, 3},
    {LIGHT_DAWN, {0x7488c6, 0xb5a0d3, 0xf2b9b8, 0xfde2bd}, 0xfff0cf, 0xfff0ea, 0xf0cbc6, 0x55487f, 0.5, 0.85, 1.5},
    {LIGHT_GOLDEN, {0x5c8fbf, 0xa6bcc6, 0xf5cf94, 0xfde6ae}, 0xfff3c4, 0xfff1d0, 0xf4d7a8, 0x5c4668, 0.5, 0.85, 2},
    {LIGHT_DUSK, {0x2f3373, 0x704e97, 0xdb7585, 0xfaae72}, 0xffd9a0, 0xd9b6c4, 0xcc8594, 0x2c2659, 0.7, 0.95, 1.5},
    {LIGHT_NIGHT, {0x0c1434, 0x1a2858, 0x2f4780, 0x52709e}, 0xf6f2dc, 0x7f8fc0, 0x40588a, 0x0b1233, 0.12, 0.4, 1.5},
    {LIGHT_OVERCAST, {0x8ea3b7, 0xaabac8, 0xc8d3da, 0xe3e7e6}, 0xf4f4ee, 0xe0e4e8, 0xced6da, 0x46525f, 0.15, 0.4, 1},
    {LIGHT_PASTEL, {0x86c5d8, 0xb6dfe0, 0xe6ecda, 0xfbeedd}, 0xfffbe8, 0xfffaf2, 0xe2eae0, 0x566c8a, 0.15, 0.5, 1.5},
};
enum { LIGHTS = sizeof lights / sizeof lights[0] };

static size_t weighted_light(struct canvas *c, unsigned allowed)
{
    double total = 0;
    for (size_t i = 0; i < LIGHTS; i++) total += lights[i].kind & allowed ? lights[i].weight : 0;
    double left = between(c, 0, total);
    size_t last = 0;
    for (size_t i = 0; i < LIGHTS; i++) {
        if (!(lights[i].kind & allowed)) continue;
        last = i;
        left -= lights[i].weight;
        if (left < 0) break;
    }
    return last;
}

void choose_light(struct canvas *c, unsigned allowed)
{
    size_t k = weighted_light(c, allowed);
    struct light *l = &c->light;
    struct rgb drift = lch(0.7, 0.1, between(c, 0, 1)); /* the same small turn of hue for the whole sky */
    double share = between(c, 0, 0.12);
    l->kind = lights[k].kind;
    l->dark = (l->kind & (LIGHT_NIGHT | LIGHT_DUSK)) != 0;
    for (int i = 0; i < 4; i++)
        l->sky[i] = vary(c, mix(hex(lights[k].sky[i]), l->dark ? darken(drift, 0.6) : drift, share), 0.02);
    l->sun = vary(c, hex(lights[k].sun), 0.02);
    l->tint = vary(c, hex(lights[k].tint), 0.03);
    l->haze = mix(hex(lights[k].haze), l->sky[2], 0.35);
    l->shadow = vary(c, hex(lights[k].shadow), 0.02);
    l->x = between(c, 0.08, 0.92);
    l->y = between(c, lights[k].low, lights[k].high);
    l->side = l->x < 0.5 ? -1 : 1;
}

struct rgb lit(const struct canvas *c, struct rgb a, double distance)
{
    const struct light *l = &c->light;
    struct rgb tinted = {a.r * l->tint.r, a.g * l->tint.g, a.b * l->tint.b};
    return mix(tinted, l->haze, distance);
}

struct rgb shaded(const struct canvas *c, struct rgb a, double depth)
{
    const struct light *l = &c->light;
    struct rgb dark = {a.r * (0.35 + 0.5 * l->shadow.r), a.g * (0.35 + 0.5 * l->shadow.g), a.b * (0.4 + 0.55 * l->shadow.b)};
    return mix(a, mix(dark, l->shadow, 0.15), depth);
}
