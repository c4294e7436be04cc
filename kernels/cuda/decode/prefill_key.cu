#include "kernels/core/cuda/cuda_check.h"
#include "kernels/core/error.h"
#include "kernels/cuda/common/gemm_tile.cuh"
#include "kernels/cuda/decode/prefill_kernels.h"

namespace rwkv::cuda::decode {

void launch_prompt_key(DType type, const void* a, const void* w, void* out, int64_t m, int64_t n,
                       int64_t k, int multiprocessors, cudaStream_t stream) {
  RWKV_ASSERT(type == DType::kF16 || type == DType::kBF16, "prefill in ", dtype_name(type));
  if (type == DType::kF16)
    RWKV_CUDA((tile::run<false, __half>(a, w, out, nullptr, m, n, k, multiprocessors, stream)));
  else
    RWKV_CUDA(
        (tile::run<false, __nv_bfloat16>(a, w, out, nullptr, m, n, k, multiprocessors, stream)));
}

}  // namespace rwkv::cuda::decode
