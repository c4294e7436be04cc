// The linear layer is three matrix products (kernels/core/cuda/gemm_cublaslt.cpp).

#include "kernels/ops/linear.h"
#include "kernels/core/gemm.h"
#include "kernels/cuda/kernels.h"

namespace rwkv::cuda {

void linear_forward(Context& ctx, const OpCall& call) {
  RWKV_ASSERT(call.attrs == nullptr || !call.attr<LinearAttrs>().transposed,
              "linear: transposed weights are for the CPU");
  const TensorView &x = call.in[0], &w = call.param[0], &y = call.out[0];
  const int64_t n = w.dim(0), k = w.dim(1);
  gemm(ctx, {.m = x.rows(),
             .n = n,
             .k = k,
             .a = x.data,
             .b = w.data,
             .c = y.data,
             .lda = k,
             .ldb = k,
             .ldc = n,
             .trans_b = true,
             .mode = call.in.size() == 2 ? Accum::kAdd : Accum::kWrite,
             .dtype = x.spec.dtype,
             .out_dtype = y.spec.dtype,
             .addend = call.in.size() == 2 ? call.in[1].data : nullptr});
}

void linear_backward(Context& ctx, const OpCall& call) {
  const TensorView &x = call.in[0], &w = call.param[0], &dy = call.dout[0];
  const int64_t rows = dy.rows(), n = w.dim(0), k = w.dim(1);
  RWKV_CHECK(dy.spec.dtype == x.spec.dtype, DTypeError, "linear backward: dy is ",
             to_string(dy.spec), ", x is ", to_string(x.spec), ", expected one type for both");
  if (call.din_mode[0] != Accum::kSkip)
    gemm(ctx, {.m = rows,
               .n = k,
               .k = n,
               .a = dy.data,
               .b = w.data,
               .c = call.din[0].data,
               .lda = n,
               .ldb = k,
               .ldc = k,
               .mode = call.din_mode[0],
               .dtype = dy.spec.dtype,
               .out_dtype = dy.spec.dtype});
  if (call.dparam_mode[0] != Accum::kSkip)
    gemm(ctx, {.m = n,
               .n = k,
               .k = rows,
               .a = dy.data,
               .b = x.data,
               .c = call.dparam[0].data,
               .lda = n,
               .ldb = k,
               .ldc = k,
               .trans_a = true,
               .mode = call.dparam_mode[0],
               .dtype = dy.spec.dtype,
               .out_dtype = DType::kF32});
  if (call.din.size() < 2 || call.din_mode[1] == Accum::kSkip) return;
  // Rarely reached: planned steps share the gradient's memory.
  const TensorView din[2] = {call.din[1], {}};
  const Accum modes[2] = {call.din_mode[1], Accum::kSkip};
  add_backward(ctx, {.dout = call.dout, .din = din, .din_mode = modes});
}

}  // namespace rwkv::cuda
