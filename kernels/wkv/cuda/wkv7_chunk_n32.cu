#include "kernels/wkv/cuda/wkv7_chunk_backward_launch.cuh"
#include "kernels/wkv/cuda/wkv7_chunk_forward_launch.cuh"

namespace rwkv::cuda::chunk {

template cudaError_t forward<32>(const Wkv7Shape&, const Wkv7Forward&, cudaStream_t);
template cudaError_t backward<32>(const Wkv7Shape&, const Wkv7Backward&, cudaStream_t);

}  // namespace rwkv::cuda::chunk
