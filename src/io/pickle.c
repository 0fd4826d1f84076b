#include "io/pickle.h"

#include <string.h>

/* The opcodes that Python's pickle module emits in protocols 2 to 5, less the ones that make code objects or buffers. */
enum opcode {
    OP_MARK = 0x28,
    OP_EMPTY_TUPLE = 0x29,
    OP_STOP = 0x2e,
    OP_POP = 0x30,
    OP_POP_MARK = 0x31,
    OP_BINBYTES = 0x42,
    OP_SHORT_BINBYTES = 0x43,
    OP_BINFLOAT = 0x47,
    OP_BININT = 0x4a,
    OP_BININT1 = 0x4b,
    OP_BININT2 = 0x4d,
    OP_NONE = 0x4e,
    OP_BINPERSID = 0x51,
    OP_REDUCE = 0x52,
    OP_BINSTRING = 0x54,
    OP_SHORT_BINSTRING = 0x55,
    OP_BINUNICODE = 0x58,
    OP_EMPTY_LIST = 0x5d,
    OP_APPEND = 0x61,
    OP_BUILD = 0x62,
    OP_GLOBAL = 0x63,
    OP_APPENDS = 0x65,
    OP_BINGET = 0x68,
    OP_LONG_BINGET = 0x6a,
    OP_BINPUT = 0x71,
    OP_LONG_BINPUT = 0x72,
    OP_SETITEM = 0x73,
    OP_TUPLE = 0x74,
    OP_SETITEMS = 0x75,
    OP_EMPTY_DICT = 0x7d,
    OP_PROTO = 0x80,
    OP_NEWOBJ = 0x81,
    OP_TUPLE1 = 0x85,
    OP_TUPLE2 = 0x86,
    OP_TUPLE3 = 0x87,
    OP_NEWTRUE = 0x88,
    OP_NEWFALSE = 0x89,
    OP_LONG1 = 0x8a,
    OP_LONG4 = 0x8b,
    OP_SHORT_BINUNICODE = 0x8c,
    OP_BINUNICODE8 = 0x8d,
    OP_BINBYTES8 = 0x8e,
    OP_EMPTY_SET = 0x8f,
    OP_ADDITEMS = 0x90,
    OP_FROZENSET = 0x91,
    OP_NEWOBJ_EX = 0x92,
    OP_STACK_GLOBAL = 0x93,
    OP_MEMOIZE = 0x94,
    OP_FRAME = 0x95,
    OP_BYTEARRAY8 = 0x96
};

enum { MAX_PROTOCOL = 5 };

struct reader {
    aim_context *ctx;
    const char *name;
    const unsigned char *data;
    size_t size, at;
    size_t opcode_at; /* for messages */
    struct pickle *p;
    struct pickle_list stack, memo; /* memo: PICKLE_UNSET where nothing is */
    size_t memo_used;
    size_t copied; /* pairs copied into ordered dicts so far */
};

static aim_status damaged(struct reader *r, const char *what)
{
    aim_fail(r->ctx, AIM_ERR_FORMAT, "%s: damaged pickle: %s (byte %zu)", r->name, what, r->opcode_at);
    return AIM_ERR_FORMAT; /* a constant: compilers then see that results are set on AIM_OK */
}

/* --------------------------------------------------------------------------------------------------- memory */

/* Values are many and small and die together: they are cut from blocks that double in size. */
struct pickle_block {
    struct pickle_block *next;
    size_t used, bytes;
};

enum { FIRST_BLOCK = 1024, BLOCK_ALIGN = 16, MAX_BLOCK = 1 << 20 };
_Static_assert(sizeof(struct pickle_block) <= 2 * BLOCK_ALIGN, "the header is counted as two units");

static void *allocate(struct reader *r, size_t count, size_t size)
{
    size_t bytes;
    if (!size_mul(count, size, &bytes) || !size_add(bytes, BLOCK_ALIGN - 1, &bytes)) bytes = PTRDIFF_MAX;
    bytes &= ~(size_t)(BLOCK_ALIGN - 1);
    struct pickle_block *block = r->p->blocks;
    if (!block || bytes > block->bytes - block->used) {
        size_t room = block && block->bytes < MAX_BLOCK ? 2 * block->bytes : block ? MAX_BLOCK : FIRST_BLOCK;
        if (room < bytes) room = bytes;
        struct pickle_block *fresh = mem_new(r->ctx, room + 2 * BLOCK_ALIGN, MEM_FILE);
        if (!fresh) return NULL;
        *fresh = (struct pickle_block){.next = block, .bytes = room};
        r->p->blocks = block = fresh;
    }
    void *start = (char *)block + 2 * BLOCK_ALIGN + block->used;
    block->used += bytes;
    return start;
}

void pickle_free(struct pickle *p)
{
    while (p->blocks) {
        struct pickle_block *next = p->blocks->next;
        mem_free(p->blocks);
        p->blocks = next;
    }
    *p = (struct pickle){0};
}

/* Makes room for `more` items of `size` bytes; what an array leaves behind when it moves is at most what it grows to. */
static aim_status reserve(struct reader *r, void **items, size_t count, size_t *capacity, size_t more, size_t size)
{
    if (more <= *capacity - count) return AIM_OK;
    size_t wanted = *capacity ? 2 * *capacity : 4;
    if (wanted < count + more) wanted = count + more;
    void *moved = allocate(r, wanted, size);
    if (!moved) return AIM_ERR_MEMORY;
    if (count) memcpy(moved, *items, count * size);
    *items = moved;
    *capacity = wanted;
    return AIM_OK;
}

static aim_status list_add(struct reader *r, struct pickle_list *list, const struct pickle_value *values, size_t count)
{
    void *items = list->items;
    TRY(reserve(r, &items, list->count, &list->capacity, count, sizeof *list->items));
    list->items = items;
    if (count) memcpy(list->items + list->count, values, count * sizeof *values);
    list->count += count;
    return AIM_OK;
}

static aim_status dict_add(struct reader *r, struct pickle_dict *dict, struct pickle_value key, struct pickle_value value)
{
    void *pairs = dict->pairs;
    TRY(reserve(r, &pairs, dict->count, &dict->capacity, 1, sizeof *dict->pairs));
    dict->pairs = pairs;
    dict->pairs[dict->count++] = (struct pickle_pair){.key = key, .value = value};
    return AIM_OK;
}

/* ---------------------------------------------------------------------------------------------------- stack */

static aim_status push(struct reader *r, struct pickle_value value)
{
    return list_add(r, &r->stack, &value, 1);
}

static aim_status push_type(struct reader *r, enum pickle_type type)
{
    return push(r, (struct pickle_value){.type = type});
}

static aim_status push_integer(struct reader *r, enum pickle_type type, int64_t integer)
{
    return push(r, (struct pickle_value){.type = type, .integer = integer});
}

/* The value `depth` below the top; NULL when there is none or a mark stands there. */
static struct pickle_value *peek(struct reader *r, size_t depth)
{
    if (depth >= r->stack.count) return NULL;
    struct pickle_value *value = &r->stack.items[r->stack.count - 1 - depth];
    return value->type == PICKLE_MARK ? NULL : value;
}

static aim_status pop(struct reader *r, struct pickle_value *out)
{
    const struct pickle_value *top = peek(r, 0);
    if (!top) return damaged(r, "the stack is empty");
    *out = *top;
    r->stack.count--;
    return AIM_OK;
}

/* Takes everything above the last mark, and the mark. The items stay readable until the next push. */
static aim_status pop_to_mark(struct reader *r, const struct pickle_value **items, size_t *count)
{
    size_t i = r->stack.count;
    while (i > 0 && r->stack.items[i - 1].type != PICKLE_MARK) i--;
    if (i == 0) return damaged(r, "there is no mark");
    *items = r->stack.items + i;
    *count = r->stack.count - i;
    r->stack.count = i - 1;
    return AIM_OK;
}

/* ----------------------------------------------------------------------------------------------------- input */

static aim_status take(struct reader *r, size_t bytes, const unsigned char **out)
{
    if (bytes > r->size - r->at) return damaged(r, "the file is cut short");
    *out = r->data + r->at;
    r->at += bytes;
    return AIM_OK;
}

/* A little-endian unsigned number of 1 to 8 bytes. */
static aim_status take_number(struct reader *r, size_t bytes, uint64_t *out)
{
    const unsigned char *from;
    TRY(take(r, bytes, &from));
    *out = 0;
    memcpy(out, from, bytes);
    return AIM_OK;
}

/* A string or bytes whose length comes first, as a number of `length_bytes`. */
static aim_status push_counted(struct reader *r, enum pickle_type type, size_t length_bytes)
{
    uint64_t length;
    TRY(take_number(r, length_bytes, &length));
    if (length > UINT32_MAX) return damaged(r, "a string of more than 4 GB");
    struct pickle_value value = {.type = type, .length = (uint32_t)length};
    TRY(take(r, (size_t)length, &value.bytes));
    return push(r, value);
}

/* LONG1, LONG4: little-endian two's complement. */
static aim_status push_long(struct reader *r, size_t length_bytes)
{
    TRY(push_counted(r, PICKLE_LONG, length_bytes));
    struct pickle_value *value = peek(r, 0);
    uint32_t length = value->length;
    if (length > 8) return AIM_OK;
    bool negative = length > 0 && (value->bytes[length - 1] & 0x80);
    uint64_t bits = negative ? UINT64_MAX : 0;
    memcpy(&bits, value->bytes, length);
    *value = (struct pickle_value){.type = PICKLE_INT, .integer = (int64_t)bits};
    return AIM_OK;
}

/* Big-endian, unlike everything else. */
static aim_status push_float(struct reader *r)
{
    const unsigned char *from;
    TRY(take(r, 8, &from));
    uint64_t bits = 0;
    for (int i = 0; i < 8; i++) bits = bits << 8 | from[i];
    struct pickle_value value = {.type = PICKLE_FLOAT};
    memcpy(&value.real, &bits, sizeof value.real);
    return push(r, value);
}

static aim_status take_line(struct reader *r, struct pickle_value *out)
{
    const unsigned char *start = r->data + r->at, *end = memchr(start, '\n', r->size - r->at);
    if (!end) return damaged(r, "the file is cut short");
    size_t length = (size_t)(end - start);
    if (length > UINT32_MAX) return damaged(r, "a name of more than 4 GB");
    *out = (struct pickle_value){.type = PICKLE_STRING, .length = (uint32_t)length, .bytes = start};
    r->at += length + 1;
    return AIM_OK;
}

/* ------------------------------------------------------------------------------------------------------ memo */

static aim_status memo_put(struct reader *r, uint64_t index)
{
    const struct pickle_value *top = peek(r, 0);
    if (!top) return damaged(r, "nothing to remember");
    /* Writers count up from 0, one PUT at a time, so an honest index is below the number of bytes. */
    if (index >= r->size) return damaged(r, "a memo index out of all proportion");
    struct pickle_value value = *top;
    if (index >= r->memo.count) {
        size_t more = (size_t)index + 1 - r->memo.count;
        void *items = r->memo.items;
        TRY(reserve(r, &items, r->memo.count, &r->memo.capacity, more, sizeof value));
        r->memo.items = items;
        memset(r->memo.items + r->memo.count, 0, more * sizeof value);
        r->memo.count += more;
    }
    struct pickle_value *slot = &r->memo.items[index];
    r->memo_used += slot->type == PICKLE_UNSET;
    *slot = value;
    return AIM_OK;
}

static aim_status memo_get(struct reader *r, uint64_t index)
{
    if (index >= r->memo.count || r->memo.items[index].type == PICKLE_UNSET) return damaged(r, "an unknown memo index");
    return push(r, r->memo.items[index]);
}

/* ------------------------------------------------------------------------------------------------ containers */

static aim_status push_list(struct reader *r, enum pickle_type type, const struct pickle_value *items, size_t count)
{
    struct pickle_value value = {.type = type, .list = allocate(r, 1, sizeof *value.list)};
    if (!value.list) return AIM_ERR_MEMORY;
    *value.list = (struct pickle_list){0};
    TRY(list_add(r, value.list, items, count));
    return push(r, value);
}

static aim_status push_small_tuple(struct reader *r, size_t count)
{
    struct pickle_value items[3] = {0};
    for (size_t i = count; i-- > 0;) TRY(pop(r, &items[i]));
    return push_list(r, PICKLE_TUPLE, items, count);
}

static aim_status push_marked(struct reader *r, enum pickle_type type)
{
    const struct pickle_value *items;
    size_t count;
    TRY(pop_to_mark(r, &items, &count));
    return type == PICKLE_OPAQUE ? push_type(r, type) : push_list(r, type, items, count);
}

static aim_status push_dict(struct reader *r)
{
    struct pickle_value value = {.type = PICKLE_DICT, .dict = allocate(r, 1, sizeof *value.dict)};
    if (!value.dict) return AIM_ERR_MEMORY;
    *value.dict = (struct pickle_dict){0};
    return push(r, value);
}

/* Calls may give objects that take items of their own (subclasses of list, dict, set); those are dropped with them. */
static bool swallows_items(const struct pickle_value *value)
{
    return value->type == PICKLE_OBJECT || value->type == PICKLE_OPAQUE;
}

static aim_status append(struct reader *r, const struct pickle_value *items, size_t count)
{
    const struct pickle_value *target = peek(r, 0);
    if (target && target->type == PICKLE_LIST) return list_add(r, target->list, items, count);
    return target && swallows_items(target) ? AIM_OK : damaged(r, "items for something that is no list");
}

static aim_status set_items(struct reader *r, const struct pickle_value *items, size_t count)
{
    const struct pickle_value *target = peek(r, 0);
    if (count % 2 != 0) return damaged(r, "a key without value");
    if (!target || (target->type != PICKLE_DICT && !swallows_items(target)))
        return damaged(r, "items for something that is no dict");
    if (target->type != PICKLE_DICT) return AIM_OK;
    struct pickle_dict *dict = target->dict;
    for (size_t i = 0; i < count; i += 2) TRY(dict_add(r, dict, items[i], items[i + 1]));
    return AIM_OK;
}

static aim_status append_marked(struct reader *r)
{
    const struct pickle_value *items;
    size_t count;
    TRY(pop_to_mark(r, &items, &count));
    return append(r, items, count);
}

static aim_status append_one(struct reader *r)
{
    struct pickle_value item;
    TRY(pop(r, &item));
    return append(r, &item, 1);
}

static aim_status set_marked(struct reader *r)
{
    const struct pickle_value *items;
    size_t count;
    TRY(pop_to_mark(r, &items, &count));
    return set_items(r, items, count);
}

static aim_status set_one(struct reader *r)
{
    struct pickle_value pair[2];
    TRY(pop(r, &pair[1]));
    TRY(pop(r, &pair[0]));
    return set_items(r, pair, 2);
}

/* ------------------------------------------------------------------------------------- globals and "calls" */

static aim_status push_global(struct reader *r, struct pickle_value module, struct pickle_value name)
{
    if (module.type != PICKLE_STRING || name.type != PICKLE_STRING) return damaged(r, "a global without name");
    struct pickle_global *global = allocate(r, 1, sizeof *global);
    if (!global) return AIM_ERR_MEMORY;
    *global = (struct pickle_global){.module = module, .name = name};
    return push(r, (struct pickle_value){.type = PICKLE_GLOBAL, .global = global});
}

static aim_status op_global(struct reader *r)
{
    struct pickle_value module, name;
    TRY(take_line(r, &module));
    TRY(take_line(r, &name));
    return push_global(r, module, name);
}

static aim_status op_stack_global(struct reader *r)
{
    struct pickle_value module, name;
    TRY(pop(r, &name));
    TRY(pop(r, &module));
    return push_global(r, module, name);
}

/* OrderedDict(), or OrderedDict([[key, value], ...]) as Python 2 wrote it. */
static aim_status push_ordered_dict(struct reader *r, const struct pickle_list *args)
{
    TRY(push_dict(r));
    if (args->count == 0) return AIM_OK;
    struct pickle_dict *dict = peek(r, 0)->dict;
    const struct pickle_value *from = &args->items[0];
    if (args->count != 1 || from->type != PICKLE_LIST) return damaged(r, "an OrderedDict of something that is no list");
    /* A list may serve several times through the memo: without a bound, a small file could ask for any amount of copies. */
    if (from->list->count > r->size - r->copied) return damaged(r, "more OrderedDict items than the file has bytes");
    r->copied += from->list->count;
    for (size_t i = 0; i < from->list->count; i++) {
        const struct pickle_value *pair = &from->list->items[i];
        if ((pair->type != PICKLE_LIST && pair->type != PICKLE_TUPLE) || pair->list->count != 2)
            return damaged(r, "an OrderedDict of something that is no pair");
        TRY(dict_add(r, dict, pair->list->items[0], pair->list->items[1]));
    }
    return AIM_OK;
}

/* REDUCE, NEWOBJ, NEWOBJ_EX: all say "call this with that"; keyword arguments are dropped. */
static aim_status op_call(struct reader *r, bool keywords)
{
    struct pickle_value callable, args;
    if (keywords) TRY(pop(r, &args));
    TRY(pop(r, &args));
    TRY(pop(r, &callable));
    if (args.type != PICKLE_TUPLE) return damaged(r, "a call without a tuple of arguments");
    if (pickle_is_global(&callable, "collections", "OrderedDict")) return push_ordered_dict(r, args.list);
    struct pickle_object *object = allocate(r, 1, sizeof *object);
    if (!object) return AIM_ERR_MEMORY;
    *object = (struct pickle_object){.callable = callable, .args = args};
    return push(r, (struct pickle_value){.type = PICKLE_OBJECT, .object = object});
}

static aim_status op_persistent(struct reader *r)
{
    struct pickle_value *id = allocate(r, 1, sizeof *id);
    if (!id) return AIM_ERR_MEMORY;
    TRY(pop(r, id));
    TRY(list_add(r, &r->p->persistent, id, 1));
    return push(r, (struct pickle_value){.type = PICKLE_PERSISTENT, .persistent_id = id});
}

/* ----------------------------------------------------------------------------------------------- interpreter */

static aim_status op_proto(struct reader *r)
{
    uint64_t version;
    TRY(take_number(r, 1, &version));
    if (version <= MAX_PROTOCOL) return AIM_OK;
    return aim_fail(r->ctx, AIM_ERR_UNSUPPORTED, "%s: pickle protocol %u is not supported (2 to %d are)", r->name,
                    (unsigned)version, MAX_PROTOCOL);
}

static aim_status push_number(struct reader *r, size_t bytes)
{
    uint64_t value;
    TRY(take_number(r, bytes, &value));
    return push_integer(r, PICKLE_INT, (int64_t)value);
}

static aim_status with_index(struct reader *r, size_t bytes, aim_status (*act)(struct reader *, uint64_t))
{
    uint64_t index;
    TRY(take_number(r, bytes, &index));
    return act(r, index);
}

static aim_status execute(struct reader *r, unsigned char opcode)
{
    struct pickle_value dropped;
    const struct pickle_value *items;
    const unsigned char *skipped;
    size_t count;
    uint64_t number;
    switch (opcode) {
    case OP_PROTO: return op_proto(r);
    case OP_FRAME: return take(r, 8, &skipped);
    case OP_MARK: return push_type(r, PICKLE_MARK);
    case OP_POP:
        if (r->stack.count == 0) return damaged(r, "the stack is empty");
        r->stack.count--; /* a mark, too */
        return AIM_OK;
    case OP_POP_MARK: return pop_to_mark(r, &items, &count);

    case OP_NONE: return push_type(r, PICKLE_NONE);
    case OP_NEWTRUE: return push_integer(r, PICKLE_BOOL, 1);
    case OP_NEWFALSE: return push_integer(r, PICKLE_BOOL, 0);
    case OP_BININT1: return push_number(r, 1);
    case OP_BININT2: return push_number(r, 2);
    case OP_BININT: TRY(take_number(r, 4, &number)); return push_integer(r, PICKLE_INT, (int32_t)(uint32_t)number);
    case OP_LONG1: return push_long(r, 1);
    case OP_LONG4: return push_long(r, 4);
    case OP_BINFLOAT: return push_float(r);
    case OP_SHORT_BINSTRING:
    case OP_SHORT_BINUNICODE: return push_counted(r, PICKLE_STRING, 1);
    case OP_BINSTRING:
    case OP_BINUNICODE: return push_counted(r, PICKLE_STRING, 4);
    case OP_BINUNICODE8: return push_counted(r, PICKLE_STRING, 8);
    case OP_SHORT_BINBYTES: return push_counted(r, PICKLE_BYTES, 1);
    case OP_BINBYTES: return push_counted(r, PICKLE_BYTES, 4);
    case OP_BINBYTES8:
    case OP_BYTEARRAY8: return push_counted(r, PICKLE_BYTES, 8);

    case OP_EMPTY_TUPLE: return push_list(r, PICKLE_TUPLE, NULL, 0);
    case OP_TUPLE1: return push_small_tuple(r, 1);
    case OP_TUPLE2: return push_small_tuple(r, 2);
    case OP_TUPLE3: return push_small_tuple(r, 3);
    case OP_TUPLE: return push_marked(r, PICKLE_TUPLE);
    case OP_EMPTY_LIST: return push_list(r, PICKLE_LIST, NULL, 0);
    case OP_APPEND: return append_one(r);
    case OP_APPENDS:
    case OP_ADDITEMS: return append_marked(r);
    case OP_EMPTY_DICT: return push_dict(r);
    case OP_SETITEM: return set_one(r);
    case OP_SETITEMS: return set_marked(r);
    case OP_EMPTY_SET: return push_type(r, PICKLE_OPAQUE);
    case OP_FROZENSET: return push_marked(r, PICKLE_OPAQUE);

    case OP_GLOBAL: return op_global(r);
    case OP_STACK_GLOBAL: return op_stack_global(r);
    case OP_REDUCE:
    case OP_NEWOBJ: return op_call(r, false);
    case OP_NEWOBJ_EX: return op_call(r, true);
    case OP_BUILD: /* the attributes of an object: of no interest, an OrderedDict's _metadata included */
        TRY(pop(r, &dropped));
        return peek(r, 0) ? AIM_OK : damaged(r, "attributes for nothing");
    case OP_BINPERSID: return op_persistent(r);

    case OP_BINPUT: return with_index(r, 1, memo_put);
    case OP_LONG_BINPUT: return with_index(r, 4, memo_put);
    case OP_MEMOIZE: return memo_put(r, r->memo_used);
    case OP_BINGET: return with_index(r, 1, memo_get);
    case OP_LONG_BINGET: return with_index(r, 4, memo_get);
    default:
        return aim_fail(r->ctx, AIM_ERR_FORMAT, "%s: damaged pickle: unknown opcode 0x%02x (byte %zu)", r->name, opcode,
                        r->opcode_at);
    }
}

aim_status pickle_read(aim_context *ctx, const char *name, const void *data, size_t size, struct pickle *p)
{
    *p = (struct pickle){0};
    struct reader r = {.ctx = ctx, .name = name, .data = data, .size = size, .p = p};
    aim_status status = AIM_OK;
    while (status == AIM_OK) {
        const unsigned char *opcode;
        r.opcode_at = r.at;
        status = take(&r, 1, &opcode);
        if (status == AIM_OK && *opcode == OP_STOP) break;
        if (status == AIM_OK) status = execute(&r, *opcode);
    }
    if (status == AIM_OK) status = pop(&r, &p->value);
    p->consumed = r.at;
    if (status != AIM_OK) pickle_free(p);
    return status;
}

/* ---------------------------------------------------------------------------------------------------- values */

bool pickle_is_string(const struct pickle_value *value, const char *text)
{
    size_t length = strlen(text);
    return value->type == PICKLE_STRING && value->length == length && memcmp(value->bytes, text, length) == 0;
}

bool pickle_is_global(const struct pickle_value *value, const char *module, const char *name)
{
    return value->type == PICKLE_GLOBAL && pickle_is_string(&value->global->module, module) &&
           pickle_is_string(&value->global->name, name);
}

const struct pickle_value *pickle_dict_get(const struct pickle_dict *dict, const char *text)
{
    for (size_t i = dict->count; i-- > 0;)
        if (pickle_is_string(&dict->pairs[i].key, text)) return &dict->pairs[i].value;
    return NULL;
}
