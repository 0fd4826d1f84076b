#include "model/class_table.h"

/*
 * Classes computed in one go. Always as many, the last of them repeated where there are fewer: libraries choose a product's
 * algorithm by its rows, and a class must not look different for what was asked for beside it.
 */
enum { AT_ONCE = 8 };

int64_t class_table_rows(const struct ar_config *c, int64_t classes)
{
    enum { KEPT = 64 };
    int64_t all = (int64_t)c->num_classes + 1, rows = classes + KEPT;
    return rows < all ? rows : all;
}

aim_status class_table_open(struct class_table *t, const struct ar *ar, struct exec *ex)
{
    t->ar = ar;
    t->ex = ex;
    t->label = mem_array(ar->ctx, (size_t)t->rows, sizeof *t->label, MEM_CACHE);
    t->call = mem_zero(ar->ctx, (size_t)t->rows, sizeof *t->call, MEM_CACHE);
    if (!t->label || !t->call) return AIM_ERR_MEMORY;
    for (int64_t r = 0; r < t->rows; r++) t->label[r] = -1;
    return AIM_OK;
}

void class_table_free(struct class_table *t)
{
    mem_free(t->label);
    mem_free(t->call);
    t->label = NULL;
    t->call = NULL;
}

/* The first `count` rows of from (AT_ONCE, width), NULL after a failure, to rows `row` of a table; neighbours in one go. */
static void put(struct class_table *t, const struct tensor *from, int64_t width, float *table, const int32_t *row,
                int64_t count)
{
    struct backend *be = t->ex->backend;
    size_t bytes = (size_t)width * sizeof(float);
    for (int64_t i = 0, n; from && i < count; i += n) {
        for (n = 1; i + n < count && row[i + n] == row[i] + n; n++) continue;
        aim_status status = be->memory.copy(be, table + row[i] * width, f32(from) + i * width, (size_t)n * bytes);
        if (status != AIM_OK) exec_fail(t->ex, status);
    }
}

/* Fills the rows of `count` classes, at most AT_ONCE. */
static aim_status compute(struct class_table *t, const int32_t *classes, const int32_t *row, int64_t count)
{
    const struct ar *ar = t->ar;
    struct exec *ex = t->ex;
    int64_t d = ar->config.d_model;
    int32_t labels[AT_ONCE];
    for (int64_t i = 0; i < AT_ONCE; i++) labels[i] = classes[i < count ? i : count - 1];
    ex->status = AIM_OK;
    struct tensor *embedding = ar_class_embedding(ex, ar, labels, AT_ONCE);
    struct ar_conditions conditions = ar_conditions(ex, ar, embedding);
    put(t, embedding, d, t->embedding, row, count);
    for (int l = 0; l < ar->config.n_layer; l++) {
        struct tensor *modulation = ar_modulation(ex, ar, &conditions, l);
        put(t, modulation, 3 * d, t->modulation + l * t->rows * 3 * d, row, count);
        tensor_drop(modulation);
    }
    struct tensor *final = ar_final_modulation(ex, ar, &conditions);
    put(t, final, 2 * d, t->final_modulation, row, count);
    tensor_drop(final);
    tensor_drop(embedding);
    ar_conditions_drop(&conditions);
    return ex->status;
}

/* The row of a class; -1 when there is none. */
static int32_t row_of(const struct class_table *t, int32_t label)
{
    for (int64_t r = 0; r < t->rows; r++)
        if (t->label[r] == label) return (int32_t)r;
    return -1;
}

/* A row that this call has no use for. */
static int32_t vacate(struct class_table *t)
{
    while (t->call[t->next] == t->calls) t->next = (t->next + 1) % t->rows;
    int64_t r = t->next;
    t->label[r] = -1;
    t->call[r] = t->calls;
    t->next = (r + 1) % t->rows;
    return (int32_t)r;
}

aim_status class_table_find(struct class_table *t, const int32_t *classes, int64_t count, int32_t *row)
{
    t->calls++;
    for (int64_t i = 0; i < count; i++) { /* first those that are there: none of them may be given away */
        row[i] = row_of(t, classes[i]);
        if (row[i] >= 0) t->call[row[i]] = t->calls;
    }
    for (int64_t i = 0; i < count;) {
        int32_t labels[AT_ONCE], rows[AT_ONCE];
        int64_t n = 0;
        for (; i < count && n < AT_ONCE; i++) {
            if (row[i] >= 0) continue;
            labels[n] = classes[i];
            rows[n++] = row[i] = vacate(t);
        }
        if (n > 0) TRY(compute(t, labels, rows, n));
        for (int64_t k = 0; k < n; k++) t->label[rows[k]] = labels[k];
    }
    return AIM_OK;
}
