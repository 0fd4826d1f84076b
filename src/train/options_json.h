/*
 * The options of a training run as JSON, so that a run can go on without being told them again: one table of fields drives
 * writing and reading.
 */
#ifndef AIM_TRAIN_OPTIONS_JSON_H
#define AIM_TRAIN_OPTIONS_JSON_H

#include "base/context.h"

enum field_type {
    FIELD_TEXT, /* const char *, may be NULL */
    FIELD_PATH, /* the same, made absolute when written */
    FIELD_INT,
    FIELD_INT64,
    FIELD_UINT64,
    FIELD_DOUBLE
};

struct option_field {
    const char *name; /* NULL ends a table */
    enum field_type type;
    size_t offset;
};

/* The fields of aim_train_options, for a struct that has one at `offset` 0. */
extern const struct option_field train_fields[];

/* Writes `path` from the tables given, the last of which is NULL. */
aim_status options_write(aim_context *ctx, const char *path, const struct option_field *const *tables, const void *options);

/*
 * Fills the fields that the file has. Text is kept in *memory, which the caller frees with options_free after the last use
 * of the options.
 */
struct options_memory {
    void *root;
};
aim_status options_read(aim_context *ctx, const char *path, const struct option_field *const *tables, void *options,
                        struct options_memory *memory);
void options_free(struct options_memory *memory);

#endif
