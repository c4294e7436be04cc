#include "kernels/cases/case.h"
#include "kernels/ops/elementwise.h"

namespace rwkv::cases {

std::vector<OpCase> elementwise_cases(std::span<const BenchShape> bench) {
  std::vector<OpCase> list;
  const auto add = [&](const std::string& suffix, const TensorSpec& spec, Use use,
                       bool saturated = false) {
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
    for (const bool residual : {false, true}) {
      OpCase gate{.name = str("gate/", suffix, residual ? "_residual" : ""),
                  .op = &kGate,
                  .in = {{"r", spec, normal(0, saturated ? 30 : 2)}, {"x", spec, normal(0, 1)}},
                  .forward = rounding(6),
                  .backward = rounding(8),
                  .use = use};
      if (residual) gate.in.push_back({"residual", spec, normal(0, 1)});
      list.push_back(std::move(gate));
    }
  };
  add("n1", {1}, Use::kTest);
  add("b1_t1_c7", {1, 1, 7}, Use::kTest);
  add("b2_t5_c33", {2, 5, 33}, Use::kTest);
  add("b3_t50_c256", {3, 50, 256}, Use::kTest);  // several pieces of parallel work
  add("b2_t35_c128_saturated", {2, 35, 128}, Use::kTest, true);
  for (const BenchShape& m : bench)
    for (const int64_t c : {m.width, m.hidden()})
      add(str("b", m.batch, "_t", m.tokens, "_c", c), {m.batch, m.tokens, c}, m.use);
  return list;
}

}  // namespace rwkv::cases
