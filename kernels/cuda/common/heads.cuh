#pragma once
/// How the kernels that work per head spread channels over lanes.
///
/// Packed: a warp covers 32 neighbouring packs of N elements; a head is an aligned group of
/// head_size / N lanes, a power of two. Generic (N = 1): a warp covers one head, lane i its
/// elements i, i + 32, ...; any head size up to 256 and any alignment.

#include "kernels/cuda/common/math.cuh"
#include "kernels/cuda/common/pack.cuh"
#include "kernels/cuda/common/row_sums.cuh"

namespace rwkv::cuda {

struct HeadShape {
  int64_t rows, c;
  int64_t rows_per_block;
  int head_size;
  int group;  ///< lanes of a head
  int64_t tiles() const {
    return ceil_div(c, group == 0 ? head_size : static_cast<int64_t>(32 / group) * head_size);
  }
};

/// The elements of one lane: E = N packed, 8 generic (N = 1).
template <int N>
struct Lane {
  static constexpr int kE = N == 1 ? 8 : N;
  int64_t base;  ///< channel of the first element
  int count;     ///< elements that exist (of 32 apart in the generic form)
  int group;

  __device__ __forceinline__ explicit Lane(const HeadShape& s) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if constexpr (N == 1) {
      base = static_cast<int64_t>(blockIdx.x) * s.head_size + lane;
      count = lane < s.head_size ? (s.head_size - lane + 31) / 32 : 0;
      group = 32;
    } else {
      base = (static_cast<int64_t>(blockIdx.x) * 32 + lane) * N;
      count = base < s.c ? N : 0;
      group = s.group;
    }
  }
  __device__ static int64_t channel_of(const HeadShape& s, int lane, int e) {
    if constexpr (N == 1) {
      const int i = lane + 32 * e;
      return i < s.head_size ? static_cast<int64_t>(blockIdx.x) * s.head_size + i : s.c;
    } else {
      return (static_cast<int64_t>(blockIdx.x) * 32 + lane) * N + e;
    }
  }
  /// x = p[row offset + channels], zero where there are none.
  template <class T>
  __device__ __forceinline__ void get(const T* p, int64_t row, float (&x)[kE]) const {
#pragma unroll
    for (int e = 0; e < kE; ++e) x[e] = 0.0f;
    if constexpr (N == 1) {
#pragma unroll
      for (int e = 0; e < kE; ++e)
        if (e < count) x[e] = to_float(p[row + base + 32 * e]);
    } else {
      if (count > 0) load<N>(p + row + base, x);
    }
  }
  template <class T>
  __device__ __forceinline__ void put(const Grad<T>& g, int64_t row, const float (&x)[kE]) const {
    if constexpr (N == 1) {
#pragma unroll
      for (int e = 0; e < kE; ++e) {
        if (e >= count) break;
        const float one[1] = {x[e]};
        emit<1>(g, row + base + 32 * e, one);
      }
    } else {
      if (count > 0) emit<N>(g, row + base, x);
    }
  }
  template <class T>
  __device__ __forceinline__ void put(T* p, int64_t row, const float (&x)[kE]) const {
    put(Grad<T>{p, Accum::kWrite}, row, x);
  }
  /// Sum over the head of f(e), which is zero where there is no element.
  template <class F>
  __device__ __forceinline__ float head_sum(const F& f) const {
    float sum = 0;
#pragma unroll
    for (int e = 0; e < kE; ++e) sum += f(e);
    return lane_sum(sum, group);
  }
};

/// One row of an operand, loaded long before its use.
template <class T, int N>
struct Ahead {
  static constexpr int kRaws = N == 1 ? 8 : 1;
  Raw<T, N> raw[kRaws];

  __device__ __forceinline__ void fetch(const Lane<N>& lane, const T* p, int64_t row) {
#pragma unroll
    for (int e = 0; e < kRaws; ++e) {
      if (e < lane.count)
        raw[e].fetch(p + row + lane.base + 32 * e);
      else
        raw[e].clear();
    }
  }
  __device__ __forceinline__ void get(float (&x)[Lane<N>::kE]) const {
    if constexpr (N == 1) {
#pragma unroll
      for (int e = 0; e < kRaws; ++e) x[e] = to_float(raw[e].word);
    } else {
      raw[0].get(x);
    }
  }
};

/// Channels are whole packs and a head is a power of two of them, at most 32.
inline bool heads_pack(int64_t head_size, int64_t pack) {
  const int64_t lanes = head_size / pack;
  return head_size % pack == 0 && lanes <= 32 && (lanes & (lanes - 1)) == 0;
}

/// `packed` as found by heads_pack and packs; rows_per_block is left to the caller.
inline HeadShape head_shape(const TensorView& like, int64_t head_size, int64_t pack, bool packed) {
  return {.rows = like.rows(),
          .c = like.last(),
          .rows_per_block = 0,
          .head_size = static_cast<int>(head_size),
          .group = packed ? static_cast<int>(head_size / pack) : 0};
}

/// Elements of a thread in the backward kernels: half a pack of bf16, so that the row ahead and the
/// sums over rows fit into registers.
inline constexpr int kHeadHalf = 4;

/// Rows per block of a forward kernel: about eight blocks for every multiprocessor, at most four
/// rows per warp.
inline int64_t forward_rows(const HeadShape& s) {
  return std::clamp<int64_t>(s.rows * s.tiles() / (4 * kRowBlocks * kRowWarps), 1, 4) * kRowWarps;
}

}  // namespace rwkv::cuda
