#pragma once
/// Reference of kFeedForward. source: spec rwkv7 2.5, 3.2

#include "kernels/ref/ref_call.h"

namespace rwkv::ref {

/// max(x W1^T, 0)[row, column]
template <class S>
S feed_forward_relu(const RefCall<S>& c, int64_t row, int64_t column) {
  const int64_t K = c.param_spec[0][1];
  S sum{};
  for (int64_t k = 0; k < K; ++k) sum += c.in[0][at(row, k, K)] * c.param[0][at(column, k, K)];
  return real_part(sum) > 0 ? sum : S{};
}

template <class S>
void feed_forward_forward(RefCall<S>& c) {
  const int64_t H = c.param_spec[0][0], N = c.param_spec[1][0];
  for (int64_t r = 0; r < c.in_spec[0].rows(); ++r) {
    for (int64_t n = 0; n < N; ++n)
      c.out[0][at(r, n, N)] = c.in.size() == 2 ? c.in[1][at(r, n, N)] : S{};
    for (int64_t h = 0; h < H; ++h) {
      const S p = feed_forward_relu(c, r, h);
      for (int64_t n = 0; n < N; ++n) c.out[0][at(r, n, N)] += p * p * c.param[1][at(n, h, H)];
    }
  }
}

template <class S>
void feed_forward_backward(RefCall<S>& c) {
  const int64_t K = c.param_spec[0][1], H = c.param_spec[0][0], N = c.param_spec[1][0];
  for (int64_t r = 0; r < c.in_spec[0].rows(); ++r) {
    for (int64_t h = 0; h < H; ++h) {
      const S p = feed_forward_relu(c, r, h);
      S dh{};
      for (int64_t n = 0; n < N; ++n) {
        const S dy = c.dout[0][at(r, n, N)];
        dh += dy * c.param[1][at(n, h, H)];
        c.dparam[1][at(n, h, H)] += dy * p * p;
      }
      const S dp = dh * 2.0 * p;
      for (int64_t k = 0; k < K; ++k) {
        c.din[0][at(r, k, K)] += dp * c.param[0][at(h, k, K)];
        c.dparam[0][at(h, k, K)] += dp * c.in[0][at(r, k, K)];
      }
    }
    if (c.in.size() == 2)
      for (int64_t n = 0; n < N; ++n) c.din[1][at(r, n, N)] += c.dout[0][at(r, n, N)];
  }
}

}  // namespace rwkv::ref
