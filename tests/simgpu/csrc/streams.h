#pragma once
// Streams, events and devices, as PyTorch asks for them.

#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include "factories.h"
#include "fallback.h"

namespace sim {

struct Event {
  Picoseconds time = 0;
  VectorClock seen{};
  int device = 0;
};

inline void check_index(int index) {
  TORCH_CHECK(0 <= index && index < kNumDevices, "invalid device ordinal sim:", index, "; there are ",
              kNumDevices);
}

inline c10::Stream stream_of(int device, int64_t id) {
  return c10::Stream(c10::Stream::UNSAFE, {kSim, (c10::DeviceIndex)device}, id);
}
inline int agent_of(const c10::Stream& stream) { return agent_of(stream.device_index(), stream.id()); }
inline int index_of(c10::Device device) { return device.has_index() ? device.index() : current_device; }

inline void synchronize(int device, const VectorClock& seen, Picoseconds until) {
  devices[device].counters.num_synchronizes++;
  devices[device].counters.host_wait += host_waits(seen, until);
}

inline bool is_over(const VectorClock& seen,
                    Picoseconds end) {  // asking costs the host time, or polling would never end
  host().time += to_picoseconds(rates.query_seconds);
  if (host().time < end) return false;
  host_waits(seen, end);
  return true;
}

struct Guard final : c10::impl::DeviceGuardImplInterface {
  static constexpr c10::DeviceType static_type = kSim;
  c10::DeviceType type() const override { return kSim; }
  c10::DeviceIndex deviceCount() const noexcept override { return kNumDevices; }
  c10::Device getDevice() const override { return {kSim, (c10::DeviceIndex)current_device}; }
  void uncheckedSetDevice(c10::Device device) const noexcept override { current_device = index_of(device); }
  void setDevice(c10::Device device) const override {
    check_index(index_of(device));
    uncheckedSetDevice(device);
  }
  c10::Device exchangeDevice(c10::Device device) const override {
    auto previous = getDevice();
    setDevice(device);
    return previous;
  }

  c10::Stream getStream(c10::Device device) const noexcept override {
    return stream_of(index_of(device), current_stream[index_of(device)]);
  }
  c10::Stream getDefaultStream(c10::Device device) const override { return stream_of(index_of(device), 0); }
  c10::Stream getNewStream(c10::Device device, int) const override {
    Lock lock(mutex);
    return stream_of(index_of(device), 1 + devices[index_of(device)].num_streams_made++ % (kNumStreams - 1));
  }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override {
    return getNewStream(device, 0);
  }
  c10::Stream exchangeStream(c10::Stream stream) const noexcept override {
    auto previous = getStream(stream.device());
    current_stream[stream.device_index()] = stream.id();
    return previous;
  }
  bool queryStream(const c10::Stream& stream) const override {
    Lock lock(mutex);
    Agent& agent = agents[agent_of(stream)];
    return is_over(agent.seen, agent.time);
  }
  void synchronizeStream(const c10::Stream& stream) const override {
    Lock lock(mutex);
    Agent& agent = agents[agent_of(stream)];
    synchronize(stream.device_index(), agent.seen, agent.time);
  }
  void synchronizeDevice(const c10::DeviceIndex index) const override {
    Lock lock(mutex);
    int device = index < 0 ? current_device : index;
    VectorClock seen{};
    Picoseconds until = 0;
    for (int stream = 0; stream < kNumStreams; stream++) {
      Agent& agent = agents[agent_of(device, stream)];
      join(seen, agent.seen);
      until = std::max(until, agent.time);
    }
    synchronize(device, seen, until);
  }

  void record(void** event, const c10::Stream& stream, const c10::DeviceIndex,
              const c10::EventFlag) const override {
    Lock lock(mutex);
    if (!*event) *event = new Event;
    Agent& agent = agents[agent_of(stream)];
    reach(agent_of(stream));
    agent.time = std::max(agent.time, host().time);
    *(Event*)*event = {agent.time, agent.seen, stream.device_index()};
  }
  void block(void* event, const c10::Stream& stream) const override {
    if (!event) return;  // never recorded: nothing to wait for, as on CUDA
    Lock lock(mutex);
    auto* waited_for = (Event*)event;
    Agent& agent = agents[agent_of(stream)];
    reach(agent_of(stream));
    agent.time = std::max(agent.time, waited_for->time);
    join(agent.seen, waited_for->seen);
  }
  bool queryEvent(void* event) const override {
    Lock lock(mutex);
    return !event || is_over(((Event*)event)->seen, ((Event*)event)->time);
  }
  void synchronizeEvent(void* event) const override {
    Lock lock(mutex);
    if (event) synchronize(((Event*)event)->device, ((Event*)event)->seen, ((Event*)event)->time);
  }
  double elapsedTime(void* from, void* to, const c10::DeviceIndex) const override {  // milliseconds
    return to_seconds(((Event*)to)->time - ((Event*)from)->time) * 1e3;
  }
  void destroyEvent(void* event, const c10::DeviceIndex) const noexcept override { delete (Event*)event; }
  void recordDataPtrOnStream(const c10::DataPtr& memory, const c10::Stream& stream) const override {
    record_stream(memory, stream);
  }
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  bool isPinnedPtr(const void* address) const override {
    Lock lock(mutex);
    return find_pinned(address);
  }
  at::Allocator* getPinnedMemoryAllocator() const override { return &pinned_allocator; }
  at::Device getDeviceFromPtr(void*) const override { return {kSim, (c10::DeviceIndex)current_device}; }
  at::Generator getNewGenerator(c10::DeviceIndex index) const override {
    return at::make_generator<Generator>(index < 0 ? current_device : index,
                                         at::detail::createCPUGenerator());
  }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex index) const override {
    static std::array<at::Generator, kNumDevices> generators;
    auto& generator = generators[index < 0 ? current_device : index];
    if (!generator.defined()) generator = getNewGenerator(index);
    return generator;
  }
  c10::DeviceIndex deviceCount() const override { return kNumDevices; }
  c10::DeviceIndex getCurrentDevice() const override { return current_device; }
  void setCurrentDevice(c10::DeviceIndex index) const override {
    check_index(index);
    current_device = index;
  }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex index) const override {
    int previous = current_device;
    if (index >= 0) setCurrentDevice(index);
    return previous;
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex index) const override {
    return exchangeDevice(index);
  }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t num_bytes) const override {
    resize_storage(storage.unsafeGetStorageImpl(), num_bytes);
  }
};

}  // namespace sim
