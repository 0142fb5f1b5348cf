// cuBLAS (with -DBLAS) and cuBLASLt (with -DLT): handles, and matrix products that only take time.
#include <cstdint>
#include <cstring>

#include "card.h"

#ifdef BLAS
namespace {
struct Handle { void *stream = nullptr; int pointer_mode = 0, math_mode = 0; };
Handle *of(void *handle) { return static_cast<Handle *>(handle); }
constexpr double FLOAT32_SLOWER = 4, FLOAT64_SLOWER = 64;  // than half precision

int multiply(void *handle, double m, double n, double k, double count = 1, double slower = 1) {
    nullcuda_work(of(handle)->stream, 2 * m * n * k * count * slower, 2 * (m * n + n * k + m * k) * count);
    return 0;
}
}  // namespace

EXPORT int cublasCreate_v2(void **handle) {
    nullcuda_make_context();
    return *handle = new Handle, 0;
}
EXPORT int cublasDestroy_v2(void *handle) { return delete of(handle), 0; }
EXPORT int cublasSetStream_v2(void *handle, void *stream) { return of(handle)->stream = stream, 0; }
EXPORT int cublasGetMathMode(void *handle, int *mode) { return *mode = of(handle)->math_mode, 0; }
EXPORT int cublasSetMathMode(void *handle, int mode) { return of(handle)->math_mode = mode, 0; }
EXPORT int cublasGetPointerMode_v2(void *handle, int *mode) { return *mode = of(handle)->pointer_mode, 0; }
EXPORT int cublasSetPointerMode_v2(void *handle, int mode) { return of(handle)->pointer_mode = mode, 0; }
EXPORT int cublasGemmEx(void *handle, int, int, int m, int n, int k) { return multiply(handle, m, n, k); }
EXPORT int cublasSgemmEx(void *handle, int, int, int m, int n, int k) { return multiply(handle, m, n, k); }
EXPORT int cublasSgemm_v2(void *handle, int, int, int m, int n, int k) {
    return multiply(handle, m, n, k, 1, FLOAT32_SLOWER);
}
EXPORT int cublasDgemm_v2(void *handle, int, int, int m, int n, int k) {
    return multiply(handle, m, n, k, 1, FLOAT64_SLOWER);
}
EXPORT int cublasGemmStridedBatchedEx(void *handle, int, int, int m, int n, int k, const void *, const void *, int, int,
                                      long long, const void *, int, int, long long, const void *, void *, int, int,
                                      long long, int count) {
    return multiply(handle, m, n, k, count);
}
EXPORT int cublasSgemmStridedBatched(void *handle, int, int, int m, int n, int k, const float *, const float *, int,
                                     long long, const float *, int, long long, const float *, float *, int, long long,
                                     int count) {
    return multiply(handle, m, n, k, count, FLOAT32_SLOWER);
}
#endif

#ifdef LT
namespace {
struct Layout { uint64_t rows, columns; };
struct Found { uint64_t algorithm[8]; size_t workspace_bytes; int state; float waves; int reserved[4]; };
int make(void **what, uint64_t rows = 0, uint64_t columns = 0) { return *what = new Layout{rows, columns}, 0; }
int drop(void *what) { return delete static_cast<Layout *>(what), 0; }
}  // namespace

EXPORT size_t cublasLtGetVersion() { return 130100; }
EXPORT int cublasLtMatmulDescCreate(void **what, int, int) { return make(what); }
EXPORT int cublasLtMatmulDescDestroy(void *what) { return drop(what); }
EXPORT int cublasLtMatmulPreferenceCreate(void **what) { return make(what); }
EXPORT int cublasLtMatmulPreferenceDestroy(void *what) { return drop(what); }
EXPORT int cublasLtMatrixLayoutCreate(void **what, int, uint64_t rows, uint64_t columns, int64_t) {
    return make(what, rows, columns);
}
EXPORT int cublasLtMatrixLayoutDestroy(void *what) { return drop(what); }
EXPORT int cublasLtMatmulAlgoGetHeuristic(void *, void *, void *, void *, void *, void *, void *, int, Found *found,
                                          int *count) {
    *found = {};
    found->waves = 1;
    return *count = 1, 0;
}
EXPORT int cublasLtMatmul(void *, void *, const void *, const void *, void *a, const void *, void *b, const void *,
                          const void *, void *, void *, void *, const void *, void *, size_t, void *stream) {
    auto *left = static_cast<Layout *>(a), *right = static_cast<Layout *>(b);
    // either may be transposed: of the left one's two edges the shorter counts as the inner one
    double inner = left->rows < left->columns ? left->rows : left->columns;
    double flops = 2.0 * left->rows * left->columns * right->rows * right->columns / (inner ? inner : 1);
    nullcuda_work(stream, flops, 0);
    return 0;
}
#endif
