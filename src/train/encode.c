#include "train/encode.h"

aim_status encode_pictures(struct exec *ex, const struct vq *vq, const float *pixels, int64_t n, int size, int32_t *codes)
{
    struct tape *tape = ex->tape;
    ex->tape = NULL;
    ex->status = AIM_OK;
    struct tensor *pictures = tensor_from_host(ex, T_F32, SHAPE(n, 3, size, size), pixels);
    struct tensor *latent = vq_latent(ex, vq, pictures), *ids = vq_quantise(ex, vq, latent);
    tensor_read(ex, ids, codes);
    tensor_drop(pictures);
    tensor_drop(latent);
    tensor_drop(ids);
    ex->tape = tape;
    return ex->status;
}
