#pragma once
/// A model's parameters on a GPU, for forward passes.

#include <span>
#include <vector>

#include "model/params.h"

namespace rwkv {

/// Device copies in the types that kernels read: vectors in f32, matrices in the type of the
/// activations. Training has its own, with masters, gradients and moments (trainer/device_params).
class DeviceWeights {
 public:
  DeviceWeights() = default;  ///< no parameters, no memory
  /// Allocates. `activations`: f32 or bf16. Throws DeviceError if the memory cannot be had.
  DeviceWeights(Context& ctx, const ParamRegistry& params, DType activations);

  /// Host to device, rounding matrices to nearest even where they are bf16; waits.
  void upload(Context& ctx, const ParamStore& values);

  std::span<const TensorView> views() const { return views_; }  ///< by ParamId
  size_t bytes() const { return arena_.bytes(); }

 private:
  Arena arena_;
  std::vector<TensorView> views_;
};

}  // namespace rwkv
