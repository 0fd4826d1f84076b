/* Where a stage-2 training run starts: the network's sizes and its first weights, new ones or those of another model. */
#ifndef AIM_TRAIN_AR_START_H
#define AIM_TRAIN_AR_START_H

#include "train/ar_data.h"

/*
 * A new model (freed by the caller, also after a failure) with the configuration of a run and a parameter table without
 * values. Sizes come from `source` when the options say `init`, else from the preset, the config file and the single options;
 * classes, tokens and vocabulary from the data. `source` may be NULL. The model has no tokenizer.
 *
 * AIM_ERR_ARGUMENT when data, tokenizer and network do not fit together.
 */
aim_status ar_start_configure(aim_context *ctx, const aim_train_ar_options *o, const struct ar_data *data,
                              const aim_model *source, aim_model **model);

/*
 * Values for its table: new ones from the seed; with `init`, those of `source` over them: classes go by name (by number when
 * one of the models has no names), positions are interpolated where the grid has another size.
 */
aim_status ar_start_weights(aim_model *m, const aim_train_ar_options *o, const aim_model *source);

/* positions (from*from, d) -> out (to*to, d): cubic interpolation (Catmull-Rom) of the grid, both sides alike. */
void ar_resize_positions(const float *positions, int from, int64_t d, int to, float *out);

#endif
