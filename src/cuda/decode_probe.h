/* What a decoder did last, for benchmarks and tests. */
#ifndef AIM_CUDA_DECODE_PROBE_H
#define AIM_CUDA_DECODE_PROBE_H

#include "tensor/decoder.h"

/* Kernels of a step: norms with the residual, in_proj, the mixer, out_proj, logits, the draw. */
enum decode_kind { STEP_NORM, STEP_IN, STEP_MIX, STEP_OUT, STEP_LOGITS, STEP_DRAW, STEP_KINDS };

/*
 * Seconds of a step at position t of what the decoder painted last: of the whole, and of all its kernels of one kind in a row,
 * which is what they take without the others between. The sequence is spoilt. AIM_ERR_UNSUPPORTED when it was painted by
 * other means than these kernels.
 */
aim_status cuda_decode_times(struct decoder *decoder, int t, double *whole, double kinds[STEP_KINDS]);

/* The logits that the last token was drawn from: guided, over the temperature; (pictures, V), the host's. */
aim_status cuda_decode_logits(struct decoder *decoder, float *logits);

#endif
