// WKV-7 with a binary16 state on the device under test: bits against exact integer arithmetic and
// against the CPU, gradients against straight-through gradients in double, resuming, batch slots,
// single steps, checks of the counter.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <string>

#include "kernels/core/error.h"
#include "kernels/core/parallel.h"
#include "kernels/core/rng.h"
#include "tests/ops/wkv7_fp16_harness.h"

namespace rwkv::test {
namespace {

using Wkv7Fp16 = Wkv7Fp16Test;

TEST_P(Wkv7Fp16, BitsAndGradientsMatchExactArithmetic) {
  using enum Wkv7Kind;
  const struct {
    Wkv7Case c;
    std::vector<int32_t> elapsed;
  } cases[] = {
      {{"model", kModel, {2, 19, 2, 64, true}, 31}, {5, 2147483640}},
      {{"no state", kModel, {1, 33, 1, 64, false}, 32}, {}},
      {{"floor", kFloor, {1, 17, 1, 64, true}, 33}, {1000}},
      {{"near one", kNearOne, {1, 18, 1, 64, true}, 34}, {77}},
      {{"whole chunks", kSameKey, {1, 16, 2, 64, true}, 36}, {123}},
      {{"one token", kZeroKey, {2, 1, 1, 64, true}, 35}, {}},
  };
  for (const auto& [c, elapsed] : cases) {
    SCOPED_TRACE(c.name);
    const WkvShape& s = c.shape;
    const Wkv7Data d = data(c);
    const Fp16Result got = run_fp16(kernel(), s, d, elapsed, {.backward = true});
    std::vector<Fp16Trace> traces(static_cast<size_t>(s.batch * s.heads));
    for (size_t head = 0; head < traces.size(); ++head) {
      const auto h = static_cast<int64_t>(head);
      const auto b = static_cast<size_t>(h / s.heads);
      traces[head] = fp16_trace(s, d, h, {.elapsed = elapsed.empty() ? 0 : elapsed[b]}, dithered());
      for (int64_t t = 0; t < s.tokens; ++t) {
        const std::vector<float> y = as_io(kernel(), traces[head].y[static_cast<size_t>(t)]);
        for (size_t i = 0; i < 64; ++i)
          ASSERT_EQ(float_bits(got.y[fp16_row(s, h, t) + i]), float_bits(y[i]))
              << "y, head " << h << ", token " << t << ", row " << i;
      }
      for (size_t i = 0; s.has_state && i < 64 * 64; ++i)
        ASSERT_EQ(float_bits(got.s_out[head * 4096 + i]), float_bits(traces[head].state.back()[i]));
    }
    for (size_t b = 0; b < elapsed.size(); ++b)
      EXPECT_EQ(static_cast<uint32_t>(got.elapsed[b]),
                static_cast<uint32_t>(elapsed[b]) + static_cast<uint32_t>(s.tokens));
    const auto want = straight_through(s, d, traces);
    for (size_t i = 0; i < (s.has_state ? 7u : 6u); ++i)
      EXPECT_LE(distance(got.grad[i], want[i]), i < 6 ? limit(1e-5) : 1e-5) << kNames[i];
  }
}

// Longer runs, decays at the floor and at exactly 1, binary16 state tensors: the bits of the CPU
// with f32 tensors, gradients as the CPU's.
TEST_P(Wkv7Fp16, AgreesWithTheCpu) {
  const WkvKernel& cpu = fp16_kernel(kernel().family, Device::kCpu);
  for (const WkvShape& s :
       {WkvShape{3, 1, 2, 64, true}, WkvShape{2, 37, 3, 64, true}, WkvShape{1, 512, 2, 64, true}}) {
    SCOPED_TRACE(s.tokens);
    for (const bool extreme : {false, true}) {
      Wkv7Data d = data({"bits", extreme ? Wkv7Kind::kNearOne : Wkv7Kind::kModel, s,
                         static_cast<uint64_t>(60 + s.tokens)});
      // 1 - exp(-exp(-1/2) sigmoid(-30)) is 0 in float, sigmoid(30) is 1.
      for (size_t i = 0; extreme && i < d.w_logit.size(); ++i)
        if (i % 5 < 4) d.w_logit[i] = i % 5 < 2 ? 30.0f : -30.0f;
      std::vector<int32_t> elapsed;
      for (int64_t b = 0; b < s.batch; ++b) elapsed.push_back(static_cast<int32_t>(b * 77777));
      const Fp16Result want = run_fp16(cpu, s, d, elapsed, {.backward = true});
      const Fp16Result half = run_fp16(kernel(), s, d, elapsed, {.state_type = DType::kF16});
      const Fp16Result got = run_fp16(kernel(), s, d, elapsed, {.backward = true});
      for (const Fp16Result* r : {&half, &got}) {
        EXPECT_EQ(r->y, as_io(kernel(), want.y));
        EXPECT_EQ(r->s_out, want.s_out);
        EXPECT_EQ(r->elapsed, want.elapsed);
      }
      for (size_t i = 0; i < 7; ++i)
        EXPECT_LE(distance(got.grad[i], widened(want.grad[i])), i < 6 ? limit(1e-5) : 1e-5)
            << kNames[i] << (extreme ? ", extreme decays" : "");
    }
  }
}

/// As a trained model may do it: decays next to 1, keys that are hardly removed, so that states
/// grow to some hundreds in thousands of tokens.
Wkv7Data growing(const WkvShape& s, uint64_t seed) {
  Wkv7Data d = make_wkv7_data({"growing", Wkv7Kind::kModel, s, seed});
  const Rng rng(seed, hash_name("growing"));
  const auto width = static_cast<uint64_t>(s.heads) * 64;
  for (size_t i = 0; i < d.k.size(); ++i) {
    const double channel = rng.normal(i % width);  // what all tokens of a head have in common
    d.w_logit[i] = static_cast<float>(-9 + channel + 0.5 * rng.normal(width + 2 * i));
    d.k[i] = static_cast<float>(2.0 * static_cast<double>(d.k[i]) + 0.2 * channel);
    d.v[i] = static_cast<float>(rng.normal(width + 2 * i + 1) + 0.5 * channel);
    d.b[i] *= 0.05f;
  }
  return d;
}

// Lengths and numbers of heads of real models, from zero states, in both state types.
TEST_P(Wkv7Fp16, LongRunsAgreeWithTheCpu) {
  if (kTestDevice == Device::kCpu) GTEST_SKIP() << "for GPUs";
  const WkvKernel& cpu = fp16_kernel(kernel().family, Device::kCpu);
  for (const bool state : {false, true})
    for (const auto& [b, t, h] :
         {std::array<int64_t, 3>{2, 2048, 3}, {1, 4096, 12}, {2, 1025, 1}}) {
      if (state && t == 4096) continue;  // as without one
      const WkvShape s{b, t, h, 64, state};
      SCOPED_TRACE(str(b, " x ", t, " x ", h, state ? ", states" : ""));
      Wkv7Data d = growing(s, static_cast<uint64_t>(70 + t));
      for (auto* x : {&d.r, &d.w_logit, &d.k, &d.v, &d.a, &d.b, &d.dy}) *x = as_io(kernel(), *x);
      std::vector<int32_t> elapsed;
      if (state) elapsed.assign(static_cast<size_t>(b), 0);
      const Fp16Result want = run_fp16(cpu, s, d, elapsed);
      const Fp16Result got = run_fp16(kernel(), s, d, elapsed);
      const Fp16Result saving = run_fp16(kernel(), s, d, elapsed, {.backward = true});
      const Fp16Result half = run_fp16(kernel(), s, d, elapsed, {.state_type = DType::kF16});
      EXPECT_TRUE(std::ranges::all_of(want.y, [](float x) { return std::isfinite(x); }));
      for (const Fp16Result* r : {&got, &saving, &half}) {
        EXPECT_EQ(r->y == as_io(kernel(), want.y), true);  // too many to be printed
        EXPECT_EQ(r->s_out == want.s_out, true);
        EXPECT_EQ(r->elapsed, want.elapsed);
      }
      if (state) {  // as an engine does it: pieces, and binary16 states between them
        const int64_t cut = t / 2 / 16 * 16;
        WkvShape first = s, second = s;
        first.tokens = cut;
        second.tokens = t - cut;
        const Fp16Result one = run_fp16(kernel(), first, tokens_of(d, s, 0, cut), elapsed,
                                        {.state_type = DType::kF16});
        Wkv7Data rest = tokens_of(d, s, cut, t);
        rest.s0 = one.s_out;
        const Fp16Result two =
            run_fp16(kernel(), second, rest, one.elapsed, {.state_type = DType::kF16});
        Wkv7Data outputs = d;
        outputs.r = got.y;
        EXPECT_EQ(two.y == tokens_of(outputs, s, cut, t).r, true);
        EXPECT_EQ(two.s_out == want.s_out, true);
        EXPECT_EQ(two.elapsed, want.elapsed);
      }
      for (size_t i = 0; i < (state ? 7u : 6u); ++i)
        EXPECT_TRUE(std::ranges::all_of(saving.grad[i], [](float x) { return std::isfinite(x); }))
            << kNames[i];
      const auto size = [](float x, float y) { return std::fabs(x) < std::fabs(y); };
      std::printf("%s, %s: largest y %.1f", kernel().name.data(),
                  str(b, " x ", t, " x ", h).c_str(),
                  std::fabs(*std::ranges::max_element(want.y, size)));
      if (state) {
        const double largest = std::fabs(*std::ranges::max_element(want.s_out, size));
        std::printf(", state %.1f", largest);
        EXPECT_GE(largest, 50);
      }
      std::printf("\n");
    }
}

TEST_P(Wkv7Fp16, ResumedRunsGiveTheSameBits) {
  const WkvShape s{2, 50, 2, 64, true};
  const Wkv7Data d = data({"resumed", Wkv7Kind::kNearOne, s, 41});
  const std::vector<int32_t> elapsed = {3, 99000};
  const Fp16Result whole = run_fp16(kernel(), s, d, elapsed, {.backward = true});
  for (const int64_t cut : {1, 16, 23, 49}) {
    SCOPED_TRACE(cut);
    WkvShape first = s, second = s;
    first.tokens = cut;
    second.tokens = s.tokens - cut;
    Wkv7Data d1 = tokens_of(d, s, 0, cut), d2 = tokens_of(d, s, cut, s.tokens);
    const Fp16Result one = run_fp16(kernel(), first, d1, elapsed);
    d2.s0 = one.s_out;
    const Fp16Result two = run_fp16(kernel(), second, d2, one.elapsed, {.backward = true});
    EXPECT_EQ(two.s_out, whole.s_out);
    EXPECT_EQ(two.elapsed, whole.elapsed);
    Wkv7Data outputs = d;
    outputs.r = whole.y;
    EXPECT_EQ(one.y, tokens_of(outputs, s, 0, cut).r);
    EXPECT_EQ(two.y, tokens_of(outputs, s, cut, s.tokens).r);
    // The gradients too, but for rounding (other tokens share a segment).
    d1.ds_out = two.grad[6];
    const Fp16Result back = run_fp16(kernel(), first, d1, elapsed, {.backward = true});
    for (size_t i = 0; i < 6; ++i) {
      outputs.r = whole.grad[i];
      EXPECT_LE(distance(back.grad[i], widened(tokens_of(outputs, s, 0, cut).r)), limit(1e-6));
      EXPECT_LE(distance(two.grad[i], widened(tokens_of(outputs, s, cut, s.tokens).r)),
                limit(1e-6));
    }
    EXPECT_LE(distance(back.grad[6], widened(whole.grad[6])), 1e-6);
    if (!dithered()) continue;
    // A counter that is not restored changes the dither.
    EXPECT_NE(run_fp16(kernel(), second, d2, elapsed).s_out, whole.s_out);
  }
}

TEST_P(Wkv7Fp16, BatchSlotsDoNotMatter) {
  const WkvShape s{3, 21, 2, 64, true}, one{1, 21, 2, 64, true};
  const Wkv7Data d = data({"slots", Wkv7Kind::kModel, s, 42});
  const std::vector<int32_t> elapsed = {0, 7, 123457};
  const Fp16Result all = run_fp16(kernel(), s, d, elapsed, {.backward = true});
  for (size_t b = 0; b < 3; ++b) {
    Wkv7Data alone = d;
    const auto slot = [&](const std::vector<float>& x) {
      const auto n = static_cast<int64_t>(x.size() / 3), first = n * static_cast<int64_t>(b);
      return std::vector<float>(x.begin() + first, x.begin() + first + n);
    };
    for (auto* x : {&alone.r, &alone.w_logit, &alone.k, &alone.v, &alone.a, &alone.b, &alone.dy,
                    &alone.s0, &alone.ds_out})
      *x = slot(*x);
    const Fp16Result got = run_fp16(kernel(), one, alone, {elapsed[b]}, {.backward = true});
    EXPECT_EQ(got.y, slot(all.y));
    EXPECT_EQ(got.s_out, slot(all.s_out));
    for (size_t i = 0; i < 7; ++i) EXPECT_EQ(got.grad[i], slot(all.grad[i])) << kNames[i];
  }
}

// As decoding does it: state and counter replaced in place by single tokens.
TEST_P(Wkv7Fp16, StepsInPlaceEqualForward) {
  const WkvShape s{2, 9, 3, 64, true};
  const Wkv7Data d = data({"steps", Wkv7Kind::kModel, s, 43});
  struct Case {
    DType type;
    float scale;
  };
  for (const Case c : {Case{DType::kF32, 1}, {DType::kF16, 1}, {DType::kF16, 1.0F / 256}}) {
    SCOPED_TRACE(testing::Message() << dtype_name(c.type) << " " << c.scale);
    const DType type = c.type;
    const Wkv7Attrs attrs{64, &kernel(), c.scale};
    const Fp16Result whole =
        run_fp16(kernel(), s, d, {12, 5}, {.state_type = type, .state_scale = c.scale});
    std::vector<int32_t> elapsed = {12, 5};
    std::vector<float> state = d.s0;
    Context ctx(kernel().device);
    ctx.reserve_workspace(kernel().workspace_bytes({2, 1, 3, 64, true}));
    for (int64_t t = 0; t < s.tokens; ++t) {
      const Wkv7Data x = tokens_of(d, s, t, t + 1);
      const TensorSpec vec({2, 1, 192}, kernel().io);
      DeviceImage image(ctx);
      for (const auto* p : {&x.r, &x.w_logit, &x.k, &x.v, &x.a, &x.b}) image.add_values(vec, *p);
      image.add_values(TensorSpec({2, 3, 64, 64}, type), state);
      image.add_ints(TensorSpec({2}, DType::kI32), elapsed);
      const size_t y = image.add(vec);
      image.send();
      std::vector<TensorView> in;
      for (size_t i = 0; i < 8; ++i) in.push_back(image.view(i));
      const std::vector<TensorView> out = {image.view(y), in[6], in[7]};
      OpCall call;
      call.in = in;
      call.out = out;
      call.attrs = &attrs;
      run_forward(ctx, kWkv7, call);
      image.fetch();
      EXPECT_TRUE(image.intact());
      Wkv7Data outputs = d;
      outputs.r = whole.y;
      EXPECT_EQ(image.values(y), tokens_of(outputs, s, t, t + 1).r) << t;
      state = image.values(6);
      elapsed = image.ints(7);
    }
    EXPECT_EQ(state, whole.s_out);
    EXPECT_EQ(elapsed, whole.elapsed);
  }
}

TEST_P(Wkv7Fp16, RerunsThreadsAndSavingDoNotChangeBits) {
  const WkvShape s{2, 20, 3, 64, true};
  const Wkv7Data d = data({"threads", Wkv7Kind::kModel, s, 44});
  const int before = num_threads();
  set_num_threads(1);
  const Fp16Result one = run_fp16(kernel(), s, d, {1, 2}, {.backward = true});
  set_num_threads(2);
  const Fp16Result two = run_fp16(kernel(), s, d, {1, 2}, {.backward = true});
  set_num_threads(before);
  const Fp16Result unsaved = run_fp16(kernel(), s, d, {1, 2});
  for (const Fp16Result* other : {&two, &unsaved}) {
    EXPECT_EQ(one.y, other->y);
    EXPECT_EQ(one.s_out, other->s_out);
  }
  for (size_t i = 0; i < 7; ++i) EXPECT_EQ(one.grad[i], two.grad[i]) << kNames[i];
}

// A scaled state is the unscaled one of scaled values: powers of two leave every bit in place.
TEST_P(Wkv7Fp16, StateScaleMovesTheRangeOnly) {
  const WkvShape s{2, 20, 2, 64, true};
  const Wkv7Data d = data({"scale", Wkv7Kind::kModel, s, 46});
  constexpr float c = 1.0F / 256;
  Wkv7Data small = d;
  for (auto* x : {&small.v, &small.s0})
    for (float& e : *x) e *= c;
  for (auto* x : {&small.dy, &small.ds_out})
    for (float& e : *x) e /= c;
  const auto times = [](std::vector<float> x, float by) {
    for (float& e : x) e *= by;
    return x;
  };
  const Fp16Result want = run_fp16(kernel(), s, small, {3, 70}, {.backward = true});
  const Fp16Result got = run_fp16(kernel(), s, d, {3, 70}, {.backward = true, .state_scale = c});
  EXPECT_EQ(got.y, times(want.y, 1 / c));
  EXPECT_EQ(got.s_out, times(want.s_out, 1 / c));
  for (size_t i = 0; i < 7; ++i) {
    const bool scaled = i == 3 || i == 6;
    EXPECT_EQ(got.grad[i], scaled ? times(want.grad[i], c) : want.grad[i]) << kNames[i];
  }
  // Tensors of binary16 numbers hold the scaled state.
  const Fp16Result half = run_fp16(kernel(), s, d, {3, 70}, {.state_scale = c}),
                   stored = run_fp16(kernel(), s, small, {3, 70}, {.state_type = DType::kF16});
  Wkv7Data kept = d;
  kept.s0 = small.s0;
  const Fp16Result resumed =
      run_fp16(kernel(), s, kept, {3, 70}, {.state_type = DType::kF16, .state_scale = c});
  EXPECT_EQ(resumed.s_out, stored.s_out);
  EXPECT_EQ(resumed.y, half.y);
}

TEST_P(Wkv7Fp16, StateScaleHoldsWhatBinary16DoesNot) {
  const WkvShape s{1, 40, 2, 64, true};
  Wkv7Data d = data({"large", Wkv7Kind::kModel, s, 47});
  const Fp16Result want = run_fp16(kernel(), s, d, {0});
  constexpr float large = 65536;
  for (auto* x : {&d.v, &d.s0})
    for (float& e : *x) e *= large;
  const auto finite = [](const std::vector<float>& x) {
    return std::all_of(x.begin(), x.end(), [](float e) { return std::isfinite(e); });
  };
  EXPECT_FALSE(finite(run_fp16(kernel(), s, d, {0}).y));
  const Fp16Result got = run_fp16(kernel(), s, d, {0}, {.state_scale = 1 / large});
  EXPECT_TRUE(finite(got.y));
  for (size_t i = 0; i < got.y.size(); ++i) EXPECT_EQ(got.y[i], want.y[i] * large) << i;
}

TEST_P(Wkv7Fp16, GradientModes) {
  const WkvShape s{1, 18, 2, 64, true};
  const Wkv7Data d = data({"modes", Wkv7Kind::kModel, s, 45});
  const Fp16Result written = run_fp16(kernel(), s, d, {4}, {.backward = true});
  constexpr float base = 0.75f;
  for (int shift = 0; shift < 3; ++shift) {
    std::vector<Accum> modes;
    for (int i = 0; i < 7; ++i) modes.push_back(static_cast<Accum>((i + shift) % 3));
    const Fp16Result got =
        run_fp16(kernel(), s, d, {4}, {.backward = true, .modes = modes, .base = base});
    for (size_t i = 0; i < 7; ++i) {
      std::vector<float> want = written.grad[i];
      if (modes[i] == Accum::kSkip) want.assign(want.size(), base);
      if (modes[i] == Accum::kAdd)
        for (float& x : want) x += base;
      // bf16: what is added to is rounded, what is added is not.
      const bool rounds = modes[i] == Accum::kAdd && i < 6 && bf16();
      EXPECT_LE(distance(got.grad[i], widened(want)), rounds ? 4e-3 : 0.0) << kNames[i];
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Device, Wkv7Fp16, testing::ValuesIn(fp16_variants()), fp16_test_name);

TEST(Wkv7Fp16Registry, AutoNeverTakesIt) {
  for (const int64_t tokens : {1, 2, 16, 512, 4096})
    for (const int64_t n : {32, 64, 128}) {
      const WkvShape s{1, tokens, 2, n, true};
      EXPECT_EQ(select_wkv("wkv7", kTestDevice, DType::kF32, s, "auto").state, DType::kF32);
    }
  const bool cpu = kTestDevice == Device::kCpu;
  EXPECT_EQ(fp16_kernel("fp16-dithered").name,
            cpu ? "wkv7.cpu.fp16-dithered" : "wkv7.cuda.fp16-dithered.f32");
  EXPECT_EQ(fp16_kernel("wkv7.cpu.fp16-plain", Device::kCpu).state, DType::kF16);
}

TEST(Wkv7Fp16Registry, StateScalesArePowersOfTwo) {
  const std::vector<TensorSpec> specs(6, TensorSpec({2, 3, 64}));
  const auto infer = [&](std::string_view wanted, float scale) {
    const Wkv7Attrs attrs{64, &fp16_kernel(wanted), scale};
    ShapeCall call;
    call.in = specs;
    call.attrs = &attrs;
    kWkv7.infer(call);
  };
  for (const float scale : {1.0F, 2.0F, 1.0F / 4096}) EXPECT_NO_THROW(infer("fp16-plain", scale));
  for (const float scale : {0.0F, -0.5F, 3.0F, NAN, INFINITY})
    EXPECT_THROW(infer("fp16-plain", scale), ConfigError) << scale;
  EXPECT_THROW(infer("serial", 0.5F), ConfigError);
}

TEST(Wkv7Fp16Registry, TheCounterIsChecked) {
  std::vector<TensorSpec> specs(6, TensorSpec({2, 3, 64}));
  specs.push_back(TensorSpec({2, 1, 64, 64}));
  specs.push_back(TensorSpec({2}, DType::kI32));
  const auto infer = [&](std::string_view wanted) {
    const Wkv7Attrs attrs{64, &fp16_kernel(wanted)};
    ShapeCall call;
    call.in = specs;
    call.attrs = &attrs;
    kWkv7.infer(call);
    return call.out;
  };
  const auto out = infer("fp16-dithered");
  ASSERT_EQ(out.size(), 3u);
  EXPECT_EQ(out[2], specs[7]);
  EXPECT_THROW(infer("serial"), ConfigError);
  specs[7] = TensorSpec({3}, DType::kI32);
  EXPECT_THROW(infer("fp16-dithered"), ShapeError);
  specs[7] = TensorSpec({2}, DType::kF32);
  EXPECT_THROW(infer("fp16-dithered"), ShapeError);
  // States of binary16 numbers are for variants that have them.
  specs.pop_back();
  specs[6] = TensorSpec({2, 1, 64, 64}, DType::kF16);
  EXPECT_EQ(infer("fp16-plain")[1], specs[6]);
  EXPECT_THROW(infer("serial"), ShapeError);
}

}  // namespace
}  // namespace rwkv::test
