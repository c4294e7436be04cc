/// Heads of a prompt between the products and the recurrence: the second low-rank products of w, a
/// and v, and what is done with their results, which never leave the multiprocessor. And the first
/// low-rank products where there is little to multiply.

#include "kernels/core/cuda/cuda_check.h"
#include "kernels/cuda/decode/prefill_common.cuh"
#include "kernels/cuda/decode/prefill_kernels.h"
#include "kernels/wkv/cuda/mma.cuh"

namespace rwkv::cuda::decode {
namespace {

using rwkv::decode::Param;

constexpr int kN = rwkv::decode::kHeadSize;
/// Operands come in pieces of 64 k, rows of 128 bytes whose 16-byte packs are swizzled, and so lie
/// the three results.
constexpr int kDepth = 64, kRowBytes = 128;
/// A block makes kTile tokens of one head.
constexpr int kTile = 64, kThreads = 128, kBlocks = 4;
constexpr int kTileBytes = kTile * kRowBytes, kStageBytes = kTileBytes + kN * kRowBytes;
constexpr int kSharedBytes = 2 * kStageBytes + 3 * kTileBytes;
/// A decay logit that means: keep everything. Finite in f16.
constexpr float kNoDecay = -6e4f;

__device__ __forceinline__ uint32_t pack_at(int row, int q) {
  return static_cast<uint32_t>(row * kRowBytes + ((q ^ (row & 7)) << 4));
}

/// kRows rows from `first` on and 64 columns from `k` on, zeros beyond.
template <int kRows>
__device__ __forceinline__ void fetch(uint32_t to, const void* from, int64_t ld, int64_t first,
                                      int64_t rows, int k, int columns) {
#pragma unroll
  for (int n = 0; n < kRows * 8 / kThreads; ++n) {
    const int i = n * kThreads + static_cast<int>(threadIdx.x), row = i / 8, q = i % 8;
    const bool there = first + row < rows && k + 8 * q < columns;
    copy_async16(
        to + pack_at(row, q),
        static_cast<const uint16_t*>(from) + (there ? (first + row) * ld + k + 8 * q : int64_t{0}),
        there);
  }
}

/// sums (16 x 64 per warp) += a stage's tile of tokens times its rows of the matrix.
template <class T>
__device__ __forceinline__ void multiply(float (&sums)[8][4], uint32_t stage, int warp, int lane) {
#pragma unroll
  for (int step = 0; step < kDepth / 16; ++step) {
    const Frag a = load_frag(stage + pack_at(16 * warp + lane % 16, 2 * step + lane / 16));
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      const Frag b = load_frag(stage + kTileBytes +
                               pack_at(16 * n + lane % 8 + lane / 16 * 8, 2 * step + lane / 8 % 2));
      mma<T>(sums[2 * n], a, b.x[0], b.x[1]);
      mma<T>(sums[2 * n + 1], a, b.x[2], b.x[3]);
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, kBlocks) heads_kernel(const PromptHeads p) {
  extern __shared__ __align__(128) std::byte shared[];
  const uint32_t memory = shared_address(shared), results_at = memory + 2 * kStageBytes;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const int head = static_cast<int>(blockIdx.x);
  const int64_t first = static_cast<int64_t>(blockIdx.y) * kTile, all = p.prompts.rows();
  const int products = p.layer == 0 ? 2 : 3;  // the first layer mixes no value

  // Pieces of all products are one list.
  int which = 0, k = 0;
  const auto fetch_next = [&](int slot) {
    if (which < products) {
      const uint32_t to = memory + static_cast<uint32_t>(slot * kStageBytes);
      const int rank = p.rank[which];
      fetch<kTile>(to, p.middle[which], p.middle_ld, first, all, k, rank);
      fetch<kN>(to + kTileBytes, p.up[which], rank, head * kN, (head + 1) * kN, k, rank);
      k += kDepth;
      if (k >= rank) k = 0, ++which;
    }
    copy_async_commit();
  };
  fetch_next(0);
  int slot = 0;
  for (int product = 0; product < products; ++product) {
    float sums[8][4] = {};
    for (int done = 0; done < p.rank[product]; done += kDepth) {
      fetch_next(slot ^ 1);
      copy_async_wait<1>();
      __syncthreads();
      multiply<T>(sums, memory + static_cast<uint32_t>(slot * kStageBytes), warp, lane);
      __syncthreads();
      slot ^= 1;
    }
    const uint32_t to = results_at + static_cast<uint32_t>(product * kTileBytes);
#pragma unroll
    for (int n = 0; n < 8; ++n)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        store_shared(
            to + pack_at(16 * warp + lane / 4 + 8 * half, n) + static_cast<uint32_t>(lane % 4 * 4),
            pack<T>(sums[n][2 * half], sums[n][2 * half + 1]));
  }
  __syncthreads();

  // Eight channels of a token per thread.
  const int d = p.heads * kN, q = thread % 8, e = head * kN + 8 * q;
  float w0[8], a0[8], v0[8], key_scale[8], key_rate[8], bonus[8];
  const auto param = [&](Param of, float(&x)[8]) {
    get8(p.params + static_cast<int64_t>(of) * d + e, x);
  };
  param(rwkv::decode::kW0, w0);
  param(rwkv::decode::kA0, a0);
  param(rwkv::decode::kV0, v0);
  param(rwkv::decode::kKeyScale, key_scale);
  param(rwkv::decode::kKeyRate, key_rate);
  param(rwkv::decode::kBonus, bonus);
#pragma unroll 1
  for (int i = thread / 8; i < kTile; i += kThreads / 8) {
    const int64_t row = first + i, at = row * d + e;
    const bool mine = row < all;
    float r[8] = {}, k0[8] = {}, v[8] = {}, before[8] = {}, w[8], a[8], b[8];
    bool there = false;
    if (mine) {
      get8(static_cast<const T*>(p.r) + at, r);
      get8(static_cast<const T*>(p.k) + at, k0);
      get8(static_cast<const T*>(p.v) + at, v);
      if (p.layer > 0) get8(static_cast<const T*>(p.v_first) + at, before);
      there = row % p.prompts.tokens < p.prompts.counts[row / p.prompts.tokens];
    }
    const auto result = [&](int of, float(&x)[8]) {
      get8(reinterpret_cast<const T*>(shared + 2 * kStageBytes + of * kTileBytes + pack_at(i, q)),
           x);
    };
    result(0, w);
    result(1, a);
    if (p.layer > 0) {
      result(2, b);
#pragma unroll
      for (int c = 0; c < 8; ++c) v[c] += (before[c] - v[c]) * logistic_of(v0[c] + b[c]);
    } else if (mine) {
      put8(static_cast<T*>(p.v_first) + at, v);
    }
    float squares = 0, sum = 0;
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      w[c] += w0[c];
      b[c] = k0[c] * key_scale[c];
      squares += b[c] * b[c];
      a[c] = logistic_of(a0[c] + a[c]);
      k0[c] *= 1.0f + (a[c] - 1.0f) * key_rate[c];
      sum += r[c] * k0[c] * bonus[c];
      v[c] *= p.value_scale;
    }
    const float inverse = 1.0f / fmaxf(sqrtf(head_sum(squares)), 1e-12f);
    sum = head_sum(sum);
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      const float z = b[c] * inverse;
      b[c] = there ? z * a[c] : 0.0f;
      a[c] = there ? -z : 0.0f;
      if (!there) {
        w[c] = kNoDecay;
        k0[c] = v[c] = 0;
      }
    }
    if (!mine) continue;
    put8(static_cast<T*>(p.k) + at, k0);
    put8(static_cast<T*>(p.v) + at, v);
    put8(static_cast<T*>(p.w) + at, w);
    put8(static_cast<T*>(p.a) + at, a);
    put8(static_cast<T*>(p.b) + at, b);
    if (q == 0) p.bonus[row * p.heads + head] = sum;
  }
}

/// Stages of a ring for the first products, whose operands are long.
constexpr int kStages = 4;

struct Downs {
  PromptDown of[kMostDowns];
  int first[kMostDowns + 1];  ///< tiles of 64 columns of the maps before
  int rows, width, ld;
};

template <class T>
__global__ void __launch_bounds__(kThreads) downs_kernel(const __grid_constant__ Downs all) {
  extern __shared__ __align__(128) std::byte shared[];
  const uint32_t memory = shared_address(shared);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  int which = 0;
  while (static_cast<int>(blockIdx.x) >= all.first[which + 1]) ++which;
  const PromptDown& p = all.of[which];
  const int column = (static_cast<int>(blockIdx.x) - all.first[which]) * kN;
  const int64_t first = static_cast<int64_t>(blockIdx.y) * kTile;
  const int pieces = (all.width + kDepth - 1) / kDepth;
  const auto fetch_piece = [&](int piece) {
    if (piece < pieces) {
      const uint32_t to = memory + static_cast<uint32_t>(piece % kStages * kStageBytes);
      fetch<kTile>(to, p.x, all.width, first, all.rows, piece * kDepth, all.width);
      fetch<kN>(to + kTileBytes, p.w, all.width, column, p.rank, piece * kDepth, all.width);
    }
    copy_async_commit();
  };
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) fetch_piece(i);
  float sums[8][4] = {};
  for (int piece = 0; piece < pieces; ++piece) {
    copy_async_wait<kStages - 2>();
    __syncthreads();  // the piece is there for all, and all are done with the one before
    fetch_piece(piece + kStages - 1);
    multiply<T>(sums, memory + static_cast<uint32_t>(piece % kStages * kStageBytes), warp, lane);
  }
#pragma unroll
  for (int n = 0; n < 8; ++n)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row = first + 16 * warp + 8 * half + lane / 4;
      const int c = column + 8 * n + lane % 4 * 2;
      if (row >= all.rows || c >= p.rank) continue;
      *reinterpret_cast<uint32_t*>(static_cast<T*>(p.out) + row * all.ld + c) =
          pack<T>(activated(p.act, sums[n][2 * half]), activated(p.act, sums[n][2 * half + 1]));
    }
}

}  // namespace

void launch_prompt_heads(DType type, const PromptHeads& p, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(p.heads),
                  static_cast<unsigned>((p.prompts.rows() + kTile - 1) / kTile));
  by_half(type, [&]<class T>(T) {
    RWKV_CUDA(cudaFuncSetAttribute(heads_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   kSharedBytes));
    heads_kernel<T><<<grid, kThreads, kSharedBytes, stream>>>(p);
  });
  RWKV_LAUNCHED("heads of a prompt", stream);
}

void launch_prompt_downs(DType type, int rows, int width, int ld,
                         std::initializer_list<PromptDown> downs, cudaStream_t stream) {
  constexpr int kBytes = kStages * kStageBytes;
  RWKV_ASSERT(downs.size() <= kMostDowns && width % 8 == 0 && ld % 8 == 0, downs.size(),
              " low-rank products");
  Downs all{};
  all.rows = rows;
  all.width = width;
  all.ld = ld;
  size_t i = 0;
  for (const PromptDown& p : downs) {
    RWKV_ASSERT(p.rank % 8 == 0, "low-rank width ", p.rank);
    all.of[i] = p;
    all.first[i + 1] = all.first[i] + (p.rank + kN - 1) / kN;
    ++i;
  }
  const dim3 grid(static_cast<unsigned>(all.first[i]),
                  static_cast<unsigned>((rows + kTile - 1) / kTile));
  by_half(type, [&]<class T>(T) {
    RWKV_CUDA(
        cudaFuncSetAttribute(downs_kernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes));
    downs_kernel<T><<<grid, kThreads, kBytes, stream>>>(all);
  });
  RWKV_LAUNCHED("low-rank products of a prompt", stream);
}

}  // namespace rwkv::cuda::decode
