// Second stage of the sums over rows. A block of 32 x 32 threads takes 32 channels of one sum;
// each of its 32 rows of threads adds every 32nd chunk, in double. A few MB: limited by latency.

#include "kernels/cuda/common/row_sums.cuh"

namespace rwkv::cuda {
namespace {

constexpr int kLanes = 32;

__global__ void reduce_kernel(const float* partials, int64_t chunks, int64_t stride, int64_t c,
                              RowSums sums) {
  __shared__ double fold[kLanes][32];
  const Grad<float> dst = sums.dst[blockIdx.y];
  if (dst.mode == Accum::kSkip) return;
  const int64_t channel = static_cast<int64_t>(blockIdx.x) * 32 + threadIdx.x;
  double total = 0;
  if (channel < c) {
    const float* p = partials + static_cast<int64_t>(blockIdx.y) * c + channel;
#pragma unroll 8
    for (int64_t chunk = threadIdx.y; chunk < chunks; chunk += kLanes)
      total += static_cast<double>(p[chunk * stride * c]);
  }
  fold[threadIdx.y][threadIdx.x] = total;
  __syncthreads();
  if (threadIdx.y != 0 || channel >= c) return;
  for (int lane = 1; lane < kLanes; ++lane) total += fold[lane][threadIdx.x];
  if (dst.mode == Accum::kAdd) total += static_cast<double>(dst.p[channel]);
  dst.p[channel] = static_cast<float>(total);
}

}  // namespace

void reduce_row_sums(Context& ctx, const float* partials, int64_t chunks, int64_t stride, int64_t c,
                     const RowSums& sums) {
  bool any = false;
  for (int s = 0; s < sums.count; ++s) any = any || sums.dst[s].mode != Accum::kSkip;
  if (!any) return;
  const dim3 grid(static_cast<unsigned>(ceil_div(c, 32)), static_cast<unsigned>(sums.count));
  reduce_kernel<<<grid, dim3(32, kLanes), 0, stream_of(ctx)>>>(partials, chunks, stride, c, sums);
  RWKV_LAUNCHED("sums over rows", stream_of(ctx));
}

}  // namespace rwkv::cuda
