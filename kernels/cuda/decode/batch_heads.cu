// Heads of a batch: what lies between the products of a head and the output product.

#include "kernels/cuda/decode/batch_heads.cuh"

#include <algorithm>

#include "kernels/core/cuda/cuda_check.h"
#include "kernels/core/error.h"
#include "kernels/cuda/decode/dependent.cuh"
#include "kernels/cuda/decode/half_types.h"

namespace rwkv::cuda::decode {
namespace {

constexpr int kHeadBlocks = 12;  ///< of a multiprocessor, f16 states

/// Two sums over the 64 threads of a block.
__device__ __forceinline__ float2 pair_sum(float x, float y, float2* memory) {
  x = warp_sum(x);
  y = warp_sum(y);
  if (threadIdx.x % 32 == 0) memory[threadIdx.x / 32] = make_float2(x, y);
  __syncthreads();
  return make_float2(memory[0].x + memory[1].x, memory[0].y + memory[1].y);
}

/// f32 states: a block per sequence and head, a thread per row of the state.
template <class T>
__global__ void __launch_bounds__(kN, 8) heads_kernel(const Heads a) {
  __shared__ alignas(16) float fr[kN], fw[kN], fk[kN], fa[kN], fb[kN];
  __shared__ float2 memory[3][2];
  let_next_kernel_start();
  const int i = static_cast<int>(threadIdx.x), head = static_cast<int>(blockIdx.x) % a.heads;
  const int row = static_cast<int>(blockIdx.x) / a.heads, channel = head * kN + i;
  const int64_t at = static_cast<int64_t>(row) * (a.heads * kN) + channel;
  const HeadParams<1> params(a, channel);
  wait_for_kernel_before();
  HeadInputs<T, 1> inputs;
  inputs.fetch(a, at);
  const Channels<T, 1> own(a, params, inputs, at);
  const float2 sums = pair_sum(own.squares, own.bonus, memory[0]);
  const float z = own.u[0] * rsqrtf(fmaxf(sums.x, 1e-24f)), v = own.v[0];
  constexpr float kScale = 0.6065306597126334f;
  fr[i] = own.r[0];
  fk[i] = own.k[0];
  fa[i] = -z;
  fb[i] = z * own.rate[0];
  fw[i] = expf(-kScale / (1.0f + expf(-own.decay[0])));
  __syncthreads();
  auto* const state =
      reinterpret_cast<float4*>(a.wkv + a.slots[row] * a.wkv_stride) + channel * (kN / 4);
  float4 s[kN / 4];
  float sum = 0;
#pragma unroll
  for (int q = 0; q < kN / 4; ++q) {
    s[q] = state[q];
    sum += s[q].x * fa[4 * q] + s[q].y * fa[4 * q + 1] + s[q].z * fa[4 * q + 2] +
           s[q].w * fa[4 * q + 3];
  }
  float y = 0;
  const auto next = [&](float old, int j) {
    const float now = old * fw[j] + sum * fb[j] + v * fk[j];
    y += now * fr[j];
    return now;
  };
#pragma unroll
  for (int q = 0; q < kN / 4; ++q) {
    s[q].x = next(s[q].x, 4 * q);
    s[q].y = next(s[q].y, 4 * q + 1);
    s[q].z = next(s[q].z, 4 * q + 2);
    s[q].w = next(s[q].w, 4 * q + 3);
    state[q] = s[q];
  }
  const float mean = pair_sum(y, 0.0f, memory[1]).x * (1.0f / kN);
  const float centred[1] = {y - mean};
  const float variance = pair_sum(centred[0] * centred[0], 0.0f, memory[2]).x * (1.0f / kN);
  own.finish(a, params, at, centred, variance, sums.y);
}

/// f16 states: a warp per head. Warps stay for one head of many sequences; while they work on one,
/// the copy engine brings the state of the next and takes that of the one before away. States do
/// not come from the kernel before.
template <class T>
__global__ void __launch_bounds__(32, kHeadBlocks)
    half_heads_kernel(const Heads a, const __grid_constant__ CUtensorMap states) {
  __shared__ alignas(1024) uint4 packs[2][fp16::kStatePacks];
  __shared__ alignas(16) __half2 vectors[5][kN / 2];
  __shared__ uint64_t barriers[2];
  let_next_kernel_start();
  const HalfHead<T> head(a, states, static_cast<int>(blockIdx.x) % a.heads, vectors);
  // Warps for this head: the first heads have one more where they do not divide the warps.
  const int step = (static_cast<int>(gridDim.x) - head.head + a.heads - 1) / a.heads;
  int row = static_cast<int>(blockIdx.x) / a.heads, slot = a.slots[row];
  if (head.lane == 0) {
    make_barrier(shared_address(&barriers[0]));
    make_barrier(shared_address(&barriers[1]));
    head.load(packs[0], slot, &barriers[0]);
  }
  __syncwarp();
  const HeadParams<2> params(a, head.channel());
  auto next_elapsed = static_cast<uint32_t>(a.elapsed[slot]);
  char2 next_exponents = *head.exponents_of(slot);
  wait_for_kernel_before();
  HeadInputs<T, 2> inputs;
  inputs.fetch(a, head.place(row));
  for (int n = 0; row < a.rows; row += step, ++n) {
    const int64_t at = head.place(row);
    const int next_row = min(row + step, a.rows - 1), next_slot = a.slots[next_row];
    const uint32_t elapsed = next_elapsed;
    const char2 before = next_exponents;
    const Channels<T, 2> own(a, params, inputs, at);
    const float bonus = head.prepare(own, elapsed);
    wait_barrier(shared_address(&barriers[n & 1]), static_cast<uint32_t>(n >> 1 & 1));
    if (head.lane == 0) {
      wait_tiles_read();
      if (row + step < a.rows) head.load(packs[(n + 1) & 1], next_slot, &barriers[(n + 1) & 1]);
    }
    __syncwarp();
    inputs.fetch(a, head.place(next_row));
    next_elapsed = static_cast<uint32_t>(a.elapsed[next_slot]);
    next_exponents = *head.exponents_of(next_slot);
    head.advance(params, own, bonus, at, packs[n & 1], slot, elapsed, before);
    slot = next_slot;
  }
  if (head.lane == 0) wait_tiles();
}

}  // namespace

void launch_heads(DType type, const Heads& a, bool overlap, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(a.rows * a.heads);
  by_half(type, [&]<class T>(T) {
    if (a.half_state) {
      CUtensorMap states;
      RWKV_CUDA(describe_states(states, a));
      const auto most = static_cast<unsigned>(std::max(a.multiprocessors * kHeadBlocks, a.heads));
      RWKV_CUDA(launch_dependent(half_heads_kernel<T>, std::min(blocks, most), 32, 0, 1, overlap,
                                 stream, a, states));
    } else {
      RWKV_CUDA(launch_dependent(heads_kernel<T>, blocks, kN, 0, 1, overlap, stream, a));
    }
  });
  RWKV_LAUNCHED("heads of a batch", stream);
}

}  // namespace rwkv::cuda::decode
