// The part of the driver's API that PyTorch asks for: contexts, and virtual memory for expandable segments.
#include <sys/mman.h>

#include <cstring>
#include <map>
#include <mutex>

#include "card.h"

namespace {
constexpr int INVALID_VALUE = 1, OUT_OF_MEMORY = 2;  // CUDA_ERROR_
struct Piece { size_t bytes; int num_references; };  // physical memory, apart from addresses
using Handle = unsigned long long;

std::mutex mutex;
using Lock = std::lock_guard<std::mutex>;
std::map<Handle, Piece> pieces;
std::map<void *, Handle> mapped;
Handle next_handle = 1;
void *const THE_CONTEXT = reinterpret_cast<void *>(0x1000);

void release(Handle handle) {
    auto found = pieces.find(handle);
    if (found == pieces.end() || --found->second.num_references) return;
    nullcuda_give(found->second.bytes);
    pieces.erase(found);
}
}  // namespace

EXPORT int cuInit(unsigned) { return 0; }
EXPORT int cuDriverGetVersion(int *version) { return *version = 13000, 0; }
EXPORT int cuDeviceGet(int *device, int index) { return *device = index, 0; }
EXPORT int cuDeviceGetCount(int *count) { return *count = 1, 0; }
EXPORT int cuDeviceGetUuid(void *uuid, int) { return memcpy(uuid, nullcuda_card()->uuid, 16), 0; }
EXPORT int cuDeviceGetAttribute(int *value, int attribute, int) {
    switch (attribute) {  // CU_DEVICE_ATTRIBUTE_
        case 10: *value = 32; break;   // WARP_SIZE
        case 16: *value = nullcuda_card()->multiprocessors; break;
        case 75: *value = nullcuda_card()->major; break;
        case 76: *value = nullcuda_card()->minor; break;
        case 102: *value = 1; break;   // VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED
        case 103: *value = 1; break;   // HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED
        default: *value = 0;
    }
    return 0;
}
EXPORT int cuDevicePrimaryCtxGetState(int, unsigned *flags, int *is_active) {
    if (flags) *flags = 0;
    return *is_active = nullcuda_has_context(), 0;
}
EXPORT int cuDevicePrimaryCtxRetain(void **context, int) {
    nullcuda_make_context();
    return *context = THE_CONTEXT, 0;
}
EXPORT int cuCtxGetCurrent(void **context) { return *context = nullcuda_has_context() ? THE_CONTEXT : nullptr, 0; }
EXPORT int cuGetErrorString(int, const char **text) { return *text = "an error of the null driver", 0; }
EXPORT int cuGetErrorName(int, const char **text) { return *text = "CUDA_ERROR", 0; }

EXPORT int cuMemGetAllocationGranularity(size_t *granularity, const void *, int) { return *granularity = GRANULE, 0; }
EXPORT int cuMemAddressReserve(void **at, size_t bytes, size_t, void *, unsigned long long) {
    *at = nullcuda_reserve(bytes, false);
    return *at ? 0 : OUT_OF_MEMORY;
}
EXPORT int cuMemAddressFree(void *at, size_t bytes) { return munmap(at, bytes), 0; }
EXPORT int cuMemCreate(Handle *handle, size_t bytes, const void *, unsigned long long) {
    Lock lock(mutex);
    if (!nullcuda_take(bytes)) return OUT_OF_MEMORY;
    *handle = next_handle++;
    pieces[*handle] = {bytes, 1};
    return 0;
}
EXPORT int cuMemRelease(Handle handle) {
    Lock lock(mutex);
    return release(handle), 0;
}
EXPORT int cuMemMap(void *at, size_t bytes, size_t, Handle handle, unsigned long long) {
    Lock lock(mutex);
    if (!pieces.count(handle)) return INVALID_VALUE;
    ++pieces[handle].num_references;
    mapped[at] = handle;
    nullcuda_map(at, bytes);
    return 0;
}
EXPORT int cuMemSetAccess(void *at, size_t bytes, const void *, size_t) {
    return mprotect(at, bytes, PROT_READ | PROT_WRITE) ? INVALID_VALUE : 0;
}
EXPORT int cuMemUnmap(void *at, size_t bytes) {
    Lock lock(mutex);
    madvise(at, bytes, MADV_DONTNEED);
    mprotect(at, bytes, PROT_NONE);
    auto *end = static_cast<char *>(at) + bytes;
    for (auto each = mapped.lower_bound(at); each != mapped.end() && each->first < end; each = mapped.erase(each)) {
        release(each->second);
        nullcuda_unmap(each->first);
    }
    return 0;
}
EXPORT int cuPointerGetAttribute(void *value, int attribute, void *pointer) {
    switch (attribute) {  // CU_POINTER_ATTRIBUTE_
        case 2: *static_cast<int *>(value) = 2; break;  // MEMORY_TYPE: device
        case 9: *static_cast<int *>(value) = 0; break;  // DEVICE_ORDINAL
        default: *static_cast<void **>(value) = pointer;
    }
    return 0;
}
EXPORT int cuFuncGetAttribute(int *value, int, void *) { return *value = 0, 0; }
EXPORT int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void *, int, size_t) { return *blocks = 1, 0; }
EXPORT int cuModuleGetFunction(void **function, void *, const char *) { return *function = THE_CONTEXT, 0; }
EXPORT int cuModuleLoadData(void **module, const void *) { return *module = THE_CONTEXT, 0; }
EXPORT int cuModuleLoadDataEx(void **module, const void *, unsigned, int *, void **) { return *module = THE_CONTEXT, 0; }
EXPORT int cuLaunchKernel(void *, unsigned x, unsigned y, unsigned z, unsigned in_x, unsigned in_y, unsigned in_z,
                          unsigned, void *stream, void **, void **) {
    nullcuda_work(stream, 0, 16.0 * x * y * z * in_x * in_y * in_z);
    return 0;
}
