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

// Time (clock.cpp): each thread of the host has a clock, and three engines of the card do one thing at a time each.
enum Engine { TO_CARD, FROM_CARD, KERNELS, NUM_ENGINES };
double host_now();                                           // this thread's clock
void spend_host(double seconds);                             // this thread is busy for so long
void spend_call();                                           // on a call that is neither launch nor copy
void wait_until(double when);                                // this thread waits, and the wait is counted
double place(Engine engine, double ready, double seconds);   // when what can start at `ready` is done
double kernel_seconds(double guess);                         // what the card takes for a launch

// Streams (streams.cpp): each has a clock too.
void spend(void *stream, Engine engine, double seconds);
void wait_for(void *stream);
void wait_for_all();
