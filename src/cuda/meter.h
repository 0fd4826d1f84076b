/* Where the persistent decoder's time goes, for benchmarks. */
#ifndef AIM_CUDA_METER_H
#define AIM_CUDA_METER_H

#include "tensor/backend.h"

/* What a block does or waits for; MIX and LOGITS begin when the values are there. */
enum meter_kind { WAIT_TOKEN, WAIT_H, NORM, IN_PROJ, WAIT_SCORES, MIX, WAIT_V, OUT_PROJ, LOGITS, DRAW, METER_KINDS };

/*
 * From now on a block's cycles are counted by what they were for, over all tokens of all streams. `cuda_meter_stop` gives the
 * sums (blocks, METER_KINDS), which the caller frees with mem_free, and ends the counting; *cycles is NULL after an error.
 */
aim_status cuda_meter_start(struct backend *be);
aim_status cuda_meter_stop(struct backend *be, unsigned long long **cycles, int *blocks);

#endif
