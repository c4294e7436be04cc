#include "kernels/cases/wkv4_cases.h"

#include <cmath>

#include "kernels/core/rng.h"

namespace rwkv {

std::vector<Wkv4Case> wkv4_cases() {
  using enum Wkv4Kind;
  const auto make = [](Wkv4Kind kind, int64_t b, int64_t t, int64_t c, bool state) {
    static constexpr const char* names[] = {"model",     "spread",    "slow",       "wide",
                                            "low_first", "far_state", "many_behind"};
    return Wkv4Case{
        str(names[static_cast<size_t>(kind)], "_b", b, "_t", t, "_c", c, state ? "_state" : ""),
        kind,
        {b, t, c, 1, state},
        hash_name("wkv4 case") + static_cast<uint64_t>(t * 131 + c * 17 + b)};
  };
  return {
      make(kModel, 2, 1, 37, false),     make(kModel, 2, 1, 16, true),
      make(kModel, 2, 37, 33, true),     make(kModel, 1, 64, 48, false),
      make(kModel, 1, 512, 64, true),    make(kSpread, 2, 37, 32, false),
      make(kSpread, 1, 512, 32, true),   make(kSpread, 1, 1000, 20, true),
      make(kSlow, 2, 129, 19, true),     make(kSlow, 1, 1000, 16, false),
      make(kWide, 2, 64, 32, true),      make(kWide, 1, 200, 17, false),
      make(kLowFirst, 1, 37, 32, false), make(kLowFirst, 2, 70, 32, true),
      make(kFarState, 2, 40, 32, true),  make(kFarState, 2, 1, 32, true),
      make(kManyBehind, 1, 2, 1, true),  make(kManyBehind, 2, 21, 33, true),
  };
}

Wkv4Data make_wkv4_data(const Wkv4Case& c) {
  using enum Wkv4Kind;
  const WkvShape& s = c.shape;
  const int64_t channels = s.heads * s.head_size;
  const auto n = static_cast<size_t>(channels);
  const auto vec = static_cast<size_t>(s.batch * s.tokens) * n;
  Rng rng(c.seed, hash_name("wkv4 inputs"));
  Wkv4Data d;
  for (int64_t i = 0; i < channels; ++i) {
    const double x =
        channels > 1 ? static_cast<double>(i) / static_cast<double>(channels - 1) : 0.5;
    double tau = -5 + 8 * std::pow(x, 1.0);
    if (c.kind == kSlow) tau = std::log(0.001) + (std::log(0.3) - std::log(0.001)) * x;
    if (c.kind != kModel && c.kind != kSlow)
      tau = std::log(0.001) + (std::log(20.0) - std::log(0.001)) * rng.next_uniform();
    double u = std::log(0.3) + 0.5 * static_cast<double>((i + 1) % 3 - 1);
    if (c.kind == kManyBehind) tau = -10, u = 0;
    d.tau.push_back(static_cast<float>(tau));
    d.u.push_back(static_cast<float>(u));
  }
  for (size_t i = 0; i < vec; ++i) {
    const auto t = static_cast<int64_t>(i / n) % s.tokens;
    double k = rng.next_normal();
    if (c.kind == kWide) k = -80 + 160 * rng.next_uniform();
    if (c.kind == kLowFirst && t < 5) k = -300 + 45 * static_cast<double>(t) + 5 * k;
    if (c.kind == kManyBehind) k = 0;
    d.k.push_back(static_cast<float>(k));
    d.v.push_back(static_cast<float>(rng.next_normal()));
    d.dy.push_back(static_cast<float>(rng.next_normal()));
  }
  if (s.has_state) {
    const double far = c.kind == kFarState ? 40 : 1;
    for (size_t i = 0; i < static_cast<size_t>(s.batch) * n; ++i) {
      d.a0.push_back(static_cast<float>(rng.next_normal()));
      d.b0.push_back(static_cast<float>(0.5 + 2 * rng.next_uniform()));
      d.p0.push_back(static_cast<float>(far * rng.next_normal()));
      if (c.kind == kManyBehind) {
        d.b0.back() = 2000;
        d.a0.back() = i == 0 ? 2000.0f : 2000 * d.a0.back();
        d.p0.back() = 79.9f;
      }
      d.da_out.push_back(static_cast<float>(rng.next_normal()));
      d.db_out.push_back(static_cast<float>(rng.next_normal()));
    }
  }
  return d;
}

}  // namespace rwkv
