/* Shared by the tests of whole networks on a GPU: a context there, and networks of any shape. */
#ifndef AIM_TESTS_NETWORK_H
#define AIM_TESTS_NETWORK_H

#include "golden.h"

#include "model/engine.h"

/* NULL, with one line said, where there is no GPU: the test then calls skip(). */
static inline aim_context *gpu_context(void)
{
    aim_context *ctx;
    aim_context_options o = aim_context_defaults();
    o.device = "cuda";
    if (aim_context_create(&o, &ctx) == AIM_OK) return ctx;
    print_message("skipped: no GPU (%s)\n", aim_last_error(ctx));
    aim_context_free(ctx);
    return NULL;
}

/* Stage 2 of any shape, with weights that follow from their names. */
struct network {
    struct params table;
    struct ar *ar;
};

static inline void network_open(aim_context *ctx, const struct ar_config *config, aim_weights weights, struct network *n)
{
    *n = (struct network){.table = {.ctx = ctx, .prefix = AR_PREFIX}};
    assert_ok(ctx, ar_describe(config, &n->table));
    assert_ok(ctx, params_init(&n->table, 7));
    for (size_t i = 0; i < n->table.count; i++) {
        const struct param *row = &n->table.items[i];
        hashed_fill(row->name, row->ndim, row->shape, (float *)(uintptr_t)n->table.made[i].data);
    }
    assert_ok(ctx, ar_build(config, &n->table, weights, 1, &n->ar));
}

static inline void network_close(struct network *n)
{
    ar_free(n->ar);
    params_free(&n->table);
}

#endif
