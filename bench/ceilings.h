/*
 * What this machine can do at most, measured: benchmarks print their figures beside these. Machines are shared and their
 * clocks move, so measure the ceiling in the same run as the kernel, more than once.
 */
#ifndef AIM_BENCH_CEILINGS_H
#define AIM_BENCH_CEILINGS_H

/* float32 multiply-adds of all threads together, in GFLOP/s (two operations each), with the widest vectors this CPU has;
 * takes about 0.1 s. */
double ceiling_fma_gflops(int threads);

/* Memory reads of all threads together in GB/s: the median of several passes over 1 GiB. 0 when memory is short. */
double ceiling_read_gbs(int threads);

#endif
