#pragma once
/// Reference of kLinear. source: spec rwkv7 0 (stored weight [out, in])

#include "kernels/ref/ref_call.h"

namespace rwkv::ref {

template <class S>
void linear_forward(RefCall<S>& c) {
  const int64_t rows = c.in_spec[0].rows(), N = c.param_spec[0][0], K = c.param_spec[0][1];
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t n = 0; n < N; ++n) {
      S sum{};
      for (int64_t k = 0; k < K; ++k) sum += c.in[0][at(r, k, K)] * c.param[0][at(n, k, K)];
      if (c.in.size() == 2) sum += c.in[1][at(r, n, N)];
      c.out[0][at(r, n, N)] = sum;
    }
}

template <class S>
void linear_backward(RefCall<S>& c) {
  const int64_t rows = c.in_spec[0].rows(), N = c.param_spec[0][0], K = c.param_spec[0][1];
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t n = 0; n < N; ++n) {
      const S dy = c.dout[0][at(r, n, N)];
      if (c.in.size() == 2) c.din[1][at(r, n, N)] += dy;
      for (int64_t k = 0; k < K; ++k) {
        c.din[0][at(r, k, K)] += dy * c.param[0][at(n, k, K)];
        c.dparam[0][at(n, k, K)] += dy * c.in[0][at(r, k, K)];
      }
    }
}

}  // namespace rwkv::ref
