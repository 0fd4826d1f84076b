/*
 * Copies of a constant weight in the layouts that kernels work on. They hang in a list on tensor->converted, each with
 * the name of its layout, and are freed with the tensor.
 */
#ifndef AIM_CPU_CONVERTED_H
#define AIM_CPU_CONVERTED_H

#include "tensor/tensor.h"

enum converted_kind {
    CONVERTED_ONEDNN,              /* whatever order the library asked for */
    CONVERTED_WINOGRAD = 0x1000,   /* + vector length */
    CONVERTED_WINOGRAD_UP = 0x2000 /* + vector length */
};

/* The first member of a copy. A copy comes from mem_*; `clear`, if set, frees what else it holds. */
struct converted {
    struct converted *next;
    int kind;
    void (*clear)(struct converted *self);
};

/* The next copy of this kind after `after` (NULL: the first one); NULL when there is none. */
struct converted *converted_find(const struct tensor *w, int kind, const struct converted *after);

/* Gives the copy to the tensor. */
void converted_add(const struct tensor *w, struct converted *copy);

#endif
