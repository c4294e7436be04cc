#include "kernels/wkv/cuda/wkv7_chunk_forward_launch.cuh"

namespace rwkv::cuda {

cudaError_t wkv7_chunk_forward_f16(const Wkv7Shape& shape, const Wkv7Forward& io,
                                   cudaStream_t stream) {
  if (shape.head_size != 64 || io.saved != nullptr) return cudaErrorInvalidValue;
  return chunk::forward<64, __half>(shape, io, stream);
}

}  // namespace rwkv::cuda
