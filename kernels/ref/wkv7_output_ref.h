#pragma once
/// Reference of kWkv7Output. source: spec rwkv7 2.2, 3.1, 3.3

#include "kernels/ops/wkv7_output.h"
#include "kernels/ref/layer_norm_ref.h"
#include "kernels/ref/ref_call.h"

namespace rwkv::ref {

/// beta of one head: sum of r * k * r_k. in: y, r, k, v, gate; param: weight, bias, r_k.
template <class S>
S wkv7_bonus(const RefCall<S>& c, int64_t row, int64_t channel, int64_t n) {
  const int64_t C = c.in_spec[0][2];
  S beta{};
  for (int64_t i = channel; i < channel + n; ++i)
    beta += c.in[1][at(row, i, C)] * c.in[2][at(row, i, C)] * c.param[2][static_cast<size_t>(i)];
  return beta;
}

template <class S>
void wkv7_output_forward(RefCall<S>& c) {
  const auto& attrs = c.template attr<Wkv7OutputAttrs>();
  const int64_t C = c.in_spec[0][2], n = attrs.head_size;
  for (int64_t r = 0; r < c.in_spec[0].rows(); ++r)
    for (int64_t h = 0; h < C; h += n) {
      const Moments<S> m = moments(&c.in[0][at(r, h, C)], n, static_cast<double>(attrs.eps));
      const S beta = wkv7_bonus(c, r, h, n);
      for (int64_t i = h; i < h + n; ++i) {
        const size_t o = at(r, i, C), p = static_cast<size_t>(i);
        const S norm = (c.in[0][o] - m.mean) * m.rstd * c.param[0][p] + c.param[1][p];
        c.out[0][o] = (norm + beta * c.in[3][o]) * c.in[4][o];
      }
    }
}

template <class S>
void wkv7_output_backward(RefCall<S>& c) {
  const auto& attrs = c.template attr<Wkv7OutputAttrs>();
  const int64_t C = c.in_spec[0][2], n = attrs.head_size;
  for (int64_t r = 0; r < c.in_spec[0].rows(); ++r)
    for (int64_t h = 0; h < C; h += n) {
      const Moments<S> m = moments(&c.in[0][at(r, h, C)], n, static_cast<double>(attrs.eps));
      const S beta = wkv7_bonus(c, r, h, n);
      std::vector<S> g(static_cast<size_t>(n));
      S dbeta{};
      for (int64_t i = h; i < h + n; ++i) {
        const size_t o = at(r, i, C), p = static_cast<size_t>(i);
        const S normed = (c.in[0][o] - m.mean) * m.rstd, v = c.in[3][o], gate = c.in[4][o];
        const S inner = c.dout[0][o] * gate;  // gradient of norm + bonus
        g[static_cast<size_t>(i - h)] = inner * c.param[0][p];
        c.dparam[0][p] += inner * normed;
        c.dparam[1][p] += inner;
        dbeta += inner * v;
        c.din[3][o] = beta * inner;
        c.din[4][o] = c.dout[0][o] * (normed * c.param[0][p] + c.param[1][p] + beta * v);
      }
      normalise_backward(&c.in[0][at(r, h, C)], m, g, &c.din[0][at(r, h, C)]);
      for (int64_t i = h; i < h + n; ++i) {
        const size_t o = at(r, i, C), p = static_cast<size_t>(i);
        c.din[1][o] = dbeta * c.in[2][o] * c.param[2][p];
        c.din[2][o] = dbeta * c.in[1][o] * c.param[2][p];
        c.dparam[2][p] += dbeta * c.in[1][o] * c.in[2][o];
      }
    }
}

}  // namespace rwkv::ref
