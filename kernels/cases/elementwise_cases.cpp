#include "kernels/cases/case.h"
#include "kernels/ops/elementwise.h"

namespace rwkv::cases {

std::vector<OpCase> elementwise_cases(std::span<const BenchShape> bench) {
  std::vector<OpCase> list;
  const auto add = [&](const std::string& suffix, const TensorSpec& spec, Use use) {
    list.push_back({.name = "add/" + suffix,
                    .op = &kAdd,
                    .in = {{"x", spec, normal(0, 1)}, {"y", spec, normal(0.5, 2)}},
                    .forward = rounding(1),
                    .backward = rounding(1),
                    .use = use});
    list.push_back({.name = "squared_relu/" + suffix,
                    .op = &kSquaredRelu,
                    .in = {{"x", spec, normal(0, 1)}},
                    .forward = rounding(1),
                    .backward = rounding(2),
                    .use = use});
  };
  add("n1", {1}, Use::kTest);
  add("b1_t1_c7", {1, 1, 7}, Use::kTest);
  add("b2_t5_c33", {2, 5, 33}, Use::kTest);
  add("b3_t50_c256", {3, 50, 256}, Use::kTest);  // several pieces of parallel work
  for (const BenchShape& m : bench)
    for (const int64_t c : {m.width, m.hidden()})
      add(str("b", m.batch, "_t", m.tokens, "_c", c), {m.batch, m.tokens, c}, m.use);
  return list;
}

}  // namespace rwkv::cases
