// Memory of the device and of the host, and copies: bytes move at once, whatever their stream has to do before.
#include <sys/mman.h>

#include <algorithm>
#include <cstring>

#include "runtime.h"

namespace {
constexpr size_t STAGED_BYTES = 64 << 10;  // as much of pageable memory is taken along without holding the host up

bool is_on_card(const void *pointer) {
    auto *found = find(pointer);
    return found && found->kind == Kind::device;
}
// Passes the time of a copy and counts it; whether the host is held up until it is done. Pageable memory goes through a
// buffer of the driver's, which the host fills or empties.
bool pass(const void *to, const void *from, size_t bytes, void *stream) {
    bool is_to = is_on_card(to), is_from = is_on_card(from);
    auto *card = nullcuda_card();
    spend_host(card->host_copy_seconds);
    if (is_to && is_from) {
        ++counters.num_on_card_copies, counters.on_card_bytes += bytes;
        spend(stream, KERNELS, card->kernel_seconds + 2.0 * bytes / card->memory_bytes_per_second);
        return false;
    }
    if (!is_to && !is_from) return true;
    bool is_pinned = find(is_to ? from : to) != nullptr;
    ++(is_to ? counters.num_to_card_copies : counters.num_from_card_copies);
    (is_to ? counters.to_card_bytes : counters.from_card_bytes) += bytes;
    if (!is_pinned) ++counters.num_pageable_copies, counters.pageable_bytes += bytes;
    double rate = is_pinned ? card->copy_bytes_per_second : card->pageable_copy_bytes_per_second;
    spend(stream, is_to ? TO_CARD : FROM_CARD, card->copy_seconds + bytes / rate);
    return !is_pinned && (is_from || bytes > STAGED_BYTES);
}
void really_copy(void *to, const void *from, size_t bytes) {
    if (bytes <= nullcuda_card()->copy_limit_bytes) memmove(to, from, bytes);
}
void really_set(void *to, int value, size_t bytes) {
    constexpr uintptr_t PAGE = 4096;
    auto start = reinterpret_cast<uintptr_t>(to), stop = start + bytes;
    uintptr_t first = (start + PAGE - 1) & ~(PAGE - 1), last = stop & ~(PAGE - 1);
    if (value == 0 && first < last && last - first >= MIB && is_on_card(to)) {  // pages that are given back are zero
        memset(to, 0, first - start);
        madvise(reinterpret_cast<void *>(first), last - first, MADV_DONTNEED);
        memset(reinterpret_cast<void *>(last), 0, stop - last);
    } else if (bytes <= nullcuda_card()->copy_limit_bytes) {
        memset(to, value, bytes);
    }
}
cudaError_t copy(void *to, const void *from, size_t bytes, void *stream, bool waits) {
    Lock lock(mutex);
    nullcuda_make_context();
    bool is_held_up = pass(to, from, bytes, stream);
    really_copy(to, from, bytes);
    if (waits || is_held_up) wait_for(stream);
    return cudaSuccess;
}
// False beyond the limit; whoever locks pages waits until it is done.
bool lock_pages(size_t bytes) {
    auto *card = nullcuda_card();
    if (counters.pinned_bytes + bytes > card->pinned_limit_bytes) return false;
    ++counters.num_page_locks, counters.pinned_total_bytes += bytes, counters.pinned_bytes += bytes;
    counters.pinned_peak_bytes = std::max(counters.pinned_peak_bytes, counters.pinned_bytes);
    spend_host(card->host_malloc_seconds + bytes / card->page_lock_bytes_per_second);
    return true;
}
std::map<uintptr_t, Span>::iterator find_start(void *pointer, Kind kind) {
    auto found = spans.find(reinterpret_cast<uintptr_t>(pointer));
    return found != spans.end() && found->second.kind == kind ? found : spans.end();
}
cudaError_t give_back(void *pointer) {
    Lock lock(mutex);
    nullcuda_make_context();
    if (!pointer) return cudaSuccess;
    auto found = find_start(pointer, Kind::device);
    if (found == spans.end()) return fail(cudaErrorInvalidValue);  // such as memory freed twice
    nullcuda_give(found->second.bytes);
    munmap(pointer, granules(found->second.bytes));
    spans.erase(found);
    return cudaSuccess;
}
}  // namespace

EXPORT cudaError_t cudaMalloc(void **pointer, size_t bytes) {
    Lock lock(mutex);
    *pointer = nullptr;
    if (bytes == 0) return cudaSuccess;
    if (!nullcuda_take(bytes)) return fail(cudaErrorMemoryAllocation);
    *pointer = nullcuda_reserve(bytes, true);
    if (!*pointer) {
        nullcuda_give(bytes);
        return fail(cudaErrorMemoryAllocation);
    }
    nullcuda_map(*pointer, bytes);
    return cudaSuccess;
}
EXPORT cudaError_t cudaFree(void *pointer) {
    Lock lock(mutex);
    if (pointer) wait_for_all();
    return give_back(pointer);
}
// The driver's own pools keep no more than is in use.
EXPORT cudaError_t cudaMallocAsync(void **pointer, size_t bytes, cudaStream_t) { return cudaMalloc(pointer, bytes); }
EXPORT cudaError_t cudaFreeAsync(void *pointer, cudaStream_t) { return give_back(pointer); }
EXPORT cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int) {
    *pool = reinterpret_cast<cudaMemPool_t>(0x1000);
    return cudaSuccess;
}
EXPORT cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t, cudaMemPoolAttr attribute, void *value) {
    Lock lock(mutex);
    bool is_peak = attribute == cudaMemPoolAttrReservedMemHigh || attribute == cudaMemPoolAttrUsedMemHigh;
    size_t bytes = is_peak ? counters.used_peak_bytes : nullcuda_used_bytes();
    *static_cast<uint64_t *>(value) = bytes - std::min(bytes, nullcuda_card()->context_bytes);
    return cudaSuccess;
}
EXPORT cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr attribute, void *) {
    Lock lock(mutex);
    if (attribute == cudaMemPoolAttrReservedMemHigh) counters.used_peak_bytes = nullcuda_used_bytes();
    return cudaSuccess;
}
EXPORT cudaError_t cudaMemGetInfo(size_t *free, size_t *total) {
    Lock lock(mutex);
    nullcuda_make_context();
    *total = nullcuda_card()->total_bytes;
    *free = *total - std::min(*total, nullcuda_used_bytes() + nullcuda_card()->others_bytes);
    return cudaSuccess;
}

EXPORT cudaError_t cudaHostAlloc(void **pointer, size_t bytes, unsigned) {
    Lock lock(mutex);
    nullcuda_make_context();
    *pointer = nullptr;
    if (bytes == 0) return cudaSuccess;
    void *raw = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (raw == MAP_FAILED) return fail(cudaErrorMemoryAllocation);
    if (!lock_pages(bytes)) {
        munmap(raw, bytes);
        return fail(cudaErrorMemoryAllocation);
    }
    spans[reinterpret_cast<uintptr_t>(raw)] = {bytes, Kind::host};
    *pointer = raw;
    return cudaSuccess;
}
EXPORT cudaError_t cudaFreeHost(void *pointer) {
    Lock lock(mutex);
    if (!pointer) return cudaSuccess;
    auto found = find_start(pointer, Kind::host);
    if (found == spans.end()) return fail(cudaErrorInvalidValue);
    counters.pinned_bytes -= found->second.bytes;
    munmap(pointer, found->second.bytes);
    spans.erase(found);
    return cudaSuccess;
}
EXPORT cudaError_t cudaHostRegister(void *pointer, size_t bytes, unsigned) {
    Lock lock(mutex);
    nullcuda_make_context();
    if (!pointer || !bytes) return fail(cudaErrorInvalidValue);
    auto start = reinterpret_cast<uintptr_t>(pointer);
    auto next = spans.upper_bound(start);
    bool overlaps = find(pointer) || (next != spans.end() && next->first < start + bytes);
    if (overlaps) return fail(cudaErrorHostMemoryAlreadyRegistered);
    if (!lock_pages(bytes)) return fail(cudaErrorMemoryAllocation);
    spans[start] = {bytes, Kind::registered};
    return cudaSuccess;
}
EXPORT cudaError_t cudaHostUnregister(void *pointer) {
    Lock lock(mutex);
    auto found = find_start(pointer, Kind::registered);
    if (found == spans.end()) return fail(cudaErrorHostMemoryNotRegistered);
    counters.pinned_bytes -= found->second.bytes;
    spans.erase(found);
    return cudaSuccess;
}
EXPORT cudaError_t cudaPointerGetAttributes(cudaPointerAttributes *attributes, const void *pointer) {
    Lock lock(mutex);
    *attributes = {};
    auto *found = find(pointer);
    bool is_device = found && found->kind == Kind::device;
    attributes->device = found ? 0 : -2;
    attributes->type = !found ? cudaMemoryTypeUnregistered : is_device ? cudaMemoryTypeDevice : cudaMemoryTypeHost;
    if (found) attributes->devicePointer = const_cast<void *>(pointer);
    if (!is_device) attributes->hostPointer = const_cast<void *>(pointer);
    return cudaSuccess;
}

EXPORT cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind) {
    return copy(to, from, bytes, nullptr, true);
}
EXPORT cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
    return copy(to, from, bytes, stream, false);
}
EXPORT cudaError_t cudaMemcpyPeerAsync(void *to, int, const void *from, int, size_t bytes, cudaStream_t stream) {
    return copy(to, from, bytes, stream, false);
}
EXPORT cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width,
                                     size_t height, cudaMemcpyKind, cudaStream_t stream) {
    Lock lock(mutex);
    for (size_t row = 0; row < height; ++row)
        really_copy(static_cast<char *>(to) + row * to_pitch, static_cast<const char *>(from) + row * from_pitch, width);
    if (pass(to, from, width * height, stream)) wait_for(stream);
    return cudaSuccess;
}
EXPORT cudaError_t cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream) {
    Lock lock(mutex);
    really_set(to, value, bytes);
    nullcuda_work(stream, 0, bytes);
    return cudaSuccess;
}
EXPORT cudaError_t cudaMemset(void *to, int value, size_t bytes) { return cudaMemsetAsync(to, value, bytes, nullptr); }
EXPORT cudaError_t cudaGetSymbolAddress(void **pointer, const void *) {
    static void *page = nullptr;  // one for all variables of kernels: none of them ever reads it
    if (!page) cudaMalloc(&page, 4096);
    *pointer = page;
    return cudaSuccess;
}
