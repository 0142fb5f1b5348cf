// NVML's answers about the one card, for pynvml and for PyTorch's out-of-memory message.
#include <unistd.h>

#include <cstdio>
#include <cstring>

#include "card.h"

namespace {
struct Memory { unsigned long long total, free, used; };
struct Process { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; };
constexpr int NOT_FOUND = 6, INSUFFICIENT_SIZE = 7;  // NVML_ERROR_
constexpr unsigned ANOTHER_PID = 1;                   // of whoever holds `others_bytes`
void *const THE_CARD = reinterpret_cast<void *>(0x1000);

void write_uuid(char *text, unsigned room) {
    char hex[33];
    for (int i = 0; i < 16; ++i) snprintf(hex + 2 * i, 3, "%02x", nullcuda_card()->uuid[i]);
    snprintf(text, room, "GPU-%.8s-%.4s-%.4s-%.4s-%.12s", hex, hex + 8, hex + 12, hex + 16, hex + 20);
}
}  // namespace

EXPORT int nvmlInit_v2() { return 0; }
EXPORT int nvmlInitWithFlags(unsigned) { return 0; }
EXPORT int nvmlShutdown() { return 0; }
EXPORT const char *nvmlErrorString(int) { return "an error of the null NVML"; }
EXPORT int nvmlSystemGetCudaDriverVersion_v2(int *version) { return *version = 13000, 0; }
EXPORT int nvmlSystemGetDriverVersion(char *text, unsigned room) { return snprintf(text, room, "580.00"), 0; }
EXPORT int nvmlSystemGetProcessName(unsigned pid, char *text, unsigned room) {
    return snprintf(text, room, "process %u", pid), 0;
}
EXPORT int nvmlDeviceGetCount_v2(unsigned *count) { return *count = 1, 0; }
EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    return *handle = THE_CARD, index ? NOT_FOUND : 0;
}
EXPORT int nvmlDeviceGetHandleByPciBusId_v2(const char *, void **handle) { return *handle = THE_CARD, 0; }
EXPORT int nvmlDeviceGetUUID(void *, char *text, unsigned room) { return write_uuid(text, room), 0; }
EXPORT int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
    char own[64];
    write_uuid(own, sizeof own);
    *handle = THE_CARD;
    return strcmp(own, uuid) ? NOT_FOUND : 0;
}
EXPORT int nvmlDeviceGetName(void *, char *text, unsigned room) {
    return snprintf(text, room, "%s", nullcuda_card()->name), 0;
}
EXPORT int nvmlDeviceGetMemoryInfo(void *, Memory *memory) {
    memory->total = nullcuda_card()->total_bytes;
    memory->used = nullcuda_used_bytes() + nullcuda_card()->others_bytes;
    memory->free = memory->total - memory->used;
    return 0;
}
EXPORT int nvmlDeviceGetGraphicsRunningProcesses_v3(void *, unsigned *count, Process *) { return *count = 0, 0; }
EXPORT int nvmlDeviceGetComputeRunningProcesses_v3(void *, unsigned *count, Process *processes) {
    unsigned room = *count;
    auto others_bytes = nullcuda_card()->others_bytes;
    *count = nullcuda_has_context() + (others_bytes > 0);
    if (*count > room) return INSUFFICIENT_SIZE;
    if (nullcuda_has_context()) *processes++ = {static_cast<unsigned>(getpid()), nullcuda_used_bytes(), ~0u, ~0u};
    if (others_bytes) *processes = {ANOTHER_PID, others_bytes, ~0u, ~0u};
    return 0;
}
EXPORT int nvmlDeviceGetComputeRunningProcesses(void *device, unsigned *count, Process *processes) {
    return nvmlDeviceGetComputeRunningProcesses_v3(device, count, processes);
}
