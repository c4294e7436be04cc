// Two products with an activation between them, in place on the saved hidden values.
//
// The bias costs no pass of its own: the hidden values have eight more columns, of which two are 1
// (eight keep rows 16-byte aligned), and the second product runs with a copy of W2 below which the
// bias stands as two rows, its value in the element type and what that rounded away (for bf16 the
// sum keeps 16 bits of it; in f32 the second is zero). In the backward the same columns of ones
// make the product for dW2 give the bias gradient, the sum over rows of dy, as one more row.
// The activation kernels touch (rows, R): a few MB. Limited by the products' reads and writes.

#include "kernels/core/gemm.h"
#include "kernels/cuda/common/launch.cuh"
#include "kernels/cuda/common/math.cuh"
#include "kernels/ops/low_rank.h"

namespace rwkv::cuda {
namespace {

constexpr int kThreads = 256;

/// Grid: x over columns, y over rows; 32 x 8 threads.
template <class T>
__global__ void activate_kernel(T* hidden, int64_t rows, int rank, int width, Activation inner) {
  const int column = static_cast<int>(blockIdx.x * 32 + threadIdx.x);
  if (column >= width) return;
  const int64_t step = static_cast<int64_t>(gridDim.y) * 8;
  for (int64_t row = static_cast<int64_t>(blockIdx.y) * 8 + threadIdx.y; row < rows; row += step) {
    T* p = hidden + row * width + column;
    float h = column < rank + 2 ? 1.0f : 0.0f;
    if (column < rank) {
      h = to_float(*p);
      if (inner == Activation::kTanh) h = tanhf(h);
      if (inner == Activation::kSigmoid) h = logistic<float>(h).value;
    }
    from_float(*p, h);
  }
}

/// dh *= derivative of the activation, written in terms of its value h.
template <class T>
__global__ void activate_backward_kernel(const T* hidden, T* dh, int64_t rows, int rank, int width,
                                         Activation inner) {
  const int column = static_cast<int>(blockIdx.x * 32 + threadIdx.x);
  if (column >= rank) return;
  const int64_t step = static_cast<int64_t>(gridDim.y) * 8;
  for (int64_t row = static_cast<int64_t>(blockIdx.y) * 8 + threadIdx.y; row < rows; row += step) {
    const float h = to_float(hidden[row * width + column]);
    const float slope = inner == Activation::kTanh ? (1.0f - h) * (1.0f + h) : h * (1.0f - h);
    T* p = dh + row * rank + column;
    from_float(*p, to_float(*p) * slope);
  }
}

dim3 activation_grid(int64_t rows, int64_t columns) {
  return dim3(static_cast<unsigned>(ceil_div(columns, 32)),
              static_cast<unsigned>(std::min<int64_t>(ceil_div(rows, 8), 1024)));
}

/// out = W2 (rank, n) and below it the bias in two rows, then zeros.
template <class T>
__global__ void extend_kernel(const T* w2, const float* bias, T* out, int rank, int width, int n) {
  const int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (i >= width * n) return;
  const int row = i / n;
  if (row < rank) {
    out[i] = w2[i];
    return;
  }
  float x = 0.0f;
  if (row < rank + 2) {
    const float b = bias[i % n];
    T rounded;
    from_float(rounded, b);
    x = row == rank ? to_float(rounded) : b - to_float(rounded);
  }
  from_float(out[i], x);
}

/// Takes the product (rank + 1, n) apart.
__global__ void split_kernel(const float* product, Grad<float> dw2, Grad<float> dbias, int rank,
                             int n) {
  const int i = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  if (i >= (rank + 1) * n) return;
  const float x[1] = {product[i]};
  if (i < rank * n)
    emit<1>(dw2, i, x);
  else
    emit<1>(dbias, i - rank * n, x);
}

unsigned blocks_for(int64_t n) {
  return static_cast<unsigned>(ceil_div(n, kThreads));
}

}  // namespace

void low_rank_forward(Context& ctx, const OpCall& call) {
  const TensorView &x = call.in[0], &w1 = call.param[0], &w2 = call.param[1];
  const TensorView &hidden = call.saved[0], &y = call.out[0];
  const int64_t rows = x.rows(), k = w1.dim(0), rank = w1.dim(1), n = w2.dim(1);
  const bool biased = call.param.size() == 3;
  const int64_t width = hidden.last();
  const DType type = x.spec.dtype;
  const cudaStream_t stream = stream_of(ctx);
  gemm(ctx, {.m = rows,
             .n = rank,
             .k = k,
             .a = x.data,
             .b = w1.data,
             .c = hidden.data,
             .lda = k,
             .ldb = rank,
             .ldc = width,
             .dtype = type,
             .out_dtype = type});
  const void* second = w2.data;
  by_type("low_rank", x, [&](auto zero) {
    using T = decltype(zero);
    const Activation inner = call.attr<LowRankAttrs>().inner;
    if (inner != Activation::kNone || biased) {
      activate_kernel<<<activation_grid(rows, width), dim3(32, 8), 0, stream>>>(
          hidden.as<T>(), rows, static_cast<int>(rank), static_cast<int>(width), inner);
      RWKV_LAUNCHED("low_rank activation", stream);
    }
    if (biased) {
      auto* extended =
          reinterpret_cast<T*>(ctx.workspace(low_rank_bytes(rows, rank, n, type, true)));
      extend_kernel<<<blocks_for(width * n), kThreads, 0, stream>>>(
          w2.as<T>(), call.param[2].f32(), extended, static_cast<int>(rank),
          static_cast<int>(width), static_cast<int>(n));
      RWKV_LAUNCHED("low_rank bias", stream);
      second = extended;
    }
  });
  gemm(ctx, {.m = rows,
             .n = n,
             .k = width,
             .a = hidden.data,
             .b = second,
             .c = y.data,
             .lda = width,
             .ldb = n,
             .ldc = n,
             .dtype = type,
             .out_dtype = type});
}

void low_rank_backward(Context& ctx, const OpCall& call) {
  const TensorView &x = call.in[0], &w1 = call.param[0], &w2 = call.param[1], &dy = call.dout[0];
  const TensorView& hidden = call.saved[0];
  const int64_t rows = dy.rows(), k = w1.dim(0), rank = w1.dim(1), n = w2.dim(1);
  const bool biased = call.param.size() == 3;
  const int64_t width = hidden.last();
  const DType type = dy.spec.dtype;
  const cudaStream_t stream = stream_of(ctx);
  std::byte* work = ctx.workspace(low_rank_bytes(rows, rank, n, type, biased));

  // First the gradients of W2 and bias, then those that go through the hidden values: the
  // workspace serves both in turn.
  const Accum bias_mode = biased ? call.dparam_mode[2] : Accum::kSkip;
  GemmCall w2_product{.m = rank,
                      .n = n,
                      .k = rows,
                      .a = hidden.data,
                      .b = dy.data,
                      .c = nullptr,
                      .lda = width,
                      .ldb = n,
                      .ldc = n,
                      .trans_a = true,
                      .dtype = type,
                      .out_dtype = DType::kF32};
  if (biased && (bias_mode != Accum::kSkip || call.dparam_mode[1] != Accum::kSkip)) {
    w2_product.m = rank + 1;
    w2_product.c = work;
    gemm(ctx, w2_product);
    split_kernel<<<blocks_for((rank + 1) * n), kThreads, 0, stream>>>(
        reinterpret_cast<const float*>(work), grad_of<float>(call.dparam[1], call.dparam_mode[1]),
        grad_of<float>(call.dparam[2], bias_mode), static_cast<int>(rank), static_cast<int>(n));
    RWKV_LAUNCHED("low_rank bias gradient", stream);
  } else if (!biased && call.dparam_mode[1] != Accum::kSkip) {
    w2_product.c = call.dparam[1].data;
    w2_product.mode = call.dparam_mode[1];
    gemm(ctx, w2_product);
  }
  if (call.din_mode[0] == Accum::kSkip && call.dparam_mode[0] == Accum::kSkip) return;
  gemm(ctx, {.m = rows,
             .n = rank,
             .k = n,
             .a = dy.data,
             .b = w2.data,
             .c = work,
             .lda = n,
             .ldb = n,
             .ldc = rank,
             .trans_b = true,
             .dtype = type,
             .out_dtype = type});
  const Activation inner = call.attr<LowRankAttrs>().inner;
  if (inner != Activation::kNone)
    by_type("low_rank", dy, [&](auto zero) {
      using T = decltype(zero);
      activate_backward_kernel<<<activation_grid(rows, rank), dim3(32, 8), 0, stream>>>(
          hidden.as<T>(), reinterpret_cast<T*>(work), rows, static_cast<int>(rank),
          static_cast<int>(width), inner);
      RWKV_LAUNCHED("low_rank activation backward", stream);
    });
  if (call.din_mode[0] != Accum::kSkip)
    gemm(ctx, {.m = rows,
               .n = k,
               .k = rank,
               .a = work,
               .b = w1.data,
               .c = call.din[0].data,
               .lda = rank,
               .ldb = rank,
               .ldc = k,
               .trans_b = true,
               .mode = call.din_mode[0],
               .dtype = type,
               .out_dtype = type});
  if (call.dparam_mode[0] != Accum::kSkip)
    gemm(ctx, {.m = k,
               .n = rank,
               .k = rows,
               .a = x.data,
               .b = work,
               .c = call.dparam[0].data,
               .lda = k,
               .ldb = rank,
               .ldc = rank,
               .trans_a = true,
               .mode = call.dparam_mode[0],
               .dtype = type,
               .out_dtype = DType::kF32});
}

}  // namespace rwkv::cuda
