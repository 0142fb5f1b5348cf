#pragma once
// Device memory: a hard capacity, 512-byte rounding, counters, and races over freed memory.

#include <set>

#include <c10/core/CPUAllocator.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Storage.h>

#include "host_memory.h"

namespace sim {

constexpr auto kSim = c10::DeviceType::PrivateUse1;
constexpr int64_t kRoundingBytes = 512;  // as in PyTorch's CUDA allocator (kMinBlockSize)

struct Allocation {
  void* address = nullptr;  // null where `owner` has the memory
  int64_t num_bytes;        // rounded
  int device;
  int agent;  // the stream it was allocated on, whose later operations may be given the memory again
  Track track{};
  std::set<int> recorded{};  // agents, by record_stream
  c10::Storage owner{};      // the result of a CPU kernel, adopted without a copy
};

// Gives back what record_stream held for streams that have passed by now.
inline void reap(Device& device) {
  std::erase_if(device.deferred, [&](const Deferred& deferred) {
    if (deferred.until > host().time) return false;
    device.allocated_bytes -= deferred.num_bytes;
    return true;
  });
}

inline void free_allocation(void* context) {
  auto* allocation = (Allocation*)context;
  {
    Lock lock(mutex);
    Device& device = devices[allocation->device];
    VectorClock seen = agents[allocation->agent].seen;
    join(seen, host().seen);
    for (auto& access : allocation->track)
      if (access.agent != allocation->agent && !is_seen(access, seen) &&
          !allocation->recorded.count(access.agent))
        device.graves.push_back({access, allocation->agent});
    Picoseconds until = 0;
    for (int agent : allocation->recorded) until = std::max(until, agents[agent].time);
    device.deferred.push_back({allocation->num_bytes, until});
    reap(device);
  }
  std::free(allocation->address);
  delete allocation;
}

// A caching allocator hands freed memory out again on the stream it was allocated on, without waiting for
// others. Any later allocation of that stream counts as such a reuse, whatever its size.
inline void refuse_unordered_reuse(Device& device, int agent) {
  VectorClock seen = agents[agent].seen;
  join(seen, host().seen);
  std::string complaint;
  std::erase_if(device.graves, [&](const Grave& grave) {
    if (grave.agent != agent) return false;
    if (!is_seen(grave.access, seen))
      complaint = c10::str(
          "sim race: memory allocated and freed on ", agent_name(agent),
          " may be reused by this allocation while the ", describe(grave.access),
          " is not known to be over. Use record_stream, an event wait before freeing, or synchronise.");
    return true;
  });
  TORCH_CHECK(complaint.empty(), complaint);
}

inline void make_room(Device& device, int index, int64_t num_bytes) {
  reap(device);
  auto is_full = [&] { return device.allocated_bytes + num_bytes > device.capacity_bytes; };
  if (is_full() && !device.deferred.empty()) {  // as CUDA: wait for the streams, then try again
    for (auto& deferred : device.deferred) host().time = std::max(host().time, deferred.until);
    reap(device);
  }
  if (!is_full()) return;
  device.counters.num_out_of_memory++;
  using c10::CachingAllocator::format_size;  // the wording is the CUDA allocator's
  int64_t free_bytes = std::max<int64_t>(0, device.capacity_bytes - device.allocated_bytes);
  TORCH_CHECK_WITH(OutOfMemoryError, false, "sim out of memory. Tried to allocate ", format_size(num_bytes),
                   ". GPU ", index, " has a total capacity of ", format_size(device.capacity_bytes),
                   " of which ", format_size(free_bytes), " is free. Of the allocated memory ",
                   format_size(device.allocated_bytes),
                   " is allocated by PyTorch, and 0 bytes is reserved by PyTorch but unallocated.");
}

inline Allocation* new_allocation(int index, int64_t requested_bytes) {
  static const std::string name = "the allocation";
  Lock lock(mutex);
  Device& device = devices[index];
  int agent = current_agent(index);
  int64_t num_bytes = (requested_bytes + kRoundingBytes - 1) / kRoundingBytes * kRoundingBytes;
  refuse_unordered_reuse(device, agent);
  make_room(device, index, num_bytes);
  device.allocated_bytes += num_bytes;
  device.peak_bytes = std::max(device.peak_bytes, device.allocated_bytes);
  device.counters.num_allocations++;
  auto* allocation = new Allocation{.num_bytes = num_bytes, .device = index, .agent = agent};
  // The memory may have had another owner, whose work this stream still has before it.
  if (uint64_t clock = agents[agent].seen[agent])
    allocation->track.push_back({0, requested_bytes, agent, clock, &name, true, agents[agent].time});
  return allocation;
}

inline void record_stream(const c10::DataPtr& memory, c10::Stream stream) {
  if (memory.get_deleter() != &free_allocation) return;
  Lock lock(mutex);
  ((Allocation*)memory.get_context())->recorded.insert(agent_of(stream.device_index(), stream.id()));
}

struct DeviceAllocator final : c10::DeviceAllocator {
  c10::DataPtr allocate(size_t num_bytes) override {
    auto* allocation = new_allocation(current_device, num_bytes);
    if (num_bytes) TORCH_CHECK(!posix_memalign(&allocation->address, 64, num_bytes), "host memory ran out");
    return {allocation->address, allocation, &free_allocation, c10::Device(kSim, allocation->device)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, std::size_t num_bytes) const override {
    std::memcpy(to, from, num_bytes);
  }
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t) override {}
  void recordStream(const c10::DataPtr& memory, c10::Stream stream) override {
    record_stream(memory, stream);
  }
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex index) override {
    c10::CachingDeviceAllocator::DeviceStats stats;
    Device& device = devices[index];
    for (auto* bytes :
         {&stats.allocated_bytes, &stats.reserved_bytes, &stats.active_bytes, &stats.requested_bytes}) {
      (*bytes)[0].current = device.allocated_bytes;
      (*bytes)[0].peak = device.peak_bytes;
    }
    stats.num_ooms = device.counters.num_out_of_memory;
    return stats;
  }
  void resetAccumulatedStats(c10::DeviceIndex) override {}
  void resetPeakStats(c10::DeviceIndex index) override {
    devices[index].peak_bytes = devices[index].allocated_bytes;
  }
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex index) override {
    Device& device = devices[index];
    return {std::max<int64_t>(0, device.capacity_bytes - device.allocated_bytes), device.capacity_bytes};
  }
};
inline DeviceAllocator allocator;
REGISTER_ALLOCATOR(c10::DeviceType::PrivateUse1, &allocator);

}  // namespace sim
