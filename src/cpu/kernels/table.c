/* One tier's whole table. */
#include "cpu/kernels/kernels.h"

void KERNEL(fill)(struct ops *table)
{
#define OP(name, parameters) table->name = KERNEL(name);
#include "tensor/ops.def"
#undef OP
}
