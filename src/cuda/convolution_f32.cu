/*
 * Convolution in true float32: a product of patches, gathered where they lie, and filters, on the multiply-add units. A block
 * computes ROWS pixels of COLUMNS channels; what small maps lack in blocks is made up for by cutting the sums into parts, a
 * number that follows from the shapes alone. Borders come with the gathering.
 *
 * After the twofold enlargement a 3 x 3 patch meets only 2 x 2 pixels of the smaller map: the outputs at odd and even rows and
 * columns are four convolutions (phases) with 2 x 2 filters of their own, sums of the 3 x 3 ones, and 4/9 of the work.
 */
#include "cuda/convolution.cuh"

enum {
    ROWS = 128,
    DEPTH = 8, /* of a slab: products between two barriers; a slab lies within one tap */
    PITCH = ROWS + 4,
    THREADS = 256,
    LEAST_CHANNELS = 32, /* fewer outputs would leave most of a block without work */
    MANY_BLOCKS = 264,   /* two for each multiprocessor of a large GPU */
    LEAST_SLABS = 16,    /* of a part */
    MOST_PARTS = 64
};

/* x (N,H,W,I); the outputs of a phase (M,O) with M = N*OH*OW. Phase 2 a + b of four has the rows 2 y + a and the columns
 * 2 x + b of the output, and its patch begins at (y - pad + a, x - pad + b). */
struct direct {
    int M, H, W, I, OH, OW, O, kernel, stride, pad, phases;
    int slabs, each, parts; /* slabs in all, of a part */
};

bool conv_f32_serves(const struct tensor *x, const struct tensor *w, const struct tensor *bias, const struct conv2d *how,
                     const struct tensor *y)
{
    int64_t O = y->shape[3], picture = x->shape[1] * x->shape[2] * x->shape[3];
    bool in_phases = w->shape[2] == 3 && how->stride == 1 && how->pad_before == 1 && how->pad_after == 1;
    bool counts = picture < INT32_MAX && tensor_rows(y) < INT32_MAX - ROWS; /* places are counted in 32 bits */
    return x->type == T_F32 && x->shape[3] % DEPTH == 0 && O % 4 == 0 && O >= LEAST_CHANNELS && counts &&
           (!how->upsample || in_phases) && aligned(x) && aligned(bias) && aligned(y);
}

static int columns_for(int O)
{
    return O <= 64 ? 64 : 128;
}

static struct direct direct_of(const struct tensor *x, const struct tensor *y, int64_t kernel, const struct conv2d *how)
{
    struct direct g;
    g.phases = how->upsample ? 4 : 1;
    g.H = (int)x->shape[1], g.W = (int)x->shape[2], g.I = (int)x->shape[3];
    g.OH = how->upsample ? g.H : (int)y->shape[1], g.OW = how->upsample ? g.W : (int)y->shape[2], g.O = (int)y->shape[3];
    g.kernel = how->upsample ? 2 : (int)kernel, g.stride = how->stride, g.pad = how->pad_before;
    g.M = (int)(tensor_rows(y) / g.phases);
    g.slabs = g.kernel * g.kernel * (g.I / DEPTH);
    int64_t blocks = g.phases * divide_up(g.M, ROWS) * divide_up(g.O, columns_for(g.O));
    int64_t parts = min64(min64(MANY_BLOCKS / blocks, g.slabs / LEAST_SLABS), MOST_PARTS);
    g.each = (int)divide_up(g.slabs, max64(parts, 1));
    g.parts = (int)divide_up(g.slabs, g.each);
    return g;
}

/* ---------------------------------------------------------------------------------------------------- the kernel */

/* Where a thread gathers: four channels of one output pixel's patch, slab by slab. */
struct gatherer {
    const float *picture, *from;  /* the picture's first pixel, the next slab of the tap's, at the thread's first channel */
    int iy, ix, tap, slabs_ahead; /* the patch's first row and column; what is left of the tap */
    bool inside;
};

static __device__ inline void find_tap(const struct direct &g, struct gatherer &at)
{
    int iy = at.iy + at.tap / g.kernel, ix = at.ix + at.tap % g.kernel;
    at.inside = iy >= 0 && ix >= 0 && iy < g.H && ix < g.W;
    at.from = at.picture + (iy * g.W + ix) * g.I;
}

/* For output m of the block's phase, from a slab on; `place` is the thread's first channel in a slab. */
static __device__ inline struct gatherer gatherer_of(const struct direct &g, const float *x, int m, int slab, int place)
{
    struct gatherer at;
    int phase = (int)blockIdx.z, per_tap = g.I / DEPTH, area = g.OH * g.OW, n = m / area, pixel = m % area;
    at.picture = x + (int64_t)n * g.H * g.W * g.I + place;
    at.iy = m < g.M ? pixel / g.OW * g.stride - g.pad + phase / 2 : -g.H - g.kernel; /* none: outside whatever the tap */
    at.ix = pixel % g.OW * g.stride - g.pad + phase % 2;
    at.tap = slab / per_tap;
    find_tap(g, at);
    at.from += slab % per_tap * DEPTH;
    at.slabs_ahead = per_tap - slab % per_tap;
    return at;
}

/* The thread's four values; goes on to the next slab. */
static __device__ inline float4 gather(const struct direct &g, struct gatherer &at)
{
    float4 values = make_float4(0, 0, 0, 0);
    if (at.inside) values = *reinterpret_cast<const float4 *>(at.from);
    at.from += DEPTH;
    if (--at.slabs_ahead == 0) {
        at.slabs_ahead = g.I / DEPTH;
        at.tap++;
        find_tap(g, at);
    }
    return values;
}

/* The pixel of the output that m of the block's phase is. */
static __device__ inline int output_pixel(const struct direct &g, int m)
{
    if (g.phases == 1) return m;
    int phase = (int)blockIdx.z, line = m / g.OW; /* of all pictures' */
    return (2 * line + phase / 2) * 2 * g.OW + m % g.OW * 2 + phase % 2;
}

static __device__ inline float4 four(const float *from)
{
    return *reinterpret_cast<const float4 *>(from);
}

/*
 * out (pixel, O) = patches times filters (phase, k k I, O), plus the bias if there is one; with several parts, out (part,
 * pixel, O). blockIdx is (tile, part, phase); tiles of one row of tiles follow each other. Eight warps stand 4 x 2, a warp's
 * lanes 4 x 8; a lane has 4 x 4 results in each of 2 x WIDE places.
 */
template <int COLUMNS>
static __global__ void __launch_bounds__(THREADS, 2)
    direct_tiles(const float *__restrict__ x, const float *__restrict__ filters, const float *__restrict__ bias,
                 struct direct g, float *__restrict__ out)
{
    constexpr int WIDE = COLUMNS / 64, LINE = COLUMNS / 4; /* LINE: threads that load a row of filters */
    __shared__ __align__(16) float a[2][DEPTH][PITCH], b[2][DEPTH][COLUMNS];
    int across = (g.O + COLUMNS - 1) / COLUMNS, n0 = (int)blockIdx.x % across * COLUMNS;
    int m0 = (int)(blockIdx.x / across) * ROWS;
    int from = (int)blockIdx.y * g.each, end = min(from + g.each, g.slabs);
    int line = threadIdx.x / 2, place = threadIdx.x % 2 * 4;
    struct gatherer at = gatherer_of(g, x, m0 + line, from, place);
    int depth = threadIdx.x / LINE, column = threadIdx.x % LINE * 4;
    bool loads = depth < DEPTH && n0 + column < g.O;
    int64_t k0 = ((int64_t)blockIdx.z * g.slabs + from) * DEPTH;
    const float *filter = filters + (k0 + depth) * g.O + n0 + column;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int row = warp / 2 * 32 + lane / 8 * 4, first = warp % 2 * (COLUMNS / 2) + lane % 8 * 4;
    float sums[2][4][WIDE][4] = {};

    float4 in = gather(g, at), with = make_float4(0, 0, 0, 0);
    if (loads) with = four(filter);
    for (int slab = from, now = 0; slab < end; slab++, now ^= 1) {
        a[now][place][line] = in.x, a[now][place + 1][line] = in.y, a[now][place + 2][line] = in.z;
        a[now][place + 3][line] = in.w;
        if (depth < DEPTH) *reinterpret_cast<float4 *>(&b[now][depth][column]) = with;
        __syncthreads(); /* the other buffer's readers are past it, too */
        if (slab + 1 < end) {
            filter += (int64_t)DEPTH * g.O;
            in = gather(g, at);
            if (loads) with = four(filter);
        }
#pragma unroll
        for (int k = 0; k < DEPTH; k++) {
            float4 left[2] = {four(&a[now][k][row]), four(&a[now][k][row + 16])}, right[WIDE];
#pragma unroll
            for (int q = 0; q < WIDE; q++) right[q] = four(&b[now][k][first + q * 32]);
#pragma unroll
            for (int p = 0; p < 2; p++) {
                const float l[4] = {left[p].x, left[p].y, left[p].z, left[p].w};
#pragma unroll
                for (int q = 0; q < WIDE; q++)
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        sums[p][i][q][0] = fmaf(l[i], right[q].x, sums[p][i][q][0]);
                        sums[p][i][q][1] = fmaf(l[i], right[q].y, sums[p][i][q][1]);
                        sums[p][i][q][2] = fmaf(l[i], right[q].z, sums[p][i][q][2]);
                        sums[p][i][q][3] = fmaf(l[i], right[q].w, sums[p][i][q][3]);
                    }
            }
        }
    }

    out += (int64_t)blockIdx.y * g.phases * g.M * g.O;
#pragma unroll
    for (int p = 0; p < 2; p++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int m = m0 + row + p * 16 + i;
            if (m >= g.M) continue;
            float *to = out + (int64_t)output_pixel(g, m) * g.O;
#pragma unroll
            for (int q = 0; q < WIDE; q++) {
                int n = n0 + first + q * 32;
                if (n >= g.O) continue;
                const float(&s)[4] = sums[p][i][q];
                float4 shift = bias ? four(bias + n) : make_float4(0, 0, 0, 0);
                *reinterpret_cast<float4 *>(to + n) =
                    make_float4(s[0] + shift.x, s[1] + shift.y, s[2] + shift.z, s[3] + shift.w);
            }
        }
}

/* y (pixel, O) = the parts' sums in order, and the bias; a thread has four values. */
static __global__ void add_parts(const float *__restrict__ partial, const float *__restrict__ bias, struct direct g,
                                 float *__restrict__ y)
{
    int64_t at = (blockIdx.x * (int64_t)THREADS + threadIdx.x) * 4, count = (int64_t)g.phases * g.M * g.O;
    if (at >= count) return;
    pack<4> sum = load<4>(partial + at);
    for (int part = 1; part < g.parts; part++) {
        pack<4> more = load<4>(partial + part * count + at);
#pragma unroll
        for (int j = 0; j < 4; j++) sum.v[j] += more.v[j];
    }
    int n = (int)(at % g.O);
#pragma unroll
    for (int j = 0; j < 4; j++) sum.v[j] += bias ? bias[n + j] : 0.0f;
    store<4>(y + at, sum);
}

/* ------------------------------------------------------------------------------------------------------ the op */

/* w (O,I,k,k) to (k,k,I,O) */
static __global__ void turn_filters(const float *w, int64_t O, int64_t I, int64_t area, float *turned)
{
    int64_t at = blockIdx.x * (int64_t)THREADS + threadIdx.x;
    if (at >= O * I * area) return;
    int64_t o = at % O, i = at / O % I, tap = at / O / I;
    turned[at] = w[(o * I + i) * area + tap];
}

static void turn(struct backend *be, const struct conv *c, const float *w, void *turned)
{
    int64_t area = c->kernel * c->kernel;
    turn_filters<<<(unsigned)divide_up(c->O * c->I * area, THREADS), THREADS, 0, cuda_of(be)->stream>>>(w, c->O, c->I, area,
                                                                                                        (float *)turned);
}

/* The same to (phase, 2, 2, I, O): along each axis the first of a phase's two taps has one of the three filters' where the
 * phase is even, two where it is odd, and the second the others. */
static __global__ void sum_filters(const float *w, int64_t O, int64_t I, float *sums)
{
    int64_t at = blockIdx.x * (int64_t)THREADS + threadIdx.x;
    if (at >= 16 * O * I) return;
    int64_t o = at % O, i = at / O % I;
    int tap = (int)(at / O / I % 4), phase = (int)(at / O / I / 4);
    int y0 = tap / 2 ? 1 + phase / 2 : 0, y1 = tap / 2 ? 3 : 1 + phase / 2;
    int x0 = tap % 2 ? 1 + phase % 2 : 0, x1 = tap % 2 ? 3 : 1 + phase % 2;
    float sum = 0;
    for (int y = y0; y < y1; y++)
        for (int x = x0; x < x1; x++) sum += w[(o * I + i) * 9 + y * 3 + x];
    sums[at] = sum;
}

static void turn_enlarged(struct backend *be, const struct conv *c, const float *w, void *sums)
{
    sum_filters<<<(unsigned)divide_up(16 * c->O * c->I, THREADS), THREADS, 0, cuda_of(be)->stream>>>(w, c->O, c->I,
                                                                                                     (float *)sums);
}

template <int COLUMNS>
static void launch(struct backend *be, const float *x, const float *filters, const float *bias, const struct direct *g,
                   float *out)
{
    dim3 grid((unsigned)(divide_up(g->M, ROWS) * divide_up(g->O, COLUMNS)), (unsigned)g->parts, (unsigned)g->phases);
    direct_tiles<COLUMNS><<<grid, THREADS, 0, cuda_of(be)->stream>>>(x, filters, bias, *g, out);
}

aim_status conv_f32(struct backend *be, const struct tensor *x, const struct tensor *w, const struct tensor *bias,
                    const struct conv2d *how, struct tensor *y)
{
    struct direct g = direct_of(x, y, w->shape[2], how);
    struct conv c = {};
    c.O = w->shape[0], c.I = w->shape[1], c.kernel = w->shape[2], c.type = T_F32;
    conv_form *form = how->upsample ? turn_enlarged : turn;
    int64_t count = (int64_t)g.phases * g.kernel * g.kernel * c.I * c.O, values = tensor_count(y);
    const void *filters = conv_kept(be, &c, w, count, form);
    struct pieces room = {};
    size_t turned = piece(&room, filters ? 0 : (size_t)count * sizeof(float));
    size_t partial = piece(&room, g.parts > 1 ? (size_t)(g.parts * values) * sizeof(float) : 0);
    char *block = room.total ? (char *)(cuda_scratch(be, room.total)) : NULL;
    if (room.total && !block) return AIM_ERR_MEMORY;
    if (!filters) {
        form(be, &c, f32(w), block + turned);
        filters = block + turned;
    }
    float *out = g.parts > 1 ? (float *)(block + partial) : f32(y);
    const float *shift = data_of<float>(bias);
    if (columns_for(g.O) == 64)
        launch<64>(be, f32(x), (const float *)filters, g.parts > 1 ? NULL : shift, &g, out);
    else
        launch<128>(be, f32(x), (const float *)filters, g.parts > 1 ? NULL : shift, &g, out);
    if (g.parts > 1)
        add_parts<<<(unsigned)divide_up(values, 4 * THREADS), THREADS, 0, cuda_of(be)->stream>>>(out, shift, g, f32(y));
    return cuda_launched(be, "conv2d");
}
