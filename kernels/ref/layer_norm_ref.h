#pragma once
/// Reference of kLayerNorm. source: spec rwkv7 2.1, 3.1

#include "kernels/ops/layer_norm.h"
#include "kernels/ref/ref_call.h"

namespace rwkv::ref {

/// Mean and 1 / sqrt(biased variance + eps) of n values.
template <class S>
struct Moments {
  S mean{}, rstd{};
};
template <class S>
Moments<S> moments(const S* x, int64_t n, double eps) {
  S sum{}, squares{};
  for (int64_t i = 0; i < n; ++i) sum += x[i];
  const S mean = sum / static_cast<double>(n);
  for (int64_t i = 0; i < n; ++i) squares += (x[i] - mean) * (x[i] - mean);
  return {mean, 1.0 / std::sqrt(squares / static_cast<double>(n) + eps)};
}

/// dx of y = (x - mean) * rstd for one group of n values and the gradient g of y.
template <class S>
void normalise_backward(const S* x, const Moments<S>& m, const std::vector<S>& g, S* dx) {
  S mean_g{}, mean_gx{};
  for (size_t i = 0; i < g.size(); ++i) {
    mean_g += g[i] / static_cast<double>(g.size());
    mean_gx += g[i] * (x[i] - m.mean) * m.rstd / static_cast<double>(g.size());
  }
  for (size_t i = 0; i < g.size(); ++i)
    dx[i] += m.rstd * (g[i] - mean_g - (x[i] - m.mean) * m.rstd * mean_gx);
}

template <class S>
void layer_norm_forward(RefCall<S>& c) {
  const int64_t width = c.in_spec[0].last();
  const double eps = static_cast<double>(c.template attr<LayerNormAttrs>().eps);
  for (int64_t r = 0; r < c.in_spec[0].rows(); ++r) {
    const Moments<S> m = moments(&c.in[0][at(r, 0, width)], width, eps);
    for (int64_t i = 0; i < width; ++i) {
      const auto u = static_cast<size_t>(i);
      c.out[0][at(r, i, width)] =
          (c.in[0][at(r, i, width)] - m.mean) * m.rstd * c.param[0][u] + c.param[1][u];
    }
  }
}

template <class S>
void layer_norm_backward(RefCall<S>& c) {
  const int64_t width = c.in_spec[0].last();
  const double eps = static_cast<double>(c.template attr<LayerNormAttrs>().eps);
  for (int64_t r = 0; r < c.in_spec[0].rows(); ++r) {
    const S* x = &c.in[0][at(r, 0, width)];
    const Moments<S> m = moments(x, width, eps);
    std::vector<S> g(static_cast<size_t>(width));
    for (size_t i = 0; i < g.size(); ++i) {
      const S dy = c.dout[0][at(r, static_cast<int64_t>(i), width)];
      g[i] = dy * c.param[0][i];
      c.dparam[0][i] += dy * (x[i] - m.mean) * m.rstd;
      c.dparam[1][i] += dy;
    }
    normalise_backward(x, m, g, &c.din[0][at(r, 0, width)]);
  }
}

}  // namespace rwkv::ref
