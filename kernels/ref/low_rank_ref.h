#pragma once
/// Reference of kLowRank. source: spec rwkv7 2.2, 3.3

#include "kernels/ops/low_rank.h"
#include "kernels/ref/ref_call.h"

namespace rwkv::ref {

/// Value and derivative of the inner activation.
template <class S>
struct Activated {
  S value, slope;
};
template <class S>
Activated<S> activated(Activation inner, S x) {
  if (inner == Activation::kTanh) {
    const S t = std::tanh(x);
    return {t, 1.0 - t * t};
  }
  if (inner == Activation::kSigmoid) {
    const S s = logistic(x);
    return {s, s * (1.0 - s)};
  }
  return {x, S(1.0)};
}

/// (x W1)[row, rank], before the activation.
template <class S>
S low_rank_hidden(const RefCall<S>& c, int64_t row, int64_t rank) {
  const int64_t K = c.param_spec[0][0], R = c.param_spec[0][1];
  S sum{};
  for (int64_t k = 0; k < K; ++k) sum += c.in[0][at(row, k, K)] * c.param[0][at(k, rank, R)];
  return sum;
}

template <class S>
void low_rank_forward(RefCall<S>& c) {
  const Activation inner = c.template attr<LowRankAttrs>().inner;
  const int64_t R = c.param_spec[0][1], N = c.param_spec[1][1];
  for (int64_t r = 0; r < c.in_spec[0].rows(); ++r) {
    for (int64_t n = 0; n < N; ++n)
      c.out[0][at(r, n, N)] = c.param.size() == 3 ? c.param[2][static_cast<size_t>(n)] : S{};
    for (int64_t q = 0; q < R; ++q) {
      const S h = activated(inner, low_rank_hidden(c, r, q)).value;
      for (int64_t n = 0; n < N; ++n) c.out[0][at(r, n, N)] += h * c.param[1][at(q, n, N)];
    }
  }
}

template <class S>
void low_rank_backward(RefCall<S>& c) {
  const Activation inner = c.template attr<LowRankAttrs>().inner;
  const int64_t K = c.param_spec[0][0], R = c.param_spec[0][1], N = c.param_spec[1][1];
  for (int64_t r = 0; r < c.in_spec[0].rows(); ++r) {
    for (int64_t q = 0; q < R; ++q) {
      const Activated<S> h = activated(inner, low_rank_hidden(c, r, q));
      S dh{};
      for (int64_t n = 0; n < N; ++n) {
        const S dy = c.dout[0][at(r, n, N)];
        dh += dy * c.param[1][at(q, n, N)];
        c.dparam[1][at(q, n, N)] += h.value * dy;
      }
      const S dpre = dh * h.slope;
      for (int64_t k = 0; k < K; ++k) {
        c.din[0][at(r, k, K)] += dpre * c.param[0][at(k, q, R)];
        c.dparam[0][at(k, q, R)] += c.in[0][at(r, k, K)] * dpre;
      }
    }
    if (c.param.size() == 3)
      for (int64_t n = 0; n < N; ++n) c.dparam[2][static_cast<size_t>(n)] += c.dout[0][at(r, n, N)];
  }
}

}  // namespace rwkv::ref
