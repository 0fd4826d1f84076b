/*
 * Stage 2: the class-conditional Mamba-2 language model over codes (spec B). This is the parallel form, over whole
 * sequences; the decode engine (model/engine.h) runs the same layers one token at a time.
 */
#ifndef AIM_MODEL_AR_H
#define AIM_MODEL_AR_H

#include "model/config.h"
#include "model/params.h"
#include "tensor/ops.h"

/* E, C, W, H: widths of config.h. */
struct ar_layer {
    struct tensor *norm;                /* (d) */
    struct tensor *table;               /* (1,3,d): shift, scale, gate; adaLN-group models, else NULL */
    struct tensor *adaln_w, *adaln_b;   /* (3d,d), (3d): per-layer adaLN models, else NULL */
    struct tensor *in_proj;             /* (W,d), packed */
    struct tensor *conv_w, *conv_b;     /* (C,1,4), (C) */
    struct tensor *dt_bias, *A_log, *D; /* (H) */
    struct tensor *mixer_norm;          /* (E) */
    struct tensor *out_proj;            /* (d,E), packed */
};

struct ar {
    aim_context *ctx;
    struct ar_config config;
    int pos_offset;                     /* image token i is fed with position i + pos_offset */
    struct tensor *words;               /* (V,d), packed; also the head */
    struct tensor *positions;           /* (num_tokens+1,d) */
    struct tensor *classes;             /* (num_classes+1,d); the last row is the null class */
    struct tensor *group_w, *group_b;   /* (G*3d,d), (G*3d); NULL for per-layer adaLN */
    struct tensor *norm_f, *norm_final; /* (d) */
    struct tensor *final_w, *final_b;   /* (2d,d), (2d): shift, scale */
    struct ar_layer *layers;
    /* Training. */
    struct tensor **rows; /* the tensors above in the order of the parameter table, borrowed; NULL unless trainable */
    bool checkpointing;   /* blocks keep their inputs alone, and run again in the backward pass */
};

/* The rows of the parameter table, in the official order. */
aim_status ar_describe(const struct ar_config *config, struct params *table);

/* From a filled table to a network ready to run. *ar is freed with ar_free, also after a failure. */
aim_status ar_build(const struct ar_config *config, const struct params *table, aim_weights weights, int pos_offset,
                    struct ar **ar);
/* The same with float32 tensors of its own whose gradients the tape computes; position offset 0. */
aim_status ar_build_trainable(const struct ar_config *config, const struct params *table, struct ar **ar);
void ar_free(struct ar *ar);

/*
 * What the class decides alone. e (B,d) class embeddings; the result of ar_conditions is handed to ar_modulation for
 * each layer, giving (B,3d) shift | scale | gate, and to ar_final_modulation, (B,2d) shift | scale.
 */
struct ar_conditions {
    struct tensor *silu;   /* silu(e) (B,d) */
    struct tensor *groups; /* (B,G*3d); NULL for per-layer adaLN */
};
struct tensor *ar_class_embedding(struct exec *ex, const struct ar *ar, const int32_t *labels, int64_t count);
struct ar_conditions ar_conditions(struct exec *ex, const struct ar *ar, const struct tensor *e);
struct tensor *ar_modulation(struct exec *ex, const struct ar *ar, const struct ar_conditions *c, int layer);
struct tensor *ar_final_modulation(struct exec *ex, const struct ar *ar, const struct ar_conditions *c);
void ar_conditions_drop(struct ar_conditions *c);

/*
 * Teacher-forced logits (B, T, V): row t predicts token t. labels (B), codes (B, T); the last code of each picture is
 * not fed. The caller drops the result.
 */
struct tensor *ar_forward(struct exec *ex, const struct ar *ar, const int32_t *labels, const int32_t *codes, int64_t pictures);

/* -log p of each code of the same network, (B*T): what training minimises the mean of. The logits are never there whole. */
struct tensor *ar_loss(struct exec *ex, const struct ar *ar, const int32_t *labels, const int32_t *codes, int64_t pictures);

/*
 * Which position convention a checkpoint was trained with (spec I-1): 0 or 1, or -1 when the norms do not tell.
 * positions (num_tokens+1, d).
 */
int ar_guess_pos_offset(const float *positions, int64_t num_tokens, int64_t d);

/* The packed type that matrices get; AIM_WEIGHTS_AUTO may still find that bf16 is the same as T_F32_PACKED. */
enum tensor_type ar_matrix_type(aim_weights weights);

/* Bytes of the packed matrices of this type, and of the other tensors where they must be copied to become float32. */
int64_t ar_weight_bytes(const struct ar_config *config, enum tensor_type matrices, bool copies_plain);

#endif
