#pragma once
// Every operation that is neither a copy nor a view: the CPU's kernel runs on the device's bytes, and its
// results become device memory, so that numbers are the CPU's bit for bit.

#include <ATen/CPUGeneratorImpl.h>
#include <torch/library.h>

#include "costs.h"

namespace sim {

struct Generator final : c10::GeneratorImpl {  // a CPU generator that says it is the device's
  at::Generator cpu;
  Generator(int device, at::Generator cpu)
      : c10::GeneratorImpl({kSim, (c10::DeviceIndex)device},
                           c10::DispatchKeySet(c10::DispatchKey::PrivateUse1)),
        cpu(std::move(cpu)) {}
  void set_current_seed(uint64_t seed) override { cpu.set_current_seed(seed); }
  void set_offset(uint64_t offset) override { cpu.set_offset(offset); }
  uint64_t get_offset() const override { return cpu.get_offset(); }
  uint64_t current_seed() const override { return cpu.current_seed(); }
  uint64_t seed() override { return cpu.seed(); }
  void set_state(const c10::TensorImpl& state) override { cpu.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override {
    return cpu.unsafeGetGeneratorImpl()->get_state();
  }
  Generator* clone_impl() const override { return new Generator(device_.index(), cpu.clone()); }
};

enum class Use { read, changed, output };  // as declared: Tensor, Tensor(a!) and the latter as out=

struct Argument {
  Tensor device, cpu;
  Use use;
  bool writes() const { return use != Use::read; }
};

inline Use use_of(const c10::Argument& declared) {
  if (declared.is_out()) return Use::output;
  return declared.alias_info() && declared.alias_info()->isWrite() ? Use::changed : Use::read;
}

struct Call {
  const c10::FunctionSchema& schema;
  const std::string& name;
  Values given;  // the arguments as the caller passed them
  int device;
  Pairs pairs{};
  std::vector<Argument> arguments{};  // the device tensors among them
  std::vector<Tensor> results{};      // what is new
};

// A tensor decides, then a list of them, then a device argument.
inline int device_of(const Values& given) {
  for (auto& v : given)
    if (v.isTensor() && v.toTensor().defined() && v.toTensor().is_privateuseone())
      return v.toTensor().device().index();
  for (auto& v : given)
    if (v.isTensorList())
      for (const Tensor& t : v.toTensorVector())
        if (t.is_privateuseone()) return t.device().index();
  for (auto& v : given)
    if (v.isDevice() && v.toDevice().is_privateuseone() && v.toDevice().has_index())
      return v.toDevice().index();
  return current_device;
}

inline Tensor take(Call& call, const Tensor& t, Use use) {
  if (!t.defined()) return t;
  bool is_index = call.name.starts_with("aten::index") || call.name.starts_with("aten::_index_put");
  bool is_here = t.is_privateuseone() && t.device().index() == call.device;
  bool may_stay = t.is_cpu() && (t.dim() == 0 || is_index);  // as on CUDA
  TORCH_CHECK(is_here || may_stay,
              "Expected all tensors to be on the same device, but found at least two devices, sim:",
              call.device, " and ", t.device(), "! (", call.name, ")");
  if (!is_here) return t;
  Tensor cpu = lend(t, call.pairs);
  call.arguments.push_back({t, cpu, use});
  return cpu;
}

inline at::Generator take(const at::Generator& generator) {
  TORCH_CHECK(generator.device().is_privateuseone(), "Expected a 'sim' device type for generator but found '",
              generator.device().type(), "'");
  return static_cast<Generator*>(generator.unsafeGetGeneratorImpl())->cpu;
}

inline c10::IValue take(Call& call, const c10::IValue& value, Use use) {
  if (value.isTensor()) return take(call, value.toTensor(), use);
  if (value.isTensorList()) {
    c10::List<Tensor> list;
    for (const Tensor& t : value.toTensorVector()) list.push_back(take(call, t, use));
    return list;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> list;
    for (const std::optional<Tensor>& t : value.toOptionalTensorList().vec())
      list.push_back(t ? std::optional<Tensor>(take(call, *t, use)) : std::nullopt);
    return list;
  }
  if (value.isDevice() && value.toDevice().is_privateuseone()) return c10::Device(c10::kCPU);
  if (value.isGenerator()) return take(value.toGenerator());
  return value;
}

// An out= tensor may have been given new memory or another shape.
inline void follow_resize(Call& call) {
  for (auto& [device, cpu, use] : call.arguments) {
    if (use == Use::read) continue;
    auto* impl = device.storage().unsafeGetStorageImpl();
    if (cpu.storage().data() != impl->data()) {
      impl->set_data_ptr_noswap(adopt_memory(cpu.storage(), call.device));
      impl->set_nbytes(cpu.storage().nbytes());
    }
    if (cpu.sizes() != device.sizes() || cpu.strides() != device.strides())
      device.unsafeGetTensorImpl()->set_sizes_and_strides(cpu.sizes(), cpu.strides());
  }
}

inline Tensor give(Call& call, const Tensor& cpu) {
  call.results.push_back(adopt(cpu, call.device, call.pairs));
  return call.results.back();
}

inline c10::IValue give(Call& call, const c10::IValue& value) {
  if (value.isTensor()) return give(call, value.toTensor());
  if (!value.isTensorList()) return value;
  c10::List<Tensor> list;
  for (const Tensor& t : value.toTensorVector()) list.push_back(give(call, t));
  return list;
}

// What an operation returns that writes into one of its arguments.
inline c10::IValue written_argument(const Call& call, const c10::AliasInfo& alias) {
  auto& declared = call.schema.arguments();
  for (size_t i = 0; i < declared.size(); i++) {
    auto* other = declared[i].alias_info();
    if (other && other->isWrite() && other->beforeSets() == alias.beforeSets()) return call.given[i];
  }
  TORCH_CHECK(false, "sim cannot tell which argument ", call.name, " returns");
}

inline bool is_view(const c10::FunctionSchema& schema) {
  auto& returns = schema.returns();
  return std::any_of(returns.begin(), returns.end(),
                     [](auto& r) { return r.alias_info() && !r.alias_info()->isWrite(); });
}

inline int64_t bytes_of(const Call& call) {
  const bool is_gather = gathers(call.name);
  const int times_read = is_gather ? 0 : 1, times_written = is_gather ? 2 : 1;
  int64_t num_bytes = 0;
  for (auto& [device, cpu, use] : call.arguments) {
    if (use != Use::output) num_bytes += touched_bytes(device) * times_read;
    if (use != Use::read) num_bytes += touched_bytes(device) * times_written;
  }
  for (auto& result : call.results)
    if (result.defined()) num_bytes += touched_bytes(result) * times_written;
  return num_bytes;
}

inline const std::string* begin(const Call& call, int agent) {
  Lock lock(mutex);
  auto* operation = intern(call.name);
  enqueue(agent);
  for (auto& argument : call.arguments)
    if (auto* allocation = allocation_of(argument.device))
      check_access(allocation->track, access_to(argument.device, agent, operation, argument.writes()));
  return operation;
}

inline void finish(const Call& call, int agent, const std::string* operation) {
  Lock lock(mutex);
  auto note = [&](const Tensor& t, bool writes) {
    if (auto* allocation = allocation_of(t))
      note_access(allocation->track, access_to(t, agent, operation, writes));
  };
  for (auto& argument : call.arguments) note(argument.device, argument.writes());
  for (auto& result : call.results)
    if (result.defined()) note(result, true);
  Device& device = devices[call.device];
  int64_t num_bytes = bytes_of(call);
  double flops = flops_of(call.name, call.given, call.results.empty() ? Tensor() : call.results[0]);
  Picoseconds end = occupy(device.compute, agent,
                           {"compute", operation, compute_seconds(flops, num_bytes), num_bytes, flops});
  device.counters.num_operations++;
  device.counters.flops += flops;
  if (!is_awaited(call.name)) return;
  device.counters.num_blocking_copies++;
  device.counters.host_wait += host_waits(agents[agent].seen, end);
}

inline void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const size_t num_arguments = schema.arguments().size();
  Values given(stack->end() - num_arguments, stack->end());
  int device = device_of(given);
  Call call{schema, schema.operator_name().name, std::move(given), device};
  torch::jit::Stack values;
  for (size_t i = 0; i < num_arguments; i++)
    values.push_back(take(call, call.given[i], use_of(schema.arguments()[i])));
  const int agent = current_agent(device);
  const bool moves_bytes = !is_view(schema);
  const std::string* operation = moves_bytes ? begin(call, agent) : nullptr;
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), &values);  // the real numbers
  follow_resize(call);
  for (size_t i = 0; i < schema.returns().size(); i++) {
    auto* alias = schema.returns()[i].alias_info();
    values[i] = alias && alias->isWrite() ? written_argument(call, *alias) : give(call, values[i]);
  }
  if (moves_bytes) finish(call, agent, operation);
  stack->erase(stack->end() - num_arguments, stack->end());
  for (auto& value : values) stack->push_back(std::move(value));
}

}  // namespace sim
