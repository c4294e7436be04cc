#include "kernels/cpu/last_token.h"

#include <cstring>

namespace rwkv::cpu {

void last_token_forward(Context&, const OpCall& call) {
  const TensorView &x = call.in[0], &y = call.out[0];
  const int64_t batch = x.dim(0), tokens = x.dim(1), c = x.dim(2);
  for (int64_t b = 0; b < batch; ++b)
    std::memcpy(y.f32() + b * c, x.f32() + ((b + 1) * tokens - 1) * c,
                static_cast<size_t>(c) * sizeof(float));
}

void last_token_backward(Context&, const OpCall& call) {
  if (call.din_mode[0] == Accum::kSkip) return;
  const TensorView &dx = call.din[0], &dy = call.dout[0];
  const int64_t batch = dx.dim(0), tokens = dx.dim(1), c = dx.dim(2);
  if (call.din_mode[0] == Accum::kWrite) std::memset(dx.data, 0, dx.bytes());
  for (int64_t b = 0; b < batch; ++b) {
    float* to = dx.f32() + ((b + 1) * tokens - 1) * c;
    const float* from = dy.f32() + b * c;
    for (int64_t i = 0; i < c; ++i) to[i] += from[i];
  }
}

}  // namespace rwkv::cpu
