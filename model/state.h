#pragma once
/// Recurrent state of a batch of sequences, outside of any plan.

#include "kernels/core/context.h"
#include "model/rwkv.h"

namespace rwkv {

/// Owns the tensors of Model::state_specs, those of fresh sequences at first. Move-only.
class RnnState {
 public:
  /// In host memory, for f32 activations. `wkv`: the variant of the graphs (GraphOptions::wkv).
  RnnState(const Model& model, int64_t batch, std::string_view wkv = "auto");
  /// Where `ctx` computes, for graphs with these activations. On CUDA all work on the state is
  /// queued on the context, which must outlive it. Throws DeviceError if the memory cannot be had.
  RnnState(Context& ctx, const Model& model, int64_t batch, DType activations = DType::kF32,
           std::string_view wkv = "auto");

  void reset();  ///< back to a fresh sequence
  RnnState clone() const;
  std::span<const Model::StateSpec> specs() const { return specs_; }
  /// In the memory of device(): copy() of kernels/core/memory.h moves it.
  TensorView operator[](size_t i) const { return views_[i]; }
  Device device() const { return arena_.device(); }
  size_t bytes() const { return arena_.bytes(); }

 private:
  RnnState() = default;
  void allocate(Device device);
  void set_initial();  ///< what is not zero at first
  TensorView whole() const;
  Context* ctx_ = nullptr;  ///< null in host memory
  std::vector<Model::StateSpec> specs_;
  std::vector<TensorView> views_;
  Arena arena_;
};

}  // namespace rwkv
