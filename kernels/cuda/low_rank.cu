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

/// N neighbouring columns of one row per thread.
template <class T, int N>
__global__ void activate_kernel(T* hidden, int64_t total, int rank, int width, Activation inner) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * N;
  if (i >= total) return;
  const int column = static_cast<int>(i % width);
  float h[N];
  load<N>(hidden + i, h);
#pragma unroll
  for (int e = 0; e < N; ++e) {
    if (column + e >= rank)
      h[e] = column + e < rank + 2 ? 1.0f : 0.0f;
    else if (inner == Activation::kTanh)
      h[e] = tanhf(h[e]);
    else if (inner == Activation::kSigmoid)
      h[e] = logistic<T>(h[e]).value;
  }
  store<N>(hidden + i, h);
}

/// dh *= derivative of the activation, written in terms of its value h.
template <class T, int N>
__global__ void activate_backward_kernel(const T* hidden, T* dh, int64_t total, int rank, int width,
                                         Activation inner) {
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * N;
  if (i >= total) return;
  const int64_t row = i / rank;
  float h[N], d[N];
  load<N>(hidden + row * width + (i - row * rank), h);
  load<N>(dh + i, d);
#pragma unroll
  for (int e = 0; e < N; ++e)
    d[e] *= inner == Activation::kTanh ? (1.0f - h[e]) * (1.0f + h[e]) : h[e] * (1.0f - h[e]);
  store<N>(dh + i, d);
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

/// Takes the first rank + 1 rows of the product apart.
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
      const auto run = [&](auto kernel, int64_t wide) {
        kernel<<<blocks_for(rows * width / wide), kThreads, 0, stream>>>(
            hidden.as<T>(), rows * width, static_cast<int>(rank), static_cast<int>(width), inner);
      };
      packs<T>(width, {call.saved}) ? run(activate_kernel<T, kPack<T>>, kPack<T>)
                                    : run(activate_kernel<T, 1>, 1);
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
    w2_product.m = width;  // all the columns: the products like multiples of 8
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
      const auto run = [&](auto kernel, int64_t wide) {
        kernel<<<blocks_for(rows * rank / wide), kThreads, 0, stream>>>(
            hidden.as<T>(), reinterpret_cast<T*>(work), rows * rank, static_cast<int>(rank),
            static_cast<int>(width), inner);
      };
      const bool packed = packs<T>(rank, {call.saved}) && width % kPack<T> == 0;
      packed ? run(activate_backward_kernel<T, kPack<T>>, kPack<T>)
             : run(activate_backward_kernel<T, 1>, 1);
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
