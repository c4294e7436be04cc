#pragma once
/// Launchers of the chunked WKV-7 for one head size; each wkv7_chunk_n*.cu instantiates one.

#include <cuda_bf16.h>

#include "kernels/wkv/cuda/wkv7_cuda.h"

namespace rwkv::cuda::chunk {

/// E: type of the vectors, __nv_bfloat16 or, with heads of 64 and nothing saved, __half.
template <int kN, class E = __nv_bfloat16>
cudaError_t forward(const Wkv7Shape& shape, const Wkv7Forward& io, cudaStream_t stream);
template <int kN>
cudaError_t backward(const Wkv7Shape& shape, const Wkv7Backward& io, cudaStream_t stream);

}  // namespace rwkv::cuda::chunk
