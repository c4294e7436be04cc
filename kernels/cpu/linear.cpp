// The linear layer is three matrix products (kernels/core/gemm_cpu.cpp).

#include <algorithm>

#include "kernels/core/gemm.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/rows.h"
#include "kernels/ops/linear.h"

namespace rwkv::cpu {

void linear_forward(Context& ctx, const OpCall& call) {
  const TensorView& w = call.param[0];
  const bool add = call.in.size() == 2;
  if (add) {
    const float* residual = call.in[1].f32();
    float* y = call.out[0].f32();
    parallel_elements(call.out[0].numel(), [&](int64_t begin, int64_t end) {
      std::copy(residual + begin, residual + end, y + begin);
    });
  }
  const bool transposed = call.attrs != nullptr && call.attr<LinearAttrs>().transposed;
  const float* x = call.in[0].f32();
  const int64_t rows = call.in[0].rows();
  const Accum mode = add ? Accum::kAdd : Accum::kWrite;
  if (transposed)
    gemm_nn(ctx, rows, x, w, call.out[0].f32(), mode);
  else
    gemm_nt(ctx, rows, x, w, call.out[0].f32(), mode);
}

void linear_backward(Context& ctx, const OpCall& call) {
  RWKV_ASSERT(call.attrs == nullptr || !call.attr<LinearAttrs>().transposed, "linear: backward");
  const TensorView& w = call.param[0];
  const int64_t rows = call.dout[0].rows(), n = w.dim(0), k = w.dim(1);
  const float* dy = call.dout[0].f32();
  gemm_nn(ctx, rows, k, n, dy, w.f32(), at(call.din[0], 0), call.din_mode[0]);
  gemm_tn(ctx, n, k, rows, dy, call.in[0].f32(), at(call.dparam[0], 0), call.dparam_mode[0]);
  if (call.din.size() < 2 || call.din_mode[1] == Accum::kSkip) return;
  float* dresidual = call.din[1].f32();
  parallel_elements(call.dout[0].numel(), [&](int64_t begin, int64_t end) {
    emit(dresidual + begin, dy + begin, end - begin, call.din_mode[1]);
  });
}

}  // namespace rwkv::cpu
