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

/* --------------------------------------------------------------------------------------- the adaptive weight
 *
 * It compares two gradients by the decoder's last filters. Both go through x̂, and so does all that the terms give to the
 * network: each kind of terms is walked back to x̂ on a tape of its own, once, and what has met there goes on in one piece.
 */

/* The gradient by `leaf` of a term, which may be NULL, on the tape that now records; the caller's. */
static struct tensor *gradient_at(struct exec *ex, struct tensor *term, struct tensor *leaf)
{
    if (!term || ex->status != AIM_OK) return NULL;
    tape_backward(ex->tape, term, 1);
    struct tensor *gradient = leaf->grad;
    leaf->grad = NULL;
    return gradient;
}

/* lengths[at] = ‖∇‖ at the last filters, from the gradient by x̂ */
static void measure_length(struct exec *ex, const struct vq *vq, const struct tensor *last, const struct tensor *gradient,
                           struct tensor *lengths, int at)
{
    const struct tensor *w = vq->decoder.conv_out.w;
    if (!gradient || !lengths) return;
    struct tensor *dw = tensor_new(ex, T_F32, w->ndim, w->shape), *norm = tensor_new(ex, T_F32, SHAPE(1));
    if (dw && norm && tensor_zero(ex, dw) == AIM_OK) {
        vq_last_gradient(ex, vq, last, gradient, dw);
        aim_status status = ex->backend->op.norm(ex->backend, &dw, 1, norm);
        if (status == AIM_OK)
            status = ex->backend->memory.copy(ex->backend, (float *)lengths->data + at, norm->data, sizeof(float));
        if (status != AIM_OK) exec_fail(ex, status);
    }
    tensor_drop(dw);
    tensor_drop(norm);
}

/* ‖∇ likeness‖ / (‖∇ adversarial‖ + 1e-4), at most 1e4 */
static float adaptive_weight(struct exec *ex, const struct vq *vq, const struct tensor *last, const struct tensor *of_likeness,
                             const struct tensor *of_adversarial)
{
    float found[2] = {0};
    struct tensor *lengths = tensor_new(ex, T_F32, SHAPE(2));
    if (lengths) tensor_zero(ex, lengths);
    measure_length(ex, vq, last, of_likeness, lengths, 0);
    measure_length(ex, vq, last, of_adversarial, lengths, 1);
    if (ex->status == AIM_OK) tensor_read(ex, lengths, found);
    tensor_drop(lengths);
    return (float)fmin((double)found[0] / ((double)found[1] + 1e-4), 1e4);
}

/* *sum += factor term, of gradients; takes the old sum, which may be NULL. */
static void add_gradient(struct exec *ex, struct tensor **sum, const struct tensor *term, float factor)
{
    if (!term || ex->status != AIM_OK) return;
    if (!*sum) {
        *sum = tensor_new(ex, term->type, term->ndim, term->shape);
        if (*sum) tensor_zero(ex, *sum);
    }
    aim_status status = *sum ? ex->backend->op.scale_backward(ex->backend, factor, term, *sum) : ex->status;
    if (status != AIM_OK) exec_fail(ex, status);
}

/* in[0] is x̂, in[1] the gradient that has been found for it. */
static aim_status found_backward(struct exec *ex, struct node *n)
{
    const float scale = ex->tape->scale; /* out[0] stands in the loss as it is */
    if (scale == 1 && tape_pass(n->in[0], n->in[1])) return AIM_OK;
    struct tensor *dx = tape_grad_fresh(ex, n->in[0]);
    return dx ? ex->backend->op.scale_backward(ex->backend, scale, n->in[1], dx) : ex->status;
}

/* The terms of x̂, the adversarial one weighed adaptively; into parts. */
static void adaptive_terms(struct exec *ex, const struct vq_loss *loss, const struct vq *vq, const struct tensor *x,
                           const struct tensor *fake, const struct tensor *last, int64_t step, struct vq_loss_parts *parts)
{
    struct tape *outer = ex->tape, inner;
    struct tensor *leaf = fake ? tensor_borrow(ex->ctx, fake->type, fake->ndim, fake->shape, fake->data) : NULL, *sum = NULL;
    if (!leaf) {
        exec_fail(ex, ex->status != AIM_OK ? ex->status : AIM_ERR_MEMORY);
        return;
    }
    leaf->needs_grad = true;
    tape_start(&inner, ex);
    likeness(ex, loss, x, leaf, step, parts);
    add_term(ex, &sum, parts->l2);
    add_term(ex, &sum, parts->l1);
    add_term(ex, &sum, parts->perceptual);
    struct tensor *whole = gradient_at(ex, sum, leaf), *term = adversarial(ex, loss, leaf, 1);
    struct tensor *judged = gradient_at(ex, term, leaf);
    tape_stop(&inner);
    parts->adaptive = adaptive_weight(ex, vq, last, whole, judged);
    float weight = vq_loss_lambda(loss, step) * parts->adaptive;
    parts->adversarial = op_scale(ex, term, weight);
    add_gradient(ex, &whole, judged, weight);
    ex->tape = outer;
    struct node node = {found_backward, {parts->adversarial}, {tape_input(fake), whole}, {{0}}};
    if (ex->status == AIM_OK) tape_record(ex, &node);
    struct tensor *done[] = {leaf, sum, whole, term, judged};
    for (size_t i = 0; i < sizeof done / sizeof done[0]; i++) tensor_drop(done[i]);
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
    if (lambda > 0 && o->adaptive) {
        adaptive_terms(ex, loss, vq, x, fake, training->last, step, parts);
    } else {
        likeness(ex, loss, x, fake, step, parts);
        if (lambda > 0) parts->adversarial = adversarial(ex, loss, fake, lambda);
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

/* The same values, past which no gradient goes. */
static struct tensor *detached(struct exec *ex, const struct tensor *t)
{
    if (!t) return NULL;
    struct tensor *copy = tensor_new(ex, t->type, t->ndim, t->shape);
    if (copy && tensor_copy(ex, copy, t) == AIM_OK) return copy;
    tensor_drop(copy);
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
