#pragma once
/// Arguments and shared memory of the kernel that decodes one token of one sequence.

#include "kernels/cuda/decode/stream.cuh"
#include "kernels/decode/step.h"

namespace rwkv::cuda::decode {

inline constexpr int kN = rwkv::decode::kHeadSize;
inline constexpr int kMostInputs = 3;

struct Args {
  Layout l;
  const std::byte* weights;
  const float* params;
  std::byte* shift;
  std::byte* wkv;
  int32_t* elapsed;
  const int32_t* slot;
  const int32_t* token;
  float* logits;
  uint32_t* epoch;  ///< launches so far
  Tagged *in, *gated, *added, *hidden, *parts;
  int64_t* stamps;
  int slots;
  uint32_t nap;
  int ahead_bytes;
  float scale, inverse;  ///< of f16 states
  bool skip, prefetch_value;
  // Shared memory, bytes from its beginning.
  int lora_at, x_at, sums_at, ring_at;
};

/// What the block of a head keeps in shared memory.
struct HeadMemory {
  float r[kN], k[kN], v[kN];                     ///< products, v before the value mix
  float decay[kN], rate[kN], mix[kN], gate[kN];  ///< decay logit, alpha, nu, gamma
  float y[kN];
  float v_first[kN];
  alignas(16) __half hr[kN], hw[kN], hk[kN], ha[kN], hb[kN];
};

/// Sums of a block: one entry per warp.
struct NormMemory {
  float mean[kWarps], squares[kWarps];
};

inline constexpr int kBarrierBytes = kWarps * rwkv::decode::kMaxSlots * 8;
inline constexpr int kNormAt = kBarrierBytes;
inline constexpr int kRangesAt = kNormAt + static_cast<int>(sizeof(NormMemory));
inline constexpr int kHeadAt = kRangesAt + 64;
static_assert(sizeof(Ranges) <= 64 && kHeadAt % 16 == 0);

/// Loads that stay where they are written, ahead of waiting.
__device__ __forceinline__ float2 fetch(const float* p) {
  float2 x;
  asm volatile("ld.global.nc.v2.f32 {%0, %1}, [%2];" : "=f"(x.x), "=f"(x.y) : "l"(p));
  return x;
}
__device__ __forceinline__ float fetch1(const float* p) {
  float x;
  asm volatile("ld.global.nc.f32 %0, [%1];" : "=f"(x) : "l"(p));
  return x;
}
/// Two elements of a shift state.
__device__ __forceinline__ float2 fetch_pair(const float* p) {
  float2 x;
  asm volatile("ld.global.v2.f32 {%0, %1}, [%2];" : "=f"(x.x), "=f"(x.y) : "l"(p) : "memory");
  return x;
}
__device__ __forceinline__ uint32_t fetch_word(const void* p) {
  uint32_t x;
  asm volatile("ld.global.u32 %0, [%1];" : "=r"(x) : "l"(p) : "memory");
  return x;
}
template <class T>
__device__ __forceinline__ float2 fetch_pair(const T* p) {
  float2 x;
  Weights<T>::pair(fetch_word(p), x.x, x.y);
  return x;
}
template <class T>
__device__ __forceinline__ void store_pair(T* p, float2 x) {
  p[0] = Weights<T>::from(x.x);
  p[1] = Weights<T>::from(x.y);
}

__device__ __forceinline__ void prefetch_line(const void* p) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}
/// A region to the L2 cache, by one thread and the copy engine. Multiples of 16 bytes.
__device__ __forceinline__ void prefetch_bulk(const std::byte* p, int bytes) {
  constexpr int kMost = 16384;
  for (; bytes > 0; bytes -= kMost, p += kMost)
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(p), "r"(min(bytes, kMost))
                 : "memory");
}
/// Lines [begin, end) of 128 bytes, by the threads of this block.
__device__ __forceinline__ void prefetch_lines(const void* p, int begin, int end) {
  for (int i = begin + static_cast<int>(threadIdx.x); i < end; i += static_cast<int>(blockDim.x))
    prefetch_line(static_cast<const std::byte*>(p) + static_cast<size_t>(i) * 128);
}

__device__ __forceinline__ float sigmoid(float x) {
  return 1.0f / (1.0f + expf(-x));
}

/// Queues the kernel for weights of type T.
template <class T>
void launch_step(Context& ctx, const Args& args, bool half_state, int shared_bytes);
extern template void launch_step<__half>(Context&, const Args&, bool, int);
extern template void launch_step<__nv_bfloat16>(Context&, const Args&, bool, int);
extern template void launch_step<float>(Context&, const Args&, bool, int);

}  // namespace rwkv::cuda::decode
