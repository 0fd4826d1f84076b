/*
 * Accounted memory: every block of the library is 64-byte aligned, counted in its context under a tag, and held to the
 * context's limit. Running out is an error with a message, never an abort; tests make the n-th allocation fail.
 */
#ifndef AIM_BASE_MEMORY_H
#define AIM_BASE_MEMORY_H

#include <stdint.h>
#include <stddef.h>

struct aim_context;

enum memory_tag { MEM_MISC, MEM_FILE, MEM_IMAGE, MEM_WEIGHTS, MEM_ACTIVATIONS, MEM_CACHE, MEM_TAGS };

struct memory {
    int64_t used[MEM_TAGS], total, peak; /* bytes, headers included */
    int64_t limit;                       /* 0 = none */
    int64_t fail_after;                  /* tests: allocations left before one fails; negative = never */
};

/* NULL on failure, with the message set. Contents are undefined (mem_new, mem_array) or zero (mem_zero). */
void *mem_new(struct aim_context *ctx, size_t bytes, enum memory_tag tag);
void *mem_array(struct aim_context *ctx, size_t count, size_t size, enum memory_tag tag);
void *mem_zero(struct aim_context *ctx, size_t count, size_t size, enum memory_tag tag);
char *mem_string(struct aim_context *ctx, const char *text, enum memory_tag tag);

/* Grows or shrinks a block from mem_*; NULL leaves the old one alive. block may be NULL. */
void *mem_resize(struct aim_context *ctx, void *block, size_t bytes, enum memory_tag tag);

/* NULL is allowed. The block remembers its account: any thread may free it, while the context lives. */
void mem_free(void *block);

/* Bytes this process may still take: free memory as the system tells it, cut to the cgroup's limit. */
int64_t mem_available(void);

#endif
