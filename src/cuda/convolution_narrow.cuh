/*
 * What the kernels of narrow maps share: a tile of a picture, rows of it on the way into shared memory. A tile is some rows
 * high and as wide as a block's strips of 16 pixels; its rows come in steps of three, into a ring of three steps.
 */
#ifndef AIM_CUDA_CONVOLUTION_NARROW_CUH
#define AIM_CUDA_CONVOLUTION_NARROW_CUH

#include "cuda/convolution.cuh"
#include "cuda/mma.cuh"
#include "cuda/values.cuh"

enum {
    STRIP = 16, /* pixels: the rows of a tensor core's product */
    STEP = 3,   /* rows of a map: those that a row of a 3x3 filter meets */
    RING = 3,   /* steps in shared memory: one in use, two on their way */
    TAPS = 9,
    MOST_ROWS = 64,  /* of a tile: with the two around it a multiple of STEP */
    LEAST_ROWS = 16, /* the same for 18 */
    MANY = 256       /* tiles that fill a GPU */
};

/* Maps of H x W with tiles of `rows` rows. */
struct tiling {
    int H, W, rows;
    unsigned across, down, steps, count; /* tiles of a picture; steps of a tile; tiles of all pictures */
};

static inline struct tiling tiling_of(int64_t N, int64_t H, int64_t W, int width)
{
    struct tiling t = {};
    t.H = (int)H, t.W = (int)W;
    t.across = (unsigned)divide_up(W, width);
    t.rows = MOST_ROWS;
    while (t.rows > LEAST_ROWS && N * t.across * divide_up(H, t.rows) < MANY) t.rows /= 2;
    t.down = (unsigned)divide_up(H, t.rows);
    t.steps = (unsigned)divide_up(t.rows + STEP - 1, STEP);
    t.count = (unsigned)N * t.across * t.down;
    return t;
}

/* Where a block is: it takes every gridDim.x-th tile, step by step. */
struct walk {
    unsigned number, step, place; /* place: of the step in the ring */
};

static __device__ inline void walk_on(const struct tiling &t, struct walk *w)
{
    w->place = w->place == RING - 1 ? 0 : w->place + 1;
    if (++w->step < t.steps) return;
    w->step = 0;
    w->number += gridDim.x;
}

/* The tile's picture, first column (in widths of tiles) and row. */
struct tile {
    int picture, x, y;
};

static __device__ inline struct tile tile_of(const struct tiling &t, unsigned number)
{
    unsigned line = number / t.across;
    struct tile p;
    p.x = (int)(number - line * t.across);
    p.picture = (int)(line / t.down);
    p.y = (int)(line % t.down) * t.rows;
    return p;
}

/* Which 16 bytes of a pixel of C channels hold its channels 8 part .. 8 part + 7: eight pixels in a row have them in
 * different banks. */
template <int C> static __device__ inline int shuffled(int pixel, int part)
{
    static_assert(C == 16 || C == 32 || C == 64, "2, 4 or 8 parts");
    return part ^ (C == 16 ? pixel / 4 % 2 : C == 32 ? pixel / 2 % 4 : pixel % 8);
}

/* Where a lane's row of load_matrices begins, in values from the start of a row of pixels of C channels. */
template <int C> static __device__ inline int place_in_row(int pixel, int part)
{
    return pixel * C + shuffled<C>(pixel, part) * 8;
}

/* How a map of H x W is made of what lies in memory: that itself; half as large, and each of its pixels fills 2 x 2; or each
 * stands at the lower right of 2 x 2, the others being zero; or that itself, of up to THIN_CHANNELS channels, filled up. */
enum reading { PLAIN, ENLARGED, APART, THIN };

enum { THIN_CHANNELS = 8, THIN_FILLED = 16 };

/* Pixels that lie in memory. */
template <int READING> static __device__ inline int64_t pixels_of(const struct tiling &t)
{
    return READING == PLAIN || READING == THIN ? (int64_t)t.H * t.W : (int64_t)(t.H / 2) * (t.W / 2);
}

/*
 * Starts copying STEP rows from row y on, PIXELS pixels from x on, of a map of C channels: rows (STEP, PIXELS, C). What is not
 * in rows 0 .. H-1 and columns 0 .. W-1 becomes zero.
 */
template <int C, int PIXELS, int READING, int THREADS>
static __device__ inline void start_rows(const bf16 *map, int H, int W, int y, int x, bf16 *rows)
{
    constexpr int PARTS = C / 8, EACH = PIXELS * PARTS;
    for (int i = threadIdx.x; i < STEP * EACH; i += THREADS) {
        int row = i / EACH, pixel = i % EACH / PARTS, part = i % PARTS, iy = y + row, ix = x + pixel;
        bool inside = iy >= 0 && ix >= 0 && iy < H && ix < W && (READING != APART || (iy & ix & 1));
        int from = READING == PLAIN ? iy * W + ix : (iy / 2) * (W / 2) + ix / 2;
        copy_start(rows + row * PIXELS * C + place_in_row<C>(pixel, part), map + (inside ? from * C + part * 8 : 0), inside);
    }
}

/* Zeros in what start_thin leaves out of `count` rows. */
template <int PIXELS, int THREADS> static __device__ inline void clear_thin(bf16 *rows, int count)
{
    for (int i = threadIdx.x; i < count * PIXELS; i += THREADS)
        store<8>(rows + i / PIXELS * PIXELS * THIN_FILLED + place_in_row<THIN_FILLED>(i % PIXELS, 1), zeros<8>());
}

/* start_rows for a map of `channels` channels, one by one: the first 8 channels of a pixel are there at the next barrier. */
template <int PIXELS, int THREADS>
static __device__ inline void start_thin(const bf16 *map, int channels, int H, int W, int y, int x, bf16 *rows)
{
    for (int i = threadIdx.x; i < STEP * PIXELS; i += THREADS) {
        int row = i / PIXELS, pixel = i % PIXELS, iy = y + row, ix = x + pixel;
        bool inside = iy >= 0 && ix >= 0 && iy < H && ix < W;
        const bf16 *from = map + (inside ? (iy * W + ix) * channels : 0);
        pack<8> in;
#pragma unroll
        for (int c = 0; c < 8; c++) in.v[c] = inside && c < channels ? value(from[c]) : 0.0f;
        store<8>(rows + row * PIXELS * THIN_FILLED + place_in_row<THIN_FILLED>(pixel, 0), in);
    }
}

/* Lets a kernel have the shared memory that it asks for. */
template <typename Kernel> static inline aim_status allow_shared(struct backend *be, Kernel kernel, size_t bytes)
{
    return cuda_check(be->ctx, cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes),
                      "shared memory");
}

#endif
