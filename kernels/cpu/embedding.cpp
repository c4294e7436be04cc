// Row gather and its transpose. Forward: threads share rows. Backward: threads share blocks of
// channels, so that the rows of one token are always added in (b, t) order.

#include <cstring>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/rows.h"

namespace rwkv::cpu {

void embedding_forward(Context&, const OpCall& call) {
  const int32_t* tokens = call.in[0].as<int32_t>();
  const float* weight = call.param[0].f32();
  float* y = call.out[0].f32();
  const int64_t rows = call.in[0].numel(), vocab = call.param[0].dim(0), c = call.param[0].dim(1);
  for (int64_t r = 0; r < rows; ++r)
    RWKV_CHECK(tokens[r] >= 0 && tokens[r] < vocab, ShapeError, "op embedding, tokens: found id ",
               tokens[r], " at flat position ", r, ", expected ids in [0, ", vocab,
               "); do data and model use the same tokenizer?");
  parallel_for(rows, 64, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      std::memcpy(y + r * c, weight + tokens[r] * c, static_cast<size_t>(c) * sizeof(float));
  });
}

void embedding_backward(Context&, const OpCall& call) {
  const Accum mode = call.dparam_mode[0];
  if (mode == Accum::kSkip) return;
  const int32_t* tokens = call.in[0].as<int32_t>();
  const float* dy = call.dout[0].f32();
  float* dweight = call.dparam[0].f32();
  const int64_t rows = call.in[0].numel(), c = call.dparam[0].dim(1);
  if (mode == Accum::kWrite) {
    parallel_elements(call.dparam[0].numel(), [&](int64_t begin, int64_t end) {
      std::memset(dweight + begin, 0, static_cast<size_t>(end - begin) * sizeof(float));
    });
  }
  parallel_for(c, 64, [&](int64_t begin, int64_t end) {
    for (int64_t r = 0; r < rows; ++r) {
      float* __restrict dst = dweight + tokens[r] * c;
      const float* __restrict src = dy + r * c;
      for (int64_t j = begin; j < end; ++j) dst[j] += src[j];
    }
  });
}

}  // namespace rwkv::cpu
