// Global norm and AdamW. A block takes one piece of up to 16384 elements, a thread four elements at
// a time. Limited by bandwidth: 4 bytes per element for the norm, 30 for the update (28 without the
// bf16 copy).

#include "kernels/cuda/adamw.h"

#include <cmath>

#include "kernels/cuda/common/launch.cuh"

namespace rwkv::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWide = 4;

__device__ double block_sum(double x, double* smem) {
  for (int o = 16; o > 0; o >>= 1) x += __shfl_xor_sync(0xffffffffu, x, o);
  if (threadIdx.x % 32 == 0) smem[threadIdx.x / 32] = x;
  __syncthreads();
  x = 0;
  for (int w = 0; w < kThreads / 32; ++w) x += smem[w];
  return x;
}

__global__ void __launch_bounds__(kThreads)
    squares_kernel(const float* grad, const AdamWPiece* pieces, double* partials) {
  __shared__ double fold[kThreads / 32];
  const AdamWPiece piece = pieces[blockIdx.x];
  double sum = 0;
#pragma unroll 4
  for (int64_t i = piece.begin + threadIdx.x * kWide; i < piece.end; i += kThreads * kWide) {
    if (i + kWide <= piece.end) {
      float g[kWide];
      load<kWide>(grad + i, g);
#pragma unroll
      for (int e = 0; e < kWide; ++e) sum += static_cast<double>(g[e]) * static_cast<double>(g[e]);
    } else {
      for (int64_t j = i; j < piece.end; ++j)
        sum += static_cast<double>(grad[j]) * static_cast<double>(grad[j]);
    }
  }
  sum = block_sum(sum, fold);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(kThreads)
    norm_kernel(const double* partials, int64_t count, const double* loss_sum, double* norm) {
  __shared__ double fold[kThreads / 32];
  double sum = 0;
#pragma unroll 8
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += partials[i];
  sum = block_sum(sum, fold);
  // A loss can be broken while all gradients are finite: ids out of range get none.
  if (threadIdx.x == 0) *norm = loss_sum == nullptr || isfinite(*loss_sum) ? sqrt(sum) : nan("");
}

__global__ void __launch_bounds__(kThreads)
    sum_kernel(const double* partials, int64_t count, double* out) {
  __shared__ double fold[kThreads / 32];
  double sum = 0;
#pragma unroll 8
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += partials[i];
  sum = block_sum(sum, fold);
  if (threadIdx.x == 0) *out = sum;
}

__global__ void loss_kernel(const float* loss, double* sum, bool add) {
  *sum = (add ? *sum : 0.0) + static_cast<double>(*loss);
}

struct Rates {
  float beta1, beta2, one_minus_beta1, one_minus_beta2;
  float correction1, correction2;  ///< 1 / (1 - beta^n)
  float eps;
  double lr, clip;
};

struct Moment {
  float m, v, p;
};
__device__ __forceinline__ Moment advance(float grad, Moment s, const Rates& r, float scale,
                                          float lr, float decay) {
  const float g = grad * scale;
  s.m = r.beta1 * s.m + r.one_minus_beta1 * g;
  s.v = r.beta2 * s.v + r.one_minus_beta2 * g * g;
  const float direction = (s.m * r.correction1) / (sqrtf(s.v * r.correction2) + r.eps);
  s.p -= lr * (direction + decay * s.p);
  return s;
}

__global__ void __launch_bounds__(kThreads)
    update_kernel(AdamWBuffers b, const AdamWPiece* pieces, Rates r, const double* norm_in) {
  const double norm = *norm_in;
  if (!isfinite(norm)) return;
  const float scale =
      r.clip > 0 && (norm + 1e-6) / r.clip > 1 ? static_cast<float>(r.clip / (norm + 1e-6)) : 1.0f;
  const AdamWPiece piece = pieces[blockIdx.x];
  const float lr = static_cast<float>(r.lr * static_cast<double>(piece.lr_scale));
  b.m += piece.shift, b.v += piece.shift, b.master += piece.shift;
  if (b.shifted_grad) b.grad += piece.shift;
#pragma unroll 2
  for (int64_t i = piece.begin + threadIdx.x * kWide; i < piece.end; i += kThreads * kWide) {
    if (i + kWide <= piece.end) {
      float g[kWide], m[kWide], v[kWide], p[kWide];
      load<kWide>(b.grad + i, g);
      load<kWide>(b.m + i, m);
      load<kWide>(b.v + i, v);
      load<kWide>(b.master + i, p);
#pragma unroll
      for (int e = 0; e < kWide; ++e) {
        const Moment s = advance(g[e], {m[e], v[e], p[e]}, r, scale, lr, piece.decay);
        m[e] = s.m, v[e] = s.v, p[e] = s.p;
      }
      store<kWide>(b.m + i, m);
      store<kWide>(b.v + i, v);
      store<kWide>(b.master + i, p);
      if (b.copy != nullptr) store<kWide>(b.copy + i, p);
    } else {
      for (int64_t j = i; j < piece.end; ++j) {
        const Moment s =
            advance(b.grad[j], {b.m[j], b.v[j], b.master[j]}, r, scale, lr, piece.decay);
        b.m[j] = s.m, b.v[j] = s.v, b.master[j] = s.p;
        if (b.copy != nullptr) from_float(b.copy[j], s.p);
      }
    }
  }
}

}  // namespace

void add_loss(Context& ctx, const float* loss, double* sum, Accum mode) {
  if (mode == Accum::kSkip) return;
  loss_kernel<<<1, 1, 0, stream_of(ctx)>>>(loss, sum, mode == Accum::kAdd);
  RWKV_LAUNCHED("sum of losses", stream_of(ctx));
}

void grad_norm(Context& ctx, const float* grad, const AdamWPiece* pieces, size_t count,
               const double* loss_sum, double* norm) {
  auto* partials = reinterpret_cast<double*>(ctx.workspace(grad_norm_workspace_bytes(count)));
  if (count > 0) {
    squares_kernel<<<static_cast<unsigned>(count), kThreads, 0, stream_of(ctx)>>>(grad, pieces,
                                                                                  partials);
    RWKV_LAUNCHED("gradient norm", stream_of(ctx));
  }
  norm_kernel<<<1, kThreads, 0, stream_of(ctx)>>>(partials, static_cast<int64_t>(count), loss_sum,
                                                  norm);
  RWKV_LAUNCHED("gradient norm, sum", stream_of(ctx));
}

void grad_squares(Context& ctx, const float* grad, const AdamWPiece* pieces, size_t count,
                  double* sum) {
  auto* partials = reinterpret_cast<double*>(ctx.workspace(grad_norm_workspace_bytes(count)));
  if (count > 0) {
    squares_kernel<<<static_cast<unsigned>(count), kThreads, 0, stream_of(ctx)>>>(grad, pieces,
                                                                                  partials);
    RWKV_LAUNCHED("gradient squares", stream_of(ctx));
  }
  sum_kernel<<<1, kThreads, 0, stream_of(ctx)>>>(partials, static_cast<int64_t>(count), sum);
  RWKV_LAUNCHED("gradient squares, sum", stream_of(ctx));
}

void adamw_update(Context& ctx, const AdamWBuffers& buffers, const AdamWPiece* pieces, size_t count,
                  const AdamWStep& step, const double* norm) {
  if (count == 0) return;
  const auto n = static_cast<double>(step.update);
  const Rates rates{.beta1 = static_cast<float>(step.beta1),
                    .beta2 = static_cast<float>(step.beta2),
                    .one_minus_beta1 = static_cast<float>(1 - step.beta1),
                    .one_minus_beta2 = static_cast<float>(1 - step.beta2),
                    .correction1 = static_cast<float>(1 / (1 - std::pow(step.beta1, n))),
                    .correction2 = static_cast<float>(1 / (1 - std::pow(step.beta2, n))),
                    .eps = static_cast<float>(step.eps),
                    .lr = step.lr,
                    .clip = step.clip};
  update_kernel<<<static_cast<unsigned>(count), kThreads, 0, stream_of(ctx)>>>(buffers, pieces,
                                                                               rates, norm);
  RWKV_LAUNCHED("adamw", stream_of(ctx));
}

}  // namespace rwkv::cuda
