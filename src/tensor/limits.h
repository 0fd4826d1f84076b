/* What a backend can do at most, measured: benchmarks show their figures beside these, from the same run. */
#ifndef AIM_TENSOR_LIMITS_H
#define AIM_TENSOR_LIMITS_H

#include "tensor/backend.h"

/* The median of n values, which are sorted. */
double limits_median(double *values, size_t n);

/* Bytes read and written per second by copies too large for any cache. */
aim_status limits_copy(struct exec *ex, double *bytes_per_second);

/* Operations per second of a large product with matrices of a packed type; a device has bf16 in the place of 8 bits. */
aim_status limits_product(struct exec *ex, enum tensor_type matrices, double *operations_per_second);

#endif
