// Kernels: registered by their libraries, launched, and nothing else: a launch takes time by its number of threads.
#include <algorithm>
#include <cstdlib>

#include "runtime.h"

namespace {
constexpr double BYTES_PER_THREAD = 16;
thread_local struct { dim3 grid, block; size_t shared; void *stream; } pushed;

cudaError_t launch(dim3 grid, dim3 block, void *stream) {
    double threads = double(grid.x) * grid.y * grid.z * block.x * block.y * block.z;
    nullcuda_make_context();
    nullcuda_work(stream, 0, threads * BYTES_PER_THREAD);
    return cudaSuccess;
}
}  // namespace

EXPORT void **__cudaRegisterFatBinary(void *) {
    static void *handle[4];
    return handle;
}
EXPORT void __cudaRegisterFatBinaryEnd(void **) {}
EXPORT void __cudaUnregisterFatBinary(void **) {}
EXPORT char __cudaInitModule(void **) { return 1; }
EXPORT void __cudaRegisterVar(void **, char *, char *, const char *, int, size_t, int, int) {}
EXPORT void __cudaRegisterFunction(void **, const char *, char *, const char *, int, uint3 *, uint3 *, dim3 *, dim3 *,
                                   int *) {}
EXPORT unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, CUstream_st *stream) {
    pushed = {grid, block, shared, stream};
    return 0;
}
EXPORT cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
    *grid = pushed.grid, *block = pushed.block, *shared = pushed.shared;
    *static_cast<void **>(stream) = pushed.stream;
    return cudaSuccess;
}
EXPORT cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function) {
    *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void *>(function));
    return cudaSuccess;
}
EXPORT cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3 grid, dim3 block, void **, size_t, cudaStream_t stream) {
    return launch(grid, block, stream);
}
EXPORT cudaError_t cudaLaunchKernel(const void *, dim3 grid, dim3 block, void **, size_t, cudaStream_t stream) {
    return launch(grid, block, stream);
}
EXPORT cudaError_t cudaLaunchCooperativeKernel(const void *, dim3 grid, dim3 block, void **, size_t,
                                               cudaStream_t stream) {
    return launch(grid, block, stream);
}
EXPORT cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *, void **) {
    return launch(config->gridDim, config->blockDim, config->stream);
}
EXPORT cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *attributes, const void *) {
    *attributes = {};
    attributes->maxThreadsPerBlock = 1024, attributes->numRegs = 32, attributes->maxDynamicSharedSizeBytes = 49152;
    // The newest that PyTorch was built for and the card can run: CUB looks for exactly that one.
    int capability = nullcuda_card()->major * 10 + nullcuda_card()->minor;
    attributes->binaryVersion = attributes->ptxVersion = capability == 89 ? 86 : capability;
    return cudaSuccess;
}
EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *, int threads,
                                                                          size_t, unsigned) {
    cudaDeviceProp p;
    cudaGetDeviceProperties(&p, 0);
    *blocks = std::clamp(p.maxThreadsPerMultiProcessor / std::max(p.warpSize, threads), 1, p.maxBlocksPerMultiProcessor);
    return cudaSuccess;
}
EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *function, int threads,
                                                                 size_t shared) {
    return cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(blocks, function, threads, shared, 0);
}
EXPORT cudaError_t cudaLibraryLoadData(cudaLibrary_t *library, const void *, cudaJitOption *, void **, unsigned,
                                       cudaLibraryOption *, void **, unsigned) {
    *library = reinterpret_cast<cudaLibrary_t>(0x1000);
    return cudaSuccess;
}
EXPORT cudaError_t cudaLibraryGetKernel(cudaKernel_t *kernel, cudaLibrary_t, const char *) {
    *kernel = reinterpret_cast<cudaKernel_t>(0x1000);
    return cudaSuccess;
}
