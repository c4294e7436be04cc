#pragma once
/// Launches of the kernel that decodes one token of one sequence.

#include "kernels/core/cuda/cuda_check.h"
#include "kernels/cuda/decode/step_head.cuh"

namespace rwkv::cuda::decode {

template <class T, int kPairs, bool kHalfState>
__global__ void __launch_bounds__(kThreads, 1) step_kernel(const __grid_constant__ Args args) {
  extern __shared__ __align__(128) std::byte shared[];
  Step<T, kPairs, kHalfState>(args, shared).run();
}

template <class T, int kPairs, bool kHalfState>
void launch_as(Context& ctx, const Args& args, int shared_bytes) {
  const auto stream = static_cast<cudaStream_t>(ctx.stream());
  const auto kernel = step_kernel<T, kPairs, kHalfState>;
  RWKV_CUDA(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  cudaLaunchAttribute together{};
  together.id = cudaLaunchAttributeCooperative;
  together.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(args.l.blocks));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = &together;
  config.numAttrs = 1;
  RWKV_CUDA(cudaLaunchKernelEx(&config, kernel, args));
  RWKV_LAUNCHED("decode step", stream);
}

template <class T>
void launch_step(Context& ctx, const Args& args, bool half_state, int shared_bytes) {
  const int pairs = (args.l.shape.width / 2 + kThreads - 1) / kThreads;
  const auto by_state = [&]<int kPairs>() {
    if (half_state)
      launch_as<T, kPairs, true>(ctx, args, shared_bytes);
    else
      launch_as<T, kPairs, false>(ctx, args, shared_bytes);
  };
  if (pairs <= 1)
    by_state.template operator()<1>();
  else if (pairs <= 2)
    by_state.template operator()<2>();
  else
    by_state.template operator()<4>();
}

}  // namespace rwkv::cuda::decode
