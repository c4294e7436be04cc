#include <algorithm>

#include "kernels/wkv/cuda/wkv7_segments.cuh"

namespace rwkv::cuda {
namespace chunk {
namespace {

constexpr int kJoinRows = 8, kJoinThreads = 256;

// One block carries 8 rows of one head's state over all segments; thread -> (2 rows, 1 column).
template <bool kBackward>
__global__ void __launch_bounds__(kJoinThreads)
    join_kernel(const float* operator_m, float* slots, const float* begin, int segments) {
  __shared__ float rows[2][kJoinRows][kN];
  __shared__ float tile[kN][kN + 1];  // M, or its transpose
  const int thread = static_cast<int>(threadIdx.x), column = thread & 63, row = (thread >> 6) * 2;
  const int64_t head = blockIdx.x;
  const int first_row = static_cast<int>(blockIdx.y) * kJoinRows;
  wait_for_previous_kernel();
  float s[2];
#pragma unroll
  for (int i = 0; i < 2; ++i)
    s[i] =
        begin == nullptr ? 0.0f : begin[head * kStateFloats + (first_row + row + i) * kN + column];
  for (int n = 0; n < segments; ++n) {
    const int g = kBackward ? segments - 1 - n : n;
    const int64_t slot = (head * segments + g) * kStateFloats;
    if (n + 1 == segments) {  // nothing follows; its operators may not even be there
#pragma unroll
      for (int i = 0; i < 2; ++i) slots[slot + (first_row + row + i) * kN + column] = s[i];
      break;
    }
    float m[kStateFloats / kJoinThreads];
#pragma unroll
    for (int i = 0; i < kStateFloats / kJoinThreads; ++i)
      m[i] = operator_m[slot + i * kJoinThreads + thread];
    float sum[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float* cell = slots + slot + (first_row + row + i) * kN + column;
      sum[i] = *cell;
      *cell = s[i];
      rows[n & 1][row + i][column] = s[i];
    }
    __syncthreads();  // the last round's reads of `tile` are over
#pragma unroll
    for (int i = 0; i < kStateFloats / kJoinThreads; ++i) {
      const int at = i * kJoinThreads + thread;
      if (kBackward)
        tile[at & 63][at >> 6] = m[i];
      else
        tile[at >> 6][at & 63] = m[i];
    }
    __syncthreads();
#pragma unroll 16
    for (int k = 0; k < kN; ++k) {
      const float f = tile[k][column];
      sum[0] += rows[n & 1][row][k] * f;
      sum[1] += rows[n & 1][row + 1][k] * f;
    }
    s[0] = sum[0];
    s[1] = sum[1];
  }
}

}  // namespace

cudaError_t join_forward(const Plan& plan, int streams, const Memory& memory, const float* s0,
                         cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(streams), kN / kJoinRows);
  join_kernel<false>
      <<<grid, kJoinThreads, 0, stream>>>(memory.operator_m, memory.operator_n, s0, plan.segments);
  return cudaGetLastError();
}

cudaError_t join_backward(const Plan& plan, int streams, const Memory& memory, const float* ds_out,
                          cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(streams), kN / kJoinRows);
  return launch(join_kernel<true>, grid, kJoinThreads, 0, true, stream,
                static_cast<const float*>(memory.operator_m), memory.operator_n, ds_out,
                plan.segments);
}

}  // namespace chunk

namespace {

int block_slots(int multiprocessors) {
  return 3 * multiprocessors;
}

}  // namespace

int wkv7_scan_segments(const Wkv7Shape& shape, int multiprocessors) {
  const int fill = block_slots(multiprocessors) / (shape.batch * shape.heads);
  return std::max(2, std::min(fill, (shape.tokens + chunk::kStep - 1) / 128));
}

int wkv7_chunk_segments(const Wkv7Shape& shape, int multiprocessors) {
  // Measured on an H200: joining segments costs about a second forward and half a backward, so it
  // pays while one block per head leaves two thirds of the block slots empty.
  if (3 * shape.batch * shape.heads > block_slots(multiprocessors) || shape.tokens < 225) return 1;
  return wkv7_scan_segments(shape, multiprocessors);
}

size_t wkv7_chunk_saved_bytes(const Wkv7Shape& shape) {
  const chunk::Plan plan(shape);
  const int streams = shape.batch * shape.heads;
  return chunk::checkpoint_bytes(plan, streams) + chunk::operator_bytes(plan, streams);
}

size_t wkv7_chunk_workspace_bytes(const Wkv7Shape& shape) {
  return 2 * chunk::operator_bytes(chunk::Plan(shape), shape.batch * shape.heads);
}

}  // namespace rwkv::cuda
