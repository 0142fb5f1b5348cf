// Streams and events: each stream is a clock, an event is a time on one. The host takes no time of its own, and
// everything is done at once, in the order in which the host asks for it.
#include <algorithm>
#include <set>

#include "runtime.h"

namespace {
constexpr double LAUNCH_SECONDS = 3e-6;
struct Stream { double now = 0; int priority = 0; };
struct Event { double at = 0; bool is_recorded = false; unsigned flags = 0; };

Stream legacy;  // the default stream, by any of its three names
std::set<Stream *> streams;
double host_now = 0;  // how far the host has waited

Stream *of(void *stream) {
    return reinterpret_cast<uintptr_t>(stream) <= 2 ? &legacy : static_cast<Stream *>(stream);
}
Event *of(cudaEvent_t event) { return reinterpret_cast<Event *>(event); }
void wait_until(double when) { host_now = std::max(host_now, when); }
}  // namespace

void spend(void *stream, double seconds) {
    Lock lock(mutex);
    of(stream)->now = std::max(of(stream)->now, host_now) + seconds;
}
void wait_for(void *stream) {
    Lock lock(mutex);
    wait_until(of(stream)->now);
}
EXPORT void nullcuda_work(void *stream, double flops, double bytes) {
    Lock lock(mutex);
    auto *card = nullcuda_card();
    ++counters.num_launches;
    spend(stream, LAUNCH_SECONDS + std::max(flops / card->flops_per_second, bytes / card->memory_bytes_per_second));
}

EXPORT cudaError_t cudaDeviceSynchronize() {
    Lock lock(mutex);
    wait_until(legacy.now);
    for (auto *stream : streams) wait_until(stream->now);
    return cudaSuccess;
}
EXPORT cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned, int priority) {
    Lock lock(mutex);
    nullcuda_make_context();
    auto *made = new Stream{host_now, priority};
    streams.insert(made);
    *stream = reinterpret_cast<cudaStream_t>(made);
    return cudaSuccess;
}
EXPORT cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
    return cudaStreamCreateWithPriority(stream, flags, 0);
}
EXPORT cudaError_t cudaStreamCreate(cudaStream_t *stream) { return cudaStreamCreateWithPriority(stream, 0, 0); }
EXPORT cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    Lock lock(mutex);
    if (streams.erase(of(stream))) delete of(stream);
    return cudaSuccess;
}
EXPORT cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority) {
    *priority = of(stream)->priority;
    return cudaSuccess;
}
EXPORT cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    wait_for(stream);
    return cudaSuccess;
}
EXPORT cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    Lock lock(mutex);
    if (!event) return fail(cudaErrorInvalidResourceHandle);
    of(stream)->now = std::max(of(stream)->now, of(event)->at);
    return cudaSuccess;
}
EXPORT cudaError_t cudaLaunchHostFunc(cudaStream_t, cudaHostFn_t function, void *data) {
    function(data);
    return cudaSuccess;
}
EXPORT cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t function, void *data, unsigned) {
    function(stream, cudaSuccess, data);
    return cudaSuccess;
}
EXPORT cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus *status) {
    *status = cudaStreamCaptureStatusNone;  // there are no graphs
    return cudaSuccess;
}
EXPORT cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus *status, unsigned long long *id,
                                            cudaGraph_t *, const cudaGraphNode_t **, const cudaGraphEdgeData **,
                                            size_t *) {
    *status = cudaStreamCaptureStatusNone;
    if (id) *id = 0;
    return cudaSuccess;
}

EXPORT cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
    nullcuda_make_context();
    *event = reinterpret_cast<cudaEvent_t>(new Event{0, false, flags});
    return cudaSuccess;
}
EXPORT cudaError_t cudaEventCreate(cudaEvent_t *event) { return cudaEventCreateWithFlags(event, 0); }
EXPORT cudaError_t cudaEventDestroy(cudaEvent_t event) {
    delete of(event);
    return cudaSuccess;
}
EXPORT cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    Lock lock(mutex);
    if (!event) return fail(cudaErrorInvalidResourceHandle);
    of(event)->at = std::max(of(stream)->now, host_now), of(event)->is_recorded = true;
    return cudaSuccess;
}
EXPORT cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) {
    return cudaEventRecord(event, stream);
}
EXPORT cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    Lock lock(mutex);
    wait_until(of(event)->at);
    return cudaSuccess;
}
EXPORT cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
    Lock lock(mutex);
    for (auto event : {start, end})
        if (!event || !of(event)->is_recorded || of(event)->flags & cudaEventDisableTiming)
            return fail(cudaErrorInvalidResourceHandle);
    *milliseconds = (of(end)->at - of(start)->at) * 1e3;
    return cudaSuccess;
}
