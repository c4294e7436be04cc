#include <cmath>

#include "kernels/cases/case.h"
#include "kernels/ops/linear.h"

namespace rwkv::cases {

std::vector<OpCase> linear_cases(std::span<const BenchShape> bench) {
  std::vector<OpCase> list;
  const auto add = [&](const TensorSpec& x, int64_t n, Use use, bool residual = false) {
    const int64_t k = x.last();
    std::string name = "linear/";
    for (int i = 0; i < x.rank; ++i) name += str(x[i], "x");
    list.push_back(
        {.name = name + str("to", n),
         .op = &kLinear,
         .in = {{"x", x, normal(0, 1)}},
         .param = {{"weight", {n, k}, normal(0, 1 / std::sqrt(static_cast<double>(k))), true}},
         .forward = rounding(static_cast<double>(k)),
         .backward = rounding(static_cast<double>(std::max(n, x.rows()))),
         .use = use});
    if (!residual) return;
    TensorSpec y = x;
    y.dim[static_cast<size_t>(y.rank - 1)] = n;
    list.back().name += "_residual";
    list.back().in.push_back({"residual", y, normal(0.5, 2)});
  };
  add({1}, 1, Use::kTest);
  add({1, 1, 3}, 5, Use::kTest);
  add({1, 1, 200}, 77, Use::kTest);  // one row: decoding
  add({3, 1, 130}, 65, Use::kTest);
  add({2, 5, 33}, 17, Use::kTest);
  add({7, 40}, 24, Use::kTest);
  add({2, 33, 64}, 96, Use::kTest);
  add({1, 140, 65}, 200, Use::kTest);  // several tiles
  for (const BenchShape& m : bench) {
    add({m.batch, m.tokens, m.width}, m.width, m.use);
    add({m.batch, m.tokens, m.width}, m.hidden(), m.use);
    add({m.batch, m.tokens, m.hidden()}, m.width, m.use);
    add({m.batch, 1, m.width}, m.hidden(), m.use);  // decoding
  }
  return list;
}

}  // namespace rwkv::cases
