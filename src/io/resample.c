/*
 * Pillow's resampling: two passes, horizontal first, each a sum of taps in fixed point with 22 fractional bits whose
 * result is rounded to a byte. Both passes run one kernel, which sums rows of 24 neighbouring bytes: eight rows are
 * interleaved for the horizontal pass so that its taps lie below each other, too.
 */
#include "io/resample.h"

#include <limits.h>
#include <math.h>
#include <string.h>

#include "io/image.h"

enum { FRACTION_BITS = 22, ROWS = 8, LANES = 3 * ROWS };

/* ---------------------------------------------------------------------------------------------- filters */

static double sinc(double x)
{
    if (x == 0.0) return 1.0;
    x *= 3.14159265358979323846;
    return sin(x) / x;
}

static double filter_value(aim_filter filter, double x)
{
    double d = fabs(x);
    switch (filter) {
    case AIM_FILTER_BOX: return x > -0.5 && x <= 0.5 ? 1.0 : 0.0;
    case AIM_FILTER_BILINEAR: return d < 1.0 ? 1.0 - d : 0.0;
    case AIM_FILTER_BICUBIC: {
        const double a = -0.5;
        if (d < 1.0) return ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0;
        return d < 2.0 ? (((d - 5.0) * d + 8.0) * d - 4.0) * a : 0.0;
    }
    case AIM_FILTER_LANCZOS: return x >= -3.0 && x < 3.0 ? sinc(x) * sinc(x / 3.0) : 0.0;
    }
    return 0.0;
}

/* The distance from its centre at which a filter ends; 0 for a number that names none. */
static double filter_support(aim_filter filter)
{
    switch (filter) {
    case AIM_FILTER_BOX: return 0.5;
    case AIM_FILTER_BILINEAR: return 1.0;
    case AIM_FILTER_BICUBIC: return 2.0;
    case AIM_FILTER_LANCZOS: return 3.0;
    }
    return 0.0;
}

/* ------------------------------------------------------------------------------------------------- taps */

struct span {
    int first, count;
};

/* The weights of one axis for the positions of a window of the result. */
struct taps {
    size_t room;     /* weights set aside per position */
    struct span *at; /* input positions under each output position */
    int32_t *weight; /* room per output position */
    int first, end;  /* input positions used by any */
};

static void taps_free(struct taps *taps)
{
    mem_free(taps->at);
    mem_free(taps->weight);
}

/* Weights of output position x; `scratch` holds taps->room values. */
static void taps_fill(struct taps *taps, int x, double scale, int in, aim_filter filter, double *scratch, struct span *span,
                      int32_t *weight)
{
    double stretch = scale < 1.0 ? 1.0 : scale, support = filter_support(filter) * stretch, inverse = 1.0 / stretch;
    double centre = (x + 0.5) * scale;
    int first = (int)(centre - support + 0.5), end = in;
    if (first < 0) first = 0;
    if (centre + support + 0.5 < in) end = (int)(centre + support + 0.5);
    double sum = 0.0;
    for (int i = first; i < end; i++) sum += scratch[i - first] = filter_value(filter, (i - centre + 0.5) * inverse);
    for (int i = 0; i < end - first; i++) {
        double w = sum != 0.0 ? scratch[i] / sum : scratch[i];
        w *= 1 << FRACTION_BITS;
        weight[i] = (int32_t)(w < 0.0 ? w - 0.5 : w + 0.5);
    }
    *span = (struct span){first, end - first};
    if (first < taps->first) taps->first = first;
    if (end > taps->end) taps->end = end;
}

/* One axis from `in` to `out` positions, of which `count` from `start` on are wanted. */
static aim_status taps_create(aim_context *ctx, int in, int out, int start, int count, aim_filter filter, struct taps *taps)
{
    double scale = (double)in / out;
    double support = filter_support(filter) * (scale < 1.0 ? 1.0 : scale);
    *taps = (struct taps){.room = (size_t)ceil(support) * 2 + 1, .first = in};
    taps->at = mem_array(ctx, (size_t)count, sizeof *taps->at, MEM_IMAGE);
    size_t values;
    if (!size_mul((size_t)count, taps->room, &values)) values = SIZE_MAX;
    taps->weight = mem_array(ctx, values, sizeof *taps->weight, MEM_IMAGE);
    double *scratch = mem_array(ctx, taps->room, sizeof *scratch, MEM_IMAGE);
    aim_status status = taps->at && taps->weight && scratch ? AIM_OK : AIM_ERR_MEMORY;
    if (status == AIM_OK)
        for (int i = 0; i < count; i++)
            taps_fill(taps, start + i, scale, in, filter, scratch, &taps->at[i], taps->weight + (size_t)i * taps->room);
    mem_free(scratch);
    return status;
}

/* ----------------------------------------------------------------------------------------------- passes */

static inline uint8_t byte_from_sum(int32_t sum)
{
    sum >>= FRACTION_BITS;
    return (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

/* out[i] = sum over t of weight[t] * in[t*stride + i]. The fixed number of lanes is what makes compilers vectorise this. */
static inline void sum_lanes(const uint8_t *in, size_t stride, const int32_t *weight, int count, uint8_t *out)
{
    int32_t sum[LANES];
    for (int i = 0; i < LANES; i++) sum[i] = 1 << (FRACTION_BITS - 1);
    for (int t = 0; t < count; t++, in += stride) {
        int32_t w = weight[t];
        for (int i = 0; i < LANES; i++) sum[i] += w * in[i];
    }
    for (int i = 0; i < LANES; i++) out[i] = byte_from_sum(sum[i]);
}

/* The same for fewer lanes than LANES. */
static void sum_some_lanes(const uint8_t *in, size_t stride, const int32_t *weight, int count, uint8_t *out, size_t lanes)
{
    for (size_t i = 0; i < lanes; i++) {
        int32_t sum = 1 << (FRACTION_BITS - 1);
        for (int t = 0; t < count; t++) sum += weight[t] * in[(size_t)t * stride + i];
        out[i] = byte_from_sum(sum);
    }
}

/*
 * Rows in[0..rows) with `stride` bytes each become rows of `count` pixels at out. `tile` holds LANES bytes for each of the
 * input columns in use.
 */
static void resample_rows(const uint8_t *in, size_t stride, size_t rows, const struct taps *taps, size_t count, uint8_t *tile,
                          uint8_t *out)
{
    size_t columns = (size_t)(taps->end - taps->first);
    in += (size_t)taps->first * 3;
    for (size_t y = 0; y < rows; y += ROWS) {
        size_t held = rows - y < ROWS ? rows - y : ROWS;
        for (size_t r = 0; r < held; r++) {
            const uint8_t *from = in + (y + r) * stride;
            for (size_t x = 0; x < columns; x++) memcpy(tile + x * LANES + r * 3, from + x * 3, 3);
        }
        for (size_t x = 0; x < count; x++) {
            uint8_t pixels[LANES];
            size_t first = (size_t)(taps->at[x].first - taps->first);
            sum_lanes(tile + first * LANES, LANES, taps->weight + x * taps->room, taps->at[x].count, pixels);
            for (size_t r = 0; r < held; r++) memcpy(out + ((y + r) * count + x) * 3, pixels + r * 3, 3);
        }
    }
}

/* `in` starts at input row taps->first; rows are `lanes` bytes long and `stride` apart. */
static void resample_columns(const uint8_t *in, size_t stride, size_t lanes, const struct taps *taps, size_t count,
                             uint8_t *out)
{
    for (size_t y = 0; y < count; y++, out += lanes) {
        const uint8_t *from = in + (size_t)(taps->at[y].first - taps->first) * stride;
        const int32_t *weight = taps->weight + y * taps->room;
        size_t x = 0;
        for (; x + LANES <= lanes; x += LANES) sum_lanes(from + x, stride, weight, taps->at[y].count, out + x);
        sum_some_lanes(from + x, stride, weight, taps->at[y].count, out + x, lanes - x);
    }
}

/* --------------------------------------------------------------------------------------------- pictures */

static void copy_window(const aim_image *image, const struct image_window *window, aim_image *out)
{
    size_t bytes = image_stride(out);
    for (size_t y = 0; y < (size_t)out->height; y++)
        memcpy(out->rgb + y * bytes, image->rgb + ((size_t)window->y + y) * image_stride(image) + (size_t)window->x * 3, bytes);
}

/* What the two passes of one call hold. */
struct resampler {
    struct taps across, down;
    uint8_t *tile;    /* eight input rows, interleaved */
    aim_image middle; /* between the passes: the window's columns of the input rows that the second pass needs */
};

/* Prepares the passes that change something, as Pillow does: a pass at equal size would cost time alone. */
static aim_status resampler_create(aim_context *ctx, const aim_image *image, int width, int height, aim_filter filter,
                                   const struct image_window *window, struct resampler *r)
{
    bool across = width != image->width, down = height != image->height;
    if (down) TRY(taps_create(ctx, image->height, height, window->y, window->height, filter, &r->down));
    if (!across) return AIM_OK;
    TRY(taps_create(ctx, image->width, width, window->x, window->width, filter, &r->across));
    r->tile = mem_zero(ctx, (size_t)(r->across.end - r->across.first), LANES, MEM_IMAGE);
    if (!r->tile) return AIM_ERR_MEMORY;
    if (down) TRY(image_alloc(ctx, window->width, r->down.end - r->down.first, &r->middle));
    return AIM_OK;
}

static void resampler_run(struct resampler *r, const aim_image *image, const struct image_window *window, aim_image *out)
{
    bool across = r->across.at != NULL, down = r->down.at != NULL;
    if (!across && !down) {
        copy_window(image, window, out);
        return;
    }
    size_t stride = image_stride(image), first = down ? (size_t)r->down.first : (size_t)window->y;
    const uint8_t *rows = image->rgb + first * stride;
    if (across) {
        aim_image *to = down ? &r->middle : out;
        resample_rows(rows, stride, (size_t)to->height, &r->across, (size_t)to->width, r->tile, to->rgb);
        rows = to->rgb;
        stride = image_stride(to);
    } else {
        rows += (size_t)window->x * 3;
    }
    if (down) resample_columns(rows, stride, image_stride(out), &r->down, (size_t)out->height, out->rgb);
}

aim_status image_resample(aim_context *ctx, const aim_image *image, int width, int height, aim_filter filter,
                          const struct image_window *window, aim_image *out)
{
    *out = (aim_image){0};
    if (!image->rgb || image->width < 1 || image->height < 1)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "cannot resize a picture without pixels");
    if (width < 1 || height < 1)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "cannot resize a picture to %d x %d pixels", width, height);
    if (filter_support(filter) <= 0.0) return aim_fail(ctx, AIM_ERR_ARGUMENT, "there is no resize filter %d", (int)filter);
    if (window->x < 0 || window->y < 0 || window->width < 1 || window->height < 1 || window->x > width - window->width ||
        window->y > height - window->height)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "a crop of %d x %d pixels at %d, %d does not lie within %d x %d", window->width,
                        window->height, window->x, window->y, width, height);
    struct resampler r = {0};
    aim_status status = image_alloc(ctx, window->width, window->height, out);
    if (status == AIM_OK) status = resampler_create(ctx, image, width, height, filter, window, &r);
    if (status == AIM_OK)
        resampler_run(&r, image, window, out);
    else
        aim_image_free(out);
    taps_free(&r.across);
    taps_free(&r.down);
    mem_free(r.tile);
    aim_image_free(&r.middle);
    return status;
}

aim_status aim_image_resize(aim_context *ctx, const aim_image *image, int width, int height, aim_filter filter, aim_image *out)
{
    return image_resample(ctx, image, width, height, filter, &(struct image_window){0, 0, width, height}, out);
}

/* ------------------------------------------------------------------------------------------- transforms */

static int smaller(int a, int b)
{
    return a < b ? a : b;
}

static aim_status check_side(aim_context *ctx, const aim_image *image, int side)
{
    if (!image->rgb || image->width < 1 || image->height < 1)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "cannot resize a picture without pixels");
    if (side < 1) return aim_fail(ctx, AIM_ERR_ARGUMENT, "a picture cannot have a side of %d pixels", side);
    return AIM_OK;
}

aim_status image_scaling_plan(aim_context *ctx, const aim_image *image, int side, struct image_scaling *plan)
{
    *plan = (struct image_scaling){0};
    TRY(check_side(ctx, image, side));
    int width = image->width, height = image->height;
    for (; smaller(width, height) / 2 >= side; plan->halvings++) {
        width /= 2;
        height /= 2;
    }
    double scale = (double)side / smaller(width, height);
    double wide = rint(width * scale), high = rint(height * scale); /* half to even, as Python rounds */
    if (wide > INT_MAX || high > INT_MAX)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "a picture of %d x %d pixels is too narrow for a crop of %d", width, height,
                        side);
    plan->width = (int)wide;
    plan->height = (int)high;
    return AIM_OK;
}

aim_status image_scale(aim_context *ctx, const aim_image *image, const struct image_scaling *plan,
                       const struct image_window *window, aim_image *out)
{
    *out = (aim_image){0};
    aim_image halved = {0};
    const aim_image *from = image;
    aim_status status = AIM_OK;
    for (int i = 0; i < plan->halvings && status == AIM_OK; i++) {
        aim_image next;
        status = aim_image_resize(ctx, from, from->width / 2, from->height / 2, AIM_FILTER_BOX, &next);
        aim_image_free(&halved);
        halved = next;
        from = &halved;
    }
    if (status == AIM_OK) status = image_resample(ctx, from, plan->width, plan->height, AIM_FILTER_BICUBIC, window, out);
    aim_image_free(&halved);
    return status;
}

aim_status aim_image_center_crop(aim_context *ctx, const aim_image *image, int size, aim_image *out)
{
    *out = (aim_image){0};
    struct image_scaling plan;
    TRY(image_scaling_plan(ctx, image, size, &plan));
    struct image_window window = {(plan.width - size) / 2, (plan.height - size) / 2, size, size};
    return image_scale(ctx, image, &plan, &window, out);
}

aim_status image_short_side_size(aim_context *ctx, const aim_image *image, int side, int *width, int *height)
{
    TRY(check_side(ctx, image, side));
    bool upright = image->width <= image->height;
    int shorter = upright ? image->width : image->height, longer = upright ? image->height : image->width;
    int64_t scaled = (int64_t)side * longer / shorter;
    if (scaled > INT_MAX)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "a picture of %d x %d pixels is too narrow for a short side of %d", image->width,
                        image->height, side);
    *width = upright ? side : (int)scaled;
    *height = upright ? (int)scaled : side;
    return AIM_OK;
}

int image_crop_offset(int whole, int part)
{
    return (int)rint((whole - part) / 2.0);
}

aim_status image_aim_eval(aim_context *ctx, const aim_image *image, int resize, int size, aim_image *out)
{
    *out = (aim_image){0};
    if (size < 1 || size > resize)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "a crop of %d does not fit into pictures with a short side of %d", size, resize);
    int width = 0, height = 0;
    TRY(image_short_side_size(ctx, image, resize, &width, &height));
    struct image_window window = {image_crop_offset(width, size), image_crop_offset(height, size), size, size};
    return image_resample(ctx, image, width, height, AIM_FILTER_LANCZOS, &window, out);
}
