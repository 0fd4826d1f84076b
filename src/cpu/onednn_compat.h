/*
 * What differs between the C API of oneDNN 2 and 3: memory descriptors became opaque and counted, and a convolution's
 * descriptor is no longer a struct of its own.
 */
#ifndef AIM_CPU_ONEDNN_COMPAT_H
#define AIM_CPU_ONEDNN_COMPAT_H

#include <oneapi/dnnl/dnnl.h>

#if DNNL_VERSION_MAJOR >= 3
typedef const_dnnl_memory_desc_t layout_ref;
#else
typedef const dnnl_memory_desc_t *layout_ref;
#endif

/* A memory descriptor of our own: values of a type and a shape in an order. Zeroed, or freed by layout_free. */
struct layout {
    dnnl_memory_desc_t desc;
};

static inline layout_ref layout_of(const struct layout *l)
{
#if DNNL_VERSION_MAJOR >= 3
    return l->desc;
#else
    return &l->desc;
#endif
}

static inline dnnl_status_t layout_make_typed(struct layout *l, int ndims, const dnnl_dims_t dims, dnnl_data_type_t type,
                                              dnnl_format_tag_t tag)
{
#if DNNL_VERSION_MAJOR >= 3
    return dnnl_memory_desc_create_with_tag(&l->desc, ndims, dims, type, tag);
#else
    return dnnl_memory_desc_init_by_tag(&l->desc, ndims, dims, type, tag);
#endif
}

/* Of float32. */
static inline dnnl_status_t layout_make(struct layout *l, int ndims, const dnnl_dims_t dims, dnnl_format_tag_t tag)
{
    return layout_make_typed(l, ndims, dims, dnnl_f32, tag);
}

static inline dnnl_status_t layout_copy(struct layout *l, layout_ref from)
{
#if DNNL_VERSION_MAJOR >= 3
    return dnnl_memory_desc_clone(&l->desc, from);
#else
    l->desc = *from;
    return dnnl_success;
#endif
}

static inline void layout_free(struct layout *l)
{
#if DNNL_VERSION_MAJOR >= 3
    if (l->desc) dnnl_memory_desc_destroy(l->desc);
#endif
    *l = (struct layout){0};
}

/* A forward convolution by the library's direct algorithm; layouts may leave the order to the library (format any). */
static inline dnnl_status_t convolution_make(dnnl_primitive_desc_t *out, dnnl_engine_t engine, const struct layout *src,
                                             const struct layout *weights, const struct layout *bias, const struct layout *dst,
                                             const dnnl_dims_t strides, const dnnl_dims_t pad_l, const dnnl_dims_t pad_r,
                                             const_dnnl_primitive_attr_t attr)
{
#if DNNL_VERSION_MAJOR >= 3
    const dnnl_dims_t dilates = {0};
    return dnnl_convolution_forward_primitive_desc_create(out, engine, dnnl_forward_inference, dnnl_convolution_direct,
                                                          src->desc, weights->desc, bias->desc, dst->desc, strides, dilates,
                                                          pad_l, pad_r, attr);
#else
    dnnl_convolution_desc_t desc;
    dnnl_status_t status =
        dnnl_convolution_forward_desc_init(&desc, dnnl_forward_inference, dnnl_convolution_direct, &src->desc, &weights->desc,
                                           &bias->desc, &dst->desc, strides, pad_l, pad_r);
    return status == dnnl_success ? dnnl_primitive_desc_create(out, &desc, attr, engine, NULL) : status;
#endif
}

/* A product dst = src weights. */
static inline dnnl_status_t matmul_make(dnnl_primitive_desc_t *out, dnnl_engine_t engine, const struct layout *src,
                                        const struct layout *weights, const struct layout *dst,
                                        const_dnnl_primitive_attr_t attr)
{
#if DNNL_VERSION_MAJOR >= 3
    return dnnl_matmul_primitive_desc_create(out, engine, src->desc, weights->desc, NULL, dst->desc, attr);
#else
    dnnl_matmul_desc_t desc;
    dnnl_status_t status = dnnl_matmul_desc_init(&desc, &src->desc, &weights->desc, NULL, &dst->desc);
    return status == dnnl_success ? dnnl_primitive_desc_create(out, &desc, attr, engine, NULL) : status;
#endif
}

#endif
