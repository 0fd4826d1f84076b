/* The state-space recurrence over whole sequences: steps and decays, C·B, and the forward. */
#include "cuda/ssd.cuh"

#include "cuda/dense.cuh"

struct ssd_shape ssd_shape_of(const struct tensor *xbc, const struct tensor *zxbcdt, const struct tensor *y)
{
    struct ssd_shape n = {};
    n.B = y->shape[0], n.T = y->shape[1], n.E = y->shape[2], n.C = tensor_cols(xbc), n.W = tensor_cols(zxbcdt);
    n.H = n.E / HEADDIM, n.S = (n.C - n.E) / 2;
    n.tiles = divide_up(n.T, TILE), n.padded = n.tiles * TILE;
    return n;
}

/* ------------------------------------------------------------------------------------------------------- steps */

/* ln(1 + e^x); the identity above 20, where the difference is below float precision (spec C3) */
static __device__ float softplus(float x)
{
    return x > 20.0f ? x : log1pf(expf(x));
}

/* A warp takes a head of a picture: Δ, and the running sum of Δ A in double. */
template <typename T>
static __global__ void fill_steps(struct ssd_shape n, const T *zxbcdt, const float *A_log, const float *dt_bias,
                                  struct ssd_steps steps)
{
    const double log2e = 1.4426950408889634;
    int64_t pair = (int64_t)blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (pair >= n.B * n.H) return;
    int64_t b = pair / n.H, h = pair % n.H;
    const T *dt = zxbcdt + b * n.T * n.W + n.W - n.H + h;
    float A = -expf(A_log[h]), bias = dt_bias[h];
    double before = 0; /* up to the tile */
    for (int64_t first = 0; first < n.padded; first += TILE) {
        float delta[2];
        double sum[2], end = before;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int64_t t = first + half * WARP + lane;
            delta[half] = t < n.T ? softplus(value(dt[t * n.W]) + bias) : 0.0f;
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            sum[half] = (double)(delta[half] * A);
#pragma unroll
            for (int gap = 1; gap < WARP; gap *= 2) {
                double lower = __shfl_up_sync(0xffffffffu, sum[half], gap);
                if (lane >= gap) sum[half] += lower;
            }
            sum[half] += end;
            end = __shfl_sync(0xffffffffu, sum[half], WARP - 1);
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int64_t at = pair * n.padded + first + half * WARP + lane;
            float high = (float)(sum[half] * log2e);
            steps.delta[at] = delta[half];
            steps.cs[at] = make_float2(high, (float)(sum[half] * log2e - (double)high));
            steps.lead[at] = ssd_power((float)((sum[half] - before) * log2e));
            steps.weight[at] = delta[half] * ssd_power((float)((end - sum[half]) * log2e));
        }
        before = end;
    }
}

aim_status ssd_prepare(struct backend *be, const struct ssd_shape *n, const struct tensor *zxbcdt, const struct tensor *A_log,
                       const struct tensor *dt_bias, struct ssd_steps steps)
{
    enum { THREADS = 64 };
    by_type(zxbcdt, [&](auto zero) {
        using T = decltype(zero);
        fill_steps<T><<<(unsigned)divide_up(n->B * n->H, THREADS / WARP), THREADS, 0, cuda_of(be)->stream>>>(
            *n, data_of<T>(zxbcdt), f32(A_log), f32(dt_bias), steps);
    });
    return cuda_launched(be, "ssd: steps");
}

aim_status ssd_products(struct backend *be, const struct ssd_shape *n, const struct tensor *xbc, bool transposed,
                        enum tensor_type type, void *products)
{
    size_t size = tensor_type_size(xbc->type);
    const char *b = (const char *)xbc->data + (size_t)n->E * size, *c = b + (size_t)n->S * size;
    struct cuda_operand rows = {transposed ? b : c, n->C, n->T * n->C, false},
                        columns = {transposed ? c : b, n->C, n->T * n->C, true};
    struct cuda_product p = {xbc->type, type, n->T, n->T, n->S, n->B, rows, columns, products, n->padded, n->padded * n->padded,
                             false};
    return cuda_multiply(be, &p);
}

/* ----------------------------------------------------------------------------------------------------- forward */

/* A block takes a tile of positions of a head of a picture. */
static __global__ void __launch_bounds__(TILE_THREADS)
    forward_tiles(struct ssd_shape n, struct ssd_steps steps, const bf16 *products, const bf16 *xbc, const float *D, bf16 *y)
{
    __shared__ struct ssd_mixing mixing;
    int64_t tile = blockIdx.x, h = blockIdx.y, b = blockIdx.z;
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, q = lane % 4;
    float acc[8][4];
    struct ssd_head head = {ssd_steps_of(steps, b * n.H + h, n.padded),
                            products + b * n.padded * n.padded,
                            xbc + b * n.T * n.C + h * HEADDIM,
                            n.C,
                            (int)n.T,
                            (int)n.padded};
    int last = ssd_mix<false>(head, (int)tile, mixing, acc);
    bf16(*shared)[TILE_LD] = mixing.stages[last].values;
    __syncthreads(); /* the tile's own x is still there, and each warp now puts its own rows of y in its place */
    float direct = D[h];
#pragma unroll
    for (int k = 0; k < 8; k++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            uint32_t *at = reinterpret_cast<uint32_t *>(&shared[warp * 16 + r * 8 + g][k * 8 + q * 2]);
            float2 x = floats_of(*at);
            *at = pair_of(acc[k][2 * r] + direct * x.x, acc[k][2 * r + 1] + direct * x.y);
        }
    __syncwarp();
#pragma unroll
    for (int k = 0; k < 4; k++) {
        int row = warp * 16 + k * 4 + lane / 8, column = lane % 8 * 8;
        int64_t t = tile * TILE + row;
        if (t < n.T)
            *reinterpret_cast<uint4 *>(y + (b * n.T + t) * n.E + h * HEADDIM + column) =
                *reinterpret_cast<const uint4 *>(&shared[row][column]);
    }
}

/* A block takes a position of a head of a picture. */
template <typename T>
static __global__ void forward_rows(struct ssd_shape n, struct ssd_steps steps, const float *products, const T *xbc,
                                    const float *D, T *y)
{
    __shared__ float shared[SSD_CHUNK];
    int64_t t = blockIdx.x, h = blockIdx.y, b = blockIdx.z, head = (b * n.H + h) * n.padded;
    const T *x = xbc + b * n.T * n.C + h * HEADDIM;
    float sum = ssd_mix_row<false>(products + b * n.padded * n.padded, steps.cs + head, steps.delta + head, x, n.C, n.T,
                                   n.padded, t, shared);
    put(y + (b * n.T + t) * n.E + h * HEADDIM + threadIdx.x, sum + D[h] * value(x[t * n.C + threadIdx.x]));
}

/* Cuts the scratch memory at `at`; the result is its end. C·B are of type `type`. */
static char *lay_out(char *at, const struct ssd_shape *n, enum tensor_type type, struct ssd_steps *steps, void **products)
{
    at = ssd_take_steps(at, n, steps);
    *products = ssd_take<char>(&at, n->B * n->padded * n->padded * (int64_t)tensor_type_size(type));
    return at;
}

aim_status cuda_ssd(struct backend *be, const struct tensor *xbc, const struct tensor *zxbcdt, const struct tensor *A_log,
                    const struct tensor *dt_bias, const struct tensor *D, struct tensor *y)
{
    struct ssd_shape n = ssd_shape_of(xbc, zxbcdt, y);
    struct ssd_steps steps;
    void *products;
    bool tiled = ssd_tiled(&n, xbc, y);
    enum tensor_type type = tiled ? T_BF16 : T_F32;
    char *scratch = (char *)cuda_scratch(be, (size_t)(lay_out(NULL, &n, type, &steps, &products) - (char *)NULL));
    if (!scratch) return AIM_ERR_MEMORY;
    lay_out(scratch, &n, type, &steps, &products);
    TRY(ssd_prepare(be, &n, zxbcdt, A_log, dt_bias, steps));
    TRY(ssd_products(be, &n, xbc, false, type, products));
    dim3 grid((unsigned)(tiled ? n.tiles : n.T), (unsigned)n.H, (unsigned)n.B);
    cudaStream_t stream = cuda_of(be)->stream;
    if (tiled)
        forward_tiles<<<grid, TILE_THREADS, 0, stream>>>(n, steps, (const bf16 *)products, data_of<bf16>(xbc), f32(D),
                                                         data_of<bf16>(y));
    else
        by_type(xbc, [&](auto zero) {
            using T = decltype(zero);
            forward_rows<T>
                <<<grid, HEADDIM, 0, stream>>>(n, steps, (const float *)products, data_of<T>(xbc), f32(D), data_of<T>(y));
        });
    return cuda_launched(be, "ssd");
}
