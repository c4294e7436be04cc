#pragma once
/// Small products of prompts: several side by side, by mma.sync, without tensor maps and plans.

#include <cuda_runtime.h>

#include <initializer_list>

#include "kernels/core/dtype.h"
#include "kernels/cuda/decode/products.h"

namespace rwkv::cuda::decode {

/// out = f(a w^T); the sums of a row are in one order, whatever the number of rows.
struct SmallProduct {
  const void *a = nullptr, *w = nullptr;        ///< [rows][lda], [n][ldw]
  void* out = nullptr;                          ///< [rows][ldo]
  int lda = 0, ldw = 0, ldo = 0, n = 0, k = 0;  ///< all multiples of 8
  ProductAct act = ProductAct::kNone;
  /// 0: out is of the type of the operands. Else f32, and k is cut into so many parts: `parts`
  /// matrices [rows][ldo], one behind the other, without act.
  int parts = 0;
};
inline constexpr int kMostSmallProducts = 8;
/// What a launch makes; at most kMostSmallProducts.
void launch_small_products(DType type, int rows, std::initializer_list<SmallProduct> products,
                           cudaStream_t stream);

}  // namespace rwkv::cuda::decode
