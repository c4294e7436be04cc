#include "kernels/cases/case.h"
#include "kernels/ops/last_token.h"

namespace rwkv::cases {

std::vector<OpCase> last_token_cases(std::span<const BenchShape> bench) {
  std::vector<OpCase> list;
  const auto add = [&](int64_t b, int64_t t, int64_t c, Use use) {
    list.push_back({.name = str("last_token/b", b, "_t", t, "_c", c),
                    .op = &kLastToken,
                    .in = {{"x", {b, t, c}, normal(0, 1)}},
                    .forward = {0, 0, 0},
                    .backward = rounding(1),
                    .use = use,
                    .reads = 1 / static_cast<double>(t)});
  };
  add(1, 1, 1, Use::kTest);
  add(3, 5, 33, Use::kTest);
  add(2, 3, 64, Use::kTest);
  for (const BenchShape& m : bench) add(m.batch, m.tokens, m.width, m.use);
  return list;
}

}  // namespace rwkv::cases
