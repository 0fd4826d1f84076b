/*
 * aim.h - AiM, "Scalable Autoregressive Image Generation with Mamba" (arXiv 2408.12245), as a C library.
 *
 * A complete program: paint one picture of class 207 with the model in the folder "aim-base".
 *
 *     #include <aim.h>
 *     #include <stdio.h>
 *
 *     int main(void)
 *     {
 *         aim_context *ctx = NULL;
 *         aim_model *model = NULL;
 *         aim_model_options from = aim_model_defaults("aim-base");
 *         aim_generate_options how = aim_generate_defaults();
 *         aim_image picture = {0};
 *         int64_t label = 207;
 *         int failed = aim_context_create(NULL, &ctx) || aim_model_load(ctx, &from, &model) ||
 *                      aim_generate(model, &label, 1, &how, NULL, &picture) ||
 *                      aim_image_write_png(ctx, "golden-retriever.png", &picture, NULL, 0);
 *         if (failed) fprintf(stderr, "%s\n", aim_last_error(ctx));
 *         aim_image_free(&picture);
 *         aim_model_free(model);
 *         aim_context_free(ctx);
 *         return failed != 0;
 *     }
 *
 * Conventions
 *   - Every function that can fail returns aim_status; on failure aim_last_error(ctx) is one line that says what, where
 *     and what to do. The library never exits, aborts, prints, or keeps global state.
 *   - A context and everything made from it belong to one thread at a time; different contexts are independent.
 *   - Arrays are row-major. Pictures in floating point are NCHW in [-1, 1]; pictures in bytes are HWC RGB.
 *   - Functions named *_free accept NULL (or a zeroed struct) and leave it ready for reuse.
 *   - Functions that end in "defaults" return options by value; start from them, so that new fields keep working.
 */
#ifndef AIM_H
#define AIM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define AIM_API __attribute__((visibility("default")))
#else
#define AIM_API
#endif

#define AIM_VERSION "0.1.0"

/* ------------------------------------------------------------------------------------------------ status */

typedef enum aim_status {
    AIM_OK = 0,
    AIM_ERR_ARGUMENT,    /* the caller asked for something impossible: shapes, ranges, unknown names */
    AIM_ERR_IO,          /* the system refused: no such file, no permission, disk full */
    AIM_ERR_FORMAT,      /* a file is damaged, or not what it should be */
    AIM_ERR_UNSUPPORTED, /* valid, but this build or version does not do it */
    AIM_ERR_MEMORY,      /* not enough memory */
    AIM_ERR_CANCELLED,   /* the progress callback asked to stop */
    AIM_ERR_INTERNAL     /* a bug in the library, or in a library it uses */
} aim_status;

/* A short name such as "format"; the version of the library that runs (AIM_VERSION is the one compiled against). Never NULL. */
AIM_API const char *aim_status_name(aim_status status);
AIM_API const char *aim_version(void);

/* ----------------------------------------------------------------------------------------------- context */

typedef struct aim_context aim_context;
typedef enum aim_log_level { AIM_LOG_DEBUG, AIM_LOG_INFO, AIM_LOG_WARNING } aim_log_level;

typedef void (*aim_log_fn)(void *user, aim_log_level level, const char *message); /* one finished line without newline */

/* Called now and then during long work, always from the thread that called the library: `done` of `total` units of the phase
 * `what` ("tokens", ...). Return nonzero to stop: the call returns AIM_ERR_CANCELLED and leaves nothing half-written. */
typedef int (*aim_progress_fn)(void *user, const char *what, int64_t done, int64_t total);

typedef struct aim_context_options {
    const char *device;       /* "cpu"; NULL = "cpu" */
    const char *cpu;          /* kernel tier: "generic", "avx2", "avx512"; NULL = $AIM_CPU, else the best one here */
    int threads;              /* 0 = one per available core */
    int64_t memory_limit;     /* bytes the library may use; 0 = what the system has available */
    aim_log_fn log;           /* NULL = silent */
    aim_progress_fn progress; /* NULL = none */
    void *user;               /* passed to both callbacks */
} aim_context_options;
AIM_API aim_context_options aim_context_defaults(void);

/* options may be NULL. *ctx is set even on failure whenever memory allows, so that aim_last_error(*ctx) can tell why; the
 * caller frees it in every case, after everything made from it. */
AIM_API aim_status aim_context_create(const aim_context_options *options, aim_context **ctx);
AIM_API void aim_context_free(aim_context *ctx);

/* The message of the last failure in this context; "" if none. Valid until the next call on the context. */
AIM_API const char *aim_last_error(const aim_context *ctx);

/* One line that names the device and kernels in use, e.g. "cpu avx2, 8 threads, oneDNN 2.6". */
AIM_API const char *aim_context_device(const aim_context *ctx);

/* ------------------------------------------------------------------------------------------------- model */

typedef struct aim_model aim_model;

/* How stage 2's matrices are kept. Arithmetic is float32; with BF16 on a GPU it is bf16, pictures too (46 dB from f32's). */
typedef enum aim_weights {
    AIM_WEIGHTS_AUTO, /* bf16 for a matrix that loses nothing by it (published files hold such values), else f32 */
    AIM_WEIGHTS_F32,
    AIM_WEIGHTS_BF16, /* rounded to bf16: half the memory and about twice the speed at small batches */
    AIM_WEIGHTS_Q8    /* rounded to 8 bits with a scale for each output: half of that again */
} aim_weights;

typedef struct aim_model_options {
    const char *path;      /* hub directory (config.json + model.safetensors), .safetensors file, or torch file */
    const char *tokenizer; /* where the VQ tokenizer is, when path does not hold it (or to override it); NULL = path */
    aim_weights weights;
    int pos_offset; /* position convention when decoding: 0, 1, or -1 = decide from config and weights */
} aim_model_options;
AIM_API aim_model_options aim_model_defaults(const char *path);

/* The model may hold stage 2, the tokenizer, or both; calls that need a missing part say so. Free with aim_model_free. */
AIM_API aim_status aim_model_load(aim_context *ctx, const aim_model_options *options, aim_model **model);

/* A new model, initialised as in the paper, from preset ("AiM-B", "AiM-L", "AiM-XL", "AiM-1B", "tiny") and seed alone. */
AIM_API aim_status aim_model_init(aim_context *ctx, const char *preset, uint64_t seed, aim_model **model);

/* Writes the official hub format (config.json, model.safetensors) into `directory`, made if it does not exist. */
AIM_API aim_status aim_model_save(aim_model *model, const char *directory);
AIM_API void aim_model_free(aim_model *model);

typedef struct aim_model_info {
    int has_generator, has_tokenizer; /* stage 2; encoder + quantiser + decoder */
    int d_model, n_layer, vocab_size, num_classes, num_tokens;
    int adaln_group, num_groups;                     /* adaln_group = 0: one adaLN Linear per layer */
    int pos_offset;                                  /* in use */
    const char *pos_offset_from;                     /* "option", "config", "weights", "official decoder" */
    int64_t generator_tensors, generator_parameters; /* tensors and values in the file; the tied head is not counted */
    int codebook_size, codebook_dim, base_channels, z_channels;
    int downsample;                                  /* pixels per code along one side: 16 for VQ-f16 */
    int64_t tokenizer_tensors, tokenizer_parameters; /* the usage buffer counts as a tensor, not as parameters */
    int image_size;                                  /* pixels along one side of a generated picture; 0 if a part is missing */
    int64_t bytes_on_disk;                           /* of the files that hold the weights */
    const char *file_dtype, *matrices; /* of the largest tensor: "F32", ...; of stage 2's in memory: "f32", "bf16", "q8" */
} aim_model_info;

/* Strings inside info live as long as the model. */
AIM_API void aim_model_describe(const aim_model *model, aim_model_info *info);

/* Bytes that aim_generate needs with this batch (weights included); what it checks before it starts. */
AIM_API int64_t aim_model_memory(const aim_model *model, int batch, int with_guidance);

/* The name of class `label` from the config's id2label, or NULL. */
AIM_API const char *aim_model_class_name(const aim_model *model, int64_t label);

/* The class whose id2label name equals `name` (case ignored; one of a comma-separated list of synonyms will do); -1 if none. */
AIM_API int64_t aim_model_find_class(const aim_model *model, const char *name);

/* One row per tensor of the model, in file order; returns 0 past the end. */
typedef struct aim_tensor_info {
    const char *name;
    const char *dtype;
    int ndim;
    int64_t shape[4];
} aim_tensor_info;
AIM_API int aim_model_tensor(const aim_model *model, int64_t index, aim_tensor_info *info);

/* ---------------------------------------------------------------------------------------------- pictures */

/* 8-bit RGB, rows from the top, no padding: width*height*3 bytes owned by the struct. */
typedef struct aim_image {
    int width, height;
    uint8_t *rgb;
} aim_image;

typedef enum aim_filter { AIM_FILTER_BOX, AIM_FILTER_BILINEAR, AIM_FILTER_BICUBIC, AIM_FILTER_LANCZOS } aim_filter;

typedef struct aim_text {
    const char *key, *value; /* UTF-8 */
} aim_text;

/* A black picture. */
AIM_API aim_status aim_image_create(aim_context *ctx, int width, int height, aim_image *image);
AIM_API void aim_image_free(aim_image *image);

/* PNG, JPEG or WebP, told apart by content, converted to RGB as Pillow's convert("RGB") does. */
AIM_API aim_status aim_image_read(aim_context *ctx, const char *path, aim_image *image);

/* Atomic; `text` (may be NULL) goes into tEXt/iTXt chunks. */
AIM_API aim_status aim_image_write_png(aim_context *ctx, const char *path, const aim_image *image, const aim_text *text,
                                       size_t text_count);

/* Letters of 5x7 dots of `scale` pixels, 6 dots apart, from (x, y) down and right; what is not a-z, 0-9, .-+_ is blank. */
AIM_API void aim_image_draw_text(aim_image *image, int x, int y, int scale, const char *text, const uint8_t rgb[3]);
/* Bit-exact with Pillow's Image.resize. */
AIM_API aim_status aim_image_resize(aim_context *ctx, const aim_image *image, int width, int height, aim_filter filter,
                                    aim_image *out);

/* The evaluation transform of ADM and LlamaGen: BOX halvings, bicubic to short side = size, centre crop. */
AIM_API aim_status aim_image_center_crop(aim_context *ctx, const aim_image *image, int size, aim_image *out);

/* Bytes to [-1, 1], HWC to CHW (3*height*width floats), and back into an image that has its size by LlamaGen's rule,
 * trunc(clamp(127.5 x + 128, 0, 255)). */
AIM_API void aim_image_to_float(const aim_image *image, float *out);
AIM_API void aim_image_from_float(const float *pixels, aim_image *image);

/* PSNR (dB, range 255) and SSIM (7x7 uniform window, sample covariance, per channel, as scikit-image) of two pictures of one
 * size, at least 7x7; data_range is SSIM's, in units of the full byte range (1 is correct; LlamaGen uses 2). */
AIM_API aim_status aim_image_compare(aim_context *ctx, const aim_image *a, const aim_image *b, double data_range, double *psnr,
                                     double *ssim);

/* ------------------------------------------------------------------------------------------------- work */

typedef struct aim_generate_options {
    double cfg;         /* guidance factor; 1 = none (and half the work) */
    double temperature; /* logits are divided by it; 0 = always the most likely token */
    double top_p;       /* (0, 1] */
    int top_k;          /* 0 = all */
    uint64_t seed;
    int batch;           /* most pictures painted together; 0 = chosen to fit */
    int64_t first_index; /* index of the first picture in the random stream: picture i uses (seed, first_index + i) */
    /* Called once per picture, in order, as it is finished, from the calling thread, which must not put the model to work then;
     * codes (num_tokens) and image (NULL when only codes were asked for) are valid during the call. Nonzero stops. */
    int (*picture)(void *user, int64_t index, int64_t label, const int64_t *codes, const aim_image *image);
    void *user;
    int codes_only; /* do not decode pictures (no tokenizer needed) */
} aim_generate_options;
AIM_API aim_generate_options aim_generate_defaults(void);

/* Paints `count` pictures, one per label. codes (count, num_tokens) may be NULL. images, an array of `count` zeroed structs
 * that the caller frees, may be NULL. The random number a token sees depends only on (seed, picture index, token position): the
 * result does not depend on batch or threads. Memory it works in stays with the model for the next call. */
AIM_API aim_status aim_generate(aim_model *model, const int64_t *labels, int64_t count, const aim_generate_options *options,
                                int64_t *codes, aim_image *images);

/* pixels (count, 3, height, width) in [-1, 1] -> codes (count, height/downsample * width/downsample), and back: codes (count,
 * rows*columns) -> pixels (count, 3, rows*downsample, columns*downsample), the raw decoder output. */
AIM_API aim_status aim_encode(aim_model *model, const float *pixels, int64_t count, int height, int width, int64_t *codes);
AIM_API aim_status aim_decode(aim_model *model, const int64_t *codes, int64_t count, int rows, int columns, float *pixels);

/* Called once per picture, in order; logits (num_tokens, vocab_size), valid during the call. Nonzero stops. */
typedef int (*aim_logits_fn)(void *user, int64_t index, const float *logits);

/* Teacher-forced: the mean negative log-likelihood, in nats per token, of codes (count, num_tokens) given labels (count), in
 * the parallel form with the model's position offset. A label of num_classes is the null class. logits may be NULL. */
AIM_API aim_status aim_score(aim_model *model, const int64_t *codes, const int64_t *labels, int64_t count, double *nll,
                             aim_logits_fn logits, void *user);

/* ----------------------------------------------------------------------------------------------- training */

typedef enum aim_codes_format {
    AIM_CODES_COMPACT, /* codes.safetensors: 16 bits a code, class names, and which tokenizer made it */
    AIM_CODES_LLAMAGEN /* imagenet{size}_codes/{i}.npy and imagenet{size}_labels/{i}.npy */
} aim_codes_format;

typedef struct aim_extract_options {
    int size;          /* pixels along a side; 0 = the model's, or 256 for a tokenizer alone */
    int ten_crop;      /* 10 crops of each picture instead of the picture and its mirror image */
    double crop_range; /* ten_crop: crops are taken from a picture of size * crop_range */
    aim_codes_format format;
    int batch; /* crops encoded together; 0 = chosen to fit */
} aim_extract_options;
AIM_API aim_extract_options aim_extract_defaults(void);

typedef struct aim_extract_report {
    int64_t pictures, skipped, classes; /* encoded; unreadable (each was a warning); class folders */
    int64_t held_out;                   /* pictures of DATA/val, which stand in val.safetensors */
    int64_t variants, tokens;           /* codes of a picture */
} aim_extract_report;

/* The codes of a data set, for training stage 2: class folders in DATA/train, or in DATA itself, become a cache in the folder
 * `output`, which is made. The compact format also keeps DATA/val, unmirrored. report may be NULL. */
AIM_API aim_status aim_extract_codes(aim_model *tokenizer, const char *data, const char *output,
                                     const aim_extract_options *options, aim_extract_report *report);

typedef enum aim_schedule { AIM_SCHEDULE_CONSTANT, AIM_SCHEDULE_LINEAR, AIM_SCHEDULE_COSINE } aim_schedule;

/* What training either stage has in common. Text may be NULL; 0 stands for the stage's default where a number needs one. */
typedef struct aim_train_options {
    const char *run;                  /* folder for log.jsonl, curves.png, samples, model and checkpoints, which is made */
    int resume;                       /* go on in `run`: nothing else but dry_run is looked at, the folder knows the rest */
    int dry_run;                      /* only tell the memory that a step takes */
    const char *data, *init, *preset; /* class folders with pictures; a model that is the start, or a new one's size */
    double held_out;                  /* fraction of the data that is kept for evaluation, when it brings none of its own */
    int size;                         /* pixels along a side */
    int batch, accumulate;            /* samples of a step; parts that it is worked out in, one after the other */
    int64_t steps, warmup;            /* of the run, or `epochs`; of the climb to the full rate */
    double epochs, lr, decay, clip, ema;
    aim_schedule schedule;
    uint64_t seed;
    int bf16, checkpointing; /* products in bf16; blocks are run again in the backward pass rather than kept */
    int64_t eval_every, save_every, sample_every, keep; /* steps, 0 = at the end alone; checkpoints that are kept */
} aim_train_options;

typedef struct aim_train_ar_options {
    aim_train_options train;
    const char *tokenizer, *codes, *labels; /* codes: a cache, or a .npy (pictures, tokens) with `labels`, a .npy too */
    int file_order;                         /* samples in the order of the file, rather than at random */
    const char *config; /* a config.json whose sizes a new network gets; those below come on top where not 0 */
    int layers, width, d_state, groups;
    int adaln; /* 'g' groups, 'l' a layer each, 's' one for all; 0 = the preset's */
    int no_positions, official_decay;
    double label_drop;
} aim_train_ar_options;

typedef struct aim_train_tokenizer_options {
    aim_train_options train;
    const char *multipliers; /* "1,1,2,2,4": a level each, in units of `channels`; sizes of a new one, 0 = the preset's */
    int channels, res_blocks, z_channels, codebook_size, codebook_dim, norm_groups;
    const char *vgg, *lpips; /* weights of the perceptual loss, which there is none of without them */
    double l2, l1, perceptual, commit, entropy, adversarial;
    int discriminator, disc_channels; /* 'p' PatchGAN, its first layer that wide; 's' StyleGAN's; 'n' none; from disc_start */
    int64_t disc_start, disc_warmup;
    int softplus, adaptive, perceptual_dropout;
    int codebook_start;   /* 'r' random, 'd' drawn from encoded pictures, 's' spread over them */
    int64_t revive_every; /* steps after which codes that nothing chose are replaced; 0 = never */
} aim_train_tokenizer_options;

typedef struct aim_train_report {
    int64_t steps, skipped, pictures;    /* skipped: steps whose gradient was not finite; pictures in the training set */
    double loss, nll, psnr, ssim, usage; /* of the last step; of held-out data or NaN; usage: share of the codes */
    int64_t parameters, gradients, optimizer, activations, total; /* bytes; of a dry run alone */
} aim_train_report;

/* Stage 2 by AiM's recipe (spec A2 of the paper: AdamW, linear decay, label drop). report may be NULL. */
AIM_API aim_train_ar_options aim_train_ar_defaults(void);
AIM_API aim_status aim_train_ar(aim_context *ctx, const aim_train_ar_options *options, aim_train_report *report);

/* Stage 1 by LlamaGen's recipe (Adam at a constant rate, LPIPS, PatchGAN with the hinge loss). report may be NULL. */
AIM_API aim_train_tokenizer_options aim_train_tokenizer_defaults(void);
AIM_API aim_status aim_train_tokenizer(aim_context *ctx, const aim_train_tokenizer_options *options, aim_train_report *report);

/* Rewrites a model: adaLN as 'l' or 's' (see aim_train_ar_options), an equal network; 0 = as it is. average: the averaged
 * weights of a checkpoint instead. Matrices in bf16, f32, or as they are. */
AIM_API aim_status aim_convert(aim_model *model, int adaln, int average, aim_weights weights, const char *directory);

typedef struct aim_bench_result {
    int batch;                                    /* pictures together; they are painted with guidance */
    double token_ms;                              /* one token of them all; 0: the batch does not fit in memory */
    double codes_per_second, pictures_per_second; /* whole pictures, without and with turning codes into pixels */
    double bytes, operations, bytes_per_second, operations_per_second; /* a token's at least; copies' and products' at most */
    int64_t memory;                                                    /* bytes taken */
} aim_bench_result;

/* Paints with a new model of this preset for each of `count` batches; medians into results (count). AUTO is BF16. */
AIM_API aim_status aim_bench(aim_context *ctx, const char *preset, aim_weights weights, const int *batches, int count,
                             aim_bench_result *results);
/* The same for training steps of stage 2 on `batch` pictures, in bf16 where that can be: a token's and a picture's share of a
 * step; operations are 6 for each parameter; bytes and pictures_per_second are 0. */
AIM_API aim_status aim_bench_train(aim_context *ctx, const char *preset, int batch, aim_bench_result *result);

/* ----------------------------------------------------------------------------------------------- arrays */

typedef enum aim_dtype {
    AIM_U8,
    AIM_I8,
    AIM_I16,
    AIM_U16,
    AIM_I32,
    AIM_U32,
    AIM_I64,
    AIM_U64,
    AIM_F16,
    AIM_F32,
    AIM_F64,
    AIM_BOOL
} aim_dtype;

typedef struct aim_array {
    aim_dtype dtype;
    int ndim;
    int64_t shape[8];
    void *data; /* owned by the struct, row-major */
} aim_array;

/* Reads a .npy file, or the array `key` of a .npz archive (NULL: its first). */
AIM_API aim_status aim_array_read(aim_context *ctx, const char *path, const char *key, aim_array *array);
AIM_API void aim_array_free(aim_array *array);

/* Converts to int64 in place (integer types and whole-valued floats alone). */
AIM_API aim_status aim_array_to_int64(aim_context *ctx, aim_array *array);

/* A .npy (one array) or .npz (any number) being written front to back, as the ending of `path` says; it appears under its name
 * on close alone. */
typedef struct aim_array_file aim_array_file;
AIM_API aim_status aim_array_file_create(aim_context *ctx, const char *path, aim_array_file **file);

/* Starts an array; key is ignored for .npy. All of its bytes must follow before the next begin or close. */
AIM_API aim_status aim_array_file_begin(aim_array_file *file, const char *key, aim_dtype dtype, int ndim, const int64_t *shape);
AIM_API aim_status aim_array_file_write(aim_array_file *file, const void *data, size_t bytes);

/* Syncs and renames into place when keep is nonzero, else removes; frees `file` in both cases. NULL is allowed. */
AIM_API aim_status aim_array_file_close(aim_array_file *file, int keep);

#ifdef __cplusplus
}
#endif

#endif
