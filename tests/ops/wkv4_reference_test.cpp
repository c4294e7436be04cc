// The double reference of WKV-4 against its definition and against complex-step derivatives.
#include <gtest/gtest.h>

#include <complex>

#include "kernels/core/rng.h"
#include "tests/ops/wkv4_harness.h"

namespace rwkv::test {
namespace {

using Complex = std::complex<double>;

ref::Wkv4Inputs<double> problem(bool state) {
  ref::Wkv4Inputs<double> x{.B = 2, .T = 6, .C = 3};
  Rng rng(7, hash_name("wkv4 complex step"));
  const auto fill = [&](std::vector<double>& p, size_t n, double scale) {
    for (size_t i = 0; i < n; ++i) p.push_back(scale * rng.next_normal());
  };
  fill(x.k, 36, 2);
  fill(x.v, 36, 1);
  x.tau = {-4, -0.3, 1.5};
  x.u = {-1.2, 0.4, 2};
  if (state) {
    fill(x.a0, 6, 1);
    fill(x.p0, 6, 2);
    for (int i = 0; i < 6; ++i) x.b0.push_back(0.5 + rng.next_uniform());
  }
  return x;
}

TEST(Wkv4Reference, ForwardEqualsDefinition) {
  for (const bool state : {false, true}) {
    const auto x = problem(state);
    const auto out = ref::wkv4_forward(x);
    std::vector<double> y, a, b;
    for (int64_t bi = 0; bi < x.B; ++bi) {
      for (int64_t t = 0; t <= x.T; ++t) {
        for (int64_t c = 0; c < x.C; ++c) {
          const auto ci = static_cast<size_t>(c);
          const double rate = std::exp(x.tau[ci]);
          double num = 0, den = 0;
          const auto add = [&](double exponent, double value, double count) {
            num += std::exp(exponent) * value;
            den += std::exp(exponent) * count;
          };
          const size_t o = ref::at(bi, c, x.C);
          const auto steps = [&](int64_t from) { return static_cast<double>(t - 1 - from) * rate; };
          if (state) add(x.p0[o] - steps(-1), x.a0[o] / x.b0[o] * x.b0[o], x.b0[o]);
          for (int64_t i = 0; i < t; ++i) {
            const size_t at = ref::at(bi * x.T + i, c, x.C);
            add(x.k[at] - steps(i), x.v[at], 1);
          }
          if (t == x.T) {  // what leaves
            a.push_back(num);
            b.push_back(den);
            continue;
          }
          const size_t at = ref::at(bi * x.T + t, c, x.C);
          add(x.u[ci] + x.k[at], x.v[at], 1);
          y.push_back(num / den);
        }
      }
    }
    EXPECT_LE(max_error(out.y, y), 1e-14);
    for (size_t i = 0; i < a.size(); ++i) {
      EXPECT_NEAR(out.a[i] * std::exp(out.p[i]), a[i], 1e-13 * b[i]);
      EXPECT_NEAR(out.b[i] * std::exp(out.p[i]), b[i], 1e-13 * b[i]);
    }
  }
}

TEST(Wkv4Reference, BackwardEqualsComplexStep) {
  for (const bool state : {false, true}) {
    const auto x = problem(state);
    Rng rng(8, hash_name("wkv4 upstream"));
    std::vector<double> dy, da, db, p_fixed;
    for (size_t i = 0; i < x.k.size(); ++i) dy.push_back(rng.next_normal());
    if (state) {
      for (const double p : ref::wkv4_forward(x).p) {
        da.push_back(rng.next_normal());
        db.push_back(rng.next_normal());
        p_fixed.push_back(p + 0.3);  // any constant will do
      }
    }
    const auto g = ref::wkv4_backward(x, dy, da, db, p_fixed);

    const auto wide = [](const std::vector<double>& p) {
      return std::vector<Complex>(p.begin(), p.end());
    };
    ref::Wkv4Inputs<Complex> z{x.B,         x.T,       x.C,        wide(x.k),  wide(x.v),
                               wide(x.tau), wide(x.u), wide(x.a0), wide(x.b0), wide(x.p0)};
    const auto derivative = [&](Complex& entry) {
      constexpr double h = 1e-50;
      entry += Complex(0, h);
      const auto out = ref::wkv4_forward(z);
      entry -= Complex(0, h);
      double sum = 0;
      for (size_t i = 0; i < dy.size(); ++i) sum += out.y[i].imag() * dy[i];
      for (size_t i = 0; i < da.size(); ++i) {
        const Complex scale = std::exp(out.p[i] - p_fixed[i]);
        sum += (out.a[i] * scale).imag() * da[i] + (out.b[i] * scale).imag() * db[i];
      }
      return sum / h;
    };
    std::vector<Complex>* inputs[] = {&z.k, &z.v, &z.tau, &z.u, &z.a0, &z.b0};
    const std::vector<double>* grads[] = {&g.dk, &g.dv, &g.dtau, &g.du, &g.da0, &g.db0};
    for (size_t i = 0; i < (state ? 6u : 4u); ++i) {
      std::vector<double> want;
      for (Complex& entry : *inputs[i]) want.push_back(derivative(entry));
      EXPECT_LE(max_error(*grads[i], want), 1e-12) << "gradient " << i << ", state " << state;
    }
  }
}

}  // namespace
}  // namespace rwkv::test
