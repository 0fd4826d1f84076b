/*
 * Paints pictures of one class with the library: generate MODEL CLASS [COUNT [SEED]]
 *
 * MODEL is a folder with config.json and model.safetensors; CLASS a number, or a name that the model knows. The pictures
 * are written as they are finished, 000000.png and so on, into the current folder. Ctrl-C stops in good order.
 *
 *     cc generate.c $(pkg-config --cflags --libs aim) -o generate
 */
#include <aim.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

static volatile sig_atomic_t stopped;

static void stop(int number)
{
    (void)number;
    stopped = 1;
}

static int show_progress(void *user, const char *what, int64_t done, int64_t total)
{
    (void)user;
    fprintf(stderr, "\r%" PRId64 " of %" PRId64 " %s ", done, total, what);
    return stopped; /* nonzero makes the call return AIM_ERR_CANCELLED */
}

static void show_message(void *user, aim_log_level level, const char *message)
{
    (void)user;
    if (level == AIM_LOG_WARNING) fprintf(stderr, "warning: %s\n", message);
}

/* Called with every picture once it is finished; `user` is the context. */
static int write_picture(void *user, int64_t index, int64_t label, const int64_t *codes, const aim_image *image)
{
    (void)codes;
    char path[32], class[32];
    snprintf(path, sizeof path, "%06" PRId64 ".png", index);
    snprintf(class, sizeof class, "%" PRId64, label);
    aim_text text = {"class", class};
    if (aim_image_write_png(user, path, image, &text, 1) != AIM_OK) return 1; /* the context keeps why */
    printf("%s\n", path);
    return 0;
}

/* A number, or a name from the model's config.json; -1 if neither. */
static int64_t parse_class(const aim_model *model, const char *text)
{
    char *end;
    long long number = strtoll(text, &end, 10);
    return end != text && *end == '\0' ? number : aim_model_find_class(model, text);
}

static aim_status paint(aim_context *ctx, aim_model *model, int64_t label, int64_t count, uint64_t seed)
{
    int64_t *labels = malloc((size_t)count * sizeof *labels);
    if (!labels) return AIM_ERR_MEMORY;
    for (int64_t i = 0; i < count; i++) labels[i] = label;

    aim_generate_options options = aim_generate_defaults();
    options.seed = seed;
    options.picture = write_picture;
    options.user = ctx;
    aim_status status = aim_generate(model, labels, count, &options, NULL, NULL);
    fputc('\n', stderr);
    free(labels);
    return status;
}

int main(int argc, char **argv)
{
    int64_t count = argc > 3 ? strtoll(argv[3], NULL, 10) : 1;
    uint64_t seed = argc > 4 ? strtoull(argv[4], NULL, 10) : 0;
    if (argc < 3 || argc > 5 || count < 1 || count > 1000000) {
        fprintf(stderr, "usage: generate MODEL CLASS [COUNT [SEED]]\n");
        return 2;
    }
    signal(SIGINT, stop);

    aim_context_options settings = aim_context_defaults();
    settings.progress = show_progress;
    settings.log = show_message;
    aim_model_options from = aim_model_defaults(argv[1]);

    aim_context *ctx = NULL;
    aim_model *model = NULL;
    aim_status status = aim_context_create(&settings, &ctx);
    if (status == AIM_OK) status = aim_model_load(ctx, &from, &model);
    if (status == AIM_OK) status = paint(ctx, model, parse_class(model, argv[2]), count, seed);
    if (status != AIM_OK) fprintf(stderr, "generate: %s: %s\n", aim_status_name(status), aim_last_error(ctx));
    aim_model_free(model);
    aim_context_free(ctx);
    return status != AIM_OK;
}
