// Two products with an activation between them, in place on the saved hidden values. The backward
// keeps the gradient of the hidden values (rows, R) in the workspace.

#include <cstring>

#include "kernels/core/gemm.h"
#include "kernels/core/packed_rows.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/math.h"
#include "kernels/cpu/rows.h"
#include "kernels/ops/low_rank.h"

namespace rwkv::cpu {
namespace {

void activate(Activation inner, float* h, int64_t n) {
  if (inner == Activation::kNone) return;
  parallel_elements(n, [&](int64_t begin, int64_t end) {
    if (inner == Activation::kTanh)
      for (int64_t i = begin; i < end; ++i) h[i] = tanh_f(h[i]);
    else
      for (int64_t i = begin; i < end; ++i) h[i] = sigmoid(h[i]);
  });
}

/// dh *= derivative of the activation, written in terms of its value h.
void activate_backward(Activation inner, const float* h, float* dh, int64_t n) {
  if (inner == Activation::kNone) return;
  parallel_elements(n, [&](int64_t begin, int64_t end) {
    if (inner == Activation::kTanh)
      for (int64_t i = begin; i < end; ++i) dh[i] *= (1.0f - h[i]) * (1.0f + h[i]);
    else
      for (int64_t i = begin; i < end; ++i) dh[i] *= h[i] * (1.0f - h[i]);
  });
}

}  // namespace

void low_rank_forward(Context& ctx, const OpCall& call) {
  const TensorView &w1 = call.param[0], &w2 = call.param[1];
  const int64_t rows = call.in[0].rows(), rank = packed_columns(w1.spec),
                n = packed_columns(w2.spec);
  float* hidden = call.saved[0].f32();
  float* y = call.out[0].f32();
  gemm_nn(ctx, rows, call.in[0].f32(), w1, hidden, Accum::kWrite);
  activate(call.attr<LowRankAttrs>().inner, hidden, rows * rank);
  const bool biased = call.param.size() == 3;
  if (biased) {
    const float* bias = call.param[2].f32();
    parallel_for(rows, 64, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r)
        std::memcpy(y + r * n, bias, static_cast<size_t>(n) * sizeof(float));
    });
  }
  gemm_nn(ctx, rows, hidden, w2, y, biased ? Accum::kAdd : Accum::kWrite);
}

void low_rank_backward(Context& ctx, const OpCall& call) {
  const TensorView &w1 = call.param[0], &w2 = call.param[1];
  const int64_t rows = call.dout[0].rows(), k = w1.dim(0), rank = w1.dim(1), n = w2.dim(1);
  const float* dy = call.dout[0].f32();
  const float* hidden = call.saved[0].f32();
  const bool biased = call.param.size() == 3;
  const size_t hidden_bytes = align_up(static_cast<size_t>(rows * rank) * sizeof(float));
  std::byte* work = ctx.workspace(hidden_bytes + (biased ? partial_bytes(rows, n) : 0));
  auto* dhidden = reinterpret_cast<float*>(work);

  gemm_nt(ctx, rows, rank, n, dy, w2.f32(), dhidden, Accum::kWrite);
  activate_backward(call.attr<LowRankAttrs>().inner, hidden, dhidden, rows * rank);
  gemm_nt(ctx, rows, k, rank, dhidden, w1.f32(), at(call.din[0], 0), call.din_mode[0]);
  gemm_tn(ctx, k, rank, rows, call.in[0].f32(), dhidden, at(call.dparam[0], 0),
          call.dparam_mode[0]);
  gemm_tn(ctx, rank, n, rows, hidden, dy, at(call.dparam[1], 0), call.dparam_mode[1]);
  if (biased)
    column_sums(dy, rows, n, reinterpret_cast<float*>(work + hidden_bytes), at(call.dparam[2], 0),
                call.dparam_mode[2]);
}

}  // namespace rwkv::cpu
