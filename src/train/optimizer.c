#include "train/optimizer.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tensor/tape.h"

/* ------------------------------------------------------------------------------------------- the learning rate */

double schedule_rate(const struct schedule *s, int64_t step)
{
    if (step < s->warmup) return s->lr * (double)(step + 1) / (double)s->warmup;
    if (s->kind == AIM_SCHEDULE_CONSTANT || s->steps <= s->warmup) return s->lr;
    double progress = (double)(step - s->warmup) / (double)(s->steps - s->warmup);
    if (progress > 1) progress = 1;
    if (s->kind == AIM_SCHEDULE_LINEAR) return s->lr * (1 - progress);
    const double pi = 3.14159265358979323846;
    return s->least + (s->lr - s->least) * 0.5 * (1 + cos(pi * progress));
}

/* ----------------------------------------------------------------------------------------------- the optimizer */

aim_status optimizer_init(struct exec *ex, const char *name, const struct optimizer_options *options, struct optimizer *o)
{
    *o = (struct optimizer){.ex = ex, .name = name, .options = *options};
    o->norm = tensor_new_weight(ex->ctx, T_F32, SHAPE(1));
    return o->norm ? AIM_OK : ex->ctx->status;
}

void optimizer_free(struct optimizer *o)
{
    for (size_t i = 0; i < o->count; i++) {
        tensor_clear_grad(o->slots[i].w);
        tensor_drop(o->slots[i].m);
        tensor_drop(o->slots[i].v);
        tensor_drop(o->slots[i].ema);
    }
    tensor_drop(o->norm);
    mem_free(o->slots);
    mem_free(o->names);
    mem_free(o->gradients);
    *o = (struct optimizer){0};
}

static aim_status grow(struct optimizer *o)
{
    aim_context *ctx = o->ex->ctx;
    if (o->count < o->capacity) return AIM_OK;
    size_t capacity = o->capacity ? 2 * o->capacity : 512;
    struct adamw_slot *slots = mem_resize(ctx, o->slots, capacity * sizeof *slots, MEM_MISC);
    if (slots) o->slots = slots;
    struct param_name *names = mem_resize(ctx, o->names, capacity * sizeof *names, MEM_MISC);
    if (names) o->names = names;
    struct tensor **gradients = mem_resize(ctx, o->gradients, capacity * sizeof(struct tensor *), MEM_MISC);
    if (gradients) o->gradients = gradients;
    if (!slots || !names || !gradients) return AIM_ERR_MEMORY;
    o->capacity = capacity;
    return AIM_OK;
}

/* A tensor like w, zero or a copy of it; NULL on failure. */
static struct tensor *like(struct exec *ex, const struct tensor *w, bool copy)
{
    struct tensor *t = tensor_new_weight(ex->ctx, T_F32, w->ndim, w->shape);
    if (!t) return exec_fail(ex, ex->ctx->status);
    t->constant = false;
    if ((copy ? tensor_copy(ex, t, w) : tensor_zero(ex, t)) == AIM_OK) return t;
    tensor_drop(t);
    return NULL;
}

aim_status optimizer_add(struct optimizer *o, const char *name, struct tensor *w, bool decays)
{
    struct exec *ex = o->ex;
    TRY(grow(o));
    struct adamw_slot *s = &o->slots[o->count];
    *s =
        (struct adamw_slot){.w = w, .dw = tape_grad(ex, w), .m = like(ex, w, false), .v = like(ex, w, false), .decays = decays};
    if (o->options.ema > 0) s->ema = like(ex, w, true);
    snprintf(o->names[o->count].text, sizeof o->names[o->count].text, "%s", name);
    o->gradients[o->count++] = s->dw;
    return ex->status;
}

double optimizer_ema_decay(const struct optimizer *o)
{
    double early = (1 + (double)o->updates) / (10 + (double)o->updates);
    return early < o->options.ema ? early : o->options.ema;
}

/* A copy in another form that a backend made of an average is old as soon as the average moves. */
static void drop_converted(struct tensor *t)
{
    if (t && t->converted) t->converted_free(t->converted);
    if (t) t->converted = NULL;
}

aim_status optimizer_step(struct optimizer *o, double lr, double *norm)
{
    struct exec *ex = o->ex;
    struct backend *be = ex->backend;
    const struct optimizer_options *p = &o->options;
    struct adamw how = {.lr = lr,
                        .beta1 = p->beta1,
                        .beta2 = p->beta2,
                        .eps = p->eps,
                        .decay = p->decay,
                        .clip = p->clip,
                        .ema_decay = optimizer_ema_decay(o),
                        .step = o->updates + 1};
    float read = 0;
    for (size_t i = 0; i < o->count; i++) {
        drop_converted(o->slots[i].ema);
        tape_grad(ex, o->slots[i].w); /* zeros where none has arrived since the last step */
    }
    TRY(ex->status);
    TRY(be->op.norm(be, o->gradients, (int64_t)o->count, o->norm));
    TRY(be->op.adamw(be, o->slots, (int64_t)o->count, &how, o->norm));
    TRY(tensor_read(ex, o->norm, &read));
    *norm = (double)read;
    if (isfinite(*norm))
        o->updates++;
    else
        o->skipped++;
    return AIM_OK;
}

aim_status optimizer_skip(struct optimizer *o)
{
    for (size_t i = 0; i < o->count; i++) TRY(tensor_zero(o->ex, o->gradients[i]));
    o->skipped++;
    return AIM_OK;
}

int64_t optimizer_bytes(const struct optimizer *o)
{
    int64_t values = 0;
    for (size_t i = 0; i < o->count; i++) values += tensor_count(o->slots[i].w) * (o->slots[i].ema ? 3 : 2);
    return values * (int64_t)sizeof(float);
}

void optimizer_swap(struct optimizer *o)
{
    for (size_t i = 0; i < o->count; i++) {
        struct tensor *w = o->slots[i].w, *ema = o->slots[i].ema;
        if (!ema) continue;
        void *data = w->data, *converted = w->converted;
        void (*converted_free)(void *) = w->converted_free;
        w->data = ema->data;
        w->converted = ema->converted;
        w->converted_free = ema->converted_free;
        ema->data = data;
        ema->converted = converted;
        ema->converted_free = converted_free;
    }
}

const struct tensor *optimizer_average(const struct optimizer *o, const struct tensor *w)
{
    for (size_t i = 0; i < o->count; i++)
        if (o->slots[i].w == w && o->slots[i].ema) return o->slots[i].ema;
    return w;
}

/* ------------------------------------------------------------------------------------------------ checkpoints */

static void clock_name(const struct optimizer *o, const char *what, char *out, size_t size)
{
    snprintf(out, size, "%s.%s", o->name, what);
}

aim_status optimizer_save(const struct optimizer *o, struct checkpoint *list)
{
    char key[40];
    for (size_t i = 0; i < o->count; i++) {
        const struct adamw_slot *s = &o->slots[i];
        const char *name = o->names[i].text;
        TRY(checkpoint_add(list, "", name, s->w));
        TRY(checkpoint_add(list, "m.", name, s->m));
        TRY(checkpoint_add(list, "v.", name, s->v));
        if (s->ema) TRY(checkpoint_add(list, "ema.", name, s->ema));
    }
    clock_name(o, "updates", key, sizeof key);
    TRY(checkpoint_note_integer(list, key, o->updates));
    clock_name(o, "skipped", key, sizeof key);
    return checkpoint_note_integer(list, key, o->skipped);
}

aim_status optimizer_load(struct optimizer *o, const struct tensor_file *file, const char *path)
{
    struct exec *ex = o->ex;
    char key[40];
    for (size_t i = 0; i < o->count; i++) {
        struct adamw_slot *s = &o->slots[i];
        const char *name = o->names[i].text;
        TRY(checkpoint_read(ex, file, path, "", name, s->w));
        TRY(checkpoint_read(ex, file, path, "m.", name, s->m));
        TRY(checkpoint_read(ex, file, path, "v.", name, s->v));
        if (s->ema) TRY(checkpoint_read(ex, file, path, "ema.", name, s->ema));
    }
    clock_name(o, "updates", key, sizeof key);
    TRY(checkpoint_integer(ex->ctx, file, path, key, &o->updates));
    clock_name(o, "skipped", key, sizeof key);
    return checkpoint_integer(ex->ctx, file, path, key, &o->skipped);
}

/* The values of a tensor in the host's memory: where they lie, or a copy that the table then owns. */
static const void *host_values(struct exec *ex, const struct tensor *w)
{
    if (ex->backend->memory.host) return w->data;
    void *copy = mem_new(ex->ctx, tensor_bytes(w->type, w->ndim, w->shape), MEM_WEIGHTS);
    if (copy && tensor_read(ex, w, copy) == AIM_OK) return copy;
    mem_free(copy);
    return NULL;
}

aim_status optimizer_snapshot(const struct optimizer *o, struct tensor *const *weights, struct params *table)
{
    TRY(params_point(table, NULL));
    table->borrowed = o->ex->backend->memory.host;
    for (size_t i = 0; i < table->count; i++) {
        if (table->items[i].buffer) continue;
        table->made[i].data = host_values(o->ex, optimizer_average(o, *weights++));
        if (!table->made[i].data) return o->ex->ctx->status;
    }
    return AIM_OK;
}

/* --------------------------------------------------------------------------------------- steps that go wrong */

bool guard_refuses(const struct guard *g, double loss)
{
    return !isfinite(loss) || (g->most > 0 && loss > g->most);
}

aim_status guard_step(aim_context *ctx, struct guard *g, int64_t step, double loss, double norm)
{
    if (!guard_refuses(g, loss) && isfinite(norm)) {
        g->row = 0;
        return AIM_OK;
    }
    g->bad++;
    g->row++;
    if (g->row < GUARD_IN_A_ROW && g->bad < GUARD_IN_ALL) return AIM_OK;
    return aim_fail(
        ctx, AIM_ERR_ARGUMENT,
        "training has broken down: at step %lld the loss is %g and the norm of the gradient %g, the %lldth bad step "
        "in a row; go back to an earlier checkpoint with a smaller learning rate, more warm-up or clipping",
        (long long)step, loss, norm, (long long)g->row);
}

aim_status guard_save(const struct guard *g, struct checkpoint *list)
{
    TRY(checkpoint_note_integer(list, "bad", g->bad));
    return checkpoint_note_integer(list, "row", g->row);
}

aim_status guard_load(aim_context *ctx, struct guard *g, const struct tensor_file *file, const char *path)
{
    TRY(checkpoint_integer(ctx, file, path, "bad", &g->bad));
    return checkpoint_integer(ctx, file, path, "row", &g->row);
}
