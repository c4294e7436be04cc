// The small kernels around collectives. Limited by bandwidth: 6 bytes per element for the two
// casts.

#include "kernels/cuda/exchange.h"

#include "kernels/cuda/common/launch.cuh"

namespace rwkv::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWide = 8;
constexpr int64_t kBlocks = 132;  // few: they run beside the backward

__global__ void combine_kernel(const RankRecord* records, size_t ranks, RankOutcome* outcome) {
  RankOutcome out{};
  double squares = 0;
  for (size_t r = 0; r < ranks; ++r) {
    squares += records[r].squares;
    out.loss_sum += records[r].loss_sum;
    out.stops += records[r].stop;
  }
  out.norm = isfinite(out.loss_sum) ? sqrt(squares) : nan("");
  *outcome = out;
}

template <class From, class To>
__global__ void __launch_bounds__(kThreads) cast_kernel(const From* from, To* to, int64_t n) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads * kWide;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kWide; i < n;
       i += step) {
    float x[kWide];
    load<kWide>(from + i, x);
    store<kWide>(to + i, x);
  }
}

template <class From, class To>
void cast(Stream stream, const From* from, To* to, int64_t n) {
  if (n == 0) return;
  const int64_t blocks = std::min(kBlocks, (n / kWide + kThreads - 1) / kThreads);
  cast_kernel<<<static_cast<unsigned>(blocks), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      from, to, n);
  RWKV_LAUNCHED("cast of gradients", static_cast<cudaStream_t>(stream));
}

}  // namespace

void combine_records(Stream stream, const RankRecord* records, size_t ranks, RankOutcome* outcome) {
  combine_kernel<<<1, 1, 0, static_cast<cudaStream_t>(stream)>>>(records, ranks, outcome);
  RWKV_LAUNCHED("combining ranks", static_cast<cudaStream_t>(stream));
}

void narrow_to_bf16(Stream stream, const float* from, BF16* to, int64_t n) {
  cast(stream, from, to, n);
}

void widen_to_f32(Stream stream, const BF16* from, float* to, int64_t n) {
  cast(stream, from, to, n);
}

}  // namespace rwkv::cuda
