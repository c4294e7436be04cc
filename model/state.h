#pragma once
/// Recurrent state of a batch of sequences, outside of any plan.

#include "model/graph/plan.h"
#include "model/rwkv.h"

namespace rwkv {

/// Owns the tensors of Model::state_specs; zero (a fresh sequence) at first. Move-only.
class RnnState {
 public:
  RnnState(const Model& model, int64_t batch);

  void reset();  ///< back to a fresh sequence
  RnnState clone() const;
  void copy_to(Plan& plan) const;    ///< into the plan's state inputs
  void copy_from(const Plan& plan);  ///< from the plan's state outputs
  std::span<const Model::StateSpec> specs() const { return specs_; }
  TensorView operator[](size_t i) const { return views_[i]; }
  size_t bytes() const { return arena_.bytes(); }

 private:
  RnnState() = default;
  std::vector<Model::StateSpec> specs_;
  std::vector<TensorView> views_;
  Arena arena_;
};

}  // namespace rwkv
