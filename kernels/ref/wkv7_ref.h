#pragma once
/// Reference of the WKV-7 recurrence: plain loops, templated on the scalar (double, or
/// std::complex<double> for complex-step derivatives). For tests and rwkv-bench only.
/// source: spec rwkv7 2.3 (forward), 3.4 (backward).

#include <cmath>
#include <complex>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace rwkv::ref {

/// Vectors are (B, T, H, N), states (B, H, N, N) with rows = value, columns = key.
/// An empty s0 means zero.
template <class S>
struct Wkv7Inputs {
  int64_t B = 1, T = 1, H = 1, N = 64;
  std::vector<S> r, w_logit, k, v, a, b, s0;
};

template <class S>
struct Wkv7Outputs {
  std::vector<S> y, s_out;
};

struct Wkv7Gradients {
  std::vector<double> dr, dw_logit, dk, dv, da, db, ds0;
  std::vector<double> dlog_w;  ///< with respect to log(decay), before the sigmoid's factor
};

/// exp(-1/2)
inline constexpr double kWkv7DecayScale = 0.60653065971263342360;

template <class S>
S wkv7_decay(S w_logit) {
  return std::exp(-kWkv7DecayScale / (1.0 + std::exp(-w_logit)));
}

namespace detail {

/// Walks one head forward. `visit(t, before, u, after)` sees the state ahead of token t, u = S a,
/// and the state after it, each (N, N) or (N).
template <class S, class Visit>
void wkv7_walk(const Wkv7Inputs<S>& x, int64_t bi, int64_t h, std::vector<S>& state,
               const Visit& visit) {
  const int64_t N = x.N;
  std::vector<S> before, u(static_cast<size_t>(N)), decay(static_cast<size_t>(N));
  for (int64_t t = 0; t < x.T; ++t) {
    before = state;
    const auto o = static_cast<size_t>(((bi * x.T + t) * x.H + h) * N);
    for (size_t j = 0; j < static_cast<size_t>(N); ++j) decay[j] = wkv7_decay(x.w_logit[o + j]);
    for (size_t i = 0; i < static_cast<size_t>(N); ++i) {
      S sum{};
      for (size_t j = 0; j < static_cast<size_t>(N); ++j)
        sum += before[i * static_cast<size_t>(N) + j] * x.a[o + j];
      u[i] = sum;
      for (size_t j = 0; j < static_cast<size_t>(N); ++j) {
        const size_t ij = i * static_cast<size_t>(N) + j;
        state[ij] = before[ij] * decay[j] + u[i] * x.b[o + j] + x.v[o + i] * x.k[o + j];
      }
    }
    visit(t, before, u, state);
  }
}

template <class S>
std::vector<S> wkv7_start(const std::vector<S>& s0, size_t head, size_t nn) {
  if (s0.empty()) return std::vector<S>(nn);
  const auto from = s0.begin() + static_cast<std::ptrdiff_t>(head * nn);
  return std::vector<S>(from, from + static_cast<std::ptrdiff_t>(nn));
}

}  // namespace detail

template <class S>
Wkv7Outputs<S> wkv7_forward(const Wkv7Inputs<S>& x) {
  const auto N = static_cast<size_t>(x.N), nn = N * N;
  Wkv7Outputs<S> out;
  out.y.resize(x.r.size());
  out.s_out.resize(static_cast<size_t>(x.B * x.H) * nn);
  for (int64_t bi = 0; bi < x.B; ++bi) {
    for (int64_t h = 0; h < x.H; ++h) {
      const auto head = static_cast<size_t>(bi * x.H + h);
      std::vector<S> state = detail::wkv7_start(x.s0, head, nn);
      detail::wkv7_walk(x, bi, h, state, [&](int64_t t, const auto&, const auto&, const auto& s) {
        const auto o = static_cast<size_t>((bi * x.T + t) * x.H + h) * N;
        for (size_t i = 0; i < N; ++i) {
          S sum{};
          for (size_t j = 0; j < N; ++j) sum += s[i * N + j] * x.r[o + j];
          out.y[o + i] = sum;
        }
      });
      for (size_t ij = 0; ij < nn; ++ij) out.s_out[head * nn + ij] = state[ij];
    }
  }
  return out;
}

/// Gradients of sum(y * dy) + sum(s_out * ds_out); an empty ds_out means zero.
inline Wkv7Gradients wkv7_backward(const Wkv7Inputs<double>& x, const std::vector<double>& dy,
                                   const std::vector<double>& ds_out) {
  const auto N = static_cast<size_t>(x.N), nn = N * N;
  Wkv7Gradients g;
  for (auto* p : {&g.dr, &g.dw_logit, &g.dk, &g.dv, &g.da, &g.db, &g.dlog_w})
    p->assign(x.r.size(), 0.0);
  g.ds0.resize(static_cast<size_t>(x.B * x.H) * nn);
  std::vector<std::vector<double>> before(static_cast<size_t>(x.T)), u(before.size());
  for (int64_t bi = 0; bi < x.B; ++bi) {
    for (int64_t h = 0; h < x.H; ++h) {
      const auto head = static_cast<size_t>(bi * x.H + h);
      std::vector<double> after = detail::wkv7_start(x.s0, head, nn);
      detail::wkv7_walk(x, bi, h, after,
                        [&](int64_t t, const auto& s, const auto& ut, const auto&) {
                          before[static_cast<size_t>(t)] = s;
                          u[static_cast<size_t>(t)] = ut;
                        });
      std::vector<double> lambda = detail::wkv7_start(ds_out, head, nn), e(N);
      for (int64_t t = x.T - 1; t >= 0; --t) {
        const auto o = static_cast<size_t>((bi * x.T + t) * x.H + h) * N;
        const std::vector<double>& s = before[static_cast<size_t>(t)];
        const std::vector<double>& ut = u[static_cast<size_t>(t)];
        for (size_t i = 0; i < N; ++i) {
          for (size_t j = 0; j < N; ++j) {
            g.dr[o + j] += after[i * N + j] * dy[o + i];
            lambda[i * N + j] += dy[o + i] * x.r[o + j];
          }
        }
        for (size_t i = 0; i < N; ++i) {
          e[i] = 0;
          for (size_t j = 0; j < N; ++j) {
            const double l = lambda[i * N + j];
            g.dlog_w[o + j] += l * s[i * N + j];  // times the decay below
            g.dk[o + j] += l * x.v[o + i];
            g.db[o + j] += l * ut[i];
            g.dv[o + i] += l * x.k[o + j];
            e[i] += l * x.b[o + j];
          }
        }
        for (size_t j = 0; j < N; ++j) {
          const double decay = wkv7_decay(x.w_logit[o + j]);
          for (size_t i = 0; i < N; ++i) {
            g.da[o + j] += s[i * N + j] * e[i];
            lambda[i * N + j] = lambda[i * N + j] * decay + e[i] * x.a[o + j];
          }
          const double up = std::exp(-x.w_logit[o + j]);  // s (1 - s) = up / (1 + up)^2
          g.dlog_w[o + j] *= decay;
          g.dw_logit[o + j] = g.dlog_w[o + j] * -kWkv7DecayScale * up / ((1 + up) * (1 + up));
        }
        after = s;
      }
      for (size_t ij = 0; ij < nn; ++ij) g.ds0[head * nn + ij] = lambda[ij];
    }
  }
  return g;
}

}  // namespace rwkv::ref
