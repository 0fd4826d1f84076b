/* The CPU backend: fills an op table with the kernels of a tier, then with what the dense library does better. */
#ifndef AIM_CPU_CPU_H
#define AIM_CPU_CPU_H

#include "tensor/backend.h"

/* tier: "generic", "avx2", "avx512", or NULL for the best one this CPU has. *name gets its static name. */
aim_status cpu_fill(aim_context *ctx, const char *tier, struct ops *table, const char **name);

/* AIM_ERR_UNSUPPORTED unless the backend's tier, on this processor, has products of bf16 (cpu/bf16.h). */
aim_status cpu_check_bf16(const struct backend *be);

/* Puts oneDNN's linear, attention and conv2d over those in be->op, and describes it ("oneDNN 2.6.3") in `name`. */
aim_status onednn_attach(struct backend *be, char *name, size_t size);

#endif
