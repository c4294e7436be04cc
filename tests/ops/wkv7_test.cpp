// Every WKV-7 variant of this build against the double reference, and the reference against
// complex-step derivatives.
#include <gtest/gtest.h>

#include "kernels/core/parallel.h"
#include "kernels/core/rng.h"
#include "tests/ops/wkv7_harness.h"

namespace rwkv::test {
namespace {

using Complex = std::complex<double>;

// Limits of tests/golden/README for fp32; the kernels are usually ten times better.
constexpr double kLimit[] = {5e-6, 1e-5, 5e-6, 5e-6, 5e-6, 5e-6, 5e-6};
constexpr double kOutputLimit = 5e-6;

TEST(Wkv7Reference, BackwardEqualsComplexStep) {
  ref::Wkv7Inputs<double> x{.B = 2, .T = 5, .H = 2, .N = 4};
  Rng rng(7, hash_name("complex step"));
  const size_t vec = 2 * 5 * 2 * 4, states = 2 * 2 * 4 * 4;
  const auto fill = [&](std::vector<double>& p, size_t n, double scale) {
    for (size_t i = 0; i < n; ++i) p.push_back(scale * rng.next_normal());
  };
  for (auto* p : {&x.r, &x.w_logit, &x.k, &x.v, &x.a, &x.b}) fill(*p, vec, 0.7);
  fill(x.s0, states, 0.5);
  x.w_logit[3] = 20;
  x.w_logit[9] = -14;
  std::vector<double> dy, ds;
  fill(dy, vec, 1);
  fill(ds, states, 1);
  const ref::Wkv7Gradients g = ref::wkv7_backward(x, dy, ds);

  const auto wide = [](const std::vector<double>& p) {
    return std::vector<Complex>(p.begin(), p.end());
  };
  ref::Wkv7Inputs<Complex> z{x.B,       x.T,       x.H,       x.N,       wide(x.r), wide(x.w_logit),
                             wide(x.k), wide(x.v), wide(x.a), wide(x.b), wide(x.s0)};
  const auto derivative = [&](Complex& entry) {
    constexpr double h = 1e-50;
    entry += Complex(0, h);
    const auto out = ref::wkv7_forward(z);
    entry -= Complex(0, h);
    double sum = 0;
    for (size_t i = 0; i < vec; ++i) sum += out.y[i].imag() * dy[i];
    for (size_t i = 0; i < states; ++i) sum += out.s_out[i].imag() * ds[i];
    return sum / h;
  };
  std::vector<Complex>* inputs[] = {&z.r, &z.w_logit, &z.k, &z.v, &z.a, &z.b, &z.s0};
  const std::vector<double>* grads[] = {&g.dr, &g.dw_logit, &g.dk, &g.dv, &g.da, &g.db, &g.ds0};
  for (size_t i = 0; i < 7; ++i) {
    std::vector<double> want;
    for (Complex& entry : *inputs[i]) want.push_back(derivative(entry));
    EXPECT_TRUE(close(kWkv7Names[i], *grads[i], want, 1e-11));
  }
}

class Wkv7Variant : public testing::TestWithParam<const WkvKernel*> {
 protected:
  const WkvKernel& kernel() const { return *GetParam(); }
};

TEST_P(Wkv7Variant, MatchesReference) {
  for (const Wkv7Case& c : wkv7_cases()) {
    SCOPED_TRACE(c.name);
    const Wkv7Data d = make_wkv7_data(c);
    const Wkv7Result got = run_wkv7(kernel(), c.shape, d);
    const auto x = reference_inputs(c.shape, d);
    const auto out = ref::wkv7_forward(x);
    const auto g =
        ref::wkv7_backward(x, {d.dy.begin(), d.dy.end()}, {d.ds_out.begin(), d.ds_out.end()});
    EXPECT_TRUE(close("y", got.y, out.y, kOutputLimit));
    if (c.shape.has_state) {
      EXPECT_TRUE(close("s_out", got.s_out, out.s_out, kOutputLimit));
    }
    const std::vector<double>* grads[] = {&g.dr, &g.dw_logit, &g.dk, &g.dv, &g.da, &g.db, &g.ds0};
    for (size_t i = 0; i < (c.shape.has_state ? 7u : 6u); ++i)
      EXPECT_TRUE(close(kWkv7Names[i], got.grad[i], *grads[i], kLimit[i]));
  }
}

TEST_P(Wkv7Variant, GradientModes) {
  for (const int64_t n : {32, 64}) {
    const Wkv7Case c{"modes", Wkv7Kind::kModel, {2, 37, 2, n, true}, 5};
    const Wkv7Data d = make_wkv7_data(c);
    const Wkv7Result written = run_wkv7(kernel(), c.shape, d);
    // Each input is once skipped, written and added to while its neighbours do something else.
    for (int shift = 0; shift < 3; ++shift) {
      std::vector<Accum> modes;
      for (int i = 0; i < 7; ++i) modes.push_back(static_cast<Accum>((i + shift) % 3));
      constexpr float base = 0.75f;
      const Wkv7Result got = run_wkv7(kernel(), c.shape, d, modes, base);
      for (size_t i = 0; i < 7; ++i) {
        std::vector<float> want = written.grad[i];
        if (modes[i] == Accum::kSkip) want.assign(want.size(), base);
        if (modes[i] == Accum::kAdd)
          for (float& x : want) x += base;
        EXPECT_TRUE(close(kWkv7Names[i], got.grad[i], want, modes[i] == Accum::kAdd ? 3e-7 : 0.0))
            << "mode " << int(modes[i]) << ", head size " << n;
      }
    }
  }
}

TEST_P(Wkv7Variant, ThreadsDoNotChangeBits) {
  const Wkv7Case c{"threads", Wkv7Kind::kModel, {2, 50, 3, 64, true}, 6};
  const Wkv7Data d = make_wkv7_data(c);
  const int before = num_threads();
  set_num_threads(1);
  const Wkv7Result one = run_wkv7(kernel(), c.shape, d);
  set_num_threads(2);
  const Wkv7Result two = run_wkv7(kernel(), c.shape, d);
  set_num_threads(before);
  EXPECT_EQ(one.y, two.y);
  EXPECT_EQ(one.s_out, two.s_out);
  for (size_t i = 0; i < 7; ++i) EXPECT_EQ(one.grad[i], two.grad[i]) << kWkv7Names[i];
}

// Tokens [begin, end) of a (B, T, C) tensor.
std::vector<float> tokens_of(const std::vector<float>& x, const WkvShape& s, int64_t begin,
                             int64_t end) {
  const int64_t width = s.heads * s.head_size;
  std::vector<float> part;
  for (int64_t b = 0; b < s.batch; ++b) {
    const auto first = x.begin() + (b * s.tokens + begin) * width;
    part.insert(part.end(), first, first + (end - begin) * width);
  }
  return part;
}

Wkv7Data slice_tokens(const Wkv7Data& d, const WkvShape& s, int64_t begin, int64_t end) {
  Wkv7Data p;
  std::vector<float>* to[] = {&p.r, &p.w_logit, &p.k, &p.v, &p.a, &p.b, &p.dy};
  const std::vector<float>* from[] = {&d.r, &d.w_logit, &d.k, &d.v, &d.a, &d.b, &d.dy};
  for (size_t i = 0; i < 7; ++i) *to[i] = tokens_of(*from[i], s, begin, end);
  p.s0 = d.s0;
  p.ds_out = d.ds_out;
  return p;
}

TEST_P(Wkv7Variant, TwoHalvesEqualOneRun) {
  const WkvShape s{2, 75, 2, 64, true};
  const Wkv7Data d = make_wkv7_data({"halves", Wkv7Kind::kModel, s, 9});
  const Wkv7Result whole = run_wkv7(kernel(), s, d);
  constexpr int64_t cut = 41;
  WkvShape first = s, second = s;
  first.tokens = cut;
  second.tokens = s.tokens - cut;
  Wkv7Data d1 = slice_tokens(d, s, 0, cut), d2 = slice_tokens(d, s, cut, s.tokens);
  d2.s0 = run_wkv7(kernel(), first, d1).s_out;
  const Wkv7Result r2 = run_wkv7(kernel(), second, d2);
  d1.ds_out = r2.grad[6];
  const Wkv7Result r1 = run_wkv7(kernel(), first, d1);

  EXPECT_TRUE(close("y, first", r1.y, tokens_of(whole.y, s, 0, cut), 2e-6));
  EXPECT_TRUE(close("y, second", r2.y, tokens_of(whole.y, s, cut, s.tokens), 2e-6));
  EXPECT_TRUE(close("s_out", r2.s_out, whole.s_out, 2e-6));
  EXPECT_TRUE(close("ds0", r1.grad[6], whole.grad[6], 2e-6));
  for (size_t i = 0; i < 6; ++i) {
    EXPECT_TRUE(close(kWkv7Names[i], r1.grad[i], tokens_of(whole.grad[i], s, 0, cut), 5e-6));
    EXPECT_TRUE(close(kWkv7Names[i], r2.grad[i], tokens_of(whole.grad[i], s, cut, s.tokens), 5e-6));
  }
}

// Decoding: kWkv7 without a saved tensor takes the single-token step, state updated in place.
TEST_P(Wkv7Variant, StepsInPlaceEqualForward) {
  for (const int64_t n : {32, 64, 128}) {
    const WkvShape s{3, 20, 2, n, true};
    const Wkv7Data d = make_wkv7_data({"step", Wkv7Kind::kModel, s, 11});
    const Wkv7Result whole = run_wkv7(kernel(), s, d);
    const Wkv7Attrs attrs{n, &kernel()};
    const TensorSpec vec({s.batch, 1, s.heads * n}), state({s.batch, s.heads, n, n});
    Context ctx;
    WkvShape one = s;
    one.tokens = 1;
    ctx.reserve_workspace(kernel().workspace_bytes(one));
    Guarded running(d.s0);
    for (int64_t t = 0; t < s.tokens; ++t) {
      Wkv7Data x = slice_tokens(d, s, t, t + 1);
      Guarded y(x.r.size());
      const TensorView state_view(running.data(), state);
      const std::vector<TensorView> in{
          {x.r.data(), vec}, {x.w_logit.data(), vec}, {x.k.data(), vec}, {x.v.data(), vec},
          {x.a.data(), vec}, {x.b.data(), vec},       state_view};
      const std::vector<TensorView> out{{y.data(), vec}, state_view};
      OpCall call;
      call.in = in;
      call.out = out;
      call.attrs = &attrs;
      run_forward(ctx, kWkv7, call);
      EXPECT_TRUE(close(str("y of token ", t), y.values(), tokens_of(whole.y, s, t, t + 1), 3e-6));
      EXPECT_TRUE(y.intact() && running.intact());
    }
    EXPECT_TRUE(close("state", running.values(), whole.s_out, 3e-6));
  }
}

TEST_P(Wkv7Variant, ForwardWithoutSavingGivesTheSameBits) {
  const WkvShape s{1, 45, 2, 64, true};
  const Wkv7Data d = make_wkv7_data({"nosave", Wkv7Kind::kModel, s, 12});
  const Wkv7Result want = run_wkv7(kernel(), s, d);
  const Wkv7Attrs attrs{64, &kernel()};
  const TensorSpec vec({1, 45, 128}), state({1, 2, 64, 64});
  Guarded in[] = {Guarded(d.r), Guarded(d.w_logit), Guarded(d.k), Guarded(d.v),
                  Guarded(d.a), Guarded(d.b),       Guarded(d.s0)};
  std::vector<TensorView> in_views;
  for (size_t i = 0; i < 7; ++i) in_views.emplace_back(in[i].data(), i < 6 ? vec : state);
  Guarded y(d.r.size()), s_out(d.s0.size());
  const std::vector<TensorView> out{{y.data(), vec}, {s_out.data(), state}};
  const std::vector<TensorView> null_saved(1);
  Context ctx;
  ctx.reserve_workspace(kernel().workspace_bytes(s));
  OpCall call;
  call.in = in_views;
  call.out = out;
  call.saved = null_saved;
  call.attrs = &attrs;
  run_forward(ctx, kWkv7, call);
  EXPECT_EQ(y.values(), want.y);
  EXPECT_EQ(s_out.values(), want.s_out);
}

std::vector<const WkvKernel*> cpu_variants() {
  std::vector<const WkvKernel*> found;
  for (const WkvKernel* k : all_wkv_kernels())
    if (k->op == "wkv7" && k->device == Device::kCpu) found.push_back(k);
  return found;
}

INSTANTIATE_TEST_SUITE_P(Cpu, Wkv7Variant, testing::ValuesIn(cpu_variants()), [](const auto& p) {
  std::string name(p.param->name);
  for (char& ch : name)
    if (ch == '.') ch = '_';
  return name;
});

}  // namespace
}  // namespace rwkv::test
