#include "sheet.h"

#include <string.h>

#include "samples.h"

aim_status sheet_create(aim_context *ctx, int rows, int columns, aim_image *sheet)
{
    const int pitch = SHEET_TILE + SHEET_GAP;
    TRY(aim_image_create(ctx, SHEET_GAP + columns * pitch, SHEET_GAP + rows * pitch, sheet));
    memset(sheet->rgb, 255, (size_t)sheet->width * (size_t)sheet->height * 3);
    return AIM_OK;
}

aim_status sheet_place(aim_context *ctx, const aim_image *picture, aim_image *sheet, int r, int c)
{
    aim_image tile;
    TRY(aim_image_center_crop(ctx, picture, SHEET_TILE, &tile));
    size_t left = (size_t)(SHEET_GAP + c * (SHEET_TILE + SHEET_GAP)), top = (size_t)(SHEET_GAP + r * (SHEET_TILE + SHEET_GAP));
    const size_t line = (size_t)SHEET_TILE * 3;
    for (size_t y = 0; y < SHEET_TILE; y++)
        memcpy(sheet->rgb + ((top + y) * (size_t)sheet->width + left) * 3, tile.rgb + y * line, line);
    aim_image_free(&tile);
    return AIM_OK;
}

static aim_status place_row(aim_context *ctx, const char *file, int row, int columns, aim_image *sheet)
{
    struct samples samples;
    aim_status status = samples_open(ctx, file, SHEET_TILE, &samples);
    for (int c = 0; c < columns && status == AIM_OK && c < samples.pictures.shape[0]; c++) {
        aim_image picture;
        status = samples_picture(&samples, c, &picture);
        if (status == AIM_OK) status = sheet_place(ctx, &picture, sheet, row, c);
        aim_image_free(&picture);
    }
    samples_close(&samples);
    return status;
}

aim_status sheet_of_samples(aim_context *ctx, const char *const *files, int count, int columns, const char *output)
{
    aim_image sheet = {0};
    aim_status status = sheet_create(ctx, count, columns, &sheet);
    for (int r = 0; r < count && status == AIM_OK; r++) status = place_row(ctx, files[r], r, columns, &sheet);
    if (status == AIM_OK) status = aim_image_write_png(ctx, output, &sheet, NULL, 0);
    aim_image_free(&sheet);
    return status;
}
