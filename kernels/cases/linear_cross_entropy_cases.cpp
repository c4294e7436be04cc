#include <cmath>

#include "kernels/cases/case.h"
#include "kernels/ops/linear_cross_entropy.h"

namespace rwkv::cases {
namespace {

/// Rows 1 and 2 of the weight are equal and large, so that the argmax of many tokens is a tie.
Fill tied_rows() {
  return [](const Rng& rng, const TensorView& out) {
    normal(0, 0.3)(rng, out);
    float* w = out.f32();
    const int64_t c = out.dim(1);
    for (int64_t i = 0; i < c; ++i) w[2 * c + i] = w[c + i] *= 8.0f;
  };
}

}  // namespace

std::vector<OpCase> linear_cross_entropy_cases(std::span<const BenchShape> bench) {
  std::vector<OpCase> list;
  const auto add = [&](const std::string& name, int64_t b, int64_t t, int64_t c, int64_t v,
                       const Fill& weight, const LinearCrossEntropyAttrs& a, Use use) {
    // Logits carry an absolute error of about their size times sqrt(C) u, which the exponential
    // turns into a relative one; the products of the backward sum over V and over the tokens.
    const double terms = static_cast<double>(c + v + b * t);
    list.push_back({.name = str("linear_cross_entropy/", name, "b", b, "_t", t, "_c", c, "_v", v,
                                a.l2wrap ? "_l2wrap" : "",
                                a.chunk_tokens ? str("_chunk", a.chunk_tokens) : std::string()),
                    .op = &kLinearCrossEntropy,
                    .in = {{"x", {b, t, c}, normal(0, 1)},
                           {"targets", TensorSpec({b, t}, DType::kI32), ids(v)}},
                    .param = {{"weight", {v, c}, weight, true}},
                    .attrs = attrs(a),
                    .forward = rounding(static_cast<double>(c), 2),
                    .backward = rounding(terms, 4),
                    .use = use});
  };
  const auto scaled = [](int64_t c) { return normal(0, 2 / std::sqrt(static_cast<double>(c))); };
  using Attrs = LinearCrossEntropyAttrs;
  add("", 1, 1, 1, 2, normal(0, 1), Attrs{.l2wrap = false}, Use::kTest);
  add("", 1, 1, 7, 5, scaled(7), Attrs{}, Use::kTest);
  add("", 2, 9, 33, 77, scaled(33), Attrs{.l2wrap = false}, Use::kTest);
  add("", 2, 9, 33, 77, scaled(33), Attrs{}, Use::kTest);
  add("", 2, 9, 33, 77, scaled(33), Attrs{.chunk_tokens = 5}, Use::kTest);
  add("", 2, 9, 33, 77, scaled(33), Attrs{.chunk_tokens = 1000}, Use::kTest);
  add("ties_", 2, 9, 16, 40, tied_rows(), Attrs{}, Use::kTest);
  add("wide_", 1, 6, 24, 1300, normal(0, 3), Attrs{}, Use::kTest);  // logits of +-60
  add("", 1, 12, 64, 5003, scaled(64), Attrs{}, Use::kTest);
  for (const BenchShape& m : bench) {
    const auto model = [&](const Attrs& a) {
      add("", m.batch, m.tokens, m.width, m.vocab, scaled(m.width), a, m.use);
    };
    model({});
    if (m.batch * m.tokens > 8192) model({.chunk_tokens = 8192});
  }
  return list;
}

}  // namespace rwkv::cases
