/*
 * Winograd convolution in blocks of tiles. A block's tiles are transformed into one matrix (tiles, channels) for each
 * input frequency; every product frequency multiplies its matrix with transformed weights; the sums are transformed
 * back, with bias, into tiles of the output. A block's scratch stays near the L2 cache.
 *
 * A tile's result depends on nothing but the tile: not on batch, block or thread.
 */
#include "cpu/kernels/conv.h"

#include "cpu/converted.h"
#include "cpu/kernels/kernels.h"

#if VLEN >= 8

#include "cpu/kernels/winograd_transform.h"

enum {
    COLS = 2 * VLEN,              /* output channels of a panel of weights: two vectors */
    ROWS = VLEN == 16 ? 12 : 6,   /* tiles at a time: ROWS x 2 sums fill the registers */
    BLOCK = VLEN == 16 ? 96 : 48, /* tiles of a block */
    GROUP = 8,                    /* panels whose products are kept before they are transformed back */
    K_BLOCK = 128,                /* lines of a panel kept in L1 */
    SPREAD = 16,                  /* floats between planes, so that they do not fall on the same cache lines */
};

/* Transformed weights: (frequency, panel, input channel, COLS). */
struct filters {
    struct converted head;
    float data[] __attribute__((aligned(64)));
};

struct work {
    const struct tensor *x, *bias;
    const struct tensor *y;
    const float *filters;
    int64_t C, O, panels;
    int64_t tiles_x, tiles_y, tiles; /* of a picture across and down; of all pictures */
    int64_t block, splits, groups;   /* tiles of a block; parts and groups of panels that its panels are cut into */
    int64_t ldv, plane_v, ldm, plane_m;
    const float *zeros; /* a pixel outside the picture */
};

static int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

/* --------------------------------------------------------------------------------------------- weights */

static void transform_panel(bool up, const struct tensor *w, int64_t panel, int64_t panels, float *to)
{
    int64_t O = w->shape[0], C = w->shape[1], first = panel * COLS, live = min64(O - first, COLS);
    int products = up ? UP_PRODUCTS : PLAIN_PRODUCTS;
    for (int64_t c = 0; c < C; c++)
        for (int64_t j = 0; j < COLS; j++) {
            double rows[3][MAX_PRODUCTS] = {{0}}, out[MAX_PRODUCTS];
            const float *g = f32(w) + ((first + j) * C + c) * 9;
            if (j < live)
                for (int y = 0; y < 3; y++)
                    transform_filter(up, (double)g[3 * y], (double)g[3 * y + 1], (double)g[3 * y + 2], rows[y]);
            for (int q = 0; q < products; q++) {
                transform_filter(up, rows[0][q], rows[1][q], rows[2][q], out);
                for (int p = 0; p < products; p++)
                    to[(((p * products + q) * panels + panel) * C + c) * COLS + j] = (float)out[p];
            }
        }
}

/* The weights transformed, kept with constant ones; *own is what the caller frees, or NULL. */
static const float *get_filters(struct backend *be, const struct tensor *w, bool up, struct filters **own)
{
    int kind = (up ? CONVERTED_WINOGRAD_UP : CONVERTED_WINOGRAD) + VLEN;
    const struct filters *found = (const struct filters *)converted_find(w, kind, NULL);
    *own = NULL;
    if (found) return found->data;
    int64_t C = w->shape[1], panels = ceil_div(w->shape[0], COLS), products = up ? UP_PRODUCTS : PLAIN_PRODUCTS;
    size_t bytes = sizeof(struct filters) + (size_t)(products * products * panels * C * COLS) * sizeof(float);
    struct filters *made = mem_new(be->ctx, bytes, w->constant ? MEM_WEIGHTS : MEM_ACTIVATIONS);
    if (!made) return NULL;
    made->head = (struct converted){.kind = kind};
#pragma omp parallel for num_threads(be->threads) schedule(dynamic)
    for (int64_t p = 0; p < panels; p++) transform_panel(up, w, p, panels, made->data);
    if (w->constant)
        converted_add(w, &made->head);
    else
        *own = made;
    return made->data;
}

/* ------------------------------------------------------------------------------------------- products */

/* A line of a panel to L2. */
static inline void prefetch_line(const float *line)
{
    for (int i = 0; i < COLS; i += 16) __builtin_prefetch(line + i, 0, 2);
}

/* m (rows, COLS) = v (rows, K) u (K, COLS), added to what is there unless `first`. Each sum is one chain over k. */
static inline __attribute__((always_inline)) void product_tile(const int rows, const bool first, int64_t K, const float *v,
                                                               int64_t ldv, const float *u, float *m, int64_t ldm)
{
    vf sum[ROWS][2];
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < 2; i++) sum[r][i] = first ? (vf){0} : vload(m + r * ldm + i * VLEN);
    for (int64_t k = 0; k < K; k++) {
        vf u0 = vload(u + k * COLS), u1 = vload(u + k * COLS + VLEN);
        for (int r = 0; r < rows; r++) {
            vf vk = vset(v[r * ldv + k]);
            sum[r][0] += u0 * vk;
            sum[r][1] += u1 * vk;
        }
    }
    for (int r = 0; r < rows; r++)
        for (int i = 0; i < 2; i++) vstore(m + r * ldm + i * VLEN, sum[r][i]);
}

static void product_rows(int64_t rows, bool first, int64_t K, const float *v, int64_t ldv, const float *u, float *m,
                         int64_t ldm)
{
    switch (rows) {
#define CASE(n)                                                                                                                \
    case n:                                                                                                                    \
        if (first)                                                                                                             \
            product_tile(n, true, K, v, ldv, u, m, ldm);                                                                       \
        else                                                                                                                   \
            product_tile(n, false, K, v, ldv, u, m, ldm);                                                                      \
        break;
        CASE(1)
        CASE(2)
        CASE(3)
        CASE(4)
        CASE(5)
#if VLEN == 16
        CASE(6)
        CASE(7)
        CASE(8)
        CASE(9)
        CASE(10)
        CASE(11)
#endif
    default:
        if (first)
            product_tile(ROWS, true, K, v, ldv, u, m, ldm);
        else
            product_tile(ROWS, false, K, v, ldv, u, m, ldm);
#undef CASE
    }
}

/* m (tiles, panels*COLS) = v (tiles, C) times `panels` panels from u. Rows are dealt out evenly: with few of them a
 * product has too few sums to hide the latency of its additions. Meanwhile the lines that come next are fetched: those
 * after this block, or at the end the same panels of the next frequency. */
static void product(const struct work *k, int64_t tiles, const float *v, const float *u, int64_t panels, float *m)
{
    int64_t parts = ceil_div(tiles, ROWS), next_frequency = (k->panels - panels) * k->C;
    for (int64_t p = 0; p < panels; p++, m += COLS)
        for (int64_t c = 0; c < k->C; c += K_BLOCK) {
            int64_t lines = min64(k->C - c, K_BLOCK);
            const float *next = u + (lines + (p + 1 == panels && c + lines == k->C ? next_frequency : 0)) * COLS;
            for (int64_t i = 0; i < parts; i++) {
                int64_t t = tiles * i / parts, rows = tiles * (i + 1) / parts - t;
                for (int64_t j = lines * i / parts; j < lines * (i + 1) / parts; j++) prefetch_line(next + j * COLS);
                product_rows(rows, c == 0, lines, v + t * k->ldv + c, k->ldv, u, m + t * k->ldm, k->ldm);
            }
            u += lines * COLS;
        }
}

/* ------------------------------------------------------------------------------------------ transforms */

/* One tile of the input, all channels, to row `row` of every plane of v. */
static inline __attribute__((always_inline)) void tile_in(const bool up, const struct work *k, int64_t tile, float *v)
{
    enum { MOST = MAX_INPUTS * MAX_INPUTS };
    const int n = up ? UP_INPUTS : PLAIN_INPUTS, stride = up ? TILE / 2 : TILE;
    int64_t H = k->x->shape[1], W = k->x->shape[2], C = k->C, picture = tile / (k->tiles_y * k->tiles_x);
    int64_t y0 = tile / k->tiles_x % k->tiles_y * stride - 1, x0 = tile % k->tiles_x * stride - 1;
    const float *from[MOST];
    for (int i = 0; i < n * n; i++) {
        int64_t y = y0 + i / n, x = x0 + i % n;
        bool inside = y >= 0 && x >= 0 && y < H && x < W;
        from[i] = inside ? f32(k->x) + ((picture * H + y) * W + x) * C : k->zeros;
    }
    const int64_t plane_v = k->plane_v, next = stride * C; /* the pixel of the tile to the right */
    for (int64_t c = 0; c < C; c += VLEN) {
        vf columns[MOST], d[MAX_INPUTS], out[MAX_INPUTS];
        if (c % 16 == 0)
            for (int y = 0; y < n; y++)
                for (int x = n - stride; x < n; x++) __builtin_prefetch(from[y * n + x] + c + next);
        for (int x = 0; x < n; x++) {
            for (int y = 0; y < n; y++) {
                const float *p = from[y * n + x] + c;
                d[y] = c + VLEN <= C ? vload(p) : vload_part(p, C - c);
            }
            transform_input(up, d, columns + x, n);
        }
        for (int y = 0; y < n; y++) {
            transform_input(up, columns + y * n, out, 1);
            for (int x = 0; x < n; x++) vstore(v + (y * n + x) * plane_v + c, out[x]);
        }
    }
}

/* One tile of the output, `count` channels from `first` on, from a row of every plane of m. */
static inline __attribute__((always_inline)) void tile_out(const bool up, const struct work *k, int64_t tile, const float *m,
                                                           int64_t first, int64_t count)
{
    const int n = up ? UP_PRODUCTS : PLAIN_PRODUCTS;
    int64_t H = k->y->shape[1], W = k->y->shape[2], picture = tile / (k->tiles_y * k->tiles_x);
    int64_t y0 = tile / k->tiles_x % k->tiles_y * TILE, x0 = tile % k->tiles_x * TILE;
    int64_t rows = min64(H - y0, TILE), cols = min64(W - x0, TILE);
    float *to = f32(k->y) + ((picture * H + y0) * W + x0) * k->O + first;
    for (int64_t c = 0; c < count; c += VLEN) {
        int64_t live = min64(count - c, VLEN);
        vf columns[TILE * MAX_PRODUCTS], in[MAX_PRODUCTS], out[TILE];
        vf bias = {0};
        if (k->bias) bias = live == VLEN ? vload(f32(k->bias) + first + c) : vload_part(f32(k->bias) + first + c, live);
        for (int x = 0; x < n; x++) {
            for (int y = 0; y < n; y++) in[y] = vload(m + (y * n + x) * k->plane_m + c);
            transform_output(up, in, columns + x, n);
        }
        for (int64_t y = 0; y < rows; y++) {
            transform_output(up, columns + y * n, out, 1);
            for (int64_t x = 0; x < cols; x++) {
                float *pixel = to + (y * W + x) * k->O + c;
                if (live == VLEN)
                    vstore(pixel, out[x] + bias);
                else
                    vstore_part(pixel, out[x] + bias, live);
            }
        }
    }
}

/* One block of tiles times one part of the panels. */
static inline __attribute__((always_inline)) void run_block(const bool up, const struct work *k, int64_t item, float *v,
                                                            float *m)
{
    const int products = up ? UP_PRODUCTS : PLAIN_PRODUCTS, inputs = up ? UP_INPUTS : PLAIN_INPUTS;
    int64_t first = item / k->splits * k->block, tiles = min64(k->tiles - first, k->block), split = item % k->splits;
    int64_t begin = k->panels * split / k->splits, end = k->panels * (split + 1) / k->splits;
    for (int64_t t = 0; t < tiles; t++) tile_in(up, k, first + t, v + t * k->ldv);
    for (int64_t p = begin; p < end; p += GROUP) {
        int64_t panels = min64(end - p, GROUP), channels = min64(k->O - p * COLS, panels * COLS);
        for (int i = 0; i < products * products; i++) {
            int plane = up ? up_input_of_product[i / products] * inputs + up_input_of_product[i % products] : i;
            product(k, tiles, v + plane * k->plane_v, k->filters + (i * k->panels + p) * k->C * COLS, panels,
                    m + i * k->plane_m);
        }
        for (int64_t t = 0; t < tiles; t++) tile_out(up, k, first + t, m + t * k->ldm, p * COLS, channels);
    }
}

static void run_plain(const struct work *k, int64_t item, float *v, float *m)
{
    run_block(false, k, item, v, m);
}

static void run_up(const struct work *k, int64_t item, float *v, float *m)
{
    run_block(true, k, item, v, m);
}

/* ------------------------------------------------------------------------------------------------------ */

/* Blocks small enough for all threads to have one, their panels split when there are too few tiles for that. */
static struct work plan(const struct backend *be, const struct tensor *x, const struct tensor *bias, const struct tensor *y)
{
    struct work k = {.x = x, .bias = bias, .y = y, .C = x->shape[3], .O = y->shape[3]};
    k.panels = ceil_div(k.O, COLS);
    k.tiles_y = ceil_div(y->shape[1], TILE);
    k.tiles_x = ceil_div(y->shape[2], TILE);
    k.tiles = y->shape[0] * k.tiles_y * k.tiles_x;
    int64_t blocks = ceil_div(ceil_div(k.tiles, BLOCK), be->threads) * be->threads;
    k.block = ceil_div(k.tiles, blocks);
    if (k.block < ROWS) k.block = min64(ROWS, k.tiles);
    k.splits = min64(ceil_div(be->threads, ceil_div(k.tiles, k.block)), k.panels);
    k.ldv = ceil_div(k.C, VLEN) * VLEN + SPREAD;
    k.plane_v = k.block * k.ldv + SPREAD;
    k.ldm = min64(k.panels, GROUP) * COLS + SPREAD;
    k.plane_m = k.block * k.ldm + SPREAD;
    return k;
}

aim_status KERNEL(winograd_conv2d)(struct backend *be, const struct tensor *x, const struct tensor *w,
                                   const struct tensor *bias, const struct conv2d *how, struct tensor *y)
{
    struct work k = plan(be, x, bias, y);
    int64_t inputs = how->upsample ? UP_INPUTS * UP_INPUTS : PLAIN_INPUTS * PLAIN_INPUTS;
    int64_t products = how->upsample ? UP_PRODUCTS * UP_PRODUCTS : PLAIN_PRODUCTS * PLAIN_PRODUCTS;
    int64_t per_thread = inputs * k.plane_v + products * k.plane_m;
    struct filters *own;
    k.filters = get_filters(be, w, how->upsample, &own);
    if (!k.filters) return AIM_ERR_MEMORY;
    float *zeros = mem_zero(be->ctx, (size_t)k.C, sizeof(float), MEM_ACTIVATIONS);
    aim_status status = zeros ? AIM_OK : AIM_ERR_MEMORY;
    int64_t items = zeros ? ceil_div(k.tiles, k.block) * k.splits : 0;
    k.zeros = zeros;
#pragma omp parallel num_threads(be->threads)
    {
        /* Each thread's own block: one for all would outgrow what malloc keeps, and cost page faults at every call. */
        float *v;
#pragma omp critical(winograd_scratch)
        {
            v = mem_array(be->ctx, (size_t)per_thread, sizeof(float), MEM_ACTIVATIONS);
            if (!v) status = AIM_ERR_MEMORY;
        }
#pragma omp for schedule(dynamic)
        for (int64_t item = 0; item < items; item++)
            if (v) (how->upsample ? run_up : run_plain)(&k, item, v, v + inputs * k.plane_v);
        mem_free(v);
    }
    mem_free(zeros);
    mem_free(own);
    return status;
}

#endif
