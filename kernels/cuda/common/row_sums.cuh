#pragma once
/// Parameter gradients that are sums over rows, in two stages: every block adds the rows of its
/// chunk in registers and folds its warps into one partial row; a second kernel adds the chunks in
/// order, in double. Both orders depend on the shapes only.

#include "kernels/cuda/common/launch.cuh"

namespace rwkv::cuda {

inline constexpr int kRowWarps = 8;  ///< warps of a block; each takes every 8th row of the chunk

/// Folds E sums per lane over the warps of a block of 32 * kRowWarps threads; `smem` holds
/// kRowWarps * 32 * E floats. Calls write(lane, e, total) once per sum. All threads must come here.
template <int E, class Write>
__device__ __forceinline__ void fold_warps(const float (&sums)[E], float* smem,
                                           const Write& write) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  __syncthreads();  // the last fold's readers are done
#pragma unroll
  for (int e = 0; e < E; ++e) smem[(warp * E + e) * 32 + lane] = sums[e];
  __syncthreads();
  for (int q = static_cast<int>(threadIdx.x); q < 32 * E; q += 32 * kRowWarps) {
    float total = 0;
#pragma unroll
    for (int w = 0; w < kRowWarps; ++w) total += smem[w * E * 32 + q];
    write(q % 32, q / 32, total);
  }
}

inline constexpr int kMaxRowSums = 8;
struct RowSums {
  Grad<float> dst[kMaxRowSums];
  int count = 0;
};

/// dst[s][c] (=, +=) sum over chunks of partials[(chunk * stride + s) * C + c].
void reduce_row_sums(Context& ctx, const float* partials, int64_t chunks, int64_t stride, int64_t c,
                     const RowSums& sums);

}  // namespace rwkv::cuda
