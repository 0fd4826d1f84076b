/* Random numbers: Philox keyed by (seed, class, index), and value noise on an integer lattice. */
#include "draw.h"

#include <math.h>

#include "base/philox.h"

static double uniform(struct canvas *c)
{
    struct philox4 bits = philox(c->seed, c->index, c->position++, c->stream);
    return philox_double(bits.v[0], bits.v[1]);
}

double between(struct canvas *c, double low, double high)
{
    return low + (high - low) * uniform(c);
}

int between_int(struct canvas *c, int low, int high)
{
    return low + (int)(uniform(c) * (double)(high - low + 1));
}

bool chance(struct canvas *c, double probability)
{
    return uniform(c) < probability;
}

uint32_t fresh_key(struct canvas *c)
{
    return philox(c->seed, c->index, c->position++, c->stream).v[0];
}

struct point point_in(struct canvas *c, double x0, double y0, double x1, double y1)
{
    double x = between(c, x0, x1), y = between(c, y0, y1);
    return (struct point){x, y};
}

uint32_t lattice(uint32_t key, uint32_t x, uint32_t y)
{
    uint32_t h = key ^ (x * 0x9E3779B1u) ^ (y * 0x85EBCA77u);
    h = (h ^ (h >> 15)) * 0x2C1B3C6Du;
    h = (h ^ (h >> 12)) * 0x297A2D39u;
    return h ^ (h >> 15);
}

static double lattice_value(uint32_t key, int32_t x, int32_t y)
{
    return (double)lattice(key, (uint32_t)x, (uint32_t)y) * 0x1p-31 - 1;
}

static double fade(double t)
{
    return t * t * t * (t * (t * 6 - 15) + 10);
}

double noise_2d(uint32_t key, double x, double y)
{
    double fx = floor(x), fy = floor(y);
    double u = fade(x - fx), v = fade(y - fy);
    int32_t i = (int32_t)fx, j = (int32_t)fy;
    double a = lattice_value(key, i, j), b = lattice_value(key, i + 1, j);
    double d = lattice_value(key, i, j + 1), e = lattice_value(key, i + 1, j + 1);
    double top = a + (b - a) * u, bottom = d + (e - d) * u;
    return top + (bottom - top) * v;
}

double noise_1d(uint32_t key, double x)
{
    double fx = floor(x), u = fade(x - fx);
    double a = lattice_value(key, (int32_t)fx, 0), b = lattice_value(key, (int32_t)fx + 1, 0);
    return a + (b - a) * u;
}

double fbm_1d(uint32_t key, double x, int octaves)
{
    double sum = 0, height = 1, total = 0;
    for (int i = 0; i < octaves; i++, x *= 2, height /= 2) {
        sum += height * noise_1d(key + (uint32_t)i * 77u, x);
        total += height;
    }
    return sum / total;
}

double fbm_2d(uint32_t key, double x, double y, int octaves)
{
    double sum = 0, height = 1, total = 0;
    for (int i = 0; i < octaves; i++, x *= 2, y *= 2, height /= 2) {
        sum += height * noise_2d(key + (uint32_t)i * 77u, x, y);
        total += height;
    }
    return sum / total;
}

/* A Taylor series on a quarter turn: the error is below 1e-7, far under a pixel. */
double wave(double turns)
{
    double t = turns - floor(turns);
    double x = (t < 0.25 ? t : t < 0.75 ? 0.5 - t : t - 1) * 6.283185307179586;
    double q = x * x;
    return x * (1 - q / 6 * (1 - q / 20 * (1 - q / 42 * (1 - q / 72 * (1 - q / 110)))));
}

double cowave(double turns)
{
    return wave(turns + 0.25);
}

double clamp01(double x)
{
    return x < 0 ? 0 : x > 1 ? 1 : x;
}

double smooth_step(double low, double high, double x)
{
    double t = clamp01((x - low) / (high - low));
    return t * t * (3 - 2 * t);
}
