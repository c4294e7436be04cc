/// Small products, several in one launch. A block makes 64 x 32 results
/// with four warps; operands come in pieces of 64 k through a ring of six stages in shared memory,
/// rows of 128 bytes whose 16-byte packs are swizzled.

#include "kernels/cuda/decode/small_products.h"

#include <algorithm>

#include "kernels/core/cuda/cuda_check.h"
#include "kernels/core/error.h"
#include "kernels/cuda/decode/weights.cuh"

namespace rwkv::cuda::decode {
namespace {

constexpr int kTile = 64, kColumns = 32, kDepth = 64, kStages = 6, kBlock = 128;
constexpr int kTileBytes = kTile * kDepth * 2, kStageBytes = kTileBytes + kColumns * kDepth * 2;
constexpr int kShared = kStages * kStageBytes;

struct SmallProducts {
  SmallProduct of[kMostSmallProducts];
  int first[kMostSmallProducts + 1];  ///< tiles of columns, times parts, of the products before
  int rows;
};

/// Byte offset of pack q (16 bytes) of a row in a tile.
__device__ __forceinline__ uint32_t pack_at(int row, int q) {
  return static_cast<uint32_t>(row * 128 + ((q ^ (row & 7)) << 4));
}

/// kRows rows from `first` on and 64 columns from `k` on, zeros beyond.
template <int kRows>
__device__ __forceinline__ void fetch_tile(uint32_t to, const void* from, int ld, int first,
                                           int rows, int k, int columns) {
#pragma unroll
  for (int n = 0; n < kRows * 8 / kBlock; ++n) {
    const int i = n * kBlock + static_cast<int>(threadIdx.x), row = i / 8, q = i % 8;
    const bool there = first + row < rows && k + 8 * q < columns;
    const auto* const p = static_cast<const uint16_t*>(from) +
                          (there ? static_cast<int64_t>(first + row) * ld + k + 8 * q : 0);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to + pack_at(row, q)),
                 "l"(p), "r"(there ? 16 : 0)
                 : "memory");
  }
}

__device__ __forceinline__ void load_matrices(uint32_t (&x)[4], uint32_t from) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(from)
               : "memory");
}

template <class T>
__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
  if constexpr (std::is_same_v<T, __half>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
        "{%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ float activate(ProductAct act, float x) {
  if (act == ProductAct::kTanh) return tanhf(x);
  if (act == ProductAct::kSquaredRelu) return fmaxf(x, 0.0f) * fmaxf(x, 0.0f);
  return act == ProductAct::kSigmoid ? 1.0f / (1.0f + expf(-x)) : x;
}

template <class T>
__global__ void __launch_bounds__(kBlock)
    small_products_kernel(const __grid_constant__ SmallProducts all) {
  extern __shared__ __align__(128) std::byte shared[];
  const auto memory = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  int which = 0;
  while (static_cast<int>(blockIdx.x) >= all.first[which + 1]) ++which;
  const SmallProduct& p = all.of[which];
  const int row0 = static_cast<int>(blockIdx.y) * kTile,
            tile = static_cast<int>(blockIdx.x) - all.first[which];
  const int parts = max(p.parts, 1), part = tile % parts, column0 = tile / parts * kColumns;
  const int all_pieces = (p.k + kDepth - 1) / kDepth, before = all_pieces * part / parts;
  const int pieces = all_pieces * (part + 1) / parts - before;
  const auto fetch = [&](int piece) {
    if (piece < pieces) {
      const uint32_t to = memory + static_cast<uint32_t>(piece % kStages * kStageBytes);
      fetch_tile<kTile>(to, p.a, p.lda, row0, all.rows, (before + piece) * kDepth, p.k);
      fetch_tile<kColumns>(to + kTileBytes, p.w, p.ldw, column0, p.n, (before + piece) * kDepth,
                           p.k);
    }
    asm volatile("cp.async.commit_group;\n" ::: "memory");
  };
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) fetch(i);

  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_row = warp * 16;
  float sums[4][4] = {};
  for (int piece = 0; piece < pieces; ++piece) {
    asm volatile("cp.async.wait_group %0;\n" ::"n"(kStages - 2) : "memory");
    __syncthreads();  // the piece is there for all, and all are done with the one before
    fetch(piece + kStages - 1);
    const uint32_t a_tile = memory + static_cast<uint32_t>(piece % kStages * kStageBytes),
                   w_tile = a_tile + kTileBytes;
#pragma unroll
    for (int step = 0; step < kDepth / 16; ++step) {
      uint32_t a[4], w[2][4];
      load_matrices(a, a_tile + pack_at(warp_row + lane % 16, 2 * step + lane / 16));
#pragma unroll
      for (int m = 0; m < 2; ++m)
        load_matrices(w[m],
                      w_tile + pack_at(16 * m + lane % 8 + lane / 16 * 8, 2 * step + lane / 8 % 2));
#pragma unroll
      for (int n = 0; n < 4; ++n)
        multiply_add<T>(sums[n], a, w[n / 2][n % 2 * 2], w[n / 2][n % 2 * 2 + 1]);
    }
  }
#pragma unroll
  for (int n = 0; n < 4; ++n)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = row0 + warp_row + 8 * half + lane / 4,
                column = column0 + 8 * n + lane % 4 * 2;
      if (row >= all.rows || column >= p.n) continue;
      if (p.parts > 0) {
        float* const to = static_cast<float*>(p.out) +
                          (static_cast<int64_t>(part) * all.rows + row) * p.ldo + column;
        to[0] = sums[n][2 * half];
        to[1] = sums[n][2 * half + 1];
        continue;
      }
      T* const to = static_cast<T*>(p.out) + static_cast<int64_t>(row) * p.ldo + column;
      to[0] = Weights<T>::from(activate(p.act, sums[n][2 * half]));
      to[1] = Weights<T>::from(activate(p.act, sums[n][2 * half + 1]));
    }
}

template <class T>
void launch_as(const SmallProducts& all, cudaStream_t stream) {
  RWKV_CUDA(cudaFuncSetAttribute(small_products_kernel<T>,
                                 cudaFuncAttributeMaxDynamicSharedMemorySize, kShared));
  const dim3 grid(static_cast<unsigned>(all.first[kMostSmallProducts]),
                  static_cast<unsigned>((all.rows + kTile - 1) / kTile));
  small_products_kernel<T><<<grid, kBlock, kShared, stream>>>(all);
  RWKV_LAUNCHED("small products", stream);
}

}  // namespace

void launch_small_products(DType type, int rows, std::initializer_list<SmallProduct> products,
                           cudaStream_t stream) {
  RWKV_ASSERT(products.size() <= kMostSmallProducts, products.size(), " products");
  SmallProducts all{};
  all.rows = rows;
  int i = 0;
  for (const SmallProduct& p : products) {
    RWKV_ASSERT(p.k % 8 == 0 && p.n % 8 == 0 && p.lda % 8 == 0 && p.ldw % 8 == 0, "product ", p.n,
                " x ", p.k);
    RWKV_ASSERT(p.parts == 0 || p.act == ProductAct::kNone, "parts of a product are not activated");
    all.of[i] = p;
    all.first[i + 1] = all.first[i] + (p.n + kColumns - 1) / kColumns * std::max(p.parts, 1);
    ++i;
  }
  for (; i < kMostSmallProducts; ++i) all.first[i + 1] = all.first[i];
  if (type == DType::kF16)
    launch_as<__half>(all, stream);
  else
    launch_as<__nv_bfloat16>(all, stream);
}

}  // namespace rwkv::cuda::decode
