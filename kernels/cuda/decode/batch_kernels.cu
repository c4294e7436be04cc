#include "kernels/cuda/decode/batch_kernels.h"

#include "kernels/core/cuda/cuda_check.h"
#include "kernels/core/error.h"
#include "kernels/cuda/decode/dependent.cuh"
#include "kernels/cuda/decode/half_types.h"
#include "kernels/cuda/decode/weights.cuh"

namespace rwkv::cuda::decode {
namespace {

constexpr int kMixThreads = 512;
constexpr int kMixPrefetch = 4;  ///< blocks that bring vectors to the L2 cache
/// Up to this width a thread has place for all vectors of weights before it waits.
constexpr int kMixNarrow = 1024;
/// From this width on, blocks have more than one row if there are more rows than multiprocessors.
constexpr int kMixWide = 2048;

template <class T>
struct alignas(16) Eight {
  T x[8];
};
template <class T>
__device__ __forceinline__ void load8(const T* p, float (&x)[8]) {
  Weights<T>::get(*reinterpret_cast<const uint4*>(p), x);
}
template <class T>
__device__ __forceinline__ void store8(T* p, const float (&x)[8]) {
  Eight<T> y;
#pragma unroll
  for (int i = 0; i < 8; ++i) y.x[i] = Weights<T>::from(x[i]);
  *reinterpret_cast<uint4*>(p) = *reinterpret_cast<const uint4*>(&y);
}
__device__ __forceinline__ void load8f(const float* p, float (&x)[8]) {
  const float4 a = *reinterpret_cast<const float4*>(p), b = *reinterpret_cast<const float4*>(p + 4);
  x[0] = a.x, x[1] = a.y, x[2] = a.z, x[3] = a.w, x[4] = b.x, x[5] = b.y, x[6] = b.z, x[7] = b.w;
}

/// Sums over the block; `memory` holds a float per warp and sum and is free again at the next
/// barrier but one.
template <int kSums>
__device__ __forceinline__ void block_sums(float (&x)[kSums], float (*memory)[kMixThreads / 32]) {
#pragma unroll
  for (int r = 0; r < kSums; ++r) {
    x[r] = warp_sum(x[r]);
    if (threadIdx.x % 32 == 0) memory[r][threadIdx.x / 32] = x[r];
  }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < kSums; ++r) x[r] = 0;
  for (unsigned i = 0; i < blockDim.x / 32; ++i)
#pragma unroll
    for (int r = 0; r < kSums; ++r) x[r] += memory[r][i];
}

__device__ __forceinline__ void prefetch(const float* p) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p) : "memory");
}

/// A block for kRows rows, a thread per 8 channels. What does not come from the kernel before is
/// asked for before waiting for it. Rows of one block share what is read of vectors of weights,
/// which are more than all else for one row with six outputs.
template <class T, int kOutputs, int kRows, bool kNarrow>
__global__ void __launch_bounds__(kNarrow ? kMixNarrow / 8 : kMixThreads, kNarrow      ? 4
                                                                          : kRows == 1 ? 2
                                                                                       : 1)
    mix_kernel(const Mix a) {
  __shared__ float memory[2][kRows][kMixThreads / 32];
  let_next_kernel_start();
  const int begin = kRows * static_cast<int>(blockIdx.x), d = a.width;
  const int e = 8 * static_cast<int>(threadIdx.x);
  const bool mine = e < d;
  // Rows that are not there read the last one and write nothing: loads without branches.
  const auto there = [&](int r) { return kRows == 1 || begin + r < a.rows; };
  const auto row = [&](int r) { return kRows == 1 ? begin : min(begin + r, a.rows - 1); };
  const auto at = [&](int r) { return static_cast<int64_t>(row(r)) * d + e; };
  float x[kRows][8] = {};
  uint4 before[kRows] = {};
  T* shift[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r)
    shift[r] = static_cast<T*>(a.shift) + a.slots[row(r)] * a.shift_stride + e;
  if (mine) {
#pragma unroll
    for (int r = 0; r < kRows; ++r)
      if (kOutputs > 0) before[r] = *reinterpret_cast<const uint4*>(shift[r]);
    if (a.embedding != nullptr)
#pragma unroll
      for (int r = 0; r < kRows; ++r)
        load8(static_cast<const T*>(a.embedding) + static_cast<int64_t>(a.tokens[row(r)]) * d + e,
              x[r]);
    // Vectors come from memory, not from the cache: matrices went through it since the last token.
    if (!kNarrow && blockIdx.x < kMixPrefetch) {
      prefetch(a.weight + e);
      prefetch(a.bias + e);
      for (int n = 0; n < kOutputs; ++n) prefetch(a.mix + static_cast<int64_t>(n) * d + e);
    }
  }
  float weight[8], bias[8], mix[kNarrow && kOutputs > 0 ? kOutputs : 2][8];
  const auto load_norm = [&] {
    load8f(a.weight + e, weight);
    load8f(a.bias + e, bias);
  };
  const auto mix_of = [&](int n) -> float(&)[8] { return mix[kNarrow ? n : n & 1]; };
  const auto load_mix = [&](int n) { load8f(a.mix + static_cast<int64_t>(n) * d + e, mix_of(n)); };
  if (kRows == 1 && mine) {
    load_norm();
#pragma unroll
    for (int n = 0; n < (kNarrow || kOutputs == 0 ? kOutputs : 1); ++n) load_mix(n);
  }
  wait_for_kernel_before();
  if (mine) {
    uint4 add[kRows] = {};
    if (a.add != nullptr)
#pragma unroll
      for (int r = 0; r < kRows; ++r)
        add[r] = *reinterpret_cast<const uint4*>(static_cast<const T*>(a.add) + at(r));
    if (a.embedding == nullptr)
#pragma unroll
      for (int r = 0; r < kRows; ++r) load8f(a.residual + at(r), x[r]);
    if (a.add != nullptr)
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        float y[8];
        Weights<T>::get(add[r], y);
#pragma unroll
        for (int i = 0; i < 8; ++i) x[r][i] += y[i];
      }
  }
  float sum[kRows], scale[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    sum[r] = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) sum[r] += x[r][i];
    if (mine && there(r)) {
      auto* const to = reinterpret_cast<float4*>(a.residual + at(r));
      to[0] = make_float4(x[r][0], x[r][1], x[r][2], x[r][3]);
      to[1] = make_float4(x[r][4], x[r][5], x[r][6], x[r][7]);
    }
  }
  block_sums(sum, memory[0]);
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const float mean = sum[r] / static_cast<float>(d);
    scale[r] = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      x[r][i] -= mean;
      scale[r] = fmaf(x[r][i], x[r][i], scale[r]);
    }
    if (!mine) scale[r] = 0;
  }
  // On their way before they are needed.
  if (kRows > 1 && mine) {
    load_norm();
    if (kOutputs > 0) load_mix(0);
  }
  block_sums(scale, memory[1]);
#pragma unroll
  for (int r = 0; r < kRows; ++r) scale[r] = rsqrtf(scale[r] / static_cast<float>(d) + 1e-5f);
  if (mine) {
#pragma unroll
    for (int r = 0; r < kRows; ++r)
#pragma unroll
      for (int i = 0; i < 8; ++i) x[r][i] = fmaf(x[r][i] * scale[r], weight[i], bias[i]);
    T* const out = static_cast<T*>(a.out);
    if constexpr (kOutputs == 0) {
#pragma unroll
      for (int r = 0; r < kRows; ++r)
        if (there(r)) store8(out + at(r), x[r]);
    } else {
#pragma unroll
      for (int r = 0; r < kRows; ++r)
        if (there(r)) store8(shift[r], x[r]);
#pragma unroll
      for (int n = 0; n < kOutputs; ++n) {
        if (!kNarrow && n + 1 < kOutputs) load_mix(n + 1);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          float old[8], y[8];
          Weights<T>::get(before[r], old);
#pragma unroll
          for (int i = 0; i < 8; ++i) y[i] = fmaf(old[i] - x[r][i], mix_of(n)[i], x[r][i]);
          if (there(r)) store8(out + static_cast<int64_t>(n) * a.rows * d + at(r), y);
        }
      }
    }
  }
  if (kOutputs == 0 && threadIdx.x == 0)
    for (int r = 0; r < kRows; ++r)
      if (there(r)) ++a.elapsed[a.slots[begin + r]];
}

template <class T, int kRows, bool kNarrow = false>
cudaError_t mix_rows(const Mix& a, unsigned threads, bool overlap, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>((a.rows + kRows - 1) / kRows);
  const auto kernel = a.mix == nullptr ? mix_kernel<T, 0, kRows, kNarrow>
                      : a.outputs == 6 ? mix_kernel<T, 6, kRows, kNarrow>
                                       : mix_kernel<T, 1, kRows, kNarrow>;
  return launch_dependent(kernel, blocks, threads, 0, 1, overlap, stream, a);
}
template <class T>
cudaError_t mix_as(const Mix& a, unsigned threads, bool overlap, cudaStream_t stream) {
  if (a.width <= kMixNarrow) return mix_rows<T, 1, true>(a, threads, overlap, stream);
  if (a.width < kMixWide || a.rows <= a.multiprocessors)
    return mix_rows<T, 1>(a, threads, overlap, stream);
  return a.rows <= 2 * a.multiprocessors ? mix_rows<T, 2>(a, threads, overlap, stream)
                                         : mix_rows<T, 3>(a, threads, overlap, stream);
}

template <class T>
__global__ void squared_relu_kernel(T* x, int64_t packs) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= packs) return;
  float v[8];
  load8(x + 8 * i, v);
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    const float p = fmaxf(v[e], 0.0f);
    v[e] = p * p;
  }
  store8(x + 8 * i, v);
}

}  // namespace

void launch_mix(DType type, const Mix& a, bool overlap, cudaStream_t stream) {
  RWKV_ASSERT(a.width % 8 == 0 && a.width <= 8 * kMixThreads, "width ", a.width);
  const auto threads = static_cast<unsigned>((a.width / 8 + 31) / 32 * 32);
  by_half(type, [&]<class T>(T) { RWKV_CUDA(mix_as<T>(a, threads, overlap, stream)); });
  RWKV_LAUNCHED("mix of a batch", stream);
}

void launch_squared_relu(DType type, void* x, int64_t n, cudaStream_t stream) {
  constexpr int kThreads = 256;
  const int64_t packs = n / 8;
  by_half(type, [&]<class T>(T) {
    squared_relu_kernel<T>
        <<<static_cast<unsigned>((packs + kThreads - 1) / kThreads), kThreads, 0, stream>>>(
            static_cast<T*>(x), packs);
  });
  RWKV_LAUNCHED("squared relu of a batch", stream);
}

}  // namespace rwkv::cuda::decode
