#include <cmath>

#include "kernels/cases/case.h"
#include "kernels/ops/key_prepare.h"

namespace rwkv::cases {
namespace {

/// Ordinary keys, but every third (row, head) is zero or far below the floor of the norm.
Fill keys_around_the_floor(int64_t head_size) {
  return [=](const Rng& rng, const TensorView& out) {
    normal(0, 1)(rng, out);
    float* v = out.f32();
    for (int64_t i = 0; i < out.numel(); ++i) {
      const int64_t head = i / head_size;
      if (head % 3 == 1) v[i] = head % 2 == 0 ? 0.0f : v[i] * 1e-16f;
    }
  };
}

}  // namespace

std::vector<OpCase> key_prepare_cases(std::span<const BenchShape> bench) {
  std::vector<OpCase> list;
  const auto add = [&](const std::string& name, int64_t b, int64_t t, int64_t heads, int64_t n,
                       const Fill& keys, const Fill& logits, Use use) {
    const int64_t c = heads * n;
    // du = (dz - z <dz, z>) / |u|: the difference and the sum over rows each cost a little more
    // than a plain sum.
    const double terms = static_cast<double>(n + b * t);
    list.push_back(
        {.name = str("key_prepare/", name, "b", b, "_t", t, "_h", heads, "_n", n),
         .op = &kKeyPrepare,
         .in = {{"k0", {b, t, c}, keys}, {"iclr_logit", {b, t, c}, logits}},
         .param = {{"k_k", {1, 1, c}, normal(0.71, 0.1)}, {"k_a", {1, 1, c}, normal(1.02, 0.1)}},
         .attrs = attrs(KeyPrepareAttrs{.head_size = n}),
         .forward = rounding(static_cast<double>(n)),
         .backward = rounding(terms, 2),
         .use = use});
  };
  const Fill plain = normal(0, 1), logits = normal(0, 2);
  add("", 1, 1, 1, 8, plain, logits, Use::kTest);
  add("", 1, 1, 1, 64, plain, logits, Use::kTest);
  add("", 2, 5, 3, 5, plain, logits, Use::kTest);
  add("", 2, 17, 2, 64, plain, logits, Use::kTest);
  add("", 1, 9, 2, 128, plain, logits, Use::kTest);
  add("", 2, 3, 1, 256, plain, logits, Use::kTest);
  add("saturated_", 2, 6, 2, 32, plain, normal(0, 20), Use::kTest);
  add("floor_", 2, 7, 2, 32, keys_around_the_floor(32), logits, Use::kTest);
  add("", 2, 150, 5, 64, plain, logits, Use::kTest);  // several chunks of rows and tiles
  for (const BenchShape& m : bench)
    add("", m.batch, m.tokens, m.heads(), m.head_size, plain, logits, m.use);
  return list;
}

}  // namespace rwkv::cases
