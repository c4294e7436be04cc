#include <cmath>

#include "kernels/cases/case.h"
#include "kernels/ops/layer_norm.h"

namespace rwkv::cases {

std::vector<OpCase> layer_norm_cases(std::span<const BenchShape> bench) {
  std::vector<OpCase> list;
  const auto add = [&](const std::string& suffix, const TensorSpec& x, double mean, Use use) {
    const int64_t c = x.last();
    // Subtracting the mean loses |mean| / deviation of precision. The parameters' gradients are
    // sums over rows.
    const double factor = 1 + std::fabs(mean);
    list.push_back({.name = "layer_norm/" + suffix,
                    .op = &kLayerNorm,
                    .in = {{"x", x, normal(mean, 1)}},
                    .param = {{"weight", {c}, normal(1, 0.3)}, {"bias", {c}, normal(0, 0.3)}},
                    .attrs = attrs(LayerNormAttrs{}),
                    .forward = rounding(static_cast<double>(c), factor),
                    .backward = rounding(static_cast<double>(c + x.rows()), factor),
                    .use = use});
  };
  add("b1_t1_c5", {1, 1, 5}, 0, Use::kTest);
  add("b2_t3_c33", {2, 3, 33}, 0.5, Use::kTest);
  add("b2_t17_c128", {2, 17, 128}, 0, Use::kTest);
  add("r7_c64", {7, 64}, 0, Use::kTest);
  add("c48", {48}, 0, Use::kTest);
  add("mean10_t40_c96", {1, 40, 96}, 10, Use::kTest);  // one-pass variances fail here
  add("b3_t100_c40", {3, 100, 40}, 0, Use::kTest);     // many chunks of rows
  add("t19_c768", {1, 19, 768}, 0, Use::kTest);
  add("t300_c1056", {1, 300, 1056}, 0, Use::kTest);  // several warps a row on CUDA
  add("t9_c4096", {1, 9, 4096}, 0, Use::kTest);
  for (const BenchShape& m : bench)
    add(str("b", m.batch, "_t", m.tokens, "_c", m.width), {m.batch, m.tokens, m.width}, 0, m.use);
  return list;
}

}  // namespace rwkv::cases
