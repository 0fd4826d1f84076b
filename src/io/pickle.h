/*
 * Reads Python pickles as data. Nothing is ever imported, called or executed: a global becomes its name, a call becomes a
 * record of what would have been called with what, and only OrderedDict is turned into the dict it stands for. Time and
 * memory are proportional to the size of the pickle, whatever it says.
 */
#ifndef AIM_IO_PICKLE_H
#define AIM_IO_PICKLE_H

#include "base/context.h"

enum pickle_type {
    PICKLE_UNSET,  /* never seen by callers */
    PICKLE_MARK,   /* never seen by callers */
    PICKLE_OPAQUE, /* something without a meaning here: a set, or what a damaged program would leave */
    PICKLE_NONE,
    PICKLE_BOOL,
    PICKLE_INT,
    PICKLE_LONG, /* an integer beyond 64 bits: its little-endian two's complement bytes in `bytes` */
    PICKLE_FLOAT,
    PICKLE_STRING, /* UTF-8 or whatever Python 2 wrote; not terminated, may hold NUL */
    PICKLE_BYTES,
    PICKLE_TUPLE,
    PICKLE_LIST,
    PICKLE_DICT,
    PICKLE_GLOBAL,
    PICKLE_PERSISTENT,
    PICKLE_OBJECT
};

struct pickle_value {
    enum pickle_type type;
    uint32_t length; /* of bytes */
    union {
        int64_t integer; /* PICKLE_INT, PICKLE_BOOL */
        double real;
        const unsigned char *bytes; /* PICKLE_STRING, PICKLE_BYTES, PICKLE_LONG; points into the pickle */
        struct pickle_list *list;   /* PICKLE_TUPLE, PICKLE_LIST */
        struct pickle_dict *dict;
        const struct pickle_global *global;
        const struct pickle_object *object;
        const struct pickle_value *persistent_id;
    };
};

struct pickle_list {
    size_t count, capacity;
    struct pickle_value *items;
};

/* In the order of insertion; a key may repeat (then the last one counts in Python). */
struct pickle_dict {
    size_t count, capacity;
    struct pickle_pair *pairs;
};

struct pickle_pair {
    struct pickle_value key, value;
};

/* Both are PICKLE_STRING. */
struct pickle_global {
    struct pickle_value module, name;
};

/* What the pickle would have made by calling `callable` with `args` (a tuple). */
struct pickle_object {
    struct pickle_value callable, args;
};

struct pickle {
    struct pickle_value value;
    size_t consumed;               /* bytes up to and including STOP */
    struct pickle_list persistent; /* every persistent id, in the order met */
    struct pickle_block *blocks;   /* private */
};

/*
 * Reads the first pickle in `data`, which must outlive *p. `name` is what messages call the file. AIM_ERR_FORMAT on damage,
 * with the byte; AIM_ERR_UNSUPPORTED for protocols above 5; AIM_ERR_MEMORY. *p is zeroed on failure.
 */
aim_status pickle_read(aim_context *ctx, const char *name, const void *data, size_t size, struct pickle *p);

/* Accepts a zeroed struct and leaves one. */
void pickle_free(struct pickle *p);

/* Whether a value is the string `text`. */
bool pickle_is_string(const struct pickle_value *value, const char *text);

/* Whether a value is the global module.name. */
bool pickle_is_global(const struct pickle_value *value, const char *module, const char *name);

/* The last value under the key `text`; NULL when there is none. */
const struct pickle_value *pickle_dict_get(const struct pickle_dict *dict, const char *text);

#endif
