/*
 * The harness of the op tests. A test is a body that runs the ops on deterministic inputs and compares what they wrote
 * with references in double precision, written from the formulas of ops.def. everywhere() runs the body in every tier
 * of the processor with 1, 2 and 3 threads. What goes without saying in a body is checked all the same:
 *
 *   - every comparison also asks for the bits that one thread gave;
 *   - every op is first run with its first, second, ... allocation failing: it must say AIM_ERR_MEMORY and leave no
 *     memory behind (and, since the real run follows, no half-made step in a cache);
 *   - outputs start as NaN and tensors end where their last element does, for the sanitizer to see;
 *   - covered.def says which file tests which op, and main fails if it did not run in every tier.
 *
 * The table is the tier's own: the dense library's replacements have tests of their own.
 */
#ifndef AIM_TESTS_OPS_H
#define AIM_TESTS_OPS_H

#include "support.h"

#include <unistd.h>

#include "base/philox.h"
#include "cpu/cpu.h"
#include "tensor/ssd_cache.h"

enum op_id {
#define OP(name, parameters) ID_##name,
#include "tensor/ops.def"
#undef OP
    OPS
};

static const char *const tier_names[] = {"generic", "avx2", "avx512"};
enum { TIERS = sizeof tier_names / sizeof tier_names[0], MOST_THREADS = 3 };

/* Where a body runs. */
struct place {
    aim_context ctx;
    struct backend *be;
    int tier;
    uint64_t draws;   /* of random numbers so far: a body sees the same ones every time */
    int64_t held;     /* memory before the op */
    int64_t failures; /* allocations of this op made to fail so far */
    aim_status expected;
    void *blocks; /* the tensors' memory, linked through their first word */
};

/* What all bodies of this executable share: hashes of the results with one thread, in order, and the ops that ran. */
static struct {
    uint64_t *hashes;
    size_t count, capacity, next;
    bool ran[TIERS][OPS], present[TIERS];
} record;

/* ------------------------------------------------------------------------------------------------ running ops */

static inline void run_begin(struct place *p, enum op_id op, aim_status expected)
{
    p->held = p->ctx.memory.total;
    p->failures = 0;
    p->ctx.memory.fail_after = 0;
    p->expected = expected;
    record.ran[p->tier][op] = true;
}

/* True if the op must be called again, because this time an allocation was made to fail. */
static inline bool run_again(struct place *p, aim_status status, const char *name)
{
    bool failed = p->ctx.memory.fail_after < 0;
    p->ctx.memory.fail_after = -1;
    if (p->ctx.memory.total != p->held) fail_msg("%s: %s leaves memory behind", tier_names[p->tier], name);
    if (failed) {
        if (status != AIM_ERR_MEMORY) fail_msg("%s: %s ignores that memory is out", tier_names[p->tier], name);
        p->ctx.memory.fail_after = ++p->failures;
        return true;
    }
    if (status != p->expected)
        fail_msg("%s: %s: expected %s, got %s (%s)", tier_names[p->tier], name, aim_status_name(p->expected),
                 aim_status_name(status), aim_last_error(&p->ctx));
    return false;
}

/* RUN(p, add, &a, &b, &y): the op, with failing allocations first. */
#define RUN_EXPECTING(status, p, name, ...)                                                                                    \
    do {                                                                                                                       \
        run_begin(p, ID_##name, status);                                                                                       \
        while (run_again(p, (p)->be->op.name((p)->be, __VA_ARGS__), #name)) {                                                  \
        }                                                                                                                      \
    } while (0)
#define RUN(p, name, ...) RUN_EXPECTING(AIM_OK, p, name, __VA_ARGS__)

/* ---------------------------------------------------------------------------------------------------- tensors */

/* Memory until the end of the body: a block of its own, ending where the sanitizer notices. Every byte is 0xff. */
static inline void *block_new(struct place *p, size_t bytes)
{
    enum { LINK = 64 }; /* keeps data aligned */
    char *block = malloc(LINK + bytes);
    assert_non_null(block);
    memset(block + LINK, 0xff, bytes);
    *(void **)(void *)block = p->blocks;
    p->blocks = block;
    return block + LINK;
}

static inline double *doubles_new(struct place *p, int64_t n)
{
    return block_new(p, (size_t)n * sizeof(double));
}

/* Dimensions from the first 0 on are absent. */
static inline struct tensor tensor_of(struct place *p, enum tensor_type type, int64_t n0, int64_t n1, int64_t n2, int64_t n3)
{
    struct tensor t = tensor_view(type, NULL, n0, n1, n2, n3);
    t.data = block_new(p, tensor_bytes(type, t.ndim, t.shape));
    return t;
}

/* For outputs: every value is NaN. */
static inline struct tensor blank(struct place *p, int64_t n0, int64_t n1, int64_t n2, int64_t n3)
{
    return tensor_of(p, T_F32, n0, n1, n2, n3);
}

/* Uniform in (0, 1). */
static inline double draw_uniform(struct place *p)
{
    struct philox4 r = philox(20240816, p->draws++, 0, 0);
    return ((double)r.v[0] + 0.5) * 0x1p-32;
}

/* 0 .. n-1 */
static inline int32_t draw_int(struct place *p, int64_t n)
{
    return (int32_t)(draw_uniform(p) * (double)n);
}

/* Bell-shaped: four uniform numbers make a normal one good enough for inputs. */
static inline float draw_normal(struct place *p, double mean, double deviation)
{
    struct philox4 r = philox(20240816, p->draws++, 0, 1);
    double sum = ((double)r.v[0] + (double)r.v[1] + (double)r.v[2] + (double)r.v[3]) * 0x1p-32 - 2;
    return (float)(mean + deviation * sum * 1.7320508075688772);
}

static inline void fill_normal(struct place *p, struct tensor *t, double mean, double deviation)
{
    for (int64_t i = 0; i < tensor_count(t); i++) f32(t)[i] = draw_normal(p, mean, deviation);
}

static inline struct tensor normal(struct place *p, int64_t n0, int64_t n1, int64_t n2, int64_t n3)
{
    struct tensor t = blank(p, n0, n1, n2, n3);
    fill_normal(p, &t, 0, 1);
    return t;
}

/* A copy whose elements are rows from .. from+n of the first dimension. */
static inline struct tensor rows_of(struct place *p, const struct tensor *t, int64_t from, int64_t n)
{
    struct tensor part = *t;
    part.shape[0] = n;
    size_t row = (size_t)(tensor_count(t) / t->shape[0]) * tensor_type_size(t->type);
    part.data = block_new(p, (size_t)n * row);
    memcpy(part.data, (const char *)t->data + (size_t)from * row, (size_t)n * row);
    return part;
}

/* ------------------------------------------------------------------------------------------------- comparisons */

/* The same bits with every number of threads. */
static inline void same_with_any_threads(struct place *p, const char *what, const void *data, size_t bytes)
{
    uint64_t hash = 0xcbf29ce484222325u; /* FNV-1a over whole bytes */
    for (size_t i = 0; i < bytes; i++) hash = (hash ^ ((const uint8_t *)data)[i]) * 0x100000001b3u;
    if (p->be->threads == 1) {
        if (record.count == record.capacity) {
            record.capacity = record.capacity ? 2 * record.capacity : 64;
            record.hashes = realloc(record.hashes, record.capacity * sizeof record.hashes[0]);
            assert_non_null(record.hashes);
        }
        record.hashes[record.count++] = hash;
    } else if (record.next >= record.count || record.hashes[record.next++] != hash) {
        fail_msg("%s: %s with %d threads differs from one thread", tier_names[p->tier], what, p->be->threads);
    }
}

static inline void expect_same(struct place *p, const char *what, const void *got, const void *want, size_t bytes)
{
    if (memcmp(got, want, bytes) != 0) fail_msg("%s, %d threads: %s: other bits", tier_names[p->tier], p->be->threads, what);
}

/* Whether a reference is wanted: what more threads give is compared with the bits that one thread gave. */
static inline bool needs_reference(const struct place *p)
{
    return p->be->threads == 1;
}

/* Largest difference relative to the largest value of the reference. */
static inline void compare(const struct place *p, const char *what, const struct tensor *got, const double *want,
                           double tolerance)
{
    double worst = 0, scale = 0;
    int64_t n = tensor_count(got), at = 0;
    for (int64_t i = 0; i < n; i++) {
        double gap = fabs((double)f32(got)[i] - want[i]);
        if (!(gap <= worst)) { /* a NaN gets in, and stays */
            worst = gap;
            at = i;
        }
        if (fabs(want[i]) > scale) scale = fabs(want[i]);
    }
    if (scale == 0) scale = 1;
    if (getenv("AIM_TEST_ERRORS")) print_message("%s: %s: %.2e of %.0e\n", tier_names[p->tier], what, worst / scale, tolerance);
    if (!(worst <= tolerance * scale))
        fail_msg("%s, %d threads: %s: element %lld of %lld is %.9g, not %.9g; error %.2e of the largest, allowed %.0e",
                 tier_names[p->tier], p->be->threads, what, (long long)at, (long long)n, (double)f32(got)[at], want[at],
                 worst / scale, tolerance);
}

/* Both: near the reference, and the same bits with any threads. want may be NULL where no reference is needed. */
static inline void expect_near(struct place *p, const char *what, const struct tensor *got, const double *want,
                               double tolerance)
{
    same_with_any_threads(p, what, got->data, (size_t)tensor_count(got) * sizeof(float));
    if (want) compare(p, what, got, want, tolerance);
}

/* --------------------------------------------------------------------------------------------------- everywhere */

/* False if this processor or build lacks the tier. */
static inline bool place_open(struct place *p, int tier, int threads)
{
    static bool told[TIERS];
    aim_context_options options = aim_context_defaults();
    const char *name;
    options.cpu = tier_names[tier];
    options.threads = threads;
    *p = (struct place){.tier = tier};
    assert_ok(&p->ctx, context_init(&p->ctx, &options));
    aim_status status = backend_create(&p->ctx, &options, &p->be);
    if (status != AIM_OK) {
        if (status != AIM_ERR_UNSUPPORTED && status != AIM_ERR_ARGUMENT) fail_msg("%s", aim_last_error(&p->ctx));
        if (!told[tier]) print_message("skipped: %s\n", aim_last_error(&p->ctx));
        told[tier] = true;
        return false;
    }
    assert_ok(&p->ctx, cpu_fill(&p->ctx, options.cpu, &p->be->op, &name));
    record.present[tier] = true;
    return true;
}

static inline void place_close(struct place *p)
{
    while (p->blocks) {
        void *next = *(void **)p->blocks;
        free(p->blocks);
        p->blocks = next;
    }
    backend_free(p->be);
    assert_int_equal(p->ctx.memory.total, 0);
}

static inline void everywhere(void (*body)(struct place *p))
{
    for (int tier = 0; tier < TIERS; tier++) {
        record.count = 0;
        for (int threads = 1; threads <= MOST_THREADS; threads++) {
            struct place p;
            if (!place_open(&p, tier, threads)) break;
            record.next = 0;
            body(&p);
            place_close(&p);
        }
    }
    free(record.hashes);
    record.hashes = NULL;
    record.count = record.capacity = 0;
}

/* A cmocka test that runs its body everywhere. */
#define TEST(name)                                                                                                             \
    static void body_##name(struct place *p);                                                                                  \
    static void test_##name(void **state)                                                                                      \
    {                                                                                                                          \
        (void)state;                                                                                                           \
        everywhere(body_##name);                                                                                               \
    }                                                                                                                          \
    static void body_##name(struct place *p)

/* Threads that wait for each other by spinning take a busy machine's cores from those that work, and the tests then minutes.
 * OpenMP reads the environment before main: hence the second start. Where it fails, the tests are slower. */
static inline void stop_spinning(const char *name)
{
    if (getenv("OMP_WAIT_POLICY")) return;
    setenv("OMP_WAIT_POLICY", "passive", 1);
    execl("/proc/self/exe", name, (char *)NULL);
}

/* Runs the tests of test_FILE.c; nonzero too if an op that covered.def lists for it did not run in some tier. */
static inline int run_ops(const char *file, const struct CMUnitTest *tests, size_t count)
{
    stop_spinning(file);
    int failed = _cmocka_run_group_tests(file, tests, count, NULL, NULL);
#define COVERED(name, by)                                                                                                      \
    for (int tier = 0; tier < TIERS; tier++)                                                                                   \
        if (strcmp(file, #by) == 0 && record.present[tier] && !record.ran[tier][ID_##name]) {                                  \
            fprintf(stderr, "covered.def lists %s for %s, which does not run it in %s\n", #name, file, tier_names[tier]);      \
            failed++;                                                                                                          \
        }
#include "covered.def"
#undef COVERED
    return failed;
}

#define RUN_OPS(file, tests) run_ops(file, tests, sizeof(tests) / sizeof((tests)[0]))

#endif
