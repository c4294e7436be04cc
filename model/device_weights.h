#pragma once
/// A model's parameters for forward passes: on a GPU, or packed on the CPU.

#include <span>
#include <vector>

#include "model/params.h"

namespace rwkv {

/// Copies in the types that kernels read. Training has its own, with masters, gradients and moments
/// (trainer/device_params).
class DeviceWeights {
 public:
  DeviceWeights() = default;  ///< no parameters, no memory
  /// Allocates where `ctx` computes. `wanted`: graph_params or packed_graph_params of the model.
  /// On the CPU tensors that are wanted just as `lender` has them are its own, not copies; it must
  /// then outlive this. Throws DeviceError if the memory cannot be had.
  DeviceWeights(Context& ctx, std::span<const GraphParam> wanted,
                const ParamStore* lender = nullptr);

  /// From host memory, transposing matrices where that is wanted, rounding them to nearest even
  /// where they are bf16 and packing them where they are int8 (kernels/core/packed_rows.h); waits.
  void upload(Context& ctx, const ParamStore& values);

  std::span<const TensorView> views() const { return views_; }  ///< by ParamId
  size_t bytes() const { return arena_.bytes(); }               ///< of its own

 private:
  Arena arena_;
  std::vector<TensorView> views_;
  std::vector<bool> transposed_;
};

}  // namespace rwkv
