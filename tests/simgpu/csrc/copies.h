#pragma once
// Copies: in, out, between devices and on one, each with CUDA's rules of who waits for whom.

#include "costs.h"

namespace sim {

struct Copy {
  enum class Kind { in, out, peer, local } kind;
  const Tensor &source, &destination;
  bool is_non_blocking;
  bool is_pinned = true;
  int device = 0, agent = 0;
  int64_t num_bytes = 0;
  const std::string* operation = nullptr;
};

// Pageable host memory has none: nobody watches it.
inline Track* track_of(const Tensor& t) {
  if (auto* allocation = t.is_cpu() ? nullptr : allocation_of(t)) return &allocation->track;
  auto* block = t.is_cpu() ? find_pinned(t.storage().data()) : nullptr;
  return block ? &block->track : nullptr;
}

inline Copy describe_copy(const Tensor& source, const Tensor& destination, bool is_non_blocking) {
  static const std::array<const char*, 4> names = {"copy to device", "copy to host", "copy between devices",
                                                   "copy on device"};
  using Kind = Copy::Kind;
  Kind kind = source.is_cpu()                                           ? Kind::in
              : destination.is_cpu()                                    ? Kind::out
              : source.device().index() != destination.device().index() ? Kind::peer
                                                                        : Kind::local;
  Copy copy{kind, source, destination, is_non_blocking};
  if (kind == Kind::in) copy.is_pinned = track_of(source) != nullptr;
  if (kind == Kind::out) copy.is_pinned = track_of(destination) != nullptr;
  copy.device = (kind == Kind::in ? destination : source).device().index();
  copy.agent = current_agent(copy.device);
  copy.num_bytes = source.nbytes();
  copy.operation = intern(names[int(kind)]);
  return copy;
}

inline void copy_bytes(const Copy& copy) {
  Access reads = access_to(copy.source, copy.agent, copy.operation, false);
  Access writes = access_to(copy.destination, copy.agent, copy.operation, true);
  Track *source = track_of(copy.source), *destination = track_of(copy.destination);
  if (source) check_access(*source, reads);
  if (destination) check_access(*destination, writes);
  if (copy.kind == Copy::Kind::in && source)  // on the device's side, what is on its way to the host is there
    deliver([&](const Arrival& a) {
      return find_pinned(a.destination) == find_pinned(copy.source.storage().data());
    });
  Pairs pairs;
  lend(copy.destination, pairs).copy_(lend(copy.source, pairs));
  if (source) note_access(*source, reads);
  if (destination) note_access(*destination, writes);
}

inline Picoseconds charge(const Copy& copy) {
  Device& device = devices[copy.device];
  auto seconds = [&](double rate) { return rates.copy_latency_seconds + copy.num_bytes / rate; };
  switch (copy.kind) {
    case Copy::Kind::in: {
      device.counters.num_copies_in++;
      device.counters.moved_bytes += copy.num_bytes;
      if (!copy.is_pinned) device.counters.pageable_in_bytes += copy.num_bytes;
      double rate =
          copy.is_pinned ? rates.pinned_copy_bytes_per_second : rates.pageable_copy_bytes_per_second;
      return occupy(device.copy_in, copy.agent, {"copy in", copy.operation, seconds(rate), copy.num_bytes});
    }
    case Copy::Kind::out: {
      device.counters.num_copies_out++;
      device.counters.moved_back_bytes += copy.num_bytes;
      if (!copy.is_pinned) device.counters.pageable_out_bytes += copy.num_bytes;
      double rate = copy.is_pinned ? rates.pinned_readback_bytes_per_second : rates.readback_bytes_per_second;
      return occupy(device.copy_out, copy.agent, {"copy out", copy.operation, seconds(rate), copy.num_bytes});
    }
    case Copy::Kind::peer:
      return occupy(device.copy_out, copy.agent,
                    {"copy out", copy.operation, seconds(rates.peer_copy_bytes_per_second), copy.num_bytes});
    case Copy::Kind::local: {
      int64_t num_bytes = touched_bytes(copy.source) + touched_bytes(copy.destination);
      device.counters.num_operations++;
      return occupy(device.compute, copy.agent,
                    {"compute", copy.operation, compute_seconds(0, num_bytes), num_bytes});
    }
  }
  TORCH_CHECK(false, "no such copy");
}

// cudaMemcpyAsync and, if blocking, cudaStreamSynchronize: a pageable copy is staged by the host, which
// stands still meanwhile whatever was asked for; out of the device, it has then also seen it.
inline void settle(const Copy& copy, Picoseconds end) {
  Device& device = devices[copy.device];
  bool is_out = copy.kind == Copy::Kind::out;
  if (copy.is_non_blocking && !copy.is_pinned) device.counters.num_staged_copies++;
  if (!copy.is_non_blocking || (is_out && !copy.is_pinned)) {
    device.counters.num_blocking_copies++;
    device.counters.host_wait += host_waits(agents[copy.agent].seen, end);
  } else if (!copy.is_pinned) {
    device.counters.host_wait += std::max<Picoseconds>(0, end - host().time);
    host().time = std::max(host().time, end);
  } else if (!is_out && copy.source.is_non_overlapping_and_dense()) {
    expect_unchanged((const char*)copy.source.data_ptr(), copy.num_bytes, copy.agent, copy.operation);
  } else if (is_out && copy.destination.is_non_overlapping_and_dense()) {
    withhold((char*)copy.destination.data_ptr(), copy.destination.nbytes(), copy.agent);
  }
}

inline void join_streams(int a, int b) {
  join(agents[a].seen, agents[b].seen);
  agents[a].time = std::max(agents[a].time, agents[b].time);
}

inline Tensor copy_from(const Tensor& source, const Tensor& destination, bool is_non_blocking) {
  if (!source.numel()) return destination;
  Lock lock(mutex);
  Copy copy = describe_copy(source, destination, is_non_blocking);
  // As CUDA: between devices, both current streams wait for each other, before and after.
  bool is_peer = copy.kind == Copy::Kind::peer;
  int other = is_peer ? current_agent(destination.device().index()) : copy.agent;
  enqueue(copy.agent);
  join_streams(copy.agent, other);
  copy_bytes(copy);
  Picoseconds end = charge(copy);
  join_streams(other, copy.agent);
  if (source.is_cpu() || destination.is_cpu()) settle(copy, end);
  return destination;
}

inline Tensor copy_from_and_resize(const Tensor& source, const Tensor& destination) {
  destination.resize_(source.sizes());
  return copy_from(source, destination, false);
}

// A copy out for which the host waits; the copy counters, which are for weights and results, leave it out.
inline at::Scalar item(const Tensor& self) {
  Lock lock(mutex);
  int index = self.device().index(), agent = current_agent(index);
  Device& device = devices[index];
  auto* operation = intern("item()");
  enqueue(agent);
  if (auto* track = track_of(self)) {
    check_access(*track, access_to(self, agent, operation, false));
    note_access(*track, access_to(self, agent, operation, false));
  }
  double seconds = rates.copy_latency_seconds + self.nbytes() / rates.readback_bytes_per_second;
  Picoseconds end = occupy(device.copy_out, agent, {"copy out", operation, seconds, int64_t(self.nbytes())});
  device.counters.num_blocking_copies++;
  device.counters.host_wait += host_waits(agents[agent].seen, end);
  Pairs pairs;
  return lend(self, pairs).item();
}

}  // namespace sim
