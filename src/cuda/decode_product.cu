/* y (M,N) = x (M,K) wᵀ by cuBLASLt. Its matrices are column-major: yᵀ (N,M) = w (N,K) xᵀ, with w and x as they lie. */
#include "cuda/decode.cuh"

static aim_status blas_check(struct backend *be, cublasStatus_t status, const char *what)
{
    if (status == CUBLAS_STATUS_SUCCESS) return AIM_OK;
    return aim_fail(be->ctx, AIM_ERR_INTERNAL, "cuBLASLt: %s (%s)", cublasLtGetStatusString(status), what);
}

#define BLAS_TRY(be, call) TRY(blas_check(be, (call), #call))

/* The best algorithm for operands that are aligned to `alignment` bytes. */
static aim_status choose(struct backend *be, struct decode_product *p, uint32_t alignment, int *count)
{
    cublasLtMatmulPreference_t preference;
    cublasLtMatmulHeuristicResult_t found;
    const cublasLtMatmulPreferenceAttributes_t aligned[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    size_t workspace = PRODUCT_WORKSPACE;
    BLAS_TRY(be, cublasLtMatmulPreferenceCreate(&preference));
    cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace);
    for (cublasLtMatmulPreferenceAttributes_t which : aligned)
        cublasLtMatmulPreferenceSetAttribute(preference, which, &alignment, sizeof alignment);
    cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(cuda_of(be)->blas, p->how, p->w, p->x, p->y, p->y, preference, 1, &found, count);
    cublasLtMatmulPreferenceDestroy(preference);
    if (*count > 0) p->algorithm = found.algo;
    return blas_check(be, status, "cublasLtMatmulAlgoGetHeuristic");
}

aim_status product_create(struct backend *be, bool is_bf16, int64_t M, int64_t N, int64_t K, uint32_t alignment,
                          struct decode_product *p)
{
    cudaDataType type = is_bf16 ? CUDA_R_16BF : CUDA_R_32F;
    cublasOperation_t transpose = CUBLAS_OP_T;
    *p = decode_product();
    BLAS_TRY(be, cublasLtMatmulDescCreate(&p->how, CUBLAS_COMPUTE_32F, CUDA_R_32F)); /* COMPUTE_32F: no TF32 */
    BLAS_TRY(be, cublasLtMatmulDescSetAttribute(p->how, CUBLASLT_MATMUL_DESC_TRANSA, &transpose, sizeof transpose));
    BLAS_TRY(be, cublasLtMatrixLayoutCreate(&p->w, type, (uint64_t)K, (uint64_t)N, K));
    BLAS_TRY(be, cublasLtMatrixLayoutCreate(&p->x, type, (uint64_t)K, (uint64_t)M, K));
    BLAS_TRY(be, cublasLtMatrixLayoutCreate(&p->y, CUDA_R_32F, (uint64_t)N, (uint64_t)M, N));
    int count = 0;
    TRY(choose(be, p, alignment, &count));
    if (count == 0)
        return aim_fail(be->ctx, AIM_ERR_UNSUPPORTED, "cuBLASLt has no way to multiply %lld rows with a %lldx%lld matrix",
                        (long long)M, (long long)N, (long long)K);
    return AIM_OK;
}

void product_free(struct decode_product *p)
{
    if (p->y) cublasLtMatrixLayoutDestroy(p->y);
    if (p->x) cublasLtMatrixLayoutDestroy(p->x);
    if (p->w) cublasLtMatrixLayoutDestroy(p->w);
    if (p->how) cublasLtMatmulDescDestroy(p->how);
    *p = decode_product();
}

aim_status product_run(struct backend *be, const struct decode_product *p, const void *x, const void *w, float *y,
                       void *workspace, cudaStream_t stream)
{
    const float one = 1, zero = 0;
    BLAS_TRY(be, cublasLtMatmul(cuda_of(be)->blas, p->how, &one, w, p->w, x, p->x, &zero, y, p->y, y, p->y, &p->algorithm,
                                workspace, PRODUCT_WORKSPACE, stream));
    return AIM_OK;
}
