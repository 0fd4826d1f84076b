/* PNG through libpng: decoding to 8-bit RGB with Pillow's values, and the writer of the pictures this program makes. */
#include <setjmp.h>
#include <stdio.h>
#include <string.h>

#include <png.h>

#include "base/file.h"
#include "io/image.h"

/* What both directions need around libpng, which reports failure by a jump; lives in the caller's frame. */
struct png_job {
    aim_context *ctx;
    png_structp png;
    png_infop info;
    bool out_of_memory;
    char message[128]; /* libpng's words for what went wrong */
    aim_status status; /* what a callback of ours already failed with */
    jmp_buf escape;

    struct image_source *source; /* reading */
    size_t offset;
    struct file_writer *out; /* writing */
};

static void on_error(png_structp png, png_const_charp message)
{
    struct png_job *job = png_get_error_ptr(png);
    snprintf(job->message, sizeof job->message, "%s", message);
    longjmp(job->escape, 1);
}

static void on_warning(png_structp png, png_const_charp message)
{
    (void)png;
    (void)message;
}

static png_voidp allocate(png_structp png, png_alloc_size_t bytes)
{
    struct png_job *job = png_get_mem_ptr(png);
    void *block = mem_new(job->ctx, bytes, MEM_IMAGE);
    if (!block) job->out_of_memory = true;
    return block;
}

static void release(png_structp png, png_voidp block)
{
    (void)png;
    mem_free(block);
}

/* ----------------------------------------------------------------------------------------------- reading */

static void read_bytes(png_structp png, png_bytep out, size_t bytes)
{
    struct png_job *job = png_get_io_ptr(png);
    if (bytes > job->source->size - job->offset) png_error(png, "it ends too early");
    memcpy(out, job->source->data + job->offset, bytes);
    job->offset += bytes;
}

/* 16-bit grey in the last 2*width bytes of a row of 3*width becomes RGB; Pillow clips such values instead of scaling. */
static void rgb_from_grey16(unsigned char *row, size_t width)
{
    const unsigned char *grey = row + width;
    for (size_t i = 0; i < width; i++) {
        unsigned char v = grey[2 * i] ? 255 : grey[2 * i + 1];
        memset(row + 3 * i, v, 3);
    }
}

static aim_status decode(struct png_job *job)
{
    struct image_source *source = job->source;
    if (setjmp(job->escape)) return AIM_ERR_FORMAT;
    job->png = png_create_read_struct_2(PNG_LIBPNG_VER_STRING, job, on_error, on_warning, job, allocate, release);
    if (!job->png) return AIM_ERR_FORMAT;
    png_structp png = job->png;
    job->info = png_create_info_struct(png);
    if (!job->info) return AIM_ERR_FORMAT;
    png_set_read_fn(png, job, read_bytes);
    png_set_crc_action(png, PNG_CRC_ERROR_QUIT, PNG_CRC_ERROR_QUIT);
    png_set_user_limits(png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);
    /* Nothing outside the critical chunks changes what convert("RGB") gives; skipped, they cannot be bombs either. */
    png_set_keep_unknown_chunks(png, PNG_HANDLE_CHUNK_NEVER, NULL, -1);
    png_set_keep_unknown_chunks(png, PNG_HANDLE_CHUNK_NEVER, (png_const_bytep) "tRNS", 1);
    png_set_check_for_invalid_index(png, -1);
    png_read_info(png, job->info);

    png_uint_32 width = png_get_image_width(png, job->info), height = png_get_image_height(png, job->info);
    int color = png_get_color_type(png, job->info), depth = png_get_bit_depth(png, job->info);
    job->status = image_source_alloc(source, width, height);
    if (job->status != AIM_OK) return job->status;
    bool grey16 = color == PNG_COLOR_TYPE_GRAY && depth == 16;
    if (!grey16) {
        png_set_strip_16(png);
        png_set_expand(png); /* palettes (black past their end) and grey below 8 bits */
        png_set_strip_alpha(png);
        png_set_gray_to_rgb(png);
    }
    int passes = png_set_interlace_handling(png);
    png_read_update_info(png, job->info);
    size_t stride = image_stride(source->image), start = grey16 ? width : 0;
    if (png_get_rowbytes(png, job->info) != stride - start) png_error(png, "unexpected row size");
    for (int pass = 0; pass < passes; pass++)
        for (size_t y = 0; y < height; y++) png_read_row(png, source->image->rgb + y * stride + start, NULL);
    png_read_end(png, NULL);
    if (grey16)
        for (size_t y = 0; y < height; y++) rgb_from_grey16(source->image->rgb + y * stride, width);
    return AIM_OK;
}

aim_status image_png_decode(struct image_source *source)
{
    struct png_job job = {.ctx = source->ctx, .source = source, .message = "libpng does not start"};
    aim_status status = decode(&job);
    png_destroy_read_struct(&job.png, &job.info, NULL);
    if (status == AIM_OK || job.status != AIM_OK) return status;
    if (job.out_of_memory) return image_source_no_memory(source);
    return aim_fail(source->ctx, AIM_ERR_FORMAT, "%s is a damaged PNG file: %s", source->name, job.message);
}

/* ----------------------------------------------------------------------------------------------- writing */

static void write_bytes(png_structp png, png_bytep data, size_t bytes)
{
    struct png_job *job = png_get_io_ptr(png);
    job->status = file_writer_write(job->out, data, bytes);
    if (job->status != AIM_OK) png_error(png, "write failed");
}

static void flush_bytes(png_structp png)
{
    (void)png; /* closing the file does */
}

static bool is_ascii(const char *text)
{
    for (; *text; text++)
        if ((unsigned char)*text >= 0x80) return false;
    return true;
}

/* Well-formed UTF-8: no overlong forms, no surrogates, nothing past U+10FFFF. */
static bool is_utf8(const char *text)
{
    static const uint32_t least[4] = {0, 0x80, 0x800, 0x10000};
    for (const unsigned char *c = (const unsigned char *)text; *c;) {
        int more = *c < 0x80 ? 0 : (*c >> 5) == 6 ? 1 : (*c >> 4) == 14 ? 2 : (*c >> 3) == 30 ? 3 : -1;
        if (more < 0) return false;
        uint32_t code = more ? *c & (0x3fu >> more) : *c;
        c++;
        for (int i = 0; i < more; i++, c++) {
            if ((*c & 0xc0) != 0x80) return false;
            code = code << 6 | (*c & 0x3fu);
        }
        if (code < least[more] || code > 0x10ffff || (code >= 0xd800 && code <= 0xdfff)) return false;
    }
    return true;
}

/* The format's rule for keywords, held to ASCII: 1 to 79 printable characters, no space at an end and no two together. */
static bool is_keyword(const char *key)
{
    size_t n = strlen(key);
    if (n < 1 || n > 79 || key[0] == ' ' || key[n - 1] == ' ' || strstr(key, "  ")) return false;
    for (; *key; key++)
        if (*key < 0x20 || *key > 0x7e) return false;
    return true;
}

static aim_status convert_text(aim_context *ctx, const char *path, const aim_text *text, size_t count, png_text *out)
{
    static char nothing[] = "";
    for (size_t i = 0; i < count; i++) {
        const char *key = text[i].key, *value = text[i].value;
        if (!key || !is_keyword(key))
            return aim_fail(ctx, AIM_ERR_ARGUMENT, "cannot write %s: \"%s\" cannot name a PNG text", path, key ? key : "");
        if (!value || !is_utf8(value))
            return aim_fail(ctx, AIM_ERR_ARGUMENT, "cannot write %s: the text \"%s\" is not valid UTF-8", path, key);
        bool international = !is_ascii(value);
        out[i] = (png_text){.compression = international ? PNG_ITXT_COMPRESSION_NONE : PNG_TEXT_COMPRESSION_NONE,
                            .key = (char *)(uintptr_t)key,
                            .text = (char *)(uintptr_t)value,
                            .lang = international ? nothing : NULL,
                            .lang_key = international ? nothing : NULL};
        *(international ? &out[i].itxt_length : &out[i].text_length) = strlen(value);
    }
    return AIM_OK;
}

static aim_status encode(struct png_job *job, const aim_image *image, const png_text *text, size_t text_count)
{
    if (setjmp(job->escape)) return AIM_ERR_INTERNAL;
    job->png = png_create_write_struct_2(PNG_LIBPNG_VER_STRING, job, on_error, on_warning, job, allocate, release);
    if (!job->png) return AIM_ERR_INTERNAL;
    png_structp png = job->png;
    job->info = png_create_info_struct(png);
    if (!job->info) return AIM_ERR_INTERNAL;
    png_set_write_fn(png, job, write_bytes, flush_bytes);
    png_set_user_limits(png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);
    png_set_IHDR(png, job->info, (png_uint_32)image->width, (png_uint_32)image->height, 8, PNG_COLOR_TYPE_RGB,
                 PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
    if (text_count) png_set_text(png, job->info, text, (int)text_count);
    png_write_info(png, job->info);
    for (size_t y = 0; y < (size_t)image->height; y++) png_write_row(png, image->rgb + y * image_stride(image));
    png_write_end(png, NULL);
    return AIM_OK;
}

/* Everything between opening and closing the file. */
static aim_status write_png(aim_context *ctx, struct file_writer *out, const aim_image *image, const aim_text *text,
                            size_t text_count)
{
    png_text *converted = mem_zero(ctx, text_count + 1, sizeof *converted, MEM_IMAGE);
    if (!converted) return AIM_ERR_MEMORY;
    struct png_job job = {.ctx = ctx, .out = out, .message = "libpng does not start"};
    aim_status status = convert_text(ctx, out->path, text, text_count, converted);
    if (status == AIM_OK) {
        status = encode(&job, image, converted, text_count);
        png_destroy_write_struct(&job.png, &job.info);
        if (status != AIM_OK && job.status == AIM_OK)
            status = job.out_of_memory
                         ? aim_fail(ctx, AIM_ERR_MEMORY, "cannot write %s: %s", out->path, ctx->error)
                         : aim_fail(ctx, AIM_ERR_INTERNAL, "cannot write %s: libpng says \"%s\"", out->path, job.message);
        else if (status != AIM_OK)
            status = job.status;
    }
    mem_free(converted);
    return status;
}

aim_status aim_image_write_png(aim_context *ctx, const char *path, const aim_image *image, const aim_text *text,
                               size_t text_count)
{
    enum { MAX_TEXTS = 1000 };
    if (!image->rgb || image->width < 1 || image->height < 1)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "cannot write %s: the picture has no pixels", path);
    if (text && text_count > MAX_TEXTS)
        return aim_fail(ctx, AIM_ERR_ARGUMENT, "cannot write %s: more than %d texts", path, MAX_TEXTS);
    struct file_writer out;
    TRY(file_writer_open(ctx, path, &out));
    aim_status status = write_png(ctx, &out, image, text, text ? text_count : 0);
    aim_status closed = file_writer_close(&out, status == AIM_OK);
    return status != AIM_OK ? status : closed;
}
