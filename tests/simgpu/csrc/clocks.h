#pragma once
// Virtual time, and who has seen what.
//
// The host and every stream are agents. Each has a clock (virtual time) and a vector clock (order). They are
// kept apart on purpose: a race is judged by order alone, so a run that was only lucky in its timing is still
// a race.

#include <Python.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <mutex>
#include <string>

#include <c10/util/StringUtil.h>

namespace sim {

constexpr int kNumDevices = 2;
constexpr int kNumStreams =
    33;  // per device: the default one, and a pool of 32 handed out in turn, as CUDA does
constexpr int kNumAgents = 1 + kNumDevices * kNumStreams;

inline std::recursive_mutex mutex;  // around all state of the simulated machine

// Who waits for it lets go of Python meanwhile: a thread that has it may need Python, to free a tensor.
struct Lock {
  explicit Lock(std::recursive_mutex& mutex) : mutex_(mutex) {
    if (mutex_.try_lock()) return;
    PyThreadState* python = PyGILState_Check() ? PyEval_SaveThread() : nullptr;
    mutex_.lock();
    if (python) PyEval_RestoreThread(python);
  }
  ~Lock() { mutex_.unlock(); }
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;

 private:
  std::recursive_mutex& mutex_;
};

// Whole picoseconds: sums are exact, so a span does not depend on when it began.
using Picoseconds = int64_t;
inline Picoseconds to_picoseconds(double seconds) { return std::llround(seconds * 1e12); }
inline double to_seconds(Picoseconds time) { return double(time) / 1e12; }

using VectorClock =
    std::array<uint64_t, kNumAgents>;  // by agent: how many of its operations are known to be over

inline void join(VectorClock& into, const VectorClock& other) {
  for (int i = 0; i < kNumAgents; i++) into[i] = std::max(into[i], other[i]);
}

struct Agent {
  Picoseconds time = 0;  // of a stream: when its last operation ends
  VectorClock seen{};
};
inline std::array<Agent, kNumAgents> agents;  // [0] is the host: all its threads are one agent

// What is reported starts here. Clocks never run backwards, because events keep the times they were recorded
// at.
inline Picoseconds epoch = 0;

inline Agent& host() { return agents[0]; }
inline int agent_of(int device, int64_t stream) { return 1 + device * kNumStreams + int(stream); }
inline int device_of_agent(int agent) { return (agent - 1) / kNumStreams; }
inline int stream_of_agent(int agent) { return (agent - 1) % kNumStreams; }
inline std::string agent_name(int agent) {
  return c10::str("stream ", stream_of_agent(agent), " of sim:", device_of_agent(agent));
}

inline thread_local int current_device = 0;
inline thread_local std::array<int64_t, kNumDevices> current_stream{};
inline int current_agent(int device) { return agent_of(device, current_stream[device]); }

}  // namespace sim
