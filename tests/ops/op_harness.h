#pragma once
/// Runs the cases of kernels/cases through an op's kernels on guarded, NaN-filled memory, and
/// through its reference.

#include <gtest/gtest.h>

#include <complex>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/cases/case.h"
#include "kernels/core/context.h"
#include "kernels/core/parallel.h"
#include "kernels/ref/reference.h"
#include "tests/support/compare.h"
#include "tests/support/guarded_buffer.h"

namespace rwkv::test {

/// Restores the number of threads at the end of a scope.
class ThreadCount {
 public:
  explicit ThreadCount(int n) : before_(num_threads()) { set_num_threads(n); }
  ~ThreadCount() { set_num_threads(before_); }
  ThreadCount(const ThreadCount&) = delete;
  ThreadCount& operator=(const ThreadCount&) = delete;

 private:
  int before_;
};

/// The operands and results of one op call, owned.
class OpRun {
 public:
  /// Fills inputs and parameters from the case, upstream gradients from N(0, 1). `misalign`: words
  /// by which every tensor is moved off its alignment.
  OpRun(const cases::OpCase& c, uint64_t seed, size_t misalign = 0);

  /// Fresh NaN-filled outputs and saved tensors, then the forward kernel.
  void forward();
  /// The backward kernel. `modes`: one per input, then one per parameter. Skipped gradients get
  /// null views; added ones start from random content.
  void backward(const std::vector<Accum>& modes);
  /// All gradients with one mode (i32 inputs are skipped).
  std::vector<Accum> all(Accum mode) const;

  /// Upstream gradients of outputs through which none flows stay NaN.
  bool flows(size_t output) const {
    return case_.op->name != "linear_cross_entropy" || output == 0;
  }
  testing::AssertionResult guards_intact() const;

  const cases::OpCase& op_case() const { return case_; }
  uint64_t seed() const { return seed_; }
  std::vector<GuardedBuffer> in, param, out, saved, dout, grad;  ///< grad: inputs, parameters
  std::vector<std::string> grad_name;
  std::vector<std::vector<float>> content;  ///< what kAdd started from
  /// Gradients that kAdd's content resembles in size and sign, so that nothing cancels; may be
  /// empty.
  std::vector<std::vector<double>> resemble;

 private:
  void spoil_workspace();

  const cases::OpCase& case_;
  ShapeCall shapes_;
  uint64_t seed_;
  size_t misalign_;
  Context ctx_;
};

/// The same operands for the reference, with forward and backward done.
template <class S>
ref::RefCall<S> reference_operands(OpRun& run) {
  ref::RefCall<S> c;
  const cases::OpCase& oc = run.op_case();
  c.attrs = oc.attrs.get();
  const auto values = [](GuardedBuffer& b) {
    return std::vector<S>(b.f32().begin(), b.f32().end());
  };
  for (auto& b : run.in) {
    c.in_spec.push_back(b.spec());
    const bool ids = b.spec().dtype == DType::kI32;
    c.in.push_back(ids ? std::vector<S>() : values(b));
    c.ids.emplace_back();
    if (ids) c.ids.back().assign(b.values<int32_t>().begin(), b.values<int32_t>().end());
    c.din.emplace_back(c.in.back().size());
  }
  for (auto& b : run.param) {
    c.param_spec.push_back(b.spec());
    c.param.push_back(values(b));
    c.dparam.emplace_back(c.param.back().size());
  }
  for (size_t i = 0; i < run.dout.size(); ++i) {
    c.out_spec.push_back(run.dout[i].spec());
    c.out.emplace_back(run.dout[i].f32().size());
    c.dout.push_back(run.flows(i) ? values(run.dout[i]) : std::vector<S>(c.out.back().size()));
  }
  return c;
}

/// Short description of where a comparison failed.
inline CompareOptions where(const OpRun& run, const std::string& what, const TensorSpec& spec) {
  return {.what = run.op_case().name + " " + what, .row_length = spec.last(), .seed = run.seed()};
}

inline Tolerance tolerance(const cases::Limits& l) {
  return {l.element, l.row, l.rel};
}

}  // namespace rwkv::test
