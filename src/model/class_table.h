/*
 * What a class alone decides: the embedding that its sequences start with, and all modulations. Computed once for a class
 * and kept in the backend's memory for the sequences to come; when all rows are taken, the oldest give way.
 */
#ifndef AIM_MODEL_CLASS_TABLE_H
#define AIM_MODEL_CLASS_TABLE_H

#include "model/ar.h"

struct class_table {
    struct exec *ex; /* borrowed, like ar */
    const struct ar *ar;
    int64_t rows;
    int64_t calls, next;     /* of class_table_find; the row that is looked at next for one to give away */
    int32_t *label;          /* (rows): the class in each row; -1: none */
    int64_t *call;           /* (rows): when it was last asked for */
    float *embedding;        /* (rows, d) */
    float *modulation;       /* (layers, rows, 3d): shift, scale, gate */
    float *final_modulation; /* (rows, 2d): shift, scale */
};

/* Rows for calls with up to `classes` different classes, and some more that stay from one call to the next. */
int64_t class_table_rows(const struct ar_config *config, int64_t classes);

/* Needs .rows and the three tables, memory of the caller's; the rest is set here. Freed with class_table_free, also after a
 * failure. */
aim_status class_table_open(struct class_table *table, const struct ar *ar, struct exec *ex);
void class_table_free(struct class_table *table);

/* Where `count` different classes are, row (count), after those that are not there yet were computed. */
aim_status class_table_find(struct class_table *table, const int32_t *classes, int64_t count, int32_t *row);

#endif
