#pragma once
/// Runs a WKV-4 variant through kWkv4 on guarded, NaN-filled memory and compares with references.

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/cases/wkv4_cases.h"
#include "kernels/ref/wkv4_ref.h"
#include "kernels/wkv/registry.h"
#include "kernels/wkv/wkv.h"
#include "tests/support/device.h"
#include "tests/support/device_image.h"

namespace rwkv::test {

/// Order of everything that has one entry per gradient.
enum Wkv4Grad : size_t { kDk, kDv, kDa0, kDb0, kDp0, kDtau, kDu, kWkv4Grads };
inline constexpr const char* kWkv4Names[] = {"dk",  "dv",          "da0",        "db0",
                                             "dp0", "dtime_decay", "dtime_first"};

struct Wkv4Result {
  std::vector<float> y, a, b, p, grad[kWkv4Grads];  ///< of the state: empty without one
  double replaced = -1;                             ///< replaced_share; -1: the variant has none
};

/// Every WKV-4 variant of this build for kTestDevice.
inline std::vector<const WkvKernel*> wkv4_variants() {
  std::vector<const WkvKernel*> found;
  for (const WkvKernel* k : all_wkv_kernels())
    if (k->op == "wkv4" && k->device == kTestDevice) found.push_back(k);
  return found;
}

inline std::string wkv4_variant_name(const testing::TestParamInfo<const WkvKernel*>& info) {
  std::string name(info.param->name);
  for (char& ch : name)
    if (ch == '.' || ch == '-') ch = '_';
  return name;
}

/// The data as a variant sees it: vectors rounded to its type, states and parameters as they are.
inline Wkv4Data rounded(Wkv4Data d, const WkvKernel& kernel) {
  if (kernel.io == DType::kBF16)
    for (auto* x : {&d.k, &d.v, &d.dy})
      for (float& e : *x) e = to_float(to_bf16(e));
  return d;
}

/// The operands of kWkv4 in guarded memory of the variant's device.
struct Wkv4Run {
  Wkv4Run(const WkvKernel& kernel, const WkvShape& s)
      : shape(s),
        attrs{&kernel},
        vec({s.batch, s.tokens, s.heads}, kernel.io),
        state({s.batch, s.heads}),
        param({s.heads}),
        in_specs(2, vec),
        param_specs(2, param),
        ctx(kernel.device),
        image(ctx) {
    if (s.has_state) in_specs.insert(in_specs.end(), 3, state);
    sizes.in = in_specs;
    sizes.param = param_specs;
    sizes.attrs = &attrs;
    kWkv4.infer(sizes);
    ctx.reserve_workspace(sizes.workspace_bytes);
  }
  Wkv4Run(const Wkv4Run&) = delete;
  Wkv4Run& operator=(const Wkv4Run&) = delete;

  std::vector<size_t> add_inputs(const Wkv4Data& d) {
    std::vector<size_t> at{image.add_values(vec, d.k), image.add_values(vec, d.v)};
    if (shape.has_state)
      for (const auto* p : {&d.a0, &d.b0, &d.p0}) at.push_back(image.add_values(state, *p));
    return at;
  }
  std::vector<size_t> add_params(const Wkv4Data& d) {
    return {image.add_values(param, d.tau), image.add_values(param, d.u)};
  }
  std::vector<TensorView> views(const std::vector<size_t>& at) const {
    std::vector<TensorView> v;
    for (const size_t i : at) v.push_back(image.view(i));
    return v;
  }
  void forward(std::span<const TensorView> in, std::span<const TensorView> params,
               std::span<const TensorView> out, std::span<const TensorView> saved) {
    poison_workspace(ctx, sizes.workspace_bytes);
    OpCall call;
    call.in = in;
    call.param = params;
    call.out = out;
    call.saved = saved;
    call.attrs = &attrs;
    run_forward(ctx, kWkv4, call);
  }

  const WkvShape shape;
  const Wkv4Attrs attrs;
  const TensorSpec vec, state, param;
  std::vector<TensorSpec> in_specs, param_specs;
  ShapeCall sizes;
  Context ctx;
  DeviceImage image;
};

/// One run of forward and backward. `modes` and `base` (what the gradients hold before) per
/// gradient. The gradient of p_out is NaN: it must not be read.
inline Wkv4Result run_wkv4(const WkvKernel& kernel, const WkvShape& shape, const Wkv4Data& d,
                           std::vector<Accum> modes = {}, float base = NAN) {
  Wkv4Run run(kernel, shape);
  modes.resize(kWkv4Grads, Accum::kWrite);
  DeviceImage& image = run.image;
  const std::vector<size_t> in = run.add_inputs(d), params = run.add_params(d);
  std::vector<size_t> out{image.add(run.vec)}, dout{image.add_values(run.vec, d.dy)};
  if (shape.has_state) {
    for (int i = 0; i < 3; ++i) out.push_back(image.add(run.state));
    dout.push_back(image.add_values(run.state, d.da_out));
    dout.push_back(image.add_values(run.state, d.db_out));
    dout.push_back(image.add(run.state));
  }
  const std::vector<size_t> saved{image.add(run.sizes.saved[0])};
  std::vector<size_t> grad(kWkv4Grads);
  for (size_t i = 0; i < kWkv4Grads; ++i)
    grad[i] = image.add(i < kDa0 ? run.in_specs[i] : i < kDtau ? run.state : run.param, base);
  image.send();

  const std::vector<TensorView> in_views = run.views(in), param_views = run.views(params),
                                out_views = run.views(out), saved_views = run.views(saved);
  run.forward(in_views, param_views, out_views, saved_views);

  const auto gradient = [&](size_t i) {
    return modes[i] == Accum::kSkip ? TensorView() : image.view(grad[i]);
  };
  std::vector<TensorView> din{gradient(kDk), gradient(kDv)}, back_out{out_views[0]};
  if (shape.has_state) {
    for (const size_t i : {kDa0, kDb0, kDp0}) din.push_back(gradient(i));
    back_out.insert(back_out.end(), {TensorView(), TensorView(), out_views[3]});
  }
  const std::vector<TensorView> dparam{gradient(kDtau), gradient(kDu)},
      dout_views = run.views(dout);
  OpCall call;
  call.in = in_views;
  call.param = param_views;
  call.out = back_out;
  call.saved = saved_views;
  call.dout = dout_views;
  call.din = din;
  call.din_mode = std::span<const Accum>(modes.data(), din.size());
  call.dparam = dparam;
  call.dparam_mode = std::span<const Accum>(modes.data() + kDtau, 2);
  call.attrs = &run.attrs;
  poison_workspace(run.ctx, run.sizes.workspace_bytes);
  run_backward(run.ctx, kWkv4, call);

  Wkv4Result result;
  if (kernel.replaced_share != nullptr) {
    call.out = out_views;
    result.replaced = kernel.replaced_share(run.ctx, call);
  }
  image.fetch();
  EXPECT_TRUE(image.intact());
  result.y = image.values(out[0]);
  if (shape.has_state) {
    result.a = image.values(out[1]);
    result.b = image.values(out[2]);
    result.p = image.values(out[3]);
  }
  for (size_t i = 0; i < kWkv4Grads; ++i)
    if (shape.has_state || i < kDa0 || i > kDp0) result.grad[i] = image.values(grad[i]);
  return result;
}

/// What the recurrence gives in double; the state as a / b and p + ln b.
struct Wkv4Expected {
  std::vector<double> y, ratio, log_sum, grad[kWkv4Grads];
};
/// `p_out`: what the variant under test left, held fixed in the gradients.
inline Wkv4Expected reference(const WkvShape& s, const Wkv4Data& d,
                              const std::vector<float>& p_out) {
  const auto wide = [](const std::vector<float>& x) {
    return std::vector<double>(x.begin(), x.end());
  };
  const ref::Wkv4Inputs<double> x{s.batch,     s.tokens,  s.heads,    wide(d.k),  wide(d.v),
                                  wide(d.tau), wide(d.u), wide(d.a0), wide(d.b0), wide(d.p0)};
  const auto out = ref::wkv4_forward(x);
  auto g = ref::wkv4_backward(x, wide(d.dy), wide(d.da_out), wide(d.db_out), wide(p_out));
  Wkv4Expected e;
  e.y = out.y;
  if (s.has_state) {
    for (size_t i = 0; i < out.a.size(); ++i) {
      e.ratio.push_back(out.a[i] / out.b[i]);
      e.log_sum.push_back(out.p[i] + std::log(out.b[i]));
    }
    e.grad[kDa0] = std::move(g.da0);
    e.grad[kDb0] = std::move(g.db0);
    e.grad[kDp0].assign(e.grad[kDa0].size(), 0.0);
  }
  e.grad[kDk] = std::move(g.dk);
  e.grad[kDv] = std::move(g.dv);
  e.grad[kDtau] = std::move(g.dtau);
  e.grad[kDu] = std::move(g.du);
  return e;
}

/// The state of a result as a / b and p + ln b.
inline std::vector<double> state_ratio(const Wkv4Result& r) {
  std::vector<double> x;
  for (size_t i = 0; i < r.a.size(); ++i)
    x.push_back(static_cast<double>(r.a[i]) / static_cast<double>(r.b[i]));
  return x;
}
inline std::vector<double> state_log_sum(const Wkv4Result& r) {
  std::vector<double> x;
  for (size_t i = 0; i < r.p.size(); ++i)
    x.push_back(static_cast<double>(r.p[i]) + std::log(static_cast<double>(r.b[i])));
  return x;
}

/// Largest difference over the largest entry of the reference (the measure "max" of
/// tests/golden/README.md); entries all below 1e-3: over 1e-3. NaN stays NaN.
template <class A, class B>
double max_error(const std::vector<A>& got, const std::vector<B>& want) {
  if (got.size() != want.size()) return NAN;
  double largest = 1e-3, worst = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    largest = std::max(largest, std::abs(static_cast<double>(want[i])));
    const double e = std::abs(static_cast<double>(got[i]) - static_cast<double>(want[i]));
    if (!(e <= worst)) worst = e;
    if (std::isnan(e)) return NAN;
  }
  return worst / largest;
}

/// Largest absolute difference.
inline double absolute_error(const std::vector<double>& got, const std::vector<double>& want) {
  if (got.size() != want.size()) return NAN;
  double worst = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double e = std::abs(got[i] - want[i]);
    if (std::isnan(e)) return NAN;
    worst = std::max(worst, e);
  }
  return worst;
}

/// 2-norm of the difference over that of the reference; 0 for two zero tensors.
template <class A, class B>
double rel_error(const std::vector<A>& got, const std::vector<B>& want) {
  if (got.size() != want.size()) return NAN;
  double diff = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double w = static_cast<double>(want[i]), e = static_cast<double>(got[i]) - w;
    diff += e * e;
    norm += w * w;
  }
  return diff == 0 ? 0 : std::sqrt(diff / norm);
}

/// Limits of tests/golden/README.md for f32 and, beside them, for keys or states that are far
/// apart.
struct Wkv4Limits {
  double y, dkv, rest, ratio, log_sum;
};
inline Wkv4Limits wkv4_limits(bool far, DType io) {
  const double half = io == DType::kBF16 ? 4e-3 : 0;  // outputs are rounded
  if (far) return {2e-4 + half, 2e-3 + half, 5e-4, 3e-4, 3e-3};
  return {2e-5 + half, 1e-4 + half, 5e-5, 2e-5, 5e-4};
}

inline testing::AssertionResult within(const std::string& what, double error, double limit) {
  if (error <= limit) return testing::AssertionSuccess();
  return testing::AssertionFailure() << what << ": error " << error << ", limit " << limit;
}

}  // namespace rwkv::test
