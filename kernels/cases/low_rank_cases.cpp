#include <cmath>

#include "kernels/cases/case.h"
#include "kernels/ops/low_rank.h"

namespace rwkv::cases {

std::vector<OpCase> low_rank_cases(std::span<const BenchShape> bench) {
  std::vector<OpCase> list;
  const auto add = [&](int64_t b, int64_t t, int64_t k, int64_t r, int64_t n, Activation inner,
                       bool bias, Use use) {
    constexpr const char* names[] = {"none", "tanh", "sigmoid"};
    OpCase one{
        .name = str("low_rank/b", b, "_t", t, "_", k, "x", r, "x", n, "_",
                    names[static_cast<size_t>(inner)], bias ? "_bias" : ""),
        .op = &kLowRank,
        .in = {{"x", {b, t, k}, normal(0, 1)}},
        .param = {{"W1", {k, r}, normal(0, 1 / std::sqrt(static_cast<double>(k))), true},
                  {"W2", {r, n}, normal(0, 1 / std::sqrt(static_cast<double>(r))), true}},
        .attrs = attrs(LowRankAttrs{.inner = inner}),
        .forward = rounding(static_cast<double>(k + r)),
        .backward = rounding(static_cast<double>(k + n + r + b * t)),
        .use = use,
    };
    if (bias) one.param.push_back({"bias", {1, 1, n}, normal(0, 1)});
    list.push_back(one);
  };
  using enum Activation;
  add(1, 1, 1, 1, 1, kTanh, true, Use::kTest);
  add(1, 1, 33, 5, 17, kSigmoid, false, Use::kTest);
  add(2, 7, 40, 8, 24, kNone, true, Use::kTest);
  add(2, 7, 40, 8, 24, kTanh, true, Use::kTest);
  add(2, 7, 40, 8, 24, kSigmoid, false, Use::kTest);
  add(3, 11, 64, 32, 64, kTanh, true, Use::kTest);
  add(1, 130, 30, 16, 35, kNone, false, Use::kTest);
  for (const BenchShape& m : bench) {
    add(m.batch, m.tokens, m.width, 64, m.width, kTanh, true, m.use);
    add(m.batch, m.tokens, m.width, 128, m.width, kSigmoid, false, m.use);
  }
  return list;
}

}  // namespace rwkv::cases
