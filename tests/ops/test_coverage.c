/* Every op has a test that runs it: ops.def against covered.def (see ops.h for the other half of the proof). */
#include "support.h"

#include "tensor/backend.h"

enum op_id {
#define OP(name, parameters) ID_##name,
#include "tensor/ops.def"
#undef OP
    OPS
};

static const char *const op_names[OPS] = {
#define OP(name, parameters) #name,
#include "tensor/ops.def"
#undef OP
};

/* An op that is gone does not compile. */
static const char *const covered_by[OPS] = {
#define COVERED(name, file) [ID_##name] = #file,
#include "covered.def"
#undef COVERED
};

static void test_every_op_is_covered(void **state)
{
    (void)state;
    for (int op = 0; op < OPS; op++)
        if (!covered_by[op]) fail_msg("no test covers %s: write one and list it in tests/ops/covered.def", op_names[op]);
}

static void test_listed_tests_exist(void **state)
{
    (void)state;
    for (int op = 0; op < OPS; op++) {
        char path[600];
        snprintf(path, sizeof path, "%s/../ops/test_%s.c", TEST_DATA, covered_by[op] ? covered_by[op] : "");
        FILE *f = fopen(path, "r");
        if (!f) fail_msg("%s, listed for %s, does not exist", path, op_names[op]);
        fclose(f);
    }
}

/* The table that models call through has no empty slot in it. */
static void test_every_slot_is_filled(void **state)
{
    (void)state;
    aim_context *ctx;
    assert_int_equal(aim_context_create(NULL, &ctx), AIM_OK);
#define OP(name, parameters) assert_true(ctx->backend->op.name != NULL);
#include "tensor/ops.def"
#undef OP
    aim_context_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_op_is_covered),
        cmocka_unit_test(test_listed_tests_exist),
        cmocka_unit_test(test_every_slot_is_filled),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
