// AdamW against a plain double-precision reference, its norm, clip rule and special cases.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/core/parallel.h"
#include "kernels/core/rng.h"
#include "trainer/optimizer.h"

namespace rwkv {
namespace {

/// A matrix that spans several pieces, one with decay, one with twice the rate, odd sizes.
struct Params {
  ParamRegistry registry;
  ParamStore values, grads;
  Params()
      : registry(make()), values(Device::kCpu, registry, "p"), grads(Device::kCpu, registry, "g") {}
  static ParamRegistry make() {
    ParamRegistry r;
    r.add({.name = "big", .spec = {523, 401}, .weight_decay = true, .bucket = "a"});
    r.add({.name = "fast", .spec = {77}, .lr_scale = 2, .bucket = "a"});
    r.add({.name = "plain", .spec = {3, 5}, .bucket = "b"});
    return r;
  }
  void fill(ParamStore& store, uint64_t step, double scale) {
    for (size_t i = 0; i < registry.size(); ++i) {
      const TensorView v = store[static_cast<ParamId>(i)];
      const Rng rng(7, hash_name(registry.specs()[i].name), step);
      for (int64_t k = 0; k < v.numel(); ++k)
        v.f32()[k] = static_cast<float>(scale * rng.normal(static_cast<uint64_t>(k)));
    }
  }
};

struct Reference {
  std::vector<double> p, m, v;
};

void reference_step(Reference& r, std::span<const float> g, double scale, const AdamWOptions& o,
                    double lr, double decay, double n) {
  for (size_t i = 0; i < r.p.size(); ++i) {
    const double x = static_cast<double>(g[i]) * scale;
    r.m[i] = o.beta1 * r.m[i] + (1 - o.beta1) * x;
    r.v[i] = o.beta2 * r.v[i] + (1 - o.beta2) * x * x;
    const double m = r.m[i] / (1 - std::pow(o.beta1, n)), v = r.v[i] / (1 - std::pow(o.beta2, n));
    r.p[i] -= lr * (m / (std::sqrt(v) + o.eps) + decay * r.p[i]);
  }
}

TEST(AdamW, FollowsTheDoubleReference) {
  Params t;
  t.fill(t.values, 0, 0.5);
  const AdamWOptions o{.weight_decay = 0.1, .clip = 1};
  AdamW adam(Device::kCpu, t.registry, o);
  std::vector<Reference> ref(t.registry.size());
  for (size_t i = 0; i < ref.size(); ++i) {
    const TensorView v = t.values[static_cast<ParamId>(i)];
    ref[i].p.assign(v.f32(), v.f32() + v.numel());
    ref[i].m.assign(ref[i].p.size(), 0);
    ref[i].v.assign(ref[i].p.size(), 0);
  }
  int clipped = 0;
  for (int n = 1; n <= 30; ++n) {
    // Norms on both sides of the limit.
    t.fill(t.grads, static_cast<uint64_t>(n), n % 3 == 0 ? 1e-2 : 1e-3);
    const double norm = adam.grad_norm(t.grads);
    const double lr = 1e-3 / n;
    double scale = 1;
    if ((norm + 1e-6) / o.clip > 1) {
      scale = o.clip / (norm + 1e-6);
      ++clipped;
    }
    adam.step(t.values, t.grads, lr, norm);
    for (size_t i = 0; i < ref.size(); ++i) {
      const ParamSpec& spec = t.registry.specs()[i];
      const TensorView g = t.grads[static_cast<ParamId>(i)];
      reference_step(ref[i], {g.f32(), static_cast<size_t>(g.numel())}, scale, o,
                     lr * spec.lr_scale, spec.weight_decay ? o.weight_decay : 0, n);
    }
  }
  EXPECT_EQ(clipped, 10);
  EXPECT_EQ(adam.updates(), 30);
  for (size_t i = 0; i < ref.size(); ++i) {
    const TensorView v = t.values[static_cast<ParamId>(i)];
    double worst = 0;
    for (int64_t k = 0; k < v.numel(); ++k)
      worst = std::max(worst, std::abs(v.f32()[k] - ref[i].p[static_cast<size_t>(k)]));
    // 30 updates of relative error 1e-6 of at most 2e-3 each, and rounding of values up to 2.
    EXPECT_LE(worst, 3e-6) << t.registry.specs()[i].name;
  }
}

TEST(AdamW, NormIsThatOfAllGradientsForAnyNumberOfThreads) {
  Params t;
  t.fill(t.grads, 3, 2.0);
  double sum = 0;
  for (const TensorView& v : t.grads.views())
    for (int64_t k = 0; k < v.numel(); ++k) sum += static_cast<double>(v.f32()[k]) * v.f32()[k];
  AdamW adam(Device::kCpu, t.registry, {});
  const int before = num_threads();
  set_num_threads(1);
  const double one = adam.grad_norm(t.grads);
  set_num_threads(3);
  const double three = adam.grad_norm(t.grads);
  set_num_threads(before);
  EXPECT_EQ(one, three);
  EXPECT_NEAR(one / std::sqrt(sum), 1, 1e-12);
}

TEST(AdamW, ClipRuleIsDeepSpeeds) {
  // A single gradient of norm exactly 1 is clipped, since 1 + 1e-6 > 1; 0.99 is not.
  ParamRegistry registry;
  registry.add({.name = "x", .spec = {1}, .bucket = "a"});
  for (const float g : {1.0f, 0.99f, 4.0f}) {
    ParamStore values(Device::kCpu, registry, "p"), grads(Device::kCpu, registry, "g");
    grads[0].f32()[0] = g;
    AdamW adam(Device::kCpu, registry, {.clip = 1});
    adam.step(values, grads, 1e-3, adam.grad_norm(grads));
    const double applied = g + 1e-6 > 1 ? g / (g + 1e-6) : g;
    EXPECT_NEAR(adam.m()[0].f32()[0], 0.1 * applied, 1e-8) << g;
  }
}

TEST(AdamW, ZeroGradientsMoveNothingButDecay) {
  Params t;
  t.fill(t.values, 0, 1);
  ParamStore before(Device::kCpu, t.registry, "before");
  std::ranges::copy(t.values.flat(), before.flat().begin());
  AdamW adam(Device::kCpu, t.registry, {.weight_decay = 0.1});
  for (int n = 0; n < 3; ++n) adam.step(t.values, t.grads, 1e-2, adam.grad_norm(t.grads));
  for (size_t i = 0; i < t.registry.size(); ++i) {
    const auto id = static_cast<ParamId>(i);
    const bool decays = t.registry[id].weight_decay;
    for (int64_t k = 0; k < t.values[id].numel(); ++k) {
      const float p = t.values[id].f32()[k], q = before[id].f32()[k];
      if (decays)
        ASSERT_NEAR(p, q * std::pow(1 - 1e-3, 3), 1e-6 * std::abs(q)) << k;
      else
        ASSERT_EQ(p, q) << k;
    }
  }
}

TEST(AdamW, TinyGradientsTakeFullStepsAndStayFinite) {
  // eps 1e-18 is far below any root of a second moment: the size of the gradient cancels.
  ParamRegistry registry;
  registry.add({.name = "x", .spec = {3}, .bucket = "a"});
  ParamStore values(Device::kCpu, registry, "p"), grads(Device::kCpu, registry, "g");
  grads[0].f32()[0] = 1e-12f;
  grads[0].f32()[1] = -1e-30f;  // its square is zero in f32
  AdamW adam(Device::kCpu, registry, {.clip = 0});
  adam.step(values, grads, 1e-3, adam.grad_norm(grads));
  EXPECT_NEAR(values[0].f32()[0], -1e-3, 1e-8);
  EXPECT_TRUE(std::isfinite(values[0].f32()[1]));
  EXPECT_LE(std::abs(values[0].f32()[1]), 1e-3);
  EXPECT_EQ(values[0].f32()[2], 0);
}

TEST(AdamW, PaddingAndUnreachedParametersStay) {
  Params t;
  t.fill(t.values, 0, 1);
  t.fill(t.grads, 1, 1);
  AdamW adam(Device::kCpu, t.registry, {.weight_decay = 0.1}, {true, false, true});
  const float fast = t.values[1].f32()[5];
  adam.step(t.values, t.grads, 1e-2, adam.grad_norm(t.grads));
  EXPECT_EQ(t.values[1].f32()[5], fast);
  EXPECT_NE(t.values[2].f32()[0], 0);
  const auto flat = t.values.flat();
  const int64_t end = t.registry.offset(2) + 15;
  ASSERT_LT(end, static_cast<int64_t>(flat.size()));
  for (size_t k = static_cast<size_t>(end); k < flat.size(); ++k) EXPECT_EQ(flat[k], 0);
}

TEST(AdamW, NonFiniteNormsAreReportedAndRefused) {
  Params t;
  t.fill(t.grads, 1, 1);
  AdamW adam(Device::kCpu, t.registry, {});
  t.grads[2].f32()[14] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(std::isnan(adam.grad_norm(t.grads)));
  t.grads[2].f32()[14] = -std::numeric_limits<float>::infinity();
  EXPECT_TRUE(std::isinf(adam.grad_norm(t.grads)));
  EXPECT_THROW(adam.step(t.values, t.grads, 1e-3, adam.grad_norm(t.grads)), NonFiniteError);
  EXPECT_EQ(adam.updates(), 0);
  // Squares beyond the range of f32 are no overflow.
  t.grads[2].f32()[14] = 3e38f;
  EXPECT_TRUE(std::isfinite(adam.grad_norm(t.grads)));
}

}  // namespace
}  // namespace rwkv
