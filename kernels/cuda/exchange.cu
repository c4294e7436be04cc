// The small kernels around collectives. Limited by bandwidth: 6 bytes per element for the two
// casts, ranks + 1 times the type's for the sums.

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

template <class T>
__global__ void __launch_bounds__(kThreads) sum_kernel(const T* from, int ranks, int64_t n, T* to) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads * kWide;
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kWide; i < n;
       i += step) {
    float sum[kWide], x[kWide];
    load<kWide>(from + i, sum);
    for (int r = 1; r < ranks; ++r) {
      load<kWide>(from + r * n + i, x);
#pragma unroll
      for (int k = 0; k < kWide; ++k) sum[k] += x[k];
    }
    store<kWide>(to + i, sum);
  }
}

unsigned blocks_for(int64_t n) {
  return static_cast<unsigned>(std::min(kBlocks, (n / kWide + kThreads - 1) / kThreads));
}

template <class From, class To>
void cast(Stream stream, const From* from, To* to, int64_t n) {
  if (n == 0) return;
  cast_kernel<<<blocks_for(n), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(from, to, n);
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

void sum_parts(Stream stream, DType type, const void* from, int ranks, int64_t n, void* to) {
  if (n == 0) return;
  const auto s = static_cast<cudaStream_t>(stream);
  if (type == DType::kF32)
    sum_kernel<<<blocks_for(n), kThreads, 0, s>>>(static_cast<const float*>(from), ranks, n,
                                                  static_cast<float*>(to));
  else
    sum_kernel<<<blocks_for(n), kThreads, 0, s>>>(static_cast<const BF16*>(from), ranks, n,
                                                  static_cast<BF16*>(to));
  RWKV_LAUNCHED("sum over ranks", s);
}

}  // namespace rwkv::cuda
