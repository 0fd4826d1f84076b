#include "cpu/converted.h"

static void free_all(void *first)
{
    for (struct converted *c = first, *next; c; c = next) {
        next = c->next;
        if (c->clear) c->clear(c);
        mem_free(c);
    }
}

struct converted *converted_find(const struct tensor *w, int kind, const struct converted *after)
{
    for (struct converted *c = after ? after->next : w->converted; c; c = c->next)
        if (c->kind == kind) return c;
    return NULL;
}

void converted_add(const struct tensor *w, struct converted *copy)
{
    struct tensor *owner = (struct tensor *)(uintptr_t)w; /* a cache: the tensor's value does not change */
    copy->next = owner->converted;
    owner->converted = copy;
    owner->converted_free = free_all;
}
