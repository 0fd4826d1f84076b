/* Sheets of small pictures, for the documentation. */
#ifndef AIM_JUDGE_SHEET_H
#define AIM_JUDGE_SHEET_H

#include "base/context.h"

enum { SHEET_TILE = 112, SHEET_GAP = 3 };

/* A white sheet for rows x columns tiles; the caller frees it. */
aim_status sheet_create(aim_context *ctx, int rows, int columns, aim_image *sheet);

/* Puts a picture, scaled and cropped to a tile, into row r and column c. */
aim_status sheet_place(aim_context *ctx, const aim_image *picture, aim_image *sheet, int r, int c);

/* A PNG with a row for each .npz: its first `columns` pictures. */
aim_status sheet_of_samples(aim_context *ctx, const char *const *files, int count, int columns, const char *output);

#endif
