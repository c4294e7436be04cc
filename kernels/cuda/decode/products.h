#pragma once
/// Products of the rows of few or many sequences with weights: y = f(x w^T), several in one launch.
///
/// The sums of a result have one order, which the shapes of the weights and `pieces` alone decide:
/// k is cut into `pieces` equal parts, each is summed front to back by the tensor cores in f32, and
/// the parts are added in f32 as a binary tree. How many rows there are and how the work is cut
/// (ProductPlan) changes when and where that happens, and not a bit of the result.

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/core/dtype.h"
#include "kernels/decode/product_plan.h"

namespace rwkv::cuda::decode {

using rwkv::decode::ProductPlan;

enum class ProductAct : int { kNone, kTanh, kSigmoid, kSquaredRelu };

/// Row-major, on the device; pointers and rows aligned to 16 bytes. x, w: f16 or bf16.
struct Product {
  const void *x = nullptr, *w = nullptr;  ///< [rows][ldx], [n][ldw]; k of each row
  void* y = nullptr;                      ///< [rows][ldy], type of x; or f32, see below
  int ldx = 0, ldw = 0, ldy = 0, n = 0, k = 0;
  ProductAct act = ProductAct::kNone;
  bool wide = false;  ///< y is f32; without act
  bool keep = false;  ///< y should stay in the L2 cache while the next kernel streams states
};
inline constexpr int kMostProducts = 12;
inline constexpr int kMostPieces = 8;
/// Rows of weights of a tile: in general, and of the kernel for few rows (few_products.h).
inline constexpr int kTileRows = 128, kFewRows = 64;

/// Parts of k for products that are launched together: as many as give half of a large GPU's
/// multiprocessors something to do for a single column of tiles, at most kMostPieces.
int product_pieces(std::span<const Product> products);

/// What is worth trying for so many rows, the likely best first.
std::vector<ProductPlan> product_plans(std::span<const Product> products, int rows, int pieces,
                                       int multiprocessors);

/// Bytes of memory that a launch needs for sums that wait, for any plan.
size_t product_bytes(int rows, int pieces, int multiprocessors);

/// Products of the same launch that read what its first `makers` write. For plans with split 1.
struct LateProducts {
  std::span<const Product> products;
  int pieces = 1, makers = 0;
  uint32_t* gate = nullptr;  ///< [2], zero before the launch and after it
};

struct ProductLaunch {
  DType type = DType::kF16;
  int rows = 0, pieces = 1, multiprocessors = 0;
  ProductPlan plan;
  void* memory = nullptr;  ///< product_bytes()
  /// The kernel before in the stream may still run when this one starts to load weights
  /// (programmatic dependent launch).
  bool overlap = false;
  LateProducts late;
};
/// Whether late products would cost nothing: some clusters of blocks have no item in the last round
/// of the main ones, and time for all of them.
bool late_products_fit(const ProductLaunch& launch, std::span<const Product> products);

/// Throws DeviceError.
void launch_products(const ProductLaunch& launch, std::span<const Product> products,
                     cudaStream_t stream);

}  // namespace rwkv::cuda::decode
