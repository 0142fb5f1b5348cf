// Streams and events: each stream has a clock, an event is a time on one. What they ask for is done at once, in the order
// in which the host asks; its time comes when the clocks say so.
#include <algorithm>
#include <set>

#include "runtime.h"

namespace {
struct Stream { double now = 0; int priority = 0; };
struct Event { double at = 0; bool is_recorded = false; unsigned flags = 0; };

Stream legacy;  // the default stream, by any of its three names
std::set<Stream *> streams;

Stream *of(void *stream) {
    return reinterpret_cast<uintptr_t>(stream) <= 2 ? &legacy : static_cast<Stream *>(stream);
}
Event *of(cudaEvent_t event) { return reinterpret_cast<Event *>(event); }
cudaError_t done_by_now(double when) { return when <= host_now() ? cudaSuccess : fail(cudaErrorNotReady); }
}  // namespace

void spend(void *stream, Engine engine, double seconds) {
    Lock lock(mutex);
    of(stream)->now = place(engine, std::max(of(stream)->now, host_now()), seconds);
}
void wait_for(void *stream) {
    Lock lock(mutex);
    wait_until(of(stream)->now);
}
void wait_for_all() {
    Lock lock(mutex);
    double last = legacy.now;
    for (auto *stream : streams) last = std::max(last, stream->now);
    wait_until(last);
}
EXPORT void nullcuda_work(void *stream, double flops, double bytes) {
    Lock lock(mutex);
    auto *card = nullcuda_card();
    ++counters.num_launches;
    spend_host(card->host_launch_seconds);
    double guess = std::max(flops / card->flops_per_second, bytes / card->memory_bytes_per_second);
    spend(stream, KERNELS, kernel_seconds(guess));
}

EXPORT cudaError_t cudaDeviceSynchronize() {
    wait_for_all();
    return cudaSuccess;
}
EXPORT cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned, int priority) {
    Lock lock(mutex);
    nullcuda_make_context();
    auto *made = new Stream{host_now(), priority};
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
EXPORT cudaError_t cudaStreamQuery(cudaStream_t stream) {
    Lock lock(mutex);
    spend_call();
    return done_by_now(of(stream)->now);
}
EXPORT cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    wait_for(stream);
    return cudaSuccess;
}
EXPORT cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    Lock lock(mutex);
    if (!event) return fail(cudaErrorInvalidResourceHandle);
    spend_call();
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
    spend_call();
    of(event)->at = std::max(of(stream)->now, host_now()), of(event)->is_recorded = true;
    return cudaSuccess;
}
EXPORT cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned) {
    return cudaEventRecord(event, stream);
}
EXPORT cudaError_t cudaEventQuery(cudaEvent_t event) {
    Lock lock(mutex);
    spend_call();
    return of(event)->is_recorded ? done_by_now(of(event)->at) : cudaSuccess;
}
EXPORT cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    Lock lock(mutex);
    if (of(event)->is_recorded) wait_until(of(event)->at);
    return cudaSuccess;
}
EXPORT cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
    Lock lock(mutex);
    for (auto event : {start, end})
        if (!event || !of(event)->is_recorded || of(event)->flags & cudaEventDisableTiming)
            return fail(cudaErrorInvalidResourceHandle);
    if (auto error = done_by_now(of(end)->at)) return error;
    *milliseconds = (of(end)->at - of(start)->at) * 1e3;
    return cudaSuccess;
}
