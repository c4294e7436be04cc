#pragma once
/// References of kAdd, kSquaredRelu and kGate. source: spec rwkv7 2.1, 2.5, 3.2; rwkv4 2, 4.4

#include "kernels/ref/ref_call.h"

namespace rwkv::ref {

template <class S>
void add_forward(RefCall<S>& c) {
  for (size_t i = 0; i < c.out[0].size(); ++i) c.out[0][i] = c.in[0][i] + c.in[1][i];
}

template <class S>
void add_backward(RefCall<S>& c) {
  c.din[0] = c.dout[0];
  c.din[1] = c.dout[0];
}

template <class S>
void squared_relu_forward(RefCall<S>& c) {
  for (size_t i = 0; i < c.out[0].size(); ++i)
    c.out[0][i] = real_part(c.in[0][i]) > 0.0 ? c.in[0][i] * c.in[0][i] : S{};
}

template <class S>
void squared_relu_backward(RefCall<S>& c) {
  for (size_t i = 0; i < c.din[0].size(); ++i)
    c.din[0][i] = real_part(c.in[0][i]) > 0.0 ? 2.0 * c.in[0][i] * c.dout[0][i] : S{};
}

template <class S>
void gate_forward(RefCall<S>& c) {
  for (size_t i = 0; i < c.out[0].size(); ++i) {
    c.out[0][i] = logistic(c.in[0][i]) * c.in[1][i];
    if (c.in.size() == 3) c.out[0][i] += c.in[2][i];
  }
}

template <class S>
void gate_backward(RefCall<S>& c) {
  for (size_t i = 0; i < c.dout[0].size(); ++i) {
    const S gate = logistic(c.in[0][i]);
    c.din[0][i] = c.dout[0][i] * c.in[1][i] * gate * (1.0 - gate);
    c.din[1][i] = c.dout[0][i] * gate;
  }
  if (c.in.size() == 3) c.din[2] = c.dout[0];
}

}  // namespace rwkv::ref
