#include "cpu/cpu.h"

#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "cpu/bf16.h"

void cpu_generic_fill(struct ops *table);
void cpu_avx2_fill(struct ops *table);
void cpu_avx512_fill(struct ops *table);

struct tier {
    const char *name;
    void (*fill)(struct ops *table);
    bool (*runs)(void);
};

static bool always(void)
{
    return true;
}

#if defined(__x86_64__)
static bool has_f16c(void) /* clang 14 does not let __builtin_cpu_supports ask for it */
{
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}

static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
}

static bool has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

/* Best first. */
static const struct tier tiers[] = {
#if defined(__x86_64__)
    {"avx512", cpu_avx512_fill, has_avx512},
    {"avx2", cpu_avx2_fill, has_avx2},
#endif
    {"generic", cpu_generic_fill, always},
};

aim_status cpu_fill(aim_context *ctx, const char *wanted, struct ops *table, const char **name)
{
    for (size_t i = 0; i < sizeof tiers / sizeof tiers[0]; i++) {
        const struct tier *t = &tiers[i];
        if (wanted && strcmp(wanted, t->name) != 0) continue;
        if (t->runs()) {
            t->fill(table);
            *name = t->name;
            return AIM_OK;
        }
        if (wanted)
            return aim_fail(ctx, AIM_ERR_UNSUPPORTED, "this processor has no %s; leave the CPU tier out to use the best it has",
                            wanted);
    }
    return aim_fail(ctx, AIM_ERR_ARGUMENT, "unknown CPU tier \"%s\": generic, avx2 and avx512 exist", wanted);
}

aim_status cpu_check_bf16(const struct backend *be)
{
#if defined(__x86_64__)
    struct ops best;
    cpu_avx512_fill(&best); /* the tier that has them; `pack` is never another's */
    if (be->op.pack == best.pack && bf16_available()) return AIM_OK;
#endif
    return aim_fail(be->ctx, AIM_ERR_UNSUPPORTED, "this processor has no bf16 instructions");
}
