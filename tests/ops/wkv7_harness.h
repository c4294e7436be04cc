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
#include "kernels/core/parallel.h"
#include "kernels/ref/wkv7_ref.h"
#include "kernels/wkv/registry.h"
#include "kernels/wkv/wkv.h"
#include "tests/support/device.h"
#include "tests/support/device_image.h"

namespace rwkv::test {

/// Order of everything that has one entry per input: r, w_logit, k, v, a, b, s0.
inline constexpr const char* kWkv7Names[] = {"dr", "dw_logit", "dk", "dv", "da", "db", "ds0"};

struct Wkv7Result {
  std::vector<float> y, s_out;
  std::vector<float> grad[7];
};

/// Every WKV-7 variant of this build for kTestDevice whose state is f32. (Those with a binary16
/// state compute something else: wkv7_fp16_test.cpp, golden/dither_test.cpp.)
inline std::vector<const WkvKernel*> test_variants() {
  std::vector<const WkvKernel*> found;
  for (const WkvKernel* k : all_wkv_kernels())
    if (k->op == "wkv7" && k->device == kTestDevice && k->state == DType::kF32) found.push_back(k);
  return found;
}

inline std::string variant_name(const testing::TestParamInfo<const WkvKernel*>& info) {
  std::string name(info.param->name);
  for (char& ch : name)
    if (ch == '.') ch = '_';
  return name;
}

/// Relative limits of tests/golden/README.md: the column that a variant belongs to.
struct Wkv7Limits {
  double y, grad[7];  ///< grad in the order of kWkv7Names
  double s_out;
  double split;  ///< two runs that must agree up to rounding, in units of the limits above
};
inline Wkv7Limits limits_of(const WkvKernel& k) {
  if (k.io == DType::kF32) return {5e-6, {5e-6, 1e-5, 5e-6, 5e-6, 5e-6, 5e-6, 5e-6}, 5e-6, 0.5};
  if (k.family == "serial")  // bf16 vectors, f32 state
    return {3e-3, {3e-3, 3e-3, 3e-3, 3e-3, 3e-3, 3e-3, 5e-6}, 5e-6, 2};
  return {1e-2, {1e-2, 3e-2, 1e-2, 1e-2, 1.5e-2, 1.5e-2, 1e-2}, 1e-2, 2};  // bf16 products
}

/// The data as a variant sees it: vectors rounded to its type, states as they are.
inline Wkv7Data rounded(Wkv7Data d, const WkvKernel& kernel) {
  if (kernel.io == DType::kBF16)
    for (auto* x : {&d.r, &d.w_logit, &d.k, &d.v, &d.a, &d.b, &d.dy})
      for (float& e : *x) e = to_float(to_bf16(e));
  return d;
}

/// The operands of kWkv7 in guarded memory of the variant's device.
struct Wkv7Run {
  Wkv7Run(const WkvKernel& kernel, const WkvShape& s)
      : shape(s),
        attrs{s.head_size, &kernel},
        vec({s.batch, s.tokens, s.heads * s.head_size}, kernel.io),
        state({s.batch, s.heads, s.head_size, s.head_size}),
        specs(6, vec),
        ctx(kernel.device),
        image(ctx) {
    if (s.has_state) specs.push_back(state);
    sizes.in = specs;
    sizes.attrs = &attrs;
    kWkv7.infer(sizes);
    ctx.reserve_workspace(sizes.workspace_bytes);
  }
  Wkv7Run(const Wkv7Run&) = delete;
  Wkv7Run& operator=(const Wkv7Run&) = delete;

  /// r, w_logit, k, v, a, b and, with a state, s0.
  std::vector<size_t> add_inputs(const Wkv7Data& d) {
    std::vector<size_t> at;
    for (const auto* p : {&d.r, &d.w_logit, &d.k, &d.v, &d.a, &d.b})
      at.push_back(image.add_values(vec, *p));
    if (shape.has_state) at.push_back(image.add_values(state, d.s0));
    return at;
  }
  std::vector<TensorView> views(const std::vector<size_t>& at) const {
    std::vector<TensorView> v;
    for (const size_t i : at) v.push_back(image.view(i));
    return v;
  }
  void forward(std::span<const TensorView> in, std::span<const TensorView> out,
               std::span<const TensorView> saved) {
    poison_workspace(ctx, sizes.workspace_bytes);
    OpCall call;
    call.in = in;
    call.out = out;
    call.saved = saved;
    call.attrs = &attrs;
    run_forward(ctx, kWkv7, call);
  }

  const WkvShape shape;
  const Wkv7Attrs attrs;
  const TensorSpec vec, state;
  std::vector<TensorSpec> specs;  ///< of the inputs
  ShapeCall sizes;
  Context ctx;
  DeviceImage image;
};

/// One run of forward and backward. `modes` and `base` (what the gradients hold before) per input.
inline Wkv7Result run_wkv7(const WkvKernel& kernel, const WkvShape& shape, const Wkv7Data& d,
                           std::vector<Accum> modes = {}, float base = NAN) {
  Wkv7Run run(kernel, shape);
  const size_t inputs = run.specs.size();
  modes.resize(7, Accum::kWrite);
  DeviceImage& image = run.image;
  const std::vector<size_t> in = run.add_inputs(d);
  std::vector<size_t> out{image.add(run.vec)}, dout{image.add_values(run.vec, d.dy)}, grad;
  if (shape.has_state) {
    out.push_back(image.add(run.state));
    dout.push_back(image.add_values(run.state, d.ds_out));
  }
  const std::vector<size_t> saved{image.add(run.sizes.saved[0])};
  for (size_t i = 0; i < inputs; ++i) grad.push_back(image.add(run.specs[i], base));
  image.send();

  std::vector<TensorView> in_views = run.views(in);
  const std::vector<TensorView> out_views = run.views(out), saved_views = run.views(saved);
  run.forward(in_views, out_views, saved_views);

  std::vector<TensorView> din;
  for (size_t i = 0; i < inputs; ++i)
    din.push_back(modes[i] == Accum::kSkip ? TensorView() : image.view(grad[i]));
  const std::vector<TensorView> no_out(out_views.size()), dout_views = run.views(dout);
  if (shape.has_state) in_views[6] = TensorView();  // the backward does not read s0
  OpCall call;
  call.in = in_views;
  call.out = no_out;
  call.saved = saved_views;
  call.dout = dout_views;
  call.din = din;
  call.din_mode = std::span<const Accum>(modes.data(), inputs);
  call.attrs = &run.attrs;
  poison_workspace(run.ctx, run.sizes.workspace_bytes);
  run_backward(run.ctx, kWkv7, call);

  image.fetch();
  EXPECT_TRUE(image.intact());
  Wkv7Result result;
  result.y = image.values(out[0]);
  if (shape.has_state) result.s_out = image.values(out[1]);
  for (size_t i = 0; i < inputs; ++i) result.grad[i] = image.values(grad[i]);
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

/// What the recurrence gives in double. Heads are independent: one task each.
struct Wkv7Expected {
  std::vector<double> y, s_out, grad[7];  ///< grad in the order of kWkv7Names
};
inline Wkv7Expected reference(const WkvShape& s, const Wkv7Data& d) {
  const auto n = static_cast<size_t>(s.head_size), nn = n * n;
  Wkv7Expected e;
  for (auto* x : {&e.y, &e.grad[0], &e.grad[1], &e.grad[2], &e.grad[3], &e.grad[4], &e.grad[5]})
    x->resize(d.r.size());
  if (s.has_state)
    for (auto* x : {&e.s_out, &e.grad[6]}) x->resize(d.s0.size());
  parallel_for(s.batch * s.heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t head = begin; head < end; ++head) {
      // Row t of this head in a (B, T, H, N) tensor.
      const auto row = [&](int64_t t) {
        return static_cast<size_t>(((head / s.heads) * s.tokens + t) * s.heads + head % s.heads) *
               n;
      };
      const auto gather = [&](const std::vector<float>& x) {
        std::vector<double> out;
        for (int64_t t = 0; t < s.tokens; ++t)
          out.insert(out.end(), x.begin() + static_cast<std::ptrdiff_t>(row(t)),
                     x.begin() + static_cast<std::ptrdiff_t>(row(t) + n));
        return out;
      };
      const auto scatter = [&](const std::vector<double>& from, std::vector<double>& to) {
        for (int64_t t = 0; t < s.tokens; ++t)
          std::copy_n(from.begin() + t * s.head_size, n,
                      to.begin() + static_cast<std::ptrdiff_t>(row(t)));
      };
      const auto at = static_cast<std::ptrdiff_t>(static_cast<size_t>(head) * nn);
      const auto one_state = [&](const std::vector<float>& x) {
        return s.has_state ? std::vector<double>(x.begin() + at,
                                                 x.begin() + at + static_cast<std::ptrdiff_t>(nn))
                           : std::vector<double>();
      };
      const ref::Wkv7Inputs<double> x{
          1,           s.tokens,    1,           s.head_size, gather(d.r),    gather(d.w_logit),
          gather(d.k), gather(d.v), gather(d.a), gather(d.b), one_state(d.s0)};
      const auto out = ref::wkv7_forward(x);
      const auto g = ref::wkv7_backward(x, gather(d.dy), one_state(d.ds_out));
      scatter(out.y, e.y);
      const std::vector<double>* from[] = {&g.dr, &g.dw_logit, &g.dk, &g.dv, &g.da, &g.db};
      for (size_t i = 0; i < 6; ++i) scatter(*from[i], e.grad[i]);
      if (s.has_state) {
        std::copy(out.s_out.begin(), out.s_out.end(), e.s_out.begin() + at);
        std::copy(g.ds0.begin(), g.ds0.end(), e.grad[6].begin() + at);
      }
    }
  });
  return e;
}

/// The least rounding of a chunk form with bf16 products: the recurrence is left alone, and what
/// the products multiply is rounded, which is a and r times, b and k over the decay since the begin
/// of their chunk of 16 tokens (spec rwkv7 4.1). The reference of this data is off by what such a
/// computation cannot avoid.
inline Wkv7Data with_rounded_operands(const WkvShape& s, Wkv7Data d) {
  const auto width = s.heads * s.head_size;
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t c = 0; c < width; ++c) {
      double since = 1;
      for (int64_t t = 0; t < s.tokens; ++t) {
        const auto i = static_cast<size_t>((b * s.tokens + t) * width + c);
        if (t % 16 == 0) since = 1;
        const auto round = [&](float& x, double scale) {
          const float scaled = to_float(to_bf16(static_cast<float>(x * scale)));
          x = static_cast<float>(static_cast<double>(scaled) / scale);
        };
        round(d.a[i], since);
        since *= ref::wkv7_decay(static_cast<double>(d.w_logit[i]));
        round(d.r[i], since);
        round(d.k[i], 1 / since);
        round(d.b[i], 1 / since);
      }
    }
  return d;
}

}  // namespace rwkv::test
