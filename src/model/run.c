/* The library's work with pictures and codes that are there: encode, decode, score. */
#include "model/picture_queue.h"

/* ------------------------------------------------------------------------------------------ encode, decode */

/* What to do when memory is short. */
#define SMALLER_PICTURE "use a smaller picture"
#define SMALLER_GRID    "decode a smaller grid"

/* pixels (n, 3, height, width) to ids (n, tokens) */
static aim_status encode_some(aim_model *m, const float *pixels, int64_t n, int height, int width, int32_t *ids)
{
    struct exec *ex = &m->ex;
    ex->status = AIM_OK;
    struct tensor *pictures = tensor_from_host(ex, T_F32, SHAPE(n, 3, height, width), pixels);
    struct tensor *z = vq_latent(ex, m->vq, pictures), *found = vq_quantise(ex, m->vq, z);
    tensor_read(ex, found, ids);
    tensor_drop(pictures);
    tensor_drop(z);
    tensor_drop(found);
    return ex->status;
}

/* ids has room for `together` pictures. */
static aim_status encode(aim_model *m, const float *pixels, int64_t count, int height, int width, int64_t together,
                         int32_t *ids, int64_t *codes)
{
    int f = vq_downsample(&m->config.vq);
    int64_t tokens = (int64_t)(height / f) * (width / f), values = 3 * (int64_t)height * width;
    for (int64_t i = 0; i < count; i += together) {
        int64_t n = count - i < together ? count - i : together;
        TRY(aim_progress(m->ctx, "encoding", i, count));
        TRY(encode_some(m, pixels + i * values, n, height, width, ids));
        for (int64_t t = 0; t < n * tokens; t++) codes[i * tokens + t] = ids[t];
    }
    return aim_progress(m->ctx, "encoding", count, count);
}

aim_status aim_encode(aim_model *m, const float *pixels, int64_t count, int height, int width, int64_t *codes)
{
    aim_context *ctx = m->ctx;
    TRY(model_need_vq(m));
    int f = vq_downsample(&m->config.vq);
    if (height < f || width < f || height % f || width % f)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "pictures must be multiples of %d pixels high and wide, not %dx%d", f, width,
                        height);
    TRY(model_check_memory(m, vq_activation_bytes(&m->config.vq, height / f, width / f), "encoding a picture of this size",
                           SMALLER_PICTURE));
    int64_t together = model_together(m, height / f, width / f, 1);
    int32_t *ids = mem_array(ctx, (size_t)together * (size_t)(height / f) * (size_t)(width / f), sizeof *ids, MEM_MISC);
    if (!ids) return AIM_ERR_MEMORY;
    aim_status status = encode(m, pixels, count, height, width, together, ids, codes);
    mem_free(ids);
    return context_advise(ctx, status, SMALLER_PICTURE);
}

aim_status aim_decode(aim_model *m, const int64_t *codes, int64_t count, int rows, int columns, float *pixels)
{
    aim_context *ctx = m->ctx;
    TRY(model_need_vq(m));
    enum { LONGEST = 4096 };
    if (rows < 1 || columns < 1 || rows > LONGEST || columns > LONGEST)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "a grid of %dx%d codes cannot be decoded", rows, columns);
    int64_t tokens = (int64_t)rows * columns, f = vq_downsample(&m->config.vq), values = 3 * tokens * f * f;
    TRY(model_check_memory(m, vq_activation_bytes(&m->config.vq, rows, columns), "decoding a picture of this size",
                           SMALLER_GRID));
    int32_t *ids;
    TRY(model_narrow(ctx, codes, count * tokens, m->config.vq.codebook_size, "code", &ids));
    int64_t together = model_together(m, rows, columns, 1);
    aim_status status = AIM_OK;
    for (int64_t i = 0; i < count && status == AIM_OK; i += together) {
        int64_t n = count - i < together ? count - i : together;
        status = aim_progress(ctx, "decoding", i, count);
        if (status == AIM_OK) status = model_decode(m, &m->ex, ids + i * tokens, n, rows, columns, pixels + i * values);
    }
    mem_free(ids);
    if (status != AIM_OK) return context_advise(ctx, status, SMALLER_GRID);
    return aim_progress(ctx, "decoding", count, count);
}

/* --------------------------------------------------------------------------------------------------- score */

/* Who is told the logits of a picture, and room for them and the losses in the host's memory. */
struct scoring {
    aim_logits_fn logits; /* NULL: nobody */
    void *user;
    float *losses, *values; /* (T); (T,V), NULL when nobody is told */
};

/* Summed loss of one picture, added to *sum. */
static aim_status score_one(aim_model *m, const int32_t *codes, int32_t label, int64_t index, const struct scoring *how,
                            double *sum)
{
    struct exec *ex = &m->ex;
    ex->status = AIM_OK;
    int64_t T = m->config.ar.num_tokens;
    struct tensor *target = tensor_from_host(ex, T_I32, SHAPE(T), codes);
    struct tensor *logits = ar_forward(ex, m->ar, &label, codes, 1), *loss = op_cross_entropy(ex, logits, target);
    tensor_read(ex, loss, how->losses);
    if (how->logits) tensor_read(ex, logits, how->values);
    tensor_drop(target);
    tensor_drop(logits);
    tensor_drop(loss);
    TRY(ex->status);
    for (int64_t t = 0; t < T; t++) *sum += (double)how->losses[t];
    if (how->logits && how->logits(how->user, index, how->values)) return aim_fail(m->ctx, AIM_ERR_CANCELLED, "cancelled");
    return AIM_OK;
}

static aim_status score(aim_model *m, const int32_t *codes, const int32_t *labels, int64_t count, struct scoring *how,
                        double *sum)
{
    int64_t T = m->config.ar.num_tokens, V = m->config.ar.vocab_size;
    how->losses = mem_array(m->ctx, (size_t)T, sizeof(float), MEM_MISC);
    if (how->logits) how->values = mem_array(m->ctx, (size_t)(T * V), sizeof(float), MEM_MISC);
    if (!how->losses || (how->logits && !how->values)) return AIM_ERR_MEMORY;
    for (int64_t i = 0; i < count; i++) {
        TRY(aim_progress(m->ctx, "scoring", i, count));
        TRY(score_one(m, codes + i * T, labels[i], i, how, sum));
    }
    return AIM_OK;
}

aim_status aim_score(aim_model *m, const int64_t *codes, const int64_t *labels, int64_t count, double *nll,
                     aim_logits_fn logits, void *user)
{
    aim_context *ctx = m->ctx;
    int64_t T = m->config.ar.num_tokens;
    if (count < 1) return aim_fail(ctx, AIM_ERR_ARGUMENT, "there are no pictures to score");
    TRY(model_need_ar(m));
    int32_t *ids = NULL, *classes = NULL;
    aim_status status = model_narrow(ctx, codes, count * T, m->config.ar.vocab_size, "code", &ids);
    if (status == AIM_OK) status = model_narrow(ctx, labels, count, m->config.ar.num_classes + 1, "class", &classes);
    double sum = 0;
    struct scoring how = {.logits = logits, .user = user};
    if (status == AIM_OK) status = score(m, ids, classes, count, &how, &sum);
    mem_free(how.losses);
    mem_free(how.values);
    mem_free(ids);
    mem_free(classes);
    if (status != AIM_OK) return context_advise(ctx, status, "use --weights q8, or a smaller model");
    *nll = sum / (double)(count * T);
    return aim_progress(ctx, "scoring", count, count);
}
