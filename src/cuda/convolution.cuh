/*
 * The ways to a convolution: cuDNN (convolution.cu), in float32 products of tiles (convolution_f32.cu), in bfloat16 those of
 * narrow maps (convolution_narrow.cu), and plain products over gathered patches (convolution_plain.cu), which serve every
 * shape, without cuDNN or where it has no algorithm. All compute what ops.def says; gradients ADD, but that a dx that is
 * `fresh` holds nothing yet and is written.
 */
#ifndef AIM_CUDA_CONVOLUTION_CUH
#define AIM_CUDA_CONVOLUTION_CUH

#include "cuda/columns.cuh"

/* y, dx, dw as ops.def has them; bias may be NULL. x, y, dy, dx are of one type, w and dw are float32. */
aim_status plain_conv2d(struct backend *be, const struct tensor *x, const struct tensor *w, const struct tensor *bias,
                        const struct conv2d *how, struct tensor *y);
aim_status plain_conv2d_inputs(struct backend *be, const struct tensor *w, const struct conv2d *how, const struct tensor *dy,
                               bool fresh, struct tensor *dx);
aim_status plain_conv2d_weights(struct backend *be, const struct tensor *x, const struct conv2d *how, const struct tensor *dy,
                                struct tensor *dw);

/* Whether conv_f32 takes these; it has no gradients. */
bool conv_f32_serves(const struct tensor *x, const struct tensor *w, const struct tensor *bias, const struct conv2d *how,
                     const struct tensor *y);
aim_status conv_f32(struct backend *be, const struct tensor *x, const struct tensor *w, const struct tensor *bias,
                    const struct conv2d *how, struct tensor *y);

/* 3x3, bfloat16, of 32 or 64 channels, or a picture's few and such: whether the three take these shapes; kernel is the filters'
 * side. dbias may be NULL. */
bool conv_narrow_serves(const struct tensor *x, const struct tensor *y, int64_t kernel, const struct conv2d *how);
bool conv_narrow_serves_inputs(const struct tensor *dx, const struct tensor *dy, int64_t kernel, const struct conv2d *how);
bool conv_narrow_serves_weights(const struct tensor *x, const struct tensor *dy, int64_t kernel, const struct conv2d *how);
aim_status conv_narrow(struct backend *be, const struct tensor *x, const struct tensor *w, const struct tensor *bias,
                       const struct conv2d *how, struct tensor *y);
aim_status conv_narrow_inputs(struct backend *be, const struct tensor *w, const struct conv2d *how, const struct tensor *dy,
                              bool fresh, struct tensor *dx);
aim_status conv_narrow_weights(struct backend *be, const struct tensor *x, const struct conv2d *how, const struct tensor *dy,
                               struct tensor *dw, struct tensor *dbias);

/* ------------------------------------------------------------------- what cuDNN needs around it (convolution_copies.cu) */

/* A convolution as the op has it, and as cuDNN sees it: x within borders of its own, channels filled up. */
struct conv {
    int64_t N, H, W, I, OH, OW, O, kernel;
    int grow, border; /* border: rows and columns put before x */
    int64_t seen_H, seen_W, seen_I, seen_O;
    int pad, stride;
    bool x_as_is, y_as_is; /* cuDNN sees the tensor itself */
    enum tensor_type type;
};

/* seen_O k k seen_I */
static inline size_t conv_filter_count(const struct conv *c)
{
    return (size_t)(c->seen_O * c->kernel * c->kernel * c->seen_I);
}

/* x as cuDNN sees it, and the way back: dx += (fresh: =) what reached the places that each of its values went to. */
void conv_see_x(struct backend *be, const struct conv *c, const void *x, void *seen);
void conv_add_seen(struct backend *be, const struct conv *c, const void *seen, bool fresh, void *dx);
/* dy with its channels filled up. */
void conv_see_dy(struct backend *be, const struct conv *c, const void *dy, void *seen);
/* y (rows, O) = the first O channels of seen + bias (NULL: none); y may be seen. */
void conv_finish_y(struct backend *be, const struct conv *c, const void *seen, const float *bias, void *y);
/* The bias in the activations' type, filled up. */
void conv_see_bias(struct backend *be, const struct conv *c, const float *bias, void *seen);
/* w (O,I,k,k) to (seen_O,k,k,seen_I) in the activations' type, and the way back, added to dw. */
void conv_order_filters(struct backend *be, const struct conv *c, const float *w, void *seen);
void conv_add_filters(struct backend *be, const struct conv *c, const void *seen, float *dw);

/* ------------------------------------------------------------------------- what stays of parameters (convolution_kept.cu) */

/* Makes the form of a parameter that a convolution takes, in the type of its activations. */
typedef void conv_form(struct backend *be, const struct conv *c, const float *from, void *to);

/* What is kept of a constant parameter in that form, of `count` values: made on first use, in place of what was kept for
 * another type. NULL when it is not constant, or has another form for the type already, or memory is out: then the form is
 * made anew each time. */
const void *conv_kept(struct backend *be, const struct conv *c, const struct tensor *of, int64_t count, conv_form *form);

#endif
