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
  int8_t* exponents;
  int32_t* elapsed;
  const int32_t* slot;
  const int32_t* token;
  float* logits;
  uint32_t* epoch;  ///< launches so far
  Tagged *in, *gated, *added, *hidden, *parts;
  int64_t* stamps;
  uint32_t nap;
  int flight;            ///< pieces on their way at a time
  float scale, inverse;  ///< of f16 states
  bool skip, stream_value;
  // A row's 16-byte packs are shared among the lanes of `row_warps` warps; `groups` rows at a time.
  int row_warps, groups, pass_bytes;
  int chunk_rows;   ///< of which partial sums are kept
  int slice_shift;  ///< 2 to this: packs of a value slice's row
  // Shared memory, bytes from its beginning.
  int lora_at, residual_at, kept_at, x_at, sums_at, ring_at, slots;
};

/// What the block of a head keeps in shared memory.
struct HeadMemory {
  float rkv[3 * kN];                             ///< products: r, k, and v before the value mix
  float decay[kN], rate[kN], mix[kN], gate[kN];  ///< decay logit, alpha, nu, gamma
  float y[kN];
  float v_first[kN];
  alignas(16) int8_t exponents[kN];  ///< of the rows of an f16 state
  alignas(16) __half hr[kN], hw[kN], hk[kN], ha[kN], hb[kN];
};

/// Vectors of a layer that the block of a head needs its part of, kW0 to kLnXBias, and where they
/// lie in what x_ points to: behind an f16 state.
inline constexpr int kHeadVectors = rwkv::decode::kParams - rwkv::decode::kW0;
inline constexpr int kStateFloats = kN * kN / 2;

/// Sums of a block: one entry per warp.
struct NormMemory {
  float mean[kWarps], squares[kWarps];
};

/// A block's part of the value matrices.
struct ValuePart {
  int slice, split, rows;
  bool is_mine;
  ValuePart() = default;
  __device__ __forceinline__ explicit ValuePart(const Layout& l)
      : slice(static_cast<int>(blockIdx.x) / l.splits),
        split(static_cast<int>(blockIdx.x) % l.splits),
        rows(l.shape.ffn / l.splits),
        is_mine(static_cast<int>(blockIdx.x) < l.value_blocks()) {}
  /// Of a layer's bytes.
  __device__ __forceinline__ size_t at(const Layout& l) const {
    return l.value_at + (static_cast<size_t>(slice) * l.shape.ffn + split * rows) * l.slice *
                            static_cast<size_t>(l.element);
  }
  __device__ __forceinline__ int bytes(const Layout& l) const { return rows * l.slice * l.element; }
};

/// What is the same for all threads of a block, kept out of registers: spilled registers would go
/// to the L2 cache, as shared memory leaves little of the L1 cache.
struct Sequence {
  std::byte *shift, *wkv;  ///< of the slot; the WKV state from the block's head on
  uint32_t launch, elapsed;
  ValuePart value;
  int first_section, inputs;  ///< of the block's rows of stage in
  int layer;                  ///< that the block works on

  /// For the prefetching warp: atomic, as nothing orders the two.
  __device__ __forceinline__ void put_layer(int now) { atomicExch_block(&layer, now); }
  __device__ __forceinline__ int get_layer() { return atomicAdd_block(&layer, 0); }
};
static_assert(sizeof(Sequence) <= 64);

/// Rows whose partial sums fit.
inline constexpr int kChunkRows = 128;

inline constexpr int kNormAt = kBarrierBytes;
inline constexpr int kRangesAt = kNormAt + static_cast<int>(sizeof(NormMemory));
inline constexpr int kSequenceAt = kRangesAt + 64;
inline constexpr int kHeadAt = kSequenceAt + 64;
static_assert(sizeof(Ranges) <= 64 && kHeadAt % 16 == 0);

/// Loads that stay where they are written, ahead of waiting.
__device__ __forceinline__ float2 fetch(const float* p, uint32_t offset = 0) {
  float2 x;
  asm volatile(
      "{\n"
      ".reg .u64 at;\n"
      "cvt.u64.u32 at, %3;\n"
      "add.u64 at, at, %2;\n"
      "ld.global.nc.v2.f32 {%0, %1}, [at];\n"
      "}"
      : "=f"(x.x), "=f"(x.y)
      : "l"(p), "r"(offset));
  return x;
}
__device__ __forceinline__ float fetch1(const float* p) {
  float x;
  asm volatile("ld.global.nc.f32 %0, [%1];" : "=f"(x) : "l"(p));
  return x;
}
/// A word that another block writes later in the launch, as are shift states: relaxed on both
/// sides. That nobody reads too late follows from the exchange (step_kernel.cuh).
__device__ __forceinline__ uint32_t fetch_word(const void* p) {
  uint32_t x;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(x) : "l"(p) : "memory");
  return x;
}
__device__ __forceinline__ void store_word(void* p, uint32_t x) {
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(x) : "memory");
}
/// Two weights or two elements of a shift state, as they lie in memory.
template <class T>
struct RawPair {
  using Type = uint32_t;
  static __device__ __forceinline__ Type get(const void* p) { return fetch_word(p); }
  static __device__ __forceinline__ float2 value(Type x) {
    float2 y;
    Weights<T>::pair(x, y.x, y.y);
    return y;
  }
  static __device__ __forceinline__ void put(T* p, float2 x) {
    const T low = Weights<T>::from(x.x), high = Weights<T>::from(x.y);
    store_word(p, *reinterpret_cast<const uint16_t*>(&low) |
                      static_cast<uint32_t>(*reinterpret_cast<const uint16_t*>(&high)) << 16);
  }
};
template <>
struct RawPair<float> {
  using Type = float2;
  static __device__ __forceinline__ Type get(const void* p) {
    float2 x;
    asm volatile("ld.relaxed.gpu.global.v2.f32 {%0, %1}, [%2];"
                 : "=f"(x.x), "=f"(x.y)
                 : "l"(p)
                 : "memory");
    return x;
  }
  static __device__ __forceinline__ float2 value(Type x) { return x; }
  static __device__ __forceinline__ void put(float* p, float2 x) {
    asm volatile("st.relaxed.gpu.global.v2.f32 [%0], {%1, %2};" ::"l"(p), "f"(x.x), "f"(x.y)
                 : "memory");
  }
};
/// 8 bytes to shared memory, by the time of copies_done().
__device__ __forceinline__ void copy_pair(float* to, const float* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from)
               : "memory");
}
/// 16 bytes.
__device__ __forceinline__ void copy_pack(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from)
               : "memory");
}
__device__ __forceinline__ void copies_done() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}
template <class V>
__device__ __forceinline__ const V* at_bytes(const V* base, uint32_t bytes) {
  return reinterpret_cast<const V*>(reinterpret_cast<const char*>(base) + bytes);
}

__device__ __forceinline__ void prefetch_line(const void* p) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}
/// Lines [begin, end) of 128 bytes, by the lanes of a warp.
__device__ __forceinline__ void prefetch_lines(const void* p, int begin, int end, int lane) {
  for (int i = begin + lane; i < end; i += 32)
    prefetch_line(static_cast<const std::byte*>(p) + static_cast<size_t>(i) * 128);
}

__device__ __forceinline__ float sigmoid(float x) {
  return __fdividef(1.0f, 1.0f + __expf(-x));
}
/// To about 1e-7 absolute.
__device__ __forceinline__ float tanh_of(float x) {
  return 1.0f - __fdividef(2.0f, 1.0f + __expf(2.0f * fminf(x, 20.0f)));
}

/// A barrier of the threads that compute.
__device__ __forceinline__ void sync() {
  asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory");
}

/// 16-byte packs of a row that a thread has, if threads have `pairs` pairs of channels: more than
/// one for wide rows of f32.
constexpr int packs_of_row(int pairs, int pack) {
  return pairs * 2 > pack ? pairs * 2 / pack : 1;
}
/// Pairs of channels that a thread has, as kernels are compiled for.
constexpr int pairs_of_width(int width) {
  return width <= 2 * kThreads ? 1 : width <= 4 * kThreads ? 2 : 4;
}

/// Queues the kernel for weights of type T.
template <class T>
void launch_step(Context& ctx, const Args& args, bool half_state, int shared_bytes);
extern template void launch_step<__half>(Context&, const Args&, bool, int);
extern template void launch_step<__nv_bfloat16>(Context&, const Args&, bool, int);
extern template void launch_step<float>(Context&, const Args&, bool, int);

}  // namespace rwkv::cuda::decode
