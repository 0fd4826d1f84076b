#include "train/vq_loss.h"

#include <math.h>

#include "tensor/tape.h"

struct vq_loss_options vq_loss_defaults(void)
{
    return (struct vq_loss_options){.l2 = 1,
                                    .perceptual = 1,
                                    .adversarial = 0.5f,
                                    .codebook = 1,
                                    .commit = 1,
                                    .entropy_temperature = 0.01f,
                                    .generator = ADVERSARIAL_HINGE,
                                    .discriminator = ADVERSARIAL_HINGE,
                                    .start = 20000};
}

float vq_loss_lambda(const struct vq_loss *loss, int64_t step)
{
    const struct vq_loss_options *o = &loss->options;
    if (!loss->discriminator || step < o->start) return 0;
    int64_t since = step - o->start + 1;
    return since < o->warmup ? o->adversarial * (float)since / (float)o->warmup : o->adversarial;
}

void vq_loss_parts_clear(struct vq_loss_parts *parts)
{
    struct tensor *all[] = {parts->l2,       parts->l1,     parts->perceptual, parts->adversarial,
                            parts->codebook, parts->commit, parts->entropy};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) tensor_drop(all[i]);
    *parts = (struct vq_loss_parts){.adaptive = 1};
}

/* *sum += term, which may be NULL for one that is off; takes the old sum. */
static void add_term(struct exec *ex, struct tensor **sum, struct tensor *term)
{
    if (!term) return;
    struct tensor *more = *sum ? op_add(ex, *sum, term) : tensor_keep(term);
    tensor_drop(*sum);
    *sum = more;
}

/* LPIPS, averaged over the pictures */
static struct tensor *perceptual(struct exec *ex, const struct vq_loss *loss, const struct tensor *x, const struct tensor *fake,
                                 int64_t step)
{
    const struct dropout dropout = {loss->options.seed, (uint32_t)step};
    struct tensor *distances = lpips_forward(ex, loss->lpips, fake, x, loss->options.dropout ? &dropout : NULL);
    struct tensor *mean = op_mean_map(ex, distances, MAP_IDENTITY, loss->options.perceptual);
    tensor_drop(distances);
    return mean;
}

/* The terms that compare x̂ with x; into parts. */
static void likeness(struct exec *ex, const struct vq_loss *loss, const struct tensor *x, const struct tensor *fake,
                     int64_t step, struct vq_loss_parts *parts)
{
    const struct vq_loss_options *o = &loss->options;
    if (o->l2 != 0) parts->l2 = op_mean_square(ex, fake, x, o->l2);
    if (o->l1 != 0) parts->l1 = op_mean_absolute(ex, fake, x, o->l1);
    if (loss->lpips && o->perceptual != 0) parts->perceptual = perceptual(ex, loss, x, fake, step);
}

static struct tensor *adversarial(struct exec *ex, const struct vq_loss *loss, const struct tensor *fake, float weight)
{
    bool hinge = loss->options.generator == ADVERSARIAL_HINGE;
    struct tensor *logits = discriminator_forward(ex, loss->discriminator, fake);
    struct tensor *term = op_mean_map(ex, logits, hinge ? MAP_IDENTITY : MAP_SOFTPLUS_MINUS, hinge ? -weight : weight);
    tensor_drop(logits);
    return term;
}

/* --------------------------------------------------------------------------------------- the adaptive weight */

/* The same values, past which no gradient goes. */
static struct tensor *detached(struct exec *ex, const struct tensor *t)
{
    if (!t) return NULL;
    struct tensor *copy = tensor_new(ex, t->type, t->ndim, t->shape);
    if (copy && tensor_copy(ex, copy, t) == AIM_OK) return copy;
    tensor_drop(copy);
    return NULL;
}

/* ‖gradient of the sum of the terms on the tape‖ with respect to w, whose gradient is forgotten. */
static double gradient_length(struct exec *ex, struct tape *tape, struct tensor *term, struct tensor *w)
{
    if (!term || tape_backward(tape, term, 1) != AIM_OK || !w->grad) return 0;
    int64_t count = tensor_count(w);
    double squares = 0;
    float *values = mem_array(ex->ctx, (size_t)count, sizeof *values, MEM_MISC);
    if (!values) exec_fail(ex, AIM_ERR_MEMORY);
    if (values && tensor_read(ex, w->grad, values) == AIM_OK)
        for (int64_t i = 0; i < count; i++) squares += (double)values[i] * (double)values[i];
    mem_free(values);
    tensor_clear_grad(w);
    return sqrt(squares);
}

/* ‖∇ likeness‖ / (‖∇ adversarial‖ + 1e-4), at most 1e4, at the decoder's last filters: these and their input are copied onto
 * a tape of their own. */
static float adaptive_weight(struct exec *ex, const struct vq_loss *loss, const struct vq *vq, const struct tensor *x,
                             const struct vq_training *training, int64_t step)
{
    struct tape *outer = ex->tape, inner;
    struct tensor *last = detached(ex, training->last), *w = detached(ex, vq->decoder.conv_out.w);
    struct tensor *b = detached(ex, vq->decoder.conv_out.b), *sum = NULL;
    struct vq_loss_parts parts = {0};
    if (w) w->needs_grad = true;
    tape_start(&inner, ex);
    struct tensor *fake = vq_last_convolution(ex, last, w, b);
    likeness(ex, loss, x, fake, step, &parts);
    add_term(ex, &sum, parts.l2);
    add_term(ex, &sum, parts.l1);
    add_term(ex, &sum, parts.perceptual);
    double of_likeness = gradient_length(ex, &inner, sum, w);
    tensor_drop(fake);
    fake = vq_last_convolution(ex, last, w, b); /* its nodes were used up */
    parts.adversarial = adversarial(ex, loss, fake, 1);
    double of_adversarial = gradient_length(ex, &inner, parts.adversarial, w);
    tape_stop(&inner);
    ex->tape = outer;
    vq_loss_parts_clear(&parts);
    struct tensor *done[] = {last, w, b, sum, fake};
    for (size_t i = 0; i < sizeof done / sizeof done[0]; i++) tensor_drop(done[i]);
    return (float)fmin(of_likeness / (of_adversarial + 1e-4), 1e4);
}

/* ------------------------------------------------------------------------------------------------ both losses */

struct tensor *vq_loss_generator(struct exec *ex, const struct vq_loss *loss, const struct vq *vq, const struct tensor *x,
                                 const struct tensor *fake, const struct vq_training *training, int64_t step,
                                 struct vq_loss_parts *parts)
{
    const struct vq_loss_options *o = &loss->options;
    const float lambda = vq_loss_lambda(loss, step);
    *parts = (struct vq_loss_parts){.adaptive = 1};
    if (loss->discriminator) discriminator_train(loss->discriminator, false);
    likeness(ex, loss, x, fake, step, parts);
    if (lambda > 0) {
        if (o->adaptive) parts->adaptive = adaptive_weight(ex, loss, vq, x, training, step);
        parts->adversarial = adversarial(ex, loss, fake, lambda * parts->adaptive);
    }
    parts->codebook = op_scale(ex, training->vq, o->codebook);
    parts->commit = op_scale(ex, training->commit, o->commit);
    if (o->entropy != 0)
        parts->entropy = op_code_entropy(ex, training->unit, training->codes, o->entropy_temperature, o->entropy);
    struct tensor *sum = NULL, *terms[] = {parts->l2,       parts->l1,     parts->perceptual, parts->adversarial,
                                           parts->codebook, parts->commit, parts->entropy};
    for (size_t i = 0; i < sizeof terms / sizeof terms[0]; i++) add_term(ex, &sum, terms[i]);
    if (ex->status == AIM_OK && sum) return sum;
    tensor_drop(sum);
    vq_loss_parts_clear(parts);
    return NULL;
}

struct tensor *vq_loss_discriminator(struct exec *ex, const struct vq_loss *loss, const struct tensor *x,
                                     const struct tensor *fake, int64_t step, struct tensor **real_logit,
                                     struct tensor **fake_logit)
{
    const bool hinge = loss->options.discriminator == ADVERSARIAL_HINGE;
    const float weight = 0.5f * vq_loss_lambda(loss, step);
    discriminator_train(loss->discriminator, true);
    struct tensor *constant = detached(ex, fake), *of_real = discriminator_forward(ex, loss->discriminator, x);
    struct tensor *of_fake = discriminator_forward(ex, loss->discriminator, constant);
    struct tensor *real = op_mean_map(ex, of_real, hinge ? MAP_HINGE_REAL : MAP_SOFTPLUS_MINUS, weight);
    struct tensor *unreal = op_mean_map(ex, of_fake, hinge ? MAP_HINGE_FAKE : MAP_SOFTPLUS, weight);
    struct tensor *sum = op_add(ex, real, unreal);
    *real_logit = op_mean_map(ex, of_real, MAP_IDENTITY, 1);
    *fake_logit = op_mean_map(ex, of_fake, MAP_IDENTITY, 1);
    struct tensor *done[] = {constant, of_real, of_fake, real, unreal};
    for (size_t i = 0; i < sizeof done / sizeof done[0]; i++) tensor_drop(done[i]);
    if (ex->status == AIM_OK) return sum;
    tensor_drop(sum);
    tensor_drop(*real_logit);
    tensor_drop(*fake_logit);
    *real_logit = *fake_logit = NULL;
    return NULL;
}
