/*
 * LPIPS (spec E5): how different two pictures look, as the distance of their features in VGG16. The weights are the user's:
 * torchvision's vgg16-397923af.pth and LPIPS's vgg.pth, or one file with both.
 */
#ifndef AIM_TRAIN_LPIPS_H
#define AIM_TRAIN_LPIPS_H

#include "model/params.h"
#include "tensor/ops.h"

enum { LPIPS_CONVS = 13, LPIPS_TAPS = 5 };

struct lpips {
    struct tensor *input_w, *input_b; /* (3,3), (3): the scaling of the colours as a product */
    struct tensor *w[LPIPS_CONVS], *b[LPIPS_CONVS];
    struct tensor *lin[LPIPS_TAPS]; /* (channels) */
};

/* The table's rows: features.N.weight and .bias, linK.model.1.weight. */
aim_status lpips_describe(struct params *table);

/* From a filled table, whose values are copied. *out is for lpips_free, also after a failure. */
aim_status lpips_build(const struct params *table, struct lpips **out);
void lpips_free(struct lpips *l);

/*
 * From files: `vgg` with torchvision's names (features.N.weight), or a merged file's (net.sliceS.N.weight); `lin` with
 * linK.model.1.weight, or NULL when they are in `vgg`. Without the weights training goes on without this loss: then the status
 * is not AIM_OK, *out is NULL, and the context's message says which file or tensor is missing (AIM_ERR_ARGUMENT when `vgg` is
 * NULL).
 */
aim_status lpips_load(aim_context *ctx, const char *vgg, const char *lin, struct lpips **out);

/* The distances (N) of pictures a and b (N,3,H,W) in [-1,1], H and W at least 16; b gets no gradient, a does. With dropout
 * (LlamaGen trains that way by mistake, spec I-14) half of the squared differences count, twice; NULL is the default. */
struct tensor *lpips_forward(struct exec *ex, const struct lpips *l, const struct tensor *a, const struct tensor *b,
                             const struct dropout *dropout);

#endif
