#include "kernels/cases/case.h"
#include "kernels/ops/wkv7_output.h"

namespace rwkv::cases {

std::vector<OpCase> wkv7_output_cases(std::span<const BenchShape> bench) {
  std::vector<OpCase> list;
  const auto add = [&](int64_t b, int64_t t, int64_t heads, int64_t n, double size, Use use) {
    const int64_t c = heads * n;
    const TensorSpec spec{b, t, c};
    // `size`: deviation of y; small ones make eps matter. Normalising g twice and summing over rows
    // double the bound of a plain sum.
    list.push_back({.name = str("wkv7_output/b", b, "_t", t, "_h", heads, "_n", n, "_y", size),
                    .op = &kWkv7Output,
                    .in = {{"y", spec, normal(0.2 * size, size)},
                           {"r", spec, normal(0, 1)},
                           {"k", spec, normal(0, 1)},
                           {"v", spec, normal(0, 1)},
                           {"gate", spec, normal(0, 1)}},
                    .param = {{"weight", {c}, normal(0.8, 0.2)},
                              {"bias", {c}, normal(0, 0.2)},
                              {"r_k", {heads, n}, normal(-0.04, 0.1)}},
                    .attrs = attrs(Wkv7OutputAttrs{.head_size = n}),
                    .forward = rounding(static_cast<double>(n), 2),
                    .backward = rounding(static_cast<double>(n + b * t), 2),
                    .use = use});
  };
  add(1, 1, 1, 4, 1, Use::kTest);
  add(1, 1, 2, 64, 1, Use::kTest);
  add(2, 5, 3, 7, 1, Use::kTest);
  add(2, 17, 2, 64, 1, Use::kTest);
  add(2, 9, 2, 32, 0.01, Use::kTest);
  add(1, 5, 2, 128, 1, Use::kTest);
  add(1, 3, 1, 256, 1, Use::kTest);
  add(2, 150, 5, 64, 1, Use::kTest);
  for (const BenchShape& m : bench) add(m.batch, m.tokens, m.heads(), m.head_size, 1, m.use);
  return list;
}

}  // namespace rwkv::cases
