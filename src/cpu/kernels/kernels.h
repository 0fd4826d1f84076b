/* The declarations of one tier's kernels, and what they all include. */
#ifndef AIM_CPU_KERNELS_H
#define AIM_CPU_KERNELS_H

#include <omp.h>

#include "cpu/kernels/simd.h"
#include "tensor/backend.h"
#include "tensor/ssd_cache.h"

#define OP(name, parameters) aim_status KERNEL(name) parameters;
#include "tensor/ops.def"
#undef OP

/* Puts this tier's kernel into every slot of the table. */
void KERNEL(fill)(struct ops *table);

#endif
