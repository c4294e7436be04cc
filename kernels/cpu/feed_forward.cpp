// Two products with the squared ReLU between them, in place on the saved hidden values. The
// backward goes through the rows in pieces, so that their gradients need little workspace.

#include <algorithm>
#include <cmath>

#include "kernels/core/gemm.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/rows.h"
#include "kernels/cuda/workspace.h"

namespace rwkv::cpu {

void feed_forward_forward(Context& ctx, const OpCall& call) {
  const TensorView &w1 = call.param[0], &w2 = call.param[1];
  const int64_t rows = call.in[0].rows(), k = w1.dim(1), hidden = w1.dim(0), n = w2.dim(0);
  float* h = call.saved[0].f32();
  float* y = call.out[0].f32();
  gemm_nt(ctx, rows, hidden, k, call.in[0].f32(), w1.f32(), h, Accum::kWrite);
  parallel_elements(rows * hidden, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float p = h[i] < 0.0f ? 0.0f : h[i];  // this way round a NaN stays NaN
      h[i] = p * p;
    }
  });
  const bool add = call.in.size() == 2;
  if (add) {
    const float* residual = call.in[1].f32();
    parallel_elements(rows * n, [&](int64_t begin, int64_t end) {
      std::copy(residual + begin, residual + end, y + begin);
    });
  }
  gemm_nt(ctx, rows, n, hidden, h, w2.f32(), y, add ? Accum::kAdd : Accum::kWrite);
}

void feed_forward_backward(Context& ctx, const OpCall& call) {
  const TensorView &w1 = call.param[0], &w2 = call.param[1];
  const int64_t rows = call.dout[0].rows(), k = w1.dim(1), hidden = w1.dim(0), n = w2.dim(0);
  const float* dy = call.dout[0].f32();
  const float* h = call.saved[0].f32();
  gemm_tn(ctx, n, hidden, rows, dy, h, at(call.dparam[1], 0), call.dparam_mode[1]);
  if (call.din_mode[0] != Accum::kSkip || call.dparam_mode[0] != Accum::kSkip) {
    auto* dp = reinterpret_cast<float*>(
        ctx.workspace(cuda::feed_forward_bytes(rows, hidden, DType::kF32)));
    Accum w1_mode = call.dparam_mode[0];
    for (int64_t r = 0; r < rows; r += cuda::kFeedForwardRows) {
      const int64_t m = std::min(cuda::kFeedForwardRows, rows - r);
      gemm_nn(ctx, m, hidden, n, dy + r * n, w2.f32(), dp, Accum::kWrite);
      const float* piece = h + r * hidden;
      parallel_elements(m * hidden, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) dp[i] *= 2.0f * std::sqrt(piece[i]);
      });
      gemm_nn(ctx, m, k, hidden, dp, w1.f32(), at(call.din[0], r * k), call.din_mode[0]);
      gemm_tn(ctx, hidden, k, m, dp, call.in[0].f32() + r * k, at(call.dparam[0], 0), w1_mode);
      if (w1_mode == Accum::kWrite) w1_mode = Accum::kAdd;
    }
  }
  if (call.din.size() < 2 || call.din_mode[1] == Accum::kSkip) return;
  float* dresidual = call.din[1].f32();
  parallel_elements(rows * n, [&](int64_t begin, int64_t end) {
    emit(dresidual + begin, dy + begin, end - begin, call.din_mode[1]);
  });
}

}  // namespace rwkv::cpu
