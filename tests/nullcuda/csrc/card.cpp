// The card: its settings, its memory as numbers and addresses, what has been counted.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "runtime.h"

std::recursive_mutex mutex;
std::map<uintptr_t, Span> spans;
Counters counters;

namespace {
size_t taken_bytes = 0;
bool has_context = false;
FILE *trace_file = nullptr;

double setting(const char *name, double otherwise) {
    const char *text = getenv(name);
    return text && *text ? strtod(text, nullptr) : otherwise;
}
size_t bytes_setting(const char *name, size_t otherwise) {
    double given = setting(name, -1);
    return given < 0 ? otherwise : static_cast<size_t>(given);
}
Card read_card() {
    Card card{};
    const char *name = getenv("NULLCUDA_NAME");
    card.name = strdup(name ? name : "NVIDIA GeForce RTX 4060");
    card.total_bytes = bytes_setting("NULLCUDA_TOTAL_BYTES", size_t(7.63 * 1024) * MIB);
    card.context_bytes = bytes_setting("NULLCUDA_CONTEXT_BYTES", 300 * MIB);
    card.others_bytes = bytes_setting("NULLCUDA_OTHERS_BYTES", 0);
    card.pinned_limit_bytes = bytes_setting("NULLCUDA_PINNED_LIMIT_BYTES", SIZE_MAX);
    card.copy_limit_bytes = bytes_setting("NULLCUDA_COPY_LIMIT_BYTES", SIZE_MAX);
    int capability = setting("NULLCUDA_CAPABILITY", 89);
    card.major = capability / 10, card.minor = capability % 10;
    card.multiprocessors = setting("NULLCUDA_MULTIPROCESSORS", 24);
    card.flops_per_second = setting("NULLCUDA_FLOPS_PER_SECOND", 4e13);
    card.memory_bytes_per_second = setting("NULLCUDA_MEMORY_BYTES_PER_SECOND", 2.5e11);
    card.copy_bytes_per_second = setting("NULLCUDA_COPY_BYTES_PER_SECOND", 1.2e10);
    card.pageable_copy_bytes_per_second =
        setting("NULLCUDA_PAGEABLE_COPY_BYTES_PER_SECOND", card.copy_bytes_per_second / 3);
    card.kernel_seconds = setting("NULLCUDA_KERNEL_SECONDS", 2e-6);
    card.copy_seconds = setting("NULLCUDA_COPY_SECONDS", 4e-6);
    card.host_launch_seconds = setting("NULLCUDA_HOST_LAUNCH_SECONDS", 6e-6);
    card.host_copy_seconds = setting("NULLCUDA_HOST_COPY_SECONDS", 8e-6);
    card.host_call_seconds = setting("NULLCUDA_HOST_CALL_SECONDS", 1e-6);
    card.host_malloc_seconds = setting("NULLCUDA_HOST_MALLOC_SECONDS", 1e-4);
    card.page_lock_bytes_per_second = setting("NULLCUDA_PAGE_LOCK_BYTES_PER_SECOND", 4e9);
    for (int i = 0; i < 16; ++i) card.uuid[i] = 0xa0 + i;
    if (const char *path = getenv("NULLCUDA_TRACE")) trace_file = strcmp(path, "-") ? fopen(path, "a") : stderr;
    return card;
}
}  // namespace

EXPORT Card *nullcuda_card() {
    static Card card = read_card();
    return &card;
}
EXPORT void nullcuda_trace(const char *what) {
    nullcuda_card();
    if (trace_file) fprintf(trace_file, "%s\n", what), fflush(trace_file);
}

EXPORT bool nullcuda_has_context() { return has_context; }
EXPORT void nullcuda_make_context() { has_context = true; }
EXPORT size_t nullcuda_used_bytes() {
    Lock lock(mutex);
    return taken_bytes + (has_context ? nullcuda_card()->context_bytes : 0);
}
EXPORT bool nullcuda_take(size_t bytes) {
    Lock lock(mutex);
    nullcuda_make_context();
    auto *card = nullcuda_card();
    if (nullcuda_used_bytes() + card->others_bytes + granules(bytes) > card->total_bytes) return false;
    taken_bytes += granules(bytes);
    ++counters.num_mallocs;
    spend_host(card->host_malloc_seconds);
    counters.used_peak_bytes = std::max(counters.used_peak_bytes, nullcuda_used_bytes());
    return true;
}
EXPORT void nullcuda_give(size_t bytes) {
    Lock lock(mutex);
    taken_bytes -= granules(bytes);
    ++counters.num_frees;
}

EXPORT void *nullcuda_reserve(size_t bytes, bool accessible) {
    size_t wanted = granules(bytes), size = wanted + GRANULE;  // one more, to start at a whole one
    int access = accessible ? PROT_READ | PROT_WRITE : PROT_NONE;
    void *raw = mmap(nullptr, size, access, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (raw == MAP_FAILED) return nullptr;
    auto start = reinterpret_cast<uintptr_t>(raw), first = granules(start), last = first + wanted;
    if (first > start) munmap(raw, first - start);
    if (start + size > last) munmap(reinterpret_cast<void *>(last), start + size - last);
    auto *reserved = reinterpret_cast<void *>(first);
    madvise(reserved, wanted, MADV_NOHUGEPAGE);  // a huge page would cost the host memory that no one touched
    madvise(reserved, wanted, MADV_DONTDUMP);
    return reserved;
}
EXPORT void nullcuda_map(void *at, size_t bytes) {
    Lock lock(mutex);
    spans[reinterpret_cast<uintptr_t>(at)] = {bytes, Kind::device};
}
EXPORT void nullcuda_unmap(void *at) {
    Lock lock(mutex);
    spans.erase(reinterpret_cast<uintptr_t>(at));
}
const Span *find(const void *pointer) {
    auto address = reinterpret_cast<uintptr_t>(pointer);
    auto next = spans.upper_bound(address);
    if (next == spans.begin()) return nullptr;
    --next;
    return address < next->first + next->second.bytes ? &next->second : nullptr;
}

EXPORT uint64_t nullcuda_num_launches() { return counters.num_launches; }
EXPORT void nullcuda_counters(Counters *found) {
    Lock lock(mutex);
    *found = counters;
    found->used_bytes = nullcuda_used_bytes();
}
EXPORT void nullcuda_reset_counters() {
    Lock lock(mutex);
    auto pinned_bytes = counters.pinned_bytes;
    counters = {.used_peak_bytes = nullcuda_used_bytes(), .pinned_bytes = pinned_bytes, .pinned_peak_bytes = pinned_bytes};
}
