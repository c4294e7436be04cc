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

inline const WkvKernel& fp16_kernel(std::string_view family) {
  return select_wkv("wkv7", Device::kCpu, DType::kF32, {1, 1, 1, 64, true}, family);
}

/// Forward and, with `modes`, backward of the op. An empty `elapsed` is not passed.
inline Fp16Result run_fp16(const WkvKernel& kernel, const WkvShape& s, const Wkv7Data& d,
                           std::vector<int32_t> elapsed, bool backward = false,
                           std::vector<Accum> modes = std::vector<Accum>(7, Accum::kWrite),
                           float base = NAN) {
  const Wkv7Attrs attrs{64, &kernel};
  const TensorSpec vec({s.batch, s.tokens, s.heads * 64}), state({s.batch, s.heads, 64, 64}),
      counter({s.batch}, DType::kI32);
  std::vector<std::vector<float>> x = {d.r, d.w_logit, d.k, d.v, d.a, d.b};
  std::vector<TensorView> in;
  for (auto& values : x) in.emplace_back(values.data(), vec);
  std::vector<float> s0 = d.s0;
  if (s.has_state) in.emplace_back(s0.data(), state);
  if (!elapsed.empty()) in.emplace_back(elapsed.data(), counter);
  std::vector<TensorSpec> specs;
  for (const TensorView& v : in) specs.push_back(v.spec);
  ShapeCall sizes;
  sizes.in = specs;
  sizes.attrs = &attrs;
  kWkv7.infer(sizes);
  EXPECT_EQ(sizes.out.size(), in.size() - 5);
  Context ctx(Device::kCpu);
  ctx.reserve_workspace(sizes.workspace_bytes);

  Fp16Result result;
  result.y.assign(d.r.size(), NAN);
  std::vector<TensorView> out = {{result.y.data(), vec}};
  if (s.has_state) {
    result.s_out.assign(d.s0.size(), NAN);
    out.emplace_back(result.s_out.data(), state);
  }
  if (!elapsed.empty()) {
    result.elapsed.assign(elapsed.size(), -1);
    out.emplace_back(result.elapsed.data(), counter);
  }
  std::vector<float> saved_values(static_cast<size_t>(sizes.saved[0].numel()), NAN);
  std::vector<TensorView> saved(1);
  if (backward) saved[0] = TensorView(saved_values.data(), sizes.saved[0]);
  OpCall call;
  call.in = in;
  call.out = out;
  call.saved = saved;
  call.attrs = &attrs;
  run_forward(ctx, kWkv7, call);
  if (!backward) return result;

  // What the backward does not read: s0, the counter and the outputs.
  for (size_t i = 6; i < in.size(); ++i) in[i] = TensorView();
  const std::vector<TensorView> no_out(out.size());
  std::vector<float> dy = d.dy, ds_out = d.ds_out;
  std::vector<TensorView> dout = {{dy.data(), vec}}, din;
  if (s.has_state) dout.emplace_back(ds_out.data(), state);
  if (!elapsed.empty()) dout.emplace_back();
  modes.resize(in.size(), Accum::kSkip);
  for (size_t i = 0; i < in.size(); ++i) {
    if (i < 7) result.grad[i].assign(i < 6 ? d.r.size() : d.s0.size(), base);
    din.push_back(modes[i] == Accum::kSkip ? TensorView()
                                           : TensorView(result.grad[i].data(), specs[i]));
  }
  call.in = in;
  call.out = no_out;
  call.dout = dout;
  call.din = din;
  call.din_mode = modes;
  run_backward(ctx, kWkv7, call);
  return result;
}

}  // namespace rwkv::test
