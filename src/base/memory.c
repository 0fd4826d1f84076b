#include "base/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/context.h"

/* Stands before every block; its size keeps the block aligned. */
struct header {
    struct memory *memory; /* the account it stands in */
    size_t bytes;          /* header included */
    enum memory_tag tag;
};

/* Large blocks start on a huge page and ask for more of them: weights are streamed, and small pages would cost a
 * translation every 4 KiB. */
enum { ALIGNMENT = 64, HUGE_PAGE = 2 << 20, LARGE_BLOCK = HUGE_PAGE };
_Static_assert(sizeof(struct header) <= ALIGNMENT, "the header must fit before an aligned block");

static struct header *header_of(void *block)
{
    return (struct header *)(void *)((char *)block - ALIGNMENT);
}

/* Threads that work for one context allocate at the same time, so its account changes in atomic steps. */
static void account(struct memory *m, enum memory_tag tag, int64_t bytes)
{
    __atomic_add_fetch(&m->used[tag], bytes, __ATOMIC_RELAXED);
    __atomic_add_fetch(&m->total, bytes, __ATOMIC_RELAXED);
}

/* Adds a block to the account; false when the limit, or a test, does not allow it. */
static bool take(struct memory *m, enum memory_tag tag, int64_t bytes)
{
    if (__atomic_load_n(&m->fail_after, __ATOMIC_RELAXED) >= 0 && __atomic_fetch_sub(&m->fail_after, 1, __ATOMIC_RELAXED) == 0)
        return false;
    int64_t total = __atomic_load_n(&m->total, __ATOMIC_RELAXED);
    do {
        if (m->limit > 0 && bytes > m->limit - total) return false;
    } while (!__atomic_compare_exchange_n(&m->total, &total, total + bytes, 1, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    __atomic_add_fetch(&m->used[tag], bytes, __ATOMIC_RELAXED);
    int64_t peak = __atomic_load_n(&m->peak, __ATOMIC_RELAXED);
    total += bytes;
    while (total > peak && !__atomic_compare_exchange_n(&m->peak, &peak, total, 1, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
    return true;
}

static void *fail_size(struct aim_context *ctx, size_t bytes)
{
    aim_fail(ctx, AIM_ERR_MEMORY, "out of memory: %.1f MB more were needed", (double)bytes / 1e6);
    return NULL;
}

void *mem_new(struct aim_context *ctx, size_t bytes, enum memory_tag tag)
{
    aim_context *owner = ctx->parent ? ctx->parent : ctx;
    size_t whole;
    if (!size_add(bytes, 2 * ALIGNMENT - 1, &whole)) return fail_size(ctx, bytes);
    whole &= ~(size_t)(ALIGNMENT - 1);
    if (whole > PTRDIFF_MAX || !take(&owner->memory, tag, (int64_t)whole)) return fail_size(ctx, bytes);
    bool large = whole >= LARGE_BLOCK;
    void *base = NULL;
    if (posix_memalign(&base, large ? HUGE_PAGE : ALIGNMENT, whole) != 0) {
        account(&owner->memory, tag, -(int64_t)whole);
        return fail_size(ctx, bytes);
    }
    if (large) madvise(base, whole & ~(size_t)(HUGE_PAGE - 1), MADV_HUGEPAGE); /* a wish: refusal costs speed alone */
    *(struct header *)base = (struct header){.memory = &owner->memory, .bytes = whole, .tag = tag};
    return (char *)base + ALIGNMENT;
}

void *mem_array(struct aim_context *ctx, size_t count, size_t size, enum memory_tag tag)
{
    size_t bytes;
    if (!size_mul(count, size, &bytes)) return fail_size(ctx, SIZE_MAX);
    return mem_new(ctx, bytes, tag);
}

void *mem_zero(struct aim_context *ctx, size_t count, size_t size, enum memory_tag tag)
{
    void *block = mem_array(ctx, count, size, tag);
    if (block) memset(block, 0, count * size);
    return block;
}

char *mem_string(struct aim_context *ctx, const char *text, enum memory_tag tag)
{
    size_t bytes = strlen(text) + 1;
    char *copy = mem_new(ctx, bytes, tag);
    if (copy) memcpy(copy, text, bytes);
    return copy;
}

void *mem_resize(struct aim_context *ctx, void *block, size_t bytes, enum memory_tag tag)
{
    if (!block) return mem_new(ctx, bytes, tag);
    size_t held = header_of(block)->bytes - ALIGNMENT;
    if (bytes <= held && bytes >= held / 2) return block;
    void *moved = mem_new(ctx, bytes, tag);
    if (!moved) return NULL;
    memcpy(moved, block, bytes < held ? bytes : held);
    mem_free(block);
    return moved;
}

void mem_free(void *block)
{
    if (!block) return;
    struct header *h = header_of(block);
    account(h->memory, h->tag, -(int64_t)h->bytes);
    free(h);
}

static int64_t read_number(const char *path)
{
    FILE *f = fopen(path, "r");
    if (!f) return -1;
    long long value = -1;
    if (fscanf(f, "%lld", &value) != 1) value = -1;
    fclose(f);
    return value;
}

/* Bytes of files that the cgroup holds in memory and would give up for ours. */
static int64_t page_cache(void)
{
    FILE *f = fopen("/sys/fs/cgroup/memory.stat", "r");
    if (!f) return 0;
    char line[128];
    long long bytes = 0;
    while (fgets(line, sizeof line, f))
        if (sscanf(line, "inactive_file %lld", &bytes) == 1) break;
    fclose(f);
    return bytes;
}

int64_t mem_available(void)
{
    int64_t available = INT64_MAX;
    FILE *f = fopen("/proc/meminfo", "r");
    if (f) {
        char line[128];
        long long kib;
        while (fgets(line, sizeof line, f))
            if (sscanf(line, "MemAvailable: %lld kB", &kib) == 1) available = kib * 1024;
        fclose(f);
    }
    int64_t limit = read_number("/sys/fs/cgroup/memory.max"), held = read_number("/sys/fs/cgroup/memory.current");
    if (limit > 0 && held >= 0) {
        held -= page_cache();
        if (limit - held < available) available = limit > held ? limit - held : 0;
    }
    return available;
}
