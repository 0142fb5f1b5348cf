#pragma once
// One simulated device: its rates, engines and counters, and the timeline of what ran.

#include "races.h"

namespace sim {

// The fields are those of `Rates` in torch_sim.py, which documents them and holds the defaults.
struct Rates {
  double flops_per_second, memory_bytes_per_second, launch_seconds;
  double pinned_copy_bytes_per_second, pageable_copy_bytes_per_second;
  double pinned_readback_bytes_per_second, readback_bytes_per_second;
  double peer_copy_bytes_per_second, copy_latency_seconds;
  double enqueue_seconds, query_seconds;
};
inline Rates rates{};

struct Engine {  // does one thing at a time, in the order they were asked for
  Picoseconds free = 0, busy = 0;
};

struct Counters {
  int64_t num_operations = 0, num_allocations = 0, num_out_of_memory = 0;
  int64_t moved_bytes = 0, num_copies_in = 0, pageable_in_bytes = 0;
  int64_t moved_back_bytes = 0, num_copies_out = 0, pageable_out_bytes = 0;
  int64_t num_blocking_copies = 0, num_staged_copies = 0, num_synchronizes = 0;
  Picoseconds host_wait = 0;
  double flops = 0;
};

struct Grave {  // memory freed while `access`, by a stream other than its own, was not known to be over
  Access access;
  int agent;  // whose memory it was
};
struct Deferred {  // memory freed after record_stream: it is held until those streams have passed
  int64_t num_bytes;
  Picoseconds until;
};

struct Device {
  int64_t capacity_bytes = 0, allocated_bytes = 0, peak_bytes = 0;
  Engine compute, copy_in, copy_out;
  Counters counters;
  std::vector<Grave> graves;
  std::vector<Deferred> deferred;
  int num_streams_made = 0;
};
inline std::array<Device, kNumDevices> devices;

struct Entry {
  const char* engine;
  const std::string* operation;
  int agent;
  Picoseconds start, end;
  int64_t num_bytes;
  double flops;
};
inline std::vector<Entry> timeline;

// The host hands something to a stream, which from then on has seen all that the host has.
inline void reach(int agent) {
  host().time += to_picoseconds(rates.enqueue_seconds);
  join(agents[agent].seen, host().seen);
}

// Something that touches memory.
inline void enqueue(int agent) {
  reach(agent);
  agents[agent].seen[agent]++;
}

struct Work {
  const char* engine;
  const std::string* operation;
  double seconds;
  int64_t num_bytes;
  double flops = 0;
};

// Runs as soon as the stream, the host and the engine have all come that far; returns when it ends.
inline Picoseconds occupy(Engine& engine, int agent, const Work& work) {
  Agent& stream = agents[agent];
  Picoseconds start = std::max({stream.time, host().time, engine.free});
  Picoseconds span = to_picoseconds(work.seconds);
  stream.time = engine.free = start + span;
  engine.busy += span;
  timeline.push_back({work.engine, work.operation, agent, start, stream.time, work.num_bytes, work.flops});
  return stream.time;
}

}  // namespace sim
