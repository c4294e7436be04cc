#include "kernels/cases/case.h"
#include "kernels/ops/token_shift.h"

namespace rwkv::cases {

std::vector<OpCase> token_shift_cases(std::span<const BenchShape> bench) {
  std::vector<OpCase> list;
  const auto add = [&](int64_t b, int64_t t, int64_t c, int mixes, bool prev, bool weights_current,
                       Use use) {
    OpCase one{.name = str("token_shift/b", b, "_t", t, "_c", c, "_mixes", mixes,
                           prev ? "_prev" : "", weights_current ? "_v4" : ""),
               .op = &kTokenShift,
               .in = {{"h", {b, t, c}, normal(0, 1)}},
               .attrs = attrs(TokenShiftAttrs{.weights_current = weights_current}),
               .forward = rounding(3),
               // dh sums two terms per mix, the gradients of the mixes sum over rows.
               .backward = rounding(static_cast<double>(2 * mixes + b * t)),
               .use = use};
    if (prev) one.in.push_back({"prev", {b, c}, normal(0, 1)});
    // h (1 - mix) cancels for mixes near 1; a single element has no others to outweigh it.
    const double largest = b * t * c == 1 ? 0.5 : 1;
    for (int m = 0; m < mixes; ++m)
      one.param.push_back({str("mix_", m), {1, 1, c}, uniform(0, largest)});
    list.push_back(one);
  };
  add(1, 1, 1, 1, false, false, Use::kTest);
  add(1, 1, 7, 6, true, false, Use::kTest);
  add(1, 2, 64, 1, false, false, Use::kTest);
  add(3, 5, 33, 6, false, false, Use::kTest);
  add(3, 5, 33, 6, true, false, Use::kTest);
  add(2, 17, 300, 1, true, false, Use::kTest);  // more than one block of channels
  add(2, 17, 65, 4, true, true, Use::kTest);
  add(2, 3, 20, 2, false, true, Use::kTest);
  add(2, 21, 64, 3, true, false, Use::kTest);  // chunks of rows that cross sequences
  add(3, 43, 160, 3, true, true, Use::kTest);
  add(3, 130, 160, 6, true, false, Use::kTest);  // runs of rows that cross sequences
  for (const BenchShape& m : bench)
    for (const int mixes : {6, 1}) add(m.batch, m.tokens, m.width, mixes, false, false, m.use);
  return list;
}

}  // namespace rwkv::cases
