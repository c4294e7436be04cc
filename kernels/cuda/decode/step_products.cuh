#pragma once
/// Products of a block's rows, as they come through the stream, with vectors in shared memory.

#include "kernels/cuda/decode/step_kernel.cuh"

namespace rwkv::cuda::decode {

/// This thread's columns of an input.
template <class T, int kPairs, bool kHalfState>
__device__ __forceinline__ void Step<T, kPairs, kHalfState>::get_columns(
    const float* x, float (&mine)[kRowPacks][kPack]) {
#pragma unroll
  for (int k = 0; k < kRowPacks; ++k)
#pragma unroll
    for (int i = 0; i < kPack; i += 4) {
      float4 v = {0.0f, 0.0f, 0.0f, 0.0f};
      if (has_pack(k)) v = *reinterpret_cast<const float4*>(x + pack_of(k) * kPack + i);
      mine[k][i] = v.x;
      mine[k][i + 1] = v.y;
      mine[k][i + 2] = v.z;
      mine[k][i + 3] = v.w;
    }
}
/// This thread's part of the next kBatch rows of its group, or of fewer if `left` rows of all
/// groups remain.
template <class T, int kPairs, bool kHalfState>
__device__ __forceinline__ void Step<T, kPairs, kHalfState>::get_rows(int left, Raw& raw) {
  const int row_bytes = d_ * static_cast<int>(sizeof(T)), groups = a_.groups;
  // Where a thread has nothing it reads what others do, and its columns of x are zero.
  const int from = group_ < groups ? group_ * row_bytes : 0, next = groups * row_bytes;
#pragma unroll
  for (int p = 0; p < kPieces; ++p) {
    if (p > 0 && p * kSlotPasses * groups >= left) break;
    const std::byte* const piece = stream_.wait() + from;
#pragma unroll
    for (int i = 0; i < kSlotPasses; ++i)
#pragma unroll
      for (int k = 0; k < kRowPacks; ++k)
        raw[p * kSlotPasses + i][k] =
            *reinterpret_cast<const uint4*>(piece + i * next + 16 * (has_pack(k) ? pack_of(k) : 0));
    stream_.release();
  }
}
template <class T, int kRowPacks, int kPack>
__device__ __forceinline__ float row_times(const uint4 (&raw)[kRowPacks],
                                           const float (&x)[kRowPacks][kPack]) {
  float even = 0.0f, odd = 0.0f;
#pragma unroll
  for (int k = 0; k < kRowPacks; ++k) {
    float w[kPack];
    Weights<T>::get(raw[k], w);
#pragma unroll
    for (int e = 0; e < kPack; e += 2) {
      even = fmaf(w[e], x[k][e], even);
      odd = fmaf(w[e + 1], x[k][e + 1], odd);
    }
  }
  return even + odd;
}

/// Rows [begin, end) of the stream times x_; done(row, sum) by one thread each. kInputs: of stage
/// in, whose sections have inputs of their own. Sums have the same order for every row. Begins
/// with what is in x_ behind a barrier; ends behind one.
template <class T, int kPairs, bool kHalfState>
template <bool kInputs, class Done>
__device__ __forceinline__ void Step<T, kPairs, kHalfState>::products(int begin, int end,
                                                                      const Done& done) {
  float x[kRowPacks][kPack];
  get_columns(x_, x);
  const int groups = a_.groups, section = kInputs ? sequence_.first_section : 0;
  int input = 0, change = kInputs ? l_.section[section + 1] : end;
  const int most = a_.chunk_rows;
#pragma unroll 1
  for (int chunk = begin; chunk < end; chunk += most) {
    const int rows = min(end - chunk, most);
    Raw raw;
    get_rows(rows, raw);
#pragma unroll 1
    for (int first = 0; first < rows; first += kBatch * groups) {
      float sum[kBatch];
      // Few batches have rows of two sections.
      if (!kInputs || chunk + first + kBatch * groups <= change) {
#pragma unroll
        for (int i = 0; i < kBatch; ++i) sum[i] = row_times<T>(raw[i], x);
      } else {
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          const int row = chunk + first + i * groups + group_;
          if (row >= change && row < end) {
            while (row >= change) change = l_.section[section + ++input + 1];
            get_columns(x_ + input * d_, x);
          }
          sum[i] = row_times<T>(raw[i], x);
        }
      }
      // The next rows are on their way while sums go around the warp, if registers suffice.
      const int left = rows - first - kBatch * groups;
      if (kRowPacks == 1 && left > 0) get_rows(left, raw);
      const float all = warp_sums(sum, lane());
      if (kRowPacks > 1 && left > 0) get_rows(left, raw);
      const int row = first + lane() / (32 / kBatch) * groups + group_;
      if (lane() % (32 / kBatch) == 0 && group_ < groups && row < rows)
        sums_[part_ * kChunkRows + row] = all;
    }
    sync();
    static_assert(kChunkRows <= kThreads);
    if (t_ < rows) {
      // Four sums side by side, in a fixed order.
      float part[4] = {};
#pragma unroll
      for (int i = 0; i < kWarps; i += 4)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          if (i + e < a_.row_warps) part[e] += sums_[(i + e) * kChunkRows + t_];
      done(chunk + t_, (part[0] + part[1]) + (part[2] + part[3]));
    }
    if (chunk + most < end) sync();
  }
}

}  // namespace rwkv::cuda::decode
