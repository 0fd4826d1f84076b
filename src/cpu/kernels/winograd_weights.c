/*
 * dw of a 3x3 convolution by Winograd's transforms. From y = Aᵀ [(G g) ⊙ (Bᵀ d)] of winograd_transform.h follows
 *
 *     dg = Gᵀ Σ_tiles [(A dy) ⊙ (Bᵀ d)]
 *
 * in two dimensions a matrix product for each frequency, Σ over tiles of (output channels) x (input channels), which
 * takes a quarter of the direct sum's multiplications. Blocks of tiles are transformed and multiplied one after another,
 * each by all threads; every sum is one chain over the tiles, however many threads there are.
 */
#include "cpu/kernels/conv.h"

#include "cpu/kernels/kernels.h"

#if VLEN >= 8

#include "cpu/kernels/winograd_transform.h"

enum {
    COLS = 2 * VLEN,            /* input channels of a panel */
    ROWS = VLEN == 16 ? 12 : 6, /* output channels at a time: ROWS x 2 sums fill the registers */
    TASK_TILES = 8,             /* of ROWS output channels in a thread's task */
    BLOCK = 128,                /* tiles of a block */
    SPREAD = 16,                /* floats between rows, so that they do not fall on the same cache lines */
};

struct work {
    const struct tensor *x, *dy;
    bool up;
    int64_t I, O, panels, row_tiles; /* COLS and ROWS make up I and O */
    int64_t tiles_x, tiles_y, tiles;
    int64_t ldy, plane_v, plane_y, plane_u;
    float *v; /* (input frequency, panel, tile, COLS) */
    float *y; /* (frequency, tile, ldy) */
    float *u; /* (frequency, output channel, panels * COLS): the sums */
};

static int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static inline vf load_live(const float *p, int64_t live)
{
    return live >= VLEN ? vload(p) : live > 0 ? vload_part(p, live) : (vf){0};
}

/* A m, one dimension: what reaches the products from the gradients of four outputs. */
static inline __attribute__((always_inline)) void spread_output(const bool up, const vf *m, vf *out, const int step)
{
    if (up) {
        out[0] = m[0];
        out[step] = m[0] + m[1] + m[2] + m[3];
        out[2 * step] = m[2] - m[0];
        out[3 * step] = m[1] - m[3];
        out[4 * step] = m[3];
        return;
    }
    vf even_a = m[0] + 0.5f * m[2], odd_a = (0.5f * SQRT2) * (m[1] + 0.5f * m[3]);
    vf even_b = m[0] + 2.0f * m[2], odd_b = SQRT2 * (m[1] + 2.0f * m[3]);
    out[0] = m[0];
    out[step] = even_a + odd_a;
    out[2 * step] = even_a - odd_a;
    out[3 * step] = even_b + odd_b;
    out[4 * step] = even_b - odd_b;
    out[5 * step] = m[3];
}

/* Gᵀ u, likewise. */
static inline __attribute__((always_inline)) void gather_filter(const bool up, const vf *u, vf *out, const int step)
{
    if (up) {
        out[0] = u[0] + 0.5f * (u[1] + u[2] + u[3]);
        out[step] = 0.5f * (u[1] - u[2] + u[3]);
        out[2 * step] = 0.5f * (u[1] - u[2] - u[3]) + u[4];
        return;
    }
    vf even_a = u[1] + u[2], even_b = u[3] + u[4];
    out[0] = u[0] - (2.0f / 3) * even_a + (1.0f / 6) * even_b;
    out[step] = (SQRT2 / 6) * (u[3] - u[4]) - (SQRT2 / 3) * (u[1] - u[2]);
    out[2 * step] = (1.0f / 3) * (even_b - even_a) + u[5];
}

/* Tile `tile` of x, all channels, to place t of the block. */
static inline __attribute__((always_inline)) void tile_of_x(const bool up, const struct work *k, int64_t tile, int64_t t)
{
    const int n = up ? UP_INPUTS : PLAIN_INPUTS, stride = up ? TILE / 2 : TILE;
    int64_t H = k->x->shape[1], W = k->x->shape[2], C = k->I, picture = tile / (k->tiles_y * k->tiles_x);
    int64_t y0 = tile / k->tiles_x % k->tiles_y * stride - 1, x0 = tile % k->tiles_x * stride - 1;
    for (int64_t c = 0; c < k->panels * COLS; c += VLEN) {
        vf columns[MAX_INPUTS * MAX_INPUTS], d[MAX_INPUTS], out[MAX_INPUTS];
        for (int x = 0; x < n; x++) {
            for (int y = 0; y < n; y++) {
                bool inside = y0 + y >= 0 && x0 + x >= 0 && y0 + y < H && x0 + x < W;
                d[y] = inside ? load_live(f32(k->x) + ((picture * H + y0 + y) * W + x0 + x) * C + c, C - c) : (vf){0};
            }
            transform_input(up, d, columns + x, n);
        }
        float *to = k->v + (c / COLS * BLOCK + t) * COLS + c % COLS;
        for (int y = 0; y < n; y++) {
            transform_input(up, columns + y * n, out, 1);
            for (int x = 0; x < n; x++) vstore(to + (y * n + x) * k->plane_v, out[x]);
        }
    }
}

/* The same of dy. */
static inline __attribute__((always_inline)) void tile_of_dy(const bool up, const struct work *k, int64_t tile, int64_t t)
{
    const int n = up ? UP_PRODUCTS : PLAIN_PRODUCTS;
    int64_t H = k->dy->shape[1], W = k->dy->shape[2], C = k->O, picture = tile / (k->tiles_y * k->tiles_x);
    int64_t y0 = tile / k->tiles_x % k->tiles_y * TILE, x0 = tile % k->tiles_x * TILE;
    for (int64_t c = 0; c < k->row_tiles * ROWS; c += VLEN) {
        vf columns[MAX_PRODUCTS * TILE], m[TILE], out[MAX_PRODUCTS];
        for (int x = 0; x < TILE; x++) {
            for (int y = 0; y < TILE; y++) {
                bool inside = y0 + y < H && x0 + x < W;
                m[y] = inside ? load_live(f32(k->dy) + ((picture * H + y0 + y) * W + x0 + x) * C + c, C - c) : (vf){0};
            }
            spread_output(up, m, columns + x, TILE);
        }
        float *to = k->y + t * k->ldy + c;
        for (int y = 0; y < n; y++) {
            spread_output(up, columns + y * TILE, out, 1);
            for (int x = 0; x < n; x++) vstore(to + (y * n + x) * k->plane_y, out[x]);
        }
    }
}

/* u (ROWS, COLS) += Σ over tiles of y (tiles, ROWS) by v (tiles, COLS) */
static void product_tile(int64_t tiles, const float *y, int64_t ldy, const float *v, float *u, int64_t ldu)
{
    vf sum[ROWS][2];
    for (int r = 0; r < ROWS; r++)
        for (int i = 0; i < 2; i++) sum[r][i] = vload(u + r * ldu + i * VLEN);
    for (int64_t t = 0; t < tiles; t++) {
        vf v0 = vload(v + t * COLS), v1 = vload(v + t * COLS + VLEN);
        for (int r = 0; r < ROWS; r++) {
            vf yr = vset(y[t * ldy + r]);
            sum[r][0] += v0 * yr;
            sum[r][1] += v1 * yr;
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int i = 0; i < 2; i++) vstore(u + r * ldu + i * VLEN, sum[r][i]);
}

/* The products of one frequency, of some output channels. */
static void product(const struct work *k, int64_t tiles, int frequency, int64_t first_row_tile)
{
    int plane = k->up ? up_input_of_product[frequency / UP_PRODUCTS] * UP_INPUTS + up_input_of_product[frequency % UP_PRODUCTS]
                      : frequency;
    int64_t end = first_row_tile + TASK_TILES < k->row_tiles ? first_row_tile + TASK_TILES : k->row_tiles;
    for (int64_t r = first_row_tile; r < end; r++)
        for (int64_t p = 0; p < k->panels; p++)
            product_tile(tiles, k->y + frequency * k->plane_y + r * ROWS, k->ldy, k->v + plane * k->plane_v + p * BLOCK * COLS,
                         k->u + frequency * k->plane_u + (r * ROWS * k->panels + p) * COLS, k->panels * COLS);
}

/* Row o of dw (O,I,3,3) from the sums. */
static inline __attribute__((always_inline)) void filters_out(const bool up, const struct work *k, int64_t o, float *dw)
{
    const int n = up ? UP_PRODUCTS : PLAIN_PRODUCTS;
    for (int64_t c = 0; c < k->I; c += VLEN) {
        vf columns[3 * MAX_PRODUCTS], u[MAX_PRODUCTS], out[3];
        int64_t live = k->I - c < VLEN ? k->I - c : VLEN;
        for (int x = 0; x < n; x++) {
            for (int y = 0; y < n; y++) u[y] = vload(k->u + (y * n + x) * k->plane_u + o * k->panels * COLS + c);
            gather_filter(up, u, columns + x, n);
        }
        for (int y = 0; y < 3; y++) {
            gather_filter(up, columns + y * n, out, 1);
            for (int x = 0; x < 3; x++)
                for (int64_t i = 0; i < live; i++) dw[(o * k->I + c + i) * 9 + y * 3 + x] = out[x][i];
        }
    }
}

static struct work plan(const struct tensor *x, bool up, const struct tensor *dy)
{
    struct work k = {.x = x, .dy = dy, .up = up, .I = x->shape[3], .O = dy->shape[3]};
    k.panels = ceil_div(k.I, COLS);
    k.row_tiles = ceil_div(k.O, ROWS);
    k.tiles_y = ceil_div(dy->shape[1], TILE);
    k.tiles_x = ceil_div(dy->shape[2], TILE);
    k.tiles = dy->shape[0] * k.tiles_y * k.tiles_x;
    k.ldy = ceil_div(k.row_tiles * ROWS, VLEN) * VLEN + SPREAD;
    k.plane_v = k.panels * BLOCK * COLS + SPREAD;
    k.plane_y = BLOCK * k.ldy + SPREAD;
    k.plane_u = k.row_tiles * ROWS * k.panels * COLS + SPREAD;
    return k;
}

static void run(const struct backend *be, const struct work *k, float *dw)
{
    const int products = k->up ? UP_PRODUCTS * UP_PRODUCTS : PLAIN_PRODUCTS * PLAIN_PRODUCTS;
    int64_t tasks = ceil_div(k->row_tiles, TASK_TILES);
#pragma omp parallel num_threads(be->threads)
    {
        for (int64_t first = 0; first < k->tiles; first += BLOCK) {
            int64_t count = k->tiles - first < BLOCK ? k->tiles - first : BLOCK;
#pragma omp for schedule(static)
            for (int64_t t = 0; t < count; t++) {
                if (k->up) {
                    tile_of_x(true, k, first + t, t);
                    tile_of_dy(true, k, first + t, t);
                } else {
                    tile_of_x(false, k, first + t, t);
                    tile_of_dy(false, k, first + t, t);
                }
            }
#pragma omp for schedule(static)
            for (int64_t i = 0; i < products * tasks; i++) product(k, count, (int)(i / tasks), i % tasks * TASK_TILES);
        }
#pragma omp for schedule(static)
        for (int64_t o = 0; o < k->O; o++) {
            if (k->up)
                filters_out(true, k, o, dw);
            else
                filters_out(false, k, o, dw);
        }
    }
}

aim_status KERNEL(winograd_weights)(struct backend *be, const struct tensor *x, const struct conv2d *how,
                                    const struct tensor *dy, struct tensor *dw)
{
    struct work k = plan(x, how->upsample, dy);
    int64_t inputs = how->upsample ? UP_INPUTS * UP_INPUTS : PLAIN_INPUTS * PLAIN_INPUTS;
    int64_t products = how->upsample ? UP_PRODUCTS * UP_PRODUCTS : PLAIN_PRODUCTS * PLAIN_PRODUCTS;
    k.v = mem_array(be->ctx, (size_t)(inputs * k.plane_v), sizeof(float), MEM_ACTIVATIONS);
    k.y = mem_array(be->ctx, (size_t)(products * k.plane_y), sizeof(float), MEM_ACTIVATIONS);
    k.u = mem_zero(be->ctx, (size_t)(products * k.plane_u), sizeof(float), MEM_ACTIVATIONS);
    aim_status status = k.v && k.y && k.u ? AIM_OK : AIM_ERR_MEMORY;
    if (status == AIM_OK) run(be, &k, f32(dw));
    mem_free(k.v);
    mem_free(k.y);
    mem_free(k.u);
    return status;
}

#endif
