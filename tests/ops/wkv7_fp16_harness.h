#pragma once
/// WKV-7 with a binary16 state for tests: binary16 arithmetic in exact integers, one head token by
/// token with it, its straight-through gradients in double, and a runner for the op.

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <string_view>
#include <vector>

#include "kernels/cases/wkv7_cases.h"
#include "kernels/core/context.h"
#include "kernels/ref/wkv7_ref.h"
#include "kernels/wkv/dither.h"
#include "kernels/wkv/registry.h"
#include "tests/support/device.h"
#include "tests/support/device_image.h"

namespace rwkv::test {

/// a * b + c of finite half-valued numbers, computed in integers (units of 2^-48) and rounded once.
inline float exact_half_fma(float a, float b, float c) {
  const auto units = [](float x) { return static_cast<int64_t>(std::ldexp(x, 24)); };
  const __int128 product = static_cast<__int128>(units(a)) * units(b);
  const __int128 sum = product + (static_cast<__int128>(units(c)) << 24);
  if (sum == 0) {
    // Zero is negative where both terms are.
    const bool minus =
        product == 0 && units(c) == 0 && std::signbit(c) && std::signbit(a) != std::signbit(b);
    return minus ? -0.0f : 0.0f;
  }
  const bool minus = sum < 0;
  auto mag = static_cast<unsigned __int128>(minus ? -sum : sum);
  int top = 127;
  while ((mag >> top & 1) == 0) --top;
  const int drop = std::max(24, top - 10);  // binary16: 11 bits, none below 2^-24
  const auto half = static_cast<unsigned __int128>(1) << (drop - 1);
  const auto rest = mag & (2 * half - 1);
  mag >>= drop;
  if (rest > half || (rest == half && (mag & 1) != 0)) ++mag;
  const double value = std::ldexp(static_cast<double>(mag), drop - 48);
  const auto rounded = value > 65504 ? INFINITY : static_cast<float>(value);
  return minus ? -rounded : rounded;
}

/// One head as the exact arithmetic runs it.
struct Fp16Trace {
  std::vector<std::vector<float>> state;  ///< before token 0, ..., after the last: (64, 64)
  std::vector<std::vector<float>> u, w;   ///< per token
  std::vector<std::vector<float>> y;
};

/// Row t of head `head` (of B x H) in a (B, T, H, 64) tensor.
inline size_t fp16_row(const WkvShape& s, int64_t head, int64_t t) {
  return static_cast<size_t>(((head / s.heads * s.tokens + t) * s.heads + head % s.heads) * 64);
}

inline Fp16Trace fp16_trace(const WkvShape& s, const Wkv7Data& d, int64_t head, int32_t elapsed,
                            bool dithered) {
  constexpr size_t n = 64;
  const auto fma = exact_half_fma;
  std::vector<float> st(n * n, 0.0f);
  if (s.has_state)
    for (size_t i = 0; i < n * n; ++i)
      st[i] = round_to_half(d.s0[static_cast<size_t>(head) * n * n + i]);
  Fp16Trace trace;
  trace.state.push_back(st);
  for (int64_t t = 0; t < s.tokens; ++t) {
    const size_t o = fp16_row(s, head, t);
    const auto at = [&](const std::vector<float>& x, size_t j) { return round_to_half(x[o + j]); };
    std::vector<float> w(n), u(n), y(n);
    for (size_t j = 0; j < n; ++j) {
      const float logit = at(d.w_logit, j);
      const auto phase =
          static_cast<uint32_t>(elapsed + t + 64 * (head % s.heads)) + static_cast<uint32_t>(j);
      w[j] = dithered ? dithered_decay(logit, phase) : plain_decay(logit);
    }
    for (size_t i = 0; i < n; ++i) {
      const auto chains = [&](const std::vector<float>& x) {
        float even = 0, odd = 0;
        for (size_t m = 0; m < n; m += 2) {
          even = fma(at(x, m), st[i * n + m], even);
          odd = fma(at(x, m + 1), st[i * n + m + 1], odd);
        }
        return fma(even, 1.0f, odd);
      };
      u[i] = chains(d.a);
      for (size_t j = 0; j < n; ++j) {
        float& x = st[i * n + j];
        x = fma(x, w[j], fma(at(d.k, j), at(d.v, i), fma(u[i], at(d.b, j), x)));
      }
      y[i] = chains(d.r);
    }
    trace.state.push_back(st);
    trace.u.push_back(u);
    trace.w.push_back(w);
    trace.y.push_back(y);
  }
  return trace;
}

struct Fp16Result {
  std::vector<float> y, s_out;
  std::vector<int32_t> elapsed;
  std::vector<float> grad[7];  ///< r, w_logit, k, v, a, b, s0
};

/// The variant of a family (or of that name) for the device under test, with f32 vectors.
inline const WkvKernel& fp16_kernel(std::string_view wanted, Device device = kTestDevice) {
  return select_wkv("wkv7", device, DType::kF32, {1, 1, 1, 64, true}, wanted);
}

/// Every variant of the device under test with a binary16 state.
inline std::vector<const WkvKernel*> fp16_variants() {
  std::vector<const WkvKernel*> found;
  for (const WkvKernel* k : all_wkv_kernels())
    if (k->op == "wkv7" && k->device == kTestDevice && k->state == DType::kF16) found.push_back(k);
  return found;
}

/// Values as vectors of the variant's type hold them.
inline std::vector<float> as_io(const WkvKernel& kernel, std::vector<float> x) {
  if (kernel.io == DType::kBF16)
    for (float& e : x) e = to_float(to_bf16(e));
  return x;
}

struct Fp16Options {
  bool backward = false;
  std::vector<Accum> modes = std::vector<Accum>(7, Accum::kWrite);
  float base = NAN;                ///< what gradients hold before
  DType state_type = DType::kF32;  ///< of the tensors of s0 and s_out
  float state_scale = 1;
};

/// Forward and, if asked for, backward of the op. An empty `elapsed` is not passed.
inline Fp16Result run_fp16(const WkvKernel& kernel, const WkvShape& s, const Wkv7Data& d,
                           const std::vector<int32_t>& elapsed, Fp16Options options = {}) {
  const Wkv7Attrs attrs{64, &kernel, options.state_scale};
  const TensorSpec vec({s.batch, s.tokens, s.heads * 64}, kernel.io),
      gradient({s.batch, s.heads, 64, 64}), state({s.batch, s.heads, 64, 64}, options.state_type),
      counter({s.batch}, DType::kI32);
  std::vector<TensorSpec> specs(6, vec);
  if (s.has_state) specs.push_back(state);
  if (!elapsed.empty()) specs.push_back(counter);
  ShapeCall sizes;
  sizes.in = specs;
  sizes.attrs = &attrs;
  kWkv7.infer(sizes);
  EXPECT_EQ(sizes.out.size(), specs.size() - 5);
  Context ctx(kernel.device);
  ctx.reserve_workspace(sizes.workspace_bytes);
  DeviceImage image(ctx);

  std::vector<size_t> in, out = {image.add(vec)}, dout, grad;
  if (options.backward) dout.push_back(image.add_values(vec, d.dy));
  for (const auto* x : {&d.r, &d.w_logit, &d.k, &d.v, &d.a, &d.b})
    in.push_back(image.add_values(vec, *x));
  if (s.has_state) {
    in.push_back(image.add_values(state, d.s0));
    out.push_back(image.add(state));
    if (options.backward) dout.push_back(image.add_values(gradient, d.ds_out));
  }
  if (!elapsed.empty()) {
    in.push_back(image.add_ints(counter, elapsed));
    out.push_back(image.add_ints(counter, std::vector<int32_t>(elapsed.size(), -1)));
  }
  const size_t saved_at = image.add(sizes.saved[0]);
  for (size_t i = 0; options.backward && i < std::min<size_t>(specs.size(), 7); ++i)
    grad.push_back(image.add(i < 6 ? vec : gradient, options.base));
  image.send();
  const auto views = [&](const std::vector<size_t>& at) {
    std::vector<TensorView> v;
    for (const size_t i : at) v.push_back(image.view(i));
    return v;
  };

  poison_workspace(ctx, sizes.workspace_bytes);
  std::vector<TensorView> in_views = views(in);
  const std::vector<TensorView> out_views = views(out), no_out(out.size());
  const std::vector<TensorView> saved = {options.backward ? image.view(saved_at) : TensorView()};
  OpCall call;
  call.in = in_views;
  call.out = out_views;
  call.saved = saved;
  call.attrs = &attrs;
  run_forward(ctx, kWkv7, call);
  if (options.backward) {
    // What the backward does not read: s0, the counter and the outputs.
    for (size_t i = 6; i < in_views.size(); ++i) in_views[i] = TensorView();
    std::vector<TensorView> dout_views = views(dout), din = views(grad);
    if (!elapsed.empty()) dout_views.emplace_back();
    din.resize(specs.size());
    options.modes.resize(specs.size(), Accum::kSkip);
    for (size_t i = 0; i < specs.size(); ++i)
      if (options.modes[i] == Accum::kSkip) din[i] = TensorView();
    call.in = in_views;
    call.out = no_out;
    call.dout = dout_views;
    call.din = din;
    call.din_mode = options.modes;
    poison_workspace(ctx, sizes.workspace_bytes);
    run_backward(ctx, kWkv7, call);
  }
  image.fetch();
  EXPECT_TRUE(image.intact());
  Fp16Result result;
  result.y = image.values(out[0]);
  if (s.has_state) result.s_out = image.values(out[1]);
  if (!elapsed.empty()) result.elapsed = image.ints(out.back());
  for (size_t i = 0; i < grad.size(); ++i) result.grad[i] = image.values(grad[i]);
  return result;
}

}  // namespace rwkv::test
