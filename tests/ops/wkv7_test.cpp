// Every WKV-7 variant of this build for the device under test against the double reference.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <string>

#include "kernels/core/parallel.h"
#include "tests/ops/wkv7_harness.h"

namespace rwkv::test {
namespace {

class Wkv7Variant : public testing::TestWithParam<const WkvKernel*> {
 protected:
  void SetUp() override { RWKV_NEED_TEST_DEVICE(); }
  const WkvKernel& kernel() const { return *GetParam(); }
  bool runs(const WkvShape& s) const {
    return wkv_misfit(kernel(), "wkv7", kernel().device, kernel().io, s).empty();
  }
  Wkv7Data data(const Wkv7Case& c) const { return rounded(make_wkv7_data(c), kernel()); }

  /// The reference of a case, computed once for all variants of a type.
  const Wkv7Expected& expected(const Wkv7Case& c, const Wkv7Data& d) const {
    static std::map<std::string, Wkv7Expected> known;
    const std::string key =
        str(c.name, " ", c.seed, " ", c.shape.head_size, dtype_name(kernel().io));
    const auto it = known.find(key);
    return it != known.end() ? it->second : known.emplace(key, reference(c.shape, d)).first->second;
  }
  /// Limits of tests/golden/README.md, which hold for the lengths of the golden file. With one key
  /// and slow decay rounding errors beside that key are never forgotten, so there they grow with
  /// the length in any computation, and the limits with them:
  /// - in plain f32 on the CPU in proportion (s_out 7.0e-7, 1.3e-6, 2.6e-6, 5.1e-6, 1.0e-5 after
  /// 64,
  ///   128, 250, 600, 1200 tokens), from 200 tokens on, the longest of the golden file;
  /// - with bf16 products as with_rounded_operands says, half as much again.
  Wkv7Limits limits_for(const Wkv7Case& c, const Wkv7Data& d, const Wkv7Expected& want) const {
    Wkv7Limits limits = limits_of(kernel());
    if (c.kind != Wkv7Kind::kSameKey) return limits;
    if (kernel().io == DType::kF32 || kernel().family == "serial") {
      const double times = std::max(1.0, static_cast<double>(c.shape.tokens) / 200);
      limits.y *= times;
      limits.s_out *= times;
      for (double& l : limits.grad) l *= times;
      return limits;
    }
    const Wkv7Expected plain = reference(c.shape, with_rounded_operands(c.shape, d));
    const auto at_least = [](double& limit, const auto& got, const auto& exact) {
      limit = std::max(limit, 1.5 * relative_error(got, exact));
    };
    at_least(limits.y, plain.y, want.y);
    at_least(limits.s_out, plain.s_out, want.s_out);
    for (size_t i = 0; i < 7; ++i) at_least(limits.grad[i], plain.grad[i], want.grad[i]);
    return limits;
  }
  void expect_close(const Wkv7Case& c, const Wkv7Data& d, const Wkv7Result& got,
                    const Wkv7Expected& want) const {
    const Wkv7Limits limits = limits_for(c, d, want);
    EXPECT_TRUE(close("y", got.y, want.y, limits.y));
    EXPECT_EQ(got.s_out.empty(), want.s_out.empty());
    if (!want.s_out.empty()) {
      EXPECT_TRUE(close("s_out", got.s_out, want.s_out, limits.s_out));
    }
    for (size_t i = 0; i < (want.s_out.empty() ? 6u : 7u); ++i)
      EXPECT_TRUE(close(kWkv7Names[i], got.grad[i], want.grad[i], limits.grad[i]));
  }
};

TEST_P(Wkv7Variant, MatchesReference) {
  std::set<int64_t> sizes;
  for (const Wkv7Case& c : wkv7_cases()) {
    if (!runs(c.shape)) continue;
    SCOPED_TRACE(c.name);
    const Wkv7Data d = data(c);
    expect_close(c, d, run_wkv7(kernel(), c.shape, d), expected(c, d));
    sizes.insert(c.shape.head_size);
  }
  // Cases of every head size that the variant says it has, unless they are too short for it.
  EXPECT_TRUE(sizes.size() == kernel().head_sizes.size() || kernel().min_tokens > 1);
}

/// On a GPU "scan" cuts sequences into segments that run side by side, in other ways for few and
/// for many heads. Lengths are no multiples of chunk (16), step (32) or segment.
TEST_P(Wkv7Variant, LongSequencesMatchReference) {
  using enum Wkv7Kind;
  std::vector<Wkv7Case> cases;
  for (const int n : kernel().head_sizes) {
    cases.push_back({"two segments", kModel, {1, 259, 3, n, true}, 21});
    if (kTestDevice == Device::kCpu) continue;
    cases.push_back({"segments, no state", kModel, {2, 515, 1, n, false}, 22});
    cases.push_back({"one key", kSameKey, {1, 600, 1, n, true}, 25});
    if (n != 64) continue;
    cases.push_back({"many segments", kModel, {1, 1025, 1, n, true}, 23});
    cases.push_back({"hardly any decay", kNearOne, {1, 600, 1, n, true}, 24});
    cases.push_back({"floor", kFloor, {1, 600, 1, n, true}, 26});
    cases.push_back({"zero keys", kZeroKey, {1, 600, 1, n, true}, 27});
    // The forward of scan walks whole heads, its backward has segments; and more heads than fit.
    cases.push_back({"many heads", kModel, {5, 141, 13, n, true}, 28});
    cases.push_back({"full of heads", kModel, {3, 70, 48, n, false}, 29});
  }
  for (const Wkv7Case& c : cases) {
    SCOPED_TRACE(str(c.name, ", head size ", c.shape.head_size));
    ASSERT_TRUE(runs(c.shape));
    const Wkv7Data d = data(c);
    expect_close(c, d, run_wkv7(kernel(), c.shape, d), expected(c, d));
  }
}

TEST_P(Wkv7Variant, GradientModes) {
  for (const int n : kernel().head_sizes)
    for (const int64_t tokens : {37, 133}) {
      const Wkv7Case c{"modes", Wkv7Kind::kModel, {1, tokens, 3, n, true}, 5};
      if (!runs(c.shape)) continue;
      const Wkv7Data d = data(c);
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
          // bf16: the gradient may be rounded before it is added, and the sum is.
          const bool half = kernel().io == DType::kBF16 && i < 6;
          const double limit = modes[i] == Accum::kAdd ? (half ? 4e-3 : 3e-7) : 0.0;
          EXPECT_TRUE(close(kWkv7Names[i], got.grad[i], want, limit))
              << "mode " << int(modes[i]) << ", head size " << n << ", " << tokens << " tokens";
        }
      }
    }
}

TEST_P(Wkv7Variant, RerunsAndThreadsDoNotChangeBits) {
  for (const int64_t tokens : {50, 261}) {
    const Wkv7Case c{
        "threads", Wkv7Kind::kModel, {2, tokens, 3, kernel().head_sizes.back(), true}, 6};
    if (!runs(c.shape)) continue;
    const Wkv7Data d = data(c);
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
  const Wkv7Limits limits = limits_of(kernel());
  for (const int64_t n : kernel().head_sizes)
    for (const auto& [tokens, cut] :
         {std::pair<int64_t, int64_t>{75, 41}, {300, 277}, {490, 233}}) {
      SCOPED_TRACE(str(tokens, " tokens, head size ", n));
      const WkvShape s{2, tokens, 2, n, true};
      const Wkv7Data d = data({"halves", Wkv7Kind::kModel, s, 9});
      const Wkv7Result whole = run_wkv7(kernel(), s, d);
      WkvShape first = s, second = s;
      first.tokens = cut;
      second.tokens = s.tokens - cut;
      if (!runs(first) || !runs(second)) continue;
      Wkv7Data d1 = slice_tokens(d, s, 0, cut), d2 = slice_tokens(d, s, cut, s.tokens);
      d2.s0 = run_wkv7(kernel(), first, d1).s_out;
      const Wkv7Result r2 = run_wkv7(kernel(), second, d2);
      d1.ds_out = r2.grad[6];
      const Wkv7Result r1 = run_wkv7(kernel(), first, d1);

      const double k = limits.split;
      EXPECT_TRUE(close("y, first", r1.y, tokens_of(whole.y, s, 0, cut), k * limits.y));
      EXPECT_TRUE(close("y, second", r2.y, tokens_of(whole.y, s, cut, s.tokens), k * limits.y));
      EXPECT_TRUE(close("s_out", r2.s_out, whole.s_out, k * limits.s_out));
      EXPECT_TRUE(close("ds0", r1.grad[6], whole.grad[6], k * limits.grad[6]));
      for (size_t i = 0; i < 6; ++i) {
        const double limit = 2 * k * limits.grad[i];
        EXPECT_TRUE(close(kWkv7Names[i], r1.grad[i], tokens_of(whole.grad[i], s, 0, cut), limit));
        EXPECT_TRUE(
            close(kWkv7Names[i], r2.grad[i], tokens_of(whole.grad[i], s, cut, s.tokens), limit));
      }
    }
}

// Decoding: kWkv7 without a saved tensor takes the single-token step, state updated in place.
TEST_P(Wkv7Variant, StepsInPlaceEqualForward) {
  const Wkv7Limits limits = limits_of(kernel());
  if (kernel().min_tokens > 1) GTEST_SKIP() << "takes no single tokens";
  for (const int64_t n : kernel().head_sizes) {
    const WkvShape s{3, 20, 2, n, true};
    const Wkv7Data d = data({"step", Wkv7Kind::kModel, s, 11});
    const Wkv7Result whole = run_wkv7(kernel(), s, d);
    WkvShape one = s;
    one.tokens = 1;
    std::vector<float> running = d.s0;
    for (int64_t t = 0; t < s.tokens; ++t) {
      Wkv7Data x = slice_tokens(d, s, t, t + 1);
      x.s0 = running;
      Wkv7Run run(kernel(), one);
      const std::vector<size_t> in = run.add_inputs(x);
      const size_t y = run.image.add(run.vec);
      run.image.send();
      const std::vector<TensorView> out = {run.image.view(y), run.image.view(in[6])};
      run.forward(run.views(in), out, {});
      run.image.fetch();
      EXPECT_TRUE(run.image.intact());
      EXPECT_TRUE(close(str("y of token ", t), run.image.values(y), tokens_of(whole.y, s, t, t + 1),
                        limits.split * limits.y));
      running = run.image.values(in[6]);
    }
    EXPECT_TRUE(close("state", running, whole.s_out, limits.split * limits.s_out));
  }
}

TEST_P(Wkv7Variant, ForwardWithoutSavingGivesTheSameBits) {
  for (const WkvShape& s : {WkvShape{1, 45, 2, kernel().head_sizes.back(), true},
                            WkvShape{1, 300, 2, kernel().head_sizes.front(), true},
                            WkvShape{4, 270, 16, kernel().head_sizes.front(), true}}) {
    if (!runs(s) || (kTestDevice == Device::kCpu && s.batch > 1)) continue;
    SCOPED_TRACE(str(s.batch, " x ", s.tokens, " tokens"));
    const Wkv7Data d = data({"nosave", Wkv7Kind::kModel, s, 12});
    const Wkv7Result want = run_wkv7(kernel(), s, d);
    Wkv7Run run(kernel(), s);
    const std::vector<size_t> in = run.add_inputs(d);
    const size_t y = run.image.add(run.vec), s_out = run.image.add(run.state);
    run.image.send();
    const std::vector<TensorView> out = {run.image.view(y), run.image.view(s_out)}, null_saved(1);
    run.forward(run.views(in), out, null_saved);
    run.image.fetch();
    EXPECT_TRUE(run.image.intact());
    EXPECT_EQ(run.image.values(y), want.y);
    EXPECT_EQ(run.image.values(s_out), want.s_out);
  }
}

// More heads than a GPU takes at once are walked in pieces, by whichever block is free.
TEST_P(Wkv7Variant, ManyHeadsEqualFew) {
  if (kTestDevice == Device::kCpu || kernel().io != DType::kBF16) GTEST_SKIP();
  const WkvShape few{1, 520, 2, 64, true}, many{200, 520, 2, 64, true};
  if (!runs(many)) GTEST_SKIP();
  const Wkv7Data d = data({"pieces", Wkv7Kind::kModel, few, 13});
  Wkv7Data repeated;
  const auto repeat = [&](const std::vector<float>& x) {
    std::vector<float> all;
    for (int64_t b = 0; b < many.batch; ++b) all.insert(all.end(), x.begin(), x.end());
    return all;
  };
  std::vector<float> Wkv7Data::*const members[] = {
      &Wkv7Data::r, &Wkv7Data::w_logit, &Wkv7Data::k,  &Wkv7Data::v,     &Wkv7Data::a,
      &Wkv7Data::b, &Wkv7Data::dy,      &Wkv7Data::s0, &Wkv7Data::ds_out};
  for (const auto member : members) repeated.*member = repeat(d.*member);
  const Wkv7Result all = run_wkv7(kernel(), many, repeated);
  const Wkv7Result one = run_wkv7(kernel(), few, d);
  // "scan" cuts few heads into segments; otherwise the order of all sums is the same.
  const Wkv7Limits limits = limits_of(kernel());
  const double scale = kernel().family == "scan" ? limits.split : 0.0;
  EXPECT_TRUE(close("y", all.y, repeat(one.y), scale * limits.y));
  EXPECT_TRUE(close("s_out", all.s_out, repeat(one.s_out), scale * limits.s_out));
  for (size_t i = 0; i < 7; ++i)
    EXPECT_TRUE(close(kWkv7Names[i], all.grad[i], repeat(one.grad[i]), scale * limits.grad[i]));
}

INSTANTIATE_TEST_SUITE_P(Device, Wkv7Variant, testing::ValuesIn(test_variants()), variant_name);

}  // namespace
}  // namespace rwkv::test
