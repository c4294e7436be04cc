#include <algorithm>

#include "kernels/cases/case.h"
#include "kernels/ops/embedding.h"

namespace rwkv::cases {

std::vector<OpCase> embedding_cases(std::span<const BenchShape> bench) {
  std::vector<OpCase> list;
  const auto add = [&](int64_t b, int64_t t, int64_t c, int64_t v, Use use) {
    // A copy forward; backward a sum of about B T / V rows, at most all of them.
    list.push_back({.name = str("embedding/b", b, "_t", t, "_c", c, "_v", v),
                    .op = &kEmbedding,
                    .in = {{"tokens", TensorSpec({b, t}, DType::kI32), ids(v)}},
                    .param = {{"weight", {v, c}, normal(0, 0.1), true}},
                    .forward = {0, 0, 0},
                    .backward = rounding(static_cast<double>(b * t)),
                    .use = use,
                    .reads = std::min(1.0, static_cast<double>(b * t) / static_cast<double>(v))});
  };
  add(1, 1, 1, 1, Use::kTest);
  add(1, 1, 7, 5, Use::kTest);
  add(2, 9, 33, 4, Use::kTest);  // every token several times
  add(3, 17, 130, 300, Use::kTest);
  add(2, 300, 64, 3, Use::kTest);  // runs of one token over many pieces of the sorted list
  for (const BenchShape& m : bench) add(m.batch, m.tokens, m.width, m.vocab, m.use);
  return list;
}

}  // namespace rwkv::cases
