/*
 * The parameter table: one row per tensor of a model, in the official order, which drives initialisation, loading,
 * saving and counting. A row says what the tensor is and where its values are (in a mapped file, or in memory);
 * building the run-time form of a model goes through params_f32 and params_packed.
 */
#ifndef AIM_MODEL_PARAMS_H
#define AIM_MODEL_PARAMS_H

#include "io/tensor_file.h"
#include "tensor/tensor.h"

/* How a fresh tensor is filled (spec B12, D5); `scale` below is the bound or deviation. */
enum param_init {
    INIT_ZERO,
    INIT_ONE,
    INIT_NORMAL,   /* N(0, scale²) */
    INIT_AROUND_1, /* N(1, scale²) */
    INIT_UNIFORM,  /* U(-scale, scale) */
    INIT_DT_BIAS,  /* inverse softplus of exp(U(ln 0.001, ln 0.1)) */
    INIT_A_LOG,    /* ln U(1, 16) */
    INIT_CODEBOOK, /* U(-scale, scale), rows of unit length */
};

struct param {
    char name[96]; /* with its prefix */
    int ndim;
    int64_t shape[TENSOR_DIMS];
    enum param_init init;
    double scale;
    bool buffer;                      /* not a parameter: the codebook's usage queue */
    const struct tensor_entry *entry; /* where the values are; NULL until loaded or initialised */
};

struct params {
    aim_context *ctx;
    const char *prefix;
    size_t count, capacity;
    struct param *items;
    struct tensor_entry *made; /* entries of initialised tensors, their data in memory; NULL for loaded models */
    bool borrowed;             /* the data of `made` belongs to somebody else */
};

void params_free(struct params *p);

/* Appends a row; the name (without prefix) is printf-formatted from `format` and `index`. */
aim_status params_add(struct params *p, enum param_init init, double scale, int ndim, const int64_t *shape, const char *format,
                      ...) __attribute__((format(printf, 6, 7)));

/* Finds every row's tensor in `file` (which must outlive the table) and checks its shape. Buffers may be absent. */
aim_status params_load(struct params *p, const char *path, const struct tensor_file *file);

/* Fills every row with fresh values that depend on (seed, name) alone. */
aim_status params_init(struct params *p, uint64_t seed);

/* Gives the memory of initialised values back, once they have been copied elsewhere: rows have no values then. */
void params_release(struct params *p);

/* Rows that say float32 values lie at one address, whatever that is: for backends that never read them (tensor/plan.h), and
 * for callers who then set each row's entry->data themselves. The table does not own them. */
aim_status params_point(struct params *p, const void *data);

/* The row with this name, without prefix; NULL (and AIM_ERR_INTERNAL) if the table has none. */
const struct param *params_find(const struct params *p, const char *format, ...) __attribute__((format(printf, 2, 3)));

int64_t params_tensors(const struct params *p);    /* rows with values */
int64_t params_parameters(const struct params *p); /* values, buffers not counted */

/* ---- from rows to tensors; NULL on failure, the message set */

/* Float32: borrowed from the file when it holds just that and the backend can read it there, else converted or copied. */
struct tensor *params_f32(const struct params *p, const struct param *row);

/* Float32 in memory of its own, to be trained: needs_grad is set. */
struct tensor *params_trainable(const struct params *p, const struct param *row);

/* A matrix packed for linear_packed as `type`; as T_BF16_PACKED when nothing is lost by it and `if_exact`. */
struct tensor *params_packed(const struct params *p, const struct param *row, enum tensor_type type, bool if_exact);

#endif
