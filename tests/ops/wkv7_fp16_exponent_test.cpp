// Exponents of the rows of a binary16 state (kernels/wkv/row_exponent.h) on the device under test:
// bits against exact integer arithmetic and against the CPU, gradients through changes, runs that
// are cut, single steps, heads that expand.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>

#include "kernels/core/error.h"
#include "kernels/core/rng.h"
#include "kernels/wkv/row_exponent.h"
#include "tests/ops/wkv7_fp16_harness.h"

namespace rwkv::test {
namespace {

class Wkv7RowExponents : public Wkv7Fp16Test {
 protected:
  /// Rows that grow in the first half of the tokens, each to another size, and fade in the second.
  /// The state that comes in, if one does, has exponents of 0, 8 and 16.
  struct Crossing {
    Wkv7Data d;
    std::vector<int8_t> exponent;
  };
  Crossing crossing(const WkvShape& s, float scale, uint64_t seed) const {
    Crossing x{make_wkv7_data({"crossing", Wkv7Kind::kModel, s, seed}), {}};
    const auto half = static_cast<int>(s.tokens / 2);
    for (size_t n = 0; n < x.d.v.size(); ++n) {
      const auto i = static_cast<int>(n % 64);
      const auto t =
          static_cast<int>(n / static_cast<size_t>(s.heads * 64) % static_cast<size_t>(s.tokens));
      x.d.v[n] = std::ldexp(x.d.v[n], t < half ? i % 7 + 7 * t / half : -6) / scale;
      x.d.w_logit[n] = t < half ? -6.0f : 0.0f;
    }
    for (size_t n = 0; n < static_cast<size_t>(s.batch * s.heads * 64); ++n) {
      x.exponent.push_back(static_cast<int8_t>(n / 5 % 3 * 8));
      for (size_t j = 0; s.has_state && j < 64; ++j)
        x.d.s0[n * 64 + j] = std::ldexp(x.d.s0[n * 64 + j], x.exponent[n]) / scale;
    }
    for (auto* v : {&x.d.r, &x.d.w_logit, &x.d.k, &x.d.v, &x.d.a, &x.d.b, &x.d.dy})
      *v = as_io(kernel(), *v);
    return x;
  }
  Fp16Options options(const Crossing& x, float scale, bool backward = false) const {
    return {
        .backward = backward, .state_scale = scale, .row_exponents = true, .exponent = x.exponent};
  }
};

TEST_P(Wkv7RowExponents, BitsAndGradientsMatchExactArithmetic) {
  for (const bool state : {true, false})
    for (const float scale : {1.0f, 1.0f / 256}) {
      const WkvShape s{state ? 2 : 1, 90, 1, 64, state};
      SCOPED_TRACE(testing::Message() << "scale " << scale << (state ? ", state" : ""));
      const Crossing x = crossing(s, scale, 81);
      const std::vector<int32_t> elapsed =
          state ? std::vector<int32_t>{5, 2147483640} : std::vector<int32_t>{};
      const Fp16Result got = run_fp16(kernel(), s, x.d, elapsed, options(x, scale, true));
      std::vector<Fp16Trace> traces;
      int ups = 0, downs = 0;
      for (int64_t h = 0; h < s.batch * s.heads; ++h) {
        const auto at = static_cast<size_t>(h);
        Fp16Start start{state ? elapsed[at] : 0, scale, true};
        if (state)
          start.exponent.assign(x.exponent.begin() + h * 64, x.exponent.begin() + h * 64 + 64);
        traces.push_back(fp16_trace(s, x.d, h, start, dithered()));
        const Fp16Trace& trace = traces.back();
        for (size_t t = 0; t < static_cast<size_t>(s.tokens); ++t) {
          const std::vector<float> y = as_io(kernel(), trace.y[t]);
          for (size_t i = 0; i < 64; ++i) {
            ASSERT_EQ(float_bits(got.y[fp16_row(s, h, static_cast<int64_t>(t)) + i]),
                      float_bits(y[i]))
                << "y, head " << h << ", token " << t << ", row " << i;
            ups += trace.exponent[t + 1][i] > trace.exponent[t][i];
            downs += trace.exponent[t + 1][i] < trace.exponent[t][i];
          }
        }
        for (size_t i = 0; state && i < 64 * 64; ++i)
          ASSERT_EQ(float_bits(got.s_out[at * 4096 + i]), float_bits(trace.state.back()[i]));
        for (size_t i = 0; state && i < 64; ++i)
          ASSERT_EQ(got.exponent[at * 64 + i], trace.exponent.back()[i]) << i;
      }
      EXPECT_GE(ups, 20);
      EXPECT_GE(downs, 20);
      const auto want = straight_through(s, x.d, traces);
      std::printf("%d rows up, %d down; gradients", ups, downs);
      for (size_t i = 0; i < (state ? 7u : 6u); ++i) {
        const double error = distance(got.grad[i], want[i]);
        std::printf(" %.1e", error);
        EXPECT_LE(error, i < 6 ? limit(1e-5) : 1e-5) << kNames[i];
      }
      std::printf("\n");
    }
}

// Where nothing leaves the range the exponents stay zero and no bit changes.
TEST_P(Wkv7RowExponents, OrdinaryRunsKeepTheirBits) {
  const WkvShape s{2, 70, 2, 64, true};
  const Wkv7Data d = data({"ordinary", Wkv7Kind::kModel, s, 82});
  const Fp16Result with =
                       run_fp16(kernel(), s, d, {0, 7}, {.backward = true, .row_exponents = true}),
                   without = run_fp16(kernel(), s, d, {0, 7}, {.backward = true});
  EXPECT_EQ(with.y, without.y);
  EXPECT_EQ(with.s_out, without.s_out);
  for (size_t i = 0; i < 7; ++i) EXPECT_EQ(with.grad[i], without.grad[i]) << kNames[i];
  EXPECT_TRUE(std::ranges::all_of(with.exponent, [](int8_t e) { return e == 0; }));
}

TEST_P(Wkv7RowExponents, AgreesWithTheCpu) {
  const WkvKernel& cpu = fp16_kernel(kernel().family, Device::kCpu);
  constexpr float c = 1.0f / 256;
  for (const WkvShape& s : {WkvShape{3, 1, 2, 64, true}, WkvShape{2, 37, 3, 64, true},
                            WkvShape{1, 512, 2, 64, true}, WkvShape{2, 120, 2, 64, false}}) {
    SCOPED_TRACE(s.tokens);
    const Crossing x = crossing(s, c, static_cast<uint64_t>(90 + s.tokens));
    std::vector<int32_t> elapsed;
    for (int64_t b = 0; s.has_state && b < s.batch; ++b)
      elapsed.push_back(static_cast<int32_t>(b * 77777 + 15));
    const Fp16Result want = run_fp16(cpu, s, x.d, elapsed, options(x, c, true));
    const Fp16Result got = run_fp16(kernel(), s, x.d, elapsed, options(x, c, true));
    EXPECT_EQ(got.y, as_io(kernel(), want.y));
    EXPECT_EQ(got.s_out, want.s_out);
    EXPECT_EQ(got.elapsed, want.elapsed);
    EXPECT_EQ(got.exponent, want.exponent);
    for (size_t i = 0; i < (s.has_state ? 7u : 6u); ++i)
      EXPECT_LE(distance(got.grad[i], widened(want.grad[i])), i < 6 ? limit(1e-5) : 1e-5)
          << kNames[i];
  }
}

TEST_P(Wkv7RowExponents, ResumedRunsGiveTheSameBits) {
  const WkvShape s{2, 90, 2, 64, true};
  constexpr float c = 1.0f / 256;
  const Crossing x = crossing(s, c, 83);
  const std::vector<int32_t> elapsed = {3, 99000};
  const Fp16Result whole = run_fp16(kernel(), s, x.d, elapsed, options(x, c, true));
  for (const int64_t cut : {1, 12, 13, 23, 40, 61, 89}) {
    SCOPED_TRACE(cut);
    WkvShape first = s, second = s;
    first.tokens = cut;
    second.tokens = s.tokens - cut;
    Wkv7Data d1 = tokens_of(x.d, s, 0, cut), d2 = tokens_of(x.d, s, cut, s.tokens);
    const Fp16Result one = run_fp16(kernel(), first, d1, elapsed, options(x, c));
    d2.s0 = one.s_out;
    const Fp16Result two =
        run_fp16(kernel(), second, d2, one.elapsed, options({{}, one.exponent}, c, true));
    EXPECT_EQ(two.s_out, whole.s_out);
    EXPECT_EQ(two.exponent, whole.exponent);
    Wkv7Data outputs = x.d;
    outputs.r = whole.y;
    EXPECT_EQ(one.y, tokens_of(outputs, s, 0, cut).r);
    EXPECT_EQ(two.y, tokens_of(outputs, s, cut, s.tokens).r);
    d1.ds_out = two.grad[6];
    const Fp16Result back = run_fp16(kernel(), first, d1, elapsed, options(x, c, true));
    for (size_t i = 0; i < 6; ++i) {
      outputs.r = whole.grad[i];
      EXPECT_LE(distance(back.grad[i], widened(tokens_of(outputs, s, 0, cut).r)), limit(1e-6));
      EXPECT_LE(distance(two.grad[i], widened(tokens_of(outputs, s, cut, s.tokens).r)),
                limit(1e-6));
    }
    EXPECT_LE(distance(back.grad[6], widened(whole.grad[6])), 1e-6);
  }
}

// Single tokens with everything in place, binary16 states: X itself.
TEST_P(Wkv7RowExponents, StepsInPlaceEqualForward) {
  const WkvShape s{2, 70, 3, 64, true};
  constexpr float c = 1.0f / 256;
  Crossing x = crossing(s, c, 84);
  for (size_t i = 0; i < x.d.s0.size(); ++i)
    x.d.s0[i] = std::ldexp(x.d.s0[i] * c, -x.exponent[i / 64]);
  Fp16Options half = options(x, c);
  half.state_type = DType::kF16;
  const Fp16Result whole = run_fp16(kernel(), s, x.d, {12, 5}, half);
  EXPECT_NE(whole.exponent, x.exponent);
  const Wkv7Attrs attrs{64, &kernel(), c, true};
  std::vector<int32_t> elapsed = {12, 5};
  std::vector<float> state = x.d.s0;
  std::vector<int8_t> exponent = x.exponent;
  Context ctx(kernel().device);
  ctx.reserve_workspace(kernel().workspace_bytes({2, 1, 3, 64, true}));
  for (int64_t t = 0; t < s.tokens; ++t) {
    const Wkv7Data one = tokens_of(x.d, s, t, t + 1);
    const TensorSpec vec({2, 1, 192}, kernel().io);
    DeviceImage image(ctx);
    for (const auto* p : {&one.r, &one.w_logit, &one.k, &one.v, &one.a, &one.b})
      image.add_values(vec, *p);
    image.add_values(TensorSpec({2, 3, 64, 64}, DType::kF16), state);
    image.add_ints(TensorSpec({2}, DType::kI32), elapsed);
    image.add_bytes(TensorSpec({2, 3, 64}, DType::kI8), exponent);
    const size_t y = image.add(vec);
    image.send();
    std::vector<TensorView> in;
    for (size_t i = 0; i < 9; ++i) in.push_back(image.view(i));
    const std::vector<TensorView> out = {image.view(y), in[6], in[7], in[8]};
    OpCall call;
    call.in = in;
    call.out = out;
    call.attrs = &attrs;
    run_forward(ctx, kWkv7, call);
    image.fetch();
    EXPECT_TRUE(image.intact());
    Wkv7Data outputs = x.d;
    outputs.r = whole.y;
    EXPECT_EQ(image.values(y), tokens_of(outputs, s, t, t + 1).r) << t;
    state = image.values(6);
    elapsed = image.ints(7);
    exponent = image.bytes(8);
  }
  EXPECT_EQ(state, whole.s_out);
  EXPECT_EQ(elapsed, whole.elapsed);
  EXPECT_EQ(exponent, whole.exponent);
}

// A head that expands by 4 % per token along one direction: beyond what any fixed scale holds, near
// the recurrence in f32.
TEST_P(Wkv7RowExponents, HoldsHeadsThatExpand) {
  const WkvShape s{1, 640, 1, 64, true};
  Wkv7Data d = data({"expanding", Wkv7Kind::kNearOne, s, 85});
  const Rng rng(85, hash_name("direction"));
  double norm = 0;
  for (uint64_t j = 0; j < 64; ++j) norm += rng.normal(j) * rng.normal(j);
  for (size_t i = 0; i < d.a.size(); ++i) {
    d.a[i] = static_cast<float>(rng.normal(i % 64) / std::sqrt(norm));
    d.b[i] = 0.04f * d.a[i];
    d.w_logit[i] = -12;
  }
  for (auto* v : {&d.a, &d.b}) *v = as_io(kernel(), *v);
  const auto finite = [](const std::vector<float>& x) {
    return std::ranges::all_of(x, [](float e) { return std::isfinite(e); });
  };
  constexpr float c = 1.0f / 256;
  EXPECT_FALSE(finite(run_fp16(kernel(), s, d, {0}, {.state_scale = c}).s_out));
  const Fp16Result got =
      run_fp16(kernel(), s, d, {0}, {.backward = true, .state_scale = c, .row_exponents = true});
  EXPECT_TRUE(finite(got.y) && finite(got.s_out));
  for (size_t i = 0; i < 7; ++i) EXPECT_TRUE(finite(got.grad[i])) << kNames[i];
  const WkvKernel& serial =
      select_wkv("wkv7", Device::kCpu, DType::kF32, {1, 1, 1, 64, true}, "serial");
  const Fp16Result want = run_fp16(serial, s, d, {});
  const double y = distance(got.y, widened(want.y)),
               state = distance(got.s_out, widened(want.s_out));
  const auto size = [](float p, float q) { return std::fabs(p) < std::fabs(q); };
  std::printf("largest element %.1e; y off by %.1e, the state by %.1e\n",
              static_cast<double>(std::fabs(*std::ranges::max_element(want.s_out, size))), y,
              state);
  EXPECT_GE(std::fabs(*std::ranges::max_element(want.s_out, size)), 1e8);
  EXPECT_LE(y, 3e-2);
  EXPECT_LE(state, 3e-2);
}

INSTANTIATE_TEST_SUITE_P(Device, Wkv7RowExponents, testing::ValuesIn(fp16_variants()),
                         fp16_test_name);

TEST(Wkv7RowExponent, FollowsTheLargestElement) {
  const auto change = [](float largest, int e) { return exponent_change(float_bits(largest), e); };
  EXPECT_EQ(change(64, 0), 8);
  EXPECT_EQ(change(std::nextafter(64.0f, 0.0f), 0), 0);
  EXPECT_EQ(change(65504, 104), 8);
  EXPECT_EQ(change(65504, 112), 0);
  EXPECT_EQ(change(0.0625f, 8), 0);
  EXPECT_EQ(change(std::nextafter(0.0625f, 0.0f), 8), -8);
  EXPECT_EQ(change(0, 16), -8);
  EXPECT_EQ(change(0, 0), 0);
  for (const float x : {INFINITY, NAN}) EXPECT_EQ(change(x, 8), 0) << x;
  EXPECT_TRUE(exponent_due(15) && exponent_due(4294967295u) && !exponent_due(16));
  EXPECT_EQ(exponent_for(0), 0);
  EXPECT_EQ(exponent_for(63), 0);
  EXPECT_EQ(exponent_for(64), 8);
  EXPECT_EQ(exponent_for(64.0f * 256 * 256), 24);
  EXPECT_EQ(exponent_for(INFINITY), 112);
}

TEST(Wkv7RowExponent, TensorsAreChecked) {
  std::vector<TensorSpec> specs(6, TensorSpec({2, 3, 64}));
  const auto infer = [&](std::string_view wanted, bool exponents) {
    const Wkv7Attrs attrs{64, &fp16_kernel(wanted), 1, exponents};
    ShapeCall call;
    call.in = specs;
    call.attrs = &attrs;
    kWkv7.infer(call);
    return call.out;
  };
  EXPECT_EQ(infer("fp16-dithered", true).size(), 1u);
  EXPECT_THROW(infer("serial", true), ConfigError);
  specs.push_back(TensorSpec({2, 1, 64, 64}, DType::kF16));
  specs.push_back(TensorSpec({2}, DType::kI32));
  EXPECT_THROW(infer("fp16-dithered", true), ShapeError);  // a state without its exponents
  specs.push_back(TensorSpec({2, 1, 64}, DType::kI8));
  EXPECT_EQ(infer("fp16-plain", true)[3], specs[8]);
  EXPECT_THROW(infer("fp16-plain", false), ShapeError);
  specs[8] = TensorSpec({2, 1, 64}, DType::kI32);
  EXPECT_THROW(infer("fp16-plain", true), ShapeError);
  specs[8] = TensorSpec({2, 64}, DType::kI8);
  EXPECT_THROW(infer("fp16-plain", true), ShapeError);
}

}  // namespace
}  // namespace rwkv::test
