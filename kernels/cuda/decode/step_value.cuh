#pragma once
/// The last stage of a layer: columns of the channel mix's value matrix, either those whose
/// activation is not zero or, through the stream, all.

#include "kernels/cuda/decode/step_kernel.cuh"

namespace rwkv::cuda::decode {

template <class T, int kPairs, bool kHalfState>
__device__ __forceinline__ void Step<T, kPairs, kHalfState>::value(int layer) {
  if (!sequence_.value.is_mine) return;
  begin_stage();
  float sum[kPack] = {};
  if (a_.stream_value)
    value_of_stream(layer, sum);
  else
    value_of_memory(layer, sum);

  // Over the warp's lanes that have the same columns; each keeps half of them, while it can.
  const int lanes = 1 << a_.slice_shift;
  int left = kPack, column = (lane() & (lanes - 1)) * kPack;
  bool keeps = true;
#pragma unroll
  for (int o = 16, n = kPack; o > 0; o >>= 1) {
    const bool upper = (lane() & o) != 0;
    if (n > 1) {
      n /= 2;
      if (o >= lanes) {
#pragma unroll
        for (int i = 0; i < kPack / 2; ++i)
          if (i < n) {
            const float give = upper ? sum[i] : sum[i + n], keep = upper ? sum[i + n] : sum[i];
            sum[i] = keep + __shfl_xor_sync(0xffffffffu, give, o);
          }
        left = n;
        column += upper ? n : 0;
      }
    } else if (o >= lanes) {
      sum[0] += __shfl_xor_sync(0xffffffffu, sum[0], o);
      keeps = keeps && !upper;
    }
  }
#pragma unroll
  for (int i = 0; i < kPack; ++i)
    if (keeps && i < left) sums_[warp() * l_.slice + column + i] = sum[i];
  sync();
  if (t_ < l_.slice) {
    float all = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) all += sums_[w * l_.slice + t_];
    put(a_.parts + static_cast<int64_t>(sequence_.value.split) * d_ +
            sequence_.value.slice * l_.slice + t_,
        all, tag_);
  }
  stamp(layer, 9);
}

/// Pairs begin + t, begin + t + kThreads... of `rows` activations from `first`.
template <class T, int kPairs, bool kHalfState>
__device__ __forceinline__ void Step<T, kPairs, kHalfState>::take_hidden(
    int first, int begin, int rows, float2 (&x)[kHiddenPairs]) {
  bool wanted[kHiddenPairs];
#pragma unroll
  for (int i = 0; i < kHiddenPairs; ++i) wanted[i] = begin + kThreads * i < rows / 2;
  get_pairs(
      x, tag_, a_.nap, wanted, [&](int) { return a_.hidden + first; },
      [&](int i) {
        return 16u * static_cast<uint32_t>(min(begin + kThreads * i + t_, rows / 2 - 1));
      });
}

/// Every row of this block's part, through the stream.
template <class T, int kPairs, bool kHalfState>
__device__ __forceinline__ void Step<T, kPairs, kHalfState>::value_of_stream(int layer,
                                                                             float (&sum)[kPack]) {
  const int rows = sequence_.value.rows, first = sequence_.value.split * rows;
  for (int begin = 0; begin < rows / 2; begin += kThreads * kHiddenPairs) {
    float2 x[kHiddenPairs];
    take_hidden(first, begin, rows, x);
#pragma unroll
    for (int i = 0; i < kHiddenPairs; ++i)
      if (begin + kThreads * i + t_ < rows / 2)
        *reinterpret_cast<float2*>(x_ + 2 * (begin + kThreads * i + t_)) = x[i];
  }
  sync();
  stamp(layer, 8);
  const int step = kThreads >> a_.slice_shift, row = t_ >> a_.slice_shift;
#pragma unroll 1
  for (int begin = 0; begin < rows; begin += kSlotPasses * step) {
    const std::byte* const piece = stream_.wait() + 16 * t_;
    uint4 raw[kSlotPasses];
    float v[kSlotPasses];
#pragma unroll
    for (int i = 0; i < kSlotPasses; ++i) {
      const bool inside = begin + i * step + row < rows;
      raw[i] = inside ? *reinterpret_cast<const uint4*>(piece + i * kPassBytes) : uint4{0, 0, 0, 0};
      v[i] = inside ? x_[begin + i * step + row] : 0.0f;
    }
    stream_.release();
#pragma unroll
    for (int i = 0; i < kSlotPasses; ++i) {
      float w[kPack];
      Weights<T>::get(raw[i], w);
#pragma unroll
      for (int e = 0; e < kPack; ++e) sum[e] = fmaf(w[e], v[i], sum[e]);
    }
  }
}

/// The rows whose activation is not zero, from memory.
template <class T, int kPairs, bool kHalfState>
__device__ __forceinline__ void Step<T, kPairs, kHalfState>::value_of_memory(int layer,
                                                                             float (&sum)[kPack]) {
  constexpr int kAhead = 8;
  const int rows = sequence_.value.rows, first = sequence_.value.split * rows;
  // A warp lists its activations: values, then indices, in shared memory.
  const int room = (rows + 2 * kThreads - 1) / (2 * kThreads) * 64;
  float* const values = x_ + warp() * room;
  auto* const places = reinterpret_cast<uint16_t*>(x_ + kWarps * room) + warp() * room;
  const int groups = 32 >> a_.slice_shift, group = lane() >> a_.slice_shift,
            inside = lane() & ((1 << a_.slice_shift) - 1);
  const T* const weights =
      reinterpret_cast<const T*>(a_.weights + static_cast<size_t>(layer) * l_.layer_bytes +
                                 sequence_.value.at(l_)) +
      inside * kPack;
  sync();  // sums of stage key have been read
  int count = 0;
  for (int begin = 0; begin < rows / 2; begin += kThreads * kHiddenPairs) {
    float2 x[kHiddenPairs];
    take_hidden(first, begin, rows, x);
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kHiddenPairs; ++i)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float v = e == 0 ? x[i].x : x[i].y;
        const bool keep = begin + kThreads * i + t_ < rows / 2 && (v != 0.0f || !a_.skip);
        const uint32_t all = __ballot_sync(0xffffffffu, keep);
        if (keep) {
          const int at = count + __popc(all & ((1u << lane()) - 1u));
          values[at] = v;
          places[at] = static_cast<uint16_t>(2 * (begin + kThreads * i + t_) + e);
        }
        count += __popc(all);
      }
  }
  __syncwarp();
  stamp(layer, 8);
  for (int begin = 0; begin < count; begin += groups * kAhead) {
    uint4 raw[kAhead];
    float v[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int at = begin + i * groups + group;
      v[i] = 0.0f;
      raw[i] = uint4{0, 0, 0, 0};
      if (at < count) {
        v[i] = values[at];
        raw[i] = __ldg(
            reinterpret_cast<const uint4*>(weights + static_cast<int64_t>(places[at]) * l_.slice));
      }
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      float w[kPack];
      Weights<T>::get(raw[i], w);
#pragma unroll
      for (int e = 0; e < kPack; ++e) sum[e] = fmaf(w[e], v[i], sum[e]);
    }
  }
}

}  // namespace rwkv::cuda::decode
