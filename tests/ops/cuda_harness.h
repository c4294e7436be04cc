#pragma once
/// Runs the cases of kernels/cases on the device: one image of memory holds all tensors of a call,
/// NaN-filled, with guard zones between them; it is sent, worked on and fetched whole.

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/cases/case.h"
#include "kernels/core/context.h"
#include "kernels/ref/reference.h"
#include "tests/support/device.h"

namespace rwkv::test {

/// The operands of one op call in a host image and, while it runs, on the device.
class CudaRun {
 public:
  /// Inputs, parameters and upstream gradients as in OpRun. `shift`: elements by which every tensor
  /// is moved off its alignment.
  CudaRun(Context& ctx, const cases::OpCase& c, uint64_t seed, size_t shift = 0);

  /// Sends the operands, runs forward and backward with these modes (inputs, then parameters), and
  /// fetches everything. `content` (one list per gradient, may be empty): what kAdd starts from.
  void run(const std::vector<Accum>& modes, const std::vector<std::vector<double>>& content = {});
  std::vector<Accum> all(Accum mode) const;

  enum Kind { kIn, kParam, kOut, kSaved, kDout, kGrad, kKinds };
  size_t count(Kind kind) const { return tensor_[kind].size(); }
  const TensorSpec& spec(Kind kind, size_t i) const { return tensor_[kind][i].spec; }
  /// Values after the last run (before it: operands only).
  std::vector<double> values(Kind kind, size_t i) const;
  std::vector<uint8_t> bytes(Kind kind, size_t i) const;
  testing::AssertionResult guards_intact() const;

  /// The operands for a reference in double.
  ref::RefCall<double> operands() const;
  const cases::OpCase& op_case() const { return case_; }
  uint64_t seed() const { return seed_; }
  /// Upstream gradients flow through this output.
  bool flows(size_t output) const {
    return case_.op->name != "linear_cross_entropy" || output == 0;
  }

 private:
  struct Tensor {
    TensorSpec spec;
    size_t offset;  ///< bytes
  };
  void place(Kind kind, const TensorSpec& spec);
  TensorView host(Kind kind, size_t i);
  std::vector<TensorView> device(Kind kind, uint32_t mask = ~0u) const;
  void poison_workspace();

  Context& ctx_;
  const cases::OpCase& case_;
  ShapeCall shapes_;
  uint64_t seed_;
  size_t shift_, bytes_ = 0;
  std::vector<Tensor> tensor_[kKinds];
  std::vector<uint32_t> image_;
  Arena arena_;
};

}  // namespace rwkv::test
