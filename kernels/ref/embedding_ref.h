#pragma once
/// Reference of kEmbedding. source: spec rwkv7 2.1

#include "kernels/ref/ref_call.h"

namespace rwkv::ref {

template <class S>
void embedding_forward(RefCall<S>& c) {
  const int64_t width = c.param_spec[0][1];
  for (size_t n = 0; n < c.ids[0].size(); ++n)
    for (int64_t j = 0; j < width; ++j)
      c.out[0][at(static_cast<int64_t>(n), j, width)] = c.param[0][at(c.ids[0][n], j, width)];
}

template <class S>
void embedding_backward(RefCall<S>& c) {
  const int64_t width = c.param_spec[0][1];
  for (size_t n = 0; n < c.ids[0].size(); ++n)
    for (int64_t j = 0; j < width; ++j)
      c.dparam[0][at(c.ids[0][n], j, width)] += c.dout[0][at(static_cast<int64_t>(n), j, width)];
}

}  // namespace rwkv::ref
