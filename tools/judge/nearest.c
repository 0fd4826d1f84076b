#include "nearest.h"

#include <math.h>
#include <stdio.h>

#include "samples.h"
#include "sheet.h"

enum { SIDE = 32, VALUES = 3 * SIDE * SIDE, ROWS = 8, NEAR = 4, BATCH = 64 };

/* The nearest pictures of one sample, best first. */
struct neighbours {
    double distance[NEAR];
    int64_t index[NEAR]; /* into the data set, -1 = none yet */
};

static double distance(const float *a, const float *b)
{
    double sum = 0;
    for (int i = 0; i < VALUES; i++) sum += (double)((a[i] - b[i]) * (a[i] - b[i]));
    return sum / VALUES;
}

static void offer(struct neighbours *n, double d, int64_t index)
{
    for (int k = 0; k < NEAR; k++) {
        if (n->index[k] >= 0 && n->distance[k] <= d) continue;
        double pushed = n->distance[k];
        int64_t pushed_index = n->index[k];
        n->distance[k] = d;
        n->index[k] = index;
        d = pushed;
        index = pushed_index;
        if (index < 0) return;
    }
}

static aim_status search(aim_context *ctx, const struct dataset *data, const float *wanted, int rows, struct neighbours *found)
{
    struct samples all = {0};
    float *pixels = mem_array(ctx, (size_t)BATCH * VALUES, sizeof(float), MEM_IMAGE);
    int32_t labels[BATCH];
    aim_status status = pixels ? samples_from(ctx, data, SIDE, &all) : AIM_ERR_MEMORY;
    int64_t n = 1, at = 0;
    for (; status == AIM_OK && n > 0; at += n) {
        status = samples_next(&all, BATCH, pixels, labels, &n);
        for (int64_t i = 0; status == AIM_OK && i < n; i++)
            for (int r = 0; r < rows; r++) offer(&found[r], distance(wanted + r * VALUES, pixels + i * VALUES), at + i);
    }
    mem_free(pixels);
    samples_close(&all);
    return status;
}

static aim_status place_file(aim_context *ctx, const struct dataset *data, int64_t index, aim_image *sheet, int r, int c)
{
    if (index < 0) return AIM_OK;
    char *path = dataset_path(data, ctx, index);
    aim_image picture = {0};
    aim_status status = path ? aim_image_read(ctx, path, &picture) : AIM_ERR_MEMORY;
    if (status == AIM_OK) status = sheet_place(ctx, &picture, sheet, r, c);
    aim_image_free(&picture);
    mem_free(path);
    return status;
}

static aim_status draw(aim_context *ctx, const struct samples *samples, const struct dataset *data,
                       const struct neighbours *found, int rows, aim_image *sheet)
{
    TRY(sheet_create(ctx, rows, NEAR + 1, sheet));
    for (int r = 0; r < rows; r++) {
        aim_image picture;
        TRY(samples_picture(samples, r, &picture));
        aim_status status = sheet_place(ctx, &picture, sheet, r, 0);
        aim_image_free(&picture);
        TRY(status);
        for (int k = 0; k < NEAR; k++) TRY(place_file(ctx, data, found[r].index[k], sheet, r, k + 1));
    }
    return AIM_OK;
}

aim_status nearest(aim_context *ctx, const char *path, const char *root, const char *output)
{
    struct samples samples = {0};
    struct dataset data = {0};
    struct neighbours found[ROWS];
    aim_image sheet = {0};
    int32_t labels[ROWS];
    int64_t rows = 0;
    float *wanted = mem_array(ctx, (size_t)ROWS * VALUES, sizeof(float), MEM_IMAGE);
    for (int r = 0; r < ROWS; r++)
        for (int k = 0; k < NEAR; k++) found[r].index[k] = -1;
    aim_status status = wanted ? samples_open(ctx, path, SIDE, &samples) : AIM_ERR_MEMORY;
    if (status == AIM_OK) status = samples_next(&samples, ROWS, wanted, labels, &rows);
    if (status == AIM_OK) status = dataset_open(ctx, root, &data);
    if (status == AIM_OK) status = search(ctx, &data, wanted, (int)rows, found);
    if (status == AIM_OK) status = draw(ctx, &samples, &data, found, (int)rows, &sheet);
    if (status == AIM_OK) status = aim_image_write_png(ctx, output, &sheet, NULL, 0);
    double sum = 0;
    for (int64_t r = 0; r < rows; r++) sum += sqrt(found[r].distance[0]);
    if (status == AIM_OK) printf("mean distance to the nearest training picture %.4f\n", sum / (double)(rows ? rows : 1));
    aim_image_free(&sheet);
    mem_free(wanted);
    dataset_close(&data);
    samples_close(&samples);
    return status;
}
