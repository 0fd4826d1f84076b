/* One picture of the data set: drawn, given its grain, and written. */
#ifndef DRAW_PICTURE_H
#define DRAW_PICTURE_H

#include "draw.h"

struct scene {
    const char *name;
    void (*draw)(struct canvas *c);
};

extern const struct scene scenes_table[];
extern const size_t scenes_count;

/* Which picture: indices of the validation split start at VALIDATION, far from those of the training split. */
struct picture_id {
    uint64_t seed;
    const struct scene *scene;
    uint64_t index;
};
#define VALIDATION (UINT64_C(1) << 40)

/* Draws onto a surface of size*size pixels, without grain. False when out of memory. */
bool picture_paint(const struct picture_id *id, cairo_surface_t *surface, int size);

/* The finished picture, grain and all, in size*size*3 bytes. False when out of memory. */
bool picture_draw(const struct picture_id *id, int size, uint8_t *rgb);

/*
 * A PNG under a temporary name that becomes the real one when it is whole. Unlike aim_image_write_png it does not wait for
 * the disk, nor pack tightly unless told to: a data set is many small files that can be drawn again. False leaves errno.
 */
bool picture_write(const char *path, int width, int height, const uint8_t *rgb, bool tight);

/* A contact sheet: per class its name and a row of pictures from index `first` on, drawn at `size`, shown at `thumb`. */
struct sheet {
    const struct scene *const *scenes;
    size_t count;
    uint64_t seed, first;
    int size, thumb, columns;
};
bool sheet_write(const char *path, const struct sheet *s); /* false leaves errno */

#endif
