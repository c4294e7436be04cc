#pragma once
/// Runs a WKV-7 variant through kWkv7 on guarded, NaN-filled memory and compares with references.

#include <gtest/gtest.h>

#include <cmath>
#include <complex>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "kernels/cases/wkv7_cases.h"
#include "kernels/core/context.h"
#include "kernels/ref/wkv7_ref.h"
#include "kernels/wkv/registry.h"
#include "kernels/wkv/wkv.h"

namespace rwkv::test {

/// Floats between two guard zones, NaN until written.
class Guarded {
 public:
  explicit Guarded(size_t n = 0, float fill = std::numeric_limits<float>::quiet_NaN())
      : all_(n + 2 * kZone, kGuard) {
    std::fill(all_.begin() + kZone, all_.end() - kZone, fill);
  }
  explicit Guarded(const std::vector<float>& values) : Guarded(values.size()) {
    std::copy(values.begin(), values.end(), all_.begin() + kZone);
  }
  float* data() { return all_.data() + kZone; }
  size_t size() const { return all_.size() - 2 * kZone; }
  std::vector<float> values() const { return {all_.begin() + kZone, all_.end() - kZone}; }
  bool intact() const {
    for (size_t i = 0; i < kZone; ++i)
      if (all_[i] != kGuard || all_[all_.size() - 1 - i] != kGuard) return false;
    return true;
  }

 private:
  static constexpr size_t kZone = 64;
  static constexpr float kGuard = 1.2345e30f;
  std::vector<float> all_;
};

/// Order of everything that has one entry per input: r, w_logit, k, v, a, b, s0.
inline constexpr const char* kWkv7Names[] = {"dr", "dw_logit", "dk", "dv", "da", "db", "ds0"};

struct Wkv7Result {
  std::vector<float> y, s_out;
  std::vector<float> grad[7];
};

/// One run of forward and backward. `modes` and `base` (what the gradients hold before) per input.
inline Wkv7Result run_wkv7(const WkvKernel& kernel, const WkvShape& shape, const Wkv7Data& d,
                           std::vector<Accum> modes = {}, float base = NAN) {
  const Wkv7Attrs attrs{shape.head_size, &kernel};
  const TensorSpec vec({shape.batch, shape.tokens, shape.heads * shape.head_size});
  const TensorSpec state({shape.batch, shape.heads, shape.head_size, shape.head_size});
  const size_t inputs = shape.has_state ? 7 : 6;
  modes.resize(7, Accum::kWrite);

  std::vector<TensorSpec> specs(6, vec);
  if (shape.has_state) specs.push_back(state);
  ShapeCall sizes;
  sizes.in = specs;
  sizes.attrs = &attrs;
  kWkv7.infer(sizes);
  Context ctx;
  ctx.reserve_workspace(sizes.workspace_bytes);
  if (sizes.workspace_bytes > 0)
    std::fill_n(reinterpret_cast<float*>(ctx.workspace(sizes.workspace_bytes)),
                sizes.workspace_bytes / sizeof(float), NAN);

  std::vector<Guarded> in, grad;
  for (const auto* p : {&d.r, &d.w_logit, &d.k, &d.v, &d.a, &d.b, &d.s0}) in.emplace_back(*p);
  for (size_t i = 0; i < 7; ++i) grad.emplace_back(in[i].size(), base);
  Guarded y(d.r.size()), s_out(d.s0.size()), saved(static_cast<size_t>(sizes.saved[0].numel()));
  Guarded dy(d.dy), ds_out(d.ds_out);

  std::vector<TensorView> in_views, out_views{{y.data(), vec}}, dout_views{{dy.data(), vec}}, din;
  for (size_t i = 0; i < inputs; ++i) in_views.emplace_back(in[i].data(), specs[i]);
  if (shape.has_state) {
    out_views.emplace_back(s_out.data(), state);
    dout_views.emplace_back(ds_out.data(), state);
  }
  const std::vector<TensorView> saved_views{{saved.data(), sizes.saved[0]}};
  OpCall call;
  call.in = in_views;
  call.out = out_views;
  call.saved = saved_views;
  call.attrs = &attrs;
  run_forward(ctx, kWkv7, call);

  for (size_t i = 0; i < inputs; ++i)
    din.push_back(modes[i] == Accum::kSkip ? TensorView() : TensorView(grad[i].data(), specs[i]));
  const std::vector<TensorView> no_out(out_views.size());
  if (shape.has_state) in_views[6] = TensorView();  // the backward does not read s0
  call.out = no_out;
  call.dout = dout_views;
  call.din = din;
  call.din_mode = std::span<const Accum>(modes.data(), inputs);
  run_backward(ctx, kWkv7, call);

  EXPECT_TRUE(y.intact() && s_out.intact() && saved.intact() && dy.intact() && ds_out.intact())
      << "a guard zone was overwritten";
  Wkv7Result result{y.values(), s_out.values(), {}};
  for (size_t i = 0; i < 7; ++i) {
    EXPECT_TRUE(in[i].intact() && grad[i].intact()) << "guard zone of input or gradient " << i;
    result.grad[i] = grad[i].values();
  }
  return result;
}

/// Relative 2-norm of the difference; 0 for two empty or zero tensors, NaN if anything is NaN.
template <class A, class B>
double relative_error(const std::vector<A>& got, const std::vector<B>& want) {
  double diff = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double e = static_cast<double>(got[i]) - static_cast<double>(want[i]);
    diff += e * e;
    norm += static_cast<double>(want[i]) * static_cast<double>(want[i]);
  }
  if (diff == 0 && norm == 0) return 0;
  return std::sqrt(diff / norm);
}

/// Passes only if the relative 2-norm is within `limit` and no entry is off by more than 20 times
/// that of the largest.
template <class A, class B>
testing::AssertionResult close(const std::string& what, const std::vector<A>& got,
                               const std::vector<B>& want, double limit) {
  if (got.size() != want.size())
    return testing::AssertionFailure()
           << what << ": " << got.size() << " values, expected " << want.size();
  double largest = 0;
  for (const B x : want) largest = std::max(largest, std::abs(static_cast<double>(x)));
  for (size_t i = 0; i < want.size(); ++i) {
    const double e = std::abs(static_cast<double>(got[i]) - static_cast<double>(want[i]));
    if (!(e <= 20 * limit * largest))
      return testing::AssertionFailure() << what << "[" << i << "] is " << got[i] << ", expected "
                                         << want[i] << " (largest entry " << largest << ")";
  }
  const double rel = relative_error(got, want);
  if (!(rel <= limit))
    return testing::AssertionFailure() << what << ": relative error " << rel << ", limit " << limit;
  return testing::AssertionSuccess();
}

inline ref::Wkv7Inputs<double> reference_inputs(const WkvShape& s, const Wkv7Data& d) {
  const auto wide = [](const std::vector<float>& x) {
    return std::vector<double>(x.begin(), x.end());
  };
  return {s.batch,   s.tokens,  s.heads,   s.head_size, wide(d.r), wide(d.w_logit),
          wide(d.k), wide(d.v), wide(d.a), wide(d.b),   wide(d.s0)};
}

}  // namespace rwkv::test
