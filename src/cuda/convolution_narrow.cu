/*
 * 3x3 convolutions of narrow bfloat16 maps, of 32 or 64 channels or of the few of a picture, where a library's tiles stay half
 * empty. A warp has a strip
 * of 16 pixels across and 16 or 8 output channels, and goes down the picture: its filters stay in registers, and what it loads
 * of a row of x serves three rows of y. Every output is one chain of sums, in an order that follows from the shape.
 */
#include "cuda/convolution_narrow.cuh"

enum { NARROW_THREADS = 256, NARROW_WARPS = NARROW_THREADS / WARP, BLOCKS_PER_PROCESSOR = 2 };

/* ------------------------------------------------------------------------------------------------- filters
 *
 * In the order of registers: (group of channels of y, tap, 16 channels of x, lane, tile of 8 channels of y, 2) pairs of
 * values. With two tiles a lane's four columns are neighbouring channels.
 */

/* Channel of column `column` of tile `tile` of a group. */
static __device__ inline int channel_of(int tiles, int tile, int column)
{
    return tiles == 1 ? column : column / 2 * 4 + tile * 2 + column % 2;
}

struct filter_order {
    int I, filled, O, tiles, out, in; /* out, in: how far apart the filters of two channels of y, of x lie in w */
    bool turned;                      /* the gradient by x: taps from the other side */
};

static __global__ void order_narrow(const float *w, struct filter_order f, int count, uint32_t *to)
{
    int at = (int)(blockIdx.x * blockDim.x + threadIdx.x), rest = at;
    if (at >= count) return;
    int half = rest % 2, tile = (rest /= 2) % f.tiles, lane = (rest /= f.tiles) % WARP, k = (rest /= WARP) % (f.filled / 16);
    int tap = (rest /= f.filled / 16) % TAPS, group = rest / TAPS;
    int o = group * 8 * f.tiles + channel_of(f.tiles, tile, lane / 4), i = k * 16 + half * 8 + lane % 4 * 2;
    const float *from = w + o * f.out + i * f.in + (f.turned ? TAPS - 1 - tap : tap);
    float first = o < f.O && i < f.I ? from[0] : 0.0f, second = o < f.O && i + 1 < f.I ? from[f.in] : 0.0f;
    to[at] = bf16_pair(first, second);
}

/* Channels of x in the kernel's eyes. */
static int filled(int64_t I)
{
    return I <= THIN_CHANNELS ? THIN_FILLED : (int)I;
}

/* Channels of y of a warp, in tiles of 8; the filters in registers are at most 72 a lane. */
static int tiles_of(int64_t I)
{
    return I <= 32 ? 2 : 1;
}

static int64_t groups_of(int64_t I, int64_t O)
{
    return divide_up(O, 8 * tiles_of(I));
}

static int64_t filter_pairs(int64_t I, int64_t O)
{
    return groups_of(I, O) * TAPS * (filled(I) / 16) * WARP * tiles_of(I) * 2;
}

static void order(struct backend *be, const float *w, struct filter_order f, void *to)
{
    int count = (int)filter_pairs(f.I, f.O);
    order_narrow<<<(unsigned)divide_up(count, 256), 256, 0, cuda_of(be)->stream>>>(w, f, count, (uint32_t *)to);
}

/* w (O,I,3,3), for y and for dx */
static void order_forward(struct backend *be, const struct conv *c, const float *w, void *to)
{
    order(be, w, {(int)c->I, filled(c->I), (int)c->O, tiles_of(c->I), (int)c->I * TAPS, TAPS, false}, to);
}

static void order_inputs(struct backend *be, const struct conv *c, const float *w, void *to)
{
    order(be, w, {(int)c->O, filled(c->O), (int)c->I, tiles_of(c->O), TAPS, (int)c->I * TAPS, true}, to);
}

/* -------------------------------------------------------------------------------------------------- kernel */

/* What y is, of a map of x's size: all of it; the sums of each 2 x 2 pixels, an enlargement's gradient; the lower right ones of
 * them, a convolution that goes on by two pixels. */
enum writing { WHOLE, SUMMED, HALVED };

struct narrow {
    const bf16 *x;
    const uint32_t *filters;
    const float *bias; /* NULL: none */
    bf16 *y;
    int I, O;
    bool add; /* to y */
    struct tiling t;
};

/* V channels from c on of y's value at `pixel` */
template <int V> static __device__ inline void put_channels(const struct narrow &n, int64_t pixel, int c, const pack<V> &v)
{
    bf16 *to = n.y + pixel * n.O + c;
    if (n.O % V == 0) {
        if (c >= n.O) return;
        if (n.add)
            store_add<V>(to, v);
        else
            store<V>(to, v);
        return;
    }
#pragma unroll
    for (int j = 0; j < V; j++)
        if (c + j < n.O) put(to + j, n.add ? value(to[j]) + v.v[j] : v.v[j]);
}

/* A finished row of a warp: sums[tile][4] of its 16 pixels, from column x on of row y. `above` is the row before. */
template <int TILES, int WRITING>
static __device__ inline void finish_row(const struct narrow &n, int64_t picture, int y, int x, int channel,
                                         const float (&sums)[TILES][4], float (&above)[TILES][4])
{
    const int g = threadIdx.x % WARP / 4, H = n.t.H, W = n.t.W;
    if (WRITING == HALVED && y % 2 == 0) return;
    if (WRITING == SUMMED && y % 2 == 0) {
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int e = 0; e < 4; e++) above[t][e] = sums[t][e];
        return;
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        pack<2 * TILES> v;
#pragma unroll
        for (int j = 0; j < 2 * TILES; j++) {
            v.v[j] = sums[j / 2][half * 2 + j % 2];
            if (WRITING == SUMMED) {
                v.v[j] += above[j / 2][half * 2 + j % 2];
                v.v[j] += __shfl_xor_sync(0xffffffffu, v.v[j], 4); /* the pixel beside it */
            }
        }
        int at = x + g + half * 8;
        if (at >= W) continue;
        if (WRITING == WHOLE)
            put_channels(n, (picture * H + y) * W + at, channel, v);
        else if (g % 2 == (WRITING == HALVED) && at / 2 < W / 2)
            put_channels(n, (picture * (H / 2) + y / 2) * (W / 2) + at / 2, channel, v);
    }
}

/* A row of x, whose number is j beyond a multiple of STEP, meets every BY-th row of taps from FIRST on. */
template <int I, int TILES, int FIRST, int BY>
static __device__ inline void meet(const bf16 *row, const int (&from)[STEP], const uint32_t (&filters)[TAPS][I / 16][TILES * 2],
                                   int j, float (&sums)[STEP][TILES][4])
{
#pragma unroll
    for (int tx = 0; tx < STEP; tx++)
#pragma unroll
        for (int k = 0; k < I / 16; k++) {
            uint32_t a[4];
            load_matrices(a, row + (from[tx] ^ k * 16));
#pragma unroll
            for (int ty = FIRST; ty < STEP; ty += BY)
#pragma unroll
                for (int t = 0; t < TILES; t++)
                    mma(sums[(j - ty + STEP) % STEP][t], a, filters[ty * STEP + tx][k][t * 2],
                        filters[ty * STEP + tx][k][t * 2 + 1]);
        }
}

/* I channels of x; TILES of 8 channels of y a warp; STRIPS beside each other in a block. */
template <int I, int TILES, int STRIPS, int READING, int WRITING>
static __global__ void __launch_bounds__(NARROW_THREADS, BLOCKS_PER_PROCESSOR) narrow_forward(struct narrow n)
{
    constexpr int K = I / 16, PIXELS = STRIPS * STRIP + 2, ROW = PIXELS * I, IN_STEP = STEP * ROW;
    extern __shared__ __align__(128) bf16 ring[];
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, strip = warp % STRIPS, group = warp / STRIPS;
    const int channel = group * 8 * TILES + lane % 4 * 2 * TILES; /* a lane's first one of y */
    const int64_t map = pixels_of<READING>(n.t) * (READING == THIN ? n.I : I);
    struct walk now = {blockIdx.x, 0, 0}, ahead = now;
    auto start = [&]() {
        if (ahead.number < n.t.count) {
            struct tile p = tile_of(n.t, ahead.number);
            const bf16 *from = n.x + p.picture * map;
            const int y = p.y - 1 + (int)ahead.step * STEP, x = p.x * STRIPS * STRIP - 1;
            bf16 *to = ring + ahead.place * IN_STEP;
            if constexpr (READING == THIN)
                start_thin<PIXELS, NARROW_THREADS>(from, n.I, n.t.H, n.t.W, y, x, to);
            else
                start_rows<I, PIXELS, READING, NARROW_THREADS>(from, n.t.H, n.t.W, y, x, to);
        }
        copy_commit();
        walk_on(n.t, &ahead);
    };
    if constexpr (READING == THIN) clear_thin<PIXELS, NARROW_THREADS>(ring, RING * STEP);
    start();
    start();

    uint32_t filters[TAPS][K][TILES * 2];
#pragma unroll
    for (int i = 0; i < TAPS * K; i++) {
        auto raw = load_raw<TILES * 2>(n.filters + ((group * TAPS * K + i) * WARP + lane) * TILES * 2, true);
#pragma unroll
        for (int r = 0; r < TILES * 2; r++) filters[i / K][i % K][r] = raw.v[r];
    }
    float bias[2 * TILES], sums[STEP][TILES][4], above[TILES][4]; /* sums: of the rows of y under way, by their number % 3 */
#pragma unroll
    for (int j = 0; j < 2 * TILES; j++) bias[j] = n.bias && channel + j < n.O ? n.bias[channel + j] : 0.0f;
#pragma unroll
    for (int i = 0; i < STEP * TILES * 4; i++) sums[i / TILES / 4][i / 4 % TILES][i % 4] = bias[i / 4 % TILES * 2 + i % 2];
    int from[STEP]; /* a lane's row of load_matrices, by the tap's column */
#pragma unroll
    for (int tx = 0; tx < STEP; tx++) from[tx] = place_in_row<I>(strip * STRIP + tx + lane % 16, lane / 16);

    for (; now.number < n.t.count; walk_on(n.t, &now)) {
        copy_wait<1>();
        __syncthreads();
        start();
        const struct tile p = tile_of(n.t, now.number);
#pragma unroll
        for (int j = 0; j < STEP; j++) {
            const bf16 *row = ring + now.place * IN_STEP + j * ROW;
            const bool even = (now.step + j) % 2 == 0; /* as now.step * STEP + j is: of x, before the tile's first row */
            if (READING == PLAIN && WRITING == HALVED && even) /* rows of y that are wanted have odd numbers */
                meet<I, TILES, 1, 2>(row, from, filters, j, sums);
            else if (READING == PLAIN && WRITING == HALVED)
                meet<I, TILES, 0, 2>(row, from, filters, j, sums);
            else if (READING != APART || even) /* the others are zero */
                meet<I, TILES, 0, 1>(row, from, filters, j, sums);
            constexpr int LAST = STEP - 1; /* this row was the last one for y's row before the one before */
            const int done = (int)now.step * STEP + j - LAST, slot = (j + 1) % STEP;
            if (done >= 0 && done < n.t.rows && p.y + done < n.t.H)
                finish_row<TILES, WRITING>(n, p.picture, p.y + done, (p.x * STRIPS + strip) * STRIP, channel, sums[slot],
                                           above);
#pragma unroll
            for (int i = 0; i < TILES * 4; i++) sums[slot][i / 4][i % 4] = bias[i / 4 * 2 + i % 2];
        }
    }
    copy_wait<0>();
}

/* ---------------------------------------------------------------------------------------------------- calls */

template <int I, int TILES, int STRIPS, int READING, int WRITING>
static aim_status launch(struct backend *be, const struct tensor *x, struct narrow n, int64_t H, int64_t W)
{
    constexpr size_t shared = RING * STEP * (size_t)(STRIPS * STRIP + 2) * I * sizeof(bf16);
    auto kernel = narrow_forward<I, TILES, STRIPS, READING, WRITING>;
    TRY(allow_shared(be, kernel, shared));
    n.t = tiling_of(x->shape[0], H, W, STRIPS * STRIP);
    unsigned blocks = (unsigned)min64((int64_t)n.t.count, (int64_t)cuda_of(be)->multiprocessors * BLOCKS_PER_PROCESSOR);
    kernel<<<blocks, NARROW_THREADS, shared, cuda_of(be)->stream>>>(n);
    return cuda_launched(be, "conv2d");
}

/* H x W: of the larger side */
template <int READING, int WRITING>
static aim_status run(struct backend *be, const struct tensor *x, struct narrow n, int64_t H, int64_t W)
{
    int64_t I = tensor_cols(x), groups = groups_of(I, n.O);
    n.I = (int)I;
    if (I == 32 && groups == 1) return launch<32, 2, 8, READING, WRITING>(be, x, n, H, W);
    if (I == 32 && groups == 2) return launch<32, 2, 4, READING, WRITING>(be, x, n, H, W);
    if (I == 32) return launch<32, 2, 2, READING, WRITING>(be, x, n, H, W);
    if (groups == 4) return launch<64, 1, 2, READING, WRITING>(be, x, n, H, W);
    return launch<64, 1, 1, READING, WRITING>(be, x, n, H, W);
}

/* The same for a picture's few channels. */
static aim_status run_thin(struct backend *be, const struct tensor *x, struct narrow n, int64_t H, int64_t W)
{
    int64_t groups = groups_of(tensor_cols(x), n.O);
    n.I = (int)tensor_cols(x);
    if (groups == 2) return launch<THIN_FILLED, 2, 4, THIN, WHOLE>(be, x, n, H, W);
    return launch<THIN_FILLED, 2, 2, THIN, WHOLE>(be, x, n, H, W);
}

/* Channels of x, and of y. */
static bool widths_serve(int64_t I, int64_t O, const struct conv2d *how)
{
    bool thin = I <= THIN_CHANNELS && how->stride == 1 && !how->upsample;
    return ((thin || I == 32 || I == 64) && (O == 32 || O == 64)) || (I == 32 && O <= 16);
}

static bool how_serves(const struct tensor *x, int64_t kernel, const struct conv2d *how)
{
    const int64_t most = INT32_MAX / 64; /* pixels of a picture: its values are counted in 32 bits */
    bool same = how->stride == 1 && how->pad_before == 1 && how->pad_after == 1;
    bool halves =
        how->stride == 2 && how->pad_before == 0 && how->pad_after == 1 && !how->upsample; /* the odd ones of `same` */
    return x->type == T_BF16 && kernel == 3 && (same || halves) && x->shape[1] * x->shape[2] * (how->upsample ? 4 : 1) < most;
}

bool conv_narrow_serves(const struct tensor *x, const struct tensor *y, int64_t kernel, const struct conv2d *how)
{
    return how_serves(x, kernel, how) && widths_serve(x->shape[3], y->shape[3], how) && aligned(x) && aligned(y);
}

bool conv_narrow_serves_inputs(const struct tensor *dx, const struct tensor *dy, int64_t kernel, const struct conv2d *how)
{
    return how_serves(dx, kernel, how) && widths_serve(dy->shape[3], dx->shape[3], how) && aligned(dx) && aligned(dy);
}

/* The filters in order: what is kept of them, or made now. */
static const void *filters_of(struct backend *be, const struct conv *c, const struct tensor *w, int64_t pairs, conv_form *form)
{
    const void *kept = conv_kept(be, c, w, pairs * 2, form);
    if (kept) return kept;
    void *room = cuda_scratch(be, (size_t)pairs * sizeof(uint32_t));
    if (room) form(be, c, f32(w), room);
    return room;
}

aim_status conv_narrow(struct backend *be, const struct tensor *x, const struct tensor *w, const struct tensor *bias,
                       const struct conv2d *how, struct tensor *y)
{
    struct conv c = {};
    c.type = T_BF16, c.I = x->shape[3], c.O = y->shape[3];
    struct narrow n = {};
    n.filters = (const uint32_t *)filters_of(be, &c, w, filter_pairs(c.I, c.O), order_forward);
    if (!n.filters) return AIM_ERR_MEMORY;
    n.x = data_of<bf16>(x), n.bias = data_of<float>(bias), n.y = data_of<bf16>(y), n.O = (int)c.O;
    if (c.I <= THIN_CHANNELS) return run_thin(be, x, n, y->shape[1], y->shape[2]);
    if (how->upsample) return run<ENLARGED, WHOLE>(be, x, n, y->shape[1], y->shape[2]);
    if (how->stride == 2) return run<PLAIN, HALVED>(be, x, n, x->shape[1], x->shape[2]);
    return run<PLAIN, WHOLE>(be, x, n, y->shape[1], y->shape[2]);
}

aim_status conv_narrow_inputs(struct backend *be, const struct tensor *w, const struct conv2d *how, const struct tensor *dy,
                              bool fresh, struct tensor *dx)
{
    struct conv c = {};
    c.type = T_BF16, c.I = dx->shape[3], c.O = dy->shape[3];
    struct narrow n = {};
    n.filters = (const uint32_t *)filters_of(be, &c, w, filter_pairs(c.O, c.I), order_inputs);
    if (!n.filters) return AIM_ERR_MEMORY;
    n.x = data_of<bf16>(dy), n.y = data_of<bf16>(dx), n.O = (int)c.I, n.add = !fresh;
    if (c.O <= THIN_CHANNELS) return run_thin(be, dy, n, dx->shape[1], dx->shape[2]);
    if (how->upsample) return run<PLAIN, SUMMED>(be, dy, n, dy->shape[1], dy->shape[2]);
    if (how->stride == 2) return run<APART, WHOLE>(be, dy, n, dx->shape[1], dx->shape[2]);
    return run<PLAIN, WHOLE>(be, dy, n, dx->shape[1], dx->shape[2]);
}
