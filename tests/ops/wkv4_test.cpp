// Every WKV-4 variant of this build for the device under test against the double reference.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <string>

#include "kernels/core/parallel.h"
#include "tests/ops/wkv4_harness.h"

namespace rwkv::test {
namespace {

bool is_far(Wkv4Kind kind) {
  return kind == Wkv4Kind::kWide || kind == Wkv4Kind::kLowFirst || kind == Wkv4Kind::kFarState ||
         kind == Wkv4Kind::kManyBehind;
}

class Wkv4Variant : public testing::TestWithParam<const WkvKernel*> {
 protected:
  void SetUp() override { RWKV_NEED_TEST_DEVICE(); }
  const WkvKernel& kernel() const { return *GetParam(); }
  /// The naive variant takes no more than what fits its range.
  bool naive() const { return kernel().family == "cumsum-naive"; }
  Wkv4Data data(const Wkv4Case& c) const { return rounded(make_wkv4_data(c), kernel()); }
  /// A case that every variant takes.
  Wkv4Case slow(WkvShape shape, uint64_t seed) const {
    return {"slow", Wkv4Kind::kSlow, shape, seed};
  }
  void expect_close(const Wkv4Result& got, const Wkv4Expected& want, bool far) const {
    const Wkv4Limits limits = wkv4_limits(far, kernel().io);
    EXPECT_TRUE(within("y", max_error(got.y, want.y), limits.y));
    EXPECT_TRUE(within("a / b", max_error(state_ratio(got), want.ratio), limits.ratio));
    EXPECT_TRUE(
        within("p + ln b", absolute_error(state_log_sum(got), want.log_sum), limits.log_sum));
    for (size_t i = 0; i < kWkv4Grads; ++i)
      EXPECT_TRUE(within(kWkv4Names[i], max_error(got.grad[i], want.grad[i]),
                         i <= kDv ? limits.dkv : limits.rest));
  }
};

TEST_P(Wkv4Variant, MatchesReference) {
  int compared = 0;
  for (const Wkv4Case& c : wkv4_cases()) {
    SCOPED_TRACE(c.name);
    const Wkv4Data d = data(c);
    Wkv4Result got;
    try {
      got = run_wkv4(kernel(), c.shape, d);
    } catch (const ConfigError& e) {
      EXPECT_TRUE(naive()) << e.what();
      continue;
    }
    ++compared;
    expect_close(got, reference(c.shape, d, got.p), is_far(c.kind));
  }
  EXPECT_GE(compared, naive() ? 3 : static_cast<int>(wkv4_cases().size()));
}

// Relative 2-norm per tensor at 4096 tokens, k and v ~ N(0, 1), rates 0.001 to 20.
TEST_P(Wkv4Variant, LongSequence) {
  if (naive()) GTEST_SKIP() << "4096 tokens leave its range";
  for (const auto kind : {Wkv4Kind::kSpread, Wkv4Kind::kModel, Wkv4Kind::kSlow}) {
    const Wkv4Case c{"long", kind, {1, 4096, 48, 1, true}, 31};
    const Wkv4Data d = data(c);
    const Wkv4Result got = run_wkv4(kernel(), c.shape, d);
    const Wkv4Expected want = reference(c.shape, d, got.p);
    const double limit = kernel().io == DType::kBF16 ? 4e-3 : 1e-5;
    std::printf("%s, kind %d, 4096 tokens, relative 2-norm: y %.1e", kernel().name.data(),
                static_cast<int>(kind), rel_error(got.y, want.y));
    EXPECT_TRUE(within("y", rel_error(got.y, want.y), limit));
    for (size_t i = 0; i < kWkv4Grads; ++i) {
      const double error = rel_error(got.grad[i], want.grad[i]);
      EXPECT_TRUE(within(kWkv4Names[i], error, limit));
      std::printf(" %s %.1e", kWkv4Names[i], error);
    }
    if (got.replaced >= 0) std::printf(" replaced %.0f %%", 100 * got.replaced);
    std::printf("\n");
  }
}

// Sizes at which a GPU spreads a sequence over many blocks, in groups and one by one; a run again
// gives the same bits.
TEST_P(Wkv4Variant, ManyTilesAndManyChannels) {
  if (kTestDevice == Device::kCpu) GTEST_SKIP() << "for GPUs";
  for (const WkvShape& s : {WkvShape{1, 20000, 5, 1, true}, WkvShape{8, 700, 560, 1, true},
                            WkvShape{2, 3000, 33, 1, false}}) {
    SCOPED_TRACE(str(s.batch, " x ", s.tokens, " x ", s.heads));
    Wkv4Data d = data({"many", naive() ? Wkv4Kind::kSlow : Wkv4Kind::kSpread, s, 41});
    for (float& tau : d.tau)
      if (naive()) tau -= 4;
    const Wkv4Result got = run_wkv4(kernel(), s, d), again = run_wkv4(kernel(), s, d);
    expect_close(got, reference(s, d, got.p), false);
    EXPECT_EQ(got.y, again.y);
    EXPECT_EQ(got.p, again.p);
    for (size_t i = 0; i < kWkv4Grads; ++i) EXPECT_EQ(got.grad[i], again.grad[i]) << kWkv4Names[i];
  }
}

// The share of pieces that the recurrence takes over: none, some, all.
TEST_P(Wkv4Variant, ReplacedShareFollowsTheRates) {
  if (kernel().replaced_share == nullptr) GTEST_SKIP() << "replaces nothing";
  const WkvShape s{2, 100, 48, 1, false};
  EXPECT_EQ(run_wkv4(kernel(), s, data(slow(s, 3))).replaced, 0);
  const Wkv4Result some = run_wkv4(kernel(), s, data({"some", Wkv4Kind::kModel, s, 3}));
  EXPECT_GT(some.replaced, 0.02);
  EXPECT_LT(some.replaced, 0.9);
  Wkv4Data fast = data(slow(s, 3));
  fast.tau.assign(fast.tau.size(), 3.0f);
  // The last piece has 4 tokens, which fit the range at a rate of 20.
  const Wkv4Result most = run_wkv4(kernel(), s, fast);
  EXPECT_NEAR(most.replaced, 1, 0.1);
  const Wkv4Expected want = reference(s, fast, most.p);
  EXPECT_LE(max_error(most.y, want.y), wkv4_limits(false, kernel().io).y);
}

// What does not fit f32 as one sum is refused, and the message says why.
TEST_P(Wkv4Variant, NaiveRefusesWhatOverflows) {
  if (!naive()) GTEST_SKIP() << "takes everything";
  const WkvShape s{1, 1024, 20, 1, false};
  Wkv4Data d = data(slow(s, 3));
  d.tau.assign(d.tau.size(), std::log(0.05f));
  EXPECT_LE(max_error(run_wkv4(kernel(), s, d).y, reference(s, d, {}).y),
            wkv4_limits(false, kernel().io).y);
  d.tau[17] = std::log(0.5f);
  try {
    run_wkv4(kernel(), s, d);
    ADD_FAILURE() << "nothing was thrown";
  } catch (const ConfigError& e) {
    const std::string text = e.what();
    for (const char* part : {"cumsum-naive", "channel 17", "1024 tokens", "rate of 0.5",
                             "f32 can hold", "use cumsum, scan or serial"})
      EXPECT_NE(text.find(part), std::string::npos) << text;
  }
}

// The sums of the incoming state count with their size: e^164 b = e^171.6.
TEST_P(Wkv4Variant, NaiveRefusesLargeSumsAhead) {
  if (!naive()) GTEST_SKIP() << "takes everything";
  const WkvShape s{1, 2, 3, 1, true};
  Wkv4Data d = data({"behind", Wkv4Kind::kManyBehind, s, 8});
  const auto at = [&](float p, float sum) {
    d.p0.assign(3, p);
    d.a0.assign(3, sum);
    d.b0.assign(3, sum);
    const Wkv4Result got = run_wkv4(kernel(), s, d);
    for (const float y : got.y) EXPECT_NEAR(y, 1, 1e-6) << p << " " << sum;
  };
  at(164, 1);
  at(156, 2000);
  EXPECT_THROW(at(164, 2000), ConfigError);
  EXPECT_THROW(at(164, 2e30f), ConfigError);
}

// More sequences than a grid has rows.
TEST_P(Wkv4Variant, ManySequences) {
  const WkvShape s{65601, 1, 3, 1, true};
  const Wkv4Data d = data({"sequences", Wkv4Kind::kModel, s, 7});
  const Wkv4Result got = run_wkv4(kernel(), s, d);
  expect_close(got, reference(s, d, got.p), false);
}

TEST_P(Wkv4Variant, OneTokenIsExact) {
  const WkvShape s{2, 1, 21, 1, false};
  const Wkv4Data d = data(slow(s, 3));
  const Wkv4Result got = run_wkv4(kernel(), s, d);
  EXPECT_EQ(got.y, d.v);
  EXPECT_EQ(got.grad[kDv], d.dy);
  for (const size_t i : {kDk, kDtau, kDu})
    for (const float x : got.grad[i]) EXPECT_EQ(x, 0.0f) << kWkv4Names[i];
}

TEST_P(Wkv4Variant, GradientModes) {
  for (const int64_t tokens : {37, 133}) {
    const Wkv4Case c = slow({2, tokens, 19, 1, true}, 5);
    const Wkv4Data d = data(c);
    const Wkv4Result written = run_wkv4(kernel(), c.shape, d);
    // Each gradient is once skipped, written and added to while its neighbours do something else.
    for (int shift = 0; shift < 3; ++shift) {
      std::vector<Accum> modes;
      for (int i = 0; i < static_cast<int>(kWkv4Grads); ++i)
        modes.push_back(static_cast<Accum>((i + shift) % 3));
      constexpr float base = 0.75f;
      const Wkv4Result got = run_wkv4(kernel(), c.shape, d, modes, base);
      for (size_t i = 0; i < kWkv4Grads; ++i) {
        std::vector<float> want = written.grad[i];
        if (modes[i] == Accum::kSkip) want.assign(want.size(), base);
        if (modes[i] == Accum::kAdd)
          for (float& x : want) x += base;
        const bool half = kernel().io == DType::kBF16 && i <= kDv;
        const double limit = modes[i] == Accum::kAdd ? (half ? 8e-3 : 3e-7) : 0.0;
        EXPECT_LE(max_error(got.grad[i], want), limit)
            << kWkv4Names[i] << ", mode " << int(modes[i]) << ", " << tokens << " tokens";
      }
    }
  }
}

TEST_P(Wkv4Variant, RerunsAndThreadsDoNotChangeBits) {
  for (const int64_t tokens : {50, 261}) {
    const Wkv4Case c = slow({2, tokens, 40, 1, true}, 6);
    const Wkv4Data d = data(c);
    const int before = num_threads();
    set_num_threads(1);
    const Wkv4Result one = run_wkv4(kernel(), c.shape, d);
    set_num_threads(3);
    const Wkv4Result three = run_wkv4(kernel(), c.shape, d);
    set_num_threads(before);
    EXPECT_EQ(one.y, three.y);
    EXPECT_EQ(one.a, three.a);
    EXPECT_EQ(one.p, three.p);
    for (size_t i = 0; i < kWkv4Grads; ++i) EXPECT_EQ(one.grad[i], three.grad[i]) << kWkv4Names[i];
  }
}

// Tokens [begin, end) of a (B, T, C) tensor.
std::vector<float> tokens_of(const std::vector<float>& x, const WkvShape& s, int64_t begin,
                             int64_t end) {
  std::vector<float> part;
  for (int64_t b = 0; b < s.batch; ++b) {
    const auto first = x.begin() + (b * s.tokens + begin) * s.heads;
    part.insert(part.end(), first, first + (end - begin) * s.heads);
  }
  return part;
}

Wkv4Data slice_tokens(Wkv4Data d, const WkvShape& s, int64_t begin, int64_t end) {
  for (auto* x : {&d.k, &d.v, &d.dy}) *x = tokens_of(*x, s, begin, end);
  return d;
}

TEST_P(Wkv4Variant, TwoPartsEqualOneRun) {
  for (const auto& [tokens, cut] : {std::pair<int64_t, int64_t>{75, 41}, {300, 277}, {290, 133}}) {
    SCOPED_TRACE(str(tokens, " tokens"));
    const WkvShape s{2, tokens, 24, 1, true};
    const auto kind = naive() ? Wkv4Kind::kSlow : Wkv4Kind::kModel;
    const Wkv4Data d = data({"parts", kind, s, 9});
    const Wkv4Result whole = run_wkv4(kernel(), s, d);
    WkvShape first = s, second = s;
    first.tokens = cut;
    second.tokens = tokens - cut;
    Wkv4Data d1 = slice_tokens(d, s, 0, cut), d2 = slice_tokens(d, s, cut, tokens);
    const Wkv4Result forward1 = run_wkv4(kernel(), first, d1);
    d2.a0 = forward1.a;
    d2.b0 = forward1.b;
    d2.p0 = forward1.p;
    // The gradients at the end refer to the p_out of the whole run.
    const Wkv4Result forward2 = run_wkv4(kernel(), second, d2);
    for (size_t i = 0; i < d2.da_out.size(); ++i) {
      const float scale = std::exp(forward2.p[i] - whole.p[i]);
      d2.da_out[i] *= scale;
      d2.db_out[i] *= scale;
    }
    const Wkv4Result r2 = run_wkv4(kernel(), second, d2);
    d1.da_out = r2.grad[kDa0];
    d1.db_out = r2.grad[kDb0];
    const Wkv4Result r1 = run_wkv4(kernel(), first, d1);

    const Wkv4Limits limits = wkv4_limits(false, kernel().io);
    EXPECT_LE(max_error(r1.y, tokens_of(whole.y, s, 0, cut)), limits.y);
    EXPECT_LE(max_error(r2.y, tokens_of(whole.y, s, cut, tokens)), limits.y);
    EXPECT_LE(max_error(state_ratio(r2), state_ratio(whole)), limits.ratio);
    EXPECT_LE(absolute_error(state_log_sum(r2), state_log_sum(whole)), limits.log_sum);
    for (const size_t i : {kDk, kDv}) {
      EXPECT_LE(max_error(r1.grad[i], tokens_of(whole.grad[i], s, 0, cut)), limits.dkv);
      EXPECT_LE(max_error(r2.grad[i], tokens_of(whole.grad[i], s, cut, tokens)), limits.dkv);
    }
    for (const size_t i : {kDa0, kDb0})
      EXPECT_LE(max_error(r1.grad[i], whole.grad[i]), limits.rest) << kWkv4Names[i];
    for (const size_t i : {kDtau, kDu}) {
      std::vector<float> sum = r1.grad[i];
      for (size_t c = 0; c < sum.size(); ++c) sum[c] += r2.grad[i][c];
      EXPECT_LE(max_error(sum, whole.grad[i]), limits.rest) << kWkv4Names[i];
    }
  }
}

// Decoding: kWkv4 without a saved tensor takes the single-token step, state updated in place.
TEST_P(Wkv4Variant, StepsInPlaceEqualForward) {
  const WkvShape s{3, 20, 37, 1, true};
  const Wkv4Data d = data(slow(s, 11));
  const Wkv4Result whole = run_wkv4(kernel(), s, d);
  WkvShape one = s;
  one.tokens = 1;
  std::vector<float> a = d.a0, b = d.b0, p = d.p0;
  const Wkv4Limits limits = wkv4_limits(false, kernel().io);
  for (int64_t t = 0; t < s.tokens; ++t) {
    Wkv4Data x = slice_tokens(d, s, t, t + 1);
    x.a0 = a;
    x.b0 = b;
    x.p0 = p;
    Wkv4Run run(kernel(), one);
    const std::vector<size_t> in = run.add_inputs(x), params = run.add_params(x);
    const size_t y = run.image.add(run.vec);
    run.image.send();
    const std::vector<TensorView> out = run.views({y, in[2], in[3], in[4]});
    run.forward(run.views(in), run.views(params), out, {});
    run.image.fetch();
    EXPECT_TRUE(run.image.intact());
    EXPECT_LE(max_error(run.image.values(y), tokens_of(whole.y, s, t, t + 1)), limits.y);
    a = run.image.values(in[2]);
    b = run.image.values(in[3]);
    p = run.image.values(in[4]);
  }
  Wkv4Result last;
  last.a = a;
  last.b = b;
  last.p = p;
  EXPECT_LE(max_error(state_ratio(last), state_ratio(whole)), limits.ratio);
  EXPECT_LE(absolute_error(state_log_sum(last), state_log_sum(whole)), limits.log_sum);
}

TEST_P(Wkv4Variant, ForwardWithoutSavingGivesTheSameBits) {
  for (const WkvShape& s : {WkvShape{1, 45, 33, 1, true}, WkvShape{2, 300, 16, 1, true}}) {
    const Wkv4Data d = data(slow(s, 12));
    const Wkv4Result want = run_wkv4(kernel(), s, d);
    Wkv4Run run(kernel(), s);
    const std::vector<size_t> in = run.add_inputs(d), params = run.add_params(d);
    const size_t y = run.image.add(run.vec), a = run.image.add(run.state),
                 b = run.image.add(run.state), p = run.image.add(run.state);
    run.image.send();
    const std::vector<TensorView> out = run.views({y, a, b, p}), null_saved(1);
    run.forward(run.views(in), run.views(params), out, null_saved);
    run.image.fetch();
    EXPECT_TRUE(run.image.intact());
    EXPECT_EQ(run.image.values(y), want.y);
    EXPECT_EQ(run.image.values(a), want.a);
    EXPECT_EQ(run.image.values(b), want.b);
    EXPECT_EQ(run.image.values(p), want.p);
  }
}

INSTANTIATE_TEST_SUITE_P(Device, Wkv4Variant, testing::ValuesIn(wkv4_variants()),
                         wkv4_variant_name);

}  // namespace
}  // namespace rwkv::test
