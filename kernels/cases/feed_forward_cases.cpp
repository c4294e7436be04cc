#include <cmath>

#include "kernels/cases/case.h"
#include "kernels/ops/feed_forward.h"

namespace rwkv::cases {

std::vector<OpCase> feed_forward_cases(std::span<const BenchShape> bench) {
  std::vector<OpCase> list;
  const auto add = [&](int64_t b, int64_t t, int64_t k, int64_t h, int64_t n, bool residual,
                       Use use) {
    OpCase one{
        .name =
            str("feed_forward/b", b, "_t", t, "_", k, "x", h, "x", n, residual ? "_residual" : ""),
        .op = &kFeedForward,
        .in = {{"x", {b, t, k}, normal(0, 1)}},
        .param = {{"W1", {h, k}, normal(0, 1 / std::sqrt(static_cast<double>(k))), true},
                  {"W2", {n, h}, normal(0, 1 / std::sqrt(static_cast<double>(h))), true}},
        // Squaring doubles relative errors, those of small sums more than that.
        .forward = rounding(static_cast<double>(k + h), 4),
        .backward = rounding(static_cast<double>(k + n + h + b * t), 4),
        .use = use,
    };
    if (residual) one.in.push_back({"residual", {b, t, n}, normal(0.5, 2)});
    list.push_back(one);
  };
  add(1, 1, 1, 1, 1, false, Use::kTest);
  add(1, 1, 24, 40, 8, true, Use::kTest);  // one row: decoding
  add(2, 7, 33, 17, 20, true, Use::kTest);
  add(2, 7, 40, 96, 40, false, Use::kTest);
  add(1, 140, 64, 264, 72, true, Use::kTest);  // several tiles, none of them whole
  add(3, 89, 136, 256, 64, false, Use::kTest);
  add(1, 2100, 8, 24, 16, false, Use::kTest);  // more rows than one piece has
  // Inner dimensions of more pieces than a GPU holds at a time, in both directions.
  add(1, 130, 328, 136, 392, true, Use::kTest);
  for (const BenchShape& m : bench)
    add(m.batch, m.tokens, m.width, m.hidden(), m.width, true, m.use);
  return list;
}

}  // namespace rwkv::cases
