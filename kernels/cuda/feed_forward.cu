// Two products with the squared ReLU between them. In bf16 the first product writes its result
// squared, and the one that gives the gradient of the hidden values multiplies by the derivative
// before it writes (common/gemm_tile.cuh): no pass of their own, and the values before the
// activation are never stored. That gradient takes the place of the hidden values. Shapes and types
// that those kernels do not take go through cuBLASLt and elementwise passes.

#include "kernels/core/cuda/cuda_state.h"
#include "kernels/core/gemm.h"
#include "kernels/cuda/common/gemm_tile.cuh"
#include "kernels/cuda/common/launch.cuh"

namespace rwkv::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
__global__ void __launch_bounds__(kThreads) square_kernel(T* x, int64_t n) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  const float v = to_float(x[i]), p = v < 0.0f ? 0.0f : v;  // this way round a NaN stays NaN
  from_float(x[i], p * p);
}

template <class T>
__global__ void __launch_bounds__(kThreads) slope_kernel(T* d, const T* hidden, int64_t n) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < n) from_float(d[i], to_float(d[i]) * (2.0f * sqrtf(to_float(hidden[i]))));
}

unsigned blocks_for(int64_t n) {
  return static_cast<unsigned>(ceil_div(n, kThreads));
}

/// Whole packs and aligned: the copy engine can move it.
bool movable(const TensorView& v) {
  return v.last() % 8 == 0 && reinterpret_cast<uintptr_t>(v.data) % 16 == 0;
}

/// The same for forward and backward of one node, unless addresses differ in alignment.
bool fused(const TensorView& rows, const OpCall& call) {
  return rows.spec.dtype == DType::kBF16 && movable(rows) && movable(call.param[0]) &&
         movable(call.param[1]) && movable(call.saved[0]) && call.param[1].dim(0) % 8 == 0;
}

double flops(int64_t m, int64_t n, int64_t k) {
  return 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
}

/// d = 2 sqrt(hidden) (dy W2), over `hidden`.
void hidden_gradient(Context& ctx, const OpCall& call) {
  const TensorView &w2 = call.param[1], &dy = call.dout[0];
  const int64_t rows = dy.rows(), n = w2.dim(0), hidden = w2.dim(1);
  const TraceScope trace(ctx.tracer(), "gemm", flops(rows, hidden, n));
  void* h = call.saved[0].data;
  RWKV_CUDA(tile::run<true>(dy.data, w2.data, h, h, rows, hidden, n, ctx.cuda().sm_count,
                            stream_of(ctx)));
}

/// Gradients of x and W1 from `d`, that of the hidden values before the activation, of `rows` rows
/// from `first`.
void first_gradients(Context& ctx, const OpCall& call, const void* d, int64_t first, int64_t rows,
                     Accum w1_mode) {
  const TensorView &x = call.in[0], &w1 = call.param[0];
  const int64_t k = w1.dim(1), hidden = w1.dim(0);
  const DType type = x.spec.dtype;
  const auto skipped = static_cast<size_t>(first * k) * dtype_bytes(type);
  if (call.din_mode[0] != Accum::kSkip)
    gemm(ctx, {.m = rows,
               .n = k,
               .k = hidden,
               .a = d,
               .b = w1.data,
               .c = static_cast<std::byte*>(call.din[0].data) + skipped,
               .lda = hidden,
               .ldb = k,
               .ldc = k,
               .mode = call.din_mode[0],
               .dtype = type,
               .out_dtype = type});
  if (w1_mode != Accum::kSkip)
    gemm(ctx, {.m = hidden,
               .n = k,
               .k = rows,
               .a = d,
               .b = static_cast<const std::byte*>(x.data) + skipped,
               .c = call.dparam[0].data,
               .lda = hidden,
               .ldb = k,
               .ldc = k,
               .trans_a = true,
               .mode = w1_mode,
               .dtype = type,
               .out_dtype = DType::kF32});
}

/// The same without the fused product: pieces of rows in the workspace.
void gradients_in_pieces(Context& ctx, const OpCall& call) {
  const TensorView &w2 = call.param[1], &dy = call.dout[0], &h = call.saved[0];
  const int64_t all = dy.rows(), n = w2.dim(0), hidden = w2.dim(1);
  Accum w1_mode = call.dparam_mode[0];
  by_type("feed_forward", dy, [&](auto zero) {
    using T = decltype(zero);
    auto* d = reinterpret_cast<T*>(ctx.workspace(feed_forward_bytes(all, hidden, dy.spec.dtype)));
    for (int64_t r = 0; r < all; r += kFeedForwardRows) {
      const int64_t rows = std::min(kFeedForwardRows, all - r);
      gemm(ctx, {.m = rows,
                 .n = hidden,
                 .k = n,
                 .a = dy.as<T>() + r * n,
                 .b = w2.data,
                 .c = d,
                 .lda = n,
                 .ldb = hidden,
                 .ldc = hidden,
                 .dtype = dy.spec.dtype,
                 .out_dtype = dy.spec.dtype});
      slope_kernel<<<blocks_for(rows * hidden), kThreads, 0, stream_of(ctx)>>>(
          d, h.as<T>() + r * hidden, rows * hidden);
      RWKV_LAUNCHED("feed_forward slope", stream_of(ctx));
      first_gradients(ctx, call, d, r, rows, w1_mode);
      if (w1_mode == Accum::kWrite) w1_mode = Accum::kAdd;
    }
  });
}

}  // namespace

void feed_forward_forward(Context& ctx, const OpCall& call) {
  const TensorView &x = call.in[0], &w1 = call.param[0], &w2 = call.param[1];
  const TensorView &h = call.saved[0], &y = call.out[0];
  const int64_t rows = x.rows(), k = w1.dim(1), hidden = w1.dim(0), n = w2.dim(0);
  const DType type = x.spec.dtype;
  if (fused(x, call)) {
    const TraceScope trace(ctx.tracer(), "gemm", flops(rows, hidden, k));
    RWKV_CUDA(tile::run<false>(x.data, w1.data, h.data, nullptr, rows, hidden, k,
                               ctx.cuda().sm_count, stream_of(ctx)));
  } else {
    gemm(ctx, {.m = rows,
               .n = hidden,
               .k = k,
               .a = x.data,
               .b = w1.data,
               .c = h.data,
               .lda = k,
               .ldb = k,
               .ldc = hidden,
               .trans_b = true,
               .dtype = type,
               .out_dtype = type});
    by_type("feed_forward", h, [&](auto zero) {
      using T = decltype(zero);
      square_kernel<<<blocks_for(h.numel()), kThreads, 0, stream_of(ctx)>>>(h.as<T>(), h.numel());
      RWKV_LAUNCHED("feed_forward activation", stream_of(ctx));
    });
  }
  const bool add = call.in.size() == 2;
  gemm(ctx, {.m = rows,
             .n = n,
             .k = hidden,
             .a = h.data,
             .b = w2.data,
             .c = y.data,
             .lda = hidden,
             .ldb = hidden,
             .ldc = n,
             .trans_b = true,
             .mode = add ? Accum::kAdd : Accum::kWrite,
             .dtype = type,
             .out_dtype = type,
             .addend = add ? call.in[1].data : nullptr});
}

void feed_forward_backward(Context& ctx, const OpCall& call) {
  const TensorView &w2 = call.param[1], &dy = call.dout[0], &h = call.saved[0];
  const int64_t rows = dy.rows(), n = w2.dim(0), hidden = w2.dim(1);
  if (call.dparam_mode[1] != Accum::kSkip)
    gemm(ctx, {.m = n,
               .n = hidden,
               .k = rows,
               .a = dy.data,
               .b = h.data,
               .c = call.dparam[1].data,
               .lda = n,
               .ldb = hidden,
               .ldc = hidden,
               .trans_a = true,
               .mode = call.dparam_mode[1],
               .dtype = dy.spec.dtype,
               .out_dtype = DType::kF32});
  if (call.din_mode[0] != Accum::kSkip || call.dparam_mode[0] != Accum::kSkip) {
    if (fused(dy, call)) {
      hidden_gradient(ctx, call);
      first_gradients(ctx, call, h.data, 0, rows, call.dparam_mode[0]);
    } else {
      gradients_in_pieces(ctx, call);
    }
  }
  if (call.din.size() < 2 || call.din_mode[1] == Accum::kSkip) return;
  // Rarely reached: planned steps share the gradient's memory.
  const TensorView din[2] = {call.din[1], {}};
  const Accum modes[2] = {call.din_mode[1], Accum::kSkip};
  add_backward(ctx, {.dout = call.dout, .din = din, .din_mode = modes});
}

}  // namespace rwkv::cuda
