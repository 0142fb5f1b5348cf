#pragma once
// Device tensors and CPU tensors over the same bytes, and which bytes of its memory a tensor covers.

#include <ATen/ATen.h>

#include "device_memory.h"

namespace sim {
using at::Tensor;

inline Allocation* allocation_of(const Tensor& t) {
  auto& memory = t.storage().data_ptr();
  return memory.get_deleter() == &free_allocation ? (Allocation*)memory.get_context() : nullptr;
}

// Its first byte in its memory, and the end.
inline std::pair<int64_t, int64_t> extent(const Tensor& t) {
  if (!t.numel()) return {0, 0};
  int64_t last = t.storage_offset();
  for (int64_t i = 0; i < t.dim(); i++) last += (t.size(i) - 1) * t.stride(i);
  return {t.storage_offset() * t.element_size(), (last + 1) * t.element_size()};
}

// An expanded tensor's bytes count once.
inline int64_t touched_bytes(const Tensor& t) {
  auto [begin, end] = extent(t);
  return std::min<int64_t>(t.numel() * t.element_size(), end - begin);
}

inline Access access_to(const Tensor& t, int agent, const std::string* operation, bool writes) {
  auto [begin, end] = extent(t);
  return {begin, end, agent, agents[agent].seen[agent], operation, writes, agents[agent].time};
}

struct Pair {  // two storages over the same bytes, within one call
  c10::Storage device, cpu;
};
using Pairs = std::vector<Pair>;

inline Tensor over(c10::Storage storage, c10::DispatchKey key, const Tensor& like) {
  auto t =
      at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(key), like.dtype());
  auto* impl = t.unsafeGetTensorImpl();
  impl->set_storage_offset(like.storage_offset());
  impl->set_sizes_and_strides(like.sizes(), like.strides());
  if (like.is_conj()) t._set_conj(true);
  if (like.is_neg()) t._set_neg(true);
  if (like.unsafeGetTensorImpl()->is_wrapped_number()) impl->set_wrapped_number(true);
  return t;
}

// The device's bytes, as a CPU tensor.
inline Tensor lend(const Tensor& t, Pairs& pairs) {
  if (!t.defined() || t.is_cpu()) return t;
  auto* impl = t.storage().unsafeGetStorageImpl();
  for (auto& pair : pairs)
    if (pair.device.unsafeGetStorageImpl() == impl) return over(pair.cpu, c10::DispatchKey::CPU, t);
  c10::DataPtr bytes(impl->mutable_data(), c10::kCPU);
  c10::Storage cpu(c10::Storage::use_byte_size_t(), impl->nbytes(), std::move(bytes), c10::GetCPUAllocator(),
                   true);
  pairs.push_back({t.storage(), cpu});
  return over(cpu, c10::DispatchKey::CPU, t);
}

inline c10::DataPtr adopt_memory(const c10::Storage& cpu, int device) {
  auto* allocation = new_allocation(device, cpu.nbytes());
  allocation->owner = cpu;
  return {cpu.unsafeGetStorageImpl()->mutable_data(), allocation, &free_allocation,
          c10::Device(kSim, device)};
}

// A CPU kernel's result, as a device tensor.
inline Tensor adopt(const Tensor& cpu, int device, Pairs& pairs) {
  if (!cpu.defined()) return cpu;
  auto* impl = cpu.storage().unsafeGetStorageImpl();
  for (auto& pair : pairs)  // the storage of an argument: a view of it
    if (pair.cpu.unsafeGetStorageImpl() == impl) return over(pair.device, c10::DispatchKey::PrivateUse1, cpu);
  c10::Storage storage(c10::Storage::use_byte_size_t(), impl->nbytes(), adopt_memory(cpu.storage(), device),
                       &allocator, true);
  pairs.push_back({storage, cpu.storage()});
  return over(storage, c10::DispatchKey::PrivateUse1, cpu);
}

}  // namespace sim
