#pragma once
// New tensors, and the views that are used most; all other views come through the fallback.

#include <ATen/EmptyTensor.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_cpu_dispatch.h>
#include <ATen/ops/set_cpu_dispatch.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_native.h>

#include "tensors.h"

namespace sim {

struct OnDevice {  // the allocator gives memory on the current device
  int previous = current_device;
  explicit OnDevice(std::optional<at::Device> device) {
    if (!device || !device->has_index()) return;
    TORCH_CHECK(device->index() < kNumDevices, "invalid device ordinal ", *device, "; there are ",
                kNumDevices);
    current_device = device->index();
  }
  ~OnDevice() { current_device = previous; }
};

constexpr c10::DispatchKeySet kKeys(c10::DispatchKey::PrivateUse1);
using Dtype = std::optional<at::ScalarType>;
using Layout = std::optional<at::Layout>;
using Place = std::optional<at::Device>;
using Format = std::optional<at::MemoryFormat>;

inline Tensor empty(c10::IntArrayRef size, Dtype dtype, Layout, Place device, std::optional<bool>,
                    Format format) {
  OnDevice here(device);
  return at::detail::empty_generic(size, &allocator, kKeys, c10::dtype_or_default(dtype), format);
}

inline Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, Dtype dtype, Layout, Place device,
                            std::optional<bool>) {
  OnDevice here(device);
  return at::detail::empty_strided_generic(size, stride, &allocator, kKeys, c10::dtype_or_default(dtype));
}

inline void resize_storage(c10::StorageImpl* storage, size_t num_bytes) {
  OnDevice here(storage->device());
  auto memory = allocator.allocate(num_bytes);
  if (auto kept = std::min(num_bytes, storage->nbytes())) std::memcpy(memory.get(), storage->data(), kept);
  storage->set_data_ptr_noswap(std::move(memory));
  storage->set_nbytes(num_bytes);
}

inline const Tensor& resize(const Tensor& self, c10::IntArrayRef size, Format format) {
  auto* impl = self.unsafeGetTensorImpl();
  size_t num_bytes = (c10::multiply_integers(size) + self.storage_offset()) * self.element_size();
  if (self.storage().nbytes() < num_bytes) resize_storage(self.storage().unsafeGetStorageImpl(), num_bytes);
  impl->set_sizes_contiguous(size);
  if (format && *format != at::MemoryFormat::Preserve) impl->empty_tensor_restride(*format);
  return self;
}

inline Tensor as_strided(const Tensor& self, c10::IntArrayRef size, c10::IntArrayRef stride,
                         std::optional<int64_t> offset) {
  return at::cpu::as_strided(self, size, stride, offset);
}
inline Tensor view(const Tensor& self, c10::IntArrayRef size) { return at::native::view(self, size); }
inline Tensor& set_storage(Tensor& self, at::Storage storage, int64_t offset, c10::IntArrayRef size,
                           c10::IntArrayRef stride) {
  return at::cpu::set_(self, storage, offset, size, stride);
}
inline Tensor& set_whole_storage(Tensor& self, at::Storage storage) {
  int64_t num_elements = storage.nbytes() / self.dtype().itemsize();
  return at::cpu::set_(self, storage, 0, {num_elements}, {1});
}
inline Tensor& set_tensor(Tensor& self, const Tensor& other) {
  return at::cpu::set_(self, other.storage(), other.storage_offset(), other.sizes(), other.strides());
}
inline void record_stream_of(Tensor& self, c10::Stream stream) {
  record_stream(self.storage().data_ptr(), stream);
}

}  // namespace sim
