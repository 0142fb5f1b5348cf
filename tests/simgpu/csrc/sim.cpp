// The simulated accelerator: a PyTorch PrivateUse1 device with real numbers, a hard memory capacity, virtual
// time and race detection. Read the headers in this order: clocks, races, device, host_memory, device_memory,
// tensors, costs, fallback, copies, factories, streams. torch_sim.py is the Python side.

#include <ATen/native/transformers/attention.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "copies.h"
#include "streams.h"

namespace sim {

// The CPU's choice of attention kernel, so that the operations are those which a trace on CPU tensors sees. Tensors
// without values, by which `torch.compile` follows shapes, go through what attention consists of (math: 0).
int64_t choose_attention(const Tensor& query, const Tensor& key, const Tensor& value,
                         const std::optional<Tensor>& mask, double dropout_p, bool is_causal,
                         std::optional<double> scale, bool enable_gqa) {
  if (query.key_set().has(c10::DispatchKey::Python)) return 0;
  Pairs pairs;
  auto lent_mask = mask ? std::optional<Tensor>(lend(*mask, pairs)) : std::nullopt;
  return at::_fused_sdp_choice(lend(query, pairs), lend(key, pairs), lend(value, pairs), lent_mask, dropout_p,
                               is_causal, scale, enable_gqa);
}

// Waits for everything; what is reported starts again at zero.
void reset() {
  Lock lock(mutex);
  VectorClock seen{};
  Picoseconds end = 0;
  for (auto& agent : agents) {
    join(seen, agent.seen);
    end = std::max(end, agent.time);
  }
  host_waits(seen, end);
  for (auto& agent : agents) agent = {end, seen};
  for (auto& device : devices) {
    reap(device);
    device.graves.clear();
    device.counters = {};
    device.compute.busy = device.copy_in.busy = device.copy_out.busy = 0;
    device.peak_bytes = device.allocated_bytes;
  }
  pinned_peak_bytes = pinned_bytes;
  timeline.clear();
  epoch = end;
}

pybind11::dict counters(int index) {
  Lock lock(mutex);
  Device& device = devices[index];
  Counters& counted = device.counters;
  using pybind11::literals::operator""_a;
  return pybind11::dict(
      "moved_bytes"_a = counted.moved_bytes, "num_copies_in"_a = counted.num_copies_in,
      "pageable_in_bytes"_a = counted.pageable_in_bytes, "moved_back_bytes"_a = counted.moved_back_bytes,
      "num_copies_out"_a = counted.num_copies_out, "pageable_out_bytes"_a = counted.pageable_out_bytes,
      "num_blocking_copies"_a = counted.num_blocking_copies,
      "num_staged_copies"_a = counted.num_staged_copies, "num_synchronizes"_a = counted.num_synchronizes,
      "host_wait_seconds"_a = to_seconds(counted.host_wait), "num_operations"_a = counted.num_operations,
      "flops"_a = counted.flops, "compute_seconds"_a = to_seconds(device.compute.busy),
      "copy_in_seconds"_a = to_seconds(device.copy_in.busy),
      "copy_out_seconds"_a = to_seconds(device.copy_out.busy), "num_allocations"_a = counted.num_allocations,
      "num_out_of_memory"_a = counted.num_out_of_memory);
}

pybind11::list list_timeline() {
  Lock lock(mutex);
  pybind11::list rows;
  for (auto& e : timeline)
    rows.append(pybind11::make_tuple(e.engine, *e.operation, device_of_agent(e.agent),
                                     stream_of_agent(e.agent), to_seconds(e.start - epoch),
                                     to_seconds(e.end - epoch), e.num_bytes, e.flops));
  return rows;
}

}  // namespace sim

namespace at::native {
REGISTER_PRIVATEUSE1_DISPATCH(_fused_sdp_choice_stub, &sim::choose_attention);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&sim::fallback>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &sim::empty);
  m.impl("empty_strided", &sim::empty_strided);
  m.impl("resize_", &sim::resize);
  m.impl("set_.source_Storage_storage_offset", &sim::set_storage);
  m.impl("set_.source_Storage", &sim::set_whole_storage);
  m.impl("set_.source_Tensor", &sim::set_tensor);
  m.impl("record_stream", &sim::record_stream_of);

  m.impl("_copy_from", &sim::copy_from);
  m.impl("_copy_from_and_resize", &sim::copy_from_and_resize);
  m.impl("_local_scalar_dense", &sim::item);
  // `param.data = ...` may change the device, as between CPU and CUDA.
  m.impl("_has_compatible_shallow_copy_type", [](const at::Tensor&, const at::Tensor&) { return true; });

  m.impl("as_strided", &sim::as_strided);
  m.impl("view", &sim::view);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("unfold", &at::native::unfold);
  m.impl("view_as_real", &at::native::view_as_real);
  m.impl("view_as_complex", &at::native::view_as_complex);

  // Taken apart for a backend that PyTorch does not know, one kernel on the CPU and on CUDA: send them whole.
  for (auto* name : {"convolution", "native_layer_norm", "native_group_norm"})
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&sim::fallback>());
}

// Operations of another library that are one kernel on a GPU, and one on the CPU: send them whole too.
void run_whole(const std::string& library, const std::string& name) {
  static std::vector<torch::Library> kept;  // what they hold ends with them
  kept.emplace_back(torch::Library::IMPL, library, c10::DispatchKey::PrivateUse1, __FILE__, __LINE__);
  kept.back().impl(name.c_str(), torch::CppFunction::makeFromBoxedFunction<&sim::fallback>());
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  using namespace sim;
  namespace py = pybind11;
  at::RegisterPrivateUse1HooksInterface(new Hooks());  // for the life of the process
  py::class_<Rates>(m, "Rates")
      .def(
          py::init<double, double, double, double, double, double, double, double, double, double, double>());
  m.def("set_rates", [](const Rates& changed) { rates = changed; });
  m.def("set_capacity",
        [](int64_t capacity_bytes, int device) { devices[device].capacity_bytes = capacity_bytes; });
  m.def("run_whole", &run_whole);
  m.def("set_label", [](const std::string& name) { label = name; });
  m.def("num_devices", [] { return kNumDevices; });
  m.def("set_pinned_capacity", [](int64_t capacity_bytes) { pinned_capacity_bytes = capacity_bytes; });
  m.def("pinned_bytes", [] { return std::make_pair(pinned_bytes, pinned_peak_bytes); });
  m.def("virtual_seconds", [] { return to_seconds(host().time - epoch); });
  m.def("host_clock", [] { return host().time; });
  m.def("set_host_clock", [](Picoseconds time) { host().time = time; });
  m.def("counters", &counters);
  m.def("timeline", &list_timeline);
  m.def("reset", &reset);
}
