#include "kernels/cuda/decode/prefill_kernels.h"

#include "kernels/core/cuda/cuda_check.h"
#include "kernels/core/error.h"
#include "kernels/cuda/decode/prefill_common.cuh"
#include "kernels/wkv/row_exponent.h"

namespace rwkv::cuda::decode {
namespace {

using rwkv::decode::Param;

constexpr int kN = rwkv::decode::kHeadSize;
constexpr int kMixThreads = 512;  ///< the most: a thread has 8 channels
constexpr int kMixRows = 2;       ///< of a block, and the one before them
constexpr int kHeadThreads = 256, kHeadTokens = 8;
constexpr int kMaxWarps = kMixThreads / 32;

/// Several sums over the block at once; `memory` is free again at the next barrier but one.
template <int kSums>
__device__ __forceinline__ void block_sums(float (&x)[kSums], float (*memory)[kSums]) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
#pragma unroll
  for (int i = 0; i < kSums; ++i) x[i] = warp_sum(x[i]);
#pragma unroll
  for (int i = 0; i < kSums; ++i)
    if (lane == i) memory[warp][i] = x[i];
  __syncthreads();
  const int warps = static_cast<int>(blockDim.x) / 32;
#pragma unroll
  for (int i = 0; i < kSums; ++i) x[i] = warp_sum(lane < warps ? memory[lane][i] : 0.0f);
}

/// Mean and 1 / deviation of several rows, 8 channels of each per thread.
template <int kRows>
__device__ __forceinline__ void norms(const float (&x)[kRows][8], bool mine, int width,
                                      float (*memory)[kMaxWarps][kRows], float (&mean)[kRows],
                                      float (&scale)[kRows]) {
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    mean[i] = 0;
#pragma unroll
    for (int c = 0; c < 8; ++c) mean[i] += x[i][c];
  }
  block_sums(mean, memory[0]);
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    mean[i] /= static_cast<float>(width);
    scale[i] = 0;
#pragma unroll
    for (int c = 0; c < 8; ++c) scale[i] += mine ? (x[i][c] - mean[i]) * (x[i][c] - mean[i]) : 0.0f;
  }
  block_sums(scale, memory[1]);
#pragma unroll
  for (int i = 0; i < kRows; ++i) scale[i] = rsqrtf(scale[i] / static_cast<float>(width) + 1e-5f);
}

/// A block per kMixRows rows of a sequence; or with kEnds per sequence, for its last row. Place 0
/// of the arrays is the row before.
template <class T, int kOutputs, bool kEnds>
__global__ void __launch_bounds__(kMixThreads, 2) mix_kernel(const PromptMix a) {
  constexpr int kOwn = kEnds ? 1 : kMixRows;
  constexpr int kRows = kOwn + 1;
  __shared__ float memory[2][kMaxWarps][kRows];
  const int d = a.width, e = 8 * static_cast<int>(threadIdx.x),
            block = static_cast<int>(blockIdx.x);
  const int tokens = a.prompts.tokens;
  const int sequence = kEnds ? block : block * kMixRows / tokens;
  const int count = a.prompts.counts[sequence];
  const int first = kEnds ? max(count - 1, 0) : block * kMixRows % tokens;
  const int64_t row = static_cast<int64_t>(sequence) * tokens + first - 1;
  const bool mine = e < d;
  float x[kRows][8] = {};
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    if (!mine || first + i == 0) continue;
    if (a.embedding != nullptr)
      get8(static_cast<const T*>(a.embedding) + static_cast<int64_t>(a.ids[row + i]) * d + e, x[i]);
    else
      get8(a.residual + (row + i) * d + e, x[i]);
    if (a.add != nullptr) {
      float y[8];
      get8(static_cast<const T*>(a.add) + (kEnds ? 2 * sequence + i : row + i) * d + e, y);
#pragma unroll
      for (int c = 0; c < 8; ++c) x[i][c] += y[c];
    }
    if (i > 0) put8(a.sum + (kEnds ? sequence : row + i) * d + e, x[i]);
  }
  float mean[kRows], scale[kRows];
  norms(x, mine, d, memory, mean, scale);
  if (!mine) return;
  {
    float weight[8], bias[8];
    get8(a.weight + e, weight);
    get8(a.bias + e, bias);
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int c = 0; c < 8; ++c) x[i][c] = (x[i][c] - mean[i]) * scale[i] * weight[c] + bias[c];
  }
  if (first == 0)
    get8(static_cast<const T*>(a.shift) + a.prompts.slots[sequence] * a.shift_stride + e, x[0]);
#pragma unroll
  for (int i = 1; i < kRows; ++i)
    if (first + i == count) put8(static_cast<T*>(a.last) + sequence * a.last_stride + e, x[i]);
  const int64_t all = kEnds ? a.prompts.batch : a.prompts.rows();
#pragma unroll
  for (int n = 0; n < kOutputs; ++n) {
    float mix[8];
    get8(a.mix + static_cast<int64_t>(n) * d + e, mix);
#pragma unroll
    for (int i = 1; i < kRows; ++i) {
      float y[8];
#pragma unroll
      for (int c = 0; c < 8; ++c) y[c] = x[i][c] + (x[i - 1][c] - x[i][c]) * mix[c];
      put8(static_cast<T*>(a.out) + (n * all + (kEnds ? sequence : row + i)) * d + e, y);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kMixThreads) norm_kernel(const PromptNorm a) {
  __shared__ float memory[2][kMaxWarps][1];
  const int d = a.width, e = 8 * static_cast<int>(threadIdx.x);
  const int64_t at = static_cast<int64_t>(blockIdx.x) * d + e;
  const bool mine = e < d;
  float x[1][8] = {}, y[8] = {};
  if (mine) {
    get8(a.residual + at, x[0]);
    get8(static_cast<const T*>(a.add) + at, y);
#pragma unroll
    for (int c = 0; c < 8; ++c) x[0][c] += y[c];
  }
  float mean[1], scale[1];
  norms(x, mine, d, memory, mean, scale);
  if (!mine) return;
  float weight[8], bias[8];
  get8(a.weight + e, weight);
  get8(a.bias + e, bias);
#pragma unroll
  for (int c = 0; c < 8; ++c) y[c] = (x[0][c] - mean[0]) * scale[0] * weight[c] + bias[c];
  put8(static_cast<T*>(a.out) + at, y);
}

template <class T>
__global__ void activation_kernel(PromptDown p, int64_t packs, int ld) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= packs) return;
  const int row_packs = p.rank / 8;
  T* const at = static_cast<T*>(p.out) + i / row_packs * ld + i % row_packs * 8;
  float x[8];
  get8(at, x);
#pragma unroll
  for (int c = 0; c < 8; ++c) x[c] = activated(p.act, x[c]);
  put8(at, x);
}

/// A thread has 8 channels of kHeadTokens tokens.
template <class T, bool kEnds>
__global__ void __launch_bounds__(kHeadThreads) output_kernel(const PromptOutput p) {
  constexpr int kTokens = kEnds ? 2 : kHeadTokens;
  const int d = p.heads * kN;
  int e = 8 * static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x);
  const bool mine = e < d;
  if (!mine) e = 0;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kTokens;
  float weight[8], bias[8];
  get8(p.params + static_cast<int64_t>(rwkv::decode::kLnXWeight) * d + e, weight);
  get8(p.params + static_cast<int64_t>(rwkv::decode::kLnXBias) * d + e, bias);
  const float inverse = 1.0f / p.value_scale;
#pragma unroll 2
  for (int i = 0; i < kTokens; ++i) {
    int64_t row = first + i;
    if constexpr (kEnds) {
      const auto sequence = static_cast<int>(blockIdx.x);
      row = static_cast<int64_t>(sequence) * p.prompts.tokens +
            max(p.prompts.counts[sequence] - 2 + i, 0);
    }
    const int64_t at = row * d + e;
    float y[8], v[8], gate[8];
    get8(static_cast<const T*>(p.y) + at, y);
    get8(static_cast<const T*>(p.v) + at, v);
    get8(static_cast<const T*>(p.gate) + at, gate);
    const float bonus = p.bonus[row * p.heads + e / kN] * inverse;
    float mean = 0, variance = 0;
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      y[c] *= inverse;
      mean += y[c];
    }
    mean = head_sum(mean) * (1.0f / kN);
#pragma unroll
    for (int c = 0; c < 8; ++c) variance += (y[c] - mean) * (y[c] - mean);
    const float scale = rsqrtf(head_sum(variance) * (1.0f / kN) + 64e-5f);
#pragma unroll
    for (int c = 0; c < 8; ++c)
      y[c] = ((y[c] - mean) * scale * weight[c] + bias[c] + bonus * v[c]) * gate[c];
    if (mine) put8(static_cast<T*>(p.out) + (first + i) * d + e, y);
  }
}

/// Eight numbers of a state per thread; blockIdx.y: layer, z: sequence. kBack: from `states` to the
/// slots.
template <bool kHalf, bool kBack>
__global__ void states_kernel(const PromptStates p) {
  const int sequence = static_cast<int>(blockIdx.z), layer = static_cast<int>(blockIdx.y);
  if (kBack && p.prompts.counts[sequence] == 0) return;
  const int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * 8;
  const int64_t numbers = static_cast<int64_t>(p.heads) * (kN * kN);
  if (i >= numbers) return;
  std::byte* const slot = p.wkv + p.prompts.slots[sequence] * p.wkv_stride;
  float* const state =
      p.states + (static_cast<int64_t>(layer) * p.prompts.batch + sequence) * numbers;
  const auto move = [&](auto* in_slot) {
    float x[8];
    if (kBack)
      get8(state + i, x);
    else
      get8(in_slot + layer * numbers + i, x);
    float factor = kBack ? p.slot_scale / p.scale : p.scale / p.slot_scale;
    if constexpr (kHalf) {  // eight threads have a row
      int8_t* const exponent =
          p.exponents +
          ((static_cast<int64_t>(p.prompts.slots[sequence]) * p.layers + layer) * numbers + i) / kN;
      if (kBack) {
        float largest = 0;
#pragma unroll
        for (int c = 0; c < 8; ++c) largest = fmaxf(largest, fabsf(x[c] * factor));
        for (int lanes = 4; lanes > 0; lanes /= 2)
          largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, lanes));
        const int e = exponent_for(largest);
        factor *= power_of_two(-e);
        if (i % kN == 0) *exponent = static_cast<int8_t>(e);
      } else {
        factor *= power_of_two(*exponent);
      }
    }
#pragma unroll
    for (int c = 0; c < 8; ++c) x[c] *= factor;
    if (kBack)
      put8(in_slot + layer * numbers + i, x);
    else
      put8(state + i, x);
  };
  if constexpr (kHalf)
    move(reinterpret_cast<__half*>(slot));
  else
    move(reinterpret_cast<float*>(slot));
}

/// Shift states and counters back to the slots; blockIdx.y: sequence. 16 bytes per thread.
__global__ void shifts_kernel(const PromptStates p, int64_t packs) {
  const int sequence = static_cast<int>(blockIdx.y);
  const int count = p.prompts.counts[sequence], slot = p.prompts.slots[sequence];
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (count == 0) return;
  if (i == 0) p.elapsed[slot] += count;
  if (i < packs)
    static_cast<uint4*>(p.shift)[slot * packs + i] =
        static_cast<const uint4*>(p.last)[sequence * packs + i];
}

/// A block per row.
__global__ void __launch_bounds__(1024)
    losses_kernel(const float* logits, const int32_t* targets, float* losses, int vocab) {
  __shared__ float memory[2][32];
  const float* const row = logits + static_cast<int64_t>(blockIdx.x) * vocab;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  float most = -INFINITY;
  for (int i = thread; i < vocab; i += 1024) most = fmaxf(most, row[i]);
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, o));
  if (lane == 0) memory[0][warp] = most;
  __syncthreads();
  for (int i = 0; i < 32; ++i) most = fmaxf(most, memory[0][i]);
  float sum = 0;
  for (int i = thread; i < vocab; i += 1024) sum += expf(row[i] - most);
  sum = warp_sum(sum);
  if (lane == 0) memory[1][warp] = sum;
  __syncthreads();
  if (thread != 0) return;
  sum = 0;
  for (int i = 0; i < 32; ++i) sum += memory[1][i];
  const int target = targets[blockIdx.x];
  losses[blockIdx.x] = target < 0 ? 0.0f : most + logf(sum) - row[target];
}

unsigned blocks_of(int64_t n, int64_t each) {
  return static_cast<unsigned>((n + each - 1) / each);
}
/// Threads of 8 channels each, whole warps.
unsigned row_threads(int width) {
  return static_cast<unsigned>((width / 8 + 31) / 32 * 32);
}

}  // namespace

void launch_prompt_mix(DType type, const PromptMix& a, cudaStream_t stream) {
  RWKV_ASSERT(a.width % 8 == 0 && a.width <= 8 * kMixThreads, "width ", a.width);
  RWKV_ASSERT(a.outputs == 1 || (a.outputs == 6 && !a.ends), a.outputs, " outputs of a mix");
  const unsigned threads = row_threads(a.width);
  by_half(type, [&]<class T>(T) {
    const unsigned blocks = blocks_of(a.prompts.rows(), kMixRows);
    if (a.ends)
      mix_kernel<T, 1, true><<<static_cast<unsigned>(a.prompts.batch), threads, 0, stream>>>(a);
    else if (a.outputs == 6)
      mix_kernel<T, 6, false><<<blocks, threads, 0, stream>>>(a);
    else
      mix_kernel<T, 1, false><<<blocks, threads, 0, stream>>>(a);
  });
  RWKV_LAUNCHED("mix of a prompt", stream);
}

void launch_prompt_activation(DType type, const PromptDown& down, int64_t rows, int ld,
                              cudaStream_t stream) {
  constexpr int kThreads = 256;
  const int64_t packs = rows * down.rank / 8;
  by_half(type, [&]<class T>(T) {
    activation_kernel<T><<<blocks_of(packs, kThreads), kThreads, 0, stream>>>(down, packs, ld);
  });
  RWKV_LAUNCHED("activation of a prompt", stream);
}

void launch_prompt_output(DType type, const PromptOutput& p, cudaStream_t stream) {
  const unsigned threads = std::min<unsigned>(row_threads(p.heads * kN), kHeadThreads);
  const unsigned columns = blocks_of(p.heads * kN / 8, threads);
  by_half(type, [&]<class T>(T) {
    if (p.ends)
      output_kernel<T, true>
          <<<dim3(static_cast<unsigned>(p.prompts.batch), columns), threads, 0, stream>>>(p);
    else
      output_kernel<T, false>
          <<<dim3(blocks_of(p.prompts.rows(), kHeadTokens), columns), threads, 0, stream>>>(p);
  });
  RWKV_LAUNCHED("output of a prompt", stream);
}

void launch_prompt_norm(DType type, const PromptNorm& a, cudaStream_t stream) {
  by_half(type, [&]<class T>(T) {
    norm_kernel<T><<<static_cast<unsigned>(a.rows), row_threads(a.width), 0, stream>>>(a);
  });
  RWKV_LAUNCHED("norm of a prompt", stream);
}

namespace {

template <bool kBack>
void move_states(const PromptStates& p, cudaStream_t stream) {
  constexpr int kThreads = 256;
  const dim3 grid(blocks_of(static_cast<int64_t>(p.heads) * (kN * kN), 8 * kThreads),
                  static_cast<unsigned>(p.layers), static_cast<unsigned>(p.prompts.batch));
  if (p.half_state)
    states_kernel<true, kBack><<<grid, kThreads, 0, stream>>>(p);
  else
    states_kernel<false, kBack><<<grid, kThreads, 0, stream>>>(p);
  RWKV_LAUNCHED("states of a prompt", stream);
}

}  // namespace

void launch_prompt_states_load(const PromptStates& p, cudaStream_t stream) {
  move_states<false>(p, stream);
}

void launch_prompt_states_store(DType type, const PromptStates& p, cudaStream_t stream) {
  constexpr int kThreads = 256;
  move_states<true>(p, stream);
  const auto packs = p.shift_stride * static_cast<int64_t>(dtype_bytes(type)) / 16;
  shifts_kernel<<<dim3(blocks_of(packs, kThreads), static_cast<unsigned>(p.prompts.batch)),
                  kThreads, 0, stream>>>(p, packs);
  RWKV_LAUNCHED("shift states of a prompt", stream);
}

void launch_prompt_losses(const float* logits, const int32_t* targets, float* losses, int rows,
                          int vocab, cudaStream_t stream) {
  losses_kernel<<<static_cast<unsigned>(rows), 1024, 0, stream>>>(logits, targets, losses, vocab);
  RWKV_LAUNCHED("losses of a prompt", stream);
}

}  // namespace rwkv::cuda::decode
