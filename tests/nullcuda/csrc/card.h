// The card, as the stub libraries share it. Everything here is defined in the stub of libcudart (card.cpp, streams.cpp).
#pragma once
#include <cstddef>
#include <cstdint>
#include <mutex>

#define EXPORT extern "C" __attribute__((visibility("default")))

constexpr size_t MIB = 1 << 20;
constexpr size_t GRANULE = 2 * MIB;  // what the driver hands out
inline size_t granules(size_t bytes) { return (bytes + GRANULE - 1) / GRANULE * GRANULE; }

struct Card {  // settings, each from an environment variable of the same name (README.md)
    const char *name;
    size_t total_bytes, context_bytes;
    size_t others_bytes;        // what another process holds
    size_t pinned_limit_bytes;  // page-locking beyond is refused
    size_t copy_limit_bytes;    // copies above are only counted: for weights of real size, which nobody reads
    int major, minor, multiprocessors;
    double flops_per_second, memory_bytes_per_second, copy_bytes_per_second, pageable_copy_bytes_per_second;
    double kernel_seconds, copy_seconds;  // what the card takes for each, however small
    // What the host takes for a launch (with PyTorch's own work for it), for a copy, for any other call, and for memory.
    double host_launch_seconds, host_copy_seconds, host_call_seconds, host_malloc_seconds;
    double page_lock_bytes_per_second;
    unsigned char uuid[16];
};

struct Counters {  // in the order of tests/nullcuda/card.py
    uint64_t to_card_bytes, from_card_bytes, pageable_bytes, on_card_bytes;
    uint64_t num_to_card_copies, num_from_card_copies, num_pageable_copies, num_on_card_copies;
    uint64_t num_launches, num_host_waits, num_mallocs, num_frees, num_page_locks;
    uint64_t used_bytes, used_peak_bytes, pinned_bytes, pinned_peak_bytes, pinned_total_bytes;
    double host_wait_seconds, to_card_seconds, from_card_seconds, kernel_seconds;  // waited; each engine busy
};

extern "C" {
Card *nullcuda_card();
void nullcuda_trace(const char *what);  // a line for NULLCUDA_TRACE

// Memory of the device. What this process has taken counts with its context, in whole granules.
size_t nullcuda_used_bytes();
bool nullcuda_has_context();
void nullcuda_make_context();
bool nullcuda_take(size_t bytes);                       // false beyond the card's memory
void nullcuda_give(size_t bytes);
void *nullcuda_reserve(size_t bytes, bool accessible);  // addresses only, as aligned as the driver's
void nullcuda_map(void *at, size_t bytes);              // addresses become device memory
void nullcuda_unmap(void *at);

void nullcuda_work(void *stream, double flops, double bytes);  // a kernel: it takes time and does nothing
void nullcuda_busy(void *stream, double seconds);              // kernels, whoever tells what others take
}
