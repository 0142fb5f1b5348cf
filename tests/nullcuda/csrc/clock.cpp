// Time, none of which is real: clocks of the host's threads, and the card's engines.
#include <algorithm>
#include <iterator>

#include "runtime.h"

namespace {
constexpr double SAME_SECONDS = 1e-9;    // gaps below are none
constexpr size_t NUM_REMEMBERED = 4096;  // stretches of work of one engine; no stream is further behind than that

thread_local double clock_seconds = -1;      // below zero until this thread first asks
double last_clock_seconds = 0;               // of the thread that asked last: there a new one starts
thread_local bool kernels_are_told = false;  // someone who knows will say what the next launches take: clock.Cost

std::map<double, double> stretches[NUM_ENGINES];  // of work, from start to end, by their start

void move_to(double seconds) { clock_seconds = last_clock_seconds = seconds; }
double &busy_seconds(Engine engine) {
    if (engine == KERNELS) return counters.kernel_seconds;
    return engine == TO_CARD ? counters.to_card_seconds : counters.from_card_seconds;
}
}  // namespace

double host_now() {
    Lock lock(mutex);
    if (clock_seconds < 0) clock_seconds = last_clock_seconds;
    return clock_seconds;
}
void spend_host(double seconds) {
    Lock lock(mutex);
    move_to(host_now() + seconds);
}
void spend_call() { spend_host(nullcuda_card()->host_call_seconds); }
void wait_until(double when) {
    Lock lock(mutex);
    spend_call();
    ++counters.num_host_waits;
    counters.host_wait_seconds += std::max(0.0, when - host_now());
    move_to(std::max(host_now(), when));
}

// Into the first gap that is long enough: what waits for another stream holds up no work that could go before it.
double place(Engine engine, double ready, double seconds) {
    if (seconds <= 0) return ready;
    auto &all = stretches[engine];
    auto next = all.upper_bound(ready);
    if (next != all.begin()) ready = std::max(ready, std::prev(next)->second);
    for (; next != all.end() && next->first < ready + seconds; ++next) ready = std::max(ready, next->second);
    double end = ready + seconds;
    busy_seconds(engine) += seconds;
    if (next != all.begin() && std::prev(next)->second >= ready - SAME_SECONDS)
        std::prev(next)->second = end;
    else
        all[ready] = end;
    if (all.size() > NUM_REMEMBERED) all.erase(all.begin());
    return end;
}
double kernel_seconds(double guess) { return nullcuda_card()->kernel_seconds + (kernels_are_told ? 0 : guess); }

// For tests/nullcuda/clock.py.
EXPORT double nullcuda_host_seconds() { return host_now(); }
EXPORT void nullcuda_host_work(double seconds) { spend_host(seconds); }
EXPORT void nullcuda_kernels_are_told(bool are_told) { kernels_are_told = are_told; }
EXPORT void nullcuda_busy(void *stream, double seconds) { spend(stream, KERNELS, seconds); }
