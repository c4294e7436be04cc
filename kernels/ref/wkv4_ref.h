#pragma once
/// Reference of the WKV-4 average: plain loops, templated on the scalar (double, or
/// std::complex<double> for complex-step derivatives, where maxima go by the real part). For tests
/// and rwkv-bench only.
/// source: spec rwkv4 3 (stable recurrence), 4.2 (two-pass backward)

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/ref/ref_call.h"

namespace rwkv::ref {

/// k, v (B, T, C); tau (time_decay), u (time_first) (C); state (B, C), empty: fresh.
template <class S>
struct Wkv4Inputs {
  int64_t B = 1, T = 1, C = 1;
  std::vector<S> k, v, tau, u, a0, b0, p0;
};

template <class S>
struct Wkv4Outputs {
  std::vector<S> y, a, b, p;
};

struct Wkv4Gradients {
  std::vector<double> dk, dv, da0, db0, dtau, du;
};

namespace detail {

template <class S>
struct Wkv4State {
  S a{}, b{}, p{-1e38};
};

template <class S>
S larger(S x, S y) {
  return real_part(x) >= real_part(y) ? x : y;
}

template <class S>
Wkv4State<S> wkv4_start(const Wkv4Inputs<S>& x, size_t at) {
  if (x.a0.empty()) return {};
  return {x.a0[at], x.b0[at], x.p0[at]};
}

}  // namespace detail

template <class S>
Wkv4Outputs<S> wkv4_forward(const Wkv4Inputs<S>& x) {
  Wkv4Outputs<S> out;
  out.y.resize(x.k.size());
  for (auto* o : {&out.a, &out.b, &out.p}) o->resize(static_cast<size_t>(x.B * x.C));
  for (int64_t bi = 0; bi < x.B; ++bi) {
    for (int64_t ci = 0; ci < x.C; ++ci) {
      const auto c = static_cast<size_t>(ci);
      auto s = detail::wkv4_start(x, at(bi, ci, x.C));
      const S d = -std::exp(x.tau[c]);
      for (int64_t t = 0; t < x.T; ++t) {
        const size_t i = at(bi * x.T + t, ci, x.C);
        const S own = x.u[c] + x.k[i], q = detail::larger(s.p, own);
        const S e1 = std::exp(s.p - q), e2 = std::exp(own - q);
        out.y[i] = (e1 * s.a + e2 * x.v[i]) / (e1 * s.b + e2);
        const S p = detail::larger(s.p + d, x.k[i]);
        const S g1 = std::exp(s.p + d - p), g2 = std::exp(x.k[i] - p);
        s = {g1 * s.a + g2 * x.v[i], g1 * s.b + g2, p};
      }
      const size_t o = at(bi, ci, x.C);
      out.a[o] = s.a;
      out.b[o] = s.b;
      out.p[o] = s.p;
    }
  }
  return out;
}

/// Gradients of sum(y dy) + sum(A e^-p_fixed da_out) + sum(B e^-p_fixed db_out), A and B the true
/// sums that leave, p_fixed a constant (B, C). Empty: no gradient at the state.
inline Wkv4Gradients wkv4_backward(const Wkv4Inputs<double>& x, const std::vector<double>& dy,
                                   const std::vector<double>& da_out,
                                   const std::vector<double>& db_out,
                                   const std::vector<double>& p_fixed) {
  Wkv4Gradients g;
  g.dk.resize(x.k.size());
  g.dv.resize(x.k.size());
  g.da0.resize(static_cast<size_t>(x.B * x.C));
  g.db0.resize(g.da0.size());
  g.dtau.resize(x.tau.size());
  g.du.resize(x.tau.size());
  const auto T = static_cast<size_t>(x.T);
  std::vector<double> y(T), h(T), q(T);
  for (int64_t bi = 0; bi < x.B; ++bi) {
    for (int64_t ci = 0; ci < x.C; ++ci) {
      const auto c = static_cast<size_t>(ci);
      const size_t o = at(bi, ci, x.C);
      const double d = -std::exp(x.tau[c]), u = x.u[c];
      auto s = detail::wkv4_start(x, o);
      double a_dot = 0, b_dot = 0, dd = 0;
      for (size_t t = 0; t < T; ++t) {
        const size_t i = at(bi * x.T + static_cast<int64_t>(t), ci, x.C);
        const double k = x.k[i], v = x.v[i];
        q[t] = std::max(s.p, u + k);
        const double e1 = std::exp(s.p - q[t]), e2 = std::exp(u + k - q[t]);
        y[t] = (e1 * s.a + e2 * v) / (e1 * s.b + e2);
        h[t] = dy[i] / (e1 * s.b + e2);
        dd += (a_dot - b_dot * y[t]) * e1 * h[t];
        g.du[c] += (v - y[t]) * e2 * h[t];
        const double p = std::max(s.p + d, k);
        const double g1 = std::exp(s.p + d - p), g2 = std::exp(k - p);
        a_dot = g1 * (s.a + a_dot);
        b_dot = g1 * (s.b + b_dot);
        s = {g1 * s.a + g2 * v, g1 * s.b + g2, p};
      }
      double X = 0, Z = 0, p = -1e38;
      if (!da_out.empty()) {
        X = da_out[o];
        Z = db_out[o];
        p = -p_fixed[o];
        dd += std::exp(s.p - p_fixed[o]) * (a_dot * X + b_dot * Z);
      }
      for (size_t t = T; t-- > 0;) {
        const size_t i = at(bi * x.T + static_cast<int64_t>(t), ci, x.C);
        const double k = x.k[i], v = x.v[i];
        const double f1 = h[t] * std::exp(u + k - q[t]), f2 = std::exp(k + p);
        g.dk[i] = f1 * (v - y[t]) + f2 * (X * v + Z);
        g.dv[i] = f1 + f2 * X;
        const double m = std::max(p + d, -q[t]);
        const double g1 = std::exp(p + d - m), g2 = h[t] * std::exp(-q[t] - m);
        X = g1 * X + g2;
        Z = g1 * Z - g2 * y[t];
        p = m;
      }
      if (!x.p0.empty()) {
        g.da0[o] = std::exp(x.p0[o] + p) * X;
        g.db0[o] = std::exp(x.p0[o] + p) * Z;
      }
      g.dtau[c] += dd * d;
    }
  }
  return g;
}

}  // namespace rwkv::ref
