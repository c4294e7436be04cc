#pragma once
/// Reference of kLastToken.

#include "kernels/ref/ref_call.h"

namespace rwkv::ref {

template <class S>
void last_token_forward(RefCall<S>& c) {
  const int64_t B = c.in_spec[0][0], T = c.in_spec[0][1], C = c.in_spec[0][2];
  for (int64_t b = 0; b < B; ++b)
    for (int64_t i = 0; i < C; ++i) c.out[0][at(b, i, C)] = c.in[0][at((b + 1) * T - 1, i, C)];
}

template <class S>
void last_token_backward(RefCall<S>& c) {
  const int64_t B = c.in_spec[0][0], T = c.in_spec[0][1], C = c.in_spec[0][2];
  for (int64_t b = 0; b < B; ++b)
    for (int64_t i = 0; i < C; ++i) c.din[0][at((b + 1) * T - 1, i, C)] = c.dout[0][at(b, i, C)];
}

}  // namespace rwkv::ref
