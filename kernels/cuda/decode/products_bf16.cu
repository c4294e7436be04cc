#include "kernels/cuda/decode/products.cuh"

namespace rwkv::cuda::decode {

cudaError_t launch_products_bf16(const ProductTasks& all, int columns, unsigned blocks,
                                 unsigned cluster, bool overlap, cudaStream_t stream) {
  return launch_products_of<__nv_bfloat16>(all, columns, blocks, cluster, overlap, stream);
}

}  // namespace rwkv::cuda::decode
