/*
 * Files with the whole state of a training run: tensors straight from the backend's memory, and metadata. Written under a
 * temporary name, synced and renamed, so that there is always a whole one.
 */
#ifndef AIM_TRAIN_CHECKPOINT_H
#define AIM_TRAIN_CHECKPOINT_H

#include "io/tensor_file.h"
#include "tensor/tensor.h"

/* A tensor's name in a parameter table or a checkpoint. */
struct param_name {
    char text[104];
};

struct checkpoint_tensor {
    struct param_name name;
    const struct tensor *tensor; /* borrowed */
};

struct checkpoint_text {
    char key[40];
    char *value; /* owned */
};

/* What is going to be in a file. Zeroed but for ctx to begin with. */
struct checkpoint {
    aim_context *ctx;
    size_t count, capacity;
    struct checkpoint_tensor *tensors;
    size_t text_count, text_capacity;
    struct checkpoint_text *texts;
};

void checkpoint_free(struct checkpoint *c);

/* Adds the tensor PREFIXname; the names of a checkpoint differ. */
aim_status checkpoint_add(struct checkpoint *c, const char *prefix, const char *name, const struct tensor *t);

/* Adds metadata, copied. */
aim_status checkpoint_note(struct checkpoint *c, const char *key, const char *value);
aim_status checkpoint_note_integer(struct checkpoint *c, const char *key, int64_t value);

/* Writes a safetensors file; what was there before stays when that fails. */
aim_status checkpoint_write(struct exec *ex, const struct checkpoint *c, const char *path);

/* Fills `t` with the tensor PREFIXname of an open file; AIM_ERR_FORMAT when it is absent or of another size. */
aim_status checkpoint_read(struct exec *ex, const struct tensor_file *file, const char *path, const char *prefix,
                           const char *name, struct tensor *t);

/* A whole number from the metadata; AIM_ERR_FORMAT when it is absent. */
aim_status checkpoint_integer(aim_context *ctx, const struct tensor_file *file, const char *path, const char *key,
                              int64_t *value);

#endif
