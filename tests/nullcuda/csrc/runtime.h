// What the parts of the stub of libcudart know of one another.
#pragma once
#include <cuda_runtime_api.h>

#include <map>

#include "card.h"

enum class Kind { device, host, registered };
struct Span { size_t bytes; Kind kind; };

extern std::recursive_mutex mutex;
using Lock = std::lock_guard<std::recursive_mutex>;
extern std::map<uintptr_t, Span> spans;  // all memory that CUDA knows, by its first address
extern Counters counters;

const Span *find(const void *pointer);        // the span that an address is in, or null: pageable memory
cudaError_t fail(cudaError_t error);          // remember it for cudaGetLastError
void spend(void *stream, double seconds);     // the stream is busy for so long
void wait_for(void *stream);                  // the host waits for the stream
