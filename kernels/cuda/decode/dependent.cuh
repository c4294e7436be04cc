#pragma once
/// Programmatic dependent launch: a kernel starts while the one before in the stream still runs.

#include <cuda_runtime.h>

namespace rwkv::cuda::decode {

/// Until the kernels before are done and what they wrote can be read. Every block calls it, so that
/// "the kernel before is done" includes all before it. Nothing when launched the ordinary way.
__device__ __forceinline__ void wait_for_kernel_before() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}
/// The next kernel may take what multiprocessors have free.
__device__ __forceinline__ void let_next_kernel_start() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

/// Launch of `blocks` blocks, in clusters, that may overlap the kernel before.
template <class... Params, class... Args>
cudaError_t launch_dependent(void (*kernel)(Params...), unsigned blocks, unsigned threads,
                             size_t shared, unsigned cluster, bool overlap, cudaStream_t stream,
                             const Args&... args) {
  cudaLaunchAttribute attributes[2];
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = attributes;
  if (cluster > 1) {
    attributes[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
    attributes[config.numAttrs].val.clusterDim.x = cluster;
    attributes[config.numAttrs].val.clusterDim.y = 1;
    attributes[config.numAttrs].val.clusterDim.z = 1;
    ++config.numAttrs;
  }
  if (overlap) {
    attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[config.numAttrs].val.programmaticStreamSerializationAllowed = 1;
    ++config.numAttrs;
  }
  return cudaLaunchKernelEx(&config, kernel, args...);
}

}  // namespace rwkv::cuda::decode
