#pragma once
/// WKV-7 with a binary16 state for tests: binary16 arithmetic in exact integers, one head token by
/// token with it, its straight-through gradients in double, and a runner for the op.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
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

/// One head as the exact arithmetic runs it; S, u, v and y are unscaled.
struct Fp16Trace {
  std::vector<std::vector<float>> state;    ///< before token 0, ..., after the last: (64, 64)
  std::vector<std::vector<float>> u, w, v;  ///< per token
  std::vector<std::vector<float>> y;
  std::vector<std::vector<int>> exponent;  ///< of rows, as `state`
};
/// What a run starts from besides Wkv7Data: Wkv7Attrs, tokens seen, exponents of the head's rows.
struct Fp16Start {
  int32_t elapsed = 0;
  float scale = 1;
  bool row_exponents = false;
  std::vector<int> exponent = std::vector<int>(64, 0);
};

/// Row t of head `head` (of B x H) in a (B, T, H, 64) tensor.
inline size_t fp16_row(const WkvShape& s, int64_t head, int64_t t) {
  return static_cast<size_t>(((head / s.heads * s.tokens + t) * s.heads + head % s.heads) * 64);
}

inline Fp16Trace fp16_trace(const WkvShape& s, const Wkv7Data& d, int64_t head, Fp16Start start,
                            bool dithered) {
  constexpr size_t n = 64;
  const auto fma = exact_half_fma;
  const int32_t elapsed = start.elapsed;
  std::vector<int>& exponent = start.exponent;
  const auto unit = [&](size_t i) { return std::ldexp(1 / start.scale, exponent[i]); };
  std::vector<float> st(n * n, 0.0f);
  if (s.has_state)
    for (size_t i = 0; i < n * n; ++i)
      st[i] = round_to_half(d.s0[static_cast<size_t>(head) * n * n + i] / unit(i / n));
  Fp16Trace trace;
  const auto push_state = [&] {
    trace.state.push_back(st);
    for (size_t i = 0; i < n * n; ++i) trace.state.back()[i] *= unit(i / n);
    trace.exponent.push_back(exponent);
  };
  push_state();
  for (int64_t t = 0; t < s.tokens; ++t) {
    const size_t o = fp16_row(s, head, t);
    const auto at = [&](const std::vector<float>& x, size_t j) { return round_to_half(x[o + j]); };
    std::vector<float> w(n), u(n), v(n), y(n);
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
      v[i] = round_to_half(std::ldexp(round_to_half(d.v[o + i] * start.scale), -exponent[i]));
      for (size_t j = 0; j < n; ++j) {
        float& x = st[i * n + j];
        x = fma(x, w[j], fma(at(d.k, j), v[i], fma(u[i], at(d.b, j), x)));
      }
      y[i] = chains(d.r) * unit(i);
      u[i] *= unit(i);
      v[i] *= unit(i);
    }
    const bool due = start.row_exponents && static_cast<uint32_t>(elapsed + t) % 16 == 15;
    for (size_t i = 0; due && i < n; ++i) {
      float largest = 0;
      for (size_t j = 0; j < n; ++j) largest = std::max(largest, std::fabs(st[i * n + j]));
      const int change = largest >= 64 ? 8 : largest < 0.0625f && exponent[i] > 0 ? -8 : 0;
      exponent[i] += change;
      for (size_t j = 0; j < n; ++j)
        st[i * n + j] = round_to_half(std::ldexp(st[i * n + j], -change));
    }
    push_state();
    trace.u.push_back(u);
    trace.v.push_back(v);
    trace.w.push_back(w);
    trace.y.push_back(y);
  }
  return trace;
}

struct Fp16Result {
  std::vector<float> y, s_out;
  std::vector<int32_t> elapsed;
  std::vector<int8_t> exponent;  ///< with Fp16Options::exponent
  std::vector<float> grad[7];    ///< r, w_logit, k, v, a, b, s0
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
  bool row_exponents = false;
  std::vector<int8_t> exponent;  ///< with row_exponents and a state; empty: zeros
};

/// Forward and, if asked for, backward of the op. An empty `elapsed` is not passed.
inline Fp16Result run_fp16(const WkvKernel& kernel, const WkvShape& s, const Wkv7Data& d,
                           const std::vector<int32_t>& elapsed, Fp16Options options = {}) {
  const Wkv7Attrs attrs{64, &kernel, options.state_scale, options.row_exponents};
  const bool exponents = s.has_state && options.row_exponents;
  options.exponent.resize(static_cast<size_t>(s.batch * s.heads * 64), 0);
  const TensorSpec vec({s.batch, s.tokens, s.heads * 64}, kernel.io),
      gradient({s.batch, s.heads, 64, 64}), state({s.batch, s.heads, 64, 64}, options.state_type),
      counter({s.batch}, DType::kI32), rows({s.batch, s.heads, 64}, DType::kI8);
  std::vector<TensorSpec> specs(6, vec);
  if (s.has_state) specs.push_back(state);
  if (!elapsed.empty()) specs.push_back(counter);
  if (exponents) specs.push_back(rows);
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
  if (exponents) {
    in.push_back(image.add_bytes(rows, options.exponent));
    out.push_back(image.add_bytes(rows, std::vector<int8_t>(options.exponent.size(), -1)));
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
    if (exponents) dout_views.emplace_back();
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
  if (!elapsed.empty()) result.elapsed = image.ints(out[2]);
  if (exponents) result.exponent = image.bytes(out[3]);
  for (size_t i = 0; i < grad.size(); ++i) result.grad[i] = image.values(grad[i]);
  return result;
}

inline constexpr const char* kNames[] = {"dr", "dw_logit", "dk", "dv", "da", "db", "ds0"};

inline double distance(const std::vector<float>& got, const std::vector<double>& want) {
  if (got.size() != want.size()) return NAN;
  double diff = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    const double e = static_cast<double>(got[i]) - want[i];
    diff += e * e;
    norm += want[i] * want[i];
  }
  return diff == 0 ? 0 : std::sqrt(diff / norm);
}

inline std::vector<double> widened(const std::vector<float>& x) {
  return {x.begin(), x.end()};
}

/// Tokens [begin, end) of every vector; s0 and ds_out as they are.
inline Wkv7Data tokens_of(const Wkv7Data& d, const WkvShape& s, int64_t begin, int64_t end) {
  Wkv7Data part = d;
  const int64_t width = s.heads * 64;
  for (auto* x : {&part.r, &part.w_logit, &part.k, &part.v, &part.a, &part.b, &part.dy}) {
    std::vector<float> rows;
    for (int64_t b = 0; b < s.batch; ++b)
      rows.insert(rows.end(), x->begin() + (b * s.tokens + begin) * width,
                  x->begin() + (b * s.tokens + end) * width);
    *x = rows;
  }
  return part;
}

/// spec 5.4: 3.4 in double with the states, u and 1 + w' that the binary16 forward went through.
inline std::vector<std::vector<double>> straight_through(const WkvShape& s, const Wkv7Data& d,
                                                         const std::vector<Fp16Trace>& traces) {
  constexpr size_t n = 64;
  std::vector<std::vector<double>> g(7, std::vector<double>(d.r.size(), 0.0));
  g[6].assign(static_cast<size_t>(s.batch * s.heads) * n * n, 0.0);
  for (size_t head = 0; head < traces.size(); ++head) {
    std::vector<double> lambda(n * n, 0.0), e(n);
    if (s.has_state)
      for (size_t i = 0; i < n * n; ++i) lambda[i] = d.ds_out[head * n * n + i];
    for (int64_t t = s.tokens - 1; t >= 0; --t) {
      const auto at_t = static_cast<size_t>(t);
      const size_t o = fp16_row(s, static_cast<int64_t>(head), t);
      const auto &before = traces[head].state[at_t], &after = traces[head].state[at_t + 1],
                 &u = traces[head].u[at_t], &w = traces[head].w[at_t], &v = traces[head].v[at_t];
      const auto half = [&](const std::vector<float>& x, size_t j) {
        return static_cast<double>(round_to_half(x[o + j]));
      };
      std::fill(e.begin(), e.end(), 0.0);
      for (size_t i = 0; i < n; ++i)
        for (size_t j = 0; j < n; ++j) {
          const auto dy = static_cast<double>(d.dy[o + i]);
          double& l = lambda[i * n + j];
          g[0][o + j] += static_cast<double>(after[i * n + j]) * dy;
          l += dy * half(d.r, j);
          g[1][o + j] += l * static_cast<double>(before[i * n + j]);
          g[2][o + j] += l * static_cast<double>(v[i]);
          g[3][o + i] += l * half(d.k, j);
          g[5][o + j] += l * static_cast<double>(u[i]);
          e[i] += l * half(d.b, j);
        }
      for (size_t j = 0; j < n; ++j) {
        for (size_t i = 0; i < n; ++i) {
          g[4][o + j] += static_cast<double>(before[i * n + j]) * e[i];
          double& l = lambda[i * n + j];
          l = l * (1 + static_cast<double>(w[j])) + e[i] * half(d.a, j);
        }
        const double x = half(d.w_logit, j), up = std::exp(-std::fabs(x));
        g[1][o + j] *= ref::wkv7_decay(x) * -ref::kWkv7DecayScale * up / ((1 + up) * (1 + up));
      }
    }
    std::copy(lambda.begin(), lambda.end(), g[6].begin() + static_cast<int64_t>(head * n * n));
  }
  return g;
}

/// One variant of the device under test.
class Wkv7Fp16Test : public testing::TestWithParam<const WkvKernel*> {
 protected:
  void SetUp() override { RWKV_NEED_TEST_DEVICE(); }
  const WkvKernel& kernel() const { return *GetParam(); }
  bool dithered() const { return kernel().family == "fp16-dithered"; }
  bool bf16() const { return kernel().io == DType::kBF16; }
  /// Of gradients of vectors: f32 sums, rounded to the type of the vectors.
  double limit(double f32) const { return bf16() ? 3e-3 : f32; }
  Wkv7Data data(const Wkv7Case& c) const {
    Wkv7Data d = make_wkv7_data(c);
    for (auto* x : {&d.r, &d.w_logit, &d.k, &d.v, &d.a, &d.b, &d.dy}) *x = as_io(kernel(), *x);
    return d;
  }
};

inline std::string fp16_test_name(const testing::TestParamInfo<const WkvKernel*>& param) {
  std::string name(param.param->name);
  for (char& ch : name)
    if (ch == '.' || ch == '-') ch = '_';
  return name;
}

}  // namespace rwkv::test
