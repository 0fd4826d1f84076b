/*
 * The gradients of a convolution, as matrix products over gathered patches.
 *
 * dx of a convolution with stride 1 is a convolution itself, of dy with the filters turned round, and goes the same ways
 * (Winograd among them). With a stride or an enlargement dx is a product for each residue of the stride (see fill_axis).
 * dw is the product of dy with the forward's patches, over all output pixels; these are cut into a number of parts that
 * follows from the shapes alone and the parts' sums are added up in order, so that threads change nothing. For 3x3
 * filters over many pixels Winograd's transforms do better (winograd_weights.c).
 */
#include "cpu/kernels/conv.h"

#include "cpu/kernels/gemm.h"
#include "cpu/kernels/kernels.h"

enum {
    DX_ROWS = 48,   /* input pixels whose patches are gathered at a time */
    DW_CHUNK = 128, /* output pixels of a product */
    DW_PART = 16,   /* chunks that make it worth while to cut the pixels into one part more */
    DW_MOST = 16,   /* parts: each needs memory for a whole dw */
    DW_PANELS = 8,  /* panels of columns that share a turned chunk of dy */
};
_Static_assert((int)DX_ROWS <= (int)GEMM_ROW_BLOCK, "a patch block must fit the accumulators");

static int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

/* --------------------------------------------------------------------------- dx: the filters turned round */

static bool turns_round(const struct conv2d *how, int64_t k)
{
    return how->stride == 1 && !how->upsample && how->pad_before < k && how->pad_after < k;
}

/* w'[i,o,ky,kx] = w[o,i,k-1-ky,k-1-kx]: dx = w' * dy, with what k-1 leaves of the padding. */
static aim_status dx_turned(struct backend *be, const struct tensor *w, const struct conv2d *how, const struct tensor *dy,
                            struct tensor *dx)
{
    int64_t O = w->shape[0], I = w->shape[1], k = w->shape[2], area = k * k, pad = k - 1;
    float *turned = mem_array(be->ctx, (size_t)tensor_count(w), sizeof(float), MEM_ACTIVATIONS);
    aim_status status = turned ? AIM_OK : AIM_ERR_MEMORY;
    if (status == AIM_OK) {
#pragma omp parallel for num_threads(be->threads) schedule(static)
        for (int64_t i = 0; i < I; i++)
            for (int64_t o = 0; o < O; o++)
                for (int64_t a = 0; a < area; a++) turned[(i * O + o) * area + a] = f32(w)[(o * I + i) * area + area - 1 - a];
        struct tensor filters = tensor_view(T_F32, turned, I, O, k, k);
        struct conv2d back = {.stride = 1, .pad_before = (int)pad - how->pad_before, .pad_after = (int)pad - how->pad_after};
        status = be->op.conv2d(be, dy, &filters, NULL, &back, dx);
    }
    mem_free(turned);
    return status;
}

/* --------------------------------------------------------------------------- dx: by residues of the stride */

/*
 * Along one axis output o reads the enlarged input at o stride + k - pad, and input i is there `grow` times from i grow
 * on. So dx[i] is the sum of w[k] dy[(i grow + e + pad - k) / stride] over e < grow and all k for which that is a whole
 * number. For inputs i = q stride + r of one residue r that makes
 *
 *     dx[i] = Σ_t f[t] dy[q grow + t],   f[t] = Σ_e w[r grow + pad + e - t stride]
 *
 * with `taps` values of t from `low` on.
 */
struct axis {
    int64_t residue, start; /* r, and r grow + pad */
    int64_t low, taps;
    int64_t count; /* of inputs with this residue */
};

static struct axis fill_axis(const struct conv2d *how, int64_t k, int64_t size, int64_t residue)
{
    int64_t grow = how->upsample ? 2 : 1, stride = how->stride, start = residue * grow + how->pad_before;
    struct axis a = {.residue = residue, .start = start, .count = size > residue ? ceil_div(size - residue, stride) : 0};
    int64_t high = (start + grow - 1) / stride, least = start - (k - 1);
    a.low = least >= 0 ? ceil_div(least, stride) : -(-least / stride);
    a.taps = high - a.low + 1;
    return a;
}

/* The filters' sums f, panels of input channels with lines in the patches' order (ty, tx, output channel). */
static void pack_sums(const struct tensor *w, const struct conv2d *how, const struct axis *ay, const struct axis *ax,
                      int64_t i0, float *panel)
{
    int64_t O = w->shape[0], I = w->shape[1], k = w->shape[2], grow = how->upsample ? 2 : 1, live = min64(I - i0, PANEL);
    memset(panel, 0, (size_t)(ay->taps * ax->taps * O * PANEL) * sizeof(float));
    for (int64_t t = 0; t < ay->taps * ax->taps; t++) {
        int64_t y0 = ay->start - (ay->low + t / ax->taps) * how->stride,
                x0 = ax->start - (ax->low + t % ax->taps) * how->stride;
        for (int64_t e = 0; e < grow * grow; e++) {
            int64_t ky = y0 + e / grow, kx = x0 + e % grow;
            if (ky < 0 || kx < 0 || ky >= k || kx >= k) continue;
            for (int64_t o = 0; o < O; o++)
                for (int64_t j = 0; j < live; j++)
                    panel[(t * O + o) * PANEL + j] += f32(w)[((o * I + i0 + j) * k + ky) * k + kx];
        }
    }
}

/* The values of dy that the input at (qy, qx) of its residue meets. */
static void gather_outputs(const struct tensor *dy, int64_t grow, const struct axis *ay, const struct axis *ax, int64_t n,
                           int64_t qy, int64_t qx, float *patch)
{
    int64_t H = dy->shape[1], W = dy->shape[2], O = dy->shape[3];
    for (int64_t ty = 0; ty < ay->taps; ty++)
        for (int64_t tx = 0; tx < ax->taps; tx++, patch += O) {
            int64_t oy = qy * grow + ay->low + ty, ox = qx * grow + ax->low + tx;
            if (oy < 0 || ox < 0 || oy >= H || ox >= W)
                memset(patch, 0, (size_t)O * sizeof(float));
            else
                memcpy(patch, f32(dy) + ((n * H + oy) * W + ox) * O, (size_t)O * sizeof(float));
        }
}

static void dx_residue(struct backend *be, const struct tensor *w, const struct conv2d *how, const struct tensor *dy,
                       const struct axis *ay, const struct axis *ax, float *packed, float *patches, struct tensor *dx)
{
    int64_t O = w->shape[0], I = w->shape[1], K = ay->taps * ax->taps * O, panels = ceil_div(I, PANEL);
    int64_t pixels = ay->count * ax->count, M = dx->shape[0] * pixels;
#pragma omp parallel num_threads(be->threads)
    {
        float *patch = patches + (int64_t)omp_get_thread_num() * DX_ROWS * K;
        gemm_acc acc;
#pragma omp for schedule(static)
        for (int64_t p = 0; p < panels; p++) pack_sums(w, how, ay, ax, p * PANEL, packed + p * PANEL * K);
#pragma omp for schedule(static)
        for (int64_t m = 0; m < M; m += DX_ROWS) {
            int64_t rows = min64(M - m, DX_ROWS);
            float *to[DX_ROWS];
            for (int64_t r = 0; r < rows; r++) {
                int64_t n = (m + r) / pixels, qy = (m + r) / ax->count % ay->count, qx = (m + r) % ax->count;
                int64_t y = qy * how->stride + ay->residue, x = qx * how->stride + ax->residue;
                to[r] = f32(dx) + ((n * dx->shape[1] + y) * dx->shape[2] + x) * I;
                gather_outputs(dy, how->upsample ? 2 : 1, ay, ax, n, qy, qx, patch + r * K);
            }
            for (int64_t p = 0; p < panels; p++) {
                int64_t live = min64(I - p * PANEL, PANEL);
                memset(acc, 0, (size_t)rows * sizeof acc[0]);
                gemm_panel(false, rows, K, patch, K, packed + p * PANEL * K, acc);
                for (int64_t r = 0; r < rows; r++)
                    for (int64_t j = 0; j < live; j++) to[r][p * PANEL + j] = acc[r][j];
            }
        }
    }
}

static aim_status dx_by_residues(struct backend *be, const struct tensor *w, const struct conv2d *how, const struct tensor *dy,
                                 struct tensor *dx)
{
    int64_t k = w->shape[2], most = 0;
    for (int64_t r = 0; r < how->stride; r++) {
        int64_t taps = fill_axis(how, k, dx->shape[1], r).taps;
        most = taps > most ? taps : most;
    }
    int64_t K = most * most * w->shape[0], panels = ceil_div(w->shape[1], PANEL);
    float *packed = mem_array(be->ctx, (size_t)(panels * PANEL * K), sizeof(float), MEM_ACTIVATIONS);
    float *patches = mem_array(be->ctx, (size_t)(be->threads * DX_ROWS * K), sizeof(float), MEM_ACTIVATIONS);
    aim_status status = packed && patches ? AIM_OK : AIM_ERR_MEMORY;
    for (int64_t r = 0; status == AIM_OK && r < (int64_t)how->stride * how->stride; r++) {
        struct axis ay = fill_axis(how, k, dx->shape[1], r / how->stride);
        struct axis ax = fill_axis(how, k, dx->shape[2], r % how->stride);
        if (ay.taps > 0 && ax.taps > 0 && ay.count > 0 && ax.count > 0)
            dx_residue(be, w, how, dy, &ay, &ax, packed, patches, dx);
    }
    mem_free(packed);
    mem_free(patches);
    return status;
}

/* --------------------------------------------------------------------------------------------- dw, dbias */

struct weights_work {
    const struct tensor *x, *dy;
    const struct conv2d *how;
    int64_t k, O, columns, panels; /* columns of a patch, in (ky, kx, channel) order, and panels of them */
    int64_t M, chunks, parts, groups;
    float (*sums)[PANEL]; /* (part, panel, output channel) */
    double *bias_sums;    /* (part, output channel) */
};

/* Columns from c0 on of the patches of `rows` output pixels from m0 on, as the lines of a panel. */
static void gather_columns(const struct weights_work *k, int64_t m0, int64_t rows, int64_t c0, float *panel)
{
    const struct tensor *x = k->x;
    int64_t H = x->shape[1], W = x->shape[2], C = x->shape[3], OH = k->dy->shape[1], OW = k->dy->shape[2];
    int64_t shift = k->how->upsample, stride = k->how->stride, run;
    int64_t end = min64(c0 + PANEL, k->columns);
    if (end < c0 + PANEL) memset(panel, 0, (size_t)(rows * PANEL) * sizeof(float));
    for (int64_t c = c0; c < end; c += run) { /* the columns of one tap */
        int64_t tap = c / C, ky = tap / k->k - k->how->pad_before, kx = tap % k->k - k->how->pad_before;
        int64_t n = m0 / (OH * OW), oy = m0 / OW % OH, ox = m0 % OW;
        float *to = panel + c - c0;
        run = min64(C - c % C, end - c);
        for (int64_t r = 0; r < rows; r++, to += PANEL) {
            int64_t iy = oy * stride + ky, ix = ox * stride + kx;
            if (iy < 0 || ix < 0 || iy >= H << shift || ix >= W << shift)
                memset(to, 0, (size_t)run * sizeof(float));
            else
                memcpy(to, f32(x) + ((n * H + (iy >> shift)) * W + (ix >> shift)) * C + c % C, (size_t)run * sizeof(float));
            if (++ox < OW) continue;
            ox = 0;
            if (++oy < OH) continue;
            oy = 0;
            n++;
        }
    }
}

/* The products of one part of the pixels with one group of panels. turned has room for (O, DW_CHUNK) values. */
static void run_part(const struct weights_work *k, int64_t part, int64_t group, float *turned, float *panel)
{
    int64_t first = k->panels * group / k->groups, last = k->panels * (group + 1) / k->groups;
    for (int64_t chunk = k->chunks * part / k->parts; chunk < k->chunks * (part + 1) / k->parts; chunk++) {
        int64_t m0 = chunk * DW_CHUNK, rows = min64(k->M - m0, DW_CHUNK);
        for (int64_t o = 0; o < k->O; o++) {
            const float *from = f32(k->dy) + m0 * k->O + o;
            float sum = 0;
            for (int64_t r = 0; r < rows; r++) {
                turned[o * DW_CHUNK + r] = from[r * k->O];
                sum += from[r * k->O];
            }
            if (group == 0) k->bias_sums[part * k->O + o] += (double)sum;
        }
        for (int64_t p = first; p < last; p++) {
            float(*sums)[PANEL] = k->sums + (part * k->panels + p) * k->O;
            gather_columns(k, m0, rows, p * PANEL, panel);
            for (int64_t o = 0; o < k->O; o += GEMM_ROW_BLOCK)
                gemm_panel(false, min64(k->O - o, GEMM_ROW_BLOCK), rows, turned + o * DW_CHUNK, DW_CHUNK, panel, sums + o);
        }
    }
}

/* Adds the parts' sums to row o of dw (O,I,k,k). */
static void add_parts(const struct weights_work *k, int64_t o, float *dw)
{
    int64_t area = k->k * k->k, I = k->columns / area;
    for (int64_t i = 0; i < I; i++)
        for (int64_t a = 0; a < area; a++) {
            int64_t column = a * I + i;
            float sum = 0;
            for (int64_t part = 0; part < k->parts; part++)
                sum += k->sums[(part * k->panels + column / PANEL) * k->O + o][column % PANEL];
            dw[i * area + a] += sum;
        }
}

static aim_status weights_backward(struct backend *be, const struct tensor *x, const struct conv2d *how,
                                   const struct tensor *dy, int64_t kernel, struct tensor *dw, struct tensor *dbias)
{
    struct weights_work k = {.x = x, .dy = dy, .how = how, .k = kernel, .O = dy->shape[3]};
    k.columns = kernel * kernel * x->shape[3];
    k.panels = dw ? ceil_div(k.columns, PANEL) : 0;
    k.groups = dw ? ceil_div(k.panels, DW_PANELS) : 1;
    k.M = tensor_rows(dy);
    k.chunks = ceil_div(k.M, DW_CHUNK);
    k.parts = min64(ceil_div(k.chunks, DW_PART), DW_MOST);
    int64_t per_thread = (k.O + PANEL) * DW_CHUNK;
    float *scratch = mem_array(be->ctx, (size_t)(be->threads * per_thread), sizeof(float), MEM_ACTIVATIONS);
    k.bias_sums = mem_zero(be->ctx, (size_t)(k.parts * k.O), sizeof(double), MEM_ACTIVATIONS);
    k.sums = mem_zero(be->ctx, (size_t)(k.parts * (k.panels + 1) * k.O), sizeof k.sums[0], MEM_ACTIVATIONS);
    aim_status status = scratch && k.bias_sums && k.sums ? AIM_OK : AIM_ERR_MEMORY;
    if (status == AIM_OK) {
#pragma omp parallel num_threads(be->threads)
        {
            float *turned = scratch + omp_get_thread_num() * per_thread;
#pragma omp for schedule(dynamic)
            for (int64_t i = 0; i < k.parts * k.groups; i++)
                run_part(&k, i / k.groups, i % k.groups, turned, turned + k.O * DW_CHUNK);
#pragma omp for schedule(static)
            for (int64_t o = 0; o < k.O; o++) {
                double sum = 0;
                for (int64_t part = 0; part < k.parts; part++) sum += k.bias_sums[part * k.O + o];
                if (dw) add_parts(&k, o, f32(dw) + o * k.columns);
                if (dbias) f32(dbias)[o] += (float)sum;
            }
        }
    }
    mem_free(scratch);
    mem_free(k.bias_sums);
    mem_free(k.sums);
    return status;
}

/* ------------------------------------------------------------------------------------------------------ */

/* dx, at a place of its own */
static aim_status input_backward(struct backend *be, const struct tensor *w, const struct conv2d *how, const struct tensor *dy,
                                 struct tensor *dx)
{
    return turns_round(how, w->shape[2]) ? dx_turned(be, w, how, dy, dx) : dx_by_residues(be, w, how, dy, dx);
}

static aim_status reserve(struct backend *be, const struct tensor *like, struct tensor *apart)
{
    *apart = tensor_view(T_F32, mem_zero(be->ctx, (size_t)tensor_count(like), sizeof(float), MEM_ACTIVATIONS), like->shape[0],
                         like->shape[1], like->shape[2], like->shape[3]);
    return apart->data ? AIM_OK : AIM_ERR_MEMORY;
}

/* What takes several steps is computed apart, so that nothing has been added anywhere when memory runs out. */
aim_status KERNEL(conv2d_backward)(struct backend *be, const struct tensor *x, const struct tensor *w, const struct conv2d *how,
                                   const struct tensor *dy, struct tensor *dx, struct tensor *dw, struct tensor *dbias)
{
    struct tensor dx_apart = {0}, dw_apart = {0};
    aim_status status = AIM_OK;
    if (dx) status = reserve(be, x, &dx_apart);
    if (status == AIM_OK && dx) status = input_backward(be, w, how, dy, &dx_apart);
#if VLEN >= 8
    if (dw && winograd_weights_pays(w, how, dy)) {
        if (status == AIM_OK) status = reserve(be, w, &dw_apart);
        if (status == AIM_OK) status = KERNEL(winograd_weights)(be, x, how, dy, &dw_apart);
    }
#endif
    struct tensor *direct = dw_apart.data ? NULL : dw;
    if (status == AIM_OK && (direct || dbias)) status = weights_backward(be, x, how, dy, w->shape[2], direct, dbias);
    if (status == AIM_OK && dx) status = be->op.accumulate(be, &dx_apart, dx);
    if (status == AIM_OK && dw_apart.data) status = be->op.accumulate(be, &dw_apart, dw);
    mem_free(dx_apart.data);
    mem_free(dw_apart.data);
    return status;
}
