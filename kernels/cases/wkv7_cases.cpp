#include "kernels/cases/wkv7_cases.h"

#include <cmath>

#include "kernels/core/rng.h"

namespace rwkv {
namespace {

double sigmoid(double x) {
  return 1.0 / (1.0 + std::exp(-x));
}

double logit_of(Wkv7Kind kind, Rng& rng) {
  switch (kind) {
    case Wkv7Kind::kFloor:
      return 20.0;
    case Wkv7Kind::kNearOne:
      return -13.0 + 0.5 * rng.next_normal();
    case Wkv7Kind::kSameKey:
      return -8.0 + 0.5 * rng.next_normal();
    case Wkv7Kind::kPlain:
      return 1.5 * rng.next_normal() - 2;
    case Wkv7Kind::kModel:
    case Wkv7Kind::kZeroKey:
      break;
  }
  const double pick = rng.next_uniform();
  if (pick < 0.05) return 20.0;
  if (pick < 0.10) return -14.0;
  return -6.5 + 7.5 * rng.next_uniform();  // the range of an initialised model
}

}  // namespace

std::vector<Wkv7Case> wkv7_cases() {
  using enum Wkv7Kind;
  const auto make = [](Wkv7Kind kind, int64_t b, int64_t t, int64_t h, int64_t n, bool state) {
    static constexpr const char* names[] = {"model",    "floor",    "near_one",
                                            "same_key", "zero_key", "plain"};
    return Wkv7Case{str(names[static_cast<size_t>(kind)], "_b", b, "_t", t, "_h", h, "_n", n,
                        state ? "_state" : ""),
                    kind,
                    {b, t, h, n, state},
                    hash_name("wkv7 case") + static_cast<uint64_t>(t * 131 + h * 17 + b)};
  };
  return {
      make(kModel, 2, 1, 1, 64, true),     make(kModel, 1, 1, 2, 64, false),
      make(kModel, 2, 17, 2, 64, true),    make(kModel, 1, 64, 2, 64, true),
      make(kModel, 1, 200, 1, 64, true),   make(kModel, 2, 128, 1, 64, false),
      make(kModel, 3, 33, 2, 32, true),    make(kModel, 1, 80, 3, 32, false),
      make(kModel, 1, 1, 1, 32, true),     make(kModel, 1, 40, 1, 128, true),
      make(kModel, 2, 19, 1, 128, false),  make(kModel, 1, 1, 1, 128, true),
      make(kFloor, 1, 48, 1, 64, true),    make(kFloor, 1, 130, 1, 64, true),
      make(kNearOne, 1, 64, 1, 64, true),  make(kSameKey, 1, 64, 1, 64, true),
      make(kSameKey, 1, 150, 1, 32, true), make(kZeroKey, 2, 24, 1, 64, true),
  };
}

Wkv7Data make_wkv7_data(const Wkv7Case& c) {
  const WkvShape& s = c.shape;
  const auto n = static_cast<size_t>(s.head_size);
  const auto rows = static_cast<size_t>(s.batch * s.tokens * s.heads);
  const auto heads = static_cast<size_t>(s.heads);
  Wkv7Data d;
  for (auto* p : {&d.r, &d.w_logit, &d.k, &d.v, &d.a, &d.b, &d.dy}) p->resize(rows * n);
  Rng rng(c.seed, hash_name("wkv7 inputs"));
  const bool plain = c.kind == Wkv7Kind::kPlain;
  std::vector<double> key(n), fixed(n * heads);
  for (double& x : fixed) x = rng.next_normal();
  for (size_t row = 0; row < rows; ++row) {
    const size_t head = row % heads;
    const auto t = row / heads % static_cast<size_t>(s.tokens);
    const bool zero = c.kind == Wkv7Kind::kZeroKey && (t % 7 == 0 || t % 7 == 3);
    double square = 0;
    for (size_t j = 0; j < n; ++j) {
      key[j] = c.kind == Wkv7Kind::kSameKey ? fixed[head * n + j] : rng.next_normal();
      square += key[j] * key[j];
    }
    for (size_t j = 0; j < n; ++j) {
      const size_t x = row * n + j;
      const double z = zero ? 0.0 : key[j] / std::sqrt(square);
      const double iclr = c.kind == Wkv7Kind::kSameKey ? sigmoid(6.0 + 0.3 * rng.next_normal())
                                                       : sigmoid(rng.next_normal());
      d.r[x] = static_cast<float>((plain ? 1.0 : 0.5) * rng.next_normal());
      d.w_logit[x] = static_cast<float>(logit_of(c.kind, rng));
      d.k[x] = zero    ? 0.0f
               : plain ? static_cast<float>(0.7 * rng.next_normal())
                       : static_cast<float>(0.3 * key[j] * (1 + (iclr - 1) * 1.02));
      d.v[x] = static_cast<float>(rng.next_normal());
      d.a[x] = static_cast<float>(-z);
      d.b[x] = static_cast<float>(z * iclr);
      d.dy[x] = static_cast<float>(rng.next_normal());
    }
  }
  if (s.has_state) {
    d.s0.resize(static_cast<size_t>(s.batch * s.heads) * n * n);
    d.ds_out.resize(d.s0.size());
    const double deviation = plain ? 1.0 : 0.3;
    for (float& x : d.s0) x = static_cast<float>(deviation * rng.next_normal());
    for (float& x : d.ds_out) x = static_cast<float>(deviation * rng.next_normal());
  }
  return d;
}

}  // namespace rwkv
