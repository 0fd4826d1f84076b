/* How close a reconstruction comes to its picture: PSNR, and SSIM as scikit-image's structural_similarity computes it. */
#include <math.h>
#include <string.h>

#include "base/context.h"

enum { WINDOW = 7, AREA = WINDOW * WINDOW };

/* Sums over a column of WINDOW pixels or over a whole window, of one channel. Integers, so that sliding is exact. */
struct sums {
    int32_t a, b, aa, bb, ab;
};

static void sums_add(struct sums *s, const struct sums *t, int sign)
{
    s->a += sign * t->a;
    s->b += sign * t->b;
    s->aa += sign * t->aa;
    s->bb += sign * t->bb;
    s->ab += sign * t->ab;
}

/* Adds (sign 1) or takes away (-1) one row of pixels of all channels. */
static void columns_add_row(struct sums *columns, const uint8_t *a, const uint8_t *b, size_t n, int sign)
{
    for (size_t i = 0; i < n; i++) {
        int x = a[i], y = b[i];
        struct sums s = {x, y, x * x, y * y, x * y};
        sums_add(&columns[i], &s, sign);
    }
}

/* The index of one window (Wang et al. 2004, eq. 13), with the sample covariance, divisor AREA - 1. */
static double window_ssim(const struct sums *s, double c1, double c2)
{
    double ma = s->a / (double)AREA, mb = s->b / (double)AREA;
    /* AREA * (sum of products) - product of sums, in integers: no cancellation */
    double scale = 1.0 / ((double)AREA * (AREA - 1));
    double va = (double)((int64_t)AREA * s->aa - (int64_t)s->a * s->a) * scale;
    double vb = (double)((int64_t)AREA * s->bb - (int64_t)s->b * s->b) * scale;
    double vab = (double)((int64_t)AREA * s->ab - (int64_t)s->a * s->b) * scale;
    return (2.0 * ma * mb + c1) * (2.0 * vab + c2) / ((ma * ma + mb * mb + c1) * (va + vb + c2));
}

/* The sum of the index over all windows of one row of windows, all channels. */
static double row_ssim(const struct sums *columns, size_t width, double c1, double c2)
{
    double total = 0.0;
    for (size_t c = 0; c < 3; c++) {
        struct sums window = {0};
        for (size_t x = 0; x < width; x++) {
            sums_add(&window, &columns[3 * x + c], 1);
            if (x + 1 < WINDOW) continue;
            total += window_ssim(&window, c1, c2);
            sums_add(&window, &columns[3 * (x + 1 - WINDOW) + c], -1);
        }
    }
    return total;
}

static double squared_error(const aim_image *a, const aim_image *b)
{
    uint64_t sum = 0; /* at most 2^28 * 3 * 2^16 */
    size_t n = (size_t)a->width * (size_t)a->height * 3;
    for (size_t i = 0; i < n; i++) {
        int d = a->rgb[i] - b->rgb[i];
        sum += (uint64_t)(d * d);
    }
    return (double)sum / (double)n;
}

aim_status aim_image_compare(aim_context *ctx, const aim_image *a, const aim_image *b, double data_range, double *psnr,
                             double *ssim)
{
    if (a->width != b->width || a->height != b->height)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "cannot compare pictures of %d x %d and %d x %d pixels", a->width, a->height,
                        b->width, b->height);
    if (!a->rgb || !b->rgb || a->width < WINDOW || a->height < WINDOW)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "pictures to compare need at least %d x %d pixels", (int)WINDOW, (int)WINDOW);
    if (!(data_range > 0.0) || !isfinite(data_range))
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "the data range of SSIM must be positive, not %g", data_range);
    double range = 255.0 * data_range, c1 = 0.01 * range * (0.01 * range), c2 = 0.03 * range * (0.03 * range);
    size_t width = (size_t)a->width, height = (size_t)a->height, stride = width * 3;
    struct sums *columns = mem_zero(ctx, stride, sizeof *columns, MEM_IMAGE);
    if (!columns) return AIM_ERR_MEMORY;
    double total = 0.0;
    for (size_t y = 0; y < height; y++) {
        columns_add_row(columns, a->rgb + y * stride, b->rgb + y * stride, stride, 1);
        if (y + 1 < WINDOW) continue;
        total += row_ssim(columns, width, c1, c2);
        size_t top = (y + 1 - WINDOW) * stride;
        columns_add_row(columns, a->rgb + top, b->rgb + top, stride, -1);
    }
    mem_free(columns);
    double mse = squared_error(a, b);
    *psnr = mse > 0.0 ? 10.0 * log10(255.0 * 255.0 / mse) : INFINITY;
    *ssim = total / (3.0 * (double)(width - WINDOW + 1) * (double)(height - WINDOW + 1));
    return AIM_OK;
}
