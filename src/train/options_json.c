#include "train/options_json.h"

#include <inttypes.h>
#include <jansson.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"

#define AT(field) offsetof(aim_train_options, field)

const struct option_field train_fields[] = {
    {"data", FIELD_PATH, AT(data)},
    {"init", FIELD_PATH, AT(init)},
    {"preset", FIELD_TEXT, AT(preset)},
    {"held_out", FIELD_DOUBLE, AT(held_out)},
    {"size", FIELD_INT, AT(size)},
    {"steps", FIELD_INT64, AT(steps)},
    {"epochs", FIELD_DOUBLE, AT(epochs)},
    {"batch", FIELD_INT, AT(batch)},
    {"accumulate", FIELD_INT, AT(accumulate)},
    {"lr", FIELD_DOUBLE, AT(lr)},
    {"decay", FIELD_DOUBLE, AT(decay)},
    {"clip", FIELD_DOUBLE, AT(clip)},
    {"ema", FIELD_DOUBLE, AT(ema)},
    {"schedule", FIELD_INT, AT(schedule)},
    {"warmup", FIELD_INT64, AT(warmup)},
    {"seed", FIELD_UINT64, AT(seed)},
    {"bf16", FIELD_INT, AT(bf16)},
    {"checkpointing", FIELD_INT, AT(checkpointing)},
    {"eval_every", FIELD_INT64, AT(eval_every)},
    {"save_every", FIELD_INT64, AT(save_every)},
    {"sample_every", FIELD_INT64, AT(sample_every)},
    {"keep", FIELD_INT64, AT(keep)},
    {0},
};
_Static_assert(sizeof(aim_schedule) == sizeof(int), "a schedule is written as a whole number");

/* ------------------------------------------------------------------------------------------------- writing */

static json_t *text_to_json(const char *text, bool is_path)
{
    char full[PATH_MAX];
    if (!text) return json_null();
    return json_string(is_path && realpath(text, full) ? full : text);
}

static json_t *to_json(const struct option_field *f, const void *options)
{
    const char *at = (const char *)options + f->offset;
    char text[32];
    switch (f->type) {
    case FIELD_TEXT:
    case FIELD_PATH: return text_to_json(*(const char *const *)(const void *)at, f->type == FIELD_PATH);
    case FIELD_INT: return json_integer(*(const int *)(const void *)at);
    case FIELD_INT64: return json_integer(*(const int64_t *)(const void *)at);
    case FIELD_UINT64: /* JSON readers lose the last digits of such numbers: text */
        snprintf(text, sizeof text, "%" PRIu64, *(const uint64_t *)(const void *)at);
        return json_string(text);
    case FIELD_DOUBLE: return json_real(*(const double *)(const void *)at);
    }
    return NULL;
}

static aim_status write_text(aim_context *ctx, const char *path, const char *text)
{
    struct file_writer w;
    TRY(file_writer_open(ctx, path, &w));
    aim_status status = file_writer_write(&w, text, strlen(text)), closed = file_writer_close(&w, status == AIM_OK);
    return status == AIM_OK ? closed : status;
}

aim_status options_write(aim_context *ctx, const char *path, const struct option_field *const *tables, const void *options)
{
    json_t *root = json_object();
    for (; *tables; tables++)
        for (const struct option_field *f = *tables; f->name; f++) json_object_set_new(root, f->name, to_json(f, options));
    char *text = json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(17));
    json_decref(root);
    aim_status status =
        text ? write_text(ctx, path, text) : aim_fail(ctx, AIM_ERR_MEMORY, "cannot write %s: out of memory", path);
    free(text);
    return status;
}

/* ------------------------------------------------------------------------------------------------- reading */

static bool from_json(const struct option_field *f, const json_t *value, void *options)
{
    char *at = (char *)options + f->offset, *end;
    switch (f->type) {
    case FIELD_TEXT:
    case FIELD_PATH: *(const char **)(void *)at = json_string_value(value); return json_is_string(value) || json_is_null(value);
    case FIELD_INT: *(int *)(void *)at = (int)json_integer_value(value); return json_is_integer(value);
    case FIELD_INT64: *(int64_t *)(void *)at = json_integer_value(value); return json_is_integer(value);
    case FIELD_UINT64:
        if (!json_is_string(value)) return false;
        *(uint64_t *)(void *)at = strtoull(json_string_value(value), &end, 10);
        return *end == '\0';
    case FIELD_DOUBLE: *(double *)(void *)at = json_number_value(value); return json_is_number(value);
    }
    return false;
}

aim_status options_read(aim_context *ctx, const char *path, const struct option_field *const *tables, void *options,
                        struct options_memory *memory)
{
    json_error_t error;
    json_t *root = json_load_file(path, JSON_REJECT_DUPLICATES, &error);
    memory->root = root;
    if (!json_is_object(root)) return aim_fail(ctx, AIM_ERR_FORMAT, "%s: no options of a training run: %s", path, error.text);
    for (; *tables; tables++)
        for (const struct option_field *f = *tables; f->name; f++) {
            const json_t *value = json_object_get(root, f->name);
            if (value && !from_json(f, value, options))
                return aim_fail(ctx, AIM_ERR_FORMAT, "%s: \"%s\" makes no sense", path, f->name);
        }
    return AIM_OK;
}

void options_free(struct options_memory *memory)
{
    json_decref(memory->root);
    memory->root = NULL;
}
