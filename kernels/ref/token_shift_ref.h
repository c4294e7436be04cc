#pragma once
/// Reference of kTokenShift. source: spec rwkv7 2.2, 2.5, 3.2; spec rwkv4 2

#include "kernels/ops/token_shift.h"
#include "kernels/ref/ref_call.h"

namespace rwkv::ref {

template <class S>
void token_shift_forward(RefCall<S>& c) {
  const int64_t B = c.in_spec[0][0], T = c.in_spec[0][1], C = c.in_spec[0][2];
  const bool current = c.template attr<TokenShiftAttrs>().weights_current;
  const bool state = c.in.size() == 2;
  for (int64_t b = 0; b < B; ++b)
    for (int64_t t = 0; t < T; ++t)
      for (int64_t i = 0; i < C; ++i) {
        const size_t o = at(b * T + t, i, C);
        const S h = c.in[0][o];
        S p{};
        if (t > 0)
          p = c.in[0][at(b * T + t - 1, i, C)];
        else if (state)
          p = c.in[1][at(b, i, C)];
        for (size_t m = 0; m < c.param.size(); ++m) {
          const S mix = c.param[m][static_cast<size_t>(i)];
          c.out[m][o] = current ? h * mix + p * (1.0 - mix) : h * (1.0 - mix) + p * mix;
        }
        if (state && t == T - 1) c.out[c.param.size()][at(b, i, C)] = h;
      }
}

template <class S>
void token_shift_backward(RefCall<S>& c) {
  const int64_t B = c.in_spec[0][0], T = c.in_spec[0][1], C = c.in_spec[0][2];
  const bool current = c.template attr<TokenShiftAttrs>().weights_current;
  const bool state = c.in.size() == 2;
  for (int64_t b = 0; b < B; ++b)
    for (int64_t t = 0; t < T; ++t)
      for (int64_t i = 0; i < C; ++i) {
        const size_t o = at(b * T + t, i, C);
        for (size_t m = 0; m < c.param.size(); ++m) {
          const S mix = c.param[m][static_cast<size_t>(i)], dy = c.dout[m][o];
          const S of_h = current ? mix : 1.0 - mix, of_p = 1.0 - of_h;
          S p{};
          c.din[0][o] += dy * of_h;
          if (t > 0) {
            p = c.in[0][at(b * T + t - 1, i, C)];
            c.din[0][at(b * T + t - 1, i, C)] += dy * of_p;
          } else if (state) {
            p = c.in[1][at(b, i, C)];
            c.din[1][at(b, i, C)] += dy * of_p;
          }
          c.dparam[m][static_cast<size_t>(i)] +=
              current ? dy * (c.in[0][o] - p) : dy * (p - c.in[0][o]);
        }
        if (state && t == T - 1) c.din[0][o] += c.dout[c.param.size()][at(b, i, C)];
      }
}

}  // namespace rwkv::ref
