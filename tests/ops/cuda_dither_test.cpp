// dither.h on the device against dither.h on the host, and the hardware's binary16 multiply-add
// against kernels/core/half.h: bit for bit.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "kernels/core/rng.h"
#include "kernels/wkv/dither.h"
#include "tests/ops/dither_device.h"
#include "tests/support/device.h"

namespace rwkv::test {
namespace {

TEST(CudaDither, SameBitsAsTheHost) {
  RWKV_NEED_TEST_DEVICE();
  std::vector<float> logits;
  std::vector<uint32_t> phases;
  Rng rng(51, 0);
  const auto random_bits = [&] { return static_cast<uint32_t>(rng.next_uniform() * 65536); };
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float x = to_float(F16{static_cast<uint16_t>(bits)});
    if (std::isnan(x)) continue;
    for (int i = 0; i < 8; ++i) {
      logits.push_back(x);
      phases.push_back(i < 4 ? random_bits() : random_bits() << 16 | random_bits());
    }
  }
  std::vector<uint16_t> a, b, c;
  for (int i = 0; i < 1 << 20; ++i) {
    const auto p = static_cast<uint16_t>(random_bits()), q = static_cast<uint16_t>(random_bits());
    a.push_back(p);
    b.push_back(q);
    // Half of the addends near minus the product: cancellation.
    const float product = to_float(F16{p}) * to_float(F16{q});
    const auto near = static_cast<uint16_t>(to_half(-product).bits + i % 8 - 4);
    c.push_back(i % 2 == 0 ? near : static_cast<uint16_t>(random_bits()));
  }
  const DitherOnDevice got = dither_on_device(logits, phases, a, b, c);
  for (size_t i = 0; i < logits.size(); ++i) {
    ASSERT_EQ(float_bits(got.rotator[i]), float_bits(dither_rotator(phases[i]))) << phases[i];
    ASSERT_EQ(float_bits(got.dithered[i]), float_bits(dithered_decay(logits[i], phases[i])))
        << logits[i] << ", phase " << phases[i];
    ASSERT_EQ(float_bits(got.plain[i]), float_bits(plain_decay(logits[i]))) << logits[i];
  }
  for (size_t i = 0; i < a.size(); ++i) {
    const F16 x{a[i]}, y{b[i]}, z{c[i]};
    const float want = half_fma(to_float(x), to_float(y), to_float(z));
    if (std::isnan(want)) continue;
    ASSERT_EQ(got.fma[i], half_bits(want).bits)
        << to_float(x) << " * " << to_float(y) << " + " << to_float(z);
  }
}

}  // namespace
}  // namespace rwkv::test
