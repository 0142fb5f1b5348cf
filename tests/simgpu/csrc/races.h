#pragma once
// Race detection: each piece of memory remembers who touched which of its bytes. An access that conflicts
// with one which its own agent has not seen to be over is an error that names both operations.

#include <unordered_set>
#include <vector>

#include <c10/util/Exception.h>

#include "clocks.h"

namespace sim {

inline std::string
    label;  // set from Python, a module's name for example; becomes part of each operation's name
inline std::unordered_set<std::string> operation_names;

inline const std::string* intern(const std::string& operation) {
  return &*operation_names.insert(label.empty() ? operation : operation + " [" + label + "]").first;
}

struct Access {
  int64_t begin, end;  // bytes within the memory
  int agent;
  uint64_t clock;  // the agent's own count when it happened
  const std::string* operation;
  bool writes;
  Picoseconds time;
};
using Track = std::vector<Access>;

inline bool is_seen(const Access& access, const VectorClock& by) { return by[access.agent] >= access.clock; }

inline std::string describe(const Access& access) {
  return c10::str(access.writes ? "write" : "read", " by ", *access.operation, " on ",
                  agent_name(access.agent), " (bytes ", access.begin, "..", access.end, ", at ",
                  to_seconds(access.time - epoch) * 1e6, " us)");
}

inline bool conflicts(const Access& a, const Access& b) {
  return a.agent != b.agent && (a.writes || b.writes) && a.begin < b.end && b.begin < a.end;
}

inline void check_access(const Track& track, const Access& access) {
  const VectorClock& seen = agents[access.agent].seen;
  for (auto earlier = track.rbegin(); earlier != track.rend();
       ++earlier)  // the latest offender is the one to name
    TORCH_CHECK(!conflicts(*earlier, access) || is_seen(*earlier, seen), "sim race: ", describe(access),
                " is not ordered after ", describe(*earlier),
                ". Order them with an event wait, or synchronise.");
}

// What lies inside a checked write is ordered before it, and a later read by the same agent stands for an
// earlier one.
inline void note_access(Track& track, const Access& access) {
  std::erase_if(track, [&](const Access& earlier) {
    bool inside = access.begin <= earlier.begin && earlier.end <= access.end;
    return inside && (access.writes || (earlier.agent == access.agent && !earlier.writes));
  });
  track.push_back(access);
}

}  // namespace sim
