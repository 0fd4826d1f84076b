/*
 * 3x3 convolutions to so few channels that all nine taps of all outputs fit one panel (a picture's last layer, to RGB).
 * Every pixel is multiplied once with the 9 O columns of weights; an output is the sum of nine of these products, each
 * from another neighbour. The input is read once instead of nine times, and in vectors of taps instead of outputs.
 */
#include "cpu/kernels/conv.h"

#include "cpu/kernels/gemm.h"
#include "cpu/kernels/kernels.h"

#if VLEN >= 8

enum { ROWS = 16 }; /* of the output at a time; two more rows of products are needed */

/* w (O,I,3,3) to one panel: column tap * O + o. */
static void pack_taps(const struct tensor *w, float *panel)
{
    int64_t O = w->shape[0], I = w->shape[1];
    memset(panel, 0, (size_t)(I * PANEL) * sizeof(float));
    for (int64_t i = 0; i < I; i++)
        for (int64_t a = 0; a < 9; a++)
            for (int64_t o = 0; o < O; o++) panel[i * PANEL + a * O + o] = f32(w)[(o * I + i) * 9 + a];
}

/* One row of outputs; products of the row above, this row and the row below, NULL outside the picture. */
static void sum_taps(float (*const rows[3])[PANEL], int64_t W, int64_t O, const float *bias, float *out)
{
    for (int64_t x = 0; x < W; x++, out += O)
        for (int64_t o = 0; o < O; o++) {
            float sum = bias ? bias[o] : 0.0f;
            for (int ky = 0; ky < 3; ky++) {
                if (!rows[ky]) continue;
                for (int kx = 0; kx < 3; kx++)
                    if (x + kx >= 1 && x + kx <= W) sum += rows[ky][x + kx - 1][(ky * 3 + kx) * O + o];
            }
            out[o] = sum;
        }
}

/* Output rows from `first` on of picture n; products has room for ROWS + 2 rows. */
static void run_rows(const struct tensor *x, const float *panel, const float *bias, const struct tensor *y, int64_t n,
                     int64_t first, float (*products)[PANEL])
{
    int64_t H = x->shape[1], W = x->shape[2], C = x->shape[3], O = y->shape[3];
    int64_t end = first + ROWS < H ? first + ROWS : H, top = first > 0 ? first - 1 : 0, bottom = end < H ? end + 1 : H;
    int64_t pixels = (bottom - top) * W;
    memset(products, 0, (size_t)pixels * sizeof products[0]);
    for (int64_t p = 0; p < pixels; p += GEMM_ROW_BLOCK) {
        int64_t count = pixels - p < GEMM_ROW_BLOCK ? pixels - p : GEMM_ROW_BLOCK;
        gemm_panel(false, count, C, f32(x) + ((n * H + top) * W + p) * C, C, panel, products + p);
    }
    for (int64_t row = first; row < end; row++) {
        float(*rows[3])[PANEL];
        for (int64_t ky = 0; ky < 3; ky++) {
            int64_t from = row + ky - 1;
            rows[ky] = from >= 0 && from < H ? products + (from - top) * W : NULL;
        }
        sum_taps(rows, W, O, bias, f32(y) + (n * H + row) * W * O);
    }
}

aim_status KERNEL(narrow_conv2d) CONV2D_PARAMETERS
{
    (void)how;
    int64_t N = x->shape[0], H = x->shape[1], W = x->shape[2], C = x->shape[3], parts = (H + ROWS - 1) / ROWS;
    float *panel = mem_array(be->ctx, (size_t)(C * PANEL), sizeof(float), MEM_ACTIVATIONS);
    float(*products)[PANEL] = mem_array(be->ctx, (size_t)(be->threads * (ROWS + 2) * W), sizeof products[0], MEM_ACTIVATIONS);
    if (panel && products) {
        pack_taps(w, panel);
#pragma omp parallel for num_threads(be->threads) schedule(dynamic)
        for (int64_t i = 0; i < N * parts; i++)
            run_rows(x, panel, bias ? f32(bias) : NULL, y, i / parts, i % parts * ROWS,
                     products + omp_get_thread_num() * (ROWS + 2) * W);
    }
    aim_status status = panel && products ? AIM_OK : AIM_ERR_MEMORY;
    mem_free(panel);
    mem_free(products);
    return status;
}

#endif
