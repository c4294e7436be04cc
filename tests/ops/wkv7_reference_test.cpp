// The double reference of WKV-7 against complex-step derivatives.
#include <gtest/gtest.h>

#include "kernels/core/rng.h"
#include "tests/ops/wkv7_harness.h"

namespace rwkv::test {
namespace {

using Complex = std::complex<double>;

TEST(Wkv7Reference, BackwardEqualsComplexStep) {
  ref::Wkv7Inputs<double> x{.B = 2, .T = 5, .H = 2, .N = 4};
  Rng rng(7, hash_name("complex step"));
  const size_t vec = 2 * 5 * 2 * 4, states = 2 * 2 * 4 * 4;
  const auto fill = [&](std::vector<double>& p, size_t n, double scale) {
    for (size_t i = 0; i < n; ++i) p.push_back(scale * rng.next_normal());
  };
  for (auto* p : {&x.r, &x.w_logit, &x.k, &x.v, &x.a, &x.b}) fill(*p, vec, 0.7);
  fill(x.s0, states, 0.5);
  x.w_logit[3] = 20;
  x.w_logit[9] = -14;
  std::vector<double> dy, ds;
  fill(dy, vec, 1);
  fill(ds, states, 1);
  const ref::Wkv7Gradients g = ref::wkv7_backward(x, dy, ds);

  const auto wide = [](const std::vector<double>& p) {
    return std::vector<Complex>(p.begin(), p.end());
  };
  ref::Wkv7Inputs<Complex> z{x.B,       x.T,       x.H,       x.N,       wide(x.r), wide(x.w_logit),
                             wide(x.k), wide(x.v), wide(x.a), wide(x.b), wide(x.s0)};
  const auto derivative = [&](Complex& entry) {
    constexpr double h = 1e-50;
    entry += Complex(0, h);
    const auto out = ref::wkv7_forward(z);
    entry -= Complex(0, h);
    double sum = 0;
    for (size_t i = 0; i < vec; ++i) sum += out.y[i].imag() * dy[i];
    for (size_t i = 0; i < states; ++i) sum += out.s_out[i].imag() * ds[i];
    return sum / h;
  };
  std::vector<Complex>* inputs[] = {&z.r, &z.w_logit, &z.k, &z.v, &z.a, &z.b, &z.s0};
  const std::vector<double>* grads[] = {&g.dr, &g.dw_logit, &g.dk, &g.dv, &g.da, &g.db, &g.ds0};
  for (size_t i = 0; i < 7; ++i) {
    std::vector<double> want;
    for (Complex& entry : *inputs[i]) want.push_back(derivative(entry));
    EXPECT_TRUE(close(kWkv7Names[i], *grads[i], want, 1e-11));
  }
}

}  // namespace
}  // namespace rwkv::test
