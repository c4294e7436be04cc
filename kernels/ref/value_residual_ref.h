#pragma once
/// Reference of kValueResidual. source: spec rwkv7 2.2, 3.3

#include "kernels/ref/ref_call.h"

namespace rwkv::ref {

template <class S>
void value_residual_forward(RefCall<S>& c) {
  for (size_t i = 0; i < c.out[0].size(); ++i) {
    const S nu = logistic(c.in[2][i]);
    c.out[0][i] = c.in[0][i] + (c.in[1][i] - c.in[0][i]) * nu;
  }
}

template <class S>
void value_residual_backward(RefCall<S>& c) {
  for (size_t i = 0; i < c.dout[0].size(); ++i) {
    const S nu = logistic(c.in[2][i]), dv = c.dout[0][i];
    c.din[0][i] = dv * (1.0 - nu);
    c.din[1][i] = dv * nu;
    c.din[2][i] = dv * (c.in[1][i] - c.in[0][i]) * nu * (1.0 - nu);
  }
}

}  // namespace rwkv::ref
