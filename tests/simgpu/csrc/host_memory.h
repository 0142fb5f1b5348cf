#pragma once
// Pinned host memory, what is still on its way to or from it, and the host's waiting.

#include <cstdlib>
#include <cstring>
#include <map>
#include <utility>

#include <c10/core/Allocator.h>

#include "device.h"

namespace sim {

struct Pinned {
  size_t num_bytes;
  Track track;
};
inline std::map<uintptr_t, Pinned> pinned;  // by address
inline int64_t pinned_bytes = 0, pinned_peak_bytes = 0, pinned_capacity_bytes = INT64_MAX;

inline Pinned* find_pinned(const void* address) {
  auto it = pinned.upper_bound(uintptr_t(address));
  if (it == pinned.begin()) return nullptr;
  --it;
  return uintptr_t(address) < it->first + std::max<size_t>(it->second.num_bytes, 1) ? &it->second : nullptr;
}

// A copy in whose source the host must not change yet: found out by hash.
struct Departure {
  uint64_t hash;
  int agent;
  uint64_t clock;
  const std::string* operation;
};
inline std::map<std::pair<const char*, int64_t>, Departure> departures;  // by source address and size

// A copy out whose bytes the host cannot see yet.
struct Arrival {
  char* destination;
  std::string bytes;
  int agent;
  uint64_t clock;
};
inline std::vector<Arrival> arrivals;

// FNV-1a, eight bytes at a time.
inline uint64_t hash_of(const char* bytes, int64_t num_bytes) {
  uint64_t hash = 1469598103934665603ull;
  int64_t i = 0;
  for (; i + 8 <= num_bytes; i += 8) {
    uint64_t word;
    std::memcpy(&word, bytes + i, 8);
    hash = (hash ^ word) * 1099511628211ull;
    hash ^= hash >> 29;
  }
  for (; i < num_bytes; i++) hash = (hash ^ uint8_t(bytes[i])) * 1099511628211ull;
  return hash;
}

inline std::string changed_in_flight(const Departure& departure) {
  return c10::str("sim race: the pinned source of ", *departure.operation, " on ",
                  agent_name(departure.agent),
                  " was changed by the host while the copy was in flight. Synchronise before changing it.");
}

inline void expect_unchanged(const char* source, int64_t num_bytes, int agent, const std::string* operation) {
  Departure departure{hash_of(source, num_bytes), agent, agents[agent].seen[agent], operation};
  auto [it, is_new] = departures.try_emplace({source, num_bytes}, departure);
  Departure earlier = std::exchange(it->second, departure);
  TORCH_CHECK(is_new || earlier.hash == departure.hash, changed_in_flight(earlier));
}

// Until the host has waited for it, it sees 0xff bytes (NaN in every floating type) where the copy will be.
inline void withhold(char* destination, int64_t num_bytes, int agent) {
  arrivals.push_back({destination, std::string(destination, num_bytes), agent, agents[agent].seen[agent]});
  std::memset(destination, 0xff, num_bytes);
}

template <typename Due>
void deliver(const Due& is_due) {
  std::erase_if(arrivals, [&](const Arrival& arrival) {
    if (!is_due(arrival)) return false;
    std::memcpy(arrival.destination, arrival.bytes.data(), arrival.bytes.size());
    return true;
  });
}

// The host waits until `until`, and has then seen what `seen` has. Returns how long it stood still.
inline Picoseconds host_waits(const VectorClock& seen, Picoseconds until) {
  Picoseconds waited = std::max<Picoseconds>(0, until - host().time);
  host().time += waited;
  join(host().seen, seen);
  deliver([](const Arrival& arrival) { return host().seen[arrival.agent] >= arrival.clock; });
  std::string complaint;
  std::erase_if(departures, [&](const auto& item) {
    auto& [source, departure] = item;
    if (host().seen[departure.agent] < departure.clock) return false;
    if (hash_of(source.first, source.second) != departure.hash) complaint = changed_in_flight(departure);
    return true;
  });
  TORCH_CHECK(complaint.empty(), complaint);
  return waited;
}

// As PyTorch's own pinned allocator does, memory that a copy still uses may be dropped: nobody can see it any
// more.
inline void free_pinned(void* address) {
  {
    Lock lock(mutex);
    auto it = pinned.find(uintptr_t(address));
    char *begin = (char*)address, *end = begin + it->second.num_bytes;
    auto inside = [&](const char* p) { return begin <= p && p < end; };
    std::erase_if(departures, [&](const auto& item) { return inside(item.first.first); });
    std::erase_if(arrivals, [&](const Arrival& arrival) { return inside(arrival.destination); });
    pinned_bytes -= it->second.num_bytes;
    pinned.erase(it);
  }
  std::free(address);
}

struct PinnedAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t num_bytes) override {
    void* address = nullptr;
    {
      Lock lock(mutex);
      TORCH_CHECK(pinned_bytes + int64_t(num_bytes) <= pinned_capacity_bytes, "sim: no more memory may be pinned");
    }
    TORCH_CHECK(!posix_memalign(&address, 4096, std::max<size_t>(num_bytes, 1)), "host memory ran out");
    Lock lock(mutex);
    pinned[uintptr_t(address)] = {num_bytes, {}};
    pinned_bytes += num_bytes;
    pinned_peak_bytes = std::max(pinned_peak_bytes, pinned_bytes);
    return {address, address, &free_pinned, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free_pinned; }
  void copy_data(void* to, const void* from, std::size_t num_bytes) const override {
    std::memcpy(to, from, num_bytes);
  }
};
inline PinnedAllocator pinned_allocator;

}  // namespace sim
