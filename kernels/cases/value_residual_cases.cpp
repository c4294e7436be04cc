#include "kernels/cases/case.h"
#include "kernels/ops/value_residual.h"

namespace rwkv::cases {

std::vector<OpCase> value_residual_cases(std::span<const BenchShape> bench) {
  std::vector<OpCase> list;
  const auto add = [&](int64_t b, int64_t t, int64_t c, double spread, Use use) {
    const TensorSpec spec{b, t, c};
    list.push_back({.name = str("value_residual/b", b, "_t", t, "_c", c, "_spread", spread),
                    .op = &kValueResidual,
                    .in = {{"v0", spec, normal(0, 1)},
                           {"v_first", spec, normal(0, 1)},
                           {"nu_logit", spec, normal(0.7, spread)}},
                    .forward = rounding(6),
                    .backward = rounding(8),
                    .use = use});
  };
  add(1, 1, 1, 1, Use::kTest);
  add(1, 1, 9, 1, Use::kTest);
  add(3, 5, 33, 2, Use::kTest);
  add(2, 70, 128, 30, Use::kTest);  // saturated gates
  for (const BenchShape& m : bench) add(m.batch, m.tokens, m.width, 1, m.use);
  return list;
}

}  // namespace rwkv::cases
