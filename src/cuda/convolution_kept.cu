/* Constant filters and biases in the form that a convolution takes them in. */
#include "cuda/convolution.cuh"

#include <stdlib.h>

/* On tensor->converted. */
struct kept {
    struct backend *be;
    enum tensor_type type;
    conv_form *form;
    size_t bytes;
    void *data;
};

static void kept_free(void *converted)
{
    struct kept *k = (struct kept *)(converted);
    k->be->memory.give(k->be, k->data, k->bytes);
    free(k);
}

static struct kept *kept_new(struct backend *be, enum tensor_type type, int64_t count)
{
    struct kept *k = (struct kept *)(calloc(1, sizeof *k));
    if (!k) return NULL;
    k->be = be;
    k->type = type;
    k->bytes = (size_t)count * tensor_type_size(type);
    k->data = be->memory.take(be, k->bytes, MEM_WEIGHTS);
    if (k->data) return k;
    free(k);
    return NULL;
}

const void *conv_kept(struct backend *be, const struct conv *c, const struct tensor *of, int64_t count, conv_form *form)
{
    if (!of->constant) return NULL;
    const struct kept *have = of->converted_free == kept_free ? (const struct kept *)(of->converted) : NULL;
    if (have && have->type == c->type) return have->form == form ? have->data : NULL;
    struct kept *k = kept_new(be, c->type, count);
    if (!k) return NULL;
    struct tensor *owner = const_cast<struct tensor *>(of); /* a cache: the parameter itself does not change */
    if (owner->converted) owner->converted_free(owner->converted);
    k->form = form;
    form(be, c, f32(of), k->data);
    owner->converted = k;
    owner->converted_free = kept_free;
    return k->data;
}
