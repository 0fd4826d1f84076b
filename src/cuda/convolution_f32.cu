/*
 * Convolution in true float32: a product of patches, gathered where they lie, and filters, on the multiply-add units. A block
 * computes ROWS pixels of COLUMNS channels; what small maps lack in blocks is made up for by cutting the sums into parts, a
 * number that follows from the shapes alone. Enlargement and any borders come with the gathering.
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

/* x (N,H,W,I), y (M,O) with M = N*OH*OW. */
struct direct {
    int H, W, I, OH, OW, O, kernel, stride, pad, shift; /* shift: 1 where x is enlarged first */
    int64_t M;
    int slabs, each, parts; /* slabs in all, of a part */
};

bool conv_f32_serves(const struct tensor *x, const struct tensor *y)
{
    return x->type == T_F32 && x->shape[3] % DEPTH == 0 && y->shape[3] % 4 == 0 && y->shape[3] >= LEAST_CHANNELS &&
           aligned(x) && aligned(y);
}

static int columns_for(int O)
{
    return O <= 64 ? 64 : 128;
}

static struct direct direct_of(const struct tensor *x, const struct tensor *y, int64_t kernel, const struct conv2d *how)
{
    struct direct g;
    g.H = (int)x->shape[1], g.W = (int)x->shape[2], g.I = (int)x->shape[3];
    g.OH = (int)y->shape[1], g.OW = (int)y->shape[2], g.O = (int)y->shape[3];
    g.kernel = (int)kernel, g.stride = how->stride, g.pad = how->pad_before, g.shift = how->upsample ? 1 : 0;
    g.M = tensor_rows(y);
    g.slabs = g.kernel * g.kernel * (g.I / DEPTH);
    int64_t blocks = divide_up(g.M, ROWS) * divide_up(g.O, columns_for(g.O));
    int64_t parts = min64(min64(MANY_BLOCKS / blocks, g.slabs / LEAST_SLABS), MOST_PARTS);
    g.each = (int)divide_up(g.slabs, max64(parts, 1));
    g.parts = (int)divide_up(g.slabs, g.each);
    return g;
}

/* ---------------------------------------------------------------------------------------------------- the kernel */

/* Where a thread gathers: four channels of one output pixel's patch, slab by slab. */
struct gatherer {
    const float *x, *from; /* from: the tap's pixel, at the thread's first channel */
    int64_t picture;       /* number of its first pixel */
    int iy, ix, tap, c;    /* the patch's first row and column; the slab's tap and first channel */
    bool live, inside;
};

static __device__ inline void find_tap(const struct direct &g, int place, struct gatherer &at)
{
    int iy = at.iy + at.tap / g.kernel, ix = at.ix + at.tap % g.kernel;
    at.inside = at.live && iy >= 0 && ix >= 0 && iy < g.H << g.shift && ix < g.W << g.shift;
    at.from = at.x + (at.picture + (int64_t)(iy >> g.shift) * g.W + (ix >> g.shift)) * g.I + place;
}

/* For output pixel m, from a slab on; `place` is the thread's first channel in a slab. */
static __device__ inline struct gatherer gatherer_of(const struct direct &g, const float *x, int64_t m, int slab, int place)
{
    struct gatherer at;
    int per_tap = g.I / DEPTH, area = g.OH * g.OW;
    int64_t n = m / area;
    int pixel = (int)(m - n * area);
    at.x = x;
    at.live = m < g.M;
    at.picture = n * g.H * g.W;
    at.iy = pixel / g.OW * g.stride - g.pad;
    at.ix = pixel % g.OW * g.stride - g.pad;
    at.tap = slab / per_tap;
    at.c = slab % per_tap * DEPTH;
    find_tap(g, place, at);
    return at;
}

/* The thread's four values; goes on to the next slab. */
static __device__ inline float4 gather(const struct direct &g, int place, struct gatherer &at)
{
    float4 values = make_float4(0, 0, 0, 0);
    if (at.inside) values = *reinterpret_cast<const float4 *>(at.from + at.c);
    at.c += DEPTH;
    if (at.c == g.I) {
        at.c = 0;
        at.tap++;
        find_tap(g, place, at);
    }
    return values;
}

static __device__ inline float4 four(const float *from)
{
    return *reinterpret_cast<const float4 *>(from);
}

/*
 * out (M, O) = patches times filters (k k I, O), plus the bias if there is one; with several parts, out (part, M, O).
 * blockIdx is (tile, part); tiles of one row of tiles follow each other. Eight warps stand 4 x 2, a warp's lanes 4 x 8; a lane
 * has 4 x 4 results in each of 2 x WIDE places.
 */
template <int COLUMNS>
static __global__ void __launch_bounds__(THREADS, 2)
    direct_tiles(const float *__restrict__ x, const float *__restrict__ filters, const float *__restrict__ bias,
                 struct direct g, float *__restrict__ out)
{
    constexpr int WIDE = COLUMNS / 64, LINE = COLUMNS / 4; /* LINE: threads that load a row of filters */
    __shared__ __align__(16) float a[2][DEPTH][PITCH], b[2][DEPTH][COLUMNS];
    int across = (g.O + COLUMNS - 1) / COLUMNS, n0 = (int)blockIdx.x % across * COLUMNS;
    int64_t m0 = (int64_t)(blockIdx.x / across) * ROWS;
    int from = (int)blockIdx.y * g.each, end = min(from + g.each, g.slabs);
    int line = threadIdx.x / 2, place = threadIdx.x % 2 * 4;
    struct gatherer at = gatherer_of(g, x, m0 + line, from, place);
    int depth = threadIdx.x / LINE, column = threadIdx.x % LINE * 4;
    bool loads = depth < DEPTH && n0 + column < g.O;
    const float *filter = filters + ((int64_t)from * DEPTH + depth) * g.O + n0 + column;
    int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    int row = warp / 2 * 32 + lane / 8 * 4, first = warp % 2 * (COLUMNS / 2) + lane % 8 * 4;
    float sums[2][4][WIDE][4] = {};

    float4 in = gather(g, place, at), with = make_float4(0, 0, 0, 0);
    if (loads) with = four(filter);
    for (int slab = from, now = 0; slab < end; slab++, now ^= 1) {
        a[now][place][line] = in.x, a[now][place + 1][line] = in.y, a[now][place + 2][line] = in.z;
        a[now][place + 3][line] = in.w;
        if (depth < DEPTH) *reinterpret_cast<float4 *>(&b[now][depth][column]) = with;
        __syncthreads(); /* the other buffer's readers are past it, too */
        if (slab + 1 < end) {
            filter += (int64_t)DEPTH * g.O;
            in = gather(g, place, at);
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

    out += blockIdx.y * g.M * g.O;
#pragma unroll
    for (int q = 0; q < WIDE; q++) {
        int n = n0 + first + q * 32;
        if (n >= g.O) continue;
        float4 shift = make_float4(0, 0, 0, 0);
        if (bias) shift = make_float4(bias[n], bias[n + 1], bias[n + 2], bias[n + 3]);
#pragma unroll
        for (int p = 0; p < 2; p++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int64_t m = m0 + row + p * 16 + i;
                const float(&s)[4] = sums[p][i][q];
                if (m < g.M)
                    *reinterpret_cast<float4 *>(out + m * g.O + n) =
                        make_float4(s[0] + shift.x, s[1] + shift.y, s[2] + shift.z, s[3] + shift.w);
            }
    }
}

/* y (M, O) = the parts' sums in order, and the bias; a thread has four values. */
static __global__ void add_parts(const float *__restrict__ partial, const float *__restrict__ bias, struct direct g,
                                 float *__restrict__ y)
{
    int64_t at = (blockIdx.x * (int64_t)THREADS + threadIdx.x) * 4, count = g.M * g.O;
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

template <int COLUMNS>
static void launch(struct backend *be, const float *x, const float *filters, const float *bias, const struct direct *g,
                   float *out)
{
    dim3 grid((unsigned)(divide_up(g->M, ROWS) * divide_up(g->O, COLUMNS)), (unsigned)g->parts);
    direct_tiles<COLUMNS><<<grid, THREADS, 0, cuda_of(be)->stream>>>(x, filters, bias, *g, out);
}

aim_status conv_f32(struct backend *be, const struct tensor *x, const struct tensor *w, const struct tensor *bias,
                    const struct conv2d *how, struct tensor *y)
{
    struct direct g = direct_of(x, y, w->shape[2], how);
    struct conv c = {};
    c.O = w->shape[0], c.I = w->shape[1], c.kernel = w->shape[2], c.type = T_F32;
    const void *filters = conv_kept(be, &c, w, tensor_count(w), turn);
    struct pieces room = {};
    size_t turned = piece(&room, filters ? 0 : (size_t)tensor_count(w) * sizeof(float));
    size_t partial = piece(&room, g.parts > 1 ? (size_t)(g.parts * g.M * g.O) * sizeof(float) : 0);
    char *block = room.total ? (char *)(cuda_scratch(be, room.total)) : NULL;
    if (room.total && !block) return AIM_ERR_MEMORY;
    if (!filters) {
        turn(be, &c, f32(w), block + turned);
        filters = block + turned;
    }
    float *out = g.parts > 1 ? (float *)(block + partial) : f32(y);
    const float *shift = data_of<float>(bias);
    if (columns_for(g.O) == 64)
        launch<64>(be, f32(x), (const float *)filters, g.parts > 1 ? NULL : shift, &g, out);
    else
        launch<128>(be, f32(x), (const float *)filters, g.parts > 1 ? NULL : shift, &g, out);
    if (g.parts > 1)
        add_parts<<<(unsigned)divide_up(g.M * g.O, 4 * THREADS), THREADS, 0, cuda_of(be)->stream>>>(out, shift, g, f32(y));
    return cuda_launched(be, "conv2d");
}
