/*
 * What this machine can do at most, measured: benchmarks print their figures beside these. Machines are shared and their
 * clocks move, so measure the ceiling in the same run as the kernel, more than once.
 */
#ifndef AIM_BENCH_CEILINGS_H
#define AIM_BENCH_CEILINGS_H

#include <stdbool.h>

/* float32 multiply-adds of all threads together, in GFLOP/s (two operations each), with the widest vectors this CPU has;
 * takes about 0.1 s. */
double ceiling_fma_gflops(int threads);

/* Memory reads of all threads together in GB/s: the median of several passes over 1 GiB. 0 when memory is short. */
double ceiling_read_gbs(int threads);

/* What the dense library reaches where it is at its best, in GFLOP/s, all threads together: a product of 2048 x 2048
 * matrices, and a direct 3x3 convolution of 128 channels at 128x128 in its own layout; inputs float32, or bf16 with sums
 * in float32. 0 when it cannot; without the library, the float32 multiply-add peak. */
double ceiling_product_gflops(int threads, bool bf16);
double ceiling_convolution_gflops(int threads, bool bf16);

#endif
