#pragma once
// What an operation costs in virtual time. `Rates` in torch_sim.py documents these formulas: keep them
// together.

#include <initializer_list>

#include "tensors.h"

namespace sim {
using Values = std::vector<c10::IValue>;

// A multiply and an add count two, as in torch.utils.flop_counter; what is not listed here costs bytes only.
inline double flops_of(const std::string& name, const Values& arguments, const Tensor& result) {
  auto is_one_of = [&](std::initializer_list<const char*> names) {
    return std::any_of(names.begin(), names.end(), [&](auto* other) { return name == other; });
  };
  auto tensor = [&](size_t i) { return arguments[i].toTensor(); };
  auto product = [&](size_t i) { return 2.0 * tensor(i).numel() * tensor(i + 1).size(-1); };
  if (is_one_of({"aten::mm", "aten::bmm"})) return product(0);
  // GPUs multiply int8 twice as fast as 16 bits: half of them are counted.
  if (name == "bitsandbytes::int8_linear_matmul") return 1.0 * result.numel() * tensor(0).size(-1);
  if (is_one_of({"aten::addmm", "aten::baddbmm", "aten::_addmm_activation"})) return product(1);
  if (is_one_of({"aten::dot", "aten::mv"})) return 2.0 * tensor(0).numel();
  if (name == "aten::addmv") return 2.0 * tensor(1).numel();
  if (name == "aten::convolution") {
    bool is_transposed = arguments[6].toBool();
    return 2.0 * (is_transposed ? tensor(0) : result).numel() * tensor(1).numel() / tensor(1).size(0);
  }
  if (name == "aten::_scaled_dot_product_flash_attention_for_cpu") {
    Tensor query = tensor(0), value = tensor(2);
    return 2.0 * query.numel() / query.size(-1) * value.size(-2) * (query.size(-1) + value.size(-1));
  }
  return 0;
}

// Operations that read only the rows they are asked for: what they write is charged twice, once as read.
inline bool gathers(const std::string& name) {
  static const std::unordered_set<std::string> names = {"aten::embedding", "aten::index_select",
                                                        "aten::index", "aten::gather"};
  return names.count(name);
}

// Operations whose result's shape or value the host needs: it waits for them. An index by a mask calls
// nonzero.
inline bool is_awaited(const std::string& name) {
  static const std::unordered_set<std::string> names = {
      "aten::nonzero",    "aten::masked_select",      "aten::equal",    "aten::_unique2",
      "aten::unique_dim", "aten::unique_consecutive", "aten::bincount", "aten::repeat_interleave"};
  return names.count(name);
}

inline double compute_seconds(double flops, int64_t num_bytes) {
  return rates.launch_seconds +
         std::max(flops / rates.flops_per_second, num_bytes / rates.memory_bytes_per_second);
}

}  // namespace sim
