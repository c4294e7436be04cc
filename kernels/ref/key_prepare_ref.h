#pragma once
/// Reference of kKeyPrepare. source: spec rwkv7 2.2, 3.3

#include "kernels/ops/key_prepare.h"
#include "kernels/ref/ref_call.h"

namespace rwkv::ref {

/// max(|u|_2, 1e-12) of one head, u = k0 * k_k; `floored` tells which.
template <class S>
struct KeyNorm {
  S norm{};
  bool floored = false;
};
template <class S>
KeyNorm<S> key_norm(const RefCall<S>& c, int64_t row, int64_t channel, int64_t n) {
  const int64_t C = c.in_spec[0][2];
  S squares{};
  double real_squares = 0;  // a complex square of a zero would be negative
  for (int64_t i = channel; i < channel + n; ++i) {
    const S u = c.in[0][at(row, i, C)] * c.param[0][static_cast<size_t>(i)];
    squares += u * u;
    real_squares += real_part(u) * real_part(u);
  }
  if (std::sqrt(real_squares) < 1e-12) return {S(1e-12), true};
  return {std::sqrt(squares), false};
}

template <class S>
void key_prepare_forward(RefCall<S>& c) {
  const int64_t C = c.in_spec[0][2], n = c.template attr<KeyPrepareAttrs>().head_size;
  for (int64_t r = 0; r < c.in_spec[0].rows(); ++r)
    for (int64_t h = 0; h < C; h += n) {
      const KeyNorm<S> norm = key_norm(c, r, h, n);
      for (int64_t i = h; i < h + n; ++i) {
        const size_t o = at(r, i, C), p = static_cast<size_t>(i);
        const S z = c.in[0][o] * c.param[0][p] / norm.norm, iclr = logistic(c.in[1][o]);
        c.out[0][o] = c.in[0][o] * (1.0 + (iclr - 1.0) * c.param[1][p]);
        c.out[1][o] = -z;
        c.out[2][o] = z * iclr;
      }
    }
}

template <class S>
void key_prepare_backward(RefCall<S>& c) {
  const int64_t C = c.in_spec[0][2], n = c.template attr<KeyPrepareAttrs>().head_size;
  for (int64_t r = 0; r < c.in_spec[0].rows(); ++r)
    for (int64_t h = 0; h < C; h += n) {
      const KeyNorm<S> norm = key_norm(c, r, h, n);
      const auto z = [&](int64_t i) {
        return c.in[0][at(r, i, C)] * c.param[0][static_cast<size_t>(i)] / norm.norm;
      };
      const auto dz = [&](int64_t i) {
        const size_t o = at(r, i, C);
        return c.dout[2][o] * logistic(c.in[1][o]) - c.dout[1][o];
      };
      S radial{};
      if (!norm.floored)
        for (int64_t i = h; i < h + n; ++i) radial += dz(i) * z(i);
      for (int64_t i = h; i < h + n; ++i) {
        const size_t o = at(r, i, C), p = static_cast<size_t>(i);
        const S k0 = c.in[0][o], iclr = logistic(c.in[1][o]), k_k = c.param[0][p],
                k_a = c.param[1][p], dk = c.dout[0][o];
        const S du = (dz(i) - z(i) * radial) / norm.norm;
        const S diclr = c.dout[2][o] * z(i) + dk * k0 * k_a;
        c.din[0][o] = dk * (1.0 + (iclr - 1.0) * k_a) + du * k_k;
        c.din[1][o] = diclr * iclr * (1.0 - iclr);
        c.dparam[0][p] += du * k0;
        c.dparam[1][p] += dk * k0 * (iclr - 1.0);
      }
    }
}

}  // namespace rwkv::ref
