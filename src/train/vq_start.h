/* Where a stage-1 training run starts: the tokenizer's sizes and its first weights, new ones or those of another model. */
#ifndef AIM_TRAIN_VQ_START_H
#define AIM_TRAIN_VQ_START_H

#include "model/model.h"
#include "train/dataset.h"

/*
 * A new model (freed by the caller, also after a failure) with the tokenizer's configuration and a parameter table without
 * values: sizes of `source` when the options say `init`, else of the preset and the single options. The names of the data's
 * classes go into the configuration. AIM_ERR_ARGUMENT for sizes that no tokenizer can have.
 */
aim_status vq_start_configure(aim_context *ctx, const aim_train_tokenizer_options *o, const struct dataset *data,
                              const aim_model *source, aim_model **model);

/* Values for its table: new ones from the seed, or those of `source`, where they stay. */
aim_status vq_start_weights(aim_model *m, const aim_train_tokenizer_options *o, const aim_model *source);

#endif
