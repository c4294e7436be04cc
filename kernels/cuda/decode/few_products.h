#pragma once
/// The products of products.h for few rows and short sums, in less time from the end of the kernel
/// before to the end of their own: `height` 64 of a ProductPlan.

#include <cuda_runtime.h>

#include <span>

#include "kernels/cuda/decode/products.h"

namespace rwkv::cuda::decode {

/// Whether a block's share of the weights fits into its shared memory, and the launch has something
/// to gain.
bool few_products_fit(std::span<const Product> products, int rows, int pieces,
                      const ProductPlan& plan, int multiprocessors);
/// Throws DeviceError.
void launch_few_products(const ProductLaunch& launch, std::span<const Product> products,
                         cudaStream_t stream);

}  // namespace rwkv::cuda::decode
