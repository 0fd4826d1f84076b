/*
 * JPEG through libjpeg-turbo, with its default decoding (accurate integer DCT, smooth chroma upsampling), which is what
 * Pillow uses too. CMYK is taken to be inverted, as Adobe writes it and Pillow assumes.
 */
#include <setjmp.h>
#include <stdio.h>
#include <string.h>

#include <jpeglib.h>
#include <jerror.h>

#include "io/image.h"

/* Encoders write about ten scans; each scan of a hostile file costs a pass over the picture for a few bytes. */
enum { MAX_SCANS = 100 };

/* Lives in image_jpeg_decode's frame, so that nothing is lost or stale after a jump. */
struct jpeg_job {
    struct jpeg_decompress_struct codec;
    struct jpeg_error_mgr errors;
    struct jpeg_source_mgr input;
    struct jpeg_progress_mgr progress;
    struct image_source *source;
    unsigned char *row; /* CMYK pixels of one row */
    void *reserved;     /* stands for the coefficients of a picture in several scans */
    aim_status status;
    jmp_buf escape;
};

/* Ends the decoding with job->status; the message is set. */
static _Noreturn void give_up(struct jpeg_job *job, aim_status status)
{
    job->status = status;
    longjmp(job->escape, 1);
}

static _Noreturn void give_up_damaged(struct jpeg_job *job, const char *what)
{
    give_up(job, aim_fail(job->source->ctx, AIM_ERR_FORMAT, "%s is a damaged JPEG file: %s", job->source->name, what));
}

static void on_error(j_common_ptr codec)
{
    struct jpeg_job *job = codec->client_data;
    char text[JMSG_LENGTH_MAX];
    codec->err->format_message(codec, text);
    if (codec->err->msg_code == JERR_OUT_OF_MEMORY || codec->err->msg_code == JERR_NO_BACKING_STORE)
        give_up(job, aim_fail(job->source->ctx, AIM_ERR_MEMORY, "cannot read %s: out of memory in the JPEG decoder",
                              job->source->name));
    give_up_damaged(job, text);
}

/*
 * libjpeg goes on after damage and makes pixels up; those warnings are errors here. Others (stray bytes between markers,
 * odd headers) leave the picture whole.
 */
static void on_message(j_common_ptr codec, int level)
{
    if (level >= 0) return;
    switch (codec->err->msg_code) {
    case JWRN_HIT_MARKER:
    case JWRN_HUFF_BAD_CODE:
    case JWRN_ARITH_BAD_CODE:
    case JWRN_MUST_RESYNC: on_error(codec); break;
    default: codec->err->num_warnings++;
    }
}

static void on_output(j_common_ptr codec)
{
    (void)codec;
}

static void on_progress(j_common_ptr codec)
{
    struct jpeg_job *job = codec->client_data;
    if (job->codec.input_scan_number > MAX_SCANS)
        give_up(job, aim_fail(job->source->ctx, AIM_ERR_UNSUPPORTED, "%s is a JPEG file with more than %d scans",
                              job->source->name, (int)MAX_SCANS));
}

static void input_init(j_decompress_ptr codec)
{
    (void)codec;
}

/* The whole file is in the buffer from the start: wanting more means that it is cut off. */
static boolean input_fill(j_decompress_ptr codec)
{
    give_up_damaged(codec->client_data, "it ends too early");
}

static void input_skip(j_decompress_ptr codec, long bytes)
{
    if (bytes <= 0) return;
    if ((unsigned long)bytes > codec->src->bytes_in_buffer) give_up_damaged(codec->client_data, "it ends too early");
    codec->src->next_input_byte += bytes;
    codec->src->bytes_in_buffer -= (size_t)bytes;
}

/* a*b/255, rounded */
static inline unsigned multiply_bytes(unsigned a, unsigned b)
{
    unsigned v = a * b + 128;
    return ((v >> 8) + v) >> 8;
}

/* One row of inverted CMYK (255 = no ink) to RGB. */
static void rgb_from_cmyk(const unsigned char *cmyk, size_t pixels, unsigned char *rgb)
{
    for (size_t i = 0; i < pixels; i++) {
        unsigned white = cmyk[4 * i + 3];
        for (size_t c = 0; c < 3; c++) rgb[3 * i + c] = (unsigned char)(white - multiply_bytes(255u - cmyk[4 * i + c], white));
    }
}

/* Allocates the picture and what else is needed, once the header is read. */
static aim_status prepare(struct jpeg_job *job)
{
    struct jpeg_decompress_struct *codec = &job->codec;
    struct image_source *source = job->source;
    switch (codec->jpeg_color_space) {
    case JCS_GRAYSCALE:
    case JCS_YCbCr:
    case JCS_RGB: codec->out_color_space = JCS_RGB; break;
    case JCS_CMYK:
    case JCS_YCCK: codec->out_color_space = JCS_CMYK; break;
    default:
        return aim_fail(source->ctx, AIM_ERR_UNSUPPORTED, "%s is a JPEG file with %d colour channels of unknown meaning",
                        source->name, codec->num_components);
    }
    TRY(image_source_alloc(source, codec->image_width, codec->image_height));
    if (codec->out_color_space == JCS_CMYK) {
        job->row = mem_array(source->ctx, codec->image_width, 4, MEM_IMAGE);
        if (!job->row) return image_source_no_memory(source);
    }
    if (jpeg_has_multiple_scans(codec)) {
        uint64_t blocks = 0;
        for (int i = 0; i < codec->num_components; i++) {
            const jpeg_component_info *plane = &codec->comp_info[i];
            blocks += (uint64_t)plane->width_in_blocks * plane->height_in_blocks;
        }
        job->reserved = image_source_reserve(source, blocks * sizeof(JBLOCK));
        if (!job->reserved) return image_source_no_memory(source);
    }
    return AIM_OK;
}

static aim_status decode(struct jpeg_job *job)
{
    struct jpeg_decompress_struct *codec = &job->codec;
    if (setjmp(job->escape)) return job->status;
    jpeg_create_decompress(codec);
    codec->src = &job->input;
    codec->progress = &job->progress;
    jpeg_read_header(codec, TRUE);
    TRY(prepare(job));
    jpeg_start_decompress(codec);
    aim_image *image = job->source->image;
    while (codec->output_scanline < codec->output_height) {
        unsigned char *rgb = image->rgb + codec->output_scanline * image_stride(image);
        unsigned char *row = job->row ? job->row : rgb;
        jpeg_read_scanlines(codec, &row, 1);
        if (job->row) rgb_from_cmyk(job->row, codec->output_width, rgb);
    }
    /* What follows the last row is of no interest: Pillow accepts a missing end marker there, too. */
    return AIM_OK;
}

aim_status image_jpeg_decode(struct image_source *source)
{
    struct jpeg_job job = {.source = source};
    job.input = (struct jpeg_source_mgr){.next_input_byte = source->data,
                                         .bytes_in_buffer = source->size,
                                         .init_source = input_init,
                                         .fill_input_buffer = input_fill,
                                         .skip_input_data = input_skip,
                                         .resync_to_restart = jpeg_resync_to_restart,
                                         .term_source = input_init};
    job.progress.progress_monitor = on_progress;
    job.codec.client_data = &job; /* jpeg_create_decompress keeps err and client_data */
    job.codec.err = jpeg_std_error(&job.errors);
    job.errors.error_exit = on_error;
    job.errors.emit_message = on_message;
    job.errors.output_message = on_output;
    aim_status status = decode(&job);
    jpeg_destroy_decompress(&job.codec);
    mem_free(job.row);
    mem_free(job.reserved);
    return status;
}
