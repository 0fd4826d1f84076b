/*
 * aim-judge: figures about generated pictures of a drawn data set.
 *
 *     aim-judge train DATA -o judge.safetensors      learns the classes of DATA/train, prints its accuracy on DATA/val
 *     aim-judge score judge.safetensors SAMPLES      how often samples are taken for their class; SAMPLES is an .npz with
 *                                                    arr_0 and arr_1 as 'aim generate -o x.npz' writes it, or class folders
 *     aim-judge nearest SAMPLES.npz DATA -o x.png    samples, and to the right of each the training pictures most like it
 *     aim-judge sheet A.npz B.npz ... -o x.png       the first ten pictures of each, a row a file
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "network.h"
#include "nearest.h"
#include "samples.h"
#include "sheet.h"
#include "tensor/tape.h"
#include "train/loader.h"

enum { BATCH = 64, STEPS = 1200, THREADS = 2, REPORT = 100, SHEET_COLUMNS = 10 };

static int usage(void)
{
    fputs("usage: aim-judge train DATA -o FILE.safetensors\n"
          "       aim-judge score FILE.safetensors SAMPLES.npz|FOLDER\n"
          "       aim-judge nearest SAMPLES.npz DATA -o FILE.png\n"
          "       aim-judge sheet SAMPLES.npz ... -o FILE.png\n",
          stderr);
    return 2;
}

/* ----------------------------------------------------------------------------------------------------- score */

struct tally {
    int64_t classes, seen, right;
    int64_t *confusion; /* (classes, classes): true class, answer */
};

static int64_t best_of(const float *logits, int64_t n)
{
    int64_t best = 0;
    for (int64_t i = 1; i < n; i++) best = logits[i] > logits[best] ? i : best;
    return best;
}

/* Counts the answers to n pictures. */
static aim_status judge(struct exec *ex, const struct network *net, const float *pixels, const int32_t *labels, int64_t n,
                        struct tally *tally)
{
    float *answers = mem_array(ex->ctx, (size_t)(n * net->classes), sizeof(float), MEM_MISC);
    if (!answers) return AIM_ERR_MEMORY;
    struct tensor *x = tensor_from_host(ex, T_F32, SHAPE(n, 3, JUDGE_SIDE, JUDGE_SIDE), pixels);
    struct tensor *logits = network_forward(ex, net, x);
    tensor_read(ex, logits, answers);
    for (int64_t i = 0; i < n && ex->status == AIM_OK; i++) {
        int64_t answer = best_of(answers + i * net->classes, net->classes);
        tally->seen++;
        tally->right += answer == labels[i];
        if (labels[i] < tally->classes) tally->confusion[labels[i] * tally->classes + answer]++;
    }
    tensor_drop(x);
    tensor_drop(logits);
    mem_free(answers);
    return ex->status;
}

static aim_status judge_all(aim_context *ctx, const struct network *net, struct samples *samples, struct tally *tally)
{
    struct exec ex;
    exec_init(&ex, ctx);
    *tally = (struct tally){.classes = net->classes};
    tally->confusion = mem_zero(ctx, (size_t)(net->classes * net->classes), sizeof(int64_t), MEM_MISC);
    float *pixels = mem_array(ctx, (size_t)BATCH * 3 * JUDGE_SIDE * JUDGE_SIDE, sizeof(float), MEM_IMAGE);
    int32_t labels[BATCH];
    aim_status status = tally->confusion && pixels ? AIM_OK : AIM_ERR_MEMORY;
    int64_t n = 1;
    while (status == AIM_OK && n > 0) {
        status = samples_next(samples, BATCH, pixels, labels, &n);
        if (status == AIM_OK && n > 0) status = judge(&ex, net, pixels, labels, n, tally);
    }
    mem_free(pixels);
    exec_clear(&ex);
    return status;
}

static void report(const struct tally *t, const char *names)
{
    printf("accuracy %.4f (%lld of %lld)\n", (double)t->right / (double)(t->seen ? t->seen : 1), (long long)t->right,
           (long long)t->seen);
    const char *name = names;
    for (int64_t c = 0; c < t->classes; c++, name += strlen(name) + 1) {
        int64_t seen = 0, wrong = -1;
        for (int64_t a = 0; a < t->classes; a++) {
            int64_t n = t->confusion[c * t->classes + a];
            seen += n;
            if (a != c && n > 0 && (wrong < 0 || n > t->confusion[c * t->classes + wrong])) wrong = a;
        }
        if (!seen) continue;
        printf("  %-12s %.3f", name, (double)t->confusion[c * t->classes + c] / (double)seen);
        const char *other = names;
        for (int64_t a = 0; a < wrong; a++) other += strlen(other) + 1;
        if (wrong >= 0) printf("   most often mistaken for %s", other);
        printf("\n");
    }
}

static aim_status score(aim_context *ctx, const char *file, const char *what)
{
    struct network net;
    struct samples samples = {0};
    struct tally tally = {0};
    char *names;
    aim_status status = network_load(ctx, file, &net, &names);
    if (status == AIM_OK) status = samples_open(ctx, what, JUDGE_SIDE, &samples);
    if (status == AIM_OK) status = judge_all(ctx, &net, &samples, &tally);
    if (status == AIM_OK) report(&tally, names);
    mem_free(tally.confusion);
    samples_close(&samples);
    mem_free(names);
    network_free(&net);
    return status;
}

/* ----------------------------------------------------------------------------------------------------- train */

struct training {
    struct exec ex;
    struct network net;
    struct tensor *m[JUDGE_TENSORS], *v[JUDGE_TENSORS], *norm;
    float *pixels;
    int32_t labels[BATCH];
};

static aim_status training_init(aim_context *ctx, int64_t classes, struct training *t)
{
    exec_init(&t->ex, ctx);
    TRY(network_init(ctx, classes, 0, &t->net));
    for (int i = 0; i < JUDGE_TENSORS; i++) {
        const struct tensor *w = t->net.tensors[i];
        t->m[i] = tensor_new(&t->ex, T_F32, w->ndim, w->shape);
        t->v[i] = tensor_new(&t->ex, T_F32, w->ndim, w->shape);
        if (t->m[i]) tensor_zero(&t->ex, t->m[i]);
        if (t->v[i]) tensor_zero(&t->ex, t->v[i]);
    }
    t->norm = tensor_new(&t->ex, T_F32, SHAPE(1));
    t->pixels = mem_array(ctx, (size_t)BATCH * 3 * JUDGE_SIDE * JUDGE_SIDE, sizeof(float), MEM_IMAGE);
    return t->pixels ? t->ex.status : AIM_ERR_MEMORY;
}

static void training_free(struct training *t)
{
    for (int i = 0; i < JUDGE_TENSORS; i++) {
        tensor_drop(t->m[i]);
        tensor_drop(t->v[i]);
    }
    tensor_drop(t->norm);
    network_free(&t->net);
    mem_free(t->pixels);
    exec_clear(&t->ex);
}

/* The gradients that have arrived, taken by AdamW on a cosine from 1e-3 down. */
static aim_status update(struct training *t, int64_t step)
{
    struct backend *be = t->ex.backend;
    struct adamw_slot slots[JUDGE_TENSORS];
    struct tensor *gradients[JUDGE_TENSORS];
    struct adamw how = {.lr = 5e-4 * (1 + cos(3.14159265358979 * (double)step / STEPS)),
                        .beta1 = 0.9,
                        .beta2 = 0.99,
                        .eps = 1e-8,
                        .decay = 0.05,
                        .clip = 1,
                        .step = step + 1};
    for (int i = 0; i < JUDGE_TENSORS; i++) {
        struct tensor *w = t->net.tensors[i];
        gradients[i] = w->grad;
        slots[i] = (struct adamw_slot){.w = w, .dw = w->grad, .m = t->m[i], .v = t->v[i], .decays = w->ndim > 1};
    }
    TRY(be->op.norm(be, gradients, JUDGE_TENSORS, t->norm));
    return be->op.adamw(be, slots, JUDGE_TENSORS, &how, t->norm);
}

static aim_status train_step(struct training *t, struct loader *loader, int64_t step, double *loss)
{
    struct exec *ex = &t->ex;
    struct tape tape;
    int64_t n;
    float losses[BATCH] = {0};
    TRY(loader_next(loader, t->pixels, t->labels, &n));
    tape_start(&tape, ex);
    struct tensor *x = tensor_from_host(ex, T_F32, SHAPE(BATCH, 3, JUDGE_SIDE, JUDGE_SIDE), t->pixels);
    struct tensor *target = tensor_from_host(ex, T_I32, SHAPE(BATCH), t->labels);
    struct tensor *logits = network_forward(ex, &t->net, x), *each = op_cross_entropy(ex, logits, target);
    tensor_read(ex, each, losses);
    if (each) tape_backward(&tape, each, 1.0f / BATCH);
    tape_stop(&tape);
    tensor_drop(x);
    tensor_drop(target);
    tensor_drop(logits);
    tensor_drop(each);
    *loss = 0;
    for (int i = 0; i < BATCH; i++) *loss += (double)losses[i] / BATCH;
    TRY(ex->status);
    return update(t, step);
}

static aim_status train_all(aim_context *ctx, const struct dataset *data, struct training *t)
{
    struct loader *loader;
    struct loader_options options = {.dataset = data, .batch = BATCH, .threads = THREADS};
    options.augment = (struct augment){.kind = AUGMENT_RANDOM_CROP, .size = JUDGE_SIDE, .flip = true};
    TRY(loader_create(ctx, &options, &loader));
    aim_status status = AIM_OK;
    double sum = 0, loss = 0;
    for (int64_t step = 0; step < STEPS && status == AIM_OK; step++) {
        status = train_step(t, loader, step, &loss);
        sum += loss;
        if ((step + 1) % REPORT) continue;
        fprintf(stderr, "step %lld of %d, loss %.4f\n", (long long)step + 1, STEPS, sum / REPORT);
        sum = 0;
    }
    loader_free(loader);
    return status;
}

static aim_status save(const struct training *t, const struct dataset *data, const char *path)
{
    const char **names = mem_array(t->ex.ctx, (size_t)data->class_count, sizeof *names, MEM_MISC);
    if (!names) return AIM_ERR_MEMORY;
    for (int64_t i = 0; i < data->class_count; i++) names[i] = data->classes[i].name;
    aim_status status = network_save(&t->net, names, path);
    mem_free(names);
    return status;
}

static aim_status train(aim_context *ctx, const char *root, const char *output)
{
    struct dataset data, held_out;
    struct training t = {0};
    struct samples samples = {0};
    struct tally tally = {0};
    TRY(dataset_open_split(ctx, root, 0.1, &data, &held_out));
    aim_status status = training_init(ctx, data.class_count, &t);
    if (status == AIM_OK) status = train_all(ctx, &data, &t);
    if (status == AIM_OK) status = save(&t, &data, output);
    if (status == AIM_OK) status = samples_from(ctx, &held_out, JUDGE_SIDE, &samples);
    if (status == AIM_OK) status = judge_all(ctx, &t.net, &samples, &tally);
    if (status == AIM_OK)
        printf("held-out accuracy %.4f (%lld of %lld)\n", (double)tally.right / (double)tally.seen, (long long)tally.right,
               (long long)tally.seen);
    mem_free(tally.confusion);
    samples_close(&samples);
    training_free(&t);
    dataset_close(&data);
    dataset_close(&held_out);
    return status;
}

/* ------------------------------------------------------------------------------------------------------ main */

int main(int argc, char **argv)
{
    const char *verb = argc > 1 ? argv[1] : "";
    bool writes = argc > 3 && strcmp(argv[argc - 2], "-o") == 0;
    bool fits = (strcmp(verb, "train") == 0 && argc == 5 && writes) || (strcmp(verb, "score") == 0 && argc == 4) ||
                (strcmp(verb, "nearest") == 0 && argc == 6 && writes) || (strcmp(verb, "sheet") == 0 && argc >= 5 && writes);
    if (!fits) return usage();
    aim_context *ctx;
    aim_status status = aim_context_create(NULL, &ctx);
    if (status == AIM_OK && verb[0] == 't') status = train(ctx, argv[2], argv[4]);
    if (status == AIM_OK && strcmp(verb, "score") == 0) status = score(ctx, argv[2], argv[3]);
    if (status == AIM_OK && strcmp(verb, "sheet") == 0)
        status = sheet_of_samples(ctx, (const char *const *)argv + 2, argc - 4, SHEET_COLUMNS, argv[argc - 1]);
    if (status == AIM_OK && verb[0] == 'n') status = nearest(ctx, argv[2], argv[3], argv[5]);
    if (status != AIM_OK) fprintf(stderr, "aim-judge: %s\n", aim_last_error(ctx));
    aim_context_free(ctx);
    return status != AIM_OK;
}
