// The one device: what PyTorch and its libraries ask of its properties, and errors.
#include <dlfcn.h>

#include <cstdio>
#include <cstring>

#include "runtime.h"

namespace {
thread_local cudaError_t last_error = cudaSuccess;

struct Error { cudaError_t code; const char *name, *text; };
constexpr Error ERRORS[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorHostMemoryAlreadyRegistered, "cudaErrorHostMemoryAlreadyRegistered",
     "part or all of the requested memory range is already mapped"},
    {cudaErrorHostMemoryNotRegistered, "cudaErrorHostMemoryNotRegistered",
     "pointer does not correspond to a registered memory region"},
    {cudaErrorNotSupported, "cudaErrorNotSupported", "operation not supported"},
};
Error described(cudaError_t code) {
    for (auto &each : ERRORS)
        if (each.code == code) return each;
    return {code, "cudaErrorUnknown", "an error that the null card does not know"};
}
// H100 and A100 have more of everything than the GPUs people own; their capabilities end in 0.
bool is_datacenter() { return nullcuda_card()->minor == 0; }
}  // namespace

cudaError_t fail(cudaError_t error) {
    if (error != cudaSuccess) last_error = error;
    return error;
}
EXPORT cudaError_t cudaGetLastError() {
    auto error = last_error;
    last_error = cudaSuccess;
    return error;
}
EXPORT cudaError_t cudaPeekAtLastError() { return last_error; }
EXPORT const char *cudaGetErrorName(cudaError_t error) { return described(error).name; }
EXPORT const char *cudaGetErrorString(cudaError_t error) { return described(error).text; }

EXPORT cudaError_t cudaGetDeviceCount(int *count) {
    *count = 1;
    return cudaSuccess;
}
EXPORT cudaError_t cudaGetDevice(int *device) {
    *device = 0;
    return cudaSuccess;
}
EXPORT cudaError_t cudaSetDevice(int device) {
    if (device != 0) return fail(cudaErrorInvalidDevice);
    nullcuda_make_context();
    return cudaSuccess;
}
EXPORT cudaError_t cudaDriverGetVersion(int *version) {
    *version = 13000;
    return cudaSuccess;
}
EXPORT cudaError_t cudaRuntimeGetVersion(int *version) { return cudaDriverGetVersion(version); }

EXPORT cudaError_t cudaGetDeviceProperties(cudaDeviceProp *p, int device) {
    if (device != 0) return fail(cudaErrorInvalidDevice);
    auto *card = nullcuda_card();
    *p = {};
    snprintf(p->name, sizeof p->name, "%s", card->name);
    memcpy(&p->uuid, card->uuid, sizeof card->uuid);
    p->totalGlobalMem = card->total_bytes;
    p->major = card->major, p->minor = card->minor;
    p->multiProcessorCount = card->multiprocessors;
    p->warpSize = 32, p->maxThreadsPerBlock = 1024, p->maxBlocksPerMultiProcessor = 24;
    p->maxThreadsPerMultiProcessor = is_datacenter() ? 2048 : 1536;
    p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024, p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 2147483647, p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->sharedMemPerBlock = 49152, p->reservedSharedMemPerBlock = 1024;
    p->sharedMemPerMultiprocessor = is_datacenter() ? 233472 : 102400;
    p->sharedMemPerBlockOptin = is_datacenter() ? 232448 : 101376;
    p->totalConstMem = 65536, p->memPitch = 2147483647, p->textureAlignment = 512, p->texturePitchAlignment = 32;
    p->memoryBusWidth = is_datacenter() ? 5120 : 128, p->l2CacheSize = 24 * MIB;
    p->asyncEngineCount = is_datacenter() ? 3 : 2;
    p->canMapHostMemory = p->concurrentKernels = p->unifiedAddressing = p->pciBusID = 1;
    p->streamPrioritiesSupported = p->globalL1CacheSupported = p->localL1CacheSupported = p->managedMemory = 1;
    p->concurrentManagedAccess = p->cooperativeLaunch = p->memoryPoolsSupported = 1;
    return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int device) {
    cudaDeviceProp p;
    if (auto error = cudaGetDeviceProperties(&p, device)) return error;
    switch (attribute) {
        case cudaDevAttrMaxThreadsPerBlock: *value = p.maxThreadsPerBlock; break;
        case cudaDevAttrMaxGridDimX: *value = p.maxGridSize[0]; break;
        case cudaDevAttrMaxGridDimY:
        case cudaDevAttrMaxGridDimZ: *value = p.maxGridSize[1]; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *value = p.sharedMemPerBlock; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = p.sharedMemPerBlockOptin; break;
        case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *value = p.sharedMemPerMultiprocessor; break;
        case cudaDevAttrMaxRegistersPerBlock:
        case cudaDevAttrMaxRegistersPerMultiprocessor: *value = p.regsPerBlock; break;
        case cudaDevAttrMaxThreadsPerMultiProcessor: *value = p.maxThreadsPerMultiProcessor; break;
        case cudaDevAttrMaxBlocksPerMultiprocessor: *value = p.maxBlocksPerMultiProcessor; break;
        case cudaDevAttrWarpSize: *value = p.warpSize; break;
        case cudaDevAttrMultiProcessorCount: *value = p.multiProcessorCount; break;
        case cudaDevAttrComputeCapabilityMajor: *value = p.major; break;
        case cudaDevAttrComputeCapabilityMinor: *value = p.minor; break;
        case cudaDevAttrL2CacheSize: *value = p.l2CacheSize; break;
        case cudaDevAttrClockRate: *value = 2460000; break;
        case cudaDevAttrMemoryClockRate: *value = 8501000; break;
        case cudaDevAttrGlobalMemoryBusWidth: *value = p.memoryBusWidth; break;
        case cudaDevAttrConcurrentKernels:
        case cudaDevAttrUnifiedAddressing:
        case cudaDevAttrCooperativeLaunch:
        case cudaDevAttrMemoryPoolsSupported:
        case cudaDevAttrStreamPrioritiesSupported: *value = 1; break;
        default: *value = 0;
    }
    return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceGetPCIBusId(char *text, int bytes, int) {
    snprintf(text, bytes, "0000:01:00.0");
    return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    if (least) *least = 0;
    if (greatest) *greatest = -5;
    return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceCanAccessPeer(int *can, int, int) {
    *can = 0;
    return cudaSuccess;
}

// The runtime's way to the driver: expandable segments come by it.
EXPORT cudaError_t cudaGetDriverEntryPointByVersion(const char *symbol, void **function, unsigned, unsigned long long,
                                                    cudaDriverEntryPointQueryResult *status) {
    static void *driver = dlopen("libcuda.so.1", RTLD_NOW);
    *function = driver ? dlsym(driver, symbol) : nullptr;
    if (status) *status = *function ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return *function ? cudaSuccess : fail(cudaErrorNotSupported);
}
